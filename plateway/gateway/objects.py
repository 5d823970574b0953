"""Objects over HTTP: the API of amplify-object-store, streamed both ways, whole or not at all.

Owns what PUT, GET, HEAD, DELETE and the listing of ``/objects`` mean. How keys become names is left to ``names``, who
may ask to ``auth``, how objects are kept to ``shelf``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from plateway.errors import Damaged, NotFound, PlatewayError, Unavailable
from plateway.gateway import auth
from plateway.gateway import keys as names
from plateway.gateway.access import request_info
from plateway.gateway.errors import Problem
from plateway.gateway.http_conditions import (
    CONDITIONS,
    Span,
    check_conditions,
    parse_digests,
    parse_range,
)
from plateway.gateway.object_store import Shelf
from plateway.gateway.rate_limits import Limits
from plateway.gateway.streaming import (
    MEDIA,
    SMALL,
    Rest,
    Slots,
    describe,
    read_beginning,
    respond,
    store_stream,
)
from plateway.gateway.tokens import Token
from plateway.store import Stat

MOST = 10_000  # keys of a page
ROUTE = "/objects/"
CHANGED = 3  # times that an object may be replaced while it is being opened
THREADS = 32  # store calls of one worker at a time
JSON = "application/json"
T = TypeVar("T")


class Kept(BaseModel):
    """An object that was stored."""

    key: str
    size: int
    created_at: datetime


class Page(BaseModel):
    """Some keys, in order."""

    keys: list[str]
    next_cursor: str | None = None
    has_more: bool


class AnyKey(Convertor[str]):
    """The rest of a path, whatever characters it has."""

    regex = r"(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("key", AnyKey())


class Straight(APIRoute):
    """A route called with key, request and token: FastAPI's search for parameters takes longer than a small object."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        (asked,) = (inner.call for inner in self.dependant.dependencies)
        assert isinstance(asked, auth.Allowed)

        async def handle(request: Request) -> Response:
            token = await asked(request)
            response: Response = await self.endpoint(request.path_params["key"], request, token)
            return response

        return handle


class Desk:
    """The shelf as routes reach it: from a number of threads, large uploads a few at a time."""

    def __init__(self, shelf: Shelf, limits: Limits) -> None:
        self.shelf = shelf
        self.uploads = Slots(limits.uploads)
        self._threads = CapacityLimiter(THREADS)

    async def run(self, call: Callable[[], T]) -> T:
        """Call something that blocks."""
        try:
            return await to_thread.run_sync(call, limiter=self._threads)
        except NotFound as error:  # missing objects are None: what is not there is the bucket
            raise Unavailable(str(error)) from error


async def put_object(key: str, request: Request, token: Annotated[Token, auth.needs("write")]) -> Response:
    """Store an object, whole or not at all; whatever had the key before is replaced."""
    desk, key = _desk(request), _key(request, token)
    store = partial(desk.shelf.put, key, headers=request.headers, wanted=parse_digests(request.headers))
    size, pieces = _length(request.headers), request.stream()
    head, over = await read_beginning(pieces)
    if over:
        body = b"".join(head)
        if size is not None and len(body) != size:
            raise ClientDisconnect
        call = partial(store, [body], size=len(body))
        etag, sums = await desk.run(call)
    else:
        async with desk.uploads.slot(token.hash):
            etag, sums = await store_stream(partial(store, size=size), head, pieces)
    told = Kept(key=key, size=sums.size, created_at=datetime.now(UTC))
    headers = {"Repr-Digest": f"sha-256=:{base64.b64encode(sums.sha256).decode()}:"}
    return Response(told.model_dump_json(), 200, headers | ({"ETag": f'"{etag}"'} if etag else {}), JSON)


async def get_object(key: str, request: Request, token: Annotated[Token, auth.needs("read")]) -> Response:
    """Read an object, or one range of it."""
    desk, key = _desk(request), _key(request, token)
    for _ in range(CHANGED):
        stat, span = None, None
        if CONDITIONS & set(request.headers.keys()):
            stat = _found(await desk.run(partial(desk.shelf.look, key)), key)
            check_conditions(request.headers, stat, method="GET")
            span = parse_range(request.headers, stat)
        try:
            begun = await desk.run(partial(_begin, desk.shelf, key, span))
        except Damaged:  # it was replaced by a smaller one
            continue
        if begun is None:
            raise _missing(key)
        found, first, rest = begun
        if stat is None or stat.etag == found.etag:
            return respond(key, found, span=span, first=first, rest=rest, run=desk.run)
        rest.close()
    raise Problem(503, "The object is being replaced", headers={"Retry-After": "1"})


async def head_object(key: str, request: Request, token: Annotated[Token, auth.needs("read")]) -> Response:
    """Look at an object."""
    desk, key = _desk(request), _key(request, token)
    stat = _found(await desk.run(partial(desk.shelf.look, key)), key)
    check_conditions(request.headers, stat, method="HEAD")
    return Response(None, 200, {**describe(key, stat), "Content-Length": str(stat.size)}, MEDIA)


async def delete_object(key: str, request: Request, token: Annotated[Token, auth.needs("delete")]) -> Response:
    """Remove an object."""
    desk, key = _desk(request), _key(request, token)
    if not await desk.run(partial(desk.shelf.delete, key, headers=request.headers)):
        raise _missing(key)
    return Response(status_code=204)


async def list_objects(
    request: Request,
    token: Annotated[Token, auth.needs("read")],
    prefix: str | None = None,
    limit: Annotated[int, Query(ge=-MOST, lt=1 << 31)] = 100,
    cursor: str | None = None,
) -> Response:
    """List keys in the order of their bytes; a cursor stays good when its key is deleted.

    A page has 10,000 keys at most, whatever the limit. A negative limit leaves out so many at the end.
    """
    desk, request_info(request.scope).key = _desk(request), prefix
    wanted, after = _narrowed(token, prefix or ""), _after(cursor) if cursor else None
    most = min(limit, MOST) if limit >= 0 else MOST
    found = await desk.run(partial(desk.shelf.page, wanted, after=after, limit=most + 1))
    keys, more = (found[:most], len(found) > most) if limit >= 0 else (found[:limit], True)
    page = Page(keys=keys, next_cursor=_cursor(keys[-1]) if more and keys else None, has_more=more)
    return Response(page.model_dump_json(), 200, None, JSON)


def install(app: FastAPI, shelf: Shelf, *, limits: Limits) -> None:
    """Give an application the routes of the object API."""
    app.state.desk = Desk(shelf, limits)
    one = partial(app.router.add_api_route, "/objects/{key:key}", tags=["objects"], route_class_override=Straight)
    one(put_object, methods=["PUT"], response_model=Kept)
    one(get_object, methods=["GET"], response_class=Response)
    one(head_object, methods=["HEAD"], response_class=Response)
    one(delete_object, methods=["DELETE"], response_class=Response, status_code=204)
    app.add_api_route("/objects", list_objects, methods=["GET"], response_model=Page, tags=["objects"])


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _key(request: Request, token: Token) -> str:
    """Read the key out of the path as it was sent, and let the token go on with it or not."""
    raw: bytes = request.scope["raw_path"]
    if not raw.startswith(ROUTE.encode()):
        raise Problem(400, f"The path of objects begins with {ROUTE}")
    key = request_info(request.scope).key = names.key(raw[len(ROUTE) :])
    auth.within(token, key)
    return key


def _narrowed(token: Token, prefix: str) -> str:
    """Narrow a listing to what the token is good for."""
    if token.prefix and token.prefix.startswith(prefix):
        return token.prefix
    auth.within(token, prefix)
    return prefix


def _begin(shelf: Shelf, key: str, span: Span | None) -> tuple[Stat, bytes, Rest] | None:
    """Open an object and read its first piece, or all of a small one."""
    begun = shelf.fetch(key, span)
    if begun is None:
        return None
    stat, chunks = begun
    first = next(chunks, b"")
    size = span.length if span else stat.size
    while len(first) < size <= SMALL and (more := next(chunks, b"")):
        first += more
    return stat, first, Rest(chunks)


def _found(stat: Stat | None, key: str) -> Stat:
    if stat is None:
        raise _missing(key)
    return stat


def _missing(key: str) -> Problem:
    return Problem(404, f"Object {key} not found")


def _length(headers: Headers) -> int | None:
    """Say how long the body will be; None: that is known at its end only."""
    told = headers.get("content-length")
    if told is None:
        return None if "transfer-encoding" in headers else 0
    return int(told)


def _cursor(key: str) -> str:
    return base64.b64encode(json.dumps({"last_key": key}).encode()).decode()


def _after(cursor: str) -> str:
    try:
        return names.checked(json.loads(base64.b64decode(cursor.replace(" ", "+")))["last_key"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, PlatewayError):
        raise Problem(400, "Invalid cursor") from None
