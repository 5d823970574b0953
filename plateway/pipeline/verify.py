"""Inspect what arrived, by another way than it was sent, and record the evidence or the damage."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from plateway import bundle, retention
from plateway.ahead import read_ahead
from plateway.errors import CatalogUnavailable, Damage, Damaged, NotFound, PlatewayError, Refused, Unavailable
from plateway.events import Ref
from plateway.isolation import beating
from plateway.ledger import Ledger
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.hold import lock_copy
from plateway.pipeline.lease import set_back
from plateway.pipeline.places import check_bucket
from plateway.records import Export
from plateway.store import Stat, Store, per_file

EXPIRED = "the bucket copy has expired"
UNREADABLE = {"500", "InternalError"}  # what an endpoint answers for an object whose bytes rotted on its disk


class Inspection(NamedTuple):
    """What an inspection found, and the kind of evidence it is."""

    kind: str  # etag | read-back
    stat: Stat


def verify(site: Site, ref: Ref, *, read_back: bool = False, beat: Callable[[], None] | None = None) -> Outcome:
    """Inspect what arrived, by another way than it was sent, and record the evidence or the damage.

    Size and ETag are compared with what the sent bytes must have. Where an endpoint's ETag is no MD5 of the parts, or
    with ``read_back``, the object is read, its tar walked and every SHA-256 compared. An expired copy is left alone.
    ``beat`` is called while bytes flow, to renew a lease.

    Raises:
        NotFound: it was never exported.
        Transient: the bucket cannot be asked right now, or is not mounted; recorded as a setback.
    """
    started, began = time.monotonic(), site.catalog.now()
    ledger = site.catalog.ledger(ref)
    export = ledger.export
    if export is None:
        raise NotFound(f"{ref} is not exported yet")
    outcome = partial(Outcome, ref, ledger.event.system, "verify", key=export.key, size=export.size)
    if ledger.expired:
        return outcome(Result.EXPIRED, reasons=(EXPIRED,))
    try:
        site = site.holding(export)
        check_bucket(site)
        seen = inspect_object(site.store, export, read_back=read_back, beat=beat)
    except Damaged as error:
        record_damage(site, export, error)
        return log_outcome(outcome(Result.DAMAGED, reasons=(str(error),), seconds=time.monotonic() - started))
    except CatalogUnavailable:
        raise
    except PlatewayError as error:
        set_back(site, ref, "verify", error, began=began)
        raise
    site.catalog.record_evidence(
        ref,
        kind=seen.kind,
        at=site.catalog.now(),
        seen_etag=seen.stat.etag,
        seen_modified=seen.stat.modified,
        seen_version=seen.stat.version,
        sha256=export.sha256,
        uploaded_at=export.uploaded_at,
        read_back=seen.kind == "read-back",
        endpoint=site.endpoint,
    )
    reasons = (seen.kind, *_locked(site, ledger))
    return log_outcome(outcome(Result.VERIFIED, reasons=reasons, seconds=time.monotonic() - started))


def _locked(site: Site, ledger: Ledger) -> Iterator[str]:
    """Lock a copy that a hold is about, where its bucket can; yield why it could not be."""
    if ledger.legal_holds and retention.held(ledger.legal_holds, now := site.catalog.now()):
        try:
            lock_copy(site, ledger, now)
        except PlatewayError as error:
            yield f"held, but not locked in the bucket: {error}"


def sample(site: Site, budget: int, *, now: datetime | None = None) -> list[Ref]:
    """Select exports to read back: longest unread first, within a budget of bytes per day."""
    return site.catalog.sample(budget=budget, now=now or site.catalog.now())


def inspect_object(
    store: Store, export: Export, *, read_back: bool, beat: Callable[[], None] | None = None
) -> Inspection:
    """Compare an object with its export: size and ETag, or with ``read_back`` every byte.

    Raises:
        Damaged: it is lost, or changed, or cannot be read whole while its endpoint serves other objects.
        Unavailable: it cannot be read now, or was replaced meanwhile.
    """
    found = store.stat(export.key)
    if found is None:
        raise Damaged(f"lost: nothing at {export.key}", damage=Damage.LOST)
    if found.size != export.size:
        size = f"{export.key} has {found.size:,} bytes, {export.size:,} were sent"
        raise Damaged(f"changed: {per_file.faults(store, export.key) or size}")
    if found.etag == export.etag and not read_back:
        return Inspection("etag", found)
    try:
        with _accusing_rot(store, export.key):
            walked = bundle.walk(beating(read_ahead(store.open(export.key)), beat or (lambda: None)))
    except (Damaged, NotFound) as error:
        raise Damaged(f"changed: {export.key}: {error}") from error
    if walked.sha256 != export.sha256:
        raise Damaged(f"changed: {export.key} has another SHA-256 than was sent")
    after = store.stat(export.key)
    if after is None or difference(found, after):
        raise Unavailable(f"{export.key} was replaced while it was read back")
    return Inspection("read-back", after)


@contextmanager
def _accusing_rot(store: Store, key: str) -> Iterator[None]:
    """Turn the failure to read one object into damage, where its endpoint serves others.

    An S3 server answers so when its own checksum of the bytes on its disk does not match. The store has tried again
    for some time by then.

    Raises:
        Damaged: the object is what is broken.
    """
    try:
        yield
    except Unavailable as error:
        if error.code in UNREADABLE and _serves_others(store, key):
            raise Damaged(f"cannot be read: the endpoint answers {error.code} for it, and serves others") from error
        raise


def _serves_others(store: Store, key: str) -> bool:
    """Return whether another object of the bucket can be read now: a positive sign that the endpoint works."""
    try:
        other = next((one for one in store.list() if one.key != key and one.size), None)
        return other is not None and any(store.open(other.key, length=1))
    except PlatewayError:
        return False


def difference(then: Stat, now: Stat) -> str:
    """Describe how an object differs from its last inspection; empty if it does not."""
    told = {
        f"has {now.size:,} bytes, {then.size:,} before": then.size != now.size,
        "has another ETag": then.etag != now.etag,
        "was written again": then.modified != now.modified,
        "is another version": then.version != now.version,
    }
    return ", ".join(text for text, differs in told.items() if differs)


def as_seen(export: Export) -> Stat | None:
    """Return what the last inspection found; None if there was none."""
    if export.seen_etag is None or export.seen_modified is None:
        return None
    return Stat(export.key, export.size, export.seen_etag, export.seen_modified, version=export.seen_version)


def record_damage(site: Site, export: Export, error: Damaged) -> None:
    """Record in the catalogue, and in the event's history, what is wrong with an export."""
    site.catalog.record_damage(
        Ref(export.event_id, export.revision),
        damage=str(error),
        kind=error.damage,
        at=site.catalog.now(),
        sha256=export.sha256,
        uploaded_at=export.uploaded_at,
    )


def manifest_of(site: Site, ledger: Ledger) -> bundle.Manifest:
    """Read the manifest from inside the object, which must be the one that was verified.

    Raises:
        Damaged: the object is not the one recorded; recorded as damage. Refused: it has expired.
    """
    export = ledger.export
    assert export is not None
    if ledger.expired:
        raise Refused(EXPIRED)
    site = site.holding(export)
    check_bucket(site)
    try:
        found = site.store.stat(export.key)
        if found is None:
            raise Damaged(f"lost: nothing at {export.key}", damage=Damage.LOST)
        if (found.size, found.etag) != (export.size, export.seen_etag):
            other = f"{export.key} is not the object that was verified"
            raise Damaged(f"changed: {per_file.faults(site.store, export.key) or other}")
        return read_manifest(site, export)
    except Damaged as error:
        record_damage(site, export, error)
        raise Damaged(f"bucket copy {error}", damage=error.damage) from error


def read_manifest(site: Site, export: Export) -> bundle.Manifest:
    """Read the manifest from inside an object in the bucket that the site is bound to, and record nothing.

    Raises:
        NotFound: there is no object. Damaged: it holds another manifest than was sent, or cannot be read.
    """
    with _accusing_rot(site.store, export.key):
        content = b"".join(site.store.open(export.key, start=export.manifest_offset, length=export.manifest_size))
    if hashlib.sha256(content).hexdigest() != export.manifest_sha256:
        raise Damaged(f"changed: {export.key} holds another manifest than was sent")
    return bundle.read_manifest(content)


def proof_of(ledger: Ledger) -> dict[str, Any]:
    """Return what a tombstone keeps of the copy that made the purge possible."""
    assert ledger.export is not None
    kept = {
        *("endpoint", "bucket", "key", "size", "sha256", "evidence", "evidence_at", "read_back_at"),
        *("seen_etag", "seen_modified", "seen_version", "manifest_sha256"),
    }
    return ledger.export.model_dump(mode="json", include=kept)
