"""A man in the middle: speaks HTTP on both sides, forwards every byte as it came, and does what a test's script says.

Hosts and headers are forwarded unchanged, so that signatures stay valid. Knows S3 just enough to name a request.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import BinaryIO
from urllib.parse import parse_qs, urlsplit

CHUNK = 1 << 16


@dataclass(frozen=True)
class Message:
    """A request or a reply: its first line, its headers, its body with any chunking removed."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    cut: int | None = None  # of a reply: so many bytes of the body are sent, then the connection ends
    at: float = field(default_factory=time.monotonic, compare=False)  # when it came

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def status(self) -> int:
        return int(self.start.split()[1])

    @property
    def path(self) -> str:
        return urlsplit(self.start.split()[1]).path

    @property
    def name(self) -> str:
        """Return which operation of S3 a request is."""
        method, target, _ = self.start.split()
        parts = urlsplit(target)
        asked = parse_qs(parts.query, keep_blank_values=True)
        operations = {
            ("POST", "uploads"): "create upload",
            ("PUT", "partNumber"): f"part {asked.get('partNumber', ['?'])[0]}",
            ("POST", "uploadId"): "complete",
            ("DELETE", "uploadId"): "abort",
            ("GET", "uploads"): "list uploads",
            ("GET", "list-type"): "list",
            ("POST", "delete"): "delete objects",
        }
        for (verb, key), name in operations.items():
            if verb == method and key in asked:
                return name
        return f"{method.lower()} {'object' if parts.path.strip('/').count('/') else 'bucket'}"

    @property
    def key(self) -> str:
        """Return which object a request is about: what follows the bucket."""
        return self.path.strip("/").partition("/")[2]


class Reset(Exception):
    """A script raises it to end the client's connection without an answer."""


Forward = Callable[[Message], Message]
Script = Callable[[Message, Forward], Message]


def honest(request: Message, forward: Forward) -> Message:
    """Forward what was asked and return what was answered."""
    return forward(request)


def error(status: int, code: str) -> Message:
    """Make the answer with which S3 refuses."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'.encode()
    line = f"HTTP/1.1 {status} {code}"
    return Message(line, (("Content-Type", "application/xml"), ("Content-Length", str(len(body)))), body)


def with_header(reply: Message, name: str, value: str) -> Message:
    """Exchange one header of a reply."""
    kept = tuple(pair for pair in reply.headers if pair[0].lower() != name.lower())
    return replace(reply, headers=(*kept, (name, value)))


def with_body(reply: Message, body: bytes) -> Message:
    """Exchange the body of a reply, its length told truly."""
    plain = replace(reply, headers=tuple(pair for pair in reply.headers if pair[0].lower() != "transfer-encoding"))
    return replace(with_header(plain, "Content-Length", str(len(body))), body=body)


@dataclass
class Proxy:
    """One port in front of a server; ``script`` may be exchanged at any time, ``log`` keeps what was asked."""

    upstream: tuple[str, int]
    listener: socket.socket
    script: Script = honest
    log: list[Message] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self) -> None:
        """Serve until the listener is closed."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Answer one client, request by request, over a connection of its own to the server."""
        with suppress(OSError), client, socket.create_connection(self.upstream) as server:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asking, answering = client.makefile("rb"), server.makefile("rb")
            while (request := read(asking, asks=client)) is not None:
                self.log.append(request)
                try:
                    reply = self.script(request, lambda message: forward(message, server, answering))
                except Reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.shutdown(socket.SHUT_RD)
                    return
                client.sendall(head(reply) + reply.body[: reply.cut])
                if reply.cut is not None:
                    return


def forward(request: Message, server: socket.socket, answering: BinaryIO) -> Message:
    """Query the server itself."""
    server.sendall(head(request) + request.body)
    reply = read(answering, bodiless=request.start.startswith("HEAD"))
    if reply is None:
        raise Reset
    return reply


def head(message: Message) -> bytes:
    """Write the first line and the headers. Bodies are sent whole, so their length takes the place of chunking."""
    lines = [f"{key}: {value}" for key, value in message.headers if key.lower() != "transfer-encoding"]
    if len(lines) < len(message.headers):
        lines.append(f"Content-Length: {len(message.body)}")
    return ("\r\n".join([message.start, *lines]) + "\r\n\r\n").encode("latin-1")


def read(stream: BinaryIO, *, bodiless: bool = False, asks: socket.socket | None = None) -> Message | None:
    """Read one message; None when the other side has ended the connection. Who asks whether to go on is told so."""
    line = stream.readline().decode("latin-1").strip()
    if not line:
        return None
    headers = []
    while text := stream.readline().decode("latin-1").strip():
        key, _, value = text.partition(":")
        headers.append((key, value.strip()))
    message = Message(line, tuple(pair for pair in headers if pair[0].lower() != "expect"))
    if asks is not None and len(message.headers) < len(headers):
        asks.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if bodiless or re.match(r"HTTP/1.. (204|304)", line):
        return message
    if (message.header("transfer-encoding") or "").lower() == "chunked":
        return replace(message, body=b"".join(chunks(stream)))
    length = int(message.header("content-length") or 0)
    body = stream.read(length)
    return replace(message, body=body) if len(body) == length else None


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Undo chunked transfer."""
    while size := int(stream.readline().split(b";")[0], 16):
        yield stream.read(size)
        stream.readline()
    stream.readline()


@contextmanager
def between(url: str) -> Iterator[Proxy]:
    """Stand in front of a server."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        proxy = Proxy((parts.hostname, parts.port), listener)
        thread = threading.Thread(target=proxy.accept, daemon=True)
        thread.start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
