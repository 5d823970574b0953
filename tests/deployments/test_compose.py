"""What a site changes to run on several machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types
from typer.testing import CliRunner

from plateway import cli
from plateway.settings import Settings
from tests.fleet.compose import substitute

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
COMPOSE = (DEPLOYMENTS / "compose.yaml").read_text()
EXAMPLE = (DEPLOYMENTS / "site.example.env").read_text()
SECRETS = (DEPLOYMENTS / "secrets.example.env").read_text()
SECRET = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "CATALOGUE_PASSWORD", "SERVER_PASSWORD", "API_AUTH"),
    *("PLATEWAY_ARCHIVE_TOKEN", "PLATEWAY_AMQP_URL", "PLATEWAY_REDIS_URL", "PLATEWAY_DATABASE_URL"),
    *("PLATEWAY_OUTBOX_REDIS_URL", "PLATEWAY_OUTBOX_AMQP_URL"),
    *("PLATEWAY_OUTBOX_WEBHOOK_URL", "PLATEWAY_OUTBOX_WEBHOOK_SECRET"),
)
BUCKET, CATALOGUE = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, {"CATALOGUE_PASSWORD"}
NEEDED = {
    "prefect-database": {"SERVER_PASSWORD"},
    "catalogue": CATALOGUE,
    "prefect": {"SERVER_PASSWORD", "API_AUTH"},
    "provision": {"API_AUTH"} | CATALOGUE | BUCKET,
    "sensor": {"API_AUTH"},
    "worker": {"API_AUTH", "PLATEWAY_ARCHIVE_TOKEN"} | CATALOGUE | BUCKET,
    "gateway": CATALOGUE | BUCKET,
    "amqp": {"PLATEWAY_AMQP_URL"} | CATALOGUE | BUCKET,
    "redis": {"PLATEWAY_REDIS_URL"},
    "out": {name for name in SECRET if "OUTBOX" in name} | CATALOGUE,
}
OFFERED = set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE + SECRETS, re.MULTILINE))


def test_the_example_offers_what_compose_asks_for() -> None:
    """Every variable that compose.yaml takes from the site is in the example, so that nobody has to guess."""
    assert set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", COMPOSE)) <= OFFERED


def test_the_example_knows_the_settings() -> None:
    """Every PLATEWAY_ variable in the example is a setting, or used by compose.yaml itself."""
    known = {f"PLATEWAY_{name.upper()}" for name in Settings.model_fields}
    offered = {name for name in OFFERED if name.startswith("PLATEWAY_")}
    assert {name for name in offered - known if f"${{{name}" not in COMPOSE} == set()


def test_the_example_holds_no_secret() -> None:
    """Passwords and keys are left for the site to fill in."""
    for name in SECRET:
        assert re.search(rf"^#?{name}=$", SECRETS, re.MULTILINE), name
        assert f"{name}=" not in EXAMPLE, name  # every part sees that file


def test_each_part_has_only_the_secrets_that_it_needs() -> None:
    """As docker compose fills them in, from a file in which each secret has a value of its own."""
    values = dict.fromkeys(OFFERED, "/site") | {name: f"secret of {name}" for name in SECRET}
    del values["PLATEWAY_DATABASE_URL"]  # which is made of the password
    services = substitute(yaml.safe_load(COMPOSE)["services"], values)
    for part, service in services.items():
        shown = " ".join(service.get("environment", {}).values())
        assert {name for name in SECRET if f"secret of {name}" in shown} == NEEDED[part], part


def test_ports_are_on_loopback() -> None:
    """Unless the site says otherwise."""
    services = yaml.safe_load(COMPOSE)["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(re.match(r"\$\{[A-Z]+_ADDRESS:-127\.0\.0\.1\}:", port) for port in published)


def test_the_gateway_changes_nothing_but_its_own() -> None:
    """It sees bench and archive for reading only, keeps its tokens apart from the other parts, and asks for them."""
    gateway = yaml.safe_load(COMPOSE)["services"]["gateway"]
    mounts = {mount.split(":")[1]: mount for mount in (one.replace(":-", "") for one in gateway["volumes"])}
    assert mounts["/bench"].endswith(":ro")
    assert mounts["/archive"].endswith(":ro")
    assert mounts["/var/lib/plateway"].startswith("gateway:")
    assert "0.0.0.0" in gateway["command"]  # so that events are shown to tokens only
    assert gateway["depends_on"].keys() == {"provision"}


DEMO = yaml.safe_load((DEPLOYMENTS.parent / "compose.yaml").read_text())["services"]


def test_the_demo_is_in_the_open_on_loopback_only() -> None:
    """Every port is published on loopback, and every service that is waited for is there."""
    published = [port for service in DEMO.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    assert {name for service in DEMO.values() for name in service.get("depends_on", {})} <= DEMO.keys()
    assert {"state-manager", "exporter", "mock-prince"} <= DEMO.keys()  # as in DLM's compose file


@pytest.mark.parametrize("name", [name for name, one in DEMO.items() if one.get("command", [""])[0] == "plateway"])
def test_the_commands_of_the_demo_exist(name: str) -> None:
    """With each of their options."""
    _, command, *options = DEMO[name]["command"]
    shown = CliRunner().invoke(cli.app, [command, "--help"]).stdout
    assert all(option in shown for option in options if option.startswith("--"))


def test_the_settings_of_the_demo_are_settings() -> None:
    """A variable that nobody reads would be a riddle."""
    given = {name for one in DEMO.values() for name in one.get("environment", {}) if name.startswith("PLATEWAY_")}
    assert given <= {f"PLATEWAY_{name.upper()}" for name in Settings.model_fields}
