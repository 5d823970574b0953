"""Requests with retries: addresses, attempts and errors. Neither sends nor waits: see `protocol`.

All requests are idempotent and can be retried: GET and HEAD change nothing, PUT replaces a whole object, and a repeated
DELETE has the same effect (its second response may be 404 when the first one was lost). A request is retried after no
response or an incomplete one, after 429, and after 503 with Retry-After. A body that cannot be read again is sent once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import quote, urlsplit

from plateway.client.protocol import (
    Answer,
    Ask,
    Give,
    More,
    Pause,
    Steps,
    Stream,
)
from plateway.errors import Conflict, Damaged, Denied, Misconfigured, NotFound, PlatewayError, Rejected, Unavailable

T = TypeVar("T")
LONGEST = 300  # seconds of the longest pause; after a longer Retry-After there is no retry
ERROR_SIZE = 64 << 10  # bytes that are read of an error response
ERRORS: Mapping[int, type[PlatewayError]] = {401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 412: Conflict}


class Tries(NamedTuple):
    """The number of attempts (at least one), and the first pause; it doubles with each failed attempt."""

    times: int
    delay: float  # seconds


class Server:
    """A server: its address, token and number of attempts."""

    def __init__(self, base_url: str, token: str | None, *, tries: Tries) -> None:
        self._base, self._tries = _address(base_url), tries
        self._headers = {"Accept": "application/octet-stream, application/json", "Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {_secret(token)}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base!r})"

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Ask:
        """Prepare a request; parameters that are None are omitted."""
        query = {name: str(value) for name, value in (params or {}).items() if value is not None}
        return Ask(method, self._base + path, params=query, headers={**self._headers, **(headers or {})})

    def answer(self, ask: Ask) -> Steps[Answer]:
        """Send a request and receive the whole response.

        Raises:
            PlatewayError: it is an error, or there is no response.
        """
        return (yield from self._send_with_retries(ask, _receive_all))

    def stream(self, ask: Ask, *, sha256: str | None = None) -> Stream[bytes]:
        """Send a request and yield the response piece by piece; a broken download resumes if the object is unchanged.

        Raises:
            Damaged: the SHA-256 differs (raised at the end), or the object was replaced meanwhile.
        """
        answer = yield from self._send_with_retries(ask, _receive_head)
        tag, done, sums = answer.headers.get("etag", ""), 0, hashlib.sha256()
        left, delay = self._tries
        while True:
            try:
                piece = yield from _next_piece()
            except Unavailable:
                left -= 1
                if left < 1 or not tag.startswith('"'):  # a weak ETag may stand for other bytes
                    raise
                yield Pause(delay)
                delay = min(2 * delay, LONGEST)
                rest = replace(ask, headers={**ask.headers, "Range": f"bytes={done}-"})
                _check_continues((yield from self._send_with_retries(rest, _receive_head)), tag=tag, start=done)
                continue
            if not piece:
                break
            left, delay = self._tries
            done += len(piece)
            sums.update(piece)
            yield Give(piece)
        if sha256 is not None and sums.hexdigest() != sha256:
            raise Damaged(f"the {done} received bytes have another SHA-256 than recorded")

    def pages(
        self, path: str, params: Mapping[str, Any], *, read: Callable[[dict[str, Any]], tuple[list[T], str | None]]
    ) -> Stream[T]:
        """Yield the items of a listing; `read` returns the items of a response and the cursor of the next page.

        Raises:
            Unavailable: the pages never end.
        """
        cursor, asked = None, {""}
        while True:
            answer = yield from self.answer(self.ask("GET", path, params={**params, "cursor": cursor}))
            items, cursor = read(answer.document())
            for item in items:
                yield Give(item)
            if cursor is None:
                return
            if cursor in asked or not items:
                raise Unavailable("the pages never end")
            asked.add(cursor)

    def _send_with_retries(self, ask: Ask, receive: Callable[[Ask], Steps[Answer]]) -> Steps[Answer]:
        left, delay = self._tries
        while True:
            left -= 1
            try:
                answer = yield from receive(ask)
            except Unavailable as error:
                if left < 1 or not ask.repeatable:
                    raise Unavailable(f"{ask.method}: {error}") from error
                pause, delay = delay, min(2 * delay, LONGEST)
            else:
                wait = _retry_after(answer, delay)
                if wait is None or left < 1 or not ask.repeatable:
                    return _check_status(answer)
                pause = wait
            yield Pause(pause)


def path(*parts: str, key: str = "") -> str:
    """Format a path; every segment of a key is encoded, so that no proxy interprets it.

    Raises:
        Rejected: the key is not valid Unicode.
    """
    try:
        return "/".join([*parts, *(_segment(part) for part in key.split("/"))])
    except UnicodeEncodeError:
        raise Rejected("a key must be encodable as UTF-8") from None


def _segment(text: str) -> str:
    """Encode one segment; clients and proxies would resolve two dots."""
    return quote(text, safe="") if set(text) - {"."} else text.replace(".", "%2E")


def _address(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise Misconfigured("the server's address must have the form https://host/path")
    if parts.username is not None:
        raise Misconfigured("the server's address must not contain a user: use a token")
    return base_url.rstrip("/")


def _secret(token: str) -> str:
    found = token.strip()  # a token read from a file may end with a newline
    if not found.isascii() or not found.isprintable() or " " in found or not found:
        raise Misconfigured("the token has characters that are not valid in a token")
    return found


def _receive_head(ask: Ask) -> Steps[Answer]:
    """Send a request and receive the response without its content, or an error with it."""
    answer = yield ask
    assert isinstance(answer, Answer)
    return answer if answer.status < 400 else (yield from _read_content(answer, limit=ERROR_SIZE))


def _receive_all(ask: Ask) -> Steps[Answer]:
    answer = yield from _receive_head(ask)
    return answer if answer.status >= 400 else (yield from _read_content(answer))


def _read_content(answer: Answer, *, limit: int | None = None) -> Steps[Answer]:
    pieces, size = [], 0
    while (limit is None or size < limit) and (piece := (yield from _next_piece())):
        pieces.append(piece)
        size += len(piece)
    return replace(answer, content=b"".join(pieces))


def _next_piece() -> Steps[bytes]:
    piece = yield More()
    assert isinstance(piece, bytes)
    return piece


def _retry_after(answer: Answer, delay: float) -> float | None:
    """Return the seconds before a retry, or None for no retry."""
    header = answer.headers.get("retry-after", "").strip()
    seconds = float(header) if header.isascii() and header.isdecimal() else None
    if answer.status not in {429, 503} or (answer.status == 503 and seconds is None):
        return None
    wait = delay if seconds is None else seconds
    return wait if wait <= LONGEST else None


def _check_status(answer: Answer) -> Answer:
    """Return a successful response.

    Raises:
        PlatewayError: it is an error.
    """
    if not 200 <= answer.status < 300:
        _raise_error(answer)
    if answer.headers.get("content-type", "").startswith("text/html"):
        raise Unavailable(f"HTTP {answer.status}: a web page instead of a response; is this the address of a gateway?")
    return answer


def _raise_error(answer: Answer) -> NoReturn:
    asked_wrong = 400 <= answer.status < 500 and answer.status not in {408, 429}
    kind = ERRORS.get(answer.status, Rejected if asked_wrong else Unavailable)
    raise kind(f"HTTP {answer.status}: {_error_message(answer)}")


def _error_message(answer: Answer) -> str:
    """Return the message of an error response."""
    try:
        told = answer.document()
    except Unavailable:
        told = {}
    match told:
        case {"error": {"message": str(text)}} | {"detail": str(text)} | {"detail": [{"msg": str(text)}, *_]}:
            return text[:2000]
    known = answer.status in set(HTTPStatus)
    return HTTPStatus(answer.status).phrase if known else "failed"


def _check_continues(answer: Answer, *, tag: str, start: int) -> None:
    """Check that a response continues an interrupted one.

    Raises:
        Damaged: it does not.
    """
    span = answer.headers.get("content-range", "")
    if answer.status != 206 or answer.headers.get("etag") != tag or not span.startswith(f"bytes {start}-"):
        raise Damaged(f"interrupted after {start} bytes, and the object has changed since")
