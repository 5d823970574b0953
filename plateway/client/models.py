"""What servers tell, as values; what is not known here is left out."""

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
    reasons: tuple[str, ...]  # why it waits
    conflict: bool
    bucket: str | None
    endpoint: str | None  # that the bucket is behind; None: not exported, or not noted in its time
    key: str
    size: int | None  # bytes of the bundle
    sha256: str | None  # of the bundle; None: not exported
    evidence: str | None
    announced_at: datetime
    verified_at: datetime | None
    seconds: float | None  # from the announcement to the evidence
    raw_present: bool | None  # None: the instrument's disk did not answer

    @property
    def ref(self) -> str:
        """The event at this revision, as addresses have it."""
        return f"{self.id}-r{self.revision}"


@dataclass(frozen=True, slots=True)
class Image:
    """One image of an event."""

    name: str  # as on the bench
    size: int  # bytes
    sha256: str
    url: str  # from the root of the gateway on
    thumbnail: str | None  # None: by its name it is no picture


@dataclass(frozen=True, slots=True)
class Export:
    """One bundle that reached the bucket, as the lifecycle API tells it."""

    ref_id: UUID
    experiment_id: str
    timestamp: datetime
    type: str
    url: str | None  # presigned: good for minutes, for anybody who has it
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
    """Make a value of what was told.

    Raises:
        Unavailable: it was not told so that it can be understood.
    """
    try:
        return kind(**{one.name: _value(one.name, str(one.type), told) for one in fields(kind)})  # type: ignore[arg-type]  # all of them are dataclasses
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unavailable(f"what was told of one {kind.__name__.lower()} is not understood") from error


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
