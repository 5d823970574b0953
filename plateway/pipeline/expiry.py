"""Let bucket copies go that tape has with proof: judge, prove, mark, wait, prove again, delete, leave a tombstone.

An object has no trash to lie in: it is marked, and after the grace it is deleted at once, under its lease. So the
proof right before that is the whole one: the object is the one recorded, and the archive's copy was just read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from plateway import events, retention
from plateway.catalog import Ledger, Ref
from plateway.errors import Busy, Damaged, PlatewayError, Refused, Transient, Unavailable
from plateway.pipeline.copies import Copy, copies
from plateway.pipeline.evidence import manifest_of, proof_of, read_manifest, verify
from plateway.pipeline.line import Hold, Line, Outcome, leased, noted
from plateway.records import Export, Purge
from plateway.settings import Policy


def expire(
    line: Line,
    *,
    systems: Sequence[str] | None = None,
    dry_run: bool = False,
    fraction: float | None = None,
    now: datetime | None = None,
) -> list[Outcome]:
    """Delete bucket copies that the archive holds with proof: judge, prove, mark, wait, prove again, delete.

    ``fraction`` overrides the policy's for this batch. A dry run judges and proves, and deletes nothing.
    """
    now = now or line.catalog.now()
    carry_out = _rehearse if dry_run else _mark
    outcomes: list[Outcome] = []
    for name in systems or line.catalog.systems():
        policy = line.instrument(name).policy
        policy = policy if fraction is None else replace(policy, fraction=fraction)
        if not dry_run:
            marked = (one for one in line.catalog.going("bucket") if one[0].event.system == name)
            outcomes += [_guarded(_finish, line, ledger, purge, policy, now) for ledger, purge in marked]
        verdicts = list(_judged(line, name, policy, now))
        outcomes += [one for one in verdicts if isinstance(one, Outcome)]
        outcomes += [_guarded(carry_out, line, one, policy, now) for one in verdicts if not isinstance(one, Outcome)]
    return outcomes


def _judged(line: Line, system: str, policy: Policy, now: datetime) -> Iterator[Ledger | Outcome]:
    """Judge every bucket copy of a system that tape has; the batch as a whole may be stopped as well."""
    going = line.catalog.going("bucket")
    marked = sum(one.event.system == system and purge.trashed_at is None for one, purge in going)
    stored = line.catalog.stored(system) - marked
    if stored <= 0:
        return
    if policy.bucket_lifespan is None:
        yield Outcome(None, system, "expire", "refused", reasons=(f"{system} keeps its bucket copies",))
        return
    ledgers = [one for one in line.catalog.candidates(system, "bucket") if one.purge("bucket") is None]
    if (others := stored - len(ledgers)) > 0:
        without = f"{others} bucket cop{'ies' if others > 1 else 'y'}, of which tape is not known to have the bytes"
        yield Outcome(None, system, "expire", "refused", reasons=(without,))
    verdicts = [(ledger, _judge(line, ledger, policy, now)) for ledger in ledgers]
    leaving = sum(verdict.purge for _, verdict in verdicts)
    halt = retention.halt(leaving, present=stored, policy=policy)
    if halt is not None:
        yield Outcome(None, system, "expire", "stopped", reasons=(halt,))
        return
    for ledger, verdict in verdicts:
        yield ledger if verdict.purge else _told(ledger, "refused", *verdict.reasons)


def _judge(line: Line, ledger: Ledger, policy: Policy, now: datetime) -> retention.Verdict:
    verdict = retention.judge_bucket(ledger, policy, now)
    if not verdict.purge:
        return verdict
    return retention.judge_bucket(ledger, policy, now, siblings=line.catalog.siblings(ledger.event))


def _told(ledger: Ledger, result: str, *reasons: str) -> Outcome:
    event, size = ledger.event, ledger.export.size if ledger.export else None
    return Outcome(ledger.ref, event.system, "expire", result, key=event.key, size=size, reasons=reasons)


def _guarded(act: Callable[..., Outcome], line: Line, ledger: Ledger, *args: Any) -> Outcome:
    """Let one copy that cannot be proven stay, say why, and go on with the others."""
    try:
        return act(line, ledger, *args)
    except Refused as error:
        return _told(ledger, "refused", *error.reasons)
    except PlatewayError as error:
        return _told(ledger, "later" if isinstance(error, Transient) else "refused", str(error))


def _rehearse(line: Line, ledger: Ledger, policy: Policy, now: datetime) -> Outcome:
    _prove(line, ledger)
    return _told(ledger, "would go")


def _mark(line: Line, ledger: Ledger, policy: Policy, now: datetime) -> Outcome:
    """Prove, and write the intent: until the grace is over nothing else happens."""
    ref = ledger.ref
    with leased(line, ref):
        ledger = _unmarked(line.catalog.ledger(ref))
        _allow(line, ledger, policy, now)
        proof = _prove(line, ledger)
        line.catalog.intend(
            Purge(
                event_id=ref.id,
                revision=ref.revision,
                place="bucket",
                attempt=0,
                proof=proof,
                intended_at=now,
                trash="",
            )
        )
    return noted(_told(ledger, "marked"))


def _finish(line: Line, ledger: Ledger, purge: Purge, policy: Policy, now: datetime) -> Outcome:
    """After the grace prove again, and delete; or take the mark back."""
    ref = ledger.ref
    if now - purge.intended_at < policy.grace:
        return _told(ledger, "marked")
    with leased(line, ref) as fence:
        ledger = line.catalog.ledger(ref)
        mark = ledger.purge("bucket")
        if mark is None or mark.attempt != purge.attempt or mark.gone_at is not None:
            raise Busy(f"{ref}: somebody else was at it")
        export = ledger.export
        assert export is not None
        line = line.holding(export)  # in another bucket nothing at the key proves nothing
        if mark.trashed_at is not None and line.store.stat(export.key) is None:
            return _gone(line, ledger, now)  # deleted by a run that was cut off before it could say so
        delete = _go_on if mark.trashed_at is not None and _begun(line, export) else _delete
        try:
            delete(line, ref, policy, hold=Hold(line, ref, fence), now=now)
        except (Refused, Damaged) as error:
            line.catalog.note_restored(ref, "bucket", at=now, reason=str(error))
            outcome = noted(_told(ledger, "restored", str(error)))
        else:
            return _gone(line, ledger, now)
    with suppress(PlatewayError):  # which verify has noted
        verify(line, ref)  # if the object was why, that is noted now that it counts again
    return outcome


def _gone(line: Line, ledger: Ledger, now: datetime) -> Outcome:
    line.catalog.note_gone(ledger.ref, "bucket", at=now)
    return noted(_told(ledger, "expired"))


def _unmarked(ledger: Ledger) -> Ledger:
    """Look at an event as if we neither held nor had marked it."""
    purges = tuple(one for one in ledger.purges if one.place != "bucket" or one.gone_at is not None)
    return replace(ledger, purges=purges, lease=None)


def _allow(line: Line, ledger: Ledger, policy: Policy, now: datetime) -> None:
    """Judge again what may have changed since.

    Raises:
        Refused: with every reason.
    """
    verdict = _judge(line, ledger, policy, now)
    if not verdict.purge:
        raise Refused(*verdict.reasons)


def _prove(line: Line, ledger: Ledger) -> dict[str, Any]:
    """Prove that the object is the one recorded, and that the archive has its manifest where it can be read.

    Raises:
        Refused: what is other. Unavailable, Denied: it cannot be said now.
    """
    manifest_of(line, ledger)
    export = ledger.export
    assert export is not None
    read = None
    if line.archive is not None:
        offset, size = export.manifest_offset, export.manifest_size
        read = _read(line, ledger, start=offset, length=size, sha256=export.manifest_sha256)
    places = [one.model_dump(mode="json", exclude={"event_id", "revision"}) for one in retention.proven(ledger)]
    return {**proof_of(ledger), "archives": places, "manifest_read": read and read.place}


def _read(
    line: Line, ledger: Ledger, *, start: int, length: int, sha256: str, renew: Callable[[], None] | None = None
) -> Copy:
    """Read part of what tape has, from the first archive where it is what it should be.

    Raises:
        Refused: it is nowhere. Unavailable: nor is it anywhere, and some archive cannot be read now.
    """
    assert ledger.export is not None
    known = {one.path for one in retention.proven(ledger)}
    troubles, passing = [], False
    for copy in copies(line, ledger):
        if copy.where != "archive" or copy.place not in known:
            continue
        try:
            found = _digest(copy.open(start, length), renew)
        except Busy:
            raise
        except PlatewayError as error:
            troubles.append(f"{copy.place}: {error}")
            passing = passing or isinstance(error, Transient)
            continue
        if found == (length, sha256):
            return copy
        troubles.append(f"{copy.place} has something else there ({found[0]:,} bytes with sha256 {found[1]})")
        if found[0] == ledger.export.size:  # every byte was read
            line.catalog.note_misplaced(ledger.ref, copy.place, reason=troubles[-1], at=line.catalog.now())
    raise Unavailable("; ".join(troubles)) if passing else Refused(*troubles)


def _digest(chunks: Iterator[bytes], renew: Callable[[], None] | None) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if renew is not None:
            renew()
    return size, digest.hexdigest()


def _delete(line: Line, ref: Ref, policy: Policy, *, hold: Hold, now: datetime) -> None:
    """Prove everything, judge once more by what is known now, note that the deletion begins, look, delete, look.

    Raises:
        Refused: what is other. Busy: the lease was lost. Unavailable: it cannot be said, or the object is still there.
    """
    ledger = _unmarked(line.catalog.ledger(ref))
    _allow(line, ledger, policy, now)
    _prove(line, ledger)
    export = _read_whole(line, ledger, policy, hold=hold, now=now)
    line.catalog.note_trashed(ref, "bucket", at=now)
    found = line.store.stat(export.key)
    if found is None or (found.size, found.etag) != (export.size, export.seen_etag):
        raise Refused(f"{export.key} is not the object that was verified")
    _remove(line, export)


def _begun(line: Line, export: Export) -> bool:
    """Say whether a deletion was cut off among files that are objects of their own; the manifest goes last."""
    found = line.store.stat(export.key)
    partly = found is not None and found.etag != "" and found.size < export.size
    return partly and events.layout(export.key) == "files"


def _go_on(line: Line, ref: Ref, policy: Policy, *, hold: Hold, now: datetime) -> None:
    """Go on with such a deletion: prove again all but that everything is still there.

    Raises:
        Refused, Damaged: what is other. Busy: the lease was lost. Unavailable: it cannot be said, or is still there.
    """
    ledger = _unmarked(line.catalog.ledger(ref))
    _allow(line, ledger, policy, now)
    export = _read_whole(line, ledger, policy, hold=hold, now=now)
    read_manifest(line, export)
    _remove(line, export)


def _read_whole(line: Line, ledger: Ledger, policy: Policy, *, hold: Hold, now: datetime) -> Export:
    """Read all that tape has of an export, and judge once more."""
    export = ledger.export
    assert export is not None
    if line.archive is not None:
        _read(line, ledger, start=0, length=export.size, sha256=export.sha256, renew=hold)
    hold.renew()
    _allow(line, _unmarked(line.catalog.ledger(ledger.ref)), policy, now)  # again: reading takes its time
    return export


def _remove(line: Line, export: Export) -> None:
    line.store.delete(export.key)
    if line.store.stat(export.key) is not None:
        raise Unavailable(f"{export.key} is still there after it was deleted")
