"""Asking a server until there is an answer: addresses, attempts, errors. Neither sends nor waits: see `steps`.

All that is asked is idempotent, so all of it may be asked again: GET and HEAD change nothing, PUT replaces a whole
object, DELETE leaves nothing however often it is said (when an answer was lost, the second one may be 404). Asked again
is what got no answer or only part of one, and what the server wants asked again: 429, and 503 when it says how long to
wait. A body that cannot be sent from its beginning is sent once.
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
LONGEST = 300  # seconds of a pause; a server that asks for a longer one is not asked again
TOLD = 64 << 10  # bytes that are read of an error
ERRORS: Mapping[int, type[PlatewayError]] = {401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 412: Conflict}


class Tries(NamedTuple):
    """How often something is asked (once at least), and the first pause; it doubles while nobody answers."""

    times: int
    delay: float  # seconds


class Server:
    """A server as the logic sees it: its address, what lets us in, and how patient we are."""

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
        """Prepare a request; parameters that are None are left out."""
        told = {name: str(value) for name, value in (params or {}).items() if value is not None}
        return Ask(method, self._base + path, params=told, headers={**self._headers, **(headers or {})})

    def answer(self, ask: Ask) -> Steps[Answer]:
        """Ask, and receive the whole answer.

        Raises:
            PlatewayError: it is an error, or there is none.
        """
        return (yield from self._tried(ask, _whole))

    def stream(self, ask: Ask, *, sha256: str | None = None) -> Stream[bytes]:
        """Ask, and give the answer piece by piece; what breaks off goes on where it was, if it is still the same.

        Raises:
            Damaged: it has another SHA-256 (said at its end), or was replaced on the way.
        """
        answer = yield from self._tried(ask, _begun)
        tag, done, sums = answer.headers.get("etag", ""), 0, hashlib.sha256()
        left, delay = self._tries
        while True:
            try:
                piece = yield from _more()
            except Unavailable:
                left -= 1
                if left < 1 or not tag.startswith('"'):  # a weak one may be of other bytes
                    raise
                yield Pause(delay)
                delay = min(2 * delay, LONGEST)
                rest = replace(ask, headers={**ask.headers, "Range": f"bytes={done}-"})
                _continues((yield from self._tried(rest, _begun)), tag=tag, start=done)
                continue
            if not piece:
                break
            left, delay = self._tries
            done += len(piece)
            sums.update(piece)
            yield Give(piece)
        if sha256 is not None and sums.hexdigest() != sha256:
            raise Damaged(f"the {done} bytes that arrived are not the ones recorded: their SHA-256 is another")

    def pages(
        self, path: str, params: Mapping[str, Any], *, read: Callable[[dict[str, Any]], tuple[list[T], str | None]]
    ) -> Stream[T]:
        """Give the items of a listing; `read` takes those of a page, and the cursor of the next one, from an answer.

        Raises:
            Unavailable: the pages go round in circles.
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
                raise Unavailable("the pages have no end")
            asked.add(cursor)

    def _tried(self, ask: Ask, receive: Callable[[Ask], Steps[Answer]]) -> Steps[Answer]:
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
                wait = _wait(answer, delay)
                if wait is None or left < 1 or not ask.repeatable:
                    return _good(answer)
                pause = wait
            yield Pause(pause)


def path(*parts: str, key: str = "") -> str:
    """Make a path; a key is encoded between its slashes, such that nobody on the way understands any of it.

    Raises:
        Rejected: no address can say it.
    """
    try:
        return "/".join([*parts, *(_segment(part) for part in key.split("/"))])
    except UnicodeEncodeError:
        raise Rejected("a key is text that UTF-8 can say") from None


def _segment(text: str) -> str:
    """Encode one segment; clients and proxies would go up a folder for two dots."""
    return quote(text, safe="") if set(text) - {"."} else text.replace(".", "%2E")


def _address(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise Misconfigured("the address of the server has the form https://host/path")
    if parts.username is not None:
        raise Misconfigured("the address of the server has no user in it: a token lets you in")
    return base_url.rstrip("/")


def _secret(token: str) -> str:
    found = token.strip()  # of a file, perhaps
    if not found.isascii() or not found.isprintable() or " " in found or not found:
        raise Misconfigured("the token has characters that no token has")
    return found


def _begun(ask: Ask) -> Steps[Answer]:
    """Ask, and receive the answer up to its content, or an error with it."""
    answer = yield ask
    assert isinstance(answer, Answer)
    return answer if answer.status < 400 else (yield from _filled(answer, limit=TOLD))


def _whole(ask: Ask) -> Steps[Answer]:
    answer = yield from _begun(ask)
    return answer if answer.status >= 400 else (yield from _filled(answer))


def _filled(answer: Answer, *, limit: int | None = None) -> Steps[Answer]:
    pieces, size = [], 0
    while (limit is None or size < limit) and (piece := (yield from _more())):
        pieces.append(piece)
        size += len(piece)
    return replace(answer, content=b"".join(pieces))


def _more() -> Steps[bytes]:
    piece = yield More()
    assert isinstance(piece, bytes)
    return piece


def _wait(answer: Answer, delay: float) -> float | None:
    """Say how long to wait before the same is asked again; None: not at all."""
    told = answer.headers.get("retry-after", "").strip()
    seconds = float(told) if told.isascii() and told.isdecimal() else None
    if answer.status not in {429, 503} or (answer.status == 503 and seconds is None):
        return None
    wait = delay if seconds is None else seconds
    return wait if wait <= LONGEST else None


def _good(answer: Answer) -> Answer:
    """Return an answer that is one.

    Raises:
        PlatewayError: it is an error.
    """
    if not 200 <= answer.status < 300:
        _refuse(answer)
    if answer.headers.get("content-type", "").startswith("text/html"):
        raise Unavailable(f"HTTP {answer.status}: a web page instead of an answer; is this the address of a gateway?")
    return answer


def _refuse(answer: Answer) -> NoReturn:
    asked_wrong = 400 <= answer.status < 500 and answer.status not in {408, 429}
    kind = ERRORS.get(answer.status, Rejected if asked_wrong else Unavailable)
    raise kind(f"HTTP {answer.status}: {_said(answer)}")


def _said(answer: Answer) -> str:
    """Find out what a server says is wrong."""
    try:
        told = answer.document()
    except Unavailable:
        told = {}
    match told:
        case {"error": {"message": str(text)}} | {"detail": str(text)} | {"detail": [{"msg": str(text)}, *_]}:
            return text[:2000]
    known = answer.status in set(HTTPStatus)
    return HTTPStatus(answer.status).phrase if known else "failed"


def _continues(answer: Answer, *, tag: str, start: int) -> None:
    """Make sure that an answer goes on where another one broke off.

    Raises:
        Damaged: it does not.
    """
    span = answer.headers.get("content-range", "")
    if answer.status != 206 or answer.headers.get("etag") != tag or not span.startswith(f"bytes {start}-"):
        raise Damaged(f"broke off after {start} bytes, and what follows is not of the same object")
