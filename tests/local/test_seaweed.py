"""The S3 server for one machine."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # botocore ships no types
from botocore.session import get_session  # type: ignore[import-untyped]  # botocore ships no types

from plateway.local import seaweed


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
        "import sys, time, pathlib; from plateway.local import seaweed\n"
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


REQUESTS = {
    "read": [("GET", "/buckets/raw/a.tar"), ("GET", "/raw/a.tar"), ("HEAD", "/raw/a.tar"), ("GET", "/1,01637037d6")],
    "list": [
        ("GET", "/"),
        ("GET", "/buckets/?pretty=y"),
        ("GET", "/raw?list-type=2"),
        ("GET", "/dir/lookup?volumeId=1"),
    ],
    "write": [("PUT", "/raw/new"), ("PUT", "/buckets/raw/new"), ("POST", "/submit"), ("PUT", "/raw/a.tar?tagging")],
    "delete": [("DELETE", "/buckets/raw?recursive=true"), ("DELETE", "/raw/a.tar"), ("POST", "/raw?delete")],
    "administer": [
        *(("GET", "/dir/assign"), ("GET", "/col/delete?collection=raw"), ("GET", "/vol/grow?count=1")),
        *(("GET", "/vol/vacuum"), ("GET", "/cluster/status"), ("GET", "/ui/index.html"), ("GET", "/api/config")),
        *(("POST", "/?Action=CreateUser&UserName=x&Version=2010-05-08"), ("POST", "/?Action=AssumeRole")),
        *(("PUT", "/raw?policy"), ("PUT", "/raw?cors"), ("PUT", "/surprise")),
    ],
    "measure": [("GET", "/metrics"), ("GET", "/stats/counter"), ("GET", "/debug/pprof/"), ("GET", "/debug/vars")],
}
ALIVE = {"/status", "/healthz"}  # what S3 answers to anybody: that it runs


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[seaweed.Server, Path]]:
    """A server with one object, and where its certificates are."""
    data = tmp_path_factory.mktemp("closed")
    with seaweed.serve(data, buckets=["raw"]) as server:
        admin = client(server.url, server.access_key_id, server.secret_access_key)
        admin.put_object(Bucket="raw", Key="a.tar", Body=b"bytes")
        yield server, data


def listening(server: seaweed.Server) -> set[int]:
    """List every TCP port on which the server listens."""
    sockets = psutil.Process(server.process.pid).net_connections("tcp")
    return {each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN}


def ports_of(server: seaweed.Server) -> dict[str, int]:
    """Read from the command line which service has which port."""
    words = psutil.Process(server.process.pid).cmdline()
    named = (word.removeprefix("-").split(".port=") for word in words if ".port=" in word)
    return {name: int(port) for name, port in named}


def strangers(tmp_path: Path) -> Iterator[httpx.Client]:
    """Make clients without credentials: over HTTP, over TLS, and over TLS with a certificate of another authority."""
    _, certificate, key = seaweed.make_certificates()
    (tmp_path / "pair.pem").write_text(certificate + key)
    for scheme, pair in (("http", None), ("https", None), ("https", tmp_path / "pair.pem")):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if pair:
            context.load_cert_chain(pair)
        headers = {"Origin": "http://elsewhere.example"}
        with httpx.Client(
            verify=context, trust_env=False, timeout=10, headers=headers, base_url=f"{scheme}://"
        ) as http:
            yield http


def ask(http: httpx.Client, method: str, port: int, path: str, **options: Any) -> httpx.Response | None:
    """Send one request; None where the connection is refused."""
    try:
        return http.request(method, http.base_url.copy_with(host="127.0.0.1", port=port).join(path), **options)
    except httpx.TransportError:
        return None


def unchanged(server: seaweed.Server) -> bool:
    """Whether buckets and objects are what they were."""
    admin = client(server.url, server.access_key_id, server.secret_access_key)
    names = [bucket["Name"] for bucket in admin.list_buckets()["Buckets"]]
    keys = [each["Key"] for each in admin.list_objects_v2(Bucket="raw")["Contents"]]
    return (
        names == ["raw"]
        and keys == ["a.tar"]
        and admin.get_object(Bucket="raw", Key="a.tar")["Body"].read() == b"bytes"
    )


@pytest.mark.parametrize("purpose", REQUESTS)
def test_no_port_serves_a_stranger(closed: tuple[seaweed.Server, Path], tmp_path: Path, purpose: str) -> None:
    """Without credentials no port reads, lists, writes, deletes, administers or measures."""
    server, _ = closed
    assert len(listening(server)) == 2 * len(seaweed.SERVICES)
    for http in strangers(tmp_path):
        for port in listening(server):
            for method, path in REQUESTS[purpose]:
                answer = ask(http, method, port, path)
                assert answer is None or answer.is_client_error, (port, method, path)
                assert answer is None or b"bytes" not in answer.content
    assert unchanged(server)


def test_a_form_of_another_site_writes_nothing(closed: tuple[seaweed.Server, Path], tmp_path: Path) -> None:
    """What a web page may send without asking first, a form or plain text, is refused at every port."""
    server, _ = closed
    file = {"file": ("new", b"evil")}
    bodies: list[dict[str, Any]] = [{"files": file, "data": {"key": "new"}}, {"content": b"evil"}]
    for http in strangers(tmp_path):
        for port in listening(server):
            for path in ("/buckets/raw/", "/buckets/raw/a.tar", "/raw", "/raw/a.tar", "/submit", "/"):
                for body in bodies:
                    answer = ask(http, "POST", port, path, **body)
                    assert answer is None or answer.is_client_error, (port, path)
    assert unchanged(server)


def test_other_origins_get_no_permission(closed: tuple[seaweed.Server, Path]) -> None:
    """A page of another origin may neither ask for an object nor read an answer about one."""
    server, _ = closed
    headers = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "PUT"}
    link = client(server.url, server.access_key_id, server.secret_access_key).generate_presigned_url(
        "get_object", Params={"Bucket": "raw", "Key": "a.tar"}
    )
    with httpx.Client(headers=headers, trust_env=False) as http:
        preflight, read = http.options(f"{server.url}/raw/a.tar"), http.get(link)
    assert preflight.status_code == 403
    assert read.content == b"bytes"
    for answer in (preflight, read):
        assert "access-control-allow-origin" not in answer.headers


def test_readiness_is_all_that_s3_tells(closed: tuple[seaweed.Server, Path]) -> None:
    """Two paths of S3 answer to anybody, with nothing in them."""
    server, _ = closed
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        assert {http.get(path).content for path in ALIVE} == {b""}


def test_its_own_tools_need_its_certificate(closed: tuple[seaweed.Server, Path], tmp_path: Path) -> None:
    """SeaweedFS' own programs, which use gRPC, get nowhere from elsewhere, and work in the data directory."""
    server, data = closed
    at = ports_of(server)
    (tmp_path / "new").write_text("evil")
    filer = f"127.0.0.1:{at['filer']}"

    def weed(where: Path, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        env = {"HOME": str(where), "PATH": os.defpath}
        command = [seaweed.program(), *words]
        return subprocess.run(
            command, cwd=where, env=env, input=typed, capture_output=True, text=True, timeout=60, check=False
        )

    shell = ("shell", f"-master=127.0.0.1:{at['master']}", f"-filer={filer}")
    assert "raw" in weed(data, *shell, typed="fs.ls /buckets\nexit\n").stdout
    assert weed(tmp_path, "upload", f"-master=127.0.0.1:{at['master']}", "new").returncode != 0
    assert weed(tmp_path, "filer.copy", "new", f"http://{filer}/buckets/raw/").returncode != 0
    assert "bytes" not in weed(tmp_path, "filer.cat", f"http://{filer}/buckets/raw/a.tar").stdout
    assert unchanged(server)


def test_every_file_of_it_is_private(closed: tuple[seaweed.Server, Path]) -> None:
    """Keys, certificates, tokens and data are for the owner only."""
    _, data = closed
    for name in (seaweed.CONFIG, seaweed.SECURITY, seaweed.KEY, seaweed.CERTIFICATE, seaweed.LOG):
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600, name
    sockets = [path for path in data.iterdir() if path.is_socket()]
    assert len(sockets) == 2
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in sockets)


def test_each_start_has_keys_of_its_own(tmp_path: Path) -> None:
    """Tokens and certificates of an earlier start are worth nothing."""
    seen = set()
    for _ in range(2):
        seaweed.lock_ports(tmp_path)
        seen |= {(tmp_path / name).read_text() for name in (seaweed.SECURITY, seaweed.KEY, seaweed.CA)}
    assert len(seen) == 6
