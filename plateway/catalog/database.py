"""The database behind the catalogue: its tables, its clock, and transactions that wait for each other."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from plateway import migrations
from plateway.catalog.engine import IDLE, make_home, open_engine, pragmas, translate_errors
from plateway.catalog.rows import add_incident
from plateway.errors import Damaged
from plateway.events import Ref
from plateway.outcome import Incidence

LOCK = 0x706C6174  # of PostgreSQL's advisory locks: "plat"


class Database:
    """A database with our tables, in which each method is one transaction. The parts of ``Catalog`` build on it."""

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], datetime] | None = None,
        dice: random.Random | None = None,
        mounts: Mapping[str, str] | None = None,
        actor: str | None = None,
        patience: float = 0.0,
    ) -> None:
        self.actor = actor or f"{socket.gethostname()}:{os.getpid()}"
        self._engine = open_engine(url, mounts, patience=patience)
        self._postgres = self._engine.dialect.name == "postgresql"
        # one snapshot for the queries of a reader; SQLite's transactions are that anyway
        self._reader = (
            self._engine.execution_options(isolation_level="REPEATABLE READ") if self._postgres else self._engine
        )
        self._writer = self._engine.execution_options(writes=True)
        self._clock = clock
        self._dice = dice or random.Random()  # noqa: S311 - jitter, not a secret

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def now(self) -> datetime:
        """Return the time that all machines share: the database's on PostgreSQL, else this machine's."""
        if self._clock is not None:
            return self._clock()
        if not self._postgres:
            return datetime.now(UTC)
        with self._reading() as session:
            time: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
            return time.astimezone(UTC)

    def head(self) -> str:
        """Return the newest revision of the tables that this version knows."""
        return migrations.head()

    def current(self) -> str:
        """Return the revision of the tables; empty if there are none."""
        with self._reading() as session:
            return migrations.current(session.connection())

    def upgrade(self, revision: str = "head") -> None:
        """Migrate the tables to the newest revision. May be repeated, and run by several processes at once.

        Raises:
            Misconfigured: a newer version has written this database.
        """
        if self._engine.url.database and not self._postgres:
            make_home(Path(self._engine.url.database))
        if revision == "head" and self.current() == self.head():
            return  # without the lock, which others may need
        with self._migrating() as connection:
            migrations.upgrade(connection, revision)

    def downgrade(self, revision: str) -> None:
        """Migrate the tables back to an older revision."""
        with self._migrating() as connection:
            migrations.downgrade(connection, revision)

    @contextmanager
    def _migrating(self) -> Iterator[Connection]:
        """Lock the catalogue; foreign keys are checked after SQLite has rewritten a table, not meanwhile."""
        with translate_errors(), self._writer.connect() as connection:
            pragma = pragmas(connection)
            pragma("foreign_keys=OFF")
            try:
                with connection.begin():
                    if self._postgres:  # rewriting a table takes the time it takes
                        connection.execute(text("SET LOCAL statement_timeout = 0"))
                    self._take_turn(connection)
                    yield connection
                    if pragma("foreign_key_check"):
                        raise Damaged("the catalogue has rows that refer to nothing")
            finally:
                pragma("foreign_keys=ON")

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with translate_errors(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with translate_errors(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            if self._postgres:
                session.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE}'"))
            yield session

    def _append(self, session: Session, ref: Ref, kind: Incidence, verb: str, reason: str, *, at: datetime) -> None:
        """Append to an event's history, in the transaction of the fact that it is about."""
        add_incident(session, ref, kind, verb, reason, at=at, actor=self.actor)

    def _take_turn(self, session: Session | Connection) -> None:
        """Wait until no other process adds events or alters tables; lasts to the end of the transaction."""
        if self._postgres:
            session.execute(select(func.pg_advisory_xact_lock(LOCK)))
