"""``plateway key``: issue, list, disable and delete access keys of the S3 endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from plateway import settings
from plateway.catalog import Catalog
from plateway.cli.console import format_time, out, print_json
from plateway.cli.options import Home, Json
from plateway.gateway.s3.access_keys import issue, make_secret_file
from plateway.records import AccessKey

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")]

app = typer.Typer(no_args_is_help=True, help="Issue, list and disable access keys of the S3 endpoint.")


@app.command()
@settings.private_files()
def add(
    name: Name,
    *,
    ttl: Annotated[int, typer.Option("--ttl", metavar="DAYS", min=1, max=36500, help="Days until the key expires.")],
    bucket: Annotated[
        list[str] | None, typer.Option(help="Only this bucket; may be repeated. Default: all buckets.")
    ] = None,
    prefix: Annotated[
        list[str] | None, typer.Option(help="Only keys that start with this, like exp-7/; may be repeated.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Issue a key (its secret is shown once)."""
    config = settings.load(home=home)
    with open_catalog(config) as catalog:
        issued = issue(
            name,
            ttl=timedelta(days=ttl),
            buckets=bucket or (),
            prefixes=prefix or (),
            file=make_secret_file(config.s3_secrets),
            now=datetime.now(UTC),
        )
        catalog.add_access_key(issued.key)
    key = issued.key
    expires = key.expires_at.isoformat()
    if as_json:
        facts = {"access_key_id": key.access_key_id, "secret_access_key": issued.secret, "expires": expires}
        return print_json(facts)
    lines = [
        f"Key {name!r} issued, until {format_time(key.expires_at)}, for reading. The secret is shown only now:",
        "",
        f"export AWS_ACCESS_KEY_ID={key.access_key_id}",
        f"export AWS_SECRET_ACCESS_KEY={issued.secret}",
        f"export AWS_ENDPOINT_URL={config.s3_gateway or 'http://HOST:PORT  # plateway serve --s3-port PORT'}",
        "export AWS_DEFAULT_REGION=us-east-1",
    ]
    for line in lines:
        out.print(line, soft_wrap=True)
    return None


@app.command("list")
def list_keys(home: Home = None, as_json: Json = False) -> None:
    """List keys with their scopes and expiry."""
    now = datetime.now(UTC)
    with open_catalog(settings.load(home=home)) as catalog:
        found = catalog.access_keys()
    if as_json:
        return print_json([key_as_dict(one, now) for one in found])
    table = Table(Column("name", overflow="fold"), "access key id", "buckets", "prefixes", "expires", "state")
    for one in found:
        buckets, prefixes = " ".join(one.buckets) or "all", " ".join(one.prefixes) or "all"
        table.add_row(one.name, one.access_key_id, buckets, prefixes, format_time(one.expires_at), state(one, now))
    return out.print(table if found else "No keys.")


@app.command()
def disable(name: Name, home: Home = None) -> None:
    """Disable a key within a second. It stays in the list."""
    with open_catalog(settings.load(home=home)) as catalog:
        catalog.disable_access_key(name, now=datetime.now(UTC))
    out.print(f"Key {name!r} disabled.", soft_wrap=True)


@app.command()
def delete(name: Name, home: Home = None) -> None:
    """Delete a key within a second."""
    with open_catalog(settings.load(home=home)) as catalog:
        catalog.delete_access_key(name)
    out.print(f"Key {name!r} deleted.", soft_wrap=True)


@contextmanager
def open_catalog(config: settings.Settings) -> Iterator[Catalog]:
    """Open the catalogue of the settings, and upgrade it if need be."""
    with closing(Catalog(config.catalog_url)) as catalog:
        catalog.upgrade()
        yield catalog


def state(key: AccessKey, now: datetime) -> str:
    """Return whether a key may be used: valid, expired or disabled."""
    return "disabled" if key.disabled_at else "expired" if key.expires_at <= now else "valid"


def key_as_dict(key: AccessKey, now: datetime) -> dict[str, Any]:
    """Convert a key to plain values for JSON, without its secret."""
    return {
        "name": key.name,
        "access_key_id": key.access_key_id,
        "buckets": key.buckets,
        "prefixes": key.prefixes,
        "created_at": key.created_at.isoformat(),
        "expires": key.expires_at.isoformat(),
        "disabled_at": key.disabled_at and key.disabled_at.isoformat(),
        "state": state(key, now),
    }
