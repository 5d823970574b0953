"""Limits of the gateway, and rate limits by token and by address.

The state lies in one small file that the workers of a machine map into memory. The state of one rate limit is a single
number, the time at which its full allowance is available again (GCRA, the leaky bucket of ATM Forum TM 4.0). The table
therefore has a fixed size, needs no clean-up, and one request costs some microseconds. A lock on the file makes "read
and charge" one step; the kernel releases it when its process ends. Clocks are monotonic: changes of the wall clock have
no effect.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from plateway.gateway.errors import Problem

SLOT = struct.Struct("<Qd")  # hash of the name, and the time at which the allowance is full again
WAYS = 8  # slots in one row of the table; a new name replaces the slot with the fullest allowance
SET = struct.Struct("<" + WAYS * "Qd")
SETS = 8192
LOCK_TRIES = 40
LOCK_PAUSE = 0.0005


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` requests in `seconds`; all of them may come at once."""

    count: int
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of the gateway. Sizes are bytes, times seconds."""

    token: Rate = Rate(6000)  # requests of one token
    address: Rate = Rate(12000)  # requests of one address
    failed: Rate = Rate(20)  # failed logins of one address
    object_size: int = 5 << 30
    body_size: int = 1 << 20  # of every other request
    body_rate: int = 64 << 10  # smallest mean rate of a body, in bytes per second
    body_grace: float = 10.0  # before a slow body is refused
    body_credit: float = 30.0  # largest reserve that a fast body can earn
    body_time: float = 6 * 3600.0  # longest time for one body
    uploads: int = 8  # large bodies that one worker stores at a time, half of them of one token; 25 MiB each
    connections: int = 1000  # of one worker
    per_address: int = 250  # connections, and concurrent requests, of one address
    health_connections: int = 32  # further connections, which serve /health and /ready only


class Rates:
    """Rate limits by name, shared by all processes of one machine that open the same file."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, SETS * SET.size)
        self._table = mmap.mmap(self._file, SETS * SET.size)
        self._clock = clock
        self._thread_lock = threading.Lock()

    def charge(self, name: str, rate: Rate) -> float:
        """Charge one request and return 0.0; or charge nothing and return the seconds until one is allowed again."""
        interval = rate.seconds / rate.count
        with self._thread_lock:
            locked = self._lock_file()
            try:
                now = self._clock()
                at, tag, full = self._find_slot(name, now)
                if full > now + rate.seconds + interval:
                    full = now  # written before a restart of the machine, or for another rate
                wait = full + interval - now - rate.seconds
                if wait > 1e-9:
                    return wait
                SLOT.pack_into(self._table, at, tag, full + interval)
                return 0.0
            finally:
                if locked:
                    fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        self._table.close()
        os.close(self._file)

    def _lock_file(self) -> bool:
        """Lock the file; without the lock, after 20 ms, requests are still served and some are not counted."""
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(LOCK_PAUSE)
        return False

    def _find_slot(self, name: str, now: float) -> tuple[int, int, float]:
        """Find the slot of a name: its offset, its tag, and the time at which it is full again (never before now)."""
        row, tag = struct.unpack("<QQ", hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=16).digest())
        first = row % SETS * SET.size
        slots = SET.unpack_from(self._table, first)
        tags, full = slots[::2], slots[1::2]
        way = tags.index(tag) if tag in tags else full.index(min(full))
        return first + way * SLOT.size, tag, max(full[way], now) if tag in tags else now


def too_many_requests(wait: float) -> Problem:
    """Return a 429 response with the seconds to wait."""
    return Problem(429, "Too many requests", headers={"Retry-After": str(max(1, ceil(wait)))})
