"""Buckets on the real S3 server: what each verb does, what it leaves alone, and what a bad endpoint makes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from plateway.endpoint import Endpoint
from plateway.errors import Conflict, NotFound, PlatewayError, Refused, Rejected
from plateway.store import Stat, admin
from plateway.store.admin import (
    Address,
    Buckets,
    TransferResult,
    Version,
    landing,
    sweep,
    temporary,
)
from tests.faults.proxy import Forward, Message, Reset, Script, between, error, honest, with_header


@pytest.fixture
def there(endpoint: Endpoint) -> Buckets:
    """The buckets of the run's server."""
    return Buckets(endpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of small files."""
    inner = tmp_path / "plates"
    inner.mkdir()
    for number in range(7):
        (inner / f"{number} é.tif").write_bytes(os.urandom(1000 + number))
    return inner


def fill(there: Buckets, bucket: str, *keys: str) -> None:
    """Put small objects there."""
    for key in keys:
        there.store(bucket).put(key, [key.encode()], size=len(key.encode()), part_size=1 << 23, metadata={})


def keys(there: Buckets, bucket: str, key: str = "") -> list[str]:
    return sorted(one.key for one in there.find(Address(bucket, key)))


def good(done: Iterator[TransferResult]) -> list[TransferResult]:
    """All of them went well."""
    found = list(done)
    assert [one for one in found if one.problem] == []
    return found


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://b-1/a/b", Address("b-1", "a/b")),
        ("s3://extraction_5_CT", Address("extraction_5_CT")),
        ("raw", Address("raw")),
        ("s3://b.b/a?b#c d", Address("b.b", "a?b#c d")),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    """A bucket, and whatever key."""
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["", "s3://", "s3:///a", "http://b/a", "a/b", "s3://-b/a", "../b", "s3://a b/c"])
def test_other_addresses_are_refused(text: str) -> None:
    """They name no bucket."""
    with pytest.raises(Rejected, match="is not an address"):
        Address.parse(text)


def test_a_bucket_is_made_once_and_removed_when_empty(there: Buckets, bucket: str) -> None:
    """It is listed with its time; one of that name is a conflict; one that is not empty stays."""
    fill(there, bucket, "a")
    name = f"{bucket}-2"
    there.make(name)
    made = {one.name: one.created for one in there.names()}
    assert abs(made[name] - datetime.now(UTC)) < timedelta(minutes=5)
    with pytest.raises(Conflict):
        there.make(name)
    with pytest.raises(Refused, match="not empty"):
        there.remove(bucket)
    there.remove(name)
    assert not there.there(name)
    with pytest.raises(NotFound):
        there.remove(name)


def test_files_go_there_and_come_back(there: Buckets, bucket: str, folder: Path, tmp_path: Path) -> None:
    """Byte for byte, names included; nothing half written is left beside them."""
    good(there.put((path, Address(bucket, f"x/{path.name}")) for path in folder.iterdir()))
    found = list(there.find(Address(bucket, "x")))
    where = Address(bucket, "x")
    back = tmp_path / "back"
    good(there.get((stat, Address(bucket, stat.key), partial(landing, stat.key, where, back)) for stat in found))
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_a_name_is_an_object_and_a_folder_and_no_sibling(there: Buckets, bucket: str) -> None:
    """Echo's prefix deletion took ids that merely begin alike (lesson 2.4)."""
    fill(there, bucket, "run", "run/1", "run/deep/2", "run2/1", "run-a", "runs")
    assert keys(there, bucket, "run") == ["run", "run/1", "run/deep/2"]
    assert keys(there, bucket, "run/") == ["run/1", "run/deep/2"]
    good(there.delete(Address(bucket, "run"), list(there.find(Address(bucket, "run")))))
    assert keys(there, bucket) == ["run-a", "run2/1", "runs"]


def test_buckets_share_a_client_and_nothing_else(there: Buckets, bucket: str) -> None:
    """What is put into one is not in the other."""
    fill(there, bucket, "a")
    with temporary(there, bucket) as other:
        fill(there, other, "b")
        assert (keys(there, bucket), keys(there, other)) == (["a"], ["b"])
        assert b"".join(there.store(other).open("b")) == b"b"
        assert there.store(other).stat("a") is None


def test_one_level_is_listed(there: Buckets, bucket: str) -> None:
    """Objects with what is known of them, folders by name."""
    fill(there, bucket, "a", "a/1", "a/b/2", "b")
    told = [one if isinstance(one, str) else one.key for one in there.level(Address(bucket))]
    assert sorted(told) == ["a", "a/", "b"]
    told = [one if isinstance(one, str) else one.key for one in there.level(Address(bucket, "a/"))]
    assert sorted(told) == ["a/1", "a/b/"]


def test_a_bucket_is_opened_once(endpoint: Endpoint, bucket: str) -> None:
    """However many ask at the same time: opening costs as much as a hundred small objects."""
    there = Buckets(endpoint)
    with ThreadPoolExecutor(16) as pool:
        assert len({id(store) for store in pool.map(there.store, [bucket] * 64)}) == 1


def test_usage_is_added_up(there: Buckets, bucket: str) -> None:
    """Of a folder, and of nothing."""
    fill(there, bucket, "a/1", "a/22", "b")
    found = there.usage(Address(bucket, "a"))
    assert (found.objects, found.size, found.largest) == (2, 7, 4)
    assert there.usage(Address(bucket, "c")) == admin.Usage(0, 0, 0, None)


def test_objects_are_copied_by_the_endpoint(there: Buckets, bucket: str) -> None:
    """Into another folder; their bytes are the same."""
    fill(there, bucket, "a/1", "a/2")
    found = list(there.find(Address(bucket, "a")))
    good(there.copy((one, Address(bucket, one.key), Address(bucket, f"c/{one.key}")) for one in found))
    assert keys(there, bucket, "c") == ["c/a/1", "c/a/2"]
    assert b"".join(there.store(bucket).open("c/a/2")) == b"a/2"


def test_tags_and_rules_are_set_and_read(there: Buckets, bucket: str) -> None:
    """And taken away."""
    fill(there, bucket, "a")
    there.set_tags(Address(bucket, "a"), {"archived": "true", "q": "1"})
    assert there.tags(Address(bucket, "a")) == {"archived": "true", "q": "1"}
    there.set_tags(Address(bucket, "a"), {})
    assert there.tags(Address(bucket, "a")) == {}
    rule = {"ID": "tmp", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 3}}
    there.set_lifecycle(bucket, [rule])
    assert [one["Filter"] for one in there.lifecycle(bucket)] == [{"Prefix": "tmp/"}]
    there.set_lifecycle(bucket, [])
    assert there.lifecycle(bucket) == []


def test_thousands_are_deleted_in_a_few_requests(endpoint: Endpoint, bucket: str) -> None:
    """More than one request has room for; each is told of once."""
    assert endpoint.url
    fill(Buckets(endpoint), bucket, *(f"n/{number}" for number in range(1100)))
    with between(endpoint.url) as proxy:
        there = Buckets(replace(endpoint, url=proxy.url))
        done = good(there.delete(Address(bucket, "n"), there.find(Address(bucket, "n"))))
        assert len({one.address.key for one in done}) == len(done) == 1100
        assert sum(request.name == "delete objects" for request in proxy.log) <= 3
    assert keys(Buckets(endpoint), bucket) == []


def test_a_deletion_that_did_not_happen_is_told(endpoint: Endpoint, bucket: str) -> None:
    """Echo's check was the wrong way round: an object that was still there counted as deleted (lesson 2.4)."""
    assert endpoint.url
    fill(Buckets(endpoint), bucket, "a/1", "a/2")

    def pretend(request: Message, forward: Forward) -> Message:
        if request.name != "delete objects":
            return forward(request)
        body = b'<?xml version="1.0"?><DeleteResult></DeleteResult>'
        return Message("HTTP/1.1 200 OK", (("Content-Length", str(len(body))),), body)

    with between(endpoint.url) as proxy:
        proxy.script = pretend
        there = Buckets(replace(endpoint, url=proxy.url))
        done = list(there.delete(Address(bucket, "a"), there.find(Address(bucket, "a"))))
    assert {one.address.key for one in done if one.problem == "was deleted and is still there"} == {"a/1", "a/2"}
    assert sum(one.size for one in done) == 0


def slow_down(request: Message, forward: Forward) -> Message:
    return error(503, "SlowDown")


def denied(request: Message, forward: Forward) -> Message:
    return error(403, "AccessDenied")


def reset(request: Message, forward: Forward) -> Message:
    raise Reset


def silent(act: Callable[..., None]) -> Callable[[Buckets, str, Path], list[Any]]:
    """Treat a verb that tells nothing for one that tells of no object."""

    def acted(there: Buckets, bucket: str, folder: Path) -> list[Any]:
        act(there, bucket)
        return []

    return acted


ACTS: dict[str, Callable[[Buckets, str, Path], list[Any]]] = {
    "names": lambda there, bucket, folder: [there.names()],
    "make": silent(lambda there, bucket: there.make(f"{bucket}-x")),
    "there": lambda there, bucket, folder: [there.there(bucket)],
    "find": lambda there, bucket, folder: list(there.find(Address(bucket))),
    "level": lambda there, bucket, folder: list(there.level(Address(bucket))),
    "put": lambda there, bucket, folder: list(there.put([(next(folder.iterdir()), Address(bucket, "p"))])),
    "get": lambda there, bucket, folder: list(there.get([(stat(), Address(bucket, "a/1"), lambda: folder / "got")])),
    "copy": lambda there, bucket, folder: list(there.copy([(stat(), Address(bucket, "a/1"), Address(bucket, "c"))])),
    "delete": lambda there, bucket, folder: list(there.delete(Address(bucket, "a/1"), [stat()])),
    "tags": lambda there, bucket, folder: [there.tags(Address(bucket, "a/1"))],
    "set tags": silent(lambda there, bucket: there.set_tags(Address(bucket, "a/1"), {"k": "v"})),
    "lifecycle": lambda there, bucket, folder: [there.lifecycle(bucket)],
    "set lifecycle": silent(lambda there, bucket: there.set_lifecycle(bucket, [])),
    "remove": silent(lambda there, bucket: there.remove(bucket)),
}


def stat() -> Stat:
    return Stat("a/1", 3, "", datetime.now(UTC))


@pytest.mark.parametrize("fault", [slow_down, denied, reset], ids=lambda one: str(one.__name__))
@pytest.mark.parametrize("name", ACTS)
def test_a_bad_endpoint_is_told_and_nothing_is_claimed(
    name: str, fault: Script, endpoint: Endpoint, bucket: str, folder: Path
) -> None:
    """Whatever is asked, 503, 403 and a reset become an error of ours that names the thing, and no file is left."""
    assert endpoint.url
    fill(Buckets(endpoint), bucket, "a/1")
    before = {path.name for path in folder.iterdir()}
    with between(endpoint.url) as proxy:
        there, url = Buckets(replace(endpoint, url=proxy.url)), proxy.url
        proxy.script = fault
        try:
            problems = [one.problem for one in ACTS[name](there, bucket, folder) if isinstance(one, TransferResult)]
        except PlatewayError as raised:
            problems = [str(raised)]
        proxy.script = honest
    assert len(problems) == 1
    assert bucket in problems[0] or problems[0].startswith("buckets")
    assert url not in problems[0]
    assert {path.name for path in folder.iterdir()} == before
    assert keys(Buckets(endpoint), bucket) == ["a/1"]


def test_a_key_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    """An object cannot be fetched to outside of the directory."""
    for key in ("../x", "a/../../x", "/etc/x", "a//b"):
        with pytest.raises(Rejected):
            landing(f"p/{key}", Address("b", "p"), tmp_path)


# -------------------------------------------------------------------------------------------------- short-lived buckets


def of_name(there: Buckets, name: str) -> list[str]:
    return [one.name for one in there.names() if one.name.startswith(name)]


def test_a_short_lived_bucket_goes_with_its_contents(there: Buckets, bucket: str, client: Any) -> None:
    """Also when the block fails, and with an upload that is open."""
    with pytest.raises(KeyError), temporary(there, bucket) as made:
        fill(there, made, "a/1", "b")
        client.create_multipart_upload(Bucket=made, Key="open")
        assert of_name(there, f"{bucket}-") == [made]
        raise KeyError
    assert of_name(there, f"{bucket}-") == []


def test_leftovers_are_swept_and_nothing_else(there: Buckets, bucket: str) -> None:
    """Only those of the same name and pattern, and old both by their name and by the endpoint's word."""
    old, young = f"{bucket}-20200101000000-abcdef", f"{bucket}-{datetime.now(UTC):%Y%m%d%H%M%S}-abcdef"
    others = [f"{bucket}-20200101000000-abcdeg", f"{bucket}-2020-abcdef", f"{bucket}-x-20200101000000-abcdef"]
    for name in (old, young, *others):
        there.make(name)
    fill(there, old, "a")
    now = datetime.now(UTC)
    assert admin.sweep(there, bucket, before=now - timedelta(days=1)) == []  # the endpoint says that it is young
    assert sorted(admin.sweep(there, bucket, before=now + timedelta(hours=1))) == [old, young]
    assert not there.there(old)
    for name in others:
        assert there.there(name)
        there.remove(name)


def test_leftovers_that_stay_keep_nobody_from_a_bucket(
    endpoint: Endpoint, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot be removed is warned of, buckets that may not be listed as well; the block has its own."""
    assert endpoint.url
    old = f"{bucket}-20200101000000-abcdef"
    Buckets(endpoint).make(old)
    soon = timedelta(hours=-1)  # so that the endpoint's word is old enough
    with between(endpoint.url) as proxy:
        there = Buckets(replace(endpoint, url=proxy.url))
        proxy.script = lambda asked, forward: denied(asked, forward) if old in asked.path else forward(asked)
        with temporary(there, bucket, keep=soon) as made:
            assert f"leftover bucket {old} stays" in caplog.text
        proxy.script = lambda asked, forward: denied(asked, forward) if asked.path == "/" else forward(asked)
        with temporary(there, bucket, keep=soon) as made:
            assert f"leftovers of {bucket} cannot be looked for" in caplog.text
    assert of_name(Buckets(endpoint), f"{bucket}-") == [old]
    assert not there.there(made)
    Buckets(endpoint).remove(old)


def test_a_bucket_is_emptied_where_uploads_cannot_be_listed(endpoint: Endpoint, bucket: str) -> None:
    """What an endpoint does not know is not asked for twice; the bucket goes all the same."""
    assert endpoint.url
    with between(endpoint.url) as proxy:
        proxy.script = lambda asked, forward: (
            error(501, "NotImplemented") if asked.name == "list uploads" else forward(asked)
        )
        with temporary(Buckets(replace(endpoint, url=proxy.url)), bucket) as made:
            fill(Buckets(endpoint), made, "a")
    assert of_name(Buckets(endpoint), f"{bucket}-") == []


def test_an_upload_whose_answer_tells_no_etag_is_asked_for_it(endpoint: Endpoint, bucket: str, folder: Path) -> None:
    """As Ceph answers; other bytes than were sent are found all the same."""
    assert endpoint.url
    files = [(next(folder.iterdir()), Address(bucket, "a"))]

    def silent(asked: Message, forward: Forward) -> Message:
        return with_header(forward(asked), "ETag", "") if asked.name == "put object" else forward(asked)

    def other(asked: Message, forward: Forward) -> Message:
        reply = silent(asked, forward)
        return with_header(reply, "ETag", f'"{"0" * 32}"') if asked.start.startswith("HEAD") else reply

    with between(endpoint.url) as proxy:
        there = Buckets(replace(endpoint, url=proxy.url))
        proxy.script = silent
        good(there.put(files))
        proxy.script = other
        assert ["has ETag 000" in one.problem for one in there.put(files)] == [True]
    assert there.moved == 2 * files[0][0].stat().st_size


# Versions


def versioned(client: Any, bucket: str, status: str = "Enabled") -> None:
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})


def rewritten(there: Buckets, client: Any, bucket: str, *keys: str, times: int = 3) -> None:
    """Objects of several versions each, of which every other one is deleted."""
    versioned(client, bucket)
    for number in range(times):
        for key in keys:
            client.put_object(Bucket=bucket, Key=key, Body=b"%d" % number)
    for key in keys[::2]:
        client.delete_object(Bucket=bucket, Key=key)


@pytest.fixture
def other(there: Buckets, bucket: str) -> Iterator[str]:
    """A bucket that a test removes by itself."""
    name = f"{bucket}-v"
    there.make(name)
    yield name
    if there.there(name):
        list(there.clear(name))
        there.remove(name)


@pytest.mark.parametrize("status", ["Enabled", "Suspended"])
def test_a_bucket_is_cleared_with_all_versions(there: Buckets, client: Any, other: str, status: str) -> None:
    """Versions and marks of deletion go as well, also after versioning was suspended; then the bucket can go."""
    rewritten(there, client, other, "a", "b/c", "d é")
    versioned(client, other, status)
    client.put_object(Bucket=other, Key="late", Body=b"late")
    assert {one.key for one in there.versions(Address(other))} == {"a", "b/c", "d é", "late"}
    assert len(good(there.clear(other))) == 12  # nine versions, two marks, and what came late
    assert list(there.versions(Address(other))) == []
    there.remove(other)
    assert not there.there(other)


def test_a_bucket_with_nothing_but_versions_is_not_empty(there: Buckets, client: Any, other: str) -> None:
    """All objects were deleted, nothing is listed, and the bucket is refused for good, not for now."""
    rewritten(there, client, other, "a")
    assert keys(there, other) == []
    with pytest.raises(Refused):
        there.remove(other)
    assert there.there(other)


def test_versions_of_more_than_a_page_go(there: Buckets, client: Any, other: str) -> None:
    """A thousand are listed at a time."""
    versioned(client, other)
    with ThreadPoolExecutor(8) as pool:
        put = lambda n: client.put_object(Bucket=other, Key=f"{n % 2}/{n // 4}", Body=b"")  # noqa: E731
        list(pool.map(put, range(1100)))
    assert len(good(there.clear(other))) == 1100
    there.remove(other)


def test_a_version_listing_names_what_find_would(there: Buckets, client: Any, other: str) -> None:
    """The object and the folder of a name, no sibling."""
    rewritten(there, client, other, "run", "run/1", "run2", times=1)
    assert {one.key for one in there.versions(Address(other, "run"))} == {"run", "run/1"}
    assert {one.key for one in there.versions(Address(other, "run/"))} == {"run/1"}
    assert all(isinstance(one, Version) for one in there.versions(Address(other)))


def test_a_short_lived_bucket_may_keep_versions(there: Buckets, client: Any, bucket: str) -> None:
    """It goes with them, by itself and in the sweep of what was left."""
    with temporary(there, bucket) as made:
        rewritten(there, client, made, "a", "b")
    assert not there.there(made)
    left = f"{bucket}-20200101000000-abcdef"
    there.make(left)
    rewritten(there, client, left, "a", "b")
    assert sweep(there, bucket, before=datetime.now(UTC) + timedelta(days=1)) == [left]
    assert not there.there(left)


def test_what_is_locked_is_named_once_and_stays(there: Buckets, client: Any, bucket: str) -> None:
    """A version under a legal hold is a problem of its own, the others go, and the bucket is refused for good."""
    name = f"{bucket}-locked"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    for key in ("a", "b"):
        client.put_object(Bucket=name, Key=key, Body=b"1")
    hold = partial(client.put_object_legal_hold, Bucket=name, Key="a")
    hold(LegalHold={"Status": "ON"})
    try:
        done = list(there.clear(name))
        assert {one.address.key for one in done if not one.problem} == {"b"}
        assert [one.address.key for one in done if one.problem] == ["a"]
        with pytest.raises(Refused):
            there.remove(name)
        assert {one.key for one in there.versions(Address(name))} == {"a"}
    finally:
        hold(LegalHold={"Status": "OFF"})
    good(there.clear(name))
    there.remove(name)


def test_versions_that_may_not_be_listed_are_refused_for_good(
    there: Buckets, endpoint: Endpoint, client: Any, other: str
) -> None:
    """Nothing is listed, the endpoint says that the bucket is not empty: waiting does not help."""
    rewritten(there, client, other, "a")
    assert endpoint.url
    with between(endpoint.url) as proxy:

        def script(asked: Message, forward: Forward) -> Message:
            if "versions" in asked.start.split()[1].partition("?")[2]:
                return error(403, "AccessDenied")
            return error(409, "BucketNotEmpty") if asked.name == "delete bucket" else forward(asked)

        proxy.script = script
        behind = Buckets(replace(endpoint, url=proxy.url))
        list(behind.clear(other))
        with pytest.raises(Refused):
            behind.remove(other)
    assert there.there(other)


@pytest.mark.parametrize("how", ["versioning", "versions"])
def test_an_endpoint_without_versions_is_cleared(there: Buckets, endpoint: Endpoint, other: str, how: str) -> None:
    """What it does not know is not needed."""
    fill(there, other, "a", "b")
    assert endpoint.url
    with between(endpoint.url) as proxy:
        proxy.script = lambda asked, forward: (
            error(501, "NotImplemented") if how in asked.start.split()[1].partition("?")[2] else forward(asked)
        )
        behind = Buckets(replace(endpoint, url=proxy.url))
        assert len(good(behind.clear(other))) == 2
        behind.remove(other)
    assert not there.there(other)
