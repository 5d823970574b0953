"""Follow an endpoint that moved: exports of a bucket that the settings do not name, found in one of the same name.

A name proves nothing. Each object is inspected where it should be now; only a proven export is recorded there, and all
others stay where they were recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import islice

from plateway.errors import Damaged, PlatewayError, Transient
from plateway.ledger import Ledger
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.verify import Inspection, as_seen, difference, inspect_object
from plateway.records import Export
from plateway.store import Store

BATCH = 100  # exports inspected together; if none of the first is there, it is another bucket


def relocate(site: Site, *, dry_run: bool = False, workers: int = 4) -> list[Outcome]:
    """Find exports of a bucket of that name elsewhere in the bucket that the site is bound to.

    The proof is size and ETag, as they were sent, or as they were seen when the export was verified; or else every
    byte is read back. Evidence dates from now. May be repeated. A dry run records nothing.
    """
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(workers) as pool:
        for ledgers in _strayed(site):
            outcomes += pool.map(partial(_guarded, site, dry_run=dry_run), ledgers)
            if not any(one.result in {Result.MOVED, Result.WOULD_MOVE} for one in outcomes):
                reason = f"none of the first {len(outcomes)} exports is in {site.place}"
                return [*outcomes, log_outcome(Outcome(None, "", "relocate", Result.STOPPED, reasons=(reason,)))]
    return outcomes


def _strayed(site: Site) -> Iterator[list[Ledger]]:
    """Find the exports that are at no endpoint of the settings, or without a recorded one; without damaged ones."""
    name = site.store.name
    strayed = (
        account.key
        for account in site.catalog.accounts(bucket=name)
        if account.export_bucket == name and account.damage is None and not account.expired
        if account.export_endpoint is None or site.at(account.export_endpoint, name) is None
    )
    while keys := list(islice(strayed, BATCH)):
        yield site.catalog.ledgers(keys=keys)


def _guarded(site: Site, ledger: Ledger, *, dry_run: bool) -> Outcome:
    """Turn a failure into an outcome; the export stays where it was recorded."""
    export = ledger.export
    assert export is not None
    about = partial(Outcome, ledger.ref, ledger.event.system, "relocate", key=export.key, size=export.size)
    try:
        now = site.catalog.now()
        seen, read_back_at = _prove(site.store, export, now)
        if dry_run:
            return about(Result.WOULD_MOVE, reasons=(seen.kind,))
        site.catalog.record_relocation(
            ledger.ref,
            export,
            endpoint=site.endpoint,
            kind=seen.kind,
            etag=seen.stat.etag,
            seen_modified=seen.stat.modified,
            seen_version=seen.stat.version,
            read_back_at=read_back_at,
            at=now,
        )
        return log_outcome(about(Result.MOVED, reasons=(f"{seen.kind}, at {site.endpoint}",)))
    except Damaged as error:
        return about(Result.REFUSED, reasons=(str(error),))
    except PlatewayError as error:
        return about(Result.LATER if isinstance(error, Transient) else Result.FAILED, reasons=(str(error),))


def _prove(store: Store, export: Export, now: datetime) -> tuple[Inspection, datetime | None]:
    """Return the evidence that an object gives, and when all of it was read.

    Raises:
        Damaged: it is not there, or another.
    """
    then, found = as_seen(export), store.stat(export.key)
    if found is not None and export.evidence and (found.size, found.etag) == (export.size, export.seen_etag):
        same = then is not None and not difference(then, found)
        return Inspection(export.evidence if same else "etag", found), export.read_back_at if same else None
    seen = inspect_object(store, export, read_back=False)
    return seen, now if seen.kind == "read-back" else None
