"""Templates of pools of containers, and keys for prefect.yaml: well formed, without a value missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships no types
from prefect.workers.base import BaseJobConfiguration

from plateway.settings import Settings

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
STANDARD = set(BaseJobConfiguration.model_fields)  # of every worker type


def template(kind: str) -> dict[str, Any]:
    """Read a base job template."""
    found: dict[str, Any] = json.loads((DEPLOYMENTS / f"{kind}.json").read_text())
    return found


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_each_placeholder_is_a_variable(kind: str) -> None:
    """The form of the pool asks for all that the job takes, and for nothing else."""
    found = template(kind)
    placeholders = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(found["job_configuration"])))
    assert placeholders == found["variables"]["properties"].keys()
    assert {"command", "env", "labels", "name"} <= found["job_configuration"].keys() & STANDARD


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_variables_are_described_and_settings_exist(kind: str) -> None:
    """Each has a title and a type; variables of the environment are settings of ours."""
    properties = template(kind)["variables"]["properties"]
    assert all({"title", "type"} <= about.keys() for about in properties.values())
    assert {f"PLATEWAY_{name.upper()}" for name in Settings.model_fields} >= properties["env"]["default"].keys()


def test_the_pod_may_do_little() -> None:
    """No root, no capabilities, no token of the cluster, a limit of memory."""
    pod = template("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["limits"]["memory"]


def test_keys_for_images_are_steps() -> None:
    """What is to be copied into prefect.yaml is YAML with one step an entry."""
    found = yaml.safe_load((DEPLOYMENTS / "prefect-images.yaml").read_text())
    assert {"build", "push", "pull", "definitions"} == found.keys()
    for step in (*found["build"], *found["push"], *found["pull"]):
        (name,) = step
        assert ".deployments.steps." in name
