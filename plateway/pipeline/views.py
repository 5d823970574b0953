"""What is told of events, and of what was done to them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from plateway import folder, wire
from plateway.catalog import Ledger
from plateway.errors import PlatewayError
from plateway.pipeline.copies import contents
from plateway.pipeline.line import Line
from plateway.records import Event


def status(line: Line, ledger: Ledger) -> wire.EventStatus:
    """Tell where one event stands."""
    return wire.EventStatus(**_told(line, ledger))


def detail(line: Line, ledger: Ledger) -> wire.EventDetail:
    """Tell all that is known of one event, with the manifest as it lies in the first copy that can be read."""
    manifest, error = None, None
    if ledger.export is not None:
        try:
            manifest = [wire.ManifestFile(**asdict(member)) for member in contents(line, ledger).members]
        except PlatewayError as problem:
            error = str(problem)
    rows = {
        "event": ledger.event.model_dump(mode="json"),
        "export": ledger.export and ledger.export.model_dump(mode="json"),
        "archives": [row.model_dump(mode="json") for row in ledger.archives],
        "purges": [row.model_dump(mode="json") for row in ledger.purges],
        "quarantine": ledger.quarantine and ledger.quarantine.model_dump(mode="json", exclude={"content"}),
        "setbacks": [row.model_dump(mode="json") for row in ledger.setbacks],
        "lease": ledger.lease and ledger.lease.model_dump(mode="json"),
    }
    return wire.EventDetail(**_told(line, ledger), manifest=manifest, manifest_error=error, ledger=rows)


def _told(line: Line, ledger: Ledger) -> dict[str, Any]:
    event, export = ledger.event, ledger.export
    stands = ledger.state(line.catalog.now())
    verified = export.evidence_at if export else None
    return {
        "id": event.id,
        "revision": event.revision,
        "system": event.system,
        "kind": event.kind,
        "experiment": event.experiment,
        "plate": event.plate,
        "timestamp": event.timestamp,
        "state": stands.name,
        "reasons": list(stands.reasons),
        "conflict": ledger.conflict,
        "bucket": export.bucket if export else None,
        "key": event.key,
        "size": export.size if export else None,
        "sha256": export.sha256 if export else None,
        "evidence": export.evidence if export else None,
        "announced_at": event.announced_at,
        "verified_at": verified,
        "seconds": (verified - event.announced_at).total_seconds() if verified else None,
        "raw_present": _present(line, event),
    }


def _present(line: Line, event: Event) -> bool:
    try:
        return folder.exists(line.instrument(event.system).root, event.path)
    except PlatewayError:
        return False
