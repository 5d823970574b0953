"""One imaging system, as an operator edits it in the Prefect UI: where it writes, and when its images may be purged."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from prefect.blocks.core import Block
from pydantic import Field, WithJsonSchema

from plateway import instruments, settings
from plateway.instruments import IGNORED, IMAGES, Policy

Duration = Annotated[settings.Duration, WithJsonSchema({"type": "string"})]


class Instrument(Block):
    """One imaging system and the rules for its images. Changes apply to the next run."""

    _block_type_name = "Plateway Instrument"
    _block_type_slug = "plateway-instrument"
    _description = "One imaging system: where it writes, how it behaves and when its raw images may be purged."
    _code_example = """
        ```python
        from blocks.instrument import Instrument

        prince = Instrument.load("prince").value()
        print(prince.root, prince.settle, prince.policy)
        ```
    """

    system: str = Field(description="Name of the instrument, as in its event files")
    root: str = Field(description="Its directory on the bench; holds events/ and the images")
    settle: Duration = Field(timedelta(seconds=2), description="Nothing may have changed for this long: 2s, 1m")
    deadline: Duration = Field(timedelta(minutes=10), description="Then an event without all its images is quarantined")
    timezone: str | None = Field(None, description="Zone of timestamps without one, like Europe/Amsterdam")
    patterns: list[str] = Field(list(IMAGES), description="What counts as an image for the announced count")
    ignored: list[str] = Field(list(IGNORED), description="What is no image and no event file, whatever it matches")
    staging: str | None = Field(None, description="Copy images here first; leave empty for no staging")
    purge: bool = Field(False, description="Raw images may be purged once they are proven safe")
    requires: Literal["bucket", "bucket+archive"] = Field("bucket", description="Where they must be proven to be")
    lifespan: Duration = Field(timedelta(hours=8), description="Age of that proof before raw images may go")
    grace: Duration = Field(timedelta(hours=1), description="Time in the trash before they are removed")
    staging_lifespan: Duration = Field(timedelta(days=1), description="Age of the proof before a staging copy may go")
    fraction: float = Field(0.5, gt=0, le=1, description="A purge of more of the system's events stops and asks")
    bucket_lifespan: Duration | None = Field(
        None, description="Age of the archive's evidence before a bucket copy may go; empty: never"
    )
    stuck_after: Duration = Field(timedelta(hours=1), description="An event that waits longer is an alert")

    bucket: str | None = Field(None, description="Name of the Bucket block that receives its exports; empty: plateway")
    layout: Literal["bundle", "files"] = Field("bundle", description="One tar for each event, or an object per file")

    def value(self, site: Policy | None = None) -> instruments.Instrument:
        """Return the instrument as the library's; the rules of proof are those of the ``site``."""
        shared = {name: getattr(self, name) for name in SHARED} | {
            "root": Path(self.root),
            "timezone": ZoneInfo(self.timezone) if self.timezone else None,
            "patterns": tuple(self.patterns),
            "ignored": tuple(self.ignored),
            "staging": Path(self.staging) if self.staging else None,
            "bucket": self.bucket or None,
        }
        policy = replace(site or Policy(), **{name: getattr(self, name) for name in RULES})
        return instruments.Instrument(name=self.system, policy=policy, **shared)

    @classmethod
    def of(cls, known: instruments.Instrument) -> Instrument:
        """Create the block from the settings."""
        shared = {name: getattr(known, name) for name in SHARED} | {
            "root": str(known.root),
            "timezone": known.timezone and known.timezone.key,
            "patterns": list(known.patterns),
            "ignored": list(known.ignored),
            "staging": str(known.staging) if known.staging else None,
        }
        return cls(system=known.name, **shared, **{name: getattr(known.policy, name) for name in RULES})


SHARED = Instrument.model_fields.keys() & {one.name for one in fields(instruments.Instrument)}
RULES = Instrument.model_fields.keys() & {one.name for one in fields(Policy)}
