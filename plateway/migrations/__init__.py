"""The history of the tables: Alembic's revisions, shipped with the package and run from ``Catalog.upgrade``.

Whoever calls holds the lock and the transaction; nothing here begins or commits.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy import Connection

from plateway.errors import Misconfigured

if TYPE_CHECKING:
    from alembic.config import Config  # a third of what a command takes to start: loaded when tables are altered

VERSIONS = Path(__file__).parent / "versions"  # r<revision>_<what>.py
MARK = sa.table("alembic_version", sa.column("version_num"))
TURN = Lock()  # Alembic keeps the migration at work in globals of its modules


def revisions() -> list[str]:
    """Name the revisions that this version knows, in order."""
    return sorted(path.name[1:].partition("_")[0] for path in VERSIONS.glob("r*_*.py"))


def head() -> str:
    """Name the newest revision that this version knows."""
    return revisions()[-1]


def current(connection: Connection) -> str:
    """Name the revision of a database; empty when it has no tables yet."""
    if not sa.inspect(connection).has_table(MARK.name):
        return ""
    return connection.scalar(sa.select(MARK.c.version_num)) or ""


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Upgrade a database to a revision; one that is there already stays as it is.

    Raises:
        Misconfigured: the database is newer than this version.
    """
    from alembic import command  # noqa: PLC0415  see above

    known(connection)
    with TURN:
        command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Downgrade a database to an older revision, or to ``base``: no tables at all."""
    from alembic import command  # noqa: PLC0415  see above

    known(connection)
    with TURN:
        command.downgrade(_config(connection), revision)


def known(connection: Connection) -> None:
    """Refuse a database that a newer version has written.

    Raises:
        Misconfigured: names its revision and ours.
    """
    revision = current(connection)
    if revision not in {"", *revisions()}:
        raise Misconfigured(
            f"the catalogue is at revision {revision!r}, newer than this version, which knows up to {head()!r}: "
            "install the version that wrote it, or a newer one"
        )


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415  see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
