"""A bucket in this process, for tests and trials."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, takewhile
from typing import Any

from plateway.checksums import PartHasher
from plateway.errors import Damaged, NotFound, Refused
from plateway.store.contract import WINDOW, Feed, Stat, Upload, check_key


class Untagged:
    """What a store has that is not S3: no tags, no rules, no locks, and objects that are removed one by one."""

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        for key in keys:
            self.delete(key)
        return {}

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def tags(self, key: str) -> dict[str, str]:
        return {}

    def lock(self, key: str, *, hold: bool, until: datetime | None) -> bool:
        return False

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        return []


class Memory(Untagged):
    """A bucket in this process."""

    durable = False

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self._kept: dict[str, tuple[bytes, Stat]] = {}
        self._order: list[str] = []  # of the keys; those of deleted objects may be among them
        self._unordered: list[str] = []  # keys that came since it was made
        self._ordering = threading.Lock()

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        with closing(Feed(chunks, size, name=check_key(key))) as feed:
            content = b"".join(feed)
        etag = etag_of([content], part_size)
        with self._ordering:
            if key not in self._kept:
                self._unordered.append(key)
            self._kept[key] = content, Stat(key, size, etag, datetime.now(UTC), dict(metadata))
        return etag

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._read(key, start=start, length=length)[1]

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        stat, chunks = self._read(key, start=start, length=length)
        if start and start >= stat.size:
            raise Damaged(f"{self.name}/{key}: ends before the range that was asked for")
        return stat, chunks

    def _read(self, key: str, *, start: int, length: int | None) -> tuple[Stat, Iterator[bytes]]:
        found = self._kept.get(check_key(key))
        if found is None:
            raise NotFound(f"{self.name}/{key}: no such object")
        content = memoryview(found[0])[start:][:length]
        return found[1], (bytes(content[at : at + WINDOW]) for at in range(0, len(content), WINDOW))

    def stat(self, key: str) -> Stat | None:
        found = self._kept.get(check_key(key))
        return found and found[1]

    look = stat

    def list(self, prefix: str = "") -> Iterator[Stat]:
        keys = sorted(key for key in self._kept if key.startswith(prefix))
        return (stat for key in keys if (stat := self.stat(key)))

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        order = self._ordered()
        start = max(bisect_left(order, prefix), bisect_right(order, after) if after else 0)
        keys = takewhile(lambda key: key.startswith(prefix), islice(order, start, None))
        return list(islice((found[1] for key in keys if (found := self._kept.get(key))), limit))

    def _ordered(self) -> Sequence[str]:
        with self._ordering:
            if self._unordered:
                known = (key for key in self._order if key in self._kept)
                self._order = sorted(dict.fromkeys([*known, *self._unordered]))  # quick: it is nearly so already
                self._unordered = []
            return self._order

    def delete(self, key: str) -> None:
        self._kept.pop(check_key(key), None)

    def sign(self, key: str, *, expires: timedelta) -> str:
        raise Refused(f"{self.name}/{key}: there are no links into memory")

    def uploads(self) -> Iterator[Upload]:
        return iter(())

    def abort(self, upload: Upload) -> None:
        pass


@cache
def open_memory(name: str) -> Memory:
    return Memory(name or "memory")


def etag_of(chunks: Iterable[bytes], size: int) -> str:
    parts = PartHasher(size)
    for chunk in chunks:
        parts.update(chunk)
    return parts.etag()
