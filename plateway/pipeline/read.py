"""Read an event's bytes from whichever copy has them: one image, a part, or the whole bundle.

A copy is one complete bundle of an event: an object in the bucket, or a member of a tar on the archive. All copies of
an event are the same bytes, so the offsets in the manifest hold in each of them, and a read that fails in one copy can
continue in another.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
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
from plateway.store import Store

if TYPE_CHECKING:
    from plateway.archive import Archive

Where = Literal["bucket", "archive"]
T = TypeVar("T")

HELD = 16 << 20  # bytes of the largest image whose checksum is compared before any of it is returned
EVIDENCE = {"checksum": 0, "size": 1, "name": 2}  # the strongest first


@dataclass(frozen=True)
class Copy:
    """One copy of the bundle of an event."""

    where: Where
    place: str  # key in the bucket, or path of the archive
    size: int | None  # of the bundle, in bytes
    read: Callable[[int, int | None], Iterator[bytes]]
    first: Callable[[], int] = lambda: 0  # offset of the bundle in its archive
    sign: Callable[[timedelta], str] | None = None  # makes an expiring link; None: not in the bucket

    def open(self, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice of the bundle: from `start` (from the end if negative), at most `length` bytes.

        Raises:
            Unavailable, Denied, NotFound: it cannot be read (now).
        """
        return self.read(start, length)

    def __str__(self) -> str:
        return f"{self.where} {self.place}"


def find_copies(site: Site, ledger: Ledger) -> list[Copy]:
    """List the copies of an event's bundle, the best first: the bucket, then archives by their evidence.

    Excluded are a bucket copy that is damaged or expired, or in a bucket that the settings do not name, and all
    archives if no archive target is configured.
    """
    export = ledger.export
    if export is None:
        return []
    found = []
    if export.damage is None and not ledger.expired:
        with suppress(Misconfigured):
            found.append(_bucket_copy(site.reading(export).store, export))
    return [*found, *archived_copies(site, ledger)]


def archived_copies(site: Site, ledger: Ledger) -> list[Copy]:
    """List the copies on tape, best evidence first, damaged ones last; empty if no archive target is configured."""
    export, archive = ledger.export, site.archive
    if export is None or archive is None:
        return []

    def rank(one: ArchiveLocation) -> tuple[bool, int, datetime, str]:
        return one.damage is not None, EVIDENCE.get(one.evidence, 3), one.reported_at, one.path

    return [_archive_copy(archive, location, export) for location in sorted(ledger.archives, key=rank)]


def _bucket_copy(store: Store, export: Export) -> Copy:
    def read(start: int, length: int | None) -> Iterator[bytes]:
        return store.open(export.key, start=start, length=length)

    def sign(expires: timedelta) -> str:
        return store.sign(export.key, expires=expires)

    return Copy("bucket", export.key, export.size, read, sign=sign)


def _archive_copy(archive: Archive, location: ArchiveLocation, export: Export) -> Copy:
    @cache
    def first() -> int:
        return location.offset if location.offset is not None else _find_offset(archive, location, export)

    def read(start: int, length: int | None) -> Iterator[bytes]:
        start = max(0, export.size + start) if start < 0 else min(start, export.size)
        left = export.size - start if length is None else min(length, export.size - start)
        return archive.open(location.path, start=first() + start, length=left) if left else iter(())

    return Copy("archive", location.path, export.size, read, first)


def _find_offset(archive: Archive, location: ArchiveLocation, export: Export) -> int:
    """Find the offset of a bundle in an archive, from the headers of its members.

    Raises:
        NotFound: no member has the bundle's name and size.
    """
    names = {name.removeprefix("./") for name in (location.member, keys.tar_name(export.key)) if name}
    for member in archive.members(location.path):
        if member.name.removeprefix("./") in names and member.size == export.size:
            return member.readable().offset
    raise NotFound(f"{location.path}: no member {' or '.join(sorted(names))} of {export.size:,} bytes")


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass
class CopySearch:
    """One read over several copies: the copies to try, and the errors of those that were tried."""

    copies: list[Copy]
    troubles: list[str] = field(default_factory=list)
    passing: bool = False  # an error is transient: a retry may succeed

    def wrong(self, copy: Copy, error: PlatewayError) -> None:
        """Record the error of a copy."""
        self.troubles.append(f"{copy}: {error}")
        self.passing |= isinstance(error, Transient)

    def failure(self, what: str) -> PlatewayError:
        """Return the error to raise after all copies failed."""
        kind = Unavailable if self.passing else Damaged
        return kind(f"{what}: {'; '.join(self.troubles)}")


def search_copies(site: Site, ledger: Ledger, source: Where | None) -> tuple[CopySearch, Export]:
    """Find the copies of an event that can be read.

    Raises:
        NotFound: there is none; the message has the reason.
    """
    export = ledger.export
    if export is None:
        raise NotFound(f"{ledger.ref} is not exported yet")
    found = [copy for copy in find_copies(site, ledger) if source in {None, copy.where}]
    if not found:
        raise NotFound(
            f"{ledger.ref}: no copy to read{f' in the {source}' if source else ''}: {_explain_no_copy(site, ledger)}"
        )
    return CopySearch(found), export


def _explain_no_copy(site: Site, ledger: Ledger) -> str:
    export = ledger.export
    assert export is not None
    bucket = (
        f"the bucket copy is {export.damage}" if export.damage
        else "the bucket copy has expired" if ledger.expired
        else "the bucket has it"
    )  # fmt: skip
    if bucket == "the bucket has it":
        try:
            site.reading(export)
        except Misconfigured as error:
            bucket = str(error)
    tape = (
        "no tape has it" if not ledger.archives
        else "tape has it, and no archive target is configured" if site.archive is None
        else "the archive has it"
    )  # fmt: skip
    return f"{bucket}; {tape}"


def read_manifest(search: CopySearch, export: Export) -> Manifest:
    """Read the manifest from the first copy that has the recorded one, and move the copies before it to the end.

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


class BundleReader:
    """One event's bundle: its ledger, its export and its copies, each looked up once, when the reader is made.

    Every read tries the copies in order, the best first. A reader has no state beyond that: threads can share it.

    Raises:
        NotFound: there is no copy to read; the message has the reason.
    """

    def __init__(self, site: Site, ledger: Ledger, *, source: Where | None = None) -> None:
        search, self.export = search_copies(site, ledger, source)
        self.ledger, self.copies = ledger, tuple(search.copies)

    @property
    def in_bucket(self) -> bool:
        """Whether the first copy is the one in the bucket."""
        return self.copies[0].where == "bucket"

    def sign(self, expires: timedelta) -> str | None:
        """Return an expiring link to the bundle in the bucket, or None if the first copy is on tape.

        Raises:
            Refused: the store makes no links.
        """
        sign = self.copies[0].sign
        return sign(expires) if sign else None

    def read_manifest(self) -> Manifest:
        """Read the manifest from the first copy that has the recorded one.

        Raises:
            Unavailable: no copy can be read now. Damaged: none has it.
        """
        return read_manifest(CopySearch([*self.copies]), self.export)

    def image(self, member: Member, *, verify_first: bool = False) -> Iterator[bytes]:
        """Read one image of the manifest, as `cat` does.

        With `verify_first` the checksum is compared before any byte is returned, whatever the image's size.

        Raises:
            Unavailable: no copy can be read now. Damaged: no copy is good.
        """
        search = CopySearch([*self.copies])
        if verify_first and member.size > HELD:
            search.copies = [_find_intact(search, member)]
        return _read_image(search, member)

    def part(self, *, start: int, length: int) -> Iterator[bytes]:
        """Read a part of the bundle without comparing checksums; another copy continues where one fails.

        Raises:
            Unavailable: no copy can be read now. Damaged: all are shorter.
        """
        return _read_pieces(CopySearch([*self.copies]), self.export.key, start=start, length=length)

    def whole(self) -> Iterator[bytes]:
        """Read the whole bundle; raises `Damaged` after its last byte if the checksum differs.

        Raises:
            Unavailable: no copy can be read now. Damaged: none is good.
        """
        export = self.export
        return _read_verified(CopySearch([*self.copies]), export.key, start=0, length=export.size, sha256=export.sha256)


def contents(site: Site, ledger: Ledger) -> Manifest:
    """Read the manifest of an event's bundle from the first copy that has it.

    Raises:
        NotFound: there is no copy to read. Unavailable: none can be read now. Damaged: none has it.
    """
    return BundleReader(site, ledger).read_manifest()


def cat(site: Site, ref: Ref, name: str, *, source: Where | None = None) -> Iterator[bytes]:
    """Read one image, by its name on the bench or in the bundle, with one ranged read.

    The checksum of an image of up to 16 MiB is compared before any of it is returned; if it differs, another copy is
    read. After the last byte of a larger image, `Damaged` is raised if its checksum differs.

    Raises:
        NotFound: no such event, copy or image; the message lists similar names.
        Unavailable: no copy can be read now. Damaged: no copy is good.
    """
    search, export = search_copies(site, site.catalog.ledger(ref), source)
    return _read_image(search, find_member(read_manifest(search, export), name))


def read_member(copies: Sequence[Copy], member: Member) -> Iterator[bytes]:
    """Read one image of the manifest from these copies, as `cat` does.

    Raises:
        Unavailable: none can be read now. Damaged: none is good.
    """
    return _read_image(CopySearch([*copies]), member)


def original_name(member: Member) -> str:
    """Return the name of a file on the bench."""
    return member.source or member.name


def find_member(manifest: Manifest, name: str) -> Member:
    """Find a file by its name on the bench, or else by its name in the bundle.

    Raises:
        NotFound: there is none; the message lists similar names.
    """
    wanted = name.removeprefix("./")
    for names in (original_name, lambda member: member.name):
        for member in manifest.members:
            if names(member) == wanted:
                return member
    there = [original_name(member) for member in manifest.members]
    last = wanted.rpartition("/")[2]
    near = [one for one in there if one.rpartition("/")[2] == last] or difflib.get_close_matches(wanted, there[:5000])
    told = f"similar: {', '.join(map(shown, near[:5]))}" if near else f"{len(there)} others are"
    raise NotFound(f"{shown(name)} is not in the bundle; {told}")


def _read_image(search: CopySearch, member: Member) -> Iterator[bytes]:
    if member.size <= HELD:
        return iter((_read_whole(search, member),))
    return _read_verified(
        search, shown(original_name(member)), start=member.offset, length=member.size, sha256=member.sha256
    )


def _read_whole(search: CopySearch, member: Member) -> bytes:
    """Read an image and compare its checksum before it is returned."""

    def read(copy: Copy) -> bytes:
        content = b"".join(copy.open(member.offset, member.size))
        _compare_checksums(member, len(content), hashlib.sha256(content).hexdigest())
        return content

    return _try_copies(search, member, read)


def _find_intact(search: CopySearch, member: Member) -> Copy:
    """Find a copy whose bytes of an image have the recorded checksum, by reading them."""

    def read(copy: Copy) -> Copy:
        size, digest = 0, hashlib.sha256()
        for piece in copy.open(member.offset, member.size):
            size += len(piece)
            digest.update(piece)
        _compare_checksums(member, size, digest.hexdigest())
        return copy

    return _try_copies(search, member, read)


def _compare_checksums(member: Member, size: int, sha256: str) -> None:
    if sha256 != member.sha256:
        raise Damaged(f"{size} of {member.size} bytes with sha256 {sha256}, {member.sha256} expected")


def _try_copies(search: CopySearch, member: Member, read: Callable[[Copy], T]) -> T:
    """Read an image from one copy after the other until one read succeeds."""
    for copy in search.copies:
        try:
            return read(copy)
        except PlatewayError as error:
            search.wrong(copy, error)
    raise search.failure(shown(original_name(member)))


def _read_pieces(search: CopySearch, what: str, *, start: int, length: int) -> Iterator[bytes]:
    """Yield a part of the bundle as it is read; where one copy fails, another continues."""
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


def _read_verified(search: CopySearch, what: str, *, start: int, length: int, sha256: str) -> Iterator[bytes]:
    """Yield a part of the bundle as it is read; raise `Damaged` at its end if the checksum differs."""
    digest = hashlib.sha256()
    for piece in _read_pieces(search, what, start=start, length=length):
        digest.update(piece)
        yield piece
    if (found := digest.hexdigest()) != sha256:
        raise Damaged(f"{what}: the {length:,} bytes that were handed out are wrong: sha256 {found}, {sha256} expected")
