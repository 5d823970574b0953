"""Find what instruments announced, export it and verify what arrived, until nothing is new and nothing settles soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta

from prefect import flow
from prefect.client.schemas.objects import State

from blocks import site as configured
from flows import reporting, tasks
from plateway import pipeline
from plateway.events import Ref

SOON = timedelta(seconds=5)  # for what settles later the schedule comes round
PAUSE = 1.0  # seconds at least between two looks at the bench while exports go on
LONG = 300.0  # seconds after which a run takes up nothing new, so that another can show what happened


@flow(task_runner=tasks.runner, flow_run_name=reporting.named, persist_result=False)
async def discover() -> State[None]:
    """Register, export and verify what is new on the bench."""
    async with configured.opened() as (site, settings):
        carrier = tasks.Carrier(site, settings.export_workers)
        looked = await drain(carrier)
    await reporting.relieve(looked)
    return await reporting.close(carrier.outcomes, nothing="nothing new", retried=True)


async def drain(carrier: tasks.Carrier) -> datetime:
    """Repeat passes over the bench until nothing is due; return the time of the last pass.

    What is big holds up nothing new.
    """
    started, last = time.monotonic(), datetime.now(UTC)
    progress = reporting.Progress()
    taken: dict[Ref, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while (looked := time.monotonic()) - started < LONG:
            last = datetime.now(UTC)
            wait = await look(carrier)
            for ref, act in await asyncio.to_thread(work, carrier):
                if ref not in taken:
                    taken[ref] = group.create_task(act(ref))
            going = [task for task in taken.values() if not task.done()]
            await progress.show(len(taken) - len(going), len(taken))
            if going:
                await asyncio.wait(going, timeout=max(PAUSE, 5 * (time.monotonic() - looked)))
            elif wait is not None and wait <= SOON:
                await asyncio.sleep(wait.total_seconds())
            else:
                break
    return last


async def look(carrier: tasks.Carrier) -> timedelta | None:
    """Register what is new; return when something else will have settled."""
    found = await asyncio.to_thread(pipeline.register, carrier.site)
    reporting.registered(found.new)
    for outcome in (*found.quarantined, *found.troubled):
        if outcome not in carrier.outcomes:
            carrier.note(outcome)
    return found.settles_in


def work(carrier: tasks.Carrier) -> list[tuple[Ref, Callable[[Ref], Coroutine[None, None, None]]]]:
    """List what is due, with its task."""
    exports = [(ref, carrier.send) for ref in pipeline.due(carrier.site, "export")]
    return exports + [(ref, carrier.check) for ref in pipeline.due(carrier.site, "verify")]
