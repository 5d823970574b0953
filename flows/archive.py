"""Write the exports of past days to the archive, for sites without an archiver of their own."""

from __future__ import annotations

from datetime import date

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from blocks import site as configured
from flows import limits, reporting, tasks
from plateway import pipeline

write = task(name="archive", cache_policy=NO_CACHE, persist_result=False)(pipeline.archive)


@flow(task_runner=tasks.runner, flow_run_name=reporting.named, persist_result=False)
async def archive(before: date | None = None, dry_run: bool = False, unattended: bool = False) -> State[None]:
    """Bundle verified exports into one tar per kind, experiment and day, and read each back before it counts.

    Args:
        before: only events acquired before this day (UTC); empty: before today
        dry_run: say what would be written, and write nothing
        unattended: leave it to the site's own archiver where manifests come from one
    """
    async with configured.opened() as (site, settings):
        if site.archive is None:
            return Completed(message="there is no archive: PLATEWAY_ARCHIVE_TARGET is not set")
        if unattended and (settings.archive_inbox or settings.archive_url or settings.amqp_url):
            return Completed(message="left to the archiver whose manifests come in")
        async with limits.slot(limits.TAPE):
            outcomes = await tasks.result(tasks.start(write, site, before=before, dry_run=dry_run))
    for outcome in outcomes:
        reporting.announce(outcome)
    return await reporting.close(outcomes)
