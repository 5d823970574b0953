"""A hold keeps everything of an event, whichever verb would delete it and on whatever proof."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from plateway import pipeline
from plateway.bench import TRASH
from plateway.endpoint import Endpoint
from plateway.errors import Conflict, NotFound, Rejected
from plateway.events import Ref
from plateway.pipeline.hold import Held
from plateway.simulator import Announced
from plateway.store import open_store
from plateway.store.per_file import PerFile
from tests.lab import DAWN, Lab, with_policy
from tests.pipeline.test_purge import EXPIRING, Acting, due, gone, lab, make, results, whole

__all__ = ["lab"]

SCOPES = ("event", "experiment", "system")
FAR = 4000  # days


def scope(lab: Lab, ref: Ref, kind: str) -> dict[str, Any]:
    event = lab.ledger(ref).event
    return {kind: {"event": ref, "experiment": event.experiment, "system": event.system}[kind]}


def hold(lab: Lab, ref: Ref, kind: str = "event", **changes: Any) -> Held:
    return pipeline.hold(lab.site, **scope(lab, ref, kind), **{"reason": "audit 7", "by": "ana", **changes})


def release(lab: Lab, held: Held) -> None:
    pipeline.release(lab.site, held.hold.id.hex[:8], reason="audit is over", by="ben")


def purge(lab: Lab) -> None:
    """Purge as often and as late as it takes."""
    for _ in range(3):
        pipeline.purge(lab.site)
        lab.clock.turn(days=1)


def expire(lab: Lab) -> None:
    for _ in range(3):
        pipeline.expire(lab.site)
        lab.clock.turn(days=30)


def raw(lab: Lab) -> tuple[Announced, Ref, Callable[[Lab], None], str]:
    with_policy(lab, grace=timedelta(hours=1))
    return *due(lab), purge, "raw"


def staged(lab: Lab) -> tuple[Announced, Ref, Callable[[Lab], None], str]:
    lab.options = {**lab.options, "staging": lab.home / "staging" / "prince"}
    (lab.home / "staging").mkdir()
    with_policy(lab, purge=False, staging_lifespan=timedelta(hours=2))
    return *due(lab), purge, "staging"


def archived(lab: Lab) -> tuple[Announced, Ref, Callable[[Lab], None], str]:
    lab.policy = replace(EXPIRING, purge=False)
    announced, ref = due(lab)
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    pipeline.read_archive(lab.site, budget=1 << 30)
    lab.clock.turn(days=30)
    return announced, ref, expire, "bucket"


VERBS = {"purge": raw, "purge staging": staged, "expire": archived}


@pytest.mark.parametrize("layout", ["bundle", "files"])
@pytest.mark.parametrize("kind", SCOPES)
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_held_stays_and_goes_when_it_is_released(lab: Lab, verb: str, kind: str, layout: str) -> None:
    """However often and late the verb comes; released, it goes by the same proof as ever."""
    lab.options = {"layout": layout}
    lab.store = PerFile(lab.store)
    _, ref, act, place = VERBS[verb](lab)
    held = hold(lab, ref, kind)
    act(lab)
    assert lab.ledger(ref).purge(place) is None
    release(lab, held)
    act(lab)
    assert gone(lab, ref, place)


@pytest.mark.parametrize("verb", VERBS)
def test_a_hold_ends_on_its_day(lab: Lab, verb: str) -> None:
    _, ref, act, place = VERBS[verb](lab)
    hold(lab, ref, until=lab.clock() + timedelta(days=FAR))
    act(lab)
    assert lab.ledger(ref).purge(place) is None
    lab.clock.turn(days=FAR)
    act(lab)
    assert gone(lab, ref, place)


def test_images_in_the_trash_come_back(lab: Lab) -> None:
    """Held during the grace: they are moved back to where they were."""
    announced, ref = due(lab)
    assert results(pipeline.purge(lab.site)) == ["trashed"]
    hold(lab, ref)
    lab.clock.turn(hours=2)
    assert "restored" in results(pipeline.purge(lab.site))
    assert whole(announced)


@pytest.mark.parametrize(("verb", "moment"), [("purge", "record_removing"), ("expire", "record_trashed")])
def test_a_hold_that_comes_at_the_last_moment_holds(lab: Lab, verb: str, moment: str) -> None:
    """Everything was judged and proven; the transaction that begins the removal finds the hold."""
    announced, ref, act, place = VERBS[verb](lab)
    if verb == "purge":
        pipeline.purge(lab.site)
        lab.clock.turn(hours=2)
    catalog = lab.catalog
    lab.catalog = Acting(catalog, moment, lambda: hold(replace(lab, catalog=catalog), ref))  # type: ignore[assignment]
    act(lab)
    assert lab.catalog.holds()
    assert not gone(lab, ref, place)
    assert whole(announced)
    export = lab.ledger(ref).export
    assert export is not None
    assert lab.store.stat(export.key) is not None


def test_a_hold_tells_for_what_it_comes_too_late(lab: Lab) -> None:
    """A removal that has begun is named, and what is left of it stays."""
    _, ref = due(lab)
    pipeline.purge(lab.site)
    lab.catalog.record_removing(ref, "raw", at=lab.clock())
    held = hold(lab, ref, "system")
    assert held.late == [ref]
    left = sorted((lab.bench / "prince" / TRASH).rglob("*.tif"))
    lab.clock.turn(hours=2)
    purge(lab)
    assert sorted((lab.bench / "prince" / TRASH).rglob("*.tif")) == left


def test_images_that_a_held_event_shares_stay(lab: Lab) -> None:
    """Another event was announced with the same images, and is not held."""
    announced, ref = due(lab)
    other = announce_again(lab, announced)
    lab.settle()
    lab.export()
    lab.clock.turn(hours=9)
    hold(lab, Ref(other, 1))
    purge(lab)
    assert not gone(lab, ref)
    assert whole(announced)


def announce_again(lab: Lab, announced: Announced) -> UUID:
    told = json.loads(announced.path.read_text()) | {"timestep_id": str(uuid4())}
    announced.path.with_name("again.json").write_text(json.dumps(told))
    return UUID(told["timestep_id"])


def test_a_repair_removes_nothing_that_is_held(lab: Lab) -> None:
    """What a restore left in the trash when it was cut off: it stays, and the reason is told."""
    announced, ref = due(lab)
    left = lab.bench / "prince" / TRASH / f"{ref}.back" / "images"
    shutil.copytree(announced.images, left)
    held = hold(lab, ref)
    told = pipeline.reconcile(lab.site, repair=True)
    assert any("held by ana" in reason for one in told.outcomes for reason in one.reasons)
    assert left.exists()
    release(lab, held)
    pipeline.reconcile(lab.site, repair=True)
    assert not left.exists()


def test_who_held_and_released_what_and_why_stays(lab: Lab) -> None:
    """In the list and in the event's history; a release is for ever, and needs a reason."""
    _, ref = lab.exported()
    held = hold(lab, ref, "experiment", until=lab.clock() + timedelta(days=2))
    for wrong in ("", "  "):
        with pytest.raises(Rejected, match="reason"):
            pipeline.release(lab.site, held.hold.id.hex[:8], reason=wrong, by="ben")
    release(lab, held)
    with pytest.raises(Conflict, match="ben released it"):
        release(lab, held)
    assert lab.catalog.holds() == []
    (kept,) = lab.catalog.holds(released=True)
    assert (kept.by, kept.reason, kept.released_by, kept.release_reason) == ("ana", "audit 7", "ben", "audit is over")
    told = {one.what: (one.actor, one.why) for one in pipeline.detail(lab.site, lab.ledger(ref)).history}
    assert told["held"][0] == "ana"
    assert told["hold released"] == ("ben", "audit is over")
    with pytest.raises(NotFound):
        pipeline.release(lab.site, "0000", reason="x", by="ben")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({}, "one event, one experiment or one system"),
        ({"system": "prince", "experiment": "e"}, "one event, one experiment or one system"),
        ({"system": "prince", "reason": " "}, "needs a reason"),
        ({"system": "prince", "until": DAWN - timedelta(days=1)}, "over already"),
    ],
)
def test_a_hold_that_means_nothing_is_refused(lab: Lab, wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(Rejected, match=problem):
        pipeline.hold(lab.site, **{"reason": "audit 7", "by": "ana", **wrong})
    with pytest.raises(NotFound):
        pipeline.hold(lab.site, event=Ref(uuid4(), 1), reason="audit 7", by="ana")
    assert lab.catalog.holds(released=True) == []


# --------------------------------------------------------------------------------------------------------- object lock


@pytest.fixture
def locked(tmp_path: Path, endpoint: Endpoint, client: Any) -> Iterator[Lab]:
    """A laboratory whose bucket has Object Lock, on the real server."""
    name = f"locked-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    lab = make(tmp_path, PerFile(open_store(f"s3://{name}", endpoint)))
    yield lab
    lab.catalog.close()


def versions(lab: Lab, client: Any) -> list[dict[str, str]]:
    found = client.list_object_versions(Bucket=lab.store.name, Prefix="images/").get("Versions", ())
    return [{"Bucket": lab.store.name, "Key": one["Key"], "VersionId": one["VersionId"]} for one in found]


def may_go(client: Any, version: dict[str, str]) -> bool:
    """Whether the server lets a version go; it is asked to."""
    try:
        client.delete_object(**version)
    except client.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied"
        return False
    return True


@pytest.mark.parametrize("layout", ["bundle", "files"])
@pytest.mark.parametrize("until", [None, timedelta(days=FAR)])
def test_the_bucket_itself_holds_what_is_held(locked: Lab, client: Any, until: timedelta | None, layout: str) -> None:
    """Also against the administrator's key, what was exported before and what comes after; another hold stays."""
    locked.options = {"layout": layout}
    locked.clock.now = datetime.now(UTC)
    ends = until and locked.clock() + until
    _, ref = locked.exported()
    first = hold(locked, ref, "system", until=ends)
    assert (first.events, first.locked, first.failures) == (1, 1, [])
    locked.exported()
    there = versions(locked, client)
    assert len(there) >= 2
    assert not any(may_go(client, one) for one in there)
    second = hold(locked, ref, "system", until=ends)
    release(locked, first)
    assert not any(may_go(client, one) for one in there)
    release(locked, second)
    if until is None:
        assert all(may_go(client, one) for one in there)
    else:  # shortened to a minute
        left = [client.get_object_retention(**one)["Retention"]["RetainUntilDate"] for one in there]
        assert max(left) < datetime.now(UTC) + timedelta(minutes=2)


def test_a_bucket_without_locks_is_told(lab: Lab) -> None:
    _, ref = lab.exported()
    held = hold(lab, ref)
    assert (held.events, held.locked, held.failures) == (1, 0, [])
