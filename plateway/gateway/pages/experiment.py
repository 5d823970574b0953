"""The page of an experiment: its plates by day, with gaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated

from fastapi import FastAPI, Request, Response

from plateway.errors import NotFound
from plateway.gateway import auth
from plateway.gateway.pages import rendering
from plateway.ledger import Ledger
from plateway.pipeline import Site

EVENTS = 2000  # that are shown, the newest ones
DAYS = 60  # columns; of a longer experiment only days with events are shown


@dataclass(frozen=True)
class PlateRow:
    """The events of one plate by day; a day without events is a gap."""

    plate: int | None
    kind: str
    system: str
    cells: tuple[tuple[Ledger, ...], ...]


def install(app: FastAPI, site: Site) -> None:
    """Add the page of an experiment to an application."""

    def experiment(request: Request, seen: Annotated[str, auth.READER], name: str = "") -> Response:
        found = site.catalog.search(experiment=name, prefix=seen, limit=EVENTS + 1)
        if not found:
            raise NotFound("there is no such experiment")
        days, rows = arrange(found[:EVENTS])
        return rendering.render(
            request,
            "experiment.html",
            name=name,
            days=days,
            rows=rows,
            total=min(len(found), EVENTS),
            more=len(found) > EVENTS,
        )

    rendering.add(app, "/experiment", experiment)


def arrange(ledgers: Sequence[Ledger]) -> tuple[list[date], list[PlateRow]]:
    """Arrange events by plate and day, the events of a cell in the order of time."""
    cells: dict[tuple[int | None, str, str], dict[date, list[Ledger]]] = defaultdict(lambda: defaultdict(list))
    for ledger in sorted(ledgers, key=lambda one: one.event.timestamp):
        event = ledger.event
        cells[event.plate, event.kind, event.system][event.timestamp.date()].append(ledger)
    there = sorted({day for row in cells.values() for day in row})
    span = (there[-1] - there[0]).days + 1
    days = [there[0] + timedelta(days=number) for number in range(span)] if span <= DAYS else there
    order = sorted(cells, key=lambda key: (key[0] is None, key[0] or 0, key[1:]))
    return days, [PlateRow(*key, tuple(tuple(cells[key].get(day, ())) for day in days)) for key in order]
