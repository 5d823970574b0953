"""Claims: events that are due for export, leased to one worker out of any number that ask at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from plateway.catalog.database import Database
from plateway.catalog.lookup import Claim
from plateway.catalog.predicates import EVENT, LEASE, due_for_export
from plateway.catalog.rows import EPOCH, grant, let_go
from plateway.errors import Busy
from plateway.events import Ref
from plateway.records import Event, Export, Lease


class Claims(Database):
    """Batches of events for workers that share a backlog."""

    def claim_exports(
        self,
        systems: Sequence[str],
        *,
        owner: str,
        ttl: timedelta,
        now: datetime,
        limit: int,
        below: int | None = None,
        above: int | None = None,
        budget: int | None = None,
    ) -> list[Claim]:
        """Lease up to ``limit`` events that are due, in one transaction: equal shares of each system, its oldest first.

        Rows that another worker claims at the same moment are skipped on PostgreSQL; on SQLite workers take turns.
        ``below``: only events whose images have fewer bytes, or whose size is not known. ``above``: only others, of at
        least that many bytes. ``budget``: stop after the event with which the images come to that many bytes.
        Nothing is returned only if nothing is due.
        """
        claims: list[Claim] = []
        size = 0
        sizes = [sa.or_(EVENT.image_bytes.is_(None), EVENT.image_bytes < below)] if below is not None else []
        sizes += [EVENT.image_bytes >= above] if above is not None else []
        with self._writing() as session:
            waiting = list(systems)
            while waiting and len(claims) < limit:
                share = -(-(limit - len(claims)) // len(waiting))
                for system in list(waiting):
                    found = self._lock_due(session, [EVENT.system == system, *sizes], now=now, limit=share)
                    if len(found) < share:
                        waiting.remove(system)
                    for event in found:
                        if len(claims) == limit or (budget is not None and size >= budget):
                            return claims
                        claims += _lease(session, event, owner, now, ttl)
                        size += event.image_bytes or 0
        return claims

    def _lock_due(self, session: Session, where: Sequence[Any], *, now: datetime, limit: int) -> Sequence[Event]:
        """Fetch the oldest due events and lock their rows, without those that another transaction has locked."""
        query = select(Event).where(due_for_export(now), *where).limit(limit)
        query = query.order_by(EVENT.sealed_at, EVENT.id, EVENT.revision)
        return session.scalars(query.with_for_update(key_share=True, skip_locked=True, of=Event)).all()

    def release_claims(self, claims: Iterable[Claim]) -> None:
        """Release leases of events that were claimed and not begun; those that were lost meanwhile stay unchanged."""
        with self._writing() as session:
            for event, _, fence, _ in claims:
                if fence is not None:
                    let_go(session, Ref(event.id, event.revision), fence)

    def backlog(self, *, now: datetime, limit: int) -> int:
        """Count the events that are due for export, up to a limit."""
        with self._reading() as session:
            some = select(EVENT.id).where(due_for_export(now)).limit(limit).subquery()
            return int(session.scalar(select(func.count()).select_from(some)) or 0)

    def lease_owners(self, *, now: datetime) -> list[str]:
        """List who holds leases."""
        with self._reading() as session:
            return list(session.scalars(select(LEASE.owner).distinct().where(LEASE.expires_at > now)))

    def release_owner(self, owner: str) -> int:
        """Release all leases of an owner that has ended, and return how many there were."""
        with self._writing() as session:
            query = update(Lease).where(LEASE.owner == owner, LEASE.expires_at > EPOCH).values(expires_at=EPOCH)
            return int(session.execute(query).rowcount)  # type: ignore[attr-defined]  # of an UPDATE


def _lease(session: Session, event: Event, owner: str, now: datetime, ttl: timedelta) -> Iterator[Claim]:
    """Lease one event; yields nothing if another worker committed its claim after our query began."""
    ref = Ref(event.id, event.revision)
    try:
        yield Claim(event, session.get(Export, tuple(ref)), grant(session, ref, owner, now, ttl))
    except Busy:
        return
