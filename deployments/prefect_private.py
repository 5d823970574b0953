"""What Plateway uses of Prefect beyond its documented interface; `tests/deployments/test_prefect_private.py` checks it.

When a release of Prefect changes one of these, that test names it and what depends on it, and only this file and
`deployments/worker.py`, which overrides methods of `BaseWorker`, have to follow.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.cli.deploy._config import _load_deploy_configs_and_actions
from prefect.cli.deploy._core import _run_multi_deploy
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.flows import Flow
from rich.console import Console

# Of BaseWorker, called or overridden by the resident worker: what would break without it.
WORKER: Mapping[str, str] = {
    "_setup_cancellation_observer": "a cancelled run goes on",
    "_sync_and_initialize": "a worker ends when Prefect's API is away for half a minute",
    "_initialize_after_sync": "runs of a crashed worker stay Running",
    "_propose_submitting_state": "each run has a state more",
    "_submit_run": "a cancelled run goes on",
    "_cancel_run": "a cancelled run ends as Crashed",
    "_mark_flow_run_as_cancelled": "a cancelled run stays Cancelling",
    "_propose_crashed_state": "runs of a crashed worker stay Running",
}
Configs = list[dict[str, Any]]


def load_project(file: Path, *, pool: str) -> tuple[Configs, dict[str, Any]]:
    """Read a prefect.yaml, with another work pool in its deployments: their configurations, and the project's steps."""
    configs, actions = _load_deploy_configs_and_actions(prefect_file=file, console=Console(quiet=True))
    return [config | {"work_pool": config["work_pool"] | {"name": pool}} for config in configs], actions


async def deploy_project(configs: Configs, actions: dict[str, Any]) -> None:
    """Do what ``prefect deploy --all`` does, in this process and in this directory, without questions."""
    console = Console(quiet=True)
    await _run_multi_deploy(configs, actions, deploy_all=True, console=console, is_interactive=lambda: False)


class ResidentEngine(AsyncFlowRunEngine[Any, Any]):
    """Prefect's engine, but a run that the worker cancelled ends as Cancelled, not as Crashed."""

    cancelled: threading.Event

    async def handle_crash(self, exc: BaseException) -> None:
        """Report Cancelled if cancellation was requested, else Crashed."""
        if isinstance(exc, asyncio.CancelledError) and self.cancelled.is_set():
            await self.handle_cancellation(exc)
        else:
            await super().handle_crash(exc)


async def run_flow(flow: Flow[..., Any], flow_run: FlowRun, *, cancelled: threading.Event) -> None:
    """Run a flow run to its end in this task; its parameters are validated, and wrong ones fail it with their names."""
    engine = ResidentEngine(flow=flow, flow_run=flow_run, parameters=dict(flow_run.parameters))
    engine.cancelled = cancelled
    async with engine.start():
        while engine.is_running():
            async with engine.run_context():
                await engine.call_flow_fn()  # type: ignore[unused-coroutine]  # it is annotated twice
