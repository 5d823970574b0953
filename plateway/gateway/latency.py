"""How many requests took how long, by route, method and kind of answer: counts that all workers share.

They lie in a file that stays, so that they only ever grow. A worker adds up its own and writes them into the file once
in a while; where another is at it just then, the next time.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from operator import add
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
ROW = struct.Struct(f"<{len(BOUNDS) + 1}Qd")  # how many took up to each bound and longer, and seconds in all
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
NOWHERE = "none"  # the route of requests that met none
OFTEN = 1.0  # seconds between writes


class Timing(NamedTuple):
    """The requests of one route, method and kind of answer."""

    route: str
    method: str
    status: str  # 2xx …
    counts: tuple[int, ...]  # of those that took up to each of `BOUNDS` but longer than the one before; then the rest
    seconds: float  # in all


class Durations:
    """The counts, as one worker sees them."""

    def __init__(self, directory: Path, app: FastAPI) -> None:
        asked = {(getattr(route, "path_format", NOWHERE), one) for route in app.routes for one in _methods(route)}
        asked |= {(NOWHERE, method) for method in METHODS}
        self._names = [(*one, status) for one in sorted(asked) for status in CLASSES]
        self._rows = {name: number for number, name in enumerate(self._names)}
        digest = hashlib.sha256(repr((self._names, BOUNDS)).encode()).hexdigest()[:16]
        self._file = os.open(directory / f"durations-{digest}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, len(self._names) * ROW.size)
        self._table = mmap.mmap(self._file, len(self._names) * ROW.size)
        self._mine: dict[int, list[float]] = {}
        self._next = 0.0
        self._turn = threading.RLock()

    def record(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        kind = f"{status // 100}xx"
        row = self._rows.get((route, method, kind), self._rows.get((NOWHERE, method, kind)))
        if row is None:
            return
        with self._turn:
            mine = self._mine.setdefault(row, [0] * (len(BOUNDS) + 2))
            mine[bisect_left(BOUNDS, seconds)] += 1
            mine[-1] += seconds
            if time.monotonic() >= self._next:
                self.flush()

    def flush(self) -> None:
        """Write what this worker counted, unless another one writes at this moment."""
        with self._turn:
            self._next = time.monotonic() + OFTEN
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            try:
                for row, mine in self._mine.items():
                    known = ROW.unpack_from(self._table, row * ROW.size)
                    ROW.pack_into(self._table, row * ROW.size, *map(add, known, mine))
                self._mine = {}
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def read(self) -> Iterator[Timing]:
        """Give the counts of all workers, of what was asked for at all."""
        self.flush()
        for name, (*counts, seconds) in zip(self._names, ROW.iter_unpack(self._table[:]), strict=True):
            if any(counts):
                yield Timing(*name, tuple(counts), seconds)


class Timed:
    """Count each request when it is over. Made with the first one, when the gateway has all its routes."""

    def __init__(self, app: ASGIApp, *, gateway: FastAPI, directory: Path) -> None:
        self.app = app
        gateway.state.durations = self._durations = Durations(directory, gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path_format", NOWHERE)
            self._durations.record(route, scope["method"], status, time.perf_counter() - began)


def _methods(route: BaseRoute) -> set[str]:
    return getattr(route, "methods", None) or set()
