"""Expire bucket copies that tape has with proof: judge, prove, mark, wait, prove again, delete, leave a tombstone.

An object has no trash to lie in: it is marked, and after the grace it is deleted at once, under its lease. So the
proof right before that is the whole one: the object is the one recorded, and the archive's copy was just read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from plateway import keys, retention
from plateway.errors import Busy, Damaged, PlatewayError, Refused, Unavailable
from plateway.events import Ref
from plateway.instruments import Instrument, Policy
from plateway.ledger import Ledger
from plateway.outcome import Outcome, Restored, Result
from plateway.pipeline import removal
from plateway.pipeline.context import Site
from plateway.pipeline.lease import Hold, leased
from plateway.pipeline.places import check_bucket
from plateway.pipeline.proof import read_tape_manifest, unheld
from plateway.pipeline.removal import Batch, Decision, Location, report
from plateway.pipeline.verify import (
    manifest_of,
    proof_of,
    read_manifest,
    verify,
)
from plateway.records import Export, Purge


def expire(
    site: Site,
    *,
    systems: Sequence[str] | None = None,
    dry_run: bool = False,
    fraction: float | None = None,
    now: datetime | None = None,
) -> list[Outcome]:
    """Delete bucket copies that the archive holds with proof: judge, prove, mark, wait, prove again, delete.

    Before anything is deleted the archive's copy is read whole. ``fraction`` (0 to 1) overrides the policy's for this
    batch. A dry run judges and proves, and deletes nothing.

    Raises:
        Misconfigured: ``fraction`` is not between 0 and 1.
    """
    now = now or site.catalog.now()
    names = systems or site.catalog.systems()
    return removal.run(site, _Bucket(), names, dry_run=dry_run, fraction=fraction, now=now)


class _Bucket:
    """Deleting from the bucket."""

    name = "expire"

    def decide(self, site: Site, instrument: Instrument, policy: Policy, now: datetime) -> Batch:
        """Judge every bucket copy of a system that tape has; the batch as a whole may be stopped as well."""
        system = instrument.name
        marked = sum(purge.trashed_at is None for _, purge in self.pending(site, system))
        stored = site.catalog.stored(system) - marked
        if stored <= 0:
            return Batch()
        if policy.bucket_lifespan is None:
            return Batch(notes=[_about(system, Result.REFUSED, f"{system} keeps its bucket copies")])
        notes = []
        ledgers = [one for one in site.catalog.candidates(system, "bucket") if one.purge("bucket") is None]
        if (others := stored - len(ledgers)) > 0:
            copies = "copy" if others == 1 else "copies"
            without = f"{others} bucket {copies}, of which tape is not known to have the bytes"
            notes.append(_about(system, Result.REFUSED, without))
        decisions = [
            Decision(ledger, _judge(site, ledger, policy, now), Location("bucket", ledger.event.key))
            for ledger in ledgers
        ]
        halt = retention.halt(sum(one.verdict.purge for one in decisions), present=stored, policy=policy)
        if halt is not None:
            return Batch(notes=[*notes, _about(system, Result.STOPPED, halt)])
        return Batch(decisions, notes)

    def rehearse(self, site: Site, decision: Decision, policy: Policy, now: datetime) -> Outcome:
        _prove_quickly(site, decision.ledger)
        return report("expire", decision.ledger, Result.WOULD_GO)

    def begin(self, site: Site, decision: Decision, policy: Policy, now: datetime) -> Outcome:
        """Prove, and write the intent: until the grace is over nothing else happens."""
        ref = decision.ledger.ref
        with leased(site, ref) as fence:
            ledger = unheld(site.catalog.ledger(ref))
            _allow(site, ledger, policy, now)
            proof = _prove_quickly(site, ledger)
            facts: dict[str, Any] = {"place": "bucket", "attempt": 0, "proof": proof, "intended_at": now, "trash": ""}
            site.catalog.intend(Purge(event_id=ref.id, revision=ref.revision, **facts), fence=fence)
        return report("expire", ledger, Result.MARKED)

    def pending(self, site: Site, system: str) -> Iterable[tuple[Ledger, Purge]]:
        return [one for one in site.catalog.going("bucket") if one[0].event.system == system]

    def finish(self, site: Site, ledger: Ledger, purge: Purge, policy: Policy, now: datetime) -> Outcome:
        """After the grace prove again, and delete; or take the mark back."""
        ref = ledger.ref
        if now - purge.intended_at < policy.grace:
            return report("expire", ledger, Result.MARKED)
        with leased(site, ref) as fence:
            ledger = site.catalog.ledger(ref)
            mark = ledger.purge("bucket")
            if mark is None or mark.attempt != purge.attempt or mark.gone_at is not None:
                raise Busy(f"{ref}: another worker finished it meanwhile")
            export = ledger.export
            assert export is not None
            site = site.holding(export)  # in another bucket nothing at the key proves nothing
            check_bucket(site, fresh=True)
            hold = Hold(site, ref, fence)
            if mark.trashed_at is not None and site.store.stat(export.key) is None:
                return _record_gone(site, ledger, fence=fence, now=now)  # deleted by a run that was cut off right after
            begun = mark.trashed_at is not None and _half_deleted(site, export)
            try:
                _delete(site, ref, mark, policy, fence=fence, hold=hold, begun=begun, now=now)
            except (Refused, Damaged) as error:
                site.catalog.record_restored(
                    ref, "bucket", at=now, reason=str(error), cause=Restored.UNPROVEN, fence=fence
                )
                outcome = _taken_back(ledger, error)
            else:
                return _record_gone(site, ledger, fence=fence, now=now)
        with suppress(PlatewayError):  # which verify has recorded
            verify(site, ref)  # if the object was why, that is recorded now that it counts again
        return outcome


def _judge(site: Site, ledger: Ledger, policy: Policy, now: datetime) -> retention.Verdict:
    readable = site.archive is not None
    verdict = retention.judge_bucket(ledger, policy, now, readable=readable)
    if not verdict.purge:
        return verdict
    return retention.judge_bucket(ledger, policy, now, siblings=site.catalog.siblings(ledger.event), readable=readable)


def _allow(site: Site, ledger: Ledger, policy: Policy, now: datetime) -> None:
    """Judge again what may have changed since.

    Raises:
        Refused: with every reason.
    """
    verdict = _judge(site, ledger, policy, now)
    if not verdict.purge:
        raise Refused(*verdict.reasons)


def _prove_quickly(site: Site, ledger: Ledger) -> dict[str, Any]:
    """Compare the object with what is recorded, and read the archive's manifest where it can be read.

    Raises:
        Refused: what is other. Damaged: the object is another. Unavailable, Denied: it cannot be determined now.
    """
    manifest_of(site, ledger)
    read = read_tape_manifest(site, ledger) if site.archive is not None else None
    places = [one.model_dump(mode="json", exclude={"event_id", "revision"}) for one in retention.on_tape(ledger)]
    return {**proof_of(ledger), "archives": places, "manifest_read": read and read.place}


def _delete(
    site: Site, ref: Ref, mark: Purge, policy: Policy, *, fence: int, hold: Hold, begun: bool, now: datetime
) -> None:
    """Prove everything, judge once more, record that the deletion begins, inspect, delete, inspect.

    ``begun``: a deletion was cut off among files that are objects of their own, so not all of them are there.

    Raises:
        Refused, Damaged: what is other. Busy: the lease was lost. Unavailable: cannot be determined, or the object is
        still there.
    """
    ledger = unheld(site.catalog.ledger(ref))
    _allow(site, ledger, policy, now)
    if not begun:
        _prove_quickly(site, ledger)
    removal.prove_copies(site, ledger, policy, needed=["archive"], since=mark.intended_at, beat=hold, now=now)
    hold.renew()
    ledger = unheld(site.catalog.ledger(ref))  # again: reading takes its time
    _allow(site, ledger, policy, now)
    export = ledger.export
    assert export is not None
    if begun:
        read_manifest(site, export)
    else:
        site.catalog.record_trashed(ref, "bucket", at=now, fence=fence)
        found = site.store.stat(export.key)
        if found is None or (found.size, found.etag) != (export.size, export.seen_etag):
            raise Refused(f"{export.key} is not the object that was verified")
    site.store.delete(export.key)
    if site.store.stat(export.key) is not None:
        raise Unavailable(f"{export.key} is still there after it was deleted")


def _half_deleted(site: Site, export: Export) -> bool:
    """Return whether a deletion was cut off among files that are objects of their own; the manifest goes last."""
    found = site.store.stat(export.key)
    partly = found is not None and found.etag != "" and found.size < export.size
    return partly and keys.layout_of(export.key) == "files"


def _record_gone(site: Site, ledger: Ledger, *, fence: int, now: datetime) -> Outcome:
    site.catalog.record_gone(ledger.ref, "bucket", at=now, fence=fence)
    return report("expire", ledger, Result.EXPIRED)


def _taken_back(ledger: Ledger, error: Refused | Damaged) -> Outcome:
    result = Result.DAMAGED if isinstance(error, Damaged) else Result.RESTORED
    return report("expire", ledger, result, str(error))


def _about(system: str, result: Result, reason: str) -> Outcome:
    return Outcome(None, system, "expire", result, reasons=(reason,))
