"""``plateway token``: create, list and revoke access tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from plateway import settings
from plateway.cli.console import err, format_time, out, print_json
from plateway.cli.exit_codes import code_of_error
from plateway.cli.options import Home, Json
from plateway.errors import PlatewayError
from plateway.gateway import tokens
from plateway.gateway.tokens import SCOPES, Minted, Token

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the token.")]
Days = Annotated[int, typer.Option("--ttl", metavar="DAYS", help="Days until the token expires.")]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help=f"{', '.join(SCOPES)}; may be repeated.")]
Prefix = Annotated[str | None, typer.Option(help="Valid only for keys that start with this, like plates/12/.")]

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke access tokens.")


@app.callback()
def set_file(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="File of tokens; default: tokens.json in the home.")
    ] = None,
) -> None:
    context.obj = file


@app.command()
def add(
    context: typer.Context, name: Name, *, ttl: Days, scope: Scopes = None, prefix: Prefix = None, home: Home = None
) -> None:
    """Create a token (shown once, on the last line)."""
    with print_errors():
        minted = tokens.add(
            tokens_file(context, home),
            name,
            ttl=timedelta(days=ttl),
            scopes=scope or (),
            prefix=prefix,
            now=datetime.now(UTC),
        )
    print_minted("Token created.", minted, name=name, ttl_days=ttl)


@app.command()
def refresh(
    context: typer.Context, name: Name, *, ttl: Days, scope: Scopes = None, prefix: Prefix = None, home: Home = None
) -> None:
    """Replace a token (shown once, on the last line).

    Revokes the old token at once. Scopes and prefix stay unless given.
    """
    with print_errors():
        minted = tokens.refresh(
            tokens_file(context, home),
            name,
            ttl=timedelta(days=ttl),
            scopes=scope,
            prefix=prefix,
            now=datetime.now(UTC),
        )
    print_minted(f"Token {name!r} refreshed.", minted, ttl_days=ttl)


@app.command()
def delete(context: typer.Context, name: Name, home: Home = None) -> None:
    """Revoke a token at once."""
    with print_errors():
        tokens.delete(tokens_file(context, home), name)
    out.print(f"Token {name!r} deleted.", soft_wrap=True)


@app.command("link")
def print_link(home: Home = None) -> None:
    """Print a link that signs in one browser, to view events (on the last line).

    The link works once, within 15 minutes.
    """
    config = settings.load(home=home)
    out.print(tokens.sign_in_link(config.home.absolute(), config.gateway, now=datetime.now(UTC)), soft_wrap=True)


@app.command("list")
def list_tokens(context: typer.Context, home: Home = None, as_json: Json = False) -> None:
    """List tokens with their scopes and expiry."""
    now = datetime.now(UTC)
    with print_errors():
        found = tokens.listed(tokens_file(context, home))
    if as_json:
        return print_json([token_as_dict(one, now) for one in found])
    table = Table(Column("name", overflow="fold"), "scopes", Column("prefix", overflow="fold"), "expires", "created")
    for one in found:
        expires = f"{format_time(one.expires)}{' (expired)' if one.expired(now) else ''}"
        created = format_time(one.created_at) if one.created_at else ""
        table.add_row(one.name, " ".join(one.scopes), one.prefix or "", expires, created)
    return out.print(table if found else "No tokens.")


def tokens_file(context: typer.Context, home: Path | None) -> Path:
    """Return the file of tokens: that of ``--file``, else that of the settings."""
    return context.obj if context.obj is not None else settings.load(home=home).tokens


def token_as_dict(token: Token, now: datetime) -> dict[str, Any]:
    """Convert a token to plain values for JSON, without its hash."""
    return {
        "name": token.name,
        "scopes": list(token.scopes),
        "prefix": token.prefix,
        "expires": token.expires.isoformat(),
        "created_at": token.created_at and token.created_at.isoformat(),
        "expired": token.expired(now),
    }


def print_minted(title: str, minted: Minted, **facts: object) -> None:
    """Print what scripts read: facts, an empty line, a notice, and the token on the last line."""
    token = minted.token
    facts |= {"expires": token.expires.isoformat(), "scopes": list(token.scopes)}
    facts |= {"prefix": token.prefix} if token.prefix else {}
    lines = [title, *(f"  {name + ':':<9} {value}" for name, value in facts.items())]
    notice = "Token (shown only now, not stored anywhere):"
    for line in (*lines, "", notice, minted.secret):
        out.print(line, soft_wrap=True)


@contextmanager
def print_errors() -> Iterator[None]:
    """Print an error in the format that scripts know, and exit."""
    try:
        yield
    except PlatewayError as error:
        text = str(error)
        err.print(f"ERROR: {text[:1].upper()}{text[1:]}.", soft_wrap=True)
        raise typer.Exit(code_of_error(error)) from None
