"""What interrupted work left behind: in the trash, in staging, and as open uploads."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from plateway import folder
from plateway.bench import TRASH
from plateway.errors import NotFound, Rejected
from plateway.events import Ref
from plateway.findings import Finding, in_staging, in_trash, open_uploads
from plateway.instruments import Instrument
from plateway.keys import MARKER_FILE
from plateway.ledger import Ledger
from plateway.pipeline.context import Site
from plateway.pipeline.reconcile.survey import CHUNK, Comparison, chunks
from plateway.store import Upload

# how names end of what a copy into staging leaves when it is interrupted, and of what a restore works on in the trash
UNFINISHED = re.compile(r"(\.\d+)?\.part|\.old|\.back")


def find_leftovers(site: Site, instrument: Instrument, place: str, root: Path, *, now: datetime) -> Iterator[Finding]:
    """Judge the entries of a system's trash and staging."""
    for some in chunks(_list_names(root, TRASH)):
        for name, ledger in _find_events(site, some):
            if not _holds_files(root, f"{TRASH}/{name}"):
                continue
            home = ledger is not None and place == "raw" and folder.exists(root, ledger.event.path)
            found = in_trash(instrument.name, name, ledger, place=place, home=home, now=now)
            if found is not None:
                yield found
    if place == "staging":
        for some in chunks(_list_names(root)):
            for name, ledger in _find_events(site, some):
                stray = in_staging(instrument.name, name, ledger, now=now)
                if stray is not None and name != TRASH:
                    yield stray


def find_uploads(comparison: Comparison) -> Iterator[tuple[Upload, Finding]]:
    """Find the abandoned uploads of our own exports in the bucket that is compared."""
    site = comparison.site
    uploads = iter(site.store.uploads())
    while some := list(itertools.islice(uploads, CHUNK)):
        known = {key: one for key, one in comparison.ledgers(sorted({upload.key for upload in some})) if one}
        yield from open_uploads(some, known, now=comparison.now, age=site.lease)


def _find_events(site: Site, names: Sequence[str]) -> Iterator[tuple[str, Ledger | None]]:
    """Find the event of each name, None where it names none."""
    refs = {name: _parse_ref(name) for name in names}
    known = {one.ref: one for one in site.catalog.ledgers(refs=[ref for ref in refs.values() if ref])}
    yield from ((name, known.get(ref) if ref else None) for name, ref in refs.items())


def _parse_ref(name: str) -> Ref | None:
    """Return the event whose copy or trash has this name."""
    try:
        id_, revision = Ref.parse(UNFINISHED.sub("", name))
    except NotFound:
        return None
    return Ref(id_, revision or 1)


def _list_names(root: Path, path: str = "") -> list[str]:
    """List a directory, empty if it is missing."""
    if path:
        if not folder.exists(root, path):
            return []
        with folder.enter(root, path) as place:
            return sorted(entry.name for entry in place.entries() if entry.name != MARKER_FILE)
    if not root.exists():
        return []
    with folder.translate_errors(root.name), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.name != MARKER_FILE)


def _holds_files(root: Path, path: str) -> bool:
    """Return whether a directory has anything but directories in it."""
    try:
        with folder.enter(root, path) as place:
            return bool(place.files())
    except Rejected:
        return True
