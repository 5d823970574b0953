"""Leases of flow runs that have ended without releasing them."""

from __future__ import annotations

import asyncio
import re
from contextlib import closing
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from blocks import site as configured
from plateway import settings
from plateway.catalog import Catalog
from plateway.pipeline import Site

OWNER = re.compile(r".* run ([0-9a-f-]{36})")  # of a lease, as `owner_of` and the site write it


def owner_of(run: object) -> str:
    """Return what the leases of a run have in their owner's name."""
    return f"run {run}"


async def release_leases(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Release what a crashed or cancelled run holds: a hook, which runs where the run's process or its worker is."""
    known = configured.resolve_home(settings.load())

    def release() -> None:
        with closing(Catalog(known.catalog_url)) as catalog:
            for owner in catalog.lease_owners(now=catalog.now()):
                if owner.endswith(owner_of(flow_run.id)):
                    catalog.release_owner(owner)

    await asyncio.to_thread(release)


async def release_ended(site: Site) -> int:
    """Release what runs hold that have ended by Prefect's word, and return how many events that are.

    A hook does not run where a worker died with its run. A run that goes on in spite of its state is fenced.
    """
    owners = await asyncio.to_thread(site.catalog.lease_owners, now=site.catalog.now())
    holders = {UUID(match[1]): owner for owner in owners if (match := OWNER.fullmatch(owner))}
    if not holders:
        return 0
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[*holders])))
    ended = [holders[run.id] for run in runs if run.state is not None and run.state.is_final()]
    return sum([await asyncio.to_thread(site.catalog.release_owner, owner) for owner in ended])
