"""The dashboard: what came and what became of it, what waits and why, quarantine, and how long the disks will do."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Generic, TypeVar

from fastapi import FastAPI, Request, Response

from plateway import pipeline
from plateway.catalog import Ledger, Overview, SystemOverview
from plateway.gateway import auth
from plateway.gateway.pages import plots, site
from plateway.pipeline import Line
from plateway.records import Quarantine
from plateway.wire import Report

DAYS = 30
SHOWN = 20  # rows of a list
FRESH = 15.0  # seconds for which figures are shown again
PREFIXES = 64  # whose figures are kept
WAITING = ("waiting", "ready", "exporting")
DONE = ("exported", "archived", "purged")
BAD = ("quarantined", "lost", "changed")

T = TypeVar("T")


@dataclass(frozen=True)
class Figures:
    """What the dashboard shows to those who may see these events."""

    at: datetime
    overview: Overview
    waits: tuple[Ledger, ...]  # oldest first
    quarantine: tuple[Quarantine, ...]
    report: Report | None  # None: only who may see all is told of disks

    @property
    def states(self) -> Counter[str]:
        """How many events stand where, all systems together."""
        total: Counter[str] = Counter()
        for one in self.overview.systems:
            total.update(one.states)
        return total

    @property
    def quarantined(self) -> int:
        """How many announcements and events a person has to look at."""
        return sum(one.quarantined for one in self.overview.systems)


class Kept(Generic[T]):
    """Figures that are dear, kept for some seconds; who comes meanwhile waits for those that are being made."""

    def __init__(self, make: Callable[[str], T], *, seconds: float = FRESH) -> None:
        self._make, self._seconds = make, seconds
        self._made: dict[str, tuple[float, T]] = {}
        self._making = threading.Lock()

    def get(self, prefix: str) -> T:
        """Give the figures of a prefix."""
        with self._making:
            until, made = self._made.get(prefix, (0.0, None))
            if made is None or time.monotonic() > until:
                made = self._make(prefix)
                self._made = dict(list(self._made.items())[-PREFIXES:])
                self._made[prefix] = time.monotonic() + self._seconds, made
            return made


def install(app: FastAPI, line: Line) -> None:
    """Give an application the dashboard."""
    kept = Kept(lambda prefix: gather(line, prefix))

    def dashboard(request: Request, seen: Annotated[str, auth.READER]) -> Response:
        figures = kept.get(seen)
        today, days = figures.at.date(), figures.report.days if figures.report else []
        systems = plots.colours(sorted({name for _, name, _ in figures.overview.days}))
        moved = [
            ("Sent to the bucket", "s-exported", [(day.day, "bundles", day.exports) for day in days]),
            ("On tape", "s-archived", [(day.day, "bundles", day.archived) for day in days]),
        ]
        return site.render(
            request,
            "dashboard.html",
            figures=figures,
            came=plots.bars(figures.overview.days, series=systems, days=DAYS, today=today, what="Imaged"),
            moved=[
                plots.bars(counts, series={"bundles": colour}, days=DAYS, today=today, what=what)
                for what, colour, counts in moved
                if days
            ],
            systems=[(one, shares(one)) for one in figures.overview.systems],
            states=(*WAITING, *DONE, *BAD),
            now=figures.at,
            shown=SHOWN,
            prefect_runs=list(links(request.app.state.parts.prefect_ui)),
        )

    site.add(app, "/dashboard", dashboard)


def gather(line: Line, prefix: str) -> Figures:
    """Ask the catalogue, and the disks."""
    now = line.catalog.now()
    waits = [one for one in line.catalog.stuck(before=now, limit=1000) if one.event.key.startswith(prefix)]
    return Figures(
        at=now,
        overview=line.catalog.overview(prefix=prefix, days=DAYS, now=now),
        waits=tuple(waits),
        quarantine=tuple(line.catalog.quarantined()) if not prefix else (),
        report=pipeline.report(line, now=now) if not prefix else None,
    )


def shares(system: SystemOverview) -> list[tuple[str, int, float, float]]:
    """Say where each state begins on a system's bar, and how wide it is, per cent."""
    found, at = [], 0.0
    for state in (*DONE[::-1], *WAITING[::-1], *BAD):
        if count := system.states.get(state, 0):
            width = 100 * count / system.events
            found.append((state, count, at, width))
            at += width
    return found


def links(prefect: str | None) -> Iterator[tuple[str, str]]:
    """Name the pages of the Prefect UI that tell how the line runs."""
    if prefect:
        base = prefect.rstrip("/")
        yield "Runs", f"{base}/runs"
        yield "Deployments", f"{base}/deployments"
        yield "Automations", f"{base}/automations"
        yield "Event feed", f"{base}/events"
