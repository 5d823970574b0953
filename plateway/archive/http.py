"""The HTTP door: ask a server for manifests, and trust nothing that it answers.

It may answer with one manifest, a list of them, or ``{"items": [...], "next": url or null}``; a ``Link`` header with
``rel="next"`` counts too. The token is sent to the address that was configured, and nowhere else.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin

import httpx
from pydantic import SecretStr

from plateway.errors import Denied, Misconfigured, NotFound, Rejected, Unavailable
from plateway.events import quoted, read_json
from plateway.names import shown

MIB = 1 << 20
FIRST_PAUSE = 0.5  # seconds before a request is repeated; twice as long each time
LONGEST_PAUSE = 60.0
REDIRECTS = 3
ELSEWHERE = {301, 302, 303, 307, 308}
MOST_TAG = 1024  # characters of an ETag that are kept


@dataclass(frozen=True)
class Limits:
    """How much of a server's answer is taken."""

    pages: int = 1000
    page_size: int = 64 * MIB
    total_size: int = 1024 * MIB
    seconds: float = 300.0  # for everything
    patience: float = 30.0  # seconds without a byte
    attempts: int = 4  # for each page


@dataclass(frozen=True)
class Page:
    """Manifests of one answer, with names for people. The last page says what to ask with next time."""

    manifests: tuple[tuple[str, bytes], ...]
    last: bool = False
    etag: str | None = None
    modified: str | None = None


@dataclass(frozen=True)
class _Answer:
    """One response that was read whole."""

    status: int
    headers: httpx.Headers
    next: str | None  # by its Link header
    content: bytes


class Poll:
    """A server that lists manifests."""

    def __init__(
        self,
        url: str,
        token: SecretStr | None = None,
        *,
        limits: Limits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL:
            raise Misconfigured("the archive's address is no URL") from None
        if self._url.scheme not in {"http", "https"} or not self._url.host:
            raise Misconfigured("the archive's address is http:// or https://")
        self.name = shown(str(self._url.copy_with(userinfo=b"", query=None, fragment=None)))
        self._token, self._limits, self._sleep = token, limits or Limits(), sleep

    def pages(self, *, etag: str | None = None, modified: str | None = None) -> Iterator[Page]:
        """Ask for everything, page by page; nothing comes when nothing changed since ``etag`` or ``modified``.

        Raises:
            Unavailable: it does not answer, or fails, also when asked again. Denied: the token. NotFound: the address.
            Misconfigured: it answers with something other than manifests, or sends us elsewhere.
            Rejected: what it answers cannot be read, is too much, or never ends.
        """
        known = {"If-None-Match": etag, "If-Modified-Since": modified}
        condition = {name: value for name, value in known.items() if value}
        return _Visit(self._url, self._token, self._limits, name=self.name, sleep=self._sleep).pages(condition)


class _Visit:
    """All requests of one poll, within its limits."""

    def __init__(
        self,
        url: httpx.URL,
        token: SecretStr | None,
        limits: Limits,
        *,
        name: str,
        sleep: Callable[[float], None],
    ) -> None:
        self._url, self._token, self._limits, self._name, self._sleep = url, token, limits, name, sleep
        self._end = time.monotonic() + limits.seconds
        self._taken = 0
        self._sockets: list[socket.socket] = []

    def pages(self, condition: Mapping[str, str]) -> Iterator[Page]:
        """Follow the pages from the first to the last."""
        url, seen = self._url, set[str]()
        with self._client() as client, self._watched():
            for number in range(1, self._limits.pages + 1):
                seen.add(str(url))
                answer = self._ask(client, url, condition if number == 1 else {})
                if answer.status == httpx.codes.NOT_MODIFIED:
                    if number > 1 or not condition:
                        raise Rejected(f"{self._name}: answers 304, and no condition was sent")
                    return
                items, following = self._read(answer, number)
                if following is None:
                    yield self._last(items, answer, alone=number == 1)
                    return
                yield Page(items)
                url = self._next(url, following, number, seen)
        raise Rejected(f"{self._name}: more than {self._limits.pages:,} pages")

    def _last(self, items: tuple[tuple[str, bytes], ...], answer: _Answer, *, alone: bool) -> Page:
        """Close the listing. What tells of one page only is no condition for them all."""
        etag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
        if not alone or len(etag or "") > MOST_TAG or len(modified or "") > MOST_TAG:
            etag = modified = None
        return Page(items, last=True, etag=etag, modified=modified)

    # ----------------------------------------------------------------------------------------------------- asking

    def _client(self) -> httpx.Client:
        patience = httpx.Timeout(self._limits.patience, connect=min(5.0, self._limits.patience))
        return httpx.Client(timeout=patience, follow_redirects=False, headers={"Accept-Encoding": "identity"})

    def _ask(self, client: httpx.Client, url: httpx.URL, condition: Mapping[str, str]) -> _Answer:
        """Ask for one page until it is answered."""
        pause = FIRST_PAUSE
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return self._followed(client, url, condition)
            except _Again as again:
                wait = pause if again.after is None else again.after
                if attempt == self._limits.attempts:
                    raise Unavailable(f"{self._name}: {again} ({attempt} attempts)") from None
                if wait > min(LONGEST_PAUSE, self._end - time.monotonic()):
                    raise Unavailable(f"{self._name}: {again}, and would have us wait {wait:g} s") from None
            self._sleep(wait)
            pause *= 2
        raise AssertionError("unreachable")

    def _followed(self, client: httpx.Client, url: httpx.URL, condition: Mapping[str, str]) -> _Answer:
        """Follow redirects within the same server."""
        for _ in range(REDIRECTS + 1):
            answer = self._once(client, url, condition)
            if answer.status not in ELSEWHERE:
                return answer
            url = self._joined(url, answer.headers.get("Location", ""))
            if not self._ours(url):
                raise Misconfigured(f"{self._name}: redirects to {_origin(url)}; the token is not sent there")
        raise Misconfigured(f"{self._name}: redirects more than {REDIRECTS} times")

    def _once(self, client: httpx.Client, url: httpx.URL, condition: Mapping[str, str]) -> _Answer:
        headers = {"Accept": "application/json", **condition}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        try:
            with client.stream("GET", url, headers=headers, extensions={"trace": self._trace}) as response:
                self._judge(response)
                following = response.links.get("next", {}).get("url")
                return _Answer(response.status_code, response.headers, following, self._body(response))
        except httpx.TimeoutException as error:
            self._in_time()
            raise _Again(f"does not answer in time ({type(error).__name__})") from None
        except httpx.RemoteProtocolError as error:
            self._in_time()
            raise _Again(f"breaks off ({shown(str(error))[:200]})") from None
        except httpx.TransportError as error:
            self._in_time()
            raise _Again(f"cannot be reached ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Rejected(f"{self._name}: answers no HTTP that can be read ({type(error).__name__})") from None

    def _judge(self, response: httpx.Response) -> None:
        """Read the status and the kind of content, before the body."""
        status, headers = response.status_code, response.headers
        if status in {401, 403, 407}:
            token = "the token is refused" if self._token is not None else "no token is configured"
            raise Denied(f"{self._name}: answers {status}, {token}")
        if status in {404, 410}:
            raise NotFound(f"{self._name}: answers {status}, there is no such address")
        if status in {408, 425, 429} or status >= 500:
            raise _Again(f"answers {status}", after=_retry_after(headers))
        if status in {httpx.codes.NOT_MODIFIED, *ELSEWHERE}:
            return
        if status != httpx.codes.OK:
            raise Misconfigured(f"{self._name}: answers {status}")
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if "html" in kind:
            raise Misconfigured(f"{self._name}: answers with a web page ({shown(kind)}), not with manifests")
        if headers.get("Content-Encoding", "identity").lower() not in {"", "identity"}:
            raise Rejected(f"{self._name}: answers in {quoted(headers['Content-Encoding'])}, which was not asked for")

    def _body(self, response: httpx.Response) -> bytes:
        most = min(self._limits.page_size, self._limits.total_size - self._taken)
        told = response.headers.get("Content-Length", "0")
        if told.isdecimal() and int(told) > most:
            raise Rejected(f"{self._name}: announces {int(told):,} bytes, at most {most:,} are taken")
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > most:
                raise Rejected(f"{self._name}: sends more than {most:,} bytes")
            self._in_time()
        self._in_time()  # else a connection that was cut would be a body that ended
        self._taken += len(content)
        return bytes(content)

    # ---------------------------------------------------------------------------------------------------- reading

    def _read(self, answer: _Answer, number: int) -> tuple[tuple[tuple[str, bytes], ...], str | None]:
        """Take an answer apart: its manifests, and the address of the next page."""
        where = self._name if number == 1 else f"{self._name} page {number}"
        if answer.content.lstrip()[:1] == b"<":
            raise Misconfigured(f"{where}: answers with a web page, not with manifests")
        try:
            said = read_json(answer.content, cap=self._limits.page_size)
        except Rejected as error:
            raise Rejected(f"{where}: {error}") from None
        if isinstance(said, dict) and "items" not in said:
            return ((where, answer.content),), answer.next
        items = said["items"] if isinstance(said, dict) else said
        following = said.get("next", answer.next) if isinstance(said, dict) else answer.next
        if not isinstance(items, list):
            raise Rejected(f"{where}: {quoted(items)} is neither a manifest nor a list of them")
        if following is not None and not isinstance(following, str):
            raise Rejected(f"{where}: next: {quoted(following)} is not an address")
        named = (
            (f"{where}#{place}", json.dumps(item, ensure_ascii=False).encode()) for place, item in enumerate(items)
        )
        return tuple(named), following or None

    def _next(self, url: httpx.URL, following: str, number: int, seen: set[str]) -> httpx.URL:
        found = self._joined(url, following)
        if not self._ours(found):
            raise Rejected(f"{self._name}: page {number + 1} would be at {_origin(found)}; the token is not sent there")
        if str(found) in seen:
            raise Rejected(f"{self._name}: page {number + 1} is one that came before")
        return found

    def _joined(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            return httpx.URL(urljoin(str(url), location)).copy_with(fragment=None)
        except (httpx.InvalidURL, ValueError):
            raise Rejected(f"{self._name}: {quoted(location)} is not an address") from None

    def _ours(self, url: httpx.URL) -> bool:
        return _origin(url) == _origin(self._url)

    # ----------------------------------------------------------------------------------------------------- in time

    def _in_time(self) -> None:
        if time.monotonic() >= self._end:
            raise Unavailable(f"{self._name}: takes longer than {self._limits.seconds:g} s") from None

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note the connections, so that they can be cut: a server that sends a byte now and then never times out."""
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            found = info["return_value"].get_extra_info("socket")
            if isinstance(found, socket.socket):
                self._sockets.append(found)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Cut every connection when the time is over."""
        timer = threading.Timer(self._end - time.monotonic(), self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._sockets.clear()

    def _cut(self) -> None:
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Again(Exception):
    """The request may be repeated, after so many seconds if the server said."""

    def __init__(self, what: str, *, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


def _origin(url: httpx.URL) -> str:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
    return shown(f"{url.scheme}://{url.host}:{port}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Read how long to wait: seconds, or a date."""
    said = headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        moment = parsedate_to_datetime(said)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
