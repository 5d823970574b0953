"""``plateway bucket-policy``: check the lifecycle rules of the bucket."""

from __future__ import annotations

import typer
from rich.table import Column, Table

from plateway import pipeline
from plateway.cli.common import use_site
from plateway.cli.console import format_time, out, print_json
from plateway.cli.exit_codes import ExitCode
from plateway.cli.options import Home, Json

app = typer.Typer(no_args_is_help=True, help="Check the lifecycle rules of the bucket.")


@app.command()
def check(home: Home = None, as_json: Json = False) -> None:
    """List lifecycle rules that could delete exports which are not on tape; exit with 1 if there is one."""
    with use_site(home) as (site, _):
        warnings = pipeline.policy_warnings(site)
    if as_json:
        print_json([vars(one) for one in warnings])
    elif warnings:
        table = Table("rule", "prefix", "after", "exports", "first", Column("effect", overflow="fold"))
        for one in warnings:
            first = format_time(one.first) if one.first else ""
            table.add_row(one.rule, one.prefix, one.after, f"{one.exports:,}", first, one.text)
        out.print(table)
    else:
        out.print("No lifecycle rule of the bucket deletes exports that are not on tape.")
    if warnings:
        raise typer.Exit(ExitCode.FAILED)
