"""Run a command that ends when its parent ends: ``python -IS parent_death.py PARENT-PID COMMAND…``.

A script of its own, started before the command and replaced by it, so that nothing has to run between fork and exec
of a process with threads. On Linux the command gets SIGTERM as soon as the *thread* that started it ends, however it
ends; elsewhere it merely starts. An ignored SIGINT (a shell's ``&``) and blocked signals are not passed on.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def wrap(*command: str) -> list[str]:
    """Return the arguments that start the command so that it ends with the calling process."""
    return [sys.executable, "-IS", str(Path(__file__).resolve()), str(os.getpid()), *command]


def main(parent: str, *command: str) -> None:
    """Replace this process by the command, unless the parent has already ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit("cannot request a signal for the end of the parent")
    if os.getppid() != int(parent):
        sys.exit("the parent has ended")
    os.execvp(command[0], command)  # noqa: S606 - replaces this process, no shell wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
