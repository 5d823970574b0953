"""Run a verb over events, and print the outcomes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Column, Table

from plateway import pipeline, settings
from plateway.cli.console import description_column, err, format_size, out, print_json
from plateway.cli.exit_codes import code_of_outcomes
from plateway.events import Ref
from plateway.pipeline import Outcome, Site

PAGE = 500  # outcomes in one table


def run_verb(
    verb: Callable[[Site, Ref], Outcome], site: Site, refs: Sequence[Ref], *, config: settings.Settings
) -> list[Outcome]:
    """Run a verb over events in several threads, behind a progress bar."""
    if not refs:
        return []
    description = getattr(verb, "func", verb).__name__
    columns = (description_column(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        outcomes = pipeline.each(verb, site, refs, workers=config.export_workers)
        return list(progress.track(outcomes, total=len(refs), description=description))


def report_outcomes(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Print outcomes, and exit with the code that summarizes them."""
    if as_json:
        print_json({"outcomes": [pipeline.as_dict(one) for one in outcomes]})
    elif outcomes:
        print_outcomes(outcomes)
    else:
        out.print("Nothing to do.")
    if code := code_of_outcomes(outcomes):
        raise typer.Exit(code)


@contextmanager
def stream_outcomes(*, as_json: bool) -> Iterator[Callable[[Outcome], None]]:
    """Print outcomes as they come, from any thread, and exit with the code that summarizes them; none is kept.

    Tables are of outcomes that came within a second.
    """
    turn, printed = Lock(), time.monotonic()
    some: list[Outcome] = []
    kinds: dict[str, Outcome] = {}  # one of each result, for the exit code
    lead = '{"outcomes": ['

    def flush() -> None:
        nonlocal lead, printed
        for one in some if as_json else ():
            sys.stdout.write(f"{lead}\n  {json.dumps(pipeline.as_dict(one), default=str)}")
            lead = ","
        if some and not as_json:
            print_outcomes(some)
        some.clear()
        printed = time.monotonic()

    def take(one: Outcome) -> None:
        with turn:
            kinds.setdefault(one.result, one)
            some.append(one)
            if len(some) == PAGE or time.monotonic() > printed + 1:
                flush()

    yield take
    flush()
    if as_json:
        sys.stdout.write("\n]}\n" if kinds else f"{lead}]}}\n")
    elif not kinds:
        out.print("Nothing to do.")
    if code := code_of_outcomes(list(kinds.values())):
        raise typer.Exit(code)


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print a table of outcomes."""
    table = Table(Column("event", no_wrap=True), "system", "verb", "result", "size", "key / reason")
    for one in outcomes:
        event = str(one.ref) if one.ref else "-"
        table.add_row(event, one.system, one.verb, one.result, format_size(one.size), "; ".join(one.reasons) or one.key)
    out.print(table)
