"""What a person types to find events: words and fields, parsed into the fields of a search.

plate 12 last tuesday · prince nov 1 to nov 15 · last week · the beginning of an id or an experiment
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, get_args

from plateway.errors import Rejected
from plateway.events import LARGEST, Kind
from plateway.ledger import STATES

LONGEST = 1000  # characters of a field
COUNTED = 10_000  # events, up to which matching ones are counted
KINDS = get_args(Kind)
WEEK = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
FILLING = frozenset({"of", "on", "from", "the", "last", "plate", "where", "is", "show"})
PLATE = re.compile(r"\b(?:plate\s*|p)(\d{1,9})\b", re.IGNORECASE)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"  # noqa: E501
DATE = (
    rf"(?:\d{{4}}-\d\d-\d\d|\d{{1,2}}\.?\s+{MONTH}(?:\s+\d{{4}})?|{MONTH}\s+\d{{1,2}}(?:,?\s+\d{{4}})?|today|yesterday)"
)
RANGE = re.compile(
    rf"\b(?:from\s+)?({DATE})(?:\s*(?:to|until|till|\u2013|-)\s*({DATE}))?(?!\w)", re.ASCII | re.IGNORECASE
)
SPAN = re.compile(r"\b(?:(last|this)\s+week|last\s+(\d{1,3})\s+days)\b", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class SearchQuery:
    """The fields of a search."""

    text: str | None = None
    experiment: str | None = None
    plate: int | None = None
    day: date | None = None  # the first one
    until: date | None = None  # the last one; None: only `day`
    system: str | None = None
    kind: str | None = None
    state: str | None = None
    order: str | None = None  # oldest; None: the newest first

    @property
    def fields(self) -> dict[str, Any]:
        """Return the filled fields of the form."""
        told = asdict(self)
        return {"q" if name == "text" else name: value for name, value in told.items() if value is not None}

    @property
    def newest(self) -> bool:
        """Whether the newest events come first."""
        return self.order is None

    @property
    def filters(self) -> dict[str, Any]:
        """Return the arguments of `Catalog.search`; days are those of UTC."""
        last = self.until or self.day
        asked = {name: value for name, value in asdict(self).items() if name not in {"day", "until", "order"}}
        asked["since"] = self.day and datetime.combine(self.day, time(), UTC)
        asked["until"] = last and datetime.combine(last, time.max, UTC)
        return asked


def format_total(count: int) -> str:
    """Format a number of matching events, which were counted up to ``COUNTED``."""
    return f"more than {COUNTED:,} events" if count > COUNTED else f"{count:,} event{'s' if count != 1 else ''}"


def read(said: Mapping[str, str], *, today: date, systems: Iterable[str]) -> SearchQuery:
    """Parse the form. Words in the text field that name a plate, day, system, kind or state become fields.

    Raises:
        Rejected: a field is not valid.
    """
    fields = {name: value.strip() for name, value in said.items() if value.strip()}
    if odd := [name for name, value in fields.items() if not value.isprintable() or len(value) > LONGEST]:
        raise Rejected(f"{odd[0]}: unknown name")
    words = parse_text(fields.get("q", ""), today=today, systems=systems)
    return replace(
        words,
        experiment=fields.get("experiment"),
        plate=_plate(fields["plate"]) if "plate" in fields else words.plate,
        day=_day(fields["day"]) if "day" in fields else words.day,
        until=_last_day(fields, words),
        order="oldest" if fields.get("order") == "oldest" else None,
        **{name: fields.get(name, getattr(words, name)) for name in ("system", "kind", "state")},
    )


def parse_text(text: str, *, today: date, systems: Iterable[str] = ()) -> SearchQuery:
    """Parse free text: ``plate 12 last tuesday``, ``prince nov 1 to nov 15``, ``last week``, an id."""
    plate = PLATE.search(text)
    rest: list[str] = []
    found: dict[str, Any] = {"plate": _plate(plate[1])} if plate else {}
    days, text = _parse_days(PLATE.sub(" ", text) if plate else text, today)
    found |= days
    known: dict[str, tuple[str, Any]] = {
        **{word: ("day", day) for word, day in _days(today).items()},
        **{word: ("kind", word) for word in KINDS},
        **{word: ("state", word) for word in STATES},
        **{word: ("system", word) for word in systems},
    }
    for word in text.split():
        name, value = known.get(word.lower(), known.get(word, (None, None)))
        if name is not None and name not in found:
            found[name] = value
        else:
            rest.append(word)
    left = [word for word in rest if not (found and word.lower() in FILLING)]
    return SearchQuery(text=" ".join(left) or None, **found)


def _days(today: date) -> dict[str, date]:
    """Name the last days of the week; each is the last one before today."""
    past = [today - timedelta(days=number) for number in range(1, 8)]
    return {WEEK[day.weekday()]: day for day in past}


def _parse_days(text: str, today: date) -> tuple[dict[str, Any], str]:
    """Find a day or a range of days in a text, and return it and the rest of the text."""
    if span := SPAN.search(text):
        week, number = span[1], int(span[2] or 0)
        monday = today - timedelta(days=today.weekday())
        first, last = today - timedelta(days=max(number, 1) - 1), today
        if week:
            first = monday if week.lower() == "this" else monday - timedelta(days=7)
            last = first + timedelta(days=6)
    elif span := RANGE.search(text):
        first = _parse_day(span[1], today)
        last = _parse_day(span[2], today) if span[2] else first
        if last < first and re.search(r"\d{4}", span[1]) is None:  # dec 20 to jan 5
            first = first.replace(year=first.year - 1)
    else:
        return {}, text
    found: dict[str, Any] = {"day": first} | ({"until": last} if last != first else {})
    return found, f"{text[: span.start()]} {text[span.end() :]}"


def _parse_day(text: str, today: date) -> date:
    """Parse one day; without a year it is the last such day up to today."""
    told = text.lower()
    if told in {"today", "yesterday"}:
        return today - timedelta(days=told == "yesterday")
    if told[:4].isdecimal():
        return _day(told)
    day, year = re.search(r"\b\d{1,2}\b", told), re.search(r"\b\d{4}\b", told)
    month = next(number for number, name in enumerate(MONTHS, 1) if name in told)
    assert day is not None
    wanted = int(year[0]) if year else today.year
    if not year and (month, int(day[0])) > (today.month, today.day):
        wanted -= 1
    return _day(f"{wanted:04}-{month:02}-{int(day[0]):02}")


def _last_day(fields: Mapping[str, str], words: SearchQuery) -> date | None:
    """Return the last day of a range, which needs a first one."""
    if "until" not in fields:
        return words.until if "day" not in fields else None
    first, last = _day(fields["day"]) if "day" in fields else words.day, _day(fields["until"])
    if first is None or last < first:
        raise Rejected("until: a range of days needs a first day, which is not after its last one")
    return last


def _plate(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > LARGEST:
        raise Rejected("a plate must be a number")
    return int(text)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Rejected("a day has the form 2026-05-31") from None
