"""Build the application of the gateway from its parts.

`Parts` are plain values, so that every worker process gets the same ones. The state that workers share (rate limits,
locks, the access log) lies in the home.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from plateway import __version__
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured, NotFound, PlatewayError, Rejected, Unavailable
from plateway.gateway import (
    auth,
    dlm_api,
    downloads,
    errors,
    events,
    images,
    metrics,
    objects,
    pages,
    reference,
)
from plateway.gateway.access import AccessLog, AccessLogging
from plateway.gateway.address_limits import AddressLimit, Network, networks
from plateway.gateway.body_limits import BodyLimit
from plateway.gateway.headers import SecurityHeaders
from plateway.gateway.object_store import ObjectStore
from plateway.gateway.probes import Probe, Probes, run
from plateway.gateway.rate_limits import Limits, Rates
from plateway.gateway.s3.app import S3, Directory, respond_limit
from plateway.gateway.tokens import SESSIONS, Tokens
from plateway.pipeline import Site
from plateway.settings import PrefectApi
from plateway.store import Objects, open_store

LEFT = timedelta(days=1)  # age of unfinished uploads that are aborted at the start
HOLDS = 1.0  # seconds for which a readiness result is cached
OK = "ok"
HEALTH = {
    "status": "healthy",
    "service": "amplify-object-store",
    "version": "0.1.0",
}  # as amplify-object-store reports it

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The configuration of a gateway."""

    home: Path  # its directory gateway/ has the state that workers share
    tokens: Path  # the tokens file
    objects: str | None = None  # location of the objects, for `store.open_store`; None: no object API
    bucket: str | None = None  # location of the events; objects must be elsewhere
    endpoint: Endpoint = field(default_factory=Endpoint)
    access: Path | None = None  # the access log; None: gateway/access.log in the home
    limits: Limits = field(default_factory=Limits)
    trusted: tuple[str, ...] = ()  # addresses and networks of trusted proxies
    read_only: bool = False
    site: Callable[[], Site] | None = None  # opens the site whose events are served; None: objects only
    open: bool = False  # events are served without a token
    straight: bool = False  # … but only to requests sent directly to this machine's own address
    links: timedelta = timedelta(minutes=15)  # lifetime of presigned links
    prefect_ui: str | None = None  # URL of the Prefect UI
    prefect_api: PrefectApi | None = None  # where operators start runs from pages; None: they cannot
    dlm_v1: bool = False  # /api/1/exports is the list of DLM v1
    s3_port: int | None = None  # of the S3 endpoint for reading; None: off
    s3_secrets: Path | None = None  # what the secrets of access keys follow from; None: gateway/s3.key in the home
    share: Callable[[str], Objects] = open_store  # opens what an operator shares there

    @property
    def place(self) -> Path:
        """The directory of the state that workers share."""
        return self.home / "gateway"

    @property
    def sessions(self) -> Path:
        """The file of browser sessions."""
        return self.home / SESSIONS

    @property
    def log(self) -> Path:
        """The access log."""
        return self.access or self.place / "access.log"


def create_app(parts: Parts) -> FastAPI:
    """Create the application.

    Raises:
        Misconfigured: a part is not valid, or a route declares no scopes.
    """
    parts.place.mkdir(parents=True, exist_ok=True)
    try:
        trusted = networks(parts.trusted)
    except ValueError as error:
        raise Misconfigured(f"trusted proxies: {error}") from None
    store, site = _open_objects(parts), parts.site and parts.site()
    rates, tokens, access = Rates(parts.place / "rates"), Tokens(parts.tokens), AccessLog(parts.log)
    app = FastAPI(
        title="Plateway",
        version=__version__,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load scripts from other hosts: see reference
        redoc_url=None,
        lifespan=partial(
            _lifespan,
            swept=None if parts.read_only else store,
            close=(access.close, *([site.close] if site else [])),
            state={"limits": parts.limits, "trusted": trusted},  # for connections
        ),
    )
    app.state.parts, app.state.site = parts, site
    app.state.guard = auth.Guard(
        tokens, rates, parts.limits, sessions=Tokens(parts.sessions), open_=parts.open, straight=parts.straight
    )
    app.state.probes = Probes()
    app.state.readiness = Readiness(
        app.state.probes, tokens=partial(_check_file, tokens), access=partial(_check_file, access)
    )
    errors.install(app)
    app.add_api_route("/health", health, methods=["GET"], dependencies=[auth.OPEN], tags=["health"])
    app.add_api_route("/ready", ready, methods=["GET"], dependencies=[auth.OPEN], tags=["health"])
    if store is not None:
        app.state.readiness.checks["objects"] = partial(_check_objects, store.store)
        objects.install(app, store, limits=parts.limits)
    if site is not None:
        app.state.readiness.checks["catalogue"] = partial(_check_catalogue, site)
        app.state.readiness.checks["bucket"] = partial(_check_bucket, site)
        for module in (dlm_api, downloads, events, images, metrics, pages):
            module.install(app, site)
    reference.install(app)
    _answer_head(app)
    list(auth.declared(app))
    if parts.read_only:
        app.add_middleware(auth.ReadOnlyMiddleware, token_name=app.state.guard.token_name)
    app.add_middleware(AddressLimit, rates=rates, limits=parts.limits, trusted=trusted)
    app.add_middleware(BodyLimit, limits=parts.limits)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(AccessLogging, log=access)
    if parts.s3_port is not None:
        app.add_middleware(ByPort, port=parts.s3_port, other=_create_s3(app, rates, access, trusted))
    return app


def _answer_head(app: FastAPI) -> None:
    """Answer HEAD wherever GET is answered; the server leaves out the body."""
    routes = [one for one in app.routes if isinstance(one, APIRoute)]
    there = {one.path for one in routes if "HEAD" in (one.methods or ())}
    for route in routes:
        if "GET" in (route.methods or ()) and route.path not in there:
            head = copy(route)
            head.methods, head.include_in_schema = {"HEAD"}, False
            app.router.routes.append(head)


class ByPort:
    """Middleware: pass requests that arrive at a port to another application."""

    def __init__(self, app: ASGIApp, *, port: int, other: ASGIApp) -> None:
        self.app, self._port, self._other = app, port, other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        here = scope["type"] == "http" and (scope.get("server") or (None, None))[1] == self._port
        await (self._other if here else self.app)(scope, receive, send)


def _create_s3(app: FastAPI, rates: Rates, access: AccessLog, trusted: Sequence[Network]) -> ASGIApp:
    """Create the application of the S3 endpoint.

    Raises:
        Misconfigured: there is no site whose events it could show.
    """
    parts: Parts = app.state.parts
    if parts.site is None:
        raise Misconfigured("the S3 endpoint shows events, and there is no site")
    directory = Directory(app.state.gallery, parts.s3_secrets or parts.place / "s3.key", parts.share)
    s3: ASGIApp = S3(app.state.gallery, rates, parts.limits, directory=directory)
    s3 = AddressLimit(
        s3, rates=rates, limits=parts.limits, trusted=trusted, unlimited=frozenset(), respond=respond_limit
    )
    return AccessLogging(SecurityHeaders(s3), log=access)


async def health() -> dict[str, str]:
    """Report that the process runs, without any further check."""
    return HEALTH


async def ready(request: Request) -> Response:
    """Report whether every part that requests need is available, and the state of each."""
    readiness: Readiness = request.app.state.readiness
    found = await readiness.check()
    status = "ready" if set(found.values()) <= {OK} else "not ready"
    return JSONResponse({"status": status, "checks": found}, 200 if status == "ready" else 503)


class Readiness:
    """Checks of the parts that requests need: blocking calls that raise our errors. Results are cached for a moment."""

    def __init__(self, probes: Probes, **checks: Callable[[], None]) -> None:
        self.checks = checks
        self._probes = probes
        self._lock, self._limiter = asyncio.Lock(), CapacityLimiter(1)  # its own thread: other requests do not delay it
        self._found: dict[str, str] = {}
        self._until = 0.0

    async def check(self) -> dict[str, str]:
        """Run all checks concurrently. The results name no bucket and no server."""
        async with self._lock:
            if time.monotonic() > self._until:
                self._found = await to_thread.run_sync(self._run_checks, limiter=self._limiter)
                self._until = time.monotonic() + HOLDS
            return self._found

    def _run_checks(self) -> dict[str, str]:
        started = {name: self._probes.start(f"ready: {name}", check) for name, check in self.checks.items()}
        return {name: self._describe_result(probe) for name, probe in started.items()}

    def _describe_result(self, probe: Probe[None]) -> str:
        try:
            probe.result()
        except NotFound as error:  # the name of a bucket goes to the log only
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
    """Return whether two locations are the same, or one is inside the other."""
    first, second = map(_normalize_location, (one, other))
    return first.startswith(second) or second.startswith(first)


def _normalize_location(url: str) -> str:
    """Return the URL or path of a location in one form, as `open_store` would resolve it."""
    parts = urlsplit(url)
    path = unquote(parts.path) if parts.scheme else url
    if parts.scheme in {"", "file"}:
        return str(Path(path).resolve()).rstrip("/") + "/"
    return f"{parts.scheme}://{parts.netloc}/" + (f"{path.strip('/')}/" if path.strip("/") else "")


@asynccontextmanager
async def _lifespan(
    _app: FastAPI, *, swept: ObjectStore | None, close: Sequence[Callable[[], None]], state: Mapping[str, Any]
) -> AsyncIterator[Mapping[str, Any]]:
    if swept is not None:  # in the background; the next start repeats what failed
        run(partial(_abort_old_uploads, swept.store), into=Future(), name="sweep")
    yield state
    for end in close:
        end()


def _open_objects(parts: Parts) -> ObjectStore | None:
    if parts.objects is None:
        return None
    if parts.bucket is not None and overlap(parts.objects, parts.bucket):
        raise Misconfigured("objects need their own bucket or prefix, apart from the events")
    endpoint = replace(parts.endpoint, read_only=parts.endpoint.read_only or parts.read_only)
    return ObjectStore(open_store(parts.objects, endpoint), parts.place)


def _abort_old_uploads(store: Objects) -> None:
    """Abort unfinished uploads that are older than `LEFT`."""
    try:
        for upload in store.uploads():
            if upload.initiated < datetime.now(UTC) - LEFT:
                store.abort(upload)
    except PlatewayError as error:
        log.warning("unfinished uploads were not aborted: %s", error)


def _check_file(part: Tokens | AccessLog) -> None:
    if part.problem:
        raise Rejected(part.problem)


def _check_objects(store: Objects) -> None:
    store.look("ready")


def _check_catalogue(site: Site) -> None:
    if site.catalog.current() != site.catalog.head():
        raise Misconfigured("the catalogue's tables are of another version")


def _check_bucket(site: Site) -> None:
    site.store.stat("ready")
