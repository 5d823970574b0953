"""Stores that change what another store does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from plateway.errors import Refused
from plateway.store.contract import Objects, Stat, Upload, check_key


class ReadOnly:
    """A store that refuses to be changed."""

    def __init__(self, store: Objects) -> None:
        self.name, self.durable = store.name, store.durable
        self.open, self.stat, self.list, self.sign = store.open, store.stat, store.list, store.sign
        self.uploads, self.lifecycle, self.tags = store.uploads, store.lifecycle, store.tags
        self.look, self.fetch, self.page = store.look, store.fetch, store.page

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        raise Refused(f"{self.name}/{key}: the bucket is read-only")

    def delete(self, key: str) -> None:
        raise Refused(f"{self.name}/{key}: the bucket is read-only")

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        raise Refused(f"{self.name}: the bucket is read-only")

    def lock(self, key: str, *, hold: bool, until: datetime | None) -> bool:
        raise Refused(f"{self.name}/{key}: the bucket is read-only")

    def abort(self, upload: Upload) -> None:
        raise Refused(f"{self.name}/{upload.key}: the bucket is read-only")


class Prefixed:
    """The part of a store whose keys begin with a prefix, which ends in a slash: a sibling's keys are never met."""

    def __init__(self, store: Objects, prefix: str) -> None:
        assert prefix.endswith("/")
        self.name, self.durable = f"{store.name}/{prefix.rstrip('/')}", store.durable
        self._store, self._prefix = store, prefix

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        return self._store.put(self._whole(key), chunks, size=size, part_size=part_size, metadata=metadata)

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._store.open(self._whole(key), start=start, length=length)

    def stat(self, key: str) -> Stat | None:
        found = self._store.stat(self._whole(key))
        return found and replace(found, key=key)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        for found in self._store.list(self._prefix + prefix):
            yield replace(found, key=found.key.removeprefix(self._prefix))

    def look(self, key: str) -> Stat | None:
        found = self._store.look(self._whole(key))
        return found and replace(found, key=key)

    def fetch(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[Stat, Iterator[bytes]]:
        found, chunks = self._store.fetch(self._whole(key), start=start, length=length)
        return replace(found, key=key), chunks

    def page(self, prefix: str = "", *, after: str = "", limit: int) -> Sequence[Stat]:
        found = self._store.page(self._prefix + prefix, after=after and self._prefix + after, limit=limit)
        return [replace(one, key=one.key.removeprefix(self._prefix)) for one in found]

    def delete(self, key: str) -> None:
        self._store.delete(self._whole(key))

    def sign(self, key: str, *, expires: timedelta) -> str:
        return self._store.sign(self._whole(key), expires=expires)

    def uploads(self) -> Iterator[Upload]:
        for upload in self._store.uploads():
            if upload.key.startswith(self._prefix):
                yield replace(upload, key=upload.key.removeprefix(self._prefix))

    def abort(self, upload: Upload) -> None:
        self._store.abort(replace(upload, key=self._prefix + upload.key))

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        found = self._store.delete_all([self._whole(key) for key in keys])
        return {key.removeprefix(self._prefix): problem for key, problem in found.items()}

    def lock(self, key: str, *, hold: bool, until: datetime | None) -> bool:
        return self._store.lock(self._whole(key), hold=hold, until=until)

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        return self._store.lifecycle()

    def tags(self, key: str) -> dict[str, str]:
        return self._store.tags(self._whole(key))

    def _whole(self, key: str) -> str:
        return self._prefix + check_key(key)
