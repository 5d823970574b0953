"""Read the next chunks in a thread of its own while the ones before are hashed or written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context

CHUNKS = 4  # read ahead; some MiB


def read_ahead(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield chunks in their order while a thread reads the next few. What reading raises rises in its place.

    To stop early waits for the chunk that is being read, not for those after it.
    """
    source, context = iter(chunks), copy_context()
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = deque(thread.submit(context.run, next, source, None) for _ in range(CHUNKS))
        try:
            while (chunk := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(context.run, next, source, None))
                yield chunk
        finally:
            thread.shutdown(cancel_futures=True)
            with suppress(AttributeError):
                source.close()  # type: ignore[attr-defined]  # only generators have it
