"""``plateway find`` and ``open``: find events by words, and open them in a browser."""

from __future__ import annotations

import sys
import webbrowser
from typing import Annotated
from urllib.parse import quote

import typer

from plateway import pipeline, queries
from plateway.cli.common import find_ref, use_site
from plateway.cli.console import err, out, print_json_rows
from plateway.cli.exit_codes import ExitCode
from plateway.cli.options import Home, Json, Wide
from plateway.cli.status import SHOWN, print_events


def find(
    words: Annotated[
        list[str], typer.Argument(metavar="WORDS", help='What to find: "plate 12 last tuesday", an id, an experiment.')
    ],
    *,
    limit: Annotated[int, typer.Option(min=1, help="List at most so many events.")] = SHOWN,
    oldest: Annotated[bool, typer.Option("--oldest", help="List the oldest first, not the newest.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Print ids only, one per line, for other commands.")] = False,
    wide: Wide = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Find events by words, as the page of the gateway does.

    Words for a plate, a day or a range of days, an instrument, a kind and a state count as such; the rest is the
    beginning of an id or an experiment. Exits with 1 if nothing is found.
    """
    with use_site(home, lenient=True) as (site, _):
        now = site.catalog.now()
        wanted = queries.parse_text(" ".join(words), today=now.date(), systems=site.catalog.systems())
        found = site.catalog.search(**wanted.filters, newest=not oldest, limit=limit)
        total = site.catalog.count_matching(**wanted.filters, most=queries.COUNTED + 1)
        if ids:
            for one in found:
                sys.stdout.write(f"{one.ref}\n")
        else:
            events = (pipeline.status(site, one, now=now) for one in found)
            if as_json:
                print_json_rows("events", (one.model_dump(mode="json") for one in events), total=total)
            else:
                print_events(events, wide=wide)
    if not as_json and not ids:
        fields = ", ".join(f"{name} {value}" for name, value in wanted.fields.items())
        out.print(f"{queries.format_total(total)}: {fields}" + (f"; {limit} are listed" if total > limit else ""))
    if not found:
        raise typer.Exit(ExitCode.FAILED)


def open_event(
    id: Annotated[str, typer.Argument(metavar="ID", help="Event id, or its first digits.")],  # noqa: A002
    *,
    show: Annotated[bool, typer.Option("--print", help="Print the address, and open no browser.")] = False,
    home: Home = None,
) -> None:
    """Open the page of an event in a browser.

    Prints the address as well.
    """
    with use_site(home, lenient=True) as (site, settings):
        address = f"{settings.gateway_link or settings.gateway}/events/{quote(str(find_ref(site, id)))}"
    sys.stdout.write(f"{address}\n")
    if not show and not webbrowser.open(address):
        err.print("no browser was found: open the address above in one")
