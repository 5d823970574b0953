"""Hold bench, bucket, catalogue and tape against each other, and put right what may be put right.

The listing is taken whole before the catalogue is read, brought into the order of its keys and kept aside on disk, so
that neither memory nor a long transaction grows with the bucket. What the comparison then says is only a suspicion:
while it ran, the line went on. Each suspect is looked at again on its own, and nothing is done on account of a listing.
"""

from __future__ import annotations

import heapq
import itertools
import marshal
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple, TypeVar
from uuid import UUID

from plateway import folder
from plateway.bench import EVENT_FILE, EVENTS, TRASH, list_systems
from plateway.errors import Misconfigured, NotFound, PlatewayError, Refused, Rejected, Transient
from plateway.events import Ref
from plateway.findings import (
    HARMLESS,
    Finding,
    Kind,
    Repair,
    account_of,
    compare,
    in_staging,
    in_trash,
    judge,
    limit,
    open_uploads,
)
from plateway.instruments import Instrument, bounded_fraction
from plateway.keys import MARKER_FILE, is_marker
from plateway.ledger import DAY, Account, Ledger
from plateway.outcome import Outcome, Restored, Result, log_outcome
from plateway.pipeline.context import Site, format_place, format_unnamed
from plateway.pipeline.export import export
from plateway.pipeline.ingest import settle
from plateway.pipeline.lease import leased
from plateway.pipeline.only_copies import inspect_only_copies
from plateway.pipeline.places import check_bench, check_bucket
from plateway.pipeline.purge import take_back
from plateway.pipeline.recover import UNKNOWN, Announced, adopt, announced, site_of
from plateway.pipeline.restore import clear_leftover
from plateway.pipeline.run import failed
from plateway.pipeline.verify import verify
from plateway.records import ArchiveEntry
from plateway.store import Stat, Store, Upload

KEPT = 10_000  # findings of one kind that are told; further ones are counted
RUN = 100_000  # objects that are sorted at a time
HINTS = 100  # objects whose tags are asked for
CHUNK = 500  # keys or refs that the catalogue is asked about at a time
K = TypeVar("K")
STUCK = {
    Result.LATER,
    Result.FAILED,
    Result.BUSY,
    Result.CONFLICT,
    Result.REFUSED,
    Result.WAITS,
    Result.PARKED,
}  # the next step would do no better
# what a copy into staging leaves when it is interrupted, and what a restore to the bench is working on in the trash
ASIDE = re.compile(r"(\.\d+)?\.part|\.old|\.back")
OBJECTS = {Kind.DARK, Kind.LOST, Kind.CHANGED, Kind.UPLOAD, Kind.FOREIGN}
AGAIN = {Kind.DARK, Kind.LOST, Kind.CHANGED, Kind.UNPROVEN, Kind.UNTOLD}  # looked at again in bucket and bench


@dataclass(frozen=True)
class Reconciled:
    """What was found, and what was done about it."""

    findings: tuple[Finding, ...]
    outcomes: tuple[Outcome, ...]  # of repairs; and what could not be looked at, or why nothing was repaired
    counts: Mapping[str, int]  # findings by kind, with those that are too many to be told
    stopped: bool = False  # nothing was repaired in a bucket, because all that it says is to be doubted


def reconcile(
    site: Site,
    *,
    repair: bool = False,
    systems: Sequence[str] | None = None,
    within: timedelta | None = None,
    fraction: float = 0.1,
    now: datetime | None = None,
) -> Reconciled:
    """Compare what bench, bucket, catalogue and tape say, and put right what may be put right.

    What only looks and notes is done at once; what deletes, moves or writes only with ``repair``, and is told as
    ``would …`` without. ``systems`` are those whose disks are looked at (default: all); bucket and tape are always
    compared whole. ``within``: how long an export may be without a tape copy. More exports newly lost or changed than
    ``fraction`` of all stop every repair, and so does a side that cannot be asked.
    Each bucket of the site is compared with the exports in it, on its own: what cannot be said of one is said of the
    others. A second run right after changes nothing.
    """
    now, fraction = now or site.catalog.now(), bounded_fraction(fraction)
    bench, shares = _Bench(site, systems), _Shares(site)
    runs = (_Run(bound, now=now, repair=repair, within=within, bench=bench, shares=shares) for bound in shares.bound)
    told = [_carry_out(run, fraction) for run in runs]
    findings, troubles = inspect_only_copies(site)
    tape = Reconciled(tuple(findings), tuple(troubles), {Kind.ONLY_COPY.value: len(findings)} if findings else {})
    return _whole([*told, tape], [log_outcome(one) for one in (*shares.elsewhere(), *bench.unseen())])


def _whole(told: Sequence[Reconciled], outcomes: Sequence[Outcome]) -> Reconciled:
    """Put together what was found in each bucket, and what could not be looked at."""
    counts = sum((Counter(one.counts) for one in told), Counter[str]())
    return Reconciled(
        findings=tuple(itertools.chain.from_iterable(one.findings for one in told)),
        outcomes=(*itertools.chain.from_iterable(one.outcomes for one in told), *outcomes),
        counts=dict(sorted(counts.items())),
        stopped=any(one.stopped for one in told),
    )


def _carry_out(run: _Run, fraction: float) -> Reconciled:
    """Compare one bucket, and put right what may be put right there."""
    try:
        survey = run.survey()
        suspects = run.confirm(survey)
    except PlatewayError as error:  # a side that cannot be asked: what was found until then proves nothing
        return run.stopped(Result.LATER if isinstance(error, Transient) else Result.STOPPED, str(error))
    doubt = run.doubt(survey, suspects, fraction)
    if doubt is not None:
        return run.stopped(Result.STOPPED, doubt, suspects=suspects, survey=survey)
    try:
        run.mend(suspects, whole=not survey.cut)
    except PlatewayError as error:  # a side went away; what was put right until then is
        return run.stopped(Result.LATER if isinstance(error, Transient) else Result.STOPPED, str(error), survey=survey)
    return run.told(survey)


class _Row(NamedTuple):
    """What is kept of an object while the whole is brought into order."""

    key: str
    size: int
    etag: str


def _in_order(objects: Iterable[Stat], stack: ExitStack) -> Iterator[_Row]:
    """Sort a listing by key, aside on disk where it is long: some stores list ``a-b/1`` after ``a/1``.

    What is listed twice, because the bucket changed meanwhile, comes once.
    """
    rows = (_Row(one.key, one.size, one.etag) for one in objects)
    batch = sorted(itertools.islice(rows, RUN))
    if len(batch) < RUN:
        return _once(batch)
    files: list[IO[bytes]] = []
    last = ""
    while batch:
        if not files or batch[0].key < last:
            file = TemporaryFile()  # noqa: SIM115 - the stack closes it
            files.append(stack.enter_context(file))
        for some in _chunks(batch):
            marshal.dump([tuple(row) for row in some], files[-1])
        last = batch[-1].key
        batch = sorted(itertools.islice(rows, RUN))
    return _once(heapq.merge(*map(_rows, files)))


def _rows(file: IO[bytes]) -> Iterator[_Row]:
    end = file.tell()
    file.seek(0)
    while file.tell() < end:
        yield from itertools.starmap(_Row, marshal.load(file))  # noqa: S302 - written by us, just now


def _once(rows: Iterable[_Row]) -> Iterator[_Row]:
    last = None
    for row in rows:
        if row.key != last:
            yield row
        last = row.key


class _Bench:
    """What the disks of the instruments show. One that shows nothing at all is not looked at, and says so once."""

    def __init__(self, site: Site, systems: Sequence[str] | None) -> None:
        self._site, self._only = site, systems
        self._instruments: dict[str, Instrument | None] = {}  # None: nothing can be said
        self.silent: dict[str, str] = {}  # why, by system
        going = site.catalog.going("raw")
        self._aside = {ledger.event.system for ledger, purge in going if purge.trashed_at is not None}

    def unseen(self) -> Iterator[Outcome]:
        """Tell of the disks that could not be looked at."""
        for system, reason in sorted(self.silent.items()):
            yield Outcome(None, system, "reconcile", Result.LATER, reasons=(reason,))

    def systems(self) -> Iterator[Instrument]:
        """Give every system whose disk can be looked at."""
        try:
            there = list_systems(self._site.root)
        except PlatewayError:
            there = []  # each system that is known will say so
        for name in sorted({*there, *self._site.catalog.systems()}):
            if (instrument := self.instrument(name)) is not None:
                yield instrument

    def instrument(self, system: str) -> Instrument | None:
        """Give a system if its disk is to be looked at, and shows that it is there."""
        if self._only is not None and system not in self._only:
            return None
        if system not in self._instruments:
            instrument = self._site.instrument(system)
            silence = self._silence(instrument)
            if silence is not None:
                self.silent[system] = silence
            self._instruments[system] = None if silence is not None else instrument
        return self._instruments[system]

    def _silence(self, instrument: Instrument) -> str | None:
        """Look for a positive sign that this is the instrument's disk: an empty directory proves nothing."""
        name = instrument.name
        try:
            if not folder.exists(instrument.root, EVENTS):
                return f"{name} shows no {EVENTS} directory at all: is its disk mounted?"
            check_bench(self._site, instrument)
            if name in self._aside and not folder.exists(instrument.root, TRASH):
                return f"{name} shows no trash at all: is its disk mounted?"
        except PlatewayError as error:
            return f"{name} cannot be looked at: {error}"
        return None

    def seen(self, account: Account) -> Account:
        """Say of images that should be here whether they are."""
        if account.raw != "here" or not (account.sealed or account.export_bucket):
            return account
        instrument = self.instrument(account.system)
        if instrument is None or account.path.startswith(f"{UNKNOWN}/"):
            return account._replace(raw="unknown")
        try:
            if folder.exists(instrument.root, account.path):
                return account
            strayed = folder.exists(instrument.root, _trash(account.ref))
        except PlatewayError:  # a disk that fails, or a link in the way
            return account._replace(raw="unknown")
        return account._replace(raw="strayed" if strayed else "missing")

    def seen_again(self, account: Account, ledger: Ledger) -> Account:
        """Look anew; images that are under way, or went with another event's, are not missing."""
        if account.raw == "here" and ledger.purge("raw") is not None:
            return account._replace(raw="aside")  # intended, and not noted yet: the purge heals that
        account = self.seen(account)
        if account.raw not in {"missing", "strayed"}:
            return account
        self._instruments.pop(account.system, None)  # so that a disk that went away just now is noticed
        if self.instrument(account.system) is None or self._went_along(ledger):
            return account._replace(raw="unknown")
        return account

    def _went_along(self, ledger: Ledger) -> bool:
        path = f"{ledger.event.path}/"
        return any(
            other.purge("raw") is not None and path.startswith(f"{other.event.path}/")
            for other in self._site.catalog.siblings(ledger.event)
        )


def _trash(ref: Ref) -> str:
    return f"{TRASH}/{ref}/images"


class _Shares:
    """Which bucket each event is compared with: the one that has its export, else the one that would get it."""

    def __init__(self, site: Site) -> None:
        self.bound = list(site.each_bucket())
        self._stores = [one.store for one in self.bound]
        self._own = self.bound[0]  # what belongs nowhere else is told with the site's own
        self._homes: dict[tuple[str | None, ...], Site | None] = {}
        self._away: Counter[str] = Counter()

    def of(self, account: Account) -> Store:
        """Give the bucket that an event is compared with."""
        home = self._home(account)
        return home.store if home is not None and home.store in self._stores else self._own.store

    def away(self, account: Account) -> bool:
        """Tell whether an export is in none of the buckets that are known; such are counted."""
        if account.export_bucket is None or self._home(account) is not None:
            return False
        self._away[format_place(account.export_endpoint, account.export_bucket)] += not account.expired
        return True

    def elsewhere(self) -> Iterator[Outcome]:
        """Tell of the exports that are in none of the buckets that are known."""
        for where, count in sorted(self._away.items()):
            if count:
                yield Outcome(None, "", "reconcile", Result.LATER, reasons=(format_unnamed(where, count),))

    def _home(self, account: Account) -> Site | None:
        exported = account.export_bucket is not None
        share = (account.export_bucket, account.export_endpoint) if exported else (None, account.system)
        if share not in self._homes:
            self._homes[share] = self._find(account)
        return self._homes[share]

    def _find(self, account: Account) -> Site | None:
        if account.export_bucket is not None:
            return self._own.at(account.export_endpoint, account.export_bucket)
        try:
            return self._own.to(account.system)
        except Misconfigured:
            return None


@dataclass
class _Survey:
    """What the comparison suspects."""

    exports: int = 0  # that should be in the bucket
    objects: int = 0
    counts: Counter[Kind] = field(default_factory=Counter)
    kept: dict[Kind, list[Finding]] = field(default_factory=dict)

    def take(self, finding: Finding) -> None:
        """Keep a finding, or only count it."""
        self.counts[finding.kind] += 1
        kept = self.kept.setdefault(finding.kind, [])
        if len(kept) < KEPT:
            kept.append(finding)

    @property
    def cut(self) -> bool:
        """Were there more of a kind than are told?"""
        return any(self.counts[kind] > len(kept) for kind, kept in self.kept.items())

    def untold(self, *kinds: Kind) -> int:
        """Count those that were not kept."""
        return sum(self.counts[kind] - len(self.kept.get(kind, ())) for kind in kinds)


@dataclass
class _Suspects:
    """What held on a second look: findings by key, and those that need no repair of ours."""

    keys: dict[str, list[Finding]] = field(default_factory=dict)
    others: list[Finding] = field(default_factory=list)
    new_harm: int = 0  # exports lost or changed that nobody knew of


class _Run:
    """One reconciliation."""

    def __init__(
        self, site: Site, *, now: datetime, repair: bool, within: timedelta | None, bench: _Bench, shares: _Shares
    ) -> None:
        self.site, self.bench, self.shares, self.now = site, bench, shares, now
        self.repair, self.within = repair, within
        self.bucket = site.store.name
        self._compare = partial(compare, bucket=self.bucket, endpoint=site.endpoint, now=now)
        self._judge = partial(judge, bucket=self.bucket, endpoint=site.endpoint, now=now)
        self.own = site is shares.bound[0]  # the site's own bucket: what is of no bucket is told here, once
        alike = [one.store for one in shares.bound if one.store.name == self.bucket]
        self.names = alike[0] is site.store  # tape names no endpoint: of buckets of one name, one answers to it
        self.findings: list[Finding] = []
        self.outcomes: list[Outcome] = []
        self._files: Mapping[UUID, Sequence[Announced]] | None = None
        self.sighted: Mapping[str, datetime] = {}
        self.stats: dict[str, Stat] = {}  # of the objects that were looked at again
        self.dark: list[str] = []  # keys of objects that still are when all is mended

    # ---------------------------------------------------------------------------------------------------- looking

    def survey(self) -> _Survey:
        """Compare everything once."""
        survey = _Survey()
        if self.own:
            self._settle()  # what is parked and fits now is no finding
        with ExitStack() as stack:
            check_bucket(self.site, fresh=True)
            objects = _in_order((one for one in self.site.store.list() if not is_marker(one.key)), stack)
            accounts = self._counted(self.site.catalog.accounts(bucket=None if self.own else self.bucket), survey)
            listed = self._listed(objects, survey)
            parked = self._named_here(self.site.catalog.parked())
            for finding in self._compare(accounts, listed, parked, within=self.within):
                if finding.kind is not Kind.UNKNOWN or self.names:
                    survey.take(finding)
        return survey

    def _named_here(self, parked: Iterable[ArchiveEntry]) -> Iterator[ArchiveEntry]:
        """Give what tape says of this bucket; the site's own also answers for buckets that nobody knows."""
        others = tuple(f"{one.store.name}/" for one in self.shares.bound if one.store.name != self.bucket)
        mine = f"{self.bucket}/"
        for entry in parked:
            if entry.key.startswith(mine) or (self.own and not entry.key.startswith(others)):
                yield entry

    def _settle(self) -> None:
        self.outcomes += [one for one in settle(self.site, now=self.now) if one.result == Result.ARCHIVED]

    def _counted(self, accounts: Iterable[Account], survey: _Survey) -> Iterator[Account]:
        for account in accounts:
            if self._mine(account):
                away = self.shares.away(account)
                survey.exports += account.export_bucket is not None and not (away or account.expired)
                yield self.bench.seen(self._log_outcome(account))

    def _mine(self, account: Account) -> bool:
        return self.shares.of(account) is self.site.store

    def _log_outcome(self, account: Account) -> Account:
        """Say of an export from before endpoints were noted at which it is taken to be."""
        if account.export_bucket != self.bucket or account.export_endpoint is not None:
            return account
        return account._replace(export_endpoint=self.site.endpoint)

    def _listed(self, objects: Iterable[_Row], survey: _Survey) -> Iterator[_Row]:
        for row in objects:
            survey.objects += 1
            yield row

    def confirm(self, survey: _Survey) -> _Suspects:
        """Look at each suspect again on its own."""
        if survey.exports and not survey.objects:
            raise Refused(f"the bucket lists nothing at all, and {survey.exports:,} exports should be there")
        suspects = _Suspects()
        keys = list(dict.fromkeys(one.key for kind in AGAIN for one in survey.kept.get(kind, ())))
        for key, ledger in self._ledgers(sorted(keys)):
            found = self.look(key, ledger)
            if found:
                suspects.keys[key] = found
            damaged = ledger is not None and ledger.export is not None and ledger.export.damage is not None
            suspects.new_harm += not damaged and any(one.kind in {Kind.LOST, Kind.CHANGED} for one in found)
        for kind in (Kind.UNARCHIVED, Kind.NEVER_EXPORTED, Kind.DISAGREES, Kind.UNKNOWN):
            for some in _chunks(survey.kept.get(kind, ())):
                known = dict(self._ledgers([self._own(one.key) for one in some]))
                suspects.others += [one for one in some if self._holds(one, known[self._own(one.key)])]
        return suspects

    def look(self, key: str, ledger: Ledger | None) -> list[Finding]:
        """Judge one key by what is there now."""
        account = None if ledger is None else self._seen_again(ledger)
        try:
            found = self.site.store.stat(key)
        except Rejected as error:  # it was listed, and no store of ours would take such a key
            return [Finding(Kind.DARK, key, str(error))]
        if found is not None:
            self.stats[key] = found
        site = site_of(found)
        if found is not None and site not in {None, self.site.places.site}:
            return [Finding(Kind.FOREIGN, key, f"{found.size:,} bytes of site {site}")]
        return list(self._judge(key, account, found, within=None))

    def _seen_again(self, ledger: Ledger) -> Account:
        """Look at the images anew, for the bucket that they are compared with; for others it does not matter."""
        account = account_of(ledger)
        if self._mine(account):
            return self.bench.seen_again(self._log_outcome(account), ledger)
        return account._replace(raw="unknown")

    def _ledgers(self, keys: Sequence[str]) -> Iterator[tuple[str, Ledger | None]]:
        for some in _chunks(keys):
            known = {ledger.event.key: ledger for ledger in self.site.catalog.ledgers(keys=some)}
            yield from ((key, known.get(key)) for key in some)

    def _own(self, key: str) -> str:
        return key.removeprefix(f"{self.bucket}/")

    def _holds(self, finding: Finding, ledger: Ledger | None) -> bool:
        """Say whether what tape's account is about is still so."""
        if finding.kind is Kind.UNKNOWN:
            if ledger is None or self._own(finding.key) == finding.key:
                return True
            return self.shares.of(account_of(ledger)).name != self.bucket
        export = None if ledger is None else ledger.export
        if ledger is None or finding.kind is Kind.NEVER_EXPORTED:
            return ledger is not None and export is None
        if export is None or finding.kind is Kind.DISAGREES:  # noted just now: the next run settles the entry
            return export is not None and export.uploaded_at < self.now
        return not ledger.archives and export.damage is None and not ledger.expired

    def doubt(self, survey: _Survey, suspects: _Suspects, fraction: float) -> str | None:
        """Say why nothing at all should be repaired."""
        harm = suspects.new_harm + survey.untold(Kind.LOST, Kind.CHANGED)
        if harm <= limit(survey.exports, fraction):
            return None
        return (
            f"{harm:,} of {survey.exports:,} exports look lost or changed, more than {fraction:.0%}: "
            "is it the right bucket? If so, PLATEWAY_RECONCILE_FRACTION=1 lets one run go on"
        )

    # -------------------------------------------------------------------------------------------------- repairing

    def mend(self, suspects: _Suspects, *, whole: bool) -> None:
        """Repair what may be repaired; ``whole``: all that was suspected is among the suspects."""
        self._sight(suspects)
        for key, found in suspects.keys.items():
            self.findings += self._mend(key, found)
        if whole:
            self.site.catalog.clear_dark(bucket=self.bucket, endpoint=self.site.endpoint, keep=self.dark)
        for finding in suspects.others:
            done = self._act(finding)[0] if self._may(finding) else ""
            self.findings.append(self._would(replace(finding, done=done)))
        if any(one.result in {Result.ADOPTED, Result.EXPORTED} for one in self.outcomes):
            self._settle()
        self._hint()
        self._strays()

    def _sight(self, suspects: _Suspects) -> None:
        """Note which objects are dark today."""
        dark = [key for key, found in suspects.keys.items() if any(one.kind is Kind.DARK for one in found)]
        stats = [self.stats[key] for key in dark if key in self.stats]
        catalog, endpoint = self.site.catalog, self.site.endpoint
        self.sighted = catalog.sight_dark(stats, bucket=self.bucket, endpoint=endpoint, now=self.now)

    def _mend(self, key: str, found: Sequence[Finding]) -> list[Finding]:
        """Repair one key step by step, each time by what is there then."""
        told: dict[Kind, Finding] = {}
        tried: set[Repair] = set()
        go_on = True
        while found:
            for finding in found:
                told[finding.kind] = replace(finding, done=told[finding.kind].done if finding.kind in told else "")
            step = next((one for one in found if self._may(one) and one.repair not in tried), None)
            if step is None or not go_on:
                break
            tried.add(step.repair)
            done, go_on = self._act(step)
            told[step.kind] = replace(told[step.kind], done=_then(told[step.kind].done, done))
            found = self.look(key, next(ledger for _, ledger in self._ledgers([key])))
        left = {one.kind for one in found}
        if Kind.DARK in left:
            self.dark.append(key)
        return [self._would(one) if one.kind in left else one for one in told.values()]

    def _may(self, finding: Finding) -> bool:
        if finding.repair is Repair.NONE:
            return False
        return self.repair or finding.repair in HARMLESS

    def _would(self, finding: Finding) -> Finding:
        """Say of a repair that was not allowed that it could be made."""
        if finding.repair is Repair.NONE or self._may(finding):
            return finding
        return replace(finding, done=_then(finding.done, f"would {finding.repair}"))

    def _act(self, finding: Finding) -> tuple[str, bool]:
        """Carry out a repair; say what came of it, and whether there may be more to do."""
        try:
            outcomes = list(self._repaired(finding))
        except PlatewayError as error:
            result = Result.LATER if isinstance(error, Transient) else Result.FAILED
            outcomes = [self._outcome(finding, result, str(error))]
        self.outcomes += [log_outcome(one) if one.verb == "reconcile" else one for one in outcomes]
        results = [one.result for one in outcomes] or [Result.PARKED]
        marked = finding.repair is Repair.MARK and results == [Result.DAMAGED]
        return "marked lost" if marked else ", ".join(results), not STUCK & set(results)

    def _repaired(self, finding: Finding) -> Iterator[Outcome]:
        match finding.repair:
            case Repair.VERIFY | Repair.MARK:
                yield self._verb(finding, "verify")
            case Repair.EXPORT:
                sent = self._verb(finding, "export")
                yield sent
                if sent.result in {Result.EXPORTED, Result.EXPORTED_ALREADY}:
                    yield self._verb(finding, "verify")
            case Repair.ADOPT:
                yield self._adopt(finding)
            case Repair.CLEAR:
                assert finding.ref is not None
                clear_leftover(self.site, finding.ref)
                yield self._outcome(finding, Result.REMOVED)
            case Repair.RESTORE:
                yield self._bring_back(finding)

    def _verb(self, finding: Finding, verb: str) -> Outcome:
        """Export or verify one event, if it is not being held back."""
        assert finding.ref is not None
        ledger = self.site.catalog.ledger(finding.ref)
        setback = ledger.setback(verb)
        if setback is not None and setback.next_at > self.now:
            return self._outcome(
                finding, Result.LATER, f"{verb} failed and is tried again {setback.next_at:%Y-%m-%d %H:%M}"
            )
        if verb == "export" and (reason := self._unfit(ledger)) is not None:
            return self._outcome(finding, Result.REFUSED, reason)
        act = export if verb == "export" else verify
        try:
            return act(self.site, finding.ref)
        except PlatewayError as error:
            return failed(self.site, finding.ref, verb, error)

    def _unfit(self, ledger: Ledger) -> str | None:
        """Say why an event will not be exported whatever the bucket lacks."""
        event = ledger.event
        if ledger.quarantine is not None:
            return f"in quarantine: {ledger.quarantine.reason}"
        for other in self.site.catalog.revisions(event.id):
            same = (other.event.file, other.event.announced_at) == (event.file, event.announced_at)
            if same and other.ref.revision > event.revision:
                return f"the images are those of {other.ref} now"
        return None

    def _adopt(self, finding: Finding) -> Outcome:
        """Take in an object that proves itself, once it was seen dark a day ago already."""
        first = self.sighted.get(finding.key)
        if first is None or self.now - first < DAY:
            since = (first or self.now) + DAY
            return self._outcome(finding, Result.WAITS, f"seen first today, adopted from {since:%Y-%m-%d %H:%M}")
        ledger = None if finding.ref is None else self.site.catalog.ledger(finding.ref)
        export = adopt(self.site, finding.key, ledger, bench=self._announced, now=self.now)
        ref = Ref(export.event_id, export.revision)
        return replace(self._outcome(finding, Result.ADOPTED), ref=ref, size=export.size)

    def _announced(self, id: UUID) -> Sequence[Announced]:  # noqa: A002 - it is the id of the event
        """Find the event files on the bench that announce an event; they are read once, when first asked for."""
        if self._files is None:
            self._files = announced(self.site)
        return self._files.get(id, ())

    def _bring_back(self, finding: Finding) -> Outcome:
        """Move images from the trash back to where they were."""
        assert finding.ref is not None
        ledger = self.site.catalog.ledger(finding.ref)
        purge = ledger.purge("raw")
        if purge is not None and purge.gone_at is None:
            return take_back(
                self.site,
                ledger,
                purge,
                reason=f"its bucket copy is {finding.kind.split()[0]}",
                cause=Restored.UNPROVEN,
            )
        instrument = self.bench.instrument(ledger.event.system)
        if instrument is None:
            raise Refused(f"{ledger.event.system} cannot be looked at")
        check_bench(self.site, instrument, owned=True)
        with leased(self.site, finding.ref):
            aside = f"{TRASH}/{finding.ref}"
            home = ledger.event.path
            with folder.enter(instrument.root, f"{aside}/images") as images:
                names = [file.name for file in images.files()]
            only = home.rpartition("/")[2]
            source = f"{aside}/images/{only}" if names == [only] else f"{aside}/images"
            if folder.exists(instrument.root, f"{aside}/{EVENT_FILE}"):
                folder.move(instrument.root, f"{aside}/{EVENT_FILE}", to=f"{EVENTS}/{ledger.event.file}")
            folder.move(instrument.root, source, to=home)  # last: it is the images that are looked for
        return self._outcome(finding, Result.RESTORED)

    def _outcome(self, finding: Finding, result: Result, *reasons: str) -> Outcome:
        return Outcome(
            finding.ref, finding.system, "reconcile", result, key=finding.key, reasons=reasons or (finding.kind.value,)
        )

    def _hint(self) -> None:
        """Tell of some exports without a tape copy what their tags say: a hint where to ask, and no evidence."""
        wanted = [at for at, one in enumerate(self.findings) if one.kind is Kind.UNARCHIVED]
        with suppress(PlatewayError):  # nobody needs them
            for at in wanted[:HINTS]:
                one = self.findings[at]
                if self.site.store.tags(one.key).get("archived") == "true":
                    detail = f"{one.detail}; tagged archived=true, so its manifest may have been dropped"
                    self.findings[at] = replace(one, detail=detail)

    # ----------------------------------------------------------------------------------------------------- strays

    def _strays(self) -> None:
        """Look for what interrupted work left in staging, in the trash, and half sent."""
        for instrument in self.bench.systems() if self.own else ():
            places = [("raw", instrument.root), ("staging", instrument.staging)]
            for place, root in places:
                if root is not None:
                    self._guard(instrument.name, self._left(instrument, place, root))
        self._guard("", self._uploads())

    def _guard(self, system: str, found: Iterator[Finding]) -> None:
        """Take what is found; a place that cannot be looked at stops no other."""
        try:
            for finding in found:
                done = self._act(finding)[0] if self._may(finding) and not finding.done else finding.done
                self.findings.append(self._would(replace(finding, done=done)))
        except PlatewayError as error:
            result = Result.LATER if isinstance(error, Transient) else Result.FAILED
            outcome = Outcome(None, system or self.bucket, "reconcile", result, reasons=(str(error),))
            self.outcomes.append(log_outcome(outcome))

    def _left(self, instrument: Instrument, place: str, root: Path) -> Iterator[Finding]:
        """Judge what lies in a system's trash, and in its staging."""
        for some in _chunks(_names(root, TRASH)):
            for name, ledger in self._named(some):
                if not _holds_files(root, f"{TRASH}/{name}"):
                    continue
                home = ledger is not None and place == "raw" and folder.exists(root, ledger.event.path)
                found = in_trash(instrument.name, name, ledger, place=place, home=home, now=self.now)
                if found is not None:
                    yield found
        if place == "staging":
            for some in _chunks(_names(root)):
                for name, ledger in self._named(some):
                    stray = in_staging(instrument.name, name, ledger, now=self.now)
                    if stray is not None and name != TRASH:
                        yield stray

    def _named(self, names: Sequence[str]) -> Iterator[tuple[str, Ledger | None]]:
        """Find the event that each name is of, if it is of one."""
        refs = {name: _ref(name) for name in names}
        known = {one.ref: one for one in self.site.catalog.ledgers(refs=[ref for ref in refs.values() if ref])}
        yield from ((name, known.get(ref) if ref else None) for name, ref in refs.items())

    def _uploads(self) -> Iterator[Finding]:
        uploads = iter(self.site.store.uploads())
        while some := list(itertools.islice(uploads, CHUNK)):
            known = {key: ledger for key, ledger in self._ledgers(sorted({one.key for one in some})) if ledger}
            for upload, finding in open_uploads(some, known, now=self.now, age=self.site.lease):
                yield replace(finding, done=self._abort(upload, finding) if self.repair else "")

    def _abort(self, upload: Upload, finding: Finding) -> str:
        try:
            self.site.store.abort(upload)
            outcome = self._outcome(finding, Result.ABORTED)
        except PlatewayError as error:
            outcome = self._outcome(finding, Result.FAILED, str(error))
        self.outcomes.append(log_outcome(outcome))
        return outcome.result

    # ---------------------------------------------------------------------------------------------------- telling

    def stopped(
        self, result: Result, reason: str, *, suspects: _Suspects | None = None, survey: _Survey | None = None
    ) -> Reconciled:
        """Repair nothing, and say why."""
        reason = f"{self.site.place}: {reason}" if self.site.others else reason
        self.outcomes.append(log_outcome(Outcome(None, "", "reconcile", result, reasons=(reason,))))
        if suspects is not None:
            self.findings = [*itertools.chain(*suspects.keys.values()), *suspects.others]
        return replace(self.told(survey or _Survey()), stopped=True)

    def told(self, survey: _Survey) -> Reconciled:
        """Say all that was found."""
        counts = Counter(one.kind for one in self.findings)
        for kind in survey.counts:
            counts[kind] += survey.untold(kind)
        told = {kind.value: count for kind, count in counts.items() if count}
        return Reconciled(tuple(map(self._placed, self.findings)), tuple(self.outcomes), told)

    def _placed(self, finding: Finding) -> Finding:
        """Say of an object in which bucket it is, where there are several."""
        if not self.site.others or finding.kind not in OBJECTS:
            return finding
        return replace(finding, detail=f"{finding.detail} ({self.site.place})")


def _then(first: str, second: str) -> str:
    return f"{first}, {second}" if first else second


def _ref(name: str) -> Ref | None:
    """Read whose copy or trash this is from its name."""
    try:
        id_, revision = Ref.parse(ASIDE.sub("", name))
    except NotFound:
        return None
    return Ref(id_, revision or 1)


def _names(root: Path, path: str = "") -> list[str]:
    """List what lies in a directory; one that is not there is empty."""
    if path:
        if not folder.exists(root, path):
            return []
        with folder.enter(root, path) as place:
            return sorted(entry.name for entry in place.entries() if entry.name != MARKER_FILE)
    if not root.exists():
        return []
    with folder.door(root.name), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.name != MARKER_FILE)


def _holds_files(root: Path, path: str) -> bool:
    """Say whether there is anything but directories in a directory; what may not be there counts, too."""
    try:
        with folder.enter(root, path) as place:
            return bool(place.files())
    except Rejected:
        return True


def _chunks(items: Sequence[K]) -> Iterator[Sequence[K]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
