"""What the verbs work with and what they answer: the line, outcomes, and the ways to run a verb over many events."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from plateway.archive import Archive, open_archive
from plateway.catalog import Catalog, Ref
from plateway.errors import (
    NotFound,
    PlatewayError,
    Transient,
)
from plateway.settings import Instrument, Settings
from plateway.store import Endpoint, Store, open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """Everything the verbs work with."""

    catalog: Catalog
    store: Store
    root: Path  # the bench
    instrument: Callable[[str], Instrument]
    owner: str  # who holds the leases
    lease: timedelta = timedelta(minutes=10)
    archive: Archive | None = None  # the tape that we can reach; None: only its operators can

    def close(self) -> None:
        """Let go of the catalogue's connections."""
        self.catalog.close()


@dataclass(frozen=True)
class Outcome:
    """What a verb did to one event."""

    ref: Ref | None  # None: it is about a whole system, or a file that names no event
    system: str
    verb: str
    result: str
    key: str = ""
    size: int | None = None
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0


def noted(outcome: Outcome) -> Outcome:
    """Log one line for a fact, the event's id first."""
    about = "; ".join(outcome.reasons) or outcome.key
    log.info("%s %s: %s %s: %s", outcome.ref or "-", outcome.system, outcome.verb, outcome.result, about)
    return outcome


def open_line(
    settings: Settings, *, store: Store | None = None, instruments: Mapping[str, Instrument] | None = None
) -> Line:
    """Put the line together; ``store`` and ``instruments`` (from blocks) go before what the settings say."""
    named = instruments or {}
    return Line(
        catalog=Catalog(settings.catalog_url),
        store=store or open_store(settings.bucket_url, endpoint(settings)),
        root=settings.root,
        instrument=lambda system: named.get(system) or settings.instrument(system),
        owner=f"{socket.gethostname()}:{os.getpid()}",
        lease=settings.lease,
        archive=open_archive(settings.archive_target, endpoint(settings)) if settings.archive_target else None,
    )


def endpoint(settings: Settings) -> Endpoint:
    """The S3 endpoint that the settings name."""
    return Endpoint(
        url=settings.endpoint_url,
        access_key_id=settings.access_key_id,
        secret_access_key=settings.secret_access_key,
        session_token=settings.session_token,
        region=settings.region,
        bypass_proxy=settings.bypass_proxy,
    )


def each(
    verb: Callable[[Line, Ref], Outcome], line: Line, refs: Iterable[Ref], *, workers: int = 1
) -> Iterator[Outcome]:
    """Run a verb over many events, a few at a time; one that fails becomes an outcome and stops nobody."""

    def attempt(ref: Ref) -> Outcome:
        try:
            return verb(line, ref)
        except PlatewayError as error:
            return failed(line, ref, name, error)

    name = getattr(verb, "func", verb).__name__
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(attempt, refs)


def failed(line: Line, ref: Ref, verb: str, error: PlatewayError) -> Outcome:
    """Tell of a failure as an outcome: ``later`` where waiting may help."""
    try:
        event = line.catalog.get(ref)
    except NotFound:
        return Outcome(ref, "", verb, "failed", reasons=(str(error),))
    result = "later" if isinstance(error, Transient) else "failed"
    return Outcome(ref, event.system, verb, result, key=event.key, reasons=(str(error),))


def told(outcome: Outcome) -> dict[str, Any]:
    """Say an outcome in words that JSON and tables take."""
    facts = {field: value for field, value in vars(outcome).items() if field != "ref"}
    return {"id": str(outcome.ref) if outcome.ref else None, **facts}


@contextmanager
def leased(line: Line, ref: Ref) -> Iterator[int]:
    fence = line.catalog.lease(ref, owner=line.owner, ttl=line.lease, now=line.catalog.now())
    try:
        yield fence
    finally:
        line.catalog.release(ref, fence=fence)


class Hold:
    """Keep a lease while bytes flow: renew it when a third of its time is over, and pass on how many there were."""

    def __init__(self, line: Line, ref: Ref, fence: int, tell: Callable[[int], None] | None = None) -> None:
        self._renew = partial(line.catalog.renew, ref, fence=fence, ttl=line.lease)
        self._now, self._pause = line.catalog.now, line.lease.total_seconds() / 3
        self._next, self._tell = time.monotonic() + self._pause, tell

    def __call__(self, sent: int = 0) -> None:
        if time.monotonic() >= self._next:
            self.renew()
        if self._tell is not None:
            self._tell(sent)

    def renew(self) -> None:
        """Renew it now.

        Raises:
            Busy: it was lost to somebody else.
        """
        self._renew(now=self._now())
        self._next = time.monotonic() + self._pause


def set_back(line: Line, ref: Ref, verb: str, error: PlatewayError) -> None:
    row = line.catalog.set_back(ref, verb, reason=str(error), now=line.catalog.now())
    log.warning("%s %s failed (attempt %d, next %s): %s", ref, verb, row.attempt, row.next_at.isoformat(), error)


def digest_of(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
