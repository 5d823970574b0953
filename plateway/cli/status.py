"""``plateway status`` and ``show``: what is recorded about events."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from plateway import keys, pipeline, wire
from plateway.cli.backlog import backlog_as_dict, format_backlog
from plateway.cli.common import find_ref, use_site
from plateway.cli.console import format_size, format_time, out, print_json, print_json_rows
from plateway.cli.options import Experiment, Home, Json, Since, System, Until, Wide
from plateway.events import Ref
from plateway.pipeline import Site

SHOWN = 50  # events that are listed unless more are asked for
PAGE = 500  # events in one table
WHOLE_WIDTH = 120  # columns of a terminal with room for whole ids and keys, and the time of imaging
SHORT = 8  # digits of an id in a narrow table
KEY_WIDTH = 36  # characters of a key in a narrow table
WIDEST = 10_000  # columns of a wide table
REFRESH = 2.0  # seconds between two tables of --watch
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
    ids: Annotated[bool, typer.Option("--ids", help="Print ids only, one per line, for other commands.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help=f"Show the newest events again every {REFRESH:g} s, until Ctrl-C.")
    ] = False,
    wide: Wide = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List events with their state, the newest first.

    An event that waits is listed with the reason. The counts below are of all events, or of one instrument's.
    `plateway status --state waiting --ids | xargs plateway export` passes ids on.
    """
    if watch and (as_json or ids):
        raise typer.BadParameter("--watch shows a table: it goes with neither --json nor --ids")
    asked: dict[str, Any] = {"system": system, "experiment": experiment, "since": since, "until": until, "state": state}
    with use_site(home, lenient=True) as (site, _):
        if ids:
            for one in site.catalog.each_newest(**asked, limit=limit):
                sys.stdout.write(f"{one.ref}\n")
        elif as_json:
            print_status_json(site, asked, limit=limit)
        elif watch:
            watch_status(site, asked, limit=limit, wide=wide)
        else:
            for shown in build_status(site, asked, limit=SHOWN if limit is None else limit, wide=wide):
                out.print(shown, soft_wrap=not isinstance(shown, Table))


def print_status_json(site: Site, asked: Mapping[str, Any], *, limit: int | None) -> None:
    """Print events, counts and backlogs as one JSON document, event by event."""
    now = site.catalog.now()
    found = site.catalog.each_newest(**asked, limit=limit)
    print_json_rows(
        "events",
        (pipeline.status(site, ledger, now=now).model_dump(mode="json") for ledger in found),
        counts=site.catalog.counts(now, system=asked["system"]),
        quarantine=site.catalog.quarantine_count(),
        outbox=[backlog_as_dict(one, now) for one in site.catalog.backlogs()],
    )


def watch_status(site: Site, asked: Mapping[str, Any], *, limit: int | None, wide: bool) -> None:
    """Show the newest events, as many as the terminal has room for, again and again until Ctrl-C."""
    with Live(console=out, screen=out.is_terminal, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            room = max(1, out.height - 6) if out.is_terminal else SHOWN
            shown = build_status(site, asked, limit=min(room, limit or room), wide=wide, fold=False)
            live.update(Group(*shown), refresh=True)
            time.sleep(REFRESH)


def build_status(
    site: Site, asked: Mapping[str, Any], *, limit: int, wide: bool, fold: bool = True
) -> Iterator[Table | Text | str]:
    """Yield tables of events, each as soon as it is full, then the backlogs and the counts."""
    now = site.catalog.now()
    found = site.catalog.each_newest(**asked, limit=limit)
    yield from build_tables((pipeline.status(site, one, now=now) for one in found), wide=wide, fold=fold)
    yield from (format_backlog(one, now) for one in site.catalog.backlogs())
    counts = site.catalog.counts(now, system=asked["system"])
    summary = ", ".join(f"{number:,} {name}" for name, number in counts.items()) or "no events yet"
    quarantined = site.catalog.quarantine_count()
    yield summary + (f"; {quarantined} in quarantine (plateway quarantine list)" if quarantined else "")


def print_events(events: Iterable[wire.EventStatus], *, wide: bool) -> None:
    """Print tables of events, each as soon as it is full."""
    for table in build_tables(events, wide=wide):
        out.print(table)


def build_tables(events: Iterable[wire.EventStatus], *, wide: bool, fold: bool = True) -> Iterator[Table]:
    """Yield tables of events. Narrow ones have short ids, and keys whose middle is cut; wide ones are never cut."""
    if wide:
        out.size = WIDEST, out.height  # what is printed is as wide as its content
    rest, whole = iter(events), out.width >= WHOLE_WIDTH
    while some := list(itertools.islice(rest, PAGE)):
        table = Table(
            Column("event", no_wrap=True),
            Column("system", overflow="ellipsis", no_wrap=True),
            Column("state", no_wrap=True),
            Column("size", no_wrap=True),
            Column("key / reason", overflow="fold", no_wrap=wide or not fold),
            padding=(0, 1) if whole else (0, 1, 0, 0),
            box=box.HEAVY_HEAD if whole else box.SIMPLE_HEAD,
        )
        if whole:
            table.add_column("imaged", no_wrap=True)
        for one in some:
            ref = str(Ref(one.id, one.revision))
            cells: list[str | Text] = [
                ref if whole else shorten_ref(ref),
                one.system,
                format_state(one),
                format_size(one.size),
                "; ".join(one.reasons) or (one.key if whole else cut_middle(one.key, KEY_WIDTH)),
                format_time(one.timestamp),
            ]
            table.add_row(*cells[: len(table.columns)])
        yield table


def shorten_ref(ref: str) -> str:
    """Return the first digits of an id, with its revision; commands accept them."""
    digits, revision = ref[:36], ref[36:]
    return digits[:SHORT] + revision


def cut_middle(text: str, width: int) -> str:
    """Replace the middle of a text by an ellipsis if it is longer."""
    if len(text) <= width:
        return text
    return f"{text[: (width - 1) // 2]}…{text[-(width // 2) :]}"


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
