"""What tape says it has comes in entry by entry, in any order and as often as it likes, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plateway.catalog import Catalog
from plateway.errors import Conflict, NotFound, Refused, Rejected
from plateway.events import Ref
from plateway.ledger import Settled
from plateway.records import (
    ArchiveEntry,
    ArchiveLocation,
    ArchiveManifest,
    ManifestSource,
    Record,
)
from tests.databases import furnish
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
)

PATH = "images/20261121_012/2026-11-21.tar"
SHA, OTHER = "s" * 64, "o" * 64
TABLES = [Record.metadata.tables[name] for name in ("archive_location", "archive_entry", "archive_manifest")]


def manifest(digest: str = "d1", **other: Any) -> ArchiveManifest:
    """A manifest that came in and was read."""
    facts: dict[str, Any] = {"door": "inbox", "name": "one.json", "content": b"{}", "job_id": "job", "accepted": True}
    return ArchiveManifest(**{"digest": digest, "received_at": NOW, "last_at": NOW, **facts, **other})


def entry(key: str, path: str = PATH, **other: Any) -> ArchiveEntry:
    """What a manifest says of one object: that it is in an archive, and no more."""
    facts: dict[str, Any] = {"manifest": "", "job_id": "job", "reported_at": NOW}
    return ArchiveEntry(**{"path": path, "key": key, **facts, **other})


def told(catalog: Catalog, *entries: ArchiveEntry, digest: str = "d1") -> bool:
    """Make a manifest with these entries come in."""
    return catalog.receive(manifest(digest), entries, now=NOW)


def exported(catalog: Catalog, number: int = 1, **other: Any) -> tuple[Ref, str]:
    """Register, export and verify an event; return it and its key as tape names it."""
    ref = add(catalog, number)
    row = export(catalog, ref, **other)
    prove(catalog, ref)
    return ref, f"{row.bucket}/{row.key}"


def facts(row: ArchiveLocation) -> tuple[Any, ...]:
    return (row.path, row.member, row.job_id, row.size, row.checksum, row.offset, row.evidence, row.reported_at)


def dump(catalog: Catalog) -> list[list[Any]]:
    """Read all that is known of tape."""
    with catalog._reading() as session:
        return [sorted(map(tuple, session.execute(sa.select(table))), key=repr) for table in TABLES]


def reasons(catalog: Catalog) -> dict[str, str | None]:
    return {one.key: one.reason for one in catalog.parked()}


# ----------------------------------------------------------------------------------------------------------- coming in


def test_a_named_export_is_archived(catalog: Catalog) -> None:
    """A manifest that names an export by its key gives it a place on tape, and the state follows."""
    ref, key = exported(catalog)
    assert told(catalog, entry(key))
    assert catalog.ledger(ref).archives == ()
    assert catalog.settle(now=NOW) == Settled((ref,), 1, 0)
    (location,) = catalog.ledger(ref).archives
    assert facts(location) == (PATH, f"./{key.rpartition('/')[2]}", "job", None, None, None, "name", NOW)
    assert catalog.ledger(ref).state(NOW).name == "archived"
    assert catalog.counts(NOW) == {"archived": 1}


def test_the_same_manifest_again_only_moves_its_date(catalog: Catalog) -> None:
    """Redelivery, be it after it was settled, changes nothing but when it was seen last."""
    _, key = exported(catalog)
    told(catalog, entry(key))
    catalog.settle(now=NOW)
    before = dump(catalog)
    assert catalog.receive(manifest(), [entry(key)], now=NOW + HOUR) is False
    (row,) = catalog.manifests()
    assert (row.received_at, row.last_at, row.content) == (NOW, NOW + HOUR, b"{}")
    assert catalog.receive(manifest(), [entry(key)], now=NOW) is False
    assert dump(catalog)[:2] == before[:2]
    assert catalog.settle(now=NOW + HOUR) == Settled((), 0, 0)


def test_a_manifest_without_entries_is_kept(catalog: Catalog) -> None:
    """An empty list, or bytes that are no manifest at all, are noted as what came."""
    assert told(catalog)
    bad = manifest("d2", content=b"\x00{", accepted=False, reason="not JSON: \0 \udce9", job_id=None, name="a\0")
    assert catalog.receive(bad, [], now=NOW + HOUR)
    assert [one.digest for one in catalog.manifests()] == ["d2", "d1"]
    (row,) = catalog.manifests(refused=True)
    assert (row.accepted, row.reason, row.content) == (False, r"not JSON: \x00 \udce9", b"\x00{")
    assert [one.digest for one in catalog.manifests(limit=1)] == ["d2"]
    assert [one.digest for one in catalog.manifests(digest="d1")] == ["d1"]
    assert catalog.manifests(digest="%") == []


def test_a_manifest_that_contradicts_itself_is_refused(catalog: Catalog) -> None:
    """The same object twice in one archive must be told alike; nothing of such a manifest is noted."""
    told(catalog, entry("raw/a"), entry("raw/a"))
    with pytest.raises(Rejected, match="names raw/b twice, and not the same"):
        told(catalog, entry("raw/b"), entry("raw/b", size=1), digest="d2")
    assert [one.key for one in catalog.parked()] == ["raw/a"]
    assert len(catalog.manifests()) == 1


def test_d12_one_entry_stops_no_other(catalog: Catalog) -> None:
    """D12: an unknown key, or a path that tape already has, leaves the rest of the message as good as it was."""
    one, key = exported(catalog, 1)
    two, key2 = exported(catalog, 2)
    told(catalog, entry(key))
    catalog.settle(now=NOW)
    told(catalog, entry(key), entry("raw/unknown.tar"), entry(key2), digest="d2")
    assert catalog.settle(now=NOW) == Settled((two,), 2, 1)
    assert [len(catalog.ledger(ref).archives) for ref in (one, two)] == [1, 1]
    assert reasons(catalog) == {"raw/unknown.tar": "unknown key"}


# ------------------------------------------------------------------------------------------------------------- parking


def test_d14_an_entry_before_its_export_waits_for_it(catalog: Catalog) -> None:
    """D14: whatever comes first, event, export or tape's word, in the end they are tied."""
    exported(catalog, 2)
    ref = add(catalog, 1)
    key = f"raw/{catalog.get(ref).key}"
    told(catalog, entry(key), entry("raw/never.tar"))
    assert catalog.settle(now=NOW) == Settled((), 0, 2)
    assert reasons(catalog) == {key: "not exported yet", "raw/never.tar": "unknown key"}
    export(catalog, ref)
    assert catalog.settle(now=NOW + HOUR) == Settled((ref,), 1, 1)
    assert reasons(catalog) == {"raw/never.tar": "unknown key"}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"size": 5}, "size 5, the export has 100"),
        ({"checksum": OTHER}, f"SHA-256 {OTHER}, the export has {SHA}"),
        ({"size": 5, "checksum": SHA}, "size 5, the export has 100"),
        ({"size": 5, "checksum": OTHER}, f"size 5, the export has 100; SHA-256 {OTHER}, the export has {SHA}"),
    ],
)
def test_an_entry_that_disagrees_is_parked(catalog: Catalog, facts: dict[str, Any], reason: str) -> None:
    """What tape has under the name and is not the export is no copy of it."""
    ref, key = exported(catalog)
    told(catalog, entry(key, **facts))
    assert catalog.settle(now=NOW) == Settled((), 0, 1)
    assert reasons(catalog) == {key: reason}
    assert catalog.ledger(ref).archives == ()
    assert [one.ref for one in catalog.unarchived(before=NOW + DAY)] == [ref]


def test_settling_again_writes_nothing(catalog: Catalog) -> None:
    """A second run right after commits no transaction at all."""
    _, key = exported(catalog)
    told(catalog, entry(key), entry("raw/unknown"), entry(key, "other.tar", size=1))
    catalog.settle(now=NOW)
    before = dump(catalog)
    commits: list[Any] = []
    sa.event.listen(catalog._engine, "commit", commits.append)
    assert catalog.settle(now=NOW + HOUR) == Settled((), 0, 2)
    assert (dump(catalog), commits) == (before, [])


def test_settling_stops_at_its_limit(catalog: Catalog) -> None:
    """A few at a time is possible; what was not tried is still parked."""
    keys = [exported(catalog, number)[1] for number in range(1, 4)]
    told(catalog, *map(entry, keys))
    assert [catalog.settle(now=NOW, limit=2)[1:], catalog.settle(now=NOW, limit=2)[1:]] == [(2, 1), (1, 0)]
    assert catalog.settle(now=NOW, limit=0) == Settled((), 0, 0)


def test_parked_entries_come_by_the_bytes_of_their_keys(catalog: Catalog) -> None:
    """The order is that of an S3 listing, whatever the database's language."""
    keys = ["raw/Z", "raw/a", "raw/a-b", "raw/a/b", "raw/é", "raw/\U0001f600", "raw/\uffee", "raw/B"]
    told(catalog, *map(entry, keys))
    by_bytes = sorted(keys, key=str.encode)
    assert [one.key for one in catalog.parked()] == by_bytes
    assert [one.key for one in catalog.parked(after="raw/a-b")] == by_bytes[by_bytes.index("raw/a-b") + 1 :]


def test_a_bucket_may_have_slashes(catalog: Catalog) -> None:
    """A prefix counts as part of the bucket, and the longest bucket that fits is only one of those that are tried."""
    one, key = exported(catalog, 1, bucket="raw/site/a")
    two, _ = exported(catalog, 2, bucket="raw", key="site/a/x.tar")
    told(catalog, entry(key), entry("raw/site/a/x.tar"))
    assert set(catalog.settle(now=NOW).archived) == {one, two}


# ----------------------------------------------------------------------------------------------------- what it comes to


def test_the_strongest_evidence_counts(catalog: Catalog) -> None:
    """Name, size, checksum: each adds what it tells, and the first report keeps its date."""
    ref, key = exported(catalog)
    claims = [
        entry(key, job_id="b"),
        entry(key, size=100, job_id="c", reported_at=NOW - HOUR, member="./m.tar"),
        entry(key, checksum=SHA, offset=512, job_id="a"),
    ]
    for number, claim in enumerate(claims):
        told(catalog, claim, digest=f"d{number}")
        catalog.settle(now=NOW + number * MINUTE)
    (location,) = catalog.ledger(ref).archives
    assert facts(location) == (PATH, "./m.tar", "c", 100, SHA, 512, "checksum", NOW - HOUR)


CLAIMS: tuple[tuple[tuple[str, dict[str, Any]], ...], ...] = (
    (("one", {}), ("two", {"size": 100}), ("unknown", {})),
    (("one", {"size": 100, "job_id": "a", "member": "./a.tar"}), ("late", {})),
    (("one", {"checksum": SHA, "offset": 512, "reported_at": NOW + HOUR}), ("two", {"size": 5})),
    (("two", {"checksum": OTHER}), ("one", {"reported_at": NOW - HOUR, "member": "./b.tar"})),
    (("one", {"path": "second.tar"}), ("late", {"size": 100, "member": "./late.tar"})),
    (),
)


def lived(catalog: Catalog, order: Sequence[int], pauses: Sequence[bool], late: int) -> list[Any]:
    """Make manifests come in this order, and an export at some moment; return what is known in the end."""
    keys = {name: exported(catalog, number)[1] for number, name in enumerate(("one", "two"), 1)}
    last = add(catalog, 3)
    keys |= {"late": f"raw/{catalog.get(last).key}", "unknown": "raw/unknown.tar"}
    for position, (number, pause) in enumerate(zip(order, pauses, strict=True)):
        if position == late:
            export(catalog, last)
        claims = [entry(keys[name], **claim) for name, claim in CLAIMS[number]]
        catalog.receive(manifest(f"d{number}"), claims, now=NOW + position * MINUTE)
        if pause:
            catalog.settle(now=NOW + position * MINUTE)
    if late >= len(order):
        export(catalog, last)
    catalog.settle(now=NOW + DAY)
    locations, entries, _ = dump(catalog)
    return [locations, [tuple(v for v in row if v is None or not str(v).startswith("2026-11-2")) for row in entries]]


@pytest.fixture(scope="module")
def in_order(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What six manifests come to that arrive one after the other."""
    catalog = Catalog(f"sqlite:///{tmp_path_factory.mktemp('order')}/catalogue.db")
    furnish(catalog)
    known = lived(catalog, range(6), [True] * 6, 0)
    catalog.close()
    return known


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extra=st.lists(st.integers(0, 5), max_size=4),
    order=st.permutations(range(6)),
    pauses=st.lists(st.booleans(), min_size=10, max_size=10),
    late=st.integers(0, 10),
)
def test_any_order_and_repetition_comes_to_the_same(
    in_order: list[Any], extra: list[int], order: list[int], pauses: list[bool], late: int
) -> None:
    """Manifests that overlap, repeat and contradict give equal locations and parked entries, however they arrive."""
    catalog = Catalog("sqlite://")
    furnish(catalog)
    sequence = [*order, *extra]
    try:
        assert lived(catalog, sequence, pauses[: len(sequence)], late) == in_order
    finally:
        catalog.close()


def test_every_order_of_three_on_either_database(catalog: Catalog) -> None:
    """The same, exhaustively for the three that contradict each other most, on the real databases."""
    ref, key = exported(catalog)
    seen = set()
    for turn, order in enumerate(itertools.permutations(range(1, 4))):
        for number in order:
            claims = [entry(key, **{"path": f"{turn}.tar", **claim}) for name, claim in CLAIMS[number] if name == "one"]
            catalog.receive(manifest(f"{turn}-{number}"), claims, now=NOW)
            catalog.settle(now=NOW)
    for location in catalog.ledger(ref).archives:
        seen.add(facts(location)[1:])
    assert len(catalog.ledger(ref).archives) == 6
    assert seen == {("./a.tar", "job", 100, SHA, 512, "checksum", NOW - HOUR)}


# ------------------------------------------------------------------------------------------------------ read on tape


READ: dict[str, Any] = {"member": "./x.tar", "offset": 1536, "size": 100, "checksum": SHA}


def test_what_we_read_outranks_what_tape_says(catalog: Catalog) -> None:
    """Our own read gives checksum evidence, may be noted again, and stays when further manifests come."""
    ref, key = exported(catalog)
    told(catalog, entry(key))
    catalog.settle(now=NOW)
    for at in (NOW + HOUR, NOW + HOUR, NOW):
        catalog.record_location(ref, PATH, **READ, read_at=at)
    told(catalog, entry(key, member="./wrong.tar", offset=7, reported_at=NOW - DAY, job_id="early"), digest="d2")
    catalog.settle(now=NOW)
    (row,) = catalog.ledger(ref).archives
    assert facts(row) == (PATH, "./x.tar", "early", 100, SHA, 1536, "checksum", NOW - DAY)
    assert row.read_at == NOW + HOUR


def test_reading_needs_a_manifest_and_the_bytes_of_the_export(catalog: Catalog) -> None:
    """Nothing is a copy that nobody names, or that is something else."""
    ref, key = exported(catalog)
    with pytest.raises(NotFound, match="no manifest says that it is in"):
        catalog.record_location(ref, PATH, **READ, read_at=NOW)
    told(catalog, entry(key))
    catalog.settle(now=NOW)
    with pytest.raises(Conflict, match=r"100 bytes with SHA-256 ooo.* not its export"):
        catalog.record_location(ref, PATH, **{**READ, "checksum": OTHER}, read_at=NOW)
    (row,) = catalog.ledger(ref).archives
    assert row.evidence == "name"


def test_a_location_whose_read_disagrees_is_taken_back(catalog: Catalog) -> None:
    """It is parked with the reason, stays so, and is believed again only after a read that agrees."""
    ref, key = exported(catalog)
    told(catalog, entry(key), entry(key, "good.tar"))
    catalog.settle(now=NOW)
    for _ in range(2):
        catalog.record_misplaced(ref, PATH, reason="no such member", at=NOW + HOUR)
        assert [one.path for one in catalog.ledger(ref).archives] == ["good.tar"]
        assert catalog.settle(now=NOW + DAY) == Settled((), 0, 1)
        assert reasons(catalog) == {key: "no such member"}
    catalog.record_location(ref, PATH, **READ, read_at=NOW + DAY)
    assert [one.evidence for one in catalog.ledger(ref).archives] == ["name", "checksum"]
    assert reasons(catalog) == {}


def test_a_new_manifest_may_name_again_what_a_read_refuted(catalog: Catalog) -> None:
    """Tape may have been mended: a new claim counts until it is read."""
    ref, key = exported(catalog)
    told(catalog, entry(key))
    catalog.settle(now=NOW)
    catalog.record_misplaced(ref, PATH, reason="no such member", at=NOW)
    assert [one.ref for one in catalog.unarchived(before=NOW + DAY)] == [ref]
    told(catalog, entry(key, reported_at=NOW + DAY), digest="d2")
    assert catalog.settle(now=NOW + DAY).archived == (ref,)
    (row,) = catalog.ledger(ref).archives
    assert row.reported_at == NOW + DAY


def test_other_bytes_under_the_key_are_not_what_tape_has(catalog: Catalog) -> None:
    """After an export of other bytes, what tape told of the old ones is tried anew, and disagrees."""
    ref, key = exported(catalog)
    told(catalog, entry(key, checksum=SHA), entry(key, "b.tar", size=100))
    catalog.settle(now=NOW)
    catalog.record_misplaced(ref, "b.tar", reason="cut", at=NOW)
    damage(catalog, ref)
    export(catalog, ref, sha256=SHA, uploaded_at=NOW + HOUR)
    assert [one.path for one in catalog.ledger(ref).archives] == [PATH]  # the same bytes again
    export(catalog, ref, sha256=OTHER, uploaded_at=NOW + 2 * HOUR)
    assert catalog.ledger(ref).archives == ()
    assert catalog.settle(now=NOW + DAY) == Settled((ref,), 1, 1)
    assert [one.path for one in catalog.ledger(ref).archives] == ["b.tar"]
    assert reasons(catalog) == {key: f"SHA-256 {SHA}, the export has {OTHER}"}


# ---------------------------------------------------------------------------------------------------------- unarchived


def test_unarchived_events_come_by_kind_experiment_and_day(catalog: Catalog) -> None:
    """What goes into one archive comes together, and only what is safely in the bucket and on no tape."""
    refs = {number: add(catalog, number) for number in (1, 2, 3, 4)}
    other = add(catalog, 5, kind="overview", experiment="20261121_012")
    early = add(catalog, 6, timestamp=NOW - DAY)
    for ref in (*refs.values(), other, early):
        row = export(catalog, ref)
        if ref != refs[2]:
            prove(catalog, ref)
        if ref in {refs[3], refs[4]}:
            told(catalog, entry(f"raw/{row.key}", size=100 if ref == refs[3] else 1), digest=row.key)
    add(catalog, 7)
    found = [one.ref for one in catalog.unarchived(before=NOW + DAY)]
    assert found == [other, early, refs[1], refs[4]]  # the third only has to be settled
    assert [one.ref for one in catalog.unarchived(before=NOW + DAY, limit=2)] == [other, early]
    assert [one.ref for one in catalog.unarchived(before=NOW)] == [early]
    damage(catalog, early)
    catalog.settle(now=NOW)
    assert [one.ref for one in catalog.unarchived(before=NOW + DAY)] == [other, refs[1], refs[4]]


# ------------------------------------------------------------------------------------------------------------- expiry


def test_a_bucket_copy_goes_only_when_tape_has_its_bytes(catalog: Catalog) -> None:
    """Each weaker case is refused: no tape, a name, a size, a checksum of an older export, no evidence."""
    ref, key = exported(catalog)

    def refused() -> None:
        assert list(catalog.candidates("prince", "bucket")) == []
        with pytest.raises(Refused):
            catalog.intend(intent(ref, "bucket", trash="", trashed_at=NOW))

    refused()
    told(catalog, entry(key))
    catalog.settle(now=NOW)
    refused()
    told(catalog, entry(key, size=100), digest="d2")
    catalog.settle(now=NOW)
    refused()
    told(catalog, entry(key, checksum=SHA), digest="d3")
    catalog.settle(now=NOW)
    assert [one.ref for one in catalog.candidates("prince", "bucket")] == [ref]
    damage(catalog, ref)
    refused()
    export(catalog, ref, sha256=OTHER, uploaded_at=NOW + HOUR)
    prove(catalog, ref)
    catalog.settle(now=NOW)
    refused()


def expire(catalog: Catalog) -> Ref:
    """Make the bucket copy of an archived event go."""
    ref, key = exported(catalog)
    told(catalog, entry(key, checksum=SHA))
    catalog.settle(now=NOW)
    catalog.intend(intent(ref, "bucket", trash="", trashed_at=NOW))
    return ref


def test_an_expired_copy_is_not_missed(catalog: Catalog) -> None:
    """It is not lost, not verified, not read back, not counted, not archived again; the tombstone stays."""
    ref = expire(catalog)
    assert catalog.ledger(ref).expired
    assert catalog.going() == []
    assert [one.ref for one, _ in catalog.going("bucket")] == [ref]
    catalog.record_gone(ref, "bucket", at=NOW + HOUR)
    assert catalog.going("bucket") == []
    damage(catalog, ref)
    ledger = catalog.ledger(ref)
    assert ledger.export is not None
    assert (ledger.export.damage, ledger.expired, ledger.state(NOW).name) == (None, True, "archived")
    assert catalog.sample(budget=10**9, now=NOW + DAY) == catalog.due("verify", now=NOW + DAY) == []
    assert (catalog.export_count("raw"), catalog.unarchived(before=NOW + DAY)) == (0, [])
    assert [one.expired for one in catalog.accounts()] == [True]
    assert list(catalog.candidates("prince", "bucket")) == []
    with pytest.raises(Refused, match="the bucket copy went at 2026-11-21 13:00"):
        catalog.intend(intent(ref, "bucket", trash=""))
    assert next(catalog.candidates("prince", "raw")).ref == ref


def test_a_copy_that_is_only_marked_still_counts(catalog: Catalog) -> None:
    """Until it is deleted it is verified, counted and missed like any other, but not marked twice."""
    ref, key = exported(catalog)
    told(catalog, entry(key, checksum=SHA))
    catalog.settle(now=NOW)
    catalog.intend(intent(ref, "bucket", trash=""))
    assert list(catalog.candidates("prince", "bucket")) == []
    assert not catalog.ledger(ref).expired
    assert [one.expired for one in catalog.accounts()] == [False]
    assert (catalog.export_count("raw"), catalog.sample(budget=1000, now=NOW)) == (1, [ref])
    damage(catalog, ref)
    assert catalog.ledger(ref).state(NOW).name == "lost"


def test_an_export_after_the_expiry_is_a_copy_again(catalog: Catalog) -> None:
    """The tombstone says that it came back, and it can expire a second time."""
    ref = expire(catalog)
    catalog.record_gone(ref, "bucket", at=NOW + HOUR)
    export(catalog, ref, uploaded_at=NOW + DAY)
    ledger = catalog.ledger(ref)
    assert (ledger.expired, ledger.purges[0].reason, ledger.purges[0].restored_at) == (
        False,
        "exported again",
        NOW + DAY,
    )
    assert catalog.due("verify", now=NOW + DAY) == [ref]
    prove(catalog, ref)
    assert catalog.intend(intent(ref, "bucket", trash="")).attempt == 2


# --------------------------------------------------------------------------------------------------------------- doors


def test_a_door_is_remembered(catalog: Catalog) -> None:
    """What a server said of its list goes into the next request."""
    assert catalog.manifest_source("https://tape/manifests") is None
    for number in range(2):
        catalog.record_manifest_source(
            ManifestSource(name="https://tape/manifests", etag=f'"{number}"', seen_at=NOW + timedelta(number))
        )
    door = catalog.manifest_source("https://tape/manifests")
    assert door is not None
    assert (door.etag, door.modified, door.seen_at) == ('"1"', None, NOW + DAY)
