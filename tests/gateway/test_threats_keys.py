"""No way out: thousands of paths over real HTTP, on every store, and nothing beside the objects is read or changed.

The gate sends every fifth of them to each store; ``PLATEWAY_SOAK=1 uv run pytest tests/gateway/test_threats_keys.py``
sends all 10,000 to all stores.
"""

from __future__ import annotations

import base64
import json
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes
from uuid import uuid4

import pytest

from plateway import store
from plateway.endpoint import Endpoint
from plateway.gateway import Parts
from tests.gateway.conftest import GENEROUS, Gateway, Start, running
from tests.soak import SOAK

CASES = 10_000
SEED = 4
CANARY = b"nobody may read this"
UP = [b"..", b"%2e%2e", b"%2E.", b".%2e", b"%252e%252e", b"%25%32%65%25%32%65", b"..;", b"...", b"....//", b".", b"%2e"]
UP += [b"%c0%ae%c0%ae", b"%e0%80%ae", b"%f0%80%80%ae", b"%c0%2e", b"%u002e%u002e", b"%uff0e", b"\xc0\xae\xc0\xae"]
UP += [b"%e2%80%a5", b"%ef%bc%8e%ef%bc%8e", b"%e2%80%a4%e2%80%a4", b"..%00", b"%2e%2e%00", b"%09..", b"..%20", b"..%0a"]
SLASH = [b"/", b"/", b"/", b"//", b"%2f", b"%2F", b"%252f", b"\\", b"%5c", b"%255c", b"%c0%af", b"%e0%80%af", b"/./"]
SLASH += [b"%ef%bc%8f", b"%e2%81%84", b"%e2%88%95", b"%c1%9c", b"/%00/"]
TAIL = [b"secret", b"sub", b"subother/secret", b"etc/passwd", b"tokens.json", b"catalogue.db", b".plateway/objects"]
TAIL += [b"%2eplateway", b".plateway", b"a", b"%61", b"%00", b"a%00.txt", b"a%0d%0aX-Forged:1", b"%ff%fe", b"", b"?x"]
TAIL += [
    b"nul",
    b"C:",
    b"~root",
    b"$HOME",
    b"%24%7bHOME%7d",
    b"a" * 300,
    b"%61" * 1025,
    b"d/" * 600,
    b"e%cc%81",
    b"%c3%a9",
]
HARMLESS = [b"a", b"b.txt", b"%C3%A9", b"x%20y", b"%25", b"..a", b"a..", b"%2e.a", b"~", b"%20", b"...", b"%e2%80%a5"]


@dataclass
class Line:
    """A connection on which requests are written byte by byte; opened anew where the server ends it."""

    gateway: Gateway
    _socket: socket.socket | None = None
    _file: BinaryIO | None = None

    def ask(self, method: bytes, target: bytes, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request whose target is exactly this, and read status and body."""
        self._open()
        assert self._socket and self._file
        head = b"%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n"
        secret = self.gateway.secrets["all"].encode()
        self._socket.sendall(head % (method, target, secret, len(body)) + body)
        status = int(self._file.readline().split()[1])
        size, ends = 0, False
        while (site := self._file.readline().strip().lower()) != b"":
            size = int(site[15:]) if site.startswith(b"content-length:") else size
            ends = ends or site == b"connection: close"
        content = self._file.read(size) if method != b"HEAD" else b""
        if ends:
            self.close()
        return status, content

    def close(self) -> None:
        """Hang up."""
        if self._socket and self._file:
            self._file.close()
            self._socket.close()
        self._socket = self._file = None

    def _open(self) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self.gateway.port), timeout=60)
            self._file = self._socket.makefile("rb")


@dataclass(frozen=True)
class Place:
    """A gateway, what lies beside its objects, and a look at that."""

    gateway: Gateway
    beside: Callable[[], Mapping[str, bytes]]
    where: list[bytes] = field(default_factory=list)  # paths that would be worth a try


@contextmanager
def place(kind: str, home: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """Put secrets where somebody would look who gets out of the objects' place."""
    (home / "secret").write_bytes(CANARY)
    endpoint, where = Endpoint(), [quote(f"{home}/secret", safe="").encode(), f"{home}/secret".encode()]
    beside: Callable[[], Mapping[str, bytes]]
    match kind:
        case "memory":
            url = f"memory://{uuid4().hex}"

            def beside() -> Mapping[str, bytes]:
                return {}
        case "file":
            (home / "data" / "sub").mkdir(parents=True)
            (home / "data" / "subother").mkdir()
            for name in ("data/secret", "data/subother/secret"):
                (home / name).write_bytes(CANARY)
            url = (home / "data" / "sub").as_uri()

            def beside() -> Mapping[str, bytes]:
                return files(home, without=home / "data" / "sub")
        case _:
            endpoint, client = request.getfixturevalue("endpoint"), request.getfixturevalue("client")
            bucket = f"keys-{uuid4().hex[:12]}"
            client.create_bucket(Bucket=bucket)
            whole = store.open_store(f"s3://{bucket}", endpoint)
            for name in ("secret", "subother/secret", "tokens.json"):
                whole.put(name, [CANARY], size=len(CANARY), part_size=1 << 20, metadata={})
            url = f"s3://{bucket}/sub"

            def beside() -> Mapping[str, bytes]:
                return {one.key: one.etag.encode() for one in whole.list() if not one.key.startswith("sub/")}

    parts = Parts(home=home / "home", tokens=home / "home" / "t", objects=url, endpoint=endpoint, limits=GENEROUS)
    with running(parts) as gateway:
        yield Place(gateway, beside, where)


def files(root: Path, *, without: Path) -> dict[str, bytes]:
    """Read all files below a directory, but for what a gateway is there to write."""
    gateway = root / "home" / "gateway"
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_relative_to(without) and not path.is_relative_to(gateway)
    }


def targets(where: list[bytes], count: int = CASES) -> Iterator[bytes]:
    """Make keys as they would go over the wire: most try to get out, some are harmless."""
    chance = random.Random(SEED)
    for number in range(count):
        if number % 10 == 0:
            yield b"ok/%d/" % number + b"/".join(chance.choices(HARMLESS, k=chance.randint(1, 3)))
        elif number % 10 == 1:
            yield chance.choice([b"", b"/", b"%2f", b"a/../"]) + chance.choice(where)
        else:
            steps = (chance.choice(UP) + chance.choice(SLASH) for _ in range(chance.randint(1, 5)))
            yield chance.choice([b"", b"", b"a/", b"/", b"sub/", b"%2f"]) + b"".join(steps) + chance.choice(TAIL)


@pytest.mark.parametrize(
    ("kind", "count"), [(kind, CASES if SOAK else CASES // 5) for kind in ("file", "memory", "s3")]
)
def test_o6_ten_thousand_paths_lead_nowhere_else(
    kind: str, count: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """O6: of 10,000 paths each is refused, or a key inside, which is the path decoded once; nothing else is touched."""
    with place(kind, tmp_path, request) as site:
        site.gateway.client().close()
        line, before, taken, refused = Line(site.gateway), site.beside(), {}, 0
        for number, target in enumerate(targets(site.where, count)):
            method, body = (b"PUT", b"%d" % number) if number % 2 == 0 else (b"GET", b"")
            status, told = line.ask(method, b"/objects/" + target, body)
            assert status in {200, 400, 404, 409}, (status, target)
            assert CANARY not in told, target
            refused += status == 400
            if method == b"PUT" and status == 200:
                key = json.loads(told)["key"]
                assert key.encode() == unquote_to_bytes(target.partition(b"?")[0]), target
                taken[key] = body
        assert refused > count // 2 and len(taken) > count // 25
        assert site.beside() == before
        kept = store.open_store(str(site.gateway.parts.objects), site.gateway.parts.endpoint)
        assert len(list(kept.list())) == len(taken)
        for key, body in random.Random(SEED).sample(sorted(taken.items()), 50):
            assert line.ask(b"GET", f"/objects/{quote(key, safe='')}".encode()) == (200, body), key
        line.close()


@pytest.mark.parametrize("kind", ["memory", "file", "s3"])
def test_o6_listings_lead_nowhere_else(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """O6: prefixes and cursors that would lead outside list nothing from there."""
    chance = random.Random(SEED)
    with place(kind, tmp_path, request) as site:
        site.gateway.client().close()
        line = Line(site.gateway)
        assert line.ask(b"PUT", b"/objects/a/inside", b"1")[0] == 200
        for target in chance.sample(list(targets(site.where)), 150):
            key = unquote_to_bytes(target).decode(errors="replace")
            cursor = base64.b64encode(json.dumps({"last_key": key}).encode()).decode()
            for query in (b"prefix=" + quote(unquote_to_bytes(target), safe="").encode(), f"cursor={cursor}".encode()):
                status, told = line.ask(b"GET", b"/objects?" + query)
                assert status in {200, 400}, query
                assert status == 400 or set(json.loads(told)["keys"]) <= {"a/inside"}, query
        line.close()


@pytest.mark.parametrize("target", [b"http://x/objects/../secret", b"//objects/secret", b"/objects/../health", b"*"])
def test_targets_that_are_no_paths_of_objects(tmp_path: Path, request: pytest.FixtureRequest, target: bytes) -> None:
    """What a request's line may hold besides a plain path is answered, and is no way around the keys' rules."""
    with place("file", tmp_path, request) as site:
        site.gateway.client().close()
        line = Line(site.gateway)
        status, told = line.ask(b"GET", target)
        assert status in {400, 404} and CANARY not in told
        line.close()


def test_o5_dots_are_refused_and_never_followed(start: Start) -> None:
    """O5: ``a/../b`` is not stored as ``b``, nor ``a/./b`` as ``a/b``, however it is written; it is refused aloud."""
    gateway = start()
    gateway.client().close()
    site = Line(gateway)
    for target in (b"a/../b", b"a/%2e%2e/b", b"a%2f..%2fb", b"a/./b", b"a/%2e/b", b"..", b".", b"a/..", b"%2e%2e"):
        status, told = site.ask(b"PUT", b"/objects/" + target, b"1")
        assert status == 400 and b"no segments . or .." in told, target
    assert b'"keys":[]' in site.ask(b"GET", b"/objects")[1]
    assert site.ask(b"PUT", b"/objects/a/..b/.c/d..", b"1")[0] == 200
    site.close()
