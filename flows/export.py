"""Export named events, by hand or on another machine; without names, whatever is due."""

from __future__ import annotations

import asyncio

from prefect import flow
from prefect.client.schemas.objects import State

from blocks import line as configured
from flows import carry, tell
from flows.parameters import EventIds
from plateway import pipeline


@flow(task_runner=carry.runner, flow_run_name=tell.named, persist_result=False)
async def export(event_ids: EventIds | None = None, force: bool = False) -> State[None]:
    """Export events and verify what arrived.

    Args:
        event_ids: the events by id, or `<id>-r2` for a later announcement; empty: every event that is due
        force: send an event again although its export is verified
    """
    async with configured.opened() as (line, settings):
        carrier = carry.Carrier(line, settings.export_workers)
        if event_ids:
            refs = await asyncio.to_thread(carry.named, line, event_ids)
        else:
            refs = await asyncio.to_thread(pipeline.due, line, "export")
        await carrier.all(carrier.send(ref, force=force) for ref in refs)
    return await tell.close(carrier.outcomes, retried=not event_ids)
