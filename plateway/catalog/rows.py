"""Rows that several parts of the catalogue fetch, inside a transaction that the caller holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from plateway.catalog.conditions import ARCHIVE, ENTRY, EVENT, EXPORT, LEASE, PURGE, QUARANTINE, SETBACK, is_event, tied
from plateway.catalog.values import Ledger, Ref
from plateway.errors import Busy, NotFound
from plateway.records import ArchiveEntry, ArchiveLocation, Event, Export, Lease, Purge, Quarantine, Setback

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # a lease that was let go has expired then
CHUNK = 500  # names or refs in one statement
T = TypeVar("T")


def required(row: T | None, ref: Ref) -> T:
    if row is None:
        raise NotFound(f"{ref}: no such event")
    return row


def own(session: Session, ref: Ref) -> Event:
    """Fetch an event and make other writers about it wait; NotFound when nothing announced it."""
    query = select(Event).where(is_event(*ref)).with_for_update(key_share=True)
    return required(session.scalar(query), ref)


def fenced(session: Session, ref: Ref, fence: int) -> Lease:
    """Fetch a lease that nobody else was granted since; Busy otherwise."""
    own(session, ref)
    lease = session.get(Lease, tuple(ref))
    if lease is None or lease.fence != fence:
        raise Busy(f"{ref}: the lease was lost" + (f" to {lease.owner}" if lease else ""))
    return lease


def let_go(session: Session, ref: Ref, fence: int) -> None:
    mine = (LEASE.event_id == ref.id, LEASE.revision == ref.revision, LEASE.fence == fence)
    session.execute(update(Lease).where(*mine, LEASE.expires_at > EPOCH).values(expires_at=EPOCH))


def doubt(session: Session, ref: Ref, key: str) -> None:
    """Park what tape names as an event's, because ``<bucket>/<key>`` has other bytes now: it is tried again."""
    session.execute(delete(ArchiveLocation).where(ARCHIVE.event_id == ref.id, ARCHIVE.revision == ref.revision))
    tried = sa.or_(ENTRY.settled_at.is_not(None), ENTRY.refuted_at.is_not(None))
    fresh = {"settled_at": None, "refuted_at": None, "reason": None}
    session.execute(update(ArchiveEntry).where(ENTRY.key == key, tried).values(fresh))


def fetch_ledgers(session: Session, where: Sequence[Any], *, limit: int | None = None) -> list[Ledger]:
    """Fetch ledgers in the order of ``Catalog.ledgers``, one query a table."""
    order = (EVENT.timestamp, EVENT.id, EVENT.revision)
    rows = session.scalars(select(Event).where(*where).order_by(*order).limit(limit)).all()
    chosen = select(EVENT.id.label("event_id"), EVENT.revision).where(*where).order_by(*order).limit(limit).subquery()

    def told(table: type[T], columns: Any, *conditions: Any, by: Sequence[Any] = ()) -> dict[Ref, list[T]]:
        found: dict[Ref, list[T]] = defaultdict(list)
        query = select(table).join(chosen, tied(columns, chosen.c)).where(*conditions).order_by(*by)
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


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
