"""The whole account of the catalogue: every event by key, objects in the dark, what is taken back in, and figures."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from plateway.catalog import Catalog
from plateway.errors import Busy, Conflict, Damage
from plateway.events import Ref
from plateway.findings import account_of
from plateway.ledger import Account, Day, SystemFigures
from plateway.outcome import Restored
from plateway.records import ArchiveEntry, ArchiveManifest, Event
from tests.factories import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    add,
    damage,
    export,
    intent,
    prove,
    rejected,
    upload,
)

SHA = "s" * 64


class Object(NamedTuple):
    key: str
    size: int = 1
    etag: str = "e"


def tape(catalog: Catalog, *refs: Ref, path: str = "a.tar", at: timedelta = timedelta(0)) -> None:
    """Make tape name these events' exports, with their checksum."""
    keys = [f"raw/{catalog.get(ref).key}" for ref in refs]
    facts: dict[str, Any] = {"manifest": "", "path": path, "reported_at": NOW + at, "checksum": SHA}
    digest = f"{path}{keys}"
    manifest = ArchiveManifest(
        digest=digest, door="inbox", name="", content=b"", received_at=NOW, last_at=NOW, accepted=True
    )
    catalog.receive(manifest, [ArchiveEntry(key=key, **facts) for key in keys], now=NOW)
    catalog.settle(now=NOW + at)


def purged(catalog: Catalog, ref: Ref, place: str = "raw", *, gone: bool = False) -> None:
    """Make images go, aside or for good."""
    catalog.intend(intent(ref, place))
    catalog.record_trashed(ref, place, at=NOW)
    if gone:
        catalog.record_gone(ref, place, at=NOW)


@pytest.fixture
def world(catalog: Catalog) -> dict[str, Ref]:
    """One event of each kind of history."""
    refs = {"announced": add(catalog, 1, sealed=False), "sealed": add(catalog, 2)}
    for number, name in enumerate(
        ("sent", "verified", "lost", "aside", "gone", "back", "expired", "expired and gone", "leased"), 3
    ):
        refs[name] = ref = add(catalog, number, kind=("stitch", "video", "overview")[number % 3])
        export(catalog, ref)
        if name != "sent":
            prove(catalog, ref, etag="seen")
    damage(catalog, refs["lost"])
    tape(catalog, refs["expired"], refs["expired and gone"])
    tape(catalog, refs["expired"], path="b.tar")
    purged(catalog, refs["aside"])
    purged(catalog, refs["aside"], "staging")
    purged(catalog, refs["back"])
    catalog.record_restored(refs["back"], "raw", at=NOW, reason="on request", cause=Restored.REQUESTED)
    for name in ("gone", "expired and gone"):
        purged(catalog, refs[name], gone=True)
    for name in ("expired", "expired and gone"):
        purged(catalog, refs[name], "bucket", gone=True)
    catalog.lease(refs["leased"], owner="me", ttl=HOUR, now=NOW)
    return refs


def test_accounts_say_what_ledgers_say(catalog: Catalog, world: dict[str, Ref]) -> None:
    """One row for each event, with what its ledger says, in the order of an S3 listing."""
    told = list(catalog.accounts())
    assert [one.key for one in told] == sorted((one.key for one in told), key=str.encode)
    by_ref = {one.ref: one for one in told}
    assert len(by_ref) == len(told) == len(world)
    for ref, account in by_ref.items():
        ledger = catalog.ledger(ref)
        wanted = account_of(ledger)
        if not ledger.held(NOW):
            wanted = wanted._replace(held_until=None)
        assert account == wanted
        assert [type(value) for value in account] == [type(value) for value in wanted]
    assert by_ref[world["expired"]].archives == 2
    assert {name: by_ref[ref].raw for name, ref in world.items() if by_ref[ref].raw != "here"} == {
        "aside": "aside",
        "gone": "gone",
        "expired and gone": "gone",
    }
    assert [one for one in told if one.expired] == [
        one for one in told if one.ref in {world["expired"], world["expired and gone"]}
    ]


def test_accounts_of_one_bucket(catalog: Catalog, world: dict[str, Ref]) -> None:
    """Asked for a bucket, nothing comes that was exported to another; expired copies are not counted."""
    other = add(catalog, 99)
    export(catalog, other, bucket="other")
    waiting = {one.ref for one in catalog.accounts() if one.export_bucket is None}
    assert {one.ref for one in catalog.accounts(bucket="other")} == {other, *waiting}
    assert sum(one.export_bucket is not None for one in catalog.accounts(bucket="raw")) == 9
    assert (catalog.export_count("raw"), catalog.export_count("other"), catalog.export_count("none")) == (7, 1, 0)


def test_exports_are_behind_an_endpoint(catalog: Catalog) -> None:
    """A bucket of one name may be behind several; exports from before that was noted are behind none."""
    export(catalog, add(catalog, 1), endpoint="here")
    asked: list[tuple[set[str | None], bool]] = [({"here"}, True), ({"there"}, False), ({None}, False)]
    asked.append(({"there", "here"}, True))
    for known, told in asked:
        assert catalog.exported_to("raw", known) is told
    export(catalog, add(catalog, 2))
    assert catalog.exported_to("raw", {"there", None})
    assert not catalog.exported_to("other", {"here", None})


def test_accounts_come_page_by_page(catalog: Catalog) -> None:
    """However short a page, each event comes once; and whoever reads them slowly keeps nobody from writing."""
    for number in range(1, 8):
        add(catalog, number)
    told = catalog.accounts(page=3)
    first = next(told)
    add(catalog, 9)
    keys = [first.key, *(one.key for one in told)]
    assert keys == sorted(set(keys))
    assert len(keys) == 8


def test_keys_come_in_the_order_of_their_bytes(catalog: Catalog) -> None:
    """Upper case before lower, and no language's idea of punctuation."""
    names = ["b_a", "b-a", "B", "b.a", "a", "b", "ba", "b~a"]
    for number, name in enumerate(names, 1):
        add(catalog, number, experiment=name)
    told: list[Account] = list(catalog.accounts())
    assert [one.key for one in told] == sorted((one.key for one in told), key=str.encode)


# -------------------------------------------------------------------------------------------------------- dark objects


def test_a_dark_object_is_dated_by_its_first_sight(catalog: Catalog) -> None:
    """Seen again it keeps its date; with other bytes it is another object; what is not dark any more is forgotten."""
    assert catalog.sight_dark([Object("a"), Object("é")], bucket="raw", now=NOW) == {"a": NOW, "é": NOW}
    later = NOW + DAY
    seen = catalog.sight_dark([Object("a"), Object("é", size=2), Object("c")], bucket="raw", now=later)
    assert seen == {"a": NOW, "é": later, "c": later}
    assert catalog.sight_dark([Object("a")], bucket="other", now=later) == {"a": later}
    catalog.clear_dark(bucket="raw", keep=["a", "unknown"])
    seen = catalog.sight_dark([Object("a"), Object("é", size=2)], bucket="raw", now=later + DAY)
    assert seen == {"a": NOW, "é": later + DAY}
    assert catalog.sight_dark([], bucket="raw", now=NOW) == {}


def test_a_dark_object_is_one_of_its_endpoint(catalog: Catalog) -> None:
    """Two endpoints have a bucket of one name; what was sighted before they were told apart is sighted anew."""
    catalog.sight_dark([Object("a")], bucket="raw", now=NOW)
    for endpoint in ("here", "there"):
        later = NOW + DAY
        assert catalog.sight_dark([Object("a")], bucket="raw", endpoint=endpoint, now=later) == {"a": later}
    catalog.clear_dark(bucket="raw", endpoint="here", keep=[])
    last = NOW + 2 * DAY
    for endpoint, first in (("there", NOW + DAY), ("", last), ("here", last)):
        assert catalog.sight_dark([Object("a")], bucket="raw", endpoint=endpoint, now=last) == {"a": first}


# ------------------------------------------------------------------------------------------------------------- places


def test_an_upload_is_noted_where_it_was_seen(catalog: Catalog) -> None:
    """As long as it is that upload, at that place, and not known to be bad; its evidence dates from then."""
    ref = add(catalog, 1)
    export(catalog, ref)
    noted = catalog.ledger(ref).export
    assert noted is not None
    told: dict[str, Any] = {"endpoint": "there", "kind": "etag", "etag": "e", "read_back_at": None, "at": NOW + DAY}
    catalog.record_relocation(ref, noted, **told)
    moved = catalog.ledger(ref).export
    assert moved is not None
    assert (moved.endpoint, moved.evidence, moved.evidence_at, moved.seen_etag) == ("there", "etag", NOW + DAY, "e")
    with pytest.raises(Busy):
        catalog.record_relocation(ref, noted, **told)
    later: dict[str, Any] = {"damage": "lost: x", "at": NOW, "sha256": moved.sha256, "uploaded_at": moved.uploaded_at}
    catalog.record_damage(ref, kind=Damage.LOST, **later)
    with pytest.raises(Busy):
        catalog.record_relocation(ref, moved, **told)


# ------------------------------------------------------------------------------------------------------------ adopting


def stranger(ref: Ref, **other: Any) -> Event:
    """An event as an object in the bucket tells it."""
    facts: dict[str, Any] = {
        "id": ref.id,
        "revision": ref.revision,
        "system": "prince",
        "kind": "stitch",
        "experiment": "x",
        "timestamp": NOW,
        "path": "images/x",
        "image_count": 1,
        "digest": "d" * 64,
        "key": "images/x/x.tar",
        "file": "x.json",
        "announced_at": NOW,
        "first_seen": NOW,
        "waiting_since": NOW,
        "sealed_at": NOW,
    }
    return Event(**facts | other)


def test_an_event_is_taken_in_once(catalog: Catalog) -> None:
    """With its export and its evidence; again, nothing changes."""
    ref = Ref(intent(add(catalog, 1)).event_id, 3)
    event = stranger(ref)
    row = upload(ref, event, evidence="read-back", evidence_at=NOW)
    assert [catalog.adopt(event, row, now=NOW) for _ in range(2)] == [True, False]
    ledger = catalog.ledger(ref)
    assert ledger.export is not None
    assert (ledger.export.evidence, ledger.event.digest, ledger.state(NOW).name) == ("read-back", "d" * 64, "exported")


def test_an_export_is_taken_in_for_a_known_event(catalog: Catalog) -> None:
    """The event stays as it was announced, and what failed before is forgotten; nobody may be at work on it."""
    ref = add(catalog, 1)
    event = catalog.get(ref)
    catalog.set_back(ref, "export", reason="no", now=NOW)
    fence = catalog.lease(ref, owner="worker", ttl=MINUTE, now=NOW)
    with pytest.raises(Busy, match="worker is at it"):
        catalog.adopt(event, upload(ref, event), now=NOW)
    catalog.release(ref, fence=fence)
    assert catalog.adopt(event, None, now=NOW) is False
    assert catalog.adopt(event, upload(ref, event), now=NOW)
    assert catalog.ledger(ref).state(NOW).name == "exported"
    assert catalog.ledger(ref).setbacks == ()
    with pytest.raises(Conflict, match=r"exported to raw/.* already"):
        catalog.adopt(event, upload(ref, event, sha256="o" * 64), now=NOW)


def test_what_contradicts_is_not_taken_in(catalog: Catalog) -> None:
    """A key that another event has, other content under the id and revision, the same content as another revision."""
    ref = add(catalog, 1)
    known = catalog.get(ref)
    with pytest.raises(Conflict, match="is at images/"):
        catalog.adopt(stranger(Ref(add(catalog, 2).id, 2), key=known.key), None, now=NOW)
    with pytest.raises(Conflict, match="other content"):
        catalog.adopt(stranger(ref, key=known.key), None, now=NOW)
    with pytest.raises(Conflict, match="is at images/"):
        catalog.adopt(stranger(Ref(ref.id, 2), digest=known.digest), None, now=NOW)
    assert len(catalog.ledgers()) == 2


def test_a_new_catalogue_is_empty(catalog: Catalog) -> None:
    """Until the first event is noted."""
    assert catalog.empty()
    add(catalog, 1)
    assert not catalog.empty()


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_count_each_system(catalog: Catalog, world: dict[str, Ref]) -> None:
    """What was exported, is on tape, went, waits, is lost; what is safe to go, and who only ever sent nonsense."""
    catalog.register("aretha", [rejected()], now=NOW)
    for number in (50, 51):
        add(catalog, number, system="otis")
    catalog.quarantine(add(catalog, 52, system="otis"), "no images", now=NOW)
    assert catalog.figures(now=NOW + HOUR) == [
        SystemFigures("aretha", quarantined=1),
        SystemFigures("otis", events=3, waiting=2, quarantined=1, oldest_waiting=NOW),
        SystemFigures(
            "prince",
            events=11,
            exported=8,
            archived=2,
            purged=3,
            waiting=2,
            lost=1,
            bytes_last_day=900,
            oldest_waiting=NOW,
            safe_to_purge=300,  # verified, back, leased
            safe_events=3,
        ),
    ]
    assert catalog.figures(now=NOW + 2 * DAY)[2].bytes_last_day == 0


def test_figures_of_nothing(catalog: Catalog) -> None:
    """An empty catalogue has no systems, and thirty quiet days."""
    assert catalog.figures(now=NOW) == []
    assert {(one.events, one.exports, one.archived, one.waiting) for one in catalog.history(days=30, now=NOW)} == {
        (0, 0, 0, 0)
    }


def test_history_tells_each_day(catalog: Catalog) -> None:
    """When events came, were sent and were on tape, and how many waited when the day was over."""
    for number in range(1, 6):
        ref = add(catalog, number)  # first seen on the 21st
        if number > 1:
            export(catalog, ref, uploaded_at=NOW + (number - 2) * DAY)
        if number > 3:
            tape(catalog, ref, path=f"{number}.tar", at=3 * DAY)
    tape(catalog, ref, path="again.tar", at=4 * DAY)
    catalog.quarantine(add(catalog, 6), "no", now=NOW)
    days = catalog.history(days=30, now=NOW + 4 * DAY)
    today = NOW.date()
    assert len(days) == 30
    assert days[-6:] == [
        Day(today - DAY, 0, 0, 0, 0),
        Day(today, 6, 1, 0, 4),
        Day(today + DAY, 0, 1, 0, 3),
        Day(today + 2 * DAY, 0, 1, 0, 2),
        Day(today + 3 * DAY, 0, 1, 2, 1),
        Day(today + 4 * DAY, 0, 0, 0, 1),
    ]
    assert catalog.history(days=2, now=NOW + 4 * DAY) == days[-2:]


def test_stuck_events_are_those_that_wait_too_long(catalog: Catalog, world: dict[str, Ref]) -> None:
    """Not exported, or not verified; what is in quarantine or lost is somebody else's."""
    catalog.quarantine(add(catalog, 20), "no", now=NOW)
    assert catalog.stuck(before=NOW) == []
    found = [one.ref for one in catalog.stuck(before=NOW + HOUR)]
    assert sorted(found) == sorted(world[name] for name in ("announced", "sealed", "sent"))
    assert [one.ref for one in catalog.stuck(before=NOW + HOUR, limit=1)] == found[:1]
