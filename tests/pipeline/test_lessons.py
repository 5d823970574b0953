"""Where the systems before this one lost data: a test for each of their failures in discovery, export and purge.

The numbers are those of the project's list of lessons; each test sets up the situation in which the failure happened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.errors import Denied, DiskUnavailable, NotFound, PlatewayError, Rejected, Unavailable, Unsettled
from plateway.events import Ref
from plateway.keys import is_marker
from plateway.pipeline.verify import manifest_of
from plateway.records import Export
from plateway.simulator import Announced
from plateway.store import open_store
from plateway.store.directory import Directory
from tests.databases import furnish
from tests.lab import Clock, Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name in ("bench", "bucket"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)
    furnish(catalog)
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    catalog.close()


def acquire(lab: Lab, count: int, **options: Any) -> list[Announced]:
    """Let an instrument acquire events, a second apart, and look until they are complete."""
    announced = []
    for _ in range(count):
        announced.append(lab.acquire(**options))
        lab.clock.turn(seconds=1)
    lab.settle()
    return announced


def intact(announced: Iterable[Announced]) -> bool:
    """Tell whether everything is on the bench as the instrument wrote it."""
    return all(
        (one.images / name).is_file() and hashlib.sha256((one.images / name).read_bytes()).hexdigest() == sha256
        for one in announced
        for name, sha256 in one.files.items()
    )


class Broken(Directory):
    """A bucket that fails as it is told."""

    def __init__(self, root: Path, error: BaseException) -> None:
        super().__init__(root)
        self.error = error

    def put(self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]) -> None:
        raise self.error


class Flipping(Directory):
    """A bucket on whose way one bit of the last kilobyte turns over."""

    def put(self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]) -> None:
        content = bytearray(b"".join(chunks))
        if len(content) > 2000:  # not of a marker
            content[-1024 - 600] ^= 1
        super().put(key, [bytes(content)], size=size, part_size=part_size, metadata=metadata)


def test_d1_nothing_is_purged_for_its_age_alone(lab: Lab) -> None:
    """Four directories, months old, never exported: all stay, and it is said why."""
    announced = acquire(lab, 4)
    lab.clock.turn(days=99)
    outcomes = pipeline.purge(lab.site, fraction=1.0)
    assert {one.reasons for one in outcomes} == {("not exported",)}
    assert intact(announced)


def test_d2_every_byte_counts(lab: Lab) -> None:
    """Images that differ only after their first 10 KiB have different checksums, and a late flipped bit is found."""
    (announced,) = acquire(lab, 1, images=2, size=128)
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
    announced = acquire(lab, 1)
    good, lab.store = lab.store, Flipping(lab.home / "bucket")
    assert [one.result for one in lab.export()] == ["exported", "damaged"]
    lab.clock.turn(days=9)
    assert {one.result for one in pipeline.purge(lab.site)} == {"refused"}
    assert intact(announced)
    lab.store = good
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d13_work_begun_before_a_restart_is_taken_up(lab: Lab) -> None:
    """A worker died with the event in its hands, and comes back under another name."""
    (announced,) = acquire(lab, 1)
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
    (announced,) = acquire(lab, 1)
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
    (announced,) = acquire(lab, 1)
    good, lab.store = lab.store, Broken(lab.home / "bucket", error)
    with pytest.raises(type(error)):
        pipeline.export(lab.site, Ref(announced.id, 1))
    lab.store = good
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d18_a_hiccup_costs_seconds(lab: Lab) -> None:
    """When the bucket answers again, what failed meanwhile is due at once, not after its pause."""
    events = acquire(lab, 5)
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
    own, other = acquire(lab, 2)
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
    (announced,) = acquire(lab, 1)
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


def test_d19_what_is_still_tried_is_not_purged(lab: Lab) -> None:
    """The retries last for days, longer than raw images are kept: the images wait for them."""
    announced = acquire(lab, 1)
    good, lab.store = lab.store, Broken(lab.home / "bucket", Unavailable("away"))
    for _ in range(12):
        lab.export()
        lab.clock.turn(hours=8)
        assert {one.result for one in pipeline.purge(lab.site)} == {"refused"}
    assert intact(announced)
    lab.store = good
    assert [one.result for one in lab.export()] == ["exported", "verified"]


def test_d20_an_upload_may_take_as_long_as_it_needs(lab: Lab) -> None:
    """Five hours, far beyond the lease, and it still counts."""
    (announced,) = acquire(lab, 1)
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


def test_d23_a_directory_that_is_gone_stops_nobody(lab: Lab) -> None:
    """The first one was removed by hand: that is told, and the others are purged."""
    first, *others = acquire(lab, 3)
    lab.export()
    shutil.rmtree(first.images)
    lab.clock.turn(hours=9)
    outcomes = pipeline.purge(lab.site)
    assert {one.result for one in outcomes if one.ref == Ref(first.id, 1)} == {"refused"}
    assert {one.result for one in outcomes if one.ref != Ref(first.id, 1)} == {"trashed"}
    assert not any(one.images.exists() for one in others)


def test_d24_a_purge_that_comes_months_late_still_purges(lab: Lab) -> None:
    """There is no window to miss."""
    (announced,) = acquire(lab, 1)
    lab.export()
    lab.clock.turn(days=120)
    pipeline.purge(lab.site)
    lab.clock.turn(days=1)
    assert [one.result for one in pipeline.purge(lab.site)] == ["gone"]
    assert not announced.images.exists()
