"""Images over HTTP: one out of a bundle by ranged reads, small pictures of it, and the bundle itself.

Names in URLs are looked up in the manifest and nowhere else. An image of up to 16 MiB is compared with its SHA-256
before any of it is sent, and read from another copy where it is other; of what is larger the last piece is held back
until all of it was compared, and the connection is broken if it was wrong. How bytes come out of copies is left to
``pipeline.copies``, how small pictures are made to ``pictures``, how they are kept to ``thumbs``.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import quote, unquote_to_bytes, urlencode
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel

from plateway.bundle import Member
from plateway.errors import Damaged, NotFound, Refused, Rejected, Unavailable
from plateway.events import Ref
from plateway.gateway import auth, pictures
from plateway.gateway.access import request_info
from plateway.gateway.errors import Problem
from plateway.gateway.http_conditions import (
    Span,
    consider,
    date,
    ranged,
)
from plateway.gateway.probes import SECONDS, Probes
from plateway.gateway.streaming import (
    MEDIA,
    SMALL,
    Rest,
    content,
    described,
)
from plateway.gateway.thumbnail_cache import Thumbs
from plateway.keys import tar_name
from plateway.ledger import Ledger
from plateway.pipeline import Site
from plateway.pipeline import read as copies
from plateway.records import Export
from plateway.store import Stat

SIZE = 160  # pixels along either side of a small picture, unless others are asked for
SIZES = (16, 1024)
LARGEST = 128 << 20  # bytes of a file that a small picture is made of
LEDGERS = 1000  # events whose ledgers are kept in mind
HOLDS = 1.0  # seconds for which that is good
MEMBERS = 100_000  # files whose place in bundles is kept in mind
DOUBTED = 1000  # large images that were wrong once and are kept in mind
READS = 16  # reads of one worker at a time
UNHURRIED = 20.0  # seconds in which tape may tell what is in a bundle
SAMPLES = 9  # images by which the levels of an event are chosen
SPREAD = (math.sqrt(5) - 1) / 2  # of the samples over the event: steps of this part of it meet no row twice
SAMPLED = 64 << 20  # bytes of them after which no more are read
DRAWN = 2  # small pictures that one worker makes at a time
TAR = "application/x-tar"
PICTURE = "image/png"
DAY = "private, max-age=86400"
ANSWERS = {
    206: "the part that was asked for",
    304: "the client has it already",
    307: "a link to read it from the bucket",
    404: "no such event or file, or no copy that can be read, and why",
    412: "it is not as the conditions say",
    415: "it is no picture, or too large for a small one",
    416: "it ends before",
    503: "no copy can be read now, or none is good",
}
Seen = Annotated[str, auth.READER]
Levels = Literal["own", "event"]  # of a small picture: chosen by its image, or by all images of the event together
T = TypeVar("T")


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


def thumbnail_url(ref: Ref, name: str, *, size: int = SIZE, levels: Levels = "own") -> str:
    """Say where a small picture of an image is."""
    asked = {"size": size} if size != SIZE else {}
    query = urlencode(asked | ({"levels": levels} if levels != "own" else {}))
    return f"{image_url(ref, name)}/thumbnail{f'?{query}' if query else ''}"


def bucket_of(export: Export) -> str:
    """Name the bucket of an export, as a place that is read."""
    return f"bucket {export.bucket} at {export.endpoint}"


def bundle_url(ref: Ref) -> str:
    """Say where the bundle of an event is."""
    return f"/api/1/events/{ref}/bundle"


@dataclass(frozen=True)
class Contents:
    """What is in a bundle."""

    members: tuple[Member, ...]
    names: Mapping[str, Member]  # by the name on the bench, or else in the bundle


@dataclass(frozen=True)
class FoundImage:
    """One image that was asked for, under one of its names."""

    asked: str
    ledger: Ledger
    export: Export
    member: Member

    @property
    def name(self) -> str:
        """What it was called on the bench."""
        return copies.home(self.member)

    @property
    def stat(self) -> Stat:
        """Describe it as if it were an object."""
        return Stat(self.name, self.member.size, self.member.sha256, self.export.uploaded_at)


class Recall(Generic[T]):
    """What was found lately, up to a weight, for so many seconds; threads share it."""

    def __init__(self, most: int, *, weigh: Callable[[T], int] = lambda _: 1, holds: float = math.inf) -> None:
        self._most, self._weigh, self._holds = most, weigh, holds
        self._known: OrderedDict[str, tuple[T, float]] = OrderedDict()
        self._weight = 0
        self._lock = Lock()

    def find(self, key: str) -> T | None:
        """Return what is known; None: nothing."""
        with self._lock:
            if key in self._known and time.monotonic() < self._known[key][1]:
                self._known.move_to_end(key)
                return self._known[key][0]
        return None

    def get(self, key: str, find: Callable[[], T]) -> T:
        """Remember, or find out: several threads may do so at a time."""
        if (known := self.find(key)) is not None:
            return known
        found = find()
        with self._lock:
            self._forget(key)
            self._known[key] = found, time.monotonic() + self._holds
            self._weight += self._weigh(found)
            while self._weight > self._most and len(self._known) > 1:
                self._forget(next(iter(self._known)))
        return found

    def _forget(self, key: str) -> None:
        if (old := self._known.pop(key, None)) is not None:
            self._weight -= self._weigh(old[0])


class Gallery:
    """The images of all events, as routes reach them: from a number of threads. What is in bundles is kept in mind."""

    def __init__(self, site: Site, home: Path, *, links: timedelta, probes: Probes) -> None:
        self.site, self.thumbs = site, Thumbs(home / "thumbs")
        self._links, self._spool, self._probes = links, home / "spool", probes
        self._reads, self._drawing, self._finding = map(CapacityLimiter, (READS, DRAWN, READS))
        self._ledgers = Recall[Ledger](LEDGERS, holds=HOLDS)
        self._contents = Recall[Contents](MEMBERS, weigh=lambda one: len(one.members))
        self._levels = Recall[pictures.Levels | None](LEDGERS)
        self._doubted: set[str] = set()
        self._spool.mkdir(parents=True, exist_ok=True)

    async def run(self, call: Callable[[], T]) -> T:
        """Read bytes of images, which may take long."""
        return await to_thread.run_sync(call, limiter=self._reads)

    async def look_up(self, call: Callable[[], T]) -> T:
        """Read something from the catalogue, which waits for no place that hangs."""
        return await to_thread.run_sync(call, limiter=self._finding)

    def ledger(self, text: str, seen: str) -> Ledger:
        """Look up an event that may be seen.

        Raises:
            NotFound: there is none, or it may not be seen.
        """
        id_, revision = Ref.parse(text)
        ledger = self._ledgers.get(f"{id_} {revision}", partial(self._ledger, id_, revision))
        if not ledger.event.key.startswith(seen):
            raise NotFound(f"{Ref(id_, revision or 1)}: no such event")
        return ledger

    def _ledger(self, id_: UUID, revision: int | None) -> Ledger:
        return self.site.catalog.ledger(Ref(id_, revision) if revision else self.site.catalog.newest(id_))

    def contents(self, ledger: Ledger, *, seconds: float = UNHURRIED) -> Contents:
        """Return what is in an event's bundle.

        A copy in the bucket is waited for `probes.SECONDS`, one on tape so many seconds. What comes later is kept.

        Raises:
            NotFound: there is no copy to read, and why.
            Unavailable: it is not known in time.
        """
        there, export = copies.there(self.site, ledger), ledger.export
        assert export is not None
        key = export.manifest_sha256
        if (known := self._contents.find(key)) is not None:
            return known
        place, most = (bucket_of(export), SECONDS) if "bucket" in there else ("tape", seconds)
        listed = partial(self._contents.get, key, partial(self._listed, ledger))
        return self._probes.read(place, listed, seconds=most)

    def _listed(self, ledger: Ledger) -> Contents:
        members = copies.contents(self.site, ledger).members
        assert ledger.export is not None
        if not all(_fits(one, ledger.export) for one in members):
            raise Damaged(f"{ledger.export.key}: its manifest tells of files that cannot be in it")
        return Contents(members, {one.name: one for one in members} | {copies.home(one): one for one in members})

    def find(self, text: str, seen: str, *names: str) -> FoundImage:
        """Look up an image by the first of these names that one has.

        Raises:
            NotFound: no such event, copy or image.
        """
        ledger = self.ledger(text, seen)
        known = self.contents(ledger).names
        for name in names:
            if name in known and ledger.export is not None:
                return FoundImage(name, ledger, ledger.export, known[name])
        raise NotFound(f"{ledger.ref}: there is no such image")

    def begin(self, found: FoundImage, span: Span | None) -> tuple[bytes, Rest]:
        """Read the first piece of an image, or all of a small one."""
        member = found.member
        if member.size > copies.HELD:
            return _first(
                copies.part(self.site, found.ledger, start=member.offset + span.start, length=span.length)
                if span
                else _behind(self._compared(found))
            )
        whole = b"".join(copies.image(self.site, found.ledger, member))
        asked = whole[span.start : span.start + span.length] if span else whole
        return (asked, Rest(iter(()))) if len(asked) <= SMALL else _first(self._spooled(asked))

    def _compared(self, found: FoundImage) -> Iterator[bytes]:
        """Read a large image; who comes again after it was wrong gets it from a copy that was looked at before."""
        sha256 = found.member.sha256
        try:
            yield from copies.image(self.site, found.ledger, found.member, doubted=sha256 in self._doubted)
        except Damaged:
            if len(self._doubted) >= DOUBTED:
                self._doubted.clear()
            self._doubted.add(sha256)
            raise

    def _spooled(self, whole: bytes) -> Iterator[bytes]:
        """Keep bytes in a file that has no name, so that no slow client keeps them in memory."""
        try:
            file = tempfile.TemporaryFile(dir=self._spool)  # noqa: SIM115  it is closed where it ends
            file.write(whole)
            file.seek(0)
        except OSError as error:
            raise Unavailable(f"{len(whole)} bytes cannot be held in a file: {error.strerror}") from error

        def pieces() -> Iterator[bytes]:
            with file:
                yield from iter(partial(file.read, SMALL), b"")

        return pieces()

    async def draw(self, found: FoundImage, size: int, levels: Levels = "own") -> bytes:
        """Make a small picture, or find the one that was made; a few at a time.

        Raises:
            Rejected: it is no picture.
        """
        name = _drawn(found, size, levels)
        kept = await self.look_up(partial(self.thumbs.find, name))
        if kept is not None:
            return kept
        return await to_thread.run_sync(partial(self._draw, found, size, levels, name), limiter=self._drawing)

    def _draw(self, found: FoundImage, size: int, levels: Levels, name: str) -> bytes:
        if found.member.size > LARGEST:
            raise Rejected(f"too large for a small picture: {found.member.size} bytes")
        whole = b"".join(copies.image(self.site, found.ledger, found.member))
        shared = self._shared(found.ledger, found.export) if levels == "event" else None
        try:
            picture = pictures.thumbnail(whole, size=size, levels=shared)
        except Rejected as error:
            self.thumbs.keep(name, error)
            raise
        self.thumbs.keep(name, picture)
        return picture

    def _shared(self, ledger: Ledger, export: Export) -> pictures.Levels | None:
        """Choose levels for all images of an event, by some of them; None: none of those is stretched."""
        return self._levels.get(export.manifest_sha256, partial(self._chosen, ledger))

    def _chosen(self, ledger: Ledger) -> pictures.Levels | None:
        found: list[pictures.Levels | None] = []
        left = SAMPLED
        for member in samples(self.contents(ledger).members):
            if (left := left - member.size) < 0 and found:
                break
            with suppress(Rejected, Damaged):  # the others tell
                found.append(pictures.levels(b"".join(copies.image(self.site, ledger, member))))
        between = [one for one in found if one is not None]
        return (min(dark for dark, _ in between), max(bright for _, bright in between)) if between else None

    def bundle(self, text: str, seen: str, *, link: bool) -> tuple[Ledger, Export, str | None]:
        """Look up a bundle, and make a link to it if that is wanted and can be had."""
        ledger = self.ledger(text, seen)
        there = copies.there(self.site, ledger)
        assert ledger.export is not None
        with suppress(Refused):  # the store makes no links
            if link and "bucket" in there:
                store = self.site.holding(ledger.export).store
                return ledger, ledger.export, store.sign(ledger.export.key, expires=self._links)
        return ledger, ledger.export, None

    def begin_bundle(self, ledger: Ledger, export: Export, span: Span | None) -> tuple[bytes, Rest]:
        """Read the first piece of a bundle."""
        if span:
            return _first(copies.part(self.site, ledger, start=span.start, length=span.length))
        return _first(_behind(copies.whole(self.site, ledger)))


async def list_images(id: str, request: Request, seen: Seen) -> Response:  # noqa: A002
    """List the files of an event with their sizes, SHA-256 and addresses."""
    gallery = _gallery(request)
    return Response(await gallery.look_up(partial(_listing, gallery, id, seen)), media_type="application/json")


async def get_image(id: str, name: str, request: Request, seen: Seen) -> Response:  # noqa: A002
    """Read one image, or one range of it, out of whichever copy of the bundle has it."""
    gallery = _gallery(request)
    return await _image(gallery, request, await gallery.look_up(partial(gallery.find, id, seen, _name(request))))


async def get_thumbnail(
    id: str,  # noqa: A002
    name: str,
    request: Request,
    seen: Seen,
    *,
    size: Annotated[int, Query(ge=SIZES[0], le=SIZES[1], description="pixels along the longer side")] = SIZE,
    levels: Annotated[Levels, Query(description="event: tiles of a stitched view are stretched alike")] = "own",
) -> Response:
    """Make a small picture of an image, as PNG; 16-bit grey is stretched between its percentiles, or the event's."""
    gallery, asked = _gallery(request), _name(request)
    found = await gallery.look_up(partial(gallery.find, id, seen, asked, asked.removesuffix("/thumbnail")))
    if found.asked == asked:  # a file is called so
        return await _image(gallery, request, found)
    stat = replace(found.stat, etag=_drawn(found, size, levels))
    consider(request.headers, stat, method=request.method)
    try:
        picture = await gallery.draw(found, size, levels)
    except Rejected as error:
        raise Problem(415, str(error)) from error
    headers = {"ETag": f'"{stat.etag}"', "Last-Modified": date(stat.modified), "Cache-Control": DAY}
    return Response(picture, 200, headers, PICTURE)


async def get_bundle(id: str, request: Request, seen: Seen) -> Response:  # noqa: A002
    """Fetch the whole bundle: by a link into the bucket where there can be one, or else from here."""
    gallery = _gallery(request)
    wanted = partial(gallery.bundle, id, seen, link=request.method == "GET")
    ledger, export, link = await gallery.look_up(wanted)
    request_info(request.scope).key = export.key
    if link is not None:
        return Response(None, 307, {"Location": link, "Cache-Control": "no-store"})
    stat = Stat(export.key, export.size, export.sha256, export.uploaded_at)
    consider(request.headers, stat, method=request.method)
    if request.method == "HEAD":
        return _head(tar_name(export.key), stat, TAR)
    span = ranged(request.headers, stat)
    first, rest = await gallery.run(partial(gallery.begin_bundle, ledger, export, span))
    return content(tar_name(export.key), stat, span=span, first=first, rest=rest, run=gallery.run, media=TAR)


def samples(members: Sequence[Member]) -> list[Member]:
    """Choose some pictures of all over an event."""
    found = [one for one in members if pictures.media(copies.home(one)) and one.size <= LARGEST]
    chosen = dict.fromkeys(int(len(found) * (number * SPREAD % 1)) for number in range(SAMPLES))
    return [found[number] for number in chosen] if found else []


def install(app: FastAPI, site: Site) -> None:
    """Give an application these routes."""
    parts = app.state.parts
    app.state.gallery = Gallery(site, parts.place, links=parts.links, probes=app.state.probes)
    event = "/api/1/events/{id}"
    for method in ("GET", "HEAD"):
        told: dict[str, Any] = {"methods": [method], "response_class": Response, "tags": ["images"]}
        app.add_api_route(f"{event}/images", list_images, **told, response_model=Images, responses=_answers(404, 503))
        drawn, read = _answers(304, 404, 412, 415, 503), _answers(206, 304, 404, 412, 416, 503)
        app.add_api_route(f"{event}/images/{{name:key}}/thumbnail", get_thumbnail, **told, responses=drawn)
        app.add_api_route(f"{event}/images/{{name:key}}", get_image, **told, responses=read)
        app.add_api_route(f"{event}/bundle", get_bundle, **told, responses=read | _answers(307))


def _answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": ANSWERS[status]} for status in statuses}


async def _image(gallery: Gallery, request: Request, found: FoundImage) -> Response:
    request_info(request.scope).key = f"{found.export.key}/{found.name}"
    stat, media = found.stat, pictures.media(found.name) or MEDIA
    consider(request.headers, stat, method=request.method)
    if request.method == "HEAD":
        return _head(found.name, stat, media)
    span = ranged(request.headers, stat)
    first, rest = await gallery.run(partial(gallery.begin, found, span))
    return content(found.name, stat, span=span, first=first, rest=rest, run=gallery.run, media=media)


def _head(name: str, stat: Stat, media: str) -> Response:
    return Response(None, 200, {**described(name, stat), "Content-Length": str(stat.size)}, media)


def _listing(gallery: Gallery, text: str, seen: str) -> bytes:
    ledger = gallery.ledger(text, seen)
    ref = ledger.ref
    told = [
        {
            "name": (name := copies.home(member)),
            "size": member.size,
            "sha256": member.sha256,
            "url": image_url(ref, name),
            "thumbnail": thumbnail_url(ref, name) if pictures.media(name) else None,
        }
        for member in gallery.contents(ledger).members
    ]
    return json.dumps({"id": str(ref.id), "revision": ref.revision, "images": told}).encode()  # any name can be said


def _gallery(request: Request) -> Gallery:
    gallery: Gallery = request.app.state.gallery
    return gallery


def _name(request: Request) -> str:
    """Read the name out of the path as it was sent, percent-decoding it exactly once."""
    raw: bytes = request.scope["raw_path"]
    return unquote_to_bytes(raw.split(b"/", 6)[-1]).decode("utf-8", "surrogateescape")


def _drawn(found: FoundImage, size: int, levels: Levels) -> str:
    """Name a small picture by all that it follows from."""
    event = f"-{found.export.manifest_sha256}" if levels == "event" else ""
    return f"{found.member.sha256}-{size}-{pictures.STYLE}{event}"


def _fits(member: Member, export: Export) -> bool:
    """Tell whether a file may be as the manifest says: whoever wrote the bundle may have said anything."""
    known = len(member.sha256) == 64 and set(member.sha256) <= set("0123456789abcdef")
    return known and member.offset >= 0 and 0 <= member.size <= export.manifest_offset - member.offset


def _first(pieces: Iterator[bytes]) -> tuple[bytes, Rest]:
    return next(pieces, b""), Rest(pieces)


def _behind(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Hold each piece back until the next one is there: the last one comes only if all was well."""
    held = b""
    for piece in pieces:
        if held:
            yield held
        held = piece
    yield held
