"""The S3 endpoint for reading: every image is an object to any client, for whoever has a key, and nobody writes."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import re
import socket
import string
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import boto3  # type: ignore[import-untyped]  # ships no types
import httpx
import pydicom
import pytest
from botocore import UNSIGNED  # type: ignore[import-untyped]
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from plateway.errors import Misconfigured, NotFound
from plateway.events import Ref
from plateway.gateway import access
from plateway.gateway.s3 import access_keys, signature
from plateway.gateway.s3.access_keys import Issued, SecretFile, issue, make_secret_file, read_secret_file
from plateway.gateway.s3.errors import S3Error
from plateway.gateway.s3.listing import Object, Page, list_page, name_of
from plateway.instruments import Shape
from plateway.keys import escape_name
from plateway.local.seaweed import PLAIN
from plateway.records import AccessKey, Share
from tests.gateway.test_images import FILES, Place, announce, placed, tiff
from tests.soak import SOAK

NOW = datetime.now(UTC)
SESSION = boto3.session.Session()
SHARED = "Extraction_5_CT"
UIDS = "/".join(f"1.2.840.{number}." + "7" * 80 for number in (1, 2)) + "/slice-00000042.dcm"  # 200 characters
MOVED = dict(FILES, **{"deep/er/a+b c.tif": tiff(9), "x%41y.tif": tiff(10)})


def dicom() -> bytes:
    """Make a slice in memory."""
    scan: Any = pydicom.Dataset()
    scan.PatientName, scan.Rows, scan.Columns = "Nobody", 2, 2
    scan.file_meta = pydicom.dataset.FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    scan.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    scan.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, scan, enforce_file_format=True)
    return buffer.getvalue()


@dataclass
class Reading:
    """A place with an S3 endpoint, two events and a share."""

    place: Place
    refs: list[Ref]

    @property
    def url(self) -> str:
        return self.place.gateway.s3_url

    def key(self, name: str = "", *, days: float = 1, **scopes: list[str]) -> Issued:
        """Issue a key; one with negative days has expired."""
        catalog, file = self.place.lab.catalog, make_secret_file(self.place.gateway.parts.place / "s3.key")
        scopes = {"buckets": [], "prefixes": []} | scopes
        then = NOW - timedelta(days=10) if days < 0 else NOW
        made = issue(name or uuid4().hex, ttl=timedelta(days=abs(days)), file=file, now=then, **scopes)
        catalog.add_access_key(made.key)
        return Issued(AccessKey(**made.key.model_dump()), made.secret)

    def client(self, key: Issued | None = None, **options: Any) -> Any:
        """Open a boto3 client that retries nothing."""
        config = Config(retries={"total_max_attempts": 1}, proxies={}, signature_version="s3v4", **options)
        if key is None:
            config = config.merge(Config(signature_version=UNSIGNED))
        return SESSION.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=key and key.key.access_key_id,
            aws_secret_access_key=key and key.secret,
            config=config,
        )

    def name(self, name: str, number: int = 0) -> str:
        """Return the key of an image of the first event."""
        return f"x/{self.refs[number]}/{escape_name(name)}"


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    """An endpoint over bundles and a share."""
    with opened(tmp_path_factory.mktemp("reading"), "bundle") as one:
        yield one


@contextmanager
def opened(home: Path, layout: Shape) -> Iterator[Reading]:
    """Run an endpoint over two events, in bundles or as files that are objects of their own, and a share."""
    (home / "scans").mkdir()
    (home / "scans" / UIDS).parent.mkdir(parents=True)
    (home / "scans" / UIDS).write_bytes(dicom())
    (home / "scans" / "b.txt").write_bytes(b"0123456789")
    with placed(home, "memory", layout=layout, s3_port=0) as place:
        refs = [announce(place.lab, MOVED), announce(place.lab, {"a.tif": tiff(11)}, experiment="x-1")]
        share = Share(name=SHARED, location=(home / "scans").as_uri(), created_at=NOW)
        place.lab.catalog.add_share(share)
        yield Reading(place, refs)


@pytest.fixture(scope="module")
def s3(reading: Reading) -> Any:
    """A client that may read everything."""
    return reading.client(reading.key("everything"))


def code(call: Callable[[], object]) -> tuple[int, str]:
    """Return status and code of the error of a call; 200 if there is none."""
    try:
        call()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    return 200, ""


def listed(client: Any, operation: str = "list_objects_v2", **how: Any) -> list[str]:
    pages = client.get_paginator(operation).paginate(**{"Bucket": "events", **how})
    return [one["Key"] for page in pages for one in page.get("Contents", ())]


# Reading


def test_every_image_of_a_bundle_is_an_object(reading: Reading, s3: Any) -> None:
    """Listing, HEAD and GET agree on name, size, ETag and time; the bytes are those on the bench, hostile names too."""
    compare_images(reading, s3)


def test_every_image_that_is_an_object_is_one(tmp_path: Path) -> None:
    """The same where files are objects of their own; their time is that of the file."""
    with opened(tmp_path, "files") as reading:
        s3 = reading.client(reading.key())
        compare_images(reading, s3)
        file = reading.place.lab.bench / "aretha" / str(reading.refs[0].id) / "notes.txt"
        found = s3.head_object(Bucket="events", Key=reading.name("notes.txt"))
        assert found["LastModified"].timestamp() == int(file.stat().st_mtime)


def compare_images(reading: Reading, s3: Any) -> None:
    names = {reading.name(name): content for name, content in MOVED.items()}
    names |= {f"x-1/{reading.refs[1]}/a.tif": tiff(11)}
    assert listed(s3) == listed(s3, "list_objects") == sorted(names)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="events")
    for one in (found for page in pages for found in page["Contents"]):
        head = s3.head_object(Bucket="events", Key=one["Key"])
        got = s3.get_object(Bucket="events", Key=one["Key"])
        content = got["Body"].read()
        assert content == names[one["Key"]]
        assert {one["ETag"], head["ETag"], got["ETag"]} == {f'"{hashlib.sha256(content).hexdigest()}"'}
        assert {one["Size"], head["ContentLength"], got["ContentLength"]} == {len(content)}
        assert one["LastModified"] == head["LastModified"] == got["LastModified"]
        assert base64.b64decode(got["ChecksumSHA256"]) == hashlib.sha256(content).digest()  # boto3 compared it, too
    assert s3.head_object(Bucket="events", Key=reading.name("Img_r01_c01.tif"))["ContentType"] == "image/tiff"


def test_ranges_conditions_and_overrides(reading: Reading, s3: Any) -> None:
    """As at S3: ranges, partNumber, conditions, and response headers that a link asks for."""
    what = {"Bucket": "events", "Key": reading.name("large.bin")}
    whole = MOVED["large.bin"]
    for span, bounds in {"5-9": (5, 10), "3145700-": (3145700, None), "-7": (-7, None)}.items():
        got = s3.get_object(**what, Range=f"bytes={span}")
        assert (got["ResponseMetadata"]["HTTPStatusCode"], got["Body"].read()) == (206, whole[slice(*bounds)])
        assert "ChecksumSHA256" not in got
    assert s3.head_object(**what, Range="bytes=0-0")["ContentLength"] == 1
    assert s3.get_object(**what, PartNumber=1)["ContentRange"] == f"bytes 0-{len(whole) - 1}/{len(whole)}"
    assert code(lambda: s3.get_object(**what, PartNumber=2)) == (416, "InvalidPartNumber")
    assert code(lambda: s3.get_object(**what, Range=f"bytes={len(whole)}-")) == (416, "InvalidRange")
    head = s3.head_object(**what)
    etag, modified = head["ETag"], head["LastModified"]
    assert s3.get_object(**what, IfMatch=etag)["ETag"] == etag
    assert code(lambda: s3.get_object(**what, IfMatch='"other"')) == (412, "PreconditionFailed")
    assert code(lambda: s3.get_object(**what, IfNoneMatch=etag)) == (304, "304")
    assert code(lambda: s3.get_object(**what, IfModifiedSince=modified)) == (304, "304")
    assert code(lambda: s3.get_object(**what, IfUnmodifiedSince=modified - timedelta(1))) == (412, "PreconditionFailed")
    told = s3.get_object(
        **what, ResponseContentType="text/x", ResponseCacheControl="no-store", ResponseContentDisposition="inline"
    )
    assert (told["ContentType"], told["CacheControl"], told["ContentDisposition"]) == ("text/x", "no-store", "inline")
    assert code(lambda: s3.get_object(**what, ResponseContentType="a\r\nb: c")) == (400, "InvalidArgument")
    assert code(lambda: s3.get_object(**what, VersionId="2"))[1] == "NoSuchVersion"
    assert s3.get_object(**what, VersionId="null")["ETag"] == etag


def test_what_is_not_there(reading: Reading, s3: Any) -> None:
    """404 with the code that clients know; names are exact, and nothing is a path."""
    ref, image = reading.refs[0], "Img_r01_c01.tif"
    wrong = ["nothing", f"y/{ref}/{image}", f"x/{str(ref).upper()}/{image}", f"x/{ref.id.hex}/{image}", f"x/{ref}"]
    wrong += [f"x/{ref}-r1/{image}", f"x/{ref}-r2/{image}", f"x/{ref}/./{image}", f"x/{ref}/../{ref}/{image}"]
    wrong += [f"x/{ref}/source-metadata.json", f"x/{uuid4()}/{image}", f"x/{ref}/x\0y", f"x/{ref}/xAy.tif", "//x"]
    for key in wrong:
        assert code(partial(s3.get_object, Bucket="events", Key=key)) == (404, "NoSuchKey"), key
        assert code(partial(s3.head_object, Bucket="events", Key=key)) == (404, "404"), key
        assert code(partial(s3.get_object, Bucket=SHARED, Key=key))[0] == 404, key
    for call in (s3.list_objects_v2, s3.list_objects, s3.get_bucket_location):
        assert code(partial(call, Bucket="no-such-bucket")) == (404, "NoSuchBucket")
    assert code(lambda: s3.get_object(Bucket="no-such-bucket", Key="x")) == (404, "NoSuchBucket")
    assert code(lambda: s3.head_bucket(Bucket="no-such-bucket")) == (404, "404")


def test_buckets(reading: Reading, s3: Any) -> None:
    """Each key sees its buckets, with a time; the region is us-east-1."""
    assert [one["Name"] for one in s3.list_buckets()["Buckets"]] == [SHARED, "events"]
    assert all(one["CreationDate"].tzinfo for one in s3.list_buckets()["Buckets"])
    narrow = reading.client(reading.key(buckets=[SHARED]))
    assert [one["Name"] for one in narrow.list_buckets()["Buckets"]] == [SHARED]
    assert s3.get_bucket_location(Bucket="events")["LocationConstraint"] is None
    assert s3.head_bucket(Bucket="events")["BucketRegion"] == "us-east-1"


def test_a_share_has_capitals_underscores_and_long_keys(reading: Reading, s3: Any) -> None:
    """A key of 200 characters in a bucket that AWS would not name so, read into memory, whole and in part."""
    assert len(UIDS) == 200
    found = [one for page in s3.get_paginator("list_objects_v2").paginate(Bucket=SHARED) for one in page["Contents"]]
    assert [one["Key"] for one in found] == [UIDS, "b.txt"]
    scan = pydicom.dcmread(io.BytesIO(s3.get_object(Bucket=SHARED, Key=UIDS)["Body"].read()))
    assert scan.PatientName == "Nobody"
    part = s3.get_object(Bucket=SHARED, Key="b.txt", Range="bytes=2-4")
    assert part["Body"].read() == b"234"
    assert s3.get_object(Bucket=SHARED, Key="b.txt", IfMatch=part["ETag"])["Body"].read() == b"0123456789"
    assert s3.head_object(Bucket=SHARED, Key="b.txt")["ContentLength"] == 10
    folders = s3.list_objects_v2(Bucket=SHARED, Delimiter="/")
    assert [one["Prefix"] for one in folders["CommonPrefixes"]] == [UIDS.split("/")[0] + "/"]


def test_damage_is_never_sent(tmp_path: Path) -> None:
    """An image whose bytes differ from its SHA-256 is 503, before any of it is sent."""
    with placed(tmp_path, "memory", s3_port=0) as place:
        ref = announce(place.lab, {"a.tif": tiff(1)})
        reading = Reading(place, [ref])
        client = reading.client(reading.key())
        assert client.get_object(Bucket="events", Key=reading.name("a.tif"))["Body"].read() == tiff(1)
        export = place.lab.catalog.ledger(ref).export
        assert export is not None
        content = bytearray(b"".join(place.lab.store.open(export.key)))
        content[content.index(tiff(1)[:40]) + 20] ^= 1
        size = len(content)
        place.lab.store.put(export.key, [bytes(content)], size=size, part_size=size, metadata={})
        call = lambda: client.get_object(Bucket="events", Key=reading.name("a.tif"))  # noqa: E731
        assert code(call) == (503, "ServiceUnavailable")


# Listing


def test_folders_and_pages(reading: Reading, s3: Any) -> None:
    """Prefixes and delimiters at each level, pages of any size, and a start in the midst."""
    folders = s3.list_objects_v2(Bucket="events", Delimiter="/")
    assert [one["Prefix"] for one in folders["CommonPrefixes"]] == ["x-1/", "x/"]
    assert "Contents" not in folders
    events = s3.list_objects_v2(Bucket="events", Delimiter="/", Prefix="x/")
    assert [one["Prefix"] for one in events["CommonPrefixes"]] == [f"x/{reading.refs[0]}/"]
    inside = s3.list_objects_v2(Bucket="events", Delimiter="/", Prefix=reading.name(""))
    assert [one["Prefix"] for one in inside["CommonPrefixes"]] == [
        reading.name(f"{one}/") for one in ("deep", "odd", "sub")
    ]
    every = listed(s3)
    for size in (1, 4):
        for operation in ("list_objects_v2", "list_objects"):
            assert listed(s3, operation, PaginationConfig={"PageSize": size}) == every
            pages = s3.get_paginator(operation).paginate(
                Bucket="events", Delimiter="/", Prefix=reading.name(""), PaginationConfig={"PageSize": size}
            )
            paged = [one["Prefix"] for page in pages for one in page.get("CommonPrefixes", ())]
            assert paged == [one["Prefix"] for one in inside["CommonPrefixes"]]
    for start in [*every[::3], "x", "x/", "x-1/~", reading.name("zzz"), "~", reading.name("")[:20]]:
        assert listed(s3, StartAfter=start) == [one for one in every if one > start], start
        assert listed(s3, Prefix=start) == [one for one in every if one.startswith(start)], start
    assert s3.list_objects_v2(Bucket="events", MaxKeys=0)["KeyCount"] == 0
    assert code(lambda: s3.list_objects_v2(Bucket="events", ContinuationToken="?")) == (400, "InvalidArgument")


NAMES = st.text(alphabet="a/-~é", max_size=4)


@given(
    keys=st.sets(st.text(alphabet="a/-~é", min_size=1, max_size=5), max_size=12),
    prefix=NAMES,
    after=NAMES,
    delimiter=st.sampled_from(["", "/", "a", "-~"]),
    limit=st.integers(1, 5),
)
@settings(max_examples=1000 if SOAK else 150, deadline=None)
def test_pages_are_the_whole(keys: set[str], prefix: str, after: str, delimiter: str, limit: int) -> None:
    """Page after page gives what one listing without a limit gives, each key under its folded prefix, once."""
    ordered = sorted(keys)

    def entries(prefix: str, *, after: str, delimiter: str) -> Iterator[Object | str]:
        return (Object(one, 1, "", NOW) for one in ordered if one.startswith(prefix) and one > after)

    def expected() -> Iterator[str]:
        for key in ordered:
            if key.startswith(prefix) and key > after:
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                yield key if end < 0 else key[: end + len(delimiter)]

    def page(start: str) -> Page:
        return list_page(entries, prefix, within=[prefix], delimiter=delimiter, after=start, limit=limit)

    found, start, more = list[str](), after, True
    while more:
        one = page(start)
        assert len(one.items) <= limit
        found += map(name_of, one.items)
        more = one.more
        start = one.last if more else ""
    assert found == [one for one in dict.fromkeys(expected()) if one != after]


def test_many_events_are_listed_in_order(tmp_path: Path) -> None:
    """Experiments whose names begin alike, more events than one query fetches, and several revisions."""
    with placed(tmp_path, "memory", s3_port=0) as place:
        refs = [announce(place.lab, {"a.tif": tiff(1)}, experiment=name) for name in ("e", "e-1", "e.x", "e0") * 2]
        reading = Reading(place, refs)
        client = reading.client(reading.key())
        every = listed(client)
        assert every == sorted(every)
        assert len(every) == 8
        assert [len(listed(client, Prefix=f"{name}/")) for name in ("e", "e-1", "e.x", "e0")] == [2, 2, 2, 2]
        narrow = reading.client(reading.key(prefixes=["e/", "e0/", "e0/x"]))
        assert listed(narrow) == [one for one in every if one.startswith(("e/", "e0/"))]
        folders = narrow.list_objects_v2(Bucket="events", Delimiter="/")["CommonPrefixes"]
        assert [one["Prefix"] for one in folders] == ["e/", "e0/"]


# Who may

VERBS: dict[str, Callable[[Any, str, str], Any]] = {
    "list_objects_v2": lambda one, bucket, key: one.list_objects_v2(Bucket=bucket, Prefix=key),
    "list_objects": lambda one, bucket, key: one.list_objects(Bucket=bucket, Prefix=key),
    "get_object": lambda one, bucket, key: one.get_object(Bucket=bucket, Key=key),
    "head_object": lambda one, bucket, key: one.head_object(Bucket=bucket, Key=key),
    "head_bucket": lambda one, bucket, key: one.head_bucket(Bucket=bucket),
    "get_bucket_location": lambda one, bucket, key: one.get_bucket_location(Bucket=bucket),
    "list_buckets": lambda one, bucket, key: one.list_buckets(),
}
FORBIDDEN: dict[str, Callable[[Any, str, str], Any]] = {
    "put_object": lambda one, bucket, key: one.put_object(Bucket=bucket, Key=key, Body=b"x" * 100),
    "delete_object": lambda one, bucket, key: one.delete_object(Bucket=bucket, Key=key),
    "delete_objects": lambda one, bucket, key: one.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]}),
    "copy_object": lambda one, bucket, key: one.copy_object(Bucket=bucket, Key=key, CopySource=f"{bucket}/{key}"),
    "create_multipart_upload": lambda one, bucket, key: one.create_multipart_upload(Bucket=bucket, Key=key),
    "upload_part": lambda one, bucket, key: one.upload_part(
        Bucket=bucket, Key=key, UploadId="x", PartNumber=1, Body=b"x"
    ),
    "abort_multipart_upload": lambda one, bucket, key: one.abort_multipart_upload(Bucket=bucket, Key=key, UploadId="x"),
    "create_bucket": lambda one, bucket, key: one.create_bucket(Bucket="another-bucket"),
    "delete_bucket": lambda one, bucket, key: one.delete_bucket(Bucket=bucket),
    "put_bucket_policy": lambda one, bucket, key: one.put_bucket_policy(Bucket=bucket, Policy="{}"),
    "delete_bucket_policy": lambda one, bucket, key: one.delete_bucket_policy(Bucket=bucket),
    "put_object_tagging": lambda one, bucket, key: one.put_object_tagging(
        Bucket=bucket, Key=key, Tagging={"TagSet": []}
    ),
    "put_bucket_acl": lambda one, bucket, key: one.put_bucket_acl(Bucket=bucket, ACL="public-read"),
    "put_object_acl": lambda one, bucket, key: one.put_object_acl(Bucket=bucket, Key=key, ACL="public-read"),
    "put_bucket_versioning": lambda one, bucket, key: one.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    ),
    "put_bucket_lifecycle_configuration": lambda one, bucket, key: one.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": []}
    ),
    "restore_object": lambda one, bucket, key: one.restore_object(Bucket=bucket, Key=key),
}
ABSENT: dict[str, Callable[[Any, str, str], Any]] = {
    "get_bucket_acl": lambda one, bucket, key: one.get_bucket_acl(Bucket=bucket),
    "get_bucket_policy": lambda one, bucket, key: one.get_bucket_policy(Bucket=bucket),
    "get_object_tagging": lambda one, bucket, key: one.get_object_tagging(Bucket=bucket, Key=key),
    "list_object_versions": lambda one, bucket, key: one.list_object_versions(Bucket=bucket),
    "list_multipart_uploads": lambda one, bucket, key: one.list_multipart_uploads(Bucket=bucket),
}
SCOPED = {"list_objects_v2", "list_objects", "get_object", "head_object"}  # depend on the prefix


def test_verbs_by_keys(reading: Reading) -> None:
    """Each verb with no key, a wrong secret, an expired one, one for another bucket or prefix, and a good one."""
    good, expired = reading.key(), reading.key(days=-1)
    wrong = Issued(good.key, "x" * 40)
    unknown = Issued(AccessKey(**good.key.model_dump() | {"access_key_id": "PWUNKNOWN"}), good.secret)
    bucket, key = "events", reading.name("Img_r01_c01.tif")
    refusals = (
        (None, "AccessDenied"),
        (wrong, "SignatureDoesNotMatch"),
        (expired, "ExpiredToken"),
        (unknown, "InvalidAccessKeyId"),
    )
    before = listed(reading.client(good))
    for shown, refusal in refusals:
        client = reading.client(shown)
        for name, call in {**VERBS, **FORBIDDEN, **ABSENT}.items():
            status, found = code(partial(call, client, bucket, key))
            head = name.startswith("head_")
            assert (status, found) == (403, "403" if head else refusal), (name, refusal)
    scopes = {"bucket": reading.key(buckets=[SHARED]), "prefix": reading.key(prefixes=["y/", "x-1/"])}
    for what, shown in scopes.items():
        client = reading.client(shown)
        for name, call in VERBS.items():
            refused = name != "list_buckets" and (what == "bucket" or name in SCOPED)
            assert code(partial(call, client, bucket, key))[0] == (403 if refused else 200), name
    for shown in (good, *scopes.values()):
        client = reading.client(shown)
        for name, call in FORBIDDEN.items():
            assert code(partial(call, client, bucket, key)) == (403, "AccessDenied"), name
    client = reading.client(good)
    assert [code(partial(call, client, bucket, key)) for call in VERBS.values()] == [(200, "")] * len(VERBS)
    assert {code(partial(call, client, bucket, key)) for call in ABSENT.values()} == {(405, "MethodNotAllowed")}
    assert listed(client) == before


def test_disabled_and_deleted_keys_end_within_a_second(reading: Reading) -> None:
    """A key that is disabled or deleted stops; one issued with another file is not confused with a wrong secret."""
    catalog = reading.place.lab.catalog
    keys = [reading.key(name) for name in ("off", "gone")]
    catalog.disable_access_key("off", now=NOW)
    catalog.delete_access_key("gone")
    clients = [reading.client(one) for one in keys]
    assert code(clients[0].list_buckets) == (403, "AccessDenied")
    assert code(clients[1].list_buckets) == (403, "InvalidAccessKeyId")
    with pytest.raises(NotFound):
        catalog.disable_access_key("gone", now=NOW)
    with pytest.raises(NotFound):
        catalog.delete_access_key("gone")
    other = AccessKey(**keys[0].key.model_dump() | {"access_key_id": "PWOTHER", "name": "o", "secret_file": "0" * 16})
    catalog.add_access_key(other)
    stranger = reading.client(Issued(AccessKey(**other.model_dump()), "x"))
    assert code(stranger.list_buckets) == (503, "ServiceUnavailable")
    catalog.delete_access_key("o")


def test_each_request_is_a_line_of_the_access_log(reading: Reading) -> None:
    """With the name of the key, the bucket and object, status and bytes; refused ones too, secrets never."""
    key = reading.key("auditor")
    client = reading.client(key)
    client.get_object(Bucket="events", Key=reading.name("notes.txt"))["Body"].read()
    code(lambda: client.delete_object(Bucket="events", Key=reading.name("notes.txt")))
    link = client.generate_presigned_url("head_bucket", Params={"Bucket": SHARED})
    httpx.head(link, trust_env=False, verify=PLAIN)
    reading.client(reading.key()).list_buckets()  # a line is written after its answer
    log = reading.place.gateway.parts.log
    found = list(access.read(log, key="auditor"))
    name = f"events/{reading.name('notes.txt')}"
    assert [(one.method, one.status, one.route, one.key) for one in found] == [
        ("GET", 200, "s3 GetObject", name),
        ("DELETE", 403, "s3 DELETE", name),
        ("HEAD", 200, "s3 HeadBucket", f"{SHARED}/"),
    ]
    assert found[0].sent == len(FILES["notes.txt"])
    assert list(access.read(log, token="auditor")) == []
    assert key.secret not in log.read_text()
    assert "Signature" not in log.read_text()


def test_limits_are_those_of_tokens(tmp_path: Path) -> None:
    """Too many requests of a key, or failures of an address, are SlowDown in S3's XML."""
    from plateway.gateway import Limits, Rate

    lax = Rate(1_000_000)
    with placed(tmp_path, "memory", s3_port=0, limits=Limits(token=Rate(3), address=lax, failed=Rate(3))) as place:
        reading = Reading(place, [])
        client, stranger = reading.client(reading.key()), reading.client()
        assert [code(client.list_buckets)[1] for _ in range(4)] == ["", "", "", "SlowDown"]
        assert [code(stranger.list_buckets)[1] for _ in range(4)] == [*["AccessDenied"] * 3, "SlowDown"]
        assert code(reading.client(reading.key()).list_buckets) == (200, "")


# Signatures


def test_signatures_are_botocores() -> None:
    """Header and link, byte for byte what botocore signs, over paths, parameters and headers of all kinds."""
    dice = random.Random(5)
    letters = string.ascii_letters + string.digits + " /+%~*'()!é☃&=?#:@,;-_."

    def text(most: int) -> str:
        return "".join(dice.choice(letters) for _ in range(dice.randrange(1, most)))

    for number in range(2000 if SOAK else 300):
        secret, link = text(40).replace(" ", ""), number % 2 == 1
        path = quote(f"/bucket/{text(30)}", safe=dice.choice(["/~", "/~+!", "/"]))
        pairs = "&".join(f"{quote(text(6), safe='')}={quote(text(9), safe='')}" for _ in range(dice.randrange(4)))
        request = AWSRequest("GET", f"http://h:1{path}{f'?{pairs}' if pairs else ''}", {"Range": f"  a   {text(5)}b "})
        credentials = Credentials("AKID", secret)
        signer = (S3SigV4QueryAuth if link else S3SigV4Auth)(credentials, "s3", "eu-x")
        signer.add_auth(request)
        prepared = request.prepare()
        raw_path, _, raw_query = prepared.url.removeprefix("http://h:1").partition("?")
        sent = {**prepared.headers, "Host": "h:1"}
        headers = [
            (name.lower().encode(), (value if isinstance(value, bytes) else value.encode()))
            for name, value in sent.items()
        ]
        asked = signature.Asked("GET", raw_path.encode(), signature.parse_query(raw_query.encode()), headers)
        claim = signature.parse_claim(asked)
        assert claim is not None
        assert (claim.access_key_id, claim.region) == ("AKID", "eu-x")
        signature.check_signature(claim, asked, secret)
        signature.check_time(claim, datetime.now(UTC))
        changed = signature.Asked("HEAD", *[getattr(asked, name) for name in ("path", "query", "headers")])
        with pytest.raises(S3Error, match="differs"):
            signature.check_signature(claim, changed, secret)


def test_clocks_and_links(reading: Reading, s3: Any) -> None:
    """Fifteen minutes of skew, links for as long as they say, seven days at most, and no other kind of signature."""
    key = reading.key()
    path = f"{reading.url}/events/{quote(reading.name('notes.txt'))}"

    def answer(*, minutes: float = 0, link: int = 0, **changes: str) -> tuple[int, str]:
        request = AWSRequest("GET", path)
        credentials = Credentials(key.key.access_key_id, key.secret)
        moment = datetime.now(UTC) + timedelta(minutes=minutes)
        signer = (
            S3SigV4QueryAuth(credentials, "s3", "us-east-1", expires=link)
            if link
            else S3SigV4Auth(credentials, "s3", "us-east-1")
        )
        with pytest.MonkeyPatch.context() as patch:
            import botocore.auth

            patch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment.replace(tzinfo=None))
            signer.add_auth(request)
        prepared = request.prepare()
        url = prepared.url
        for old, new in changes.items():
            url = url.replace(old, new)
        headers = dict(prepared.headers.items())
        found = httpx.get(url, headers=headers, trust_env=False, verify=PLAIN)
        return found.status_code, re.findall("<Code>(.*)</Code>", found.text)[0] if found.status_code != 200 else ""

    assert [answer(minutes=one) for one in (0, 14, -14)] == [(200, "")] * 3
    assert [answer(minutes=one) for one in (16, -16)] == [(403, "RequestTimeTooSkewed")] * 2
    assert answer(link=60) == (200, "")
    assert answer(link=7 * 24 * 3600, minutes=-9000) == (200, "")
    assert [answer(link=60, minutes=-2), answer(link=60, minutes=20)] == [(403, "AccessDenied")] * 2
    assert answer(link=8 * 24 * 3600) == (400, "AuthorizationQueryParametersError")
    assert answer(link=60, notes="other") == (403, "SignatureDoesNotMatch")
    for shown in ("AWS AKID:sig", "Bearer x"):
        refused = httpx.get(path, headers={"Authorization": shown}, trust_env=False, verify=PLAIN)
        assert (refused.status_code, "<Code>InvalidRequest</Code>" in refused.text) == (400, True)
        assert "s3v4" in refused.text
    assert httpx.get(f"{path}?AWSAccessKeyId=x&Signature=y", trust_env=False, verify=PLAIN).status_code == 400
    signed = reading.client(key, s3={"payload_signing_enabled": True})
    assert signed.get_object(Bucket="events", Key=reading.name("notes.txt"))["ContentLength"] == 14


def test_generated_requests_get_no_server_error(reading: Reading) -> None:
    """Whatever is asked, signed or not: an answer below 500, and XML where it is an error."""
    dice, key = random.Random(7), reading.key()
    credentials = Credentials(key.key.access_key_id, key.secret)
    pieces = ["events", SHARED, "nothing", "x", str(reading.refs[0]), "Img_r01_c01.tif", "", ".", "..", "%", "é", "\0"]
    pieces += ["b.txt", UIDS, "a" * 1100, "\n", "写真 ☃.tif", "\\", "\ud7ff", "\uffff"]
    names = ["list-type", "prefix", "delimiter", "marker", "start-after", "continuation-token", "max-keys", "acl"]
    names += ["encoding-type", "partNumber", "versionId", "location", "uploads", "response-content-type", "X-Amz-Date"]
    names += ["X-Amz-Algorithm", "X-Amz-Signature", "X-Amz-Credential", "tagging", "attributes"]
    values = ["2", "", "/", "url", "0", "1000", "-1", "9" * 30, "x", "1", "null", *pieces]
    headers = {
        "Range": ["bytes=0-4", "bytes=-1", "bytes=9-1", "bytes=x", "bytes=99999999-"],
        "If-Match": ["*", '"x"', "W/"],
        "If-None-Match": ["*", '"x"'],
        "If-Modified-Since": ["Mon, 01 Jan 2001 00:00:00 GMT", "Mon, 99 Jan 99999 00:00:00 GMT", "x"],
        "x-amz-checksum-mode": ["ENABLED", "x"],
        "x-amz-date": ["20260101T000000Z", "99999999T999999Z", "x"],
        "x-amz-content-sha256": ["x", signature.EMPTY, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"],
    }
    statuses = set()
    with httpx.Client(trust_env=False, verify=PLAIN, timeout=60) as client:
        for _ in range(10_000 if SOAK else 500):
            method = dice.choice(["GET"] * 8 + ["HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"])
            path = "/".join(quote(dice.choice(pieces), safe="") for _ in range(dice.randrange(5)))
            path = quote(f"events/{reading.name('notes.txt')}") if dice.random() < 0.2 else path
            query = "&".join(
                f"{dice.choice(names)}={quote(dice.choice(values), safe='')}"
                for _ in range(dice.choice([0, 0, 1, 2, 4]))
            )
            url = f"{reading.url}/{path}{f'?{query}' if query else ''}"
            told = {name: dice.choice(found) for name, found in headers.items() if dice.random() < 0.12}
            request = AWSRequest(method, url, told)
            if dice.random() < 0.9 and "X-Amz" not in query:
                S3SigV4Auth(credentials, "s3", "us-east-1").add_auth(request)
            sent = {name: str(value) for name, value in request.prepare().headers.items()}
            sent |= {name: value for name, value in told.items() if dice.random() < 0.1}  # after it was signed
            found = client.request(method, url, headers=sent)
            assert found.status_code < 500, (method, url, sent, found.text)
            statuses.add(found.status_code)
            if found.status_code >= 400 and method != "HEAD":
                ET.fromstring(re.sub("&#x[01]?[0-9a-f];|&#xffff;", "", found.text))
    assert statuses >= {200, 206, 400, 403, 404, 405}


def test_requests_that_are_no_requests(reading: Reading) -> None:
    """Raw paths and bodies that no client library sends are refused in S3's XML, and the endpoint goes on."""
    for head in (
        b"GET http://events/x HTTP/1.1",
        b"GET /\xff%ff/%fe HTTP/1.1",
        b"GET /events?prefix=%ff HTTP/1.1",
        b"PUT /events/x HTTP/1.1\r\nContent-Length: 100000",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0",
    ):
        with socket.create_connection(("127.0.0.1", reading.place.gateway.s3_port), timeout=30) as line:
            body = b"x" * 100000 if b"100000" in head else b""
            ending = b"\r\n\r\n" if b"chunked" in head else b"\r\nConnection: close\r\n\r\n"
            line.sendall(head.replace(b" HTTP/1.1", b" HTTP/1.1\r\nHost: h") + ending + body)
            assert re.match(rb"HTTP/1.1 4\d\d ", line.recv(1 << 16)), head
    assert code(reading.client(reading.key()).list_buckets) == (200, "")


# Secrets


def test_the_catalogue_has_no_secret(reading: Reading) -> None:
    """Secrets follow from a file of mode 0600 outside of the catalogue; the catalogue's bytes have neither."""
    key, file = reading.key("hidden"), reading.place.gateway.parts.place / "s3.key"
    assert file.stat().st_mode & 0o777 == 0o600
    catalogue = b"".join(one.read_bytes() for one in file.parent.parent.glob("catalogue.db*"))
    assert key.key.access_key_id.encode() in catalogue
    for secret in (key.secret.encode(), file.read_bytes(), file.read_bytes().hex().encode()):
        assert secret not in catalogue
    assert read_secret_file(file).secret(key.key.access_key_id) == key.secret
    assert key.secret not in repr(key)


def test_the_file_of_secrets_is_refused_if_it_is_not_sound(tmp_path: Path) -> None:
    """Missing, cut off or open to others: the message has the setting and the remedy, never a path."""
    file = tmp_path / "below" / "s3.key"
    with pytest.raises(Misconfigured, match="PLATEWAY_S3_KEY_FILE"):
        read_secret_file(file)
    made = make_secret_file(file)
    assert make_secret_file(file) == made
    file.chmod(0o640)
    with pytest.raises(Misconfigured, match="chmod 600"):
        read_secret_file(file)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(Misconfigured, match="32 bytes") as error:
        make_secret_file(file)
    assert str(tmp_path) not in str(error.value)


def test_scopes_of_a_key() -> None:
    """Prefixes that a key may list: the one asked for, or those below it, none inside another."""
    file, day = SecretFile(b""), timedelta(days=1)
    key = issue("x", ttl=day, file=file, now=NOW, buckets=["one"], prefixes=["a/", "a/b", "c", "c/d"]).key
    assert access_keys.narrow_prefix(key, "") == ["a/", "c"]
    assert access_keys.narrow_prefix(key, "a/b/") == ["a/b/"]
    assert access_keys.narrow_prefix(key, "b") == []
    assert (access_keys.covers_bucket(key, "one"), access_keys.covers_bucket(key, "two")) == (True, False)
    free = issue("x", ttl=day, file=file, now=NOW, buckets=[], prefixes=[]).key
    assert access_keys.narrow_prefix(free, "x") == ["x"]
