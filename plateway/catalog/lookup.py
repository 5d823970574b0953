"""Events that are due, everything known of one, and leases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import func, select

from plateway.catalog.database import Database
from plateway.catalog.predicates import (
    EVENT,
    EXPORT,
    SETBACK,
    about,
    among,
    begins,
    beyond,
    due_for_export,
    expired,
    is_event,
    tied,
)
from plateway.catalog.rows import chunks, fenced, fetch_ledger, fetch_ledgers, grant, let_go, own, required
from plateway.errors import Busy, NotFound
from plateway.events import Ref
from plateway.ledger import Ledger
from plateway.records import Event, Export


class Claim(NamedTuple):
    """An event that is to be exported, and the fence of its lease; None: it was not granted."""

    event: Event
    export: Export | None
    fence: int | None = None
    busy: str = ""  # who holds the lease


SHORT = re.compile(r"([0-9a-f-]+?)(?:-r([1-9][0-9]{0,8}))?", re.ASCII)  # an id or its beginning, and a revision
LEAST = 4  # digits of an id that select an event
SHOWN = 5  # events in the message about an ambiguous id


class Lookup(Database):
    """Questions about events, and who works on them."""

    def systems(self) -> list[str]:
        """List the systems that ever announced an event."""
        first = select(func.min(EVENT.system).label("system")).cte(recursive=True)
        after = select(func.min(EVENT.system)).where(EVENT.system > first.c.system).scalar_subquery()
        each = first.union_all(select(after).where(first.c.system.is_not(None)))  # a step in the index for each
        with self._reading() as session:
            return [name for name in session.scalars(select(each.c.system)) if name is not None]

    def due(self, verb: str, *, now: datetime, limit: int = 1000) -> list[Ref]:
        """List the events that are due for ``export`` or ``verify`` now, oldest first."""
        if verb == "verify":
            query = (
                select(EXPORT.event_id, EXPORT.revision)
                .where(EXPORT.evidence.is_(None), EXPORT.damage.is_(None), ~expired(EXPORT))
                .where(~about(SETBACK, EXPORT, SETBACK.verb == verb, SETBACK.next_at > now))
                .order_by(EXPORT.uploaded_at, EXPORT.event_id, EXPORT.revision)
            )
        elif verb == "export":
            query = (
                select(EVENT.id, EVENT.revision)
                .where(due_for_export(now))
                .order_by(EVENT.sealed_at, EVENT.id, EVENT.revision)
            )
        else:
            raise ValueError(f"nobody waits for {verb!r}")
        with self._reading() as session:
            return [Ref(*row) for row in session.execute(query.limit(limit))]

    def resolve(self, text: str, *, prefix: str = "") -> Ref:
        """Find an event by its id or the first digits of it, with ``-r2`` for a revision; else its newest.

        Only events whose key has the prefix count.

        Raises:
            NotFound: no event, or more than one; then the message lists some.
        """
        short = SHORT.fullmatch(text.strip().lower())
        digits = short[1].replace("-", "") if short else ""
        if not short or not LEAST <= len(digits) <= 32:
            raise NotFound(f"{text!r} is not the id of an event, nor its first {LEAST} digits or more")
        among_ids = EVENT.id.between(UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))
        query = select(EVENT.id, func.max(EVENT.revision)).where(among_ids, begins(EVENT.key, prefix))
        with self._reading() as session:
            found = session.execute(query.group_by(EVENT.id).order_by(EVENT.id).limit(SHOWN + 1)).all()
        if len(found) > 1:
            some = ", ".join(str(id_) for id_, _ in found[:SHOWN]) + (" …" if len(found) > SHOWN else "")
            raise NotFound(f"{text}: several events begin so: {some}")
        if not found:
            raise NotFound(f"{text}: no such event")
        id_, newest = found[0]
        return Ref(id_, int(short[2]) if short[2] else newest)

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
            return required(session.get(Event, tuple(ref)), ref)

    def found(self, ref: Ref) -> tuple[Event, Export | None]:
        """Fetch one event and what is noted of its upload, in one query; NotFound when nothing announced it."""
        query = select(Event, Export).outerjoin(Export, tied(EXPORT, EVENT)).where(is_event(*ref))
        with self._reading() as session:
            row = required(session.execute(query).one_or_none(), ref)
            return row[0], row[1]

    def ledger(self, ref: Ref) -> Ledger:
        """Fetch everything known of one event; NotFound when nothing announced it."""
        with self._reading() as session:
            return required(fetch_ledger(session, ref), ref)

    def revisions(self, id: UUID) -> list[Ledger]:  # noqa: A002 - it is the id of the event
        """Fetch all revisions of an event, oldest first; empty when nothing announced it."""
        with self._reading() as session:
            return fetch_ledgers(session, [EVENT.id == id])

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
                where.append(beyond(required(session.get(Event, tuple(after)), after)))
            if refs is None:
                return fetch_ledgers(session, where, limit=limit)
            found = [one for some in chunks(list(refs)) for one in fetch_ledgers(session, [*where, among(some)])]
            return sorted(found, key=lambda one: (one.event.timestamp, one.ref))[:limit]

    def lease(self, ref: Ref, *, owner: str, ttl: timedelta, now: datetime) -> int:
        """Lease an event; return the fence, which is larger with each grant.

        Raises:
            Busy: a worker holds the lease, be it the same one.
        """
        with self._writing() as session:
            own(session, ref)
            return grant(session, ref, owner, now, ttl)

    def claim_export(self, ref: Ref, *, owner: str, ttl: timedelta, now: datetime, again: bool = False) -> Claim:
        """Lease an event for its export, in one transaction with what is recorded of it.

        No lease is granted for an event that has an undamaged export, unless ``again``.

        Raises:
            NotFound: no such event.
        """
        with self._writing() as session:
            event, export = own(session, ref), session.get(Export, tuple(ref))
            if export is not None and export.damage is None and not again:
                return Claim(event, export)
            try:
                return Claim(event, export, grant(session, ref, owner, now, ttl))
            except Busy as error:
                return Claim(event, export, busy=str(error))

    def renew(self, ref: Ref, *, fence: int, ttl: timedelta, now: datetime) -> None:
        """Extend a lease, also one that expired if no other worker was granted it.

        Raises:
            Busy: another worker was granted it since.
        """
        with self._writing() as session:
            fenced(session, ref, fence).expires_at = now + ttl

    def release(self, ref: Ref, *, fence: int) -> None:
        """Release a lease; one that was lost meanwhile is left unchanged."""
        with self._writing() as session:
            let_go(session, ref, fence)
