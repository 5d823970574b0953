"""The way of DLM, rebuilt from its exporter: temporary tar, s3fs ``put_file``, SHA-256 in a second read.

Five events at a time and five parts at a time, as DLM's first version had them. Its checksum stops after 10 KiB; here
it reads the whole tar, as was meant. What it did besides (Redis streams, job queue, PostgreSQL) is left out: this is
the least that its way can cost.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import s3fs  # type: ignore[import-untyped]  # s3fs ships no types

from benchmarks.measure import worked

JOBS = 5
CHUNK = 10 * 1024  # as DLM reads


def pack(source: Path, target: Path) -> None:
    """Write a directory as a plain tar."""
    with tarfile.open(target, "a") as tar:
        tar.add(source, arcname=".")


def digest(path: Path) -> str:
    """Read a file again for its SHA-256."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


async def export(s3: s3fs.S3FileSystem, source: Path, key: str) -> str:
    """Export one event and return the checksum."""
    with TemporaryDirectory() as temporary:
        tar = Path(temporary, "event.tar")
        await asyncio.to_thread(pack, source, tar)
        checksum, _ = await asyncio.gather(asyncio.to_thread(digest, tar), s3._put_file(tar, key))
    return checksum


async def exports(sources: Mapping[str, Path], env: Mapping[str, str]) -> dict[str, float]:
    """Export all events, a few at a time."""
    s3 = s3fs.S3FileSystem(
        key=env["AWS_ACCESS_KEY_ID"],
        secret=env["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=env["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": env["AWS_DEFAULT_REGION"]},
        config_kwargs={
            "request_checksum_calculation": "WHEN_REQUIRED",
            "response_checksum_validation": "WHEN_REQUIRED",
        },
        asynchronous=True,
        max_concurrency=5,
    )
    session = await s3.set_session()
    free = asyncio.Semaphore(JOBS)

    async def one(key: str, source: Path) -> None:
        async with free:
            await export(s3, source, key)

    with worked() as spent:
        await asyncio.gather(*(one(key, source) for key, source in sources.items()))
    await session.close()
    return spent


def main(arguments: Sequence[str]) -> None:
    """Export ``key=directory`` pairs from a JSON file and print what it took."""
    sources = {key: Path(source) for key, source in json.loads(Path(arguments[0]).read_text()).items()}
    print(json.dumps(asyncio.run(exports(sources, os.environ))))


if __name__ == "__main__":
    main(sys.argv[1:])
