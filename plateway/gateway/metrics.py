"""Figures for Prometheus: where events stand, what waits and since when, and how long requests take.

Who may see some keys only is told of their events, and not of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Annotated, NamedTuple

from fastapi import FastAPI, Request, Response

from plateway import __version__
from plateway.errors import PlatewayError
from plateway.gateway import auth
from plateway.gateway.images import Recall
from plateway.gateway.latency import (
    BOUNDS,
    Durations,
    Timed,
    Timing,
)
from plateway.ledger import STATES, Overview, SystemOverview
from plateway.pipeline import Site

TEXT = "text/plain; version=0.0.4; charset=utf-8"
HOLDS = 15.0  # seconds for which figures of events are told again: every event is looked at for them
PREFIXES = 64  # whose figures are kept


class Sample(NamedTuple):
    """One value."""

    labels: Mapping[str, str]
    value: float
    ending: str = ""  # of the name


class Family(NamedTuple):
    """All values of one name."""

    name: str
    kind: str  # gauge | histogram
    means: str
    samples: Sequence[Sample]

    def __str__(self) -> str:
        lines = [f"# HELP {self.name} {self.means}", f"# TYPE {self.name} {self.kind}"]
        for labels, value, ending in self.samples:
            said = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            lines.append(f"{self.name}{ending}{{{said}}} {value!r}")
        return "\n".join(lines) + "\n"


def install(app: FastAPI, line: Site) -> None:
    """Give an application this route, and let it count requests."""
    app.add_middleware(Timed, gateway=app, directory=app.state.parts.place)
    known = Recall[Overview](PREFIXES, holds=HOLDS)

    def get_metrics(request: Request, seen: Annotated[str, auth.READER]) -> Response:
        """Tell where events stand, and how long requests take, in the words of Prometheus."""
        durations: Durations = request.app.state.durations
        families = [_one("plateway_build_info", "The version.", 1, version=__version__)]
        families += [_requests(durations.read())] if not seen else []
        try:
            now = line.catalog.now()
            overview = known.get(seen, lambda: line.catalog.overview(prefix=seen, days=1, now=now))
            families += _events(overview.systems, now)
        except PlatewayError:
            families.append(_one("plateway_catalogue_up", "Whether the catalogue answers.", 0))
        else:
            families.append(_one("plateway_catalogue_up", "Whether the catalogue answers.", 1))
        return Response("".join(map(str, families)), media_type=TEXT)

    app.add_api_route("/metrics", get_metrics, tags=["health"], response_class=Response)


def _events(systems: Sequence[SystemOverview], now: datetime) -> Iterator[Family]:
    def gauge(name: str, means: str, value: Callable[[SystemOverview], float | None]) -> Family:
        samples = [Sample({"system": one.system}, told) for one in systems if (told := value(one)) is not None]
        return Family(f"plateway_{name}", "gauge", means, samples)

    def age(since: datetime | None) -> float:
        return max((now - since).total_seconds(), 0.0) if since else 0.0

    states = [
        Sample({"system": one.system, "state": state}, one.states.get(state, 0)) for one in systems for state in STATES
    ]
    yield Family("plateway_events", "gauge", "Events, by system and by where they stand.", states)
    yield gauge("exported_bytes", "Bytes of bundles that reached the bucket.", lambda one: one.bytes_exported)
    yield gauge("quarantined", "Announcements and events in quarantine.", lambda one: one.quarantined)
    yield gauge(
        "oldest_waiting_seconds",
        "How long the first event waits to be exported; 0: none.",
        lambda one: age(one.oldest_waiting),
    )
    yield gauge(
        "oldest_unverified_seconds",
        "How long the first upload waits for evidence; 0: none.",
        lambda one: age(one.oldest_unverified),
    )
    yield gauge(
        "last_success_timestamp_seconds",
        "When an export was last verified.",
        lambda one: one.last_success.timestamp() if one.last_success else None,
    )


def _requests(timings: Iterator[Timing]) -> Family:
    samples = []
    for route, method, status, counts, seconds in timings:
        labels = {"route": route, "method": method, "status": status}
        for bound, number in zip((*map(repr, BOUNDS), "+Inf"), accumulate(counts), strict=True):
            samples.append(Sample({**labels, "le": bound}, number, "_bucket"))
        samples += [Sample(labels, sum(counts), "_count"), Sample(labels, seconds, "_sum")]
    return Family("plateway_request_duration_seconds", "histogram", "How long requests took.", samples)


def _one(name: str, means: str, value: int, **labels: str) -> Family:
    return Family(name, "gauge", means, [Sample(labels, value)])


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
