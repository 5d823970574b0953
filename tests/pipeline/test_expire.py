"""Each rule by which a bucket copy may go, and an attempt to break it; and the bucket's own rules, which ask nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from plateway import pipeline, retention
from plateway.archive import open_archive
from plateway.endpoint import Endpoint
from plateway.errors import Denied, NotFound, Unavailable
from plateway.events import Ref
from plateway.instruments import Policy
from plateway.keys import is_marker
from plateway.ledger import Ledger
from plateway.pipeline import Outcome
from plateway.records import ArchiveLocation, Lease, Purge, Quarantine
from plateway.retention import Verdict
from plateway.store import Objects, Store, open_store
from plateway.store.memory import Memory
from plateway.store.wrappers import Prefixed, ReadOnly
from tests.dying import Death, Fate, dying, points
from tests.lab import DAWN, Lab, with_policy
from tests.pipeline.test_archive import content, exported, flipped, make, replaced, twin
from tests.test_retention import LONG_AGO, NOW, event, export, ledger

WEEK = timedelta(days=7)
POLICY = Policy(bucket_lifespan=WEEK)


# ----------------------------------------------------------------------------------------------------------- judging


def location(one: Ledger, **changes: Any) -> ArchiveLocation:
    assert one.export
    facts: dict[str, Any] = {
        "event_id": one.event.id,
        "revision": 1,
        "path": "images/x/2026-05-04.tar",
        "member": "./a.tar",
        "job_id": "j",
        "size": one.export.size,
        "checksum": one.export.sha256,
        "evidence": "checksum",
        "evidence_at": LONG_AGO,
        "reported_at": LONG_AGO,
    }
    return ArchiveLocation(**{**facts, **changes})


def on_tape(**changes: Any) -> Ledger:
    one = ledger()
    return replace(one, archives=(location(one, **changes),))


def gone(one: Ledger, place: str, **changes: Any) -> Purge:
    facts: dict[str, Any] = {
        "event_id": one.event.id,
        "revision": 1,
        "place": place,
        "attempt": 1,
        "proof": {},
        "intended_at": LONG_AGO,
        "trash": "",
        "trashed_at": LONG_AGO,
        "gone_at": LONG_AGO,
    }
    return Purge(**{**facts, **changes})


def test_proven_on_tape_for_long_enough_a_copy_goes() -> None:
    """The one way to yes."""
    assert judge_bucket(on_tape(), POLICY, NOW).purge


def judge_bucket(ledger: Ledger, policy: Policy, now: datetime, *, siblings: Sequence[Ledger] = ()) -> Verdict:
    """Judge where the archive can be read from here."""
    return retention.judge_bucket(ledger, policy, now, siblings=siblings, readable=True)


def test_the_empty_policy_keeps_bucket_copies() -> None:
    """However old they are."""
    assert judge_bucket(on_tape(), Policy(), NOW).reasons == ("prince keeps its bucket copies",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"evidence": "name", "checksum": None}, "images/x/2026-05-04.tar is known to have it by its name only"),
        ({"evidence": "size", "checksum": None}, "images/x/2026-05-04.tar is known to have it by its size only"),
        ({"evidence": "size"}, "images/x/2026-05-04.tar is known to have it by its size only"),
        ({"checksum": "f" * 64}, "images/x/2026-05-04.tar is told to have something else"),
        ({"checksum": None}, "images/x/2026-05-04.tar is told to have something else"),
        ({"size": 1}, "images/x/2026-05-04.tar is told to have something else"),
        ({"evidence_at": NOW - timedelta(days=6)}, "archived 6 days, 0:00:00 ago, kept for 7d"),
        ({"evidence_at": None, "reported_at": NOW}, "archived 0:00:00 ago, kept for 7d"),
        ({"evidence_at": NOW + timedelta(seconds=1)}, "archived in the future: a clock went back"),
    ],
)
def test_without_good_evidence_of_the_archive_a_copy_stays(changes: dict[str, Any], reason: str) -> None:
    """A name or a size is no proof, a young one is not enough; named long ago and proven yesterday is young."""
    assert judge_bucket(on_tape(**changes), POLICY, NOW).reasons == (reason,)


def test_one_good_place_among_others_is_enough() -> None:
    """What another archive says of it does not count against that."""
    one = on_tape()
    named = location(one, path="other.tar", evidence="name", checksum=None)
    assert judge_bucket(replace(one, archives=(named, *one.archives)), POLICY, NOW).purge
    assert judge_bucket(replace(one, archives=()), POLICY, NOW).reasons == ("no archive has it",)


def test_a_copy_that_is_doubted_stays() -> None:
    """Damage, missing evidence, quarantine, somebody at work: each keeps it."""
    one = on_tape()
    held = Quarantine(system="prince", name="1.json", reason="11 of 12", content=b"", first_seen=NOW, last_seen=NOW)
    lease = Lease(event_id=one.event.id, revision=1, owner="w", fence=1, expires_at=NOW + timedelta(seconds=1))
    broken = export(
        one.event, damage="changed: x", damage_kind="changed", damaged_at=NOW, evidence=None, evidence_at=None
    )
    for doubted in (
        replace(one, export=None),
        replace(one, export=broken),
        replace(one, export=export(one.event, evidence=None, evidence_at=None)),
        replace(one, quarantine=held),
        replace(one, lease=lease),
    ):
        assert not judge_bucket(doubted, POLICY, NOW + timedelta(0)).purge


def test_a_copy_stays_while_raw_images_wait_to_be_purged() -> None:
    """Their purge is proven against it: on the bench, in the trash, in staging, or announced twice."""
    one, both = on_tape(), replace(POLICY, purge=True)
    assert judge_bucket(one, both, NOW).reasons == ("the raw images are on the bench, and wait to be purged",)
    trashed = replace(one, purges=(gone(one, "raw", gone_at=None),))
    for policy in (POLICY, both):
        assert judge_bucket(trashed, policy, NOW).reasons == ("the raw images are in the trash, and not purged yet",)
    back = replace(one, purges=(gone(one, "raw", gone_at=None, restored_at=NOW, reason="asked"),))
    assert not judge_bucket(back, both, NOW).purge
    purged = replace(one, purges=(gone(one, "raw"),))
    assert judge_bucket(purged, both, NOW).purge
    assert not judge_bucket(purged, both, NOW, siblings=[ledger()]).purge
    assert judge_bucket(purged, both, NOW, siblings=[replace(ledger(), purges=(gone(one, "raw"),))]).purge
    staged = event(staged_at=LONG_AGO)
    own = ledger(event=staged, export=export(staged))
    assert not judge_bucket(replace(own, archives=(location(own),)), POLICY, NOW).purge
    staging = replace(one, purges=(gone(one, "staging", gone_at=None),))
    assert judge_bucket(staging, POLICY, NOW).reasons == ("a staging copy waits to be purged",)


def test_what_is_marked_is_judged_on_and_what_is_gone_is_not() -> None:
    """The mark itself is no reason; a tombstone is."""
    one = on_tape()
    assert judge_bucket(replace(one, purges=(gone(one, "bucket", gone_at=None),)), POLICY, NOW).purge
    reasons = judge_bucket(replace(one, purges=(gone(one, "bucket"),)), POLICY, NOW).reasons
    assert reasons == ("the bucket copy has expired",)


# ------------------------------------------------------------------------------------------------------------- going


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    (tmp_path / "tape").mkdir()
    return tmp_path / "tape"


class Lasting(Memory):
    """A bucket in this process that stands for one that lasts."""

    durable = True


@pytest.fixture
def lab(tmp_path: Path, tape: Path) -> Iterator[Lab]:
    lab = make(tmp_path, Lasting("bucket"), tape)
    with_policy(lab, purge=False, bucket_lifespan=WEEK)
    yield lab
    lab.catalog.close()


def archived(lab: Lab, count: int = 1) -> list[Ref]:
    """Archive events, and wait for the lifespan to pass."""
    refs = exported(lab, count)
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    lab.clock.turn(days=8)
    return refs


def marked(lab: Lab, count: int = 1) -> list[Ref]:
    """Mark events, and wait for the grace to pass."""
    refs = archived(lab, count)
    assert results(pipeline.expire(lab.site)) == ["marked"] * count
    lab.clock.turn(hours=1)
    return refs


def results(outcomes: list[Outcome]) -> list[str]:
    return sorted(one.result for one in outcomes)


def objects(store: Store) -> list[str]:
    """List the keys in a bucket, but for the site's own marker."""
    return [one.key for one in store.list() if not is_marker(one.key)]


def there(lab: Lab, ref: Ref) -> bool:
    return lab.store.stat(lab.ledger(ref).event.key) is not None


def safe(lab: Lab, ref: Ref) -> None:
    """The event is in the bucket, or the archive has every byte of it and a tombstone says what it was."""
    found = lab.ledger(ref)
    assert found.export
    tape = b"".join(path.read_bytes() for path in (lab.home / "tape").rglob("*.tar"))
    if there(lab, ref):
        assert content(lab, ref) in tape
        return
    mark = found.purge("bucket")
    assert mark and mark.proof["sha256"] == found.export.sha256
    (place,) = found.archives
    with (lab.home / "tape" / place.path).open("rb") as file:
        file.seek(place.offset or 0)
        data = file.read(found.export.size)
    lab.store.put(found.export.key, [data], size=len(data), part_size=1 << 24, metadata={})
    stat = lab.store.stat(found.export.key)
    assert stat and stat.etag == found.export.etag
    lab.store.delete(found.export.key)


def test_a_bucket_copy_is_marked_and_then_deleted(lab: Lab) -> None:
    """Mark, wait, prove again, delete, leave a tombstone; the event is on tape, and nobody misses the object."""
    refs = archived(lab, 2)
    assert results(pipeline.expire(lab.site)) == ["marked", "marked"]
    assert all(there(lab, ref) for ref in refs)
    lab.clock.turn(minutes=59)
    assert results(pipeline.expire(lab.site)) == ["marked", "marked"]
    lab.clock.turn(minutes=1)
    assert results(pipeline.expire(lab.site)) == ["expired", "expired"]
    assert objects(lab.store) == []
    mark = lab.ledger(refs[0]).purge("bucket")
    assert mark and mark.gone_at == lab.clock()
    assert mark.proof["archives"][0]["evidence"] == "checksum"
    assert mark.proof["manifest_read"] == lab.ledger(refs[0]).archives[0].path
    assert lab.catalog.counts(lab.clock()) == {"archived": 2}
    assert pipeline.expire(lab.site) == []
    for ref in refs:
        safe(lab, ref)


def test_the_rest_of_the_line_copes_with_an_expired_copy(lab: Lab) -> None:
    """It is not verified, sampled, exported or noted as lost; raw images stay, and say why; tape gives all back."""
    with_policy(lab, purge=False)
    (ref,) = marked(lab)
    pipeline.expire(lab.site)
    lab.clock.turn(days=30)
    outcome = pipeline.verify(lab.site, ref, read_back=True)
    assert (outcome.result, outcome.reasons) == ("expired", ("the bucket copy has expired",))
    assert pipeline.sample(lab.site, 1 << 40) == []
    assert pipeline.due(lab.site, "verify") == pipeline.due(lab.site, "export") == []
    with_policy(lab, purge=True)
    (refused,) = pipeline.purge(lab.site)
    assert (refused.result, refused.reasons) == ("refused", ("the bucket copy has expired",))
    found = lab.ledger(ref)
    assert found.export and found.export.damage is None
    assert pipeline.status(lab.site, found).state == "archived"
    assert pipeline.detail(lab.site, found).manifest is not None
    assert pipeline.restore(lab.site, ref, to=lab.home / "back").result == "restored"


def test_raw_images_go_first(lab: Lab) -> None:
    """Both may go; the bucket copy waits until the raw images are gone for good."""
    with_policy(lab, purge=True)
    (ref,) = archived(lab)
    assert results(pipeline.expire(lab.site)) == ["refused"]
    pipeline.purge(lab.site)
    assert results(pipeline.expire(lab.site)) == ["refused"]
    lab.clock.turn(hours=2)
    pipeline.purge(lab.site)
    assert results(pipeline.expire(lab.site)) == ["marked"]
    lab.clock.turn(hours=2)
    assert results(pipeline.expire(lab.site)) == ["expired"]
    assert lab.state(ref) == "purged"


def test_without_a_lifespan_everything_stays(lab: Lab) -> None:
    """One row says so for the system, not one for each event."""
    with_policy(lab, bucket_lifespan=None)
    archived(lab, 2)
    (outcome,) = pipeline.expire(lab.site)
    assert (outcome.result, outcome.reasons) == ("refused", ("aretha keeps its bucket copies",))


def test_a_dry_run_deletes_and_marks_nothing(lab: Lab) -> None:
    """It judges and proves: also that the archive has the event where it is said to be."""
    good, bad = archived(lab, 2)
    replaced(lab, bad, flipped(content(lab, bad)))
    assert results(pipeline.expire(lab.site, dry_run=True)) == ["damaged", "would go"]
    assert lab.ledger(good).purges == ()
    assert there(lab, good)


def test_other_systems_are_left_alone(lab: Lab) -> None:
    """Only those that were asked for."""
    (ref,) = archived(lab)
    assert pipeline.expire(lab.site, systems=["prince"]) == []
    assert lab.ledger(ref).purges == ()


def test_a_batch_that_takes_too_much_stops(lab: Lab) -> None:
    """More than the fraction of a system's copies is asked about first; what tape lacks is counted, and told."""
    refs = archived(lab, 12)
    exported(lab)
    outcomes = pipeline.expire(lab.site)
    assert results(outcomes) == ["refused", "stopped"]
    assert {one.reasons[0] for one in outcomes} == {
        "1 bucket copy, of which tape is not known to have the bytes",
        "12 of 13 events would go, more than 50%; confirm with --fraction 1",
    }
    assert not any(lab.ledger(ref).purges for ref in refs)
    assert results(pipeline.expire(lab.site, fraction=1.0)).count("marked") == 12


# ------------------------------------------------------------------------------------ between the mark and the deletion


def test_a_replaced_object_is_not_deleted(lab: Lab) -> None:
    """It is not the one recorded: the mark is taken back, the damage noted, the stranger's bytes stay."""
    (ref,) = marked(lab)
    other = flipped(content(lab, ref))
    replaced(lab, ref, other)
    (outcome, *_) = pipeline.expire(lab.site)
    assert outcome.result == "damaged"
    assert content(lab, ref) == other
    assert lab.state(ref) == "changed"
    mark = lab.ledger(ref).purges[0]
    assert mark.restored_at == lab.clock() and mark.reason and "not the object" in mark.reason


class Swapping(Lasting):
    """A bucket where an object is replaced right before the last look that is taken at it."""

    looks = -1

    def stat(self, key: str) -> Any:
        self.looks -= 1
        if self.looks == 0:
            data = flipped(b"".join(self.open(key)))
            self.put(key, [data], size=len(data), part_size=1 << 24, metadata={})
        return super().stat(key)


@pytest.mark.parametrize("look", [1, 2])
def test_an_object_replaced_during_the_proof_is_not_deleted(tmp_path: Path, tape: Path, look: int) -> None:
    """The last look comes after the archive was read, right before the deletion."""
    store = Swapping("bucket")
    lab = make(tmp_path, store, tape)
    with_policy(lab, purge=False, bucket_lifespan=WEEK)
    (ref,) = marked(lab)
    store.looks = look
    assert {"restored", "damaged"} & set(results(pipeline.expire(lab.site)))
    assert there(lab, ref)
    assert lab.state(ref) == "changed"
    lab.catalog.close()


def test_an_object_that_somebody_else_deleted_is_lost(lab: Lab) -> None:
    """The mark does not cover for it."""
    (ref,) = marked(lab)
    lab.store.delete(lab.ledger(ref).event.key)
    assert "damaged" in results(pipeline.expire(lab.site))
    assert lab.state(ref) == "lost"


def test_a_location_that_was_taken_back_keeps_the_copy(lab: Lab) -> None:
    """Somebody read the archive meanwhile, and did not find it."""
    (ref,) = marked(lab)
    (place,) = lab.ledger(ref).archives
    lab.catalog.record_misplaced(ref, place.path, reason="sha256 other", at=lab.clock())
    assert "restored" in results(pipeline.expire(lab.site))
    assert there(lab, ref)
    assert lab.state(ref) == "exported"


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "other"])
def test_an_archive_that_is_damaged_keeps_the_copy(lab: Lab, tape: Path, harm: str) -> None:
    """It is read right before, every byte; where other bytes were read the location is taken back."""
    (ref,) = marked(lab)
    (place,) = lab.ledger(ref).archives
    path = tape / place.path
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        at = (place.offset or 0) + 700
        harmed = {"flipped": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "cut": data[:-3000], "other": b"x"}
        path.write_bytes(harmed[harm])
    assert "restored" in results(pipeline.expire(lab.site))
    assert there(lab, ref)
    assert lab.state(ref) == ("exported" if harm == "flipped" else "archived")
    if harm != "flipped":  # nor is it marked again: the place is looked at before
        assert results(pipeline.expire(lab.site)) == ["refused"]
        assert lab.ledger(ref).purge("bucket") is None


def test_an_archive_out_of_reach_keeps_the_mark(lab: Lab, tape: Path) -> None:
    """Waiting may help; when it is back, the copy goes."""
    (ref,) = marked(lab)
    away = tape.rename(tape.parent / "away")
    outcomes = pipeline.expire(lab.site)
    assert there(lab, ref)
    assert results(outcomes) in (["later"], ["restored", "refused"], ["refused", "restored"])
    away.rename(tape)
    for _ in range(2):
        lab.clock.turn(hours=2)
        pipeline.expire(lab.site)
    assert not there(lab, ref)
    safe(lab, ref)


def test_without_an_archive_in_reach_its_word_counts_only_where_the_site_says_so(lab: Lab) -> None:
    """A manifest that tells the checksum is a word: it keeps the copy, and where it is trusted, that is told."""
    (ref,) = archived(lab)
    site = replace(lab.site, archive=None)
    assert results(pipeline.expire(site)) == ["refused"]
    with_policy(lab, trust_archive=True)
    site = replace(lab.site, archive=None)
    assert results(pipeline.expire(site)) == ["marked"]
    lab.clock.turn(hours=1)
    with_policy(lab, trust_archive=False)
    assert results(pipeline.expire(replace(lab.site, archive=None))) == ["restored"]
    assert there(lab, ref)
    with_policy(lab, trust_archive=True)
    for _ in range(2):
        pipeline.expire(replace(lab.site, archive=None))
        lab.clock.turn(hours=1)
    assert not there(lab, ref)
    assert lab.ledger(ref).on_word
    assert any("archive's word" in reason for reason in pipeline.status(lab.site, lab.ledger(ref)).reasons)
    safe(lab, ref)


def test_a_policy_that_changed_keeps_the_copy(lab: Lab) -> None:
    """Marked under one rule, judged under today's."""
    (ref,) = marked(lab)
    with_policy(lab, bucket_lifespan=None)
    assert "restored" in results(pipeline.expire(lab.site))
    assert there(lab, ref)
    with_policy(lab, bucket_lifespan=WEEK)
    assert results(pipeline.expire(lab.site)) == ["marked"]


def test_images_that_are_to_be_purged_after_all_keep_the_copy(lab: Lab) -> None:
    """Somebody listed the system for purging meanwhile."""
    (ref,) = marked(lab)
    with_policy(lab, purge=True)
    assert "restored" in results(pipeline.expire(lab.site))
    assert there(lab, ref)


def test_a_clock_that_goes_back_deletes_nothing(lab: Lab) -> None:
    """Neither before the mark nor after it."""
    refs = archived(lab, 2)
    now = lab.clock.now
    lab.clock.now = DAWN
    assert results(pipeline.expire(lab.site)) == ["refused", "refused"]
    lab.clock.now = now
    pipeline.expire(lab.site)
    lab.clock.turn(days=-1)
    assert results(pipeline.expire(lab.site)) == ["marked", "marked"]
    assert all(there(lab, ref) for ref in refs)


def test_somebody_at_work_keeps_the_copy(lab: Lab) -> None:
    """A lease keeps it from being marked, and from being deleted."""
    (ref,) = archived(lab)
    fence = lab.catalog.lease(ref, owner="other", ttl=timedelta(days=1), now=lab.clock())
    assert results(pipeline.expire(lab.site)) == ["refused"]
    lab.catalog.release(ref, fence=fence)
    pipeline.expire(lab.site)
    lab.clock.turn(hours=1)
    fence = lab.catalog.lease(ref, owner="other", ttl=timedelta(days=1), now=lab.clock())
    assert results(pipeline.expire(lab.site)) == ["later"]
    assert there(lab, ref)
    lab.catalog.release(ref, fence=fence)
    assert results(pipeline.expire(lab.site)) == ["expired"]


def test_a_lease_that_was_lost_while_reading_deletes_nothing(lab: Lab) -> None:
    """Somebody else was granted the event while the archive was slow."""
    (ref,) = marked(lab)

    class Slow:
        def __getattr__(self, name: str) -> Any:
            if name == "open":
                lab.clock.turn(minutes=11)
                lab.catalog.lease(ref, owner="other", ttl=timedelta(minutes=1), now=lab.clock())
            return getattr(lab.archive, name)

    slow: Any = Slow()
    assert "later" in results(pipeline.expire(replace(lab.site, archive=slow)))
    assert there(lab, ref)


class Stubborn(Memory):
    """A bucket that says yes to a deletion and keeps the object."""

    def delete(self, key: str) -> None:
        return


def test_a_deletion_is_looked_at(lab: Lab) -> None:
    """What is still there is not noted as gone."""
    (ref,) = marked(lab)
    stubborn = Stubborn("bucket")
    stubborn._kept = lab.store._kept  # type: ignore[attr-defined]  # the same objects
    (outcome,) = pipeline.expire(replace(lab.site, store=stubborn))
    assert outcome.result == "later"
    mark = lab.ledger(ref).purge("bucket")
    assert mark and mark.gone_at is None
    assert results(pipeline.expire(lab.site)) == ["expired"]


def test_a_read_only_bucket_keeps_everything(lab: Lab) -> None:
    """Its refusal takes the mark back."""
    (ref,) = marked(lab)
    assert "restored" in results(pipeline.expire(replace(lab.site, store=ReadOnly(cast("Objects", lab.store)))))
    assert there(lab, ref)


def test_another_bucket_is_not_touched(lab: Lab) -> None:
    """The settings name one that the event was never sent to."""
    (ref,) = marked(lab)
    other = Memory("other")
    data = content(lab, ref)
    other.put(lab.ledger(ref).event.key, [data], size=len(data), part_size=1 << 24, metadata={})
    assert "expired" not in results(pipeline.expire(replace(lab.site, store=other)))
    assert other.stat(lab.ledger(ref).event.key)


def test_nothing_in_another_bucket_is_no_deletion(lab: Lab) -> None:
    """A run was cut off while it deleted, and the next one is given other settings: the tombstone is not closed."""
    (ref,) = marked(lab)
    lab.catalog.record_trashed(ref, "bucket", at=lab.clock())
    pipeline.expire(replace(lab.site, store=Memory("other")))
    mark = lab.ledger(ref).purge("bucket")
    assert mark
    assert mark.gone_at is None
    assert there(lab, ref)
    assert results(pipeline.expire(lab.site)) == ["expired"]
    safe(lab, ref)


def test_sending_it_again_brings_the_copy_back(lab: Lab) -> None:
    """By force, from the bench: it is one again, and is judged from the beginning."""
    (ref,) = marked(lab)
    pipeline.expire(lab.site)
    pipeline.export(lab.site, ref, force=True)
    assert not lab.ledger(ref).expired
    assert pipeline.verify(lab.site, ref).result == "verified"
    assert results(pipeline.expire(lab.site)) == ["marked"]
    lab.clock.turn(hours=1)
    assert results(pipeline.expire(lab.site)) == ["expired"]
    safe(lab, ref)


def test_dying_anywhere_leaves_the_event_safe(tmp_path: Path) -> None:
    """At every call to bucket, archive and catalogue, before and after; the next runs end it, or take it back (I8)."""
    (tmp_path / "first" / "tape").mkdir(parents=True)
    first = make(tmp_path / "first", Memory("bucket"), tmp_path / "first" / "tape")
    with_policy(first, purge=False, bucket_lifespan=WEEK)
    (ref,) = archived(first)
    first.catalog.close()
    lives: dict[str, list[str]] = {"marking": [], "deleting": []}
    probe = twin(first, tmp_path / "probe")
    for life in lives:
        fate = Fate()
        pipeline.expire(dying(probe.site, fate))
        lives[life] = fate.seen
        probe.clock.turn(hours=1)
    probe.catalog.close()
    assert "store.delete" in lives["deleting"] and "catalog.intend" in lives["marking"]
    for life, effects in lives.items():
        for number, point in enumerate(points(effects)):
            lab = twin(first, tmp_path / f"{life}-{number}")
            if life == "deleting":
                pipeline.expire(lab.site)
                lab.clock.turn(hours=1)
            with pytest.raises(Death):
                pipeline.expire(dying(lab.site, point))
            safe(lab, ref)
            assert lab.state(ref) == "archived"
            for _ in range(2):
                lab.clock.turn(hours=2)
                pipeline.expire(lab.site)
            assert not there(lab, ref)
            safe(lab, ref)
            assert lab.state(ref) == "archived"
            assert pipeline.expire(lab.site) == []
            assert len(lab.ledger(ref).purges) == 1
            lab.catalog.close()


def test_several_at_once_delete_once(lab: Lab) -> None:
    """Four at a time, from threads: one is at each event."""
    refs = marked(lab, 3)
    start, outcomes = threading.Barrier(4), []

    def work() -> None:
        start.wait()
        outcomes.extend(pipeline.expire(lab.site))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results(outcomes).count("expired") == 3
    assert set(results(outcomes)) <= {"expired", "later"}
    for ref in refs:
        safe(lab, ref)
        assert len(lab.ledger(ref).purges) == 1


@pytest.mark.parametrize("place", ["directory", "s3"])
def test_it_works_in_real_buckets(tmp_path: Path, place: str, endpoint: Endpoint, bucket: str, client: Any) -> None:
    """An object goes, and nothing whose key begins alike."""
    for name in ("bucket", "tape"):
        (tmp_path / name).mkdir()
    store = open_store(f"s3://{bucket}/raw" if place == "s3" else (tmp_path / "bucket").as_uri(), endpoint)
    lab = make(tmp_path, store, tmp_path / "tape")
    if place == "s3":
        lab.archive = open_archive(f"s3://{bucket}/tape", endpoint)
    with_policy(lab, purge=False, bucket_lifespan=WEEK)
    (ref,) = marked(lab)
    key = lab.ledger(ref).event.key
    for near in (f"{key}2", key.removesuffix(".tar"), f"old/{key}"):
        store.put(near, [b"near"], size=4, part_size=1 << 24, metadata={})
    assert results(pipeline.expire(lab.site)) == ["expired"]
    assert sorted(objects(store)) == sorted([f"{key}2", key.removesuffix(".tar"), f"old/{key}"])
    assert pipeline.restore(lab.site, ref, to=tmp_path / "back").result == "restored"
    lab.catalog.close()


# ----------------------------------------------------------------------------------------------- the bucket's own rules


class Ruled(Memory):
    """A bucket with rules, or with none that it tells."""

    rules: Any = ()

    def lifecycle(self) -> Any:
        if isinstance(self.rules, Exception):
            raise self.rules
        return self.rules


def rule(**changes: Any) -> dict[str, Any]:
    return {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 14}, **changes}


ABORT = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}
HARMLESS = [
    rule(Status="Disabled"),
    rule(Filter={"Prefix": "logs/"}),
    rule(Filter={"Prefix": "imagesets/"}),
    rule(Expiration={"ExpiredObjectDeleteMarker": True}),
    {"ID": "a", "Status": "Enabled", "Filter": {"Prefix": ""}, **ABORT},
    {"ID": "n", "Status": "Enabled", "Prefix": "", "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
    {"ID": "t", "Status": "Enabled", "Filter": {}, "Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]},
]
TAGGED = {"And": {"Prefix": "images/", "Tags": [{"Key": "archived", "Value": "true"}]}}


def half_archived(home: Path) -> Lab:
    """Two exports of which one is on tape, in a bucket with rules."""
    (home / "tape").mkdir()
    lab = make(home, Ruled("bucket"), home / "tape")
    exported(lab)
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    lab.clock.now = DAWN + timedelta(minutes=1)
    exported(lab)
    return lab


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One for all: nobody changes more than its rules."""
    lab = half_archived(tmp_path_factory.mktemp("ruled"))
    yield lab
    lab.catalog.close()


def cautions(lab: Lab, *rules: Any) -> list[pipeline.Caution]:
    assert isinstance(lab.store, Ruled)
    lab.store.rules = rules
    return pipeline.policy_warnings(lab.site)


def test_rules_that_delete_nothing_in_use_are_fine(ruled: Lab) -> None:
    """Open uploads, old versions, other prefixes, what is switched off; and a bucket without any rule."""
    assert cautions(ruled, *HARMLESS) == []
    assert cautions(ruled) == []
    assert pipeline.policy_warnings(replace(ruled.site, store=Memory("bucket"))) == []


def test_a_rule_that_could_delete_what_tape_lacks_is_warned_of(ruled: Lab) -> None:
    """With its name, prefix and age, how many it covers, and when the first goes (D4)."""
    (caution,) = cautions(ruled, rule(Filter={"Prefix": "images/"}), *HARMLESS)
    assert (caution.rule, caution.prefix, caution.after, caution.exports) == ("old", "images/", "14d", 1)
    assert caution.first == datetime(2026, 5, 19, tzinfo=UTC)  # S3 waits for the midnight after
    assert caution.text == (
        "rule 'old' deletes what begins with 'images/' 14 days after it was uploaded; 1 export there is not on tape; "
        "the first goes on 2026-05-19"
    )


@pytest.mark.parametrize(
    ("changes", "exports"),
    [
        ({"Filter": {}}, 1),
        ({"Filter": {"Prefix": "im"}}, 1),
        ({"Filter": {"Prefix": "images/20260504_001/"}}, 1),
        ({"Filter": {"Prefix": "images/2025"}}, 0),
        ({"Filter": {"Prefix": "videos/"}}, 0),
        ({"Filter": {"ObjectSizeGreaterThan": 1 << 30}}, 0),
        ({"Filter": {"And": {"Prefix": "images/", "ObjectSizeLessThan": 1 << 30}}}, 1),
        ({"Filter": {"Tag": {"Key": "a", "Value": "b"}}}, 1),
        ({"Expiration": {"Date": datetime(2026, 1, 1, tzinfo=UTC)}}, 1),
        ({"Expiration": {"Days": 0}}, 1),
    ],
)
def test_every_filter_is_read(ruled: Lab, changes: dict[str, Any], exports: int) -> None:
    """A rule that covers nothing today covers what comes tomorrow: it is warned of, too."""
    (caution,) = cautions(ruled, rule(**changes))
    assert caution.exports == exports
    assert (caution.first is not None) == bool(exports)


def test_a_prefix_of_old_is_read(ruled: Lab) -> None:
    """Where older rules have it: beside the filter."""
    (caution,) = cautions(ruled, {"Status": "Enabled", "Prefix": "images/", "Expiration": {"Days": 4}})
    assert (caution.rule, caution.prefix, caution.exports) == ("", "images/", 1)


def test_a_tag_is_a_hint_and_no_protection(ruled: Lab) -> None:
    """Rules that ask for archived=true are named as what they are (D9 to D11)."""
    (caution,) = cautions(ruled, rule(Filter=TAGGED))
    assert "where it is tagged archived=true; that tag is a hint, which anybody may set, and no protection" in (
        caution.text
    )
    assert "at most 1 export" in caution.text


@pytest.mark.parametrize(
    "strange",
    [
        rule(Expiration={}),
        rule(Expiration={"Days": "14"}),
        rule(Expiration={"Days": 1, "Date": datetime(2026, 1, 1, tzinfo=UTC)}),
        rule(Filter={"Moon": "full"}),
        rule(Status="Perhaps", Expiration={"When": "soon"}),
    ],
)
def test_a_rule_that_cannot_be_understood_is_warned_of(ruled: Lab, strange: dict[str, Any]) -> None:
    """It may mean anything."""
    (caution,) = cautions(ruled, strange)
    assert "it says more than could be understood" in caution.text


@pytest.mark.parametrize("error", [Denied("bucket: denied (AccessDenied)"), Unavailable("answered 501 NotImplemented")])
def test_rules_that_cannot_be_read_are_warned_of(ruled: Lab, error: Exception) -> None:
    """Nobody knows, so nobody is reassured."""
    assert isinstance(ruled.store, Ruled)
    ruled.store.rules = error
    (caution,) = pipeline.policy_warnings(ruled.site)
    assert caution.text.startswith("the bucket's lifecycle rules cannot be read: ")
    ruled.store.rules = NotFound("bucket: not found (NoSuchBucket)")
    with pytest.raises(NotFound):
        pipeline.policy_warnings(ruled.site)


def test_what_is_lost_is_not_counted(tmp_path: Path) -> None:
    """What is not in the bucket cannot be deleted there."""
    lab = half_archived(tmp_path)
    (waiting,) = (one for one in lab.catalog.ledgers() if not one.archives)
    lab.store.delete(waiting.event.key)
    pipeline.verify(lab.site, waiting.ref)
    (caution,) = cautions(lab, rule())
    assert caution.exports == 0
    assert "now everything there is on tape" in caution.text
    lab.catalog.close()


def test_rules_of_a_real_bucket_are_read(tmp_path: Path, endpoint: Endpoint, bucket: str, client: Any) -> None:
    """On SeaweedFS, in a part of the bucket, through a read-only face; keys there begin with that part's name."""
    (tmp_path / "tape").mkdir()
    store = open_store(f"s3://{bucket}/raw", endpoint)
    lab = make(tmp_path, store, tmp_path / "tape")
    exported(lab)
    site = replace(lab.site, store=ReadOnly(store))
    assert pipeline.policy_warnings(site) == []
    rules = [
        rule(ID="all"),
        rule(ID="part", Filter={"Prefix": "raw/images/"}),
        rule(ID="other", Filter={"Prefix": "images/"}),
    ]
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    found = {one.rule: one.exports for one in pipeline.policy_warnings(site)}
    assert found == {"all": 1, "part": 1}
    assert pipeline.policy_warnings(replace(lab.site, store=Prefixed(Memory("m"), "p/"))) == []
    client.delete_bucket_lifecycle(Bucket=bucket)
    with pytest.raises(NotFound):
        pipeline.policy_warnings(replace(lab.site, store=open_store("s3://no-such-bucket", endpoint)))
    lab.catalog.close()


def test_d4_rules_that_delete_what_tape_does_not_have_are_warned_of(
    lab: Lab, bucket: str, endpoint: Endpoint, client: Any
) -> None:
    """The bucket deletes after two weeks by itself, taped or not: it is told before, with how many that is about."""
    lab.store = open_store(f"s3://{bucket}", endpoint)
    lab.several(2)
    assert pipeline.policy_warnings(lab.site) == []
    rule = {"ID": "two weeks", "Status": "Enabled", "Filter": {"Prefix": "images/"}, "Expiration": {"Days": 14}}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    (caution,) = pipeline.policy_warnings(lab.site)
    assert (caution.prefix, caution.after, caution.exports) == ("images/", "14d", 2)


def test_d4_a_bucket_copy_goes_only_with_proof_that_tape_has_it(lab: Lab) -> None:
    """Old, exported, named by tape but not proven: it stays, for however long."""
    with_policy(lab, purge=False, bucket_lifespan=timedelta(days=4))
    (named, other) = lab.several(2)
    assert lab.receive(lab.manifest([named])) == ["received", "archived"]
    lab.clock.turn(days=99)
    assert {one.result for one in pipeline.expire(lab.site, fraction=1.0)} == {"refused"}
    assert all(lab.store.stat(lab.ledger(ref).event.key) for ref in (named, other))
