"""Run a command and tidy up after it, whatever signals come."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plateway.errors import Misconfigured

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Attendance:
    """What becomes of signals: before a command runs they end us, meanwhile it is told, afterwards they change nothing.

    Of Ctrl-C a terminal tells all in front of it, so the command knows already.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._leaving = False

    def __call__(self, number: int, _frame: object) -> None:
        if self._child is not None:
            if number != signal.SIGINT or not in_front():
                self._child.send_signal(number)
        elif not self._leaving:
            self._leaving = True
            raise SystemExit(128 + number)

    def run(self, command: list[str], env: dict[str, str]) -> int:
        """Run a command to its end; say with which code.

        Raises:
            Misconfigured: it cannot be started.
        """
        self._leaving = True  # if it does not start
        try:
            self._child = subprocess.Popen(command, env=env)
        except OSError as error:
            raise Misconfigured(f"{command[0]}: {error.strerror}") from None
        code = self._child.wait()
        return code if code >= 0 else 128 - code


@contextmanager
def attended() -> Iterator[Attendance]:
    """Attend to signals until all is tidied up."""
    attendance = Attendance()
    before = {kind: signal.signal(kind, attendance) for kind in SIGNALS}
    try:
        yield attendance
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def in_front() -> bool:
    """Tell whether we are what the terminal runs in its foreground."""
    try:
        with Path("/dev/tty").open() as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:  # there is none
        return False
