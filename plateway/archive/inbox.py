"""The files door: a directory anywhere, where an archiver drops manifests as JSON files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from plateway.store import Endpoint


@dataclass(frozen=True, slots=True)
class Delivery:
    """A file as it lies there; what is no readable file says so in ``fault``."""

    name: str
    size: int
    modified: datetime | None  # where the place tells
    fault: str | None = None


class Inbox:
    """A directory where ``*.json`` are deliveries; those that were handled move to ``accepted/`` or ``quarantine/``.

    Raises, everywhere: `Unavailable`, `Denied`, `NotFound` when the directory is not there, `Misconfigured`.
    """

    def __init__(self, url: str, endpoint: Endpoint | None = None) -> None:
        raise NotImplementedError

    def deliveries(self) -> list[Delivery]:
        """List what lies there, by name; unread."""
        raise NotImplementedError

    def read(self, delivery: Delivery) -> bytes:
        """Read one; of a file larger than a manifest may be, only so much that `parse` refuses it.

        Raises:
            Unsettled: it is gone.
        """
        raise NotImplementedError

    def done(self, name: str) -> None:
        """Move a file to ``accepted/``, beside one of the same name there; one that is gone is fine."""
        raise NotImplementedError

    def refuse(self, name: str) -> None:
        """Move a file to ``quarantine/``, in the same way."""
        raise NotImplementedError

    def accepted(self) -> Iterator[tuple[str, bytes]]:
        """Read again what was accepted: name and content."""
        raise NotImplementedError
