"""A relay that is killed at an effect: ``python -m tests.bridges.mortal_relay DATABASE KIND ADDRESS POINT``.

Points: before the second message is sent, after it was sent, and after it was recorded as delivered.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from uuid import UUID

from plateway.catalog import Catalog
from plateway.catalog.outbox import Message
from plateway.outbox.amqp import open_exchange
from plateway.outbox.directory import open_directory
from plateway.outbox.redis import open_streams
from plateway.outbox.relay import Relay, Send, Target
from plateway.outbox.webhook import open_webhook
from tests.lab import Clock

POINTS = ("before", "after", "recorded")
SITE = UUID(int=7)
OPEN: dict[str, Callable[[str], AbstractContextManager[Send]]] = {
    "redis": open_streams,
    "amqp": lambda address: open_exchange(*address.rsplit("#", 1), site=SITE),  # URL#exchange
    "webhook": lambda address: open_webhook(address, None, site=SITE),
    "directory": lambda address: open_directory(Path(address), site=SITE),
}


class Mortal(Catalog):
    """A catalogue in which a relay may die right after it recorded what was delivered."""

    def record_delivered(self, target: str, sequences: Sequence[int], *, now: datetime) -> None:
        super().record_delivered(target, sequences, now=now)
        if POINT == "recorded":
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def opened() -> Iterator[Send]:
    sent = 0
    with OPEN[KIND](ADDRESS) as send:

        def mortal(message: Message) -> None:
            nonlocal sent
            sent += 1
            if (sent, POINT) == (2, "before"):
                die()
            send(message)
            if (sent, POINT) == (2, "after"):
                die()

        yield mortal


if __name__ == "__main__":
    _, DATABASE, KIND, ADDRESS, POINT = sys.argv
    Relay(Mortal(DATABASE, clock=Clock()), Target(KIND, opened), "mortal").relay()
