"""Free the bench: judge, prove, move aside, wait, prove again, remove, leave a tombstone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from plateway import events, folder, retention
from plateway.catalog import Ledger, Ref
from plateway.errors import (
    Damaged,
    PlatewayError,
    Refused,
    Rejected,
    Unsettled,
)
from plateway.pipeline.discovery import EVENTS, announcement
from plateway.pipeline.evidence import manifest_of, proof_of
from plateway.pipeline.line import Line, Outcome, digest_of, leased, noted
from plateway.records import Event, Purge
from plateway.settings import Instrument, Policy

TRASH = ".plateway-trash"  # in the system's own directory: moving there is one rename
EVENT_FILE = "event.json"  # its name in the trash


@dataclass(frozen=True)
class Place:
    """Where the images that are to go lie."""

    name: str  # raw | staging
    root: Path
    path: str


def purge(
    line: Line,
    *,
    systems: Sequence[str] | None = None,
    dry_run: bool = False,
    fraction: float | None = None,
    now: datetime | None = None,
) -> list[Outcome]:
    """Free the bench of what is proven to be safe elsewhere: judge, prove, move aside, wait, prove again, remove.

    ``fraction`` overrides the policy's for this batch. A dry run judges and proves, and moves nothing.
    """
    now = now or line.catalog.now()
    carry_out = _rehearse if dry_run else _trash
    outcomes: list[Outcome] = []
    for name in systems or sorted({*events.systems(line.root), *line.catalog.systems()}):
        instrument = line.instrument(name)
        policy = instrument.policy if fraction is None else replace(instrument.policy, fraction=fraction)
        verdicts = [*_raw(line, instrument, policy, now), *_staging(line, instrument, policy, now)]
        outcomes += [one for one in verdicts if isinstance(one, Outcome)]
        outcomes += [_guarded(carry_out, line, *one, now) for one in verdicts if not isinstance(one, Outcome)]
        if not dry_run:
            outcomes += _finish_all(line, instrument, policy, now)
    return outcomes


def _raw(line: Line, instrument: Instrument, policy: Policy, now: datetime) -> Iterator[tuple[Ledger, Place] | Outcome]:
    """Judge every event on a system's bench; the batch as a whole may be stopped as well."""
    on_bench = line.catalog.tally(instrument.name)
    if not on_bench:
        return
    if not policy.purge:
        yield _halted(instrument, "refused", f"{instrument.name} is not among the systems to purge")
        return
    if not _mounted(instrument):
        yield _halted(instrument, "stopped", f"{instrument.name} shows no event file at all: is its disk mounted?")
        return
    ledgers = line.catalog.candidates(instrument.name, "raw")
    verdicts = [(ledger, _judge(line, ledger, policy, now)) for ledger in ledgers]
    leaving = sum(verdict.purge for _, verdict in verdicts)
    halt = retention.halt(leaving, present=on_bench, policy=policy)
    if halt is not None:
        yield _halted(instrument, "stopped", halt)
        return
    for ledger, verdict in verdicts:
        place = Place("raw", instrument.root, ledger.event.path)
        yield (ledger, place) if verdict.purge else _refused(ledger, verdict.reasons)


def _mounted(instrument: Instrument) -> bool:
    """See a positive sign that this is the instrument's disk: an empty listing proves nothing."""
    try:
        return bool(events.scan(instrument))
    except (Unsettled, Rejected):
        return False


def _judge(line: Line, ledger: Ledger, policy: Policy, now: datetime) -> retention.Verdict:
    verdict = retention.judge(ledger, policy, now)
    if not verdict.purge:
        return verdict
    return retention.judge(ledger, policy, now, siblings=line.catalog.siblings(ledger.event))


def _staging(
    line: Line, instrument: Instrument, policy: Policy, now: datetime
) -> Iterator[tuple[Ledger, Place] | Outcome]:
    if instrument.staging is None:
        return
    for ledger in line.catalog.candidates(instrument.name, "staging"):
        if retention.judge_staging(ledger, policy, now).purge:
            yield ledger, Place("staging", instrument.staging, str(ledger.ref))


def _halted(instrument: Instrument, result: str, reason: str) -> Outcome:
    return Outcome(None, instrument.name, "purge", result, reasons=(reason,))


def _refused(ledger: Ledger, reasons: Sequence[str]) -> Outcome:
    event = ledger.event
    return Outcome(ledger.ref, event.system, "purge", "refused", key=event.key, reasons=tuple(reasons))


def _guarded(act: Callable[..., Outcome], line: Line, ledger: Ledger, *args: Any, **options: Any) -> Outcome:
    """Let one event that cannot be proven stay, say why, and go on with the others."""
    try:
        return act(line, ledger, *args, **options)
    except Refused as error:
        return _refused(ledger, error.reasons)
    except PlatewayError as error:
        return _refused(ledger, (str(error),))


def _rehearse(line: Line, ledger: Ledger, place: Place, now: datetime) -> Outcome:
    _prove(line, ledger, place)
    return _cleared(ledger, place.name, "would go")


def _trash(line: Line, ledger: Ledger, place: Place, now: datetime) -> Outcome:
    """Prove, write the intent, move aside, note."""
    ref, event = ledger.ref, ledger.event
    with leased(line, ref):
        if place.name == "raw" and not folder.exists(place.root, place.path):
            return _went_along(line, ledger, now)
        proof = _prove(line, ledger, place)
        purge = line.catalog.intend(_intent(ref, place.name, proof=proof, trash=f"{TRASH}/{ref}", now=now))
        folder.move(place.root, place.path, to=_aside(purge))
        _move_event_file(line.instrument(event.system), event, place, purge)
        line.catalog.note_trashed(ref, place.name, at=now)
    return _cleared(ledger, place.name, "trashed")


def _intent(ref: Ref, place: str, *, proof: dict[str, Any], trash: str, now: datetime) -> Purge:
    return Purge(
        event_id=ref.id, revision=ref.revision, place=place, attempt=0, proof=proof, intended_at=now, trash=trash
    )


def _went_along(line: Line, ledger: Ledger, now: datetime) -> Outcome:
    """Note that the images went with another event's: announced at the same path, and the same in both copies.

    Or other ones went, that had taken their place: a later revision of this event.

    Raises:
        Refused: they are not there, and no purge of ours took them.
    """
    files = _files(line, ledger)
    for other in line.catalog.siblings(ledger.event):
        purge = other.purge("raw")
        if other.event.path != ledger.event.path or purge is None or purge.gone_at is None:
            continue
        superseded = other.ref.id == ledger.ref.id and other.ref.revision > ledger.ref.revision
        if superseded or files == _files(line, other):
            proof = {**proof_of(ledger), "went_with": str(other.ref)}
            intent = _intent(ledger.ref, "raw", proof=proof, trash=f"{TRASH}/{ledger.ref}", now=now)
            return _follow(line, ledger, line.catalog.intend(intent), now)
    raise Refused("the images are not on the bench, and no purge of ours took them")


def _follow(line: Line, ledger: Ledger, purge: Purge, now: datetime) -> Outcome:
    """Let the event file go after images that went with another event's."""
    instrument = line.instrument(ledger.event.system)
    _move_event_file(instrument, ledger.event, Place("raw", instrument.root, ledger.event.path), purge)
    folder.remove(instrument.root, purge.trash, names=[EVENT_FILE])
    line.catalog.note_gone(ledger.ref, "raw", at=now)
    return _cleared(ledger, "raw", "gone")


def _files(line: Line, ledger: Ledger) -> set[tuple[str, str]]:
    return {(member.source or member.name, member.sha256) for member in manifest_of(line, ledger).members}


def _move_event_file(instrument: Instrument, event: Event, place: Place, purge: Purge) -> None:
    """Let the event file go with its images, if it still is the one that announced them."""
    if place.name != "raw":
        return
    try:
        announced = events.parse(announcement(instrument, event), instrument)
    except Rejected:
        return
    if announced.digest == event.digest:
        folder.move(place.root, f"{EVENTS}/{event.file}", to=f"{purge.trash}/{EVENT_FILE}")


def _finish_all(line: Line, instrument: Instrument, policy: Policy, now: datetime) -> list[Outcome]:
    """Take everything that is on its way out of a system one step further."""
    roots = {"raw": instrument.root, "staging": instrument.staging}
    return [
        _guarded(_finish, line, ledger, purge, root, policy=policy, now=now)
        for ledger, purge in line.catalog.going()
        if ledger.event.system == instrument.name and (root := roots[purge.place]) is not None
    ]


def _finish(line: Line, ledger: Ledger, purge: Purge, root: Path, *, policy: Policy, now: datetime) -> Outcome:
    """Heal a move that was interrupted; after the grace prove again, and remove, or take everything back."""
    if purge.place == "raw" and not policy.purge:
        raise Refused(f"{ledger.event.system} is not among the systems to purge any more")
    with leased(line, ledger.ref):
        if "went_with" in purge.proof:
            return _follow(line, ledger, purge, now)
        if purge.trashed_at is None:
            return _heal(line, ledger, purge, root, now=now)
        if now - purge.trashed_at < policy.grace:
            return _cleared(ledger, purge.place, "trashed")
        if not folder.exists(root, TRASH):  # it is never removed: without it this is not the disk we moved things on
            raise Unsettled(f"{ledger.event.system} shows no trash at all: is its disk mounted?")
        try:
            names = _prove_again(line, ledger, purge, root)
        except (Refused, Damaged) as error:
            return _restore(line, ledger, purge, root, now=now, reason=str(error))
        folder.remove(root, purge.trash, names=names)
        line.catalog.note_gone(ledger.ref, purge.place, at=now)
    return _cleared(ledger, purge.place, "gone")


def _heal(line: Line, ledger: Ledger, purge: Purge, root: Path, *, now: datetime) -> Outcome:
    """Bring an interrupted move to one of its two ends, by what is seen on the disk."""
    ref, event = ledger.ref, ledger.event
    if folder.exists(root, _aside(purge)):
        _move_event_file(line.instrument(event.system), event, Place(purge.place, root, _home(ledger, purge)), purge)
        line.catalog.note_trashed(ref, purge.place, at=now)
        return _cleared(ledger, purge.place, "trashed")
    if folder.exists(root, _home(ledger, purge)):
        line.catalog.note_restored(ref, purge.place, at=now, reason="interrupted before anything was moved")
        return _cleared(ledger, purge.place, "restored")
    raise Unsettled(f"{event.path} is neither in its place nor in the trash: is the disk mounted?")


def _restore(line: Line, ledger: Ledger, purge: Purge, root: Path, *, now: datetime, reason: str) -> Outcome:
    """Move everything back to where it was."""
    if folder.exists(root, f"{purge.trash}/{EVENT_FILE}"):
        folder.move(root, f"{purge.trash}/{EVENT_FILE}", to=f"{EVENTS}/{ledger.event.file}")
    folder.move(root, _aside(purge), to=_home(ledger, purge))
    line.catalog.note_restored(ledger.ref, purge.place, at=now, reason=reason)
    return _cleared(ledger, purge.place, "restored", reason)


def take_back(line: Line, ledger: Ledger, purge: Purge, *, reason: str) -> Outcome:
    """Move images that are aside and untouched back to their place, and note why.

    Raises:
        Unsettled: their removal has begun, or was not noted yet: a purge finishes that, then a copy can be restored.
        Busy: somebody is at work on the event.
    """
    root, now = line.instrument(ledger.event.system).root, line.catalog.now()
    with leased(line, ledger.ref):
        if "went_with" in purge.proof or not folder.exists(root, _aside(purge)):
            raise Unsettled(f"{ledger.event.path}: a purge was cut off, and must finish first")
        with folder.enter(root, _aside(purge)) as images:
            if folder.fingerprint(images.files()) != purge.proof["fingerprint"]:
                raise Unsettled(f"{ledger.event.path}: its removal has begun, and must finish first")
        return _restore(line, ledger, purge, root, now=now, reason=reason)


def _home(ledger: Ledger, purge: Purge) -> str:
    return ledger.event.path if purge.place == "raw" else str(ledger.ref)


def _aside(purge: Purge) -> str:
    """Where in the trash the images lie; an event of one file gets a directory of its own for it."""
    only = purge.proof["only"]
    return f"{purge.trash}/images/{only}" if only else f"{purge.trash}/images"


def _cleared(ledger: Ledger, place: str, result: str, *reasons: str) -> Outcome:
    verb = "purge" if place == "raw" else "purge staging"
    size = ledger.export.size if ledger.export else None
    event = ledger.event
    return noted(Outcome(ledger.ref, event.system, verb, result, key=event.key, size=size, reasons=reasons))


def _prove(line: Line, ledger: Ledger, place: Place) -> dict[str, Any]:
    """Prove, on the real bytes, that the bucket holds everything that lies in a place.

    The object has the size and ETag that were verified; its own manifest, read from it now, is the recorded one; the
    files are exactly the manifest's, each with its SHA-256.

    Raises:
        Refused: with every difference. Unavailable, Unsettled: it cannot be said now.
    """
    manifest = manifest_of(line, ledger)
    expected = {member.source or member.name: member for member in manifest.members}
    with folder.enter(place.root, place.path) as images:
        files, only = images.files(), images.only
        reasons = _differences({file.name for file in files}, set(expected))
        if not reasons:
            reasons = [
                f"{folder.shown(file.name)} has another SHA-256 than the copy"
                for file in files
                if digest_of(images.read(file)) != expected[file.name].sha256
            ]
        print_ = folder.fingerprint(files)
        if not reasons and folder.fingerprint(images.files()) != print_:
            reasons = ["images changed while they were compared"]
    if reasons:
        raise Refused(*reasons)
    return {**proof_of(ledger), "fingerprint": print_, "files": len(files), "only": only}


def _prove_again(line: Line, ledger: Ledger, purge: Purge, root: Path) -> list[str]:
    """Prove once more before anything is unlinked; return the names of what may be, relative to the trash.

    After an interrupted removal fewer files are left than were proven; each must still be one of them.
    """
    manifest = manifest_of(line, ledger)
    expected = {member.source or member.name: member.size for member in manifest.members}
    names = [EVENT_FILE] if folder.exists(root, f"{purge.trash}/{EVENT_FILE}") else []
    if not folder.exists(root, f"{purge.trash}/images"):
        return names
    with folder.enter(root, f"{purge.trash}/images") as images:
        files = images.files()
    if len(files) == purge.proof["files"] and folder.fingerprint(files) != purge.proof["fingerprint"]:
        raise Refused("images changed after they were moved aside")
    strangers = [file.name for file in files if expected.get(file.name) != file.size]
    if strangers:
        raise Refused(*(f"{folder.shown(name)} is not in the copy" for name in strangers))
    return [*(f"images/{file.name}" for file in files), *names]


def _differences(there: set[str], expected: set[str]) -> list[str]:
    return [
        *(f"{folder.shown(name)} is not in the copy" for name in sorted(there - expected)),
        *(f"{folder.shown(name)} is missing here" for name in sorted(expected - there)),
    ]
