"""The catalogue: the only SQL. It keeps facts and derives states; what to do about them is decided elsewhere.

Every method is one transaction and may be called from any thread. Times arrive as ``now`` or ``at``.
On SQLite a write begins by taking the one lock there is (``BEGIN IMMEDIATE``); on PostgreSQL it takes the row of the
event that it is about, or, where new rows are at stake, an advisory lock. So writers take turns, and none finds a
unique key violated that was free when it looked.
What SQLAlchemy raises is translated at the door, and never shows the URL's password.

    discovery    known register unsettled look seal unseal quarantine replay
    work         systems due newest get ledger revisions ledgers counts
    leases       lease renew release
    exports      note_export note_evidence note_damage revise rekey set_back sample
    purges       candidates siblings intend note_trashed note_gone note_restored going stage tally
"""

from __future__ import annotations

import itertools
import random
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import psutil
import sqlalchemy as sa
from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy import event as hooks
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, aliased
from sqlmodel import col

from plateway import events, migrations
from plateway.errors import (
    Busy,
    Conflict,
    Damaged,
    Denied,
    Misconfigured,
    NotFound,
    PlatewayError,
    Refused,
    Rejected,
    Unavailable,
)
from plateway.events import ImagingEvent
from plateway.records import ArchiveLocation, Event, EventFile, Export, Lease, Purge, Quarantine, Record, Setback

EVENT, FILE, EXPORT, ARCHIVE, PURGE, QUARANTINE, SETBACK, LEASE = (
    Record.metadata.tables[table.__tablename__].c
    for table in (Event, EventFile, Export, ArchiveLocation, Purge, Quarantine, Setback, Lease)
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # a lease that was let go has expired then
DAY = timedelta(days=1)
DELAYS = (timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))  # after the first, second, any later failure
JITTER = 0.1
SAME_ATTEMPT = timedelta(seconds=60)  # short retries in one task are one attempt
LOCK = 0x706C6174  # of PostgreSQL's advisory locks: "plat"
PATIENCE = 5  # seconds that a writer waits for SQLite's lock
CHUNK = 500  # names or refs in one statement
NETWORK = {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "fuse.sshfs"}
MEANINGS: tuple[tuple[str, type[PlatewayError], str], ...] = (  # of what drivers say; all else may pass by waiting
    (
        r"no such (table|column)|(relation|column) .* does not exist",
        Misconfigured,
        "tables are missing or old, run `plateway db upgrade`",
    ),
    (r"(database|role) .* does not exist", Misconfigured, ""),
    (r"not a database", Misconfigured, "the file is not an SQLite database"),
    (r"authentication|pg_hba|permission denied|readonly database|read-only", Denied, ""),
    (r"malformed", Damaged, ""),
)

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------------------- values


class Ref(NamedTuple):
    """One event at one revision."""

    id: UUID
    revision: int

    def __str__(self) -> str:
        return str(self.id) if self.revision == 1 else f"{self.id}-r{self.revision}"

    @classmethod
    def parse(cls, text: str) -> tuple[UUID, int | None]:
        """Read ``<uuid>`` (revision None: whatever is newest) or ``<uuid>-r2``.

        Raises:
            NotFound: no event is called that.
        """
        match = re.fullmatch(r"([0-9a-fA-F-]{32,36})(?:-r([1-9]\d{0,8}))?", text.strip())
        try:
            return UUID(match[1] if match else ""), int(match[2]) if match and match[2] else None
        except ValueError as error:
            raise NotFound(f"{text!r} is not the id of an event") from error


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

    name: str  # waiting ready exporting exported archived purged · quarantined lost changed
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Ledger:
    """Everything the catalogue knows of one event."""

    event: Event
    export: Export | None = None
    archives: tuple[ArchiveLocation, ...] = ()
    purges: tuple[Purge, ...] = ()  # of both places, oldest first
    quarantine: Quarantine | None = None  # the active one
    setbacks: tuple[Setback, ...] = ()
    lease: Lease | None = None  # the last one; it may have expired

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

    def purge(self, place: str) -> Purge | None:
        """Find the purge of a place that was not taken back: going or gone."""
        return next((p for p in reversed(self.purges) if p.place == place and p.restored_at is None), None)

    def setback(self, verb: str) -> Setback | None:
        """Find what holds a verb back."""
        return next((one for one in self.setbacks if one.verb == verb), None)

    def held(self, now: datetime) -> bool:
        """Is somebody at work on it?"""
        return self.lease is not None and self.lease.expires_at > now

    def state(self, now: datetime) -> State:
        """Derive where the event stands. ``Catalog.counts`` says the same in SQL."""
        conflict = (f"conflict: revision {self.event.revision} of this id",) if self.conflict else ()
        name, reasons = self._stands(now)
        return State(name, (*reasons, *(_spoken(one, now) for one in self.setbacks), *conflict))

    def _stands(self, now: datetime) -> tuple[str, tuple[str, ...]]:
        if self.export and self.export.damage:
            return _harm(self.export.damage), (self.export.damage,)
        if self.quarantine:
            return "quarantined", (self.quarantine.reason,)
        if self.raw_purged:
            return "purged", ()
        if self.export:
            unverified = ("not verified yet",) if self.export.evidence is None else ()
            return "archived" if self.archives else "exported", unverified
        if self.held(now):
            return "exporting", ()
        if self.event.sealed_at is None:
            return "waiting", (_lacks(self.event),)
        return ("waiting" if self.setback("export") else "ready"), ()


def _harm(damage: str) -> str:
    return "lost" if damage.startswith("lost") else "changed"


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


# ---------------------------------------------------------------------------------------------------------- catalogue


class Catalog:
    """The facts, in SQLite or PostgreSQL.

    ``url`` is SQLAlchemy's (``sqlite:////path``, ``postgresql://…``). ``clock`` replaces the database's own clock;
    ``mounts``, the type of file system by mount point, what the machine says.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], datetime] | None = None,
        dice: random.Random | None = None,
        mounts: Mapping[str, str] | None = None,
    ) -> None:
        self._engine = _engine(url, mounts)
        self._postgres = self._engine.dialect.name == "postgresql"
        # one snapshot for the queries of a reader; SQLite's transactions are that anyway
        self._reader = (
            self._engine.execution_options(isolation_level="REPEATABLE READ") if self._postgres else self._engine
        )
        self._writer = self._engine.execution_options(writes=True)
        self._clock = clock
        self._dice = dice or random.Random()  # noqa: S311 - jitter, not a secret

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def now(self) -> datetime:
        """Tell the time that all machines share: the database's on PostgreSQL, else this machine's."""
        if self._clock is not None:
            return self._clock()
        if not self._postgres:
            return datetime.now(UTC)
        with self._reading() as session:
            time: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
            return time.astimezone(UTC)

    # ------------------------------------------------------------------------------------------------------ migrations

    def head(self) -> str:
        """Name the newest revision of the tables that this version knows."""
        return migrations.head()

    def current(self) -> str:
        """Name the revision of the tables; empty when there are none."""
        with self._reading() as session:
            return migrations.current(session.connection())

    def upgrade(self, revision: str = "head") -> None:
        """Bring the tables up to date. May be repeated, and run by several processes at once.

        Raises:
            Misconfigured: a newer version has written this database.
        """
        if self._engine.url.database and not self._postgres:
            _make_home(Path(self._engine.url.database))
        if revision == "head" and self.current() == self.head():
            return  # without the lock, which others may need
        with self._migrating() as connection:
            migrations.upgrade(connection, revision)

    def downgrade(self, revision: str) -> None:
        """Take the tables back to an older revision, for an older version to run on."""
        with self._migrating() as connection:
            migrations.downgrade(connection, revision)

    @contextmanager
    def _migrating(self) -> Iterator[Connection]:
        """Hold the lock; keys that refer to a table are not watched while SQLite writes it anew, but checked after."""
        with _door(), self._writer.connect() as connection:
            pragma = _pragma(connection)
            pragma("foreign_keys=OFF")
            try:
                with connection.begin():
                    self._take_turn(connection)
                    yield connection
                    if pragma("foreign_key_check"):
                        raise Damaged("the catalogue has rows that refer to nothing")
            finally:
                pragma("foreign_keys=ON")

    # ---------------------------------------------------------------------------------------------------- transactions

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with _door(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with _door(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def _take_turn(self, session: Session | Connection) -> None:
        """Wait until no other process adds events or alters tables; lasts to the end of the transaction."""
        if self._postgres:
            session.execute(select(func.pg_advisory_xact_lock(LOCK)))

    # ------------------------------------------------------------------------------------------------------- discovery

    def known(self, system: str) -> dict[str, tuple[int, int]]:
        """List the event files that were read: size and mtime_ns by name."""
        with self._reading() as session:
            rows = session.execute(select(FILE.name, FILE.size, FILE.mtime_ns).where(FILE.system == system))
            return {name: (size, mtime) for name, size, mtime in rows}

    def register(self, system: str, seen: Sequence[Seen], *, now: datetime) -> list[tuple[Ref, bool]]:
        """Record what event files announce; return the new events, and for each whether it conflicts with an older one.

        The same id with the same digest changes nothing; with another digest it becomes the next revision, with a key
        of its own. What was rejected is quarantined; a file that is fine leaves quarantine. One announcement that the
        database cannot hold is quarantined and stops nobody.
        """
        try:
            return self._register(system, seen, now)
        except (Rejected, Conflict) as error:
            if len(seen) > 1:
                return [new for one in seen for new in self.register(system, [one], now=now)]
            if seen[0].event is None:
                raise
            return self._register(system, [replace(seen[0], event=None, reason=str(error))], now)

    def _register(self, system: str, seen: Sequence[Seen], now: datetime) -> list[tuple[Ref, bool]]:
        with self._writing() as session:
            self._take_turn(session)
            rows = _new(session, [one for one in seen if one.event is not None], now)
            if rows:
                session.execute(insert(Event), rows)
            _remember(session, system, seen)
            _sort_out(session, system, seen, now)
            return [(Ref(row["id"], row["revision"]), row["revision"] > 1) for row in rows]

    def unsettled(self, system: str) -> list[Event]:
        """List the events whose images are not known to be complete, oldest first; not those in quarantine."""
        with self._reading() as session:
            query = select(Event).where(EVENT.system == system, EVENT.sealed_at.is_(None), ~_quarantined())
            return list(session.scalars(query.order_by(EVENT.waiting_since, EVENT.id, EVENT.revision)))

    def look(self, ref: Ref, *, fingerprint: str | None, present: int | None, now: datetime) -> None:
        """Note what the images of an unsealed event look like; ``fingerprint_at`` moves only when they changed."""
        self.look_all([(ref, fingerprint, present)], now=now)

    def look_all(self, looks: Iterable[tuple[Ref, str | None, int | None]], *, now: datetime) -> None:
        """Note looks at many events in one transaction."""
        mark = sa.bindparam("mark", type_=EVENT.fingerprint.type)
        since = sa.case((EVENT.fingerprint.is_not_distinct_from(mark), EVENT.fingerprint_at), else_=now)
        query = (
            sa.update(EVENT.id.table)
            .where(_is(sa.bindparam("of"), sa.bindparam("at_revision")), EVENT.sealed_at.is_(None))
            .values(fingerprint=mark, present=sa.bindparam("there"), fingerprint_at=since)
        )
        rows = [{"of": ref.id, "at_revision": ref.revision, "mark": m, "there": n} for ref, m, n in sorted(looks)]
        if rows:
            with self._writing() as session:
                session.connection().execute(query, rows)

    def seal(self, refs: Iterable[Ref], *, now: datetime) -> None:
        """Note that the images of these events are complete and have settled."""
        query = (
            sa.update(EVENT.id.table)
            .where(_is(sa.bindparam("of"), sa.bindparam("at_revision")), EVENT.sealed_at.is_(None))
            .values(sealed_at=now)
        )
        rows = [{"of": ref.id, "at_revision": ref.revision} for ref in sorted(refs)]
        if rows:
            with self._writing() as session:
                session.connection().execute(query, rows)

    def unseal(self, ref: Ref, *, now: datetime) -> None:
        """Send an event back to waiting: its images are not complete after all. The deadline counts from now."""
        with self._writing() as session:
            _start_over(session, ref, now)

    def quarantine(self, ref: Ref, reason: str, content: bytes = b"", *, now: datetime) -> None:
        """Put an event aside whose announcement was fine and whose images are not; again only moves ``last_seen``."""
        with self._writing() as session:
            event = _own(session, ref)
            active = session.scalar(
                select(Quarantine).where(
                    QUARANTINE.event_id == ref.id,
                    QUARANTINE.revision == ref.revision,
                    QUARANTINE.released_at.is_(None),
                )
            )
            row = Quarantine(
                system=event.system,
                name=event.file,
                event_id=ref.id,
                revision=ref.revision,
                reason=reason,
                content=content,
                first_seen=now,
                last_seen=now,
            )
            _set_aside(session, active, row)

    def quarantined(self, *, include_released: bool = False) -> list[Quarantine]:
        """List what is in quarantine, oldest first."""
        with self._reading() as session:
            query = select(Quarantine).order_by(QUARANTINE.first_seen, QUARANTINE.id)
            return list(session.scalars(query if include_released else query.where(QUARANTINE.released_at.is_(None))))

    def replay(self, id: int, *, now: datetime) -> Quarantine:  # noqa: A002 - it is the id of the row
        """Let an announcement out of quarantine: its file and its images are looked at as if for the first time.

        Raises:
            NotFound: there is no such quarantine.
        """
        with self._writing() as session:
            row = session.get(Quarantine, id, with_for_update=True)
            if row is None:
                raise NotFound(f"there is no quarantine {id}")
            if row.released_at is not None:
                return row
            row.released_at = now
            _forget(session, row.system, [row.name])
            if row.event_id is not None and row.revision is not None:
                _start_over(session, Ref(row.event_id, row.revision), now)
            return row

    # ------------------------------------------------------------------------------------------------------------ work

    def systems(self) -> list[str]:
        """Name the systems that ever announced an event."""
        with self._reading() as session:
            return list(session.scalars(select(EVENT.system).distinct().order_by(EVENT.system)))

    def due(self, verb: str, *, now: datetime, limit: int = 1000) -> list[Ref]:
        """Name the events that wait for ``export`` or ``verify`` and may be taken up now, oldest first."""
        later = _about(SETBACK, EVENT, SETBACK.verb == verb, SETBACK.next_at > now)
        if verb == "verify":
            query = (
                select(EXPORT.event_id, EXPORT.revision)
                .where(EXPORT.evidence.is_(None), EXPORT.damage.is_(None))
                .where(~_about(SETBACK, EXPORT, SETBACK.verb == verb, SETBACK.next_at > now))
                .order_by(EXPORT.uploaded_at, EXPORT.event_id, EXPORT.revision)
            )
        elif verb == "export":
            query = (
                select(EVENT.id, EVENT.revision)
                .where(EVENT.sealed_at.is_not(None))
                .where(~_about(EXPORT, EVENT, EXPORT.damage.is_(None)))
                .where(~_quarantined(), ~_superseded(), ~later)
                .where(~_about(LEASE, EVENT, LEASE.expires_at > now))
                .where(~_about(PURGE, EVENT, PURGE.place == "raw", PURGE.restored_at.is_(None)))
                .order_by(EVENT.sealed_at, EVENT.id, EVENT.revision)
            )
        else:
            raise ValueError(f"nobody waits for {verb!r}")
        with self._reading() as session:
            return [Ref(*row) for row in session.execute(query.limit(limit))]

    def newest(self, id: UUID) -> Ref:  # noqa: A002 - it is the id of the event
        """Resolve an id to its newest revision; NotFound when nothing announced it."""
        with self._reading() as session:
            revision = session.scalar(select(func.max(EVENT.revision)).where(EVENT.id == id))
        if revision is None:
            raise NotFound(f"{id}: no such event")
        return Ref(id, revision)

    def get(self, ref: Ref) -> Event:
        """Fetch one event; NotFound when nothing announced it."""
        with self._reading() as session:
            return _found(session.get(Event, tuple(ref)), ref)

    def found(self, ref: Ref) -> tuple[Event, Export | None]:
        """Fetch one event and what is noted of its upload, in one query; NotFound when nothing announced it."""
        query = select(Event, Export).outerjoin(Export, _match(EXPORT, EVENT)).where(_is(*ref))
        with self._reading() as session:
            row = _found(session.execute(query).one_or_none(), ref)
            return row[0], row[1]

    def ledger(self, ref: Ref) -> Ledger:
        """Fetch everything known of one event; NotFound when nothing announced it."""
        return _found(next(iter(self.ledgers(refs=[ref])), None), ref)

    def revisions(self, id: UUID) -> list[Ledger]:  # noqa: A002 - it is the id of the event
        """Fetch all revisions of an event, oldest first; empty when nothing announced it."""
        with self._reading() as session:
            return _ledgers(session, [EVENT.id == id])

    def ledgers(
        self,
        *,
        system: str | None = None,
        experiment: str | None = None,
        plate: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        keys: Sequence[str] | None = None,
        refs: Iterable[Ref] | None = None,
        limit: int | None = None,
        after: Ref | None = None,
    ) -> list[Ledger]:
        """Fetch what is known of many events, by (timestamp, id, revision), with ``since`` <= timestamp < ``until``.

        To page, pass the last one of a page as ``after``. A few queries, however many events.
        """
        asked = {EVENT.system: system, EVENT.experiment: experiment, EVENT.plate: plate}
        where = [column == value for column, value in asked.items() if value is not None]
        where += [EVENT.timestamp >= since] if since is not None else []
        where += [EVENT.timestamp < until] if until is not None else []
        where += [EVENT.key.in_(keys)] if keys is not None else []
        with self._reading() as session:
            if after is not None:
                where.append(_beyond(_found(session.get(Event, tuple(after)), after)))
            if refs is None:
                return _ledgers(session, where, limit=limit)
            found = [one for some in _chunks(list(refs)) for one in _ledgers(session, [*where, _among(some)])]
            return sorted(found, key=lambda one: (one.event.timestamp, one.ref))[:limit]

    def counts(self, now: datetime) -> dict[str, int]:
        """Count the events in each state."""
        query = (
            select(_state(now), func.count())
            .select_from(Event)
            .outerjoin(Export, _match(EXPORT, EVENT))
            .outerjoin(Lease, _match(LEASE, EVENT))
            .group_by(sa.literal_column("1"))
        )
        with self._reading() as session:
            return dict(sorted((name, count) for name, count in session.execute(query)))

    # ---------------------------------------------------------------------------------------------------------- leases

    def lease(self, ref: Ref, *, owner: str, ttl: timedelta, now: datetime) -> int:
        """Take an event for a while; return the fence, which is larger with each grant.

        Raises:
            Busy: somebody holds it, be it the same owner.
        """
        with self._writing() as session:
            _own(session, ref)
            lease = session.get(Lease, tuple(ref))
            if lease is None:
                lease = Lease(event_id=ref.id, revision=ref.revision, owner=owner, fence=0, expires_at=EPOCH)
                session.add(lease)
            if lease.expires_at > now:
                left = (lease.expires_at - now).total_seconds()
                raise Busy(f"{ref}: {lease.owner} is at it, for {left:.0f} s unless it renews")
            lease.owner, lease.fence, lease.expires_at = owner, lease.fence + 1, now + ttl
            return lease.fence

    def renew(self, ref: Ref, *, fence: int, ttl: timedelta, now: datetime) -> None:
        """Keep a lease for longer, also one that expired while nobody else wanted it.

        Raises:
            Busy: somebody else was granted it since.
        """
        with self._writing() as session:
            _fenced(session, ref, fence).expires_at = now + ttl

    def release(self, ref: Ref, *, fence: int) -> None:
        """Let an event go; a lease that was lost meanwhile stays as it is."""
        with self._writing() as session:
            _let_go(session, ref, fence)

    # --------------------------------------------------------------------------------------------------------- exports

    def note_export(self, export: Export, *, fence: int) -> None:
        """Note an upload that has arrived, without evidence yet, and let the event go. An older upload is forgotten.

        The fence must be the last one granted. It may have expired: as long as nobody else was granted the lease,
        nobody else has uploaded.

        Raises:
            Busy: somebody else was granted the lease since; nothing is noted.
            Conflict: another event is at this key.
        """
        ref = Ref(export.event_id, export.revision)
        facts = {name: getattr(export, name) for name in EXPORT.keys()}  # noqa: SIM118 - columns, not a dict
        facts |= dict.fromkeys(("evidence", "evidence_at", "seen_etag", "read_back_at", "damage", "damaged_at"))
        with self._writing() as session:
            _fenced(session, ref, fence)
            session.merge(Export(**facts))
            _clear(session, ref, "export", "verify")
            _let_go(session, ref, fence)  # here, because each transaction waits for the disk

    def note_evidence(
        self, ref: Ref, *, kind: str, at: datetime, seen_etag: str, sha256: str, uploaded_at: datetime, read_back: bool
    ) -> None:
        """Note that an upload was seen to be good. It dates from the first time; a read-back outranks a look.

        Raises:
            Busy: it is not that upload (``sha256``, ``uploaded_at``) any more.
        """
        with self._writing() as session:
            export = _upload(session, ref, sha256, uploaded_at)
            if read_back or export.read_back_at is None:
                export.evidence = kind
            export.evidence_at = export.evidence_at or at
            export.seen_etag = seen_etag
            export.read_back_at = at if read_back else export.read_back_at
            export.damage = export.damaged_at = None
            _clear(session, ref, "verify")

    def note_damage(self, ref: Ref, *, damage: str, at: datetime, sha256: str, uploaded_at: datetime) -> None:
        """Note that an upload is ``lost: …`` or ``changed: …``; this takes its evidence away.

        Raises:
            Busy: it is not that upload (``sha256``, ``uploaded_at``) any more.
        """
        with self._writing() as session:
            export = _upload(session, ref, sha256, uploaded_at)
            export.damage, export.damaged_at = damage, export.damaged_at or at
            export.evidence = export.evidence_at = export.seen_etag = export.read_back_at = None
            _clear(session, ref, "verify")

    def revise(self, ref: Ref, *, digest: str, now: datetime) -> Ref:
        """Begin a new revision: the images are others under the same announcement. The same digest begins only one."""
        with self._writing() as session:
            self._take_turn(session)
            event = _own(session, ref)
            revisions = session.scalars(select(Event).where(EVENT.id == ref.id).order_by(EVENT.revision)).all()
            for one in revisions:
                if one.digest == digest:
                    return Ref(one.id, one.revision)
            revision = revisions[-1].revision + 1
            kept = ("system", "kind", "experiment", "plate", "timestamp", "path", "image_count", "details", "file")
            session.add(
                Event(
                    id=ref.id,
                    revision=revision,
                    digest=digest,
                    key=_free(session, [(_said(event), revision)])[0],
                    announced_at=event.announced_at,
                    first_seen=now,
                    waiting_since=now,
                    **{name: getattr(event, name) for name in kept},
                )
            )
            return Ref(ref.id, revision)

    def rekey(self, ref: Ref) -> str:
        """Give an event another key, because a stranger's bytes lie at its own; return it."""
        with self._writing() as session:
            self._take_turn(session)
            event = _own(session, ref)
            keys = (events.key(_said(event), revision=number) for number in itertools.count(event.revision + 1))
            event.key = next(key for key in keys if session.scalar(select(EVENT.key).where(EVENT.key == key)) is None)
            return event.key

    def set_back(self, ref: Ref, verb: str, *, reason: str, now: datetime) -> Setback:
        """Note a failure and when to try again: after 10 min, 1 h, then every 6 h, give or take a tenth.

        A failure within 60 s of the last one belongs to the same attempt.
        """
        with self._writing() as session:
            _own(session, ref)
            row = session.get(Setback, (*ref, verb))
            if row is None:
                row = Setback(
                    event_id=ref.id,
                    revision=ref.revision,
                    verb=verb,
                    attempt=1,
                    reason=reason,
                    since=now,
                    at=now,
                    next_at=now,
                )
                session.add(row)
            elif now - row.at > SAME_ATTEMPT:
                row.attempt += 1
            delay = DELAYS[min(row.attempt, len(DELAYS)) - 1] * self._dice.uniform(1 - JITTER, 1 + JITTER)
            row.reason, row.at, row.next_at = reason, now, now + delay
            return row

    def sample(self, *, budget: int, now: datetime) -> list[Ref]:
        """Choose good exports to read back, the longest unread first, within what is left of a day's budget of bytes.

        None is read twice a day. One larger than the whole budget gets its turn when nothing else was read that day.
        """
        good, recent = EXPORT.evidence.is_not(None), EXPORT.read_back_at > now - DAY
        query = (
            select(EXPORT.event_id, EXPORT.revision, EXPORT.size)
            .where(good, sa.or_(EXPORT.read_back_at.is_(None), ~recent))
            .order_by(EXPORT.read_back_at.nulls_first(), EXPORT.uploaded_at, EXPORT.event_id, EXPORT.revision)
            .execution_options(yield_per=CHUNK)
        )
        chosen: list[Ref] = []
        with self._reading() as session:
            used = int(session.scalar(select(func.coalesce(func.sum(EXPORT.size), 0)).where(good, recent)) or 0)
            with session.execute(query) as rows:
                for id_, revision, size in rows:
                    if budget <= 0 or (used and used + size > budget):
                        break
                    used += size
                    chosen.append(Ref(id_, revision))
        return chosen

    # ---------------------------------------------------------------------------------------------------------- purges

    def candidates(self, system: str, place: str) -> list[Ledger]:
        """List the events whose images at a place (``raw`` or ``staging``) are not going or gone."""
        standing = [PURGE.place == place, PURGE.restored_at.is_(None)]
        where = [EVENT.system == system]
        if place == "staging":  # may be staged, and purged, again
            where.append(EVENT.staged_at.is_not(None))
            standing.append(PURGE.gone_at.is_(None))
        with self._reading() as session:
            return _ledgers(session, [*where, ~_about(PURGE, EVENT, *standing)])

    def siblings(self, event: Event) -> list[Ledger]:
        """List the other events of a system whose images are at, inside or above this one's path."""
        path, here = PurePosixPath(event.path), EVENT.system == event.system
        above = sa.and_(here, EVENT.path.in_([str(path), *map(str, path.parents)]))
        inside = sa.and_(here, EVENT.path > f"{path}/", EVENT.path < f"{path}0")  # "0" comes right after "/"
        near = here if path == PurePosixPath() else sa.or_(above, inside)  # so written, SQLite uses the index twice
        with self._reading() as session:
            return _ledgers(session, [near, ~_is(event.id, event.revision)])

    def intend(self, purge: Purge) -> Purge:
        """Note what is about to be moved aside, before it is; return the purge that holds: this one, numbered.

        One that is under way already is returned as it was noted: its ``trash`` is where the images may be.

        Raises:
            Refused: there is no evidence (any more) for the export, or the raw images are gone already.
        """
        ref = Ref(purge.event_id, purge.revision)
        with self._writing() as session:
            _own(session, ref)
            export = session.get(Export, tuple(ref))
            last = _last(session, ref, purge.place)
            if last is not None and last.restored_at is None:
                if last.gone_at is None:
                    return last
                if purge.place == "raw":
                    raise Refused(f"{ref}: the raw images went at {last.gone_at:%Y-%m-%d %H:%M}")
            if export is None or export.evidence is None:
                raise Refused(f"{ref}: no evidence for its export")
            row = Purge(**purge.model_dump(exclude={"attempt"}), attempt=last.attempt + 1 if last else 1)
            session.add(row)
            return row

    def note_trashed(self, ref: Ref, place: str, *, at: datetime) -> None:
        """Note that the images were moved aside."""
        with self._writing() as session:
            event, purge = _under_way(session, ref, place)
            purge.trashed_at = purge.trashed_at or at
            if place == "staging":
                event.staged_at = None

    def note_gone(self, ref: Ref, place: str, *, at: datetime) -> None:
        """Note that the images were removed for good."""
        with self._writing() as session:
            event, purge = _under_way(session, ref, place)
            purge.trashed_at, purge.gone_at = purge.trashed_at or at, at
            if place == "staging":
                event.staged_at = None

    def note_restored(self, ref: Ref, place: str, *, at: datetime, reason: str) -> None:
        """Note that the images are back where they were, and why."""
        with self._writing() as session:
            event, purge = _under_way(session, ref, place)
            purge.restored_at, purge.reason = at, reason
            if place == "staging":
                event.staged_at = event.staged_at or at

    def going(self, place: str | None = None) -> list[tuple[Ledger, Purge]]:
        """List the purges that were intended and are neither done nor taken back, oldest first."""
        where = [PURGE.gone_at.is_(None), PURGE.restored_at.is_(None), *([PURGE.place == place] if place else [])]
        with self._reading() as session:
            rows = session.scalars(select(Purge).where(*where).order_by(PURGE.intended_at, PURGE.event_id)).all()
            refs = [Ref(row.event_id, row.revision) for row in rows]
            ledgers = {one.ref: one for some in _chunks(refs) for one in _ledgers(session, [_among(some)])}
            return [(ledgers[ref], row) for ref, row in zip(refs, rows, strict=True)]

    def stage(self, ref: Ref, *, now: datetime) -> None:
        """Note that a verified copy of the images is in staging."""
        with self._writing() as session:
            _own(session, ref).staged_at = now

    def tally(self, system: str) -> int:
        """Count the events of a system whose raw images are on the bench."""
        away = _about(PURGE, EVENT, PURGE.place == "raw", PURGE.trashed_at.is_not(None), PURGE.restored_at.is_(None))
        with self._reading() as session:
            return session.scalar(select(func.count()).select_from(Event).where(EVENT.system == system, ~away)) or 0


# --------------------------------------------------------------------------------------------------------- conditions


def _is(id_: Any, revision: Any) -> Any:
    return sa.and_(EVENT.id == id_, EVENT.revision == revision)


def _among(refs: Sequence[Ref]) -> Any:
    return sa.tuple_(EVENT.id, EVENT.revision).in_([tuple(ref) for ref in refs])


def _match(table: Any, other: Any) -> Any:
    """Tie a table's rows to an event's, or to those of another table about the same event."""
    return sa.and_(table.event_id == (other.id if other is EVENT else other.event_id), table.revision == other.revision)


def _about(table: Any, other: Any, *conditions: Any) -> Any:
    """Is there a row in a table that tells such a thing of the event?"""
    return exists().where(_match(table, other), *conditions).correlate(other.revision.table)


def _quarantined() -> Any:
    return _about(QUARANTINE, EVENT, QUARANTINE.released_at.is_(None))


def _superseded() -> Any:
    """Did the images change under the same announcement, so that a later revision is about them?"""
    heir = aliased(Event)
    same = sa.and_(col(heir.file) == EVENT.file, col(heir.announced_at) == EVENT.announced_at)
    return exists().where(col(heir.id) == EVENT.id, col(heir.revision) > EVENT.revision, same).correlate(Event)


def _beyond(event: Event) -> Any:
    """Everything that comes after an event in the order of ``Catalog.ledgers``."""
    same_time = sa.or_(EVENT.id > event.id, sa.and_(EVENT.id == event.id, EVENT.revision > event.revision))
    return sa.or_(EVENT.timestamp > event.timestamp, sa.and_(EVENT.timestamp == event.timestamp, same_time))


def _state(now: datetime) -> Any:
    """Say what ``Ledger.state`` says, of an event with its export and lease."""
    purged = _about(PURGE, EVENT, PURGE.place == "raw", PURGE.trashed_at.is_not(None), PURGE.restored_at.is_(None))
    exported = EXPORT.event_id.is_not(None)
    return sa.case(
        (EXPORT.damage.startswith("lost"), "lost"),
        (EXPORT.damage.is_not(None), "changed"),
        (_quarantined(), "quarantined"),
        (purged, "purged"),
        (sa.and_(exported, _about(ARCHIVE, EVENT)), "archived"),
        (exported, "exported"),
        (LEASE.expires_at > now, "exporting"),
        (sa.or_(EVENT.sealed_at.is_(None), _about(SETBACK, EVENT, SETBACK.verb == "export")), "waiting"),
        else_="ready",
    )


# -------------------------------------------------------------------------------------------------------- rows


def _found(row: T | None, ref: Ref) -> T:
    if row is None:
        raise NotFound(f"{ref}: no such event")
    return row


def _own(session: Session, ref: Ref) -> Event:
    """Fetch an event and make other writers about it wait; NotFound when nothing announced it."""
    query = select(Event).where(_is(*ref)).with_for_update(key_share=True)
    return _found(session.scalar(query), ref)


def _fenced(session: Session, ref: Ref, fence: int) -> Lease:
    """Fetch a lease that nobody else was granted since; Busy otherwise."""
    _own(session, ref)
    lease = session.get(Lease, tuple(ref))
    if lease is None or lease.fence != fence:
        raise Busy(f"{ref}: the lease was lost" + (f" to {lease.owner}" if lease else ""))
    return lease


def _let_go(session: Session, ref: Ref, fence: int) -> None:
    mine = (LEASE.event_id == ref.id, LEASE.revision == ref.revision, LEASE.fence == fence)
    session.execute(update(Lease).where(*mine, LEASE.expires_at > EPOCH).values(expires_at=EPOCH))


def _upload(session: Session, ref: Ref, sha256: str, uploaded_at: datetime) -> Export:
    """Fetch an export as long as it is that upload; Busy otherwise."""
    _own(session, ref)
    export = session.get(Export, tuple(ref))
    if export is None or (export.sha256, export.uploaded_at) != (sha256, uploaded_at):
        raise Busy(f"{ref}: exported again meanwhile")
    return export


def _last(session: Session, ref: Ref, place: str) -> Purge | None:
    mine = (PURGE.event_id == ref.id, PURGE.revision == ref.revision, PURGE.place == place)
    return session.scalar(select(Purge).where(*mine).order_by(PURGE.attempt.desc()).limit(1))


def _under_way(session: Session, ref: Ref, place: str) -> tuple[Event, Purge]:
    """Fetch an event and its purge that was not taken back; NotFound when there is none."""
    event, purge = _own(session, ref), _last(session, ref, place)
    if purge is None or purge.restored_at is not None:
        raise NotFound(f"{ref}: nothing is being purged from {place}")
    return event, purge


def _clear(session: Session, ref: Ref, *verbs: str) -> None:
    mine = (SETBACK.event_id == ref.id, SETBACK.revision == ref.revision)
    session.execute(delete(Setback).where(*mine, SETBACK.verb.in_(verbs)))


def _ledgers(session: Session, where: Sequence[Any], *, limit: int | None = None) -> list[Ledger]:
    """Fetch ledgers in the order of ``Catalog.ledgers``, one query a table."""
    order = (EVENT.timestamp, EVENT.id, EVENT.revision)
    rows = session.scalars(select(Event).where(*where).order_by(*order).limit(limit)).all()
    chosen = select(EVENT.id.label("event_id"), EVENT.revision).where(*where).order_by(*order).limit(limit).subquery()

    def told(table: type[T], columns: Any, *conditions: Any, by: Sequence[Any] = ()) -> dict[Ref, list[T]]:
        found: dict[Ref, list[T]] = defaultdict(list)
        query = select(table).join(chosen, _match(columns, chosen.c)).where(*conditions).order_by(*by)
        for row in session.scalars(query) if rows else ():
            found[Ref(row.event_id, row.revision)].append(row)  # type: ignore[attr-defined]  # all but Event have it
        return found

    exports, leases = told(Export, EXPORT), told(Lease, LEASE)
    archives = told(ArchiveLocation, ARCHIVE, by=[ARCHIVE.reported_at, ARCHIVE.path])
    purges = told(Purge, PURGE, by=[PURGE.intended_at, PURGE.place, PURGE.attempt])
    quarantines = told(Quarantine, QUARANTINE, QUARANTINE.released_at.is_(None))
    setbacks = told(Setback, SETBACK, by=[SETBACK.verb])
    return [
        Ledger(
            event=row,
            export=next(iter(exports[ref]), None),
            archives=tuple(archives[ref]),
            purges=tuple(purges[ref]),
            quarantine=next(iter(quarantines[ref]), None),
            setbacks=tuple(setbacks[ref]),
            lease=next(iter(leases[ref]), None),
        )
        for row in rows
        for ref in [Ref(row.id, row.revision)]
    ]


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


# ------------------------------------------------------------------------------------------------------ registration


def _new(session: Session, seen: Sequence[Seen], now: datetime) -> list[dict[str, Any]]:
    """Prepare a row for each announcement whose content is new under its id."""
    ids = {one.event.id for one in seen if one.event}
    revisions: dict[UUID, dict[str, int]] = defaultdict(dict)
    for id_, revision, digest in session.execute(
        select(EVENT.id, EVENT.revision, EVENT.digest).where(EVENT.id.in_(ids))
    ):
        revisions[id_][digest] = revision
    fresh: list[tuple[Seen, ImagingEvent, int]] = []
    for one in seen:
        if (said := one.event) is not None and said.digest not in revisions[said.id]:
            revisions[said.id][said.digest] = revision = max(revisions[said.id].values(), default=0) + 1
            fresh.append((one, said, revision))
    keys = _free(session, [(said, revision) for _, said, revision in fresh])
    return [_row(one, said, revision, key, now) for (one, said, revision), key in zip(fresh, keys, strict=True)]


def _row(seen: Seen, said: ImagingEvent, revision: int, key: str, now: datetime) -> dict[str, Any]:
    return {
        "id": said.id,
        "revision": revision,
        "system": said.system,
        "kind": said.kind,
        "experiment": said.experiment,
        "plate": said.plate,
        "timestamp": said.timestamp,
        "path": said.path,
        "image_count": said.image_count,
        "details": said.metadata,
        "digest": said.digest,
        "key": key,
        "file": seen.file,
        "announced_at": seen.announced_at,
        "first_seen": now,
        "waiting_since": now,
    }


def _said(event: Event) -> ImagingEvent:
    """Turn a row back into what the instrument said."""
    return ImagingEvent(
        id=event.id,
        system=event.system,
        kind=event.kind,  # type: ignore[arg-type]  # it was one of them when it was recorded
        experiment=event.experiment,
        plate=event.plate,
        timestamp=event.timestamp,
        path=event.path,
        image_count=event.image_count,
        metadata=event.details,
    )


def _free(session: Session, wanted: Sequence[tuple[ImagingEvent, int]]) -> list[str]:
    """Give each event a key that no other has: the short one, or the whole id where the short one is taken."""
    short = [events.key(said, revision=revision) for said, revision in wanted]
    taken = set(session.scalars(select(EVENT.key).where(EVENT.key.in_(short))))
    keys = []
    for key, (said, revision) in zip(short, wanted, strict=True):
        keys.append(events.key(said, revision=revision, whole=True) if key in taken else key)
        taken.add(key)
    return keys


def _remember(session: Session, system: str, seen: Sequence[Seen]) -> None:
    """Note that event files were read as they are now."""
    rows = {one.file: {"system": system, "name": one.file, "size": one.size, "mtime_ns": one.mtime_ns} for one in seen}
    _forget(session, system, list(rows))
    if rows:
        session.execute(insert(EventFile), list(rows.values()))


def _forget(session: Session, system: str, names: Sequence[str]) -> None:
    for some in _chunks(names):
        session.execute(delete(EventFile).where(FILE.system == system, FILE.name.in_(some)))


def _sort_out(session: Session, system: str, seen: Sequence[Seen], now: datetime) -> None:
    """Put rejected files into quarantine, and let out those that are fine now."""
    latest = {one.file: one for one in seen}
    query = select(Quarantine).where(
        QUARANTINE.system == system,
        QUARANTINE.name.in_(latest),
        QUARANTINE.event_id.is_(None),
        QUARANTINE.released_at.is_(None),
    )
    active = {row.name: row for row in session.scalars(query)}
    for name, one in latest.items():
        row = active.get(name)
        if one.event is None:
            new = Quarantine(
                system=system,
                name=name,
                reason=one.reason or "rejected",
                content=one.content,
                first_seen=now,
                last_seen=now,
            )
            _set_aside(session, row, new)
        elif row is not None:
            row.released_at = now


def _set_aside(session: Session, active: Quarantine | None, new: Quarantine) -> None:
    """Keep one active row: the same content again only moves it, other content takes its place."""
    if active is not None and active.content == new.content:
        active.reason, active.last_seen = new.reason, new.last_seen
        return
    if active is not None:
        active.released_at = new.first_seen
        session.flush()  # the database allows one active row at any moment
    session.add(new)


def _start_over(session: Session, ref: Ref, now: datetime) -> None:
    """Look at an event's images as if it were announced just now."""
    event = _own(session, ref)
    event.waiting_since = now
    event.fingerprint = event.fingerprint_at = event.present = event.sealed_at = None
    session.execute(delete(Setback).where(SETBACK.event_id == ref.id, SETBACK.revision == ref.revision))


# ---------------------------------------------------------------------------------------------------- the database


def _engine(url: str, mounts: Mapping[str, str] | None) -> Engine:
    """Open the pool of connections; none is made yet.

    Raises:
        Misconfigured: the URL is wrong, or names a database on a network file system.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise Misconfigured("the database URL is not one, like postgresql://user@host/name") from None  # it has secrets
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, mounts)
    if parsed.get_backend_name() == "postgresql":
        return _postgres(parsed)
    raise Misconfigured(f"the catalogue lives in SQLite or PostgreSQL, not in {parsed.get_backend_name()}")


def _postgres(url: URL) -> Engine:
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg").update_query_dict({"application_name": "plateway"}),
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=4,
        max_overflow=8,
        connect_args={} if "connect_timeout" in url.query else {"connect_timeout": 10},
    )


def _sqlite(url: URL, mounts: Mapping[str, str] | None) -> Engine:
    database = url.database or ""
    memory = database in {"", ":memory:"}
    if not memory and (network := network_file_system(Path(database), mounts=mounts)):
        raise Misconfigured(
            f"the catalogue's directory is on a network file system ({network}), where SQLite loses data: "
            "keep it on a local disk, or use PostgreSQL (PLATEWAY_DATABASE_URL)"
        )
    # one connection keeps a database in memory alive, and its users take turns
    pool = {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 0} if memory else {}
    connect = {"timeout": float(str(url.query.get("timeout", PATIENCE))), "check_same_thread": False}
    engine = sa.create_engine(url, hide_parameters=True, connect_args=connect, **pool)

    @hooks.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        _write_ahead(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @hooks.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn on the write-ahead log. SQLite never waits for another process that does the same: it says "locked"."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _make_home(database: Path) -> None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"the catalogue's directory cannot be made: {error.strerror}") from error


def _pragma(connection: Connection) -> Callable[[str], list[Any]]:
    """Say how to run a PRAGMA outside of SQLAlchemy's transactions; elsewhere than on SQLite there are none."""
    raw: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        return lambda text: list(raw.execute(f"PRAGMA {text}"))
    return lambda text: []


def network_file_system(path: Path, *, mounts: Mapping[str, str] | None = None) -> str | None:
    """Name the file system of a path if it is on another machine. ``mounts``: type by mount point."""
    if mounts is None:
        mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    place = path.absolute().resolve()
    nearest = next((str(one) for one in (place, *place.parents) if str(one) in mounts), None)
    kind = mounts[nearest].lower() if nearest else ""
    return kind if kind in NETWORK else None


@contextmanager
def _door() -> Iterator[None]:
    """Let no foreign exception out but those that tell of a mistake of ours."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        raise _ours(error) from error
    except (OverflowError, UnicodeError) as error:
        raise Rejected(f"cannot be recorded: {error}") from error


def _ours(error: DBAPIError | PoolTimeout) -> PlatewayError:
    said = _brief(error)
    if isinstance(error, DataError):
        return Rejected(f"cannot be recorded: {said}")
    if isinstance(error, IntegrityError):
        unknown = "foreign key" in said.lower()
        return NotFound("no such event") if unknown else Conflict(f"the catalogue says otherwise: {said}")
    for pattern, kind, meaning in MEANINGS:
        if re.search(pattern, said):
            return kind(f"the catalogue: {meaning or said}")
    return Unavailable(f"the catalogue does not answer: {said}")


def _brief(error: DBAPIError | PoolTimeout) -> str:
    """Cut a driver's message down to one line without paths; it has no SQL, and so no values."""
    if isinstance(error, PoolTimeout):
        return "no connection came free"
    return re.sub(r'"/[^"]*"', '"…"', str(error.orig).strip().partition("\n")[0])
