"""Compare one bucket with bench, catalogue and tape, and inspect each suspect again on its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from plateway.errors import Misconfigured, Refused, Rejected
from plateway.findings import Finding, Kind, account_of, compare, judge, limit
from plateway.keys import is_marker
from plateway.ledger import Account, Ledger
from plateway.outcome import Outcome, Result
from plateway.pipeline.context import Site, format_place, format_unnamed
from plateway.pipeline.ingest import settle
from plateway.pipeline.places import check_bucket
from plateway.pipeline.reconcile.bench import BenchView
from plateway.pipeline.reconcile.spill import Row, sort_listing
from plateway.pipeline.recover import site_of
from plateway.records import ArchiveEntry
from plateway.store import Stat, Store

KEPT = 10_000  # findings of one kind that are listed; further ones are counted
CHUNK = 500  # keys or refs that the catalogue is asked about at a time
INSPECTED_AGAIN = {Kind.DARK, Kind.LOST, Kind.CHANGED, Kind.UNPROVEN, Kind.UNTOLD}
K = TypeVar("K")


class BucketShares:
    """Which bucket each event is compared with: the one that has its export, else the one that would get it."""

    def __init__(self, site: Site) -> None:
        self.bound = list(site.each_bucket())
        self._stores = [one.store for one in self.bound]
        self._own = self.bound[0]  # what belongs nowhere else is reported with the site's own
        self._homes: dict[tuple[str | None, ...], Site | None] = {}
        self._away: Counter[str] = Counter()

    def of(self, account: Account) -> Store:
        """Return the bucket that an event is compared with."""
        home = self._home(account)
        return home.store if home is not None and home.store in self._stores else self._own.store

    def away(self, account: Account) -> bool:
        """Return whether an export is in no bucket that the settings name; such exports are counted."""
        if account.export_bucket is None or self._home(account) is not None:
            return False
        self._away[format_place(account.export_endpoint, account.export_bucket)] += not account.expired
        return True

    def elsewhere(self) -> Iterator[Outcome]:
        """Report the exports that are in no bucket that the settings name."""
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
class Survey:
    """What the comparison suspects."""

    exports: int = 0  # that should be in the bucket
    objects: int = 0
    counts: Counter[Kind] = field(default_factory=Counter)
    kept: dict[Kind, list[Finding]] = field(default_factory=dict)

    def take(self, finding: Finding) -> None:
        """Count a finding, and keep it if there is room."""
        self.counts[finding.kind] += 1
        kept = self.kept.setdefault(finding.kind, [])
        if len(kept) < KEPT:
            kept.append(finding)

    @property
    def cut(self) -> bool:
        """Whether there are more findings of a kind than are kept."""
        return any(self.counts[kind] > len(kept) for kind, kept in self.kept.items())

    def count_dropped(self, *kinds: Kind) -> int:
        """Count the findings that are not kept."""
        return sum(self.counts[kind] - len(self.kept.get(kind, ())) for kind in kinds)


@dataclass
class Suspects:
    """What a second inspection confirmed: findings by key, and those that need no repair of ours."""

    keys: dict[str, list[Finding]] = field(default_factory=dict)
    others: list[Finding] = field(default_factory=list)
    new_harm: int = 0  # exports newly lost or changed


class Comparison:
    """The comparison of one bucket of the site."""

    def __init__(
        self, site: Site, *, now: datetime, within: timedelta | None, bench: BenchView, shares: BucketShares
    ) -> None:
        self.site, self.bench, self.shares, self.now, self.within = site, bench, shares, now, within
        self.bucket = site.store.name
        self._compare = partial(compare, bucket=self.bucket, endpoint=site.endpoint, now=now)
        self._judge = partial(judge, bucket=self.bucket, endpoint=site.endpoint, now=now)
        self.own = site is shares.bound[0]  # the site's own bucket: what is of no bucket is reported with it, once
        alike = [one.store for one in shares.bound if one.store.name == self.bucket]
        self.names = alike[0] is site.store  # tape names no endpoint: of buckets of one name, one answers to it
        self.stats: dict[str, Stat] = {}  # of the objects that were inspected again
        self.outcomes: list[Outcome] = []

    def survey(self) -> Survey:
        """Compare everything once."""
        survey = Survey()
        if self.own:
            self.settle()  # what is parked and fits now is no finding
        with ExitStack() as stack:
            check_bucket(self.site, fresh=True)
            objects = sort_listing((one for one in self.site.store.list() if not is_marker(one.key)), stack)
            accounts = self._counted(self.site.catalog.accounts(bucket=None if self.own else self.bucket), survey)
            listed = self._listed(objects, survey)
            parked = self._named_here(self.site.catalog.parked())
            for finding in self._compare(accounts, listed, parked, within=self.within):
                if finding.kind is not Kind.UNKNOWN or self.names:
                    survey.take(finding)
        return survey

    def _named_here(self, parked: Iterable[ArchiveEntry]) -> Iterator[ArchiveEntry]:
        """Yield the archive entries of this bucket; unknown buckets count as the site's own."""
        others = tuple(f"{one.store.name}/" for one in self.shares.bound if one.store.name != self.bucket)
        mine = f"{self.bucket}/"
        for entry in parked:
            if entry.key.startswith(mine) or (self.own and not entry.key.startswith(others)):
                yield entry

    def settle(self) -> None:
        self.outcomes += [one for one in settle(self.site, now=self.now) if one.result == Result.ARCHIVED]

    def _counted(self, accounts: Iterable[Account], survey: Survey) -> Iterator[Account]:
        for account in accounts:
            if self._mine(account):
                away = self.shares.away(account)
                survey.exports += account.export_bucket is not None and not (away or account.expired)
                yield self.bench.inspect(self._with_endpoint(account))

    def _mine(self, account: Account) -> bool:
        return self.shares.of(account) is self.site.store

    def _with_endpoint(self, account: Account) -> Account:
        """Fill in the endpoint of an export that was recorded before endpoints were."""
        if account.export_bucket != self.bucket or account.export_endpoint is not None:
            return account
        return account._replace(export_endpoint=self.site.endpoint)

    def _listed(self, objects: Iterable[Row], survey: Survey) -> Iterator[Row]:
        for row in objects:
            survey.objects += 1
            yield row

    def confirm(self, survey: Survey) -> Suspects:
        """Inspect each suspect again on its own."""
        if survey.exports and not survey.objects:
            raise Refused(f"the bucket lists nothing at all, and {survey.exports:,} exports should be there")
        suspects = Suspects()
        keys = list(dict.fromkeys(one.key for kind in INSPECTED_AGAIN for one in survey.kept.get(kind, ())))
        for key, ledger in self.ledgers(sorted(keys)):
            found = self.inspect(key, ledger)
            if found:
                suspects.keys[key] = found
            damaged = ledger is not None and ledger.export is not None and ledger.export.damage is not None
            suspects.new_harm += not damaged and any(one.kind in {Kind.LOST, Kind.CHANGED} for one in found)
        for kind in (Kind.UNARCHIVED, Kind.NEVER_EXPORTED, Kind.DISAGREES, Kind.UNKNOWN):
            for some in chunks(survey.kept.get(kind, ())):
                known = dict(self.ledgers([self._strip_bucket(one.key) for one in some]))
                suspects.others += [one for one in some if self._still_holds(one, known[self._strip_bucket(one.key)])]
        return suspects

    def inspect(self, key: str, ledger: Ledger | None) -> list[Finding]:
        """Judge one key by what is there now."""
        account = None if ledger is None else self._inspect_bench(ledger)
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

    def _inspect_bench(self, ledger: Ledger) -> Account:
        """Inspect the images again if the event is compared with this bucket."""
        account = account_of(ledger)
        if self._mine(account):
            return self.bench.inspect_again(self._with_endpoint(account), ledger)
        return account._replace(raw="unknown")

    def ledgers(self, keys: Sequence[str]) -> Iterator[tuple[str, Ledger | None]]:
        for some in chunks(keys):
            known = {ledger.event.key: ledger for ledger in self.site.catalog.ledgers(keys=some)}
            yield from ((key, known.get(key)) for key in some)

    def _strip_bucket(self, key: str) -> str:
        return key.removeprefix(f"{self.bucket}/")

    def _still_holds(self, finding: Finding, ledger: Ledger | None) -> bool:
        """Return whether a finding about the archive still holds."""
        if finding.kind is Kind.UNKNOWN:
            if ledger is None or self._strip_bucket(finding.key) == finding.key:
                return True
            return self.shares.of(account_of(ledger)).name != self.bucket
        export = None if ledger is None else ledger.export
        if ledger is None or finding.kind is Kind.NEVER_EXPORTED:
            return ledger is not None and export is None
        if export is None or finding.kind is Kind.DISAGREES:  # noted just now: the next run settles the entry
            return export is not None and export.uploaded_at < self.now
        return not ledger.archives and export.damage is None and not ledger.expired

    def doubt(self, survey: Survey, suspects: Suspects, fraction: float) -> str | None:
        """Return why nothing at all should be repaired, None if it may."""
        harm = suspects.new_harm + survey.count_dropped(Kind.LOST, Kind.CHANGED)
        if harm <= limit(survey.exports, fraction):
            return None
        return (
            f"{harm:,} of {survey.exports:,} exports look lost or changed, more than {fraction:.0%}: "
            "is it the right bucket? If so, PLATEWAY_RECONCILE_FRACTION=1 lets one run go on"
        )


def chunks(items: Sequence[K]) -> Iterator[Sequence[K]]:
    """Split into pieces that the catalogue is asked about at a time."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
