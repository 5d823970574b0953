"""What all commands share: the application, its consoles, options, and the way results are shown."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.text import Text
from typer.core import TyperGroup

from plateway import __version__
from plateway.errors import Damaged, Misconfigured, PlatewayError, Transient
from plateway.names import PlainFormatter, plain, shown


class Commands(TyperGroup):
    """The commands; what they say of wrong arguments, which may be names of files, is plain text."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str):
                error.message = plain(message)  # type: ignore[attr-defined]  # click's
            raise


class Writer(Console):
    """A console on which names from elsewhere are text and nothing else: no markup, no emoji, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Make text of a string: one line."""
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render anything; what rich itself writes to steer the terminal stays."""
        for one in super().render(renderable, options):
            yield one if one.control else one._replace(text=plain(one.text))


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Move imaging events from lab instruments to S3, know where every image is, and free the bench with proof.",
    epilog="Start with [bold]plateway demo[/bold]. Settings: [bold]plateway config show[/bold].",
)

PIPE = 180  # columns of a table that goes into a file or another program
NARROW = 120  # columns of a terminal that does not hold everything

out = Writer(width=None if sys.stdout.isatty() else PIPE)
err = Writer(stderr=True)

Home = Annotated[Path | None, typer.Option("--home", help="Where the embedded default keeps everything.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]…", help="Event ids, as `plateway status` shows them.")]
Since = Annotated[datetime | None, typer.Option(help="Imaged at or after this time (UTC unless it has a zone).")]
Until = Annotated[datetime | None, typer.Option(help="Imaged before this time.")]
System = Annotated[str | None, typer.Option(help="Only this instrument.")]
Experiment = Annotated[str | None, typer.Option(help="Only this experiment.")]


def run_app() -> None:
    """Run what was typed; an error of ours becomes one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 is no reason to fail
    logging.lastResort = log_handler("%(message)s", level=logging.WARNING)
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
    columns = (label(), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)


def label() -> TextColumn:
    """Make the column of a progress bar that says what goes on."""
    return TextColumn("{task.description}", markup=False)


def print_json(value: Any) -> None:
    """Write one document in ASCII, so that any name can be in it."""
    found = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")


def print_json_list(rows: Iterable[Any]) -> None:
    """Write one document row by row, for what may be long."""
    lead = "["
    for row in rows:
        sys.stdout.write(f"{lead}\n  {json.dumps(row, default=str)}")
        lead = ","
    sys.stdout.write("[]\n" if lead == "[" else "\n]\n")


def print_text(content: str | bytes) -> None:
    """Write text of several lines, plain; bytes that are not UTF-8 as escapes."""
    text = content.decode("utf-8", "backslashreplace") if isinstance(content, bytes) else content
    sys.stdout.write(plain(text) + "\n")


def log_handler(line: str, *, level: int) -> logging.Handler:
    """Make a handler that writes log records to standard error, plain."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter(line))
    handler.setLevel(level)
    return handler


def when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def size(count: int | None) -> str:
    return "" if count is None else decimal(count)


def pause(wait: timedelta) -> None:
    """Let images settle; never for long at a time."""
    time.sleep(min(max(wait.total_seconds(), 0.05), 10))
