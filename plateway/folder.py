"""A folder of images on a disk, reached without following links.

Owns every touch of the bench and of staging: look, read, copy, write, move aside, remove. Everything is opened
relative to a directory descriptor, one component at a time, so that a link put in the way is met and never followed,
and nothing outside the root is read, written or removed. A root is a directory, too, and no link: what lies above it
may be links (operators put the bench elsewhere), the directory of a system may not. What the images mean is left to
``events``, whether they may go to ``retention``.

Errors: what a folder holds and must not hold is ``Rejected`` (``Refused`` where something was to be moved or removed),
what vanished, changed or cannot be read right now is ``Unsettled``, a full disk is ``Unavailable``. Where files are
written, other bytes that lie there are a ``Conflict``, and other bytes that come are ``Damaged``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from plateway.checksums import sha256_of
from plateway.errors import Busy, Conflict, Damaged, DiskUnavailable, PlatewayError, Refused, Rejected, Unsettled
from plateway.isolation import beating
from plateway.names import DEPTH, confined, segments, shown

CHUNK = 1 << 20
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # NONBLOCK: a FIFO must not hang
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE = 1  # RENAME_NOREPLACE of renameat2(2)
NO_EXCLUSIVE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}  # NFS, FUSE, old kernels, some containers
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
NO_SYNC = {errno.EINVAL, errno.ENOTSUP}  # network mounts that cannot fsync a directory

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
MEANING: dict[int | None, type[PlatewayError]] = {  # everything else is Unsettled
    errno.ELOOP: Rejected,
    errno.ENAMETOOLONG: Rejected,
    errno.EEXIST: Refused,
    errno.ENOTEMPTY: Refused,
    errno.EXDEV: Refused,
    errno.ENOSPC: DiskUnavailable,
    errno.EDQUOT: DiskUnavailable,
    errno.EFBIG: DiskUnavailable,
    errno.EROFS: DiskUnavailable,
    errno.EMFILE: DiskUnavailable,
    errno.ENFILE: DiskUnavailable,
}


Rename = Callable[[str, str, int, int], None]  # name, new name, and the directories that give and take it


@dataclass(frozen=True, slots=True)
class File:
    """One regular file. Its name is relative to the folder; undecodable bytes are surrogates, as in ``os.fsdecode``."""

    name: str
    size: int
    mtime_ns: int
    inode: int
    links: int = field(compare=False)  # more than one: the same bytes have another name somewhere
    ctime_ns: int = field(default=0, compare=False)  # last change of content or metadata; cannot be set back


class Level(NamedTuple):
    """One directory of a tree, open while it is looked at."""

    descriptor: int
    prefix: str  # "" or "Img/"
    files: list[File]
    directories: list[str]


class Folder:
    """An open directory of images, or the one file in it that was announced. Comes from ``enter``."""

    def __init__(self, descriptor: int, *, only: str | None = None) -> None:
        self._descriptor = descriptor
        self.only = only  # the one file that was announced, or None

    def files(self, *, beat: Callable[[], None] | None = None) -> list[File]:
        """List all regular files below, sorted by the bytes of their names; ``beat`` is called for each entry.

        Raises:
            Rejected: a link, FIFO, socket, device or another file system is among them, named.
            Unsettled: something vanished meanwhile or cannot be read.
        """
        if self.only is not None:
            return [_file(self.only, _status(self._descriptor, self.only, where=self.only))]
        found = [file for level in self.levels(beat=beat) for file in level.files]
        return sorted(found, key=lambda file: os.fsencode(file.name))

    def levels(self, *, beat: Callable[[], None] | None = None) -> Iterator[Level]:
        """Yield the directories of the tree, the deepest first, each open until the next is asked for."""
        if self.only is not None:
            yield Level(self._descriptor, "", self.files(), [])
            return
        with _step(self._descriptor, ".", where=".") as here:
            yield from _levels(here, "", device=os.fstat(here).st_dev, beat=beat or (lambda: None))

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """Yield the entries of the directory, of every kind."""
        if self.only is not None:
            raise Rejected(f"{shown(self.only)}: a file where a directory should be")
        with _step(self._descriptor, ".", where=".") as here, translate_errors("."), os.scandir(here) as entries:
            yield from entries

    def read(self, file: File, *, size: int = CHUNK) -> Iterator[bytes]:
        """Yield exactly the bytes of a file, or fail.

        Raises:
            Unsettled: it is not, or no longer, the file that was listed: grown, shrunk, rewritten, replaced, gone.
        """
        *above, name = file.name.split("/")
        where = shown(file.name)
        with _below(self._descriptor, above) as directory, translate_errors(where):
            descriptor = os.open(name, READ, dir_fd=directory)
        try:
            with translate_errors(where):
                before = _unchanged(descriptor, file)
                left = file.size
            while left:
                with translate_errors(where):
                    chunk = os.read(descriptor, min(size, left))
                if not chunk:
                    raise Unsettled(f"{where}: ended {left} bytes early")
                left -= len(chunk)
                yield chunk
            with translate_errors(where):
                # ctime also shows a rewrite whose mtime was set back
                if _unchanged(descriptor, file).st_ctime_ns != before.st_ctime_ns:
                    raise Unsettled(f"{where}: changed while it was read")
        finally:
            os.close(descriptor)


@contextmanager
def enter(root: Path, path: str) -> Iterator[Folder]:
    """Open the directory, or the one file, at ``path`` below ``root``, following no link and leaving no file system.

    What lies above the root may be links; the root itself may not.

    Raises:
        Rejected: the path leaves the root, meets a link or another file system, or ends at something unsuitable.
        Unsettled: it is missing or cannot be read right now.
    """
    with _top(root) as top, _enter(top, path) as folder:
        yield folder


@contextmanager
def _enter(top: int, path: str) -> Iterator[Folder]:
    *above, last = segments(path)
    with _below(top, above) as parent:
        status = _status(parent, last, where=shown(path))
        if stat.S_ISREG(status.st_mode):
            yield Folder(parent, only=last)
            return
        with _step(parent, last, where=shown(path)) as directory:
            yield Folder(directory)


class Landing:
    """An open directory that files are written into; each is proven before it gets its name. Comes from ``land``."""

    def __init__(self, descriptor: int, aside: int, *, rename: Rename) -> None:
        self._descriptor, self._aside, self._rename = descriptor, aside, rename
        self._touched: set[tuple[str, ...]] = set()  # directories that got a file

    def digest(self, name: str) -> str | None:
        """Compute the SHA-256 of a file, None if it is missing; raises what `read` does."""
        chunks = self.read(name)
        return None if chunks is None else sha256_of(chunks)

    def read(self, name: str) -> Iterator[bytes] | None:
        """Read a file, None if it is missing.

        Raises:
            Rejected: the name leaves the directory, or something else than a regular file is there.
            Unsettled: it changed meanwhile or cannot be read right now.
        """
        parts, where = confined(name), shown(name)
        try:
            with _below(self._descriptor, parts[:-1]) as parent:
                file = _file(name, _status(parent, parts[-1], where=where))
        except Unsettled as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return Folder(self._descriptor).read(file)

    def write(self, name: str, chunks: Iterable[bytes], *, sha256: str | None, mtime_ns: int) -> None:
        """Write a file aside, compare, sync, and only then give it its name; never onto something that is there.

        Directories on the way are made. An error from ``chunks`` rises unchanged; nothing stays behind. Without a
        ``sha256``, they are what proves the bytes.

        Raises:
            Damaged: other bytes came. Conflict: other bytes lie there. Rejected: as in ``digest``.
            Unavailable: no space. Refused: the file system cannot name a file without overwriting another.
        """
        parts, part = confined(name), uuid4().hex
        with translate_errors(name):
            descriptor = os.open(part, WRITE, 0o644, dir_fd=self._aside)
        try:
            try:
                written = _pour(chunks, descriptor, file=File(name, 0, mtime_ns, 0, 1))
            finally:
                os.close(descriptor)
            if sha256 not in {None, written}:
                raise Damaged(f"{shown(name)}: sha256 {written}, {sha256} expected")
            if not self._give(part, parts) and self.digest(name) != written:
                raise Conflict(f"{shown(name)}: other bytes are there already")
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part, dir_fd=self._aside)

    def _give(self, part: str, parts: Sequence[str]) -> bool:
        """Rename a written file; returns False if the name is taken."""
        if _find(self._descriptor, parts) is not None:
            return False
        try:
            with _below(self._descriptor, parts[:-1], make=True) as taking, translate_errors("/".join(parts)):
                _rename(part, parts[-1], giving=self._aside, taking=taking, rename=self._rename)
        except Refused as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        self._touched.add(tuple(parts[:-1]))
        return True

    def sync(self) -> None:
        """Make all names durable that were given."""
        for parts in self._touched:
            with _below(self._descriptor, parts) as directory:
                _sync(directory)


def rename_exclusively(name: str, new: str, giving: int, taking: int) -> None:
    """Rename from one directory into another, never onto something that has the name: renameat2(2).

    Raises:
        OSError: EEXIST; or ENOSYS, EINVAL, ENOTSUP, EPERM where kernel, file system or container do not have it.
    """
    renameat2 = getattr(LIBC, "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(giving, os.fsencode(name), taking, os.fsencode(new), NOREPLACE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def land(root: Path, path: str, *, aside: str, rename: Rename = rename_exclusively) -> Iterator[Landing]:
    """Open the directory at ``path`` below ``root`` to write into it, made if need be; all of it is durable at the end.

    An empty path is the root itself. ``aside``, another directory on the same disk, holds what is half written, and
    goes at the end. ``rename`` is how a file gets its name where the file system can do that exclusively.

    Raises:
        Busy: somebody else is writing there.
        Rejected, Unsettled: as in ``enter``.
    """
    with (
        _top(root) as top,
        _below(top, segments(path) if path else (), make=True) as target,
        _locked(target, path or root.name) as alone,
        _below(top, segments(aside), make=True) as parts,
    ):
        if alone:  # left by a process that died
            _clear(parts)
        landing = Landing(target, parts, rename=rename)
        try:
            yield landing
            landing.sync()
        finally:
            *above, last = segments(aside)
            with _below(top, above) as parent, suppress(OSError):  # where locks do not work, others may be at it
                os.rmdir(last, dir_fd=parent)


@contextmanager
def _locked(descriptor: int, path: str) -> Iterator[bool]:
    """Lock the directory against other processes; returns False where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"{shown(path)}: somebody else is writing there") from None
    except OSError:
        yield False
    else:
        yield True


def _clear(directory: int) -> None:
    """Remove the files in a directory of our own making."""
    with translate_errors("."), os.scandir(directory) as entries:
        names = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    for name in names:
        with translate_errors(name):
            os.unlink(name, dir_fd=directory)


def exists(root: Path, path: str) -> bool:
    """Return whether a directory or regular file is at ``path``; a root that cannot be opened is an error."""
    with _top(root) as top:
        return _find(top, segments(path)) is not None


def fingerprint(files: Iterable[File]) -> str:
    """Compute one hash of a listing: names, sizes, times, inodes."""
    seen = hashlib.sha256()
    for file in files:
        seen.update(os.fsencode(file.name) + f"\0{file.size} {file.mtime_ns} {file.inode}\0".encode())
    return seen.hexdigest()


def free(root: Path) -> int:
    """Return how many bytes may still be written to this file system."""
    with translate_errors(root.name):
        status = os.statvfs(root)
    return status.f_bavail * status.f_frsize


def copy(root: Path, path: str, *, target: Path, turn: int = 0, beat: Callable[[], None] = lambda: None) -> None:
    """Copy the folder (or the one file) at ``path`` to the directory ``target``, proven by reading the copy back.

    Names, bytes and modification times stay. The copy is written aside as ``<target>.<turn>.part``, synced, compared
    with the SHA-256 of what was read, and only then renamed: a ``target`` that is there is complete. May be repeated:
    an equal target is left alone, another one is replaced, and what copies of earlier turns left is cleared away, never
    what a later turn writes. ``beat`` is called while bytes flow and right before the copy gets its name; what it
    raises ends the copy.

    Raises:
        Unsettled: the source changed meanwhile.
        Unavailable: no space, or the copy reads back differently.
    """
    part = f"{target.name}.{turn}.part" if turn else f"{target.name}.part"
    with enter(root, path) as source:
        files = source.files()
        make(target.parent)
        with _top(target.parent) as place:
            _discard_parts(place, target.name, turn)
            if _is_directory(place, target.name) and _same(place, target.name, _digests(source, files)):
                _settle(place, target.name)
                return
            try:
                written = _write(source, files, place=place, part=part, beat=beat)
                if source.files() != files:
                    raise Unsettled(f"{shown(path)}: changed while it was copied")
                if not _same(place, part, written):
                    raise DiskUnavailable(f"{shown(path)}: the copy in staging reads back differently")
                beat()
                _exchange(place, part, target.name)
            except BaseException:
                _discard(place, part)
                raise


def move(root: Path, path: str, *, to: str, rename: Rename = rename_exclusively) -> None:
    """Rename the directory or file at ``path`` to ``to`` below the same root, durably; parents of ``to`` are made.

    May be repeated: it is content with what has been moved already. Where ``rename`` is not available, a file gets its
    new name as a link before it loses the old one, and a directory is renamed, which replaces no file and no directory
    that holds anything.

    Raises:
        Refused: something is at ``to``, it lies on another file system, a link is in the way, or the file system has
            no way to move a file without overwriting; nothing was moved.
        Unsettled: there is nothing, neither at ``path`` nor at ``to``.
    """
    with _refusing(), _top(root) as top:
        source, target = segments(path), segments(to)
        if target[: len(source)] == source:
            raise Refused(f"{shown(path)}: cannot move into itself")
        here, there = _find(top, source), _find(top, target)
        if here is None and there is None:
            raise Unsettled(f"{shown(path)}: is gone, and not at {shown(to)} either")
        if here is not None and there is not None and not _unlink_twin(top, source, target):
            raise Refused(f"{shown(to)}: is taken, {shown(path)} stays where it is")
        if here is not None and there is None:
            with (
                _below(top, source[:-1]) as giving,
                _below(top, target[:-1], make=True) as taking,
                translate_errors(to),
            ):
                _rename(source[-1], target[-1], giving=giving, taking=taking, rename=rename)
        _sync_at(top, target[:-1])  # the new name first: after a crash the folder has one name or both, never none
        _sync_at(top, source[:-1])


def remove(root: Path, path: str, *, names: Sequence[str], expected: Sequence[File] = ()) -> None:
    """Remove the directory (or the one file) at ``path`` if it holds nothing but ``names``, durably.

    Names are those of ``Folder.files``; some may be gone already, so it may be repeated. All is inspected before the
    first file goes, and each file once more right before it goes. ``expected`` files must be as they were, up to their
    change time.

    Raises:
        Refused: something else is in there, or came or changed meanwhile; what was not asked for is never touched.
    """
    with _refusing(), _top(root) as top:
        parts = segments(path)
        found = _find(top, parts)
        if found is not None:
            _empty(top, path, names=frozenset(names), expected={file.name: file for file in expected})
        if found is not None and stat.S_ISDIR(found):
            with _below(top, parts[:-1]) as parent, translate_errors(path):
                os.rmdir(parts[-1], dir_fd=parent)
        _sync_at(top, parts[:-1])


def _rename(name: str, new: str, *, giving: int, taking: int, rename: Rename) -> None:
    """Rename, and never onto something that came there just now.

    Raises:
        Refused: a file cannot be linked here either.
        OSError: something has the name.
    """
    try:
        return rename(name, new, giving, taking)
    except OSError as error:
        if error.errno not in NO_EXCLUSIVE:
            raise
    if stat.S_ISDIR(os.stat(name, dir_fd=giving, follow_symlinks=False).st_mode):
        return _rename_directory(name, new, giving=giving, taking=taking)
    try:
        os.link(name, new, src_dir_fd=giving, dst_dir_fd=taking, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise Refused(f"{shown(name)}: this file system cannot move a file without overwriting another") from error
    _sync(taking)  # before the old name goes: after a crash the file has one name or both
    if _same_file(name, new, giving=giving, taking=taking):  # else another one came to the old name: it stays
        os.unlink(name, dir_fd=giving)
    return None


def _rename_directory(name: str, new: str, *, giving: int, taking: int) -> None:
    """Rename a directory; whatever came to the new name stays, unless it is a directory that holds nothing."""
    try:
        if os.stat(new, dir_fd=taking, follow_symlinks=False):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        pass
    try:
        os.rename(name, new, src_dir_fd=giving, dst_dir_fd=taking)
    except NotADirectoryError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None


def _unlink_twin(top: int, source: Sequence[str], target: Sequence[str]) -> bool:
    """Finish a move that ended between the new name of a file and its old one; no if the two are different files."""
    with _below(top, source[:-1]) as giving, _below(top, target[:-1]) as taking, translate_errors(source[-1]):
        if not _same_file(source[-1], target[-1], giving=giving, taking=taking):
            return False
        _sync(taking)
        os.unlink(source[-1], dir_fd=giving)
    return True


def _same_file(name: str, new: str, *, giving: int, taking: int) -> bool:
    one = os.stat(name, dir_fd=giving, follow_symlinks=False)
    other = os.stat(new, dir_fd=taking, follow_symlinks=False)
    return stat.S_ISREG(one.st_mode) and os.path.samestat(one, other)


def _empty(top: int, path: str, *, names: frozenset[str], expected: Mapping[str, File]) -> None:
    with _enter(top, path) as folder:
        proven = {file.name: file for file in folder.files()}
        strange = [shown(name) for name in proven if name not in names]
        if strange:
            raise Refused(f"{shown(path)}: also holds {', '.join(strange[:5])}{' …' if len(strange) > 5 else ''}")
        touched = [shown(name) for name, file in proven.items() if _touched(file, expected.get(name))]
        if touched:
            raise Refused(f"{shown(path)}: {touched[0]} changed after it was compared")
        for level in folder.levels():
            for file in level.files:
                name = file.name.removeprefix(level.prefix)
                found = _file(file.name, _status(level.descriptor, name, where=shown(file.name)))
                if file.name not in proven or _touched(found, proven[file.name]):
                    raise Refused(f"{shown(path)}: {shown(file.name)} came or changed while the folder was removed")
                with translate_errors(file.name):
                    os.unlink(name, dir_fd=level.descriptor)
            for name in level.directories:
                with translate_errors(level.prefix + name):
                    os.rmdir(name, dir_fd=level.descriptor)
            _sync(level.descriptor)


def _touched(now: File, then: File | None) -> bool:
    """Return whether a file is another one or was written to; unlinking another name of it does not count."""
    if then is None:
        return False
    return now != then or (then.links == 1 and now.ctime_ns != then.ctime_ns)


def _discard_parts(place: int, name: str, turn: int) -> None:
    """Remove what this and earlier turns of copying wrote and did not finish."""
    pattern = re.compile(re.escape(name) + r"(?:\.(\d+))?\.part")
    for part in os.listdir(place):
        if (match := pattern.fullmatch(part)) and int(match[1] or 0) <= turn:
            _discard(place, part)


def _write(source: Folder, files: Sequence[File], *, place: int, part: str, beat: Callable[[], None]) -> dict[str, str]:
    """Write the files below ``part``, synced, and return the SHA-256 of what was read."""
    written = {}
    with translate_errors(part):
        os.mkdir(part, dir_fd=place)
    with _step(place, part, where=shown(part)) as whole:
        for parts in sorted({above[:end] for above in map(_above, files) for end in range(1, len(above) + 1)}):
            with _below(whole, parts[:-1]) as parent, translate_errors("/".join(parts)):
                os.mkdir(parts[-1], dir_fd=parent)
        for file in files:
            with _below(whole, _above(file)) as parent, translate_errors(file.name):
                descriptor = os.open(file.name.rpartition("/")[2], WRITE, 0o644, dir_fd=parent)
            try:
                written[file.name] = _pour(beating(source.read(file), beat), descriptor, file=file)
            finally:
                os.close(descriptor)
    with _enter(place, part) as copied:
        for level in copied.levels():
            _sync(level.descriptor)
    return written


def _above(file: File) -> tuple[str, ...]:
    return tuple(file.name.split("/")[:-1])


def _pour(chunks: Iterable[bytes], descriptor: int, *, file: File) -> str:
    seen = hashlib.sha256()
    for chunk in chunks:
        seen.update(chunk)
        with translate_errors(file.name):
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
    with translate_errors(file.name):
        os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # so that reading back asks the disk
    return seen.hexdigest()


def _same(place: int, name: str, digests: dict[str, str]) -> bool:
    """Read a copy back and compare; one with links or devices in it is not the same."""
    with _enter(place, name) as folder:
        try:
            return _digests(folder, folder.files()) == digests
        except Rejected:
            return False


def _digests(folder: Folder, files: Sequence[File]) -> dict[str, str]:
    return {file.name: sha256_of(folder.read(file)) for file in files}


def _exchange(place: int, part: str, name: str) -> None:
    """Rename a finished copy into place, then remove what was there before."""
    old = f"{name}.old"
    _discard(place, old)
    with translate_errors(name):
        if _is_directory(place, name):
            os.rename(name, old, src_dir_fd=place, dst_dir_fd=place)
        os.rename(part, name, src_dir_fd=place, dst_dir_fd=place)
    _settle(place, name)


def _settle(place: int, name: str) -> None:
    """Make the name of a finished copy durable, then clear away the one it replaced."""
    _sync(place)
    _discard(place, f"{name}.old")


def _discard(place: int, name: str) -> None:
    """Clear away a directory of our own making."""
    with translate_errors(name), suppress(FileNotFoundError):
        shutil.rmtree(name, dir_fd=place)  # itself works on descriptors and follows no link


def make(directory: Path) -> None:
    """Make a directory and its parents, each durable before the next."""
    if directory.is_dir():
        return
    make(directory.parent)
    with translate_errors(directory.name):
        directory.mkdir(exist_ok=True)
    _sync_path(directory.parent)


def _is_directory(place: int, name: str) -> bool:
    with translate_errors(name):
        try:
            mode = os.stat(name, dir_fd=place, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
    if not stat.S_ISDIR(mode):
        raise Refused(f"{shown(name)}: {KINDS[stat.S_IFMT(mode)]} is in the way")
    return True


def _sync(descriptor: int) -> None:
    """Make a directory's entries durable, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise DiskUnavailable(f"a directory cannot be synced: {os.strerror(error.errno or 0)}") from error


def _sync_path(directory: Path) -> None:
    """Sync a directory that may be a link: it is above a root."""
    with translate_errors(directory.name):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync_at(top: int, parts: Sequence[str]) -> None:
    """Sync the directory if it is there."""
    if not parts or _find(top, parts) is not None:
        with _below(top, parts) as directory:
            _sync(directory)


@contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Translate errors of the system; the message names the thing and never its full path."""
    try:
        yield
    except OSError as error:
        meaning = MEANING.get(error.errno, Unsettled)
        reason = "a link" if error.errno == errno.ELOOP else os.strerror(error.errno or errno.EIO).lower()
        raise meaning(f"{shown(name)}: {reason}") from error


@contextmanager
def _refusing() -> Iterator[None]:
    """Where something is to be moved or removed, a wrong folder is a reason to leave it."""
    try:
        yield
    except Rejected as error:
        raise Refused(str(error)) from error


@contextmanager
def _top(root: Path) -> Iterator[int]:
    """Open the root, which is no link; what lies above it may be links."""
    with translate_errors(root.name):
        try:
            descriptor = os.open(root, DIRECTORY)
        except NotADirectoryError:
            if root.is_symlink():
                raise Rejected(f"{shown(root.name)}: a link where a directory should be") from None
            raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _step(above: int, name: str, *, where: str) -> Iterator[int]:
    """Open one directory below another."""
    with translate_errors(where):
        try:
            descriptor = os.open(name, DIRECTORY, dir_fd=above)
        except NotADirectoryError:
            kind = KINDS[stat.S_IFMT(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)]
            raise Rejected(f"{where}: {kind} where a directory should be") from None
    try:
        if os.fstat(descriptor).st_dev != os.fstat(above).st_dev:
            raise Rejected(f"{where}: on another file system")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _below(top: int, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
    """Open a directory some steps below; with ``make``, missing ones are made."""
    descriptor = os.dup(top)
    try:
        for count, name in enumerate(parts, start=1):
            if make:
                with translate_errors(name), suppress(FileExistsError):
                    os.mkdir(name, dir_fd=descriptor)
                _sync(descriptor)
            with _step(descriptor, name, where=shown("/".join(parts[:count]))) as below:
                os.dup2(below, descriptor, inheritable=False)
        yield descriptor
    finally:
        os.close(descriptor)


def _levels(descriptor: int, prefix: str, *, device: int, beat: Callable[[], None]) -> Iterator[Level]:
    if prefix.count("/") > DEPTH:
        raise Rejected(f"{shown(prefix)[:80]}: more than {DEPTH} directories below each other")
    files, directories = [], []
    with translate_errors(prefix or "."), os.scandir(descriptor) as entries:
        for entry in entries:
            beat()
            with translate_errors(prefix + entry.name):
                status = entry.stat(follow_symlinks=False)
            if status.st_dev != device:
                raise Rejected(f"{shown(prefix + entry.name)}: on another file system")
            if stat.S_ISDIR(status.st_mode):
                directories.append(entry.name)
            else:
                files.append(_file(prefix + entry.name, status))
    for name in directories:
        with _step(descriptor, name, where=shown(prefix + name)) as below:
            yield from _levels(below, f"{prefix}{name}/", device=device, beat=beat)
    yield Level(descriptor, prefix, files, directories)


def _file(name: str, status: os.stat_result) -> File:
    if not stat.S_ISREG(status.st_mode):
        raise Rejected(f"{shown(name)}: {KINDS[stat.S_IFMT(status.st_mode)]}, only regular files are accepted")
    return File(name, status.st_size, status.st_mtime_ns, status.st_ino, status.st_nlink, status.st_ctime_ns)


def _status(directory: int, name: str, *, where: str) -> os.stat_result:
    """Return the status of one entry, links not followed; it must be on the directory's file system."""
    with translate_errors(where):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if status.st_dev != os.fstat(directory).st_dev:
            raise Rejected(f"{where}: on another file system")
    return status


def _find(top: int, parts: Sequence[str]) -> int | None:
    """Return the mode of a directory or regular file, None when there is nothing."""
    where = shown("/".join(parts))
    try:
        with _below(top, parts[:-1]) as parent:
            mode = _status(parent, parts[-1], where=where).st_mode
    except Unsettled as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise Rejected(f"{where}: {KINDS[stat.S_IFMT(mode)]} is in the way")
    return mode


def _unchanged(descriptor: int, file: File) -> os.stat_result:
    now = os.fstat(descriptor)
    if not stat.S_ISREG(now.st_mode) or (now.st_size, now.st_mtime_ns, now.st_ino) != (
        file.size, file.mtime_ns, file.inode
    ):  # fmt: skip
        raise Unsettled(f"{shown(file.name)}: changed since it was listed ({file.size} bytes then, {now.st_size} now)")
    return now
