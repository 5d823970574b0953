"""Try an endpoint: what it supports, and whether an event comes through the whole line on it and back.

Every capability is tried, not guessed. Everything happens in a short-lived bucket, or in a folder of its own in a
bucket that is there; both are removed afterwards, and nothing else is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plateway.buckets import Address
from plateway.store import Endpoint

Verdict = Literal["yes", "no", "ignored", "denied", "unknown"]


@dataclass(frozen=True)
class Capability:
    """What came of trying one thing."""

    name: str
    verdict: Verdict  # ignored: taken without a word, and without effect; unknown: the endpoint did not answer
    detail: str  # what the endpoint did
    use: str  # what Plateway does therefore


@dataclass(frozen=True)
class Step:
    """What came of one step of an event's way into the bucket and back."""

    name: str
    problem: str  # empty: it went well
    detail: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """What an endpoint can, and how the round went."""

    place: str  # where it was tried: s3://bucket/folder
    capabilities: tuple[Capability, ...]
    steps: tuple[Step, ...]
    damaged: bool = False  # bytes came back that were not sent

    @property
    def problems(self) -> list[str]:
        """Name the steps that failed, and why."""
        return [f"{step.name}: {step.problem}" for step in self.steps if step.problem]


def run(endpoint: Endpoint, *, name: str = "selftest", within: Address | None = None) -> Report:
    """Try an endpoint in a short-lived bucket of that name, or within an address in a folder of its own.

    Raises:
        Refused: the endpoint is read-only. Denied: no bucket may be made, and no address was given.
    """
    raise NotImplementedError
