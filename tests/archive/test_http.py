"""The HTTP door, against real servers that are wrong in every way we know."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import SecretStr

from plateway.archive import ManifestPage, Poll, PollLimits
from plateway.errors import Denied, Misconfigured, NotFound, Rejected, Unavailable

MANIFEST = {"job_id": "j", "date": "2024-05-17", "archives": [{"path": "a.tar", "src_keys": ["b/k"]}]}
TOKEN = "canary-5d6f"
PATIENT = PollLimits(seconds=20, patience=5)

Send = Callable[[bytes], None]
Answer = bytes | Callable[[Send], None]


def answer(body: Any = MANIFEST, *, status: str = "200 OK", kind: str = "application/json", **headers: Any) -> bytes:
    """Make a whole response; a header that is None is left out."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"Content-Type": kind, "Content-Length": len(content)} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in told.items() if value is not None)]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + content


@dataclass
class Server:
    """Answers each request with the next thing it was told to, the last one again and again."""

    answers: list[Answer] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/manifests"

    def say(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.handle, args=(connection,), daemon=True).start()

    def handle(self, connection: socket.socket) -> None:
        with closing(connection):
            request = b""
            while b"\r\n\r\n" not in request:
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            self.requests.append(request.decode())
            number = min(len(self.requests), len(self.answers)) - 1
            said = self.answers[number]
            try:
                if isinstance(said, bytes):
                    connection.sendall(said)
                else:
                    said(connection.sendall)
            except OSError:
                pass  # the client had enough

    def header(self, name: str, number: int = -1) -> str | None:
        """Read a header of a request."""
        for line in self.requests[number].split("\r\n")[1:]:
            told, _, value = line.partition(": ")
            if told.lower() == name.lower():
                return value
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a free port."""
    running = Server()
    threading.Thread(target=running.serve, daemon=True).start()
    yield running
    running.listener.shutdown(socket.SHUT_RDWR)
    running.listener.close()


@pytest.fixture
def other() -> Iterator[Server]:
    """Another server."""
    running = Server(answers=[answer()])
    threading.Thread(target=running.serve, daemon=True).start()
    yield running
    running.listener.shutdown(socket.SHUT_RDWR)
    running.listener.close()


class Pauses(list[float]):
    """The pauses that were made, none of which took any time."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


def asked(
    server: Server, pauses: Pauses, *, limits: PollLimits = PATIENT, url: str | None = None, **known: Any
) -> list[ManifestPage]:
    poll = Poll(url or server.url, SecretStr(TOKEN), limits=limits, sleep=pauses)
    return list(poll.pages(**known))


def contents(pages: list[ManifestPage]) -> list[Any]:
    return [json.loads(content) for page in pages for _, content in page.manifests]


# --------------------------------------------------------------------------------------------------------- that is fine


def test_one_manifest(server: Server, pauses: Pauses) -> None:
    """The plainest server answers with a manifest, whose bytes are kept as they came."""
    server.say(
        answer(json.dumps(MANIFEST, indent=3).encode(), ETag='"v1"', Last_Modified="Fri, 17 May 2024 00:00:00 GMT")
    )
    (page,) = asked(server, pauses)
    assert page.manifests == ((server.url, json.dumps(MANIFEST, indent=3).encode()),)
    assert (page.last, page.etag, page.modified) == (True, '"v1"', "Fri, 17 May 2024 00:00:00 GMT")
    assert server.header("Authorization") == f"Bearer {TOKEN}"
    assert server.header("Accept") == "application/json"
    assert pauses == []


@pytest.mark.parametrize("body", [[], {"items": []}, {"items": [], "next": None}, {"items": [], "next": ""}])
def test_nothing_to_tell(server: Server, pauses: Pauses, body: Any) -> None:
    """An empty list is an answer."""
    server.say(answer(body))
    assert asked(server, pauses) == [ManifestPage((), last=True)]


def test_a_list_of_manifests(server: Server, pauses: Pauses) -> None:
    """Each is handed on for itself, odd ones too, with a name that tells which it was."""
    server.say(answer([MANIFEST, 5, {"job_id": "ä"}]))
    (page,) = asked(server, pauses)
    assert contents([page]) == [MANIFEST, 5, {"job_id": "ä"}]
    assert [name for name, _ in page.manifests] == [f"{server.url}#{number}" for number in range(3)]


@pytest.mark.parametrize("how", ["absolute", "relative", "query", "link"])
def test_pages_are_followed(server: Server, pauses: Pauses, how: str) -> None:
    """By an address in the answer, absolute or not, or by a Link header; the token goes to each page."""
    pages = []
    for number in range(1, 4):
        where = {"absolute": f"{server.url}/{number}", "relative": f"manifests/{number}", "query": f"?page={number}"}
        following = where.get(how, f"/manifests/{number}") if number < 3 else None
        link = f'<{following}>; rel="next"' if following and how == "link" else None
        body = {"items": [number]} if how == "link" else {"items": [number], "next": following}
        pages.append(answer(body, Link=link, ETag='"v1"'))
    server.say(*pages)
    found = asked(server, pauses)
    assert contents(found) == [1, 2, 3]
    assert [page.last for page in found] == [False, False, True]
    assert [server.header("Authorization", number) for number in range(3)] == [f"Bearer {TOKEN}"] * 3
    assert found[-1].etag is None  # it spoke for one page


def test_a_condition_is_sent_and_304_means_nothing_new(server: Server, pauses: Pauses) -> None:
    """What the server showed last time spares the next answer."""
    server.say(answer(b"", status="304 Not Modified", Content_Length=None))
    assert asked(server, pauses, etag='W/"v1"', modified="Fri, 17 May 2024 00:00:00 GMT") == []
    assert server.header("If-None-Match") == 'W/"v1"'
    assert server.header("If-Modified-Since") == "Fri, 17 May 2024 00:00:00 GMT"


def test_without_a_token_none_is_sent(server: Server) -> None:
    """A server that asks for nothing gets nothing."""
    server.say(answer())
    list(Poll(server.url, limits=PATIENT).pages())
    assert server.header("Authorization") is None


def test_redirects_within_the_server_are_followed(server: Server, pauses: Pauses) -> None:
    """Servers add slashes and move paths."""
    server.say(answer(b"", status="307 Temporary Redirect", Location="/manifests/"), answer())
    assert contents(asked(server, pauses)) == [MANIFEST]
    assert server.requests[1].startswith("GET /manifests/ ")
    assert server.header("Authorization") == f"Bearer {TOKEN}"


@pytest.mark.parametrize("status", ["500 Oops", "502 Bad Gateway", "503 Busy", "504 Gateway Timeout", "408 Slow"])
def test_a_server_that_fails_is_asked_again(server: Server, pauses: Pauses, status: str) -> None:
    """An outage of seconds is none."""
    server.say(answer(b"oops", status=status, kind="text/html"), answer(b"", status=status), answer())
    assert contents(asked(server, pauses)) == [MANIFEST]
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize("after", ["7", "date", "junk", None])
def test_429_waits_as_long_as_the_server_says(server: Server, pauses: Pauses, after: str | None) -> None:
    """In seconds or by a date; without either, as for any failure."""
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=7), usegmt=True)
    server.say(
        answer(b"", status="429 Too Many Requests", Retry_After=moment if after == "date" else after),
        answer(),
    )
    assert contents(asked(server, pauses)) == [MANIFEST]
    (pause,) = pauses
    assert 5 < pause <= 7 if after in {"7", "date"} else pause == 0.5


# -------------------------------------------------------------------------------------------------------- that is wrong

HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"


def cut(send: Send) -> None:
    send(answer()[:-20])


def chunked_cut(send: Send) -> None:
    send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{")


def hang_up(_: Send) -> None:
    pass


def garbage(send: Send) -> None:
    send(b"SSH-2.0-OpenSSH_9.2\r\n")


WRONG: list[tuple[list[Answer], type[Exception], str]] = [
    ([answer({"detail": TOKEN}, status="401 Unauthorized")], Denied, "answers 401, the token is refused"),
    ([answer(HTML, status="403 Forbidden", kind="text/html")], Denied, "answers 403, the token is refused"),
    ([answer(b"", status="404 Not Found")], NotFound, "answers 404, there is no such address"),
    ([answer(b"", status="410 Gone")], NotFound, "answers 410, there is no such address"),
    ([answer(b"", status="400 Bad Request")], Misconfigured, "answers 400"),
    ([answer(b"", status="204 No Content", Content_Length=None)], Misconfigured, "answers 204"),
    ([answer(b"", status="300 Choose")], Misconfigured, "answers 300"),
    ([answer(b"", status="500 Oops")], Unavailable, "answers 500 (4 attempts)"),
    ([answer(b"", status="429 Many")], Unavailable, "answers 429 (4 attempts)"),
    ([answer(b"", status="503 Busy", Retry_After="3600")], Unavailable, "answers 503, and asks for a wait of 3600 s"),
    ([answer(b"", status="304 Not Modified", Content_Length=None)], Rejected, "answers 304, and no condition was sent"),
    ([answer(HTML, kind="text/html; charset=utf-8")], Misconfigured,
     "answers with a web page (text/html), not with manifests"),
    ([answer(HTML)], Misconfigured, "answers with a web page, not with manifests"),
    ([answer(b"")], Rejected, "not JSON: expecting value at line 1 column 1"),
    ([answer(b"{'job_id': 1}")], Rejected,
     "not JSON: expecting property name enclosed in double quotes at line 1 column 2"),
    ([answer(b'[{"a": 1, "a": 2}]')], Rejected, '"a": there twice'),
    ([answer(b"[NaN]")], Rejected, "NaN is not a number that JSON knows"),
    ([answer(b"\xff\xfe[]")], Rejected, "not UTF-8: byte 0xff at 0"),
    ([answer(5)], Rejected, "5 is neither a manifest nor a list of them"),
    ([answer({"items": {}})], Rejected, "{} is neither a manifest nor a list of them"),
    ([answer({"items": [], "next": 2})], Rejected, "next: 2 is not an address"),
    ([answer({"items": [], "next": "http://[::1"})], Rejected, '"http://[::1" is not an address'),
    ([answer(gzip.compress(bytes(50 << 20)), Content_Encoding="gzip")], Rejected,
     'answers in "gzip", which was not asked for'),
    ([answer(b"[]", Content_Length=str(65 << 20))], Rejected,
     "announces 68,157,440 bytes, the limit is 67,108,864"),
    ([answer(b"[]", Content_Length="1")], Rejected, "not JSON: expecting value at line 1 column 2"),
    ([answer(b"[]", Content_Length="-5")], Unavailable, "breaks off ("),
    ([cut], Unavailable, "breaks off (peer closed connection without sending complete message body"),
    ([chunked_cut], Unavailable, "breaks off (peer closed connection without sending complete message body"),
    ([hang_up], Unavailable, "breaks off (Server disconnected without sending a response.) (4 attempts)"),
    ([garbage], Unavailable, "breaks off ("),
    ([answer(b"", status="302 Found", Location="https://login.example/x?t=1")], Misconfigured,
     "redirects to https://login.example:443; the token is not sent there"),
    ([answer(b"", status="301 Moved", Location="//elsewhere.example/")], Misconfigured,
     "redirects to http://elsewhere.example:80; the token is not sent there"),
    ([answer(b"", status="302 Found", Location="/manifests")], Misconfigured, "redirects more than 3 times"),
    ([answer({"items": [1], "next": "/manifests"})], Rejected, "page 2 was read before"),
    ([answer({"items": [1], "next": "/a"}), answer({"items": [2], "next": "/manifests"})], Rejected,
     "page 3 was read before"),
    ([answer({"items": [1], "next": "file:///etc/passwd"})], Rejected, "page 2 would be at file://"),
]  # fmt: skip


@pytest.mark.parametrize(("answers", "kind", "reason"), WRONG, ids=[reason[:40] for *_, reason in WRONG])
def test_each_way_to_be_wrong_has_one_clear_error(
    server: Server, pauses: Pauses, answers: list[Answer], kind: type[Exception], reason: str
) -> None:
    """The error names the address and what is wrong with the answer, and never the token or what the server said."""
    server.say(*answers)
    with pytest.raises(kind) as told:
        asked(server, pauses)
    assert reason in str(told.value)
    assert str(told.value).startswith(server.url)
    assert TOKEN not in str(told.value)
    assert "Sign in" not in str(told.value)
    assert told.value.__cause__ is None


def test_without_a_token_401_says_that_none_is_configured(server: Server) -> None:
    """The message says what to do about it."""
    server.say(answer(b"", status="401 Unauthorized"))
    with pytest.raises(Denied, match="answers 401, no token is configured"):
        list(Poll(server.url, limits=PATIENT).pages())


def test_what_came_before_the_fault_is_kept(server: Server, pauses: Pauses) -> None:
    """Pages are handed on as they come; the error follows them."""
    server.say(answer({"items": [1], "next": "/2"}), answer({"items": [2], "next": "/3"}), answer(b"", status="404 No"))
    poll = Poll(server.url, limits=PATIENT, sleep=pauses)
    found: list[ManifestPage] = []
    with pytest.raises(NotFound):
        found.extend(poll.pages())
    assert contents(found) == [1, 2]


def test_the_token_never_goes_to_another_server(server: Server, other: Server, pauses: Pauses) -> None:
    """Neither by a next page nor by a redirect is anything asked of another host or port."""
    for said in (
        answer({"items": [1], "next": other.url}),
        answer([1], Link=f'<{other.url}>; rel="next"'),
        answer(b"", status="308 Permanent Redirect", Location=other.url),
    ):
        server.say(said)
        with pytest.raises((Rejected, Misconfigured), match="the token is not sent there"):
            asked(server, pauses)
    assert other.requests == []


def test_paging_ends(server: Server, pauses: Pauses) -> None:
    """A server whose pages never end is given up."""

    def endless(send: Send) -> None:
        send(answer({"items": [1], "next": f"/manifests?page={len(server.requests)}"}))

    server.say(endless)
    with pytest.raises(Rejected, match="more than 25 pages"):
        asked(server, pauses, limits=PollLimits(pages=25, seconds=20, patience=5))
    assert len(server.requests) == 25


def test_too_much_is_not_taken(server: Server, pauses: Pauses) -> None:
    """Neither in one answer, whatever it announces, nor in all of them together."""

    def flood(send: Send) -> None:
        send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")
        while True:
            send(b"1," * 50_000)

    server.say(flood)
    with pytest.raises(Rejected, match="sends more than 1,000,000 bytes"):
        asked(server, pauses, limits=PollLimits(page_size=1_000_000, seconds=20, patience=5))

    def page(send: Send) -> None:
        send(answer({"items": ["x" * 1000], "next": f"?page={len(server.requests)}"}))

    server.say(page)
    with pytest.raises(Rejected, match=r"announces 1,0\d\d bytes, the limit is \d+"):
        asked(server, pauses, limits=PollLimits(total_size=5000, seconds=20, patience=5))


@pytest.mark.parametrize("where", ["body", "headers", "chunks"])
def test_a_slow_drip_ends(server: Server, pauses: Pauses, where: str) -> None:
    """A server that sends a byte now and then, and so is never silent for long, holds nobody up."""
    begin = {
        "body": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[",
        "headers": b"HTTP/1.1 200 OK\r\nX-Long: ",
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    }[where]

    def drip(send: Send) -> None:
        send(begin)
        while True:
            send(b"1\r\n[\r\n" if where == "chunks" else b"1")
            time.sleep(0.02)

    server.say(drip)
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"takes longer than 0\.5 s"):
        asked(server, pauses, limits=PollLimits(seconds=0.5, patience=0.3))
    assert time.monotonic() - started < 5


def test_a_server_that_is_silent_is_given_up(server: Server, pauses: Pauses) -> None:
    """Accepting and saying nothing is a failure like others."""
    server.say(lambda _: time.sleep(2))
    with pytest.raises(Unavailable, match=r"does not answer in time \(ReadTimeout\) \(2 attempts\)"):
        asked(server, pauses, limits=PollLimits(seconds=20, patience=0.1, attempts=2))


def test_nobody_is_there(pauses: Pauses) -> None:
    """A closed port, and a name that nobody has."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    poll = Poll(f"http://127.0.0.1:{port}/", SecretStr(TOKEN), limits=PATIENT, sleep=pauses)
    with pytest.raises(Unavailable, match=r"cannot be reached \(ConnectError\) \(4 attempts\)"):
        list(poll.pages())
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("url", ["", "manifests", "ftp://a/b", "http://", "file:///etc", "http://[::1"])
def test_an_address_that_is_none(url: str) -> None:
    """A wrong setting is told before anything is asked."""
    with pytest.raises(Misconfigured, match=r"the archive's address (is|must)"):
        Poll(url)


def test_the_name_has_no_secrets() -> None:
    """What is shown and recorded of an address is without user, password and query."""
    assert Poll("https://user:secret@tape.example:8443/v1/manifests?key=secret#x").name == (
        "https://tape.example:8443/v1/manifests"
    )
