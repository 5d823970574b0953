"""A real Prefect server for all tests of the flows, with a resident worker and a home of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from plateway import settings
from plateway.catalog import Catalog

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = 200.0  # seconds for anything: machines may be busy, and a test has 300
LOOK = 0.2  # seconds between looks; each costs the server something


@dataclass(frozen=True)
class Site:
    """A home, a bench and a bucket on disk, and the server that runs them."""

    home: Path
    env: dict[str, str]

    @property
    def settings(self) -> settings.Settings:
        """The settings that every part of the site has."""
        return settings.load(
            home=self.home, bucket_url=f"file://{self.home}/bucket", settle_seconds=0, purge_systems="prince"
        )

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a part as a process of its own, and stop it afterwards."""
        part = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=PROJECT,
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield part
        finally:
            part.terminate()
            try:
                part.wait(15)
            except subprocess.TimeoutExpired:
                part.kill()
                part.wait()

    def provision(self, **variables: str) -> None:
        """Provision the server, as a process of its own."""
        command = [sys.executable, "-m", "deployments.provision"]
        subprocess.run(
            command, cwd=PROJECT, env=self.env | variables, check=True, timeout=PATIENCE, stderr=subprocess.DEVNULL
        )
        ask(unscheduled)

    def post(self, path: str, **wanted: Any) -> Any:
        """Ask the server over HTTP; a busy one is asked again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = httpx.post(f"{self.env['PREFECT_API_URL']}/{path}", json=wanted, timeout=60)
                if answer.status_code != 503 or time.monotonic() > deadline:
                    return answer.raise_for_status().json()
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOOK)

    def worker(self, pool: str = "resident", kind: str = "resident") -> tuple[str, ...]:
        """The command of a worker."""
        return "prefect", "worker", "start", "--type", kind, "--pool", pool, "--name", pool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first of these tests the time that its server takes to start."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(900))


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, port: int) -> dict[str, str]:
    """What every part of the site finds in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PLATEWAY_", "AWS_"))}
    return kept | {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        "PLATEWAY_HOME": str(home),
        "PLATEWAY_BUCKET_URL": f"file://{home}/bucket",
        "PLATEWAY_SETTLE_SECONDS": "0",
        "PLATEWAY_PURGE_SYSTEMS": "prince",
        "PLATEWAY_ARCHIVE_INBOX": str(home / "inbox"),
        "PLATEWAY_ARCHIVE_TARGET": f"file://{home}/tape",
        "PLATEWAY_NOTIFY": "custom-webhook/alerts",
    }


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A provisioned Prefect server with a bench of one system and an empty bucket."""
    home = tmp_path_factory.mktemp("site")
    (home / "bench" / "prince" / "events").mkdir(parents=True)
    for name in ("bucket", "inbox", "tape"):
        (home / name).mkdir()
    port = free_port()
    here = Site(home, environment(home, port))
    Catalog(here.settings.catalog_url).upgrade()
    api = here.env["PREFECT_API_URL"]
    with (
        here.running("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)),
        temporary_settings({PREFECT_API_URL: api, PREFECT_HOME: home / "prefect"}),
    ):
        until(lambda: answers(f"{api}/health"))
        here.provision()
        yield here


@pytest.fixture(scope="package")
def worker(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """A resident worker of the site."""
    with site.running(*site.worker()) as process:
        yield process


async def unscheduled(client: PrefectClient) -> None:
    """Leave to the tests what runs when: nothing comes by schedule."""
    for deployment in await client.read_deployments():
        for schedule in deployment.schedules:
            if schedule.active:
                kept = schedule.parameters  # or they would be lost
                await client.update_deployment_schedule(deployment.id, schedule.id, active=False, parameters=kept)


def answers(url: str) -> bool:
    """Say whether somebody answers there."""
    try:
        return httpx.get(url, timeout=60).is_success
    except httpx.TransportError:
        return False


def until(happened: Callable[[], object], *, seconds: float = PATIENCE) -> None:
    """Wait until something has happened, looking often."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(LOOK)


def ask(question: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Ask the server something."""

    async def asked() -> T:
        async with get_client() as client:
            return await question(client)

    return asyncio.run(asked())


def run_of(run: UUID) -> FlowRun:
    """Read a flow run."""
    return ask(lambda client: client.read_flow_run(run))


def ended(run: UUID, *, seconds: float = PATIENCE) -> FlowRun:
    """Wait for the end of a flow run."""
    until(lambda: final(run_of(run)), seconds=seconds)
    return run_of(run)


def final(run: FlowRun) -> bool:
    """Say whether a flow run has ended."""
    return run.state is not None and run.state.is_final()
