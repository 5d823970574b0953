"""Whether images may go. Pure: a ledger and a policy in, a verdict with its reasons out; no clock, no disk, no bucket.

A yes here is only permission to look: ``pipeline.purge`` proves the copy again, on the real bytes, right before it
moves anything. The reasons are what a person reads in the command line, in the run's artifact and in the API.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from plateway.catalog import Ledger
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


def _wanted(ledger: Ledger, lifespan: timedelta, now: datetime) -> list[str]:
    """Keep images that somebody had brought back, as long as if they were new."""
    back = [one.restored_at for one in ledger.purges if one.place == "raw" and one.reason == ON_REQUEST]
    age = now - max((one for one in back if one is not None), default=now - lifespan)
    return [f"restored {timedelta(seconds=int(age.total_seconds()))} ago, kept for {spoken(lifespan)}"] * (
        age < lifespan
    )


def _unsafe(siblings: Sequence[Ledger], now: datetime) -> list[tuple[Ledger, str]]:
    return [(other, "; ".join(why)) for other in siblings if (why := _safety(other, now))]
