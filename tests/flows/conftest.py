"""A real Prefect server for all tests of the flows, with a resident worker and a home of its own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deployments import provision
from plateway.catalog import Catalog
from plateway.local import bringup
from plateway.settings import Settings, load

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = 200.0  # seconds for anything: machines may be busy, and a test has 300
LOOK = 0.5  # seconds between looks; each costs the server 15 ms


@dataclass(frozen=True)
class Site:
    """A home, a bench and a bucket on disk, and the server that runs them."""

    home: Path
    api: str

    @property
    def settings(self) -> Settings:
        """The settings that every part of the site has."""
        return self.told()

    def told(self, **otherwise: str) -> Settings:
        """The settings, some of them otherwise."""
        known: dict[str, Any] = {
            "home": self.home,
            "bucket_url": f"file://{self.home}/bucket",
            "settle_seconds": 0,
            "purge_systems": "prince",
            "archive_inbox": str(self.home / "inbox"),
            "archive_target": f"file://{self.home}/tape",
            "notify": "custom-webhook/alerts",
        }
        return load(**known | otherwise)

    @property
    def env(self) -> dict[str, str]:
        """What every part of the site finds in its environment."""
        return bringup.environment(self.settings, self.api)

    @contextmanager
    def running(self, *command: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a part as a process of its own, and stop it afterwards."""
        part = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=PROJECT,
            env=self.env | variables,
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

    def deploy(self, **otherwise: str) -> None:
        """Provision the server, as a process of its own."""
        command = [sys.executable, "-m", "deployments.provision"]
        env = bringup.environment(self.told(**otherwise), self.api)
        subprocess.run(command, cwd=PROJECT, env=env, check=True, timeout=PATIENCE, stderr=subprocess.DEVNULL)
        ask(unscheduled)

    def provision(self, **otherwise: str) -> None:
        """Provision the server again, in this process, which has imported all that takes seconds."""
        ask(lambda _: provision.provision(self.told(**otherwise)))

    def post(self, path: str, **wanted: Any) -> Any:
        """Query the server over HTTP; a busy one is asked again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = httpx.post(f"{self.api}/{path}", json=wanted, timeout=60, auth=bringup.basic(self.env))
                if answer.status_code != 503 or time.monotonic() > deadline:
                    return answer.raise_for_status().json()
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOOK)

    def worker(self, pool: str = "resident", kind: str = "resident") -> tuple[str, ...]:
        """The command of a worker."""
        return "deployments.worker", "--type", kind, "--pool", pool, "--name", pool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow the first of these tests the time that its server takes to start."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(900))


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A provisioned Prefect server with a bench of one system and an empty bucket."""
    home = tmp_path_factory.mktemp("site")
    (home / "bench" / "prince" / "events").mkdir(parents=True)
    for name in ("bucket", "inbox", "tape"):
        (home / name).mkdir()
    (home / "tape" / "label.txt").write_text("a tape that is there")  # an empty one looks like an empty mount point
    here = Site(home, f"http://127.0.0.1:{free_port()}/api")
    Catalog(here.settings.catalog_url).upgrade()
    server = bringup.prefect(here.settings, here.env)
    auth = bringup.read_auth(home)
    with (
        here.running(*server.command[2:], **server.environment),
        temporary_settings({PREFECT_API_URL: here.api, PREFECT_API_AUTH_STRING: auth, PREFECT_HOME: home / "prefect"}),
        asking(),
    ):
        until(lambda: answers(f"{here.api}/health"))
        here.deploy()
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
    """Return whether somebody answers there."""
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


@cache
def desk() -> tuple[asyncio.Runner, PrefectClient]:
    """One client for all questions: to make one takes longer than to answer."""
    runner = asyncio.Runner()
    return runner, runner.run(get_client().__aenter__())


@contextmanager
def asking() -> Iterator[None]:
    """Leave nothing of the client afterwards."""
    try:
        yield
    finally:
        runner, client = desk()
        runner.run(client.__aexit__(None, None, None))
        runner.close()
        desk.cache_clear()


def ask(question: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Query the server something."""
    runner, client = desk()

    async def asked() -> T:
        return await question(client)

    return runner.run(asked())


def run_of(run: UUID) -> FlowRun:
    """Read a flow run."""
    return ask(lambda client: client.read_flow_run(run))


def ended(run: UUID, *, seconds: float = PATIENCE) -> FlowRun:
    """Wait for the end of a flow run."""
    until(lambda: final(run_of(run)), seconds=seconds)
    return run_of(run)


def final(run: FlowRun) -> bool:
    """Return whether a flow run has ended."""
    return run.state is not None and run.state.is_final()
