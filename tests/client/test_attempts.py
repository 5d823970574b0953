"""Both clients against a server that misbehaves: what is asked again, after how long, and what is said in the end."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator

import pytest

from plateway.client import RestStore, RestStoreError
from plateway.errors import Conflict, Damaged, Denied, Misconfigured, NotFound, Rejected, Unavailable
from tests.client.conftest import DELAY, Open
from tests.client.scripted import HTML, RESET, Answer, Asked, Scripted, kept, said

HELLO = said(200, b"hello", ETag='"1"')
BUSY = said(429, {"error": {"code": "429", "message": "Too many requests"}})
DOWN = said(503, {"error": {"code": "503", "message": "the store does not answer"}})
PAGE = said(200, {"keys": ["a"], "next_cursor": None, "has_more": False})

Verb = Callable[[RestStore], object]
VERBS: dict[str, tuple[Verb, Answer]] = {
    "put": (lambda store: store.put("a", b"hello"), kept),
    "get": (lambda store: store.get("a"), HELLO),
    "open": (lambda store: b"".join(store.open("a")), HELLO),
    "exists": (lambda store: store.exists("a"), said(200)),
    "delete": (lambda store: store.delete("a"), said(204)),
    "keys": (lambda store: list(store.keys()), PAGE),
}


def failing(kind: str, verb: str) -> type[Exception]:
    """Return what each verb raises when a server fails, as the originals' contract has it."""
    if verb == "keys":
        return NotImplementedError
    return RestStoreError if verb == "exists" or (kind, verb) == ("async", "delete") else KeyError


@pytest.mark.parametrize("verb", VERBS)
def test_no_answer_is_asked_again(store: Open, scripted: Scripted, verb: str) -> None:
    """A connection that breaks is tried again after a pause, and after twice that."""
    call, good = VERBS[verb]
    scripted.play(RESET, RESET, good)
    call(store(scripted.url))
    assert len(scripted.asked) == 3
    assert scripted.gaps[0] >= DELAY and scripted.gaps[1] >= 2 * DELAY


@pytest.mark.parametrize("verb", VERBS)
def test_no_answer_at_all(kind: str, store: Open, scripted: Scripted, verb: str) -> None:
    """Three times and no more; what is raised is what the original raises, and waiting may help."""
    call, _ = VERBS[verb]
    scripted.play(RESET)
    with pytest.raises(failing(kind, verb), match="no response") as caught:
        call(store(scripted.url))
    assert len(scripted.asked) == 3
    assert isinstance(caught.value, RestStoreError) and isinstance(caught.value.__cause__, Unavailable)


@pytest.mark.parametrize("verb", VERBS)
def test_429_without_retry_after(store: Open, scripted: Scripted, verb: str) -> None:
    """Too many requests: the same again after the pause, which does not double."""
    call, good = VERBS[verb]
    scripted.play(BUSY, BUSY, good)
    call(store(scripted.url))
    assert len(scripted.asked) == 3
    assert all(gap >= DELAY for gap in scripted.gaps)


def test_429_with_retry_after(store: Open, scripted: Scripted) -> None:
    """The server says how many seconds, and is not asked before."""
    scripted.play(said(429, Retry_After="1"), HELLO)
    assert store(scripted.url).get("a") == b"hello"
    assert scripted.gaps[0] >= 1


@pytest.mark.parametrize("told", ["soon", "Wed, 21 Oct 2065 07:28:00 GMT", "1.5", "-1", "\xb2", ""])
def test_429_with_words(store: Open, scripted: Scripted, told: str) -> None:
    """What is no whole number counts as nothing."""
    scripted.play(said(429, Retry_After=told), HELLO)
    assert store(scripted.url).get("a") == b"hello"
    assert scripted.gaps[0] >= DELAY


@pytest.mark.parametrize("verb", VERBS)
def test_429_for_ever(kind: str, store: Open, scripted: Scripted, verb: str) -> None:
    """As often as was asked for, no pause after the last one, and the server's own words."""
    call, _ = VERBS[verb]
    scripted.play(*[said(429, {"error": {"code": "429", "message": "Too many requests"}}, Retry_After="0")] * 5)
    with pytest.raises(failing(kind, verb), match="HTTP 429") as caught:
        call(store(scripted.url, max_retries=5))
    assert len(scripted.asked) == 5
    assert isinstance(caught.value.__cause__, Unavailable)


def test_nobody_waits_for_an_hour(store: Open, scripted: Scripted) -> None:
    """A server that wants an hour is not waited for: the caller decides."""
    scripted.play(said(429, Retry_After="3600"))
    with pytest.raises(KeyError, match="HTTP 429"):
        store(scripted.url).get("a")
    assert len(scripted.asked) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_503_is_an_answer(kind: str, store: Open, scripted: Scripted, verb: str) -> None:
    """An error that says nothing of another time is not asked again."""
    call, _ = VERBS[verb]
    scripted.play(DOWN)
    with pytest.raises(failing(kind, verb), match="HTTP 503") as caught:
        call(store(scripted.url))
    assert len(scripted.asked) == 1
    assert isinstance(caught.value.__cause__, Unavailable)


def test_503_that_says_when(store: Open, scripted: Scripted) -> None:
    """One that says when to come again is."""
    scripted.play(said(503, Retry_After="0"), HELLO)
    assert store(scripted.url).get("a") == b"hello"


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (400, Rejected),
        (401, Denied),
        (403, Denied),
        (409, Conflict),
        (408, Unavailable),
        (412, Conflict),
        (500, Unavailable),
    ],
)
def test_errors_are_told_as_they_are(store: Open, scripted: Scripted, status: int, cause: type[Exception]) -> None:
    """An error is asked once; the message is the server's, the cause is of our tree."""
    scripted.play(said(status, {"error": {"code": str(status), "message": "for a reason"}}))
    with pytest.raises(KeyError, match=f"HTTP {status}: for a reason") as caught:
        store(scripted.url).get("a")
    assert len(scripted.asked) == 1
    assert type(caught.value.__cause__) is cause and not isinstance(caught.value, NotFound)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"detail": "Not allowed here"}', "Not allowed here"),
        (b'{"detail": [{"msg": "no integer"}]}', "no integer"),
        (b"[1, 2]", "Bad Request"),
        (b"{", "Bad Request"),
        (b"\xff\xfe", "Bad Request"),
        (b'{"error": "text"}', "Bad Request"),
        (b"[" * 100_000, "Bad Request"),
    ],
)
def test_errors_in_other_words(store: Open, scripted: Scripted, content: bytes, words: str) -> None:
    """Whatever the body of an error is, it is an error and nothing worse."""
    scripted.play(said(400, content))
    with pytest.raises(KeyError, match=f"HTTP 400: {words}"):
        store(scripted.url).get("a")


def test_endless_errors_are_cut(store: Open, scripted: Scripted) -> None:
    """Of an error no more is read than anybody would."""
    scripted.play(said(500, b"x" * 300_000, length=1 << 40))
    with pytest.raises(KeyError, match="HTTP 500"):
        store(scripted.url).get("a")


def test_half_a_body_is_asked_again(store: Open, scripted: Scripted) -> None:
    """Bytes that are fewer than were promised are never returned."""
    scripted.play(said(200, b"hel", length=5), HELLO)
    assert store(scripted.url).get("a") == b"hello"
    scripted.play(said(200, b"hel", length=5))
    with pytest.raises(KeyError, match="no response, or an incomplete one"):
        store(scripted.url).get("a")
    assert len(scripted.asked) == 3


def test_a_stream_goes_on_where_it_broke(store: Open, scripted: Scripted) -> None:
    """What was given is not asked again; as long as something comes, it goes on."""

    def letter(asked: Asked) -> bytes:
        start = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
        return said(206, b"hello!"[start:][:1], length=6 - start, ETag='"1"', Content_Range=f"bytes {start}-5/6")

    scripted.play(said(200, b"h", length=6, ETag='"1"'), letter)
    assert b"".join(store(scripted.url).open("a")) == b"hello!"
    assert [asked.headers.get("range") for asked in scripted.asked] == [
        None,
        *(f"bytes={start}-" for start in range(1, 6)),
    ]


@pytest.mark.parametrize(
    "rest",
    [
        said(206, b"llo", ETag='"2"', Content_Range="bytes 2-4/5"),
        said(206, b"ello", ETag='"1"', Content_Range="bytes 1-4/5"),
        said(200, b"hello", ETag='"1"', Content_Range="bytes 2-4/5"),
    ],
    ids=["replaced", "elsewhere", "all of it"],
)
def test_a_stream_is_of_one_object(store: Open, scripted: Scripted, rest: bytes) -> None:
    """What does not go on with the same object, where it broke off, is not given as if it did."""
    scripted.play(said(200, b"he", length=5, ETag='"1"'), rest)
    pieces = store(scripted.url).open("a")
    assert next(pieces) == b"he"
    with pytest.raises(KeyError) as caught:
        next(pieces)
    assert isinstance(caught.value.__cause__, Damaged)


@pytest.mark.parametrize("tag", [{}, {"ETag": 'W/"1"'}], ids=["none", "weak"])
def test_a_stream_without_a_tag_breaks(store: Open, scripted: Scripted, tag: dict[str, str]) -> None:
    """Where nobody can tell whether it is still the same, it ends with an error."""
    scripted.play(said(200, b"he", length=5, **tag), HELLO)
    with pytest.raises(KeyError, match="an incomplete one"):
        list(store(scripted.url).open("a"))
    assert len(scripted.asked) == 1


def test_a_stream_that_never_goes_on(store: Open, scripted: Scripted) -> None:
    """Without one more byte it is asked as often as anything else."""
    nothing = said(206, b"", length=3, ETag='"1"', Content_Range="bytes 2-4/5")
    scripted.play(said(200, b"he", length=5, ETag='"1"'), nothing)
    with pytest.raises(KeyError, match="an incomplete one"):
        list(store(scripted.url).open("a"))
    assert len(scripted.asked) == 3


@pytest.mark.parametrize("verb", VERBS)
def test_a_web_page_is_no_answer(kind: str, store: Open, scripted: Scripted, verb: str) -> None:
    """A login page of the network, with 200, is neither an object, nor one that exists, nor a listing."""
    call, _ = VERBS[verb]
    scripted.play(said(200, b"" if verb == "exists" else HTML, Content_Type="text/html; charset=utf-8"))
    with pytest.raises(failing(kind, verb), match="a web page instead of a response"):
        call(store(scripted.url))
    assert len(scripted.asked) == 1


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"null", b"[]", b"{}", b"{", b'{"keys": "abc", "has_more": false}', b'{"keys": [1], "has_more": false}'),
        b'{"keys": ["a"], "has_more": true, "next_cursor": null}',
        b'{"keys": ["a"], "has_more": true, "next_cursor": 1}',
    ],
)
def test_pages_that_are_none(store: Open, scripted: Scripted, content: bytes) -> None:
    """A listing is never cut short in silence."""
    scripted.play(said(200, content))
    with pytest.raises(NotImplementedError):
        list(store(scripted.url).keys())


@pytest.mark.parametrize("cursors", [["x"], ["x", "y"], ["x", "y", "z"]])
def test_circles_end(store: Open, scripted: Scripted, cursors: list[str]) -> None:
    """A server that sends from one page to the next and back is found out."""
    scripted.play(
        *[said(200, {"keys": [cursor], "has_more": True, "next_cursor": cursor}) for cursor in cursors * 2],
    )
    found = []
    with pytest.raises(NotImplementedError, match="never end"):
        found += list(store(scripted.url).keys())
    assert len(scripted.asked) == len(cursors) + 1


def test_empty_pages_end(store: Open, scripted: Scripted) -> None:
    """A page without keys that promises more is the last one."""

    def another(asked: Asked) -> bytes:
        return said(200, {"keys": [], "has_more": True, "next_cursor": asked.target})

    scripted.play(another)
    with pytest.raises(NotImplementedError, match="never end"):
        list(store(scripted.url).keys())
    assert len(scripted.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        said(200, {"key": "b", "size": 5}),
        said(200, {"key": "a", "size": 4}),
        said(200, {"key": "a", "size": 5}, Repr_Digest="sha-256=:AAAA:"),
        said(200, {}),
    ],
    ids=["key", "size", "digest", "nothing"],
)
def test_what_was_stored_is_what_was_sent(store: Open, scripted: Scripted, answer: bytes) -> None:
    """A 200 is believed only when it names the key and bytes that were sent."""
    scripted.play(answer)
    for content in (b"hello", [b"hel", b"lo"]):
        with pytest.raises(KeyError, match="Failed to store") as caught:
            store(scripted.url).put("a", content)
        assert isinstance(caught.value.__cause__, Damaged)


def test_the_digest_goes_ahead(store: Open, scripted: Scripted) -> None:
    """Where it is known before, the server can refuse other bytes instead of storing them."""
    scripted.play(kept)
    store(scripted.url).put("a", b"hello")
    digest = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"
    assert (scripted.asked[0].headers["repr-digest"], scripted.asked[0].headers["content-length"]) == (digest, "5")


def test_files_are_sent_again_from_where_they_were(store: Open, scripted: Scripted) -> None:
    """Each attempt sends the same bytes: from the place of the file at the call."""
    file = io.BytesIO(b"123hello")
    file.seek(3)
    scripted.play(RESET, BUSY, kept)
    store(scripted.url).put("a", file)
    assert [asked.body for asked in scripted.asked] == [b"hello"] * 3
    assert scripted.asked[0].headers["content-length"] == "5"


def test_collections_are_sent_again(store: Open, scripted: Scripted) -> None:
    """A list of pieces has a beginning to go back to."""
    scripted.play(RESET, kept)
    store(scripted.url).put("a", [b"hel", b"", b"lo"])
    assert [asked.body for asked in scripted.asked] == [b"hello"] * 2


@pytest.mark.parametrize("answer", [RESET, BUSY], ids=["reset", "429"])
def test_iterators_are_sent_once(store: Open, scripted: Scripted, answer: bytes) -> None:
    """Pieces that are gone are not sent again without their beginning."""

    def pieces() -> Iterator[bytes]:
        yield b"hel"
        yield b"lo"

    scripted.play(answer, kept)
    with pytest.raises(KeyError):
        store(scripted.url).put("a", pieces())
    assert [asked.body for asked in scripted.asked] == [b"hello"]


def test_a_reader_that_fails(store: Open, scripted: Scripted) -> None:
    """What the caller's own pieces raise is the caller's."""

    def pieces() -> Iterator[bytes]:
        yield b"hel"
        raise ZeroDivisionError

    scripted.play(kept)
    with pytest.raises(ZeroDivisionError):
        store(scripted.url).put("a", pieces())


def test_moved_objects(store: Open, scripted: Scripted) -> None:
    """Reads follow where they are sent, and the token does not; writes do not follow."""
    with Scripted() as other:
        other.play(HELLO)
        scripted.play(said(307, Location=f"{other.url}/there"))
        client = store(scripted.url)
        assert client.get("a") == b"hello"
        assert "authorization" in scripted.asked[0].headers and "authorization" not in other.asked[0].headers
        with pytest.raises(KeyError, match="HTTP 307"):
            client.put("a", b"hello")
        assert len(other.asked) == 1


def test_moved_in_circles(store: Open, scripted: Scripted) -> None:
    """A server that sends to itself is left after a few times."""
    scripted.play(said(307, Location="/again"))
    with pytest.raises(KeyError, match="more than 5 redirects"):
        store(scripted.url).get("a")
    assert len(scripted.asked) == 6


def test_a_silent_server(store: Open, scripted: Scripted) -> None:
    """A server that takes a request and says nothing is left after the time that was set, as often as asked for."""

    def silent(_: Asked) -> bytes:
        time.sleep(0.15)
        return RESET

    scripted.play(silent)
    with pytest.raises(KeyError, match="ReadTimeout"):
        store(scripted.url, timeout=0.05, max_retries=2).get("a")


def test_at_least_once(store: Open, scripted: Scripted) -> None:
    """No retries still is one attempt."""
    scripted.play(HELLO)
    assert store(scripted.url, max_retries=0).get("a") == b"hello"


def test_tokens_are_never_told(kind: str, store: Open, scripted: Scripted) -> None:
    """No message and no representation shows the token; white space around it, as from a file, is left out."""
    scripted.play(RESET, said(401, {"error": {"message": "Invalid or missing token"}}))
    with pytest.raises(KeyError) as caught:
        store(scripted.url, "canary\n").get("a")
    assert scripted.asked[0].headers["authorization"] == "Bearer canary"
    assert "canary" not in f"{caught.value!r} {caught.value.__cause__!r} {store(scripted.url, 'canary')!r}"
    for token in ("two words", "canary\x00", "canäry", " "):
        with pytest.raises(Misconfigured) as refused:
            store(scripted.url, token)
        assert token.strip() not in str(refused.value) or not token.strip()


@pytest.mark.parametrize(
    "address", ["", "host", "ftp://host", "http://", "http://u:p@host", "http://host?a=1", "http://[x"]
)
def test_addresses_that_are_none(store: Open, address: str) -> None:
    """An address that cannot be one is refused at once."""
    with pytest.raises(Misconfigured):
        store(address)
