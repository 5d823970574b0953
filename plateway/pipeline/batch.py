"""Batches of events: claimed together, exported and verified one after the other, by any number of workers at once.

A batch costs a worker one transaction to claim, and Prefect one task, however many small events are in it. A large
event is a batch of its own.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from plateway.catalog import Claim
from plateway.errors import Busy, DiskUnavailable, Misconfigured, PlatewayError, Unavailable
from plateway.events import Ref
from plateway.isolation import Beat, run_apart
from plateway.outcome import Outcome, Result
from plateway.pipeline.context import Site
from plateway.pipeline.export import export
from plateway.pipeline.run import failed
from plateway.pipeline.verify import verify

SMALL = 64 * 2**20  # bytes of images below which an event is small
EVENTS = 32  # small events of one batch
BYTES = 64 * 2**20  # of images, after which a batch is full
STALL = timedelta(minutes=10)  # without a byte read or sent


def group_systems(site: Site) -> dict[str, list[str]]:
    """Group the known systems by the endpoint that their exports go to, so that one that is slow delays only its own.

    Systems whose bucket the settings do not name are a group; their exports fail with that reason.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for system in site.catalog.systems():
        try:
            groups[str(site.to(system).endpoint)].append(system)
        except Misconfigured:
            groups[""].append(system)
    return dict(groups)


def claim_small(site: Site, systems: Sequence[str]) -> list[Claim]:
    """Claim a batch of small events that are due, the same number of each system; empty if there are none."""
    return site.catalog.claim_exports(
        systems,
        owner=site.owner,
        ttl=site.lease,
        now=site.catalog.now(),
        limit=EVENTS,
        below=SMALL,
        budget=BYTES,
    )


def claim_large(site: Site, systems: Sequence[str]) -> list[Claim]:
    """Claim one event of at least ``SMALL`` bytes; empty if none is due."""
    return site.catalog.claim_exports(
        systems, owner=site.owner, ttl=site.lease, now=site.catalog.now(), limit=1, above=SMALL
    )


def carry(site: Site, claims: Sequence[Claim], *, beat: Callable[[int], None] | None = None) -> list[Outcome]:
    """Export claimed events and verify what arrived, one after the other; return an outcome for each that was begun.

    An event that fails stops no other, but one whose endpoint does not answer: the others are released, and stay due.
    """
    outcomes: list[Outcome] = []
    left, claimed = list(claims), time.monotonic()
    try:
        while left:
            claim = left.pop(0)
            ref = Ref(claim.event.id, claim.event.revision)
            try:
                if time.monotonic() - claimed > site.lease.total_seconds() / 3 and claim.fence is not None:
                    site.catalog.renew(ref, fence=claim.fence, ttl=site.lease, now=site.catalog.now())
                outcomes.append(_carry_apart(site, ref, claim, beat))
            except Busy as error:
                outcomes.append(Outcome(ref, claim.event.system, "export", Result.BUSY, reasons=(str(error),)))
            except PlatewayError as error:
                outcomes.append(failed(site, ref, "export", error))
                if isinstance(error, Unavailable) and not isinstance(error, DiskUnavailable):
                    break
    finally:
        if left:
            site.catalog.release_claims(left)
    return outcomes


def _carry_apart(site: Site, ref: Ref, claim: Claim, tell: Callable[[int], None] | None) -> Outcome:
    """Carry one event in a thread of its own, which is abandoned if a disk or the endpoint hangs."""
    act = partial(_carry_one, site, ref, claim, tell)
    outcome = run_apart(f"export {site.root}", {str(ref): act}, patience=STALL)[str(ref)]
    if isinstance(outcome, PlatewayError):
        raise outcome
    return outcome


def _carry_one(site: Site, ref: Ref, claim: Claim, tell: Callable[[int], None] | None, beat: Beat) -> Outcome:
    started, site = time.monotonic(), replace(site, beat=beat)
    outcome = export(site, ref, claim=claim, beat=tell)
    if outcome.result is Result.EXPORTED:
        outcome = replace(verify(site, ref), verb="export")
    return replace(outcome, seconds=time.monotonic() - started)
