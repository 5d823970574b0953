"""A lost catalogue is filled again from the bucket and the archive, equal to before but for what only it knew."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plateway import bundle, checksums, pipeline
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Refused
from plateway.events import Ref
from plateway.pipeline.rebuild import Rebuilt
from plateway.records import Event
from plateway.store import Store, object_metadata, open_store
from plateway.store.memory import Memory
from tests.databases import furnish
from tests.lab import Clock, Lab
from tests.pipeline.test_read import damage, gone, tape

NEVER_KNOWN = {"uploaded_at", "evidence", "evidence_at", "read_back_at"}  # of an export


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name in ("bench", "bucket", "tape", "staging"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    archive = open_archive((tmp_path / "tape").as_uri())
    lab = Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog, archive=archive)
    yield lab
    lab.catalog.close()


@pytest.fixture(params=["memory", "directory", "s3"])
def anywhere(lab: Lab, request: pytest.FixtureRequest) -> Lab:
    """The laboratory with each kind of bucket in turn."""
    if request.param == "memory":
        lab.store = Memory()
    elif request.param == "s3":
        endpoint: Endpoint = request.getfixturevalue("endpoint")
        lab.store = open_store(f"s3://{request.getfixturevalue('bucket')}", endpoint)
    return lab


SITE = UUID(int=9)


def populate(lab: Lab) -> None:
    """Acquire one event of each sort and export them all."""
    lab.acquire("prince")
    lab.acquire("aretha")
    lab.acquire("prince", "other-content")
    changed = lab.acquire("aretha")
    video(lab)
    lab.settle()
    lab.export()
    image = changed.images / min(changed.files)
    image.write_bytes(b"changed " + image.read_bytes())
    assert pipeline.export(lab.site, Ref(changed.id, 1), force=True).result == "conflict"
    lab.settle()
    assert {one.result for one in lab.export()} == {"exported", "verified"}


def video(lab: Lab) -> None:
    """Announce one file, under a name that needs quoting."""
    root = lab.bench / "aretha"
    (root / "events").mkdir(parents=True, exist_ok=True)
    (root / "run é").mkdir()
    (root / "run é" / "plate 1.avi").write_bytes(b"moving pictures")
    said = {
        "ref_id": "2f1c5d0e-8a4b-4c3d-9e2f-1a2b3c4d5e6f",
        "experiment_id": "x y",
        "timestamp": "2026-05-04T06:00:00.123456+02:00",
        "type": "video",
        "local_path": "run é/plate 1.avi",
        "img_count": 1,
        "metadata": {"plate": 7, "note": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"},
    }
    name = "one \N{LATIN SMALL LETTER E WITH ACUTE} %41.json"
    (root / "events" / name).write_text(json.dumps(said))


def facts(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    """Dump what a rebuild must bring back, by table."""
    ledgers = lab.catalog.ledgers()
    return {
        "event": [one.event.model_dump() for one in ledgers],
        "export": [one.export.model_dump(exclude=NEVER_KNOWN) for one in ledgers if one.export],
        "archive_location": [row.model_dump() for one in ledgers for row in one.archives],
    }


def wipe(lab: Lab, url: str | None = None) -> None:
    """Lose the catalogue."""
    lab.catalog.close()
    number = len(list(lab.home.glob("*.db")))
    lab.catalog = Catalog(url or f"sqlite:///{lab.home}/catalogue-{number}.db", clock=lab.clock)
    lab.catalog.upgrade()


def rebuilt(lab: Lab) -> Rebuilt:
    wipe(lab)
    return pipeline.rebuild(lab.site)


def gaps(told: Rebuilt) -> set[str]:
    """Name the columns of events that had to be made up."""
    return {gap.what for gap in told.gaps if gap.what.startswith("event.")}


def unlabelled(store: Store, *, keep: set[str]) -> None:
    """Remove the labels from all objects but for some fields, as if an older version had written them."""
    for one in list(store.list()):
        found = store.stat(one.key)
        assert found is not None
        data = b"".join(store.open(one.key))
        kept = {name: value for name, value in found.metadata.items() if name in keep}
        store.put(one.key, [data], size=len(data), part_size=checksums.part_size(len(data)), metadata=kept)


OLD = {"event-id", "event-revision", "announcement"}


# ----------------------------------------------------------------------------------------------------------- the bucket


def test_a_rebuilt_catalogue_equals_the_lost_one(anywhere: Lab) -> None:
    """Both dialects, conflicts, changed images, a video of one file, odd names: every row is back, with evidence."""
    populate(anywhere)
    before = facts(anywhere)
    assert len(before["event"]) == 7
    told = rebuilt(anywhere)
    assert (told.events, told.known, told.refused) == (7, 0, ())
    assert facts(anywhere) == before
    assert gaps(told) == set()
    assert {"purge", "quarantine", "setback", "export.uploaded_at"} <= {gap.what for gap in told.gaps}
    assert {one.export.evidence for one in anywhere.catalog.ledgers() if one.export} == {"read-back"}


def test_a_lost_sqlite_is_rebuilt_as_postgresql(lab: Lab, postgres_url: str) -> None:
    """The rows do not depend on where they are kept."""
    populate(lab)
    before = facts(lab)
    wipe(lab, postgres_url)
    assert pipeline.rebuild(lab.site).events == 7
    assert facts(lab) == before


def test_after_a_rebuild_discover_registers_nothing_twice_and_purge_works(lab: Lab) -> None:
    """The bench is mounted all the while: its event files are known by what they say."""
    populate(lab)
    rebuilt(lab)
    before = facts(lab)
    found = lab.settle()
    assert (found.new, found.sealed, found.quarantined, found.waiting) == ((), (), (), 0)
    assert facts(lab) == before
    assert pipeline.due(lab.site, "export") == []
    lab.clock.turn(hours=9)
    results: list[str] = [one.result for one in pipeline.purge(lab.site, fraction=1.0)]
    assert results.count("trashed") >= 4
    lab.clock.turn(hours=2)
    lab.acquire("prince")
    lab.acquire("aretha")
    lab.settle()
    assert "gone" in {one.result for one in pipeline.purge(lab.site, fraction=1.0)}


def test_a_new_event_after_a_rebuild_gets_a_key_of_its_own(lab: Lab) -> None:
    """The rebuilt rows hold their keys; what is announced anew goes its way."""
    populate(lab)
    rebuilt(lab)
    announced, ref = lab.exported("aretha")
    assert lab.state(ref) == "exported"
    assert announced.id == ref.id


def test_what_was_never_exported_comes_back_from_the_bench(lab: Lab) -> None:
    """Waiting events are announced by their files, as they were the first time."""
    lab.exported()
    waiting = lab.acquire("aretha")
    lab.settle()
    before = facts(lab)
    told = rebuilt(lab)
    assert told.events == 1
    assert lab.settle().sealed == (Ref(waiting.id, 1),)
    volatile = {"first_seen", "waiting_since", "fingerprint_at", "sealed_at"}
    after = facts(lab)["event"]
    assert [{n: v for n, v in row.items() if n not in volatile} for row in after] == [
        {n: v for n, v in row.items() if n not in volatile} for row in before["event"]
    ]


def test_a_staging_copy_that_is_there_is_known_again(lab: Lab) -> None:
    """Else nobody would ever clear it away."""
    lab.options = {"staging": lab.home / "staging" / "prince"}
    (lab.home / "staging" / "prince").mkdir()
    _, ref = lab.exported()
    told = rebuilt(lab)
    assert gaps(told) == {"event.staged_at"}
    assert lab.ledger(ref).event.staged_at is not None


def test_a_purged_event_is_rebuilt_and_comes_back_to_the_bench(lab: Lab) -> None:
    """Its tombstone is lost, and said to be; the images are restored all the same, and announced as they were."""
    announced, ref = lab.exported("aretha")
    gone(lab, ref)
    lab.export()
    rebuilt(lab)
    assert lab.settle().new == ()
    assert pipeline.restore(lab.site, ref, to_bench=True).result == "restored"
    for name, sha256 in announced.files.items():
        assert hashlib.sha256((announced.images / name).read_bytes()).hexdigest() == sha256
    assert lab.settle().new == ()
    lab.clock.turn(hours=9)
    assert "trashed" in {one.result for one in pipeline.purge(lab.site, fraction=1.0)}


# ------------------------------------------------------------------------------------------------------- again, cut off


def test_a_catalogue_with_anything_else_is_refused(lab: Lab) -> None:
    """An event that is not exported, or whose object is gone: nothing is touched."""
    _, ref = lab.exported()
    lab.acquire("aretha")
    lab.settle()
    with pytest.raises(Refused, match="is not exported"):
        pipeline.rebuild(lab.site)
    lab.export()
    assert pipeline.rebuild(lab.site).known == 2
    lab.store.delete(lab.ledger(ref).event.key)
    with pytest.raises(Refused, match="is not there"):
        pipeline.rebuild(lab.site)


def test_a_second_rebuild_changes_nothing(lab: Lab) -> None:
    """What agrees is known, and not even read."""
    populate(lab)
    rebuilt(lab)
    before, read = [one.model_dump() for ledger in lab.catalog.ledgers() for one in _rows(ledger)], list[int]()
    told = pipeline.rebuild(lab.site, beat=read.append)
    assert (told.events, told.known, told.refused, read) == (0, 7, (), [])
    assert [one.model_dump() for ledger in lab.catalog.ledgers() for one in _rows(ledger)] == before


def _rows(ledger: Any) -> list[Any]:
    return [ledger.event, ledger.export]


def mortal(at: int) -> Callable[[int], None]:
    """Make a beat that kills this process the next time after so many."""
    beats = iter(range(at))
    return lambda _: None if next(beats, None) is not None else os.kill(os.getpid(), signal.SIGKILL)


def test_a_rebuild_that_is_killed_goes_on(lab: Lab) -> None:
    """Kill -9 at each object in turn, always with the catalogue that was left: in the end all is there."""
    populate(lab)
    before = facts(lab)
    wipe(lab)
    lab.catalog.close()
    for at in itertools.count():
        pid = os.fork()
        if pid == 0:
            pipeline.rebuild(lab.site, workers=1, beat=mortal(at))
            os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            break
        assert at < 20
    assert at >= 1
    assert pipeline.rebuild(lab.site).known == 7
    assert facts(lab) == before


# ---------------------------------------------------------------------------------------------------- what it cannot be


def test_older_objects_are_completed_from_the_bench(lab: Lab) -> None:
    """Their labels have only the announcement's digest; the event file that has it says the rest."""
    populate(lab)
    before = facts(lab)
    unlabelled(lab.store, keep=OLD)
    told = rebuilt(lab)
    assert told.events == 7
    assert gaps(told) == {"event.first_seen", "event.sealed_at", "event.fingerprint"}
    volatile = {"first_seen", "waiting_since", "fingerprint", "fingerprint_at", "sealed_at"}
    for was, now in zip(before["event"], facts(lab)["event"], strict=True):
        assert {n for n in was if was[n] != now[n]} <= volatile


def test_older_objects_without_a_bench_say_what_they_can(lab: Lab) -> None:
    """A path that no bench can have takes the place of the unknown one; announced again, nothing is new."""
    announced, ref = lab.exported()
    unlabelled(lab.store, keep=OLD)
    before = facts(lab)["event"][0]
    lab.bench.rename(lab.home / "away")
    told = rebuilt(lab)
    assert {"event.path", "event.file", "event.announced_at"} <= gaps(told)
    after = facts(lab)["event"][0]
    same = ("id", "revision", "system", "kind", "experiment", "plate", "timestamp", "image_count", "digest", "key")
    assert all(after[name] == before[name] for name in same)
    assert after["path"].startswith(".plateway-unknown/")
    (lab.home / "away").rename(lab.bench)
    assert lab.settle().new == ()
    lab.clock.turn(hours=9)
    assert {one.result for one in pipeline.purge(lab.site)} == {"refused"}
    assert announced.images.exists()
    assert lab.state(ref) == "exported"


def test_objects_without_any_label_are_known_by_their_manifest(lab: Lab) -> None:
    """A bucket was copied without metadata: with the bench at hand nothing is registered twice."""
    populate(lab)
    unlabelled(lab.store, keep=set())
    told = rebuilt(lab)
    assert told.events + len(told.refused) == 7
    assert told.events >= 5
    assert lab.settle().quarantined == ()


def test_what_is_no_bundle_of_ours_is_listed_with_the_reason(lab: Lab) -> None:
    """Strangers, damage and copies elsewhere stop nobody, and none of them becomes an event."""
    (_, good), (_, flipped), (_, cut) = lab.exported(), lab.exported("aretha"), lab.exported()
    key = lab.ledger(good).event.key
    data = b"".join(lab.store.open(key))
    for name in ("notes.txt", "backup/images/copy.tar"):
        content = b"hello" if name == "notes.txt" else data
        lab.store.put(name, [content], size=len(content), part_size=1 << 26, metadata={})
    bad, short = lab.ledger(flipped).event.key, lab.ledger(cut).event.key
    damage(lab, bad, 700)
    damage(lab, short, 700, cut=-1024)
    lie = object_metadata.write(lab.ledger(good).event, site=lab.site.places.site) | {"event-id": str(UUID(int=7))}
    lab.store.put("images/x/1.tar", [data], size=len(data), part_size=1 << 26, metadata=lie)
    told = rebuilt(lab)
    assert told.events == 1
    reasons = {one.key: one.reasons[0] for one in told.refused}
    assert set(reasons) == {"notes.txt", "backup/images/copy.tar", "images/x/1.tar", bad, short}
    assert f"its manifest says event {flipped.id}" in reasons[bad]
    assert "belongs at" in reasons["backup/images/copy.tar"]


HOSTILE: list[dict[str, Any]] = [
    {"system": "../x"},
    {"system": "."},
    {"system": ["prince"]},
    {"ref_id": "x"},
    {"ref_id": None},
    {"timestamp": "yesterday"},
    {"type": "film"},
    {"experiment_id": "a/b"},
    {"metadata": []},
]


def test_a_hostile_manifest_becomes_no_event(lab: Lab) -> None:
    """A sound bundle that says nonsense of its event is refused."""
    good = {
        "ref_id": "2f1c5d0e-8a4b-4c3d-9e2f-1a2b3c4d5e6f",
        "experiment_id": "x",
        "timestamp": "2026-05-04T06:00:00Z",
        "type": "stitch",
        "system": "prince",
        "metadata": {},
    }
    for number, head in enumerate([{}, *({**good, **wrong} for wrong in HOSTILE)]):
        data = b"".join(bundle.Packing(bundle.plan([], head), lambda file: []))
        key = f"images/x/20260504/060000-2f1c5d0e-r{number + 1}.tar"
        lab.store.put(key, [data], size=len(data), part_size=1 << 26, metadata={})
    told = rebuilt(lab)
    assert (told.events, len(told.refused)) == (0, len(HOSTILE) + 1)
    assert lab.catalog.ledgers() == []


# ------------------------------------------------------------------------------------------------------------- the tape


def test_archive_locations_are_known_again(lab: Lab) -> None:
    """From the manifests that the archive keeps, or from those that an inbox kept."""
    (_, one), (_, two) = lab.exported(), lab.exported("aretha")
    kept = tape(lab, one, two)
    before = facts(lab)
    assert len(before["archive_location"]) == 2
    wipe(lab)
    told = pipeline.rebuild(lab.site, manifests=[("notice.json", kept)])
    assert (told.events, told.manifests) == (2, 1)
    assert facts(lab) == before
    assert lab.archive is not None
    lab.archive.put_manifest("job-1", kept)
    assert rebuilt(lab).manifests == 1
    assert facts(lab) == before


@pytest.mark.parametrize("told", [("size", "sha256", "offset"), ()])
def test_an_event_that_only_tape_has_is_read_there(lab: Lab, told: tuple[str, ...]) -> None:
    """Its bucket copy has expired: it is rebuilt as expired, and can be read."""
    (announced, ref), _ = lab.exported(), lab.exported("aretha")
    kept = tape(lab, ref, told=told)
    before = lab.ledger(ref).export
    assert before is not None
    lab.store.delete(before.key)
    wipe(lab)
    said = pipeline.rebuild(lab.site, manifests=[("notice.json", kept)])
    assert (said.events, said.from_archive, said.refused) == (2, 1, ())
    ledger = lab.ledger(ref)
    assert ledger.expired
    assert ledger.export is not None
    assert ledger.export.model_dump(exclude=NEVER_KNOWN | {"seen_etag", "seen_modified"}) == before.model_dump(
        exclude=NEVER_KNOWN | {"seen_etag", "seen_modified"}
    )
    assert ledger.archives
    assert pipeline.due(lab.site, "verify") == []
    name, sha256 = min(announced.files.items())
    assert hashlib.sha256(b"".join(pipeline.cat(lab.site, ref, name))).hexdigest() == sha256
    assert pipeline.rebuild(lab.site, manifests=[("notice.json", kept)]).known >= 1
    assert lab.settle().new == ()


def test_what_tape_has_and_the_bucket_has_damaged_is_taken_from_tape(lab: Lab) -> None:
    """The object is not what tape has of it: recorded as changed, exported again from the bench."""
    (_, ref), _ = lab.exported(), lab.exported("aretha")
    kept = tape(lab, ref)
    damage(lab, lab.ledger(ref).event.key, 700)
    wipe(lab)
    said = pipeline.rebuild(lab.site, manifests=[("notice.json", kept)])
    assert (said.events, said.from_archive, len(said.refused)) == (2, 1, 1)
    assert lab.state(ref) == "changed"
    lab.settle()
    lab.export()
    assert lab.state(ref) in {"exported", "archived"}


def test_tape_that_is_damaged_or_out_of_reach_is_said(lab: Lab) -> None:
    """Nothing is recorded of bytes that nobody can read."""
    (_, ref), _ = lab.exported(), lab.exported("aretha")
    kept = tape(lab, ref)
    lab.store.delete(lab.ledger(ref).event.key)
    place = next((lab.home / "tape").rglob("*.tar"))
    content = bytearray(place.read_bytes())
    content[1500] ^= 1
    place.write_bytes(content)
    for archive, why in ((lab.archive, "sha256"), (None, "no archive target is configured")):
        lab.archive = archive
        wipe(lab)
        said = pipeline.rebuild(lab.site, manifests=[("notice.json", kept)])
        assert (said.events, len(said.refused)) == (1, 1)
        assert why in said.refused[0].reasons[0]


def test_an_empty_listing_is_no_success_when_tape_names_exports(lab: Lab) -> None:
    """The settings name the wrong bucket, or it is not there: nothing is recorded as expired."""
    _, ref = lab.exported()
    kept = tape(lab, ref)
    lab.store.delete(lab.ledger(ref).event.key)
    wipe(lab)
    with pytest.raises(Refused, match=r"lists nothing, and tape names 1 exports in it"):
        pipeline.rebuild(lab.site, manifests=[("notice.json", kept)])
    assert lab.catalog.empty()
    assert pipeline.rebuild(lab.site).events == 0


# ----------------------------------------------------------------------------------------------------------- the labels


def _encodes(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=60).filter(_encodes)
TIMES = st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9990, 1, 1), timezones=st.just(UTC))


def event(**values: Any) -> Event:
    moment = datetime(2026, 5, 4, 6, tzinfo=UTC)
    facts = {
        "id": UUID(int=7),
        "revision": 2,
        "digest": "d" * 64,
        "path": "a/b",
        "image_count": 3,
        "file": "one.json",
        "announced_at": moment,
        "first_seen": moment,
        "waiting_since": moment,
        "sealed_at": moment,
        "fingerprint": "f" * 64,
        "fingerprint_at": moment,
    }
    return Event(**{**facts, **values})


@given(path=NAMES, file=NAMES, announced_at=TIMES, waiting_since=TIMES)
def test_a_label_says_what_was_written(path: str, file: str, announced_at: datetime, waiting_since: datetime) -> None:
    """Whatever the names are: read back as they were, in plain ASCII, within S3's 2 KB."""
    said = event(path=path, file=file, announced_at=announced_at, waiting_since=waiting_since)
    written = object_metadata.write(said, site=SITE)
    assert all(value.isascii() and value.isprintable() and value == value.strip() for value in written.values())
    assert sum(len(f"x-amz-meta-{name}") + len(value) for name, value in written.items()) <= object_metadata.ROOM
    read = vars(object_metadata.read(written))
    for name in ("id", "revision", "digest", "path", "image_count", "file", "announced_at", "waiting_since"):
        assert read[name] == getattr(said, name)


def test_what_does_not_fit_is_left_out() -> None:
    """A path as long as a disk can have: the facts that identify the event stay."""
    written = object_metadata.write(event(path="/".join(["é" * 100] * 10)), site=SITE)
    assert "path" not in written
    read = object_metadata.read(written)
    assert (read.id, read.revision, read.digest, read.file) == (UUID(int=7), 2, "d" * 64, "one.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event-id", "x"),
        ("event-revision", "-1"),
        ("event-revision", "9" * 50),
        ("image-count", "\N{ARABIC-INDIC DIGIT ONE}"),
        ("announcement", "short"),
        ("announced-at", "2026-05-04T06:00:00"),
        ("announced-at", "99999-01-01"),
        ("event-file", "a/b"),
        ("fingerprint", "%00"),
    ],
)
def test_nonsense_on_a_label_is_nothing(name: str, value: str) -> None:
    """A writer who is no friend cannot make a number of words, or a path of a name."""
    read = object_metadata.read({name.title(): value})
    assert set(vars(read).values()) == {None}


def test_times_of_a_label_keep_their_microseconds() -> None:
    """The rows they come from have them."""
    moment = datetime(2026, 5, 4, 6, 0, 0, 123456, tzinfo=UTC) + timedelta(microseconds=1)
    assert object_metadata.read(object_metadata.write(event(announced_at=moment), site=SITE)).announced_at == moment
