"""A bucket in a directory."""

from __future__ import annotations

import errno
import json
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from plateway.checksums import part_size
from plateway.errors import Damaged, NotFound, PlatewayError, Refused, Rejected
from plateway.store.contract import WINDOW, Feed, Stat, Upload, check_key, walk
from plateway.store.errors import translate_errors
from plateway.store.memory import Untagged, etag_of

LARGE_FOLDER = 1000  # names from which on a directory store keeps them in mind
LARGE_FOLDERS = 32
SETTLED = 2_000_000_000  # nanoseconds after which a folder that looks the same is the same
KEPT = ".plateway"  # in a directory store: what S3 would know of objects and uploads


class Directory(Untagged):
    """A bucket in a directory that must be there: a missing one is a missing bucket, never an empty one.

    Objects are written aside, flushed to disk, renamed, and the rename flushed too. What S3 would keep with an object
    (its metadata, how it was cut) lies in ``.plateway/``, and so do writes that were cut off. No key can lie below
    another key. `stat` reads the file: its ETag is of the bytes that are there now.
    """

    durable = True

    def __init__(self, root: Path) -> None:
        self.name = root.name
        self._root = root
        self._records, self._asides = root / KEPT / "objects", root / KEPT / "uploads"
        self._large: dict[str, tuple[int, Sequence[str]]] = {}  # names in large folders, and when these changed

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        target, feed = self._path(key), Feed(chunks, size, name=key)
        record = json.dumps({"key": key, "part_size": part_size, "metadata": dict(metadata)})
        upload = Upload(key, uuid4().hex, datetime.now(UTC))
        try:
            with self._door(key), closing(feed):
                self._write(self._asides / f"{upload.id}.json", [record.encode()])
                self._write(self._asides / upload.id, feed)
                now = time.time_ns()  # the kernel's own clock is coarse: two versions could look the same
                os.utime(self._asides / upload.id, ns=(now, now))
                self._rename(self._asides / upload.id, target)
                self._rename(self._asides / f"{upload.id}.json", self._record(key))
            return None
        except BaseException:
            with suppress(PlatewayError):  # what stays open is found by `uploads`
                self.abort(upload)
            if feed.error is not None:
                raise feed.error from None
            raise

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._read(key, self._open(key, start=start), length=length)

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        file = self._open(key, start=start)
        stat = _stat_file(key, os.fstat(file.fileno()))
        if start and start >= stat.size:
            file.close()
            raise Damaged(f"{self.name}/{key}: ends before the range that was asked for")
        return stat, self._read(key, file, length=length)

    def _open(self, key: str, *, start: int) -> BinaryIO:
        with self._door(key):
            if not self._path(key).is_file():
                raise NotFound(f"{self.name}/{key}: no such object")
            file = self._path(key).open("rb")
            file.seek(start if start >= 0 else max(0, os.fstat(file.fileno()).st_size + start))
        return file

    def _read(self, key: str, file: BinaryIO, *, length: int | None) -> Iterator[bytes]:
        with self._door(key), file:
            while piece := file.read(WINDOW if length is None else min(WINDOW, length)):
                length = None if length is None else length - len(piece)
                yield piece

    def stat(self, key: str) -> Stat | None:
        with self._door(key):
            if not self._path(key).is_file():
                return None
            found, told = self._path(key).stat(), _read_record(self._record(key))
        etag = etag_of(self.open(key), told.get("part_size", part_size(found.st_size)))
        return Stat(key, found.st_size, etag, _time(found.st_mtime), told.get("metadata", {}))

    def list(self, prefix: str = "") -> Iterator[Stat]:
        with self._door(prefix):
            keys = sorted((key for key in self._keys(prefix) if key.startswith(prefix)), key=os.fsencode)
        for key in keys:
            with self._door(key), suppress(FileNotFoundError):  # deleted meanwhile
                found = (self._root / key).stat()
                yield Stat(key, found.st_size, "", _time(found.st_mtime))

    def look(self, key: str) -> Stat | None:
        with self._door(key):
            path = self._path(key)
            return _stat_file(key, path.stat()) if path.is_file() else None

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        with self._door(prefix):
            return list(islice(walk(self._level, prefix, after=after), limit))

    def _level(self, folder: str, start: str, *, begins: str) -> Iterator[tuple[str, Stat | None]]:
        """List the entries of a folder from the first name beyond `start` on; folders without a Stat."""
        names = self._names(folder)
        for at in range(max(bisect_right(names, start), bisect_left(names, begins)), len(names)):
            name = names[at]
            if not name.startswith(begins):
                return
            if name.endswith("/"):
                yield name[:-1], None
                continue
            with suppress(FileNotFoundError):  # deleted meanwhile
                yield name, _stat_file(folder + name, (self._root / folder / name).stat())

    def _names(self, folder: str) -> Sequence[str]:
        """List the names in a folder, in order, folders with a slash; a large folder is cached until it changes."""
        path = self._root / folder
        try:
            if folder:
                self._path(folder[:-1])  # nothing is read beside the root
            changed = path.stat().st_mtime_ns
            known = self._large.get(folder)
            if known and known[0] == changed:
                return known[1]
            with os.scandir(path) as entries:
                names = sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries)
        except (FileNotFoundError, NotADirectoryError, Rejected):
            return ()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return ()
        if not folder and f"{KEPT}/" in names:
            names.remove(f"{KEPT}/")
        if len(names) >= LARGE_FOLDER and time.time_ns() - changed > SETTLED:
            while len(self._large) >= LARGE_FOLDERS:
                self._large.pop(next(iter(self._large)), None)
            self._large[folder] = changed, names
        return names

    def _keys(self, prefix: str) -> Iterator[str]:
        """List the files in and below the folder of a prefix."""
        within, slash, _ = prefix.rpartition("/")
        try:
            top = self._path(within) if slash else self._root
        except Rejected:
            return
        if not top.is_dir():
            return
        for folder, folders, names in os.walk(top, onerror=_fail):
            if Path(folder) == self._root and KEPT in folders:
                folders.remove(KEPT)
            yield from ((Path(folder) / name).relative_to(self._root).as_posix() for name in names)

    def delete(self, key: str) -> None:
        with self._door(key):
            if self._path(key).is_file():
                self._path(key).unlink()
                _flush(self._path(key).parent)
            self._record(key).unlink(missing_ok=True)

    def sign(self, key: str, *, expires: timedelta) -> str:
        raise Refused(f"{self.name}/{key}: there are no links into a directory")

    def uploads(self) -> Iterator[Upload]:
        with self._door(KEPT):
            for path in sorted(self._asides.glob("*.json")):
                with suppress(FileNotFoundError):  # completed meanwhile
                    yield Upload(_read_record(path).get("key", ""), path.stem, _time(path.stat().st_mtime))

    def abort(self, upload: Upload) -> None:
        with self._door(upload.key):
            (self._asides / upload.id).unlink(missing_ok=True)
            (self._asides / f"{upload.id}.json").unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if check_key(key).split("/")[0] == KEPT:
            raise Rejected(f"{key!r}: {KEPT} is the store's own")
        return self._root / key

    def _record(self, key: str) -> Path:
        return self._records / f"{sha256(key.encode()).hexdigest()}.json"

    @contextmanager
    def _door(self, what: str) -> Iterator[None]:
        if not self._root.is_dir():
            raise NotFound(f"{self.name}: no such directory")
        with translate_errors(f"{self.name}/{what}"):
            yield

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        self._make(path.parent)
        with path.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())

    def _rename(self, source: Path, target: Path) -> None:
        self._make(target.parent)
        try:
            source.replace(target)
        except IsADirectoryError:
            _prune(target)  # folders that deleted objects left may go; objects in it are a conflict
            source.replace(target)
        _flush(target.parent)

    def _make(self, directory: Path) -> None:
        """Make a directory below the root, and sure that it stays."""
        if not directory.is_dir():
            self._make(directory.parent)
            directory.mkdir(exist_ok=True)
            _flush(directory.parent)


def _stat_file(key: str, found: os.stat_result) -> Stat:
    """Return a Stat without reading the file; its ETag distinguishes versions by inode, time and size."""
    etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return Stat(key, found.st_size, etag, _time(found.st_mtime))


def _prune(directory: Path) -> None:
    """Remove a directory in which there are only directories; IsADirectoryError where there is something else."""
    for folder, _, names in os.walk(directory, topdown=False, onerror=_fail):
        if names:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with suppress(FileNotFoundError):
            Path(folder).rmdir()


def _fail(error: OSError) -> None:
    raise error


def _read_record(record: Path) -> dict[str, Any]:
    """Read the metadata kept beside an object; empty if it is damaged."""
    try:
        told = dict(json.loads(record.read_bytes()))
        sound = isinstance(told["key"], str) and told["part_size"] > 0
        sound &= all(isinstance(one, str) for pair in told["metadata"].items() for one in pair)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return told if sound else {}


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
