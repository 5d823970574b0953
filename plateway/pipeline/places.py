"""Compare each place with what the catalogue recorded of it, before it is written to, believed or emptied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from plateway import bench, folder
from plateway.archive import Archive
from plateway.bench import EVENTS, TRASH
from plateway.catalog import Catalog
from plateway.errors import NotFound, PlatewayError
from plateway.instruments import Instrument
from plateway.pipeline.context import Site
from plateway.pipeline.identity import KnownPlaces
from plateway.place import ArchivePlace, BucketPlace, DirectoryPlace, Markable


def check_root(site: Site, *, fresh: bool = False) -> None:
    """Check that the bench is mounted on this machine, if it was ever used: before an empty one means "nothing new".

    Raises:
        Unsettled: it is not mounted, or another one is.
    """
    check_root_of(site.catalog, site.places, site.root, fresh=fresh)


def check_root_of(catalog: Catalog, places: KnownPlaces, root: Path, *, fresh: bool = False) -> None:
    """Check a bench without the rest of its site: what `check_root` does."""
    if catalog.place("bench") is not None:
        place = DirectoryPlace(root.resolve(), name="bench")
        places.require("bench", lambda: place, owned=False, fresh=fresh)


def list_unmounted(site: Site, present: Iterable[str]) -> list[str]:
    """List the systems that had a disk, whose directory on the bench has no event files now: mount points."""
    used = {one.name.partition("/")[2] for one in site.catalog.places() if one.name.startswith("bench/")}
    return sorted(name for name in used.difference(present) if (site.root / name).is_dir())


def is_bench_missing(site: Site, instrument: Instrument) -> bool:
    """Return whether the bench or an instrument's disk is not mounted on this machine, so that no event is to blame."""
    try:
        for name, place in _bench(site, instrument).items():
            site.places.require(name, lambda place=place: place, owned=False, fresh=True)  # type: ignore[misc]
    except PlatewayError:
        return True
    return False


def check_bench(site: Site, instrument: Instrument, *, owned: bool = False) -> None:
    """Check the bench and an instrument's disk on it. Its marker is among its event files.

    Raises:
        Unsettled: it is not mounted, or another one is. Refused: ``owned``, and it belongs to another site.
    """
    for name, place in _bench(site, instrument).items():
        site.places.require(name, lambda place=place: place, owned=owned, fresh=owned)  # type: ignore[misc]


def check_aside(site: Site, instrument: Instrument, kind: str) -> None:
    """Check the directory of an instrument that deletions pass through: ``trash`` or ``staging``; made if need be.

    Raises:
        Unsettled: it is not mounted, or another one is. Refused: it belongs to another site.
    """
    name = f"{kind}/{instrument.name}"
    site.places.require(name, lambda: _aside(site, instrument, kind), owned=True, fresh=True)


def check_bucket(site: Site, *, fresh: bool = False) -> None:
    """Check the bucket that the site is bound to; memory has no marker.

    Raises:
        Unsettled: it is not mounted, or another one is. Refused: it belongs to another site. NotFound: there is none.
    """
    if not site.store.durable:
        return

    def used() -> bool:
        empty = next(iter(site.store.list()), None) is None
        return empty and site.catalog.exported_to(site.store.name, {site.endpoint})

    place = BucketPlace(site.store, site=site.places.site, endpoint=site.endpoint)
    site.places.require(_bucket_name(site), lambda: place, owned=True, fresh=fresh, used=used)


def check_archive(site: Site, *, fresh: bool = False) -> None:
    """Check the archive.

    Raises:
        Unsettled: it is not mounted, or another one is. NotFound: there is none.
    """
    archive = site.archive
    if archive is None or not archive.durable:
        return

    def used() -> bool:
        return next(iter(archive.list()), None) is None and site.catalog.archived_anywhere()

    site.places.require("archive", lambda: _archive(archive), owned=False, fresh=fresh, used=used)


def named(site: Site) -> dict[str, Callable[[], Markable]]:
    """Return every place of the site, with access to its marker."""
    found: dict[str, Callable[[], Markable]] = {}
    for system in sorted({*site.catalog.systems(), *_systems(site)}):
        instrument = site.instrument(system)
        found |= {name: (lambda place=place: place) for name, place in _bench(site, instrument).items()}  # type: ignore[misc]
        found[f"trash/{system}"] = lambda one=instrument: _aside(site, one, "trash")  # type: ignore[misc]
        if instrument.staging is not None:
            found[f"staging/{system}"] = lambda one=instrument: _aside(site, one, "staging")  # type: ignore[misc]
    for bound in site.every_bucket():
        if bound.store.durable:
            found[_bucket_name(bound)] = lambda one=bound: BucketPlace(  # type: ignore[misc]
                one.store, site=site.places.site, endpoint=one.endpoint
            )
    if site.archive is not None and site.archive.durable:
        archive = site.archive
        found["archive"] = lambda: _archive(archive)
    return found


class PlaceState(NamedTuple):
    """One place, and what is wrong with it."""

    name: str
    identity: str | None  # None: it was never used
    recorded_at: datetime | None
    trouble: str  # empty: it is the one that was recorded, or was never used


def inspect_places(site: Site) -> list[PlaceState]:
    """Compare every place with what was recorded of it; nothing is marked or recorded."""
    known = {one.name: one for one in site.catalog.places()}
    found = []
    for name, place in sorted(named(site).items()):
        record, trouble = known.get(name), ""
        if record is not None:
            try:
                site.places.require(name, place, owned=name != "archive", fresh=True)
            except PlatewayError as error:
                trouble = str(error)
        identity, at = (record.identity, record.recorded_at) if record else (None, None)
        found.append(PlaceState(name, identity, at, trouble))
    return found


def adopt_place(site: Site, name: str) -> str:
    """Make a place this site's: a disk that was replaced, or one that another site had; return its identity.

    Raises:
        NotFound: the site has no such place.
    """
    there = named(site)
    if name not in there:
        raise NotFound(f"{name}: no such place; there are {', '.join(sorted(there))}")
    return site.places.adopt(name, there[name]())


def _bench(site: Site, instrument: Instrument) -> dict[str, DirectoryPlace]:
    events = instrument.root / EVENTS
    return {
        "bench": DirectoryPlace(site.root.resolve(), name="bench"),
        f"bench/{instrument.name}": DirectoryPlace(events, name=f"bench/{instrument.name}"),
    }


def _archive(archive: Archive) -> Markable:
    root = archive.local_root
    return ArchivePlace(archive) if root is None else DirectoryPlace(root.resolve(), name="archive")


def _aside(site: Site, instrument: Instrument, kind: str) -> DirectoryPlace:
    root = instrument.root / TRASH if kind == "trash" else instrument.staging
    assert root is not None
    name = f"{kind}/{instrument.name}"
    if site.catalog.place(name) is None and root.parent.is_dir():  # which may be a mount, and is not made
        folder.make(root)
    return DirectoryPlace(root, name=name)


def _bucket_name(site: Site) -> str:
    return f"bucket/{site.endpoint or ''}/{site.store.name}"


def _systems(site: Site) -> list[str]:
    with suppress(PlatewayError):
        return bench.list_systems(site.root)
    return []
