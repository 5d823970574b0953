"""Doing the steps of the logic: sending, receiving and waiting, synchronously or not. What is twofold is here."""

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
READS = frozenset({"GET", "HEAD"})  # these go where a server sends them; httpx shows the token to no other server
REDIRECTS = 5
QUEUE = 600.0  # seconds that a request waits for a free connection


class Driver:
    """Does the steps with a pool of connections; may be used by several threads."""

    def __init__(self, session: httpx.Client | None, *, timeout: float) -> None:
        self._owned = session is None
        self._http = httpx.Client(verify=_trust(), max_redirects=REDIRECTS) if session is None else session
        self._timeout = httpx.Timeout(timeout, pool=max(timeout, QUEUE))

    def run(self, steps: Steps[R]) -> R:
        """Go on to the result."""
        with Exchange(self._http, self._timeout) as exchange:
            step = advance(steps)
            while not isinstance(step, Done):
                step = advance(steps, exchange.do(step))
            return step.result

    def each(self, stream: Stream[T]) -> Iterator[T]:
        """Hand over the items, asking for more when they are wanted."""
        with Exchange(self._http, self._timeout) as exchange:
            step = advance(stream)
            while not isinstance(step, Done):
                if isinstance(step, Give):
                    yield step.item
                    step = advance(stream)
                else:
                    step = advance(stream, exchange.do(step))

    def close(self) -> None:
        """Close the connections, unless they are somebody else's."""
        if self._owned:
            self._http.close()


class AsyncDriver:
    """Does the steps with a pool of connections, in one event loop."""

    def __init__(self, session: httpx.AsyncClient | None, *, timeout: float) -> None:
        self._owned = session is None
        self._http = httpx.AsyncClient(verify=_trust(), max_redirects=REDIRECTS) if session is None else session
        self._timeout = httpx.Timeout(timeout, pool=max(timeout, QUEUE))

    async def run(self, steps: Steps[R]) -> R:
        """Go on to the result."""
        async with AsyncExchange(self._http, self._timeout) as exchange:
            step = advance(steps)
            while not isinstance(step, Done):
                step = advance(steps, await exchange.do(step))
            return step.result

    async def each(self, stream: Stream[T]) -> AsyncIterator[T]:
        """Hand over the items, asking for more when they are wanted."""
        async with AsyncExchange(self._http, self._timeout) as exchange:
            step = advance(stream)
            while not isinstance(step, Done):
                if isinstance(step, Give):
                    yield step.item
                    step = advance(stream)
                else:
                    step = advance(stream, await exchange.do(step))

    async def close(self) -> None:
        """Close the connections, unless they are somebody else's."""
        if self._owned:
            await self._http.aclose()


class Exchange:
    """One request after the other, and the answer to the last one."""

    def __init__(self, http: httpx.Client, timeout: httpx.Timeout) -> None:
        self._http, self._timeout = http, timeout
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def do(self, step: Step) -> Reply:
        """Do one step."""
        if isinstance(step, Pause):
            self._leave()
            time.sleep(step.seconds)
            return None
        try:
            return self._send(step) if isinstance(step, Ask) else next(self._pieces, b"")
        except httpx.RequestError as error:
            return _failed(error)

    def _send(self, ask: Ask) -> Answer:
        self._leave()
        content = None if ask.body is None else iter(ask.body)
        request = _request(self._http, ask, content=content, timeout=self._timeout)
        self._response = self._http.send(request, stream=True, follow_redirects=ask.method in READS)
        self._pieces = self._response.iter_bytes()
        return _told(self._response)

    def _leave(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave()


class AsyncExchange:
    """One request after the other, and the answer to the last one."""

    def __init__(self, http: httpx.AsyncClient, timeout: httpx.Timeout) -> None:
        self._http, self._timeout = http, timeout
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes]

    async def do(self, step: Step) -> Reply:
        """Do one step."""
        if isinstance(step, Pause):
            await self._leave()
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._send(step) if isinstance(step, Ask) else await anext(self._pieces, b"")
        except httpx.RequestError as error:
            return _failed(error)

    async def _send(self, ask: Ask) -> Answer:
        await self._leave()
        content = None if ask.body is None else aiter(ask.body)
        request = _request(self._http, ask, content=content, timeout=self._timeout)
        self._response = await self._http.send(request, stream=True, follow_redirects=ask.method in READS)
        self._pieces = self._response.aiter_bytes()
        return _told(self._response)

    async def _leave(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._leave()


@cache
def _trust() -> ssl.SSLContext:
    """Read the certificates of the authorities once: it takes longer than most requests."""
    return httpx.create_ssl_context()


def _request(
    http: httpx.Client | httpx.AsyncClient,
    ask: Ask,
    *,
    content: Iterator[bytes] | AsyncIterator[bytes] | None,
    timeout: httpx.Timeout,
) -> httpx.Request:
    """Say a request as httpx does."""
    headers = dict(ask.headers)
    if ask.body is not None and ask.body.length is not None:
        headers["Content-Length"] = str(ask.body.length)
    params = ask.params or None  # no parameters would take away those of the address
    return http.build_request(ask.method, ask.url, content=content, params=params, headers=headers, timeout=timeout)


def _told(response: httpx.Response) -> Answer:
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()})


def _failed(error: httpx.RequestError) -> Unavailable | Misconfigured:
    if isinstance(error, httpx.TooManyRedirects):
        return Misconfigured(f"sent from one address to the next, more than {REDIRECTS} times")
    return Unavailable(f"no answer, or not all of it ({type(error).__name__}: {error})")
