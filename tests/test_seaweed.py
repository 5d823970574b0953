"""The S3 server for one machine."""

from __future__ import annotations

import contextlib
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # botocore ships no types
from botocore.session import get_session  # type: ignore[import-untyped]  # botocore ships no types

from deployments import seaweed


def client(url: str, key: str, secret: str) -> Any:
    """A plain S3 client, none of ours."""
    return get_session().create_client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret
    )


def test_it_keeps_objects_and_keys_over_a_restart(tmp_path: Path) -> None:
    """What was put with the key of the first start is there with the same key after the second."""
    with seaweed.serve(tmp_path, buckets=["plateway-raw"]) as server:
        first = (server.access_key_id, server.secret_access_key)
        client(server.url, *first).put_object(Bucket="plateway-raw", Key="a.tar", Body=b"bytes")
    assert server.process.returncode == 0
    with seaweed.serve(tmp_path, buckets=["plateway-raw"]) as server:
        assert (server.access_key_id, server.secret_access_key) == first
        found = client(server.url, *first).get_object(Bucket="plateway-raw", Key="a.tar")
        assert found["Body"].read() == b"bytes"


def test_a_reader_reads_and_does_no_more(tmp_path: Path) -> None:
    """A read-only identity can get and list, but not put, delete or create buckets."""
    reader = seaweed.Identity("reader", seaweed.READ_ONLY)
    with seaweed.serve(tmp_path, identities=[reader], buckets=["raw"]) as server:
        admin = client(server.url, server.access_key_id, server.secret_access_key)
        admin.put_object(Bucket="raw", Key="a.tar", Body=b"bytes")
        reads = client(server.url, reader.access_key_id, reader.secret_access_key)
        assert reads.get_object(Bucket="raw", Key="a.tar")["Body"].read() == b"bytes"
        assert reads.list_objects_v2(Bucket="raw")["KeyCount"] == 1
        writes = {"put_object": {"Key": "b.tar"}, "delete_object": {"Key": "a.tar"}, "create_bucket": {}}
        for operation, rest in writes.items():
            with pytest.raises(ClientError, match="AccessDenied"):
                getattr(reads, operation)(Bucket="raw", **rest)


def test_unsafe_defaults_are_off(tmp_path: Path) -> None:
    """Full buckets are not deleted, buckets do not come by themselves, and nothing listens beyond loopback."""
    with seaweed.serve(tmp_path, buckets=["raw"]) as server:
        admin = client(server.url, server.access_key_id, server.secret_access_key)
        admin.put_object(Bucket="raw", Key="a.tar", Body=b"bytes")
        with pytest.raises(ClientError, match="BucketNotEmpty"):
            admin.delete_bucket(Bucket="raw")
        with pytest.raises(ClientError, match="NoSuchBucket"):
            admin.put_object(Bucket="surprise", Key="a.tar", Body=b"bytes")
        sockets = psutil.Process(server.process.pid).net_connections()
        listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}


def test_keys_stay_private(tmp_path: Path) -> None:
    """Keys are in a file of mode 0600 and nowhere else: not in arguments, environment, representation or log."""
    with seaweed.serve(tmp_path) as server:
        process = psutil.Process(server.process.pid)
        told = " ".join([*process.cmdline(), *process.environ().values(), repr(server)])
        assert server.secret_access_key not in told
        assert stat.S_IMODE((tmp_path / seaweed.CONFIG).stat().st_mode) == 0o600
        assert server.secret_access_key not in (tmp_path / seaweed.LOG).read_text()


def test_two_run_side_by_side(tmp_path: Path) -> None:
    """Servers started at the same time get ports and data of their own."""
    urls: list[str] = []
    together = threading.Barrier(3)

    def run(name: str) -> None:
        with seaweed.serve(tmp_path / name, buckets=[name]) as server:
            urls.append(server.url)
            together.wait(60)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one-1", "two-2")]
    for thread in threads:
        thread.start()
    together.wait(60)
    for thread in threads:
        thread.join(60)
    assert len(set(urls)) == 2


def test_ports_of_last_time_are_kept_while_free() -> None:
    """The same ports come back, unless somebody listens on one of them."""
    last = seaweed.ports()
    assert seaweed.ports(last) == last
    with contextlib.closing(socket.create_server(("127.0.0.1", last["master"]))):
        assert seaweed.ports(last)["master"] != last["master"]


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """A server whose parent is killed without a chance to stop it ends by itself (Linux)."""
    script = (
        "import sys, time, pathlib; from deployments import seaweed\n"
        "with seaweed.serve(pathlib.Path(sys.argv[1])) as s: print(s.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        server.wait(15)
    assert not server.is_running()
