"""A relay that is killed at an effect: ``python -m tests.bridges.mortal_relay DATABASE REDIS POINT``.

Points: before the second message is sent, after it was sent, and after it was recorded as delivered.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from plateway.catalog import Catalog
from plateway.catalog.outbox import Message
from plateway.outbox.redis import open_streams
from plateway.outbox.relay import Relay, Send, Target
from tests.lab import Clock

POINTS = ("before", "after", "recorded")


class Mortal(Catalog):
    """A catalogue in which a relay may die right after it recorded what was delivered."""

    def record_delivered(self, target: str, sequences: Sequence[int], *, now: datetime) -> None:
        super().record_delivered(target, sequences, now=now)
        if sys.argv[3] == "recorded":
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def streams() -> Iterator[Send]:
    sent = 0
    with open_streams(sys.argv[2]) as send:

        def mortal(message: Message) -> None:
            nonlocal sent
            sent += 1
            if (sent, sys.argv[3]) == (2, "before"):
                die()
            send(message)
            if (sent, sys.argv[3]) == (2, "after"):
                die()

        yield mortal


if __name__ == "__main__":
    Relay(Mortal(sys.argv[1], clock=Clock()), Target("redis", streams), "mortal").relay()
