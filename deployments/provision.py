"""Create what Plateway needs on a Prefect server: blocks, work pool, queues, deployments, automations.

Everything may be repeated. Changes that an operator made in the UI stay: a block is updated only if it still has the
values that were written from here, deployments are created again only when they changed in the project. The home has
digests of both.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import chdir, suppress
from pathlib import Path

from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from prefect.workers.base import BaseWorker
from pydantic import HttpUrl, SecretStr

from blocks.bucket import Bucket
from blocks.instrument import Instrument
from deployments import automations, prefect_private, schedules, worker  # noqa: F401  registers the type resident
from plateway import bench, log_records, settings
from plateway.errors import Misconfigured, Unavailable
from plateway.settings import MAIN, Settings

PROJECT = Path(__file__).resolve().parents[1]
NAME = "plateway"  # of every deployment
KEPT = "provision.json"  # in the home
QUEUES = {
    "discover": (1, 1),
    "export": (2, None),
    "restore": (2, None),
    "purge": (3, 1),
    "reconcile": (3, 1),
    "verify": (4, 1),
    "archive": (4, 1),
    "expire": (4, 1),
    "report": (5, 1),
    "selftest": (5, 1),
}  # priority, runs at once
FLOWS = tuple(QUEUES)  # each has a queue of its own
LIMITS = {"plateway-bucket": 64, "plateway-tape": 2}  # batches or events in transfer at once, on all machines
POOLS = {
    "resident": "Runs the flows of Plateway inside one long-lived worker: about a second from event to flow code.",
    "process": "Runs each flow of Plateway in a process of its own.",
}
PATIENCE = 300.0  # seconds for the server to come up
logger = get_logger("plateway.provision")


class ProvisionedDigests:
    """Digests of what was written to the server from this home, by name."""

    def __init__(self, home: Path) -> None:
        self._file = home / KEPT
        self._digests: dict[str, str] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def holds(self, name: str, digest: str) -> bool:
        """Return whether this was the last value written."""
        return self._digests.get(name) == digest

    def record(self, name: str, digest: str) -> None:
        """Record what was written, right after it was."""
        self._digests[name] = digest
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".part")
        draft.write_text(json.dumps(self._digests, indent=1, sort_keys=True))
        draft.chmod(0o600)
        draft.replace(self._file)


async def provision(known: Settings) -> None:
    """Create whatever is missing, and update what changed.

    Raises:
        Unavailable: the server does not answer.
        Misconfigured: the work pool does not exist, and Prefect has no worker type of that name.
    """
    memory = ProvisionedDigests(known.home.absolute())
    async with get_client() as client:
        await wait_for_server(client)
        await block_types(client, memory, known.gateway_link)
        await buckets(client, known, memory)
        await instruments(client, known, memory)
        await pool(client, known.work_pool)
        await deploy(client, known, memory)
        for name in await automations.create_missing(client, known.notify):
            logger.info("automation %s: created or given a notification", name)
        await limits(client)


async def wait_for_server(client: PrefectClient) -> None:
    """Wait until the server answers.

    Raises:
        Unavailable: it does not within 300 s.
    """
    deadline = time.monotonic() + PATIENCE
    while (error := await client.api_healthcheck()) is not None:
        if time.monotonic() > deadline:
            raise Unavailable(f"the Prefect server does not answer after {PATIENCE:.0f} s: {error}")
        await asyncio.sleep(0.2)


async def block_types(client: PrefectClient, memory: ProvisionedDigests, gateway: str | None) -> None:
    """Register the block types if they are missing or changed; Prefect needs a second for each.

    Their logo and documentation are served by the gateway: laboratories may have no internet. Without one known, none.
    """
    sources = [file.read_bytes() for file in sorted((PROJECT / "blocks").glob("*.py"))]
    wanted = digest(b"".join([*sources, str(gateway).encode()]))
    for kind in (Bucket, Instrument):
        slug = kind.get_block_type_slug()
        try:
            await client.read_block_type_by_slug(slug)
        except ObjectNotFound:
            memory.record(f"type {slug}", "")
        if not memory.holds(f"type {slug}", wanted):
            kind._logo_url = HttpUrl(f"{gateway}/static/plateway.svg") if gateway else None
            kind._documentation_url = HttpUrl(f"{gateway}/help#{slug}") if gateway else None
            await kind.aregister_type_and_schema(client=client)
            memory.record(f"type {slug}", wanted)


async def buckets(client: PrefectClient, known: Settings, memory: ProvisionedDigests) -> None:
    """Write a Bucket block for each bucket of the site, and a block for its credentials."""
    for name, one in {MAIN: known.bucket, **known.buckets}.items():
        block = Bucket.of(one)
        await put(client, block.credentials, name, memory)
        await put(client, block, name, memory)


async def instruments(client: PrefectClient, known: Settings, memory: ProvisionedDigests) -> None:
    """Write an Instrument block for each system on the bench."""
    for system in bench.list_systems(known.root):
        await put(client, Instrument.of(known.instrument(system)), document(system), memory)


async def put(client: PrefectClient, block: Block, name: str, memory: ProvisionedDigests) -> None:
    """Write a block if it is missing, or still has the values written from here and those have changed."""
    key = f"block {block.get_block_type_slug()}/{name}"
    wanted = digest(json.dumps(dict(block), default=to_json, sort_keys=True).encode())
    present = await digest_block(client, block, name)
    if present is not None and (memory.holds(f"{key} of", wanted) or not memory.holds(key, present)):
        if not memory.holds(key, present):
            logger.warning("%s was edited in Prefect: the settings do not replace it", key)
        return
    await block.asave(name, overwrite=True, client=client)
    memory.record(key, str(await digest_block(client, block, name)))
    memory.record(f"{key} of", wanted)
    logger.info("%s: %s", key, "created" if present is None else "updated")


async def digest_block(client: PrefectClient, block: Block, name: str) -> str | None:
    """Return a digest of the values on the server, with secrets and without inner blocks; None if there is no block."""
    try:
        document = await client.read_block_document_by_name(name, block.get_block_type_slug())
    except ObjectNotFound:
        return None
    block._block_document_id = document.id  # so that a block around it refers to it
    own = {field: value for field, value in document.data.items() if field not in document.block_document_references}
    return digest(json.dumps(own, sort_keys=True).encode())


def to_json(value: object) -> object:
    """Convert a value of a block for JSON."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return type(value).__name__ if isinstance(value, Block) else str(value)


def document(system: str) -> str:
    """Return the block name of a system: lower case letters, digits and dashes only."""
    plain = "".join(one if one.isascii() and (one.islower() or one.isdigit()) else "-" for one in system.lower())
    return plain if plain == system else f"{plain}-{digest(system.encode())[:6]}"


async def pool(client: PrefectClient, name: str) -> None:
    """Create the work pool and its queues.

    Raises:
        Misconfigured: there is no such pool, and no worker type of that name.
    """
    try:
        await client.read_work_pool(name)
    except ObjectNotFound:
        kind = BaseWorker.get_worker_class_from_type(name)
        if kind is None:
            raise Misconfigured(f"there is no work pool {name!r}, and no worker type of that name") from None
        template = kind.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):  # a worker that starts meanwhile also creates it
            about = POOLS.get(name, "Runs the flows of Plateway.")
            wanted = WorkPoolCreate(name=name, description=about, type=name, base_job_template=template)
            await client.create_work_pool(wanted)
            logger.info("work pool %s: created", name)
    present = {queue.name for queue in await client.read_work_queues(work_pool_name=name)}
    for queue, (priority, limit) in QUEUES.items():
        if queue not in present:
            await client.create_work_queue(queue, work_pool_name=name, priority=priority, concurrency_limit=limit)


async def limits(client: PrefectClient) -> None:
    """Create the global concurrency limits that are missing."""
    for name, limit in LIMITS.items():
        try:
            await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit))
            logger.info("concurrency limit %s: created", name)


async def deploy(client: PrefectClient, known: Settings, memory: ProvisionedDigests) -> None:
    """Deploy prefect.yaml if it or a flow changed since the last time, or a deployment is missing.

    Prefect recreates the triggers with each deployment, so a needless one would lose what was edited.
    """
    sources = [PROJECT / "prefect.yaml", *sorted((PROJECT / "flows").glob("*.py"))]
    wanted = digest(b"\0".join([known.work_pool.encode(), bytes(PROJECT), *(file.read_bytes() for file in sources)]))
    configs, actions = prefect_private.load_project(PROJECT / "prefect.yaml", pool=known.work_pool)
    if memory.holds("deployments", wanted) and await are_deployed(client):
        for name in await schedules.restore_parameters(client, configs):
            logger.info("schedule %s: parameters restored", name)
        return
    with chdir(PROJECT):
        await prefect_private.deploy_project(configs, actions)
    memory.record("deployments", wanted)
    logger.info("deployments: created from prefect.yaml")


async def are_deployed(client: PrefectClient) -> bool:
    """Return whether all deployments exist."""
    try:
        for flow in FLOWS:
            await client.read_deployment_by_name(f"{flow}/{NAME}")
    except ObjectNotFound:
        return False
    return True


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Provision the server that PREFECT_API_URL names."""
    setup_logging()
    log_records.adjust_handlers(settings.load_logs())
    asyncio.run(provision(settings.load()))


if __name__ == "__main__":
    main()
