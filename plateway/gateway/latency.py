"""Count requests by duration, route, method and class of status; all workers share the counts.

The counts lie in a file that outlasts the gateway, so that they never decrease. A worker adds its own counts to the
file every `OFTEN` seconds, or at a later flush if another worker holds the lock. The multiprocess mode of
prometheus-client is not used: it keeps one file for each process that ever ran, and is configured by the environment.
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
ROW = struct.Struct(f"<{len(BOUNDS) + 1}Qd")  # requests up to each bound, and above; total seconds
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
NO_ROUTE = "none"  # the route of requests that match none
OFTEN = 1.0  # seconds between writes


class Timing(NamedTuple):
    """The requests of one route, method and class of status."""

    route: str
    method: str
    status: str  # 2xx …
    counts: tuple[int, ...]  # requests in each interval of `BOUNDS`, and above the last one
    seconds: float  # total


class Durations:
    """The shared counts, and those of this worker that are not written yet."""

    def __init__(self, directory: Path, app: FastAPI) -> None:
        served = {(getattr(route, "path_format", NO_ROUTE), one) for route in app.routes for one in _methods_of(route)}
        served |= {(NO_ROUTE, method) for method in METHODS}
        self._names = [(*one, status) for one in sorted(served) for status in CLASSES]
        self._rows = {name: number for number, name in enumerate(self._names)}
        digest = hashlib.sha256(repr((self._names, BOUNDS)).encode()).hexdigest()[:16]
        self._file = os.open(directory / f"durations-{digest}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, len(self._names) * ROW.size)
        self._table = mmap.mmap(self._file, len(self._names) * ROW.size)
        self._unwritten: dict[int, list[float]] = {}
        self._next = 0.0
        self._lock = threading.RLock()

    def record(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        kind = f"{status // 100}xx"
        row = self._rows.get((route, method, kind), self._rows.get((NO_ROUTE, method, kind)))
        if row is None:
            return
        with self._lock:
            counts = self._unwritten.setdefault(row, [0] * (len(BOUNDS) + 2))
            counts[bisect_left(BOUNDS, seconds)] += 1
            counts[-1] += seconds
            if time.monotonic() >= self._next:
                self.flush()

    def flush(self) -> None:
        """Add the counts of this worker to the file, unless another worker holds the lock."""
        with self._lock:
            self._next = time.monotonic() + OFTEN
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            try:
                for row, counts in self._unwritten.items():
                    known = ROW.unpack_from(self._table, row * ROW.size)
                    ROW.pack_into(self._table, row * ROW.size, *map(add, known, counts))
                self._unwritten = {}
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def read(self) -> Iterator[Timing]:
        """Return the counts of all workers that are not zero."""
        self.flush()
        for name, (*counts, seconds) in zip(self._names, ROW.iter_unpack(self._table[:]), strict=True):
            if any(counts):
                yield Timing(*name, tuple(counts), seconds)


class RequestTiming:
    """Middleware: count each request at its end. Created with the first request, when all routes are installed."""

    def __init__(self, app: ASGIApp, *, gateway: FastAPI, directory: Path) -> None:
        self.app = app
        gateway.state.durations = self._durations = Durations(directory, gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def send_with_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_with_status)
        finally:
            route = getattr(scope.get("route"), "path_format", NO_ROUTE)
            self._durations.record(route, scope["method"], status, time.perf_counter() - began)


def _methods_of(route: BaseRoute) -> set[str]:
    return getattr(route, "methods", None) or set()
