"""Requests of S3 clients: who asks, what for, and the answer.

Every request is checked in the same order: the key's signature, its time, whether the key is expired or disabled, its
rate limit, its buckets and prefixes. Whatever is not a listing or a reading is refused.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import anyio
from anyio import CapacityLimiter, to_thread
from cachetools import LRUCache, TTLCache, cached
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from plateway.errors import PlatewayError, Unavailable
from plateway.gateway.access import request_info
from plateway.gateway.address_limits import limit_name
from plateway.gateway.errors import Problem
from plateway.gateway.http_conditions import format_date
from plateway.gateway.images import Gallery
from plateway.gateway.rate_limits import Limits, Rates
from plateway.gateway.s3 import signature, xml
from plateway.gateway.s3.access_keys import (
    SecretFile,
    covers_bucket,
    covers_object,
    narrow_prefix,
    read_secret_file,
)
from plateway.gateway.s3.errors import S3Error, of_error, of_problem
from plateway.gateway.s3.listing import Page, list_page
from plateway.gateway.s3.views import Events, Opened, Shared, View
from plateway.gateway.streaming import read_ahead
from plateway.records import AccessKey, Share
from plateway.store import Objects

EVENTS = "events"  # the bucket of all events
REGION = "us-east-1"
HOLDS = 1.0  # seconds for which a key or a share is known
KEYS = 10_000  # keys that are known
STORES = 100  # locations that are open
LISTED = 1000  # keys on a page
LISTS = 8  # listings that one worker makes at a time
DRAINED = 1 << 20  # bytes of a refused body that are read, so that its sender reads the answer
DRAIN_SECONDS = 5.0
TYPE = "application/xml"
READING = ("GET", "HEAD")
WRITING = ("PUT", "POST", "DELETE")
OVERRIDES = {
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-encoding": "Content-Encoding",
    "response-content-language": "Content-Language",
    "response-content-type": "Content-Type",
    "response-expires": "Expires",
}
OTHERS = re.compile(  # parameters that ask for something else of a bucket or an object
    "accelerate|acl|analytics|attributes|cors|encryption|intelligent-tiering|inventory|legal-hold|lifecycle|logging|"
    "metadataTable|metrics|notification|object-lock|ownershipControls|policy|policyStatus|publicAccessBlock|"
    "replication|requestPayment|restore|retention|select|session|tagging|torrent|uploadId|uploads|versioning|versions|"
    "website"
)
TEXT = re.compile(r"[\t -~\x80-\xff]*")  # of a header
NUMBER = re.compile(r"\d{1,9}", re.ASCII)

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass
class Directory:
    """What is known of keys and shares, from the catalogue and from the file of secrets; for a moment each."""

    gallery: Gallery
    secret_file: Path
    open_share: Callable[[str], Objects]
    _file: tuple[tuple[int, ...], SecretFile] | None = None
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        catalog = self.gallery.site.catalog
        self._keys: TTLCache[Any, AccessKey | None] = TTLCache(KEYS, HOLDS)
        self._keys_lock = Lock()
        shares: TTLCache[str, Mapping[str, Share]] = TTLCache(1, HOLDS)
        stores: LRUCache[str, Objects] = LRUCache(STORES)
        self.key = cached(self._keys, str, self._keys_lock)(catalog.access_key)
        self.shares = cached(shares, lambda: "", Lock())(lambda: {one.name: one for one in catalog.shares()})
        self._store = cached(stores, lock=Lock())(self.open_share)

    def known(self, access_key_id: str) -> AccessKey | None:
        """Return a key that was looked up just now."""
        with self._keys_lock:
            return self._keys.get(access_key_id)

    def secret(self, key: AccessKey) -> str:
        """Return the secret of a key.

        Raises:
            Unavailable: the key was issued with another file, or the file cannot be read.
        """
        try:
            status = self.secret_file.stat()
            state = status.st_mtime_ns, status.st_ino, status.st_ctime_ns
            with self._lock:
                if self._file is None or self._file[0] != state:
                    self._file = state, read_secret_file(self.secret_file)
                file = self._file[1]
        except (OSError, PlatewayError) as error:
            raise Unavailable(f"key {key.name}: {error}") from None
        if file.id != key.secret_file:
            raise Unavailable(f"key {key.name} was issued with another PLATEWAY_S3_KEY_FILE")
        return file.secret(key.access_key_id)

    def view(self, bucket: str) -> View:
        """Open a bucket.

        Raises:
            S3Error: there is none of this name.
        """
        if bucket == EVENTS:
            return Events(self.gallery)
        share = self.shares().get(bucket)
        if share is None:
            raise S3Error("NoSuchBucket", "The specified bucket does not exist")
        return Shared(self._store(share.location), share.created_at)

    def buckets(self, key: AccessKey) -> list[tuple[str, datetime]]:
        """List the buckets that a key may read in, by name."""
        created = {EVENTS: Events(self.gallery).created} | {name: one.created_at for name, one in self.shares().items()}
        return sorted((name, at or key.created_at) for name, at in created.items() if covers_bucket(key, name))


@dataclass(frozen=True)
class Call:
    """One request whose key was checked."""

    request: Request
    key: AccessKey
    bucket: str
    object_key: str
    query: Mapping[str, str]

    @property
    def method(self) -> str:
        """GET or HEAD."""
        return self.request.method


class S3:
    """The application of the endpoint."""

    def __init__(self, gallery: Gallery, rates: Rates, limits: Limits, *, directory: Directory) -> None:
        self._gallery, self._rates, self._limits, self._directory = gallery, rates, limits, directory
        self._lists = CapacityLimiter(LISTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        info = request_info(scope)
        info.service, scope["s3.request-id"] = "s3", secrets.token_hex(8).upper()
        try:
            response = await self._respond(request)
        except S3Error as error:
            response = respond_error(request, error)
        except Problem as problem:
            response = respond_error(request, of_problem(problem))
        except PlatewayError as error:
            found = of_error(error)
            if found.status >= 500:
                log.error("s3 %s %s: %s", request.method, scope["path"][:200], error)
            response = respond_error(request, found)
        response.headers["x-amz-request-id"] = scope["s3.request-id"]
        if has_body(request):
            if "expect" not in request.headers:  # a client that waits for 100 Continue sends nothing after this answer
                with anyio.move_on_after(DRAIN_SECONDS):
                    await drain(request)
            response.headers["Connection"] = "close"
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        info, path = request_info(request.scope), request.scope["raw_path"]
        query = signature.parse_query(request.scope["query_string"])
        asked = signature.Asked(request.method, path, query, request.scope["headers"])
        bucket, _, object_key = decode_path(path)
        info.route, info.key = f"s3 {request.method}", f"{bucket}/{object_key}"
        key = await self._admit(request, asked)
        refuse_others(request)
        call = Call(request, key, bucket, object_key, decode_query(query))
        if not bucket:
            return await self._list_buckets(call)
        if not covers_bucket(key, bucket):
            raise S3Error("AccessDenied", "Access Denied: the key is for other buckets.")
        if other := next(filter(OTHERS.fullmatch, call.query), None):
            raise S3Error("MethodNotAllowed", f"There is no {other} here: this endpoint lists and reads.")
        if object_key:
            return await self._get_object(call)
        view = await self._look_up(partial(self._directory.view, bucket))
        if request.method == "HEAD":
            info.route = "s3 HeadBucket"
            return Response(None, 200, {"x-amz-bucket-region": REGION}, TYPE)
        if "location" in call.query:
            info.route = "s3 GetBucketLocation"
            return Response(xml.format_location(REGION), 200, None, TYPE)
        return await self._list_objects(call, view)

    # ----------------------------------------------------------------------------------------------------- admission

    async def _admit(self, request: Request, asked: signature.Asked) -> AccessKey:
        """Return the key of a request whose signature is its.

        Raises:
            S3Error: there is no signature, or it does not count.
        """
        try:
            claim = signature.parse_claim(asked)
            if claim is None:
                raise S3Error("AccessDenied", "Access Denied: the request is not signed.")
            key = await self._known_key(claim.access_key_id)
            signature.check_signature(claim, asked, self._directory.secret(key))
        except S3Error as error:
            wait = self._rates.charge(f"failed {limit_name(request_info(request.scope).address)}", self._limits.failed)
            raise slow_down(wait) if wait else error from None
        now = datetime.now(UTC)
        request_info(request.scope).who = key.name
        signature.check_time(claim, now)
        if key.disabled_at is not None:
            raise S3Error("AccessDenied", "Access Denied: the key is disabled.")
        if key.expires_at <= now:
            raise S3Error("ExpiredToken", f"The key expired on {key.expires_at:%Y-%m-%d at %H:%M} UTC.")
        if wait := self._rates.charge(f"key {key.access_key_id}", self._limits.token):
            raise slow_down(wait)
        return key

    async def _known_key(self, access_key_id: str) -> AccessKey:
        known = self._directory.known(access_key_id)
        key = known or await self._look_up(partial(self._directory.key, access_key_id))
        if key is None:
            raise S3Error("InvalidAccessKeyId", "The access key id is unknown.")
        return key

    async def _look_up(self, call: Callable[[], T]) -> T:
        return await self._gallery.look_up(call)

    # ------------------------------------------------------------------------------------------------------ requests

    async def _list_buckets(self, call: Call) -> Response:
        request_info(call.request.scope).route = "s3 ListBuckets"
        if call.method == "HEAD":
            raise S3Error("MethodNotAllowed", "The specified method is not allowed against this resource.")
        found = await self._look_up(partial(self._directory.buckets, call.key))
        prefix = call.query.get("prefix", "")
        return Response(xml.format_buckets(one for one in found if one[0].startswith(prefix)), 200, None, TYPE)

    async def _list_objects(self, call: Call, view: View) -> Response:
        info, query = request_info(call.request.scope), call.query
        second = query.get("list-type") == "2"
        info.route = "s3 ListObjectsV2" if second else "s3 ListObjects"
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        info.key = f"{call.bucket}/{prefix}"
        token = query.get("continuation-token") if second else None
        after = decode_token(token) if token is not None else query.get("start-after" if second else "marker", "")
        limit = min(parse_number(query, "max-keys", LISTED), LISTED)
        if query.get("encoding-type", "url") != "url":
            raise S3Error("InvalidArgument", "encoding-type is url")
        if "\0" in f"{prefix}{after}":
            raise S3Error("InvalidArgument", "No key has a NUL.")
        within = narrow_prefix(call.key, prefix)
        if not within:
            raise S3Error("AccessDenied", "Access Denied: the key is for other prefixes.")
        listing = partial(list_page, view.entries, prefix, within=within, delimiter=delimiter, after=after, limit=limit)
        page = await to_thread.run_sync(listing, limiter=self._lists)
        encode = xml.url if "encoding-type" in query else str
        fields: dict[str, str | int | None] = {
            "Name": call.bucket,
            "Prefix": encode(prefix),
            "MaxKeys": limit,
            "Delimiter": encode(delimiter) if delimiter else None,
            "EncodingType": query.get("encoding-type"),
            "IsTruncated": "true" if page.more else "false",
        }
        fields |= describe_position(query, page, encode=encode, second=second)
        return Response(xml.format_listing(fields, page, encode=encode), 200, None, TYPE)

    async def _get_object(self, call: Call) -> Response:
        request_info(call.request.scope).route = "s3 HeadObject" if call.method == "HEAD" else "s3 GetObject"
        if not covers_object(call.key, call.object_key):
            raise S3Error("AccessDenied", "Access Denied: the key is for other prefixes.")
        if call.query.get("versionId", "null") != "null":
            raise S3Error("NoSuchVersion", "The specified version does not exist.")
        part = parse_number(call.query, "partNumber", 1)
        if part != 1:
            raise S3Error("InvalidPartNumber", "The object has one part.")
        overrides = {name: call.query[asked] for asked, name in OVERRIDES.items() if asked in call.query}
        if not all(map(TEXT.fullmatch, overrides.values())):
            raise S3Error("InvalidArgument", "A response header has printable characters of Latin-1.")
        opened = await self._gallery.run(partial(self._open_object, call))
        headers = describe_object(opened, call) | overrides
        if call.method == "HEAD":
            return Response(None, 206 if "Content-Range" in headers else 200, headers)
        status = 206 if "Content-Range" in headers else 200
        if len(opened.first) == int(headers["Content-Length"]):
            opened.rest.close()
            return Response(opened.first, status, headers)
        return StreamingResponse(read_ahead(opened.first, opened.rest, run=self._gallery.run), status, headers)

    def _open_object(self, call: Call) -> Opened:
        view = self._directory.view(call.bucket)
        return view.open(call.object_key, call.request.headers, method=call.method)


def refuse_others(request: Request) -> None:
    """Refuse everything that is not reading.

    Raises:
        S3Error: another method, or a body.
    """
    if request.method in WRITING:
        raise S3Error("AccessDenied", "Access Denied: this endpoint only reads.")
    if request.method not in READING:
        raise S3Error("MethodNotAllowed", "The specified method is not allowed against this resource.")
    if has_body(request):
        raise S3Error("InvalidRequest", "A request that reads has no body.")
    if request.headers.get("x-amz-content-sha256") not in {None, signature.UNSIGNED, signature.EMPTY}:
        raise S3Error("XAmzContentSHA256Mismatch", "The SHA-256 that was sent is not that of an empty body.")


def describe_object(opened: Opened, call: Call) -> dict[str, str]:
    """Return the headers that describe an object, or the range of it that is sent."""
    facts, span = opened.facts, opened.span
    headers = {
        "Content-Length": str(span.length if span else facts.size),
        "Content-Type": opened.media,
        "Last-Modified": format_date(facts.modified),
        "Accept-Ranges": "bytes",
    }
    if facts.etag:
        headers["ETag"] = f'"{facts.etag}"'
    if span:
        headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{facts.size}"
    elif "partNumber" in call.query and facts.size:
        headers["Content-Range"] = f"bytes 0-{facts.size - 1}/{facts.size}"
    if opened.checksum and not span and call.request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
        headers |= {"x-amz-checksum-sha256": opened.checksum, "x-amz-checksum-type": "FULL_OBJECT"}
    return headers


def describe_position(
    query: Mapping[str, str], page: Page, *, encode: Callable[[str], str], second: bool
) -> dict[str, str | int | None]:
    """Return the fields of a listing from which the next page is asked for."""
    if not second:
        return {"Marker": encode(query.get("marker", "")), "NextMarker": encode(page.last) if page.more else None}
    start = query.get("start-after")
    return {
        "KeyCount": len(page.items),
        "StartAfter": None if start is None else encode(start),
        "ContinuationToken": query.get("continuation-token"),
        "NextContinuationToken": encode_token(page.last) if page.more else None,
    }


def decode_path(raw: bytes) -> tuple[str, str, str]:
    """Split the path of a request into bucket, slash and key.

    Raises:
        S3Error: it is none.
    """
    bucket, slash, key = raw[1:].partition(b"/")
    try:
        if not raw.startswith(b"/"):
            raise S3Error("InvalidURI", "The path begins with a slash.")
        return unquote_to_bytes(bucket).decode(), slash.decode(), unquote_to_bytes(key).decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "Couldn't parse the specified URI: it is not UTF-8.") from None


def decode_query(query: signature.Query) -> dict[str, str]:
    """Return the parameters; of a name that occurs twice the first counts.

    Raises:
        S3Error: one is not UTF-8.
    """
    try:
        return {name.decode(): value.decode() for name, value in reversed(query)}
    except UnicodeDecodeError:
        raise S3Error("InvalidArgument", "A parameter is not UTF-8.") from None


def parse_number(query: Mapping[str, str], name: str, default: int) -> int:
    """Read a parameter that is a number.

    Raises:
        S3Error: it is none.
    """
    text = query.get(name, str(default))
    if not NUMBER.fullmatch(text):
        raise S3Error("InvalidArgument", f"{name} is a number")
    return int(text)


def encode_token(key: str) -> str:
    """Write a key so that clients pass it on as it is."""
    return key.encode().hex()


def decode_token(token: str) -> str:
    """Read what `encode_token` wrote.

    Raises:
        S3Error: it did not.
    """
    with suppress(ValueError):
        return bytes.fromhex(token).decode()
    raise S3Error("InvalidArgument", "The continuation token provided is incorrect")


def has_body(request: Request) -> bool:
    """Return whether a request has a body."""
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


async def drain(request: Request) -> None:
    """Read a body that nobody wants, up to a limit."""
    size = 0
    with suppress(Exception):  # the client is gone: nobody reads the answer
        async for piece in request.stream():
            size += len(piece)
            if size > DRAINED:
                return


def slow_down(wait: float) -> S3Error:
    """Return the error of a rate limit."""
    return S3Error("SlowDown", "Please reduce your request rate.", headers={"Retry-After": str(max(1, round(wait)))})


def respond_error(request: Request, error: S3Error) -> Response:
    """Describe an error as S3 does; without a body where there is none."""
    if error.status == 304 or request.method == "HEAD":
        return Response(None, error.status, error.headers)
    resource = request.scope["raw_path"].decode("ascii", "replace")
    body = xml.format_error(
        error.code, error.message, resource=resource, request_id=request.scope.get("s3.request-id", "")
    )
    return Response(body, error.status, error.headers, TYPE)


def respond_limit(problem: Problem) -> Response:
    """Describe a limit of an address that was reached."""
    body = xml.format_error("SlowDown", problem.message, resource="", request_id="")
    return Response(body, 503, problem.headers, TYPE)
