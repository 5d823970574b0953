"""The automations that belong to no deployment: for runs without heartbeats, failures and damage.

They are created if they are missing. All but the first notify by the block that PLATEWAY_NOTIFY names; without it they
do nothing until an operator adds an action, or the block is named. What an operator edited or disabled stays.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import BlockDocument, StateType
from prefect.events import Posture
from prefect.events.actions import ChangeFlowRunState, DoNothing, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = frozenset(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed"))
SILENCE = timedelta(seconds=90)  # three heartbeats
SENSOR = "plateway.sensor.heartbeat"
BODY = "{{ automation.description }}\n\n{{ event.event }}: {{ event.resource.name or event.resource.id }}"
STALE = timedelta(minutes=10)  # without a completed discovery
ABSENT = timedelta(minutes=3)  # three heartbeats of a sensor
RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
POOLS = {"prefect.resource.id": "prefect.work-pool.*"}
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.plateway"}
EACH = {"prefect.resource.id"}


logger = get_logger("plateway.provision")


def alert(
    name: str,
    description: str,
    expect: set[str],
    *,
    match: dict[str, str] | None = None,
    related: dict[str, str] | None = None,
) -> AutomationCore:
    """Return an automation that fires at each of these events, and does nothing until it has a notification.

    Prefect's UI shows a trigger in words if it has the shape of one that its form makes: states of runs or work pools,
    for each of them. Others are shown as "Custom trigger", with the automation's description.
    """
    trigger = EventTrigger(
        expect=expect,
        match=match or {},
        match_related=related or {},
        for_each=EACH if match else set(),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    return AutomationCore(name=name, description=description, trigger=trigger, actions=[DoNothing()])


def absence(name: str, description: str, trigger: dict[str, object], within: timedelta) -> AutomationCore:
    """Return an automation that fires when an event did not come in time."""
    proactive = EventTrigger(**trigger, posture=Posture.Proactive, threshold=1, within=within)
    return AutomationCore(name=name, description=description, trigger=proactive, actions=[DoNothing()])


SILENT = AutomationCore(
    name="plateway: silent runs have crashed",
    description="A run that showed no heartbeat for 90 s died with its worker; leases and the next run do the rest.",
    trigger=EventTrigger(
        after={HEARTBEAT},
        expect={HEARTBEAT, *ENDED},
        match=RUNS,
        match_related=OURS,
        for_each=EACH,
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
        "A run failed or crashed.",
        {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        match=RUNS,
        related=OURS,
    ),
    alert(
        "plateway: a run waits for a decision",
        "A run stopped at its fraction: read its artifact, and resume it in the UI.",
        {"prefect.flow-run.Paused"},
        match=RUNS,
        related=OURS,
    ),
    alert(
        "plateway: images need attention",
        "An announcement went to quarantine, or an export is not what was sent.",
        {"plateway.imaging-event.quarantined", "plateway.imaging-event.damaged"},
    ),
    alert(
        "plateway: an automation could not act",
        "Prefect could not do what an automation asked for.",
        {"prefect.automation.action.failed"},
    ),
    alert(
        "plateway: no worker is online",
        "A work pool has no worker whose heartbeats arrive: its runs wait.",
        {"prefect.work-pool.not-ready"},
        match=POOLS,
    ),
    alert(
        "plateway: a worker takes no runs",
        "Its bench is not mounted, or is another one: its log has the reason.",
        {"plateway.worker.declined"},
    ),
    absence(
        "plateway: no discovery in 10 minutes",
        "No run of discover was completed: new events are not exported.",
        {
            "expect": {"prefect.flow-run.Completed"},
            "match": RUNS,
            "match_related": {"prefect.resource.role": "flow", "prefect.resource.name": "discover"},
        },
        STALE,
    ),
    absence(
        "plateway: a file sensor is silent",
        "A sensor sent no heartbeat for 3 minutes: new events wait for the schedule.",
        {
            "after": {SENSOR},
            "expect": {SENSOR},
            "match": {"prefect.resource.id": "plateway.sensor.*"},
            "for_each": EACH,
        },
        ABSENT,
    ),
)


async def create_missing(client: PrefectClient, notify: str | None = None) -> list[str]:
    """Create the automations that are missing, add the notification where there is no action; return their names.

    ``notify`` names a notification block: ``<type>/<name>``.
    """
    block = await find_block(client, notify) if notify else None
    changed = []
    for one in STANDING:
        wanted = add_notification(one, block) if block else one
        present = await client.read_automations_by_name(one.name)
        if not present:
            await client.create_automation(wanted)
        elif is_idle(present[0]) and not is_idle(wanted):
            facts = present[0].model_dump(exclude={"id", "owner_resource", "actions"})
            kept = AutomationCore.model_validate(facts | {"actions": wanted.actions})
            await client.update_automation(present[0].id, kept)
        else:
            continue
        changed.append(one.name)
    return changed


async def find_block(client: PrefectClient, name: str) -> BlockDocument | None:
    """Find a notification block by its type and name; logs if there is none."""
    kind, _, called = name.partition("/")
    try:
        return await client.read_block_document_by_name(called, kind)
    except ObjectNotFound:
        logger.warning("PLATEWAY_NOTIFY: there is no block %r yet; automations notify after the next start", name)
        return None


def is_idle(automation: AutomationCore) -> bool:
    """Return whether an automation does nothing so far."""
    return all(isinstance(action, DoNothing) for action in automation.actions)


def add_notification(automation: AutomationCore, block: BlockDocument) -> AutomationCore:
    """Return an automation with a notification in place of nothing."""
    if not is_idle(automation):
        return automation
    action = SendNotification(type="send-notification", block_document_id=block.id, subject=automation.name, body=BODY)
    return automation.model_copy(update={"actions": [action]})
