"""Bodies on their way between the network, which is asynchronous, and stores, which are not; what is said of them."""

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
from plateway.gateway.http_conditions import Span, date
from plateway.store import Stat

T = TypeVar("T")
MIB = 1 << 20
SMALL = MIB  # bytes of a body that goes in one piece
AHEAD = 4  # pieces of an upload that wait for the store
WAIT = 30.0  # seconds that a large upload waits for its turn
MEDIA = "application/octet-stream"
Run = Callable[[Callable[[], bytes]], Coroutine[Any, Any, bytes]]


class Rest(NamedTuple):
    """What is still to be read of an object."""

    chunks: Iterator[bytes]

    def next(self) -> bytes:
        """Read the next piece; nothing at the end."""
        return next(self.chunks, b"")

    def close(self) -> None:
        """Read no more."""
        if isinstance(self.chunks, Generator):
            self.chunks.close()


class Pipe:
    """What comes over the network, for the thread that stores it: some pieces ahead, no more."""

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(AHEAD)
        self._loop = asyncio.get_running_loop()
        self._shut = False

    async def push(self, piece: bytes) -> bool:
        """Hand on a piece when there is room; False: nobody takes it any more."""
        await self._room.acquire()
        self._pieces.put(piece)
        return not self._shut

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes, or why."""
        self._pieces.put(error)

    def shut(self) -> None:
        """Say, from the thread, that nothing more is wanted."""
        self._shut = True
        self._free()

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            self._free()
            yield piece

    def _free(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._room.release)


def content(
    name: str, stat: Stat, *, span: Span | None, first: bytes, rest: Rest, run: Run, media: str = MEDIA
) -> Response:
    """Send something, or a part of it, of which `first` was read; what is small in one piece."""
    size = span.length if span else stat.size
    headers = {**described(name, stat), "Content-Length": str(size)}
    if span:
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{stat.size}"
    status = 206 if span else 200
    if len(first) == size:
        rest.close()
        return Response(first, status, headers, media)
    return StreamingResponse(ahead(first, rest, run=run), status, headers, media)


def described(name: str, stat: Stat) -> dict[str, str]:
    """Describe what is sent in headers that the client has no say in."""
    last = name.rstrip("/").rpartition("/")[2] or "object"
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"%\\' else "_" for letter in last)
    whole = quote(last.encode("utf-8", "surrogateescape"), safe="")
    return {
        "ETag": f'"{stat.etag}"',
        "Last-Modified": date(stat.modified),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{whole}",
    }


async def ahead(first: bytes, rest: Rest, *, run: Run) -> AsyncIterator[bytes]:
    """Read the next piece while one is being sent."""
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


async def beginning(pieces: AsyncIterator[bytes]) -> tuple[list[bytes], bool]:
    """Take the beginning of a body, and tell whether that is all."""
    head, size = [], 0
    async for piece in pieces:
        head.append(piece)
        size += len(piece)
        if size > SMALL:
            return head, False
    return head, True


class Slots:
    """Large uploads at a time: so many together, and half as many of one token, so that none holds up the others."""

    def __init__(self, most: int) -> None:
        self._all, self._each = asyncio.Semaphore(most), max(1, most // 2)
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # of tokens that upload now

    @asynccontextmanager
    async def slot(self, token: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it.

        Raises:
            Busy: there was none for too long.
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


async def streamed(store: Callable[[Iterable[bytes]], T], head: list[bytes], pieces: AsyncIterator[bytes]) -> T:
    """Store a body while it comes."""
    pipe = Pipe()

    def stored() -> T:
        try:
            return store(pipe)
        finally:
            pipe.shut()

    job = asyncio.ensure_future(to_thread.run_sync(stored, limiter=CapacityLimiter(1)))
    try:
        async for piece in _gathered(head, pieces):
            if not await pipe.push(piece):
                break
        pipe.end()
    except BaseException as error:
        pipe.end(error if isinstance(error, Exception) else Unsettled("the upload was given up"))
        with suppress(Exception), anyio.CancelScope(shield=True):
            await job
        raise
    return await job


async def _gathered(head: list[bytes], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Bring a body into pieces of about 1 MiB: what a thread takes at a time."""
    held, size = head, sum(map(len, head))
    async for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= MIB:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
