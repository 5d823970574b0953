"""What a person or a program may ask of a flow, through Prefect's own API: bounds, descriptions, and names."""

from __future__ import annotations

import subprocess
from typing import Any
from uuid import UUID

import httpx
import pytest

from plateway.local import bringup
from tests.flows.conftest import Site, ask, ended, until

FLOWS = ("discover", "export", "verify", "purge", "reconcile", "archive", "expire", "restore", "report", "selftest")


def schema(flow: str) -> dict[str, Any]:
    """The parameters of a deployment as its form shows them, without the alternative of none."""
    deployment = ask(lambda client: client.read_deployment_by_name(f"{flow}/plateway"))
    found = (deployment.parameter_openapi_schema or {}).get("properties", {})
    return {
        name: told | next((one for one in told.get("anyOf", ()) if one.get("type") != "null"), {})
        for name, told in found.items()
    }


def asked(site: Site, flow: str, **wanted: Any) -> httpx.Response:
    """Request a run of a deployment; a busy server is asked again."""
    deployment = ask(lambda client: client.read_deployment_by_name(f"{flow}/plateway"))
    answers: list[httpx.Response] = []

    def answered() -> bool:
        url = f"{site.api}/deployments/{deployment.id}/create_flow_run"
        answers.append(httpx.post(url, json=wanted, timeout=60, auth=bringup.basic(site.env)))
        return answers[-1].status_code != 503

    until(answered)
    return answers[-1]


@pytest.mark.parametrize("flow", FLOWS)
def test_parameters_are_described_and_bounded(site: Site, flow: str) -> None:
    """Each says what it means; numbers and lists have limits."""
    for name, told in schema(flow).items():
        assert told.get("description"), name
        if told.get("type") in {"number", "integer"}:
            assert {"minimum", "exclusiveMinimum"} & told.keys(), name
            assert {"maximum", "exclusiveMaximum"} & told.keys(), name
        if told.get("type") == "array":
            assert told["maxItems"] > 0, name
            assert told["items"]["maxLength"] > 0, name


@pytest.mark.parametrize("flow", ["purge", "expire"])
@pytest.mark.parametrize("fraction", [10, 1.01, 0, -1, "ten", True, [0.1]])
def test_a_fraction_that_is_none_starts_no_run(site: Site, flow: str, fraction: Any) -> None:
    """Ten for ten percent would switch the rule off that stops and asks."""
    answer = asked(site, flow, parameters={"fraction": fraction})
    assert answer.is_client_error
    assert "fraction" in answer.text


@pytest.mark.parametrize(
    ("flow", "parameters"),
    [("purge", {"systems": []}), ("purge", {"systems": [7]}), ("restore", {"event_ids": []}), ("restore", {})],
)
def test_lists_that_name_nothing_start_no_run(site: Site, flow: str, parameters: dict[str, Any]) -> None:
    """An empty list is not everything."""
    answer = asked(site, flow, parameters=parameters)
    assert answer.is_client_error
    assert next(iter(parameters), "event_ids") in answer.text


@pytest.mark.parametrize(
    ("flow", "name", "value"), [("purge", "fractoin", 0.1), ("export", "event_id", "7"), ("discover", "systems", ["a"])]
)
def test_a_misspelt_parameter_is_refused_with_its_name(
    site: Site, worker: subprocess.Popen[bytes], flow: str, name: str, value: Any
) -> None:
    """At once, or by the run, which fails and says which one it was."""
    answer = asked(site, flow, parameters={name: value})
    if answer.is_client_error:
        assert name in answer.text
        return
    run = ended(UUID(answer.json()["id"]))
    assert run.state is not None
    assert run.state.type == "FAILED"
    assert name in (run.state.message or "")


def test_bounds_hold_where_the_server_does_not_check(site: Site, worker: subprocess.Popen[bytes]) -> None:
    """A run made without the check of its parameters fails by itself, and says why."""
    answer = asked(site, "purge", parameters={"fraction": 10}, enforce_parameter_schema=False)
    run = ended(UUID(answer.raise_for_status().json()["id"]))
    assert run.state is not None
    assert run.state.type == "FAILED"
    assert "fraction" in (run.state.message or "")


def test_good_parameters_are_taken(site: Site, worker: subprocess.Popen[bytes]) -> None:
    """The largest and a small share, and named systems."""
    for fraction in (1, 0.001):
        answer = asked(site, "purge", parameters={"fraction": fraction, "systems": ["prince"], "dry_run": True})
        assert ended(UUID(answer.raise_for_status().json()["id"])).state_name == "Completed"
