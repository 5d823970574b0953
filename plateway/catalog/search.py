"""What people and their programs look for: exports, archives, events that fit, and figures at a glance.

Every question takes ``prefix``: it is about events only whose key begins with it, compared by bytes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import sqlalchemy as sa
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased
from sqlmodel import col

from plateway import keys
from plateway.catalog.database import Database
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
    standing,
    stands,
    tied,
    waits,
)
from plateway.catalog.rows import chunks, fetch_ledgers
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
from plateway.records import ArchiveLocation, Event, Export

ID = re.compile(r"([0-9a-f-]{1,36})(?:-r([1-9]\d{0,8}))?", re.IGNORECASE)
HEX = 32  # digits of an id
NEVER = datetime.max.replace(tzinfo=UTC)


class SearchQueries(Database):
    """Questions about many events, answered a page at a time."""

    def exports_page(
        self, *, since: datetime, until: datetime, kind: str | None = None, prefix: str = "", limit: int, offset: int
    ) -> tuple[int, list[tuple[Event, Export]]]:
        """List uploads that arrived between two times, both left out, and are good and not expired; count all such.

        By time of arrival, id and revision.
        """
        where = [EXPORT.uploaded_at > since, EXPORT.uploaded_at < until, EXPORT.damage.is_(None), ~expired(EXPORT)]
        where += [begins(EVENT.key, prefix), *([EVENT.kind == kind] if kind is not None else [])]
        order = (EXPORT.uploaded_at, EXPORT.event_id, EXPORT.revision)
        fits = select().join_from(Export, Event, tied(EXPORT, EVENT)).where(*where)
        with self._reading() as session:
            count = session.scalar(fits.add_columns(func.count())) or 0
            page = fits.add_columns(Event, Export).order_by(*order).limit(limit).offset(offset)
            return count, [(event, export) for event, export in session.execute(page)]

    def archives_page(
        self, *, experiment: str | None = None, prefix: str = "", limit: int, offset: int
    ) -> tuple[int, list[ArchiveRow]]:
        """List archives by the time of their first report, and path; count all such."""
        mine = [begins(EVENT.key, prefix), *([EVENT.experiment == experiment] if experiment is not None else [])]
        found = select(ARCHIVE.path, func.min(ARCHIVE.reported_at).label("created_at"), func.count())
        if prefix or experiment is not None:
            found = found.join_from(ArchiveLocation, Event, tied(ARCHIVE, EVENT)).where(*mine)
        found = found.group_by(ARCHIVE.path)
        with self._reading() as session:
            count = session.scalar(select(func.count()).select_from(found.subquery())) or 0
            page = session.execute(found.order_by("created_at", ARCHIVE.path).limit(limit).offset(offset)).all()
            rows = {row.path: row for row in _archives(session, [path for path, *_ in page], mine)}
            return count, [rows[path] for path, *_ in page]

    def archive_members(self, id: UUID, *, prefix: str = "") -> tuple[ArchiveRow, list[TapeMember]] | None:  # noqa: A002
        """Fetch one archive with its events, by their time; None where there is none."""
        query = (
            select(EVENT.id, EVENT.revision, EXPORT.key, EVENT.timestamp, EXPORT.size, EXPORT.sha256)
            .join_from(ArchiveLocation, Event, tied(ARCHIVE, EVENT))
            .join(Export, tied(EXPORT, EVENT))
            .where(begins(EVENT.key, prefix))
            .order_by(EVENT.timestamp, EVENT.id, EVENT.revision)
        )
        with self._reading() as session:
            paths = (path for path in session.scalars(select(ARCHIVE.path).distinct()) if archive_id(path) == id)
            for row in _archives(session, list(itertools.islice(paths, 1)), [begins(EVENT.key, prefix)]):
                members = session.execute(query.where(ARCHIVE.path == row.path))
                return row, [
                    TapeMember(Ref(id_, revision), keys.tar_name(key), *facts) for id_, revision, key, *facts in members
                ]
        return None

    def daily(self, *, days: int = 7, prefix: str = "") -> list[DailyRow]:
        """Count what became of the events of the last days (UTC) that images are of, newest first."""
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
        asked = {EVENT.system: system, EVENT.experiment: experiment, EVENT.plate: plate, EVENT.kind: kind}
        where = [column == value for column, value in asked.items() if value is not None]
        where += [EVENT.timestamp >= since] if since is not None else []
        where += [EVENT.timestamp < until] if until is not None else []
        where += [self._called(text)] if text else []
        order = (EVENT.timestamp, EVENT.id, EVENT.revision)
        if after is not None:
            place = sa.tuple_(*order)
            where.append(place < tuple(after) if newest else place > tuple(after))
        query = select(EVENT.id, EVENT.revision).where(begins(EVENT.key, prefix), *where)
        query = query.order_by(*(column.desc() if newest else column for column in order)).limit(limit)
        if state is not None:
            now = self.now()
            query = query.outerjoin(Export, tied(EXPORT, EVENT)).where(_may_be(state, now), stands(state, now))
        with self._reading() as session:
            refs = [Ref(*row) for row in session.execute(query)]
            found = {one.ref: one for some in chunks(refs) for one in fetch_ledgers(session, [among(some)])}
            return [found[ref] for ref in refs]

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

    def overview(self, *, prefix: str = "", days: int = 30, now: datetime) -> Overview:
        """Return the figures of all systems, with events per day (UTC) up to that of ``now``.

        Announcements in quarantine belong to no key: only who may see all is told of them.
        """
        today = datetime.combine(now.astimezone(UTC).date(), time(), UTC)
        recent = [EVENT.timestamp >= today - (days - 1) * DAY, EVENT.timestamp < today + DAY]
        day, mine = day_of(EVENT.timestamp, postgres=self._postgres), begins(EVENT.key, prefix)
        by_day = select(day, EVENT.system, func.count()).where(mine, *recent).group_by(day, EVENT.system)
        with self._reading() as session:
            systems = _standings(session, mine, now)
            for system, count in _aside(session, prefix):
                found = systems.get(system, SystemOverview(system))
                systems[system] = replace(found, quarantined=count)
            counted = [(date.fromisoformat(name), system, count) for name, system, count in session.execute(by_day)]
        return Overview(tuple(systems[name] for name in sorted(systems)), tuple(sorted(counted)))

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


def archive_id(path: str) -> UUID:
    """Return the id of an archive, which follows from its path."""
    return uuid5(NAMESPACE_URL, path)


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


def _number(condition: Any) -> Any:
    return func.count(sa.case((condition, 1)))
