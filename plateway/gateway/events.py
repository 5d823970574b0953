"""Events over HTTP: search, and the ledger of one event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, Field

from plateway import pipeline, wire
from plateway.errors import Unavailable
from plateway.events import LARGEST, Kind, Ref
from plateway.gateway.access import request_info
from plateway.gateway.dlm_api import Instant, Name, Seen
from plateway.gateway.images import format_bucket
from plateway.gateway.probes import Probe, Probes
from plateway.instruments import Instrument
from plateway.ledger import Cursor, Ledger
from plateway.pipeline import Site
from plateway.store import open_store

READS = 8  # concurrent reads of manifests of one worker: a slow bucket does not delay other requests
State = Literal["waiting", "ready", "exporting", "exported", "archived", "purged", "quarantined", "lost", "changed"]


class EventsAsked(BaseModel):
    """Query parameters of a search."""

    system: Name | None = None
    experiment: Name | None = None
    plate: int | None = Field(None, ge=-LARGEST, le=LARGEST)
    state: State | None = None
    kind: Kind | None = None
    since: Instant | None = Field(None, description="of the images; inclusive")
    until: Instant | None = Field(None, description="of the images; exclusive")
    text: Name | None = Field(None, description="beginning of an id or an experiment")
    order: Literal["newest", "oldest"] = Field("newest", description="which come first")
    limit: int = Field(100, ge=1, le=500)
    cursor: Name | None = Field(None, description="`next_cursor` of the previous page")


def install(app: FastAPI, site: Site) -> None:
    """Add these routes to an application."""
    told = EventRoutes(site, app.state.probes)
    app.add_api_route("/api/1/events", told.list_events, tags=["events"])
    app.add_api_route("/api/1/events/{id}", told.read_event, tags=["events"], response_model=wire.EventDetail)


class EventRoutes:
    """Responses from the catalogue of a site."""

    def __init__(self, site: Site, probes: Probes) -> None:
        self._site, self._probes = site, probes
        self._reads = CapacityLimiter(READS)

    def list_events(self, asked: Annotated[EventsAsked, Query()], seen: Seen) -> wire.Events:
        """List matching events by the time of their images. New events do not shift the pages."""
        found = self._site.catalog.search(
            **asked.model_dump(exclude={"order", "limit", "cursor"}),
            prefix=seen,
            after=Cursor.parse(asked.cursor) if asked.cursor else None,
            limit=asked.limit + 1,
            newest=asked.order == "newest",
        )
        now, page = self._site.catalog.now(), found[: asked.limit]
        return wire.Events(
            events=statuses(self._site, page, now=now, probes=self._probes),
            next_cursor=str(Cursor.after(page[-1])) if len(found) > len(page) else None,
        )

    async def read_event(self, id: str, request: Request, seen: Seen) -> Response:  # noqa: A002 - it is of the event
        """Return the ledger of one event: ``<id>`` at its newest revision, or ``<id>-r2``."""
        detail = await to_thread.run_sync(self._detail, id, seen, limiter=self._reads)
        request_info(request.scope).key = detail.key
        body = json.dumps(detail.model_dump(mode="json"))  # ASCII: any file name fits
        return Response(body, media_type="application/json")

    def _detail(self, text: str, seen: str) -> wire.EventDetail:
        ledger = self._site.catalog.ledger(self._site.catalog.resolve(text, prefix=seen))
        return detail(self._site, ledger, probes=self._probes)


def statuses(site: Site, ledgers: Sequence[Ledger], *, now: datetime, probes: Probes) -> list[wire.EventStatus]:
    """Report the state of events; all instruments' disks are read concurrently, each for a bounded time."""
    asked: dict[str, list[Ledger]] = {}
    for one in ledgers:
        asked.setdefault(one.event.system, []).append(one)

    def read(those: Sequence[Ledger]) -> dict[Ref, wire.EventStatus]:
        return {one.ref: pipeline.status(site, one, now=now) for one in those}

    reads = [(those, probes.start(f"bench {system}", partial(read, those))) for system, those in asked.items()]
    found: dict[Ref, wire.EventStatus] = {}
    for those, probe in reads:
        try:
            found |= probe.result()
        except Unavailable:
            told = [pipeline.status(_offline(site), one, now=now) for one in those]
            unseen = [one.model_copy(update={"raw_present": None}) for one in told]
            found |= dict(zip((one.ref for one in those), unseen, strict=True))
    return [found[one.ref] for one in ledgers]


def detail(site: Site, ledger: Ledger, *, probes: Probes) -> wire.EventDetail:
    """Report the ledger of one event; bucket and bench are read concurrently, each for a bounded time."""
    bench = start_bench(site, ledger, probes=probes)
    place = format_bucket(ledger.export) if ledger.export else "catalogue"
    whole = probes.start(place, partial(pipeline.detail, replace(site, instrument=_no_instrument), ledger))
    try:
        told = whole.result()
    except Unavailable as error:
        told = pipeline.detail(_offline(site), ledger)
        if ledger.export is not None:
            told = told.model_copy(update={"manifest_error": str(error)})
    return told.model_copy(update={"raw_present": presence(bench)})


def start_bench(site: Site, ledger: Ledger, *, probes: Probes) -> Probe[wire.EventStatus]:
    """Start to check whether the raw images of an event are on the instrument's disk."""
    return probes.start(f"bench {ledger.event.system}", partial(pipeline.status, site, ledger))


def presence(bench: Probe[wire.EventStatus]) -> bool | None:
    """Return whether they are there; None: the disk does not answer."""
    try:
        return bench.result().raw_present
    except Unavailable:
        return None


def _offline(site: Site) -> Site:
    """Return a site that reads the catalogue and nothing else."""
    nowhere = open_store("memory://")
    return replace(site, store=nowhere, endpoint=None, own=None, others={}, archive=None, instrument=_no_instrument)


def _no_instrument(system: str) -> Instrument:
    raise Unavailable(f"the disk of {system} is not read")
