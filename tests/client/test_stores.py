"""Both stores on a real gateway: the contract of amplify-object-store's clients, and what was wrong with them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import given
from hypothesis.strategies import text

from plateway.client import AsyncRestStore, RestStore, RestStoreError
from plateway.client.retries import path
from plateway.errors import Denied, NotFound
from tests.client.conftest import Open
from tests.client.scripted import Scripted, said
from tests.gateway.conftest import Gateway

MIB = 1 << 20
ODD = ["", "/", "/a", "a/", "a//b", " ", "a b", "a+b", "%41", "%2F", "as1#x", "as1#y", "q?x=1&y", "p%41q", "...", "ü/é"]
ODD += ["a\u2028b", "\U0001f600", "~!$&'()*,;=:@[]{}|^`<>\"", "k" * 110, "/".join(["d" * 120] * 8)]


def test_put_get_exists_delete_keys(objects: RestStore, own: str) -> None:
    """The five verbs of the original, with its answers."""
    assert not objects.exists(f"{own}a")
    objects.put(f"{own}a", b"first")
    objects.put(f"{own}a", b"second")
    assert objects.exists(f"{own}a")
    assert objects.get(f"{own}a") == b"second"
    assert f"{own}a" in list(objects.keys())
    objects.delete(f"{own}a")
    assert not objects.exists(f"{own}a")
    with pytest.raises(KeyError, match="not found"):
        objects.get(f"{own}a")
    with pytest.raises(KeyError, match="not found"):
        objects.delete(f"{own}a")
    with pytest.raises(NotFound):
        list(objects.open(f"{own}a"))


@pytest.mark.parametrize("content", [b"", bytearray(b"array"), memoryview(b"0view0")[1:5], b"\0\r\n\xff" * 1000])
def test_bytes_come_back(objects: RestStore, own: str, content: bytes | bytearray | memoryview) -> None:
    """Whatever holds the bytes, and none at all."""
    objects.put(f"{own}a", content)
    assert objects.get(f"{own}a") == bytes(content)
    assert b"".join(objects.open(f"{own}a")) == bytes(content)


def test_text_is_refused(objects: RestStore, own: str) -> None:
    """Text has no bytes until somebody says which."""
    with pytest.raises(TypeError):
        objects.put(f"{own}a", "text")  # type: ignore[arg-type]


def test_keys_go_on_over_pages(objects: RestStore, own: str) -> None:
    """A listing of more than a page is whole, in order, and may be narrowed to a prefix."""
    for number in range(201):
        objects.put(f"{own}{number:03}", b"")
    assert list(objects.keys(own)) == [f"{own}{number:03}" for number in range(201)]
    assert list(objects.keys(f"{own}12")) == [f"{own}12{number}" for number in range(10)]
    assert set(objects.keys(own)) <= set(objects.keys())


def test_o11_what_is_listed_may_be_deleted_meanwhile(objects: RestStore, own: str) -> None:
    """O11: a listing goes on over its pages while everything in it is deleted."""
    for number in range(102):
        objects.put(f"{own}{number:03}", b"")
    for key in objects.keys(own):
        objects.delete(key)
    assert list(objects.keys(own)) == []


def test_o1_a_missing_object_is_missing_at_once(objects: RestStore, own: str, store: Open, scripted: Scripted) -> None:
    """O1: exists() asks once for what is not there, and does not wait."""
    began = time.monotonic()
    assert not objects.exists(f"{own}nothing")
    scripted.play(said(404))
    assert not store(scripted.url, retry_delay=30.0).exists("nothing")
    assert len(scripted.asked) == 1
    assert time.monotonic() - began < 30


def test_o2_exists_does_not_lie(gateway: Gateway, store: Open, objects: RestStore, own: str) -> None:
    """O2: a token that is not good, one that may not read, and an outage are errors, not an answer."""
    objects.put(f"{own}a", b"1")
    for secret in ("wrong", gateway.token(f"write {own}", "write")):
        with pytest.raises(RestStoreError) as caught:
            store(gateway.url, secret).exists(f"{own}a")
        assert isinstance(caught.value.__cause__, Denied)
    with Scripted() as gone:
        url = gone.url
    with pytest.raises(RestStoreError, match="ConnectError"):
        store(url).exists(f"{own}a")


def test_o3_keys_are_whole(objects: RestStore, own: str) -> None:
    """O3: no mark cuts a key off or changes it: each key has its own object, and is listed as it is."""
    for key in ODD:
        objects.put(own + key, key.encode())
    assert [objects.get(own + key).decode() for key in ODD] == ODD
    assert [objects.exists(own + key) for key in ODD] == [True] * len(ODD)
    assert list(objects.keys(own)) == sorted((own + key for key in ODD), key=lambda key: key.encode())


def test_o3_both_clients_mean_the_same(gateway: Gateway, own: str) -> None:
    """O3: what one client stores, the other finds under the same key."""

    async def stored() -> None:
        async with AsyncRestStore.create(gateway.url, gateway.secrets["all"]) as other:
            for key in ODD:
                await other.put(own + key, key.encode())

    asyncio.run(stored())
    with RestStore.create(gateway.url, gateway.secrets["all"]) as store:
        assert {key: store.get(own + key).decode() for key in ODD} == {key: key for key in ODD}


def test_o4_what_is_listed_can_be_deleted(objects: RestStore, own: str) -> None:
    """O4: keys are decoded once: a listed key is the one that was stored."""
    for key in ("p%41q", "p%2541q", "%2e", "100%", "a%2Fb"):
        objects.put(own + key, b"1")
    for key in list(objects.keys(own)):
        objects.delete(key)
    assert list(objects.keys(own)) == []


@pytest.mark.parametrize("key", ["a/../b", "..", ".", "./b", "a/.", "../../b"])
def test_o5_dots_lead_nowhere(objects: RestStore, own: str, key: str) -> None:
    """O5: a key with segments . or .. reaches the server as it is, and is refused; nothing is stored elsewhere."""
    with pytest.raises(KeyError, match=r"no segments \. or \.\."):
        objects.put(own + key, b"1")
    with pytest.raises(KeyError, match=r"no segments \. or \.\."):
        objects.get(own + key)
    assert list(objects.keys(own)) == []


@given(text(max_size=40) | text(alphabet="./%#?&+ \\;:@é\n", max_size=12))
def test_o5_every_key_goes_as_it_is(key: str) -> None:
    """O3, O5: whatever a key is made of, the request line has exactly it, in a form that no client or proxy changes."""
    sent = httpx.Request("GET", f"http://host/v1{path('/objects', key=key)}").url.raw_path.decode("ascii")
    assert unquote(sent.removeprefix("/v1/objects/")) == key
    assert not {".", ".."} & set(sent.split("/"))


def test_keys_that_no_address_can_say(objects: RestStore) -> None:
    """Half a character is no key, for any verb."""
    for call in (objects.get, objects.delete, lambda key: objects.put(key, b"")):
        with pytest.raises((KeyError, RestStoreError), match="UTF-8"):
            call("\ud800")
    with pytest.raises(RestStoreError, match="UTF-8"):
        objects.exists("\ud800")


PEAK = """
import asyncio, hashlib, resource, sys
from pathlib import Path
from typing import cast
from urllib.parse import unquote
from plateway.client import AsyncRestStore, RestStore
url, secret, path, flavour = sys.argv[1:]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

async def stream():
    async with AsyncRestStore.create(url, secret) as store:
        await store.put("warm", b"x")
        before, sums = peak(), hashlib.sha256()
        with open(path, "rb") as file:
            await store.put("big/async", file)
        async for piece in store.open("big/async"):
            sums.update(piece)
    return before, sums

def direct():
    with RestStore.create(url, secret) as store:
        store.put("warm", b"x")
        before, sums = peak(), hashlib.sha256()
        with open(path, "rb") as file:
            store.put("big/sync", file)
        for piece in store.open("big/sync"):
            sums.update(piece)
    return before, sums

before, sums = direct() if flavour == "sync" else asyncio.run(stream())
print(sums.hexdigest(), peak() - before)
"""


def test_o12_large_objects_take_little_memory(gateway: Gateway, kind: str, tmp_path: Path) -> None:
    """O12: 32 MiB go there and back in 16 MiB, and are the same."""
    content = os.urandom(MIB) * 32
    (tmp_path / "big").write_bytes(content)
    command = [sys.executable, "-c", PEAK, gateway.url, gateway.secrets["all"], str(tmp_path / "big"), kind]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert told[0] == hashlib.sha256(content).hexdigest()
    assert int(told[1]) < 16


def test_o14_stores_are_context_managers(gateway: Gateway, own: str) -> None:
    """O14: the example of the original's README works: what create() returns closes its connections."""
    with RestStore.create(base_url=gateway.url, api_key=gateway.secrets["all"]) as store:
        store.put(f"{own}temp-key", b"temporary data")
        assert store.get(f"{own}temp-key") == b"temporary data"
    with pytest.raises(RuntimeError, match="closed"):
        store.get(f"{own}temp-key")

    async def visit() -> bytes:
        async with AsyncRestStore.create(base_url=gateway.url, api_key=gateway.secrets["all"]) as store:
            return await store.get(f"{own}temp-key")

    assert asyncio.run(visit()) == b"temporary data"


def test_o14_nothing_heavy_is_imported() -> None:
    """O14: the package can be imported, and brings httpx and nothing of the server's."""
    heavy = {"sqlalchemy", "sqlmodel", "prefect", "numpy", "tifffile", "boto3", "botocore", "s3fs", "fsspec", "obstore"}
    heavy |= {"pydantic", "fastapi", "starlette", "uvicorn", "PIL", "typer", "aiohttp", "requests", "psutil"}
    code = "import sys, plateway.client; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    names = set(told.split())
    assert not heavy & {name.split(".")[0] for name in names}
    assert {name for name in names if name.startswith("plateway.")} - {"plateway.errors"} == {
        name for name in names if name.startswith("plateway.client")
    }


def test_the_originals_arguments(gateway: Gateway) -> None:
    """Arguments go by place and by name, to the class and to create()."""
    for made in (RestStore, RestStore.create):
        with made(gateway.url + "/", gateway.secrets["all"], 30.0, 3, 1.0) as store:
            assert not store.exists("nothing")
        named = made(base_url=gateway.url, api_key="x", timeout=1.0, max_retries=1, retry_delay=0.0)
        named.close()


def test_files_and_pieces(objects: RestStore, own: str, tmp_path: Path) -> None:
    """Files are sent from where they are to their end; pieces of unknown number are sent as they come."""
    content = os.urandom(3 * MIB + 5)
    (tmp_path / "a").write_bytes(content)
    with (tmp_path / "a").open("rb") as file:
        file.seek(5)
        objects.put(f"{own}file", file)
    assert objects.get(f"{own}file") == content[5:]
    objects.put(f"{own}pieces", (content[start : start + 1000] for start in range(0, len(content), 1000)))
    assert objects.get(f"{own}pieces") == content
    objects.put(f"{own}list", [b"a", b"", b"b"])
    assert objects.get(f"{own}list") == b"ab"
    objects.put(f"{own}none", iter(()))
    assert objects.get(f"{own}none") == b""


def test_pipes(objects: RestStore, own: str) -> None:
    """What cannot go back is sent once, as it comes."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.left = 5

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            self.left -= 1
            buffer[:1] = b"x"
            return 1 if self.left >= 0 else 0

    objects.put(f"{own}pipe", io.BufferedReader(cast("io.RawIOBase", Pipe())))
    assert objects.get(f"{own}pipe") == b"xxxxx"


def test_pieces_that_are_waited_for(gateway: Gateway, own: str) -> None:
    """The asynchronous client takes asynchronous pieces, the synchronous one says that it does not."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a", b"b", b"c"):
            await asyncio.sleep(0)
            yield piece

    async def stored() -> bytes:
        async with AsyncRestStore.create(gateway.url, gateway.secrets["all"]) as store:
            await store.put(f"{own}a", pieces())
            return await store.get(f"{own}a")

    assert asyncio.run(stored()) == b"abc"
    with RestStore.create(gateway.url, "x") as store, pytest.raises(TypeError):
        store.put(f"{own}a", pieces())  # type: ignore[arg-type]


def test_ranges(objects: RestStore, own: str, store: Open, scripted: Scripted) -> None:
    """So many bytes from there on, or up to the end; beyond it there is nothing to read."""
    objects.put(f"{own}a", b"0123456789")
    assert objects.get_range(f"{own}a", 2, 3) == b"234"
    assert objects.get_range(f"{own}a", 8, 100) == b"89"
    with pytest.raises(KeyError, match="416"):
        objects.get_range(f"{own}a", 10, 1)
    with pytest.raises(NotFound):
        objects.get_range(f"{own}b", 0, 1)
    for start, length in ((-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="not a range"):
            objects.get_range(f"{own}a", start, length)
    scripted.play(said(200, b"0123456789"))  # as the original does, whatever the range
    assert store(scripted.url).get_range("a", 2, 3) == b"234"


def test_errors_of_the_contract(gateway: Gateway, store: Open, kind: str) -> None:
    """With a token that is not good, each verb raises what the original raises."""
    denied = store(gateway.url, "wrong")
    removed: type[Exception] = KeyError if kind == "sync" else RestStoreError
    for expected, call in (
        (KeyError, lambda: denied.put("a", b"")),
        (KeyError, lambda: denied.get("a")),
        (RestStoreError, lambda: denied.exists("a")),
        (removed, lambda: denied.delete("a")),
        (NotImplementedError, lambda: list(denied.keys())),
    ):
        with pytest.raises(expected, match="HTTP 401") as caught:
            call()
        assert isinstance(caught.value.__cause__, Denied) and not isinstance(caught.value, NotFound)
    if kind == "async":
        with pytest.raises(RestStoreError) as refused:
            denied.delete("a")
        assert not isinstance(refused.value, KeyError)  # which says that there is no such object


def test_threads_share_a_store(gateway: Gateway, own: str) -> None:
    """One store serves many threads."""
    with RestStore.create(gateway.url, gateway.secrets["all"]) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"{own}{number}", str(number).encode()), range(64)))
        assert list(pool.map(lambda number: store.get(f"{own}{number}"), range(64))) == [
            str(number).encode() for number in range(64)
        ]


def test_many_at_a_time(gateway: Gateway, own: str) -> None:
    """More requests at a time than there are connections wait for one."""

    async def visit() -> list[bytes]:
        async with AsyncRestStore.create(gateway.url, gateway.secrets["all"]) as store:
            await store.put(f"{own}a", b"1")
            return await asyncio.gather(*(store.get(f"{own}a") for _ in range(110)))

    assert asyncio.run(visit()) == [b"1"] * 110


def test_connections_are_kept(gateway: Gateway, own: str) -> None:
    """Requests one after the other go over one connection, also when a stream was left half-way."""
    opened = []
    with httpx.Client() as session:
        store = RestStore.create(gateway.url, gateway.secrets["all"], session=session)
        store.put(f"{own}a", b"1" * MIB)
        for _ in range(5):
            store.get(f"{own}a")
            line = session.get(f"{gateway.url}/health").extensions["network_stream"]
            opened.append(line.get_extra_info("client_addr"))
        pieces = store.open(f"{own}a")
        next(pieces)
        del pieces
        store.close()
        assert session.get(f"{gateway.url}/health").status_code == 200  # a session of one's own stays open
    assert len(set(opened)) == 1


def test_objects_are_whole_while_they_are_replaced(gateway: Gateway, own: str) -> None:
    """Readers see one version or the other, never a mixture, while a writer is at it."""
    versions = [bytes([number]) * MIB for number in range(4)]
    with RestStore.create(gateway.url, gateway.secrets["all"]) as store:
        store.put(f"{own}a", versions[0])
        done = threading.Event()

        def replace() -> None:
            for number in range(12):
                store.put(f"{own}a", versions[number % 4])
            done.set()

        writer = threading.Thread(target=replace)
        writer.start()
        while not done.is_set():
            assert store.get(f"{own}a") in versions
        writer.join()


def test_own_iterators_are_left_alone(objects: RestStore, own: str) -> None:
    """Leaving a listing or a stream early is nothing special."""
    objects.put(f"{own}a", os.urandom(2 * MIB))
    objects.put(f"{own}b", b"")
    keys: Iterator[str] = objects.keys(own)
    assert next(keys) == f"{own}a"
    assert next(iter(objects.open(f"{own}a")))
