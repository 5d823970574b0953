"""Find what instruments announced: read new event files, and seal what is complete and has settled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from plateway import bench, events, folder
from plateway.bench import EVENTS, read_announcement, read_sidecar
from plateway.errors import (
    PlatewayError,
    Rejected,
    Transient,
    Unsettled,
)
from plateway.events import Ref
from plateway.instruments import Instrument
from plateway.isolation import PATIENCE, Beat, run_apart
from plateway.ledger import Seen
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.places import check_bench, check_root, list_unmounted
from plateway.records import Event

BATCH = 500  # event files read and registered in one transaction
Scan = Callable[..., list[bench.Sighting]]


@dataclass(frozen=True)
class Registered:
    """What one pass over the bench found."""

    new: tuple[Ref, ...] = ()
    sealed: tuple[Ref, ...] = ()  # complete and settled in this pass
    waiting: int = 0
    quarantined: tuple[Outcome, ...] = ()
    troubled: tuple[Outcome, ...] = ()  # systems whose disk could not be read
    settles_in: timedelta | None = None  # look again then: something is about to be complete


def register(
    site: Site, *, now: datetime | None = None, patience: timedelta = PATIENCE, scan: Scan = bench.scan
) -> Registered:
    """Pass once over the bench: read what is announced and new, and seal what is complete and has settled.

    The cost grows with what is new or waiting, not with what is known. One bad file or system never stops the others:
    systems are passed over at once, and one whose disk does not answer for ``patience`` is ``later``. A known system
    whose directory is a link now is not followed, and ``later`` as well.
    """
    now = now or site.catalog.now()
    check_root(site)
    present = bench.list_systems(site.root)
    names = [
        *present,
        *list_unmounted(site, present),
        *(name for name in bench.list_links(site.root) if site.catalog.known(name)),
    ]
    acts = {name: partial(_register, site, site.instrument(name), now, scan) for name in names}
    found = run_apart(f"register {site.root}", acts, patience=patience)
    site.catalog.refresh()  # also where nobody reads the counts, so that what is marked does not grow
    passes = [_troubled(name, one) if isinstance(one, PlatewayError) else one for name, one in found.items()]
    soon = [one.settles_in for one in passes if one.settles_in is not None]
    return Registered(
        new=tuple(ref for one in passes for ref in one.new),
        sealed=tuple(ref for one in passes for ref in one.sealed),
        waiting=sum(one.waiting for one in passes),
        quarantined=tuple(outcome for one in passes for outcome in one.quarantined),
        troubled=tuple(outcome for one in passes for outcome in one.troubled),
        settles_in=min(soon, default=None),
    )


def _troubled(system: str, error: PlatewayError) -> Registered:
    """Report what is wrong with the disk of a system; another error rises."""
    if not isinstance(error, Transient | Rejected):
        raise error
    return Registered(troubled=(Outcome(None, system, "register", Result.LATER, reasons=(str(error),)),))


def _register(site: Site, instrument: Instrument, now: datetime, scan: Scan, beat: Beat) -> Registered:
    check_bench(site, instrument)
    new, refused, young = _announced(site, instrument, now, scan=scan, beat=beat)
    sealed, rejected, settling, waiting = _settled(site, instrument, now, beat=beat)
    soon = [instrument.settle] * bool(young) + settling
    return Registered(
        new=tuple(new),
        sealed=tuple(sealed),
        waiting=waiting + young,
        quarantined=(*refused, *rejected),
        settles_in=min(soon, default=None),
    )


def _announced(
    site: Site, instrument: Instrument, now: datetime, *, scan: Scan, beat: Beat
) -> tuple[list[Ref], list[Outcome], int]:
    """Read new and changed event files; return new events, refused files, and those that are too young."""
    known = site.catalog.known(instrument.name)
    found = scan(instrument, known=known, beat=beat)  # names that are not UTF-8 are known by another spelling
    fresh = [one for one in found if known.get(one.name) != (one.size, one.mtime_ns)]
    new: list[Ref] = []
    refused: list[Outcome] = []
    young = 0
    for start in range(0, len(fresh), BATCH):
        seen = [_read(instrument, sighting, now, beat) for sighting in fresh[start : start + BATCH]]
        settled = [one for one in seen if one is not None]
        young += len(seen) - len(settled)
        beat()
        new += [ref for ref, _ in site.catalog.register(instrument.name, settled, now=now, layout=instrument.layout)]
        refused += [
            _quarantined(None, instrument.name, one.file, one.reason) for one in settled if one.reason is not None
        ]
    return new, refused, young


def _read(instrument: Instrument, sighting: bench.Sighting, now: datetime, beat: Beat) -> Seen | None:
    """Read one event file; None when it is still being written or cannot be read right now."""
    beat()
    announced = datetime.fromtimestamp(sighting.mtime_ns / 1e9, UTC)
    seen = Seen(sighting.name, sighting.size, sighting.mtime_ns, announced_at=announced, content=b"", event=None)
    try:
        seen = replace(seen, content=bench.read_event_file(instrument, sighting))
        return replace(seen, event=events.parse(seen.content, instrument))
    except Unsettled:
        return None
    except Rejected as error:
        patience = instrument.deadline if bench.in_progress(sighting.name) else instrument.settle
        return None if abs(now - announced) < patience else replace(seen, reason=str(error))


def _settled(
    site: Site, instrument: Instrument, now: datetime, *, beat: Beat
) -> tuple[list[Ref], list[Outcome], list[timedelta], int]:
    """Inspect the images of every event that is not complete yet."""
    sealed: list[Ref] = []
    rejected: list[Outcome] = []
    settling: list[timedelta] = []
    looks: list[tuple[Ref, str | None, int | None, int | None]] = []
    waiting = 0
    for event in site.catalog.unsettled(instrument.name):
        ref = Ref(event.id, event.revision)
        try:
            look = _look(instrument, event, beat)
            wait = _settle(event, look, instrument, now)
            if wait == timedelta(0):
                _check(instrument, event)
        except Rejected as error:
            folder.exists(instrument.root, EVENTS)  # a link in place of the disk is no fault of the event
            content = read_announcement(instrument, event)
            beat()
            site.catalog.quarantine(ref, str(error), content, now=now)
            rejected.append(_quarantined(ref, event.system, event.key, str(error)))
            continue
        if (look.fingerprint, look.present) != (event.fingerprint, event.present):
            looks.append((ref, look.fingerprint, look.present, look.size))
        if wait == timedelta(0):
            sealed.append(ref)
            continue
        waiting += 1
        settling += [wait] * (wait is not None)  # type: ignore[list-item]
    beat()
    site.catalog.look_all(looks, now=now)
    site.catalog.seal(sealed, now=now)
    return sealed, rejected, settling, waiting


def _quarantined(ref: Ref | None, system: str, key: str, reason: str) -> Outcome:
    return log_outcome(Outcome(ref, system, "register", Result.QUARANTINED, key=key, reasons=(reason,)))


@dataclass(frozen=True)
class Look:
    """What lay in an image directory at one moment."""

    fingerprint: str | None  # None: there is no such directory yet
    present: int | None
    ignored: int = 0  # files that are passed over by their name
    size: int | None = None  # bytes of all files


def _look(instrument: Instrument, event: Event, beat: Beat) -> Look:
    beat()
    try:
        with folder.enter(instrument.root, event.path) as images:
            files = images.files(beat=beat)
            present = bench.count_images(files, instrument.patterns, instrument.ignored)
            ignored, size = bench.count_ignored(files, instrument.ignored), sum(file.size for file in files)
            return Look(folder.fingerprint(files), present, ignored, size)
    except Unsettled:
        return Look(None, None)


def _check(instrument: Instrument, event: Event) -> None:
    """Refuse images whose own metadata.json is none; not earlier than now, for it may have been half written."""
    with suppress(Unsettled), folder.enter(instrument.root, event.path) as images:
        read_sidecar(images, images.files())


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
    passed_over = f"; {look.ignored} more ignored (PLATEWAY_IGNORE)" if look.ignored else ""
    if look.present is not None and look.present > event.image_count and calm:
        raise Rejected(f"{look.present} of {event.image_count} images present{passed_over}")
    if now - event.waiting_since >= instrument.deadline:
        there = "no images" if look.present is None else f"{look.present} of {event.image_count} images"
        raise Rejected(f"{there} present after {instrument.deadline}{passed_over}")
    return None if calm or look.fingerprint is None else instrument.settle
