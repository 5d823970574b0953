"""What tape reports: manifests as received, their entries, and the archive locations that follow.

An entry is parked until an export has its key, and agrees with the size and checksum that it tells. What all settled
entries about one event in one archive come to does not depend on the order in which they came, or how often.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from plateway.catalog.database import Database
from plateway.catalog.outbox import News, add_messages
from plateway.catalog.predicates import (
    ARCHIVE,
    ENTRY,
    EVENT,
    EXPORT,
    MANIFEST,
    about,
    among,
    day_of,
    expired,
    tied,
)
from plateway.catalog.rows import chunks, fetch_ledgers, own
from plateway.errors import Conflict, Damage, NotFound, Rejected
from plateway.events import Ref
from plateway.ledger import DAY, Ledger, Settled
from plateway.outcome import Fact, Incidence
from plateway.records import (
    ArchiveEntry,
    ArchiveLocation,
    ArchiveManifest,
    Event,
    Export,
    ManifestSource,
)

BATCH = 5000  # entries that are settled in one transaction
EVIDENCE = ("name", "size", "checksum")  # from the weakest
SPLITS = 8  # of a key into a bucket and a key: so many slashes a bucket may have
FACTS = ("manifest", "path", "key", "job_id", "reported_at", "member", "size", "checksum", "offset")
READ = {"member", "size", "checksum", "offset", "evidence", "evidence_at"}  # our own reading outranks what tape reports
Place = tuple[str, str, str]  # key, path, manifest


class _Fit(NamedTuple):
    """The event of an entry, or why it has none yet."""

    entry: Any  # a row with FACTS and the reason that is noted
    ref: Ref | None
    reason: str | None


class Tape(Database):
    """Manifests, and the archive locations that they report."""

    def receive(self, manifest: ArchiveManifest, entries: Sequence[ArchiveEntry], *, now: datetime) -> bool:
        """Record a manifest with its entries; return whether it is new. A known one only updates ``last_at``.

        Raises:
            Rejected: an entry contradicts another of the same manifest, or cannot be recorded.
        """
        rows = _entries(manifest.digest, entries)
        with self._writing() as session:
            self._take_turn(session)
            known = session.get(ArchiveManifest, manifest.digest)
            if known is not None:
                known.last_at = max(known.last_at, now)
                return False
            session.execute(insert(ArchiveManifest), [manifest.model_dump() | {"received_at": now, "last_at": now}])
            if rows:
                session.execute(insert(ArchiveEntry), rows)
            return True

    def manifests(self, *, refused: bool = False, digest: str = "", limit: int | None = None) -> list[ArchiveManifest]:
        """List what came, newest first, with its bytes: of many, ask for a few.

        ``refused``: only where anything was; ``digest``: how it begins.
        """
        begins = MANIFEST.digest.startswith(digest, autoescape=True)
        query = (
            select(ArchiveManifest).where(begins).order_by(MANIFEST.received_at.desc(), MANIFEST.digest).limit(limit)
        )
        with self._reading() as session:
            return list(session.scalars(query.where(MANIFEST.reason.is_not(None)) if refused else query))

    def settle(self, *, now: datetime, limit: int | None = None) -> Settled:
        """Try every parked entry, at most ``limit``: find its export and note where it is, or why not.

        A second run right after writes nothing. Entries that were refuted by a read are left alone.
        """
        archived: list[Ref] = []
        settled, after, left = 0, None, limit
        while left is None or left > 0:
            size = BATCH if left is None else min(BATCH, left)
            with self._reading() as session:
                fits = _fits(session, _unsettled(session, after, size))
            if any(fit.ref is not None or fit.reason != fit.entry.reason for fit in fits):
                with self._writing() as session:
                    self._take_turn(session)
                    fits = _fits(session, _unsettled(session, after, size), lock=True)
                    archived += _note(session, fits, now)
            if not fits:
                break
            settled += sum(fit.ref is not None for fit in fits)
            last = fits[-1].entry
            after, left = (last.key, last.path, last.manifest), None if left is None else left - len(fits)
        with self._reading() as session:
            parked = session.scalar(select(func.count()).select_from(ArchiveEntry).where(ENTRY.settled_at.is_(None)))
        return Settled(tuple(archived), settled, parked or 0)

    def parked(self, *, after: str = "") -> Iterator[ArchiveEntry]:
        """Yield parked entries in the byte order of keys, after a position, page by page."""
        place: Place | None = None
        while True:
            with self._reading() as session:
                query = select(ArchiveEntry).where(ENTRY.settled_at.is_(None), ENTRY.key > after)
                page = session.scalars(_from(query, place).limit(BATCH)).all()
            yield from page
            if len(page) < BATCH:
                return
            place = (page[-1].key, page[-1].path, page[-1].manifest)

    def record_location(
        self,
        ref: Ref,
        path: str,
        *,
        member: str,
        offset: int,
        size: int,
        checksum: str,
        read_at: datetime,
        seen_size: int | None = None,
        seen_modified: datetime | None = None,
    ) -> None:
        """Record that the bytes of an export were read from an archive that a manifest names. May be repeated.

        Raises:
            NotFound: no manifest names this archive for it.
            Conflict: these are not the bytes of its export.
        """
        with self._writing() as session:
            own(session, ref)
            export = session.get(Export, tuple(ref))
            if export is None or (export.size, export.sha256) != (size, checksum):
                raise Conflict(f"{ref}: {path} has {size:,} bytes with SHA-256 {checksum}, which is not its export")
            location = session.get(ArchiveLocation, (*ref, path)) or _believe(session, ref, export, path, read_at)
            location.member, location.offset, location.size, location.checksum = member, offset, size, checksum
            location.evidence_at = location.evidence_at if location.evidence == "checksum" else read_at
            location.evidence = "checksum"
            location.read_at = max(location.read_at or read_at, read_at)
            location.seen_size, location.seen_modified = seen_size, seen_modified
            if location.damage is not None:
                told = f"{path} was read and is good again; it was {location.damage}"
                self._append(session, ref, Incidence.REPAIR, "read archive", told, at=read_at)
            location.damage = location.damage_kind = location.damaged_at = None

    def record_tape_damage(self, ref: Ref, path: str, *, damage: str, kind: Damage, at: datetime) -> None:
        """Record that the copy in an archive is lost or changed; it stays a location, for it may be the only one.

        Raises:
            NotFound: no archive of that path has the event.
        """
        with self._writing() as session:
            own(session, ref)
            location = session.get(ArchiveLocation, (*ref, path))
            if location is None:
                raise NotFound(f"{ref}: is not in {path}")
            location.damage, location.damage_kind, location.damaged_at = damage, kind.value, location.damaged_at or at
            location.read_at = None
            self._append(session, ref, Incidence.DAMAGE, "read archive", f"{path}: {damage}", at=at)

    def only_copies(self, *, budget: int, now: datetime) -> list[tuple[ArchiveLocation, Export]]:
        """Choose copies on tape to read whose bucket copy has expired: the longest unread first, within a day's bytes.

        What is damaged is read again as well, once a day. One larger than the whole budget gets its turn when nothing
        else was read that day.
        """
        last = func.coalesce(ARCHIVE.read_at, ARCHIVE.damaged_at)
        recent = sa.and_(last.is_not(None), last > now - DAY)
        query = select(ArchiveLocation, Export).join(Export, tied(EXPORT, ARCHIVE)).where(expired(ARCHIVE))
        spent = select(func.coalesce(func.sum(EXPORT.size), 0)).join_from(
            ArchiveLocation, Export, tied(EXPORT, ARCHIVE)
        )
        chosen: list[tuple[ArchiveLocation, Export]] = []
        with self._reading() as session:
            used = int(session.scalar(spent.where(ARCHIVE.read_at > now - DAY)) or 0)
            order = (last.nulls_first(), ARCHIVE.reported_at, ARCHIVE.path, ARCHIVE.event_id, ARCHIVE.revision)
            rows = session.execute(query.where(~recent).order_by(*order).execution_options(yield_per=500))
            for location, export in rows:
                if budget <= 0 or (used and used + export.size > budget):
                    break
                used += export.size
                chosen.append((location, export))
        return chosen

    def archived_anywhere(self) -> bool:
        """Return whether any archive is known to have anything."""
        with self._reading() as session:
            return session.scalar(select(ARCHIVE.path).limit(1)) is not None

    def expired_locations(self) -> Iterator[tuple[ArchiveLocation, Export]]:
        """Yield the copies on tape of all events whose bucket copy has expired, by path, page by page."""
        after: tuple[Any, ...] | None = None
        order = (ARCHIVE.path, ARCHIVE.event_id, ARCHIVE.revision)
        query = select(ArchiveLocation, Export).join(Export, tied(EXPORT, ARCHIVE)).where(expired(ARCHIVE))
        while True:
            page = query if after is None else query.where(sa.tuple_(*order) > after)
            with self._reading() as session:
                rows = session.execute(page.order_by(*order).limit(BATCH)).all()
            yield from ((location, export) for location, export in rows)
            if len(rows) < BATCH:
                return
            last = rows[-1][0]
            after = (last.path, last.event_id, last.revision)

    def record_misplaced(self, ref: Ref, path: str, *, reason: str, at: datetime) -> None:
        """Record that an archive was read and does not have the export: its location is removed.

        The entries that named it are parked and not tried again, until other bytes are exported.
        """
        with self._writing() as session:
            own(session, ref)
            export = session.get(Export, tuple(ref))
            mine = (ARCHIVE.event_id == ref.id, ARCHIVE.revision == ref.revision, ARCHIVE.path == path)
            session.execute(delete(ArchiveLocation).where(*mine))
            self._append(session, ref, Incidence.DAMAGE, "read archive", reason, at=at)
            if export is not None:
                about_it = (ENTRY.key == f"{export.bucket}/{export.key}", ENTRY.path == path)
                facts = {"settled_at": None, "refuted_at": at, "reason": reason}
                session.execute(update(ArchiveEntry).where(*about_it, ENTRY.settled_at.is_not(None)).values(facts))

    def unproven(self, *, limit: int = 10_000) -> list[tuple[ArchiveLocation, Export]]:
        """List locations that no checksum speaks for, with their exports: the first reported first."""
        query = (
            select(ArchiveLocation, Export)
            .join(Export, tied(EXPORT, ARCHIVE))
            .where(ARCHIVE.evidence != EVIDENCE[-1])
            .order_by(ARCHIVE.reported_at, ARCHIVE.path, ARCHIVE.event_id, ARCHIVE.revision)
            .limit(limit)
        )
        with self._reading() as session:
            return [(location, export) for location, export in session.execute(query)]

    def unarchived(self, *, before: datetime, limit: int = 1000) -> list[Ledger]:
        """List verified exports of events before a time that no archive has, by kind, experiment, day (UTC) and key.

        Left out are damaged and expired ones, and those that an entry names which only has to be settled.
        """
        waits = sa.exists().where(
            ENTRY.settled_at.is_(None),
            ENTRY.refuted_at.is_(None),
            ENTRY.key == EXPORT.bucket + "/" + EXPORT.key,
            sa.or_(ENTRY.size.is_(None), ENTRY.size == EXPORT.size),
            sa.or_(ENTRY.checksum.is_(None), ENTRY.checksum == EXPORT.sha256),
        )
        query = (
            select(EVENT.id, EVENT.revision)
            .join_from(Event, Export, tied(EXPORT, EVENT))
            .where(EXPORT.evidence.is_not(None), EVENT.timestamp < before)
            .where(~about(ARCHIVE, EVENT), ~waits.correlate(Export), ~expired(EVENT))
            .order_by(EVENT.kind, EVENT.experiment, day_of(EVENT.timestamp, postgres=self._postgres), EVENT.key)
            .limit(limit)
        )
        with self._reading() as session:
            refs = [Ref(*row) for row in session.execute(query)]
            found = {one.ref: one for some in chunks(refs) for one in fetch_ledgers(session, [among(some)])}
            return [found[ref] for ref in refs]

    def manifest_source(self, name: str) -> ManifestSource | None:
        """Return the state of a manifest source at the last poll."""
        with self._reading() as session:
            return session.get(ManifestSource, name)

    def record_manifest_source(self, source: ManifestSource) -> None:
        """Record the state of a manifest source, after all it listed was received."""
        with self._writing() as session:
            self._take_turn(session)
            session.merge(ManifestSource(**source.model_dump()))


def _entries(digest: str, entries: Iterable[ArchiveEntry]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        row = entry.model_dump() | {"manifest": digest}
        if rows.setdefault((entry.path, entry.key), row) != row:
            raise Rejected(f"{entry.path}: names {entry.key} twice, and not the same")
    return list(rows.values())


# ------------------------------------------------------------------------------------------------------ whose it is


def _from(query: Any, after: Place | None) -> Any:
    """Yield entries by (key, path, manifest), after a position."""
    order = (ENTRY.key, ENTRY.path, ENTRY.manifest)
    return (query if after is None else query.where(sa.tuple_(*order) > after)).order_by(*order)


def _unsettled(session: Session, after: Place | None, limit: int) -> Sequence[Any]:
    query = select(*(ENTRY[name] for name in FACTS), ENTRY.reason)
    query = query.where(ENTRY.settled_at.is_(None), ENTRY.refuted_at.is_(None))
    return session.execute(_from(query, after).limit(limit)).all()


def _fits(session: Session, entries: Sequence[Any], *, lock: bool = False) -> list[_Fit]:
    """Find the event of each entry, or why it has none; ``lock``: lock the rows of those events."""
    exports = _exports(session, {entry.key for entry in entries}, lock=lock)
    announced = _announced(session, {entry.key for entry in entries} - set(exports))
    fits = []
    for entry in entries:
        if entry.key in exports:
            ref, size, sha256 = exports[entry.key]
            differs = _differs(entry, size, sha256)
            fits.append(_Fit(entry, None if differs else ref, differs))
        else:
            fits.append(_Fit(entry, None, "not exported yet" if entry.key in announced else "unknown key"))
    return fits


def _differs(entry: Any, size: int, sha256: str) -> str | None:
    told = []
    if entry.size not in {None, size}:
        told.append(f"size {entry.size:,}, the export has {size:,}")
    if entry.checksum not in {None, sha256}:
        told.append(f"SHA-256 {entry.checksum}, the export has {sha256}")
    return "; ".join(told) or None


def _exports(session: Session, wanted: Iterable[str], *, lock: bool) -> dict[str, tuple[Ref, int, str]]:
    """Find the export of each ``<bucket>/<key>``: ref, size and SHA-256."""
    found: dict[str, tuple[Ref, int, str]] = {}
    keys = sorted(wanted)
    for bucket in _buckets(session) if keys else ():
        inside = [key.removeprefix(f"{bucket}/") for key in keys if key.startswith(f"{bucket}/")]
        for some in chunks(inside):
            query = (
                select(EVENT.id, EVENT.revision, EXPORT.key, EXPORT.size, EXPORT.sha256)
                .join_from(Export, Event, tied(EXPORT, EVENT))
                .where(EXPORT.bucket == bucket, EXPORT.key.in_(some))
            )
            query = query.order_by(EVENT.id, EVENT.revision) if lock else query
            rows = session.execute(query.with_for_update(of=Event, key_share=True) if lock else query)
            found |= {f"{bucket}/{key}": (Ref(id_, revision), size, sha) for id_, revision, key, size, sha in rows}
    return found


def _buckets(session: Session) -> Iterator[str]:
    """List every bucket with exports, without reading each export."""
    name = session.scalar(select(func.min(EXPORT.bucket)))
    while name is not None:
        yield name
        name = session.scalar(select(func.min(EXPORT.bucket)).where(EXPORT.bucket > name))


def _announced(session: Session, keys: Iterable[str]) -> set[str]:
    """Find those whose key, in whatever bucket, is that of an event without an export."""
    inside = defaultdict(list)
    for key in keys:
        parts = key.split("/")
        for number in range(1, min(len(parts), SPLITS + 1)):
            inside["/".join(parts[number:])].append(key)
    known: set[str] = set()
    for some in chunks(sorted(inside)):
        query = select(EVENT.key).where(EVENT.key.in_(some), ~about(EXPORT, EVENT))
        known.update(key for found in session.scalars(query) for key in inside[found])
    return known


# --------------------------------------------------------------------------------------------------- what it comes to


def _note(session: Session, fits: Sequence[_Fit], now: datetime) -> list[Ref]:
    """Record the result for each entry; return the events that are new on tape."""
    it = {name: ENTRY[name] == sa.bindparam(f"its_{name}") for name in ("manifest", "path", "key")}
    settle = sa.update(ENTRY.key.table).where(*it.values()).values(settled_at=now, reason=None)
    park = sa.update(ENTRY.key.table).where(*it.values()).values(reason=sa.bindparam("why", type_=ENTRY.reason.type))
    known = [{f"its_{name}": getattr(fit.entry, name) for name in it} for fit in fits if fit.ref is not None]
    waits = [fit for fit in fits if fit.ref is None and fit.reason != fit.entry.reason]
    if waits:
        rows = [{f"its_{name}": getattr(fit.entry, name) for name in it} | {"why": fit.reason} for fit in waits]
        session.connection().execute(park, rows)
    if known:
        session.connection().execute(settle, known)
    found = {fit.entry.key: fit.ref for fit in fits if fit.ref is not None}
    return [new for some in chunks(sorted(found)) for new in _locate(session, {key: found[key] for key in some})]


def _locate(session: Session, found: dict[str, Ref]) -> list[Ref]:
    """Update the locations of these keys from their entries; return the events that had none."""
    told: dict[tuple[Ref, str], list[Any]] = defaultdict(list)
    query = select(*(ENTRY[name] for name in FACTS)).where(ENTRY.key.in_(found), ENTRY.settled_at.is_not(None))
    for entry in session.execute(query):
        told[found[entry.key], entry.path].append(entry)
    rows = session.execute(select(*ARCHIVE).where(among(found.values(), ARCHIVE)))
    there = {(Ref(row.event_id, row.revision), row.path): row for row in rows}
    new: list[dict[str, Any]] = []
    for (ref, path), entries in told.items():
        here = {"event_id": ref.id, "revision": ref.revision, "path": path}
        facts = _come_to(entries)
        location = there.get((ref, path))
        if location is None:
            new.append(here | facts)
            continue
        kept = READ if location.read_at is not None else set()
        changed = {name: facts[name] for name in facts.keys() - kept if getattr(location, name) != facts[name]}
        if changed:
            session.execute(
                update(ArchiveLocation).where(*(ARCHIVE[name] == here[name] for name in here)).values(changed)
            )
    if new:
        session.execute(insert(ArchiveLocation), new)
        add_messages(session, map(_news, new))
    had = {ref for ref, _ in there}
    return sorted(ref for ref in set(found.values()) if ref not in had)


def _news(location: Mapping[str, Any]) -> News:
    facts = {name: location[name] for name in ("path", "member", "evidence")}
    return News(Ref(location["event_id"], location["revision"]), Fact.ARCHIVED, location["reported_at"], facts)


def _come_to(entries: Sequence[Any]) -> dict[str, Any]:
    """Combine the entries about one export in one archive, in any order: the strongest wins."""
    first = min(entries, key=lambda one: (one.reported_at, one.job_id))
    ranked = sorted(entries, key=lambda one: (-_strength(one), one.reported_at, one.job_id, one.manifest))
    facts = {
        name: next((value for one in ranked if (value := getattr(one, name)) is not None), None)
        for name in ("member", "size", "checksum", "offset")
    }
    facts["member"] = facts["member"] or f"./{first.key.rpartition('/')[2]}"
    return facts | {
        "job_id": first.job_id,
        "reported_at": first.reported_at,
        "evidence": EVIDENCE[_strength(ranked[0])],
        "evidence_at": min(one.reported_at for one in entries if _strength(one) == _strength(ranked[0])),
    }


def _strength(entry: Any) -> int:
    return 2 if entry.checksum is not None else int(entry.size is not None)


def _believe(session: Session, ref: Ref, export: Export, path: str, at: datetime) -> ArchiveLocation:
    """Settle the entries that name this archive for an export, though they were parked; NotFound when none does."""
    key = f"{export.bucket}/{export.key}"
    named = session.scalars(select(ArchiveEntry).where(ENTRY.key == key, ENTRY.path == path)).all()
    good = [entry for entry in named if _differs(entry, export.size, export.sha256) is None]
    if not good:
        raise NotFound(f"{ref}: no manifest says that it is in {path}")
    for entry in good:
        entry.settled_at, entry.refuted_at, entry.reason = entry.settled_at or at, None, None
    location = ArchiveLocation(event_id=ref.id, revision=ref.revision, path=path, **_come_to(good))
    session.add(location)
    add_messages(session, [_news(location.model_dump())])
    return location
