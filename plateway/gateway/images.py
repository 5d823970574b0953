"""Images over HTTP: one out of a bundle by ranged reads, small pictures of it, and the bundle itself."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from plateway.catalog import Ref
from plateway.gateway import auth
from plateway.gateway.answers import Problem
from plateway.pipeline import Line

SIZE = 160  # pixels along either side of a thumbnail, unless others are asked for
SIZES = (16, 1024)


class Image(BaseModel):
    """One file of an event."""

    name: str  # as on the bench
    size: int  # bytes
    sha256: str
    url: str
    thumbnail: str | None  # None: by its name it is no picture


class Images(BaseModel):
    """The files of an event, in the order of their names' bytes."""

    id: str
    revision: int
    images: list[Image]


def image_url(ref: Ref, name: str) -> str:
    """Say where an image is, from the root of the gateway on."""
    return f"/api/1/events/{ref}/images/{quote(name.encode('utf-8', 'surrogateescape'))}"


def thumbnail_url(ref: Ref, name: str, *, size: int = SIZE) -> str:
    """Say where a small picture of an image is."""
    return f"{image_url(ref, name)}/thumbnail{f'?size={size}' if size != SIZE else ''}"


def bundle_url(ref: Ref) -> str:
    """Say where the bundle of an event is."""
    return f"/api/1/events/{ref}/bundle"


async def list_images(id: str, request: Request, seen: Annotated[str, auth.READER]) -> Response:  # noqa: A002
    """List the files of an event."""
    raise Problem(501, "not yet")


async def get_image(id: str, name: str, request: Request, seen: Annotated[str, auth.READER]) -> Response:  # noqa: A002
    """Read one image."""
    raise Problem(501, "not yet")


async def get_thumbnail(
    id: str,  # noqa: A002
    name: str,
    request: Request,
    seen: Annotated[str, auth.READER],
    size: int = SIZE,
) -> Response:
    """Make a small picture of an image."""
    raise Problem(501, "not yet")


async def get_bundle(id: str, request: Request, seen: Annotated[str, auth.READER]) -> Response:  # noqa: A002
    """Fetch the whole bundle."""
    raise Problem(501, "not yet")


def install(app: FastAPI, line: Line) -> None:
    """Give an application these routes."""
    told: dict[str, Any] = {"methods": ["GET", "HEAD"], "response_class": Response, "tags": ["images"]}
    one = "/api/1/events/{id}"
    app.add_api_route(f"{one}/images", list_images, **told, response_model=Images)
    app.add_api_route(f"{one}/images/{{name:key}}/thumbnail", get_thumbnail, **told)
    app.add_api_route(f"{one}/images/{{name:key}}", get_image, **told)
    app.add_api_route(f"{one}/bundle", get_bundle, **told)
