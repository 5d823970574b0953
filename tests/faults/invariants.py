"""What must hold whatever happens: I1 to I10, each a function from what can be seen to what is wrong with it.

The world is seen as it is: files on the bench, in the trash and in staging, objects and open uploads in the bucket,
tars and manifests on tape, what lies in the inbox and what was restored, rows in the catalogue. What is true of the
images is what the simulator says it wrote, never what Plateway says.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from plateway import archive, bundle, pipeline
from plateway.errors import Damaged, NotFound, Rejected
from plateway.keys import MARKER_FILE, is_marker, layout_of
from plateway.ledger import Ledger
from plateway.records import ArchiveLocation, Export, Purge
from plateway.simulator import Announced
from plateway.store import Stat, Upload
from tests.lab import Lab

Version = tuple[str, int, str, datetime]  # of an object: its key, size, ETag and time


class Violation(NamedTuple):
    """Which invariant does not hold, and where."""

    invariant: str
    what: str


class Rest(NamedTuple):
    """What the last of several passes did, when nothing was left to do."""

    writes: Sequence[str] = ()
    descriptors: int = 0  # open ones, more than before


@dataclass
class World:
    """A laboratory, what its instruments really wrote, and what others than Plateway did to it."""

    lab: Lab
    announced: Sequence[Announced]
    outside: Mapping[Path, bytes] = field(default_factory=dict)  # files that are none of our business
    foreign: frozenset[str] = frozenset()  # keys that somebody else wrote, changed or removed
    secrets: Sequence[str] = ()
    logs: Sequence[Path] = ()  # files in which no secret may appear
    rest: Rest | None = None  # None: work is still to be done
    seen: dict[str, str] = field(default_factory=dict)  # SHA-256 of what was catalogued at a key, from check to check
    delivered: Mapping[str, bytes] = field(default_factory=dict)  # what was dropped into the inbox
    strayed: bool = False  # somebody moves images to the trash, and notes nothing
    read: dict[Version, Thing] = field(default_factory=dict)  # what was read of objects, from check to check


class Thing(NamedTuple):
    """An object as a reader gets it."""

    stat: Stat
    sha256: str
    manifest: bundle.Manifest | None
    flaw: str


class Member(NamedTuple):
    """A bundle as it lies in a tar on tape."""

    path: str
    name: str
    offset: int
    size: int
    sha256: str
    manifest: bundle.Manifest | None  # None: it is no bundle


class Scene:
    """One look at everything."""

    def __init__(self, world: World) -> None:
        self.world, self.lab = world, world.lab
        self.ledgers: list[Ledger] = self.lab.catalog.ledgers()
        self.uploads: list[Upload] = list(self.lab.store.uploads())
        objects = (found for found in self.lab.store.list() if not is_marker(found.key))
        self.things = {found.key: self._thing(found) for found in objects}

    @property
    def own(self) -> Iterator[tuple[Ledger, Export]]:
        """Every event with its export, where nobody else laid hands on the object."""
        for ledger in self.ledgers:
            if ledger.export is not None and ledger.export.key not in self.world.foreign:
                yield ledger, ledger.export

    @property
    def purges(self) -> Iterator[tuple[Ledger, Purge]]:
        """Every purge of raw images that was not taken back."""
        for ledger in self.ledgers:
            if (purge := ledger.purge("raw")) is not None:
                yield ledger, purge

    @cached_property
    def files(self) -> dict[Path, str]:
        """SHA-256 of everything on the bench and in staging, the trash included."""
        roots = [self.lab.home / name for name in ("bench", "staging", "tape", "inbox", "out")]
        return {path: digest(path.read_bytes()) for root in roots for path in sorted(root.rglob("*")) if path.is_file()}

    @property
    def tape(self) -> Path:
        return self.lab.home / "tape"

    @cached_property
    def members(self) -> list[Member]:
        """What is in the tars on tape that a reader finds."""
        return [member for path in sorted(self.tape.rglob("[!.]*.tar")) for member in self._members(path)]

    def _members(self, path: Path) -> Iterator[Member]:
        content = path.read_bytes()
        with suppress(tarfile.TarError), tarfile.open(path) as file:
            for found in file:
                data = content[found.offset_data : found.offset_data + found.size]
                try:
                    manifest = bundle.walk([data]).manifest
                except Damaged:
                    manifest = None
                where = str(path.relative_to(self.tape))
                yield Member(where, found.name, found.offset_data, found.size, digest(data), manifest)

    def _thing(self, found: Stat) -> Thing:
        """Read an object, unless one of this ETag and time was read at this key before."""
        version = (found.key, found.size, found.etag, found.modified)
        if not found.etag or version not in self.world.read:
            self.world.read[version] = self._read(found.key)
        return self.world.read[version]

    def _read(self, key: str) -> Thing:
        stat, whole = self.lab.store.stat(key), hashlib.sha256()
        assert stat is not None

        def chunks() -> Iterator[bytes]:
            for chunk in self.lab.store.open(key):
                whole.update(chunk)
                yield chunk

        try:
            walked = bundle.walk(chunks())
        except (Damaged, NotFound) as damage:  # not found: of files that are objects of their own, the manifest
            return Thing(stat, whole.hexdigest(), None, str(damage))
        return Thing(stat, whole.hexdigest(), walked.manifest, "")


def digest(content: bytes) -> str:
    """Compute the SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def check(world: World) -> list[Violation]:
    """Inspect everything once and return what does not hold; I8 and I9 are asked only of a world at rest."""
    return judge(Scene(world))


def judge(scene: Scene) -> list[Violation]:
    """Return what does not hold in what was seen."""
    asked = ALWAYS if scene.world.rest is None else ALWAYS | AT_REST
    return [Violation(name, what) for name, kinds in asked.items() for holds in kinds for what in holds(scene)]


def no_loss(scene: Scene) -> Iterator[str]:
    """I1: of every image of an accepted event there is a readable copy: source, trash, staging, bucket or tape."""
    accepted = {ledger.event.id for ledger in scene.ledgers}
    copies = set(scene.files.values())
    copies |= {one.sha256 for bundled in scene.members if bundled.manifest for one in bundled.manifest.members}
    copies |= {one.sha256 for thing in scene.things.values() if thing.manifest for one in thing.manifest.members}
    for announced in scene.world.announced:
        for name, sha256 in announced.files.items():
            if announced.id in accepted and sha256 not in copies:
                yield f"{announced.id}: there is no copy of {name}"


def purge_safe(scene: Scene) -> Iterator[str]:
    """I2: what is absent from the bench went by a purge, whose evidence was good when it went."""
    purges = {(ledger.event.id, directory(*found)): found for found in scene.purges for ledger in found[:1]}
    shared = {(ledger.event.system, directory(*found)): found for found in scene.purges for ledger in found[:1]}
    for announced in scene.world.announced:
        root = scene.lab.bench / announced.system
        sources = [announced.path, *(announced.images / name for name in announced.files)]
        gone = [path for path in sources if path not in scene.files]
        if not gone or scene.world.strayed:
            continue
        path = str(announced.images.relative_to(root))
        found = purges.get((announced.id, path)) or shared.get((announced.system, path))
        if found is None:
            yield f"{announced.id}: {gone[0].name} and {len(gone) - 1} more are absent, and there is no purge"
            continue
        yield from (f"{announced.id}: {flaw}" for flaw in unproven(*found))
        aside = root / found[1].trash
        left = {path for path in scene.files if path.is_relative_to(aside)}
        if len(left) < len(gone) and not due(scene, found[1]):
            yield f"{announced.id}: {len(gone)} files are absent, only {len(left)} of them in the trash, too early"


def directory(ledger: Ledger, purge: Purge) -> str:
    """Return in which directory of the system the purged images were."""
    path = PurePosixPath(ledger.event.path)
    return str(path.parent if purge.proof.get("only") else path)


def expiry_safe(scene: Scene) -> Iterator[str]:
    """I2: what is absent from the bucket went by a tombstone, whose proof holds, and tape has its bytes."""
    for ledger, export in scene.own:
        purge = ledger.purge("bucket")
        if export.key in scene.things:
            if purge is not None and purge.gone_at is not None:
                yield f"{ledger.ref}: its tombstone says that {export.key} is gone, and it is there"
        elif export.damage is None:
            if purge is None or purge.trashed_at is None:
                yield f"{ledger.ref}: {export.key} is absent, and there is no tombstone"
                continue
            yield from (f"{ledger.ref}: {flaw}" for flaw in unproven(ledger, purge))
            if purge.trashed_at - purge.intended_at < scene.lab.policy.grace:
                yield f"{ledger.ref}: {export.key} went before the grace was over"
            places = {place["path"] for place in purge.proof.get("archives", ())}
            if not any(one.path in places and one.sha256 == export.sha256 for one in scene.members):
                yield f"{ledger.ref}: {export.key} is absent, and no tar that its tombstone names has its bytes"


def unproven(ledger: Ledger, purge: Purge) -> Iterator[str]:
    """Return what is missing from the proof of a purge."""
    export, proof = ledger.export, purge.proof
    if export is None:
        yield "purged without an export"
        return
    for fact in ("bucket", "key", "size", "sha256", "manifest_sha256"):
        if proof.get(fact) != getattr(export, fact):
            yield f"the proof of its purge names another {fact} than the export"
    if not proof.get("evidence") or not proof.get("seen_etag"):
        yield "the proof of its purge has no evidence"
    if not proof.get("evidence_at") or proof["evidence_at"] > purge.intended_at.isoformat():
        yield "the evidence is younger than the intent"


def due(scene: Scene, purge: Purge) -> bool:
    """Return whether the grace of a purge is over, or its images went with another's."""
    if "went_with" in purge.proof:
        return True
    return purge.trashed_at is not None and scene.lab.clock() - purge.trashed_at >= scene.lab.policy.grace


def truthful(scene: Scene) -> Iterator[str]:
    """I3: what the catalogue says of an export is so in the bucket: size, hash, every member, the manifest's place."""
    for ledger, export in scene.own:
        thing = scene.things.get(export.key)
        if export.damage or (thing is None and ledger.expired) or going(scene, ledger):
            continue
        if thing is None:
            yield f"{ledger.ref}: exported, and nothing is at {export.key}"
        elif (thing.stat.size, thing.sha256) != (export.size, export.sha256):
            yield f"{ledger.ref}: {export.key} has other bytes than recorded"
        elif thing.manifest is None:
            yield f"{ledger.ref}: {thing.flaw}"
        elif export.evidence and thing.stat.etag != export.seen_etag:
            yield f"{ledger.ref}: {export.key} has another ETag than was seen"
        else:
            yield from unlike(scene, ledger, export, thing.manifest)


def going(scene: Scene, ledger: Ledger) -> bool:
    """Return whether an export may be there in part: its files go one by one once its deletion has begun."""
    return scene.world.rest is None and ledger.expired and layout_of(ledger.event.key) == "files"


def unlike(scene: Scene, ledger: Ledger, export: Export, manifest: bundle.Manifest) -> Iterator[str]:
    """Compare a manifest with the row, and with what the instrument wrote."""
    start, end = export.manifest_offset, export.manifest_size
    if digest(b"".join(scene.lab.store.open(export.key, start=start, length=end))) != export.manifest_sha256:
        yield f"{ledger.ref}: no such manifest at the recorded offset"
    held = {member.source or member.name: member.sha256 for member in manifest.members}
    wrote = [one for one in scene.world.announced if one.id == ledger.event.id and one.images.name == ledger.event.path]
    if wrote and not ledger.conflict and held != dict(wrote[0].files):
        yield f"{ledger.ref}: the bundle does not hold what the instrument wrote"


def located(scene: Scene) -> Iterator[str]:
    """I3: an archive that has an event with proof is a tar that has its bytes; at rest that goes for every archive."""
    for ledger in scene.ledgers:
        for place in ledger.archives:
            if place.evidence != "checksum" and scene.world.rest is None:
                continue
            if ledger.export is None or not any(holds(one, place, ledger.export) for one in scene.members):
                yield f"{ledger.ref}: {place.path} does not have it, by {place.evidence}"


def holds(member: Member, place: ArchiveLocation, export: Export) -> bool:
    """Return whether it is this member that an archive location means."""
    same = (member.path, member.sha256, member.size) == (place.path, export.sha256, export.size)
    return same and member.name == place.member and place.offset in {None, member.offset}


def once(scene: Scene) -> Iterator[str]:
    """I4: one content announced under one id has at most one row and one object."""
    rows = Counter((ledger.event.id, ledger.event.digest) for ledger in scene.ledgers)
    tags = [thing.stat.metadata for key, thing in scene.things.items() if key not in scene.world.foreign]
    objects = Counter((tag.get("event-id"), tag.get("announcement")) for tag in tags)
    for counted, what in ((rows, "rows"), (objects, "objects")):
        yield from (f"{one[0]}: {count} {what} of the same content" for one, count in counted.items() if count > 1)


def written_once(scene: Scene) -> Iterator[str]:
    """I4: no bundle is on tape twice."""
    copies = Counter(one.sha256 for one in scene.members if one.manifest)
    where = {one.sha256: one.path for one in scene.members}
    yield from (
        f"{where[sha256]}: has what {count - 1} other tars have" for sha256, count in copies.items() if count > 1
    )


def received_once(scene: Scene) -> Iterator[str]:
    """I4: every file that was dropped lies in one place, as it was; it left the inbox when it had its row."""
    inbox = scene.lab.home / "inbox"
    rows = Counter(row.digest for row in scene.lab.catalog.manifests())
    yield from (f"manifest {name[:8]}: {count} rows" for name, count in rows.items() if count > 1)
    for name, content in scene.world.delivered.items():
        places = [one for one in ("", "accepted", "quarantine") if inbox / one / name in scene.files]
        if not places or any(scene.files[inbox / one / name] != digest(content) for one in places):
            yield f"{name}: in {places} of the inbox, or changed"
        elif places[-1] and told(content) not in rows:
            yield f"{name}: in {places[-1]}, and never received"
        elif scene.world.rest is not None and "" in places:
            yield f"{name}: still in the inbox"
    kept = sum(path.is_relative_to(inbox) for path in scene.files)
    if scene.world.rest is not None and kept > len(scene.world.delivered):
        yield f"{kept} files in the inbox, {len(scene.world.delivered)} were dropped there"


def told(content: bytes) -> str:
    """Return by which digest a manifest is known."""
    try:
        return archive.parse(content).digest
    except Rejected:
        return digest(content)


def no_overwrite(scene: Scene) -> Iterator[str]:
    """I5: bytes at a key never change while they are catalogued, and no two contents share a key."""
    for ledger, export in scene.own:
        before = scene.world.seen.setdefault(export.key, export.sha256)
        thing = None if going(scene, ledger) else scene.things.get(export.key)
        if export.sha256 != before or (thing and thing.sha256 != before):
            yield f"{ledger.ref}: {export.key} holds other bytes than when it was first catalogued"
    keys = Counter(ledger.event.key for ledger in scene.ledgers)
    yield from (f"{key}: {count} events" for key, count in keys.items() if count > 1)


def no_partial(scene: Scene) -> Iterator[str]:
    """I6: whatever a reader finds in the bucket or in staging is whole."""
    leaving = {ledger.event.key for ledger in scene.ledgers if going(scene, ledger)}
    for key, thing in scene.things.items():
        complete = thing.stat.etag != ""  # else files without a manifest, which nobody takes for a bundle
        if thing.flaw and complete and key not in scene.world.foreign | leaving:
            yield f"{key}: {thing.flaw}"
    wrote = {str(one.id): dict(one.files) for one in scene.world.announced}
    staged = (scene.lab.home / "staging").glob("*/*")
    for copy in (one for one in staged if one.name in wrote):
        held = {str(path.relative_to(copy)): sha for path, sha in scene.files.items() if path.is_relative_to(copy)}
        if held != wrote[copy.name]:
            yield f"staging {copy.name}: not the files that the instrument wrote"


def no_half_tar(scene: Scene) -> Iterator[str]:
    """I6: a tar or a manifest on tape that a reader finds is whole."""
    for path in (one for one in scene.tape.rglob("[!.]*") if one.is_file()):
        content = path.read_bytes()
        where = path.relative_to(scene.tape)
        if path.suffix == ".tar":
            ends = [(one.offset + bundle.padded(one.size)) for one in scene.members if one.path == str(where)]
            if not ends or len(content) < max(ends) + len(bundle.END) or any(content[max(ends) :]):
                yield f"{where}: is cut"
        else:
            try:
                archive.parse(content)
            except Rejected as error:
                yield f"{where}: {error}"


def restored_whole(scene: Scene) -> Iterator[str]:
    """I6: a file that was restored is right or not there, and only what is not whole yet lies aside."""
    out = scene.lab.home / "out"
    wrote = {str(one.id): one.files for one in scene.world.announced}
    for path in (one for one in scene.files if one.is_relative_to(out)):
        ref, *rest = path.relative_to(out).parts
        if ref.startswith("."):
            continue
        if wrote[ref].get("/".join(rest)) != scene.files[path]:
            yield f"out/{ref}: {'/'.join(rest)} has other bytes than the instrument wrote"
    if scene.world.rest is not None:
        for ref in (one.name for one in out.glob("[!.]*")):
            missing = [name for name in wrote[ref] if out / ref / name not in scene.files]
            yield from (f"out/{ref}: {name} was not restored" for name in missing)


def confined(scene: Scene) -> Iterator[str]:
    """I7: what lies outside of the roots stays as it is, and none of it is in a bundle."""
    for path, content in scene.world.outside.items():
        if not path.is_file() or path.read_bytes() != content:
            yield f"{path.name}: outside of the roots, and changed"
    private = {digest(content) for content in scene.world.outside.values()}
    for key, thing in scene.things.items():
        if thing.manifest and private & {member.sha256 for member in thing.manifest.members}:
            yield f"{key}: holds a file from outside of the roots"


def converges(scene: Scene) -> Iterator[str]:
    """I8: when nothing is left to do, a pass over everything writes nothing."""
    assert scene.world.rest is not None
    yield from (f"at rest, and still: {write}" for write in scene.world.rest.writes)


def no_leak(scene: Scene) -> Iterator[str]:
    """I9: at rest nothing is left in trash and staging, no upload is open, no lease held, no descriptor kept."""
    assert scene.world.rest is not None
    staging = scene.lab.home / "staging"
    aside = [path for path in scene.files if pipeline.TRASH in path.parts or path.is_relative_to(staging)]
    aside = [path for path in aside if path.name != MARKER_FILE]
    aside += [path for path in staging.glob("*/*") if path.suffix in {".part", ".old"}]
    for name in ("tape", "inbox", "out"):
        aside += [path for path in (scene.lab.home / name).rglob(".*") if ".part" in path.name]
    yield from (f"left behind: {path.relative_to(scene.lab.home)}" for path in aside)
    yield from (f"open upload of {upload.key}" for upload in scene.uploads)
    yield from (f"{one.ref}: still leased" for one in scene.ledgers if one.held(scene.lab.clock()))
    if scene.world.rest.descriptors > 0:
        yield f"{scene.world.rest.descriptors} descriptors more than before"


def no_secret(scene: Scene) -> Iterator[str]:
    """I10: no secret is in the catalogue or in a log."""
    for path in (*scene.lab.home.glob("catalogue.db*"), *scene.world.logs):
        content = path.read_bytes()
        yield from (f"{path.name}: holds a secret" for secret in scene.world.secrets if secret.encode() in content)


Invariant = Callable[[Scene], Iterator[str]]
ALWAYS: dict[str, Sequence[Invariant]] = {
    "I1": [no_loss],
    "I2": [purge_safe, expiry_safe],
    "I3": [truthful, located],
    "I4": [once, written_once, received_once],
    "I5": [no_overwrite],
    "I6": [no_partial, no_half_tar, restored_whole],
    "I7": [confined],
    "I10": [no_secret],
}
AT_REST: dict[str, Sequence[Invariant]] = {"I8": [converges], "I9": [no_leak]}
