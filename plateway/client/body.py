"""Request bodies: bytes, a file or pieces, sent again where that is possible."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import BinaryIO, NamedTuple, TypeAlias, cast

PIECE = 1 << 20  # bytes

Pieces: TypeAlias = Iterable[bytes] | AsyncIterable[bytes]
Content: TypeAlias = bytes | bytearray | memoryview | BinaryIO | Iterable[bytes]
AsyncContent: TypeAlias = Content | AsyncIterable[bytes]


class BodySource(NamedTuple):
    """The source of a body's pieces."""

    begin: Callable[[], Pieces]
    repeatable: bool
    length: int | None = None  # bytes; None: unknown until the end
    sha256: str | None = None  # None: unknown until the end
    blocks: bool = True  # reading a piece may block


class Body:
    """The content of a request. Bytes, files that can seek, and collections can be sent again; iterators cannot."""

    def __init__(self, content: AsyncContent) -> None:
        self._source = _source(content)
        self._begun = False
        self._sums, self.size = hashlib.sha256(), 0  # of the last attempt

    @property
    def length(self) -> int | None:
        """Number of bytes to send; None: unknown."""
        return self._source.length

    @property
    def known(self) -> str | None:
        """SHA-256 of the bytes to send; None: unknown."""
        return self._source.sha256

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes sent in the last attempt."""
        return self._source.sha256 or self._sums.hexdigest()

    @property
    def repeatable(self) -> bool:
        """Whether it can be sent from its start."""
        return self._source.repeatable or not self._begun

    def __iter__(self) -> Iterator[bytes]:
        pieces = self._restart()
        if not isinstance(pieces, Iterable):
            raise TypeError("asynchronous pieces need the asynchronous client")
        return map(self._record_piece, pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = self._restart()
        if not isinstance(pieces, Iterable):
            async for piece in pieces:
                yield self._record_piece(piece)
        elif self._source.blocks:
            waiting = iter(pieces)
            while (found := await asyncio.to_thread(lambda: next(waiting, None))) is not None:
                yield self._record_piece(found)
        else:
            for piece in pieces:
                yield self._record_piece(piece)

    def _restart(self) -> Pieces:
        self._begun, self._sums, self.size = True, hashlib.sha256(), 0
        return self._source.begin()

    def _record_piece(self, piece: bytes) -> bytes:
        self.size += len(piece)
        if self._source.sha256 is None:
            self._sums.update(piece)
        return piece


def _source(content: AsyncContent) -> BodySource:
    if isinstance(content, str):
        raise TypeError("an object is bytes, not text")
    if isinstance(content, bytes | bytearray | memoryview):
        held = memoryview(content).cast("B")
        sha256 = hashlib.sha256(held).hexdigest()
        return BodySource(partial(_split, held), repeatable=True, length=held.nbytes, sha256=sha256, blocks=False)
    if isinstance(content, AsyncIterable):
        return BodySource(lambda: content, repeatable=not isinstance(content, AsyncIterator))
    if not hasattr(content, "read"):
        return BodySource(lambda: _join_pieces(content), repeatable=not isinstance(content, Iterator))
    return _file(cast("BinaryIO", content))


def _split(held: memoryview) -> Iterator[bytes]:
    """Split bytes into pieces: sending one large piece would copy its rest again and again."""
    return (bytes(held[start : start + PIECE]) for start in range(0, held.nbytes, PIECE))


def _join_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces."""
    held, size = [], 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def _file(file: BinaryIO) -> BodySource:
    """Read a file from its current position."""
    if not file.seekable():
        return BodySource(lambda: iter(partial(file.read, PIECE), b""), repeatable=False)
    start = file.tell()
    length = max(0, file.seek(0, io.SEEK_END) - start)
    file.seek(start)

    def begin() -> Iterator[bytes]:
        file.seek(start)
        return iter(partial(file.read, PIECE), b"")

    return BodySource(begin, repeatable=True, length=length)
