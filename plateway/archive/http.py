"""Read manifests from an HTTP server, which is not trusted.

A response is one manifest, a list of them, or ``{"items": [...], "next": url or null}``; a ``Link`` header with
``rel="next"`` is followed too. The token is sent to the configured server only.
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
FIRST_PAUSE = 0.5  # seconds before the first retry; doubled each time
LONGEST_PAUSE = 60.0
REDIRECTS = 3
ELSEWHERE = {301, 302, 303, 307, 308}
MOST_TAG = 1024  # characters of the longest ETag that is stored


@dataclass(frozen=True)
class PollLimits:
    """Limits of one poll."""

    pages: int = 1000
    page_size: int = 64 * MIB
    total_size: int = 1024 * MIB
    seconds: float = 300.0  # of the whole poll
    patience: float = 30.0  # seconds between two bytes
    attempts: int = 4  # of each page


@dataclass(frozen=True)
class ManifestPage:
    """The manifests of one response, with names for messages. The last page has the validators for the next poll."""

    manifests: tuple[tuple[str, bytes], ...]
    last: bool = False
    etag: str | None = None
    modified: str | None = None


class Poll:
    """A server that lists manifests."""

    def __init__(
        self,
        url: str,
        token: SecretStr | None = None,
        *,
        limits: PollLimits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL:
            raise Misconfigured("the archive's address is not a URL") from None
        if self._url.scheme not in {"http", "https"} or not self._url.host:
            raise Misconfigured("the archive's address must begin with http:// or https://")
        self.name = shown(str(self._url.copy_with(userinfo=b"", query=None, fragment=None)))
        self._token, self._limits, self._sleep = token, limits or PollLimits(), sleep

    def pages(self, *, etag: str | None = None, modified: str | None = None) -> Iterator[ManifestPage]:
        """Read all manifests, page by page; no page if nothing changed since ``etag`` or ``modified``.

        Raises:
            Unavailable: the server cannot be reached or fails, after all retries. Denied: it refuses the token.
            NotFound: there is no such address.
            Misconfigured: a response is not a manifest, or redirects to another server.
            Rejected: a response cannot be parsed or is too large, or the pages never end.
        """
        known = {"If-None-Match": etag, "If-Modified-Since": modified}
        condition = {name: value for name, value in known.items() if value}
        return _PollRun(self._url, self._token, self._limits, name=self.name, sleep=self._sleep).pages(condition)


class _PollRun:
    """All requests of one poll."""

    def __init__(
        self,
        url: httpx.URL,
        token: SecretStr | None,
        limits: PollLimits,
        *,
        name: str,
        sleep: Callable[[float], None],
    ) -> None:
        self._url, self._token, self._limits, self._name, self._sleep = url, token, limits, name, sleep
        self._end = time.monotonic() + limits.seconds
        self._received = 0
        self._sockets: list[socket.socket] = []

    def pages(self, condition: Mapping[str, str]) -> Iterator[ManifestPage]:
        """Read the pages from the first to the last."""
        url, seen = self._url, set[str]()
        with self._client() as client, self._deadline():
            for number in range(1, self._limits.pages + 1):
                seen.add(str(url))
                answer = self._get_page(client, url, condition if number == 1 else {})
                if answer.status_code == httpx.codes.NOT_MODIFIED:
                    if number > 1 or not condition:
                        raise Rejected(f"{self._name}: answers 304, and no condition was sent")
                    return
                items, following = self._parse(answer, number)
                if following is None:
                    yield self._last_page(items, answer, alone=number == 1)
                    return
                yield ManifestPage(items)
                url = self._next(url, following, number, seen)
        raise Rejected(f"{self._name}: more than {self._limits.pages:,} pages")

    def _last_page(self, items: tuple[tuple[str, bytes], ...], answer: httpx.Response, *, alone: bool) -> ManifestPage:
        """Make the last page. The validators of one page are valid for the whole only if there is just one."""
        etag, modified = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
        if not alone or len(etag or "") > MOST_TAG or len(modified or "") > MOST_TAG:
            etag = modified = None
        return ManifestPage(items, last=True, etag=etag, modified=modified)

    # ----------------------------------------------------------------------------------------------------- requests

    def _client(self) -> httpx.Client:
        patience = httpx.Timeout(self._limits.patience, connect=min(5.0, self._limits.patience))
        return httpx.Client(timeout=patience, follow_redirects=False, headers={"Accept-Encoding": "identity"})

    def _get_page(self, client: httpx.Client, url: httpx.URL, condition: Mapping[str, str]) -> httpx.Response:
        """Request one page, with retries."""
        pause = FIRST_PAUSE
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return self._follow_redirects(client, url, condition)
            except _Retry as retry:
                wait = pause if retry.after is None else retry.after
                if attempt == self._limits.attempts:
                    raise Unavailable(f"{self._name}: {retry} ({attempt} attempts)") from None
                if wait > min(LONGEST_PAUSE, self._end - time.monotonic()):
                    raise Unavailable(f"{self._name}: {retry}, and asks for a wait of {wait:g} s") from None
            self._sleep(wait)
            pause *= 2
        raise AssertionError("unreachable")

    def _follow_redirects(self, client: httpx.Client, url: httpx.URL, condition: Mapping[str, str]) -> httpx.Response:
        """Request an address and follow redirects on the same server."""
        for _ in range(REDIRECTS + 1):
            answer = self._send_request(client, url, condition)
            if answer.status_code not in ELSEWHERE:
                return answer
            url = self._join_url(url, answer.headers.get("Location", ""))
            if not self._is_same_origin(url):
                raise Misconfigured(f"{self._name}: redirects to {_origin(url)}; the token is not sent there")
        raise Misconfigured(f"{self._name}: redirects more than {REDIRECTS} times")

    def _send_request(self, client: httpx.Client, url: httpx.URL, condition: Mapping[str, str]) -> httpx.Response:
        headers = {"Accept": "application/json", **condition}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        try:
            with client.stream("GET", url, headers=headers, extensions={"trace": self._trace}) as response:
                self._check_response(response)
                return httpx.Response(response.status_code, headers=response.headers, content=self._read_body(response))
        except httpx.TimeoutException as error:
            self._check_deadline()
            raise _Retry(f"does not answer in time ({type(error).__name__})") from None
        except httpx.RemoteProtocolError as error:
            self._check_deadline()
            raise _Retry(f"breaks off ({shown(str(error))[:200]})") from None
        except httpx.TransportError as error:
            self._check_deadline()
            raise _Retry(f"cannot be reached ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Rejected(f"{self._name}: the response is not valid HTTP ({type(error).__name__})") from None

    def _check_response(self, response: httpx.Response) -> None:
        """Check status and content type before the body is read."""
        status, headers = response.status_code, response.headers
        if status in {401, 403, 407}:
            token = "the token is refused" if self._token is not None else "no token is configured"
            raise Denied(f"{self._name}: answers {status}, {token}")
        if status in {404, 410}:
            raise NotFound(f"{self._name}: answers {status}, there is no such address")
        if status in {408, 425, 429} or status >= 500:
            raise _Retry(f"answers {status}", after=_retry_after(headers))
        if status in {httpx.codes.NOT_MODIFIED, *ELSEWHERE}:
            return
        if status != httpx.codes.OK:
            raise Misconfigured(f"{self._name}: answers {status}")
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if "html" in kind:
            raise Misconfigured(f"{self._name}: answers with a web page ({shown(kind)}), not with manifests")
        if headers.get("Content-Encoding", "identity").lower() not in {"", "identity"}:
            raise Rejected(f"{self._name}: answers in {quoted(headers['Content-Encoding'])}, which was not asked for")

    def _read_body(self, response: httpx.Response) -> bytes:
        most = min(self._limits.page_size, self._limits.total_size - self._received)
        length = response.headers.get("Content-Length", "0")
        if length.isdecimal() and int(length) > most:
            raise Rejected(f"{self._name}: announces {int(length):,} bytes, the limit is {most:,}")
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > most:
                raise Rejected(f"{self._name}: sends more than {most:,} bytes")
            self._check_deadline()
        self._check_deadline()  # otherwise a connection that was shut down would look like the end of a body
        self._received += len(content)
        return bytes(content)

    # ---------------------------------------------------------------------------------------------------- parsing

    def _parse(self, answer: httpx.Response, number: int) -> tuple[tuple[tuple[str, bytes], ...], str | None]:
        """Parse a response: its manifests, and the address of the next page."""
        link = answer.links.get("next", {}).get("url")
        where = self._name if number == 1 else f"{self._name} page {number}"
        if answer.content.lstrip()[:1] == b"<":
            raise Misconfigured(f"{where}: answers with a web page, not with manifests")
        try:
            said = read_json(answer.content, cap=self._limits.page_size)
        except Rejected as error:
            raise Rejected(f"{where}: {error}") from None
        if isinstance(said, dict) and "items" not in said:
            return ((where, answer.content),), link
        items = said["items"] if isinstance(said, dict) else said
        following = said.get("next", link) if isinstance(said, dict) else link
        if not isinstance(items, list):
            raise Rejected(f"{where}: {quoted(items)} is neither a manifest nor a list of them")
        if following is not None and not isinstance(following, str):
            raise Rejected(f"{where}: next: {quoted(following)} is not an address")
        named = (
            (f"{where}#{place}", json.dumps(item, ensure_ascii=False).encode()) for place, item in enumerate(items)
        )
        return tuple(named), following or None

    def _next(self, url: httpx.URL, following: str, number: int, seen: set[str]) -> httpx.URL:
        found = self._join_url(url, following)
        if not self._is_same_origin(found):
            raise Rejected(f"{self._name}: page {number + 1} would be at {_origin(found)}; the token is not sent there")
        if str(found) in seen:
            raise Rejected(f"{self._name}: page {number + 1} was read before")
        return found

    def _join_url(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            return httpx.URL(urljoin(str(url), location)).copy_with(fragment=None)
        except (httpx.InvalidURL, ValueError):
            raise Rejected(f"{self._name}: {quoted(location)} is not an address") from None

    def _is_same_origin(self, url: httpx.URL) -> bool:
        return _origin(url) == _origin(self._url)

    # ----------------------------------------------------------------------------------------------------- deadline

    def _check_deadline(self) -> None:
        if time.monotonic() >= self._end:
            raise Unavailable(f"{self._name}: takes longer than {self._limits.seconds:g} s") from None

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Record the connections, so that they can be shut down: a server that sends single bytes never times out."""
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            found = info["return_value"].get_extra_info("socket")
            if isinstance(found, socket.socket):
                self._sockets.append(found)

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        """Shut down all connections at the deadline."""
        timer = threading.Timer(self._end - time.monotonic(), self._shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._sockets.clear()

    def _shut_down(self) -> None:
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Retry(Exception):
    """The request may be retried, after `after` seconds if the server sent Retry-After."""

    def __init__(self, what: str, *, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


def _origin(url: httpx.URL) -> str:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
    return shown(f"{url.scheme}://{url.host}:{port}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Parse Retry-After: seconds, or a date."""
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
