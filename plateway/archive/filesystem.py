"""A directory on any filesystem of fsspec, for the inbox and the archive.

Nothing is cached, and nothing is read before it is needed. On this machine, files are flushed to disk and renamed with
a hard link, which never replaces a file; elsewhere the target is checked before a rename.
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

WINDOW = 1 << 20  # bytes of one read from a local disk
FAR_WINDOW = 8 << 20  # bytes of one read from elsewhere: each is a request
PATIENCE = {"connect_timeout": 5, "read_timeout": 30}
FOREIGN = {"aiohttp", "paramiko"}  # libraries of fsspec whose errors are not OSErrors
ABANDONED = timedelta(days=1)  # age at which the next write deletes the rest of an interrupted one
NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}  # file systems without hard links


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file or directory."""

    name: str  # relative to the directory
    kind: str  # file | directory | link | other
    size: int
    modified: datetime | None  # None: unknown


class ArchiveDirectory:
    """A directory, by its URL.

    Raises, everywhere: `Unavailable` when it cannot be reached now, `Denied`, `NotFound` when the
    directory itself is missing, `Misconfigured`.
    """

    def __init__(self, url: str, endpoint: Endpoint | None = None) -> None:
        protocol, path = fsspec.core.split_protocol(url)
        protocol = protocol or "file"
        if protocol not in {*known_implementations, *registry}:
            raise Misconfigured(f"{shown(protocol)}:// is not a protocol of fsspec: file, s3, sftp, memory …")
        self.local = protocol in {"file", "local"}
        self.durable = protocol not in {"memory", "data", "reference"}
        self.name = shown(f"{protocol}://{path.rpartition('@')[2].rstrip('/')}")
        self._label = self.name.rpartition("/")[2] or protocol
        self._url, self._endpoint, self._protocol = url, endpoint, protocol

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        far = {"use_listings_cache": False, "config_kwargs": PATIENCE} if self._protocol == "s3" else {}
        try:
            with self.translate_errors(""):
                return store.filesystem(self._url, self._endpoint, skip_instance_cache=True, **far)
        except ImportError as error:
            raise Misconfigured(f"{self._protocol}:// cannot be opened: {error}") from None
        except (ValueError, TypeError) as error:
            raise Misconfigured(f"{self._protocol}:// cannot be opened ({type(error).__name__})") from None

    @property
    def local_root(self) -> Path | None:
        """Its path on this machine, or None if it is elsewhere."""
        return Path(self._at("")) if self.local else None

    def root_identity(self) -> str:
        """Identify the directory: by file system and root on this machine, elsewhere by its URL."""
        if not self.local:
            return self.name
        with self.translate_errors(""):
            status, system = Path(self._at("")).stat(), os.statvfs(self._at(""))
        return f"{system.f_fsid or status.st_dev:x}:{status.st_ino}"

    def list(self, directory: str = "") -> list[FileInfo]:
        """List a directory, by name; a missing one is empty, unless it is the root."""
        fs, root = self._opened
        with self.translate_errors(directory):
            try:
                fs.invalidate_cache()
                entries = fs.ls(self._at(directory), detail=True)
            except FileNotFoundError:
                self._check_root()
                return []
        at = self._at(directory).rstrip("/") + "/"
        found = [_file_info(entry, root) for entry in entries if entry["name"].startswith(at) and entry["name"] != at]
        return sorted(found, key=lambda one: one.name)

    def walk(self, directory: str = "") -> Iterator[FileInfo]:
        """List all files below a directory, by path; one directory is read at a time."""
        for found in self.list(directory):
            if found.kind == "directory":
                yield from self.walk(found.name)
            elif found.kind == "file":
                yield found

    def find(self, path: str) -> FileInfo | None:
        """Return what is at a path, or None."""
        fs, root = self._opened
        with self.translate_errors(path):
            try:
                return _file_info(fs.info(self._at(path)), root)
            except FileNotFoundError:
                self._check_root()
                return None

    def open(self, path: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice of a file: from `start`, at most `length` bytes. Raises `NotFound` before the first byte.

        Raises:
            Damaged: it became shorter meanwhile.
        """
        found = self.find(path)
        if found is None or found.kind not in {"file", "link"}:
            raise NotFound(f"{self.at(path)}: no such file")
        end = found.size if length is None else min(found.size, start + length)
        return self._read_local(path, start, end) if self.local else self._read_remote(path, start, end)

    def _read_local(self, path: str, start: int, end: int) -> Iterator[bytes]:
        with self.translate_errors(path), Path(self._at(path)).open("rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                piece = file.read(min(WINDOW, end - start))
                if not piece:
                    raise Damaged(f"{self.at(path)}: ends after {start:,} bytes, before {end:,}")
                start += len(piece)
                yield piece

    def _read_remote(self, path: str, start: int, end: int) -> Iterator[bytes]:
        fs, _ = self._opened
        while start < end:
            until = min(start + FAR_WINDOW, end)
            with self.translate_errors(path):
                piece = fs.cat_file(self._at(path), start=start, end=until)
            if len(piece) != until - start:
                raise Damaged(f"{self.at(path)}: ends after {start + len(piece):,} bytes, before {until:,}")
            start = until
            yield piece

    def read(self, path: str, *, most: int) -> bytes:
        """Read up to `most` bytes of a file."""
        return b"".join(self.open(path, length=most))

    def write(self, path: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        """Write a file to a temporary name, read it back and rename it. Returns size and SHA-256.

        Raises:
            Conflict: the name exists. Damaged: the bytes read back differ.
        """
        if self.find(path) is not None:
            raise Conflict(f"{self.at(path)} exists already")
        directory, _, name = path.rpartition("/")
        self._make(directory)
        self._remove_leftovers(directory, name)
        aside = f"{directory}/.{name}.part-{uuid4().hex[:12]}".lstrip("/")
        try:
            written = self._put(aside, chunks)
            self._compare(aside, written)
            self.rename(aside, path)
        except BaseException:
            with suppress(PlatewayError):  # otherwise the next write of this name removes it
                self.remove(aside)
            raise
        return written

    def _put(self, aside: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        size, digest, taken = 0, hashlib.sha256(), iter(chunks)
        with self._open_new(aside) as file:
            while True:
                chunk = next(taken, None)  # an error of the source is raised unchanged
                if chunk is None:
                    break
                size += len(chunk)
                digest.update(chunk)
                with self.translate_errors(aside):
                    file.write(chunk)
            if self.local:
                with self.translate_errors(aside):
                    file.flush()
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read back from disk
        return size, digest.hexdigest()

    @contextmanager
    def _open_new(self, aside: str) -> Iterator[Any]:
        """Open a new file; an error within the block is raised unchanged, whatever closing raises."""
        fs, _ = self._opened
        with self.translate_errors(aside), ExitStack() as stack:
            file = stack.enter_context(fs.open(self._at(aside), "wb"))
            closing = stack.pop_all()
        try:
            yield file
        except BaseException:
            with suppress(PlatewayError, ValueError), self.translate_errors(aside):
                closing.close()
            raise
        with self.translate_errors(aside):
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
        """Rename a file without replacing another.

        Raises:
            Conflict: the target exists. NotFound: the file is missing.
        """
        if self.local:
            self._link(source, target)
        elif self.find(target) is not None:
            raise Conflict(f"{self.at(target)} exists already")
        else:
            with self.translate_errors(source):
                self._move(self._at(source), self._at(target))

    def _move(self, source: str, target: str) -> None:
        fs, _ = self._opened
        if type(fs).mv is not AbstractFileSystem.mv:  # a real rename
            fs.mv(source, target)
        else:  # copy and delete: ``mv`` would expand patterns
            fs.cp_file(source, target)
            fs.rm_file(source)

    def _link(self, source: str, target: str) -> None:
        here, there = Path(self._at(source)), Path(self._at(target))
        with self.translate_errors(target):
            try:
                if not _is_same_file(here, there):  # otherwise an earlier rename was interrupted
                    os.link(here, there, follow_symlinks=False)
                here.unlink()
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                if there.exists():
                    raise Conflict(f"{self.at(target)} exists already") from None
                here.rename(there)
            for directory in {here.parent, there.parent}:
                _flush(directory)

    def remove(self, path: str) -> None:
        """Delete a file; a missing one is ignored."""
        fs, _ = self._opened
        with self.translate_errors(path), suppress(FileNotFoundError):
            fs.rm_file(self._at(path))

    def make(self, directory: str) -> None:
        """Create a directory; an existing one is kept."""
        self._make(directory)

    def _make(self, directory: str) -> None:
        fs, _ = self._opened
        if not directory or (self.local and Path(self._at(directory)).is_dir()):
            return
        self._make(directory.rpartition("/")[0])
        with self.translate_errors(directory):
            self._check_root()
            if self.local:
                Path(self._at(directory)).mkdir(exist_ok=True)
                _flush(Path(self._at(directory)).parent)
            elif self._protocol != "s3" and not fs.isdir(self._at(directory)):
                fs.makedirs(self._at(directory), exist_ok=True)

    def _remove_leftovers(self, directory: str, name: str) -> None:
        """Delete the temporary files of interrupted writes of a name."""
        old = datetime.now(UTC) - ABANDONED
        for found in self.list(directory):
            aside = found.name.rpartition("/")[2].startswith(f".{name}.part-")
            if aside and found.modified is not None and found.modified < old:
                self.remove(found.name)

    def _check_root(self) -> None:
        """Raise `NotFound` if the root itself is missing. S3 has no directories; there the bucket must exist."""
        fs, root = self._opened
        there = root.partition("/")[0] if self._protocol == "s3" else root
        if self._protocol != "memory" and not fs.isdir(there):
            raise NotFound(f"{self._label}: no such {'bucket' if self._protocol == 's3' else 'directory'}")

    def _at(self, path: str) -> str:
        root = self._opened[1].rstrip("/")
        return f"{root}/{path}" if path else root or "/"

    def at(self, path: str) -> str:
        """Format a path for messages, without the absolute path on this machine."""
        return shown(f"{self._label}/{path}") if path else self._label

    @contextmanager
    def translate_errors(self, path: str) -> Iterator[None]:
        """Translate foreign exceptions to ours."""
        what = self.at(path)
        try:
            with errors.translate_errors(what):
                yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in FOREIGN:
                raise
            raise Unavailable(f"{what}: does not answer ({type(error).__name__})") from None


def _file_info(entry: dict[str, Any], root: str) -> FileInfo:
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


def _is_same_file(here: Path, there: Path) -> bool:
    """Return whether two names are the same file."""
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
