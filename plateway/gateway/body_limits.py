"""Limits of request bodies: size and speed."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plateway.gateway.errors import Problem
from plateway.gateway.rate_limits import Limits

LINGER = 2.0  # seconds for which the rest of a refused body is read, so that the client can read the response
LINGERING = 4 << 20  # bytes of it
DRAINED = 256 << 10  # bytes of a refused body that are read to keep the connection open


class BodyLimit:
    """Middleware: refuse bodies that are too large or too slow, so that a client that still sends gets the response."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = self._limits.object_size if scope["path"].startswith("/objects/") else self._limits.body_size
        body = LimitedBody(scope, receive, limits=self._limits, size=size)
        response = LimitedResponse(send, body)
        if body.problem:
            await body.problem.response()(scope, body.receive, response.send)
            return
        try:
            await self.app(scope, body.receive, response.send)
        except Problem as error:
            if response.started:
                raise
            await error.response()(scope, body.receive, response.send)


class LimitedBody:
    """A request's body, checked while it is received."""

    def __init__(self, scope: Scope, receive: Receive, *, limits: Limits, size: int) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        self.problem: Problem | None = None
        self.complete = length == "0" and "transfer-encoding" not in headers
        self.answered = False
        self.expects_continue = headers.get("expect", "").lower() == "100-continue"  # sends nothing before it is asked
        self._receive, self._limits, self._size = receive, limits, size
        self._received, self._began = 0, time.monotonic()
        self._seconds_left = limits.body_grace
        if length.isdecimal() and int(length) > size:
            self.problem = self._too_large()

    async def receive(self) -> Message:
        """Receive the next piece.

        Raises:
            Problem: the body is too large or too slow.
        """
        if self.complete or self.answered:
            return await self._receive()
        if self.problem:
            raise self.problem
        message = await self._receive_in_time()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._received += size
            self._seconds_left = min(self._seconds_left + size / self._limits.body_rate, self._limits.body_credit)
            self.complete = not message.get("more_body", False)
            if self._received > self._size:
                self.problem = self._too_large()
                raise self.problem
        else:
            self.complete = True
        return message

    async def drain(self, size: int, *, seconds: float) -> None:
        """Receive and discard the rest of the body, up to a size and a time."""
        if self.expects_continue and not self._received:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.complete and size > 0:
                    message = await self._receive()
                    size -= len(message.get("body", b""))
                    self.complete = message["type"] != "http.request" or not message.get("more_body", False)

    async def _receive_in_time(self) -> Message:
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(self._seconds_left, self._limits.body_time - (began - self._began))):
                return await self._receive()
        except TimeoutError:
            self.problem = Problem(408, "The body came too slowly")
            raise self.problem from None
        finally:
            self._seconds_left -= time.monotonic() - began

    def _too_large(self) -> Problem:
        return Problem(413, f"The body has more than {self._size} bytes")


class LimitedResponse:
    """A response to a request whose body may not have been received to its end."""

    def __init__(self, send: Send, body: LimitedBody) -> None:
        self.started = False
        self._send, self._body = send, body
        self._replaced = False  # the response of the application was replaced by the body's problem

    async def send(self, message: Message) -> None:
        """Send a message; before the first one, drain what is left of the body or announce "Connection: close"."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            self.started = True
            await self._send_start(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._send_end(message)
        else:
            await self._send(message)

    async def _send_start(self, message: Message) -> None:
        body = self._body
        if body.problem and message["status"] != body.problem.status:  # the application caught the problem
            self._replaced = True
            response = body.problem.response()
            message = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
            await self._send_start(message)
            await self._send_end({"type": "http.response.body", "body": response.body})
            return
        if not body.complete:
            await body.drain(DRAINED, seconds=0.0 if body.problem else 0.5)
        body.answered = True
        if not body.complete:
            MutableHeaders(scope=message)["Connection"] = "close"
        await self._send(message)

    async def _send_end(self, message: Message) -> None:
        if not self._body.complete:
            await self._send({**message, "more_body": True})
            await self._body.drain(LINGERING, seconds=LINGER)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)
