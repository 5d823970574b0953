"""Restore all files of an event, to a directory or to the instrument's disk, from whichever copies have them.

Every file is written aside, compared with the manifest's SHA-256, synced and renamed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from plateway import bundle, events, folder
from plateway.bench import EVENTS, RESERVE, TRASH, read_announcement
from plateway.bundle import Manifest, Member
from plateway.checksums import sha256_of
from plateway.errors import Conflict, Damaged, PlatewayError, Refused, Rejected, Unavailable, Unsettled
from plateway.events import Ref
from plateway.instruments import Instrument
from plateway.ledger import Ledger
from plateway.names import confined, shown
from plateway.outcome import Outcome, Restored, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.lease import Hold, leased
from plateway.pipeline.places import check_bench
from plateway.pipeline.purge import take_back
from plateway.pipeline.read import (
    Copy,
    CopySearch,
    Where,
    original_name,
    read_manifest,
    search_copies,
)
from plateway.pipeline.removal import prove_copies
from plateway.records import Event, Export, Purge

ON_REQUEST = "restored on request"
NEAR = 1 << 20  # files with at most so many bytes between them are read as one


def restore(
    site: Site,
    ref: Ref,
    *,
    to: Path | None = None,
    to_bench: bool = False,
    source: Where | None = None,
    beat: Callable[[int], None] | None = None,
) -> Outcome:
    """Restore all files of an event, to ``<to>/<ref>/`` or to their place on the instrument's disk.

    Every file is written aside, compared with the manifest's SHA-256, synced and renamed. May be repeated: right files
    that are there are kept, only missing ones are read. ``beat`` is called with the bytes restored so far.

    Raises:
        NotFound: no such event or copy. Conflict, Refused: something else is there. Busy: another worker restores it.
        Unavailable: no copy can be read now, or the disk has no room. Damaged: no copy has a good file of each.
        Rejected: the manifest names files that may not be written.
        Unsettled: the instrument's disk is not there, or the images are being removed just now.
    """
    if (to is None) == (not to_bench):
        raise ValueError("either a directory or the bench")
    started = time.monotonic()
    ledger = site.catalog.ledger(ref)
    if to is not None:
        size, told = _to_directory(site, ledger, to, source=source, beat=beat)
    else:
        size, told = _to_bench(site, ledger, source=source, beat=beat)
    result = Result.RESTORED if told else Result.RESTORED_ALREADY
    outcome = Outcome(ref, ledger.event.system, "restore", result, key=ledger.event.key, size=size, reasons=told)
    return log_outcome(Outcome(**{**vars(outcome), "seconds": time.monotonic() - started}))


def _to_directory(
    site: Site, ledger: Ledger, to: Path, *, source: Where | None, beat: Callable[[int], None] | None
) -> tuple[int, tuple[str, ...]]:
    search, export = search_copies(site, ledger, source)
    manifest = read_manifest(search, export)
    _check(manifest, export)
    folder.make(to)
    to = to.resolve()  # the operator may name a link to a directory
    told = _bring(search, manifest, to, str(ledger.ref), aside=f".{ledger.ref}.part", reserve=0, beat=beat)
    return sum(member.size for member in manifest.members), told


def _check(manifest: Manifest, export: Export) -> None:
    """Refuse a manifest that would have us write anywhere else, or read what is no file of this bundle.

    Raises:
        Rejected: names the file.
    """
    names = set()
    for member in manifest.members:
        name = original_name(member)
        confined(name)
        if name in names:
            raise Rejected(f"{shown(name)} is in the manifest twice")
        if member.size < 0 or not bundle.BLOCK <= member.offset <= export.manifest_offset - member.size:
            raise Rejected(f"{shown(name)}: {member.size} bytes at {member.offset} are not within the bundle")
        names.add(name)


def _bring(
    search: CopySearch,
    manifest: Manifest,
    root: Path,
    path: str,
    *,
    aside: str,
    reserve: int,
    beat: Callable[[int], None] | None,
) -> tuple[str, ...]:
    """Write every file of a manifest into the directory at ``path``; return the sources, and failures of others."""
    progress = _Progress(beat)
    with folder.land(root, path, aside=aside) as landing:
        missing = [member for member in manifest.members if not _there(landing, member, progress)]
        _room(root, path, needed=sum(member.size for member in missing), reserve=reserve)
        told, headers = [], bundle.header_offsets(manifest.members)
        for copy in search.copies:
            if not missing:
                break
            left = _fetch(landing, missing, copy, headers=headers, search=search, progress=progress)
            if len(left) < len(missing):
                told.append(f"{len(missing) - len(left)} of {len(manifest.members)} files from {copy}")
            missing = left
        if missing:
            raise search.failure(
                f"{len(missing)} of {len(manifest.members)} files, like {shown(original_name(missing[0]))}"
            )
    return (*told, *search.troubles) if told else ()


@dataclass
class _Progress:
    """The bytes that are there so far."""

    tell: Callable[[int], None] | None
    done: int = 0

    def add(self, size: int) -> None:
        self.done += size
        if self.tell is not None:
            self.tell(self.done)

    def counted(self, piece: bytes) -> bytes:
        self.add(len(piece))
        return piece


def _there(landing: folder.Landing, member: Member, progress: _Progress) -> bool:
    """Return whether a file is there already; other bytes in its place are refused."""
    found = landing.digest(original_name(member))
    if found is None:
        return False
    if found != member.sha256:
        raise Conflict(f"{shown(original_name(member))}: other bytes are there already (sha256 {found})")
    progress.add(member.size)
    return True


def _room(root: Path, path: str, *, needed: int, reserve: int) -> None:
    free = folder.free(root)
    if needed and free < needed + reserve:
        kept = f" and a reserve of {reserve:,}" if reserve else ""
        raise Unavailable(f"{shown(path)}: the disk has {free:,} bytes free, {needed:,} are needed{kept}")


class _Broken(Exception):
    """A copy cannot be read on."""

    def __init__(self, error: PlatewayError) -> None:
        self.error = error


class _BundleReading:
    """Part of a bundle, read forward."""

    def __init__(self, copy: Copy, start: int, end: int) -> None:
        self._at, self._rest = start, memoryview(b"")
        try:
            self._chunks = copy.open(start, end - start)
        except PlatewayError as error:
            raise _Broken(error) from error

    def modified(self, member: Member, header: int) -> int:
        """Seek to a member's bytes; return its modification time from the header at this offset, 0 if there is none."""
        for _ in self.pieces(header - self._at):
            pass
        try:
            return bundle.modified(b"".join(self.pieces(member.offset - header)))
        except Damaged:
            return 0

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes as they come."""
        end = self._at + size
        while self._at < end:
            if not self._rest:
                self._rest = memoryview(self._next(end))
            piece, self._rest = self._rest[: end - self._at], self._rest[end - self._at :]
            self._at += len(piece)
            yield bytes(piece)

    def _next(self, end: int) -> bytes:
        try:
            chunk = next(self._chunks, None)
        except PlatewayError as error:
            raise _Broken(error) from error
        if chunk is None:
            raise _Broken(Damaged(f"ends after {self._at} bytes, before {end}"))
        return chunk


def _fetch(
    landing: folder.Landing,
    wanted: Sequence[Member],
    copy: Copy,
    *,
    headers: Mapping[str, int],
    search: CopySearch,
    progress: _Progress,
) -> list[Member]:
    """Write what one copy has of some files; return those that it has not. ``headers`` are offsets by name."""
    left: list[Member] = []
    for run in _runs(wanted):
        done = 0
        try:
            reading = _BundleReading(copy, headers[run[0].name], run[-1].offset + run[-1].size)
            for member in run:
                mtime = reading.modified(member, headers[member.name])
                content = map(progress.counted, reading.pieces(member.size))
                try:
                    landing.write(original_name(member), content, sha256=member.sha256, mtime_ns=mtime * 10**9)
                except Damaged as error:  # of the member alone: what follows is read on
                    search.wrong(copy, error)
                    progress.add(-member.size)
                    left.append(member)
                done += 1
        except _Broken as broken:
            search.wrong(copy, broken.error)
            left += run[done:]
    return left


def _runs(members: Iterable[Member]) -> Iterator[list[Member]]:
    """Group files that lie so near to each other that one read for all costs least."""
    run: list[Member] = []
    for member in sorted(members, key=lambda one: one.offset):
        if run and member.offset - (run[-1].offset + run[-1].size) > NEAR:
            yield run
            run = []
        run.append(member)
    if run:
        yield run


# ----------------------------------------------------------------------------------------------------------- the bench


def _to_bench(
    site: Site, ledger: Ledger, *, source: Where | None, beat: Callable[[int], None] | None
) -> tuple[int, tuple[str, ...]]:
    """Put the images back at their path and the event file with them, and take the tombstone back."""
    event, instrument, purge = ledger.event, site.instrument(ledger.event.system), ledger.purge("raw")
    if not folder.exists(instrument.root, EVENTS):
        raise Unsettled(f"{event.system} shows no directory of event files: is its disk mounted?")
    check_bench(site, instrument, owned=True)
    if purge is not None and purge.gone_at is None:
        return 0, take_back(site, ledger, purge, reason=ON_REQUEST, cause=Restored.REQUESTED).reasons
    search, export = search_copies(site, ledger, source)
    manifest = read_manifest(search, export)
    _check(manifest, export)
    back, told = f"{TRASH}/{ledger.ref}.back", []
    if folder.exists(instrument.root, event.path):
        _only(instrument.root, event.path, manifest)
        told += ["its images were there already"] if purge else []
    else:
        landed = partial(_bring, aside=f"{back}/parts", reserve=RESERVE, beat=beat)
        told += landed(search, manifest, instrument.root, f"{back}/images") or ["brought by an earlier attempt"]
    with leased(site, ledger.ref) as fence:
        if told and not folder.exists(instrument.root, event.path):
            _whole(instrument.root, f"{back}/images", manifest)
            folder.move(instrument.root, _brought(back, event, manifest, purge), to=event.path)
        told += _announce(site, instrument, event, aside=f"{back}/parts")
        if purge is not None:
            site.catalog.record_restored(
                ledger.ref, "raw", at=site.catalog.now(), reason=ON_REQUEST, cause=Restored.REQUESTED, fence=fence
            )
    folder.remove(instrument.root, back, names=[f"images/{original_name(member)}" for member in manifest.members])
    return sum(member.size for member in manifest.members), tuple(told)


def _whole(root: Path, path: str, manifest: Manifest) -> None:
    """Check that every file is still where it was written: a repair may have removed it as a leftover.

    Raises:
        Unsettled: something is missing.
    """
    with folder.enter(root, path) as images:
        there = {(file.name, file.size) for file in images.files()}
    if there != {(original_name(member), member.size) for member in manifest.members}:
        raise Unsettled(f"{shown(path)}: changed while the event was restored")


def clear_leftover(site: Site, ref: Ref) -> None:
    """Remove what an interrupted restore to the bench left in the trash, after proving the copy it came from.

    Raises:
        Refused: the copy they came from is no proof, or there is something else among them. Busy: another worker
        holds the event. Transient: it cannot be determined now.
    """
    ledger = site.catalog.ledger(ref)
    instrument, back = site.instrument(ledger.event.system), f"{TRASH}/{ref}.back"
    check_bench(site, instrument, owned=True)
    with leased(site, ref) as fence:
        hold, now = Hold(site, ref, fence), site.catalog.now()
        needed = ["archive" if ledger.expired else "bucket"]
        prove_copies(site, ledger, instrument.policy, needed=needed, since=now, beat=hold, now=now)
        expected = {original_name(one): one.sha256 for one in read_manifest(*search_copies(site, ledger, None)).members}
        with folder.enter(instrument.root, back) as leftover:
            files = leftover.files()
            strange = [
                file.name
                for file in files
                if not file.name.startswith("parts/")
                and sha256_of(leftover.read(file)) != expected.get(file.name.removeprefix("images/"))
            ]
        if strange:
            raise Refused(*(f"{shown(name)} is not in the copy" for name in strange))
        hold.renew()
        folder.remove(instrument.root, back, names=[file.name for file in files], expected=files)


def _only(root: Path, path: str, manifest: Manifest) -> None:
    """Raise if an event's path has anything but the event's images.

    Raises:
        Refused: with every difference.
    """
    expected = {original_name(member): member.sha256 for member in manifest.members}
    with folder.enter(root, path) as images:
        found = {file.name: sha256_of(images.read(file)) for file in images.files()}
    other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if other:
        raise Refused(*(f"{path} holds something else: {shown(name)}" for name in other))


def _brought(back: str, event: Event, manifest: Manifest, purge: Purge | None) -> str:
    """Return what is to be moved to the event's path: a directory, or the one file that was announced."""
    only = event.path.rpartition("/")[2]
    alone = [original_name(member) for member in manifest.members] == [only]
    if purge is not None and "only" in purge.proof:
        alone = purge.proof["only"] is not None
    return f"{back}/images/{only}" if alone else f"{back}/images"


def _announce(site: Site, instrument: Instrument, event: Event, *, aside: str) -> list[str]:
    """Write the event file again if it parses to what was announced; return what was done, if anything."""
    digests = {one.event.digest for one in site.catalog.revisions(event.id)}
    if folder.exists(instrument.root, f"{EVENTS}/{event.file}"):
        if _digest(read_announcement(instrument, event), instrument) in digests:
            return []
        return [f"{EVENTS}/{shown(event.file)} announces something else and was left alone"]
    content = _announcement(event)
    if _digest(content, instrument) not in digests:
        return [f"{EVENTS}/{shown(event.file)} could not be written again: the catalogue knows too little of it"]
    mtime_ns = round(event.announced_at.timestamp() * 1e6) * 1000
    with folder.land(instrument.root, EVENTS, aside=aside) as landing:
        landing.write(event.file, [content], sha256=hashlib.sha256(content).hexdigest(), mtime_ns=mtime_ns)
    return []


def _digest(content: bytes, instrument: Instrument) -> str | None:
    try:
        return events.parse(content, instrument).digest
    except Rejected:
        return None


def _announcement(event: Event) -> bytes:
    """Write an event file in the current format, which has the fields of both."""
    said = {
        "ref_id": str(event.id),
        "experiment_id": event.experiment,
        "timestamp": event.timestamp.isoformat(),
        "type": event.kind,
        "system": event.system,
        "local_path": event.path,
        "img_count": event.image_count,
        "metadata": event.details,
    }
    return json.dumps(said, indent=1).encode()
