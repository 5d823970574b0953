"""Who may do what on a whole site: every route that there is, every method, every kind of token, shown in every way.

The routes are asked of the application itself, so a route that is added is in here by itself; one whose path has a
parameter that `sites.paths` cannot fill fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import httpx
import pytest

from plateway.gateway import auth, create_app, tokens
from plateway.local.seaweed import PLAIN
from tests.gateway.sites import Site, paths, site

METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS")
REFUSED = ("none", "empty", "basic", "bad", "hash", "expired", "revoked")
SCOPES = {"good": tokens.SCOPES, "reads": ("read",), "writes": ("write",), "deletes": ("delete",)}
PREFIXED = ("prefix", "other prefix")
KINDS = (*REFUSED, *SCOPES, *PREFIXED)
GOOD = {200, 204, 307, 404}  # 404: there is no such archive


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with objects, an event, and a token of each kind."""
    with site(tmp_path_factory.mktemp("site"), objects="memory://matrix") as one:
        gateway = one.gateway
        for kind, scopes in SCOPES.items():
            gateway.token(kind, *scopes)
        gateway.token("expired", ttl=-1)
        gateway.token("revoked")
        tokens.delete(gateway.parts.tokens, "revoked")
        gateway.token("prefix", prefix="mine/")
        gateway.token("other prefix", prefix="theirs/")
        gateway.token("of events", "read", prefix=one.event.key[:3])
        yield one


@pytest.fixture(scope="module")
def routes(place: Site) -> Mapping[str, Mapping[str, tuple[str, ...] | None]]:
    """The methods of each path, and the scopes that each asks for."""
    found: dict[str, dict[str, tuple[str, ...] | None]] = {}
    app = create_app(place.gateway.parts)
    for method, path, scopes in auth.declared(app):
        found.setdefault(path, {})[method] = scopes
    app.state.site.close()
    return found


def secret(place: Site, kind: str) -> str | None:
    """Return what is shown as a token; None: nothing at all."""
    others = {"none": None, "empty": "", "basic": "", "bad": "x" * 43}
    if kind == "hash":
        return tokens.digest(place.gateway.secrets["good"])
    return others[kind] if kind in others else place.gateway.secrets[kind]


def bearer(place: Site, kind: str) -> dict[str, str]:
    """Show a token in a header."""
    shown = secret(place, kind)
    if kind == "basic":
        return {"Authorization": "Basic YTpi"}
    return {} if shown is None else {"Authorization": f"Bearer {shown}".strip()}


def cookie(place: Site, kind: str) -> dict[str, str]:
    """Show a token in a cookie."""
    shown = secret(place, kind)
    return {} if shown is None else {"Cookie": f"{auth.COOKIE}={shown}"}


def asked(http: httpx.Client, place: Site, method: str, path: str, *, headers: Mapping[str, str]) -> httpx.Response:
    """Request something; the object that may be asked for is there."""
    good = bearer(place, "good")
    if path == "/api/1/download":
        path = f"{path}?id={place.ref.id}"
    if path.startswith("/objects/") and method != "PUT":
        http.put(path, content=b"1", headers=good)
    return http.request(method, path, headers=headers, content=b"1" if method in {"PUT", "POST", "PATCH"} else None)


def wrong(answer: httpx.Response, place: Site, *, scopes: tuple[str, ...], kind: str, page: bool) -> str | None:
    """Return what is wrong with the answer to somebody who shows this kind of token; None: nothing."""
    status, path = answer.status_code, answer.request.url.path
    if kind in REFUSED:
        to_login = page and status == 303 and answer.headers["location"].startswith("/login")
        return None if status == 401 or to_login else f"{status} instead of 401"
    if missing := set(scopes) - set(SCOPES.get(kind, tokens.SCOPES)):
        return None if status == 403 else f"{status} without {missing}"
    if kind == "other prefix" and path.startswith("/objects/"):
        return None if status == 403 else f"{status} for a key of others"
    if path.endswith("/actions") and status == 400:  # no reason was given
        return None
    if status not in GOOD:
        return f"{status} for a good token"
    if kind in PREFIXED and not path.startswith("/objects"):
        told = answer.text
        leak = [one for one in (place.event.experiment, place.event.key, *place.images[1:]) if one in told]
        return f"tells of {leak}" if leak else None
    return None


def test_every_route_method_and_token(place: Site, routes: Mapping[str, Mapping[str, Any]]) -> None:
    """Each is refused with 401 or 403, or let in, and shown nothing of others; never is there a 5xx."""
    cells, faults = 0, []
    with httpx.Client(base_url=place.gateway.url, timeout=30, trust_env=False, verify=PLAIN) as http:
        open_ones: dict[tuple[str, str], int] = {}
        for (path, methods), method, kind in product(routes.items(), METHODS, KINDS):
            if method not in methods and kind not in {"none", "good"}:
                continue  # it is 405 for everybody
            filled = paths(place, path)
            answer = asked(http, place, method, filled, headers=bearer(place, kind))
            page = not path.startswith(("/objects", "/api", "/metrics"))
            scopes = methods.get(method)
            if method not in methods:
                fault = None if answer.status_code == 405 else f"{answer.status_code} instead of 405"
            elif scopes is None:
                usual = open_ones.setdefault((method, path), answer.status_code)
                fault = None if answer.status_code == usual < 500 else f"{answer.status_code}, else {usual}"
            else:
                fault = wrong(answer, place, scopes=scopes, kind=kind, page=page)
            cells += 1
            faults += [f"{method} {path}, {kind}: {fault}"] if fault else []
    assert not faults
    assert cells >= 300 and {"/api/1/events", "/objects", "/objects/{key:key}", "/metrics", "/"} <= set(routes)


def test_a_cookie_is_good_for_looking_only(place: Site, routes: Mapping[str, Mapping[str, Any]]) -> None:
    """In a cookie a token is as good as in a header where people look at events, and nothing for objects."""
    faults = []
    with httpx.Client(base_url=place.gateway.url, timeout=30, trust_env=False, verify=PLAIN) as http:
        for (path, methods), kind in product(routes.items(), KINDS):
            for method, scopes in methods.items():
                if scopes is None:
                    continue
                answer = asked(http, place, method, paths(place, path), headers=cookie(place, kind))
                objects = path.startswith("/objects")
                fault = wrong(
                    answer,
                    place,
                    scopes=scopes,
                    kind="none" if objects else kind,
                    page=not path.startswith(("/api", "/metrics")),
                )
                faults += [f"{method} {path}, {kind}: {fault}"] if fault else []
    assert not faults


def test_a_prefix_lets_its_own_events_through(place: Site, routes: Mapping[str, Mapping[str, Any]]) -> None:
    """What a token is good for it sees: the matrix above would not notice if nobody saw anything."""
    event = str(place.ref.id)
    with httpx.Client(base_url=place.gateway.url, timeout=30, trust_env=False, verify=PLAIN) as http:
        for kind, sees in (("good", True), ("of events", True), ("other prefix", False)):
            for path in ("/api/1/events", "/api/1/exports"):
                assert (event in http.get(path, headers=bearer(place, kind)).text) == sees, (kind, path)
            for path in ("/api/1/events/{id}", "/api/1/events/{id}/images", "/events/{id}"):
                answer = http.get(paths(place, path), headers=bearer(place, kind))
                assert answer.status_code == (200 if sees else 404), (kind, path)
