"""The first page: search events by words or fields, on a timeline and in a list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby
from typing import Annotated, Any, NamedTuple

from fastapi import FastAPI, Request, Response

from plateway import queries
from plateway.gateway import auth
from plateway.gateway.pages import plots, rendering
from plateway.ledger import STATES, Cursor, Ledger
from plateway.pipeline import Site
from plateway.queries import COUNTED, KINDS, SearchQuery
from plateway.records import Quarantine

LENGTH = 50  # events on a page
ASIDE = 20  # announcements in quarantine that are shown above the events
YEAR = timedelta(days=400)  # after which no words mean the same days


class ResultPage(NamedTuple):
    """One page of events, in the order that was asked for, and the links to the pages around it."""

    ledgers: list[Ledger]
    previous: str | None
    next: str | None


def install(app: FastAPI, site: Site) -> None:
    """Add the first page to an application."""

    def find(request: Request, seen: Annotated[str, auth.READER]) -> Response:
        now, said = site.catalog.now(), request.query_params
        systems = site.catalog.systems() if not seen else []
        wanted = queries.read(said, today=now.date(), systems=systems)
        if wanted != queries.read(said, today=now.date() + YEAR, systems=systems):  # "today" is another day tomorrow
            return Response(None, 303, {"Location": address(wanted), "Cache-Control": "no-store"})
        listed = read_page(site, wanted, seen, after=said.get("after"), before=said.get("before"))
        paged = "after" in said or "before" in said
        aside = [] if seen or paged or not wanted.fields else announcements(site, wanted)
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
            paged=paged,
            total=queries.format_total(site.catalog.count_matching(**wanted.filters, prefix=seen, most=COUNTED + 1)),
            aside=aside,
            address_of=lambda **more: address(wanted, **more),
            without=lambda name: without(wanted, name),
            timeline=plots.timeline(listed.ledgers, now=now),
        )

    rendering.add(app, "/", find)


def read_page(site: Site, wanted: SearchQuery, seen: str, *, after: str | None, before: str | None) -> ResultPage:
    """Read the page of events after (older than), or before, a cursor.

    Raises:
        Rejected: the cursor is not valid.
    """
    asked = {**wanted.filters, "prefix": seen, "limit": LENGTH + 1}
    if before:
        found = site.catalog.search(after=Cursor.parse(before), newest=not wanted.newest, **asked)
        more, page = len(found) > LENGTH, found[LENGTH - 1 :: -1] if len(found) > LENGTH else found[::-1]
        return ResultPage(page, _place(wanted, "before", page[:1] if more else []), _place(wanted, "after", page[-1:]))
    found = site.catalog.search(after=Cursor.parse(after) if after else None, newest=wanted.newest, **asked)
    page = found[:LENGTH]
    earlier = _place(wanted, "before", page[:1] if after else [])
    return ResultPage(page, earlier, _place(wanted, "after", page[-1:] if len(found) > LENGTH else []))


def announcements(site: Site, wanted: SearchQuery) -> Sequence[Quarantine]:
    """Find announcements in quarantine that became no event: they have a file, an instrument, a time and a reason."""
    if wanted.state not in {None, "quarantined"} or wanted.experiment or wanted.kind or wanted.plate is not None:
        return []
    asked = {name: value for name, value in wanted.filters.items() if name in {"text", "system", "since", "until"}}
    return site.catalog.quarantined_announcements(**asked, limit=ASIDE + 1)


def address(wanted: SearchQuery, **more: Any) -> str:
    """Return the address of a search."""
    return rendering.address("/", **wanted.fields | more)


def without(wanted: SearchQuery, name: str) -> str:
    """Return the address of a search without one of its fields."""
    return rendering.address("/", **{other: value for other, value in wanted.fields.items() if other != name})


def _place(wanted: SearchQuery, name: str, at: list[Ledger]) -> str | None:
    return address(wanted, **{name: Cursor.after(at[0])}) if at else None
