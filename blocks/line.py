"""The line as configured in the Prefect UI: the blocks go before the settings, and are read anew by every run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from blocks.bucket import Bucket, endpoint
from blocks.instrument import Instrument
from plateway import pipeline, settings
from plateway.archive import Inbox, Poll, open_archive
from plateway.pipeline import Line
from plateway.settings import Settings

NAME = "plateway"  # of the Bucket block


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Line, Settings]]:
    """Open the line for one run. A block that is not there leaves its part to the settings."""
    known = settings.load()
    bucket, instruments = await asyncio.gather(load_bucket(), load_instruments())
    line = await asyncio.to_thread(put_together, known, bucket, instruments)
    try:
        yield line, known
    finally:
        await asyncio.to_thread(line.close)


async def load_bucket() -> Bucket | None:
    """Read the Bucket block, with its credentials."""
    async with get_client() as client:
        try:
            document = await client.read_block_document_by_name(NAME, Bucket.get_block_type_slug())
        except ObjectNotFound:
            return None
    return Bucket._from_block_document(document)


async def load_instruments() -> list[Instrument]:
    """Read every Instrument block."""
    async with get_client() as client:
        documents = await client.read_block_documents_by_type(Instrument.get_block_type_slug())
    return [Instrument(**document.data) for document in documents]


def put_together(known: Settings, bucket: Bucket | None, instruments: list[Instrument]) -> Line:
    """Turn blocks into library values."""
    values = {instrument.system: instrument.value() for instrument in instruments}
    line = pipeline.open_line(known, store=bucket.store() if bucket else None, instruments=values)
    if bucket is None or known.archive_target is None:
        return line
    return replace(line, archive=open_archive(known.archive_target, endpoint(bucket)))


async def doors(known: Settings) -> tuple[Inbox | None, Poll | None]:
    """Give the doors that archive manifests are fetched from: a directory anywhere, and a server."""
    bucket = await load_bucket()
    s3 = endpoint(bucket) if bucket else pipeline.endpoint(known)
    inbox = Inbox(known.archive_inbox, s3) if known.archive_inbox else None
    return inbox, Poll(known.archive_url, known.archive_token) if known.archive_url else None
