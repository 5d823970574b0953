"""What instruments announce: events and their revisions, how their images settle, and what is in quarantine."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from plateway.catalog.database import Database
from plateway.catalog.outbox import News, add_messages
from plateway.catalog.predicates import (
    EVENT,
    FILE,
    QUARANTINE,
    SETBACK,
    in_quarantine,
    is_event,
)
from plateway.catalog.rows import chunks, own
from plateway.errors import Conflict, NotFound, Rejected
from plateway.events import ImagingEvent, Ref
from plateway.instruments import Shape
from plateway.keys import event_key, layout_of
from plateway.ledger import Seen
from plateway.outcome import Fact
from plateway.records import Event, EventFile, FileName, Quarantine, Setback


class Registration(Database):
    """Events as they are announced and settle."""

    def known(self, system: str) -> dict[str, tuple[int, int]]:
        """List the event files that were read: size and mtime_ns by name."""
        with self._reading() as session:
            # as they are stored, all at once: of 100,000 files, each conversion counts
            names = sa.type_coerce(FILE.name, sa.Text)
            rows = session.execute(select(names, FILE.size, FILE.mtime_ns).where(FILE.system == system)).all()
            plain = {name: (size, mtime) for name, size, mtime in rows if "/" not in name}
            return plain | {FileName.decode(name): (size, mtime) for name, size, mtime in rows if "/" in name}

    def register(
        self, system: str, seen: Sequence[Seen], *, now: datetime, layout: Shape = "bundle"
    ) -> list[tuple[Ref, bool]]:
        """Record what event files announce; return the new events, and for each whether it conflicts with an older one.

        The same id with the same digest changes nothing; with another digest it becomes the next revision, with a key
        of its own. The key tells from then on how the event will lie in the bucket. What was rejected is quarantined; a
        file that is fine leaves quarantine. One announcement that the database cannot hold is quarantined and stops
        nobody.
        """
        try:
            return self._register(system, seen, now, layout)
        except (Rejected, Conflict) as error:
            if len(seen) > 1:
                return [new for one in seen for new in self.register(system, [one], now=now, layout=layout)]
            if seen[0].event is None:
                raise
            return self._register(system, [replace(seen[0], event=None, reason=str(error))], now, layout)

    def _register(self, system: str, seen: Sequence[Seen], now: datetime, layout: Shape) -> list[tuple[Ref, bool]]:
        with self._writing() as session:
            self._take_turn(session)
            rows = _new(session, [one for one in seen if one.event is not None], now, layout)
            if rows:
                session.execute(insert(Event), rows)
                new = (Ref(row["id"], row["revision"]) for row in rows)
                add_messages(session, (News(ref, Fact.REGISTERED, now, {}) for ref in new))
            _remember(session, system, seen)
            _sort_out(session, system, seen, now)
            return [(Ref(row["id"], row["revision"]), row["revision"] > 1) for row in rows]

    def unsettled(self, system: str) -> list[Event]:
        """List the events whose images are not known to be complete, oldest first; not those in quarantine."""
        with self._reading() as session:
            query = select(Event).where(EVENT.system == system, EVENT.sealed_at.is_(None), ~in_quarantine())
            return list(session.scalars(query.order_by(EVENT.waiting_since, EVENT.id, EVENT.revision)))

    def look(
        self, ref: Ref, *, fingerprint: str | None, present: int | None, size: int | None = None, now: datetime
    ) -> None:
        """Record the listing of an unsealed event's images; ``fingerprint_at`` changes only with it."""
        self.look_all([(ref, fingerprint, present, size)], now=now)

    def look_all(self, looks: Iterable[tuple[Ref, str | None, int | None, int | None]], *, now: datetime) -> None:
        """Record the listings of many events in one transaction: fingerprint, images present, their bytes."""
        mark = sa.bindparam("mark", type_=EVENT.fingerprint.type)
        since = sa.case((EVENT.fingerprint.is_not_distinct_from(mark), EVENT.fingerprint_at), else_=now)
        query = (
            sa.update(EVENT.id.table)
            .where(is_event(sa.bindparam("of"), sa.bindparam("at_revision")), EVENT.sealed_at.is_(None))
            .values(
                fingerprint=mark,
                present=sa.bindparam("there"),
                image_bytes=sa.bindparam("bytes"),
                fingerprint_at=since,
            )
        )
        rows = [
            {"of": ref.id, "at_revision": ref.revision, "mark": m, "there": n, "bytes": size}
            for ref, m, n, size in sorted(looks, key=lambda one: one[0])
        ]
        if rows:
            with self._writing() as session:
                session.connection().execute(query, rows)

    def seal(self, refs: Iterable[Ref], *, now: datetime) -> None:
        """Record that the images of these events are complete and have settled."""
        query = (
            sa.update(EVENT.id.table)
            .where(is_event(sa.bindparam("of"), sa.bindparam("at_revision")), EVENT.sealed_at.is_(None))
            .values(sealed_at=now)
        )
        rows = [{"of": ref.id, "at_revision": ref.revision} for ref in sorted(refs)]
        if rows:
            with self._writing() as session:
                session.connection().execute(query, rows)

    def unseal(self, ref: Ref, *, now: datetime) -> None:
        """Send an event back to waiting: its images are not complete after all. The deadline counts from now."""
        with self._writing() as session:
            _start_over(session, ref, now)

    def revise(self, ref: Ref, *, digest: str, now: datetime) -> Ref:
        """Begin a new revision: the images are others under the same announcement. The same digest begins only one."""
        with self._writing() as session:
            self._take_turn(session)
            event = own(session, ref)
            revisions = session.scalars(select(Event).where(EVENT.id == ref.id).order_by(EVENT.revision)).all()
            for one in revisions:
                if one.digest == digest:
                    return Ref(one.id, one.revision)
            revision = revisions[-1].revision + 1
            kept = ("system", "kind", "experiment", "plate", "timestamp", "path", "image_count", "details", "file")
            session.add(
                Event(
                    id=ref.id,
                    revision=revision,
                    digest=digest,
                    key=_free(session, [(_said(event), revision)], layout_of(event.key))[0],
                    announced_at=event.announced_at,
                    first_seen=now,
                    waiting_since=now,
                    **{name: getattr(event, name) for name in kept},
                )
            )
            new = Ref(ref.id, revision)
            add_messages(session, [News(new, Fact.REGISTERED, now, {})])
            return new

    def rekey(self, ref: Ref) -> str:
        """Assign an event another key, because foreign bytes are at its own; return the key."""
        with self._writing() as session:
            self._take_turn(session)
            event = own(session, ref)
            event.key = _later(session, _said(event), event.revision, layout_of(event.key))
            return event.key

    def quarantine(self, ref: Ref, reason: str, content: bytes = b"", *, now: datetime) -> None:
        """Quarantine an event because of its images; repeated calls only update ``last_seen``."""
        with self._writing() as session:
            event = own(session, ref)
            mine = select(Quarantine).where(QUARANTINE.event_id == ref.id, QUARANTINE.revision == ref.revision)
            row = Quarantine(
                system=event.system,
                name=event.file,
                event_id=ref.id,
                revision=ref.revision,
                reason=reason,
                content=content,
                first_seen=now,
                last_seen=now,
            )
            _set_aside(session, row, kept=session.scalars(mine.order_by(QUARANTINE.id)).all())

    def quarantined(self, *, include_released: bool = False) -> list[Quarantine]:
        """List what is in quarantine, oldest first; of a file that was rewritten, the newest version.

        Released are what was replayed or became fine, and the first version of a file that was rewritten.
        """
        with self._reading() as session:
            query = select(Quarantine).order_by(QUARANTINE.first_seen, QUARANTINE.id)
            return list(session.scalars(query if include_released else query.where(QUARANTINE.released_at.is_(None))))

    def replay(self, id: int, *, now: datetime) -> Quarantine:  # noqa: A002 - it is the id of the row
        """Release an announcement from quarantine: its file and images are read as if for the first time.

        Raises:
            NotFound: there is no such quarantine.
        """
        with self._writing() as session:
            row = session.get(Quarantine, id, with_for_update=True)
            if row is None:
                raise NotFound(f"there is no quarantine {id}")
            if row.released_at is not None:
                return row
            row.released_at = now
            _forget(session, row.system, [row.name])
            if row.event_id is not None and row.revision is not None:
                _start_over(session, Ref(row.event_id, row.revision), now)
            return row


def _new(session: Session, seen: Sequence[Seen], now: datetime, layout: Shape) -> list[dict[str, Any]]:
    """Prepare a row for each announcement whose content is new under its id."""
    ids = {one.event.id for one in seen if one.event}
    revisions: dict[UUID, dict[str, int]] = defaultdict(dict)
    for id_, revision, digest in session.execute(
        select(EVENT.id, EVENT.revision, EVENT.digest).where(EVENT.id.in_(ids))
    ):
        revisions[id_][digest] = revision
    fresh: list[tuple[Seen, ImagingEvent, int]] = []
    for one in seen:
        if (said := one.event) is not None and said.digest not in revisions[said.id]:
            revisions[said.id][said.digest] = revision = max(revisions[said.id].values(), default=0) + 1
            fresh.append((one, said, revision))
    keys = _free(session, [(said, revision) for _, said, revision in fresh], layout)
    return [_row(one, said, revision, key, now) for (one, said, revision), key in zip(fresh, keys, strict=True)]


def _row(seen: Seen, said: ImagingEvent, revision: int, key: str, now: datetime) -> dict[str, Any]:
    return {
        "id": said.id,
        "revision": revision,
        "system": said.system,
        "kind": said.kind,
        "experiment": said.experiment,
        "plate": said.plate,
        "timestamp": said.timestamp,
        "path": said.path,
        "image_count": said.image_count,
        "details": said.metadata,
        "digest": said.digest,
        "key": key,
        "file": seen.file,
        "announced_at": seen.announced_at,
        "first_seen": now,
        "waiting_since": now,
    }


def _said(event: Event) -> ImagingEvent:
    """Turn a row back into the announced event."""
    return ImagingEvent(
        id=event.id,
        system=event.system,
        kind=event.kind,  # type: ignore[arg-type]  # it was one of them when it was recorded
        experiment=event.experiment,
        plate=event.plate,
        timestamp=event.timestamp,
        path=event.path,
        image_count=event.image_count,
        metadata=event.details,
    )


def _free(session: Session, wanted: Sequence[tuple[ImagingEvent, int]], layout: Shape) -> list[str]:
    """Assign each event a key of its own: the short one, or a longer or later one if that is taken."""
    short = [event_key(said, revision=revision, layout=layout) for said, revision in wanted]
    taken = set(session.scalars(select(EVENT.key).where(EVENT.key.in_(short))))
    keys = []
    for key, (said, revision) in zip(short, wanted, strict=True):
        if key not in taken:
            keys.append(key)
        elif layout == "bundle":
            keys.append(event_key(said, revision=revision, whole=True))
        else:
            keys.append(_later(session, said, revision, layout, taken=taken))
        taken.add(keys[-1])
    return keys


def _later(session: Session, said: ImagingEvent, revision: int, layout: Shape, *, taken: Collection[str] = ()) -> str:
    """Find the next key that no event has."""
    keys = (event_key(said, revision=number, layout=layout) for number in itertools.count(revision + 1))
    there = select(EVENT.key)
    return next(key for key in keys if key not in taken and session.scalar(there.where(EVENT.key == key)) is None)


def _remember(session: Session, system: str, seen: Sequence[Seen]) -> None:
    """Record that event files were read as they are now."""
    rows = {one.file: {"system": system, "name": one.file, "size": one.size, "mtime_ns": one.mtime_ns} for one in seen}
    _forget(session, system, list(rows))
    if rows:
        session.execute(insert(EventFile), list(rows.values()))


def _forget(session: Session, system: str, names: Sequence[str]) -> None:
    for some in chunks(names):
        session.execute(delete(EventFile).where(FILE.system == system, FILE.name.in_(some)))


def _sort_out(session: Session, system: str, seen: Sequence[Seen], now: datetime) -> None:
    """Quarantine rejected files, and release those that are accepted now."""
    latest = {one.file: one for one in seen}
    query = select(Quarantine).where(
        QUARANTINE.system == system,
        QUARANTINE.name.in_(latest),
        QUARANTINE.event_id.is_(None),
    )
    kept: dict[str, list[Quarantine]] = defaultdict(list)
    for row in session.scalars(query.order_by(QUARANTINE.id)):
        kept[row.name].append(row)
    for name, one in latest.items():
        if one.event is None:
            new = Quarantine(
                system=system,
                name=name,
                reason=one.reason or "rejected",
                content=one.content,
                first_seen=now,
                last_seen=now,
            )
            _set_aside(session, new, kept=kept[name])
        for row in kept[name] if one.event is not None else ():
            row.released_at = row.released_at or now


def _set_aside(session: Session, new: Quarantine, *, kept: Sequence[Quarantine]) -> None:
    """Keep the first and the newest version of a file; equal content is no new version.

    ``kept`` is what there is of this file, oldest first.
    """
    if kept and kept[-1].content == new.content and kept[-1].released_at is None:
        kept[-1].reason, kept[-1].last_seen = new.reason, new.last_seen
        return
    if kept:
        new.versions = kept[-1].versions + (kept[-1].content != new.content)
        kept[0].released_at = kept[0].released_at or new.first_seen
        for row in kept[1:]:
            session.delete(row)
        session.flush()  # the database allows one active row at any moment
    session.add(new)


def _start_over(session: Session, ref: Ref, now: datetime) -> None:
    """Reset an event as if it were announced just now."""
    event = own(session, ref)
    event.waiting_since = now
    event.fingerprint = event.fingerprint_at = event.present = event.image_bytes = event.sealed_at = None
    session.execute(delete(Setback).where(SETBACK.event_id == ref.id, SETBACK.revision == ref.revision))
