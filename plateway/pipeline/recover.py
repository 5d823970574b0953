"""Recover the rows of a bundle in no record from its S3 metadata, its manifest and its bytes.

The rest comes from the event file, if it is still on the bench. Unknown values are listed, not invented: a column that
needs one gets a harmless value, like a path that no bench can have.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from plateway import bundle, checksums, events, folder
from plateway.bench import count_images, list_systems, read_event_file, scan
from plateway.bundle import Walked
from plateway.errors import Conflict, Damaged, NotFound, PlatewayError, Refused, Rejected, Unavailable
from plateway.events import ImagingEvent, Ref
from plateway.keys import MANIFEST, event_key, layout_of
from plateway.ledger import Ledger
from plateway.pipeline.context import Site
from plateway.pipeline.export import make_export
from plateway.records import Event, Export
from plateway.store import Stat, object_metadata
from plateway.store.object_metadata import Label

GUESSES = 1024  # attempts to separate the announcement from the images' own metadata
UNKNOWN = ".plateway-unknown"  # below it no event can be announced: images there are never found, and never purged
AGAIN = re.compile(r"-r([1-9][0-9]{0,8})(?=\.tar$|/metadata\.json$)")  # in the key of a later revision
SIDECARS = ("source-metadata.json", "Img/metadata.json")  # the images' own, as their names are in a bundle


class AnnouncedFile(NamedTuple):
    """An event file that is on the bench."""

    said: ImagingEvent
    file: str
    at: datetime


Bench = Callable[[UUID], Sequence[AnnouncedFile]]  # finds the event files that announce an event


class Recovered(NamedTuple):
    """The rows of a bundle that was read whole, and which columns had to be made up."""

    event: Event
    export: Export
    made_up: tuple[str, ...]


def read(
    site: Site, key: str, *, bench: Bench, now: datetime, through: Callable[[Iterator[bytes]], Iterator[bytes]] = iter
) -> Recovered:
    """Read an object whole and make its rows, with the evidence of this read-back; ``through`` sees its bytes pass.

    Raises:
        Damaged: it is no sound bundle. Rejected: it is no event of ours. NotFound: it is not there.
        Unavailable: it was replaced while it was read.
    """
    before = site.store.stat(key)
    if before is None:
        raise NotFound(f"{key}: no such object")
    try:
        walked, etag = walk(through(site.store.open(key)), key=key, size=before.size)
    except Damaged as error:
        raise Damaged(f"{key}: {error}") from error
    after = site.store.stat(key)
    if after is None or (after.size, after.etag) != (walked.size, before.etag):
        raise Unavailable(f"{key} was replaced while it was read")
    sent = min(before.modified, now)  # by the slower clock: evidence is never older than the upload
    found = testify(site, walked, object_metadata.read(before.metadata), key=key, etag=etag, at=sent, bench=bench)
    found.export.evidence, found.export.seen_etag = "read-back", after.etag
    found.export.seen_modified, found.export.seen_version = after.modified, after.version
    found.export.evidence_at = found.export.read_back_at = now
    return found


def walk(chunks: Iterable[bytes], *, key: str, size: int) -> tuple[Walked, str]:
    """Compare a bundle with its manifest; return the ETag that it must have at a key.

    Raises:
        Damaged: it is no sound bundle, or not stored per file at that key.
    """
    if layout_of(key) == "files":
        tally = checksums.FileETags()
        walked = bundle.walk(chunks, keep=SIDECARS, tally=tally)
        keys = {one.name: one.key for one in walked.members if one.key is not None}
        return walked, tally.etag({**keys, MANIFEST: key})
    parts = checksums.PartHasher(checksums.part_size(size))
    return bundle.walk(_summed(chunks, parts), keep=SIDECARS), parts.etag()


def _summed(chunks: Iterable[bytes], parts: checksums.PartHasher) -> Iterator[bytes]:
    for chunk in chunks:
        parts.update(chunk)
        yield chunk


def testify(site: Site, walked: Walked, label: Label, *, key: str, etag: str, at: datetime, bench: Bench) -> Recovered:
    """Make the rows of a bundle from its label, its manifest, and the event file if that is still on the bench.

    Raises:
        Rejected: it is no event of ours, or is at a key that is not its own.
    """
    said, hint, sure = _said(site, walked, label, bench)
    revision = label.revision or _revision(key)
    if not _own(key, said):
        raise Rejected(f"its manifest says event {said.id}, which belongs at {event_key(said, revision=revision)}")
    if label.id not in {None, said.id}:
        raise Rejected(f"labelled as event {label.id}, its manifest says {said.id}")
    announced_at = label.announced_at or (hint.at if hint else said.timestamp)
    first_seen = label.first_seen or announced_at
    unknown = hashlib.sha256(f"{said.digest}:{walked.sha256}".encode()).hexdigest()
    event = Event(
        id=said.id,
        revision=revision,
        system=said.system,
        kind=said.kind,
        experiment=said.experiment,
        plate=said.plate,
        timestamp=said.timestamp,
        path=said.path,
        image_count=said.image_count,
        details=said.metadata,
        digest=label.digest or (said.digest if hint else unknown),
        key=key,
        file=label.file or (hint.file if hint else f"{said.id}.json"),
        announced_at=announced_at,
        first_seen=first_seen,
        waiting_since=label.waiting_since or first_seen,
        fingerprint=label.fingerprint,
        fingerprint_at=label.fingerprint_at,
        present=said.image_count,
        image_bytes=sum(member.size for member in walked.members),
        sealed_at=label.sealed_at or at,
    )
    staging = site.instrument(said.system).staging
    staged = staging is not None and (staging / str(Ref(said.id, revision))).is_dir()
    event.staged_at = at if staged else None
    made_up = [
        *["event.path"] * said.path.startswith(f"{UNKNOWN}/"),
        *["event.details"] * (not sure),
        *["event.digest"] * (label.digest is None and hint is None),
        *["event.file"] * (label.file is None and hint is None),
        *["event.announced_at"] * (label.announced_at is None and hint is None),
        *["event.first_seen"] * (label.first_seen is None),
        *["event.sealed_at"] * (label.sealed_at is None),
        *["event.fingerprint"] * (label.fingerprint is None),
        *["event.staged_at"] * staged,
    ]
    return Recovered(event, make_export(site, event, walked, etag=etag, at=at), tuple(made_up))


def _said(site: Site, walked: Walked, label: Label, bench: Bench) -> tuple[ImagingEvent, AnnouncedFile | None, bool]:
    """Return what was announced, the event file on the bench that still announces it, and whether that is proven.

    The manifest's metadata are the announcement's over the images' own. They are separated by the announcement's
    digest, where that is known.
    """
    head = walked.manifest.head
    instrument = site.instrument(_system(head))
    files = [folder.File(one.source or one.name, one.size, 0, 0, 1) for one in walked.members]
    counted = count_images(files, instrument.patterns, instrument.ignored)
    said = {
        "ref_id": head.get("ref_id"),
        "experiment_id": head.get("experiment_id"),
        "timestamp": head.get("timestamp"),
        "type": head.get("type"),
        "system": head.get("system"),
        "local_path": label.path or "unknown",
        "img_count": label.image_count if label.image_count is not None else counted,
    }
    guess = next(_guesses(site, said, walked))
    if label.digest is not None and label.path is not None:
        for one in _guesses(site, said, walked):
            if label.digest in _digests(one, walked):
                return one, None, True
        return guess, None, False
    hint = _hint(bench(guess.id), guess, label, walked)
    if hint is not None:
        return hint.said, hint, True
    path = label.path or f"{UNKNOWN}/{guess.id}"
    return guess.model_copy(update={"path": path}), None, False


def _system(head: Mapping[str, Any]) -> str:
    name = head.get("system")
    if not isinstance(name, str) or not name or name[0] == "." or "/" in name or not name.isprintable():
        raise Rejected("its manifest names no system")
    return name


def _guesses(site: Site, said: Mapping[str, Any], walked: Walked) -> Iterator[ImagingEvent]:
    """Yield candidates for the announcement: without the fields of the images' own metadata, then with them."""
    merged = walked.manifest.head.get("metadata")
    if not isinstance(merged, dict):
        raise Rejected("its manifest has no metadata")
    own = _sidecar(walked)
    same = [name for name in merged if name in own and _written(merged[name]) == _written(own[name])]
    sizes = [0, len(same), *range(1, len(same))] if same else [0]
    ways = itertools.chain.from_iterable(itertools.combinations(same, size) for size in sizes)
    for way in itertools.islice(ways, GUESSES):
        details = {name: value for name, value in merged.items() if name not in same or name in way}
        content = json.dumps({**said, "metadata": details}).encode()
        yield events.parse(content, site.instrument(_system(walked.manifest.head)))


def _sidecar(walked: Walked) -> dict[str, Any]:
    """Read the images' own metadata.json, as the export did."""
    for member in walked.members:
        if (member.source or member.name) in {"metadata.json", "Img/metadata.json"} and member.name in walked.kept:
            try:
                return events.sidecar(walked.kept[member.name])
            except Rejected:
                return {}
    return {}


def _written(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _digests(said: ImagingEvent, walked: Walked) -> set[str]:
    """Return the digests that an event may have: of the announcement, or of changed images."""
    return {said.digest, hashlib.sha256(f"{said.digest}:{walked.sha256}".encode()).hexdigest()}


def _hint(
    announced: Sequence[AnnouncedFile], guess: ImagingEvent, label: Label, walked: Walked
) -> AnnouncedFile | None:
    """Find the event file that announced a bundle: by the digest, or where that is unknown by all that must agree."""
    for one in announced:
        if label.digest is not None and label.digest in _digests(one.said, walked):
            return one
        same = ("system", "kind", "experiment", "timestamp", "plate", "image_count")
        if label.digest is None and all(getattr(one.said, name) == getattr(guess, name) for name in same):
            return one
    return None


def _own(key: str, said: ImagingEvent) -> bool:
    """Return whether this event may have a key, at any revision."""
    own = {event_key(said), event_key(said, whole=True), event_key(said, layout="files")}
    return AGAIN.sub("", key) in own


def _revision(key: str) -> int:
    match = AGAIN.search(key)
    return int(match[1]) if match else 1


def announced(site: Site) -> dict[UUID, list[AnnouncedFile]]:
    """Read every event file that is on the bench, as far as there is one, by the id that it announces."""
    found: dict[UUID, list[AnnouncedFile]] = defaultdict(list)
    try:
        names = list_systems(site.root)
    except PlatewayError:
        return {}
    for name in names:
        instrument = site.instrument(name)
        try:
            sightings = scan(instrument)
        except PlatewayError:
            continue
        for sighting in sightings:
            try:
                said = events.parse(read_event_file(instrument, sighting), instrument)
            except PlatewayError:
                continue
            at = datetime.fromtimestamp(sighting.mtime_ns / 1e9, UTC)
            found[said.id].append(AnnouncedFile(said, sighting.name, at))
    return found


def adopt(site: Site, key: str, ledger: Ledger | None, *, bench: Bench, now: datetime) -> Export:
    """Record an object's event and export, with this read-back as evidence; ``ledger``: the event at the key.

    Raises:
        Refused: it is another site's, or names no site and belongs to no known event.
        Damaged: it is no sound bundle. Rejected: it is no event of ours. Conflict: it is another event's.
        NotFound, Unavailable: it was removed or replaced while it was read.
    """
    owner = site_of(site.store.stat(key))
    if owner is None and ledger is None:
        raise Refused(f"{key}: does not say which site it is of, and its event is not known here")
    if owner not in {None, site.places.site}:
        raise Refused(f"{key}: belongs to site {owner}")
    found = read(site, key, bench=bench, now=now)
    if ledger is not None:
        _check_owner(ledger.event, found.event)
    site.catalog.adopt(found.event if ledger is None else ledger.event, found.export, now=now)
    return found.export


def site_of(found: Stat | None) -> UUID | None:
    """Return the site that an object names; None if it names none."""
    return None if found is None else object_metadata.read(found.metadata).site


def _check_owner(known: Event, said: Event) -> None:
    """Raise unless an object names this event."""
    if (known.id, known.revision, known.digest) != (said.id, said.revision, said.digest):
        raise Conflict(f"{said.key} says that it is of {said.id}, revision {said.revision}, announced as {said.digest}")
