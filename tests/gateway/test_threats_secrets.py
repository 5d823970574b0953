"""Canaries: tokens, the S3 secret, the database's password and signatures of links are found where they belong only."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import MetaData, make_url

from plateway import store
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.gateway import Parts, auth, create_app
from plateway.local.seaweed import PLAIN
from plateway.pipeline import Site as Line
from tests.databases import administration
from tests.gateway.conftest import GENEROUS, Gateway, running
from tests.gateway.sites import Site, paths, site

PASSWORD = "canary-of-the-database"
SECRET = "canary-of-the-bucket"
SIGNATURE = re.compile(r"X-Amz-(?:Signature|Credential|Security-Token)=[^&\s\"'<]+")


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Everything that the gateway logs, and nothing of the test's own client."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "plateway")
    for client in ("httpx", "httpcore"):
        caplog.set_level(logging.WARNING, client)
    return caplog


def requests(site: Site) -> Iterator[tuple[str, str]]:
    """Name every route that only looks, and some of what goes wrong."""
    app = create_app(site.gateway.parts)
    for method, path, _ in auth.declared(app):
        if method in {"GET", "HEAD"}:
            yield method, paths(site, path)
    app.state.site.close()
    wrong = ("/objects/..%2Fx", "/objects?cursor=x", "/api/1/exports?limit=-1", "/api/1/events?cursor=x", "/nothing")
    yield from (("GET", path) for path in wrong)
    yield from (("PUT", path) for path in ("/objects/mine/a", "/objects/mine%00", "/objects/mine/a/b"))
    yield from (("DELETE", path) for path in ("/objects/mine/none", "/health"))
    yield "POST", "/api/1/events"


def ask(http: httpx.Client, method: str, path: str, *, headers: Mapping[str, str]) -> str:
    """Send a request, and read all of the answer."""
    answer = http.request(method, path, headers=headers, content=b"1")
    return f"{answer.status_code} {answer.headers} {answer.text}"


def client(gateway: Gateway) -> httpx.Client:
    """Open a client that shows nothing by itself."""
    return httpx.Client(base_url=gateway.url, timeout=60, trust_env=False, verify=PLAIN)


def leaks(text: str, secrets: Mapping[str, str]) -> list[str]:
    """Name the secrets that a text tells."""
    return [name for name, secret in secrets.items() if secret in text]


def written(home: Path) -> str:
    """Read every file that a gateway leaves in its home."""
    return "\n".join(path.read_bytes().decode("latin-1") for path in sorted(home.rglob("*")) if path.is_file())


def dumped(url: str) -> str:
    """Read every row of a database."""
    engine, tables = administration(url), MetaData()
    with engine.connect() as connection:
        tables.reflect(connection)
        text = "\n".join(str(row) for table in tables.tables.values() for row in connection.execute(table.select()))
    engine.dispose()
    return text


def test_secrets_are_told_to_nobody(
    tmp_path: Path, postgres_url: str, endpoint: Endpoint, bucket: str, heard: pytest.LogCaptureFixture
) -> None:
    """On a site that works: no answer, metric, log, access log, file or row tells a secret; links are only answers."""
    database = make_url(postgres_url).set(password=PASSWORD).render_as_string(hide_password=False)
    assert endpoint.secret_access_key is not None
    secrets = {"password": PASSWORD, "secret": endpoint.secret_access_key.get_secret_value()}
    where = {"objects": f"s3://{bucket}/objects", "bucket": f"s3://{bucket}/events"}
    with site(tmp_path, **where, catalogue=database, endpoint=endpoint) as one, client(one.gateway) as http:
        gateway = one.gateway
        secrets |= {
            "token": gateway.token("all"),
            "bad": "canary-of-somebody-else",
            "expired": gateway.token("e", ttl=-1),
        }
        told, links = [], set()
        for name in ("token", "bad", "expired"):
            for headers in ({"Authorization": f"Bearer {secrets[name]}"}, {"Cookie": f"{auth.COOKIE}={secrets[name]}"}):
                for method, path in requests(one):
                    with_query = f"{path}{'&' if '?' in path else '?'}token={secrets[name]}&X-Amz-Signature=c0ffee"
                    for target in {path, with_query} if name == "token" and "Authorization" in headers else {path}:
                        text = ask(http, method, target, headers=headers)
                        links |= set(SIGNATURE.findall(text))
                        told += [f"{method} {target}: {leaks(text, secrets)}"] if leaks(text, secrets) else []
        assert not told
        assert any(link.startswith("X-Amz-Signature=") and len(link) > 64 for link in links)
        metrics = ask(http, "GET", "/metrics", headers={"Authorization": f"Bearer {secrets['token']}"})
        assert not leaks(metrics, {**secrets, "link": "X-Amz-"})
    everywhere = {**secrets, **{link: link.partition("=")[2] for link in links}}
    assert not leaks(heard.text, everywhere)
    assert not leaks(written(tmp_path / "gateway") + (tmp_path / "tokens.json").read_text(), everywhere)
    assert not leaks(dumped(postgres_url), everywhere)


def test_secrets_are_not_told_when_everything_fails(
    tmp_path: Path, endpoint: Endpoint, bucket: str, heard: pytest.LogCaptureFixture
) -> None:
    """Without a database, and with a key that S3 refuses: errors name neither, nor where anything is."""
    wrong = Endpoint(url=endpoint.url, access_key_id="nobody", secret_access_key=SecretStr(SECRET))

    def site() -> Line:
        database = f"postgresql+psycopg://plateway:{PASSWORD}@127.0.0.1:9/plateway?connect_timeout=2"
        events = store.open_store(f"s3://{bucket}/events", wrong)
        return Line(Catalog(database), events, tmp_path, lambda _: None, owner="gateway")  # type: ignore[arg-type,return-value]  # nobody asks

    parts = Parts(
        home=tmp_path,
        tokens=tmp_path / "tokens.json",
        objects=f"s3://{bucket}/objects",
        endpoint=wrong,
        limits=GENEROUS,
        site=site,
    )
    secrets = {
        "password": PASSWORD,
        "secret": SECRET,
        "bucket": bucket,
        "endpoint": str(endpoint.url),
        "home": str(tmp_path),
    }
    with running(parts) as gateway, client(gateway) as http:
        secrets["token"] = gateway.token("all")
        headers = {"Authorization": f"Bearer {secrets['token']}"}
        for path in (
            "/ready",
            "/objects",
            "/objects/a",
            "/api/1/events",
            "/api/1/exports",
            "/api/1/events/00000000-0000-0000-0000-000000000001",
            "/metrics",
            "/",
            "/dashboard",
        ):
            text = ask(http, "GET", path, headers=headers)
            assert text.startswith("503" if path != "/metrics" else "200"), (path, text)
            assert not leaks(text, secrets), path
    for name in ("bucket", "endpoint", "home"):  # these the log may tell
        del secrets[name]
    assert not leaks(heard.text, secrets)
    assert not leaks(written(tmp_path / "gateway"), secrets)
