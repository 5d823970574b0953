"""Which tests run where and when: what takes minutes begins first, and the flows' tests share one Prefect server."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # ships no types

FLOWS = "tests/flows"  # one worker runs them all, and stops their server afterwards
FIRST = (  # what a worker takes first; everything else follows as it was collected
    FLOWS,
    "tests/faults/test_crashes.py",
    "tests/test_wheel.py",
    "tests/faults/test_s3_faults.py",
    "tests/cli/test_tape.py",
    "tests/e2e",  # a server of its own: begins when that of the flows is up
    "tests/bridges/test_amqp.py",
    "tests/pipeline/test_purge.py",
    "tests/store/test_contract.py",
    "tests/pipeline/test_ingest.py",
    "tests/test_events.py",
    "tests/faults",
    "tests/faults/test_state_machine.py",
    "tests/archive/test_sftp.py",
    "tests/local/test_seaweed.py",
    "tests/catalog/test_tape.py",
    "tests/gateway",
    "tests/client",
)


def rank(nodeid: str) -> int:
    """Return how early a test is to begin."""
    return next((place for place, name in enumerate(FIRST) if nodeid.startswith(name)), len(FIRST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests into the order in which workers take them."""
    items.sort(key=lambda item: rank(item.nodeid))


class Files(LoadFileScheduling):  # type: ignore[misc]  # for the same reason
    """Gives each file to one worker, and all files of the flows to the same."""

    def _split_scope(self, nodeid: str) -> str:
        return FLOWS if nodeid.startswith(FLOWS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Files:
    """Assign files to workers in the order of collection."""
    config.option.loadscopereorder = False
    return Files(config, log)
