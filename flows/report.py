"""The daily report, and every hour a look whether there is something to be alarmed about."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence

from prefect import flow
from prefect.artifacts import Artifact, acreate_markdown_artifact, acreate_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from blocks import notice
from blocks import site as configured
from flows import chart, reporting, tasks
from plateway import pipeline
from plateway.events import Ref
from plateway.pipeline.report import spoken_size
from plateway.wire import Alert, Report

KEY, ALERTS = "plateway-report", "plateway-alerts"
COUNTS = ("events", "exported", "archived", "purged", "waiting", "quarantined", "lost")
STUCK = 50  # stuck events that the report names
MARKUP = re.compile(r"([\\`*_{}\[\]<>|#!~])")


@flow(
    task_runner=tasks.runner, flow_run_name=reporting.named, persist_result=False, timeout_seconds=900
)  # disks may hang
async def report(alerts_only: bool = False) -> State[None]:
    """Report where the events of each system are, which are stuck and when disks will be full.

    The report goes to the notification block that PLATEWAY_NOTIFY names.

    Args:
        alerts_only: leave no report, and send only alerts that nobody has heard of yet
    """
    async with configured.opened() as (site, settings):
        told = await asyncio.to_thread(pipeline.report, site)
    summary = f"{len(told.alerts)} to look at" if told.alerts else "all is well"
    now, known = {about for alert in told.alerts for about in alert.about}, await heard()
    if not alerts_only:
        await acreate_markdown_artifact(markdown(told, settings.gateway_link), key=KEY, description=summary)
    if settings.notify and (not alerts_only or now - known):
        body = letter(told) if not alerts_only else "\n".join(alert.text for alert in told.alerts)
        await notice.send(settings.notify, subject=f"Plateway: {summary}", body=body)
    if alerts_only and now == known:
        await reporting.replace_quiet_runs()
    if now != known:  # after sending: what did not go out is tried again in an hour
        await remember(told.alerts)
    return Completed(message=summary)


async def heard() -> set[str]:
    """Return the subjects of the alerts at their last change."""
    last = await Artifact.aget(ALERTS)
    rows = json.loads(last.data) if last and isinstance(last.data, str) else []
    return {about for row in rows for about in row["about"].split(", ")}


async def remember(alerts: Sequence[Alert]) -> None:
    """Leave the alerts as an artifact."""
    table = [{"alert": alert.text, "about": ", ".join(alert.about)} for alert in alerts]
    await acreate_table_artifact(table=table, key=ALERTS, description="What somebody should look at")


def markdown(told: Report, gateway: str | None = None) -> str:
    """Format the report for the UI: alerts, chart, figures."""
    attention = [f"- {plain(alert.text)}" for alert in told.alerts] or ["All is well."]
    parts = [f"# {told.at:%A %d %B %Y, %H:%M} UTC", "\n".join(attention), chart.days(told.days), figures(told)]
    if told.disks:
        parts += ["## Disks", "\n".join(f"- {plain(disk.text)}" for disk in told.disks)]
    if told.stuck:
        parts += ["## Stuck", stuck(told, gateway)]
    return "\n\n".join(parts)


def figures(told: Report) -> str:
    """Format a row per system."""
    lines = [
        f"| {plain(one.system)} | {' | '.join(f'{getattr(one, name):,}' for name in COUNTS)} "
        f"| {spoken_size(one.bytes_last_day)} |"
        for one in told.systems
    ]
    head = f"| system | {' | '.join(COUNTS)} | sent in a day |\n|---|{'---:|' * (len(COUNTS) + 1)}"
    return "\n".join([head, *lines])


def stuck(told: Report, gateway: str | None = None) -> str:
    """Format a row per stuck event, the longest waiting first."""
    lines = [
        f"| {reporting.link(Ref(one.id, one.revision), gateway)} | {plain(one.system)} | {one.since:%d %b %H:%M} "
        f"| {plain('; '.join(one.reasons) or one.state)} |"
        for one in sorted(told.stuck, key=lambda one: one.since)[:STUCK]
    ]
    more = [f"\n{len(told.stuck) - STUCK:,} more"] if len(told.stuck) > STUCK else []
    return "\n".join(["| event | system | since | why |\n|---|---|---|---|", *lines, *more])


def letter(told: Report) -> str:
    """Write the report for a message: words only."""
    lines = [alert.text for alert in told.alerts] or ["All is well."]
    for one in told.systems:
        counts = ", ".join(f"{getattr(one, name):,} {name}" for name in COUNTS)
        lines.append(f"{one.system}: {counts}; {spoken_size(one.bytes_last_day)} sent in a day")
    quiet = [disk.text for disk in told.disks if not disk.alert]
    return "\n".join([*lines, *quiet])


def plain(text: str) -> str:
    """Escape markup in text from an instrument."""
    return MARKUP.sub(r"\\\1", " ".join(text.split()))
