"""The history of the tables: Alembic's revisions, shipped with the package and run from ``Catalog.upgrade``.

Whoever calls holds the lock and the transaction; nothing here begins or commits.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from plateway.errors import Misconfigured

TURN = Lock()  # Alembic keeps the migration at work in globals of its modules


def head() -> str:
    """Name the newest revision that this version knows."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def current(connection: Connection) -> str:
    """Name the revision of a database; empty when it has no tables yet."""
    return MigrationContext.configure(connection).get_current_revision() or ""


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring a database up to a revision; one that is there already stays as it is.

    Raises:
        Misconfigured: the database is newer than this version.
    """
    known(connection)
    with TURN:
        command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Take a database back to an older revision, or to ``base``: no tables at all."""
    known(connection)
    with TURN:
        command.downgrade(_config(connection), revision)


def known(connection: Connection) -> None:
    """Refuse a database that a newer version has written.

    Raises:
        Misconfigured: names its revision and ours.
    """
    revision = current(connection)
    try:
        ScriptDirectory.from_config(_config()).get_revision(revision or "base")
    except CommandError as error:
        raise Misconfigured(
            f"the catalogue is at revision {revision!r}, newer than this version, which knows up to {head()!r}: "
            "install the version that wrote it, or a newer one"
        ) from error


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
