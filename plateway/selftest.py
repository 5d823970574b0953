"""Try an endpoint: what it supports, and whether events come through the whole line on it and back.

Every capability is tried, not guessed, for instance by sending a wrong checksum. Everything happens in a short-lived
bucket, or in a folder of its own in a bucket that is there; that is removed afterwards, and nothing else is.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import httpx
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # botocore ships no types
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # the same

from plateway import pipeline, simulator
from plateway.catalog import Catalog
from plateway.checksums import PartHasher
from plateway.endpoint import Endpoint
from plateway.errors import Damaged, Denied, PlatewayError, Refused, Transient, Unavailable
from plateway.events import Ref
from plateway.instruments import Instrument
from plateway.pipeline import Outcome, Site
from plateway.simulator import Announced, Simulated
from plateway.store import Stat, Store, open_store
from plateway.store.admin import Address, Buckets, temporary
from plateway.store.per_file import PerFile
from plateway.store.s3 import make_client as client

Verdict = Literal["yes", "no", "ignored", "denied", "unknown"]
ONE, TWO = b"plateway tries this", b"plateway tries that"  # of one length
PART = 5 << 20  # bytes; the least that S3 takes as a part
BIG = 1536  # pixels along either side of an image; two of them are sent in parts
FILES = "francis"  # the system whose images are objects of their own
PATIENCE = 30.0  # seconds for a link to answer


@dataclass(frozen=True)
class Capability:
    """What came of trying one thing."""

    name: str
    verdict: Verdict  # ignored: taken without a word, and without effect; unknown: the endpoint did not answer
    detail: str  # what the endpoint did
    use: str  # what Plateway does therefore


@dataclass(frozen=True)
class RoundStep:
    """What came of one step of the events' way into the bucket and back."""

    name: str
    result: Literal["done", "failed", "later", "damaged"]
    detail: str  # what was done, or why it was not
    seconds: float


@dataclass(frozen=True)
class SelftestReport:
    """What an endpoint can, and how the round went."""

    place: str  # where it was tried: s3://bucket/folder
    capabilities: list[Capability]
    steps: list[RoundStep]

    @property
    def good(self) -> bool:
        """Return whether the round went well."""
        return all(step.result == "done" for step in self.steps)

    @property
    def summary(self) -> str:
        """Summarize all of it in a line."""
        able = sum(one.verdict == "yes" for one in self.capabilities)
        bad = [f"{step.name} {step.result}: {step.detail}" for step in self.steps if step.result != "done"]
        told = "; ".join(bad) or "events came through and back"
        return f"{told}; {able} of {len(self.capabilities)} capabilities"


def run(
    endpoint: Endpoint,
    *,
    name: str = "selftest",
    within: Address | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> SelftestReport:
    """Try an endpoint in a short-lived bucket of that name, or below an address in a folder of its own.

    ``tell`` hears what is being tried.

    Raises:
        Refused: the endpoint is read-only. Denied: no bucket may be made, and no address was given.
        Unavailable: it does not answer, or what was tried could not be removed.
    """
    if endpoint.read_only:
        raise Refused("a self-test writes, and the endpoint is read-only")
    with ExitStack() as stack:
        try:
            where = stack.enter_context(_place(Buckets(endpoint), name, within))
        except Denied as error:
            raise Denied(f"{error}; it can be tried in a bucket that is there, too") from error
        room = Room(endpoint, where, own=within is None)
        capabilities = [trial.tried(room, tell) for trial in TRIALS if room.own or not trial.own]
        with tempfile.TemporaryDirectory() as home, closing(Round(room.store, Path(home))) as events:
            steps = list(_taken(events.steps(), tell))
        steps += _taken([("delete", partial(_leave, stack, where))], tell)
    return SelftestReport(str(where), capabilities, steps)


@contextmanager
def _place(buckets: Buckets, name: str, within: Address | None) -> Iterator[Address]:
    """Yield a place that is ours alone, and remove it afterwards."""
    unique = f"plateway-selftest-{datetime.now(UTC):%Y%m%d%H%M%S}-{uuid4().hex[:6]}/"
    with nullcontext(within.bucket) if within else temporary(buckets, name) as bucket:
        where = within.below(unique) if within else Address(bucket)
        try:
            yield where
        finally:
            _clear(buckets, where)


def _leave(stack: ExitStack, where: Address) -> str:
    stack.close()
    return f"nothing is left of {where}"


def _clear(buckets: Buckets, where: Address) -> None:
    """Delete what is in a folder one by one, which every endpoint can, and end the uploads that are open in it.

    Raises:
        Unavailable: something is still there.
    """
    store = buckets.store(where.bucket)
    for stat in list(store.list(where.folder)):
        store.delete(stat.key)
    with suppress(PlatewayError):  # an endpoint that lists no uploads
        for upload in [one for one in store.uploads() if one.key.startswith(where.folder)]:
            store.abort(upload)
    if left := next(store.list(where.folder), None):
        raise Unavailable(f"{left.key} was deleted and is still there")


# ------------------------------------------------------------------------------------------------------------ one thing


class Observation(NamedTuple):
    """What the endpoint did."""

    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class Room:
    """A folder in a bucket, and a client that may ask the endpoint whatever it likes."""

    endpoint: Endpoint
    where: Address
    own: bool  # nobody else has anything in this bucket

    @cached_property
    def client(self) -> Any:
        return client(self.endpoint)

    @cached_property
    def store(self) -> Store:
        return open_store(str(self.where), self.endpoint)

    @cached_property
    def in_parts(self) -> tuple[str | None, str, Stat | None]:
        """Upload something in parts: what the answer told, what it must be, what is told afterwards."""
        content, parts = [bytes(PART), ONE], PartHasher(PART)
        for chunk in content:
            parts.update(chunk)
        told = self.store.put("in-parts", content, size=PART + len(ONE), part_size=PART, metadata={})
        return told, parts.etag(), self.store.stat("in-parts")

    def key(self, name: str) -> str:
        return self.where.folder + name

    def ask(self, operation: str, name: str | None = None, **how: Any) -> dict[str, Any]:
        """Call an operation of S3 about the bucket, or about an object in the folder."""
        about = {} if name is None else {"Key": self.key(name)}
        answer: dict[str, Any] = getattr(self.client, operation)(Bucket=self.where.bucket, **about, **how)
        return answer

    def put(self, name: str, content: bytes = ONE, **how: Any) -> None:
        self.ask("put_object", name, Body=content, **how)

    def get(self, name: str, **how: Any) -> bytes:
        content: bytes = self.ask("get_object", name, **how)["Body"].read()
        return content

    def keys(self, operation: str, folder: str, **how: Any) -> list[str]:
        """List a folder, two keys a page."""
        pages = self.client.get_paginator(operation).paginate(
            Bucket=self.where.bucket, Prefix=self.key(folder), PaginationConfig={"PageSize": 2, "MaxItems": 100}, **how
        )
        return [found["Key"].removeprefix(self.where.folder) for page in pages for found in page.get("Contents", ())]


@dataclass(frozen=True)
class Trial:
    """One thing to try, and what it means for Plateway."""

    name: str
    act: Callable[[Room], Observation]
    use: str
    otherwise: str
    own: bool = False  # only where the bucket is nobody else's

    def tried(self, room: Room, tell: Callable[[str], object]) -> Capability:
        """Try it; that the endpoint cannot be asked is a finding as well."""
        tell(self.name)
        try:
            verdict, detail = self.act(room)
        except ClientError as error:
            verdict, detail = _answer(error)
        except (BotoCoreError, ResponseParserError, PlatewayError, httpx.HTTPError) as error:
            verdict, detail = _failure(error)
        use = self.use if verdict == "yes" else "try again" if verdict == "unknown" else self.otherwise
        return Capability(self.name, verdict, detail, use)


def _answer(error: ClientError) -> Observation:
    status, code = _status(error)
    verdict: Verdict = "denied" if status in {401, 403} else "unknown" if status in {500, 502, 503, 504} else "no"
    return Observation(verdict, f"answered {status} {code}".rstrip())


def _status(error: ClientError) -> tuple[int, str]:
    return error.response["ResponseMetadata"].get("HTTPStatusCode", 0), str(error.response["Error"].get("Code", ""))


def _failure(error: Exception) -> Observation:
    if not isinstance(error, PlatewayError):
        return Observation("unknown", f"does not answer, or not as S3 does ({type(error).__name__})")
    return Observation(
        "denied" if isinstance(error, Denied) else "unknown" if isinstance(error, Transient) else "no", str(error)
    )


def single_etag(room: Room) -> Observation:
    """Is the ETag of one PUT the MD5 of its bytes?"""
    room.put("single")
    return _etag(room.store.stat("single"), hashlib.md5(ONE, usedforsecurity=False).hexdigest())


def parts_etag(room: Room) -> Observation:
    """Is the ETag of an upload in parts the MD5 of their MD5s?"""
    _, expected, found = room.in_parts
    return _etag(found, expected)


def _etag(found: Stat | None, expected: str) -> Observation:
    if found is None:
        return Observation("no", "what was put is not there")
    told = f"HEAD tells {found.etag}" if found.etag else "HEAD tells none"
    return (
        Observation("yes", told) if found.etag == expected else Observation("no", f"{told}, the bytes make {expected}")
    )


def completed_etag(room: Room) -> Observation:
    """Does the answer to CompleteMultipartUpload tell it?"""
    told, expected, _ = room.in_parts
    return Observation("yes", f"told {told}") if told == expected else Observation("no", f"told {told or 'none'}")


def content_md5(room: Room) -> Observation:
    """Is a body refused that is not what Content-MD5 says?"""
    guard = _base64("md5", ONE)
    room.put("md5", ContentMD5=guard)
    return _refused(partial(room.put, "md5", TWO, ContentMD5=guard))


def checksum(room: Room) -> Observation:
    """Is a body refused that is not what x-amz-checksum-sha256 says, and is a right one kept?"""
    guard = _base64("sha256", ONE)
    room.put("sha256", ChecksumSHA256=guard)
    told = room.ask("head_object", "sha256", ChecksumMode="ENABLED").get("ChecksumSHA256")
    found = _refused(partial(room.put, "sha256", TWO, ChecksumSHA256=guard))
    return found._replace(detail=f"{found.detail}; HEAD tells {'it' if told == guard else 'none'}")


def _base64(algorithm: str, content: bytes) -> str:
    return b64encode(hashlib.new(algorithm, content, usedforsecurity=False).digest()).decode()


def _refused(wrong: Callable[[], None]) -> Observation:
    """Send what must be refused as wrong; a right one was taken before."""
    try:
        wrong()
    except ClientError as error:
        status, code = _status(error)
        if status not in {400, 412}:
            raise
        return Observation("yes", f"a wrong one was refused ({status} {code})")
    return Observation("ignored", "a wrong one was taken")


def conditional(room: Room) -> Observation:
    """Does If-None-Match: * keep a PUT from replacing what is there?"""
    room.put("once", IfNoneMatch="*")
    try:
        room.put("once", TWO, IfNoneMatch="*")
    except ClientError as error:
        status, code = _status(error)
        if status not in {409, 412}:
            raise
        return Observation("yes", f"the second PUT was refused ({status} {code})")
    kept = room.get("once") == ONE
    return Observation(
        "ignored", f"the second PUT was answered as if done{', and was not' if kept else ': it replaced'}"
    )


def metadata(room: Room) -> Observation:
    """Are an object's own headers kept?"""
    room.put("metadata", Metadata={"event-id": "1"})
    found = room.store.stat("metadata")
    kept = found is not None and found.metadata.get("event-id") == "1"
    return Observation("yes", "HEAD tells them") if kept else Observation("ignored", "HEAD does not tell them")


def tagging(room: Room) -> Observation:
    """Are tags kept?"""
    room.put("tagged")
    tags = [{"Key": "archived", "Value": "true"}]
    room.ask("put_object_tagging", "tagged", Tagging={"TagSet": tags})
    told = room.ask("get_object_tagging", "tagged").get("TagSet")
    return Observation("yes", "set and read") if told == tags else Observation("ignored", "set, and none is read")


def ranged(room: Room, span: str = "bytes=2-5", expected: bytes = ONE[2:6]) -> Observation:
    """Is a part of an object read alone?"""
    room.put("ranged")
    answer = room.ask("get_object", "ranged", Range=span)
    content, status = answer["Body"].read(), answer["ResponseMetadata"]["HTTPStatusCode"]
    if content != expected:
        return Observation("ignored", f"{len(content)} bytes of {len(ONE)} came, answered {status}")
    return Observation("yes" if status == 206 else "no", f"{len(content)} bytes came, answered {status}")


def presigned(room: Room) -> Observation:
    """Does a link read an object without credentials?"""
    room.put("linked")
    link = room.store.sign("linked", expires=timedelta(minutes=1))
    answer = httpx.get(link, timeout=PATIENCE, trust_env=not room.endpoint.bypass_proxy)
    if answer.content == ONE:
        return Observation("yes", "read without credentials")
    return Observation("denied" if answer.status_code in {401, 403} else "no", f"answered {answer.status_code}")


def listed(room: Room, operation: str) -> Observation:
    """Does a listing tell all of a folder, and none of a sibling that begins alike?"""
    names = sorted(f"{operation}/{number}" for number in range(3))
    for name in [*names, f"{operation}-sibling"]:
        room.put(name)
    found = sorted(room.keys(operation, f"{operation}/"))
    return Observation("yes" if found == names else "no", f"{len(found)} of 3 in pages of 2")


def ordered(room: Room) -> Observation:
    """Are keys listed in the order of their bytes?"""
    names = ["order/a-b", "order/a/b", "order/a0"]
    for name in names:
        room.put(name)
    found = room.keys("list_objects_v2", "order/")
    return Observation("yes" if found == names else "no", ", ".join(found))


def deleted_together(room: Room) -> Observation:
    """Does one request delete many objects?"""
    for name in ("together/1", "together/2"):
        room.put(name)
    keys = [{"Key": room.key(name)} for name in ("together/1", "together/2")]
    room.ask("delete_objects", Delete={"Objects": keys, "Quiet": True})
    left = room.keys("list_objects_v2", "together/")
    return (
        Observation("ignored", f"{len(left)} of 2 are still there") if left else Observation("yes", "2 of 2 are gone")
    )


def open_uploads(room: Room) -> Observation:
    """Are uploads told of that were begun and not completed, and can they be ended?"""
    begun = room.ask("create_multipart_upload", "open")["UploadId"]
    try:
        told = room.ask("list_multipart_uploads", Prefix=room.key("open")).get("Uploads", ())
    finally:
        room.ask("abort_multipart_upload", "open", UploadId=begun)
    found = any(one["UploadId"] == begun for one in told)
    return Observation("yes", "told and ended") if found else Observation("no", "one was open, and was not told")


def lifecycle(room: Room) -> Observation:
    """Are rules kept? In somebody's bucket they are only read."""
    rule = {"ID": "selftest", "Status": "Enabled", "Filter": {"Prefix": "never/"}, "Expiration": {"Days": 3650}}
    if room.own:
        room.ask("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [rule]})
    try:
        told = room.ask("get_bucket_lifecycle_configuration").get("Rules", [])
    except ClientError as error:
        if _status(error)[1] != "NoSuchLifecycleConfiguration":
            raise
        told = []
    if not room.own:
        return Observation("yes", f"{len(told)} rules can be read; none was set")
    room.ask("delete_bucket_lifecycle")
    kept = [one.get("Expiration") for one in told] == [{"Days": 3650}]
    return (
        Observation("yes", "set, read and taken away")
        if kept
        else Observation("ignored", "set, and not read as it was set")
    )


def versioning(room: Room) -> Observation:
    """Do deleted objects stay as versions?"""
    status = room.ask("get_bucket_versioning").get("Status")
    return Observation("yes" if status else "no", f"is {status or 'off'}")


def odd_name(room: Room) -> Observation:
    """Can a bucket have capitals and underscores in its name?"""
    name = f"Plateway_{uuid4().hex[:12]}"
    room.client.create_bucket(Bucket=name)
    room.client.delete_bucket(Bucket=name)
    return Observation("yes", "made and removed")


def locking(room: Room) -> Observation:
    """Does a bucket with Object Lock keep a version that has a legal hold?"""
    name = f"{room.where.bucket[:40]}-lock-{uuid4().hex[:8]}"
    room.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    try:
        store = open_store(f"s3://{name}", room.endpoint)
        store.put("held", [ONE], size=len(ONE), part_size=PART, metadata={})
        found = store.stat("held")
        version = {"Bucket": name, "Key": "held", "VersionId": found.version if found else None}
        if not store.lock("held", hold=True, until=None):
            return Observation("no", "the hold was refused")
        try:
            room.client.delete_object(**version)
            return Observation("ignored", "a version that is held was deleted")
        except ClientError as error:
            told = _status(error)[1]
        store.lock("held", hold=False, until=None)
        room.client.delete_object(**version)
        return Observation("yes", f"deleting what is held: {told}")
    finally:
        with suppress(ClientError, PlatewayError):
            for one in Buckets(room.endpoint).versions(Address(name)):
                room.client.delete_object(Bucket=name, Key=one.key, VersionId=one.id)
            room.client.delete_bucket(Bucket=name)


LOOKED = "not relied on: what arrived is looked at afterwards, by another client"
TRIALS = (
    Trial("ETag of one PUT is its MD5", single_etag,
          "evidence of an export of up to 8 MiB: its size and ETag, asked by HEAD",
          "evidence of an export of up to 8 MiB: it is read back and each SHA-256 compared"),
    Trial("ETag of an upload in parts is their MD5s'", parts_etag,
          "evidence of a larger export: its size and ETag, asked by HEAD",
          "evidence of a larger export: it is read back and each SHA-256 compared"),
    Trial("CompleteMultipartUpload tells the ETag", completed_etag,
          "compared at once, and asked again by HEAD", "asked by HEAD instead"),
    Trial("wrong Content-MD5 is refused", content_md5, LOOKED, LOOKED),
    Trial("wrong x-amz-checksum is refused", checksum, LOOKED, LOOKED),
    Trial("If-None-Match: * is kept", conditional,
          "not needed: exports are completed under a lease, after a look at the key",
          "not needed: exports are completed under a lease, after a look at the key"),
    Trial("metadata of objects", metadata,
          "`rebuild` knows from it which event an object is of", "`rebuild` only knows what the manifests inside say"),
    Trial("tags of objects", tagging,
          "an archiver's tags are told as hints, and prove nothing", "no tags are told; nothing depends on them"),
    Trial("ranged reads", ranged,
          "one image of an export is one request",
          "neither images nor events can be fetched: no endpoint for Plateway"),
    Trial("suffix ranges", partial(ranged, span="bytes=-4", expected=ONE[-4:]),
          "a bundle nobody knows of tells its manifest from its end",
          "`rebuild` cannot read such bundles; all else can be done"),
    Trial("presigned links", presigned,
          "people and pipelines fetch by link", "no links: images go through the gateway"),
    Trial("ListObjectsV2", partial(listed, operation="list_objects_v2"),
          "`reconcile` and `rebuild` list with it", "`reconcile` and `rebuild` cannot see what is there"),
    Trial("ListObjects (v1)", partial(listed, operation="list_objects"),
          "not used; older clients may", "not used; older clients cannot list"),
    Trial("listing in the order of bytes", ordered,
          "pages of objects are asked for as they are", "pages of objects are put in order folder by folder"),
    Trial("DeleteObjects", deleted_together,
          "`bucket del` deletes a thousand a request", "`bucket del` cannot delete; exports expire one by one"),
    Trial("open uploads are listed", open_uploads,
          "what a killed export left is found and ended",
          "a lifecycle rule has to end them: AbortIncompleteMultipartUpload"),
    Trial("lifecycle rules", lifecycle,
          "`bucket-policy check` warns of those that delete too early", "`bucket-policy check` cannot read any"),
    Trial("versioning", versioning,
          "what is deleted still takes room, until a lifecycle rule ends its versions", "deleted is deleted"),
    Trial("Object Lock", locking,
          "`hold add` also locks the objects, in buckets that were made with Object Lock",
          "`hold add` binds Plateway's own verbs only", own=True),
    Trial("capitals and underscores in bucket names", odd_name,
          "buckets may be called so", "new buckets need plain names; those that are there are read", own=True),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the round


class Round:
    """Simulated events on their way into the bucket and back, with a bench and a catalogue of their own."""

    def __init__(self, store: Store, home: Path) -> None:
        self._bench, self._back = home / "bench", home / "back"
        self._catalog = Catalog(f"sqlite:///{home}/catalogue.db")
        self._site = Site(self._catalog, PerFile(store), self._bench, self._instrument, owner="selftest")
        self._announced: list[Announced] = []

    def close(self) -> None:
        """Close the catalogue."""
        self._catalog.close()

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Name the steps, each of which says what it did or raises."""
        return [
            ("announce", self.announce),
            ("export", partial(self.each, pipeline.export)),
            ("verify", partial(self.each, pipeline.verify)),
            ("read back", partial(self.each, partial(pipeline.verify, read_back=True))),
            ("read one image", self.cat),
            ("restore", self.restore),
        ]

    def announce(self) -> str:
        """Make three instruments acquire an event each: one is too large for one PUT, one is exported file by file."""
        self._catalog.upgrade()
        small = Simulated("prince", "timestep", self._bench / "prince", images=2, size=32)
        large = Simulated("aretha", "imaging event", self._bench / "aretha", images=2, size=BIG)
        single = Simulated(FILES, "imaging event", self._bench / FILES, images=2, size=32)
        self._announced = [simulator.acquire(one, now=datetime.now(UTC)) for one in (small, large, single)]
        for _ in range(2):  # seen, and seen to be the same
            pipeline.register(self._site)
        return f"{sum(len(one.files) for one in self._announced)} images in {len(self._announced)} events"

    def each(self, verb: Callable[[Site, Ref], Outcome]) -> str:
        """Do something to each event.

        Raises:
            Damaged: the bucket has other bytes than were sent.
        """
        outcomes = [verb(self._site, Ref(one.id, 1)) for one in self._announced]
        for one in outcomes:
            if one.result not in {"exported", "verified"}:
                raise (Damaged if one.result == "damaged" else Unavailable)(f"{one.result}: {'; '.join(one.reasons)}")
        return ", ".join(f"{one.size or 0:,} bytes {'; '.join(one.reasons) or one.result}" for one in outcomes)

    def cat(self) -> str:
        """Read one image of each event alone."""
        for one in self._announced:
            name, expected = next(iter(one.files.items()))
            content = b"".join(pipeline.cat(self._site, Ref(one.id, 1), name))
            if hashlib.sha256(content).hexdigest() != expected:
                raise Damaged(f"{name}: other bytes came than the instrument wrote")
        return f"{len(self._announced)} images as the instrument wrote them"

    def restore(self) -> str:
        """Restore all files."""
        for one in self._announced:
            pipeline.restore(self._site, Ref(one.id, 1), to=self._back)
            for name, expected in one.files.items():
                content = (self._back / str(Ref(one.id, 1)) / name).read_bytes()
                if hashlib.sha256(content).hexdigest() != expected:
                    raise Damaged(f"{name}: other bytes came back than the instrument wrote")
        return f"{sum(len(one.files) for one in self._announced)} files as the instruments wrote them"

    def _instrument(self, system: str) -> Instrument:
        layout: Literal["files", "bundle"] = "files" if system == FILES else "bundle"
        return Instrument(name=system, root=self._bench / system, settle=timedelta(0), layout=layout)


def _taken(steps: list[tuple[str, Callable[[], str]]], tell: Callable[[str], object]) -> Iterator[RoundStep]:
    """Run one step after the other, up to the first that fails."""
    for name, act in steps:
        tell(name)
        started = time.monotonic()
        try:
            yield RoundStep(name, "done", act(), time.monotonic() - started)
        except PlatewayError as error:
            yield RoundStep(name, _result(error), str(error), time.monotonic() - started)
            return


def _result(error: PlatewayError) -> Literal["failed", "later", "damaged"]:
    return "damaged" if isinstance(error, Damaged) else "later" if isinstance(error, Transient) else "failed"
