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
WEEK = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
FILLING = frozenset({"of", "on", "from", "the", "last", "plate", "where", "is", "show"})
PLATE = re.compile(r"\b(?:plate\s*|p)(\d{1,9})\b", re.IGNORECASE)
DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@dataclass(frozen=True)
class SearchQuery:
    """The fields of a search."""

    text: str | None = None
    experiment: str | None = None
    plate: int | None = None
    day: date | None = None
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
    since = wanted.day and datetime.combine(wanted.day, time(), UTC)
    asked: dict[str, Any] = {name: value for name, value in asdict(wanted).items() if name != "day"}
    asked |= {"since": since, "until": since and since + timedelta(days=1), "prefix": seen, "limit": LENGTH + 1}
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
        **{name: fields.get(name, getattr(words, name)) for name in ("system", "kind", "state")},
    )


def parse_text(text: str, *, today: date, systems: Iterable[str] = ()) -> SearchQuery:
    """Parse free text: ``plate 12 last tuesday``, ``prince yesterday``, ``20250106_001``, an id."""
    plate = PLATE.search(text)
    rest: list[str] = []
    found: dict[str, Any] = {"plate": _plate(plate[1])} if plate else {}
    known: dict[str, tuple[str, Any]] = {
        **{word: ("day", day) for word, day in _days(today).items()},
        **{word: ("kind", word) for word in KINDS},
        **{word: ("state", word) for word in STATES},
        **{word: ("system", word) for word in systems},
    }
    for word in PLATE.sub(" ", text).split() if plate else text.split():
        name, value = known.get(word.lower(), known.get(word, (None, None)))
        if name is None and DATE.fullmatch(word):
            name, value = "day", _day(word)
        if name is not None and name not in found:
            found[name] = value
        else:
            rest.append(word)
    left = [word for word in rest if not (found and word.lower() in FILLING)]
    return SearchQuery(text=" ".join(left) or None, **found)


def _days(today: date) -> dict[str, date]:
    """Name the last days; a day of the week is the last one before today."""
    past = [today - timedelta(days=number) for number in range(1, 8)]
    return {"today": today, "yesterday": past[0], **{WEEK[day.weekday()]: day for day in past}}


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
