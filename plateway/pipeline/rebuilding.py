"""Rebuild an empty catalogue from the bucket and the archive's manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from plateway.pipeline.line import Line, Outcome


class Gap(NamedTuple):
    """What only the catalogue knew."""

    what: str  # a table or a column, like ``export.uploaded_at``
    count: int | None  # of rows that have something else there now; None: nobody can say
    instead: str  # what is there now


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild took in, and what it could not."""

    events: int  # taken in
    known: int  # in the catalogue already, from an earlier attempt
    from_archive: int  # of those taken in, with no copy in the bucket any more
    manifests: int  # of the archive, received
    refused: tuple[Outcome, ...]  # objects and manifests that could not be taken in, and why
    gaps: tuple[Gap, ...]


def rebuild(
    line: Line,
    *,
    workers: int = 4,
    manifests: Iterable[tuple[str, bytes]] = (),
    beat: Callable[[int], None] | None = None,
) -> Rebuilt:
    """Fill an empty catalogue from the objects in the bucket, each read whole, and from the archive's manifests.

    ``manifests`` are further ones (name, content), as an inbox keeps them. May be repeated after it was cut off.
    ``beat`` hears of the bytes read so far.

    Raises:
        Refused: the catalogue has events that the bucket does not tell of, or the bucket lists nothing while the
            archive names exports in it.
        Unavailable, Denied, NotFound: the bucket or the archive cannot be listed.
    """
    raise NotImplementedError
