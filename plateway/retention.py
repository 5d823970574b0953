"""Whether images, or copies of them, may go. Pure: facts and policy in, verdict and reasons out; no clock, no disk.

Two questions, for every verb that deletes. `judge` and its relatives: is it time? A yes there lets a purge begin, which
can be taken back. `prove`: may something be deleted for good because of these copies? It is asked right before the
deletion, with what was read and seen then, and no verb has a weaker rule of its own.
The reasons are what a person reads in the command line, in the run's artifact and in the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from plateway.instruments import Policy, format_duration
from plateway.ledger import Ledger
from plateway.outcome import Restored

if TYPE_CHECKING:
    from plateway.records import ArchiveLocation, LegalHold

SMALL = 10  # a batch of so few events is proven one by one; the fraction rule watches over larger ones


@dataclass(frozen=True)
class Verdict:
    """May it go, and why not."""

    purge: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class CopyState:
    """What is known of one copy at the moment when something is to be deleted because of it."""

    where: Literal["bucket", "archive"]
    name: str  # key in the bucket, path of the archive
    read_at: datetime | None  # when every byte was last read and every file's SHA-256 was the recorded one
    doubt: str = ""  # why its place is not durable, not identified or not ours; empty: it is all of these
    changed: str = ""  # in what it differs from what was read; empty: in nothing
    expiring: str = ""  # what announces that it will go; empty: nothing
    reported: bool = False  # only the archive reports it

    @property
    def location(self) -> str:
        """Describe where the copy is."""
        return f"{self.where} {self.name}"


def prove(copies: Sequence[CopyState], policy: Policy, now: datetime, *, since: datetime | None = None) -> Verdict:
    """Decide whether something may be deleted for good because of these copies; each of them must be proof.

    A copy is proof only if we read all of it, recently and since the deletion began (``since``), nothing about it
    changed after that, its place is durable, identified and ours, and nothing announces that it goes. Where a rule
    announces that one goes, another that stays must be proof.
    """
    reasons = [reason for copy in copies for reason in _doubts(copy, policy, now, since)]
    lasting = [copy for copy in copies if not copy.expiring]
    if not copies:
        reasons.append("no copy is known")
    elif not lasting:
        reasons += [f"{copy.location}: {copy.expiring}, and no other copy is proven" for copy in copies]
    return Verdict(not reasons, tuple(reasons))


def _doubts(copy: CopyState, policy: Policy, now: datetime, since: datetime | None) -> list[str]:
    told = [f"{copy.location}: {why}" for why in (copy.doubt, copy.changed) if why]
    if copy.reported:
        allowed = policy.trust_archive
        return told + [f"{copy.location}: only the archive says that it is there, nobody read it"] * (not allowed)
    if policy.proof == "head" and copy.where == "bucket":
        return told
    if copy.read_at is None:
        return [*told, f"{copy.location}: was never read whole"]
    age = now - copy.read_at
    if since is not None and copy.read_at < since:
        told.append(f"{copy.location}: was not read since the deletion began")
    if age > policy.proof_age:
        told.append(
            f"{copy.location}: was read {_age(age)} ago, at most {format_duration(policy.proof_age)} are allowed"
        )
    if age < timedelta(0):
        told.append(f"{copy.location}: was read in the future: a clock went back")
    return told


def judge(
    ledger: Ledger, policy: Policy, now: datetime, *, siblings: Sequence[Ledger] = (), readable: bool = False
) -> Verdict:
    """Decide whether the raw images of an event may be moved aside, with every reason why they may not.

    Age counts from the evidence, not from the instrument's clock. ``siblings`` are other events on the same images,
    ``readable`` tells whether the archive can be read from here.
    """
    reasons = [*_permission(ledger, policy), *_safety(ledger, now), *_age_of_evidence(ledger, policy.lifespan, now)]
    reasons += _wanted(ledger, policy.lifespan, now)
    if policy.requires == "bucket+archive":
        reasons += [f"{why}, and the policy requires bucket+archive" for why in _not_on_tape(ledger, policy, readable)]
    reasons += [
        f"shares its images with {other.ref}, which is not safe: {why}" for other, why in _unsafe(siblings, now)
    ]
    return Verdict(not reasons, tuple(reasons))


def judge_staging(ledger: Ledger, policy: Policy, now: datetime) -> Verdict:
    """Decide whether the staging copy of an event may go: the same proof, its own lifespan, no permission needed."""
    reasons = [*_safety(ledger, now), *_age_of_evidence(ledger, policy.staging_lifespan, now)]
    return Verdict(not reasons, tuple(reasons))


def judge_bucket(
    ledger: Ledger, policy: Policy, now: datetime, *, siblings: Sequence[Ledger] = (), readable: bool = False
) -> Verdict:
    """Decide whether the bucket copy of an event may be marked to go, with every reason why it may not.

    Age counts from when tape was first known to have its bytes, by our clock. ``siblings`` are other events on the
    same images, ``readable`` tells whether the archive can be read from here. A copy that is marked already is judged
    as if it were not.
    """
    unmarked = tuple(one for one in ledger.purges if one.place != "bucket" or one.gone_at is not None)
    ledger = replace(ledger, purges=unmarked)
    reasons = [*_safety(ledger, now), *_not_on_tape(ledger, policy, readable), *_needed(ledger, policy, siblings)]
    if policy.bucket_lifespan is None:
        reasons.insert(0, f"{ledger.event.system} keeps its bucket copies")
    else:
        reasons += _age_on_tape(ledger, policy.bucket_lifespan, now)
    return Verdict(not reasons, tuple(reasons))


def on_tape(ledger: Ledger) -> tuple[ArchiveLocation, ...]:
    """Return the archives that have an event's export by its checksum: reported by the archive, or read by us."""
    export = ledger.export
    if export is None:
        return ()
    same = (one for one in ledger.archives if one.evidence == "checksum" and one.checksum == export.sha256)
    return tuple(one for one in same if one.size in {None, export.size} and one.damage is None)


def held(holds: Iterable[LegalHold], now: datetime) -> list[str]:
    """List why the legal holds of an event forbid to delete anything of it, on whatever proof; empty: none does."""
    return [
        f"held by {one.by} since {one.at:%Y-%m-%d}{f' until {one.until:%Y-%m-%d %H:%M}' if one.until else ''} "
        f"({one.scope}): {one.reason}"
        for one in holds
        if one.stands(now)
    ]


def halt(leaving: int, *, present: int, policy: Policy) -> str | None:
    """Return why a whole batch must stop and ask: it would remove too large a part of what a system has."""
    if leaving <= SMALL or leaving <= policy.fraction * present:
        return None
    return f"{leaving} of {present} events would go, more than {policy.fraction:.0%}; confirm with --fraction 1"


def _permission(ledger: Ledger, policy: Policy) -> list[str]:
    if not policy.purge:
        return [f"{ledger.event.system} is not among the systems to purge"]
    if policy.requires not in {"bucket", "bucket+archive"}:
        return [f"the policy requires {policy.requires!r}, which nobody can prove"]
    if policy.proof not in {"read", "head"}:
        return [f"the policy wants proof by {policy.proof!r}, which nobody can give"]
    return []


def _safety(ledger: Ledger, now: datetime) -> list[str]:
    reasons = held(ledger.legal_holds, now)
    if ledger.quarantine is not None:
        reasons.append(f"in quarantine: {ledger.quarantine.reason}")
    if ledger.lease is not None and ledger.lease.expires_at > now:
        reasons.append(f"{ledger.lease.owner} is at work on it")
    export = ledger.export
    if export is None:
        return [*reasons, "not exported"]
    if ledger.expired:
        return [*reasons, "the bucket copy has expired"]
    if (marked := ledger.purge("bucket")) is not None and marked.gone_at is None:
        reasons.append("the bucket copy is marked to expire")
    if export.damage is not None:
        reasons.append(f"bucket copy damaged: {export.damage}")
    if export.evidence is None or export.evidence_at is None:
        reasons.append("bucket copy not verified")
    elif export.evidence_at < export.uploaded_at:
        reasons.append("the evidence is older than the upload")
    return reasons


def _age_of_evidence(ledger: Ledger, lifespan: timedelta, now: datetime) -> list[str]:
    if ledger.export is None or ledger.export.evidence_at is None:
        return []
    age = now - ledger.export.evidence_at
    if age < timedelta(0):
        return ["verified in the future: a clock went back"]
    if age < lifespan:
        return [f"verified {_age(age)} ago, kept for {format_duration(lifespan)}"]
    return []


def _not_on_tape(ledger: Ledger, policy: Policy, readable: bool) -> list[str]:
    """List why tape cannot be shown to have the bytes: it is read before anything is deleted, or trusted by name."""
    there = on_tape(ledger)
    if there and (readable or policy.trust_archive):
        return []
    if there:
        return ["only the archive's word says that tape has it (PLATEWAY_TRUST_ARCHIVE is not set)"]
    if not ledger.archives:
        return ["no archive has it"]
    return [_mismatch(one) for one in ledger.archives]


def _mismatch(one: ArchiveLocation) -> str:
    if one.damage is not None:
        return f"{one.path} is damaged: {one.damage}"
    if one.evidence != "checksum":
        return f"{one.path} is known to have it by its {one.evidence} only"
    return f"{one.path} is told to have something else"


def _age_on_tape(ledger: Ledger, lifespan: timedelta, now: datetime) -> list[str]:
    ages = [now - (one.evidence_at or one.reported_at) for one in on_tape(ledger)]
    if not ages:
        return []
    if min(ages) < timedelta(0):
        return ["archived in the future: a clock went back"]
    if max(ages) < lifespan:
        return [f"archived {_age(max(ages))} ago, kept for {format_duration(lifespan)}"]
    return []


def _needed(ledger: Ledger, policy: Policy, siblings: Sequence[Ledger]) -> list[str]:
    """List the purges that still need the bucket copy as proof."""
    reasons = []
    raw, staging = ledger.purge("raw"), ledger.purge("staging")
    if raw is not None and raw.gone_at is None:
        reasons.append("the raw images are in the trash, and not purged yet")
    elif raw is None and policy.purge:
        reasons.append("the raw images are on the bench, and wait to be purged")
    if ledger.event.staged_at is not None or (staging is not None and staging.gone_at is None):
        reasons.append("a staging copy waits to be purged")
    for other in siblings:
        purge = other.purge("raw")
        if policy.purge and (purge is None or purge.gone_at is None):
            reasons.append(f"shares its images with {other.ref}, which waits to be purged")
    return reasons


def _wanted(ledger: Ledger, lifespan: timedelta, now: datetime) -> list[str]:
    """Return why restored images stay: as long as if they were new."""
    back = [one.restored_at for one in ledger.purges if one.place == "raw" and one.cause == Restored.REQUESTED]
    age = now - max((one for one in back if one is not None), default=now - lifespan)
    return [f"restored {_age(age)} ago, kept for {format_duration(lifespan)}"] * (age < lifespan)


def _unsafe(siblings: Sequence[Ledger], now: datetime) -> list[tuple[Ledger, str]]:
    return [(other, "; ".join(why)) for other in siblings if (why := _safety(other, now))]


def _age(age: timedelta) -> timedelta:
    return timedelta(seconds=int(age.total_seconds()))
