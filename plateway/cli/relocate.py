"""``plateway relocate``: record the new address of an endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from plateway import pipeline
from plateway.cli.common import use_site
from plateway.cli.options import Home, Json
from plateway.cli.outcomes import report_outcomes
from plateway.settings import MAIN


def relocate(
    *,
    bucket: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a bucket in buckets.toml; default: the site's own bucket.")
    ] = MAIN,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify, but record nothing.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Record the new address of an endpoint.

    Searches the bucket for exports that are recorded in a bucket of that name at an address which is no longer in the
    settings, and records the new address of each one that verifies.
    """
    with use_site(home) as (site, config):
        outcomes = pipeline.relocate(site.named(bucket), dry_run=dry_run, workers=config.export_workers)
    report_outcomes(outcomes, as_json=as_json)
