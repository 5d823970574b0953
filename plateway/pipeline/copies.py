"""Bring bytes back: one image, or everything of an event, from whichever copy has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plateway.catalog import Ledger, Ref
from plateway.pipeline.line import Line, Outcome

Where = Literal["bucket", "archive"]


@dataclass(frozen=True)
class Copy:
    """One place that has the bundle of an event."""

    where: Where
    place: str  # the key in the bucket, or the path of the archive
    size: int | None  # of the bundle, in bytes
    read: Callable[[int, int | None], Iterator[bytes]]

    def open(self, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice of the bundle: from `start` (from the end if negative), at most `length` bytes.

        Raises:
            Unavailable, Denied, NotFound: it cannot be read (now).
        """
        return self.read(start, length)


def copies(line: Line, ledger: Ledger) -> list[Copy]:
    """Name the places that have an event's bundle, the best first: the bucket, then archives by their evidence."""
    raise NotImplementedError


def cat(line: Line, ref: Ref, name: str, *, source: Where | None = None) -> Iterator[bytes]:
    """Read one image, by its name in the bundle or on the bench, with one ranged read.

    The SHA-256 is compared when the last byte was handed out: `Damaged` then means that what came was wrong.

    Raises:
        NotFound: no such event, copy or image; similar names are told.
        Unavailable, Denied: no copy can be read (now). Damaged: no copy is good.
    """
    raise NotImplementedError


def restore(
    line: Line,
    ref: Ref,
    *,
    to: Path | None = None,
    to_bench: bool = False,
    source: Where | None = None,
    beat: Callable[[int], None] | None = None,
) -> Outcome:
    """Bring all files of an event back, to ``<to>/<ref>/`` or to their place on the instrument's disk.

    Every file is written aside, compared with the manifest's SHA-256, synced and renamed. May be repeated: right files
    that are there are kept, only missing ones are read. ``beat`` hears of the bytes that are there so far.

    Raises:
        NotFound: no such event or copy. Conflict, Refused: something else is there. Busy: somebody else restores it.
        Unavailable: no copy can be read now, or the disk has no room. Damaged: no copy has a good file of each.
        Rejected: the manifest names files that may not be written.
    """
    raise NotImplementedError
