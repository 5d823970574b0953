"""The objects of the gateway in a store, by key, with one change of a key at a time.

Everything here blocks and is called in threads.
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
WAIT = 30.0  # seconds to wait for the lock of a key
STRIPES = 256


class LateContext:
    """A context that may be entered within the block, and is exited with it."""

    def __init__(self) -> None:
        self._inner: AbstractContextManager[None] | None = None

    def enter(self, inner: AbstractContextManager[None]) -> None:
        """Enter the inner context."""
        inner.__enter__()
        self._inner = inner

    def __enter__(self) -> LateContext:
        return self

    def __exit__(self, *error: object) -> None:
        if self._inner is not None:
            self._inner.__exit__(None, None, None)


class KeyLocks:
    """Locks of keys, shared by the workers of a machine."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Wait for the lock of a key (shared by the keys of its stripe), and hold it.

        Raises:
            Busy: it was not free within `WAIT` seconds.
        """
        stripe = self._directory / f"{zlib.crc32(key.encode()) % STRIPES:02x}"
        lock = os.open(stripe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + WAIT
            while not _try_lock(lock):
                if time.monotonic() > until:
                    raise Busy("another request changes the object")
                time.sleep(0.005)
            yield
        finally:
            os.close(lock)


class BodyChecksums:
    """Checksums of a body while it is stored: those that the client sent, and the ETag, unless `part` is 0."""

    def __init__(self, part: int, wanted: Mapping[str, bytes]) -> None:
        self._parts, self._wanted = PartHasher(part) if part else None, wanted
        self._others = {kind: hashlib.new(kind, usedforsecurity=False) for kind in {*wanted, "sha256"}}
        self.size = 0

    def update(self, piece: bytes) -> None:
        """Add the next piece."""
        if self._parts:
            self._parts.update(piece)
        for other in self._others.values():
            other.update(piece)
        self.size += len(piece)

    def check(self) -> None:
        """Compare with the checksums that the client sent.

        Raises:
            Problem: 400, one differs.
        """
        for kind, digest in self._wanted.items():
            if not hmac.compare_digest(self._others[kind].digest(), digest):
                raise Problem(400, f"The body does not have the {kind} that was sent with it")

    @property
    def etag(self) -> str | None:
        """The ETag that S3 computes for these bytes."""
        return self._parts.etag() if self._parts else None

    @property
    def sha256(self) -> bytes:
        """The SHA-256 of all bytes."""
        return self._others["sha256"].digest()


class ObjectStore:
    """The objects in a store, by key. Methods block, and raise our errors and `Problem`."""

    def __init__(self, store: Objects, home: Path) -> None:
        self.store = store
        self._locks = KeyLocks(home / "turns")
        self._spool = home / "spool"
        self._spool.mkdir(parents=True, exist_ok=True)
        self._returns_etag = True  # the store returned an ETag for the last upload; otherwise none is computed

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int | None, headers: Headers, wanted: Mapping[str, bytes]
    ) -> tuple[str, BodyChecksums]:
        """Store an object if the request's conditions and checksums hold after all of it was received.

        Returns its ETag and checksums. If `size` is None, the body is first written to an unnamed file.
        """
        if size is not None:
            return self._put_sized(key, chunks, size=size, headers=headers, wanted=wanted)
        with tempfile.TemporaryFile(dir=self._spool) as file:
            for chunk in chunks:
                file.write(chunk)
            size = file.tell()
            file.seek(0)
            pieces = iter(partial(file.read, MIB), b"")
            return self._put_sized(key, pieces, size=size, headers=headers, wanted=wanted)

    def _put_sized(
        self, key: str, chunks: Iterable[bytes], *, size: int, headers: Headers, wanted: Mapping[str, bytes]
    ) -> tuple[str, BodyChecksums]:
        name, part = names.name(key), part_size(size)
        sums = BodyChecksums(part if self._returns_etag else 0, wanted)
        lock = self._locks.lock(key)
        with LateContext() as held:

            def checked() -> Generator[bytes, None, None]:
                for chunk in chunks:
                    sums.update(chunk)
                    yield chunk
                if sums.size == size:  # otherwise the store raises
                    sums.check()
                    held.enter(lock)
                    self._check_conditions(name, headers)

            returned = self.store.put(name, checked(), size=size, part_size=part, metadata={})
            etag, self._returns_etag = returned or self._etag(name), returned is not None
        if returned is not None and returned != sums.etag:
            self._verify_stored(name, returned, sums)
        return etag, sums

    def _etag(self, name: str) -> str:
        found = self.store.look(name)
        return found.etag if found else ""

    def _verify_stored(self, name: str, etag: str, sums: BodyChecksums) -> None:
        """Read back an object whose ETag differs from ours: the store may compute its own, or hold other bytes."""
        found, chunks = self.store.fetch(name)
        read = hashlib.sha256()
        for chunk in chunks:
            read.update(chunk)
        if found.etag == etag and read.digest() != sums.sha256:
            raise Damaged(f"{self.store.name}/{name}: the store holds other bytes than were sent")

    def delete(self, key: str, headers: Headers) -> bool:
        """Delete an object. Returns False if there is none."""
        name = names.name(key)
        with self._locks.lock(key):
            if self.store.look(name) is None:
                return False
            self._check_conditions(name, headers)
            self.store.delete(name)
        return True

    def _check_conditions(self, name: str, headers: Headers) -> None:
        if any(field in headers for field in ("if-match", "if-none-match", "if-unmodified-since")):
            check_conditions(headers, self.store.look(name), method="PUT")

    def stat(self, key: str) -> Stat | None:
        """Return size, ETag and time of an object, or None if there is none."""
        return self.store.look(names.name(key))

    def fetch(self, key: str, span: Span | None) -> tuple[Stat, Iterator[bytes]] | None:
        """Start to read an object. Returns None if there is none."""
        name = names.name(key)
        try:
            return self.store.fetch(name, start=span.start, length=span.length) if span else self.store.fetch(name)
        except NotFound:
            if self.store.look(name) is None:  # raises if the bucket is missing
                return None
            raise

    def page(self, prefix: str, *, after: str | None, limit: int) -> list[str]:
        """List up to `limit` keys after `after`."""
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


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
