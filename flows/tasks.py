"""Tasks around the verbs: each event through its steps, a few events at a time.

Only what waiting may heal is tried again here, twice and soon; the catalogue holds the longer pauses.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import CancelledRun
from prefect.futures import PrefectConcurrentFuture as Future
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows import reporting
from plateway import pipeline
from plateway.errors import PlatewayError, Transient
from plateway.events import Ref
from plateway.pipeline import Outcome, Site
from plateway.pipeline.read import Where

T = TypeVar("T")
Step = Callable[[Ref], Future[Outcome]]


def transient(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether waiting may help."""
    return isinstance(state.result(raise_on_failure=False), Transient)


runner: Any = ThreadPoolTaskRunner(max_workers=64)  # the carrier's gate lets in fewer
patient: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 2,
    "retry_delay_seconds": [1, 4],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": transient,
}
export = task(task_run_name="export {ref}", **patient)(pipeline.export)
verify = task(task_run_name="verify {ref}", **patient)(pipeline.verify)
restore = task(task_run_name="restore {ref}", **patient)(pipeline.restore)


@dataclass
class Carrier:
    """Takes events through their steps in one flow run; cancelling the run stops uploads between two chunks."""

    site: Site
    workers: int
    gate: asyncio.Semaphore = field(init=False)
    stopping: threading.Event = field(default_factory=threading.Event)
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate = asyncio.Semaphore(self.workers)

    async def send(self, ref: Ref, *, force: bool = False) -> None:
        """Export one event and verify what arrived."""
        await self._steps(ref, "export", [self._export(force=force), self._verify(read_back=False)])

    async def check(self, ref: Ref, *, read_back: bool = False) -> None:
        """Verify one event."""
        await self._steps(ref, "verify", [self._verify(read_back=read_back)])

    async def fetch(self, ref: Ref, *, to: Path | None, to_bench: bool, source: Where | None) -> None:
        """Restore one event."""
        options = {"to": to, "to_bench": to_bench, "source": source, "beat": self._beat}
        await self._steps(ref, "restore", [lambda one: start(restore, self.site, one, **options)])

    async def all(self, steps: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run many events through their steps, with progress."""
        progress = reporting.Progress()
        async with asyncio.TaskGroup() as group:
            pending = tasks = {group.create_task(step) for step in steps}
            while pending:
                _, pending = await asyncio.wait(pending, timeout=reporting.PAUSE)
                await progress.show(len(tasks) - len(pending), len(tasks))

    def _export(self, *, force: bool) -> Step:
        return lambda ref: start(export, self.site, ref, force=force, beat=self._beat)

    def _verify(self, *, read_back: bool) -> Step:
        return lambda ref: start(verify, self.site, ref, read_back=read_back)

    def _beat(self, _sent: int) -> None:
        if self.stopping.is_set():
            raise CancelledRun("the flow run was cancelled")

    async def _steps(self, ref: Ref, verb: str, steps: Sequence[Step]) -> None:
        seconds = 0.0
        async with self.gate:
            for step in steps:
                outcome = await self._done(ref, step(ref))
                seconds += outcome.seconds
                if outcome.result != "exported":
                    break
        self.note(replace(outcome, verb=verb, seconds=seconds))

    def note(self, outcome: Outcome) -> None:
        """Collect an outcome for the report, and emit its event."""
        self.outcomes.append(outcome)
        reporting.announce(outcome)

    async def _done(self, ref: Ref, future: Future[Outcome]) -> Outcome:
        """Wait for a task; a failure is an outcome as well."""
        try:
            return await result(future)
        except asyncio.CancelledError:
            self.stopping.set()
            raise
        except PlatewayError as error:
            return await asyncio.to_thread(pipeline.failed, self.site, ref, "carry", error)
        except Exception as error:  # noqa: BLE001  one bad event never stops the batch; its task shows the traceback
            strange = PlatewayError(f"{type(error).__name__}: {error}")
            return await asyncio.to_thread(pipeline.failed, self.site, ref, "carry", strange)


def start(verb: Task[..., T], site: Site, *args: Any, **options: Any) -> Future[T]:
    """Submit a verb as a task; Prefect need not search the site for futures."""
    return cast("Future[T]", verb.submit(quote(site), *args, return_state=False, **options))


async def result(future: Future[T]) -> T:
    """Wait for a task without blocking the run, so that the run can be cancelled."""
    state: State[T] = await asyncio.wrap_future(cast("Any", future.wrapped_future))
    return await state.aresult()


def named(site: Site, event_ids: Sequence[str]) -> list[Ref]:
    """Resolve typed ids; one without a revision means the newest.

    Raises:
        NotFound: no event is called that.
    """
    asked = [Ref.parse(text) for text in event_ids]
    return [Ref(event, revision) if revision else site.catalog.newest(event) for event, revision in asked]
