"""Free the bench: judge, prove, move aside, wait, prove again, remove, leave a tombstone."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from plateway import bench, events, folder, retention
from plateway.bench import EVENT_FILE, EVENTS, TRASH, read_announcement
from plateway.bundle import Member
from plateway.checksums import sha256_of
from plateway.errors import Busy, Damaged, Refused, Rejected, Unsettled
from plateway.events import Ref
from plateway.folder import File
from plateway.instruments import Instrument, Policy
from plateway.isolation import beating
from plateway.ledger import Ledger
from plateway.names import shown
from plateway.outcome import Outcome, Restored, Result, log_outcome
from plateway.pipeline import removal
from plateway.pipeline.context import Site
from plateway.pipeline.lease import Hold, leased
from plateway.pipeline.places import check_aside, check_bench
from plateway.pipeline.proof import unheld
from plateway.pipeline.removal import Batch, Decision, Location, outcome, report
from plateway.pipeline.verify import manifest_of, proof_of
from plateway.records import Event, Purge

CHUNK = 500  # events that are read and judged at a time
VERB = {"raw": "purge", "staging": "purge staging"}


def purge(
    site: Site,
    *,
    systems: Sequence[str] | None = None,
    dry_run: bool = False,
    fraction: float | None = None,
    now: datetime | None = None,
    each: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Free the bench of what is proven to be safe elsewhere: judge, prove, move aside, wait, prove again, remove.

    Before anything is removed the copies that it goes because of are read whole. ``fraction`` (0 to 1) overrides the
    policy's for this batch. A dry run judges and proves, and moves nothing. ``each`` receives each outcome at once,
    from a thread of its system, and none is returned: also refusals of a batch that is stopped then.

    Raises:
        Misconfigured: ``fraction`` is not between 0 and 1.
    """
    now = now or site.catalog.now()
    names = systems or sorted({*bench.list_systems(site.root), *site.catalog.systems()})
    return removal.run(site, _Bench(each), names, dry_run=dry_run, fraction=fraction, now=now, each=each)


class _Bench:
    """Deleting from an instrument's disk, and from staging."""

    name = "purge"

    def __init__(self, each: Callable[[Outcome], None] | None = None) -> None:
        self._each = each

    def decide(self, site: Site, instrument: Instrument, policy: Policy, now: datetime) -> Batch:
        batch = _decide_raw(site, instrument, policy, now, self._each)
        if instrument.staging is not None:
            batch.decisions = itertools.chain(batch.decisions, [*_decide_staging(site, instrument, policy, now)])
        return batch

    def rehearse(self, site: Site, decision: Decision, policy: Policy, now: datetime) -> Outcome:
        check_bench(site, site.instrument(decision.ledger.event.system))
        removal.check_provable(site, decision.ledger)
        _prove_images(site, decision.ledger, decision.location, beat=site.beat)
        return report(VERB[decision.location.place], decision.ledger, Result.WOULD_GO, *_weakness(policy))

    def begin(self, site: Site, decision: Decision, policy: Policy, now: datetime) -> Outcome:
        """Prove, write the intent, move aside, record."""
        ledger, location = decision.ledger, decision.location
        ref, event, instrument = ledger.ref, ledger.event, site.instrument(ledger.event.system)
        assert location.root is not None
        _check_places(site, instrument, location)
        removal.check_provable(site, ledger)
        with leased(site, ref) as fence:
            if location.place == "raw" and not folder.exists(location.root, location.path):
                return _follow_sibling(site, ledger, fence=fence, now=now)
            hold = Hold(site, ref, fence)
            proof = _prove_images(site, ledger, location, beat=hold)
            hold.renew()
            purge = site.catalog.intend(
                _intent(ref, location.place, proof={**proof, "method": policy.proof}, now=now), fence=fence
            )
            hold()
            folder.move(location.root, location.path, to=_aside(purge))
            _move_event_file(instrument, event, location, purge)
            site.catalog.record_trashed(
                ref, location.place, at=now, fence=fence, proof=_aside_proof(location.root, purge)
            )
        return report(VERB[location.place], ledger, Result.TRASHED, *_weakness(policy))

    def pending(self, site: Site, system: str) -> Iterable[tuple[Ledger, Purge]]:
        return [one for one in site.catalog.going() if one[0].event.system == system]

    def finish(self, site: Site, ledger: Ledger, purge: Purge, policy: Policy, now: datetime) -> Outcome:
        """Complete a move that was interrupted; after the grace prove again, and remove, or take everything back."""
        instrument, ref = site.instrument(ledger.event.system), ledger.ref
        root = instrument.root if purge.place == "raw" else instrument.staging
        if root is None:
            raise Refused(f"{ref}: there is no staging any more, and its copy was moved aside there")
        _check_places(site, instrument, Location(purge.place, "", root))
        with leased(site, ref) as fence:
            ledger = site.catalog.ledger(ref)
            mark = ledger.purge(purge.place)
            if mark is None or mark.attempt != purge.attempt or mark.gone_at is not None:
                raise Busy(f"{ref}: another worker finished it meanwhile")
            return _Finish(site, unheld(ledger), mark, root, policy, fence=fence, now=now).step()


def _check_places(site: Site, instrument: Instrument, location: Location) -> None:
    """Check every directory that a purge passes through.

    Raises:
        Unsettled: one is not mounted. Refused: one belongs to another site.
    """
    if location.place == "staging":
        check_aside(site, instrument, "staging")
    else:
        check_bench(site, instrument, owned=True)
        check_aside(site, instrument, "trash")


# ------------------------------------------------------------------------------------------------------------ deciding


def _decide_raw(
    site: Site, instrument: Instrument, policy: Policy, now: datetime, each: Callable[[Outcome], None] | None
) -> Batch:
    """Judge every event on a system's bench; the batch as a whole may be stopped as well.

    Only the ids of those that may go are kept, and they are judged again when their turn comes.
    """
    on_bench = site.catalog.tally(instrument.name)
    if not on_bench:
        return Batch()
    if not policy.purge:
        return _stopped(instrument, Result.REFUSED, f"{instrument.name} is not among the systems to purge")
    if not _shows_event_files(instrument):
        why = f"{instrument.name} shows no event file at all: is its disk mounted?"
        return _stopped(instrument, Result.STOPPED, why)
    leaving: list[Ref] = []
    refused: list[Outcome] = []
    for ledger, verdict in _judge_all(site, site.catalog.candidates(instrument.name, "raw"), policy, now):
        if verdict.purge:
            leaving.append(ledger.ref)
        elif each is not None:
            each(report("purge", ledger, Result.REFUSED, *verdict.reasons))
        else:
            refused.append(outcome("purge", ledger, Result.REFUSED, *verdict.reasons))
    halt = retention.halt(len(leaving), present=on_bench, policy=policy)
    if halt is not None:
        return _stopped(instrument, Result.STOPPED, halt)
    return Batch(_decide_again(site, instrument, leaving, policy, now), [log_outcome(one) for one in refused])


def _judge_all(
    site: Site, ledgers: Iterable[Ledger], policy: Policy, now: datetime
) -> Iterator[tuple[Ledger, retention.Verdict]]:
    """Judge many events of one system; only those that share images with others cost a query each."""
    rest = iter(ledgers)
    while some := list(itertools.islice(rest, CHUNK)):
        site.beat()
        near = site.catalog.with_siblings([one.event for one in some])
        for ledger in some:
            yield ledger, _judge(site, ledger, policy, now, alone=ledger.ref not in near)


def _decide_again(
    site: Site, instrument: Instrument, refs: Sequence[Ref], policy: Policy, now: datetime
) -> Iterator[Decision]:
    for start in range(0, len(refs), CHUNK):
        for ledger in site.catalog.ledgers(refs=refs[start : start + CHUNK]):
            location = Location("raw", ledger.event.path, instrument.root)
            yield Decision(ledger, _judge(site, ledger, policy, now), location)


def _decide_staging(site: Site, instrument: Instrument, policy: Policy, now: datetime) -> Iterator[Decision]:
    for ledger in site.catalog.candidates(instrument.name, "staging"):
        verdict = retention.judge_staging(ledger, policy, now)
        if verdict.purge:
            yield Decision(ledger, verdict, Location("staging", str(ledger.ref), instrument.staging))


def _judge(site: Site, ledger: Ledger, policy: Policy, now: datetime, *, alone: bool = False) -> retention.Verdict:
    """Judge one event; ``alone``: it is known to share images with no other."""
    readable = site.archive is not None
    verdict = retention.judge(ledger, policy, now, readable=readable)
    if not verdict.purge:
        return verdict
    siblings = () if alone else site.catalog.siblings(ledger.event)
    return retention.judge(ledger, policy, now, siblings=siblings, readable=readable)


def _shows_event_files(instrument: Instrument) -> bool:
    """Return whether the disk shows a positive sign that it is the instrument's: an empty listing proves nothing."""
    try:
        return bool(bench.scan(instrument))
    except (Unsettled, Rejected):
        return False


def _stopped(instrument: Instrument, result: Result, reason: str) -> Batch:
    return Batch(notes=[Outcome(None, instrument.name, "purge", result, reasons=(reason,))])


def _weakness(policy: Policy) -> tuple[str, ...]:
    """List what is weaker than a copy that is read whole."""
    if policy.proof == "read":
        return ()
    return ("weaker proof: the copy is not read, only size and ETag are compared (PLATEWAY_PURGE_PROOF=head)",)


# ------------------------------------------------------------------------------------------------------------- proving


def _prove_images(site: Site, ledger: Ledger, location: Location, *, beat: Callable[[], None]) -> dict[str, Any]:
    """Prove, on the real bytes, that the bundle holds every file of a place.

    The object has the size and ETag that were verified; its own manifest, read from it now, is the recorded one; the
    files are exactly the manifest's, each with its SHA-256.

    Raises:
        Refused: with every difference. Damaged: the object is another. Unavailable, Unsettled: not now.
    """
    assert location.root is not None
    expected = _expected(site, ledger)
    with folder.enter(location.root, location.path) as images:
        files, only = images.files(), images.only
        reasons = _differences({file.name for file in files}, set(expected))
        if not reasons:
            reasons = _compare_images(images, files, expected, beat)
        print_ = folder.fingerprint(files)
        if not reasons and folder.fingerprint(images.files()) != print_:
            reasons = ["images changed while they were compared"]
    if reasons:
        raise Refused(*reasons)
    return {**proof_of(ledger), "fingerprint": print_, "files": len(files), "only": only}


def _expected(site: Site, ledger: Ledger) -> dict[str, Member]:
    """Read the manifest from inside the object; return its files by their names on the bench."""
    return {member.source or member.name: member for member in manifest_of(site, ledger).members}


def _compare_images(
    images: folder.Folder, files: Sequence[File], expected: dict[str, Member], beat: Callable[[], None]
) -> list[str]:
    """Hash files and name those that are others than the bundle's."""

    def hash_file(file: File) -> str:
        return sha256_of(beating(images.read(file), beat))

    return [
        f"{shown(file.name)} has another SHA-256 than the copy"
        for file in files
        if hash_file(file) != expected[file.name].sha256
    ]


def _differences(there: set[str], expected: set[str]) -> list[str]:
    return [
        *(f"{shown(name)} is not in the copy" for name in sorted(there - expected)),
        *(f"{shown(name)} is missing here" for name in sorted(expected - there)),
    ]


def _aside_proof(root: Path, purge: Purge) -> dict[str, Any]:
    """Build the proof of the files in the trash, with their change times, which cannot be set back."""
    with folder.enter(root, f"{purge.trash}/images") as images:
        return {"changed": _change_times(images.files())}


def _change_times(files: Iterable[File]) -> str:
    seen = hashlib.sha256()
    for file in files:
        seen.update(repr((file.name, file.inode, file.ctime_ns)).encode("utf-8", "surrogateescape"))
    return seen.hexdigest()


# ----------------------------------------------------------------------------------------------------------- finishing


class _Finish:
    """The next step of one purge, under its lease."""

    def __init__(
        self, site: Site, ledger: Ledger, purge: Purge, root: Path, policy: Policy, *, fence: int, now: datetime
    ) -> None:
        self.site, self.ledger, self.purge, self.root, self.policy = site, ledger, purge, root, policy
        self.fence, self.now = fence, now
        self.hold = Hold(site, ledger.ref, fence)

    def step(self) -> Outcome:
        """Do the next step of the purge."""
        purge = self.purge
        if "went_with" in purge.proof:
            return _remove_event_file(self.site, self.ledger, purge, fence=self.fence, now=self.now)
        if purge.trashed_at is None:
            return self._complete_move()
        if purge.removing_at is None and not folder.exists(self.root, _aside(purge)):
            return self._missing()
        if self.now - purge.trashed_at < self.policy.grace:
            return self._report(Result.TRASHED, *_weakness(self.policy))
        try:
            names, files = self._prove()
        except (Refused, Damaged) as error:
            return self._take_back(error)
        proof = {**proof_of(self.site.catalog.ledger(self.ledger.ref)), "method": self.policy.proof}
        self.site.catalog.record_removing(self.ledger.ref, purge.place, at=self.now, fence=self.fence, proof=proof)
        self.hold.renew()
        self.hold()
        folder.remove(self.root, purge.trash, names=names, expected=files)
        gone_at = max(self.now, self.site.catalog.now())
        self.site.catalog.record_gone(self.ledger.ref, purge.place, at=gone_at, fence=self.fence)
        return self._report(Result.GONE, *_weakness(self.policy))

    def _prove(self) -> tuple[list[str], list[File]]:
        """Judge and prove once more before anything is unlinked; return the files that may be, as they were hashed.

        Raises:
            Refused: with every reason. Damaged: a copy is not what was sent. Transient: it cannot be determined now.
        """
        self._judge_again()
        needed = ["bucket"] + ["archive"] * (self.purge.place == "raw" and self.policy.requires == "bucket+archive")
        assert self.purge.trashed_at is not None
        removal.prove_copies(
            self.site,
            self.ledger,
            self.policy,
            needed=needed,
            since=self.purge.trashed_at,
            beat=self.hold,
            now=self.now,
        )
        names, files = self._prove_aside()
        self.hold.renew()
        self.ledger = unheld(self.site.catalog.ledger(self.ledger.ref))  # reading takes its time
        self._judge_again()
        return names, files

    def _judge_again(self) -> None:
        """Judge by today's policy.

        Raises:
            Refused: with every reason.
        """
        if self.purge.place == "staging":
            verdict = retention.judge_staging(self.ledger, self.policy, self.now)
        else:
            verdict = _judge(self.site, self.ledger, self.policy, self.now)
        if not verdict.purge:
            raise Refused(*verdict.reasons)

    def _prove_aside(self) -> tuple[list[str], list[File]]:
        """Compare the files in the trash with the bundle, by SHA-256.

        After an interrupted removal of ours fewer files are left than were proven; each must still be one of them.

        Raises:
            Refused: files are missing, changed, or not the bundle's.
        """
        purge, there = self.purge, [EVENT_FILE] if folder.exists(self.root, f"{self.purge.trash}/{EVENT_FILE}") else []
        if not folder.exists(self.root, f"{purge.trash}/images"):
            if purge.removing_at is None:
                raise Refused("the images are not in the trash any more, and no removal of ours took them")
            return there, []
        expected = _expected(self.site, self.ledger)
        with folder.enter(self.root, f"{purge.trash}/images") as images:
            files = images.files()
            if purge.removing_at is None:
                if len(files) != purge.proof["files"] or folder.fingerprint(files) != purge.proof["fingerprint"]:
                    raise Refused("images changed after they were moved aside")
                if _change_times(files) != purge.proof.get("changed", _change_times(files)):
                    raise Refused("images were written to after they were moved aside")
            strangers = [file.name for file in files if file.name not in expected]
            if strangers:
                raise Refused(*(f"{shown(name)} is not in the copy" for name in strangers))
            reasons = _compare_images(images, files, expected, self.hold)
            if not reasons and images.files() != files:
                reasons = ["images changed while they were compared in the trash"]
        if reasons:
            raise Refused(*reasons)
        aside = [replace(file, name=f"images/{file.name}") for file in files]
        return [*(file.name for file in aside), *there], aside

    def _complete_move(self) -> Outcome:
        """Finish or withdraw an interrupted move, by what is on the disk."""
        ref, event, purge = self.ledger.ref, self.ledger.event, self.purge
        if folder.exists(self.root, _aside(purge)):
            location = Location(purge.place, _home(self.ledger, purge), self.root)
            _move_event_file(self.site.instrument(event.system), event, location, purge)
            proof = _aside_proof(self.root, purge)
            self.site.catalog.record_trashed(ref, purge.place, at=self.now, fence=self.fence, proof=proof)
            return self._report(Result.TRASHED)
        if folder.exists(self.root, _home(self.ledger, purge)):
            return self._withdraw("interrupted before anything was moved", Restored.INTERRUPTED)
        raise Unsettled(f"{event.path} is neither in its place nor in the trash: is the disk mounted?")

    def _missing(self) -> Outcome:
        """Withdraw a purge whose images are not in the trash, without a tombstone: no removal of ours took them."""
        if folder.exists(self.root, _home(self.ledger, self.purge)):
            return self._withdraw("its images are in their place, not in the trash", Restored.MISSING)
        self._withdraw("its images are neither in their place nor in the trash", Restored.MISSING)
        raise Damaged(f"{self.ledger.event.path}: its images went from the trash, and no removal of ours took them")

    def _take_back(self, error: Refused | Damaged) -> Outcome:
        """Move everything back to where it was, and report what was wrong."""
        if self.purge.removing_at is not None and "files" in self.purge.proof:
            raise error  # part of it was removed with proof: what is left stays aside until it can be proven
        _move_back(self.site, self.ledger, self.purge, self.root)
        reason = str(error)
        self._note_restored(reason, Restored.UNPROVEN)
        if isinstance(error, Damaged):
            return self._report(Result.DAMAGED, reason, "the images were moved back to their place")
        return self._report(Result.RESTORED, *error.reasons)

    def _withdraw(self, reason: str, cause: Restored) -> Outcome:
        self._note_restored(reason, cause)
        return self._report(Result.RESTORED, reason)

    def _note_restored(self, reason: str, cause: Restored) -> None:
        self.site.catalog.record_restored(
            self.ledger.ref, self.purge.place, at=self.now, reason=reason, cause=cause, fence=self.fence
        )

    def _report(self, result: Result, *reasons: str) -> Outcome:
        return report(VERB[self.purge.place], self.ledger, result, *reasons)


def take_back(site: Site, ledger: Ledger, purge: Purge, *, reason: str, cause: Restored) -> Outcome:
    """Move images that are aside and untouched back to their place, and record why.

    Raises:
        Unsettled: their removal has begun, or was not recorded yet: a purge finishes that, then a copy can be restored.
        Busy: another worker holds the event.
    """
    instrument, now = site.instrument(ledger.event.system), site.catalog.now()
    check_bench(site, instrument, owned=True)
    with leased(site, ledger.ref) as fence:
        if "went_with" in purge.proof or not folder.exists(instrument.root, _aside(purge)):
            raise Unsettled(f"{ledger.event.path}: a purge was cut off, and must finish first")
        with folder.enter(instrument.root, _aside(purge)) as images:
            if folder.fingerprint(images.files()) != purge.proof["fingerprint"]:
                raise Unsettled(f"{ledger.event.path}: its removal has begun, and must finish first")
        _move_back(site, ledger, purge, instrument.root)
        site.catalog.record_restored(ledger.ref, purge.place, at=now, reason=reason, cause=cause, fence=fence)
    return report(VERB[purge.place], ledger, Result.RESTORED, reason)


def _move_back(site: Site, ledger: Ledger, purge: Purge, root: Path) -> None:
    """Move event file and images back to where they were."""
    if folder.exists(root, f"{purge.trash}/{EVENT_FILE}"):
        folder.move(root, f"{purge.trash}/{EVENT_FILE}", to=f"{EVENTS}/{ledger.event.file}")
    folder.move(root, _aside(purge), to=_home(ledger, purge))


# ------------------------------------------------------------------------------------------------------ shared images


def _follow_sibling(site: Site, ledger: Ledger, *, fence: int, now: datetime) -> Outcome:
    """Record that the images went with another event's: announced at the same path, and the same in both copies.

    Or other ones went, that had taken their place: a later revision of this event.

    Raises:
        Refused: they are not there, and no purge of ours took them.
    """
    files = _files(site, ledger)
    for other in site.catalog.siblings(ledger.event):
        purge = other.purge("raw")
        if other.event.path != ledger.event.path or purge is None or purge.gone_at is None:
            continue
        superseded = other.ref.id == ledger.ref.id and other.ref.revision > ledger.ref.revision
        if superseded or files == _files(site, other):
            proof = {**proof_of(ledger), "went_with": str(other.ref)}
            intent = site.catalog.intend(_intent(ledger.ref, "raw", proof=proof, now=now), fence=fence)
            return _remove_event_file(site, ledger, intent, fence=fence, now=now)
    raise Refused("the images are not on the bench, and no purge of ours took them")


def _remove_event_file(site: Site, ledger: Ledger, purge: Purge, *, fence: int, now: datetime) -> Outcome:
    """Remove the event file after images that went with another event's."""
    instrument = site.instrument(ledger.event.system)
    location = Location("raw", ledger.event.path, instrument.root)
    _move_event_file(instrument, ledger.event, location, purge)
    site.catalog.record_removing(ledger.ref, "raw", at=now, fence=fence)
    folder.remove(instrument.root, purge.trash, names=[EVENT_FILE])
    site.catalog.record_gone(ledger.ref, "raw", at=now, fence=fence)
    return report("purge", ledger, Result.GONE)


def _files(site: Site, ledger: Ledger) -> set[tuple[str, str]]:
    return {(name, member.sha256) for name, member in _expected(site, ledger).items()}


def _move_event_file(instrument: Instrument, event: Event, location: Location, purge: Purge) -> None:
    """Move the event file aside with its images, if it still is the one that announced them."""
    if location.place != "raw":
        return
    try:
        announced = events.parse(read_announcement(instrument, event), instrument)
    except Rejected:
        return
    if announced.digest == event.digest:
        folder.move(instrument.root, f"{EVENTS}/{event.file}", to=f"{purge.trash}/{EVENT_FILE}")


def _intent(ref: Ref, place: str, *, proof: dict[str, Any], now: datetime) -> Purge:
    trash = f"{TRASH}/{ref}"
    return Purge(
        event_id=ref.id, revision=ref.revision, place=place, attempt=0, proof=proof, intended_at=now, trash=trash
    )


def _home(ledger: Ledger, purge: Purge) -> str:
    return ledger.event.path if purge.place == "raw" else str(ledger.ref)


def _aside(purge: Purge) -> str:
    """Return where in the trash the images lie; an event of one file gets a directory of its own for it."""
    only = purge.proof["only"]
    return f"{purge.trash}/images/{only}" if only else f"{purge.trash}/images"
