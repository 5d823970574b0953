"""An invariant that cannot fail is worth nothing: each one finds the violation that is planted for it."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from plateway import pipeline
from plateway.catalog import Catalog, Ref
from plateway.pipeline import purges
from plateway.records import Export
from plateway.store import open_store
from tests.faults.invariants import Rest, World, check
from tests.lab import Clock, Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name in ("bench", "bucket", "staging"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)
    catalog.upgrade()
    options = {"staging": tmp_path / "staging" / "prince"}
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog, options=options)
    catalog.close()


@pytest.fixture
def world(lab: Lab) -> World:
    """One event, exported and verified, its copy in staging; a private file beside the bench."""
    announced, _ = lab.exported()
    private = lab.home / "private"
    private.write_bytes(b"private")
    return World(lab, [announced], outside={private: b"private"}, secrets=["hush"])


def violated(world: World) -> set[str]:
    return {one.invariant for one in check(world)}


def only(world: World) -> tuple[Ref, Export]:
    (ledger,) = world.lab.catalog.ledgers()
    assert ledger.export is not None
    return ledger.ref, ledger.export


def overwrite(world: World, content: bytes, *, key: str | None = None) -> None:
    """Put other bytes in the bucket, tagged as the event's."""
    ref, export = only(world)
    (ledger,) = world.lab.catalog.ledgers()
    tags = {"event-id": str(ref.id), "announcement": ledger.event.digest}
    world.lab.store.put(key or export.key, [content], size=len(content), part_size=1 << 24, metadata=tags)


def purge(world: World, *, twice: bool = False) -> None:
    """Move the images aside; twice: and remove them."""
    world.lab.clock.turn(hours=9)
    pipeline.purge(world.lab.line)
    if twice:
        world.lab.clock.turn(hours=2)
        pipeline.purge(world.lab.line)


def test_a_sound_world_violates_nothing(world: World) -> None:
    """Exported, in the trash, gone: nothing is wrong anywhere."""
    assert violated(world) == set()
    purge(world)
    assert violated(world) == set()
    purge(world, twice=True)
    world.lab.clock.turn(days=1)
    purge(world, twice=True)
    assert check(replace(world, rest=Rest())) == []


def test_a_lost_image_is_found(world: World) -> None:
    """I1: purged, and then the object is gone: no copy anywhere."""
    purge(world, twice=True)
    shutil.rmtree(world.lab.home / "staging")
    world.lab.store.delete(only(world)[1].key)
    assert "I1" in violated(world)


@pytest.mark.parametrize("what", ["image", "event file"])
def test_a_removal_without_purge_is_found(world: World, what: str) -> None:
    """I2: the file is absent and no row says why."""
    announced = world.announced[0]
    (announced.path if what == "event file" else announced.images / next(iter(announced.files))).unlink()
    assert violated(world) == {"I2"}


def test_a_removal_before_its_time_is_found(world: World) -> None:
    """I2: in the trash, the grace is not over, and it is gone."""
    purge(world)
    shutil.rmtree(world.lab.bench / "prince" / pipeline.TRASH)
    assert violated(world) == {"I2"}


@pytest.mark.parametrize("fact", ["size", "sha256", "evidence", "evidence_at"])
def test_a_purge_without_proof_is_found(world: World, fact: str) -> None:
    """I2: the tombstone names no evidence, other evidence, or evidence that came later."""
    ref, export = only(world)
    world.lab.clock.turn(hours=9)
    now = world.lab.clock()
    proof = export.model_dump(mode="json") | {"only": None}
    proof[fact] = (now + timedelta(hours=1)).isoformat() if fact == "evidence_at" else None
    intent = purges._intent(ref, "raw", proof=proof, trash=f"{pipeline.TRASH}/{ref}", now=now)
    world.lab.catalog.intend(intent)
    (world.lab.bench / "prince" / pipeline.TRASH / str(ref)).mkdir(parents=True)
    world.announced[0].images.rename(world.lab.bench / "prince" / pipeline.TRASH / str(ref) / "images")
    assert violated(world) == {"I2"}


@pytest.mark.parametrize("change", ["size", "sha256", "manifest_offset", "seen_etag", "lost"])
def test_a_row_that_lies_is_found(world: World, change: str) -> None:
    """I3: the row says another size, hash, place or ETag than the object has, or there is no object."""
    ref, export = only(world)
    if change == "lost":
        world.lab.store.delete(export.key)
    elif change == "seen_etag":
        told = {"sha256": export.sha256, "uploaded_at": export.uploaded_at, "read_back": False}
        world.lab.catalog.note_evidence(ref, kind="etag", at=world.lab.clock(), seen_etag="other", **told)  # type: ignore[arg-type]
    else:
        other = "0" * 64 if change == "sha256" else 1
        fence = world.lab.catalog.lease(ref, owner="liar", ttl=timedelta(minutes=1), now=world.lab.clock())
        world.lab.catalog.note_export(Export(**export.model_dump() | {change: other}), fence=fence)
    assert "I3" in violated(world)


def test_a_bundle_of_other_images_is_found(world: World) -> None:
    """I3: row and object agree, and the instrument wrote something else."""
    announced = world.announced[0]
    world.announced = [replace(announced, files={**announced.files, "Img/never.tif": "0" * 64})]
    assert "I3" in violated(world)


def test_a_second_object_is_found(world: World) -> None:
    """I4: the same content lies under two keys."""
    whole = b"".join(world.lab.store.open(only(world)[1].key))
    overwrite(world, whole, key="images/20250106_001/20250106/000000-00000000.tar")
    assert violated(world) == {"I4"}


def test_an_overwritten_object_is_found(world: World) -> None:
    """I5: the key was catalogued with other bytes the last time we looked."""
    assert violated(world) == set()
    overwrite(world, b"other")
    assert "I5" in violated(world)


def test_a_cut_object_is_found(world: World) -> None:
    """I6: a reader finds half a bundle, although nobody recorded it."""
    whole = b"".join(world.lab.store.open(only(world)[1].key))
    world.lab.store.put("images/a/b/c.tar", [whole[:4096]], size=4096, part_size=1 << 24, metadata={})
    assert violated(world) == {"I6"}


def test_a_half_copy_in_staging_is_found(world: World) -> None:
    """I6: a staging copy under its final name lacks a file."""
    next((world.lab.home / "staging").rglob("*.tif")).unlink()
    assert violated(world) == {"I6"}


@pytest.mark.parametrize("what", ["removed", "changed", "bundled"])
def test_a_touch_outside_is_found(world: World, what: str) -> None:
    """I7: a private file beside the bench is gone, other, or in a bundle."""
    private = world.lab.home / "private"
    if what == "removed":
        private.unlink()
    elif what == "changed":
        private.write_bytes(b"touched")
    else:
        image = world.announced[0].images / next(iter(world.announced[0].files))
        world.outside = {image: image.read_bytes()}
    assert violated(world) == {"I7"}


def test_restlessness_is_found(world: World) -> None:
    """I8: a pass that should have had nothing to do wrote something."""
    purge(world, twice=True)
    world.rest = Rest(["commit catalog.look"])
    assert "I8" in violated(world)


@pytest.mark.parametrize("what", ["trash", "part", "upload", "lease", "descriptor"])
def test_a_leak_is_found(world: World, what: str) -> None:
    """I9: something is left although nothing is left to do."""
    for _ in range(2):
        purge(world, twice=True)
        world.lab.clock.turn(days=1)
    world.rest = Rest()
    assert violated(world) == set()
    if what == "trash":
        (world.lab.bench / "prince" / pipeline.TRASH / "left").write_bytes(b"")
    elif what == "part":
        (world.lab.home / "staging" / "prince" / "x.part").mkdir()
    elif what == "upload":
        uploads = world.lab.home / "bucket" / ".plateway" / "uploads"
        (uploads / "1.json").write_text('{"key": "images/a/b/c.tar"}')
    elif what == "lease":
        world.lab.catalog.lease(only(world)[0], owner="dead", ttl=timedelta(days=9), now=world.lab.clock())
    else:
        world.rest = Rest(descriptors=1)
    assert violated(world) == {"I9"}


def test_a_secret_is_found(world: World) -> None:
    """I10: in the catalogue, as a reason that quotes too much."""
    world.lab.catalog.set_back(only(world)[0], "verify", reason="said hush to the endpoint", now=world.lab.clock())
    assert violated(world) == {"I10"}
