"""What Prometheus and Grafana are given: every metric in it is one that the gateway has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no types

from plateway.catalog.outbox import Backlog
from plateway.gateway import metrics
from plateway.ledger import STATES, SystemOverview
from plateway.records import OutboxTarget

MONITORING = Path(__file__).resolve().parents[2] / "deployments" / "monitoring"
NAME = re.compile(r"\bplateway_[a-z_]+")
OWN = {"plateway_build_info", "plateway_catalogue_up"}  # written where the response is put together


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def queries() -> Iterator[str]:
    """Every query of dashboard and rules."""
    board = json.loads((MONITORING / "grafana.json").read_text())
    yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])
    yield from (one["expr"] for one in rules())


def known() -> set[str]:
    """The names of all samples that the gateway may send."""
    now = datetime.now(UTC)
    target = OutboxTarget(name="webhook", registered_at=now)
    families = [
        *metrics._describe_events([SystemOverview("prince", last_success=now)], now),
        *metrics._describe_outbox([Backlog(target, 0, None)], now),
        metrics._describe_requests([]),
    ]
    histogram = {f"plateway_request_duration_seconds_{end}" for end in ("bucket", "count", "sum")}
    return {family.name for family in families} | histogram | OWN


def test_every_metric_exists() -> None:
    """A panel or a rule about a metric that is called otherwise would show nothing, and never alert."""
    for query in queries():
        assert set(NAME.findall(query)) <= known(), query


def test_every_state_exists() -> None:
    """Rules select states by their names."""
    for query in queries():
        for states in re.findall(r'state=~"([^"]+)"', query):
            assert set(states.split("|")) <= set(STATES)


def test_rules_say_what_to_do() -> None:
    """Each has a severity, a summary and a description."""
    for one in rules():
        assert one["labels"]["severity"] in {"warning", "critical"}
        assert one["annotations"].keys() == {"summary", "description"}
