"""Events, for researchers: search them, read their ledgers, and read their images as bytes or arrays."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias, TypedDict, TypeVar, Unpack, get_args
from uuid import UUID

import httpx

from plateway.client.models import (
    Archive,
    Event,
    Export,
    Image,
    read,
)
from plateway.client.protocol import (
    Give,
    Steps,
    Stream,
    collected,
)
from plateway.client.retries import Server, Tries, path
from plateway.client.transports import AsyncDriver, Driver
from plateway.errors import Damaged, Misconfigured, NotFound, PlatewayError, Rejected, Unavailable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Which: TypeAlias = Event | UUID | str  # an id selects its newest revision; ``<id>-r2`` a given one
T = TypeVar("T")
V = TypeVar("V")
EVENTS = "/api/1/events"
PAGE = 100
DAY = timedelta(days=1)
TIFF = (".tif", ".tiff")
LARGEST = 4 << 30  # bytes of pixels of one array
OnError = Literal["raise", "skip", "return"]


class Within(TypedDict, total=False):
    """Filters of a search within an experiment; times are aware."""

    system: str
    plate: int
    state: str  # waiting ready exporting exported archived purged quarantined lost changed
    kind: str  # stitch | video | overview
    since: datetime
    until: datetime
    text: str  # beginning of an id or of an experiment


class Filters(Within, total=False):
    """Filters of a search, and its order."""

    experiment: str
    order: Literal["newest", "oldest"]


class Picture(NamedTuple):
    """One image as an array."""

    event: Event
    name: str
    array: npt.NDArray[np.generic]

    @property
    def error(self) -> PlatewayError | None:
        """Why the image could not be read, with ``errors="return"``; its array is empty then."""
        return getattr(self, "problem", None)


class UnreadPicture(Picture):
    """An image that could not be read."""

    problem: PlatewayError


class Images(Mapping[str, V]):
    """The images of one event by name; each access reads an image and compares its SHA-256."""

    def __init__(self, infos: Mapping[str, Image], fetch: Callable[[Image], V]) -> None:
        self.infos = infos
        self._fetch = fetch

    def __getitem__(self, name: str) -> V:
        return self._fetch(self.infos[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __repr__(self) -> str:
        return f"<{len(self)} images, {sum(info.size for info in self.infos.values())} bytes>"

    __eq__, __hash__ = object.__eq__, object.__hash__  # those of mappings would read everything


class Plateway:
    """A gateway; thread-safe.

    Errors are those of `plateway.errors`: ``NotFound``, ``Denied``, ``Unavailable``, …
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        session: httpx.Client | None = None,
    ) -> None:
        """Prepare a client; no request is sent yet. The options are those of `RestStore`.

        Raises:
            Misconfigured: the address or the token is not valid.
        """
        self._events = Events(Server(base_url, token, tries=Tries(max_retries, retry_delay)))
        self._driver = Driver(session, timeout=timeout)

    def search(self, **filters: Unpack[Filters]) -> Iterator[Event]:
        """Search events, the newest first unless `order` is "oldest"."""
        return self._driver.each(self._events.search(filters))

    def event(self, which: Which) -> Event:
        """Read one event: its newest revision, or ``<id>-r<revision>``."""
        return self._driver.run(self._events.event(which))

    def ledger(self, which: Which) -> dict[str, Any]:
        """Read the ledger of one event, as the gateway's JSON."""
        return self._driver.run(self._events.ledger(which))

    def images(self, which: Which) -> Images[bytes]:
        """List the images of one event, to be read on demand.

        Reading raises `plateway.errors.Damaged` if the SHA-256 differs.
        """
        infos = self._driver.run(self._events.images(which))
        return Images(infos, lambda image: self._driver.run(self._events.image(image)))

    def bundle(self, which: Which) -> Iterator[bytes]:
        """Read the tar of one event piece by piece.

        Raises:
            Damaged: the SHA-256 differs; raised at the end.
        """
        return self._driver.each(self._events.bundle(which))

    def arrays(
        self, experiment: str, *, errors: OnError = "raise", largest: int = LARGEST, **filters: Unpack[Within]
    ) -> Iterator[Picture]:
        """Read the TIFF images of an experiment one by one: the oldest event first, each at its newest revision.

        One that cannot be read raises, is skipped, or is returned with its error. An image of more than ``largest``
        bytes of pixels is not unpacked.

        Raises:
            Damaged: an image is no TIFF file, or is cut off. Misconfigured: a decoder is not installed.
            Rejected: it has too many pixels. Unavailable: it cannot be read now.
        """
        asked = Filters(**filters, experiment=experiment, order="oldest")
        return self._driver.each(self._events.arrays(asked, errors, largest))

    def exports(
        self, *, since: datetime | None = None, until: datetime | None = None, kind: str = "stitch"
    ) -> Iterator[Export]:
        """List the exports between two times (default: the last day), the oldest first."""
        return self._driver.each(self._events.exports(since, until, kind))

    def archives(self, *, experiment: str | None = None) -> Iterator[Archive]:
        """List the tars on tape."""
        return self._driver.each(self._events.archives(experiment))

    def close(self) -> None:
        """Close the connections."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncPlateway:
    """A gateway, for one event loop; errors are those of `Plateway`."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        session: httpx.AsyncClient | None = None,
    ) -> None:
        """Prepare a client; no request is sent yet. The options are those of `RestStore`.

        Raises:
            Misconfigured: the address or the token is not valid.
        """
        self._events = Events(Server(base_url, token, tries=Tries(max_retries, retry_delay)))
        self._driver = AsyncDriver(session, timeout=timeout)

    def search(self, **filters: Unpack[Filters]) -> AsyncIterator[Event]:
        """Search events, the newest first unless `order` is "oldest"."""
        return self._driver.each(self._events.search(filters))

    async def event(self, which: Which) -> Event:
        """Read one event: its newest revision, or ``<id>-r<revision>``."""
        return await self._driver.run(self._events.event(which))

    async def ledger(self, which: Which) -> dict[str, Any]:
        """Read the ledger of one event, as the gateway's JSON."""
        return await self._driver.run(self._events.ledger(which))

    async def images(self, which: Which) -> Images[Awaitable[bytes]]:
        """List the images of one event, to be read on demand: ``await images[name]``.

        Reading raises `plateway.errors.Damaged` if the SHA-256 differs.
        """
        infos = await self._driver.run(self._events.images(which))
        return Images(infos, lambda image: self._driver.run(self._events.image(image)))

    def bundle(self, which: Which) -> AsyncIterator[bytes]:
        """Read the tar of one event piece by piece.

        Raises:
            Damaged: the SHA-256 differs; raised at the end.
        """
        return self._driver.each(self._events.bundle(which))

    def arrays(
        self, experiment: str, *, errors: OnError = "raise", largest: int = LARGEST, **filters: Unpack[Within]
    ) -> AsyncIterator[Picture]:
        """Read the TIFF images of an experiment one by one, as `Plateway.arrays`."""
        asked = Filters(**filters, experiment=experiment, order="oldest")
        return self._driver.each(self._events.arrays(asked, errors, largest))

    def exports(
        self, *, since: datetime | None = None, until: datetime | None = None, kind: str = "stitch"
    ) -> AsyncIterator[Export]:
        """List the exports between two times (default: the last day), the oldest first."""
        return self._driver.each(self._events.exports(since, until, kind))

    def archives(self, *, experiment: str | None = None) -> AsyncIterator[Archive]:
        """List the tars on tape."""
        return self._driver.each(self._events.archives(experiment))

    async def close(self) -> None:
        """Close the connections."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class Events:
    """The logic of both clients, as steps."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def search(self, filters: Filters) -> Stream[Event]:
        if unknown := sorted(set(filters) - Filters.__optional_keys__):
            raise TypeError(f"events cannot be searched by {', '.join(unknown)}")
        yield from self._server.pages(EVENTS, {**_format_filters(filters), "limit": PAGE}, read=_page)

    def event(self, which: Which) -> Steps[Event]:
        return read(Event, (yield from self.ledger(which)))

    def ledger(self, which: Which) -> Steps[dict[str, Any]]:
        return (yield from self._document(path(EVENTS, key=_ref(which))))

    def images(self, which: Which) -> Steps[dict[str, Image]]:
        told = yield from self._document(f"{path(EVENTS, key=_ref(which))}/images")
        return {image.name: image for image in _items(Image, told, "images")}

    def image(self, image: Image) -> Steps[bytes]:
        if not image.url.startswith("/"):
            raise Unavailable(f"{image.name}: its address is not on the gateway")
        answer = yield from self._server.answer(self._server.ask("GET", image.url))
        if hashlib.sha256(answer.content).hexdigest() != image.sha256:
            told = f"{len(answer.content)} bytes received of {image.size}"
            raise Damaged(f"{image.name}: {told}, with another SHA-256 than recorded")
        return answer.content

    def bundle(self, which: Which) -> Stream[bytes]:
        event = yield from self.event(which)
        if event.sha256 is None:
            raise NotFound(f"{event.ref}: there is no bundle, the event is {event.state}")
        ask = self._server.ask("GET", f"{path(EVENTS, key=event.ref)}/bundle")
        yield from self._server.stream(ask, sha256=event.sha256)

    def arrays(self, filters: Filters, errors: OnError, largest: int) -> Stream[Picture]:
        if errors not in get_args(OnError):
            raise Misconfigured(f"errors={errors!r} is none of {', '.join(get_args(OnError))}")
        found = yield from collected(self.search(filters))
        newest = {event.id: event for event in sorted(found, key=attrgetter("revision")) if event.sha256 is not None}
        for event in sorted(newest.values(), key=attrgetter("timestamp", "id")):
            images = yield from self.images(event)
            for name in sorted(name for name in images if name.lower().endswith(TIFF)):
                try:
                    array = _array(name, (yield from self.image(images[name])), largest)
                except PlatewayError as error:
                    if errors == "raise":
                        raise
                    if errors == "return":
                        failed = UnreadPicture(event, name, _no_pixels())
                        failed.problem = error
                        yield Give(failed)
                else:
                    yield Give(Picture(event, name, array))

    def exports(self, since: datetime | None, until: datetime | None, kind: str) -> Stream[Export]:
        until = until or datetime.now(UTC)  # of all pages: new exports would shift the others
        since = since or until - DAY
        yield from self._rows(
            Export, "/api/1/exports", {"start": _format_time(since), "end": _format_time(until), "event_type": kind}
        )

    def archives(self, experiment: str | None) -> Stream[Archive]:
        yield from self._rows(Archive, "/api/1/archives", {"experiment_id": experiment})

    def _rows(self, kind: type[T], place: str, params: Mapping[str, Any]) -> Stream[T]:
        """Yield the rows of a listing with offset and count."""
        offset = 0
        while True:
            told = yield from self._document(place, {**params, "limit": PAGE, "offset": offset})
            rows, count = _items(kind, told, "data"), told.get("count")
            if not isinstance(count, int):
                raise Unavailable("the response has no count")
            yield from map(Give, rows)
            offset += len(rows)
            if not rows or offset >= count:
                return

    def _document(self, place: str, params: Mapping[str, Any] | None = None) -> Steps[dict[str, Any]]:
        return (yield from self._server.answer(self._server.ask("GET", place, params=params))).document()


def _ref(which: Which) -> str:
    return which.ref if isinstance(which, Event) else str(which)


def _format_filters(filters: Filters) -> dict[str, Any]:
    return {name: _format_time(value) if isinstance(value, datetime) else value for name, value in filters.items()}


def _format_time(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("a time needs a zone, for example datetime.now(UTC)")
    return moment.isoformat()


def _page(told: dict[str, Any]) -> tuple[list[Event], str | None]:
    cursor = told.get("next_cursor")
    if not isinstance(cursor, str | None):
        raise Unavailable("the response has no valid cursor")
    return _items(Event, told, "events"), cursor or None


def _items(kind: type[T], told: Mapping[str, Any], name: str) -> list[T]:
    items = told.get(name)
    if not isinstance(items, list):
        raise Unavailable(f"the response has no {name}")
    return [read(kind, item) for item in items]


def _array(name: str, content: bytes, largest: int) -> npt.NDArray[np.generic]:
    """Read the pages of a TIFF file as one array.

    Raises:
        Damaged: it is no TIFF file, or is cut off. Misconfigured: a decoder is not installed.
        Rejected: its pixels have more than ``largest`` bytes.
    """
    import tifffile  # noqa: PLC0415  only who wants arrays needs it

    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            if (size := series.size * series.dtype.itemsize) > largest:
                raise Rejected(f"{name}: {size:,} bytes of pixels, at most {largest:,} are read (largest=…)")
            return series.asarray()
    except PlatewayError:
        raise
    except Exception as error:  # of decoders: for untrusted bytes there is no complete list
        if "imagecodecs" in str(error):
            raise Misconfigured(f"{name}: its compression needs the package imagecodecs: install it") from error
        raise Damaged(f"{name}: the bytes are those recorded, but not a TIFF file that can be read") from error


def _no_pixels() -> npt.NDArray[np.generic]:
    import numpy as np  # noqa: PLC0415  only who wants arrays needs it

    return np.empty(0, np.uint8)
