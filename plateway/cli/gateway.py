"""Commands about the gateway: let it answer, say who may ask, and see who asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from plateway import settings
from plateway.catalog import Catalog
from plateway.cli.shell import Home, Json, app, err, exit_code, out, print_json, print_json_list, utc, when
from plateway.errors import PlatewayError
from plateway.gateway import opening, tokens
from plateway.gateway.tokens import SCOPES, Minted, Token

token_app = typer.Typer(no_args_is_help=True, help="Who may use the gateway.")
app.add_typer(token_app, name="token")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.")]
Days = Annotated[int, typer.Option("--ttl", metavar="DAYS", help="Days for which it is good.")]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help=f"{', '.join(SCOPES)}; may be repeated.")]
Prefix = Annotated[str | None, typer.Option(help="Good for keys that begin with this only, like plates/12/.")]


@app.command()
@settings.private_files()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Listen here; default: PLATEWAY_SERVE_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; default: PLATEWAY_SERVE_PORT.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer; default: PLATEWAY_SERVE_WORKERS.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Change nothing, neither here nor in S3.")] = False,
    home: Home = None,
) -> None:
    """Let the gateway answer over HTTP until Ctrl-C: events, images, objects, and pages to look at them."""
    from plateway import gateway  # noqa: PLC0415  half a second that other commands need not wait

    config = settings.load(
        home=home, serve_host=host, serve_port=port, serve_workers=workers, read_only=read_only or None
    )
    parts = opening.parts(config)
    if not parts.read_only:
        with closing(Catalog(config.catalog_url)) as catalog:
            catalog.upgrade()

    whoever = f"are shown without a token{' to this machine' if parts.straight else ' to anybody'}"

    def say(address: str) -> None:
        out.print(f"Gateway  {address}", soft_wrap=True)
        out.print(f"API      {address}/docs", soft_wrap=True)
        out.print(f"Events   {whoever if parts.open else 'ask for a token'}")
        out.print(f"Objects  {'none: set PLATEWAY_OBJECTS_URL' if parts.objects is None else 'ask for a token'}")
        out.print(f"{'It is read-only. ' if parts.read_only else ''}Ctrl-C ends it.")

    gateway.serve(parts, host=config.serve_host, port=config.serve_port, workers=config.serve_workers, say=say)


@app.command()
def access(
    *,
    token: Annotated[str | None, typer.Option(help="Only requests with the token of this name.")] = None,
    key: Annotated[str | None, typer.Option(metavar="PREFIX", help="Only keys that begin with this.")] = None,
    since: Annotated[datetime | None, typer.Option(help="At or after this time (UTC unless it has a zone).")] = None,
    until: Annotated[datetime | None, typer.Option(help="Before this time.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show who asked the gateway for what, oldest first."""
    from plateway.gateway import access as log  # noqa: PLC0415  the same

    file = settings.load(home=home).access_file
    found = log.read(file, token=token, key=key, since=utc(since), until=utc(until))
    if as_json:
        return print_json_list(asdict(one) for one in found)
    for one in found:
        who = f"{one.who or '-'} {one.address or '-'}"
        size = f"{one.received:,} > {one.sent:,}"
        took = f"{one.milliseconds:,.1f} ms"
        out.print(f"{one.time[:23]} {one.status} {one.method:6} {size:>20} {took:>12} {who} {one.path}", soft_wrap=True)
    return None


@token_app.callback()
def token_root(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The tokens; default: tokens.json in the home.")
    ] = None,
) -> None:
    context.obj = file


@token_app.command("add")
def token_add(
    context: typer.Context, name: Name, *, ttl: Days, scope: Scopes = None, prefix: Prefix = None, home: Home = None
) -> None:
    """Make a token; it is on the last line, this once."""
    with refusing():
        now = datetime.now(UTC)
        made = tokens.add(
            tokens_file(context, home), name, ttl=timedelta(days=ttl), scopes=scope or (), prefix=prefix, now=now
        )
    write_minted("Token created.", made, name=name, ttl_days=ttl)


@token_app.command("refresh")
def token_refresh(
    context: typer.Context, name: Name, *, ttl: Days, scope: Scopes = None, prefix: Prefix = None, home: Home = None
) -> None:
    """Give a name a new token and a new time; the old one ends at once. Scopes and prefix stay unless given."""
    with refusing():
        now = datetime.now(UTC)
        made = tokens.refresh(
            tokens_file(context, home), name, ttl=timedelta(days=ttl), scopes=scope, prefix=prefix, now=now
        )
    write_minted(f"Token {name!r} refreshed.", made, ttl_days=ttl)


@token_app.command("delete")
def token_delete(context: typer.Context, name: Name, home: Home = None) -> None:
    """Revoke a token, at once."""
    with refusing():
        tokens.delete(tokens_file(context, home), name)
    out.print(f"Token {name!r} deleted.", soft_wrap=True)


@token_app.command("link")
def token_link(home: Home = None) -> None:
    """Print a link that signs one browser in to look at events: good once, for 15 minutes, on the last line."""
    config = settings.load(home=home)
    out.print(tokens.sign_in_link(config.home.absolute(), config.gateway, now=datetime.now(UTC)), soft_wrap=True)


@token_app.command("list")
def token_list(context: typer.Context, home: Home = None, as_json: Json = False) -> None:
    """List the tokens: what each may do, and until when."""
    now = datetime.now(UTC)
    with refusing():
        found = tokens.listed(tokens_file(context, home))
    if as_json:
        return print_json([told_token(one, now) for one in found])
    table = Table(Column("name", overflow="fold"), "scopes", Column("prefix", overflow="fold"), "until", "made")
    for one in found:
        until = f"{when(one.expires)}{' (over)' if one.expired(now) else ''}"
        made = when(one.created_at) if one.created_at else ""
        table.add_row(one.name, " ".join(one.scopes), one.prefix or "", until, made)
    return out.print(table if found else "No tokens.")


def tokens_file(context: typer.Context, home: Path | None) -> Path:
    return context.obj if context.obj is not None else settings.load(home=home).tokens


def told_token(token: Token, now: datetime) -> dict[str, Any]:
    """Tell of a token all but its hash."""
    return {
        "name": token.name,
        "scopes": list(token.scopes),
        "prefix": token.prefix,
        "expires": token.expires.isoformat(),
        "created_at": token.created_at and token.created_at.isoformat(),
        "expired": token.expired(now),
    }


def write_minted(title: str, made: Minted, **facts: object) -> None:
    """Write what scripts read: facts, an empty line, a notice, and the token on the last line."""
    token = made.token
    facts |= {"expires": token.expires.isoformat(), "scopes": list(token.scopes)}
    facts |= {"prefix": token.prefix} if token.prefix else {}
    lines = [title, *(f"  {name + ':':<9} {value}" for name, value in facts.items())]
    notice = "The token, which is shown this once and kept nowhere:"
    for line in (*lines, "", notice, made.secret):
        out.print(line, soft_wrap=True)


@contextmanager
def refusing() -> Iterator[None]:
    """Say an error as scripts know it."""
    try:
        yield
    except PlatewayError as error:
        text = str(error)
        err.print(f"ERROR: {text[:1].upper()}{text[1:]}.", soft_wrap=True)
        raise typer.Exit(exit_code(error)) from None
