"""Take in what the archive says it has: manifests from all doors, entry by entry, into the catalogue."""

from __future__ import annotations

from datetime import datetime

from plateway.archive import Inbox, Poll
from plateway.pipeline.line import Line, Outcome


def collect(
    line: Line, *, inbox: Inbox | None = None, poll: Poll | None = None, now: datetime | None = None
) -> list[Outcome]:
    """Look behind every door that is given and receive what is there; one that fails stops no other.

    A file is moved, and a server's answer counted as seen, only after the manifest is durable. Redelivery is harmless.
    """
    raise NotImplementedError


def receive(line: Line, content: bytes, *, door: str, name: str, now: datetime | None = None) -> Outcome:
    """Make one manifest durable: ``received``, ``known``, or ``quarantined`` with the reason when it cannot be used.

    Raises:
        Transient: the catalogue cannot be written right now; nothing was noted.
    """
    raise NotImplementedError


def settle(line: Line, *, now: datetime | None = None) -> list[Outcome]:
    """Match what waits with exports: those that tape has now are ``archived``, the others stay ``parked``."""
    raise NotImplementedError


def read_archive(line: Line, *, budget: int) -> list[Outcome]:
    """Read members on the archive and compare their SHA-256, the longest known first, within a budget of bytes.

    Evidence that agrees becomes ``checksum``; a member that differs is taken back, with the reason.
    """
    raise NotImplementedError
