"""The object API over real HTTP and every store: the contract of amplify-object-store, and what was wrong with it."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import psutil
import pytest

from plateway import settings, store
from plateway.endpoint import Endpoint
from plateway.errors import Rejected
from plateway.gateway import keys as names
from plateway.gateway import opening
from plateway.gateway.objects import MOST
from plateway.store import contract, directory, memory
from tests.gateway.conftest import Gateway, Start, running

MIB = 1 << 20


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client that may do everything."""
    with gateway.client() as client:
        yield client


def at(key: str) -> str:
    """Address a key: every byte that could mean something is encoded."""
    return f"/objects/{quote(key, safe='').replace('.', '%2E')}"  # clients would go up a folder for two dots


def listed(http: httpx.Client, prefix: str, **params: Any) -> list[str]:
    found: list[str] = http.get("/objects", params={"prefix": prefix, **params}).json()["keys"]
    return found


def error(answer: httpx.Response) -> tuple[int, str]:
    """Read an error as the contract has it."""
    assert answer.headers["content-type"] == "application/json"
    (told,) = answer.json().values()
    assert set(told) == {"code", "message"} and told["code"] == str(answer.status_code)
    return answer.status_code, told["message"]


def test_health_is_for_everybody(gateway: Gateway) -> None:
    """Health has the words that clients know, and needs no token; so does readiness, which asks the parts."""
    health, ready = httpx.get(f"{gateway.url}/health"), httpx.get(f"{gateway.url}/ready")
    assert health.json() == {"status": "healthy", "service": "amplify-object-store", "version": "0.1.0"}
    assert (ready.status_code, ready.json()["checks"]["objects"]) == (200, "ok")
    assert {httpx.get(gateway.url + page).status_code for page in ("/docs", "/openapi.json")} == {200}


def test_put_get_head_delete(http: httpx.Client, own: str) -> None:
    """An object is stored, read, looked at and removed with the contract's codes and bodies."""
    put = http.put(at(f"{own}a b/ü?#+%.bin"), content=b"content")
    assert (put.status_code, put.json()["key"], put.json()["size"]) == (200, f"{own}a b/ü?#+%.bin", 7)
    assert put.json()["created_at"].endswith("Z")
    got, head = http.get(at(f"{own}a b/ü?#+%.bin")), http.head(at(f"{own}a b/ü?#+%.bin"))
    assert (got.status_code, got.content, head.status_code, head.content) == (200, b"content", 200, b"")
    assert head.headers["content-length"] == got.headers["content-length"] == "7"
    assert head.headers["etag"] == got.headers["etag"] == put.headers["etag"]
    assert listed(http, own) == [f"{own}a b/ü?#+%.bin"]
    gone = http.delete(at(f"{own}a b/ü?#+%.bin"))
    assert (gone.status_code, gone.content) == (204, b"")
    assert listed(http, own) == []


def test_missing_objects_are_404(http: httpx.Client, own: str) -> None:
    """What is not there is 404 in every way to ask, with a JSON object that says so."""
    for method in ("GET", "DELETE"):
        assert error(http.request(method, at(f"{own}no/thing"))) == (404, f"Object {own}no/thing not found")
    head = http.head(at(f"{own}no/thing"))
    assert (head.status_code, head.content, head.headers["content-type"]) == (404, b"", "application/json")


def test_o9_missing_objects_on_every_store(http: httpx.Client, own: str) -> None:
    """O9: a missing object is 404 on S3 as well, for GET and DELETE."""
    http.put(at(f"{own}a"), content=b"1")
    assert [http.delete(at(f"{own}a")).status_code for _ in range(2)] == [204, 404]
    assert http.get(at(f"{own}a")).status_code == 404


def test_overwriting_and_empty_bodies(http: httpx.Client, own: str) -> None:
    """Objects are replaced, also by nothing."""
    for content in (b"first", b"second", b""):
        assert http.put(at(f"{own}a"), content=content).json()["size"] == len(content)
        assert http.get(at(f"{own}a")).content == content
    assert http.head(at(f"{own}a")).headers["content-length"] == "0"


def test_routing_errors_are_the_frameworks(http: httpx.Client) -> None:
    """Routes and methods that are not there, and parameters of a wrong kind, are answered as FastAPI does."""
    assert http.get("/nothing").json() == {"detail": "Not Found"}
    refused = http.post("/objects/a")
    assert (refused.status_code, refused.json()) == (405, {"detail": "Method Not Allowed"})
    wrong = http.get("/objects?limit=x")
    assert (wrong.status_code, list(wrong.json())) == (422, ["detail"])


ODD = ["", "/", "//", "/a", "a/", "a//b", " ", " !", " ~", ".~~", ".}", ".}!x", ".é", ".~/x", "...", "%41", "%2e%2e/x"]
ODD += ["a\u2028b", "é" * 100, "\U0001f600", "q?x=1&y#f", "a+b", "k" * 250, "/".join(["d" * 120] * 8), "-", "~"]


def test_odd_keys(http: httpx.Client, own: str) -> None:
    """Leading, doubled and closing slashes, marks, and other scripts are keys like any other, and listed in order."""
    keys = sorted((own + key for key in ODD), key=lambda key: key.encode())
    for key in keys:
        assert http.put(at(key), content=key.encode()).json()["key"] == key
    assert [http.get(at(key)).content.decode() for key in keys] == keys
    assert listed(http, own, limit=1000) == keys
    walked: list[str] = []
    cursor = None
    while True:
        page = http.get("/objects", params={"prefix": own, "limit": "4", "cursor": cursor or ""}).json()
        walked += page["keys"]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert walked == keys
    for prefix in ("/", ".", ".}", " ", "a", "a/", "é"):
        assert listed(http, own + prefix) == [key for key in keys if key.startswith(own + prefix)]
    assert {http.delete(at(key)).status_code for key in keys} == {204}
    assert listed(http, own) == []


def test_the_empty_key(http: httpx.Client) -> None:
    """The empty key is accepted, as the original does."""
    assert http.put("/objects/", content=b"1").json()["key"] == ""
    assert http.get("/objects/").content == b"1"
    assert http.get("/objects", params={"limit": 1}).json()["keys"] == [""]
    assert http.delete("/objects/").status_code == 204


BAD = ["..", ".", "a/../b", "../x", "a/..", "./a", "a\\b", "a\0", "a\nb", "a\x7f", "k" * 1025, "k" * 251, ".plateway/x"]


@pytest.mark.parametrize("key", BAD)
def test_keys_that_are_none(http: httpx.Client, key: str) -> None:
    """O5, O6: what would leave the store, or change on the way, is refused with a reason, for every verb."""
    for method in ("PUT", "GET", "DELETE"):
        status, message = error(http.request(method, at(key), content=b"x" if method == "PUT" else None))
        assert status == 400 and "key" in message


def raw(gateway: Gateway, method: str, path: bytes, body: bytes = b"") -> int:
    """Send a path exactly as it is, and read the status."""
    gateway.client().close()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as line:
        head = (
            b"%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        )
        line.sendall(head % (method.encode(), path, gateway.secrets["all"].encode(), len(body)) + body)
        return int(line.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(
    "path",
    [
        *(
            b"../escape",
            b"%2e%2e%2fescape",
            b"%2e%2e/escape",
            b"a/%2e%2e/%2e%2e/escape",
            b"..%2fescape",
            b"./x",
            b"%2e",
        ),
        *(b"%ff", b"a%00", b"%5c..%5cescape", b"%c0%ae%c0%ae/e", b"a%0d%0aX:y"),
    ],
)
def test_o6_no_way_out(gateway: Gateway, path: bytes) -> None:
    """O6: a path that leads outside is 400 as it comes over the wire, however it is written."""
    assert raw(gateway, "PUT", b"/objects/" + path, b"x") == 400
    assert raw(gateway, "GET", b"/objects/" + path) == 400


def test_doubly_encoded_keys_are_decoded_once(gateway: Gateway, http: httpx.Client, own: str) -> None:
    """%252e is the text %2e, and stays it: O4 and the traversal that it hides end here."""
    path = b"/objects/%s%%252e%%252e%%252fescape" % own.encode()
    assert raw(gateway, "PUT", path, b"x") == 200
    assert listed(http, own) == [f"{own}%2e%2e%2fescape"]


def test_ten_thousand_keys_stay_inside(gateway: Gateway) -> None:
    """Of 10,000 generated keys each is refused, or has a plain name that leads back to it, inside the store."""
    chance = random.Random(4)
    pieces = [
        "..",
        ".",
        "/",
        "//",
        "%2e",
        "%2f",
        "\\",
        "\0",
        "a",
        " ",
        "~",
        "}",
        "!",
        "é",
        "\u2025",
        "\uff0e",
        ".plateway",
    ]
    place = Path("/srv/objects")
    checked = 0
    for _ in range(10_000):
        key = "".join(chance.choices(pieces, k=chance.randint(0, 8)))
        try:
            names.checked(key)
        except Rejected:
            continue
        name = names.name(key)
        assert names.shown(contract.check_key(name)) == key
        assert Path(os.path.normpath(place / name)).is_relative_to(place) and name.split("/")[0] != directory.KEPT
        checked += 1
    assert checked > 1000
    with gateway.client() as http:  # and some of them over HTTP
        for _ in range(100):
            key = "".join(chance.choices(pieces, k=chance.randint(1, 8)))
            answer = http.put(at(key), content=b"x")
            assert answer.status_code in {200, 400, 409}
            if answer.status_code == 200:
                assert http.delete(at(key)).status_code == 204


def test_names_have_the_order_of_keys() -> None:
    """Names compare as keys do, and begin as keys begin: pages of the one are pages of the other."""
    chance = random.Random(5)
    letters = [" ", "!", "-", ".", "/", "0", "a", "}", "~", "é", "\U0001f600"]
    keys = {"".join(chance.choices(letters, k=chance.randint(0, 6))) for _ in range(3000)}
    plain = []
    for key in keys:
        try:
            plain.append(names.checked(key))
        except Rejected:
            continue
    assert sorted(plain, key=names.name) == sorted(plain)
    assert len({names.name(key) for key in plain}) == len(plain)
    for key in plain[:500]:
        for length in range(len(key) + 1):
            beginning = names.beginning(key[:length])
            assert beginning is not None and names.name(key).startswith(beginning)


def test_a_key_and_one_below_it(gateway: Gateway, http: httpx.Client, own: str) -> None:
    """`a` and `a/b` are two objects; where files cannot be folders, the second is 409 and changes nothing."""
    http.put(at(f"{own}a"), content=b"1")
    second = http.put(at(f"{own}a/b"), content=b"2")
    assert second.status_code == (409 if "file:" in str(gateway.parts.objects) else 200)
    assert http.get(at(f"{own}a")).content == b"1"
    http.delete(at(f"{own}a/b"))
    assert http.delete(at(f"{own}a")).status_code == 204
    assert http.put(at(f"{own}a/b"), content=b"2").status_code == 200
    http.delete(at(f"{own}a/b"))
    assert http.put(at(f"{own}a"), content=b"3").status_code == 200


def test_o7_keys_with_slashes_and_no_paths_in_messages(gateway: Gateway, http: httpx.Client, own: str) -> None:
    """O7: any key with slashes is stored, and no message tells where."""
    assert http.put(at(f"{own}a/b/c/d"), content=b"1").status_code == 200
    for key in (f"{own}a/b", f"{own}a/b/c/d/e", "../x", "k" * 2000):
        for method in ("PUT", "GET", "DELETE"):
            text = http.request(method, at(key), content=b"" if method == "PUT" else None).text
            assert str(gateway.parts.home) not in text and "127.0.0.1" not in text and "objects-" not in text


def test_o8_long_keys(http: httpx.Client, own: str) -> None:
    """O8: keys of 200 characters, and of 1,000 bytes, are stored."""
    for key in ("k" * 200, "/".join(["d" * 200] * 4), "ü" * 120):
        assert http.put(at(own + key), content=b"1").status_code == 200
        assert http.get(at(own + key)).content == b"1"


def test_pages(http: httpx.Client, own: str) -> None:
    """Limits are as the contract has them: 100 unless said, none, negative; there are more, and a cursor, or not."""
    keys = [f"{own}{number:03}" for number in range(7)]
    for key in keys:
        http.put(at(key), content=b"1")

    def page(**params: Any) -> dict[str, Any]:
        found: dict[str, Any] = http.get("/objects", params={"prefix": own, **params}).json()
        return found

    assert page() == {"keys": keys, "next_cursor": None, "has_more": False}
    assert page(limit=7) == {"keys": keys, "next_cursor": None, "has_more": False}
    assert page(limit=0) == {"keys": [], "next_cursor": None, "has_more": False}  # a client that goes on never ends
    assert (page(limit=-1)["keys"], page(limit=-1)["has_more"]) == (keys[:-1], True)
    first = page(limit=3)
    assert base64.b64decode(first["next_cursor"]) == b'{"last_key": "%s"}' % keys[2].encode()
    assert page(limit=3, cursor=first["next_cursor"])["keys"] == keys[3:6]
    assert page(limit=10**9)["keys"] == keys
    assert page(prefix="../")["keys"] == page(prefix="\0")["keys"] == []


@pytest.mark.parametrize(
    "cursor",
    ["x", "e30=", base64.b64encode(b'{"last_key": 1}').decode(), base64.b64encode(b'["a"]').decode(), "=", "ü"],
)
def test_cursors_that_are_none(http: httpx.Client, cursor: str) -> None:
    """A cursor that nobody gave is 400."""
    assert error(http.get("/objects", params={"cursor": cursor})) == (400, "Invalid cursor")


def test_o10_a_page_costs_what_it_has() -> None:
    """O10: a page out of 30,000 keys is found without going through them."""
    place = memory.Memory()
    for number in range(30_000):
        place.put(f"k{number:06}", [b""], size=0, part_size=MIB, metadata={})
    place.page(limit=1)
    began = time.perf_counter()
    for number in range(100):
        after = f"k{number * 290:06}"
        assert place.page("k", after=after, limit=2)[0].key == f"k{number * 290 + 1:06}"
    assert time.perf_counter() - began < 1
    assert MOST == 10_000


def test_o11_cursor_survives_deletion(http: httpx.Client, own: str) -> None:
    """O11: the key at which a page ended may be deleted; the next page begins behind where it was."""
    for name in "abcd":
        http.put(at(own + name), content=b"1")
    cursor = http.get("/objects", params={"prefix": own, "limit": 2}).json()["next_cursor"]
    http.delete(at(f"{own}b"))
    assert listed(http, own, cursor=cursor) == [f"{own}c", f"{own}d"]


def test_o16_content_type_is_fixed(http: httpx.Client, own: str) -> None:
    """O16: whatever a client accepts, an object is bytes to be saved: no page, no script, no header of its own."""
    key = f"{own}evil\u00fc\"';.html"
    http.put(at(key), content=b"<script>alert(1)</script>", headers={"Content-Type": "text/html"})
    got = http.get(at(key), headers={"Accept": "text/html"})
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-disposition"].startswith('attachment; filename="evil__')
    assert "sandbox" in got.headers["content-security-policy"]
    assert "server" not in got.headers


def test_ranges(http: httpx.Client, own: str) -> None:
    """One range is 206 with exactly these bytes, one beyond the end 416 with the size, other words are all of it."""
    content = os.urandom(100)
    http.put(at(f"{own}a"), content=content)

    def get(span: str, **headers: str) -> httpx.Response:
        return http.get(at(f"{own}a"), headers={"Range": span, **headers})

    for span, start, end in (("0-0", 0, 1), ("10-19", 10, 20), ("90-", 90, 100), ("-5", 95, 100), ("50-999", 50, 100)):
        got = get(f"bytes={span}")
        assert (got.status_code, got.content) == (206, content[start:end])
        assert got.headers["content-range"] == f"bytes {start}-{end - 1}/100"
        assert got.headers["content-length"] == str(end - start)
    for span in ("100-", "100-101", "999-", "-0"):
        got = get(f"bytes={span}")
        assert (got.status_code, got.headers["content-range"]) == (416, "bytes */100")
    for span in ("bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=x-", "bytes=-", "bytes", "bytes=" + "9" * 30 + "-"):
        assert (get(span).status_code, get(span).content) == (200, content)
    etag = get("bytes=0-0").headers["etag"]
    assert get("bytes=0-0", **{"If-Range": etag}).status_code == 206
    assert get("bytes=0-0", **{"If-Range": '"other"'}).status_code == 200
    assert get("bytes=-1000").content == content


def test_ranges_of_nothing(http: httpx.Client, own: str) -> None:
    """An empty object has no range."""
    http.put(at(f"{own}a"), content=b"")
    assert http.get(at(f"{own}a"), headers={"Range": "bytes=0-"}).status_code == 416


def test_conditional_reads(http: httpx.Client, own: str) -> None:
    """What a client has already is 304, what is not what it thinks is 412, for GET and HEAD."""
    http.put(at(f"{own}a"), content=b"1")
    head = http.head(at(f"{own}a")).headers
    for method in ("GET", "HEAD"):

        def ask(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return http.request(method, at(f"{own}a"), headers=named).status_code  # noqa: B023  # called at once

        assert ask(If_None_Match=head["etag"]) == ask(If_None_Match=f'"x", W/{head["etag"]}') == 304
        assert ask(If_None_Match="*") == ask(If_Modified_Since=head["last-modified"]) == 304
        assert ask(If_None_Match='"x"') == ask(If_Match=head["etag"]) == ask(If_Match="*") == 200
        assert ask(If_None_Match='"x"', If_Modified_Since=head["last-modified"]) == 200
        assert ask(If_Match='"x"') == ask(If_Unmodified_Since="Thu, 01 Jan 2015 00:00:00 GMT") == 412
        assert ask(If_Modified_Since="Thu, 01 Jan 2015 00:00:00 GMT") == ask(If_Modified_Since="yesterday") == 200


def test_conditional_writes(http: httpx.Client, own: str) -> None:
    """An object is made only if there is none, replaced and removed only if it is the one that was seen."""
    create = {"If-None-Match": "*"}
    assert http.put(at(f"{own}a"), content=b"1", headers=create).status_code == 200
    assert error(http.put(at(f"{own}a"), content=b"2", headers=create))[0] == 412
    etag = http.head(at(f"{own}a")).headers["etag"]
    assert http.put(at(f"{own}a"), content=b"3", headers={"If-Match": '"x"'}).status_code == 412
    assert http.delete(at(f"{own}a"), headers={"If-Match": '"x"'}).status_code == 412
    assert http.get(at(f"{own}a")).content == b"1"
    assert http.put(at(f"{own}a"), content=b"3", headers={"If-Match": etag}).status_code == 200
    assert http.put(at(f"{own}b"), content=b"3", headers={"If-Match": "*"}).status_code == 412
    assert http.get(at(f"{own}b")).status_code == 404


def test_one_of_many_creates_it(gateway: Gateway, own: str) -> None:
    """Of twenty that would make the same object at once, one does."""
    statuses, contents = [], []

    def create(number: int) -> None:
        with gateway.client() as http:
            answer = http.put(at(f"{own}one"), content=b"%d" % number, headers={"If-None-Match": "*"})
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                contents.append(b"%d" % number)

    gateway.client().close()
    threads = [threading.Thread(target=create, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [412] * 19
    with gateway.client() as http:
        assert [http.get(at(f"{own}one")).content] == contents


def test_checksums(http: httpx.Client, own: str) -> None:
    """O12: a body that is not what its checksum says is 400 and not stored; the answer tells what arrived."""
    content = os.urandom(1000)
    md5, sha = (base64.b64encode(hashlib.new(kind, content).digest()).decode() for kind in ("md5", "sha256"))
    other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    good = [{"Content-MD5": md5}, {"x-amz-checksum-sha256": sha}, {"Digest": f"SHA-256={sha},MD5={md5}"}]
    good += [{"Repr-Digest": f"sha-256=:{sha}:"}, {"Content-Digest": f"sha-256=:{sha}:"}, {"Digest": "crc32c=x"}]
    for headers in good:
        put = http.put(at(f"{own}a"), content=content, headers=headers)
        assert (put.status_code, put.headers["repr-digest"]) == (200, f"sha-256=:{sha}:")
    bad = [{"Content-MD5": md5[::-1]}, {"x-amz-checksum-sha256": other}, {"Digest": f"sha-256={other}"}]
    bad += [
        {"Content-MD5": "x"},
        {"Content-Digest": "sha-256=::"},
        {"x-amz-checksum-sha256": sha, "Digest": f"sha-256={other}"},
    ]
    for headers in bad:
        assert error(http.put(at(f"{own}b"), content=content, headers=headers))[0] == 400
    assert listed(http, own) == [f"{own}a"]


def chunked(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), 100_000):
        yield content[start : start + 100_000]


@pytest.mark.parametrize("size", [0, 5, MIB, MIB + 1, 9 * MIB + 5])
def test_bodies_without_a_length(http: httpx.Client, own: str, size: int) -> None:
    """A body whose length is known at its end only is stored as well, and a wrong checksum still keeps it out."""
    content = os.urandom(size)
    put = http.put(at(f"{own}a"), content=chunked(content))
    assert (put.status_code, put.json()["size"]) == (200, size)
    assert http.get(at(f"{own}a")).content == content
    wrong = {"Content-MD5": base64.b64encode(bytes(16)).decode()}
    assert http.put(at(f"{own}b"), content=chunked(content), headers=wrong).status_code == 400
    assert http.put(at(f"{own}b"), content=content, headers=wrong).status_code == 400
    assert listed(http, own) == [f"{own}a"]


def test_o12_large_objects_take_little_memory(gateway: Gateway, http: httpx.Client, own: str) -> None:
    """O12: 64 MiB go in and out as a stream: the server, in this very process, grows by a part of that."""
    piece = os.urandom(MIB)
    size, hashed, wanted = 64 * MIB, hashlib.sha256(), hashlib.sha256()
    for _ in range(64):
        wanted.update(piece)

    def content() -> Iterator[bytes]:
        for _ in range(64):
            yield piece

    process, peak, over = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        put = http.put(at(f"{own}a"), content=content(), headers={"Content-Length": str(size)})
        assert (put.status_code, put.json()["size"]) == (200, size)
        if not str(gateway.parts.objects).startswith("memory:"):
            with http.stream("GET", at(f"{own}a")) as got:
                for some in got.iter_bytes():
                    hashed.update(some)
            assert hashed.digest() == wanted.digest()
    finally:
        over.set()
        watching.join()
    room = 200 if str(gateway.parts.objects).startswith("memory:") else 50  # memory keeps it, after all
    assert peak[0] - before < room * MIB, f"{(peak[0] - before) / MIB:.0f} MiB"
    http.delete(at(f"{own}a"))


def begin(gateway: Gateway, path: str, *, length: int, sent: bytes) -> socket.socket:
    """Begin a PUT by hand."""
    gateway.client().close()
    line = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.secrets['all']}\r\n"
    line.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + sent)
    return line


@pytest.mark.parametrize("size", [1000, 20 * MIB])
def test_o12_half_an_upload_is_nothing(gateway: Gateway, http: httpx.Client, own: str, size: int) -> None:
    """O12: nobody sees an object before all of it is there; a client that dies in the middle leaves what there was."""
    http.put(at(f"{own}a"), content=b"before")
    for name in ("a", "b"):
        with begin(gateway, at(own + name), length=size, sent=bytes(size // 2)):
            time.sleep(0.05)
            assert listed(http, own) == [f"{own}a"]
    time.sleep(0.2)
    assert (listed(http, own), http.get(at(f"{own}a")).content) == ([f"{own}a"], b"before")
    place = store.open_store(str(gateway.parts.objects), gateway.parts.endpoint)
    until = time.monotonic() + 10
    while (still := list(place.uploads())) and time.monotonic() < until:
        time.sleep(0.05)
    assert still == []


def test_readers_see_one_version(http: httpx.Client, gateway: Gateway, own: str) -> None:
    """While an object is replaced again and again, every read is one whole version with its own ETag."""
    versions = {letter * 200_000 for letter in (b"a", b"b")}
    over = threading.Event()
    http.put(at(f"{own}x"), content=b"a" * 200_000)

    def rewrite() -> None:
        with gateway.client() as writer:
            while not over.is_set():
                for version in versions:
                    writer.put(at(f"{own}x"), content=version)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(20):
            assert http.get(at(f"{own}x")).content in versions
            part = http.get(at(f"{own}x"), headers={"Range": "bytes=100-199"})
            assert part.status_code in {206, 503} and (part.status_code == 503 or len(set(part.content)) == 1)
    finally:
        over.set()
        thread.join()


def test_a_store_that_is_gone(start: Start, tmp_path: Path) -> None:
    """Without its store the gateway answers 503 with a time to come back, is not ready, and healthy nevertheless."""
    (tmp_path / "objects").mkdir()
    gateway = start(objects=(tmp_path / "objects").as_uri())
    (tmp_path / "objects").rmdir()
    with gateway.client() as http:
        asked = [("PUT", at("a")), ("GET", at("a")), ("DELETE", at("a")), ("GET", "/objects")]
        for method, path in asked:
            answer = http.request(method, path)
            assert error(answer) == (503, "the store does not answer")
            assert answer.headers["retry-after"].isdecimal()
        assert http.head(at("a")).status_code == 503
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert str(tmp_path) not in ready.text
        assert http.get("/health").status_code == 200


def test_an_endpoint_that_is_gone(start: Start, endpoint: Endpoint) -> None:
    """An S3 endpoint that does not answer is 503; its address is told to nobody."""
    gateway = start(objects="s3://bucket", endpoint=replace(endpoint, url="http://127.0.0.1:9"))
    with gateway.client() as http:
        answer = http.get(at("a"))
        assert error(answer) == (503, "the store does not answer")
        assert "127.0.0.1" not in answer.text


def test_read_only(start: Start) -> None:
    """In read-only mode every method that changes something is 403, whoever asks, and reading goes on."""
    name = uuid4().hex
    store.open_store(f"memory://{name}").put("a", [b"1"], size=1, part_size=MIB, metadata={})
    gateway = start(objects=f"memory://{name}", read_only=True)
    with gateway.client() as http:
        for method in ("PUT", "DELETE", "POST", "PATCH"):
            for path in (at("a"), "/objects", "/nothing", "/health"):
                assert http.request(method, path).status_code == 403
        assert http.get(at("a")).content == b"1"


def test_o15_credentials_are_settings(
    tmp_path: Path, endpoint: Endpoint, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O15: URL, key and secret of S3 are plain settings of ours, and no version of another library takes them away."""
    monkeypatch.chdir(tmp_path)  # no .env
    assert endpoint.secret_access_key is not None
    for name, value in {
        "PLATEWAY_HOME": str(tmp_path),
        "PLATEWAY_BUCKET_URL": "memory://events",
        "PLATEWAY_OBJECTS_URL": f"s3://{bucket}",
        "AWS_ENDPOINT_URL": str(endpoint.url),
        "AWS_ACCESS_KEY_ID": str(endpoint.access_key_id),
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_access_key.get_secret_value(),
    }.items():
        monkeypatch.setenv(name, value)
    parts = opening.parts(settings.load())
    with running(parts) as gateway, gateway.client() as http:
        assert http.put("/objects/a", content=b"1").status_code == 200
        assert http.get("/objects/a").content == b"1"


def test_each_lesson_has_a_test() -> None:
    """O1 to O16 are tested, here or elsewhere, by tests that say so."""
    files = Path(__file__).parents[1].rglob("test_*.py")
    named = {int(number) for path in files for number in re.findall(r"def test_o(\d+)_", path.read_text())}
    assert named == set(range(1, 17))


def test_encodings_are_refused(http: httpx.Client, own: str) -> None:
    """A body that is not the object itself is 415 and stores nothing; identity is no encoding."""
    for headers in (
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "aws-chunked"},
        {"Content-Encoding": "identity, br"},
        {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"},
    ):
        refused = http.put(at(f"{own}x"), content=b"5\r\nabcde\r\n0\r\n\r\n", headers=headers)
        assert (refused.status_code, http.get(at(f"{own}x")).status_code) == (415, 404)
        assert "send the object as it is" in refused.json()["error"]["message"]
    assert http.put(at(f"{own}x"), content=b"1", headers={"Content-Encoding": "identity"}).status_code == 200
