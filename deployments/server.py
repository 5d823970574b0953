"""Prefect's server on SQLite, quicker to be asked again, never frozen, and closed to other Host headers.

It answers 503 when two transactions meet, and its own clients then wait 2, 4, 8 … s, unless the answer names a shorter
time. Automations create flow runs through such a client: without this, one run in six starts 2 s late.

Now and then it stood still for the 60 s of SQLite's busy timeout: the garbage collector, in the thread of the event
loop, came upon a cursor, and to let go of that waited for its connection; the connection waited for the lock on the
database; whoever held that waited for the event loop. So garbage is collected by a thread that nobody waits for.

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

from plateway import settings

SOON = b"0.1"  # seconds
PAUSE = 1.0  # seconds between two collections of what is young
WHOLE = 60  # of these, one is of everything


class Soon:
    """Middleware that tells whoever met a 503 to come back soon."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sooner(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 503:
                message["headers"] = [*message["headers"], (b"retry-after", SOON)]
            await send(message)

        await self.app(scope, receive, sooner)


def collect_aside() -> threading.Thread:
    """Collect garbage in a thread of its own from now on."""
    gc.disable()
    thread = threading.Thread(target=_collect, name="garbage", daemon=True)
    thread.start()
    return thread


def _collect() -> None:
    for number in itertools.count(1):  # as long as the process lives
        time.sleep(PAUSE)
        gc.collect(1 if number % WHOLE else 2)


def create_app() -> ASGIApp:
    """Make the app that uvicorn serves; Prefect's own clients in this process use the app within."""
    collect_aside()
    app = prefect_app()
    app.add_middleware(Soon)
    named = urlsplit(settings.load().prefect_ui_url or "").hostname
    hosts = ["127.0.0.1", "localhost", *([named] if named else [])]
    return TrustedHostMiddleware(app, allowed_hosts=hosts, www_redirect=False)
