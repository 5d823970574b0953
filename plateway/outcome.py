"""What a verb did to an event, as values that code decides on: one vocabulary for all verbs.

The words are those of the JSON documents and tables; code compares the enums and never parses a reason.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from plateway.events import Ref

log = logging.getLogger(__name__)


class Fact(StrEnum):
    """What others can be told about an event, in the order in which it usually happens."""

    REGISTERED = "registered"
    EXPORTED = "exported"
    VERIFIED = "verified"
    DAMAGED = "damaged"  # the bucket copy is lost or changed
    ARCHIVED = "archived"  # an archive has it
    PURGED = "purged"  # its raw images are removed
    EXPIRED = "expired"  # its bucket copy is removed


class Result(StrEnum):
    """What became of one event, object or system."""

    REGISTERED = "registered"
    QUARANTINED = "quarantined"
    EXPORTED = "exported"
    EXPORTED_ALREADY = "exported already"
    VERIFIED = "verified"
    RECEIVED = "received"
    KNOWN = "known"
    PARKED = "parked"
    ARCHIVED = "archived"
    WRITTEN = "written"
    FOUND = "found"
    TRASHED = "trashed"
    MARKED = "marked"
    GONE = "gone"
    EXPIRED = "expired"
    RESTORED = "restored"
    RESTORED_ALREADY = "restored already"
    ADOPTED = "adopted"
    TAKEN_IN = "taken in"
    MOVED = "moved"
    REMOVED = "removed"
    ABORTED = "aborted"
    WAITS = "waits"
    WOULD_GO = "would go"
    WOULD_MOVE = "would be moved"
    WOULD_RESTORE = "would restore"
    THERE_ALREADY = "there already"
    BUSY = "busy"  # another worker holds the lease
    CONFLICT = "conflict"  # other bytes are there; the event goes on under another key
    REFUSED = "refused"  # a rule forbids it; see the reasons
    STOPPED = "stopped"  # a whole batch, until a person has decided
    LATER = "later"  # it could not be decided or done now; waiting may help
    FAILED = "failed"
    DAMAGED = "damaged"  # stored bytes are not the recorded ones


class Restored(StrEnum):
    """Why a purge was taken back."""

    REQUESTED = "requested"  # a person wants the images
    INTERRUPTED = "interrupted"  # nothing had been moved
    UNPROVEN = "unproven"  # the proof failed, or the policy forbids it by now
    MISSING = "missing"  # neither in the trash nor in place, and no removal of ours was recorded


class Incidence(StrEnum):
    """What an entry of an event's history is about."""

    DAMAGE = "damage"
    REFUSAL = "refusal"
    FAILURE = "failure"
    REPAIR = "repair"
    REQUEST = "request"  # a person asked for something


BAD = frozenset({Result.FAILED, Result.DAMAGED, Result.STOPPED})  # a person has to act
UNFINISHED = frozenset({Result.LATER})  # nothing is lost, and the work is not done


@dataclass(frozen=True)
class Outcome:
    """What a verb did to one event."""

    ref: Ref | None  # None: it is about a whole system, or a file that names no event
    system: str
    verb: str
    result: Result
    key: str = ""
    size: int | None = None
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0


def log_outcome(outcome: Outcome) -> Outcome:
    """Log one line for a fact, the event's id first: a warning where a person has to act."""
    about = "; ".join(outcome.reasons) or outcome.key
    level = logging.WARNING if outcome.result in BAD | UNFINISHED else logging.INFO
    log.log(level, "%s %s: %s %s: %s", outcome.ref or "-", outcome.system, outcome.verb, outcome.result, about)
    return outcome


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """Turn an outcome into plain values for JSON and tables."""
    facts = {field: value for field, value in vars(outcome).items() if field != "ref"}
    return {"id": str(outcome.ref) if outcome.ref else None, **facts, "result": str(outcome.result)}
