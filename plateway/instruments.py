"""What is configured of one instrument: where it writes, how it behaves, and when its images may be removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import translate
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from plateway.errors import Misconfigured

IMAGES = ("*.tif", "*.tiff", "*.png", "*.jpg", "*.jpeg", "*.jp2", "*.bmp", "*.dcm", "*.h5", "*.hdf5", "*.avi", "*.mp4")
IGNORED = ("._*", ".DS_Store", "Thumbs.db", "desktop.ini", "~$*")  # what desktops leave on a disk
Shape = Literal["bundle", "files"]  # of an export: one tar, or an object for each file


def format_duration(value: timedelta) -> str:
    """Format a duration as settings spell it: ``90s``, ``10m``, ``8h``, ``2d``."""
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:g}s"


def bounded_fraction(value: float) -> float:
    """Return the share of a system's events that one batch may remove: above 0, at most 1.

    Raises:
        Misconfigured: it is another number, like 10 for 10 %, or none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise Misconfigured(f"fraction {value!r} is not a share above 0 and up to 1; 10 % is 0.1")
    return value


@dataclass(frozen=True)
class Policy:
    """When raw images may go. The default purges nothing.

    Raises:
        Misconfigured: the fraction is no share.
    """

    purge: bool = False
    requires: str = "bucket"  # or bucket+archive
    lifespan: timedelta = timedelta(hours=8)  # age of the evidence before raw images may go
    bucket_lifespan: timedelta | None = None  # age of the archive's evidence before a bucket copy may go; None: never
    grace: timedelta = timedelta(hours=1)  # between moving aside and removing
    staging_lifespan: timedelta = timedelta(days=1)  # age of the evidence before a staging copy may go
    fraction: float = 0.5  # a batch that would remove more of a system's events than this stops and asks
    proof: str = "read"  # the whole copy is read before raw images go; head: its size and ETag are compared only
    proof_age: timedelta = timedelta(days=1)  # a reading older than this is no proof
    proof_budget: int | None = None  # bytes a day that are read as proof; None: as many as needed
    trust_archive: bool = False  # what the archive reports by checksum counts although it cannot be read from here

    def __post_init__(self) -> None:
        bounded_fraction(self.fraction)  # checked again here: policies are also made by `dataclasses.replace`


@dataclass(frozen=True)
class Instrument:
    """One system: where it writes and how it behaves."""

    name: str
    root: Path  # holds events/ and the images
    settle: timedelta = timedelta(seconds=2)
    deadline: timedelta = timedelta(minutes=10)
    timezone: ZoneInfo | None = None  # naive timestamps are refused without it
    patterns: tuple[str, ...] = IMAGES  # what counts as an image for the announced count
    ignored: tuple[str, ...] = IGNORED  # what is neither an image nor an event file, whatever else its name matches
    staging: Path | None = None
    policy: Policy = field(default_factory=Policy)
    stuck_after: timedelta = timedelta(hours=1)  # an event that waits longer is an alert
    bucket: str | None = None  # which of the site's buckets its exports go to, by name; None: the site's own
    layout: Shape = "bundle"


def image_matcher(patterns: Iterable[str], ignored: Iterable[str] = IGNORED) -> Callable[[str], bool]:
    """Return a function that decides by its name whether a file is an image."""
    image, passed_over = name_matcher(patterns), name_matcher(ignored)
    return lambda name: image(name) and not passed_over(name)


def name_matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that decides whether the last part of a path matches one of the patterns, in whatever case."""
    any_of = re.compile("|".join(translate(pattern.lower()) for pattern in patterns) or r"(?!)")
    return lambda name: any_of.match(name.rpartition("/")[2].lower()) is not None
