"""Write what is not on tape yet to the archive, for sites without an archiver of their own.

Each tar is plain POSIX/PAX, its members the bundles as they lie in the bucket, ``./<name>.tar``, sorted by name. Like
that of a bundle its layout is a pure function, of names, sizes and times: the same exports, the same bytes. So every
offset is known before anything is read, and a run that was cut off recognises what it has written.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from uuid import UUID, uuid5

from plateway import bundle, keys
from plateway.archive import MANIFESTS, Archive, Entry, dump
from plateway.checksums import sha256_of
from plateway.errors import Conflict, Damaged, Misconfigured, NotFound, PlatewayError, Transient, Unsettled
from plateway.events import Ref
from plateway.keys import PREFIXES
from plateway.ledger import Ledger
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.context import Site, format_place, format_unnamed
from plateway.pipeline.ingest import receive, settle
from plateway.pipeline.places import check_archive
from plateway.pipeline.run import failed
from plateway.pipeline.verify import verify
from plateway.records import Export

MOST = 10_000  # exports in one tar, and looked up at a time
ROUNDS = 10_000  # of that
TRIES = 5  # of one tar, as long as exports turn out to be bad while it is written
NUMBERS = 10_000  # tars of one day
IN_A_ROW = 3  # tars that fail one after the other: then it is not them
ABANDONED = timedelta(days=1)  # age of what a writer that died has left
KINDS = tuple(PREFIXES.values())
JOBS = UUID("6e0a7cbd-52a6-5d56-9d0f-2ed4a3a4a7ce")  # the namespace of our jobs


class ArchiveDay(NamedTuple):
    """What goes into the same tar."""

    kind: str  # images | videos | overview
    experiment: str
    day: date

    def path(self, number: int) -> str:
        """Return the path of its first, second … tar on the archive."""
        return f"{self.kind}/{self.experiment}/{self.day.isoformat()}{f'.{number}' if number > 1 else ''}.tar"


class ArchiveSlot(NamedTuple):
    """One export in a tar."""

    ledger: Ledger
    export: Export
    header: bytes
    entry: Entry


class _Bad(Exception):
    """What came of an export is not what was sent."""

    def __init__(self, ref: Ref) -> None:
        self.ref = ref


def archive(
    site: Site, *, before: date | None = None, dry_run: bool = False, most: int = MOST, now: datetime | None = None
) -> list[Outcome]:
    """Write the verified exports of past days to the archive, one tar for each kind, experiment and day (UTC).

    Only days before ``before``, and before today; at most ``most`` exports in one tar. A tar counts once it was read
    back; its manifest is then received like any other. Late exports go into ``<date>.2.tar``,
    ``<date>.3.tar``. May be repeated: what an interrupted run has written is found and reported, not written again. A
    dry run reports what would be written.

    Raises:
        Misconfigured: there is no archive.
    """
    if site.archive is None:
        raise Misconfigured("there is no archive to write to: PLATEWAY_ARCHIVE_TARGET is not set")
    now = now or site.catalog.now()
    today = now.astimezone(UTC).date()
    run = _Run(site, site.archive, most=most, dry_run=dry_run)
    if not dry_run:
        try:
            check_archive(site, fresh=True)
        except Transient as error:
            return [log_outcome(Outcome(None, "", "archive", Result.LATER, reasons=(str(error),)))]
        run.tidy(now - ABANDONED)
    run.all(datetime.combine(min(before or today, today), time(), UTC))
    return run.outcomes


class _Run:
    """One run over all days, and what came of it."""

    def __init__(self, site: Site, target: Archive, *, most: int, dry_run: bool) -> None:
        self.site, self.target, self.most, self.dry_run = site, target, most, dry_run
        self.bring = self._rehearse if dry_run else self._bring
        self.outcomes: list[Outcome] = []
        self.failed: Counter[str] = Counter()  # days in a row, of one bucket
        self.left: set[Ref] = set()  # attempted, and still not on tape

    def all(self, before: datetime) -> None:
        """Archive all days; one that fails stops no other, unless several of one bucket fail in a row."""
        for day, ledgers in itertools.chain.from_iterable(map(_days, self._pages(before))):
            for place, some in self._places(day, ledgers).items():
                if self.failed[place] < IN_A_ROW:
                    self._attempt(place, day, some)
            if sum(count >= IN_A_ROW for count in self.failed.values()) > len(self.site.others):
                self._settle()
                return

    def _attempt(self, place: str, day: ArchiveDay, ledgers: Sequence[Ledger]) -> None:
        """Archive what one bucket has of a day."""
        try:
            self.bring(day, ledgers)
            self.failed[place] = 0
        except PlatewayError as error:
            self.failed[place] += 1
            result = Result.LATER if isinstance(error, Transient) else Result.FAILED
            self._note(Outcome(None, "", "archive", result, key=day.path(1), reasons=(str(error),)))
        if self.failed[place] == IN_A_ROW:
            where = f", of {place}" if self.site.others else ""
            self._note(
                Outcome(None, "", "archive", Result.STOPPED, reasons=(f"{IN_A_ROW} days in a row failed{where}",))
            )

    def tidy(self, before: datetime) -> None:
        """Remove what runs that were cut off have left half written; if that cannot be done, it is not in the way."""
        try:
            left = (self.target.sweep(directory, before=before) for directory in (*KINDS, MANIFESTS))
            for path in itertools.chain.from_iterable(left):
                self._note(
                    Outcome(None, "", "archive", Result.REMOVED, key=path, reasons=(f"{path}: left half written",))
                )
        except PlatewayError as error:
            self._note(Outcome(None, "", "archive", Result.LATER, reasons=(str(error),)))

    def _settle(self) -> None:
        """Record the events that tape has now, reported by this run or by an interrupted one."""
        if self.dry_run:
            return
        archived = [one for one in settle(self.site) if one.result == Result.ARCHIVED]
        self.outcomes += archived
        self.left -= {one.ref for one in archived if one.ref is not None}

    def _pages(self, before: datetime) -> Iterator[list[Ledger]]:
        """Yield what is due, whole days at a time where they fit."""
        for _ in range(ROUNDS):
            self._settle()
            limit = self.most + len(self.left)
            found = self.site.catalog.unarchived(before=before, limit=limit)
            fresh = [ledger for ledger in found if ledger.ref not in self.left]
            if len(found) == limit and _day(fresh[0]) != _day(fresh[-1]):
                fresh = [ledger for ledger in fresh if _day(ledger) != _day(fresh[-1])]  # the last may be cut
            if not fresh:
                return
            self.left.update(ledger.ref for ledger in fresh)
            yield fresh

    def _places(self, day: ArchiveDay, ledgers: Sequence[Ledger]) -> dict[str, list[Ledger]]:
        """Group exports by bucket, without those of buckets that the settings do not name."""
        found: dict[str, list[Ledger]] = defaultdict(list)
        away: Counter[str] = Counter()
        for ledger in ledgers:
            export = _export(ledger)
            bound = self.site.at(export.endpoint, export.bucket)
            if bound is not None:
                found[str(bound.place)].append(ledger)
            else:
                away[format_place(export.endpoint, export.bucket)] += 1
        for where, count in away.items():
            self._note(
                Outcome(None, "", "archive", Result.REFUSED, key=day.path(1), reasons=(format_unnamed(where, count),))
            )
        return found

    def _rehearse(self, day: ArchiveDay, ledgers: Sequence[Ledger]) -> None:
        """Report where a day's exports would be written."""
        paths = (day.path(number) for number in range(1, NUMBERS + 1))
        free = (path for path in paths if self.target.size(path) is None)
        while ledgers:
            path = next(free)
            slots = lay(path, ledgers)[: self.most]
            for ledger, export, *_ in slots:
                event = ledger.event
                into = (f"into {path}",)
                self.outcomes.append(
                    Outcome(ledger.ref, event.system, "archive", Result.WOULD_GO, event.key, export.size, into)
                )
            ledgers = _without(ledgers, {slot.ledger.ref for slot in slots})

    def _bring(self, day: ArchiveDay, ledgers: Sequence[Ledger]) -> None:
        """Write a day's exports into the first free tar, or find them in existing ones.

        Where two have the same name, the second goes into the next tar; so do those that are too many.
        """
        for number in range(1, NUMBERS + 1):
            if not ledgers:
                return
            path, slots = day.path(number), None
            if self.target.size(path) is None:
                slots, ledgers = self._write(path, ledgers)
            if slots is None:
                slots = self._find(path, ledgers)
                if slots:
                    self._tell(path, day.day, slots, Result.FOUND)
            elif slots:
                self._tell(path, day.day, slots, Result.WRITTEN)
            ledgers = _without(ledgers, {slot.ledger.ref for slot in slots})
        raise Unsettled(f"{day.path(1)}: {NUMBERS} tars of that day are there already")

    def _write(self, path: str, ledgers: Sequence[Ledger]) -> tuple[list[ArchiveSlot] | None, list[Ledger]]:
        """Write one tar; return what is in it, None if another process was faster, and the undamaged exports."""
        good = [one for one in ledgers if not self._suspect(one) or self._sound(one)]
        for _ in range(TRIES):
            slots = lay(path, good)[: self.most]
            if not slots:
                return [], good
            try:
                self.target.write(path, self._pour(slots))
            except _Bad as bad:
                good = [one for one in good if one.ref != bad.ref or self._sound(one)]
            except Conflict:
                return None, good
            else:
                return slots, good
        raise Unsettled(f"{path}: begun {TRIES} times, and each time an export was read other than it was sent")

    def _suspect(self, ledger: Ledger) -> bool:
        """Return whether the object is no longer the one that was verified, by size and ETag."""
        export = _export(ledger)
        found = self.site.holding(export).store.stat(export.key)
        return found is None or (found.size, found.etag) != (export.size, export.seen_etag)

    def _sound(self, ledger: Ledger) -> bool:
        """Verify an export again, whole; its damage is recorded."""
        try:
            outcome = verify(self.site, ledger.ref, read_back=True)
        except Transient as error:
            self.outcomes.append(failed(self.site, ledger.ref, "archive", error))
            return False
        if outcome.result != Result.VERIFIED:
            self.outcomes.append(outcome)
        return outcome.result == Result.VERIFIED

    def _pour(self, slots: Sequence[ArchiveSlot]) -> Iterator[bytes]:
        """Yield the bytes of a tar, comparing each export with its SHA-256."""
        for ledger, export, header, _ in slots:
            yield header
            digest, size = hashlib.sha256(), 0
            try:
                for chunk in self.site.holding(export).store.open(export.key):
                    size += len(chunk)
                    if size > export.size:
                        break
                    digest.update(chunk)
                    yield chunk
            except (NotFound, Damaged):
                raise _Bad(ledger.ref) from None
            if size != export.size or digest.hexdigest() != export.sha256:
                raise _Bad(ledger.ref)
            yield bytes(bundle.padded(size) - size)
        yield bundle.END

    def _find(self, path: str, ledgers: Sequence[Ledger]) -> list[ArchiveSlot]:
        """Find those exports that are in a tar already, every byte of them; a tar that is cut, or none, has nothing."""
        wanted: dict[tuple[str, int], list[Ledger]] = defaultdict(list)
        for ledger in ledgers:
            wanted[_name(ledger), _export(ledger).size].append(ledger)
        found = []
        try:
            for member in self.target.members(path):
                alike = wanted[member.name.removeprefix("./"), member.size]
                read = sha256_of(self.target.open(path, start=member.offset, length=member.size)) if alike else ""
                same = next((one for one in alike if _export(one).sha256 == read), None)
                if same is not None:
                    alike.remove(same)
                    export = _export(same)
                    entry = _entry(path, export, member=member.name, offset=member.offset)
                    found.append(ArchiveSlot(same, export, b"", entry))
        except Damaged:
            return []
        return found

    def _tell(self, path: str, day: date, slots: Sequence[ArchiveSlot], result: Result) -> None:
        """Make the manifest of a tar durable on the archive and here."""
        entries = [slot.entry for slot in slots]
        job = _job(path, entries)
        content = dump(job, day, entries=entries)
        self.target.put_manifest(job, content)
        size = sum(slot.export.size for slot in slots)
        count = f"{len(slots)} export{'s' if len(slots) > 1 else ''}"
        self._note(Outcome(None, "", "archive", result, key=path, size=size, reasons=(f"{path}: {count}",)))
        received = receive(self.site, content, source="archive", name=f"{job}.json")
        if received.result not in {Result.RECEIVED, Result.KNOWN}:
            self.outcomes.append(received)

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(log_outcome(outcome))


def _days(ledgers: Sequence[Ledger]) -> Iterator[tuple[ArchiveDay, list[Ledger]]]:
    for day, some in itertools.groupby(ledgers, key=_day):
        yield day, list(some)


def _day(ledger: Ledger) -> ArchiveDay:
    event = ledger.event
    return ArchiveDay(PREFIXES[event.kind], event.experiment, event.timestamp.astimezone(UTC).date())


def _export(ledger: Ledger) -> Export:
    assert ledger.export is not None, f"{ledger.ref} was never exported"
    return ledger.export


def _name(ledger: Ledger) -> str:
    return keys.tar_name(_export(ledger).key)


def _without(ledgers: Sequence[Ledger], refs: set[Ref]) -> list[Ledger]:
    return [ledger for ledger in ledgers if ledger.ref not in refs]


def lay(path: str, ledgers: Sequence[Ledger]) -> list[ArchiveSlot]:
    """Lay out a tar of these exports, by name; of those that have the same name, the first by key."""
    first = {_name(ledger): ledger for ledger in sorted(ledgers, key=lambda one: _export(one).key, reverse=True)}
    slots, position = [], 0
    for name, ledger in sorted(first.items()):
        export = _export(ledger)
        header = bundle.member_header(name, export.size, mtime=int(ledger.event.timestamp.timestamp()))
        offset = position + len(header)
        slots.append(ArchiveSlot(ledger, export, header, _entry(path, export, member=f"./{name}", offset=offset)))
        position = bundle.padded(offset + export.size)
    return slots


def _entry(path: str, export: Export, *, member: str, offset: int) -> Entry:
    return Entry(path, f"{export.bucket}/{export.key}", member, export.size, export.sha256, offset)


def _job(path: str, entries: Sequence[Entry]) -> str:
    """Return a job's id, derived from what it wrote: equal content has equal ids."""
    facts = sorted((entry.key, entry.sha256, entry.offset) for entry in entries)
    return str(uuid5(JOBS, json.dumps([path, facts])))
