"""The automations that belong to no deployment: for runs without heartbeats, failures and damage.

They are created if they are missing, and never changed again: an operator may edit or disable them in the UI.
All but the first have no action yet: an operator adds a notification in the UI.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events import Posture
from prefect.events.actions import ChangeFlowRunState, DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = frozenset(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed"))
SILENCE = timedelta(seconds=90)  # three heartbeats
OURS = {"prefect.resource.id": "prefect.tag.plateway"}


def alert(name: str, description: str, expect: set[str], related: dict[str, str] | None = None) -> AutomationCore:
    """Return an automation that fires at each of these events, and does nothing until it has a notification."""
    trigger = EventTrigger(
        expect=expect,
        match_related=related or {},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    return AutomationCore(name=name, description=description, trigger=trigger, actions=[DoNothing()])


SILENT = AutomationCore(
    name="plateway: silent runs have crashed",
    description="A run that showed no heartbeat for 90 s died with its worker; leases and the next run do the rest.",
    trigger=EventTrigger(
        after={HEARTBEAT},
        expect={HEARTBEAT, *ENDED},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=OURS,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    ),
    actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message="No heartbeat for 90 s")],
)
STANDING = (
    SILENT,
    alert(
        "plateway: a run failed",
        "A run failed or crashed. Add a notification here.",
        {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        OURS,
    ),
    alert(
        "plateway: images need attention",
        "An announcement went to quarantine, or an export is not what was sent. Add a notification here.",
        {"plateway.imaging-event.quarantined", "plateway.imaging-event.damaged"},
    ),
    alert(
        "plateway: an automation could not act",
        "Prefect could not do what an automation asked for. Add a notification here.",
        {"prefect.automation.action.failed"},
    ),
)


async def create_missing(client: PrefectClient) -> list[str]:
    """Create the automations that are missing, and return their names."""
    missing = [one for one in STANDING if not await client.read_automations_by_name(one.name)]
    for one in missing:
        await client.create_automation(one)
    return [one.name for one in missing]
