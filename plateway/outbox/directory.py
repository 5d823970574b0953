"""Messages as JSON files in a directory, each written aside, synced and renamed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from plateway import folder
from plateway.catalog.outbox import Message
from plateway.errors import Misconfigured
from plateway.outbox.message import encode
from plateway.outbox.relay import Send

ASIDE = ".plateway-outbox"  # for what is half written


@contextmanager
def open_directory(path: Path, *, site: UUID) -> Iterator[Send]:
    """Open a directory; files are called ``<sequence>-<fact>-<message id>.json``, so that names sort in their order.

    A reader deletes what it has processed.

    Raises:
        Misconfigured: there is no such directory; it is not made, because its disk may not be mounted.
    """
    if not path.is_dir():
        raise Misconfigured("PLATEWAY_OUTBOX_DIRECTORY: no such directory: make it, or mount its disk")
    with folder.land(path, "", aside=ASIDE) as landing:

        def send(message: Message) -> None:
            body = encode(message, site=site)
            name = f"{message.sequence:012}-{message.fact}-{message.id}.json"
            digest = hashlib.sha256(body).hexdigest()
            landing.write(name, [body], sha256=digest, mtime_ns=int(message.at.timestamp()) * 10**9)
            landing.sync()

        yield send
