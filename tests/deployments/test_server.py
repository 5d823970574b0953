"""The server that wraps Prefect's: what it does so that nothing waits for long."""

from __future__ import annotations

import base64
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from plateway.local import bringup
from plateway.settings import load
from tests.flows.conftest import free_port
from tests.gateway.test_pages import ARGS, CHROMIUM

GARBAGE = """
import gc, threading, time
from deployments import server

class Slow:
    def __init__(self):
        self.me = self
    def __del__(self):
        freed.append(threading.current_thread().name)
        time.sleep(2)

freed = []
server.PAUSE = 0.1
server.collect_in_thread()
Slow()
started = longest = last = time.monotonic()
longest = 0.0
while not freed or time.monotonic() - started < 1:
    made = [[] for _ in range(10_000)]  # what makes the collector run, where it runs by itself
    now = time.monotonic()
    longest, last = max(longest, now - last), now
    assert now - started < 20, "nothing was collected"
print(freed, longest < 1.5)
"""


def test_garbage_that_waits_holds_nobody_up() -> None:
    """What takes its time to be let go of is let go of in a thread that nobody waits for."""
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "['garbage'] True\n", done.stderr


STRANGERS = {
    "nobody": {},
    "another password": {"Authorization": "Basic " + base64.b64encode(b"plateway:wrong").decode()},
    "a token": {"Authorization": "Bearer plateway"},
    "an empty password": {"Authorization": "Basic " + base64.b64encode(b":").decode()},
    "not base64": {"Authorization": "Basic %%%"},
}
ELSEWHERE = "http://elsewhere.example"


@dataclass(frozen=True)
class Running:
    """A Prefect server as `up` starts it, and the environment of the parts."""

    home: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes]

    @property
    def api(self) -> str:
        return self.env["PREFECT_API_URL"]

    @property
    def ui(self) -> str:
        return self.api.removesuffix("/api")

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.api, timeout=60, trust_env=False, **options)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of this module's own, reached from elsewhere as prefect.example.org."""
    home = tmp_path_factory.mktemp("prefect")
    known = load(home=home, bucket_url="memory://", prefect_ui_url="https://prefect.example.org/runs")
    env = bringup.environment(known, f"http://127.0.0.1:{free_port()}/api")
    part = bringup.prefect(known, env)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            part.command, cwd=part.directory, env=part.environment, stdout=log, stderr=log, umask=part.umask
        )
    try:
        deadline = time.monotonic() + part.ready_within
        while not part.ready(0):
            assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
        yield Running(home, env, process)
    finally:
        process.terminate()
        process.wait(60)


pytestmark = pytest.mark.timeout(400)  # the first start of Prefect


@pytest.mark.parametrize("who", STRANGERS)
def test_the_api_refuses_strangers(running: Running, who: str) -> None:
    """Without the password of the home nothing is read and nothing is made: no deployment, no secret of a block."""
    with running.client(headers=STRANGERS[who]) as api:
        asked = [
            api.get("/version"),
            api.get("/admin/settings"),
            api.post("/flows/", json={"name": "mine"}),
            api.post("/deployments/", json={"name": "mine", "flow_id": "00000000-0000-0000-0000-000000000000"}),
            api.post("/deployments/filter", json={}),
            api.post("/block_documents/filter", json={"include_secrets": True}),
            api.get("/block_documents/00000000-0000-0000-0000-000000000000?include_secrets=true"),
            api.post("/work_pools/", json={"name": "mine", "type": "process"}),
            api.post("/events", json=[]),
            api.post("/variables/", json={"name": "mine", "value": "1"}),
            api.post("/admin/database/clear", json={"confirm": True}),
            api.get("/variables/name/health"),
            api.post("/health"),
        ]
    assert {answer.status_code for answer in asked} == {401}


def test_the_api_serves_the_parts(running: Running) -> None:
    """With the password of the home, which only its owner can read, a deployment is made and a block is read."""
    assert stat.S_IMODE((running.home / bringup.AUTH).stat().st_mode) == 0o600
    with running.client(auth=bringup.basic(running.env)) as api:
        flow = api.post("/flows/", json={"name": "ours"}).raise_for_status().json()["id"]
        assert api.post("/deployments/", json={"name": "ours", "flow_id": flow}).is_success
        assert api.post("/block_documents/filter", json={"include_secrets": True}).is_success


def test_the_password_is_in_no_argument_and_in_no_log(running: Running) -> None:
    """It is in files and environments of the owner only."""
    password = bringup.read_auth(running.home).partition(":")[2]
    assert len(password) >= 32
    assert password not in " ".join(str(word) for word in running.process.args)  # type: ignore[union-attr]  # a list
    assert password not in (running.home / "log").read_text()


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"])
def test_streams_refuse_strangers(running: Running, path: str) -> None:
    """A WebSocket without the password is closed before anything is read or written."""
    url = running.api.replace("http", "ws", 1)
    for token in (None, "plateway:wrong"):
        protocols = [Subprotocol("prefect")] if token else None
        with (
            pytest.raises(WebSocketException),
            connect(f"{url}/{path}", subprotocols=protocols, proxy=None) as stream,
        ):
            stream.send(f'{{"type": "auth", "token": "{token}"}}')
            stream.recv(timeout=60)


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "localhost.elsewhere.example:80"])
def test_other_hosts_are_refused(running: Running, host: str) -> None:
    """A page whose name was made to lead here gets nothing, not even with the password."""
    with running.client(headers={"Host": host}, auth=bringup.basic(running.env)) as api:
        for path in ("/version", "/health", f"{running.ui}/", f"{running.ui}/ui-settings"):
            assert api.get(path).status_code == 400
    stream = f"{running.api.replace('http', 'ws', 1)}/events/out"
    with pytest.raises(WebSocketException), connect(stream, additional_headers={"Host": host}, proxy=None):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:8080", "prefect.example.org"])
def test_our_hosts_are_served(running: Running, host: str) -> None:
    """Loopback by either name and any forwarded port, and the name that the site gave the UI."""
    with running.client(headers={"Host": host}) as api:
        assert api.get("/health").status_code == 200


def test_other_origins_get_no_permission(running: Running) -> None:
    """A page of another origin may read no answer; the UI may, by the addresses that it has."""
    port = running.ui.rpartition(":")[2]
    ours = (running.ui, f"http://localhost:{port}", "https://prefect.example.org")
    strange = (ELSEWHERE, "null", "http://127.0.0.1", f"https://127.0.0.1:{port}", f"{running.ui}.elsewhere.example")
    method = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with running.client(auth=bringup.basic(running.env)) as api:
        for origin in (*ours, *strange):
            headers = {"Origin": origin}
            answers = (
                api.get("/version", headers=headers),
                api.options("/deployments/filter", headers=headers | method),
                api.get(f"{running.ui}/ui-settings", headers=headers),
            )
            allowed = {answer.headers.get("access-control-allow-origin") for answer in answers}
            assert allowed == ({origin} if origin in ours else {None}), origin


def test_a_site_cannot_open_it_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says of passwords and origins, the server that `up` starts has those of the home."""
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "*")
    known = load(home=tmp_path, bucket_url="memory://")
    env = bringup.prefect(known, bringup.environment(known, "http://127.0.0.1:4200/api")).environment
    assert env["PREFECT_SERVER_API_AUTH_STRING"] == env["PREFECT_API_AUTH_STRING"] == bringup.read_auth(tmp_path)
    assert env["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")[:2] == [
        "http://127.0.0.1:4200",
        "http://localhost:4200",
    ]
    assert "*" not in env["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium")
def test_the_ui_works_with_the_password(running: Running) -> None:
    """In a browser the UI shows nothing and asks for the password; with it, it shows what there is."""
    with running.client(auth=bringup.basic(running.env)) as api:
        api.post("/flows/", json={"name": "seen-in-the-ui"}).raise_for_status()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page()
        page.goto(running.ui)
        page.wait_for_url("**/login?**", timeout=60_000)
        page.locator("input").first.fill(bringup.read_auth(running.home))
        page.keyboard.press("Enter")
        page.wait_for_url("**/dashboard?**", timeout=60_000)
        page.goto(f"{running.ui}/flows")
        expect(page.get_by_text("seen-in-the-ui")).to_be_visible(timeout=60_000)
        browser.close()
