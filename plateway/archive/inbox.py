"""The files door: a directory anywhere, where an archiver drops manifests as JSON files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from plateway.archive.filesystem import ArchiveDirectory, FileInfo
from plateway.archive.manifest import CAP
from plateway.endpoint import Endpoint
from plateway.errors import Conflict, NotFound, Unsettled
from plateway.names import shown

ACCEPTED = "accepted"
QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A file as it lies there; what is no readable file says so in ``fault``."""

    name: str
    size: int
    modified: datetime | None  # where the place tells
    fault: str | None = None


class Inbox:
    """A directory where ``*.json`` are deliveries; those that were handled move to ``accepted/`` or ``quarantine/``.

    Names that begin with a point are left alone: somebody is writing them. No file is ever deleted or replaced.

    Raises, everywhere: `Unavailable`, `Denied`, `NotFound` when the directory is not there, `Misconfigured`.
    """

    def __init__(self, url: str, endpoint: Endpoint | None = None) -> None:
        self._place = ArchiveDirectory(url, endpoint)
        self.name = self._place.name

    def deliveries(self) -> list[Delivery]:
        """List what lies there, by name; unread."""
        return [_delivery(found) for found in self._place.list() if _announced(found)]

    def read(self, delivery: Delivery) -> bytes:
        """Read one; of a file larger than a manifest may be, only so much that `parse` refuses it.

        Raises:
            Unsettled: it is gone, or became shorter meanwhile.
        """
        try:
            return self._place.read(delivery.name, most=CAP + 1)
        except NotFound:
            self._place.list()  # which says so if all of the inbox is gone
            raise Unsettled(f"{shown(delivery.name)} vanished from the inbox") from None

    def done(self, name: str) -> None:
        """Move a file to ``accepted/``, beside one of the same name there; one that is gone is fine."""
        self._move(name, ACCEPTED)

    def refuse(self, name: str) -> None:
        """Move a file to ``quarantine/``, in the same way."""
        self._move(name, QUARANTINE)

    def _move(self, name: str, directory: str) -> None:
        self._place.make(directory)
        with suppress(NotFound):  # somebody else moved it
            try:
                self._place.rename(name, f"{directory}/{name}")
            except Conflict:
                self._place.rename(name, f"{directory}/{name.removesuffix('.json')}.{uuid4().hex[:8]}.json")

    def accepted(self) -> Iterator[tuple[str, bytes]]:
        """Read again what was accepted: name and content."""
        for found in self._place.list(ACCEPTED):
            if _announced(found) and found.kind == "file":
                yield found.name, self._place.read(found.name, most=CAP + 1)


def _announced(found: FileInfo) -> bool:
    name = found.name.rpartition("/")[2]
    return name.endswith(".json") and not name.startswith(".") and found.kind != "directory"


def _delivery(found: FileInfo) -> Delivery:
    fault = None if found.kind == "file" else f"{'a link' if found.kind == 'link' else 'no file'}, not a regular file"
    return Delivery(found.name, found.size, found.modified, fault)
