"""Messages to others are written with their facts, on both databases."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from plateway.catalog import Catalog
from plateway.catalog.outbox import Message
from plateway.errors import Busy, NotFound
from plateway.outcome import Fact
from tests.catalog.test_tape import PATH, SHA, entry, exported, told
from tests.factories import HOUR, MINUTE, NOW, add, damage, export, intent, prove, said, seen, upload


def facts(catalog: Catalog, target: str) -> list[Fact]:
    """What a target has not been told."""
    return [one.fact for one in catalog.pending_messages(target)]


def ids(messages: list[Message]) -> list[UUID]:
    return [one.id for one in messages]


def test_without_targets_nothing_is_written(catalog: Catalog) -> None:
    """Facts of a site that tells nobody leave no messages, also for a target that comes later."""
    export(catalog, ref := add(catalog))
    prove(catalog, ref)
    catalog.register_targets(["redis"], now=NOW)
    assert catalog.outbox_messages() == []
    assert [(one.target.name, one.pending, one.oldest) for one in catalog.backlogs()] == [("redis", 0, None)]


def test_each_fact_is_one_message_to_each_target(catalog: Catalog) -> None:
    """Registered, exported, verified, damaged and purged, in this order, with one id for both targets."""
    assert catalog.register_targets(["redis", "amqp"], now=NOW) == ["amqp", "redis"]
    assert catalog.register_targets(["redis"], now=NOW) == []
    ref = add(catalog)
    row = export(catalog, ref)
    prove(catalog, ref)
    prove(catalog, ref, kind="read-back")
    catalog.intend(intent(ref))
    catalog.record_trashed(ref, "raw", at=NOW)
    catalog.record_gone(ref, "raw", at=NOW + HOUR)
    damage(catalog, ref)
    damage(catalog, ref)
    told = catalog.pending_messages("redis")
    assert [one.fact for one in told] == ["registered", "exported", "verified", "purged", "damaged"]
    assert ids(catalog.pending_messages("amqp")) == ids(told)
    assert len(set(ids(told))) == len(told)
    assert {one.ref for one in told} == {ref}
    uploaded = {"key": f"raw/{row.key}", "size": 100, "sha256": "s" * 64, "uploaded_at": NOW.isoformat()}
    assert [dict(one.details) for one in told] == [
        {},
        uploaded,
        {**uploaded, "evidence": "etag"},
        {},
        {**uploaded, "damage": "lost"},
    ]
    assert told[3].at == NOW + HOUR


def test_what_went_to_tape_and_what_expired_are_told(catalog: Catalog) -> None:
    """Archived, with where it is on tape, and expired, once each, also if tape tells it twice."""
    catalog.register_targets(["redis"], now=NOW)
    ref, key = exported(catalog)
    for digest in ("d1", "d2"):
        told(catalog, entry(key, checksum=SHA), digest=digest)
        catalog.settle(now=NOW)
    catalog.intend(intent(ref, "bucket", trash="", trashed_at=NOW))
    catalog.record_gone(ref, "bucket", at=NOW + HOUR)
    *_, archived, expired = catalog.pending_messages("redis")
    assert facts(catalog, "redis") == [Fact.REGISTERED, Fact.EXPORTED, Fact.VERIFIED, Fact.ARCHIVED, Fact.EXPIRED]
    assert (archived.ref, archived.at, archived.details["path"]) == (ref, NOW, PATH)
    assert (expired.ref, expired.at) == (ref, NOW + HOUR)


def test_a_fact_that_is_not_recorded_is_not_told(catalog: Catalog) -> None:
    """Message and fact are one transaction: both, or neither."""
    catalog.register_targets(["redis"], now=NOW)
    ref = add(catalog)
    with pytest.raises(Busy):
        catalog.record_export(upload(ref, catalog.get(ref)), fence=7)
    assert facts(catalog, "redis") == [Fact.REGISTERED]


def test_new_content_is_a_message_about_its_revision(catalog: Catalog) -> None:
    """The same announcement again is none; other content under the same id is another revision."""
    catalog.register_targets(["redis"], now=NOW)
    for count in (12, 12, 13):
        catalog.register("prince", [seen(said(image_count=count))], now=NOW)
    assert [one.ref.revision for one in catalog.pending_messages("redis")] == [1, 2]


def test_each_target_has_its_own_backlog(catalog: Catalog) -> None:
    """What one target got, the other has not; what was delivered can be replayed, and is trimmed."""
    catalog.register_targets(["redis", "amqp"], now=NOW)
    for number in (1, 2, 3):
        add(catalog, number)
    first, second, third = catalog.pending_messages("redis")
    assert ids(catalog.pending_messages("redis", after=first.sequence, limit=1)) == [second.id]
    catalog.record_delivered("redis", [first.sequence, second.sequence], now=NOW + MINUTE)
    assert ids(catalog.pending_messages("redis")) == [third.id]
    assert [(one.target.name, one.pending, one.age(NOW + HOUR)) for one in catalog.backlogs()] == [
        ("amqp", 3, HOUR),
        ("redis", 1, HOUR),
    ]
    assert catalog.replay_messages("redis", message=second.id) == 1
    assert ids(catalog.pending_messages("redis")) == [second.id, third.id]
    assert catalog.replay_messages("redis", event=first.event.id, since=NOW + MINUTE) == 0
    assert catalog.replay_messages("redis", event=first.event.id, since=NOW) == 1
    catalog.record_delivered("redis", [first.sequence], now=NOW + MINUTE)
    catalog.trim_outbox("redis", before=NOW + HOUR)
    assert ids(catalog.outbox_messages(target="redis")) == [third.id, second.id]
    with pytest.raises(NotFound):
        catalog.replay_messages("telex")


def test_an_error_stays_until_a_delivery(catalog: Catalog) -> None:
    """The last error of a target is known, until it has got a message."""
    catalog.register_targets(["redis"], now=NOW)
    add(catalog)
    catalog.record_outbox_error("redis", "refused", now=NOW)
    (backlog,) = catalog.backlogs()
    assert (backlog.target.error, backlog.target.error_at) == ("refused", NOW)
    catalog.record_delivered("redis", [catalog.pending_messages("redis")[0].sequence], now=NOW + HOUR)
    (backlog,) = catalog.backlogs()
    assert (backlog.target.error, backlog.target.delivered_at, backlog.pending) == (None, NOW + HOUR, 0)


def test_one_process_relays_to_a_target(catalog: Catalog) -> None:
    """A target is held by one process, until that lets go or falls silent; one that was forgotten by none."""
    catalog.register_targets(["redis"], now=NOW)
    ttl = timedelta(minutes=2)
    assert catalog.hold_target("redis", "one", now=NOW, ttl=ttl)
    assert catalog.hold_target("redis", "one", now=NOW + MINUTE, ttl=ttl)
    assert not catalog.hold_target("redis", "two", now=NOW + 2 * MINUTE, ttl=ttl)
    assert catalog.hold_target("redis", "two", now=NOW + 3 * MINUTE, ttl=ttl)
    catalog.release_target("redis", "one")
    assert not catalog.hold_target("redis", "one", now=NOW + 3 * MINUTE, ttl=ttl)
    catalog.release_target("redis", "two")
    assert catalog.hold_target("redis", "one", now=NOW + 3 * MINUTE, ttl=ttl)
    add(catalog)
    catalog.forget_target("redis")
    assert (catalog.backlogs(), catalog.outbox_messages()) == ([], [])
    assert not catalog.hold_target("redis", "one", now=NOW, ttl=ttl)
    with pytest.raises(NotFound):
        catalog.forget_target("redis")
