"""Export named events, by hand; without names whatever is due, beside any number of other runs."""

from __future__ import annotations

import asyncio

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from blocks import site as configured
from flows import leases, reporting, tasks
from flows.parameters import EventIds


@flow(
    task_runner=tasks.runner,
    flow_run_name=reporting.named,
    persist_result=False,
    on_crashed=[leases.release_leases],
    on_cancellation=[leases.release_leases],
)
async def export(event_ids: EventIds | None = None, force: bool = False) -> State[None]:
    """Export events and verify what arrived.

    Args:
        event_ids: the events by id, or `<id>-r2` for a later announcement; empty: every event that is due
        force: send an event again although its export is verified
    """
    async with configured.opened(run=leases.owner_of(flow_run.id)) as (site, settings):
        await leases.release_ended(site)
        carrier = tasks.Carrier(site, settings.export_workers)
        if event_ids:
            refs = await asyncio.to_thread(tasks.named, site, event_ids)
            await carrier.all(carrier.send(ref, force=force) for ref in refs)
        else:
            await carrier.drain()
    return await reporting.close(carrier.outcomes, retried=not event_ids)
