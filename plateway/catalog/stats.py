"""Counts of events, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased
from sqlmodel import col

from plateway.catalog.predicates import (
    ARCHIVE,
    EVENT,
    EXPORT,
    QUARANTINE,
    about,
    among,
    day_of,
    expired,
    stands,
    tied,
    waits,
    wanted,
)
from plateway.catalog.rows import chunks, fetch_ledgers
from plateway.catalog.summaries import HOURS, SETTLED, Summaries, within_hours
from plateway.events import Ref
from plateway.ledger import (
    DAY,
    Day,
    Ledger,
    SystemFigures,
)
from plateway.records import ArchiveLocation, Event, Export


class Statistics(Summaries):
    """How many events stand where."""

    def counts(self, now: datetime, *, system: str | None = None) -> dict[str, int]:
        """Count the events in each state, of all systems or of one."""
        self.refresh()
        query = select(*(_total(HOURS[state]) for state in SETTLED))
        query = query if system is None else query.where(HOURS.system == system)
        with self._reading() as session:
            found = Counter(dict(zip(SETTLED, session.execute(query).one(), strict=True)))
            for name, state, count in self._exporting(session, now):
                if system in {None, name}:
                    found.update({"exporting": count, state: -count})
        return {state: count for state, count in sorted(found.items()) if count}

    def quarantine_count(self) -> int:
        """Count the announcements and events that are in quarantine."""
        with self._reading() as session:
            return session.scalar(select(func.count()).where(QUARANTINE.released_at.is_(None))) or 0

    def figures(self, *, now: datetime) -> list[SystemFigures]:
        """Count what became of the events of each system, by name of the system."""
        self.refresh()
        told = {
            "events": _total(HOURS.events),
            "exported": _total(HOURS.sound),
            "archived": _total(HOURS.archives),
            "purged": _total(HOURS.away),
            "waiting": _total(HOURS.unsent),
            "lost": _total(HOURS.harmed),
            "oldest_waiting": func.min(HOURS.oldest_unsent),
            "safe_to_purge": _total(HOURS.safe_bytes),
            "safe_events": _total(HOURS.safe_events),
        }
        sent = select(EVENT.system, _total(EXPORT.size)).join_from(Export, Event, tied(EXPORT, EVENT))
        sent = sent.where(EXPORT.uploaded_at > now - DAY, EXPORT.uploaded_at <= now).group_by(EVENT.system)
        aside = select(QUARANTINE.system, func.count()).where(QUARANTINE.released_at.is_(None))
        with self._reading() as session:
            rows = session.execute(select(HOURS.system, *told.values()).group_by(HOURS.system)).all()
            last_day = _counter(session.execute(sent))
            quarantined = _counter(session.execute(aside.group_by(QUARANTINE.system)))
        found = {system: SystemFigures(system, **dict(zip(told, values, strict=True))) for system, *values in rows}
        return [
            replace(
                found.get(system, SystemFigures(system)),
                quarantined=quarantined[system],
                bytes_last_day=last_day[system],
            )
            for system in sorted(found.keys() | quarantined.keys())
        ]

    def history(self, *, days: int, now: datetime) -> list[Day]:
        """Count what happened on each of the last days (UTC), oldest first, the day of ``now`` included."""
        today = now.astimezone(UTC).date()
        dates = [today - timedelta(days=number) for number in reversed(range(days))]
        since = datetime.combine(dates[0], time(), UTC)
        late = sa.case((EXPORT.uploaded_at > EVENT.first_seen, EXPORT.uploaded_at), else_=EVENT.first_seen)
        other = aliased(ArchiveLocation)
        same = sa.and_(col(other.event_id) == ARCHIVE.event_id, col(other.revision) == ARCHIVE.revision)
        before = sa.tuple_(col(other.reported_at), col(other.path)) < sa.tuple_(ARCHIVE.reported_at, ARCHIVE.path)
        named = select().where(ARCHIVE.reported_at >= since, ~sa.exists().where(same, before))
        unsent_hours = select(HOURS.hour).where(HOURS.unsent > 0).distinct()
        self.refresh()
        event, sent = self._day(EVENT.first_seen), self._day(EXPORT.uploaded_at)
        exported = select().join_from(Event, Export, tied(EXPORT, EVENT)).where(EXPORT.uploaded_at >= since)
        with self._reading() as session:

            def by(query: Any, *columns: Any) -> list[Any]:
                return list(session.execute(query.add_columns(*columns, func.count()).group_by(*columns)))

            events = _counter(by(select().where(EVENT.first_seen >= since), event))
            exports = _counter(by(select().where(EXPORT.uploaded_at >= since), sent))
            archived = _counter(by(named, self._day(ARCHIVE.reported_at)))
            unsent = [
                row
                for some in within_hours(session.scalars(unsent_hours).all())
                for row in by(select().select_from(Event).where(some, ~about(EXPORT, EVENT), wanted()), event)
            ]
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
        self.refresh()
        # the first of each of so many hours: none in a later hour can be among the first of all
        hours = select(HOURS.hour).where(HOURS.oldest_stuck < before).group_by(HOURS.hour)
        hours = hours.order_by(func.min(HOURS.oldest_stuck)).limit(limit)
        unproven = sa.and_(EXPORT.evidence.is_(None), EXPORT.damage.is_(None), EXPORT.uploaded_at < before)
        held_up = sa.or_(waits(), sa.and_(unproven, ~expired(EVENT)))
        with self._reading() as session:
            return self._oldest(session, hours, EVENT.first_seen < before, held_up, limit=limit)

    def harmed(self, *, now: datetime, limit: int = 10_000) -> list[Ledger]:
        """List events that are lost or changed in the bucket, or on tape if that has the only copy; oldest first."""
        self.refresh()
        hours = select(HOURS.hour).where(sa.or_(HOURS.lost > 0, HOURS.changed > 0)).distinct()
        with self._reading() as session:
            return self._oldest(session, hours, sa.or_(stands("lost", now), stands("changed", now)), limit=limit)

    def _oldest(self, session: Session, hours: Any, *conditions: Any, limit: int) -> list[Ledger]:
        """Fetch the events of some hours for which something holds, by the time that they were first seen."""
        query = select(EVENT.first_seen, EVENT.id, EVENT.revision)
        query = query.join_from(Event, Export, tied(EXPORT, EVENT), isouter=True).where(*conditions)
        found = [
            (seen, Ref(id_, revision))
            for some in within_hours(session.scalars(hours).all())
            for seen, id_, revision in session.execute(query.where(some))
        ]
        refs = [ref for _, ref in sorted(found)[:limit]]
        ledgers = {one.ref: one for some in chunks(refs) for one in fetch_ledgers(session, [among(some)])}
        return [ledgers[ref] for ref in refs]

    def _day(self, column: Any) -> Any:
        return day_of(column, postgres=self._postgres)


def _total(column: Any) -> Any:
    return sa.cast(func.coalesce(func.sum(column), 0), sa.BigInteger)


def _counter(rows: Iterable[Any]) -> Counter[str]:
    return Counter(dict(tuple(row) for row in rows))
