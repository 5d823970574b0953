"""Whether images, or copies of them, may go. Pure: ledger and policy in, verdict and reasons out; no clock, no disk.

A yes here is only permission to look: ``pipeline.purge`` and ``pipeline.expire`` prove the copy that stays once more,
on the real bytes, right before anything goes. The reasons are what a person reads in the command line, in the run's
artifact and in the API.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from plateway.catalog import Ledger
from plateway.records import ArchiveLocation
from plateway.settings import Policy, spoken

ON_REQUEST = "restored on request"  # the reason of a purge that was taken back because somebody wants the images
SMALL = 10  # a batch of so few events is proven one by one; the fraction rule watches over larger ones


@dataclass(frozen=True)
class Verdict:
    """May it go, and why not."""

    purge: bool
    reasons: tuple[str, ...] = ()


def judge(ledger: Ledger, policy: Policy, now: datetime, *, siblings: Sequence[Ledger] = ()) -> Verdict:
    """Say whether the raw images of an event may go, with every reason why they may not.

    Age counts from the evidence, not from the instrument's clock. ``siblings`` are other events on the same images.
    """
    reasons = [*_permission(ledger, policy), *_safety(ledger, now), *_age(ledger, policy.lifespan, now)]
    reasons += _wanted(ledger, policy.lifespan, now)
    if policy.requires == "bucket+archive" and not ledger.archives:
        reasons.append("no archive location, and the policy requires bucket+archive")
    reasons += [
        f"shares its images with {other.ref}, which is not safe: {why}" for other, why in _unsafe(siblings, now)
    ]
    return Verdict(not reasons, tuple(reasons))


def judge_staging(ledger: Ledger, policy: Policy, now: datetime) -> Verdict:
    """Say whether the staging copy of an event may go: the same proof, its own lifespan, no permission needed."""
    reasons = [*_safety(ledger, now), *_age(ledger, policy.staging_lifespan, now)]
    return Verdict(not reasons, tuple(reasons))


def judge_bucket(ledger: Ledger, policy: Policy, now: datetime, *, siblings: Sequence[Ledger] = ()) -> Verdict:
    """Say whether the bucket copy of an event may go, with every reason why it may not.

    Age counts from when tape was first known to have its bytes, by our clock. ``siblings`` are other events on the
    same images. A copy that is marked already is judged as if it were not.
    """
    unmarked = tuple(one for one in ledger.purges if one.place != "bucket" or one.gone_at is not None)
    ledger = replace(ledger, purges=unmarked)
    reasons = [*_safety(ledger, now), *_on_tape(ledger), *_needed(ledger, policy, siblings)]
    if policy.bucket_lifespan is None:
        reasons.insert(0, f"{ledger.event.system} keeps its bucket copies")
    else:
        reasons += _tape_age(ledger, policy.bucket_lifespan, now)
    return Verdict(not reasons, tuple(reasons))


def proven(ledger: Ledger) -> tuple[ArchiveLocation, ...]:
    """Find the places on tape that have an event's export by its checksum."""
    export = ledger.export
    if export is None:
        return ()
    same = (one for one in ledger.archives if one.evidence == "checksum" and one.checksum == export.sha256)
    return tuple(one for one in same if one.size in {None, export.size})


def halt(leaving: int, *, present: int, policy: Policy) -> str | None:
    """Say why a whole batch must stop and ask: it would remove too large a part of what a system has on its bench."""
    if leaving <= SMALL or leaving <= policy.fraction * present:
        return None
    return f"{leaving} of {present} events would go, more than {policy.fraction:.0%}; confirm with --fraction 1"


def _permission(ledger: Ledger, policy: Policy) -> list[str]:
    if not policy.purge:
        return [f"{ledger.event.system} is not among the systems to purge"]
    if policy.requires not in {"bucket", "bucket+archive"}:
        return [f"the policy requires {policy.requires!r}, which nobody can prove"]
    return []


def _safety(ledger: Ledger, now: datetime) -> list[str]:
    reasons = []
    if ledger.quarantine is not None:
        reasons.append(f"in quarantine: {ledger.quarantine.reason}")
    if ledger.lease is not None and ledger.lease.expires_at > now:
        reasons.append(f"{ledger.lease.owner} is at work on it")
    export = ledger.export
    if export is None:
        return [*reasons, "not exported"]
    if ledger.expired:
        return [*reasons, "the bucket copy has expired"]
    if export.damage is not None:
        reasons.append(f"bucket copy damaged: {export.damage}")
    if export.evidence is None or export.evidence_at is None:
        reasons.append("bucket copy not verified")
    elif export.evidence_at < export.uploaded_at:
        reasons.append("the evidence is older than the upload")
    return reasons


def _age(ledger: Ledger, lifespan: timedelta, now: datetime) -> list[str]:
    if ledger.export is None or ledger.export.evidence_at is None:
        return []
    age = now - ledger.export.evidence_at
    if age < timedelta(0):
        return ["verified in the future: a clock went back"]
    if age < lifespan:
        return [f"verified {timedelta(seconds=int(age.total_seconds()))} ago, kept for {spoken(lifespan)}"]
    return []


def _on_tape(ledger: Ledger) -> list[str]:
    if ledger.export is None or proven(ledger):
        return []
    if not ledger.archives:
        return ["no archive has it"]
    return [
        f"{one.path} is known to have it by its {one.evidence} only"
        if one.evidence != "checksum"
        else f"{one.path} is told to have something else"
        for one in ledger.archives
    ]


def _tape_age(ledger: Ledger, lifespan: timedelta, now: datetime) -> list[str]:
    ages = [now - (one.evidence_at or one.reported_at) for one in proven(ledger)]
    if not ages:
        return []
    if min(ages) < timedelta(0):
        return ["archived in the future: a clock went back"]
    if max(ages) < lifespan:
        return [f"archived {timedelta(seconds=int(max(ages).total_seconds()))} ago, kept for {spoken(lifespan)}"]
    return []


def _needed(ledger: Ledger, policy: Policy, siblings: Sequence[Ledger]) -> list[str]:
    """Keep a bucket copy as long as the purge of something else will want to be proven against it."""
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
    """Keep images that somebody had brought back, as long as if they were new."""
    back = [one.restored_at for one in ledger.purges if one.place == "raw" and one.reason == ON_REQUEST]
    age = now - max((one for one in back if one is not None), default=now - lifespan)
    return [f"restored {timedelta(seconds=int(age.total_seconds()))} ago, kept for {spoken(lifespan)}"] * (
        age < lifespan
    )


def _unsafe(siblings: Sequence[Ledger], now: datetime) -> list[tuple[Ledger, str]]:
    return [(other, "; ".join(why)) for other in siblings if (why := _safety(other, now))]
