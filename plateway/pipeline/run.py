"""Run a verb over many events; a failure becomes an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from plateway.errors import NotFound, PlatewayError, Transient
from plateway.events import Ref
from plateway.outcome import Outcome, Result
from plateway.pipeline.context import Site


def each(
    verb: Callable[[Site, Ref], Outcome], site: Site, refs: Iterable[Ref], *, workers: int = 1
) -> Iterator[Outcome]:
    """Run a verb over many events, a few at a time; one that fails becomes an outcome and stops no other."""

    def attempt(ref: Ref) -> Outcome:
        try:
            return verb(site, ref)
        except PlatewayError as error:
            return failed(site, ref, name, error)

    name = getattr(verb, "func", verb).__name__
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(attempt, refs)


def failed(site: Site, ref: Ref, verb: str, error: PlatewayError) -> Outcome:
    """Return the outcome of a failure: ``later`` where waiting may help."""
    try:
        event = site.catalog.get(ref)
    except NotFound:
        return Outcome(ref, "", verb, Result.FAILED, reasons=(str(error),))
    result = Result.LATER if isinstance(error, Transient) else Result.FAILED
    return Outcome(ref, event.system, verb, result, key=event.key, reasons=(str(error),))
