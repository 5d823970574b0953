"""One event told as a history: what happened, when, and how that is known; and where its bytes are now."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from plateway.catalog import Ledger
from plateway.pipeline.reports import spoken_size
from plateway.records import ArchiveLocation, Event, Export, Purge

EVIDENCE = {
    "read-back": "every byte was read back and is as it was sent",
    "etag": "size and checksum in the bucket are those of the bytes that were sent",
    "checksum": "tape tells the same SHA-256 as was sent",
    "size": "tape tells a bundle of the same name and size",
    "name": "tape tells a bundle of the same name",
}
PLACES = {"raw": "raw images", "staging": "staged copy", "bucket": "bucket copy"}


class Moment(NamedTuple):
    """Something that happened."""

    at: datetime
    what: str
    how: str = ""  # the evidence for it
    facts: tuple[tuple[str, str], ...] = ()  # to be copied: keys, paths, checksums
    tone: str = ""  # good | bad


class Place(NamedTuple):
    """One of the three places where an event can be."""

    name: str
    there: str  # here | proven | gone | none | bad
    told: str
    facts: tuple[tuple[str, str], ...] = ()


def moments(ledger: Ledger) -> list[Moment]:
    """Tell what happened, in its order."""
    told = [*_arrived(ledger.event), *_held_up(ledger)]
    if ledger.export is not None:
        told += _exported(ledger.export)
    for archive in ledger.archives:
        told += _archived(archive)
    for purge in ledger.purges:
        told += _purged(purge)
    return sorted(told, key=lambda moment: moment.at)


def places(ledger: Ledger, *, present: bool) -> list[Place]:
    """Tell where it is: on the bench, in the bucket, on tape. ``present``: the raw images were seen just now."""
    return [_bench(ledger, present=present), _bucket(ledger), _tape(ledger)]


def _arrived(event: Event) -> Iterator[Moment]:
    images = f"{event.image_count:,} image{'s' if event.image_count != 1 else ''}"
    yield Moment(event.timestamp, "Imaged", f"{event.system} took {images}")
    yield Moment(event.announced_at, "Announced", "the instrument wrote its event file", (("event file", event.file),))
    yield Moment(event.first_seen, "Seen", "the announcement was read and is sound")
    if event.sealed_at is not None:
        yield Moment(event.sealed_at, "Complete", f"all {images} are there and have stopped changing")
    if event.staged_at is not None:
        yield Moment(event.staged_at, "Staged", "a verified copy lies beside the instrument's disk")


def _held_up(ledger: Ledger) -> Iterator[Moment]:
    if ledger.quarantine is not None:
        yield Moment(ledger.quarantine.first_seen, "Put in quarantine", ledger.quarantine.reason, tone="bad")
    for setback in ledger.setbacks:
        tries = f"{setback.attempt} attempt{'s' if setback.attempt != 1 else ''}"
        again = f"next try {setback.next_at:%-d %b %Y, %H:%M}"
        yield Moment(
            setback.at, f"{setback.verb.capitalize()} failed", f"{setback.reason} ({tries}, {again})", tone="bad"
        )


def _exported(export: Export) -> Iterator[Moment]:
    sent = f"{export.member_count:,} files in one bundle of {spoken_size(export.size)}"
    facts = (("key", export.key), ("SHA-256", export.sha256))
    yield Moment(export.uploaded_at, "Sent to the bucket", sent, facts)
    if export.evidence is not None and export.evidence_at is not None:
        yield Moment(export.evidence_at, "Verified", _spoken(export.evidence), tone="good")
    if export.read_back_at is not None and export.read_back_at != export.evidence_at:
        yield Moment(export.read_back_at, "Read back", EVIDENCE["read-back"], tone="good")
    if export.damage is not None and export.damaged_at is not None:
        yield Moment(export.damaged_at, "Found damaged", export.damage, tone="bad")


def _archived(archive: ArchiveLocation) -> Iterator[Moment]:
    facts = (("archive", archive.path), ("member", archive.member), ("job", archive.job_id))
    yield Moment(
        archive.reported_at, "On tape", _spoken(archive.evidence), tuple(one for one in facts if one[1]), "good"
    )
    if archive.read_at is not None:
        yield Moment(archive.read_at, "Read from tape", "the bytes there are those that were sent", tone="good")


def _purged(purge: Purge) -> Iterator[Moment]:
    place = PLACES[purge.place]
    proof = f"proven safe before: {purge.proof['evidence']}" if isinstance(purge.proof.get("evidence"), str) else ""
    if purge.trashed_at is not None and purge.place != "bucket":
        yield Moment(purge.trashed_at, f"{place.capitalize()} moved aside", proof)
    if purge.gone_at is not None:
        yield Moment(purge.gone_at, f"{place.capitalize()} removed", proof)
    if purge.restored_at is not None:
        yield Moment(purge.restored_at, f"{place.capitalize()} kept after all", purge.reason or "")


def _bench(ledger: Ledger, *, present: bool) -> Place:
    event, purge = ledger.event, ledger.purge("raw")
    facts = (("system", event.system), ("path", event.path))
    if purge is not None and purge.gone_at is not None:
        return Place("Bench", "gone", f"removed {purge.gone_at:%-d %b %Y}, after proof of a safe copy", facts)
    if purge is not None and purge.trashed_at is not None:
        return Place("Bench", "gone", f"moved aside {purge.trashed_at:%-d %b %Y, %H:%M}", facts)
    if present:
        return Place("Bench", "here", "the raw images are on the instrument's disk", facts)
    return Place("Bench", "none", "the raw images cannot be seen from here", facts)


def _bucket(ledger: Ledger) -> Place:
    export = ledger.export
    if export is None:
        return Place("Bucket", "none", "not sent yet")
    facts = (("bucket", export.bucket), ("key", export.key))
    if export.damage is not None:
        return Place("Bucket", "bad", export.damage, facts)
    if ledger.expired:
        return Place("Bucket", "gone", "expired: tape has it", facts)
    if export.evidence is None:
        return Place("Bucket", "here", f"{spoken_size(export.size)}, not verified yet", facts)
    return Place("Bucket", "proven", f"{spoken_size(export.size)}, verified", facts)


def _tape(ledger: Ledger) -> Place:
    if not ledger.archives:
        return Place("Tape", "none", "tape has not told of it")
    facts = tuple(
        (name, value)
        for archive in ledger.archives
        for name, value in (("archive", archive.path), ("member", archive.member))
    )
    times = f"in {len(ledger.archives)} archives" if len(ledger.archives) > 1 else "in one archive"
    read = any(archive.read_at for archive in ledger.archives)
    return Place("Tape", "proven", f"{times}{', read from there and the same' if read else ''}", facts)


def _spoken(evidence: str) -> str:
    return EVIDENCE.get(evidence, f"{evidence} in the bucket is that of the bytes that were sent")
