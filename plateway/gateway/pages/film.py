"""The times of one plate as an animated picture: WebP, or GIF for programs that know nothing else."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import FastAPI, Query, Request, Response
from PIL import Image, ImageDraw

from plateway.errors import NotFound, PlatewayError
from plateway.gateway import auth, pictures
from plateway.gateway.access import request_info
from plateway.gateway.downloads import event_name
from plateway.gateway.images import Gallery, RequestedImage
from plateway.gateway.pages import event as event_page
from plateway.gateway.pages import rendering
from plateway.gateway.probes import SECONDS
from plateway.ledger import Ledger
from plateway.pipeline import Site
from plateway.pipeline.read import original_name

FRAMES = 48  # of one film; of more times, as many are chosen evenly
TILES = 1500  # thumbnails of one film
SIDE = 480  # pixels along the longer side of a frame
SMALLEST, LARGEST = 24, 160  # pixels of a tile
CAPTION = 18  # pixels below the picture


def install(app: FastAPI, site: Site) -> None:
    """Add the film of a plate to an application."""

    async def film(
        id: str,  # noqa: A002
        form: str,
        request: Request,
        seen: Annotated[str, auth.READER],
        seconds: Annotated[float, Query(ge=0.05, le=5, description="for each time")] = 0.4,
    ) -> Response:
        gallery: Gallery = request.app.state.gallery
        make = partial(make_film, site, request, gallery, id, seen, form=form, seconds=seconds)
        return await to_thread.run_sync(make, limiter=gallery.drawing)  # its turn is among those of other pictures

    rendering.add(app, "/events/{id}/film.{form}", film)


def make_film(
    site: Site,
    request: Request,
    gallery: Gallery,
    id: str,  # noqa: A002
    seen: str,
    *,
    form: str,
    seconds: float,
) -> Response:
    """Draw and encode the times of the plate of an event.

    Raises:
        NotFound: there is no such event or form, or there are fewer than two times with pictures.
    """
    ledger = gallery.event(id, seen).ledger
    request_info(request.scope).key = ledger.event.key
    if form not in {"webp", "gif"}:
        raise NotFound("a film is a WebP or a GIF")
    times = [one for one in event_page.time_points(site, ledger, seen) if one.export is not None]
    frames = [frame for one in choose_evenly(times, FRAMES) if (frame := draw_frame(gallery, one, times, seen))]
    if len(frames) < 2:
        raise NotFound("a film needs two times of a plate with pictures")
    name = f"{event_name(ledger.event).rpartition('_')[0]}.{form}"
    kept = {"Content-Disposition": f'inline; filename="{name}"', "Cache-Control": "private, max-age=300"}
    return Response(encode(frames, form=form, seconds=seconds), 200, kept, f"image/{form}")


def choose_evenly(times: Sequence[Ledger], most: int) -> list[Ledger]:
    """Choose as many time points as a film may have, from the first to the last."""
    if len(times) <= most:
        return list(times)
    return [times[round(number * (len(times) - 1) / (most - 1))] for number in range(most)]


def draw_frame(gallery: Gallery, ledger: Ledger, times: Sequence[Ledger], seen: str) -> Image.Image | None:
    """Draw one time: the stitched view, or the image that represents the event; None if it cannot be read now."""
    try:
        reader = gallery.event(str(ledger.ref), seen).reader
        members = {original_name(one): one for one in gallery.contents(reader, seconds=SECONDS).members}
    except PlatewayError:
        return None
    found = pictures.grid(members)
    most = TILES // min(len(times), FRAMES)
    if found is None or found.rows * found.columns > most:
        name = next(iter(sorted(one for one in members if pictures.media(one))), None)
        found = pictures.Grid(1, 1, {(0, 0): name}) if name else None
    if found is None:
        return None
    side = SIDE if len(found.cells) == 1 else min(LARGEST, max(SMALLEST, SIDE // max(found.rows, found.columns)))
    frame = Image.new("RGB", (SIDE, SIDE + CAPTION), (11, 18, 16))
    left, top = (SIDE - side * found.columns) // 2, (SIDE - side * found.rows) // 2
    for (row, column), name in found.cells.items():
        image = RequestedImage(name, reader, members[name])
        try:
            content = gallery.draw_now(image, side, "event" if len(found.cells) > 1 else "own")
        except PlatewayError:
            continue  # a tile that cannot be drawn stays dark
        with Image.open(io.BytesIO(content)) as tile:
            frame.paste(tile.convert("RGB"), (left + column * side, top + row * side))
    age = event_page.format_age(ledger.event.timestamp - times[0].event.timestamp)
    caption = f"{ledger.event.timestamp:%Y-%m-%d %H:%M} UTC   {age}"
    ImageDraw.Draw(frame).text((4, SIDE + 3), caption, fill=(230, 237, 234))
    return frame


def encode(frames: Sequence[Image.Image], *, form: str, seconds: float) -> bytes:
    """Encode frames as an endless animation."""
    buffer = io.BytesIO()
    first, rest = frames[0], list(frames[1:])
    options = {"quality": 80, "method": 2} if form == "webp" else {}
    first.save(
        buffer, form.upper(), save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0, **options
    )
    return buffer.getvalue()
