"""``plateway outbox``: list and replay messages to other systems."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.table import Column, Table

from plateway.catalog.outbox import Message
from plateway.cli.backlog import backlog_as_dict, format_backlog
from plateway.cli.common import use_site
from plateway.cli.console import format_time, out, print_json
from plateway.cli.options import TIMES, Home, Json, parse_time

Target = Annotated[str, typer.Argument(metavar="TARGET", help="redis, amqp, webhook or directory.")]
OfEvent = Annotated[UUID | None, typer.Option("--event", metavar="ID", help="Only messages about this event.")]

app = typer.Typer(no_args_is_help=True, help="List and replay messages to other systems.")


@app.command("list")
def list_messages(
    *,
    target: Annotated[str | None, typer.Option(help="Only messages to this target.")] = None,
    event: OfEvent = None,
    pending: Annotated[bool, typer.Option("--pending", help="Only messages that are not delivered.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="List at most so many messages, the newest.")] = 50,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the targets and the newest messages. Delivered messages are kept for 7 days."""
    with use_site(home, lenient=True) as (site, _):
        now, backlogs = site.catalog.now(), site.catalog.backlogs()
        found = site.catalog.outbox_messages(target=target, event=event, pending=pending, limit=limit)
    if as_json:
        rows = [message_as_dict(one) for one in found]
        return print_json({"targets": [backlog_as_dict(one, now) for one in backlogs], "messages": rows})
    for one in backlogs:
        out.print(format_backlog(one, now), soft_wrap=True)
    if not backlogs:
        return out.print("No targets: set one of PLATEWAY_OUTBOX_… and run plateway bridge out.", soft_wrap=True)
    table = Table(Column("message", no_wrap=True), "target", "fact", Column("event", no_wrap=True), "at", "delivered")
    for message in found:
        delivered = format_time(message.delivered_at) if message.delivered_at else "pending"
        row = (str(message.id), message.target, message.fact, str(message.ref), format_time(message.at), delivered)
        table.add_row(*row)
    return out.print(table)


@app.command()
def replay(
    target: Target,
    *,
    since: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help=f"Only facts recorded at or after this time: {TIMES}."),
    ] = None,
    event: OfEvent = None,
    message: Annotated[UUID | None, typer.Option("--message", metavar="ID", help="Only this message.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Send delivered messages again, with the same ids.

    Without options, all messages that are kept.
    """
    with use_site(home, lenient=True) as (site, _):
        count = site.catalog.replay_messages(target, since=since, event=event, message=message)
    if as_json:
        return print_json({"replayed": count})
    return out.print(f"{count:,} messages to {target} will be sent again.", soft_wrap=True)


@app.command()
def forget(target: Target, home: Home = None) -> None:
    """Write no more messages for a target, and delete those that are pending."""
    with use_site(home, lenient=True) as (site, _):
        site.catalog.forget_target(target)
    out.print(f"Target {target!r} forgotten.", soft_wrap=True)


def message_as_dict(message: Message) -> dict[str, Any]:
    """Convert a message to plain values for JSON."""
    return {
        "id": str(message.id),
        "sequence": message.sequence,
        "target": message.target,
        "fact": message.fact.value,
        "event": str(message.ref),
        "at": message.at.isoformat(),
        "details": message.details,
        "delivered_at": message.delivered_at and message.delivered_at.isoformat(),
    }
