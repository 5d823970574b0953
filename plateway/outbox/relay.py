"""Send pending messages to their targets until each has them.

Manages order, retries and what is recorded of them; a target only sends one message. A target that fails is retried
with pauses that grow to 30 s, and the others go on. A message that its target refuses holds back the later messages of
the same event, and no others.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from plateway.bridges.running import NAP, Backoff, rest, stopping
from plateway.catalog import Catalog
from plateway.catalog.outbox import Message
from plateway.errors import PlatewayError, Rejected

BATCH = 100  # messages that are recorded as delivered in one transaction
KEEP = timedelta(days=7)  # for which delivered messages can be replayed
HOLD = timedelta(minutes=2)  # after which another process may relay to the target of one that is silent
RENEW = HOLD.total_seconds() / 4
HOUR = 3600.0

Send = Callable[[Message], None]  # returns once the target has the message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Who gets messages. ``open`` connects, and returns a function that sends one message.

    Opening raises `PlatewayError`. Sending raises `Rejected` if this message is refused, and other messages may not be;
    any other `PlatewayError` ends the attempt.
    """

    name: str
    open: Callable[[], AbstractContextManager[Send]]


@dataclass
class Relay:
    """Relays to one target, as long as it holds the target."""

    catalog: Catalog
    target: Target
    holder: str
    stop: threading.Event = field(default_factory=threading.Event)
    renew_at: float = 0.0  # monotonic seconds
    trim_at: float = 0.0

    def run(self) -> None:
        """Relay until the stop."""
        name, patience = self.target.name, Backoff()
        while not self.stop.is_set():
            try:
                if self.hold():
                    self.relay()
                    self.trim()
                patience.reset()
                rest(self.stop, NAP)
            except PlatewayError as error:
                pause = patience.pause()
                log.warning("%s: %s; retrying in %.1f s", name, error, pause)
                rest(self.stop, pause)
        with suppress(PlatewayError):  # else it is free when its time has passed
            self.catalog.release_target(name, self.holder)

    def hold(self) -> bool:
        """Hold the target, or go on holding it; returns False while another process does."""
        if time.monotonic() < self.renew_at:
            return True
        now = self.catalog.now()
        if not self.catalog.hold_target(self.target.name, self.holder, now=now, ttl=HOLD):
            return False
        self.renew_at = time.monotonic() + RENEW
        return True

    def relay(self) -> int:
        """Send what is pending, and return how many messages were delivered.

        Raises:
            PlatewayError: the target cannot be reached, or refused a message; it is recorded.
        """
        name, count, after = self.target.name, 0, 0
        held: dict[UUID, Rejected] = {}  # events of which a message was refused
        page = self.catalog.pending_messages(name, limit=BATCH)
        if not page:
            return 0
        try:
            with self.target.open() as send:
                while page and not self.stop.is_set() and self.hold():
                    count += self.send_page(send, page, held)
                    after = page[-1].sequence
                    page = self.catalog.pending_messages(name, after=after, limit=BATCH) if len(page) == BATCH else []
            for refusal in held.values():
                raise refusal
        except PlatewayError as error:
            self.catalog.record_outbox_error(name, str(error), now=self.catalog.now())
            raise
        return count

    def send_page(self, send: Send, page: Sequence[Message], held: dict[UUID, Rejected]) -> int:
        """Send messages, and record which were delivered, whatever happens; return their number."""
        done: list[int] = []
        try:
            for message in page:
                if self.stop.is_set():
                    break
                if message.event.id in held:
                    continue
                try:
                    send(message)
                except Rejected as error:
                    held[message.event.id] = error
                    continue
                done.append(message.sequence)
                log.info("%s: %s delivered to %s", message.ref, message.fact, self.target.name)
        finally:
            if done:
                self.catalog.record_delivered(self.target.name, done, now=self.catalog.now())
        return len(done)

    def trim(self) -> None:
        """Delete what was delivered long ago, once an hour."""
        if time.monotonic() >= self.trim_at:
            self.catalog.trim_outbox(self.target.name, before=self.catalog.now() - KEEP)
            self.trim_at = time.monotonic() + HOUR


def run(catalog: Catalog, targets: Sequence[Target], *, stop: threading.Event | None = None) -> None:
    """Relay to all targets, each in a thread, until ``stop`` is set, or SIGTERM or SIGINT arrives.

    Targets are registered first: facts recorded from then on have messages. Without ``stop``, call it from the main
    thread.
    """
    for name in catalog.register_targets([one.name for one in targets], now=catalog.now()):
        log.info("%s: registered; it gets messages about facts from now on", name)
    holder = f"{socket.gethostname()}:{os.getpid()}"
    with stopping(stop) as asked, ThreadPoolExecutor(len(targets), "outbox") as pool:
        runs = [pool.submit(Relay(catalog, one, holder, asked).run) for one in targets]
        while any(not one.done() for one in runs):
            if any(one.exception() for one in wait(runs, NAP, FIRST_EXCEPTION).done):
                asked.set()  # an error that is none of ours ends the process, and is shown
        for one in runs:
            one.result()
