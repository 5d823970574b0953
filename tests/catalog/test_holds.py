"""A hold and a removal that meet: either the removal is refused, or whoever sets the hold is told of it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from plateway.catalog import Catalog
from plateway.errors import Refused
from plateway.events import Ref
from plateway.records import LegalHold
from tests.factories import NOW, add, export, intent, prove

PAUSE = 0.3  # seconds in which nothing must happen


@pytest.fixture
def trashed(catalog: Catalog) -> Ref:
    """An event whose raw images are aside."""
    ref = add(catalog)
    export(catalog, ref)
    prove(catalog, ref)
    catalog.intend(intent(ref))
    catalog.record_trashed(ref, "raw", at=NOW)
    return ref


def hold(ref: Ref, **changes: Any) -> LegalHold:
    return LegalHold(**{"id": uuid4(), "event_id": ref.id, "reason": "audit", "by": "ana", "at": NOW, **changes})


def test_a_removal_after_the_hold_is_refused_and_one_before_is_told(catalog: Catalog, trashed: Ref) -> None:
    """In this order on both databases; a hold that is over or released refuses nothing."""
    over = hold(trashed, until=NOW)
    released = hold(trashed)
    for one in (over, released):
        assert catalog.add_hold(one) == []
    catalog.release_hold(released.id, by="ben", reason="done", at=NOW)
    standing = hold(trashed, until=NOW + timedelta(seconds=1))
    assert catalog.add_hold(standing) == []
    with pytest.raises(Refused, match="held by ana"):
        catalog.record_removing(trashed, "raw", at=NOW)
    catalog.record_removing(trashed, "raw", at=NOW + timedelta(seconds=1))
    assert catalog.add_hold(hold(trashed)) == [trashed]


@pytest.mark.parametrize("first", ["removal", "hold"])
def test_none_of_them_passes_the_other_unseen(catalog: Catalog, trashed: Ref, first: str) -> None:
    """While one has not committed, the other waits, and sees it then."""
    before, inside, go = catalog._engine, threading.Event(), threading.Event()

    def linger(connection: Any) -> None:
        if threading.current_thread().name == first:
            inside.set()
            go.wait(30)

    found: dict[str, Any] = {}

    def remove() -> None:
        try:
            catalog.record_removing(trashed, "raw", at=NOW)
            found["removal"] = "begun"
        except Refused:
            found["removal"] = "refused"

    def set_hold() -> None:
        found["hold"] = catalog.add_hold(hold(trashed))

    acts = {"removal": remove, "hold": set_hold}
    second = next(name for name in acts if name != first)
    threads = {name: threading.Thread(target=act, name=name) for name, act in acts.items()}
    sa.event.listen(before, "commit", linger)
    try:
        threads[first].start()
        assert inside.wait(30)
        threads[second].start()
        threads[second].join(PAUSE)
        assert threads[second].is_alive()
        go.set()
        for thread in threads.values():
            thread.join(30)
    finally:
        go.set()
        sa.event.remove(before, "commit", linger)
    assert found == (
        {"removal": "begun", "hold": [trashed]} if first == "removal" else {"removal": "refused", "hold": []}
    )
