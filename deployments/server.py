"""Prefect's server on SQLite, with short retries, garbage collection in a thread, and a check of the Host header.

It answers 503 when two transactions conflict, and its own clients then wait 2, 4, 8 … s, unless the answer has a
shorter time. Automations create flow runs through such a client: without this, one run in six starts 2 s late.

Without the thread it blocked now and then for the 60 s of SQLite's busy timeout: the garbage collector, in the thread
of the event loop, closed a cursor, and for that waited for its connection; the connection waited for the lock on the
database; the holder of the lock waited for the event loop. So garbage is collected in a thread for which nothing waits.

A web page whose name resolves to this machine (DNS rebinding) has the server's own origin for a browser. Its requests
have the page's name as Host: they are refused.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from urllib.parse import urlsplit

from prefect.server.api.server import create_app as prefect_app
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plateway import log_records, settings

RETRY_AFTER = b"0.1"  # seconds
PAUSE = 1.0  # seconds between two collections of young objects
FULL = 60  # one collection in so many is a full one


class RetryAfter:
    """Middleware that adds a short Retry-After to each 503."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add_header(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 503:
                message["headers"] = [*message["headers"], (b"retry-after", RETRY_AFTER)]
            await send(message)

        await self.app(scope, receive, add_header)


def collect_in_thread() -> threading.Thread:
    """Disable automatic garbage collection, and collect in a thread instead."""
    gc.disable()
    thread = threading.Thread(target=_collect_garbage, name="garbage", daemon=True)
    thread.start()
    return thread


def _collect_garbage() -> None:
    for number in itertools.count(1):  # until the process ends
        time.sleep(PAUSE)
        gc.collect(1 if number % FULL else 2)


def create_app() -> ASGIApp:
    """Return the app that uvicorn serves; Prefect's own clients in this process use Prefect's app directly."""
    collect_in_thread()
    app = prefect_app()
    log_records.adjust_handlers(settings.load_logs())
    app.add_middleware(RetryAfter)
    named = urlsplit(settings.load().prefect_ui_url or "").hostname
    hosts = ["127.0.0.1", "localhost", *([named] if named else [])]
    return TrustedHostMiddleware(app, allowed_hosts=hosts, www_redirect=False)
