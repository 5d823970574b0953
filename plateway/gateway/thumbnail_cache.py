"""A bounded cache of thumbnails on disk, for all workers of a machine.

Each thumbnail is one file, written to a temporary name and renamed. A truncated file (after a power failure)
is ignored, and the thumbnail is made again. That a file is not a picture is cached as well.
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
LEFT = 3600.0  # age of temporary files that are deleted, in seconds
BEGINS, ENDS = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
NONE, PERIOD = b"no picture: ", b"\n"


class Thumbs:
    """The directory of the cache; each worker opens it."""

    def __init__(self, directory: Path, *, room: int = ROOM) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._room = directory, room
        self._new = room  # bytes written since the last clean-up; the first write cleans up
        self._lock = Lock()

    def find(self, name: str) -> bytes | None:
        """Return the cached thumbnail of that name, or None.

        Raises:
            Rejected: the file is known not to be a picture.
        """
        try:
            content = (self._directory / name).read_bytes()
        except OSError:
            return None
        if content.startswith(NONE) and content.endswith(PERIOD):
            raise Rejected(content[len(NONE) : -len(PERIOD)].decode("utf-8", "replace"))
        return content if content.startswith(BEGINS) and content.endswith(ENDS) else None

    def keep(self, name: str, content: bytes | Rejected) -> None:
        """Write a thumbnail, or the reason why there is none; a full disk is ignored."""
        stored = content if isinstance(content, bytes) else NONE + str(content).encode("utf-8", "replace") + PERIOD
        aside = self._directory / f".{uuid4().hex}"
        with suppress(OSError):
            try:
                aside.write_bytes(stored)
                aside.rename(self._directory / name)
            finally:
                aside.unlink(missing_ok=True)
            self._clean_up(len(stored))

    def _clean_up(self, size: int) -> None:
        """After enough new bytes, delete the oldest thumbnails."""
        with self._lock:
            self._new += size
            if self._new <= self._room // 16:
                return
            self._new = 0
        kept = sorted(self._list_files())
        left = sum(bytes_ for _, bytes_, _ in kept)
        for _, bytes_, path in kept:
            if left <= self._room * 3 // 4:
                return
            path.unlink(missing_ok=True)
            left -= bytes_

    def _list_files(self) -> Iterator[tuple[float, int, Path]]:
        """List the thumbnails with time and size; delete old temporary files."""
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # deleted by another worker
                    stat, path = entry.stat(), self._directory / entry.name
                    if not entry.name.startswith("."):
                        yield stat.st_mtime, stat.st_size, path
                    elif stat.st_mtime < time.time() - LEFT:
                        path.unlink()
