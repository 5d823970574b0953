"""A Prefect server that never saw our provisioning, used as docs/into-prefect.md says: with Prefect's own commands."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from plateway import simulator
from plateway.catalog import Catalog
from plateway.events import Ref
from plateway.ledger import Ledger
from plateway.settings import load
from plateway.simulator import Simulated

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "into-prefect.md"
PREFECT = Path(sysconfig.get_path("scripts")) / "prefect"
PATIENCE = 240.0  # seconds for anything
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Bare:
    """A Prefect server with one work pool of type process, and what its worker has in its environment."""

    home: Path
    api: str
    port: int  # of the worker's health endpoint

    @property
    def env(self) -> dict[str, str]:
        """The environment of every command: nothing of ours but where things are."""
        inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
        prefect = {"PREFECT_HOME": str(self.home / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        ours = {
            "PLATEWAY_HOME": str(self.home / "plateway"),  # is created by the first run
            "PLATEWAY_SOURCE_ROOT": str(self.home / "bench"),
            "PLATEWAY_BUCKET_URL": (self.home / "bucket").as_uri(),
            "PLATEWAY_SETTLE_SECONDS": "0",
        }
        worker = {
            "PREFECT_API_URL": self.api,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.port),
            "DO_NOT_TRACK": "1",
        }
        return inherited | prefect | ours | worker

    @property
    def catalog_url(self) -> str:
        """The catalogue that the runs made."""
        return load(home=self.home / "plateway").catalog_url

    def prefect(self, *command: str) -> None:
        """Run a command of Prefect's command line to its end."""
        done = subprocess.run(
            [PREFECT, "--no-prompt", *command], cwd=PROJECT, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def running(self, *command: str, **more: str) -> Iterator[None]:
        """Run a command of Prefect's command line meanwhile."""
        part = subprocess.Popen(
            [PREFECT, *command],
            cwd=PROJECT,
            env=self.env | more,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            part.terminate()
            try:
                part.wait(20)
            except subprocess.TimeoutExpired:
                part.kill()
                part.wait()

    def post(self, path: str, **body: Any) -> Any:
        """Send a request to Prefect's API, and once more while it is busy."""
        found: list[httpx.Response] = []

        def answered() -> bool:
            found.append(httpx.post(f"{self.api}/{path}", json=body, timeout=60))
            return found[-1].status_code != 503

        until(answered)
        return found[-1].raise_for_status().json()

    def run(self, flow: str, **parameters: Any) -> dict[str, Any]:
        """Run a deployment to its end, and return the run."""
        deployment = httpx.get(f"{self.api}/deployments/name/{flow}/plateway", timeout=60).raise_for_status().json()
        run = self.post(f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)
        ended: dict[str, Any] = {}

        def over() -> bool:
            ended.update(httpx.get(f"{self.api}/flow_runs/{run['id']}", timeout=60).raise_for_status().json())
            return ended["state"]["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

        until(over)
        return ended

    def log(self, run: dict[str, Any]) -> list[str]:
        """Return the lines of a run's log."""
        lines = self.post("logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}})
        return [f"{line['name']}: {line['message']}" for line in lines]


def until(happened: Callable[[], object]) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)


def answers(url: str) -> bool:
    """Return whether a server answers there."""
    try:
        return httpx.get(url, timeout=30).is_success
    except httpx.TransportError:
        return False


def commands() -> list[list[str]]:
    """Return the commands of the page's first block, which set the server up."""
    (block,) = re.findall(r"<!-- set up -->\n```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line.split() for line in block.splitlines()]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A bare server, set up by the words of the page, with a worker of Prefect's own."""
    home = tmp_path_factory.mktemp("bare")
    for name in ("bench/prince/events", "bucket"):
        (home / name).mkdir(parents=True)
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        port, health = (probe.getsockname()[1] for probe in (one, other))
    site = Bare(home, f"http://127.0.0.1:{port}/api", health)
    with ExitStack() as parts:
        parts.enter_context(site.running("server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"))
        until(lambda: answers(f"{site.api}/health"))
        *before, worker = commands()
        for command in before:
            site.prefect(*command[1:])
        for deployment in site.post("deployments/filter"):  # the tests decide what runs
            for schedule in deployment["schedules"]:
                url = f"{site.api}/deployments/{deployment['id']}/schedules/{schedule['id']}"
                httpx.patch(url, json={"active": False}, timeout=60).raise_for_status()
        parts.enter_context(site.running(*worker[1:]))
        yield site


def acquire(bare: Bare, number: int) -> Ref:
    """Have the instrument acquire an event."""
    prince = Simulated("prince", "timestep", bare.home / "bench" / "prince", images=2, size=32)
    return Ref(simulator.acquire(prince, now=datetime.now(UTC), number=number).id, 1)


def ledger(bare: Bare, ref: Ref) -> Ledger:
    """Read what the catalogue knows of an event."""
    with closing(Catalog(bare.catalog_url)) as catalog:
        return catalog.ledger(ref)


def test_runs_work_where_nothing_was_provisioned(bare: Bare) -> None:
    """The first run creates home and catalogue, exports and verifies; the library's lines are in its log."""
    ref = acquire(bare, 1)
    run = bare.run("discover")
    assert run["state"]["type"] == "COMPLETED", run["state"]["message"]
    export = ledger(bare, ref).export
    assert export is not None
    assert export.evidence
    until(lambda: any(line.startswith("plateway.") and str(ref) in line for line in bare.log(run)))


def test_a_failed_run_names_the_setting(bare: Bare) -> None:
    """What is not configured fails a run in one line, with the setting and what to do."""
    run = bare.run("selftest")
    assert run["state"]["type"] == "FAILED"
    message = run["state"]["message"]
    assert "\n" not in message
    assert "PLATEWAY_BUCKET_URL" in message


def test_queues_have_their_priorities(bare: Bare) -> None:
    """Discovery goes first, reports last, in the order of prefect.yaml."""
    queues = {queue["name"]: queue["priority"] for queue in bare.post("work_pools/plateway/queues/filter")}
    order = json.dumps(sorted(queues, key=lambda name: (queues[name], name)))
    assert queues["discover"] < queues["export"] < queues["verify"] < queues["report"], order
