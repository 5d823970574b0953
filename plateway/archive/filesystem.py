"""A directory anywhere that fsspec reaches, as the inbox and the archive need it.

Nothing is cached and nothing is asked before it is needed. Where the directory is of this machine, what is written is
flushed to disk, and a name is given by a hard link, which never replaces anything; elsewhere it is looked first.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec  # type: ignore[import-untyped]  # ships no types
from fsspec.registry import known_implementations, registry  # type: ignore[import-untyped]  # the same
from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]  # the same

from plateway import store
from plateway.endpoint import Endpoint
from plateway.errors import Conflict, Damaged, Misconfigured, NotFound, PlatewayError, Unavailable
from plateway.folder import NO_SYNC
from plateway.names import shown
from plateway.store import errors

WINDOW = 1 << 20  # read at a time of a disk
FAR_WINDOW = 8 << 20  # read at a time of anything else: each costs a request
PATIENCE = {"connect_timeout": 5, "read_timeout": 30}
FOREIGN = {"aiohttp", "paramiko"}  # libraries below fsspec whose errors are no OSError
ABANDONED = timedelta(days=1)  # after which a write that was cut off is removed by the next one
NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}  # file systems without hard links


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What lies at a path."""

    name: str  # relative to the place
    kind: str  # file | directory | link | other
    size: int
    modified: datetime | None  # where it can be told


class ArchiveDirectory:
    """A directory, by its URL.

    Raises, everywhere: `Unavailable` when it does not answer or cannot just now, `Denied`, `NotFound` when the
    directory itself is not there, `Misconfigured`.
    """

    def __init__(self, url: str, endpoint: Endpoint | None = None) -> None:
        protocol, path = fsspec.core.split_protocol(url)
        protocol = protocol or "file"
        if protocol not in {*known_implementations, *registry}:
            raise Misconfigured(f"{shown(protocol)}:// is no place that fsspec knows: file, s3, sftp, memory …")
        self.local = protocol in {"file", "local"}
        self.durable = protocol not in {"memory", "data", "reference"}
        self.name = shown(f"{protocol}://{path.rpartition('@')[2].rstrip('/')}")
        self._label = self.name.rpartition("/")[2] or protocol
        self._url, self._endpoint, self._protocol = url, endpoint, protocol

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        far = {"use_listings_cache": False, "config_kwargs": PATIENCE} if self._protocol == "s3" else {}
        try:
            with self.door(""):
                return store.filesystem(self._url, self._endpoint, skip_instance_cache=True, **far)
        except ImportError as error:
            raise Misconfigured(f"{self._protocol}:// cannot be opened: {error}") from None
        except (ValueError, TypeError) as error:
            raise Misconfigured(f"{self._protocol}:// cannot be opened ({type(error).__name__})") from None

    @property
    def local_root(self) -> Path | None:
        """The directory that it is, where that is of this machine."""
        return Path(self._at("")) if self.local else None

    def root_identity(self) -> str:
        """Identify the place: by file system and root on this machine, elsewhere by its address."""
        if not self.local:
            return self.name
        with self.door(""):
            status, system = Path(self._at("")).stat(), os.statvfs(self._at(""))
        return f"{system.f_fsid or status.st_dev:x}:{status.st_ino}"

    def list(self, directory: str = "") -> list[FileInfo]:
        """List a directory of the place, by name; one that is not there is empty, unless it is the place itself."""
        fs, root = self._opened
        with self.door(directory):
            try:
                fs.invalidate_cache()
                entries = fs.ls(self._at(directory), detail=True)
            except FileNotFoundError:
                self._witness()
                return []
        at = self._at(directory).rstrip("/") + "/"
        found = [_found(entry, root) for entry in entries if entry["name"].startswith(at) and entry["name"] != at]
        return sorted(found, key=lambda one: one.name)

    def walk(self, directory: str = "") -> Iterator[FileInfo]:
        """List all files below, by path; directories are read one at a time."""
        for found in self.list(directory):
            if found.kind == "directory":
                yield from self.walk(found.name)
            elif found.kind == "file":
                yield found

    def find(self, path: str) -> FileInfo | None:
        """Look at one path; None if nothing is there."""
        fs, root = self._opened
        with self.door(path):
            try:
                return _found(fs.info(self._at(path)), root)
            except FileNotFoundError:
                self._witness()
                return None

    def open(self, path: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice of a file: from `start`, at most `length` bytes. `NotFound` comes at once.

        Raises:
            Damaged: it became shorter meanwhile.
        """
        found = self.find(path)
        if found is None or found.kind not in {"file", "link"}:
            raise NotFound(f"{self.at(path)}: no such file")
        end = found.size if length is None else min(found.size, start + length)
        return self._near(path, start, end) if self.local else self._far(path, start, end)

    def _near(self, path: str, start: int, end: int) -> Iterator[bytes]:
        with self.door(path), Path(self._at(path)).open("rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                piece = file.read(min(WINDOW, end - start))
                if not piece:
                    raise Damaged(f"{self.at(path)}: ends after {start:,} bytes, before {end:,}")
                start += len(piece)
                yield piece

    def _far(self, path: str, start: int, end: int) -> Iterator[bytes]:
        fs, _ = self._opened
        while start < end:
            until = min(start + FAR_WINDOW, end)
            with self.door(path):
                piece = fs.cat_file(self._at(path), start=start, end=until)
            if len(piece) != until - start:
                raise Damaged(f"{self.at(path)}: ends after {start + len(piece):,} bytes, before {until:,}")
            start = until
            yield piece

    def read(self, path: str, *, most: int) -> bytes:
        """Read a file; of one that is larger, `most` bytes."""
        return b"".join(self.open(path, length=most))

    def write(self, path: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        """Write a file aside, read it back, and give it its name; say its size and SHA-256.

        Raises:
            Conflict: there is something of that name. Damaged: what was read back is other than what was written.
        """
        if self.find(path) is not None:
            raise Conflict(f"{self.at(path)} is there already")
        directory, _, name = path.rpartition("/")
        self._make(directory)
        self._tidy(directory, name)
        aside = f"{directory}/.{name}.part-{uuid4().hex[:12]}".lstrip("/")
        try:
            written = self._put(aside, chunks)
            self._compare(aside, written)
            self.rename(aside, path)
        except BaseException:
            with suppress(PlatewayError):  # else the next write of this name removes it
                self.remove(aside)
            raise
        return written

    def _put(self, aside: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        size, digest, taken = 0, hashlib.sha256(), iter(chunks)
        with self._begun(aside) as file:
            while True:
                chunk = next(taken, None)  # what it raises is the source's, and rises as it is
                if chunk is None:
                    break
                size += len(chunk)
                digest.update(chunk)
                with self.door(aside):
                    file.write(chunk)
            if self.local:
                with self.door(aside):
                    file.flush()
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that the disk is read back
        return size, digest.hexdigest()

    @contextmanager
    def _begun(self, aside: str) -> Iterator[Any]:
        """Open a new file; an error from within rises unchanged, whatever closing the file says."""
        fs, _ = self._opened
        with self.door(aside), ExitStack() as stack:
            file = stack.enter_context(fs.open(self._at(aside), "wb"))
            closing = stack.pop_all()
        try:
            yield file
        except BaseException:
            with suppress(PlatewayError, ValueError), self.door(aside):
                closing.close()
            raise
        with self.door(aside):
            closing.close()

    def _compare(self, aside: str, written: tuple[int, str]) -> None:
        size, digest = 0, hashlib.sha256()
        for chunk in self.open(aside):
            size += len(chunk)
            digest.update(chunk)
        if (size, digest.hexdigest()) != written:
            raise Damaged(
                f"{self.at(aside)}: {size:,} bytes with sha256 {digest.hexdigest()} were read back, "
                f"{written[0]:,} with {written[1]} were written"
            )

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, where nothing is yet.

        Raises:
            Conflict: something is there. NotFound: the file is gone.
        """
        if self.local:
            self._link(source, target)
        elif self.find(target) is not None:
            raise Conflict(f"{self.at(target)} is there already")
        else:
            with self.door(source):
                self._move(self._at(source), self._at(target))

    def _move(self, source: str, target: str) -> None:
        fs, _ = self._opened
        if type(fs).mv is not AbstractFileSystem.mv:  # it can rename
            fs.mv(source, target)
        else:  # by name, for ``mv`` takes names for patterns
            fs.cp_file(source, target)
            fs.rm_file(source)

    def _link(self, source: str, target: str) -> None:
        here, there = Path(self._at(source)), Path(self._at(target))
        with self.door(target):
            try:
                if not _same(here, there):  # else a rename was cut off between the two
                    os.link(here, there, follow_symlinks=False)
                here.unlink()
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                if there.exists():
                    raise Conflict(f"{self.at(target)} is there already") from None
                here.rename(there)
            for directory in {here.parent, there.parent}:
                _flush(directory)

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        fs, _ = self._opened
        with self.door(path), suppress(FileNotFoundError):
            fs.rm_file(self._at(path))

    def make(self, directory: str) -> None:
        """Make a directory in the place; one that is there is fine."""
        self._make(directory)

    def _make(self, directory: str) -> None:
        fs, _ = self._opened
        if not directory or (self.local and Path(self._at(directory)).is_dir()):
            return
        self._make(directory.rpartition("/")[0])
        with self.door(directory):
            self._witness()
            if self.local:
                Path(self._at(directory)).mkdir(exist_ok=True)
                _flush(Path(self._at(directory)).parent)
            elif self._protocol != "s3" and not fs.isdir(self._at(directory)):
                fs.makedirs(self._at(directory), exist_ok=True)

    def _tidy(self, directory: str, name: str) -> None:
        """Remove what earlier writes of a name left when they were cut off."""
        old = datetime.now(UTC) - ABANDONED
        for found in self.list(directory):
            aside = found.name.rpartition("/")[2].startswith(f".{name}.part-")
            if aside and found.modified is not None and found.modified < old:
                self.remove(found.name)

    def _witness(self) -> None:
        """Tell a missing file from a missing place. S3 has no directories; there the bucket must be there."""
        fs, root = self._opened
        there = root.partition("/")[0] if self._protocol == "s3" else root
        if self._protocol != "memory" and not fs.isdir(there):
            raise NotFound(f"{self._label}: no such {'bucket' if self._protocol == 's3' else 'directory'}")

    def _at(self, path: str) -> str:
        root = self._opened[1].rstrip("/")
        return f"{root}/{path}" if path else root or "/"

    def at(self, path: str) -> str:
        """Name a path for people: without what only this machine knows of it."""
        return shown(f"{self._label}/{path}") if path else self._label

    @contextmanager
    def door(self, path: str) -> Iterator[None]:
        """Let foreign errors in as ours."""
        what = self.at(path)
        try:
            with errors.translate_errors(what):
                yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in FOREIGN:
                raise
            raise Unavailable(f"{what}: does not answer ({type(error).__name__})") from None


def _found(entry: dict[str, Any], root: str) -> FileInfo:
    moment = next((entry[name] for name in ("mtime", "LastModified", "created") if entry.get(name) is not None), None)
    if isinstance(moment, int | float):
        moment = datetime.fromtimestamp(moment, UTC)
    if not isinstance(moment, datetime):
        moment = None
    elif moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    kind = "link" if entry.get("islink") else entry["type"]
    name = entry["name"].removeprefix(root.rstrip("/") + "/")
    return FileInfo(name, kind if kind in {"file", "directory", "link"} else "other", entry.get("size") or 0, moment)


def _same(here: Path, there: Path) -> bool:
    """Say whether two names are of one file."""
    return there.exists() and not there.is_symlink() and not here.is_symlink() and there.samefile(here)


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)
