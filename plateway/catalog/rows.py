"""Rows that several parts of the catalogue fetch, inside a transaction that the caller holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from plateway.catalog.predicates import (
    ARCHIVE,
    ENTRY,
    EVENT,
    EXPORT,
    HOLD,
    INCIDENT,
    LEASE,
    PURGE,
    QUARANTINE,
    SETBACK,
    is_event,
    tied,
)
from plateway.errors import Busy, NotFound
from plateway.events import Ref
from plateway.ledger import Ledger
from plateway.outcome import Incidence
from plateway.records import (
    ArchiveEntry,
    ArchiveLocation,
    Event,
    Export,
    Incident,
    Lease,
    LegalHold,
    Purge,
    Quarantine,
    Record,
    Setback,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # a lease that was let go has expired then
CHUNK = 500  # names or refs in one statement
T = TypeVar("T")


def required(row: T | None, ref: Ref) -> T:
    if row is None:
        raise NotFound(f"{ref}: no such event")
    return row


def own(session: Session, ref: Ref) -> Event:
    """Fetch an event and lock its row; NotFound if it was never announced."""
    query = select(Event).where(is_event(*ref)).with_for_update(key_share=True)
    return required(session.scalar(query), ref)


def grant(session: Session, ref: Ref, owner: str, now: datetime, ttl: timedelta) -> int:
    """Grant the lease of an event whose row is locked; return the new fence.

    Raises:
        Busy: a worker holds the lease.
    """
    lease = session.get(Lease, tuple(ref))
    if lease is None:
        lease = Lease(event_id=ref.id, revision=ref.revision, owner=owner, fence=0, expires_at=EPOCH)
        session.add(lease)
    if lease.expires_at > now:
        left = (lease.expires_at - now).total_seconds()
        raise Busy(f"{ref}: {lease.owner} is at it, for {left:.0f} s unless it renews")
    lease.owner, lease.fence, lease.expires_at = owner, lease.fence + 1, now + ttl
    return lease.fence


def fenced(session: Session, ref: Ref, fence: int) -> Lease:
    """Fetch a lease that is still the last one granted; Busy otherwise."""
    own(session, ref)
    lease = session.get(Lease, tuple(ref))
    if lease is None or lease.fence != fence:
        raise Busy(f"{ref}: the lease was lost" + (f" to {lease.owner}" if lease else ""))
    return lease


def check_fence(session: Session, ref: Ref, fence: int | None, at: datetime) -> None:
    """Raise if another worker was granted the lease; without a fence, if any worker holds it.

    Raises:
        Busy: another worker was granted the lease.
    """
    if fence is not None:
        fenced(session, ref, fence)
        return
    lease = session.get(Lease, tuple(ref))
    if lease is not None and lease.expires_at > at:
        raise Busy(f"{ref}: {lease.owner} holds the lease")


def add_incident(
    session: Session, ref: Ref, kind: Incidence, verb: str, reason: str, *, at: datetime, actor: str
) -> None:
    """Append to an event's history; the same as its last entry of that kind and verb only counts up."""
    mine = (INCIDENT.event_id == ref.id, INCIDENT.revision == ref.revision)
    query = select(Incident).where(*mine, INCIDENT.kind == kind, INCIDENT.verb == verb)
    last = session.scalar(query.order_by(INCIDENT.id.desc()).limit(1))
    if last is not None and last.reason == reason:
        last.times, last.last_at, last.actor = last.times + 1, max(last.last_at, at), actor
        return
    facts: dict[str, Any] = {
        "event_id": ref.id,
        "revision": ref.revision,
        "kind": kind.value,
        "verb": verb,
        "reason": reason,
    }
    session.add(Incident(**facts, actor=actor, at=at, last_at=at))


def let_go(session: Session, ref: Ref, fence: int) -> None:
    mine = (LEASE.event_id == ref.id, LEASE.revision == ref.revision, LEASE.fence == fence)
    session.execute(update(Lease).where(*mine, LEASE.expires_at > EPOCH).values(expires_at=EPOCH))


def doubt(session: Session, ref: Ref, key: str) -> None:
    """Park what tape names as an event's, because ``<bucket>/<key>`` has other bytes now: it is tried again."""
    session.execute(delete(ArchiveLocation).where(ARCHIVE.event_id == ref.id, ARCHIVE.revision == ref.revision))
    tried = sa.or_(ENTRY.settled_at.is_not(None), ENTRY.refuted_at.is_not(None))
    fresh = {"settled_at": None, "refuted_at": None, "reason": None}
    session.execute(update(ArchiveEntry).where(ENTRY.key == key, tried).values(fresh))


class _Told(NamedTuple):
    """A table whose rows are about an event."""

    table: type[Record]
    columns: Any
    conditions: Sequence[Any] = ()
    order: Sequence[Any] = ()


TOLD = (
    _Told(Export, EXPORT),
    _Told(Lease, LEASE),
    _Told(ArchiveLocation, ARCHIVE, order=[ARCHIVE.reported_at, ARCHIVE.path]),
    _Told(Purge, PURGE, order=[PURGE.intended_at, PURGE.place, PURGE.attempt]),
    _Told(Quarantine, QUARANTINE, conditions=[QUARANTINE.released_at.is_(None)]),
    _Told(Setback, SETBACK, order=[SETBACK.verb]),
)
THIS: tuple[Any, Any] = (sa.bindparam("id"), sa.bindparam("revision"))
STANDING = select(LegalHold).where(HOLD.released_at.is_(None)).order_by(HOLD.at, HOLD.id)
# made once: it takes longer than what they ask for
ONE = select(Event).where(is_event(*THIS))
OF_ONE = [
    select(table).where(of.event_id == THIS[0], of.revision == THIS[1], *conditions).order_by(*order)
    for table, of, conditions, order in TOLD
]


def fetch_ledger(session: Session, ref: Ref) -> Ledger | None:
    """Fetch everything known of one event."""
    event = session.scalar(ONE, ref._asdict())
    if event is None:
        return None
    holds = session.scalars(STANDING.where(HOLD.event_id.is_(None) | (HOLD.event_id == event.id))).all()
    return _ledger(event, [session.scalars(query, ref._asdict()).all() for query in OF_ONE], holds)


def fetch_ledgers(session: Session, where: Sequence[Any], *, limit: int | None = None) -> list[Ledger]:
    """Fetch ledgers in the order of ``Catalog.ledgers``, one query a table."""
    order = (EVENT.timestamp, EVENT.id, EVENT.revision)
    rows = session.scalars(select(Event).where(*where).order_by(*order).limit(limit)).all()
    chosen = select(EVENT.id.label("event_id"), EVENT.revision).where(*where).order_by(*order).limit(limit).subquery()

    def told(one: _Told) -> dict[Ref, list[Any]]:
        found: dict[Ref, list[Any]] = defaultdict(list)
        query = select(one.table).join(chosen, tied(one.columns, chosen.c)).where(*one.conditions)
        for row in session.scalars(query.order_by(*one.order)) if rows else ():
            found[Ref(row.event_id, row.revision)].append(row)  # type: ignore[attr-defined]  # each of these has it
        return found

    tables = [told(one) for one in TOLD]
    mine = HOLD.event_id.is_(None) | HOLD.event_id.in_(select(chosen.c.event_id))
    holds = session.scalars(STANDING.where(mine)).all() if rows else ()
    return [_ledger(row, [found[Ref(row.id, row.revision)] for found in tables], holds) for row in rows]


def _ledger(event: Event, told: Sequence[Sequence[Any]], holds: Sequence[LegalHold]) -> Ledger:
    """Build a ledger from the rows of the tables, in their order, and the legal holds that may be about the event."""
    exports, leases, archives, purges, quarantines, setbacks = told
    return Ledger(
        event=event,
        export=next(iter(exports), None),
        archives=tuple(archives),
        purges=tuple(purges),
        quarantine=next(iter(quarantines), None),
        setbacks=tuple(setbacks),
        lease=next(iter(leases), None),
        legal_holds=tuple(one for one in holds if one.covers(event)),
    )


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
