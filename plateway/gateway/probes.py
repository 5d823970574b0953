"""Reads with a time limit from locations that may not answer: S3, the bench, tape.

Each read runs in its own thread, because a thread that hangs in a mount or a socket cannot be stopped. While `STUCK`
reads of one location hang, further reads of it fail at once, so that threads do not accumulate.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from plateway.errors import Unavailable

SECONDS = 2.0  # time limit of a read
STUCK = 4  # overdue reads of one location before others are refused
MOST = 64  # concurrent reads of one location

T = TypeVar("T")


@dataclass(frozen=True)
class Probe(Generic[T]):
    """A read that is running, or was refused."""

    place: str
    found: Future[T] | None
    until: float  # by the monotonic clock

    def result(self) -> T:
        """Wait for the result; raises the error of the read.

        Raises:
            Unavailable: it took too long, or was refused.
        """
        with suppress(TimeoutError):
            if self.found is not None:
                done = self.found.exception(max(0.0, self.until - time.monotonic()))
                if done is not None:
                    raise done
                return self.found.result()
        raise Unavailable(f"{self.place} does not answer")


class Probes:
    """The running reads, by location."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._running: defaultdict[str, dict[int, float]] = defaultdict(dict)  # deadline of each
        self._lock = threading.Lock()

    def start(self, place: str, call: Callable[[], T], *, seconds: float | None = None) -> Probe[T]:
        """Start a read; several locations can be read concurrently."""
        now = time.monotonic()
        until = now + (self._seconds if seconds is None else seconds)
        found: Future[T] = Future()
        with self._lock:
            running = self._running[place]
            if len(running) >= MOST or sum(end < now for end in running.values()) >= STUCK:
                return Probe(place, None, now)
            running[id(found)] = until

        def ended(found: Future[T]) -> None:
            with self._lock:
                del running[id(found)]

        found.add_done_callback(ended)
        run(call, into=found, name=f"read {place}")
        return Probe(place, found, until)

    def read(self, place: str, call: Callable[[], T], *, seconds: float | None = None) -> T:
        """Read and wait for the result.

        Raises:
            Unavailable: it took too long, or earlier reads of this location still hang.
        """
        return self.start(place, call, seconds=seconds).result()


def run(call: Callable[[], T], *, into: Future[T], name: str) -> None:
    """Run a call in a daemon thread, which does not delay the end of the process."""

    def called() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  it rises where the result is asked for
            into.set_exception(error)
        else:
            into.set_result(result)

    threading.Thread(target=called, name=name, daemon=True).start()
