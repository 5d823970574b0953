"""A folder of images <-> one reproducible tar + manifest.

A bundle is a POSIX/PAX tar: members ``./<name>`` sorted by bytes, then ``./metadata.json``, the manifest, then two
end blocks. Its layout is a pure function of names, sizes and times: every offset and the total size are known before
an image is read, so one pass suffices and one image inside a large bundle is one ranged GET.

The manifest ends with ``"sealed"``: the SHA-256 of every byte of the bundle before that digest. So a bundle proves
itself without a catalogue: `walk` finds any changed byte, and names the member where it is in one. `tail` finds the
manifest from the end of a bundle of which nothing else is known, not even its size.

Where files become objects of their own (``scattered``), the manifest tells each one's key and time as well: then all of
the bundle but the files' bytes follows from it.

Reading the folder is ``folder``'s, moving the bytes is ``store``'s.
"""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, zip_longest
from typing import Any, NamedTuple, Self

from plateway.checksums import FileETags, PartHasher, part_size
from plateway.errors import Damaged, Unsettled
from plateway.folder import File
from plateway.keys import MANIFEST
from plateway.names import shown

Step = Callable[[], object]
BLOCK = 512
END = bytes(2 * BLOCK)
CHUNK = 1 << 20
DIGEST = "0" * 64  # holds the place of a SHA-256
CLOSING = b'\n ],\n "sealed": "'
CLOSED = b'"\n}\n'
SEAL = len(DIGEST) + len(CLOSED)
MOST_MANIFEST = 1 << 30
TAIL = 48 << 10  # bytes read first to find a manifest from the end; enough for some 300 files
MOST_PAX = 1 << 20
LATEST = 8**11 - 1  # seconds that a header has room for


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a bundle, as in the manifest."""

    name: str
    size: int
    sha256: str
    offset: int  # of its bytes in the tar
    source: str | None = None  # its name on the bench, where that differs
    key: str | None = None  # of its object, where it is one of its own
    mtime: int | None = None  # seconds; only with a key


@dataclass(frozen=True, slots=True)
class Slot:
    """The position of one file."""

    file: File
    name: str
    offset: int
    mtime: int  # seconds
    key: str | None = None


@dataclass(frozen=True)
class Layout:
    """The position of everything; computed from names, sizes and times alone."""

    slots: tuple[Slot, ...]
    head: Mapping[str, Any]
    manifest_offset: int
    manifest_size: int
    manifest_key: str | None = None  # where files become objects of their own, the key of this one

    @property
    def size(self) -> int:
        """Size of the whole bundle in bytes."""
        return padded(self.manifest_offset + self.manifest_size) + len(END)

    @property
    def part_size(self) -> int:
        """Size of an upload part in bytes."""
        return part_size(self.size)


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    size: int
    sha256: str
    etag: str
    part_size: int
    member_count: int
    manifest_offset: int
    manifest_size: int
    manifest_sha256: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle."""

    head: dict[str, Any]
    members: tuple[Member, ...]
    sealed: str


@dataclass(frozen=True)
class Walked:
    """What one pass over a sound bundle saw."""

    size: int
    sha256: str
    manifest: Manifest
    manifest_offset: int
    manifest_size: int
    manifest_sha256: str
    kept: Mapping[str, bytes]  # content of the members that were asked for

    @property
    def members(self) -> tuple[Member, ...]:
        """The files, as in the manifest."""
        return self.manifest.members


@dataclass(frozen=True)
class Tail:
    """A manifest found from the end of a bundle."""

    manifest: Manifest
    size: int  # of the manifest, in bytes
    sha256: str
    behind: int  # from its first byte to the end of the bundle


def padded(size: int) -> int:
    """Round up to a whole block."""
    return -(-size // BLOCK) * BLOCK


def plan(files: Sequence[File], head: Mapping[str, Any], *, keys: Callable[[str], str] | None = None) -> Layout:
    """Lay out a bundle of these files; `head` is the part of the manifest before the list of files.

    ``keys`` says at which key a file of the bundle, its manifest among them, becomes an object of its own.
    """
    taken = {file.name for file in files}
    if len(taken) < len(files):
        raise ValueError("a name occurs twice")
    named = sorted(((_name(file.name, taken), file) for file in files), key=lambda pair: _bytes(pair[0]))
    slots: list[Slot] = []
    position = 0
    for name, file in named:
        mtime, key = file.mtime_ns // 10**9, keys and keys(name)
        if key is not None:
            mtime = min(max(mtime, 0), LATEST)  # so that the length of a header follows from name and size
        position += len(member_header(name, file.size, mtime=mtime))
        slots.append(Slot(file, name, position, mtime, key))
        position = padded(position + file.size)
    size = len(_opening(head)) + sum(map(len, _lines(_member(slot, DIGEST) for slot in slots))) + len(CLOSING) + SEAL
    offset = position + len(member_header(MANIFEST, size, mtime=0))
    return Layout(tuple(slots), head, offset, size, keys and keys(MANIFEST))


class Aside:
    """A thread that does things in order, a few lists of them behind; `do` waits when it is further behind."""

    def __init__(self, *, behind: int = 4) -> None:
        self._thread = ThreadPoolExecutor(1, "bundle")
        self._lists: deque[Future[None]] = deque()
        self._behind = behind

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def do(self, steps: Iterable[Step]) -> None:
        """Do these after what came before."""
        if len(self._lists) >= self._behind:
            self._lists.popleft().result()
        self._lists.append(self._thread.submit(_do, steps))

    def wait(self) -> None:
        """Wait until everything is done."""
        while self._lists:
            self._lists.popleft().result()


class Packing:
    """The bytes of a bundle, to be iterated once, in chunks of about 1 MiB; hashed on the way, in threads of their own.

    `read` yields a file's bytes; other than ``file.size`` of them raise `Unsettled`. After the last byte was taken,
    and before the iteration ends, `seal` is called with what was packed. `beat` hears of the bytes taken so far, with
    every chunk. An exception from either rises out of the iteration and so aborts the upload.
    """

    def __init__(
        self,
        layout: Layout,
        read: Callable[[File], Iterable[bytes]],
        *,
        seal: Callable[[Packed], None] | None = None,
        beat: Callable[[int], None] | None = None,
    ) -> None:
        self.layout = layout
        self._read, self._seal, self._beat = read, seal, beat
        self._whole, self._manifest = hashlib.sha256(), hashlib.sha256()
        self._parts = PartHasher(layout.part_size)
        self._tally = FileETags() if layout.manifest_key is not None else None
        self._members: list[Member] = []
        self._steps: list[Step] = []  # hashing of members and manifest that waits for its chunk to leave
        self._count: Callable[[bytes], None] | None = None  # of the file that is at its turn, where it has an ETag
        self._cuts: list[Step] = []  # as the steps
        self._taken = 0

    def __iter__(self) -> Iterator[bytes]:
        assert not self._taken, "packed already"
        with Aside() as sums, Aside() as parts:
            for pieces in (self._files, self._list, self._close):
                for chunk in _batched(pieces()):
                    sums.do([*self._steps, partial(self._whole.update, chunk)])
                    parts.do([*self._cuts] if self._tally else [partial(self._parts.update, chunk)])
                    self._steps.clear()
                    self._cuts.clear()
                    self._taken += len(chunk)
                    yield chunk
                    if self._beat:
                        self._beat(self._taken)
                sums.wait()  # the list has the files' digests, the close the digest of all before it
            parts.wait()
        if self._seal:
            self._seal(self.packed)

    @property
    def packed(self) -> Packed:
        """What was packed; only after the last byte was read."""
        assert self._taken == self.layout.size, f"{self._taken} of {self.layout.size} bytes packed"
        return Packed(
            size=self.layout.size,
            sha256=self._whole.hexdigest(),
            etag=self._etag(),
            part_size=self.layout.part_size,
            member_count=len(self._members),
            manifest_offset=self.layout.manifest_offset,
            manifest_size=self.layout.manifest_size,
            manifest_sha256=self._manifest.hexdigest(),
            members=tuple(self._members),
        )

    def _etag(self) -> str:
        if self._tally is None:
            return self._parts.etag()
        keys = {slot.name: slot.key for slot in self.layout.slots} | {MANIFEST: self.layout.manifest_key}
        return self._tally.etag({name: key for name, key in keys.items() if key is not None})

    def _begin(self, name: str, size: int) -> None:
        if self._tally is not None:
            self._count = self._tally.begin(name, size).update

    def _hash(self, update: Callable[[bytes], None], data: bytes) -> None:
        """Have a piece of the file that is at its turn hashed when it leaves."""
        self._steps.append(partial(update, data))
        if self._count is not None:
            self._cuts.append(partial(self._count, data))

    def _files(self) -> Iterator[bytes]:
        for slot in self.layout.slots:
            file, digest = slot.file, hashlib.sha256()
            self._begin(slot.name, file.size)
            yield member_header(slot.name, file.size, mtime=slot.mtime)
            for data in _exactly(self._read(file), file):
                self._hash(digest.update, data)
                yield data
            self._steps.append(partial(self._note, slot, digest.hexdigest))
            yield bytes(padded(file.size) - file.size)
        yield member_header(MANIFEST, self.layout.manifest_size, mtime=0)

    def _note(self, slot: Slot, hexdigest: Callable[[], str]) -> None:
        self._members.append(_member(slot, hexdigest()))

    def _list(self) -> Iterator[bytes]:
        self._begin(MANIFEST, self.layout.manifest_size)
        for piece in chain([_opening(self.layout.head)], _lines(self._members), [CLOSING]):
            self._hash(self._manifest.update, piece)
            yield piece

    def _close(self) -> Iterator[bytes]:
        closing = self._whole.hexdigest().encode() + CLOSED
        self._hash(self._manifest.update, closing)
        yield closing + bytes(padded(self.layout.manifest_size) - self.layout.manifest_size) + END


def read_manifest(content: bytes) -> Manifest:
    """Read a bundle's ``metadata.json``.

    Raises:
        Damaged: it is not the manifest of a bundle.
    """
    try:
        head = json.loads(content)
        files, sealed = head.pop("files"), head.pop("sealed")
        if type(files) is not list or type(sealed) is not str:
            raise TypeError("files or sealed")
        return Manifest(head, tuple(_entry(**entry) for entry in files), sealed)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST}: not the manifest of a bundle ({type(error).__name__})") from error


def tail(last: Callable[[int], bytes]) -> Tail:
    """Find the manifest from the end of a bundle; ``last(n)`` reads its last n bytes, or all of a smaller one.

    One read is enough for some 300 files, more where the manifest is larger. Nothing before the manifest is proven.

    Raises:
        Damaged: what ends here is no bundle.
    """
    wanted = TAIL
    while True:
        content = last(wanted)
        if not _ends(content):
            raise Damaged(f"does not end as a bundle does ({len(content)} bytes read)")
        for start in range(len(content) - len(END) - 2 * BLOCK, -1, -BLOCK):
            size = _manifest_size(content[start : start + BLOCK])
            if size is not None and start + BLOCK + padded(size) + len(END) == len(content):
                return _tail(content[start + BLOCK :], size)
        if len(content) < wanted or wanted > MOST_MANIFEST:
            raise Damaged(f"no {MANIFEST} in its last {len(content)} bytes")
        wanted *= 8


def _ends(content: bytes) -> bool:
    """Return whether this may be the end of a bundle: whole blocks, and zeros after the manifest."""
    return (
        len(content) % BLOCK == 0
        and content.endswith(END)
        and content[-(len(END) + BLOCK + len(CLOSED)) :].rstrip(b"\0").endswith(CLOSED)
    )


def _manifest_size(block: bytes) -> int | None:
    """Read the size of the manifest if this block is its header; text, which has no zeros, never is one."""
    if block[257:262] != b"ustar":
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info.size if info.name == f"./{MANIFEST}" and info.type == tarfile.REGTYPE else None


def _tail(rest: bytes, size: int) -> Tail:
    content = rest[:size]
    return Tail(read_manifest(content), size, hashlib.sha256(content).hexdigest(), len(rest))


def walk(chunks: Iterable[bytes], *, keep: Collection[str] = (), tally: FileETags | None = None) -> Walked:
    """Read a whole bundle in one pass and compare every byte with its manifest.

    Members in ``keep`` of up to 1 MiB are returned with what was seen. ``tally`` counts the files on the way.

    Raises:
        Damaged: names the member whose bytes are other than the manifest says, or what else is wrong.
    """
    scan = Scan(chunks)
    found: list[Member] = []
    kept: dict[str, bytes] = {}
    while (header := scan.header()).name != MANIFEST:
        offset, digest = scan.offset, hashlib.sha256()
        pieces = _passing(scan.pieces(header.size), digest.update)
        if tally is not None:
            pieces = _passing(pieces, tally.begin(header.name, header.size).update)
        if header.name in keep and header.size <= CHUNK:
            kept[header.name] = b"".join(pieces)
        else:
            deque(pieces, maxlen=0)
        found.append(Member(header.name, header.size, digest.hexdigest(), offset))
        scan.zeros(padded(header.size) - header.size)
    if not len(CLOSING) + SEAL <= header.size <= MOST_MANIFEST:
        raise Damaged(f"{MANIFEST}: {header.size} bytes")
    start = scan.offset
    content = scan.take(header.size - SEAL)
    sealed = scan.whole.hexdigest()
    content += scan.take(SEAL)
    if tally is not None:
        tally.begin(MANIFEST, header.size).update(content)
    manifest = read_manifest(content)
    _compare(found, manifest.members)
    if manifest.sealed != sealed:
        raise Damaged(f"{MANIFEST} or a header: sha256 {sealed}, sealed as {manifest.sealed}")
    scan.zeros(padded(header.size) - header.size + len(END))
    scan.end()
    manifest_sha256 = hashlib.sha256(content).hexdigest()
    return Walked(scan.offset, scan.whole.hexdigest(), manifest, start, header.size, manifest_sha256, kept)


class Header(NamedTuple):
    """The fields of a member's header."""

    name: str
    size: int
    mtime: int  # whole seconds


class Scan:
    """A bundle's bytes, read forward and hashed."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.whole = hashlib.sha256()
        self.offset = 0
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next `size` bytes as they come."""
        end = self.offset + size
        while self.offset < end:
            if not self._rest:
                self._rest = memoryview(self._next(end))
            piece, self._rest = self._rest[: end - self.offset], self._rest[end - self.offset :]
            self.whole.update(piece)
            self.offset += len(piece)
            yield piece

    def _next(self, end: int) -> bytes:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise Damaged(f"ends after {self.offset} bytes, before {end}")
        return chunk

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        return b"".join(self.pieces(size))

    def zeros(self, size: int) -> None:
        """Pass over the next `size` bytes, which must be zeros."""
        start = self.offset
        if any(self.take(size)):
            raise Damaged(f"padding at {start} is not zeros")

    def end(self) -> None:
        """Refuse anything that follows."""
        if self._rest or any(map(len, self._chunks)):
            raise Damaged(f"goes on after its end at {self.offset}")

    def header(self) -> Header:
        """Read the header of the next member, which must be a regular file ``./<name>``."""
        start, pax = self.offset, {}
        try:
            info = tarfile.TarInfo.frombuf(self.take(BLOCK), "utf-8", "surrogateescape")
            if info.type == tarfile.XHDTYPE and info.size <= MOST_PAX:
                pax = dict(pax_records(self.take(padded(info.size))[: info.size]))
                info = tarfile.TarInfo.frombuf(self.take(BLOCK), "utf-8", "surrogateescape")
            name = pax[b"path"].decode("utf-8", "surrogateescape") if b"path" in pax else info.name
            size = int(pax.get(b"size", info.size))
            mtime = math.floor(float(pax.get(b"mtime", info.mtime)))
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise Damaged(f"header at {start}: {error}") from error
        if info.type != tarfile.REGTYPE or not name.startswith("./") or size < 0:
            raise Damaged(f"header at {start}: {shown(name)}, {size} bytes, is not a member of a bundle")
        return Header(name[2:], size, mtime)


def modified(header: bytes) -> int:
    """Read from a member's whole header when it was modified, in whole seconds since 1970.

    Raises:
        Damaged: it is no header.
    """
    return Scan([header]).header().mtime


def header_offsets(members: Iterable[Member]) -> dict[str, int]:
    """Return by name where the header of each member of a bundle begins: where the one before it ends."""
    offsets, end = {}, 0
    for member in sorted(members, key=lambda member: member.offset):
        offsets[member.name], end = end, padded(member.offset + member.size)
    return offsets


def pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split a PAX header into its ``<length> <keyword>=<value>`` lines."""
    while data:
        length = int(data[: data.index(b" ")])
        if not 0 < length <= len(data):
            raise ValueError("PAX record out of bounds")
        keyword, _, value = data[data.index(b" ") + 1 : length - 1].partition(b"=")
        yield keyword, value
        data = data[length:]


def _passing(pieces: Iterable[memoryview], tell: Callable[[memoryview], object]) -> Iterator[memoryview]:
    for piece in pieces:
        tell(piece)
        yield piece


def _compare(found: Sequence[Member], told: Sequence[Member]) -> None:
    """Refuse members that differ from the manifest."""
    for seen, said in zip_longest(found, told):
        if said is None:
            raise Damaged(f"{shown(seen.name)}: not in the manifest")
        name = shown(said.name)
        if seen is None:
            raise Damaged(f"{name}: missing")
        if (seen.name, seen.offset, seen.size) != (said.name, said.offset, said.size):
            raise Damaged(f"{name}: {said.size} bytes at {said.offset} expected, {seen.size} at {seen.offset} found")
        if seen.sha256 != said.sha256:
            raise Damaged(f"{name}: sha256 {seen.sha256}, the manifest says {said.sha256}")


def _do(steps: Iterable[Step]) -> None:
    for step in steps:
        step()


def _batched(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces into chunks of about 1 MiB; large ones pass as they are."""
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        if pending and size + len(piece) > CHUNK:
            yield b"".join(pending)
            pending, size = [], 0
        pending.append(piece)
        size += len(piece)
    yield b"".join(pending)


def _exactly(chunks: Iterable[bytes], file: File) -> Iterator[bytes]:
    """Refuse more or fewer bytes than the layout has room for."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > file.size:
            break
        yield chunk
    if size != file.size:
        raise Unsettled(f"{shown(file.name)}: {size} bytes read, {file.size} expected")


def member_header(name: str, size: int, *, mtime: int) -> bytes:
    """Make the header of a member; a PAX one where ustar has no room (POSIX.1-2001, as tarfile writes it)."""
    info = tarfile.TarInfo(f"./{name}")
    info.size, info.mtime = size, mtime
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _name(name: str, taken: Collection[str]) -> str:
    """Return the name of a file in the bundle: the folder's own metadata.json is renamed."""
    if name != MANIFEST:
        return name
    numbered = (f"source-metadata-{number}.json" for number in count(2))
    return next(free for free in chain(["source-metadata.json"], numbered) if free not in taken)


def _member(slot: Slot, sha256: str) -> Member:
    source = slot.file.name if slot.file.name != slot.name else None
    mtime = slot.mtime if slot.key is not None else None
    return Member(slot.name, slot.file.size, sha256, slot.offset, source, slot.key, mtime)


def _entry(
    *,
    name: str,
    size: int,
    sha256: str,
    offset: int,
    source: str | None = None,
    key: str | None = None,
    mtime: int | None = None,
) -> Member:
    """Check one entry of a manifest."""
    texts, numbers = {type(name), type(sha256), type(source or ""), type(key or "")}, {type(size), type(offset)}
    if texts != {str} or numbers | {type(mtime or 0)} != {int} or (key is None) != (mtime is None):
        raise TypeError("an entry of files")
    return Member(name, size, sha256, offset, source, key, mtime)


def _dumps(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _opening(head: Mapping[str, Any]) -> bytes:
    if head.keys() & {"files", "sealed"}:
        raise ValueError("files and sealed are the manifest's own")
    fields = b"".join(b" %b: %b,\n" % (_dumps(key), _dumps(value)) for key, value in head.items())
    return b"{\n" + fields + b' "files": ['


def _lines(members: Iterable[Member]) -> Iterator[bytes]:
    for index, member in enumerate(members):
        fields = {"name": member.name, "size": member.size, "sha256": member.sha256, "offset": member.offset}
        more = {"source": member.source, "key": member.key, "mtime": member.mtime}
        fields |= {name: value for name, value in more.items() if value is not None}
        yield (b",\n  " if index else b"\n  ") + json.dumps(fields).encode()
