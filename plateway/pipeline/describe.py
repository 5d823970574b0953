"""Wire models of events and their history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from plateway import folder, wire
from plateway.errors import PlatewayError
from plateway.ledger import Ledger
from plateway.outcome import Incidence
from plateway.pipeline.context import Site
from plateway.pipeline.read import contents
from plateway.records import ArchiveLocation, Event, Export, Incident, LegalHold, Purge


def status(site: Site, ledger: Ledger, *, now: datetime | None = None) -> wire.EventStatus:
    """Return the status of one event; for many, pass ``now``."""
    return wire.EventStatus(**_told(site, ledger, now or site.catalog.now()))


def detail(site: Site, ledger: Ledger) -> wire.EventDetail:
    """Return all that is known of one event, with the manifest of the first readable copy."""
    now, manifest, error = site.catalog.now(), None, None
    if ledger.export is not None:
        try:
            manifest = [wire.ManifestFile(**asdict(member)) for member in contents(site, ledger).members]
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
    return wire.EventDetail(
        **_told(site, ledger, now),
        history=history(site, ledger, now),
        manifest=manifest,
        manifest_error=error,
        ledger=rows,
    )


def history(site: Site, ledger: Ledger, now: datetime) -> list[wire.Moment]:
    """List what happened to an event, in order, and what it waits for; failures stay after they are repaired."""
    told = [moment for incident in site.catalog.incidents(ledger.ref) for moment in _incident(incident)]
    told += [*_came(ledger.event), *(_went(ledger.export) if ledger.export else ())]
    told += [moment for archive in ledger.archives for moment in _archived(archive)]
    told += [moment for purge in ledger.purges for moment in _purged(purge)]
    told += [moment for hold in site.catalog.holds_of(ledger.event) for moment in _held(hold)]
    if ledger.quarantine:
        told.append(_moment("quarantined", ledger.quarantine.first_seen, why=ledger.quarantine.reason))
    done = sorted((one for one in told if one.at is not None), key=lambda one: one.at or now)
    return done + [_moment("waits", None, why=reason) for reason in ledger.state(now).reasons]


def _moment(what: str, at: datetime | None, *, where: str | None = None, why: str | None = None) -> wire.Moment:
    return wire.Moment(what=what, at=at, where=where, why=why)


def _came(event: Event) -> Iterator[wire.Moment]:
    yield _moment("announced", event.announced_at, where=event.path)
    yield _moment("seen", event.first_seen)
    yield _moment("complete", event.sealed_at, why=f"{event.image_count} images")
    yield _moment("staged", event.staged_at)


def _went(export: Export) -> Iterator[wire.Moment]:
    yield _moment("exported", export.uploaded_at, where=export.key)
    yield _moment("verified", export.evidence_at, where=export.key, why=export.evidence)
    yield _moment("read back", export.read_back_at, where=export.key)


def _archived(archive: ArchiveLocation) -> Iterator[wire.Moment]:
    yield _moment("archived", archive.reported_at, where=archive.path, why=archive.evidence)
    yield _moment("read from tape", archive.read_at, where=archive.path)


def _purged(purge: Purge) -> Iterator[wire.Moment]:
    yield _moment("moved aside", purge.trashed_at if purge.place != "bucket" else None, where=purge.place)
    evidence = purge.proof.get("evidence")
    yield _moment("purged", purge.gone_at, where=purge.place, why=evidence and str(evidence))
    yield _moment("restored", purge.restored_at, where=purge.place, why=purge.reason)


def _held(hold: LegalHold) -> Iterator[wire.Moment]:
    until = f", until {hold.until:%Y-%m-%d %H:%M}" if hold.until else ""
    yield wire.Moment(what="held", at=hold.at, where=hold.scope, why=f"{hold.reason}{until}", actor=hold.by)
    if hold.released_at is not None:
        facts = {"at": hold.released_at, "where": hold.scope, "why": hold.release_reason, "actor": hold.released_by}
        yield wire.Moment(what="hold released", **facts)


def _incident(incident: Incident) -> Iterator[wire.Moment]:
    times = f" ({incident.times} times, last {incident.last_at:%Y-%m-%d %H:%M})" if incident.times > 1 else ""
    what = {
        Incidence.DAMAGE: "damaged",
        Incidence.REFUSAL: "refused",
        Incidence.FAILURE: f"{incident.verb} failed",
        Incidence.REPAIR: "repaired",
        Incidence.REQUEST: f"{incident.verb} requested",
    }
    yield wire.Moment(
        what=what[Incidence(incident.kind)],
        at=incident.at,
        where=None,
        why=f"{incident.reason}{times}",
        actor=incident.actor,
    )


def _told(site: Site, ledger: Ledger, now: datetime) -> dict[str, Any]:
    event, export = ledger.event, ledger.export
    stands = ledger.state(now)
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
        "endpoint": export.endpoint if export else None,
        "key": event.key,
        "size": export.size if export else None,
        "sha256": export.sha256 if export else None,
        "evidence": export.evidence if export else None,
        "announced_at": event.announced_at,
        "verified_at": verified,
        "seconds": (verified - event.announced_at).total_seconds() if verified else None,
        "raw_present": _present(site, event),
    }


def _present(site: Site, event: Event) -> bool:
    try:
        return folder.exists(site.instrument(event.system).root, event.path)
    except PlatewayError:
        return False
