"""Test the endpoint of a Bucket block: what it supports, and a round of simulated events through the pipeline."""

from __future__ import annotations

import asyncio

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks import site as configured
from flows import reporting
from plateway import selftest as trial
from plateway import settings
from plateway.endpoint import Bucket as Declaration
from plateway.errors import Misconfigured
from plateway.settings import MAIN
from plateway.store.admin import Address


@flow(flow_run_name=reporting.named, persist_result=False, timeout_seconds=3600)
async def selftest(bucket: str = MAIN, within: str | None = None) -> State[None]:
    """Try an endpoint in a short-lived bucket, and leave a table of what it supports.

    Args:
        bucket: the name of the bucket (a Bucket block, or a table of buckets.toml) whose endpoint is tried
        within: s3://bucket or s3://bucket/folder to try it in, where none may be made; what was put there is removed
    """
    chosen = await find_bucket(bucket)
    if not chosen.url.startswith("s3://"):
        setting = "PLATEWAY_BUCKET_URL" if bucket == MAIN else "its URL"
        raise Misconfigured(f"bucket {bucket!r} is not in S3, so there is no endpoint to test: set {setting} to s3://…")
    report = await asyncio.to_thread(trial.run, chosen.endpoint, within=Address.parse(within) if within else None)
    await reporting.table([*map(ability, report.capabilities), *map(step, report.steps)], report.summary)
    return Completed(message=report.summary) if report.good else Failed(message=report.summary)


async def find_bucket(name: str) -> Declaration:
    """Find a bucket by its name: the block, or what the settings say where there is none.

    Raises:
        Misconfigured: neither names it.
    """
    blocks = await configured.load_buckets()
    if name in blocks:
        return blocks[name].value()
    known = settings.load()
    declared = {MAIN: known.bucket, **known.buckets}
    if name not in declared:
        raise Misconfigured(
            f"bucket {name!r} is unknown: create a Bucket block of that name, or name it in buckets.toml"
        )
    return declared[name]


def ability(one: trial.Capability) -> dict[str, object]:
    """Format a row for one capability of the endpoint."""
    return {"what": one.name, "outcome": one.verdict, "detail": one.detail, "Plateway": one.use}


def step(one: trial.RoundStep) -> dict[str, object]:
    """Format a row for one step of the round."""
    return {"what": f"round: {one.name}", "outcome": one.result, "detail": one.detail, "Plateway": ""}
