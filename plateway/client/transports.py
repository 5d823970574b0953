"""Execute the steps of the logic, synchronously and asynchronously. All code that exists twice is here."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from functools import cache
from types import TracebackType
from typing import Self, TypeVar

import httpx

from plateway.client.protocol import (
    Answer,
    Ask,
    Done,
    Give,
    Pause,
    Reply,
    Step,
    Steps,
    Stream,
    advance,
)
from plateway.errors import Misconfigured, Unavailable

R = TypeVar("R")
T = TypeVar("T")
READS = frozenset({"GET", "HEAD"})  # redirects are followed; httpx sends the token to no other server
REDIRECTS = 5
QUEUE = 600.0  # seconds that a request waits for a free connection of the pool


class Driver:
    """Executes steps with a pool of connections; thread-safe."""

    def __init__(self, session: httpx.Client | None, *, timeout: float) -> None:
        self._owned = session is None
        self._http = httpx.Client(verify=_ssl_context(), max_redirects=REDIRECTS) if session is None else session
        self._timeout = httpx.Timeout(timeout, pool=max(timeout, QUEUE))

    def run(self, steps: Steps[R]) -> R:
        """Run the logic and return its result."""
        with Exchange(self._http, self._timeout) as exchange:
            step = advance(steps)
            while not isinstance(step, Done):
                step = advance(steps, exchange.do(step))
            return step.result

    def each(self, stream: Stream[T]) -> Iterator[T]:
        """Yield the items of a stream; requests are sent on demand."""
        with Exchange(self._http, self._timeout) as exchange:
            step = advance(stream)
            while not isinstance(step, Done):
                if isinstance(step, Give):
                    yield step.item
                    step = advance(stream)
                else:
                    step = advance(stream, exchange.do(step))

    def close(self) -> None:
        """Close the connections, unless the caller provided the session."""
        if self._owned:
            self._http.close()


class AsyncDriver:
    """Executes steps with a pool of connections, in one event loop."""

    def __init__(self, session: httpx.AsyncClient | None, *, timeout: float) -> None:
        self._owned = session is None
        self._http = httpx.AsyncClient(verify=_ssl_context(), max_redirects=REDIRECTS) if session is None else session
        self._timeout = httpx.Timeout(timeout, pool=max(timeout, QUEUE))

    async def run(self, steps: Steps[R]) -> R:
        """Run the logic and return its result."""
        async with AsyncExchange(self._http, self._timeout) as exchange:
            step = advance(steps)
            while not isinstance(step, Done):
                step = advance(steps, await exchange.do(step))
            return step.result

    async def each(self, stream: Stream[T]) -> AsyncIterator[T]:
        """Yield the items of a stream; requests are sent on demand."""
        async with AsyncExchange(self._http, self._timeout) as exchange:
            step = advance(stream)
            while not isinstance(step, Done):
                if isinstance(step, Give):
                    yield step.item
                    step = advance(stream)
                else:
                    step = advance(stream, await exchange.do(step))

    async def close(self) -> None:
        """Close the connections, unless the caller provided the session."""
        if self._owned:
            await self._http.aclose()


class Exchange:
    """Sends one request after another, and keeps the last response open."""

    def __init__(self, http: httpx.Client, timeout: httpx.Timeout) -> None:
        self._http, self._timeout = http, timeout
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def do(self, step: Step) -> Reply:
        """Execute one step."""
        if isinstance(step, Pause):
            self._close_response()
            time.sleep(step.seconds)
            return None
        try:
            return self._send(step) if isinstance(step, Ask) else next(self._pieces, b"")
        except httpx.RequestError as error:
            return _translate_error(error)

    def _send(self, ask: Ask) -> Answer:
        self._close_response()
        content = None if ask.body is None else iter(ask.body)
        request = _request(self._http, ask, content=content, timeout=self._timeout)
        self._response = self._http.send(request, stream=True, follow_redirects=ask.method in READS)
        self._pieces = self._response.iter_bytes()
        return _answer(self._response)

    def _close_response(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close_response()


class AsyncExchange:
    """Sends one request after another, and keeps the last response open."""

    def __init__(self, http: httpx.AsyncClient, timeout: httpx.Timeout) -> None:
        self._http, self._timeout = http, timeout
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes]

    async def do(self, step: Step) -> Reply:
        """Execute one step."""
        if isinstance(step, Pause):
            await self._close_response()
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._send(step) if isinstance(step, Ask) else await anext(self._pieces, b"")
        except httpx.RequestError as error:
            return _translate_error(error)

    async def _send(self, ask: Ask) -> Answer:
        await self._close_response()
        content = None if ask.body is None else aiter(ask.body)
        request = _request(self._http, ask, content=content, timeout=self._timeout)
        self._response = await self._http.send(request, stream=True, follow_redirects=ask.method in READS)
        self._pieces = self._response.aiter_bytes()
        return _answer(self._response)

    async def _close_response(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._close_response()


@cache
def _ssl_context() -> ssl.SSLContext:
    """Load the CA certificates once: it takes longer than most requests."""
    return httpx.create_ssl_context()


def _request(
    http: httpx.Client | httpx.AsyncClient,
    ask: Ask,
    *,
    content: Iterator[bytes] | AsyncIterator[bytes] | None,
    timeout: httpx.Timeout,
) -> httpx.Request:
    """Build the request of httpx."""
    headers = dict(ask.headers)
    if ask.body is not None and ask.body.length is not None:
        headers["Content-Length"] = str(ask.body.length)
    params = ask.params or None  # an empty mapping would remove those of the address
    return http.build_request(ask.method, ask.url, content=content, params=params, headers=headers, timeout=timeout)


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()})


def _translate_error(error: httpx.RequestError) -> Unavailable | Misconfigured:
    if isinstance(error, httpx.TooManyRedirects):
        return Misconfigured(f"more than {REDIRECTS} redirects")
    return Unavailable(f"no response, or an incomplete one ({type(error).__name__}: {error})")
