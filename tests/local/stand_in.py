"""A part for tests that writes what happens to it into a book; run as a module, an `up` of one such part."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from plateway.local.supervisor import (
    Part,
    Supervisor,
    claim,
    take_over,
)

SCRIPT = """
import signal, sys, time
def note(what):
    with open(sys.argv[1], "a") as book: print(what, sys.argv[2], file=book)
signal.signal(signal.SIGTERM, lambda *_: (note("stopped"), sys.exit(0)))
note("started")
while True: time.sleep(0.02)
"""


def stand_in(home: Path, name: str, *, after: tuple[str, ...] = (), deaf: bool = False) -> Part:
    """Describe a small part; a deaf one does not end when asked."""
    script = SCRIPT.replace("sys.exit(0)", "None") if deaf else SCRIPT
    book = home / "book"
    ready = f"started {name}"
    return Part(
        name=name,
        title=name.title(),
        command=[sys.executable, "-IS", "-c", script, str(book), name],
        environment=dict(os.environ),
        directory=home,
        after=after,
        ready=lambda _: book.exists() and ready in book.read_text(),
        stop_within=0.5 if deaf else 10,
    )


def up(home: Path, *, deaf: bool) -> None:
    """Run one part until interrupted, and say its number."""
    with claim(home):
        take_over(home, patience=0.5)
        with Supervisor(home, [stand_in(home, "one", deaf=deaf)], lambda site: None) as parts:
            print(parts.pids()["one"], flush=True)
            parts.watch()


if __name__ == "__main__":
    up(Path(sys.argv[1]), deaf="deaf" in sys.argv)
