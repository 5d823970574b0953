"""The site as configured in the Prefect UI: blocks override the settings, and every run reads them again.

A server without our blocks has none that override anything: the settings of the run's environment apply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound

from blocks.bucket import Bucket
from blocks.instrument import Instrument
from plateway import pipeline, settings
from plateway.archive import Inbox, Poll
from plateway.endpoint import endpoint_identity
from plateway.errors import Misconfigured
from plateway.local.project import BUNDLED, ENTERED, PROJECT
from plateway.pipeline import Site
from plateway.pipeline.context import format_place
from plateway.settings import MAIN, Settings

logger = logging.getLogger("plateway.blocks")  # into the log of the run
PATIENCE = 90.0  # seconds that a run waits for a catalogue on PostgreSQL which does not answer


@asynccontextmanager
async def opened(*, run: str = "") -> AsyncIterator[tuple[Site, Settings]]:
    """Open the site for one run: create its home, migrate its catalogue if needed. The settings replace missing blocks.

    ``run`` names the flow run as the owner of its leases, so that they can be released when it has crashed.

    Raises:
        Misconfigured: a setting is wrong, or missing where this run needs it.
        PlatewayError: of an exception group, its first error.
    """
    known = resolve_home(settings.load())
    buckets, instruments = await asyncio.gather(load_buckets(), load_instruments())
    report_differences(known, buckets)
    site = await asyncio.to_thread(put_together, known, buckets, instruments)
    try:
        await asyncio.to_thread(site.catalog.upgrade)
        yield replace(site, owner=f"{site.owner} {run}" if run else site.owner), known
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    finally:
        await asyncio.to_thread(site.close)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group, whose own message would be the number of errors."""
    first = group.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


def resolve_home(known: Settings) -> Settings:
    """Make a relative home absolute: below the project's directory, where commands that run there have it as well.

    Raises:
        Misconfigured: the project is part of an installation, which an upgrade may replace, or a clone for one run.
    """
    if known.home.is_absolute():
        return known
    if BUNDLED.is_dir() or not ENTERED.is_set():
        raise Misconfigured(
            f"PLATEWAY_HOME is {known.home}, which is relative: "
            "set it to an absolute path in the environment of the worker, or in the job variables of the work pool"
        )
    return known.model_copy(update={"home": PROJECT / known.home})


async def load_buckets() -> dict[str, Bucket]:
    """Read every Bucket block, with its credentials, by name."""
    names = [str(document.name) for document in await read_documents(Bucket.get_block_type_slug())]
    blocks = await asyncio.gather(*(Bucket.aload(name) for name in names))
    return dict(zip(names, blocks, strict=True))


async def load_instruments() -> list[Instrument]:
    """Read every Instrument block."""
    return [Instrument(**document.data) for document in await read_documents(Instrument.get_block_type_slug())]


async def read_documents(slug: str) -> list[BlockDocument]:
    """Read the blocks of a type; none where the server does not know the type."""
    async with get_client() as client:
        try:
            await client.read_block_type_by_slug(slug)
        except ObjectNotFound:
            return []
        return await client.read_block_documents_by_type(slug)


def report_differences(known: Settings, buckets: dict[str, Bucket]) -> None:
    """Log which Bucket blocks name another bucket than the settings, which gateway and commands read."""
    for name, one in {MAIN: known.bucket, **known.buckets}.items():
        if (block := buckets.get(name)) is None:
            continue
        here, there = (format_place(endpoint_identity(at.url, at.endpoint), at.url) for at in (one, block.value()))
        if here != there:
            logger.warning(
                "Bucket block %s names %s, and the settings name %s: new exports go to the former; "
                "`plateway config bucket %s` prints the block for buckets.toml",
                *(name, there, here, name),
            )


def put_together(known: Settings, buckets: dict[str, Bucket], instruments: list[Instrument]) -> Site:
    """Open the site with the values of these blocks."""
    values = {instrument.system: instrument.value(known.policy(instrument.system)) for instrument in instruments}
    places = {name: bucket.value() for name, bucket in buckets.items()}
    return pipeline.open_site(known, buckets=places, instruments=values, patience=PATIENCE)


async def doors(known: Settings) -> tuple[Inbox | None, Poll | None]:
    """Return the sources of archive manifests: a directory or bucket, and a server."""
    bucket = (await load_buckets()).get(MAIN)
    s3 = bucket.value().endpoint if bucket else known.endpoint
    inbox = Inbox(known.archive_inbox, s3) if known.archive_inbox else None
    return inbox, Poll(known.archive_url, known.archive_token) if known.archive_url else None
