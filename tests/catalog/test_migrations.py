"""The tables can be made, changed and taken back, with data in them, on both databases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from plateway import migrations
from plateway.catalog import Catalog
from plateway.errors import Misconfigured, Unavailable
from plateway.records import Record
from tests.databases import processes

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
VALUES: dict[type[Any], Any] = {
    sa.Uuid: UUID(int=1),
    sa.String: "raw",
    sa.Integer: 1,
    sa.Boolean: True,
    sa.DateTime: NOW,
    sa.JSON: {"a": [1, "é"]},
    sa.LargeBinary: b"\x00\xff",
}


@pytest.fixture
def connection(catalog: Catalog) -> Iterator[sa.Connection]:
    """A connection past the catalogue, to look at what is really there."""
    engine = sa.create_engine(catalog._engine.url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def reflected(connection: sa.Connection) -> dict[str, sa.Table]:
    """Read the tables from the database, parents first."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    return {table.name: table for table in metadata.sorted_tables if table.name != "alembic_version"}


def fill(connection: sa.Connection) -> dict[str, Any]:
    """Put one row into every table, with a value in every column where one may be; return what is read back."""
    rows = {}
    for name in sorted(reflected(connection), key="stale_summary".__eq__):  # the others' triggers add to that one
        table = Record.metadata.tables[name]
        row = {column.name: next(v for k, v in VALUES.items() if isinstance(kind(column), k)) for column in table.c}
        if name == "export":
            row |= {"damage": None, "damage_kind": None, "damaged_at": None}
        if name == "archive_entry":
            row |= {"refuted_at": None}
        if name == "setback":
            row |= {"cause": "endpoint"}
        if name == "stale_summary":
            connection.execute(table.delete())
        connection.execute(table.insert().values(row))
        rows[name] = connection.execute(sa.select(table)).one()
    connection.commit()
    return rows


def kind(column: sa.Column[Any]) -> Any:
    """Return the plain type below one of ours."""
    return column.type.impl_instance if isinstance(column.type, sa.TypeDecorator) else column.type


def test_revisions_are_one_line() -> None:
    """There is one head, and one base: nobody has to merge."""
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert len(script.get_heads()) == len(script.get_bases()) == 1
    assert script.get_current_head() == migrations.head()
    assert sorted(one.revision for one in script.walk_revisions()) == migrations.revisions()


def test_models_match_migrations(catalog: Catalog, connection: sa.Connection) -> None:
    """The migrated tables are the ones that the records describe."""
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    assert compare_metadata(context, Record.metadata) == []
    made = sa.create_engine("sqlite://")
    Record.metadata.create_all(made)
    with made.connect() as other:
        constraints, wanted = rules(connection), rules(other)
    made.dispose()
    assert constraints == wanted


def rules(connection: sa.Connection) -> dict[str, set[str]]:
    """Name the constraints and indexes of each table, which Alembic compares only in part."""
    look = sa.inspect(connection)
    return {
        table: {
            str(one["name"])
            for one in (
                *look.get_check_constraints(table),
                *look.get_unique_constraints(table),
                *look.get_foreign_keys(table),
                *[index for index in look.get_indexes(table) if not index.get("duplicates_constraint")],
            )
        }
        for table in look.get_table_names()
        if table != "alembic_version"
    }


def test_every_revision_goes_down_and_up_with_data(catalog: Catalog, connection: sa.Connection) -> None:
    """Each step back and forth works on tables that have rows, and rows survive where their tables do."""
    rows = fill(connection)
    assert set(rows) == set(Record.metadata.tables)
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    for revision in script.walk_revisions():
        connection.rollback()
        catalog.downgrade(revision.down_revision if isinstance(revision.down_revision, str) else "base")
        catalog.upgrade(revision.revision)
        assert catalog.current() == revision.revision
    catalog.downgrade("base")
    assert catalog.current() == ""
    assert reflected(connection) == {}
    connection.rollback()
    catalog.upgrade()
    assert fill(connection) == rows


def test_tape_goes_and_comes(catalog: Catalog, connection: sa.Connection) -> None:
    """A step back forgets what only tape's tables knew; all older facts, and the rules about them, are as before."""
    before, rows = definitions(connection), fill(connection)
    purge, location = Record.metadata.tables["purge"], Record.metadata.tables["archive_location"]
    expired = {**rows["purge"]._mapping, "place": "bucket", "trash": ""}
    connection.execute(purge.insert().values(expired))
    connection.commit()
    catalog.downgrade("0001")
    there = reflected(connection)["purge"].c.keys()
    older = sa.Table("purge", sa.MetaData(), *[sa.Column(one.name, one.type) for one in purge.c if one.name in there])
    with pytest.raises(sa.exc.IntegrityError, match="place"):
        connection.execute(older.insert().values({name: expired[name] for name in there}))
    connection.rollback()
    catalog.upgrade()
    assert definitions(connection) == before
    told = {**rows["purge"]._mapping, "cause": "unproven", "removing_at": NOW}
    assert connection.execute(sa.select(purge)).one()._mapping == told
    new = ("offset", "evidence_at", "read_at", "seen_size", "seen_modified", "damage", "damage_kind", "damaged_at")
    forgotten = {**rows["archive_location"]._mapping, **dict.fromkeys(new)}
    assert connection.execute(sa.select(location)).one()._mapping == forgotten
    for name in ("archive_manifest", "archive_entry", "door", "dark_object"):
        assert connection.execute(sa.select(Record.metadata.tables[name])).all() == []
    known = {**rows["export"]._mapping, "endpoint": None, "seen_modified": None, "seen_version": None}
    assert connection.execute(sa.select(Record.metadata.tables["export"])).one()._mapping == known
    fresh: dict[str, dict[str, Any]] = {
        "event": {"image_bytes": None},
        "quarantine": {"versions": 1},
        "setback": {"cause": "event", "endpoint": None},
    }
    for name in ("event", "event_file", "quarantine", "setback", "lease"):
        (row,) = connection.execute(sa.select(Record.metadata.tables[name])).all()
        assert row._mapping == {**rows[name]._mapping, **fresh.get(name, {})}


def definitions(connection: sa.Connection) -> dict[str, Any]:
    """Read how tables and indexes are defined, with their conditions and what they are sorted by."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
        return {name.strip('"'): sorted(re.findall(r"[^\s,]+", sql.replace('"', ""))) for name, sql in rows}
    columns = sa.text(
        "SELECT table_name, column_name, data_type, collation_name FROM information_schema.columns"
        " WHERE table_schema = 'public'"
    )
    indexes = sa.text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    checks = sa.text("SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype IN ('c', 'f')")
    found = {str(row[:2]): tuple(row[2:]) for row in connection.execute(columns)}
    return found | {str(row[0]): row[1] for query in (indexes, checks) for row in connection.execute(query)}


def test_upgrade_again_changes_nothing(catalog: Catalog, connection: sa.Connection) -> None:
    """A catalogue that is up to date keeps its rows."""
    rows = fill(connection)
    catalog.upgrade()
    with catalog._writing():  # somebody is at work: nothing waits for it
        catalog.upgrade()
    for name, row in rows.items():
        assert connection.execute(sa.select(Record.metadata.tables[name])).one() == row


def test_newer_database_is_refused(catalog: Catalog, connection: sa.Connection) -> None:
    """A version that does not know a revision leaves it alone and names it."""
    connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    connection.commit()
    with pytest.raises(
        Misconfigured, match=f"'9999', newer than this version, which knows up to '{migrations.head()}'"
    ):
        catalog.upgrade()
    assert catalog.current() == "9999"


def test_no_tables_says_what_to_do(catalog_url: str) -> None:
    """A catalogue that was never upgraded says so."""
    catalog = Catalog(catalog_url)
    assert catalog.current() == ""
    with pytest.raises(Misconfigured, match="plateway db upgrade"):
        catalog.unsettled("prince")
    catalog.close()


def test_processes_upgrade_at_once(catalog_url: str) -> None:
    """However many start at the same moment on an empty database, all find it upgraded."""
    with ProcessPoolExecutor(3, mp_context=processes()) as pool:
        assert list(pool.map(upgraded, [catalog_url] * 6)) == [migrations.head()] * 6


def upgraded(url: str) -> str:
    """Upgrade, in a process of its own."""
    catalog = Catalog(url)
    catalog.upgrade()
    revision = catalog.current()
    catalog.close()
    return revision


def test_upgrade_makes_the_directory(tmp_path: Path) -> None:
    """The home need not be there; reading alone does not make it."""
    catalog = Catalog(f"sqlite:///{tmp_path}/deep/home/catalogue.db")
    with pytest.raises(Unavailable, match="unable to open"):
        catalog.current()
    assert not (tmp_path / "deep").exists()
    catalog.upgrade()
    assert catalog.current() == catalog.head()
    catalog.close()


def test_endpoints_go_and_come(catalog: Catalog, connection: sa.Connection) -> None:
    """A step back forgets endpoints, and keeps of objects that only they told apart the one that was seen first."""
    before, rows = definitions(connection), fill(connection)
    dark = Record.metadata.tables["dark_object"]
    older = {**rows["dark_object"]._mapping, "endpoint": "other", "etag": "older", "first_seen": NOW - timedelta(1)}
    connection.execute(dark.insert().values(older))
    connection.commit()
    catalog.downgrade("0003")
    assert "endpoint" not in {*reflected(connection)["export"].c.keys(), *reflected(connection)["dark_object"].c.keys()}
    connection.rollback()
    catalog.upgrade()
    assert definitions(connection) == before
    assert connection.execute(sa.select(dark)).one()._mapping == {**older, "endpoint": ""}
    assert connection.scalar(sa.select(Record.metadata.tables["export"].c.endpoint)) is None


def test_versions_and_causes_go_and_come(catalog: Catalog, connection: sa.Connection) -> None:
    """The versions of a file that are kept are counted, oldest first; what failed counts as the event's own failure."""
    rows = fill(connection)
    quarantine, setback = Record.metadata.tables["quarantine"], Record.metadata.tables["setback"]
    file = {**rows["quarantine"]._mapping, "event_id": None, "revision": None, "versions": 7}
    for number in range(3):
        connection.execute(quarantine.insert().values({**file, "id": 10 + number, "name": "rewritten"}))
    connection.execute(quarantine.insert().values({**file, "id": 20, "name": "other"}))
    connection.commit()
    catalog.downgrade("0005")
    assert {"cause", "endpoint"} & set(reflected(connection)["setback"].c.keys()) == set()
    connection.rollback()
    catalog.upgrade()
    found = connection.execute(sa.select(quarantine.c.id, quarantine.c.versions).where(quarantine.c.id >= 10))
    assert sorted(map(tuple, found)) == [(10, 1), (11, 2), (12, 3), (20, 1)]
    assert connection.execute(sa.select(setback.c.cause, setback.c.endpoint)).one() == ("event", None)
