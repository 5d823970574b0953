"""The whole line on a real Prefect server: what is announced is in the bucket and verified, without a hand."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

from blocks import site as configured
from blocks.bucket import Bucket
from deployments import sensor
from flows import reporting
from plateway import simulator
from plateway.catalog import Catalog
from plateway.errors import NotFound
from plateway.events import Ref
from plateway.ledger import Ledger
from plateway.simulator import Announced, Simulated
from tests.flows.conftest import Site, ask, ended, run_of, until

numbers = count()


@pytest.fixture
def catalog(site: Site) -> Iterator[Catalog]:
    """The site's catalogue."""
    with closing(Catalog(site.settings.catalog_url)) as catalog:
        yield catalog


def announced(site: Site) -> Announced:
    """Make the site's instrument acquire one event."""
    prince = Simulated("prince", "timestep", site.settings.root / "prince", images=2, size=32)
    return simulator.acquire(prince, now=datetime.now(UTC), number=next(numbers))


def ledger(catalog: Catalog, event: Announced) -> Ledger | None:
    """What the catalogue knows of an event."""
    try:
        return catalog.ledger(Ref(event.id, 1))
    except NotFound:
        return None


def verified(catalog: Catalog, event: Announced) -> bool:
    """Return whether there is evidence of an event's export."""
    known = ledger(catalog, event)
    return known is not None and known.export is not None and known.export.evidence is not None


def ran(flow: str, **parameters: Any) -> FlowRun:
    """Run a deployment to its end."""
    deployment = ask(lambda client: client.read_deployment_by_name(f"{flow}/plateway"))
    run = ask(lambda client: client.create_flow_run_from_deployment(deployment.id, parameters=parameters))
    return ended(run.id)


def message(run: FlowRun) -> str:
    """The last word of a run."""
    return (run.state and run.state.message) or ""


def found(site: Site, what: str, **wanted: Any) -> Any:
    """Query the server for what it keeps."""
    return site.post(f"{what}/filter", **wanted)


def told(site: Site, event: str, about: UUID) -> bool:
    """Return whether others were told of an event."""
    wanted = {"event": {"name": [event]}, "resource": {"id": [f"plateway.imaging-event.{about}"]}}
    return bool(found(site, "events", filter=wanted)["events"])


def test_an_announcement_is_verified_without_a_hand(
    site: Site, worker: subprocess.Popen[bytes], catalog: Catalog
) -> None:
    """The sensor's hint triggers discover, which registers, exports and verifies; others are told."""
    with site.running("deployments.sensor"):
        event = announced(site)
        until(lambda: verified(catalog, event))
    until(lambda: told(site, "plateway.imaging-event.exported", event.id))
    known = ledger(catalog, event)
    assert known is not None
    assert known.export is not None
    assert (site.home / "bucket" / known.export.key).stat().st_size == known.export.size


def test_an_instrument_names_its_bucket(site: Site, worker: subprocess.Popen[bytes], catalog: Catalog) -> None:
    """A block that an operator made is where its exports go from the next run on, and where the flows look for them."""
    other = site.home / "other"
    other.mkdir()
    (prince,) = [one for one in ask(lambda _: configured.load_instruments()) if one.system == "prince"]

    async def save(client: PrefectClient) -> None:
        await Bucket(url=other.as_uri()).asave("other", overwrite=True, client=client)
        await prince.asave("prince", overwrite=True, client=client)

    prince.bucket = "other"
    ask(save)
    try:
        event = announced(site)
        until(lambda: ran("discover") and verified(catalog, event))
    finally:
        prince.bucket = None
        ask(save)
    known = ledger(catalog, event)
    assert known is not None
    assert known.export is not None
    assert known.export.bucket == "other"
    assert (other / known.export.key).exists()


def test_a_hint_starts_one_run(site: Site, worker: subprocess.Popen[bytes], catalog: Catalog) -> None:
    """A hint without any sensor is enough: its automation starts discover at once."""
    event = announced(site)
    hint = sensor.Watched(event.path.parent, sensor.ANNOUNCED, "plateway.system.prince").hint([event.path.name])
    ask(lambda client: sensor.post(client, hint))
    until(lambda: verified(catalog, event))


def test_runs_that_find_nothing_do_not_fill_the_list(
    site: Site, worker: subprocess.Popen[bytes], catalog: Catalog
) -> None:
    """Of those that an automation started the newest stays, and those that waited meanwhile are gone."""
    by_hand = ran("discover")
    assert message(by_hand) == "nothing new"
    first = quiet_after(site, unlike=[])
    assert len(first) == 1
    assert len(quiet_after(site, unlike=first)) == 1
    assert run_of(by_hand.id).state_name == "Completed"
    assert not found(site, "flow_runs", flow_runs={"state": {"name": {"any_": ["Spared"]}}})


def quiet_after(site: Site, *, unlike: list[str]) -> list[str]:
    """Send hints, wait until their runs have ended, and list the quiet runs."""
    watched = sensor.Watched(site.settings.root, sensor.ANNOUNCED, "plateway.system.prince")
    for _ in range(3):
        ask(lambda client: sensor.post(client, watched.hint([])))  # each is an event of its own
    until(lambda: discoveries(site) not in ([], unlike) and not unfinished(site))
    return discoveries(site)


def discoveries(site: Site) -> list[str]:
    """List the runs of discover that are tagged as quiet."""
    wanted = {"tags": {"all_": [reporting.QUIET]}, "state": {"type": {"any_": ["COMPLETED"]}}}
    return [run["id"] for run in found(site, "flow_runs", flow_runs=wanted, flows={"name": {"any_": ["discover"]}})]


def unfinished(site: Site) -> bool:
    """Return whether a run of discover has not ended."""
    wanted = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
    return bool(found(site, "flow_runs", flow_runs=wanted, flows={"name": {"any_": ["discover"]}}))


def test_a_run_leaves_a_table_that_a_person_can_read(
    site: Site, worker: subprocess.Popen[bytes], catalog: Catalog
) -> None:
    """Export by hand, by id and by force, ends with a summary and a table; names carry the event's id."""
    event = announced(site)
    until(lambda: verified(catalog, event) or ran("discover"))
    again = ran("export", event_ids=[str(event.id)])
    assert message(again) == "1 exported already"
    forced = ran("export", event_ids=[str(event.id)], force=True)
    assert message(forced) == "1 verified"
    assert forced.name.startswith("export ")
    of_the_run = {"flow_run_id": {"any_": [str(forced.id)]}}
    assert str(event.id) in found(site, "artifacts", artifacts=of_the_run)[0]["data"]
    until(lambda: len(found(site, "task_runs", task_runs=of_the_run)) == 2)
    names = {task["name"] for task in found(site, "task_runs", task_runs=of_the_run)}
    assert names == {f"export {event.id}", f"verify {event.id}"}


def test_an_unknown_event_fails_the_run(site: Site, worker: subprocess.Popen[bytes]) -> None:
    """Naming an event that does not exist fails with the reason, and nothing is done."""
    run = ran("export", event_ids=[str(UUID(int=7))])
    assert run.state_name == "Failed"
    assert str(UUID(int=7)) in message(run)


def test_damage_fails_the_run_and_is_healed(site: Site, worker: subprocess.Popen[bytes], catalog: Catalog) -> None:
    """Verify finds what somebody changed in the bucket, says so, and the next export puts it right."""
    event = announced(site)
    until(lambda: verified(catalog, event) or ran("discover"))
    known = ledger(catalog, event)
    assert known is not None
    assert known.export is not None
    stored = site.home / "bucket" / known.export.key
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + b"!")
    run = ran("verify", event_ids=[str(event.id)], read_back=True)
    assert run.state_name == "Failed"
    assert message(run) == "1 damaged"
    until(lambda: told(site, "plateway.imaging-event.damaged", event.id))
    until(lambda: verified(catalog, event) or ran("discover"))
    assert stored.read_bytes() == good


def test_a_purge_shows_its_refusals(site: Site, worker: subprocess.Popen[bytes], catalog: Catalog) -> None:
    """Evidence that is too young is a reason to stay, and no failure."""
    event = announced(site)
    until(lambda: verified(catalog, event) or ran("discover"))
    run = ran("purge", dry_run=True)
    assert run.state_name == "Completed"
    assert "refused" in message(run)
    assert event.images.exists()


@pytest.mark.soak("a process for each run takes a tenth of the gate's time")
def test_a_process_pool_runs_the_same_deployments(site: Site, catalog: Catalog) -> None:
    """Where isolation matters, the flows run unchanged in processes of their own."""
    site.deploy(work_pool="process")
    try:
        event = announced(site)
        with site.running(*site.worker("process", "process")):
            until(lambda: verified(catalog, event) or ran("discover").state_name != "Completed")
        assert verified(catalog, event)
    finally:
        site.deploy()
