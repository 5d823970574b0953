"""Run a bridge until it is stopped, with increasing pauses after errors."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAP = 0.2  # seconds between checks for a stop


@contextmanager
def stopping(stop: threading.Event | None) -> Iterator[threading.Event]:
    """Return the event that ends a bridge; without one of the caller, the first SIGTERM or SIGINT sets it.

    A second signal has its default effect.
    """
    if stop is not None:
        yield stop
        return
    asked = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        asked.set()  # no thread holds its lock: all check it between two pauses

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rest(stop: threading.Event, seconds: float) -> None:
    """Sleep, but not longer than until a stop."""
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, NAP))


class Backoff:
    """Pauses between retries: they double up to ``most`` seconds, with jitter, until a success."""

    def __init__(self, *, first: float = 0.5, most: float = 30.0) -> None:
        self._first, self._most = first, most
        self._next = first

    def pause(self) -> float:
        """Return the seconds to wait before the next retry."""
        pause, self._next = self._next, min(2 * self._next, self._most)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  so that many do not come back at once

    def reset(self) -> None:
        """Start again with the first pause, after a success."""
        self._next = self._first
