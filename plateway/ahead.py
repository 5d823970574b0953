"""Read the next chunks in a thread of its own while the ones before are hashed or written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import copy_context
from queue import Queue
from threading import Semaphore, Thread

CHUNKS = 4  # read ahead; some MiB
PATIENCE = 5.0  # seconds


def read_ahead(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield chunks in their order while a thread reads the next few. What reading raises rises in its place.

    To stop early waits for the chunk that is being read, at most some seconds. The thread is a daemon: one that hangs
    on a disk is left, and does not keep the process from ending.
    """
    came: Queue[bytes | BaseException | None] = Queue()
    room, source, over = Semaphore(CHUNKS), iter(chunks), False

    def read() -> None:
        try:
            while room.acquire() and not over:
                chunk = next(source, None)
                came.put(chunk)
                if chunk is None:
                    return
        except BaseException as error:  # noqa: BLE001 - rises where the chunks are taken
            came.put(error)

    thread = Thread(target=copy_context().run, args=[read], name="ahead", daemon=True)
    thread.start()
    try:
        while (chunk := came.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            room.release()
            yield chunk
    finally:
        over = True
        room.release()
        thread.join(PATIENCE)
        if not thread.is_alive() and (close := getattr(source, "close", None)) is not None:
            close()
