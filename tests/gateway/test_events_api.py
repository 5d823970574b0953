"""Events over HTTP: search, pages that stay right, and the whole ledger of one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from plateway import pipeline, wire
from plateway.catalog import Catalog
from plateway.events import Ref
from plateway.gateway import Parts, access
from plateway.ledger import STATES
from plateway.store.memory import Memory
from tests import factories
from tests.filling import END, fill
from tests.gateway.conftest import GENEROUS, Gateway, running
from tests.lab import Clock, Lab

EVENTS = 150


class Site:
    """A gateway before a line, and a client that may see all."""

    def __init__(self, lab: Lab, gateway: Gateway, http: httpx.Client) -> None:
        self.lab, self.gateway, self.http = lab, gateway, http

    def get(self, path: str, http: httpx.Client | None = None, **asked: Any) -> Any:
        """Send a request, and read what is answered."""
        answer = (http or self.http).get(path, params=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def all(self, http: httpx.Client | None = None, **asked: Any) -> list[Any]:
        """Go through all pages; the ids and revisions that are told."""
        found: list[Any] = []
        cursor: dict[str, str] = {}
        for _ in range(EVENTS):
            page = self.get("/api/1/events", http, **asked, **cursor)
            found += [Ref.parse(f"{one['id']}-r{one['revision']}") for one in page["events"]]
            if page["next_cursor"] is None:
                return found
            cursor = {"cursor": page["next_cursor"]}
        raise AssertionError("pages without end")


def opened(home: Path, clock: Clock) -> Iterator[Site]:
    """Run a gateway before a catalogue in this home."""
    url = f"sqlite:///{home}/catalogue.db"
    lab = Lab(home, Lasting(), clock, Catalog(url, clock=clock))
    lab.catalog.upgrade()
    parts = Parts(home=home, tokens=home / "tokens.json", limits=GENEROUS, site=lambda: lab.site)
    with running(parts) as gateway, gateway.client() as http:
        yield Site(lab, gateway, http)
    lab.catalog.close()


class Lasting(Memory):
    """A bucket in this process that stands for one that lasts."""

    durable = True


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with events in every state; nobody changes them."""
    clock = Clock()
    clock.now = END
    for site in opened(tmp_path_factory.mktemp("filled"), clock):
        fill(site.lab.catalog, events=EVENTS)
        yield site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site of the test's own."""
    yield from opened(tmp_path, Clock())


def test_a_page_tells_where_events_stand(filled: Site) -> None:
    """A hundred, the newest first, each as the command line tells it."""
    told = filled.get("/api/1/events")
    newest = filled.lab.catalog.search(limit=100)
    wanted = [pipeline.status(filled.lab.site, one).model_dump(mode="json") for one in newest]
    assert told["events"] == wanted
    assert told["next_cursor"]
    assert list(told["events"][0]) == list(wire.EventStatus.model_fields)
    assert all(one["timestamp"].endswith("Z") for one in told["events"])


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"system": "tina"},
        {"experiment": "20260801_007"},
        {"plate": 7},
        {"kind": "video"},
        {"text": "2026080"},
        {"since": "2026-08-01T00:00:00Z", "until": "2026-09-01T00:00:00+02:00"},
        {"system": "nobody"},
        {"state": "archived", "kind": "stitch", "order": "oldest"},
        *({"state": state} for state in STATES),
    ],
    ids=str,
)
def test_filters(filled: Site, asked: dict[str, Any]) -> None:
    """All pages together have what the catalogue finds, in its order."""
    words = dict(asked)
    words |= {name: datetime.fromisoformat(asked[name]) for name in ("since", "until") if name in asked}
    newest = words.pop("order", "newest") == "newest"
    wanted = [one.ref for one in filled.lab.catalog.search(**words, newest=newest, limit=EVENTS)]
    assert filled.all(**asked, limit=60) == [tuple(one) for one in wanted]


def test_pages_stay_right_while_events_come(site: Site) -> None:
    """No event that was there is left out or told twice, however many come between pages."""
    catalog = site.lab.catalog
    old = {(str(ref.id), ref.revision) for ref in (factories.add(catalog, number) for number in range(1, 30))}
    for order, first in (("newest", 100), ("oldest", 200)):
        found: list[tuple[str, int]] = []
        cursor: dict[str, Any] = {}
        for number in range(first, first + 60, 2):
            page = site.get("/api/1/events", limit=4, order=order, **cursor)
            found += [(one["id"], one["revision"]) for one in page["events"]]
            factories.add(catalog, number, timestamp=factories.NOW + timedelta(seconds=number % 31))
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert len(found) == len(set(found))
        assert old <= set(found)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"limit": 0}, 422),
        ({"limit": 501}, 422),
        ({"limit": -1}, 422),
        ({"plate": "x"}, 422),
        ({"plate": 10**30}, 422),
        ({"state": "asleep"}, 422),
        ({"kind": "picture"}, 422),
        ({"order": "random"}, 422),
        ({"since": "2026-01-01T00:00:00"}, 422),
        ({"until": "9999-12-31T23:59:59-10:00"}, 422),
        ({"text": "\0"}, 422),
        ({"experiment": "x" * 2000}, 422),
        ({"cursor": "nonsense"}, 400),
        ({"cursor": "é"}, 400),
    ],
    ids=str,
)
def test_bad_parameters_are_told(filled: Site, asked: dict[str, Any], status: int) -> None:
    """422 says which one; a cursor that is none is 400 in the words of the object API."""
    answer = filled.http.get("/api/1/events", params=asked)
    assert answer.status_code == status
    if status == 400:
        assert answer.json() == {"error": {"code": "400", "message": "Invalid cursor"}}
    else:
        assert [one["loc"][-1] for one in answer.json()["detail"]] == list(asked)


def test_a_token_for_a_prefix_sees_no_more(filled: Site) -> None:
    """Neither in lists nor by id."""
    with filled.gateway.client(filled.gateway.token("videos", "read", prefix="video/")) as http:
        assert filled.all(http) == filled.all(kind="video")
        hidden = filled.get("/api/1/events", kind="stitch")["events"][0]
        answer = http.get(f"/api/1/events/{hidden['id']}")
        missing = http.get(f"/api/1/events/{(unknown := uuid4())}")
    assert (answer.status_code, missing.status_code) == (404, 404)
    assert answer.text.replace(hidden["id"], "x") == missing.text.replace(str(unknown), "x")


# ------------------------------------------------------------------------------------------------------------- ledgers


def test_the_whole_ledger(site: Site) -> None:
    """Seen, complete, exported, verified, archived and purged, when and by what evidence; and every row and file."""
    lab, catalog = site.lab, site.lab.catalog
    announced, ref = lab.exported()
    event, export = catalog.found(ref)
    assert export is not None
    lab.clock.turn(hours=1)
    content = {
        "job_id": "j",
        "date": "2026-05-04",
        "archives": [{"path": "images/a.tar", "src_keys": [f"memory/{event.key}"]}],
    }
    pipeline.receive(lab.site, json.dumps(content).encode(), source="test", name="manifest.json")
    pipeline.settle(lab.site)
    reported = lab.ledger(ref).archives[0].reported_at
    purged = lab.clock.turn(hours=8)
    assert {one.result for one in pipeline.purge(lab.site)} == {"trashed"}
    told = site.get(f"/api/1/events/{ref.id}")
    assert list(told) == list(wire.EventDetail.model_fields)
    assert (told["id"], told["state"], told["evidence"]) == (str(ref.id), "purged", export.evidence)
    assert [(one["what"], one["at"], one["where"], one["why"]) for one in told["history"]] == [
        ("announced", spelt(event.announced_at), event.path, None),
        ("seen", spelt(event.first_seen), None, None),
        ("complete", spelt(event.sealed_at), None, "3 images"),
        ("exported", spelt(export.uploaded_at), export.key, None),
        ("verified", spelt(export.evidence_at), export.key, export.evidence),
        ("archived", spelt(reported), "images/a.tar", "name"),
        ("moved aside", spelt(purged), "raw", None),
    ]
    assert {one["sha256"] for one in told["manifest"]} == set(announced.files.values())
    assert told["ledger"]["export"]["sha256"] == export.sha256
    assert told["ledger"]["purges"][0]["proof"]["evidence"] == export.evidence
    assert site.get(f"/api/1/events/{ref.id.hex.upper()}") == site.get(f"/api/1/events/{ref.id}-r1")


def spelt(moment: datetime | None) -> str:
    """Spell a time as JSON has it."""
    assert moment is not None
    return moment.isoformat().replace("+00:00", "Z")


def test_why_it_waits(site: Site) -> None:
    """What is not there yet, what failed and when it is tried again, what a person has to look at."""
    lab, catalog = site.lab, site.lab.catalog
    waits = Ref(lab.acquire(fault="missing-image", images=12).id, 1)
    pipeline.register(lab.site)
    fails = factories.add(catalog, 7)
    lab.clock.now = factories.NOW
    catalog.set_back(fails, "export", reason="no answer", now=factories.NOW)
    aside = factories.add(catalog, 8)
    catalog.quarantine(aside, "not an image", b"{}", now=factories.NOW)

    def reasons(ref: Ref) -> list[str]:
        told = site.get(f"/api/1/events/{ref.id}")
        assert [one["why"] for one in told["history"] if one["what"] == "waits"] == told["reasons"]
        assert (told["manifest"], told["manifest_error"]) == (None, None)
        return [f"{one['what']}: {one['why']}" for one in told["history"] if one["what"] not in {"announced", "seen"}]

    assert reasons(waits) == ["waits: 11 of 12 images present"]
    *past, wait = reasons(fails)
    assert sorted(past) == ["complete: 12 images", "export failed: no answer"]
    assert wait.startswith("waits: export failed (attempt 1, next ")
    assert {"quarantined: not an image", "waits: not an image"} <= set(reasons(aside))


def test_a_revision_of_its_own(site: Site) -> None:
    """An id alone is its newest revision; others are asked for by number."""
    first = factories.add(site.lab.catalog, 3)
    site.lab.catalog.register("prince", [factories.seen(factories.said(3, plate=9))], now=factories.NOW)
    assert [site.get(f"/api/1/events/{first.id}{end}")["revision"] for end in ("", "-r1", "-r2")] == [2, 1, 2]
    assert site.get(f"/api/1/events/{first.id}")["conflict"]
    assert site.http.get(f"/api/1/events/{first.id}-r3").status_code == 404


@pytest.mark.parametrize("text", ["1", "x-r2", "00000000-0000-0000-0000-000000000000", "%00", "é", "%ff", "a" * 3000])
def test_what_is_not_there(filled: Site, text: str) -> None:
    """404, whatever is asked for."""
    answer = filled.http.get(f"/api/1/events/{text}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "404"


def test_a_lost_bundle_is_told(site: Site) -> None:
    """The ledger is there also where its manifest cannot be read, and says why."""
    _, ref = site.lab.exported()
    site.lab.store.delete(site.lab.catalog.get(ref).key)
    told = site.get(f"/api/1/events/{ref.id}")
    assert told["manifest"] is None
    assert told["manifest_error"]


def test_any_name_can_be_told(site: Site) -> None:
    """Names of files that are no UTF-8 come as the lone surrogates that Python reads them as, escaped."""
    odd = os.fsdecode(b"odd-\xe9.json")
    ((ref, _),) = site.lab.catalog.register("prince", [factories.seen(factories.said(), file=odd)], now=factories.NOW)
    assert site.get(f"/api/1/events/{ref.id}")["ledger"]["event"]["file"] == odd


def test_the_access_log_says_which_event(site: Site) -> None:
    """By the key of its bundle."""
    ref = factories.add(site.lab.catalog)
    site.get(f"/api/1/events/{ref.id}")
    until = time.monotonic() + 60  # the answer goes first, then the line is written
    while not (found := list(access.read(site.gateway.parts.log))) and time.monotonic() < until:
        time.sleep(0.01)
    assert [one.key for one in found] == [site.lab.catalog.get(ref).key]
