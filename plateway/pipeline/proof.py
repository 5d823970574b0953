"""Read copies whole, and determine their state right before something is deleted because of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from plateway import retention
from plateway.ahead import read_ahead
from plateway.errors import Busy, Damage, Damaged, PlatewayError, Refused, Transient, Unavailable
from plateway.events import Ref
from plateway.instruments import Policy
from plateway.isolation import beating
from plateway.ledger import Ledger
from plateway.outcome import Result
from plateway.pipeline.context import Site
from plateway.pipeline.lifecycle_rules import announced_expiry
from plateway.pipeline.places import check_archive, check_bucket
from plateway.pipeline.read import Copy, archived_copies
from plateway.pipeline.verify import as_seen, difference, verify
from plateway.records import ArchiveLocation
from plateway.retention import CopyState

DAY = timedelta(days=1)


class Postponed(Exception):
    """The bytes that may be read today are used up; it is this event's turn on another day."""


def read_object(site: Site, ref: Ref, policy: Policy, *, beat: Callable[[], None], now: datetime) -> None:
    """Read the bucket copy of an event whole, in a pass of its own, and record the reading or the damage.

    Raises:
        Postponed: the day's budget of bytes is used up.
        Damaged: it is not what was sent. Transient: it cannot be read now.
    """
    export = site.catalog.ledger(ref).export
    assert export is not None
    if policy.proof_budget is not None:
        used = site.catalog.bytes_read(since=now - DAY)
        if used and used + export.size > policy.proof_budget:
            raise Postponed(
                f"{used:,} of {policy.proof_budget:,} bytes a day were read as proof (PLATEWAY_PROOF_BUDGET), "
                f"{export.size:,} wait for their turn"
            )
    outcome = verify(site, ref, read_back=True, beat=beat)
    if outcome.result is Result.DAMAGED:
        raise Damaged("; ".join(outcome.reasons))
    if outcome.result is not Result.VERIFIED:
        raise Refused(*outcome.reasons)


def read_tape(site: Site, ledger: Ledger, *, beat: Callable[[], None]) -> Copy:
    """Read a copy on tape whole, from the first archive where it is what was sent, and record the reading.

    Raises:
        Refused: it is nowhere. Unavailable: nor is it anywhere, and some archive cannot be read now.
    """
    export = ledger.export
    assert export is not None
    check_archive(site, fresh=True)
    return _first_sound(site, ledger, start=0, length=export.size, sha256=export.sha256, beat=beat)


def read_tape_manifest(site: Site, ledger: Ledger) -> Copy:
    """Read only the manifest of a copy on tape: a quick look, and no proof.

    Raises:
        Refused: it is nowhere. Unavailable: nor is it anywhere, and some archive cannot be read now.
    """
    export = ledger.export
    assert export is not None
    check_archive(site, fresh=True)
    start, length = export.manifest_offset, export.manifest_size
    return _first_sound(site, ledger, start=start, length=length, sha256=export.manifest_sha256)


def _first_sound(
    site: Site, ledger: Ledger, *, start: int, length: int, sha256: str, beat: Callable[[], None] = lambda: None
) -> Copy:
    assert ledger.export is not None
    known = {one.path: one for one in retention.on_tape(ledger)}
    troubles, passing = [], False
    for copy in archived_copies(site, ledger):
        if copy.place not in known:
            continue
        try:
            size, found = _measure(copy, start, length, beat)
        except Busy:
            raise
        except PlatewayError as error:
            troubles.append(f"{copy.place}: {error}")
            passing = passing or isinstance(error, Transient)
            continue
        if (size, found) == (length, sha256):
            if size == ledger.export.size:
                _record_reading(site, ledger, known[copy.place], copy)
            return copy
        troubles.append(f"{copy.place} has something else there ({size:,} bytes with sha256 {found})")
        if size == ledger.export.size:  # every byte was read
            record_tape_damage(site, ledger, copy.place, troubles[-1], Damage.CHANGED)
    raise Unavailable("; ".join(troubles)) if passing else Refused(*troubles)


def _measure(copy: Copy, start: int, length: int, beat: Callable[[], None]) -> tuple[int, str]:
    """Return how many bytes there are, and their SHA-256."""
    size, digest = 0, hashlib.sha256()
    for chunk in beating(read_ahead(copy.open(start, length)), beat):
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()


def _record_reading(site: Site, ledger: Ledger, location: ArchiveLocation, copy: Copy) -> None:
    assert site.archive is not None and ledger.export is not None
    seen = site.archive.stat(location.path)
    site.catalog.record_location(
        ledger.ref,
        location.path,
        member=location.member,
        offset=copy.first(),
        size=ledger.export.size,
        checksum=ledger.export.sha256,
        read_at=site.catalog.now(),
        seen_size=seen and seen.size,
        seen_modified=seen and seen.modified,
    )


def record_tape_damage(site: Site, ledger: Ledger, path: str, reason: str, kind: Damage) -> None:
    """Record that tape does not have what it should: damage of the only copy, or else no copy at all."""
    if ledger.expired:
        site.catalog.record_tape_damage(ledger.ref, path, damage=reason, kind=kind, at=site.catalog.now())
    else:
        site.catalog.record_misplaced(ledger.ref, path, reason=reason, at=site.catalog.now())


def bucket_state(site: Site, ledger: Ledger) -> CopyState:
    """Inspect the bucket copy as it is now, against what was recorded when it was last read.

    Raises:
        Transient: its place cannot be identified, or it cannot be inspected, now. Misconfigured: no setting names it.
    """
    export = ledger.export
    assert export is not None
    site = site.holding(export)
    check_bucket(site, fresh=True)
    then, found = as_seen(export), site.store.stat(export.key)
    if found is None:
        changed = "is not there"
    elif then is None:
        changed = "nobody recorded what it was when it was read"
    else:
        changed = difference(then, found)
    return CopyState(
        "bucket",
        export.key,
        export.read_back_at,
        doubt="" if site.store.durable else "is kept in memory",
        changed=changed,
        expiring=announced_expiry(site, export),
    )


def tape_state(site: Site, ledger: Ledger, path: str | None = None) -> CopyState:
    """Inspect the copy on tape as it is now; where the archive cannot be read from here, it is only reported."""
    locations = [one for one in retention.on_tape(ledger) if path in {None, one.path}]
    best = max(locations, key=lambda one: (one.read_at is not None, one.read_at or one.reported_at), default=None)
    if best is None:
        return CopyState("archive", path or "", None, changed="is not there")
    if site.archive is None:
        return CopyState("archive", best.path, best.read_at, reported=True)
    check_archive(site, fresh=True)
    found = site.archive.stat(best.path)
    then = (best.seen_size, best.seen_modified)
    changed = "is not there" if found is None else "has changed" if then != (found.size, found.modified) else ""
    return CopyState(
        "archive",
        best.path,
        best.read_at,
        doubt="" if site.archive.durable else "is kept in memory",
        changed=changed if best.read_at else "",
    )


def unheld(ledger: Ledger) -> Ledger:
    """Return an event's ledger as if this worker neither held nor had marked it."""
    purges = tuple(one for one in ledger.purges if one.place != "bucket" or one.gone_at is not None)
    return replace(ledger, purges=purges, lease=None)
