"""Compare bench, bucket, catalogue and tape, and repair what may be repaired.

The listing is read whole before the catalogue, sorted by key and kept on disk, so that neither memory nor a long
transaction grows with the bucket. A difference is only a suspicion, because exports and purges go on meanwhile: each
suspect is inspected again on its own, and nothing is done because of a listing.

    survey      the comparison of one bucket, and the second inspection
    bench       what the instruments' disks show          spill       sorting a listing on disk
    leftovers   what interrupted work left behind          repair      repairs, step by step
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from plateway.errors import PlatewayError, Transient
from plateway.findings import Kind
from plateway.instruments import bounded_fraction
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.only_copies import inspect_only_copies
from plateway.pipeline.reconcile.bench import BenchView
from plateway.pipeline.reconcile.repair import Reconciled as Reconciled
from plateway.pipeline.reconcile.repair import Repairs
from plateway.pipeline.reconcile.survey import BucketShares, Comparison


def reconcile(
    site: Site,
    *,
    repair: bool = False,
    systems: Sequence[str] | None = None,
    within: timedelta | None = None,
    fraction: float = 0.1,
    now: datetime | None = None,
) -> Reconciled:
    """Compare bench, bucket, catalogue and tape, and repair what may be repaired.

    What only inspects and records is done at once; what deletes, moves or writes only with ``repair``, and is described
    as ``would …`` without. ``systems`` limits the disks that are read (default: all); bucket and tape are always
    compared whole. ``within``: how long an export may be without a tape copy. If more than ``fraction`` of all exports
    is newly lost or changed, or a side does not answer, nothing is repaired.
    Each bucket of the site is compared with its own exports. A second run right after changes nothing.
    """
    now, fraction = now or site.catalog.now(), bounded_fraction(fraction)
    bench, shares = BenchView(site, systems), BucketShares(site)
    found = [
        _reconcile_bucket(Comparison(one, now=now, within=within, bench=bench, shares=shares), repair, fraction)
        for one in shares.bound
    ]
    findings, troubles = inspect_only_copies(site)
    tape = Reconciled(tuple(findings), tuple(troubles), {Kind.ONLY_COPY.value: len(findings)} if findings else {})
    return _merge([*found, tape], [log_outcome(one) for one in (*shares.elsewhere(), *bench.unread())])


def _merge(found: Sequence[Reconciled], outcomes: Sequence[Outcome]) -> Reconciled:
    counts = sum((Counter(one.counts) for one in found), Counter[str]())
    return Reconciled(
        findings=tuple(itertools.chain.from_iterable(one.findings for one in found)),
        outcomes=(*itertools.chain.from_iterable(one.outcomes for one in found), *outcomes),
        counts=dict(sorted(counts.items())),
        stopped=any(one.stopped for one in found),
    )


def _reconcile_bucket(comparison: Comparison, repair: bool, fraction: float) -> Reconciled:
    repairs = Repairs(comparison, allowed=repair)
    try:
        survey = comparison.survey()
        suspects = comparison.confirm(survey)
    except PlatewayError as error:  # a side does not answer: what was found until then proves nothing
        return repairs.stopped(Result.LATER if isinstance(error, Transient) else Result.STOPPED, str(error))
    doubt = comparison.doubt(survey, suspects, fraction)
    if doubt is not None:
        return repairs.stopped(Result.STOPPED, doubt, suspects=suspects, survey=survey)
    try:
        repairs.repair(suspects, whole=not survey.cut)
    except PlatewayError as error:  # a side stopped answering; repairs made until then stay
        result = Result.LATER if isinstance(error, Transient) else Result.STOPPED
        return repairs.stopped(result, str(error), survey=survey)
    return repairs.result(survey)
