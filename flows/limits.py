"""Global concurrency limits of Prefect: how many transfers all machines together have at bucket and tape.

Provisioning creates them; an operator changes or deletes them in the UI. One that is missing limits nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import concurrency
from prefect.exceptions import ObjectNotFound

BUCKET, TAPE = "plateway-bucket", "plateway-tape"
REMEMBER = 60.0  # seconds for which it is known whether there is a limit

_known: dict[str, tuple[float, bool]] = {}


@asynccontextmanager
async def slot(name: str) -> AsyncIterator[None]:
    """Hold a slot of a limit; wait until one is free."""
    if await is_limited(name):
        async with concurrency(name, occupy=1, raise_on_lease_renewal_failure=False):
            yield
    else:
        yield


async def is_limited(name: str) -> bool:
    """Return whether there is such a limit."""
    at, found = _known.get(name, (0.0, False))
    if not at or time.monotonic() - at > REMEMBER:
        async with get_client() as client:
            try:
                found = (await client.read_global_concurrency_limit_by_name(name)).active
            except ObjectNotFound:
                found = False
        _known[name] = time.monotonic(), found
    return found
