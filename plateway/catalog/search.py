"""What people and their programs look for: exports, archives, events that fit, and figures at a glance.

Every question takes ``prefix``: it is about events only whose key begins with it, compared by bytes.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from plateway.catalog.database import Database
from plateway.catalog.values import ArchiveRow, Cursor, DailyRow, Ledger, Member, Overview
from plateway.records import Event, Export


class Search(Database):
    """Questions about many events, answered a page at a time."""

    def exports_page(
        self, *, since: datetime, until: datetime, kind: str | None = None, prefix: str = "", limit: int, offset: int
    ) -> tuple[int, list[tuple[Event, Export]]]:
        """List uploads that arrived between two times, both left out, and are good and not expired; count all such.

        By time of arrival, id and revision.
        """
        raise NotImplementedError

    def archives_page(
        self, *, experiment: str | None = None, prefix: str = "", limit: int, offset: int
    ) -> tuple[int, list[ArchiveRow]]:
        """List archives by the time when tape told of them first, and path; count all such."""
        raise NotImplementedError

    def archive_members(self, id: UUID, *, prefix: str = "") -> tuple[ArchiveRow, list[Member]] | None:  # noqa: A002
        """Fetch one archive with its events, by their time; None where there is none."""
        raise NotImplementedError

    def daily(self, *, days: int = 7, prefix: str = "") -> list[DailyRow]:
        """Count what became of the events of the last days (UTC) that images are of, newest first."""
        raise NotImplementedError

    def search(
        self,
        *,
        system: str | None = None,
        experiment: str | None = None,
        plate: int | None = None,
        state: str | None = None,
        kind: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        text: str | None = None,
        prefix: str = "",
        after: Cursor | None = None,
        limit: int,
        newest: bool = True,
    ) -> list[Ledger]:
        """Fetch the events that fit, by (timestamp, id, revision), with ``since`` <= timestamp < ``until``.

        ``text``: an id, or how an id or an experiment begins. ``newest``: the last one first. To page, pass
        ``Cursor.after`` the last one of a page: events that come meanwhile shift nothing.
        """
        raise NotImplementedError

    def overview(self, *, prefix: str = "", days: int = 30, now: datetime) -> Overview:
        """Tell how all systems stand, and how many events each had on the last days (UTC), that of ``now`` included.

        Announcements in quarantine belong to no key: only who may see all is told of them.
        """
        raise NotImplementedError
