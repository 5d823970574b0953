"""Sort a listing of a bucket by key, on disk where it is long."""

from __future__ import annotations

import heapq
import itertools
import marshal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from plateway.store import Stat

RUN = 100_000  # objects that are sorted in memory at a time
BLOCK = 500  # rows that are written and read at a time


class Row(NamedTuple):
    """What is kept of an object while the listing is sorted."""

    key: str
    size: int
    etag: str


def sort_listing(objects: Iterable[Stat], stack: ExitStack) -> Iterator[Row]:
    """Yield a listing in the order of its keys, each once; some stores list ``a-b/1`` after ``a/1``.

    An object that is listed twice, because the bucket changed meanwhile, comes once. ``stack`` closes the files.
    """
    rows = (Row(one.key, one.size, one.etag) for one in objects)
    batch = sorted(itertools.islice(rows, RUN))
    if len(batch) < RUN:
        return _drop_repeats(batch)
    files: list[IO[bytes]] = []
    last = ""
    while batch:
        if not files or batch[0].key < last:
            file = TemporaryFile()  # noqa: SIM115 - the stack closes it
            files.append(stack.enter_context(file))
        for start in range(0, len(batch), BLOCK):
            marshal.dump([tuple(row) for row in batch[start : start + BLOCK]], files[-1])
        last = batch[-1].key
        batch = sorted(itertools.islice(rows, RUN))
    return _drop_repeats(heapq.merge(*map(_read_rows, files)))


def _read_rows(file: IO[bytes]) -> Iterator[Row]:
    end = file.tell()
    file.seek(0)
    while file.tell() < end:
        yield from itertools.starmap(Row, marshal.load(file))  # noqa: S302 - written by us, just now


def _drop_repeats(rows: Iterable[Row]) -> Iterator[Row]:
    last = None
    for row in rows:
        if row.key != last:
            yield row
        last = row.key
