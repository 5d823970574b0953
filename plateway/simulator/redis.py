"""Announce events in a Redis stream, as the mock instrument of DLM v2 does: one entry each, of flat strings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from plateway.bridges.redis import STREAMS, connect
from plateway.errors import Unavailable


def publisher(url: str, *, stream: str = STREAMS[0]) -> Callable[[bytes], object]:
    """Return a function that adds the JSON of an announcement to a stream.

    Raises:
        Misconfigured: the URL is not valid.
    """
    client = connect(url)

    def publish(content: bytes) -> None:
        said = json.loads(content)
        fields: dict[Any, Any] = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()
        }
        try:
            client.xadd(stream, fields)
        except RedisError as error:
            raise Unavailable(f"{stream}: Redis does not take the entry ({type(error).__name__})") from error

    return publish
