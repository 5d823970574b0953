"""Let bucket copies go that tape has with proof; and warn of rules in the bucket that let them go without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from plateway.pipeline.line import Line, Outcome


@dataclass(frozen=True)
class Caution:
    """A rule of the bucket's own that could delete what tape does not have."""

    rule: str  # its id; empty where there is none, or no rule could be read
    prefix: str  # of the keys it is about, in the whole bucket; empty: all
    after: str  # ``14d``, ``from 2026-05-04``, or empty: nobody can say
    exports: int  # that are not on tape, and that it covers now
    first: datetime | None  # when the first of these would go
    text: str  # all of that in a sentence


def expire(
    line: Line,
    *,
    systems: Sequence[str] | None = None,
    dry_run: bool = False,
    fraction: float | None = None,
    now: datetime | None = None,
) -> list[Outcome]:
    """Delete bucket copies that the archive holds with proof: judge, prove, mark, wait, prove again, delete.

    ``fraction`` overrides the policy's for this batch. A dry run judges and proves, and deletes nothing.
    """
    raise NotImplementedError


def policy_warnings(line: Line, *, now: datetime | None = None) -> list[Caution]:
    """Warn of each lifecycle rule of the bucket that could delete what tape does not have.

    Rules that cannot be read, or not be understood, are warned of as well.

    Raises:
        NotFound: there is no such bucket. Unavailable: it does not answer.
    """
    raise NotImplementedError
