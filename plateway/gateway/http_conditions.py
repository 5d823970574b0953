"""What requests say beside the key: conditions, ranges, checksums. Pure (RFC 9110, 3230, 9530)."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import NamedTuple

from starlette.datastructures import Headers

from plateway.gateway.errors import Problem
from plateway.store import Stat

LENGTHS = {"md5": 16, "sha256": 32}
CONDITIONS = {"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "range"}


class Span(NamedTuple):
    """The bytes from `start` on, so many."""

    start: int
    length: int


def consider(headers: Headers, stat: Stat | None, *, method: str) -> None:
    """Weigh the conditions of a request, in the order of RFC 9110, 13.2.2.

    Raises:
        Problem: 304 or 412.
    """
    failed = Problem(412, "The object is not as the conditions say")
    reads = method in {"GET", "HEAD"}
    if (match := headers.get("if-match")) is not None:
        if stat is None or not _matches(match, stat, weak=False):
            raise failed
    elif stat and (moment := _moment(headers.get("if-unmodified-since"))) and _whole(stat) > moment:
        raise failed
    if (match := headers.get("if-none-match")) is not None:
        if stat is not None and _matches(match, stat, weak=True):
            raise _unmodified(stat) if reads else failed
    elif reads and stat and (moment := _moment(headers.get("if-modified-since"))) and _whole(stat) <= moment:
        raise _unmodified(stat)


def ranged(headers: Headers, stat: Stat) -> Span | None:
    """Read the range that is asked for; None: all of it, also where several are asked for, or none that is known.

    Raises:
        Problem: 416, the object ends before.
    """
    unit, _, text = headers.get("range", "").partition("=")
    first, dash, last = (part.strip() for part in text.partition("-"))
    numbers = [part for part in (first, last) if part]
    plain = all(part.isascii() and part.isdecimal() and len(part) < 20 for part in numbers)
    if unit.strip().lower() != "bytes" or not dash or not numbers or not plain:
        return None
    if (condition := headers.get("if-range")) is not None and not _same(condition, stat):
        return None
    start = int(first) if first else max(0, stat.size - int(last))
    end = min(int(last) + 1, stat.size) if first and last else stat.size
    if first and last and int(last) < int(first):
        return None
    if start >= stat.size or (not first and int(last) == 0):
        told = {"Content-Range": f"bytes */{stat.size}", "Accept-Ranges": "bytes"}
        raise Problem(416, f"The object has {stat.size} bytes", headers=told)
    return Span(start, end - start)


def _matches(condition: str, stat: Stat, *, weak: bool) -> bool:
    tags = [tag.strip() for tag in condition.split(",")]
    return "*" in tags or f'"{stat.etag}"' in [tag.removeprefix("W/") if weak else tag for tag in tags]


def _same(condition: str, stat: Stat) -> bool:
    """Tell whether `If-Range` holds: the same ETag, or exactly the same time."""
    return condition.strip() == f'"{stat.etag}"' or _moment(condition) == _whole(stat)


def _moment(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if text else None
    except (TypeError, ValueError, IndexError):
        return None
    return found and (found.replace(tzinfo=UTC) if found.tzinfo is None else found)


def _unmodified(stat: Stat) -> Problem:
    return Problem(304, "", headers={"ETag": f'"{stat.etag}"', "Last-Modified": date(stat.modified)})


def _whole(stat: Stat) -> datetime:
    return stat.modified.replace(microsecond=0)


def date(moment: datetime) -> str:
    """Say a time as HTTP does."""
    return format_datetime(moment.astimezone(UTC), usegmt=True)


def digests(headers: Headers) -> dict[str, bytes]:
    """Read what the client says that the body is.

    Raises:
        Problem: 400, it cannot be read.
    """
    told = [("md5", headers[field]) for field in ("content-md5",) if field in headers]
    told += [("sha256", headers[field]) for field in ("x-amz-checksum-sha256",) if field in headers]
    for field in ("digest", "content-digest", "repr-digest"):
        for one in headers.get(field, "").split(","):
            kind, _, value = one.strip().partition("=")
            if (plain := kind.lower().replace("-", "")) in LENGTHS:
                told.append((plain, value.strip(":")))
    found: dict[str, bytes] = {}
    for kind, value in told:
        try:
            digest = base64.b64decode(value.strip(), validate=True)
        except binascii.Error:
            digest = b""
        if len(digest) != LENGTHS[kind] or found.get(kind, digest) != digest:
            raise Problem(400, f"The {kind} that was sent with the body cannot be read")
        found[kind] = digest
    return found
