"""The site as configured in the Prefect UI: blocks override the settings, and every run reads them again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.client.orchestration import get_client

from blocks.bucket import Bucket
from blocks.instrument import Instrument
from plateway import pipeline, settings
from plateway.archive import Inbox, Poll
from plateway.pipeline import Site
from plateway.settings import MAIN, Settings


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Site, Settings]]:
    """Open the site for one run. The settings replace a missing block."""
    known = settings.load()
    buckets, instruments = await asyncio.gather(load_buckets(), load_instruments())
    site = await asyncio.to_thread(put_together, known, buckets, instruments)
    try:
        yield site, known
    finally:
        await asyncio.to_thread(site.close)


async def load_buckets() -> dict[str, Bucket]:
    """Read every Bucket block, with its credentials, by name."""
    async with get_client() as client:
        documents = await client.read_block_documents_by_type(Bucket.get_block_type_slug())
    return {str(document.name): Bucket._from_block_document(document) for document in documents}


async def load_instruments() -> list[Instrument]:
    """Read every Instrument block."""
    async with get_client() as client:
        documents = await client.read_block_documents_by_type(Instrument.get_block_type_slug())
    return [Instrument(**document.data) for document in documents]


def put_together(known: Settings, buckets: dict[str, Bucket], instruments: list[Instrument]) -> Site:
    """Open the site with the values of these blocks."""
    values = {instrument.system: instrument.value(known.policy(instrument.system)) for instrument in instruments}
    places = {name: bucket.value() for name, bucket in buckets.items()}
    return pipeline.open_site(known, buckets=places, instruments=values)


async def doors(known: Settings) -> tuple[Inbox | None, Poll | None]:
    """Return the sources of archive manifests: a directory or bucket, and a server."""
    bucket = (await load_buckets()).get(MAIN)
    s3 = bucket.value().endpoint if bucket else known.endpoint
    inbox = Inbox(known.archive_inbox, s3) if known.archive_inbox else None
    return inbox, Poll(known.archive_url, known.archive_token) if known.archive_url else None
