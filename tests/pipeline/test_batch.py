"""Batches: one failure stops no other event, an endpoint that does not answer ends the batch, nothing stays leased."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from plateway import pipeline
from plateway.catalog import Catalog, Claim
from plateway.errors import Unavailable
from plateway.events import Ref
from plateway.pipeline import batch
from plateway.store import Store, open_store
from tests.databases import furnish
from tests.hanging import hung
from tests.lab import Clock, Lab


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


class Answering:
    """A store that answers until it was written to so many times, and not any more then."""

    def __init__(self, store: Store, times: int) -> None:
        self._store, self._left = store, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, *args: Any, **options: Any) -> Any:
        """Write, or raise Unavailable."""
        self._left -= 1
        if self._left < 0:
            raise Unavailable("cannot reach S3: connection refused")
        return self._store.put(*args, **options)


def claimed(lab: Lab, count: int = 3) -> list[Claim]:
    """Have an instrument acquire events, and claim them."""
    for _ in range(count):
        lab.acquire()
    lab.settle()
    claims = pipeline.claim_small(lab.site, ["prince"])
    assert len(claims) == count
    return claims


def held(lab: Lab) -> int:
    """Count the events that somebody holds."""
    return sum(ledger.held(lab.clock()) for ledger in lab.catalog.ledgers())


def test_a_batch_is_exported_and_verified(lab: Lab) -> None:
    """Each event has its outcome and its evidence, and nothing is left to claim or to verify."""
    outcomes = pipeline.carry(lab.site, claimed(lab))
    assert [(one.verb, one.result) for one in outcomes] == [("export", "verified")] * 3
    assert pipeline.claim_small(lab.site, ["prince"]) == []
    assert pipeline.due(lab.site, "verify") == []
    assert held(lab) == 0


def test_one_failure_stops_no_other(lab: Lab) -> None:
    """An event whose images went is later; the others of its batch are verified."""
    claims = claimed(lab)
    (lab.bench / "prince" / claims[1].event.path).rename(lab.home / "aside")
    outcomes = pipeline.carry(lab.site, claims)
    assert [one.result for one in outcomes] == ["verified", "later", "verified"]
    assert held(lab) == 0


def test_an_endpoint_that_does_not_answer_ends_the_batch(lab: Lab) -> None:
    """What was begun has a setback; the rest has none, and is due at once."""
    claims = claimed(lab, 4)
    site = replace(lab.site, store=Answering(lab.store, 3))  # the first is its marker
    assert [one.result for one in pipeline.carry(site, claims)] == ["verified", "verified", "later"]
    assert held(lab) == 0
    ours = [Ref(one.event.id, one.event.revision) for one in claims]
    assert pipeline.due(lab.site, "export") == ours[3:]


def test_an_interrupted_batch_releases_what_it_did_not_begin(lab: Lab) -> None:
    """Whatever ends it: the event at work, and those behind it, are due again."""
    claims = claimed(lab)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.carry(lab.site, claims, beat=stop)
    assert held(lab) == 0
    assert len(pipeline.claim_small(lab.site, ["prince"])) == 3


def test_a_lease_that_was_lost_while_it_waited_is_busy(lab: Lab) -> None:
    """An event whose turn comes late is another worker's by then: it is left alone."""
    claims = claimed(lab, 1)
    lab.clock.turn(minutes=11)
    other = replace(lab.site, owner="other")
    assert len(pipeline.claim_small(other, ["prince"])) == 1
    hurried = replace(lab.site, lease=timedelta(0))  # so that it is renewed before each event
    assert [one.result for one in pipeline.carry(hurried, claims)] == ["busy"]
    assert held(lab) == 1


def test_a_hung_disk_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event whose disk does not answer any more is later, and a run does not wait for ever."""
    claims = claimed(lab, 1)
    monkeypatch.setattr(batch, "STALL", timedelta(seconds=0.3))
    with hung(lab.bench / "prince"):
        (outcome,) = pipeline.carry(lab.site, claims)
    assert outcome.result == "later"
    assert "no answer" in outcome.reasons[0]


def test_large_events_are_batches_of_their_own(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large event is claimed alone, also while small ones wait, and small ones come without it."""
    monkeypatch.setattr(batch, "SMALL", 10_000)
    lab.acquire(size=128, images=6)
    lab.acquire()
    lab.settle()
    (large,) = pipeline.claim_large(lab.site, ["prince"])
    (small,) = pipeline.claim_small(lab.site, ["prince"])
    assert (large.event.image_bytes or 0) >= 10_000 > (small.event.image_bytes or 0) > 0


def test_systems_are_grouped_by_their_endpoint(lab: Lab) -> None:
    """Where a slow endpoint holds only its own systems; here there is one."""
    for system in ("prince", "aretha"):
        lab.acquire(system)
    lab.settle()
    assert list(pipeline.group_systems(lab.site).values()) == [["aretha", "prince"]]
