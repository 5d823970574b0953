"""The dashboard: counts of events by state, waiting events, quarantine, and free disk space.

The figures are computed in the background, because those of a prefix, and the report on the disks, may take long: a
page shows the last ones and their time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Generic, TypeVar

from fastapi import FastAPI, Request, Response

from plateway import pipeline
from plateway.gateway import auth
from plateway.gateway.errors import Problem
from plateway.gateway.pages import plots, rendering
from plateway.gateway.probes import run
from plateway.ledger import DailyRow, Ledger, Overview, SystemOverview
from plateway.pipeline import Site
from plateway.records import Quarantine

DAYS = 30  # of plots, unless another range is chosen
RANGES = (7, DAYS, 90, 365)
SHOWN = 20  # rows of a list
MOST = 1000  # events that are read to find those of a prefix
FRESH, REPORTED = 10.0, 60.0  # seconds after which figures, and the report with the disks, are computed again
OLD = 600.0  # seconds after which figures are no longer shown
FIGURE_SECONDS, REPORT_SECONDS = 60.0, 0.3  # seconds that a page waits for its figures, and for the report
PREFIXES = 64  # of which figures are cached
WAITING = ("waiting", "ready", "exporting")
DONE = ("exported", "archived", "purged")
BAD = ("quarantined", "lost", "changed")

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DashboardFigures:
    """The content of the dashboard for the events of one prefix."""

    at: datetime
    overview: Overview
    daily: tuple[DailyRow, ...]
    waits: tuple[Ledger, ...]  # oldest first, one more than shown
    quarantine: tuple[Quarantine, ...]  # empty for a prefix: announcements have no key

    @property
    def states(self) -> Counter[str]:
        """The number of events by state, of all systems."""
        total: Counter[str] = Counter()
        for one in self.overview.systems:
            total.update(one.states)
        return total


class BackgroundCache(Generic[T]):
    """Values that take long to compute: the last ones are returned while new ones are computed in the background."""

    def __init__(self, make: Callable[[str], T], *, seconds: float) -> None:
        self._make, self._seconds = make, seconds
        self._made: dict[str, tuple[float, T]] = {}
        self._making: dict[str, Future[T]] = {}
        self._lock, self._one = threading.Lock(), threading.Lock()

    def get(self, key: str, *, patience: float) -> T | None:
        """Return the value of a key; None: there is none yet, and computing it takes longer than `patience` seconds.

        Raises:
            PlatewayError: it cannot be computed.
        """
        with self._lock:
            at, made = self._made.get(key, (-OLD, None))
            age = time.monotonic() - at
            if made is not None and age < self._seconds:
                return made
            if key not in self._making:
                self._making[key] = Future()
                run(partial(self._compute, key), into=self._making[key], name="figures")
            making = self._making[key]
        if made is not None and age < OLD:
            return made
        try:
            return making.result(patience)
        except TimeoutError:
            return None

    def _compute(self, key: str) -> T:
        try:
            with self._one:
                made = self._make(key)
        except Exception as error:
            log.warning("the figures of the dashboard were not computed: %s", error)
            with self._lock:
                del self._making[key]
            raise
        with self._lock:
            self._made = dict(list(self._made.items())[1 - PREFIXES :])
            self._made[key] = time.monotonic(), made
            del self._making[key]
        return made


def install(app: FastAPI, site: Site) -> None:
    """Add the dashboard to an application."""
    kept = {days: BackgroundCache(partial(gather, site, days=days), seconds=FRESH) for days in RANGES}
    reports = BackgroundCache(lambda _: pipeline.report(site), seconds=REPORTED)

    def dashboard(request: Request, seen: Annotated[str, auth.READER], days: str = "") -> Response:
        shown_days = next((one for one in RANGES if str(one) == days), DAYS)
        figures = kept[shown_days].get(seen, patience=FIGURE_SECONDS)
        if figures is None:
            raise Problem(503, "The figures are still being computed")
        today = figures.at.date()
        became = [
            ("In the bucket", "s-exported", [(one.date, "bundles", one.exports) for one in figures.daily]),
            ("On tape", "s-archived", [(one.date, "bundles", one.archives) for one in figures.daily]),
        ]
        systems = plots.colours(sorted({name for _, name, _ in figures.overview.days}))
        return rendering.render(
            request,
            "dashboard.html",
            figures=figures,
            whole=not seen,
            report=None if seen else reports.get("", patience=REPORT_SECONDS),
            came=plots.bars(figures.overview.days, series=systems, days=shown_days, today=today, what="Imaged"),
            became=[
                plots.bars(counts, series={"bundles": colour}, days=shown_days, today=today, what=what)
                for what, colour, counts in became
            ],
            systems=[(one, shares(one)) for one in figures.overview.systems],
            states=(*BAD, *WAITING, *DONE),
            now=figures.at,
            shown=SHOWN,
            ranges=RANGES,
            shown_days=shown_days,
            prefect_runs=list(links(request.app.state.parts.prefect_ui)),
        )

    rendering.add(app, "/dashboard", dashboard)


def gather(site: Site, prefix: str, *, days: int = DAYS) -> DashboardFigures:
    """Read the figures from the catalogue; with a prefix, without facts that belong to no key."""
    now = site.catalog.now()
    waits = site.catalog.stuck(before=now, limit=MOST if prefix else SHOWN + 1)
    return DashboardFigures(
        at=now,
        overview=site.catalog.overview(prefix=prefix, days=days, now=now),
        daily=tuple(site.catalog.daily(days=days, prefix=prefix)),
        waits=tuple(one for one in waits if one.event.key.startswith(prefix)),
        quarantine=() if prefix else tuple(site.catalog.quarantined()),
    )


def shares(system: SystemOverview) -> list[tuple[str, int, float, float]]:
    """Return the start and width of each state on a system's bar, in per cent."""
    found, at = [], 0.0
    for state in (*DONE[::-1], *WAITING[::-1], *BAD):
        if count := system.states.get(state, 0):
            width = 100 * count / system.events
            found.append((state, count, at, width))
            at += width
    return found


def links(prefect: str | None) -> Iterator[tuple[str, str]]:
    """List pages of the Prefect UI about the runs of the site."""
    if prefect:
        base = prefect.rstrip("/")
        yield "Runs", f"{base}/runs"
        yield "Deployments", f"{base}/deployments"
        yield "Automations", f"{base}/automations"
        yield "Event feed", f"{base}/events"
