"""Take in one object that nobody recorded, on its own word: every byte is read, what it says is ``testimony``'s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from plateway import bundle
from plateway.catalog import Ledger
from plateway.errors import Conflict, Damaged, NotFound, Unavailable
from plateway.pipeline import labels
from plateway.pipeline.line import Line
from plateway.pipeline.testimony import SIDECARS, Bench, Found, testify
from plateway.records import Event, Export


def adopt(line: Line, key: str, ledger: Ledger | None, *, bench: Bench, now: datetime) -> Export:
    """Record an object's event and export, with the evidence of this read-back; ``ledger`` is who has the key, if any.

    Raises:
        Damaged: it is no sound bundle. Rejected: it is no event of ours. Conflict: it is another event's.
        NotFound, Unavailable: it went, or was replaced while it was read.
    """
    found = _read(line, key, bench=bench, now=now)
    if ledger is not None:
        _same(ledger.event, found.event)
    line.catalog.adopt(found.event if ledger is None else ledger.event, found.export, now=now)
    return found.export


def _same(known: Event, said: Event) -> None:
    """Let an event have only an object that says it is its own."""
    if (known.id, known.revision, known.digest) != (said.id, said.revision, said.digest):
        raise Conflict(f"{said.key} says that it is of {said.id}, revision {said.revision}, announced as {said.digest}")


def _read(line: Line, key: str, *, bench: Bench, now: datetime) -> Found:
    """Read an object whole; it must be the same at the end as at the beginning."""
    before = line.store.stat(key)
    if before is None:
        raise NotFound(f"{key}: no such object")
    parts = bundle.Parts(bundle.part_size(before.size))
    try:
        walked = bundle.walk(_told(line.store.open(key), parts.update), keep=SIDECARS)
    except Damaged as error:
        raise Damaged(f"{key}: {error}") from error
    after = line.store.stat(key)
    if after is None or (after.size, after.etag) != (walked.size, before.etag):
        raise Unavailable(f"{key} was replaced while it was read")
    sent, label = min(before.modified, now), labels.read(before.metadata)
    found = testify(line, walked, label, key=key, etag=parts.etag(), at=sent, bench=bench)
    found.export.evidence, found.export.seen_etag = "read-back", after.etag
    found.export.evidence_at = found.export.read_back_at = now
    return found


def _told(chunks: Iterator[bytes], tell: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        tell(chunk)
        yield chunk
