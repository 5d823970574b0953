"""The identity of a location: a marker that shows whether a disk is mounted, is the same one, and is ours.

An empty mount point, a swapped disk and another site's directory look like places to write to, and like proof that
nothing is there. So each place carries a marker with two random ids: its own, and that of the site that owns it.
A place that we may only read is identified by its file system and its root instead.
``pipeline.places`` compares a marker with what the catalogue recorded.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote
from uuid import UUID, uuid5

from plateway.errors import Conflict, Denied, Misconfigured, NotFound, Refused, Unsettled
from plateway.folder import move, translate_errors
from plateway.keys import MARKER_FILE, MARKER_PREFIX

if TYPE_CHECKING:
    from plateway.archive import Archive
    from plateway.store import Store

CAP = 4096  # bytes that are read of a marker
PART = 8 << 20
LOCK_WAIT = 5.0  # seconds


@dataclass(frozen=True)
class Marker:
    """The content of a marker."""

    place: UUID
    site: UUID

    def dump(self) -> bytes:
        """Serialize as JSON."""
        about = "Plateway identifies this place by this file. Keep it."
        return json.dumps({"about": about, "place": str(self.place), "site": str(self.site)}, indent=1).encode()

    @classmethod
    def parse(cls, content: bytes, *, name: str) -> Marker:
        """Read a marker.

        Raises:
            Refused: it is none.
        """
        try:
            told = json.loads(content)
            return cls(UUID(told["place"]), UUID(told["site"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Refused(f"{name}: its marker {MARKER_FILE} cannot be read") from error


class Markable(Protocol):
    """A location that can have a marker."""

    def read_marker(self) -> Marker | None:
        """Return the marker, None if there is none.

        Raises:
            Unsettled: the place itself is not there. Unavailable, Denied: it cannot be read.
        """

    def write_marker(self, marker: Marker, *, replace: bool = False) -> bool:
        """Write a marker durably; one that is there stays, or is replaced. Return False if it may not be written."""

    def root_identity(self) -> str:
        """Identify a place without a marker."""


class DirectoryPlace:
    """A directory of this machine."""

    def __init__(self, path: Path, *, name: str) -> None:
        self._path, self._name = path, name

    def read_marker(self) -> Marker | None:
        with translate_errors(self._name):
            if not self._path.is_dir():
                raise Unsettled(f"{self._name}: no such directory: is it mounted?")
            try:
                descriptor = os.open(self._path / MARKER_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
                return Marker.parse(file.read(CAP), name=self._name)

    def write_marker(self, marker: Marker, *, replace: bool = False) -> bool:
        aside = self._path / f"{MARKER_FILE}.part"
        try:
            with _locked(self._path) as ours:
                if not ours or (not replace and (self._path / MARKER_FILE).exists()):
                    return True  # another process marks, or marked, the place
                aside.unlink(missing_ok=True)  # of a writer that died
                descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                    file.write(marker.dump())
                    file.flush()
                    os.fsync(file.fileno())
                if replace:
                    (self._path / MARKER_FILE).unlink(missing_ok=True)
                with suppress(Refused, Unsettled):  # a machine without locks was faster
                    move(self._path, aside.name, to=MARKER_FILE)
                aside.unlink(missing_ok=True)
        except FileExistsError:  # the same
            return True
        except OSError:
            return False
        return True

    def root_identity(self) -> str:
        with translate_errors(self._name):
            status, system = self._path.stat(), os.statvfs(self._path)
        return f"{system.f_fsid or status.st_dev:x}:{status.st_ino}"


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Lock a directory while its marker is written; yields False if another process holds the lock for long.

    Without the lock, a writer could take the unfinished marker of another one for the rest of a dead one. Where the
    file system has no locks, none is taken.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    yield False
                    return
                time.sleep(0.01)
                continue
            except OSError:
                pass  # the file system has no locks
            yield True
            return
    finally:
        os.close(descriptor)


class BucketPlace:
    """A bucket, or the part of one below a prefix. Several sites may share it: each has a marker object of its own."""

    def __init__(self, store: Store, *, site: UUID, endpoint: str | None) -> None:
        self._store, self._site, self._endpoint = store, site, endpoint
        self._key = f"{MARKER_PREFIX}{site}.json"

    def read_marker(self) -> Marker | None:
        try:
            content = b"".join(self._store.open(self._key, length=CAP))
        except NotFound:
            self._store.stat(self._key)  # raises where the bucket itself is missing
            return None
        return Marker.parse(content, name=f"bucket {self._store.name}")

    def write_marker(self, marker: Marker, *, replace: bool = False) -> bool:
        content = Marker(uuid5(self._site, f"{self._endpoint}/{self._store.name}"), self._site).dump()
        try:
            self._store.put(self._key, [content], size=len(content), part_size=PART, metadata={})
        except (Denied, Refused):
            return False
        return True

    def root_identity(self) -> str:
        return f"{self._endpoint}/{self._store.name}"


class ArchivePlace:
    """The archive, wherever fsspec reaches it."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def read_marker(self) -> Marker | None:
        try:
            if self._archive.size(MARKER_FILE) is None:
                return None
            return Marker.parse(b"".join(self._archive.open(MARKER_FILE, length=CAP)), name="archive")
        except NotFound as error:
            raise Unsettled(f"archive: {error}: is it mounted?") from error

    def write_marker(self, marker: Marker, *, replace: bool = False) -> bool:
        try:
            if replace:
                self._archive.remove(MARKER_FILE)
            self._archive.write(MARKER_FILE, [marker.dump()])
        except (Denied, Refused):
            return False
        except Conflict:
            return True
        return True

    def root_identity(self) -> str:
        return self._archive.root_identity()


def local_path(url: str | None) -> Path | None:
    """Return the directory of this machine that a URL or path names; None for anything else."""
    if not url:
        return None
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url)
    return Path(unquote(rest)) if scheme in {"file", "local"} and rest.startswith("/") else None


def refuse_overlaps(places: Mapping[str, Path], *, home: Path | None = None) -> None:
    """Refuse places that are, or contain, each other: removing from one would remove from the other.

    The home may hold the others, and is none of them.

    Raises:
        Misconfigured: names the two settings.
    """
    for (name, path), (other, there) in itertools.permutations(places.items(), 2):
        if _holds(there, path):
            how = "are the same directory" if _holds(path, there) else "lie in each other"
            raise Misconfigured(f"{name} and {other} {how}: each needs a directory of its own")
    for name, path in places.items():
        if home is not None and _holds(path, home):
            raise Misconfigured(f"PLATEWAY_HOME lies in {name}, or is the same directory: it needs one of its own")


def _holds(outer: Path, inner: Path) -> bool:
    """Return whether a directory is, or contains, another one, by any name, link or mount."""
    outer, inner = outer.resolve(), inner.resolve()
    if inner == outer or outer in inner.parents:
        return True
    if not outer.exists():
        return False
    return any(one.exists() and one.samefile(outer) for one in (inner, *inner.parents))
