"""The gateway put together: what it consists of, and the application that answers.

`Parts` are plain values, so that every worker process can be given the same ones. What workers share (budgets, turns,
the access log) lies in the home.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from plateway import __version__
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured, NotFound, PlatewayError, Rejected, Unavailable
from plateway.gateway import (
    auth,
    dlm_api,
    errors,
    events,
    images,
    metrics,
    objects,
    pages,
    reference,
)
from plateway.gateway.access import AccessLog, AccessLogging
from plateway.gateway.address_limits import AddressLimit, networks
from plateway.gateway.body_limits import BodyLimit
from plateway.gateway.headers import SecurityHeaders
from plateway.gateway.object_store import Shelf
from plateway.gateway.probes import Probe, Probes, run
from plateway.gateway.rate_limits import Limits, Rates
from plateway.gateway.tokens import SESSIONS, Tokens
from plateway.pipeline import Site
from plateway.store import Objects, open_store

LEFT = timedelta(days=1)  # uploads as old as this were begun by nobody who is still there
HOLDS = 1.0  # seconds for which that is not asked again
OK = "ok"
HEALTH = {"status": "healthy", "service": "amplify-object-store", "version": "0.1.0"}  # the words clients know

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a gateway consists of."""

    home: Path  # gateway/ in it holds what the workers share
    tokens: Path  # the tokens file
    objects: str | None = None  # where the objects are, as `store.open_store` reads it; None: there is no object API
    bucket: str | None = None  # where the events are: no place for objects
    endpoint: Endpoint = field(default_factory=Endpoint)
    access: Path | None = None  # the access log; None: gateway/access.log in the home
    limits: Limits = field(default_factory=Limits)
    trusted: tuple[str, ...] = ()  # addresses and networks of proxies that are believed
    read_only: bool = False
    site: Callable[[], Site] | None = None  # opens the line that events are read from; None: there are objects only
    open: bool = False  # events are shown without a token
    straight: bool = False  # … but only to requests that came straight to this machine's own address
    links: timedelta = timedelta(minutes=15)  # how long a presigned link is good
    prefect_ui: str | None = None  # where people see the runs

    @property
    def place(self) -> Path:
        """What the workers share."""
        return self.home / "gateway"

    @property
    def sessions(self) -> Path:
        """The sessions of browsers that a link signed in."""
        return self.home / SESSIONS

    @property
    def log(self) -> Path:
        """The access log."""
        return self.access or self.place / "access.log"


def create_app(parts: Parts) -> FastAPI:
    """Make the application.

    Raises:
        Misconfigured: a part cannot be as it is asked to be, or a route declares no scopes.
    """
    parts.place.mkdir(parents=True, exist_ok=True)
    try:
        trusted = networks(parts.trusted)
    except ValueError as error:
        raise Misconfigured(f"trusted proxies: {error}") from None
    shelf, site = _shelf(parts), parts.site and parts.site()
    rates, tokens, access = Rates(parts.place / "rates"), Tokens(parts.tokens), AccessLog(parts.log)
    app = FastAPI(
        title="Plateway",
        version=__version__,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere: see reference
        redoc_url=None,
        lifespan=partial(
            _lifespan,
            swept=None if parts.read_only else shelf,
            close=(access.close, *([site.close] if site else [])),
            state={"limits": parts.limits, "trusted": trusted},  # for connections
        ),
    )
    app.state.parts, app.state.site = parts, site
    app.state.guard = auth.Guard(
        tokens, rates, parts.limits, sessions=Tokens(parts.sessions), open_=parts.open, straight=parts.straight
    )
    app.state.probes = Probes()
    app.state.readiness = Readiness(app.state.probes, tokens=partial(_sound, tokens), access=partial(_sound, access))
    errors.install(app)
    app.add_api_route("/health", health, methods=["GET"], dependencies=[auth.OPEN], tags=["health"])
    app.add_api_route("/ready", ready, methods=["GET"], dependencies=[auth.OPEN], tags=["health"])
    if shelf is not None:
        app.state.readiness.checks["objects"] = partial(_reached, shelf.store)
        objects.install(app, shelf, limits=parts.limits)
    if site is not None:
        app.state.readiness.checks["catalogue"] = partial(_migrated, site)
        app.state.readiness.checks["bucket"] = partial(_bucket, site)
        for module in (dlm_api, events, images, metrics, pages):
            module.install(app, site)
    reference.install(app)
    list(auth.declared(app))
    if parts.read_only:
        app.add_middleware(auth.ReadOnly, token_name=app.state.guard.token_name)
    app.add_middleware(AddressLimit, rates=rates, limits=parts.limits, trusted=trusted)
    app.add_middleware(BodyLimit, limits=parts.limits)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(AccessLogging, log=access)
    return app


async def health() -> dict[str, str]:
    """Say that the process answers; nothing else is asked."""
    return HEALTH


async def ready(request: Request) -> Response:
    """Say whether everything that requests need is there, and what is not."""
    readiness: Readiness = request.app.state.readiness
    found = await readiness.look()
    status = "ready" if set(found.values()) <= {OK} else "not ready"
    return JSONResponse({"status": status, "checks": found}, 200 if status == "ready" else 503)


class Readiness:
    """What has to be there, each told by a call that blocks and raises our errors; an answer holds for a moment."""

    def __init__(self, probes: Probes, **checks: Callable[[], None]) -> None:
        self.checks = checks
        self._probes = probes
        self._asking, self._limiter = asyncio.Lock(), CapacityLimiter(1)  # no other request keeps it waiting
        self._found: dict[str, str] = {}
        self._until = 0.0

    async def look(self) -> dict[str, str]:
        """Ask all parts at a time how they are; in words that anybody may read."""
        async with self._asking:
            if time.monotonic() > self._until:
                self._found = await to_thread.run_sync(self._ask_all, limiter=self._limiter)
                self._until = time.monotonic() + HOLDS
            return self._found

    def _ask_all(self) -> dict[str, str]:
        asked = {name: self._probes.start(f"ready: {name}", check) for name, check in self.checks.items()}
        return {name: self._answer(probe) for name, probe in asked.items()}

    def _answer(self, probe: Probe[None]) -> str:
        try:
            probe.result()
        except NotFound as error:  # how a bucket is called is for the log
            log.error("not ready: %s", error)
            return "is not there"
        except Unavailable as error:
            log.error("not ready: %s", error)
            return "does not answer"
        except PlatewayError as error:
            log.error("not ready: %s", error)
            return errors.problem(error).message
        return OK


def overlap(one: str, other: str) -> bool:
    """Tell whether two places of objects are the same, or one lies in the other."""
    first, second = map(_place, (one, other))
    return first.startswith(second) or second.startswith(first)


def _place(url: str) -> str:
    """Say a place, which may be a path, in the one way that `open_store` would understand it."""
    parts = urlsplit(url)
    path = unquote(parts.path) if parts.scheme else url
    if parts.scheme in {"", "file"}:
        return str(Path(path).resolve()).rstrip("/") + "/"
    return f"{parts.scheme}://{parts.netloc}/" + (f"{path.strip('/')}/" if path.strip("/") else "")


@asynccontextmanager
async def _lifespan(
    _app: FastAPI, *, swept: Shelf | None, close: Sequence[Callable[[], None]], state: Mapping[str, Any]
) -> AsyncIterator[Mapping[str, Any]]:
    if swept is not None:  # nobody waits for it: what is not done is done at the next start
        run(partial(_sweep, swept.store), into=Future(), name="sweep")
    yield state
    for end in close:
        end()


def _shelf(parts: Parts) -> Shelf | None:
    if parts.objects is None:
        return None
    if parts.bucket is not None and overlap(parts.objects, parts.bucket):
        raise Misconfigured("objects need a bucket or a prefix of their own: no token may reach the events")
    endpoint = replace(parts.endpoint, read_only=parts.endpoint.read_only or parts.read_only)
    return Shelf(open_store(parts.objects, endpoint), parts.place)


def _sweep(place: Objects) -> None:
    """End uploads that were left behind; what fails now is done at the next start."""
    try:
        for upload in place.uploads():
            if upload.initiated < datetime.now(UTC) - LEFT:
                place.abort(upload)
    except PlatewayError as error:
        log.warning("uploads that were left behind are not looked for: %s", error)


def _sound(part: Tokens | AccessLog) -> None:
    if part.problem:
        raise Rejected(part.problem)


def _reached(place: Objects) -> None:
    place.look("ready")


def _migrated(site: Site) -> None:
    if site.catalog.current() != site.catalog.head():
        raise Misconfigured("the catalogue's tables are of another version")


def _bucket(site: Site) -> None:
    site.store.stat("ready")
