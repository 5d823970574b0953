"""How much anybody may ask: requests in a time, bytes of a body, and slowness.

Budgets lie in one small file that the workers of a machine map into memory. A budget is a single number, the time at
which it will be full again (GCRA, the leaky bucket of ATM Forum TM 4.0), so the table has a fixed size, nothing in it
has to be cleaned up, and a look takes some microseconds. A lock on the file makes look-and-charge one step; it goes
with the process that holds it. Clocks are monotonic: setting the wall clock changes nothing.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import ipaddress
import mmap
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plateway.gateway.access import note
from plateway.gateway.errors import Problem

SLOT = struct.Struct("<Qd")  # who, and when the budget is full again
WAYS = 8  # budgets that share a place in the table; the fullest makes room for a new one
SET = struct.Struct("<" + WAYS * "Qd")
SETS = 8192
LOCK_TRIES = 40
LOCK_PAUSE = 0.0005
LINGER = 2.0  # seconds for which the rest of an unwanted body is taken, so that the answer can be read
LINGERING = 4 << 20  # bytes of it
DRAINED = 256 << 10  # bytes of an unwanted body that are taken rather than that the connection is given up
POLICY = "Content-Security-Policy"
SPARE = "spare"  # in the state of a request's scope
UNLIMITED = frozenset({"/health", "/ready"})
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
PEOPLE = frozenset({"/login", "/logout"})  # forms that change only what the browser keeps

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many seconds; as many may come at once."""

    count: int
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the gateway takes. Sizes are bytes, times seconds."""

    token: Rate = Rate(6000)
    address: Rate = Rate(12000)
    failed: Rate = Rate(20)  # logins of one address
    object_size: int = 5 << 30
    body_size: int = 1 << 20  # of everything that is no object
    slowest: int = 64 << 10  # bytes a second of a body
    patience: float = 10.0  # before slowness counts
    slack: float = 30.0  # that a body may have gained by coming faster
    longest: float = 6 * 3600.0  # a body may take
    uploads: int = (
        8  # large bodies that one worker stores at a time, half of them of one token; each takes up to 25 MiB
    )
    connections: int = 1000  # of one worker
    each: int = 250  # connections, and requests at a time, of one address
    spare: int = 32  # connections beyond, for health and readiness


class Rates:
    """Budgets by name, shared by all who open the same file on one machine."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, SETS * SET.size)
        self._table = mmap.mmap(self._file, SETS * SET.size)
        self._clock = clock
        self._mine = threading.Lock()

    def take(self, who: str, rate: Rate) -> float:
        """Charge one; returns 0.0, or the seconds until there is one again, and then nothing is charged."""
        interval = rate.seconds / rate.count
        with self._mine:
            locked = self._lock()
            try:
                now = self._clock()
                at, tag, full = self._find(who, now)
                if full > now + rate.seconds + interval:
                    full = now  # of an earlier start of the machine, or of another rate
                wait = full + interval - now - rate.seconds
                if wait > 1e-9:
                    return wait
                SLOT.pack_into(self._table, at, tag, full + interval)
                return 0.0
            finally:
                if locked:
                    fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file."""
        self._table.close()
        os.close(self._file)

    def _lock(self) -> bool:
        """Take the lock; whoever was stopped with it does not stop the others: they then count a little less."""
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(LOCK_PAUSE)
        return False

    def _find(self, who: str, now: float) -> tuple[int, int, float]:
        """Find the place of a budget, its tag, and when it is full again (never before now)."""
        place, tag = struct.unpack("<QQ", hashlib.blake2b(who.encode("utf-8", "replace"), digest_size=16).digest())
        first = place % SETS * SET.size
        found = SET.unpack_from(self._table, first)
        known, full = found[::2], found[1::2]
        way = known.index(tag) if tag in known else full.index(min(full))
        return first + way * SLOT.size, tag, max(full[way], now) if tag in known else now


def too_many(wait: float) -> Problem:
    """Say when to ask again."""
    return Problem(429, "Too many requests", headers={"Retry-After": str(max(1, ceil(wait)))})


def networks(trusted: Sequence[str]) -> tuple[Network, ...]:
    """Read addresses and networks of proxies that are believed.

    Raises:
        ValueError: one is neither.
    """
    return tuple(ipaddress.ip_network(one, strict=False) for one in trusted)


def address(peer: str | None, forwarded: str, trusted: Sequence[Network]) -> str | None:
    """Say who asks: the peer, or the last one before the proxies that are believed, as they tell."""
    for hop in [*reversed([one.strip() for one in forwarded.split(",")]), None]:
        if peer is None or not within(peer, trusted) or not hop or _parsed(hop) is None:
            return peer
        peer = hop
    return peer


@lru_cache(1024)
def payer(found: str | None) -> str:
    """Say whose budget an address counts for: an IPv6 customer has a /64."""
    told = _parsed(found or "")
    if isinstance(told, ipaddress.IPv6Address):
        return f"address {ipaddress.ip_network((told, 64), strict=False).network_address}"
    return f"address {told}"


@lru_cache(1024)
def _parsed(found: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        told = ipaddress.ip_address(found)
    except ValueError:
        return None
    return told.ipv4_mapped or told if isinstance(told, ipaddress.IPv6Address) else told


def within(found: str, trusted: Sequence[Network]) -> bool:
    """Return whether an address is a proxy that is believed."""
    told = _parsed(found)
    return told is not None and any(told in network for network in trusted if network.version == told.version)


class Addressed:
    """Record who asks, and answer each address only so often, and so many requests at a time.

    Health and readiness are always answered. They alone are on connections that the server marked with `SPARE`.
    """

    def __init__(self, app: ASGIApp, *, rates: Rates, limits: Limits, trusted: Sequence[Network]) -> None:
        self.app, self._rates, self._limits, self._trusted = app, rates, limits, trusted
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")) if self._trusted else ""
        told = note(scope)
        told.address = address((scope.get("client") or (None,))[0], forwarded, self._trusted)
        if scope["path"] in UNLIMITED:
            await self.app(scope, receive, send)
            return
        who = payer(told.address)
        if problem := self._problem(scope, who):
            await problem.response()(scope, receive, send)
            return
        self._running[who] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._running -= Counter([who])  # which forgets those that have none

    def _problem(self, scope: Scope, who: str) -> Problem | None:
        full = self._running.total() >= self._limits.connections or self._running[who] >= self._limits.each
        if full or SPARE in scope.get("state", {}):
            return Problem(503, "Too many requests at a time", headers={"Retry-After": "1", "Connection": "close"})
        wait = self._rates.take(who, self._limits.address)
        return too_many(wait) if wait else None


class ReadOnly:
    """Refuse every method that could change something, and note who tried."""

    def __init__(self, app: ASGIApp, *, whose: Callable[[Headers], str | None]) -> None:
        self.app, self._whose = app, whose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in HARMLESS and scope["path"] not in PEOPLE:
            note(scope).who = self._whose(Headers(scope=scope))
            await Problem(403, "This server is read-only").response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


class Bounded:
    """Take bodies up to a size and not too slowly, and answer in a way that those who still send can hear."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = self._limits.object_size if scope["path"].startswith("/objects/") else self._limits.body_size
        body = Body(scope, receive, limits=self._limits, size=size)
        answer = Answer(send, body)
        if body.problem:
            await body.problem.response()(scope, body.receive, answer.send)
            return
        try:
            await self.app(scope, body.receive, answer.send)
        except Problem as error:
            if answer.begun:
                raise
            await error.response()(scope, body.receive, answer.send)


class Body:
    """A request's body as it comes."""

    def __init__(self, scope: Scope, receive: Receive, *, limits: Limits, size: int) -> None:
        headers = Headers(scope=scope)
        told = headers.get("content-length", "0")
        self.problem: Problem | None = None
        self.over = told == "0" and "transfer-encoding" not in headers  # nothing more will come
        self.answered = False
        self.waits = headers.get("expect", "").lower() == "100-continue"  # the client sends nothing before it is asked
        self._receive, self._limits, self._size = receive, limits, size
        self._taken, self._left, self._began = 0, limits.patience, time.monotonic()  # seconds that may be waited
        if told.isdecimal() and int(told) > size:
            self.problem = self._too_large()

    async def receive(self) -> Message:
        """Take the next piece.

        Raises:
            Problem: it is too much, or comes too slowly.
        """
        if self.over or self.answered:
            return await self._receive()
        if self.problem:
            raise self.problem
        message = await self._timely()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._taken += size
            self._left = min(self._left + size / self._limits.slowest, self._limits.slack)
            self.over = not message.get("more_body", False)
            if self._taken > self._size:
                self.problem = self._too_large()
                raise self.problem
        else:
            self.over = True
        return message

    async def drain(self, size: int, *, seconds: float) -> None:
        """Take what still comes, to nobody's use, for so long and so much at most."""
        if self.waits and not self._taken:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.over and size > 0:
                    message = await self._receive()
                    size -= len(message.get("body", b""))
                    self.over = message["type"] != "http.request" or not message.get("more_body", False)

    async def _timely(self) -> Message:
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(self._left, self._limits.longest - (began - self._began))):
                return await self._receive()
        except TimeoutError:
            self.problem = Problem(408, "The body came too slowly")
            raise self.problem from None
        finally:
            self._left -= time.monotonic() - began

    def _too_large(self) -> Problem:
        return Problem(413, f"The body has more than {self._size} bytes")


class Answer:
    """A response as it goes, sound also when the request did not end."""

    def __init__(self, send: Send, body: Body) -> None:
        self.begun = False
        self._send, self._body = send, body
        self._instead = False  # what the application says is not sent: the body's problem was

    async def send(self, message: Message) -> None:
        """Send on; what is left of the body is taken first, or the connection is given up."""
        if self._instead:
            return
        if message["type"] == "http.response.start":
            self.begun = True
            await self._start(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._end(message)
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        body = self._body
        if body.problem and message["status"] != body.problem.status:  # whoever read it took it for something else
            self._instead = True
            answer = body.problem.response()
            message = {"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers}
            await self._start(message)
            await self._end({"type": "http.response.body", "body": answer.body})
            return
        if not body.over:
            await body.drain(DRAINED, seconds=0.0 if body.problem else 0.5)
        body.answered = True
        if not body.over:
            MutableHeaders(scope=message)["Connection"] = "close"
        await self._send(message)

    async def _end(self, message: Message) -> None:
        if not self._body.over:
            await self._send({**message, "more_body": True})
            await self._body.drain(LINGERING, seconds=LINGER)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)


class Safe:
    """Say with every answer that it is no page: browsers neither guess nor run it."""

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (POLICY.lower().encode(), b"default-src 'none'; frame-ancestors 'none'; sandbox"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-frame-options", b"DENY"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = list(message["headers"])
                names = {name for name, _ in said}
                message["headers"] = said + [one for one in self.HEADERS if one[0] not in names]
            await send(message)

        await self.app(scope, receive, safe if scope["type"] == "http" else send)
