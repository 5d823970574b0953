"""Fixtures for pytest: ``pytest_plugins = ["plateway.testing"]`` gives a bucket of its own to each test that asks.

They are on the endpoint that ``AWS_ENDPOINT_URL`` names. Where it names none, a real S3 server is started on loopback,
once a run. Another one is given by a fixture of one's own that is called ``s3_endpoint``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from plateway import settings
from plateway.endpoint import Endpoint
from plateway.errors import PlatewayError
from plateway.local import seaweed
from plateway.store.admin import Buckets, sweep, temporary

NAME = "pytest"  # what the names of the buckets begin with
KEPT = timedelta(days=1)  # what a killed run has left


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Where S3 is, and who asks."""

    known = settings.load().endpoint
    if known.url:
        yield known
        return
    with seaweed.serve(tmp_path_factory.mktemp("s3")) as server:
        secret = SecretStr(server.secret_access_key)
        yield Endpoint(url=server.url, access_key_id=server.access_key_id, secret_access_key=secret)


@pytest.fixture(scope="session")
def s3_buckets(s3_endpoint: Endpoint) -> Buckets:
    """The buckets of the endpoint; those that runs which were killed have left are swept."""
    buckets = Buckets(s3_endpoint)
    with suppress(PlatewayError):  # where buckets may not be listed
        sweep(buckets, NAME, before=datetime.now(UTC) - KEPT)
    return buckets


@pytest.fixture
def s3_bucket(s3_buckets: Buckets) -> Iterator[str]:
    """The name of a bucket that was made for this test, and is removed with all that is in it afterwards."""
    with temporary(s3_buckets, NAME, keep=None) as bucket:
        yield bucket
