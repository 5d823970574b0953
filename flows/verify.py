"""Verify exports in the bucket: those without evidence, and a sample that is read back byte by byte."""

from __future__ import annotations

import asyncio

from prefect import flow
from prefect.client.schemas.objects import State

from blocks import site as configured
from flows import reporting, tasks
from flows.parameters import EventIds
from plateway import pipeline


@flow(task_runner=tasks.runner, flow_run_name=reporting.named, persist_result=False)
async def verify(event_ids: EventIds | None = None, read_back: bool = False) -> State[None]:
    """Verify exports.

    Args:
        event_ids: the events by id; empty: what lacks evidence, and a sample within the budget of bytes a day
        read_back: read named exports back completely instead of asking for size and ETag
    """
    async with configured.opened() as (site, settings):
        carrier = tasks.Carrier(site, settings.export_workers)
        if event_ids:
            refs = await asyncio.to_thread(tasks.named, site, event_ids)
            await carrier.all(carrier.check(ref, read_back=read_back) for ref in refs)
        else:
            due = await asyncio.to_thread(pipeline.due, site, "verify")
            await carrier.all(carrier.check(ref) for ref in due)
            sample = await asyncio.to_thread(pipeline.sample, site, settings.read_back_budget)
            await carrier.all(carrier.check(ref, read_back=True) for ref in sample)
    return await reporting.close(carrier.outcomes, retried=not event_ids)
