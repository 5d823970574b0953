"""Events over HTTP: search, and the whole ledger of one."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, Field

from plateway import pipeline, wire
from plateway.catalog import Cursor, Ref
from plateway.errors import NotFound
from plateway.events import LARGEST, Kind
from plateway.gateway.access import note
from plateway.gateway.lifecycle import Instant, Name, Seen
from plateway.pipeline import Line

READS = 8  # looks into bundles of one worker at a time: a bucket that is slow holds up nothing else
State = Literal["waiting", "ready", "exporting", "exported", "archived", "purged", "quarantined", "lost", "changed"]


class EventsAsked(BaseModel):
    """Which events are asked for."""

    system: Name | None = None
    experiment: Name | None = None
    plate: int | None = Field(None, ge=-LARGEST, le=LARGEST)
    state: State | None = None
    kind: Kind | None = None
    since: Instant | None = Field(None, description="of the images; this time is included")
    until: Instant | None = Field(None, description="of the images; this time is left out")
    text: Name | None = Field(None, description="how an id or an experiment begins")
    order: Literal["newest", "oldest"] = Field("newest", description="which come first")
    limit: int = Field(100, ge=1, le=500)
    cursor: Name | None = Field(None, description="the `next_cursor` of the page before")


def install(app: FastAPI, line: Line) -> None:
    """Give an application these routes."""
    told = Told(line)
    app.add_api_route("/api/1/events", told.list_events, tags=["events"])
    app.add_api_route("/api/1/events/{id}", told.read_event, tags=["events"], response_model=wire.EventDetail)


class Told:
    """Answers out of a line's catalogue."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._reads = CapacityLimiter(READS)

    def list_events(self, asked: Annotated[EventsAsked, Query()], seen: Seen) -> wire.Events:
        """List the events that fit, by the time of their images. Events that come meanwhile shift no page."""
        found = self._line.catalog.search(
            **asked.model_dump(exclude={"order", "limit", "cursor"}),
            prefix=seen,
            after=Cursor.parse(asked.cursor) if asked.cursor else None,
            limit=asked.limit + 1,
            newest=asked.order == "newest",
        )
        now, page = self._line.catalog.now(), found[: asked.limit]
        return wire.Events(
            events=[pipeline.status(self._line, ledger, now=now) for ledger in page],
            next_cursor=str(Cursor.after(page[-1])) if len(found) > len(page) else None,
        )

    async def read_event(self, id: str, request: Request, seen: Seen) -> Response:  # noqa: A002 - it is of the event
        """Tell all that is known of one event: ``<id>`` at its newest revision, or ``<id>-r2``."""
        detail = await to_thread.run_sync(self._detail, id, seen, limiter=self._reads)
        note(request.scope).key = detail.key
        told = json.dumps(detail.model_dump(mode="json"))  # escaped: any name of a file can be said
        return Response(told, media_type="application/json")

    def _detail(self, text: str, seen: str) -> wire.EventDetail:
        id_, revision = Ref.parse(text)
        ledger = self._line.catalog.ledger(Ref(id_, revision) if revision else self._line.catalog.newest(id_))
        if not ledger.event.key.startswith(seen):
            raise NotFound(f"{Ref(id_, revision or 1)}: no such event")
        return pipeline.detail(self._line, ledger)
