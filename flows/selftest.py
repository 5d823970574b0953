"""Test the endpoint of a Bucket block: what it supports, and a round of simulated events through the pipeline."""

from __future__ import annotations

import asyncio

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks.bucket import Bucket
from flows import reporting
from plateway import selftest as trial
from plateway.errors import Misconfigured
from plateway.settings import MAIN
from plateway.store.admin import Address


@flow(flow_run_name=reporting.named, persist_result=False)
async def selftest(bucket: str = MAIN, within: str | None = None) -> State[None]:
    """Try an endpoint in a short-lived bucket, and leave a table of what it supports.

    Args:
        bucket: the name of the Bucket block whose endpoint and credentials are tried
        within: s3://bucket or s3://bucket/folder to try it in, where none may be made; what was put there is removed
    """
    block: Bucket = await Bucket.aload(bucket)
    if not block.url.startswith("s3://"):
        raise Misconfigured(f"Bucket block {bucket!r} is no S3 bucket: there is no endpoint to try")
    report = await asyncio.to_thread(
        trial.run, block.value().endpoint, within=Address.parse(within) if within else None
    )
    await reporting.table([*map(ability, report.capabilities), *map(step, report.steps)], report.summary)
    return Completed(message=report.summary) if report.good else Failed(message=report.summary)


def ability(one: trial.Capability) -> dict[str, object]:
    """Format a row for one capability of the endpoint."""
    return {"what": one.name, "outcome": one.verdict, "detail": one.detail, "Plateway": one.use}


def step(one: trial.RoundStep) -> dict[str, object]:
    """Format a row for one step of the round."""
    return {"what": f"round: {one.name}", "outcome": one.result, "detail": one.detail, "Plateway": ""}
