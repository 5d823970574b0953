"""The ways to one image inside a bundle, each in a process of its own: seconds from nothing open, and once more.

Reads a job as JSON from the file that is named: way, bucket, key, event id and names of images. Each image is fetched
whole and hashed. Everything is imported before; opening clients and catalogue belongs to the first image.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]  # ships no types
import fsspec.implementations.tar  # type: ignore[import-untyped]  # imported here, so that nobody imports it later
import obstore
import s3fs  # type: ignore[import-untyped]  # noqa: F401 - the same

from benchmarks.measure import worked
from plateway import bundle, pipeline
from plateway.events import Ref
from plateway.settings import load
from plateway.store import open_store

Fetch = Callable[[str], bytes]


def catalogued(job: dict[str, Any]) -> Fetch:
    """Fetch with `plateway cat`'s verb."""
    site = pipeline.open_site(load())
    ref = Ref(*_ref(job["id"]))
    return lambda name: b"".join(pipeline.cat(site, ref, name))


def _ref(text: str) -> tuple[Any, int]:
    id_, revision = Ref.parse(text)
    return id_, revision or 1


def alone(job: dict[str, Any]) -> Fetch:
    """Fetch without a catalogue: the manifest is found from the end of the object."""
    config = load()
    store = open_store(config.bucket_url, config.endpoint)

    def fetch(name: str) -> bytes:
        found = bundle.tail(lambda size: b"".join(store.open(job["key"], start=-size)))
        member = next(one for one in found.manifest.members if one.name == name)
        return b"".join(store.open(job["key"], start=member.offset, length=member.size))

    return fetch


def download(job: dict[str, Any]) -> Fetch:
    """Download the tar with obstore, the fastest client that was measured, and unpack all of it."""
    store = _bucket(job)

    def fetch(name: str) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "bundle.tar")
            with path.open("wb") as file:
                for chunk in obstore.get(store, job["key"]).stream(min_chunk_size=1 << 20):
                    file.write(chunk)
            with tarfile.open(path) as tar:
                tar.extractall(place, filter="data")
            return Path(place, name).read_bytes()

    return fetch


def streamed(job: dict[str, Any]) -> Fetch:
    """Stream the tar with obstore and stop at the image: nothing is written to disk."""
    store = _bucket(job)

    def fetch(name: str) -> bytes:
        chunks = (bytes(chunk) for chunk in obstore.get(store, job["key"]).stream(min_chunk_size=1 << 20))
        with tarfile.open(fileobj=io.BufferedReader(Chunks(chunks), 1 << 20), mode="r|") as tar:
            member = next(one for one in tar if one.name.removeprefix("./") == name)
            file = tar.extractfile(member)
            assert file is not None
            return file.read()

    return fetch


class Chunks(io.RawIOBase):
    """Chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def tar_filesystem(job: dict[str, Any], **opening: Any) -> Fetch:
    """Open fsspec's tar filesystem over s3fs; it lists all headers when it is opened."""
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    file = fsspec.filesystem("s3", **options).open(f"{job['bucket']}/{job['key']}", "rb", **opening)
    system = fsspec.filesystem("tar", fo=file, skip_instance_cache=True)

    def fetch(name: str) -> bytes:
        found: bytes = system.cat_file(f"./{name}") if system.exists(f"./{name}") else system.cat_file(name)
        return found

    return fetch


def small_blocks(job: dict[str, Any]) -> Fetch:
    """Open it as somebody would who knows it well: 64 KiB read ahead instead of 5 MiB and more."""
    return tar_filesystem(job, block_size=64 << 10, cache_type="readahead")


def _bucket(job: dict[str, Any]) -> obstore.store.S3Store:
    return obstore.store.S3Store(
        job["bucket"],
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


WAYS: dict[str, Callable[[dict[str, Any]], Fetch]] = {
    "plateway": catalogued,
    "alone": alone,
    "download": download,
    "stream": streamed,
    "fsspec": tar_filesystem,
    "fsspec-small": small_blocks,
}


def main(path: str) -> None:
    """Fetch the images one after the other and print what each took."""
    job = json.loads(Path(path).read_text())
    seconds, cpu, digests = [], [], []
    fetch: Fetch | None = None
    for name in job["names"]:
        with worked() as spent:
            fetch = fetch or WAYS[job["way"]](job)
            image = fetch(name)
        seconds.append(spent["seconds"])
        cpu.append(spent["cpu"])
        digests.append(hashlib.sha256(image).hexdigest())
    print(json.dumps({"seconds": seconds, "cpu": cpu, "sha256": digests}))


if __name__ == "__main__":
    main(sys.argv[1])
