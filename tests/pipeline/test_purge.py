"""Purge and expiry under attack: what must hold right before the last moment, and what an operator's world does to it.

Where something has to happen in the midst of a verb, bucket or catalogue are wrapped: it happens between two of their
calls, on the real disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from plateway import pipeline
from plateway.archive import Entry, dump, open_archive
from plateway.bench import EVENT_FILE, TRASH
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import (
    Damaged,
    PlatewayError,
    Transient,
    Unavailable,
)
from plateway.events import Ref
from plateway.findings import Kind
from plateway.instruments import Policy
from plateway.keys import MARKER_FILE
from plateway.local import seaweed
from plateway.outcome import Restored, Result
from plateway.pipeline import Outcome, Site
from plateway.pipeline.places import adopt_place
from plateway.pipeline.purge import take_back
from plateway.simulator import Announced
from plateway.store import Store, open_store
from plateway.store.memory import Memory
from tests.databases import furnish
from tests.lab import Broken, Clock, Lab, intact, with_policy
from tests.soak import SOAK

EXPIRING = Policy(purge=True, lifespan=timedelta(hours=8), grace=timedelta(0), bucket_lifespan=timedelta(0))


class Acting:
    """A bucket or a catalogue that does something right before, or after, its nth call of a name, once."""

    def __init__(self, inner: Any, name: str, act: Callable[[], object], *, at: int = 1, after: bool = False) -> None:
        self._inner, self._name, self._act = inner, name, act
        self._left, self._after = at, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._name:
            return found

        def call(*args: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                self._act()
            result = found(*args, **named)
            if self._left == 0 and self._after:
                self._act()
            return result

        return call


def make(home: Path, store: Store, *, disks: Path | None = None) -> Lab:
    (disks or home).mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    clock = Clock()
    catalog = Catalog(f"sqlite:///{home / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    for name in ("bench", "tape"):
        (home / name).mkdir(exist_ok=True)
    return Lab(home, store, clock, catalog, archive=open_archive((home / "tape").as_uri()))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    (tmp_path / "bucket").mkdir()
    lab = make(tmp_path, open_store((tmp_path / "bucket").as_uri()))
    yield lab
    lab.catalog.close()


def results(outcomes: list[Outcome]) -> list[Result]:
    return sorted(one.result for one in outcomes)


def due(lab: Lab, system: str = "prince") -> tuple[Announced, Ref]:
    """Export an event and age it, so that its raw images may go."""
    announced, ref = lab.exported(system)
    lab.clock.turn(hours=9)
    return announced, ref


def trashed(lab: Lab) -> tuple[Announced, Ref, Path]:
    """Move an event to the trash, and let the grace pass."""
    announced, ref = due(lab)
    assert results(pipeline.purge(lab.site)) == ["trashed"]
    lab.clock.turn(hours=2)
    return announced, ref, lab.bench / announced.system / TRASH / str(ref) / "images"


def on_tape(lab: Lab, count: int = 1, *, policy: Policy = EXPIRING) -> list[Ref]:
    """Archive events; with what is purged from the bench first."""
    lab.policy = policy
    refs = []
    for _ in range(count):
        refs.append(lab.exported("aretha")[1])
        lab.clock.turn(days=1)
    for act in (pipeline.archive, pipeline.purge):
        act(lab.site)
    return refs


def gone(lab: Lab, ref: Ref, place: str = "raw") -> bool:
    purge = lab.ledger(ref).purge(place)
    return purge is not None and purge.gone_at is not None


def digests(path: Path) -> dict[str, str]:
    return {
        one.relative_to(path).as_posix(): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in path.rglob("*")
        if one.is_file()
    }


def whole(announced: Announced) -> bool:
    """Return whether every image lies in its place as the instrument wrote it, and is announced."""
    return digests(announced.images) == dict(announced.files) and announced.path.exists()


def rewrite(path: Path, content: bytes | None = None) -> bytes:
    """Write other bytes (or these) in place, and put the modification time back."""
    status, old = path.stat(), path.read_bytes()
    new = content if content is not None else bytes([old[0] ^ 1]) + old[1:]
    with path.open("r+b") as file:
        file.write(new)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return new


def renew_inode(path: Path) -> None:
    """Replace a file by another one with the same bytes, name and modification time."""
    status = path.stat()
    aside = path.with_name(f"{path.name}.new")
    aside.write_bytes(path.read_bytes())
    os.utime(aside, ns=(status.st_atime_ns, status.st_mtime_ns))
    aside.replace(path)


def first(directory: Path) -> Path:
    return min(directory.rglob("*.tif"))


def eager(lab: Lab, act: Callable[[], object], *, at: int = 1) -> Site:
    """Return a line whose lease is renewed with every chunk that is read, and acts at the nth time."""
    catalog: Any = Acting(lab.catalog, "renew", act, at=at)
    return replace(lab.site, catalog=catalog, lease=timedelta(microseconds=1))


# --------------------------------------------------------------------------------------- images that change meanwhile


@pytest.mark.parametrize("how", ["other inode", "touched", "added", "removed"])
def test_images_that_change_while_they_are_compared_stay(lab: Lab, how: str) -> None:
    """A13: what was hashed is not what would be moved; nothing moves, and no purge is recorded."""
    announced, ref = due(lab)
    image = first(announced.images)

    def change() -> None:
        match how:
            case "other inode":
                renew_inode(image)
            case "touched":
                os.utime(image, ns=(1, 1))
            case "added":
                image.with_name("Img_zzz.tif").write_bytes(b"late")
            case "removed":
                image.unlink()

    outcomes = pipeline.purge(eager(lab, change, at=2))  # the first file was read by then
    assert results(outcomes) == ["refused"]
    assert announced.images.exists() and announced.path.exists()
    assert lab.ledger(ref).purges == ()


def test_a_writer_that_never_rests_keeps_its_images(lab: Lab) -> None:
    """A13: a thread rewrites an image over and over, its time put back: the newest bytes are never lost."""
    announced, ref = due(lab)
    name = first(announced.images).relative_to(announced.images)
    trash = lab.bench / "prince" / TRASH / str(ref) / "images"
    written: list[bytes] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for path in (announced.images / name, trash / name):
                try:
                    written.append(rewrite(path))
                except FileNotFoundError:
                    continue

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(4):
            pipeline.purge(lab.site)
            lab.clock.turn(hours=2)
    finally:
        stop.set()
        thread.join()
    assert written
    there = [path for path in (announced.images / name, trash / name) if path.exists()]
    good = dict(announced.files)[name.as_posix()]
    assert there or hashlib.sha256(written[-1]).hexdigest() == good


# ------------------------------------------------------------------------------------------------- changes in the trash


@pytest.mark.parametrize("how", ["other bytes", "same bytes", "fewer", "more", "other inode", "hard link", "linked"])
def test_nothing_goes_that_was_touched_in_the_trash(lab: Lab, tmp_path: Path, how: str) -> None:
    """A13: rewritten in place with the time put back, one file fewer, another inode: all that is there comes back."""
    announced, ref, trash = trashed(lab)
    image = first(trash)
    match how:
        case "other bytes":
            rewrite(image)
        case "same bytes":
            rewrite(image, image.read_bytes())
        case "fewer":
            image.unlink()
        case "more":
            image.with_name("Img_zzz.tif").write_bytes(b"late")
        case "other inode":
            renew_inode(image)
        case "hard link":
            copy = tmp_path / "copy.tif"
            shutil.copy2(image, copy)
            image.unlink()
            os.link(copy, image)
        case "linked":
            os.link(image, tmp_path / "second-name.tif")
    left = digests(trash)
    assert results(pipeline.purge(lab.site)) == ["restored"]
    assert digests(announced.images) == left
    assert announced.path.exists()
    assert not gone(lab, ref)


@pytest.mark.parametrize("how", ["other inode", "touched", "more"])
def test_nothing_goes_that_changes_while_it_is_compared_in_the_trash(lab: Lab, how: str) -> None:
    """A13: the removal does not even begin."""
    announced, ref, trash = trashed(lab)
    image = first(trash)

    def change() -> None:
        if how == "other inode":
            renew_inode(image)
        elif how == "touched":
            os.utime(image, ns=(1, 1))
        else:
            image.with_name("Img_zzz.tif").write_bytes(b"late")

    chunks = 1 + len(announced.files)  # at least: the object, and then the files one by one
    outcomes = pipeline.purge(eager(lab, change, at=chunks))
    assert results(outcomes) == ["restored"]
    purge = lab.ledger(ref).purges[-1]
    assert purge.removing_at is None and purge.gone_at is None and purge.restored_at is not None
    assert announced.images.exists()


@pytest.mark.parametrize("how", ["other bytes", "other inode", "fewer and more"])
def test_nothing_goes_that_changes_between_hash_and_removal(lab: Lab, how: str) -> None:
    """A13: proven, and rewritten before the first file is unlinked: all bytes are still there."""
    _, ref, trash = trashed(lab)
    image = first(trash)

    def change() -> None:
        if how == "other bytes":
            rewrite(image)
        elif how == "other inode":
            renew_inode(image)
        else:
            image.rename(image.with_name("Img_zzz.tif"))

    catalog: Any = Acting(lab.catalog, "record_removing", change, after=True)
    count = len(digests(trash))
    assert results(pipeline.purge(replace(lab.site, catalog=catalog))) == ["refused"]
    left = digests(trash)
    assert len(left) == count and not gone(lab, ref)
    lab.clock.turn(hours=2)
    if how != "other inode":  # the same bytes are proven the next time, and go
        assert "gone" not in results(pipeline.purge(lab.site))
        assert digests(trash) == left


def test_an_interrupted_removal_goes_on_with_what_was_proven(lab: Lab) -> None:
    """A13: fewer files than were proven are fine only after a removal of ours had begun; another one is never."""
    _, ref, trash = trashed(lab)

    class Cut(Exception):
        pass

    def cut() -> None:
        first(trash).unlink()
        raise Cut

    catalog: Any = Acting(lab.catalog, "record_removing", cut, after=True)
    with pytest.raises(Cut):
        pipeline.purge(replace(lab.site, catalog=catalog))
    image = first(trash)
    kept = image.read_bytes()
    lab.clock.turn(hours=2)
    other = rewrite(image)
    assert "gone" not in results(pipeline.purge(lab.site))
    assert image.read_bytes() == other
    rewrite(image, kept)
    lab.clock.turn(hours=2)
    assert results(pipeline.purge(lab.site)) == ["gone"]
    assert gone(lab, ref) and not trash.exists()


def test_the_event_file_goes_with_its_images_only(lab: Lab) -> None:
    """What else lies in the trash beside the images keeps all of it."""
    _, ref, trash = trashed(lab)
    (trash.parent / "note.txt").write_text("whose?")
    assert "gone" not in results(pipeline.purge(lab.site))
    assert (trash.parent / "note.txt").exists() and (trash.parent / EVENT_FILE).exists()
    assert not gone(lab, ref)


# ----------------------------------------------------------------------------------------------------- the whole object


def flip_on_disk(data: Path, content: bytes, *, count: int = 64) -> None:
    """Flip bytes of a stored object on the disk of its server, behind its back."""
    for path in sorted(data.rglob("*.dat")):
        stored = path.read_bytes()
        at = stored.find(content[: 1 << 12])
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at + 1024)
                piece = file.read(count)
                file.seek(at + 1024)
                file.write(bytes(one ^ 0xFF for one in piece))
                file.flush()
                os.fsync(file.fileno())
            return
    raise AssertionError("the object is not in a volume file")


@pytest.mark.parametrize("when", ["in the trash", *["on the bench"] * SOAK])  # such a server takes its time to say so
def test_rot_on_the_disk_of_the_s3_server_keeps_the_images(tmp_path: Path, when: str) -> None:
    """A1: HEAD is fine and GET fails: nothing is removed, the damage is recorded, the outcome is ``damaged``."""
    with seaweed.serve(tmp_path / "s3", buckets=["raw"]) as server:
        endpoint = Endpoint(
            url=server.url,
            access_key_id=server.access_key_id,
            secret_access_key=SecretStr(server.secret_access_key),
        )
        lab = make(tmp_path / "lab", open_store("s3://raw", endpoint))
        announced = lab.acquire(images=3, size=512)
        lab.settle()
        assert results(lab.export()) == ["exported", "verified"]
        other, _ = lab.exported()  # so that the server can be seen to serve
        ref = Ref(announced.id, 1)
        image = first(announced.images).read_bytes()
        lab.clock.turn(hours=9)
        if when == "in the trash":
            assert results(pipeline.purge(lab.site)) == ["trashed", "trashed"]
        flip_on_disk(tmp_path / "s3", image)
        export = lab.ledger(ref).export
        assert export is not None
        found = lab.store.stat(export.key)
        assert found is not None and (found.size, found.etag) == (export.size, export.seen_etag)
        outcomes: list[Outcome] = []
        for _ in range(3):
            outcomes += pipeline.purge(lab.site)
            lab.clock.turn(hours=2)
        mine = [one.result for one in outcomes if one.ref == ref]
        assert "damaged" in mine and "gone" not in mine
        assert whole(announced)
        assert lab.state(ref) == "changed"
        assert [one.kind for one in lab.catalog.incidents(ref) if one.kind == "damage"]
        assert not other.images.exists()
        lab.catalog.close()


# --------------------------------------------------------------------------------------------------- the archive's word


def tell(lab: Lab, ref: Ref, *, exact: bool) -> None:
    """Receive a manifest that names a tar which nobody has."""
    export = lab.ledger(ref).export
    assert export is not None
    facts = (export.size, export.sha256, 0) if exact else ()
    entry = Entry("nowhere.tar", f"{export.bucket}/{export.key}", f"./{Path(export.key).name}", *facts)
    content = dump("1", lab.clock().date(), entries=[entry])
    assert pipeline.receive(lab.site, content, source="inbox", name="1.json").result == "received"
    assert "archived" in results(pipeline.settle(lab.site))


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_a_bucket_copy_never_goes_on_a_manifest(lab: Lab, exact: bool, reachable: bool) -> None:
    """A2: right checksum, no tar, with and without an archive in reach; the bench was purged meanwhile."""
    lab.policy = EXPIRING
    announced, ref = due(lab)
    lab.archive = lab.archive if reachable else None
    tell(lab, ref, exact=exact)
    for _ in range(4):
        pipeline.purge(lab.site)
        assert "expired" not in results(pipeline.expire(lab.site))
        lab.clock.turn(days=2)
    assert not announced.images.exists()
    assert lab.store.stat(lab.ledger(ref).event.key) is not None
    assert not gone(lab, ref, "bucket")


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_raw_images_that_need_tape_never_go_on_a_manifest(lab: Lab, exact: bool, reachable: bool) -> None:
    """A3: ``bucket+archive`` wants a copy on tape that we read; a real one satisfies it."""
    with_policy(lab, requires="bucket+archive", grace=timedelta(0))
    lab.exported("aretha")
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)  # so that the archive is known
    announced, ref = due(lab)
    archive, lab.archive = lab.archive, lab.archive if reachable else None
    tell(lab, ref, exact=exact)
    for _ in range(3):
        assert "gone" not in results(pipeline.purge(lab.site, systems=["prince"]))
        lab.clock.turn(days=1)
    assert not gone(lab, ref)
    assert whole(announced) or any((lab.bench / "prince" / TRASH).rglob("*.tif"))
    if exact:  # a tar that only a manifest knows keeps the images, until somebody looks into it
        return
    lab.archive = archive
    pipeline.read_archive(lab.site, budget=1 << 30)
    pipeline.archive(lab.site)
    for _ in range(3):
        pipeline.purge(lab.site, systems=["prince"])
        lab.clock.turn(days=1)
    assert gone(lab, ref)
    assert lab.ledger(ref).archives[0].read_at is not None


# -------------------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("left", ["empty", "nothing"])
def test_an_archive_that_is_not_mounted_is_neither_written_nor_believed(lab: Lab, left: str) -> None:
    """A4: nothing is written to the mount point, nothing expires because of it; mounted again all goes on."""
    (early,) = on_tape(lab)
    tape = lab.home / "tape"
    tape.rename(lab.home / "away")
    if left == "empty":
        tape.mkdir()
    _, late = lab.exported("aretha")
    lab.clock.turn(days=1)
    outcomes = pipeline.archive(lab.site) if left == "empty" else []
    assert not {"written", "archived"} & set(results(outcomes))
    assert left != "empty" or not list(tape.iterdir())
    for _ in range(3):
        assert "expired" not in results(pipeline.expire(lab.site))
        lab.clock.turn(hours=2)
    for ref in (early, late):
        assert lab.store.stat(lab.ledger(ref).event.key) is not None
    assert all(one.damage is None for one in lab.ledger(early).archives)
    if left == "empty":
        tape.rmdir()
    (lab.home / "away").rename(tape)
    for act in (pipeline.archive, pipeline.purge, pipeline.expire, pipeline.expire):
        act(lab.site)
        lab.clock.turn(hours=9)
    assert gone(lab, early, "bucket")
    assert pipeline.restore(lab.site, early, to=lab.home / "out").result == "restored"


def test_a_bucket_that_is_not_mounted_is_neither_written_nor_believed(lab: Lab) -> None:
    """A4: nothing is sent to the mount point, no image goes, no export is taken to be lost."""
    announced, ref = due(lab)
    bucket = lab.home / "bucket"
    bucket.rename(lab.home / "away")
    bucket.mkdir()
    late = lab.acquire()
    lab.settle()
    assert results(lab.export()) == ["later"]
    assert results(pipeline.purge(lab.site)) != ["gone"]
    with pytest.raises(Transient):
        pipeline.verify(lab.site, ref, read_back=True)
    assert pipeline.reconcile(lab.site, repair=True).stopped
    assert not list(bucket.iterdir())
    assert whole(announced) and whole(late)
    assert lab.state(ref) == "exported"
    bucket.rmdir()
    (lab.home / "away").rename(bucket)
    assert "trashed" in results(pipeline.purge(lab.site))
    lab.clock.turn(hours=2)
    assert "gone" in results(pipeline.purge(lab.site))
    assert gone(lab, ref)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"place": 1, "site": 2}'])
def test_a_place_with_a_damaged_marker_waits_to_be_adopted(lab: Lab, content: bytes) -> None:
    """A4: it is not known whose it is, so nothing goes; an operator takes it over, and all goes on."""
    announced, ref, _ = trashed(lab)
    (lab.bench / "prince" / "events" / MARKER_FILE).write_bytes(content)
    assert not {"gone", "restored"} & set(results(pipeline.purge(lab.site)))
    adopt_place(lab.site, "bench/prince")
    assert results(pipeline.purge(lab.site)) == ["gone"]
    assert gone(lab, ref) and not announced.images.exists()


@pytest.mark.parametrize("found", ["reconcile", "read"])
def test_harm_to_only_copies_is_found_for_ever(lab: Lab, found: str) -> None:
    """A5: after expiry one tar is deleted and one has a flipped bit; 30 days later both are reported, as states."""
    lost, changed, sound = on_tape(lab, 3)
    for _ in range(2):
        pipeline.expire(lab.site)
        lab.clock.turn(hours=2)
    assert all(gone(lab, ref, "bucket") and gone(lab, ref) for ref in (lost, changed, sound))
    tape = lab.home / "tape"
    (tape / lab.ledger(lost).archives[0].path).unlink()
    where = lab.ledger(changed).archives[0]
    path, at = tape / where.path, (where.offset or 0) + 700
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    lab.clock.turn(days=30)
    if found == "reconcile":
        told = {one.ref for one in pipeline.reconcile(lab.site).findings if one.kind is Kind.ONLY_COPY}
        assert told == {lost}
        assert lab.state(lost) == "lost"
        lab.clock.turn(days=2)  # what is damaged is read again once a day
    damaged = {one.ref for one in pipeline.read_archive(lab.site, budget=1 << 30) if one.result == "damaged"}
    assert damaged == {lost, changed}
    assert (lab.state(lost), lab.state(changed), lab.state(sound)) == ("lost", "changed", "purged")
    told = {one.ref for one in pipeline.reconcile(lab.site).findings if one.kind is Kind.ONLY_COPY}
    assert told == {lost, changed}
    with pytest.raises(Damaged):
        pipeline.restore(lab.site, changed, to=lab.home / "out")
    path.write_bytes(data)
    lab.clock.turn(days=2)
    pipeline.read_archive(lab.site, budget=1 << 30)
    assert (lab.state(lost), lab.state(changed)) == ("lost", "purged")


def test_raw_images_never_go_against_memory(tmp_path: Path) -> None:
    """A9: a bucket in this process is no proof, however well it reads."""
    lab = make(tmp_path, Memory("bucket"))
    with_policy(lab, grace=timedelta(0))
    announced, ref = due(lab)
    for _ in range(3):
        assert results(pipeline.purge(lab.site)) == ["refused"]  # before anything is moved aside
        lab.clock.turn(hours=9)
    assert not gone(lab, ref)
    assert whole(announced)
    lab.catalog.close()


def test_bucket_copies_never_go_against_an_archive_in_memory(lab: Lab) -> None:
    """A9: nor is an archive there."""
    lab.archive = open_archive("memory://tape-of-test-purge")
    (ref,) = on_tape(lab)
    for _ in range(3):
        assert "expired" not in results(pipeline.expire(lab.site))
        lab.clock.turn(hours=9)
    assert not gone(lab, ref, "bucket")
    assert lab.store.stat(lab.ledger(ref).event.key) is not None


@pytest.mark.parametrize("taped", [False, True])
def test_a_rule_of_the_bucket_that_deletes_keeps_the_images(
    tmp_path: Path, endpoint: Endpoint, bucket: str, client: Any, taped: bool
) -> None:
    """A10: on a real server; with a copy on tape that we read they go, and without a rule again."""
    lab = make(tmp_path, open_store(f"s3://{bucket}/raw", endpoint))
    with_policy(lab, grace=timedelta(0))
    announced, ref = due(lab)
    if taped:
        lab.clock.turn(days=1)
        pipeline.archive(lab.site)
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "raw/"}, "Expiration": {"Days": 1}}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    outcomes = pipeline.purge(lab.site)
    if taped:
        assert "gone" in results(outcomes)
    else:
        assert "gone" not in results(outcomes) and not gone(lab, ref)
        assert whole(announced)
        client.delete_bucket_lifecycle(Bucket=bucket)
        lab.clock.turn(hours=9)
        assert "gone" in results(pipeline.purge(lab.site))
    assert not announced.images.exists()
    lab.catalog.close()


# --------------------------------------------------------------------------------------------------------- other sites


@dataclass
class Neighbour(Lab):
    """Another site: a catalogue of its own, on somebody else's bench."""

    disks: Path | None = None

    @property
    def bench(self) -> Path:
        return (self.disks or self.home) / "bench"


def neighbour(lab: Lab, *, same_bench: bool) -> Neighbour:
    home = lab.home / "neighbour"
    made = make(home, lab.store)
    made.catalog.close()
    catalog = Catalog(f"sqlite:///{home / 'catalogue.db'}", clock=lab.clock)
    archive = open_archive((home / "tape").as_uri())
    number, disks = 1000, lab.home if same_bench else None
    return Neighbour(home, lab.store, lab.clock, catalog, number=number, archive=archive, disks=disks)


def test_what_another_site_sent_is_neither_adopted_nor_expired(lab: Lab) -> None:
    """A11: two sites in one bucket: a finding, never repaired, however long it lies there."""
    lab.exported("aretha")
    other = neighbour(lab, same_bench=False)
    _, theirs = other.exported("aretha")
    key = other.ledger(theirs).event.key
    with_policy(lab, purge=False, grace=timedelta(0), bucket_lifespan=timedelta(0))
    for _ in range(3):
        found = pipeline.reconcile(lab.site, repair=True)
        assert {one.kind for one in found.findings if one.key == key} == {Kind.FOREIGN}
        lab.clock.turn(days=2)
        for act in (pipeline.archive, pipeline.expire, pipeline.expire):
            act(lab.site)
    assert len(lab.catalog.ledgers()) == 1
    assert pipeline.verify(other.site, theirs, read_back=True).result == "verified"
    other.catalog.close()


def test_a_second_catalogue_does_not_purge_the_same_bench(lab: Lab) -> None:
    """A12: it registers and exports; the bench goes by the site whose marker it carries, or after it was adopted."""
    announced, ref = due(lab)
    pipeline.purge(lab.site, dry_run=True)  # the bench carries the site's marker from now on
    other = neighbour(lab, same_bench=True)
    with_policy(other, grace=timedelta(0))
    other.settle()
    other.export()
    lab.clock.turn(hours=9)
    for _ in range(2):
        assert not {"trashed", "gone"} & set(results(pipeline.purge(other.site)))
        assert whole(announced)
        lab.clock.turn(hours=2)
    for name in ("bench", "bench/prince", "trash/prince"):
        adopt_place(other.site, name)
    assert not {"trashed", "gone"} & set(results(pipeline.purge(lab.site)))  # now it is no longer the first one's
    assert whole(announced)
    assert not gone(lab, ref)
    assert "gone" in results(pipeline.purge(other.site))
    other.catalog.close()


def test_another_site_moves_nothing_out_of_the_trash(lab: Lab) -> None:
    """The bench was adopted by another site while images lay aside: a restore of the first one leaves them there."""
    _, ref, aside = trashed(lab)
    other = neighbour(lab, same_bench=True)
    for name in ("bench", "bench/prince", "trash/prince"):
        adopt_place(other.site, name)
    there = digests(aside)
    ledger = lab.ledger(ref)
    purge = ledger.purge("raw")
    assert purge is not None
    with pytest.raises(PlatewayError):
        pipeline.restore(lab.site, ref, to_bench=True)
    with pytest.raises(PlatewayError):
        take_back(lab.site, ledger, purge, reason="asked", cause=Restored.REQUESTED)
    assert digests(aside) == there
    other.catalog.close()


def test_staging_that_is_not_mounted_is_not_purged(lab: Lab) -> None:
    """Copies in a directory that does not carry the marker of the staging disk stay."""
    staging = lab.home / "staging" / "prince"
    staging.parent.mkdir()
    lab.options = {"staging": staging}
    with_policy(lab, purge=False, staging_lifespan=timedelta(hours=2), grace=timedelta(0))
    _, ref = due(lab)
    staging.rename(lab.home / "away")
    shutil.copytree(lab.home / "away" / str(ref), staging / str(ref))
    for _ in range(2):
        assert "gone" not in results(pipeline.purge(lab.site))
        lab.clock.turn(hours=9)
    assert (staging / str(ref)).exists()


@pytest.mark.parametrize(("proof", "weaker"), [("read", False), ("head", True)])
def test_a_purge_on_a_head_request_is_called_weaker(lab: Lab, proof: Literal["read", "head"], weaker: bool) -> None:
    """A1: in each of its outcomes; one that read the copy says nothing of the kind."""
    with_policy(lab, proof=proof, grace=timedelta(0))
    due(lab)
    for outcomes in (pipeline.purge(lab.site, dry_run=True), pipeline.purge(lab.site)):
        assert all(("weaker proof" in str(one.reasons)) is weaker for one in outcomes if one.ref)


# -------------------------------------------------------------------------------------------------- leases and policies


@pytest.mark.parametrize("step", ["begin", "finish"])
def test_a_proof_that_outlives_its_lease_is_refused(lab: Lab, step: str) -> None:
    """A14: a second purge takes the event over in the midst of reading: the first one's effects are fenced off."""
    if step == "begin":
        announced, ref = due(lab)
    else:
        announced, ref, _ = trashed(lab)
    second: list[Outcome] = []

    def meanwhile() -> None:
        lab.clock.turn(minutes=11)
        second.extend(pipeline.purge(replace(lab.site, owner="second")))

    store: Any = Acting(lab.store, "open", meanwhile, at=2)  # the first is that of the marker
    first_ = pipeline.purge(replace(lab.site, store=store))
    assert second
    told = results(first_) + results(second)
    assert told.count(Result.GONE) + told.count(Result.TRASHED) <= 1 + ("later" not in told)
    assert whole(announced) or (lab.bench / "prince" / TRASH / str(ref) / "images").exists() or gone(lab, ref)
    lab.clock.turn(hours=2)
    for _ in range(2):
        pipeline.purge(lab.site)
        lab.clock.turn(hours=2)
    assert gone(lab, ref)
    assert not announced.images.exists()
    assert len([one for one in lab.ledger(ref).purges if one.gone_at is not None]) == 1


@pytest.mark.parametrize("step", ["begin", "finish"])
def test_a_proof_renews_its_lease_while_it_reads(lab: Lab, step: str) -> None:
    """A14: a lease of a microsecond lasts, because every chunk renews it: a second purge finds the event held."""
    if step == "begin":
        _, ref = due(lab)
    else:
        _, ref, _ = trashed(lab)
    second: list[Outcome] = []

    def meanwhile() -> None:
        second.extend(pipeline.purge(replace(lab.site, owner="second")))

    catalog: Any = Acting(lab.catalog, "renew", meanwhile, at=2, after=True)
    site = replace(lab.site, catalog=catalog, lease=timedelta(microseconds=1))
    expected = Result.TRASHED if step == "begin" else Result.GONE
    assert expected in results(pipeline.purge(site))
    assert second and not {"trashed", "gone", "restored"} & set(results(second))
    assert len(lab.ledger(ref).purges) == 1


@pytest.mark.parametrize(
    "stricter",
    [{"purge": False}, {"lifespan": timedelta(days=9)}, {"requires": "bucket+archive"}, {"requires": "tape"}],
)
def test_a_policy_that_became_stricter_counts_at_the_removal(lab: Lab, stricter: dict[str, Any]) -> None:
    """A16: moved aside under one policy, judged under today's: the images come back, whole."""
    announced, ref, _ = trashed(lab)
    with_policy(lab, **stricter)
    assert "restored" in results(pipeline.purge(lab.site))
    assert whole(announced)
    assert not gone(lab, ref)


def test_a_longer_grace_counts_at_the_removal(lab: Lab) -> None:
    """A16: they stay where they are, until it is over."""
    _, ref, trash = trashed(lab)
    with_policy(lab, grace=timedelta(days=3))
    assert results(pipeline.purge(lab.site)) == ["trashed"]
    assert trash.exists() and not gone(lab, ref)


# ---------------------------------------------------------------------------------------------------------- tombstones


@pytest.mark.parametrize("marked", [False, True])
def test_a_swapped_disk_leaves_no_tombstone(lab: Lab, marked: bool) -> None:
    """A17: another disk is there during the grace; images and purge are found when the first one is back."""
    _, ref, trash = trashed(lab)
    disk, away = lab.bench / "prince", lab.home / "away"
    disk.rename(away)
    (disk / "events").mkdir(parents=True)
    (disk / TRASH).mkdir()
    if marked:
        told = (away / "events" / ".plateway-place").read_bytes()
        (disk / "events" / ".plateway-place").write_bytes(told.replace(told[70:78], b"00000000"))
    lab.acquire()
    assert not {"gone", "restored"} & set(results(pipeline.purge(lab.site)))
    purge = lab.ledger(ref).purge("raw")
    assert purge is not None and purge.gone_at is None
    shutil.rmtree(disk)
    away.rename(disk)
    assert trash.exists()
    assert "gone" in results(pipeline.purge(lab.site))


def test_images_that_went_from_the_trash_leave_no_tombstone(lab: Lab) -> None:
    """A17: somebody emptied the trash: that is damage, and no removal of ours."""
    _, ref, trash = trashed(lab)
    shutil.rmtree(trash.parent)
    outcomes = pipeline.purge(lab.site)
    assert results(outcomes) == ["damaged"]
    assert not gone(lab, ref)


@pytest.mark.parametrize("stage", ["exported", "trashed"])
def test_an_old_catalogue_leaves_no_tombstone_for_what_is_there(lab: Lab, stage: str) -> None:
    """A17: it knows less than the disk shows; no image goes, and none is said to be gone that is there."""
    announced, ref = due(lab)
    if stage == "trashed":
        pipeline.purge(lab.site)
    old = lab.home / "old.db"
    lab.catalog.close()
    shutil.copy(lab.home / "catalogue.db", old)
    lab.catalog = Catalog(f"sqlite:///{lab.home / 'catalogue.db'}", clock=lab.clock)
    if stage == "trashed":
        pipeline.restore(lab.site, ref, to_bench=True)
    else:
        pipeline.purge(lab.site)
    before = digests(lab.bench)
    lab.catalog.close()
    for path in lab.home.glob("catalogue.db-*"):
        path.unlink()
    shutil.copy(old, lab.home / "catalogue.db")
    lab.catalog = Catalog(f"sqlite:///{lab.home / 'catalogue.db'}", clock=lab.clock)
    lab.clock.turn(hours=2)
    pipeline.purge(lab.site)
    assert not gone(lab, ref)
    tiffs = {sha256 for name, sha256 in digests(lab.bench).items() if name.endswith(".tif")}
    assert tiffs == {sha256 for name, sha256 in before.items() if name.endswith(".tif")}
    pipeline.reconcile(lab.site, repair=True)
    assert whole(announced)


def test_what_a_cut_off_restore_left_is_found_and_cleared(lab: Lab) -> None:
    """A17: a ``.back`` directory is a finding, and restoring again clears it."""
    announced, ref, _ = trashed(lab)
    assert results(pipeline.purge(lab.site)) == ["gone"]
    back = lab.bench / "prince" / TRASH / f"{ref}.back"
    assert pipeline.restore(lab.site, ref, to_bench=True).result == "restored"
    image = first(announced.images)
    kept = back / "images" / image.relative_to(announced.images)
    kept.parent.mkdir(parents=True)
    shutil.copy(image, kept)
    found = pipeline.reconcile(lab.site)
    assert [one.key for one in found.findings if one.kind is Kind.TRASH] == [back.name]
    pipeline.restore(lab.site, ref, to_bench=True)
    assert not back.exists()
    assert whole(announced)


# -------------------------------------------------------------------------------------------- what older systems lost


def test_d1_nothing_is_purged_for_its_age_alone(lab: Lab) -> None:
    """Four directories, months old, never exported: all stay, and it is said why."""
    announced = lab.acquired(4)
    lab.clock.turn(days=99)
    outcomes = pipeline.purge(lab.site, fraction=1.0)
    assert {one.reasons for one in outcomes} == {("not exported",)}
    assert intact(announced)


def test_d19_what_is_still_tried_is_not_purged(lab: Lab) -> None:
    """The retries last for days, longer than raw images are kept: the images wait for them."""
    announced = lab.acquired(1)
    good, lab.store = lab.store, Broken(lab.home / "bucket", Unavailable("away"))
    for _ in range(12):
        lab.export()
        lab.clock.turn(hours=8)
        assert {one.result for one in pipeline.purge(lab.site)} == {"refused"}
    assert intact(announced)
    lab.store = good
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d23_a_directory_that_is_gone_stops_nobody(lab: Lab) -> None:
    """The first one was removed by hand: that is told, and the others are purged."""
    first, *others = lab.acquired(3)
    lab.export()
    shutil.rmtree(first.images)
    lab.clock.turn(hours=9)
    outcomes = pipeline.purge(lab.site)
    assert {one.result for one in outcomes if one.ref == Ref(first.id, 1)} == {"refused"}
    assert {one.result for one in outcomes if one.ref != Ref(first.id, 1)} == {"trashed"}
    assert not any(one.images.exists() for one in others)


def test_d24_a_purge_that_comes_months_late_still_purges(lab: Lab) -> None:
    """There is no window to miss."""
    (announced,) = lab.acquired(1)
    lab.export()
    lab.clock.turn(days=120)
    pipeline.purge(lab.site)
    lab.clock.turn(days=1)
    assert [one.result for one in pipeline.purge(lab.site)] == ["gone"]
    assert not announced.images.exists()
