"""Announcements: both dialects, what is refused and why, finding event files, object keys."""

import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plateway import bench, events, instruments, keys, names
from plateway.bench import Sighting
from plateway.errors import Rejected, Unsettled
from plateway.events import ImagingEvent
from plateway.folder import File
from plateway.instruments import IMAGES, Instrument
from tests.soak import SOAK

PRINCE = Instrument(name="prince", root=Path("bench/prince"))
AMSTERDAM = Instrument(name="prince", root=Path("bench/prince"), timezone=ZoneInfo("Europe/Amsterdam"))

ID = "2f1c5d0e-8a4b-4c3d-9e2f-1a2b3c4d5e6f"
TIMESTEP: dict[str, Any] = {
    "timestep_id": ID,
    "plate": 1,
    "cross_date": "2000-01-01",
    "position": 7,
    "timestamp": "2000-01-02T03:04:05+00:00",
    "img_count": 3,
    "img_dir": "20000102_0304",
}
IMAGING: dict[str, Any] = {
    "ref_id": ID,
    "experiment_id": "test-id",
    "timestamp": "2001-01-01T00:00:00Z",
    "type": "stitch",
    "system": "prince",
    "local_path": "a1b2c3",
    "img_count": 1,
    "metadata": {"application": {"application": "mock-prince"}},
}
DIALECTS = {"timestep": TIMESTEP, "imaging": IMAGING}
GONE = object()


def said(base: dict[str, Any], **changes: Any) -> bytes:
    """Write an announcement with some fields changed, added or gone."""
    fields = {**base, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not GONE}).encode()


def reason(content: bytes, instrument: Instrument = PRINCE) -> str:
    """Return why an announcement is refused."""
    with pytest.raises(Rejected) as refusal:
        events.parse(content, instrument)
    return str(refusal.value)


def timestep(**changes: Any) -> ImagingEvent:
    return events.parse(said(TIMESTEP, **changes), PRINCE)


def imaging(**changes: Any) -> ImagingEvent:
    return events.parse(said(IMAGING, **changes), PRINCE)


# Both dialects


def test_a_timestep_is_read_whole() -> None:
    """Every field of DLM v1 arrives, and the contract's experiment follows from cross date and plate."""
    assert timestep() == ImagingEvent(
        id=UUID(ID),
        system="prince",
        kind="stitch",
        experiment="20000101_001",
        plate=1,
        timestamp=datetime(2000, 1, 2, 3, 4, 5, tzinfo=UTC),
        path="20000102_0304",
        image_count=3,
        metadata={"plate": 1, "cross_date": "2000-01-01", "position": 7},
    )


def test_an_imaging_event_is_read_whole() -> None:
    """Every field of DLM v2 arrives."""
    assert imaging() == ImagingEvent(
        id=UUID(ID),
        system="prince",
        kind="stitch",
        experiment="test-id",
        plate=None,
        timestamp=datetime(2001, 1, 1, tzinfo=UTC),
        path="a1b2c3",
        image_count=1,
        metadata={"application": {"application": "mock-prince"}},
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_count": 3, "img_count": GONE},
        {"path": "20000102_0304", "img_dir": GONE},
        {"image_count": 3, "path": "20000102_0304"},
        {"image_count": 3, "img_count": GONE, "path": "20000102_0304/", "img_dir": GONE},
        {"experiment_id": "20000101_001", "event_type": "stitch", "system": "prince"},
        {"timestamp": "2000-01-02T04:04:05+01:00"},
        {"timestep_id": ID.upper()},
        {"metadata": {}},
        {"metadata": "{}"},
        {"metadata": {"plate": 1}},
    ],
)
def test_every_spelling_has_the_same_digest(changes: dict[str, Any]) -> None:
    """README and code of DLM v1 say the same thing with different words."""
    assert timestep(**changes).digest == timestep().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"timestep_id": ID.replace("2f", "3f")},
        {"plate": 2, "experiment_id": "20000101_001"},
        {"position": 8},
        {"timestamp": "2000-01-02T03:04:06Z"},
        {"img_count": 4},
        {"img_dir": "elsewhere"},
        {"event_type": "video"},
        {"experiment_id": "another"},
        {"metadata": {"gain": 1}},
        {"note": "new"},
    ],
)
def test_other_content_has_another_digest(changes: dict[str, Any]) -> None:
    """Whatever is announced differently is told apart."""
    assert timestep(**changes).digest != timestep().digest


@pytest.mark.parametrize(
    ("base", "field"),
    [(base, field) for base in (TIMESTEP, IMAGING) for field in base],
    ids=lambda value: str(value)[:20],
)
def test_a_missing_field_is_named_or_has_a_default(base: dict[str, Any], field: str) -> None:
    """Without any one field an announcement is refused by its name, unless the dialect lets it be left out."""
    content = said(base, **{field: GONE})
    spelt = {"img_count": "img_count or image_count", "img_dir": "img_dir or path"} if base is TIMESTEP else {}
    if field in {"timestep_id", "ref_id"}:
        assert reason(content) == "neither timestep_id nor ref_id"
    elif field in {"type", "system", "metadata"}:
        event = events.parse(content, PRINCE)
        assert (event.kind, event.system) == ("stitch", "prince")
    else:
        assert reason(content) == f"{spelt.get(field, field)}: missing"


@pytest.mark.parametrize("base", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("wrong", [None, True, 1.5, [], {}, [1], -3_000_000_000, 10**30], ids=repr)
@pytest.mark.parametrize("field", sorted(TIMESTEP.keys() | IMAGING.keys()))
def test_a_wrong_type_is_refused_by_name(base: dict[str, Any], field: str, wrong: Any) -> None:
    """No field takes a value of another type: nothing is converted on the way."""
    if field not in base or (field == "metadata" and wrong == {}):
        return
    refusal = reason(said(base, **{field: wrong}))
    assert refusal.startswith(field), refusal
    assert refusal.endswith(("is not a text", "is not an object")) or "is not a whole number" in refusal


@pytest.mark.parametrize("base", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("value", [None, True, 1.5, "text", [1], {"a": 1}], ids=repr)
def test_an_unknown_field_joins_the_metadata(base: dict[str, Any], value: Any) -> None:
    """What an instrument says beyond the dialect is kept."""
    assert events.parse(said(base, humidity=value), PRINCE).metadata["humidity"] == value


@pytest.mark.parametrize("base", DIALECTS.values(), ids=DIALECTS)
def test_metadata_may_be_wrapped_in_a_string(base: dict[str, Any]) -> None:
    """Redis made strings of objects; both mean the same."""
    plain = events.parse(said(base, metadata={"camera": {"gain": 1.5}}), PRINCE)
    wrapped = events.parse(said(base, metadata='{"camera": {"gain": 1.5}}'), PRINCE)
    assert plain == wrapped
    assert plain.digest == wrapped.digest


@pytest.mark.parametrize("kind", ["stitch", "video", "overview"])
def test_both_dialects_know_all_kinds(kind: str) -> None:
    """Images, videos and overviews come in both dialects."""
    assert (timestep(event_type=kind).kind, imaging(type=kind).kind) == (kind, kind)


def test_an_event_without_images_is_accepted() -> None:
    """An instrument may announce zero images."""
    assert (timestep(img_count=0).image_count, imaging(img_count=0).image_count) == (0, 0)


def test_the_largest_numbers_pass() -> None:
    """Numbers go up to what every database takes."""
    event = timestep(plate=2**31 - 1, img_count=2**31 - 1, position=-1)
    assert (event.plate, event.image_count, event.metadata["position"]) == (2**31 - 1, 2**31 - 1, -1)


@pytest.mark.parametrize(
    ("brought", "plate"), [(12, 12), (0, 0), (True, None), ("12", None), (-1, None), (2**31, None)]
)
def test_an_imaging_event_may_tell_its_plate_in_the_metadata(brought: Any, plate: int | None) -> None:
    """A plate in the metadata makes the event findable by plate, when it is a whole number."""
    event = imaging(metadata={"plate": brought})
    assert (event.plate, event.metadata) == (plate, {"plate": brought})


@pytest.mark.parametrize(
    ("path", "plain"), [("a/b", "a/b"), ("./a", "a"), ("a/", "a"), ("a//./b", "a/b"), ("-x", "-x"), ("ü", "ü")]
)
def test_a_path_is_kept_in_its_plainest_form(path: str, plain: str) -> None:
    """Spellings of one place are one path."""
    assert imaging(local_path=path).path == plain


def test_an_event_is_frozen() -> None:
    """What was announced does not change."""
    with pytest.raises(ValueError, match="frozen"):
        timestep().plate = 2  # type: ignore[misc]


# Times


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2000-01-01T00:00:00Z", "2000-01-01T00:00:00+00:00"),
        ("2000-01-01t00:00:00z", "2000-01-01T00:00:00+00:00"),
        ("2000-01-01 00:00:00+00:00", "2000-01-01T00:00:00+00:00"),
        ("2000-01-01T00:00Z", "2000-01-01T00:00:00+00:00"),
        ("2024-01-01T00:30:00+02:00", "2023-12-31T22:30:00+00:00"),
        ("2024-01-01T00:30:00-0930", "2024-01-01T10:00:00+00:00"),
        ("2024-01-01T00:30:00.123456789Z", "2024-01-01T00:30:00.123456+00:00"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00+00:00"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59+00:00"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00"),
        ("2017-01-01T00:59:60.5+01:00", "2017-01-01T00:00:00+00:00"),
        ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00+00:00"),
    ],
)
def test_times_become_utc(text: str, utc: str) -> None:
    """Any zone is read, UTC is kept."""
    timestamp = imaging(timestamp=text).timestamp
    assert (timestamp.isoformat(), timestamp.tzinfo) == (utc, UTC)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2024-01-15T12:00:00", "2024-01-15T11:00:00+00:00"),
        ("2024-07-15T12:00:00", "2024-07-15T10:00:00+00:00"),
        ("2024-10-27T01:59:59", "2024-10-26T23:59:59+00:00"),
        ("2024-10-27T02:30:00", "2024-10-27T00:30:00+00:00"),  # shown twice: the first of the two
        ("2024-10-27T03:00:00", "2024-10-27T02:00:00+00:00"),
        ("2024-03-31T01:59:59", "2024-03-31T00:59:59+00:00"),
        ("2024-03-31T03:00:00", "2024-03-31T01:00:00+00:00"),
        ("2024-01-15T12:00:00Z", "2024-01-15T12:00:00+00:00"),  # said with a zone, the zone counts
    ],
)
def test_naive_times_are_placed_in_the_instruments_zone(text: str, utc: str) -> None:
    """A clock without a zone is understood where its zone is configured, over summer time too."""
    assert events.parse(said(IMAGING, timestamp=text), AMSTERDAM).timestamp.isoformat() == utc


def test_a_time_that_spring_skips_is_refused() -> None:
    """No clock of the zone ever showed it, so the configured zone is wrong."""
    assert reason(said(IMAGING, timestamp="2024-03-31T02:30:00"), AMSTERDAM) == (
        "timestamp: 2024-03-31T02:30:00 never was in Europe/Amsterdam: clocks went forward"
    )


# Keys


@pytest.mark.parametrize(
    ("changes", "arguments", "key"),
    [
        ({}, {}, "images/test-id/20010101/000000-2f1c5d0e.tar"),
        ({"type": "video"}, {}, "videos/test-id/20010101/000000-2f1c5d0e.tar"),
        ({"type": "overview"}, {}, "overview/test-id/20010101/000000-2f1c5d0e.tar"),
        ({"timestamp": "2024-01-01T00:30:00+02:00"}, {}, "images/test-id/20231231/223000-2f1c5d0e.tar"),
        ({"timestamp": "0099-01-02T00:00:00Z"}, {}, "images/test-id/00990102/000000-2f1c5d0e.tar"),
        ({}, {"revision": 2}, "images/test-id/20010101/000000-2f1c5d0e-r2.tar"),
        ({}, {"whole": True}, "images/test-id/20010101/000000-2f1c5d0e8a4b4c3d9e2f1a2b3c4d5e6f.tar"),
        (
            {"experiment_id": "Plaat 12 é"},
            {"revision": 11, "whole": True},
            "images/Plaat 12 é/20010101/000000-2f1c5d0e8a4b4c3d9e2f1a2b3c4d5e6f-r11.tar",
        ),
    ],
)
def test_a_key_follows_from_the_event(changes: dict[str, Any], arguments: dict[str, Any], key: str) -> None:
    """Kind, experiment, UTC time and id make the key; revisions have their own."""
    assert keys.event_key(imaging(**changes), **arguments) == key


def test_the_key_of_files_is_their_manifests() -> None:
    """The whole id makes it; from it follow the layout, the folder, and what the tar is called on tape."""
    event, other = imaging(), imaging(experiment_id="other", timestamp="2020-01-01T00:00:00Z")
    key = keys.event_key(event, revision=3, layout="files")
    assert key == f"images/{ID}-r3/metadata.json"
    assert keys.event_key(event, layout="files") == keys.event_key(other, layout="files", whole=True)
    assert (keys.layout_of(key), keys.files_folder(key), keys.tar_name(key)) == ("files", f"{ID}-r3", f"{ID}-r3.tar")


def test_what_is_an_image_is_said_by_the_instrument() -> None:
    """Its patterns choose the folder of a file; all JSON, and what might be a bundle, is none whatever they say."""
    place = keys.file_keys(f"images/{ID}-r2/metadata.json", instruments.image_matcher(("*.raw", "*.json", "*.tar")))
    kinds = {name: place(name).split("/")[0] for name in ("a/b.RAW", "a.tif", "x.json", "X.JSON", "b.tar")}
    assert kinds == {"a/b.RAW": "images"} | dict.fromkeys(("a.tif", "x.json", "X.JSON", "b.tar"), "waveforms")
    assert place("a/b.RAW") == f"images/{ID}-r2/a/b.RAW"


@pytest.mark.parametrize(
    "key",
    [
        f"images/{ID}/20010101/000000-2f1c5d0e.tar",
        f"videos/{ID}/metadata.json",
        f"images/{ID}/sub/metadata.json",
        f"images/{ID}-r0/metadata.json",
        f"images/{ID.upper()}/metadata.json",
        f"images/{ID}/metadata.json/",
        "images/exp/metadata.json",
        "",
    ],
)
def test_other_keys_are_no_manifests(key: str) -> None:
    """Bundles are told from files by the key alone, so nothing else may look like one of theirs."""
    assert (keys.layout_of(key), keys.files_folder(key)) == ("bundle", None)


@given(st.text(min_size=1, max_size=140))
def test_an_accepted_experiment_is_one_segment_of_a_key(name: str) -> None:
    """Whatever the experiment is called, its key has four segments and fits S3."""
    try:
        event = events.parse(said(IMAGING, experiment_id=name), PRINCE)
    except Rejected:
        return
    key = keys.event_key(event, revision=99, whole=True)
    assert [len(part) > 0 for part in key.split("/")] == [True] * 4
    assert key.isprintable()
    assert len(key.encode()) <= 256


# What is refused, each with its reason

TEXT = json.dumps(IMAGING)
LONG = "x" * 129
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON: expecting value at line 1 column 1"),
    "blank": (b" \n\t ", "not JSON: expecting value at line 2 column 3"),
    "newline": (b"\n", "not JSON: expecting value at line 2 column 1"),
    "half an object": (b'{"ref_id": ', "not JSON: expecting value at line 1 column 12"),
    "half a text": (b'{"ref_id": "2f1c', "not JSON: unterminated string starting at at line 1 column 12"),
    "half a name": (b'{"ref', "not JSON: unterminated string starting at at line 1 column 2"),
    "one brace": (b"{", "not JSON: expecting property name enclosed in double quotes at line 1 column 2"),
    "half a literal": (b'{"a": tru', "not JSON: expecting value at line 1 column 7"),
    "zero bytes": (b"\0" * 512, "not JSON: expecting value at line 1 column 1"),
    "zero bytes at the end": (TEXT.encode() + b"\0" * 8, f"not JSON: extra data at line 1 column {len(TEXT) + 1}"),
    "two objects": (TEXT.encode() * 2, f"not JSON: extra data at line 1 column {len(TEXT) + 1}"),
    "two lines": (b"{}\n{}", "not JSON: extra data at line 2 column 1"),
    "single quotes": (b"{'a': 1}", "not JSON: expecting property name enclosed in double quotes at line 1 column 2"),
    "bare name": (b"{a: 1}", "not JSON: expecting property name enclosed in double quotes at line 1 column 2"),
    "comment": (b"{} // done", "not JSON: extra data at line 1 column 4"),
    "no colon": (b'{"a" 1}', "not JSON: expecting ':' delimiter at line 1 column 6"),
    "no comma": (b'{"a": 1 "b": 2}', "not JSON: expecting ',' delimiter at line 1 column 9"),
    "control character in a text": (b'{"a": "x\ny"}', "not JSON: invalid control character at at line 1 column 9"),
    "wrong escape": (b'{"a": "\\x41"}', "not JSON: invalid \\escape at line 1 column 8"),
    "half an escape": (b'{"a": "\\u12"}', "not JSON: invalid \\uxxxx escape at line 1 column 9"),
    "leading zero": (b'{"a": 012}', "not JSON: expecting ',' delimiter at line 1 column 8"),
    "plus sign": (b'{"a": +1}', "not JSON: expecting value at line 1 column 7"),
    "hexadecimal": (b'{"a": 0x10}', "not JSON: expecting ',' delimiter at line 1 column 8"),
    "python": (b'{"a": None}', "not JSON: expecting value at line 1 column 7"),
    "yaml": (b"ref_id: x\n", "not JSON: expecting value at line 1 column 1"),
    "xml": (b"<event/>", "not JSON: expecting value at line 1 column 1"),
    "BOM": (b"\xef\xbb\xbf" + TEXT.encode(), "begins with a byte order mark"),
    "UTF-16": (TEXT.encode("utf-16"), "not UTF-8: byte 0xff at 0"),
    "UTF-16 big endian with BOM": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "not UTF-8: byte 0xfe at 0"),
    "UTF-16 without BOM": (
        TEXT.encode("utf-16-le"),
        "not JSON: expecting property name enclosed in double quotes at line 1 column 2",
    ),
    "UTF-32": (TEXT.encode("utf-32"), "not UTF-8: byte 0xff at 0"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8: byte 0xe9 at 7"),
    "overlong": (b'{"a": "\xc0\xaf"}', "not UTF-8: byte 0xc0 at 7"),
    "surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', "not UTF-8: byte 0xed at 7"),
    "beyond Unicode": (b'{"a": "\xf4\x90\x80\x80"}', "not UTF-8: byte 0xf4 at 7"),
    "half a character": (b'{"a": "\xc3', "not UTF-8: byte 0xc3 at 7"),
    "gzip": (b"\x1f\x8b\x08\x00", "not UTF-8: byte 0x8b at 1"),
    "lone high surrogate": (said(IMAGING, note="\ud800"), "a text holds half a surrogate pair"),
    "lone low surrogate": (said(IMAGING, note="\udc80"), "a text holds half a surrogate pair"),
    "surrogates in the wrong order": (said(IMAGING, note="\udc00\ud800"), "a text holds half a surrogate pair"),
    "lone surrogate in a name": (said(IMAGING, **{"\ud800": 1}), "a text holds half a surrogate pair"),
    "lone surrogate in the path": (said(IMAGING, local_path="a\ud800"), "a text holds half a surrogate pair"),
    "lone surrogate deep inside": (
        said(IMAGING, metadata={"a": [{"b": "\ud83d"}]}),
        "a text holds half a surrogate pair",
    ),
    "lone surrogate in wrapped metadata": (
        said(IMAGING, metadata='{"a": "\\ud800"}'),
        "metadata in a string: a text holds half a surrogate pair",
    ),
    "duplicate name": (b'{"ref_id": 1, "ref_id": 1}', '"ref_id": there twice'),
    "duplicate name, escaped": (b'{"ref_id": 1, "\\u0072ef_id": 2}', '"ref_id": there twice'),
    "duplicate empty name": (b'{"": 1, "": 2}', '"": there twice'),
    "duplicate name deep inside": (b'{"a": [{"b": 1, "b": 2}]}', '"b": there twice'),
    "duplicate name in wrapped metadata": (
        said(IMAGING, metadata='{"a": 1, "a": 1}'),
        'metadata in a string: "a": there twice',
    ),
    "duplicate long name": (
        json.dumps({"y" * 200: 1}).encode()[:-1] + b', "' + b"y" * 200 + b'": 2}',
        '"' + "y" * 76 + "...: there twice",
    ),
    "NaN": (b'{"a": NaN}', "NaN is not a number that JSON knows"),
    "Infinity": (b'{"a": Infinity}', "Infinity is not a number that JSON knows"),
    "-Infinity": (b'{"a": -Infinity}', "-Infinity is not a number that JSON knows"),
    "NaN alone": (b"NaN", "NaN is not a number that JSON knows"),
    "a number that becomes infinite": (b'{"a": 1e999}', "1e999 is not a number that JSON knows"),
    "a long number that becomes infinite": (
        b'{"a": -1' + b"0" * 400 + b".5}",
        "-1000000000000000000 is not a number that JSON knows",
    ),
    "NaN in wrapped metadata": (
        said(IMAGING, metadata='{"a": NaN}'),
        "metadata in a string: NaN is not a number that JSON knows",
    ),
    "too many digits": (b'{"a": ' + b"9" * 5000 + b"}", "a number of too many digits"),
    "33 lists": (b"[" * 33 + b"]" * 33, "nested deeper than 32"),
    "33 objects": (b'{"a":' * 33 + b"1" + b"}" * 33, "nested deeper than 32"),
    "33 levels of both": (b'{"a":[' * 16 + b"{}" + b"]}" * 16, "nested deeper than 32"),
    "100,000 lists": (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 32"),
    "100,000 open lists": (b"[" * 100_000, "nested deeper than 32"),
    "500,000 open objects": (b'{"":' * 200_000, "nested deeper than 32"),
    "deep wrapped metadata": (
        said(IMAGING, metadata="[" * 40 + "]" * 40),
        "metadata in a string: nested deeper than 32",
    ),
    "1 MiB and a byte": (TEXT.encode().ljust((1 << 20) + 1), "1048577 bytes: at most 1048576"),
    "a list": (b"[]", "an event: [] is not an object"),
    "a list of one": (f"[{TEXT}]".encode(), f"an event: {json.dumps([IMAGING])[:77]}... is not an object"),
    "a text": (b'"event"', 'an event: "event" is not an object'),
    "a number": (b"1", "an event: 1 is not an object"),
    "null": (b"null", "an event: null is not an object"),
    "true": (b"true", "an event: true is not an object"),
    "an empty object": (b"{}", "neither timestep_id nor ref_id"),
    "an object in a text": (json.dumps(TEXT).encode(), f"an event: {json.dumps(TEXT)[:77]}... is not an object"),
    "both ids": (said(IMAGING, timestep_id=ID), "both timestep_id and ref_id"),
    "names in capitals": (TEXT.upper().encode(), "neither timestep_id nor ref_id"),
}  # fmt: skip

UUIDS = {
    "not one": "event-12",
    "plain hex": ID.replace("-", ""),
    "braces": f"{{{ID}}}",
    "urn": f"urn:uuid:{ID}",
    "a digit short": ID[:-1],
    "a digit more": f"{ID}0",
    "a letter beyond f": ID.replace("f", "g"),
    "hyphens elsewhere": "2f1c5d0e8-a4b-4c3d-9e2f-1a2b3c4d5e6f",
    "a space before": f" {ID}",
    "a newline after": f"{ID}\n",
    "digits of another script": ID.replace("1", "\u0661"),
}
PATHS = {
    "absolute": ("/etc", 'path "/etc" is absolute'),
    "root": ("/", 'path "/" is absolute'),
    "two slashes": ("//server/share", 'path "//server/share" is absolute'),
    "parent": ("..", "path \"..\" climbs out with '..'"),
    "parent first": ("../aretha/1", "path \"../aretha/1\" climbs out with '..'"),
    "parent in between": ("a/../b", "path \"a/../b\" climbs out with '..'"),
    "parent last": ("a/..", "path \"a/..\" climbs out with '..'"),
    "parent after dots": ("./../b", "path \"./../b\" climbs out with '..'"),
    "parent with slashes": ("a//..//..//b", "path \"a//..//..//b\" climbs out with '..'"),
    "here": (".", 'path "." names nothing'),
    "here twice": ("././", 'path "././" names nothing'),
    "NUL": ("a\0b", 'path "a\\x00b" contains NUL'),
    "NUL to hide the rest": ("a\0/../../etc", 'path "a\\x00/../../etc" contains NUL'),
    "drive letter": ("C:/images", 'path "C:/images" is one of Windows: relative, with slashes'),
    "drive letter alone": ("c:", 'path "c:" is one of Windows: relative, with slashes'),
    "backslashes": ("a\\b", 'path "a\\\\b" is one of Windows: relative, with slashes'),
    "parent with backslashes": ("..\\..\\b", 'path "..\\\\..\\\\b" is one of Windows: relative, with slashes'),
    "share": ("\\\\server\\share", 'path "\\\\\\\\server\\\\share" is one of Windows: relative, with slashes'),
    "long component": ("x" * 256, f'path "{"x" * 80}" has a component of more than 255 bytes'),
    "long component in bytes": ("é" * 128, f'path "{"é" * 80}" has a component of more than 255 bytes'),
    "33 components": ("/".join("a" * 33), f'path "{"a/" * 32}a" has more than 32 components'),
    "the event files": ("events", 'path "events" is no place for images'),
    "below the event files": ("./events/images", 'path "./events/images" is no place for images'),
    "hidden": (".trash", 'path ".trash" is no place for images'),
    "below hidden": (".plateway/trash/1", 'path ".plateway/trash/1" is no place for images'),
    "three dots": (".../a", 'path ".../a" is no place for images'),
}  # fmt: skip
EXPERIMENTS = {
    "slash": ("a/b", "contains a slash"),
    "slash alone": ("/", "contains a slash"),
    "parent": ("..", "is no name"),
    "climbing": ("../b", "contains a slash"),
    "here": (".", "is no name"),
    "backslash": ("a\\b", "contains a slash"),
    "NUL": ("a\0", "contains characters that cannot be printed"),
    "newline": ("a\nb", "contains characters that cannot be printed"),
    "tab": ("a\tb", "contains characters that cannot be printed"),
    "escape": ("a\x1b[31mb", "contains characters that cannot be printed"),
    "delete": ("a\x7fb", "contains characters that cannot be printed"),
    "C1 control": ("a\x85b", "contains characters that cannot be printed"),
    "right to left": ("a\u202eb", "contains characters that cannot be printed"),
    "zero width": ("a\u200bb", "contains characters that cannot be printed"),
    "wide space": ("a\u3000b", "contains characters that cannot be printed"),
    "private use": ("a\ue000b", "contains characters that cannot be printed"),
    "space before": (" a", "begins or ends with a space"),
    "space after": ("a ", "begins or ends with a space"),
    "newline after": ("a\n", "begins or ends with a space"),
    "long": (LONG, "has more than 128 bytes"),
    "long in bytes": ("é" * 65, "has more than 128 bytes"),
}
TIMES = {
    "a day": "2024-01-01",
    "basic format": "20240101T000000Z",
    "week": "2024-W01-1T00:00:00Z",
    "words": "yesterday",
    "seconds in a text": "1704067200",
    "month 13": "2024-13-01T00:00:00Z",
    "day 30 of February": "2024-02-30T00:00:00Z",
    "day 29 of February": "2023-02-29T00:00:00Z",
    "hour 24": "2024-01-01T24:00:00Z",
    "leap second at another time": "2016-12-31T12:59:60Z",
    "leap second in another zone": "2016-12-31T23:59:60+01:00",
    "minute 60": "2024-01-01T00:60:00Z",
    "zone of 24 hours": "2024-01-01T00:00:00+24:00",
    "zone by name": "2024-01-01T00:00:00 CET",
    "zone in brackets": "2024-01-01T00:00:00+01:00[Europe/Amsterdam]",
    "no seconds after the point": "2024-01-01T00:00:00.Z",
    "year 0": "0000-01-01T00:00:00Z",
    "year 10000": "10000-01-01T00:00:00Z",
    "before the first year in UTC": "0001-01-01T00:00:00+01:00",
    "after the last year in UTC": "9999-12-31T23:59:59-01:00",
    "negative year": "-2024-01-01T00:00:00Z",
    "space before": " 2024-01-01T00:00:00Z",
    "newline after": "2024-01-01T00:00:00Z\n",
    "digits of another script": "\u0662\u0660\u0662\u0664-01-01T00:00:00Z",
    "American": "01/02/2024 00:00:00",
}
DAYS = {
    "with a time": "2000-01-01T00:00:00",
    "basic format": "20000101",
    "day first": "01-01-2000",
    "day 31 of April": "2000-04-31",
    "month 0": "2000-00-01",
    "year 0": "0000-01-01",
    "week": "2000-W01-1",
    "words": "today",
    "newline after": "2000-01-01\n",
    "digits of another script": "\u0662\u0660\u0660\u0660-01-01",
}
WHOLE = "is not a whole number from 0 to 2147483647"
FIELDS: dict[str, tuple[bytes, str]] = {
    "naive": (
        said(IMAGING, timestamp="2024-01-01T00:00:00"),
        "timestamp: 2024-01-01T00:00:00 has no time zone, and none is configured for the instrument",
    ),
    "seconds": (said(IMAGING, timestamp=1704067200), "timestamp: 1704067200 is not a text"),
    "seconds with a fraction": (said(TIMESTEP, timestamp=1704067200.5), "timestamp: 1704067200.5 is not a text"),
    "no timestamp": (said(TIMESTEP, timestamp=""), 'timestamp: "" is not a text'),
    "no experiment": (said(IMAGING, experiment_id=""), 'experiment_id: "" is not a text'),
    "no experiment in a timestep": (said(TIMESTEP, experiment_id=None), "experiment_id: null is not a text"),
    "no path": (said(IMAGING, local_path=""), 'local_path: "" is not a text'),
    "no path in a timestep": (said(TIMESTEP, img_dir=""), 'img_dir or path: "" is not a text'),
    "a list of paths": (said(TIMESTEP, img_dir=["a"]), 'img_dir or path: ["a"] is not a text'),
    "count in a text": (said(IMAGING, img_count="3"), f'img_count: "3" {WHOLE}'),
    "count with a fraction": (said(IMAGING, img_count=3.0), f"img_count: 3.0 {WHOLE}"),
    "negative count": (said(IMAGING, img_count=-1), f"img_count: -1 {WHOLE}"),
    "count is true": (said(TIMESTEP, img_count=True), f"img_count or image_count: true {WHOLE}"),
    "no count": (said(TIMESTEP, img_count=None), f"img_count or image_count: null {WHOLE}"),
    "count beyond": (said(IMAGING, img_count=2**31), f"img_count: 2147483648 {WHOLE}"),
    "plate in a text": (said(TIMESTEP, plate="1"), f'plate: "1" {WHOLE}'),
    "negative plate": (said(TIMESTEP, plate=-1), f"plate: -1 {WHOLE}"),
    "plate beyond": (said(TIMESTEP, plate=10**80), f"plate: 1{'0' * 76}... {WHOLE}"),
    "position with a fraction": (
        said(TIMESTEP, position=0.5),
        "position: 0.5 is not a whole number from -2147483647 to 2147483647",
    ),
    "counts that differ": (said(TIMESTEP, image_count=4), "img_count and image_count: 3 and 4"),
    "counts of two types": (said(TIMESTEP, image_count=3.0), "img_count and image_count: 3 and 3.0"),
    "counts, one true": (said(TIMESTEP, img_count=1, image_count=True), "img_count and image_count: 1 and true"),
    "paths that differ": (said(TIMESTEP, path="b"), 'img_dir and path: "20000102_0304" and "b"'),
    "v2 with the count of v1": (said(IMAGING, img_count=GONE, image_count=1), "img_count: missing"),
    "v2 with the path of v1": (said(IMAGING, local_path=GONE, img_dir="a"), "local_path: missing"),
    "unknown kind": (said(IMAGING, type="photo"), 'type: "photo" is none of stitch, video, overview'),
    "kind in capitals": (said(IMAGING, type="STITCH"), 'type: "STITCH" is none of stitch, video, overview'),
    "empty kind": (said(IMAGING, type=""), 'type: "" is not a text'),
    "unknown kind of timestep": (
        said(TIMESTEP, event_type="images"),
        'event_type: "images" is none of stitch, video, overview',
    ),
    "another system": (
        said(IMAGING, system="aretha"),
        "system: announced by \"aretha\" in the directory of 'prince'",
    ),
    "another system of timestep": (
        said(TIMESTEP, system="Prince"),
        "system: announced by \"Prince\" in the directory of 'prince'",
    ),
    "system is null": (said(IMAGING, system=None), "system: null is not a text"),
    "metadata is a list": (said(IMAGING, metadata=[1]), "metadata: [1] is not an object"),
    "metadata is null": (said(IMAGING, metadata=None), "metadata: null is not an object"),
    "metadata is a number": (said(TIMESTEP, metadata=5), "metadata: 5 is not an object"),
    "metadata is an empty text": (
        said(IMAGING, metadata=""),
        "metadata in a string: not JSON: expecting value at line 1 column 1",
    ),
    "metadata is words": (
        said(IMAGING, metadata="none"),
        "metadata in a string: not JSON: expecting value at line 1 column 1",
    ),
    "metadata is a wrapped list": (
        said(IMAGING, metadata="[1]"),
        "metadata in a string: metadata: [1] is not an object",
    ),
    "metadata is wrapped twice": (
        said(IMAGING, metadata='"{}"'),
        'metadata in a string: metadata: "{}" is not an object',
    ),
    "metadata contradicts": (said(TIMESTEP, metadata={"plate": 2}), '"plate": 1 and 2'),
    "metadata contradicts by type": (said(TIMESTEP, metadata={"plate": True}), '"plate": 1 and true'),
    "an unknown field contradicts": (
        said(IMAGING, application=1),
        '"application": {"application": "mock-prince"} and 1',
    ),
}  # fmt: skip


def _corpus() -> dict[str, tuple[bytes, str]]:
    """Collect all malformed announcements with their reasons."""
    corpus = {**FILES, **FIELDS}
    example = "2f1c5d0e-8a4b-4c3d-9e2f-1a2b3c4d5e6f"
    quote = partial(json.dumps, ensure_ascii=False)
    for base, field in ((TIMESTEP, "timestep_id"), (IMAGING, "ref_id")):
        for name, text in UUIDS.items():
            quoted = quote(text)
            corpus[f"{field}: {name}"] = (
                said(base, **{field: text}),
                f"{field}: {quoted} is not a UUID like {example}",
            )
    for base, field in ((TIMESTEP, "img_dir"), (TIMESTEP, "path"), (IMAGING, "local_path")):
        for name, (text, why) in PATHS.items():
            gone = {"img_dir": GONE} if field == "path" else {}
            corpus[f"{field}: {name}"] = (said(base, **gone, **{field: text}), why)
    for base in (TIMESTEP, IMAGING):
        for name, (text, why) in EXPERIMENTS.items():
            quoted = quote(text)
            shown = names.shown(quoted) if len(quoted) <= 80 else f"{quoted[:77]}..."
            corpus[f"{len(base)}-experiment: {name}"] = (
                said(base, experiment_id=text),
                f"experiment_id: {shown} {why}",
            )
    for name, text in TIMES.items():
        why = f"timestamp: {quote(text)} is not a time like 2024-05-17T09:30:00+02:00"
        corpus[f"timestamp: {name}"] = (said(IMAGING, timestamp=text), why)
    for name, text in DAYS.items():
        why = f"cross_date: {quote(text)} is not a day like 2024-05-17"
        corpus[f"cross_date: {name}"] = (said(TIMESTEP, cross_date=text), why)
    return corpus


CORPUS = _corpus()


@pytest.mark.parametrize("name", CORPUS)
def test_malformed_announcements_are_refused_with_the_exact_reason(name: str) -> None:
    """Nobody has to guess what is wrong with an event file."""
    content, why = CORPUS[name]
    assert reason(content) == why


def test_the_corpus_stays_large() -> None:
    """At least 150 ways to be malformed are covered."""
    assert len({content for content, _ in CORPUS.values()}) >= 150


def test_a_duplicate_among_many_names_is_found() -> None:
    """Looking for the name that is there twice does not take minutes."""
    names = ",".join(f'"{number:x}":0' for number in range(90_000))
    assert reason(f'{{{names},"0":1}}'.encode()) == '"0": there twice'


def test_32_levels_are_accepted() -> None:
    """The depth cap refuses the 33rd level, not the 32nd."""
    deep: Any = 1
    for _ in range(31):
        deep = [deep]
    assert imaging(deep=deep).metadata["deep"] == deep


def test_one_mebibyte_is_accepted() -> None:
    """The size cap refuses the byte after it."""
    assert events.parse(TEXT.encode().ljust(1 << 20), PRINCE) == imaging()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=1500 if SOAK else 500, deadline=None)
@given(st.binary() | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()))
def test_parse_raises_nothing_but_rejected_for_any_bytes(content: bytes) -> None:
    """Whatever lies in an event file, the batch goes on."""
    assert reason(content).isprintable()


@settings(max_examples=2500 if SOAK else 800, deadline=None)
@given(
    st.sampled_from(list(DIALECTS.values())),
    st.dictionaries(
        st.sampled_from(sorted(TIMESTEP.keys() | IMAGING.keys() | {"path", "image_count"})), JSON, max_size=3
    ),
    st.dictionaries(st.text(max_size=6), JSON, max_size=2),
)
def test_parse_accepts_or_says_why(base: dict[str, Any], changes: dict[str, Any], more: dict[str, Any]) -> None:
    """Nearly right announcements give an event that can be recorded, or a reason that can be shown."""
    content = json.dumps({**base, **more, **changes}).encode()
    try:
        event = events.parse(content, PRINCE)
    except Rejected as refusal:
        assert str(refusal).isprintable()
        assert len(str(refusal)) < 400
    else:
        assert ImagingEvent.model_validate(event.model_dump()) == event
        assert len(event.digest) == 64
        assert event.timestamp.utcoffset() == timedelta(0)


@settings(max_examples=1000 if SOAK else 500, deadline=None)
@given(st.integers(0, len(TEXT)), st.binary(max_size=3))
def test_a_damaged_announcement_never_raises_anything_else(at: int, garbage: bytes) -> None:
    """A file cut off or overwritten anywhere is accepted whole or refused."""
    content = TEXT.encode()[:at] + garbage + TEXT.encode()[at + len(garbage) :]
    try:
        assert events.parse(content, PRINCE).system == "prince"
    except Rejected:
        with pytest.raises(Rejected):
            events.parse(TEXT.encode()[: min(at, len(TEXT) - 1)], PRINCE)


# The images' own metadata.json


@pytest.mark.parametrize("content", [b'{"gain": 1}', b'"{\\"gain\\": 1}"', b' {"gain":1} \n'])
def test_a_sidecar_is_an_object_or_a_string_holding_one(content: bytes) -> None:
    """Both forms that DLM wrote are read."""
    assert events.sidecar(content) == {"gain": 1}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON: expecting value at line 1 column 1"),
        (b"[]", "metadata.json: [] is not an object"),
        (b"null", "metadata.json: null is not an object"),
        (b'"[]"', "metadata.json in a string: metadata.json: [] is not an object"),
        (b'{"a": 1, "a": 2}', '"a": there twice'),
        (b"\xff", "not UTF-8: byte 0xff at 0"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark"),
        (b'{"a": NaN}', "NaN is not a number that JSON knows"),
        (b" " * ((1 << 20) + 1), "1048577 bytes: at most 1048576"),
    ],
)
def test_a_wrong_sidecar_is_refused_with_the_reason(content: bytes, why: str) -> None:
    """The images' own metadata are read as strictly as the announcement."""
    with pytest.raises(Rejected) as refusal:
        events.sidecar(content)
    assert str(refusal.value) == why


# What counts as an image


def test_images_are_counted_by_name_in_any_case() -> None:
    """Every file goes along, but only images count."""
    names = [
        "a.tif",
        "Img/b.TIFF",
        "c.Png",
        "metadata.json",
        "d.tif.part",
        "notes.txt",
        "tif",
        ".tif",
        "e\n.jpg",
        "\udcff.h5",
    ]
    files = [File(name, 1, 1, 1, 1) for name in names]
    assert bench.count_images(files, IMAGES) == 6
    assert bench.count_images(files, ("*.TXT", "d.*")) == 2
    assert bench.count_images(files, ("Img/*",)) == 0
    assert bench.count_images(files, ()) == 0


# Event files on the disk


@pytest.fixture
def prince(tmp_path: Path) -> Instrument:
    """An instrument with an empty directory of event files."""
    (tmp_path / "prince" / "events").mkdir(parents=True)
    return Instrument(name="prince", root=tmp_path / "prince")


def test_systems_are_directories_with_events(tmp_path: Path, prince: Instrument) -> None:
    """Links, files, hidden directories and directories without events are no systems."""
    for name in ("zappa", "aretha", ".hidden"):
        (tmp_path / name / "events").mkdir(parents=True)
    (tmp_path / "staging").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "events").touch()
    (tmp_path / "bent").mkdir()
    (tmp_path / "bent" / "events").symlink_to(prince.root / "events")
    (tmp_path / "link").symlink_to(prince.root)
    (tmp_path / os.fsdecode(b"\xff") / "events").mkdir(parents=True)
    assert bench.list_systems(tmp_path) == ["aretha", "prince", "zappa"]


def test_a_bench_may_itself_be_a_link(tmp_path: Path, prince: Instrument) -> None:
    """Where the bench is, is the operator's word."""
    (tmp_path / "bench").symlink_to(tmp_path)
    assert bench.list_systems(tmp_path / "bench") == [prince.name]


def test_a_bench_that_is_not_there_is_no_empty_bench(tmp_path: Path) -> None:
    """A vanished mount is said, not taken for the absence of events."""
    with pytest.raises(Unsettled, match=r"^bench: no such file or directory$"):
        bench.list_systems(tmp_path / "bench")
    with pytest.raises(Unsettled, match=r"^events: no such file or directory$"):
        bench.scan(Instrument(name="bench", root=tmp_path))


def test_scan_lists_event_files_by_name(prince: Instrument) -> None:
    """Only ``*.json`` directly in ``events`` is an event file; what is nearly called so is at fault."""
    place = prince.root / "events"
    for name in ("2.json", "1-a.json", "1.json.part", "note.txt", ".json", "-x.json", "a\nb.json", "._2.json"):
        (place / name).write_bytes(b"12345")
    found = bench.scan(prince)
    near = found.pop(3)
    assert (near.name, near.fault) == ("1.json.part", "the name of an event file ends in .json")
    assert [sighting.name for sighting in found] == ["-x.json", ".json", "1-a.json", "2.json", "a\nb.json"]
    status = (place / "2.json").stat()
    assert found[3] == Sighting("2.json", 5, status.st_mtime_ns)
    assert [bench.read_event_file(prince, sighting) for sighting in found] == [b"12345"] * 5


def _fifo(place: Path) -> None:
    os.mkfifo(place)


def _socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(place.name)
    finally:
        os.chdir(here)


ODD: dict[str, Callable[[Path], None]] = {
    "a FIFO": _fifo,
    "a socket": _socket,
    "a directory": Path.mkdir,
    "a link": lambda place: place.symlink_to("/etc/passwd"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_sighted_with_its_fault(prince: Instrument, kind: str) -> None:
    """A link or FIFO among the event files is neither opened nor passed over."""
    ODD[kind](prince.root / "events" / "1.json")
    (sighting,) = bench.scan(prince)
    assert sighting.fault == f"{kind}, only regular files are accepted"
    with pytest.raises(Rejected, match=rf"^{kind}, only regular files are accepted$"):
        bench.read_event_file(prince, sighting)


def test_a_name_that_is_not_utf8_is_sighted_with_its_fault(prince: Instrument) -> None:
    """Its name can be recorded, so one odd file does not stop the batch."""
    (prince.root / "events" / os.fsdecode(b"\xff.json")).touch()
    (sighting,) = bench.scan(prince)
    assert (sighting.name, sighting.fault) == ("\\udcff.json", "its name is not UTF-8")
    with pytest.raises(Rejected, match=r"^its name is not UTF-8$"):
        bench.read_event_file(prince, sighting)


@pytest.mark.parametrize("kind", ODD)
def test_a_file_swapped_after_the_scan_is_not_followed(prince: Instrument, kind: str) -> None:
    """Between sighting and reading nothing can be slipped in."""
    place = prince.root / "events" / "1.json"
    place.write_bytes(b"{}")
    (sighting,) = bench.scan(prince)
    place.unlink()
    ODD[kind](place)
    with pytest.raises((Rejected, Unsettled)):
        bench.read_event_file(prince, sighting)


def test_a_file_that_grew_since_is_unsettled(prince: Instrument) -> None:
    """What is still being written is read later."""
    place = prince.root / "events" / "1.json"
    place.write_bytes(b"{}")
    (sighting,) = bench.scan(prince)
    place.write_bytes(b'{"a": 1}')
    with pytest.raises(Unsettled, match=r"^1.json: changed since it was sighted$"):
        bench.read_event_file(prince, sighting)
    place.unlink()
    with pytest.raises(Unsettled, match=r"^events/1.json: no such file or directory$"):
        bench.read_event_file(prince, sighting)


def test_a_huge_file_is_refused_unread(prince: Instrument) -> None:
    """A file of a gigabyte costs nothing."""
    place = prince.root / "events" / "1.json"
    place.touch()
    os.truncate(place, 1 << 30)
    (sighting,) = bench.scan(prince)
    with pytest.raises(Rejected, match=r"^1073741824 bytes: an event file has at most 1048576$"):
        bench.read_event_file(prince, sighting)


def test_a_linked_events_directory_is_not_entered(tmp_path: Path) -> None:
    """A system cannot borrow another one's announcements."""
    (tmp_path / "other").mkdir()
    (tmp_path / "events").symlink_to(tmp_path / "other")
    with pytest.raises(Rejected, match=r"^events: a link where a directory should be$"):
        bench.scan(Instrument(name="prince", root=tmp_path))


def test_a_file_called_events_is_no_directory(tmp_path: Path) -> None:
    """It announces nothing and shows nothing of what lies beside it."""
    (tmp_path / "events").touch()
    (tmp_path / "1.json").touch()
    with pytest.raises(Rejected, match=r"^events: a file where a directory should be$"):
        bench.scan(Instrument(name="prince", root=tmp_path))
