"""The targets that settings name."""

from __future__ import annotations

from functools import partial
from uuid import UUID

from plateway.outbox.relay import Target
from plateway.settings import Settings


def open_targets(settings: Settings, *, site: UUID) -> list[Target]:
    """Return the targets of the settings, none of them connected.

    Raises:
        Misconfigured: the package of a target is not installed.
    """
    targets = []
    if settings.outbox_redis_url:
        from plateway.outbox.redis import open_streams  # noqa: PLC0415  needs an extra

        targets.append(Target("redis", partial(open_streams, settings.outbox_redis_url.get_secret_value())))
    if settings.outbox_amqp_url:
        from plateway.outbox.amqp import open_exchange  # noqa: PLC0415  the same

        url, exchange = settings.outbox_amqp_url.get_secret_value(), settings.outbox_amqp_exchange
        targets.append(Target("amqp", partial(open_exchange, url, exchange, site=site)))
    if settings.outbox_webhook_url:
        from plateway.outbox.webhook import open_webhook  # noqa: PLC0415  imports only what is configured

        url, secret = settings.outbox_webhook_url.get_secret_value(), settings.outbox_webhook_secret
        key = secret.get_secret_value() if secret else None
        targets.append(Target("webhook", partial(open_webhook, url, key, site=site)))
    if settings.outbox_directory:
        from plateway.outbox.directory import open_directory  # noqa: PLC0415  the same

        targets.append(Target("directory", partial(open_directory, settings.outbox_directory.absolute(), site=site)))
    return targets
