"""The bucket: a small contract, kept by S3, a directory and memory.

obstore moves the bytes; botocore, another client with another connection and no cache, looks at what arrived. So
evidence never comes from the code path that uploaded. Other behaviour is added by wrapping a store: `ReadOnly`,
`DryRun`, `Prefixed`. What the bytes mean is left to ``bundle``.

Foreign errors end at `door`. Their text quotes addresses, requests and server paths, therefore it is not chained:
ours carry the name, the status and the code that the endpoint gave.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property, partial
from hashlib import sha256
from heapq import heapify, heappop, heappush
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import fsspec  # type: ignore[import-untyped]  # ships no types
import obstore
from botocore.config import Config  # type: ignore[import-untyped]  # botocore ships no types
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # the same
from botocore.loaders import Loader  # type: ignore[import-untyped]  # the same
from botocore.parsers import ResponseParserFactory  # type: ignore[import-untyped]  # the same
from botocore.session import get_session  # type: ignore[import-untyped]  # the same
from botocore.utils import parse_timestamp  # type: ignore[import-untyped]  # the same
from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]  # the same
from obstore.exceptions import BaseError
from obstore.store import S3Store
from pydantic import SecretStr

from plateway.bundle import Parts, part_size
from plateway.errors import (
    Conflict,
    Damaged,
    Denied,
    Misconfigured,
    NotFound,
    PlatewayError,
    Refused,
    Rejected,
    Unavailable,
    Unsettled,
)

if TYPE_CHECKING:
    from obstore.store import RetryConfig, S3Credential

MIB = 1 << 20
IN_FLIGHT = 16 * MIB  # parts on their way at a time, of one upload; one more is being filled
LARGEST_BUFFERED = 16 * MIB  # larger parts are streamed, one at a time
WINDOW = MIB
LINKED = timedelta(days=7)  # no link is good for longer
BUCKET_SEEN = 5.0  # seconds for which a bucket that was there is taken to be there
RETRY: RetryConfig = {  # of one request; whole verbs are tried again by whoever called
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
LOADER = Loader()  # what botocore reads of its service descriptions; 0.15 s the first time
LISTED = 1000  # keys that S3 tells at a time
LARGE_FOLDER = 1000  # names from which on a directory store keeps them in mind
LARGE_FOLDERS = 32
SETTLED = 2_000_000_000  # nanoseconds after which a folder that looks the same is the same
KEPT = ".plateway"  # in a directory store: what S3 would know of objects and uploads
AWS = "https://s3.amazonaws.com"  # whatever the region: there, no two buckets have one name
AMAZON = re.compile(r"s3([.-][a-z0-9-]+)*\.amazonaws\.com")
UNPLAIN = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says of an object. A listing may leave etag, metadata and checksums empty."""

    key: str
    size: int
    etag: str
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)  # base64 by algorithm, where the endpoint has them
    version: str | None = None  # of the object, where the bucket keeps versions


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that was begun and neither completed nor aborted."""

    key: str
    id: str
    initiated: datetime


@dataclass(frozen=True)
class Endpoint:
    """Where S3 is and who asks. Without keys botocore's chain finds them (profile, instance role)."""

    url: str | None = None  # AWS itself
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    region: str = "us-east-1"
    read_only: bool = False
    bypass_proxy: bool = False
    name: str | None = None  # what it is called, where it is reached at several addresses or at changing ones


def identity(url: str, endpoint: Endpoint) -> str:
    """Say what tells the endpoint of a bucket from others: its name, else its address without what does not matter."""
    scheme = urlsplit(url).scheme
    if scheme != "s3":
        return f"{scheme}:"
    if endpoint.name or endpoint.url is None:
        return endpoint.name or AWS
    parts = urlsplit(endpoint.url)
    host = parts.netloc.rpartition("@")[2].lower()
    host = host.removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ""))
    return AWS if AMAZON.fullmatch(host) else f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


class Store(Protocol):
    """Objects by key. Everything may be repeated; keys are plain: no empty, ``.`` or ``..`` segments, no backslash.

    Raises, everywhere: `Unavailable` when the store does not answer or cannot just now, `Denied`, `NotFound` when the
    bucket is missing, `Rejected` for a key that is not plain.
    """

    @property
    def name(self) -> str:
        """The bucket's name, for people and rows."""

    @property
    def durable(self) -> bool:
        """Whether objects outlive this process: what is kept in memory proves nothing."""

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        """Store exactly `size` bytes, replacing what is there. Atomic: readers see all of it or what was there before.

        Parts of `part_size` bytes give the ETag of `bundle.etag`; up to one part is a single PUT. An error from
        `chunks` rises unchanged, fewer or more bytes are `Unsettled`: nothing is stored, and no upload stays open.
        Returns the ETag of what arrived where the answer tells it; that is the uploader's word.
        """

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice: from `start` (from the end if negative), at most `length` bytes. `NotFound` comes at once."""

    def stat(self, key: str) -> Stat | None:
        """Ask the store itself, by a client other than the one that uploaded; None if there is no such object."""

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """List what is there now, in the store's own order; a prefix is a string (``a/1`` also begins ``a/10``)."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    def sign(self, key: str, *, expires: timedelta) -> str:
        """Make a link to read the object without credentials; `Refused` where there are none.

        It ends with the credentials that it is made with, where these tell when they do.
        """

    def uploads(self) -> Iterator[Upload]:
        """List uploads that are still open."""

    def abort(self, upload: Upload) -> None:
        """End an upload; one that is not open any more is fine."""


class Objects(Store, Protocol):
    """A store of objects that come and go, looked at and listed often; each that `open_store` opens is one."""

    def look(self, key: str) -> Stat | None:
        """Look as `stat` does, but quickly: nothing is read, so the ETag only tells one version from another."""

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        """Read as `open` does, and tell what is read: both are of one version. `Damaged`: it ends before `start`."""

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        """List at most so many objects in the order of their keys' bytes, from the first one beyond `after` on.

        `after` need not be there. The cost depends on the page, not on what lies before or behind it.
        """


def objects(store: Store) -> Objects:
    """Take a store for one of objects.

    Raises:
        Misconfigured: it is none.
    """
    if not hasattr(store, "page"):
        raise Misconfigured(f"{store.name}: cannot be used for objects")
    return cast("Objects", store)


def open_store(url: str, endpoint: Endpoint | None = None) -> Store:
    """Open ``s3://bucket[/prefix]``, ``file:///directory`` or ``memory://name`` (kept by this process)."""
    parts = urlsplit(url)
    endpoint = endpoint or Endpoint()
    store: Store
    match parts.scheme, parts.netloc, unquote(parts.path):
        case "s3", bucket, prefix if bucket:
            store = S3(bucket, endpoint)
            if prefix.strip("/"):
                store = Prefixed(store, prefix.strip("/") + "/")
        case "file", "", path if path.startswith("/"):
            store = Directory(Path(path))
        case "memory", name, path if not path.strip("/"):
            store = _memory(name)
        case _:
            raise Misconfigured("a bucket is s3://bucket[/prefix], file:///directory or memory://name")
    return ReadOnly(store) if endpoint.read_only else store


def filesystem(url: str, endpoint: Endpoint | None = None, **more: Any) -> tuple[AbstractFileSystem, str]:
    """Open the same bucket the way notebooks and pandas know it: an fsspec filesystem, and the path of its root in it.

    For people: unless ``more`` options of the filesystem say otherwise, it caches listings. That of a read-only
    endpoint raises `PermissionError` instead of writing.
    """
    endpoint = endpoint or Endpoint()
    secret, token = endpoint.secret_access_key, endpoint.session_token
    options = {
        "key": endpoint.access_key_id,
        "secret": secret.get_secret_value() if secret else None,
        "token": token.get_secret_value() if token else None,
        "endpoint_url": endpoint.url,
        "client_kwargs": {"region_name": endpoint.region},
        "config_kwargs": {
            "proxies": {} if endpoint.bypass_proxy else None,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
            "s3": {"addressing_style": "path" if endpoint.url else "auto"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    }
    options = (options if url.startswith("s3://") else {}) | more
    fs, root = fsspec.core.url_to_fs(url, **options)
    if endpoint.read_only:
        from plateway import readonly  # noqa: PLC0415  s3fs, which stores need not wait for

        fs = readonly.S3(**options) if url.startswith("s3://") else readonly.Others(fs)
    return fs, root


def lifecycle(store: Store) -> Sequence[dict[str, Any]]:
    """Read the rules by which a bucket deletes objects by itself, in the words of S3; a directory or memory has none.

    They are about keys in the whole bucket, also where the store is a part of it.

    Raises:
        Denied, NotFound, Unavailable: as everywhere; also where an endpoint knows no such rules.
    """
    ask: Callable[[], Sequence[dict[str, Any]]] | None = getattr(store, "lifecycle", None)
    return ask() if ask is not None else []


def tags(store: Store, key: str) -> dict[str, str]:
    """Read an object's tags, where the store has such; anybody may set them, so they hint and prove nothing.

    Raises:
        NotFound: there is no such object, where the store has tags at all.
    """
    ask: Callable[[str], dict[str, str]] | None = getattr(store, "tags", None)
    return ask(key) if ask is not None else {}


def plain(key: str) -> str:
    """Return the key if every store can keep it as it is.

    Raises:
        Rejected: an empty, ``.`` or ``..`` segment, a control character, a backslash, more than 1,024 bytes.
    """
    try:
        fits = len(key.encode()) <= 1024
    except UnicodeEncodeError:
        fits = False
    if not fits or UNPLAIN.search(key) or {"", ".", ".."} & set(key.split("/")):
        raise Rejected(f"{key[:1024]!r} is not a plain key")
    return key


class Feed:
    """The chunks of one object, taken once: exactly `size` bytes. Keeps the error that came out of them, if one did."""

    def __init__(self, chunks: Iterable[bytes], size: int, *, name: str) -> None:
        self.error: BaseException | None = None
        self._chunks = self._counted(chunks, size, name=name)
        self._rest = memoryview(b"")

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def _counted(self, chunks: Iterable[bytes], size: int, *, name: str) -> Generator[bytes, None, None]:
        taken = 0
        try:
            for chunk in chunks:
                taken += len(chunk)
                if taken > size:
                    break
                yield chunk
            if taken != size:
                raise Unsettled(f"{name}: {taken} bytes came to be stored, {size} expected")
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise

    def close(self) -> None:
        """Let go of the source."""
        self._chunks.close()

    def read(self, size: int) -> bytes:
        """Take at most `size` bytes, none at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest = memoryview(chunk)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


class Part:
    """The next `size` bytes of a feed, as a file."""

    def __init__(self, feed: Feed, size: int) -> None:
        self._feed, self._left = feed, size

    def read(self, size: int = -1) -> bytes:
        """Take at most `size` bytes, none at the end of the part."""
        piece = self._feed.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        return piece


class S3:
    """A bucket behind an endpoint that speaks S3."""

    durable = True

    def __init__(self, bucket: str, endpoint: Endpoint) -> None:
        self.name = bucket
        self._endpoint, self._read_only = endpoint, endpoint.read_only
        self._seen = -math.inf  # monotonic seconds when the bucket was last known to be there
        self._by_folder = False  # it lists folder by folder: `a/b` before `a-b`
        if endpoint.url and not re.match(r"https?://[^/]", endpoint.url):
            raise Misconfigured("the S3 endpoint is an http:// or https:// address")
        with door(bucket):
            self._session = _session(endpoint)
            self._credentials = self._session.get_credentials()
            self._client = _looker(endpoint, self._session)

    def beside(self, bucket: str) -> S3:
        """Open another bucket of the same endpoint, which is looked at by the same client."""
        other = copy(self)
        other.name, other._seen = bucket, -math.inf
        for mover in ("_reads", "_writes"):
            vars(other).pop(mover, None)
        return other

    @cached_property
    def _reads(self) -> S3Store:
        return _mover(self.name, self._endpoint, self._session, timeout="1d", read_timeout="30s")

    @cached_property
    def _writes(self) -> S3Store:
        return _mover(self.name, self._endpoint, self._session, timeout="1m")

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        feed = Feed(chunks, size, name=plain(key))
        try:
            with door(self._at(key)), closing(feed):
                if size <= part_size:
                    return self._put(key, b"".join(feed), attributes=dict(metadata), use_multipart=False)
                if part_size > LARGEST_BUFFERED:
                    return self._stream(key, feed, size=size, part_size=part_size, metadata=metadata)
                abreast = IN_FLIGHT // part_size
                limits = {"use_multipart": True, "chunk_size": part_size, "max_concurrency": abreast}
                return self._put(key, feed, attributes=dict(metadata), **limits)
        except PlatewayError:
            if feed.error is not None:
                raise feed.error from None
            raise

    def _put(self, key: str, content: bytes | Feed, **how: Any) -> str | None:
        if self._read_only:
            raise Refused(f"{self._at(key)}: the endpoint is read-only")
        told = obstore.put(self._writes, key, content, **how)["e_tag"]
        return told and told.strip('"')

    def _stream(self, key: str, feed: Feed, *, size: int, part_size: int, metadata: Mapping[str, str]) -> str | None:
        """Send one part after the other without holding any in memory; one that fails ends the upload."""
        begun = self._client.create_multipart_upload(Bucket=self.name, Key=key, Metadata=dict(metadata))
        upload = {"Bucket": self.name, "Key": key, "UploadId": begun["UploadId"]}
        try:
            parts = []
            for number, start in enumerate(range(0, size, part_size), start=1):
                length = min(part_size, size - start)
                sent = self._client.upload_part(
                    **upload, PartNumber=number, Body=Part(feed, length), ContentLength=length
                )
                parts.append({"PartNumber": number, "ETag": sent["ETag"]})
            feed.read(1)  # nothing; but what follows the last byte happens now, or raises
            done = self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
            return str(done.get("ETag", "")).strip('"') or None
        except BaseException:
            with suppress(ClientError, BotoCoreError):  # what stays open is found by `uploads`
                self._client.abort_multipart_upload(**upload)
            raise

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length == 0:
            return iter(())
        try:
            return self._read(key, self._get(key, start=start, length=length), length=length)
        except Damaged:
            return iter(())

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        found = self._get(key, start=start, length=length)
        return _seen(key, found.meta), self._read(key, found, length=length)

    def _get(self, key: str, *, start: int, length: int | None) -> obstore.GetResult:
        """Ask for a slice; `Damaged` (416) where the object ends before the range begins."""
        span: Any = {"suffix": -start} if start < 0 else {"offset": start}
        if start >= 0 and length is not None:
            span = (start, start + length)
        with door(self._at(plain(key))):
            return obstore.get(self._reads, key, options={"range": span} if start or length else {})

    def _read(self, key: str, found: obstore.GetResult, *, length: int | None) -> Iterator[bytes]:
        left = length
        with door(self._at(key)):
            if found.range[1] - found.range[0] <= WINDOW:  # half the work of a stream
                if content := found.bytes().to_bytes()[:left]:
                    yield content
                return
            for chunk in found.stream(min_chunk_size=WINDOW):
                yield bytes(chunk)[:left]
                if left is not None and (left := left - len(chunk)) <= 0:
                    return

    def stat(self, key: str) -> Stat | None:
        try:
            with door(self._at(plain(key))):
                head = self._client.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED")
        except NotFound:
            self._check()
            return None
        checksums = {
            name.removeprefix("Checksum").lower(): value
            for name, value in head.items()
            if name.startswith("Checksum") and name != "ChecksumType"
        }
        return Stat(
            key,
            head["ContentLength"],
            head.get("ETag", "").strip('"'),
            head["LastModified"],
            {name.lower(): value for name, value in head["Metadata"].items()},  # headers, which have no case
            checksums,
            head.get("VersionId"),
        )

    def look(self, key: str) -> Stat | None:
        try:
            with door(self._at(plain(key))):
                return _seen(key, obstore.head(self._reads, key))
        except NotFound:
            self._check()
            return None

    def _check(self) -> None:
        """Tell a missing bucket from a missing object, which a HEAD without a body does not; one look holds a while."""
        if time.monotonic() > self._seen + BUCKET_SEEN:
            with door(self.name):
                self._client.head_bucket(Bucket=self.name)
            self._seen = time.monotonic()

    def list(self, prefix: str = "") -> Iterator[Stat]:
        yield from map(_listed, self._pages("list_objects_v2", "Contents", Prefix=prefix))

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        if not self._by_folder:
            found = list(islice(self._straight(prefix, after=after, limit=limit), limit))
            if not self._by_folder:
                return found
        return list(islice(_walk(partial(self._level, limit=limit), prefix, after=after), limit))

    def _straight(self, prefix: str, *, after: str, limit: int) -> Iterator[Stat]:
        """List in the order of the keys' bytes, or notice that the endpoint knows another one."""
        last = after
        for told in self._listing(Prefix=prefix, StartAfter=after, MaxKeys=min(limit, LISTED)):
            stats = [_listed(found) for found in told.get("Contents", ())]
            keys = [last, *(stat.key for stat in stats)]
            server = told["ResponseMetadata"]["HTTPHeaders"].get("server", "")
            if "seaweedfs" in server.lower() or any(one >= other for one, other in pairwise(keys)):
                self._by_folder = True
                return
            yield from stats
            last = keys[-1]

    def _level(self, folder: str, start: str, *, begins: str, limit: int) -> Iterator[tuple[str, Stat | None]]:
        """List what lies directly in a folder, from the first name beyond `start` on; folders without a stat."""
        span = {"StartAfter": folder + start} if start else {}
        for told in self._listing(Prefix=folder + begins, Delimiter="/", MaxKeys=min(limit, LISTED), **span):
            names: list[tuple[str, Stat | None]] = [
                (found["Key"].removeprefix(folder), _listed(found)) for found in told.get("Contents", ())
            ]
            names += [(found["Prefix"].removeprefix(folder)[:-1], None) for found in told.get("CommonPrefixes", ())]
            yield from sorted((pair for pair in names if pair[0] and "/" not in pair[0]), key=lambda pair: pair[0])

    def _listing(self, **limits: Any) -> Iterator[dict[str, Any]]:
        with door(self.name):
            yield from self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, **limits)

    def _pages(self, operation: str, what: str, **limits: Any) -> Iterator[Any]:
        with door(self.name):
            for page in self._client.get_paginator(operation).paginate(Bucket=self.name, **limits):
                yield from page.get(what, ())

    def delete(self, key: str) -> None:
        with door(self._at(plain(key))):
            self._client.delete_object(Bucket=self.name, Key=key)

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete up to 1,000 objects, whatever their keys look like; say what was wrong with which."""
        with door(self.name):
            told = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = self._client.delete_objects(Bucket=self.name, Delete=told)
        return {one["Key"]: f"not deleted ({one.get('Code', 'no code')})" for one in answer.get("Errors", ())}

    def level(self, folder: str = "") -> Iterator[Stat | str]:
        """List what lies directly in a folder (empty, or ending in a slash): objects, and folders by their name."""
        for name, stat in self._level(folder, "", begins="", limit=LISTED):
            yield stat or f"{folder}{name}/"

    def sign(self, key: str, *, expires: timedelta) -> str:
        where = {"Bucket": self.name, "Key": plain(key)}
        with door(self._at(key)):
            self._credentials.get_frozen_credentials()  # renews those that end soon
            until = getattr(self._credentials, "_expiry_time", None)  # botocore tells it nowhere else
            lives = min(expires, LINKED, *([until - datetime.now(UTC)] if until else []))
            seconds = max(int(lives.total_seconds()), 1)
            return str(self._client.generate_presigned_url("get_object", where, seconds))

    def tags(self, key: str) -> dict[str, str]:
        """Read an object's tags; endpoints that know of none have none."""
        try:
            with door(self._at(plain(key))):
                found = self._client.get_object_tagging(Bucket=self.name, Key=key)
        except Unavailable as error:
            if error.code == "NotImplemented":
                return {}
            raise
        return {tag["Key"]: tag["Value"] for tag in found["TagSet"]}

    def uploads(self) -> Iterator[Upload]:
        for found in self._pages("list_multipart_uploads", "Uploads"):
            yield Upload(found["Key"], found["UploadId"], found["Initiated"])

    def abort(self, upload: Upload) -> None:
        with door(self._at(upload.key)), suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(Bucket=self.name, Key=upload.key, UploadId=upload.id)

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        with door(self.name):
            try:
                found = self._client.get_bucket_lifecycle_configuration(Bucket=self.name)
            except ClientError as error:
                if error.response["Error"].get("Code") != "NoSuchLifecycleConfiguration":
                    raise
                return []
        rules: Sequence[dict[str, Any]] = found.get("Rules", ())
        return rules

    def _at(self, key: str) -> str:
        return f"{self.name}/{key}"


class Memory:
    """A bucket in this process."""

    durable = False

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self._kept: dict[str, tuple[bytes, Stat]] = {}
        self._order: list[str] = []  # of the keys; those of deleted objects may be among them
        self._unordered: list[str] = []  # keys that came since it was made
        self._ordering = threading.Lock()

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        with closing(Feed(chunks, size, name=plain(key))) as feed:
            content = b"".join(feed)
        etag = _etag([content], part_size)
        with self._ordering:
            if key not in self._kept:
                self._unordered.append(key)
            self._kept[key] = content, Stat(key, size, etag, datetime.now(UTC), dict(metadata))
        return etag

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._read(key, start=start, length=length)[1]

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        stat, chunks = self._read(key, start=start, length=length)
        if start and start >= stat.size:
            raise Damaged(f"{self.name}/{key}: ends before the range that was asked for")
        return stat, chunks

    def _read(self, key: str, *, start: int, length: int | None) -> tuple[Stat, Iterator[bytes]]:
        found = self._kept.get(plain(key))
        if found is None:
            raise NotFound(f"{self.name}/{key}: no such object")
        content = memoryview(found[0])[start:][:length]
        return found[1], (bytes(content[at : at + WINDOW]) for at in range(0, len(content), WINDOW))

    def stat(self, key: str) -> Stat | None:
        found = self._kept.get(plain(key))
        return found and found[1]

    look = stat

    def list(self, prefix: str = "") -> Iterator[Stat]:
        keys = sorted(key for key in self._kept if key.startswith(prefix))
        return (stat for key in keys if (stat := self.stat(key)))

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        order = self._ordered()
        start = max(bisect_left(order, prefix), bisect_right(order, after) if after else 0)
        keys = takewhile(lambda key: key.startswith(prefix), islice(order, start, None))
        return list(islice((found[1] for key in keys if (found := self._kept.get(key))), limit))

    def _ordered(self) -> Sequence[str]:
        with self._ordering:
            if self._unordered:
                known = (key for key in self._order if key in self._kept)
                self._order = sorted(dict.fromkeys([*known, *self._unordered]))  # quick: it is nearly so already
                self._unordered = []
            return self._order

    def delete(self, key: str) -> None:
        self._kept.pop(plain(key), None)

    def sign(self, key: str, *, expires: timedelta) -> str:
        raise Refused(f"{self.name}/{key}: there are no links into memory")

    def uploads(self) -> Iterator[Upload]:
        return iter(())

    def abort(self, upload: Upload) -> None:
        pass


class Directory:
    """A bucket in a directory that must be there: a missing one is a missing bucket, never an empty one.

    Objects are written aside, flushed to disk, renamed, and the rename flushed too. What S3 would keep with an object
    (its metadata, how it was cut) lies in ``.plateway/``, and so do writes that were cut off. No key can lie below
    another key. `stat` reads the file: its ETag is of the bytes that are there now.
    """

    durable = True

    def __init__(self, root: Path) -> None:
        self.name = root.name
        self._root = root
        self._records, self._asides = root / KEPT / "objects", root / KEPT / "uploads"
        self._large: dict[str, tuple[int, Sequence[str]]] = {}  # names in large folders, and when these changed

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        target, feed = self._path(key), Feed(chunks, size, name=key)
        record = json.dumps({"key": key, "part_size": part_size, "metadata": dict(metadata)})
        upload = Upload(key, uuid4().hex, datetime.now(UTC))
        try:
            with self._door(key), closing(feed):
                self._write(self._asides / f"{upload.id}.json", [record.encode()])
                self._write(self._asides / upload.id, feed)
                now = time.time_ns()  # the kernel's own clock is coarse: two versions could look the same
                os.utime(self._asides / upload.id, ns=(now, now))
                self._rename(self._asides / upload.id, target)
                self._rename(self._asides / f"{upload.id}.json", self._record(key))
            return None
        except BaseException:
            with suppress(PlatewayError):  # what stays open is found by `uploads`
                self.abort(upload)
            if feed.error is not None:
                raise feed.error from None
            raise

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._read(key, self._open(key, start=start), length=length)

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        file = self._open(key, start=start)
        stat = _version(key, os.fstat(file.fileno()))
        if start and start >= stat.size:
            file.close()
            raise Damaged(f"{self.name}/{key}: ends before the range that was asked for")
        return stat, self._read(key, file, length=length)

    def _open(self, key: str, *, start: int) -> BinaryIO:
        with self._door(key):
            if not self._path(key).is_file():
                raise NotFound(f"{self.name}/{key}: no such object")
            file = self._path(key).open("rb")
            file.seek(start if start >= 0 else max(0, os.fstat(file.fileno()).st_size + start))
        return file

    def _read(self, key: str, file: BinaryIO, *, length: int | None) -> Iterator[bytes]:
        with self._door(key), file:
            while piece := file.read(WINDOW if length is None else min(WINDOW, length)):
                length = None if length is None else length - len(piece)
                yield piece

    def stat(self, key: str) -> Stat | None:
        with self._door(key):
            if not self._path(key).is_file():
                return None
            found, told = self._path(key).stat(), _told(self._record(key))
        etag = _etag(self.open(key), told.get("part_size", part_size(found.st_size)))
        return Stat(key, found.st_size, etag, _time(found.st_mtime), told.get("metadata", {}))

    def list(self, prefix: str = "") -> Iterator[Stat]:
        with self._door(prefix):
            keys = sorted((key for key in self._keys(prefix) if key.startswith(prefix)), key=os.fsencode)
        for key in keys:
            with self._door(key), suppress(FileNotFoundError):  # deleted meanwhile
                found = (self._root / key).stat()
                yield Stat(key, found.st_size, "", _time(found.st_mtime))

    def look(self, key: str) -> Stat | None:
        with self._door(key):
            path = self._path(key)
            return _version(key, path.stat()) if path.is_file() else None

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        with self._door(prefix):
            return list(islice(_walk(self._level, prefix, after=after), limit))

    def _level(self, folder: str, start: str, *, begins: str) -> Iterator[tuple[str, Stat | None]]:
        """List what lies directly in a folder, from the first name beyond `start` on; folders without a stat."""
        names = self._names(folder)
        for at in range(max(bisect_right(names, start), bisect_left(names, begins)), len(names)):
            name = names[at]
            if not name.startswith(begins):
                return
            if name.endswith("/"):
                yield name[:-1], None
                continue
            with suppress(FileNotFoundError):  # deleted meanwhile
                yield name, _version(folder + name, (self._root / folder / name).stat())

    def _names(self, folder: str) -> Sequence[str]:
        """Name what lies in a folder, in order, folders with a slash; a large one is read again when it changed."""
        path = self._root / folder
        try:
            if folder:
                self._path(folder[:-1])  # nothing is read beside the root
            changed = path.stat().st_mtime_ns
            known = self._large.get(folder)
            if known and known[0] == changed:
                return known[1]
            with os.scandir(path) as entries:
                names = sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries)
        except (FileNotFoundError, NotADirectoryError, Rejected):
            return ()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return ()
        if not folder and f"{KEPT}/" in names:
            names.remove(f"{KEPT}/")
        if len(names) >= LARGE_FOLDER and time.time_ns() - changed > SETTLED:
            while len(self._large) >= LARGE_FOLDERS:
                self._large.pop(next(iter(self._large)), None)
            self._large[folder] = changed, names
        return names

    def _keys(self, prefix: str) -> Iterator[str]:
        """Name the files in the folder that a prefix names, and below it."""
        within, slash, _ = prefix.rpartition("/")
        try:
            top = self._path(within) if slash else self._root
        except Rejected:
            return
        if not top.is_dir():
            return
        for folder, folders, names in os.walk(top, onerror=_fail):
            if Path(folder) == self._root and KEPT in folders:
                folders.remove(KEPT)
            yield from ((Path(folder) / name).relative_to(self._root).as_posix() for name in names)

    def delete(self, key: str) -> None:
        with self._door(key):
            if self._path(key).is_file():
                self._path(key).unlink()
                _flush(self._path(key).parent)
            self._record(key).unlink(missing_ok=True)

    def sign(self, key: str, *, expires: timedelta) -> str:
        raise Refused(f"{self.name}/{key}: there are no links into a directory")

    def uploads(self) -> Iterator[Upload]:
        with self._door(KEPT):
            for path in sorted(self._asides.glob("*.json")):
                with suppress(FileNotFoundError):  # completed meanwhile
                    yield Upload(_told(path).get("key", ""), path.stem, _time(path.stat().st_mtime))

    def abort(self, upload: Upload) -> None:
        with self._door(upload.key):
            (self._asides / upload.id).unlink(missing_ok=True)
            (self._asides / f"{upload.id}.json").unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if plain(key).split("/")[0] == KEPT:
            raise Rejected(f"{key!r}: {KEPT} is the store's own")
        return self._root / key

    def _record(self, key: str) -> Path:
        return self._records / f"{sha256(key.encode()).hexdigest()}.json"

    @contextmanager
    def _door(self, what: str) -> Iterator[None]:
        if not self._root.is_dir():
            raise NotFound(f"{self.name}: no such directory")
        with door(f"{self.name}/{what}"):
            yield

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        self._make(path.parent)
        with path.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())

    def _rename(self, source: Path, target: Path) -> None:
        self._make(target.parent)
        try:
            source.replace(target)
        except IsADirectoryError:
            _prune(target)  # folders that deleted objects left may go; objects in it are a conflict
            source.replace(target)
        _flush(target.parent)

    def _make(self, directory: Path) -> None:
        """Make a directory below the root, and sure that it stays."""
        if not directory.is_dir():
            self._make(directory.parent)
            directory.mkdir(exist_ok=True)
            _flush(directory.parent)


class ReadOnly:
    """A store that refuses to be changed."""

    def __init__(self, store: Store) -> None:
        self.name, self.durable = store.name, store.durable
        self.open, self.stat, self.list, self.sign = store.open, store.stat, store.list, store.sign
        self.uploads, self.lifecycle = store.uploads, partial(lifecycle, store)
        self.tags = partial(tags, store)
        if hasattr(store, "page"):
            self.look, self.fetch, self.page = objects(store).look, objects(store).fetch, objects(store).page

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        raise Refused(f"{self.name}/{key}: the bucket is read-only")

    def delete(self, key: str) -> None:
        raise Refused(f"{self.name}/{key}: the bucket is read-only")

    def abort(self, upload: Upload) -> None:
        raise Refused(f"{self.name}/{upload.key}: the bucket is read-only")


class DryRun:
    """A store that takes changes and makes none; what was to be put is read to its end."""

    def __init__(self, store: Store) -> None:
        self.name, self.durable = store.name, store.durable
        self.open, self.stat, self.list, self.sign = store.open, store.stat, store.list, store.sign
        self.uploads, self.lifecycle = store.uploads, partial(lifecycle, store)
        self.tags = partial(tags, store)

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        for _ in Feed(chunks, size, name=plain(key)):
            pass
        return None

    def delete(self, key: str) -> None:
        plain(key)

    def abort(self, upload: Upload) -> None:
        pass


class Prefixed:
    """The part of a store whose keys begin with a prefix, which ends in a slash: a sibling's keys are never met."""

    def __init__(self, store: Store, prefix: str) -> None:
        assert prefix.endswith("/")
        self.name, self.durable = f"{store.name}/{prefix.rstrip('/')}", store.durable
        self._store, self._prefix = store, prefix

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        return self._store.put(self._whole(key), chunks, size=size, part_size=part_size, metadata=metadata)

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._store.open(self._whole(key), start=start, length=length)

    def stat(self, key: str) -> Stat | None:
        found = self._store.stat(self._whole(key))
        return found and replace(found, key=key)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        for found in self._store.list(self._prefix + prefix):
            yield replace(found, key=found.key.removeprefix(self._prefix))

    def look(self, key: str) -> Stat | None:
        found = objects(self._store).look(self._whole(key))
        return found and replace(found, key=key)

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        found, chunks = objects(self._store).fetch(self._whole(key), start=start, length=length)
        return replace(found, key=key), chunks

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        found = objects(self._store).page(self._prefix + prefix, after=after and self._prefix + after, limit=limit)
        return [replace(one, key=one.key.removeprefix(self._prefix)) for one in found]

    def delete(self, key: str) -> None:
        self._store.delete(self._whole(key))

    def sign(self, key: str, *, expires: timedelta) -> str:
        return self._store.sign(self._whole(key), expires=expires)

    def uploads(self) -> Iterator[Upload]:
        for upload in self._store.uploads():
            if upload.key.startswith(self._prefix):
                yield replace(upload, key=upload.key.removeprefix(self._prefix))

    def abort(self, upload: Upload) -> None:
        self._store.abort(replace(upload, key=self._prefix + upload.key))

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        return lifecycle(self._store)

    def tags(self, key: str) -> dict[str, str]:
        """Read an object's tags, where the store has such."""
        return tags(self._store, self._whole(key))

    def _whole(self, key: str) -> str:
        return self._prefix + plain(key)


CREDENTIALS = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "InvalidAccessKeyId"}
MISSING = {"NoSuchBucket", "NoSuchKey", "404"}
STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>(\w{1,64})</Code>")
KIND = re.compile(r"kind: (Connect|Timeout|Interrupted|Decode)")
MEANING: dict[int | None, type[PlatewayError]] = {  # everything else is Unavailable
    errno.ENOENT: NotFound,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
    errno.EEXIST: Conflict,
    errno.EISDIR: Conflict,
    errno.ENOTDIR: Conflict,
    errno.ENAMETOOLONG: Rejected,
}


CLASSES: dict[type[OSError], tuple[type[PlatewayError], str]] = {  # what fsspec tells by the class alone
    FileNotFoundError: (NotFound, "not found"),
    PermissionError: (Denied, "denied"),
    FileExistsError: (Conflict, "is there already"),
}


@contextmanager
def door(what: str) -> Iterator[None]:
    """Let foreign errors in as ours. Their text may quote addresses and paths, so it is not chained."""
    try:
        yield
    except ClientError as error:
        code = str(error.response["Error"].get("Code", ""))
        raise _answered(what, error.response["ResponseMetadata"].get("HTTPStatusCode", 0), code) from None
    except BotoCoreError as error:
        raise Unavailable(f"{what}: the endpoint cannot be asked ({type(error).__name__})") from None
    except (BaseError, OSError) as error:
        raise _failed(what, error) from None


def _answered(what: str, status: int, code: str) -> PlatewayError:
    """Translate an endpoint's answer; the error keeps its code."""
    error = _meant(what, status, code)
    error.code = code or str(status)
    return error


def _meant(what: str, status: int, code: str) -> PlatewayError:
    if code in MISSING or (status == 404 and code != "NoSuchUpload"):
        return NotFound(f"{what}: not found ({code})")
    if status == 416:
        return Damaged(f"{what}: ends before the range that was asked for")
    if status in {401, 403} or code in CREDENTIALS:
        return Denied(f"{what}: denied ({code})")
    return Unavailable(f"{what}: the endpoint answered {status} {code}".rstrip())


def _failed(what: str, error: Exception) -> PlatewayError:
    """Read what obstore only tells in words, or what the system says of a file."""
    text = str(error)
    status, code, kind = STATUS.search(text), CODE.search(text), KIND.search(text)
    if status:
        return _answered(what, int(status[1]), code[1] if code else "")
    if isinstance(error, OSError) and error.errno:
        return MEANING.get(error.errno, Unavailable)(f"{what}: {error.strerror}")
    for theirs, (ours, told) in CLASSES.items():
        if isinstance(error, theirs):
            return ours(f"{what}: {told}")
    if "non-partial response" in text:
        return Unavailable(f"{what}: the endpoint answers with 200 where a range was asked for")
    return Unavailable(f"{what}: the endpoint does not answer ({kind[1] if kind else type(error).__name__})")


def _session(endpoint: Endpoint) -> Any:
    """Find who asks."""
    session = get_session()
    session.register_component("data_loader", LOADER)
    parsers = ResponseParserFactory()
    parsers.set_parser_defaults(timestamp_parser=_when)
    session.register_component("response_parser_factory", parsers)
    if endpoint.access_key_id and endpoint.secret_access_key:
        secret, token = endpoint.secret_access_key, endpoint.session_token
        session.set_credentials(endpoint.access_key_id, secret.get_secret_value(), token and token.get_secret_value())
    if session.get_credentials() is None:
        raise Misconfigured("no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return session


def client(endpoint: Endpoint) -> Any:
    """Make a client of botocore, for questions that the contract has no words for; its errors are to end at `door`.

    Raises:
        Misconfigured: nobody is known who asks.
    """
    return _looker(endpoint, _session(endpoint))


def _looker(endpoint: Endpoint, session: Any) -> Any:
    """Make the client that looks."""
    config = Config(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=12,
        retries={"total_max_attempts": 2, "mode": "standard"},
        proxies={} if endpoint.bypass_proxy else None,
        request_checksum_calculation="when_required",  # else it would end up inside the object on older servers
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint.url else "auto", "payload_signing_enabled": False},
    )
    client = session.create_client("s3", endpoint_url=endpoint.url, region_name=endpoint.region, config=config)
    if endpoint.read_only:
        client.meta.events.register("before-call.s3", _only_read)
    return client


def _only_read(*, model: Any, params: Mapping[str, Any], **_: Any) -> None:
    """Let no request pass that could change anything."""
    if params["method"] not in {"GET", "HEAD"}:
        raise Refused(f"{model.name}: the endpoint is read-only")


def _when(told: Any) -> datetime:
    """Read a time as listings tell it, which botocore's own way makes four fifths of the work of; others that way."""
    with suppress(TypeError, ValueError):
        found = datetime.fromisoformat(told)
        if found.tzinfo:
            return found
    other: datetime = parse_timestamp(told)
    return other


def _mover(bucket: str, endpoint: Endpoint, session: Any, **patience: str) -> S3Store:
    """Make the client that moves bytes. Bodies are not signed: the ETag of what arrived is compared instead."""

    def credentials() -> S3Credential:
        found = session.get_credentials().get_frozen_credentials()
        until = datetime.now(UTC) + timedelta(minutes=5)  # then it asks again: they may have been renewed
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": until,
        }

    client: Any = {"connect_timeout": "5s", "allow_http": True, **patience}
    where: Any = {"endpoint": endpoint.url, "aws_endpoint_url_s3": endpoint.url} if endpoint.url else {}
    if endpoint.bypass_proxy:  # one that is set and spared takes the place of those in the environment
        host = urlsplit(endpoint.url or "").hostname or "amazonaws.com"
        client |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": host}
    return S3Store(
        bucket,
        region=endpoint.region,
        virtual_hosted_style_request=endpoint.url is None,
        unsigned_payload=True,
        skip_signature=False,
        client_options=client,
        retry_config=RETRY,
        credential_provider=credentials,
        **where,
    )


Level = Callable[..., Iterator[tuple[str, Stat | None]]]


def _walk(level: Level, prefix: str, *, after: str) -> Iterator[Stat]:
    """Bring what is listed folder by folder into the order of whole keys, from the first key beyond `after` on."""
    folder = prefix[: prefix.rfind("/") + 1]
    if after < folder:
        after = ""
    elif not after.startswith(folder):
        return
    yield from _below(level, folder, after.removeprefix(folder), begins=prefix.removeprefix(folder))


def _below(level: Level, folder: str, after: str, *, begins: str = "") -> Iterator[Stat]:
    """List a folder's objects whose keys, taken from the folder on, are beyond `after`.

    A folder `a` comes where `a/` does: after `a-b`, and before `a0`. So folders wait until nothing can come before
    them, and those that may go on behind `after` are gone into again.
    """
    head, slash, rest = after.partition("/")
    again = {f"{head[:at]}/" for at in range(1, len(head)) if head[at] < "/"} | ({f"{head}/"} if head else set())
    waiting = [one for one in again if one.startswith(begins)]
    heapify(waiting)

    def due(name: str | None) -> Iterator[Stat]:
        while waiting and (name is None or waiting[0] < name):
            inner = heappop(waiting)
            yield from _below(level, folder + inner, rest if inner == f"{head}/" else "")

    for name, stat in level(folder, f"{head}.\U0010ffff" if slash else head, begins=begins):
        yield from due(name)
        if stat is not None:
            yield stat
        elif f"{name}/" not in again:
            heappush(waiting, f"{name}/")
    yield from due(None)


@cache
def _memory(name: str) -> Memory:
    return Memory(name or "memory")


def _etag(chunks: Iterable[bytes], size: int) -> str:
    parts = Parts(size)
    for chunk in chunks:
        parts.update(chunk)
    return parts.etag()


def _listed(found: Mapping[str, Any]) -> Stat:
    return Stat(found["Key"], found["Size"], found.get("ETag", "").strip('"'), found["LastModified"])


def _seen(key: str, found: obstore.ObjectMeta) -> Stat:
    return Stat(key, found["size"], (found["e_tag"] or "").strip('"'), found["last_modified"])


def _version(key: str, found: os.stat_result) -> Stat:
    """Tell versions of a file apart without reading it: each is another file, written at another nanosecond."""
    etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return Stat(key, found.st_size, etag, _time(found.st_mtime))


def _prune(directory: Path) -> None:
    """Remove a directory in which there are only directories; IsADirectoryError where there is something else."""
    for folder, _, names in os.walk(directory, topdown=False, onerror=_fail):
        if names:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with suppress(FileNotFoundError):
            Path(folder).rmdir()


def _fail(error: OSError) -> None:
    raise error


def _told(record: Path) -> dict[str, Any]:
    """Read what was kept with an object; of a record that is damaged, nothing."""
    try:
        told = dict(json.loads(record.read_bytes()))
        sound = isinstance(told["key"], str) and told["part_size"] > 0
        sound &= all(isinstance(one, str) for pair in told["metadata"].items() for one in pair)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return told if sound else {}


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
