"""What people and other systems see of a run: its name, its table, its progress, its events and its last word."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, acreate_table_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed

from plateway import settings
from plateway.events import Ref
from plateway.outcome import BAD, UNFINISHED, Outcome

EVENTS = {  # by verb and result; removed staging copies and repeated verifications are not emitted
    ("export", "verified"): "exported",
    ("verify", "damaged"): "damaged",
    ("export", "damaged"): "damaged",
    ("purge", "damaged"): "damaged",
    ("purge staging", "damaged"): "damaged",
    ("expire", "damaged"): "damaged",
    ("archive", "damaged"): "damaged",
    ("purge", "gone"): "purged",
    ("archive", "archived"): "archived",
    ("expire", "expired"): "expired",
    ("restore", "restored"): "restored",
    ("register", "quarantined"): "quarantined",
}
ROWS = 1000  # of a table: the bad ones first
MANY = 20  # events from which on a run shows its progress
SKEW = timedelta(seconds=5)  # between the clocks of server and worker
PAUSE = 2.0  # seconds between two updates of it
QUIET = "nothing-new"  # tag of the newest run of a deployment that nobody started by hand and that had nothing to do
UNATTENDED = {"SCHEDULE", "AUTOMATION"}  # what starts runs, as Prefect records it; of people it records nothing


def named() -> str:
    """Return a run's name: what it does and when it began."""
    return f"{flow_run.flow_name} {datetime.now().astimezone():%d %b %H:%M:%S}"


def announce(outcome: Outcome) -> None:
    """Emit a Prefect event for an outcome that others may act on."""
    if what := EVENTS.get((outcome.verb, outcome.result)):
        emit(what, outcome.ref, outcome)


def registered(refs: Sequence[Ref]) -> None:
    """Emit a Prefect event for each new event."""
    for ref in refs:
        emit("registered", ref)


def emit(what: str, ref: Ref | None, outcome: Outcome | None = None) -> None:
    """Emit ``plateway.imaging-event.<what>``."""
    about = {"prefect.resource.id": f"plateway.imaging-event.{ref.id if ref else 'unknown'}"}
    payload: dict[str, object] = {"revision": ref.revision} if ref else {}
    if outcome is not None:
        payload |= {"system": outcome.system, "key": outcome.key, "size": outcome.size, "reasons": outcome.reasons}
    emit_event(f"plateway.imaging-event.{what}", resource=about, payload=payload)


async def close(outcomes: Sequence[Outcome], *, nothing: str = "nothing to do", retried: bool = False) -> State[None]:
    """Leave the table, what is bad first, and end the run: Failed if anything failed or was put off.

    ``retried``: single events that are put off have a time of their next try, and fail no run.
    """
    if not outcomes:
        await replace_quiet_runs()
        return Completed(message=nothing)
    summary = ", ".join(tally(outcomes))
    gateway = settings.load().gateway_link
    await table([row(outcome, gateway) for outcome in sorted(outcomes, key=_urgency)], summary)
    late = [one for one in outcomes if one.result in UNFINISHED and not (retried and one.ref)]
    bad = late or any(outcome.result in BAD for outcome in outcomes)
    return Failed(message=summary) if bad else Completed(message=summary)


def _urgency(outcome: Outcome) -> int:
    """Sort what a person has to look at before what waits, and both before the rest."""
    return 0 if outcome.result in BAD else 1 if outcome.result in UNFINISHED else 2


def tally(outcomes: Sequence[Outcome]) -> list[str]:
    """Count the results, the most frequent first."""
    return [f"{count} {result}" for result, count in Counter(one.result for one in outcomes).most_common()]


async def table(rows: Sequence[dict[str, object]], summary: str, *, picture: str = "") -> None:
    """Leave a table, with what it comes to and perhaps a picture."""
    key = f"plateway-{flow_run.flow_name}"
    above = "\n\n".join(filter(None, [f"{summary} · {flow_run.name}", picture]))
    await acreate_table_artifact(table=list(rows[:ROWS]), key=key, description=above)


async def delete_superseded_runs(looked: datetime) -> None:
    """Delete the runs that waited for this one to end: what they were to find was looked for when they were due."""
    if deployment.id is None:
        return
    waiting = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[UUID(deployment.id)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=looked - SKEW),
    )
    await delete_unattended_runs(waiting)


async def replace_quiet_runs() -> None:
    """Tag this run, which had nothing to do, and delete the one before it, so that such runs do not fill the list."""
    if deployment.id is None:
        return
    async with get_client() as client:
        run = await client.read_flow_run(UUID(flow_run.id))
        if run.created_by is None or run.created_by.type not in UNATTENDED:
            return
        await client.update_flow_run(run.id, tags=[*run.tags, QUIET])
    quiet = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[UUID(deployment.id)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED])),
        tags=FlowRunFilterTags(all_=[QUIET]),
    )
    await delete_unattended_runs(quiet)


async def delete_unattended_runs(chosen: FlowRunFilter) -> None:
    """Delete runs that a schedule or an automation started; what a person started stays."""
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=chosen):
            if run.created_by is not None and run.created_by.type in UNATTENDED:
                with suppress(ObjectNotFound):  # deleted by a person meanwhile
                    await client.delete_flow_run(run.id)


def describe(outcome: Outcome) -> str:
    """Describe an outcome about a system in a line."""
    return f"{outcome.system}: {'; '.join(outcome.reasons)}"


def link(ref: Ref | None, gateway: str | None) -> str:
    """Format an event as a link to its page, which Prefect's UI renders; its id where no gateway is known."""
    if ref is None:
        return ""
    return f"[{ref}]({gateway}/events/{ref})" if gateway else str(ref)


def row(outcome: Outcome, gateway: str | None = None) -> dict[str, object]:
    """Format one row of the table."""
    return {
        "event": link(outcome.ref, gateway),
        "system": outcome.system,
        "result": str(outcome.result),
        "reasons": "; ".join(outcome.reasons),
        "key": outcome.key,
        "size": outcome.size,
        "seconds": round(outcome.seconds, 2),
    }


@dataclass
class Progress:
    """A bar in the UI for a run with many events."""

    artifact: UUID | None = None
    shown: float = field(default_factory=time.monotonic)

    async def show(self, done: int, total: int) -> None:
        """Move the bar, now and then; the first call that finds enough events makes it."""
        percent = 100.0 * done / max(total, 1)
        if total <= MANY or (done < total and time.monotonic() - self.shown < PAUSE):
            return
        self.shown = time.monotonic()
        if self.artifact is None:
            key = f"plateway-{flow_run.flow_name}-progress"
            self.artifact = await acreate_progress_artifact(percent, key=key, description=f"{total} events")
        else:
            await aupdate_progress_artifact(self.artifact, percent, description=f"{done} of {total} events")
