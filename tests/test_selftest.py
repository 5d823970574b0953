"""The self-test on the real S3 server, and on endpoints that can less than they say: the table tells the truth."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plateway import selftest
from plateway.endpoint import Endpoint
from plateway.errors import Denied, Refused
from plateway.store.admin import Address
from tests.cli.test_cli import call, home
from tests.faults.proxy import Forward, Message, Reset, between, error, with_body, with_header

__all__ = ["home"]

PLACE = re.compile(r"selftest-[0-9]{14}-[0-9a-f]{6}")


def verdicts(report: selftest.SelftestReport) -> dict[str, str]:
    """What came of each thing that was tried."""
    return {one.name: one.verdict for one in report.capabilities}


def results(report: selftest.SelftestReport) -> dict[str, str]:
    """What came of each step."""
    return {step.name: step.result for step in report.steps}


def evidence(report: selftest.SelftestReport) -> list[str]:
    """Which evidence each event had: the small one, the one in parts, the one of files."""
    (step,) = [step for step in report.steps if step.name == "verify"]
    return re.findall(r"[0-9,]+ bytes ([a-z-]+)", step.detail)


def leftovers(client: Any) -> list[str]:
    """Buckets that a self-test left."""
    return [one["Name"] for one in client.list_buckets()["Buckets"] if PLACE.fullmatch(one["Name"])]


def test_a_good_endpoint_can_nearly_all(endpoint: Endpoint, client: Any) -> None:
    """SeaweedFS does all but order and odd names; events come back, their evidence is the ETag, nothing is left."""
    report = selftest.run(endpoint)
    assert {name for name, verdict in verdicts(report).items() if verdict != "yes"} == {
        "listing in the order of bytes",
        "versioning",
        "capitals and underscores in bucket names",
    }
    assert set(results(report).values()) == {"done"}
    assert evidence(report) == ["etag", "etag", "etag"]
    assert report.good
    assert leftovers(client) == []


def moody(request: Message, forward: Forward) -> Message:
    """Hang up on whoever asks for tags, and deny whoever asks for versions."""
    if request.start.split()[1].endswith("?tagging"):
        raise Reset
    return error(403, "AccessDenied") if request.start.split()[1].endswith("?versioning") else forward(request)


def test_a_bucket_that_is_there_keeps_all_that_is_in_it(endpoint: Endpoint, bucket: str, client: Any) -> None:
    """Only the self-test's own folder goes, rules are let be; what did not answer is unknown, and to be tried again."""
    assert endpoint.url
    for key in ("x/keep", "keep", "x/plateway-selftest-"):
        client.put_object(Bucket=bucket, Key=key, Body=b"1")
    upload = client.create_multipart_upload(Bucket=bucket, Key="x/open")["UploadId"]
    rules = [{"ID": "a", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 9}}]
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    with between(endpoint.url) as proxy:
        proxy.script = moody
        report = selftest.run(replace(endpoint, url=proxy.url), within=Address(bucket, "x"))
    assert report.good
    assert verdicts(report)["tags of objects"] == "unknown"
    assert verdicts(report)["versioning"] == "denied"
    assert report.place.startswith(f"s3://{bucket}/x/plateway-selftest-")
    assert "capitals and underscores in bucket names" not in verdicts(report)
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert sorted(keys) == ["keep", "x/keep", "x/plateway-selftest-"]
    assert client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"][0]["ID"] == "a"
    assert [one["UploadId"] for one in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    client.abort_multipart_upload(Bucket=bucket, Key="x/open", UploadId=upload)


OK = Message("HTTP/1.1 200 OK", (("Content-Length", "0"), ("ETag", '"0"')))
NONE_DELETED = b'<?xml version="1.0"?><DeleteResult></DeleteResult>'
UNKNOWN = ("tagging", "lifecycle", "versioning", "uploads")  # questions that the poor endpoint does not know


class Poor:
    """An endpoint that ignores checksums, conditions and suffixes, and knows neither tags nor rules."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def __call__(self, request: Message, forward: Forward) -> Message:
        target = request.start.split()[1]
        question = target.partition("?")[2]
        if request.start.startswith(("GET", "PUT")) and any(one in question.split("&")[0] for one in UNKNOWN):
            return error(501, "NotImplemented")
        if request.name == "get bucket":
            return error(501, "NotImplemented")  # lists neither buckets nor, in the words of version 1, objects
        if request.name == "delete objects":
            return with_body(replace(OK, headers=()), NONE_DELETED)
        if "X-Amz-Signature" in question:
            return error(403, "AccessDenied")
        if request.name == "put object":
            return self.put(request, forward(request))
        if request.name == "get object" and request.path in self.kept and "=-" in (request.header("range") or ""):
            return with_body(OK, self.kept[request.path])
        return self.answer(request, forward(request))

    def put(self, request: Message, reply: Message) -> Message:
        """Accept whatever comes, if only in words."""
        if reply.status == 200:
            self.kept[request.path] = request.body
        return reply if reply.status == 200 else OK

    def answer(self, request: Message, reply: Message) -> Message:
        """Answer with neither checksums nor metadata, nor the ETag where it matters."""
        told = [(name, value) for name, value in reply.headers if not re.match("(?i)x-amz-(checksum|meta)-", name)]
        reply = replace(reply, headers=tuple(told))
        if request.name == "complete":
            return with_body(reply, re.sub(rb"<ETag>.*</ETag>", b"<ETag></ETag>", reply.body))
        etag = reply.header("etag") or ""
        return with_header(reply, "ETag", '"of-its-own-2"') if etag.endswith('-2"') else reply


def test_a_poor_endpoint_is_told_as_it_is(endpoint: Endpoint, client: Any) -> None:
    """What it takes and ignores is not taken for kept, and an ETag that proves nothing is no evidence."""
    assert endpoint.url
    with between(endpoint.url) as proxy:
        proxy.script = Poor()
        report = selftest.run(replace(endpoint, url=proxy.url))
    assert verdicts(report) == {
        "ETag of one PUT is its MD5": "yes",
        "ETag of an upload in parts is their MD5s'": "no",
        "CompleteMultipartUpload tells the ETag": "no",
        "wrong Content-MD5 is refused": "ignored",
        "wrong x-amz-checksum is refused": "ignored",
        "If-None-Match: * is kept": "ignored",
        "metadata of objects": "ignored",
        "tags of objects": "no",
        "ranged reads": "yes",
        "suffix ranges": "ignored",
        "presigned links": "denied",
        "ListObjectsV2": "yes",
        "ListObjects (v1)": "no",
        "listing in the order of bytes": "no",
        "DeleteObjects": "ignored",
        "open uploads are listed": "no",
        "lifecycle rules": "no",
        "versioning": "no",
        "Object Lock": "yes",
        "capitals and underscores in bucket names": "no",
    }
    assert set(results(report).values()) == {"done"}
    assert evidence(report) == ["etag", "read-back", "etag"]
    assert leftovers(client) == []


def flip(request: Message, forward: Forward) -> Message:
    """Change a byte of whatever is read in pieces."""
    reply = forward(request)
    if request.name != "get object" or not reply.header("content-range") or "plateway-site/" in request.path:
        return reply
    return with_body(reply, bytes([reply.body[0] ^ 1]) + reply.body[1:])


def test_damage_is_told(endpoint: Endpoint, home: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes than were sent end the round with exit code 4, and a ranged read that lies is no capability."""
    assert endpoint.url
    assert endpoint.access_key_id
    assert endpoint.secret_access_key
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", endpoint.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", endpoint.secret_access_key.get_secret_value())
    with between(endpoint.url) as proxy:
        proxy.script = flip
        result = call("bucket", "selftest", "--json", "--endpoint-url", proxy.url)
    assert result.exit_code == 4
    told = json.loads(result.stdout)
    assert told["good"] is False
    assert [step["name"] for step in told["steps"] if step["result"] == "damaged"] == ["read back"]
    assert {one["name"]: one["verdict"] for one in told["capabilities"]}["ranged reads"] == "ignored"
    assert endpoint.secret_access_key.get_secret_value() not in result.output
    assert leftovers(client) == []


def test_what_may_not_be_written_is_not_tried(endpoint: Endpoint) -> None:
    """A read-only endpoint is never asked; where no bucket may be made, the error says what can be done."""
    assert endpoint.url
    with between(endpoint.url) as proxy:
        with pytest.raises(Refused, match="read-only"):
            selftest.run(replace(endpoint, url=proxy.url, read_only=True))
        assert proxy.log == []
        proxy.script = lambda asked, forward: (
            error(403, "AccessDenied") if asked.name == "put bucket" else forward(asked)
        )
        with pytest.raises(Denied, match="in a bucket that is there"):
            selftest.run(replace(endpoint, url=proxy.url))
