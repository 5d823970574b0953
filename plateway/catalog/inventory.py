"""The whole inventory: every event by key, objects in no record, and adoption of such objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from plateway.catalog.database import Database
from plateway.catalog.predicates import (
    ARCHIVE,
    DARK,
    EVENT,
    EXPORT,
    LEASE,
    PURGE,
    SETBACK,
    expired,
    tied,
)
from plateway.catalog.rows import EPOCH, chunks
from plateway.errors import Busy, Conflict
from plateway.events import Ref
from plateway.ledger import Account
from plateway.records import DarkObject, Event, Export, Lease, Purge, Setback

PAGE = 10_000  # events in one transaction
RAW = ("here", "aside", "gone")
EXPIRED = len(RAW)  # what a bucket copy that expired adds to the place of the raw images


class Sight(Protocol):
    """An object in a bucket: ``Stat`` is one."""

    @property
    def key(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def etag(self) -> str: ...


class Inventory(Database):
    """The catalogue's side of a comparison with the bucket, and what comes of it."""

    def accounts(self, *, bucket: str | None = None, page: int = PAGE) -> Iterator[Account]:
        """Yield one account per event, in the byte order of keys; ``bucket`` leaves out exports elsewhere.

        Page by page, each in a transaction of its own: what changes meanwhile may be seen as before or after, and
        ``held_until`` is as it was at the beginning.
        """
        query = _accounts(bucket).limit(page)
        after, held = "", self._held()
        while True:
            with self._reading() as session:
                rows = session.connection().execute(query, {"after": after}).all()
            yield from (_account(row, held) for row in rows)
            if len(rows) < page:
                return
            after = rows[-1][0]

    def _held(self) -> dict[tuple[UUID, int], datetime]:
        """Return the end of each lease; few events are leased, so one query serves all."""
        held = select(LEASE.event_id, LEASE.revision, LEASE.expires_at).where(LEASE.expires_at > EPOCH)
        with self._reading() as session:
            return {(id_, revision): until for id_, revision, until in session.execute(held)}

    def export_count(self, bucket: str) -> int:
        """Count the exports that should be in a bucket, or in a part of it that has a prefix."""
        there = (EXPORT.bucket == bucket) | EXPORT.bucket.startswith(f"{bucket}/", autoescape=True)
        query = select(func.count()).select_from(Export).where(there, ~expired(EXPORT))
        with self._reading() as session:
            return session.scalar(query) or 0

    def exported_to(self, bucket: str, endpoints: Collection[str | None]) -> bool:
        """Return whether any export is recorded in a bucket behind one of these endpoints; None: endpoint unknown."""
        behind = [EXPORT.endpoint.is_(None) if one is None else EXPORT.endpoint == one for one in endpoints]
        query = select(EXPORT.key).where(EXPORT.bucket == bucket, sa.or_(*behind)).limit(1)
        with self._reading() as session:
            return session.scalar(query) is not None

    def sight_dark(
        self, objects: Sequence[Sight], *, bucket: str, now: datetime, endpoint: str | None = None
    ) -> dict[str, datetime]:
        """Record dark objects; return when each was first seen as it is. Others stay recorded."""
        seen = {one.key: one for one in objects}
        here = sa.and_(DARK.endpoint == (endpoint or ""), DARK.bucket == bucket)
        first: dict[str, datetime] = {}
        with self._reading() as session:
            for some in chunks(sorted(seen)):
                noted = session.scalars(select(DarkObject).where(here, DARK.key.in_(some)))
                same = [row for row in noted if (row.size, row.etag) == (seen[row.key].size, seen[row.key].etag)]
                first |= {row.key: row.first_seen for row in same}
        new = [one for key, one in sorted(seen.items()) if key not in first]
        if new:
            with self._writing() as session:
                self._take_turn(session)
                _undark(session, here, [one.key for one in new])
                place = {"endpoint": endpoint or "", "bucket": bucket, "first_seen": now}
                rows = [{**place, "key": one.key, "size": one.size, "etag": one.etag} for one in new]
                session.execute(insert(DarkObject), rows)
        return {key: first.get(key, now) for key in seen}

    def clear_dark(self, *, bucket: str, keep: Iterable[str], endpoint: str | None = None) -> None:
        """Forget the dark objects of a bucket but these, and all of that name from before endpoints were noted."""
        for place in {endpoint or "", ""}:
            here = sa.and_(DARK.endpoint == place, DARK.bucket == bucket)
            with self._reading() as session:
                known = set(session.scalars(select(DARK.key).where(here)))
            if gone := sorted(known - set(keep if place == (endpoint or "") else ())):
                with self._writing() as session:
                    _undark(session, here, gone)

    def adopt(
        self, event: Event, export: Export | None, *, now: datetime, gone: Mapping[str, Any] | None = None
    ) -> bool:
        """Record an event and its export as read from the bucket; return whether either is new.

        What is known already stays as it is. ``gone`` is for an export that was read from tape because the bucket
        has it no more: the proof that its new tombstone keeps.

        Raises:
            Conflict: another event, or another export of this one, is at this key; or the id has other content.
            Busy: somebody is at work on the event.
        """
        ref = Ref(event.id, event.revision)
        with self._writing() as session:
            self._take_turn(session)
            known = session.get(Event, tuple(ref), with_for_update={"key_share": True})
            if known is None:
                _unclaimed(session, event)
                session.add(Event(**event.model_dump()))
                session.flush()
            elif (known.digest, known.key) != (event.digest, event.key):
                raise Conflict(f"{ref}: known with other content, or at {known.key}")
            new = export is not None and _adopt(session, ref, export, now)
            if new and gone is not None:
                session.flush()
                session.add(_tombstone(ref, gone, now))
            return known is None or new

    def empty(self) -> bool:
        """Was no event ever noted?"""
        with self._reading() as session:
            return session.scalar(select(EVENT.id).limit(1)) is None


def _accounts(bucket: str | None) -> Any:
    """Select a page of accounts: the columns of ``Account`` with id and revision for its ref, then the endpoint.

    However many events, a row costs one look into each table.
    """
    archives = select(func.count()).select_from(ARCHIVE.path.table).where(tied(ARCHIVE, EVENT))
    raw = sa.case((PURGE.gone_at.is_not(None), 2), else_=1)
    away = select(func.sum(sa.case((PURGE.place == "bucket", EXPIRED), (PURGE.place == "raw", raw), else_=0)))
    away = away.where(tied(PURGE, EVENT), PURGE.trashed_at.is_not(None), PURGE.restored_at.is_(None))
    event = EVENT.key.table
    query = (
        select(
            EVENT.key,
            EVENT.id,
            EVENT.revision,
            EXPORT.endpoint,
            EVENT.system,
            EVENT.path,
            EVENT.sealed_at.is_not(None),
            EXPORT.bucket,
            EXPORT.size,
            func.coalesce(EXPORT.seen_etag, EXPORT.etag),
            EXPORT.sha256,
            EXPORT.uploaded_at,
            EXPORT.evidence,
            EXPORT.evidence_at,
            EXPORT.damage,
            EXPORT.damage_kind,
            archives.correlate(event).scalar_subquery(),
            away.correlate(event).scalar_subquery(),
        )
        .select_from(event)
        .outerjoin(EXPORT.key.table, tied(EXPORT, EVENT))
        .where(EVENT.key > sa.bindparam("after"))
        .order_by(EVENT.key)
    )
    return query if bucket is None else query.where(sa.or_(EXPORT.bucket == bucket, EXPORT.bucket.is_(None)))


def _account(row: Any, held: Mapping[tuple[UUID, int], datetime]) -> Account:
    ref = Ref(row[1], row[2])
    expired, raw = divmod(int(row[-1] or 0), EXPIRED)
    return Account._make((row[0], ref, *row[4:-1], RAW[raw], bool(expired), held.get(ref), row[3]))


def _undark(session: Session, here: sa.ColumnElement[bool], keys: Sequence[str]) -> None:
    for some in chunks(keys):
        session.execute(delete(DarkObject).where(here, DARK.key.in_(some)))


def _unclaimed(session: Session, event: Event) -> None:
    """Raise if another event has the same identity or key."""
    same = sa.or_(EVENT.key == event.key, sa.and_(EVENT.id == event.id, EVENT.digest == event.digest))
    other = session.execute(select(EVENT.id, EVENT.revision, EVENT.key).where(same)).first()
    if other is not None:
        raise Conflict(f"{Ref(event.id, event.revision)}: {Ref(*other[:2])} is at {other.key} already")


def _tombstone(ref: Ref, proof: Mapping[str, Any], now: datetime) -> Purge:
    return Purge(
        event_id=ref.id,
        revision=ref.revision,
        place="bucket",
        attempt=1,
        proof=dict(proof),
        trash="",
        intended_at=now,
        trashed_at=now,
        gone_at=now,
    )


def _adopt(session: Session, ref: Ref, export: Export, now: datetime) -> bool:
    known = session.get(Export, tuple(ref))
    if known is not None:
        same = (known.bucket, known.key, known.sha256) == (export.bucket, export.key, export.sha256)
        if not same or known.endpoint not in {None, export.endpoint}:
            where = f"{known.bucket}/{known.key}" + (f" at {known.endpoint}" if known.endpoint else "")
            raise Conflict(f"{ref}: exported to {where} already, with SHA-256 {known.sha256}")
        return False
    lease = session.get(Lease, tuple(ref))
    if lease is not None and lease.expires_at > now:
        raise Busy(f"{ref}: {lease.owner} is at it")
    session.add(Export(**export.model_dump()))
    session.execute(delete(Setback).where(SETBACK.event_id == ref.id, SETBACK.revision == ref.revision))
    return True
