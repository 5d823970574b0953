"""Send alerts through a notification block of Prefect (Slack, Teams, e-mail, a webhook …), by its document's name."""

from __future__ import annotations

from prefect.blocks import notifications  # noqa: F401  registers Prefect's own notification blocks
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block

from plateway.errors import Misconfigured, Unavailable


async def load(name: str) -> NotificationBlock:
    """Load a notification block called ``<type>/<name>``, like ``slack-webhook/alerts``.

    Raises:
        Misconfigured: there is no such block, or it is no notification block.
    """
    try:
        block: object = await Block.aload(name)
    except (ValueError, KeyError, RuntimeError) as error:
        raise Misconfigured(f"PLATEWAY_NOTIFY: there is no block {name!r}") from error
    if not isinstance(block, NotificationBlock):
        raise Misconfigured(f"PLATEWAY_NOTIFY: {name!r} is no notification block")
    return block


async def send(name: str, *, subject: str, body: str) -> None:
    """Send a message by a notification block.

    Raises:
        Misconfigured: there is no such block.
        Unavailable: it was not sent. The message has no cause: that may contain the secret address.
    """
    block = await load(name)
    try:
        with block.raise_on_failure():
            await getattr(block, "anotify", block.notify)(body, subject)
    except Exception as error:  # noqa: BLE001  each block fails in its own way
        raise Unavailable(f"{name} did not accept the message: {type(error).__name__}") from None
