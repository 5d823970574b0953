"""Provisioning: everything is there afterwards, twice is as good as once, and what was edited stays."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import BlockType, WorkQueue
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import EventTrigger
from prefect.events.schemas.events import ResourceSpecification
from pydantic import SecretStr
from typer.testing import CliRunner

from blocks import site as configured
from blocks.bucket import Bucket
from blocks.instrument import Instrument
from deployments.automations import STANDING
from deployments.provision import FLOWS, ProvisionedDigests, block_types, buckets, document
from plateway import cli, settings
from tests.flows.conftest import Site, ask


def automations() -> dict[str, str]:
    """The automations that there are: id by name."""
    return {one.name: str(one.id) for one in ask(lambda client: client.read_automations())}


def queues() -> dict[str, WorkQueue]:
    """The work queues of the resident pool by name."""
    return {queue.name: queue for queue in ask(lambda client: client.read_work_queues(work_pool_name="resident"))}


def deployments() -> dict[str, DeploymentResponse]:
    """The deployments that must be there, by flow."""

    async def read(client: PrefectClient) -> dict[str, DeploymentResponse]:
        return {flow: await client.read_deployment_by_name(f"{flow}/plateway") for flow in FLOWS}

    return ask(read)


def bucket() -> Bucket:
    """The Bucket block."""
    return ask(lambda _: configured.load_buckets())["plateway"]


def instrument(name: str) -> Instrument:
    """An Instrument block."""
    return next(one for one in ask(lambda _: configured.load_instruments()) if one.system == name)


def save(block: Instrument, *, settle: timedelta) -> None:
    """Do what an operator does in the UI."""
    block.settle = settle
    ask(lambda client: awaited(block.asave(block.system, overwrite=True, client=client)))


async def awaited(saving: Any) -> None:
    """Wait for a call that Prefect declares more loosely than it is."""
    await saving


def test_everything_is_there(site: Site) -> None:
    """Deployments, queues, blocks and automations are on the server after the first time."""
    for flow, deployment in deployments().items():
        assert deployment.description
        assert deployment.tags[0] == flow
        assert "plateway" in deployment.tags
        assert deployment.work_queue_name == flow
    assert queues()["discover"].concurrency_limit == 1
    assert {one.name for one in STANDING} < automations().keys()


def test_the_ui_says_what_is_what(site: Site) -> None:
    """The pool is described; blocks have a logo and documentation of the gateway, and none of other servers."""

    async def read(client: PrefectClient) -> tuple[str | None, list[BlockType]]:
        pool = await client.read_work_pool("resident")
        return pool.description, [
            await client.read_block_type_by_slug(one) for one in ("plateway-bucket", "plateway-instrument")
        ]

    async def register(client: PrefectClient, gateway: str | None) -> None:
        await block_types(client, ProvisionedDigests(site.home), gateway)

    ask(lambda client: register(client, "http://127.0.0.1:8000"))
    description, types = ask(read)
    assert description
    assert "worker" in description
    for one in types:
        assert str(one.logo_url) == "http://127.0.0.1:8000/static/plateway.svg"
        assert str(one.documentation_url) == f"http://127.0.0.1:8000/help#{one.slug}"


def test_triggers_are_shown_in_words() -> None:
    """Triggers on runs and pools have the shape by which Prefect's UI recognizes those of its own form."""
    shown = {
        one.name
        for one in STANDING
        if isinstance(one.trigger, EventTrigger)
        and (one.trigger.for_each, one.trigger.threshold) == ({"prefect.resource.id"}, 1)
        and is_readable(one.trigger)
    }
    assert shown == {
        "plateway: silent runs have crashed",
        "plateway: a run failed",
        "plateway: a run waits for a decision",
        "plateway: no worker is online",
    }


def is_readable(trigger: EventTrigger) -> bool:
    """Return whether all that it matches and expects is of runs with a tag, or of work pools."""
    assert isinstance(trigger.match, ResourceSpecification)
    assert isinstance(trigger.match_related, ResourceSpecification)
    about = trigger.match.model_dump().get("prefect.resource.id")
    related = trigger.match_related.model_dump()
    tagged = not related or str(related.get("prefect.resource.id")).startswith("prefect.tag.")
    kind = {"prefect.work-pool.*": "prefect.work-pool.", "prefect.flow-run.*": "prefect.flow-run."}.get(str(about))
    return kind is not None and tagged and all(one.startswith(kind) for one in {*trigger.expect, *trigger.after})


def test_twice_is_as_good_as_once(site: Site) -> None:
    """Provisioning again makes nothing anew, so that automations keep their ids and what was edited about them."""
    before = automations()
    site.provision()
    assert automations() == before


def test_blocks_hold_what_the_settings_say(site: Site) -> None:
    """The blocks give the library the very values that the settings give."""
    known = site.settings.instrument("prince")
    blocks = [one for one in ask(lambda _: configured.load_instruments()) if one.system == "prince"]
    assert [one.value() for one in blocks] == [known]
    assert bucket().url == site.settings.bucket_url
    assert bucket().store().stat("nothing/there") is None


def test_an_edited_block_is_left_alone(site: Site) -> None:
    """What an operator typed into a block outlives every provisioning, whatever the settings say."""
    block = instrument("prince")
    untouched = block.settle
    try:
        save(block, settle=timedelta(seconds=7))
        site.provision(settle_seconds="3")
        assert instrument("prince").settle == timedelta(seconds=7)
    finally:
        save(block, settle=untouched)


def test_a_block_of_ours_follows_the_settings(site: Site) -> None:
    """As long as nobody edited it, a block follows an endpoint that moved to another port; secrets stay unseen."""
    site.provision(endpoint_url="http://127.0.0.1:7", access_key_id="key", secret_access_key="s3cret")
    moved = bucket()
    assert moved.endpoint == "http://127.0.0.1:7"
    assert moved.value().endpoint.secret_access_key == SecretStr("s3cret")
    assert "s3cret" not in repr(moved)
    site.provision()
    assert bucket().endpoint is None


def test_each_bucket_has_a_block(site: Site, tmp_path: Path) -> None:
    """A table of buckets.toml becomes a block, with its credentials; an instrument's names it, and flows follow."""
    (tmp_path / "buckets.toml").write_text(
        '[dev]\nurl = "s3://dev"\nendpoint_url = "http://127.0.0.1:7"\nendpoint_name = "echo"\nread_only = true\n'
        'access_key_id = "key"\nsecret_access_key = "s3cret"\nsystems = ["prince"]\n'
    )
    known = settings.load(home=tmp_path, bucket_url=site.settings.bucket_url)
    try:
        ask(lambda client: buckets(client, known, ProvisionedDigests(tmp_path)))
        blocks = ask(lambda _: configured.load_buckets())
        assert blocks["dev"].value().endpoint == known.buckets["dev"].endpoint
        instrument = Instrument.of(known.instrument("prince"))
        assert instrument.bucket == "dev"
        with closing(configured.put_together(known, blocks, [instrument])) as line:
            assert (line.to("prince").store.name, line.to("prince").endpoint) == ("dev", "echo")
            assert line.to("other").store is line.store
        table = CliRunner().invoke(cli.app, ["config", "bucket", "dev"], catch_exceptions=False).stdout
        # no instrument on the server names it
        (tmp_path / "buckets.toml").write_text(table.replace("region", 'systems = ["prince"]\nregion'))
        assert settings.load(home=tmp_path).buckets == known.buckets
    finally:
        ask(lambda _: awaited(Bucket.adelete("dev")))


def test_a_paused_schedule_gets_its_parameters_back(site: Site) -> None:
    """Pausing through Prefect's API drops them: they come back, it stays paused, and what was edited stays, too."""

    async def change(client: PrefectClient, slug: str, **edited: Any) -> None:
        deployment = await client.read_deployment_by_name("reconcile/plateway")
        (one,) = [one for one in deployment.schedules if one.slug == slug]
        await client.update_deployment_schedule(deployment.id, one.id, active=False, **edited)

    def quick() -> tuple[bool, dict[str, Any]]:
        (one,) = [one for one in deployments()["reconcile"].schedules if one.slug == "manifests"]
        return one.active, one.parameters

    ask(lambda client: change(client, "manifests"))
    assert quick() == (False, {})
    site.provision()
    assert quick() == (False, {"quick": True})
    try:
        ask(lambda client: change(client, "manifests", parameters={"quick": False}))
        site.provision()
        assert quick() == (False, {"quick": False})
    finally:
        ask(lambda client: change(client, "manifests", parameters={"quick": True}))


def test_names_of_blocks_tell_systems_apart() -> None:
    """A system whose name no block can have gets one of its own."""
    assert document("prince") == "prince"
    assert document("Are_tha") != document("are-tha")
    assert document("Are_tha").startswith("are-tha-")


def test_schedules_and_automations_have_their_parameters(site: Site) -> None:
    """What runs often only looks for something new; what writes to the archive at night gives way to others."""

    def scheduled(flow: str) -> dict[str | None, dict[str, Any]]:
        return {one.slug: one.parameters for one in deployments()[flow].schedules}

    assert scheduled("reconcile") == {"nightly": {}, "manifests": {"quick": True}}
    assert scheduled("archive") == {"nightly": {"unattended": True}}
    assert scheduled("report") == {"daily": {}, "alerts": {"alerts_only": True}}
    found = {one.name: one for one in ask(lambda client: client.read_automations())}
    (action,) = found["plateway: reconcile announced archive manifests"].actions
    assert isinstance(action, RunDeployment)
    assert action.parameters == {"quick": True}
