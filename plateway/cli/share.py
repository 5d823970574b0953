"""``plateway share``: publish a location at the S3 endpoint, for reading."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Column, Table

from plateway import settings
from plateway.catalog import Catalog
from plateway.cli.console import format_time, out, print_json
from plateway.cli.options import Home, Json
from plateway.errors import Rejected
from plateway.gateway.opening import check_share
from plateway.gateway.s3.access_keys import BUCKET
from plateway.gateway.s3.app import EVENTS
from plateway.records import Share


def share(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the bucket that clients see; none: list all.")
    ] = None,
    location: Annotated[
        str | None, typer.Argument(metavar="LOCATION", help="s3://bucket[/prefix] or file:///directory")
    ] = None,
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Withdraw it. The objects stay.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Publish a location at the S3 endpoint, for reading.

    Clients see its objects as a bucket of this name; the name may have capitals and underscores. Without a location,
    list what is published.
    """
    if (name is None and (delete or location)) or (delete and location) or (name and not delete and not location):
        raise typer.BadParameter("share NAME LOCATION publishes, share NAME --delete withdraws, share alone lists")
    config = settings.load(home=home)
    with closing(Catalog(config.catalog_url)) as catalog:
        catalog.upgrade()
        if name is None:
            return _print_shares(catalog.shares(), as_json=as_json)
        if location is None:
            catalog.delete_share(name)
            return out.print(f"{name} is not shared any more.", soft_wrap=True)
        if not BUCKET.fullmatch(name) or name == EVENTS:
            raise Rejected(
                f"{name!r} cannot be shared: a name has 3 to 63 letters, digits, dots, dashes and underscores, "
                f"and {EVENTS} is taken"
            )
        check_share(config, location)
        catalog.add_share(Share(name=name, location=location, created_at=datetime.now(UTC)))
    return out.print(f"{location} is shared as s3://{name}, for keys that may read there.", soft_wrap=True)


def _print_shares(shares: list[Share], *, as_json: bool) -> None:
    if as_json:
        facts = [
            {"name": one.name, "location": one.location, "created_at": one.created_at.isoformat()} for one in shares
        ]
        return print_json(facts)
    table = Table(Column("bucket", overflow="fold"), Column("location", overflow="fold"), "since")
    for one in shares:
        table.add_row(one.name, one.location, format_time(one.created_at))
    return out.print(table if shares else "Nothing is shared.")
