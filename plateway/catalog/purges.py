"""What went, or is going: raw images, staging copies, bucket copies."""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePosixPath

import sqlalchemy as sa
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from plateway.catalog.conditions import EVENT, PURGE, about, among, is_event
from plateway.catalog.database import Database
from plateway.catalog.rows import chunks, fetch_ledgers, own
from plateway.catalog.values import Ledger, Ref
from plateway.errors import NotFound, Refused
from plateway.records import Event, Export, Purge


class Purges(Database):
    """Purges, from the intention to the tombstone."""

    def candidates(self, system: str, place: str) -> list[Ledger]:
        """List the events whose images at a place (``raw`` or ``staging``) are not going or gone."""
        standing = [PURGE.place == place, PURGE.restored_at.is_(None)]
        where = [EVENT.system == system]
        if place == "staging":  # may be staged, and purged, again
            where.append(EVENT.staged_at.is_not(None))
            standing.append(PURGE.gone_at.is_(None))
        with self._reading() as session:
            return fetch_ledgers(session, [*where, ~about(PURGE, EVENT, *standing)])

    def siblings(self, event: Event) -> list[Ledger]:
        """List the other events of a system whose images are at, inside or above this one's path."""
        path, here = PurePosixPath(event.path), EVENT.system == event.system
        above = sa.and_(here, EVENT.path.in_([str(path), *map(str, path.parents)]))
        inside = sa.and_(here, EVENT.path > f"{path}/", EVENT.path < f"{path}0")  # "0" comes right after "/"
        near = here if path == PurePosixPath() else sa.or_(above, inside)  # so written, SQLite uses the index twice
        with self._reading() as session:
            return fetch_ledgers(session, [near, ~is_event(event.id, event.revision)])

    def intend(self, purge: Purge) -> Purge:
        """Note what is about to be moved aside, before it is; return the purge that holds: this one, numbered.

        One that is under way already is returned as it was noted: its ``trash`` is where the images may be.

        Raises:
            Refused: there is no evidence (any more) for the export, or the raw images are gone already.
        """
        ref = Ref(purge.event_id, purge.revision)
        with self._writing() as session:
            own(session, ref)
            export = session.get(Export, tuple(ref))
            last = _last(session, ref, purge.place)
            if last is not None and last.restored_at is None:
                if last.gone_at is None:
                    return last
                if purge.place == "raw":
                    raise Refused(f"{ref}: the raw images went at {last.gone_at:%Y-%m-%d %H:%M}")
            if export is None or export.evidence is None:
                raise Refused(f"{ref}: no evidence for its export")
            row = Purge(**purge.model_dump(exclude={"attempt"}), attempt=last.attempt + 1 if last else 1)
            session.add(row)
            return row

    def note_trashed(self, ref: Ref, place: str, *, at: datetime) -> None:
        """Note that the images were moved aside."""
        with self._writing() as session:
            event, purge = _under_way(session, ref, place)
            purge.trashed_at = purge.trashed_at or at
            if place == "staging":
                event.staged_at = None

    def note_gone(self, ref: Ref, place: str, *, at: datetime) -> None:
        """Note that the images were removed for good."""
        with self._writing() as session:
            event, purge = _under_way(session, ref, place)
            purge.trashed_at, purge.gone_at = purge.trashed_at or at, at
            if place == "staging":
                event.staged_at = None

    def note_restored(self, ref: Ref, place: str, *, at: datetime, reason: str) -> None:
        """Note that the images are back where they were, and why."""
        with self._writing() as session:
            event, purge = _under_way(session, ref, place)
            purge.restored_at, purge.reason = at, reason
            if place == "staging":
                event.staged_at = event.staged_at or at

    def going(self, place: str | None = None) -> list[tuple[Ledger, Purge]]:
        """List the purges that were intended and are neither done nor taken back, oldest first."""
        where = [PURGE.gone_at.is_(None), PURGE.restored_at.is_(None), *([PURGE.place == place] if place else [])]
        with self._reading() as session:
            rows = session.scalars(select(Purge).where(*where).order_by(PURGE.intended_at, PURGE.event_id)).all()
            refs = [Ref(row.event_id, row.revision) for row in rows]
            ledgers = {one.ref: one for some in chunks(refs) for one in fetch_ledgers(session, [among(some)])}
            return [(ledgers[ref], row) for ref, row in zip(refs, rows, strict=True)]

    def stage(self, ref: Ref, *, now: datetime) -> None:
        """Note that a verified copy of the images is in staging."""
        with self._writing() as session:
            own(session, ref).staged_at = now

    def tally(self, system: str) -> int:
        """Count the events of a system whose raw images are on the bench."""
        away = about(PURGE, EVENT, PURGE.place == "raw", PURGE.trashed_at.is_not(None), PURGE.restored_at.is_(None))
        with self._reading() as session:
            return session.scalar(select(func.count()).select_from(Event).where(EVENT.system == system, ~away)) or 0


def _last(session: Session, ref: Ref, place: str) -> Purge | None:
    mine = (PURGE.event_id == ref.id, PURGE.revision == ref.revision, PURGE.place == place)
    return session.scalar(select(Purge).where(*mine).order_by(PURGE.attempt.desc()).limit(1))


def _under_way(session: Session, ref: Ref, place: str) -> tuple[Event, Purge]:
    """Fetch an event and its purge that was not taken back; NotFound when there is none."""
    event, purge = own(session, ref), _last(session, ref, place)
    if purge is None or purge.restored_at is not None:
        raise NotFound(f"{ref}: nothing is being purged from {place}")
    return event, purge
