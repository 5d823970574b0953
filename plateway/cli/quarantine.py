"""``plateway quarantine``: list and replay events that were not accepted."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.table import Table

from plateway import wire
from plateway.cli.common import use_site
from plateway.cli.console import format_time, out, print_json, print_text
from plateway.cli.options import Home, Json
from plateway.errors import NotFound
from plateway.records import Quarantine

app = typer.Typer(no_args_is_help=True, help="List and replay events that were not accepted.")


@app.command("list")
def list_entries(
    *,
    include_all: Annotated[bool, typer.Option("--all", help="Also entries that were replayed.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List event files that were not accepted, with the reason."""
    with use_site(home, lenient=True) as (site, _):
        entries = [make_entry(row) for row in site.catalog.quarantined(include_released=include_all)]
    if as_json:
        return print_json(TypeAdapter(list[wire.QuarantineEntry]).dump_python(entries, mode="json"))
    table = Table("id", "system", "event file", "versions", "reason", "since")
    for one in entries:
        table.add_row(str(one.id), one.system, one.name, f"{one.versions:,}", one.reason, format_time(one.first_seen))
    return out.print(table if entries else "The quarantine is empty.")


@app.command("show")
def show_entry(
    id: Annotated[int, typer.Argument(metavar="ID", help="Id of an entry, as `plateway quarantine list` prints it.")],  # noqa: A002
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one entry with the content of its event file."""
    with use_site(home, lenient=True) as (site, _):
        row = next((row for row in site.catalog.quarantined(include_released=True) if row.id == id), None)
    if row is None:
        raise NotFound(f"no quarantine entry {id}")
    if as_json:
        content = row.content.decode("utf-8", "backslashreplace")
        return print_json({**make_entry(row).model_dump(mode="json"), "content": content})
    out.print(f"{row.system}/{row.name}: {row.reason}")
    return print_text(row.content)


@app.command("replay")
def replay_entries(
    ids: Annotated[
        list[int], typer.Argument(metavar="ID", help="Ids of entries, as `plateway quarantine list` prints them.")
    ],
    home: Home = None,
) -> None:
    """Release entries, so that the next discovery reads their event files again."""
    with use_site(home, lenient=True) as (site, _):
        for one in ids:
            row = site.catalog.replay(one, now=site.catalog.now())
            out.print(f"{row.system}/{row.name} released: the next discovery reads it again")


def make_entry(row: Quarantine) -> wire.QuarantineEntry:
    """Convert a row of the catalogue to the entry that JSON documents show."""
    return wire.QuarantineEntry(**row.model_dump(exclude={"content", "revision"}), size=len(row.content))
