"""Stream bodies between the network, which is asynchronous, and stores, which are not; and describe responses."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.responses import Response, StreamingResponse

from plateway.errors import Busy, PlatewayError, Unsettled
from plateway.gateway.http_conditions import Described, Span, format_date

T = TypeVar("T")
MIB = 1 << 20
SMALL = MIB  # bytes of the largest body that is sent in one piece
AHEAD = 4  # pieces of an upload that are buffered for the store
WAIT = 30.0  # seconds that a large upload waits for a slot
MEDIA = "application/octet-stream"
Run = Callable[[Callable[[], bytes]], Coroutine[Any, Any, bytes]]


class Rest(NamedTuple):
    """The part of an object that is not read yet."""

    chunks: Iterator[bytes]

    def next(self) -> bytes:
        """Read the next piece; empty at the end."""
        return next(self.chunks, b"")

    def close(self) -> None:
        """Stop reading."""
        if isinstance(self.chunks, Generator):
            self.chunks.close()


class UploadPipe:
    """A bounded buffer between the network and the thread that stores an upload."""

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(AHEAD)
        self._loop = asyncio.get_running_loop()
        self._stopped = False

    async def push(self, piece: bytes) -> bool:
        """Buffer a piece when there is room. Returns False if the reading thread has stopped."""
        await self._room.acquire()
        self._pieces.put(piece)
        return not self._stopped

    def end(self, error: BaseException | None = None) -> None:
        """End the body, or fail it with an error."""
        self._pieces.put(error)

    def stop(self) -> None:
        """Stop reading; called by the reading thread."""
        self._stopped = True
        self._release()

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            self._release()
            yield piece

    def _release(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nothing waits
            self._loop.call_soon_threadsafe(self._room.release)


def respond(
    name: str, stat: Described, *, span: Span | None, first: bytes, rest: Rest, run: Run, media: str = MEDIA
) -> Response:
    """Make the response for an object, or a range of it, whose first piece was read; one piece is sent at once."""
    size = span.length if span else stat.size
    headers = {**describe(name, stat), "Content-Length": str(size)}
    if span:
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{stat.size}"
    status = 206 if span else 200
    if len(first) == size:
        rest.close()
        return Response(first, status, headers, media)
    return StreamingResponse(read_ahead(first, rest, run=run), status, headers, media)


def describe(name: str, stat: Described) -> dict[str, str]:
    """Return the headers that describe an object."""
    last = name.rstrip("/").rpartition("/")[2] or "object"
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"%\\' else "_" for letter in last)
    whole = quote(last.encode("utf-8", "surrogateescape"), safe="")
    return {
        "ETag": f'"{stat.etag}"',
        "Last-Modified": format_date(stat.modified),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{whole}",
    }


async def read_ahead(first: bytes, rest: Rest, *, run: Run) -> AsyncIterator[bytes]:
    """Yield pieces; the next one is read while one is sent."""
    coming = asyncio.ensure_future(run(rest.next))
    try:
        yield first
        while piece := await coming:
            coming = asyncio.ensure_future(run(rest.next))
            yield piece
    finally:
        with suppress(PlatewayError), anyio.CancelScope(shield=True):
            await coming
        rest.close()


async def read_beginning(pieces: AsyncIterator[bytes]) -> tuple[list[bytes], bool]:
    """Read up to about `SMALL` bytes of a body, and return them and whether the body is complete."""
    head, size = [], 0
    async for piece in pieces:
        head.append(piece)
        size += len(piece)
        if size > SMALL:
            return head, False
    return head, True


class Slots:
    """Limits concurrent large uploads: `most` together, and half as many of one token."""

    def __init__(self, most: int) -> None:
        self._all, self._each = asyncio.Semaphore(most), max(1, most // 2)
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # of tokens with running uploads

    @asynccontextmanager
    async def slot(self, token: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it.

        Raises:
            Busy: no slot was free within `WAIT` seconds.
        """
        own = self._own.setdefault(token, asyncio.Semaphore(self._each))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(WAIT):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise Busy("too many uploads at a time") from None
            yield


async def store_stream(store: Callable[[Iterable[bytes]], T], head: list[bytes], pieces: AsyncIterator[bytes]) -> T:
    """Store a body while it is received."""
    pipe = UploadPipe()

    def store_pipe() -> T:
        try:
            return store(pipe)
        finally:
            pipe.stop()

    job = asyncio.ensure_future(to_thread.run_sync(store_pipe, limiter=CapacityLimiter(1)))
    try:
        async for piece in _join_pieces(head, pieces):
            if not await pipe.push(piece):
                break
        pipe.end()
    except BaseException as error:
        pipe.end(error if isinstance(error, Exception) else Unsettled("the upload was given up"))
        with suppress(Exception), anyio.CancelScope(shield=True):
            await job
        raise
    return await job


async def _join_pieces(head: list[bytes], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join the pieces of a body to about 1 MiB each."""
    held, size = head, sum(map(len, head))
    async for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= MIB:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
