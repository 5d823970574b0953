"""Receive archive manifests from every source and record their entries in the catalogue."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

from plateway import archive, keys
from plateway.archive import Archive, Delivery, Inbox, Notice, Poll, TarMember
from plateway.checksums import sha256_of
from plateway.errors import Damage, Damaged, NotFound, PlatewayError, Rejected, Transient, Unsettled
from plateway.events import Ref
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.places import check_archive
from plateway.pipeline.proof import record_tape_damage
from plateway.records import (
    ArchiveEntry,
    ArchiveLocation,
    ArchiveManifest,
    Export,
    ManifestSource,
)

VERB = "archive"
SETTLE = timedelta(minutes=1)  # a file that cannot be read yet and is younger may still be being written
KEPT = 1 << 20  # bytes that are kept of a manifest that is too large to be one
TOLD = 20  # refused entries that are listed one by one


def collect(
    site: Site, *, inbox: Inbox | None = None, poll: Poll | None = None, now: datetime | None = None
) -> list[Outcome]:
    """Receive new manifests from the given sources; one that fails stops no other.

    A file is moved, and a server's answer counted as seen, only after the manifest is durable. Redelivery is harmless.
    """
    outcomes: list[Outcome] = []
    if inbox is not None:
        outcomes += _guarded(inbox.name, _delivered(site, inbox, now))
    if poll is not None:
        outcomes += _guarded(poll.name, _polled(site, poll, now))
    return outcomes


def receive(site: Site, content: bytes, *, source: str, name: str, now: datetime | None = None) -> Outcome:
    """Make one manifest durable: ``received``, ``known``, or ``quarantined`` with the reason when it cannot be used.

    Invalid entries are listed in the reasons; the others are received.

    Raises:
        Transient: the catalogue cannot be written right now; nothing was recorded.
    """
    now = now or site.catalog.now()
    try:
        notice = archive.parse(content)
    except Rejected as error:
        return _quarantined(site, content, source=source, name=name, reason=str(error), now=now)
    reasons = _some(notice.refused)
    manifest = ArchiveManifest(
        digest=notice.digest,
        door=source,
        name=name,
        content=content,
        received_at=now,
        last_at=now,
        job_id=notice.job_id,
        date=notice.date,
        accepted=True,
        reason="; ".join(reasons) or None,
    )
    new = site.catalog.receive(manifest, _entries(notice, now), now=now)
    return log_outcome(
        Outcome(None, "", VERB, Result.RECEIVED if new else Result.KNOWN, key=name, size=len(content), reasons=reasons)
    )


def settle(site: Site, *, now: datetime | None = None) -> list[Outcome]:
    """Match what waits with exports: those that tape has now are ``archived``, the others stay ``parked``."""
    settled = site.catalog.settle(now=now or site.catalog.now())
    outcomes = []
    for ref in settled.archived:
        event = site.catalog.get(ref)
        outcomes.append(log_outcome(Outcome(ref, event.system, VERB, Result.ARCHIVED, key=event.key)))
    if settled.parked:
        parked = (f"{settled.parked:,} entries that fit no export yet",)
        outcomes.append(Outcome(None, "", VERB, Result.PARKED, reasons=parked))
    return outcomes


def _quarantined(site: Site, content: bytes, *, source: str, name: str, reason: str, now: datetime) -> Outcome:
    """Keep a manifest that cannot be used, with the reason; of one that is far too large, the beginning."""
    manifest = ArchiveManifest(
        digest=hashlib.sha256(content).hexdigest(),
        door=source,
        name=name,
        content=content if len(content) <= archive.CAP else content[:KEPT],
        received_at=now,
        last_at=now,
        accepted=False,
        reason=reason,
    )
    site.catalog.receive(manifest, [], now=now)
    return log_outcome(Outcome(None, "", VERB, Result.QUARANTINED, key=name, size=len(content), reasons=(reason,)))


def _entries(notice: Notice, now: datetime) -> list[ArchiveEntry]:
    return [
        ArchiveEntry(
            manifest=notice.digest,
            path=entry.path,
            key=entry.key,
            job_id=notice.job_id,
            reported_at=now,
            member=entry.member,
            size=entry.size,
            checksum=entry.sha256,
            offset=entry.offset,
        )
        for entry in notice.entries
    ]


def _some(reasons: tuple[str, ...]) -> tuple[str, ...]:
    more = len(reasons) - TOLD
    return reasons if more <= 0 else (*reasons[:TOLD], f"and {more:,} more")


# -------------------------------------------------------------------------------------------------------------- sources


def _guarded(name: str, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Turn the failure of a source into an outcome, after those before it."""
    try:
        yield from outcomes
    except PlatewayError as error:
        yield _failure(name, error)


def _failure(name: str, error: PlatewayError) -> Outcome:
    result = Result.LATER if isinstance(error, Transient) else Result.FAILED
    return log_outcome(Outcome(None, "", VERB, result, key=name, reasons=(str(error),)))


def _delivered(site: Site, inbox: Inbox, now: datetime | None) -> Iterator[Outcome]:
    """Receive the files of an inbox; one that cannot be read or moved stays for the next time."""
    for delivery in inbox.deliveries():
        try:
            outcome = _taken(site, inbox, delivery, now or site.catalog.now())
        except Unsettled:  # gone, or still being written
            continue
        except PlatewayError as error:
            outcome = _failure(delivery.name, error)
        if outcome is not None:
            yield outcome


def _taken(site: Site, inbox: Inbox, delivery: Delivery, now: datetime) -> Outcome | None:
    """Receive one file and move it; None when it may still be being written."""
    if delivery.fault is not None:
        inbox.refuse(delivery.name)
        return log_outcome(Outcome(None, "", VERB, Result.QUARANTINED, key=delivery.name, reasons=(delivery.fault,)))
    content = inbox.read(delivery)
    if delivery.modified is not None and abs(now - delivery.modified) < SETTLE and not _readable(content):
        return None
    outcome = receive(site, content, source="inbox", name=delivery.name, now=now)
    if outcome.result == Result.QUARANTINED:
        inbox.refuse(delivery.name)
    else:
        inbox.done(delivery.name)
    return outcome


def _readable(content: bytes) -> bool:
    try:
        archive.parse(content)
    except Rejected:
        return False
    return True


def _polled(site: Site, poll: Poll, now: datetime | None) -> Iterator[Outcome]:
    """Receive what a server lists. The state of the poll is recorded only after all of it is durable."""
    now = now or site.catalog.now()
    last = site.catalog.manifest_source(poll.name)
    known = {"etag": last.etag, "modified": last.modified} if last is not None else {}
    for page in poll.pages(**known):
        for name, content in page.manifests:
            yield receive(site, content, source="http", name=name, now=now)
        if page.last:
            site.catalog.record_manifest_source(
                ManifestSource(name=poll.name, etag=page.etag, modified=page.modified, seen_at=now)
            )


# -------------------------------------------------------------------------------------------------------- reading back


def read_archive(site: Site, *, budget: int) -> list[Outcome]:
    """Read members on the archive and compare their SHA-256, within a budget of bytes a day.

    Copies that are the only ones come first, the longest unread before the others, for ever; then those that no
    checksum speaks for. Evidence that agrees becomes ``checksum``; what differs is damage of an only copy, or else no
    copy at all. One member larger than the whole budget gets its turn when nothing else is to be read. An archive that
    is not there counts only where the place proves to be the archive.
    """
    if site.archive is None or budget <= 0:
        return []
    try:
        check_archive(site, fresh=True)
    except PlatewayError as error:
        return [_failure(site.archive.name, error)]
    reading = _ArchiveReader(site, site.archive)
    outcomes: list[Outcome] = []
    waiting: list[tuple[ArchiveLocation, Export]] = []
    for location, export in site.catalog.only_copies(budget=budget, now=site.catalog.now()):
        if not reading.stopped:
            outcomes += reading.read(location, export)
    for location, export in site.catalog.unproven():
        if reading.spent + export.size > budget:
            waiting.append((location, export))
        elif not reading.stopped:
            outcomes += reading.read(location, export)
    if waiting and not reading.spent and waiting[0][1].size > budget and not reading.stopped:
        outcomes += reading.read(*waiting[0])
    return [*outcomes, *reading.close()]


class _ArchiveReader:
    """One pass over members of the archive."""

    def __init__(self, site: Site, place: Archive) -> None:
        self._site, self._place = site, place
        self._missing: list[tuple[ArchiveLocation, Export]] = []
        self._present = place.durable  # it proved to be the archive; or else, was any that should be there found?
        self._index: tuple[str, list[TarMember], str] = "", [], ""  # path, members, what is wrong with it
        self.spent = 0  # bytes read
        self.stopped = False

    def read(self, location: ArchiveLocation, export: Export) -> list[Outcome]:
        """Read one member and note what was found."""
        started = time.monotonic()
        try:
            if self._place.size(location.path) is None:
                self._missing.append((location, export))
                return []
            self._present = True
            self._note(location, export, self._good(location, export))
        except Damaged as error:
            return [self._taken_back(location, export, error, seconds=time.monotonic() - started)]
        except PlatewayError as error:
            self.stopped = isinstance(error, Transient | NotFound)  # all of the archive, not this member
            return [_failure(location.path, error)]
        return [self._told(location, export, Result.VERIFIED, f"read in {location.path}", time.monotonic() - started)]

    def _note(self, location: ArchiveLocation, export: Export, member: TarMember) -> None:
        seen = self._place.stat(location.path)
        self._site.catalog.record_location(
            _ref(location),
            location.path,
            member=member.name,
            offset=member.offset,
            size=export.size,
            checksum=export.sha256,
            read_at=self._site.catalog.now(),
            seen_size=seen and seen.size,
            seen_modified=seen and seen.modified,
        )

    def close(self) -> list[Outcome]:
        """Judge the archives that were not there: only where others are there is their absence a fact."""
        if self._present:
            return [self._taken_back(*one, _no_archive(one[0].path), seconds=0.0) for one in self._missing]
        if not self._missing:
            return []
        paths = {location.path for location, _ in self._missing}
        why = f"none of {len(paths)} archives is there, like {min(paths)}: is this the archive, and is it mounted?"
        return [log_outcome(Outcome(None, "", VERB, Result.LATER, key=self._place.name, reasons=(why,)))]

    def _good(self, location: ArchiveLocation, export: Export) -> TarMember:
        """Find the member with the exported bytes.

        Raises:
            Damaged: there is none; the message names what is there instead.
        """
        tried: dict[int, str] = {}
        for member in self._candidates(location, export):
            if member.offset not in tried:
                self.spent += export.size
                found = sha256_of(self._place.open(location.path, start=member.offset, length=export.size))
                if found == export.sha256:
                    return member
                tried[member.offset] = found
        if tried:
            raise Damaged(f"{location.path}: sha256 {next(iter(tried.values()))}, {export.sha256} was sent")
        fault = self._index[2]
        raise Damaged(fault or f"{location.path}: no member {location.member} of {export.size:,} bytes")

    def _candidates(self, location: ArchiveLocation, export: Export) -> Iterator[TarMember]:
        """Yield where the member may be: by the manifest, then by the tar's headers."""
        if location.offset is not None:
            yield TarMember(location.member, export.size, location.offset)
        if self._index[0] != location.path:
            self._index = location.path, *self._members(location.path)
        names = {location.member.removeprefix("./"), keys.tar_name(export.key)}
        for member in self._index[1]:
            if member.size == export.size and member.name.removeprefix("./") in names:
                yield member.readable()

    def _members(self, path: str) -> tuple[list[TarMember], str]:
        found: list[TarMember] = []
        try:
            found.extend(self._place.members(path))
        except Damaged as error:
            return found, f"{path}: {error}"
        return found, ""

    def _taken_back(self, location: ArchiveLocation, export: Export, error: Damaged, *, seconds: float) -> Outcome:
        ledger = self._site.catalog.ledger(_ref(location))
        record_tape_damage(self._site, ledger, location.path, str(error), error.damage)
        return self._told(location, export, Result.DAMAGED, str(error), seconds)

    def _told(self, location: ArchiveLocation, export: Export, result: Result, reason: str, seconds: float) -> Outcome:
        ref = _ref(location)
        system = self._site.catalog.get(ref).system
        outcome = Outcome(
            ref, system, VERB, result, key=export.key, size=export.size, reasons=(reason,), seconds=seconds
        )
        return log_outcome(outcome)


def _no_archive(path: str) -> Damaged:
    return Damaged(f"{path}: no such archive", damage=Damage.LOST)


def _ref(location: ArchiveLocation) -> Ref:
    return Ref(location.event_id, location.revision)
