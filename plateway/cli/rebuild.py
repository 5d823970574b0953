"""``plateway rebuild``: rebuild a lost catalogue."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table

from plateway import pipeline
from plateway.archive import Inbox
from plateway.cli.common import use_site
from plateway.cli.console import byte_progress, out, print_json
from plateway.cli.exit_codes import ExitCode
from plateway.cli.options import Home, Json
from plateway.cli.outcomes import print_outcomes


def rebuild(
    *,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of objects read at the same time.")] = 4,
    site_id: Annotated[
        UUID | None, typer.Option("--site", help="Id of this site, if the buckets name several.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Rebuild a lost catalogue from bucket and archive.

    Fills an empty catalogue from the objects in the bucket and the archive's manifests, and lists what only the old
    catalogue recorded. Reads every object whole.
    """
    with use_site(home) as (site, config), byte_progress("rebuild", total=None) as beat:
        manifests = Inbox(config.archive_inbox, config.endpoint).accepted() if config.archive_inbox else ()
        result = pipeline.rebuild(site, workers=workers, manifests=manifests, beat=beat, site_id=site_id)
    if as_json:
        facts = {field: getattr(result, field) for field in ("events", "known", "from_archive", "manifests")}
        refused, gaps = map(pipeline.as_dict, result.refused), (gap._asdict() for gap in result.gaps)
        print_json({**facts, "refused": list(refused), "gaps": list(gaps)})
    else:
        out.print(
            f"{result.events} events imported, {result.from_archive} of them from the archive; "
            f"{result.known} known already; {result.manifests} archive manifests"
        )
        if result.refused:
            print_outcomes(result.refused)
        table = Table("recorded only in the old catalogue", "rows", "instead", title="differences")
        for gap in result.gaps:
            table.add_row(gap.what, "?" if gap.rows is None else str(gap.rows), gap.instead)
        out.print(table)
    if result.refused:
        raise typer.Exit(ExitCode.PARTLY_FAILED)
