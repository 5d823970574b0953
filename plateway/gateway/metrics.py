"""Metrics for Prometheus: events by state, waiting events and their age, and the duration of requests.

A token with a prefix gets the metrics of its own events, and none of requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from threading import Lock
from typing import Annotated, NamedTuple

from cachetools import TTLCache, cached
from fastapi import FastAPI, Request, Response
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from plateway import __version__
from plateway.catalog.outbox import Backlog
from plateway.errors import PlatewayError
from plateway.gateway import auth
from plateway.gateway.latency import BOUNDS, Durations, RequestTiming, Timing
from plateway.ledger import STATES, Overview, SystemOverview
from plateway.pipeline import Site

TEXT = "text/plain; version=0.0.4; charset=utf-8"
HOLDS = 15.0  # seconds for which the metrics of events are cached: those of a prefix need a scan
PREFIXES = 64  # of which metrics are cached


class _Families(NamedTuple):
    """The metrics of one response, as `generate_latest` reads them."""

    families: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def install(app: FastAPI, site: Site) -> None:
    """Add this route to an application, and count its requests."""
    app.add_middleware(RequestTiming, gateway=app, directory=app.state.parts.place)
    overviews: TTLCache[str, Overview] = TTLCache(PREFIXES, HOLDS, timer=time.monotonic)

    @cached(overviews, lock=Lock())
    def read_overview(seen: str) -> Overview:
        return site.catalog.overview(prefix=seen, days=1, now=site.catalog.now())

    def get_metrics(request: Request, seen: Annotated[str, auth.READER]) -> Response:
        """Return the state of events, and how long requests take, in the text format of Prometheus."""
        durations: Durations = request.app.state.durations
        build = GaugeMetricFamily("plateway_build_info", "The version.", labels=["version"])
        build.add_metric([__version__], 1)
        families = [build, *([_describe_requests(durations.read())] if not seen else [])]
        available = GaugeMetricFamily("plateway_catalogue_up", "Whether the catalogue can be read.")
        try:
            now = site.catalog.now()
            families += _describe_events(read_overview(seen).systems, now)
            families += [] if seen else _describe_outbox(site.catalog.backlogs(), now)
            available.add_metric([], 1)
        except PlatewayError:
            available.add_metric([], 0)
        body = generate_latest(_Families([*families, available]))
        return Response(body, media_type=TEXT)

    app.add_api_route("/metrics", get_metrics, tags=["health"], response_class=Response)


def _describe_events(systems: Sequence[SystemOverview], now: datetime) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: Callable[[SystemOverview], float | None]) -> Metric:
        family = GaugeMetricFamily(f"plateway_{name}", text, labels=["system"])
        for one in systems:
            if (known := value(one)) is not None:
                family.add_metric([one.system], known)
        return family

    def age(since: datetime | None) -> float:
        return max((now - since).total_seconds(), 0.0) if since else 0.0

    states = GaugeMetricFamily("plateway_events", "Events, by system and state.", labels=["system", "state"])
    for one in systems:
        for state in STATES:
            states.add_metric([one.system, state], one.states.get(state, 0))
    yield states
    yield gauge("exported_bytes", "Bytes of uploaded bundles.", lambda one: one.bytes_exported)
    yield gauge("quarantined", "Announcements and events in quarantine.", lambda one: one.quarantined)
    yield gauge(
        "oldest_waiting_seconds",
        "Age of the oldest event that is not exported; 0: none.",
        lambda one: age(one.oldest_waiting),
    )
    yield gauge(
        "oldest_unverified_seconds",
        "Age of the oldest upload that is not verified; 0: none.",
        lambda one: age(one.oldest_unverified),
    )
    yield gauge(
        "last_success_timestamp_seconds",
        "When an export was last verified.",
        lambda one: one.last_success.timestamp() if one.last_success else None,
    )


def _describe_outbox(backlogs: Sequence[Backlog], now: datetime) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: Callable[[Backlog], float]) -> Metric:
        family = GaugeMetricFamily(f"plateway_outbox_{name}", text, labels=["target"])
        for one in backlogs:
            family.add_metric([one.target.name], value(one))
        return family

    if backlogs:
        yield gauge("pending", "Messages that a target has not got.", lambda one: one.pending)
        yield gauge("oldest_seconds", "Age of the oldest of them; 0: none.", lambda one: one.age(now).total_seconds())
        yield gauge("failing", "1 if the last attempt failed.", lambda one: one.target.error is not None)


def _describe_requests(timings: Iterable[Timing]) -> Metric:
    family = HistogramMetricFamily(
        "plateway_request_duration_seconds", "Duration of requests.", labels=["route", "method", "status"]
    )
    bounds = [*map(str, BOUNDS), "+Inf"]
    for route, method, status, counts, seconds in timings:
        family.add_metric([route, method, status], list(zip(bounds, accumulate(counts), strict=True)), seconds)
    return family
