"""The resident worker: runs in its own process, ends them when asked, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling

from deployments import worker as resident
from plateway.catalog import Catalog
from plateway.pipeline.identity import KnownPlaces
from plateway.place import DirectoryPlace
from tests.flows.conftest import Site, ask, ended, free_port, run_of, until

PROBE = """
import asyncio
from prefect import flow, task
from {beside} import SAID

@task
def double(number):
    return 2 * number

@flow
async def probe(nap: float = 0.0):
    await asyncio.sleep(nap)
    double.map([1, 2, 3]).result()
    return SAID
"""
POLLS = 15  # Prefect's own worker ends after 12 that fail
Process = subprocess.Popen[bytes]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one flow that says something, and a module beside it."""
    return fill(tmp_path)


def fill(project: Path) -> Path:
    """Write the flow and its module; one process knows each name once."""
    beside = f"beside_{uuid4().hex}"
    (project / f"{beside}.py").write_text("SAID = 'first'\n")
    (project / f"probe_{uuid4().hex}.py").write_text(PROBE.replace("{beside}", beside))
    return project


def deployed(project: Path, *, work_pool: str = "resident", limit: int | None = None, **more: Any) -> UUID:
    """Deploy the project's flow."""
    file = next(project.glob("probe_*.py")).name
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}
    queueing = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)

    async def create(client: PrefectClient) -> UUID:
        return await client.create_deployment(
            flow_id=await client.create_flow_from_name("probe"),
            name=uuid4().hex,
            work_pool_name=work_pool,
            entrypoint=f"{file}:probe",
            pull_steps=[step],
            concurrency_limit=limit,
            concurrency_options=queueing if limit else None,
            **more,
        )

    return ask(create)


def started(deployment: UUID, **parameters: Any) -> UUID:
    """Request a run."""
    return ask(lambda client: client.create_flow_run_from_deployment(deployment, parameters=parameters)).id


def going(run: UUID) -> bool:
    """Return whether a run is running."""
    state = run_of(run).state
    return state is not None and state.is_running()


def names(run: UUID) -> list[str]:
    """The states that a run went through."""
    return [state.name or "" for state in ask(lambda client: client.read_flow_run_states(run))]


def test_runs_live_in_the_process_of_the_worker(site: Site, worker: Process, project: Path) -> None:
    """A run is Completed, and its infrastructure is the worker itself."""
    run = ended(started(deployed(project)))
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert run.infrastructure_pid == f"{socket.gethostname()}:{worker.pid}"


def test_cancelling_ends_a_running_flow_as_cancelled(site: Site, worker: Process, project: Path) -> None:
    """What somebody cancels ends Cancelled, never Crashed, long before its time."""
    run = started(deployed(project), nap=600)
    until(lambda: going(run))
    ask(lambda client: client.set_flow_run_state(run, Cancelling()))
    assert ended(run).state_name == "Cancelled"
    assert "Crashed" not in names(run)


def test_a_limit_of_one_lets_one_run_after_another(site: Site, worker: Process, project: Path) -> None:
    """The second run waits for the end of the first and then runs as well."""
    deployment = deployed(project, limit=1)
    runs = [ended(run) for run in [started(deployment, nap=1), started(deployment, nap=1)]]
    first, second = sorted(runs, key=lambda run: str(run.start_time))
    assert first.state_name == second.state_name == "Completed"
    assert first.end_time is not None
    assert second.start_time is not None
    assert second.start_time >= first.end_time


def test_a_changed_file_is_read_again(site: Site, worker: Process, project: Path) -> None:
    """The next run runs what the files say now, also the one beside the flow's."""
    deployment = deployed(project)
    assert ended(started(deployment)).state_name == "Completed"
    next(project.glob("beside_*.py")).write_text("raise LookupError('second')\n")
    state = ended(started(deployment)).state
    assert state is not None
    assert state.is_crashed()
    assert "second" in (state.message or "")


def test_variables_of_its_own_are_refused(site: Site, worker: Process, project: Path) -> None:
    """A run that wants another environment says so instead of getting the wrong one."""
    state = ended(started(deployed(project, job_variables={"env": {"LAB": "north"}}))).state
    assert state is not None
    assert state.is_crashed()
    assert "LAB" in (state.message or "")


@pytest.fixture(scope="module")
def heir(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[UUID, Process]]:
    """A run whose worker was killed in its midst, and the worker that took over the pool."""
    with site.running(*site.worker("mortal")) as doomed:
        until(lambda: "mortal" in pools())
        run = started(deployed(fill(tmp_path_factory.mktemp("orphan")), work_pool="mortal"), nap=600)
        until(lambda: going(run) and run_of(run).infrastructure_pid)
        os.kill(doomed.pid, signal.SIGKILL)
        doomed.wait()
    assert going(run)
    with site.running(*site.worker("mortal")) as process:
        yield run, process


def test_a_worker_buries_the_runs_of_its_dead_predecessor(heir: tuple[UUID, Process]) -> None:
    """After kill -9 the next worker reports what was running as crashed at once, so that a slot is free."""
    state = ended(heir[0], seconds=60).state
    assert state is not None
    assert state.is_crashed()
    assert state.message == "The process that ran it has ended"


def test_a_stopping_worker_reports_its_runs(heir: tuple[UUID, Process], project: Path) -> None:
    """SIGTERM ends the worker in seconds, and no run stays Running behind it."""
    run = started(deployed(project, work_pool="mortal"), nap=600)
    until(lambda: going(run))
    heir[1].terminate()
    assert heir[1].wait(60) == 0
    assert ended(run, seconds=60).state_name == "Crashed"


def pools() -> list[str]:
    """The work pools that there are."""
    return [one.name for one in ask(lambda client: client.read_work_pools())]


def test_a_worker_survives_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number of polls that nobody answers, or that end with 5xx, ends the worker's loop; a refusal does."""
    monkeypatch.setattr(resident, "RETRY_AFTER", 0.0)
    silent = PrefectClient(f"http://127.0.0.1:{free_port()}/api")

    async def poll() -> None:
        worker = resident.ResidentWorker("resident")
        async with silent:
            for _ in range(POLLS):
                assert await worker._survive(partial(silent._client.get, "/health")) is None
        assert worker._away
        for status, passes in ((503, True), (404, False)):
            answer = httpx.Response(status, request=httpx.Request("GET", "http://127.0.0.1"))

            async def raise_for(answer: httpx.Response = answer) -> httpx.Response:
                return answer.raise_for_status()

            with nullcontext() if passes else pytest.raises(httpx.HTTPStatusError):
                await worker._survive(raise_for)

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        asyncio.run(poll())


def test_a_worker_without_its_bench_takes_no_run(site: Site, project: Path) -> None:
    """A run waits for a machine that has the bench, or until this one has it."""
    catalog = Catalog(site.settings.catalog_url)
    with closing(catalog), site.running(*site.worker("idle")):
        place = DirectoryPlace(site.settings.root, name="bench")
        KnownPlaces(catalog).require("bench", lambda: place, owned=False)
        until(lambda: "idle" in pools())
        site.settings.root.rename(site.home / "away")
        try:
            run = started(deployed(project, work_pool="idle"))
            time.sleep(4)
            assert run_of(run).state_name in {"Scheduled", "Late"}
        finally:
            (site.home / "away").rename(site.settings.root)
        assert ended(run).state_name == "Completed"
