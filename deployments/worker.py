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
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.abc
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
from prefect.exceptions import Abort, InfrastructureNotAvailable, InfrastructureNotFound, Pause
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.logging import get_logger
from prefect.settings import PREFECT_WORKER_ENABLE_CANCELLATION, temporary_settings
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import PrivateAttr

logger = get_logger("worker.resident")
HERE = f"{socket.gethostname()}:{os.getpid()}"
GOING = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
LIMBO = timedelta(seconds=60)  # a run that was taken but has no process by then has none at all
PATIENCE = 5.0  # seconds that a stopping worker gives its runs to finish
FAREWELL = 5.0  # seconds after that for a run to report its end


class ResidentConfiguration(BaseJobConfiguration):
    """What a run asks of its surroundings: nothing that would change them for the other runs."""

    _asked: dict[str, str | None] = PrivateAttr(default_factory=dict)

    def prepare_for_flow_run(  # noqa: PLR0917  as Prefect calls it
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: FlowRecord | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Remember which variables were asked for, before Prefect adds its own."""
        self._asked = dict(self.env)
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)

    @property
    def foreign(self) -> list[str]:
        """Names of the variables that this process does not have as asked."""
        return sorted(name for name, value in self._asked.items() if os.environ.get(name) != value)


class ResidentResult(BaseWorkerResult):
    """How a run ended, for the worker's log."""


class ResidentEngine(AsyncFlowRunEngine[Any, Any]):
    """Prefect's engine, in which a task that the worker cancelled counts as cancelled, not as crashed."""

    cancelled: threading.Event

    async def handle_crash(self, exc: BaseException) -> None:
        """Report Cancelled where cancelling was asked for; anything else is a crash."""
        if isinstance(exc, asyncio.CancelledError) and self.cancelled.is_set():
            await self.handle_cancellation(exc)
        else:
            await super().handle_crash(exc)


@dataclass
class Running:
    """One flow run in its thread, and how to end it from another thread."""

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
        """Cancel the run where it waits; a task in a thread ends with its current call."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: the run is over
            if self.loop is not None and self.task is not None:
                self.loop.call_soon_threadsafe(self.task.cancel)

    def cancel(self) -> None:
        """Stop the run such that it ends Cancelled instead of Crashed; asking again would disturb its farewell."""
        if not self.cancelled.is_set():
            self.cancelled.set()
            self.stop()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except (Abort, Pause, asyncio.CancelledError):  # the server or the worker said so, and the state says it too
            self.done.set_result(None)
        except BaseException as error:  # noqa: BLE001  raised where the run is waited for
            self.done.set_exception(error)
        else:
            self.done.set_result(None)

    async def _run(self) -> None:
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        # the engine checks them: a run with wrong ones fails with their names
        engine = ResidentEngine(flow=self.flow, flow_run=self.flow_run, parameters=dict(self.flow_run.parameters))
        engine.cancelled = self.cancelled
        if self.cancelled.is_set():  # before there was a task to cancel
            return
        async with engine.start():
            while engine.is_running():
                async with engine.run_context():
                    await engine.call_flow_fn()  # type: ignore[unused-coroutine]  # it is annotated twice


@dataclass(frozen=True)
class Loaded:
    """A flow as it was read, and from what."""

    flow: Flow[..., Any]
    file: Path
    stamp: tuple[Any, ...]


class Shelf:
    """The flows read so far, one for each deployment; read again when a file beside it or the deployment changed.

    Modules from elsewhere are kept as Python keeps them: they change with a restart of the worker.
    """

    def __init__(self) -> None:
        self._loaded: dict[UUID, Loaded] = {}
        self._lock = asyncio.Lock()

    async def flow(self, deployment: DeploymentResponse) -> Flow[..., Any]:
        """Give the deployment's flow, reading it only when needed.

        Raises:
            RuntimeError: the flow is not async, so it could neither be cancelled nor leave the others alone.
        """
        async with self._lock:
            kept = self._loaded.get(deployment.id)
            if kept is None or kept.stamp != stamp(deployment, kept.file):
                kept = self._loaded[deployment.id] = await read(deployment)
        if not kept.flow.isasync or kept.flow.isgenerator:
            raise RuntimeError(f"{deployment.entrypoint} is no async flow: run it in a pool of type process")
        return kept.flow


def stamp(deployment: DeploymentResponse, file: Path) -> tuple[Any, ...]:
    """Tell what a flow was read from: where, which version, and the files of its directory as they are now."""
    looks = [(one.name, one.stat().st_mtime_ns, one.stat().st_size) for one in sorted(file.parent.glob("*.py"))]
    return deployment.entrypoint, deployment.version, repr(deployment.pull_steps), looks


def forget(folder: Path) -> None:
    """Let the modules of a directory be imported anew; runs that are going on keep theirs."""
    for name, module in list(sys.modules.items()):
        if (source := getattr(module, "__file__", None)) and Path(source).parent == folder:
            del sys.modules[name]


async def read(deployment: DeploymentResponse) -> Loaded:
    """Run the pull steps of a deployment and load its flow; the working directory stays where they lead."""
    steps = deployment.pull_steps or [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
    output = await run_steps(steps, print_function=logger.info)
    os.chdir(output.get("directory", "."))
    entrypoint = str(deployment.entrypoint)
    file = Path(entrypoint.rpartition(":")[0]).absolute()
    now = stamp(deployment, file)
    forget(file.parent)
    load = partial(load_flow_from_entrypoint, entrypoint, use_placeholder_flow=False)
    return Loaded(await anyio.to_thread.run_sync(load), file, now)


def dead(run: FlowRun) -> bool:
    """Say whether nobody runs this: its process is gone from this machine, or it was taken long ago and never begun."""
    host, _, pid = (run.infrastructure_pid or "").rpartition(":")
    if pid:
        return host == socket.gethostname() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))
    return run.state is not None and datetime.now(UTC) - run.state.timestamp > LIMBO


class ResidentWorker(BaseWorker[ResidentConfiguration, BaseVariables, ResidentResult]):
    """Runs async flows in threads of this process."""

    type = "resident"
    job_configuration = ResidentConfiguration
    _display_name = "Resident"
    _description = "Runs flows inside one long-lived process: about a second from event to flow code. One machine."
    _logo_url = "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/process.png"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"prefetch_seconds": 0})  # a run fetched early would hold its slot in vain
        self._shelf = Shelf()
        self._running: dict[UUID, Running] = {}

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ResidentConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ResidentResult:
        """Run one flow run to its end.

        Raises:
            RuntimeError: it wants environment variables that this process does not have.
        """
        if configuration.foreign:
            raise RuntimeError(f"runs share this process: set {', '.join(configuration.foreign)} where it starts")
        flow = await self._shelf.flow(configuration._related_objects["deployment"])
        running = self._running[flow_run.id] = Running(flow_run, flow)
        running.start()
        if task_status is not None:
            task_status.started(HERE)  # type: ignore[arg-type]  # any printable id will do
        try:
            await self._end(running)
        except Exception:  # noqa: BLE001  said in the run's log, and the run is reported as crashed
            self.get_flow_run_logger(flow_run).exception("The run ended outside Prefect's engine")
            return ResidentResult(identifier=HERE, status_code=1)
        finally:
            self._forget(flow_run.id)
        return ResidentResult(identifier=HERE, status_code=0)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: ResidentConfiguration, grace_seconds: int = 30
    ) -> None:
        """Cancel a run of this process and wait for its end.

        Raises:
            InfrastructureNotAvailable: the run is in another process.
            InfrastructureNotFound: no such run is going on here.
        """
        if infrastructure_pid != HERE:
            raise InfrastructureNotAvailable(f"{infrastructure_pid} is not {HERE}")
        running = self._running.get(configuration._related_objects["flow-run"].id)
        if running is None:
            raise InfrastructureNotFound(f"{HERE} does not run it any more")
        running.cancel()
        with anyio.move_on_after(grace_seconds):
            await self._done(running)

    async def _setup_cancellation_observer(self) -> None:
        with temporary_settings(
            {PREFECT_WORKER_ENABLE_CANCELLATION: True}
        ):  # nobody else can end a run of this process
            await super()._setup_cancellation_observer()

    async def _initialize_after_sync(self) -> None:
        await super()._initialize_after_sync()
        await self._bury()

    async def _bury(self) -> None:
        """Report the runs whose process is gone as crashed, so that the next ones need not wait for their slots."""
        going = FlowRunFilterState(type=FlowRunFilterStateType(any_=[*GOING]))
        runs = await self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=going),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
        )
        for run in runs:
            if run.id in self._running or run.id in self._submitting_flow_run_ids or not dead(run):
                continue
            if run.state is not None and run.state.is_cancelling():
                await self._mark_flow_run_as_cancelled(run)
            else:
                await self._propose_crashed_state(run, "The process that ran it is gone")

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Leave out a state that would last no time: nothing is submitted anywhere."""

    async def _submit_run(self, flow_run: FlowRun) -> None:
        await super()._submit_run(flow_run)
        if flow_run.id in self._running and self._cancelling_observer is not None:
            self._cancelling_observer.add_in_flight_flow_run_id(flow_run.id)  # the base stops observing here

    async def _cancel_run(self, flow_run_id: UUID) -> None:
        running = self._running.get(flow_run_id)
        if running is None:
            await super()._cancel_run(flow_run_id)
            return
        running.cancel()
        await self._done(running)
        flow_run = await self.client.read_flow_run(flow_run_id)
        if flow_run.state is not None and not flow_run.state.is_final():
            await self._mark_flow_run_as_cancelled(flow_run)

    async def _end(self, running: Running) -> None:
        """Wait for the end of a run; when the worker stops, not for long."""
        try:
            await asyncio.shield(asyncio.wrap_future(running.done))
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self._part(running)
            raise

    async def _part(self, running: Running) -> None:
        with anyio.move_on_after(PATIENCE):
            await self._done(running)
        running.stop()
        with anyio.move_on_after(FAREWELL):
            await self._done(running)
        if not running.done.done():
            with anyio.move_on_after(FAREWELL):
                await self._propose_crashed_state(running.flow_run, "The worker stopped before the run ended")

    async def _done(self, running: Running) -> None:
        await asyncio.wait([asyncio.wrap_future(running.done)])

    def _forget(self, flow_run_id: UUID) -> None:
        self._running.pop(flow_run_id, None)
        if self._cancelling_observer is not None:
            self._cancelling_observer.remove_in_flight_flow_run_id(flow_run_id)


def main() -> None:
    """Start a worker with the options of ``prefect worker start``; it installs no packages."""
    sys.argv[1:1] = ["worker", "start", "--install-policy", "never"]
    app()


if __name__ == "__main__":
    main()
