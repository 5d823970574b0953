"""Export named events, by hand or on another machine; without names, whatever is due."""

from __future__ import annotations

import asyncio

from prefect import flow
from prefect.client.schemas.objects import State

from blocks import site as configured
from flows import reporting, tasks
from flows.parameters import EventIds
from plateway import pipeline


@flow(task_runner=tasks.runner, flow_run_name=reporting.named, persist_result=False)
async def export(event_ids: EventIds | None = None, force: bool = False) -> State[None]:
    """Export events and verify what arrived.

    Args:
        event_ids: the events by id, or `<id>-r2` for a later announcement; empty: every event that is due
        force: send an event again although its export is verified
    """
    async with configured.opened() as (site, settings):
        carrier = tasks.Carrier(site, settings.export_workers)
        if event_ids:
            refs = await asyncio.to_thread(tasks.named, site, event_ids)
        else:
            refs = await asyncio.to_thread(pipeline.due, site, "export")
        await carrier.all(carrier.send(ref, force=force) for ref in refs)
    return await reporting.close(carrier.outcomes, retried=not event_ids)
