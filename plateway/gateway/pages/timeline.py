"""One event told to people: what happened, when, and how that is known; and where its bytes are now."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from plateway import wire
from plateway.ledger import Ledger
from plateway.pipeline import Site, describe
from plateway.pipeline.report import spoken_size

EVIDENCE = {
    "read-back": "every byte was read back and is as it was sent",
    "etag": "size and checksum in the bucket are those of the bytes that were sent",
    "checksum": "tape tells the same SHA-256 as was sent",
    "size": "tape tells a bundle of the same name and size",
    "name": "tape tells a bundle of the same name",
}
COPIES = {"raw": "Raw images", "staging": "Staged copy", "bucket": "Bucket copy"}
WORDS = {
    "announced": ("Announced", "the instrument said that its images are there"),
    "seen": ("Seen", "the announcement was read and is sound"),
    "complete": ("Complete", "{why} are there and have stopped changing"),
    "staged": ("Staged", "a verified copy lies beside the instrument's disk"),
    "exported": ("Sent to the bucket", "every file, and the manifest that lists them"),
    "verified": ("Verified", "{why}"),
    "read back": ("Read back", EVIDENCE["read-back"]),
    "damaged": ("Found damaged", "{why}"),
    "refused": ("Deletion refused", "{why}"),
    "repaired": ("Repaired", "{why}"),
    "archived": ("On tape", "{why}"),
    "read from tape": ("Read from tape", "the bytes there are those that were sent"),
    "moved aside": ("{copy} moved aside", ""),
    "purged": ("{copy} removed", "after proof: {why}"),
    "restored": ("{copy} kept after all", "{why}"),
    "quarantined": ("Put in quarantine", "{why}"),
    "waits": ("Waits", "{why}"),
}
NOW = {"ready": "waits for its turn to be sent", "exporting": "is being sent to the bucket"}
PLACED = frozenset({"announced", "exported", "archived"})  # say where; the others are about the same place
GOOD = frozenset({"verified", "read back", "archived", "read from tape"})
BAD = frozenset({"damaged", "quarantined"})


class Told(NamedTuple):
    """Something that happened, or what it waits for, in words."""

    at: datetime | None
    what: str
    how: str
    where: str  # to be copied; empty: nowhere, or told elsewhere
    tone: str  # good | bad | now, or empty


class CopyLine(NamedTuple):
    """One of the three places where an event can be."""

    name: str
    there: str  # here | proven | gone | none | bad
    told: str
    facts: tuple[tuple[str, str], ...] = ()


def history(site: Site, ledger: Ledger, now: datetime) -> list[Told]:
    """Tell what happened, in its order, and what it waits for."""
    told = [_worded(moment) for moment in describe.history(site, ledger, now)]
    state = ledger.state(now).name
    return [*told, Told(None, state.capitalize(), NOW[state], "", "now")] if state in NOW else told


def places(ledger: Ledger, *, present: bool | None) -> list[CopyLine]:
    """Return where it is: on the bench, in the bucket, on tape.

    ``present`` is whether the raw images were seen just now; None: the disk does not answer.
    """
    return [_bench(ledger, present=present), _bucket(ledger), _tape(ledger)]


def _worded(moment: wire.Moment) -> Told:
    failed = moment.what.endswith(" failed")
    what, how = (moment.what.capitalize(), "{why}") if failed else WORDS.get(moment.what, (moment.what, "{why}"))
    copy = COPIES.get(moment.where or "")
    why = EVIDENCE.get(moment.why or "", moment.why or "")
    tone = (
        "now" if moment.at is None else "good" if moment.what in GOOD else "bad" if failed or moment.what in BAD else ""
    )
    return Told(
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
    why = "the instrument's disk does not answer" if present is None else "the raw images cannot be seen from here"
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
        return CopyLine("Tape", "none", "tape has not told of it")
    facts = tuple(
        (name, value)
        for archive in ledger.archives
        for name, value in (("archive", archive.path), ("member", archive.member), ("job", archive.job_id))
        if value
    )
    times = f"in {len(ledger.archives)} archives" if len(ledger.archives) > 1 else "in one archive"
    read = any(archive.read_at for archive in ledger.archives)
    return CopyLine("Tape", "proven", f"{times}{', read from there and the same' if read else ''}", facts)
