"""Archive manifests from RabbitMQ, as the tape archiver of DLM publishes them.

Manages the connection, the queue and acknowledgements: a message is acknowledged after ``pipeline.ingest`` stored the
manifest, accepted or in quarantine. While the catalogue cannot be reached, messages stay unacknowledged and are
retried. After a lost connection the bridge reconnects.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from plateway.errors import Denied, Misconfigured, PlatewayError, Transient

try:
    import pika
    from pika.adapters.blocking_connection import BlockingChannel
    from pika.exceptions import (
        AMQPError,
        AuthenticationError,
        ChannelClosedByBroker,
        IncompatibleProtocolError,
        ProbableAccessDeniedError,
        ProbableAuthenticationError,
    )
except ImportError as error:
    raise Misconfigured("the AMQP bridge needs pika: pip install 'plateway[amqp]'") from error

from plateway.bridges.running import NAP, Backoff, rest, stopping
from plateway.names import shown
from plateway.pipeline import Site, ingest

EXCHANGE = "surf-data-archive"
QUEUE = "plateway"
TAKEN = 406  # PRECONDITION_FAILED: it exists with other properties

log = logging.getLogger(__name__)


@dataclass
class Message:
    """One delivery, until it is acknowledged."""

    tag: int
    name: str
    content: bytes = field(repr=False)


def run(
    site: Site,
    url: str,
    *,
    exchange: str = EXCHANGE,
    queue: str = QUEUE,
    prefetch: int = 8,
    heartbeat: int = 30,
    stop: threading.Event | None = None,
) -> None:
    """Receive manifests from a queue bound to a fanout exchange until ``stop`` is set, or SIGTERM or SIGINT arrives.

    Missing exchange, queue and binding are declared: the exchange as DLM declares it, the queue durable. At most
    ``prefetch`` messages are unacknowledged at a time. A connection without data for about two ``heartbeat`` seconds is
    closed. Without ``stop``, call it from the main thread.

    Raises:
        Misconfigured: the URL is not valid, or exchange or queue exist with another type.
        Denied: the broker refuses the credentials.
    """
    parameters = parse_url(url, heartbeat)
    where = f"{parameters.host}:{parameters.port}"
    patience = Backoff()
    with stopping(stop) as asked:
        while not asked.is_set():
            try:
                with _channel(parameters, exchange=exchange, queue=queue) as channel:
                    log.info("%s: consuming queue %s of exchange %s", where, queue, exchange)
                    patience.reset()
                    channel.basic_qos(prefetch_count=prefetch)
                    _consume(site, channel, queue=queue, exchange=exchange, stop=asked)
            except (AMQPError, OSError) as error:
                pause = patience.pause()
                log.warning("%s: %s; retrying in %.1f s", where, describe_error(error), pause)
                rest(asked, pause)
        log.info("%s: stopped", where)


def parse_url(url: str, heartbeat: int) -> pika.URLParameters:
    """Parse the URL of a broker.

    Raises:
        Misconfigured: it is not valid.
    """
    try:
        if urlsplit(url).scheme not in {"amqp", "amqps"}:  # pika accepts any scheme
            raise ValueError
        parameters = pika.URLParameters(url)
        if parameters.heartbeat is None:
            parameters.heartbeat = heartbeat
    except (ValueError, TypeError, LookupError):  # its message may quote the password
        raise Misconfigured("the AMQP URL is not valid: amqp://user:password@host:5672/vhost, or amqps://…") from None
    parameters.connection_attempts = 1
    parameters.blocked_connection_timeout = 60
    parameters.client_properties = {"connection_name": "plateway"}
    return parameters


def connect(parameters: pika.URLParameters) -> pika.BlockingConnection:
    """Connect to a broker.

    Raises:
        Denied: it refuses the credentials. Misconfigured: it speaks another protocol.
        AMQPError, OSError: it cannot be reached.
    """
    try:
        return pika.BlockingConnection(parameters)
    except (AuthenticationError, ProbableAuthenticationError):
        raise Denied("the broker refuses the user or its password") from None
    except ProbableAccessDeniedError:
        raise Denied(f"the broker refuses the virtual host {shown(parameters.virtual_host)!r}") from None
    except IncompatibleProtocolError:
        raise Misconfigured(f"{parameters.host}:{parameters.port} does not speak AMQP 0-9-1") from None


@contextmanager
def _channel(parameters: pika.URLParameters, *, exchange: str, queue: str) -> Iterator[BlockingChannel]:
    """Connect, and declare exchange, queue and binding."""
    connection = connect(parameters)
    try:
        _declare_exchange(connection, exchange)
        yield _declare_queue(connection, queue, exchange=exchange)
    finally:
        if connection.is_open:
            connection.close()


def _declare_exchange(connection: pika.BlockingConnection, exchange: str) -> None:
    """Declare the exchange as the archiver does (fanout, not durable), so that its own declaration succeeds.

    An existing fanout exchange with other properties is used as it is.
    """
    channel = connection.channel()
    try:
        channel.exchange_declare(exchange, "fanout")
        channel.close()
    except ChannelClosedByBroker as error:
        if error.reply_code != TAKEN or "'type'" in error.reply_text:
            raise _refused(f"exchange {exchange}", error) from error


def _declare_queue(connection: pika.BlockingConnection, queue: str, *, exchange: str) -> BlockingChannel:
    channel = connection.channel()
    try:
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, exchange)
    except ChannelClosedByBroker as error:
        raise _refused(f"queue {queue}", error) from error
    return channel


def _refused(what: str, error: ChannelClosedByBroker) -> PlatewayError:
    meaning = Denied if error.reply_code == 403 else Misconfigured
    return meaning(f"{what}: {error.reply_text}")


def _consume(site: Site, channel: BlockingChannel, *, queue: str, exchange: str, stop: threading.Event) -> None:
    """Receive messages until the bridge is stopped, or the queue is deleted."""
    held: deque[Message] = deque()  # unacknowledged; as many as prefetch allows
    patience = Backoff()
    again = 0.0
    for method, properties, body in channel.consume(queue, inactivity_timeout=NAP):
        if method is not None and method.delivery_tag and properties is not None:
            message = Message(method.delivery_tag, shown(properties.message_id or exchange)[:128], body or b"")
            if _settle(site, channel, message) is not None:
                again = again if held else time.monotonic() + patience.pause()
                held.append(message)
        if held and time.monotonic() >= again:
            if _settle_held(site, channel, held):
                patience.reset()
            again = time.monotonic() + patience.pause()
        if stop.is_set():
            return
    log.warning("queue %s was deleted", queue)


def _settle_held(site: Site, channel: BlockingChannel, held: deque[Message]) -> bool:
    """Retry unacknowledged messages until one fails again. Returns whether any was acknowledged."""
    before = len(held)
    for _ in range(before):
        message = held.popleft()
        error = _settle(site, channel, message)
        if error is not None:
            held.append(message)
        if isinstance(error, Transient):
            break
    return len(held) < before


def _settle(site: Site, channel: BlockingChannel, message: Message) -> PlatewayError | None:
    """Store a manifest and acknowledge its message. Returns the error if it was not stored."""
    try:
        outcome = ingest.receive(site, message.content, source="amqp", name=message.name)
    except PlatewayError as error:
        log.warning("%s (%d bytes): will be retried: %s", message.name, len(message.content), error)
        return error
    channel.basic_ack(message.tag)
    log.info("%s (%d bytes): %s, acknowledged", message.name, len(message.content), outcome.result)
    return None


def describe_error(error: Exception) -> str:
    """Describe an exception of pika in words."""
    return shown(str(error)) or type(error).__name__
