"""Deaths in this process: whatever is called through `Dying` may be the last thing that happens.

Unlike with a kill, files are closed and generators end; what would be cleaned up by a call through here is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plateway.pipeline import Site

READS = {
    *("catalog.now", "catalog.ledger", "catalog.going", "catalog.candidates", "catalog.siblings", "catalog.systems"),
    *("catalog.stored", "catalog.unarchived", "catalog.get", "store.stat", "archive.size", "archive.open"),
}


class Death(BaseException):
    """The process ends here."""


@dataclass
class Fate:
    """When a process dies: right before its nth effect, or right after it."""

    at: int = -1  # never
    after: bool = False
    seen: list[str] = field(default_factory=list)  # the effects so far
    dead: bool = False

    def meet(self, what: str, act: Callable[[], Any]) -> Any:
        """Make one effect happen, unless it is too late."""
        if self.dead:
            raise Death
        self.seen.append(what)
        if len(self.seen) - 1 != self.at:
            return act()
        if self.after:
            act()
        self.dead = True
        raise Death(what)


class Dying:
    """Something whose every call is an effect."""

    def __init__(self, inner: Any, name: str, fate: Fate) -> None:
        self._inner, self._name, self._fate = inner, name, fate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found
        return lambda *args, **named: self._fate.meet(f"{self._name}.{name}", lambda: found(*args, **named))


def dying(site: Site, fate: Fate) -> Site:
    """Return a line whose catalogue, bucket and archive may be the last that is called."""

    def doomed(part: Any, name: str) -> Any:
        return Dying(part, name, fate)

    archive = doomed(site.archive, "archive") if site.archive is not None else None
    return replace(site, catalog=doomed(site.catalog, "catalog"), store=doomed(site.store, "store"), archive=archive)


def points(effects: Sequence[str]) -> Iterator[Fate]:
    """List every death that leaves the world in another state: before the first effect, and after each but looks."""
    yield Fate(0)
    for number, effect in enumerate(effects):
        if effect not in READS:
            yield Fate(number, after=True)
