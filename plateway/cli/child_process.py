"""Run a command and clean up after it, whatever signals arrive."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plateway.errors import Misconfigured

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class ChildProcess:
    """One command, and the handler of the signals that this process receives.

    Before the command starts, a signal ends this process. While the command runs, signals are forwarded to it.
    Afterwards they are ignored, so that the cleanup completes.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False

    def __call__(self, number: int, _frame: object) -> None:
        if self._process is not None:
            # A terminal sends Ctrl-C to all processes in its foreground, so the command has it already.
            if number != signal.SIGINT or not in_foreground():
                self._process.send_signal(number)
        elif not self._ending:
            self._ending = True
            raise SystemExit(128 + number)

    def run(self, command: list[str], env: dict[str, str]) -> int:
        """Run a command to its end and return its exit code; as in a shell, 128 plus the signal that ended it.

        Raises:
            Misconfigured: the command cannot be started.
        """
        self._ending = True  # if it does not start
        try:
            self._process = subprocess.Popen(command, env=env)
        except OSError as error:
            raise Misconfigured(f"{command[0]}: {error.strerror}") from None
        code = self._process.wait()
        return code if code >= 0 else 128 - code


@contextmanager
def handle_signals() -> Iterator[ChildProcess]:
    """Handle signals until the cleanup is done; restore the previous handlers."""
    child = ChildProcess()
    previous = {kind: signal.signal(kind, child) for kind in SIGNALS}
    try:
        yield child
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def in_foreground() -> bool:
    """Return whether this process is in the foreground of its terminal."""
    try:
        with Path("/dev/tty").open() as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:  # no terminal
        return False
