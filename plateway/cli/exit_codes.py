"""Exit codes, which scripts act on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum

from plateway.errors import Damaged, Misconfigured, PlatewayError, Transient
from plateway.outcome import Outcome, Result

UNSUCCESSFUL = (Result.FAILED, Result.LATER, Result.STOPPED, Result.QUARANTINED)


class ExitCode(IntEnum):
    """What the exit code of a command means."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTLY_FAILED = 3
    DAMAGED = 4
    RETRY_LATER = 5


def code_of_error(error: PlatewayError) -> ExitCode:
    """Return the exit code of a command that ended with an error."""
    if isinstance(error, Transient):
        return ExitCode.RETRY_LATER
    if isinstance(error, Damaged):
        return ExitCode.DAMAGED
    return ExitCode.USAGE if isinstance(error, Misconfigured) else ExitCode.FAILED


def code_of_outcomes(outcomes: Sequence[Outcome]) -> ExitCode:
    """Return the exit code that summarizes many outcomes; damage outweighs everything else."""
    results = Counter(one.result for one in outcomes)
    unsuccessful = sum(results[one] for one in UNSUCCESSFUL)
    if results[Result.DAMAGED]:
        return ExitCode.DAMAGED
    if not unsuccessful:
        return ExitCode.DONE
    if unsuccessful < len(outcomes):
        return ExitCode.PARTLY_FAILED
    return ExitCode.RETRY_LATER if results[Result.LATER] == unsuccessful else ExitCode.FAILED
