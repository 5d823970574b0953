"""Work that may hang, each piece in a thread of its own, so that one disk that does not answer holds up only itself.

A thread that hangs in the kernel cannot be ended. It is abandoned: nobody waits for it any longer, its next report of
progress fails, and no other thread is started for the same work until it has ended. So hung threads do not accumulate,
and an abandoned one that goes on later changes nothing.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from threading import Event, Lock, Thread
from typing import Generic, TypeVar

from plateway.errors import PlatewayError, Unavailable

PATIENCE = timedelta(seconds=30)  # without any progress
T = TypeVar("T")
Beat = Callable[[], None]

_turn = Lock()
_hung: set[tuple[str, str]] = set()  # work whose thread was abandoned and has not ended


def beating(chunks: Iterable[T], beat: Beat) -> Iterator[T]:
    """Yield what comes, and report progress before each; what ``beat`` raises ends it."""
    for chunk in chunks:
        beat()
        yield chunk


def run_apart(
    what: str, acts: Mapping[str, Callable[[Beat], T]], *, patience: timedelta = PATIENCE
) -> dict[str, T | PlatewayError]:
    """Run functions at once, each in a thread of its own; return by name what it returned, or its error of ours.

    Each is passed a function to call before each effect and between the steps of what takes long. One that has not
    called it for ``patience`` is abandoned: its result is `Unavailable`, and the next such call raises that in its
    thread. As long as this thread has not ended, work of the same ``what`` and name is `Unavailable` at once. Errors
    that are not ours rise.
    """
    attempts = {name: _Attempt((what, name), act) for name, act in acts.items()}
    return {name: attempt.wait(patience) for name, attempt in attempts.items()}


class _Attempt(Generic[T]):
    """A thread at its work, and when it was last known to progress."""

    def __init__(self, key: tuple[str, str], act: Callable[[Beat], T]) -> None:
        self._key, self._act = key, act
        self._ended, self._abandoned = Event(), False
        self._result: T | BaseException = Unavailable(f"{key[1]}: still no answer")
        self._progress = time.monotonic()
        with _turn:
            hangs = key in _hung
        if hangs:
            self._ended.set()
        else:
            context = contextvars.copy_context()  # loggers of a flow run find it there
            Thread(target=context.run, args=[self._run], name=f"{key[0]} {key[1]}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._result = self._act(self._beat)
        except BaseException as error:  # noqa: BLE001 - rises where it is waited for
            self._result = error
        with _turn:
            self._ended.set()
            if self._abandoned:
                _hung.discard(self._key)

    def _beat(self) -> None:
        with _turn:
            if self._abandoned:
                raise Unavailable(f"{self._key[1]}: answered too late")
            self._progress = time.monotonic()

    def wait(self, patience: timedelta) -> T | PlatewayError:
        while not self._ended.wait(max(0.0, self._progress + patience.total_seconds() - time.monotonic())):
            with _turn:
                if not self._ended.is_set() and time.monotonic() >= self._progress + patience.total_seconds():
                    self._abandoned = True
                    _hung.add(self._key)
                    return Unavailable(f"{self._key[1]}: no answer for {patience.total_seconds():g} s")
        if isinstance(self._result, BaseException) and not isinstance(self._result, PlatewayError):
            raise self._result
        return self._result
