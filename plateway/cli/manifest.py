"""``plateway manifest``: list and import archive manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from plateway import pipeline
from plateway.cli.common import use_site
from plateway.cli.console import format_time, out, print_json, print_text
from plateway.cli.options import Home, Json
from plateway.cli.outcomes import report_outcomes
from plateway.errors import NotFound
from plateway.records import ArchiveManifest

app = typer.Typer(no_args_is_help=True, help="List and import archive manifests.")


@app.command("list")
def list_manifests(
    *,
    refused: Annotated[
        bool, typer.Option("--refused", help="Only manifests that were refused, in whole or in part.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of manifests.")] = 100,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List archive manifests, newest first."""
    with use_site(home) as (site, _):
        rows = [manifest_as_dict(one) for one in site.catalog.manifests(refused=refused, limit=limit)]
    if as_json:
        return print_json(rows)
    table = Table(
        "digest", "source", Column("name", overflow="fold"), "job", "received", Column("refused", overflow="fold")
    )
    for row in rows:
        cells = (row["digest"][:12], row["door"], row["name"], row["job_id"] or "", format_time(row["received_at"]))
        table.add_row(*cells, row["reason"] or "")
    return out.print(table if rows else "No manifests.")


@app.command("show")
def show_manifest(
    id: Annotated[str, typer.Argument(metavar="ID", help="First digits of its digest.")],  # noqa: A002
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one manifest and its content as received."""
    with use_site(home) as (site, _):
        found = site.catalog.manifests(digest=id, limit=2)
    if len(found) != 1:
        raise NotFound(f"{'more than one manifest has' if found else 'no manifest has'} a digest that starts with {id}")
    if as_json:
        content = found[0].content.decode("utf-8", "backslashreplace")
        return print_json({**manifest_as_dict(found[0]), "content": content})
    out.print(f"{found[0].door} {found[0].name}: {found[0].reason or 'accepted'}")
    return print_text(found[0].content)


@app.command("parked")
def list_parked(home: Home = None, as_json: Json = False) -> None:
    """List archive entries that match no export, with the reason."""
    fields = ("path", "key", "job_id", "reported_at", "reason")
    with use_site(home) as (site, _):
        rows = [{field: getattr(one, field) for field in fields} for one in site.catalog.parked()]
    if as_json:
        return print_json(rows)
    table = Table(Column("key", overflow="fold"), Column("archive", overflow="fold"), "job", "reported", "reason")
    for row in rows:
        table.add_row(row["key"], row["path"], row["job_id"], format_time(row["reported_at"]), row["reason"] or "")
    return out.print(table if rows else "No parked entries.")


@app.command("receive")
def import_manifests(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Manifests, as JSON files.")
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Import manifests from files; may be repeated with the same files."""
    with use_site(home) as (site, _):
        outcomes = [pipeline.receive(site, one.read_bytes(), source="file", name=one.name) for one in files]
        outcomes += pipeline.settle(site)
    report_outcomes(outcomes, as_json=as_json)


def manifest_as_dict(row: ArchiveManifest) -> dict[str, Any]:
    """Convert a manifest to plain values for JSON, without its content."""
    return row.model_dump(exclude={"content", "last_at"})
