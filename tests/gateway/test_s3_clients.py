"""S3 clients as people use them at the endpoint for reading: the same keys and the same bytes in each of them."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest
import s3fs  # type: ignore[import-untyped]  # ships no types

from plateway.gateway.s3.access_keys import Issued
from plateway.records import Share
from tests.gateway.test_images import announce, placed, tiff
from tests.gateway.test_s3 import NOW, SHARED, UIDS, Reading, dicom, listed
from tests.soak import SOAK

MANY = 10_000 if SOAK else 1_100  # files of one event; a page has 1,000
IMAGE = "Img r01+c01 é.tif"
PROGRAMS = ("aws", "s5cmd", "rclone", "s4cmd")


@dataclass
class Desk:
    """Where programs run: an endpoint, and a key for it in the environment and in their files."""

    reading: Reading
    key: Issued
    home: Path
    env: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.home.mkdir()
        scripts = sysconfig.get_path("scripts")
        self.env = {
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "AWS_ACCESS_KEY_ID": self.key.key.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.key.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.reading.url,
            "S3_ENDPOINT_URL": self.reading.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "RCLONE_CONFIG_LAB_TYPE": "s3",
            "RCLONE_CONFIG_LAB_PROVIDER": "Other",
            "RCLONE_CONFIG_LAB_ENDPOINT": self.reading.url,
            "RCLONE_CONFIG_LAB_ACCESS_KEY_ID": self.key.key.access_key_id,
            "RCLONE_CONFIG_LAB_SECRET_ACCESS_KEY": self.key.secret,
            "RCLONE_CONFIG_LAB_REGION": "us-east-1",
        }

    def run(self, *command: str, ends: int = 0) -> bytes:
        """Run a program and return what it printed; skip where it is not installed."""
        if shutil.which(command[0], path=self.env["PATH"]) is None:
            pytest.skip(f"{command[0]} is not installed: uv sync --group bench")
        done = subprocess.run(command, check=False, env=self.env, cwd=self.home, capture_output=True, timeout=250)
        assert (done.returncode != 0) == bool(ends), (command, done.stderr.decode())
        return done.stdout if not ends else done.stderr + done.stdout


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """An endpoint with one event of many files, one with an image of an awkward name, and a share."""
    home = tmp_path_factory.mktemp("clients")
    (home / "scans" / UIDS).parent.mkdir(parents=True)
    (home / "scans" / UIDS).write_bytes(dicom())
    with placed(home, "memory", s3_port=0) as place:
        many = {f"{number % 7}/{number:05d}.txt": b"%d" % number for number in range(MANY)}
        refs = [announce(place.lab, {IMAGE: tiff(1)}), announce(place.lab, many, experiment="many")]
        place.lab.catalog.add_share(Share(name=SHARED, location=(home / "scans").as_uri(), created_at=NOW))
        reading = Reading(place, refs)
        yield Desk(reading, reading.key("clients"), home / "desk")


LISTS: dict[str, Callable[[Desk], list[str]]] = {
    "aws": lambda desk: [
        line.split(maxsplit=3)[3]
        for line in desk.run("aws", "s3", "ls", "--recursive", "s3://events").decode().splitlines()
    ],
    "s5cmd": lambda desk: [
        line.split(maxsplit=3)[3] for line in desk.run("s5cmd", "ls", "s3://events/*").decode().splitlines()
    ],
    "rclone": lambda desk: desk.run("rclone", "lsf", "--recursive", "--files-only", "lab:events").decode().splitlines(),
    "s4cmd": lambda desk: [
        line.split("s3://events/", 1)[1]
        for line in desk.run("s4cmd", "--endpoint-url", desk.reading.url, "ls", "-r", "s3://events/")
        .decode()
        .splitlines()
    ],
    "s3fs": lambda desk: [one.removeprefix("events/") for one in files(desk).find("events")],
    "boto3": lambda desk: listed(desk.reading.client(desk.key)),
    "boto3, old": lambda desk: listed(desk.reading.client(desk.key), "list_objects"),
}
WRITES = {
    "aws": ("aws", "s3", "cp", "file", "s3://events/x"),
    "aws rm": ("aws", "s3", "rm", "s3://events/KEY"),
    "aws mb": ("aws", "s3", "mb", "s3://another"),
    "s5cmd": ("s5cmd", "cp", "file", "s3://events/x"),
    "s5cmd rm": ("s5cmd", "rm", "s3://events/KEY"),
    "rclone": ("rclone", "copyto", "--retries", "1", "--low-level-retries", "1", "file", "lab:events/x"),
    "rclone deletefile": ("rclone", "deletefile", "--retries", "1", "lab:events/KEY"),
}


def files(desk: Desk) -> Any:
    """Open the endpoint as fsspec's file system."""
    return s3fs.S3FileSystem(
        key=desk.key.key.access_key_id,
        secret=desk.key.secret,
        endpoint_url=desk.reading.url,
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs={"proxies": {}},
        skip_instance_cache=True,
    )


def fetched(desk: Desk, where: str) -> bytes:
    desk.run("s4cmd", "--endpoint-url", desk.reading.url, "get", "-f", f"s3://{where}", "fetched")
    return (desk.home / "fetched").read_bytes()


def downloaded(desk: Desk, where: str) -> bytes:
    """Download as the Safe Haven's example does: `download_file`, which goes by ranges or by the whole."""
    bucket, _, key = where.partition("/")
    desk.reading.client(desk.key).download_file(bucket, key, str(desk.home / "downloaded"))
    return (desk.home / "downloaded").read_bytes()


READS: dict[str, Callable[[Desk, str], bytes]] = {
    "aws": lambda desk, where: desk.run("aws", "s3", "cp", f"s3://{where}", "-"),
    "s5cmd": lambda desk, where: desk.run("s5cmd", "cat", f"s3://{where}"),
    "rclone": lambda desk, where: desk.run("rclone", "cat", f"lab:{where}"),
    "s4cmd": fetched,
    "s3fs": lambda desk, where: bytes(files(desk).cat(where)),
    "boto3": downloaded,
}


@pytest.mark.parametrize("client", LISTS)
def test_each_client_lists_every_key(desk: Desk, client: str) -> None:
    """Page after page, all keys of both events."""
    wanted = [f"many/{desk.reading.refs[1]}/{number % 7}/{number:05d}.txt" for number in range(MANY)]
    assert sorted(LISTS[client](desk)) == sorted([*wanted, desk.reading.name(IMAGE)])


@pytest.mark.parametrize("client", READS)
def test_each_client_reads_the_bytes(desk: Desk, client: str) -> None:
    """One image out of a bundle, and one slice at a key of 200 characters in a bucket with capitals."""
    assert READS[client](desk, f"events/{desk.reading.name(IMAGE)}") == tiff(1)
    scan = pydicom.dcmread(io.BytesIO(READS[client](desk, f"{SHARED}/{UIDS}")))
    assert scan.PatientName == "Nobody"


@pytest.mark.parametrize("client", WRITES)
def test_no_client_writes(desk: Desk, client: str) -> None:
    """What would write fails with AccessDenied, and soon."""
    (desk.home / "file").write_bytes(b"x" * 1000)
    command = [one.replace("KEY", desk.reading.name(IMAGE)) for one in WRITES[client]]
    assert re.search(rb"AccessDenied|Access Denied|403", desk.run(*command, ends=1))


def test_folders_as_people_browse_them(desk: Desk) -> None:
    """`ls` of s3fs and of aws shows experiments, then events, then files; sync copies a whole event."""
    fs = files(desk)
    assert sorted(fs.ls("events", detail=False)) == ["events/many", "events/x"]
    assert fs.ls("events/x", detail=False) == [f"events/x/{desk.reading.refs[0]}"]
    assert fs.info(f"events/{desk.reading.name(IMAGE)}")["size"] == len(tiff(1))
    with fs.open(f"events/{desk.reading.name(IMAGE)}") as file:
        file.seek(10)
        assert file.read(5) == tiff(1)[10:15]
    with pytest.raises(PermissionError):
        fs.pipe("events/x", b"x")
    desk.run("aws", "s3", "sync", "s3://events/x/", "copy")
    assert (desk.home / "copy" / str(desk.reading.refs[0]) / IMAGE).read_bytes() == tiff(1)
