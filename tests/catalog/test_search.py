"""What people look for is found, on both databases: compared with a plain look at every ledger."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import make_url, text

from plateway.catalog import Catalog
from plateway.catalog.summaries import archive_id
from plateway.errors import Rejected
from plateway.events import Ref
from plateway.ledger import (
    STATES,
    ArchiveRow,
    Cursor,
    DailyRow,
    Ledger,
    Overview,
    SystemOverview,
    TapeMember,
)
from plateway.records import ArchiveLocation
from tests.databases import administration
from tests.factories import (
    NOW,
    add,
    export,
    rejected,
    said,
    seen,
)
from tests.filling import END, PERIOD, fill

EVENTS = 240
DAY = timedelta(days=1)
MIDDLE = END - PERIOD / 2


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """A catalogue with events in every state, on SQLite and on PostgreSQL in turn; nobody changes it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('search')}/catalogue.db"
    if request.param == "postgresql":
        server: str = request.getfixturevalue("postgres_server")
        name = f"search_{uuid4().hex[:8]}"
        engine = administration(server)
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        url = make_url(server).set(database=name).render_as_string(hide_password=False)
    catalog = Catalog(url, clock=lambda: END)
    catalog.upgrade()
    fill(catalog, events=EVENTS)
    catalog.register("prince", [rejected()], now=END)
    yield catalog
    catalog.close()


@pytest.fixture(scope="module")
def ledgers(filled: Catalog) -> list[Ledger]:
    """Everything that it has, oldest first."""
    return filled.ledgers()


def day(moment: datetime) -> date:
    """Return the day (UTC)."""
    return moment.astimezone(UTC).date()


def where(one: Ledger) -> str:
    """Return where an event stands."""
    return one.state(END).name


ASKED: dict[str, tuple[dict[str, Any], Callable[[Ledger], bool]]] = {
    "all": ({}, lambda _: True),
    "system": ({"system": "tina"}, lambda one: one.event.system == "tina"),
    "experiment": ({"experiment": "20260801_007"}, lambda one: one.event.experiment == "20260801_007"),
    "plate": ({"plate": 7}, lambda one: one.event.plate == 7),
    "kind": ({"kind": "video"}, lambda one: one.event.kind == "video"),
    "span": ({"since": MIDDLE, "until": MIDDLE + DAY}, lambda one: MIDDLE <= one.event.timestamp < MIDDLE + DAY),
    "experiment's beginning": ({"text": "202609"}, lambda one: one.event.experiment.startswith("202609")),
    "id's beginning": ({"text": "AB"}, lambda one: str(one.event.id).startswith("ab")),
    "nothing": ({"text": "zzz"}, lambda _: False),
    "wildcards": ({"text": "%"}, lambda _: False),
    "prefix": ({"prefix": "video/2026"}, lambda one: one.event.key.startswith("video/2026")),
    "other case": ({"prefix": "VIDEO/"}, lambda _: False),
    "two": (
        {"state": "purged", "kind": "video", "prefix": "video/2026"},
        lambda one: where(one) == "purged" and one.event.kind == "video",
    ),
    **{f"{state}": ({"state": state}, lambda one, state=state: where(one) == state) for state in STATES},  # type: ignore[misc]
}


@pytest.mark.parametrize("asked", ASKED)
def test_search_finds_what_fits(filled: Catalog, ledgers: list[Ledger], asked: str) -> None:
    """Each way to ask finds what a look at every event finds, in either order."""
    words, fits = ASKED[asked]
    wanted = [one.ref for one in ledgers if fits(one)]
    assert [one.ref for one in filled.search(**words, newest=False, limit=EVENTS + 1)] == wanted
    found = filled.search(**words, limit=EVENTS + 1)
    assert [one.ref for one in found] == wanted[::-1]
    if wanted:
        assert found[-1] == next(one for one in ledgers if one.ref == wanted[0])


def test_an_event_is_found_by_its_id(filled: Catalog, ledgers: list[Ledger]) -> None:
    """Whole or from its beginning, in any spelling, with or without the revision."""
    one = ledgers[200].event.id
    for said_ in (str(one), one.hex, str(one).upper(), f" {one}", f"{one}-r1", one.hex[:12], str(one)[:14]):
        assert [found.ref for found in filled.search(text=said_, limit=2)] == [Ref(one, 1)]
    assert filled.search(text=f"{one}-r2", limit=2) == []
    assert filled.search(text=f"{one}0", limit=2) == filled.search(text=f"{one.hex}0", limit=2) == []


@pytest.mark.parametrize("words", [{}, {"state": "archived"}, {"system": "prince", "prefix": "stitch/"}], ids=str)
def test_pages_make_up_the_whole(filled: Catalog, words: dict[str, Any]) -> None:
    """From page to page, in either order, nothing is left out or told twice; beyond the last one there is nothing."""
    for newest in (True, False):
        whole = [one.ref for one in filled.search(**words, newest=newest, limit=EVENTS)]
        found: list[Ref] = []
        after = None
        while page := filled.search(**words, newest=newest, after=after, limit=73):
            found += [one.ref for one in page]
            after = Cursor.parse(str(Cursor.after(page[-1])))
        assert found == whole


def test_pages_stay_right_while_events_come(catalog: Catalog) -> None:
    """Whatever is announced meanwhile, each event that was there is told once; times may be the same."""
    dice = random.Random(4)
    old = {add(catalog, number, timestamp=NOW + timedelta(seconds=number // 7)) for number in range(1, 60)}
    old |= {ref for ref, _ in catalog.register("prince", [seen(said(5, plate=13))], now=NOW)}
    assert Ref(said(5).id, 2) in old
    for newest in (True, False):
        found: list[Ref] = []
        after, number = None, 100 if newest else 200
        while page := catalog.search(newest=newest, after=after, limit=7):
            found += [one.ref for one in page]
            after = Cursor.after(page[-1])
            for _ in range(2):
                number += 1
                add(catalog, number, timestamp=NOW + timedelta(seconds=dice.uniform(-5, 15)))
        assert len(found) == len(set(found))
        assert old <= set(found)


@pytest.mark.parametrize(
    "text",
    ["", "x", "AAAA", "WzEsMiwzXQ", "bnVsbA", "W10", "\u00e9", "e30", "A" * 5000, "W" * 999],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """Nothing else is read as one, nor is one without a zone or with an impossible revision."""
    with pytest.raises(Rejected, match="Invalid cursor"):
        Cursor.parse(text)
    good = Cursor(NOW, UUID(int=7), 2)
    assert Cursor.parse(str(good)) == good
    early = datetime.fromisoformat("0001-01-01T00:00:00+10:00")
    for bad in (
        good._replace(revision=0),
        good._replace(revision=1 << 31),
        good._replace(timestamp=early),
        good._replace(timestamp=NOW.replace(tzinfo=None)),
    ):
        with pytest.raises(Rejected, match="Invalid cursor"):
            Cursor.parse(str(bad))


@pytest.mark.parametrize("prefix", ["", "stitch/", "stitch/20260801_0", "nobody/"])
@pytest.mark.parametrize("kind", [None, "stitch"])
def test_exports_of_a_span(filled: Catalog, ledgers: list[Ledger], kind: str | None, prefix: str) -> None:
    """Good ones only, by the time when they arrived, with both ends left out; whole pages, and none past the end."""
    good = [
        one
        for one in ledgers
        if one.export and not one.export.damage and not one.expired and one.event.key.startswith(prefix)
    ]
    good.sort(key=lambda one: (one.export and one.export.uploaded_at, one.ref))
    arrived = sorted(one.export.uploaded_at for one in ledgers if one.export)
    since, until = arrived[len(arrived) // 3], arrived[-5]
    wanted = [
        (one.event, one.export)
        for one in good
        if one.export and since < one.export.uploaded_at < until and kind in {None, one.event.kind}
    ]
    asked: dict[str, Any] = {"since": since, "until": until, "kind": kind, "prefix": prefix}
    assert filled.exports_page(**asked, limit=EVENTS, offset=0) == (len(wanted), wanted)
    assert filled.exports_page(**asked, limit=0, offset=0) == (len(wanted), [])
    assert filled.exports_page(**asked, limit=10, offset=len(wanted)) == (len(wanted), [])
    pages = [filled.exports_page(**asked, limit=100, offset=offset)[1] for offset in range(0, EVENTS, 100)]
    assert [row for page in pages for row in page] == wanted


def archives(
    ledgers: list[Ledger], prefix: str = "", experiment: str | None = None
) -> list[tuple[ArchiveRow, list[TapeMember]]]:
    """Gather archives from ledgers."""
    told: dict[str, list[tuple[ArchiveLocation, Ledger]]] = {}
    for one in ledgers:
        for location in one.archives:
            if one.event.key.startswith(prefix) and experiment in {None, one.event.experiment}:
                told.setdefault(location.path, []).append((location, one))
    rows = [
        (
            ArchiveRow(
                archive_id(path),
                path,
                found[0][1].event.kind,
                found[0][1].event.experiment,
                min(location.reported_at for location, _ in found),
                len(found),
            ),
            [
                TapeMember(
                    one.ref, one.export.key.rpartition("/")[2], one.event.timestamp, one.export.size, one.export.sha256
                )
                for _, one in found
                if one.export
            ],
        )
        for path, found in told.items()
    ]
    return sorted(rows, key=lambda row: (row[0].created_at, row[0].path))


@pytest.mark.parametrize("prefix", ["", "overview/", "video/20260701_01", "nobody/"])
@pytest.mark.parametrize("experiment", [None, "20260801_007", "none"])
def test_archives_and_their_members(
    filled: Catalog, ledgers: list[Ledger], experiment: str | None, prefix: str
) -> None:
    """Archives with the events that may be seen, the first reported first; each is found by its id."""
    wanted = archives(ledgers, prefix, experiment)
    rows = [row for row, _ in wanted]
    count, found = filled.archives_page(experiment=experiment, prefix=prefix, limit=EVENTS, offset=0)
    assert (count, sorted(found, key=lambda row: (row.created_at, row.path))) == (len(rows), rows)
    assert found == sorted(found, key=lambda row: row.created_at)
    for at in (0, 9, 18, count + 1):
        page = filled.archives_page(experiment=experiment, prefix=prefix, limit=9, offset=at)
        assert page == (count, found[at : at + 9])
    for row, members in archives(ledgers, prefix)[:3]:
        assert filled.archive_members(row.id, prefix=prefix) == (row, members)
        assert filled.archive_members(row.id, prefix="nobody/") is None
    assert filled.archive_members(uuid4(), prefix=prefix) is None


@pytest.mark.parametrize("prefix", ["", "video/", "nobody/"])
def test_daily_figures(filled: Catalog, ledgers: list[Ledger], prefix: str) -> None:
    """The last days that images are of, whatever lies between them, newest first."""
    mine = [one for one in ledgers if one.event.key.startswith(prefix)]
    events = Counter(day(one.event.timestamp) for one in mine)
    exports = Counter(day(one.event.timestamp) for one in mine if one.export)
    archived = Counter(day(one.event.timestamp) for one in mine if one.archives)
    wanted = [DailyRow(one, events[one], exports[one], archived[one]) for one in sorted(events, reverse=True)]
    for days in (7, 1, 1000):
        assert filled.daily(days=days, prefix=prefix) == wanted[:days]


@pytest.mark.parametrize("prefix", ["", "video/", "nobody/"])
def test_overview(filled: Catalog, ledgers: list[Ledger], prefix: str) -> None:
    """What is told at a glance is what all ledgers come to; announcements in quarantine are told to who sees all."""
    mine = [one for one in ledgers if one.event.key.startswith(prefix)]
    told = filled.overview(prefix=prefix, days=30, now=END)
    assert [one.system for one in told.systems] == sorted({one.event.system for one in mine})
    for system in told.systems:
        here = [one for one in mine if one.event.system == system.system]
        exports = [one.export for one in here if one.export]
        unproven = [one for one in exports if not one.evidence and not one.damage]
        waiting = [one.event.first_seen for one in here if not one.export and not one.quarantine]
        aside = sum(one.quarantine is not None for one in here)
        assert system == SystemOverview(
            system.system,
            states=Counter(where(one) for one in here),
            bytes_exported=sum(one.size for one in exports),
            oldest_waiting=min(waiting, default=None),
            oldest_unverified=min((one.uploaded_at for one in unproven), default=None),
            last_success=max((one.evidence_at for one in exports if one.evidence_at), default=None),
            quarantined=aside + (system.system == "prince" and not prefix),
        )
        assert system.events == len(here)
    first = END.date() - timedelta(days=29)
    days = Counter((day(one.event.timestamp), one.event.system) for one in mine if day(one.event.timestamp) >= first)
    assert told.days == tuple((*key, count) for key, count in sorted(days.items()))


def test_overview_of_nothing_but_quarantine(catalog: Catalog) -> None:
    """A system whose only announcement is in quarantine is there; an empty catalogue is empty."""
    assert catalog.overview(now=NOW) == Overview((), ())
    catalog.register("tina", [rejected()], now=NOW)
    assert catalog.overview(now=NOW) == Overview((SystemOverview("tina", quarantined=1),), ())
    assert catalog.overview(prefix="images/", now=NOW) == Overview((), ())
    assert catalog.daily() == []
    assert catalog.search(limit=5) == []
    assert catalog.archives_page(limit=5, offset=0) == (0, [])
    assert catalog.exports_page(since=NOW, until=NOW + DAY, limit=5, offset=0) == (0, [])


def test_a_prefix_is_compared_by_bytes(catalog: Catalog) -> None:
    """No character is special, be it the last one that there is."""
    lasts = ("\U0010ffff", "\ud7ff", "%", "_", "z", "\u00e9")
    names = [f"{last}{end}" for last in lasts for end in ("", "x", "\U0010ffff")]
    for number, name in enumerate([*names, "a", "A", "Z", "\ue000", "\U0010fffe", "b", "{", "&"], 1):
        add(catalog, number, experiment=f"e{name}", kind="video")
    ledgers = catalog.ledgers()
    for last in lasts:
        wanted = {one.ref for one in ledgers if one.event.key.startswith(f"videos/e{last}")}
        assert len(wanted) == 3
        assert {one.ref for one in catalog.search(prefix=f"videos/e{last}", limit=99)} == wanted
        assert {one.ref for one in catalog.search(text=f"e{last}", limit=99)} == wanted


def test_exporting_is_told_while_it_lasts(catalog: Catalog) -> None:
    """An event that somebody is at is found as such until the lease ends or the export is noted."""
    ref = add(catalog)
    catalog.lease(ref, owner="worker", ttl=DAY, now=catalog.now())
    assert [one.ref for one in catalog.search(state="exporting", limit=5)] == [ref]
    assert catalog.overview(now=catalog.now()).systems[0].states == {"exporting": 1}
    assert catalog.search(state="ready", limit=5) == []
    other = add(catalog, 2)
    export(catalog, other)
    assert [one.ref for one in catalog.search(state="exported", limit=5)] == [other]
