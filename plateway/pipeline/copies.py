"""Bring bytes back: one image, or everything of an event, from whichever copy has it.

A copy is where the bundle of an event lies whole: an object in the bucket, or a member of a tar on the archive. All
copies of an event are the same bytes, so the offsets that the manifest tells hold in each of them, and what one copy
cannot give, another can.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from plateway import bundle, events, folder
from plateway.bundle import Manifest, Member
from plateway.catalog import Ledger, Ref
from plateway.errors import (
    Conflict,
    Damaged,
    Misconfigured,
    NotFound,
    PlatewayError,
    Refused,
    Rejected,
    Transient,
    Unavailable,
    Unsettled,
)
from plateway.folder import shown
from plateway.pipeline.discovery import EVENTS, announcement
from plateway.pipeline.exports import RESERVE
from plateway.pipeline.line import Line, Outcome, digest_of, leased, noted
from plateway.pipeline.purges import TRASH, take_back
from plateway.records import ArchiveLocation, Event, Export, Purge
from plateway.retention import ON_REQUEST
from plateway.settings import Instrument

if TYPE_CHECKING:
    from plateway.archive import Archive

Where = Literal["bucket", "archive"]
T = TypeVar("T")

HELD = 16 << 20  # bytes of the largest image that is compared before any of it is handed out
NEAR = 1 << 20  # files with at most so many bytes between them are read as one
EVIDENCE = {"checksum": 0, "size": 1, "name": 2}  # the strongest first


@dataclass(frozen=True)
class Copy:
    """One place that has the bundle of an event."""

    where: Where
    place: str  # the key in the bucket, or the path of the archive
    size: int | None  # of the bundle, in bytes
    read: Callable[[int, int | None], Iterator[bytes]]

    def open(self, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice of the bundle: from `start` (from the end if negative), at most `length` bytes.

        Raises:
            Unavailable, Denied, NotFound: it cannot be read (now).
        """
        return self.read(start, length)

    def __str__(self) -> str:
        return f"{self.where} {self.place}"


def copies(line: Line, ledger: Ledger) -> list[Copy]:
    """Name the places that have an event's bundle, the best first: the bucket, then archives by their evidence.

    Left out are a bucket copy that is damaged or has expired, or lies in a bucket that the settings do not name, and
    all archives when they cannot be read from here.
    """
    export = ledger.export
    if export is None:
        return []
    found = []
    if export.damage is None and not ledger.expired:
        with suppress(Misconfigured):
            bound = line.holding(export)
            found.append(Copy("bucket", export.key, export.size, partial(_read_object, bound, export.key)))
    if line.archive is not None:
        ranked = sorted(ledger.archives, key=lambda one: (EVIDENCE.get(one.evidence, 3), one.reported_at, one.path))
        found += [_archived(line.archive, location, export) for location in ranked]
    return found


def _read_object(line: Line, key: str, start: int, length: int | None) -> Iterator[bytes]:
    return line.store.open(key, start=start, length=length)


def _archived(archive: Archive, location: ArchiveLocation, export: Export) -> Copy:
    @cache
    def first() -> int:
        return location.offset if location.offset is not None else _offset(archive, location, export)

    def read(start: int, length: int | None) -> Iterator[bytes]:
        start = max(0, export.size + start) if start < 0 else min(start, export.size)
        left = export.size - start if length is None else min(length, export.size - start)
        return archive.open(location.path, start=first() + start, length=left) if left else iter(())

    return Copy("archive", location.path, export.size, read)


def _offset(archive: Archive, location: ArchiveLocation, export: Export) -> int:
    """Find where in an archive a bundle begins, by the headers of its members.

    Raises:
        NotFound: no member of its name has its size.
    """
    names = {name.removeprefix("./") for name in (location.member, events.tar_name(export.key)) if name}
    for member in archive.members(location.path):
        if member.name.removeprefix("./") in names and member.size == export.size:
            return member.offset
    raise NotFound(f"{location.path}: no member {' or '.join(sorted(names))} of {export.size:,} bytes")


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass
class _Search:
    """The copies to ask, and what was wrong with those that were asked."""

    copies: list[Copy]
    troubles: list[str] = field(default_factory=list)
    passing: bool = False  # may waiting help?

    def wrong(self, copy: Copy, error: PlatewayError) -> None:
        self.troubles.append(f"{copy}: {error}")
        self.passing |= isinstance(error, Transient)

    def failure(self, what: str) -> PlatewayError:
        kind = Unavailable if self.passing else Damaged
        return kind(f"{what}: {'; '.join(self.troubles)}")


def _search(line: Line, ledger: Ledger, source: Where | None) -> tuple[_Search, Export]:
    """Find the copies that may be asked.

    Raises:
        NotFound: there is none, and why.
    """
    export = ledger.export
    if export is None:
        raise NotFound(f"{ledger.ref} is not exported yet")
    found = [copy for copy in copies(line, ledger) if source in {None, copy.where}]
    if not found:
        raise NotFound(f"{ledger.ref}: no copy to read{f' in the {source}' if source else ''}: {_why(line, ledger)}")
    return _Search(found), export


def _why(line: Line, ledger: Ledger) -> str:
    export = ledger.export
    assert export is not None
    bucket = (
        f"the bucket copy is {export.damage}" if export.damage
        else "the bucket copy has expired" if ledger.expired
        else "the bucket has it"
    )  # fmt: skip
    if bucket == "the bucket has it":
        try:
            line.holding(export)
        except Misconfigured as error:
            bucket = str(error)
    tape = (
        "no tape has it" if not ledger.archives
        else "tape has it, and no archive target is configured" if line.archive is None
        else "the archive has it"
    )  # fmt: skip
    return f"{bucket}; {tape}"


def _account(search: _Search, export: Export) -> Manifest:
    """Read the manifest from the first copy that has the one that was recorded; copies before it come last from now.

    Raises:
        Unavailable: no copy can be read now. Damaged: none has it.
    """
    for number, copy in enumerate(search.copies):
        try:
            content = b"".join(copy.open(export.manifest_offset, export.manifest_size))
            if hashlib.sha256(content).hexdigest() != export.manifest_sha256:
                raise Damaged("holds another manifest than was sent")
            manifest = bundle.read_manifest(content)
        except PlatewayError as error:
            search.wrong(copy, error)
            continue
        search.copies = search.copies[number:] + search.copies[:number]
        return manifest
    raise search.failure(f"{export.key}: no copy has its manifest")


def contents(line: Line, ledger: Ledger) -> Manifest:
    """Read the manifest of an event's bundle from the first copy that has it.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: none has it.
    """
    return _account(*_search(line, ledger, None))


def cat(line: Line, ref: Ref, name: str, *, source: Where | None = None) -> Iterator[bytes]:
    """Read one image, by its name on the bench or in the bundle, with one ranged read.

    An image of up to 16 MiB is compared with its SHA-256 before any of it is handed out, and read from another copy
    where it is other. Of larger ones the last byte is followed by `Damaged` if what came was wrong.

    Raises:
        NotFound: no such event, copy or image; similar names are told.
        Unavailable: no copy can be read now. Damaged: no copy is good.
    """
    search, export = _search(line, line.catalog.ledger(ref), source)
    return _image(search, named(_account(search, export), name))


def image(line: Line, ledger: Ledger, member: Member, *, doubted: bool = False) -> Iterator[bytes]:
    """Read one image that the manifest tells of, as `cat` does; a doubted one is compared first, however large it is.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: no copy is good.
    """
    search, _ = _search(line, ledger, None)
    if doubted and member.size > HELD:
        search.copies = [_right(search, member)]
    return _image(search, member)


def take(copies: Sequence[Copy], member: Member) -> Iterator[bytes]:
    """Read one image that the manifest tells of from these copies, as `cat` does.

    Raises:
        Unavailable: none can be read now. Damaged: none is good.
    """
    return _image(_Search([*copies]), member)


def part(line: Line, ledger: Ledger, *, start: int, length: int) -> Iterator[bytes]:
    """Read a part of an event's bundle, uncompared, from the first copy that has it; another goes on where one breaks.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: all are shorter.
    """
    search, export = _search(line, ledger, None)
    return _pieces(search, export.key, start=start, length=length)


def whole(line: Line, ledger: Ledger) -> Iterator[bytes]:
    """Read an event's whole bundle; its last byte is followed by `Damaged` if what came was wrong.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: none is good.
    """
    search, export = _search(line, ledger, None)
    return _proven(search, export.key, start=0, length=export.size, sha256=export.sha256)


def there(line: Line, ledger: Ledger) -> list[Where]:
    """Say where copies of an event are that can be asked, the best first.

    Raises:
        NotFound: there is none, and why.
    """
    search, _ = _search(line, ledger, None)
    return [copy.where for copy in search.copies]


def home(member: Member) -> str:
    """Say what a file was called on the bench."""
    return member.source or member.name


def named(manifest: Manifest, name: str) -> Member:
    """Find a file by its name on the bench, or else in the bundle.

    Raises:
        NotFound: there is none; similar names are told.
    """
    wanted = name.removeprefix("./")
    for names in (home, lambda member: member.name):
        for member in manifest.members:
            if names(member) == wanted:
                return member
    there = [home(member) for member in manifest.members]
    last = wanted.rpartition("/")[2]
    near = [one for one in there if one.rpartition("/")[2] == last] or difflib.get_close_matches(wanted, there[:5000])
    told = f"similar: {', '.join(map(shown, near[:5]))}" if near else f"{len(there)} others are"
    raise NotFound(f"{shown(name)} is not in the bundle; {told}")


def _image(search: _Search, member: Member) -> Iterator[bytes]:
    if member.size <= HELD:
        return iter((_whole(search, member),))
    return _proven(search, shown(home(member)), start=member.offset, length=member.size, sha256=member.sha256)


def _whole(search: _Search, member: Member) -> bytes:
    """Read an image that is compared before it is handed out."""

    def read(copy: Copy) -> bytes:
        content = b"".join(copy.open(member.offset, member.size))
        _compare(member, len(content), hashlib.sha256(content).hexdigest())
        return content

    return _tried(search, member, read)


def _right(search: _Search, member: Member) -> Copy:
    """Find a copy that has an image as it was sent, by reading it there."""

    def read(copy: Copy) -> Copy:
        size, digest = 0, hashlib.sha256()
        for piece in copy.open(member.offset, member.size):
            size += len(piece)
            digest.update(piece)
        _compare(member, size, digest.hexdigest())
        return copy

    return _tried(search, member, read)


def _compare(member: Member, size: int, sha256: str) -> None:
    if sha256 != member.sha256:
        raise Damaged(f"{size} of {member.size} bytes with sha256 {sha256}, {member.sha256} expected")


def _tried(search: _Search, member: Member, read: Callable[[Copy], T]) -> T:
    """Read an image from one copy after the other, until that goes well."""
    for copy in search.copies:
        try:
            return read(copy)
        except PlatewayError as error:
            search.wrong(copy, error)
    raise search.failure(shown(home(member)))


def _pieces(search: _Search, what: str, *, start: int, length: int) -> Iterator[bytes]:
    """Hand out a part of the bundle as it comes; where one copy breaks off, another goes on."""
    sent = 0
    for copy in search.copies:
        try:
            for piece in copy.open(start + sent, length - sent):
                sent += len(piece)
                yield piece
        except PlatewayError as error:
            search.wrong(copy, error)
        if sent == length:
            return
    search.troubles.append(f"{sent:,} of {length:,} bytes were read")
    raise search.failure(what)


def _proven(search: _Search, what: str, *, start: int, length: int, sha256: str) -> Iterator[bytes]:
    """Hand out a part of the bundle as it comes, and say at its end if it was wrong."""
    digest = hashlib.sha256()
    for piece in _pieces(search, what, start=start, length=length):
        digest.update(piece)
        yield piece
    if (found := digest.hexdigest()) != sha256:
        raise Damaged(f"{what}: the {length:,} bytes that were handed out are wrong: sha256 {found}, {sha256} expected")


# ----------------------------------------------------------------------------------------------------------- restoring


def restore(
    line: Line,
    ref: Ref,
    *,
    to: Path | None = None,
    to_bench: bool = False,
    source: Where | None = None,
    beat: Callable[[int], None] | None = None,
) -> Outcome:
    """Bring all files of an event back, to ``<to>/<ref>/`` or to their place on the instrument's disk.

    Every file is written aside, compared with the manifest's SHA-256, synced and renamed. May be repeated: right files
    that are there are kept, only missing ones are read. ``beat`` hears of the bytes that are there so far.

    Raises:
        NotFound: no such event or copy. Conflict, Refused: something else is there. Busy: somebody else restores it.
        Unavailable: no copy can be read now, or the disk has no room. Damaged: no copy has a good file of each.
        Rejected: the manifest names files that may not be written.
        Unsettled: the instrument's disk is not there, or the images are being removed just now.
    """
    if (to is None) == (not to_bench):
        raise ValueError("either a directory or the bench")
    started = time.monotonic()
    ledger = line.catalog.ledger(ref)
    if to is not None:
        size, told = _to_directory(line, ledger, to, source=source, beat=beat)
    else:
        size, told = _to_bench(line, ledger, source=source, beat=beat)
    result = "restored" if told else "restored already"
    outcome = Outcome(ref, ledger.event.system, "restore", result, key=ledger.event.key, size=size, reasons=told)
    return noted(Outcome(**{**vars(outcome), "seconds": time.monotonic() - started}))


def _to_directory(
    line: Line, ledger: Ledger, to: Path, *, source: Where | None, beat: Callable[[int], None] | None
) -> tuple[int, tuple[str, ...]]:
    search, export = _search(line, ledger, source)
    manifest = _account(search, export)
    _check(manifest, export)
    folder.make(to)
    told = _bring(search, manifest, to, str(ledger.ref), aside=f".{ledger.ref}.part", reserve=0, beat=beat)
    return sum(member.size for member in manifest.members), told


def _check(manifest: Manifest, export: Export) -> None:
    """Refuse a manifest that would have us write anywhere else, or read what is no file of this bundle.

    Raises:
        Rejected: names the file.
    """
    names = set()
    for member in manifest.members:
        name = home(member)
        folder.confined(name)
        if name in names:
            raise Rejected(f"{shown(name)} is in the manifest twice")
        if member.size < 0 or not bundle.BLOCK <= member.offset <= export.manifest_offset - member.size:
            raise Rejected(f"{shown(name)}: {member.size} bytes at {member.offset} are not within the bundle")
        names.add(name)


def _bring(
    search: _Search,
    manifest: Manifest,
    root: Path,
    path: str,
    *,
    aside: str,
    reserve: int,
    beat: Callable[[int], None] | None,
) -> tuple[str, ...]:
    """Make the directory at ``path`` hold every file of a manifest; say where from and what was wrong on the way."""
    progress = _Progress(beat)
    with folder.land(root, path, aside=aside) as landing:
        missing = [member for member in manifest.members if not _there(landing, member, progress)]
        _room(root, path, needed=sum(member.size for member in missing), reserve=reserve)
        told = []
        for copy in search.copies:
            if not missing:
                break
            left = _fetch(landing, missing, copy, search=search, progress=progress)
            if len(left) < len(missing):
                told.append(f"{len(missing) - len(left)} of {len(manifest.members)} files from {copy}")
            missing = left
        if missing:
            raise search.failure(f"{len(missing)} of {len(manifest.members)} files, like {shown(home(missing[0]))}")
    return (*told, *search.troubles) if told else ()


@dataclass
class _Progress:
    """The bytes that are there so far."""

    tell: Callable[[int], None] | None
    done: int = 0

    def add(self, size: int) -> None:
        self.done += size
        if self.tell is not None:
            self.tell(self.done)

    def counted(self, piece: bytes) -> bytes:
        self.add(len(piece))
        return piece


def _there(landing: folder.Landing, member: Member, progress: _Progress) -> bool:
    """Tell whether a file is there already; other bytes in its place are refused."""
    found = landing.digest(home(member))
    if found is None:
        return False
    if found != member.sha256:
        raise Conflict(f"{shown(home(member))}: other bytes are there already (sha256 {found})")
    progress.add(member.size)
    return True


def _room(root: Path, path: str, *, needed: int, reserve: int) -> None:
    free = folder.free(root)
    if needed and free < needed + reserve:
        kept = f" and a reserve of {reserve:,}" if reserve else ""
        raise Unavailable(f"{shown(path)}: the disk has {free:,} bytes free, {needed:,} are needed{kept}")


class _Broken(Exception):
    """A copy cannot be read on."""

    def __init__(self, error: PlatewayError) -> None:
        self.error = error


class _Reading:
    """Part of a bundle, read forward."""

    def __init__(self, copy: Copy, start: int, end: int) -> None:
        self._at, self._rest = start, memoryview(b"")
        try:
            self._chunks = copy.open(start, end - start)
        except PlatewayError as error:
            raise _Broken(error) from error

    def modified(self, member: Member) -> int:
        """Go to a member's bytes and say when it was modified, by the header right before them; 0 if that is none."""
        for _ in self.pieces(member.offset - bundle.BLOCK - self._at):
            pass
        try:
            return bundle.modified(b"".join(self.pieces(bundle.BLOCK)))
        except Damaged:
            return 0

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes as they come."""
        end = self._at + size
        while self._at < end:
            if not self._rest:
                self._rest = memoryview(self._next(end))
            piece, self._rest = self._rest[: end - self._at], self._rest[end - self._at :]
            self._at += len(piece)
            yield bytes(piece)

    def _next(self, end: int) -> bytes:
        try:
            chunk = next(self._chunks, None)
        except PlatewayError as error:
            raise _Broken(error) from error
        if chunk is None:
            raise _Broken(Damaged(f"ends after {self._at} bytes, before {end}"))
        return chunk


def _fetch(
    landing: folder.Landing, wanted: Sequence[Member], copy: Copy, *, search: _Search, progress: _Progress
) -> list[Member]:
    """Write what one copy has of some files; return those that it has not."""
    left: list[Member] = []
    for run in _runs(wanted):
        done = 0
        try:
            reading = _Reading(copy, run[0].offset - bundle.BLOCK, run[-1].offset + run[-1].size)
            for member in run:
                mtime, content = reading.modified(member), map(progress.counted, reading.pieces(member.size))
                try:
                    landing.write(home(member), content, sha256=member.sha256, mtime_ns=mtime * 10**9)
                except Damaged as error:  # of the member alone: what follows is read on
                    search.wrong(copy, error)
                    progress.add(-member.size)
                    left.append(member)
                done += 1
        except _Broken as broken:
            search.wrong(copy, broken.error)
            left += run[done:]
    return left


def _runs(members: Iterable[Member]) -> Iterator[list[Member]]:
    """Group files that lie so near to each other that one read for all costs least."""
    run: list[Member] = []
    for member in sorted(members, key=lambda one: one.offset):
        if run and member.offset - (run[-1].offset + run[-1].size) > NEAR:
            yield run
            run = []
        run.append(member)
    if run:
        yield run


# ----------------------------------------------------------------------------------------------------------- the bench


def _to_bench(
    line: Line, ledger: Ledger, *, source: Where | None, beat: Callable[[int], None] | None
) -> tuple[int, tuple[str, ...]]:
    """Put the images back at their path and the event file with them, and take the tombstone back."""
    event, instrument, purge = ledger.event, line.instrument(ledger.event.system), ledger.purge("raw")
    if not folder.exists(instrument.root, EVENTS):
        raise Unsettled(f"{event.system} shows no directory of event files: is its disk mounted?")
    if purge is not None and purge.gone_at is None:
        return 0, take_back(line, ledger, purge, reason=ON_REQUEST).reasons
    search, export = _search(line, ledger, source)
    manifest = _account(search, export)
    _check(manifest, export)
    back, told = f"{TRASH}/{ledger.ref}.back", []
    if folder.exists(instrument.root, event.path):
        _only(instrument.root, event.path, manifest)
        told += ["its images were there already"] if purge else []
    else:
        landed = partial(_bring, aside=f"{back}/parts", reserve=RESERVE, beat=beat)
        told += landed(search, manifest, instrument.root, f"{back}/images") or ["brought by an earlier attempt"]
    with leased(line, ledger.ref):
        if told and not folder.exists(instrument.root, event.path):
            folder.move(instrument.root, _brought(back, event, manifest, purge), to=event.path)
        told += _announce(line, instrument, event, aside=f"{back}/parts")
        if purge is not None:
            line.catalog.note_restored(ledger.ref, "raw", at=line.catalog.now(), reason=ON_REQUEST)
    folder.remove(instrument.root, back, names=[f"images/{home(member)}" for member in manifest.members])
    return sum(member.size for member in manifest.members), tuple(told)


def _only(root: Path, path: str, manifest: Manifest) -> None:
    """Refuse what lies at an event's path if it is anything but the event's images.

    Raises:
        Refused: with every difference.
    """
    expected = {home(member): member.sha256 for member in manifest.members}
    with folder.enter(root, path) as images:
        found = {file.name: digest_of(images.read(file)) for file in images.files()}
    other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if other:
        raise Refused(*(f"{path} holds something else: {shown(name)}" for name in other))


def _brought(back: str, event: Event, manifest: Manifest, purge: Purge | None) -> str:
    """Say what is to be moved to the event's path: a directory, or the one file that was announced."""
    only = event.path.rpartition("/")[2]
    alone = [home(member) for member in manifest.members] == [only]
    if purge is not None and "only" in purge.proof:
        alone = purge.proof["only"] is not None
    return f"{back}/images/{only}" if alone else f"{back}/images"


def _announce(line: Line, instrument: Instrument, event: Event, *, aside: str) -> list[str]:
    """Write the event file again, if it then says what was announced; say what was done, nothing if it is there."""
    digests = {one.event.digest for one in line.catalog.revisions(event.id)}
    if folder.exists(instrument.root, f"{EVENTS}/{event.file}"):
        if _digest(announcement(instrument, event), instrument) in digests:
            return []
        return [f"{EVENTS}/{shown(event.file)} announces something else and was left alone"]
    content = _announcement(event)
    if _digest(content, instrument) not in digests:
        return [f"{EVENTS}/{shown(event.file)} could not be written again: the catalogue knows too little of it"]
    mtime_ns = round(event.announced_at.timestamp() * 1e6) * 1000
    with folder.land(instrument.root, EVENTS, aside=aside) as landing:
        landing.write(event.file, [content], sha256=hashlib.sha256(content).hexdigest(), mtime_ns=mtime_ns)
    return []


def _digest(content: bytes, instrument: Instrument) -> str | None:
    try:
        return events.parse(content, instrument).digest
    except Rejected:
        return None


def _announcement(event: Event) -> bytes:
    """Write an event file in the words of DLM v2, which can say all that was announced in either dialect."""
    said = {
        "ref_id": str(event.id),
        "experiment_id": event.experiment,
        "timestamp": event.timestamp.isoformat(),
        "type": event.kind,
        "system": event.system,
        "local_path": event.path,
        "img_count": event.image_count,
        "metadata": event.details,
    }
    return json.dumps(said, indent=1).encode()
