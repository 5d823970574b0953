"""What people and their programs look for: exports, archives, events that fit, and figures at a glance.

Every question takes ``prefix``: it is about events only whose key begins with it, compared by bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased
from sqlmodel import col

from plateway import keys
from plateway.catalog.predicates import (
    ARCHIVE,
    EVENT,
    EXPORT,
    LEASE,
    QUARANTINE,
    SETBACK,
    about,
    among,
    begins,
    day_of,
    expired,
    hour_in,
    standing,
    stands,
    tied,
    waits,
)
from plateway.catalog.rows import chunks, fetch_ledgers
from plateway.catalog.summaries import (
    ARCHIVES,
    HOURS,
    SETTLED,
    TO_END,
    UPLOADS,
    Summaries,
    archive_id,
    hour_of,
    start_of,
)
from plateway.events import Ref
from plateway.ledger import (
    DAY,
    STATES,
    ArchiveRow,
    Cursor,
    DailyRow,
    Ledger,
    Overview,
    SystemOverview,
    TapeMember,
)
from plateway.records import ArchiveLocation, ArchiveSummary, Event, Export, Quarantine

ID = re.compile(r"([0-9a-f-]{1,36})(?:-r([1-9]\d{0,8}))?", re.IGNORECASE)
HEX = 32  # digits of an id
PAGE = 500  # events that are read at a time
NEVER = datetime.max.replace(tzinfo=UTC)


class SearchQueries(Summaries):
    """Questions about many events, answered a page at a time."""

    def exports_page(
        self, *, since: datetime, until: datetime, kind: str | None = None, prefix: str = "", limit: int, offset: int
    ) -> tuple[int, list[tuple[Event, Export]]]:
        """List uploads that arrived between two times, both left out, and are good and not expired; count all such.

        By time of arrival, id and revision. Without a prefix, ``offset`` costs no more than an hour's uploads.
        """
        where = [EXPORT.damage.is_(None), ~expired(EXPORT), begins(EVENT.key, prefix)]
        where += [EVENT.kind == kind] if kind is not None else []
        order = (EXPORT.uploaded_at, EXPORT.event_id, EXPORT.revision)
        fits = select().join_from(Export, Event, tied(EXPORT, EVENT)).where(*where)
        if not prefix:
            self.refresh()
        with self._reading() as session:

            def count(*conditions: Any) -> int:
                return session.scalar(fits.add_columns(func.count()).where(*conditions)) or 0

            after, before = EXPORT.uploaded_at > since, EXPORT.uploaded_at < until
            first, last = hour_of(since), hour_of(until)
            if prefix or first >= last:
                total, start, skip = count(after, before), after, offset
            else:
                hours = select(UPLOADS.hour, func.sum(UPLOADS.listed)).group_by(UPLOADS.hour).order_by(UPLOADS.hour)
                hours = hours.where(UPLOADS.hour > first, UPLOADS.hour < last)
                hours = hours.where(UPLOADS.kind == kind) if kind is not None else hours
                spans = [
                    (after, count(after, EXPORT.uploaded_at <= start_of(first) + TO_END)),
                    *((EXPORT.uploaded_at >= start_of(hour), int(n)) for hour, n in session.execute(hours)),
                    (EXPORT.uploaded_at >= start_of(last), count(EXPORT.uploaded_at >= start_of(last), before)),
                ]
                total = sum(n for _, n in spans)
                start, skip = _position(spans, offset)
            page = fits.add_columns(Event, Export).where(start, before).order_by(*order).limit(limit).offset(skip)
            found = session.execute(page) if offset < total and limit else ()
            return total, [(event, export) for event, export in found]

    def archives_page(
        self, *, experiment: str | None = None, prefix: str = "", limit: int, offset: int
    ) -> tuple[int, list[ArchiveRow]]:
        """List archives by the time of their first report, and path; count all such."""
        if not prefix and experiment is None:
            return self._all_archives(limit=limit, offset=offset)
        mine = [begins(EVENT.key, prefix), *([EVENT.experiment == experiment] if experiment is not None else [])]
        found = select(ARCHIVE.path, func.min(ARCHIVE.reported_at).label("created_at"), func.count())
        found = found.join_from(ArchiveLocation, Event, tied(ARCHIVE, EVENT)).where(*mine).group_by(ARCHIVE.path)
        with self._reading() as session:
            count = session.scalar(select(func.count()).select_from(found.subquery())) or 0
            page = session.execute(found.order_by("created_at", ARCHIVE.path).limit(limit).offset(offset)).all()
            rows = {row.path: row for row in _archives(session, [path for path, *_ in page], mine)}
            return count, [rows[path] for path, *_ in page]

    def _all_archives(self, *, limit: int, offset: int) -> tuple[int, list[ArchiveRow]]:
        self.refresh()
        query = select(ArchiveSummary).order_by(ARCHIVES.reported_at, ARCHIVES.path).limit(limit).offset(offset)
        with self._reading() as session:
            count = session.scalar(select(func.count()).select_from(ArchiveSummary)) or 0
            rows = session.scalars(query)
            return count, [
                ArchiveRow(one.id, one.path, one.kind, one.experiment, one.reported_at, one.members) for one in rows
            ]

    def archive_members(self, id: UUID, *, prefix: str = "") -> tuple[ArchiveRow, list[TapeMember]] | None:  # noqa: A002
        """Fetch one archive with its events, by their time; None where there is none."""
        query = (
            select(EVENT.id, EVENT.revision, EXPORT.key, EVENT.timestamp, EXPORT.size, EXPORT.sha256)
            .join_from(ArchiveLocation, Event, tied(ARCHIVE, EVENT))
            .join(Export, tied(EXPORT, EVENT))
            .where(begins(EVENT.key, prefix))
            .order_by(EVENT.timestamp, EVENT.id, EVENT.revision)
        )
        self.refresh()
        with self._reading() as session:
            paths = session.scalars(select(ARCHIVES.path).where(ARCHIVES.id == id)).all()
            for row in _archives(session, paths, [begins(EVENT.key, prefix)]):
                members = session.execute(query.where(ARCHIVE.path == row.path))
                return row, [
                    TapeMember(Ref(id_, revision), keys.tar_name(key), *facts) for id_, revision, key, *facts in members
                ]
        return None

    def daily(self, *, days: int = 7, prefix: str = "") -> list[DailyRow]:
        """Count what became of the events of the last days (UTC) that images are of, newest first."""
        if not prefix:
            return self._all_daily(days)
        mine = begins(EVENT.key, prefix)
        day = day_of(EVENT.timestamp, postgres=self._postgres)
        told = [func.count(), *(_number(about(table, EVENT)) for table in (EXPORT, ARCHIVE))]
        with self._reading() as session:
            oldest = NEVER
            for _ in range(days):
                last = session.scalar(select(func.max(EVENT.timestamp)).where(mine, EVENT.timestamp < oldest))
                if last is None:
                    break
                oldest = datetime.combine(last.date(), time(), UTC)
            rows = session.execute(select(day, *told).where(mine, EVENT.timestamp >= oldest).group_by(day))
            return sorted(
                (DailyRow(date.fromisoformat(name), *counts) for name, *counts in rows),
                key=lambda one: one.date,
                reverse=True,
            )

    def _all_daily(self, days: int) -> list[DailyRow]:
        self.refresh()
        day = func.substr(HOURS.hour, 1, 10).label("day")
        query = select(day, func.sum(HOURS.events), func.sum(HOURS.exports), func.sum(HOURS.archives))
        query = query.group_by(sa.literal_column("1")).order_by(sa.literal_column("1").desc()).limit(days)
        with self._reading() as session:
            rows = session.execute(query)
            return [DailyRow(date.fromisoformat(name), *map(int, counts)) for name, *counts in rows]

    def search(
        self,
        *,
        system: str | None = None,
        experiment: str | None = None,
        plate: int | None = None,
        state: str | None = None,
        kind: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str | None = None,
        prefix: str = "",
        after: Cursor | None = None,
        limit: int,
        newest: bool = True,
    ) -> list[Ledger]:
        """Fetch the events that fit, by (timestamp, id, revision), with ``since`` <= timestamp < ``until``.

        ``text``: an id, or how an id or an experiment begins. ``newest``: the last one first. To page, pass
        ``Cursor.after`` the last one of a page: events that come meanwhile shift nothing.
        """
        order = (EVENT.timestamp, EVENT.id, EVENT.revision)
        query = self._matching(
            system=system,
            experiment=experiment,
            plate=plate,
            state=state,
            kind=kind,
            since=since,
            until=until,
            text=text,
            prefix=prefix,
        )
        if after is not None:
            place = sa.tuple_(*order)
            query = query.where(place < tuple(after) if newest else place > tuple(after))
        query = query.order_by(*(column.desc() if newest else column for column in order)).limit(limit)
        with self._reading() as session:
            if state is not None and state != "exporting":
                query = query.where(self._hours_with(session, state))
            refs = [Ref(*row) for row in session.execute(query)]
            found = {one.ref: one for some in chunks(refs) for one in fetch_ledgers(session, [among(some)])}
            return [found[ref] for ref in refs]

    def count_matching(self, *, prefix: str = "", most: int, state: str | None = None, **asked: Any) -> int:
        """Count the events that ``search`` finds, up to ``most``."""
        query = self._matching(prefix=prefix, state=state, **asked)
        with self._reading() as session:
            if state is not None and state != "exporting":
                query = query.where(self._hours_with(session, state))
            counted = query.limit(most).subquery()
            return session.scalar(select(func.count()).select_from(counted)) or 0

    def _matching(
        self,
        *,
        system: str | None = None,
        experiment: str | None = None,
        plate: int | None = None,
        state: str | None = None,
        kind: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str | None = None,
        prefix: str = "",
    ) -> Any:
        """Return the query for the ids and revisions of the events that fit, in no order."""
        asked = {EVENT.system: system, EVENT.experiment: experiment, EVENT.plate: plate, EVENT.kind: kind}
        where = [column == value for column, value in asked.items() if value is not None]
        where += [EVENT.timestamp >= since] if since is not None else []
        where += [EVENT.timestamp < until] if until is not None else []
        where += [self._called(text)] if text else []
        query = select(EVENT.id, EVENT.revision).where(begins(EVENT.key, prefix), *where)
        if state is not None:
            self.refresh()
            now = self.now()
            query = query.outerjoin(Export, tied(EXPORT, EVENT)).where(_may_be(state, now), stands(state, now))
        return query

    def quarantined_announcements(
        self,
        *,
        text: str | None = None,
        system: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int,
    ) -> list[Quarantine]:
        """List announcements in quarantine that became no event, the newest first.

        ``text`` is in the name of the file or in the reason; the times are of the first sight.
        """
        where: list[Any] = [QUARANTINE.released_at.is_(None), QUARANTINE.event_id.is_(None)]
        where += [QUARANTINE.system == system] if system else []
        where += [QUARANTINE.first_seen >= since] if since is not None else []
        where += [QUARANTINE.first_seen < until] if until is not None else []
        if text:
            named = [one.contains(text, autoescape=True) for one in (QUARANTINE.name, QUARANTINE.reason)]
            where.append(sa.or_(*named))
        query = select(Quarantine).where(*where).order_by(QUARANTINE.first_seen.desc(), QUARANTINE.id.desc())
        with self._reading() as session:
            return list(session.scalars(query.limit(limit)))

    def experiments(self, *, prefix: str = "") -> list[str]:
        """List the experiments with this prefix that have events to read, in no order."""
        query = select(EVENT.experiment).join_from(Event, Export, tied(EXPORT, EVENT)).distinct()
        name = EVENT.experiment.collate("C") if self._postgres else EVENT.experiment
        with self._reading() as session:
            return list(session.scalars(query.where(begins(name, prefix), EXPORT.damage.is_(None), ~expired(EXPORT))))

    def readable(self, experiment: str, *, first: UUID, limit: int) -> list[Ref]:
        """List the revisions of so many events whose copy in the bucket is not known to be damaged, by id.

        From the id ``first`` on; all such revisions of an event are on one page.
        """
        good = [EVENT.experiment == experiment, EVENT.id >= first, EXPORT.damage.is_(None), ~expired(EXPORT)]
        events = select(EVENT.id).join_from(Event, Export, tied(EXPORT, EVENT)).where(*good).distinct()
        page = events.order_by(EVENT.id).limit(limit).subquery()
        query = select(EVENT.id, EVENT.revision).join_from(Event, Export, tied(EXPORT, EVENT)).where(*good)
        query = query.where(EVENT.id.in_(select(page.c.id))).order_by(EVENT.id, EVENT.revision)
        with self._reading() as session:
            return [Ref(*row) for row in session.execute(query)]

    def ledgers_of(self, refs: Sequence[Ref]) -> dict[Ref, Ledger]:
        """Fetch what is known of these events, few queries for many of them."""
        with self._reading() as session:
            return {one.ref: one for some in chunks(refs) for one in fetch_ledgers(session, [among(some)])}

    def each_newest(self, *, limit: int | None = None, **asked: Any) -> Iterator[Ledger]:
        """Yield the events that ``search`` finds, the newest first, page by page."""
        after: Cursor | None = None
        while limit is None or limit > 0:
            wanted = PAGE if limit is None else min(limit, PAGE)
            page = self.search(**asked, after=after, limit=wanted)
            yield from page
            if len(page) < wanted:
                return
            after = Cursor.after(page[-1])
            limit = limit if limit is None else limit - len(page)

    def overview(self, *, prefix: str = "", days: int = 30, now: datetime) -> Overview:
        """Return the figures of all systems, with events per day (UTC) up to that of ``now``.

        Announcements in quarantine belong to no key: only who may see all is told of them.
        """
        today = datetime.combine(now.astimezone(UTC).date(), time(), UTC)
        begin, end = today - (days - 1) * DAY, today + DAY
        if prefix:
            mine, day = begins(EVENT.key, prefix), day_of(EVENT.timestamp, postgres=self._postgres)
            by_day = select(day, EVENT.system, func.count()).group_by(day, EVENT.system)
            by_day = by_day.where(mine, EVENT.timestamp >= begin, EVENT.timestamp < end)
        else:
            self.refresh()
            day = func.substr(HOURS.hour, 1, 10).label("day")
            by_day = select(day, HOURS.system, _sum(HOURS.events)).group_by(sa.literal_column("1"), HOURS.system)
            by_day = by_day.where(HOURS.hour >= hour_of(begin), HOURS.hour < hour_of(end))
        with self._reading() as session:
            systems = _standings(session, mine, now) if prefix else self._kept_standings(session, now)
            for system, count in _aside(session, prefix):
                found = systems.get(system, SystemOverview(system))
                systems[system] = replace(found, quarantined=count)
            counted = [(date.fromisoformat(name), system, count) for name, system, count in session.execute(by_day)]
        return Overview(tuple(systems[name] for name in sorted(systems)), tuple(sorted(counted)))

    def _kept_standings(self, session: Session, now: datetime) -> dict[str, SystemOverview]:
        """Sum the kept counts of each system; leases end by themselves, and are read."""
        oldest, unverified = func.min(HOURS.oldest_unsent), func.min(HOURS.oldest_unverified)
        counts = [_sum(HOURS[state]) for state in SETTLED]
        query = select(
            HOURS.system, _sum(HOURS.exported_bytes), oldest, unverified, func.max(HOURS.last_success), *counts
        ).group_by(HOURS.system)
        found = {}
        exporting = self._exporting(session, now)
        for system, size, waiting, unproven, success, *sums in session.execute(query):
            states = Counter(dict(zip(SETTLED, sums, strict=True)))
            for state, count in ((state, count) for name, state, count in exporting if name == system):
                states.update({"exporting": count, state: -count})
            found[system] = SystemOverview(
                system,
                states={state: states[state] for state in STATES if states[state]},
                bytes_exported=size,
                oldest_waiting=waiting,
                oldest_unverified=unproven,
                last_success=success,
            )
        return found

    def _hours_with(self, session: Session, state: str) -> Any:
        """Narrow a query to events of the hours in which events are in a state: it need not classify the others."""
        hours = select(HOURS.hour).where(HOURS[state] > 0)
        first, last = session.execute(select(func.min(HOURS.hour), func.max(HOURS.hour)).where(HOURS[state] > 0)).one()
        if first is None:
            return sa.false()
        span = (EVENT.timestamp >= start_of(first), EVENT.timestamp <= start_of(last) + TO_END)
        return sa.and_(*span, hour_in(EVENT.timestamp, postgres=self._postgres).in_(hours))

    def _called(self, text: str) -> Any:
        """Is it the id of an event, or how its id or experiment begins?"""
        name = EVENT.experiment.collate("C") if self._postgres else EVENT.experiment
        named, match = begins(name, text), ID.fullmatch(text.strip())
        digits = match[1].replace("-", "").lower() if match else ""
        if match is None or not 1 <= len(digits) <= HEX:
            return named
        first, last = (UUID(digits.ljust(HEX, fill)) for fill in "0f")
        revision = [EVENT.revision == int(match[2])] if match[2] else []
        return sa.or_(named, sa.and_(EVENT.id >= first, EVENT.id <= last, *revision))


def _position(spans: Sequence[tuple[Any, int]], offset: int) -> tuple[Any, int]:
    """Return the condition of the span in which the row at an offset is, and how many rows of it come before."""
    for start, count in spans:
        if offset < count:
            return start, offset
        offset -= count
    return sa.false(), 0


def _archives(session: Session, paths: Sequence[str], mine: Sequence[Any]) -> Iterator[ArchiveRow]:
    """Fetch some archives, as far as their events are such."""
    facts = (func.min(EVENT.kind), func.min(EVENT.experiment), func.min(ARCHIVE.reported_at), func.count())
    query = select(ARCHIVE.path, *facts).join_from(ArchiveLocation, Event, tied(ARCHIVE, EVENT)).group_by(ARCHIVE.path)
    for some in chunks(paths):
        for row in session.execute(query.where(ARCHIVE.path.in_(some), *mine)):
            yield ArchiveRow(archive_id(row.path), *row)


def _standings(session: Session, mine: Any, now: datetime) -> dict[str, SystemOverview]:
    """Classify every event once; SQLite takes some microseconds each."""
    unproven = sa.and_(EXPORT.evidence.is_(None), EXPORT.damage.is_(None), EXPORT.event_id.is_not(None))
    each = (
        select(
            EVENT.system,
            standing(now).label("state"),
            EXPORT.size,
            sa.case((sa.and_(unproven, ~expired(EVENT)), EXPORT.uploaded_at)).label("unproven"),
            EXPORT.evidence_at,
            sa.case((waits(), EVENT.first_seen)).label("waits"),
        )
        .select_from(Event)
        .outerjoin(Export, tied(EXPORT, EVENT))
        .where(mine)
        .cte("each")
        .prefix_with("MATERIALIZED")  # or SQLite looks twice
    ).c
    query = select(
        each.system,
        sa.cast(func.coalesce(func.sum(each.size), 0), sa.BigInteger),
        func.min(each.waits),
        func.min(each.unproven),
        func.max(each.evidence_at),
        *(_number(each.state == state) for state in STATES),
    ).group_by(each.system)
    return {
        system: SystemOverview(
            system,
            states={state: count for state, count in zip(STATES, counts, strict=True) if count},
            bytes_exported=size,
            oldest_waiting=waiting,
            oldest_unverified=unverified,
            last_success=success,
        )
        for system, size, waiting, unverified, success, *counts in session.execute(query)
    }


def _aside(session: Session, prefix: str) -> Sequence[Any]:
    """Count what is in quarantine, by system."""
    query = select(QUARANTINE.system, func.count()).where(QUARANTINE.released_at.is_(None)).group_by(QUARANTINE.system)
    if prefix:
        query = query.join(Event, tied(QUARANTINE, EVENT)).where(begins(EVENT.key, prefix))
    return session.execute(query).all()


def _may_be(state: str, now: datetime) -> Any:
    """Narrow a query to events that may be in a state, by what an index finds."""
    exported = EXPORT.event_id.is_not(None)
    found: dict[str, Any] = {
        "quarantined": EVENT.id.in_(select(QUARANTINE.event_id).where(QUARANTINE.released_at.is_(None))),
        "exporting": sa.and_(~exported, EVENT.id.in_(select(LEASE.event_id).where(LEASE.expires_at > now))),
        "ready": ~exported,
        "waiting": sa.and_(~exported, EVENT.id.in_(_held_up())),
    }
    damaged = EVENT.id.in_(select(EXPORT.event_id).where(EXPORT.damage.is_not(None)))
    return found.get(state, damaged if state in {"lost", "changed"} else sa.true())


def _held_up() -> Any:
    """Select events that are not complete yet, or whose export failed."""
    event = aliased(Event)
    unsealed = select(col(event.id)).where(col(event.sealed_at).is_(None))
    return unsealed.union(select(SETBACK.event_id).where(SETBACK.verb == "export"))


def _sum(column: Any) -> Any:
    return sa.cast(func.sum(column), sa.BigInteger)


def _number(condition: Any) -> Any:
    return func.count(sa.case((condition, 1)))
