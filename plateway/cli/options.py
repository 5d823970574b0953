"""Options and arguments that several commands share."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path | None, typer.Option("--home", help="Directory of local state; default: PLATEWAY_HOME.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Wide = Annotated[bool, typer.Option("--wide", help="Print whole keys and ids, however wide the terminal is.")]
Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Event ids, or their first digits; `-` reads them from standard input."),
]
TIMES = "7d, yesterday, 2026-11-30 or 2026-11-30T14:00"
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_time(text: str) -> datetime:
    """Parse a time: so long ago, today or yesterday, a day, or a moment; in UTC unless it has a zone."""
    now = datetime.now(UTC)
    if ago := re.fullmatch(r"(\d{1,5})([mhdw])", text.strip().lower()):
        return now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if text.strip().lower() in {"today", "yesterday"}:
        return today - timedelta(days=text.strip().lower() == "yesterday")
    return parse_moment(text, such_as=TIMES)


def parse_moment(text: str, *, such_as: str = "2027-06-30 or 2027-06-30T14:00") -> datetime:
    """Parse a day or a moment, in UTC unless it has a zone; the message about another text has examples."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time such as {such_as}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Since = Annotated[
    datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help=f"Imaged at or after this time: {TIMES}."),
]
Until = Annotated[
    datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="Imaged before this time, given likewise.")
]
System = Annotated[str | None, typer.Option(help="Only this instrument.")]
Systems = Annotated[list[str] | None, typer.Option("--system", help="Only this instrument; may be repeated.")]
Experiment = Annotated[str | None, typer.Option(help="Only this experiment.")]
