"""Messages to Redis streams, as DLM v2's own processes write them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from redis.exceptions import RedisError

from plateway.bridges.redis import connect, translate_error
from plateway.catalog.outbox import Message
from plateway.outbox.message import stream_entry
from plateway.outbox.relay import Send

LENGTH = 100_000  # entries that a stream keeps, about


@contextmanager
def open_streams(url: str) -> Iterator[Send]:
    """Connect to a Redis server.

    Raises:
        Misconfigured: the URL is not valid.
    """
    client = connect(url)

    def send(message: Message) -> None:
        entry = stream_entry(message)
        if entry is None:
            return
        stream, fields = entry
        try:
            client.xadd(stream, dict(fields), maxlen=LENGTH, approximate=True)  # type: ignore[arg-type]  # invariant
        except RedisError as error:
            raise translate_error(error) from error

    with closing(client):
        yield send
