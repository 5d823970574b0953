"""One suite for every store: memory, a directory, S3 (a real SeaweedFS); then what is particular to one of them."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from plateway import bundle, checksums, store
from plateway.endpoint import Endpoint
from plateway.errors import (
    Conflict,
    Damaged,
    Denied,
    Misconfigured,
    NotFound,
    Refused,
    Rejected,
    Unavailable,
    Unsettled,
)
from plateway.folder import File
from plateway.store import Objects, directory, memory, open_store, wrappers
from plateway.store.s3 import S3
from tests.faults.proxy import Message, between

MIB = 1 << 20
PART = 8 * MIB


@pytest.fixture(params=["memory", "file", "s3", "prefixed"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty store of each kind."""
    match request.param:
        case "memory":
            return open_store(f"memory://{uuid4().hex}")
        case "file":
            return open_store(tmp_path.as_uri())
        case "s3":
            endpoint, bucket = request.getfixturevalue("endpoint"), request.getfixturevalue("bucket")
            return open_store(f"s3://{bucket}", endpoint)
        case _:
            return wrappers.Prefixed(memory.Memory(), "raw/")


@pytest.fixture
def s3(endpoint: Endpoint, bucket: str) -> Objects:
    """An empty bucket on the real server."""
    return open_store(f"s3://{bucket}", endpoint)


def put(
    place: Objects, key: str, content: bytes, *, part_size: int = PART, metadata: dict[str, str] | None = None
) -> None:
    """Put bytes in chunks of 1 MiB."""
    chunks = (content[at : at + MIB] for at in range(0, len(content), MIB))
    place.put(key, chunks, size=len(content), part_size=part_size, metadata=metadata or {})


def get(place: Objects, key: str, *, start: int = 0, length: int | None = None) -> bytes:
    return b"".join(place.open(key, start=start, length=length))


def keys(place: Objects, prefix: str = "") -> list[str]:
    return sorted(found.key for found in place.list(prefix))


def untouched(place: Objects) -> bool:
    """Return whether nothing lies there and nothing is under way."""
    return keys(place) == [] and list(place.uploads()) == []


SIZES = [0, 1, 511, MIB, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 12345]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_put_is_read_back(place: Objects, size: int) -> None:
    """Bytes come back as they were, and the store's size and ETag are those of the formula."""
    content = os.urandom(size)
    put(place, "images/a.tar", content)
    assert get(place, "images/a.tar") == content
    found = place.stat("images/a.tar")
    assert found is not None
    md5s = [hashlib.md5(content[at : at + PART]).digest() for at in range(0, max(size, 1), PART)]
    assert (found.key, found.size, found.etag) == ("images/a.tar", size, checksums.parts_etag(md5s))
    assert list(place.uploads()) == []


def test_time_of_an_object_is_aware(place: Objects) -> None:
    """The modification time is in UTC and about now."""
    put(place, "a", b"1")
    found = place.stat("a")
    assert found is not None and found.modified.tzinfo is not None
    assert abs(found.modified - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("size", [1, PART + 1])
def test_metadata_is_kept(place: Objects, size: int) -> None:
    """What is said with an object when its upload begins is there when one asks."""
    put(place, "a", bytes(size), metadata={"event-id": "2f1c", "digest": "0" * 64})
    found = place.stat("a")
    assert found is not None
    assert found.metadata == {"event-id": "2f1c", "digest": "0" * 64}


@pytest.mark.parametrize("size", [3, PART + 3])
def test_put_replaces(place: Objects, size: int) -> None:
    """The same key again holds the new bytes and metadata only."""
    put(place, "a", b"old" * size, metadata={"n": "1"})
    put(place, "a", b"new" * size, metadata={"n": "2"})
    found = place.stat("a")
    assert get(place, "a") == b"new" * size
    assert found is not None and (found.size, found.metadata) == (3 * size, {"n": "2"})
    assert keys(place) == ["a"]


@pytest.mark.parametrize("size", [1, PART + 1])
def test_put_may_be_repeated(place: Objects, size: int) -> None:
    """The same bytes again change nothing that one sees."""
    for _ in range(2):
        put(place, "a", bytes(size))
    assert keys(place) == ["a"]
    assert get(place, "a") == bytes(size)


class Mine(Exception):
    """An error that only the source of the chunks knows."""


@pytest.mark.parametrize(
    "error", [Mine("x"), Unsettled("a.tif: changed"), FileNotFoundError(2, "gone"), OSError(5, "EIO")]
)
@pytest.mark.parametrize("at", [0, 9, 19])
def test_error_in_the_source_leaves_nothing(place: Objects, error: Exception, at: int) -> None:
    """An error out of the chunks rises as it is; no object, no open upload, and what was there stays."""

    def chunks() -> Iterator[bytes]:
        for number in range(20):
            if number == at:
                raise error
            yield bytes(MIB)

    with pytest.raises(type(error)) as caught:
        place.put("a", chunks(), size=20 * MIB, part_size=PART, metadata={})
    assert caught.value is error
    assert untouched(place)


def test_error_in_the_source_keeps_what_was_there(place: Objects) -> None:
    """A put that fails leaves the object that it would have replaced."""
    put(place, "a", b"before")

    def chunks() -> Iterator[bytes]:
        yield bytes(PART + 1)
        raise Mine

    with pytest.raises(Mine):
        place.put("a", chunks(), size=2 * PART, part_size=PART, metadata={})
    assert get(place, "a") == b"before"


def test_interrupt_leaves_nothing(place: Objects) -> None:
    """Ctrl-C in the middle of a put ends it without a trace."""

    def chunks() -> Iterator[bytes]:
        yield bytes(PART + 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.put("a", chunks(), size=2 * PART, part_size=PART, metadata={})
    assert untouched(place)


def test_error_after_the_last_byte_leaves_nothing(place: Objects) -> None:
    """An error that comes when all bytes were taken still prevents the object: the seal's last word counts."""

    def chunks(size: int) -> Iterator[bytes]:
        yield bytes(size)
        raise Conflict("other bytes are there")

    for size in (5, PART + 5):
        with pytest.raises(Conflict):
            place.put("a", chunks(size), size=size, part_size=PART, metadata={})
        assert untouched(place)


@pytest.mark.parametrize("difference", [-1, 1, -PART, PART])
def test_other_than_the_announced_size_is_refused(place: Objects, difference: int) -> None:
    """Too few or too many bytes are never stored."""
    with pytest.raises(Unsettled, match="expected"):
        place.put("a", [bytes(MIB)] * 20, size=20 * MIB + difference, part_size=PART, metadata={})
    assert untouched(place)


def test_readers_see_all_or_nothing(place: Objects) -> None:
    """While a put is under way there is no object yet."""
    seen = []

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            seen.append(place.stat("a"))
            yield bytes(MIB)

    place.put("a", chunks(), size=20 * MIB, part_size=PART, metadata={})
    assert seen == [None] * 20
    assert keys(place) == ["a"]


def test_missing_object(place: Objects) -> None:
    """No such object: stat says None, open raises at once, delete is content."""
    put(place, "a/b", b"1")
    for key in ("nothing", "a", "a/b/c"):
        assert place.stat(key) is None
        with pytest.raises(NotFound):
            place.open(key)
        place.delete(key)
    assert keys(place) == ["a/b"]


RANGES = [
    (0, None),
    (0, 0),
    (0, 1),
    (0, 100),
    (1, 1),
    (99, 1),
    (40, 60),
    (40, 1000),
    (0, 1000),
    (50, None),
    (-1, None),
    (-1024, None),
    (-100, None),
    (-60, None),
    (-60, 10),
    (-60, 60),
    (-1000, 10),
    (100, None),
    (100, 5),
    (1000, 1),
]


@pytest.mark.parametrize(("start", "length"), RANGES)
def test_ranges(place: Objects, start: int, length: int | None) -> None:
    """A range is a slice; from the end where it starts below zero."""
    content = os.urandom(100)
    put(place, "a", content)
    assert get(place, "a", start=start, length=length) == content[start:][:length]


def test_ranges_of_nothing(place: Objects) -> None:
    """Any range of an empty object is empty."""
    put(place, "a", b"")
    assert [get(place, "a", start=start, length=length) for start, length in RANGES] == [b""] * len(RANGES)


def test_range_of_a_large_object(place: Objects) -> None:
    """A range in the middle of a multipart object is exact across the parts' edges."""
    content = os.urandom(2 * PART + 777)
    put(place, "a", content)
    assert get(place, "a", start=PART - 5, length=10) == content[PART - 5 : PART + 5]
    assert get(place, "a", start=3, length=PART + MIB) == content[3:][: PART + MIB]
    assert get(place, "a", start=-(PART + 9)) == content[-(PART + 9) :]


def test_reading_can_stop_early(place: Objects) -> None:
    """A reader may leave after the first bytes."""
    put(place, "a", bytes(3 * MIB))
    chunks = place.open("a")
    assert next(chunks)
    del chunks
    assert get(place, "a", length=1) == b"\0"


def test_listing(place: Objects) -> None:
    """Keys come with their sizes; a prefix is a string, so a slash keeps siblings out."""
    for key in ("b", "a/1", "a/10", "a/2/x", "ab/1", "ä", "a!"):
        put(place, key, key.encode())
    assert keys(place) == ["a!", "a/1", "a/10", "a/2/x", "ab/1", "b", "ä"]
    assert keys(place, "a/1") == ["a/1", "a/10"]
    assert keys(place, "a/") == ["a/1", "a/10", "a/2/x"]
    assert keys(place, "a") == ["a!", "a/1", "a/10", "a/2/x", "ab/1"]
    assert keys(place, "none") == keys(place, "none/") == []
    assert sorted(found.size for found in place.list("a/")) == [3, 4, 5]
    assert all(found.modified.tzinfo for found in place.list())


def test_listing_of_many_pages(place: Objects) -> None:
    """A listing is whole where S3 answers with several pages of 1,000 keys."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(place, f"many/{number:05}", b""), range(2_100)))
    assert keys(place, "many/") == [f"many/{number:05}" for number in range(2_100)]


def test_listing_is_never_from_memory(place: Objects) -> None:
    """Stat and list tell what is there now, also when they told otherwise before."""
    assert (place.stat("a"), keys(place)) == (None, [])
    for content in (b"1", b"22"):
        put(place, "a", content)
        found = place.stat("a")
        assert found is not None and found.size == len(content)
        assert [found.size for found in place.list()] == [len(content)]
    place.delete("a")
    assert (place.stat("a"), keys(place)) == (None, [])


def test_delete(place: Objects) -> None:
    """Deleting removes exactly one object and may be repeated."""
    for key in ("a", "ab", "b/a"):
        put(place, key, b"1")
    place.delete("a")
    place.delete("a")
    assert keys(place) == ["ab", "b/a"]


AWKWARD = ["a/b", "a-b", "a.b", "a0", "a/b-1", "a/ x", "a b", "a!/b", "a-b.c/d", "b/c/d/e", "b/c/d/f", "b/c-d", "z"]
AWKWARD += ["b/é", "b/\ue000", "b/\U0001f600", "é/1"]
BELOW = ["a/b/c", "a-b/c", "a/b-1/x"]  # below other keys, which a directory cannot have


def page(place: Objects, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[str]:
    return [found.key for found in place.page(prefix, after=after, limit=limit)]


def test_pages_are_in_the_order_of_bytes(place: Objects) -> None:
    """A page begins beyond any key, there or not, in the order of whole keys, also where folders are listed."""
    awkward = sorted(AWKWARD + ([] if isinstance(place, directory.Directory) else BELOW))
    for key in awkward:
        put(place, key, key.encode())
    for after in ["", *AWKWARD, *BELOW, "a", "a-", "a/", "a/b/", "a/b-", "a-b/", "b/c", "b/c/d", "b/d", "zz", "é"]:
        beyond = [key for key in awkward if key > after]
        assert page(place, after=after) == beyond, after
        assert page(place, after=after, limit=3) == beyond[:3], after
    for prefix in ("a", "a/", "a-", "a/b", "a/b-", "b/c", "b/c/d", "b/c/d/e", "é", "none", "a//"):
        for after in ("", "a/b/c", "a/b-1", "a", "b/c-d", "zz"):
            wanted = [key for key in awkward if key.startswith(prefix) and key > after]
            assert page(place, prefix, after=after) == wanted, (prefix, after)


def test_pages_lead_through_everything(place: Objects) -> None:
    """Page after page, whatever is deleted on the way, gives every key that stays once, with its size."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: put(place, key, key.encode()), wanted := [f"d{n % 7}/{n:03}" for n in range(80)]))
    seen: list[store.Stat] = []
    while found := place.page("d", after=seen[-1].key if seen else "", limit=7):
        seen += found
        place.delete(seen[-1].key)
    assert [one.key for one in seen] == sorted(wanted)
    assert {one.size for one in seen} == {6}


def test_a_look_and_what_is_fetched_are_of_one_version(place: Objects) -> None:
    """What is read comes with the size, time and ETag that a look sees; another version has another ETag."""
    here, etags = place, set()
    assert here.look("a/b") is None
    for content in (b"first", b"other", b""):
        told = here.put("a/b", [content], size=len(content), part_size=PART, metadata={})
        looked, (fetched, chunks) = here.look("a/b"), here.fetch("a/b")
        assert looked == fetched and b"".join(chunks) == content
        assert (fetched.key, fetched.size) == ("a/b", len(content))
        assert told in {None, fetched.etag}
        etags.add(fetched.etag)
    assert len(etags) == 3


def test_fetched_ranges(place: Objects) -> None:
    """A range is fetched with the size of the whole; one beyond the end is told from a missing object."""
    here = place
    put(place, "a", b"0123456789")
    for start, length in ((0, 1), (3, 4), (3, None), (-4, None), (9, 1), (5, 100)):
        found, chunks = here.fetch("a", start=start, length=length)
        assert (found.size, b"".join(chunks)) == (10, b"0123456789"[start:][:length])
    with pytest.raises(Damaged):
        here.fetch("a", start=10, length=1)
    with pytest.raises(NotFound):
        here.fetch("b", start=10, length=1)


ODD = [
    "a b",
    "100%",
    "%2e%2e/x",
    "ü%20é",
    "q?x=1&y#f",
    "[a]{b}",
    '~t"<>`^|',
    "a+b",
    "*",
    "é/é",
    "x:y",
    "-d",
    "...",
    "a../b",
]


@pytest.mark.parametrize("key", [*ODD, "k" * 200, "/".join(["d" * 100] * 10)[:1000]])
def test_odd_keys(place: Objects, key: str) -> None:
    """A plain key is kept exactly as it is, whatever characters it has."""
    put(place, key, key.encode())
    found = place.stat(key)
    assert found is not None and found.key == key
    assert keys(place) == [key]
    assert get(place, key) == key.encode()
    place.delete(key)
    assert untouched(place)


BAD = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/..",
    "../a",
    "a/./b",
    "a\nb",
    "a\0b",
    "a\\b",
    "\x7f",
    "\udcff",
    "k" * 1025,
]


@pytest.mark.parametrize("key", BAD)
def test_keys_that_are_not_plain(place: Objects, key: str) -> None:
    """A key that one of the stores would change or take outside is never written; only S3 itself reads such a one."""
    verbs: list[Callable[[str], object]] = [lambda key: put(place, key, b"1")]
    if not isinstance(place, S3):
        verbs += [place.stat, place.open, place.delete]
    for verb in verbs:
        with pytest.raises(Rejected):
            verb(key)
    assert untouched(place)


def test_several_at_once(place: Objects) -> None:
    """Puts from several threads do not disturb each other."""
    contents = {f"k{number}": os.urandom(PART + number) for number in range(6)}
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda item: put(place, *item), contents.items()))
    assert {key: get(place, key) for key in keys(place)} == contents


def test_read_only(place: Objects) -> None:
    """A read-only store shows everything and changes nothing."""
    put(place, "a", b"1")
    reading = wrappers.ReadOnly(place)
    for verb in ("put", "delete", "abort"):
        with pytest.raises(Refused, match="read-only"):
            VERBS[verb](reading)
    assert (keys(reading), get(reading, "a"), reading.name) == (["a"], b"1", place.name)


def test_prefixed(place: Objects) -> None:
    """A prefix is a bucket of its own inside the bucket: siblings are neither seen nor touched."""
    ours, theirs = wrappers.Prefixed(place, "raw/"), wrappers.Prefixed(place, "raw2/")
    for side in (ours, theirs):
        put(side, "a", b"1", metadata={"n": side.name})
    assert keys(place) == ["raw/a", "raw2/a"]
    assert (keys(ours), keys(ours, "a")) == (["a"], ["a"])
    found = ours.stat("a")
    assert found is not None and (found.key, found.metadata) == ("a", {"n": f"{place.name}/raw"})
    ours.delete("a")
    assert (keys(ours), keys(theirs), get(theirs, "a")) == ([], ["a"], b"1")


def packing(*sizes: int) -> bundle.Packing:
    files = [File(f"{number}.tif", size, 10**18, number, 1) for number, size in enumerate(sizes)]
    return bundle.Packing(bundle.plan(files, {"ref_id": "1"}), lambda file: [file.name[:1].encode() * file.size])


@pytest.mark.parametrize("sizes", [(5, 0, 700), (3 * MIB, 9 * MIB, 5 * MIB)])
def test_bundle_arrives(place: Objects, sizes: tuple[int, ...]) -> None:
    """A bundle streamed into a store has the ETag that was computed on the way, proves itself, and can be cut."""
    packing_ = packing(*sizes)
    place.put("a", packing_, size=packing_.layout.size, part_size=packing_.layout.part_size, metadata={})
    packed, found = packing_.packed, place.stat("a")
    assert found is not None and (found.size, found.etag) == (packed.size, packed.etag)
    walked = bundle.walk(place.open("a"))
    assert (walked.sha256, walked.manifest.members) == (packed.sha256, packed.members)
    content = get(place, "a", start=packed.manifest_offset, length=packed.manifest_size)
    last = bundle.read_manifest(content).members[-1]
    assert get(place, "a", start=last.offset, length=last.size) == b"2" * last.size


@pytest.mark.parametrize("part", [PART, 17 * MIB])
def test_upload_that_fails_leaves_no_threads(endpoint: Endpoint, bucket: str, part: int) -> None:
    """An upload that the endpoint refuses in the middle lets go of the bundle it was packing."""
    before = threading.active_count()
    packing_ = packing(20 * MIB, 20 * MIB)
    place = open_store(f"s3://{bucket}", replace(endpoint, secret_access_key=SecretStr("wrong")))
    with pytest.raises(Denied):
        place.put("a", packing_, size=packing_.layout.size, part_size=part, metadata={})
    assert threading.active_count() == before


UPLOAD = store.Upload("a", "0", datetime(2026, 1, 1, tzinfo=UTC))


def test_abort_of_what_is_not_there(place: Objects) -> None:
    """Ending an upload that nobody began is fine."""
    place.abort(UPLOAD)
    assert untouched(place)


KILLED = """
import os, signal, sys
from pydantic import SecretStr
from plateway.endpoint import Endpoint
from plateway.store import open_store
url, address, key, secret = sys.argv[1:]
def chunks():
    for _ in range(24):
        yield bytes(1 << 20)
    os.kill(os.getpid(), signal.SIGKILL)
place = open_store(url, Endpoint(url=address, access_key_id=key, secret_access_key=SecretStr(secret)))
place.put("images/killed.tar", chunks(), size=100 << 20, part_size=8 << 20, metadata={})
"""


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_killed_upload_is_found_and_aborted(kind: str, endpoint: Endpoint, bucket: str, tmp_path: Path) -> None:
    """A process that dies in a put leaves no object, but an upload that others can see and end."""
    url = f"s3://{bucket}" if kind == "s3" else tmp_path.as_uri()
    assert endpoint.secret_access_key is not None
    secret = endpoint.secret_access_key.get_secret_value()
    command = [sys.executable, "-c", KILLED, url, str(endpoint.url), str(endpoint.access_key_id), secret]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    place = open_store(url, endpoint)
    assert (keys(place), place.stat("images/killed.tar")) == ([], None)
    (upload,) = place.uploads()
    assert upload.key == "images/killed.tar"
    assert abs(upload.initiated - datetime.now(UTC)) < timedelta(minutes=1)
    place.abort(upload)
    place.abort(upload)
    assert untouched(place)


def test_prefixed_uploads(endpoint: Endpoint, bucket: str, client: Any) -> None:
    """Of the open uploads only those below the prefix are ours."""
    for key in ("raw/a", "raw2/a"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    ours = open_store(f"s3://{bucket}/raw/", endpoint)
    assert [upload.key for upload in ours.uploads()] == ["a"]
    for upload in ours.uploads():
        ours.abort(upload)
    assert [upload.key for upload in open_store(f"s3://{bucket}", endpoint).uploads()] == ["raw2/a"]


@pytest.mark.parametrize("size", [40 * MIB, 34 * MIB, 17 * MIB + 1])
def test_large_parts_are_streamed(s3: Objects, size: int) -> None:
    """Parts too large to hold in memory go through it, with the same ETag, bytes and metadata."""
    part = 17 * MIB
    content = os.urandom(size)
    put(s3, "a", content, part_size=part, metadata={"event-id": "1"})
    found = s3.stat("a")
    md5s = [hashlib.md5(content[at : at + part]).digest() for at in range(0, size, part)]
    assert found is not None
    assert (found.size, found.etag, found.metadata) == (size, checksums.parts_etag(md5s), {"event-id": "1"})
    assert get(s3, "a") == content


@pytest.mark.parametrize("at", [0, 5, 20, 40])
def test_error_in_a_streamed_part_leaves_nothing(s3: Objects, at: int) -> None:
    """An error of the source rises as it is from the middle of a part, and from after the last byte."""

    def chunks() -> Iterator[bytes]:
        for _ in range(at):
            yield bytes(MIB)
        raise Mine

    with pytest.raises(Mine):
        s3.put("a", chunks(), size=40 * MIB, part_size=17 * MIB, metadata={})
    assert untouched(s3)


def test_streamed_size_is_exact(s3: Objects) -> None:
    """Bytes beyond the announced ones are noticed where parts are streamed too."""
    for size in (39 * MIB, 41 * MIB):
        with pytest.raises(Unsettled):
            s3.put("a", [bytes(MIB)] * 40, size=size, part_size=17 * MIB, metadata={})
    assert untouched(s3)


def test_signed_link(s3: Objects) -> None:
    """A signed link reads the object without credentials, that object only, and only by GET."""
    put(s3, "images/a b.tar", b"content")
    link = s3.sign("images/a b.tar", expires=timedelta(minutes=5))
    assert httpx.get(link).content == b"content"
    assert httpx.get(link, headers={"Range": "bytes=1-2"}).content == b"on"
    assert httpx.put(link, content=b"other").status_code == 403
    assert httpx.get(link.replace("a%20b", "other")).status_code == 403
    assert httpx.get(link.split("?")[0]).status_code == 403


def test_link_expires(s3: Objects) -> None:
    """A link says how long it is good for."""
    link = s3.sign("a", expires=timedelta(minutes=15))
    assert httpx.URL(link).params["X-Amz-Expires"] == "900"


def test_no_links_elsewhere(tmp_path: Path) -> None:
    """Memory and directories have no links, and say so."""
    for place in (memory.Memory(), directory.Directory(tmp_path)):
        with pytest.raises(Refused, match="no links"):
            place.sign("a", expires=timedelta(minutes=5))


def test_checksums_of_the_endpoint(s3: Objects, client: Any) -> None:
    """A checksum that the endpoint keeps is told with the object."""
    client.put_object(Bucket=s3.name, Key="a", Body=b"content", ChecksumAlgorithm="SHA256")
    found = s3.stat("a")
    assert found is not None
    assert found.checksums == {"sha256": base64.b64encode(hashlib.sha256(b"content").digest()).decode()}


def test_stat_sees_what_others_did(s3: Objects, client: Any) -> None:
    """Size and ETag are those of the object that is there, whoever put it."""
    put(s3, "a", b"ours")
    client.put_object(Bucket=s3.name, Key="a", Body=b"theirs")
    found = s3.stat("a")
    assert found is not None
    assert (found.size, found.etag) == (6, hashlib.md5(b"theirs").hexdigest())
    assert get(s3, "a") == b"theirs"


VERBS: dict[str, Callable[[Objects], object]] = {
    "put": lambda place: put(place, "a", b"1"),
    "put parts": lambda place: put(place, "a", bytes(PART + 1)),
    "put large parts": lambda place: put(place, "a", bytes(17 * MIB + 1), part_size=17 * MIB),
    "open": lambda place: place.open("a"),
    "stat": lambda place: place.stat("a"),
    "list": lambda place: list(place.list()),
    "delete": lambda place: place.delete("a"),
    "uploads": lambda place: list(place.uploads()),
    "abort": lambda place: place.abort(UPLOAD),
}


def told(caught: pytest.ExceptionInfo[BaseException], log: pytest.LogCaptureFixture) -> str:
    """All that people might get to see of an error: message, traceback, log."""
    return "".join([str(caught.value), repr(caught.value), *traceback.format_exception(caught.value), log.text])


def secretive(endpoint: Endpoint, text: str) -> bool:
    """Return whether neither the secret nor the address is in there."""
    assert endpoint.secret_access_key is not None
    address = str(endpoint.url).removeprefix("http://")
    return (
        endpoint.secret_access_key.get_secret_value() not in text and address not in text and "Signature=" not in text
    )


@pytest.mark.parametrize("verb", VERBS)
def test_wrong_secret(endpoint: Endpoint, bucket: str, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """Credentials that are wrong are Denied, for every verb, and not shown."""
    caplog.set_level(logging.INFO)
    wrong = replace(endpoint, secret_access_key=SecretStr("canary-4711"))
    with pytest.raises(Denied, match=bucket) as caught:
        VERBS[verb](open_store(f"s3://{bucket}", wrong))
    assert secretive(wrong, told(caught, caplog))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "abort"])
def test_missing_bucket(endpoint: Endpoint, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bucket that is not there is NotFound, for every verb; never an empty one."""
    caplog.set_level(logging.INFO)
    with pytest.raises(NotFound, match="no-such-bucket") as caught:
        VERBS[verb](open_store("s3://no-such-bucket", endpoint))
    assert secretive(endpoint, told(caught, caplog))


@pytest.mark.parametrize("verb", VERBS)
def test_closed_endpoint(endpoint: Endpoint, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint where nobody listens is Unavailable, within seconds."""
    caplog.set_level(logging.INFO)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = replace(endpoint, url=f"http://127.0.0.1:{closed.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(Unavailable, match="bucket") as caught:
            VERBS[verb](open_store("s3://bucket", dead))
    assert time.monotonic() - began < 10
    assert secretive(dead, told(caught, caplog))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("status", [500, 503])
def test_endpoint_in_trouble(endpoint: Endpoint, verb: str, status: int) -> None:
    """An endpoint that answers 500 or 503 is Unavailable after few tries."""
    with answering(status) as (address, asked):
        began = time.monotonic()
        with pytest.raises(Unavailable, match="bucket"):
            VERBS[verb](open_store("s3://bucket", replace(endpoint, url=address)))
    assert time.monotonic() - began < 10
    assert len(asked) <= 6


@contextmanager
def answering(status: int, *, body: bytes = b"", length: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Answer every request with this status, note it, and hang up."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            asked.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", '"0"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class calls it so
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_answer_that_breaks_off(endpoint: Endpoint) -> None:
    """A connection that ends before the object does is Unavailable: never a short object."""
    with answering(200, body=b"half", length=8) as (address, _):
        chunks = open_store("s3://bucket", replace(endpoint, url=address)).open("a")
        with pytest.raises(Unavailable, match="bucket/a"):
            list(chunks)


def test_environment_does_not_mix_in(
    s3: Objects, endpoint: Endpoint, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was configured holds, whatever AWS_* says."""
    for name, value in {
        "AWS_SESSION_TOKEN": "other",
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_SKIP_SIGNATURE": "true",
    }.items():
        monkeypatch.setenv(name, value)
    place = open_store(f"s3://{bucket}", endpoint)
    put(place, "a", b"1")
    assert (get(place, "a"), keys(place)) == (b"1", ["a"])


@pytest.mark.parametrize("verb", VERBS)
def test_proxy_is_bypassed(endpoint: Endpoint, bucket: str, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """An endpoint that proxies do not reach is asked directly, if one says so."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    place = open_store(f"s3://{bucket}", replace(endpoint, bypass_proxy=True))
    put(place, "a", b"1")
    VERBS[verb](place)
    with pytest.raises(Unavailable):
        VERBS[verb](open_store(f"s3://{bucket}", endpoint))


def test_endpoint_hides_its_secrets(endpoint: Endpoint) -> None:
    """Showing an endpoint shows no secret."""
    assert endpoint.secret_access_key is not None
    assert endpoint.secret_access_key.get_secret_value() not in f"{endpoint} {endpoint!r}"


def test_read_only_endpoint(endpoint: Endpoint, bucket: str) -> None:
    """An endpoint that is configured read-only gives a store that refuses changes."""
    with pytest.raises(Refused):
        put(open_store(f"s3://{bucket}", replace(endpoint, read_only=True)), "a", b"1")


@pytest.mark.parametrize(
    "url", ["", "bucket", "s3://", "s3:bucket", "http://x/y", "file://x/y", "file:x", "memory://a/b"]
)
def test_addresses_that_are_wrong(url: str) -> None:
    """An address of an unknown kind is refused, and not repeated: it might hold a password."""
    with pytest.raises(Misconfigured, match="a bucket is s3://"):
        open_store(url)


def test_addresses(tmp_path: Path, endpoint: Endpoint) -> None:
    """Each kind of address opens its store; names keep their capitals."""
    assert open_store("s3://extraction_5_CT", endpoint).name == "extraction_5_CT"
    assert open_store("s3://bucket/a/b/", endpoint).name == "bucket/a/b"
    assert open_store("memory://x") is open_store("memory://x")
    odd = tmp_path / "a b%"
    odd.mkdir()
    put(open_store(odd.as_uri()), "k", b"1")
    assert (odd / "k").read_bytes() == b"1"


@pytest.mark.parametrize("url", ["127.0.0.1:8333", "ftp://x", "http://"])
def test_endpoint_that_is_no_address(url: str, endpoint: Endpoint) -> None:
    """An endpoint that is not a web address is refused before anything is sent."""
    with pytest.raises(Misconfigured, match="http"):
        open_store("s3://bucket", replace(endpoint, url=url))


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without credentials one learns so at once."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(Misconfigured, match="credentials"):
        open_store("s3://bucket")


@pytest.mark.parametrize("verb", VERBS)
def test_missing_directory(tmp_path: Path, verb: str) -> None:
    """A directory that is not there is a missing bucket, for every verb; it is not made, and its path not told."""
    place = directory.Directory(tmp_path / "gone")
    with pytest.raises(NotFound, match="gone") as caught:
        VERBS[verb](place)
    assert str(tmp_path) not in "".join(traceback.format_exception(caught.value)).replace(__file__, "")
    assert not (tmp_path / "gone").exists()


def test_directory_flushes_before_it_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object's bytes are on disk before its name is, and its name before put returns."""
    seen: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append("file" if Path(f"/proc/self/fd/{descriptor}").resolve().is_file() else "directory")
        seen.append("named" if (tmp_path / "a/b").exists() else "aside")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    put(directory.Directory(tmp_path), "a/b", b"1")
    first = seen.index("named")
    assert ("file", "aside") in zip(seen[:first:2], seen[1:first:2], strict=False)
    assert seen[first - 1] == "directory"


def test_directory_reads_to_tell(tmp_path: Path) -> None:
    """The ETag of a file is of the bytes that are there now: one that changed on disk is noticed."""
    place = directory.Directory(tmp_path)
    content = bytearray(os.urandom(PART + 5))
    put(place, "a", bytes(content))
    before = place.stat("a")
    content[PART] ^= 1
    (tmp_path / "a").write_bytes(content)
    after = place.stat("a")
    assert before is not None and after is not None
    assert (before.size == after.size, before.etag == after.etag) == (True, False)


def test_directory_takes_files_of_others(tmp_path: Path) -> None:
    """A file that somebody copied there is an object like any other."""
    (tmp_path / "a").write_bytes(b"1")
    found = directory.Directory(tmp_path).stat("a")
    assert found is not None
    assert (found.etag, found.metadata) == (hashlib.md5(b"1").hexdigest(), {})


def test_directory_keys_that_exclude_each_other(tmp_path: Path) -> None:
    """A key below another key, or above, is a conflict and changes nothing."""
    place = directory.Directory(tmp_path)
    put(place, "a/b", b"1")
    for key in ("a", "a/b/c"):
        with pytest.raises(Conflict):
            put(place, key, b"2")
    assert (keys(place), list(place.uploads())) == (["a/b"], [])


def test_directory_frees_names(tmp_path: Path) -> None:
    """Where only folders of deleted objects are left, an object may have the name."""
    place = directory.Directory(tmp_path)
    put(place, "a/b/c", b"1")
    place.delete("a/b/c")
    put(place, "a", b"2")
    assert keys(place) == ["a"]


@pytest.mark.parametrize("outside", ["../", "a/../../", "/", "//", "./", ".plateway/", ".plateway/objects/", "a/\0/"])
def test_directory_lists_nothing_outside(tmp_path: Path, outside: str) -> None:
    """A page never begins beside the root or in the store's own records, whatever is asked for."""
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "secret").touch()
    place = directory.Directory(tmp_path / "root")
    put(place, "a/b", b"1")
    assert page(place, outside) == page(place, f"{outside}s") == []
    assert set(page(place, after=outside)) <= {"a/b"}
    assert page(place, after=f"{'k' * 300}/{'k' * 5000}") == []


def test_directory_notices_what_came_to_a_large_folder(tmp_path: Path) -> None:
    """A large folder is not read for every page, and what others put or remove there is seen at once."""
    for number in range(directory.LARGE_FOLDER + 5):
        (tmp_path / f"{number:05}").touch()
    os.utime(tmp_path, (1e9, 1e9))
    place = directory.Directory(tmp_path)
    assert page(place, after="00999", limit=2) == ["01000", "01001"]
    assert page(place, after="00998", limit=2) == ["00999", "01000"]
    (tmp_path / "009991").touch()
    (tmp_path / "01000").unlink()
    assert page(place, after="00999", limit=2) == ["009991", "01001"]


def test_directory_keeps_its_own_apart(tmp_path: Path) -> None:
    """The store's own records are no objects, and no key reaches them; a segment too long for a file is refused."""
    place = directory.Directory(tmp_path)
    put(place, "a", b"1")
    assert keys(place) == ["a"]
    for key in (".plateway/x", ".plateway", "k" * 256):
        with pytest.raises(Rejected):
            put(place, key, b"1")
    assert keys(place, ".plateway") == []


class Cut:
    """A proxy in front of the server that resets every connection once so many bytes went to it."""

    def __init__(self, address: str, *, after: int) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._left = after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._left <= 0:
                reset(client)
                continue
            server = socket.create_connection(self._server)
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while self._left > 0 and (data := client.recv(65536)):
                self._left -= len(data)
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        reset(client)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with server, suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)

    def close(self) -> None:
        self._listener.close()


def reset(connection: socket.socket) -> None:
    """Close with a reset instead of a goodbye."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


@pytest.mark.parametrize("part", [PART, 17 * MIB])
@pytest.mark.parametrize("after", [100, MIB, 20 * MIB])
def test_connection_lost_in_a_put(endpoint: Endpoint, bucket: str, after: int, part: int) -> None:
    """A network that goes away in the middle is Unavailable, soon, and no object appears."""
    with closing(Cut(str(endpoint.url), after=after)) as cut:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            put(open_store(f"s3://{bucket}", replace(endpoint, url=cut.url)), "a", bytes(40 * MIB), part_size=part)
        assert time.monotonic() - began < 20
    place = open_store(f"s3://{bucket}", endpoint)
    assert keys(place) == []
    for upload in place.uploads():
        place.abort(upload)
    assert untouched(place)


def test_notebooks_see_the_same_bucket(endpoint: Endpoint, bucket: str) -> None:
    """By fsspec: listing, and a range of an object."""
    opened = store.open_store(f"s3://{bucket}/raw", endpoint)
    opened.put("images/a.tar", [b"0123456789"], size=10, part_size=1 << 23, metadata={})
    system, root = store.filesystem(f"s3://{bucket}/raw", endpoint)
    assert system.find(root) == [f"{bucket}/raw/images/a.tar"]
    assert system.cat_file(f"{root}/images/a.tar", start=3, end=6) == b"345"


def test_notebooks_see_directories_too(tmp_path: Path) -> None:
    """The same for a bucket in a directory."""
    (tmp_path / "a").write_bytes(b"xyz")
    system, root = store.filesystem(tmp_path.as_uri())
    assert system.cat_file(f"{root}/a") == b"xyz"


def test_tags_are_read_where_there_are_any(client: Any, endpoint: Endpoint, bucket: str, tmp_path: Path) -> None:
    """An object's tags on S3, through every wrapper; a directory and memory have none; a missing object is an error."""
    whole = open_store(f"s3://{bucket}", endpoint)
    whole.put("raw/a", [b"1"], size=1, part_size=MIB, metadata={})
    assert whole.tags("raw/a") == {}
    told = {"TagSet": [{"Key": "archived", "Value": "true"}]}
    client.put_object_tagging(Bucket=bucket, Key="raw/a", Tagging=told)
    inner = open_store(f"s3://{bucket}/raw", endpoint)
    assert whole.tags("raw/a") == inner.tags("a") == {"archived": "true"}
    assert wrappers.ReadOnly(whole).tags("raw/a") == {"archived": "true"}
    with pytest.raises(NotFound):
        whole.tags("raw/b")
    other = open_store(tmp_path.as_uri())
    other.put("a", [b"1"], size=1, part_size=MIB, metadata={})
    assert other.tags("a") == open_store("memory://tags").tags("a") == {}


def test_an_endpoint_of_other_manners_is_understood(endpoint: Endpoint, bucket: str) -> None:
    """Names of metadata have no case, as headers have none; a range that is answered with 200 is told as that."""
    assert endpoint.url
    with between(endpoint.url) as proxy:
        there = open_store(f"s3://{bucket}", replace(endpoint, url=proxy.url))
        put(there, "a", b"content", metadata={"event-id": "2f1c"})
        proxy.script = lambda asked, forward: recased(replace(forward(asked), start="HTTP/1.1 200 OK"))
        found = there.stat("a")
        assert found is not None
        assert found.metadata == {"event-id": "2f1c"}
        with pytest.raises(Unavailable, match="200 where a range"):
            there.open("a", start=2)


def recased(reply: Message) -> Message:
    """Write the headers as rclone does."""
    headers = [("X-Amz-Meta-Event-Id" if name.lower() == "x-amz-meta-event-id" else name, value)
               for name, value in reply.headers]  # fmt: skip
    return replace(reply, headers=tuple(headers))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "a/b", "part_size": 0, "metadata": {}}', b"\xff"])
def test_a_damaged_record_beside_an_object_harms_nothing_else(tmp_path: Path, content: bytes) -> None:
    """What was kept with an object in a directory cannot be read: the object can."""
    store = open_store(tmp_path.as_uri())
    store.put("a/b", [b"bytes"], size=5, part_size=1 << 24, metadata={"who": "me"})
    (record,) = (tmp_path / ".plateway" / "objects").iterdir()
    record.write_bytes(content)
    found = store.stat("a/b")
    assert found is not None and (found.size, dict(found.metadata)) == (5, {})
    assert b"".join(store.open("a/b")) == b"bytes"
    (tmp_path / ".plateway" / "uploads" / "x.json").write_bytes(content)
    assert len(list(store.uploads())) == 1
