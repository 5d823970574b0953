"""Commands about the site itself: which it is, and whether each of its places is the one that it should be."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from plateway import pipeline
from plateway.cli.shell import Home, Json, app, out, print_json, when
from plateway.cli.verbs import working

site_app = typer.Typer(no_args_is_help=True, help="Inspect and adopt the disks, buckets and archive of this site.")
app.add_typer(site_app, name="site")


@site_app.command()
def show(*, home: Home = None, as_json: Json = False) -> None:
    """List every place with what identifies it; exit 5 if one is not mounted, is another one, or another site's."""
    with working(home) as (site, _):
        id_, found = site.places.site, pipeline.inspect_places(site)
    if as_json:
        places = [{**one._asdict(), "recorded_at": one.recorded_at} for one in found]
        print_json({"site": str(id_), "places": places})
    else:
        out.print(f"site {id_}")
        table = Table(Column("place", no_wrap=True), "since", "state")
        for one in found:
            table.add_row(
                one.name,
                when(one.recorded_at) if one.recorded_at else "-",
                one.trouble or ("as recorded" if one.identity else "never used"),
            )
        out.print(table)
    if any(one.trouble for one in found):
        raise typer.Exit(5)


@site_app.command()
def adopt(
    *,
    name: Annotated[str, typer.Argument(help="A place as `plateway site show` lists it, like bench/prince.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a place this site's: a disk that was replaced, or one that another site had."""
    with working(home) as (site, _):
        identity = pipeline.adopt_place(site, name)
    if as_json:
        print_json({"place": name, "identity": identity})
    else:
        out.print(f"{name} is this site's now ({identity})")
