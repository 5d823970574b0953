"""What is told about events, in the command line's ``--json`` and over HTTP. Words only: no rows, no rules."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel


class EventStatus(BaseModel):
    """One event in a listing."""

    id: UUID
    revision: int
    system: str
    kind: str
    experiment: str
    plate: int | None
    timestamp: datetime
    state: str
    reasons: list[str]
    conflict: bool
    bucket: str | None
    key: str
    size: int | None  # bytes of the bundle
    sha256: str | None  # of the bundle
    evidence: str | None  # etag | read-back | …
    announced_at: datetime
    verified_at: datetime | None
    seconds: float | None  # from the announcement to the evidence
    raw_present: bool


class Status(BaseModel):
    """All events, and how many are in which state."""

    events: list[EventStatus]
    counts: dict[str, int]
    quarantine: int


class ManifestFile(BaseModel):
    """One member of a bundle."""

    name: str
    size: int
    sha256: str
    offset: int  # of its first byte inside the bundle


class EventDetail(EventStatus):
    """One event with its manifest and its whole ledger: every row the catalogue has on it."""

    manifest: list[ManifestFile] | None  # None: not exported, or the bucket cannot be asked (see manifest_error)
    manifest_error: str | None
    ledger: dict[str, Any]


class QuarantineEntry(BaseModel):
    """One announcement that could not be accepted."""

    id: int
    system: str
    name: str
    event_id: UUID | None
    reason: str
    first_seen: datetime
    last_seen: datetime
    size: int  # bytes kept of the announcement
    released_at: datetime | None
