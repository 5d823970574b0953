"""What must hold whatever happens: I1 to I10, each a function from what can be seen to what is wrong with it.

The world is seen as it is: files on the bench, in the trash and in staging, objects and open uploads in the bucket,
rows in the catalogue. What is true of the images is what the simulator says it wrote, never what Plateway says.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from plateway import bundle, pipeline
from plateway.catalog import Ledger
from plateway.errors import Damaged
from plateway.records import Export, Purge
from plateway.simulator import Announced
from plateway.store import Stat, Upload
from tests.lab import Lab


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


class Thing(NamedTuple):
    """An object as a reader gets it."""

    stat: Stat
    sha256: str
    manifest: bundle.Manifest | None
    flaw: str


class Scene:
    """One look at everything."""

    def __init__(self, world: World) -> None:
        self.world, self.lab = world, world.lab
        self.ledgers: list[Ledger] = self.lab.catalog.ledgers()
        self.uploads: list[Upload] = list(self.lab.store.uploads())
        self.things = {found.key: self._read(found.key) for found in self.lab.store.list()}

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
        roots = [self.lab.bench, self.lab.home / "staging"]
        return {path: digest(path.read_bytes()) for root in roots for path in sorted(root.rglob("*")) if path.is_file()}

    def _read(self, key: str) -> Thing:
        stat, whole = self.lab.store.stat(key), hashlib.sha256()
        assert stat is not None

        def chunks() -> Iterator[bytes]:
            for chunk in self.lab.store.open(key):
                whole.update(chunk)
                yield chunk

        try:
            walked = bundle.walk(chunks())
        except Damaged as damage:
            return Thing(stat, whole.hexdigest(), None, str(damage))
        return Thing(stat, whole.hexdigest(), walked.manifest, "")


def digest(content: bytes) -> str:
    """Say SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def check(world: World) -> list[Violation]:
    """Look at everything once and say what does not hold; I8 and I9 are asked only of a world at rest."""
    scene = Scene(world)
    asked = ALWAYS if world.rest is None else ALWAYS | AT_REST
    return [Violation(name, what) for name, holds in asked.items() for what in holds(scene)]


def no_loss(scene: Scene) -> Iterator[str]:
    """I1: of every image of an accepted event there is a readable copy: source, trash, staging or bucket."""
    accepted = {ledger.event.id for ledger in scene.ledgers}
    copies = set(scene.files.values())
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
        if not gone:
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
    """Say in which directory of the system the purged images were."""
    path = PurePosixPath(ledger.event.path)
    return str(path.parent if purge.proof.get("only") else path)


def unproven(ledger: Ledger, purge: Purge) -> Iterator[str]:
    """Say what is missing from the proof of a purge."""
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
    """Say whether the grace of a purge is over, or its images went with another's."""
    if "went_with" in purge.proof:
        return True
    return purge.trashed_at is not None and scene.lab.clock() - purge.trashed_at >= scene.lab.policy.grace


def truthful(scene: Scene) -> Iterator[str]:
    """I3: what the catalogue says of an export is so in the bucket: size, hash, every member, the manifest's place."""
    for ledger, export in scene.own:
        thing = scene.things.get(export.key)
        if export.damage:
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


def unlike(scene: Scene, ledger: Ledger, export: Export, manifest: bundle.Manifest) -> Iterator[str]:
    """Compare a manifest with the row, and with what the instrument wrote."""
    start, end = export.manifest_offset, export.manifest_size
    if digest(b"".join(scene.lab.store.open(export.key, start=start, length=end))) != export.manifest_sha256:
        yield f"{ledger.ref}: no such manifest at the recorded offset"
    held = {member.source or member.name: member.sha256 for member in manifest.members}
    wrote = [one for one in scene.world.announced if one.id == ledger.event.id and one.images.name == ledger.event.path]
    if wrote and not ledger.conflict and held != dict(wrote[0].files):
        yield f"{ledger.ref}: the bundle does not hold what the instrument wrote"


def once(scene: Scene) -> Iterator[str]:
    """I4: one content announced under one id has at most one row and one object."""
    rows = Counter((ledger.event.id, ledger.event.digest) for ledger in scene.ledgers)
    tags = [thing.stat.metadata for key, thing in scene.things.items() if key not in scene.world.foreign]
    objects = Counter((tag.get("event-id"), tag.get("announcement")) for tag in tags)
    for counted, what in ((rows, "rows"), (objects, "objects")):
        yield from (f"{one[0]}: {count} {what} of the same content" for one, count in counted.items() if count > 1)


def no_overwrite(scene: Scene) -> Iterator[str]:
    """I5: bytes at a key never change while they are catalogued, and no two contents share a key."""
    for ledger, export in scene.own:
        before = scene.world.seen.setdefault(export.key, export.sha256)
        thing = scene.things.get(export.key)
        if export.sha256 != before or (thing and thing.sha256 != before):
            yield f"{ledger.ref}: {export.key} holds other bytes than when it was first catalogued"
    keys = Counter(ledger.event.key for ledger in scene.ledgers)
    yield from (f"{key}: {count} events" for key, count in keys.items() if count > 1)


def no_partial(scene: Scene) -> Iterator[str]:
    """I6: whatever a reader finds in the bucket or in staging is whole."""
    for key, thing in scene.things.items():
        if thing.flaw and key not in scene.world.foreign:
            yield f"{key}: {thing.flaw}"
    wrote = {str(one.id): dict(one.files) for one in scene.world.announced}
    staged = (scene.lab.home / "staging").glob("*/*")
    for copy in (one for one in staged if one.name in wrote):
        held = {str(path.relative_to(copy)): sha for path, sha in scene.files.items() if path.is_relative_to(copy)}
        if held != wrote[copy.name]:
            yield f"staging {copy.name}: not the files that the instrument wrote"


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
    aside += [path for path in staging.glob("*/*") if path.suffix in {".part", ".old"}]
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
ALWAYS: dict[str, Invariant] = {
    "I1": no_loss,
    "I2": purge_safe,
    "I3": truthful,
    "I4": once,
    "I5": no_overwrite,
    "I6": no_partial,
    "I7": confined,
    "I10": no_secret,
}
AT_REST: dict[str, Invariant] = {"I8": converges, "I9": no_leak}
