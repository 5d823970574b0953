"""How a bridge runs: until it is told to stop, and with patience where something is down."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAP = 0.2  # seconds; how long a stop may go unnoticed while nothing happens


@contextmanager
def stopping(stop: threading.Event | None) -> Iterator[threading.Event]:
    """Give the event that ends a bridge; without one of the caller's, the first SIGTERM or SIGINT sets it.

    A second signal does what it did before, for whoever does not want to wait.
    """
    if stop is not None:
        yield stop
        return
    asked = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        asked.set()  # nobody waits on it with its lock held: all look at it between two naps

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rest(stop: threading.Event, seconds: float) -> None:
    """Pause, and no longer than until a stop is asked for."""
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, NAP))


class Patience:
    """Pauses between tries: they double up to ``most`` seconds, with jitter, until something succeeds."""

    def __init__(self, *, first: float = 0.5, most: float = 30.0) -> None:
        self._first, self._most = first, most
        self._next = first

    def pause(self) -> float:
        """Say how many seconds to wait before the next try."""
        pause, self._next = self._next, min(2 * self._next, self._most)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  so that many do not come back at once

    def calm(self) -> None:
        """Begin anew: it went well."""
        self._next = self._first
