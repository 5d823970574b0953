"""A gateway that changes nothing, as a safe haven has it: a key that only reads, plain HTTP, proxies in the way.

It runs as people start it, and everything that it sends to S3 passes a proxy that keeps a book.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.events import Ref
from plateway.gateway import access, tokens
from plateway.local import seaweed
from plateway.local.seaweed import PLAIN
from plateway.store import open_store
from tests.faults.proxy import Proxy, between
from tests.gateway.conftest import Start
from tests.lab import Clock, Lab

EVENTS, OBJECTS = "extraction_5_CT", "Request4_CT"  # as the safe haven calls its buckets
DEAD = "http://127.0.0.1:9"  # a proxy that answers nobody
PROXIES = dict.fromkeys(["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"], DEAD)
READS = {"get object", "head object", "head bucket", "list"}
UID = "1.3.6.1.4.1.14519.5.2.1.7009.2403.334240657131972136850343327463"
DICOM = "/".join([UID, UID, f"{UID}.dcm"])  # 200 characters of numbers and dots


@dataclass(frozen=True)
class Haven:
    """A read-only gateway, what is behind it, and the book of what it asked there."""

    url: str
    secret: str
    book: Proxy
    lab: Lab
    ref: Ref
    images: Mapping[str, str]  # names and SHA-256
    reader: Endpoint  # S3 itself, with the key that can only read

    def client(self) -> httpx.Client:
        """Send a request as somebody who may do everything."""
        headers = {"Authorization": f"Bearer {self.secret}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=PLAIN)


@pytest.fixture(scope="module")
def haven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Haven]:
    """One event and one object, put there by others, and a gateway with a key that can only read."""
    home, data = tmp_path_factory.mktemp("haven"), tmp_path_factory.mktemp("s3")
    reads = seaweed.Identity("reader", seaweed.READ_ONLY)
    with seaweed.serve(data, identities=[reads]) as server, between(server.url) as book:
        make(server, EVENTS)
        make(server, OBJECTS, UID, f"{UID}/{UID}")
        admin = endpoint(server.url, server.access_key_id, server.secret_access_key)
        reader = endpoint(server.url, reads.access_key_id, reads.secret_access_key)
        open_store(f"s3://{OBJECTS}", admin).put(DICOM, [b"DICM"], size=4, part_size=5 << 20, metadata={})
        clock = Clock()
        with closing(Catalog(f"sqlite:///{home}/catalogue.db", clock=clock)) as catalog:
            catalog.upgrade()
            lab = Lab(home, open_store(f"s3://{EVENTS}", admin), clock, catalog)
            announced, ref = lab.exported()
            now = datetime.now(UTC)
            made = tokens.add(home / "tokens.json", "all", ttl=timedelta(days=1), scopes=tokens.SCOPES, now=now)
            with serving(home, replace(reader, url=book.url)) as url:
                yield Haven(url, made.secret, book, lab, ref, announced.files, reader)


def endpoint(url: str, key: str, secret: str) -> Endpoint:
    return Endpoint(url=url, access_key_id=key, secret_access_key=SecretStr(secret))


def make(server: seaweed.Server, bucket: str, *folders: str) -> None:
    """Make a bucket of any name. SeaweedFS refuses capitals and underscores over S3, so its filer is told to.

    What makes folders by itself leaves such buckets out, and folders that nobody made are not listed.
    """
    assert isinstance(server.process.args, list)
    given = dict(word.lstrip("-").partition("=")[::2] for word in server.process.args)
    data = Path(given["dir"])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(data / seaweed.CERTIFICATE, data / seaweed.KEY)
    key = tomllib.loads((data / seaweed.SECURITY).read_text())["jwt"]["filer_signing"]["key"]
    with httpx.Client(
        trust_env=False, verify=context, timeout=60, headers={"Authorization": f"Bearer {signed(key)}"}
    ) as filer:
        for folder in (f"{bucket}/", *(f"{bucket}/{folder}/" for folder in folders)):
            answer = filer.post(f"https://127.0.0.1:{given['filer.port']}/buckets/{folder}")
            assert answer.status_code == 201, answer.text


def signed(key: str) -> str:
    """Make a token as SeaweedFS signs them."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"exp": int(time.time()) + 600}]
    told = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    mark = base64.urlsafe_b64encode(hmac.new(key.encode(), told, hashlib.sha256).digest()).rstrip(b"=")
    return (told + b"." + mark).decode()


@contextmanager
def serving(home: Path, asked: Endpoint) -> Iterator[str]:
    """Run `plateway serve --read-only` with this key; gives its address."""
    assert asked.secret_access_key is not None
    theirs = ("PLATEWAY_", "AWS_", "NO_PROXY", "no_proxy")
    env = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    env |= PROXIES | {
        "PLATEWAY_HOME": str(home),
        "PLATEWAY_BUCKET_URL": f"s3://{EVENTS}",
        "PLATEWAY_OBJECTS_URL": f"s3://{OBJECTS}",
        "PLATEWAY_BYPASS_PROXY": "true",
        "AWS_ENDPOINT_URL": str(asked.url),
        "AWS_ACCESS_KEY_ID": str(asked.access_key_id),
        "AWS_SECRET_ACCESS_KEY": asked.secret_access_key.get_secret_value(),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "plateway", "serve", "--read-only", "--port", "0"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        watch = threading.Timer(300, process.kill)  # nothing takes so long
        watch.start()
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            watch.cancel()
            process.terminate()
            process.wait(60)


def inside(lab: Lab) -> dict[str, str]:
    """Read the bucket of the events: keys, and the ETags of what they have."""
    return {one.key: one.etag for one in lab.store.list()}


def test_it_is_ready_and_reads(haven: Haven) -> None:
    """Buckets with capitals and underscores are read past the proxies: objects whole, in part, and listed."""
    with haven.client() as http:
        assert http.get("/ready").json()["status"] == "ready"
        assert http.get(f"/objects/{DICOM}").content == b"DICM"
        assert http.get(f"/objects/{DICOM}", headers={"Range": "bytes=1-2"}).content == b"IC"
        assert http.head(f"/objects/{DICOM}").headers["content-length"] == "4"
        assert http.get("/objects").json()["keys"] == [DICOM]
        assert http.get("/objects/nothing").status_code == 404


def test_events_are_told_and_their_images_read(haven: Haven) -> None:
    """One image comes out of the bundle in memory, a small picture is made, and a link needs no key."""
    with haven.client() as http:
        day = {"start": "2001-01-01T00:00:00Z", "end": "2999-01-01T00:00:00Z"}
        (export,) = http.get("/api/1/exports", params=day).json()["data"]
        assert export["ref_id"] == str(haven.ref.id)
        link = urlsplit(export["url"])
        assert (link.scheme, link.path.split("/")[1]) == ("http", EVENTS)
        with httpx.Client(trust_env=False, verify=PLAIN, timeout=60) as anybody:
            bundle = anybody.get(export["url"])
            assert bundle.status_code == 200
            assert anybody.put(export["url"], content=b"x").status_code == 403
            assert haven.book.log.pop().name == "put object"  # ours, not the gateway's
        images = http.get(f"/api/1/events/{haven.ref}/images").json()["images"]
        assert set(haven.images) <= {one["name"] for one in images}
        for one in images:
            content = http.get(one["url"]).content
            assert hashlib.sha256(content).hexdigest() == one["sha256"]
            assert content in bundle.content
        assert http.get(images[0]["thumbnail"]).headers["content-type"] == "image/png"


def test_every_way_to_change_something_is_refused(haven: Haven) -> None:
    """Each path with each method that could change something is 403, and S3 hears nothing of it."""
    before, asked = inside(haven.lab), len(haven.book.log)
    with haven.client() as http:
        paths = [re.sub(r"\{\w+\}", "a", path) for path in http.get("/openapi.json").json()["paths"]]
        assert {"/objects/a", "/objects", "/health"} <= set(paths)
        for path in [*paths, "/", "/docs", "/nothing", "/objects/a/b"]:
            for method in ("PUT", "POST", "PATCH", "DELETE", "MKCOL", "COPY"):
                answer = http.request(method, path, content=b"x", params={"uploads": "", "tagging": ""})
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "403"), (method, path)
        del http.headers["Authorization"]  # a gateway of Versity's took what came without (#1771)
        assert http.put("/objects/a", content=b"x").status_code == 403
    assert len(haven.book.log) == asked
    assert inside(haven.lab) == before


def test_s3_is_asked_for_nothing_but_reading(haven: Haven) -> None:
    """Whatever it does, from its start on: the key was never used for anything that it may not do."""
    with haven.client() as http:
        assert http.get(f"/objects/{DICOM}").status_code == 200
        assert http.delete(f"/objects/{DICOM}").status_code == 403
    assert {message.name for message in haven.book.log} <= READS
    assert {message.start.split()[0] for message in haven.book.log} <= {"GET", "HEAD"}


def test_accesses_are_logged(haven: Haven) -> None:
    """What was read and what was refused can be looked up: who, which key, how many bytes, which status.

    A line is written when its request is over for the server, which may be after the client has its response: lines of
    requests that follow each other may come late, and in another order.
    """
    path = haven.lab.home / "gateway" / "access.log"
    before = len([*access.read(path)])
    with haven.client() as http:
        http.put("/objects/mine", content=b"not taken")
        http.get(f"/objects/{DICOM}")
        http.delete("/objects/mine", headers={"Authorization": "Bearer nobody"})
    deadline = time.monotonic() + 30
    while len(log := [*access.read(path)][before:]) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    by_method = {one.method: one for one in log}
    assert sorted(by_method) == ["DELETE", "GET", "PUT"]
    put, get, delete = by_method["PUT"], by_method["GET"], by_method["DELETE"]
    assert (put.who, put.status) == ("all", 403)
    assert (get.who, get.status, get.sent, get.key, get.address) == ("all", 200, 4, DICOM, "127.0.0.1")
    assert (delete.who, delete.status) == (None, 403)


def test_a_key_that_only_reads_is_no_reason_to_fail(start: Start, haven: Haven) -> None:
    """Without the mode, but with such a key, a PUT is 503 and says no more; reading goes on."""
    gateway = start(objects=f"s3://{OBJECTS}", endpoint=haven.reader)
    with gateway.client() as http:
        answer = http.put("/objects/mine", content=b"x")
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the store refuses the gateway's credentials"
        assert http.get(f"/objects/{DICOM}").content == b"DICM"
