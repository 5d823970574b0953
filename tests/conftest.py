"""What the tests share: one real S3 server a run, a fresh bucket for each test that asks."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from botocore.session import get_session  # type: ignore[import-untyped]  # botocore ships no types
from pydantic import SecretStr
from typer import testing
from typer.main import get_command

from plateway.endpoint import Endpoint
from plateway.local import seaweed
from tests.soak import SOAK

pytest_plugins = ["plateway.testing", "tests.databases", "tests.order"]
vars(testing)["_get_command"] = cache(get_command)  # it takes longer than most commands
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what tests start a hundred times need not be compiled each time


def pytest_xdist_auto_num_workers() -> int:
    """Start one worker more than there are cores: many tests wait for servers."""
    return (os.cpu_count() or 1) + 1


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is in the soak only."""
    if (marker := item.get_closest_marker("soak")) is not None and not SOAK:
        pytest.skip(f"{marker.args[0]}: PLATEWAY_SOAK=1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write in one line what was skipped because a server or a program is missing, and how to install it."""
    skipped = [str(one.longrepr[2]).removeprefix("Skipped: ") for one in terminalreporter.stats.get("skipped", [])]
    missing = Counter(reason for reason in skipped if "PLATEWAY_SOAK" not in reason)
    if missing:
        why = "; ".join(f"{count} because {reason}" for reason, count in sorted(missing.items()))
        terminalreporter.write_line(f"Skipped {missing.total()}: {why}. See scripts/install and scripts/peers.")


def pytest_collection_finish() -> None:
    """Keep what exists now out of garbage collection: all that was imported and collected stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.Server]:
    """A SeaweedFS of this run's own."""
    with seaweed.serve(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def endpoint(server: seaweed.Server) -> Endpoint:
    """Where the run's S3 is, with its administrator's key."""
    return Endpoint(
        url=server.url, access_key_id=server.access_key_id, secret_access_key=SecretStr(server.secret_access_key)
    )


@pytest.fixture(scope="session")
def client(endpoint: Endpoint) -> Any:
    """A client of the run's S3 that is not ours."""
    assert endpoint.secret_access_key is not None
    return get_session().create_client(
        "s3",
        endpoint_url=endpoint.url,
        region_name="us-east-1",
        aws_access_key_id=endpoint.access_key_id,
        aws_secret_access_key=endpoint.secret_access_key.get_secret_value(),
    )


@pytest.fixture(scope="session")
def s3_endpoint(endpoint: Endpoint) -> Endpoint:
    """Where the plugin that Plateway has for others makes buckets here."""
    return endpoint


@pytest.fixture
def bucket(s3_bucket: str) -> str:
    """The name of a bucket that was made for this test; it goes afterwards, a SeaweedFS has room for some hundred."""
    return s3_bucket
