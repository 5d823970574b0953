"""Endpoints that are only read: nothing that could change something reaches the wire, whichever way it is tried.

Everything passes a proxy that keeps a book. The key may do everything where a refusal has to be ours, and may only read
and list where reading has to do with that.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pydicom
import pytest
import tifffile
from typer.testing import CliRunner

from plateway import bundle, cli
from plateway.endpoint import Endpoint
from plateway.errors import PlatewayError, Refused
from plateway.folder import File
from plateway.local import seaweed
from plateway.pipeline import addresses
from plateway.store import (
    Stat,
    Upload,
    filesystem,
    open_store,
)
from plateway.store.admin import Address, Buckets, temporary
from plateway.store.s3 import S3
from tests.faults.proxy import Forward, Message, Proxy, Reset, Script, between, error, honest
from tests.gateway.test_read_only import DICOM, EVENTS, OBJECTS, PROXIES, UID, endpoint, make
from tests.test_docs import ROOT, blocks

MIB = 1 << 20
PLATES = EVENTS  # what the page speaks of
DONE = {"restored", "restored already"}
EXAMPLE = "http://haven.example.org:7070"
NOW = datetime(2026, 5, 4, tzinfo=UTC)
WRITES = {"put", "delete", "delete_all", "abort", "lock"}  # of a store; all else reads
READS = {
    "durable",
    "name",
    "beside",
    "open",
    "fetch",
    "stat",
    "look",
    "list",
    "page",
    "level",
    "sign",
    "tags",
    "uploads",
    "lifecycle",
}
OFFICE = {"make", "remove", "set_lifecycle", "clear", "put", "copy", "delete", "set_tags"}  # of buckets, the same
VISITS = {
    "names",
    "there",
    "vacant",
    "lifecycle",
    "store",
    "find",
    "level",
    "usage",
    "get",
    "tags",
    "markers",
    "versions",
    "versioned",
}


@dataclass(frozen=True)
class Haven:
    """A bucket with capitals and an underscore that holds one object with a long key."""

    book: Proxy
    reader: Endpoint  # may read and list
    admin: Endpoint  # may do everything, and is told to be read-only


@pytest.fixture(scope="module")
def haven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Haven]:
    reads = seaweed.Identity("reader", seaweed.READ_ONLY)
    with (
        seaweed.serve(tmp_path_factory.mktemp("s3"), identities=[reads]) as server,
        between(server.url) as book,
    ):
        make(server, OBJECTS, UID, f"{UID}/{UID}")
        make(server, PLATES, "plates", "series")
        admin = endpoint(server.url, server.access_key_id, server.secret_access_key)
        open_store(f"s3://{OBJECTS}", admin).put(DICOM, [b"DICM"], size=4, part_size=8 * MIB, metadata={})
        reader = replace(endpoint(book.url, reads.access_key_id, reads.secret_access_key), read_only=True)
        yield Haven(book, reader, replace(admin, url=book.url, read_only=True))


@pytest.fixture
def asked(haven: Haven) -> Iterator[Callable[[], set[str]]]:
    """What was asked since, by method; nothing but reading, also at the end."""
    before = len(haven.book.log)

    def methods() -> set[str]:
        return {message.start.split()[0] for message in haven.book.log[before:]}

    yield methods
    assert methods() <= {"GET", "HEAD"}
    assert [one.key for one in open_store(f"s3://{OBJECTS}", haven.reader).list()] == [DICOM]


def big() -> Iterator[bytes]:
    yield from [bytes(MIB)] * 40


def writes(there: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that a store can be asked to change."""
    upload = Upload("a", uuid4().hex, NOW)
    yield "put", lambda: there.put("a", [b"1"], size=1, part_size=8 * MIB, metadata={})
    yield "put", lambda: there.put("a", big(), size=40 * MIB, part_size=8 * MIB, metadata={})
    yield "put", lambda: there.put("a", big(), size=40 * MIB, part_size=32 * MIB, metadata={})
    yield "delete", lambda: there.delete(DICOM)
    yield "abort", lambda: there.abort(upload)
    yield "delete_all", lambda: there.delete_all([DICOM])
    yield "lock", lambda: there.lock(DICOM, hold=False, until=None)


@pytest.mark.parametrize("kind", ["opened", "below a prefix", "S3 itself", "of buckets"])
def test_stores_refuse_to_write(haven: Haven, asked: Callable[[], set[str]], kind: str) -> None:
    """Each verb that changes something is refused, with a key that could; S3 hears nothing at all."""
    kinds: dict[str, Callable[[], Any]] = {
        "opened": lambda: open_store(f"s3://{OBJECTS}", haven.admin),
        "below a prefix": lambda: open_store(f"s3://{OBJECTS}/{UID}", haven.admin),
        "S3 itself": lambda: S3(OBJECTS, haven.admin),
        "of buckets": lambda: Buckets(haven.admin).store(OBJECTS),
    }
    for _, write in writes(kinds[kind]()):
        with pytest.raises(Refused, match="read-only"):
            write()
    assert asked() == set()


def test_no_verb_of_a_store_was_forgotten(haven: Haven) -> None:
    """What is new has to be said to read or to write; and then be tried."""
    there = S3(OBJECTS, haven.admin)
    assert {name for name in dir(there) if not name.startswith("_")} == WRITES | READS
    assert {name for name, _ in writes(there)} == WRITES
    assert {name for name in dir(Buckets) if not name.startswith("_")} == OFFICE | VISITS
    assert {name for name, _ in changes(haven, Path())} == OFFICE


def changes(haven: Haven, file: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that buckets can be asked to change."""
    there, where = Buckets(haven.admin), Address(OBJECTS, DICOM)
    found = Stat(DICOM, 4, "", NOW)
    yield "make", lambda: there.make("another-one")
    yield "remove", lambda: there.remove(OBJECTS)
    yield "set_lifecycle", lambda: there.set_lifecycle(OBJECTS, [{"ID": "a"}])
    yield "set_lifecycle", lambda: there.set_lifecycle(OBJECTS, [])
    yield "clear", lambda: list(there.clear(OBJECTS))
    yield "put", lambda: list(there.put([(file, where)]))
    yield "copy", lambda: list(there.copy([(found, where, where.below("b"))]))
    yield "delete", lambda: list(there.delete(where, [found]))
    yield "set_tags", lambda: there.set_tags(where, {"a": "b"})


def test_buckets_refuse_to_change(haven: Haven, asked: Callable[[], set[str]], tmp_path: Path) -> None:
    """Making, filling, emptying, removing, rules, tags; nor is a bucket made for a moment."""
    (tmp_path / "a").write_bytes(b"1")
    for _, change in changes(haven, tmp_path / "a"):
        with pytest.raises(Refused, match="read-only"):
            change()
    with pytest.raises(Refused), temporary(Buckets(haven.admin), "ci"):
        pass


FS: dict[str, Callable[[Any, str, str], object]] = {
    "pipe": lambda fs, root, _: fs.pipe_file(f"{root}/a", b"1"),
    "pipe much": lambda fs, root, _: fs.pipe_file(f"{root}/a", bytes(12 * MIB), chunksize=5 * MIB),
    "put": lambda fs, root, file: fs.put(file, f"{root}/a"),
    "open": lambda fs, root, _: fs.open(f"{root}/a", "wb"),
    "append": lambda fs, root, _: fs.open(f"{root}/{DICOM}", "ab"),
    "update": lambda fs, root, _: fs.open(f"{root}/{DICOM}", "r+b"),
    "text": lambda fs, root, _: fs.write_text(f"{root}/a", "1"),
    "touch": lambda fs, root, _: fs.touch(f"{root}/a"),
    "truncate": lambda fs, root, _: fs.touch(f"{root}/{DICOM}", truncate=True),
    "copy": lambda fs, root, _: fs.cp_file(f"{root}/{DICOM}", f"{root}/a"),
    "move": lambda fs, root, _: fs.mv(f"{root}/{DICOM}", f"{root}/a"),
    "rm": lambda fs, root, _: fs.rm(f"{root}/{DICOM}"),
    "rm file": lambda fs, root, _: fs.rm_file(f"{root}/{DICOM}"),
    "rm -r": lambda fs, root, _: fs.rm(root, recursive=True),
    "mkdir": lambda fs, root, _: fs.mkdir(f"{root}-other"),
    "makedirs": lambda fs, root, _: fs.makedirs(f"{root}-other"),
    "rmdir": lambda fs, root, _: fs.rmdir(root),
}
S3FS: dict[str, Callable[[Any, str, str], object]] = {
    "tags": lambda fs, root, _: fs.put_tags(f"{root}/{DICOM}", {"a": "b"}),
    "metadata": lambda fs, root, _: fs.setxattr(f"{root}/{DICOM}", a="b"),
    "acl": lambda fs, root, _: fs.chmod(f"{root}/{DICOM}", "private"),
    "merge": lambda fs, root, _: fs.merge(f"{root}/a", [f"{root}/{DICOM}"]),
    "versions": lambda fs, root, _: fs.make_bucket_versioned(root),
    "call": lambda fs, root, _: fs.call_s3("delete_object", Bucket=root, Key=DICOM),
}


def test_the_filesystem_of_a_read_only_endpoint_writes_nothing(
    haven: Haven, asked: Callable[[], set[str]], tmp_path: Path
) -> None:
    """Whatever s3fs can be asked for: an error that people of fsspec know, before anything is sent."""
    (tmp_path / "a").write_bytes(b"1")
    fs, root = filesystem(f"s3://{OBJECTS}", haven.admin)
    for name, write in (FS | S3FS).items():
        with pytest.raises(PermissionError, match="read-only"):
            write(fs, root, str(tmp_path / "a"))
            pytest.fail(name)
    assert asked() <= {"GET", "HEAD"}
    assert fs.cat(f"{root}/{DICOM}") == b"DICM"
    with fs.open(f"{root}/{DICOM}") as file:
        assert file.read(2) == b"DI"


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_filesystems_of_other_stores_write_nothing_either(scheme: str, tmp_path: Path) -> None:
    """A directory and memory are shown through something that can only read."""
    url = tmp_path.as_uri() if scheme == "file" else f"memory://{uuid4().hex}"
    theirs, root = filesystem(url)
    theirs.makedirs(f"{root}/{UID}/{UID}", exist_ok=True)
    theirs.pipe_file(f"{root}/{DICOM}", b"DICM")
    fs, same = filesystem(url, Endpoint(read_only=True))
    assert same == root
    for name, write in FS.items():
        with pytest.raises(PermissionError, match="read-only"):
            write(fs, root, __file__)
            pytest.fail(name)
    assert [one.removeprefix("/") for one in fs.find(root)] == [f"{root}/{DICOM}".removeprefix("/")]
    assert (fs.cat_file(f"{root}/{DICOM}", start=1, end=3), fs.size(f"{root}/{DICOM}")) == (b"IC", 4)


def test_a_filesystem_stays_read_only_in_another_process(haven: Haven, asked: Callable[[], set[str]]) -> None:
    """As dask and joblib send it: pickled; and beside one that may write, which is another."""
    fs, root = filesystem(f"s3://{OBJECTS}", haven.admin)
    other, _ = filesystem(f"s3://{OBJECTS}", replace(haven.admin, read_only=False))
    assert other is not fs
    sent = pickle.loads(pickle.dumps(fs))
    with pytest.raises(PermissionError):
        sent.rm(f"{root}/{DICOM}")
    assert sent.cat(f"{root}/{DICOM}") == b"DICM"


SCRIPT = """
import json, sys
from plateway import cli
from plateway.store.admin import Buckets
from plateway.settings import load
from plateway.store import filesystem, open_store

bucket, key, to = sys.argv[1:]
there = load().endpoint
store, (fs, root) = open_store(f"s3://{bucket}", there), filesystem(f"s3://{bucket}", there)
cli.app(["restore", f"s3://{bucket}", "--to", to], standalone_mode=False)
print(json.dumps({
    "store": [b"".join(store.open(key, start=1)).decode(), store.stat(key).size, [one.key for one in store.list()]],
    "fs": [fs.cat_file(f"{root}/{key}", start=1).decode(), fs.size(f"{root}/{key}"), fs.find(root)],
    "buckets": [one.name for one in Buckets(there).names()],
}))
"""


def test_a_key_that_only_reads_reads_past_dead_proxies(
    haven: Haven, asked: Callable[[], set[str]], tmp_path: Path
) -> None:
    """Store, filesystem, buckets and commands: plain HTTP, capitals, an underscore, a key of 200 characters."""
    assert haven.reader.secret_access_key
    theirs = ("PLATEWAY_", "AWS_", "NO_PROXY", "no_proxy")
    env = {name: value for name, value in os.environ.items() if not name.startswith(theirs)} | PROXIES
    env |= {
        "PLATEWAY_HOME": str(tmp_path),
        "PLATEWAY_BYPASS_PROXY": "true",
        "AWS_ENDPOINT_URL": str(haven.reader.url),
        "AWS_ACCESS_KEY_ID": str(haven.reader.access_key_id),
        "AWS_SECRET_ACCESS_KEY": haven.reader.secret_access_key.get_secret_value(),
    }
    command = [sys.executable, "-c", SCRIPT, OBJECTS, DICOM, str(tmp_path / "back")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["store"] == ["ICM", 4, [DICOM]]
    assert told["fs"] == ["ICM", 4, [f"{OBJECTS}/{DICOM}"]]
    assert OBJECTS in told["buckets"]
    assert (tmp_path / "back" / DICOM).read_bytes() == b"DICM"
    assert not list(tmp_path.rglob("catalogue*"))


@pytest.fixture
def shown(haven: Haven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the page speaks of, in a bucket of its own, and the key of the environment; gives where it is."""
    admin = replace(haven.admin, read_only=False)
    assert admin.access_key_id
    assert admin.secret_access_key
    monkeypatch.setenv("AWS_ENDPOINT_URL", haven.book.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", admin.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", admin.secret_access_key.get_secret_value())
    monkeypatch.setenv("PLATEWAY_HOME", str(tmp_path / "home"))
    there = open_store(f"s3://{PLATES}", admin)
    for key, content in {"plates/060000-833b0b88.tar": tar(), "series/1.2.840.dcm": dicom()}.items():
        there.put(key, [content], size=len(content), part_size=8 * MIB, metadata={})
    monkeypatch.chdir(tmp_path)
    yield haven.book.url


def tar() -> bytes:
    """Make a bundle of one small TIFF."""
    told = io.BytesIO()
    tifffile.imwrite(told, np.arange(64, dtype="u2").reshape(8, 8))
    content = told.getvalue()
    layout = bundle.plan([File("Img/a.tif", len(content), 0, 0, 1)], {"ref_id": str(uuid4())})
    return b"".join(bundle.Packing(layout, lambda _: [content]))


def dicom() -> bytes:
    """Make a small slice."""
    told = io.BytesIO()
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = "1.2.840.10008.5.1.4.1.1.2", UID, "CT"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.save_as(told, enforce_file_format=True)
    return told.getvalue()


def test_the_examples_of_the_page_run(shown: str) -> None:
    """Straight into memory, each in its way, and each the same."""
    page, names = ROOT / "docs" / "read-only.md", dict[str, Any](__name__="read-only")
    for line, code in blocks(page, "py"):
        exec(compile("\n" * line + code.replace(EXAMPLE, shown), page, "exec"), names)
    read = [names["header"], *names["slices"], names["scan"], names["same"]]
    assert {one.SOPInstanceUID for one in read} == {UID}
    assert names["plate"][7, 7] == 63


def test_the_commands_of_the_page_run(shown: str, tmp_path: Path) -> None:
    """Each does what the page says, and nothing that changes something; what makes no sense is said."""
    (page,) = (code.replace(EXAMPLE, shown) for _, code in blocks(ROOT / "docs" / "read-only.md", "sh"))
    before = {*tmp_path.iterdir()}
    for line in page.splitlines()[1:]:
        command, _, name = line.partition(" > ")
        done = CliRunner().invoke(cli.app, shlex.split(command)[1:])
        assert done.exit_code == 0, (line, done.output)
        if name:
            Path(name).write_bytes(done.stdout_bytes)
    assert {one.name for one in {*tmp_path.iterdir()} - before} == {"slice.dcm", "header", "a.tif", "here"}
    assert Path("slice.dcm").read_bytes() == dicom()
    assert Path("header").read_bytes() == dicom()[:1024]
    assert Path("a.tif").read_bytes() == Path("here/060000-833b0b88/Img/a.tif").read_bytes()
    url = f"s3://{PLATES}/series/1.2.840.dcm"
    for words in (["cat", url, "--range", "9-1"], ["cat", url, "--range", "all"], ["cat", url, "--from", "bucket"],
                  ["cat", str(uuid4())], ["cat", str(uuid4()), "a", "--range", "0-9"], ["restore", url],
                  ["restore", url, str(uuid4()), "--to", "x"], ["restore", url, "--to", "x", "--system", "prince"],
                  ["restore", str(uuid4()), "--to", "x", "--dry-run"], ["restore", url, "--to-bench"]):  # fmt: skip
        assert CliRunner().invoke(cli.app, words).exit_code == 2, words


@pytest.mark.parametrize(("span", "part"), [("200-", slice(200, None)), ("-9", slice(-9, None))])
def test_ranges_are_those_of_http(shown: str, span: str, part: slice) -> None:
    """From one byte on, or the last ones."""
    done = CliRunner().invoke(cli.app, ["cat", f"s3://{PLATES}/series/1.2.840.dcm", "--range", span])
    assert done.stdout_bytes == dicom()[part]


def test_an_image_costs_two_ranged_reads(shown: str, haven: Haven) -> None:
    """The manifest at the end, and the image; the rest of the bundle stays where it is."""
    there, before = open_store(f"s3://{PLATES}", haven.admin), len(haven.book.log)
    assert b"".join(addresses.image(there, "plates/060000-833b0b88.tar", "Img/a.tif"))
    assert [(one.name, bool(one.header("range"))) for one in haven.book.log[before:]] == [("get object", True)] * 2


def refuse(request: Message, forward: Forward) -> Message:
    """Admit nobody."""
    return error(403, "AccessDenied")


def slow_down(request: Message, forward: Forward) -> Message:
    """Refuse for now."""
    return error(503, "SlowDown")


def hang_up(request: Message, forward: Forward) -> Message:
    """End the connection without an answer."""
    raise Reset


def cut(request: Message, forward: Forward) -> Message:
    """Hang up in the middle of the answer."""
    reply = forward(request)
    return replace(reply, cut=len(reply.body) // 2) if reply.body else reply


@pytest.mark.parametrize("fault", [refuse, slow_down, hang_up, cut])
def test_a_restore_that_meets_a_fault_goes_on_when_it_is_over(
    shown: str, haven: Haven, tmp_path: Path, fault: Script
) -> None:
    """Whichever request fails from then on: what has a name is right, the rest is told, and the next run brings it."""
    there, where = open_store(f"s3://{PLATES}", haven.admin), Address(PLATES)
    before = len(haven.book.log)
    assert {one.result for one in addresses.restore(addresses.find(there, where), to=tmp_path / "whole")} == {
        "restored"
    }
    whole, requests = contents(tmp_path / "whole"), len(haven.book.log) - before
    for nth in range(requests):
        to, countdown = tmp_path / str(nth), iter(range(requests))
        haven.book.script = lambda request, forward: (
            forward(request) if next(countdown, requests) < nth else fault(request, forward)  # noqa: B023
        )
        with suppress(PlatewayError):
            assert {one.result for one in addresses.restore(addresses.find(there, where), to=to)} != {"restored"}
        haven.book.script = honest
        assert contents(to).items() <= whole.items()
        assert {one.result for one in addresses.restore(addresses.find(there, where), to=to)} <= DONE
        assert contents(to) == whole


def contents(directory: Path) -> dict[str, bytes]:
    return {str(one.relative_to(directory)): one.read_bytes() for one in directory.rglob("*") if one.is_file()}


def test_a_bucket_of_the_site_is_read_only_on_the_command_line(
    shown: str, haven: Haven, asked: Callable[[], set[str]], tmp_path: Path
) -> None:
    """Named by --block, it is read, and refuses to be changed; S3 hears nothing of that."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "buckets.toml").write_text(f'[haven]\nurl = "s3://{OBJECTS}"\nread_only = true\n')
    (tmp_path / "home" / "buckets.toml").chmod(0o600)
    url, block = f"s3://{OBJECTS}/{DICOM}", ["--block", "haven"]
    assert CliRunner().invoke(cli.app, ["cat", url, *block]).stdout_bytes == b"DICM"
    for words in (["del", url], ["put", __file__, url], ["mb", "s3://another-one"], ["tag", url, "a=b"]):
        assert isinstance(CliRunner().invoke(cli.app, ["bucket", *words, *block]).exception, Refused), words
