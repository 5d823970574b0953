"""Options and arguments that several commands share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path | None, typer.Option("--home", help="Directory of local state; default: PLATEWAY_HOME.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Event ids, as `plateway status` prints them.")]
Since = Annotated[datetime | None, typer.Option(help="Imaged at or after this time (UTC unless it has a zone).")]
Until = Annotated[datetime | None, typer.Option(help="Imaged before this time.")]
System = Annotated[str | None, typer.Option(help="Only this instrument.")]
Systems = Annotated[list[str] | None, typer.Option("--system", help="Only this instrument; may be repeated.")]
Experiment = Annotated[str | None, typer.Option(help="Only this experiment.")]


def as_utc(moment: datetime | None) -> datetime | None:
    """Add UTC to a time without a zone."""
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
