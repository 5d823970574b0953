"""What all commands share: the application, its consoles, options, and the way results are shown."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

from plateway import __version__, pipeline, settings
from plateway.catalog import Catalog, Ref
from plateway.errors import Damaged, Misconfigured, PlatewayError, Transient
from plateway.pipeline import Line, Outcome

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Move imaging events from lab instruments to S3, know where every image is, and free the bench with proof.",
    epilog="Start with [bold]plateway demo[/bold]. Settings: [bold]plateway config show[/bold].",
)

PIPE = 180  # columns of a table that goes into a file or another program
NARROW = 120  # columns of a terminal that does not hold everything

# what instruments and people named is never markup
out = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else PIPE)
err = Console(markup=False, highlight=False, stderr=True)

Home = Annotated[Path | None, typer.Option("--home", help="Where the embedded default keeps everything.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]…", help="Event ids, as `plateway status` shows them.")]
Since = Annotated[datetime | None, typer.Option(help="Imaged at or after this time (UTC unless it has a zone).")]
Until = Annotated[datetime | None, typer.Option(help="Imaged before this time.")]
System = Annotated[str | None, typer.Option(help="Only this instrument.")]
Experiment = Annotated[str | None, typer.Option(help="Only this experiment.")]


def main() -> None:
    """Run the command line; an error of ours becomes one line and an exit code."""
    try:
        app()
    except PlatewayError as error:
        err.print(f"plateway: {error}", style="red", soft_wrap=True)
        sys.exit(exit_code(error))


def exit_code(error: PlatewayError) -> int:
    """Translate an error into the exit code that scripts act on."""
    if isinstance(error, Transient):
        return 5
    if isinstance(error, Damaged):
        return 4
    return 2 if isinstance(error, Misconfigured) else 1


def verdict(outcomes: Sequence[Outcome]) -> int:
    """Sum up many outcomes in one exit code."""
    results = Counter(one.result for one in outcomes)
    bad = results["failed"] + results["later"] + results["stopped"] + results["quarantined"]
    if results["damaged"]:
        return 4
    if not bad:
        return 0
    if bad < len(outcomes):
        return 3
    return 5 if results["later"] == bad else 1


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Say the version and stop.")] = False) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


@contextmanager
def opened(home: Path | None) -> Iterator[Catalog]:
    catalog = Catalog(settings.load(home=home).catalog_url)
    try:
        yield catalog
    finally:
        catalog.close()


@contextmanager
def working(home: Path | None) -> Iterator[tuple[Line, settings.Settings]]:
    """Open the line on an up-to-date catalogue."""
    config = settings.load(home=home)
    line = pipeline.open_line(config)
    try:
        line.catalog.upgrade()
        yield line, config
    finally:
        line.close()


def run(
    verb: Callable[[Line, Ref], Outcome], line: Line, refs: Sequence[Ref], *, config: settings.Settings
) -> list[Outcome]:
    """Run a verb over events behind a progress bar."""
    if not refs:
        return []
    what = getattr(verb, "func", verb).__name__
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        outcomes = pipeline.each(verb, line, refs, workers=config.export_workers)
        return list(progress.track(outcomes, total=len(refs), description=what))


def chosen(
    line: Line,
    ids: Sequence[str] | None,
    *,
    since: datetime | None,
    until: datetime | None,
    system: str | None,
    experiment: str | None,
) -> list[Ref] | None:
    """Name the events that were asked for; None when nothing was."""
    if ids:
        return [
            line.catalog.newest(uuid) if revision is None else Ref(uuid, revision)
            for uuid, revision in map(parsed, ids)
        ]
    if since or until or system or experiment:
        found = line.catalog.ledgers(system=system, experiment=experiment, since=utc(since), until=utc(until))
        return [one.ref for one in found if one.event.sealed_at is not None]
    return None


def parsed(text: str) -> tuple[UUID, int | None]:
    try:
        return Ref.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not an event id") from error


def utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def finish(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Show what came of it and end with the exit code that sums it up."""
    if as_json:
        print_json({"outcomes": [pipeline.told(one) for one in outcomes]})
    else:
        show_outcomes(outcomes)
    if code := verdict(outcomes):
        raise typer.Exit(code)


def show_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Draw what was done, and to what."""
    if not outcomes:
        return out.print("Nothing to do.")
    table = Table(Column("event", no_wrap=True), "system", "verb", "result", "size", "key / reason")
    for one in outcomes:
        event = str(one.ref) if one.ref else "-"
        table.add_row(event, one.system, one.verb, one.result, size(one.size), "; ".join(one.reasons) or one.key)
    return out.print(table)


@contextmanager
def measured(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes on a terminal; what it gives is told how many there are so far."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)


def print_json(value: Any) -> None:
    text = value.model_dump_json(indent=2) if isinstance(value, BaseModel) else json.dumps(value, indent=2, default=str)
    sys.stdout.write(text + "\n")


def when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def size(count: int | None) -> str:
    return "" if count is None else decimal(count)


def pause(wait: timedelta) -> None:
    """Let images settle; never for long at a time."""
    time.sleep(min(max(wait.total_seconds(), 0.05), 10))
