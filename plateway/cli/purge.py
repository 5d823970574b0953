"""``plateway purge``: remove raw images from the bench."""

from __future__ import annotations

from typing import Annotated

import typer

from plateway import pipeline
from plateway.cli.common import use_site
from plateway.cli.options import Home, Json, Systems
from plateway.cli.outcomes import report_outcomes


def purge(
    *,
    system: Systems = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and compare, but move nothing.")] = False,
    fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Largest share (0-1) of a system's events that this run may remove."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove raw images that have a verified copy.

    Touches only the systems in PLATEWAY_PURGE_SYSTEMS. Compares every file with the copy, moves the images into a trash
    folder, and removes them after PLATEWAY_TRASH_GRACE if they and the copy are still the same. Every refusal is
    reported with its reason. Also aborts open uploads of exports that crashed.
    """
    with use_site(home) as (site, _):
        outcomes = pipeline.purge(site, systems=system, dry_run=dry_run, fraction=fraction)
        outcomes += [] if dry_run else pipeline.sweep(site)
    report_outcomes(outcomes, as_json=as_json)
