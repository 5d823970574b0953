"""Commands to look: status, show, quarantine, settings, tables."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.table import Column, Table
from rich.text import Text

from plateway import keys, pipeline, settings, wire
from plateway.cli.shell import (
    NARROW,
    Experiment,
    Home,
    Json,
    Since,
    System,
    Until,
    app,
    out,
    print_json,
    print_text,
    size,
    utc,
    when,
)
from plateway.cli.verbs import opened, parsed, working
from plateway.errors import NotFound
from plateway.events import Ref
from plateway.local.project import import_from_project
from plateway.records import Quarantine

quarantine_app = typer.Typer(no_args_is_help=True, help="Announcements that could not be accepted.")
config_app = typer.Typer(no_args_is_help=True, help="Settings, and where each value comes from.")
db_app = typer.Typer(no_args_is_help=True, help="The catalogue's tables.")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(config_app, name="config")
app.add_typer(db_app, name="db")

COLOURS = {
    "exported": "green",
    "archived": "green",
    "purged": "blue",
    "quarantined": "red",
    "lost": "red",
    "changed": "red",
}


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
    with working(home) as (site, _):
        ledgers = site.catalog.ledgers(system=system, experiment=experiment, since=utc(since), until=utc(until))
        lines = [pipeline.status(site, ledger) for ledger in ledgers]
        waiting = site.catalog.quarantined()
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
    with working(home) as (site, _):
        uuid, revision = parsed(id)
        ref = site.catalog.newest(uuid) if revision is None else Ref(uuid, revision)
        told = pipeline.detail(site, site.catalog.ledger(ref))
    if as_json:
        return print_json(told)
    facts = Table(show_header=False, box=None)
    for field, value in told.model_dump(exclude={"history", "manifest", "ledger"}).items():
        if value not in (None, [], ""):
            facts.add_row(field, "; ".join(map(str, value)) if isinstance(value, list) else str(value))
    out.print(facts)
    history = Table("when", "what", Column("where", overflow="fold"), Column("why", overflow="fold"))
    for one in told.history:
        history.add_row(when(one.at) if one.at else "", one.what, one.where or "", one.why or "")
    out.print(history)
    tape = Table(Column("archive", overflow="fold"), Column("member", overflow="fold"), "job", "evidence", "reported")
    for location in told.ledger["archives"]:
        reported = when(datetime.fromisoformat(location["reported_at"]))
        tape.add_row(location["path"], location["member"], location["job_id"], location["evidence"], reported)
    if tape.row_count:
        out.print(tape)
    apart = keys.layout_of(told.key) == "files"
    columns = Column("image", overflow="fold"), "bytes", Column("SHA-256", overflow="fold")
    place = Column("object" if apart else "offset", overflow="fold")
    files = Table(*columns, place, title="objects of their own" if apart else "in the bundle")
    for member in told.manifest or ():
        files.add_row(member.name, f"{member.size:,}", member.sha256, member.key or str(member.offset))
    out.print(files if told.manifest else f"no manifest: {told.manifest_error or 'not exported yet'}")
    return None


@app.command()
def report(home: Home = None, as_json: Json = False) -> None:
    """Tell what came, went and waits for each instrument, what is stuck, and how long each disk will last."""
    with working(home) as (site, config):
        told = pipeline.report(site, stuck_after=config.stuck_after)
    if as_json:
        return print_json(told)
    fields = ("events", "exported", "archived", "purged", "waiting", "quarantined", "lost")
    table = Table("system", *(Column(field, justify="right") for field in fields), Column("last day", justify="right"))
    for one in told.systems:
        table.add_row(one.system, *(f"{getattr(one, field):,}" for field in fields), size(one.bytes_last_day))
    out.print(table)
    for disk in told.disks:
        out.print(disk.text, style="red" if disk.alert else "")
    for alert in told.alerts:
        out.print(alert.text, style="red")
    return None


@quarantine_app.command("list")
def quarantine_list(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were replayed.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List what could not be accepted, and why."""
    with working(home) as (site, _):
        entries = [entry(row) for row in site.catalog.quarantined(include_released=everything)]
    if as_json:
        return print_json(TypeAdapter(list[wire.QuarantineEntry]).dump_python(entries, mode="json"))
    table = Table("id", "system", "event file", "versions", "reason", "since")
    for one in entries:
        table.add_row(str(one.id), one.system, one.name, f"{one.versions:,}", one.reason, when(one.first_seen))
    out.print(table if entries else "The quarantine is empty.")
    return None


@quarantine_app.command("show")
def quarantine_show(id: int, home: Home = None, as_json: Json = False) -> None:  # noqa: A002
    """Show one of them with the bytes that were kept."""
    with working(home) as (site, _):
        rows = [row for row in site.catalog.quarantined(include_released=True) if row.id == id]
    if not rows:
        raise NotFound(f"quarantine has no entry {id}")
    if as_json:
        told = entry(rows[0]).model_dump(mode="json")
        return print_json({**told, "content": rows[0].content.decode("utf-8", "backslashreplace")})
    one = rows[0]
    out.print(f"{one.system}/{one.name}: {one.reason}")
    return print_text(one.content)


@quarantine_app.command("replay")
def quarantine_replay(
    ids: Annotated[list[int], typer.Argument(help="Entries, as `plateway quarantine list` numbers them.")],
    home: Home = None,
) -> None:
    """Try again: the next discovery reads the event file and looks at the images anew."""
    with working(home) as (site, _):
        for one in ids:
            row = site.catalog.replay(one, now=site.catalog.now())
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


@config_app.command("bucket")
def config_bucket(name: Annotated[str, typer.Argument(metavar="NAME", help="A Bucket block.")]) -> None:
    """Write a Bucket block of Prefect as a table for buckets.toml, keys included."""
    blocks = import_from_project("blocks.site")
    found = asyncio.run(blocks.load_buckets()).get(name)
    if found is None:
        raise NotFound(f"there is no Bucket block {name!r} in Prefect")
    instruments = asyncio.run(blocks.load_instruments())
    systems = tuple(sorted(one.system for one in instruments if one.bucket == name))
    print_text(settings.format_table(name, found.value(systems)).removesuffix("\n"))


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


def entry(row: Quarantine) -> wire.QuarantineEntry:
    facts = row.model_dump(exclude={"content", "revision"})
    return wire.QuarantineEntry(**facts, size=len(row.content))


def state(one: wire.EventStatus) -> Text:
    text = Text(one.state, style=COLOURS.get(one.state, ""))
    return text.append(" conflict", style="red") if one.conflict else text
