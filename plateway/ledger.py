"""What the catalogue takes and gives: events at a revision, what is known of them, and where they stand."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from plateway.errors import Damage, Rejected
from plateway.events import ImagingEvent, Ref

if TYPE_CHECKING:
    from plateway.records import ArchiveLocation, Event, Export, Lease, LegalHold, Purge, Quarantine, Setback

DAY = timedelta(days=1)
ON_WORD = "on the archive's word: its copy on tape was never read by us"
UNREAD = "purged on a HEAD request, without reading the copy (PLATEWAY_PURGE_PROOF=head)"
STATES = ("waiting", "ready", "exporting", "exported", "archived", "purged", "quarantined", "lost", "changed")


@dataclass(frozen=True)
class Seen:
    """One event file that was read: what it announces, or why it cannot be accepted."""

    file: str
    size: int
    mtime_ns: int
    announced_at: datetime
    content: bytes
    event: ImagingEvent | None
    reason: str | None = None


class State(NamedTuple):
    """Where an event stands, and why."""

    name: str  # one of `STATES`
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ledger:
    """Everything the catalogue knows of one event."""

    event: Event
    export: Export | None = None
    archives: tuple[ArchiveLocation, ...] = ()
    purges: tuple[Purge, ...] = ()  # of all places, oldest first
    quarantine: Quarantine | None = None  # the active one
    setbacks: tuple[Setback, ...] = ()
    lease: Lease | None = None  # the last one; it may have expired
    legal_holds: tuple[LegalHold, ...] = ()  # that were not released; one may be past its date

    @property
    def ref(self) -> Ref:
        """Which event, at which revision."""
        return Ref(self.event.id, self.event.revision)

    @property
    def conflict(self) -> bool:
        """Was the id announced, or were its images found, with other content before?"""
        return self.event.revision > 1

    @property
    def raw_purged(self) -> bool:
        """Are the raw images aside or gone?"""
        purge = self.purge("raw")
        return purge is not None and purge.trashed_at is not None

    @property
    def expired(self) -> bool:
        """Whether the bucket copy was, or is being, deleted because tape has it; then it is not missing."""
        purge = self.purge("bucket")
        return purge is not None and purge.trashed_at is not None

    def purge(self, place: str) -> Purge | None:
        """Find the purge of a place that was not taken back: going or gone."""
        return next((p for p in reversed(self.purges) if p.place == place and p.restored_at is None), None)

    def setback(self, verb: str) -> Setback | None:
        """Find what holds a verb back."""
        return next((one for one in self.setbacks if one.verb == verb), None)

    def held(self, now: datetime) -> bool:
        """Whether a worker holds the lease."""
        return self.lease is not None and self.lease.expires_at > now

    def state(self, now: datetime) -> State:
        """Derive where the event stands. ``Catalog.counts`` computes the same in SQL."""
        conflict = (f"conflict: revision {self.event.revision} of this id",) if self.conflict else ()
        name, reasons = self._stands(now)
        return State(name, (*reasons, *(_spoken(one, now) for one in self.setbacks), *conflict))

    def _stands(self, now: datetime) -> tuple[str, tuple[str, ...]]:
        if self.export and self.export.damage:
            return str(self.export.damage_kind), (self.export.damage,)
        if self.expired and (harm := self._tape_harm()):
            return harm
        if self.quarantine:
            return "quarantined", (self.quarantine.reason,)
        if self.raw_purged:
            return "purged", self._weaknesses()
        if self.export:
            unverified = ("not verified yet",) if self.export.evidence is None else ()
            return "archived" if self.archives else "exported", (*unverified, *self._weaknesses())
        if self.held(now):
            return "exporting", ()
        if self.event.sealed_at is None:
            return "waiting", (_lacks(self.event),)
        return ("waiting" if self.setback("export") else "ready"), ()

    @property
    def on_word(self) -> bool:
        """Is the only copy one that the archive reports and we have never read?"""
        return self.expired and not any(one.read_at for one in self.archives)

    def _weaknesses(self) -> tuple[str, ...]:
        """List what is weaker than a copy that we read."""
        raw = self.purge("raw")
        unread = raw is not None and raw.gone_at is not None and raw.proof.get("method") == "head"
        return (*[ON_WORD] * self.on_word, *[UNREAD] * unread)

    def _tape_harm(self) -> tuple[str, tuple[str, ...]] | None:
        """Return what is wrong with the copies on tape where there are no others; None while one of them is sound."""
        if any(one.damage is None for one in self.archives):
            return None
        kinds = {one.damage_kind for one in self.archives}
        kind = Damage.CHANGED if Damage.CHANGED in kinds else Damage.LOST
        reasons = tuple(f"{one.path}: {one.damage}" for one in self.archives)
        return str(kind), reasons or ("the bucket copy has expired, and no archive has it",)


class Account(NamedTuple):
    """One event and its export in plain values, for comparison; without an export those are None."""

    key: str
    ref: Ref
    system: str
    path: str  # of the images, relative to the system's directory
    sealed: bool
    export_bucket: str | None
    size: int | None
    etag: str | None  # as the endpoint showed it when it was last looked at, else as it must be
    sha256: str | None
    uploaded_at: datetime | None
    evidence: str | None
    evidence_at: datetime | None
    damage: str | None
    damage_kind: str | None  # `outcome.Damage`
    archives: int  # in how many archives tape has it
    raw: str  # here | aside | gone
    expired: bool
    held_until: datetime | None  # end of the lease; may be past
    export_endpoint: str | None = None  # of its bucket; None: not noted in its time


class Settled(NamedTuple):
    """What became of archive entries that were tried."""

    archived: tuple[Ref, ...]  # events that are on tape now and were not before
    settled: int  # entries that found their export
    parked: int  # entries that wait, those included that were not tried


@dataclass(frozen=True)
class Day:
    """One day (UTC) of the site."""

    day: date
    events: int  # first seen on it
    exports: int  # sent on it, the last time
    archived: int  # named by tape for the first time
    waiting: int  # at its end, or now


@dataclass(frozen=True)
class SystemFigures:
    """How many events of a system stand where. One event may be exported, archived and purged."""

    system: str
    events: int = 0
    exported: int = 0  # and not damaged
    archived: int = 0
    purged: int = 0  # raw images aside or gone
    waiting: int = 0  # not exported yet; without those in quarantine
    quarantined: int = 0  # announcements, too
    lost: int = 0  # or changed
    bytes_last_day: int = 0  # of exports of the last 24 hours
    oldest_waiting: datetime | None = None  # when it was first seen
    safe_to_purge: int = 0  # bytes of verified exports whose raw images are here
    safe_events: int = 0  # how many those are


class Cursor(NamedTuple):
    """Where a listing of events goes on: after this one. It stays right while events come."""

    timestamp: datetime
    id: UUID
    revision: int

    def __str__(self) -> str:
        told = json.dumps([self.timestamp.isoformat(), self.id.hex, self.revision], separators=(",", ":"))
        return base64.urlsafe_b64encode(told.encode()).decode().rstrip("=")

    @classmethod
    def after(cls, ledger: Ledger) -> Cursor:
        """Return the position after this event."""
        return cls(ledger.event.timestamp, *ledger.ref)

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read what ``str`` gave.

        Raises:
            Rejected: it is no cursor.
        """
        try:
            told = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True))
            timestamp, id_, revision = told
            moment = datetime.fromisoformat(timestamp)
            cursor = cls(moment.astimezone(UTC), UUID(hex=id_), revision)
            good = moment.utcoffset() is not None and type(revision) is int and 0 < revision < 1 << 31
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            good = False
        if not good:
            raise Rejected("Invalid cursor")
        return cursor


@dataclass(frozen=True)
class ArchiveRow:
    """One archive on tape, and how many events it has."""

    id: UUID  # follows from the path
    path: str
    kind: str  # of its events; of the first one, should they differ
    experiment: str  # likewise
    created_at: datetime  # when tape first reported it
    members: int


@dataclass(frozen=True)
class TapeMember:
    """One event in an archive."""

    ref: Ref
    member: str  # name inside the archive
    timestamp: datetime
    size: int  # of its bundle, in bytes
    sha256: str  # of its bundle


@dataclass(frozen=True)
class DailyRow:
    """What became of the events whose images were taken on one day (UTC)."""

    date: date
    events: int
    exports: int
    archives: int  # events that are on tape


@dataclass(frozen=True)
class SystemOverview:
    """One system's events at a glance."""

    system: str
    states: Mapping[str, int] = field(default_factory=dict)  # how many events stand where, without zeros
    bytes_exported: int = 0  # of bundles that reached the bucket, those that went from it since included
    oldest_waiting: datetime | None = None  # since when the first event waits that is not exported
    oldest_unverified: datetime | None = None  # when the first upload without evidence arrived
    last_success: datetime | None = None  # when an export was last verified
    quarantined: int = 0  # announcements and events that a person has to look at

    @property
    def events(self) -> int:
        """How many there are."""
        return sum(self.states.values())


@dataclass(frozen=True)
class Overview:
    """All systems at a glance."""

    systems: tuple[SystemOverview, ...]  # by name
    days: tuple[tuple[date, str, int], ...]  # day (UTC) of the images, system, events; oldest first, none with 0


def _lacks(event: Event) -> str:
    if event.present is None:
        return "no images seen yet"
    if event.present != event.image_count:
        return f"{event.present} of {event.image_count} images present"
    return "images still changing"


def _spoken(setback: Setback, now: datetime) -> str:
    same_day = setback.next_at.date() == now.date()
    after = "due" if setback.next_at <= now else f"next {setback.next_at:{'%H:%M' if same_day else '%Y-%m-%d %H:%M'}}"
    return f"{setback.verb} failed (attempt {setback.attempt}, {after}): {setback.reason}"
