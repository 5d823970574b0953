"""Leases of events: held by one worker at a time, renewed while bytes flow, fenced when lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from plateway.errors import CatalogUnavailable, DiskUnavailable, PlatewayError, Unavailable
from plateway.events import Ref
from plateway.pipeline.context import Site, log


@contextmanager
def leased(site: Site, ref: Ref) -> Iterator[int]:
    fence = site.catalog.lease(ref, owner=site.owner, ttl=site.lease, now=site.catalog.now())
    try:
        yield fence
    finally:
        site.catalog.release(ref, fence=fence)


class Hold:
    """Renew a lease while bytes flow, whenever a third of its time has passed, and report the bytes so far."""

    def __init__(self, site: Site, ref: Ref, fence: int, tell: Callable[[int], None] | None = None) -> None:
        self.fence = fence
        self._renew = partial(site.catalog.renew, ref, fence=fence, ttl=site.lease)
        self._now, self._pause = site.catalog.now, site.lease.total_seconds() / 3
        self._next, self._tell, self._beat = time.monotonic() + self._pause, tell, site.beat

    def __call__(self, sent: int = 0) -> None:
        self._beat()
        if time.monotonic() >= self._next:
            self.renew()
        if self._tell is not None:
            self._tell(sent)

    def renew(self) -> None:
        """Renew the lease now.

        Raises:
            Busy: another worker was granted it.
        """
        self._renew(now=self._now())
        self._next = time.monotonic() + self._pause


def set_back(site: Site, ref: Ref, verb: str, error: PlatewayError, *, began: datetime | None = None) -> None:
    """Record a failure of a verb that ``began`` then, in the bucket that the site is bound to."""
    caused = isinstance(error, Unavailable) and not isinstance(error, DiskUnavailable | CatalogUnavailable)
    row = site.catalog.set_back(
        ref,
        verb,
        reason=str(error),
        now=site.catalog.now(),
        cause="endpoint" if caused else "event",
        endpoint=site.endpoint,
        began=began,
    )
    log.warning("%s %s failed (attempt %d, next %s): %s", ref, verb, row.attempt, row.next_at.isoformat(), error)
