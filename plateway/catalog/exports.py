"""What is in the bucket, by what evidence, and what failed on the way there."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from plateway.catalog.database import Database
from plateway.catalog.outbox import News, add_messages
from plateway.catalog.predicates import (
    EVENT,
    EXPORT,
    PURGE,
    SETBACK,
    expired,
    is_event,
)
from plateway.catalog.rows import CHUNK, doubt, fenced, let_go, own
from plateway.errors import Busy, Damage
from plateway.events import Ref
from plateway.ledger import DAY
from plateway.outcome import Fact, Incidence, Restored
from plateway.records import Export, Purge, Setback

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
# after the first, second … and any later failure
DELAYS = (MINUTE / 2, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, HOUR, 6 * HOUR)
JITTER = 0.1
PROBED = 3  # attempts after which an event no longer becomes due because its endpoint answers a probe
FOUND = (  # what is known of an upload only after it was looked at
    *("evidence", "evidence_at", "read_back_at", "seen_etag", "seen_modified", "seen_version"),
    *("damage", "damage_kind", "damaged_at"),
)
Cause = Literal["endpoint", "event"]


class ExportRecords(Database):
    """Uploads, their evidence and their damage."""

    def record_export(self, export: Export, *, fence: int) -> None:
        """Record an upload, without evidence yet, and release the lease. An older upload is forgotten.

        The fence must be the last one granted. The lease may have expired: as long as no other worker was granted it,
        none has uploaded. Where other bytes were before, tape's copies are not of this upload until entries are
        settled again; a bucket copy that had expired is one again.

        Raises:
            Busy: another worker was granted the lease since; nothing is recorded.
            Conflict: another event is at this key.
        """
        ref = Ref(export.event_id, export.revision)
        facts = {name: getattr(export, name) for name in EXPORT.keys()}  # noqa: SIM118 - columns, not a dict
        facts |= dict.fromkeys(FOUND)
        with self._writing() as session:
            fenced(session, ref, fence)
            before = session.get(Export, tuple(ref))
            if before is not None and before.sha256 != export.sha256:
                doubt(session, ref, f"{before.bucket}/{before.key}")
            if before is not None:
                _unexpire(session, ref, export.uploaded_at)
            if before is not None and before.damage is not None:
                told = f"exported again; the earlier upload was {before.damage}"
                self._append(session, ref, Incidence.REPAIR, "export", told, at=export.uploaded_at)
            session.merge(Export(**facts))
            _clear(session, ref, "export", "verify")
            add_messages(session, [News(ref, Fact.EXPORTED, export.uploaded_at, _describe(export))])
            let_go(session, ref, fence)  # here, because each transaction waits for the disk
        self._resume(export.endpoint, export.uploaded_at)

    def record_evidence(
        self,
        ref: Ref,
        *,
        kind: str,
        at: datetime,
        seen_etag: str,
        sha256: str,
        uploaded_at: datetime,
        read_back: bool,
        endpoint: str | None = None,
        seen_modified: datetime | None = None,
        seen_version: str | None = None,
    ) -> None:
        """Record that an upload was seen to be good. It dates from the first time; a read-back outranks a look.

        A reading counts only for the object that was read: where ETag, time or version are others by now, it is
        forgotten. ``endpoint`` is recorded where none was.

        Raises:
            Busy: it is not that upload (``sha256``, ``uploaded_at``) any more.
        """
        with self._writing() as session:
            export = _upload(session, ref, sha256, uploaded_at)
            seen = (seen_etag, seen_modified, seen_version)
            if (export.seen_etag, export.seen_modified, export.seen_version) != seen:
                export.read_back_at = None
            if read_back or export.read_back_at is None:
                export.evidence = kind
            new = export.evidence_at is None
            export.evidence_at = export.evidence_at or at
            export.endpoint = export.endpoint or endpoint
            export.seen_etag, export.seen_modified, export.seen_version = seen
            export.read_back_at = at if read_back else export.read_back_at
            damage, export.damage, export.damage_kind, export.damaged_at = export.damage, None, None, None
            if new:
                add_messages(session, [News(ref, Fact.VERIFIED, at, {**_describe(export), "evidence": kind})])
            if damage is not None:
                told = f"found good again ({kind}); it was {damage}"
                self._append(session, ref, Incidence.REPAIR, "verify", told, at=at)
            _clear(session, ref, "verify")
        self._resume(endpoint, at)

    def record_relocation(
        self,
        ref: Ref,
        export: Export,
        *,
        endpoint: str | None,
        kind: str,
        etag: str,
        read_back_at: datetime | None,
        at: datetime,
        seen_modified: datetime | None = None,
        seen_version: str | None = None,
    ) -> None:
        """Record that an upload was found undamaged behind another endpoint.

        Raises:
            Busy: it is not that upload, or not noted to be where it was, any more.
        """
        with self._writing() as session:
            known = _upload(session, ref, export.sha256, export.uploaded_at)
            if (known.endpoint, known.bucket) != (export.endpoint, export.bucket) or known.damage is not None:
                raise Busy(f"{ref}: looked at meanwhile")
            known.endpoint, known.seen_etag = endpoint, etag
            known.seen_modified, known.seen_version = seen_modified, seen_version
            told = f"found at {endpoint}, where it was recorded at {export.endpoint} before"
            self._append(session, ref, Incidence.REPAIR, "relocate", told, at=at)
            known.evidence, known.evidence_at, known.read_back_at = kind, at, read_back_at
            _clear(session, ref, "verify")
        self._resume(endpoint, at)

    def record_damage(
        self, ref: Ref, *, damage: str, kind: Damage, at: datetime, sha256: str, uploaded_at: datetime
    ) -> None:
        """Record that an upload is lost or changed; this takes its evidence away, and stays in the event's history.

        Nothing is noted of one that has expired: it is meant to be gone.

        Raises:
            Busy: it is not that upload (``sha256``, ``uploaded_at``) any more.
        """
        with self._writing() as session:
            export = _upload(session, ref, sha256, uploaded_at)
            if session.scalar(select(EVENT.id).where(is_event(*ref), expired(EVENT))):
                return
            if export.damage is None:
                add_messages(session, [News(ref, Fact.DAMAGED, at, {**_describe(export), "damage": kind.value})])
            export.damage, export.damage_kind, export.damaged_at = damage, kind.value, export.damaged_at or at
            export.evidence = export.evidence_at = export.seen_etag = export.read_back_at = None
            export.seen_modified = export.seen_version = None
            self._append(session, ref, Incidence.DAMAGE, "verify", damage, at=at)
            _clear(session, ref, "verify")

    def set_back(
        self,
        ref: Ref,
        verb: str,
        *,
        reason: str,
        now: datetime,
        cause: Cause = "event",
        endpoint: str | None = None,
        began: datetime | None = None,
    ) -> Setback:
        """Record a failure and when to try again: after 30 s, 1, 2, 5, 10 min, 1 h, then every 6 h, give or take 10 %.

        A failure before the next try was due belongs to the same attempt. What an endpoint caused is due at once when
        it answers again, unless it answered others since this attempt ``began``: then the event is the cause.
        """
        with self._writing() as session:
            own(session, ref)
            if cause == "endpoint" and began is not None and _answered(session, endpoint, began):
                cause = "event"
            row = session.get(Setback, (*ref, verb))
            if row is None:
                row = Setback(
                    event_id=ref.id,
                    revision=ref.revision,
                    verb=verb,
                    attempt=1,
                    reason=reason,
                    since=now,
                    at=now,
                    next_at=now,
                )
                session.add(row)
            elif now >= row.next_at:
                row.attempt += 1
            delay = DELAYS[min(row.attempt, len(DELAYS)) - 1] * self._dice.uniform(1 - JITTER, 1 + JITTER)
            row.reason, row.at, row.next_at = reason, now, now + delay
            row.cause, row.endpoint = cause, endpoint if cause == "endpoint" else None
            self._append(session, ref, Incidence.FAILURE, verb, reason, at=now)
            return row

    def waiting_endpoints(self, *, now: datetime) -> set[str | None]:
        """List the endpoints that did not answer, and for which events wait until their next attempt."""
        query = select(SETBACK.endpoint).where(SETBACK.cause == "endpoint", SETBACK.next_at > now).distinct()
        with self._reading() as session:
            return set(session.scalars(query))

    def resume(self, endpoint: str | None, *, now: datetime) -> None:
        """Make due what waits because this endpoint did not answer, after it answered a probe.

        Not what failed more than ``PROBED`` times: an endpoint may answer probes, and still accept no uploads.
        """
        self._resume(endpoint, now, SETBACK.attempt <= PROBED)

    def _resume(self, endpoint: str | None, now: datetime, *which: Any) -> None:
        """Make due what waits because this endpoint did not answer: it does.

        In a transaction of its own, because it touches other events' rows.
        """
        waits = (
            SETBACK.cause == "endpoint",
            SETBACK.endpoint.is_not_distinct_from(endpoint),
            SETBACK.next_at > now,
            *which,
        )
        with self._reading() as session:
            if not session.scalar(select(sa.exists().where(*waits))):
                return
        with self._writing() as session:
            session.execute(update(Setback).where(*waits).values(next_at=now))

    def bytes_read(self, *, since: datetime) -> int:
        """Sum the bytes of the objects that were read back since a time."""
        with self._reading() as session:
            return _bytes_read(session, since)

    def sample(self, *, budget: int, now: datetime) -> list[Ref]:
        """Choose good exports to read back, the longest unread first, within what is left of a day's budget of bytes.

        None is read twice a day. One larger than the whole budget gets its turn when nothing else was read that day.
        """
        good, recent = sa.and_(EXPORT.evidence.is_not(None), ~expired(EXPORT)), EXPORT.read_back_at > now - DAY
        query = (
            select(EXPORT.event_id, EXPORT.revision, EXPORT.size)
            .where(good, sa.or_(EXPORT.read_back_at.is_(None), ~recent))
            .order_by(EXPORT.read_back_at.nulls_first(), EXPORT.uploaded_at, EXPORT.event_id, EXPORT.revision)
            .execution_options(yield_per=CHUNK)
        )
        chosen: list[Ref] = []
        with self._reading() as session:
            used = _bytes_read(session, now - DAY)
            with session.execute(query) as rows:
                for id_, revision, size in rows:
                    if budget <= 0 or (used and used + size > budget):
                        break
                    used += size
                    chosen.append(Ref(id_, revision))
        return chosen


def _describe(export: Export) -> dict[str, Any]:
    """Describe an upload as messages do."""
    facts = {"key": f"{export.bucket}/{export.key}", "size": export.size, "sha256": export.sha256}
    return facts | {"uploaded_at": export.uploaded_at.isoformat()}


def _bytes_read(session: Session, since: datetime) -> int:
    """Sum the sizes of the objects that were read back since then."""
    query = select(func.coalesce(func.sum(EXPORT.size), 0)).where(EXPORT.read_back_at > since)
    return int(session.scalar(query) or 0)


def _upload(session: Session, ref: Ref, sha256: str, uploaded_at: datetime) -> Export:
    """Fetch an export as long as it is that upload; Busy otherwise."""
    own(session, ref)
    export = session.get(Export, tuple(ref))
    if export is None or (export.sha256, export.uploaded_at) != (sha256, uploaded_at):
        raise Busy(f"{ref}: exported again meanwhile")
    return export


def _answered(session: Session, endpoint: str | None, since: datetime) -> bool:
    """Was another export noted behind an endpoint since then?"""
    noted = sa.exists().where(EXPORT.endpoint.is_not_distinct_from(endpoint), EXPORT.uploaded_at > since)
    return bool(session.scalar(select(noted)))


def _unexpire(session: Session, ref: Ref, at: datetime) -> None:
    mine = (PURGE.event_id == ref.id, PURGE.revision == ref.revision, PURGE.place == "bucket")
    back = {"restored_at": at, "reason": "exported again", "cause": Restored.REQUESTED.value}
    session.execute(update(Purge).where(*mine, PURGE.restored_at.is_(None)).values(back))


def _clear(session: Session, ref: Ref, *verbs: str) -> None:
    mine = (SETBACK.event_id == ref.id, SETBACK.revision == ref.revision)
    session.execute(delete(Setback).where(*mine, SETBACK.verb.in_(verbs)))
