"""Read the next chunks in a thread of its own while the ones before are hashed or written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial

CHUNKS = 4  # read ahead; some MiB


def read_ahead(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield chunks in their order while a thread reads the next few. What reading raises rises in its place.

    To stop early waits for the chunk that is being read, not for those after it.
    """
    source = iter(chunks)
    read = partial(copy_context().run, lambda: next(source, None))
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = deque(thread.submit(read) for _ in range(CHUNKS))
        try:
            while (chunk := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(read))
                yield chunk
        finally:
            thread.shutdown(cancel_futures=True)
            with suppress(AttributeError):
                source.close()  # type: ignore[attr-defined]  # only generators have it
