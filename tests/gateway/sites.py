"""Whole sites behind a gateway: an event that was exported and verified, and objects beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.events import Ref
from plateway.gateway import Parts
from plateway.pipeline import Site as Line
from plateway.records import Event
from plateway.store import open_store
from tests.gateway.conftest import GENEROUS, Gateway, running
from tests.lab import Clock, Lab


@dataclass(frozen=True)
class Site:
    """A gateway that runs, and the event that it knows."""

    gateway: Gateway
    lab: Lab
    ref: Ref
    images: tuple[str, ...]  # names

    @property
    def event(self) -> Event:
        """What the catalogue says of it."""
        return self.lab.catalog.get(self.ref)


@contextmanager
def site(
    home: Path,
    *,
    objects: str,
    bucket: str | None = None,
    catalogue: str | None = None,
    endpoint: Endpoint | None = None,
    **parts: Any,
) -> Iterator[Site]:
    """Run a gateway over objects and one event; files and SQLite in the home unless something else is said."""
    for folder in ("bench", "bucket"):
        (home / folder).mkdir(parents=True)
    where, endpoint = bucket or (home / "bucket").as_uri(), endpoint or Endpoint()
    database = catalogue or f"sqlite:///{home}/catalogue.db"
    clock = Clock()
    clock.now = datetime.now(UTC) - timedelta(minutes=10)  # what the API shows unless it is asked for more
    lab = Lab(home, open_store(where, endpoint), clock, Catalog(database, clock=clock))
    lab.catalog.upgrade()
    announced, ref = lab.exported()

    def site() -> Line:
        return Line(Catalog(database), open_store(where, endpoint), lab.bench, lab.instrument, owner="gateway")

    whole = {"tokens": home / "tokens.json", "limits": GENEROUS, "site": site, "bucket": where, **parts}
    try:
        with running(Parts(home=home, objects=objects, endpoint=endpoint, **whole)) as gateway:
            yield Site(gateway, lab, ref, tuple(sorted(announced.files)))
    finally:
        lab.catalog.close()


def paths(site: Site, template: str) -> str:
    """Fill the parameters of a route's path with what is there: the event, one of its images, an object.

    Raises:
        KeyError: a parameter that nobody has told about here.
    """
    known = {
        "key:key": "mine/a",
        "id": str(site.ref.id),
        "name:key": site.images[0],
        "name:path": site.images[0],
        "name": "plateway.css",
        "signature": "1.x",  # expired, and not valid
        "form": "webp",
    }
    head, *rest = template.split("{")
    return head + "".join(known[part.partition("}")[0]] + part.partition("}")[2] for part in rest)
