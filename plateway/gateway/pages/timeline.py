"""The history of one event in words, and where its copies are now."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from plateway import wire
from plateway.ledger import Ledger
from plateway.pipeline import Site, describe
from plateway.pipeline.report import spoken_size

EVIDENCE = {
    "read-back": "every byte was read back and is unchanged",
    "etag": "size and checksum in the bucket match the bytes that were sent",
    "checksum": "the archive reports the same SHA-256",
    "size": "the archive reports a bundle of the same name and size",
    "name": "the archive reports a bundle of the same name",
}
COPIES = {"raw": "Raw images", "staging": "Staged copy", "bucket": "Bucket copy"}
WORDS = {
    "announced": ("Announced", "the instrument announced its images"),
    "seen": ("Seen", "the announcement was read and is valid"),
    "complete": ("Complete", "{why} are there and have stopped changing"),
    "staged": ("Staged", "a verified copy is in staging"),
    "exported": ("Sent to the bucket", "every file, and the manifest that lists them"),
    "verified": ("Verified", "{why}"),
    "read back": ("Read back", EVIDENCE["read-back"]),
    "damaged": ("Found damaged", "{why}"),
    "refused": ("Deletion refused", "{why}"),
    "repaired": ("Repaired", "{why}"),
    "archived": ("On tape", "{why}"),
    "read from tape": ("Read from tape", "the bytes there match those that were sent"),
    "moved aside": ("{copy} moved aside", ""),
    "purged": ("{copy} removed", "after proof: {why}"),
    "restored": ("{copy} kept after all", "{why}"),
    "quarantined": ("Put in quarantine", "{why}"),
    "waits": ("Waits", "{why}"),
}
NOW = {"ready": "waits for its export", "exporting": "is being sent to the bucket"}
PLACED = frozenset({"announced", "exported", "archived"})  # have a location; the others repeat it
GOOD = frozenset({"verified", "read back", "archived", "read from tape"})
BAD = frozenset({"damaged", "quarantined"})


class HistoryEntry(NamedTuple):
    """Something that happened, or what the event waits for, in words."""

    at: datetime | None
    what: str
    how: str
    where: str  # to be copied; empty: none, or shown elsewhere
    tone: str  # good | bad | now, or empty


class CopyLine(NamedTuple):
    """One of the three locations of an event."""

    name: str
    there: str  # here | proven | gone | none | bad
    told: str
    facts: tuple[tuple[str, str], ...] = ()


def history(site: Site, ledger: Ledger, now: datetime) -> list[HistoryEntry]:
    """List what happened, in order, and what the event waits for."""
    told = [_describe_moment(moment) for moment in describe.history(site, ledger, now)]
    state = ledger.state(now).name
    return [*told, HistoryEntry(None, state.capitalize(), NOW[state], "", "now")] if state in NOW else told


def places(ledger: Ledger, *, present: bool | None) -> list[CopyLine]:
    """Describe the copies on the bench, in the bucket and on tape.

    ``present`` is whether the raw images are on the bench now; None: the disk does not answer.
    """
    return [_bench(ledger, present=present), _bucket(ledger), _tape(ledger)]


def _describe_moment(moment: wire.Moment) -> HistoryEntry:
    failed = moment.what.endswith(" failed")
    if moment.what.endswith(" requested"):
        return HistoryEntry(moment.at, moment.what.capitalize(), f"by {moment.actor}: {moment.why}", "", "")
    what, how = (moment.what.capitalize(), "{why}") if failed else WORDS.get(moment.what, (moment.what, "{why}"))
    copy = COPIES.get(moment.where or "")
    why = EVIDENCE.get(moment.why or "", moment.why or "")
    tone = (
        "now" if moment.at is None else "good" if moment.what in GOOD else "bad" if failed or moment.what in BAD else ""
    )
    return HistoryEntry(
        moment.at,
        what.replace("{copy}", copy or "Copy"),
        how.replace("{why}", why) if why or "{why}" not in how else "",
        moment.where or "" if moment.what in PLACED else "",
        tone,
    )


def _bench(ledger: Ledger, *, present: bool | None) -> CopyLine:
    event, purge = ledger.event, ledger.purge("raw")
    facts = (("system", event.system), ("path", event.path))
    if purge is not None and purge.gone_at is not None:
        return CopyLine("Bench", "gone", f"removed {purge.gone_at:%-d %b %Y}, after proof of a safe copy", facts)
    if purge is not None and purge.trashed_at is not None:
        return CopyLine("Bench", "gone", f"moved aside {purge.trashed_at:%-d %b %Y, %H:%M}", facts)
    if present:
        return CopyLine("Bench", "here", "the raw images are on the instrument's disk", facts)
    why = "the instrument's disk does not answer" if present is None else "the bench cannot be read from here"
    return CopyLine("Bench", "none", why, facts)


def _bucket(ledger: Ledger) -> CopyLine:
    export = ledger.export
    if export is None:
        return CopyLine("Bucket", "none", "not sent yet")
    place = (("bucket", export.bucket), ("endpoint", export.endpoint or "not noted"), ("key", export.key))
    facts = (*place, ("SHA-256", export.sha256))
    if export.damage is not None:
        return CopyLine("Bucket", "bad", export.damage, facts)
    if ledger.expired:
        return CopyLine("Bucket", "gone", "expired: tape has it", facts)
    if export.evidence is None:
        return CopyLine("Bucket", "here", f"{spoken_size(export.size)}, not verified yet", facts)
    return CopyLine("Bucket", "proven", f"{spoken_size(export.size)}, verified", facts)


def _tape(ledger: Ledger) -> CopyLine:
    if not ledger.archives:
        return CopyLine("Tape", "none", "not on tape yet")
    facts = tuple(
        (name, value)
        for archive in ledger.archives
        for name, value in (("archive", archive.path), ("member", archive.member), ("job", archive.job_id))
        if value
    )
    times = f"in {len(ledger.archives)} archives" if len(ledger.archives) > 1 else "in one archive"
    read = any(archive.read_at for archive in ledger.archives)
    return CopyLine("Tape", "proven", f"{times}{', read from there and the same' if read else ''}", facts)
