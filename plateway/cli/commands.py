"""The commands of Plateway: their order, their files, and ``main``, which runs them.

The file of a command is imported when the command runs or prints its own help. ``plateway --version``, ``plateway
--help`` and completion need only the table below, and start in a fraction of the time.
"""

from __future__ import annotations

import io
import logging
import re
import sys
from functools import cached_property
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from plateway import __version__
from plateway.errors import PlatewayError
from plateway.names import PlainFormatter, plain

# Panel: command: (file, help). The help is the first paragraph of the command's docstring.
PANELS = {
    "Run": {
        "demo": ("local", "Run the whole system with simulated instruments."),
        "up": ("local", "Run servers, worker and gateway for real instruments."),
        "simulate": ("simulate", "Run simulated instruments."),
        "bridge": ("bridge", "Exchange messages with other systems until Ctrl-C."),
    },
    "Move": {
        "discover": ("export", "Find new events, export them and verify the copies."),
        "export": ("export", "Export events to the bucket and verify the copies."),
        "verify": ("export", "Verify exported objects in the bucket."),
        "purge": ("purge", "Remove raw images that have a verified copy."),
        "archive": ("archive", "Write verified events to the archive, as tar files."),
        "expire": ("archive", "Delete bucket copies that have a verified tape copy."),
        "restore": ("restore", "Restore events from the bucket or the archive."),
        "cat": ("restore", "Write one image or object to standard output."),
    },
    "Look": {
        "find": ("find", "Find events by words, as the page of the gateway does."),
        "status": ("status", "List events with their state, the newest first."),
        "show": ("status", "Show everything that is recorded about one event."),
        "open": ("find", "Open the page of an event in a browser."),
        "report": ("report", "Summarize each instrument, problems and disk space."),
        "quarantine": ("quarantine", "List and replay events that were not accepted."),
    },
    "Give access": {
        "serve": ("serve", "Serve the HTTP API and the web pages until Ctrl-C."),
        "token": ("token", "Create, list and revoke access tokens."),
        "key": ("key", "Issue, list and disable access keys of the S3 endpoint."),
        "share": ("share", "Publish a location at the S3 endpoint, for reading."),
        "access": ("access", "Print the access log of the HTTP API."),
    },
    "Administer": {
        "doctor": ("doctor", "Check settings, S3, bench, catalogue and Prefect, and print remedies."),
        "init": ("init", "Write a commented file of settings."),
        "config": ("config", "Show settings and where their values come from, and import those of other systems."),
        "outbox": ("outbox", "List and replay messages to other systems."),
        "hold": ("hold", "Forbid to delete events, list such holds and release them."),
        "reconcile": ("reconcile", "Import archive manifests and compare bench, bucket, catalogue and tape."),
        "manifest": ("manifest", "List and import archive manifests."),
        "bucket": ("bucket", "Create, list, fill, copy, empty and remove buckets."),
        "bucket-policy": ("bucket_policy", "Check the lifecycle rules of the bucket."),
        "site": ("site", "Inspect and adopt the disks, buckets and archive."),
        "db": ("db", "Upgrade the tables of the catalogue."),
        "rebuild": ("rebuild", "Rebuild a lost catalogue from bucket and archive."),
        "relocate": ("relocate", "Record the new address of an endpoint."),
    },
}


FUNCTIONS = {"open": "open_event"}  # of commands whose names are Python's own
WIDEST = max(len(name) for commands in PANELS.values() for name in commands)


class LazyCommand(TyperCommand):
    """A command or a group of commands whose file is not imported yet."""

    def __init__(self, name: str, *, file: str, help: str, panel: str) -> None:  # noqa: A002  typer's name
        super().__init__(name, help=help, rich_help_panel=panel)
        self._file = file

    @cached_property
    def loaded(self) -> Any:
        """The command itself: the ``app`` of a file that has a group of commands, else the function of that name."""
        module = import_module(f"plateway.cli.{self._file}")
        if hasattr(module, "app"):
            command: Any = get_group(module.app)
            command.name = self.name
        else:
            single = typer.Typer(add_completion=False, rich_markup_mode="rich")
            single.command(self.name)(getattr(module, FUNCTIONS.get(str(self.name), str(self.name))))
            command = get_command(single)
        tidy_help(command)
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse arguments with the command itself, which then runs; its log records are written as settings say."""
        context = self.loaded.make_context(info_name, args, parent=parent, **extra)
        from plateway import log_records, settings  # noqa: PLC0415  neither help nor --version needs them

        log_records.configure_command(settings.load_logs())
        return context


def tidy_help(command: Any) -> None:
    """Join the lines of each paragraph of a command's help, for rich to wrap, and print no type after flags."""
    command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help or "")
    flags = [one for one in command.params if getattr(one, "is_flag", False)]
    for flag in [*flags, command.get_help_option(typer.Context(command))]:
        if flag is not None and flag.metavar is None:
            flag.metavar = ""
    for one in getattr(command, "commands", {}).values():
        tidy_help(one)


class LazyGroup(TyperGroup):
    """The commands of ``PANELS``. Error messages about arguments, which may be file names, are plain text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {
            name: LazyCommand(name, file=file, help=text, panel=panel)
            for panel, commands in PANELS.items()
            for name, (file, text) in commands.items()
        }

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the commands in their panels as typer does, but without its Markdown parser and highlighter."""
        from rich.console import Console  # noqa: PLC0415  the same holds for rich where no help is printed
        from rich.padding import Padding  # noqa: PLC0415
        from rich.panel import Panel  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        console = Console(highlight=False)

        def panel(title: str, rows: list[tuple[str, str]]) -> Panel:
            table = Table.grid(padding=(0, 2, 0, 0), expand=True)
            table.add_column(style="bold cyan", no_wrap=True, min_width=WIDEST)
            table.add_column(ratio=1)
            for row in rows:
                table.add_row(*row)
            return Panel(table, title=title, title_align="left", border_style="dim")

        console.print(
            Padding(f"[yellow]Usage:[/yellow] [bold]{ctx.command_path} [OPTIONS] COMMAND [ARGS]...[/bold]", 1)
        )
        console.print(Padding(self.help or "", (0, 1, 1, 1)))
        options = [record for one in self.get_params(ctx) if (record := one.get_help_record(ctx)) is not None]
        console.print(panel("Options", options))
        for title, commands in PANELS.items():
            console.print(panel(title, [(name, text) for name, (_, text) in commands.items()]))
        console.print(Padding(self.epilog or "", 1))

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str):
                error.message = plain(message)  # type: ignore[attr-defined]  # click's
            raise


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Move imaging events from lab instruments to S3 and tape, and remove raw images only after verifying copies.",
    epilog="Start with [bold]plateway demo[/bold]. Settings: [bold]plateway config show[/bold].",
)


def print_version(value: bool) -> None:
    """Print the version and exit, if the option was given."""
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run what was typed; print an error of Plateway as one line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # terminals without UTF-8
    logging.lastResort = logging.StreamHandler()
    logging.lastResort.setLevel(logging.WARNING)
    logging.lastResort.setFormatter(PlainFormatter("%(message)s"))
    try:
        app()
    except PlatewayError as error:
        from plateway.cli import console, exit_codes  # noqa: PLC0415  rich is not needed when all is well

        console.print_error(error)
        sys.exit(exit_codes.code_of_error(error))
