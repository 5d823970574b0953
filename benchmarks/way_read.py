"""The ways to 500 images, each in a process of its own: seconds and CPU from the first request to the last pixel.

Reads a job as JSON from the file that is named: way, bucket, keys, and a directory to save to. What it prints has the
sum of all pixels, so that nobody gets away with reading less. Everything is imported before, and the client is made.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # ships no types
import pydicom

from benchmarks.measure import worked

ABREAST = 8


class Desk:
    """A client, the images' keys, and where files go."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.s3: Any = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        self.bucket, self.keys, self.to = job["bucket"], job["keys"], Path(job["to"])
        self.s3.list_buckets()  # a connection is there

    def content(self, key: str) -> bytes:
        """Fetch an object into memory."""
        found: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return found

    def saved(self) -> Iterator[Path]:
        """Fetch all objects into files."""
        for key in self.keys:
            path = self.to / Path(key).name
            self.s3.download_file(self.bucket, key, str(path))
            yield path


def total(images: Iterable[Any]) -> int:
    """Decode images, and add up their pixels."""
    return sum(int(pydicom.dcmread(image).pixel_array.sum(dtype="uint64")) for image in images)


def in_memory(desk: Desk) -> int:
    """One after the other, straight into memory."""
    return total(io.BytesIO(desk.content(key)) for key in desk.keys)


def abreast(desk: Desk) -> int:
    """The same with eight on their way."""
    with ThreadPoolExecutor(ABREAST) as pool:
        return total(io.BytesIO(content) for content in pool.map(desk.content, desk.keys))


def saved(desk: Desk) -> int:
    """Save all, then read them: what was just written is still in the page cache."""
    return total(list(desk.saved()))


def flushed(desk: Desk) -> int:
    """Save all so that a power cut takes none, then read them."""
    return total([flush(path) for path in desk.saved()])


def later(desk: Desk) -> int:
    """Save all, and read them when they are no longer in the page cache."""
    return total([forget(flush(path)) for path in desk.saved()])


def command(desk: Desk) -> int:
    """Save all with one aws s3 cp, ten at a time, then read them."""
    subprocess.run(
        ["aws", "s3", "cp", "--recursive", "--only-show-errors", f"s3://{desk.bucket}/", str(desk.to)], check=True
    )
    return total(sorted(desk.to.rglob("*.dcm")))


def flush(path: Path) -> Path:
    """Write a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def forget(path: Path) -> Path:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


WAYS: dict[str, Callable[[Desk], int]] = {
    "memory": in_memory,
    "abreast": abreast,
    "ram": saved,
    "disk": saved,
    "flushed": flushed,
    "later": later,
    "aws": command,
}


def main(path: str) -> None:
    """Do it one way, and print what it took."""
    job = json.loads(Path(path).read_text())
    desk = Desk(job)
    with worked() as spent:
        pixels = WAYS[job["way"]](desk)
    print(json.dumps({**spent, "pixels": pixels}))


if __name__ == "__main__":
    main(sys.argv[1])
