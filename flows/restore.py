"""Restore events from the bucket or the archive, to a directory or to the bench, on request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

from prefect import flow
from prefect.client.schemas.objects import State

from blocks import site as configured
from flows import reporting, tasks
from flows.parameters import NamedEvents


@flow(task_runner=tasks.runner, flow_run_name=reporting.named, persist_result=False)
async def restore(
    event_ids: NamedEvents,
    to: str | None = None,
    to_bench: bool = False,
    source: Literal["bucket", "archive"] | None = None,
) -> State[None]:
    """Restore events; every file is compared with its SHA-256 before it gets its name.

    Args:
        event_ids: the events by id, or `<id>-r2` for a later announcement
        to: a directory that the worker can write to; each event gets one of its own in it
        to_bench: bring purged images back to where their instrument wrote them instead
        source: read from there only; empty: from the bucket, or from the archive what the bucket does not have
    """
    async with configured.opened() as (site, settings):
        carrier = tasks.Carrier(site, settings.export_workers)
        refs = await asyncio.to_thread(tasks.named, site, event_ids)
        place = Path(to).resolve() if to else None
        await carrier.all(carrier.fetch(ref, to=place, to_bench=to_bench, source=source) for ref in refs)
    return await reporting.close(carrier.outcomes)
