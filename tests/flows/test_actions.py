"""What a page of the gateway asks Prefect for, on a real server."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from plateway import simulator
from plateway.events import Ref
from plateway.gateway.pages.actions import ACTIONS, TAGS, Action, start_run
from plateway.simulator import Simulated
from tests.flows.conftest import Site, ask, ended
from tests.flows.test_doctor import known

__all__ = ["known"]
SYSTEM = "asked"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("action", [one for one in ACTIONS if one.flow], ids=lambda one: one.name)
def test_an_action_starts_a_run_that_prefect_accepts(known: Site, action: Action) -> None:
    """Its deployment takes the parameters, and the run ends by itself: with the event named, however that went."""
    one = Simulated(SYSTEM, "timestep", known.settings.root / SYSTEM, images=1, size=32)
    ref = Ref(simulator.acquire(one, now=datetime.now(UTC), number=len(action.name)).id, 1)
    api = known.settings.prefect_api
    assert api is not None
    run = ended(UUID(start_run(api, action, ref)))
    assert run.parameters == {**action.parameters, "event_ids": [str(ref)]}
    assert set(TAGS) <= set(run.tags)
    flow = ask(lambda client: client.read_flow(run.flow_id))
    assert flow.name == action.flow
    assert run.state_name in {"Completed", "Failed"}  # not Crashed, and not for its parameters
    assert run.state is not None
    assert "validation" not in (run.state.message or "").lower()
