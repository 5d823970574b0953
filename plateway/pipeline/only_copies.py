"""Inspect the copies on tape that are the only ones: that they are there and long enough, at each reconciliation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from plateway.errors import Damage, NotFound, PlatewayError, Transient
from plateway.events import Ref
from plateway.findings import Finding, Kind
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.context import Site
from plateway.pipeline.places import check_archive
from plateway.records import ArchiveLocation, Export

KEPT = 10_000  # findings that are listed


def inspect_only_copies(site: Site) -> tuple[list[Finding], list[Outcome]]:
    """Check existence and size of every only copy, and list those that are damaged, whenever that was found.

    One that is missing or too short is damaged from now on, until it is read again and is good; ``read_archive`` does
    that in rotation. Without an archive in reach only what is known already is listed.
    """
    troubles: list[Outcome] = []
    if next(site.catalog.expired_locations(), None) is None:
        return [], []
    try:
        check_archive(site, fresh=True)
    except PlatewayError as error:
        result = Result.LATER if isinstance(error, Transient | NotFound) else Result.FAILED
        troubles.append(log_outcome(Outcome(None, "", "reconcile", result, reasons=(str(error),))))
    look = site.archive is not None and not troubles
    findings = []
    for path, rows in itertools.groupby(site.catalog.expired_locations(), lambda row: row[0].path):
        try:
            findings += list(_inspect(site, path, rows, look=look))
        except PlatewayError as error:
            troubles.append(log_outcome(Outcome(None, "", "reconcile", Result.LATER, reasons=(f"{path}: {error}",))))
            look = look and not isinstance(error, Transient)
    return findings[:KEPT], troubles


def _inspect(site: Site, path: str, rows: Iterator[tuple[ArchiveLocation, Export]], *, look: bool) -> Iterator[Finding]:
    """Inspect all copies in one archive."""
    seen = site.archive.stat(path) if look and site.archive is not None else None
    for location, export in rows:
        ref = Ref(location.event_id, location.revision)
        damage, reason = (location.damage_kind, location.damage or "")
        if look and damage is None:
            damage, reason = _judge(location, export, seen and seen.size)
            if damage is not None:
                at = site.catalog.now()
                site.catalog.record_tape_damage(ref, path, damage=reason, kind=Damage(damage), at=at)
        if damage is not None:
            system = site.catalog.get(ref).system
            yield Finding(Kind.ONLY_COPY, export.key, f"{damage} in {path}: {reason}", ref=ref, system=system)


def _judge(location: ArchiveLocation, export: Export, size: int | None) -> tuple[Damage | None, str]:
    """Decide by the size of an archive whether a copy in it can be whole."""
    if size is None:
        return Damage.LOST, "no such archive"
    end = (location.offset or 0) + export.size
    if size < max(end, location.seen_size or 0):
        return Damage.CHANGED, f"{size:,} bytes, {max(end, location.seen_size or 0):,} expected"
    return None, ""
