"""The site: catalogue, buckets, bench and archive that the verbs work with."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from plateway.archive import Archive, open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Bucket, endpoint_identity
from plateway.errors import (
    Misconfigured,
    PlatewayError,
    Transient,
)
from plateway.instruments import Instrument
from plateway.outcome import Outcome, Result, log_outcome
from plateway.pipeline.identity import KnownPlaces
from plateway.place import local_path, refuse_overlaps
from plateway.records import Export
from plateway.settings import MAIN, Settings
from plateway.store import Store, open_store
from plateway.store.per_file import PerFile

log = logging.getLogger(__name__)


class BucketRef(NamedTuple):
    """A bucket, and which endpoint it is behind: two endpoints may each have a bucket of one name."""

    store: Store
    endpoint: str | None = None  # as `store.identity` says it; None: unknown
    read_only: bool = False
    receives: bool = True  # exports of some system go there; else, exports may be there from earlier

    def shares(self, other: BucketRef) -> bool:
        """Return whether one of the two contains the other, so that both list the same objects."""
        here, there = f"{self.store.name}/", f"{other.store.name}/"
        return self.endpoint == other.endpoint and (here.startswith(there) or there.startswith(here))

    def __str__(self) -> str:
        return format_place(self.endpoint, self.store.name)


def format_place(endpoint: str | None, bucket: str) -> str:
    """Describe where a bucket is."""
    return f"bucket {bucket}" + (f" at {endpoint}" if endpoint else "")


def format_unnamed(place: str, count: int) -> str:
    """Describe exports in a bucket that the settings do not name."""
    return f"{count:,} {'exports are' if count > 1 else 'export is'} in {place}, which the settings do not name"


@dataclass(frozen=True)
class Site:
    """Everything the verbs work with, bound to one bucket; `to` and `holding` bind it to another."""

    catalog: Catalog
    store: Store
    root: Path  # the bench
    instrument: Callable[[str], Instrument]
    owner: str  # who holds the leases
    lease: timedelta = timedelta(minutes=10)
    archive: Archive | None = None  # the tape that we can reach; None: only its operators can
    endpoint: str | None = None  # that the store is behind
    others: Mapping[str, BucketRef] = field(default_factory=dict)  # the site's further buckets, by name
    own: BucketRef | None = None  # the site's own bucket, where the site is bound to another
    openers: Mapping[str, Callable[[str], Store]] = field(default_factory=dict)  # of any bucket, by endpoint; read-only
    places: KnownPlaces = None  # type: ignore[assignment]  # made from the catalogue
    beat: Callable[[], None] = lambda: None  # is called while long work progresses; raises if the work was abandoned

    def __post_init__(self) -> None:
        if self.places is None:
            object.__setattr__(self, "places", KnownPlaces(self.catalog))

    def close(self) -> None:
        """Close the catalogue's connections."""
        self.catalog.close()

    @property
    def place(self) -> BucketRef:
        """The bucket that the site is bound to."""
        return BucketRef(self.store, self.endpoint)

    def each_bucket(self) -> Iterator[Site]:
        """Bind to each bucket in turn that exports go to, or are in; the site's own first."""
        return self._bound(lambda place: place.receives or self._holds(place))

    def every_bucket(self) -> Iterator[Site]:
        """Bind to each bucket in turn, whatever is in it; of those that are read-only, as `each_bucket` does."""
        return self._bound(lambda place: place.receives or not place.read_only or self._holds(place))

    def _bound(self, wanted: Callable[[BucketRef], bool]) -> Iterator[Site]:
        met: list[BucketRef] = []
        for place in self._places():
            if wanted(place) and not any(map(place.shares, met)):
                met.append(place)
                yield self._at(place)

    def _holds(self, place: BucketRef) -> bool:
        unnoted = self.at(None, place.store.name)
        meant = unnoted is not None and unnoted.store is place.store
        return self.catalog.exported_to(place.store.name, {place.endpoint, *([None] if meant else [])})

    def over(self, act: Callable[[Site], Iterable[Outcome]], verb: str) -> Iterator[Outcome]:
        """Act in each bucket of the site; where there are several, one that fails becomes an outcome and stops none."""
        for site in self.each_bucket():
            try:
                yield from act(site)
            except PlatewayError as error:
                if not self.others:
                    raise
                result = Result.LATER if isinstance(error, Transient) else Result.FAILED
                yield log_outcome(Outcome(None, "", verb, result, reasons=(f"{site.place}: {error}",)))

    def to(self, system: str) -> Site:
        """Bind to the bucket that new exports of a system go to.

        Raises:
            Misconfigured: the instrument names a bucket that the site does not have.
        """
        try:
            return self.named(self.instrument(system).bucket or MAIN)
        except Misconfigured as error:
            raise Misconfigured(f"exports of {system}: {error}") from error

    def named(self, name: str) -> Site:
        """Bind to a bucket by what the site calls it.

        Raises:
            Misconfigured: there is none of that name.
        """
        found = {MAIN: self.own or self.place, **self.others}.get(name)
        if found is None:
            raise Misconfigured(f"there is no bucket {name!r}: it is named in buckets.toml, or by a Bucket block")
        return self._at(found)

    def holding(self, export: Export) -> Site:
        """Bind to the bucket that has an export. What is not in another one is not lost.

        Raises:
            Misconfigured: names bucket and endpoint where none of the site's is that.
        """
        found = self.at(export.endpoint, export.bucket)
        if found is None:
            raise Misconfigured(f"{export.key} is in {self._elsewhere(export.endpoint, export.bucket)}")
        return found

    def reading(self, export: Export) -> Site:
        """Bind to the bucket that has an export, for reading it.

        Follows the catalogue to a bucket that the settings do not name, as after an edit of a Bucket block, if it is
        behind an endpoint that they name: it is opened read-only, and proves nothing for deleting.

        Raises:
            Misconfigured: names bucket and endpoint where the settings do not name that endpoint.
        """
        found = self.at(export.endpoint, export.bucket)
        if found is None and export.endpoint is not None and export.endpoint in self.openers:
            store = self.openers[export.endpoint](export.bucket)
            return self._at(BucketRef(store, export.endpoint, read_only=True, receives=False))
        return found or self.holding(export)

    def at(self, endpoint: str | None, bucket: str) -> Site | None:
        """Bind to the bucket that an export was noted to be in; None where none of the site's is that.

        Before endpoints were noted, the site's own was meant, if it has the name.
        """
        named = [place for place in self._places() if place.store.name == bucket]
        if endpoint is not None:
            named = [place for place in named if place.endpoint == endpoint]
        elif self._places()[0] in named:
            named = [self._places()[0]]
        return self._at(named[0]) if len(named) == 1 else None

    def _places(self) -> tuple[BucketRef, ...]:
        return (self.own or self.place, *self.others.values())

    def _at(self, place: BucketRef) -> Site:
        if place.store is self.store:
            return self
        return replace(self, store=place.store, endpoint=place.endpoint, own=self.own or self.place)

    def _elsewhere(self, endpoint: str | None, bucket: str) -> str:
        known = ", ".join(map(str, self._places()))
        if endpoint is not None:
            return f"bucket {bucket} at {endpoint}, and the settings name {known}"
        return f"bucket {bucket}, it was not noted at which endpoint, and the settings name {known}"


def open_site(
    settings: Settings,
    *,
    buckets: Mapping[str, Bucket] | None = None,
    instruments: Mapping[str, Instrument] | None = None,
    lenient: bool = False,
    patience: float = 0.0,
) -> Site:
    """Open a site; ``buckets`` (by name) and ``instruments`` take precedence over the settings.

    With ``lenient``, a bucket that cannot be opened raises only when it is used: for commands that list.
    ``patience``: seconds for which connecting to a catalogue on PostgreSQL that does not answer is retried.

    Raises:
        Misconfigured: two buckets that exports go to are one, or two places are or lie in each other.
    """
    named = instruments or {}
    known = {MAIN: settings.bucket, **settings.buckets}
    where = known | dict(buckets or {})
    receiving = {name for name, one in known.items() if one.systems} | {one.bucket for one in named.values()}
    tape = where[MAIN].endpoint  # is reached as the site's own bucket is
    refuse_overlaps(_directories(settings, where, named), home=settings.home)
    _refuse_inside_bucket(settings, where[MAIN].url)
    known_last = [one for name, one in where.items() if name != MAIN] + [where[MAIN]]  # whose credentials count
    openers = {
        endpoint_identity(one.url, one.endpoint): _opener(one) for one in known_last if one.url.startswith("s3://")
    }
    own = _open(where.pop(MAIN), lenient=lenient)
    others = {name: _open(one, lenient=lenient) for name, one in where.items()}
    return Site(
        catalog=Catalog(settings.catalog_url, patience=patience),
        store=own.store,
        root=settings.root,
        instrument=lambda system: named.get(system) or settings.instrument(system),
        owner=f"{socket.gethostname()}:{os.getpid()}",
        lease=settings.lease,
        archive=open_archive(settings.archive_target, tape) if settings.archive_target else None,
        endpoint=own.endpoint,
        others=_apart(own, others, receiving),
        openers=openers,
    )


def _directories(
    settings: Settings, buckets: Mapping[str, Bucket], instruments: Mapping[str, Instrument]
) -> dict[str, Path]:
    """Return every directory of this machine that a site uses, by its setting."""
    urls = {
        "PLATEWAY_ARCHIVE_TARGET": settings.archive_target,
        "PLATEWAY_ARCHIVE_INBOX": settings.archive_inbox,
        "PLATEWAY_OBJECTS_URL": settings.objects_url,
        **{f"bucket {name}": one.url for name, one in buckets.items()},
    }
    found = {name: path for name, url in urls.items() if (path := local_path(url)) is not None}
    found["PLATEWAY_SOURCE_ROOT"] = settings.root
    if settings.staging_root is not None:
        found["PLATEWAY_STAGING_ROOT"] = settings.staging_root
    for one in instruments.values():
        if one.root.parent != settings.root:
            found[f"the disk of {one.name}"] = one.root
        if one.staging is not None and one.staging.parent != settings.staging_root:
            found[f"the staging of {one.name}"] = one.staging
    return found


def _refuse_inside_bucket(settings: Settings, url: str) -> None:
    """Refuse an archive or objects that lie among the exports: what expires there would take them along.

    Raises:
        Misconfigured: names the setting.
    """
    if not url.startswith("s3://"):
        return
    bucket = url.rstrip("/") + "/"
    for name in ("archive_target", "objects_url"):
        other = f"{getattr(settings, name) or ''}".rstrip("/") + "/"
        if other.startswith(bucket) or (other.startswith("s3://") and bucket.startswith(other)):
            raise Misconfigured(f"PLATEWAY_{name.upper()} and the bucket lie in each other: each needs its own prefix")


def _open(bucket: Bucket, *, lenient: bool) -> BucketRef:
    where, who = bucket.url, bucket.endpoint
    try:
        store: Any = PerFile(open_store(where, who))
    except Misconfigured as error:
        if not lenient:
            raise
        store = _Unopened(urlsplit(where).netloc, error)
    return BucketRef(store, endpoint_identity(where, who), who.read_only)


def _opener(bucket: Bucket) -> Callable[[str], Store]:
    """Return a function that opens any bucket of an endpoint for reading, with the same credentials."""
    endpoint = replace(bucket.endpoint, read_only=True)

    @lru_cache(maxsize=16)
    def open_other(name: str) -> Store:
        return cast("Store", PerFile(open_store(f"s3://{name}", endpoint)))

    return open_other


class _Unopened:
    """A bucket that could not be opened: it has a name, and every use of it raises."""

    durable = True

    def __init__(self, name: str, error: Misconfigured) -> None:
        self.name, self._error = name, error

    def __getattr__(self, name: str) -> Any:
        raise self._error


def _apart(own: BucketRef, others: Mapping[str, BucketRef], receiving: Container[str | None]) -> dict[str, BucketRef]:
    """Refuse buckets for exports that share objects; leave out another view of a bucket that is known already."""
    known = {MAIN: own}
    for name, place in sorted(others.items(), key=lambda one: one[0] not in receiving):
        same = next((other for other in known.items() if place.shares(other[1])), None)
        if same is not None and name in receiving:
            raise Misconfigured(f"buckets {same[0]} and {name} share objects: {same[1]}, {place}")
        if same is None or same[1].store.name != place.store.name:
            known[name] = place._replace(receives=name in receiving)
    return {name: place for name, place in known.items() if name != MAIN}
