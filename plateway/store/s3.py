"""A bucket behind an endpoint that speaks S3."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from copy import copy
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from botocore.config import Config  # type: ignore[import-untyped]  # ships no types
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # ships no types
from botocore.loaders import Loader  # type: ignore[import-untyped]  # ships no types
from botocore.parsers import ResponseParserFactory  # type: ignore[import-untyped]  # ships no types
from botocore.session import get_session  # type: ignore[import-untyped]  # ships no types
from botocore.utils import parse_timestamp  # type: ignore[import-untyped]  # ships no types
from obstore.store import S3Store

from plateway.endpoint import Endpoint
from plateway.errors import Damaged, Misconfigured, NotFound, PlatewayError, Refused, Unavailable
from plateway.store.contract import (
    LINKED,
    MIB,
    WINDOW,
    Feed,
    FeedPart,
    Stat,
    Upload,
    check_foreign_key,
    check_key,
    is_plain,
    walk,
)
from plateway.store.errors import translate_errors

IN_FLIGHT = 16 * MIB  # parts on their way at a time, of one upload; one more is being filled
LARGEST_BUFFERED = 16 * MIB  # larger parts are streamed, one at a time
BUCKET_SEEN = 5.0  # seconds for which a bucket that was there is taken to be there
if TYPE_CHECKING:
    from obstore.store import RetryConfig, S3Credential

RETRY: RetryConfig = {  # of one request; callers retry whole verbs
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
UNLOCKED = {  # what endpoints answer to a lock in a bucket without Object Lock, or where they have none
    *("InvalidRequest", "ObjectLockConfigurationNotFoundError", "InvalidBucketState"),
    *("NotImplemented", "MethodNotAllowed", "501", "405"),
}
LIFTED = timedelta(minutes=1)  # a retention is lifted by shortening it: not every endpoint takes it away
NOT_RETAINED = {"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest"}
LOADER = Loader()  # what botocore reads of its service descriptions; 0.15 s the first time
LISTED = 1000  # keys that S3 lists at a time


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
        with translate_errors(bucket):
            self._session = _open_session(endpoint)
            self._credentials = self._session.get_credentials()
            self._client = _make_looker(endpoint, self._session)

    def beside(self, bucket: str) -> S3:
        """Open another bucket of the same endpoint, which is looked at by the same client."""
        other = copy(self)
        other.name, other._seen = bucket, -math.inf
        for mover in ("_reads", "_writes"):
            vars(other).pop(mover, None)
        return other

    @cached_property
    def _reads(self) -> S3Store:
        return _make_mover(self.name, self._endpoint, self._session, timeout="1d", read_timeout="30s")

    @cached_property
    def _writes(self) -> S3Store:
        return _make_mover(self.name, self._endpoint, self._session, timeout="1m")

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        feed = Feed(chunks, size, name=check_key(key))
        try:
            with translate_errors(self._at(key)), closing(feed):
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
                    **upload, PartNumber=number, Body=FeedPart(feed, length), ContentLength=length
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
            if not is_plain(key):
                return self._fetch_foreign(key, start=start, length=length)[1]
            return self._read(key, self._get(key, start=start, length=length), length=length)
        except Damaged:
            return iter(())

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        if not is_plain(key):
            return self._fetch_foreign(key, start=start, length=length)
        found = self._get(key, start=start, length=length)
        return _stat_of_meta(key, found.meta), self._read(key, found, length=length)

    def _fetch_foreign(self, key: str, *, start: int, length: int | None) -> tuple[Stat, Iterator[bytes]]:
        """Read an object whose key is not plain, like ``a//b``: the other client would change it."""
        end = "" if length is None else start + length - 1
        span = {"Range": f"bytes={start}" if start < 0 else f"bytes={start}-{end}"} if start or length else {}
        with translate_errors(self._at(check_foreign_key(key))):
            found = self._client.get_object(Bucket=self.name, Key=key, **span)
        whole = int(found.get("ContentRange", f"/{found['ContentLength']}").rpartition("/")[2])
        stat = Stat(key, whole, found.get("ETag", "").strip('"'), found["LastModified"])
        return stat, self._stream_body(key, found["Body"])

    def _stream_body(self, key: str, body: Any) -> Iterator[bytes]:
        with translate_errors(self._at(key)), closing(body):
            yield from body.iter_chunks(WINDOW)

    def _get(self, key: str, *, start: int, length: int | None) -> obstore.GetResult:
        """Request a slice; `Damaged` (416) if the object ends before it."""
        span: Any = {"suffix": -start} if start < 0 else {"offset": start}
        if start >= 0 and length is not None:
            span = (start, start + length)
        with translate_errors(self._at(check_key(key))):
            return obstore.get(self._reads, key, options={"range": span} if start or length else {})

    def _read(self, key: str, found: obstore.GetResult, *, length: int | None) -> Iterator[bytes]:
        left = length
        with translate_errors(self._at(key)):
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
            with translate_errors(self._at(check_foreign_key(key))):
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
        if not is_plain(key):
            return self.stat(key)
        try:
            with translate_errors(self._at(key)):
                return _stat_of_meta(key, obstore.head(self._reads, key))
        except NotFound:
            self._check()
            return None

    def _check(self) -> None:
        """Raise if the bucket is missing: a HEAD does not tell it from a missing object. Checked every few seconds."""
        if time.monotonic() > self._seen + BUCKET_SEEN:
            with translate_errors(self.name):
                self._client.head_bucket(Bucket=self.name)
            self._seen = time.monotonic()

    def list(self, prefix: str = "") -> Iterator[Stat]:
        yield from map(_stat_of_listing, self._pages("list_objects_v2", "Contents", Prefix=prefix))

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        if not self._by_folder:
            found = list(islice(self._straight(prefix, after=after, limit=limit), limit))
            if not self._by_folder:
                return found
        return list(islice(walk(partial(self._level, limit=limit), prefix, after=after), limit))

    def _straight(self, prefix: str, *, after: str, limit: int) -> Iterator[Stat]:
        """List in the order of the keys' bytes, or notice that the endpoint knows another one."""
        last = after
        for told in self._listing(Prefix=prefix, StartAfter=after, MaxKeys=min(limit, LISTED)):
            stats = [_stat_of_listing(found) for found in told.get("Contents", ())]
            keys = [last, *(stat.key for stat in stats)]
            server = told["ResponseMetadata"]["HTTPHeaders"].get("server", "")
            if "seaweedfs" in server.lower() or any(one >= other for one, other in pairwise(keys)):
                self._by_folder = True
                return
            yield from stats
            last = keys[-1]

    def _level(self, folder: str, start: str, *, begins: str, limit: int) -> Iterator[tuple[str, Stat | None]]:
        """List the entries of a folder from the first name beyond `start` on; folders without a Stat."""
        span = {"StartAfter": folder + start} if start else {}
        for told in self._listing(Prefix=folder + begins, Delimiter="/", MaxKeys=min(limit, LISTED), **span):
            names: list[tuple[str, Stat | None]] = [
                (found["Key"].removeprefix(folder), _stat_of_listing(found)) for found in told.get("Contents", ())
            ]
            names += [(found["Prefix"].removeprefix(folder)[:-1], None) for found in told.get("CommonPrefixes", ())]
            yield from sorted((pair for pair in names if pair[0] and "/" not in pair[0]), key=lambda pair: pair[0])

    def _listing(self, **limits: Any) -> Iterator[dict[str, Any]]:
        with translate_errors(self.name):
            yield from self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, **limits)

    def _pages(self, operation: str, what: str, **limits: Any) -> Iterator[Any]:
        with translate_errors(self.name):
            for page in self._client.get_paginator(operation).paginate(Bucket=self.name, **limits):
                yield from page.get(what, ())

    def delete(self, key: str) -> None:
        with translate_errors(self._at(check_foreign_key(key))):
            self._client.delete_object(Bucket=self.name, Key=key)

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete up to 1,000 objects with any keys; return the problem of each that stays."""
        with translate_errors(self.name):
            told = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            answer = self._client.delete_objects(Bucket=self.name, Delete=told)
        return {one["Key"]: f"not deleted ({one.get('Code', 'no code')})" for one in answer.get("Errors", ())}

    def level(self, folder: str = "") -> Iterator[Stat | str]:
        """List a folder (empty, or ending in a slash): objects, and folders by their name."""
        for name, stat in self._level(folder, "", begins="", limit=LISTED):
            yield stat or f"{folder}{name}/"

    def sign(self, key: str, *, expires: timedelta) -> str:
        where = {"Bucket": self.name, "Key": check_key(key)}
        with translate_errors(self._at(key)):
            self._credentials.get_frozen_credentials()  # renews those that end soon
            until = getattr(self._credentials, "_expiry_time", None)  # botocore has it nowhere else
            lives = min(expires, LINKED, *([until - datetime.now(UTC)] if until else []))
            seconds = max(int(lives.total_seconds()), 1)
            return str(self._client.generate_presigned_url("get_object", where, seconds))

    def tags(self, key: str) -> dict[str, str]:
        """Read an object's tags; endpoints that know of none have none."""
        try:
            with translate_errors(self._at(check_foreign_key(key))):
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
        with translate_errors(self._at(upload.key)), suppress(self._client.exceptions.NoSuchUpload):
            self._client.abort_multipart_upload(Bucket=self.name, Key=upload.key, UploadId=upload.id)

    def lock(self, key: str, *, hold: bool, until: datetime | None) -> bool:
        where = {"Bucket": self.name, "Key": key}
        if self._read_only:
            raise Refused(f"{self._at(key)}: the endpoint is read-only")
        with translate_errors(self._at(key)):
            try:
                self._client.put_object_legal_hold(**where, LegalHold={"Status": "ON" if hold else "OFF"})
            except ClientError as error:
                if error.response["Error"].get("Code") in UNLOCKED:
                    return False
                raise
            if until or self._is_retained(where):
                told = {"Mode": "GOVERNANCE", "RetainUntilDate": until or datetime.now(UTC) + LIFTED}
                self._client.put_object_retention(**where, Retention=told, BypassGovernanceRetention=True)
        return True

    def _is_retained(self, where: Mapping[str, str]) -> bool:
        try:
            found = self._client.get_object_retention(**where)
        except ClientError as error:
            if error.response["Error"].get("Code") in NOT_RETAINED:
                return False
            raise
        until = found.get("Retention", {}).get("RetainUntilDate")
        return until is not None and until > datetime.now(UTC)

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        with translate_errors(self.name):
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


def _open_session(endpoint: Endpoint) -> Any:
    """Open a botocore session with the endpoint's credentials."""
    session = get_session()
    session.register_component("data_loader", LOADER)
    parsers = ResponseParserFactory()
    parsers.set_parser_defaults(timestamp_parser=_parse_time)
    session.register_component("response_parser_factory", parsers)
    if endpoint.access_key_id and endpoint.secret_access_key:
        secret, token = endpoint.secret_access_key, endpoint.session_token
        session.set_credentials(endpoint.access_key_id, secret.get_secret_value(), token and token.get_secret_value())
    if session.get_credentials() is None:
        raise Misconfigured("no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return session


def make_client(endpoint: Endpoint) -> Any:
    """Create a botocore client for operations outside of the contract; wrap calls in `translate_errors`.

    Raises:
        Misconfigured: there are no credentials.
    """
    return _make_looker(endpoint, _open_session(endpoint))


def _make_looker(endpoint: Endpoint, session: Any) -> Any:
    """Create the client that inspects."""
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
        client.meta.events.register("before-call.s3", _refuse_writes)
    return client


def _refuse_writes(*, model: Any, params: Mapping[str, Any], **_: Any) -> None:
    """Refuse every request that could change something."""
    if params["method"] not in {"GET", "HEAD"}:
        raise Refused(f"{model.name}: the endpoint is read-only")


def _parse_time(told: Any) -> datetime:
    """Parse the time of a listing; botocore's own parser takes four fifths of a listing's time."""
    with suppress(TypeError, ValueError):
        found = datetime.fromisoformat(told)
        if found.tzinfo:
            return found
    other: datetime = parse_timestamp(told)
    return other


def _make_mover(bucket: str, endpoint: Endpoint, session: Any, **patience: str) -> S3Store:
    """Create the client that moves bytes. Bodies are not signed: the ETag of what arrived is compared instead."""

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


def _stat_of_listing(found: Mapping[str, Any]) -> Stat:
    return Stat(found["Key"], found["Size"], found.get("ETag", "").strip('"'), found["LastModified"])


def _stat_of_meta(key: str, found: obstore.ObjectMeta) -> Stat:
    return Stat(key, found["size"], (found["e_tag"] or "").strip('"'), found["last_modified"])
