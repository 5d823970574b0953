"""What a fleet suffers: a disk or an endpoint that is away is charged to itself, not to events that wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Unsettled
from plateway.pipeline import breaker
from plateway.store import open_store, s3
from tests.databases import furnish
from tests.faults.proxy import Forward, Message, between, error
from tests.lab import Clock, Lab


@dataclass
class Switch:
    """A script for the proxy: forwards requests, or answers 503 to those of which a test says so."""

    away: bool = False
    writes_only: bool = False
    asked: int = 0

    def __call__(self, request: Message, forward: Forward) -> Message:
        self.asked += 1
        if self.away and not (self.writes_only and request.start.startswith(("GET", "HEAD"))):
            return error(503, "ServiceUnavailable")
        return forward(request)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A laboratory whose bucket is a directory."""
    for name in ("bucket", "bench"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)
    furnish(catalog)
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    catalog.close()


@pytest.fixture
def switch() -> Switch:
    """Decides whether S3 answers."""
    return Switch()


@pytest.fixture
def remote(lab: Lab, endpoint: Endpoint, bucket: str, switch: Switch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A laboratory whose S3 can be switched off, and which gives up a request soon."""
    monkeypatch.setitem(s3.RETRY, "retry_timeout", timedelta(seconds=0.2))
    assert endpoint.url
    lab.clock.now = datetime.now(UTC)
    with between(endpoint.url) as proxy:
        proxy.script = switch
        yield replace(lab, store=open_store(f"s3://{bucket}", replace(endpoint, url=proxy.url)))


def carry(site: pipeline.Site, watch: breaker.Breaker) -> list[str]:
    """Claim and carry what is due at endpoints that answer; return the results."""
    groups = watch.select(pipeline.group_systems(site))
    claims = [claim for systems in groups.values() for claim in pipeline.claim_small(site, systems)]
    return [str(one.result) for one in pipeline.carry(site, claims)]


def setbacks(lab: Lab) -> int:
    """Count the events that had a setback."""
    return sum(ledger.setback("export") is not None for ledger in lab.catalog.ledgers())


def test_a_worker_without_the_bench_does_not_report_nothing_new(lab: Lab) -> None:
    """An empty mount point, or none, in place of a bench that was used is no bench without events."""
    lab.exported()
    lab.bench.rename(lab.home / "away")
    lab.site.places.forget()
    with pytest.raises(Unsettled, match="bench"):
        pipeline.register(lab.site)
    lab.bench.mkdir()
    with pytest.raises(Unsettled, match="bench: its marker is missing: is it mounted"):
        pipeline.register(lab.site)


def test_an_unmounted_system_is_later(lab: Lab) -> None:
    """Its mount point is there and has no event files: the run shows that, and the other systems go on."""
    lab.exported()
    lab.exported("aretha")
    lab.unmount("prince")
    lab.acquire("aretha")
    found = lab.settle()
    assert [(one.system, one.result) for one in found.troubled] == [("prince", "later")]
    assert "mounted" in found.troubled[0].reasons[0]
    assert len(found.sealed) == 1


def test_a_missing_disk_sets_no_event_back(lab: Lab) -> None:
    """A worker without the disk leaves every event due for a worker that has it."""
    lab.acquired(3)
    lab.unmount("prince")
    claims = pipeline.claim_small(lab.site, ["prince"])
    assert {one.result for one in pipeline.carry(lab.site, claims)} == {"later"}
    assert setbacks(lab) == 0
    lab.mount("prince")
    assert {one.result for one in lab.export()} == {"exported", "verified"}


def test_an_outage_is_charged_to_the_endpoint(remote: Lab, switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event finds out; nothing is claimed while S3 is away, and all is due as soon as it answers."""
    monkeypatch.setattr(breaker, "PAUSE", 0.0)
    remote.acquired(8, images=1, size=16)
    watch = pipeline.Breaker(remote.site)
    assert watch.select({"": ["prince"]}) == {"": ["prince"]}
    assert switch.asked == 0  # an endpoint that nobody suspects is not probed
    switch.away = True
    assert carry(remote.site, watch) == ["later"]
    assert carry(remote.site, watch) == []
    assert watch.is_open
    assert setbacks(remote) == 1
    switch.away = False
    began = time.monotonic()
    assert carry(remote.site, watch) == ["verified"] * 8
    assert time.monotonic() - began < 15
    assert not watch.is_open
    assert setbacks(remote) == 0


def test_probes_are_apart(remote: Lab, switch: Switch) -> None:
    """Lanes that look for work meanwhile do not ask again."""
    remote.acquired(1, images=1, size=16)
    switch.away = True
    watch = pipeline.Breaker(remote.site)
    carry(remote.site, watch)
    assert carry(remote.site, watch) == []
    asked = switch.asked
    assert carry(remote.site, watch) == []
    assert switch.asked == asked


def test_an_endpoint_that_only_reads_is_not_asked_for_ever(
    remote: Lab, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers probes and refuses uploads: after a few attempts an event waits as long as any other failure."""
    monkeypatch.setattr(breaker, "PAUSE", 0.0)
    remote.exported(images=1)
    remote.acquired(1, images=1, size=16)
    switch.away = switch.writes_only = True
    results = []
    for _ in range(8):
        results += carry(remote.site, pipeline.Breaker(remote.site))
        remote.clock.turn(seconds=1)
    assert results == ["later"] * 4
