"""Look at what arrived, by another way than it was sent, and note the evidence or the damage."""

from __future__ import annotations

import hashlib
import time
from datetime import datetime
from functools import partial
from typing import Any

from plateway import bundle, scattered
from plateway.catalog import Ledger, Ref
from plateway.errors import (
    Damaged,
    NotFound,
    PlatewayError,
    Refused,
    Unavailable,
)
from plateway.pipeline.line import Line, Outcome, noted, set_back
from plateway.records import Export
from plateway.store import Store

EXPIRED = "the bucket copy has expired"


def verify(line: Line, ref: Ref, *, read_back: bool = False) -> Outcome:
    """Look at what arrived, by another way than it was sent, and note the evidence or the damage.

    Size and ETag are compared with what the sent bytes must have. Where an endpoint's ETag is no MD5 of the parts, or
    with ``read_back``, the object is read, its tar walked and every SHA-256 compared. An expired copy is let be.

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
    if ledger.expired:
        return outcome("expired", reasons=(EXPIRED,))
    try:
        line = line.holding(export)
        kind, etag = look_at(line.store, export, read_back=read_back)
    except Damaged as error:
        note_damage(line, export, str(error))
        return noted(outcome("damaged", reasons=(str(error),), seconds=time.monotonic() - started))
    except PlatewayError as error:
        set_back(line, ref, "verify", error)
        raise
    line.catalog.note_evidence(
        ref,
        kind=kind,
        at=line.catalog.now(),
        seen_etag=etag,
        sha256=export.sha256,
        uploaded_at=export.uploaded_at,
        read_back=kind == "read-back",
        endpoint=line.endpoint,
    )
    return noted(outcome("verified", reasons=(kind,), seconds=time.monotonic() - started))


def sample(line: Line, budget: int, *, now: datetime | None = None) -> list[Ref]:
    """Name the exports whose turn it is to be read back: longest unread first, within a budget of bytes per day."""
    return line.catalog.sample(budget=budget, now=now or line.catalog.now())


def look_at(store: Store, export: Export, *, read_back: bool) -> tuple[str, str]:
    """Return the kind of evidence the object gives and its ETag.

    Raises:
        Damaged: ``lost: …`` or ``changed: …``.
    """
    found = store.stat(export.key)
    if found is None:
        raise Damaged(f"lost: nothing at {export.key}")
    if found.size != export.size:
        size = f"{export.key} has {found.size:,} bytes, {export.size:,} were sent"
        raise Damaged(f"changed: {scattered.faults(store, export.key) or size}")
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


def note_damage(line: Line, export: Export, damage: str) -> None:
    ref = Ref(export.event_id, export.revision)
    now = line.catalog.now()
    line.catalog.note_damage(ref, damage=damage, at=now, sha256=export.sha256, uploaded_at=export.uploaded_at)


def manifest_of(line: Line, ledger: Ledger) -> bundle.Manifest:
    """Read the manifest from inside the object, which must be the one that was verified.

    Raises:
        Refused: the object is not the one recorded; noted as damage. Or it has expired.
    """
    export = ledger.export
    assert export is not None
    if ledger.expired:
        raise Refused(EXPIRED)
    line = line.holding(export)
    try:
        found = line.store.stat(export.key)
        if found is None:
            raise Damaged(f"lost: nothing at {export.key}")
        if (found.size, found.etag) != (export.size, export.seen_etag):
            other = f"{export.key} is not the object that was verified"
            raise Damaged(f"changed: {scattered.faults(line.store, export.key) or other}")
        return read_manifest(line, export)
    except Damaged as error:
        note_damage(line, export, str(error))
        raise Refused(f"bucket copy {error}") from error


def read_manifest(line: Line, export: Export) -> bundle.Manifest:
    """Read the manifest from inside an object in the bucket that the line is bound to, and note nothing.

    Raises:
        NotFound: there is no object. Damaged: it holds another manifest than was sent.
    """
    content = b"".join(line.store.open(export.key, start=export.manifest_offset, length=export.manifest_size))
    if hashlib.sha256(content).hexdigest() != export.manifest_sha256:
        raise Damaged(f"changed: {export.key} holds another manifest than was sent")
    return bundle.read_manifest(content)


def proof_of(ledger: Ledger) -> dict[str, Any]:
    """Say what a tombstone keeps of the copy that made the purge possible."""
    assert ledger.export is not None
    kept = {"endpoint", "bucket", "key", "size", "sha256", "evidence", "evidence_at", "seen_etag", "manifest_sha256"}
    return ledger.export.model_dump(mode="json", include=kept)
