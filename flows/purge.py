"""Free the bench of what is proven to be safe elsewhere; every refusal is shown with its reasons."""

from __future__ import annotations

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from blocks import site as configured
from flows import decisions, reporting, tasks
from flows.parameters import Fraction, Systems
from flows.reporting import describe
from plateway import pipeline
from plateway.outcome import Result

remove = task(name="purge", cache_policy=NO_CACHE, persist_result=False)(pipeline.purge)
sweep = task(name="sweep", cache_policy=NO_CACHE, persist_result=False)(pipeline.sweep)


@flow(task_runner=tasks.runner, flow_run_name=reporting.named, persist_result=False)
async def purge(systems: Systems | None = None, dry_run: bool = False, fraction: Fraction | None = None) -> State[None]:
    """Purge raw images and staging copies, and abort uploads that dead exports left open.

    Args:
        systems: only these; left out: all whose policy allows it
        dry_run: say what would go, and move nothing
        fraction: largest share (above 0, up to 1) of a system's events that this run may remove: 0.1 is 10 %
    """
    async with configured.opened() as (site, _):
        outcomes = await tasks.result(tasks.start(remove, site, systems=systems, dry_run=dry_run, fraction=fraction))
        stopped = [one for one in outcomes if one.result is Result.STOPPED]
        if stopped and not dry_run and (decision := await decisions.ask([describe(one) for one in stopped])):
            again = sorted({one.system for one in stopped})
            more = tasks.start(remove, site, systems=again, fraction=decision.fraction)
            outcomes = [*(one for one in outcomes if one not in stopped), *await tasks.result(more)]
        if not dry_run:
            outcomes = [*outcomes, *await tasks.result(tasks.start(sweep, site))]
    for outcome in outcomes:
        reporting.announce(outcome)
    return await reporting.close(outcomes)
