"""Figures for Prometheus, read with its own parser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.gateway import Parts
from plateway.gateway.latency import BOUNDS, Durations
from plateway.ledger import STATES
from plateway.local.seaweed import PLAIN
from plateway.store.memory import Memory
from tests.databases import processes
from tests.factories import add
from tests.filling import END, PERIOD, fill
from tests.gateway.conftest import GENEROUS, Gateway, running
from tests.lab import Clock, Lab

EVENTS = 200
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(http: httpx.Client) -> Samples:
    """Send a request, and read what is answered."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation and family.type in {"gauge", "histogram"} for family in families)
    samples = [sample for family in families for sample in family.samples]
    told = {(one.name, frozenset(one.labels.items())): one.value for one in samples}
    assert len(told) == len(samples)
    return told


def value(told: Samples, name: str, **labels: str) -> float:
    """Find one value."""
    return told[f"plateway_{name}", frozenset(labels.items())]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A line with events in every state."""
    home, clock = tmp_path_factory.mktemp("metrics"), Clock()
    clock.now = END
    lab = Lab(home, Memory(), clock, Catalog(f"sqlite:///{home}/catalogue.db", clock=clock))
    lab.catalog.upgrade()
    fill(lab.catalog, events=EVENTS)
    yield lab
    lab.catalog.close()


@pytest.fixture
def gateway(lab: Lab, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway of the test's own before it."""
    with running(parts(lab, tmp_path)) as one:
        yield one


def parts(lab: Lab, home: Path, **other: Any) -> Parts:
    """Return what a gateway consists of."""
    site = replace(lab.site, catalog=Catalog(f"sqlite:///{lab.home}/catalogue.db", clock=lab.clock))
    return Parts(home=home, tokens=home / "tokens.json", limits=GENEROUS, site=lambda: site, **other)


def test_figures_of_events(gateway: Gateway, lab: Lab) -> None:
    """Counts in each state, bytes, what waits and for how long, and the last success, of each system."""
    with gateway.client() as http:
        told = scraped(http)
    assert value(told, "catalogue_up") == 1
    ledgers = lab.catalog.ledgers()
    for system in ("aretha", "prince", "tina"):
        mine = [one for one in ledgers if one.event.system == system]
        for state in STATES:
            count = sum(one.state(END).name == state for one in mine)
            assert value(told, "events", system=system, state=state) == count
        exports = [one.export for one in mine if one.export]
        assert value(told, "exported_bytes", system=system) == sum(one.size for one in exports)
        success = max(one.evidence_at for one in exports if one.evidence_at)
        assert value(told, "last_success_timestamp_seconds", system=system) == success.timestamp()
        waits = min((one.event.first_seen for one in mine if not one.export and not one.quarantine), default=END)
        assert value(told, "oldest_waiting_seconds", system=system) == (END - waits).total_seconds()
        unproven = min((one.uploaded_at for one in exports if not one.evidence and not one.damage), default=END)
        assert value(told, "oldest_unverified_seconds", system=system) == max((END - unproven).total_seconds(), 0)
        assert value(told, "quarantined", system=system) == sum(one.quarantine is not None for one in mine)
    assert sum(value(told, "quarantined", system=system) for system in ("aretha", "prince", "tina")) == 1
    assert max(value(told, "oldest_waiting_seconds", system=system) for system in ("aretha", "prince", "tina")) > 3600
    assert timedelta(hours=1) < PERIOD


def test_requests_are_counted(gateway: Gateway) -> None:
    """By route, method and kind of answer; the buckets of a histogram grow, and outlast the gateway."""
    with gateway.client() as http:
        for _ in range(5):
            http.get("/api/1/exports")
        http.get("/api/1/exports?limit=-1")
        http.get("/nothing")
        http.get("/api/1/events/nothing")
        http.delete("/api/1/exports")
        told = scraped(http)
        labels = {"route": "/api/1/exports", "method": "GET", "status": "2xx"}
        assert value(told, "request_duration_seconds_count", **labels) == 5
        assert value(told, "request_duration_seconds_count", **{**labels, "status": "4xx"}) == 1
        for route, method in (("/api/1/events/{id}", "GET"), ("none", "GET"), ("none", "DELETE")):
            assert value(told, "request_duration_seconds_count", route=route, method=method, status="4xx") == 1
        assert 0 < value(told, "request_duration_seconds_sum", **labels) < 60
        bounds = (*map(repr, BOUNDS), "+Inf")
        buckets = [value(told, "request_duration_seconds_bucket", **labels, le=bound) for bound in bounds]
        assert buckets == sorted(buckets)
        assert buckets[-1] == 5
        again = scraped(http)
    assert value(again, "request_duration_seconds_count", route="/metrics", method="GET", status="2xx") >= 1
    with running(gateway.parts) as another:
        another.secrets |= gateway.secrets
        with another.client() as http:
            told = scraped(http)
        assert value(told, "request_duration_seconds_count", **labels) == 5


def test_workers_add_up(tmp_path: Path) -> None:
    """What processes and their threads count at a time is the sum."""
    with ProcessPoolExecutor(2, mp_context=processes()) as pool:
        list(pool.map(work, [tmp_path] * 2))
    durations = Durations(tmp_path, FastAPI())
    (found,) = durations.read()
    assert found[:3] == ("none", "GET", "2xx")
    assert sum(found.counts) == 2 * 2 * 500
    assert found.seconds == pytest.approx(2 * 2 * sum(number / 100 for number in range(500)))
    durations.record("/elsewhere", "BREW", 200, 1)
    assert [one.method for one in durations.read()] == ["GET"]


def work(directory: Path) -> None:
    """Count as one worker does, in two threads."""
    durations = Durations(directory, FastAPI())

    def count() -> None:
        for number in range(500):
            durations.record("none", "GET", 200, number / 100)
            durations.flush()

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for _ in range(1000):
        durations.flush()


def test_who_may_ask(gateway: Gateway) -> None:
    """A token that may read; one for a prefix is told of its events, and of no requests."""
    with httpx.Client(base_url=gateway.url, trust_env=False, verify=PLAIN) as anybody:
        assert anybody.get("/metrics").status_code == 401
    with gateway.client(gateway.token("writer", "write")) as http:
        assert http.get("/metrics").status_code == 403
    with gateway.client(gateway.token("some", "read", prefix="video/")) as http:
        told = scraped(http)
    with gateway.client() as http:
        whole = scraped(http)
    assert not [name for name, _ in told if name.startswith("plateway_request")]
    events = {name: number for name, number in told.items() if name[0] == "plateway_events"}
    assert 0 < sum(events.values()) == EVENTS // 5
    assert sum(number for (name, _), number in whole.items() if name == "plateway_events") == EVENTS


def test_a_catalogue_that_does_not_answer(tmp_path: Path) -> None:
    """Is told as such, beside the requests."""
    lab = Lab(tmp_path, Memory(), Clock(), Catalog("sqlite://"))
    whole = Parts(home=tmp_path, tokens=tmp_path / "t.json", limits=GENEROUS, site=lambda: lab.site)
    with running(whole) as gateway, gateway.client() as http:
        http.get("/health")
        told = scraped(http)
    assert value(told, "catalogue_up") == 0
    assert value(told, "request_duration_seconds_count", route="/health", method="GET", status="2xx") == 1


def test_messages_that_wait_are_figures_and_an_alert(tmp_path: Path) -> None:
    """Number, age and whether the last attempt failed, of each target; without targets there are no such figures."""
    clock = Clock()
    lab = Lab(tmp_path, Memory(), clock, Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock))
    lab.catalog.upgrade()
    add(lab.catalog, 1)
    with running(parts(lab, tmp_path)) as gateway, gateway.client() as http:
        assert not [name for name, _ in scraped(http) if "outbox" in name]
        lab.catalog.register_targets(["redis", "webhook"], now=clock.now)
        add(lab.catalog, 2)
        (message,) = lab.catalog.pending_messages("redis")
        lab.catalog.record_delivered("redis", [message.sequence], now=clock.now)
        lab.catalog.record_outbox_error("webhook", "answered 503", now=clock.now)
        assert not [one for one in pipeline.report(lab.site).alerts if "messages" in one.text]
        clock.now = message.at + timedelta(minutes=11)
        told = scraped(http)
    names = ("outbox_pending", "outbox_oldest_seconds", "outbox_failing")
    assert [value(told, name, target="redis") for name in names] == [0, 0, 0]
    assert [value(told, name, target="webhook") for name in names] == [1, 660, 1]
    (alert,) = [one for one in pipeline.report(lab.site).alerts if "messages" in one.text]
    assert alert.about == ["outbox webhook"]
    assert alert.text == "1 messages to webhook are pending, the oldest for 11 min: answered 503"
    lab.catalog.close()


def test_odd_names_are_escaped(tmp_path: Path) -> None:
    """Whatever a system is called, the text can be read."""
    clock = Clock()
    lab = Lab(tmp_path, Memory(), clock, Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock))
    lab.catalog.upgrade()
    add(lab.catalog, system='a"b\\c\nd{}=,é')
    with running(parts(lab, tmp_path)) as gateway, gateway.client() as http:
        assert value(scraped(http), "events", system='a"b\\c\nd{}=,é', state="ready") == 1
    lab.catalog.close()
