"""What a person decides in the Prefect UI: whether a run that stopped at its fraction goes on."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import acreate_markdown_artifact
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from flows.parameters import Fraction

WITHIN = 5400  # seconds: before the next scheduled purge


class Decision(RunInput):
    """The answer to a proposal."""

    approve: bool = Field(False, description="go on; leave it off to end the run as it is")
    fraction: Fraction = Field(1.0, description="largest share (above 0, up to 1) of a system's events to allow")


async def ask(reasons: Sequence[str]) -> Decision | None:
    """Show what stopped as an artifact, and pause the run until a person decides; None: not approved, or not in time.

    Only a run of a deployment asks: others have nobody who looks at them.
    """
    if deployment.id is None:
        return None
    lines = "\n".join(f"- {reason}" for reason in reasons)
    proposal = f"# {flow_run.name} stopped\n\n{lines}\n\nResume the run to decide, within {WITHIN // 60} minutes."
    await acreate_markdown_artifact(proposal, key=f"plateway-{flow_run.flow_name}-decision", description="Decide")
    form = Decision.with_initial_data(description=f"{flow_run.name} stopped:\n\n{lines}\n\nGo on?", approve=False)
    try:
        decision = await apause_flow_run(wait_for_input=form, timeout=WITHIN, poll_interval=5)
    except FlowPauseTimeout:
        return None
    return decision if decision.approve else None
