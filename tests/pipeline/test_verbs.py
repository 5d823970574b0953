"""The verbs on a real bench, a real bucket contract and a real catalogue: what they do, and what they refuse to do."""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from plateway import folder, pipeline
from plateway.bench import TRASH
from plateway.catalog import Catalog
from plateway.errors import (
    Denied,
    DiskUnavailable,
    Misconfigured,
    NotFound,
    PlatewayError,
    Rejected,
    Unavailable,
    Unsettled,
)
from plateway.events import Ref
from plateway.keys import MARKER_FILE, is_marker
from plateway.pipeline import Outcome
from plateway.pipeline.export import _send, _source
from plateway.pipeline.lease import Hold
from plateway.pipeline.verify import manifest_of
from plateway.records import Export
from plateway.simulator import Announced
from plateway.store import open_store
from plateway.store.directory import Directory
from tests.databases import furnish
from tests.lab import Broken, Clock, Lab, intact, with_policy


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bucket").mkdir()
    (tmp_path / "staging").mkdir()
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    catalog.close()


def results(outcomes: list[Outcome]) -> list[str]:
    for one in outcomes:
        if one.result == "failed":
            print(one)
    return sorted(one.result for one in outcomes)


def replace_object(lab: Lab, key: str, content: bytes) -> None:
    lab.store.put(key, [content], size=len(content), part_size=1 << 24, metadata={})


def content(lab: Lab, key: str) -> bytes:
    return b"".join(lab.store.open(key))


# ---------------------------------------------------------------------------------------------------------- register


@pytest.mark.parametrize("system", ["prince", "aretha"])
def test_an_announced_event_becomes_ready(lab: Lab, system: str) -> None:
    """Both dialects: read, settled, sealed."""
    announced = lab.acquire(system)
    found = lab.settle()
    assert found.sealed == (Ref(announced.id, 1),)
    assert lab.state(Ref(announced.id, 1)) == "ready"


def test_registering_again_changes_nothing(lab: Lab) -> None:
    """A known event file is not even read again."""
    lab.acquire()
    lab.settle()
    again = pipeline.register(lab.site)
    assert (again.new, again.sealed, again.waiting, again.settles_in) == ((), (), 0, None)


@pytest.mark.parametrize("name", ["._1.tif", "Thumbs.db", ".DS_Store", "~$plate.tif", "Img/._2.TIF", "DESKTOP.INI"])
def test_what_desktops_leave_is_no_image(lab: Lab, name: str) -> None:
    """It is not counted, whatever its suffix, but goes along; where images are missing it is told apart."""
    announced = lab.acquire("aretha")
    left = announced.images / name
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"left by a desktop")
    lab.settle()
    assert results(lab.export()) == ["exported", "verified"]
    with tarfile.open(fileobj=BytesIO(content(lab, lab.ledger(Ref(announced.id, 1)).event.key))) as tar:
        assert any(member.name.endswith(left.name) for member in tar)
    other = lab.acquire("aretha", fault="missing-image")
    (other.images / "._1.tif").write_bytes(b"left by a desktop")
    pipeline.register(lab.site)
    lab.clock.turn(minutes=11)
    (outcome,) = pipeline.register(lab.site).quarantined
    assert "2 of 3 images present" in outcome.reasons[0]
    assert "1 more ignored (PLATEWAY_IGNORE)" in outcome.reasons[0]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("EVENT.JSON", "registered"),
        ("Event.Json", "registered"),
        ("event.json.txt", "reported"),
        ("event.jsonl", "reported"),
        ("event (json)", "reported"),
        ("event.json.tmp", "reported later"),
        ("event.json~", "reported later"),
        ("._event.json", "ignored"),
        (".event.json.Xq3aZ1", "ignored"),
        ("notes.txt", "ignored"),
    ],
)
def test_event_files_of_odd_names(lab: Lab, name: str, found: str) -> None:
    """Capitals do not matter; what is nearly called an event file is quarantined, not passed over in silence."""
    announced = lab.acquire("aretha")
    announced.path.rename(announced.path.with_name(name))
    lab.clock.turn(seconds=5)  # later than the file's own time
    first = pipeline.register(lab.site)
    assert len(first.new) == (found == "registered")
    assert [one.reasons for one in first.quarantined] == [("the name of an event file ends in .json",)] * (
        found == "reported"
    )
    lab.clock.turn(minutes=11)
    later = pipeline.register(lab.site)
    assert len(later.quarantined) == (found == "reported later")


def test_growing_images_are_waited_for(lab: Lab) -> None:
    """The count matches, but one image still grows: not complete, however old its mtime says it is."""
    announced = lab.acquire()
    ref = Ref(announced.id, 1)
    growing = announced.images / next(iter(announced.files))
    pipeline.register(lab.site)
    for _ in range(3):
        lab.clock.turn(seconds=5)
        with growing.open("ab") as image:
            image.write(b"more")
        os.utime(growing, (0, 0))
        assert pipeline.register(lab.site).sealed == ()
    lab.clock.turn(seconds=5)
    assert pipeline.register(lab.site).sealed == (ref,)


def test_a_half_written_sidecar_is_waited_for(lab: Lab) -> None:
    """The images' own metadata.json counts when all is calm; one that is none is refused then."""
    announced = lab.acquire("aretha")
    sidecar = announced.images / "metadata.json"
    sidecar.write_text('{"lens": ')
    assert pipeline.register(lab.site).quarantined == ()
    lab.clock.turn(seconds=1)
    sidecar.write_text('{"lens": "macro"}')
    lab.settle()
    assert results(lab.export()) == ["exported", "verified"]
    other = lab.acquire("aretha")
    (other.images / "metadata.json").write_text('{"lens": ')
    (outcome,) = lab.settle().quarantined
    assert outcome.reasons[0].startswith("metadata.json")


def test_missing_images_are_waited_for_until_the_deadline(lab: Lab) -> None:
    """Then the event is quarantined with the numbers."""
    announced = lab.acquire(fault="missing-image", images=12)
    ref = Ref(announced.id, 1)
    lab.settle()
    assert lab.ledger(ref).state(lab.clock()) == ("waiting", ("11 of 12 images present",))
    lab.clock.turn(minutes=11)
    (outcome,) = pipeline.register(lab.site).quarantined
    assert "11 of 12 images present" in outcome.reasons[0]
    assert lab.state(ref) == "quarantined"
    assert lab.export() == []


def test_too_many_images_are_quarantined(lab: Lab) -> None:
    """More than announced is as wrong as fewer."""
    lab.acquire(fault="extra-image")
    (outcome,) = lab.settle().quarantined
    assert outcome.reasons == ("4 of 3 images present",)


def test_a_quarantined_event_can_be_replayed(lab: Lab) -> None:
    """Once the missing image is there, replay brings the event on its way."""
    announced = lab.acquire(fault="missing-image")
    lab.settle()
    lab.clock.turn(minutes=11)
    pipeline.register(lab.site)
    (row,) = lab.catalog.quarantined()
    assert row.id is not None
    assert json.loads(row.content)
    first = announced.images / next(iter(announced.files))
    first.with_name("Img_late.tif").write_bytes(first.read_bytes())
    lab.catalog.replay(row.id, now=lab.clock())
    lab.settle()
    assert results(lab.export()) == ["exported", "verified"]


@pytest.mark.parametrize("fault", ["garbage-json", "bad-path", "symlink"])
def test_one_bad_event_stops_nobody(lab: Lab, fault: str) -> None:
    """What cannot be accepted is kept with its reason; the others go on."""
    bad = lab.acquire(fault=fault)
    good = lab.acquire("aretha")
    lab.clock.turn(seconds=5)
    lab.settle()
    assert results(lab.export()) == ["exported", "verified"]
    assert lab.state(Ref(good.id, 1)) == "exported"
    (row,) = lab.catalog.quarantined()
    assert row.reason
    assert row.content == bad.path.read_bytes()


def test_a_half_written_event_file_waits(lab: Lab) -> None:
    """Young and unreadable is not wrong yet."""
    announced = lab.acquire()
    whole = announced.path.read_bytes()
    announced.path.write_bytes(whole[:40])
    os.utime(announced.path, (lab.clock().timestamp(),) * 2)
    found = pipeline.register(lab.site)
    assert (found.waiting, found.quarantined) == (1, ())
    assert found.settles_in is not None
    announced.path.write_bytes(whole)
    lab.settle()
    assert lab.state(Ref(announced.id, 1)) == "ready"
    assert lab.catalog.quarantined() == []


def test_an_event_file_completed_after_quarantine_is_accepted(lab: Lab) -> None:
    """A writer slower than the settle time loses nothing, and its quarantine entry is closed."""
    announced = lab.acquire()
    whole = announced.path.read_bytes()
    announced.path.write_bytes(whole[:40])
    os.utime(announced.path, (0, 0))
    assert len(pipeline.register(lab.site).quarantined) == 1
    announced.path.write_bytes(whole)
    lab.settle()
    assert lab.catalog.quarantined() == []
    assert results(lab.export()) == ["exported", "verified"]


def test_the_same_event_announced_twice_is_one_event(lab: Lab) -> None:
    """A duplicate is a no-op."""
    lab.acquire(fault="duplicate")
    lab.settle()
    assert results(lab.export()) == ["exported", "verified"]
    assert len(lab.catalog.ledgers()) == 1


def test_other_content_under_an_id_is_a_second_revision(lab: Lab) -> None:
    """Both are kept, each under its own key, and the conflict is flagged."""
    announced = lab.acquire(fault="other-content")
    lab.settle()
    lab.settle()
    assert results(lab.export()) == ["exported", "exported", "verified", "verified"]
    first, second = lab.catalog.revisions(announced.id)
    assert (first.conflict, second.conflict) == (False, True)
    assert second.event.key == first.event.key.replace(".tar", "-r2.tar")
    assert first.export is not None
    assert second.export is not None
    assert first.export.sha256 != second.export.sha256


def test_a_system_whose_disk_is_away_stops_nobody(lab: Lab) -> None:
    """An empty mount point is no system; its events are found when it is back."""
    announced = lab.acquire()
    lab.unmount("prince")
    other = lab.acquire("aretha")
    lab.settle()
    assert lab.state(Ref(other.id, 1)) == "ready"
    lab.mount("prince")
    lab.settle()
    assert lab.state(Ref(announced.id, 1)) == "ready"


# ------------------------------------------------------------------------------------------------------------ export


def test_an_export_holds_the_very_bytes(lab: Lab) -> None:
    """The bundle untars to what the instrument wrote, plus metadata.json with the fields of DLM v2."""
    announced, ref = lab.exported("aretha")
    ledger = lab.ledger(ref)
    assert ledger.export is not None
    bytes_ = content(lab, ledger.event.key)
    assert hashlib.sha256(bytes_).hexdigest() == ledger.export.sha256
    with tarfile.open(fileobj=BytesIO(bytes_)) as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    found = {name.removeprefix("./"): hashlib.sha256(data).hexdigest() for name, data in members.items()}
    assert found.items() >= {name: sha for name, sha in announced.files.items() if name != "metadata.json"}.items()
    head = json.loads(members["./metadata.json"])
    assert head["ref_id"] == str(announced.id)
    assert head["system"] == "aretha"
    assert [one["name"] for one in head["files"]] == sorted(one["name"] for one in head["files"])


def test_exporting_again_is_harmless(lab: Lab) -> None:
    """A verified export is not sent again; by force the same bytes go to the same key."""
    _, ref = lab.exported()
    before = lab.ledger(ref).export
    assert pipeline.export(lab.site, ref).result == "exported already"
    assert pipeline.export(lab.site, ref, force=True).result == "exported"
    assert pipeline.verify(lab.site, ref).result == "verified"
    after = lab.ledger(ref).export
    assert before is not None
    assert after is not None
    assert (before.key, before.sha256) == (after.key, after.sha256)


def test_changed_images_never_overwrite_their_export(lab: Lab) -> None:
    """Forced after the images changed, the new content becomes revision 2 and the old object stays as it was."""
    announced, ref = lab.exported()
    old = content(lab, lab.ledger(ref).event.key)
    image = announced.images / next(iter(announced.files))
    image.write_bytes(image.read_bytes()[::-1])
    assert pipeline.export(lab.site, ref, force=True).result == "conflict"
    lab.settle()
    assert results(lab.export()) == ["exported", "verified"]
    assert content(lab, lab.ledger(ref).event.key) == old
    assert lab.state(Ref(ref.id, 2)) == "exported"
    for _ in range(3):
        lab.clock.turn(hours=9)
        pipeline.purge(lab.site)
    assert [one.state(lab.clock()).name for one in lab.catalog.revisions(ref.id)] == ["purged", "purged"]
    assert content(lab, lab.ledger(ref).event.key) == old


def test_bytes_of_a_stranger_are_not_overwritten(lab: Lab) -> None:
    """What lies unrecorded at our key stays; the event goes to another key."""
    announced = lab.acquire()
    lab.settle()
    ref = Ref(announced.id, 1)
    key = lab.catalog.get(ref).key
    replace_object(lab, key, b"somebody else's")
    assert pipeline.export(lab.site, ref).result == "conflict"
    assert results(lab.export()) == ["exported", "verified"]
    assert content(lab, key) == b"somebody else's"
    assert lab.catalog.get(ref).key != key


def test_a_crash_between_upload_and_note_heals(lab: Lab) -> None:
    """The object is there, the row is not: the next run finds the same bytes and writes the row."""
    announced = lab.acquire()
    lab.settle()
    ref = Ref(announced.id, 1)
    event = lab.catalog.get(ref)
    _send(lab.site, event, None, force=False, hold=Hold(lab.site, ref, 0))
    before = lab.store.stat(event.key)
    assert lab.ledger(ref).export is None
    assert results(lab.export()) == ["exported", "verified"]
    assert lab.store.stat(event.key) == before


def test_a_failed_export_is_tried_again_later(lab: Lab) -> None:
    """Attempt, next time and reason are recorded; when the time has come and the cause is gone, it works."""
    announced = lab.acquire()
    lab.settle()
    ref = Ref(announced.id, 1)
    image = announced.images / next(iter(announced.files))
    kept = image.read_bytes()
    image.unlink()
    with pytest.raises(Unsettled, match="2 of 3 images present"):
        pipeline.export(lab.site, ref)
    assert lab.ledger(ref).setback("export") is not None
    assert lab.export() == []
    image.write_bytes(kept)
    lab.settle()
    assert lab.export() == []
    lab.clock.turn(minutes=15)
    assert results(lab.export()) == ["exported", "verified"]
    assert lab.ledger(ref).setbacks == ()


def test_images_that_change_after_they_were_complete_are_not_sent(lab: Lab) -> None:
    """As many as announced, but one was cut since: the event waits again, and goes when all is calm."""
    announced = lab.acquire()
    lab.settle()
    ref = Ref(announced.id, 1)
    image = announced.images / next(iter(announced.files))
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(Unsettled, match="changed since they were complete"):
        pipeline.export(lab.site, ref)
    assert lab.state(ref) == "waiting"
    lab.clock.turn(minutes=15)
    lab.settle()
    assert results(lab.export()) == ["exported", "verified"]


def test_staging_copies_first(lab: Lab) -> None:
    """With a staging root the bundle is made from a verified copy; the bench may go away meanwhile."""
    lab.options = {"staging": lab.home / "staging" / "prince"}
    announced = lab.acquire()
    lab.settle()
    ref = Ref(announced.id, 1)
    event = lab.catalog.get(ref)
    fence = lab.catalog.lease(ref, owner="w", ttl=lab.site.lease, now=lab.clock())
    _source(lab.site, event, lab.instrument("prince"), Hold(lab.site, ref, fence))
    lab.catalog.release(ref, fence=fence)
    lab.unmount("prince")
    assert results(lab.export()) == ["exported", "verified"]


# ------------------------------------------------------------------------------------------------------------ verify


def test_nothing_is_verified_that_was_not_exported(lab: Lab) -> None:
    """There is no evidence without an export."""
    announced = lab.acquire()
    lab.settle()
    with pytest.raises(NotFound):
        pipeline.verify(lab.site, Ref(announced.id, 1))


@pytest.mark.parametrize("how", ["lost", "cut", "flipped"])
def test_damage_is_found_and_mended_from_the_bench(lab: Lab, how: str) -> None:
    """Lost or changed objects are told, and sent again while the raw images are there."""
    _, ref = lab.exported()
    key = lab.ledger(ref).event.key
    good = content(lab, key)
    if how == "lost":
        lab.store.delete(key)
    else:
        bad = good[:-1] if how == "cut" else good[:700] + bytes([good[700] ^ 1]) + good[701:]
        replace_object(lab, key, bad)
    outcome = pipeline.verify(lab.site, ref, read_back=True)
    assert outcome.result == "damaged"
    assert lab.state(ref) == ("lost" if how == "lost" else "changed")
    assert results(lab.export()) == ["exported", "verified"]
    assert content(lab, key) == good
    assert lab.state(ref) == "exported"


def test_looking_at_an_export_notes_nothing(lab: Lab) -> None:
    """`show` between export and verification, or at a damaged object, only tells: evidence and damage are verify's."""
    announced = lab.acquire()
    lab.settle()
    ref = Ref(announced.id, 1)
    pipeline.export(lab.site, ref)
    before = lab.ledger(ref).export
    assert pipeline.detail(lab.site, lab.ledger(ref)).manifest
    lab.store.delete(lab.ledger(ref).event.key)
    told = pipeline.detail(lab.site, lab.ledger(ref))
    assert (told.manifest, told.manifest_error is None) == (None, False)
    assert lab.ledger(ref).export == before


@pytest.mark.parametrize("bucket", ["other", "missing"])
def test_another_bucket_is_not_a_lost_export(lab: Lab, bucket: str) -> None:
    """Settings that name another or a missing bucket make no damage: neither verify nor purge takes it for a loss."""
    _, ref = lab.exported()
    lab.clock.turn(hours=9)
    (lab.home / "other").mkdir()
    own, lab.store = lab.store, open_store((lab.home / bucket).as_uri())
    with pytest.raises(Misconfigured, match="is in bucket bucket"):
        pipeline.verify(lab.site, ref)
    assert results(pipeline.purge(lab.site)) == ["refused"]
    (lab.home / "bucket").rename(lab.home / "away")
    lab.store = own
    with pytest.raises(NotFound):
        pipeline.verify(lab.site, ref)
    assert results(pipeline.purge(lab.site)) == ["failed"]
    export = lab.ledger(ref).export
    assert export is not None
    assert (export.damage, export.evidence) == (None, "etag")


# ------------------------------------------------------------------------------------------------------------- purge


def everything(path: Path) -> set[str]:
    """Name the files below a directory, but for the markers of places."""
    return {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file() and one.name != MARKER_FILE}


def test_purge_moves_aside_waits_and_removes(lab: Lab) -> None:
    """Proof, trash, grace, proof, gone; a tombstone remains, and the event file goes along."""
    announced, ref = lab.exported()
    lab.clock.turn(hours=9)
    assert results(pipeline.purge(lab.site)) == ["trashed"]
    assert not announced.images.exists()
    assert not announced.path.exists()
    assert everything(lab.bench / "prince" / ".plateway-trash")
    lab.clock.turn(minutes=30)
    assert results(pipeline.purge(lab.site)) == ["trashed"]
    lab.clock.turn(minutes=31)
    assert results(pipeline.purge(lab.site)) == ["gone"]
    assert everything(lab.bench / "prince") == set()
    tombstone = lab.ledger(ref).purge("raw")
    assert tombstone is not None
    assert tombstone.gone_at == lab.clock()
    assert tombstone.proof["files"] == len(announced.files)
    assert lab.state(ref) == "purged"
    assert pipeline.purge(lab.site) == []


def test_a_dry_run_moves_nothing(lab: Lab) -> None:
    """It proves, says what would go, and leaves bench and catalogue as they are."""
    _, ref = lab.exported()
    lab.clock.turn(hours=9)
    before = everything(lab.bench)
    assert results(pipeline.purge(lab.site, dry_run=True)) == ["would go"]
    assert everything(lab.bench) == before
    assert lab.ledger(ref).purges == ()


def test_purge_without_permission_does_nothing(lab: Lab) -> None:
    """A system nobody listed is left alone, and the answer says so."""
    lab.exported()
    lab.clock.turn(days=99)
    with_policy(lab, purge=False)
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.reasons == ("prince is not among the systems to purge",)


@pytest.mark.parametrize("damage", ["lost", "flipped", "cut"])
def test_purge_refuses_when_the_copy_is_not_the_verified_one(lab: Lab, damage: str) -> None:
    """The object changed after it was verified: nothing moves, the damage is noted, the event is sent again."""
    announced, ref = lab.exported()
    key = lab.ledger(ref).event.key
    good = content(lab, key)
    if damage == "lost":
        lab.store.delete(key)
    else:
        replace_object(lab, key, good[:-512] if damage == "cut" else bytes([good[0] ^ 1]) + good[1:])
    lab.clock.turn(hours=9)
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.result == "damaged"
    assert key in outcome.reasons[0]
    assert {name: hashlib.sha256((announced.images / name).read_bytes()).hexdigest() for name in announced.files} == (
        announced.files
    )
    assert results(lab.export()) == ["exported", "verified"]


def test_purge_refuses_when_an_image_changed(lab: Lab) -> None:
    """One flipped bit on the bench that the copy does not have: those bytes exist nowhere else."""
    announced, _ = lab.exported()
    image = announced.images / next(iter(announced.files))
    status = image.stat()
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    lab.clock.turn(hours=9)
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.reasons == (f"{image.relative_to(announced.images)} has another SHA-256 than the copy",)
    assert image.exists()


def test_purge_refuses_when_there_is_more_than_the_copy_holds(lab: Lab) -> None:
    """A file that came later is nowhere else."""
    announced, _ = lab.exported()
    (announced.images / "note.txt").write_text("do not lose me")
    lab.clock.turn(hours=9)
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.reasons == ("note.txt is not in the copy",)


def test_purge_refuses_when_there_is_less(lab: Lab) -> None:
    """Somebody else is deleting here: we do not join in."""
    announced, _ = lab.exported()
    name = next(iter(announced.files))
    (announced.images / name).unlink()
    lab.clock.turn(hours=9)
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.reasons == (f"{name} is missing here",)


def test_an_empty_bench_proves_nothing(lab: Lab) -> None:
    """A dropped mount looks like an empty directory: no tombstone, and everything goes on when it is back."""
    _, ref = lab.exported()
    lab.clock.turn(hours=9)
    lab.unmount("prince")
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.result == "stopped"
    assert lab.ledger(ref).purges == ()
    lab.mount("prince")
    assert "trashed" in results(pipeline.purge(lab.site))


def test_a_mount_that_drops_during_the_grace_proves_nothing(lab: Lab) -> None:
    """Without the trash in sight nothing is noted as gone, nor as restored."""
    _, ref = lab.exported()
    lab.clock.turn(hours=9)
    pipeline.purge(lab.site)
    lab.unmount("prince")
    lab.clock.turn(hours=2)
    assert results(pipeline.purge(lab.site)) == ["later"]
    assert lab.state(ref) == "purged" or lab.ledger(ref).purge("raw").gone_at is None  # type: ignore[union-attr]
    lab.mount("prince")
    assert results(pipeline.purge(lab.site)) == ["gone"]


def test_what_is_in_the_trash_comes_back_when_the_copy_is_damaged(lab: Lab) -> None:
    """The second proof fails: images and event file return, and the event is sent again."""
    announced, ref = lab.exported()
    lab.clock.turn(hours=9)
    pipeline.purge(lab.site)
    lab.store.delete(lab.ledger(ref).event.key)
    lab.clock.turn(hours=2)
    assert results(pipeline.purge(lab.site)) == ["damaged"]
    assert announced.path.exists()
    assert {name for name in announced.files if (announced.images / name).exists()} == set(announced.files)
    assert results(lab.export()) == ["exported", "verified"]
    lab.clock.turn(hours=9)
    assert "trashed" in results(pipeline.purge(lab.site))


def test_changes_in_the_trash_stop_the_removal(lab: Lab) -> None:
    """A program that still writes through an open handle is noticed before anything is removed."""
    _, ref = lab.exported()
    lab.clock.turn(hours=9)
    pipeline.purge(lab.site)
    image = next((lab.bench / "prince" / TRASH).rglob("*.tif"))
    with image.open("ab") as still_open:
        still_open.write(b"late pixels")
    lab.clock.turn(hours=2)
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.result == "restored"
    assert lab.state(ref) != "purged"


def test_a_purge_that_takes_too_much_stops_and_asks(lab: Lab) -> None:
    """More than the fraction of a system's events at once: nothing moves until somebody confirms."""
    for _ in range(12):
        lab.acquire(images=1)
        lab.clock.turn(seconds=1)
    lab.settle()
    lab.export()
    lab.clock.turn(hours=9)
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.result == "stopped"
    assert "12 of 12 events would go" in outcome.reasons[0]
    assert results(pipeline.purge(lab.site, fraction=1.0)).count("trashed") == 12


def test_an_image_directory_shared_with_an_unsafe_event_stays(lab: Lab) -> None:
    """The second announcement of the same images is not exported yet: both wait."""
    announced, _ = lab.exported()
    said = json.loads(announced.path.read_text())
    said["timestep_id"] = "00000000-0000-4000-8000-000000000001"
    announced.path.with_name("2.json").write_text(json.dumps(said))
    pipeline.register(lab.site)
    lab.clock.turn(hours=9)
    results_ = pipeline.purge(lab.site)
    assert results(results_) == ["refused", "refused"]
    assert announced.images.exists()


def test_two_events_on_the_same_images_are_both_purged(lab: Lab) -> None:
    """Once both are safe the images go once, and both leave a tombstone."""
    announced, first = lab.exported()
    said = json.loads(announced.path.read_text())
    said["timestep_id"] = "00000000-0000-4000-8000-000000000001"
    announced.path.with_name("2.json").write_text(json.dumps(said))
    lab.settle()
    assert results(lab.export()) == ["exported", "verified"]
    for _ in range(3):
        lab.clock.turn(hours=9)
        pipeline.purge(lab.site)
    states = {ledger.ref: ledger.state(lab.clock()).name for ledger in lab.catalog.ledgers()}
    assert len(states) == 2
    assert set(states.values()) == {"purged"}
    assert first in states
    assert everything(lab.bench / "prince") == set()


def test_images_that_vanished_leave_no_tombstone(lab: Lab) -> None:
    """Somebody removed them by hand: that is told, not tidied up."""
    announced, ref = lab.exported()
    lab.acquire()
    shutil.rmtree(announced.images)
    lab.clock.turn(hours=9)
    reasons = {reason for one in pipeline.purge(lab.site) if one.ref == ref for reason in one.reasons}
    assert reasons == {"the images are not on the bench, and no purge of ours took them"}
    assert lab.ledger(ref).purges == ()


def test_two_workers_never_spoil_each_others_staging_copy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that sleeps through its lease while it copies finds the copy of its successor, and leaves it whole."""
    lab.options = {"staging": lab.home / "staging" / "prince"}
    announced = lab.acquire(images=4, size=64)
    lab.settle()
    ref, copy = Ref(announced.id, 1), folder.copy
    copied: list[int] = []

    def overtaken(*args: Any, **named: Any) -> None:
        if not copied:
            copied.append(named["turn"])
            lab.clock.turn(minutes=11)
            assert pipeline.export(replace(lab.site, owner="successor"), ref).result == "exported"
        copy(*args, **named)

    monkeypatch.setattr(folder, "copy", overtaken)
    assert pipeline.export(lab.site, ref).result == "busy"
    staged = lab.home / "staging" / "prince" / str(ref)
    digests = {name: hashlib.sha256((staged / name).read_bytes()).hexdigest() for name in announced.files}
    assert digests == announced.files
    assert pipeline.verify(lab.site, ref).result == "verified"


def test_staging_copies_go_after_their_lifespan(lab: Lab) -> None:
    """With the same proof, whatever the policy says of the raw images."""
    lab.options = {"staging": lab.home / "staging" / "prince"}
    with_policy(lab, purge=False, staging_lifespan=timedelta(hours=2))
    announced, _ = lab.exported()
    copy = lab.home / "staging" / "prince" / str(announced.id)
    assert everything(copy) == set(announced.files)
    lab.clock.turn(hours=3)
    assert "trashed" in results(pipeline.purge(lab.site))
    lab.clock.turn(hours=3)
    assert "gone" in results(pipeline.purge(lab.site))
    assert everything(lab.home / "staging") == set()
    assert everything(announced.images)


def test_stale_uploads_of_ours_are_aborted(lab: Lab) -> None:
    """A sweep with nothing open does nothing."""
    lab.exported()
    assert pipeline.sweep(lab.site) == []


# -------------------------------------------------------------------------------------------- what older systems lost


class Flipping(Directory):
    """A bucket on whose way one bit of the last kilobyte turns over."""

    def put(self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]) -> None:
        content = bytearray(b"".join(chunks))
        if len(content) > 2000:  # not of a marker
            content[-1024 - 600] ^= 1
        super().put(key, [bytes(content)], size=size, part_size=part_size, metadata=metadata)


def test_d2_every_byte_counts(lab: Lab) -> None:
    """Images that differ only after their first 10 KiB have different checksums, and a late flipped bit is found."""
    (announced,) = lab.acquired(1, images=2, size=128)
    one, two = sorted(announced.images.rglob("*.tif"))
    two.write_bytes(one.read_bytes()[:-1] + bytes([one.read_bytes()[-1] ^ 1]))
    assert one.read_bytes()[:10_240] == two.read_bytes()[:10_240]
    lab.export()  # refuses what changed since it was complete, and sends it back to waiting
    lab.clock.turn(minutes=15)
    lab.settle()
    lab.export()
    ref = Ref(announced.id, 1)
    told = {member.name: member.sha256 for member in manifest_of(lab.site, lab.ledger(ref)).members}
    for image in (one, two):
        name = str(image.relative_to(announced.images))
        assert told[name] == hashlib.sha256(image.read_bytes()).hexdigest()
    key = lab.ledger(ref).event.key
    content = bytearray(b"".join(lab.store.open(key)))
    content[20_000] ^= 1
    lab.store.put(key, [bytes(content)], size=len(content), part_size=1 << 24, metadata={})
    assert pipeline.verify(lab.site, ref, read_back=True).result == "damaged"


def test_d3_what_arrived_is_compared_with_what_was_sent(lab: Lab) -> None:
    """A bit flips on the way and the upload succeeds: no evidence, no purge, and it is sent again."""
    announced = lab.acquired(1)
    good, lab.store = lab.store, Flipping(lab.home / "bucket")
    assert [one.result for one in lab.export()] == ["exported", "damaged"]
    lab.clock.turn(days=9)
    assert {one.result for one in pipeline.purge(lab.site)} == {"refused"}
    assert intact(announced)
    lab.store = good
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d13_work_begun_before_a_restart_is_taken_up(lab: Lab) -> None:
    """A worker died with the event in its hands, and comes back under another name."""
    (announced,) = lab.acquired(1)
    ref = Ref(announced.id, 1)
    lab.catalog.lease(ref, owner="dead", ttl=lab.site.lease, now=lab.clock())
    assert lab.export() == []
    lab.clock.turn(minutes=11)
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d14_an_export_cannot_come_before_its_event(lab: Lab) -> None:
    """What nobody has registered is refused aloud, and not noted in silence; registered, it works."""
    announced = lab.acquire()
    ref = Ref(announced.id, 1)
    with pytest.raises(NotFound):
        pipeline.export(lab.site, ref)
    facts: dict[str, Any] = {
        "bucket": "b",
        "key": "k",
        "size": 1,
        "sha256": "",
        "etag": "",
        "part_size": 1,
        "member_count": 1,
    }
    facts |= {"manifest_offset": 0, "manifest_size": 1, "manifest_sha256": "", "uploaded_at": lab.clock()}
    with pytest.raises(NotFound):
        lab.catalog.record_export(Export(event_id=ref.id, revision=1, **facts), fence=1)
    lab.settle()
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d15_many_exports_while_nobody_looks_are_all_kept(lab: Lab) -> None:
    """More than the 150 that a capped stream held: each is a row before it is called done."""
    root = lab.bench / "aretha"
    (root / "events").mkdir(parents=True)
    for number in range(160):
        (root / f"{number}").mkdir()
        (root / f"{number}" / "1.tif").write_bytes(b"image")
        said: dict[str, Any] = {"ref_id": str(UUID(int=number, version=4)), "experiment_id": "e", "type": "stitch"}
        said |= {
            "system": "aretha",
            "metadata": {},
            "timestamp": "2026-05-04T06:00:00Z",
            "local_path": f"{number}",
            "img_count": 1,
        }
        (root / "events" / f"{number}.json").write_text(json.dumps(said))
    lab.store = open_store("memory://d15")
    assert len(lab.settle().sealed) == 160
    done = list(pipeline.each(pipeline.export, lab.site, pipeline.due(lab.site, "export")))
    assert [one.result for one in done] == ["exported"] * 160
    lab.catalog.close()
    assert len(pipeline.due(lab.site, "verify")) == 160


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"{}", b'{"ref_id": 1}', b"[" * 5000, b'{"ref_id": "x" "y"}'],
    ids=repr,
)
def test_d16_one_bad_message_stops_nobody(lab: Lab, content: bytes) -> None:
    """It is set aside with its bytes and a reason; what comes before and after it goes on."""
    before = lab.acquire("aretha")
    (lab.bench / "aretha" / "events" / "0-bad.json").write_bytes(content)
    lab.clock.turn(days=900)
    after = lab.acquire("aretha")
    lab.settle()
    assert [row.content for row in lab.catalog.quarantined()] == [content]
    assert {one.result for one in lab.export()} == {"exported", "verified"}
    assert {ledger.ref.id for ledger in lab.catalog.ledgers()} == {before.id, after.id}


@pytest.mark.parametrize("error", [Unavailable("away"), Denied("no"), NotFound("no such bucket"), Rejected("no")])
def test_d17_whatever_fails_is_noted(lab: Lab, error: PlatewayError) -> None:
    """Not only a failing disk: every error of ours leaves attempt, reason and next time, and the event stays due."""
    (announced,) = lab.acquired(1)
    ref = Ref(announced.id, 1)
    good, lab.store = lab.store, Broken(lab.home / "bucket", error)
    (outcome,) = lab.export()
    setback = lab.ledger(ref).setback("export")
    assert outcome.result in {"later", "failed"}
    assert setback is not None
    assert setback.reason == str(error)
    lab.clock.turn(minutes=15)
    lab.store = good
    assert [one.result for one in lab.export()] == ["exported", "verified"]


@pytest.mark.parametrize("error", [ValueError("a bug"), MemoryError(), KeyboardInterrupt()])
def test_d17_what_is_no_error_of_ours_rises_and_leaves_the_event_due(lab: Lab, error: BaseException) -> None:
    """A mistake in the code or a stop is nobody's business to swallow; the lease is free again."""
    (announced,) = lab.acquired(1)
    good, lab.store = lab.store, Broken(lab.home / "bucket", error)
    with pytest.raises(type(error)):
        pipeline.export(lab.site, Ref(announced.id, 1))
    lab.store = good
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d18_a_hiccup_costs_seconds(lab: Lab) -> None:
    """When the bucket answers again, what failed meanwhile is due at once, not after its pause."""
    events = lab.acquired(5)
    good, lab.store = lab.store, Broken(lab.home / "bucket", Unavailable("away"))
    for _ in range(4):
        assert {one.result for one in lab.export()} == {"later"}
        lab.clock.turn(minutes=10)
    assert {one.result for one in lab.export()} == {"later"}
    lab.store = good
    assert lab.export() == []
    assert pipeline.export(lab.site, Ref(events[0].id, 1)).result == "exported"
    assert sorted(one.result for one in lab.export()) == ["exported"] * 4 + ["verified"] * 5


def test_d18_what_is_the_events_own_fault_waits(lab: Lab) -> None:
    """The success of others says nothing of images that cannot be read, or of a disk without room."""
    own, other = lab.acquired(2)
    (own.images / min(own.files)).unlink()
    with pytest.raises(Unsettled):
        pipeline.export(lab.site, Ref(own.id, 1))
    full = Broken(lab.home / "bucket", DiskUnavailable("full"))
    good, lab.store = lab.store, full
    with pytest.raises(DiskUnavailable):
        pipeline.export(lab.site, Ref(other.id, 1))
    lab.store = good
    for event in (own, other):
        setback = lab.ledger(Ref(event.id, 1)).setback("export")
        assert setback is not None
        assert setback.cause == "event"


def test_d18_retries_are_as_many_as_it_takes(lab: Lab) -> None:
    """Ten failures, each at its time, the attempts counted; it is never given up."""
    (announced,) = lab.acquired(1)
    good, lab.store = lab.store, Broken(lab.home / "bucket", Unavailable("away"))
    ref, waits = Ref(announced.id, 1), []
    for attempt in range(1, 11):
        assert [one.result for one in lab.export()] == ["later"]
        setback = lab.ledger(ref).setback("export")
        assert setback is not None
        assert setback.attempt == attempt
        waits.append((setback.next_at - lab.clock()) / timedelta(minutes=1))
        assert lab.export() == []
        lab.clock.now = setback.next_at
    expected = [0.5, 1, 2, 5, 10, 60, 360, 360, 360, 360]
    assert [0.9 * minutes <= wait <= 1.1 * minutes for wait, minutes in zip(waits, expected, strict=True)] == [
        True
    ] * 10
    lab.store = good
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d20_an_upload_may_take_as_long_as_it_needs(lab: Lab) -> None:
    """Five hours, far beyond the lease, and it still counts."""
    (announced,) = lab.acquired(1)
    ref = Ref(announced.id, 1)

    def beat(sent: int) -> None:
        lab.clock.turn(hours=5)

    assert pipeline.export(lab.site, ref, beat=beat).result == "exported"
    assert pipeline.verify(lab.site, ref).result == "verified"


def test_d21_two_robots_in_one_second_do_not_overwrite_each_other(lab: Lab) -> None:
    """The same experiment, plate and second: two keys, two objects, each with its own images."""
    lab.number = 1
    one = lab.acquire("prince")
    lab.number = 1
    two = lab.acquire("aretha")
    lab.settle()
    assert [each.result for each in lab.export()] == ["exported", "exported", "verified", "verified"]
    events = [lab.catalog.get(Ref(each.id, 1)) for each in (one, two)]
    assert events[0].timestamp == events[1].timestamp
    assert events[0].experiment == events[1].experiment
    assert {found.key for found in lab.store.list() if not is_marker(found.key)} == {events[0].key, events[1].key}
    for each in (one, two):
        assert pipeline.verify(lab.site, Ref(each.id, 1), read_back=True).result == "verified"


def test_d22_what_happened_while_everything_was_down_is_found(lab: Lab) -> None:
    """Event files of last week, and one that was only half there: all are found by looking, none by having listened."""
    week = acquire_unseen(lab, 3)
    half = lab.acquire(fault="half-written-json")
    whole = half.path.read_bytes()
    half.path.write_bytes(whole[: len(whole) // 2])
    lab.clock.turn(days=7)
    lab.settle()
    half.path.write_bytes(whole)
    lab.settle()
    lab.export()
    assert {ledger.ref.id for ledger in lab.catalog.ledgers() if ledger.export} == {one.id for one in (*week, half)}


def acquire_unseen(lab: Lab, count: int) -> list[Announced]:
    announced = []
    for _ in range(count):
        announced.append(lab.acquire())
        lab.clock.turn(hours=1)
    return announced
