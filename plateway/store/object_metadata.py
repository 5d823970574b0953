"""S3 metadata that describes an object's event, from which a lost catalogue can be rebuilt.

The id, the revision and the digest of the announcement are always there. The other fields are missing from the
bundle's manifest; they are left out where S3's 2 KB are too small, and older objects have none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import quote, unquote
from uuid import UUID

from plateway.records import Event

ROOM = 2000  # bytes of names and values; S3 takes 2,048
PREFIX = len("x-amz-meta-")

T = TypeVar("T")


@dataclass(frozen=True)
class Label:
    """The parsed metadata of an object; None where a field is missing or invalid."""

    id: UUID | None = None
    site: UUID | None = None  # whose object it is
    revision: int | None = None
    digest: str | None = None  # of the announcement
    path: str | None = None
    image_count: int | None = None
    file: str | None = None
    announced_at: datetime | None = None
    first_seen: datetime | None = None
    waiting_since: datetime | None = None
    sealed_at: datetime | None = None
    fingerprint: str | None = None
    fingerprint_at: datetime | None = None


def write(event: Event, *, site: UUID) -> dict[str, str]:
    """Make the metadata of an event's object, the most needed first, as far as there is room."""
    facts: dict[str, str | int | datetime | None] = {
        "event-id": str(event.id),
        "event-revision": event.revision,
        "announcement": event.digest,
        "site": str(site),
        "image-count": event.image_count,
        "announced-at": event.announced_at,
        "path": event.path,
        "event-file": event.file,
        "first-seen": event.first_seen,
        "sealed-at": event.sealed_at,
        "waiting-since": event.waiting_since if event.waiting_since != event.first_seen else None,
        "fingerprint-at": event.fingerprint_at,
        "fingerprint": event.fingerprint,
    }
    label: dict[str, str] = {}
    left = ROOM
    for name, fact in facts.items():
        if fact is None:
            continue
        value = quote(_text(fact), safe="/:+", errors="surrogateescape")
        needed = PREFIX + len(name) + len(value)
        if needed <= left:
            label[name] = value
            left -= needed
    return label


def read(metadata: Mapping[str, str]) -> Label:
    """Read a label; what is missing or cannot be meant is None."""
    said = {name.lower(): unquote(value, errors="surrogateescape") for name, value in metadata.items()}

    def take(name: str, meaning: Callable[[str], T]) -> T | None:
        try:
            return meaning(said[name])
        except (KeyError, ValueError, OverflowError):
            return None

    first_seen = take("first-seen", _time)
    return Label(
        id=take("event-id", UUID),
        site=take("site", UUID),
        revision=take("event-revision", _number),
        digest=take("announcement", _hash),
        path=take("path", str),
        image_count=take("image-count", _number),
        file=take("event-file", _name),
        announced_at=take("announced-at", _time),
        first_seen=first_seen,
        waiting_since=take("waiting-since", _time) or first_seen,
        sealed_at=take("sealed-at", _time),
        fingerprint=take("fingerprint", _hash),
        fingerprint_at=take("fingerprint-at", _time),
    )


def _text(fact: str | int | datetime) -> str:
    return fact.astimezone(UTC).isoformat() if isinstance(fact, datetime) else str(fact)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise ValueError(text)
    return int(text)


def _hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(text)
    return text


def _name(text: str) -> str:
    if not text or "/" in text or "\0" in text:
        raise ValueError(text)
    return text


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(UTC)
