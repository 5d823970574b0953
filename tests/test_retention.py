"""Each rule about deletion, and an attempt to break it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from plateway.instruments import Policy
from plateway.ledger import Ledger
from plateway.records import ArchiveLocation, Event, Export, Lease, Quarantine
from plateway.retention import SMALL, CopyState, halt, judge, judge_staging, prove

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=30)
POLICY = Policy(purge=True)


def event(**changes: Any) -> Event:
    facts: dict[str, Any] = {
        "id": uuid4(),
        "revision": 1,
        "system": "prince",
        "kind": "stitch",
        "experiment": "20260504_001",
        "timestamp": LONG_AGO,
        "path": "img",
        "image_count": 2,
        "digest": "d" * 64,
        "key": f"images/20260504_001/20260504/120000-{uuid4().hex[:8]}.tar",
        "file": "1.json",
        "announced_at": LONG_AGO,
        "first_seen": LONG_AGO,
        "waiting_since": LONG_AGO,
        "sealed_at": LONG_AGO,
    }
    return Event(**{**facts, **changes})


def export(of: Event, **changes: Any) -> Export:
    facts: dict[str, Any] = {
        "event_id": of.id,
        "revision": of.revision,
        "bucket": "plateway-raw",
        "key": of.key,
        "size": 10240,
        "sha256": "a" * 64,
        "etag": "b" * 32,
        "part_size": 1 << 24,
        "member_count": 2,
        "manifest_offset": 5120,
        "manifest_size": 300,
        "manifest_sha256": "c" * 64,
        "uploaded_at": NOW - timedelta(hours=10),
        "evidence": "etag",
        "evidence_at": NOW - timedelta(hours=9),
        "seen_etag": "b" * 32,
    }
    return Export(**{**facts, **changes})


def ledger(**changes: Any) -> Ledger:
    announced = event()
    facts: dict[str, Any] = {
        "event": announced,
        "export": export(announced),
        "archives": (),
        "purges": (),
        "quarantine": None,
        "setbacks": (),
        "lease": None,
    }
    return Ledger(**{**facts, **changes})


def archived(one: Ledger, *, evidence: str = "name") -> ArchiveLocation:
    assert one.export is not None
    return ArchiveLocation(
        checksum=one.export.sha256 if evidence == "checksum" else None,
        event_id=one.event.id,
        revision=1,
        path="images/x/2026-05-04.tar",
        member="a.tar",
        job_id="j",
        evidence=evidence,
        reported_at=NOW,
    )


def test_a_verified_old_copy_lets_the_raw_images_go() -> None:
    """The one way to yes."""
    assert judge(ledger(), POLICY, NOW).purge


def test_the_empty_policy_purges_nothing() -> None:
    """A site that configured nothing loses nothing."""
    verdict = judge(ledger(), Policy(), NOW)
    assert not verdict.purge
    assert verdict.reasons == ("prince is not among the systems to purge",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"evidence": None, "evidence_at": None}, "bucket copy not verified"),
        ({"evidence": "etag", "evidence_at": None}, "bucket copy not verified"),
        ({"damage": "lost: nothing there"}, "bucket copy damaged: lost: nothing there"),
        ({"evidence_at": NOW - timedelta(hours=11)}, "the evidence is older than the upload"),
        ({"evidence_at": NOW + timedelta(hours=1)}, "verified in the future: a clock went back"),
        ({"evidence_at": NOW - timedelta(hours=3)}, "verified 3:00:00 ago, kept for 8h"),
    ],
)
def test_without_good_evidence_nothing_goes(changes: dict[str, Any], reason: str) -> None:
    """Damage, missing, young or impossible evidence each keep the images, and say so."""
    one = ledger()
    verdict = judge(ledger(event=one.event, export=export(one.event, **changes)), POLICY, NOW)
    assert not verdict.purge
    assert reason in verdict.reasons


def test_age_counts_from_the_evidence_not_from_the_instrument() -> None:
    """An instrument whose clock says 1970 does not get its images purged early (D1, D19)."""
    one = event(timestamp=datetime(1970, 1, 1, tzinfo=UTC), announced_at=datetime(1970, 1, 1, tzinfo=UTC))
    young = ledger(event=one, export=export(one, evidence_at=NOW - timedelta(minutes=1)))
    assert not judge(young, POLICY, NOW).purge


def test_a_lifespan_is_over_when_it_is_over() -> None:
    """Not a moment earlier, and not later: raw images and staging copies alike."""
    one = ledger()
    assert one.export is not None and one.export.evidence_at is not None
    age = NOW - one.export.evidence_at
    for over in (timedelta(0), timedelta(microseconds=1)):
        policy = replace(POLICY, lifespan=age + over, staging_lifespan=age + over)
        assert judge(one, policy, NOW).purge == judge_staging(one, policy, NOW).purge == (not over)


def test_what_was_never_exported_stays_forever() -> None:
    """Age alone is no reason (D1)."""
    verdict = judge(ledger(export=None), POLICY, NOW + timedelta(days=9999))
    assert verdict.reasons == ("not exported",)


def test_the_archive_is_required_where_the_policy_says_so() -> None:
    """bucket+archive wants tape to have the bytes, and us to be able to read them: a name is nothing (A3)."""
    strict = Policy(purge=True, requires="bucket+archive")
    one = ledger()
    named = ledger(event=one.event, export=one.export, archives=(archived(one),))
    summed = ledger(event=one.event, export=one.export, archives=(archived(one, evidence="checksum"),))
    assert not judge(one, strict, NOW, readable=True).purge
    assert not judge(named, strict, NOW, readable=True).purge
    assert not judge(summed, strict, NOW).purge
    assert judge(summed, strict, NOW, readable=True).purge
    assert judge(summed, replace(strict, trust_archive=True), NOW).purge
    assert not judge(named, replace(strict, trust_archive=True), NOW, readable=True).purge


def test_an_archive_alone_is_not_enough() -> None:
    """Tape's word does not replace the verified bucket copy."""
    one = ledger()
    assert not judge(ledger(event=one.event, export=None, archives=(archived(one),)), POLICY, NOW).purge


def test_an_unknown_requirement_purges_nothing() -> None:
    """A misspelt requirement is not a weaker one."""
    assert not judge(ledger(), Policy(purge=True, requires="bucket + archive"), NOW).purge


def test_quarantined_events_stay() -> None:
    """What waits for a person is not tidied away."""
    held = Quarantine(system="prince", name="1.json", reason="11 of 12", content=b"", first_seen=NOW, last_seen=NOW)
    assert not judge(ledger(quarantine=held), POLICY, NOW).purge


def test_events_somebody_works_on_stay() -> None:
    """A live lease keeps the images; an expired one does not."""
    one = event()
    lease: dict[str, Any] = {"event_id": one.id, "revision": 1, "owner": "worker-1", "fence": 3}
    live = Lease(**lease, expires_at=NOW + timedelta(seconds=1))
    dead = Lease(**lease, expires_at=NOW)  # to the second
    assert judge(ledger(lease=live), POLICY, NOW).reasons == ("worker-1 is at work on it",)
    assert judge(ledger(lease=dead), POLICY, NOW).purge


def test_images_of_two_events_stay_until_both_are_safe() -> None:
    """A second announcement of the same images holds them as long as it is not verified itself."""
    other = ledger()
    unsafe = ledger(event=other.event, export=None)
    assert judge(ledger(), POLICY, NOW, siblings=[other]).purge
    verdict = judge(ledger(), POLICY, NOW, siblings=[unsafe])
    assert verdict.reasons == (f"shares its images with {unsafe.ref}, which is not safe: not exported",)


def test_every_reason_is_told_not_only_the_first() -> None:
    """A person sees all that has to change."""
    assert len(judge(ledger(export=None), Policy(requires="bucket+archive"), NOW).reasons) == 3


def test_staging_needs_no_permission_but_the_same_proof() -> None:
    """A staging copy goes when the bucket copy is verified and its own lifespan is over."""
    policy = Policy(purge=False, staging_lifespan=timedelta(hours=1))
    assert judge_staging(ledger(), policy, NOW).purge
    assert not judge_staging(ledger(export=None), policy, NOW).purge
    assert not judge_staging(ledger(), Policy(staging_lifespan=timedelta(days=9)), NOW).purge


@pytest.mark.parametrize(
    ("leaving", "present", "fraction", "halts"),
    [
        (0, 0, 0.5, False),
        (SMALL, SMALL, 0.5, False),
        (SMALL + 1, SMALL + 1, 0.5, True),
        (500, 1000, 0.5, False),
        (501, 1000, 0.5, True),
        (1000, 1000, 1.0, False),
        (11, 1_000_000, 1e-6, True),
        (11, 0, 0.5, True),
    ],
)
def test_a_batch_that_takes_too_much_halts(leaving: int, present: int, fraction: float, halts: bool) -> None:
    """More than the fraction stops the batch; a handful, each proven by itself, does not."""
    assert (halt(leaving, present=present, policy=Policy(fraction=fraction)) is not None) == halts


# --------------------------------------------------------------------------------------------------- the rule of proof


def read(**changes: Any) -> CopyState:
    """A copy that is proof."""
    facts: dict[str, Any] = {"where": "bucket", "name": "k", "read_at": NOW - timedelta(hours=1)}
    return CopyState(**{**facts, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"read_at": None},
        {"read_at": NOW - timedelta(hours=24, seconds=1)},
        {"read_at": NOW + timedelta(seconds=1)},
        {"read_at": NOW - timedelta(hours=2, seconds=1)},
        {"doubt": "is kept in memory"},
        {"changed": "has another ETag"},
        {"expiring": "a rule deletes it"},
        {"where": "archive", "reported": True},
    ],
)
def test_a_copy_that_lacks_anything_is_no_proof(changes: dict[str, Any]) -> None:
    """Never read, read too long ago, in the future or before the deletion began, moved, changed, announced to go."""
    since = NOW - timedelta(hours=2)
    assert prove([read()], POLICY, NOW, since=since).purge
    verdict = prove([read(**changes)], POLICY, NOW, since=since)
    assert not verdict.purge
    assert verdict.reasons
    assert not prove([read(), read(**{**changes, "name": "other"})], POLICY, NOW, since=since).purge or (
        "expiring" in changes
    )


def test_no_copy_is_no_proof() -> None:
    """Nothing goes because of nothing."""
    assert not prove([], POLICY, NOW).purge


def test_a_copy_that_a_rule_takes_needs_another_that_stays() -> None:
    """A bucket rule takes the bucket copy: tape must be proof; where it goes as well, nothing is."""
    going, tape = read(expiring="a rule deletes it"), read(where="archive", name="t")
    assert prove([going, tape], POLICY, NOW).purge
    assert not prove([going, replace(tape, read_at=None)], POLICY, NOW).purge
    assert not prove([going, replace(tape, expiring="a rule deletes it")], POLICY, NOW).purge


def test_the_archives_word_counts_by_name_only() -> None:
    """It is off by default, and weakens nothing but the reading."""
    word = read(where="archive", read_at=None, reported=True)
    assert not prove([word], POLICY, NOW).purge
    trusting = replace(POLICY, trust_archive=True)
    assert prove([word], trusting, NOW).purge
    assert not prove([replace(word, doubt="is kept in memory")], trusting, NOW).purge


def test_head_weakens_the_reading_of_the_bucket_only() -> None:
    """What changed, or lies in memory, is no proof under it either; tape is read all the same."""
    head = replace(POLICY, proof="head")
    assert prove([read(read_at=None)], head, NOW).purge
    for doubt in ({"changed": "has another ETag"}, {"doubt": "is kept in memory"}, {"expiring": "a rule deletes it"}):
        assert not prove([read(read_at=None, **doubt)], head, NOW).purge
    assert not prove([read(where="archive", read_at=None)], head, NOW).purge


def test_a_misspelt_proof_purges_nothing() -> None:
    """It is not a weaker one."""
    assert not judge(ledger(), Policy(purge=True, proof="haed"), NOW).purge
