"""Find what instruments announced, export it and verify what arrived, until nothing is new and nothing settles soon."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from blocks import site as configured
from flows import leases, reporting, sharing, tasks
from plateway import pipeline
from plateway.events import Ref
from plateway.settings import Settings

SOON = timedelta(seconds=5)  # for what settles later the schedule comes round
PROBE = 5.0  # seconds between two probes of an endpoint that does not answer
PAUSE = 1.0  # seconds at least between two looks at the bench while exports go on
LONG = 300.0  # seconds after which a run takes up nothing new, so that another can show what happened


@flow(
    task_runner=tasks.runner,
    flow_run_name=reporting.named,
    persist_result=False,
    on_crashed=[leases.release_leases],
    on_cancellation=[leases.release_leases],
)
async def discover() -> State[None]:
    """Register, export and verify what is new on the bench."""
    async with configured.opened(run=leases.owner_of(flow_run.id)) as (site, settings):
        await leases.release_ended(site)
        carrier = tasks.Carrier(site, settings.export_workers)
        looked = await drain(carrier, settings)
    await reporting.delete_superseded_runs(looked)
    return await reporting.close(carrier.outcomes, nothing="nothing new", retried=True)


async def drain(carrier: tasks.Carrier, settings: Settings) -> datetime:
    """Repeat passes over the bench until nothing is due; return the time of the last pass.

    Exports go on meanwhile: what is large holds up nothing new.
    """
    started, last = time.monotonic(), datetime.now(UTC)
    progress = reporting.Progress()
    checks: dict[Ref, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while (looked := time.monotonic()) - started < LONG:
            last = datetime.now(UTC)
            wait = await look(carrier)
            if not carrier.lanes:
                await sharing.start_runs(carrier.site, settings)
            carrier.open_lane(group)
            for ref in await tasks.patiently(pipeline.due, carrier.site, "verify"):
                if ref not in checks and ref not in carrier.claimed:
                    checks[ref] = group.create_task(carrier.check(ref))
            going = carrier.lanes | {check for check in checks.values() if not check.done()}
            if going:
                await asyncio.wait(going, timeout=max(PAUSE, 5 * (time.monotonic() - looked)))
            await progress.show(len(carrier.found), len(carrier.claimed | checks.keys()))
            if carrier.lanes or not all(check.done() for check in checks.values()):
                continue
            if carrier.breaker.is_open:  # stay, so that its events are due as soon as it answers
                wait = timedelta(seconds=PROBE)
            if wait is None or wait > SOON:
                break
            await asyncio.sleep(wait.total_seconds())
        carrier.closing = True
    return last


async def look(carrier: tasks.Carrier) -> timedelta | None:
    """Register what is new; return when something else will have settled."""
    found = await tasks.patiently(pipeline.register, carrier.site)
    reporting.registered(found.new)
    for outcome in (*found.quarantined, *found.troubled):
        if outcome not in carrier.outcomes:
            carrier.note(outcome)
    return found.settles_in
