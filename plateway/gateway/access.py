"""The access log: one line of JSON per request, in a file that is rotated and can be searched.

A line has ``time``, ``who`` (the name of the token or access key), ``service`` (http or s3), ``address``, ``method``,
``path``, ``route``, ``key``, ``received``, ``sent`` (bytes of bodies), ``status`` and ``milliseconds``. Headers, query
strings, tokens and signatures are never in it. Each line is one write at the end of the file, so that several workers
can share it; the first one that finds it full rotates it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plateway.gateway.errors import CLIENT_CLOSED
from plateway.gateway.image_links import redact

INFO = "plateway.request"  # key in the scope of a request
FULL = 64 << 20  # bytes after which the file is rotated
KEPT = 64  # rotated files that are kept
CHECK = 1.0  # seconds between checks whether another worker rotated the file

log = logging.getLogger(__name__)


@dataclass
class RequestInfo:
    """Facts of the running request for the access log; each is set by the code that determines it."""

    who: str | None = None  # name of the token, or of the access key
    address: str | None = None
    key: str | None = None
    service: str = "http"
    route: str | None = None  # where it is not FastAPI that knows


@dataclass(frozen=True)
class Access:
    """One request."""

    time: str  # ISO 8601, UTC: when the request was received
    who: str | None  # name of the token or access key; None without a valid one
    address: str | None
    method: str
    path: str  # as sent, without the query
    route: str | None  # None: no route matches
    key: str | None
    received: int  # bytes of the request body
    sent: int  # bytes of the response body
    status: int  # 499: the client disconnected before the response
    milliseconds: float
    service: str = "http"  # http or s3: whether a token or an access key was shown


@dataclass
class _RequestProgress:
    """What was received and sent for one request."""

    began: float = field(default_factory=time.perf_counter)
    received: int = 0
    sent: int = 0
    status: int = 0
    disconnected: bool = False


def request_info(scope: MutableMapping[str, Any]) -> RequestInfo:
    """Return the facts of a request, which are kept in its scope."""
    info = scope.get(INFO)
    if not isinstance(info, RequestInfo):
        info = scope[INFO] = RequestInfo()
    return info


class AccessLog:
    """The access log file; each worker opens it. `problem` says why the last line was not written, or is None."""

    def __init__(self, path: Path, *, full: int = FULL, kept: int = KEPT) -> None:
        self.problem: str | None = None
        self._path, self._full, self._kept = path, full, kept
        self._file = -1
        self._inode = -1
        self._room, self._until = 0, 0.0  # bytes and time until the file is checked again
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, access: Access) -> None:
        """Write a line. An error is logged and recorded in `problem`; it does not fail the request."""
        line = json.dumps(vars(access), ensure_ascii=True).encode() + b"\n"
        try:
            if self._room <= 0 or time.monotonic() > self._until:
                self._open_current()
            self._room -= len(line)
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes written")
            self.problem = None
        except OSError as error:
            if self.problem is None:
                log.error("the access log cannot be written: %s", error.strerror or error)
            self.problem = f"the access log cannot be written: {error.strerror or 'short write'}"

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = self._inode = -1
        self._room = 0

    def _open_current(self) -> None:
        """Open the current file if another worker rotated it, and rotate a full one."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            status = None
        if status and status.st_size >= self._full:
            self._rotate()
            status = None
        if status is None or status.st_ino != self._inode:
            self.close()
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._inode = os.fstat(self._file).st_ino
        self._room, self._until = (self._full - (status.st_size if status else 0)) // 4, time.monotonic() + CHECK

    def _rotate(self) -> None:
        lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released after one rename
            with suppress(FileNotFoundError):
                if self._path.stat().st_size >= self._full:  # not yet rotated by another worker
                    self._path.rename(self._path.with_name(f"{self._path.name}.{time.time_ns():020}"))
                    for old in _rotated_files(self._path)[: -self._kept or None]:
                        old.unlink(missing_ok=True)
        finally:
            os.close(lock)


def read(
    path: Path,
    *,
    token: str | None = None,
    key: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[Access]:
    """Read the requests of a token, of an access key or of keys, and between two times, oldest first.

    `key` is the name of an access key, or how keys of objects begin.

    Truncated lines, for example after a full disk, are skipped.
    """
    first, last = _format_time(since) if since else "", _format_time(until) if until else "~"
    for file in [*_rotated_files(path), path]:
        with suppress(FileNotFoundError), file.open("rb") as lines:
            for line in lines:
                found = _parse_line(line)
                if (
                    found is not None
                    and (token is None or (found.who, found.service) == (token, "http"))
                    and (key is None or _concerns_key(found, key))
                    and first <= found.time < last
                ):
                    yield found


class AccessLogging:
    """Middleware: write a line to the access log after each request."""

    def __init__(self, app: ASGIApp, *, log: AccessLog) -> None:
        self.app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, progress = datetime.now(UTC), _RequestProgress()

        async def counting_receive() -> Message:
            message = await receive()
            progress.received += len(message.get("body", b""))
            progress.disconnected = progress.disconnected or message["type"] == "http.disconnect"
            return message

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                progress.status = message["status"]
            progress.sent += len(message.get("body", b"")) if scope["method"] != "HEAD" else 0
            await send(message)

        info = request_info(scope)
        try:
            await self.app(scope, counting_receive, counting_send)
        finally:
            self._log.write(_describe_request(scope, info, began, progress))


def _concerns_key(access: Access, key: str) -> bool:
    return (access.who, access.service) == (key, "s3") or (access.key or "").startswith(key)


def _describe_request(scope: Scope, info: RequestInfo, began: datetime, progress: _RequestProgress) -> Access:
    route = getattr(scope.get("route"), "path_format", None) or getattr(scope.get("route"), "path", None)
    return Access(
        time=_format_time(began),
        who=info.who,
        address=info.address,
        method=scope["method"][:32],
        path=redact(scope.get("raw_path", b"")[:3072].decode("ascii", "replace")),
        route=info.route or route,
        key=info.key,
        received=progress.received,
        sent=progress.sent,
        status=progress.status or (CLIENT_CLOSED if progress.disconnected else 500),
        milliseconds=round((time.perf_counter() - progress.began) * 1000, 2),
        service=info.service,
    )


def _rotated_files(path: Path) -> list[Path]:
    """List the rotated files, oldest first."""
    return sorted(file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdigit())


def _parse_line(line: bytes) -> Access | None:
    try:
        return Access(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _format_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
