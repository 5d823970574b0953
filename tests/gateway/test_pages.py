"""The pages for researchers: over HTTP, as documents; and in a Chromium, as people meet them."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import stat
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tifffile
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from plateway import pipeline, queries, simulator
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.errors import Rejected, Unavailable
from plateway.events import Ref
from plateway.gateway import Parts, Rate
from plateway.gateway.auth import COOKIE
from plateway.gateway.image_links import LinkSigner
from plateway.gateway.pages import dashboard, find, login, plots
from plateway.local.seaweed import PLAIN
from plateway.pipeline import Site as Line
from plateway.simulator import Shot, Simulated
from plateway.store import open_store
from tests.filling import fill
from tests.gateway.conftest import GENEROUS, Gateway, Start, running
from tests.gateway.sites import Site, site
from tests.lab import DAWN, Lab, with_policy

CHROMIUM = Path("/usr/bin/chromium")
ARGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESK, PHONE = (1280, 900), (390, 844)
EVIL = """'"><img src=x onerror=alert(1)><script>alert(1)<!-- & Ünï 真菌"""
ODD = """<b>'"#?%41&amp; é 菌.tif"""  # the name of an image
CUT, NEWLINE = "cut off.tif", "two\nlines.tif"
BYTES = "caf\udce9.tif"  # one that is not UTF-8
PREFECT = "http://127.0.0.1:4200"
TODAY = date(2026, 11, 21)  # a Saturday
BACKGROUND = 0x12  # green of the viewer's
LOADED = "img => img.complete && img.naturalWidth > 0"


# ---------------------------------------------------------------------------------------------------------------- a lab


@dataclass(frozen=True)
class World:
    """A site with something of everything."""

    site: Site
    gateway: Gateway  # asks for a token
    stitch: simulator.Announced  # prince, plate 2: purged, archived
    video: simulator.Announced  # aretha
    evil: simulator.Announced  # its experiment is called as bad as can be
    broken: simulator.Announced  # one image was cut off, the name of another has two lines
    early: simulator.Announced  # aretha, one plate at two times
    later: simulator.Announced
    waiting: simulator.Announced

    @property
    def open(self) -> Gateway:
        """The gateway that asks for no token."""
        return self.site.gateway

    @property
    def lab(self) -> Lab:
        """Where it all happens."""
        return self.site.lab


def take(
    lab: Lab, number: int, *, kind: str = "stitch", files: tuple[str, ...] = (), **said: Any
) -> simulator.Announced:
    """Make aretha take an event of which something is said."""
    instrument = Simulated("aretha", "imaging event", lab.bench / "aretha", kinds=(kind,), images=4, size=64)
    shot = Shot(instrument, number, lab.clock, started=lab.clock())
    shot.expose()
    for name in files:
        shot.write(name, simulator.tiff(shot.picture(0))[: -1000 if name == CUT else None])
    return shot.announce(shot.event(**said))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two gateways over one site: open, and for tokens only."""
    home = tmp_path_factory.mktemp("pages")
    with site(home, objects="memory://", open=True, prefect_ui=PREFECT) as one:
        lab = one.lab
        (home / "tape").mkdir()
        lab.archive = open_archive((home / "tape").as_uri())
        lab.clock.turn(days=-2)  # what is told of now is told by the true clock
        stitch = lab.acquire("prince", images=6, size=96)
        lab.settle()
        lab.export()
        lab.clock.turn(days=1)
        assert {outcome.result for outcome in pipeline.archive(lab.site)} == {"written", "archived"}
        with_policy(lab)
        assert "trashed" in {outcome.result for outcome in pipeline.purge(lab.site, fraction=1.0)}
        video, evil = (
            take(lab, 1, kind="video"),
            take(lab, 2, kind="overview", files=(ODD, BYTES), experiment_id=EVIL, img_count=3),
        )
        broken = take(lab, 4, kind="overview", files=(CUT, NEWLINE), img_count=3)
        early = take(lab, 6)
        lab.clock.turn(hours=8)
        later = take(lab, 6 + Simulated.plates)
        take(lab, 3, experiment_id="<script>alert(1)</script>")
        lab.settle()
        lab.export()
        waiting = lab.acquire("prince", fault="missing-image")
        lab.acquire("aretha", fault="garbage-json")
        lab.settle()
        line, tokens = one.gateway.parts.site, home / "tokens.json"
        guarded = Parts(home=home / "guarded", tokens=tokens, limits=GENEROUS, site=line, prefect_ui=PREFECT)
        with running(guarded) as gateway:
            yield World(one, gateway, stitch, video, evil, broken, early, later, waiting)


@pytest.fixture
def client(world: World) -> Iterator[httpx.Client]:
    """Somebody who is let in."""
    with httpx.Client(base_url=world.open.url, trust_env=False, verify=PLAIN, timeout=60) as one:
        yield one


def text(page: str) -> str:
    """Read a page as a person does: without tags, spaces as one."""

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            said.append(data)

    said: list[str] = []
    Reader(convert_charrefs=True).feed(page)
    return " ".join(" ".join(said).split())


def tags(page: str) -> list[tuple[str, dict[str, str]]]:
    """List the tags of a page with their attributes."""

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, {name: value or "" for name, value in attrs}))

    found: list[tuple[str, dict[str, str]]] = []
    Reader().feed(page)
    return found


def links(page: str) -> list[str]:
    """List the events that a page lists, in its order."""
    return re.findall(r'<a class="event" href="/events/([^"]+)"', page)


# -------------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("", queries.SearchQuery()),
        ("20250106_001", queries.SearchQuery(text="20250106_001")),
        ("plate 12 last tuesday", queries.SearchQuery(plate=12, day=date(2026, 11, 17))),
        ("where is plate 12 of last Saturday", queries.SearchQuery(plate=12, day=date(2026, 11, 14))),
        ("p3 yesterday", queries.SearchQuery(plate=3, day=date(2026, 11, 20))),
        ("prince video today", queries.SearchQuery(system="prince", kind="video", day=TODAY)),
        ("waiting 2026-05-04", queries.SearchQuery(state="waiting", day=date(2026, 5, 4))),
        ("2025 plate 7 archived", queries.SearchQuery(text="2025", plate=7, state="archived")),
        ("the last of them", queries.SearchQuery(text="the last of them")),
        ("30 november", queries.SearchQuery(day=date(2025, 11, 30))),
        (
            "prince nov 1 to nov 15",
            queries.SearchQuery(system="prince", day=date(2026, 11, 1), until=date(2026, 11, 15)),
        ),
        ("dec 20 until 5 january 2026", queries.SearchQuery(day=date(2025, 12, 20), until=date(2026, 1, 5))),
        (
            "video from 2026-05-01 to 2026-05-04",
            queries.SearchQuery(kind="video", day=date(2026, 5, 1), until=date(2026, 5, 4)),
        ),
        ("last week plate 3", queries.SearchQuery(plate=3, day=date(2026, 11, 9), until=date(2026, 11, 15))),
        ("last 7 days", queries.SearchQuery(day=date(2026, 11, 15), until=TODAY)),
        ("mayfly nov", queries.SearchQuery(text="mayfly nov")),
        ("9b2d7f0a", queries.SearchQuery(text="9b2d7f0a")),
        ("stitch video", queries.SearchQuery(kind="stitch", text="video")),
    ],
)
def test_words_are_understood(said: str, wanted: queries.SearchQuery) -> None:
    """Words for a plate, a day, a system, a kind and a state count as such, and the rest is text."""
    assert queries.parse_text(said, today=TODAY, systems=["prince"]) == wanted


def test_fields_go_before_words() -> None:
    """What a field says is not overruled by the box; empty fields say nothing."""
    asked = {"q": "plate 12 today", "plate": "3", "day": "2026-05-04", "system": " ", "kind": "", "experiment": "x"}
    wanted = queries.read(asked, today=TODAY, systems=[])
    assert wanted == queries.SearchQuery(experiment="x", plate=3, day=date(2026, 5, 4))


@pytest.mark.parametrize(
    "asked", [{"plate": "x"}, {"plate": "9" * 30}, {"plate": "²"}, {"day": "x"}, {"q": "2026-99-99"}]
)
def test_nonsense_is_refused(asked: dict[str, str]) -> None:
    """A plate that is no number and a day that is none are told to whoever asked."""
    with pytest.raises(Rejected):
        queries.read(asked, today=TODAY, systems=[])


@pytest.mark.parametrize(
    "path", ["/?after=x", "/?plate=x", "/?day=32", "/?before=%00", "/?q=a%00b", "/?experiment=%ED%A0%80%1b"]
)
def test_nonsense_gets_a_page(client: httpx.Client, path: str) -> None:
    """A wrong address is answered by a page that says so."""
    answer = client.get(path)
    assert answer.status_code == 400
    assert "Request failed" in answer.text


def test_an_experiment_shows_its_plates_and_gaps(client: httpx.Client, world: World) -> None:
    """A row for each plate, a column for each day from the first to the last, and gaps where nothing was imaged."""
    event = world.lab.catalog.get(Ref(world.early.id, 1))
    page = client.get("/experiment", params={"name": event.experiment}).text
    every = world.lab.catalog.search(experiment=event.experiment, limit=100)
    days = {one.event.timestamp.date() for one in every}
    assert page.count('scope="col"') == 1 + (max(days) - min(days)).days + 1
    assert page.count('scope="row"') == len({(one.event.plate, one.event.kind, one.event.system) for one in every})
    shown = set(re.findall(r'href="/events/([^"]+)" title', page))
    assert str(world.later.id) in shown
    assert 'class="gap"' in page
    assert client.get("/experiment?name=nobody").status_code == 404


def test_results_are_counted_and_sorted(client: httpx.Client, world: World) -> None:
    """The total is there, the oldest can come first, and pages go on in that order."""
    every = world.lab.catalog.search(limit=100)
    page = client.get("/").text
    assert f"{len(every)} events" in text(page)
    assert links(page) == [str(one.ref) for one in every]
    assert links(client.get("/?order=oldest").text) == [str(one.ref) for one in every[::-1]]
    assert client.get("/?order=largest").status_code == 200


def test_announcements_that_were_not_accepted_are_found(client: httpx.Client, world: World) -> None:
    """By a part of the file's name, the instrument, or the state; not where an experiment is asked for."""
    row = [one for one in world.lab.catalog.quarantined() if one.event_id is None][-1]
    for query in (f"q={row.name[:8]}", "state=quarantined", f"system={row.system}"):
        assert row.name in text(client.get(f"/?{query}").text), query
    for query in ("experiment=x", "state=exported", "q=nothing+like+it", "plate=2"):
        assert row.name not in text(client.get(f"/?{query}").text), query


def test_a_link_opens_one_image_until_it_expires(world: World) -> None:
    """Without a token; no other image, no other time, and the access log does not have the signature."""
    signer = LinkSigner(world.open.parts.place)
    ref = Ref(world.video.id, 1)
    name, other, *_ = sorted(world.video.files)
    content = httpx.get(f"{world.open.url}/api/1/events/{ref}/images/{name}", trust_env=False).content
    page = httpx.get(f"{world.open.url}/events/{ref}/images/{name}", trust_env=False).text
    (link,) = re.findall(rf"{world.open.url}(/shared/[^<]+)<", page)
    secret = link.split("/")[2].partition(".")[2]
    with httpx.Client(base_url=world.open.url, trust_env=False) as client:
        answer = client.get(link)
        assert (answer.status_code, answer.content) == (200, content)
        assert "cookie" not in answer.request.headers
        past = signer.sign(ref, name, expires=datetime.now(UTC) - timedelta(seconds=1))
        later = str(int(link.split("/")[2].partition(".")[0]) + 60)
        for wrong in (
            link.replace(name, other),
            link.replace(secret, secret[::-1]),
            re.sub(r"/shared/\d+", f"/shared/{later}", link),
            re.sub(r"/shared/\d+\.", "/shared/x.", link),
            link.replace(str(ref), str(world.stitch.id)),
            past,
        ):
            assert client.get(wrong).status_code == 404, wrong
    assert stat.S_IMODE((world.open.parts.place / "links.key").stat().st_mode) == 0o600
    log = world.open.parts.log.read_text()
    assert f"/{name}" in log
    assert secret not in log


def test_the_dashboard_has_a_range_and_leads_to_days(client: httpx.Client, world: World) -> None:
    """As many columns as days were chosen, each with a link to that day's events; nonsense is the usual range."""
    assert [len(columns(client, days)) for days in ("7", "90", "", "x")] == [21, 270, 90, 90]
    day = world.lab.catalog.get(Ref(world.video.id, 1)).timestamp.date()
    assert f"/?day={day}" in columns(client, "7")


def columns(client: httpx.Client, days: str) -> list[str]:
    """List where the columns of the dashboard's three plots lead."""
    return re.findall(r'<a class="column" href="([^"]+)"', client.get("/dashboard", params={"days": days}).text)


def test_times_of_a_plate_become_a_film(client: httpx.Client, world: World) -> None:
    """An animation with a frame for each time, larger than black; one time is none."""
    for form in ("webp", "gif"):
        answer = client.get(f"/events/{world.early.id}/film.{form}?seconds=0.2")
        assert (answer.status_code, answer.headers["content-type"]) == (200, f"image/{form}")
        with Image.open(io.BytesIO(answer.content)) as film:
            assert getattr(film, "n_frames", 1) == 2
            film.load()
            assert film.info["duration"] == 200
            assert film.size == (480, 498)
            assert np.asarray(film.convert("RGB"))[:480].max() > 100
    assert client.get(f"/events/{world.stitch.id}/film.webp").status_code == 404
    assert client.get(f"/events/{world.early.id}/film.mp4").status_code == 404


def operator(world: World, *scopes: str) -> httpx.Client:
    """A browser with a token that has these scopes."""
    name = " ".join(scopes)
    secret = world.gateway.secrets.get(name) or world.gateway.token(name, *scopes)
    headers = {"Cookie": f"{COOKIE}={secret}", "Sec-Fetch-Site": "same-origin"}
    return httpx.Client(base_url=world.gateway.url, headers=headers, trust_env=False, timeout=60)


def test_only_operators_see_and_use_actions(world: World) -> None:
    """The form needs the scope, a page of this site and a reason; what fails leaves no trace in the history."""
    address = f"/events/{world.video.id}"
    form = {"action": "verify", "reason": "the disk made noises"}
    with operator(world, "read") as reader, operator(world, "read", "operate") as one:
        assert "/actions" not in reader.get(address).text
        assert reader.post(f"{address}/actions", data=form).status_code == 403
        evil = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        assert one.post(f"{address}/actions", data=form, headers=evil).status_code == 403
        assert one.post(f"{address}/actions", data=form | {"reason": " "}).status_code == 400
        assert one.post(f"{address}/actions", data=form).status_code == 400  # no Prefect: it is not offered
    anonymous = httpx.post(f"{world.gateway.url}{address}/actions", data=form, trust_env=False)
    assert anonymous.status_code in {303, 401}
    assert not world.lab.catalog.incidents(Ref(world.video.id, 1))


def test_a_replay_has_its_reason_in_the_history(world: World) -> None:
    """An event in quarantine is released, and its page says who asked for it, and why."""
    lab = world.lab
    ref, now = Ref(world.evil.id, 1), lab.clock()
    lab.catalog.quarantine(ref, "two images are missing", now=now)
    with operator(world, "read", "operate") as one:
        assert "Replay" in one.get(f"/events/{ref}").text
        answer = one.post(f"/events/{ref}/actions", data={"action": "replay", "reason": "images copied by hand"})
        assert answer.status_code == 303
        page = text(one.get(f"/events/{ref}").text)
    assert "Replay requested" in page
    assert "by read operate: images copied by hand" in page
    assert lab.catalog.ledger(ref).quarantine is None


def test_a_link_means_the_same_tomorrow(client: httpx.Client, world: World) -> None:
    """Words for days that move become dates in the address, with everything else that was asked."""
    answer = client.get("/?q=prince+last+week&plate=2")
    assert answer.status_code == 303
    where = httpx.URL(answer.headers["location"]).params
    assert (where["system"], where["plate"], "q" in where) == ("prince", "2", False)
    assert date.fromisoformat(where["until"]) - date.fromisoformat(where["day"]) == timedelta(days=6)
    assert client.get(answer.headers["location"]).status_code == 200
    event = world.lab.catalog.get(Ref(world.stitch.id, 1))
    day = event.timestamp.date()
    around = f"/?system=prince&state=purged&day={day - timedelta(days=3)}&until={day}"
    assert links(client.get(around).text) == [str(world.stitch.id)]
    assert client.get("/?until=2026-01-01").status_code == 400


def test_events_are_found(world: World, client: httpx.Client) -> None:
    """By experiment, plate, day, system, kind, state, id and the beginning of an id: the event, and not others."""
    event = world.lab.catalog.get(Ref(world.stitch.id, 1))
    mine = {
        f"/?experiment={event.experiment}&plate={event.plate}&day={event.timestamp:%Y-%m-%d}&state=purged",
        f"/?q={event.id}",
        f"/?q={str(event.id)[:10]}",
        f"/?q=purged {event.timestamp:%Y-%m-%d} prince plate {event.plate}",
    }
    assert {path: links(client.get(path).text) for path in mine} == {path: [str(event.id)] for path in mine}
    assert str(event.id) not in links(client.get("/?kind=video").text)
    assert links(client.get("/?experiment=nobody").text) == []


def test_paging_shows_everything_once(tmp_path: Path, start: Start) -> None:
    """All the way to the oldest and back again: every event once, newest first, and a new one shifts nothing."""
    url = f"sqlite:///{tmp_path}/catalogue.db"
    catalog = Catalog(url)
    catalog.upgrade()
    fill(catalog, events=3 * find.LENGTH - 1)
    ids = [str(ledger.ref) for ledger in catalog.ledgers()][::-1]
    gateway = start(objects=None, open=True, site=lambda: line_of(url, tmp_path))

    def walk(path: str, rel: str) -> Iterator[list[str]]:
        while path:
            page = client.get(path).text
            yield links(page)
            found = re.search(rf'rel="{rel}" href="([^"]+)"', page)
            last.append(path)
            path = found[1].replace("&amp;", "&") if found else ""

    last: list[str] = []
    with httpx.Client(base_url=gateway.url, trust_env=False, verify=PLAIN, timeout=60) as client:
        older = list(walk("/", "next"))
        assert [len(page) for page in older] == [50, 50, 49]
        assert list(itertools.chain(*older)) == ids
        assert list(walk(last[-1], "prev")) == older[::-1]
    catalog.close()


def line_of(url: str, home: Path) -> Line:
    """A line over a catalogue, with a bucket that is empty."""
    (home / "empty").mkdir(exist_ok=True)
    lab = Lab(home, open_store((home / "empty").as_uri()), lambda: DAWN, Catalog(url))  # type: ignore[arg-type]
    return lab.site


# --------------------------------------------------------------------------------------------------------- what is told


def test_a_history_is_told(client: httpx.Client, world: World) -> None:
    """An event's page tells what happened, in its order, how that is known, and where the bytes are."""
    page = text(client.get(f"/events/{world.stitch.id}").text)
    told = [
        "Announced",
        "Seen",
        "Complete",
        "Sent to the bucket",
        "Verified",
        "On tape",
        "Raw images moved aside",
    ]
    places = [page.index(f" {word} ", page.index("History")) for word in told]
    assert places == sorted(places)
    ledger = world.lab.ledger(Ref(world.stitch.id, 1))
    assert ledger.export is not None
    for fact in (ledger.export.key, ledger.export.sha256, ledger.archives[0].path, ledger.archives[0].member):
        assert fact in page
    assert "the archive reports the same SHA-256" in page


def test_why_it_waits_is_told(client: httpx.Client, world: World) -> None:
    """Of an event that waits the list, its page and the dashboard say why."""
    for path in ("/?state=waiting", f"/events/{world.waiting.id}", "/dashboard"):
        assert "2 of 3 images present" in text(client.get(path).text)


def test_images_lie_as_they_are_stitched(client: httpx.Client, world: World) -> None:
    """Tiles are in rows and columns where names tell them, and in a list where not; other files are named."""
    rows = re.findall(r"<tr>(.*?)</tr>", client.get(f"/events/{world.stitch.id}").text, re.DOTALL)
    assert [re.findall(r'title="Img/(\w+)\.tif"', row) for row in rows] == [
        [f"Img_r{row:02d}_c{column:02d}" for column in (1, 2, 3)] for row in (1, 2)
    ]
    page = client.get(f"/events/{world.stitch.id}").text
    assert "metadata.json" in page
    video = client.get(f"/events/{world.video.id}").text
    assert "<table" not in video
    assert video.count('loading="lazy"') >= 4


def test_an_image_has_a_page(client: httpx.Client, world: World) -> None:
    """It shows the picture, leads to its neighbours, and to the bytes."""
    name = min(world.stitch.files)
    page = client.get(f"/events/{world.stitch.id}/images/{name}")
    assert world.stitch.files[name] in page.text
    (found,) = re.findall(r'href="([^"]+)" download', page.text)
    assert hashlib.sha256(client.get(found).content).hexdigest() == world.stitch.files[name]
    assert 'rel="next"' in page.text
    assert 'rel="prev"' not in page.text


def test_a_name_that_is_not_utf_8_has_a_page(client: httpx.Client, world: World) -> None:
    """It is shown with its bytes written out, and leads to the file."""
    page = client.get(f"/events/{world.evil.id}/images/caf%E9.tif")
    assert r"caf\udce9.tif" in text(page.text)
    (found,) = re.findall(r'href="([^"]+)" download', page.text)
    assert hashlib.sha256(client.get(found).content).hexdigest() == world.evil.files[BYTES]
    assert "/images/caf%E9.tif" in client.get(f"/events/{world.evil.id}").text


def test_a_long_event_is_shown_in_pages() -> None:
    """Of many images that nobody can stitch, a page shows some, and leads to the others."""
    from plateway.bundle import Member
    from plateway.gateway.pages import event

    ref = Ref(world_id := simulator.NAMESPACE, 1)
    members = [Member(f"Frame_{number:05d}.tif", 1, "0" * 64, 0) for number in range(2 * event.SHEET + 5)]
    seen, first = [], 1
    for _ in range(3):
        sheet = event.sheet(ref, members, first=first)
        seen += [one.name for one in sheet.others]
        first = sheet.first + event.SHEET
        assert (sheet.later is None) == (first > len(members))
    assert seen == [member.name for member in members]
    assert event.sheet(ref, members, first=10**8).first == 2 * event.SHEET + 1
    assert event.sheet(Ref(world_id, 1), [], first=7).total == 0


def test_the_dashboard_tells_all(client: httpx.Client, world: World) -> None:
    """States, days, systems, quarantine and disks, with words for those who cannot see plots; links into Prefect."""
    until = time.monotonic() + 60
    while "safe to purge" not in (page := client.get("/dashboard").text) and time.monotonic() < until:
        time.sleep(0.1)  # the disks take their time
    told = text(page)
    for words in ("purged", "waiting", "prince", "aretha", "not UTF-8", "safe to purge", "plateway quarantine replay"):
        assert words in told
    assert re.search(r'aria-label="Imaged on each of the last 30 days', page)
    assert f'href="{PREFECT}/runs"' in page
    assert f"{PREFECT}/runs?tab=task-runs&amp;task-run-search={world.stitch.id}" in (
        client.get(f"/events/{world.stitch.id}").text
    )


def test_nobody_waits_for_figures_twice() -> None:
    """While figures are made anew the last ones are given; what cannot be made is tried again."""
    made: list[str] = []

    def count(key: str) -> int:
        made.append(key)
        return len(made)

    kept = dashboard.BackgroundCache(count, seconds=-1)
    assert kept.get("a", patience=60) == 1
    assert kept.get("a", patience=60) == 1  # and the second ones are being made

    def broken(_: str) -> int:
        raise Unavailable("gone")

    failing = dashboard.BackgroundCache(broken, seconds=60)
    for _ in range(2):
        with pytest.raises(Unavailable):
            failing.get("", patience=60)
    slow = dashboard.BackgroundCache(lambda key: key, seconds=60)
    assert slow.get("b", patience=60) == "b"


@pytest.mark.parametrize("hours", [0, 0.01, 0.5, 3, 20, 40, 24 * 9, 24 * 60, 24 * 400, 24 * 20_000])
def test_ticks_are_few_and_in_order(hours: float) -> None:
    """Whatever the span, there are up to a dozen round times in it."""
    last = datetime(2026, 11, 21, 16, 7, tzinfo=UTC)
    first = last - timedelta(hours=hours)
    ticks = plots.ticks(first, last)
    assert 1 <= len(ticks) <= 12
    assert all(first <= moment <= last for moment, _ in ticks)
    assert ticks == sorted(ticks)


@pytest.mark.parametrize("most", [0, 1, 3, 7, 99, 100, 12_345, 10**9])
def test_scales_hold_what_is_drawn(most: int) -> None:
    """The scale ends at or above the largest number, with few lines."""
    step, top = plots.scale(most)
    assert top >= most
    assert 1 <= top // step <= 5


# ------------------------------------------------------------------------------------------------------------- harmless


def test_names_break_nothing(client: httpx.Client, world: World) -> None:
    """Whatever an experiment is called, pages show it as text."""
    for path in ("/", f"/events/{world.evil.id}", "/dashboard"):
        page = client.get(path).text
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "<b>'" not in page
    assert "</script>" in text(client.get("/dashboard").text)  # why it is in quarantine
    assert EVIL in text(client.get(f"/events/{world.evil.id}").text)
    asked = client.get("/", params={"q": EVIL, "experiment": '"><img src=x onerror=alert(1)>', "system": "'\"<"})
    assert asked.status_code == 200
    assert "<img src=x" not in asked.text
    assert "<script>alert" not in asked.text


def test_pages_may_load_little(client: httpx.Client, world: World) -> None:
    """Every page says that nothing from elsewhere may be loaded, and has no script, style or handler inside."""
    for path in ("/", "/dashboard", f"/events/{world.evil.id}", "/events/nope", "/?plate=x"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        for tag, attributes in tags(answer.text):
            assert tag != "style"
            assert not [name for name in attributes if name == "style" or name.startswith("on")]
            assert tag != "script" or attributes["src"].startswith("/static/")
            assert "javascript:" not in attributes.get("href", "")


def test_what_pages_load_is_kept(client: httpx.Client) -> None:
    """Style, script and icon are named by their content, and kept for ever."""
    loaded = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', client.get("/").text))
    loaded.add("/static/viewer.js")
    assert len(loaded) == 4
    for path in loaded:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert client.get("/static/..%2fsite.py").status_code == 404
    assert client.get("/static/none").status_code == 404


# ---------------------------------------------------------------------------------------------------------- who may see


@pytest.fixture
def people(world: World) -> Iterator[httpx.Client]:
    """A browser before the gateway that asks for tokens, as far as HTTP goes."""
    with httpx.Client(base_url=world.gateway.url, trust_env=False, verify=PLAIN, timeout=60) as one:
        yield one


def test_without_a_token_one_is_asked_for(people: httpx.Client, world: World) -> None:
    """People are led to the login and back; images and programs get a 401."""
    for path in ("/", "/dashboard", f"/events/{world.stitch.id}", "/?q=a%26b&plate=3"):
        answer = people.get(path)
        assert answer.status_code == 303
        where = httpx.URL(answer.headers["location"])
        assert (where.path, where.params["next"]) == ("/login", path)
        assert "plate" not in people.get(path).text
    assert PREFECT not in people.get("/login").text
    assert people.get("/", headers={"Authorization": "Bearer nothing"}).status_code == 401
    assert people.get(f"/api/1/events/{world.stitch.id}/images").status_code == 401


def test_a_token_gets_in(people: httpx.Client, world: World) -> None:
    """The form sets a cookie that scripts and other sites do not get, and leads back; logging out ends it."""
    secret = world.gateway.token("somebody", "read")
    answer = people.post("/login", data={"token": f" {secret} ", "next": "/?plate=2"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?plate=2")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert 86_000 < int(cookie.partition("max-age=")[2].partition(";")[0]) <= 86_400
    assert people.get("/dashboard").status_code == 200
    answer = people.post("/logout")
    assert COOKIE not in people.cookies
    assert people.get("/dashboard").status_code == 303


def test_behind_https_the_cookie_stays_there(people: httpx.Client, world: World) -> None:
    """Where a proxy says that people speak https with it, the cookie is never sent in the open."""
    secret = world.gateway.token("proxied", "read")
    said = {"X-Forwarded-Proto": "https"}
    answer = people.post("/login", data={"token": secret}, headers=said)
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("to", "leads"),
    [
        ("/events/x?first=3#a", "/events/x?first=3%23a"),
        ("//evil.test/", "/"),
        ("https://evil.test/", "/"),
        ("/\\evil.test", "/"),
        ("\\\\evil.test", "/"),
        ("/\t/evil.test", "/"),
        ("/a\r\nSet-Cookie: x=y", "/"),
        ("javascript:alert(1)", "/"),
        ("/login?next=/login", "/"),
        ("/logout", "/"),
        ("", "/"),
        ("http://[", "/"),
        ("/" + "a" * 5000, "/"),
        ("/?q=Ünï", "/?q=%C3%9Cn%C3%AF"),
    ],
)
def test_a_login_leads_nowhere_else(to: str, leads: str) -> None:
    """Whatever the address says, people stay on this site."""
    assert login.local(to) == leads


def test_bad_tokens_are_told(people: httpx.Client, world: World) -> None:
    """Unknown, expired and too weak ones are refused by the form, in words, and set no cookie."""
    cases = {
        "nothing": 401,
        "": 401,
        world.gateway.token("over", "read", ttl=-1): 401,
        world.gateway.token("writer", "write"): 403,
    }
    for secret, status in cases.items():
        answer = people.post("/login", data={"token": secret})
        assert answer.status_code == status
        assert 'role="alert"' in answer.text
        assert "set-cookie" not in answer.headers
        assert not secret or secret not in answer.text.replace("nothing", "")
    people.cookies.set(COOKIE, "nothing")
    answer = people.get("/")
    assert answer.status_code == 303
    assert "max-age=0" in answer.headers["set-cookie"].lower()  # it is taken back


def test_guessing_is_slow(world: World, start: Start) -> None:
    """Too many bad tokens in the form, or in the cookie, are answered with when to try again."""
    limits = type(GENEROUS)(token=GENEROUS.token, address=GENEROUS.address, failed=Rate(3))
    gateway = start(objects=None, site=world.open.parts.site, limits=limits)
    with httpx.Client(base_url=gateway.url, trust_env=False, verify=PLAIN) as people:
        for _ in range(5):
            assert people.get("/").status_code == 303  # having none is no guess
        found = [people.post("/login", data={"token": "x"}) for _ in range(4)]
        assert [answer.status_code for answer in found] == [401, 401, 401, 429]
        assert int(found[-1].headers["retry-after"]) > 0
        assert people.get("/", headers={"Cookie": f"{COOKIE}=x"}).status_code == 429
        good = gateway.token("good", "read")
        assert people.post("/login", data={"token": good}).status_code == 303


def test_forms_of_other_sites_are_not_ours(people: httpx.Client, world: World) -> None:
    """A form that another site sends, and one that is none, change nothing."""
    secret = world.gateway.token("elsewhere", "read")
    answer = people.post("/login", data={"token": secret}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert people.post("/login", content=b"x" * 5000).status_code == 413
    assert people.post("/login", content=b"&" * 4000).status_code == 401
    assert people.post("/logout", headers={"Sec-Fetch-Site": "same-site"}).status_code == 403


def test_a_read_only_gateway_lets_people_in(world: World, start: Start) -> None:
    """Logging in changes nothing here, so it is possible where nothing may be changed."""
    gateway = start(objects=None, site=world.open.parts.site, read_only=True)
    secret = gateway.token("reader", "read")
    with httpx.Client(base_url=gateway.url, trust_env=False, verify=PLAIN) as people:
        assert people.post("/login", data={"token": secret}).status_code == 303
        assert people.get("/").status_code == 200


def test_a_prefix_limits_what_is_seen(people: httpx.Client, world: World) -> None:
    """Who may see videos only sees no other event anywhere, and nothing of quarantine and disks."""
    people.post("/login", data={"token": world.gateway.token("videos", "read", prefix="videos/")})
    assert links(people.get("/").text) == [str(world.video.id)]
    for path in (f"/events/{world.stitch.id}", f"/events/{world.stitch.id}/cover", f"/events/{world.waiting.id}"):
        assert people.get(path).status_code == 404
    page = text(people.get("/dashboard").text)
    assert "Quarantine" not in page
    assert "prince" not in page + text(people.get("/").text)
    assert people.get(f"/events/{world.video.id}").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/events/x", "/events/00000000-0000-4000-8000-000000000000", "/events/{id}/images/none.tif", "/events/{id}-r7"],
)
def test_what_is_not_there_is_told(client: httpx.Client, world: World, path: str) -> None:
    """A page that is not there says so, as a page."""
    answer = client.get(path.format(id=world.stitch.id))
    assert answer.status_code == 404
    assert "Not found" in answer.text


def chosen(world: World) -> list[tuple[str, str | int | float | bool | None]]:
    """Two events and one whose names are odd, as a form sends them."""
    return [("id", str(one.id)) for one in (world.stitch, world.evil, world.broken)]


def test_chosen_events_are_one_zip(client: httpx.Client, world: World) -> None:
    """It has every file of each event, byte for byte, below readable names, and any program can read it."""
    answer = client.get("/api/1/download", params=chosen(world))
    assert answer.headers["content-disposition"] == 'attachment; filename="plateway.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        found = {one: hashlib.sha256(archive.read(one)).hexdigest() for one in archive.namelist()}
    assert sorted(found.values()) == sorted(
        sha256 for one in (world.stitch, world.evil, world.broken) for sha256 in one.files.values()
    )
    event = world.lab.catalog.get(Ref(world.stitch.id, 1))
    folder = f"{event.experiment}_plate{event.plate}_{event.timestamp:%Y-%m-%dT%H%MZ}"
    assert f"{folder}/{min(world.stitch.files)}" in found
    assert not [name for name in found if ".." in name.split("/") or name.startswith("/")]


def test_a_script_downloads_and_verifies(client: httpx.Client, world: World, tmp_path: Path) -> None:
    """The script fetches each bundle and compares its checksum; names of the lab do nothing in it."""
    asked = [*chosen(world), ("form", "script")]
    told = client.get("/api/1/download", params=asked).text
    (tmp_path / "get.sh").write_text(told)
    for _ in range(2):  # what is there is not fetched again
        done = subprocess.run(["sh", "get.sh"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(": OK") == 3
    (some,) = sorted(tmp_path.glob("*.tar"))[:1]
    some.write_bytes(some.read_bytes()[:-1] + b"x")
    assert subprocess.run(["sh", "get.sh"], cwd=tmp_path, capture_output=True, timeout=60, check=False).returncode
    sums = client.get("/api/1/download", params=[*chosen(world), ("form", "checksums")]).text
    assert sums.strip() in told


def test_what_cannot_be_downloaded_is_refused(client: httpx.Client, people: httpx.Client, world: World) -> None:
    """None, too many, unknown ones, and those that a token may not see."""
    none = client.get("/api/1/download")
    many = client.get("/api/1/download", params=[("id", f"{world.stitch.id}-r{one}") for one in range(1, 300)])
    assert (none.status_code, many.status_code) == (400, 400)
    assert "1 to 200" in many.text
    assert client.get("/api/1/download", params={"id": str(world.waiting.id)}).status_code == 404
    assert people.get("/api/1/download", params=chosen(world)).status_code == 401
    videos = {"Authorization": f"Bearer {world.gateway.token('zips', 'read', prefix='videos/')}"}
    assert people.get("/api/1/download", params=chosen(world), headers=videos).status_code == 404


@pytest.mark.parametrize("path", ["/nope", "/dashboard/", "/events/", "/api/1/nope"])
def test_errors_are_pages_for_browsers(client: httpx.Client, people: httpx.Client, path: str) -> None:
    """An unknown address is a page where a browser asks, and JSON for programs and below /api; nobody has to log in."""
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for one in (client, people):
        answer = one.get(path, headers=browser)
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("application/json" if "/api/" in path else "text/html")
        assert "/api/" in path or "Not found" in answer.text
        assert one.get(path).json() == {"detail": "Not Found"}


def test_every_file_of_a_long_event_is_listed() -> None:
    """Beside a stitched view and without pictures, more files than fit on a page have further pages."""
    from plateway.bundle import Member
    from plateway.gateway.pages import event

    ref = Ref(simulator.NAMESPACE, 1)
    tiles = [f"Img_r{row:02d}_c{column:02d}.tif" for row in (1, 2) for column in (1, 2)]
    others = [f"scan_{number:05d}.bin" for number in range(event.SHEET + 106)]
    members = [Member(name, 1, "0" * 64, 0) for name in (*tiles, *others)]
    first, second = (event.sheet(ref, members, first=number) for number in (1, event.SHEET + 1))
    assert [len(row) for row in first.rows] == [2, 2]
    assert second.rows == ()
    assert [one.name for one in (*first.files, *second.files)] == others
    assert (second.later, first.total) == (None, len(others))


# --------------------------------------------------------------------------------------------------------- in a browser


@dataclass
class Visit:
    """A page in a browser, and what it did that it should not."""

    page: Page
    base: str
    faults: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        """Open a page."""
        self.page.goto(self.base + path)


Visiting = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield one
        one.close()


@pytest.fixture
def visit(browser: Browser, world: World) -> Iterator[Visiting]:
    """Open windows; in none of them anything may go wrong, and nothing may come from elsewhere."""
    contexts: list[BrowserContext] = []
    visits: list[Visit] = []

    def opened(
        gateway: Gateway | None = None,
        *,
        size: tuple[int, int] = DESK,
        scheme: Literal["light", "dark"] = "light",
        phone: bool = False,
        scripts: bool = True,
    ) -> Visit:
        view = {"width": size[0], "height": size[1]}
        context = browser.new_context(
            viewport=view,  # type: ignore[arg-type]
            color_scheme=scheme,
            has_touch=phone,
            is_mobile=phone,
            java_script_enabled=scripts,
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        one = Visit(context.new_page(), (gateway or world.open).url)
        one.page.on("console", lambda told: one.faults.append(told.text) if told.type in {"error", "warning"} else None)
        one.page.on("pageerror", lambda error: one.faults.append(str(error)))
        one.page.on("dialog", lambda dialog: one.faults.append(dialog.message))
        one.page.on(
            "request",
            lambda asked: (
                one.faults.append(asked.url) if urlsplit(asked.url).hostname not in {"127.0.0.1", "localhost"} else None
            ),
        )
        visits.append(one)
        return one

    yield opened
    for context in contexts:
        context.close()
    assert [fault for one in visits for fault in one.faults] == []


def shown(page: Page) -> None:
    """Scroll through a page until every picture on it was really decoded."""
    for image in page.locator("main img").filter(visible=True).all():
        image.scroll_into_view_if_needed()
        page.wait_for_function(LOADED, arg=image.element_handle())
    for viewer in page.locator("[data-viewer]").all():
        expect(viewer).to_have_attribute("data-whole", "")


def test_somebody_finds_and_opens_an_event(visit: Visiting, world: World) -> None:
    """By words to the list, to the event, to its images, to one image, and to its bytes on disk."""
    one: Visit = visit()
    one.go("/")
    event = world.lab.catalog.get(Ref(world.stitch.id, 1))
    one.page.get_by_label("Find by words").fill(f"plate {event.plate} purged {event.timestamp:%Y-%m-%d}")
    one.page.get_by_role("button", name="Find").click()
    expect(one.page.get_by_label("Plate", exact=True)).to_have_value(str(event.plate))
    shown(one.page)
    one.page.locator("a.event").click()
    expect(one.page.get_by_role("heading", level=1)).to_contain_text(event.experiment)
    one.page.get_by_role("button", name="List tiles").click()
    shown(one.page)
    tiles = one.page.locator(".stitched td")
    boxes = [tile.bounding_box() for tile in tiles.all()]
    assert len({round(box["x"]) for box in boxes if box}) == 3
    assert len({round(box["y"]) for box in boxes if box}) == 2
    one.page.locator(".stitched a").nth(4).click()
    shown(one.page)
    with one.page.expect_download() as download:
        one.page.get_by_role("link", name="Download", exact=False).first.click()
    name = sorted(world.stitch.files)[4]
    assert hashlib.sha256(download.value.path().read_bytes()).hexdigest() == world.stitch.files[name]
    assert download.value.suggested_filename == name.rpartition("/")[2]


def test_odd_names_are_pictures_too(visit: Visiting, world: World) -> None:
    """An image with a name full of marks is shown, opened and fetched, and no mark does anything."""
    one: Visit = visit()
    one.go(f"/events/{world.evil.id}")
    expect(one.page.get_by_role("heading", level=1)).to_contain_text(EVIL)
    shown(one.page)
    one.page.get_by_role("link", name=ODD).click()
    expect(one.page.get_by_role("heading", level=1)).to_have_text(ODD)
    shown(one.page)
    with one.page.expect_download() as download:
        one.page.get_by_role("link", name="Download", exact=False).first.click()
    assert hashlib.sha256(download.value.path().read_bytes()).hexdigest() == world.evil.files[ODD]


def test_a_picture_that_cannot_be_made_says_why(visit: Visiting, client: httpx.Client, world: World) -> None:
    """The reason is in the list of images, on the page of the image, and by the original, which is as it was."""
    assert "cut off after" in text(client.get(f"/events/{world.broken.id}/images/{CUT}").text)
    one: Visit = visit()
    one.go(f"/events/{world.broken.id}")
    expect(one.page.locator(".reason")).to_contain_text("cut off after")
    assert [fault for fault in one.faults if "415" not in fault] == []
    one.faults.clear()  # the browser reports every failed request


def test_a_name_of_two_lines_has_a_page(visit: Visiting, world: World) -> None:
    """It is shown and downloaded like any other."""
    one: Visit = visit()
    one.go(f"/events/{world.broken.id}/images/two%0Alines.tif")
    shown(one.page)
    with one.page.expect_download() as download:
        one.page.get_by_role("link", name="Download").click()
    assert hashlib.sha256(download.value.path().read_bytes()).hexdigest() == world.broken.files[NEWLINE]


def test_a_keyboard_is_enough(visit: Visiting, world: World) -> None:
    """From the skip link to an event, over its tiles by arrows, into an image and to the next one; focus is seen."""
    one: Visit = visit()
    one.go("/")
    press, focus = one.page.keyboard.press, one.page.locator(":focus")
    press("Tab")
    expect(focus).to_have_text("Skip to the content")
    press("Enter")
    press("/")
    expect(focus).to_have_id("q")
    one.page.keyboard.type(str(world.stitch.id))
    press("Enter")
    expect(one.page.locator("a.event")).to_have_count(1)
    reach(one.page, "a.event")
    assert focus.evaluate("link => getComputedStyle(link).outlineStyle") == "solid"
    press("Enter")
    expect(one.page.locator("[data-viewer] canvas")).to_be_visible()
    reach(one.page, "[data-do=tiles]")
    press("Enter")
    expect(one.page.locator(".stitched")).to_be_visible()
    reach(one.page, ".stitched a")
    for key, name in {
        "ArrowRight": "r01_c02",
        "ArrowDown": "r02_c02",
        "ArrowLeft": "r02_c01",
        "ArrowUp": "r01_c01",
    }.items():
        press(key)
        expect(focus).to_have_attribute("title", re.compile(name))
    press("End")
    expect(focus).to_have_attribute("title", re.compile("r02_c03"))
    press("Home")
    press("Enter")
    expect(one.page.get_by_role("heading", level=1)).to_contain_text("Img_r01_c01")
    press("ArrowRight")
    expect(one.page.get_by_role("heading", level=1)).to_contain_text("Img_r01_c02")
    press("ArrowLeft")
    expect(one.page.get_by_role("heading", level=1)).to_contain_text("Img_r01_c01")


def reach(page: Page, wanted: str) -> None:
    """Press Tab until something like that has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
            return
    raise AssertionError(f"{wanted} is not reached")


VIEW = "() => { const { x, y, scale } = document.querySelector('[data-viewer]').viewer; return [x, y, scale]; }"
PIXELS = """() => {
  const { canvas } = document.querySelector("[data-viewer]").viewer;
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  return { width: canvas.width, height: canvas.height, grey: [...data].filter((_, i) => i % 4 === 1) };
}"""


def painted(page: Page) -> Any:
    """Read the brightness of every pixel of the viewer, once it is whole."""
    expect(page.locator("[data-viewer]")).to_have_attribute("data-whole", "")
    found = page.evaluate(PIXELS)
    return np.array(found["grey"]).reshape(found["height"], found["width"])


def test_a_stitched_view_has_no_seams(visit: Visiting, world: World) -> None:
    """Neighbours meet in the same pixel of the screen at any zoom: no column or row of background lies between them."""
    one: Visit = visit(size=(1283, 907))
    one.go(f"/events/{world.stitch.id}")
    for factor in (1, 1.07, 1.31):
        one.page.wait_for_selector("[data-viewer][data-ready]")
        one.page.evaluate(
            "by => { const { viewer } = document.querySelector('[data-viewer]'); viewer.zoom(by); }", factor
        )
        grey = painted(one.page)
        drawn = np.argwhere(grey != BACKGROUND)
        (top, left), (bottom, right) = drawn.min(axis=0), drawn.max(axis=0)
        inside = grey[top : bottom + 1, left : right + 1] == BACKGROUND
        assert not inside.all(axis=0).any()
        assert not inside.all(axis=1).any()


def test_a_viewer_shows_the_pixels_of_files(visit: Visiting, world: World) -> None:
    """At 1:1 each pixel of the screen is one of the file, and the address keeps the view."""
    one: Visit = visit()
    name = min(world.stitch.files)
    one.go(f"/events/{world.stitch.id}/images/{name}")
    one.page.locator("[data-viewer][data-ready] canvas").focus()
    one.page.keyboard.press("1")
    grey = painted(one.page)
    with httpx.Client(base_url=one.base, trust_env=False, verify=PLAIN) as client:
        url = f"/api/1/events/{world.stitch.id}/images/{name}"
        picture = np.asarray(Image.open(io.BytesIO(client.get(f"{url}/picture").content)))
        about = client.get(f"{url}/info").json()
    assert (about["width"], about["height"], about["bits"]) == (picture.shape[1], picture.shape[0], 16)
    assert sum(about["histogram"]["counts"]) == picture.size
    top, left = (grey.shape[0] - picture.shape[0]) // 2, (grey.shape[1] - picture.shape[1]) // 2
    assert np.array_equal(grey[top : top + picture.shape[0], left : left + picture.shape[1]], picture)
    for key in ("+", "+", "ArrowRight", "ArrowDown"):
        one.page.keyboard.press(key)
    one.page.wait_for_function("() => location.hash.startsWith('#at=')")
    one.page.wait_for_timeout(400)
    before = one.page.evaluate(VIEW)
    one.page.reload()
    one.page.wait_for_selector("[data-viewer][data-ready]")
    assert one.page.evaluate(VIEW) == pytest.approx(before, abs=1, rel=0.01)


def test_a_viewer_is_moved_by_hand(visit: Visiting, world: World) -> None:
    """The wheel zooms where the pointer is once the viewer has the focus; two fingers zoom, one moves."""
    one: Visit = visit()
    one.go(f"/events/{world.stitch.id}")
    canvas = one.page.locator("[data-viewer][data-ready] canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    x, y = box["x"] + 300, box["y"] + 200
    start = one.page.evaluate(VIEW)
    one.page.mouse.move(x, y)
    one.page.mouse.wheel(0, -10)
    assert one.page.evaluate(VIEW) == start
    one.page.mouse.click(x, y)
    one.page.mouse.wheel(0, -300)
    one.page.wait_for_function("before => document.querySelector('[data-viewer]').viewer.scale > before", arg=start[2])
    zoomed = one.page.evaluate(VIEW)
    one.page.mouse.down()
    one.page.mouse.move(x + 50, y + 20)
    one.page.mouse.up()
    moved = one.page.evaluate(VIEW)
    assert moved[0] == pytest.approx(max(0, zoomed[0] - 50 / zoomed[2]), abs=0.5)
    fingers = one.page.context.new_cdp_session(one.page)
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 80), ("touchEnd", 0)):
        points = [{"x": x + side * apart, "y": y, "id": side + 1} for side in (-1, 1)] if apart else []
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert one.page.evaluate(VIEW)[2] > 2 * moved[2]


def test_a_plate_is_seen_over_time(visit: Visiting, world: World) -> None:
    """The slider goes to the other times in the same view; the difference of a time to itself would be black."""
    one: Visit = visit()
    one.go(f"/events/{world.later.id}")
    slider = one.page.get_by_label("Time point")
    expect(slider).to_be_visible()
    now = painted(one.page)
    slider.press("Home")
    told = one.page.locator("[data-when]")
    expect(told).to_have_attribute("href", re.compile(str(world.early.id)))
    expect(told).to_contain_text("day 0, 0 h")
    before = painted(one.page)
    assert not np.array_equal(now, before)
    slider.press("End")
    one.page.get_by_label("Difference").check()
    changed = painted(one.page).astype(int)
    inside = now != BACKGROUND
    assert np.abs(changed - np.abs(now.astype(int) - before))[inside & (before != BACKGROUND)].max() <= 1
    one.page.get_by_role("button", name="Play").click()
    expect(told).to_have_attribute("href", re.compile(str(world.early.id)))
    one.page.get_by_role("button", name="Pause").click()


def test_events_are_chosen_and_downloaded(visit: Visiting, world: World) -> None:
    """Boxes beside the events, a button below them."""
    one: Visit = visit()
    one.go(f"/?q={world.video.id}")
    one.page.get_by_role("checkbox", name="Choose").check()
    with one.page.expect_download() as download:
        one.page.get_by_role("button", name="ZIP of all files").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(archive.namelist()) == len(world.video.files)


def test_contrast_is_in_the_address(visit: Visiting, world: World) -> None:
    """What the sliders set is drawn, kept in the address, downloaded as PNG, and the same without scripts."""
    one: Visit = visit()
    name = min(world.stitch.files)
    one.go(f"/events/{world.stitch.id}/images/{name}")
    plain = painted(one.page)
    one.page.get_by_label("Invert").check()
    one.page.wait_for_function("() => location.search === '?invert=true'")
    middle = plain.shape[0] // 2, plain.shape[1] // 2
    assert painted(one.page)[middle] == 255 - plain[middle]
    one.page.get_by_role("button", name="Reset").click()
    one.page.wait_for_function("() => location.search === ''")
    one.go(f"/events/{world.stitch.id}/images/{name}?low=0&high=65535&gamma=2")
    assert one.page.locator("[name=gamma]").input_value() == "2"
    with one.page.expect_download() as download:
        one.page.get_by_role("link", name="PNG").click()
    assert download.value.suggested_filename.endswith(".tif.png")
    rendered = np.asarray(Image.open(download.value.path()))
    with httpx.Client(base_url=one.base, trust_env=False, verify=PLAIN) as client:
        raw = tifffile.imread(io.BytesIO(client.get(f"/api/1/events/{world.stitch.id}/images/{name}").content))
    assert np.array_equal(rendered, (255 * (raw / 65535) ** 0.5).astype(np.uint8))


def every(world: World) -> list[str]:
    """One page of each kind."""
    image = min(world.stitch.files)
    events = [f"/events/{one.id}" for one in (world.stitch, world.video, world.evil, world.waiting)]
    return [
        "/",
        "/?q=nothing+fits&plate=1",
        *events,
        f"{events[0]}/images/{image}",
        "/dashboard",
        "/experiment?name=20250106_001",
    ]


def test_pages_fit_a_phone(visit: Visiting, world: World) -> None:
    """Nothing has to be scrolled sideways at 390 pixels, what is touched is large enough, and no script is needed."""
    one: Visit = visit(size=PHONE, phone=True, scripts=False)
    for path in every(world):
        one.go(path)
        assert one.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390], path
        small = "[...document.querySelectorAll('button, .button, nav a, a.event')].filter(one => one.checkVisibility())"
        heights = one.page.evaluate(f"{small}.map(one => one.getBoundingClientRect().height)")
        assert all(height >= 24 for height in heights), path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(visit: Visiting, world: World, scheme: Literal["light", "dark"]) -> None:
    """Every text has a contrast of 4.5 at least to what is behind it, as the browser draws it."""
    one: Visit = visit(scheme=scheme)
    for path in every(world):
        one.go(path)
        one.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert one.page.evaluate(FAINT) == [], path
    page = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", page))) < 3 * 64) == (scheme == "dark")


FAINT = """() => {
  const numbers = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(numbers(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const drawn = element.checkVisibility({opacityProperty: true}) && !element.closest("title, script, .away");
    if (!walker.currentNode.data.trim() || !drawn) continue;
    const style = getComputedStyle(element);
    let alpha = 1;
    for (let one = element; one; one = one.parentElement) alpha *= Number(getComputedStyle(one).opacity);
    const ground = behind(element);
    const ink = numbers(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(over([ink[0], ink[1], ink[2], ink[3] * alpha], ground)), light(ground)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push([walker.currentNode.data.trim().slice(0, 40), ratio.toFixed(2)]);
  }
  return faint;
}"""


def test_somebody_logs_in(visit: Visiting, world: World) -> None:
    """To the login, in with a token, back to where they wanted to go; pictures come too; and out again."""
    one: Visit = visit(world.gateway)
    one.go(f"/events/{world.video.id}")
    expect(one.page.get_by_role("heading", level=1)).to_have_text("Log in")
    one.page.keyboard.type(world.gateway.token("browser", "read"))
    one.page.keyboard.press("Enter")
    expect(one.page.get_by_role("heading", name="History")).to_be_visible()
    shown(one.page)
    (cookie,) = one.page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (COOKIE, True, "Strict")
    one.page.get_by_role("button", name="Log out").click()
    one.go("/")
    expect(one.page.get_by_role("heading", level=1)).to_have_text("Log in")


def test_a_link_from_elsewhere_works(visit: Visiting, world: World) -> None:
    """Who has logged in may follow a link on another site, though browsers then keep the cookie back at first."""
    one: Visit = visit(world.gateway)
    secret = world.gateway.token("linked", "read")
    one.page.context.add_cookies(
        [{"name": COOKIE, "value": secret, "url": one.base, "httpOnly": True, "sameSite": "Strict"}]
    )
    one.page.goto(one.base.replace("127.0.0.1", "localhost") + "/login")
    one.page.evaluate("where => { location.href = where }", f"{one.base}/events/{world.video.id}?first=1")
    expect(one.page.get_by_role("heading", name="History")).to_be_visible()
    assert one.page.url.endswith(f"/events/{world.video.id}?first=1")
