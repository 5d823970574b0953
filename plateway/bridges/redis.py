"""Imaging events from Redis streams, as instruments that speak DLM v2 write them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

STREAMS = ("dlm:imaging-events", "dlm:new-imaging-event")  # as DLM v2's code and as its README has it
GROUP = "plateway"


def run(
    root: Path,
    url: str,
    *,
    streams: Sequence[str] = STREAMS,
    group: str = GROUP,
    consumer: str | None = None,
    idle: timedelta = timedelta(minutes=1),
    stop: threading.Event | None = None,
) -> None:
    """Turn stream entries into event files on the bench until ``stop`` is set, or SIGTERM or SIGINT comes.

    Raises:
        Misconfigured: the URL is none, redis-py is not installed, or the server or a stream is of another kind.
        Denied: the server does not let us in.
    """
    raise NotImplementedError
