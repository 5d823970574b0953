"""Who may do what: every route, method and kind of token; and that no route forgets to ask."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from statistics import median

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from plateway.errors import Misconfigured
from plateway.gateway import Parts, auth, create_app, tokens
from plateway.local.seaweed import PLAIN
from tests.gateway.conftest import GENEROUS, Gateway, Start, running

ROUTES = {
    ("PUT", "/objects/mine/a"): "write",
    ("GET", "/objects/mine/a"): "read",
    ("HEAD", "/objects/mine/a"): "read",
    ("DELETE", "/objects/mine/a"): "delete",
    ("GET", "/objects"): "read",
    ("GET", "/objects?prefix=mine/"): "read",
    ("GET", "/health"): None,
    ("GET", "/ready"): None,
    ("GET", "/openapi.json"): None,
    ("GET", "/docs"): None,
}
GOOD = {"PUT": {200}, "GET": {200}, "HEAD": {200}, "DELETE": {204}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a token of each kind."""
    home = tmp_path_factory.mktemp("site")
    with running(Parts(home=home, tokens=home / "tokens.json", objects="memory://auth", limits=GENEROUS)) as gateway:
        gateway.token("good")
        for scope in tokens.SCOPES:
            gateway.token(scope, scope)
            gateway.token(f"all but {scope}", *(other for other in tokens.SCOPES if other != scope))
        gateway.token("expired", ttl=-1)
        gateway.token("revoked")
        tokens.delete(gateway.parts.tokens, "revoked")
        gateway.token("prefix", prefix="mine/")
        gateway.token("other prefix", prefix="theirs/")
        yield gateway


def shown(site: Gateway, kind: str) -> dict[str, str]:
    """Return what a client of this kind sends."""
    headers = {
        "none": None,
        "empty": "Bearer",
        "basic": "Basic YTpi",
        "bad": f"Bearer {'x' * 43}",
        "huge": f"Bearer {'x' * 20_000}",
        "hash": f"Bearer {tokens.digest(site.secrets['good'])}",
        "odd": "Bearer caf\u00e9\u00ff",
    }
    value = headers[kind] if kind in headers else f"Bearer {site.secrets[kind]}"
    return {} if value is None else {"Authorization": value}


REFUSED = {
    "none": (401, "Not authenticated"),
    "empty": (401, "Not authenticated"),
    "basic": (401, "Not authenticated"),
    **dict.fromkeys(["bad", "huge", "hash", "odd", "revoked"], (401, "Invalid or missing token")),
    "expired": (401, "Token expired"),
}
OTHERS = ["good", "prefix", "other prefix", *tokens.SCOPES, *(f"all but {scope}" for scope in tokens.SCOPES)]


@pytest.mark.parametrize(("route", "kind"), list(product(ROUTES, [*REFUSED, *OTHERS])), ids=str)
def test_every_route_asks_every_kind_of_token(site: Gateway, route: tuple[str, str], kind: str) -> None:
    """A route lets in whoever has the scope and the prefix, and answers everybody else as the contract says."""
    (method, path), scope = route, ROUTES[route]
    with httpx.Client(base_url=site.url, trust_env=False, verify=PLAIN) as http:
        if scope == "delete" or (method, path) == ("GET", "/objects/mine/a"):
            http.put("/objects/mine/a", content=b"1", headers=shown(site, "good"))
        raw = [(name.encode(), value.encode("latin-1")) for name, value in shown(site, kind).items()]
        answer = http.request(method, path, headers=raw, content=b"1" if method == "PUT" else None)
    if scope is None:
        assert answer.status_code == 200
    elif kind in REFUSED:
        refused(answer, *REFUSED[kind])
    elif (kind in tokens.SCOPES and kind != scope) or kind == f"all but {scope}":
        refused(answer, 403, f"Missing required scopes: ['{scope}']")
    elif kind == "other prefix" and path != "/objects":
        refused(answer, 403, "The token is valid for keys that begin with theirs/")
    else:
        assert answer.status_code in GOOD[method]


def refused(answer: httpx.Response, status: int, message: str) -> None:
    """Compare an answer with the contract."""
    assert answer.status_code == status
    assert "www-authenticate" not in answer.headers
    if answer.request.method != "HEAD":
        assert answer.json() == {"error": {"code": str(status), "message": message}}


def test_listings_show_what_the_token_is_good_for(site: Gateway) -> None:
    """A token with a prefix lists what is below it, also when it does not ask for less than everything."""
    with site.client(site.secrets["good"]) as http:
        for key in ("mine/l1", "theirs/l2"):
            http.put(f"/objects/{key}", content=b"1")
    with site.client(site.secrets["other prefix"]) as http:
        assert http.get("/objects").json()["keys"] == ["theirs/l2"]
        assert http.get("/objects", params={"prefix": "the"}).json()["keys"] == ["theirs/l2"]
        assert http.get("/objects", params={"prefix": "theirs/l"}).json()["keys"] == ["theirs/l2"]
        assert http.get("/objects", params={"prefix": "m"}).status_code == 403
        cursor = {"cursor": "eyJsYXN0X2tleSI6ICJhIn0="}  # {"last_key": "a"}
        assert http.get("/objects", params=cursor).json()["keys"] == ["theirs/l2"]
        assert http.get("/objects/theirs%2F..%2Fmine%2Fl1").status_code == 400


def test_every_route_declares_its_scopes(tmp_path: Path) -> None:
    """All routes of the gateway say what they ask for; only health, readiness and the API's page are open."""
    parts = Parts(home=tmp_path, tokens=tmp_path / "tokens.json", objects="memory://declared")
    found = {(method, path): scopes for method, path, scopes in auth.declared(create_app(parts))}
    assert found == {
        **{(method, path): None for method in ("GET", "HEAD") for path in ("/health", "/ready", "/docs")},
        ("PUT", "/objects/{key:key}"): ("write",),
        ("GET", "/objects/{key:key}"): ("read",),
        ("HEAD", "/objects/{key:key}"): ("read",),
        ("DELETE", "/objects/{key:key}"): ("delete",),
        ("GET", "/objects"): ("read",),
        ("HEAD", "/objects"): ("read",),
    }


def test_a_route_that_declares_nothing_is_noticed() -> None:
    """A route without scopes, a mounted application, a route that is open and asks as well: none of them starts."""

    async def nothing() -> None:
        pass

    async def plain(_: Request) -> Response:
        return Response()

    ways: list[Callable[[FastAPI], object]] = [
        lambda app: app.add_api_route("/x", nothing),
        lambda app: app.add_route("/x", plain),
        lambda app: app.mount("/x", FastAPI()),
        lambda app: app.add_api_route("/x", nothing, dependencies=[auth.OPEN, auth.needs("read")]),
    ]
    for add in ways:
        app = FastAPI(docs_url=None, redoc_url=None)
        add(app)
        with pytest.raises(Misconfigured, match="/x"):
            list(auth.declared(app))


def test_objects_are_never_where_events_are(tmp_path: Path) -> None:
    """Objects have a bucket or prefix of their own: no token reaches an event bundle."""
    for objects, bucket in (
        ("s3://raw", "s3://raw"),
        ("s3://raw/objects", "s3://raw"),
        ("s3://raw", "s3://raw/events"),
        ("file:///data/raw/x", "file:///data/raw/"),
    ):
        with pytest.raises(Misconfigured, match="own"):
            create_app(Parts(home=tmp_path, tokens=tmp_path / "tokens.json", objects=objects, bucket=bucket))


def test_o13_corrupt_tokens_file(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """O13: a tokens file that cannot be read keeps the last good tokens in force; the log and readiness say so."""
    gateway = start()
    with gateway.client() as http:
        assert http.get("/objects").status_code == 200
        good = gateway.parts.tokens.read_bytes()
        with caplog.at_level(logging.ERROR):
            gateway.parts.tokens.write_bytes(good[: len(good) // 2])
            assert http.get("/objects").status_code == 200
        assert "tokens file is not JSON" in caplog.text
        time.sleep(1.1)  # readiness holds for a second
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["checks"]["tokens"]) == (
            503,
            "the tokens file is not JSON: JSONDecodeError",
        )
        gateway.parts.tokens.write_bytes(good)
        assert http.get("/objects").status_code == 200
        gateway.parts.tokens.unlink()
        assert http.get("/objects").status_code == 401


def test_revoked_at_once(start: Start) -> None:
    """A token that is deleted or refreshed is refused by the very next request."""
    gateway = start()
    old = gateway.token("t")
    with gateway.client(old) as http:
        assert http.get("/objects").status_code == 200
        new = tokens.refresh(gateway.parts.tokens, "t", ttl=timedelta(days=1), now=datetime.now(UTC))
        assert http.get("/objects").status_code == 401
        assert http.get("/objects", headers={"Authorization": f"Bearer {new.secret}"}).status_code == 200
        tokens.delete(gateway.parts.tokens, "t")
        assert http.get("/objects", headers={"Authorization": f"Bearer {new.secret}"}).status_code == 401


def test_looking_up_tells_nothing_by_time(tmp_path: Path) -> None:
    """Unknown tokens take as long as each other, near misses too: medians differ by less than the noise."""
    path = tmp_path / "tokens.json"
    made = tokens.add(path, "t", ttl=timedelta(days=1), now=datetime.now(UTC))
    known = tokens.Tokens(path)
    near, far = made.secret[:-1] + ("A" if made.secret[-1] != "A" else "B"), "x" * len(made.secret)
    taken: dict[str, list[int]] = {near: [], far: []}
    for _ in range(5000):
        for secret in (near, far):
            began = time.perf_counter_ns()
            assert known.find(secret) is None
            taken[secret].append(time.perf_counter_ns() - began)
    first, second = (median(times) for times in taken.values())
    assert abs(first - second) < 0.25 * max(first, second)
