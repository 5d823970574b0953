"""Further export runs, on other workers, when more is due than one run should take."""

from __future__ import annotations

import asyncio

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment as running

from plateway.pipeline import Site
from plateway.settings import Settings

NAME = "export/plateway"
SHARE = 500  # due events that one run takes
OURS = {"resident", "process"}  # pools whose workers run what they take; others start containers
UNFINISHED = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)


async def start_runs(site: Site, settings: Settings) -> int:
    """Start an export run for each ``SHARE`` of due events beyond the first, and return how many.

    There are at most ``export_runs`` of them, and no more than there are other workers to run them.
    """
    if not settings.export_runs or running.id is None:
        return 0
    most = SHARE * (settings.export_runs + 1)
    due = await asyncio.to_thread(site.catalog.backlog, now=site.catalog.now(), limit=most)
    if due <= SHARE:
        return 0
    async with get_client() as client:
        try:
            deployment = await client.read_deployment_by_name(NAME)
        except ObjectNotFound:
            return 0
        wanted = min((due - 1) // SHARE, settings.export_runs, await count_other_workers(client, deployment))
        started = range(wanted - await count_runs(client, deployment))
        for _ in started:
            await client.create_flow_run_from_deployment(deployment.id, tags=["plateway", "share"])
    return len(started)


async def count_other_workers(client: PrefectClient, deployment: DeploymentResponse) -> int:
    """Count the online workers beside this one; a pool of containers has room for any number of runs."""
    name = str(deployment.work_pool_name)
    pool = await client.read_work_pool(name)
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    workers = await client.read_workers_for_work_pool(name, worker_filter=online)
    return len(workers) - 1 if pool.type in OURS else 1000


async def count_runs(client: PrefectClient, deployment: DeploymentResponse) -> int:
    """Count the runs of a deployment that have not ended."""
    unfinished = FlowRunFilterState(type=FlowRunFilterStateType(any_=[*UNFINISHED]))
    return await client.count_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(state=unfinished),
    )
