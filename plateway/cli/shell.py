"""What all commands share: the application, its consoles, options, and the way results are shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TransferSpeedColumn,
)

from plateway import __version__
from plateway.errors import Damaged, Misconfigured, PlatewayError, Transient

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


def run_app() -> None:
    """Run what was typed; an error of ours becomes one line and an exit code."""
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


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Say the version and stop.")] = False) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


def utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


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
