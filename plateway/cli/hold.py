"""``plateway hold``: forbid to delete, list what is forbidden, and allow it again."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from plateway.cli.common import find_ref, use_site
from plateway.cli.console import format_time, out, print_json
from plateway.cli.exit_codes import ExitCode
from plateway.cli.options import Home, Json, parse_moment
from plateway.pipeline import hold, release
from plateway.pipeline.hold import Held
from plateway.records import LegalHold

Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it stays in the events' history.")]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decided; default: the user's name.")]

app = typer.Typer(no_args_is_help=True, help="Forbid to delete events, list such holds and release them.")


@app.command()
def add(
    *,
    event: Annotated[str | None, typer.Option(metavar="ID", help="This event, all revisions.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Every event of this experiment, also later ones.")] = None,
    system: Annotated[str | None, typer.Option(help="Every event of this instrument, also later ones.")] = None,
    until: Annotated[
        datetime | None,
        typer.Option(parser=parse_moment, metavar="TIME", help="When it ends by itself; default: when it is released."),
    ] = None,
    reason: Reason,
    by: By = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Forbid to delete anything of an event, an experiment or an instrument.

    No purge, no expiry, no repair and no `bucket del` deletes it then. Where the bucket has Object Lock, its objects
    are locked as well.
    """
    with use_site(home) as (site, _):
        ref = find_ref(site, event) if event else None
        told = hold(
            site,
            event=ref,
            experiment=experiment,
            system=system,
            reason=reason,
            by=by or getpass.getuser(),
            until=until,
        )
    report(told, "set", as_json=as_json)


@app.command("list")
def list_holds(
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that were released or are over.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List holds, the oldest first."""
    with use_site(home, lenient=True) as (site, _):
        now = site.catalog.now()
        found = [one for one in site.catalog.holds(released=every) if every or one.stands(now)]
    if as_json:
        return print_json([hold_as_dict(one, now) for one in found])
    table = Table("id", Column("on", overflow="fold"), "since", "until", "by", Column("reason", overflow="fold"))
    for one in found:
        until = f"released {format_time(one.released_at)}" if one.released_at else ""
        until = until or (format_time(one.until) if one.until else "released")
        reason = f"{one.reason}; released by {one.released_by}: {one.release_reason}" if one.released_at else one.reason
        table.add_row(one.id.hex[:8], one.scope, format_time(one.at), until, one.by, reason)
    return out.print(table if found else "No holds.")


@app.command("release")
def release_hold(
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of the hold, or its first digits.")],  # noqa: A002
    *,
    reason: Reason,
    by: By = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Release a hold. Who released it and why stays in the list."""
    with use_site(home) as (site, _):
        told = release(site, id, reason=reason, by=by or getpass.getuser())
    report(told, "released", as_json=as_json)


def report(told: Held, done: str, *, as_json: bool) -> None:
    """Print what came of setting or releasing a hold; exit with 1 if a lock failed or it came too late."""
    if as_json:
        facts = hold_as_dict(told.hold, datetime.now(UTC))
        late = [str(one) for one in told.late]
        print_json(facts | {"events": told.events, "locked": told.locked, "too_late": late, "failures": told.failures})
    else:
        out.print(f"Hold {told.hold.id.hex[:8]} {done}: {told.hold.scope}.", soft_wrap=True)
        if told.events:
            lock = f"Object Lock {'lifted' if told.hold.released_at else 'set'} for {told.locked}"
            copies = f"{told.events} events have a bucket copy"
            out.print(f"{copies}; {lock if told.locked else 'the bucket has no Object Lock'}.")
        for ref in told.late:
            out.print(f"too late for {ref}: its removal has begun", soft_wrap=True)
        for one in told.failures:
            out.print(f"not locked in the bucket: {one}", soft_wrap=True)
    if told.late or told.failures:
        raise typer.Exit(ExitCode.FAILED)


def hold_as_dict(one: LegalHold, now: datetime) -> dict[str, Any]:
    """Convert a hold to plain values for JSON."""
    return {**one.model_dump(mode="json"), "scope": one.scope, "stands": one.stands(now)}
