"""``plateway serve``: serve the HTTP API and the web pages."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from plateway import gateway, log_records, settings
from plateway.catalog import Catalog
from plateway.cli.console import out
from plateway.cli.options import Home
from plateway.gateway import opening


@settings.private_files()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: PLATEWAY_SERVE_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; default: PLATEWAY_SERVE_PORT. 0 is any free port.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Number of processes; default: PLATEWAY_SERVE_WORKERS.")] = None,
    s3_port: Annotated[
        int | None, typer.Option("--s3-port", help="Port of the S3 endpoint for reading; default: PLATEWAY_S3_PORT.")
    ] = None,
    objects_only: Annotated[
        bool, typer.Option("--objects-only", help="Serve the object store alone: no catalogue, no events, no pages.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Change nothing, neither on this machine nor in S3.")
    ] = False,
    home: Home = None,
) -> None:
    """Serve the HTTP API and the web pages until Ctrl-C.

    The API answers requests for events, images and objects.
    """
    config = settings.load(
        home=home,
        serve_host=host,
        serve_port=port,
        serve_workers=workers,
        s3_port=s3_port,
        read_only=read_only or None,
    )
    parts = opening.parts(config, objects_only=objects_only)
    if not parts.read_only and not objects_only:
        with closing(Catalog(config.catalog_url)) as catalog:
            catalog.upgrade()

    clients = "from this machine" if parts.straight else "from anyone"

    def print_summary(address: str, s3: str | None = None) -> None:
        out.print(f"Gateway  {address}", soft_wrap=True)
        out.print(f"API      {address}/docs", soft_wrap=True)
        if objects_only:
            out.print("Objects  token required")
            return
        out.print(f"Events   {f'no token required {clients}' if parts.open else 'token required'}")
        out.print(f"Objects  {'off: set PLATEWAY_OBJECTS_URL' if parts.objects is None else 'token required'}")
        if s3 is not None:
            out.print(f"S3       {s3} (for reading: plateway key add)", soft_wrap=True)
        out.print(f"{'Read-only. ' if parts.read_only else ''}Press Ctrl-C to stop.")

    gateway.serve(
        parts,
        host=config.serve_host,
        port=config.serve_port,
        workers=config.serve_workers,
        logs=log_records.service_config(config),
        say=print_summary,
    )
