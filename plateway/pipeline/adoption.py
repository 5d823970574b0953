"""Take in an object that nobody recorded, on its own word: every byte read, and what it says of its event checked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from plateway import bundle, events, folder
from plateway.catalog import Ledger
from plateway.errors import Conflict, Damaged, NotFound, Rejected, Unavailable
from plateway.pipeline import labels
from plateway.pipeline.line import Line
from plateway.records import Event, Export


def adopt(line: Line, key: str, ledger: Ledger | None, *, now: datetime) -> Export:
    """Record an object's event and export, with the evidence of this read-back; ``ledger`` is who has the key, if any.

    Raises:
        Damaged: it is no sound bundle, or does not say enough of its event. Conflict: it is another event's.
        NotFound, Unavailable: it went, or was replaced while it was read.
    """
    event, export = _read(line, key, now)
    if ledger is not None:
        _same(ledger.event, event)
        event = ledger.event
    line.catalog.adopt(event, export, now=now)
    return export


def _same(known: Event, said: Event) -> None:
    """Let an event have only an object that says it is its own."""
    if (known.id, known.revision, known.digest) != (said.id, said.revision, said.digest):
        raise Conflict(f"{said.key} says that it is of {said.id}, revision {said.revision}, as announced otherwise")


def _read(line: Line, key: str, now: datetime) -> tuple[Event, Export]:
    """Read an object whole, by what it was at the beginning and still is at the end."""
    found = line.store.stat(key)
    if found is None:
        raise NotFound(f"{key}: no such object")
    parts = bundle.Parts(bundle.part_size(found.size))

    def chunks() -> Iterator[bytes]:
        for chunk in line.store.open(key):
            parts.update(chunk)
            yield chunk

    try:
        walked = bundle.walk(chunks())
    except Damaged as error:
        raise Damaged(f"{key}: {error}") from error
    after = line.store.stat(key)
    if after is None or (after.size, after.etag) != (walked.size, found.etag):
        raise Unavailable(f"{key} was replaced while it was read")
    event = _event(key, walked.manifest, labels.read(found.metadata), now=now)
    return event, Export(
        event_id=event.id,
        revision=event.revision,
        bucket=line.store.name,
        key=key,
        size=walked.size,
        sha256=walked.sha256,
        etag=parts.etag(),
        part_size=bundle.part_size(walked.size),
        member_count=len(walked.manifest.members),
        manifest_offset=walked.manifest_offset,
        manifest_size=walked.manifest_size,
        manifest_sha256=walked.manifest_sha256,
        uploaded_at=min(found.modified, now),
        evidence="read-back",
        evidence_at=now,
        seen_etag=after.etag,
        read_back_at=now,
    )


def _event(key: str, manifest: bundle.Manifest, label: labels.Label, *, now: datetime) -> Event:
    """Put together what a manifest and a label say of an event.

    Raises:
        Damaged: they contradict each other, or one of the two has a gap.
    """
    try:
        said = _checked(manifest.head)
    except (KeyError, TypeError, ValueError, Rejected) as error:
        raise Damaged(f"{key}: its manifest names no event ({error})") from error
    if label.id != said["id"] or label.revision is None or label.digest is None or label.path is None:
        raise Damaged(f"{key}: its metadata does not say which announcement it is of, or where its images were")
    announced = label.announced_at or said["timestamp"]
    return Event(
        **said,
        revision=label.revision,
        path="/".join(folder.segments(label.path)),
        image_count=label.image_count if label.image_count is not None else len(manifest.members),
        digest=label.digest,
        key=key,
        file=label.file or f"{said['id']}.json",
        announced_at=announced,
        first_seen=label.first_seen or now,
        waiting_since=label.waiting_since or label.first_seen or now,
        fingerprint=label.fingerprint,
        fingerprint_at=label.fingerprint_at,
        sealed_at=label.sealed_at or now,
    )


def _checked(head: dict[str, Any]) -> dict[str, Any]:
    """Read the fields of a manifest's head as columns of an event."""
    moment = datetime.fromisoformat(head["timestamp"])
    if moment.tzinfo is None or head["type"] not in events.PREFIXES or not isinstance(head["metadata"], dict):
        raise ValueError("timestamp, type or metadata")
    names = (head["system"], head["experiment_id"])
    if any(folder.segments(name) != (name,) for name in names):
        raise ValueError("system or experiment_id")
    plate = head["metadata"].get("plate")
    return {
        "id": UUID(head["ref_id"]),
        "system": head["system"],
        "kind": head["type"],
        "experiment": head["experiment_id"],
        "plate": plate if type(plate) is int and 0 <= plate <= events.LARGEST else None,
        "timestamp": moment.astimezone(UTC),
        "details": head["metadata"],
    }
