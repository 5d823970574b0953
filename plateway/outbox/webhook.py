"""Messages as HTTP requests: a CloudEvent in JSON, signed as Standard Webhooks (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from plateway.catalog.outbox import Message
from plateway.errors import Misconfigured, Rejected, Unavailable
from plateway.outbox.message import encode
from plateway.outbox.relay import Send

TIMEOUT = 30.0  # seconds
PREFIX = "whsec_"  # of a secret in base64
ABOUT_MESSAGE = {400, 409, 413, 415, 422}  # statuses that other messages need not have


@contextmanager
def open_webhook(
    url: str,
    secret: str | None,
    *,
    site: UUID,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Send]:
    """Prepare requests to a receiver, which has a message once it answers 2xx. Redirects are not followed.

    With a secret, ``webhook-signature`` is ``v1,`` and the base64 of HMAC-SHA256 over
    ``<webhook-id>.<webhook-timestamp>.<body>``.

    Raises:
        Misconfigured: URL or secret are not valid.
    """
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise Misconfigured("PLATEWAY_OUTBOX_WEBHOOK_URL is no http:// or https:// address")
    key = read_secret(secret)
    where = urlsplit(url).hostname

    with httpx.Client(timeout=TIMEOUT) as client:

        def send(message: Message) -> None:
            body = encode(message, site=site)
            headers = {"Content-Type": "application/cloudevents+json"}
            headers |= sign(str(message.id), body, key=key, now=clock())
            try:
                answer = client.post(url, content=body, headers=headers)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                told = str(error) or type(error).__name__
                raise Unavailable(f"{where}: {told}") from error
            if answer.is_success:
                return
            told = f"{message.ref}: {where} answered {answer.status_code} to {message.fact}"
            raise Rejected(told) if answer.status_code in ABOUT_MESSAGE else Unavailable(told)

        yield send


def read_secret(secret: str | None) -> bytes | None:
    """Return the key of signatures: what follows ``whsec_`` in base64, or the bytes of any other secret."""
    if secret is None or not secret.startswith(PREFIX):
        return secret.encode() if secret else None
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise Misconfigured(f"PLATEWAY_OUTBOX_WEBHOOK_SECRET: what follows {PREFIX} is not base64") from None


def sign(id: str, body: bytes, *, key: bytes | None, now: datetime) -> dict[str, str]:  # noqa: A002 - its name there
    """Return the headers of a request, with a signature if there is a key."""
    headers = {"webhook-id": id, "webhook-timestamp": str(int(now.timestamp()))}
    if key is not None:
        signed = f"{id}.{headers['webhook-timestamp']}.".encode() + body
        digest = hmac.new(key, signed, hashlib.sha256).digest()
        headers["webhook-signature"] = "v1," + base64.b64encode(digest).decode()
    return headers
