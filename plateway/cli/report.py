"""``plateway report``: summarize instruments, problems and disk space."""

from __future__ import annotations

from rich.table import Column, Table

from plateway import pipeline
from plateway.cli.common import use_site
from plateway.cli.console import format_size, out, print_json
from plateway.cli.options import Home, Json

COUNTS = ("events", "exported", "archived", "purged", "waiting", "quarantined", "lost")


def report(home: Home = None, as_json: Json = False) -> None:
    """Summarize each instrument, problems and disk space.

    Counts events by state, lists events that are lost, changed or stuck, and estimates when each disk will be full.
    """
    with use_site(home) as (site, config):
        result = pipeline.report(site, stuck_after=config.stuck_after)
    if as_json:
        return print_json(result)
    columns = (Column(field, justify="right") for field in (*COUNTS, "last day"))
    table = Table("system", *columns)
    for one in result.systems:
        counts = (f"{getattr(one, field):,}" for field in COUNTS)
        table.add_row(one.system, *counts, format_size(one.bytes_last_day))
    out.print(table)
    for disk in result.disks:
        out.print(disk.text, style="red" if disk.alert else "")
    for alert in result.alerts:
        out.print(alert.text, style="red")
    return None
