"""``plateway demo`` and ``plateway up``: run everything on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from plateway import settings
from plateway.cli.console import PlainConsole
from plateway.cli.options import Home, Json
from plateway.local import bringup
from plateway.local import demo as local_demo


def demo(
    *,
    home: Home = None,
    events: Annotated[int, typer.Option(min=2, help="Number of events that the two instruments acquire.")] = 6,
    once: Annotated[
        bool, typer.Option("--once", help="End when the demo is over; exit 0 only if all went as expected.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the whole system with simulated instruments.

    Starts all servers, acquires events with two instruments, exports and verifies them, damages one copy, and removes
    the raw images whose copies are intact.
    """
    console = PlainConsole(markup=True, stderr=as_json)
    config = settings.load(home=home)
    raise typer.Exit(local_demo.run(config, events=events, once=once, as_json=as_json, console=console))


def up(home: Home = None) -> None:
    """Run servers, worker and gateway for real instruments.

    Starts Prefect, S3 (unless an endpoint is configured), catalogue, worker, file sensor and gateway, until Ctrl-C.
    """
    raise typer.Exit(bringup.up(settings.load(home=home), PlainConsole(markup=True)))
