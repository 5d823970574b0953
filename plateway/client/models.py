"""Responses as values; unknown fields are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from plateway.errors import Unavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event:
    """One event in a listing."""

    id: UUID
    revision: int
    system: str
    kind: str  # stitch | video | overview
    experiment: str
    plate: int | None
    timestamp: datetime
    state: str
    reasons: tuple[str, ...]  # why it is waiting
    conflict: bool
    bucket: str | None
    endpoint: str | None  # of the bucket; None: not exported, or not recorded then
    key: str
    size: int | None  # bytes of the bundle
    sha256: str | None  # of the bundle; None: not exported
    evidence: str | None
    announced_at: datetime
    verified_at: datetime | None
    seconds: float | None  # from the announcement to the evidence
    raw_present: bool | None  # None: unknown, the instrument's disk could not be read

    @property
    def ref(self) -> str:
        """The event at this revision, as in URLs."""
        return f"{self.id}-r{self.revision}"


@dataclass(frozen=True, slots=True)
class Image:
    """One image of an event."""

    name: str  # on the bench
    size: int  # bytes
    sha256: str
    url: str  # path on the gateway
    thumbnail: str | None  # None: its name is not that of a picture


@dataclass(frozen=True, slots=True)
class Export:
    """One bundle that reached the bucket, from the DLM API."""

    ref_id: UUID
    experiment_id: str
    timestamp: datetime
    type: str
    url: str | None  # presigned: valid for minutes, without a token
    uploaded_at: datetime


@dataclass(frozen=True, slots=True)
class Archive:
    """One tar on tape."""

    id: UUID
    path: str
    type: str
    experiment_id: str
    created_at: datetime
    url: str
    member_count: int


def read(kind: type[T], told: Any) -> T:
    """Convert a JSON object to a value.

    Raises:
        Unavailable: it has not the expected fields.
    """
    try:
        return kind(**{one.name: _value(one.name, str(one.type), told) for one in fields(kind)})  # type: ignore[arg-type]  # all of them are dataclasses
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unavailable(f"the response has no valid {kind.__name__.lower()}") from error


def _value(name: str, kind: str, told: Mapping[str, Any]) -> Any:
    value = told.get(name) if "None" in kind else told[name]
    if value is None:
        return None
    match kind.removesuffix(" | None"):
        case "datetime":
            return datetime.fromisoformat(value)
        case "UUID":
            return UUID(value)
        case "tuple[str, ...]":
            return tuple(value)
    return value
