"""The outbox: messages to others about facts, each written in the transaction of its fact.

A message is a row for each registered target; without targets none is written. Two facts of one event are recorded one
after the other, because each locks the event's row, so the sequence numbers of an event's messages are in order. A
message that is committed late is found all the same: what is pending is a column, not a number that was passed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from plateway.catalog.database import Database
from plateway.catalog.predicates import EVENT, tied
from plateway.catalog.rows import chunks
from plateway.errors import NotFound
from plateway.events import Ref
from plateway.outcome import Fact
from plateway.records import Event, OutboxMessage, OutboxTarget, Record

MESSAGE, TARGET = (Record.metadata.tables[table.__tablename__].c for table in (OutboxMessage, OutboxTarget))


@dataclass(frozen=True)
class Message:
    """One fact about one event, for one target."""

    sequence: int
    id: UUID  # the same for all targets and all deliveries
    target: str
    fact: Fact
    at: datetime  # when the fact was recorded
    details: Mapping[str, Any]
    event: Event = field(repr=False)
    delivered_at: datetime | None = None

    @property
    def ref(self) -> Ref:
        """The event and revision that it is about."""
        return Ref(self.event.id, self.event.revision)


class Backlog(NamedTuple):
    """The state of one target."""

    target: OutboxTarget
    pending: int
    oldest: datetime | None  # of the pending messages

    def age(self, now: datetime) -> timedelta:
        """Return the age of the oldest pending message; zero if none is pending."""
        return max(now - self.oldest, timedelta()) if self.oldest else timedelta()


class News(NamedTuple):
    """A fact to be told."""

    ref: Ref
    fact: Fact
    at: datetime
    details: Mapping[str, Any]


def add_messages(session: Session, news: Iterable[News]) -> None:
    """Write messages about facts, in the transaction of the facts, for each registered target."""
    targets = session.scalars(select(TARGET.name)).all()
    if not targets:
        return
    rows = []
    for one in news:
        facts = {"event_id": one.ref.id, "revision": one.ref.revision, "fact": one.fact.value, "at": one.at}
        facts |= {"message": uuid4(), "details": dict(one.details)}
        rows += [facts | {"target": target} for target in targets]
    if rows:
        session.execute(insert(OutboxMessage), rows)


class Outbox(Database):
    """Targets, and the messages that each of them still has to get."""

    def register_targets(self, names: Collection[str], *, now: datetime) -> list[str]:
        """Write messages for these targets from now on; return those that are new."""
        with self._writing() as session:
            self._take_turn(session)
            new = sorted(set(names) - set(session.scalars(select(TARGET.name))))
            session.add_all(OutboxTarget(name=name, registered_at=now) for name in new)
            return new

    def forget_target(self, name: str) -> None:
        """Write no more messages for a target, and delete those that it has.

        Raises:
            NotFound: no target has this name.
        """
        with self._writing() as session:
            self._take_turn(session)
            _require_target(session, name)
            session.execute(delete(OutboxMessage).where(MESSAGE.target == name))
            session.execute(delete(OutboxTarget).where(TARGET.name == name))

    def hold_target(self, name: str, holder: str, *, now: datetime, ttl: timedelta) -> bool:
        """Become or stay the one process that relays to a target; return whether that succeeded."""
        free = sa.or_(TARGET.holder.is_(None), TARGET.holder == holder, TARGET.held_until <= now)
        query = update(OutboxTarget).where(TARGET.name == name, free).values(holder=holder, held_until=now + ttl)
        with self._writing() as session:
            return bool(session.connection().execute(query).rowcount)

    def release_target(self, name: str, holder: str) -> None:
        """Allow another process to relay to a target."""
        mine = (TARGET.name == name, TARGET.holder == holder)
        with self._writing() as session:
            session.execute(update(OutboxTarget).where(*mine).values(holder=None, held_until=None))

    def pending_messages(self, target: str, *, after: int = 0, limit: int = 100) -> list[Message]:
        """List the messages that a target has not got, in their order, after a sequence number."""
        where = (MESSAGE.target == target, MESSAGE.delivered_at.is_(None), MESSAGE.sequence > after)
        with self._reading() as session:
            return _messages(session, where, order=MESSAGE.sequence, limit=limit)

    def outbox_messages(
        self, *, target: str | None = None, event: UUID | None = None, pending: bool = False, limit: int = 50
    ) -> list[Message]:
        """List messages, the newest first."""
        where = [MESSAGE.target == target] if target else []
        where += [MESSAGE.event_id == event] if event else []
        where += [MESSAGE.delivered_at.is_(None)] if pending else []
        with self._reading() as session:
            return _messages(session, where, order=MESSAGE.sequence.desc(), limit=limit)

    def record_delivered(self, target: str, sequences: Sequence[int], *, now: datetime) -> None:
        """Record that a target has got these messages."""
        with self._writing() as session:
            for some in chunks(sequences):
                mine = (MESSAGE.target == target, MESSAGE.sequence.in_(some))
                session.execute(update(OutboxMessage).where(*mine).values(delivered_at=now))
            done = {"delivered_at": now, "error": None, "error_at": None}
            session.execute(update(OutboxTarget).where(TARGET.name == target).values(done))

    def record_outbox_error(self, target: str, error: str, *, now: datetime) -> None:
        """Record why the last attempt to relay to a target failed."""
        facts = {"error": error, "error_at": now}
        with self._writing() as session:
            session.execute(update(OutboxTarget).where(TARGET.name == target).values(facts))

    def trim_outbox(self, target: str, *, before: datetime) -> None:
        """Delete the messages that a target got before a time."""
        with self._writing() as session:
            session.execute(delete(OutboxMessage).where(MESSAGE.target == target, MESSAGE.delivered_at < before))

    def replay_messages(
        self, target: str, *, since: datetime | None = None, event: UUID | None = None, message: UUID | None = None
    ) -> int:
        """Make delivered messages pending again; return their number. Without a filter, all that are kept.

        Raises:
            NotFound: no target has this name.
        """
        where = [MESSAGE.target == target, MESSAGE.delivered_at.is_not(None)]
        where += [MESSAGE.at >= since] if since else []
        where += [MESSAGE.event_id == event] if event else []
        where += [MESSAGE.message == message] if message else []
        with self._writing() as session:
            _require_target(session, target)
            found = session.connection().execute(update(OutboxMessage).where(*where).values(delivered_at=None))
            return int(found.rowcount)

    def backlogs(self) -> list[Backlog]:
        """Return the state of each target, by name."""
        waits = (
            select(MESSAGE.target, func.count().label("pending"), func.min(MESSAGE.at).label("oldest"))
            .where(MESSAGE.delivered_at.is_(None))
            .group_by(MESSAGE.target)
            .subquery()
        )
        query = select(OutboxTarget, waits.c.pending, waits.c.oldest).outerjoin(waits, waits.c.target == TARGET.name)
        with self._reading() as session:
            rows = session.execute(query.order_by(TARGET.name))
            return [Backlog(target, pending or 0, oldest) for target, pending, oldest in rows]


def _require_target(session: Session, name: str) -> None:
    if session.get(OutboxTarget, name) is None:
        raise NotFound(f"no target of messages is called {name!r}")


def _messages(session: Session, where: Sequence[Any], *, order: Any, limit: int) -> list[Message]:
    query = select(OutboxMessage, Event).join(Event, tied(MESSAGE, EVENT)).where(*where)
    return [
        Message(
            sequence=row.sequence or 0,
            id=row.message,
            target=row.target,
            fact=Fact(row.fact),
            at=row.at,
            details=row.details,
            event=event,
            delivered_at=row.delivered_at,
        )
        for row, event in session.execute(query.order_by(order).limit(limit))
    ]
