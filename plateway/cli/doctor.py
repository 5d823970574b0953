"""``plateway doctor``: check that a site can work."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from plateway import doctor as examination
from plateway import settings
from plateway.cli.console import out, print_json
from plateway.cli.exit_codes import ExitCode
from plateway.cli.options import Home, Json
from plateway.doctor import State

COLOURS = {State.OK: "green", State.WARNING: "yellow", State.WRONG: "red", State.SKIPPED: ""}


def doctor(
    *,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a check that hangs is wrong.")] = 10.0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check settings, S3, bench, catalogue and Prefect, and print remedies.

    Reads only; `plateway bucket selftest` tries an endpoint by writing to it. Exits with 1 if something is wrong.
    """
    found = examination.examine(settings.load(home=home), seconds=timeout)
    if as_json:
        print_json({"good": not is_wrong(found), "checks": [asdict(one) for one in found]})
    else:
        table = Table(
            Column("check", no_wrap=True), "state", Column("found", overflow="fold"), Column("to do", overflow="fold")
        )
        for one in found:
            table.add_row(one.check, Text(one.state, style=COLOURS[one.state]), one.text, one.remedy)
        out.print(table)
    if is_wrong(found):
        raise typer.Exit(ExitCode.FAILED)


def is_wrong(found: list[examination.Diagnosis]) -> bool:
    """Return whether something stops the work."""
    return any(one.state == State.WRONG for one in found)
