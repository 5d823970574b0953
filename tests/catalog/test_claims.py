"""Claims: any number of workers share a backlog, no event goes to two, and no system waits for another's."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

from plateway.catalog import Catalog, Claim
from plateway.events import Ref
from tests.factories import NOW, add, export

TTL = timedelta(minutes=10)


def claim(catalog: Catalog, *, limit: int = 4, owner: str = "a", **sizes: int) -> list[Claim]:
    """Claim events as a worker does."""
    return catalog.claim_exports(catalog.systems(), owner=owner, ttl=TTL, now=NOW, limit=limit, **sizes)


def refs(claims: list[Claim]) -> list[Ref]:
    """Return which events were claimed."""
    return [Ref(one.event.id, one.event.revision) for one in claims]


def test_workers_that_claim_at_once_share(catalog_url: str, catalog: Catalog) -> None:
    """Four workers, each with connections of its own, claim until nothing is due: each event once."""
    events = [add(catalog, number) for number in range(1, 61)]

    def work(owner: int) -> list[Ref]:
        found: list[Ref] = []
        url = f"{catalog_url}?timeout=60" if catalog_url.startswith("sqlite") else catalog_url
        with closing(Catalog(url)) as mine:
            while claims := claim(mine, owner=str(owner)):
                found += refs(claims)
        return found

    with ThreadPoolExecutor(4) as workers:
        shares = list(workers.map(work, range(4)))
    assert Counter(ref for share in shares for ref in share) == Counter(events)


def test_systems_have_equal_shares(catalog: Catalog) -> None:
    """A system with a long backlog leaves as much to one whose events came last; what one does not use others do."""
    for number in range(1, 11):
        add(catalog, number, system="prince")
    late = [add(catalog, number, system="aretha") for number in (11, 12, 13)]
    first = claim(catalog)
    assert Counter(one.event.system for one in first) == {"prince": 2, "aretha": 2}
    second = claim(catalog)
    assert Counter(one.event.system for one in second) == {"prince": 3, "aretha": 1}
    assert set(late) < set(refs(first + second))
    assert len(claim(catalog, limit=100)) == 5
    assert claim(catalog) == []


def test_large_events_are_claimed_apart(catalog: Catalog) -> None:
    """Small ones, and those of unknown size, come without the large ones; a budget of bytes ends a batch."""
    sizes = {1: 10, 2: 5000, 3: None, 4: 20, 5: 30}
    for number, size in sizes.items():
        ref = add(catalog, number, sealed=False)
        catalog.look(ref, fingerprint="f", present=12, size=size, now=NOW)
        catalog.seal([ref], now=NOW)
    assert len(claim(catalog, below=1000, budget=10)) == 1
    small = claim(catalog, below=1000)
    assert {one.event.image_bytes for one in small} == {None, 20, 30}
    assert [one.event.image_bytes for one in claim(catalog, above=1000)] == [5000]


def test_what_is_released_is_due_again(catalog: Catalog) -> None:
    """One by one where a batch ended early, or all of an owner that has crashed; a lost lease stays where it is."""
    both = [add(catalog, number) for number in (1, 2)]
    mine = claim(catalog, owner="worker:1 run 7")
    assert catalog.lease_owners(now=NOW) == ["worker:1 run 7"]
    catalog.release_claims(mine[:1])
    assert refs(claim(catalog, owner="b")) == refs(mine[:1])
    catalog.release_claims(mine)  # the first is another's by now
    assert catalog.lease_owners(now=NOW) == ["b"]
    claim(catalog, owner="worker:1 run 7")
    assert catalog.release_owner("worker:1 run 7") == 1
    assert catalog.release_owner("worker:1 run 7") == 0
    assert refs(claim(catalog)) == [one for one in both if one not in refs(mine[:1])]


def test_what_is_not_due_is_not_claimed(catalog: Catalog) -> None:
    """Neither what is exported, nor what waits for its next try; the backlog counts the same."""
    exported, failed, due = (add(catalog, number) for number in (1, 2, 3))
    export(catalog, exported)
    catalog.set_back(failed, "export", reason="no", now=NOW)
    assert catalog.backlog(now=NOW, limit=10) == 1
    assert refs(claim(catalog)) == [due]
    assert catalog.backlog(now=NOW, limit=10) == 0
