"""The API of DLM v2: exports with download links, archives, and daily counts; and the list of exports of DLM v1.

Names, defaults, limits and shapes are DLM's. Differences: pages have an order, a number of rows that is not valid is
422, and exports that were lost or have expired are not listed.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from fastapi import FastAPI, HTTPException, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field

from plateway import wire
from plateway.errors import Misconfigured, Refused
from plateway.events import LARGEST, Kind
from plateway.gateway import auth
from plateway.ledger import ArchiveRow
from plateway.pipeline import Site
from plateway.records import Export

DAY = timedelta(days=1)
DAYS = 7


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is out of range") from None


Seen = Annotated[str, auth.READER]
Instant = Annotated[AwareDatetime, AfterValidator(_utc)]
Name = Annotated[str, Field(max_length=1024, pattern=r"^[^\x00]*$")]


class ExportsAsked(BaseModel):
    """Query parameters of a listing of exports."""

    start: Instant = Field(default_factory=lambda: datetime.now(UTC) - DAY)
    end: Instant = Field(default_factory=lambda: datetime.now(UTC))
    event_type: Kind = "stitch"
    limit: int = Field(500, ge=0, le=500)
    offset: int = Field(0, ge=0, le=LARGEST)


def install(app: FastAPI, site: Site) -> None:
    """Add these routes to an application."""
    lifecycle = DlmRoutes(site, links=app.state.parts.links)
    first = app.state.parts.dlm_v1
    app.add_api_route(
        "/api/1/exports", lifecycle.list_exports_v1 if first else lifecycle.list_exports, tags=["lifecycle"]
    )
    app.add_api_route("/exports", lifecycle.list_exports_v1, tags=["lifecycle"])
    app.add_api_route("/api/1/archives", lifecycle.list_archives, tags=["lifecycle"])
    app.add_api_route("/api/1/archives/{id}", lifecycle.read_archive, tags=["lifecycle"])
    app.add_api_route("/api/1/daily-stats", lifecycle.list_daily_stats, tags=["lifecycle"])


class DlmRoutes:
    """Responses from the catalogue of a site."""

    def __init__(self, site: Site, *, links: timedelta) -> None:
        self._site, self._links = site, links

    def list_exports(self, asked: Annotated[ExportsAsked, Query()], seen: Seen) -> wire.Exports:
        """List the exports that arrived between two times, by time; default: the last 24 hours."""
        count, found = self._site.catalog.exports_page(
            since=asked.start,
            until=asked.end,
            kind=asked.event_type,
            prefix=seen,
            limit=asked.limit,
            offset=asked.offset,
        )
        data = [
            wire.Exported(
                ref_id=event.id,
                experiment_id=event.experiment,
                timestamp=event.timestamp,
                type=event.kind,
                url=self._link(export),
                uploaded_at=export.uploaded_at,
            )
            for event, export in found
        ]
        return wire.Exports(count=count, data=data)

    def list_exports_v1(self, seen: Seen) -> list[wire.ExportedV1]:
        """List the exports of the last 24 hours, by time, as DLM v1 does."""
        now = datetime.now(UTC)
        _, found = self._site.catalog.exports_page(since=now - DAY, until=now, prefix=seen, limit=LARGEST, offset=0)
        return [
            wire.ExportedV1(
                id=uuid5(NAMESPACE_URL, export.key),
                ref_id=event.id,
                experiment_id=event.experiment,
                type=event.kind,
                url=self._link(export),
                uploaded_at=export.uploaded_at,
            )
            for event, export in found
        ]

    def list_archives(
        self,
        seen: Seen,
        experiment_id: Name | None = None,
        offset: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
        limit: Annotated[int, Query(ge=0, le=100)] = 100,
    ) -> wire.Archives:
        """List the archives on tape, the first reported first."""
        count, found = self._site.catalog.archives_page(
            experiment=experiment_id or None, prefix=seen, limit=limit, offset=offset
        )
        data = [
            wire.Archived(**_archive_fields(row), url=f"/api/1/archives/{row.id}", member_count=row.members)
            for row in found
        ]
        return wire.Archives(count=count, data=data)

    def read_archive(self, id: UUID, seen: Seen) -> wire.ArchiveDetail:  # noqa: A002 - it is what DLM calls it
        """List the events in an archive."""
        found = self._site.catalog.archive_members(id, prefix=seen)
        if found is None:
            raise HTTPException(404, "item not found")
        row, members = found
        told = [
            wire.ArchiveMember(
                member_key=one.member,
                ref_id=one.ref.id,
                timestamp=one.timestamp,
                checksum=one.sha256,
                size=one.size,
            )
            for one in members
        ]
        return wire.ArchiveDetail(**_archive_fields(row), members=told)

    def list_daily_stats(self, seen: Seen) -> list[wire.DailyStats]:
        """Count the events of the last seven days (UTC), by day of their images and by state, newest first."""
        return [
            wire.DailyStats(date=one.date, event_count=one.events, export_count=one.exports, archive_count=one.archives)
            for one in self._site.catalog.daily(days=DAYS, prefix=seen)
        ]

    def _link(self, export: Export) -> str | None:
        """Return an expiring link to a bundle, or None if its bucket is not configured or makes no links."""
        with suppress(Misconfigured, Refused):
            return self._site.reading(export).store.sign(export.key, expires=self._links)
        return None


def _archive_fields(row: ArchiveRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "path": row.path,
        "type": row.kind,
        "experiment_id": row.experiment,
        "created_at": row.created_at,
    }
