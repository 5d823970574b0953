"""A gateway that really listens, over each kind of store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn

from plateway.endpoint import Endpoint
from plateway.gateway import Limits, Parts, Rate, server, tokens
from plateway.local.seaweed import PLAIN

GENEROUS = Limits(token=Rate(1_000_000), address=Rate(1_000_000), failed=Rate(1_000_000))
ALL = tokens.SCOPES


@dataclass
class Gateway:
    """One that runs in this process, and what is known of it."""

    parts: Parts
    port: int
    secrets: dict[str, str] = field(default_factory=dict)
    s3_port: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def s3_url(self) -> str:
        """Where S3 clients read."""
        return f"http://127.0.0.1:{self.s3_port}"

    def token(self, name: str, *scopes: str, prefix: str | None = None, ttl: float = 1) -> str:
        """Make a token, good for so many days."""
        now = datetime.now(UTC)
        made = tokens.add(
            self.parts.tokens, name, ttl=timedelta(days=abs(ttl)), scopes=scopes or ALL, prefix=prefix, now=now
        )
        if ttl < 0:  # it was made so long ago that it is over
            tokens.delete(self.parts.tokens, name)
            then = now - timedelta(days=2 * abs(ttl))
            made = tokens.add(
                self.parts.tokens, name, ttl=timedelta(days=abs(ttl)), scopes=scopes or ALL, prefix=prefix, now=then
            )
        self.secrets[name] = made.secret
        return made.secret

    def client(self, secret: str | None = None, **options: Any) -> httpx.Client:
        """Open a client that shows this token, or the one that may do everything."""
        if "all" not in self.secrets:
            self.token("all")
        headers = {"Authorization": f"Bearer {self.secrets['all'] if secret is None else secret}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=PLAIN, **options)


@contextmanager
def running(parts: Parts) -> Iterator[Gateway]:
    """Run a gateway in a thread on a free port."""
    sockets = [server.listen("127.0.0.1", 0) for _ in ([0] if parts.s3_port is None else [0, parts.s3_port])]
    ports = [one.getsockname()[1] for one in sockets]
    serving = uvicorn.Server(server.config(replace(parts, s3_port=ports[1]) if ports[1:] else parts))
    thread = threading.Thread(target=serving.run, kwargs={"sockets": sockets}, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not serving.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.005)
    assert serving.started
    try:
        yield Gateway(parts, ports[0], s3_port=ports[-1])
    finally:
        serving.should_exit = True
        thread.join(30)


Start = Callable[..., Gateway]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start gateways that end with the test; what is not said is over memory, in a home of the test's own."""
    open_ones = []

    def started(**parts: Any) -> Gateway:
        home = parts.pop("home", tmp_path / "home")
        whole = {"tokens": home / "tokens.json", "objects": f"memory://{uuid4().hex}", "limits": GENEROUS, **parts}
        one = running(Parts(home=home, **whole))
        open_ones.append(one)
        return one.__enter__()

    yield started
    for one in reversed(open_ones):
        one.__exit__(None, None, None)


@pytest.fixture(scope="module", params=["memory", "file", "s3"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway over each kind of store, for all tests of a module: tests have keys of their own."""
    home = tmp_path_factory.mktemp("gateway")
    endpoint = Endpoint()
    match request.param:
        case "memory":
            url = f"memory://{uuid4().hex}"
        case "file":
            (home / "objects").mkdir()
            url = (home / "objects").as_uri()
        case _:
            endpoint = request.getfixturevalue("endpoint")
            url = f"s3://objects-{uuid4().hex[:12]}"
            request.getfixturevalue("client").create_bucket(Bucket=url.removeprefix("s3://"))
            url += "/sub"
    with running(Parts(home=home, tokens=home / "tokens.json", objects=url, endpoint=endpoint, limits=GENEROUS)) as one:
        yield one


@pytest.fixture
def own() -> str:
    """A prefix of this test's own."""
    return f"{uuid4().hex[:8]}/"
