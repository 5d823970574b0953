"""Who is shown events: nobody without a token unless a setting says so, and browsers that a link signed in, once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import httpx
import pytest

from plateway import settings
from plateway.catalog import Catalog
from plateway.gateway import opening, tokens
from plateway.gateway.access import read
from plateway.gateway.auth import COOKIE
from plateway.local.seaweed import PLAIN
from tests.gateway.conftest import Gateway, running

EVENTS = ("/api/1/exports", "/api/1/archives", "/api/1/daily-stats", "/api/1/events", "/metrics", "/", "/dashboard")


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway as the settings make it, on loopback, with nothing else set."""
    monkeypatch.chdir(tmp_path)  # no .env
    config = settings.load(home=tmp_path / "home", bucket_url="memory://sign-in")
    with closing(Catalog(config.catalog_url)) as catalog:
        config.home.mkdir()
        catalog.upgrade()
    with running(opening.parts(config)) as one:
        yield one


def browser(gateway: Gateway) -> httpx.Client:
    """Open a client that keeps cookies and follows nothing by itself."""
    return httpx.Client(base_url=gateway.url, trust_env=False, verify=PLAIN, timeout=30)


def link(gateway: Gateway, *, at: datetime | None = None) -> str:
    """Create a sign-in link, now or at another time."""
    return tokens.sign_in_link(gateway.parts.home, gateway.url, now=at or datetime.now(UTC))


@pytest.mark.parametrize("path", EVENTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "plates.localhost", "[::1]", "127.0.0.1:{port}"])
def test_a_proxy_on_the_same_host_opens_nothing(gateway: Gateway, host: str, path: str) -> None:
    """A request that comes from loopback, names loopback and has no forwarding header is refused without a token."""
    host = host.replace("{port}", str(gateway.port))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as upstream:  # as nginx's proxy_pass asks
        upstream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        status = int(upstream.makefile("rb").readline().split()[1])
    assert status == (401 if path.startswith(("/api", "/metrics")) else 303)


def test_a_link_signs_in_once(gateway: Gateway) -> None:
    """The first browser gets a session that reads and nothing else; the second gets none."""
    address = link(gateway)
    with browser(gateway) as first, browser(gateway) as second:
        assert first.head(address).status_code == 200  # looking is not using
        assert first.get(address, headers={"Sec-Purpose": "prefetch;prerender"}).status_code == 200
        answer = first.get(address)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert [first.get(path).status_code for path in EVENTS] == [200] * len(EVENTS)
        assert second.get(address).status_code == 401
        assert "set-cookie" not in second.get(address).headers
        assert second.get("/api/1/exports").status_code == 401
        secret = first.cookies[COOKIE]
    shown = {"Authorization": f"Bearer {secret}"}
    with browser(gateway) as program:  # a session is for browsers
        assert program.get("/api/1/exports", headers=shown).status_code == 401
    text = gateway.parts.sessions.read_text() + gateway.parts.log.read_text()
    assert secret not in text and address.rpartition("=")[2] not in text
    assert gateway.parts.sessions.stat().st_mode & 0o077 == 0
    assert any((one.who or "").startswith("session ") for one in read(gateway.parts.log))


def test_a_session_reaches_no_object_and_changes_nothing(tmp_path: Path) -> None:
    """Objects ask for a token in a header, and a session counts nowhere else than in the cookie."""
    config = settings.load(home=tmp_path, bucket_url="memory://sign-in-2", objects_url="memory://sign-in-objects")
    with closing(Catalog(config.catalog_url)) as catalog:
        catalog.upgrade()
    with running(opening.parts(config)) as gateway, browser(gateway) as one:
        one.get(link(gateway))
        assert one.get("/api/1/exports").status_code == 200
        assert one.get("/objects").status_code == 401
        assert one.put("/objects/a", content=b"1").status_code == 401
        assert one.delete("/objects/a").status_code == 401


def test_a_link_expires(gateway: Gateway) -> None:
    """A link that nobody used in time is good for nothing, and so is a session after its time."""
    past = datetime.now(UTC) - tokens.LINK_LASTS - timedelta(seconds=1)
    address = link(gateway, at=past)
    with browser(gateway) as one:
        assert one.get(address).status_code == 401
        code = link(gateway, at=past - tokens.SESSION_LASTS).rpartition("=")[2]
        then = past - tokens.SESSION_LASTS + timedelta(minutes=1)
        session = tokens.sign_in(gateway.parts.sessions, code, now=then)
        assert session is not None
        one.cookies.set(COOKIE, session.secret)
        assert one.get("/api/1/exports").status_code == 401


def test_of_many_at_once_one_gets_in(gateway: Gateway) -> None:
    """Twenty browsers use one link at the same time: one session comes of it."""
    address = link(gateway)

    def ask(_: int) -> int:
        with browser(gateway) as one:
            return one.get(address).status_code

    with ThreadPoolExecutor(20) as pool:
        assert min(pool.map(ask, range(20))) == 303
        assert len([one for one in tokens.listed(gateway.parts.sessions) if one.scopes == ("read",)]) == 1


def test_a_code_is_no_token(gateway: Gateway) -> None:
    """Shown as a token or as a cookie, a code lets nobody in."""
    code = link(gateway).rpartition("=")[2]
    with browser(gateway) as one:
        assert one.get("/api/1/exports", headers={"Authorization": f"Bearer {code}"}).status_code == 401
        assert one.post("/login", data={"token": code}).status_code == 401
        assert one.get("/api/1/exports", headers={"Cookie": f"{COOKIE}={code}"}).status_code == 403
        assert one.get("/login", params={"code": "x" * 43}).status_code == 401


def test_logging_out_ends_the_session(gateway: Gateway) -> None:
    """A cookie that was copied before is worth nothing afterwards."""
    with browser(gateway) as one, browser(gateway) as copied:
        one.get(link(gateway))
        copied.cookies.set(COOKIE, one.cookies[COOKIE])
        assert copied.get("/api/1/exports").status_code == 200
        assert one.post("/logout").status_code == 303
        assert copied.get("/api/1/exports").status_code == 401


def test_guessing_codes_is_slow(gateway: Gateway) -> None:
    """Codes that are not good count as failed logins."""
    with browser(gateway) as one:
        statuses = [one.get("/login", params={"code": f"guess-{number}"}).status_code for number in range(25)]
    assert (statuses[0], statuses[-1]) == (401, 429)


# ------------------------------------------------------------------------------------------------- where a login leads

ELSEWHERE = [
    "///evil.test",
    "////evil.test",
    "//evil.test",
    "//evil.test/%2f..",
    "///evil.test/%2f%2e%2e",
    "\\\\evil.test",
    "/\\evil.test",
    "\\/evil.test",
    "/\\/evil.test",
    "/%5cevil.test",
    "/%255cevil.test",
    "/%2fevil.test",
    "/%2f%2fevil.test",
    "/%252f%252fevil.test",
    "%2f%2fevil.test",
    "/.//evil.test",
    "/..//evil.test",
    "/a/..//evil.test",
    "/;//evil.test",
    "/@evil.test//",
    "/\t/evil.test",
    "/\n/evil.test",
    "\t//evil.test",
    " //evil.test",
    "/%09/evil.test",
    "/%0a/evil.test",
    "/%0d%0aLocation:%20//evil.test",
    "/\x00/evil.test",
    "/\x1f/evil.test",
    "/\u2028/evil.test",
    "https://evil.test",
    "HTTPS:evil.test",
    "http:///evil.test",
    "https:/\\evil.test",
    "javascript:alert(1)",
    "data:text/html,x",
    "mailto:a@evil.test",
    "evil.test",
    "@evil.test",
    "?//evil.test",
    "",
]


@pytest.mark.parametrize("to", ELSEWHERE)
def test_a_login_never_leads_to_another_host(gateway: Gateway, to: str) -> None:
    """By form, by link and by who is inside already: the address that follows is one of this host, whoever reads it."""
    secret = gateway.token(f"t{abs(hash(to))}", "read")
    with browser(gateway) as one:
        answers = [
            one.post("/login", data={"token": secret, "next": to}),
            one.get(f"{link(gateway)}&next={quote(to, safe='')}"),
            one.get(f"/login?again=1&next={quote(to, safe='')}"),
        ]
    for answer in answers:
        assert answer.status_code == 303
        where = answer.headers["location"]
        assert where.startswith("/") and not where.startswith(("//", "/\\")) and where.isascii() and where.isprintable()
        assert urlsplit(urljoin(gateway.url, where)).netloc == urlsplit(gateway.url).netloc
        assert where == "/"


@pytest.mark.parametrize("to", ["/dashboard", "/?q=a%2F%2Fb", "/events/x/images/%E2%82%AC%20a.tif", "/?after=x&q=//"])
def test_a_login_leads_back(gateway: Gateway, to: str) -> None:
    """Addresses of pages of ours stay as they are."""
    with browser(gateway) as one:
        answer = one.get(f"{link(gateway)}&next={quote(to, safe='')}")
        assert answer.headers["location"] == to


# ------------------------------------------------------------------------------------------- where a form comes from

OTHERS = [
    {"Origin": "https://evil.test"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1"},  # another port is another origin
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost:{port}"},
    {"Origin": "http://127.0.0.1:{port}.evil.test"},
    {"Origin": "http://evil.test@127.0.0.1:{port}"},
    {"Origin": "http://[evil"},
    {"Origin": ""},
    {"Referer": "https://evil.test/127.0.0.1:{port}"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:{port}"},
]
OURS: list[dict[str, str]] = [
    {},
    {"Origin": "http://127.0.0.1:{port}"},
    {"Referer": "http://127.0.0.1:{port}/login"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:{port}"},
]


@pytest.mark.parametrize("headers", OTHERS, ids=str)
def test_forms_of_other_sites_are_refused(gateway: Gateway, headers: dict[str, str]) -> None:
    """Neither login nor logout: no cookie is set, and none is removed."""
    headers = {name: value.replace("{port}", str(gateway.port)) for name, value in headers.items()}
    secret = gateway.token("t", "read")
    with browser(gateway) as one:
        for path in ("/login", "/logout"):
            answer = one.post(path, data={"token": secret}, headers=headers)
            assert (answer.status_code, "set-cookie" in answer.headers) == (403, False), path


@pytest.mark.parametrize("headers", OURS, ids=str)
def test_forms_of_ours_are_accepted(gateway: Gateway, headers: dict[str, str]) -> None:
    """As browsers send them, old ones and those over plain HTTP too, and as programs do."""
    headers = {name: value.replace("{port}", str(gateway.port)) for name, value in headers.items()}
    secret = gateway.token("t", "read")
    with browser(gateway) as one:
        assert one.post("/login", data={"token": secret}, headers=headers).headers["location"] == "/"
        assert COOKIE in one.cookies
        assert one.post("/logout", headers=headers).status_code == 303
        assert COOKIE not in one.cookies


def test_pages_let_browsers_name_their_origin(gateway: Gateway) -> None:
    """A page without a referrer would send its own forms with `Origin: null`."""
    with browser(gateway) as one:
        assert one.get("/login").headers["referrer-policy"] == "same-origin"
