"""Imaging events as instruments announce them, in the legacy and in the current format.

Owns the event files (``<system>/events/*.json``): finding, reading and checking them, and the object key that follows
from one. The images themselves are left to ``folder``, remembering what was seen to ``catalog``.

Everything is checked strictly and each refusal says exactly what is wrong, for it is shown to the people who run the
instrument. Fields nobody knows are kept: they join the metadata.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, NamedTuple, cast, get_args
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict

from plateway.errors import NotFound, Rejected
from plateway.instruments import Instrument
from plateway.names import segments, shown

CAP = 1 << 20  # bytes of an event file, or of the images' own metadata.json
DEPTH = 32  # objects and lists inside each other
LARGEST = 2**31 - 1  # what every database takes as an integer

Kind = Literal["stitch", "video", "overview"]
KINDS = get_args(Kind)

IDENTITY = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?(?:[Zz]|[+-]\d{2}:?\d{2})?", re.ASCII)
LEAP = re.compile(r"(?<=\d\d:\d\d):60")
WINDOWS = re.compile(r"[A-Za-z]:|.*\\", re.DOTALL)


class ImagingEvent(BaseModel):
    """One acquisition as its instrument announced it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: UUID
    system: str
    kind: Kind
    experiment: str
    plate: int | None = None
    timestamp: AwareDatetime  # UTC
    path: str  # of the images, relative to the system's directory; a directory or one file
    image_count: int
    metadata: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the content, independent of its spelling."""
        said = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()


def parse(content: bytes, instrument: Instrument) -> ImagingEvent:
    """Parse an announcement: ``timestep_id`` marks the legacy format (DLM v1), ``ref_id`` the current one (DLM v2).

    Naive timestamps count only where the instrument's time zone is known. A time that the clock shows twice in autumn
    is the first of the two (the id in the key keeps the others apart); one that spring skips is refused, for no clock
    of that zone shows it.

    Raises:
        Rejected: says which field is wrong and how.
    """
    said = Fields(_object(read_json(content), "an event"))
    if ("timestep_id" in said) == ("ref_id" in said):
        raise Rejected("both timestep_id and ref_id" if "ref_id" in said else "neither timestep_id nor ref_id")
    parse_format = _timestep if "timestep_id" in said else _imaging_event
    return parse_format(said, instrument)


def sidecar(content: bytes) -> dict[str, Any]:
    """Read the ``metadata.json`` among the images: an object, or a string holding one."""
    return _unwrapped(read_json(content), "metadata.json")


class Fields:
    """The fields of an announcement, removed as they are parsed; the rest is unknown."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._said = dict(said)

    def __contains__(self, name: str) -> bool:
        return name in self._said

    def take(self, *spellings: str) -> Any:
        """Remove and return a field under any of its names, which must agree."""
        values = [self._said.pop(name) for name in spellings if name in self._said]
        if not values:
            raise Rejected(f"{' or '.join(spellings)}: missing")
        if any(not _equal(values[0], value) for value in values[1:]):
            raise Rejected(f"{' and '.join(spellings)}: {' and '.join(map(quoted, values))}")
        return values[0]

    def text(self, *spellings: str) -> str:
        """Remove and return a string."""
        value = self.take(*spellings)
        if not isinstance(value, str) or not value:
            raise Rejected(f"{' or '.join(spellings)}: {quoted(value)} is not a text")
        return value

    def integer(self, *spellings: str, least: int = 0) -> int:
        """Remove and return a whole number."""
        value = self.take(*spellings)
        if type(value) is not int or not least <= value <= LARGEST:
            raise Rejected(f"{' or '.join(spellings)}: {quoted(value)} is not a whole number from {least} to {LARGEST}")
        return value

    def left(self) -> dict[str, Any]:
        """Return the remaining fields."""
        left, self._said = self._said, {}
        return left


def _timestep(said: Fields, instrument: Instrument) -> ImagingEvent:
    """Read DLM v1, by its README and by its code."""
    plate, crossed = said.integer("plate"), _day(said.text("cross_date"))
    own = {"plate": plate, "cross_date": crossed.isoformat(), "position": said.integer("position", least=-LARGEST)}
    return ImagingEvent(
        id=_identity(said.text("timestep_id"), "timestep_id"),
        system=_system(said, instrument),
        kind=_kind(said, "event_type"),
        experiment=_experiment(said) if "experiment_id" in said else f"{crossed.year:04d}{crossed:%m%d}_{plate:03d}",
        plate=plate,
        timestamp=_moment(said.text("timestamp"), instrument),
        path=_path(said.text("img_dir", "path")),
        image_count=said.integer("img_count", "image_count"),
        metadata=_joined(own, _metadata(said), said.left()),
    )


def _imaging_event(said: Fields, instrument: Instrument) -> ImagingEvent:
    """Read DLM v2."""
    brought = _metadata(said)
    plate = brought.get("plate")
    return ImagingEvent(
        id=_identity(said.text("ref_id"), "ref_id"),
        system=_system(said, instrument),
        kind=_kind(said, "type"),
        experiment=_experiment(said),
        plate=plate if type(plate) is int and 0 <= plate <= LARGEST else None,
        timestamp=_moment(said.text("timestamp"), instrument),
        path=_path(said.text("local_path")),
        image_count=said.integer("img_count"),
        metadata=_joined(brought, said.left()),
    )


def _metadata(said: Fields) -> dict[str, Any]:
    return _unwrapped(said.take("metadata"), "metadata") if "metadata" in said else {}


def _system(said: Fields, instrument: Instrument) -> str:
    if "system" in said and (name := said.text("system")) != instrument.name:
        raise Rejected(f"system: announced by {quoted(name)} in the directory of {instrument.name!r}")
    return instrument.name


def _kind(said: Fields, field: str) -> Kind:
    name = said.text(field) if field in said else "stitch"
    if name not in KINDS:
        raise Rejected(f"{field}: {quoted(name)} is none of {', '.join(KINDS)}")
    return cast("Kind", name)


def _identity(text: str, field: str) -> UUID:
    if not IDENTITY.fullmatch(text):
        raise Rejected(f"{field}: {quoted(text)} is not a UUID like 2f1c5d0e-8a4b-4c3d-9e2f-1a2b3c4d5e6f")
    return UUID(text)


def _experiment(said: Fields) -> str:
    """Parse the experiment: one segment of an object key."""
    name = said.text("experiment_id")
    wrong = (
        "contains a slash" if "/" in name or "\\" in name
        else "is no name" if name in {".", ".."}
        else "begins or ends with a space" if name != name.strip()
        else "contains characters that cannot be printed" if not name.isprintable()
        else "has more than 128 bytes" if len(name.encode()) > 128
        else None
    )  # fmt: skip
    if wrong is not None:
        raise Rejected(f"experiment_id: {quoted(name)} {wrong}")
    return name


def _path(text: str) -> str:
    """Check where the images are: below the system's directory, and not among the event files."""
    if WINDOWS.match(text):
        raise Rejected(f"path {quoted(text)} is one of Windows: relative, with slashes")
    parts = segments(text)
    if parts[0] == "events" or parts[0].startswith("."):
        raise Rejected(f"path {quoted(text)} is no place for images")
    return "/".join(parts)


def _day(text: str) -> date:
    try:
        if DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise Rejected(f"cross_date: {quoted(text)} is not a day like 2024-05-17")


def _moment(text: str, instrument: Instrument) -> datetime:
    """Read a time of RFC 3339 into UTC."""
    try:
        if TIME.fullmatch(text) is None:
            raise ValueError
        moment = datetime.fromisoformat(LEAP.sub(":59", text.upper()))
        moment = _placed(moment, instrument) if moment.tzinfo is None else moment.astimezone(UTC)
        return moment if LEAP.search(text) is None else _after_leap_second(moment)
    except (ValueError, OverflowError):
        raise Rejected(f"timestamp: {quoted(text)} is not a time like 2024-05-17T09:30:00+02:00") from None


def _after_leap_second(moment: datetime) -> datetime:
    """Return the second after 23:59:59 UTC, which is how clocks without leap seconds count one."""
    if (moment.hour, moment.minute) != (23, 59):
        raise ValueError("a leap second comes only before midnight in UTC")
    return moment.replace(microsecond=0) + timedelta(seconds=1)


def _placed(moment: datetime, instrument: Instrument) -> datetime:
    """Place a naive time in the instrument's zone."""
    if instrument.timezone is None:
        raise Rejected(f"timestamp: {moment.isoformat()} has no time zone, and none is configured for the instrument")
    utc = moment.replace(tzinfo=instrument.timezone).astimezone(UTC)
    if utc.astimezone(instrument.timezone).replace(tzinfo=None) != moment:
        raise Rejected(f"timestamp: {moment.isoformat()} never was in {instrument.timezone.key}: clocks went forward")
    return utc


def _joined(*parts: dict[str, Any]) -> dict[str, Any]:
    """Merge metadata; a field that occurs twice must have equal values."""
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if not _equal(joined.setdefault(name, value), value):
                raise Rejected(f"{quoted(name)}: {quoted(joined[name])} and {quoted(value)}")
    return joined


def read_json(content: bytes | str, *, cap: int = CAP) -> Any:
    """Parse JSON as RFC 8259 defines it, and refuse what Python also accepts.

    Raises:
        Rejected: says what is wrong and where.
    """
    if len(content) > cap:
        raise Rejected(f"{len(content)} bytes: at most {cap}")
    try:
        text = content.decode() if isinstance(content, bytes) else content
        if text.startswith("\ufeff"):
            raise Rejected("begins with a byte order mark")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        _bounded(value, DEPTH)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Rejected(f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None
    except UnicodeEncodeError:
        raise Rejected("a text holds half a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise Rejected(f"not JSON: {error.msg.lower()} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise Rejected(f"nested deeper than {DEPTH}") from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise Rejected("a number of too many digits") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise Rejected(f"{quoted(name)}: there twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")} or number != number:  # noqa: PLR0124  NaN alone is not itself
        raise Rejected(f"{text[:20]} is not a number that JSON knows")
    return number


def _bounded(value: Any, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise Rejected(f"nested deeper than {DEPTH}")
    for inner in value.values() if isinstance(value, dict) else value:
        _bounded(inner, left - 1)


def _unwrapped(value: Any, what: str) -> dict[str, Any]:
    """Return an object, or parse the one in a string."""
    if not isinstance(value, str):
        return _object(value, what)
    try:
        return _object(read_json(value), what)
    except Rejected as error:
        raise Rejected(f"{what} in a string: {error}") from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Rejected(f"{what}: {quoted(value)} is not an object")
    return value


def _equal(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # 1, 1.0 and true differ


def quoted(value: Any) -> str:
    """Show a value as JSON, short and printable."""
    text = shown(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 80 else f"{text[:77]}..."


class Ref(NamedTuple):
    """One event at one revision."""

    id: UUID
    revision: int

    def __str__(self) -> str:
        return str(self.id) if self.revision == 1 else f"{self.id}-r{self.revision}"

    @classmethod
    def parse(cls, text: str) -> tuple[UUID, int | None]:
        """Read ``<uuid>`` (revision None: whatever is newest) or ``<uuid>-r2``.

        Raises:
            NotFound: no event is called that.
        """
        match = re.fullmatch(r"([0-9a-fA-F-]{32,36})(?:-r([1-9]\d{0,8}))?", text.strip())
        try:
            return UUID(match[1] if match else ""), int(match[2]) if match and match[2] else None
        except ValueError as error:
            raise NotFound(f"{text!r} is not the id of an event") from error
