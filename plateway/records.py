"""The tables: facts about events, exports, tape and purges. States are derived, never stored.

A row is written after the thing it tells of is durable. ``catalog.py`` holds all SQL, ``migrations/`` the history.
No ``from __future__ import annotations`` here: SQLModel cannot resolve it.
"""

import re
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes in and out, also where the database forgets the zone (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive time {value.isoformat()}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class FileName(TypeDecorator[str]):
    """A name in one directory. Bytes that are not UTF-8 (surrogates in Python) become ``/e9``: no name has a slash."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and re.sub("[\udc80-\udcff]", lambda odd: f"/{ord(odd[0]) - 0xDC00:02x}", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return value if value is None or "/" not in value else self.decode(value)

    @staticmethod
    def decode(value: str) -> str:
        """Convert what is stored to the name."""
        return re.sub("/([89a-f][0-9a-f])", lambda odd: chr(0xDC00 + int(odd[1], 16)), value)


class Words(TypeDecorator[str]):
    """Text for people. What a database cannot hold (NUL, lone surrogates) is escaped, and stays so."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and value.encode("utf-8", "backslashreplace").decode().replace("\0", r"\x00")


# compares and sorts by bytes, so that a range finds everything below a path, and keys come in the order of listings
EXACTLY = Text().with_variant(Text(collation="C"), "postgresql")
SORTED = String().with_variant(Text(collation="C"), "postgresql")  # the same, for columns that were strings before


class Record(SQLModel):
    """What all tables share: one metadata, and constraints with names that a migration can call."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )


def of_event() -> ForeignKeyConstraint:
    """Reference the event and revision that a row is about."""
    return ForeignKeyConstraint(["event_id", "revision"], ["event.id", "event.revision"])


def only(condition: str) -> dict[str, Any]:
    """Restrict an index to the rows that its query is about."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class Event(Record, table=True):
    """This system announced this event. One row for each content announced under the id."""

    __tablename__: ClassVar[Any] = "event"
    __table_args__ = (
        UniqueConstraint("id", "digest"),
        CheckConstraint("revision >= 1", name="revision"),
        Index("ix_event_order", "timestamp", "id", "revision"),
        Index("ix_event_place", "system", "path"),
        Index("ix_event_first_seen", "first_seen"),
        Index("ix_event_unsettled", "system", **only("sealed_at IS NULL")),
        Index("ix_event_queue", "system", "sealed_at", "id", "revision", **only("sealed_at IS NOT NULL")),
        Index("ix_event_sealed", "sealed_at", "id", "revision", **only("sealed_at IS NOT NULL")),
    )

    id: UUID = Field(primary_key=True)
    revision: int = Field(primary_key=True)  # 1, and 2, 3 … when the same id came with other content
    system: str
    kind: str  # stitch | video | overview
    experiment: str = Field(index=True)
    plate: int | None = Field(default=None, sa_type=BigInteger, index=True)
    timestamp: datetime = Field(sa_type=UtcDateTime)
    path: str = Field(sa_type=EXACTLY)  # images, relative to the system's directory
    image_count: int = Field(sa_type=BigInteger)  # as announced
    details: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)  # metadata as announced
    digest: str  # SHA-256 of what was announced, or of the images when those changed under the same announcement
    key: str = Field(unique=True, sa_type=SORTED)  # where in the bucket its bundle belongs
    file: str = Field(sa_type=FileName)  # name of the event file
    announced_at: datetime = Field(sa_type=UtcDateTime)  # mtime of the event file: the instrument's clock
    first_seen: datetime = Field(sa_type=UtcDateTime)  # our clock
    waiting_since: datetime = Field(sa_type=UtcDateTime)  # from here the deadline for images counts
    fingerprint: str | None = None  # of names, sizes, mtimes and inodes at the last look
    fingerprint_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # since when the images look like that
    present: int | None = Field(default=None, sa_type=BigInteger)  # images there at the last look
    image_bytes: int | None = Field(default=None, sa_type=BigInteger)  # their size at the last look
    sealed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # complete and settled
    staged_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # a verified copy is in staging


class EventFile(Record, table=True):
    """This event file was read; as long as size and mtime stay, it need not be read again."""

    __tablename__: ClassVar[Any] = "event_file"

    system: str = Field(primary_key=True)
    name: str = Field(primary_key=True, sa_type=FileName)
    size: int = Field(sa_type=BigInteger)
    mtime_ns: int = Field(sa_type=BigInteger)


class Export(Record, table=True):
    """This bundle is at this key. Evidence: how and when it was seen there, by another client than the uploader."""

    __tablename__: ClassVar[Any] = "export"
    __table_args__ = (
        of_event(),
        CheckConstraint("(evidence IS NULL) = (evidence_at IS NULL)", name="evidence_dated"),
        CheckConstraint("(damage IS NULL) = (damaged_at IS NULL)", name="damage_dated"),
        CheckConstraint("(damage IS NULL) = (damage_kind IS NULL)", name="damage_kind"),
        CheckConstraint("evidence IS NULL OR damage IS NULL", name="good_or_damaged"),
        Index("ix_export_place", "bucket", "key", unique=True),
        Index("ix_export_order", "uploaded_at", "event_id", "revision"),
        Index("ix_export_damaged", "event_id", "revision", **only("damage IS NOT NULL")),
        Index("ix_export_unverified", "uploaded_at", **only("evidence IS NULL AND damage IS NULL")),
        Index("ix_export_read_back", "read_back_at", **only("evidence IS NOT NULL")),
    )

    event_id: UUID = Field(primary_key=True)
    revision: int = Field(primary_key=True)
    endpoint: str | None = Field(default=None, sa_type=SORTED)  # as `Endpoint.identity`; None: not noted in its time
    bucket: str = Field(sa_type=SORTED)
    key: str = Field(sa_type=SORTED)
    size: int = Field(sa_type=BigInteger)
    sha256: str  # of the whole bundle
    etag: str  # what the bytes we sent must have as ETag: md5(part md5s)-N, or md5 of a single part
    part_size: int = Field(sa_type=BigInteger)
    member_count: int
    manifest_offset: int = Field(sa_type=BigInteger)  # of metadata.json's bytes inside the bundle
    manifest_size: int = Field(sa_type=BigInteger)
    manifest_sha256: str
    uploaded_at: datetime = Field(sa_type=UtcDateTime)
    evidence: str | None = None  # etag | crc64nvme … | read-back: the strongest so far
    evidence_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # since when this upload is known good
    seen_etag: str | None = None  # the endpoint's own ETag when it was last looked at; must still be there to purge
    read_back_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when every byte was last read
    damage: str | None = Field(default=None, sa_type=Words)  # what is wrong, for people
    damage_kind: str | None = None  # `outcome.Damage`
    damaged_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    seen_modified: datetime | None = Field(default=None, sa_type=UtcDateTime)  # as `seen_etag`: the object's own time
    seen_version: str | None = Field(default=None, sa_type=Text)  # likewise, where the bucket keeps versions


class ArchiveManifest(Record, table=True):
    """A manifest of the archiver, with its source and its bytes."""

    __tablename__: ClassVar[Any] = "archive_manifest"
    __table_args__ = (Index("ix_archive_manifest_order", "received_at", "digest"),)

    digest: str = Field(primary_key=True)  # SHA-256 of its content in any order; else of its bytes
    door: str  # inbox | http | amqp | archive | rebuild
    name: str = Field(sa_type=Words)  # of the file, the page or the message
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    received_at: datetime = Field(sa_type=UtcDateTime)
    last_at: datetime = Field(sa_type=UtcDateTime)  # when it was delivered again
    job_id: str | None = Field(default=None, sa_type=Words)
    date: datetime | None = Field(default=None, sa_type=UtcDateTime)  # as it says
    accepted: bool  # it could be read, if perhaps not every entry of it
    reason: str | None = Field(default=None, sa_type=Words)  # why it, or some of its entries, were refused


class ArchiveEntry(Record, table=True):
    """An entry of a manifest: this object is in this archive. Parked until an export agrees with it."""

    __tablename__: ClassVar[Any] = "archive_entry"
    __table_args__ = (
        ForeignKeyConstraint(["manifest"], ["archive_manifest.digest"]),
        CheckConstraint("settled_at IS NULL OR refuted_at IS NULL", name="settled_or_refuted"),
        Index("ix_archive_entry_key", "key", "path"),
        Index("ix_archive_entry_unsettled", "key", "path", "manifest", **only("settled_at IS NULL")),
    )

    manifest: str = Field(primary_key=True)  # its digest
    path: str = Field(primary_key=True, sa_type=EXACTLY)  # of the archive, relative to the archive target
    key: str = Field(primary_key=True, sa_type=EXACTLY)  # of the object: <bucket>/<key>
    job_id: str = Field(default="", sa_type=Words)
    reported_at: datetime = Field(sa_type=UtcDateTime)
    member: str | None = Field(default=None, sa_type=Text)
    size: int | None = Field(default=None, sa_type=BigInteger)
    checksum: str | None = None  # SHA-256 of the member
    offset: int | None = Field(default=None, sa_type=BigInteger)  # of the member's bytes inside the archive
    settled_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # None: parked
    refuted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # we read there, and found something else
    reason: str | None = Field(default=None, sa_type=Words)  # why it is parked; None: not tried yet


class ArchiveLocation(Record, table=True):
    """This event's export is this member of this archive: the sum of all settled entries about it."""

    __tablename__: ClassVar[Any] = "archive_location"
    __table_args__ = (
        of_event(),
        Index("ix_archive_location_path", "path", "reported_at"),
        Index("ix_archive_location_read", "read_at"),
        Index("ix_archive_location_reported", "reported_at"),
    )

    event_id: UUID = Field(primary_key=True)
    revision: int = Field(primary_key=True)
    path: str = Field(primary_key=True)
    member: str
    job_id: str  # that named it first
    size: int | None = Field(default=None, sa_type=BigInteger)
    checksum: str | None = None
    offset: int | None = Field(default=None, sa_type=BigInteger)  # of the member's bytes inside the archive
    evidence: str  # name | size | checksum: the strongest
    evidence_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # since when it is known by that
    reported_at: datetime = Field(sa_type=UtcDateTime)  # the first time
    read_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when we read it there and found these bytes
    seen_size: int | None = Field(default=None, sa_type=BigInteger)  # of the archive, when it was read
    seen_modified: datetime | None = Field(default=None, sa_type=UtcDateTime)  # likewise, where known
    damage: str | None = Field(default=None, sa_type=Words)  # what is wrong with the only copy, for people
    damage_kind: str | None = None  # `outcome.Damage`
    damaged_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class ManifestSource(Record, table=True):
    """The state of a manifest source at the last poll, so that only new manifests are fetched."""

    __tablename__: ClassVar[Any] = "door"

    name: str = Field(primary_key=True)  # its URL, without secrets
    etag: str | None = None
    modified: str | None = None  # Last-Modified, as received
    seen_at: datetime = Field(sa_type=UtcDateTime)


class DarkObject(Record, table=True):
    """An object in no record. The row is removed once the object is recorded or deleted."""

    __tablename__: ClassVar[Any] = "dark_object"

    endpoint: str = Field(default="", primary_key=True, sa_type=EXACTLY)  # as an export has it; empty: unknown
    bucket: str = Field(primary_key=True, sa_type=EXACTLY)
    key: str = Field(primary_key=True, sa_type=EXACTLY)
    size: int = Field(sa_type=BigInteger)
    etag: str
    first_seen: datetime = Field(sa_type=UtcDateTime)  # with this size and ETag


class Purge(Record, table=True):
    """The raw images (or the staging copy, or the bucket copy) of this event went, or are going. Never deleted."""

    __tablename__: ClassVar[Any] = "purge"
    __table_args__ = (
        of_event(),
        CheckConstraint("place IN ('raw', 'staging', 'bucket')", name="place"),
        CheckConstraint("gone_at IS NULL OR trashed_at IS NOT NULL", name="aside_first"),
        CheckConstraint("restored_at IS NULL OR (reason IS NOT NULL AND cause IS NOT NULL)", name="restored_why"),
        Index("ix_purge_going", "place", **only("gone_at IS NULL AND restored_at IS NULL")),
    )

    event_id: UUID = Field(primary_key=True)
    revision: int = Field(primary_key=True)
    place: str = Field(primary_key=True)  # raw | staging | bucket
    attempt: int = Field(primary_key=True)  # 1, and more when a purge was taken back
    proof: dict[str, Any] = Field(sa_type=JSON)  # object, evidence, manifest and files as they were proven
    intended_at: datetime = Field(sa_type=UtcDateTime)
    trash: str = Field(sa_type=Text)  # relative to the place's root; of a bucket nothing
    trashed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # of a bucket copy: when its deletion began
    removing_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # our removal began; fewer files are left
    gone_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    restored_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    cause: str | None = None  # `outcome.Restored`: why it was taken back
    reason: str | None = Field(default=None, sa_type=Words)  # the same for people


class Quarantine(Record, table=True):
    """This announcement could not be accepted. Its bytes are kept."""

    __tablename__: ClassVar[Any] = "quarantine"
    __table_args__ = (
        of_event(),
        Index(
            "ix_quarantine_file",
            "system",
            "name",
            unique=True,
            **only("released_at IS NULL AND event_id IS NULL"),
        ),
        Index("ix_quarantine_event", "event_id", "revision", unique=True, **only("released_at IS NULL")),
    )

    id: int | None = Field(default=None, primary_key=True)
    system: str
    name: str = Field(sa_type=FileName)  # of the event file
    event_id: UUID | None = None  # when the file was fine and the images were not
    revision: int | None = None
    reason: str = Field(sa_type=Words)
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    first_seen: datetime = Field(sa_type=UtcDateTime)
    last_seen: datetime = Field(sa_type=UtcDateTime)
    released_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # replayed, or announced anew
    versions: int = Field(default=1, sa_column_kwargs={"server_default": "1"})  # of the file so far, this one included


class Setback(Record, table=True):
    """This verb failed for this event and will be tried again. Removed when it succeeds."""

    __tablename__: ClassVar[Any] = "setback"
    __table_args__ = (of_event(), CheckConstraint("cause IN ('endpoint', 'event')", name="cause"))

    event_id: UUID = Field(primary_key=True)
    revision: int = Field(primary_key=True)
    verb: str = Field(primary_key=True)  # stage | export | verify | purge
    attempt: int
    reason: str = Field(sa_type=Words)
    since: datetime = Field(sa_type=UtcDateTime)
    at: datetime = Field(sa_type=UtcDateTime)
    next_at: datetime = Field(sa_type=UtcDateTime)
    cause: str = Field(default="event", sa_column_kwargs={"server_default": "event"})  # endpoint | event
    endpoint: str | None = None  # that did not answer, as an export has it


class Lease(Record, table=True):
    """This worker holds this event until then. The fence only ever grows."""

    __tablename__: ClassVar[Any] = "lease"
    __table_args__ = (of_event(), Index("ix_lease_expires_at", "expires_at"))

    event_id: UUID = Field(primary_key=True)
    revision: int = Field(primary_key=True)
    owner: str
    fence: int
    expires_at: datetime = Field(sa_type=UtcDateTime)


class Incident(Record, table=True):
    """Damage, a refusal, a failure or a repair of this event. Only ever added; the same again counts up."""

    __tablename__: ClassVar[Any] = "incident"
    __table_args__ = (of_event(), Index("ix_incident_event", "event_id", "revision", "id"))

    id: int | None = Field(default=None, primary_key=True)
    event_id: UUID
    revision: int
    kind: str  # damage | refusal | failure | repair
    verb: str  # whose it is: verify, purge, reconcile …
    reason: str = Field(sa_type=Words)
    actor: str = Field(sa_type=Words)  # the worker or the person
    at: datetime = Field(sa_type=UtcDateTime)  # the first time
    last_at: datetime = Field(sa_type=UtcDateTime)
    times: int = 1


class Site(Record, table=True):
    """Which site this catalogue is of. One row, written once; it is on every marker and on every object."""

    __tablename__: ClassVar[Any] = "site"

    id: UUID = Field(primary_key=True)
    created_at: datetime = Field(sa_type=UtcDateTime)


class KnownPlace(Record, table=True):
    """This is the disk or directory that the site means by a name: what identified it when it was first used."""

    __tablename__: ClassVar[Any] = "known_place"

    name: str = Field(primary_key=True)  # bench, bench/prince, trash/prince, staging/prince, archive, objects, bucket …
    identity: str  # of its marker; of a place that we may only read, its file system and root
    marked: bool  # it has a marker
    recorded_at: datetime = Field(sa_type=UtcDateTime)


class LegalHold(Record, table=True):
    """Nothing of these events may be deleted. Set once, released once or ended by its date, and never deleted."""

    __tablename__: ClassVar[Any] = "legal_hold"
    __table_args__ = (
        CheckConstraint(
            "event_id IS NOT NULL OR experiment IS NOT NULL OR system IS NOT NULL",
            name="scope",
        ),
        CheckConstraint(
            "released_at IS NULL OR (released_by IS NOT NULL AND release_reason IS NOT NULL)", name="released_why"
        ),
        Index("ix_legal_hold_standing", "event_id", **only("released_at IS NULL")),
    )

    id: UUID = Field(primary_key=True)
    event_id: UUID | None = None  # of all revisions
    experiment: str | None = None
    system: str | None = None
    reason: str = Field(sa_type=Words)
    by: str = Field(sa_type=Words)
    at: datetime = Field(sa_type=UtcDateTime)
    until: datetime | None = Field(default=None, sa_type=UtcDateTime)  # without: until it is released
    released_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    released_by: str | None = Field(default=None, sa_type=Words)
    release_reason: str | None = Field(default=None, sa_type=Words)

    def covers(self, event: Event) -> bool:
        """Return whether it is about an event."""
        return event.id == self.event_id or event.experiment == self.experiment or event.system == self.system

    def stands(self, now: datetime) -> bool:
        """Return whether it holds now: neither released nor past its date."""
        return self.released_at is None and (self.until is None or self.until > now)

    @property
    def scope(self) -> str:
        """Describe what it is about."""
        if self.event_id is not None:
            return f"event {self.event_id}"
        return f"experiment {self.experiment}" if self.experiment is not None else f"system {self.system}"


class AccessKey(Record, table=True):
    """A key that reads at the S3 endpoint. Its secret is nowhere: it follows from the id and a file outside of this."""

    __tablename__: ClassVar[Any] = "access_key"
    __table_args__ = (UniqueConstraint("name"),)

    access_key_id: str = Field(primary_key=True)
    name: str = Field(sa_type=EXACTLY)
    secret_file: str  # which file its secret follows from
    buckets: list[str] = Field(default_factory=list, sa_type=JSON)  # that it may read; empty: all
    prefixes: list[str] = Field(default_factory=list, sa_type=JSON)  # of the object keys that it may read; empty: all
    created_at: datetime = Field(sa_type=UtcDateTime)
    expires_at: datetime = Field(sa_type=UtcDateTime)
    disabled_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Share(Record, table=True):
    """The S3 endpoint shows the objects of this location as a bucket of this name."""

    __tablename__: ClassVar[Any] = "share"

    name: str = Field(primary_key=True, sa_type=EXACTLY)
    location: str = Field(sa_type=Text)  # s3://bucket[/prefix] or file:///directory
    created_at: datetime = Field(sa_type=UtcDateTime)


class OutboxTarget(Record, table=True):
    """Messages are written for this target. The row is removed when somebody forgets the target."""

    __tablename__: ClassVar[Any] = "outbox_target"

    name: str = Field(primary_key=True)  # redis | amqp | webhook | directory
    registered_at: datetime = Field(sa_type=UtcDateTime)
    holder: str | None = None  # the one process that relays
    held_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    delivered_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # the last message
    error: str | None = Field(default=None, sa_type=Words)  # why the last attempt failed; None: it did not
    error_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class OutboxMessage(Record, table=True):
    """This target is to be told of this fact. Written in the transaction of the fact."""

    __tablename__: ClassVar[Any] = "outbox_message"
    __table_args__ = (
        of_event(),
        Index("ix_outbox_message_pending", "target", "sequence", **only("delivered_at IS NULL")),
        Index("ix_outbox_message_delivered", "target", "delivered_at", **only("delivered_at IS NOT NULL")),
    )

    sequence: int | None = Field(default=None, primary_key=True)  # rises with each event's facts
    target: str
    message: UUID  # the same for all targets and all deliveries
    event_id: UUID
    revision: int
    fact: str  # `outcome.Fact`
    at: datetime = Field(sa_type=UtcDateTime)
    details: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)  # of the fact: key, size, checksum …
    delivered_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # None: pending


class HourSummary(Record, table=True):
    """Counts of a system's events whose images were taken in one hour (UTC). Computed from the facts, and again."""

    __tablename__: ClassVar[Any] = "hour_summary"

    hour: str = Field(primary_key=True, sa_type=SORTED)  # YYYY-MM-DD HH
    system: str = Field(primary_key=True)
    events: int = Field(sa_type=BigInteger)
    exports: int = Field(sa_type=BigInteger)  # with an upload, whatever became of it
    archives: int = Field(sa_type=BigInteger)  # on tape
    waiting: int = Field(sa_type=BigInteger)  # by state as in `ledger.STATES`, leases left out of account
    ready: int = Field(sa_type=BigInteger)
    exported: int = Field(sa_type=BigInteger)
    archived: int = Field(sa_type=BigInteger)
    purged: int = Field(sa_type=BigInteger)
    quarantined: int = Field(sa_type=BigInteger)
    lost: int = Field(sa_type=BigInteger)
    changed: int = Field(sa_type=BigInteger)
    sound: int = Field(sa_type=BigInteger)  # exported, and not damaged
    away: int = Field(sa_type=BigInteger)  # raw images aside or gone
    unsent: int = Field(sa_type=BigInteger)  # to be exported; without those in quarantine
    harmed: int = Field(sa_type=BigInteger)  # with a damaged upload
    safe_events: int = Field(sa_type=BigInteger)  # verified, and the raw images are here
    exported_bytes: int = Field(sa_type=BigInteger)
    safe_bytes: int = Field(sa_type=BigInteger)
    oldest_unsent: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when it was first seen
    oldest_unverified: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when it was uploaded
    oldest_stuck: datetime | None = Field(default=None, sa_type=UtcDateTime)  # of both, when it was first seen
    last_success: datetime | None = Field(default=None, sa_type=UtcDateTime)  # when an upload was verified


class UploadSummary(Record, table=True):
    """How many good uploads of one hour (UTC) are still in the bucket. Computed from the facts, and again."""

    __tablename__: ClassVar[Any] = "upload_summary"

    hour: str = Field(primary_key=True, sa_type=SORTED)  # YYYY-MM-DD HH
    kind: str = Field(primary_key=True)
    listed: int = Field(sa_type=BigInteger)


class ArchiveSummary(Record, table=True):
    """One archive on tape, and how many events it has. Computed from the facts, and again."""

    __tablename__: ClassVar[Any] = "archive_summary"
    __table_args__ = (
        Index("ix_archive_summary_id", "id"),
        Index("ix_archive_summary_order", "reported_at", "path"),
    )

    path: str = Field(primary_key=True, sa_type=SORTED)
    id: UUID  # follows from the path
    kind: str  # of its events; of the first one, should they differ
    experiment: str  # likewise
    reported_at: datetime = Field(sa_type=UtcDateTime)  # the first time
    members: int = Field(sa_type=BigInteger)


class StaleSummary(Record, table=True):
    """These counts must be computed again. Set by triggers, which `migrations` makes."""

    __tablename__: ClassVar[Any] = "stale_summary"

    kind: str = Field(primary_key=True)  # hour | upload | archive
    part: str = Field(primary_key=True, sa_type=EXACTLY)  # the hour, or the path
    writer: int = Field(primary_key=True, sa_type=BigInteger)  # its transaction on PostgreSQL, else 0
