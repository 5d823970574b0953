"""The catalogue keeps facts, derives states, and lets one worker at a time; on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import io
import logging
import random
import sqlite3
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from plateway.catalog import NETWORK, Catalog, network_file_system
from plateway.errors import (
    Busy,
    CatalogUnavailable,
    Conflict,
    Damage,
    Denied,
    Misconfigured,
    NotFound,
    PlatewayError,
    Refused,
    Transient,
    Unavailable,
)
from plateway.events import Ref
from plateway.keys import event_key, layout_of
from plateway.ledger import Ledger, State
from plateway.outcome import Restored
from plateway.records import ArchiveLocation, Event, Export, Setback
from tests.databases import administration, processes
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
    said,
    seen,
    upload,
)

CANARY = "canary-5ecret"


def archive(catalog: Catalog, ref: Ref) -> None:
    """Record a location on tape, as reconciliation will."""
    row = ArchiveLocation(
        event_id=ref.id, revision=ref.revision, path="a.tar", member="m", job_id="j", evidence="name", reported_at=NOW
    )
    with catalog._writing() as session:
        session.add(row)


def state(catalog: Catalog, ref: Ref, now: datetime = NOW) -> State:
    """Derive where an event stands."""
    return catalog.ledger(ref).state(now)


# ---------------------------------------------------------------------------------------------------------------- refs


def test_ref_reads_what_it_writes() -> None:
    """The first revision is the bare id, others say which; None leaves it to the catalogue."""
    id_ = said().id
    assert str(Ref(id_, 1)) == str(id_)
    assert str(Ref(id_, 12)) == f"{id_}-r12"
    assert Ref.parse(str(id_)) == (id_, None)
    assert Ref.parse(f" {id_}-r12 ".upper().replace("-R", "-r")) == (id_, 12)


@pytest.mark.parametrize("text", ["", "abc", "-", "0" * 31, f"{UUID(int=1)}-r0", f"{UUID(int=1)}-r", f"{UUID(int=1)}x"])
def test_ref_refuses_what_is_no_id(text: str) -> None:
    """What cannot be an id is not found, rather than a crash."""
    with pytest.raises(NotFound, match="is not the id of an event"):
        Ref.parse(text)


# ----------------------------------------------------------------------------------------------------------- discovery


def test_registered_event_is_known(catalog: Catalog) -> None:
    """An announcement becomes an event with its key, and its file need not be read again."""
    event = said()
    assert catalog.register("prince", [seen(event)], now=NOW) == [(Ref(event.id, 1), False)]
    row = catalog.get(Ref(event.id, 1))
    assert (row.experiment, row.plate, row.path, row.details) == (event.experiment, 12, "images/1", {"position": 1})
    assert (row.key, row.digest, row.first_seen, row.waiting_since) == (event_key(event), event.digest, NOW, NOW)
    assert catalog.known("prince") == {f"{event.id}.json": (300, 7)}
    assert catalog.known("aretha") == {}
    assert catalog.newest(event.id) == Ref(event.id, 1)


def test_register_again_changes_nothing(catalog: Catalog) -> None:
    """The same content under the same id is one event, in one batch, in the next, or in another file."""
    event = said()
    assert len(catalog.register("prince", [seen(event), seen(event)], now=NOW)) == 1
    before = catalog.get(Ref(event.id, 1))
    assert catalog.register("prince", [seen(event), seen(event, file="copy.json")], now=NOW + DAY) == []
    assert catalog.get(Ref(event.id, 1)) == before
    assert set(catalog.known("prince")) == {f"{event.id}.json", "copy.json"}


def test_empty_batch(catalog: Catalog) -> None:
    """Nothing new is nothing to do."""
    assert catalog.register("prince", [], now=NOW) == []


def test_other_content_is_a_conflict(catalog: Catalog) -> None:
    """The same id with other content is the next revision, with a key of its own; both are kept."""
    first, second, third = said(), said(image_count=13), said(image_count=14)
    assert catalog.register("prince", [seen(first), seen(second)], now=NOW) == [
        (Ref(first.id, 1), False),
        (Ref(first.id, 2), True),
    ]
    assert catalog.register("prince", [seen(third), seen(first)], now=NOW) == [(Ref(first.id, 3), True)]
    ledgers = catalog.revisions(first.id)
    assert [one.conflict for one in ledgers] == [False, True, True]
    assert [one.event.key for one in ledgers] == [event_key(first, revision=n) for n in (1, 2, 3)]
    assert catalog.newest(first.id) == Ref(first.id, 3)
    assert state(catalog, Ref(first.id, 2)).reasons[-1] == "conflict: revision 2 of this id"


def test_layout_is_fixed_at_registration(catalog: Catalog) -> None:
    """The key tells it, of revisions too; an instrument's new layout is that of what it announces from then on."""
    catalog.register("prince", [seen(said())], now=NOW, layout="files")
    ref = Ref(said().id, 1)
    other = catalog.rekey(ref)
    assert other == catalog.get(ref).key == event_key(said(), revision=2, layout="files")
    heir = catalog.revise(ref, digest="d" * 64, now=NOW)
    assert catalog.get(heir).key == event_key(said(), revision=3, layout="files")
    catalog.register("prince", [seen(said(image_count=n)) for n in (13, 14)], now=NOW, layout="files")
    catalog.register("prince", [seen(said(image_count=15))], now=NOW)
    layouts = [layout_of(one.event.key) for one in catalog.revisions(ref.id)]
    assert layouts == ["files"] * 4 + ["bundle"]
    assert len({one.event.key for one in catalog.revisions(ref.id)}) == 5


def test_key_taken_by_another(catalog: Catalog) -> None:
    """Two ids that begin alike, in one second, get keys that differ, in one batch or in two."""
    ids = [UUID(int=7 << 96 | n) for n in range(3)]
    one, two, three = (said(1, id=id_) for id_ in ids)
    assert event_key(one) == event_key(two) == event_key(three)
    catalog.register("prince", [seen(one), seen(two)], now=NOW)
    catalog.register("prince", [seen(three)], now=NOW)
    keys = [catalog.get(Ref(id_, 1)).key for id_ in ids]
    assert keys == [event_key(one), event_key(two, whole=True), event_key(three, whole=True)]
    assert len(set(keys)) == 3


def test_rejected_file_is_quarantined(catalog: Catalog) -> None:
    """A bad file is kept with bytes and reason; seen again it only moves the time."""
    catalog.register("prince", [rejected(), seen(said())], now=NOW)
    catalog.register("prince", [rejected()], now=NOW + DAY)
    (row,) = catalog.quarantined()
    assert (row.name, row.content, row.reason) == ("bad.json", b"{", "not JSON")
    assert (row.first_seen, row.last_seen, row.event_id) == (NOW, NOW + DAY, None)
    assert catalog.known("prince")["bad.json"] == (1, 7)


def test_other_bad_content_keeps_both(catalog: Catalog) -> None:
    """When a bad file becomes another bad file, the bytes of both are kept and one is shown."""
    catalog.register("prince", [rejected()], now=NOW)
    catalog.register("prince", [rejected(content=b"[", reason="still not JSON")], now=NOW + DAY)
    assert [row.content for row in catalog.quarantined()] == [b"["]
    assert [row.content for row in catalog.quarantined(include_released=True)] == [b"{", b"["]


def test_mended_file_leaves_quarantine(catalog: Catalog) -> None:
    """A file that is fine now is in quarantine no longer; its bad bytes stay."""
    catalog.register("prince", [rejected("1.json")], now=NOW)
    catalog.register("prince", [seen(said(), file="1.json")], now=NOW + DAY)
    assert catalog.quarantined() == []
    assert [row.released_at for row in catalog.quarantined(include_released=True)] == [NOW + DAY]


def test_one_that_cannot_be_recorded_stops_nobody(catalog: Catalog) -> None:
    """An announcement with a number no column holds is quarantined; its neighbours are registered."""
    batch = [seen(said(1)), seen(said(2, image_count=10**30)), rejected(), seen(said(3))]
    new = catalog.register("prince", batch, now=NOW)
    assert [ref.id for ref, _ in new] == [said(1).id, said(3).id]
    (unfit,) = (row for row in catalog.quarantined() if row.name != "bad.json")
    assert unfit.reason.startswith("cannot be recorded: ")
    assert len(catalog.known("prince")) == 4


def test_names_that_are_not_text(catalog: Catalog) -> None:
    """A Latin-1 file name is registered, known and quarantined like any other."""
    name = "caf\udce9\n.json"
    catalog.register("prince", [rejected(name, reason="bad \udce9 \0")], now=NOW)
    assert catalog.known("prince") == {name: (1, 7)}
    assert catalog.quarantined()[0].name == name


def test_systems_that_announced(catalog: Catalog) -> None:
    """A system is known from its first event on."""
    add(catalog, 1, system="prince")
    add(catalog, 2, system="aretha")
    add(catalog, 3, system="prince")
    assert catalog.systems() == ["aretha", "prince"]


def test_unsettled_until_sealed(catalog: Catalog) -> None:
    """Events wait for their images until they are sealed or quarantined, oldest first, one system at a time."""
    first, second, third = (add(catalog, n, sealed=False) for n in (1, 2, 3))
    add(catalog, 4, sealed=False, system="aretha")
    catalog.seal([second], now=NOW)
    catalog.quarantine(third, "13 of 12 images present", b"{}", now=NOW)
    assert [Ref(row.id, row.revision) for row in catalog.unsettled("prince")] == [first]


def test_look_dates_from_the_last_change(catalog: Catalog) -> None:
    """``fingerprint_at`` says since when the images look as they do; a look after the seal changes nothing."""
    ref = add(catalog, sealed=False)
    looks = [("a", 1, 0), ("a", 2, 1), ("b", 2, 2), ("b", 2, 3), (None, None, 4), (None, None, 5), ("b", 12, 6)]
    since = []
    for mark, present, minute in looks:
        catalog.look(ref, fingerprint=mark, present=present, now=NOW + minute * MINUTE)
        row = catalog.get(ref)
        assert (row.fingerprint, row.present) == (mark, present)
        since.append(None if row.fingerprint_at is None else (row.fingerprint_at - NOW) // MINUTE)
    assert since == [0, 0, 2, 2, 4, 4, 6]
    catalog.seal([ref], now=NOW + HOUR)
    catalog.look(ref, fingerprint="c", present=13, now=NOW + DAY)
    catalog.seal([ref], now=NOW + DAY)
    row = catalog.get(ref)
    assert (row.fingerprint, row.present, row.sealed_at) == ("b", 12, NOW + HOUR)


def test_many_looks_at_once(catalog: Catalog) -> None:
    """A pass over the bench notes what it saw in one transaction."""
    refs = [add(catalog, n, sealed=False) for n in range(1, 6)]
    catalog.look_all([(ref, f"f{ref.id}", ref.id.int % 10, ref.id.int % 7) for ref in refs], now=NOW)
    catalog.look_all([], now=NOW)
    catalog.seal([], now=NOW)
    catalog.seal(refs, now=NOW)
    for ref in refs:
        row = catalog.get(ref)
        assert (row.fingerprint, row.present, row.sealed_at) == (f"f{ref.id}", ref.id.int % 10, NOW)
        assert row.image_bytes == ref.id.int % 7


def test_quarantined_event_can_be_replayed(catalog: Catalog) -> None:
    """A replay reads the file again and looks at the images as if for the first time, whatever failed before."""
    ref = add(catalog)
    catalog.look(ref, fingerprint="f", present=11, now=NOW)
    catalog.set_back(ref, "export", reason="no", now=NOW)
    catalog.quarantine(ref, "11 of 12 images present", b"{}", now=NOW)
    catalog.quarantine(ref, "10 of 12 images present", b"{}", now=NOW + HOUR)
    assert state(catalog, ref) == ("quarantined", ("10 of 12 images present", *state(catalog, ref).reasons[1:]))
    (row,) = catalog.quarantined()
    assert (row.first_seen, row.last_seen, row.event_id, row.revision) == (NOW, NOW + HOUR, ref.id, 1)
    assert row.id is not None
    assert catalog.replay(row.id, now=NOW + DAY).released_at == NOW + DAY
    event = catalog.get(ref)
    assert (event.waiting_since, event.sealed_at, event.fingerprint, event.present) == (NOW + DAY, None, None, None)
    assert catalog.known("prince") == {}
    assert [one.id for one in catalog.unsettled("prince")] == [ref.id]
    assert catalog.ledger(ref).setbacks == ()
    assert catalog.quarantined() == []


def test_unsealed_event_waits_again(catalog: Catalog) -> None:
    """An event whose images turn out not to be complete waits for them anew, with a deadline of its own."""
    ref = add(catalog)
    catalog.look(ref, fingerprint="f", present=12, now=NOW)
    catalog.unseal(ref, now=NOW + DAY)
    assert [row.waiting_since for row in catalog.unsettled("prince")] == [NOW + DAY]
    assert state(catalog, ref) == ("waiting", ("no images seen yet",))


def test_replay_twice_is_once(catalog: Catalog) -> None:
    """A second replay of the same row starts nothing over."""
    catalog.register("prince", [rejected()], now=NOW)
    (row,) = catalog.quarantined()
    assert row.id is not None
    catalog.replay(row.id, now=NOW + HOUR)
    catalog.register("prince", [rejected()], now=NOW + HOUR)
    assert catalog.replay(row.id, now=NOW + DAY).released_at == NOW + HOUR
    assert set(catalog.known("prince")) == {"bad.json"}
    with pytest.raises(NotFound, match="no quarantine 99"):
        catalog.replay(99, now=NOW)


def test_a_file_rewritten_without_end_is_kept_twice(catalog: Catalog) -> None:
    """The first version and the newest, however many there were; their number is counted."""
    for n in range(50):
        catalog.register("prince", [rejected(content=b"%d" % n)], now=NOW + n * MINUTE)
        assert len(catalog.quarantined(include_released=True)) <= 2
    first, newest = catalog.quarantined(include_released=True)
    assert (first.content, first.versions, first.released_at) == (b"0", 1, NOW + MINUTE)
    assert (newest.content, newest.versions, newest.released_at) == (b"49", 50, None)
    assert [row.id for row in catalog.quarantined()] == [newest.id]


def test_a_file_that_is_fine_now_and_then_is_kept_twice(catalog: Catalog) -> None:
    """Rewritten with what can be accepted in between, or replayed each time: the count goes on, the rows do not."""
    for n in range(1, 20):
        catalog.register("prince", [rejected(content=b"%d" % n)], now=NOW)
        catalog.register("prince", [seen(said(n), file="bad.json")], now=NOW)
        assert catalog.quarantined() == []
    catalog.register("prince", [rejected(content=b"last")], now=NOW)
    first, newest = catalog.quarantined(include_released=True)
    assert (first.content, newest.content, newest.versions) == (b"1", b"last", 20)
    for _ in range(5):
        (row,) = catalog.quarantined()
        catalog.replay(row.id or 0, now=NOW)
        catalog.register("prince", [rejected(content=b"last")], now=NOW)
    assert [one.versions for one in catalog.quarantined(include_released=True)] == [1, 20]


def test_versions_of_one_file_are_no_other_files(catalog: Catalog) -> None:
    """Neither another file of the system nor the same name in another system is counted or removed."""
    for n in range(5):
        catalog.register("prince", [rejected(content=b"%d" % n)], now=NOW)
    catalog.register("aretha", [rejected(content=b"0")], now=NOW)
    catalog.register("prince", [rejected(content=b"0", file="other.json")], now=NOW)
    told = [(row.system, row.name, row.versions) for row in catalog.quarantined()]
    assert told == [("prince", "bad.json", 5), ("aretha", "bad.json", 1), ("prince", "other.json", 1)]


def test_known_scales(catalog: Catalog, record_property: Callable[[str, object], None]) -> None:
    """100,000 known files are told without opening any; how fast is reported."""
    rows = [{"system": "prince", "name": f"{n:08}.json", "size": n, "mtime_ns": n << 40} for n in range(100_000)]
    with catalog._writing() as session:
        session.execute(sa.insert(sa.table("event_file", *map(sa.column, rows[0]))), rows)
    started = time.perf_counter()
    known = catalog.known("prince")
    record_property("known_100000_seconds", time.perf_counter() - started)
    assert len(known) == 100_000
    assert known["00012345.json"] == (12345, 12345 << 40)


# ---------------------------------------------------------------------------------------------------------------- work


def test_due_export_is_what_may_be_taken_up(catalog: Catalog) -> None:
    """Sealed and not exported, oldest seal first; not what is held, set back, in quarantine or purged."""
    free, held, late, aside, exported, lost, purging, unsealed = (add(catalog, n, sealed=n < 8) for n in range(1, 9))
    assert catalog.due("export", now=NOW) == [free, held, late, aside, exported, lost, purging]
    catalog.lease(held, owner="other", ttl=HOUR, now=NOW)
    catalog.set_back(late, "export", reason="no", now=NOW)
    catalog.quarantine(aside, "a link", now=NOW)
    for ref in (exported, lost, purging):
        export(catalog, ref)
        prove(catalog, ref)
    catalog.intend(intent(purging))
    damage(catalog, lost)
    damage(catalog, purging)
    assert catalog.due("export", now=NOW) == [free, lost]
    assert catalog.due("export", now=NOW, limit=1) == [free]
    assert catalog.due("export", now=NOW + DAY) == [free, held, late, lost]
    catalog.record_restored(purging, "raw", at=NOW, reason="the proof failed", cause=Restored.UNPROVEN)
    assert catalog.due("export", now=NOW) == [free, lost, purging]
    assert unsealed not in catalog.due("export", now=NOW + DAY)


def test_due_verify_is_what_has_no_evidence(catalog: Catalog) -> None:
    """Uploads without evidence, oldest first; not what is set back or known to be damaged."""
    first, second, late, lost, good = (add(catalog, n) for n in range(1, 6))
    for ref, minute in ((second, 2), (first, 1), (late, 3), (lost, 4), (good, 5)):
        export(catalog, ref, uploaded_at=NOW + minute * MINUTE)
    catalog.set_back(late, "verify", reason="503", now=NOW)
    damage(catalog, lost)
    prove(catalog, good)
    assert catalog.due("verify", now=NOW) == [first, second]
    assert catalog.due("verify", now=NOW + DAY) == [first, second, late]
    with pytest.raises(ValueError, match="purge"):
        catalog.due("purge", now=NOW)


def test_unknown_events_are_not_found(catalog: Catalog) -> None:
    """Asking or telling about an event that nobody announced says so."""
    ref = Ref(UUID(int=1), 1)
    asks: list[Callable[[], object]] = [
        lambda: catalog.newest(ref.id),
        lambda: catalog.get(ref),
        lambda: catalog.ledger(ref),
        lambda: catalog.ledgers(after=ref),
        lambda: catalog.lease(ref, owner="me", ttl=MINUTE, now=NOW),
        lambda: catalog.set_back(ref, "export", reason="no", now=NOW),
        lambda: catalog.quarantine(ref, "no", now=NOW),
        lambda: catalog.stage(ref, now=NOW),
        lambda: catalog.intend(intent(ref)),
        lambda: catalog.revise(ref, digest="d", now=NOW),
    ]
    for ask in asks:
        with pytest.raises(NotFound, match="no such event"):
            ask()
    assert catalog.revisions(ref.id) == catalog.ledgers(refs=[ref]) == catalog.ledgers(refs=[]) == []


def test_ledger_has_everything(catalog: Catalog) -> None:
    """One ledger brings all that is known of an event, and nothing of its neighbours."""
    ref, other = add(catalog, 1), add(catalog, 2)
    for one in (ref, other):
        export(catalog, one)
        prove(catalog, one)
        archive(catalog, one)
    catalog.set_back(ref, "verify", reason="503", now=NOW)
    catalog.set_back(ref, "purge", reason="EIO", now=NOW)
    catalog.intend(intent(ref))
    catalog.record_restored(ref, "raw", at=NOW, reason="other bytes", cause=Restored.UNPROVEN)
    catalog.intend(intent(ref, intended_at=NOW + HOUR))
    catalog.quarantine(ref, "a link", now=NOW)
    found = catalog.ledger(ref)
    assert found.ref == ref
    assert found.export is not None
    assert [one.path for one in found.archives] == ["a.tar"]
    assert [(one.place, one.attempt) for one in found.purges] == [("raw", 1), ("raw", 2)]
    assert [one.verb for one in found.setbacks] == ["purge", "verify"]
    assert found.lease is not None
    assert not found.held(NOW)
    assert found.quarantine is not None
    purge, setback = found.purge("raw"), found.setback("purge")
    assert purge is not None
    assert purge.attempt == 2
    assert found.purge("staging") is None
    assert setback is not None
    assert setback.reason == "EIO"
    assert found.setback("export") is None
    neighbour = catalog.ledger(other)
    assert (neighbour.purges, neighbour.setbacks, neighbour.quarantine) == ((), (), None)


def test_ledgers_are_few_queries(catalog: Catalog) -> None:
    """A thousand ledgers cost as many queries as one."""
    catalog.register("prince", [seen(said(n)) for n in range(1, 1001)], now=NOW)
    statements: list[str] = []

    def count(*execution: Any) -> None:
        statements.append(execution[2])

    sa.event.listen(catalog._engine, "before_cursor_execute", count)
    assert len(catalog.ledgers()) == 1000
    assert len([one for one in statements if one.startswith("SELECT")]) == 8  # one a table


def test_ledgers_by_what_is_asked(catalog: Catalog) -> None:
    """Filters join with and; times are from (included) to (excluded); the order is by time, then id, then revision."""
    add(catalog, 3, experiment="other")
    add(catalog, 1)
    add(catalog, 2, plate=13)
    add(catalog, 4, system="aretha", plate=None)

    def numbers(**asked: Any) -> list[int]:
        return [one.event.details["position"] for one in catalog.ledgers(**asked)]

    assert numbers() == [1, 2, 3, 4]
    assert numbers(system="prince") == [1, 2, 3]
    assert numbers(system="prince", experiment="20261121_012", plate=13) == [2]
    assert numbers(since=NOW + timedelta(seconds=2), until=NOW + timedelta(seconds=4)) == [2, 3]
    assert numbers(refs=[Ref(said(n).id, 1) for n in (4, 2, 9)]) == [2, 4]
    assert numbers(refs=[Ref(said(n).id, 1) for n in (4, 2, 1)], limit=2, system="prince") == [1, 2]
    assert numbers(keys=[event_key(said(2))]) == [2]


def test_pages_neither_skip_nor_repeat(catalog: Catalog) -> None:
    """Pages one after the other give every event once, also at one timestamp and with several revisions."""
    for n in range(1, 8):
        add(catalog, n, timestamp=NOW + (n // 3) * HOUR)
    add(catalog, 4, timestamp=NOW + HOUR, plate=1)
    whole = [one.ref for one in catalog.ledgers()]
    assert len(whole) == 8
    paged: list[Ref] = []
    while page := catalog.ledgers(limit=3, after=paged[-1] if paged else None):
        paged += [one.ref for one in page]
    assert paged == whole


def test_many_refs_at_once(catalog: Catalog) -> None:
    """More refs than fit in one statement are answered all the same."""
    new = catalog.register("prince", [seen(said(n)) for n in range(1, 1301)], now=NOW)
    refs = [ref for ref, _ in new]
    assert [one.ref for one in catalog.ledgers(refs=refs)] == refs


# -------------------------------------------------------------------------------------------------------------- states


def worlds(catalog: Catalog) -> Iterator[tuple[Ref, str, tuple[str, ...]]]:
    """Move one event after the other into each state; yield which, and why."""
    numbers = iter(range(1, 100))

    def new(*, sealed: bool = True) -> Ref:
        return add(catalog, next(numbers), sealed=sealed)

    yield new(sealed=False), "waiting", ("no images seen yet",)
    few = new(sealed=False)
    catalog.look(few, fingerprint="f", present=11, now=NOW)
    yield few, "waiting", ("11 of 12 images present",)
    restless = new(sealed=False)
    catalog.look(restless, fingerprint="f", present=12, now=NOW)
    yield restless, "waiting", ("images still changing",)
    yield new(), "ready", ()
    held = new()
    catalog.lease(held, owner="me", ttl=HOUR, now=NOW)
    yield held, "exporting", ()
    expired = new()
    catalog.lease(expired, owner="me", ttl=HOUR, now=NOW - DAY)
    yield expired, "ready", ()
    failed = new()
    catalog.set_back(failed, "export", reason="503", now=NOW - timedelta(seconds=10))
    yield failed, "waiting", ("export failed (attempt 1, next 12:00): 503",)
    due = new()
    catalog.set_back(due, "export", reason="503", now=NOW - DAY)
    yield due, "waiting", ("export failed (attempt 1, due): 503",)
    sent = new()
    export(catalog, sent)
    yield sent, "exported", ("not verified yet",)
    good = new()
    export(catalog, good)
    prove(catalog, good)
    yield good, "exported", ()
    taped = new()
    export(catalog, taped)
    prove(catalog, taped)
    archive(catalog, taped)
    yield taped, "archived", ()
    for moved in (False, True):
        purged = new()
        export(catalog, purged)
        prove(catalog, purged)
        catalog.intend(intent(purged))
        if moved:
            catalog.record_trashed(purged, "raw", at=NOW)
        yield purged, "purged" if moved else "exported", ()
    aside = new()
    catalog.quarantine(aside, "a link", now=NOW)
    yield aside, "quarantined", ("a link",)
    for harm, what in (("lost", "lost: no such object"), ("changed", "changed: 99 bytes, not 100")):
        bad = new()
        export(catalog, bad)
        damage(catalog, bad, what)
        yield bad, harm, (what,)


def test_every_state_and_why(catalog_url: str) -> None:
    """Each event stands where its facts say, with the reason; and the counts, made in SQL, agree."""
    catalog = Catalog(catalog_url, dice=Even())
    catalog.upgrade()
    assert catalog.counts(NOW) == {}
    counts: Counter[str] = Counter()
    for ref, name, reasons in worlds(catalog):
        assert state(catalog, ref) == State(name, reasons)
        counts[name] += 1
    for later in (timedelta(0), MINUTE, DAY):
        assert catalog.counts(NOW + later) == Counter(one.state(NOW + later).name for one in catalog.ledgers())
    assert catalog.counts(NOW) == counts
    assert len(counts) == 9
    catalog.close()


class Even(random.Random):
    """Dice that always show the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_next_try_on_another_day_has_a_date() -> None:
    """A time alone would mislead when it is not today's."""
    setback = Setback(
        event_id=UUID(int=1), revision=1, verb="export", attempt=3, reason="EIO", since=NOW, at=NOW, next_at=NOW + DAY
    )
    facts: dict[str, Any] = {"id": UUID(int=1), "revision": 1, "sealed_at": NOW}
    ledger = Ledger(Event(**facts), setbacks=(setback,))
    assert ledger.state(NOW) == ("waiting", ("export failed (attempt 3, next 2026-11-22 12:00): EIO",))


# -------------------------------------------------------------------------------------------------------------- leases


def test_lease_has_one_holder(catalog: Catalog) -> None:
    """Nobody gets what is held, not even its holder; after release or expiry the next fence is larger."""
    ref = add(catalog)
    first = catalog.lease(ref, owner="a", ttl=MINUTE, now=NOW)
    for owner in ("a", "b"):
        with pytest.raises(Busy, match="a is at it, for 60 s"):
            catalog.lease(ref, owner=owner, ttl=MINUTE, now=NOW)
    catalog.release(ref, fence=first)
    second = catalog.lease(ref, owner="b", ttl=MINUTE, now=NOW)
    third = catalog.lease(ref, owner="c", ttl=MINUTE, now=NOW + MINUTE)
    assert first < second < third
    catalog.release(ref, fence=second)
    with pytest.raises(Busy, match="c is at it"):
        catalog.lease(ref, owner="d", ttl=MINUTE, now=NOW + MINUTE)


def test_lease_is_renewed_by_its_holder_only(catalog: Catalog) -> None:
    """A renewal keeps others out; once somebody else was granted it, it is lost."""
    ref = add(catalog)
    with pytest.raises(Busy, match=r"lease was lost$"):
        catalog.renew(ref, fence=1, ttl=MINUTE, now=NOW)
    fence = catalog.lease(ref, owner="a", ttl=MINUTE, now=NOW)
    catalog.renew(ref, fence=fence, ttl=HOUR, now=NOW)
    with pytest.raises(Busy):
        catalog.lease(ref, owner="b", ttl=MINUTE, now=NOW + 2 * MINUTE)
    catalog.renew(ref, fence=fence, ttl=MINUTE, now=NOW + DAY)  # late, but nobody came
    catalog.lease(ref, owner="b", ttl=MINUTE, now=NOW + 2 * DAY)
    with pytest.raises(Busy, match="lease was lost to b"):
        catalog.renew(ref, fence=fence, ttl=MINUTE, now=NOW + 2 * DAY)


def test_paused_holder_wakes_late(catalog: Catalog) -> None:
    """What a worker notes after its lease went to another is refused whole; the other's note stands."""
    ref = add(catalog)
    event = catalog.get(ref)
    paused = catalog.lease(ref, owner="paused", ttl=MINUTE, now=NOW)
    awake = catalog.lease(ref, owner="awake", ttl=MINUTE, now=NOW + HOUR)
    with pytest.raises(Busy, match="lost to awake"):
        catalog.record_export(upload(ref, event, sha256="p" * 64), fence=paused)
    assert catalog.ledger(ref).export is None
    catalog.record_export(upload(ref, event, sha256="a" * 64), fence=awake)
    with pytest.raises(Busy):
        catalog.record_export(upload(ref, event, sha256="p" * 64), fence=paused)
    row = catalog.ledger(ref).export
    assert row is not None
    assert row.sha256 == "a" * 64


def test_expired_holder_that_nobody_followed_may_note(catalog: Catalog) -> None:
    """An upload that took longer than the lease counts, as long as nobody else was granted the event."""
    ref = add(catalog)
    fence = catalog.lease(ref, owner="slow", ttl=MINUTE, now=NOW - DAY)
    catalog.record_export(upload(ref, catalog.get(ref)), fence=fence)
    assert catalog.ledger(ref).export is not None


def test_eight_threads_one_holder(catalog: Catalog) -> None:
    """Of eight that reach for every event at the same moment, exactly one holds it; again and again."""
    refs = [add(catalog, n) for n in range(1, 11)]
    start = threading.Barrier(8)

    def grab(owner: int) -> list[Ref]:
        start.wait()
        return [ref for ref in refs if taken(catalog, ref, owner)]

    for turn in range(3):
        with ThreadPoolExecutor(8) as pool:
            held = Counter(ref for got in pool.map(grab, range(8)) for ref in got)
        assert held == Counter(refs)
        for ref in refs:
            catalog.release(ref, fence=turn + 1)


def taken(catalog: Catalog, ref: Ref, owner: int) -> bool:
    """Try to lease an event."""
    try:
        catalog.lease(ref, owner=str(owner), ttl=HOUR, now=NOW)
    except Busy:
        return False
    return True


def test_eight_processes_export_each_event_once(catalog: Catalog, catalog_url: str) -> None:
    """Eight processes that drain one backlog export each event once, and between them all."""
    refs = [add(catalog, n) for n in range(1, 21)]
    with ProcessPoolExecutor(8, mp_context=processes()) as pool:
        done = [ref for refs in pool.map(drain, [catalog_url] * 8) for ref in refs]
    assert sorted(done) == sorted(refs)
    assert catalog.due("export", now=NOW) == []


def drain(url: str) -> list[Ref]:
    """Export what is due until nothing is, in a process of its own."""
    catalog = Catalog(url)
    done = []
    while todo := catalog.due("export", now=NOW):
        for ref in random.sample(todo, len(todo)):
            try:
                fence = catalog.lease(ref, owner="process", ttl=HOUR, now=NOW)
            except Busy:
                continue
            if catalog.ledger(ref).export is None:
                catalog.record_export(upload(ref, catalog.get(ref)), fence=fence)
                done.append(ref)
            catalog.release(ref, fence=fence)
    catalog.close()
    return done


def test_eight_threads_register_one_batch(catalog: Catalog) -> None:
    """The same announcements from two systems' scans at once give each event once, and every file is known."""
    batch = [said(n) for n in range(1, 21)] + [said(n, image_count=13) for n in range(1, 6)]

    def announce(worker: int) -> list[tuple[Ref, bool]]:
        mixed = random.Random(worker).sample(batch, len(batch))
        return catalog.register("prince", [seen(one, file=f"{worker}-{one.digest}") for one in mixed], now=NOW)

    with ThreadPoolExecutor(8) as pool:
        new = [ref for one in pool.map(announce, range(8)) for ref, _ in one]
    assert len(new) == len(set(new)) == 25
    assert len(catalog.ledgers()) == 25
    assert len(catalog.known("prince")) == 8 * 25


def test_one_id_from_two_systems(catalog: Catalog) -> None:
    """Two instruments that announce the same id make a conflict, at once or one after the other, and lose nothing."""

    def announce(system: str) -> list[tuple[Ref, bool]]:
        return catalog.register(system, [seen(said(n, system=system)) for n in range(1, 11)], now=NOW)

    with ThreadPoolExecutor(2) as pool:
        new = [one for some in pool.map(announce, ("prince", "aretha")) for one in some]
    assert Counter(ref.revision for ref, _ in new) == {1: 10, 2: 10}
    assert Counter(conflict for _, conflict in new) == {False: 10, True: 10}


# ------------------------------------------------------------------------------------------------------------- exports


def test_new_export_forgets_old_evidence(catalog: Catalog) -> None:
    """After another upload neither evidence, damage nor failures of the earlier one count."""
    ref = add(catalog)
    export(catalog, ref)
    prove(catalog, ref, kind="read-back")
    catalog.set_back(ref, "export", reason="no", now=NOW)
    catalog.set_back(ref, "verify", reason="no", now=NOW)
    catalog.set_back(ref, "purge", reason="no", now=NOW)
    export(catalog, ref, sha256="t" * 64, uploaded_at=NOW + HOUR)
    ledger = catalog.ledger(ref)
    assert ledger.export is not None
    assert ledger.export.sha256 == "t" * 64
    assert (ledger.export.evidence, ledger.export.evidence_at, ledger.export.read_back_at) == (None, None, None)
    assert [one.verb for one in ledger.setbacks] == ["purge"]
    damage(catalog, ref)
    export(catalog, ref)
    assert catalog.due("verify", now=NOW) == [ref]


def test_one_key_holds_one_export(catalog: Catalog) -> None:
    """Another event's bytes at the same key are a conflict, and nothing of it is noted."""
    one, two = add(catalog, 1), add(catalog, 2)
    row = export(catalog, one)
    with pytest.raises(Conflict):
        export(catalog, two, key=row.key)
    assert catalog.ledger(two).export is None
    assert catalog.ledger(two).held(NOW)


def test_evidence_dates_from_the_first_time(catalog: Catalog) -> None:
    """A later look neither makes the evidence younger nor weaker; a read-back counts for the object that was read."""
    ref = add(catalog)
    export(catalog, ref)
    catalog.set_back(ref, "verify", reason="503", now=NOW)
    facts = []
    looks = [("etag", "a"), ("crc64nvme", "b"), ("read-back", "c"), ("etag", "c"), ("etag", "d"), ("read-back", "d")]
    for hour, (kind, etag) in enumerate(looks):
        prove(catalog, ref, at=NOW + hour * HOUR, kind=kind, etag=etag)
        row = catalog.ledger(ref).export
        assert row is not None
        assert (row.evidence_at, row.seen_etag) == (NOW, etag)
        facts.append((row.evidence, row.read_back_at and (row.read_back_at - NOW) // HOUR))
    looked, read = [("etag", None), ("crc64nvme", None)], [("read-back", 2), ("read-back", 2)]
    assert facts == [*looked, *read, ("etag", None), ("read-back", 5)]
    assert catalog.ledger(ref).setbacks == ()


def test_damage_takes_the_evidence(catalog: Catalog) -> None:
    """What is damaged is proven no more; what is then seen to be good again is young evidence."""
    ref = add(catalog)
    export(catalog, ref)
    prove(catalog, ref, kind="read-back")
    damage(catalog, ref)
    row = catalog.ledger(ref).export
    assert row is not None
    assert (row.evidence, row.seen_etag, row.read_back_at, row.damage) == (None, None, None, "lost: no such object")
    prove(catalog, ref, at=NOW + DAY)
    row = catalog.ledger(ref).export
    assert row is not None
    assert (row.evidence_at, row.damage, row.damaged_at) == (NOW + DAY, None, None)


def test_findings_about_an_earlier_upload_are_refused(catalog: Catalog) -> None:
    """Who verified an upload while another took its place learns so, and nothing is noted."""
    ref = add(catalog)
    with pytest.raises(Busy, match="exported again meanwhile"):
        catalog.record_damage(ref, damage="lost", kind=Damage.LOST, at=NOW, sha256="s" * 64, uploaded_at=NOW)
    old = export(catalog, ref)
    export(catalog, ref, uploaded_at=NOW + HOUR)
    upload_of = {"sha256": old.sha256, "uploaded_at": old.uploaded_at}
    with pytest.raises(Busy, match="exported again meanwhile"):
        catalog.record_evidence(ref, kind="etag", at=NOW, seen_etag="e", read_back=False, **upload_of)  # type: ignore[arg-type]
    with pytest.raises(Busy, match="exported again meanwhile"):
        catalog.record_damage(ref, damage="lost", kind=Damage.LOST, at=NOW, **upload_of)  # type: ignore[arg-type]
    row = catalog.ledger(ref).export
    assert row is not None
    assert (row.evidence, row.damage) == (None, None)


def test_changed_images_begin_one_revision(catalog: Catalog) -> None:
    """Other images under the same announcement are a revision with its own key, which waits like any other; once."""
    ref = add(catalog)
    export(catalog, ref)
    damage(catalog, ref)
    assert catalog.due("export", now=NOW) == [ref]
    heir = catalog.revise(ref, digest="c" * 64, now=NOW + DAY)
    assert heir == Ref(ref.id, 2)
    assert catalog.revise(ref, digest="c" * 64, now=NOW + DAY) == heir
    assert catalog.revise(heir, digest=said().digest, now=NOW + DAY) == ref
    old, new = catalog.get(ref), catalog.get(heir)
    assert (new.key, new.file, new.path, new.details) == (
        event_key(said(), revision=2),
        old.file,
        old.path,
        old.details,
    )
    assert (new.sealed_at, new.fingerprint, new.waiting_since) == (None, None, NOW + DAY)
    catalog.seal([heir], now=NOW + DAY)
    assert catalog.due("export", now=NOW + DAY) == [heir]  # the images of the first are no more
    assert catalog.register("prince", [seen(said())], now=NOW + DAY) == []
    assert catalog.register("prince", [seen(said(image_count=9))], now=NOW + DAY) == [(Ref(ref.id, 3), True)]


def test_other_key_where_strangers_lie(catalog: Catalog) -> None:
    """An event whose key is taken in the bucket gets another that no event has, also later."""
    ref = add(catalog)
    other = catalog.rekey(ref)
    assert other == catalog.get(ref).key == event_key(said(), revision=2)
    third = catalog.rekey(ref)
    assert third == event_key(said(), revision=3)
    catalog.register("prince", [seen(said(image_count=n)) for n in (13, 14)], now=NOW)
    keys = [one.event.key for one in catalog.revisions(ref.id)]
    assert len(set(keys)) == 3
    assert keys[2] == event_key(said(image_count=14), revision=3, whole=True)


def test_setbacks_grow_and_are_jittered(catalog_url: str) -> None:
    """30 s, 1, 2, 5, 10 min, 1 h, then every 6 h, give or take a tenth; retries before that are the same attempt."""
    catalog = Catalog(catalog_url, dice=random.Random(1))
    catalog.upgrade()
    ref, now, again = add(catalog), NOW, random.Random(1)
    delays = [MINUTE / 2, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, 6 * HOUR, 6 * HOUR]
    for attempt, delay in enumerate(delays, 1):
        for retry in range(3):
            row = catalog.set_back(ref, "export", reason=f"no {retry}", now=now)
            assert (row.attempt, row.since, row.at, row.reason) == (attempt, NOW, now, f"no {retry}")
            assert 0.9 * delay <= row.next_at - now <= 1.1 * delay
            assert row.next_at == now + delay * again.uniform(0.9, 1.1)
            now += timedelta(seconds=5)
        now = row.next_at
    assert catalog.set_back(ref, "verify", reason="no", now=now).attempt == 1
    catalog.close()


def waiting(catalog: Catalog, count: int, *, first: int = 1, **cause: Any) -> list[Ref]:
    """Sealed events whose export failed just now."""
    refs = [add(catalog, n) for n in range(first, first + count)]
    catalog.seal(refs, now=NOW)
    for ref in refs:
        catalog.set_back(ref, "export", reason="no answer", now=NOW, **cause)
    return refs


@pytest.mark.parametrize("endpoint", [None, "http://one"])
def test_what_waited_for_an_endpoint_is_due_when_it_answers(catalog: Catalog, endpoint: str | None) -> None:
    """The first success behind it makes all of it due; what waits for another one, or for itself, goes on waiting."""
    first, *others = waiting(catalog, 4, cause="endpoint", endpoint=endpoint)
    waiting(catalog, 2, first=10, cause="endpoint", endpoint="http://two")
    waiting(catalog, 2, first=20, cause="event", endpoint=endpoint)
    later = NOW + timedelta(seconds=5)
    assert catalog.due("export", now=later) == []
    export(catalog, first, endpoint=endpoint, uploaded_at=later)
    assert set(catalog.due("export", now=later)) == set(others)
    assert {catalog.ledger(ref).setback("export").attempt for ref in others} == {1}  # type: ignore[union-attr]


def test_evidence_shows_that_an_endpoint_answers(catalog: Catalog) -> None:
    """A verification is an answer, too; and it makes verifications due."""
    seen, unseen, waits = (add(catalog, n) for n in (1, 2, 3))
    for ref in (seen, unseen):
        export(catalog, ref, endpoint="http://one")
    catalog.seal([waits], now=NOW)
    later = NOW + timedelta(seconds=5)
    catalog.set_back(waits, "export", reason="no", now=NOW, cause="endpoint", endpoint="http://one")
    catalog.set_back(unseen, "verify", reason="no", now=NOW, cause="endpoint", endpoint="http://one")
    prove(catalog, seen, endpoint="http://one", at=later)
    assert catalog.due("export", now=later) == [waits]
    assert catalog.due("verify", now=later) == [unseen]


def test_an_endpoint_that_answers_others_is_not_the_cause(catalog: Catalog) -> None:
    """One large event that fails again and again is not tried again with each success of the others."""
    (ref,) = waiting(catalog, 1, cause="endpoint", endpoint="e", began=NOW)
    export(catalog, add(catalog, 2), endpoint="e", uploaded_at=NOW + 2 * MINUTE)
    began, failed = NOW + MINUTE, NOW + 3 * MINUTE
    row = catalog.set_back(ref, "export", reason="no", now=failed, cause="endpoint", endpoint="e", began=began)
    assert (row.cause, row.endpoint, row.attempt) == ("event", None, 2)
    export(catalog, add(catalog, 3), endpoint="e", uploaded_at=failed + timedelta(seconds=1))
    assert catalog.due("export", now=failed + timedelta(seconds=2)) == []
    row = catalog.set_back(ref, "export", reason="no", now=NOW + DAY, cause="endpoint", endpoint="e", began=NOW + DAY)
    assert (row.cause, row.endpoint) == ("endpoint", "e")


def test_sample_is_within_the_day(catalog: Catalog) -> None:
    """The longest unread come first, as many as the day's budget of bytes has left; none twice a day."""
    refs = [add(catalog, n) for n in range(1, 6)]
    for n, ref in enumerate(refs):
        export(catalog, ref, uploaded_at=NOW + n * MINUTE)
    assert catalog.sample(budget=1000, now=NOW) == []
    for ref in refs:
        prove(catalog, ref)
    assert catalog.sample(budget=0, now=NOW) == []
    assert catalog.sample(budget=299, now=NOW) == refs[:2]
    assert catalog.sample(budget=1, now=NOW) == refs[:1]
    prove(catalog, refs[0], kind="read-back", at=NOW)
    assert catalog.sample(budget=1, now=NOW) == []
    assert catalog.sample(budget=300, now=NOW + HOUR) == refs[1:3]
    assert catalog.sample(budget=1000, now=NOW + HOUR) == refs[1:]
    assert catalog.sample(budget=10_000, now=NOW + 2 * DAY) == [*refs[1:], refs[0]]
    damage(catalog, refs[1])
    assert catalog.sample(budget=200, now=NOW + 2 * DAY) == refs[2:4]


# -------------------------------------------------------------------------------------------------------------- purges


def ready_to_go(catalog: Catalog, number: int = 1, **other: Any) -> Ref:
    """Record an event whose images might go."""
    ref = add(catalog, number, **other)
    export(catalog, ref)
    prove(catalog, ref)
    return ref


def test_candidates_are_what_lies_there(catalog: Catalog) -> None:
    """Raw images until they are going or gone; staging copies while there are any."""
    one, two = ready_to_go(catalog, 1), ready_to_go(catalog, 2)
    ready_to_go(catalog, 3, system="aretha")

    def refs(place: str) -> list[Ref]:
        return [ledger.ref for ledger in catalog.candidates("prince", place)]

    assert refs("raw") == [one, two]
    assert refs("staging") == []
    catalog.stage(one, now=NOW)
    assert refs("staging") == [one]
    for place in ("raw", "staging"):
        catalog.intend(intent(one, place))
    assert refs("raw") == [two]
    assert refs("staging") == []
    for place in ("raw", "staging"):
        catalog.record_restored(one, place, at=NOW, reason="other bytes", cause=Restored.UNPROVEN)
    assert refs("raw") == [one, two]
    assert refs("staging") == [one]
    for place in ("raw", "staging"):
        catalog.intend(intent(one, place))
        catalog.record_trashed(one, place, at=NOW)
        catalog.record_gone(one, place, at=NOW)
    assert refs("raw") == [two]
    assert refs("staging") == []
    catalog.stage(one, now=NOW + DAY)
    assert refs("staging") == [one]


def test_purge_runs_its_course(catalog: Catalog) -> None:
    """Intended, aside, gone: each is noted once, shown while it goes, and never forgotten."""
    ref = ready_to_go(catalog)
    assert catalog.tally("prince") == 1
    row = catalog.intend(intent(ref))
    assert row.attempt == 1
    assert [(ledger.ref, purge.trash) for ledger, purge in catalog.going()] == [(ref, f"trash/{ref}")]
    assert not catalog.ledger(ref).raw_purged
    catalog.record_trashed(ref, "raw", at=NOW + MINUTE)
    catalog.record_trashed(ref, "raw", at=NOW + HOUR)
    assert catalog.ledger(ref).raw_purged
    assert catalog.tally("prince") == 0
    assert catalog.going("staging") == []
    catalog.record_gone(ref, "raw", at=NOW + DAY)
    assert catalog.going() == []
    (row,) = catalog.ledger(ref).purges
    assert (row.proof, row.trashed_at, row.gone_at) == ({"etag": "e-1"}, NOW + MINUTE, NOW + DAY)
    with pytest.raises(Refused, match="the raw images went at 2026-11-22 12:00"):
        catalog.intend(intent(ref))


def test_purge_taken_back_is_numbered(catalog: Catalog) -> None:
    """What came back may be purged again, as another attempt; the first stays on record with its reason."""
    ref = ready_to_go(catalog)
    catalog.intend(intent(ref))
    catalog.record_trashed(ref, "raw", at=NOW)
    catalog.record_restored(ref, "raw", at=NOW, reason="other bytes in the bucket", cause=Restored.UNPROVEN)
    assert catalog.tally("prince") == 1
    assert catalog.going() == []
    assert catalog.intend(intent(ref)).attempt == 2
    assert [one.reason for one in catalog.ledger(ref).purges] == ["other bytes in the bucket", None]


def test_intent_under_way_keeps_its_trash(catalog: Catalog) -> None:
    """A second intent learns where the first may have moved the images: a crash in between loses nothing."""
    ref = ready_to_go(catalog)
    catalog.intend(intent(ref, trash="trash/first"))
    assert catalog.intend(intent(ref, trash="trash/second")).trash == "trash/first"
    assert len(catalog.ledger(ref).purges) == 1


@pytest.mark.parametrize("place", ["raw", "staging"])
def test_no_intent_without_evidence(catalog: Catalog, place: str) -> None:
    """Whatever the verdict was, nothing goes whose export is missing, not verified or damaged by now."""
    ref = add(catalog)
    for spoil in (lambda: None, lambda: export(catalog, ref), lambda: damage(catalog, ref)):
        spoil()
        with pytest.raises(Refused, match="no evidence"):
            catalog.intend(intent(ref, place))
    assert catalog.going() == []


def test_nothing_to_take_back(catalog: Catalog) -> None:
    """Notes about a purge that was never intended are refused."""
    ref = ready_to_go(catalog)
    notes: list[Callable[[], None]] = [
        lambda: catalog.record_trashed(ref, "raw", at=NOW),
        lambda: catalog.record_gone(ref, "raw", at=NOW),
        lambda: catalog.record_restored(ref, "raw", at=NOW, reason="no", cause=Restored.UNPROVEN),
    ]
    for note in notes:
        with pytest.raises(NotFound, match="nothing is being purged from raw"):
            note()


def test_siblings_share_the_images(catalog: Catalog) -> None:
    """Others at the same path, inside or above it are found; lookalikes and other systems are not."""
    paths = ["a/b", "a/b", "a/b/c/d", "a", "a/bc", "a/b-1", "a/B", "b", "a/b/ü", "z"]
    refs = [add(catalog, n, path=path) for n, path in enumerate(paths, 1)]
    add(catalog, 99, path="a/b", system="aretha")

    def near(number: int) -> set[int]:
        event = catalog.get(refs[number - 1])
        return {refs.index(ledger.ref) + 1 for ledger in catalog.siblings(event)}

    assert near(1) == {2, 3, 4, 9}
    assert near(3) == {1, 2, 4}
    assert near(4) == {1, 2, 3, 5, 6, 7, 9}
    assert near(8) == near(10) == set()
    whole = add(catalog, 100, path=".")
    assert len(catalog.siblings(catalog.get(whole))) == len(paths)
    assert whole in {ledger.ref for ledger in catalog.siblings(catalog.get(refs[7]))}


def test_which_have_siblings(catalog: Catalog) -> None:
    """Asked of many events at once, it is the same as asked of each."""
    paths = ["a/b", "a/b", "a/b/c/d", "x", "x/bc", "y-1", "y", "y/bc/d", "z", "Z", "v/w/x", "v"]
    refs = [add(catalog, n, path=path) for n, path in enumerate(paths, 1)]
    add(catalog, 99, path="z", system="aretha")
    events = [catalog.get(ref) for ref in refs]
    found = catalog.with_siblings(events)
    assert found == {ref for ref, event in zip(refs, events, strict=True) if catalog.siblings(event)}
    assert 0 < len(found) < len(refs)
    refs.append(add(catalog, 100, path="."))
    assert catalog.with_siblings([catalog.get(ref) for ref in refs]) == set(refs)


def test_revisions_are_siblings(catalog: Catalog) -> None:
    """Two revisions of one event share their images."""
    ref = add(catalog)
    heir = catalog.revise(ref, digest="c" * 64, now=NOW)
    assert [ledger.ref for ledger in catalog.siblings(catalog.get(ref))] == [heir]


# -------------------------------------------------------------------------------------------------------- the database


def test_time_is_the_databases(catalog: Catalog, catalog_url: str) -> None:
    """The time is aware and UTC, and close to ours here; a given clock goes before."""
    assert catalog.now().tzinfo is UTC
    assert abs(catalog.now() - datetime.now(UTC)) < MINUTE
    set_clock = Catalog(catalog_url, clock=lambda: NOW)
    assert set_clock.now() == NOW
    set_clock.close()


def test_sqlite_is_set_up_for_keeps(tmp_path: Path) -> None:
    """Commits survive a power cut, readers do not wait for writers, and references are watched."""
    catalog = Catalog(f"sqlite:///{tmp_path}/c.db")
    catalog.upgrade()
    with catalog._reading() as session:
        pragmas = {name: session.scalar(sa.text(f"PRAGMA {name}")) for name in PRAGMAS}
    assert pragmas == PRAGMAS
    catalog.close()


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_reader_sees_one_moment(catalog: Catalog) -> None:
    """What a reader asks in several queries is from one moment, whatever is written in between."""
    ref = add(catalog)
    with catalog._reading() as session:
        count = sa.select(sa.func.count()).select_from(Export)
        assert session.scalar(count) == 0
        export(catalog, ref)
        assert session.scalar(count) == 0


def test_locked_sqlite_is_unavailable(tmp_path: Path) -> None:
    """A lock that somebody keeps is waited for, and then told as something that waiting may help."""
    catalog = Catalog(f"sqlite:///{tmp_path}/c.db?timeout=0.2")
    catalog.upgrade()
    holder = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert catalog.known("prince") == {}
    with pytest.raises(Unavailable, match="database is locked"):
        add(catalog)
    holder.execute("ROLLBACK")
    holder.close()
    add(catalog)
    catalog.close()


def test_memory_is_shared_by_threads() -> None:
    """A catalogue in memory is one, however many threads use it."""
    catalog = Catalog("sqlite://")
    catalog.upgrade()
    with ThreadPoolExecutor(4) as pool:
        refs = list(pool.map(lambda n: add(catalog, n), range(1, 21)))
    assert len(catalog.ledgers(refs=refs)) == 20
    catalog.close()


def test_file_that_is_no_database(tmp_path: Path) -> None:
    """Another file in the database's place is told as such, without its path."""
    (tmp_path / "c.db").write_bytes(b"hello, this is not a database" * 100)
    catalog = Catalog(f"sqlite:///{tmp_path}/c.db")
    with pytest.raises(Misconfigured, match="not an SQLite database") as caught:
        catalog.known("prince")
    assert str(tmp_path) not in str(caught.value)
    catalog.close()


def test_home_that_cannot_be(tmp_path: Path) -> None:
    """A directory that cannot be made is a wrong setting."""
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match=r"cannot be created: .* PLATEWAY_HOME"):
        Catalog(f"sqlite:///{tmp_path}/file/deep/c.db").upgrade()


def test_server_that_restarts(postgres_url: str, postgres_server: str) -> None:
    """Connections that the server has cut are replaced without anybody noticing."""
    catalog = Catalog(postgres_url)
    catalog.upgrade()
    ref = add(catalog)
    admin = sa.create_engine(make_url(postgres_server).set(drivername="postgresql+psycopg"))
    with admin.connect() as connection:
        connection.execute(
            sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
            {"name": make_url(postgres_url).database},
        )
    admin.dispose()
    assert catalog.get(ref).revision == 1
    catalog.close()


def test_server_that_goes_in_the_middle(postgres_url: str) -> None:
    """A connection cut inside a transaction is told as unavailable, and nothing of it was written."""
    catalog = Catalog(postgres_url)
    catalog.upgrade()
    add(catalog)
    with pytest.raises(Unavailable, match="does not answer"), catalog._writing() as session:
        session.execute(sa.text("DELETE FROM event_file"))
        with catalog._reading() as other:
            pid = session.scalar(sa.select(sa.func.pg_backend_pid()))
            other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        session.execute(sa.text("SELECT 1"))
    assert len(catalog.known("prince")) == 1
    catalog.close()


def test_a_server_that_is_away_is_waited_for(postgres_url: str, tmp_path: Path) -> None:
    """With patience a call waits until the server answers; without, it fails with one line that says what is away."""
    sockets = str(make_url(postgres_url).query["host"])
    away = tmp_path / "sockets"
    url = make_url(postgres_url).update_query_dict({"host": str(away)}).render_as_string(hide_password=False)
    hasty, patient = Catalog(url), Catalog(url, patience=60)
    with pytest.raises(CatalogUnavailable, match=r"^the catalogue does not answer: [^\n]*$"):
        hasty.now()
    back = threading.Timer(2.0, away.symlink_to, [sockets])
    back.start()
    began = time.monotonic()
    patient.upgrade()
    assert 1.5 < time.monotonic() - began < 30
    assert patient.known("prince") == {}
    back.join()
    for catalog in (hasty, patient):
        catalog.close()


def test_a_stopped_writer_keeps_no_locks(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that sleeps inside a transaction loses it, and with it the rows that it locked; others go on."""
    monkeypatch.setattr("plateway.catalog.database.IDLE", "300ms")
    catalog = Catalog(postgres_url)
    catalog.upgrade()
    add(catalog)
    catalog.seal([one.ref for one in catalog.ledgers()], now=NOW)
    take = partial(catalog.claim_exports, ["prince"], owner="other", ttl=MINUTE, now=NOW + MINUTE, limit=1)
    with pytest.raises(CatalogUnavailable, match="does not answer"), catalog._writing() as session:
        session.execute(sa.select(Event).with_for_update())
        assert take() == []
        until = time.monotonic() + 10
        while not take() and time.monotonic() < until:
            time.sleep(0.05)
        assert time.monotonic() < until
        session.execute(sa.text("SELECT 1"))
    catalog.close()


def test_connections_have_limits(postgres_url: str) -> None:
    """No statement runs for ever; a URL may have another limit."""
    for url, limit in ((postgres_url, "10min"), (f"{postgres_url}&options=-c statement_timeout=7s", "7s")):
        catalog = Catalog(url)
        with catalog._reading() as session:
            assert session.scalar(sa.text("SHOW statement_timeout")) == limit
        catalog.close()


URLS = {
    "mysql://me:{}@host/db": Misconfigured,
    "oracle://me:{}@host/db": Misconfigured,
    "postgresql://me:{}@[::1/db": Misconfigured,
    "postgresql://me:{}@host:port/db": Misconfigured,
    "no url with {}": Misconfigured,
    "postgresql://me:{}@127.0.0.1:1/db": Unavailable,
    "postgres+psycopg://me:{}@127.0.0.1:1/db": Misconfigured,
}


@pytest.mark.parametrize("url", URLS)
def test_password_is_in_no_message(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Wrong URLs and dead servers are told without the URL's password, in message, traceback and log."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(URLS[url]) as caught:
        Catalog(url.format(CANARY)).known("prince")
    told = io.StringIO()
    traceback.print_exception(caught.value, file=told)
    assert CANARY not in told.getvalue() + repr(caught.value) + caplog.text


def test_password_is_in_no_message_of_a_server(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server that refuses shows what it refuses, never the password."""
    caplog.set_level(logging.DEBUG)
    url = make_url(postgres_url).set(password=CANARY)
    for wrong in (url.set(database="nowhere"), url.set(username="nobody"), url):
        catalog = Catalog(wrong.render_as_string(hide_password=False))
        with pytest.raises(PlatewayError) as caught:
            catalog.known("prince")
        assert isinstance(caught.value, Misconfigured | Denied)
        told = io.StringIO()
        traceback.print_exception(caught.value, file=told)
        assert CANARY not in told.getvalue() + caplog.text
        catalog.close()


def test_values_are_in_no_message(catalog: Catalog) -> None:
    """What is recorded does not leak through a database's complaint."""
    one, two = add(catalog, 1), add(catalog, 2)
    row = export(catalog, one)
    with pytest.raises(Conflict) as caught:
        export(catalog, two, key=row.key, etag=CANARY)
    told = io.StringIO()
    traceback.print_exception(caught.value, file=told)
    assert CANARY not in told.getvalue()


@pytest.mark.parametrize("kind", sorted(NETWORK))
def test_network_file_system_is_named(kind: str, tmp_path: Path) -> None:
    """What lies on another machine is recognised by the nearest mount above it, there or not yet."""
    mounts = {"/": "ext4", str(tmp_path): kind, str(tmp_path / "local"): "xfs"}
    assert network_file_system(tmp_path / "not" / "yet" / "c.db", mounts=mounts) == kind
    assert network_file_system(tmp_path / "local" / "c.db", mounts=mounts) is None
    assert network_file_system(Path("/c.db"), mounts=mounts) is None
    assert network_file_system(tmp_path / "c.db", mounts={}) is None


def test_no_sqlite_on_a_network(tmp_path: Path) -> None:
    """SQLite on a network file system is refused before anything is written, with what to do instead."""
    with pytest.raises(Misconfigured, match=r"network file system \(nfs4\).*PLATEWAY_DATABASE_URL") as caught:
        Catalog(f"sqlite:///{tmp_path}/c.db", mounts={"/": "nfs4"})
    assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    Catalog("sqlite://", mounts={"/": "nfs4"}).close()


def test_busy_is_worth_waiting_for() -> None:
    """Whoever meets somebody else at work may try again."""
    assert issubclass(Busy, Transient)


# ------------------------------------------------------------------------------------------------------------ short ids


def test_the_first_digits_of_an_id_are_enough(catalog: Catalog) -> None:
    """With or without a revision; several that begin alike are listed, and only events that one may see count."""
    one, two, far = (UUID(hex=text.ljust(32, "7")) for text in ("c1266d1c", "c1267a", "d0"))
    for number, id_ in enumerate((one, two, far), start=1):
        add(catalog, number, id=id_, path=f"images/{number}")
    assert catalog.resolve("c1266d1c") == catalog.resolve(str(one)) == catalog.resolve(one.hex) == Ref(one, 1)
    assert catalog.resolve("C1266") == Ref(one, 1)
    assert catalog.resolve(f"{one}-r2") == Ref(one, 2)
    assert catalog.resolve("d077-r3") == Ref(far, 3)
    with pytest.raises(NotFound, match=f"c126: several events begin so: {one}, {two}$"):
        catalog.resolve("c126")
    for text in ("c12", "zzzz", "", "c1266d1c-r0", "c1266d1c'", "%"):
        with pytest.raises(NotFound, match="is not the id of an event"):
            catalog.resolve(text)
    with pytest.raises(NotFound, match="no such event"):
        catalog.resolve("abcd")
    key = catalog.get(Ref(one, 1)).key
    assert catalog.resolve("c1266", prefix=key) == Ref(one, 1)
    with pytest.raises(NotFound, match="no such event"):
        catalog.resolve("c1266", prefix="videos/")


def test_a_database_without_an_encoding_is_used(postgres_server: str) -> None:
    """SQL_ASCII is what `createdb` makes where no language is set; names of plates are text there all the same."""
    name = "plateway_ascii"
    engine = administration(postgres_server)
    with engine.connect() as connection:
        create = f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        connection.execute(sa.text(create))
        url = make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
        with closing(Catalog(url)) as catalog:
            catalog.upgrade()
            assert catalog.current() == catalog.head()
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()
