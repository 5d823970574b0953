"""Bundles stored as one object per file, presented as the tars that they form.

Each file of such a bundle is an object ``images/<event>/<name>`` or ``waveforms/<event>/<name>``, and the manifest,
``images/<event>/metadata.json``, which tells of all, is written last. The rest of the tar follows from the manifest. So
at the key of a manifest a `Scattered` store behaves as if the whole tar lay there: what is built upon bundles need not
know. Which key a file has is said by ``events``, the manifest and the tar by ``bundle``.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from plateway.bundle import (
    BLOCK,
    END,
    Layout,
    Member,
    Packing,
    Slot,
    member_header,
    padded,
    read_manifest,
)
from plateway.checksums import PartHasher, combined_etag, part_size, sha256_of
from plateway.errors import Damaged, NotFound, Refused, Rejected, Taken, Unavailable
from plateway.keys import FOLDERS, HOME, MANIFEST, file_name, files_folder
from plateway.store import Stat, Store, Upload
from plateway.store.contract import WINDOW, Feed, check_key

IMAGES, WAVEFORMS = FOLDERS
ABREAST = 8  # objects on their way at a time, of one bundle
IN_FLIGHT = 16 << 20  # bytes of such objects held at a time
AT_ONCE = 1000  # objects deleted by one request
FAULTS = 3  # that are listed of one bundle
ID = 36  # characters of an event's id
RECENT = 5.0  # seconds for which a manifest that was read is the one that is there, where bytes before it are wanted
REMEMBERED = 8  # manifests
SHORT = 100  # bytes of a name that a plain header has room for
LARGEST = 8**11  # bytes from which on a size does not fit into one


class PerFile:
    """A store that presents bundles stored per file as tars; other keys pass through."""

    def __init__(self, store: Store) -> None:
        self.name, self.durable = store.name, store.durable
        self._store = store
        self._recent: dict[str, tuple[float, _Tar]] = {}

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        """Store a bundle that was packed for this key, file by file, or anything at another key.

        What is there already is left; once a manifest is there, only what that tells of is written beside it. The
        manifest comes last, after the last of the chunks was taken, and replaces what is there.

        Raises:
            Taken: other bytes lie where a file belongs, or anything where none does. They were left, and no manifest
                was written.
            Rejected: a file's name is too long for a key.
        """
        if files_folder(key) is None:
            return self._store.put(key, chunks, size=size, part_size=part_size, metadata=metadata)
        if not isinstance(chunks, Packing) or chunks.layout.manifest_key != key:
            raise Rejected(f"{key}: only a bundle that was packed for that place goes there")
        there = {one.key: one for one in self._listed(key)}
        sending = _Sending(self._store, there, self._told(key) if key in there else None)
        with closing(Feed(chunks, size, name=key)) as feed:
            manifest = sending.send(feed, chunks.layout)
            _pass(feed, size)  # the end: the packer inspects once more there, and may refuse
        if sending.taken:
            raise Taken(f"{sending.taken[0]} holds something else")
        self._recent.pop(key, None)
        _put(self._store, key, manifest, metadata=metadata)
        return None

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if files_folder(key) is None:
            return self._store.open(key, start=start, length=length)
        tar = self._tar(key, before=None if length is None or start < 0 else start + length)
        start = max(0, tar.size + start) if start < 0 else start
        stop = tar.size if length is None else min(tar.size, start + length)
        return self._read(list(tar.slices(start, stop)))

    def stat(self, key: str) -> Stat | None:
        """Inspect all objects of a bundle, a thousand per request, and the manifest once more on its own.

        The size is that of the tar that they make, the ETag the `bundle.combined` one. It is empty where the manifest
        is missing: something lies there, and either no bundle was ever complete or it is not any more.
        """
        if files_folder(key) is None:
            return self._store.stat(key)
        listed = self._listed(key)
        looked = {one.key: self._store.stat(one.key) for one in listed if one.key == key or not one.etag}
        there = [found for one in listed if (found := looked.get(one.key, one)) is not None]
        return _folded(key, there) if there else None

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """List objects; a bundle is one object at the key of its manifest, as `stat` returns it."""
        folder, below = f"{IMAGES}/", prefix
        if prefix.startswith(folder) and "/" in (rest := prefix.removeprefix(folder)):
            below = f"{folder}{rest.partition('/')[0]}/"
        return (one for one in self._joined(below) if one.key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove an object, or all objects of a bundle's manifest and the manifest last.

        Raises:
            Damaged: the manifest cannot be read; nothing was removed.
        """
        if files_folder(key) is not None:
            with suppress(NotFound):
                told = {one.key for one in self._tar(key).members}
                self._remove([one.key for one in self._listed(key) if one.key in told])
        self._recent.pop(key, None)
        self._store.delete(key)

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        for key in keys:
            self.delete(key)
        return {}

    def sign(self, key: str, *, expires: timedelta) -> str:
        if files_folder(key) is not None:
            raise Refused(f"{self.name}/{key}: there is no link to a bundle whose files are objects of their own")
        return self._store.sign(key, expires=expires)

    def uploads(self) -> Iterator[Upload]:
        """List uploads that are still open; those of a bundle's files are the bundle's."""
        for one in self._store.uploads():
            name = _event(one.key)
            yield one if name is None else replace(one, key=_manifest_key(name), id=f"{one.id}\n{one.key}")

    def abort(self, upload: Upload) -> None:
        id_, within, key = upload.id.partition("\n")
        self._store.abort(replace(upload, key=key, id=id_) if within else upload)

    def lock(self, key: str, *, hold: bool, until: datetime | None) -> bool:
        """Lock an object, or all objects of a bundle."""
        if files_folder(key) is None:
            return self._store.lock(key, hold=hold, until=until)
        return all(self._store.lock(one.key, hold=hold, until=until) for one in self._listed(key))

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        """Read the rules by which the bucket deletes objects by itself."""
        return self._store.lifecycle()

    def tags(self, key: str) -> dict[str, str]:
        """Read an object's tags; a bundle's are those of its manifest."""
        return self._store.tags(key)

    def faults(self, key: str) -> Iterator[str]:
        """Describe what is wrong with the files of a bundle: by a listing first, then by reading them.

        Raises:
            Damaged: the manifest cannot be read.
        """
        there = {one.key: one for one in self._listed(key)}
        try:
            told = {str(one.key): one for one in self._tar(key).members}
        except NotFound:
            yield f"{key} is missing"
            return
        yield from (f"{other} is not its own" for other in sorted(there.keys() - told.keys() - {key}))
        yield from (f"{other} is missing" for other in sorted(told.keys() - there.keys()))
        for other in sorted(told.keys() & there.keys()):
            size = there[other].size
            if size != told[other].size:
                yield f"{other} has {size:,} bytes, {told[other].size:,} were sent"
        for member in told.values():
            if str(member.key) in there and sha256_of(self._store.open(str(member.key))) != member.sha256:
                yield f"{member.key} has another SHA-256 than was sent"

    # ------------------------------------------------------------------------------------------------------- reading

    def _tar(self, key: str, *, before: int | None = None) -> _Tar:
        """Read the manifest, or reuse one just read if only bytes before it are wanted.

        Raises:
            NotFound: there is none. Damaged: it is no manifest of files that lie here.
        """
        at, known = self._recent.get(key, (0.0, None))
        if known is not None and before is not None and before <= known.start and time.monotonic() < at + RECENT:
            return known
        tar = _laid(key, b"".join(self._store.open(key)))
        while len(self._recent) >= REMEMBERED:
            self._recent.pop(next(iter(self._recent)), None)
        self._recent[key] = time.monotonic(), tar
        return tar

    def _read(self, slices: Sequence[_Slice]) -> Iterator[bytes]:
        """Read slices in their order; of small objects the next few are fetched meanwhile."""
        if sum(isinstance(one.source, str) for one in slices) <= 1:
            for one in slices:
                yield from self._slice(one)
            return
        pool = ThreadPoolExecutor(ABREAST, "scattered")
        waiting: deque[tuple[int, Iterator[bytes] | Future[bytes]]] = deque()
        try:
            for one in slices:
                small = isinstance(one.source, str) and one.length <= IN_FLIGHT // ABREAST
                waiting.append((one.length * small, pool.submit(self._fetch, one) if small else self._slice(one)))
                while len(waiting) > 4 * ABREAST or sum(held for held, _ in waiting) > IN_FLIGHT:
                    yield from _came(waiting.popleft()[1])
            while waiting:
                yield from _came(waiting.popleft()[1])
        finally:
            pool.shutdown(cancel_futures=True)

    def _fetch(self, one: _Slice) -> bytes:
        return b"".join(self._slice(one))

    def _slice(self, one: _Slice) -> Iterator[bytes]:
        """Read a slice of one source, all of it."""
        if isinstance(one.source, bytes):
            yield one.source[one.start : one.start + one.length]
            return
        came = 0
        try:
            for chunk in self._store.open(one.source, start=one.start, length=one.length):
                came += len(chunk)
                yield chunk
        except NotFound as error:
            raise Damaged(f"{one.source}: missing") from error
        if came != one.length:
            raise Damaged(f"{one.source}: {came} of {one.length} bytes from {one.start} on are there")

    # ------------------------------------------------------------------------------------------------------- looking

    def _listed(self, key: str) -> Sequence[Stat]:
        """List the objects of a bundle."""
        found = (self._store.list(f"{folder}/{files_folder(key)}/") for folder in FOLDERS)
        return [one for one in itertools.chain(*found) if _event(one.key) is not None]

    def _joined(self, prefix: str) -> Iterator[Stat]:
        """Merge the listings of an event in its two folders; other objects pass through.

        Both are listed at a time, in whatever order: all ids have the same length, so theirs is the same in each.
        """
        waves = _Peeked(self._waves(prefix))
        listing = (one for one in self._store.list(prefix) if not (_id(one.key) and one.key.startswith(WAVEFORMS)))
        for id_, some in itertools.groupby(listing, key=lambda one: _id(one.key)):
            if not id_:
                yield from some
                continue
            there = [*some]
            yield from _folds(waves.before(id_))
            yield from _folds([*there, *waves.before(f"{id_}~")])
        yield from _folds(waves.before("~"))

    def _waves(self, prefix: str) -> Iterator[Stat]:
        """List the other files of the events whose images are listed by a prefix."""
        folder = f"{IMAGES}/"
        if prefix.startswith(folder):
            return self._store.list(f"{WAVEFORMS}/{prefix.removeprefix(folder)}")
        return self._store.list(f"{WAVEFORMS}/") if folder.startswith(prefix) else iter(())

    # ------------------------------------------------------------------------------------------------------ changing

    def _told(self, key: str) -> Mapping[str, str] | None:
        """Return the SHA-256 by key from the manifest in the bucket; None if there is none."""
        try:
            return {str(one.key): one.sha256 for one in self._tar(key).members}
        except NotFound:
            return None
        except Damaged:
            return {}

    def _remove(self, keys: Sequence[str]) -> None:
        """Delete objects, many by one request."""
        for start in range(0, len(keys), AT_ONCE):
            for key, problem in self._store.delete_all(keys[start : start + AT_ONCE]).items():
                raise Unavailable(f"{self.name}/{key}: {problem}")


def faults(store: Store, key: str) -> str:
    """List a few damaged files of a bundle that is stored per file; empty for other bundles.

    Raises:
        Damaged: the manifest cannot be read. NotFound, Unavailable, Denied: a file cannot be.
    """
    if files_folder(key) is None or not isinstance(store, PerFile):
        return ""
    return "; ".join(itertools.islice(store.faults(key), FAULTS))


class _Peeked:
    """What is listed, taken one event after the other."""

    def __init__(self, listed: Iterator[Stat]) -> None:
        self._listed = listed
        self._next = next(listed, None)

    def before(self, limit: str) -> Iterator[Stat]:
        """Yield the next objects of events whose id is below a limit; other objects do not count."""
        while self._next is not None and (id_ := _id(self._next.key)) < limit:
            if id_:
                yield self._next
            self._next = next(self._listed, None)


class _Left(Exception):
    """Nothing is to be written after all; the upload is given up just before it would be complete."""


class _Sending:
    """A bundle on its way into its objects, file by file."""

    def __init__(self, store: Store, there: Mapping[str, Stat], told: Mapping[str, str] | None) -> None:
        self._store, self._there, self._told = store, there, told
        self.taken: list[str] = []  # keys that hold other bytes; once there is one, nothing more is written

    def send(self, feed: Feed, layout: Layout) -> bytes:
        """Send all files; return the manifest, which follows them, when they have arrived."""
        own = {check_key(str(slot.key)) for slot in layout.slots} | {layout.manifest_key}
        self.taken += sorted(self._there.keys() - own)
        at = 0
        flying: deque[tuple[int, Future[None]]] = deque()
        with ThreadPoolExecutor(ABREAST, "scattered") as pool:
            for slot in layout.slots:
                _pass(feed, slot.offset - at)
                at, size = slot.offset + slot.file.size, slot.file.size
                if size > part_size(size):
                    self._large(slot, _pieces(feed, size))
                    continue
                flying.append((size, pool.submit(self._small, slot, b"".join(_pieces(feed, size)))))
                while len(flying) > 2 * ABREAST or sum(held for held, _ in flying) > IN_FLIGHT:
                    flying.popleft()[1].result()
            for _, sent in flying:
                sent.result()
        _pass(feed, layout.manifest_offset - at)
        return b"".join(_pieces(feed, layout.manifest_size))

    def _small(self, slot: Slot, content: bytes) -> None:
        key = str(slot.key)
        if self._free(key) or self._wanted(key, _Sums(len(content), content)):
            _put(self._store, key, content, metadata={})

    def _large(self, slot: Slot, pieces: Iterator[bytes]) -> None:
        """Send a file of several parts; where its bytes decide whether it may be, that is when all of them came."""
        key, size = str(slot.key), slot.file.size
        if not self._free(key) and (self.taken or key not in (self._told or {})):
            sums = _Sums(size)
            deque(map(sums.update, pieces), maxlen=0)
            self._wanted(key, sums)
            return
        chunks = pieces if self._free(key) else self._decided(key, size, pieces)
        with suppress(_Left):
            self._store.put(key, chunks, size=size, part_size=part_size(size), metadata={})

    def _decided(self, key: str, size: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        sums = _Sums(size)
        for piece in pieces:
            sums.update(piece)
            yield piece
        if not self._wanted(key, sums):
            raise _Left

    def _free(self, key: str) -> bool:
        """Return whether a file's key is free."""
        return self._told is None and key not in self._there and not self.taken

    def _wanted(self, key: str, sums: _Sums) -> bool:
        """Return whether a file has to be written, given what is at its key and in the manifest.

        Where the manifest tells of it, nothing is read: this may be asked in the midst of an upload.
        """
        found, told = self._there.get(key), (self._told or {}).get(key)
        alike = found is not None and (found.size, found.etag) == (sums.size, sums.etag)
        if self.taken or alike:
            return False
        if told == sums.sha256:
            return True
        if told is not None or found is None or found.size != sums.size or self._read(key) != sums.sha256:
            self.taken.append(key)
        return False

    def _read(self, key: str) -> str:
        return sha256_of(self._store.open(key))


class _Sums:
    """The digests of one file."""

    def __init__(self, size: int, content: bytes = b"") -> None:
        self.size = size
        self._digest, self._parts = hashlib.sha256(), PartHasher(part_size(size))
        self.update(content)

    def update(self, data: bytes) -> None:
        self._digest.update(data)
        self._parts.update(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def etag(self) -> str:
        return self._parts.etag()


class _Slice(NamedTuple):
    """Some bytes of a tar: of what is known, or of the object at a key."""

    source: bytes | str
    start: int
    length: int


@dataclass(frozen=True)
class _Tar:
    """A tar as its manifest describes it."""

    content: bytes  # of the manifest
    members: Sequence[Member]
    start: int  # of the manifest's header
    size: int

    def slices(self, start: int, stop: int) -> Iterator[_Slice]:
        """Return the slices that make up a range."""
        for at, source, size in self._sources(start, stop):
            first, last = max(start, at), min(stop, at + size)
            if first < last:
                yield _Slice(source, first - at, last - first)

    def _sources(self, start: int, stop: int) -> Iterator[tuple[int, bytes | str, int]]:
        """Yield the pieces that overlap a range."""
        at = 0
        for member in self.members:
            data, end = member.offset + member.size, padded(member.offset + member.size)
            if at < stop and end > start:
                header = member_header(member.name, member.size, mtime=member.mtime or 0)
                yield at, header, len(header)
                yield member.offset, str(member.key), member.size
                yield data, bytes(end - data), end - data
            at = end
        if stop > at:
            header = member_header(MANIFEST, len(self.content), mtime=0)
            rest = header + self.content + bytes(padded(len(self.content)) - len(self.content)) + END
            yield at, rest, len(rest)


def _laid(key: str, content: bytes) -> _Tar:
    """Compute the layout of the tar with this manifest.

    Raises:
        Damaged: it is none, or of files that lie elsewhere.
    """
    members = read_manifest(content).members
    at = 0
    for member in members:
        fits = (
            member.key
            and _event(member.key) == files_folder(key)
            and member.key != key
            and file_name(member.key) == member.name
        )
        if not fits or member.size < 0 or member.offset != at + _header(member.name, member.size):
            raise Damaged(f"{key}: not the manifest of files that lie beside it")
        at = padded(member.offset + member.size)
    return _Tar(content, members, at, at + _header(MANIFEST, len(content)) + padded(len(content)) + len(END))


def _folded(key: str, objects: Sequence[Stat]) -> Stat:
    """Make of the objects of a bundle the one that they stand for."""
    manifest = next((one for one in objects if one.key == key), None)
    etags = [one.etag for one in objects]
    size = sum(_room(MANIFEST if one is manifest else file_name(one.key), one.size) for one in objects) + len(END)
    if manifest is None:
        return Stat(key, size, "", max(one.modified for one in objects))
    told = combined_etag((one.key, one.size, one.etag) for one in objects) if all(etags) else ""
    return replace(manifest, size=size, etag=told, checksums={})


def _folds(objects: Iterable[Stat]) -> Iterator[Stat]:
    """Fold the objects of some bundles; what belongs to none passes."""
    bundles: dict[str, list[Stat]] = defaultdict(list)
    for one in objects:
        name = _event(one.key)
        if name is None:
            yield one
        else:
            bundles[name].append(one)
    for name, some in bundles.items():
        yield _folded(_manifest_key(name), some)


def _room(name: str, size: int) -> int:
    return _header(name, size) + padded(size)


def _header(name: str, size: int) -> int:
    """Return the size of a member's header; it depends on name and size alone."""
    short = name.isascii() and len(name) + 2 <= SHORT and 0 <= size < LARGEST
    return BLOCK if short else len(member_header(name, size, mtime=0))


def _id(key: str) -> str:
    """Return the id of the event that a key belongs to, of any revision; empty if it belongs to none."""
    folder, _, rest = key.partition("/")
    name, slash, _ = rest.partition("/")
    return name[:ID] if slash and folder in FOLDERS and HOME.fullmatch(name) else ""


def _event(key: str) -> str | None:
    """Return the folder ``<id>[-rN]`` of a bundle's file; None for other keys.

    Among images lies the tar of an experiment that is called like an event, too; and a key that ends in a slash is how
    some clients remember a folder.
    """
    bundled = key.startswith(IMAGES) and key.lower().endswith(".tar")
    return key.split("/", 2)[1] if _id(key) and not bundled and not key.endswith("/") else None


def _manifest_key(name: str) -> str:
    return f"{IMAGES}/{name}/{MANIFEST}"


def _pieces(feed: Feed, size: int) -> Iterator[bytes]:
    """Yield at most so many bytes."""
    while size > 0 and (piece := feed.read(min(size, WINDOW))):
        size -= len(piece)
        yield piece


def _pass(feed: Feed, size: int) -> None:
    deque(_pieces(feed, size), maxlen=0)


def _put(store: Store, key: str, content: bytes, *, metadata: Mapping[str, str]) -> None:
    size = len(content)
    store.put(key, [content], size=size, part_size=part_size(size), metadata=metadata)


def _came(what: Iterator[bytes] | Future[bytes]) -> Iterator[bytes]:
    return iter((what.result(),)) if isinstance(what, Future) else what
