"""What is compared, what is found, and what is never found: each kind of finding planted by hand."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

import pytest

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.errors import Refused, Unavailable
from plateway.events import Ref
from plateway.findings import Finding, Kind, Repair, compare, limit
from plateway.keys import MARKER_FILE
from plateway.ledger import Account
from plateway.pipeline import Reconciled
from plateway.pipeline.reconcile import spill
from plateway.records import Export
from plateway.store import Stat, open_store
from plateway.store.directory import KEPT
from plateway.store.memory import Memory
from tests.databases import furnish
from tests.faults.invariants import digest
from tests.lab import Clock, Lab

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
WITHIN = timedelta(days=7)
BUCKET = "plateway-raw"


class Object(NamedTuple):
    key: str
    size: int = 100
    etag: str = "e"


class Entry(NamedTuple):
    key: str
    path: str = "images/x/2026-05-04.tar"
    reason: str | None = "unknown key"


def account(key: str, **facts: Any) -> Account:
    """An exported, verified event whose images are on the bench and on tape."""
    known: dict[str, Any] = {
        "key": key,
        "ref": Ref(uuid5(NAMESPACE_URL, key), 1),
        "system": "prince",
        "path": f"img/{key}",
        "sealed": True,
        "export_bucket": BUCKET,
        "size": 100,
        "etag": "e",
        "sha256": "a" * 64,
        "uploaded_at": NOW - timedelta(days=30),
        "evidence": "etag",
        "evidence_at": NOW - timedelta(days=30),
        "damage": None,
        "damage_kind": None,
        "archives": 1,
        "raw": "here",
        "expired": False,
        "held_until": None,
    }
    return Account(**{**known, **facts})


def unexported(key: str, **facts: Any) -> Account:
    """A complete event that was not exported yet."""
    none = dict.fromkeys(("export_bucket", "size", "etag", "sha256", "uploaded_at", "evidence", "evidence_at"))
    return account(key, **{**none, "archives": 0, **facts})


def found(
    accounts: Iterable[Account] = (), objects: Iterable[Object] = (), parked: Iterable[Entry] = ()
) -> list[Finding]:
    return list(compare(accounts, objects, parked, bucket=BUCKET, now=NOW, within=WITHIN))


def kinds(*args: Any) -> list[tuple[str, Kind, Repair]]:
    return [(one.key, one.kind, one.repair) for one in found(*args)]


def test_a_world_in_order_has_no_findings() -> None:
    """Three thousand events of every harmless sort, and not a word."""
    accounts: list[Account] = []
    for number in range(500):
        accounts += [
            account(f"{number:04}-archived"),
            account(f"{number:04}-fresh", archives=0, evidence=None, evidence_at=None, uploaded_at=NOW),
            account(f"{number:04}-gone", raw="gone"),
            account(f"{number:04}-purging", raw="aside"),
            unexported(f"{number:04}-ready"),
            account(f"{number:04}-tape-only", raw="gone", expired=True),
        ]
    accounts.sort(key=lambda one: one.key)
    objects = [Object(one.key) for one in accounts if one.export_bucket and not one.expired]
    assert found(accounts, objects) == []


PLANTED: dict[str, tuple[Account | None, Object | None, Kind, Repair]] = {
    "nobody recorded it": (None, Object("k"), Kind.DARK, Repair.ADOPT),
    "sent and not noted": (unexported("k"), Object("k"), Kind.DARK, Repair.EXPORT),
    "not complete yet": (unexported("k", sealed=False), Object("k"), Kind.DARK, Repair.NONE),
    "recorded elsewhere": (account("k", export_bucket="other"), Object("k"), Kind.DARK, Repair.NONE),
    "gone from the bucket": (account("k"), None, Kind.LOST, Repair.MARK),
    "changed, then gone": (
        account("k", damage="changed: …", damage_kind="changed", evidence=None),
        None,
        Kind.LOST,
        Repair.MARK,
    ),
    "known as lost": (
        account("k", damage="lost: …", damage_kind="lost", evidence=None),
        None,
        Kind.LOST,
        Repair.EXPORT,
    ),
    "lost, raw aside": (
        account("k", damage="lost: …", damage_kind="lost", evidence=None, raw="aside"),
        None,
        Kind.LOST,
        Repair.RESTORE,
    ),
    "lost for ever": (
        account("k", damage="lost: …", damage_kind="lost", evidence=None, raw="gone"),
        None,
        Kind.LOST,
        Repair.NONE,
    ),
    "another size": (account("k"), Object("k", size=99), Kind.CHANGED, Repair.VERIFY),
    "another ETag": (account("k"), Object("k", etag="f"), Kind.CHANGED, Repair.VERIFY),
    "known as changed": (
        account("k", damage="changed: …", damage_kind="changed", evidence=None),
        Object("k", etag="f"),
        Kind.CHANGED,
        Repair.EXPORT,
    ),
    "lost, and back": (
        account("k", damage="lost: …", damage_kind="lost", evidence=None),
        Object("k"),
        Kind.CHANGED,
        Repair.VERIFY,
    ),
    "lost, and others there": (
        account("k", damage="lost: …", damage_kind="lost", evidence=None),
        Object("k", size=1),
        Kind.CHANGED,
        Repair.VERIFY,
    ),
    "never verified": (account("k", evidence=None, evidence_at=None), Object("k"), Kind.UNPROVEN, Repair.VERIFY),
    "not on tape": (account("k", archives=0), Object("k"), Kind.UNARCHIVED, Repair.NONE),
    "raw away": (account("k", raw="missing"), Object("k"), Kind.UNTOLD, Repair.NONE),
    "raw in the trash": (account("k", raw="strayed"), Object("k"), Kind.UNTOLD, Repair.RESTORE),
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_difference_is_found_once(name: str) -> None:
    """Between two events in order lies one that is not: it is found, named, and the right repair proposed."""
    known, there, kind, repair = PLANTED[name]
    accounts = [account("a"), *([known] if known else []), account("z")]
    objects = [Object("a"), *([there] if there else []), Object("z")]
    assert kinds(accounts, objects) == [("k", kind, repair)]


def test_two_things_can_be_wrong_with_one_event() -> None:
    """Its object was never noted, and its images are away: the object is all there is."""
    assert kinds([unexported("k", raw="missing")], [Object("k")]) == [
        ("k", Kind.DARK, Repair.ADOPT),
        ("k", Kind.UNTOLD, Repair.NONE),
    ]


HARMLESS: dict[str, tuple[Account, Object | None]] = {
    "a listing without ETags": (account("k"), Object("k", etag="")),
    "an ETag that nobody has seen yet": (account("k", evidence=None, uploaded_at=NOW), Object("k", etag="f")),
    "an export under way": (unexported("k", held_until=NOW + timedelta(minutes=1)), Object("k")),
    "an export sent anew just now": (account("k", held_until=NOW + timedelta(minutes=1)), None),
    "an export of a bucket that is not this one": (account("k", export_bucket="other"), None),
    "a copy that expired": (account("k", expired=True), None),
    "a disk that is away": (account("k", raw="unknown"), Object("k")),
    "images that never were complete": (unexported("k", sealed=False, raw="missing"), None),
    "tape still has time": (account("k", archives=0, uploaded_at=NOW - WITHIN), Object("k")),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_in_order_is_not_found(name: str) -> None:
    """What only looks like a difference is none."""
    known, there = HARMLESS[name]
    assert found([known], [there] if there else []) == []


def test_tape_may_be_left_out() -> None:
    """Where no archive is expected, nothing is missing there."""
    assert list(compare([account("k", archives=0)], [Object("k")], [], bucket=BUCKET, now=NOW, within=None)) == []


def test_parked_entries_are_told_by_what_is_known_of_their_key() -> None:
    """Unknown keys and other buckets, events that were never exported, and entries that disagree."""
    accounts = [account("b"), unexported("c"), unexported("d", raw="gone"), unexported("e")]
    entries = [
        Entry("elsewhere/b"),
        Entry(f"{BUCKET}/a"),
        Entry(f"{BUCKET}/b", reason="size 5, the export has 7"),
        Entry(f"{BUCKET}/c"),
        Entry(f"{BUCKET}/d"),
        Entry(f"{BUCKET}/d", path="images/y.tar"),
        Entry(f"{BUCKET}0/b"),
    ]
    objects = [Object("b")]
    assert kinds(accounts, objects, entries) == [
        ("elsewhere/b", Kind.UNKNOWN, Repair.PARK),
        (f"{BUCKET}/a", Kind.UNKNOWN, Repair.PARK),
        ("b", Kind.DISAGREES, Repair.NONE),
        ("c", Kind.NEVER_EXPORTED, Repair.EXPORT),
        ("d", Kind.NEVER_EXPORTED, Repair.NONE),
        ("d", Kind.NEVER_EXPORTED, Repair.NONE),
        (f"{BUCKET}0/b", Kind.UNKNOWN, Repair.PARK),
    ]


def test_keys_are_compared_by_their_bytes() -> None:
    """Dashes, dots, slashes, letters of other alphabets and emoji come in the order of their UTF-8."""
    names = ["a-b/1", "a.b/1", "a/1", "a/10", "aé", "a\uffff", "a\U0001f52c", "é"]
    assert sorted(names) == sorted(names, key=str.encode)
    assert found(map(account, sorted(names)), map(Object, sorted(names))) == []


@pytest.mark.parametrize(
    ("accounts", "objects", "parked", "which"),
    [
        ("ab", "ba", (), "the listing"),
        ("ab", "aab", (), "the listing"),
        ("ba", "ab", (), "the catalogue"),
        ("aab", "ab", (), "the catalogue"),
        ("ab", "ab", ("b", "a"), "the archive's entries"),
    ],
)
def test_a_stream_out_of_order_is_noticed(accounts: str, objects: str, parked: Sequence[str], which: str) -> None:
    """Compared on, it would give false findings; so it ends with an error that names both keys."""
    with pytest.raises(Refused, match=f"{which} is out of order: '.*' comes after '.*'"):
        found(map(account, accounts), map(Object, objects), [Entry(f"{BUCKET}/{key}") for key in parked])


def test_every_planted_difference_of_many_is_found_and_no_other() -> None:
    """Of 20,000 exports every 97th is lost, every 89th changed, and between some lie dark objects."""
    keys = [f"images/e{number // 100:03}/{number:06}.tar" for number in range(20_000)]
    lost, changed, dark = set(keys[::97]), set(keys[1::89]), {f"{key}.dark" for key in keys[::83]}
    listing = [Object(key, size=7 if key in changed else 100) for key in sorted({*keys, *dark}) if key not in lost]
    results = found(map(account, keys), iter(listing))
    by_kind = {kind: {one.key for one in results if one.kind is kind} for kind in Kind}
    assert by_kind[Kind.LOST] == lost
    assert by_kind[Kind.DARK] == dark
    assert by_kind[Kind.CHANGED] == changed - lost
    assert len(results) == len(lost) + len(dark) + len(changed - lost)


def test_a_few_findings_never_look_like_a_wrong_bucket() -> None:
    """Up to ten lost exports, or the given part of all, are taken for what they are."""
    assert [limit(exports, 0.1) for exports in (0, 20, 100, 1000)] == [10, 10, 10, 100]


# --------------------------------------------------------------------------------------------------------- the verb


class Lasting(Memory):
    """A bucket in this process that stands for one that lasts."""

    durable = True


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A bench with staging, a bucket in memory and a catalogue in a file."""
    for name in ("bench", "staging"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)
    furnish(catalog)
    lab = Lab(tmp_path, Lasting("raw"), clock, catalog)
    yield lab
    catalog.close()


@pytest.fixture
def peopled(lab: Lab) -> Lab:
    """The same with one event in order, which stays so."""
    lab.exported("aretha")
    return lab


def reconcile(lab: Lab, **options: Any) -> Reconciled:
    """Run the verb, and prove that a second run right after finds the same and changes nothing."""
    done = pipeline.reconcile(lab.site, **{"within": WITHIN, **options})
    before = dump(lab)
    again = pipeline.reconcile(lab.site, **{"within": WITHIN, **options})
    assert dump(lab) == before
    assert again.stopped == done.stopped
    return done


def dump(lab: Lab) -> tuple[str, dict[str, str], dict[str, str]]:
    """Everything there is: rows, objects, files."""
    with closing(sqlite3.connect(lab.home / "catalogue.db")) as connection:
        rows = "\n".join(row for row in connection.iterdump() if "known_place" not in row and '"site"' not in row)
    objects = {one.key: digest(b"".join(lab.store.open(one.key))) for one in lab.store.list()}
    files = (path for place in ("bench", "staging") for path in (lab.home / place).rglob("*"))
    kept = (path for path in files if path.is_file() and path.name != MARKER_FILE)
    return rows, objects, {str(path.relative_to(lab.home)): digest(path.read_bytes()) for path in kept}


def said(done: Reconciled) -> list[tuple[Kind, str]]:
    return [(one.kind, one.done) for one in done.findings]


def put(lab: Lab, key: str, content: bytes) -> None:
    lab.store.put(key, [content], size=len(content), part_size=1 << 23, metadata={})


def export_of(lab: Lab, ref: Ref) -> Export:
    export = lab.ledger(ref).export
    assert export is not None
    return export


def test_a_lab_in_order_has_no_findings(lab: Lab) -> None:
    """Waiting, ready, exported, aside and gone: nothing to find, and not a row is written."""
    lab.exported()
    lab.clock.turn(hours=9)
    pipeline.purge(lab.site)
    lab.clock.turn(hours=2)
    lab.exported("aretha")
    lab.clock.turn(hours=9)
    pipeline.purge(lab.site)
    lab.acquire("aretha", fault="missing-image")
    lab.settle()
    before = dump(lab)
    done = reconcile(lab)
    assert (done.findings, done.outcomes, done.counts, done.stopped) == ((), (), {}, False)
    assert dump(lab) == before


def test_a_lost_object_is_marked_at_once_and_exported_again_on_request(peopled: Lab) -> None:
    """Noting that it is lost needs no permission; sending it again does."""
    lab = peopled
    _, ref = lab.exported()
    lab.store.delete(export_of(lab, ref).key)
    assert said(reconcile(lab)) == [(Kind.LOST, "marked lost, would re-export")]
    assert lab.state(ref) == "lost"
    assert said(reconcile(lab)) == [(Kind.LOST, "would re-export")]
    assert said(reconcile(lab, repair=True)) == [(Kind.LOST, "exported, verified")]
    assert lab.state(ref) == "exported"
    assert reconcile(lab).findings == ()


def test_one_run_goes_all_the_way(peopled: Lab) -> None:
    """Lost, with its images in the trash: marked, brought back, exported, verified."""
    lab = peopled
    _, ref = lab.exported()
    lab.clock.turn(hours=9)
    pipeline.purge(lab.site, systems=["prince"])
    assert lab.ledger(ref).raw_purged
    lab.store.delete(export_of(lab, ref).key)
    assert said(reconcile(lab, repair=True)) == [(Kind.LOST, "marked lost, restored, exported, verified")]
    assert (lab.state(ref), lab.ledger(ref).raw_purged) == ("exported", False)


def test_what_is_lost_for_ever_stays_a_finding(peopled: Lab) -> None:
    """No images, no object, no tape: it is said each time, and nothing is done."""
    lab = peopled
    _, ref = lab.exported()
    for hours in (9, 2):
        lab.clock.turn(hours=hours)
        pipeline.purge(lab.site, systems=["prince"])
    lab.store.delete(export_of(lab, ref).key)
    assert said(reconcile(lab, repair=True)) == [(Kind.LOST, "marked lost")]
    (finding,) = reconcile(lab, repair=True).findings
    assert (finding.detail, finding.repair, finding.done) == ("known since; no other copy is known", Repair.NONE, "")


@pytest.mark.parametrize("content", [b"short", b""])
def test_a_changed_object_is_read_again_and_replaced_on_request(lab: Lab, content: bytes) -> None:
    """Other bytes lie at the key: noted as damage; with permission, the right ones are sent again."""
    _, ref = lab.exported()
    key, size = export_of(lab, ref).key, export_of(lab, ref).size
    put(lab, key, content or bytes(size))
    assert said(reconcile(lab)) == [(Kind.CHANGED, "damaged, would re-export")]
    assert lab.state(ref) == "changed"
    assert said(reconcile(lab, repair=True)) == [(Kind.CHANGED, "exported, verified")]
    assert lab.state(ref) == "exported"


def test_an_object_that_came_back_is_good_again(peopled: Lab) -> None:
    """Lost yesterday, there today with the ETag that was sent: one look clears it."""
    lab = peopled
    _, ref = lab.exported()
    export = export_of(lab, ref)
    content = b"".join(lab.store.open(export.key))
    lab.store.delete(export.key)
    reconcile(lab)
    put(lab, export.key, content)
    assert said(reconcile(lab)) == [(Kind.CHANGED, "verified")]
    assert lab.state(ref) == "exported"


def test_an_export_without_evidence_is_verified(lab: Lab) -> None:
    """After an hour nobody is at it any more; before, the line is."""
    announced = lab.acquire()
    lab.settle()
    list(pipeline.each(pipeline.export, lab.site, pipeline.due(lab.site, "export")))
    assert reconcile(lab).findings == ()
    lab.clock.turn(hours=2)
    assert said(reconcile(lab)) == [(Kind.UNPROVEN, "verified")]
    assert export_of(lab, Ref(announced.id, 1)).evidence == "etag"


def test_an_export_that_tape_should_have_is_told(lab: Lab) -> None:
    """After seven days without an archive location; nothing is done about it."""
    _, ref = lab.exported()
    lab.clock.turn(days=7, seconds=1)
    done = reconcile(lab, repair=True)
    assert said(done) == [(Kind.UNARCHIVED, "")]
    assert (done.findings[0].ref, done.counts) == (ref, {"exported and not archived": 1})


def test_tags_hint_at_what_tape_may_have(lab: Lab) -> None:
    """``archived=true`` is told, and changes nothing; at most a hundred objects are asked."""

    class Tagged(Memory):
        asked = 0

        def tags(self, key: str) -> dict[str, str]:
            self.asked += 1
            return {"archived": "true"}

    store = Tagged("raw")
    lab.store = store
    _, ref = lab.exported()
    lab.clock.turn(days=8)
    (finding,) = reconcile(lab).findings
    assert "tagged archived=true" in finding.detail
    assert (lab.state(ref), store.asked) == ("exported", 2)


def test_a_dark_object_is_adopted_on_its_second_sighting(lab: Lab, tmp_path: Path) -> None:
    """It proves itself from the inside; but not on the first day, and not without permission."""
    _, ref = lab.exported()
    export = export_of(lab, ref)
    other = Catalog(f"sqlite:///{tmp_path}/other.db", clock=lab.clock)
    other.upgrade()
    other.take_site(lab.site.places.site, now=lab.clock())
    with closing(other):
        poor = pipeline.Site(other, lab.store, lab.bench, lab.instrument, owner="test")
        told = []
        for hours, repair in ((0, True), (23, True), (1, False), (0, True), (0, True)):
            lab.clock.turn(hours=hours)
            told += [[(one.kind, one.done) for one in pipeline.reconcile(poor, repair=repair).findings]]
        dark = [(Kind.DARK, "waits")]
        assert told == [dark, dark, [(Kind.DARK, "would adopt")], [(Kind.DARK, "adopted")], []]
        adopted = other.ledger(ref)
    assert adopted.export is not None
    same = {
        "size",
        "sha256",
        "etag",
        "manifest_offset",
        "manifest_size",
        "manifest_sha256",
        "member_count",
        "part_size",
    }
    assert adopted.export.model_dump(include=same) == export.model_dump(include=same)
    assert adopted.export.evidence == "read-back"


def test_a_dark_object_that_proves_nothing_stays_and_is_told(lab: Lab) -> None:
    """Junk is no bundle: it is never adopted and never deleted."""
    lab.exported()
    put(lab, "images/junk.tar", b"junk")
    for _ in range(3):
        done = reconcile(lab, repair=True)
        lab.clock.turn(days=1)
    ((kind, _),) = said(done)
    assert kind is Kind.DARK
    assert {one.result for one in done.outcomes} == {"failed"}
    assert lab.store.stat("images/junk.tar") is not None


def test_an_object_that_was_sent_and_not_noted_is_taken_up_by_the_next_export(lab: Lab) -> None:
    """The process died between the upload and its row: the same bytes are recognised, nothing is sent twice."""
    announced, ref = lab.exported()
    with closing(sqlite3.connect(lab.home / "catalogue.db")) as connection, connection:
        connection.execute("DELETE FROM export")
    assert said(reconcile(lab)) == [(Kind.DARK, "would re-export")]
    assert said(reconcile(lab, repair=True)) == [(Kind.DARK, "exported, verified")]
    assert lab.state(ref) == "exported"
    assert announced.id == ref.id


def test_raw_images_that_went_without_a_tombstone_are_told(lab: Lab) -> None:
    """Somebody removed them; what is left of them is said, nothing is done."""
    announced, _ = lab.exported()
    shutil.rmtree(announced.images)
    (finding,) = reconcile(lab, repair=True).findings
    assert (finding.kind, finding.done) == (Kind.UNTOLD, "")
    assert "verified in the bucket" in finding.detail


def test_images_that_strayed_into_the_trash_are_brought_back(lab: Lab) -> None:
    """The catalogue, come back from a backup, knows of no purge: the trash gives back images and event file."""
    announced, ref = lab.exported()
    files = dump(lab)[2]
    lab.clock.turn(hours=9)
    with (
        closing(sqlite3.connect(lab.home / "catalogue.db")) as now,
        closing(sqlite3.connect(lab.home / "b.db")) as then,
    ):
        now.backup(then)
        pipeline.purge(lab.site)
        then.backup(now)
    assert not announced.images.exists()
    kinds = {one.kind for one in reconcile(lab).findings}
    assert kinds == {Kind.UNTOLD, Kind.TRASH}
    assert (Kind.UNTOLD, "restored") in said(reconcile(lab, repair=True))
    assert dump(lab)[2] == files
    assert reconcile(lab).findings == ()
    assert lab.state(ref) == "exported"


def test_images_whose_way_back_was_cut_off_are_brought_back(lab: Lab) -> None:
    """The event file goes first, so that images which are in the trash still tell what is to be done."""
    announced, ref = lab.exported()
    files = dump(lab)[2]
    trash = lab.bench / "prince" / pipeline.TRASH / str(ref)
    trash.mkdir(parents=True)
    announced.images.rename(trash / "images")
    assert (Kind.UNTOLD, "restored") in said(reconcile(lab, repair=True))
    assert dump(lab)[2] == files
    assert reconcile(lab).findings == ()


def test_what_a_restore_left_is_removed_when_the_copy_is_proven(lab: Lab) -> None:
    """A17: without permission it is named; damaged, foreign or unproven it stays; else it goes, and nothing else."""
    announced, ref = lab.exported()
    back = lab.bench / "prince" / pipeline.TRASH / f"{ref}.back"
    name = min(announced.files)
    for path, content in (("images/" + name, (announced.images / name).read_bytes()), ("parts/x", b"half")):
        (back / path).parent.mkdir(parents=True, exist_ok=True)
        (back / path).write_bytes(content)
    assert said(reconcile(lab)) == [(Kind.TRASH, "would remove what a restore left")]
    (back / "images" / "mine.txt").write_text("mine")
    assert said(pipeline.reconcile(lab.site, repair=True)) == [(Kind.TRASH, "failed")]
    (back / "images" / "mine.txt").unlink()
    key, good = export_of(lab, ref).key, b"".join(lab.store.open(export_of(lab, ref).key))
    put(lab, key, bytes([good[0] ^ 1]) + good[1:])
    pipeline.reconcile(lab.site, repair=False)
    assert (back / "images" / name).exists()
    pipeline.export(lab.site, ref, force=True)
    pipeline.verify(lab.site, ref)
    assert (Kind.TRASH, "removed") in said(pipeline.reconcile(lab.site, repair=True))
    assert not back.exists()
    assert (announced.images / name).exists()


def test_orphans_are_told_and_left_alone(lab: Lab) -> None:
    """In the trash and in staging: what belongs to no event, and what no purge moved there."""
    lab.options = {"staging": lab.home / "staging" / "prince"}
    _, ref = lab.exported()
    trash, staging = lab.bench / "prince" / pipeline.TRASH, lab.home / "staging" / "prince"
    for place in (trash / "stranger" / "images", trash / str(ref) / "images", staging / "stranger"):
        place.mkdir(parents=True)
        (place / "a.tif").write_bytes(b"image")
    (trash / str(uuid5(NAMESPACE_URL, "empty"))).mkdir()
    (staging / f"{ref}.part").mkdir()
    before = dump(lab)
    done = reconcile(lab, repair=True)
    assert [(one.kind, one.key, one.done) for one in done.findings] == [
        (Kind.TRASH, str(ref), ""),
        (Kind.TRASH, "stranger", ""),
        (Kind.STAGING, f"{ref}.part", ""),
        (Kind.STAGING, "stranger", ""),
    ]
    assert dump(lab) == before


def test_open_uploads_of_ours_are_aborted_on_request(lab: Lab) -> None:
    """Known key, older than a lease, nobody at it; those of others are theirs."""
    (lab.home / "bucket").mkdir()
    lab.store = open_store((lab.home / "bucket").as_uri())
    _, ref = lab.exported()
    key = export_of(lab, ref).key
    aside = lab.home / "bucket" / KEPT / "uploads"
    for name, of in (("ours", key), ("theirs", "other/key")):
        (aside / f"{name}.json").write_text(json.dumps({"key": of, "part_size": 1 << 20, "metadata": {}}))
        os.utime(aside / f"{name}.json", (0, 0))
    assert said(reconcile(lab)) == [(Kind.UPLOAD, "would abort upload")]
    assert said(reconcile(lab, repair=True)) == [(Kind.UPLOAD, "aborted")]
    assert [one.key for one in lab.store.uploads()] == ["other/key"]


# ------------------------------------------------------------------------------------------------------------- halts


def test_an_empty_listing_stops_everything(lab: Lab) -> None:
    """An empty bucket is more likely the wrong one: nothing is noted as lost."""
    _, ref = lab.exported()
    lab.store.delete(export_of(lab, ref).key)
    put(lab, "images/stranger.tar", b"")
    lab.store.delete("images/stranger.tar")
    done = reconcile(lab, repair=True)
    assert done.stopped
    assert done.outcomes[0].result == "stopped"
    assert "lists nothing at all, and 1 exports" in done.outcomes[0].reasons[0]
    assert lab.state(ref) == "exported"


def test_too_many_lost_objects_stop_everything(lab: Lab) -> None:
    """Eleven of twelve lost at once: told, and not one is marked; confirmed, all are."""
    keys = [export_of(lab, lab.exported()[1]).key for _ in range(12)]
    for key in keys[1:]:
        lab.store.delete(key)
    before = dump(lab)
    done = reconcile(lab, repair=True)
    assert done.stopped
    assert done.counts == {"lost object": 11}
    assert {one.done for one in done.findings} == {""}
    assert "11 of 12 exports look lost or changed, more than 10%" in done.outcomes[0].reasons[0]
    assert dump(lab) == before
    done = reconcile(lab, repair=True, fraction=1)
    assert said(done) == [(Kind.LOST, "marked lost, exported, verified")] * 11


def test_losses_that_are_known_stop_nothing(lab: Lab) -> None:
    """Twelve marked with permission: the next run goes on as ever."""
    for key in [export_of(lab, lab.exported()[1]).key for _ in range(12)]:
        lab.store.delete(key)
    put(lab, "stranger", b"")
    reconcile(lab, fraction=1)
    assert not reconcile(lab).stopped


class Failing(Memory):
    """A bucket whose listing breaks off."""

    def list(self, prefix: str = "") -> Iterator[Stat]:
        yield from itertools.islice(super().list(prefix), 1)
        raise Unavailable("raw: the endpoint answered 503")


def test_a_listing_that_breaks_off_stops_everything(lab: Lab) -> None:
    """Half a listing is no listing."""
    store = Failing("raw")
    lab.store = store
    refs = [lab.exported()[1] for _ in range(2)]
    done = pipeline.reconcile(lab.site, repair=True)
    assert (done.stopped, done.findings) == (True, ())
    assert [(one.result, one.reasons) for one in done.outcomes] == [("later", ("raw: the endpoint answered 503",))]
    assert [lab.state(ref) for ref in refs] == ["exported"] * 2


@pytest.mark.parametrize("away", ["events", "trash"])
def test_a_disk_that_is_away_gives_no_findings_but_says_so(lab: Lab, away: str) -> None:
    """A dropped mount shows an empty directory; another disk has no trash."""
    lab.exported()
    lab.exported("aretha")
    lab.clock.turn(hours=9)
    pipeline.purge(lab.site, systems=["prince"])
    lab.unmount("prince")
    if away == "trash":
        (lab.bench / "prince" / "events").mkdir()
    done = pipeline.reconcile(lab.site, repair=True)
    assert done.findings == ()
    (outcome,) = done.outcomes
    assert (outcome.system, outcome.result, done.stopped) == ("prince", "later", False)
    assert "mounted?" in outcome.reasons[0]


def test_only_the_disks_that_were_asked_for_are_looked_at(lab: Lab) -> None:
    """The others' missing images are not missed today."""
    announced, _ = lab.exported()
    shutil.rmtree(announced.images)
    assert reconcile(lab, systems=["aretha"]).findings == ()
    assert len(reconcile(lab, systems=["prince"]).findings) == 1


# ------------------------------------------------------------------------------------------------------------- races


class Busy(Memory):
    """A bucket where something happens while it is listed."""

    meanwhile: Callable[[], None] | None = None

    def list(self, prefix: str = "") -> Iterator[Stat]:
        found = [*super().list(prefix)]
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            act()
        yield from found


def test_what_happens_while_it_looks_is_no_finding(lab: Lab) -> None:
    """Exported, purged and removed from the bench during the listing: none of it is missing."""
    store = Busy("raw")
    lab.store = store
    lab.exported()
    lab.clock.turn(hours=9)

    def meanwhile() -> None:
        lab.exported()
        lab.exported("aretha")
        pipeline.purge(lab.site)

    store.meanwhile = meanwhile
    assert reconcile(lab, repair=True).findings == ()


def test_an_export_under_way_is_no_dark_object(lab: Lab) -> None:
    """Its object is there, its row is not yet: somebody holds the event."""
    announced, ref = lab.exported()
    with closing(sqlite3.connect(lab.home / "catalogue.db")) as connection, connection:
        connection.execute("DELETE FROM export")
    fence = lab.catalog.lease(ref, owner="other", ttl=timedelta(minutes=10), now=lab.clock())
    assert reconcile(lab, repair=True).findings == ()
    lab.catalog.release(ref, fence=fence)
    assert len(reconcile(lab).findings) == 1
    assert announced.id == ref.id


def test_a_listing_in_another_order_is_brought_into_order(lab: Lab) -> None:
    """Some stores list directory by directory: ``a-b/1`` after ``a/1``."""

    class ByDirectory(Memory):
        def list(self, prefix: str = "") -> Iterator[Stat]:
            return iter(sorted(super().list(prefix), key=lambda one: one.key.split("/")))

    lab.store = ByDirectory("raw")
    for key in ("a/1", "a-b/1", "a.b/1", "a/10"):
        put(lab, key, b"")
    assert [one.key for one in lab.store.list()] != sorted(one.key for one in lab.store.list())
    done = pipeline.reconcile(lab.site)
    assert [one.key for one in done.findings] == ["a-b/1", "a.b/1", "a/1", "a/10"]


def test_a_long_listing_is_sorted_on_disk(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long and in whatever order it comes, each key comes once and in its place."""
    monkeypatch.setattr(spill, "RUN", 10)

    class Restless(Memory):
        def list(self, prefix: str = "") -> Iterator[Stat]:
            found = [*super().list(prefix)]
            return itertools.chain(found[50:], found[:25], found[20:50])

    lab.store = Restless("raw")
    keys = [f"k/{number:03}" for number in range(99)]
    for key in keys:
        put(lab, key, b"")
    assert [one.key for one in pipeline.reconcile(lab.site).findings] == keys


def test_d6_nothing_archived_is_no_success(lab: Lab) -> None:
    """An archiver that found nothing and says so: no event counts as archived, and the exports are found missing."""
    (ref,) = lab.several(1)
    empty = {"job_id": "job", "date": "2026-05-05T00:00:00", "archives": []}
    assert lab.receive(json.dumps(empty).encode()) == ["received"]
    lab.clock.turn(days=8)
    found = pipeline.reconcile(lab.site, within=timedelta(days=7))
    assert [(one.ref, one.kind) for one in found.findings] == [(ref, Kind.UNARCHIVED)]
    assert lab.state(ref) == "exported"


def test_d25_an_archiver_that_falls_silent_is_noticed(lab: Lab) -> None:
    """No message comes any more, by whatever door: what is not on tape in time is found, by name."""
    refs = lab.several(3)
    lab.receive(lab.manifest(refs[:1]))
    lab.clock.turn(days=6)
    assert pipeline.reconcile(lab.site, within=timedelta(days=7)).findings == ()
    lab.clock.turn(days=2)
    found = pipeline.reconcile(lab.site, within=timedelta(days=7)).findings
    assert {(one.ref, one.kind) for one in found} == {(ref, Kind.UNARCHIVED) for ref in refs[1:]}
