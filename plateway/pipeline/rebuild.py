"""Rebuild an empty catalogue from the bucket and the archive's manifests.

Each object is read whole and compared with its manifest; ``recover`` builds its rows. Only the catalogue is written.
What only the old catalogue knew is listed.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from plateway import archive, bundle
from plateway.errors import Damage, Damaged, Misconfigured, NotFound, PlatewayError, Refused, Rejected, Unsettled
from plateway.events import Ref
from plateway.keys import MARKER_PREFIX, is_marker, tar_name
from plateway.ledger import Ledger
from plateway.names import shown
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline import ingest
from plateway.pipeline.context import Site
from plateway.pipeline.recover import (
    UNKNOWN,
    AnnouncedFile,
    Recovered,
    announced,
    read,
    site_of,
    testify,
    walk,
)
from plateway.store import Stat
from plateway.store.object_metadata import Label

if TYPE_CHECKING:
    from plateway.records import ArchiveEntry

SAMPLE = 100  # objects that are asked which site they are of
BATCH = 64  # objects looked up and worked at together
PAGE = 500  # events of a catalogue that is not empty, compared at a time
LOST = {  # tables of which nothing is left
    "purge": "what went from the bench, when and by what proof; images that are gone are just not there",
    "quarantine": "what is still refused on the bench is refused again by the next discover",
    "setback": "what fails is noted when it fails again",
    "lease": "nobody is at work",
    "event_file": "the next discover reads every event file once more, and registers nothing twice",
    "dark_object": "the next reconcile sights them for the first time",
    "door": "archive manifests are asked for once more, and known already",
}


class Gap(NamedTuple):
    """What only the catalogue knew."""

    what: str  # a table or a column, like ``export.uploaded_at``
    rows: int | None  # that have something else there now; None: unknown
    instead: str  # what is there now


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild took in, and what it could not."""

    events: int  # taken in
    known: int  # in the catalogue already, from an earlier attempt
    from_archive: int  # of those taken in, with no copy in the bucket any more
    manifests: int  # of the archive, received
    refused: tuple[Outcome, ...]  # objects and manifests that could not be taken in, and why
    gaps: tuple[Gap, ...]


@dataclass
class _Work:
    """What the threads of one rebuild share."""

    site: Site
    tell: Callable[[int], None] | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    read: int = 0
    made_up: Counter[str] = field(default_factory=Counter)
    bench: Mapping[UUID, Sequence[AnnouncedFile]] | None = None

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield chunks and report their size."""
        for chunk in chunks:
            with self.lock:
                self.read += len(chunk)
                if self.tell is not None:
                    self.tell(self.read)
            yield chunk

    def announced(self, id: UUID) -> Sequence[AnnouncedFile]:  # noqa: A002 - it is the id of the event
        """Find the event files on the bench that announce an event; they are read once, when first asked for."""
        with self.lock:
            if self.bench is None:
                self.bench = announced(self.site)
            return self.bench.get(id, ())


def rebuild(
    site: Site,
    *,
    workers: int = 4,
    manifests: Iterable[tuple[str, bytes]] = (),
    beat: Callable[[int], None] | None = None,
    site_id: UUID | None = None,
) -> Rebuilt:
    """Fill an empty catalogue from the objects in the buckets, each read whole, and from the archive's manifests.

    ``manifests`` are further ones (name, content), as an inbox keeps them. May be repeated after an interruption.
    ``beat`` is called with the bytes read so far. The catalogue becomes the site that the objects name;
    if they name several, ``site_id``.

    Raises:
        Refused: the catalogue has events that are not in the buckets, or a bucket lists nothing while the archive
            names exports in it.
        Unavailable, Denied, NotFound: a bucket or the archive cannot be listed.
    """
    _take_site(site, site_id)
    _agree(site, workers)
    told = [*_told(site), *manifests]
    _witness(site, told)
    work = _Work(site, beat)
    outcomes = [one for bound in site.every_bucket() for one in _objects(work, bound, workers)]
    received = [ingest.receive(site, content, source="rebuild", name=name) for name, content in told]
    ingest.settle(site)
    from_tape = list(_from_tape(work))
    ingest.settle(site)
    outcomes += [*from_tape, *(one for one in received if one.result == Result.QUARANTINED)]
    results = Counter(one.result for one in outcomes)
    return Rebuilt(
        events=results[Result.TAKEN_IN],
        known=results[Result.KNOWN],
        from_archive=sum(one.result == Result.TAKEN_IN for one in from_tape),
        manifests=len({content for _, content in told}),
        refused=tuple(one for one in outcomes if one.result in {Result.REFUSED, Result.QUARANTINED}),
        gaps=_gaps(work, results[Result.TAKEN_IN]),
    )


def _told(site: Site) -> Iterator[tuple[str, bytes]]:
    if site.archive is not None:
        yield from site.archive.manifests()


def _take_site(site: Site, site_id: UUID | None) -> None:
    """Adopt the id of the site whose catalogue was lost, from markers and objects in the buckets.

    Raises:
        Refused: the buckets are of several sites, and none was named; or the catalogue is another site's.
    """
    found = {site_id} if site_id is not None else set(_sites(site))
    if len(found) > 1:
        raise Refused(f"the buckets have objects of several sites, name one: {', '.join(map(str, found))}")
    for one in found:
        site.catalog.take_site(one, now=site.catalog.now())
        site.places.forget()


def _sites(site: Site) -> Iterator[UUID]:
    """Yield the sites named in the buckets."""
    for bound in site.every_bucket():
        for listed in bound.store.list(MARKER_PREFIX):
            with suppress(ValueError):
                yield UUID(listed.key.removeprefix(MARKER_PREFIX).removesuffix(".json"))
        for listed in itertools.islice(bound.store.list(), SAMPLE):
            if not is_marker(listed.key) and (whose := site_of(bound.store.stat(listed.key))) is not None:
                yield whose


def _agree(site: Site, workers: int) -> None:
    """Refuse a catalogue that has anything but what an earlier attempt may have left.

    Raises:
        Refused: names events that are not in the bucket.
    """
    if site.catalog.empty():
        return
    with ThreadPoolExecutor(workers) as pool:
        for ledgers in _pages(site):
            strange = [why for why in pool.map(partial(_strange, site), ledgers) if why]
            if strange:
                raise Refused("the catalogue is not empty, and knows more than the bucket tells", *strange[:5])


def _pages(site: Site) -> Iterator[list[Ledger]]:
    page = site.catalog.ledgers(limit=PAGE)
    while page:
        yield page
        page = site.catalog.ledgers(limit=PAGE, after=page[-1].ref)


def _strange(site: Site, ledger: Ledger) -> str | None:
    export = ledger.export
    if export is None:
        return f"{ledger.ref} is not exported"
    try:
        site = site.holding(export)
    except Misconfigured as error:
        return f"{ledger.ref}: {error}"
    if ledger.expired or export.damage:
        return None
    found = site.store.stat(export.key)
    return None if found is not None and found.size == export.size else f"{ledger.ref}: {export.key} is not there"


def _witness(site: Site, told: Iterable[tuple[str, bytes]]) -> None:
    """Refuse an empty listing where tape names exports: it is no sign that nothing is there.

    Raises:
        Refused: with the number of exports.
    """
    keys = [entry.key for _, content in told for entry in _entries(content)]
    for name, lines in _alike(site).items():
        named = sum(key.startswith(f"{name}/") for key in keys)
        if named and all(all(is_marker(one.key) for one in bound.store.list()) for bound in lines):
            raise Refused(f"bucket {name} lists nothing, and tape names {named} exports in it: an empty listing proves "
                          "nothing")  # fmt: skip


def _alike(site: Site) -> dict[str, list[Site]]:
    """Return the buckets of the site by name, because tape reports no endpoint."""
    found: dict[str, list[Site]] = defaultdict(list)
    for bound in site.every_bucket():
        found[bound.store.name].append(bound)
    return found


def _entries(content: bytes) -> Sequence[archive.Entry]:
    try:
        return archive.parse(content).entries
    except Rejected:
        return ()


# ---------------------------------------------------------------------------------------------------------- the bucket


def _objects(work: _Work, site: Site, workers: int) -> Iterator[Outcome]:
    """Adopt every object of a bucket, a few at a time."""
    listing = (one for one in site.store.list() if not is_marker(one.key))
    with ThreadPoolExecutor(workers) as pool:
        while batch := list(itertools.islice(listing, BATCH)):
            keys = [one.key for one in batch]
            known = {one.event.key: one for one in work.site.catalog.ledgers(keys=keys)}
            yield from pool.map(lambda one, known=known: _object(work, site, one, known.get(one.key)), batch)


def _object(work: _Work, site: Site, listed: Stat, ledger: Ledger | None) -> Outcome:
    """Read one object whole, and record what it is."""
    outcome = partial(Outcome, None, "", "rebuild", key=listed.key, size=listed.size)
    try:
        found = site.store.stat(listed.key)
        if found is None:
            raise Unsettled("vanished since it was listed")
        if ledger is not None and _recorded(ledger, found):
            return outcome(Result.KNOWN)
        now = site.catalog.now()
        if (whose := site_of(found)) not in {None, site.places.site}:
            raise Refused(f"{listed.key}: belongs to site {whose}")
        taken = read(site, listed.key, bench=work.announced, now=now, through=work.counted)
        return _adopt(work, taken, outcome)
    except PlatewayError as error:
        return log_outcome(outcome(Result.REFUSED, reasons=(_about(site, listed, error),)))


def _recorded(ledger: Ledger, found: Stat) -> bool:
    export = ledger.export
    return export is not None and export.read_back_at is not None and (
        export.size, export.seen_etag
    ) == (found.size, found.etag)  # fmt: skip


def _about(site: Site, listed: Stat, error: PlatewayError) -> str:
    """Describe what is wrong with an object, and its event where the manifest is still readable."""
    if not isinstance(error, Damaged):
        return str(error)
    try:
        head = bundle.tail(lambda size: b"".join(site.store.open(listed.key, start=-size))).manifest.head
        return f"{error}; its manifest says event {head['ref_id']}"
    except (PlatewayError, KeyError):
        return str(error)


def _adopt(work: _Work, taken: Recovered, outcome: Callable[..., Outcome], **how: Any) -> Outcome:
    event = taken.event
    new = work.site.catalog.adopt(event, taken.export, now=work.site.catalog.now(), **how)
    if new:
        with work.lock:
            work.made_up.update(taken.made_up)
    told = outcome(Result.TAKEN_IN if new else Result.KNOWN)
    ref = Ref(event.id, event.revision)
    return log_outcome(Outcome(**{**vars(told), "ref": ref, "system": event.system}))


# ------------------------------------------------------------------------------------------------------------ the tape


def _from_tape(work: _Work) -> Iterator[Outcome]:
    """Adopt exports that only tape has, by reading them there."""
    for name, lines in _alike(work.site).items():
        wanted: dict[str, list[ArchiveEntry]] = defaultdict(list)
        for entry in work.site.catalog.parked():
            if entry.key.startswith(f"{name}/"):
                wanted[entry.key.removeprefix(f"{name}/")].append(entry)
        for keys in _batches(sorted(wanted)):
            known = {one.event.key for one in work.site.catalog.ledgers(keys=keys) if one.export is not None}
            yield from (_taped(work, lines, key, wanted[key]) for key in keys if key not in known)


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + BATCH] for start in range(0, len(keys), BATCH))


def _taped(work: _Work, lines: Sequence[Site], key: str, entries: Sequence[ArchiveEntry]) -> Outcome:
    """Read one export from the first archive that has it; of buckets of one name, it was in the one that still has it.

    Where none has, it is taken to have been in the first.
    """
    outcome, troubles = partial(Outcome, None, "", "rebuild", key=key), []
    for entry in entries:
        try:
            there = next((bound for bound in lines if bound.store.stat(key) is not None), None)
            taken = _read(work, there or lines[0], key, entry)
            if there is None:
                return _adopt(work, taken, outcome, gone={"read_from": entry.path, "sha256": taken.export.sha256})
            taken.export.damage = f"changed: {key} is not what tape has of it"
            taken.export.damage_kind = Damage.CHANGED.value
            taken.export.damaged_at = work.site.catalog.now()
            return _adopt(work, taken, outcome)
        except PlatewayError as error:
            troubles.append(f"{shown(entry.path)}: {error}")
    return log_outcome(outcome(Result.REFUSED, reasons=tuple(troubles)))


def _read(work: _Work, site: Site, key: str, entry: ArchiveEntry) -> Recovered:
    """Read a bundle out of an archive.

    Raises:
        NotFound: there is no archive to read, or no such member. Damaged: it differs from the manifest.
    """
    tape = site.archive
    if tape is None:
        raise NotFound("only tape has it, and no archive target is configured")
    offset, size = _member(tape, key, entry)
    walked, etag = walk(work.counted(tape.open(entry.path, start=offset, length=size)), key=key, size=size)
    if entry.checksum is not None and walked.sha256 != entry.checksum:
        raise Damaged(f"sha256 {walked.sha256}, reported as {entry.checksum}")
    at = entry.reported_at
    return testify(site, walked, Label(), key=key, etag=etag, at=at, bench=work.announced)


def _member(tape: archive.Archive, key: str, entry: ArchiveEntry) -> tuple[int, int]:
    if entry.offset is not None and entry.size is not None:
        return entry.offset, entry.size
    names = {name.removeprefix("./") for name in (entry.member, tar_name(key)) if name}
    for member in tape.members(entry.path):
        if member.name.removeprefix("./") in names:
            return member.readable().offset, member.size
    raise NotFound(f"no member {' or '.join(sorted(names))}")


def _gaps(work: _Work, taken: int) -> tuple[Gap, ...]:
    """List what only the catalogue knew."""
    instead = {
        "event.path": f"a path below {UNKNOWN}, so that nothing is ever purged there",
        "event.details": "the manifest's metadata without those that the images' own say equally",
        "event.digest": "a digest of the bundle: announced again, the event becomes a new revision",
        "event.file": "the event's id",
        "event.announced_at": "the time of the event",
        "event.first_seen": "the time of the announcement",
        "event.sealed_at": "the time of the object",
        "event.fingerprint": "none",
        "event.staged_at": "the time of the object",
    }
    columns = [Gap(name, count, instead[name]) for name, count in sorted(work.made_up.items())]
    always = [
        Gap("export.uploaded_at", taken, "the time that the bucket has for the object"),
        Gap("export.evidence", taken, "read-back, since now"),
        Gap("event", None, "what was announced and not exported is announced again by the next discover"),
    ]
    return (*columns, *always, *(Gap(name, None, why) for name, why in LOST.items()))
