"""The parameters of schedules: pausing one through Prefect's API drops them, so they are restored.

Nothing else is changed: whether a schedule is active, when it runs, and parameters that an operator entered stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule


async def restore_parameters(client: PrefectClient, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Restore the parameters that schedules of these deployments have lost, and return the schedules' names."""
    restored = []
    for config in configs:
        flow = str(config["entrypoint"]).rpartition(":")[2]
        deployment = await client.read_deployment_by_name(f"{flow}/{config['name']}")
        for schedule, parameters in find_without_parameters(deployment.schedules, config.get("schedules", ())):
            await client.update_deployment_schedule(
                deployment.id, schedule.id, active=schedule.active, parameters=parameters
            )
            restored.append(f"{flow}/{schedule.slug}")
    return restored


def find_without_parameters(
    present: Sequence[DeploymentSchedule], declared: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[DeploymentSchedule, dict[str, Any]]]:
    """Find the schedules with the declared cron expression and without the declared parameters."""
    ours = {one["slug"]: one for one in declared if one.get("parameters")}
    for schedule in present:
        one, when = ours.get(schedule.slug), schedule.schedule
        if one and not schedule.parameters and isinstance(when, CronSchedule) and when.cron == one["cron"]:
            yield schedule, dict(one["parameters"])
