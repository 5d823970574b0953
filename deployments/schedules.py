"""What schedules run with. Pausing one through Prefect's API drops its parameters: they are put back, no more.

Whether a schedule is paused, when it runs, and parameters that somebody gave it are the operator's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule


async def mend(client: PrefectClient, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Put back the parameters that schedules of these deployments have lost; return their names."""
    mended = []
    for config in configs:
        flow = str(config["entrypoint"]).rpartition(":")[2]
        deployment = await client.read_deployment_by_name(f"{flow}/{config['name']}")
        for schedule, parameters in lost(deployment.schedules, config.get("schedules", ())):
            await client.update_deployment_schedule(
                deployment.id, schedule.id, active=schedule.active, parameters=parameters
            )
            mended.append(f"{flow}/{schedule.slug}")
    return mended


def lost(
    there: Sequence[DeploymentSchedule], declared: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[DeploymentSchedule, dict[str, Any]]]:
    """Find the schedules that run when they were declared to, with no parameters where some were declared."""
    ours = {one["slug"]: one for one in declared if one.get("parameters")}
    for schedule in there:
        one, when = ours.get(schedule.slug), schedule.schedule
        if one and not schedule.parameters and isinstance(when, CronSchedule) and when.cron == one["cron"]:
            yield schedule, dict(one["parameters"])
