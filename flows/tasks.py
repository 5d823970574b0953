"""Tasks around the verbs: batches of small events, and single events, through their steps, a few at a time.

What is due is claimed in batches, one task for each. Only what waiting may heal is tried again here, each event in a
task of its own, twice and soon; the catalogue holds the longer pauses.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import CancelledRun
from prefect.futures import PrefectConcurrentFuture as Future
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows import limits, reporting
from plateway import pipeline
from plateway.catalog import Claim
from plateway.errors import CatalogUnavailable, PlatewayError, Transient
from plateway.events import Ref
from plateway.outcome import Result
from plateway.pipeline import Outcome, Site
from plateway.pipeline.read import Where

T = TypeVar("T")
Step = Callable[[Ref], Future[Outcome]]
ATTEMPTS = 3  # at a call whose connection to the catalogue breaks


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
carry = task(name="export batch", cache_policy=NO_CACHE, persist_result=False)(pipeline.carry)


@dataclass
class Carrier:
    """Takes events through their steps in one flow run; cancelling the run stops uploads between two chunks."""

    site: Site
    workers: int
    gate: asyncio.Semaphore = field(init=False)
    breaker: pipeline.Breaker = field(init=False)
    stopping: threading.Event = field(default_factory=threading.Event)
    found: dict[Ref | Outcome, Outcome] = field(default_factory=dict)  # the last outcome of each event
    claimed: set[Ref] = field(default_factory=set)
    lanes: set[asyncio.Task[None]] = field(default_factory=set)
    closing: bool = False  # no lane claims anything more
    _at: Counter[str] = field(default_factory=Counter)  # lanes at each endpoint
    _large: int = 0  # lanes with a large event

    def __post_init__(self) -> None:
        self.gate = asyncio.Semaphore(self.workers)
        self.breaker = pipeline.Breaker(self.site)

    @property
    def outcomes(self) -> list[Outcome]:
        """The last outcome of each event, and those about no event."""
        return list(self.found.values())

    async def drain(self) -> None:
        """Export what is due until nothing is left to claim."""
        progress = reporting.Progress()
        async with asyncio.TaskGroup() as group:
            self.open_lane(group)
            while self.lanes:
                await asyncio.wait(self.lanes, timeout=reporting.PAUSE)
                await progress.show(len(self.found), len(self.claimed))

    def open_lane(self, group: asyncio.TaskGroup) -> None:
        """Open another lane if there is room; each lane that finds work opens the next."""
        if len(self.lanes) < self.workers:
            lane = group.create_task(self._work_lane(group))
            self.lanes.add(lane)
            lane.add_done_callback(self.lanes.discard)

    async def _work_lane(self, group: asyncio.TaskGroup) -> None:
        """Claim batches and carry them until none is left; the endpoint with the fewest lanes comes first."""
        found = True
        while found and not self.closing:
            groups = await patiently(pipeline.group_systems, self.site)
            groups = await patiently(self.breaker.select, groups)
            most = max(1, self.workers - (len(groups) > 1))  # a slow endpoint leaves a lane for the others
            found = False
            for endpoint in sorted(groups, key=lambda one: self._at[one]):
                if not found and self._at[endpoint] < most:
                    self._at[endpoint] += 1
                    try:
                        found = await self._carry_next(groups[endpoint], group)
                    finally:
                        self._at[endpoint] -= 1

    async def _carry_next(self, systems: Sequence[str], group: asyncio.TaskGroup) -> bool:
        """Carry a batch of small events, or a large one, of these systems; return whether there was any.

        One lane takes large events first, and one takes small ones only: neither kind delays the other.
        """
        if self._large == 0 and self.workers > 1:
            return await self._carry_large(systems, group) or await self._carry_small(systems, group)
        return await self._carry_small(systems, group) or await self._carry_large(systems, group)

    async def _carry_small(self, systems: Sequence[str], group: asyncio.TaskGroup) -> bool:
        claims = await patiently(pipeline.claim_small, self.site, systems)
        return await self._carry_batch(claims, group)

    async def _carry_large(self, systems: Sequence[str], group: asyncio.TaskGroup) -> bool:
        if self._large >= max(1, self.workers - 1):
            return False
        self._large += 1  # before another lane looks
        try:
            claims = await patiently(pipeline.claim_large, self.site, systems)
            return await self._carry_batch(claims, group)
        finally:
            self._large -= 1

    async def _carry_batch(self, claims: Sequence[Claim], group: asyncio.TaskGroup) -> bool:
        """Carry claimed events in one task, and those that failed for now each in a task of its own."""
        if not claims:
            return False
        self.open_lane(group)
        refs = [Ref(one.event.id, one.event.revision) for one in claims]
        self.claimed.update(refs)
        systems = ", ".join(sorted({one.event.system for one in claims}))
        name = f"export {refs[0]}" if len(refs) == 1 else f"export {len(refs)} events of {systems}"
        named = carry.with_options(task_run_name=name)
        try:
            async with limits.slot(limits.BUCKET):
                outcomes = await result(start(named, self.site, quote(claims), beat=self._beat))
        except asyncio.CancelledError:
            self.stopping.set()
            raise
        except Exception:  # noqa: BLE001  a bad event must not stop the others; in its own task it shows the traceback
            for ref in refs:
                await self.send(ref)
            return True
        for outcome in outcomes:
            if outcome.result is Result.LATER and outcome.ref is not None:
                await self.send(outcome.ref)
            else:
                self.note(outcome)
        return True

    async def send(self, ref: Ref, *, force: bool = False) -> None:
        """Export one event and verify what arrived."""
        async with limits.slot(limits.BUCKET):
            await self._steps(ref, "export", [self._export(force=force), self._verify(read_back=False)])

    async def check(self, ref: Ref, *, read_back: bool = False) -> None:
        """Verify one event."""
        await self._steps(ref, "verify", [self._verify(read_back=read_back)])

    async def fetch(self, ref: Ref, *, to: Path | None, to_bench: bool, source: Where | None) -> None:
        """Restore one event."""
        options = {"to": to, "to_bench": to_bench, "source": source, "beat": self._beat}
        limit = limits.BUCKET if source == "bucket" else limits.TAPE
        async with limits.slot(limit):
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
        self.found[outcome.ref or outcome] = outcome
        reporting.announce(outcome)

    async def _done(self, ref: Ref, future: Future[Outcome]) -> Outcome:
        """Wait for a task; a failure is an outcome as well."""
        try:
            return await result(future)
        except asyncio.CancelledError:
            self.stopping.set()
            raise
        except PlatewayError as error:
            return await patiently(pipeline.failed, self.site, ref, "carry", error)
        except Exception as error:  # noqa: BLE001  one bad event never stops the batch; its task shows the traceback
            strange = PlatewayError(f"{type(error).__name__}: {error}")
            return await patiently(pipeline.failed, self.site, ref, "carry", strange)


async def patiently(act: Callable[..., T], *args: Any) -> T:
    """Call in a thread, and again if the catalogue's connection broke meanwhile: a new one waits for the database.

    Raises:
        CatalogUnavailable: the database answered in none of ``ATTEMPTS`` attempts.
    """
    for attempt in range(ATTEMPTS):
        try:
            return await asyncio.to_thread(act, *args)
        except CatalogUnavailable as error:
            if attempt == ATTEMPTS - 1:
                raise
            get_run_logger().warning("%s; retrying", error)
            await asyncio.sleep(1)
    raise AssertionError


def start(verb: Task[..., T], site: Site, *args: Any, **options: Any) -> Future[T]:
    """Submit a verb as a task; Prefect need not search the site for futures."""
    return cast("Future[T]", verb.submit(quote(site), *args, return_state=False, **options))


async def result(future: Future[T]) -> T:
    """Wait for a task without blocking the run, so that the run can be cancelled."""
    state: State[T] = await asyncio.wrap_future(cast("Any", future.wrapped_future))
    return await state.aresult()


def named(site: Site, event_ids: Sequence[str]) -> list[Ref]:
    """Resolve typed ids, or their first digits; one without a revision means the newest.

    Raises:
        NotFound: no event is called that, or several are.
    """
    return [site.catalog.resolve(text) for text in event_ids]
