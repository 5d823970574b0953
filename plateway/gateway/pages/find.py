"""The first page: find events by words or fields, on a line of time and in a list."""

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
class Wanted:
    """What somebody looks for."""

    text: str | None = None
    experiment: str | None = None
    plate: int | None = None
    day: date | None = None
    system: str | None = None
    kind: str | None = None
    state: str | None = None

    @property
    def said(self) -> dict[str, Any]:
        """Say it in the words of the form, without what is left open."""
        told = asdict(self)
        return {"q" if name == "text" else name: value for name, value in told.items() if value is not None}

    def address(self, **more: Any) -> str:
        """Say where that is found."""
        return rendering.address("/", **self.said | more)

    def without(self, name: str) -> str:
        """Say where the same is found without one of its words."""
        return rendering.address("/", **{other: value for other, value in self.said.items() if other != name})


class Listed(NamedTuple):
    """One page of what was found, newest first, and where it goes on."""

    ledgers: list[Ledger]
    newer: str | None
    older: str | None


def install(app: FastAPI, site: Site) -> None:
    """Give an application the first page."""

    def find(request: Request, seen: Annotated[str, auth.READER]) -> Response:
        now, said = site.catalog.now(), request.query_params
        systems = site.catalog.systems() if not seen else []
        wanted = read(said, today=now.date(), systems=systems)
        listed = look(site, wanted, seen, after=said.get("after"), before=said.get("before"))
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


def look(site: Site, wanted: Wanted, seen: str, *, after: str | None, before: str | None) -> Listed:
    """Fetch the page of events after (older than), or before, a place in the list.

    Raises:
        Rejected: that is no place.
    """
    since = wanted.day and datetime.combine(wanted.day, time(), UTC)
    asked: dict[str, Any] = {name: value for name, value in asdict(wanted).items() if name != "day"}
    asked |= {"since": since, "until": since and since + timedelta(days=1), "prefix": seen, "limit": LENGTH + 1}
    if before:
        found = site.catalog.search(after=Cursor.parse(before), newest=False, **asked)
        more, page = len(found) > LENGTH, found[LENGTH - 1 :: -1] if len(found) > LENGTH else found[::-1]
        return Listed(page, _place(wanted, "before", page[:1] if more else []), _place(wanted, "after", page[-1:]))
    found = site.catalog.search(after=Cursor.parse(after) if after else None, **asked)
    page = found[:LENGTH]
    newer = _place(wanted, "before", page[:1] if after else [])
    return Listed(page, newer, _place(wanted, "after", page[-1:] if len(found) > LENGTH else []))


def read(said: Mapping[str, str], *, today: date, systems: Iterable[str]) -> Wanted:
    """Read the form. Words in the box that name a plate, a day, a system, a kind or a state count as such.

    Raises:
        Rejected: a field says something else than it is about.
    """
    fields = {name: value.strip() for name, value in said.items() if value.strip()}
    if odd := [name for name, value in fields.items() if not value.isprintable() or len(value) > LONGEST]:
        raise Rejected(f"{odd[0]}: nothing is called that")
    words = understood(fields.get("q", ""), today=today, systems=systems)
    return replace(
        words,
        experiment=fields.get("experiment"),
        plate=_plate(fields["plate"]) if "plate" in fields else words.plate,
        day=_day(fields["day"]) if "day" in fields else words.day,
        **{name: fields.get(name, getattr(words, name)) for name in ("system", "kind", "state")},
    )


def understood(text: str, *, today: date, systems: Iterable[str] = ()) -> Wanted:
    """Understand what people write: ``plate 12 last tuesday``, ``prince yesterday``, ``20250106_001``, an id."""
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
    return Wanted(text=" ".join(left) or None, **found)


def _days(today: date) -> dict[str, date]:
    """Name the last days; a day of the week is the last one before today."""
    past = [today - timedelta(days=number) for number in range(1, 8)]
    return {"today": today, "yesterday": past[0], **{WEEK[day.weekday()]: day for day in past}}


def _plate(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > LARGEST:
        raise Rejected("a plate is a number")
    return int(text)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Rejected("a day is written as 2026-05-31") from None


def _place(wanted: Wanted, name: str, at: list[Ledger]) -> str | None:
    return wanted.address(**{name: Cursor.after(at[0])}) if at else None
