"""Repair what a comparison found: step by step, each time by what is there then."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from plateway import folder
from plateway.bench import EVENT_FILE, EVENTS, TRASH
from plateway.errors import PlatewayError, Refused, Transient
from plateway.events import Ref
from plateway.findings import HARMLESS, Finding, Kind, Repair
from plateway.ledger import DAY, Ledger
from plateway.outcome import Outcome, Restored, Result, log_outcome
from plateway.pipeline.export import export
from plateway.pipeline.lease import leased
from plateway.pipeline.places import check_bench
from plateway.pipeline.purge import take_back
from plateway.pipeline.reconcile.leftovers import find_leftovers, find_uploads
from plateway.pipeline.reconcile.survey import Comparison, Survey, Suspects
from plateway.pipeline.recover import AnnouncedFile, adopt, announced
from plateway.pipeline.restore import clear_leftover
from plateway.pipeline.run import failed
from plateway.pipeline.verify import verify
from plateway.store import Upload

HINTS = 100  # objects whose tags are read
STUCK = {
    Result.LATER,
    Result.FAILED,
    Result.BUSY,
    Result.CONFLICT,
    Result.REFUSED,
    Result.WAITS,
    Result.PARKED,
}  # the next step would do no better
OBJECTS = {Kind.DARK, Kind.LOST, Kind.CHANGED, Kind.UPLOAD, Kind.FOREIGN}


@dataclass(frozen=True)
class Reconciled:
    """What was found, and what was done about it."""

    findings: tuple[Finding, ...]
    outcomes: tuple[Outcome, ...]  # of repairs; what could not be read, or why nothing was repaired
    counts: Mapping[str, int]  # findings by kind, including those not listed
    stopped: bool = False  # nothing was repaired in a bucket, because its listing is in doubt


class Repairs:
    """The repairs of one bucket: made if ``allowed``, else only described."""

    def __init__(self, comparison: Comparison, *, allowed: bool) -> None:
        self.comparison, self.allowed = comparison, allowed
        self.site, self.bench, self.now = comparison.site, comparison.bench, comparison.now
        self.bucket, self.outcomes = comparison.bucket, comparison.outcomes
        self.findings: list[Finding] = []
        self._files: Mapping[UUID, Sequence[AnnouncedFile]] | None = None
        self._sighted: Mapping[str, datetime] = {}  # when each dark object was first seen
        self._dark: list[str] = []  # keys of objects that are still dark after all repairs

    def repair(self, suspects: Suspects, *, whole: bool) -> None:
        """Repair what may be repaired; ``whole``: every suspect is among these."""
        self._record_dark(suspects)
        for key, found in suspects.keys.items():
            self.findings += self._repair_key(key, found)
        if whole:
            self.site.catalog.clear_dark(bucket=self.bucket, endpoint=self.site.endpoint, keep=self._dark)
        for finding in suspects.others:
            done = self._act(finding)[0] if self._may(finding) else ""
            self.findings.append(self._would(replace(finding, done=done)))
        if any(one.result in {Result.ADOPTED, Result.EXPORTED} for one in self.outcomes):
            self.comparison.settle()
        self._read_tags()
        self._collect_leftovers()

    def _record_dark(self, suspects: Suspects) -> None:
        """Record which objects are dark today."""
        dark = [key for key, found in suspects.keys.items() if any(one.kind is Kind.DARK for one in found)]
        stats = [self.comparison.stats[key] for key in dark if key in self.comparison.stats]
        catalog, endpoint = self.site.catalog, self.site.endpoint
        self._sighted = catalog.sight_dark(stats, bucket=self.bucket, endpoint=endpoint, now=self.now)

    def _repair_key(self, key: str, found: Sequence[Finding]) -> list[Finding]:
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
            told[step.kind] = replace(told[step.kind], done=_join(told[step.kind].done, done))
            found = self.comparison.inspect(key, next(ledger for _, ledger in self.comparison.ledgers([key])))
        left = {one.kind for one in found}
        if Kind.DARK in left:
            self._dark.append(key)
        return [self._would(one) if one.kind in left else one for one in told.values()]

    def _may(self, finding: Finding) -> bool:
        if finding.repair is Repair.NONE:
            return False
        return self.allowed or finding.repair in HARMLESS

    def _would(self, finding: Finding) -> Finding:
        """Describe a repair that is not allowed."""
        if finding.repair is Repair.NONE or self._may(finding):
            return finding
        return replace(finding, done=_join(finding.done, f"would {finding.repair}"))

    def _act(self, finding: Finding) -> tuple[str, bool]:
        """Carry out a repair; return its results, and whether there may be more to do."""
        try:
            outcomes = list(self._carry_out(finding))
        except PlatewayError as error:
            result = Result.LATER if isinstance(error, Transient) else Result.FAILED
            outcomes = [self._outcome(finding, result, str(error))]
        self.outcomes += [log_outcome(one) if one.verb == "reconcile" else one for one in outcomes]
        results = [one.result for one in outcomes] or [Result.PARKED]
        marked = finding.repair is Repair.MARK and results == [Result.DAMAGED]
        return "marked lost" if marked else ", ".join(results), not STUCK & set(results)

    def _carry_out(self, finding: Finding) -> Iterator[Outcome]:
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
                yield self._restore_from_trash(finding)

    def _verb(self, finding: Finding, verb: str) -> Outcome:
        """Export or verify one event, if it is not being held back."""
        assert finding.ref is not None
        ledger = self.site.catalog.ledger(finding.ref)
        setback = ledger.setback(verb)
        if setback is not None and setback.next_at > self.now:
            return self._outcome(
                finding, Result.LATER, f"{verb} failed and is tried again {setback.next_at:%Y-%m-%d %H:%M}"
            )
        if verb == "export" and (reason := self._why_not_exported(ledger)) is not None:
            return self._outcome(finding, Result.REFUSED, reason)
        act = export if verb == "export" else verify
        try:
            return act(self.site, finding.ref)
        except PlatewayError as error:
            return failed(self.site, finding.ref, verb, error)

    def _why_not_exported(self, ledger: Ledger) -> str | None:
        """Return why an event is not exported whatever the bucket lacks, None if it may be."""
        event = ledger.event
        if ledger.quarantine is not None:
            return f"in quarantine: {ledger.quarantine.reason}"
        for other in self.site.catalog.revisions(event.id):
            same = (other.event.file, other.event.announced_at) == (event.file, event.announced_at)
            if same and other.ref.revision > event.revision:
                return f"the images are those of {other.ref} now"
        return None

    def _adopt(self, finding: Finding) -> Outcome:
        """Adopt an object that proves itself, if it was dark a day ago already."""
        first = self._sighted.get(finding.key)
        if first is None or self.now - first < DAY:
            since = (first or self.now) + DAY
            return self._outcome(finding, Result.WAITS, f"seen first today, adopted from {since:%Y-%m-%d %H:%M}")
        ledger = None if finding.ref is None else self.site.catalog.ledger(finding.ref)
        export = adopt(self.site, finding.key, ledger, bench=self._announced, now=self.now)
        ref = Ref(export.event_id, export.revision)
        return replace(self._outcome(finding, Result.ADOPTED), ref=ref, size=export.size)

    def _announced(self, id: UUID) -> Sequence[AnnouncedFile]:  # noqa: A002 - it is the id of the event
        """Return the event files on the bench that announce an event; all are read at the first call."""
        if self._files is None:
            self._files = announced(self.site)
        return self._files.get(id, ())

    def _restore_from_trash(self, finding: Finding) -> Outcome:
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
            raise Refused(f"{ledger.event.system} cannot be read")
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

    def _read_tags(self) -> None:
        """Add what their tags say to some exports without a tape copy: a hint, and no evidence."""
        wanted = [at for at, one in enumerate(self.findings) if one.kind is Kind.UNARCHIVED]
        with suppress(PlatewayError):  # they are only a hint
            for at in wanted[:HINTS]:
                one = self.findings[at]
                if self.site.store.tags(one.key).get("archived") == "true":
                    detail = f"{one.detail}; tagged archived=true, so its manifest may have been dropped"
                    self.findings[at] = replace(one, detail=detail)

    def _collect_leftovers(self) -> None:
        """Find what interrupted work left in staging, in the trash, and half uploaded."""
        for instrument in self.bench.systems() if self.comparison.own else ():
            places = [("raw", instrument.root), ("staging", instrument.staging)]
            for place, root in places:
                if root is not None:
                    self._guard(instrument.name, find_leftovers(self.site, instrument, place, root, now=self.now))
        self._guard("", self._uploads())

    def _guard(self, system: str, found: Iterator[Finding]) -> None:
        """Collect findings; a place that cannot be read stops no other."""
        try:
            for finding in found:
                done = self._act(finding)[0] if self._may(finding) and not finding.done else finding.done
                self.findings.append(self._would(replace(finding, done=done)))
        except PlatewayError as error:
            result = Result.LATER if isinstance(error, Transient) else Result.FAILED
            outcome = Outcome(None, system or self.bucket, "reconcile", result, reasons=(str(error),))
            self.outcomes.append(log_outcome(outcome))

    def _uploads(self) -> Iterator[Finding]:
        for upload, finding in find_uploads(self.comparison):
            yield replace(finding, done=self._abort(upload, finding) if self.allowed else "")

    def _abort(self, upload: Upload, finding: Finding) -> str:
        try:
            self.site.store.abort(upload)
            outcome = self._outcome(finding, Result.ABORTED)
        except PlatewayError as error:
            outcome = self._outcome(finding, Result.FAILED, str(error))
        self.outcomes.append(log_outcome(outcome))
        return outcome.result

    def stopped(
        self, result: Result, reason: str, *, suspects: Suspects | None = None, survey: Survey | None = None
    ) -> Reconciled:
        """Return what was found without repairs, with the reason."""
        reason = f"{self.site.place}: {reason}" if self.site.others else reason
        self.outcomes.append(log_outcome(Outcome(None, "", "reconcile", result, reasons=(reason,))))
        if suspects is not None:
            self.findings = [*itertools.chain(*suspects.keys.values()), *suspects.others]
        return replace(self.result(survey or Survey()), stopped=True)

    def result(self, survey: Survey) -> Reconciled:
        """Return all findings and outcomes."""
        counts = Counter(one.kind for one in self.findings)
        for kind in survey.counts:
            counts[kind] += survey.count_dropped(kind)
        told = {kind.value: count for kind, count in counts.items() if count}
        return Reconciled(tuple(map(self._with_bucket, self.findings)), tuple(self.outcomes), told)

    def _with_bucket(self, finding: Finding) -> Finding:
        """Add the bucket of an object, where there are several."""
        if not self.site.others or finding.kind not in OBJECTS:
            return finding
        return replace(finding, detail=f"{finding.detail} ({self.site.place})")


def _join(first: str, second: str) -> str:
    return f"{first}, {second}" if first else second
