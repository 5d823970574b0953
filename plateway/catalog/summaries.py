"""Counts that are kept by hour and by archive, so that no question counts all events.

They follow from the facts. Triggers of the database mark what a write alters, in the same transaction; what is marked
is computed again before it is read. So an answer includes every fact that was recorded before the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import sqlalchemy as sa
from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from plateway.catalog.database import Database
from plateway.catalog.predicates import (
    ARCHIVE,
    EVENT,
    EXPORT,
    LEASE,
    about,
    expired,
    in_quarantine,
    raw_away,
    standing,
    tied,
    waits,
)
from plateway.errors import Denied, Unavailable
from plateway.ledger import STATES
from plateway.records import (
    ArchiveLocation,
    ArchiveSummary,
    Event,
    Export,
    HourSummary,
    Record,
    StaleSummary,
    UploadSummary,
)

HOURS, UPLOADS, ARCHIVES, STALE = (
    Record.metadata.tables[str(table.__tablename__)].c
    for table in (HourSummary, UploadSummary, ArchiveSummary, StaleSummary)
)
SETTLED = tuple(state for state in STATES if state != "exporting")  # states that no lease ends
HOUR = timedelta(hours=1)
TO_END = HOUR - timedelta.resolution  # from the beginning of an hour to its last instant: no hour ends after year 9999
TURN = 0x706C6175  # of PostgreSQL's advisory locks: "plau"
RANGES = 100  # hours in one statement
BATCH = 200  # parts that are computed in one transaction


class Summaries(Database):
    """The kept counts."""

    def refresh(self) -> None:
        """Compute the counts that a write has altered since they were computed.

        Where the catalogue cannot be written just now, they stay as they were.
        """
        with suppress(Unavailable, Denied):
            while self._any_stale():
                with self._writing() as session:
                    if self._postgres:  # one at a time: an older computation must not overwrite a newer one
                        session.execute(select(func.pg_advisory_xact_lock(TURN)))
                    _refresh(session)

    def _any_stale(self) -> bool:
        with self._reading() as session:
            return session.scalar(select(STALE.part).limit(1)) is not None

    def _exporting(self, session: Session, now: datetime) -> list[tuple[str, str, int]]:
        """Count the events that a worker exports just now: system, state without its lease, number."""
        lease = sa.and_(LEASE.event_id == EVENT.id, LEASE.revision == EVENT.revision)
        state = standing(None).label("state")
        query = (
            select(EVENT.system, state, func.count())
            .select_from(LEASE.event_id.table)
            .join(Event, lease)
            .outerjoin(Export, tied(EXPORT, EVENT))
            .where(LEASE.expires_at > now)
            .group_by(EVENT.system, state)
        )
        return [(system, name, count) for system, name, count in session.execute(query) if name in {"ready", "waiting"}]


def hour_of(moment: datetime) -> str:
    """Return the hour (UTC) of a time, as the summaries name it."""
    return moment.astimezone(UTC).isoformat(" ", "hours")[:13]


def start_of(hour: str) -> datetime:
    """Return when an hour begins."""
    return datetime.fromisoformat(f"{hour}:00+00:00")


def within_hours(hours: Sequence[str]) -> Iterator[Any]:
    """Yield conditions that together select the events whose images are of these hours, by ranges of an index."""
    begins = sorted(map(start_of, hours))
    for at in range(0, len(begins), RANGES):
        some = begins[at : at + RANGES]
        yield sa.or_(*(sa.and_(EVENT.timestamp >= begin, EVENT.timestamp <= begin + TO_END) for begin in some))


def archive_id(path: str) -> UUID:
    """Return the id of an archive, which follows from its path."""
    return uuid5(NAMESPACE_URL, path)


def _refresh(session: Session) -> None:
    """Compute some of what is marked. The marks go first: what is written meanwhile is marked again."""
    mark = (STALE.kind, STALE.part, STALE.writer)
    some = session.execute(select(*mark).order_by(*mark).limit(BATCH)).all()
    for kind, compute in PARTS.items():
        marks = [tuple(one) for one in some if one.kind == kind]
        if marks:
            session.execute(delete(StaleSummary).where(sa.tuple_(*mark).in_(marks)))
            compute(session, sorted({part for _, part, _ in marks}))


def _compute_hours(session: Session, hours: Sequence[str]) -> None:
    session.execute(delete(HourSummary).where(HOURS.hour.in_(hours)))
    for hour in hours:
        begin = start_of(hour)
        session.connection().execute(_fill_hour(), {"hour": hour, "begin": begin, "end": begin + TO_END})


def _compute_uploads(session: Session, hours: Sequence[str]) -> None:
    session.execute(delete(UploadSummary).where(UPLOADS.hour.in_(hours)))
    for hour in hours:
        begin = start_of(hour)
        session.connection().execute(_fill_uploads(), {"hour": hour, "begin": begin, "end": begin + TO_END})


def _compute_archives(session: Session, paths: Sequence[str]) -> None:
    session.execute(delete(ArchiveSummary).where(ARCHIVES.path.in_(paths)))
    facts = (func.min(EVENT.kind), func.min(EVENT.experiment), func.min(ARCHIVE.reported_at), func.count())
    query = select(ARCHIVE.path, *facts).join_from(ArchiveLocation, Event, tied(ARCHIVE, EVENT))
    rows = [
        dict(zip(ARCHIVES.keys(), (path, archive_id(path), *told), strict=True))
        for path, *told in session.execute(query.where(ARCHIVE.path.in_(paths)).group_by(ARCHIVE.path))
    ]
    if rows:
        session.execute(insert(ArchiveSummary), rows)


PARTS: dict[str, Callable[[Session, Sequence[str]], None]] = {
    "hour": _compute_hours,
    "upload": _compute_uploads,
    "archive": _compute_archives,
}


@cache
def _fill_hour() -> Any:
    """Build the statement that counts the events of one hour by system; each is classified once."""
    unproven = sa.and_(EXPORT.evidence.is_(None), EXPORT.damage.is_(None), EXPORT.event_id.is_not(None))
    unproven = sa.and_(unproven, ~expired(EVENT))
    safe = sa.and_(EXPORT.evidence.is_not(None), ~raw_away(), ~in_quarantine(), ~expired(EVENT))
    each = (
        select(
            EVENT.system,
            EVENT.first_seen,
            standing(None).label("state"),
            EXPORT.size,
            EXPORT.uploaded_at,
            EXPORT.evidence_at,
            EXPORT.damage,
            _flag(unproven).label("unproven"),
            _flag(waits()).label("unsent"),
            _flag(safe).label("safe"),
            _flag(raw_away()).label("away"),
            _flag(about(ARCHIVE, EVENT)).label("archived"),
        )
        .select_from(Event)
        .outerjoin(Export, tied(EXPORT, EVENT))
        .where(EVENT.timestamp >= sa.bindparam("begin"), EVENT.timestamp <= sa.bindparam("end"))
        .cte("each")
        .prefix_with("MATERIALIZED")  # or SQLite computes each condition for each count
    ).c
    stuck = sa.or_(each.unsent == 1, each.unproven == 1)
    counts = {
        "events": func.count(),
        "exports": func.count(each.uploaded_at),
        "archives": func.sum(each.archived),
        **{state: _number(each.state == state) for state in SETTLED},
        "sound": _number(sa.and_(each.uploaded_at.is_not(None), each.damage.is_(None))),
        "away": func.sum(each.away),
        "unsent": func.sum(each.unsent),
        "harmed": func.count(each.damage),
        "safe_events": func.sum(each.safe),
        "exported_bytes": _bigint(func.coalesce(func.sum(each.size), 0)),
        "safe_bytes": _bigint(func.coalesce(func.sum(sa.case((each.safe == 1, each.size))), 0)),
        "oldest_unsent": func.min(sa.case((each.unsent == 1, each.first_seen))),
        "oldest_unverified": func.min(sa.case((each.unproven == 1, each.uploaded_at))),
        "oldest_stuck": func.min(sa.case((stuck, each.first_seen))),
        "last_success": func.max(each.evidence_at),
    }
    hour = sa.bindparam("hour", type_=HOURS.hour.type)
    rows = select(sa.cast(hour, sa.String), each.system, *counts.values()).group_by(each.system)
    return insert(HOURS.hour.table).from_select(["hour", "system", *counts], rows)


@cache
def _fill_uploads() -> Any:
    """Build the statement that counts the good uploads of one hour by kind, as far as they are not expired."""
    hour = sa.bindparam("hour", type_=UPLOADS.hour.type)
    rows = (
        select(sa.cast(hour, sa.String), EVENT.kind, func.count())
        .join_from(Export, Event, tied(EXPORT, EVENT))
        .where(EXPORT.uploaded_at >= sa.bindparam("begin"), EXPORT.uploaded_at <= sa.bindparam("end"))
        .where(EXPORT.damage.is_(None), ~expired(EXPORT))
        .group_by(EVENT.kind)
    )
    return insert(UPLOADS.hour.table).from_select(["hour", "kind", "listed"], rows)


def _flag(condition: Any) -> Any:
    return sa.case((condition, 1), else_=0)


def _number(condition: Any) -> Any:
    return func.count(sa.case((condition, 1)))


def _bigint(value: Any) -> Any:
    return sa.cast(value, sa.BigInteger)
