"""The way back: one image, or everything of an event, from whichever copy has it, to a directory or to the bench."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from plateway import bundle, events, folder, pipeline
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import (
    Busy,
    Conflict,
    Damaged,
    NotFound,
    PlatewayError,
    Refused,
    Rejected,
    Unavailable,
    Unsettled,
)
from plateway.events import Ref
from plateway.pipeline import ingest, read
from plateway.pipeline.restore import _room, _runs
from plateway.records import Export
from plateway.simulator import Announced
from plateway.store import Store, open_store
from plateway.store.memory import Memory
from tests.databases import furnish
from tests.lab import Clock, Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name in ("bench", "bucket", "tape", "staging"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    archive = open_archive((tmp_path / "tape").as_uri())
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog, archive=archive)
    catalog.close()


@pytest.fixture(params=["memory", "directory", "s3"])
def anywhere(lab: Lab, request: pytest.FixtureRequest) -> Lab:
    """The laboratory with each kind of bucket in turn."""
    if request.param == "memory":
        lab.store = Memory()
    elif request.param == "s3":
        endpoint: Endpoint = request.getfixturevalue("endpoint")
        lab.store = open_store(f"s3://{request.getfixturevalue('bucket')}", endpoint)
    return lab


class Counting:
    """A store that counts what is read of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.durable = store.durable
        self.name, self.put, self.stat, self.list = store.name, store.put, store.stat, store.list
        self.delete, self.sign, self.uploads, self.abort = store.delete, store.sign, store.uploads, store.abort
        self.delete_all, self.tags, self.lifecycle, self.lock = (
            store.delete_all,
            store.tags,
            store.lifecycle,
            store.lock,
        )
        self.reads: list[int] = []

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        number = len(self.reads)
        self.reads.append(0)
        for chunk in self._store.open(key, start=start, length=length):
            self.reads[number] += len(chunk)
            yield chunk


class Broken(Counting):
    """A store that breaks off after some bytes of every read."""

    def __init__(self, store: Store, after: int) -> None:
        super().__init__(store)
        self.after = after

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length is not None and start and length < 1 << 20:  # the manifest
            yield from super().open(key, start=start, length=length)
            return
        yield from super().open(key, start=start, length=min(self.after, length or self.after))
        raise Unavailable("the connection was reset")


def content(lab: Lab, key: str) -> bytes:
    return b"".join(lab.store.open(key))


def damage(lab: Lab, key: str, at: int, *, cut: int | None = None) -> None:
    """Turn one byte of an object over, and cut it off."""
    bad = bytearray(content(lab, key))
    bad[at] ^= 255
    bad = bad[:cut]
    lab.store.put(key, [bytes(bad)], size=len(bad), part_size=1 << 26, metadata={})


def tape(
    lab: Lab, *refs: Ref, path: str = "images/x/2026-05-04.tar", told: Sequence[str] = ("size", "sha256")
) -> bytes:
    """Write exports into one archive and let it report them, with so much evidence; return the manifest."""
    assert lab.archive is not None
    buffer, members = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for ref in refs:
            key = lab.ledger(ref).event.key
            data = content(lab, key)
            member = tarfile.TarInfo(f"./{key.rpartition('/')[2]}")
            member.size = len(data)
            offset = buffer.tell() + 512
            tar.addfile(member, io.BytesIO(data))
            facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "offset": offset}
            members.append({"key": f"{lab.store.name}/{key}", "name": member.name, **{n: facts[n] for n in told}})
    lab.archive.write(path, [buffer.getvalue()])
    notice = {
        "job_id": f"job-{len(path)}",
        "date": "2026-05-04",
        "archives": [{"path": path, "src_keys": [one["key"] for one in members], "members": members}],
    }
    manifest = json.dumps(notice).encode()
    assert ingest.receive(lab.site, manifest, source="inbox", name="notice.json").reasons == ()
    ingest.settle(lab.site)
    assert all(lab.ledger(ref).archives for ref in refs)
    return manifest


def arrived(announced: Announced, place: Path) -> None:
    """Every file is there as the instrument wrote it, and nothing else."""
    found = {str(file.relative_to(place)): file for file in place.rglob("*") if file.is_file()}
    assert {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in found.items()} == announced.files


def nothing_left(to: Path) -> None:
    """Nothing half written lies about."""
    assert [path.name for path in to.iterdir() if path.name.startswith(".")] == []


# ------------------------------------------------------------------------------------------------------------ one image


def test_one_image_is_one_ranged_read(anywhere: Lab) -> None:
    """By its name on the bench: the manifest is read, then the image, and not a byte more."""
    announced, ref = anywhere.exported("aretha")
    export = anywhere.ledger(ref).export
    assert export is not None
    anywhere.store = counting = Counting(anywhere.store)
    for name, sha256 in announced.files.items():
        counting.reads.clear()
        image = b"".join(pipeline.cat(anywhere.site, ref, name))
        assert hashlib.sha256(image).hexdigest() == sha256
        assert counting.reads == [export.manifest_size, len(image)]


def test_a_file_that_gave_way_to_the_manifest_is_found_by_both_names(lab: Lab) -> None:
    """The images' own metadata.json is called otherwise in the bundle."""
    announced = lab.acquire("aretha")
    own = b'{"lens": "50 mm"}'
    (announced.images / "metadata.json").write_bytes(own)
    lab.settle()
    lab.export()
    ref = Ref(announced.id, 1)
    assert b"".join(pipeline.cat(lab.site, ref, "metadata.json")) == own
    assert b"".join(pipeline.cat(lab.site, ref, "./source-metadata.json")) == own


def test_a_wrong_name_is_answered_with_near_ones(lab: Lab) -> None:
    """Somebody forgot the directory, or mistyped."""
    announced, ref = lab.exported()
    name = min(announced.files)
    with pytest.raises(NotFound, match=f"similar: {name}"):
        pipeline.cat(lab.site, ref, name.rpartition("/")[2][:-1])
    with pytest.raises(NotFound, match="others are"):
        pipeline.cat(lab.site, ref, "~")


def test_what_nobody_has_is_not_found(lab: Lab) -> None:
    """Not exported, lost, or asked for where it is not: each is said."""
    announced = lab.acquire()
    lab.settle()
    ref = Ref(announced.id, 1)
    with pytest.raises(NotFound, match="not exported yet"):
        pipeline.cat(lab.site, ref, "x")
    lab.export()
    with pytest.raises(NotFound, match="no copy to read in the archive: the bucket has it; no tape has it"):
        pipeline.cat(lab.site, ref, "x", source="archive")
    lab.store.delete(lab.ledger(ref).event.key)
    pipeline.verify(lab.site, ref)
    with pytest.raises(NotFound, match="the bucket copy is lost"):
        pipeline.restore(lab.site, ref, to=lab.home / "to")


@pytest.mark.parametrize("told", [("size", "sha256", "offset"), ("size", "sha256"), ("size",), ()])
def test_an_image_comes_from_inside_an_archive(lab: Lab, told: tuple[str, ...]) -> None:
    """Whatever the archive told of its members: where none says the offset, the headers do."""
    (announced, ref), (_, other) = lab.exported(), lab.exported("aretha")
    tape(lab, other, ref, told=told)
    name, sha256 = min(announced.files.items())
    image = b"".join(pipeline.cat(lab.site, ref, name, source="archive"))
    assert hashlib.sha256(image).hexdigest() == sha256


def test_a_damaged_image_comes_from_the_next_copy(lab: Lab) -> None:
    """The wrong bytes in the bucket are never handed out; without another copy there is an error instead."""
    announced, ref = lab.exported()
    name, sha256 = min(announced.files.items())
    damage(lab, lab.ledger(ref).event.key, 600)
    with pytest.raises(Damaged, match=f"{name}: bucket .* expected"):
        pipeline.cat(lab.site, ref, name)
    good = lab.exported("aretha")[1]
    tape(lab, good)
    damage(lab, lab.ledger(ref).event.key, 600)  # once more: right again
    tape(lab, ref, path="images/y/2026-05-04.tar")
    damage(lab, lab.ledger(ref).event.key, 600)
    assert hashlib.sha256(b"".join(pipeline.cat(lab.site, ref, name))).hexdigest() == sha256


def large(lab: Lab) -> tuple[str, bytes, Ref]:
    """Export an event whose one image is larger than what is held back."""
    announced = lab.acquire(images=1)
    (name,) = (one for one in announced.files if one.endswith(".tif"))
    image = os.urandom(read.HELD + 12345)
    (announced.images / name).write_bytes(image)
    lab.settle()
    assert {one.result for one in lab.export()} == {"exported", "verified"}
    return name, image, Ref(announced.id, 1)


def test_a_large_image_is_streamed_and_then_compared(lab: Lab) -> None:
    """What breaks off in the bucket goes on from tape; wrong bytes are told of after they were handed out."""
    name, image, ref = large(lab)
    tape(lab, ref)
    good = lab.store
    lab.store = Broken(good, after=3 << 20)
    pieces = list(pipeline.cat(lab.site, ref, name))
    assert b"".join(pieces) == image
    with pytest.raises(Unavailable, match=r"3,145,728 of .* bytes were read"):
        list(pipeline.cat(lab.site, ref, name, source="bucket"))
    lab.store = good
    damage(lab, lab.ledger(ref).event.key, 9 << 20)
    with pytest.raises(Damaged, match="handed out are wrong"):
        list(pipeline.cat(lab.site, ref, name))


# ---------------------------------------------------------------------------------------------------------- a directory


def test_an_event_comes_back_as_it_was(anywhere: Lab) -> None:
    """Every file, under its original name and with its time; again, nothing is read but the manifest."""
    for system in ("prince", "aretha"):
        announced, ref = anywhere.exported(system)
        to, seen = anywhere.home / "to", list[int]()
        outcome = pipeline.restore(anywhere.site, ref, to=to, beat=seen.append)
        assert (outcome.result, outcome.verb) == ("restored", "restore")
        arrived(announced, to / str(ref))
        assert seen[-1] == outcome.size == sum(file.stat().st_size for file in announced.images.rglob("*.*"))
        for name in announced.files:
            there, here = (to / str(ref) / name).stat(), (announced.images / name).stat()
            assert int(there.st_mtime) == int(here.st_mtime)
        nothing_left(to)
        anywhere.store = counting = Counting(anywhere.store)
        assert pipeline.restore(anywhere.site, ref, to=to).result == "restored already"
        assert len(counting.reads) == 1


@pytest.mark.parametrize("moment", [-1, -(10**9), 8**11 + 5], ids=["1969", "1938", "2242"])
def test_times_that_ustar_has_no_room_for_come_back(lab: Lab, moment: int) -> None:
    """They stand in a PAX header of their own, and are read from there; also where another file is there already."""
    announced = lab.acquire()
    first, second, *_ = sorted(announced.files)
    os.utime(announced.images / second, (moment, moment))
    lab.settle()
    assert {one.result for one in lab.export()} == {"exported", "verified"}
    ref, to = Ref(announced.id, 1), lab.home / "to"
    for _ in range(2):
        pipeline.restore(lab.site, ref, to=to)
        assert (to / str(ref) / second).stat().st_mtime == moment
        assert (to / str(ref) / first).stat().st_mtime == (announced.images / first).stat().st_mtime // 1
        (to / str(ref) / second).unlink()


def test_only_what_is_missing_is_read(lab: Lab) -> None:
    """One file of many is lost again: it alone is fetched."""
    announced, ref = lab.exported(images=12)
    to = lab.home / "to"
    pipeline.restore(lab.site, ref, to=to)
    lost = to / str(ref) / min(announced.files)
    size = lost.stat().st_size
    lost.unlink()
    lab.store = counting = Counting(lab.store)
    outcome = pipeline.restore(lab.site, ref, to=to)
    assert outcome.reasons[0].startswith("1 of ")
    assert counting.reads[1:] == [size + bundle.BLOCK]
    arrived(announced, to / str(ref))


def test_files_far_apart_are_read_apart() -> None:
    """Near ones in one read, whatever lies between them."""
    sizes = [100, 5 << 20, 100, 100]
    files = [folder.File(f"{n}.tif", size, 0, n, 1) for n, size in enumerate(sizes)]
    members = [bundle.Member(s.name, s.file.size, "", s.offset) for s in bundle.plan(files, {}).slots]
    runs = [[member.name for member in run] for run in _runs([members[3], members[0], members[2]])]
    assert runs == [["0.tif"], ["2.tif", "3.tif"]]
    assert [len(run) for run in _runs(members)] == [4]


def killed(act: Callable[[Callable[[int], None]], object], *, at: int) -> bool:
    """Do something in a process of its own, which is killed at the given beat; tell whether it was."""
    pid = os.fork()
    if pid == 0:
        beats = iter(range(at))
        act(lambda _: None if next(beats, None) is not None else os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("to_bench", [False, True])
def test_a_restore_that_is_killed_at_any_file_goes_on(lab: Lab, to_bench: bool) -> None:
    """Kill -9 at each file in turn: what has its name is whole, and in the end all is there."""
    announced, ref = lab.exported("aretha", images=6)
    place: dict[str, Any] = {"to": None if to_bench else lab.home / "to", "to_bench": to_bench}
    there = lab.bench / "aretha" / ".plateway-trash" / f"{ref}.back" / "images" if to_bench else lab.home / f"to/{ref}"
    if to_bench:
        gone(lab, ref)
    lab.catalog.close()
    for at in range(20):
        if not killed(lambda beat: pipeline.restore(lab.site, ref, beat=beat, **place), at=at):
            break
        for name in (str(file.relative_to(there)) for file in there.rglob("*") if file.is_file()):
            assert hashlib.sha256((there / name).read_bytes()).hexdigest() == announced.files[name]
    else:
        pytest.fail("it is never done")
    assert at >= 6
    arrived(announced, announced.images if to_bench else there)
    if not to_bench:
        nothing_left(lab.home / "to")


def test_other_bytes_in_the_place_are_never_overwritten(lab: Lab) -> None:
    """Somebody worked on a restored image: it stays, and nothing else is written."""
    announced, ref = lab.exported()
    mine = lab.home / "to" / str(ref) / min(announced.files)
    mine.parent.mkdir(parents=True)
    mine.write_text("my notes")
    with pytest.raises(Conflict, match="other bytes are there"):
        pipeline.restore(lab.site, ref, to=lab.home / "to")
    assert mine.read_text() == "my notes"
    assert [path for path in (lab.home / "to" / str(ref)).rglob("*") if path.is_file()] == [mine]
    nothing_left(lab.home / "to")


def test_a_damaged_file_is_named_and_the_others_come(lab: Lab) -> None:
    """A byte of one image, its header, the manifest: found each, and mended from tape where there is one."""
    announced, ref = lab.exported()
    manifest = read.read_manifest(*read.search_copies(lab.site, lab.ledger(ref), None))
    victim = manifest.members[1]
    key, to = lab.ledger(ref).event.key, lab.home / "to"
    damage(lab, key, victim.offset + 5)
    with pytest.raises(Damaged, match=f"1 of {len(announced.files)} files, like {victim.name}: bucket"):
        pipeline.restore(lab.site, ref, to=to)
    there = {str(path.relative_to(to / str(ref))) for path in (to / str(ref)).rglob("*") if path.is_file()}
    assert there == set(announced.files) - {victim.name}
    damage(lab, key, victim.offset + 5)
    tape(lab, ref)
    damage(lab, key, victim.offset + 5)
    outcome = pipeline.restore(lab.site, ref, to=to)
    assert outcome.reasons[0].startswith(f"1 of {len(announced.files)} files from archive")
    arrived(announced, to / str(ref))


@pytest.mark.parametrize("at", ["header", "manifest", "end"])
def test_damage_beside_the_images_is_survived(lab: Lab, at: str) -> None:
    """A header tells only the time; another manifest than was sent, or an end that is missing, makes it tape's turn."""
    announced, ref = lab.exported()
    export = lab.ledger(ref).export
    assert export is not None
    tape(lab, ref)
    where = {"header": 10, "manifest": export.manifest_offset + 30, "end": 600}[at]
    damage(lab, export.key, where, cut=700 if at == "end" else None)
    outcome = pipeline.restore(lab.site, ref, to=lab.home / "to")
    arrived(announced, lab.home / "to" / str(ref))
    assert ("archive" in outcome.reasons[0]) == (at != "header")


def test_a_bucket_that_does_not_answer_is_no_damage(lab: Lab) -> None:
    """Waiting may help, so it is said as that; files that came before it broke off are kept."""
    _, ref = lab.exported(images=6)
    lab.store = Broken(lab.store, after=6000)
    with pytest.raises(Unavailable, match="reset"):
        pipeline.restore(lab.site, ref, to=lab.home / "to")
    kept = [path for path in (lab.home / "to" / str(ref)).rglob("*") if path.is_file()]
    assert kept


def test_a_full_disk_leaves_nothing_half(lab: Lab) -> None:
    """The system refuses to write on: an error that waiting may help, and no file with a name is short."""
    name, _, ref = large(lab)
    lab.catalog.close()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        try:
            pipeline.restore(lab.site, ref, to=lab.home / "to")
        except PlatewayError as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 100) == b"DiskUnavailable"
    assert not (lab.home / "to" / str(ref) / name).exists()
    nothing_left(lab.home / "to")


def test_room_is_looked_at_first(tmp_path: Path) -> None:
    """Not a byte is read for an event that the disk cannot hold."""
    with pytest.raises(Unavailable, match="bytes free, 1,152,921,504,606,846,976 are needed"):
        _room(tmp_path, "event", needed=1 << 60, reserve=0)


def plant(lab: Lab, ref: Ref, names: Sequence[str], **wrong: int) -> None:
    """Make the catalogue believe in a bundle with such names, as a hostile writer to the bucket would have it."""
    ledger = lab.ledger(ref)
    files = [folder.File(name, 4, 0, n, 1) for n, name in enumerate(names)]
    layout = bundle.plan(files, {"ref_id": str(ref.id)})
    packing = bundle.Packing(layout, lambda file: [b"evil"])
    data = b"".join(packing)
    for name, value in wrong.items():
        old = f'"{name}": {getattr(packing.packed.members[0], name)}'.encode()
        data = data.replace(old, f'"{name}": {value}'.encode().ljust(len(old)), 1)
    lab.store.put(ledger.event.key, [data], size=len(data), part_size=1 << 26, metadata={})
    packed = packing.packed
    manifest = data[packed.manifest_offset : packed.manifest_offset + packed.manifest_size]
    fence = lab.catalog.lease(ref, owner="evil", ttl=timedelta(hours=1), now=lab.clock())
    facts = {name: getattr(packed, name) for name in ("part_size", "member_count", "manifest_offset", "manifest_size")}
    export = Export(
        event_id=ref.id,
        revision=ref.revision,
        bucket=lab.store.name,
        key=ledger.event.key,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        etag="",
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        uploaded_at=lab.clock(),
        **facts,
    )
    lab.catalog.record_export(export, fence=fence)


HOSTILE = [
    ["../evil"],
    ["a/../../evil"],
    ["/tmp/evil"],
    ["a//b"],
    ["./a"],
    ["a/"],
    [".."],
    ["nul\0"],
    ["a" * 256],
    ["/".join("abcdefgh" * 6)],
    ["metadata.json", "metadata.json/x"],
]


@pytest.mark.parametrize("to_bench", [False, True])
def test_a_hostile_manifest_writes_nothing_outside(lab: Lab, to_bench: bool) -> None:
    """Names that climb, are absolute, or could mean one file twice are refused, or at least stay inside."""
    announced, ref = lab.exported()
    if to_bench:
        gone(lab, ref)
    inside = announced.images if to_bench else lab.home / "to"
    for names in HOSTILE:
        plant(lab, ref, names)
        with pytest.raises(PlatewayError):
            pipeline.restore(lab.site, ref, to=None if to_bench else inside, to_bench=to_bench)
        assert not [path for path in lab.home.rglob("*evil*") if inside not in path.parents]
        assert not Path("/tmp/evil").exists()


def test_a_manifest_that_lies_of_places_is_refused(lab: Lab) -> None:
    """Files lie within the bundle, or they are no files of it."""
    _, ref = lab.exported()
    for wrong in ({"size": -1}, {"offset": 9}, {"offset": 99999}, {"size": 9999}):
        plant(lab, ref, ["image-with-a-long-name.tif", "b.tif"], **wrong)
        with pytest.raises(PlatewayError):
            pipeline.restore(lab.site, ref, to=lab.home / "to")


def test_no_link_in_the_way_is_followed(lab: Lab) -> None:
    """Neither a directory nor a file that is a link leads anything elsewhere."""
    announced, ref = lab.exported()
    elsewhere, place = lab.home / "elsewhere", lab.home / "to" / str(ref)
    elsewhere.mkdir()
    place.parent.mkdir()
    place.symlink_to(elsewhere)
    with pytest.raises(Rejected, match="link"):
        pipeline.restore(lab.site, ref, to=lab.home / "to")
    place.unlink()
    place.mkdir()
    (place / min(announced.files).split("/")[0]).symlink_to(elsewhere)
    with pytest.raises(Rejected, match="link"):
        pipeline.restore(lab.site, ref, to=lab.home / "to")
    assert list(elsewhere.iterdir()) == []


def test_two_restores_to_one_directory_do_not_mix(lab: Lab) -> None:
    """One is at it, the others are told so; what is there in the end is whole, and nothing lies about."""
    announced, ref = lab.exported(images=12)
    (_, other), to = lab.exported("aretha"), lab.home / "to"

    def one(which: Ref) -> str:
        try:
            return pipeline.restore(lab.site, which, to=to).result
        except Busy:
            return "busy"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, [ref, other] * 8))
    assert set(results) <= {"restored", "restored already", "busy"}
    assert results.count("restored") == 2
    arrived(announced, to / str(ref))
    nothing_left(to)


def test_what_a_dead_restore_left_is_cleared_away(lab: Lab) -> None:
    """Half a file of somebody who was killed goes with the next restore."""
    _, ref = lab.exported()
    part = lab.home / "to" / f".{ref}.part"
    part.mkdir(parents=True)
    (part / "half").write_bytes(b"x")
    pipeline.restore(lab.site, ref, to=lab.home / "to")
    nothing_left(lab.home / "to")


def test_a_later_revision_comes_back_beside_the_first(lab: Lab) -> None:
    """Each under its own name, with its own bytes."""
    announced, ref = lab.exported()
    image = announced.images / min(announced.files)
    old = image.read_bytes()
    image.write_bytes(b"other" + old)
    with pytest.raises(PlatewayError):
        pipeline.export(lab.site, Ref(announced.id, 9), force=True)
    assert pipeline.export(lab.site, ref, force=True).result == "conflict"
    lab.settle()
    lab.export()
    heir = Ref(announced.id, 2)
    for one, expected in ((ref, old), (heir, b"other" + old)):
        pipeline.restore(lab.site, one, to=lab.home / "to")
        assert (lab.home / "to" / str(one) / min(announced.files)).read_bytes() == expected


# ------------------------------------------------------------------------------------------------------------ the bench


def purge(lab: Lab) -> list[str]:
    return sorted(one.result for one in pipeline.purge(lab.site, fraction=1.0))


def gone(lab: Lab, ref: Ref) -> None:
    """Make an event's images go for good; another event stays, as a sign that the disk is there."""
    lab.clock.turn(hours=9)
    lab.acquire(lab.ledger(ref).event.system)
    lab.settle()
    purge(lab)
    lab.clock.turn(hours=2)
    purge(lab)
    row = lab.ledger(ref).purge("raw")
    assert row is not None
    assert row.gone_at is not None


def snapshot(lab: Lab) -> list[Any]:
    return [ledger.event.model_dump() for ledger in lab.catalog.ledgers()]


@pytest.mark.parametrize("system", ["prince", "aretha"])
def test_a_purged_event_comes_back_to_the_bench(lab: Lab, system: str) -> None:
    """Images and event file are where they were; discover sees nothing new, and later a purge works again."""
    announced, ref = lab.exported(system)
    said = events.parse(announced.path.read_bytes(), lab.instrument(system))
    gone(lab, ref)
    assert not announced.images.exists()
    before = snapshot(lab)
    outcome = pipeline.restore(lab.site, ref, to_bench=True)
    assert outcome.result == "restored"
    arrived(announced, announced.images)
    assert events.parse(announced.path.read_bytes(), lab.instrument(system)) == said
    assert lab.state(ref) == "exported"
    found = lab.settle()
    assert (found.new, found.quarantined) == ((), ())
    assert snapshot(lab)[:1] == before[:1]
    assert len(snapshot(lab)) == len(before)
    assert pipeline.restore(lab.site, ref, to_bench=True).result == "restored already"
    assert not (lab.bench / system / ".plateway-trash" / f"{ref}.back").exists()
    assert "refused" in purge(lab)
    assert announced.images.exists()
    gone(lab, ref)
    assert not announced.images.exists()
    assert not announced.path.exists()
    assert [row.reason for row in lab.ledger(ref).purges] == ["restored on request", None]


def test_a_video_of_one_file_comes_back_as_that_file(lab: Lab) -> None:
    """What was announced as a file is a file again, not a directory with it."""
    root = lab.bench / "aretha"
    (root / "events").mkdir(parents=True)
    (root / "run").mkdir()
    (root / "run" / "plate.avi").write_bytes(b"moving pictures")
    id_ = "2f1c5d0e-8a4b-4c3d-9e2f-1a2b3c4d5e6f"
    said = {
        "ref_id": id_,
        "experiment_id": "x",
        "timestamp": "2026-05-04T06:00:00Z",
        "type": "video",
        "local_path": "run/plate.avi",
        "img_count": 1,
        "metadata": {},
    }
    (root / "events" / "one.json").write_text(json.dumps(said))
    (ref,) = lab.settle().sealed
    lab.export()
    gone(lab, ref)
    pipeline.restore(lab.site, ref, to_bench=True)
    assert (root / "run" / "plate.avi").read_bytes() == b"moving pictures"
    assert lab.settle().new == ()
    gone(lab, ref)
    assert not (root / "run" / "plate.avi").exists()


def test_something_else_in_the_place_is_left_alone(lab: Lab) -> None:
    """The instrument uses the directory again: nothing is moved, and it is said what is different."""
    announced, ref = lab.exported()
    gone(lab, ref)
    announced.images.mkdir(parents=True)
    (announced.images / "new.tif").write_bytes(b"new")
    with pytest.raises(Refused, match=r"new\.tif"):
        pipeline.restore(lab.site, ref, to_bench=True)
    assert [path.name for path in announced.images.iterdir()] == ["new.tif"]
    row = lab.ledger(ref).purge("raw")
    assert row is not None
    assert row.gone_at is not None


def test_a_restore_that_died_before_it_was_noted_heals(lab: Lab) -> None:
    """The very images lie at their place already: they are compared, and the tombstone is taken back."""
    announced, ref = lab.exported()
    gone(lab, ref)
    pipeline.restore(lab.site, ref, to=lab.home / "to")
    announced.images.parent.mkdir(parents=True, exist_ok=True)
    (lab.home / "to" / str(ref)).rename(announced.images)
    assert pipeline.restore(lab.site, ref, to_bench=True).result == "restored"
    assert lab.state(ref) == "exported"
    assert announced.path.exists()


def test_images_in_the_trash_are_taken_out_of_it(lab: Lab) -> None:
    """Within the grace nothing is read from anywhere: the directory is moved back."""
    announced, ref = lab.exported()
    lab.acquire()
    lab.clock.turn(hours=9)
    purge(lab)
    assert not announced.images.exists()
    lab.store = counting = Counting(lab.store)
    assert pipeline.restore(lab.site, ref, to_bench=True).result == "restored"
    assert counting.reads == []
    arrived(announced, announced.images)
    assert announced.path.exists()


def test_a_removal_that_has_begun_must_finish_first(lab: Lab) -> None:
    """Half the images are gone from the trash: what is left is not taken for the event."""
    announced, ref = lab.exported()
    lab.acquire()
    lab.clock.turn(hours=9)
    purge(lab)
    next((lab.bench / "prince" / ".plateway-trash" / str(ref) / "images").rglob("*.tif")).unlink()
    with pytest.raises(Unsettled, match="must finish first"):
        pipeline.restore(lab.site, ref, to_bench=True)
    lab.clock.turn(hours=2)
    purge(lab)  # no removal of ours took that one: what is left goes back to its place, and stays
    assert lab.ledger(ref).purge("raw") is None
    assert len([path for path in announced.images.rglob("*") if path.is_file()]) == len(announced.files) - 1
    assert pipeline.restore(lab.site, ref, to=lab.home / "to").result == "restored"
    arrived(announced, lab.home / "to" / str(ref))


def test_a_disk_that_is_away_gets_nothing(lab: Lab) -> None:
    """An empty mount point is no instrument."""
    _, ref = lab.exported()
    gone(lab, ref)
    lab.unmount("prince")
    with pytest.raises(Unsettled, match="is its disk mounted"):
        pipeline.restore(lab.site, ref, to_bench=True)
    assert list((lab.bench / "prince").iterdir()) == []


def test_another_announcement_under_the_name_is_left_alone(lab: Lab) -> None:
    """The instrument gave the file name to another event."""
    announced, ref = lab.exported()
    gone(lab, ref)
    announced.path.write_text("{}")
    outcome = pipeline.restore(lab.site, ref, to_bench=True)
    assert outcome.reasons[-1].endswith("announces something else and was left alone")
    assert announced.path.read_text() == "{}"
    arrived(announced, announced.images)


def test_restored_images_are_exported_as_the_same_bytes(lab: Lab) -> None:
    """The bucket copy is lost afterwards: what goes up again is the very bundle, and no new revision."""
    announced, ref = lab.exported()
    before = lab.ledger(ref).export
    assert before is not None
    gone(lab, ref)
    pipeline.restore(lab.site, ref, to_bench=True)
    lab.store.delete(before.key)
    pipeline.verify(lab.site, ref)
    for _ in range(3):
        lab.export()
        lab.clock.turn(minutes=15)
        lab.settle()
    after = lab.ledger(ref).export
    assert after is not None
    assert after.sha256 == before.sha256
    assert after.damage is None
    assert [one.event.revision for one in lab.catalog.revisions(announced.id)] == [1]
