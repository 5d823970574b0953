"""Stream bundles into the bucket. Nothing here is evidence; that comes from ``verify``, with another client."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from plateway import bench, bundle, checksums, folder, instruments
from plateway.bench import RESERVE, read_sidecar
from plateway.catalog import Claim
from plateway.checksums import sha256_of
from plateway.errors import (
    Busy,
    CatalogUnavailable,
    Conflict,
    Damaged,
    DiskUnavailable,
    PlatewayError,
    Taken,
    Unsettled,
)
from plateway.events import Ref
from plateway.instruments import Instrument
from plateway.keys import file_keys, layout_of
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.lease import Hold, set_back
from plateway.pipeline.places import check_aside, check_bucket, is_bench_missing
from plateway.records import Event, Export
from plateway.store import object_metadata

SCHEMA = "0.1.0a1"  # of metadata.json; the field that DLM v2 wrote


def due(site: Site, verb: str, *, now: datetime | None = None, limit: int = 1000) -> list[Ref]:
    """List the events that are due for ``export`` or ``verify``, oldest first."""
    return site.catalog.due(verb, now=now or site.catalog.now(), limit=limit)


def export(
    site: Site,
    ref: Ref,
    *,
    force: bool = False,
    claim: Claim | None = None,
    beat: Callable[[int], None] | None = None,
) -> Outcome:
    """Stream an event's bundle into the bucket and record the upload; its evidence comes later, from ``verify``.

    ``beat`` is called with the bytes sent so far. With ``force`` an undamaged export is sent again. ``claim``: the
    event was leased already, in a batch.

    Raises:
        Transient, Permanent: why this event could not be exported; recorded as a setback.
    """
    started, began = time.monotonic(), site.catalog.now()
    claim = claim or site.catalog.claim_export(ref, owner=site.owner, ttl=site.lease, now=began, again=force)
    event, sent = claim.event, claim.export
    outcome = partial(Outcome, ref, event.system, "export", key=event.key)
    if claim.fence is None:
        if claim.busy:
            return outcome(Result.BUSY, reasons=(claim.busy,))
        return outcome(Result.EXPORTED_ALREADY, size=sent.size if sent else None)
    bound = site
    try:
        bound = _choose_bucket(site, event, sent)
        check_bucket(bound)
        packed = _send(bound, event, sent, force=force, hold=Hold(bound, ref, claim.fence, beat))
        uploaded = make_export(bound, event, packed, etag=packed.etag, at=bound.catalog.now())
        bound.catalog.record_export(uploaded, fence=claim.fence)  # and releases the lease
    except BaseException as error:
        site.catalog.release(ref, fence=claim.fence)
        seconds = time.monotonic() - started
        match error:
            case Busy():
                return outcome(Result.BUSY, reasons=(str(error),))
            case Conflict():
                return log_outcome(outcome(Result.CONFLICT, reasons=(str(error),), seconds=seconds))
            case CatalogUnavailable():
                pass  # it could not be recorded, and the event stays due
            case Unsettled() if is_bench_missing(site, site.instrument(event.system)):
                pass  # another worker may have the disk, and the event stays due
            case PlatewayError():
                set_back(bound, ref, "export", error, began=began)
        raise
    return log_outcome(outcome(Result.EXPORTED, size=packed.size, seconds=time.monotonic() - started))


def _choose_bucket(site: Site, event: Event, sent: Export | None) -> Site:
    """Bind to the bucket of an export: its own, unless it is damaged there and the settings do not name that one."""
    if sent is None or (sent.damage is not None and site.at(sent.endpoint, sent.bucket) is None):
        return site.to(event.system)
    return site.holding(sent)


def _sent(export: Export | None) -> TypeGuard[Export]:
    """Return whether there is an upload without known damage."""
    return export is not None and export.damage is None


class _There(Exception):
    """The very same bytes are in the bucket already; the upload is given up just before it would be complete."""


def _send(site: Site, event: Event, sent: Export | None, *, force: bool, hold: Hold) -> bundle.Packed:
    """Stream the bundle to its key; the last look, at source and bucket, comes after its last byte was hashed."""
    instrument = site.instrument(event.system)
    root, path = _source(site, event, instrument, hold)
    with folder.enter(root, path) as images:
        files = images.files()
        on_bench = instrument.staging is None and not force  # by force, the images are taken as they are now
        _complete(site, event, files, instrument, sealed=event.fingerprint if on_bench else None)

        def seal(packed: bundle.Packed) -> None:
            if folder.fingerprint(images.files()) != folder.fingerprint(files):
                raise Unsettled(f"{event.path}: images changed while they were exported")
            recorded = sent if sent is not None and sent.key == event.key else None
            _allow(site, event, packed, recorded=recorded, force=force)

        layout = bundle.plan(files, _head(event, read_sidecar(images, files)), keys=_keys(event, instrument))
        packing = bundle.Packing(layout, images.read, seal=seal, beat=hold)
        _put(site, event, packing, sent)
        return packing.packed


def _keys(event: Event, instrument: Instrument) -> Callable[[str], str] | None:
    """Return the key of each file, if the event is exported per file."""
    if layout_of(event.key) == "bundle":
        return None
    return file_keys(event.key, instruments.image_matcher(instrument.patterns, instrument.ignored))


def _put(site: Site, event: Event, packing: bundle.Packing, sent: Export | None) -> None:
    """Send a bundle; where one of its files finds no room, the event goes on under another key."""
    layout = packing.layout
    try:
        with suppress(_There):
            site.store.put(
                event.key,
                packing,
                size=layout.size,
                part_size=layout.part_size,
                metadata=object_metadata.write(event, site=site.places.site),
            )
    except Taken as error:
        if _sent(sent):
            raise
        other = site.catalog.rekey(Ref(event.id, event.revision))
        raise Conflict(f"{error}; the event goes to {other}") from error


def _source(site: Site, event: Event, instrument: Instrument, hold: Hold) -> tuple[Path, str]:
    """Return root and path of the images: on the bench, or a verified staging copy, which is made if missing."""
    if instrument.staging is None:
        return instrument.root, event.path
    ref = Ref(event.id, event.revision)
    target = instrument.staging / str(ref)
    if event.staged_at is None or not target.exists():
        check_aside(site, instrument, "staging")
        _room(site, instrument, event)
        folder.copy(instrument.root, event.path, target=target, turn=hold.fence, beat=hold)
        hold.renew()
        site.catalog.stage(ref, now=site.catalog.now(), fence=hold.fence)
    return instrument.staging, str(ref)


def _room(site: Site, instrument: Instrument, event: Event) -> None:
    assert instrument.staging is not None
    with folder.enter(instrument.root, event.path) as images:
        files = images.files()
    _complete(site, event, files, instrument, sealed=event.fingerprint)
    needed = sum(file.size for file in files)
    free = folder.free(instrument.staging.parent)  # which must be there: it may be a mount
    if free < needed + RESERVE:
        raise DiskUnavailable(
            f"staging has {free:,} bytes free, {event.path} needs {needed:,} and a reserve of {RESERVE:,}"
        )


def _complete(
    site: Site, event: Event, files: Sequence[folder.File], instrument: Instrument, *, sealed: str | None
) -> None:
    """Send an event back to waiting when its images are not those that were complete: ``sealed`` is what they were."""
    present = bench.count_images(files, instrument.patterns, instrument.ignored)
    if present == event.image_count and sealed in {None, folder.fingerprint(files)}:
        return
    site.catalog.unseal(Ref(event.id, event.revision), now=site.catalog.now())
    if present == event.image_count:
        raise Unsettled(f"{event.path}: images changed since they were complete")
    raise Unsettled(f"{event.path}: {present} of {event.image_count} images present")


def _head(event: Event, sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Build the head of metadata.json, in the fields of DLM v2."""
    return {
        "ref_id": str(event.id),
        "experiment_id": event.experiment,
        "timestamp": event.timestamp.isoformat().replace("+00:00", "Z"),
        "type": event.kind,
        "system": event.system,
        "schema_version": SCHEMA,
        "metadata": {**sidecar, **event.details},
    }


def _allow(site: Site, event: Event, packed: bundle.Packed, *, recorded: Export | None, force: bool) -> None:
    """Decide, before an upload is completed, whether these bytes may be at that key.

    Raises:
        _There: they are there already.
        Conflict: other bytes are recorded there, or lie there unrecorded; the event goes on under another key.
    """
    ref = Ref(event.id, event.revision)
    if recorded is not None and recorded.sha256 != packed.sha256:
        digest = hashlib.sha256(f"{event.digest}:{packed.sha256}".encode()).hexdigest()
        heir = site.catalog.revise(ref, digest=digest, now=site.catalog.now())
        raise Conflict(f"{event.key} holds the earlier content of these images; the new content is {heir}")
    found = site.store.stat(event.key)
    if found is None or not found.etag:  # of files that are objects of their own some are there, which are right
        return
    if found.size == packed.size and (found.etag == packed.etag or _same(site, event.key, packed)):
        if force:
            return
        raise _There
    if recorded is None:
        raise Conflict(
            f"{event.key} holds other bytes that nobody recorded; the event goes to {site.catalog.rekey(ref)}"
        )


def _same(site: Site, key: str, packed: bundle.Packed) -> bool:
    """Read what is there, in a thread of its own: obstore is in the midst of an upload, and cannot read in this one."""
    with ThreadPoolExecutor(1, "same") as aside:
        try:
            return aside.submit(lambda: sha256_of(site.store.open(key))).result() == packed.sha256
        except Damaged:
            return False


def make_export(site: Site, event: Event, sent: bundle.Packed | bundle.Walked, *, etag: str, at: datetime) -> Export:
    """Build the row of a bundle in the bucket that the site is bound to."""
    return Export(
        event_id=event.id,
        revision=event.revision,
        endpoint=site.endpoint,
        bucket=site.store.name,
        key=event.key,
        size=sent.size,
        sha256=sent.sha256,
        etag=etag,
        part_size=checksums.part_size(sent.size),
        member_count=len(sent.members),
        manifest_offset=sent.manifest_offset,
        manifest_size=sent.manifest_size,
        manifest_sha256=sent.manifest_sha256,
        uploaded_at=at,
    )


def sweep(site: Site, *, now: datetime | None = None) -> list[Outcome]:
    """Abort uploads that dead exports left open: known key, older than a lease, and no worker holds one."""
    now = now or site.catalog.now()
    return list(site.over(partial(_swept, now=now), "sweep"))


def _swept(site: Site, now: datetime) -> Iterator[Outcome]:
    """Sweep one bucket."""
    stale = [upload for upload in site.store.uploads() if now - upload.initiated > site.lease]
    keys = tuple({upload.key for upload in stale})
    ours = {ledger.event.key: ledger for ledger in site.catalog.ledgers(keys=keys)} if stale else {}
    for upload in stale:
        ledger = ours.get(upload.key)
        if ledger is not None and not ledger.held(now):
            site.store.abort(upload)
            yield Outcome(ledger.ref, ledger.event.system, "sweep", Result.ABORTED, key=upload.key)
