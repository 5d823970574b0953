"""Small pictures that were made, kept on disk: for all workers of a machine, as many as there is room for.

Each lies in a file of its own, written aside and renamed. A file that was cut off, by a power failure for example, is
none: what is not whole is made again. That something is no picture is kept as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from uuid import uuid4

from plateway.errors import Rejected

ROOM = 256 << 20  # bytes on disk
LEFT = 3600.0  # seconds after which a file that was not renamed was left behind
BEGINS, ENDS = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
NONE, PERIOD = b"no picture: ", b"\n"


class Thumbs:
    """The directory; each worker opens it."""

    def __init__(self, directory: Path, *, room: int = ROOM) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._room = directory, room
        self._new = room  # bytes since the directory was looked at: at first it is
        self._counting = Lock()

    def find(self, name: str) -> bytes | None:
        """Find the picture of that name; None: there is none yet.

        Raises:
            Rejected: it was found out that there cannot be one.
        """
        try:
            content = (self._directory / name).read_bytes()
        except OSError:
            return None
        if content.startswith(NONE) and content.endswith(PERIOD):
            raise Rejected(content[len(NONE) : -len(PERIOD)].decode("utf-8", "replace"))
        return content if content.startswith(BEGINS) and content.endswith(ENDS) else None

    def keep(self, name: str, content: bytes | Rejected) -> None:
        """Keep a picture, or why there is none; where the disk has no room it is made again next time."""
        told = content if isinstance(content, bytes) else NONE + str(content).encode("utf-8", "replace") + PERIOD
        aside = self._directory / f".{uuid4().hex}"
        with suppress(OSError):
            try:
                aside.write_bytes(told)
                aside.rename(self._directory / name)
            finally:
                aside.unlink(missing_ok=True)
            self._count(len(told))

    def _count(self, size: int) -> None:
        """Make room from time to time: the oldest go first."""
        with self._counting:
            self._new += size
            if self._new <= self._room // 16:
                return
            self._new = 0
        kept = sorted(self._files())
        left = sum(bytes_ for _, bytes_, _ in kept)
        for _, bytes_, path in kept:
            if left <= self._room * 3 // 4:
                return
            path.unlink(missing_ok=True)
            left -= bytes_

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """List what is kept with time and size; what was left behind goes."""
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another worker made room
                    told, path = entry.stat(), self._directory / entry.name
                    if not entry.name.startswith("."):
                        yield told.st_mtime, told.st_size, path
                    elif told.st_mtime < time.time() - LEFT:
                        path.unlink()
