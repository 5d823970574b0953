"""What instruments, uploaders and purges tell a catalogue, for its tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from plateway.catalog import Catalog
from plateway.errors import Damage
from plateway.events import ImagingEvent, Ref
from plateway.ledger import Seen
from plateway.records import Event, Export, Purge

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def said(number: int = 1, **other: Any) -> ImagingEvent:
    """What an instrument says of its event with this number."""
    facts: dict[str, Any] = {
        "id": UUID(int=number << 96 | number),
        "system": "prince",
        "kind": "stitch",
        "experiment": "20261121_012",
        "plate": 12,
        "timestamp": NOW + timedelta(seconds=number),
        "path": f"images/{number}",
        "image_count": 12,
        "metadata": {"position": number},
    }
    return ImagingEvent(**facts | other)


def seen(event: ImagingEvent, **other: Any) -> Seen:
    """An event file that was read and is fine."""
    facts: dict[str, Any] = {
        "file": f"{event.id}.json",
        "size": 300,
        "mtime_ns": 7,
        "announced_at": event.timestamp,
        "content": b"{}",
        "event": event,
    }
    return Seen(**facts | other)


def rejected(file: str = "bad.json", *, content: bytes = b"{", reason: str = "not JSON") -> Seen:
    """An event file that was read and cannot be accepted."""
    return Seen(file, len(content), 7, NOW, content, event=None, reason=reason)


def add(catalog: Catalog, number: int = 1, *, sealed: bool = True, **other: Any) -> Ref:
    """Register an event, and seal it."""
    event = said(number, **other)
    ((ref, _),) = catalog.register(event.system, [seen(event)], now=NOW)
    if sealed:
        catalog.seal([ref], now=NOW + timedelta(seconds=number))
    return ref


def upload(ref: Ref, event: Event, **other: Any) -> Export:
    """What an uploader notes of an event."""
    facts: dict[str, Any] = {
        "event_id": ref.id,
        "revision": ref.revision,
        "bucket": "raw",
        "key": event.key,
        "size": 100,
        "sha256": "s" * 64,
        "etag": "e-1",
        "part_size": 16 << 20,
        "member_count": 13,
        "manifest_offset": 50,
        "manifest_size": 40,
        "manifest_sha256": "m" * 64,
        "uploaded_at": NOW,
    }
    return Export(**facts | other)


def export(catalog: Catalog, ref: Ref, **other: Any) -> Export:
    """Export an event the way a worker does."""
    fence = catalog.lease(ref, owner="worker", ttl=MINUTE, now=NOW)
    row = upload(ref, catalog.get(ref), **other)
    catalog.record_export(row, fence=fence)
    catalog.release(ref, fence=fence)
    return row


def prove(
    catalog: Catalog,
    ref: Ref,
    *,
    at: datetime = NOW,
    kind: str = "etag",
    etag: str = "e-1",
    endpoint: str | None = None,
) -> None:
    """Record evidence for the export that is catalogued."""
    row = catalog.ledger(ref).export
    assert row is not None
    catalog.record_evidence(
        ref,
        kind=kind,
        at=at,
        seen_etag=etag,
        sha256=row.sha256,
        uploaded_at=row.uploaded_at,
        read_back=kind == "read-back",
        endpoint=endpoint,
    )


def damage(catalog: Catalog, ref: Ref, what: str = "lost: no such object") -> None:
    """Record that the export that is catalogued is damaged."""
    row = catalog.ledger(ref).export
    assert row is not None
    kind = Damage.LOST if what.startswith("lost") else Damage.CHANGED
    catalog.record_damage(ref, damage=what, kind=kind, at=NOW, sha256=row.sha256, uploaded_at=row.uploaded_at)


def intent(ref: Ref, place: str = "raw", **other: Any) -> Purge:
    """What a purge is about to do."""
    facts: dict[str, Any] = {"proof": {"etag": "e-1"}, "intended_at": NOW, "trash": f"trash/{ref}"}
    return Purge(event_id=ref.id, revision=ref.revision, place=place, **facts | other)
