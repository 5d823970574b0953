"""Images over HTTP: single images by ranged reads of a bundle, their thumbnails, and the bundle itself.

Names in URLs are compared with the names in the manifest and are never used as paths. The SHA-256 of an image of up to
16 MiB is compared before any of it is sent; if it differs, another copy is read. Of a larger image the last piece is
sent only after the comparison, and the connection is closed if the checksum differs. ``pipeline.read`` reads bytes
from copies, ``pictures`` makes thumbnails, ``thumbnail_cache`` keeps them.
"""

from __future__ import annotations

import fcntl
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote, unquote_to_bytes, urlencode
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from cachetools import LRUCache, TTLCache, cached
from fastapi import Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel

from plateway.bundle import Member
from plateway.errors import Damaged, NotFound, Refused, Rejected, Unavailable
from plateway.events import Ref
from plateway.gateway import auth, decoders, pictures, tiles
from plateway.gateway.access import request_info
from plateway.gateway.errors import Problem
from plateway.gateway.http_conditions import Span, check_conditions, format_date, parse_range
from plateway.gateway.image_links import LinkSigner
from plateway.gateway.probes import SECONDS, Probes
from plateway.gateway.streaming import MEDIA, SMALL, Rest, describe, respond
from plateway.gateway.thumbnail_cache import Thumbs
from plateway.gateway.tiles import OpenedImage, Rendering
from plateway.keys import tar_name
from plateway.ledger import Ledger
from plateway.pipeline import Site
from plateway.pipeline.read import HELD, BundleReader, original_name
from plateway.records import Export

SIZE = 160  # default length of a thumbnail's longer side, in pixels
SIZES = (16, 1024)
LARGEST = 128 << 20  # bytes of the largest file that gets a thumbnail
EVENTS = 1000  # events that are cached
HOLDS = 1.0  # seconds for which a cached event is valid
MEMBERS = 100_000  # files of all manifests that are cached
SUSPECTS = 1000  # large images whose checksum differed once
READS = 16  # concurrent reads of one worker
ARCHIVE_SECONDS = 20.0  # for reading a manifest from the archive
SAMPLES = 9  # images from which the levels of an event are chosen
SPREAD = (math.sqrt(5) - 1) / 2  # distance of the samples, as a part of the event: two steps never hit the same row
SAMPLED = 64 << 20  # bytes of samples after which no more are read
ORDINARY = 32 << 20  # bytes of pixels; larger pictures are decoded one at a time over all workers
OPENED = 64 << 20  # bytes of decoded pixels that one worker keeps; a larger image is kept alone
DESCRIBED = 1000  # images whose description is cached
DRAWN = 2  # thumbnails that one worker makes at a time
TAR = "application/x-tar"
PNG = "image/png"
DAY = "private, max-age=86400"
RESPONSES = {
    206: "the requested range",
    304: "not modified",
    307: "an expiring link to the bundle in the bucket",
    404: "no such event or file, or no copy to read; the message has the reason",
    412: "a condition of the request does not hold",
    415: "not a picture, or too large for a thumbnail",
    416: "the range begins after the end",
    503: "no copy can be read now, or every copy is damaged",
}
Seen = Annotated[str, auth.READER]
Levels = Literal["own", "event"]  # of a thumbnail: chosen from its image, or from all images of the event
T = TypeVar("T")


class Image(BaseModel):
    """One file of an event."""

    name: str  # on the bench
    size: int  # bytes
    sha256: str
    url: str
    thumbnail: str | None  # None: its name is not that of a picture


class HistogramReport(BaseModel):
    """Counts of pixel values in bins of equal width, from a sample of the pixels."""

    first: float
    last: float
    counts: list[int]


class ImageReport(BaseModel):
    """The pixels of one file."""

    name: str
    size: int  # bytes
    sha256: str
    width: int  # pixels, upright
    height: int
    format: str | None
    bits: int | None  # of a sample
    kind: str  # sample type, as NumPy calls it
    photometric: str | None
    compression: str | None
    metadata: list[tuple[str, str]]  # what the file says about itself
    left_out: int  # further entries; of DICOM those that may identify a person
    levels: tuple[float, float]  # values that become black and white
    histogram: HistogramReport


class Images(BaseModel):
    """The files of an event, in the order of their names' bytes."""

    id: str
    revision: int
    images: list[Image]


def image_url(ref: Ref, name: str) -> str:
    """Return the path of an image on the gateway."""
    return f"/api/1/events/{ref}/images/{quote(name.encode('utf-8', 'surrogateescape'))}"


def thumbnail_url(ref: Ref, name: str, *, size: int = SIZE, levels: Levels = "own") -> str:
    """Return the path of a thumbnail on the gateway."""
    query = {"size": size} if size != SIZE else {}
    encoded = urlencode(query | ({"levels": levels} if levels != "own" else {}))
    return f"{image_url(ref, name)}/thumbnail{f'?{encoded}' if encoded else ''}"


def picture_url(ref: Ref, name: str, **query: Any) -> str:
    """Return the path of a rendered picture on the gateway."""
    told = {key: value for key, value in query.items() if value is not None}
    return f"{image_url(ref, name)}/picture{f'?{urlencode(told)}' if told else ''}"


def info_url(ref: Ref, name: str) -> str:
    """Return the path of an image's description on the gateway."""
    return f"{image_url(ref, name)}/info"


def rendering(
    low: Annotated[float | None, Query(allow_inf_nan=False, description="value that becomes black")] = None,
    high: Annotated[float | None, Query(allow_inf_nan=False, description="value that becomes white")] = None,
    gamma: Annotated[float, Query(ge=tiles.GAMMA[0], le=tiles.GAMMA[1])] = 1.0,
    *,
    invert: bool = False,
) -> Rendering:
    """Parse how an image is rendered."""
    return Rendering(low, high, gamma, invert)


def format_bucket(export: Export) -> str:
    """Name the bucket of an export, for the probes."""
    return f"bucket {export.bucket} at {export.endpoint}"


def bundle_url(ref: Ref) -> str:
    """Return the path of an event's bundle on the gateway."""
    return f"/api/1/events/{ref}/bundle"


@dataclass(frozen=True)
class Contents:
    """The files of a bundle."""

    members: tuple[Member, ...]
    names: Mapping[str, Member]  # by the name on the bench, or else in the bundle

    @cached_property
    def tiles(self) -> frozenset[str]:
        """The names of the images of one stitched view."""
        grid = pictures.grid(original_name(one) for one in self.members)
        return frozenset(grid.cells.values()) if grid else frozenset()


class CachedEvent:
    """One event, shared by all requests of about a second: its ledger, and a reader with its copies."""

    def __init__(self, site: Site, ledger: Ledger) -> None:
        self.ledger = ledger
        self._site = site

    @cached_property
    def reader(self) -> BundleReader:
        """The reader of its bundle.

        Raises:
            NotFound: there is no copy to read; the message has the reason.
        """
        return BundleReader(self._site, self.ledger)


class Representation(NamedTuple):
    """What conditions and response headers depend on."""

    size: int  # bytes
    etag: str
    modified: datetime


@dataclass(frozen=True)
class RequestedImage:
    """One image, found under one of its names."""

    requested_name: str
    reader: BundleReader
    member: Member

    @property
    def name(self) -> str:
        """Its name on the bench."""
        return original_name(self.member)

    @property
    def representation(self) -> Representation:
        """Its size, SHA-256 and time of upload."""
        return Representation(self.member.size, self.member.sha256, self.reader.export.uploaded_at)


class PictureRequest(NamedTuple):
    """One tile of an image, or the whole of it, and how it is rendered."""

    format: tiles.Format = "png"
    level: int | None = None  # None: the whole image
    x: int = 0
    y: int = 0
    levels: Levels = "own"
    rendering: Rendering = Rendering()

    @property
    def is_kept(self) -> bool:
        """Whether it is cached on disk."""
        return self.level is not None and self.rendering.is_default


class Gallery:
    """The images of all events; its blocking methods run in a limited number of threads.

    Events are cached for `HOLDS` seconds; manifests and levels, which never change, by the manifest's SHA-256.
    """

    def __init__(self, site: Site, home: Path, *, links: timedelta, probes: Probes) -> None:
        self.site, self.thumbs = site, Thumbs(home / "thumbs")
        self.image_links = LinkSigner(home)
        self._links, self._spool, self._probes = links, home / "spool", probes
        self._reads, self.drawing, self._lookups = map(CapacityLimiter, (READS, DRAWN, READS))
        events: TTLCache[Any, CachedEvent] = TTLCache(EVENTS, HOLDS, timer=time.monotonic)
        self._event = cached(events, lock=Lock())(self._read_event)
        self._manifests: LRUCache[str, Contents] = LRUCache(MEMBERS, getsizeof=_count_members)
        self._manifests_lock = Lock()
        self._read_manifest = cached(self._manifests, _manifest_sha256, self._manifests_lock)(_read_contents)
        levels: LRUCache[str, pictures.KindLevels] = LRUCache(EVENTS)
        self._event_levels = cached(levels, _manifest_sha256, Lock())(self._choose_levels)
        self._opened: LRUCache[str, OpenedImage] = LRUCache(OPENED, getsizeof=_count_pixels)
        self._described: LRUCache[str, ImageReport] = LRUCache(DESCRIBED)
        self._opened_lock, self._opening = Lock(), [Lock() for _ in range(READS)]
        self._decoders = BoundedSemaphore(DRAWN)
        self._suspects: set[str] = set()
        self._spool.mkdir(parents=True, exist_ok=True)

    async def run(self, call: Callable[[], T]) -> T:
        """Run a read of image bytes, which may take long."""
        return await to_thread.run_sync(call, limiter=self._reads)

    async def look_up(self, call: Callable[[], T]) -> T:
        """Run a query of the catalogue; slow reads of bytes do not delay it."""
        return await to_thread.run_sync(call, limiter=self._lookups)

    def event(self, text: str, seen: str) -> CachedEvent:
        """Read an event that the token may see.

        Raises:
            NotFound: there is none, or the token may not see it.
        """
        try:
            id_, revision = Ref.parse(text)
        except NotFound:  # the first digits of one
            id_, revision = self.site.catalog.resolve(text, prefix=seen)
        event = self._event(id_, revision)
        if not event.ledger.event.key.startswith(seen):
            raise NotFound(f"{Ref(id_, revision or 1)}: no such event")
        return event

    def _read_event(self, id_: UUID, revision: int | None) -> CachedEvent:
        ref = Ref(id_, revision) if revision else self.site.catalog.newest(id_)
        return CachedEvent(self.site, self.site.catalog.ledger(ref))

    def contents(self, reader: BundleReader, *, seconds: float = ARCHIVE_SECONDS) -> Contents:
        """Return the files of an event's bundle.

        Waits `probes.SECONDS` for a copy in the bucket and `seconds` for one in the archive. A manifest that arrives
        later is cached for the next request.

        Raises:
            Unavailable: the manifest was not read in time.
        """
        with self._manifests_lock:
            known = self._manifests.get(_manifest_sha256(reader))
        if known is not None:
            return known
        place, most = (format_bucket(reader.export), SECONDS) if reader.in_bucket else ("tape", seconds)
        return self._probes.read(place, partial(self._read_manifest, reader), seconds=most)

    def find(self, text: str, seen: str, *names: str) -> RequestedImage:
        """Find an image by the first of these names that exists.

        Raises:
            NotFound: no such event, copy or image.
        """
        reader = self.event(text, seen).reader
        known = self.contents(reader).names
        for name in names:
            if name in known:
                return RequestedImage(name, reader, known[name])
        raise NotFound(f"{reader.ledger.ref}: there is no such image")

    def begin(self, image: RequestedImage, span: Span | None) -> tuple[bytes, Rest]:
        """Read the first piece of an image, or all of a small one."""
        member, reader = image.member, image.reader
        if member.size > HELD:
            return _read_first(
                reader.part(start=member.offset + span.start, length=span.length)
                if span
                else _delay_last(self._read_large(image))
            )
        whole = b"".join(reader.image(member))
        wanted = whole[span.start : span.start + span.length] if span else whole
        return (wanted, Rest(iter(()))) if len(wanted) <= SMALL else _read_first(self._spool_bytes(wanted))

    def _read_large(self, image: RequestedImage) -> Iterator[bytes]:
        """Read a large image; after its checksum differed once, later requests verify a copy before they send it."""
        sha256 = image.member.sha256
        try:
            yield from image.reader.image(image.member, verify_first=sha256 in self._suspects)
        except Damaged:
            if len(self._suspects) >= SUSPECTS:
                self._suspects.clear()
            self._suspects.add(sha256)
            raise

    def _spool_bytes(self, whole: bytes) -> Iterator[bytes]:
        """Write bytes to an unnamed file and read them from there, so that a slow client occupies no memory."""
        try:
            file = tempfile.TemporaryFile(dir=self._spool)  # noqa: SIM115  closed by the generator below
            file.write(whole)
            file.seek(0)
        except OSError as error:
            raise Unavailable(f"{len(whole)} bytes cannot be held in a file: {error.strerror}") from error

        def pieces() -> Iterator[bytes]:
            with file:
                yield from iter(partial(file.read, SMALL), b"")

        return pieces()

    async def draw(self, image: RequestedImage, size: int, levels: Levels = "own") -> bytes:
        """Return a cached thumbnail, or make it; `DRAWN` at a time.

        Raises:
            Rejected: it is not a picture.
        """
        name = _name_thumbnail(image, size, levels)
        kept = await self.look_up(partial(self.thumbs.find, name))
        if kept is not None:
            return kept
        return await to_thread.run_sync(partial(self._make_thumbnail, image, size, levels, name), limiter=self.drawing)

    def draw_now(self, image: RequestedImage, size: int, levels: Levels = "own") -> bytes:
        """Return a cached thumbnail, or make it in this thread.

        Raises:
            Rejected: it is not a picture.
        """
        name = _name_thumbnail(image, size, levels)
        kept = self.thumbs.find(name)
        return kept if kept is not None else self._make_thumbnail(image, size, levels, name)

    def _make_thumbnail(self, image: RequestedImage, size: int, levels: Levels, name: str) -> bytes:
        whole = self._read_picture(image)
        shared = self._shared_levels(image) if levels == "event" else None
        try:
            with self._turn(whole):
                picture = pictures.thumbnail(whole, size=size, levels=shared)
        except Rejected as error:
            self.thumbs.keep(name, error)
            raise
        self.thumbs.keep(name, picture)
        return picture

    def open_image(self, image: RequestedImage) -> OpenedImage:
        """Decode an image at its full resolution; the last ones are kept in memory.

        Raises:
            Rejected: it is not a picture that can be decoded.
        """
        sha256 = image.member.sha256
        with self._opening[int(sha256[:8], 16) % READS]:  # requests for tiles of one image wait for one decoder
            with self._opened_lock:
                known = self._opened.get(sha256)
            if known is not None:
                return known
            whole = self._read_picture(image)
            with self._decoders, self._turn(whole):
                opened = tiles.open_image(whole)
            with self._opened_lock:
                self._opened[sha256] = opened
            return opened

    def _read_picture(self, image: RequestedImage) -> bytes:
        if image.member.size > LARGEST:
            raise Rejected(f"too large for a preview: {image.member.size:,} of at most {LARGEST:,} bytes")
        return b"".join(image.reader.image(image.member))

    def describe_image(self, image: RequestedImage) -> ImageReport:
        """Return dimensions, sample type and histogram of an image.

        Raises:
            Rejected: it is not a picture that can be decoded.
        """
        member = image.member
        with self._opened_lock:
            known = self._described.get(member.sha256)
        if known is None:
            opened = self.open_image(image)
            counted = opened.histogram
            known = ImageReport(
                name=image.name.encode("utf-8", "backslashreplace").decode(),
                size=member.size,
                sha256=member.sha256,
                width=opened.width,
                height=opened.height,
                format=opened.header.format,
                bits=opened.header.bits,
                kind=opened.decoded.kind,
                photometric=opened.header.photometric,
                compression=opened.header.compression,
                metadata=list(opened.metadata.entries),
                left_out=opened.metadata.left_out,
                levels=opened.levels,
                histogram=HistogramReport(first=counted.first, last=counted.last, counts=list(counted.counts)),
            )
            with self._opened_lock:
                self._described[member.sha256] = known
        return known.model_copy(update={"name": image.name.encode("utf-8", "backslashreplace").decode()})

    def describe_soon(self, image: RequestedImage) -> ImageReport | None:
        """Describe an image if that takes no longer than `probes.SECONDS`; otherwise it is there for a later request.

        Raises:
            Rejected: it is not a picture that can be decoded.
        """
        try:
            return self._probes.read("picture", partial(self.describe_image, image))
        except Unavailable:
            return None

    async def render(self, image: RequestedImage, wanted: PictureRequest) -> bytes:
        """Return a rendered tile or whole picture; tiles of the default rendering are cached with the thumbnails.

        Raises:
            Rejected: it is not a picture, or there is no such tile.
        """
        name = _name_picture(image, wanted)
        kept = await self.look_up(partial(self.thumbs.find, name)) if wanted.is_kept else None
        if kept is not None:
            return kept
        return await to_thread.run_sync(partial(self._render, image, wanted, name), limiter=self.drawing)

    def _render(self, image: RequestedImage, wanted: PictureRequest, name: str) -> bytes:
        opened = self.open_image(image)
        if wanted.level is None:
            return tiles.whole(opened, rendering=wanted.rendering, format_=wanted.format)
        shared = self._shared_levels(image) if wanted.levels == "event" else None
        of_kind = (shared or {}).get(opened.decoded.kind)
        picture = tiles.tile(
            opened, level=wanted.level, x=wanted.x, y=wanted.y, rendering=wanted.rendering, shared=of_kind
        )
        if wanted.is_kept:
            self.thumbs.keep(name, picture)
        return picture

    @contextmanager
    def _turn(self, content: bytes) -> Iterator[None]:
        """Wait until no other worker decodes a large picture, if this one is large or does not say."""
        if 0 < decoders.pixel_bytes(content) <= ORDINARY:
            yield
            return
        with (self._spool / "large.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _shared_levels(self, image: RequestedImage) -> pictures.KindLevels | None:
        """Return the levels that the tiles of one stitched view share; None: the image is not among them."""
        name = original_name(image.member)
        return self._event_levels(image.reader) if name in self.contents(image.reader).tiles else None

    def _choose_levels(self, reader: BundleReader) -> pictures.KindLevels:
        """Choose levels for each sample type of an event's tiles, from samples of them."""
        found: dict[str, list[pictures.Levels]] = defaultdict(list)
        left, contents = SAMPLED, self.contents(reader)
        for member in samples([one for one in contents.members if original_name(one) in contents.tiles]):
            if (left := left - member.size) < 0 and found:
                break
            with suppress(Rejected, Damaged):  # the other samples are enough
                if told := pictures.levels(b"".join(reader.image(member))):
                    found[told[0]].append(told[1])
        return {
            kind: (min(dark for dark, _ in known), max(bright for _, bright in known)) for kind, known in found.items()
        }

    def bundle(self, text: str, seen: str, *, link: bool) -> tuple[BundleReader, str | None]:
        """Find a bundle, and make an expiring link to it if that is wanted and the store makes links."""
        reader = self.event(text, seen).reader
        with suppress(Refused):  # the store makes no links
            return reader, reader.sign(self._links) if link else None
        return reader, None

    def begin_bundle(self, reader: BundleReader, span: Span | None) -> tuple[bytes, Rest]:
        """Read the first piece of a bundle."""
        if span:
            return _read_first(reader.part(start=span.start, length=span.length))
        return _read_first(_delay_last(reader.whole()))


async def list_images(id: str, request: Request, seen: Seen) -> Response:  # noqa: A002
    """List the files of an event with their sizes, SHA-256 and URLs."""
    gallery = _gallery(request)
    return Response(await gallery.look_up(partial(_list_files, gallery, id, seen)), media_type="application/json")


async def get_image(id: str, name: str, request: Request, seen: Seen) -> Response:  # noqa: A002
    """Read one image, or one range of it, from the first copy of the bundle that can be read."""
    gallery = _gallery(request)
    return await _send_image(gallery, request, await gallery.look_up(partial(gallery.find, id, seen, _name(request))))


async def get_shared_image(signature: str, id: str, name: str, request: Request) -> Response:  # noqa: A002
    """Read the one image that a signed link is for, until the link expires."""
    gallery, asked = _gallery(request), _name(request, before=4)
    id_, revision = Ref.parse(id)
    ref = Ref(id_, revision or 1)
    gallery.image_links.check(signature, ref, asked, now=datetime.now(UTC))
    exact = f"{ref.id}-r{ref.revision}"  # an id alone means its newest revision
    return await _send_image(gallery, request, await gallery.look_up(partial(gallery.find, exact, "", asked)))


async def get_thumbnail(
    id: str,  # noqa: A002
    name: str,
    request: Request,
    seen: Seen,
    *,
    size: Annotated[int, Query(ge=SIZES[0], le=SIZES[1], description="pixels along the longer side")] = SIZE,
    levels: Annotated[Levels, Query(description="event: all images of the event get the same levels")] = "own",
) -> Response:
    """Make a thumbnail, as PNG; 16-bit grey is stretched between percentiles of the image, or of the event."""
    gallery, asked = _gallery(request), _name(request)
    image = await gallery.look_up(partial(gallery.find, id, seen, asked, asked.removesuffix("/thumbnail")))
    if image.requested_name == asked:  # a file whose name ends with /thumbnail
        return await _send_image(gallery, request, image)
    expected = image.representation._replace(etag=_name_thumbnail(image, size, levels))
    check_conditions(request.headers, expected, method=request.method)
    try:
        picture = await gallery.draw(image, size, levels)
    except Rejected as error:
        raise Problem(415, str(error)) from error
    modified = format_date(expected.modified)
    headers = {"ETag": f'"{expected.etag}"', "Last-Modified": modified, "Cache-Control": DAY}
    return Response(picture, 200, headers, PNG)


async def get_picture(
    id: str,  # noqa: A002
    name: str,
    request: Request,
    seen: Seen,
    *,
    format: Annotated[tiles.Format, Query(description="of the whole picture; tiles are PNG")] = "png",  # noqa: A002
    level: Annotated[
        int | None, Query(ge=0, lt=tiles.MOST_LEVELS, description="of a tile: 0 is native, each next one half of it")
    ] = None,
    x: Annotated[int, Query(ge=0, le=1 << 20, description="column of the tile")] = 0,
    y: Annotated[int, Query(ge=0, le=1 << 20, description="row of the tile")] = 0,
    levels: Annotated[Levels, Query(description="event: all tiles of the event get the same levels")] = "own",
    how: Annotated[Rendering, Depends(rendering)],
) -> Response:
    """Render an image with 8 bits at its native resolution, as PNG or JPEG, or one tile of 512 x 512 pixels."""
    gallery, asked = _gallery(request), _name(request)
    image = await gallery.look_up(partial(gallery.find, id, seen, asked, asked.removesuffix("/picture")))
    if image.requested_name == asked:  # a file whose name ends with /picture
        return await _send_image(gallery, request, image)
    wanted = PictureRequest(format, level, x, y, levels, how)
    expected = image.representation._replace(etag=_name_picture(image, wanted))
    check_conditions(request.headers, expected, method=request.method)
    try:
        picture = await gallery.render(image, wanted)
    except Rejected as error:
        raise Problem(415, str(error)) from error
    told = describe(f"{image.name}.{'jpg' if format == 'jpeg' else 'png'}", expected)
    headers = {name: told[name] for name in ("ETag", "Last-Modified")} | {"Cache-Control": DAY}
    if level is None:
        headers["Content-Disposition"] = told["Content-Disposition"]
        return Response(picture, 200, headers, f"image/{format}")
    return Response(picture, 200, headers, PNG)


async def get_info(id: str, name: str, request: Request, seen: Seen) -> Response:  # noqa: A002
    """Report dimensions, sample type, contrast levels and histogram of an image."""
    gallery, asked = _gallery(request), _name(request)
    image = await gallery.look_up(partial(gallery.find, id, seen, asked, asked.removesuffix("/info")))
    if image.requested_name == asked:  # a file whose name ends with /info
        return await _send_image(gallery, request, image)
    try:
        found = await to_thread.run_sync(partial(gallery.describe_image, image), limiter=gallery.drawing)
    except Rejected as error:
        raise Problem(415, str(error)) from error
    return Response(found.model_dump_json(), 200, {"Cache-Control": DAY}, "application/json")


async def get_bundle(id: str, request: Request, seen: Seen) -> Response:  # noqa: A002
    """Read the whole bundle: by redirect to an expiring link into the bucket where possible, else from the gateway."""
    gallery = _gallery(request)
    reader, link = await gallery.look_up(partial(gallery.bundle, id, seen, link=request.method == "GET"))
    export = reader.export
    request_info(request.scope).key = export.key
    if link is not None:
        return Response(None, 307, {"Location": link, "Cache-Control": "no-store"})
    bundle = Representation(export.size, export.sha256, export.uploaded_at)
    check_conditions(request.headers, bundle, method=request.method)
    if request.method == "HEAD":
        return _send_head(tar_name(export.key), bundle, TAR)
    span = parse_range(request.headers, bundle)
    first, rest = await gallery.run(partial(gallery.begin_bundle, reader, span))
    return respond(tar_name(export.key), bundle, span=span, first=first, rest=rest, run=gallery.run, media=TAR)


def samples(members: Sequence[Member]) -> list[Member]:
    """Choose up to `SAMPLES` pictures, spread over the whole event."""
    found = [one for one in members if pictures.media(original_name(one)) and one.size <= LARGEST]
    chosen = dict.fromkeys(int(len(found) * (number * SPREAD % 1)) for number in range(SAMPLES))
    return [found[number] for number in chosen] if found else []


def install(app: FastAPI, site: Site) -> None:
    """Add these routes to an application."""
    parts = app.state.parts
    app.state.gallery = Gallery(site, parts.place, links=parts.links, probes=app.state.probes)
    event = "/api/1/events/{id}"
    for method in ("GET", "HEAD"):
        options: dict[str, Any] = {"methods": [method], "response_class": Response, "tags": ["images"]}
        listed, drawn = _describe_responses(404, 503), _describe_responses(304, 404, 412, 415, 503)
        read = _describe_responses(206, 304, 404, 412, 416, 503)
        app.add_api_route(f"{event}/images", list_images, **options, response_model=Images, responses=listed)
        app.add_api_route(f"{event}/images/{{name:key}}/thumbnail", get_thumbnail, **options, responses=drawn)
        app.add_api_route(f"{event}/images/{{name:key}}/picture", get_picture, **options, responses=drawn)
        described = _describe_responses(404, 415, 503)
        app.add_api_route(
            f"{event}/images/{{name:key}}/info", get_info, **options, response_model=ImageReport, responses=described
        )
        app.add_api_route(f"{event}/images/{{name:key}}", get_image, **options, responses=read)
        shared: dict[str, Any] = {"dependencies": [auth.OPEN], "include_in_schema": False}
        app.add_api_route("/shared/{signature}/{id}/{name:key}", get_shared_image, **options, **shared)
        app.add_api_route(f"{event}/bundle", get_bundle, **options, responses=read | _describe_responses(307))


def _describe_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": RESPONSES[status]} for status in statuses}


async def _send_image(gallery: Gallery, request: Request, image: RequestedImage) -> Response:
    request_info(request.scope).key = f"{image.reader.export.key}/{image.name}"
    file, media = image.representation, pictures.media(image.name) or MEDIA
    check_conditions(request.headers, file, method=request.method)
    if request.method == "HEAD":
        return _send_head(image.name, file, media)
    span = parse_range(request.headers, file)
    first, rest = await gallery.run(partial(gallery.begin, image, span))
    return respond(image.name, file, span=span, first=first, rest=rest, run=gallery.run, media=media)


def _send_head(name: str, file: Representation, media: str) -> Response:
    return Response(None, 200, {**describe(name, file), "Content-Length": str(file.size)}, media)


def _list_files(gallery: Gallery, text: str, seen: str) -> bytes:
    event = gallery.event(text, seen)
    ref = event.ledger.ref
    files = [
        {
            "name": (name := original_name(member)),
            "size": member.size,
            "sha256": member.sha256,
            "url": image_url(ref, name),
            "thumbnail": thumbnail_url(ref, name) if pictures.media(name) else None,
        }
        for member in gallery.contents(event.reader).members
    ]
    return json.dumps({"id": str(ref.id), "revision": ref.revision, "images": files}).encode()  # ASCII: any name fits


def _gallery(request: Request) -> Gallery:
    gallery: Gallery = request.app.state.gallery
    return gallery


def _name(request: Request, *, before: int = 6) -> str:
    """Return the name from the path as it was sent, after so many slashes, percent-decoded exactly once."""
    raw: bytes = request.scope["raw_path"]
    return unquote_to_bytes(raw.split(b"/", before)[-1]).decode("utf-8", "surrogateescape")


def _name_thumbnail(image: RequestedImage, size: int, levels: Levels) -> str:
    """Name a thumbnail by everything that determines its bytes."""
    event = f"-{_manifest_sha256(image.reader)}" if levels == "event" else ""
    return f"{image.member.sha256}-{size}-{pictures.STYLE}{event}"


def _name_picture(image: RequestedImage, wanted: PictureRequest) -> str:
    """Name a rendered picture by everything that determines its bytes."""
    event = f"-{_manifest_sha256(image.reader)}" if wanted.levels == "event" else ""
    tile = f"{wanted.level}-{wanted.x}-{wanted.y}" if wanted.level is not None else wanted.format
    how = wanted.rendering
    values = "" if how.is_default else f"-{how.low}-{how.high}-{how.gamma}-{how.invert:d}"
    return f"{image.member.sha256}-tile-{tile}-{pictures.STYLE}{event}{values}"


def _count_pixels(image: OpenedImage) -> int:
    return min(image.occupied, OPENED)


def _read_contents(reader: BundleReader) -> Contents:
    """Read the manifest and refuse files that cannot be in the bundle.

    Raises:
        Damaged: the manifest is not valid for this bundle.
    """
    members = reader.read_manifest().members
    if not all(_is_valid_member(one, reader.export) for one in members):
        raise Damaged(f"{reader.export.key}: its manifest has files that cannot be in it")
    return Contents(members, {one.name: one for one in members} | {original_name(one): one for one in members})


def _is_valid_member(member: Member, export: Export) -> bool:
    """Return whether a file can be as the manifest says; a manifest is not trusted."""
    hashed = len(member.sha256) == 64 and set(member.sha256) <= set("0123456789abcdef")
    return hashed and member.offset >= 0 and 0 <= member.size <= export.manifest_offset - member.offset


def _manifest_sha256(reader: BundleReader) -> str:
    return reader.export.manifest_sha256


def _count_members(contents: Contents) -> int:
    return min(len(contents.members), MEMBERS)  # a larger manifest is cached alone


def _read_first(pieces: Iterator[bytes]) -> tuple[bytes, Rest]:
    return next(pieces, b""), Rest(pieces)


def _delay_last(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield each piece only when the next one was read: the last one follows the comparison of the checksum."""
    held = b""
    for piece in pieces:
        if held:
            yield held
        held = piece
    yield held
