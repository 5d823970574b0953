"""The driver of purge and expiry: decide for a whole system, begin, and finish after the grace period.

Both delete in the same steps: judge, prove, record the intent, move or mark, wait, judge again, prove on bytes that
were just read, delete, record a tombstone. ``purge`` and ``expire`` supply what is specific to disk and bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

from plateway import retention
from plateway.errors import Damaged, Misconfigured, PlatewayError, Refused, Transient
from plateway.events import Ref
from plateway.instruments import Instrument, Policy, bounded_fraction
from plateway.isolation import run_apart
from plateway.ledger import Ledger
from plateway.outcome import Incidence, Outcome, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.proof import Postponed, bucket_state, read_object, read_tape, tape_state
from plateway.records import Purge
from plateway.retention import CopyState, Verdict

PATIENCE = timedelta(minutes=2)  # without any progress, disk or bucket


@dataclass(frozen=True)
class Location:
    """Where the files or objects to delete are."""

    place: str  # raw | staging | bucket
    path: str  # relative to the root; in the bucket, the key
    root: Path | None = None


@dataclass(frozen=True)
class Decision:
    """What was decided about one event, and why."""

    ledger: Ledger
    verdict: Verdict
    location: Location


@dataclass
class Batch:
    """What was decided about a system."""

    decisions: Iterable[Decision] = ()
    notes: list[Outcome] = field(default_factory=list)  # about the system as a whole


class Verb(Protocol):
    """A way to delete."""

    name: str

    def decide(self, site: Site, instrument: Instrument, policy: Policy, now: datetime) -> Batch:
        """Judge everything that a system has; the batch as a whole may be stopped."""

    def rehearse(self, site: Site, decision: Decision, policy: Policy, now: datetime) -> Outcome:
        """Prove what can be proven without changing anything."""

    def begin(self, site: Site, decision: Decision, policy: Policy, now: datetime) -> Outcome:
        """Prove, write the intent, and move aside or mark."""

    def pending(self, site: Site, system: str) -> Iterable[tuple[Ledger, Purge]]:
        """List what was begun and is neither finished nor taken back."""

    def finish(self, site: Site, ledger: Ledger, purge: Purge, policy: Policy, now: datetime) -> Outcome:
        """Do the next step for one event: after the grace period prove and delete, or undo the beginning."""


def run(
    site: Site,
    verb: Verb,
    systems: Sequence[str],
    *,
    dry_run: bool,
    fraction: float | None,
    now: datetime,
    each: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Delete what may go of these systems; one that fails, or whose disk hangs, holds up no other.

    ``each`` receives the outcomes as they come, instead of the caller at the end.

    Raises:
        Misconfigured: ``fraction`` is not a share.
    """
    allowed = None if fraction is None else bounded_fraction(fraction)
    acts = {
        name: partial(_run_system, site, verb, name, fraction=allowed, dry_run=dry_run, now=now, each=each)
        for name in systems
    }
    done = run_apart(f"{verb.name} {site.root}", acts, patience=PATIENCE)
    outcomes = [one for name, found in done.items() for one in _outcomes(verb, name, found)]
    if each is None:
        return outcomes
    for one in outcomes:  # of systems that failed
        each(one)
    return []


def _outcomes(verb: Verb, system: str, found: list[Outcome] | PlatewayError) -> list[Outcome]:
    """Turn what a system as a whole raises into an outcome."""
    if not isinstance(found, PlatewayError):
        return found
    result = Result.LATER if isinstance(found, Transient) else Result.FAILED
    return [log_outcome(Outcome(None, system, verb.name, result, reasons=(str(found),)))]


def _run_system(
    site: Site,
    verb: Verb,
    system: str,
    beat: Callable[[], None],
    *,
    fraction: float | None,
    dry_run: bool,
    now: datetime,
    each: Callable[[Outcome], None] | None,
) -> list[Outcome]:
    site, instrument = replace(site, beat=beat), site.instrument(system)
    policy = instrument.policy if fraction is None else replace(instrument.policy, fraction=fraction)
    batch = verb.decide(site, instrument, policy, now)
    outcomes: list[Outcome] = []
    take = outcomes.append if each is None else each
    for note in batch.notes:
        take(note)
    act = verb.rehearse if dry_run else verb.begin
    begun: set[tuple[Ref, str]] = set()
    for decision in batch.decisions:
        site.beat()
        ledger, location = decision.ledger, decision.location
        if decision.verdict.purge:
            begun.add((ledger.ref, location.place))
            take(_guard(site, verb, ledger, partial(act, site, decision, policy, now)))
        else:
            take(report(verb.name, ledger, Result.REFUSED, *decision.verdict.reasons))
    for ledger, purge in () if dry_run else verb.pending(site, system):
        site.beat()
        if not policy.grace or (ledger.ref, purge.place) not in begun:  # else its grace has just begun
            take(_guard(site, verb, ledger, partial(verb.finish, site, ledger, purge, policy, now)))
    return outcomes


def _guard(site: Site, verb: Verb, ledger: Ledger, act: Callable[[], Outcome]) -> Outcome:
    """Turn what one event raises into its outcome; refusals stay in its history."""
    try:
        return act()
    except Postponed as error:
        return report(verb.name, ledger, Result.WAITS, str(error))
    except Refused as error:
        site.catalog.record_incident(ledger.ref, Incidence.REFUSAL, verb.name, str(error), at=site.catalog.now())
        return report(verb.name, ledger, Result.REFUSED, *error.reasons)
    except Damaged as error:  # which was recorded where it was found
        return report(verb.name, ledger, Result.DAMAGED, str(error))
    except Misconfigured as error:  # its copy is where no setting leads
        return report(verb.name, ledger, Result.REFUSED, str(error))
    except PlatewayError as error:
        result = Result.LATER if isinstance(error, Transient) else Result.FAILED
        return report(verb.name, ledger, result, str(error))


def report(verb: str, ledger: Ledger, result: Result, *reasons: str) -> Outcome:
    """Make and log the outcome of one event."""
    return log_outcome(outcome(verb, ledger, result, *reasons))


def outcome(verb: str, ledger: Ledger, result: Result, *reasons: str) -> Outcome:
    """Make the outcome of one event."""
    event, size = ledger.event, ledger.export.size if ledger.export else None
    return Outcome(ledger.ref, event.system, verb, result, key=event.key, size=size, reasons=reasons)


def check_provable(site: Site, ledger: Ledger) -> None:
    """Refuse to begin a deletion that could not be finished: no copy there is proof, or a rule will delete it.

    Raises:
        Refused: with every reason. Transient: it cannot be determined now.
    """
    state = bucket_state(site, ledger)
    reasons = [f"{state.location}: {state.doubt}"] if state.doubt else []
    if state.expiring and not retention.on_tape(ledger):
        reasons.append(f"{state.location}: {state.expiring}, and no archive has it")
    if reasons:
        raise Refused(*reasons)


def prove_copies(
    site: Site,
    ledger: Ledger,
    policy: Policy,
    *,
    needed: Sequence[str],
    since: datetime,
    beat: Callable[[], None],
    now: datetime,
) -> list[CopyState]:
    """Read the copies that something is to be deleted because of, and decide by the rule of ``retention.prove``.

    What a legal hold is about is not deleted, whatever they prove.
    ``needed`` are ``bucket`` and ``archive``. A copy that was read since the deletion began, recently, and has not
    changed, is not read again. Where a rule of the bucket's own announces that its copy goes, tape is read as well.

    Raises:
        Refused: with every reason. Damaged: a copy is not what was sent; recorded. Postponed: it has to wait for its
        turn. Transient: it cannot be determined now.
    """
    if reasons := retention.held(ledger.legal_holds, now):
        raise Refused(*reasons)
    states = []
    if "bucket" in needed:
        states.append(_proven_object(site, ledger, policy, since=since, beat=beat, now=now))
    if "archive" in needed or (states and states[0].expiring and retention.on_tape(ledger)):
        states.append(_proven_tape(site, ledger, policy, since=since, beat=beat, now=now))
    verdict = retention.prove(states, policy, max(now, site.catalog.now()), since=since)
    if not verdict.purge:
        raise Refused(*verdict.reasons)
    return states


def _proven_object(
    site: Site, ledger: Ledger, policy: Policy, *, since: datetime, beat: Callable[[], None], now: datetime
) -> CopyState:
    """Inspect the bucket copy, and read it unless that was done already."""
    state = bucket_state(site, ledger)
    if (
        policy.proof == "head"
        or state.doubt
        or not retention.prove([replace(state, expiring="")], policy, now, since=since).reasons
    ):
        return state
    read_object(site, ledger.ref, policy, beat=beat, now=now)
    return bucket_state(site, site.catalog.ledger(ledger.ref))


def _proven_tape(
    site: Site, ledger: Ledger, policy: Policy, *, since: datetime, beat: Callable[[], None], now: datetime
) -> CopyState:
    """Inspect the copy on tape, and read it unless that was done already; one out of reach is only reported."""
    state = tape_state(site, ledger)
    if state.reported or state.doubt or not retention.prove([state], policy, now, since=since).reasons:
        return state
    copy = read_tape(site, ledger, beat=beat)
    return tape_state(site, site.catalog.ledger(ledger.ref), copy.place)
