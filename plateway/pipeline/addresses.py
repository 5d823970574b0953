"""Read from addresses, without a catalogue: an object, one image out of a bundle, everything below a prefix.

Bytes are compared with the store's ETag and the bundle's manifest. Nothing is written to any bucket.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from plateway import bundle, folder
from plateway.bundle import Member, Tail
from plateway.checksums import PartHasher, part_size
from plateway.errors import Conflict, Damaged, NotFound, PlatewayError, Transient, Unavailable
from plateway.folder import Landing
from plateway.keys import MANIFEST, is_marker
from plateway.names import confined, shown
from plateway.outcome import Outcome, Result
from plateway.pipeline.read import (
    Copy,
    find_member,
    original_name,
    read_member,
)
from plateway.store import Stat, Store, object_metadata
from plateway.store.admin import Address, compare, landing
from plateway.store.per_file import PerFile

ABREAST = 8  # objects on their way at a time
ASIDE = ".plateway.part"  # in the directory that is restored to: what is half written
BUNDLES = (".tar", f"/{MANIFEST}")  # how the keys of bundles end


@dataclass(frozen=True)
class AddressInfo:
    """The object at an address, and the objects in the folder of that name."""

    store: Store
    where: Address
    objects: Sequence[Stat]

    @property
    def size(self) -> int:
        """Sum of the objects' sizes in bytes."""
        return sum(stat.size for stat in self.objects)


def find(store: Store, where: Address) -> AddressInfo:
    """List the objects at an address, never keys that only share a prefix. A bundle stored per file is one object.

    Raises:
        NotFound: there are none.
    """
    for one in (PerFile(store), store):  # a part of a bundle of single files is what it is
        if found := list(_there(one, where)):
            return AddressInfo(one, where, found)
    raise NotFound(f"{where}: nothing is there")


def _there(store: Store, where: Address) -> Iterator[Stat]:
    if where.key and not where.key.endswith("/") and (found := store.stat(where.key)):
        yield found
    below = (stat for stat in store.list(where.folder) if not is_marker(stat.key))
    yield from (stat for stat in below if stat.size or not stat.key.endswith("/"))


def account(store: Store, key: str) -> Tail | None:
    """Read the manifest of a bundle from its end; None where the object is none.

    Raises:
        Damaged: it is labelled as one of Plateway's bundles, and does not end as one.
    """
    if not f"/{key}".endswith(BUNDLES):
        return None
    try:
        return _tail(store, key)
    except Damaged:
        stat = store.stat(key)
        if stat is not None and object_metadata.read(stat.metadata).id is not None:
            raise
        return None


def cat(store: Store, key: str) -> Iterator[bytes]:
    """Read an object; its last byte is followed by `Damaged` if what came was wrong.

    Raises:
        NotFound: there is no such object.
    """
    stat = store.stat(key)
    if stat is None:
        raise NotFound(f"{store.name}/{key}: no such object")
    return _proven(store, stat)


def image(store: Store, key: str, name: str) -> Iterator[bytes]:
    """Read one image out of a bundle with two ranged reads, compared as `read.cat` does.

    Raises:
        NotFound: there is no such object or image. Damaged: it is no bundle, or the image is other than it says.
    """
    store = PerFile(store)
    member = find_member(_tail(store, key).manifest, name)

    def read(start: int, length: int | None) -> Iterator[bytes]:
        return store.open(key, start=start, length=length)

    return read_member([Copy("bucket", key, None, read)], member)


def _tail(store: Store, key: str) -> Tail:
    try:
        return bundle.tail(lambda size: b"".join(store.open(key, start=-size)))
    except Damaged as error:
        raise Damaged(f"{store.name}/{key}: {error}") from error


def _proven(store: Store, stat: Stat) -> Iterator[bytes]:
    """Yield an object's chunks, and compare them at the end with the store's size and ETag."""
    size, parts = 0, PartHasher(part_size(stat.size))
    for chunk in store.open(stat.key):
        size += len(chunk)
        parts.update(chunk)
        yield chunk
    compare(Address(store.name, stat.key), stat, size, parts.etag())


# ----------------------------------------------------------------------------------------------------------- restoring


@dataclass(frozen=True)
class RestoreSource:
    """An object, and what is to be made of it below the directory that is restored to."""

    stat: Stat
    place: str  # of the file; of a bundle's folder
    tail: Tail | None = None  # of a bundle
    files: Mapping[str, Member] = field(default_factory=dict)  # of a bundle, by where they go


def examine(found: AddressInfo, stat: Stat) -> RestoreSource:
    """Determine whether an object is a bundle.

    Raises:
        Damaged: a bundle that does not end as one. Rejected: a name that no file may have here.
    """
    place, tail = landing(stat.key, found.where, Path()).as_posix(), account(found.store, stat.key)
    if tail is None:
        return RestoreSource(stat, place)
    place = place.removesuffix(".tar") if place.endswith(".tar") else PurePosixPath(place).parent.as_posix()
    below = PurePosixPath(place)
    files = {"/".join((*below.parts, *confined(original_name(one)))): one for one in tail.manifest.members}
    return RestoreSource(stat, place, tail, files)


def plan(found: AddressInfo, *, to: Path) -> Iterator[Outcome]:
    """List what `restore` would write below a directory; nothing is written."""

    def say(stat: Stat) -> Outcome:
        source = examine(found, stat)
        names = list(source.files) if source.tail else [source.place]
        missing = [name for name in names if not (to / name).exists()]
        told = f"{len(missing)} of {len(names)} files in {shown(source.place)}/" if source.tail else shown(source.place)
        return _outcome(stat, Result.WOULD_RESTORE if missing else Result.THERE_ALREADY, told)

    yield from _each(say, found)


def restore(found: AddressInfo, *, to: Path, beat: Callable[[int], None] | None = None) -> Iterator[Outcome]:
    """Restore objects into a directory: bundles unpacked and compared with their manifest, others copied and compared.

    May be repeated: what is there and right is kept, other bytes in its place are a failure of that object alone.
    ``beat`` is called with the bytes restored so far.

    Raises:
        Busy: another process writes into the directory. Unavailable: it cannot be written.
    """
    folder.make(to)
    with folder.land(to, "", aside=ASIDE) as into:
        bringing = _Bringing(found.store, into, to, beat or (lambda _: None))
        yield from _each(lambda stat: bringing.bring(examine(found, stat)), found)


def _each(act: Callable[[Stat], Outcome], found: AddressInfo) -> Iterator[Outcome]:
    def attempt(stat: Stat) -> Outcome:
        try:
            return act(stat)
        except PlatewayError as error:
            result = (
                Result.LATER
                if isinstance(error, Transient)
                else Result.DAMAGED
                if isinstance(error, Damaged)
                else Result.FAILED
            )
            return _outcome(stat, result, str(error))

    with ThreadPoolExecutor(ABREAST) as pool:
        yield from pool.map(attempt, found.objects)


def _outcome(stat: Stat, result: Result, *reasons: str) -> Outcome:
    return Outcome(None, "", "restore", result, key=stat.key, size=stat.size, reasons=reasons)


class _Bringing:
    """Objects on their way into a directory."""

    def __init__(self, store: Store, landing: Landing, to: Path, beat: Callable[[int], None]) -> None:
        self._store, self._landing, self._to = store, landing, to
        self._beat, self._done, self._counting = beat, 0, threading.Lock()

    def bring(self, source: RestoreSource) -> Outcome:
        """Restore one object.

        Raises:
            Conflict: other bytes are in its place. Damaged: its bytes are wrong. Unavailable: the disk has no room.
        """
        there = self._unpacked(source) if source.tail else self._copied(source)
        if there:
            self._told(source.stat.size)
            return _outcome(source.stat, Result.RESTORED_ALREADY)
        free = folder.free(self._to)
        if free < source.stat.size:
            raise Unavailable(f"the disk has {free:,} bytes free, {source.stat.size:,} are needed")
        if source.tail:
            self._unpack(source, source.tail)
        else:
            self._copy(source)
        return _outcome(source.stat, Result.RESTORED)

    def _copied(self, source: RestoreSource) -> bool:
        """Return whether an object was restored already, by its ETag.

        Raises:
            Conflict: other bytes are.
        """
        chunks = self._landing.read(source.place)
        if chunks is None:
            return False
        size, parts = 0, PartHasher(part_size(source.stat.size))
        for chunk in chunks:
            size += len(chunk)
            parts.update(chunk)
        try:
            compare(Address(self._store.name, source.stat.key), source.stat, size, parts.etag())
        except Damaged:
            raise Conflict(f"{shown(source.place)}: other bytes are there already") from None
        return parts.etag() == source.stat.etag

    def _copy(self, source: RestoreSource) -> None:
        modified = int(source.stat.modified.timestamp()) * 10**9
        chunks = map(self._passed, _proven(self._store, source.stat))
        self._landing.write(source.place, chunks, sha256=None, mtime_ns=modified)

    def _unpacked(self, source: RestoreSource) -> bool:
        """Return whether all files of a bundle were restored already.

        Raises:
            Conflict: names one that is there with other bytes.
        """
        digests = {name: self._landing.digest(name) for name in source.files}
        for name, member in source.files.items():
            if digests[name] not in {None, member.sha256}:
                raise Conflict(f"{shown(name)}: other bytes are there already (sha256 {digests[name]})")
        return None not in digests.values()

    def _unpack(self, source: RestoreSource, tail: Tail) -> None:
        """Write each file as it goes by, and compare; at the end the seal proves all that is no file."""
        scan, wrong = bundle.Scan(map(self._passed, self._store.open(source.stat.key))), []
        for name, member in source.files.items():
            header = scan.header()
            if (header.name, header.size, scan.offset) != (member.name, member.size, member.offset):
                raise Damaged(f"{shown(member.name)}: the manifest says otherwise than the header before it")
            try:
                content = map(bytes, scan.pieces(member.size))
                self._landing.write(name, content, sha256=member.sha256, mtime_ns=header.mtime * 10**9)
            except Damaged as error:  # of this file alone: what follows is read on
                wrong.append(str(error))
            scan.zeros(bundle.padded(member.size) - member.size)
        if wrong:
            raise Damaged("; ".join(wrong))
        _sealed(scan, tail)

    def _passed(self, chunk: bytes) -> bytes:
        self._told(len(chunk))
        return chunk

    def _told(self, size: int) -> None:
        with self._counting:
            self._done += size
            self._beat(self._done)


def _sealed(scan: bundle.Scan, tail: Tail) -> None:
    """Read on through the manifest, and refuse one that is other, or that was sealed over other bytes."""
    scan.header()
    opening, sealed = scan.take(tail.size - bundle.SEAL), scan.whole.hexdigest()
    content = hashlib.sha256(opening + scan.take(bundle.SEAL))
    if (content.hexdigest(), sealed) != (tail.sha256, tail.manifest.sealed):
        raise Damaged(f"{MANIFEST} or a header is other than it was sealed")
