"""Who asked for what: one line of JSON for each request, in a file that is rotated and can be searched.

A line has ``time``, ``who`` (the token's name), ``address``, ``method``, ``path``, ``route``, ``key``, ``received``,
``sent`` (bytes of bodies), ``status`` and ``milliseconds``. Headers, query strings and tokens are never in it. Each
line is one write at the end of the file, so that the workers share it; whoever finds it full moves it aside.
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

from plateway.gateway.errors import GONE

NOTE = "plateway.note"
FULL = 64 << 20  # bytes after which the file is moved aside
KEPT = 64  # files that were moved aside and are kept
LOOK = 1.0  # seconds after which it is seen whether the file still has the name

log = logging.getLogger(__name__)


@dataclass
class Note:
    """What is told of the request that is under way; who finds it out fills it in."""

    who: str | None = None
    address: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Access:
    """One request."""

    time: str  # ISO 8601, UTC: when it came
    who: str | None  # name of the token; None without one that is known
    address: str | None
    method: str
    path: str  # as it was sent, without the query
    route: str | None  # None: there is no such route
    key: str | None
    received: int  # bytes of the body that came
    sent: int
    status: int  # 499: the client left before there was an answer
    milliseconds: float


@dataclass
class _Course:
    """How a request goes."""

    began: float = field(default_factory=time.perf_counter)
    received: int = 0
    sent: int = 0
    status: int = 0
    left: bool = False


def note(scope: MutableMapping[str, Any]) -> Note:
    """Find what is told of this request."""
    found = scope.get(NOTE)
    if not isinstance(found, Note):
        found = scope[NOTE] = Note()
    return found


class AccessLog:
    """The file; each worker opens its own. What cannot be written is in `problem`, and in the server's log."""

    def __init__(self, path: Path, *, full: int = FULL, kept: int = KEPT) -> None:
        self.problem: str | None = None
        self._path, self._full, self._kept = path, full, kept
        self._file = -1
        self._inode = -1
        self._room, self._until = 0, 0.0  # bytes and time that are left before the file is looked at
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, access: Access) -> None:
        """Add a line; never fails the request that it is about."""
        line = json.dumps(vars(access), ensure_ascii=True).encode() + b"\n"
        try:
            if self._room <= 0 or time.monotonic() > self._until:
                self._turn()
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
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = self._inode = -1
        self._room = 0

    def _turn(self) -> None:
        """Have the file open that has the name now, and move a full one aside."""
        try:
            told = self._path.stat()
        except FileNotFoundError:
            told = None
        if told and told.st_size >= self._full:
            self._aside()
            told = None
        if told is None or told.st_ino != self._inode:
            self.close()
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._inode = os.fstat(self._file).st_ino
        self._room, self._until = (self._full - (told.st_size if told else 0)) // 4, time.monotonic() + LOOK

    def _aside(self) -> None:
        lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held for the time of a rename
            with suppress(FileNotFoundError):
                if self._path.stat().st_size >= self._full:  # nobody else did it meanwhile
                    self._path.rename(self._path.with_name(f"{self._path.name}.{time.time_ns():020}"))
                    for old in _olds(self._path)[: -self._kept or None]:
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
    """Read the requests of a token, or of keys that begin with `key`, in a span of time, oldest first.

    Lines that were cut off, by a full disk for example, are left out.
    """
    first, last = _time(since) if since else "", _time(until) if until else "~"
    for file in [*_olds(path), path]:
        with suppress(FileNotFoundError), file.open("rb") as lines:
            for line in lines:
                found = _parsed(line)
                if (
                    found is not None
                    and (token is None or found.who == token)
                    and (key is None or (found.key or "").startswith(key))
                    and first <= found.time < last
                ):
                    yield found


class Logged:
    """Write a line for each request when it is over."""

    def __init__(self, app: ASGIApp, *, log: AccessLog) -> None:
        self.app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        came, course = datetime.now(UTC), _Course()

        async def received() -> Message:
            message = await receive()
            course.received += len(message.get("body", b""))
            course.left = course.left or message["type"] == "http.disconnect"
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                course.status = message["status"]
            course.sent += len(message.get("body", b"")) if scope["method"] != "HEAD" else 0
            await send(message)

        told = note(scope)
        try:
            await self.app(scope, received, sent)
        finally:
            self._log.write(_access(scope, told, came, course))


def _access(scope: Scope, told: Note, came: datetime, course: _Course) -> Access:
    route = getattr(scope.get("route"), "path_format", None) or getattr(scope.get("route"), "path", None)
    return Access(
        time=_time(came),
        who=told.who,
        address=told.address,
        method=scope["method"][:32],
        path=scope.get("raw_path", b"")[:3072].decode("ascii", "replace"),
        route=route,
        key=told.key,
        received=course.received,
        sent=course.sent,
        status=course.status or (GONE if course.left else 500),
        milliseconds=round((time.perf_counter() - course.began) * 1000, 2),
    )


def _olds(path: Path) -> list[Path]:
    """List the files that were moved aside, oldest first."""
    return sorted(one for one in path.parent.glob(f"{path.name}.*") if one.suffix[1:].isdigit())


def _parsed(line: bytes) -> Access | None:
    try:
        return Access(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
