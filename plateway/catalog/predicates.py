"""Columns of all tables, and conditions on them that several questions share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exists, select
from sqlalchemy.orm import aliased
from sqlmodel import col

from plateway.errors import Damage
from plateway.events import Ref
from plateway.records import (
    ArchiveEntry,
    ArchiveLocation,
    ArchiveManifest,
    DarkObject,
    Event,
    EventFile,
    Export,
    Incident,
    KnownPlace,
    Lease,
    LegalHold,
    Purge,
    Quarantine,
    Record,
    Setback,
)

EVENT, FILE, EXPORT, PURGE, QUARANTINE, SETBACK, LEASE = (
    Record.metadata.tables[table.__tablename__].c
    for table in (Event, EventFile, Export, Purge, Quarantine, Setback, Lease)
)
ARCHIVE, MANIFEST, ENTRY, DARK, INCIDENT, PLACE, HOLD = (
    Record.metadata.tables[table.__tablename__].c
    for table in (ArchiveLocation, ArchiveManifest, ArchiveEntry, DarkObject, Incident, KnownPlace, LegalHold)
)
READY = "ready"  # where an event stands of which nothing else is true
LAST = chr(0x10FFFF)  # no character comes after it


def is_event(id_: Any, revision: Any) -> Any:
    return sa.and_(EVENT.id == id_, EVENT.revision == revision)


def among(refs: Iterable[Ref], table: Any = EVENT) -> Any:
    """Is a row about one of these events? The ids alone are asked for, too: SQLite has no index for pairs."""
    wanted = [tuple(ref) for ref in refs]
    id_ = EVENT.id if table is EVENT else table.event_id
    return sa.and_(id_.in_({one for one, _ in wanted}), sa.tuple_(id_, table.revision).in_(wanted))


def tied(table: Any, other: Any) -> Any:
    """Tie a table's rows to an event's, or to those of another table about the same event."""
    return sa.and_(table.event_id == (other.id if other is EVENT else other.event_id), table.revision == other.revision)


def about(table: Any, other: Any, *conditions: Any) -> Any:
    """Whether a table has such a row about the event."""
    return exists().where(tied(table, other), *conditions).correlate(other.revision.table)


def in_quarantine() -> Any:
    return about(QUARANTINE, EVENT, QUARANTINE.released_at.is_(None))


def superseded() -> Any:
    """Did the images change under the same announcement, so that a later revision is about them?"""
    heir = aliased(Event)
    same = sa.and_(col(heir.file) == EVENT.file, col(heir.announced_at) == EVENT.announced_at)
    return exists().where(col(heir.id) == EVENT.id, col(heir.revision) > EVENT.revision, same).correlate(Event)


def raw_away() -> Any:
    """Are the raw images aside or gone?"""
    return about(PURGE, EVENT, PURGE.place == "raw", PURGE.trashed_at.is_not(None), PURGE.restored_at.is_(None))


def expired(other: Any) -> Any:
    """``Ledger.expired`` in SQL."""
    return about(PURGE, other, PURGE.place == "bucket", PURGE.trashed_at.is_not(None), PURGE.restored_at.is_(None))


def beyond(event: Event) -> Any:
    """Everything that comes after an event in the order of ``Catalog.ledgers``."""
    same_time = sa.or_(EVENT.id > event.id, sa.and_(EVENT.id == event.id, EVENT.revision > event.revision))
    return sa.or_(EVENT.timestamp > event.timestamp, sa.and_(EVENT.timestamp == event.timestamp, same_time))


def standing(now: datetime | None) -> Any:
    """``Ledger.state`` in SQL, for an event with its export joined; without a time, as if there were no leases."""
    return sa.case(*((condition, state) for state, condition in _standings(now)), else_=READY)


def stands(state: str, now: datetime) -> Any:
    """Does an event, with its export joined, stand there? So asked, databases know how many do."""
    before: list[Any] = []
    ways: list[Any] = []
    for name, condition in _standings(now):
        if name == state:
            ways.append(sa.and_(condition, *before))
        before.append(~condition)
    return sa.and_(*before) if state == READY else sa.or_(sa.false(), *ways)


def _standings(now: datetime | None) -> list[tuple[str, Any]]:
    """List what decides where an event stands: what is true first. No condition is ever unknown."""
    exported, damaged = EXPORT.event_id.is_not(None), EXPORT.damage_kind.is_not(None)
    only_tape, sound = expired(EVENT), about(ARCHIVE, EVENT, ARCHIVE.damage_kind.is_(None))
    changed = about(ARCHIVE, EVENT, ARCHIVE.damage_kind == Damage.CHANGED.value)
    aside = select(QUARANTINE.event_id, QUARANTINE.revision)  # few: asked for once
    aside = aside.where(QUARANTINE.released_at.is_(None), QUARANTINE.event_id.is_not(None))
    return [
        ("lost", sa.and_(damaged, EXPORT.damage_kind == Damage.LOST.value)),
        ("changed", damaged),
        ("changed", sa.and_(only_tape, ~sound, changed)),
        ("lost", sa.and_(only_tape, ~sound)),
        ("quarantined", sa.tuple_(EVENT.id, EVENT.revision).in_(aside)),
        ("purged", raw_away()),
        ("archived", sa.and_(exported, about(ARCHIVE, EVENT))),
        ("exported", exported),
        *([] if now is None else [("exporting", about(LEASE, EVENT, LEASE.expires_at > now))]),
        ("waiting", sa.or_(EVENT.sealed_at.is_(None), about(SETBACK, EVENT, SETBACK.verb == "export"))),
    ]


def waits() -> Any:
    """Does an event, with its export joined, wait to be exported? Not in quarantine, where a person has to look."""
    return sa.and_(EXPORT.event_id.is_(None), wanted())


def wanted() -> Any:
    """Is an event to be exported, if it is not yet?"""
    going = about(PURGE, EVENT, PURGE.place == "raw", PURGE.restored_at.is_(None))
    return sa.and_(~in_quarantine(), ~superseded(), ~going)


def due_for_export(now: datetime) -> Any:
    """Is an event complete, not exported, leased to nobody, and not waiting for its next try?"""
    return sa.and_(
        EVENT.sealed_at.is_not(None),
        ~about(EXPORT, EVENT, EXPORT.damage.is_(None)),
        wanted(),
        ~about(SETBACK, EVENT, SETBACK.verb == "export", SETBACK.next_at > now),
        ~about(LEASE, EVENT, LEASE.expires_at > now),
    )


def begins(column: Any, prefix: str) -> Any:
    """Does a text that compares by bytes begin with this one? A range, for LIKE takes no notice of case on SQLite."""
    stem = prefix.rstrip(LAST)
    above = [column >= prefix] if prefix else []
    below = [column < stem[:-1] + (chr(ord(stem[-1]) + 1) if stem[-1] != "\ud7ff" else "\ue000")] if stem else []
    return sa.and_(sa.true(), *above, *below)


def day_of(column: Any, *, postgres: bool) -> Any:
    """Return the day (UTC) of a time as YYYY-MM-DD."""
    if postgres:
        return sa.func.to_char(sa.func.timezone("UTC", column), "YYYY-MM-DD")
    return sa.func.substr(sa.type_coerce(column, sa.Text), 1, 10)


def hour_in(column: Any, *, postgres: bool) -> Any:
    """Return the hour (UTC) of a time as YYYY-MM-DD HH."""
    if postgres:
        return sa.func.to_char(sa.func.timezone("UTC", column), "YYYY-MM-DD HH24")
    return sa.func.substr(sa.type_coerce(column, sa.Text), 1, 13)
