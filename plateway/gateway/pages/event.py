"""The page of one event (its images, copies and history), and the page of one image."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes, urlencode

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from plateway.bundle import Member
from plateway.errors import NotFound, PlatewayError, Rejected
from plateway.events import Ref
from plateway.gateway import auth, errors, events, images, pictures
from plateway.gateway.access import request_info
from plateway.gateway.images import CachedEvent, Gallery, ImageReport, RequestedImage
from plateway.gateway.pages import actions, rendering, timeline
from plateway.gateway.pictures import Grid
from plateway.gateway.probes import SECONDS
from plateway.gateway.tiles import Rendering
from plateway.ledger import Cursor, Ledger
from plateway.pipeline import Site
from plateway.pipeline.read import original_name

TIMES = 200  # of them on the slider
AROUND = 3  # events of the same plate shown before and after
SHEET = 300  # images on one contact sheet
WIDEST, TILES = 40, 2000  # columns, and cells, of a stitched grid
PREVIEW = 1024  # pixels
LINK_DAYS = 7  # for which a link to an image is valid

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageLinks:
    """One image on a page, with its links."""

    name: str
    size: int  # bytes
    sha256: str
    page: str
    thumbnail: str | None  # None: not a picture
    image: str
    picture: str  # rendered, or a tile of it


@dataclass(frozen=True)
class Sheet:
    """The images of an event, or those of them that fit on a page."""

    total: int  # files outside of the stitched view
    first: int  # number of the first one, from 1
    rows: tuple[tuple[ImageLinks | None, ...], ...]  # as stitched; empty: unknown, or a further page
    others: tuple[ImageLinks, ...]  # pictures in no row
    files: tuple[ImageLinks, ...]  # other files
    info: str | None  # dimensions of the tiles of the stitched view
    earlier: str | None
    later: str | None


def install(app: FastAPI, site: Site) -> None:
    """Add the pages of events to an application."""

    def event(id: str, request: Request, seen: Annotated[str, auth.READER], first: str = "1") -> Response:  # noqa: A002
        gallery: Gallery = request.app.state.gallery
        found, now = gallery.event(id, seen), site.catalog.now()
        ledger = found.ledger
        request_info(request.scope).key = ledger.event.key
        bench = events.start_bench(site, ledger, probes=app.state.probes)
        members, problem = _members(gallery, found)
        earlier, later = around(site, ledger, seen)
        return rendering.render(
            request,
            "event.html",
            ledger=ledger,
            event=ledger.event,
            state=ledger.state(now),
            sheet=sheet(ledger.ref, members, first=int(first) if first.isdecimal() and len(first) < 9 else 1),
            problem=problem,
            strip=[*earlier, ledger, *later],
            earlier=earlier[-1:],
            later=later[:1],
            places=timeline.places(ledger, present=events.presence(bench)),
            history=timeline.history(site, ledger, now),
            details=json.dumps(ledger.event.details, indent=2, ensure_ascii=False),
            actions=actions.offered(request, ledger),
            bundle=images.bundle_url(ledger.ref) if members else None,
            others=[
                one for one in site.catalog.revisions(ledger.event.id) if one.ref != ledger.ref and _within(one, seen)
            ],
        )

    def image(
        id: str,  # noqa: A002
        request: Request,
        seen: Annotated[str, auth.READER],
        rendering_: Annotated[Rendering, Depends(images.rendering)],
    ) -> Response:
        gallery: Gallery = request.app.state.gallery
        event, name = gallery.event(id, seen), _name(request)
        ledger = event.ledger
        request_info(request.scope).key = f"{ledger.event.key}/{name}"
        found = [_link_image(ledger.ref, member) for member in gallery.contents(event.reader, seconds=SECONDS).members]
        at = next((number for number, one in enumerate(found) if one.name == name), None)
        if at is None:
            raise NotFound("the event has no image of this name")
        about, reason = _describe(gallery, event, name) if found[at].thumbnail else (None, None)
        query = {key: value for key, value in asdict(rendering_).items() if value != getattr(Rendering(), key)}
        return rendering.render(
            request,
            "image.html",
            ledger=ledger,
            event=ledger.event,
            picture=found[at],
            preview=_preview_url(ledger.ref, name, query) if found[at].thumbnail else None,
            info_url=images.info_url(ledger.ref, name),
            query=urlencode(query),
            about=about,
            reason=reason,
            shown=about and _fill_levels(rendering_, about),
            ends=about and _ends(about, rendering_),
            bars=about and _bars(about.histogram.counts),
            rendered=lambda form: images.picture_url(ledger.ref, name, format=form, **query),
            link=_share(request, gallery, ledger.ref, name),
            link_days=LINK_DAYS,
            snippet=_snippet(str(request.base_url), ledger.ref, name),
            number=at + 1,
            total=len(found),
            earlier=found[at - 1] if at else None,
            later=found[at + 1] if at + 1 < len(found) else None,
        )

    def times(id: str, request: Request, seen: Annotated[str, auth.READER]) -> Response:  # noqa: A002
        gallery: Gallery = request.app.state.gallery
        ledger = gallery.event(id, seen).ledger
        found = [one for one in time_points(site, ledger, seen) if one.export is not None]
        start = min((one.event.timestamp for one in found), default=ledger.event.timestamp)
        told = [
            {
                "ref": str(one.ref),
                "at": f"{one.event.timestamp:%-d %b %Y %H:%M}",
                "since": format_age(one.event.timestamp - start),
            }
            for one in found
        ]
        return JSONResponse(told, headers={"Cache-Control": "private, no-cache"})

    def cover(id: str, request: Request, seen: Annotated[str, auth.READER]) -> Response:  # noqa: A002
        gallery: Gallery = request.app.state.gallery
        event = gallery.event(id, seen)
        members = gallery.contents(event.reader, seconds=SECONDS).members
        chosen = middle([_link_image(event.ledger.ref, member) for member in members])
        if chosen is None or chosen.thumbnail is None:
            raise NotFound("the event has no image to show")
        kept = {"Location": chosen.thumbnail, "Cache-Control": "private, max-age=3600", "Vary": "Cookie, Authorization"}
        return Response(None, 307, kept)

    rendering.add(app, "/events/{id}/images/{name:key}", image)
    rendering.add(app, "/events/{id}/cover", cover)
    rendering.add(app, "/events/{id}/times", times)
    rendering.add(app, "/events/{id}", event)


def around(site: Site, ledger: Ledger, seen: str) -> tuple[list[Ledger], list[Ledger]]:
    """Find the previous and next events of the same plate, kind and experiment, both in the order of time."""
    return _search_around(site, ledger, seen, limit=AROUND)


def time_points(site: Site, ledger: Ledger, seen: str) -> list[Ledger]:
    """Find the events of the same plate, kind and experiment, in the order of time: `TIMES` before and after."""
    earlier, later = _search_around(site, ledger, seen, limit=TIMES)
    return [*earlier, ledger, *later]


def _search_around(site: Site, ledger: Ledger, seen: str, *, limit: int) -> tuple[list[Ledger], list[Ledger]]:
    event, here = ledger.event, Cursor.after(ledger)
    alike = {"system": event.system, "kind": event.kind, "experiment": event.experiment, "plate": event.plate}
    asked: dict[str, Any] = {**alike, "prefix": seen, "limit": limit}
    earlier = site.catalog.search(after=here, newest=True, **asked)
    later = site.catalog.search(after=here, newest=False, **asked)
    return earlier[::-1], later


def format_age(age: timedelta) -> str:
    """Format the time since the first image of a plate."""
    return f"day {age.days}, {age.seconds // 3600} h"


def sheet(ref: Ref, members: Sequence[Member], *, first: int = 1) -> Sheet:
    """Arrange the files: as stitched if all tiles fit; the others in their order, pictures first, page by page."""
    every = [_link_image(ref, member) for member in members]
    found, files = [one for one in every if one.thumbnail], [one for one in every if not one.thumbnail]
    grid, info = pictures.grid(one.name for one in found), None
    rows: tuple[tuple[ImageLinks | None, ...], ...] = ()
    if grid is not None and grid.columns <= WIDEST and grid.rows * grid.columns <= TILES:
        placed = set(grid.cells.values())
        found = [one for one in found if one.name not in placed]
        tiles = [_link_image(ref, member, levels="event") for member in members if original_name(member) in placed]
        rows, info = _rows(grid, tiles), images.info_url(ref, tiles[len(tiles) // 2].name)
    listed = found + files
    at = (min(max(first, 1), max(len(listed), 1)) - 1) // SHEET * SHEET
    page = listed[at : at + SHEET]
    return Sheet(
        total=len(listed),
        first=at + 1,
        rows=rows if not at else (),
        others=tuple(one for one in page if one.thumbnail),
        files=tuple(one for one in page if not one.thumbnail),
        info=info,
        earlier=rendering.address(f"/events/{ref}", first=at - SHEET + 1) if at else None,
        later=rendering.address(f"/events/{ref}", first=at + SHEET + 1) if at + SHEET < len(listed) else None,
    )


def middle(found: list[ImageLinks]) -> ImageLinks | None:
    """Choose the image that represents an event: the one in the middle of the view, otherwise the first."""
    shown = [one for one in found if one.thumbnail]
    grid = pictures.grid([one.name for one in shown])
    name = grid.cells.get((grid.rows // 2, grid.columns // 2)) if grid else None
    return next((one for one in shown if one.name == name), shown[0] if shown else None)


def _name(request: Request) -> str:
    """Return the name from the path as it was sent; a name may not be UTF-8."""
    raw: bytes = request.scope["raw_path"]
    return unquote_to_bytes(raw.split(b"/", 4)[-1]).decode("utf-8", "surrogateescape")


def _rows(grid: Grid, found: list[ImageLinks]) -> tuple[tuple[ImageLinks | None, ...], ...]:
    named = {one.name: one for one in found}
    cells = {cell: named[name] for cell, name in grid.cells.items()}
    return tuple(tuple(cells.get((row, column)) for column in range(grid.columns)) for row in range(grid.rows))


def _members(gallery: Gallery, event: CachedEvent) -> tuple[Sequence[Member], str | None]:
    """Return the files of the bundle, or the reason why they cannot be read."""
    if event.ledger.export is None:
        return [], "The images are shown here after the export to the bucket."
    try:
        return gallery.contents(event.reader, seconds=SECONDS).members, None
    except PlatewayError as error:
        return [], f"The images cannot be read now: {errors.problem(error).message}"


def _describe(gallery: Gallery, event: CachedEvent, name: str) -> tuple[ImageReport | None, str | None]:
    """Describe an image, or return the reason why it has no picture; neither if that takes long."""
    image = RequestedImage(name, event.reader, gallery.contents(event.reader, seconds=SECONDS).names[name])
    try:
        return gallery.describe_soon(image), None
    except Rejected as error:
        return None, str(error)
    except PlatewayError as error:
        told = errors.problem(error)
        log.warning("%s: no picture of an image: %s", event.ledger.ref, error)
        return None, told.message


def _preview_url(ref: Ref, name: str, query: Mapping[str, Any]) -> str:
    """Return the address of what is shown without scripts."""
    return images.picture_url(ref, name, **query) if query else images.thumbnail_url(ref, name, size=PREVIEW)


def _fill_levels(how: Rendering, about: ImageReport) -> Rendering:
    dark, bright = about.levels
    return replace(how, low=dark if how.low is None else how.low, high=bright if how.high is None else how.high)


def _ends(about: ImageReport, how: Rendering) -> tuple[float, float]:
    """Return the ends of the sliders: all values that occur or are set."""
    told = [about.histogram.first, about.histogram.last, *about.levels]
    told += [one for one in (how.low, how.high) if one is not None]
    return min(told), max(told)


def _bars(counts: Sequence[int]) -> list[float]:
    """Return the heights of a histogram's bars, logarithmic, up to 64."""
    most = math.log1p(max(counts, default=0)) or 1
    return [64 * math.log1p(count) / most for count in counts]


def _snippet(base: str, ref: Ref, name: str) -> str:
    """Return lines of Python that read the image."""
    return (
        "from plateway.client import Plateway\n\n"
        f"lab = Plateway({base.rstrip('/')!r}, token=None)  # or your token\n"
        f"content = lab.images({str(ref)!r})[{name!r}]"
    )


def _share(request: Request, gallery: Gallery, ref: Ref, name: str) -> str:
    """Return a link to one image that needs no token for some days."""
    expires = datetime.now(UTC) + timedelta(days=LINK_DAYS)
    return str(request.base_url).rstrip("/") + gallery.image_links.sign(ref, name, expires=expires)


def _link_image(ref: Ref, member: Member, *, levels: images.Levels = "own") -> ImageLinks:
    name = original_name(member)
    return ImageLinks(
        name=name,
        size=member.size,
        sha256=member.sha256,
        page=f"/events/{ref}/images/{rendering.quoted(name)}",
        thumbnail=images.thumbnail_url(ref, name, levels=levels) if pictures.media(name) else None,
        image=images.image_url(ref, name),
        picture=images.picture_url(ref, name),
    )


def _within(ledger: Ledger, seen: str) -> bool:
    return ledger.event.key.startswith(seen)
