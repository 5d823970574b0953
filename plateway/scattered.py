"""Bundles whose files lie in the bucket as objects of their own, seen as the tars that they make.

Each file of such a bundle is an object ``images/<event>/<name>`` or ``waveforms/<event>/<name>``, and its manifest,
``images/<event>/metadata.json``, tells which and is written last. Everything else in the tar follows from the manifest.
So at the key of a manifest a `Scattered` store behaves as if the whole tar lay there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta

from plateway.bundle import MANIFEST
from plateway.store import Stat, Store, Upload

HOME = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?:-r[1-9][0-9]{0,8})?", re.ASCII)


def home(key: str) -> str | None:
    """Name the folder, ``<event>[-rN]``, that a key is the manifest of; None where it is no such key."""
    first, _, rest = key.partition("/")
    name, _, last = rest.partition("/")
    return name if first == "images" and last == MANIFEST and HOME.fullmatch(name) else None


def tar_name(key: str) -> str:
    """Say what the tar of an export is called where it lies as one: in an archive, in a download."""
    name = home(key)
    return key.rpartition("/")[2] if name is None else f"{name}.tar"


def places(key: str, image: Callable[[str], bool]) -> Callable[[str], str]:
    """Say for the manifest's key how each file's key follows from its name, and whether it is an image."""
    raise NotImplementedError


class Scattered:
    """A store with bundles that lie scattered in it; at other keys than those of their manifests, the store itself."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def name(self) -> str:
        return self._store.name

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        return self._store.put(key, chunks, size=size, part_size=part_size, metadata=metadata)

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self._store.open(key, start=start, length=length)

    def stat(self, key: str) -> Stat | None:
        return self._store.stat(key)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def sign(self, key: str, *, expires: timedelta) -> str:
        return self._store.sign(key, expires=expires)

    def uploads(self) -> Iterator[Upload]:
        return self._store.uploads()

    def abort(self, upload: Upload) -> None:
        self._store.abort(upload)
