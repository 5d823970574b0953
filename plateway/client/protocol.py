"""The steps that the client's logic yields, and the replies to them: the logic itself neither sends nor waits.

The logic is generators that yield steps and are sent replies, so that it serves both transports (see `transports`). A
reply that is an error is raised where the step was yielded.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from plateway.client.body import Body
from plateway.errors import PlatewayError, Unavailable

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request; the reply is an `Answer` without its content."""

    method: str
    url: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None

    @property
    def repeatable(self) -> bool:
        """Whether it can be sent again: all methods are idempotent, but a body may be consumed."""
        return self.body is None or self.body.repeatable


@dataclass(frozen=True, slots=True)
class More:
    """Receive the next piece of the last response; the reply is bytes, empty at the end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Give(Generic[T]):
    """Yield one item to the caller."""

    item: T


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """The end of the logic, with its result."""

    result: R


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""

    def document(self) -> dict[str, Any]:
        """Parse the content as a JSON object.

        Raises:
            Unavailable: it is not one.
        """
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Unavailable(f"HTTP {self.status}: the response is not the expected JSON object")
        return found


Step: TypeAlias = Ask | More | Pause
Reply: TypeAlias = Answer | bytes | PlatewayError | None
Steps: TypeAlias = Generator[Step, Reply, R]  # ends with a result
Stream: TypeAlias = Generator[Step | Give[T], Reply, None]  # yields items


def advance(logic: Generator[S, Reply, R], reply: Reply = None) -> S | Done[R]:
    """Run the logic to its next step, or to its end."""
    try:
        return logic.throw(reply) if isinstance(reply, PlatewayError) else logic.send(reply)
    except StopIteration as end:
        return Done(end.value)


def collected(stream: Stream[T]) -> Steps[list[T]]:
    """Collect the items of a stream in a list."""
    items: list[T] = []
    step = advance(stream)
    while not isinstance(step, Done):
        reply: Reply = None
        if isinstance(step, Give):
            items.append(step.item)
        else:
            try:
                reply = yield step
            except PlatewayError as error:
                reply = error
        step = advance(stream, reply)
    return items
