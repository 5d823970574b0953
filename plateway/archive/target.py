"""Read and write the tars of an archive: a tape's disk cache, SFTP, another bucket."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from plateway.archive import tar
from plateway.archive.filesystem import ArchiveDirectory
from plateway.archive.manifest import CAP
from plateway.archive.tar import TarMember
from plateway.endpoint import Endpoint
from plateway.errors import Conflict, NotFound
from plateway.store.contract import check_key

MANIFESTS = "manifests"
ASIDE = re.compile(r"\..+\.part-[0-9a-f]{12}")  # temporary name of a file that is being written
AHEAD = 16 << 10  # bytes of one read of headers


class Written(NamedTuple):
    """What was written and read back."""

    size: int
    sha256: str


class ArchivedFile(NamedTuple):
    """A file on the archive."""

    path: str
    size: int
    modified: datetime | None = None  # None: unknown


class Archive:
    """A directory of tars anywhere. Paths are relative to it, and plain.

    Raises, everywhere: `Unavailable` when it cannot be reached now, `Denied`, `NotFound` when the
    directory itself is missing, `Rejected` for a path that is not plain, `Misconfigured`.
    """

    def __init__(self, url: str, endpoint: Endpoint | None = None) -> None:
        self._place = ArchiveDirectory(url, endpoint)
        self.name = self._place.name

    @property
    def local_root(self) -> Path | None:
        """Its path on this machine, or None if it is elsewhere."""
        return self._place.local_root

    @property
    def durable(self) -> bool:
        """Return whether what is written there outlives this process."""
        return self._place.durable

    def root_identity(self) -> str:
        """Identify the archive by its file system and root, or by its URL if it is not on this machine."""
        return self._place.root_identity()

    def stat(self, path: str) -> ArchivedFile | None:
        """Return size and modification time of a file; None if there is none."""
        found = self._place.find(check_key(path))
        if found is None or found.kind not in {"file", "link"}:
            return None
        return ArchivedFile(path, found.size, found.modified)

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes; None if there is none."""
        found = self.stat(path)
        return found and found.size

    def remove(self, path: str) -> None:
        """Delete a file; a missing one is ignored."""
        self._place.remove(check_key(path))

    def open(self, path: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice: from `start`, at most `length` bytes. Raises `NotFound` before the first byte."""
        return self._place.open(check_key(path), start=start, length=length)

    def write(self, path: str, chunks: Iterable[bytes]) -> Written:
        """Write a file to a temporary name, read it back and rename it; nothing is overwritten or visible incomplete.

        An error of `chunks` is raised unchanged. The temporary file of a killed write is deleted by a later write of
        the same path, after a day.

        Raises:
            Conflict: the name exists. Damaged: the bytes read back differ.
        """
        return Written(*self._place.write(check_key(path), chunks))

    def list(self, prefix: str = "") -> Iterator[ArchivedFile]:
        """List the files whose path begins with `prefix`, by path, without temporary files."""
        for found in self._place.walk(prefix.rpartition("/")[0]):
            if found.name.startswith(prefix) and not found.name.rpartition("/")[2].startswith("."):
                yield ArchivedFile(found.name, found.size)

    def sweep(self, directory: str, *, before: datetime) -> Iterator[str]:
        """Delete temporary files below a directory that were last modified before ``before``.

        Returns the paths of the deleted files.
        """
        for found in self._place.walk(directory):
            aside = ASIDE.fullmatch(found.name.rpartition("/")[2])
            if aside and found.modified is not None and found.modified < before:
                self._place.remove(found.name)
                yield found.name

    def members(self, path: str) -> Iterator[TarMember]:
        """List the regular files in a tar, from its headers.

        Raises:
            NotFound: no such tar. Damaged: after the complete members, if it is truncated or not a tar.
        """
        size = self.size(path)
        if size is None:
            raise NotFound(f"{self._place.at(path)}: no such archive")
        return tar.members(_Window(self, path, size).read, size)

    def put_manifest(self, job_id: str, content: bytes) -> None:
        """Write a manifest beside the tars, at ``manifests/<job_id>.json``; an equal one is kept.

        Raises:
            Conflict: a different one exists.
        """
        path = f"{MANIFESTS}/{job_id}.json"
        try:
            self.write(path, [content])
        except Conflict:
            if self._place.read(path, most=len(content) + 1) != content:
                raise

    def manifests(self) -> Iterator[tuple[str, bytes]]:
        """Read the manifests beside the tars: name and content."""
        for filed in self.list(f"{MANIFESTS}/"):
            if filed.path.endswith(".json"):
                yield filed.path, self._place.read(filed.path, most=CAP + 1)


class _Window:
    """A buffer of bytes around the last header, so that small members need no read each."""

    def __init__(self, archive: Archive, path: str, size: int) -> None:
        self._archive, self._path, self._size = archive, path, size
        self._start, self._kept = 0, b""

    def read(self, start: int, length: int) -> bytes:
        """Read a slice, and buffer the bytes after it."""
        at = start - self._start
        if not 0 <= at <= len(self._kept) - length:
            ahead = min(max(length, AHEAD), self._size - start)
            self._start, self._kept, at = start, b"".join(self._archive.open(self._path, start=start, length=ahead)), 0
        return self._kept[at : at + length]


def open_archive(url: str, endpoint: Endpoint | None = None) -> Archive:
    """Open an archive at any fsspec URL: ``file:///directory``, ``memory://name``, ``s3://bucket/prefix``, ``sftp://…``.

    It is not accessed yet.

    Raises:
        Misconfigured: fsspec does not know such a URL.
    """
    return Archive(url, endpoint)
