"""Archive manifests from RabbitMQ, as the tape archiver of DLM publishes them."""

from __future__ import annotations

import threading

from plateway.pipeline import Line

EXCHANGE = "surf-data-archive"
QUEUE = "plateway"


def run(
    line: Line,
    url: str,
    *,
    exchange: str = EXCHANGE,
    queue: str = QUEUE,
    prefetch: int = 8,
    heartbeat: int = 30,
    stop: threading.Event | None = None,
) -> None:
    """Take manifests from a queue bound to a fanout exchange until ``stop`` is set, or SIGTERM or SIGINT comes.

    Raises:
        Misconfigured: the URL is none, pika is not installed, or exchange or queue are there and of another kind.
        Denied: the broker does not let us in.
    """
    raise NotImplementedError
