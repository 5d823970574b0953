"""What people and other systems see of a run: its name, its table, its progress, its events and its last word."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
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
)
from prefect.client.schemas.objects import State, StateType
from prefect.events import emit_event
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed

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
        return Completed(message=nothing)
    summary = ", ".join(tally(outcomes))
    await table([row(outcome) for outcome in sorted(outcomes, key=_urgency)], summary)
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


async def relieve(looked: datetime) -> None:
    """Spare the runs that waited for this one to end: what they were to find was looked for when they were due."""
    mine = deployment.id
    if mine is None:
        return
    waiting = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[UUID(mine)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=looked - SKEW),
    )
    async with get_client() as client:
        for run in await client.read_flow_runs(flow_run_filter=waiting):
            spared: State[None] = Completed(name="Spared", message=f"{flow_run.name} has looked since")
            await client.set_flow_run_state(run.id, spared, force=True)


def describe(outcome: Outcome) -> str:
    """Describe an outcome about a system in a line."""
    return f"{outcome.system}: {'; '.join(outcome.reasons)}"


def row(outcome: Outcome) -> dict[str, object]:
    """Format one row of the table."""
    return {
        "event": str(outcome.ref or ""),
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
