"""Read manifests from a directory, where an archiver writes them as JSON files."""

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
    """A file in the directory; ``fault`` has the reason if it cannot be read."""

    name: str
    size: int
    modified: datetime | None  # None: unknown
    fault: str | None = None


class Inbox:
    """A directory where ``*.json`` are deliveries; handled ones are moved to ``accepted/`` or ``quarantine/``.

    Names that begin with a dot are ignored: they are still being written. No file is ever deleted or replaced.

    Raises, everywhere: `Unavailable`, `Denied`, `NotFound` when the directory is missing, `Misconfigured`.
    """

    def __init__(self, url: str, endpoint: Endpoint | None = None) -> None:
        self._place = ArchiveDirectory(url, endpoint)
        self.name = self._place.name

    def deliveries(self) -> list[Delivery]:
        """List the files, by name, without reading them."""
        return [_delivery(found) for found in self._place.list() if _is_delivery(found)]

    def read(self, delivery: Delivery) -> bytes:
        """Read a delivery; of one larger than the limit, one byte more than `parse` accepts.

        Raises:
            Unsettled: it is missing, or became shorter meanwhile.
        """
        try:
            return self._place.read(delivery.name, most=CAP + 1)
        except NotFound:
            self._place.list()  # raises if the whole inbox is missing
            raise Unsettled(f"{shown(delivery.name)} vanished from the inbox") from None

    def done(self, name: str) -> None:
        """Move a file to ``accepted/``, under another name if that one exists; a missing file is ignored."""
        self._move(name, ACCEPTED)

    def refuse(self, name: str) -> None:
        """Move a file to ``quarantine/``, in the same way."""
        self._move(name, QUARANTINE)

    def _move(self, name: str, directory: str) -> None:
        self._place.make(directory)
        with suppress(NotFound):  # another process moved it
            try:
                self._place.rename(name, f"{directory}/{name}")
            except Conflict:
                self._place.rename(name, f"{directory}/{name.removesuffix('.json')}.{uuid4().hex[:8]}.json")

    def accepted(self) -> Iterator[tuple[str, bytes]]:
        """Read the accepted files: name and content."""
        for found in self._place.list(ACCEPTED):
            if _is_delivery(found) and found.kind == "file":
                yield found.name, self._place.read(found.name, most=CAP + 1)


def _is_delivery(found: FileInfo) -> bool:
    name = found.name.rpartition("/")[2]
    return name.endswith(".json") and not name.startswith(".") and found.kind != "directory"


def _delivery(found: FileInfo) -> Delivery:
    fault = None if found.kind == "file" else f"{'a link' if found.kind == 'link' else 'no file'}, not a regular file"
    return Delivery(found.name, found.size, found.modified, fault)
