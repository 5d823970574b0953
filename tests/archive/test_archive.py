"""What the archive says it has, where its manifests lie, and the place itself, on every kind of file system."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec  # type: ignore[import-untyped]  # ships no types
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]  # the same
from hypothesis import given, settings
from hypothesis import strategies as st

from plateway import archive
from plateway.archive import Archive, Entry, Inbox, dump, open_archive, parse
from plateway.endpoint import Endpoint
from plateway.errors import Conflict, Damaged, Misconfigured, NotFound, Rejected, Unsettled

JOB = "2f1c5d0e-8a4b-4c3d-9e2f-1a2b3c4d5e6f"
SHA = hashlib.sha256(b"x").hexdigest()
GOOD: dict[str, Any] = {
    "job_id": JOB,
    "date": "2024-05-17T00:00:00",
    "archives": [
        {
            "path": "images/e/2024-05-17.tar",
            "src_keys": ["raw/images/e/20240517/093000-2f1c5d0e.tar", "raw/images/e/20240517/094000-3a1c5d0e.tar"],
        }
    ],
}


def said(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def without(name: str) -> bytes:
    return json.dumps({field: value for field, value in GOOD.items() if field != name}).encode()


# ----------------------------------------------------------------------------------------------------------- manifests


def test_a_manifest_of_surf_archiver_is_read() -> None:
    """The archiver's own format, with or without ids, gives one entry a key."""
    notice = parse(said(archives=[GOOD["archives"][0] | {"id": str(uuid4())}]))
    assert (notice.job_id, notice.date, notice.refused) == (JOB, datetime(2024, 5, 17, tzinfo=UTC), ())
    assert [entry.key for entry in notice.entries] == GOOD["archives"][0]["src_keys"]
    assert notice.entries[0] == Entry("images/e/2024-05-17.tar", "raw/images/e/20240517/093000-2f1c5d0e.tar")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-05-17", datetime(2024, 5, 17, tzinfo=UTC)),
        ("2024-05-17T00:00:00", datetime(2024, 5, 17, tzinfo=UTC)),
        ("2024-05-17T02:30:00.5+02:00", datetime(2024, 5, 17, 0, 30, 0, 500000, tzinfo=UTC)),
        ("2024-05-17T23:59:59Z", datetime(2024, 5, 17, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_the_date_is_a_day_or_a_time(text: str, moment: datetime) -> None:
    """Both spellings of the contract are read, without a zone as UTC."""
    assert parse(said(date=text)).date == moment


def test_empty_manifests_and_empty_archives_are_fine() -> None:
    """An archiver that found nothing says so, and so may a part of it."""
    assert parse(said(archives=[])).entries == ()
    notice = parse(said(archives=[{"path": "images/e/d.tar", "src_keys": []}, *GOOD["archives"]]))
    assert (len(notice.entries), notice.refused) == (2, ())


@pytest.mark.parametrize(
    "key", ["b/test-id/20010101_0000.tar", "b/images/e/20240101_0930.tar", "b/x", "b-1.2/videos/ä €"]
)
def test_keys_of_old_layouts_are_read(key: str) -> None:
    """Below the bucket a key may have any layout that ever was."""
    assert [one.key for one in parse(said(archives=[{"path": "a.tar", "src_keys": [key]}])).entries] == [key]


def test_details_of_members_are_read() -> None:
    """What ours tells beyond the archiver's format: name, size, SHA-256 and offset, each where it is known."""
    members = [
        {"key": "b/one", "name": "./one", "size": 7, "sha256": SHA.upper(), "offset": 1536},
        {"key": "b/two", "size": 0, "sha256": None, "more": "fields"},
    ]
    archives = [{"path": "a.tar", "src_keys": ["b/three", "b/two", "b/one"], "members": members}]
    assert parse(said(archives=archives)).entries == (
        Entry("a.tar", "b/one", "./one", 7, SHA, 1536),
        Entry("a.tar", "b/three"),
        Entry("a.tar", "b/two", size=0),
    )


def test_a_manifest_that_is_written_is_read_again() -> None:
    """What `dump` writes, `parse` reads, and the archiver's own fields are those of the contract."""
    entries = (Entry("a.tar", "b/1", "./1", 5, SHA, 512), Entry("a.tar", "b/2"), Entry("c.tar", "b/1", size=5))
    content = dump(JOB, date(2024, 5, 17), entries=entries)
    notice = parse(content)
    assert (notice.job_id, notice.date, notice.entries) == (JOB, datetime(2024, 5, 17, tzinfo=UTC), entries)
    plain = json.loads(dump(JOB, date(2024, 5, 17), entries=[Entry("a.tar", "b/1"), Entry("a.tar", "b/2")]))
    assert plain == {
        "job_id": JOB,
        "date": "2024-05-17T00:00:00",
        "archives": [{"path": "a.tar", "src_keys": ["b/1", "b/2"]}],
    }
    assert content.startswith(b'{\n    "job_id"')


def test_the_digest_is_of_what_is_said() -> None:
    """Order and white space change nothing; any word does."""
    same = json.dumps(
        {
            "archives": [{"src_keys": GOOD["archives"][0]["src_keys"][::-1], "path": "images/e/2024-05-17.tar"}],
            "date": "2024-05-17",
            "job_id": JOB.upper(),
        },
        indent=4,
    )
    assert parse(same.encode()).digest == parse(said()).digest
    archives = GOOD["archives"]
    others = [
        said(job_id="another"),
        said(date="2024-05-18"),
        said(archives=[]),
        said(archives=[*archives, {"path": "b.tar", "src_keys": []}]),
        said(archives=[archives[0] | {"path": "b.tar"}]),
        said(archives=[archives[0] | {"members": [{"key": archives[0]["src_keys"][0], "size": 1}]}]),
        said(archives=[*archives, 5]),
    ]
    assert len({parse(content).digest for content in [said(), *others]}) == 1 + len(others)


DEEP = b'{"job_id": "j", "date": "2024-05-17", "archives": ' + b"[" * 40 + b"]" * 40 + b"}"
MALFORMED: list[tuple[bytes, str]] = [
    (b"", "not JSON: expecting value at line 1 column 1"),
    (b" \n", "not JSON: expecting value at line 2 column 1"),
    (b"null", "a manifest: null is not an object"),
    (b"[]", "a manifest: [] is not an object"),
    (b'"text"', 'a manifest: "text" is not an object'),
    (b"17", "a manifest: 17 is not an object"),
    (b"true", "a manifest: true is not an object"),
    (b"{", "not JSON: expecting property name enclosed in double quotes at line 1 column 2"),
    (said()[:40], "not JSON: unterminated string starting at at line 1 column 12"),
    (said()[:-1], "not JSON: expecting ',' delimiter at line 1 column 236"),
    (said() + b"x", "not JSON: extra data at line 1 column 237"),
    (said() + said(), "not JSON: extra data at line 1 column 237"),
    (b"<html></html>", "not JSON: expecting value at line 1 column 1"),
    (b"\xef\xbb\xbf" + said(), "begins with a byte order mark"),
    (said().decode().encode("utf-16"), "not UTF-8: byte 0xff at 0"),
    (b'{"job_id": "\xe4"}', "not UTF-8: byte 0xe4 at 12"),
    (b'{"job_id": "\\ud800"}', "a text holds half a surrogate pair"),
    (b'{"job_id": "a", "job_id": "b"}', '"job_id": there twice'),
    (b'{"date": NaN}', "NaN is not a number that JSON knows"),
    (b'{"date": -Infinity}', "-Infinity is not a number that JSON knows"),
    (b'{"date": 1e999}', "1e999 is not a number that JSON knows"),
    (b'{"date": ' + b"1" * 5000 + b"}", "a number of too many digits"),
    (DEEP, "nested deeper than 32"),
    (b"{}", "job_id: missing"),
    (without("job_id"), "job_id: missing"),
    (said(job_id=None), "job_id: null is not a text"),
    (said(job_id=7), "job_id: 7 is not a text"),
    (said(job_id=""), 'job_id: "" is not a text'),
    (said(job_id="a/b"), 'job_id: "a/b" contains a slash'),
    (said(job_id=".hidden"), 'job_id: ".hidden" begins with a dot'),
    (said(job_id="a\nb"), 'job_id: "a\\nb" contains characters that cannot be printed'),
    (said(job_id="j" * 129), f'job_id: "{"j" * 76}... has more than 128 bytes'),
    (without("date"), "date: missing"),
    (said(date=None), "date: null is neither a day like 2024-05-17 nor a time like 2024-05-17T00:00:00"),
    (said(date=20240517), "date: 20240517 is neither a day like 2024-05-17 nor a time like 2024-05-17T00:00:00"),
    (said(date="17.5.2024"), 'date: "17.5.2024" is neither a day like 2024-05-17 nor a time like 2024-05-17T00:00:00'),
    (said(date="2024-02-30"),
     'date: "2024-02-30" is neither a day like 2024-05-17 nor a time like 2024-05-17T00:00:00'),
    (said(date="0001-01-01T00:00+09:00"),
     'date: "0001-01-01T00:00+09:00" is neither a day like 2024-05-17 nor a time like 2024-05-17T00:00:00'),
    (without("archives"), "archives: missing"),
    (said(archives=None), "archives: null is not a list"),
    (said(archives={}), "archives: {} is not a list"),
    (said(archives="a.tar"), 'archives: "a.tar" is not a list'),
]  # fmt: skip


def one(**fields: Any) -> dict[str, Any]:
    return {"path": "a.tar", "src_keys": ["b/k"], **fields}


def told(**fields: Any) -> dict[str, Any]:
    return one(members=[{"key": "b/k", **fields}])


WRONG: list[tuple[Any, str]] = [
    (5, "archives[1]: 5 is not an object"),
    (None, "archives[1]: null is not an object"),
    ([], "archives[1]: [] is not an object"),
    ({}, "archives[1]: path: missing"),
    ({"src_keys": []}, "archives[1]: path: missing"),
    ({"path": "a.tar"}, "archives[1]: src_keys: missing"),
    (one(path=None), "archives[1]: path: null is not a text"),
    (one(path=7), "archives[1]: path: 7 is not a text"),
    (one(path=""), 'archives[1]: path: "" is empty'),
    (one(path="/etc/a.tar"), 'archives[1]: path: "/etc/a.tar" is absolute'),
    (one(path="../a.tar"), 'archives[1]: path: "../a.tar" climbs out with \'..\''),
    (one(path="a/../../b.tar"), 'archives[1]: path: "a/../../b.tar" climbs out with \'..\''),
    (one(path="a//b.tar"), 'archives[1]: path: "a//b.tar" has an empty or \'.\' segment'),
    (one(path="./b.tar"), 'archives[1]: path: "./b.tar" has an empty or \'.\' segment'),
    (one(path="a/"), 'archives[1]: path: "a/" has an empty or \'.\' segment'),
    (one(path="C:\\a.tar"), 'archives[1]: path: "C:\\\\a.tar" contains a backslash'),
    (one(path="a\0.tar"), 'archives[1]: path: "a\\u0000.tar" contains a control character'),
    (one(path="a" * 1025), f'archives[1]: path: "{"a" * 76}... has more than 1024 bytes'),
    (one(src_keys=None), "archives[1]: src_keys: null is not a list"),
    (one(src_keys="b/k"), 'archives[1]: src_keys: "b/k" is not a list'),
    (one(src_keys=[None]), "archives[1].src_keys[0]: key: null is not a text"),
    (one(src_keys=["b/k", 7]), "archives[1].src_keys[1]: key: 7 is not a text"),
    (one(src_keys=[["b/k"]]), 'archives[1].src_keys[0]: key: ["b/k"] is not a text'),
    (one(src_keys=[""]), 'archives[1].src_keys[0]: key: "" is not <bucket>/<key>'),
    (one(src_keys=["k"]), 'archives[1].src_keys[0]: key: "k" is not <bucket>/<key>'),
    (one(src_keys=["/b/k"]), 'archives[1].src_keys[0]: key: "/b/k" is not <bucket>/<key>'),
    (one(src_keys=["b/"]), 'archives[1].src_keys[0]: key: "b/" is empty'),
    (one(src_keys=["s3://b/k"]), 'archives[1].src_keys[0]: key: "s3://b/k" is absolute'),
    (one(src_keys=["b/../k"]), 'archives[1].src_keys[0]: key: "b/../k" climbs out with \'..\''),
    (one(src_keys=["../k"]), 'archives[1].src_keys[0]: key: "../k" climbs out with \'..\''),
    (one(src_keys=["b/a/./k"]), 'archives[1].src_keys[0]: key: "b/a/./k" has an empty or \'.\' segment'),
    (one(src_keys=["b/a\\k"]), 'archives[1].src_keys[0]: key: "b/a\\\\k" contains a backslash'),
    (one(src_keys=["b/a\nk"]), 'archives[1].src_keys[0]: key: "b/a\\nk" contains a control character'),
    (one(src_keys=["b/" + "ä" * 513]), f'archives[1].src_keys[0]: key: "b/{"ä" * 74}... has more than 1024 bytes'),
    (one(members={}) | {"members": {"key": 1}}, 'archives[1]: members: {"key": 1} is not a list'),
    (one(members=[7]), "archives[1].members[0]: 7 is not an object"),
    (one(members=[{"size": 7}]), "archives[1].members[0]: key: missing"),
    (one(members=[{"key": "b/other"}]), 'archives[1].members: "b/other" is not among src_keys'),
    (told(name=7), "archives[1].members[0]: name: 7 is not a text"),
    (told(name="/k"), 'archives[1].members[0]: name: "/k" is absolute'),
    (told(name="../k"), 'archives[1].members[0]: name: "../k" climbs out with \'..\''),
    (told(size=-1), "archives[1].members[0]: size: -1 is not a whole number from 0 to 9223372036854775807"),
    (told(size=1.5), "archives[1].members[0]: size: 1.5 is not a whole number from 0 to 9223372036854775807"),
    (told(size=True), "archives[1].members[0]: size: true is not a whole number from 0 to 9223372036854775807"),
    (told(size="7"), 'archives[1].members[0]: size: "7" is not a whole number from 0 to 9223372036854775807'),
    (told(size=2**63),
     "archives[1].members[0]: size: 9223372036854775808 is not a whole number from 0 to 9223372036854775807"),
    (told(offset=-512), "archives[1].members[0]: offset: -512 is not a whole number from 0 to 9223372036854775807"),
    (told(sha256="abc"), 'archives[1].members[0]: sha256: "abc" is not 64 hexadecimal digits'),
    (told(sha256=7), "archives[1].members[0]: sha256: 7 is not 64 hexadecimal digits"),
    (told(sha256="g" * 64), f'archives[1].members[0]: sha256: "{"g" * 64}" is not 64 hexadecimal digits'),
    (one(members=[{"key": "b/k", "size": 5}, {"key": "b/k", "size": 7}]),
     'archives[1].members[1]: "b/k": size 5 and size 7'),
]  # fmt: skip


def test_the_corpus_is_large() -> None:
    """Enough ways to be wrong, all different."""
    assert len(MALFORMED) + len(WRONG) >= 90
    assert len({content for content, _ in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize(("content", "reason"), MALFORMED, ids=itertools.count())
def test_a_manifest_that_cannot_be_used_says_exactly_why(content: bytes, reason: str) -> None:
    """The reason is shown to the archive's operators."""
    with pytest.raises(Rejected) as refused:
        parse(content)
    assert str(refused.value) == reason


def test_a_manifest_has_a_largest_size() -> None:
    """Something larger than 64 MiB is not read at all."""
    with pytest.raises(Rejected, match=r"^more than 67,108,864 bytes$"):
        parse(b" " * (archive.CAP + 1))


@pytest.mark.parametrize(("wrong", "reason"), WRONG, ids=itertools.count())
def test_lesson_d12_one_bad_entry_keeps_the_rest(wrong: Any, reason: str) -> None:
    """An entry that is wrong is refused on its own, with its reason; all others are kept, before it and after."""
    before, after = GOOD["archives"][0], one(path="z.tar", src_keys=["b/z"])
    notice = parse(said(archives=[before, wrong, after]))
    good = {(one["path"], key) for one in (before, after) for key in one["src_keys"]}
    assert reason in notice.refused
    assert good <= {(entry.path, entry.key) for entry in notice.entries}
    assert all(entry.size is None and entry.sha256 is None for entry in notice.entries)


def test_an_entry_that_contradicts_itself_is_refused_whatever_the_order() -> None:
    """Said twice in one manifest, with other sizes: nothing of it is believed; said twice the same, it is one."""
    five, seven = (one(members=[{"key": "b/k", "size": size}]) for size in (5, 7))
    for archives in itertools.permutations([five, seven, one(src_keys=["b/k", "b/l"])]):
        notice = parse(said(archives=list(archives)))
        assert [entry.key for entry in notice.entries] == ["b/l"]
        assert len(notice.refused) == 1
        assert notice.refused[0].endswith('"b/k": size 5 and size 7')
    assert parse(said(archives=[five, one(), five])).entries == (Entry("a.tar", "b/k", size=5),)


FIELDS = ["job_id", "date", "archives", "path", "src_keys", "members", "key", "size"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(FIELDS), inner)
), max_leaves=12))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_whatever_comes_is_read_or_rejected(value: Any) -> None:
    """No manifest raises anything but `Rejected`, wherever in it the odd value is."""
    for content in (value, GOOD | {"archives": value}, GOOD | {"archives": [one(members=value), one(src_keys=value)]}):
        try:
            notice = parse(json.dumps(content).encode())
        except Rejected as error:
            assert str(error)
        else:
            assert all("/" in entry.key and not entry.path.startswith("/") for entry in notice.entries)


def test_a_large_manifest_is_read_in_seconds() -> None:
    """Fifty thousand keys are nothing special."""
    keys = [f"raw/images/e/20240517/{number:06d}-2f1c5d0e.tar" for number in range(50_000)]
    assert len(parse(said(archives=[{"path": "a.tar", "src_keys": keys}])).entries) == 50_000


# ---------------------------------------------------------------------------------------------------------- the places


@pytest.fixture(params=["file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Endpoint | None]:
    """The URL of an empty place: a directory, memory, and a bucket on a real server, in turn."""
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('bucket')}/tape", request.getfixturevalue("endpoint")
    if request.param == "memory":
        return f"memory://{uuid4().hex}", None
    (tmp_path / "tape").mkdir()
    return f"file://{tmp_path}/tape", None


@pytest.fixture
def target(place: tuple[str, Endpoint | None]) -> Archive:
    """An empty archive in each kind of place."""
    return open_archive(*place)


@pytest.fixture
def letterbox(place: tuple[str, Endpoint | None]) -> Inbox:
    """An empty inbox in each kind of place."""
    return Inbox(*place)


def drop(place: tuple[str, Endpoint | None], name: str, content: bytes) -> None:
    """Leave a file somewhere, as somebody else would."""
    from plateway import store

    fs, root = store.filesystem(*place)
    if place[0].startswith("file:"):
        (Path(root) / name).parent.mkdir(exist_ok=True)
    with fs.open(f"{root}/{name}", "wb") as file:
        file.write(content)


def whole(place: Archive, path: str) -> bytes:
    return b"".join(place.open(path))


def test_what_is_written_is_there(target: Archive) -> None:
    """Size and SHA-256 are told of what was read back, and any slice can be read."""
    content = os.urandom(3_000_000)
    written = target.write("images/e [1]/2024-05-17.tar", [content[:1], content[1:2_000_000], b"", content[2_000_000:]])
    assert written == (3_000_000, hashlib.sha256(content).hexdigest())
    assert target.size("images/e [1]/2024-05-17.tar") == 3_000_000
    assert whole(target, "images/e [1]/2024-05-17.tar") == content
    for start, length in [(0, 10), (2_999_990, 10), (2_999_990, 1000), (1_048_570, 20), (3_000_000, 5), (5_000_000, 5)]:
        piece = b"".join(target.open("images/e [1]/2024-05-17.tar", start=start, length=length))
        assert piece == content[start : start + length]
    assert target.write("videos/empty.tar", []) == (0, hashlib.sha256().hexdigest())
    assert [one.path for one in target.list()] == ["images/e [1]/2024-05-17.tar", "videos/empty.tar"]
    assert [one.path for one in target.list("images/e [1]/2024-")] == ["images/e [1]/2024-05-17.tar"]
    assert list(target.list("overview/")) == []


def test_what_is_not_there_is_not_there(target: Archive) -> None:
    """A missing file is told at once, and is no error where one only asks."""
    assert target.size("images/no.tar") is None
    with pytest.raises(NotFound):
        target.open("images/no.tar")
    with pytest.raises(NotFound):
        target.members("images/no.tar")
    for odd in ("", "/a.tar", "../a.tar", "a//b", "a\\b"):
        with pytest.raises(Rejected):
            target.write(odd, [b"x"])


def test_lesson_d10_nothing_is_visible_until_it_is_whole(target: Archive) -> None:
    """While an archive is written, and when the writing breaks off, nothing of it can be seen."""

    def breaking() -> Iterator[bytes]:
        yield b"half" * 100_000
        assert list(target.list()) == []
        assert target.size("images/a.tar") is None
        raise Unsettled("the source broke off")

    with pytest.raises(Unsettled, match="the source broke off"):
        target.write("images/a.tar", breaking())
    assert list(target.list()) == []
    assert target.write("images/a.tar", [b"whole"]).size == 5


def test_nothing_is_overwritten(target: Archive) -> None:
    """A second writer of a path is refused, before it wrote and after, and what is there stays."""
    target.write("images/a.tar", [b"first"])
    with pytest.raises(Conflict, match=r"images/a\.tar exists already"):
        target.write("images/a.tar", [b"second"])

    def overtaken() -> Iterator[bytes]:
        yield b"slow"
        target.write("images/b.tar", [b"quick"])

    with pytest.raises(Conflict, match=r"images/b\.tar"):
        target.write("images/b.tar", overtaken())
    assert [(one.path, whole(target, one.path)) for one in target.list()] == [
        ("images/a.tar", b"first"),
        ("images/b.tar", b"quick"),
    ]


class Forgetful(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A file system that changes the last byte of everything it keeps."""

    protocol = "forgetful"
    store: dict[str, Any] = {}  # noqa: RUF012  # as the class above has it
    pseudo_dirs = [""]  # noqa: RUF012  # the same

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("forgetful://", "memory://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        content = bytes(super().cat_file(path, start=start, end=end, **more))
        return content[:-1] + b"?"


def test_bytes_that_are_read_back_differently_never_become_visible() -> None:
    """What a place does not keep as it was written is an error, and nothing is left there."""
    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    Forgetful().mkdir("/tape")
    target = open_archive("forgetful://tape")
    with pytest.raises(Damaged, match=r"were read back, 5 with"):
        target.write("images/a.tar", [b"hello"])
    assert list(target.list()) == []
    assert [name for name in Forgetful.store if "a.tar" in name] == []


def test_a_directory_must_be_there(tmp_path: Path) -> None:
    """A mount that is not there is no empty archive, and is not made up."""
    target = open_archive(f"file://{tmp_path}/away")
    for ask in (
        target.size,
        target.open,
        lambda path: target.write(path, [b"x"]),
        lambda path: list(target.list(path)),
    ):
        with pytest.raises(NotFound, match="away: no such directory"):
            ask("a.tar")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound, match="away: no such directory"):
        Inbox(f"file://{tmp_path}/away").deliveries()


def test_a_bucket_must_be_there(endpoint: Endpoint) -> None:
    """A bucket that is not there is no empty archive."""
    target = open_archive("s3://no-such-bucket-here/tape", endpoint)
    with pytest.raises(NotFound):
        list(target.list())
    with pytest.raises(NotFound):
        target.size("a.tar")


def test_an_archive_asks_nothing_before_it_is_used() -> None:
    """A place that does not answer keeps nobody from working without it; one that cannot be is refused at once."""
    assert open_archive("sftp://robot:secret@tape.example/data/").name == "sftp://tape.example/data"
    assert open_archive("s3://b/tape", Endpoint(url="http://127.0.0.1:9")).name == "s3://b/tape"
    with pytest.raises(Misconfigured, match="tapes:// is not a protocol of fsspec"):
        open_archive("tapes://x")


def test_sftp_needs_its_library() -> None:
    """Where the library for a place is missing, the message names it, and no secret."""
    if fsspec.utils.get_protocol("sftp://x") and _has("paramiko"):
        pytest.skip("paramiko is installed")
    with pytest.raises(Misconfigured, match="paramiko") as refused:
        open_archive("sftp://robot:secret@tape.example/data").size("a.tar")
    assert "secret" not in str(refused.value)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path: Path) -> None:
    """Leftovers of a path go when it is written again, not before a day has passed, and those of others stay."""
    target = open_archive(f"file://{tmp_path}")
    for name in (".a.tar.part-old", ".a.tar.part-new", ".b.tar.part-old"):
        (tmp_path / name).write_bytes(b"half")
        if name.endswith("old"):
            os.utime(tmp_path / name, (0, 0))
    target.write("a.tar", [b"whole"])
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", ".a.tar.part-new", ".b.tar.part-old"}
    assert [one.path for one in target.list()] == ["a.tar"]


def test_a_file_that_shrinks_while_it_is_read_is_damaged(tmp_path: Path) -> None:
    """Whoever reads an archive gets all the bytes that were there, or an error."""
    target = open_archive(str(tmp_path))
    target.write("a.tar", [bytes(3 << 20)])
    chunks = target.open("a.tar")
    next(chunks)
    os.truncate(tmp_path / "a.tar", 1000)
    with pytest.raises(Damaged, match=r"ends after 1,048,576 bytes, before 3,145,728"):
        list(chunks)


def test_manifests_are_kept_beside_the_tars(target: Archive) -> None:
    """The same manifest may be put twice; another under the same job is a conflict; all are read again."""
    target.put_manifest("job-1", said())
    target.put_manifest("job-1", said())
    target.put_manifest("job-2", said(archives=[]))
    with pytest.raises(Conflict):
        target.put_manifest("job-1", said(archives=[]))
    assert list(target.manifests()) == [("manifests/job-1.json", said()), ("manifests/job-2.json", said(archives=[]))]


# ---------------------------------------------------------------------------------------------------------------- tars

LONG = "./" + "a-name-of-more-than-one-hundred-characters-" * 4 + "1.tar"
FORMATS = {"plain": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def packed(names: dict[str, bytes], *, form: int) -> bytes:
    """Write a tar as the archiver does: the directory itself, then its files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        top = tarfile.TarInfo(".")
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("./link")
        link.type, link.linkname = tarfile.SYMTYPE, "l" * 120 if form != tarfile.USTAR_FORMAT else "l"
        tar.addfile(link)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_found_by_headers_alone(target: Archive, form: str) -> None:
    """Plain, GNU and PAX tars, names of more than 100 characters and other alphabets: each slice is the member."""
    names = {"./a.tar": os.urandom(1000), "./empty.tar": b"", "./z.tar": os.urandom(70_000)}
    if form != "plain":
        names |= {LONG: os.urandom(513), "./ä €.tar": b"1"}
    target.write("t.tar", [packed(names, form=FORMATS[form])])
    found = list(target.members("t.tar"))
    assert [(one.name, one.size) for one in found] == [(name, len(content)) for name, content in names.items()]
    for member in found:
        piece = b"".join(target.open("t.tar", start=member.offset, length=member.size))
        assert piece == names[member.name]


def test_members_are_found_with_few_bytes(tmp_path: Path) -> None:
    """Of a member that is large, nothing but the header is read."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar, (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        info = tarfile.TarInfo("./big.tar")
        tar.addfile(info)
    size = 0

    def read(start: int, length: int) -> bytes:
        nonlocal size
        size += length
        with (tmp_path / "t.tar").open("rb") as file:
            file.seek(start)
            return file.read(length)

    header = tarfile.TarInfo("./big.tar")
    header.size = 1 << 30
    with (tmp_path / "t.tar").open("wb") as file:
        file.write(header.tobuf())
        file.seek(1 << 30, os.SEEK_CUR)
        file.write(bytes(1024))
    found = list(archive.tar.members(read, (tmp_path / "t.tar").stat().st_size))
    assert found == [("./big.tar", 1 << 30, 512, "")]
    assert size == 1024


def test_lesson_d10_a_tar_that_was_cut_is_damaged_wherever_it_was_cut(tmp_path: Path) -> None:
    """Members that are whole are told, then the damage; only a tar with its end passes."""
    content = packed({"./a.tar": b"a" * 700, LONG: b"b" * 513, "./c.tar": b"c"}, form=tarfile.GNU_FORMAT)
    names = [one.name for one in archive.tar.members(lambda start, size: content[start : start + size], len(content))]
    assert names == ["./a.tar", LONG, "./c.tar"]
    end = len(content.rstrip(b"\0")) // 512 * 512 + 1024  # one zero block ends a tar
    for cut in range(0, end, 64):
        part = content[:cut]
        told: list[archive.TarMember] = []
        with pytest.raises(Damaged):
            told.extend(archive.tar.members(lambda start, size, part=part: part[start : start + size], cut))  # type: ignore[misc]
        assert told == [] or [one.name for one in told] == names[: len(told)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends after 0 bytes, in or before the header at 0"),
        (b"no tar" * 200, "header at 0: invalid header"),
        (b"\x1f\x8b" + bytes(2000), "header at 0: "),
        (said().ljust(1024), "header at 0: "),
    ],
)
def test_what_is_no_tar_is_damaged(content: bytes, reason: str) -> None:
    """A file that is something else, compressed or empty is told apart from an empty tar."""
    with pytest.raises(Damaged, match=reason):
        list(archive.tar.members(lambda start, size: content[start : start + size], len(content)))
    assert list(archive.tar.members(lambda _, size: bytes(size), 1024)) == []


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_files_and_links_of_gnu_tar(tmp_path: Path, form: str) -> None:
    """A hard link is the file that it names; a sparse file is listed in full, told as unsupported, never as damaged."""
    (tmp_path / "a.tar").write_bytes(b"a" * 700)
    (tmp_path / "b.tar").hardlink_to(tmp_path / "a.tar")
    with (tmp_path / f"{'long' * 30}.tar").open("wb") as holes:
        holes.write(b"x" * 4096)
        holes.truncate(1 << 20)
    names = [f"./{name}" for name in ("a.tar", "b.tar", f"{'long' * 30}.tar")]
    subprocess.run(["tar", f"--format={form}", "-S", "-cf", "t.tar", *names], cwd=tmp_path, check=True)
    content = (tmp_path / "t.tar").read_bytes()
    first, second, holed = archive.tar.members(lambda start, size: content[start : start + size], len(content))
    assert (first.name, first.size, second) == (names[0], 700, first._replace(name=names[1]))
    assert content[second.offset :][:700] == b"a" * 700
    assert (holed.name, holed.size) == (names[2], 1 << 20)
    with pytest.raises(Rejected, match=r"stored as a sparse file \(tar -S\); not supported"):
        holed.readable()


def test_sparse_files_and_strange_members() -> None:
    """Bytes with holes are in more than one piece; what follows them is found all the same."""
    buffer = io.BytesIO()
    sparse = bytearray(tarfile.TarInfo("./holes.tar").tobuf(tarfile.GNU_FORMAT))
    sparse[156:157], sparse[124:136], sparse[482] = tarfile.GNUTYPE_SPARSE, b"00000000005\0", 1
    sparse[148:156] = b"        "
    sparse[148:156] = f"{sum(sparse):06o}\0 ".encode()
    buffer.write(bytes(sparse) + bytes(512) + b"holes".ljust(512, b"\0"))
    device = tarfile.TarInfo("./device")
    device.type = tarfile.CHRTYPE
    last = tarfile.TarInfo("./last.tar")
    last.size = 4
    buffer.write(device.tobuf() + last.tobuf() + b"last".ljust(512, b"\0") + bytes(1024))
    content = buffer.getvalue()
    found = list(archive.tar.members(lambda start, size: content[start : start + size], len(content)))
    assert [(one.name, content[one.offset :][: one.size]) for one in found[1:]] == [("./last.tar", b"last")]
    assert (found[0].name, bool(found[0].unsupported)) == ("./holes.tar", True)


# --------------------------------------------------------------------------------------------------------------- inbox


def test_deliveries_are_the_json_files_of_the_inbox(letterbox: Inbox, place: tuple[str, Endpoint | None]) -> None:
    """By name; not what somebody is writing, what was handled, or what is something else."""
    for name in ("b.json", "a [1].json", ".c.json", "d.json.part", "e.txt", "accepted/f.json", "quarantine/g.json"):
        drop(place, name, name.encode())
    deliveries = letterbox.deliveries()
    assert [(one.name, one.fault) for one in deliveries] == [("a [1].json", None), ("b.json", None)]
    assert [letterbox.read(one) for one in deliveries] == [b"a [1].json", b"b.json"]
    assert all(one.modified and abs(datetime.now(UTC) - one.modified) < timedelta(minutes=5) for one in deliveries)


def test_files_move_and_none_is_ever_replaced_or_deleted(letterbox: Inbox, place: tuple[str, Endpoint | None]) -> None:
    """A file of a name that was handled before lies beside it; one that somebody else moved is fine."""
    for content in (b"1", b"2", b"2"):
        drop(place, "a.json", content)
        letterbox.done("a.json")
    drop(place, "b.json", b"3")
    letterbox.refuse("b.json")
    letterbox.refuse("b.json")
    letterbox.done("never.json")
    assert letterbox.deliveries() == []
    assert sorted(content for _, content in letterbox.accepted()) == [b"1", b"2", b"2"]
    assert "accepted/a.json" in dict(letterbox.accepted())
    assert [one.path for one in open_archive(*place).list("quarantine/")] == ["quarantine/b.json"]


def test_a_move_that_was_cut_off_between_its_two_names_is_finished(tmp_path: Path) -> None:
    """The same file is in the inbox and in accepted/: it is no second one."""
    letterbox = Inbox(tmp_path.as_uri())
    (tmp_path / "accepted").mkdir()
    (tmp_path / "a.json").write_bytes(b"1")
    os.link(tmp_path / "a.json", tmp_path / "accepted" / "a.json")
    letterbox.done("a.json")
    assert letterbox.deliveries() == []
    assert list(letterbox.accepted()) == [("accepted/a.json", b"1")]


def test_a_delivery_that_vanished_is_unsettled(letterbox: Inbox, place: tuple[str, Endpoint | None]) -> None:
    """Whoever lists and reads may be overtaken by somebody who moves."""
    drop(place, "a.json", b"1")
    (delivery,) = letterbox.deliveries()
    letterbox.done("a.json")
    drop(place, "b.json", b"1")
    with pytest.raises(Unsettled, match=r"a\.json vanished from the inbox"):
        letterbox.read(delivery)


def test_what_is_no_regular_file_says_so(tmp_path: Path) -> None:
    """Links and FIFOs are not read, but are told, and can be moved; directories are left alone."""
    (tmp_path / "real").write_bytes(b"{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real")
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "directory.json").mkdir()
    inbox = Inbox(f"file://{tmp_path}")
    assert {one.name: one.fault for one in inbox.deliveries()} == {
        "dangling.json": "a link, not a regular file",
        "link.json": "a link, not a regular file",
        "pipe.json": "no file, not a regular file",
    }
    for delivery in inbox.deliveries():
        inbox.refuse(delivery.name)
    assert inbox.deliveries() == []
    assert (tmp_path / "quarantine" / "link.json").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"{}"


def test_a_delivery_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    """Just enough of it is read for `parse` to refuse it."""
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    (delivery,) = Inbox(str(tmp_path)).deliveries()
    content = Inbox(str(tmp_path)).read(delivery)
    assert len(content) == archive.CAP + 1
    with pytest.raises(Rejected, match="more than"):
        parse(content)
