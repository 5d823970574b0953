"""What the columns take and give back, and what the tables refuse, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError, StatementError

from plateway.catalog import Catalog
from plateway.records import Event, EventFile, FileName, Quarantine, Record, Setback, UtcDateTime, Words

NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
DIALECT = sa.create_engine("sqlite://").dialect
EVENT = {
    "id": UUID(int=1),
    "revision": 1,
    "system": "prince",
    "kind": "stitch",
    "experiment": "20261121_012",
    "timestamp": NOW,
    "path": "images/1",
    "image_count": 12,
    "details": {"µ": "\0 \udce9", "deep": [1, None, 2.5]},
    "digest": "d" * 64,
    "key": "images/1.tar",
    "file": "1.json",
    "announced_at": NOW,
    "first_seen": NOW,
    "waiting_since": NOW,
}
EXPORT = {
    "event_id": UUID(int=1),
    "revision": 1,
    "bucket": "raw",
    "key": "images/1.tar",
    "size": 6 * 10**12,
    "sha256": "s" * 64,
    "etag": "e-2",
    "part_size": 16 << 20,
    "member_count": 13,
    "manifest_offset": 5 * 10**12,
    "manifest_size": 1000,
    "manifest_sha256": "m" * 64,
    "uploaded_at": NOW,
}
PURGE = {
    "event_id": UUID(int=1),
    "revision": 1,
    "place": "raw",
    "attempt": 1,
    "proof": {},
    "intended_at": NOW,
    "trash": "t",
}
ENTRY = {"manifest": "m" * 64, "path": "images/x.tar", "key": "raw/images/1.tar", "job_id": "", "reported_at": NOW}
DARK = {"bucket": "raw", "key": "é", "size": 1, "etag": "", "first_seen": NOW}
QUARANTINE = {"system": "p", "name": "1.json", "reason": "no", "content": b"{", "first_seen": NOW, "last_seen": NOW}


@pytest.fixture
def connection(catalog: Catalog) -> Iterator[sa.Connection]:
    """A connection past the catalogue, with one event."""
    engine = sa.create_engine(catalog._engine.url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.execute(sa.text("PRAGMA foreign_keys=ON"))
        add(connection, "event", EVENT)
        yield connection
    engine.dispose()


def add(connection: sa.Connection, table: str, row: dict[str, Any]) -> None:
    """Put one row into a table."""
    connection.execute(Record.metadata.tables[table].insert().values(row))


def test_event_comes_back_as_it_was(connection: sa.Connection) -> None:
    """Times keep microseconds and zone, metadata keep NUL and broken text, ids stay ids."""
    row = connection.execute(sa.select(Record.metadata.tables[Event.__tablename__])).one()._mapping
    assert {name: row[name] for name in EVENT} == EVENT
    assert row["timestamp"].tzinfo is UTC


def test_large_numbers_fit(connection: sa.Connection) -> None:
    """A bundle of 6 TB has its size and offsets recorded."""
    add(connection, "export", EXPORT)
    row = connection.execute(sa.select(Record.metadata.tables["export"])).one()._mapping
    assert (row["size"], row["manifest_offset"]) == (6 * 10**12, 5 * 10**12)


def test_times_become_utc() -> None:
    """Whatever zone a time came in, it is UTC in the database and after."""
    amsterdam = timezone(timedelta(hours=1))
    kind = UtcDateTime()
    assert kind.process_bind_param(NOW.astimezone(amsterdam), DIALECT) == NOW
    assert kind.process_result_value(NOW.replace(tzinfo=None), DIALECT) == NOW
    assert kind.process_result_value(NOW.astimezone(amsterdam), DIALECT) == NOW
    assert kind.process_bind_param(None, DIALECT) is kind.process_result_value(None, DIALECT) is None


def test_naive_time_is_a_mistake(connection: sa.Connection) -> None:
    """A time without a zone is refused before it reaches the database."""
    with pytest.raises(StatementError, match="naive time 2026-11-21"):
        add(connection, "event", EVENT | {"id": UUID(int=2), "timestamp": NOW.replace(tzinfo=None)})


@given(st.binary(min_size=1, max_size=255).map(lambda raw: raw.translate(None, b"/\0")))
def test_any_file_name_survives(raw: bytes) -> None:
    """Every name that a disk can hold is stored as valid text and comes back as it was."""
    name = raw.decode("utf-8", "surrogateescape")
    stored = FileName().process_bind_param(name, DIALECT)
    assert stored is not None
    stored.encode("utf-8")
    assert FileName().process_result_value(stored, DIALECT) == name


def test_odd_file_name_on_the_database(connection: sa.Connection) -> None:
    """A Latin-1 name is a key like any other."""
    row = {"system": "prince", "name": "caf\udce9\n.json", "size": 1, "mtime_ns": 2**62}
    add(connection, "event_file", row)
    table = Record.metadata.tables[EventFile.__tablename__]
    query = sa.select(table).where(table.c.name == row["name"])
    assert dict(connection.execute(query).one()._mapping) == row


def test_words_are_always_text() -> None:
    """What no database takes is shown escaped."""
    assert Words().process_bind_param("a\0b \udce9 é", DIALECT) == r"a\x00b \udce9 é"
    assert Words().process_bind_param("", DIALECT) == ""
    assert Words().process_bind_param(None, DIALECT) is None


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a fact about nothing": ("setback", dict.fromkeys(Setback.model_fields, NOW) | {"event_id": UUID(int=9)}),
    "a cause of no kind": (
        "setback",
        dict.fromkeys(Setback.model_fields, NOW) | {"event_id": UUID(int=1), "cause": "x"},
    ),
    "a key twice": ("event", EVENT | {"id": UUID(int=2)}),
    "content twice under one id": ("event", EVENT | {"revision": 2, "key": "other"}),
    "revision 0": ("event", EVENT | {"revision": 0, "key": "other", "digest": "e"}),
    "evidence without a date": ("export", EXPORT | {"evidence": "etag"}),
    "a date without evidence": ("export", EXPORT | {"evidence_at": NOW}),
    "damage without a date": ("export", EXPORT | {"damage": "lost"}),
    "good and damaged": (
        "export",
        EXPORT | {"evidence": "etag", "evidence_at": NOW, "damage": "lost", "damaged_at": NOW},
    ),
    "a purge of no place": ("purge", PURGE | {"place": "elsewhere"}),
    "gone before aside": ("purge", PURGE | {"gone_at": NOW}),
    "restored for no reason": ("purge", PURGE | {"restored_at": NOW}),
    "an entry of no manifest": ("archive_entry", ENTRY),
    "an object dark twice": ("dark_object", DARK),
}


@pytest.mark.parametrize("what", REFUSED)
def test_database_refuses(connection: sa.Connection, what: str) -> None:
    """Facts that contradict each other cannot be written, whoever tries."""
    table, row = REFUSED[what]
    if table == "setback":
        row = (
            {"cause": "event"} | row | {"revision": 1, "verb": "export", "attempt": 1, "reason": "no", "endpoint": None}
        )
    if table == "dark_object":
        add(connection, table, row)
    with pytest.raises(IntegrityError):
        add(connection, table, row)


def test_one_active_quarantine(connection: sa.Connection) -> None:
    """A file, or an event, is in quarantine once; what was released may be many."""
    about = {"event_id": UUID(int=1), "revision": 1}
    for row in (QUARANTINE, QUARANTINE | about, QUARANTINE | {"released_at": NOW}, QUARANTINE | {"released_at": NOW}):
        add(connection, Quarantine.__tablename__, row)
    for row in (QUARANTINE, QUARANTINE | about):
        with pytest.raises(IntegrityError), connection.begin_nested():
            add(connection, "quarantine", row)
