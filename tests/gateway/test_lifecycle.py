"""The API of DLM v2 over HTTP, row by row of its contract, on a real S3."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from plateway import pipeline, simulator
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Refused
from plateway.events import Ref
from plateway.gateway import Parts
from plateway.local.seaweed import PLAIN
from plateway.records import Event, Export
from plateway.simulator import Simulated
from plateway.store import Store, open_store
from plateway.store.memory import Memory
from tests.factories import damage, intent
from tests.gateway.conftest import GENEROUS, Gateway, running
from tests.lab import Clock, Lab

HOUR = timedelta(hours=1)
Z = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


@dataclass(frozen=True)
class Site:
    """A gateway before a line with some events, and a client that may see all."""

    gateway: Gateway
    lab: Lab
    http: httpx.Client
    refs: tuple[Ref, ...]  # stitches: of 30 hours ago, three of 3 hours ago; then a video

    def get(self, path: str, **asked: Any) -> Any:
        """Send a request, and read what is answered."""
        answer = self.http.get(path, params=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def export(self, ref: Ref) -> tuple[Event, Export]:
        """What the catalogue knows."""
        event, export = self.lab.catalog.found(ref)
        assert export is not None
        return event, export


@contextmanager
def site(home: Path, store: Store, *, tape: bool = False, **parts: Any) -> Iterator[Site]:
    """Run a gateway before a line of five exports, and one event that waits."""
    url = f"sqlite:///{home}/catalogue.db"
    clock = Clock()
    clock.now = datetime.now(UTC).replace(microsecond=0) - 30 * HOUR
    lab = Lab(home, store, clock, Catalog(url, clock=clock))
    lab.catalog.upgrade()
    refs = [lab.exported()[1]]
    clock.turn(hours=27)
    for _ in range(3):
        refs.append(lab.exported()[1])
        clock.turn(minutes=1)
    video = Simulated(
        system="aretha", dialect="imaging event", root=lab.bench / "aretha", kinds=("video",), images=2, size=32
    )
    refs.append(Ref(simulator.acquire(video, now=clock(), number=1).id, 1))
    lab.settle()
    lab.export()
    lab.acquire(fault="missing-image")
    pipeline.register(lab.site)
    if tape:
        archived(lab, "images/first.tar", refs[1], refs[3])
        archived(lab, "videos/second.tar", refs[4], hours=0.5)
    whole = {"home": home, "tokens": home / "tokens.json", "limits": GENEROUS, **parts}
    site = replace(lab.site, catalog=Catalog(url))
    with running(Parts(site=lambda: site, **whole)) as gateway, gateway.client() as http:
        yield Site(gateway, lab, http, tuple(refs))
    lab.catalog.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, endpoint: Endpoint, client: Any) -> Iterator[Site]:
    """A site over S3, for tests that change nothing that others look at. Two archives have three of its events."""
    bucket = f"lifecycle-{uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    home = tmp_path_factory.mktemp("lifecycle")
    with site(home, open_store(f"s3://{bucket}", endpoint), tape=True) as one:
        yield one


def archived(lab: Lab, path: str, *refs: Ref, hours: float = 0) -> None:
    """Make tape tell of an archive."""
    keys = [f"{lab.store.name}/{lab.catalog.get(ref).key}" for ref in refs]
    content = json.dumps({"job_id": str(uuid4()), "date": "2026-05-04", "archives": [{"path": path, "src_keys": keys}]})
    lab.clock.turn(hours=hours)
    assert pipeline.receive(lab.site, content.encode(), source="test", name="manifest.json").result == "received"
    assert {one.result for one in pipeline.settle(lab.site)} == {"archived"}


# ------------------------------------------------------------------------------------------------------------- exports


def test_exports_of_the_last_day(place: Site) -> None:
    """Without parameters: stitches of the last 24 hours, in the order of their arrival, in DLM's words."""
    told = place.get("/api/1/exports")
    wanted = [place.export(ref) for ref in place.refs[1:4]]
    assert told["count"] == 3
    assert [{name: value for name, value in one.items() if name != "url"} for one in told["data"]] == [
        {
            "ref_id": str(event.id),
            "experiment_id": event.experiment,
            "timestamp": spelt(event.timestamp),
            "type": "stitch",
            "uploaded_at": spelt(export.uploaded_at),
        }
        for event, export in wanted
    ]
    assert list(told["data"][0]) == ["ref_id", "experiment_id", "timestamp", "type", "url", "uploaded_at"]
    assert all(Z.fullmatch(one[name]) for one in told["data"] for name in ("timestamp", "uploaded_at"))


def spelt(moment: datetime) -> str:
    """Spell a time as JSON has it."""
    return moment.isoformat().replace("+00:00", "Z")


def test_exports_of_a_span_and_kind(place: Site) -> None:
    """Both ends are left out, any zone will do; a kind is asked for at a time."""
    times = [place.export(ref)[1].uploaded_at for ref in place.refs]
    ids = [str(ref.id) for ref in place.refs]

    def found(**asked: Any) -> list[str]:
        told = place.get("/api/1/exports", **asked)
        assert told["count"] == len(told["data"])
        return [one["ref_id"] for one in told["data"]]

    assert found(start=spelt(times[0] - HOUR)) == ids[:4]
    assert found(start=spelt(times[0])) == ids[1:4]
    assert found(start=spelt(times[0]), end=spelt(times[3])) == ids[1:3]
    assert found(start=(times[1] + 2 * HOUR).isoformat().replace("+00:00", "+02:00")) == ids[2:4]
    assert found(start=str(times[1].timestamp())) == ids[2:4]  # seconds since 1970 are read as DLM read them
    assert found(event_type="video") == ids[4:]
    assert found(event_type="overview") == []
    assert found(start=spelt(times[3]), end=spelt(times[0])) == []


def test_pages_of_exports(place: Site) -> None:
    """Whole pages in one order, also past the end; the count is of all that fit."""
    start = spelt(datetime.now(UTC) - 99 * HOUR)
    ids = [str(ref.id) for ref in place.refs[:4]]
    for limit in (1, 2, 3, 4, 500):
        pages = [place.get("/api/1/exports", start=start, limit=limit, offset=at) for at in range(0, 8, limit)]
        assert [one["ref_id"] for page in pages for one in page["data"]] == ids
        assert {page["count"] for page in pages} == {4}
    assert place.get("/api/1/exports", start=start, limit=0) == {"count": 4, "data": []}
    assert place.get("/api/1/exports", start=start, offset=10**9) == {"count": 4, "data": []}


@pytest.mark.parametrize(
    "asked",
    [
        "exports?limit=-1",
        "exports?limit=501",
        "exports?limit=x",
        "exports?offset=-1",
        "exports?offset=99999999999999999999",
        "exports?start=2026-01-01T00:00:00",
        "exports?end=2026-01-01T00:00:00",
        "exports?end=tomorrow",
        "exports?start=0001-01-01T00:00:00%2B10:00",
        "exports?event_type=picture",
        "archives?limit=-1",
        "archives?limit=101",
        "archives?offset=-1",
        "archives?experiment_id=%00",
        "archives/1",
        "archives/not-an-id",
    ],
)
def test_bad_parameters_are_told(place: Site, asked: str) -> None:
    """422 with FastAPI's list of what is wrong and where; DLM answered 500 to a limit of -1."""
    answer = place.http.get(f"/api/1/{asked}")
    assert answer.status_code == 422
    name = re.split(r"[?=]", asked)[1] if "?" in asked else "id"
    assert [one["loc"][-1] for one in answer.json()["detail"]] == [name]


# --------------------------------------------------------------------------------------------------------------- links


def test_a_link_fetches_its_bundle_and_nothing_else(place: Site) -> None:
    """Whoever has it reads that key for 15 minutes, without a token; no other key, and nothing but reading."""
    told = place.get("/api/1/exports")["data"]
    for ref, one in zip(place.refs[1:], told, strict=False):
        _, export = place.export(ref)
        with httpx.Client(trust_env=False, verify=PLAIN) as anybody:
            answer = anybody.get(one["url"])
            assert hashlib.sha256(answer.content).hexdigest() == export.sha256
            other = one["url"].replace(export.key, place.export(place.refs[0])[1].key)
            assert other != one["url"]
            assert anybody.get(other).status_code == 403
            assert anybody.delete(one["url"]).status_code == 403
            assert anybody.put(one["url"], content=b"x").status_code == 403
        said = parse_qs(urlsplit(one["url"]).query)
        assert said["X-Amz-Expires"] == ["900"]
    assert place.lab.store.stat(place.export(place.refs[1])[1].key) is not None


def test_a_link_is_good_for_as_long_as_is_set(tmp_path: Path, bucket: str, endpoint: Endpoint) -> None:
    """Then it is over."""
    with site(tmp_path, open_store(f"s3://{bucket}", endpoint), links=timedelta(seconds=2)) as one:
        url = one.get("/api/1/exports")["data"][0]["url"]
    assert "X-Amz-Expires=2&" in url
    until = time.monotonic() + 60
    while httpx.get(url, trust_env=False, verify=PLAIN).status_code == 200 and time.monotonic() < until:
        time.sleep(0.1)
    assert httpx.get(url, trust_env=False, verify=PLAIN).status_code == 403


@pytest.mark.parametrize(("lives", "seconds"), [(1200, 1200), (99_999, 7200), (None, 7200)])
def test_a_link_ends_with_the_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: int | None, seconds: int
) -> None:
    """Credentials that tell when they end make no link that says it lives longer."""
    until = datetime.now(UTC) + timedelta(seconds=lives or 0)
    said = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c"}
    (tmp_path / "said").write_text(json.dumps(said | ({"Expiration": until.isoformat()} if lives else {})))
    script = f"print(open({str(tmp_path / 'said')!r}).read())"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} -c {shlex.quote(script)}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    link = open_store("s3://bucket", Endpoint(url="http://127.0.0.1:9")).sign("a/b", expires=timedelta(hours=2))
    told = parse_qs(urlsplit(link).query)
    assert told["X-Amz-Security-Token"] == ["c"]
    assert seconds - 60 <= int(told["X-Amz-Expires"][0]) <= seconds


@pytest.fixture(scope="module")
def open_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site over memory that is open to all."""
    with site(tmp_path_factory.mktemp("open"), Memory(), open=True) as one:
        yield one


def test_a_store_without_links_has_none(open_place: Site) -> None:
    """An export in memory is told all the same."""
    with pytest.raises(Refused):
        open_place.lab.store.sign("a", expires=HOUR)
    assert {export["url"] for export in open_place.get("/api/1/exports")["data"]} == {None}


def test_an_export_elsewhere_has_no_link(tmp_path: Path, place: Site, endpoint: Endpoint) -> None:
    """The settings name another bucket now: a link would lead to nothing, or to something else."""
    site = replace(place.lab.site, catalog=Catalog(f"sqlite:///{place.lab.home}/catalogue.db"))
    other = replace(site, store=open_store("s3://another-bucket", endpoint))
    parts = Parts(home=tmp_path, tokens=tmp_path / "t.json", site=lambda: other, limits=GENEROUS)
    with running(parts) as gateway, gateway.client() as http:
        assert [one["url"] for one in http.get("/api/1/exports").json()["data"]] == [None] * 3


def test_what_is_not_there_is_not_told(open_place: Site) -> None:
    """Lost exports, and those whose bucket copy went because tape has them, have no link and are no exports."""
    catalog, (lost, expired, good) = open_place.lab.catalog, open_place.refs[1:4]
    assert open_place.get("/api/1/exports")["count"] == 3
    damage(catalog, lost)
    archived(open_place.lab, "images/x/1.tar", expired)
    export, now = open_place.export(expired)[1], catalog.now()
    read: dict[str, Any] = {"size": export.size, "checksum": export.sha256, "read_at": now}
    catalog.record_location(expired, "images/x/1.tar", member="./a.tar", offset=0, **read)
    catalog.intend(intent(expired, "bucket", trash="", intended_at=now))
    assert open_place.get("/api/1/exports")["count"] == 2
    catalog.record_trashed(expired, "bucket", at=now)
    told = open_place.get("/api/1/exports")
    assert (told["count"], [row["ref_id"] for row in told["data"]]) == (1, [str(good.id)])


# ------------------------------------------------------------------------------------------------------------ archives


def test_archives_and_one_of_them(place: Site) -> None:
    """The first reported first, each with the address of its members; by its id in either spelling."""
    told = place.get("/api/1/archives")
    first, second = told["data"]
    event, _ = place.export(place.refs[1])
    assert told["count"] == 2
    assert list(first) == ["id", "path", "type", "experiment_id", "created_at", "url", "member_count"]
    assert first == {
        "id": first["id"],
        "path": "images/first.tar",
        "type": "stitch",
        "experiment_id": event.experiment,
        "created_at": first["created_at"],
        "url": f"/api/1/archives/{first['id']}",
        "member_count": 2,
    }
    assert UUID(first["id"]).hex != first["id"]
    assert Z.fullmatch(first["created_at"])
    assert first["created_at"] < second["created_at"]
    assert (second["path"], second["type"], second["member_count"]) == ("videos/second.tar", "video", 1)
    one = place.get(first["url"])
    shared = ("id", "path", "type", "experiment_id", "created_at")
    assert {name: one[name] for name in shared} == {name: first[name] for name in shared}
    assert one["members"] == [
        {
            "member_key": export.key.rpartition("/")[2],
            "ref_id": str(event.id),
            "timestamp": spelt(event.timestamp),
            "checksum": export.sha256,
            "size": export.size,
        }
        for event, export in map(place.export, (place.refs[1], place.refs[3]))
    ]
    assert place.get(f"/api/1/archives/{UUID(first['id']).hex}") == one


def test_archives_of_an_experiment_and_pages(place: Site) -> None:
    """An empty name asks for all; pages past the end are whole."""
    event, _ = place.export(place.refs[4])
    told = place.get("/api/1/archives", experiment_id=event.experiment)
    assert (told["count"], [one["path"] for one in told["data"]]) == (1, ["videos/second.tar"])
    assert place.get("/api/1/archives", experiment_id="none") == {"count": 0, "data": []}
    assert place.get("/api/1/archives", experiment_id="")["count"] == 2
    assert [one["path"] for one in place.get("/api/1/archives", limit=1, offset=1)["data"]] == ["videos/second.tar"]
    assert place.get("/api/1/archives", offset=2) == {"count": 2, "data": []}
    assert place.get("/api/1/archives", limit=0) == {"count": 2, "data": []}


def test_an_archive_that_is_not_there(place: Site) -> None:
    """404 in FastAPI's words."""
    answer = place.http.get(f"/api/1/archives/{uuid4()}")
    assert (answer.status_code, answer.json()) == (404, {"detail": "item not found"})


def test_daily_stats(place: Site) -> None:
    """Days (UTC) of the images, newest first; what waits is an event, too."""
    days: dict[str, list[int]] = {}
    for one in place.lab.catalog.ledgers():
        row = days.setdefault(one.event.timestamp.date().isoformat(), [0, 0, 0])
        for number, counts in enumerate((True, one.export is not None, bool(one.archives))):
            row[number] += counts
    assert place.get("/api/1/daily-stats") == [
        {"date": day, "event_count": events, "export_count": exports, "archive_count": archives}
        for day, (events, exports, archives) in sorted(days.items(), reverse=True)
    ]
    assert [sum(row[number] for row in days.values()) for number in range(3)] == [6, 5, 3]


# --------------------------------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize("path", ["exports", "archives", "archives/{id}", "daily-stats"])
def test_a_token_with_read_is_asked_for(place: Site, path: str) -> None:
    """Unless the gateway is open to all."""
    path = f"/api/1/{path}".replace("{id}", place.get("/api/1/archives")["data"][0]["id"])
    with httpx.Client(base_url=place.gateway.url, trust_env=False, verify=PLAIN) as anybody:
        answer = anybody.get(path)
        assert (answer.status_code, answer.json()["error"]["message"]) == (401, "Not authenticated")
    name = f"writer-{uuid4().hex[:6]}"
    with place.gateway.client(place.gateway.token(name, "write", "delete")) as writer:
        assert writer.get(path).status_code == 403
    assert place.http.post(path).status_code == 405


def test_a_token_for_a_prefix_sees_no_more(place: Site) -> None:
    """Neither exports, nor archives, nor figures of other keys."""
    with place.gateway.client(place.gateway.token("videos", "read", prefix="videos/")) as http:
        assert http.get("/api/1/exports").json() == {"count": 0, "data": []}
        assert http.get("/api/1/exports?event_type=video").json()["count"] == 1
        told = http.get("/api/1/archives").json()
        assert [one["path"] for one in told["data"]] == ["videos/second.tar"]
        assert sum(one["event_count"] for one in http.get("/api/1/daily-stats").json()) == 1
        hidden = place.get("/api/1/archives")["data"][0]["url"]
        assert http.get(hidden).json() == {"detail": "item not found"}


def test_an_open_gateway_asks_nobody(open_place: Site) -> None:
    """As DLM did."""
    assert httpx.get(f"{open_place.gateway.url}/api/1/exports", trust_env=False, verify=PLAIN).json()["count"] > 0


def test_the_list_of_dlm_v1(place: Site, tmp_path: Path) -> None:
    """A list with an id for each export of the last 24 hours, of every kind; by a setting it is at v2's path, too."""
    told = place.get("/exports")
    wanted = [place.export(ref) for ref in place.refs[1:]]
    assert [one["ref_id"] for one in told] == [str(event.id) for event, _ in wanted]
    assert [one["type"] for one in told] == ["stitch", "stitch", "stitch", "video"]
    assert set(told[0]) == {"id", "ref_id", "experiment_id", "type", "url", "uploaded_at"}
    assert len({one["id"] for one in told}) == 4
    assert [one["id"] for one in place.get("/exports")] == [one["id"] for one in told]
    assert httpx.get(told[0]["url"], trust_env=False, verify=PLAIN).headers["content-length"] == str(wanted[0][1].size)
    with site(tmp_path, Memory(), dlm_v1=True, open=True, straight=True) as other:
        as_told = {"Host": "fastapi.localhost"}  # curl -H Host:fastapi.localhost localhost/api/1/exports
        found = httpx.get(f"{other.gateway.url}/api/1/exports", headers=as_told, trust_env=False, verify=PLAIN).json()
        assert [one["ref_id"] for one in found] == [str(ref.id) for ref in other.refs[1:]]


def test_head_is_answered_where_get_is(place: Site) -> None:
    """The same status and headers without a body, on every route without a parameter."""
    paths = [
        "/health",
        "/api/1/exports",
        "/exports",
        "/api/1/daily-stats",
        "/metrics",
        "/objects",
        "/",
        "/docs",
        "/nothing",
    ]
    for path in paths:
        got, head = place.http.get(path), place.http.head(path)
        assert (head.status_code, head.headers.get("content-type")) == (
            got.status_code,
            got.headers.get("content-type"),
        )
        assert head.content == b""
    assert httpx.head(f"{place.gateway.url}/api/1/exports", trust_env=False, verify=PLAIN).status_code == 401
