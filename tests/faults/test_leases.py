"""Several processes want the same events; one that fell asleep with a lease in its hand wakes late."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Busy
from plateway.keys import is_marker
from plateway.pipeline.lease import leased
from plateway.store import open_store
from plateway.store.wrappers import Prefixed
from tests.databases import furnish
from tests.faults.invariants import World, check
from tests.faults.proxy import Forward, Message, Proxy, between
from tests.lab import Clock, Lab

ROOT = Path(__file__).parents[2]
WORKERS, EVENTS = 6, 20


@pytest.fixture
def lab(tmp_path: Path, catalog_url: str, endpoint: Endpoint, bucket: str) -> Iterator[Lab]:
    """A laboratory on SQLite and on PostgreSQL, whose clock begins now."""
    (tmp_path / "bench").mkdir()
    clock = Clock()
    clock.now = datetime.now(UTC)
    catalog = Catalog(catalog_url, clock=clock)
    furnish(catalog)
    yield Lab(tmp_path, Prefixed(open_store(f"s3://{bucket}", endpoint), "raw/"), clock, catalog)
    catalog.close()


@pytest.fixture
def proxy(endpoint: Endpoint) -> Iterator[Proxy]:
    assert endpoint.url
    with between(endpoint.url) as proxy:
        yield proxy


@contextmanager
def crowd(lab: Lab, proxy: Proxy, endpoint: Endpoint, *, bucket: str, url: str, workers: int) -> Iterator[list[int]]:
    """Make so many processes export what is due; yields their ids, and waits for them."""
    assert endpoint.secret_access_key
    secret = endpoint.secret_access_key.get_secret_value()
    where = {"url": proxy.url, "access_key_id": endpoint.access_key_id, "secret_access_key": secret}
    job = {"workers": workers, "home": str(lab.home), "catalog": url, "bucket": f"s3://{bucket}", "prefix": "raw/"}
    mother = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.crowd"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with mother:
        assert mother.stdin
        assert mother.stdout
        mother.stdin.write(json.dumps(job | {"endpoint": where}) + "\n")
        mother.stdin.flush()
        yield json.loads(mother.stdout.readline())
        assert mother.wait(60) == 0


def told(lab: Lab) -> list[dict[str, Any]]:
    return [outcome for path in lab.home.glob("told-*") for outcome in json.loads(path.read_text())]


def test_each_event_is_exported_once(lab: Lab, proxy: Proxy, endpoint: Endpoint, bucket: str, catalog_url: str) -> None:
    """Six exporters on the same twenty events: one upload, one note and one object for each; the others stand aside."""
    announced = []
    for _ in range(EVENTS):
        announced.append(lab.acquire(images=1, size=16))
        lab.clock.turn(seconds=1)
    lab.settle()
    with crowd(lab, proxy, endpoint, bucket=bucket, url=catalog_url, workers=WORKERS):
        pass
    keys = {ledger.event.key for ledger in lab.catalog.ledgers()}
    sent = (request.key.removeprefix("raw/") for request in proxy.log if request.name == "put object")
    uploads = Counter(key for key in sent if not is_marker(key))
    assert uploads == dict.fromkeys(keys, 1)
    results = Counter((outcome["id"], outcome["result"]) for outcome in told(lab))
    assert {id_: count for (id_, result), count in results.items() if result == "exported"} == {
        str(one.id): 1 for one in announced
    }
    assert {result for _, result in results} <= {"exported", "exported already", "busy"}
    lab.export()
    assert lab.catalog.counts(lab.clock()) == {"exported": EVENTS}
    assert check(World(lab, announced)) == []


def test_a_holder_that_wakes_late_notes_nothing(
    lab: Lab, proxy: Proxy, endpoint: Endpoint, bucket: str, catalog_url: str
) -> None:
    """Stopped in the middle of its upload, it comes back when another has long exported and verified the event."""
    asked, go = threading.Event(), threading.Event()

    def hold(request: Message, forward: Forward) -> Message:
        if request.name == "put object":
            asked.set()
            assert go.wait(60)
        return forward(request)

    proxy.script = hold
    announced = lab.acquire(images=1, size=16)
    lab.settle()
    with crowd(lab, proxy, endpoint, bucket=bucket, url=catalog_url, workers=1) as (sleeper,):
        assert asked.wait(60)
        os.kill(sleeper, signal.SIGSTOP)
        lab.clock.turn(minutes=20)
        outcomes = lab.export()
        before = lab.catalog.ledgers()
        go.set()
        os.kill(sleeper, signal.SIGCONT)
    assert {one.result for one in outcomes} == {"exported", "verified"}
    (late,) = told(lab)
    assert (late["result"], len(late["reasons"])) == ("busy", 1)
    assert lab.catalog.ledgers() == before
    assert check(World(lab, [announced])) == []


def test_a_holder_that_wakes_late_cannot_free_the_lease_of_another(lab: Lab) -> None:
    """Its release and its renewal name the old fence."""
    lab.acquire()
    (ref,) = lab.settle().sealed
    site = lab.site
    with pytest.raises(Busy), leased(site, ref) as old:
        lab.clock.turn(minutes=20)
        new = lab.catalog.lease(ref, owner="another", ttl=site.lease, now=lab.clock())
        lab.catalog.renew(ref, fence=old, ttl=site.lease, now=lab.clock())
    assert new > old
    assert lab.ledger(ref).held(lab.clock())
