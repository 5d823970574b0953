"""Import archive manifests and compare bench, bucket, catalogue and tape."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blocks import site as configured
from flows import chart, decisions, limits, reporting, tasks
from flows.parameters import Systems
from plateway import pipeline
from plateway.findings import GRAVE, Finding, Kind
from plateway.outcome import BAD, UNFINISHED, Outcome, Result
from plateway.pipeline import Reconciled, Site
from plateway.settings import Settings
from plateway.settings import load as load_settings

once: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
collect = task(name="collect manifests", **once)(pipeline.collect)
settle = task(name="settle entries", **once)(pipeline.settle)
compare = task(name="reconcile", **once)(pipeline.reconcile)
read = task(name="read the archive", **once)(pipeline.read_archive)
NEW = {"received", "archived", "quarantined"}  # what makes it worth while to compare everything
TROUBLE = BAD | UNFINISHED


@flow(task_runner=tasks.runner, flow_run_name=reporting.named, persist_result=False)
async def reconcile(quick: bool = False, repair: bool = False, systems: Systems | None = None) -> State[None]:
    """Collect archive manifests, settle their entries, and compare bench, bucket, catalogue and tape.

    Args:
        quick: compare only if a manifest came in
        repair: also do repairs that delete, move or write; without, they are told as `would …`
        systems: look only at the disks of these; left out: of all
    """
    async with configured.opened() as (site, settings):
        came = await taken_in(site, settings)
        if quick and not any(one.result in NEW for one in came):
            return await reporting.close([one for one in came if one.result in TROUBLE], nothing="no new manifest")
        options: dict[str, Any] = {"within": settings.on_tape_within, "fraction": settings.reconcile_fraction}
        found = await tasks.result(tasks.start(compare, site, repair=repair, systems=systems, **options))
        if found.stopped and (decision := await decisions.ask(stops(found))):
            options["fraction"] = decision.fraction
            found = await tasks.result(tasks.start(compare, site, repair=repair, systems=systems, **options))
        proven = [] if quick else await recalled(site, settings)
        days = await asyncio.to_thread(pipeline.days, site)
    for outcome in (*found.outcomes, *proven):
        reporting.announce(outcome)
    for finding in found.findings:
        if finding.kind is Kind.ONLY_COPY:
            reporting.emit("damaged", finding.ref)
    return await close(found, [*came, *found.outcomes, *proven], chart.days(days))


def stops(found: Reconciled) -> list[str]:
    """Describe why the comparison of a bucket stopped."""
    return [reporting.describe(one) for one in found.outcomes if one.result is Result.STOPPED]


async def recalled(site: Site, settings: Settings) -> list[Outcome]:
    """Read copies on tape, within the budget of bytes a day."""
    async with limits.slot(limits.TAPE):
        return await tasks.result(tasks.start(read, site, budget=settings.read_archive_budget))


async def taken_in(site: Site, settings: Settings) -> list[Outcome]:
    """Collect new archive manifests, settle their entries, and emit an event for each archived event."""
    inbox, poll = await configured.doors(settings)
    came = await tasks.result(tasks.start(collect, site, inbox=inbox, poll=poll))
    came = [*came, *await tasks.result(tasks.start(settle, site))]
    for outcome in came:
        reporting.announce(outcome)
    return came


async def close(found: Reconciled, outcomes: Sequence[Outcome], image: str) -> State[None]:
    """Leave the table of findings with the picture, and give the run its last word."""
    counts = [f"{count:,} {kind}" for kind, count in found.counts.items() if count]
    results = reporting.tally(outcomes)
    summary = ", ".join([*counts, *results]) or "everything agrees"
    gateway = load_settings().gateway_link
    rows = [row(finding, gateway) for finding in sorted(found.findings, key=lambda one: one.kind not in GRAVE)]
    troubles = [trouble(outcome, gateway) for outcome in outcomes if outcome.result in TROUBLE]
    await reporting.table([*troubles, *rows], summary, picture=image)
    doubtful = found.stopped or any(one.result in TROUBLE for one in outcomes)
    bad = doubtful or any(found.counts.get(kind) for kind in GRAVE)
    return Failed(message=summary) if bad else Completed(message=summary)


def row(finding: Finding, gateway: str | None = None) -> dict[str, object]:
    """Format one finding as a row."""
    return {
        "finding": str(finding.kind),
        "system": finding.system,
        "detail": finding.detail,
        "repair": finding.repair or "a person has to look",
        "done": finding.done,
        "event": reporting.link(finding.ref, gateway),
        "key": finding.key,
    }


def trouble(outcome: Outcome, gateway: str | None = None) -> dict[str, object]:
    """Format what failed as a row of the same table."""
    return {
        "finding": f"{outcome.verb} {outcome.result}",
        "system": outcome.system,
        "detail": "; ".join(outcome.reasons),
        "repair": "",
        "done": "",
        "event": reporting.link(outcome.ref, gateway),
        "key": outcome.key,
    }
