"""What a bundle promises: reproducible, readable by any tar, laid out before a byte is read, and proof of itself."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plateway import bundle, checksums, folder
from plateway.bundle import (
    Packed,
    Packing,
    plan,
    read_manifest,
    walk,
)
from plateway.checksums import part_size
from plateway.errors import Conflict, Damaged, Unsettled
from plateway.folder import File
from plateway.names import shown

MIB = 1 << 20
HEAD: dict[str, Any] = {
    "ref_id": "2f1c6a52-6a0e-4a57-8f0e-8f3d0c1a2b3c",
    "experiment_id": "20260101_012",
    "timestamp": "2026-01-01T12:00:00+00:00",
    "type": "stitch",
    "system": "prince",
    "schema_version": "1a1",
    "metadata": {"plate": 12, "camera": {"gain": 1.5, "model": "é"}},
}
INVALID = os.fsdecode(b"\xff\x80 not utf-8.tif")
CONTENTS = {
    "Img_r01_c01.tif": bytes(range(256)) * 9,
    "Img/nested/deep.tif": b"deep",
    "empty.png": b"",
    "block.tif": b"b" * 512,
    "-leading.tif": b"dash",
    "line\nbreak.tif": b"newline",
    "blue é ü 板.tif": b"unicode",
    "e\u0301.tif": b"NFD",
    "\u00e9.tif": b"NFC",
    "Case.tif": b"upper",
    "case.tif": b"lower",
    "x" * 255: b"255 bytes",
    "y" * 253 + "é": b"255 bytes of unicode",
    "/".join(["d" * 60] * 5): b"a long path",
    "l" * 98: b"name of exactly 100 bytes",
    "l" * 99: b"name of 101 bytes",
    " blank ": b"blanks",
    INVALID: b"invalid",
    "metadata.json": b'{"from": "the instrument"}',
}


GOLDEN = "4f4a5137d265de2398acf0ac77d5323a2ff1b50daeebf316bd3e2ab24f6a28e8"  # of CONTENTS


def file(name: str, size: int, *, mtime_ns: int = 1_767_268_800_123_456_789) -> File:
    return File(name=name, size=size, mtime_ns=mtime_ns, inode=1, links=1)


def files(contents: Mapping[str, bytes]) -> list[File]:
    return [file(name, len(content)) for name, content in contents.items()]


def packing(contents: Mapping[str, bytes], **how: Any) -> Packing:
    return Packing(plan(files(contents), HEAD), lambda file: iter([contents[file.name]]), **how)


def pack(contents: Mapping[str, bytes]) -> bytes:
    return b"".join(packing(contents))


def inside(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what the members will be called."""
    return {bundle._name(name, contents): content for name, content in contents.items()}


def test_layout_is_known_before_anything_is_read() -> None:
    """Size, offsets and the manifest's place follow from names and sizes alone."""
    layout = plan(files(CONTENTS), HEAD)
    whole = pack(CONTENTS)
    assert len(whole) == layout.size
    for slot in layout.slots:
        assert whole[slot.offset :][: slot.file.size] == CONTENTS[slot.file.name]
    manifest = read_manifest(whole[layout.manifest_offset :][: layout.manifest_size])
    assert [(member.name, member.offset) for member in manifest.members] == [(s.name, s.offset) for s in layout.slots]


def test_what_was_packed() -> None:
    """What is told of a bundle is true of its bytes."""
    packed: list[Packed] = []
    whole = b"".join(packing(CONTENTS, seal=packed.append))
    (told,) = packed
    content = whole[told.manifest_offset :][: told.manifest_size]
    assert (told.size, told.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert (told.etag, told.part_size) == (hashlib.md5(whole).hexdigest(), 8 * MIB)
    assert (told.member_count, told.manifest_sha256) == (len(CONTENTS), hashlib.sha256(content).hexdigest())
    for member in told.members:
        assert hashlib.sha256(whole[member.offset :][: member.size]).hexdigest() == member.sha256


def test_manifest_keeps_the_fields_it_was_given() -> None:
    """The manifest is JSON with the event's fields in their order, then the files, then the seal."""
    layout = plan(files(CONTENTS), HEAD)
    content = pack(CONTENTS)[layout.manifest_offset :][: layout.manifest_size]
    told = json.loads(content)
    assert list(told) == [*HEAD, "files", "sealed"]
    assert {key: told[key] for key in HEAD} == HEAD
    assert told["files"][0] == {
        "name": " blank ",
        "size": 6,
        "sha256": hashlib.sha256(b"blanks").hexdigest(),
        "offset": 512,
    }
    assert read_manifest(content).head == HEAD


def test_seal_is_of_all_bytes_before_it() -> None:
    """The digest that ends the manifest is of every byte of the bundle before that digest."""
    whole = pack(CONTENTS)
    sealed = walk([whole]).manifest.sealed
    assert hashlib.sha256(whole[: whole.rindex(sealed.encode())]).hexdigest() == sealed


def test_metadata_of_the_folder_gives_way() -> None:
    """The folder's own metadata.json is kept under the first free name, which says where it came from."""
    taken = {"metadata.json": b"{}", "source-metadata.json": b"1", "source-metadata-2.json": b"2"}
    (member,) = [member for member in walk([pack(taken)]).manifest.members if member.source]
    assert (member.name, member.source) == ("source-metadata-3.json", "metadata.json")
    (member,) = walk([pack({"metadata.json": b"{}"})]).manifest.members
    assert (member.name, member.source, member.size) == ("source-metadata.json", "metadata.json", 2)
    (member,) = walk([pack({"Img/metadata.json": b"{}"})]).manifest.members
    assert (member.name, member.source) == ("Img/metadata.json", None)


def in_steps(step: int, file: File) -> Iterator[bytes]:
    return (CONTENTS[file.name][at : at + step] for at in range(0, file.size, step))


def test_same_files_same_bytes() -> None:
    """Neither the order of the files, nor how they are read, nor the order of the metadata makes a difference."""
    whole = pack(CONTENTS)
    generator = random.Random(1)
    for _ in range(20):
        shuffled = generator.sample(files(CONTENTS), len(CONTENTS))
        head = {**HEAD, "metadata": dict(reversed(HEAD["metadata"].items()))}
        step = generator.randint(1, 300)
        assert b"".join(Packing(plan(shuffled, head), partial(in_steps, step))) == whole


def test_bytes_are_the_same_for_ever() -> None:
    """The format does not drift: bundles of other versions and machines compare equal."""
    assert hashlib.sha256(pack(CONTENTS)).hexdigest() == GOLDEN


def test_members_are_plain() -> None:
    """Members lie under ./ in byte order, owned by nobody in particular, with the file's time in whole seconds."""
    with tarfile.open(fileobj=io.BytesIO(pack(CONTENTS)), errors="surrogateescape") as tar:
        members = tar.getmembers()
    names = [f"./{name}" for name in sorted(inside(CONTENTS), key=os.fsencode)]
    assert [member.name for member in members] == [*names, "./metadata.json"]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members} == {(0, 0, "", "", 0o644, b"0")}
    assert {member.mtime for member in members[:-1]} == {1_767_268_800}


@pytest.mark.parametrize("mtime", [0, -1, -(10**9), 1 << 33, 253_402_300_799])
def test_any_time_is_kept(mtime: int) -> None:
    """Times before 1970 and after 2242 are kept too, where ustar has no room for them."""
    packing = Packing(plan([file("a", 1, mtime_ns=mtime * 10**9 + 7)], HEAD), lambda _: [b"1"])
    whole = b"".join(packing)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert tar.getmembers()[0].mtime == mtime
    assert walk([whole]).size == packing.layout.size


def tree(root: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(0, 1_767_268_800_987_654_321))


def found(root: Path) -> dict[bytes, tuple[bytes, int]]:
    """Return the exact names, bytes and whole seconds of what lies there."""
    paths = [Path(place) / name for place, _, names in os.walk(root) for name in names]
    return {os.fsencode(path.relative_to(root)): (path.read_bytes(), int(path.stat().st_mtime)) for path in paths}


@pytest.fixture
def event(tmp_path: Path) -> Path:
    """An event's folder on a disk with every odd name there is."""
    tree(tmp_path / "event", CONTENTS)
    return tmp_path


def from_disk(root: Path) -> bytes:
    with folder.enter(root, "event") as images:
        return b"".join(Packing(plan(images.files(), HEAD), images.read))


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_gnu_tar_restores_identical_files(event: Path, locale: str) -> None:
    """GNU tar extracts the very same names and bytes, whatever the locale, and finds nothing wrong."""
    out = event / "out"
    out.mkdir()
    whole = from_disk(event)
    done = subprocess.run(
        ["tar", "-x", "-C", out], input=whole, env={**os.environ, "LC_ALL": locale}, capture_output=True, check=True
    )
    expected = {os.fsencode(name): (content, 1_767_268_800) for name, content in inside(CONTENTS).items()}
    restored = found(out)
    assert json.loads(restored.pop(b"metadata.json")[0])["ref_id"] == HEAD["ref_id"]
    assert restored == expected
    assert done.stderr.splitlines() in ([], [b"tar: Ignoring unknown extended header keyword 'hdrcharset'"])
    compared = subprocess.run(["tar", "-d", "-C", out], input=whole, capture_output=True, check=False)
    assert b"differ" not in compared.stdout


def test_python_restores_identical_files(event: Path) -> None:
    """Python's tarfile extracts the very same names and bytes."""
    out = event / "out"
    with tarfile.open(fileobj=io.BytesIO(from_disk(event)), errors="surrogateescape") as tar:
        tar.extractall(out, filter="data")
    restored = found(out)
    restored.pop(b"metadata.json")
    assert restored == {os.fsencode(n): (content, 1_767_268_800) for n, content in inside(CONTENTS).items()}


NAMES = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=80),
    st.binary(min_size=1, max_size=255).map(lambda raw: os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))),
    st.sampled_from(["metadata.json", "source-metadata.json", "a/b/c", "x" * 255]),
).filter(lambda name: name not in {".", ".."})


@settings(max_examples=150, deadline=None)
@given(contents=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=12), cut=st.integers(1, 4000))
def test_round_trip(contents: dict[str, bytes], cut: int) -> None:
    """Whatever the names and bytes, they come out as they went in, by our reading and by tarfile's."""
    whole = pack(contents)
    walked = walk(whole[at : at + cut] for at in range(0, len(whole), cut))
    assert (walked.size, walked.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    ours = {m.source or m.name: whole[m.offset :][: m.size] for m in walked.manifest.members}
    assert ours == contents
    with tarfile.open(fileobj=io.BytesIO(whole), errors="surrogateescape") as tar:
        theirs = {member.name[2:]: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    del theirs["metadata.json"]
    assert theirs == inside(contents)


def test_no_files() -> None:
    """A bundle of nothing is a manifest, and sound."""
    assert walk([pack({})]).manifest.members == ()


def test_ten_thousand_members() -> None:
    """Ten thousand members are packed, proven, and listed by GNU tar."""
    contents = {f"Img_r{number:05}.tif": str(number).encode() for number in range(10_000)}
    whole = pack(contents)
    assert len(walk([whole]).manifest.members) == 10_000
    listed = subprocess.run(["tar", "-t"], input=whole, capture_output=True, check=True).stdout.splitlines()
    assert listed == [f"./{name}".encode() for name in [*contents, "metadata.json"]]


def test_member_of_nine_gib(tmp_path: Path) -> None:
    """A member beyond ustar's 8 GiB has a header that GNU tar and Python understand, and the next one is found."""
    size = 9 << 30
    layout = plan([file("big.h5", size), file("next.tif", 3)], HEAD)
    start = next(iter(Packing(layout, lambda _: [bytes(2 * MIB)])))  # what goes out before the first byte
    rest = pack({"next.tif": b"abc"})
    with (tmp_path / "sparse.tar").open("wb") as sparse:
        sparse.write(start[: layout.slots[0].offset])
        sparse.seek(size, os.SEEK_CUR)
        sparse.write(rest)
    with tarfile.open(tmp_path / "sparse.tar") as tar:
        big, after = tar.getmembers()[:2]
    assert (big.size, big.offset_data) == (size, layout.slots[0].offset)
    assert (after.name, after.offset_data) == ("./next.tif", layout.slots[1].offset)
    listed = subprocess.run(["tar", "-tvf", tmp_path / "sparse.tar"], capture_output=True, text=True, check=True).stdout
    assert [(line.split()[2], line.split()[-1]) for line in listed.splitlines()][:2] == [
        (str(size), "./big.h5"),
        ("3", "./next.tif"),
    ]


@pytest.mark.parametrize("change", [-1, 1, -5, 1000])
def test_file_that_is_not_as_long_as_it_was(change: int) -> None:
    """A file that yields fewer or more bytes than the layout has room for is unsettled, and named."""
    packing = Packing(plan([file("a\n.tif", 10)], HEAD), lambda _: iter([bytes(5), bytes(5 + change)][: 6 + change]))
    with pytest.raises(Unsettled, match=r"a\\n\.tif: \d+ bytes read, 10 expected"):
        list(packing)


def test_error_while_reading_rises() -> None:
    """An error from reading a file comes out of the iteration as it is."""

    def read(file: File) -> Iterator[bytes]:
        yield b"1"
        raise Unsettled(f"{file.name}: gone")

    with pytest.raises(Unsettled, match="a: gone"):
        list(Packing(plan([file("a", 10)], HEAD), read))


def test_seal_has_the_last_word() -> None:
    """The seal is called once, when all bytes were taken and before the end is told; its error is the iteration's."""
    calls: list[Packed] = []
    packing_ = packing(CONTENTS, seal=calls.append)
    taken = 0
    for chunk in packing_:
        assert calls == []
        taken += len(chunk)
    assert [call.size for call in calls] == [taken] == [packing_.packed.size]

    def refuse(packed: Packed) -> None:
        raise Conflict(f"{packed.size} other bytes are there")

    with pytest.raises(Conflict):
        list(packing(CONTENTS, seal=refuse))


def test_beat_hears_of_every_chunk() -> None:
    """Progress grows to the whole size; its error ends the packing."""
    heard: list[int] = []
    contents = {f"{number}": bytes(MIB) for number in range(5)}
    total = sum(map(len, packing(contents, beat=heard.append)))
    assert heard == sorted(set(heard))
    assert (heard[-1], len(heard) >= 5) == (total, True)

    def lost(done: int) -> None:
        raise Conflict(f"lease lost after {done} bytes")

    with pytest.raises(Conflict, match="lease lost"):
        list(packing(contents, beat=lost))


def test_packing_left_early_leaves_no_threads() -> None:
    """An upload that gives up leaves nothing running."""
    before = threading.active_count()
    left = packing({f"{number}": bytes(MIB) for number in range(5)})
    assert next(iter(left))
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_bundle() -> None:
    """However large the files, a few chunks are held at a time."""
    files = [file(f"{number}.tif", 40 * MIB) for number in range(4)]
    packing = Packing(plan(files, HEAD), lambda _: (bytes(MIB) for _ in range(40)))
    tracemalloc.start()
    try:
        for _ in packing:
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


def test_chunks_are_neither_tiny_nor_huge() -> None:
    """Many small members leave in few chunks, so that each costs little on its way."""
    sizes = [len(chunk) for chunk in packing({f"{number:05}": bytes(100) for number in range(5_000)})]
    assert len(sizes) < 12
    assert max(sizes) <= 2 * MIB


@given(st.integers(0, 5 * 10**12))
def test_parts_are_never_too_many(total: int) -> None:
    """Up to 5 TB fit 10,000 parts of whole MiB; parts grow only where they must."""
    size = part_size(total)
    assert size % MIB == 0
    assert -(-total // size) <= 10_000
    assert size == 8 * MIB or -(-total // (size - MIB)) > 10_000


@pytest.mark.parametrize(("total", "size"), [(0, 8), (80_000 * MIB, 8), (80_000 * MIB + 1, 9), (5 * 10**12, 477)])
def test_part_sizes(total: int, size: int) -> None:
    """Parts are of 8 MiB up to 84 GB."""
    assert part_size(total) == size * MIB


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
@pytest.mark.parametrize("step", [1, 3, 10, 100])
def test_etag_is_the_one_of_s3(size: int, step: int) -> None:
    """One part has its MD5, several the MD5 of theirs with their number, however the bytes came."""
    content, parts = os.urandom(size), checksums.PartHasher(10)
    for at in range(0, size, step):
        parts.update(content[at : at + step])
    if size <= 10:
        assert parts.etag() == hashlib.md5(content).hexdigest()
    else:
        md5s = [hashlib.md5(content[at : at + 10]).digest() for at in range(0, size, 10)]
        assert parts.etag() == f"{hashlib.md5(b''.join(md5s)).hexdigest()}-{len(md5s)}"


SMALL = {name: CONTENTS[name] for name in ("Img_r01_c01.tif", "empty.png", "é.tif", INVALID, "metadata.json")}


def test_every_byte_counts() -> None:
    """Wherever a byte of a bundle changes, walking finds it: names, data, headers, padding, manifest, end."""
    whole = bytearray(pack(SMALL))
    for at in range(len(whole)):
        whole[at] ^= 1 << at % 8
        with pytest.raises(Damaged):
            walk([bytes(whole)])
        whole[at] ^= 1 << at % 8
    assert walk([bytes(whole)])


def corrupted(whole: bytes, generator: random.Random) -> bytes:
    """Damage a bundle in one of the ways that disks and networks have."""
    at, other = sorted(generator.sample(range(len(whole)), 2))
    block, far = generator.sample(range(len(whole) // 512), 2)
    blocks = [whole[start : start + 512] for start in range(0, len(whole), 512)]
    match generator.randrange(9):
        case 0:
            return whole[:at] + bytes([whole[at] ^ 1 << generator.randrange(8)]) + whole[at + 1 :]
        case 1:
            return whole[:at]
        case 2:
            return (
                whole[:at] + whole[other : other + 1] + whole[at + 1 : other] + whole[at : at + 1] + whole[other + 1 :]
            )
        case 3:
            return whole[:at] + whole[at + 1 :]
        case 4:
            return whole[:at] + generator.randbytes(1) + whole[at:]
        case 5:
            return whole[:at] + bytes(other - at) + whole[other:]
        case 6:
            blocks[block], blocks[far] = blocks[far], blocks[block]
            return b"".join(blocks)
        case 7:
            return b"".join(blocks[:block] + blocks[block + 1 :])
        case _:
            return whole + generator.randbytes(generator.randint(1, 1024))


def test_a_thousand_corruptions_are_found() -> None:
    """Of 1,000 damaged bundles all 1,000 are found, and of 1,000 clean ones none is accused."""
    generator = random.Random(4711)
    whole, damaged = pack(CONTENTS), 0
    while damaged < 1_000:
        other = corrupted(whole, generator)
        if other != whole:
            damaged += 1
            with pytest.raises(Damaged):
                walk([other])
    for _ in range(1_000):
        cut = generator.randint(1, len(whole))
        assert walk([whole[:cut], b"", whole[cut:]]).size == len(whole)


def test_damage_names_the_member() -> None:
    """The message names the member whose bytes are wrong."""
    whole = bytearray(pack(CONTENTS))
    for slot in plan(files(CONTENTS), HEAD).slots:
        if slot.file.size:
            whole[slot.offset] ^= 1
            with pytest.raises(Damaged) as caught:
                walk([bytes(whole)])
            assert str(caught.value).startswith(f"{shown(slot.name)}: sha256 ")
            whole[slot.offset] ^= 1


def test_truncation_at_a_member_boundary_is_found() -> None:
    """A tar that ends between two members, which tarfile reads without complaint, is damaged."""
    whole = pack(CONTENTS)
    for slot in plan(files(CONTENTS), HEAD).slots:
        end = bundle.padded(slot.offset + slot.file.size)
        for tail in (b"", bytes(1024), bytes(10240)):
            with pytest.raises(Damaged):
                walk([whole[:end] + tail])


def test_exchanged_bundles_are_told_apart() -> None:
    """A bundle whose manifest was replaced by another bundle's is damaged."""
    one, two = pack({"a": b"1"}), pack({"a": b"2"})
    for mixed in (one[:1024] + two[1024:], two[:1024] + one[1024:]):
        with pytest.raises(Damaged):
            walk([mixed])


def foreign(kind: bytes, *, name: str = "./a", size: int = 0) -> bytes:
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, size
            tar.addfile(info, io.BytesIO(bytes(size)))
        return out.getvalue()


def pax(size: int) -> bytes:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.USTAR_FORMAT)


NOT_BUNDLES = {
    "nothing": b"",
    "zeros": bytes(10240),
    "text": b"hello" * 1000,
    "no manifest": foreign(tarfile.REGTYPE, size=10),
    "a link": foreign(tarfile.SYMTYPE),
    "a hard link": foreign(tarfile.LNKTYPE),
    "a FIFO": foreign(tarfile.FIFOTYPE),
    "a directory": foreign(tarfile.DIRTYPE, name="."),
    "an absolute name": foreign(tarfile.REGTYPE, name="/etc/passwd", size=1),
    "an empty manifest": foreign(tarfile.REGTYPE, name="./metadata.json"),
    "another manifest": foreign(tarfile.REGTYPE, name="./metadata.json", size=200),
    "a PAX header of 2 GiB": pax(2 << 30),
    "a manifest of 4 GiB": bundle.member_header("metadata.json", 4 << 30, mtime=0),
    "a PAX record without end": bundle.member_header("é" * 200, 1, mtime=0).replace(b" path=", b"9path=", 1),
}


@pytest.mark.parametrize("kind", NOT_BUNDLES)
def test_what_is_not_a_bundle(kind: str) -> None:
    """Anything else is damaged, whatever it claims to be."""
    with pytest.raises(Damaged):
        walk([NOT_BUNDLES[kind]])


ENTRY = {"name": "a", "size": 1, "sha256": "0" * 64, "offset": 512}
NOT_MANIFESTS = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff",
    b'{"files": []}',
    b'{"sealed": "0"}',
    b'{"files": {}, "sealed": 1}',
    b"[" * 100_000,
    *(
        json.dumps({"files": [entry], "sealed": "0"}).encode()
        for entry in (
            1,
            "a",
            None,
            {},
            {**ENTRY, "size": "1"},
            {**ENTRY, "size": True},
            {**ENTRY, "size": 1.0},
            {**ENTRY, "offset": None},
            {**ENTRY, "name": 1},
            {**ENTRY, "sha256": None},
            {**ENTRY, "source": 1},
            {**ENTRY, "more": 1},
        )
    ),
]


@pytest.mark.parametrize("content", NOT_MANIFESTS)
def test_what_is_not_a_manifest(content: bytes) -> None:
    """A metadata.json that is not a manifest is damaged, never half read."""
    with pytest.raises(Damaged, match="not the manifest"):
        read_manifest(content)


def test_manifest_without_seal_is_no_manifest_of_ours() -> None:
    """The fields of the manifest itself are not for events to set."""
    for key in ("files", "sealed"):
        with pytest.raises(ValueError, match="manifest's own"):
            plan([], {key: 1})


def test_numbers_that_are_none() -> None:
    """NaN never gets into a manifest: it would not be JSON."""
    with pytest.raises(ValueError, match="JSON compliant"):
        plan([], {"metadata": {"gain": float("nan")}})


def test_same_names_are_not_two_members() -> None:
    """Two files of one name cannot be told apart afterwards."""
    with pytest.raises(ValueError, match="twice"):
        plan([file("a", 1), replace(file("a", 1), size=2)], HEAD)


# --------------------------------------------------------------------------------------------------- from the end


def packed_of(contents: Mapping[str, bytes]) -> tuple[bytes, Packed]:
    """Make a bundle and tell of it."""
    packed: list[Packed] = []
    content = b"".join(packing(contents, seal=packed.append))
    return content, packed[0]


class Ending:
    """A bundle of which only the end can be read, and that counts the reads."""

    def __init__(self, content: bytes) -> None:
        self.content, self.reads = content, list[int]()

    def __call__(self, size: int) -> bytes:
        self.reads.append(size)
        return self.content[-size:]


@pytest.mark.parametrize(("count", "reads"), [(0, 1), (1, 1), (250, 1), (2_000, 2), (15_000, 3)])
def test_a_manifest_is_found_from_the_end(count: int, reads: int) -> None:
    """Nothing else is known of the bundle: one read is enough in the normal case, few where the manifest is large."""
    content, packed = packed_of({f"Img/Img_{n:06d}.tif": b"pixels" for n in range(count)})
    end = Ending(content)
    found = bundle.tail(end)
    assert len(end.reads) == reads
    assert found.manifest == read_manifest(content[packed.manifest_offset :][: packed.manifest_size])
    assert (found.size, found.sha256) == (packed.manifest_size, packed.manifest_sha256)
    assert len(content) - found.behind == packed.manifest_offset


def test_images_that_look_like_a_manifest_do_not_deceive() -> None:
    """A whole bundle as a file inside another, right before its end."""
    inner, _ = packed_of({"a.tif": b"inner"})
    content, packed = packed_of({"b.tif": b"outer", "z.tar": inner})
    assert bundle.tail(Ending(content)).sha256 == packed.manifest_sha256


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1024, 1536, 10_240])
def test_what_ends_otherwise_is_no_bundle(size: int) -> None:
    """Zeros, nothing, odd lengths: damage, after one read."""
    for content in (bytes(size), b"x" * size):
        end = Ending(content)
        with pytest.raises(Damaged):
            bundle.tail(end)
        assert len(end.reads) == 1


def test_a_bundle_without_its_end_is_damaged() -> None:
    """However much is cut off, from the end or from the beginning of the manifest."""
    content, packed = packed_of({"a.tif": b"pixels" * 500})
    for cut in (1, 512, 1024, 1536, len(content) - packed.manifest_offset):
        with pytest.raises(Damaged):
            bundle.tail(Ending(content[:-cut]))
    with pytest.raises(Damaged, match=r"no metadata\.json"):
        bundle.tail(Ending(content[packed.manifest_offset :]))


def test_a_walk_keeps_what_was_asked_for() -> None:
    """Small members on request, and where the manifest lies."""
    content, packed = packed_of({"a.tif": b"pixels", "metadata.json": b"{}", "large.tif": bytes(MIB + 1)})
    walked = walk([content], keep=["source-metadata.json", "large.tif", "other"])
    assert walked.kept == {"source-metadata.json": b"{}"}
    facts = (packed.manifest_offset, packed.manifest_size, packed.manifest_sha256, packed.size, packed.sha256)
    assert facts == (
        walked.manifest_offset, walked.manifest_size, walked.manifest_sha256, walked.size, walked.sha256
    )  # fmt: skip


def test_the_header_before_a_file_tells_its_time() -> None:
    """In whole seconds; anything else is no header."""
    content, packed = packed_of({"a.tif": b"pixels", "é" * 120: b"long"})
    headers = bundle.header_offsets(packed.members)
    for member in packed.members:
        assert bundle.modified(content[headers[member.name] : member.offset]) == 1_767_268_800
    with pytest.raises(Damaged, match="header"):
        bundle.modified(b"x" * 512)
