"""What we use of Prefect beyond its documented interface: still there, and used nowhere else."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from prefect.cli.deploy._core import _run_multi_deploy
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.workers.base import BaseWorker

from deployments import prefect_private

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("flows", "blocks", "deployments") for path in sorted((PROJECT / folder).glob("*.py"))]


@pytest.mark.parametrize("name", prefect_private.WORKER)
def test_the_worker_has_what_the_resident_worker_overrides(name: str) -> None:
    """A method that is gone or renamed is named here, with what would break."""
    assert inspect.iscoroutinefunction(getattr(BaseWorker, name, None)), (
        f"BaseWorker.{name} is gone: {prefect_private.WORKER[name]}"
    )


def test_the_worker_module_uses_no_other_private_methods() -> None:
    """Each call of a private method of Prefect's base class in the resident worker is in the list."""
    text = (PROJECT / "deployments" / "worker.py").read_text()
    used = set(re.findall(r"(?:super\(\)|self)\.(_\w+)\(", text))
    own = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    inherited = {name for name in used | own if hasattr(BaseWorker, name) and re.match(r"_[a-z]", name)}
    assert inherited == set(prefect_private.WORKER)


def test_the_engine_runs_a_flow_as_ours_does() -> None:
    """The steps of the engine that a run goes through exist, and a crash can be told from a cancellation."""
    for name in ("start", "is_running", "run_context", "call_flow_fn", "handle_crash", "handle_cancellation"):
        assert callable(getattr(AsyncFlowRunEngine, name, None)), f"cancelled runs would end as Crashed: no {name}"
    assert {"flow", "flow_run", "parameters"} <= inspect.signature(AsyncFlowRunEngine).parameters.keys()


def test_a_project_is_deployed_to_another_pool() -> None:
    """prefect.yaml is read by Prefect's own reader; each deployment goes to the pool that is asked for."""
    configs, actions = prefect_private.load_project(PROJECT / "prefect.yaml", pool="elsewhere")
    assert {config["work_pool"]["name"] for config in configs} == {"elsewhere"}
    assert {config["work_pool"]["work_queue_name"] for config in configs} >= {"discover", "export"}
    assert actions["pull"] == [{"plateway.local.project.change_directory": {}}]
    assert {"console", "is_interactive"} <= inspect.signature(_run_multi_deploy).parameters.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_private_is_imported_elsewhere(path: Path) -> None:
    """Private names and modules of Prefect are imported in one file."""
    imported = [
        (str(node.module), alias.name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefect")
        for alias in node.names
    ]
    private = [(module, name) for module, name in imported if "._" in module or name[0] == "_" or "engine" in module]
    assert not private or path.name == "prefect_private.py"
