"""``plateway site``: the identity of the site, and of its disks, buckets and archive."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from plateway import pipeline
from plateway.cli.common import use_site
from plateway.cli.console import format_time, out, print_json
from plateway.cli.exit_codes import ExitCode
from plateway.cli.options import Home, Json

app = typer.Typer(no_args_is_help=True, help="Inspect and adopt the disks, buckets and archive.")


@app.command("show")
def show_places(*, home: Home = None, as_json: Json = False) -> None:
    """List the disks, buckets and archive of this site, and what is wrong with them.

    Exits with 5 if one is not mounted, is not the recorded one, or belongs to another site.
    """
    with use_site(home) as (site, _):
        id_, found = site.places.site, pipeline.inspect_places(site)
    if as_json:
        places = [{**one._asdict(), "recorded_at": one.recorded_at} for one in found]
        print_json({"site": str(id_), "places": places})
    else:
        out.print(f"site {id_}")
        table = Table(Column("place", no_wrap=True), "recorded", "state")
        for one in found:
            recorded = format_time(one.recorded_at) if one.recorded_at else "-"
            table.add_row(one.name, recorded, one.trouble or ("as recorded" if one.identity else "never used"))
        out.print(table)
    if any(one.trouble for one in found):
        raise typer.Exit(ExitCode.RETRY_LATER)


@app.command()
def adopt(
    *,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a place, as `plateway site show` lists it: bench/prince.")
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Assign a replaced disk, or one that belonged to another site, to this site."""
    with use_site(home) as (site, _):
        identity = pipeline.adopt_place(site, name)
    if as_json:
        print_json({"place": name, "identity": identity})
    else:
        out.print(f"{name} belongs to this site now ({identity})")
