"""Counts of events, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import func, select

from plateway.catalog.database import Database
from plateway.catalog.predicates import (
    ARCHIVE,
    EVENT,
    EXPORT,
    QUARANTINE,
    about,
    among,
    day_of,
    expired,
    in_quarantine,
    raw_away,
    standing,
    stands,
    tied,
    waits,
    wanted,
)
from plateway.catalog.rows import chunks, fetch_ledgers
from plateway.events import Ref
from plateway.ledger import (
    DAY,
    Day,
    Ledger,
    SystemFigures,
)
from plateway.records import Event, Export


class Statistics(Database):
    """How many events stand where."""

    def counts(self, now: datetime) -> dict[str, int]:
        """Count the events in each state."""
        query = (
            select(standing(now), func.count())
            .select_from(Event)
            .outerjoin(Export, tied(EXPORT, EVENT))
            .group_by(sa.literal_column("1"))
        )
        with self._reading() as session:
            return dict(sorted((name, count) for name, count in session.execute(query)))

    def figures(self, *, now: datetime) -> list[SystemFigures]:
        """Count what became of the events of each system, by name of the system."""
        safe = sa.and_(EXPORT.evidence.is_not(None), ~raw_away(), ~in_quarantine(), ~expired(EVENT))
        last_day = sa.and_(EXPORT.uploaded_at > now - DAY, EXPORT.uploaded_at <= now)
        told = {
            "events": func.count(),
            "exported": _number(sa.and_(EXPORT.event_id.is_not(None), EXPORT.damage.is_(None))),
            "archived": _number(about(ARCHIVE, EVENT)),
            "purged": _number(raw_away()),
            "waiting": _number(waits()),
            "lost": _number(EXPORT.damage.is_not(None)),
            "bytes_last_day": _bytes(last_day),
            "oldest_waiting": func.min(sa.case((waits(), EVENT.first_seen))),
            "safe_to_purge": _bytes(safe),
            "safe_events": _number(safe),
        }
        query = select(EVENT.system, *told.values()).join_from(Event, Export, tied(EXPORT, EVENT), isouter=True)
        aside = select(QUARANTINE.system, func.count()).where(QUARANTINE.released_at.is_(None))
        with self._reading() as session:
            rows = session.execute(query.group_by(EVENT.system)).all()
            quarantined = _counter(session.execute(aside.group_by(QUARANTINE.system)))
        found = {system: SystemFigures(system, **dict(zip(told, values, strict=True))) for system, *values in rows}
        systems = sorted(found.keys() | quarantined.keys())
        return [
            replace(found.get(system, SystemFigures(system)), quarantined=quarantined[system]) for system in systems
        ]

    def history(self, *, days: int, now: datetime) -> list[Day]:
        """Count what happened on each of the last days (UTC), oldest first, the day of ``now`` included."""
        today = now.astimezone(UTC).date()
        dates = [today - timedelta(days=number) for number in reversed(range(days))]
        since = datetime.combine(dates[0], time(), UTC)
        late = sa.case((EXPORT.uploaded_at > EVENT.first_seen, EXPORT.uploaded_at), else_=EVENT.first_seen)
        on_tape = select(func.min(ARCHIVE.reported_at).label("at")).group_by(ARCHIVE.event_id, ARCHIVE.revision)
        first = on_tape.subquery().c
        event, sent = self._day(EVENT.first_seen), self._day(EXPORT.uploaded_at)
        exported = select().join_from(Event, Export, tied(EXPORT, EVENT)).where(EXPORT.uploaded_at >= since)
        with self._reading() as session:

            def by(query: Any, *columns: Any) -> list[Any]:
                return list(session.execute(query.add_columns(*columns, func.count()).group_by(*columns)))

            events = _counter(by(select().where(EVENT.first_seen >= since), event))
            exports = _counter(by(select().where(EXPORT.uploaded_at >= since), sent))
            archived = _counter(by(select().where(first.at >= since), self._day(first.at)))
            unsent = by(select().select_from(Event).where(~about(EXPORT, EVENT), wanted()), event)
            waited = by(exported, event, self._day(late))
        spans = [(begin, None, count) for begin, count in unsent] + [tuple(row) for row in waited]
        return [
            Day(
                day=day,
                events=events[name],
                exports=exports[name],
                archived=archived[name],
                waiting=sum(n for begin, end, n in spans if begin <= name and (end is None or end > name)),
            )
            for day in dates
            for name in [day.isoformat()]
        ]

    def stuck(self, *, before: datetime, limit: int = 10_000) -> list[Ledger]:
        """List events first seen before a time that still wait for export, or since then for evidence; oldest first."""
        unproven = sa.and_(EXPORT.evidence.is_(None), EXPORT.damage.is_(None), EXPORT.uploaded_at < before)
        query = (
            select(EVENT.id, EVENT.revision)
            .join_from(Event, Export, tied(EXPORT, EVENT), isouter=True)
            .where(EVENT.first_seen < before, sa.or_(waits(), sa.and_(unproven, ~expired(EVENT))))
            .order_by(EVENT.first_seen, EVENT.id, EVENT.revision)
            .limit(limit)
        )
        return self._ledgers(query)

    def harmed(self, *, now: datetime, limit: int = 10_000) -> list[Ledger]:
        """List events that are lost or changed in the bucket, or on tape if that has the only copy; oldest first."""
        query = (
            select(EVENT.id, EVENT.revision)
            .join_from(Event, Export, tied(EXPORT, EVENT))
            .where(sa.or_(stands("lost", now), stands("changed", now)))
            .order_by(EVENT.first_seen, EVENT.id, EVENT.revision)
            .limit(limit)
        )
        return self._ledgers(query)

    def _ledgers(self, query: Any) -> list[Ledger]:
        """Read the ledgers of the events that a query lists by id and revision, in its order."""
        with self._reading() as session:
            refs = [Ref(*row) for row in session.execute(query)]
            found = {one.ref: one for some in chunks(refs) for one in fetch_ledgers(session, [among(some)])}
            return [found[ref] for ref in refs]

    def _day(self, column: Any) -> Any:
        return day_of(column, postgres=self._postgres)


def _number(condition: Any) -> Any:
    return func.count(sa.case((condition, 1)))


def _bytes(condition: Any) -> Any:
    return sa.cast(func.coalesce(func.sum(sa.case((condition, EXPORT.size))), 0), sa.BigInteger)


def _counter(rows: Iterable[Any]) -> Counter[str]:
    return Counter(dict(tuple(row) for row in rows))
