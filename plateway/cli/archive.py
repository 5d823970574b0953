"""``plateway archive`` and ``expire``: write copies to the archive, and delete the bucket's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from plateway import pipeline
from plateway.cli.common import use_site
from plateway.cli.options import Home, Json, Systems
from plateway.cli.outcomes import report_outcomes
from plateway.errors import Misconfigured


def archive(
    *,
    before: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Only events imaged before this day (UTC); default: today."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would be written into which tar.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write verified events to the archive, as tar files.

    Writes what is not on tape yet to PLATEWAY_ARCHIVE_TARGET, one tar for each kind, experiment and day.
    """
    with use_site(home) as (site, _):
        if site.archive is None:
            raise Misconfigured("no archive is configured: set PLATEWAY_ARCHIVE_TARGET")
        day = before.date() if before else site.catalog.now().astimezone(UTC).date()
        outcomes = pipeline.archive(site, before=day, dry_run=dry_run)
    report_outcomes(outcomes, as_json=as_json)


def expire(
    *,
    system: Systems = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and compare, but delete nothing.")] = False,
    fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Largest share (0-1) of a system's copies that this run may delete."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Delete bucket copies that have a verified tape copy.

    Deletes a copy after PLATEWAY_BUCKET_LIFESPAN. Every refusal is reported with its reason.
    """
    with use_site(home) as (site, _):
        outcomes = pipeline.expire(site, systems=system, dry_run=dry_run, fraction=fraction)
    report_outcomes(outcomes, as_json=as_json)
