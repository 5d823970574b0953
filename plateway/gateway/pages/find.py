"""The first page: search events by words or fields, on a timeline and in a list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import Annotated, Any, NamedTuple, get_args

from fastapi import FastAPI, Request, Response

from plateway.errors import Rejected
from plateway.events import LARGEST, Kind
from plateway.gateway import auth
from plateway.gateway.pages import plots, rendering
from plateway.ledger import Cursor, Ledger
from plateway.pipeline import Site

LENGTH = 50  # events on a page
LONGEST = 1000  # characters of a field
KINDS = get_args(Kind)
STATES = ("waiting", "ready", "exporting", "exported", "archived", "purged", "quarantined", "lost", "changed")
YEAR = timedelta(days=400)  # after which no words mean the same days
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

    @property
    def fields(self) -> dict[str, Any]:
        """Return the filled fields of the form."""
        told = asdict(self)
        return {"q" if name == "text" else name: value for name, value in told.items() if value is not None}

    def address(self, **more: Any) -> str:
        """Return the address of the search."""
        return rendering.address("/", **self.fields | more)

    def without(self, name: str) -> str:
        """Return the address of the search without one of its fields."""
        return rendering.address("/", **{other: value for other, value in self.fields.items() if other != name})


class ResultPage(NamedTuple):
    """One page of events, newest first, and the links to further pages."""

    ledgers: list[Ledger]
    newer: str | None
    older: str | None


def install(app: FastAPI, site: Site) -> None:
    """Add the first page to an application."""

    def find(request: Request, seen: Annotated[str, auth.READER]) -> Response:
        now, said = site.catalog.now(), request.query_params
        systems = site.catalog.systems() if not seen else []
        wanted = read(said, today=now.date(), systems=systems)
        if wanted != read(said, today=now.date() + YEAR, systems=systems):  # "today" is another day tomorrow
            return Response(None, 303, {"Location": wanted.address(), "Cache-Control": "no-store"})
        listed = read_page(site, wanted, seen, after=said.get("after"), before=said.get("before"))
        days = groupby(listed.ledgers, key=lambda ledger: ledger.event.timestamp.date())
        return rendering.render(
            request,
            "find.html",
            wanted=wanted,
            systems=systems,
            kinds=KINDS,
            states=STATES,
            days=[(day, [(one, one.state(now)) for one in ledgers]) for day, ledgers in days],
            listed=listed,
            paged="after" in said or "before" in said,
            timeline=plots.timeline(listed.ledgers, now=now),
        )

    rendering.add(app, "/", find)


def read_page(site: Site, wanted: SearchQuery, seen: str, *, after: str | None, before: str | None) -> ResultPage:
    """Read the page of events after (older than), or before, a cursor.

    Raises:
        Rejected: the cursor is not valid.
    """
    asked: dict[str, Any] = {name: value for name, value in asdict(wanted).items() if name not in {"day", "until"}}
    last = wanted.until or wanted.day
    asked["since"] = wanted.day and datetime.combine(wanted.day, time(), UTC)
    asked["until"] = last and datetime.combine(last, time.max, UTC)
    asked |= {"prefix": seen, "limit": LENGTH + 1}
    if before:
        found = site.catalog.search(after=Cursor.parse(before), newest=False, **asked)
        more, page = len(found) > LENGTH, found[LENGTH - 1 :: -1] if len(found) > LENGTH else found[::-1]
        return ResultPage(page, _place(wanted, "before", page[:1] if more else []), _place(wanted, "after", page[-1:]))
    found = site.catalog.search(after=Cursor.parse(after) if after else None, **asked)
    page = found[:LENGTH]
    newer = _place(wanted, "before", page[:1] if after else [])
    return ResultPage(page, newer, _place(wanted, "after", page[-1:] if len(found) > LENGTH else []))


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


def _place(wanted: SearchQuery, name: str, at: list[Ledger]) -> str | None:
    return wanted.address(**{name: Cursor.after(at[0])}) if at else None
