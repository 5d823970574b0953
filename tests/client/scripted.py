"""A small HTTP server that answers as it is told, and keeps what it was asked."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

RESET = b"reset"  # cut the connection, with nothing said
HTML = b"<html><body>Log in to the network</body></html>"


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    target: str  # exactly as it was sent
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


Answer = bytes | Callable[[Asked], bytes]


def said(status: int, content: bytes | dict[str, Any] = b"", *, length: int | None = None, **headers: str) -> bytes:
    """Write an answer; `length` may be a lie."""
    body = json.dumps(content).encode() if isinstance(content, dict) else content
    kind = "application/json" if isinstance(content, dict) else "application/octet-stream"
    told = {"Content-Type": kind, "Content-Length": str(len(body) if length is None else length)}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}Connection: close\r\n\r\n".encode() + body


def kept(asked: Asked) -> bytes:
    """Answer that an object was stored, as a gateway does."""
    key = asked.target.removeprefix("/objects/")
    return said(200, {"key": key, "size": len(asked.body), "created_at": "2026-01-01T00:00:00Z"})


class Scripted:
    """Gives one answer after the other, the last one again and again."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: list[Answer] = [said(500)]
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def gaps(self) -> list[float]:
        """The seconds between the requests."""
        return [later.at - earlier.at for earlier, later in zip(self.asked, self.asked[1:], strict=False)]

    def play(self, *answers: Answer) -> None:
        """Return what it answers from now on, and forget what it was asked."""
        self._answers, self.asked = list(answers), []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(60)

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:  # it was closed
                return
            line.settimeout(60)
            with line, line.makefile("rb") as file, suppress(OSError, ValueError):  # it left, or broke off
                self._answer(line, file)

    def _answer(self, line: socket.socket, file: BinaryIO) -> None:
        method, target, _ = file.readline().decode().split(" ", 2)
        headers = {}
        while (text := file.readline().decode().strip()) != "":
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        asked = Asked(method, target, headers, _body(file, headers))
        self.asked.append(asked)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        content = answer(asked) if callable(answer) else answer
        if content == RESET:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            line.sendall(content)


def _body(file: BinaryIO, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return file.read(int(headers.get("content-length", 0)))
    pieces = []
    while size := int(file.readline(), 16):
        pieces.append(file.read(size))
        file.readline()
    file.readline()
    return b"".join(pieces)
