"""Keys that S3 allows and Plateway never writes, on a server that keeps them as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.session import get_session  # type: ignore[import-untyped]  # ships no types
from moto.server import ThreadedMotoServer

from tests.cli.test_cli import call, home, told

__all__ = ["home"]

ODD = ["a//b", "/leading", "a/./b", "a/../b", "trailing/", "back\\slash", "a/b?c#d"]


@contextmanager
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        httpx.post(f"http://{host}:{port}/moto-api/reset", trust_env=False)  # its buckets outlive it
    finally:
        server.stop()


@pytest.fixture
def client(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the server that the settings name, with a bucket of odd keys."""
    with moto() as url:
        for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "one", "SECRET_ACCESS_KEY": "two"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        client = get_session().create_client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="odd")
        for key in [*ODD, "plain/1.tif", "plain/2.tif"]:
            client.put_object(Bucket="odd", Key=key, Body=f"content of {key}".encode())
        client.put_object(Bucket="odd", Key="folder/", Body=b"")
        yield client


def listed(client: Any) -> set[str]:
    return {one["Key"] for one in client.list_objects_v2(Bucket="odd")["Contents"]}


@pytest.mark.parametrize("key", [key for key in ODD if not key.endswith("/")])
def test_an_odd_key_is_read_copied_and_deleted_by_name(client: Any, home: Path, key: str) -> None:
    """Only what Plateway writes follows its own rule."""
    before = listed(client)
    assert call("bucket", "get", f"s3://odd/{key}", str(home / "got")).exit_code == 0
    assert (home / "got").read_text() == f"content of {key}"
    assert call("bucket", "cp", f"s3://odd/{key}", "s3://odd/copied").exit_code == 0
    assert client.get_object(Bucket="odd", Key="copied")["Body"].read() == f"content of {key}".encode()
    assert call("bucket", "del", f"s3://odd/{key}").exit_code == 0
    assert before - listed(client) == {key}


def test_a_download_of_all_goes_past_what_cannot_be_a_file(client: Any, home: Path) -> None:
    """Each of these is reported; the others arrive, and a folder's marker is no file."""
    result = call("bucket", "get", "--recursive", "s3://odd", str(home / "all"), "--json")
    assert result.exit_code == 3
    problems = {one["url"].removeprefix("s3://odd/"): one["problem"] for one in json.loads(result.stdout)}
    assert {key for key, problem in problems.items() if problem} == set(ODD) - {"a/b?c#d", "back\\slash"}
    assert "folder/" not in problems
    arrived = {str(path.relative_to(home / "all")) for path in (home / "all").rglob("*") if path.is_file()}
    assert arrived == {"plain/1.tif", "plain/2.tif", "a/b?c#d", "back\\slash"}
    assert sum(one["size"] for one in told("bucket", "ls", "--recursive", "s3://odd/plain")) == 44
