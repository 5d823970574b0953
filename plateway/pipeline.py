"""The verbs, in the order an image lives them: register, export, verify, purge.

Each has the same beats: look up, decide, do, note. Doing one twice is harmless; a crash between "do" and "note" heals
on the next run, because recovery reads only what is durable: the disk, the bucket, the catalogue.
Flows and the command line call these; nothing here knows who calls, retries or waits.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from plateway import bundle, events, folder, retention, wire
from plateway.catalog import Catalog, Ledger, Ref, Seen
from plateway.errors import (
    Busy,
    Conflict,
    Damaged,
    Misconfigured,
    NotFound,
    PlatewayError,
    Refused,
    Rejected,
    Transient,
    Unavailable,
    Unsettled,
)
from plateway.records import Event, Export, Purge
from plateway.settings import Instrument, Policy, Settings
from plateway.store import Endpoint, Store, open_store

log = logging.getLogger(__name__)

BATCH = 500  # event files read and registered in one transaction
RESERVE = 1 << 30  # bytes that staging leaves free on its disk
SCHEMA = "0.1.0a1"  # of metadata.json; the field that DLM v2 wrote
TRASH = ".plateway-trash"  # in the system's own directory: moving there is one rename
EVENTS = "events"  # where a system keeps its event files
EVENT_FILE = "event.json"  # its name in the trash


@dataclass(frozen=True)
class Line:
    """Everything the verbs work with."""

    catalog: Catalog
    store: Store
    root: Path  # the bench
    instrument: Callable[[str], Instrument]
    owner: str  # who holds the leases
    lease: timedelta = timedelta(minutes=10)

    def close(self) -> None:
        """Let go of the catalogue's connections."""
        self.catalog.close()


@dataclass(frozen=True)
class Outcome:
    """What a verb did to one event."""

    ref: Ref | None  # None: it is about a whole system, or a file that names no event
    system: str
    verb: str
    result: str
    key: str = ""
    size: int | None = None
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0


def noted(outcome: Outcome) -> Outcome:
    """Log one line for a fact, the event's id first."""
    about = "; ".join(outcome.reasons) or outcome.key
    log.info("%s %s: %s %s: %s", outcome.ref or "-", outcome.system, outcome.verb, outcome.result, about)
    return outcome


@dataclass(frozen=True)
class Registered:
    """What one pass over the bench found."""

    new: tuple[Ref, ...] = ()
    sealed: tuple[Ref, ...] = ()  # complete and settled in this pass
    waiting: int = 0
    quarantined: tuple[Outcome, ...] = ()
    troubled: tuple[Outcome, ...] = ()  # systems whose disk could not be looked at
    settles_in: timedelta | None = None  # look again then: something is about to be complete


def open_line(
    settings: Settings, *, store: Store | None = None, instruments: Mapping[str, Instrument] | None = None
) -> Line:
    """Put the line together; ``store`` and ``instruments`` (from blocks) go before what the settings say."""
    named = instruments or {}
    return Line(
        catalog=Catalog(settings.catalog_url),
        store=store or open_store(settings.bucket_url, endpoint(settings)),
        root=settings.root,
        instrument=lambda system: named.get(system) or settings.instrument(system),
        owner=f"{socket.gethostname()}:{os.getpid()}",
        lease=settings.lease,
    )


def endpoint(settings: Settings) -> Endpoint:
    """The S3 endpoint that the settings name."""
    return Endpoint(
        url=settings.endpoint_url,
        access_key_id=settings.access_key_id,
        secret_access_key=settings.secret_access_key,
        session_token=settings.session_token,
        region=settings.region,
    )


def each(
    verb: Callable[[Line, Ref], Outcome], line: Line, refs: Iterable[Ref], *, workers: int = 1
) -> Iterator[Outcome]:
    """Run a verb over many events, a few at a time; one that fails becomes an outcome and stops nobody."""

    def attempt(ref: Ref) -> Outcome:
        try:
            return verb(line, ref)
        except PlatewayError as error:
            return failed(line, ref, name, error)

    name = getattr(verb, "func", verb).__name__
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(attempt, refs)


def failed(line: Line, ref: Ref, verb: str, error: PlatewayError) -> Outcome:
    """Tell of a failure as an outcome: ``later`` where waiting may help."""
    try:
        event = line.catalog.get(ref)
    except NotFound:
        return Outcome(ref, "", verb, "failed", reasons=(str(error),))
    result = "later" if isinstance(error, Transient) else "failed"
    return Outcome(ref, event.system, verb, result, key=event.key, reasons=(str(error),))


# ---------------------------------------------------------------------------------------------------------- register


def register(line: Line, *, now: datetime | None = None) -> Registered:
    """Pass once over the bench: read what is announced and new, and seal what is complete and has settled.

    The cost grows with what is new or waiting, not with what is known. One bad file or system never stops the others.
    """
    now = now or line.catalog.now()
    passes = [_register(line, line.instrument(name), now) for name in events.systems(line.root)]
    soon = [one.settles_in for one in passes if one.settles_in is not None]
    return Registered(
        new=tuple(ref for one in passes for ref in one.new),
        sealed=tuple(ref for one in passes for ref in one.sealed),
        waiting=sum(one.waiting for one in passes),
        quarantined=tuple(outcome for one in passes for outcome in one.quarantined),
        troubled=tuple(outcome for one in passes for outcome in one.troubled),
        settles_in=min(soon, default=None),
    )


def _register(line: Line, instrument: Instrument, now: datetime) -> Registered:
    try:
        new, refused, young = _announced(line, instrument, now)
    except (Transient, Rejected) as error:  # the disk of this system; the others go on
        return Registered(troubled=(Outcome(None, instrument.name, "register", "later", reasons=(str(error),)),))
    sealed, rejected, settling, waiting = _settled(line, instrument, now)
    soon = [instrument.settle] * bool(young) + settling
    return Registered(
        new=tuple(new),
        sealed=tuple(sealed),
        waiting=waiting + young,
        quarantined=(*refused, *rejected),
        settles_in=min(soon, default=None),
    )


def _announced(line: Line, instrument: Instrument, now: datetime) -> tuple[list[Ref], list[Outcome], int]:
    """Read the event files that are new or changed; say which events are new, what was refused, what is too young."""
    known = line.catalog.known(instrument.name)
    fresh = [one for one in events.scan(instrument) if known.get(one.name) != (one.size, one.mtime_ns)]
    new: list[Ref] = []
    refused: list[Outcome] = []
    young = 0
    for start in range(0, len(fresh), BATCH):
        seen = [_read(instrument, sighting, now) for sighting in fresh[start : start + BATCH]]
        settled = [one for one in seen if one is not None]
        young += len(seen) - len(settled)
        new += [ref for ref, _ in line.catalog.register(instrument.name, settled, now=now)]
        refused += [
            noted(Outcome(None, instrument.name, "register", "quarantined", key=one.file, reasons=(one.reason,)))
            for one in settled
            if one.reason is not None
        ]
    return new, refused, young


def _read(instrument: Instrument, sighting: events.Sighting, now: datetime) -> Seen | None:
    """Read one event file; None when it is still being written or cannot be read right now."""
    announced = datetime.fromtimestamp(sighting.mtime_ns / 1e9, UTC)
    seen = Seen(sighting.name, sighting.size, sighting.mtime_ns, announced_at=announced, content=b"", event=None)
    try:
        seen = replace(seen, content=events.read(instrument, sighting))
        return replace(seen, event=events.parse(seen.content, instrument))
    except Unsettled:
        return None
    except Rejected as error:
        return None if abs(now - announced) < instrument.settle else replace(seen, reason=str(error))


def _settled(
    line: Line, instrument: Instrument, now: datetime
) -> tuple[list[Ref], list[Outcome], list[timedelta], int]:
    """Look at the images of every event that is not complete yet."""
    sealed: list[Ref] = []
    rejected: list[Outcome] = []
    settling: list[timedelta] = []
    looks: list[tuple[Ref, str | None, int | None]] = []
    waiting = 0
    for event in line.catalog.unsettled(instrument.name):
        ref = Ref(event.id, event.revision)
        try:
            look = _look(instrument, event)
            wait = _settle(event, look, instrument, now)
            if wait == timedelta(0):
                _check(instrument, event)
        except Rejected as error:
            line.catalog.quarantine(ref, str(error), _announcement(instrument, event), now=now)
            why = (str(error),)
            rejected.append(noted(Outcome(ref, event.system, "register", "quarantined", key=event.key, reasons=why)))
            continue
        if (look.fingerprint, look.present) != (event.fingerprint, event.present):
            looks.append((ref, look.fingerprint, look.present))
        if wait == timedelta(0):
            sealed.append(ref)
            continue
        waiting += 1
        settling += [wait] * (wait is not None)  # type: ignore[list-item]
    line.catalog.look_all(looks, now=now)
    line.catalog.seal(sealed, now=now)
    return sealed, rejected, settling, waiting


def _announcement(instrument: Instrument, event: Event) -> bytes:
    """Read an event's own file again; nothing when it is gone."""
    try:
        with folder.enter(instrument.root, f"{EVENTS}/{event.file}") as place:
            return b"".join(chunk for file in place.files() for chunk in place.read(file))
    except (Rejected, Unsettled):
        return b""


@dataclass(frozen=True)
class Look:
    """What lay in an image directory at one moment."""

    fingerprint: str | None  # None: there is no such directory yet
    present: int | None


def _look(instrument: Instrument, event: Event) -> Look:
    try:
        with folder.enter(instrument.root, event.path) as images:
            files = images.files()
            return Look(folder.fingerprint(files), events.images(files, instrument.patterns))
    except Unsettled:
        return Look(None, None)


def _check(instrument: Instrument, event: Event) -> None:
    """Refuse images whose own metadata.json is none; not earlier than now, for it may have been half written."""
    with suppress(Unsettled), folder.enter(instrument.root, event.path) as images:
        _sidecar(images, images.files())


def _settle(event: Event, look: Look, instrument: Instrument, now: datetime) -> timedelta | None:
    """Decide how long to wait for an event: zero means complete, None means for longer than it pays to stay.

    Raises:
        Rejected: more images than announced, or still too few when the deadline has passed.
    """
    unchanged = look.fingerprint is not None and look.fingerprint == event.fingerprint
    since = now - event.fingerprint_at if unchanged and event.fingerprint_at is not None else timedelta(0)
    calm = look.fingerprint is not None and since >= instrument.settle
    if look.present == event.image_count:
        return timedelta(0) if calm else instrument.settle - since
    if look.present is not None and look.present > event.image_count and calm:
        raise Rejected(f"{look.present} of {event.image_count} images present")
    if now - event.waiting_since >= instrument.deadline:
        there = "no images" if look.present is None else f"{look.present} of {event.image_count} images"
        raise Rejected(f"{there} present after {instrument.deadline}")
    return None if calm or look.fingerprint is None else instrument.settle


# ------------------------------------------------------------------------------------------------------------ export


def due(line: Line, verb: str, *, now: datetime | None = None, limit: int = 1000) -> list[Ref]:
    """Name the events that wait for ``export`` or ``verify``, oldest first."""
    return line.catalog.due(verb, now=now or line.catalog.now(), limit=limit)


def export(line: Line, ref: Ref, *, force: bool = False, beat: Callable[[int], None] | None = None) -> Outcome:
    """Stream an event's bundle into the bucket and note what was sent; the evidence comes later, from ``verify``.

    ``beat`` is told the bytes sent so far. With ``force`` an export that is not known to be damaged is sent again.

    Raises:
        Transient, Permanent: why this event could not be exported; noted as a setback, with the time of the next try.
    """
    started = time.monotonic()
    event, sent = line.catalog.found(ref)
    outcome = partial(Outcome, ref, event.system, "export", key=event.key)
    if _sent(sent) and not force:
        return outcome("exported already", size=sent.size)
    try:
        packed = _carry(line, ref, force=force, beat=beat)
    except Busy as error:
        return outcome("busy", reasons=(str(error),))
    except Conflict as error:
        return noted(outcome("conflict", reasons=(str(error),), seconds=time.monotonic() - started))
    except PlatewayError as error:
        _set_back(line, ref, "export", error)
        raise
    if packed is None:
        return outcome("exported already")
    return noted(outcome("exported", size=packed.size, seconds=time.monotonic() - started))


def _carry(line: Line, ref: Ref, *, force: bool, beat: Callable[[int], None] | None) -> bundle.Packed | None:
    """Send and note one event under its lease; None when somebody else was quicker."""
    fence = line.catalog.lease(ref, owner=line.owner, ttl=line.lease, now=line.catalog.now())
    packed = None
    try:
        event, sent = line.catalog.found(ref)  # again: until now nobody was kept from exporting it
        if force or not _sent(sent):
            packed = _send(line, event, sent, force=force, beat=_Beat(line, ref, fence, beat))
            line.catalog.note_export(_row(line, event, packed), fence=fence)  # and lets the event go
    except BaseException:
        line.catalog.release(ref, fence=fence)
        raise
    if packed is None:
        line.catalog.release(ref, fence=fence)
    return packed


def _set_back(line: Line, ref: Ref, verb: str, error: PlatewayError) -> None:
    row = line.catalog.set_back(ref, verb, reason=str(error), now=line.catalog.now())
    log.warning("%s %s failed (attempt %d, next %s): %s", ref, verb, row.attempt, row.next_at.isoformat(), error)


def _sent(export: Export | None) -> TypeGuard[Export]:
    """Say whether an upload is noted, and as far as anybody knows still good."""
    return export is not None and export.damage is None


class _There(Exception):
    """The very same bytes are in the bucket already; the upload is given up just before it would be complete."""


class _Beat:
    """Renew the lease now and then while bytes flow, and pass on how many there were."""

    def __init__(self, line: Line, ref: Ref, fence: int, tell: Callable[[int], None] | None) -> None:
        self.renew = partial(line.catalog.renew, ref, fence=fence, ttl=line.lease)
        self.now, self.pause = line.catalog.now, line.lease.total_seconds() / 3
        self.next, self.tell = time.monotonic() + self.pause, tell

    def __call__(self, sent: int) -> None:
        if time.monotonic() >= self.next:
            self.renew(now=self.now())
            self.next = time.monotonic() + self.pause
        if self.tell is not None:
            self.tell(sent)


@contextmanager
def _leased(line: Line, ref: Ref) -> Iterator[int]:
    fence = line.catalog.lease(ref, owner=line.owner, ttl=line.lease, now=line.catalog.now())
    try:
        yield fence
    finally:
        line.catalog.release(ref, fence=fence)


def _send(line: Line, event: Event, sent: Export | None, *, force: bool, beat: Callable[[int], None]) -> bundle.Packed:
    """Stream the bundle to its key; the last look, at source and bucket, comes after its last byte was hashed."""
    instrument = line.instrument(event.system)
    root, path = _source(line, event, instrument)
    with folder.enter(root, path) as images:
        files = images.files()
        on_bench = instrument.staging is None and not force  # by force, the images are taken as they are now
        _complete(line, event, files, instrument, sealed=event.fingerprint if on_bench else None)

        def seal(packed: bundle.Packed) -> None:
            if folder.fingerprint(images.files()) != folder.fingerprint(files):
                raise Unsettled(f"{event.path}: images changed while they were exported")
            _allow(line, event, packed, recorded=sent, force=force)

        layout = bundle.plan(files, _head(event, _sidecar(images, files)))
        packing = bundle.Packing(layout, images.read, seal=seal, beat=beat)
        tags = {"event-id": str(event.id), "event-revision": str(event.revision), "announcement": event.digest}
        with suppress(_There):
            line.store.put(event.key, packing, size=layout.size, part_size=layout.part_size, metadata=tags)
        return packing.packed


def _source(line: Line, event: Event, instrument: Instrument) -> tuple[Path, str]:
    """Say where to read the images: on the bench, or from a verified staging copy, made now if need be."""
    if instrument.staging is None:
        return instrument.root, event.path
    ref = Ref(event.id, event.revision)
    target = instrument.staging / str(ref)
    if event.staged_at is None or not target.exists():
        _room(line, instrument, event)
        folder.copy(instrument.root, event.path, target=target)
        line.catalog.stage(ref, now=line.catalog.now())
    return instrument.staging, str(ref)


def _room(line: Line, instrument: Instrument, event: Event) -> None:
    assert instrument.staging is not None
    with folder.enter(instrument.root, event.path) as images:
        files = images.files()
    _complete(line, event, files, instrument, sealed=event.fingerprint)
    needed = sum(file.size for file in files)
    free = folder.free(instrument.staging.parent)  # which must be there: it may be a mount
    if free < needed + RESERVE:
        raise Unavailable(
            f"staging has {free:,} bytes free, {event.path} needs {needed:,} and a reserve of {RESERVE:,}"
        )


def _complete(
    line: Line, event: Event, files: Sequence[folder.File], instrument: Instrument, *, sealed: str | None
) -> None:
    """Send an event back to waiting when its images are not those that were complete: ``sealed`` is what they were."""
    present = events.images(files, instrument.patterns)
    if present == event.image_count and sealed in {None, folder.fingerprint(files)}:
        return
    line.catalog.unseal(Ref(event.id, event.revision), now=line.catalog.now())
    if present == event.image_count:
        raise Unsettled(f"{event.path}: images changed since they were complete")
    raise Unsettled(f"{event.path}: {present} of {event.image_count} images present")


def _sidecar(images: folder.Folder, files: Sequence[folder.File]) -> dict[str, Any]:
    """Read the metadata.json among the images, if there is one."""
    for file in files:
        if file.name in {"metadata.json", "Img/metadata.json"}:
            try:
                return events.sidecar(b"".join(images.read(file)))
            except Rejected as error:
                raise Rejected(f"{file.name}: {error}") from error
    return {}


def _head(event: Event, sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Write what metadata.json says of the event, in the fields of DLM v2."""
    return {
        "ref_id": str(event.id),
        "experiment_id": event.experiment,
        "timestamp": event.timestamp.isoformat().replace("+00:00", "Z"),
        "type": event.kind,
        "system": event.system,
        "schema_version": SCHEMA,
        "metadata": {**sidecar, **event.details},
    }


def _allow(line: Line, event: Event, packed: bundle.Packed, *, recorded: Export | None, force: bool) -> None:
    """Decide, before an upload is completed, whether these bytes may be at that key.

    Raises:
        _There: they are there already.
        Conflict: other bytes are recorded there, or lie there unrecorded; the event goes on under another key.
    """
    ref = Ref(event.id, event.revision)
    if recorded is not None and recorded.sha256 != packed.sha256:
        digest = hashlib.sha256(f"{event.digest}:{packed.sha256}".encode()).hexdigest()
        heir = line.catalog.revise(ref, digest=digest, now=line.catalog.now())
        raise Conflict(f"{event.key} holds the earlier content of these images; the new content is {heir}")
    found = line.store.stat(event.key)
    if found is None:
        return
    if found.size == packed.size and (
        found.etag == packed.etag or _digest(line.store.open(event.key)) == packed.sha256
    ):
        if force:
            return
        raise _There
    if recorded is None:
        raise Conflict(
            f"{event.key} holds other bytes that nobody recorded; the event goes to {line.catalog.rekey(ref)}"
        )


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _row(line: Line, event: Event, packed: bundle.Packed) -> Export:
    return Export(
        event_id=event.id,
        revision=event.revision,
        bucket=line.store.name,
        key=event.key,
        size=packed.size,
        sha256=packed.sha256,
        etag=packed.etag,
        part_size=packed.part_size,
        member_count=packed.member_count,
        manifest_offset=packed.manifest_offset,
        manifest_size=packed.manifest_size,
        manifest_sha256=packed.manifest_sha256,
        uploaded_at=line.catalog.now(),
    )


def sweep(line: Line, *, now: datetime | None = None) -> list[Outcome]:
    """Abort the multipart uploads that our own dead exports left open: known key, older than a lease, nobody at it."""
    now = now or line.catalog.now()
    stale = [upload for upload in line.store.uploads() if now - upload.initiated > line.lease]
    keys = tuple({upload.key for upload in stale})
    ours = {ledger.event.key: ledger for ledger in line.catalog.ledgers(keys=keys)} if stale else {}
    outcomes = []
    for upload in stale:
        ledger = ours.get(upload.key)
        if ledger is not None and not ledger.held(now):
            line.store.abort(upload)
            outcomes.append(Outcome(ledger.ref, ledger.event.system, "sweep", "aborted", key=upload.key))
    return outcomes


# ------------------------------------------------------------------------------------------------------------ verify


def verify(line: Line, ref: Ref, *, read_back: bool = False) -> Outcome:
    """Look at what arrived, by another way than it was sent, and note the evidence or the damage.

    Size and ETag are compared with what the sent bytes must have. Where an endpoint's ETag is no MD5 of the parts, or
    with ``read_back``, the object is read, its tar walked and every SHA-256 compared.

    Raises:
        NotFound: it was never exported.
        Transient: the bucket cannot be asked right now; noted as a setback.
    """
    started = time.monotonic()
    ledger = line.catalog.ledger(ref)
    export = ledger.export
    if export is None:
        raise NotFound(f"{ref} is not exported yet")
    outcome = partial(Outcome, ref, ledger.event.system, "verify", key=export.key, size=export.size)
    try:
        _at_hand(line, export)
        kind, etag = _look_at(line.store, export, read_back=read_back)
    except Damaged as error:
        _damage(line, export, str(error))
        return noted(outcome("damaged", reasons=(str(error),), seconds=time.monotonic() - started))
    except PlatewayError as error:
        _set_back(line, ref, "verify", error)
        raise
    line.catalog.note_evidence(
        ref,
        kind=kind,
        at=line.catalog.now(),
        seen_etag=etag,
        sha256=export.sha256,
        uploaded_at=export.uploaded_at,
        read_back=kind == "read-back",
    )
    return noted(outcome("verified", reasons=(kind,), seconds=time.monotonic() - started))


def sample(line: Line, budget: int, *, now: datetime | None = None) -> list[Ref]:
    """Name the exports whose turn it is to be read back: longest unread first, within a budget of bytes per day."""
    return line.catalog.sample(budget=budget, now=now or line.catalog.now())


def _look_at(store: Store, export: Export, *, read_back: bool) -> tuple[str, str]:
    """Return the kind of evidence the object gives and its ETag.

    Raises:
        Damaged: ``lost: …`` or ``changed: …``.
    """
    found = store.stat(export.key)
    if found is None:
        raise Damaged(f"lost: nothing at {export.key}")
    if found.size != export.size:
        raise Damaged(f"changed: {export.key} has {found.size:,} bytes, {export.size:,} were sent")
    if found.etag == export.etag and not read_back:
        return "etag", found.etag
    try:
        walked = bundle.walk(store.open(export.key))
    except (Damaged, NotFound) as error:
        raise Damaged(f"changed: {export.key}: {error}") from error
    if walked.sha256 != export.sha256:
        raise Damaged(f"changed: {export.key} has another SHA-256 than was sent")
    after = store.stat(export.key)
    if after is None or after.etag != found.etag:
        raise Unavailable(f"{export.key} was replaced while it was read back")
    return "read-back", found.etag


def _damage(line: Line, export: Export, damage: str) -> None:
    ref = Ref(export.event_id, export.revision)
    now = line.catalog.now()
    line.catalog.note_damage(ref, damage=damage, at=now, sha256=export.sha256, uploaded_at=export.uploaded_at)


# ------------------------------------------------------------------------------------------------------------- purge


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
    with _leased(line, ref):
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
            proof = {**_evidence(ledger), "went_with": str(other.ref)}
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
    return {(member.source or member.name, member.sha256) for member in _manifest(line, ledger).members}


def _move_event_file(instrument: Instrument, event: Event, place: Place, purge: Purge) -> None:
    """Let the event file go with its images, if it still is the one that announced them."""
    if place.name != "raw":
        return
    try:
        announced = events.parse(_announcement(instrument, event), instrument)
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
    with _leased(line, ledger.ref):
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
    manifest = _manifest(line, ledger)
    expected = {member.source or member.name: member for member in manifest.members}
    with folder.enter(place.root, place.path) as images:
        files, only = images.files(), images.only
        reasons = _differences({file.name for file in files}, set(expected))
        if not reasons:
            reasons = [
                f"{folder.shown(file.name)} has another SHA-256 than the copy"
                for file in files
                if _digest(images.read(file)) != expected[file.name].sha256
            ]
        print_ = folder.fingerprint(files)
        if not reasons and folder.fingerprint(images.files()) != print_:
            reasons = ["images changed while they were compared"]
    if reasons:
        raise Refused(*reasons)
    return {**_evidence(ledger), "fingerprint": print_, "files": len(files), "only": only}


def _evidence(ledger: Ledger) -> dict[str, Any]:
    """Say what a tombstone keeps of the copy that made the purge possible."""
    assert ledger.export is not None
    kept = {"bucket", "key", "size", "sha256", "evidence", "evidence_at", "seen_etag", "manifest_sha256"}
    return ledger.export.model_dump(mode="json", include=kept)


def _prove_again(line: Line, ledger: Ledger, purge: Purge, root: Path) -> list[str]:
    """Prove once more before anything is unlinked; return the names of what may be, relative to the trash.

    After an interrupted removal fewer files are left than were proven; each must still be one of them.
    """
    manifest = _manifest(line, ledger)
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


def _manifest(line: Line, ledger: Ledger) -> bundle.Manifest:
    """Read the manifest from inside the object, which must be the one that was verified.

    Raises:
        Refused: the object is not the one recorded; noted as damage.
    """
    export = ledger.export
    assert export is not None
    _at_hand(line, export)
    try:
        found = line.store.stat(export.key)
        if found is None:
            raise Damaged(f"lost: nothing at {export.key}")
        if (found.size, found.etag) != (export.size, export.seen_etag):
            raise Damaged(f"changed: {export.key} is not the object that was verified")
        return _read_manifest(line, export)
    except Damaged as error:
        _damage(line, export, str(error))
        raise Refused(f"bucket copy {error}") from error


def _read_manifest(line: Line, export: Export) -> bundle.Manifest:
    """Read the manifest from inside an object, and note nothing.

    Raises:
        NotFound: there is no object. Damaged: it holds another manifest than was sent.
    """
    content = b"".join(line.store.open(export.key, start=export.manifest_offset, length=export.manifest_size))
    if hashlib.sha256(content).hexdigest() != export.manifest_sha256:
        raise Damaged(f"changed: {export.key} holds another manifest than was sent")
    return bundle.read_manifest(content)


def _at_hand(line: Line, export: Export) -> None:
    """Refuse to look for an export in a bucket that it was never sent to: what is not there is not lost.

    Raises:
        Misconfigured: names both buckets.
    """
    if export.bucket != line.store.name:
        raise Misconfigured(f"{export.key} is in bucket {export.bucket}, and the settings name {line.store.name}")


def _differences(there: set[str], expected: set[str]) -> list[str]:
    return [
        *(f"{folder.shown(name)} is not in the copy" for name in sorted(there - expected)),
        *(f"{folder.shown(name)} is missing here" for name in sorted(expected - there)),
    ]


# ------------------------------------------------------------------------------------------------------------- status


def status(line: Line, ledger: Ledger) -> wire.EventStatus:
    """Tell where one event stands."""
    return wire.EventStatus(**_told(line, ledger))


def detail(line: Line, ledger: Ledger) -> wire.EventDetail:
    """Tell all that is known of one event, with the manifest as it lies in the bucket."""
    manifest, error = None, None
    if ledger.export is not None:
        try:
            _at_hand(line, ledger.export)
            members = _read_manifest(line, ledger.export).members
            manifest = [wire.ManifestFile(**asdict(member)) for member in members]
        except PlatewayError as problem:
            error = str(problem)
    rows = {
        "event": ledger.event.model_dump(mode="json"),
        "export": ledger.export and ledger.export.model_dump(mode="json"),
        "archives": [row.model_dump(mode="json") for row in ledger.archives],
        "purges": [row.model_dump(mode="json") for row in ledger.purges],
        "quarantine": ledger.quarantine and ledger.quarantine.model_dump(mode="json", exclude={"content"}),
        "setbacks": [row.model_dump(mode="json") for row in ledger.setbacks],
        "lease": ledger.lease and ledger.lease.model_dump(mode="json"),
    }
    return wire.EventDetail(**_told(line, ledger), manifest=manifest, manifest_error=error, ledger=rows)


def told(outcome: Outcome) -> dict[str, Any]:
    """Say an outcome in words that JSON and tables take."""
    facts = {field: value for field, value in vars(outcome).items() if field != "ref"}
    return {"id": str(outcome.ref) if outcome.ref else None, **facts}


def _told(line: Line, ledger: Ledger) -> dict[str, Any]:
    event, export = ledger.event, ledger.export
    stands = ledger.state(line.catalog.now())
    verified = export.evidence_at if export else None
    return {
        "id": event.id,
        "revision": event.revision,
        "system": event.system,
        "kind": event.kind,
        "experiment": event.experiment,
        "plate": event.plate,
        "timestamp": event.timestamp,
        "state": stands.name,
        "reasons": list(stands.reasons),
        "conflict": ledger.conflict,
        "bucket": export.bucket if export else None,
        "key": event.key,
        "size": export.size if export else None,
        "sha256": export.sha256 if export else None,
        "evidence": export.evidence if export else None,
        "announced_at": event.announced_at,
        "verified_at": verified,
        "seconds": (verified - event.announced_at).total_seconds() if verified else None,
        "raw_present": _present(line, event),
    }


def _present(line: Line, event: Event) -> bool:
    try:
        return folder.exists(line.instrument(event.system).root, event.path)
    except PlatewayError:
        return False
