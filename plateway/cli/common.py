"""What commands on a site share: opening it, and finding the events that were named or selected."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from plateway import pipeline, settings
from plateway.events import Ref
from plateway.pipeline import Site


@contextmanager
def use_site(home: Path | None, *, lenient: bool = False) -> Iterator[tuple[Site, settings.Settings]]:
    """Open the site of the settings, and upgrade its catalogue if need be; ``lenient`` as `pipeline.open_site`."""
    config = settings.load(home=home)
    site = pipeline.open_site(config, lenient=lenient)
    try:
        site.catalog.upgrade()
        yield site, config
    finally:
        site.close()


def find_ref(site: Site, id: str) -> Ref:  # noqa: A002
    """Return the revision of an event that an id, or its first digits, names; without a revision, the newest.

    Raises:
        NotFound: no such event, or several.
    """
    return site.catalog.resolve(id)


def select_refs(
    site: Site,
    ids: Sequence[str] | None,
    *,
    since: datetime | None,
    until: datetime | None,
    system: str | None,
    experiment: str | None,
) -> list[Ref] | None:
    """Return the events that were named or else selected by options; None if neither was given.

    ``-`` as the only name reads ids from standard input, one or more per line.

    Raises:
        NotFound: no such event.
    """
    if ids and list(ids) == ["-"]:
        return [find_ref(site, one) for one in sys.stdin.read().split()]
    if ids:
        return [find_ref(site, one) for one in ids]
    if since or until or system or experiment:
        found = site.catalog.ledgers(system=system, experiment=experiment, since=since, until=until)
        return [one.ref for one in found if one.event.sealed_at is not None]
    return None
