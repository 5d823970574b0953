"""Conditions, ranges and checksums in request headers (RFC 9110, RFC 3230, RFC 9530). Pure."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import NamedTuple, Protocol

from starlette.datastructures import Headers

from plateway.gateway.errors import Problem

LENGTHS = {"md5": 16, "sha256": 32}
CONDITIONS = {"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "range"}


class Described(Protocol):
    """The facts that conditions and ranges are compared with; `store.Stat` has them."""

    @property
    def size(self) -> int: ...
    @property
    def etag(self) -> str: ...
    @property
    def modified(self) -> datetime: ...


class Span(NamedTuple):
    """`length` bytes from `start` on."""

    start: int
    length: int


def check_conditions(headers: Headers, stat: Described | None, *, method: str) -> None:
    """Check the conditions of a request, in the order of RFC 9110, 13.2.2.

    Raises:
        Problem: 304 or 412.
    """
    failed = Problem(412, "The object is not as the conditions say")
    reads = method in {"GET", "HEAD"}
    if (match := headers.get("if-match")) is not None:
        if stat is None or not _match_etag(match, stat, weak=False):
            raise failed
    elif stat and (moment := _parse_date(headers.get("if-unmodified-since"))) and _modified(stat) > moment:
        raise failed
    if (match := headers.get("if-none-match")) is not None:
        if stat is not None and _match_etag(match, stat, weak=True):
            raise _not_modified(stat) if reads else failed
    elif reads and stat and (moment := _parse_date(headers.get("if-modified-since"))) and _modified(stat) <= moment:
        raise _not_modified(stat)


def parse_range(headers: Headers, stat: Described) -> Span | None:
    """Parse the requested range. Returns None, for the whole, if there is none, several, or one that is not valid.

    Raises:
        Problem: 416, the range begins after the end.
    """
    unit, _, text = headers.get("range", "").partition("=")
    first, dash, last = (part.strip() for part in text.partition("-"))
    numbers = [part for part in (first, last) if part]
    plain = all(part.isascii() and part.isdecimal() and len(part) < 20 for part in numbers)
    if unit.strip().lower() != "bytes" or not dash or not numbers or not plain:
        return None
    if (condition := headers.get("if-range")) is not None and not _if_range_holds(condition, stat):
        return None
    start = int(first) if first else max(0, stat.size - int(last))
    end = min(int(last) + 1, stat.size) if first and last else stat.size
    if first and last and int(last) < int(first):
        return None
    if start >= stat.size or (not first and int(last) == 0):
        extra = {"Content-Range": f"bytes */{stat.size}", "Accept-Ranges": "bytes"}
        raise Problem(416, f"The object has {stat.size} bytes", headers=extra)
    return Span(start, end - start)


def _match_etag(condition: str, stat: Described, *, weak: bool) -> bool:
    tags = [tag.strip() for tag in condition.split(",")]
    return "*" in tags or f'"{stat.etag}"' in [tag.removeprefix("W/") if weak else tag for tag in tags]


def _if_range_holds(condition: str, stat: Described) -> bool:
    """Return whether `If-Range` holds: the same ETag, or exactly the same time."""
    return condition.strip() == f'"{stat.etag}"' or _parse_date(condition) == _modified(stat)


def _parse_date(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if text else None
    except (TypeError, ValueError, IndexError):
        return None
    return found and (found.replace(tzinfo=UTC) if found.tzinfo is None else found)


def _not_modified(stat: Described) -> Problem:
    return Problem(304, "", headers={"ETag": f'"{stat.etag}"', "Last-Modified": format_date(stat.modified)})


def _modified(stat: Described) -> datetime:
    return stat.modified.replace(microsecond=0)


def format_date(moment: datetime) -> str:
    """Format a time as HTTP headers have it."""
    return format_datetime(moment.astimezone(UTC), usegmt=True)


def parse_digests(headers: Headers) -> dict[str, bytes]:
    """Parse the checksums of the body that the client sent.

    Raises:
        Problem: 400, one cannot be parsed, or two of one kind differ.
    """
    sent = [("md5", headers[field]) for field in ("content-md5",) if field in headers]
    sent += [("sha256", headers[field]) for field in ("x-amz-checksum-sha256",) if field in headers]
    for field in ("digest", "content-digest", "repr-digest"):
        for one in headers.get(field, "").split(","):
            kind, _, value = one.strip().partition("=")
            if (plain := kind.lower().replace("-", "")) in LENGTHS:
                sent.append((plain, value.strip(":")))
    found: dict[str, bytes] = {}
    for kind, value in sent:
        try:
            digest = base64.b64decode(value.strip(), validate=True)
        except binascii.Error:
            digest = b""
        if len(digest) != LENGTHS[kind] or found.get(kind, digest) != digest:
            raise Problem(400, f"The {kind} that was sent with the body cannot be read")
        found[kind] = digest
    return found
