"""Legal holds: who forbade to delete what, when and why; and who allowed it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from plateway import retention
from plateway.catalog.database import Database
from plateway.catalog.predicates import ARCHIVE, EVENT, EXPORT, HOLD, PURGE, expired, tied
from plateway.catalog.rows import STANDING
from plateway.errors import Conflict, NotFound, Refused
from plateway.events import Ref
from plateway.records import ArchiveLocation, Event, Export, LegalHold, Purge

LOCK = 0x686F6C64  # of PostgreSQL's advisory locks: "hold"
LEAST = 4  # digits of an id that select a hold


class HeldCopy(NamedTuple):
    """A copy that no hold lets go."""

    ref: Ref
    bucket: str | None  # None: on tape
    key: str  # or the path of the archive
    size: int
    hold: LegalHold


class Holds(Database):
    """Holds, from the day they are set to the day they are released, and after."""

    def add_hold(self, hold: LegalHold) -> list[Ref]:
        """Set a hold; return the events it comes too late for: something of them is being removed right now.

        A removal that has not begun yet is not begun any more once this returns.

        Raises:
            NotFound: nothing announced the event.
        """
        with self._writing() as session:
            if self._postgres:
                session.execute(select(func.pg_advisory_xact_lock(LOCK)))
            if hold.event_id is not None and not session.scalar(
                select(func.count()).select_from(Event).where(EVENT.id == hold.event_id)
            ):
                raise NotFound(f"{hold.event_id}: no such event")
            session.add(LegalHold(**hold.model_dump()))
            going = sa.or_(
                PURGE.removing_at.is_not(None), sa.and_(PURGE.place == "bucket", PURGE.trashed_at.is_not(None))
            )
            query = select(EVENT.id, EVENT.revision).join(Purge, tied(PURGE, EVENT))
            query = query.where(_covered(hold), going, PURGE.gone_at.is_(None), PURGE.restored_at.is_(None))
            return [Ref(*row) for row in session.execute(query)]

    def release_hold(self, id: UUID, *, by: str, reason: str, at: datetime) -> LegalHold:  # noqa: A002
        """Release a hold, for ever.

        Raises:
            NotFound: there is none. Conflict: it was released before.
        """
        with self._writing() as session:
            hold = session.scalar(select(LegalHold).where(HOLD.id == id).with_for_update())
            if hold is None:
                raise NotFound(f"{id}: no such hold")
            if hold.released_at is not None:
                raise Conflict(f"{id}: {hold.released_by} released it at {hold.released_at:%Y-%m-%d %H:%M}")
            hold.released_at, hold.released_by, hold.release_reason = at, by, reason
            return hold

    def holds(self, *, released: bool = False) -> list[LegalHold]:
        """List the holds that were not released, or with ``released`` all, oldest first."""
        query = select(LegalHold).order_by(HOLD.at, HOLD.id) if released else STANDING
        with self._reading() as session:
            return list(session.scalars(query))

    def resolve_hold(self, text: str) -> LegalHold:
        """Find a hold by its id or the first digits of it.

        Raises:
            NotFound: no hold, or several.
        """
        digits = text.strip().lower().replace("-", "")
        found = [one for one in self.holds(released=True) if len(digits) >= LEAST and one.id.hex.startswith(digits)]
        if len(found) != 1:
            raise NotFound(f"{text!r}: {len(found) or 'no'} holds begin so" if found else f"{text!r}: no such hold")
        return found[0]

    def holds_of(self, event: Event) -> list[LegalHold]:
        """List every hold that is, or once was, about an event, oldest first."""
        mine = sa.or_(HOLD.event_id == event.id, HOLD.experiment == event.experiment, HOLD.system == event.system)
        with self._reading() as session:
            return list(session.scalars(select(LegalHold).where(mine).order_by(HOLD.at, HOLD.id)))

    def held_copies(self, now: datetime) -> Iterator[HeldCopy]:
        """Yield the copies in buckets and on tape that a hold forbids to delete now.

        Of a bucket its name, with the prefix that the site uses in it: ``bucket/prefix``.
        """
        for one in self.holds():
            if not one.stands(now):
                continue
            exports = select(EVENT.id, EVENT.revision, EXPORT.bucket, EXPORT.key, EXPORT.size)
            exports = exports.join(Export, tied(EXPORT, EVENT)).where(_covered(one), ~expired(EVENT))
            tapes = select(EVENT.id, EVENT.revision, ARCHIVE.path, func.coalesce(ARCHIVE.size, 0))
            tapes = tapes.join(ArchiveLocation, tied(ARCHIVE, EVENT)).where(_covered(one))
            with self._reading() as session:
                for id_, revision, bucket, key, size in session.execute(exports):
                    yield HeldCopy(Ref(id_, revision), bucket, key, size, one)
                for id_, revision, path, size in session.execute(tapes):
                    yield HeldCopy(Ref(id_, revision), None, path, size, one)


def refuse_held(session: Session, event: Event, now: datetime, *, postgres: bool) -> None:
    """Refuse what a hold forbids, in the transaction that begins a removal: no hold is being set meanwhile.

    Raises:
        Refused: with every hold.
    """
    if postgres:
        session.execute(select(func.pg_advisory_xact_lock_shared(LOCK)))
    holds = session.scalars(STANDING.where(HOLD.event_id.is_(None) | (HOLD.event_id == event.id)))
    if reasons := retention.held((one for one in holds if one.covers(event)), now):
        raise Refused(*reasons)


def _covered(hold: LegalHold) -> Any:
    """``LegalHold.covers`` in SQL."""
    asked: Sequence[tuple[Any, Any]] = (
        (EVENT.id, hold.event_id),
        (EVENT.experiment, hold.experiment),
        (EVENT.system, hold.system),
    )
    return sa.or_(*(column == value for column, value in asked if value is not None))
