"""``plateway config``: settings, and buckets that Prefect knows."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from plateway import settings
from plateway.cli.console import out, print_json, print_text
from plateway.cli.options import Home, Json
from plateway.errors import NotFound
from plateway.local.project import import_from_project

app = typer.Typer(no_args_is_help=True, help="Show settings and where their values come from.")


@app.command("show")
def show_settings(home: Home = None, as_json: Json = False) -> None:
    """Show every setting, its value and where the value comes from; secrets are masked."""
    rows = settings.explain(home=home)
    if as_json:
        return print_json(rows)
    table = Table("setting", "value", "from", "meaning")
    for row in rows:
        table.add_row(row["setting"], str(row["value"]), row["source"], row["meaning"])
    return out.print(table)


@app.command("bucket")
def print_bucket(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a Bucket block.")]) -> None:
    """Print a Bucket block of Prefect as a table for buckets.toml, with its keys."""
    import_from_project("blocks.bucket").require_api(name)
    blocks = import_from_project("blocks.site")
    found = asyncio.run(blocks.load_buckets()).get(name)
    if found is None:
        raise NotFound(f"no Bucket block {name!r} in Prefect")
    instruments = asyncio.run(blocks.load_instruments())
    systems = tuple(sorted(one.system for one in instruments if one.bucket == name))
    print_text(settings.format_table(name, found.value(systems)).removesuffix("\n"))
