"""``plateway purge``: remove raw images from the bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from plateway import pipeline
from plateway.cli.common import use_site
from plateway.cli.options import Home, Json, Systems
from plateway.cli.outcomes import report_outcomes, stream_outcomes


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
    if dry_run:
        return rehearse(system, fraction=fraction, home=home, as_json=as_json)
    with use_site(home) as (site, _):
        outcomes = pipeline.purge(site, systems=system, fraction=fraction)
        outcomes += pipeline.sweep(site)
    return report_outcomes(outcomes, as_json=as_json)


def rehearse(systems: Sequence[str] | None, *, fraction: float | None, home: Path | None, as_json: bool) -> None:
    """Print what a purge would do, each outcome as soon as it is known."""
    with use_site(home) as (site, _), stream_outcomes(as_json=as_json) as each:
        pipeline.purge(site, systems=systems, dry_run=True, fraction=fraction, each=each)
