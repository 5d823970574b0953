"""``plateway db``: the tables of the catalogue."""

from __future__ import annotations

from contextlib import closing

import typer

from plateway import settings
from plateway.catalog import Catalog
from plateway.cli.console import out, print_json
from plateway.cli.options import Home, Json

app = typer.Typer(no_args_is_help=True, help="Upgrade the tables of the catalogue.")


@app.command()
def upgrade(home: Home = None) -> None:
    """Upgrade the tables to the revision that this version needs."""
    with closing(Catalog(settings.load(home=home).catalog_url)) as catalog:
        catalog.upgrade()
        out.print(f"catalogue at {catalog.current()}")


@app.command("current")
def show_revision(home: Home = None, as_json: Json = False) -> None:
    """Show the revision of the tables, and the one that this version needs."""
    with closing(Catalog(settings.load(home=home).catalog_url)) as catalog:
        current, head = catalog.current(), catalog.head()
    if as_json:
        return print_json({"current": current, "head": head})
    return out.print(f"{current or 'no tables yet'} (this version needs {head})")
