"""The process that answers: uvicorn, with patience that ends, and as many workers as are asked for."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from plateway.errors import Misconfigured
from plateway.gateway.address_limits import HEALTH_ONLY, limit_name, within
from plateway.gateway.app import Parts, create_app
from plateway.gateway.rate_limits import Limits

HEAD = 10.0  # seconds in which the head of a request has to be there
STALLED = 30.0  # seconds after which slowness in taking an answer counts
SLOWEST = 1024  # bytes a second, on average, that a client takes
TICK = 2.0
FILES = 8192  # open at a time: connections that came at once, before any of them is closed, and what they need
FINISH = 10  # seconds that requests have at the end
SILENT = 60  # seconds after which a worker that says nothing is replaced; one that starts on a busy machine takes some
LOGS = {  # of every worker; requests are in the access log
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "plateway.names.PlainFormatter", "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s"}
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {"plateway": {"level": "INFO"}},
}

log = logging.getLogger(__name__)


class Patient(H11Protocol):
    """A connection that is given up when the head of a request, or the taking of an answer, has no end.

    Where there are too many, of one address or together, the one that has waited longest for a request is closed.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own
        super().connection_made(transport)
        self.address = limit_name(self.client[0] if self.client else None)
        self._waits = time.monotonic()  # since when a head is waited for
        self._full: tuple[float, int] | None = None  # since when, and how much, waits to be taken
        self._next = self.loop.call_later(TICK, self._tick)
        if crowd := self._crowd():
            self._make_room(crowd)

    def data_received(self, data: bytes) -> None:
        if self._idle() and self.timeout_keep_alive_task is not None:
            self._waits = time.monotonic()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._waits = time.monotonic()
        super().on_response_complete()

    def _crowd(self) -> list[Patient]:
        """List the connections that there are too many of."""
        limits: Limits = self.app_state["limits"]
        every = [one for one in self.connections if isinstance(one, Patient)]
        mine = [one for one in every if one.address == self.address]
        if len(mine) > limits.per_address and not (self.client and within(self.client[0], self.app_state["trusted"])):
            return mine
        if len(every) <= limits.connections:
            return []
        ((most, _),) = Counter(one.address for one in every).most_common(1)
        return [one for one in every if one.address == most]

    def _make_room(self, crowd: Sequence[Patient]) -> None:
        """Close one of them that waits for a request; where none does, keep this one for health and readiness."""
        idle = [one for one in crowd if one is not self and one._idle()]
        if idle:
            min(idle, key=lambda one: one._waits)._drop()
            return
        self.app_state = {**self.app_state, HEALTH_ONLY: True}
        spare = sum(HEALTH_ONLY in one.app_state for one in self.connections)
        if spare > self.app_state["limits"].health_connections:
            self._drop()

    def _drop(self) -> None:
        self.connections.discard(self)
        self.transport.abort()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _tick(self) -> None:
        self._next = self.loop.call_later(TICK, self._tick)
        now, size = time.monotonic(), self.transport.get_write_buffer_size()
        if size == 0:
            self._full = None
            if self._idle() and self.timeout_keep_alive_task is None and now - self._waits > HEAD:
                self.transport.abort()
            return
        if self._full is None or size > self._full[1]:
            self._full = now, size
        waited = now - self._full[0]
        if waited > STALLED and self._full[1] - size < waited * SLOWEST:
            self.transport.abort()


def config(parts: Parts, *, workers: int = 1, logs: dict[str, Any] | None = None) -> uvicorn.Config:
    """Say how uvicorn is to run it."""
    return uvicorn.Config(
        partial(_worker, parts),
        factory=True,
        workers=workers,
        http=Patient,
        ws="none",
        access_log=False,  # ours says more
        log_config=logs,
        proxy_headers=False,  # whom to believe is a setting of ours
        server_header=False,
        timeout_graceful_shutdown=FINISH,
        timeout_worker_healthcheck=SILENT,
    )


def listen(host: str, port: int) -> socket.socket:
    """Take a port; 0 is any that is free.

    Raises:
        Misconfigured: it is taken, or is not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # TCP: asyncio then sets NODELAY
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise Misconfigured(f"port {port} of {host}: {error.strerror}") from None
    taken.set_inheritable(True)
    return taken


def serve(
    parts: Parts, *, host: str, port: int, workers: int = 1, say: Callable[[str], object] = lambda _: None
) -> None:
    """Answer until a signal ends it; when others can connect, `say` is told the address. Logs to standard error.

    Raises:
        Misconfigured: a part cannot be as it is asked to be.
    """
    if workers > 1 and (parts.objects or "").startswith("memory:"):
        raise Misconfigured("objects in memory are one worker's own: use one worker, or another place for them")
    create_app(parts)  # what is wrong is said here, not by each worker
    _allow_files(FILES)
    told = config(parts, workers=workers, logs=LOGS)
    with listen(host, port) as taken:
        taken.listen(told.backlog)
        say(address(host, taken.getsockname()[1]))
        if workers > 1:
            Multiprocess(told, sockets=[taken]).run()
        else:
            with suppress(KeyboardInterrupt):  # raised again by uvicorn when all is over
                uvicorn.Server(told).run(sockets=[taken])


def _allow_files(wanted: int) -> None:
    """Raise the number of files that this process and its workers may open, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def address(host: str, port: int) -> str:
    """Write where it listens."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _worker(parts: Parts) -> FastAPI:
    """Make the application in a process that ends when the one that started it is no more."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_mourn, args=(parent,), name="parent", daemon=True).start()
    return create_app(parts)


def _mourn(parent: BaseProcess) -> None:
    """Without its parent a worker would hold the port, and nobody would ever stop it."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
