"""The kept counts are at any moment what the facts say, and no question counts all events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event as hooks

from plateway.catalog import Catalog
from plateway.catalog.summaries import STALE, hour_of, start_of
from plateway.errors import Unavailable
from plateway.events import Ref
from plateway.outcome import Restored
from plateway.records import ArchiveLocation, Record
from tests.factories import NOW, add, damage, export, intent, prove, rejected, said, seen
from tests.filling import END, PERIOD, fill

HOUR = timedelta(hours=1)
KEPT = ("hour_summary", "upload_summary", "archive_summary")
FACTS = ("event", "export", "purge", "archive_location", "quarantine", "setback")


def kept(catalog: Catalog) -> dict[str, list[Any]]:
    """Read every kept count."""
    catalog.refresh()
    with catalog._reading() as session:
        assert session.scalar(sa.select(STALE.part)) is None
        tables = [Record.metadata.tables[name] for name in KEPT]
        return {one.name: sorted(map(repr, session.execute(sa.select(one)))) for one in tables}


def counted_anew(catalog: Catalog) -> dict[str, list[Any]]:
    """Compute every count from nothing."""
    with catalog._writing() as session:
        for name in KEPT:
            session.connection().execute(Record.metadata.tables[name].delete())
        hour = "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24')" if catalog._postgres else "substr({0}, 1, 13)"
        for kind, part, table in (
            ("hour", hour.format("timestamp"), "event"),
            ("upload", hour.format("uploaded_at"), "export"),
            ("archive", "path", "archive_location"),
        ):
            session.execute(sa.text(f"INSERT INTO stale_summary SELECT DISTINCT '{kind}', {part}, 0 FROM {table}"))
    return kept(catalog)


def on_tape(catalog: Catalog, ref: Ref, path: str) -> None:
    """Record that an archive has an event."""
    with catalog._writing() as session:
        facts: dict[str, Any] = {"member": "a", "job_id": "1", "evidence": "name", "reported_at": NOW}
        session.add(ArchiveLocation(event_id=ref.id, revision=ref.revision, path=path, **facts))


def writes(catalog: Catalog) -> Iterator[Callable[[], Any]]:
    """Yield what may be written about events, one after another."""
    refs = [Ref(said(number).id, 1) for number in range(1, 5)]
    one, two, _, four = refs
    for number in range(1, 4):
        yield partial(add, catalog, number, timestamp=NOW + number * HOUR / 2)
    yield lambda: add(catalog, 4, sealed=False, system="aretha")
    yield lambda: catalog.seal([four], now=NOW)
    yield lambda: catalog.set_back(two, "export", reason="no answer", now=NOW)
    for ref in refs[:3]:
        yield partial(export, catalog, ref, uploaded_at=NOW + HOUR)
    yield lambda: prove(catalog, one)
    yield lambda: damage(catalog, two)
    yield lambda: export(catalog, two, uploaded_at=NOW + 3 * HOUR, sha256="t" * 64)
    yield lambda: prove(catalog, two)
    yield lambda: on_tape(catalog, one, "a.tar")
    yield lambda: on_tape(catalog, two, "a.tar")
    yield lambda: on_tape(catalog, two, "b.tar")
    yield lambda: catalog.record_misplaced(two, "a.tar", reason="not there", at=NOW)
    yield lambda: catalog.intend(intent(one))
    yield lambda: catalog.record_trashed(one, "raw", at=NOW)
    yield lambda: catalog.record_restored(one, "raw", at=NOW, reason="others", cause=Restored.UNPROVEN)
    with catalog._writing() as session:  # a bucket copy is marked only where tape has the same bytes
        changed = {"evidence": "checksum", "checksum": "s" * 64}
        session.execute(sa.update(ArchiveLocation).values(changed))
    yield lambda: catalog.intend(intent(one, "bucket"))
    yield lambda: catalog.record_trashed(one, "bucket", at=NOW)
    yield lambda: catalog.quarantine(four, "images are missing", now=NOW)
    yield lambda: catalog.replay(catalog.quarantined()[0].id or 0, now=NOW)
    yield lambda: catalog.seal([four], now=NOW)
    yield lambda: catalog.revise(four, digest="other", now=NOW)
    yield lambda: catalog.register("prince", [rejected(), seen(said(1, metadata={"position": 9}))], now=NOW)


def test_counts_follow_every_write(catalog: Catalog) -> None:
    """After each write the kept counts are those that counting anew gives, and say what the ledgers say."""
    for write in writes(catalog):
        write()
        assert kept(catalog) == counted_anew(catalog)
        states = [one.state(NOW + HOUR).name for one in catalog.ledgers()]
        assert catalog.counts(NOW + HOUR) == {name: states.count(name) for name in sorted(set(states))}
    assert catalog.counts(NOW + HOUR, system="aretha") == {"ready": 1, "waiting": 1}


def test_a_lease_counts_while_it_lasts(catalog: Catalog) -> None:
    """A lease ends by itself, without a write: it is read, not counted."""
    ref = add(catalog)
    catalog.lease(ref, owner="worker", ttl=HOUR, now=NOW)
    assert catalog.counts(NOW) == {"exporting": 1}
    assert catalog.counts(NOW + 2 * HOUR) == {"ready": 1}


def test_a_catalogue_that_cannot_be_written_is_read(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts are then those of the last time."""
    add(catalog)
    assert catalog.counts(NOW) == {"ready": 1}
    add(catalog, 2)

    @contextmanager
    def busy() -> Iterator[Any]:
        raise Unavailable("the catalogue does not answer: database is locked")
        yield

    monkeypatch.setattr(catalog, "_writing", busy)
    assert catalog.counts(NOW) == {"ready": 1}
    monkeypatch.undo()
    assert catalog.counts(NOW) == {"ready": 2}


def test_any_time_that_an_event_has_is_counted(catalog: Catalog) -> None:
    """Clocks of instruments may be wrong by millennia."""
    for number, year in enumerate((1, 999, 2026, 9999), 1):
        add(catalog, number, timestamp=NOW.replace(year=year, month=12, day=31, hour=23))
    assert catalog.counts(NOW) == {"ready": 4}
    assert start_of(hour_of(NOW.replace(year=999))) == NOW.replace(year=999, minute=0, second=0, microsecond=0)


def test_triggers_are_there(catalog: Catalog) -> None:
    """Every table that a count depends on marks what an insertion, a change and a deletion alter."""
    names = "SELECT DISTINCT tgname FROM pg_trigger WHERE NOT tgisinternal"
    if not catalog._postgres:
        names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    with catalog._reading() as session:
        found = set(session.scalars(sa.text(names)))
    made = {"insert_new", "update_new", "update_old", "delete_old"}
    assert found == {f"mark_{table}_{what}" for table in FACTS for what in made}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """A catalogue on SQLite with events in every state."""
    catalog = Catalog(f"sqlite:///{tmp_path_factory.mktemp('summaries')}/catalogue.db", clock=lambda: END)
    catalog.upgrade()
    fill(catalog, events=500)
    catalog.refresh()
    yield catalog
    catalog.close()


QUESTIONS: dict[str, Callable[[Catalog], Any]] = {
    "counts": lambda one: one.counts(END),
    "overview": lambda one: one.overview(now=END),
    "daily": lambda one: one.daily(),
    "figures": lambda one: one.figures(now=END),
    "stuck": lambda one: one.stuck(before=END, limit=20),
    "exports": lambda one: one.exports_page(since=END - PERIOD, until=END, kind="stitch", limit=9, offset=80),
    "archives": lambda one: one.archives_page(limit=5, offset=3),
    "newest": lambda one: list(one.each_newest(limit=9)),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_question_reads_all_events(filled: Catalog, name: str) -> None:
    """Each statement finds rows of the facts by an index, and a bounded number of statements does."""
    met: list[tuple[str, Any]] = []
    engine = filled._engine
    hooks.listen(engine, "before_cursor_execute", lambda _c, _u, text, values, _x, _m: met.append((text, values)))
    QUESTIONS[name](filled)
    asked = [one for one in met if one[0].lstrip().startswith(("SELECT", "WITH"))]
    assert 0 < len(asked) <= 16
    with engine.connect() as connection:
        plans = [row[3] for one in asked for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {one[0]}", one[1])]
    big = {*FACTS, "lease"} - {"quarantine", "setback"}  # of those few rows are active
    assert plans
    assert [
        plan for plan in plans if plan.split()[0] == "SCAN" and plan.split()[1] in big and "USING" not in plan
    ] == []


def test_a_deep_page_of_exports_skips_no_rows(filled: Catalog) -> None:
    """An offset becomes a position: only the uploads of one hour are passed over."""
    whole: dict[str, Any] = {"since": END - PERIOD, "until": END}
    count, everything = filled.exports_page(**whole, limit=500, offset=0)
    assert count == len(everything)
    for offset in (0, 1, count // 2, count - 1, count):
        _, page = filled.exports_page(**whole, limit=7, offset=offset)
        assert [row.key for _, row in page] == [row.key for _, row in everything[offset : offset + 7]]
