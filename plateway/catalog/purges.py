"""Purges, done and in progress: of raw images, staging copies and bucket copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sa
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased
from sqlmodel import col

from plateway.catalog.database import Database
from plateway.catalog.holds import refuse_held
from plateway.catalog.outbox import News, add_messages
from plateway.catalog.predicates import (
    ARCHIVE,
    EVENT,
    EXPORT,
    PURGE,
    about,
    among,
    beyond,
    expired,
    is_event,
    raw_away,
)
from plateway.catalog.rows import CHUNK, check_fence, chunks, fetch_ledgers, own
from plateway.errors import NotFound, Refused
from plateway.events import Ref
from plateway.ledger import Ledger
from plateway.outcome import Fact, Incidence, Restored
from plateway.records import Event, Export, Purge

GONE = {"raw": Fact.PURGED, "bucket": Fact.EXPIRED}  # a staging copy is nobody else's
WHAT = {"raw": "raw images", "bucket": "bucket copy"}


class Purges(Database):
    """Purges, from the intention to the tombstone."""

    def candidates(self, system: str, place: str) -> Iterator[Ledger]:
        """Yield the events whose images at a place (``raw`` ``staging`` ``bucket``) are not going or gone, by time.

        Of bucket copies only those that are verified, and that tape has with the same checksum. Page by page, each in
        a transaction of its own.
        """
        standing = [PURGE.place == place, PURGE.restored_at.is_(None)]
        where = [EVENT.system == system]
        if place == "staging":  # may be staged, and purged, again
            where.append(EVENT.staged_at.is_not(None))
            standing.append(PURGE.gone_at.is_(None))
        if place == "bucket":
            where += [about(EXPORT, EVENT, EXPORT.evidence.is_not(None)), about(ARCHIVE, EVENT, _same_bytes())]
        where.append(~about(PURGE, EVENT, *standing))
        after: list[Any] = []
        while True:
            with self._reading() as session:
                page = fetch_ledgers(session, [*where, *after], limit=CHUNK)
            yield from page
            if len(page) < CHUNK:
                return
            after = [beyond(page[-1].event)]

    def with_siblings(self, events: Sequence[Event]) -> set[Ref]:
        """Return which of a system's events have ``siblings``, in two queries."""
        paths = {event.path for event in events}
        above = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
        other = aliased(Event)
        same = sa.and_(
            col(other.path) == EVENT.path, sa.or_(col(other.id) != EVENT.id, col(other.revision) != EVENT.revision)
        )
        inside = sa.and_(col(other.path) > EVENT.path + "/", col(other.path) < EVENT.path + "0")
        found: set[Ref] = set()
        with self._reading() as session:
            for some in chunks([Ref(event.id, event.revision) for event in events]):
                near = [sa.exists().where(col(other.system) == EVENT.system, one) for one in (same, inside)]
                query = select(EVENT.id, EVENT.revision).where(among(some), sa.or_(*near))
                found |= {Ref(*row) for row in session.execute(query)}
            known: set[str] = set()
            for names in chunks(sorted(above)):
                query = select(EVENT.path).where(EVENT.system == events[0].system, EVENT.path.in_(names))
                known.update(session.scalars(query))
        roots = {"", "."} & paths
        return found | {
            Ref(event.id, event.revision)
            for event in events
            if roots or not known.isdisjoint(map(str, PurePosixPath(event.path).parents))
        }

    def siblings(self, event: Event) -> list[Ledger]:
        """List the other events of a system whose images are at, inside or above this one's path."""
        path, here = PurePosixPath(event.path), EVENT.system == event.system
        above = sa.and_(here, EVENT.path.in_([str(path), *map(str, path.parents)]))
        inside = sa.and_(here, EVENT.path > f"{path}/", EVENT.path < f"{path}0")  # "0" comes right after "/"
        near = here if path == PurePosixPath() else sa.or_(above, inside)  # so written, SQLite uses the index twice
        with self._reading() as session:
            return fetch_ledgers(session, [near, ~is_event(event.id, event.revision)])

    def intend(self, purge: Purge, *, fence: int | None = None) -> Purge:
        """Record what is about to be moved aside, before it is; return the purge that holds: this one, numbered.

        One that is under way already is returned as it was noted: its ``trash`` is where the images may be.

        Raises:
            Refused: there is no evidence (any more) for the export, the raw images or the bucket copy are gone
                already, a bucket copy is to go that tape does not have with the same checksum, or a hold forbids it.
        """
        ref = Ref(purge.event_id, purge.revision)
        with self._writing() as session:
            refuse_held(session, own(session, ref), purge.intended_at, postgres=self._postgres)
            check_fence(session, ref, fence, purge.intended_at)
            export = session.get(Export, tuple(ref))
            last = _last(session, ref, purge.place)
            if last is not None and last.restored_at is None:
                if last.gone_at is None:
                    return last
                if purge.place != "staging":
                    raise Refused(f"{ref}: the {WHAT[purge.place]} went at {last.gone_at:%Y-%m-%d %H:%M}")
            if export is None or export.evidence is None:
                raise Refused(f"{ref}: no evidence for its export")
            if purge.place == "bucket" and not session.scalar(_on_tape(ref, export)):
                raise Refused(f"{ref}: no archive has it with the checksum of its export")
            row = Purge(**purge.model_dump(exclude={"attempt"}), attempt=last.attempt + 1 if last else 1)
            session.add(row)
            return row

    def record_trashed(
        self, ref: Ref, place: str, *, at: datetime, fence: int | None = None, proof: Mapping[str, Any] | None = None
    ) -> None:
        """Record that the images were moved aside, and what ``proof`` was taken of them there.

        Raises:
            Refused: of a bucket copy, whose deletion begins with it: a hold forbids it.
        """
        with self._writing() as session:
            check_fence(session, ref, fence, at)
            event, purge = _under_way(session, ref, place)
            if place == "bucket":
                refuse_held(session, event, at, postgres=self._postgres)
            purge.trashed_at = purge.trashed_at or at
            purge.proof = {**purge.proof, **(proof or {})}
            if place == "staging":
                event.staged_at = None

    def record_removing(
        self, ref: Ref, place: str, *, at: datetime, fence: int | None = None, proof: Mapping[str, Any] | None = None
    ) -> None:
        """Record that a removal begins, and its proof: from here on fewer files are no surprise.

        Raises:
            Refused: a hold forbids it.
        """
        with self._writing() as session:
            check_fence(session, ref, fence, at)
            event, purge = _under_way(session, ref, place)
            refuse_held(session, event, at, postgres=self._postgres)
            purge.removing_at = purge.removing_at or at
            purge.proof = {**purge.proof, **(proof or {})}

    def record_gone(self, ref: Ref, place: str, *, at: datetime, fence: int | None = None) -> None:
        """Record that the images were removed for good."""
        with self._writing() as session:
            check_fence(session, ref, fence, at)
            event, purge = _under_way(session, ref, place)
            purge.trashed_at, purge.gone_at = purge.trashed_at or at, at
            if place in GONE:
                add_messages(session, [News(ref, GONE[place], at, {})])
            if place == "staging":
                event.staged_at = None

    def record_restored(
        self, ref: Ref, place: str, *, at: datetime, reason: str, cause: Restored, fence: int | None = None
    ) -> None:
        """Record that the images are back where they were, or that the purge was taken back, and why."""
        with self._writing() as session:
            check_fence(session, ref, fence, at)
            event, purge = _under_way(session, ref, place)
            purge.restored_at, purge.reason, purge.cause = at, reason, cause.value
            verb = "expire" if place == "bucket" else "purge"
            kind = Incidence.REPAIR if cause is Restored.REQUESTED else Incidence.REFUSAL
            self._append(session, ref, kind, verb, reason, at=at)
            if place == "staging":
                event.staged_at = event.staged_at or at

    def going(self, place: str | None = None) -> list[tuple[Ledger, Purge]]:
        """List the purges that were intended and are neither done nor taken back, oldest first.

        Without a place, those of the disks: a bucket copy that is marked to go is nothing that the bench has to finish.
        """
        here = PURGE.place == place if place else PURGE.place != "bucket"
        where = [PURGE.gone_at.is_(None), PURGE.restored_at.is_(None), here]
        with self._reading() as session:
            rows = session.scalars(select(Purge).where(*where).order_by(PURGE.intended_at, PURGE.event_id)).all()
            refs = [Ref(row.event_id, row.revision) for row in rows]
            ledgers = {one.ref: one for some in chunks(refs) for one in fetch_ledgers(session, [among(some)])}
            return [(ledgers[ref], row) for ref, row in zip(refs, rows, strict=True)]

    def stage(self, ref: Ref, *, now: datetime, fence: int | None = None) -> None:
        """Record that a verified copy of the images is in staging."""
        with self._writing() as session:
            check_fence(session, ref, fence, now)
            own(session, ref).staged_at = now

    def tally(self, system: str) -> int:
        """Count the events of a system whose raw images are on the bench."""
        with self._reading() as session:
            return (
                session.scalar(select(func.count()).select_from(Event).where(EVENT.system == system, ~raw_away())) or 0
            )

    def stored(self, system: str) -> int:
        """Count the events of a system that have a bucket copy."""
        query = select(func.count()).select_from(Event).where(EVENT.system == system, _stored())
        with self._reading() as session:
            return session.scalar(query) or 0


def _stored() -> Any:
    """Whether it has a bucket copy without known damage."""
    return sa.and_(about(EXPORT, EVENT, EXPORT.damage.is_(None)), ~expired(EVENT))


def _same_bytes() -> Any:
    """Whether tape has the bytes of the export: reported with a checksum, or read there."""
    same = about(EXPORT, ARCHIVE, EXPORT.sha256 == ARCHIVE.checksum)
    return sa.and_(ARCHIVE.evidence == "checksum", same)


def _on_tape(ref: Ref, export: Export) -> Any:
    mine = (ARCHIVE.event_id == ref.id, ARCHIVE.revision == ref.revision)
    return select(ARCHIVE.path).where(*mine, ARCHIVE.evidence == "checksum", ARCHIVE.checksum == export.sha256).limit(1)


def _last(session: Session, ref: Ref, place: str) -> Purge | None:
    mine = (PURGE.event_id == ref.id, PURGE.revision == ref.revision, PURGE.place == place)
    return session.scalar(select(Purge).where(*mine).order_by(PURGE.attempt.desc()).limit(1))


def _under_way(session: Session, ref: Ref, place: str) -> tuple[Event, Purge]:
    """Fetch an event and its purge that was not taken back; NotFound when there is none."""
    event, purge = own(session, ref), _last(session, ref, place)
    if purge is None or purge.restored_at is not None:
        raise NotFound(f"{ref}: nothing is being purged from {place}")
    return event, purge
