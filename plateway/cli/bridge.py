"""``plateway bridge``: exchange messages with RabbitMQ, Redis and other systems."""

from __future__ import annotations

from typing import Annotated

import typer

from plateway import log_records, settings
from plateway.cli.common import use_site
from plateway.cli.options import Home
from plateway.errors import Misconfigured

app = typer.Typer(no_args_is_help=True, help="Exchange messages with other systems until Ctrl-C.")


@app.command()
def amqp(
    *,
    exchange: Annotated[str, typer.Option(help="Fanout exchange of the archiver.")] = "surf-data-archive",
    queue: Annotated[str, typer.Option(help="Durable queue of Plateway.")] = "plateway",
    home: Home = None,
) -> None:
    """Import archive manifests from RabbitMQ until Ctrl-C.

    Each message is acknowledged when its manifest is in the catalogue.
    """
    from plateway.bridges import amqp as amqp_bridge  # noqa: PLC0415  needs an extra

    with use_site(home) as (site, config):
        if not config.amqp_url:
            raise Misconfigured("no RabbitMQ server is configured: set PLATEWAY_AMQP_URL")
        log_records.configure_service(config)
        amqp_bridge.run(site, config.amqp_url.get_secret_value(), exchange=exchange, queue=queue)


@app.command()
def redis(
    *,
    group: Annotated[str, typer.Option(help="Consumer group of Plateway.")] = "plateway",
    consumer: Annotated[
        str | None, typer.Option(help="Name of this consumer in the group; default: this machine's name.")
    ] = None,
    start: Annotated[
        str, typer.Option(help="Where a new group starts: 0 is the oldest entry, $ after the newest.")
    ] = "0",
    home: Home = None,
) -> None:
    """Write event files from DLM v2's Redis streams until Ctrl-C."""
    from plateway.bridges import redis as redis_bridge  # noqa: PLC0415  needs an extra

    config = settings.load(home=home)
    if not config.redis_url:
        raise Misconfigured("no Redis server is configured: set PLATEWAY_REDIS_URL")
    log_records.configure_service(config)
    redis_bridge.run(config.root, config.redis_url.get_secret_value(), group=group, consumer=consumer, start=start)


@app.command()
def out(home: Home = None) -> None:
    """Relay messages about recorded facts until Ctrl-C.

    The targets are those of PLATEWAY_OUTBOX_…: Redis, RabbitMQ, a webhook, a directory.
    """
    from plateway.outbox import relay  # noqa: PLC0415  the other bridges do not need it
    from plateway.outbox.opening import open_targets  # noqa: PLC0415

    with use_site(home) as (site, config):
        targets = open_targets(config, site=site.catalog.site(now=site.catalog.now()))
        if not targets:
            raise Misconfigured("no target of messages is configured: set one of PLATEWAY_OUTBOX_…")
        log_records.configure_service(config)
        relay.run(site.catalog, targets)
