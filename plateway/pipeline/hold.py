"""Hold: forbid to delete anything of some events, until a date or until somebody releases it; and release.

What decides is the catalogue: ``retention`` refuses for every verb, on whatever proof. Where a bucket has S3's Object
Lock, the hold is set there as well, so that it also binds whoever holds a key of the bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import uuid4

from plateway.errors import PlatewayError, Rejected
from plateway.events import Ref
from plateway.ledger import Ledger
from plateway.pipeline.context import Site
from plateway.pipeline.places import check_bucket
from plateway.records import LegalHold

CHUNK = 500  # events looked up at a time
FAILURES = 20  # that are listed


@dataclass
class Held:
    """A hold that was set or released, and what came of it."""

    hold: LegalHold
    late: Sequence[Ref] = ()  # events of which something is being removed right now: the hold came too late
    events: int = 0  # with a copy in a bucket
    locked: int = 0  # of these, whose objects were locked, or unlocked, in the bucket itself
    failures: list[str] = field(default_factory=list)  # the first few whose objects could not be


def hold(
    site: Site,
    *,
    event: Ref | None = None,
    experiment: str | None = None,
    system: str | None = None,
    reason: str,
    by: str,
    until: datetime | None = None,
) -> Held:
    """Forbid to delete anything of one event, of an experiment or of a system, until it is released.

    Of events that come later, too. Of an event, all revisions. An object in a bucket with Object Lock gets a legal
    hold, or with ``until`` a retention in governance mode.

    Raises:
        Rejected: not one of the three was given, there is no reason, or ``until`` is past.
        NotFound: nothing announced the event.
    """
    now = site.catalog.now()
    if sum(one is not None for one in (event, experiment, system)) != 1:
        raise Rejected("a hold is about one event, one experiment or one system")
    if not reason.strip():
        raise Rejected("a hold needs a reason")
    if until is not None and until <= now:
        raise Rejected(f"a hold until {until:%Y-%m-%d %H:%M} would be over already")
    legal_hold = LegalHold(
        id=uuid4(),
        event_id=event.id if event else None,
        experiment=experiment,
        system=system,
        reason=reason.strip(),
        by=by,
        at=now,
        until=until,
    )
    late = site.catalog.add_hold(legal_hold)
    return _lock_all(site, Held(legal_hold, late), now)


def release(site: Site, text: str, *, reason: str, by: str) -> Held:
    """Release a hold, given by its id or the first digits of it. Other holds on the same events stay.

    Raises:
        NotFound: there is no such hold. Conflict: it was released before. Rejected: there is no reason.
    """
    if not reason.strip():
        raise Rejected("a release needs a reason")
    now = site.catalog.now()
    found = site.catalog.resolve_hold(text)
    return _lock_all(site, Held(site.catalog.release_hold(found.id, by=by, reason=reason.strip(), at=now)), now)


def lock_copy(site: Site, ledger: Ledger, now: datetime) -> bool:
    """Lock the bucket copy of an event as its holds want it; return whether its bucket has Object Lock.

    Raises:
        PlatewayError: it could not be set.
    """
    export = ledger.export
    assert export is not None
    standing = [one for one in ledger.legal_holds if one.stands(now)]
    bound = site.holding(export)
    check_bucket(bound)
    return bound.store.lock(
        export.key,
        hold=any(one.until is None for one in standing),
        until=max((one.until for one in standing if one.until is not None), default=None),
    )


def _lock_all(site: Site, held: Held, now: datetime) -> Held:
    """Lock the bucket copies of all events that a hold is about."""
    for ledger in _covered(site, held.hold):
        if ledger.export is None or ledger.expired:
            continue
        held.events += 1
        try:
            held.locked += lock_copy(site, ledger, now)
        except PlatewayError as error:
            if len(held.failures) < FAILURES:
                held.failures.append(f"{ledger.ref}: {error}")
    return held


def _covered(site: Site, legal_hold: LegalHold) -> Iterator[Ledger]:
    if legal_hold.event_id is not None:
        yield from site.catalog.revisions(legal_hold.event_id)
        return
    after: Ref | None = None
    while True:
        page = site.catalog.ledgers(
            system=legal_hold.system, experiment=legal_hold.experiment, after=after, limit=CHUNK
        )
        yield from page
        if len(page) < CHUNK:
            return
        after = page[-1].ref
