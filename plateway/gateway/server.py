"""Run the gateway with uvicorn: one or several workers, and time limits for slow connections."""

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
from contextlib import ExitStack, suppress
from dataclasses import replace
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

HEAD = 10.0  # seconds for the head of a request
STALLED = 30.0  # seconds after which a client that reads too slowly is disconnected
SLOWEST = 1024  # smallest mean rate at which a client reads, in bytes per second
TICK = 2.0
FILES = 8192  # open files of a process: connections, and the files that serve them
FINISH = 10  # seconds for running requests at shutdown
SILENT = 60  # seconds without a sign of life after which a worker is replaced; a start on a busy machine is slow

log = logging.getLogger(__name__)


class LimitedConnection(H11Protocol):
    """A connection that is closed when its client sends a head or reads a response too slowly.

    When there are too many connections, of one address or in total, the one that is idle for longest is closed.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own
        super().connection_made(transport)
        self.address = limit_name(self.client[0] if self.client else None)
        self._waits = time.monotonic()  # start of the wait for a head
        self._full: tuple[float, int] | None = None  # time and size when the write buffer was fullest
        self._next = self.loop.call_later(TICK, self._tick)
        if excess := self._excess():
            self._close_one(excess)

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

    def _excess(self) -> list[LimitedConnection]:
        """List the connections among which one is too many; empty: none is."""
        limits: Limits = self.app_state["limits"]
        every = [one for one in self.connections if isinstance(one, LimitedConnection)]
        mine = [one for one in every if one.address == self.address]
        if len(mine) > limits.per_address and not (self.client and within(self.client[0], self.app_state["trusted"])):
            return mine
        if len(every) <= limits.connections:
            return []
        ((most, _),) = Counter(one.address for one in every).most_common(1)
        return [one for one in every if one.address == most]

    def _close_one(self, excess: Sequence[LimitedConnection]) -> None:
        """Close the idle connection that waits longest; if none is idle, serve only /health and /ready on this one."""
        idle = [one for one in excess if one is not self and one._idle()]
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
    """Return the configuration of uvicorn."""
    return uvicorn.Config(
        partial(_worker, parts),
        factory=True,
        workers=workers,
        http=LimitedConnection,
        ws="none",
        access_log=False,  # the gateway writes its own
        log_config=logs,
        proxy_headers=False,  # trusted proxies are a setting of the gateway
        server_header=False,
        timeout_graceful_shutdown=FINISH,
        timeout_worker_healthcheck=SILENT,
    )


def listen(host: str, port: int) -> socket.socket:
    """Bind a port; 0: any free one.

    Raises:
        Misconfigured: it is in use, or not permitted.
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
    parts: Parts,
    *,
    host: str,
    port: int,
    workers: int = 1,
    logs: dict[str, Any] | None = None,
    say: Callable[..., object] = lambda *_: None,
) -> None:
    """Serve until a signal ends it.

    ``logs`` configures the logs of each worker, as `log_records.service_config` returns it; without it nothing does.
    Calls `say` with the URL when clients can connect, and with that of the S3 endpoint where there is one.

    Raises:
        Misconfigured: a part is not valid.
    """
    if workers > 1 and (parts.objects or "").startswith("memory:"):
        raise Misconfigured("objects in memory are not shared between workers: use one worker, or another location")
    create_app(parts)  # report errors of the configuration once, not in each worker
    _allow_files(FILES)
    with ExitStack() as stack:
        wanted = [port] if parts.s3_port is None else [port, parts.s3_port]
        sockets = [stack.enter_context(listen(host, one)) for one in wanted]
        ports = [one.getsockname()[1] for one in sockets]
        told = config(replace(parts, s3_port=ports[1]) if ports[1:] else parts, workers=workers, logs=logs)
        for one in sockets:
            one.listen(told.backlog)
        say(*(address(host, one) for one in ports))
        if workers > 1:
            Multiprocess(told, sockets=sockets).run()
        else:
            with suppress(KeyboardInterrupt):  # uvicorn raises it again after the shutdown
                uvicorn.Server(told).run(sockets=sockets)


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files of this process and its workers, up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def address(host: str, port: int) -> str:
    """Return the URL of an address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _worker(parts: Parts) -> FastAPI:
    """Create the application in a worker process that ends with its parent."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with_parent, args=(parent,), name="parent", daemon=True).start()
    return create_app(parts)


def _end_with_parent(parent: BaseProcess) -> None:
    """Wait for the end of the parent, then stop: an orphaned worker would keep the port."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
