"""A manifest: what one archiving job says it wrote, in the words of surf-archiver and a few more of ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """This key is in this archive. What is None was not told."""

    path: str  # of the archive, relative to its root
    key: str  # "<bucket>/<key>"
    member: str | None = None  # its name in the tar
    size: int | None = None  # bytes
    sha256: str | None = None  # of those
    offset: int | None = None  # of its first byte in the tar


@dataclass(frozen=True)
class Notice:
    """What a manifest says, entry by entry."""

    job_id: str
    date: datetime  # UTC
    entries: tuple[Entry, ...]  # by path and key
    refused: tuple[str, ...]  # why each entry that is not among them was refused
    digest: str  # SHA-256 of all that was said, however it was spelt and ordered


def parse(content: bytes) -> Notice:
    """Read a manifest strictly; an entry that is wrong is refused on its own.

    Raises:
        Rejected: it cannot be used at all; says why.
    """
    raise NotImplementedError


def dump(job_id: str, day: date, *, entries: Iterable[Entry]) -> bytes:
    """Write a manifest as `parse` reads it, and as surf-archiver would have."""
    raise NotImplementedError
