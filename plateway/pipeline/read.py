"""Read an event's bytes from whichever copy has them: one image, a part, or the whole bundle.

A copy is where the bundle of an event lies whole: an object in the bucket, or a member of a tar on the archive. All
copies of an event are the same bytes, so the offsets that the manifest tells hold in each of them, and what one copy
cannot give, another can.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, TypeVar

from plateway import bundle, keys
from plateway.bundle import Manifest, Member
from plateway.errors import (
    Damaged,
    Misconfigured,
    NotFound,
    PlatewayError,
    Transient,
    Unavailable,
)
from plateway.events import Ref
from plateway.ledger import Ledger
from plateway.names import shown
from plateway.pipeline.context import Site
from plateway.records import ArchiveLocation, Export

if TYPE_CHECKING:
    from plateway.archive import Archive

Where = Literal["bucket", "archive"]
T = TypeVar("T")

HELD = 16 << 20  # bytes of the largest image that is compared before any of it is handed out
ON_REQUEST = "restored on request"
NEAR = 1 << 20  # files with at most so many bytes between them are read as one
EVIDENCE = {"checksum": 0, "size": 1, "name": 2}  # the strongest first


@dataclass(frozen=True)
class Copy:
    """One place that has the bundle of an event."""

    where: Where
    place: str  # the key in the bucket, or the path of the archive
    size: int | None  # of the bundle, in bytes
    read: Callable[[int, int | None], Iterator[bytes]]
    first: Callable[[], int] = lambda: 0  # offset of the bundle in its archive

    def open(self, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice of the bundle: from `start` (from the end if negative), at most `length` bytes.

        Raises:
            Unavailable, Denied, NotFound: it cannot be read (now).
        """
        return self.read(start, length)

    def __str__(self) -> str:
        return f"{self.where} {self.place}"


def copies(site: Site, ledger: Ledger) -> list[Copy]:
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
            bound = site.holding(export)
            found.append(Copy("bucket", export.key, export.size, partial(_read_object, bound, export.key)))
    return [*found, *archived_copies(site, ledger)]


def archived_copies(site: Site, ledger: Ledger) -> list[Copy]:
    """List the copies on tape, the best first: by evidence; damaged ones last. None where tape cannot be read."""
    export, archive = ledger.export, site.archive
    if export is None or archive is None:
        return []

    def rank(one: ArchiveLocation) -> tuple[bool, int, datetime, str]:
        return one.damage is not None, EVIDENCE.get(one.evidence, 3), one.reported_at, one.path

    return [_archived(archive, location, export) for location in sorted(ledger.archives, key=rank)]


def _read_object(site: Site, key: str, start: int, length: int | None) -> Iterator[bytes]:
    return site.store.open(key, start=start, length=length)


def _archived(archive: Archive, location: ArchiveLocation, export: Export) -> Copy:
    @cache
    def first() -> int:
        return location.offset if location.offset is not None else _offset(archive, location, export)

    def read(start: int, length: int | None) -> Iterator[bytes]:
        start = max(0, export.size + start) if start < 0 else min(start, export.size)
        left = export.size - start if length is None else min(length, export.size - start)
        return archive.open(location.path, start=first() + start, length=left) if left else iter(())

    return Copy("archive", location.path, export.size, read, first)


def _offset(archive: Archive, location: ArchiveLocation, export: Export) -> int:
    """Find where in an archive a bundle begins, by the headers of its members.

    Raises:
        NotFound: no member of its name has its size.
    """
    names = {name.removeprefix("./") for name in (location.member, keys.tar_name(export.key)) if name}
    for member in archive.members(location.path):
        if member.name.removeprefix("./") in names and member.size == export.size:
            return member.offset
    raise NotFound(f"{location.path}: no member {' or '.join(sorted(names))} of {export.size:,} bytes")


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass
class Search:
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


def search_copies(site: Site, ledger: Ledger, source: Where | None) -> tuple[Search, Export]:
    """Find the copies that may be asked.

    Raises:
        NotFound: there is none, and why.
    """
    export = ledger.export
    if export is None:
        raise NotFound(f"{ledger.ref} is not exported yet")
    found = [copy for copy in copies(site, ledger) if source in {None, copy.where}]
    if not found:
        raise NotFound(f"{ledger.ref}: no copy to read{f' in the {source}' if source else ''}: {_why(site, ledger)}")
    return Search(found), export


def _why(site: Site, ledger: Ledger) -> str:
    export = ledger.export
    assert export is not None
    bucket = (
        f"the bucket copy is {export.damage}" if export.damage
        else "the bucket copy has expired" if ledger.expired
        else "the bucket has it"
    )  # fmt: skip
    if bucket == "the bucket has it":
        try:
            site.holding(export)
        except Misconfigured as error:
            bucket = str(error)
    tape = (
        "no tape has it" if not ledger.archives
        else "tape has it, and no archive target is configured" if site.archive is None
        else "the archive has it"
    )  # fmt: skip
    return f"{bucket}; {tape}"


def read_manifest(search: Search, export: Export) -> Manifest:
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


def contents(site: Site, ledger: Ledger) -> Manifest:
    """Read the manifest of an event's bundle from the first copy that has it.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: none has it.
    """
    return read_manifest(*search_copies(site, ledger, None))


def cat(site: Site, ref: Ref, name: str, *, source: Where | None = None) -> Iterator[bytes]:
    """Read one image, by its name on the bench or in the bundle, with one ranged read.

    An image of up to 16 MiB is compared with its SHA-256 before any of it is handed out, and read from another copy
    where it is other. Of larger ones the last byte is followed by `Damaged` if what came was wrong.

    Raises:
        NotFound: no such event, copy or image; similar names are told.
        Unavailable: no copy can be read now. Damaged: no copy is good.
    """
    search, export = search_copies(site, site.catalog.ledger(ref), source)
    return _image(search, named(read_manifest(search, export), name))


def image(site: Site, ledger: Ledger, member: Member, *, doubted: bool = False) -> Iterator[bytes]:
    """Read one image that the manifest tells of, as `cat` does; a doubted one is compared first, however large it is.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: no copy is good.
    """
    search, _ = search_copies(site, ledger, None)
    if doubted and member.size > HELD:
        search.copies = [_right(search, member)]
    return _image(search, member)


def take(copies: Sequence[Copy], member: Member) -> Iterator[bytes]:
    """Read one image that the manifest tells of from these copies, as `cat` does.

    Raises:
        Unavailable: none can be read now. Damaged: none is good.
    """
    return _image(Search([*copies]), member)


def part(site: Site, ledger: Ledger, *, start: int, length: int) -> Iterator[bytes]:
    """Read a part of an event's bundle, uncompared, from the first copy that has it; another goes on where one breaks.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: all are shorter.
    """
    search, export = search_copies(site, ledger, None)
    return _pieces(search, export.key, start=start, length=length)


def whole(site: Site, ledger: Ledger) -> Iterator[bytes]:
    """Read an event's whole bundle; its last byte is followed by `Damaged` if what came was wrong.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: none is good.
    """
    search, export = search_copies(site, ledger, None)
    return _proven(search, export.key, start=0, length=export.size, sha256=export.sha256)


def there(site: Site, ledger: Ledger) -> list[Where]:
    """Say where copies of an event are that can be asked, the best first.

    Raises:
        NotFound: there is none, and why.
    """
    search, _ = search_copies(site, ledger, None)
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


def _image(search: Search, member: Member) -> Iterator[bytes]:
    if member.size <= HELD:
        return iter((_whole(search, member),))
    return _proven(search, shown(home(member)), start=member.offset, length=member.size, sha256=member.sha256)


def _whole(search: Search, member: Member) -> bytes:
    """Read an image that is compared before it is handed out."""

    def read(copy: Copy) -> bytes:
        content = b"".join(copy.open(member.offset, member.size))
        _compare(member, len(content), hashlib.sha256(content).hexdigest())
        return content

    return _tried(search, member, read)


def _right(search: Search, member: Member) -> Copy:
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


def _tried(search: Search, member: Member, read: Callable[[Copy], T]) -> T:
    """Read an image from one copy after the other, until that goes well."""
    for copy in search.copies:
        try:
            return read(copy)
        except PlatewayError as error:
            search.wrong(copy, error)
    raise search.failure(shown(home(member)))


def _pieces(search: Search, what: str, *, start: int, length: int) -> Iterator[bytes]:
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


def _proven(search: Search, what: str, *, start: int, length: int, sha256: str) -> Iterator[bytes]:
    """Hand out a part of the bundle as it comes, and say at its end if it was wrong."""
    digest = hashlib.sha256()
    for piece in _pieces(search, what, start=start, length=length):
        digest.update(piece)
        yield piece
    if (found := digest.hexdigest()) != sha256:
        raise Damaged(f"{what}: the {length:,} bytes that were handed out are wrong: sha256 {found}, {sha256} expected")
