"""``plateway status`` and ``show``: what is recorded about events."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

import typer
from rich.table import Column, Table
from rich.text import Text

from plateway import keys, pipeline, wire
from plateway.cli.backlog import backlog_as_dict, format_backlog
from plateway.cli.common import find_ref, use_site
from plateway.cli.console import format_size, format_time, out, print_json, print_json_rows
from plateway.cli.options import Experiment, Home, Json, Since, System, Until
from plateway.events import Ref

SHOWN = 50  # events that are listed unless more are asked for
PAGE = 500  # events in one table
TIME_WIDTH = 120  # columns of a terminal with room for the time of imaging
COLOURS = {
    "exported": "green",
    "archived": "green",
    "purged": "blue",
    "quarantined": "red",
    "lost": "red",
    "changed": "red",
}

State = Literal["waiting", "ready", "exporting", "exported", "archived", "purged", "quarantined", "lost", "changed"]


def status(
    *,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    state: Annotated[State | None, typer.Option(help="Only events in this state.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help=f"List at most so many events, the newest; default: {SHOWN}, with --json all."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List events with their state, the newest first.

    An event that waits is listed with the reason. The counts below are of all events, or of one instrument's.
    """
    with use_site(home, lenient=True) as (site, _):
        found = site.catalog.each_newest(
            system=system,
            experiment=experiment,
            since=since,
            until=until,
            state=state,
            limit=limit if limit is not None or as_json else SHOWN,
        )
        now = site.catalog.now()
        events = (pipeline.status(site, ledger, now=now) for ledger in found)
        counts = site.catalog.counts(now, system=system)
        quarantined = site.catalog.quarantine_count()
        backlogs = site.catalog.backlogs()
        if as_json:
            rows = (one.model_dump(mode="json") for one in events)
            return print_json_rows(
                "events",
                rows,
                counts=counts,
                quarantine=quarantined,
                outbox=[backlog_as_dict(one, now) for one in backlogs],
            )
        print_events(events)
    summary = ", ".join(f"{number:,} {name}" for name, number in counts.items()) or "no events yet"
    for one in backlogs:
        out.print(format_backlog(one, now), soft_wrap=True)
    return out.print(summary + (f"; {quarantined} in quarantine (plateway quarantine list)" if quarantined else ""))


def print_events(events: Iterable[wire.EventStatus]) -> None:
    """Print tables of events, each as soon as it is full."""
    rest = iter(events)
    while some := list(itertools.islice(rest, PAGE)):
        table = Table(Column("event", no_wrap=True), "system", "state", "size", Column("key / reason", overflow="fold"))
        if out.width >= TIME_WIDTH:
            table.add_column("imaged", no_wrap=True)
        for one in some:
            cells: list[str | Text] = [
                str(Ref(one.id, one.revision)),
                one.system,
                format_state(one),
                format_size(one.size),
                "; ".join(one.reasons) or one.key,
                format_time(one.timestamp),
            ]
            table.add_row(*cells[: len(table.columns)])
        out.print(table)


def format_state(event: wire.EventStatus) -> Text:
    """Format the state of an event in its colour."""
    text = Text(event.state, style=COLOURS.get(event.state, ""))
    return text.append(" conflict", style="red") if event.conflict else text


def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="Event id.")],  # noqa: A002
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show everything that is recorded about one event.

    Its images and where each one is, its copies and the evidence for them, and its history.
    """
    with use_site(home, lenient=True) as (site, _):
        event = pipeline.detail(site, site.catalog.ledger(find_ref(site, id)))
    if as_json:
        return print_json(event)
    facts = Table(show_header=False, box=None)
    for field, value in event.model_dump(exclude={"history", "manifest", "ledger"}).items():
        if value not in (None, [], ""):
            facts.add_row(field, "; ".join(map(str, value)) if isinstance(value, list) else str(value))
    out.print(facts)
    history = Table("when", "what", Column("where", overflow="fold"), Column("why", overflow="fold"))
    for one in event.history:
        history.add_row(format_time(one.at) if one.at else "", one.what, one.where or "", one.why or "")
    out.print(history)
    tape = Table(Column("archive", overflow="fold"), Column("member", overflow="fold"), "job", "evidence", "reported")
    for location in event.ledger["archives"]:
        reported = format_time(datetime.fromisoformat(location["reported_at"]))
        tape.add_row(location["path"], location["member"], location["job_id"], location["evidence"], reported)
    if tape.row_count:
        out.print(tape)
    return print_files(event)


def print_files(event: wire.EventDetail) -> None:
    """Print the files of an event: where each is in the bundle, or its own object."""
    if not event.manifest:
        return out.print(f"no manifest: {event.manifest_error or 'not exported yet'}")
    per_file = keys.layout_of(event.key) == "files"
    table = Table(
        Column("image", overflow="fold"),
        "bytes",
        Column("SHA-256", overflow="fold"),
        Column("object" if per_file else "offset", overflow="fold"),
        title="one object per file" if per_file else "in the bundle",
    )
    for one in event.manifest:
        table.add_row(one.name, f"{one.size:,}", one.sha256, one.key or str(one.offset))
    return out.print(table)
