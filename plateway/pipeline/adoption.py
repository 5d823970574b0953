"""Take in one object that nobody recorded, on its own word: every byte is read, what it says is ``testimony``'s."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from plateway.errors import Conflict, Refused
from plateway.ledger import Ledger
from plateway.pipeline.line import Line
from plateway.pipeline.testimony import Bench, read
from plateway.records import Event, Export
from plateway.store import Stat, object_metadata


def adopt(line: Line, key: str, ledger: Ledger | None, *, bench: Bench, now: datetime) -> Export:
    """Record an object's event and export, with the evidence of this read-back; ``ledger`` is who has the key, if any.

    Raises:
        Refused: it is another site's, or says neither whose it is nor belongs to an event that is known here.
        Damaged: it is no sound bundle. Rejected: it is no event of ours. Conflict: it is another event's.
        NotFound, Unavailable: it went, or was replaced while it was read.
    """
    site = site_of(line.store.stat(key))
    if site is None and ledger is None:
        raise Refused(f"{key}: does not say which site it is of, and its event is not known here")
    if site not in {None, line.places.site}:
        raise Refused(f"{key}: belongs to site {site}")
    found = read(line, key, bench=bench, now=now)
    if ledger is not None:
        _same(ledger.event, found.event)
    line.catalog.adopt(found.event if ledger is None else ledger.event, found.export, now=now)
    return found.export


def site_of(found: Stat | None) -> UUID | None:
    """Return which site an object says that it is of; None where it does not say."""
    return None if found is None else object_metadata.read(found.metadata).site


def _same(known: Event, said: Event) -> None:
    """Let an event have only an object that says it is its own."""
    if (known.id, known.revision, known.digest) != (said.id, said.revision, said.digest):
        raise Conflict(f"{said.key} says that it is of {said.id}, revision {said.revision}, announced as {said.digest}")
