"""Wire models: what ``--json`` and the HTTP API report. No rows and no rules."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel


class EventStatus(BaseModel):
    """One event in a listing."""

    id: UUID
    revision: int
    system: str
    kind: str
    experiment: str
    plate: int | None
    timestamp: datetime
    state: str
    reasons: list[str]
    conflict: bool
    bucket: str | None
    endpoint: str | None  # that the bucket is behind; None: not exported, or not noted in its time
    key: str
    size: int | None  # bytes of the bundle
    sha256: str | None  # of the bundle
    evidence: str | None  # etag | read-back | …
    announced_at: datetime
    verified_at: datetime | None
    seconds: float | None  # from the announcement to the evidence
    raw_present: bool | None  # None: the instrument's disk did not answer


class Status(BaseModel):
    """All events, and how many are in which state."""

    events: list[EventStatus]
    counts: dict[str, int]
    quarantine: int


class ManifestFile(BaseModel):
    """One member of a bundle."""

    name: str
    size: int
    sha256: str
    offset: int  # of its first byte inside the bundle
    key: str | None = None  # of its object, where it is one of its own


class Moment(BaseModel):
    """Something that happened to an event, or what it waits for."""

    what: str  # announced seen complete staged exported verified read back damaged archived purged … · waits
    at: datetime | None  # None: it has not happened yet
    where: str | None  # key in the bucket, path of the archive, place that was purged
    why: str | None  # the evidence, or the reason
    actor: str | None = None  # of damage, refusals, failures and repairs: which worker or person


class EventDetail(EventStatus):
    """One event with its manifest, what happened to it, and its whole ledger: every row the catalogue has on it."""

    history: list[Moment]  # in order; what it waits for comes last
    manifest: list[ManifestFile] | None  # None: not exported, or the bucket cannot be asked (see manifest_error)
    manifest_error: str | None
    ledger: dict[str, Any]


class QuarantineEntry(BaseModel):
    """One announcement that could not be accepted."""

    id: int
    system: str
    name: str
    event_id: UUID | None
    reason: str
    first_seen: datetime
    last_seen: datetime
    size: int  # bytes kept of the announcement
    versions: int  # of the file so far; the first and the newest are kept
    released_at: datetime | None


class SystemReport(BaseModel):
    """One system in the daily report; counts are of all its events, but for ``bytes_last_day``."""

    system: str
    events: int
    exported: int
    archived: int
    purged: int
    waiting: int
    quarantined: int
    lost: int  # or changed: the object is not what was sent
    bytes_last_day: int  # of bundles that reached the bucket within the last 24 hours
    oldest_waiting: datetime | None  # since when it waits


class DayReport(BaseModel):
    """One day (UTC): what was announced, exported and archived, and what was waiting at its end."""

    day: date
    events: int
    exports: int
    archived: int
    waiting: int


class StuckEvent(BaseModel):
    """An event that has waited longer than its system allows."""

    id: UUID
    revision: int
    system: str
    state: str
    since: datetime
    reasons: list[str]


class DiskReport(BaseModel):
    """A disk that instruments write to, and when it will be full."""

    systems: list[str]  # that share it
    free: int | None  # bytes; None: the disk is not there
    rate: int  # bytes written in the last 24 hours
    seconds_left: float | None  # until it is full at that rate; None: unknown
    safe_to_purge: int  # bytes of raw images whose export is verified
    alert: bool  # it is not there, or will be full within a day
    text: str  # aretha: 14 h left, 310 GB safe to purge


class Alert(BaseModel):
    """Something that needs a person's attention."""

    about: list[str]  # ``disk <systems>``, or the stuck events: identifies an alert that was sent before
    text: str


class Report(BaseModel):
    """The daily report."""

    at: datetime
    systems: list[SystemReport]
    days: list[DayReport]  # the last 30, oldest first
    stuck: list[StuckEvent]
    disks: list[DiskReport]
    alerts: list[Alert]  # empty: all is well


class Exported(BaseModel):
    """One export, as in DLM's API."""

    ref_id: UUID
    experiment_id: str
    timestamp: datetime  # of the images
    type: str  # stitch | video | overview
    url: str | None  # to fetch the bundle without a token, for a while; None: the store makes no links
    uploaded_at: datetime


class ExportedV1(BaseModel):
    """One export, as in the API of DLM v1."""

    id: UUID  # follows from its key
    ref_id: UUID
    experiment_id: str
    type: str  # stitch | video | overview
    url: str | None  # as in `Exported`
    uploaded_at: datetime


class Exports(BaseModel):
    """A page of exports, and how many there are in all."""

    count: int
    data: list[Exported]


class Archived(BaseModel):
    """One archive on tape, as in DLM's API."""

    id: UUID
    path: str
    type: str
    experiment_id: str
    created_at: datetime  # when tape reported it
    url: str  # of its page, from the root of the gateway on
    member_count: int


class Archives(BaseModel):
    """A page of archives, and how many there are in all."""

    count: int
    data: list[Archived]


class ArchiveMember(BaseModel):
    """One event in an archive."""

    member_key: str
    ref_id: UUID
    timestamp: datetime
    checksum: str | None  # SHA-256
    size: int | None  # bytes


class ArchiveDetail(BaseModel):
    """One archive with its events."""

    id: UUID
    path: str
    type: str
    experiment_id: str
    created_at: datetime
    members: list[ArchiveMember]


class DailyStats(BaseModel):
    """What became of the events whose images were taken on one day (UTC)."""

    date: date
    event_count: int
    export_count: int
    archive_count: int


class Events(BaseModel):
    """A page of events."""

    events: list[EventStatus]
    next_cursor: str | None  # None: it is the last page
