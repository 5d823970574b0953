"""The command line: parse, call a verb, show what came of it.

Listings take ``--json`` (one document on standard output; progress and messages go to standard error).
Exit codes: 0 done, 1 failed, 2 usage, 3 partly failed, 4 verification found damage, 5 try again later.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import BaseModel, TypeAdapter
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from plateway import __version__, pipeline, settings, wire
from plateway.catalog import Catalog, Ref
from plateway.errors import Damaged, Misconfigured, NotFound, PlatewayError, Transient
from plateway.pipeline import Line, Outcome
from plateway.records import Quarantine

ROUNDS = 1000  # of one `discover`: more than any bench needs, and an end

FAULTS = (  # of the simulator, which loads only when it is used
    "bad-path",
    "duplicate",
    "event-before-images",
    "extra-image",
    "garbage-json",
    "half-written-json",
    "late-mount",
    "missing-image",
    "none",
    "other-content",
    "slow-writer",
    "symlink",
)
COLOURS = {
    "exported": "green",
    "archived": "green",
    "purged": "blue",
    "quarantined": "red",
    "lost": "red",
    "changed": "red",
}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Move imaging events from lab instruments to S3, know where every image is, and free the bench with proof.",
    epilog="Start with [bold]plateway demo[/bold]. Settings: [bold]plateway config show[/bold].",
)
quarantine_app = typer.Typer(no_args_is_help=True, help="Announcements that could not be accepted.")
config_app = typer.Typer(no_args_is_help=True, help="Settings, and where each value comes from.")
db_app = typer.Typer(no_args_is_help=True, help="The catalogue's tables.")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(config_app, name="config")
app.add_typer(db_app, name="db")

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


# ------------------------------------------------------------------------------------------------- the whole thing


@app.command()
def demo(
    *,
    home: Home = None,
    events: Annotated[int, typer.Option(min=2, help="How many events the two instruments acquire.")] = 6,
    once: Annotated[bool, typer.Option("--once", help="End by itself; exit 0 only if all went as it should.")] = False,
    as_json: Json = False,
) -> None:
    """Show the whole line at work: servers, two simulated instruments, export, verification and a purge with proof."""
    from deployments import demo as theatre  # noqa: PLC0415  half a second that other commands need not wait

    raise typer.Exit(theatre.run(settings.load(home=home), events=events, once=once, as_json=as_json))


@app.command()
def up(home: Home = None) -> None:
    """Bring up Prefect, S3 (unless an endpoint is configured), catalogue, worker and file sensor for a real bench."""
    from deployments import bringup  # noqa: PLC0415  the same

    raise typer.Exit(bringup.up(settings.load(home=home), out))


@app.command()
def simulate(
    *,
    home: Home = None,
    system: Annotated[
        list[str] | None, typer.Option(help="Instruments that acquire; default: prince and aretha.")
    ] = None,
    events: Annotated[int | None, typer.Option(min=1, help="Stop after so many events; default: go on.")] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Events per second, of all instruments together.")] = 0.5,
    images: Annotated[int, typer.Option(min=1, help="Images per event.")] = 6,
    size: Annotated[int, typer.Option(min=16, help="Pixels along either side of an image.")] = 512,
    fault: Annotated[list[str] | None, typer.Option(help=f"The first events misbehave: {', '.join(FAULTS)}.")] = None,
    as_json: Json = False,
) -> None:
    """Let instruments that are not there acquire plates on the bench; every other one speaks the older dialect."""
    from plateway import simulator  # noqa: PLC0415  the same: it draws with numpy

    unknown = sorted(set(fault or ()) - set(simulator.FAULTS))
    if unknown:
        raise typer.BadParameter(f"no such fault: {', '.join(unknown)}", param_hint="--fault")
    bench = settings.load(home=home).root
    instruments = [
        simulator.Simulated(
            system=name,
            dialect="imaging event" if number % 2 else "timestep",
            root=bench / name,
            images=images,
            size=size,
            seed=int(datetime.now(UTC).timestamp()),
        )
        for number, name in enumerate(system or ["prince", "aretha"])
    ]
    announced = []
    for one in simulator.run(instruments, rate=rate, count=events, faults=fault or ()):
        announced.append({"id": str(one.id), "system": one.system, "file": one.path.name})
        err.print(f"{one.system} announced {one.id}")
    if as_json:
        print_json({"events": announced})


# ------------------------------------------------------------------------------------------------------- the verbs


@app.command()
def discover(home: Home = None, as_json: Json = False) -> None:
    """Find what was announced, wait until it has settled, export and verify it; end when nothing more is due."""
    with working(home) as (line, config):
        outcomes: list[Outcome] = []
        troubled: tuple[Outcome, ...] = ()
        for _ in range(ROUNDS):
            found = pipeline.register(line)
            outcomes += found.quarantined
            troubled = found.troubled
            done = export_due(line, config)
            outcomes += done
            if done or found.new:
                continue
            if found.settles_in is None:
                break
            pause(found.settles_in)
    finish([*outcomes, *troubled], as_json=as_json)


@app.command()
def export(
    *,
    ids: Ids = None,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    force: Annotated[bool, typer.Option("--force", help="Send again, even what is verified.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Export events and verify what arrived: the ones named or selected, or without either all that are due."""
    with working(home) as (line, config):
        refs = chosen(line, ids, since=since, until=until, system=system, experiment=experiment)
        outcomes = export_due(line, config) if refs is None else export_all(line, config, refs, force=force)
    finish(outcomes, as_json=as_json)


@app.command()
def verify(
    *,
    ids: Ids = None,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    read_back: Annotated[bool, typer.Option("--read-back", help="Read every byte and compare every SHA-256.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Look at what is in the bucket; damage ends with exit code 4. Without ids: what was not looked at yet."""
    with working(home) as (line, config):
        refs = chosen(line, ids, since=since, until=until, system=system, experiment=experiment)
        if refs is None:
            refs = (
                [one.ref for one in line.catalog.ledgers() if one.export] if read_back else pipeline.due(line, "verify")
            )
        outcomes = run(partial(pipeline.verify, read_back=read_back), line, refs, config=config)
    finish(outcomes, as_json=as_json)


@app.command()
def purge(
    *,
    system: Annotated[list[str] | None, typer.Option(help="Only these instruments.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge and prove, move nothing.")] = False,
    fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Allow a batch that removes up to this part of a system's events."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Free the bench of what is proven to be safe in the bucket; everything refused says why.

    Only systems in PLATEWAY_PURGE_SYSTEMS are touched at all. Every file is compared with the copy; then the images are
    moved into a trash folder, and removed after PLATEWAY_TRASH_GRACE if the copy and they are still the same. Uploads
    that dead exports left open are aborted.
    """
    with working(home) as (line, _):
        outcomes = pipeline.purge(line, systems=system, dry_run=dry_run, fraction=fraction)
        outcomes += [] if dry_run else pipeline.sweep(line)
    finish(outcomes, as_json=as_json)


# ------------------------------------------------------------------------------------------------------- to look at


@app.command()
def status(
    *,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show every event with its state, and why it waits."""
    with working(home) as (line, _):
        ledgers = line.catalog.ledgers(system=system, experiment=experiment, since=utc(since), until=utc(until))
        lines = [pipeline.status(line, ledger) for ledger in ledgers]
        waiting = line.catalog.quarantined()
    counts = Counter(one.state for one in lines)
    told = wire.Status(events=lines, counts=dict(counts), quarantine=len(waiting))
    if as_json:
        return print_json(told)
    table = Table(Column("event", no_wrap=True), "system", "state", "size", Column("key / reason", overflow="fold"))
    if out.width >= NARROW:
        table.add_column("imaged", no_wrap=True)
    for one in lines:
        where = "; ".join(one.reasons) or one.key
        cells: list[str | Text] = [
            str(Ref(one.id, one.revision)),
            one.system,
            state(one),
            size(one.size),
            where,
            when(one.timestamp),
        ]
        table.add_row(*cells[: len(table.columns)])
    out.print(table)
    summary = ", ".join(f"{number} {what}" for what, number in sorted(counts.items())) or "no events yet"
    out.print(summary + (f"; {len(waiting)} in quarantine (plateway quarantine list)" if waiting else ""))
    return None


@app.command()
def show(id: Annotated[str, typer.Argument(help="An event id.")], home: Home = None, as_json: Json = False) -> None:  # noqa: A002
    """Show all that is known of one event: where every image is, by what evidence, and what happened when."""
    with working(home) as (line, _):
        uuid, revision = parsed(id)
        ref = line.catalog.newest(uuid) if revision is None else Ref(uuid, revision)
        told = pipeline.detail(line, line.catalog.ledger(ref))
    if as_json:
        return print_json(told)
    facts = Table(show_header=False, box=None)
    for field, value in told.model_dump(exclude={"manifest", "ledger"}).items():
        if value not in (None, [], ""):
            facts.add_row(field, "; ".join(map(str, value)) if isinstance(value, list) else str(value))
    out.print(facts)
    files = Table(
        Column("image", overflow="fold"), "bytes", Column("SHA-256", overflow="fold"), "offset", title="in the bundle"
    )
    for member in told.manifest or ():
        files.add_row(member.name, f"{member.size:,}", member.sha256, str(member.offset))
    out.print(files if told.manifest else f"no manifest: {told.manifest_error or 'not exported yet'}")
    return None


@quarantine_app.command("list")
def quarantine_list(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were replayed.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List what could not be accepted, and why."""
    with working(home) as (line, _):
        entries = [entry(row) for row in line.catalog.quarantined(include_released=everything)]
    if as_json:
        return print_json(TypeAdapter(list[wire.QuarantineEntry]).dump_python(entries, mode="json"))
    table = Table("id", "system", "event file", "reason", "since")
    for one in entries:
        table.add_row(str(one.id), one.system, one.name, one.reason, when(one.first_seen))
    out.print(table if entries else "The quarantine is empty.")
    return None


@quarantine_app.command("show")
def quarantine_show(id: int, home: Home = None, as_json: Json = False) -> None:  # noqa: A002
    """Show one of them with the bytes that were kept."""
    with working(home) as (line, _):
        rows = [row for row in line.catalog.quarantined(include_released=True) if row.id == id]
    if not rows:
        raise NotFound(f"quarantine has no entry {id}")
    if as_json:
        told = entry(rows[0]).model_dump(mode="json")
        return print_json({**told, "content": rows[0].content.decode("utf-8", "backslashreplace")})
    one = rows[0]
    out.print(f"{one.system}/{one.name}: {one.reason}")
    sys.stdout.buffer.write(one.content + b"\n")
    return None


@quarantine_app.command("replay")
def quarantine_replay(
    ids: Annotated[list[int], typer.Argument(help="Entries, as `plateway quarantine list` numbers them.")],
    home: Home = None,
) -> None:
    """Try again: the next discovery reads the event file and looks at the images anew."""
    with working(home) as (line, _):
        for one in ids:
            row = line.catalog.replay(one, now=line.catalog.now())
            out.print(f"{row.system}/{row.name} is looked at again")


@config_app.command("show")
def config_show(home: Home = None, as_json: Json = False) -> None:
    """Show every setting, its value and where that came from; secrets are masked."""
    rows = settings.explain(home=home)
    if as_json:
        return print_json(rows)
    table = Table("setting", "value", "from", "meaning")
    for row in rows:
        table.add_row(row["setting"], str(row["value"]), row["source"], row["meaning"])
    out.print(table)
    return None


@db_app.command("upgrade")
def db_upgrade(home: Home = None) -> None:
    """Bring the tables to what this version needs."""
    with opened(home) as catalog:
        catalog.upgrade()
        out.print(f"catalogue at {catalog.current()}")


@db_app.command("current")
def db_current(home: Home = None, as_json: Json = False) -> None:
    """Show which revision the tables have, and which one this version needs."""
    with opened(home) as catalog:
        current, head = catalog.current(), catalog.head()
    if as_json:
        return print_json({"current": current, "head": head})
    out.print(f"{current or 'no tables yet'} (this version needs {head})")
    return None


# ---------------------------------------------------------------------------------------------------------- helpers


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


def export_due(line: Line, config: settings.Settings) -> list[Outcome]:
    """Export what is due, then verify whatever lacks evidence."""
    exported = run(pipeline.export, line, pipeline.due(line, "export"), config=config)
    return exported + run(pipeline.verify, line, pipeline.due(line, "verify"), config=config)


def export_all(line: Line, config: settings.Settings, refs: Sequence[Ref], *, force: bool) -> list[Outcome]:
    exported = run(partial(pipeline.export, force=force), line, refs, config=config)
    sent = [one.ref for one in exported if one.ref is not None and one.result == "exported"]
    return exported + run(pipeline.verify, line, sent, config=config)


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
    elif outcomes:
        table = Table(Column("event", no_wrap=True), "system", "verb", "result", "size", "key / reason")
        for one in outcomes:
            event = str(one.ref) if one.ref else "-"
            table.add_row(event, one.system, one.verb, one.result, size(one.size), "; ".join(one.reasons) or one.key)
        out.print(table)
    else:
        out.print("Nothing to do.")
    if code := verdict(outcomes):
        raise typer.Exit(code)


def print_json(value: Any) -> None:
    text = value.model_dump_json(indent=2) if isinstance(value, BaseModel) else json.dumps(value, indent=2, default=str)
    sys.stdout.write(text + "\n")


def entry(row: Quarantine) -> wire.QuarantineEntry:
    facts = row.model_dump(exclude={"content", "revision"})
    return wire.QuarantineEntry(**facts, size=len(row.content))


def when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def size(count: int | None) -> str:
    return "" if count is None else decimal(count)


def state(one: wire.EventStatus) -> Text:
    text = Text(one.state, style=COLOURS.get(one.state, ""))
    return text.append(" conflict", style="red") if one.conflict else text


def pause(wait: timedelta) -> None:
    """Let images settle; never for long at a time."""
    time.sleep(min(max(wait.total_seconds(), 0.05), 10))
