"""Connections to SQLite and PostgreSQL, and the translation of their errors.

On SQLite every transaction begins where we say so, and one that writes by taking the one lock there is.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy import event as hooks
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from plateway.errors import (
    CatalogUnavailable,
    Conflict,
    Damaged,
    Denied,
    Misconfigured,
    NotFound,
    PlatewayError,
    Rejected,
)
from plateway.settings import OTHERS, make_private

PATIENCE = 5  # seconds that a writer waits for SQLite's lock
POSTGRES: Mapping[str, str | int] = {  # options of libpq, unless the URL has its own
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 30,  # seconds; a connection whose other end is gone ends after 30 + 3 x 10 s
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms that sent bytes may stay unacknowledged
    "options": "-c statement_timeout=10min",
    "client_encoding": "utf8",  # else text from a database without an encoding (SQL_ASCII) arrives as bytes
}
IDLE = "60s"  # that a transaction that writes may wait for its client: a stopped worker must not keep its locks
RECONNECT = 1.0  # seconds between two attempts to connect, while the database does not answer
NETWORK = {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "fuse.sshfs"}
MEANINGS: tuple[tuple[str, type[PlatewayError], str], ...] = (  # in drivers' messages; other errors may pass by waiting
    (
        r"no such (table|column)|(relation|column) .* does not exist",
        Misconfigured,
        "tables are missing or old, run `plateway db upgrade`",
    ),
    (r"(database|role) .* does not exist", Misconfigured, ""),
    (r"not a database", Misconfigured, "the file is not an SQLite database"),
    (r"authentication|pg_hba|permission denied|readonly database|read-only", Denied, ""),
    (r"malformed", Damaged, ""),
)


def open_engine(url: str, mounts: Mapping[str, str] | None, *, patience: float = 0.0) -> Engine:
    """Open the pool of connections; none is made yet.

    ``patience``: seconds for which connecting to a PostgreSQL that does not answer is retried.

    Raises:
        Misconfigured: the URL is wrong, or names a database on a network file system.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise Misconfigured("the database URL is not one, like postgresql://user@host/name") from None  # it has secrets
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, mounts)
    if parsed.get_backend_name() == "postgresql":
        return _postgres(parsed, patience)
    raise Misconfigured(f"the catalogue lives in SQLite or PostgreSQL, not in {parsed.get_backend_name()}")


def _postgres(url: URL, patience: float) -> Engine:
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg").update_query_dict({"application_name": "plateway"}),
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=4,
        max_overflow=8,
        pool_timeout=30 + patience,
        connect_args={name: value for name, value in POSTGRES.items() if name not in url.query},
    )

    @hooks.listens_for(engine, "do_connect")
    def connect(dialect: Any, _: Any, args: Any, options: Any) -> Any:
        """Connect; nothing was sent to the database yet, so that this may be repeated."""
        until = time.monotonic() + patience
        while True:
            try:
                return dialect.connect(*args, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                if time.monotonic() > until or _means(str(error)) is not None:
                    raise
                time.sleep(RECONNECT)

    return engine


def _sqlite(url: URL, mounts: Mapping[str, str] | None) -> Engine:
    database = url.database or ""
    memory = database in {"", ":memory:"}
    if not memory and (network := network_file_system(Path(database), mounts=mounts)):
        raise Misconfigured(
            f"the catalogue's directory is on a network file system ({network}), where SQLite loses data: "
            "keep it on a local disk, or use PostgreSQL (PLATEWAY_DATABASE_URL)"
        )
    # one connection keeps a database in memory alive, and its users take turns
    pool = {"poolclass": sa.QueuePool, "pool_size": 1, "max_overflow": 0} if memory else {}
    connect = {"timeout": float(str(url.query.get("timeout", PATIENCE))), "check_same_thread": False}
    engine = sa.create_engine(url, hide_parameters=True, connect_args=connect, **pool)

    if not memory:

        @hooks.listens_for(engine, "do_connect")
        def connecting(*_: Any) -> None:
            close_files(Path(database))

    @hooks.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin explicitly
        _write_ahead(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @hooks.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn on the write-ahead log. SQLite does not wait for another process that does the same: it raises "locked"."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def close_files(database: Path) -> None:
    """Make a database's file, and its logs, for the owner only; logs that SQLite makes later get the mode of the file.

    An existing file is not opened: closing it would take the locks of other connections in this process along.
    """
    with suppress(OSError):  # SQLite explains what is wrong with the path
        if not database.exists():
            os.close(os.open(database, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):  # missing, or another account's
            file = Path(f"{database}{suffix}")
            if (mode := stat.S_IMODE(file.stat().st_mode)) & OTHERS:
                file.chmod(mode & ~OTHERS)


def make_home(database: Path) -> None:
    try:
        make_private(database.parent)
    except OSError as error:
        raise Misconfigured(
            f"the catalogue's directory cannot be created: {error.strerror}; "
            "set PLATEWAY_HOME to a directory that this account can write to, or PLATEWAY_DATABASE_URL to a PostgreSQL"
        ) from error


def pragmas(connection: Connection) -> Callable[[str], list[Any]]:
    """Return a function that runs a PRAGMA outside of SQLAlchemy's transactions; a no-op except on SQLite."""
    raw: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        return lambda text: list(raw.execute(f"PRAGMA {text}"))
    return lambda text: []


def network_file_system(path: Path, *, mounts: Mapping[str, str] | None = None) -> str | None:
    """Return the type of a path's file system if it is on another machine. ``mounts``: type by mount point."""
    if mounts is None:
        mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    place = path.absolute().resolve()
    nearest = next((str(one) for one in (place, *place.parents) if str(one) in mounts), None)
    kind = mounts[nearest].lower() if nearest else ""
    return kind if kind in NETWORK else None


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate errors of the database; programming errors pass unchanged."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        raise _ours(error) from error
    except (OverflowError, UnicodeError) as error:
        raise Rejected(f"cannot be recorded: {error}") from error


def _ours(error: DBAPIError | PoolTimeout) -> PlatewayError:
    said = _brief(error)
    if isinstance(error, DataError):
        return Rejected(f"cannot be recorded: {said}")
    if isinstance(error, IntegrityError):
        unknown = "foreign key" in said.lower()
        return NotFound("no such event") if unknown else Conflict(f"the catalogue says otherwise: {said}")
    if (meant := _means(said)) is not None:
        kind, meaning = meant
        return kind(f"the catalogue: {meaning or said}")
    return CatalogUnavailable(f"the catalogue does not answer: {said}")


def _means(said: str) -> tuple[type[PlatewayError], str] | None:
    """Return the error that a driver's message means, and our words for it; None if waiting may help."""
    return next(((kind, meaning) for pattern, kind, meaning in MEANINGS if re.search(pattern, said)), None)


def _brief(error: DBAPIError | PoolTimeout) -> str:
    """Cut a driver's message down to one line without paths; it has no SQL, and so no values."""
    if isinstance(error, PoolTimeout):
        return "no connection came free"
    return re.sub(r'"/[^"]*"', '"…"', str(error.orig).strip().partition("\n")[0])
