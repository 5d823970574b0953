"""The store contract: objects by key, as every backend keeps them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush
from typing import Any, Protocol

from plateway.errors import Rejected, Unsettled

MIB = 1 << 20
WINDOW = MIB
LINKED = timedelta(days=7)  # no link is good for longer
UNPLAIN = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Stat:
    """Size, ETag and metadata of an object. A listing may leave etag, metadata and checksums empty."""

    key: str
    size: int
    etag: str
    modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)  # base64 by algorithm, where the endpoint has them
    version: str | None = None  # of the object, where the bucket keeps versions


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that was begun and neither completed nor aborted."""

    key: str
    id: str
    initiated: datetime


class Store(Protocol):
    """Objects by key. Everything may be repeated; keys are plain: no empty, ``.`` or ``..`` segments, no backslash.

    Raises, everywhere: `Unavailable` when the store does not answer or cannot just now, `Denied`, `NotFound` when the
    bucket is missing, `Rejected` for a key that is not plain.
    """

    @property
    def name(self) -> str:
        """The bucket's name, for people and rows."""

    @property
    def durable(self) -> bool:
        """Whether objects outlive this process: what is kept in memory proves nothing."""

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        """Store exactly `size` bytes, replacing what is there. Atomic: readers see all of it or what was there before.

        Parts of `part_size` bytes give the ETag of `bundle.etag`; up to one part is a single PUT. An error from
        `chunks` rises unchanged, fewer or more bytes are `Unsettled`: nothing is stored, and no upload stays open.
        Returns the ETag of what arrived, where the answer has it; only the uploading client says so.
        """

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice: from `start` (from the end if negative), at most `length` bytes. `NotFound` comes at once."""

    def stat(self, key: str) -> Stat | None:
        """Inspect an object with another client than the one that uploaded it; None if it is missing."""

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """List what is there now, in the store's own order; a prefix is a string (``a/1`` also begins ``a/10``)."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""

    def sign(self, key: str, *, expires: timedelta) -> str:
        """Make a link to read the object without credentials; `Refused` where there are none.

        It expires with its credentials, where their expiry is known.
        """

    def uploads(self) -> Iterator[Upload]:
        """List uploads that are still open."""

    def abort(self, upload: Upload) -> None:
        """Abort an upload; one that is not open any more is fine."""

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        """Remove up to 1,000 objects, by one request where the store can; return the problem of each that stays."""

    def tags(self, key: str) -> dict[str, str]:
        """Read an object's tags, empty where the store has none; every writer may set them, so they prove nothing.

        Raises:
            NotFound: there is no such object, where the store has tags at all.
        """

    def lock(self, key: str, *, hold: bool, until: datetime | None) -> bool:
        """Set or lift the legal hold of an object, and its retention until a time; of the version that is there now.

        As S3's Object Lock has both, in governance mode. Returns whether the bucket has that at all.
        """

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        """Read the rules by which the bucket deletes objects by itself, in the words of S3; else none.

        They are about keys in the whole bucket, also where the store is a part of it.

        Raises:
            Unavailable: the endpoint knows no such rules, or does not answer.
        """


class Objects(Store, Protocol):
    """A store of objects that come and go, inspected and listed often; each that `open_store` opens is one."""

    def look(self, key: str) -> Stat | None:
        """Inspect as `stat` does, but without reading: the ETag only distinguishes versions."""

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        """Read as `open` does, with the Stat of the same version. `Damaged`: it ends before `start`."""

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        """List at most so many objects in the order of their keys' bytes, from the first one beyond `after` on.

        `after` need not be there. The cost depends on the page, not on the size of the bucket.
        """


def check_foreign_key(key: str) -> str:
    """Return the key if S3 can have an object of that name, plain or not.

    Raises:
        Rejected: it is empty, holds NUL, is no Unicode, or has more than 1,024 bytes.
    """
    try:
        fits = 0 < len(key.encode()) <= 1024 and "\0" not in key
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise Rejected(f"{key[:1024]!r} is no key of S3")
    return key


def is_plain(key: str) -> bool:
    """Return whether every store can keep an object with this key."""
    try:
        return bool(check_key(key))
    except Rejected:
        return False


def check_key(key: str) -> str:
    """Return the key if every store can keep it as it is.

    Raises:
        Rejected: an empty, ``.`` or ``..`` segment, a control character, a backslash, more than 1,024 bytes.
    """
    try:
        fits = len(key.encode()) <= 1024
    except UnicodeEncodeError:
        fits = False
    if not fits or UNPLAIN.search(key) or {"", ".", ".."} & set(key.split("/")):
        raise Rejected(f"{key[:1024]!r} is not a plain key")
    return key


class Feed:
    """The chunks of one object, taken once: exactly `size` bytes. Keeps the error that came out of them, if one did."""

    def __init__(self, chunks: Iterable[bytes], size: int, *, name: str) -> None:
        self.error: BaseException | None = None
        self._chunks = self._counted(chunks, size, name=name)
        self._rest = memoryview(b"")

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def _counted(self, chunks: Iterable[bytes], size: int, *, name: str) -> Generator[bytes, None, None]:
        taken = 0
        try:
            for chunk in chunks:
                taken += len(chunk)
                if taken > size:
                    break
                yield chunk
            if taken != size:
                raise Unsettled(f"{name}: {taken} bytes came to be stored, {size} expected")
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise

    def close(self) -> None:
        """Close the source."""
        self._chunks.close()

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes, none at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest = memoryview(chunk)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


class FeedPart:
    """The next `size` bytes of a feed, as a file."""

    def __init__(self, feed: Feed, size: int) -> None:
        self._feed, self._left = feed, size

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes, none at the end of the part."""
        piece = self._feed.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        return piece


Level = Callable[..., Iterator[tuple[str, Stat | None]]]


def walk(level: Level, prefix: str, *, after: str) -> Iterator[Stat]:
    """Yield a listing by folders in the order of whole keys, from the first key beyond `after` on."""
    folder = prefix[: prefix.rfind("/") + 1]
    if after < folder:
        after = ""
    elif not after.startswith(folder):
        return
    yield from _below(level, folder, after.removeprefix(folder), begins=prefix.removeprefix(folder))


def _below(level: Level, folder: str, after: str, *, begins: str = "") -> Iterator[Stat]:
    """List a folder's objects whose keys, taken from the folder on, are beyond `after`.

    A folder `a` comes where `a/` does: after `a-b`, and before `a0`. So folders wait until nothing can come before
    them, and those that may go on behind `after` are gone into again.
    """
    head, slash, rest = after.partition("/")
    again = {f"{head[:at]}/" for at in range(1, len(head)) if head[at] < "/"} | ({f"{head}/"} if head else set())
    waiting = [one for one in again if one.startswith(begins)]
    heapify(waiting)

    def due(name: str | None) -> Iterator[Stat]:
        while waiting and (name is None or waiting[0] < name):
            inner = heappop(waiting)
            yield from _below(level, folder + inner, rest if inner == f"{head}/" else "")

    for name, stat in level(folder, f"{head}.\U0010ffff" if slash else head, begins=begins):
        yield from due(name)
        if stat is not None:
            yield stat
        elif f"{name}/" not in again:
            heappush(waiting, f"{name}/")
    yield from due(None)
