"""Compare a place with what the catalogue recorded of it when it was first used."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar
from uuid import UUID, uuid4

from plateway.catalog import Catalog
from plateway.errors import Refused, Unsettled
from plateway.place import Markable, Marker

T = TypeVar("T")
RULES_HELD = 300.0  # seconds for which a bucket's own rules are taken to be the same
HELD = 5.0  # seconds for which a place that was right is taken to be right, but for deletions


class KnownPlaces:
    """The places of a site, as one run sees them."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._right: dict[tuple[str, bool], float] = {}
        self._rules: dict[str, tuple[float, Sequence[Any]]] = {}
        self._site: UUID | None = None
        self._turns: defaultdict[str, Lock] = defaultdict(Lock)  # one for each place: a disk may hang

    @property
    def site(self) -> UUID:
        """The id of the site."""
        if self._site is None:
            self._site = self._catalog.site(now=self._catalog.now())
        return self._site

    def rules(self, bucket: str, read: Callable[[], Sequence[T]]) -> Sequence[T]:
        """Return the rules by which a bucket deletes objects itself, read at most every five minutes."""
        until, known = self._rules.get(bucket, (0.0, ()))
        if time.monotonic() >= until:
            known = read()
            self._rules[bucket] = time.monotonic() + RULES_HELD, known
        return known

    def require(
        self,
        name: str,
        place: Callable[[], Markable],
        *,
        owned: bool,
        fresh: bool = False,
        used: Callable[[], bool] = lambda: False,
    ) -> None:
        """Check that a place is there, is the one that was recorded, and with ``owned`` that it is this site's.

        The first use marks and records it; not where the catalogue knows by ``used`` that something should be there
        already. A place that was right within 5 s is not read again, unless ``fresh``.

        Raises:
            Unsettled: it is not mounted, or another one is. Refused: it belongs to another site.
        """
        if not fresh and time.monotonic() < self._right.get((name, owned), 0.0):
            return
        with self._turns[name]:  # threads of one process take turns
            self._compare(name, place(), owned=owned, used=used)
        self._right[name, owned] = time.monotonic() + HELD

    def _compare(self, name: str, place: Markable, *, owned: bool, used: Callable[[], bool]) -> None:
        known, marker = self._catalog.place(name), place.read_marker()
        if known is None:
            if marker is None and used():
                raise Unsettled(f"{name}: is empty, and the catalogue knows of what should be there: is it mounted?")
            marker = marker or self._mark(name, place)
            identity = str(marker.place) if marker else place.root_identity()
            self._catalog.record_place(name, identity=identity, marked=marker is not None, now=self._catalog.now())
        elif known.marked and marker is None:
            raise Unsettled(f"{name}: its marker is missing: is it mounted? If it is new: plateway site adopt {name}")
        elif known.identity != (str(marker.place) if known.marked and marker else place.root_identity()):
            raise Unsettled(f"{name}: is another one than before. If that is meant: plateway site adopt {name}")
        if owned and marker is not None and marker.site != self.site:
            raise Refused(
                f"{name}: belongs to site {marker.site}, and this is {self.site}. If it is to be taken over: "
                f"plateway site adopt {name}"
            )

    def _mark(self, name: str, place: Markable) -> Marker | None:
        """Mark a place that has no marker; return the marker that it has then, None where nothing may be written.

        Raises:
            Unsettled: another process marks it just now.
        """
        if not place.write_marker(Marker(uuid4(), self.site)):
            return None
        marker = place.read_marker()
        if marker is None:
            raise Unsettled(f"{name}: is being marked by another process")
        return marker

    def forget(self) -> None:
        """Read the site's id and its places anew."""
        self._site = None
        self._right.clear()

    def adopt(self, name: str, place: Markable) -> str:
        """Make a place this site's, whatever it was; return what identifies it now."""
        found = None
        with suppress(Refused):  # a marker that is damaged is replaced
            found = place.read_marker()
        marker = Marker(uuid4() if found is None else found.place, self.site)
        marked = place.write_marker(marker, replace=True)
        kept = place.read_marker() if marked else None
        identity = str(kept.place) if kept else place.root_identity()
        self._catalog.record_place(name, identity=identity, marked=kept is not None, now=self._catalog.now())
        self._right.clear()
        return identity
