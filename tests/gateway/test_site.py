"""The gateway as the settings have it, and the page that tells its API."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from plateway import __version__, settings
from plateway.catalog import Catalog
from plateway.errors import Misconfigured, Refused
from plateway.gateway import Rate, auth, create_app, opening, reference
from plateway.gateway.app import overlap
from plateway.local.seaweed import PLAIN
from plateway.settings import RUNTIME, Settings
from tests.gateway.conftest import Start

Known = Callable[..., Settings]
SECRET = "canary-5d1e"


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    """Settings of a home of the test's own, over memory."""
    monkeypatch.chdir(tmp_path)  # no .env
    home = tmp_path / "home"
    home.mkdir()

    def load(**flags: object) -> Settings:
        return settings.load(**{"home": home, "bucket_url": "memory://site", **flags})

    return load


def test_settings_become_parts(known: Known) -> None:
    """Each setting of the gateway has its place; what is not set is as told."""
    default = opening.parts(known())
    assert (default.objects, default.read_only, default.links) == (None, False, timedelta(minutes=15))
    assert default.tokens == default.home / "tokens.json"
    assert default.log == default.home / "gateway" / "access.log"
    limits = opening.parts(known(token_rate=1, address_rate=2, failed_rate=3, max_object="4KiB")).limits
    assert (limits.token, limits.address, limits.failed) == (Rate(1), Rate(2), Rate(3))
    assert limits.object_size == 4096
    named = opening.parts(
        known(
            objects_url="memory://objects",
            tokens_file="t.json",
            access_log="a.log",
            trusted_proxies="10.0.0.0/8",
            link_lifetime="1m",
            read_only=True,
            bypass_proxy=True,
            prefect_ui_url="https://prefect.example.org",
        )
    )
    assert (named.tokens, named.log) == (Path("t.json").absolute(), Path("a.log").absolute())
    assert (named.objects, named.trusted) == ("memory://objects", ("10.0.0.0/8",))
    assert (named.links, named.prefect_ui) == (timedelta(minutes=1), "https://prefect.example.org")
    assert named.read_only and named.endpoint.read_only and named.endpoint.bypass_proxy


@pytest.mark.parametrize(
    ("host", "flags", "open_"),
    [
        ("127.0.0.1", {}, False),
        ("127.8.0.1", {}, False),
        ("::1", {}, False),
        ("localhost", {}, False),
        ("0.0.0.0", {}, False),
        ("", {}, False),
        ("127.0.0.1", {"trusted_proxies": "127.0.0.1"}, False),
        ("127.0.0.1", {"open_access": False}, False),
        ("127.0.0.1", {"open_access": True}, True),
        ("0.0.0.0", {"open_access": True}, True),
        ("127.0.0.1", {"open_access": True, "trusted_proxies": "127.0.0.1"}, True),
    ],
)
def test_who_may_look(known: Known, host: str, flags: dict[str, object], *, open_: bool) -> None:
    """Events are open where a setting says so, and nowhere else; loopback is no reason."""
    assert opening.parts(known(serve_host=host, **flags)).open is open_


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("localhost", True),
        ("LocalHost.", True),
        ("plates.localhost", True),
        ("a.b.localhost", True),
        ("localhost.example.org", False),
        ("notlocalhost", False),
        ("plates-localhost", False),
        ("127.0.0.1.example.org", False),
        ("localhost.localdomain", False),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.7", False),
        ("", False),
    ],
)
def test_names_of_loopback(host: str, *, ours: bool) -> None:
    """Loopback addresses, localhost and all names below it (RFC 6761); no other name, however it begins or ends."""
    assert auth.loopback(host) is ours


def test_parts_go_to_workers(known: Known) -> None:
    """Another process gets the same line out of them; no secret shows."""
    parts = opening.parts(known(access_key_id="a", secret_access_key=SECRET, database_url="sqlite:///x.db"))
    assert SECRET not in repr(parts)
    again = pickle.loads(pickle.dumps(parts))
    assert again.site is not None
    with closing(again.site()) as line:
        assert line.store.name == "site"


def test_the_events_are_never_written(known: Known) -> None:
    """The line that the gateway opens refuses every change of the bucket, whatever the mode."""
    with closing(opening.reader(known())) as line:
        with pytest.raises(Refused, match="read-only"):
            line.store.put("k", [b"1"], size=1, part_size=1, metadata={})
        with pytest.raises(Refused, match="read-only"):
            line.store.delete("k")


def test_prefect_is_where_up_left_it(known: Known) -> None:
    """Links go to the UI of `plateway up` for those on its machine; a damaged runtime file is none."""
    config = known()
    assert config.prefect_ui is None
    (config.home / RUNTIME).write_text('{"settings": {}, "prefect_ui": "http://127.0.0.1:4200"}')
    assert opening.parts(config).prefect_ui == "http://127.0.0.1:4200"
    assert opening.parts(known(serve_host="0.0.0.0")).prefect_ui is None
    (config.home / RUNTIME).write_text("[")
    assert opening.parts(config).prefect_ui is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("s3://raw", "s3://raw/", True),
        ("s3://raw/a", "s3://raw", True),
        ("s3://raw//a/", "s3://raw/a", True),
        ("s3://raw/%61", "s3://raw/a/b", True),
        ("s3://raw/a", "s3://raw/ab", False),
        ("s3://raw", "s3://raw2", False),
        ("s3://raw", "file:///raw", False),
        ("file:///data/../data/x", "/data", True),
        ("file:///", "/data", True),
        ("memory://a", "memory://b", False),
    ],
)
def test_places_that_overlap(one: str, other: str, *, same: bool) -> None:
    """Two spellings of a place are one place, and a place within another one is in it."""
    assert overlap(one, other) is overlap(other, one) is same


def test_links_do_not_hide_a_place(known: Known, tmp_path: Path) -> None:
    """A directory of objects that leads to the bench by a symbolic link is on the bench."""
    config = known()
    config.root.mkdir()
    (tmp_path / "aside").symlink_to(config.root)
    with pytest.raises(Misconfigured, match="apart from the bench"):
        opening.parts(known(objects_url=(tmp_path / "aside").as_uri()))


def test_the_api_has_a_page(start: Start) -> None:
    """Every request of the OpenAPI document is on it, with what it asks for; nothing comes from elsewhere or runs."""
    gateway = start()
    answer = httpx.get(f"{gateway.url}/docs", trust_env=False, verify=PLAIN)
    document = httpx.get(f"{gateway.url}/openapi.json", trust_env=False, verify=PLAIN).json()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for path, methods in document["paths"].items():
        for method in methods:
            assert f">{method.upper()} {path}</a>" in answer.text
    assert "Asks for a token that may write." in answer.text
    assert "<script" not in answer.text
    assert re.findall(r'(?:src|href)="(?!#|/(?!/)|openapi\.json")[^"]*"', answer.text) == []
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe" not in policy


def test_the_page_runs_nothing_that_is_told(start: Start) -> None:
    """What a route says of itself is text."""
    app = create_app(start().parts)
    for route in app.routes:
        if getattr(route, "path", "") == "/health":
            route.description = "<script>alert(1)</script>"  # type: ignore[attr-defined]  # an APIRoute
    body = asyncio.run(asked(app, "/docs")).text
    assert "<script" not in body
    assert "&lt;script&gt;" in body


async def asked(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    """Query an application once; names of headers are written with underscores."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=sent) as http,
    ):
        return await http.get(path)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "plates.localhost:8000"}, 200),
        ({"host": "localhost.evil.example"}, 401),
        ({"host": "evil.example@127.0.0.1"}, 401),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example"}, 401),
        ({"host": "127.0.0.1.evil.example:8000"}, 401),
        ({"host": "evil.example:8000@127.0.0.1.x"}, 401),
        ({"host": "[::1"}, 401),
        ({"host": ""}, 401),
        ({"x_forwarded_for": "192.0.2.7"}, 401),
        ({"forwarded": "for=192.0.2.7"}, 401),
        ({"x_real_ip": "127.0.0.1"}, 401),
        ({"via": "1.1 gate"}, 401),
    ],
    ids=str,
)
def test_only_what_comes_straight_is_shown_events(known: Known, headers: dict[str, str], status: int) -> None:
    """With open access on loopback, a page of another site and a proxy that nobody named need a token all the same."""
    config = known(open_access=True)
    with closing(Catalog(config.catalog_url)) as catalog:
        catalog.upgrade()
    answer = asyncio.run(asked(create_app(opening.parts(config)), "/api/1/daily-stats", **headers))
    assert answer.status_code == status
    if headers == {"host": "evil.example"}:
        to_all = create_app(opening.parts(known(open_access=True, serve_host="0.0.0.0")))
        assert asyncio.run(asked(to_all, "/api/1/daily-stats", **headers)).status_code == 200


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "anything"),
        ({"type": "string"}, "string"),
        ({"type": "string", "format": "date-time"}, "date-time"),
        ({"type": "integer", "minimum": 0, "maximum": 500}, "integer from 0 to 500"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Export"}}, "list of Export"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"enum": ["stitch", "video"]}, "stitch or video"),
        ({"const": 1}, "1"),
    ],
)
def test_kinds_in_words(schema: dict[str, object], words: str) -> None:
    """What a value is, said shortly."""
    assert reference.kind(schema) == words


def test_o14_health_readiness_and_version(start: Start, tmp_path: Path) -> None:
    """O14: readiness looks at the parts, and the version that is told is the one that runs."""
    (tmp_path / "objects").mkdir()
    gateway = start(objects=(tmp_path / "objects").as_uri())
    assert httpx.get(f"{gateway.url}/openapi.json").json()["info"]["version"] == __version__
    (tmp_path / "objects").rmdir()
    ready = httpx.get(f"{gateway.url}/ready")
    assert (ready.status_code, ready.json()["checks"]["objects"]) == (503, "is not there")
