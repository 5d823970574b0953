"""Objects over HTTP: the API of amplify-object-store, streamed in both directions.

Defines PUT, GET, HEAD, DELETE and the listing of ``/objects``. ``keys`` translates keys to names, ``auth`` checks
tokens, ``object_store`` stores objects.
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
from plateway.gateway.object_store import ObjectStore
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

MOST = 10_000  # keys on a page
ROUTE = "/objects/"
CHANGED = 3  # retries when an object is replaced while it is being opened
THREADS = 32  # concurrent store calls of one worker
JSON = "application/json"
T = TypeVar("T")


class StoredObject(BaseModel):
    """An object that was stored."""

    key: str
    size: int
    created_at: datetime


class KeyPage(BaseModel):
    """One page of keys, in the order of their bytes."""

    keys: list[str]
    next_cursor: str | None = None
    has_more: bool


class AnyKey(Convertor[str]):
    """The rest of a path, with any characters."""

    regex = r"(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("key", AnyKey())


class DirectRoute(APIRoute):
    """A route called with key, request and token, without the slow parsing of parameters of FastAPI."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        (allowed,) = (inner.call for inner in self.dependant.dependencies)
        assert isinstance(allowed, auth.Allowed)

        async def handle(request: Request) -> Response:
            token = await allowed(request)
            response: Response = await self.endpoint(request.path_params["key"], request, token)
            return response

        return handle


class ObjectService:
    """The object store for async routes: a limited number of threads, and of concurrent large uploads."""

    def __init__(self, store: ObjectStore, limits: Limits) -> None:
        self.store = store
        self.uploads = Slots(limits.uploads)
        self._threads = CapacityLimiter(THREADS)

    async def run(self, call: Callable[[], T]) -> T:
        """Run a blocking call in a thread."""
        try:
            return await to_thread.run_sync(call, limiter=self._threads)
        except NotFound as error:  # a missing object is None: here the bucket is missing
            raise Unavailable(str(error)) from error


async def put_object(key: str, request: Request, token: Annotated[Token, auth.needs("write")]) -> Response:
    """Store an object atomically; an existing object of the key is replaced."""
    service, key = _service(request), _key(request, token)
    _refuse_encoding(request.headers)
    put = partial(service.store.put, key, headers=request.headers, wanted=parse_digests(request.headers))
    size, pieces = _content_length(request.headers), request.stream()
    head, over = await read_beginning(pieces)
    if over:
        body = b"".join(head)
        if size is not None and len(body) != size:
            raise ClientDisconnect
        call = partial(put, [body], size=len(body))
        etag, sums = await service.run(call)
    else:
        async with service.uploads.slot(token.hash):
            etag, sums = await store_stream(partial(put, size=size), head, pieces)
    stored = StoredObject(key=key, size=sums.size, created_at=datetime.now(UTC))
    headers = {"Repr-Digest": f"sha-256=:{base64.b64encode(sums.sha256).decode()}:"}
    return Response(stored.model_dump_json(), 200, headers | ({"ETag": f'"{etag}"'} if etag else {}), JSON)


async def get_object(key: str, request: Request, token: Annotated[Token, auth.needs("read")]) -> Response:
    """Read an object, or one range of it."""
    service, key = _service(request), _key(request, token)
    for _ in range(CHANGED):
        stat, span = None, None
        if CONDITIONS & set(request.headers.keys()):
            stat = _require(await service.run(partial(service.store.stat, key)), key)
            check_conditions(request.headers, stat, method="GET")
            span = parse_range(request.headers, stat)
        try:
            begun = await service.run(partial(_begin_read, service.store, key, span))
        except Damaged:  # replaced by a smaller one
            continue
        if begun is None:
            raise _not_found(key)
        found, first, rest = begun
        if stat is None or stat.etag == found.etag:
            return respond(key, found, span=span, first=first, rest=rest, run=service.run)
        rest.close()
    raise Problem(503, "The object is being replaced", headers={"Retry-After": "1"})


async def head_object(key: str, request: Request, token: Annotated[Token, auth.needs("read")]) -> Response:
    """Return the size, ETag and time of an object."""
    service, key = _service(request), _key(request, token)
    stat = _require(await service.run(partial(service.store.stat, key)), key)
    check_conditions(request.headers, stat, method="HEAD")
    return Response(None, 200, {**describe(key, stat), "Content-Length": str(stat.size)}, MEDIA)


async def delete_object(key: str, request: Request, token: Annotated[Token, auth.needs("delete")]) -> Response:
    """Delete an object."""
    service, key = _service(request), _key(request, token)
    if not await service.run(partial(service.store.delete, key, headers=request.headers)):
        raise _not_found(key)
    return Response(status_code=204)


async def list_objects(
    request: Request,
    token: Annotated[Token, auth.needs("read")],
    prefix: str | None = None,
    limit: Annotated[int, Query(ge=-MOST, lt=1 << 31)] = 100,
    cursor: str | None = None,
) -> Response:
    """List keys in the order of their bytes; a cursor stays valid when its key is deleted.

    A page has at most 10,000 keys, whatever the limit. A negative limit omits that many keys at the end. A page
    without keys is the last one.
    """
    service, request_info(request.scope).key = _service(request), prefix
    wanted, after = _narrow_prefix(token, prefix or ""), _parse_cursor(cursor) if cursor else None
    most = min(limit, MOST) if limit >= 0 else MOST
    found = await service.run(partial(service.store.page, wanted, after=after, limit=most + 1))
    keys, more = (found[:most], len(found) > most) if limit >= 0 else (found[:limit], True)
    next_cursor = _format_cursor(keys[-1]) if more and keys else None
    page = KeyPage(keys=keys, next_cursor=next_cursor, has_more=next_cursor is not None)
    return Response(page.model_dump_json(), 200, None, JSON)


def install(app: FastAPI, store: ObjectStore, *, limits: Limits) -> None:
    """Add the routes of the object API to an application."""
    app.state.service = ObjectService(store, limits)
    one = partial(app.router.add_api_route, "/objects/{key:key}", tags=["objects"], route_class_override=DirectRoute)
    one(put_object, methods=["PUT"], response_model=StoredObject)
    one(get_object, methods=["GET"], response_class=Response)
    one(head_object, methods=["HEAD"], response_class=Response)
    one(delete_object, methods=["DELETE"], response_class=Response, status_code=204)
    app.add_api_route("/objects", list_objects, methods=["GET"], response_model=KeyPage, tags=["objects"])


def _service(request: Request) -> ObjectService:
    service: ObjectService = request.app.state.service
    return service


def _key(request: Request, token: Token) -> str:
    """Parse the key in the path as it was sent, and check that the token covers it."""
    raw: bytes = request.scope["raw_path"]
    if not raw.startswith(ROUTE.encode()):
        raise Problem(400, f"The path of objects begins with {ROUTE}")
    key = request_info(request.scope).key = names.key(raw[len(ROUTE) :])
    auth.within(token, key)
    return key


def _narrow_prefix(token: Token, prefix: str) -> str:
    """Narrow the prefix of a listing to that of the token."""
    if token.prefix and token.prefix.startswith(prefix):
        return token.prefix
    auth.within(token, prefix)
    return prefix


def _begin_read(store: ObjectStore, key: str, span: Span | None) -> tuple[Stat, bytes, Rest] | None:
    """Open an object and read its first piece, or all of a small one."""
    begun = store.fetch(key, span)
    if begun is None:
        return None
    stat, chunks = begun
    first = next(chunks, b"")
    size = span.length if span else stat.size
    while len(first) < size <= SMALL and (more := next(chunks, b"")):
        first += more
    return stat, first, Rest(chunks)


def _require(stat: Stat | None, key: str) -> Stat:
    if stat is None:
        raise _not_found(key)
    return stat


def _refuse_encoding(headers: Headers) -> None:
    """Refuse a body that is not the object itself: its encoding would not be kept.

    Raises:
        Problem: 415.
    """
    encodings = {one.strip().lower() for one in headers.get("content-encoding", "").split(",")} - {"", "identity"}
    if encodings or headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
        names = ", ".join(sorted(encodings)) or "aws-chunked"
        raise Problem(415, f"Content-Encoding {names[:100]} is not kept with an object: send the object as it is")


def _not_found(key: str) -> Problem:
    return Problem(404, f"Object {key} not found")


def _content_length(headers: Headers) -> int | None:
    """Return the length of the body, or None if only its end will show it."""
    length = headers.get("content-length")
    if length is None:
        return None if "transfer-encoding" in headers else 0
    return int(length)


def _format_cursor(key: str) -> str:
    return base64.b64encode(json.dumps({"last_key": key}).encode()).decode()


def _parse_cursor(cursor: str) -> str:
    try:
        return names.checked(json.loads(base64.b64decode(cursor.replace(" ", "+")))["last_key"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, PlatewayError):
        raise Problem(400, "Invalid cursor") from None
