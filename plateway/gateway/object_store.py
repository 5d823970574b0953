"""The objects themselves: a store, seen by keys, and what keeps changes of one key apart.

Everything here blocks, and is called in threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import tempfile
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from starlette.datastructures import Headers

from plateway.checksums import PartHasher, part_size
from plateway.errors import Busy, Damaged, NotFound
from plateway.gateway import keys as names
from plateway.gateway.errors import Problem
from plateway.gateway.http_conditions import Span, check_conditions
from plateway.store import Objects, Stat

MIB = 1 << 20
WAIT = 30.0  # seconds to wait for the turn of a key
STRIPES = 256


class Held:
    """A context that is entered later, or never, and left in any case."""

    def __init__(self) -> None:
        self._inner: AbstractContextManager[None] | None = None

    def enter(self, inner: AbstractContextManager[None]) -> None:
        """Enter it now."""
        inner.__enter__()
        self._inner = inner

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        if self._inner is not None:
            self._inner.__exit__(None, None, None)


class Turns:
    """One change of a key at a time, among the workers of a machine."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Wait until nobody else changes the key (or one of the few that share its lock).

        Raises:
            Busy: somebody holds it for too long.
        """
        stripe = self._directory / f"{zlib.crc32(key.encode()) % STRIPES:02x}"
        lock = os.open(stripe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + WAIT
            while not _held(lock):
                if time.monotonic() > until:
                    raise Busy("the object is being changed by others")
                time.sleep(0.005)
            yield
        finally:
            os.close(lock)


class Sums:
    """Checksums of what passes: what the client said, and what the store will say; a `part` of 0: it says nothing."""

    def __init__(self, part: int, wanted: Mapping[str, bytes]) -> None:
        self._parts, self._wanted = PartHasher(part) if part else None, wanted
        self._others = {kind: hashlib.new(kind, usedforsecurity=False) for kind in {*wanted, "sha256"}}
        self.size = 0

    def update(self, piece: bytes) -> None:
        """Take the next piece."""
        if self._parts:
            self._parts.update(piece)
        for other in self._others.values():
            other.update(piece)
        self.size += len(piece)

    def check(self) -> None:
        """Compare with what the client said.

        Raises:
            Problem: 400, it is something else.
        """
        for kind, digest in self._wanted.items():
            if not hmac.compare_digest(self._others[kind].digest(), digest):
                raise Problem(400, f"The body does not have the {kind} that was sent with it")

    @property
    def etag(self) -> str | None:
        """What S3 says of these bytes."""
        return self._parts.etag() if self._parts else None

    @property
    def sha256(self) -> bytes:
        """Of all bytes."""
        return self._others["sha256"].digest()


class Shelf:
    """The objects: a store, seen by keys. Methods block, and raise our errors and `Problem`."""

    def __init__(self, store: Objects, home: Path) -> None:
        self.store = store
        self._turns = Turns(home / "turns")
        self._spool = home / "spool"
        self._spool.mkdir(parents=True, exist_ok=True)
        self._tells = True  # the store says what arrived; if it did not last time, that is not computed

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int | None, headers: Headers, wanted: Mapping[str, bytes]
    ) -> tuple[str, Sums]:
        """Store an object if the request's conditions and checksums hold when all of it came; returns its ETag.

        A `size` of None is found out first, with the body in a file that has no name.
        """
        if size is not None:
            return self._put(key, chunks, size=size, headers=headers, wanted=wanted)
        with tempfile.TemporaryFile(dir=self._spool) as file:
            for chunk in chunks:
                file.write(chunk)
            size = file.tell()
            file.seek(0)
            pieces = iter(partial(file.read, MIB), b"")
            return self._put(key, pieces, size=size, headers=headers, wanted=wanted)

    def _put(
        self, key: str, chunks: Iterable[bytes], *, size: int, headers: Headers, wanted: Mapping[str, bytes]
    ) -> tuple[str, Sums]:
        name, part = names.name(key), part_size(size)
        sums = Sums(part if self._tells else 0, wanted)
        turn = self._turns.turn(key)
        with Held() as held:

            def checked() -> Generator[bytes, None, None]:
                for chunk in chunks:
                    sums.update(chunk)
                    yield chunk
                if sums.size == size:  # else the store says so
                    sums.check()
                    held.enter(turn)
                    self._conditions(name, headers)

            told = self.store.put(name, checked(), size=size, part_size=part, metadata={})
            etag, self._tells = told or self._etag(name), told is not None
        if told is not None and told != sums.etag:
            self._prove(name, told, sums)
        return etag, sums

    def _etag(self, name: str) -> str:
        found = self.store.look(name)
        return found.etag if found else ""

    def _prove(self, name: str, told: str, sums: Sums) -> None:
        """Read back what has another ETag than was computed: a store may make its own, or hold other bytes."""
        found, chunks = self.store.fetch(name)
        read = hashlib.sha256()
        for chunk in chunks:
            read.update(chunk)
        if found.etag == told and read.digest() != sums.sha256:
            raise Damaged(f"{self.store.name}/{name}: the store holds other bytes than were sent")

    def delete(self, key: str, headers: Headers) -> bool:
        """Remove an object; False: there is none."""
        name = names.name(key)
        with self._turns.turn(key):
            if self.store.look(name) is None:
                return False
            self._conditions(name, headers)
            self.store.delete(name)
        return True

    def _conditions(self, name: str, headers: Headers) -> None:
        if any(field in headers for field in ("if-match", "if-none-match", "if-unmodified-since")):
            check_conditions(headers, self.store.look(name), method="PUT")

    def look(self, key: str) -> Stat | None:
        """Look at an object."""
        return self.store.look(names.name(key))

    def fetch(self, key: str, span: Span | None) -> tuple[Stat, Iterator[bytes]] | None:
        """Begin to read an object; None: there is none."""
        name = names.name(key)
        try:
            return self.store.fetch(name, start=span.start, length=span.length) if span else self.store.fetch(name)
        except NotFound:
            if self.store.look(name) is None:  # which raises if the bucket is what is missing
                return None
            raise

    def page(self, prefix: str, *, after: str | None, limit: int) -> list[str]:
        """List keys beyond `after`, at most so many."""
        beginning = names.beginning(prefix)
        last = "" if after is None else names.name(after)
        found: list[str] = []
        while beginning is not None and len(found) < limit:
            wanted = limit - len(found)
            stats = self.store.page(beginning, after=last, limit=wanted)
            keys = (names.shown(stat.key) for stat in stats)
            found += [key for key in keys if key.startswith(prefix)]
            if len(stats) < wanted:
                break
            last = stats[-1].key
        return found


def _held(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
