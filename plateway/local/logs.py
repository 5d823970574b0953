"""The logs of parts: written by the parts themselves, set aside by size and age while they run.

A part holds its log open for appending, so the file stays in place: its content is copied aside and cut off. What a
part writes in the milliseconds between the two is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """How much of one part's log is kept: at most ``size * (files + 1)`` bytes, and what comes between two checks."""

    size: int = 10 * 2**20  # bytes of one file
    age: timedelta = timedelta(days=1)  # after which a log is set aside
    files: int = 7  # set aside, the newest as .log.1


@contextmanager
def open_log(path: Path) -> Iterator[int]:
    """Open a log for appending, for its owner only."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def rotate(path: Path, limits: Limits, *, since: float, now: float) -> bool:
    """Set a log aside if it is too long, or was begun too long ago; times are seconds since the epoch.

    A log begins when the one before was set aside, else at ``since``. On a full disk its content is dropped.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    before = aside(path, 1)
    with suppress(FileNotFoundError):
        since = before.stat().st_mtime
    if size == 0 or (size <= limits.size and now - since < limits.age.total_seconds()):
        return False
    for number in range(limits.files, 1, -1):
        with suppress(FileNotFoundError):
            aside(path, number - 1).replace(aside(path, number))
    try:
        copy_end(path, before, size=limits.size)
    except OSError:
        with suppress(OSError):
            before.unlink()
    os.truncate(path, 0)
    return True


def aside(path: Path, number: int) -> Path:
    """Name the file of a log that was set aside so many times ago."""
    return path.with_name(f"{path.name}.{number}")


def copy_end(source: Path, target: Path, *, size: int) -> None:
    """Copy the end of a file that may grow meanwhile, at most ``size`` bytes, for its owner only.

    Raises:
        OSError: the disk is full, for example.
    """
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
        reader.seek(max(0, os.fstat(reader.fileno()).st_size - size))
        while size > 0 and (chunk := reader.read(min(CHUNK, size))):
            writer.write(chunk)
            size -= len(chunk)
