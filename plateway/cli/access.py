"""``plateway access``: the access log of the HTTP API and of the S3 endpoint."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from plateway import settings
from plateway.cli.console import out, print_json_list
from plateway.cli.options import TIMES, Home, Json, parse_time
from plateway.gateway import access as access_log


def access(
    *,
    token: Annotated[str | None, typer.Option(help="Only requests with the token of this name.")] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only requests with the access key of this name, or keys that start so."),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=parse_time, metavar="TIME", help=f"At or after this time: {TIMES}.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="Before this time.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print the access log of the HTTP API.

    Oldest first: time, status, method, bytes received and sent, duration, token or access key, address, path.
    """
    file = settings.load(home=home).access_file
    found = access_log.read(file, token=token, key=key, since=since, until=until)
    if as_json:
        return print_json_list(asdict(one) for one in found)
    for one in found:
        who = f"{one.who or '-'} {one.address or '-'}"
        size = f"{one.received:,} > {one.sent:,}"
        took = f"{one.milliseconds:,.1f} ms"
        out.print(f"{one.time[:23]} {one.status} {one.method:6} {size:>20} {took:>12} {who} {one.path}", soft_wrap=True)
    return None
