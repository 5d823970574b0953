"""What a person decides, and what is left of a run that did not end by itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.events.actions import DoNothing, SendNotification
from prefect.input.run_input import keyset_from_paused_state
from prefect.states import Crashed

from blocks.instrument import Instrument
from blocks.site import first_error
from deployments import automations
from flows import leases
from plateway import pipeline, simulator
from plateway.errors import Misconfigured
from plateway.pipeline import open_site
from plateway.simulator import Announced, Simulated
from tests.flows.conftest import Site, ask, ended, run_of, until

SYSTEM = "cautious"
COUNT = 12  # so few as 10 are proven one by one, without the rule of the fraction


@pytest.fixture
def events(site: Site) -> list[Announced]:
    """Events of a system whose images may be purged at once, exported and verified."""
    root = site.settings.root / SYSTEM
    block = Instrument(
        system=SYSTEM, root=str(root), settle=timedelta(0), purge=True, lifespan=timedelta(0), fraction=0.01
    )

    async def save(client: PrefectClient) -> None:
        await block.asave(SYSTEM, overwrite=True, client=client)

    ask(save)
    one = Simulated(SYSTEM, "timestep", root, images=2, size=32)
    announced = [simulator.acquire(one, now=datetime.now(UTC), number=number) for number in range(COUNT)]
    with closing(open_site(site.settings)) as opened:
        ours = replace(opened, instrument=lambda name: block.value() if name == SYSTEM else opened.instrument(name))
        while not (claims := pipeline.claim_small(ours, [SYSTEM])):
            pipeline.register(ours)
        assert {outcome.result for outcome in pipeline.carry(ours, claims)} == {"verified"}
    return announced


def test_a_person_lets_a_purge_go_on(site: Site, worker: subprocess.Popen[bytes], events: list[Announced]) -> None:
    """Beyond its fraction a purge pauses, shows why, and goes on with the fraction that is entered in the UI."""

    async def start(client: PrefectClient) -> UUID:
        deployment = await client.read_deployment_by_name("purge/plateway")
        run = await client.create_flow_run_from_deployment(deployment.id, parameters={"systems": [SYSTEM]})
        return run.id

    run = ask(start)
    until(lambda: run_of(run).state_name in {"Paused", "Failed", "Completed"})
    state = run_of(run).state
    assert state is not None
    assert state.is_paused(), state.message
    assert all(event.images.exists() for event in events)
    shown = site.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [str(run)]}})
    assert [one["key"] for one in shown] == ["plateway-purge-decision"]
    assert SYSTEM in shown[0]["data"]
    assert keyset_from_paused_state(state)["schema"]
    answer = {"run_input": {"approve": True, "fraction": 1}}
    assert site.post(f"flow_runs/{run}/resume", **answer)["status"] == "ACCEPT"
    last = ended(run).state
    assert last is not None
    assert last.message == f"{COUNT} trashed"
    assert not any(event.images.exists() for event in events)


@pytest.fixture
def held(site: Site) -> Iterator[tuple[pipeline.Site, UUID]]:
    """A run, and a site on which it holds an event."""

    async def start(client: PrefectClient) -> UUID:
        deployment = await client.read_deployment_by_name("export/plateway")
        crashed: State[None] = Crashed(message="the test says so")
        run = await client.create_flow_run_from_deployment(deployment.id, state=crashed)
        return run.id

    run = ask(start)
    root = site.settings.root / SYSTEM
    one = Simulated(SYSTEM, "timestep", root, images=2, size=32)
    simulator.acquire(one, now=datetime.now(UTC), number=COUNT)
    with closing(open_site(site.settings)) as opened:
        mine = replace(opened, owner=f"{opened.owner} {leases.owner_of(run)}")
        while not pipeline.claim_small(mine, [SYSTEM]):
            pipeline.register(mine)
        yield opened, run


def test_leases_of_a_run_that_has_ended_are_released(site: Site, held: tuple[pipeline.Site, UUID]) -> None:
    """What a run holds that Prefect says has crashed is due again at once; a run that nobody knows keeps it."""
    opened, _ = held
    assert pipeline.claim_small(opened, [SYSTEM]) == []
    other = replace(opened, owner=f"elsewhere:1 {leases.owner_of(UUID(int=7))}")
    assert ask(lambda _: leases.release_ended(other)) == 1
    (claim,) = pipeline.claim_small(other, [SYSTEM])
    assert ask(lambda _: leases.release_ended(other)) == 0
    opened.catalog.release_claims([claim])


def test_automations_get_the_notification_that_is_named(site: Site) -> None:
    """Those that do nothing notify once a block is named; one with an action keeps it."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    block = CustomWebhookNotificationBlock(name="night", url="http://127.0.0.1:9/night")

    async def provision(client: PrefectClient) -> list[str]:
        await block.asave("night", overwrite=True, client=client)
        return await automations.create_missing(client, "custom-webhook/night")

    names = {one.name for one in automations.STANDING if automations.is_idle(one)}
    assert set(ask(provision)) == names
    assert ask(provision) == []
    for one in ask(lambda client: client.read_automations()):
        if one.name in names:
            (action,) = one.actions
            assert isinstance(action, SendNotification)
            assert action.subject == one.name
        assert not any(isinstance(action, DoNothing) for action in one.actions)


def test_a_group_of_errors_is_its_first() -> None:
    """However deep: its own message would be the number of errors."""
    first = Misconfigured("PLATEWAY_BUCKET_URL is not set")
    assert first_error(ExceptionGroup("two", [ExceptionGroup("one", [first]), ValueError("other")])) is first
