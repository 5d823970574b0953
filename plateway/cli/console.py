"""Output: the two consoles, tables, JSON documents and progress bars."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from plateway.log_records import JsonFormatter
from plateway.names import plain, shown

PIPE_WIDTH = 180  # columns of a table that is written to a file or another program


class PlainConsole(Console):
    """A console that prints names from elsewhere as text: no markup, no emoji, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to text of one line."""
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render anything; rich's own control sequences stay."""
        for one in super().render(renderable, options):
            yield one if one.control else one._replace(text=plain(one.text))


out = PlainConsole(width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = PlainConsole(stderr=True)


def print_error(error: Exception) -> None:
    """Print the error that ends a command: a red line, or a log record where logs are JSON."""
    if logging.lastResort is not None and isinstance(logging.lastResort.formatter, JsonFormatter):
        logging.getLogger("plateway").error("%s", error)
    else:
        err.print(f"plateway: {error}", style="red", soft_wrap=True)


@contextmanager
def byte_progress(description: str, *, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of bytes on a terminal; yields a function that takes the number of bytes so far."""
    columns = (description_column(), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.update(task, completed=done)


def description_column() -> TextColumn:
    """Return the column of a progress bar that names the work, as plain text."""
    return TextColumn("{task.description}", markup=False)


def print_table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table whose long cells are folded."""
    table = Table(*(Column(title, overflow="fold") for title in titles))
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_json(value: Any) -> None:
    """Print one JSON document in ASCII, which can hold any name."""
    plain_value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    sys.stdout.write(json.dumps(plain_value, indent=2, default=str) + "\n")


def print_json_list(rows: Iterable[Any]) -> None:
    """Print one JSON list row by row, without keeping the rows in memory."""
    lead = "["
    for row in rows:
        sys.stdout.write(f"{lead}\n  {json.dumps(row, default=str)}")
        lead = ","
    sys.stdout.write("[]\n" if lead == "[" else "\n]\n")


def print_json_rows(name: str, rows: Iterable[Any], **rest: Any) -> None:
    """Print one JSON object: a list of this name, row by row, without keeping the rows in memory, and the rest."""
    sys.stdout.write(f'{{"{name}": ')
    print_json_list(rows)
    sys.stdout.write("".join(f', "{key}": {json.dumps(value, default=str)}' for key, value in rest.items()) + "}\n")


def print_text(content: str | bytes) -> None:
    """Print text of several lines, without control characters; bytes that are not UTF-8 as escapes."""
    text = content.decode("utf-8", "backslashreplace") if isinstance(content, bytes) else content
    sys.stdout.write(plain(text) + "\n")


def format_time(moment: datetime) -> str:
    """Format a time in seconds, without its zone."""
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def format_size(count: int | None) -> str:
    """Format a number of bytes with a decimal unit; empty for None."""
    return "" if count is None else decimal(count)
