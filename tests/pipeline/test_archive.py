"""Archiving without an archiver: what is written, what is left out, and that nothing is lost or written twice."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from plateway import pipeline
from plateway.archive import Archive, open_archive, parse
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured, NotFound, PlatewayError
from plateway.events import Ref
from plateway.keys import MARKER_FILE, PREFIXES
from plateway.ledger import Ledger
from plateway.pipeline import Outcome, Site
from plateway.pipeline.archive import IN_A_ROW, lay
from plateway.pipeline.places import adopt_place
from plateway.records import Event, Export
from plateway.store import Store, open_store
from plateway.store.memory import Memory
from tests.databases import furnish
from tests.dying import Death, Fate, dying, points
from tests.lab import DAWN, Clock, Lab, with_policy

EXPERIMENT = "20260504_001"
DAY = f"images/{EXPERIMENT}/2026-05-04"


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    (tmp_path / "tape").mkdir()
    return tmp_path / "tape"


def make(home: Path, store: Store, tape: Path | str) -> Lab:
    clock = Clock()
    catalog = Catalog(f"sqlite:///{home / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    (home / "bench").mkdir()
    archive = open_archive(tape.as_uri() if isinstance(tape, Path) else tape)
    return Lab(home, store, clock, catalog, archive=archive)


def twin(lab: Lab, home: Path) -> Lab:
    """Make a laboratory just like one whose catalogue is closed."""
    shutil.copytree(lab.home, home)
    clock, store = Clock(), Memory("bucket")
    clock.now = lab.clock.now
    for stat in lab.store.list():
        data = b"".join(lab.store.open(stat.key))
        store.put(stat.key, [data], size=len(data), part_size=1 << 24, metadata=stat.metadata)
    catalog = Catalog(f"sqlite:///{home / 'catalogue.db'}", clock=clock)
    archive = open_archive((home / "tape").as_uri())
    return replace(lab, home=home, store=store, clock=clock, catalog=catalog, archive=archive)


@pytest.fixture
def lab(tmp_path: Path, tape: Path) -> Iterator[Lab]:
    lab = make(tmp_path, Memory("bucket"), tape)
    yield lab
    lab.catalog.close()


def exported(lab: Lab, count: int = 1, *, experiment: str = EXPERIMENT, kind: str = "stitch") -> list[Ref]:
    """Export and verify events of one experiment."""
    refs = []
    for _ in range(count):
        announced = lab.acquire("aretha", images=2)
        said = json.loads(announced.path.read_text())
        announced.path.write_text(json.dumps({**said, "experiment_id": experiment, "type": kind}))
        refs.append(Ref(announced.id, 1))
    lab.settle()
    assert {one.result for one in lab.export()} == {"exported", "verified"}
    return refs


def content(lab: Lab, ref: Ref) -> bytes:
    return b"".join(lab.store.open(lab.ledger(ref).event.key))


def replaced(lab: Lab, ref: Ref, data: bytes) -> None:
    lab.store.put(lab.ledger(ref).event.key, [data], size=len(data), part_size=1 << 24, metadata={})


def flipped(data: bytes) -> bytes:
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


def tally(outcomes: list[Outcome]) -> dict[str, int]:
    results = [one.result for one in outcomes]
    return {result: results.count(result) for result in sorted(set(results))}


def tars(tape: Path) -> list[str]:
    return sorted(path.relative_to(tape).as_posix() for path in tape.rglob("*") if path.suffix == ".tar")


def manifests(tape: Path) -> list[Path]:
    return sorted((tape / "manifests").glob("*.json"))


def whole(lab: Lab, tape: Path, refs: list[Ref]) -> None:
    """Every event is once on tape, byte for byte, at the offset that is recorded, and a manifest beside it says so."""
    told = [(entry.path, entry.key) for path in manifests(tape) for entry in parse(path.read_bytes()).entries]
    for ref in refs:
        ledger = lab.ledger(ref)
        (location,) = ledger.archives
        assert ledger.export is not None and location.offset is not None
        data = content(lab, ref)
        with (tape / location.path).open("rb") as file:
            file.seek(location.offset)
            assert file.read(len(data)) == data
        assert (location.evidence, location.checksum) == ("checksum", hashlib.sha256(data).hexdigest())
        assert (location.path, f"{ledger.export.bucket}/{ledger.export.key}") in told
        copies = [path for path in tars(tape) if data in (tape / path).read_bytes()]
        assert copies == [location.path]


# ------------------------------------------------------------------------------------------------------ what is written


def test_a_past_day_becomes_one_tar(lab: Lab, tape: Path) -> None:
    """Its members are the bundles, its name is the day's; other programs read it; a manifest says what is in it."""
    refs = exported(lab, 3)
    lab.clock.turn(days=1)
    outcomes = pipeline.archive(lab.site)
    assert tally(outcomes) == {"archived": 3, "written": 1}
    assert tars(tape) == [f"{DAY}.tar"]
    keys = [lab.ledger(ref).event.key for ref in refs]
    with tarfile.open(tape / f"{DAY}.tar") as tar:
        assert tar.getnames() == sorted(f"./{key.rpartition('/')[2]}" for key in keys)
        members = [tar.extractfile(member) for member in tar.getmembers()]
        assert sorted(file.read() for file in members if file) == sorted(content(lab, ref) for ref in refs)
    listed = subprocess.run(["tar", "tf", tape / f"{DAY}.tar"], capture_output=True, text=True, check=True)
    assert (len(listed.stdout.splitlines()), listed.stderr) == (3, "")
    whole(lab, tape, refs)
    assert {lab.state(ref) for ref in refs} == {"archived"}
    (manifest,) = manifests(tape)
    notice = parse(manifest.read_bytes())
    assert (notice.job_id, notice.date, notice.refused) == (manifest.stem, datetime(2026, 5, 4, tzinfo=UTC), ())
    (kept,) = lab.catalog.manifests()
    assert (kept.door, kept.content) == ("archive", manifest.read_bytes())


def test_a_second_run_changes_nothing(lab: Lab, tape: Path) -> None:
    """Nothing is due, nothing is written, nothing is told."""
    exported(lab, 2)
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tape.rglob("*")}
    assert pipeline.archive(lab.site) == []
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tape.rglob("*")} == before
    assert len(lab.catalog.manifests()) == 1


def test_kinds_experiments_and_days_have_tars_of_their_own(lab: Lab, tape: Path) -> None:
    """Days are those of UTC, and experiments may have names of any script."""
    lab.clock.now = datetime(2026, 5, 4, 23, 59, 50, tzinfo=UTC)
    refs = exported(lab) + exported(lab, kind="video") + exported(lab, kind="overview")
    refs += exported(lab, experiment="Über ΔT 実験")
    assert lab.clock.now.day == 5
    refs += exported(lab)
    lab.clock.turn(days=2)
    assert tally(pipeline.archive(lab.site)) == {"archived": 5, "written": 5}
    assert tars(tape) == sorted(
        [
            f"{DAY}.tar",
            f"images/{EXPERIMENT}/2026-05-05.tar",
            f"overview/{EXPERIMENT}/2026-05-05.tar",
            f"videos/{EXPERIMENT}/2026-05-04.tar",
            "images/Über ΔT 実験/2026-05-05.tar",
        ]
    )
    whole(lab, tape, refs)


def test_today_waits_until_it_is_over(lab: Lab, tape: Path) -> None:
    """Also when somebody asks for later days; ``before`` makes it fewer."""
    exported(lab)
    lab.clock.now = datetime(2026, 5, 4, 23, 59, 59, tzinfo=UTC)
    assert pipeline.archive(lab.site, before=date(2099, 1, 1)) == []
    lab.clock.turn(seconds=1)
    assert pipeline.archive(lab.site, before=date(2026, 5, 4)) == []
    assert not tars(tape)
    assert tally(pipeline.archive(lab.site, before=date(2099, 1, 1))) == {"archived": 1, "written": 1}


def test_what_is_not_verified_waits(lab: Lab, tape: Path) -> None:
    """Sent is not enough; damaged is worse."""
    (sent,), (damaged,) = exported(lab), exported(lab)
    ledger = lab.ledger(sent)
    assert ledger.export
    fence = lab.catalog.lease(sent, owner="somebody", ttl=timedelta(minutes=1), now=lab.clock())
    lab.catalog.record_export(ledger.export, fence=fence)
    replaced(lab, damaged, b"other")
    pipeline.verify(lab.site, damaged)
    lab.clock.turn(days=1)
    assert pipeline.archive(lab.site) == []
    pipeline.verify(lab.site, sent)
    pipeline.archive(lab.site)
    whole(lab, tape, [sent])


def test_late_arrivals_go_into_tars_of_their_own(lab: Lab, tape: Path) -> None:
    """What is written is never touched again (D9)."""
    refs = []
    for number, path in enumerate([f"{DAY}.tar", f"{DAY}.2.tar", f"{DAY}.3.tar"], start=1):
        lab.clock.now = DAWN + timedelta(seconds=10 * number)
        refs += exported(lab, 2)
        lab.clock.turn(days=number)
        assert tally(pipeline.archive(lab.site)) == {"archived": 2, "written": 1}
        assert len(tars(tape)) == number
        assert path in tars(tape)
        whole(lab, tape, refs)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_day_is_looked_up_whole_where_it_fits(lab: Lab, tape: Path, most: int) -> None:
    """Days are not torn apart where a page ends; one with too many exports fills several tars; a dry run agrees."""
    refs = exported(lab, 3, experiment="a") + exported(lab, 2, experiment="b") + exported(lab, 2, experiment="c")
    replaced(lab, refs[0], b"not an export")
    lab.clock.turn(days=1)
    planned = {one.ref: one.reasons for one in pipeline.archive(lab.site, most=most, dry_run=True)}
    assert set(planned) == set(refs)
    pipeline.archive(lab.site, most=most)
    whole(lab, tape, refs[1:])
    assert len(tars(tape)) == {1: 6, 2: 4, 3: 3}[most]
    assert pipeline.archive(lab.site, most=most) == []


def test_an_empty_line_writes_nothing(lab: Lab, tape: Path) -> None:
    """No export, no tar, no manifest (D6)."""
    assert pipeline.archive(lab.site) == []
    assert [path.name for path in tape.iterdir()] == [MARKER_FILE]


def test_a_dry_run_says_what_would_go_where(lab: Lab, tape: Path) -> None:
    """And writes nothing, neither there nor here."""
    (early,) = exported(lab)
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    lab.clock.now = DAWN + timedelta(minutes=1)
    (late,) = exported(lab)
    lab.clock.turn(days=1)
    before = sorted(tape.rglob("*"))
    (outcome,) = pipeline.archive(lab.site, dry_run=True)
    assert (outcome.ref, outcome.result, outcome.reasons) == (late, "would go", (f"into {DAY}.2.tar",))
    assert sorted(tape.rglob("*")) == before
    assert lab.ledger(late).archives == () and early != late


def test_the_same_exports_give_the_same_bytes(lab: Lab, tape: Path) -> None:
    """Who writes a tar, and when, cannot be seen in it."""
    exported(lab, 3)
    lab.clock.turn(days=1)
    other = tape.parent / "other"
    other.mkdir()
    fate, second = Fate(), replace(lab.site, archive=open_archive(other.as_uri()))
    adopt_place(second, "archive")
    with pytest.raises(Death):
        pipeline.archive(dying(second, stop(fate, "archive.write")))
    adopt_place(lab.site, "archive")
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    assert (other / f"{DAY}.tar").read_bytes() == (tape / f"{DAY}.tar").read_bytes()


def stop(fate: Fate, what: str) -> Fate:
    """Die right after the first effect of that name."""

    class Named(Fate):
        def meet(self, name: str, act: Any) -> Any:
            self.at = len(self.seen) if name == what and not self.dead else -1
            return super().meet(name, act)

    return Named(after=True, seen=fate.seen)


def test_members_may_be_larger_than_8_gib(tmp_path: Path) -> None:
    """Headers and offsets hold where ustar's fields overflow; tarfile and GNU tar find what lies behind."""
    sizes = [9 << 30, 700, 512]
    slots = lay("images/e/2026-05-04.tar", [ledger(name=f"{n}.tar", size=size) for n, size in enumerate(sizes)])
    with (tmp_path / "sparse.tar").open("wb") as file:
        for slot in slots:
            assert slot.entry.offset is not None
            file.seek(slot.entry.offset - len(slot.header))
            file.write(slot.header)
        file.truncate((slot.entry.offset or 0) + 512 + 1024)
    with tarfile.open(tmp_path / "sparse.tar") as tar:
        assert [(one.name, one.size, one.offset_data) for one in tar.getmembers()] == [
            (f"./{n}.tar", size, slot.entry.offset) for n, (size, slot) in enumerate(zip(sizes, slots, strict=True))
        ]


def ledger(*, name: str, size: int) -> Ledger:
    """An event of which only the layout is asked."""
    id_, key = uuid4(), f"images/e/20260504/{name}"
    event = Event(
        id=id_,
        revision=1,
        system="prince",
        kind="stitch",
        experiment="e",
        timestamp=DAWN,
        path="p",
        image_count=1,
        digest="d",
        key=key,
        file="f",
        announced_at=DAWN,
        first_seen=DAWN,
        waiting_since=DAWN,
    )
    export = Export(
        event_id=id_,
        revision=1,
        bucket="bucket",
        key=key,
        size=size,
        sha256="a" * 64,
        etag="b",
        part_size=1,
        member_count=1,
        manifest_offset=0,
        manifest_size=0,
        manifest_sha256="c",
        uploaded_at=DAWN,
        evidence="etag",
        evidence_at=DAWN,
        seen_etag="b",
    )
    return Ledger(event, export)


# --------------------------------------------------------------------------------------------------------- what is bad


@pytest.mark.parametrize("harm", ["flipped", "short", "long", "lost"])
def test_a_bad_export_is_left_out_and_noted(lab: Lab, tape: Path, harm: str) -> None:
    """The others of its day go on; where size and ETag still look right, the bytes do not (P2)."""
    refs = exported(lab, 3)
    bad = sorted(refs, key=lambda ref: lab.ledger(ref).event.key)[1]
    data = content(lab, bad)
    harmed = {"flipped": flipped(data), "short": data[:-512], "long": data + bytes(512)}
    if harm == "lost":
        lab.store.delete(lab.ledger(bad).event.key)
    else:
        replaced(lab, bad, harmed[harm])
    lab.clock.turn(days=1)
    assert tally(pipeline.archive(lab.site)) == {"archived": 2, "damaged": 1, "written": 1}
    assert lab.state(bad) == ("lost" if harm == "lost" else "changed")
    assert lab.ledger(bad).archives == ()
    whole(lab, tape, [ref for ref in refs if ref != bad])
    lab.export()  # from the bench, where it still is
    assert tally(pipeline.archive(lab.site)) == {"archived": 1, "written": 1}
    whole(lab, tape, refs)
    assert tars(tape) == [f"{DAY}.2.tar", f"{DAY}.tar"]


class Forgetful(Memory):
    """A bucket whose reads go wrong so many times, while looks at the object see nothing."""

    wrong = 0

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = b"".join(super().open(key, start=start, length=length))
        if self.wrong and start == 0 and length is None:
            self.wrong -= 1
            data = flipped(data)
        return iter([data])


def test_bytes_that_go_wrong_on_the_way_begin_a_tar_anew(tmp_path: Path, tape: Path) -> None:
    """Looked at again the export is good: the tar is written without a trace of it, and nothing is noted."""
    store = Forgetful("bucket")
    lab = make(tmp_path, store, tape)
    refs = exported(lab, 3)
    lab.clock.turn(days=1)
    store.wrong = 1
    assert tally(pipeline.archive(lab.site)) == {"archived": 3, "written": 1}
    whole(lab, tape, refs)
    lab.catalog.close()


def test_damage_below_the_etag_is_found_while_reading(tmp_path: Path, tape: Path) -> None:
    """The second look reads it whole, sees the same, and notes it; the tar begins anew without it."""
    store = Forgetful("bucket")
    lab = make(tmp_path, store, tape)
    refs = exported(lab, 2)
    lab.clock.turn(days=1)
    store.wrong = 2  # as it is poured, and as it is looked at
    assert tally(pipeline.archive(lab.site)) == {"archived": 1, "damaged": 1, "written": 1}
    good = [ref for ref in refs if lab.ledger(ref).archives]
    assert len(good) == 1
    whole(lab, tape, good)
    assert not [path for path in tape.rglob("*") if ".part-" in path.name]
    lab.catalog.close()


class Fickle(Memory):
    """A bucket that gives wrong bytes to each first reader, and right ones to whoever looks again."""

    asked = 0

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = b"".join(super().open(key, start=start, length=length))
        if start == 0 and length is None:
            self.asked += 1
            data = flipped(data) if self.asked % 2 else data
        return iter([data])


def test_a_tar_is_not_begun_for_ever(tmp_path: Path, tape: Path) -> None:
    """After a few tries the day waits for the next run, and nothing of it lies around."""
    lab = make(tmp_path, Memory("bucket"), tape)
    exported(lab)
    lab.clock.turn(days=1)
    fickle = Fickle("bucket")
    fickle._kept = lab.store._kept  # type: ignore[attr-defined]  # the same objects
    (outcome,) = pipeline.archive(replace(lab.site, store=fickle))
    assert outcome.result == "later"
    assert not [path for path in tape.rglob("*") if path.is_file() and path.name != MARKER_FILE]
    lab.catalog.close()


def test_exports_in_another_bucket_are_refused(lab: Lab, tape: Path) -> None:
    """What is not there is not lost."""
    exported(lab, 2)
    lab.clock.turn(days=1)
    (outcome,) = pipeline.archive(replace(lab.site, store=Memory("other")))
    reason = "2 exports are in bucket bucket, which the settings do not name"
    assert (outcome.result, outcome.reasons) == ("refused", (reason,))
    assert lab.catalog.counts(lab.clock()) == {"exported": 2}


def test_without_an_archive_there_is_nothing_to_do(lab: Lab) -> None:
    """A missing setting is said, not passed over."""
    with pytest.raises(Misconfigured, match="PLATEWAY_ARCHIVE_TARGET"):
        pipeline.archive(replace(lab.site, archive=None))


def test_an_archive_that_is_not_there_stops_the_run(lab: Lab, tape: Path) -> None:
    """It is not made, for it may be a mount; after a few days in vain the run ends, and nothing is lost (D8)."""
    for number in range(IN_A_ROW + 2):
        exported(lab, experiment=f"e{number}")
    tape.rmdir()
    lab.clock.turn(days=1)
    assert tally(pipeline.archive(lab.site)) == {"later": 1}
    assert not tape.exists()
    tape.mkdir()
    assert tally(pipeline.archive(lab.site)) == {"archived": IN_A_ROW + 2, "written": IN_A_ROW + 2}


def test_one_day_that_fails_stops_no_other(lab: Lab, tape: Path) -> None:
    """A file lies where a directory should be."""
    exported(lab, experiment="a")
    (good,) = exported(lab, experiment="b")
    (tape / "images").mkdir()
    (tape / "images" / "a").write_text("in the way")
    lab.clock.turn(days=1)
    assert tally(pipeline.archive(lab.site)) == {"archived": 1, "failed": 1, "written": 1}
    whole(lab, tape, [good])


# ---------------------------------------------------------------------------------------------------- what is there


@pytest.mark.parametrize("foreign", [b"", b"no tar at all", b"\0" * 1024, "tar", "cut"])
def test_a_strangers_file_is_not_touched(lab: Lab, tape: Path, foreign: bytes | str) -> None:
    """It keeps its name and its bytes; ours gets the next number."""
    refs = exported(lab, 2)
    lab.clock.turn(days=1)
    path = tape / f"{DAY}.tar"
    path.parent.mkdir(parents=True)
    if isinstance(foreign, str):
        names = [lab.ledger(ref).event.key.rpartition("/")[2] for ref in refs]
        datas = [content(lab, ref) for ref in refs]
        datas = datas if foreign == "cut" else [flipped(data) for data in datas]
        data = tarred(dict(zip(names, datas, strict=True)))
        foreign = data[:-4000] if foreign == "cut" else data
    path.write_bytes(foreign)
    assert tally(pipeline.archive(lab.site)) == {"archived": 2, "written": 1}
    assert path.read_bytes() == foreign
    assert {lab.ledger(ref).archives[0].path for ref in refs} == {f"{DAY}.2.tar"}


def tarred(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_what_a_tar_has_already_is_found_in_it(lab: Lab, tape: Path) -> None:
    """Whoever wrote it, when every byte is right; what it does not have goes into the next one."""
    refs = exported(lab, 3)
    lab.clock.turn(days=1)
    names = [lab.ledger(ref).event.key.rpartition("/")[2] for ref in refs]
    path = tape / f"{DAY}.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(tarred({names[0]: content(lab, refs[0]), "x.tar": b"x", names[2]: content(lab, refs[2])}))
    assert tally(pipeline.archive(lab.site)) == {"archived": 3, "found": 1, "written": 1}
    whole(lab, tape, refs)
    assert lab.ledger(refs[1]).archives[0].path == f"{DAY}.2.tar"


def test_exports_of_the_same_name_go_into_different_tars(lab: Lab, tape: Path) -> None:
    """Keys of other layouts may end alike; within a tar a name is there once."""
    (ref,) = exported(lab)
    known = lab.ledger(ref)
    assert known.export
    name = known.event.key.rpartition("/")[2]
    twins = []
    for number in range(2):
        key = f"images/{EXPERIMENT}/old-{number}/{name}"
        data = content(lab, ref) if number else flipped(content(lab, ref))
        lab.store.put(key, [data], size=len(data), part_size=1 << 24, metadata={})
        twin = uuid4()
        event = known.event.model_dump() | {"id": twin, "key": key, "digest": uuid4().hex}
        found = lab.store.stat(key)
        assert found
        changes = {"event_id": twin, "key": key, "sha256": hashlib.sha256(data).hexdigest(), "seen_etag": found.etag}
        export = Export(**(known.export.model_dump() | changes | {"etag": found.etag}))
        lab.catalog.adopt(Event(**event), export, now=lab.clock())
        twins.append(Ref(twin, 1))
    lab.clock.turn(days=1)
    assert tally(pipeline.archive(lab.site)) == {"archived": 3, "written": 3}
    assert tars(tape) == [f"{DAY}.2.tar", f"{DAY}.3.tar", f"{DAY}.tar"]
    for one in (ref, *twins):
        (location,) = lab.ledger(one).archives
        assert content(lab, one) in (tape / location.path).read_bytes()
    assert pipeline.archive(lab.site) == []


def test_what_dead_writers_left_is_removed_after_a_day(lab: Lab, tape: Path) -> None:
    """Ours only, and only when nobody has touched it for a day."""
    directory = tape / "images" / "e"
    directory.mkdir(parents=True)
    for name in (".2026-05-01.tar.part-0123456789ab", ".2026-05-02.tar.part-0123456789ab", ".hidden", "x.part-01"):
        (directory / name).write_bytes(b"half")
        os.utime(directory / name, (1, 1))
    young = directory / ".2026-05-02.tar.part-0123456789ab"
    os.utime(young, (lab.clock().timestamp() - 80_000,) * 2)
    (outcome,) = pipeline.archive(lab.site)
    assert (outcome.result, outcome.key) == ("removed", "images/e/.2026-05-01.tar.part-0123456789ab")
    assert sorted(path.name for path in directory.iterdir()) == sorted([young.name, ".hidden", "x.part-01"])


def test_what_dead_writers_left_of_a_manifest_is_removed_as_well(lab: Lab, tape: Path) -> None:
    """The same job is told again, and nobody would write beside its first attempt any more."""
    (tape / "manifests").mkdir()
    left = tape / "manifests" / ".job.json.part-0123456789ab"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    assert [one.result for one in pipeline.archive(lab.site)] == ["removed"]
    assert not left.exists()


# ---------------------------------------------------------------------------------------------------- dying, together


def test_dying_anywhere_leaves_nothing_twice_and_nothing_out(tmp_path: Path) -> None:
    """At every call to bucket, archive and catalogue, before and after: the next run brings all to one copy (D11)."""
    (tmp_path / "first" / "tape").mkdir(parents=True)
    first = make(tmp_path / "first", Memory("bucket"), tmp_path / "first" / "tape")
    refs = exported(first, 2)
    first.clock.turn(days=1)
    first.catalog.close()
    fate = Fate()
    again = twin(first, tmp_path / "again")
    pipeline.archive(dying(again.site, fate))
    again.catalog.close()
    assert {"archive.write", "archive.put_manifest", "catalog.receive", "catalog.settle"} <= set(fate.seen)
    for number, point in enumerate(points(fate.seen)):
        lab = twin(first, tmp_path / str(number))
        with pytest.raises(Death):
            pipeline.archive(dying(lab.site, point))
        late = []
        if number % 3 == 0:  # something arrives before the next run
            lab.clock.now = DAWN + timedelta(minutes=5)
            late = exported(lab)
            lab.clock.turn(days=1)
        lab.clock.turn(hours=1)
        pipeline.archive(lab.site)
        whole(lab, lab.home / "tape", refs + late)
        assert pipeline.archive(lab.site) == []
        assert not [path for path in (lab.home / "tape").rglob("*") if ".part-" in path.name]
        lab.catalog.close()


class Meanwhile:
    """An archive at which something happens right before a tar is written, or looked for."""

    def __init__(self, inner: Archive, before: str, act: Any) -> None:
        self._inner, self._before, self._act = inner, before, act

    def __getattr__(self, name: str) -> Any:
        if name == self._before and self._act is not None:
            act, self._act = self._act, None
            act()
        return getattr(self._inner, name)


@pytest.mark.parametrize("before", ["size", "write", "put_manifest"])
def test_a_second_archiver_makes_no_second_copy(lab: Lab, tape: Path, before: str) -> None:
    """Whoever is overtaken, at whatever step, finds the other's tar and has nothing to add."""
    refs = exported(lab, 3)
    lab.clock.turn(days=1)
    assert lab.archive
    overtaken: Any = Meanwhile(lab.archive, before, lambda: pipeline.archive(lab.site))
    pipeline.archive(replace(lab.site, archive=overtaken))
    assert tars(tape) == [f"{DAY}.tar"]
    assert len(manifests(tape)) == 1
    assert len(lab.catalog.manifests()) == 1
    whole(lab, tape, refs)


def test_a_second_archiver_with_more_makes_no_second_copy(lab: Lab, tape: Path) -> None:
    """The one that was overtaken knew fewer exports; both say the same of those."""
    refs = exported(lab, 2)
    lab.clock.turn(days=1)

    def more() -> None:
        lab.clock.now = DAWN + timedelta(minutes=1)
        refs.extend(exported(lab))
        lab.clock.turn(days=1)
        pipeline.archive(lab.site)

    assert lab.archive
    overtaken: Any = Meanwhile(lab.archive, "write", more)
    pipeline.archive(replace(lab.site, archive=overtaken))
    assert tars(tape) == [f"{DAY}.tar"]
    whole(lab, tape, refs)


def test_archivers_at_once_make_one_copy(lab: Lab, tape: Path) -> None:
    """Four at a time, from threads."""
    refs = exported(lab, 4) + exported(lab, 2, experiment="other")
    lab.clock.turn(days=1)
    start, outcomes = threading.Barrier(4), []

    def work() -> None:
        start.wait()
        outcomes.append(pipeline.archive(lab.site))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4
    assert tars(tape) == [f"{DAY}.tar", "images/other/2026-05-04.tar"]
    whole(lab, tape, refs)


# -------------------------------------------------------------------------------------------------------- real places


@pytest.mark.parametrize("place", ["directory", "s3"])
def test_it_works_from_and_to_real_places(
    tmp_path: Path, place: str, endpoint: Endpoint, bucket: str, client: Any
) -> None:
    """A bucket in a directory or on SeaweedFS, an archive on a disk or in another part of a bucket."""
    (tmp_path / "tape").mkdir()
    (tmp_path / "bucket").mkdir()
    store = open_store(f"s3://{bucket}/raw" if place == "s3" else (tmp_path / "bucket").as_uri(), endpoint)
    lab = make(tmp_path, store, tmp_path / "tape")
    if place == "s3":
        lab.archive = open_archive(f"s3://{bucket}/tape", endpoint)
    refs = exported(lab, 2) + exported(lab, kind="video", experiment="Über")
    lab.clock.turn(days=1)
    assert lab.archive
    assert tally(pipeline.archive(lab.site)) == {"archived": 3, "written": 2}
    for ref in refs:
        (location,) = lab.ledger(ref).archives
        assert location.offset is not None and location.size is not None
        assert b"".join(lab.archive.open(location.path, start=location.offset, length=location.size)) == content(
            lab, ref
        )
    assert pipeline.archive(lab.site) == []
    assert list(lab.archive.manifests())
    lab.catalog.close()


def test_the_bucket_may_be_gone(lab: Lab, tape: Path) -> None:
    """A bucket that is not there has lost nothing: no damage is noted."""

    class Gone(Memory):
        def stat(self, key: str) -> Any:
            raise NotFound("bucket: no such bucket")

        def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            raise NotFound("bucket: no such bucket")

    exported(lab)
    lab.clock.turn(days=1)
    (outcome,) = pipeline.archive(replace(lab.site, store=Gone("bucket")))
    assert outcome.result == "failed"
    assert lab.catalog.counts(lab.clock()) == {"exported": 1}
    assert not tars(tape)


def test_every_kind_has_a_place() -> None:
    """Of what instruments announce, nothing is left without a folder (D7)."""
    assert set(PREFIXES.values()) == {"images", "videos", "overview"}


def test_the_line_knows_its_archive(lab: Lab) -> None:
    """What the verbs are given is what the settings say."""
    site: Site = lab.site
    assert site.archive is lab.archive


# -------------------------------------------------------------------------------------------- what older systems lost


def test_d5_the_archive_takes_what_the_catalogue_names(lab: Lab) -> None:
    """No glob has to guess a layout: every export of the day is on tape, wherever its key puts it."""
    refs = lab.several(3)
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    assert [lab.state(ref) for ref in refs] == ["archived"] * 3


def test_d7_every_kind_is_archived(lab: Lab) -> None:
    """Videos and overviews go to tape as images do, each below a folder of its own."""
    for number, kind in enumerate(("stitch", "video", "overview")):
        announce(lab, kind, number)
    lab.settle()
    assert {one.result for one in lab.export()} == {"exported", "verified"}
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    folders = {one.path.split("/")[0] for one in lab.archive.list() if one.path.endswith(".tar")} if lab.archive else {}
    assert folders == {"images", "videos", "overview"}
    assert {one.state(lab.clock()).name for one in lab.catalog.ledgers()} == {"archived"}


def announce(lab: Lab, kind: str, number: int) -> None:
    """Announce one event of a kind, as an instrument of the newer dialect does."""
    root = lab.bench / "aretha"
    images = root / f"event-{number}"
    images.mkdir(parents=True)
    (root / "events").mkdir(exist_ok=True)
    (images / "image.tif").write_bytes(bytes([number]) * 999)
    said = {
        "ref_id": str(UUID(int=number + 1)),
        "experiment_id": "e",
        "timestamp": lab.clock().isoformat(),
        "type": kind,
        "system": "aretha",
        "local_path": images.name,
        "img_count": 1,
        "metadata": {},
    }
    (root / "events" / f"{number}.json").write_text(json.dumps(said))


def test_d8_an_archive_that_does_not_work_is_told(lab: Lab) -> None:
    """The tape is not mounted: the run says so and nothing counts as archived; mounted again, it does."""
    (ref,) = lab.several(1)
    lab.clock.turn(days=1)
    (lab.home / "tape").rename(lab.home / "away")
    outcomes: list[pipeline.Outcome] = []
    with suppress(PlatewayError):
        outcomes = pipeline.archive(lab.site)
    assert {one.result for one in outcomes} <= {"failed", "later"}
    assert lab.state(ref) == "exported"
    (lab.home / "away").rename(lab.home / "tape")
    pipeline.archive(lab.site)
    assert lab.state(ref) == "archived"


def test_d9_late_exports_are_archived_too(lab: Lab) -> None:
    """An event of a day whose tar is written already goes into a second one; the first is not touched."""
    announce(lab, "stitch", 0)
    lab.settle()
    lab.export()
    announce(lab, "stitch", 1)
    lab.clock.turn(hours=18)
    pipeline.archive(lab.site)
    (only,) = lab.catalog.ledgers()
    (first,) = only.archives
    before = (lab.home / "tape" / first.path).read_bytes()
    lab.settle()
    lab.export()
    pipeline.archive(lab.site)
    assert [one.archives[0].path for one in lab.catalog.ledgers()] == [first.path, first.path.replace(".tar", ".2.tar")]
    assert (lab.home / "tape" / first.path).read_bytes() == before


def test_d10_half_an_archive_is_none(lab: Lab) -> None:
    """A tar that broke off never gets its name, and one that lies there cut is not taken for an archive."""
    (ref,) = lab.several(1)
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    (location,) = lab.ledger(ref).archives
    whole = lab.home / "tape" / location.path
    (lab.home / "second").mkdir()
    cut = lab.home / "second" / location.path
    cut.parent.mkdir(parents=True)
    cut.write_bytes(whole.read_bytes()[:-3000])
    other = replace(lab.site, archive=open_archive((lab.home / "second").as_uri()))
    (lab.home / "second" / MARKER_FILE).write_bytes(
        (lab.home / "tape" / MARKER_FILE).read_bytes()
    )  # it even says it is the same
    with_policy(lab, purge=False, bucket_lifespan=timedelta(0), grace=timedelta(0))
    assert {one.result for one in pipeline.expire(replace(other, instrument=lab.instrument))} == {"refused"}
    assert lab.store.stat(lab.ledger(ref).event.key) is not None


def test_d11_what_was_written_and_never_told_is_told_by_the_next_run(lab: Lab) -> None:
    """The archiver dies between writing its tar and telling of it: the next run finds the tar, and tells."""
    (ref,) = lab.several(1)
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    written = {one.path: one.size for one in lab.archive.list()} if lab.archive else {}
    fresh = Catalog(f"sqlite:///{lab.home}/second.db", clock=lab.clock)  # one that never heard of it
    fresh.upgrade()
    forgetful = replace(lab, catalog=fresh)
    forgetful.settle()
    forgetful.export()
    for path in lab.home.glob("tape/manifests/*"):
        path.unlink()
    pipeline.archive(replace(forgetful.site, archive=lab.archive))
    assert forgetful.state(ref) == "archived"
    assert ({one.path: one.size for one in lab.archive.list()} if lab.archive else {}) == written
    fresh.close()
