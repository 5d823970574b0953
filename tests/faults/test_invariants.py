"""An invariant that cannot fail is worth nothing: each one finds the violation that is planted for it."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from plateway import pipeline
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.events import Ref
from plateway.keys import is_marker
from plateway.pipeline.purge import _intent
from plateway.records import Export
from plateway.store import open_store
from tests.databases import furnish
from tests.faults.invariants import Rest, World, check
from tests.lab import Clock, Lab, with_policy


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name in ("bench", "bucket", "staging"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)
    furnish(catalog)
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
    pipeline.purge(world.lab.site)
    if twice:
        world.lab.clock.turn(hours=2)
        pipeline.purge(world.lab.site)


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
    intent = _intent(ref, "raw", proof=proof, now=now)
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
        world.lab.catalog.record_evidence(ref, kind="etag", at=world.lab.clock(), seen_etag="other", **told)  # type: ignore[arg-type]
    else:
        other = "0" * 64 if change == "sha256" else 1
        fence = world.lab.catalog.lease(ref, owner="liar", ttl=timedelta(minutes=1), now=world.lab.clock())
        world.lab.catalog.record_export(Export(**export.model_dump() | {change: other}), fence=fence)
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


# ------------------------------------------------------------------------------------------------------------ the tape


@pytest.fixture
def taped(world: World) -> World:
    """The event is on tape as well."""
    (world.lab.home / "tape").mkdir()
    world.lab.archive = open_archive((world.lab.home / "tape").as_uri())
    world.lab.clock.turn(hours=26)
    pipeline.archive(world.lab.site)
    return world


def tar(world: World) -> Path:
    (path,) = (world.lab.home / "tape").rglob("*.tar")
    return path


@pytest.fixture
def expired(taped: World) -> World:
    """And nowhere else."""
    with_policy(taped.lab, bucket_lifespan=timedelta(days=1))
    for _ in range(3):
        purge(taped, twice=True)
    for _ in range(2):
        pipeline.expire(taped.lab.site)
        taped.lab.clock.turn(hours=2)
    assert [one for one in taped.lab.store.list() if not is_marker(one.key)] == []
    return taped


def test_a_sound_tape_violates_nothing(expired: World) -> None:
    """On tape only, by a tombstone; and restored."""
    assert check(replace(expired, rest=Rest())) == []
    pipeline.restore(expired.lab.site, only(expired)[0], to=expired.lab.home / "out")
    assert check(replace(expired, rest=Rest())) == []


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM purge WHERE place = 'bucket'",
        "UPDATE purge SET proof = '{}' WHERE place = 'bucket'",
        "UPDATE purge SET trashed_at = intended_at WHERE place = 'bucket'",
    ],
)
def test_an_expiry_without_proof_is_found(expired: World, change: str) -> None:
    """I2: the object is gone, and there is no tombstone, none with a proof, or it went at once."""
    expired.lab.catalog.close()
    with closing(sqlite3.connect(expired.lab.home / "catalogue.db")) as rows, rows:
        rows.execute(change)
    assert "I2" in violated(expired)


def test_an_object_that_outlives_its_tombstone_is_found(expired: World) -> None:
    """I2: it says that the object is gone."""
    overwrite(expired, b"there")
    assert "I2" in violated(expired)


@pytest.mark.parametrize("damage", ["flipped", "removed"])
def test_a_tape_that_does_not_have_what_it_should_is_found(expired: World, damage: str) -> None:
    """I1, I2, I3: the only copy is damaged or gone."""
    content = bytearray(tar(expired).read_bytes())
    content[1500] ^= 1
    if damage == "flipped":
        tar(expired).write_bytes(content)
    else:
        tar(expired).unlink()
    assert {"I1", "I2", "I3"} <= violated(expired)


def test_a_second_copy_on_tape_is_found(taped: World) -> None:
    """I4: two tars have the same bundle."""
    shutil.copy(tar(taped), tar(taped).with_name("again.tar"))
    assert violated(taped) == {"I4"}


@pytest.mark.parametrize("place", ["nowhere", "accepted", "changed"])
def test_a_manifest_that_was_not_received_is_found(taped: World, place: str) -> None:
    """I4: a file has left the inbox and is nowhere, or was never received, or is another."""
    taped.delivered = {"1.json": b'{"job_id": "1", "date": "2026-05-04", "archives": []}'}
    (taped.lab.home / "inbox" / "accepted").mkdir(parents=True)
    if place == "accepted":
        (taped.lab.home / "inbox" / "accepted" / "1.json").write_bytes(taped.delivered["1.json"])
    if place == "changed":
        (taped.lab.home / "inbox" / "1.json").write_bytes(b"{}")
    assert violated(taped) == {"I4"}


@pytest.mark.parametrize("what", ["tar", "end", "manifest"])
def test_half_a_file_on_tape_is_found(taped: World, what: str) -> None:
    """I6: a tar is cut, or only its end, or a manifest."""
    path = tar(taped) if what != "manifest" else next((taped.lab.home / "tape" / "manifests").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[: -len(content) // 2] if what != "end" else content[:-512])
    assert "I6" in violated(taped)


def test_half_a_restored_file_is_found(taped: World) -> None:
    """I6: under its own name; aside it may be."""
    pipeline.restore(taped.lab.site, only(taped)[0], to=taped.lab.home / "out")
    image = next((taped.lab.home / "out").rglob("*.tif"))
    image.write_bytes(image.read_bytes()[:100])
    assert violated(taped) == {"I6"}


def test_what_a_dead_writer_left_on_tape_is_found(expired: World) -> None:
    """I9: at rest nothing lies aside."""
    tar(expired).with_name(".x.tar.part-0123456789ab").write_bytes(b"half")
    expired.rest = Rest()
    assert violated(expired) == {"I9"}
