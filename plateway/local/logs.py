"""The logs of parts: written by the parts themselves, rotated by size and age while they run.

A part has its log open for appending, so the file stays: its content is copied and the file truncated. What a part
writes in the milliseconds between the two is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class LogLimits:
    """How much of one part's log is kept: ``size * (files + 1)`` bytes, plus what is written between two checks."""

    size: int = 10 * 2**20  # bytes of one file
    age: timedelta = timedelta(days=1)  # after which a log is rotated
    files: int = 7  # rotated ones, the newest is .log.1


@contextmanager
def open_log(path: Path) -> Iterator[int]:
    """Open a log for appending (mode 0600)."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def rotate(path: Path, limits: LogLimits, *, since: float, now: float) -> bool:
    """Rotate a log that is too long or too old, and return whether it was; times are seconds since the epoch.

    The age of a log counts from the last rotation, else from ``since``. On a full disk its content is dropped.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    newest = rotated_path(path, 1)
    with suppress(FileNotFoundError):
        since = newest.stat().st_mtime
    if size == 0 or (size <= limits.size and now - since < limits.age.total_seconds()):
        return False
    for number in range(limits.files, 1, -1):
        with suppress(FileNotFoundError):
            rotated_path(path, number - 1).replace(rotated_path(path, number))
    try:
        copy_tail(path, newest, size=limits.size)
    except OSError:
        with suppress(OSError):
            newest.unlink()
    os.truncate(path, 0)
    return True


def rotated_path(path: Path, number: int) -> Path:
    """Return the path of a log after that many rotations."""
    return path.with_name(f"{path.name}.{number}")


def copy_tail(source: Path, target: Path, *, size: int) -> None:
    """Copy the last ``size`` bytes of a file that may grow meanwhile, or fewer (mode 0600).

    Raises:
        OSError: the target cannot be written, for example on a full disk.
    """
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
        reader.seek(max(0, os.fstat(reader.fileno()).st_size - size))
        while size > 0 and (chunk := reader.read(min(CHUNK, size))):
            writer.write(chunk)
            size -= len(chunk)
