"""The resident worker: runs flows inside one long-lived process.

A new Python process per flow run costs two to three seconds; here a flow is loaded once and kept. States, logs,
artifacts, concurrency limits and cancellation stay Prefect's. It trades isolation for latency: a crash takes all its
runs along, so whoever starts the worker restarts it, and the flows are safe to run again.
A pool of type process, docker or kubernetes runs the same deployments unchanged.

``python -m deployments.worker`` is ``prefect worker start`` in a process that knows the type ``resident``; it takes the
same options.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio
import anyio.abc
import httpx
import psutil
from prefect.cli import app
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import Flow as FlowRecord
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.steps.core import run_steps
from prefect.events import emit_event
from prefect.exceptions import Abort, InfrastructureNotAvailable, InfrastructureNotFound, Pause
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from prefect.settings import PREFECT_WORKER_ENABLE_CANCELLATION, temporary_settings
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import PrivateAttr

from blocks.site import resolve_home
from deployments import prefect_private
from plateway import log_records, settings
from plateway.catalog import Catalog
from plateway.errors import PlatewayError, Unsettled
from plateway.pipeline.identity import KnownPlaces
from plateway.pipeline.places import check_root_of

T = TypeVar("T")
logger = get_logger("worker.resident")
IDENTIFIER = f"{socket.gethostname()}:{os.getpid()}"
ACTIVE = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
SUBMISSION_LIMIT = timedelta(seconds=60)  # a run without a process after that has crashed
RETRY_AFTER = 1.0  # seconds between two requests to an API that does not answer
DECLINED = "plateway.worker.declined"  # an event, when a worker begins to take no runs
DECLINE = 5.0  # seconds between two looks for a bench that is missing
FINISH_WITHIN = 5.0  # seconds until a stopping worker cancels its runs
REPORT_WITHIN = 5.0  # seconds after that for a run to report its end


class ResidentConfiguration(BaseJobConfiguration):
    """The environment variables that a run requires; they must be the worker's, since all runs share its process."""

    _required: dict[str, str | None] = PrivateAttr(default_factory=dict)

    def prepare_for_flow_run(  # noqa: PLR0917  as Prefect calls it
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: FlowRecord | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Record the required variables before Prefect adds its own."""
        self._required = dict(self.env)
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)

    @property
    def missing(self) -> list[str]:
        """Names of the required variables that this process lacks, or has with another value."""
        return sorted(name for name, value in self._required.items() if os.environ.get(name) != value)


class ResidentResult(BaseWorkerResult):
    """The result of a run, for the worker's log."""


@dataclass
class Running:
    """One flow run in a thread of its own."""

    flow_run: FlowRun
    flow: Flow[..., Any]
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: Future[None] = field(default_factory=Future)
    loop: asyncio.AbstractEventLoop | None = None
    task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        """Run the flow to its end in a daemon thread with an event loop of its own."""
        threading.Thread(target=self._main, name=f"run-{self.flow_run.id}", daemon=True).start()

    def stop(self) -> None:
        """Cancel the run at its next await, from another thread; a task in a thread ends after its current call."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: the run is over
            if self.loop is not None and self.task is not None:
                self.loop.call_soon_threadsafe(self.task.cancel)

    def cancel(self) -> None:
        """Stop the run so that it ends as Cancelled; a second call does nothing, as it would interrupt the cleanup."""
        if not self.cancelled.is_set():
            self.cancelled.set()
            self.stop()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except (Abort, Pause, asyncio.CancelledError):  # requested by the server or the worker; the state has it
            self.done.set_result(None)
        except BaseException as error:  # noqa: BLE001  raised where the result is awaited
            self.done.set_exception(error)
        else:
            self.done.set_result(None)

    async def _run(self) -> None:
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        if not self.cancelled.is_set():  # before the task existed
            await prefect_private.run_flow(self.flow, self.flow_run, cancelled=self.cancelled)


@dataclass(frozen=True)
class Loaded:
    """A loaded flow, its file and the stamp of its sources."""

    flow: Flow[..., Any]
    file: Path
    stamp: tuple[Any, ...]


class FlowCache:
    """The loaded flow of each deployment; loaded again when the deployment or a file in the flow's directory changes.

    Changes of other modules take effect after a restart of the worker.
    """

    def __init__(self) -> None:
        self._loaded: dict[UUID, Loaded] = {}
        self._lock = asyncio.Lock()

    async def flow(self, deployment: DeploymentResponse) -> Flow[..., Any]:
        """Return the deployment's flow, and load it only if it is new or changed.

        Raises:
            RuntimeError: the flow is not async: it could not be cancelled, and would block the other runs.
        """
        async with self._lock:
            cached = self._loaded.get(deployment.id)
            if cached is None or cached.stamp != read_stamp(deployment, cached.file):
                cached = self._loaded[deployment.id] = await load(deployment)
        if not cached.flow.isasync or cached.flow.isgenerator:
            raise RuntimeError(f"{deployment.entrypoint} is no async flow: run it in a pool of type process")
        return cached.flow


def read_stamp(deployment: DeploymentResponse, file: Path) -> tuple[Any, ...]:
    """Return what a flow is loaded from: entrypoint, version, and name, time and size of the files beside it."""
    files = [(one.name, one.stat().st_mtime_ns, one.stat().st_size) for one in sorted(file.parent.glob("*.py"))]
    return deployment.entrypoint, deployment.version, repr(deployment.pull_steps), files


def unload_modules(folder: Path) -> None:
    """Remove the modules of a directory from ``sys.modules``, to import them again; active runs keep theirs."""
    for name, module in list(sys.modules.items()):
        if (source := getattr(module, "__file__", None)) and Path(source).parent == folder:
            del sys.modules[name]


async def load(deployment: DeploymentResponse) -> Loaded:
    """Run the pull steps of a deployment, change into their directory, and load the flow there."""
    steps = deployment.pull_steps or [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
    output = await run_steps(steps, print_function=logger.info)
    os.chdir(output.get("directory", "."))
    entrypoint = str(deployment.entrypoint)
    file = Path(entrypoint.rpartition(":")[0]).absolute()
    stamp = read_stamp(deployment, file)
    unload_modules(file.parent)
    load_flow = partial(load_flow_from_entrypoint, entrypoint, use_placeholder_flow=False)
    return Loaded(await anyio.to_thread.run_sync(load_flow), file, stamp)


def has_crashed(run: FlowRun) -> bool:
    """Return whether the process of a run on this machine has ended, or the run was never started within 60 s."""
    host, _, pid = (run.infrastructure_pid or "").rpartition(":")
    if pid:
        return host == socket.gethostname() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
    return run.state is not None and datetime.now(UTC) - run.state.timestamp > SUBMISSION_LIMIT


class Bench:
    """The bench of this machine, as the catalogue knows it."""

    def __init__(self) -> None:
        self._catalog: Catalog | None = None
        self._places: KnownPlaces | None = None

    def find_trouble(self) -> str:
        """Return why this machine should take no runs: its bench is not mounted, or is another one; else empty.

        A catalogue that does not answer, or is none yet, is no trouble: its flow runs report it, and wait for it.
        """
        try:
            known = resolve_home(settings.load())
            if self._catalog is None or self._places is None:
                self._catalog = Catalog(known.catalog_url)
                self._places = KnownPlaces(self._catalog)
            check_root_of(self._catalog, self._places, known.root)
        except Unsettled as error:
            return str(error)
        except PlatewayError:
            return ""
        return ""


def identify_worker(name: str) -> dict[str, str]:
    """Return a worker as the resource of an event."""
    return {"prefect.resource.id": f"plateway.worker.{name}", "prefect.resource.name": name}


class ResidentWorker(BaseWorker[ResidentConfiguration, BaseVariables, ResidentResult]):
    """Runs async flows in threads of this process."""

    type = "resident"
    job_configuration = ResidentConfiguration
    _display_name = "Resident"
    _description = "Runs flows inside one long-lived process: about a second from event to flow code. One machine."

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"prefetch_seconds": 0})  # a run fetched early would occupy its slot
        self._flows = FlowCache()
        self._running: dict[UUID, Running] = {}
        self._bench = Bench()
        self._away = False  # Prefect's API did not answer last time
        self._declines = False  # takes no runs

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ResidentConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ResidentResult:
        """Run one flow run to its end.

        Raises:
            RuntimeError: it requires environment variables that this process does not have.
        """
        if configuration.missing:
            raise RuntimeError(f"runs share this process: set {', '.join(configuration.missing)} where it starts")
        flow = await self._flows.flow(configuration._related_objects["deployment"])
        running = self._running[flow_run.id] = Running(flow_run, flow)
        running.start()
        if task_status is not None:
            task_status.started(IDENTIFIER)  # type: ignore[arg-type]  # any printable id will do
        try:
            await self._wait_or_stop(running)
        except Exception:  # noqa: BLE001  logged for the run, which is reported as crashed
            self.get_flow_run_logger(flow_run).exception("The run ended outside Prefect's engine")
            return ResidentResult(identifier=IDENTIFIER, status_code=1)
        finally:
            self._remove_run(flow_run.id)
        return ResidentResult(identifier=IDENTIFIER, status_code=0)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: ResidentConfiguration, grace_seconds: int = 30
    ) -> None:
        """Cancel a run of this process and wait for its end.

        Raises:
            InfrastructureNotAvailable: the run is in another process.
            InfrastructureNotFound: this process does not run it.
        """
        if infrastructure_pid != IDENTIFIER:
            raise InfrastructureNotAvailable(f"{infrastructure_pid} is not {IDENTIFIER}")
        running = self._running.get(configuration._related_objects["flow-run"].id)
        if running is None:
            raise InfrastructureNotFound(f"{IDENTIFIER} does not run it any more")
        running.cancel()
        with anyio.move_on_after(grace_seconds):
            await self._wait_for_end(running)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll for runs; none while Prefect's API does not answer, or while this machine lacks its bench."""
        trouble = await anyio.to_thread.run_sync(self._bench.find_trouble)
        if trouble and not self._declines:
            emit_event(DECLINED, resource=identify_worker(self.name), payload={"reason": trouble})
        self._declines = bool(trouble)
        if trouble:
            logger.warning("takes no runs: %s", trouble)
            await asyncio.sleep(DECLINE)
            self._last_polled_time = datetime.now(UTC)
            return []
        return await self._survive(super().get_and_submit_flow_runs) or []

    async def _sync_and_initialize(self) -> None:
        await self._survive(super()._sync_and_initialize)

    async def _survive(self, request: Callable[[], Awaitable[T]]) -> T | None:
        """Await a request to Prefect's API; None if the API does not answer: Prefect's loop would end the worker."""
        try:
            answer = await request()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if (
                isinstance(error, httpx.HTTPStatusError)
                and error.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR
            ):
                raise
            if not self._away:
                logger.warning("Prefect's API does not answer, the worker goes on asking: %s", type(error).__name__)
            self._away = True
            await asyncio.sleep(RETRY_AFTER)
            self._last_polled_time = datetime.now(UTC)  # else health checks would end it, and its runs
            return None
        if self._away:
            logger.info("Prefect's API answers again")
        self._away = False
        return answer

    async def _setup_cancellation_observer(self) -> None:
        # no other process can end a run of this one
        with temporary_settings({PREFECT_WORKER_ENABLE_CANCELLATION: True}):
            await super()._setup_cancellation_observer()

    async def _initialize_after_sync(self) -> None:
        await super()._initialize_after_sync()
        await self._report_crashed_runs()

    async def _report_crashed_runs(self) -> None:
        """Report runs whose process has ended as crashed, which frees their slots for the next ones."""
        active = FlowRunFilterState(type=FlowRunFilterStateType(any_=[*ACTIVE]))
        runs = await self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=active),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
        )
        for run in runs:
            if run.id in self._running or run.id in self._submitting_flow_run_ids or not has_crashed(run):
                continue
            if run.state is not None and run.state.is_cancelling():
                await self._mark_flow_run_as_cancelled(run)
            else:
                await self._propose_crashed_state(run, "The process that ran it has ended")

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Skip the state Submitting: nothing is submitted elsewhere."""

    async def _submit_run(self, flow_run: FlowRun) -> None:
        await super()._submit_run(flow_run)
        if flow_run.id in self._running and self._cancelling_observer is not None:
            self._cancelling_observer.add_in_flight_flow_run_id(flow_run.id)  # the base class stops observing here

    async def _cancel_run(self, flow_run_id: UUID) -> None:
        running = self._running.get(flow_run_id)
        if running is None:
            await super()._cancel_run(flow_run_id)
            return
        running.cancel()
        await self._wait_for_end(running)
        flow_run = await self.client.read_flow_run(flow_run_id)
        if flow_run.state is not None and not flow_run.state.is_final():
            await self._mark_flow_run_as_cancelled(flow_run)

    async def _wait_or_stop(self, running: Running) -> None:
        """Wait for the end of a run; if the worker stops meanwhile, stop the run."""
        try:
            await asyncio.shield(asyncio.wrap_future(running.done))
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self._stop_run(running)
            raise

    async def _stop_run(self, running: Running) -> None:
        with anyio.move_on_after(FINISH_WITHIN):
            await self._wait_for_end(running)
        running.stop()
        with anyio.move_on_after(REPORT_WITHIN):
            await self._wait_for_end(running)
        if not running.done.done():
            with anyio.move_on_after(REPORT_WITHIN):
                await self._propose_crashed_state(running.flow_run, "The worker stopped before the run ended")

    async def _wait_for_end(self, running: Running) -> None:
        await asyncio.wait([asyncio.wrap_future(running.done)])

    def _remove_run(self, flow_run_id: UUID) -> None:
        self._running.pop(flow_run_id, None)
        if self._cancelling_observer is not None:
            self._cancelling_observer.remove_in_flight_flow_run_id(flow_run_id)


def main() -> None:
    """Start a worker with the options of ``prefect worker start``; it installs no packages."""
    setup_logging()
    log_records.adjust_handlers(settings.load_logs())
    sys.argv[1:1] = ["worker", "start", "--install-policy", "never"]
    app()


if __name__ == "__main__":
    main()
