"""The breaker: while an endpoint does not answer, nothing is claimed for it, so that no event fails because of it.

An endpoint is suspected when an event waits because of it, and is probed then before each claim: one small read, which
is no event's failure. As soon as it answers, everything that waited for it is due.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from plateway.errors import PlatewayError, Unavailable
from plateway.pipeline.context import Site
from plateway.pipeline.places import check_bucket

PAUSE = 5.0  # seconds at least between two probes of an endpoint by one run


@dataclass
class Breaker:
    """The endpoints that do not answer, as one run sees them; any thread may ask."""

    site: Site
    _open_until: dict[str | None, float] = field(default_factory=dict)  # next probe, by endpoint

    def select(self, groups: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """Return the groups of systems whose endpoint answers, or was not suspected."""
        suspects = self.site.catalog.waiting_endpoints(now=self.site.catalog.now()) | self._open_until.keys()
        if not suspects:
            return dict(groups)
        return {name: systems for name, systems in groups.items() if self._answers(systems, suspects)}

    @property
    def is_open(self) -> bool:
        """Return whether an endpoint did not answer its last probe."""
        return bool(self._open_until)

    def _answers(self, systems: Sequence[str], suspects: set[str | None]) -> bool:
        """Probe the endpoint of a group if it is suspected; an error that waiting does not help is the events'."""
        try:
            bound = self.site.to(systems[0])
        except PlatewayError:
            return True
        if bound.endpoint not in suspects:
            return True
        if time.monotonic() < self._open_until.get(bound.endpoint, 0.0):
            return False
        try:
            check_bucket(bound, fresh=True)
        except Unavailable:
            self._open_until[bound.endpoint] = time.monotonic() + PAUSE
            return False
        except PlatewayError:
            pass
        self._open_until.pop(bound.endpoint, None)
        self.site.catalog.resume(bound.endpoint, now=self.site.catalog.now())
        return True
