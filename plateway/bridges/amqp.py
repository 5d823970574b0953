"""Archive manifests from RabbitMQ, as the tape archiver of DLM publishes them.

Owns the connection, the queue and when a message is acknowledged: after ``pipeline.inbox`` has made the manifest
durable, be it accepted or in quarantine. What a manifest means is left to the inbox. While the catalogue does not
answer, messages stay unacknowledged and are tried again; a broker that goes away is waited for.
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

from plateway.bridges.running import NAP, Patience, rest, stopping
from plateway.names import shown
from plateway.pipeline import Site, ingest

EXCHANGE = "surf-data-archive"
QUEUE = "plateway"
TAKEN = 406  # PRECONDITION_FAILED: it is there, and otherwise

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
    """Take manifests from a queue bound to a fanout exchange until ``stop`` is set, or SIGTERM or SIGINT comes.

    Exchange, queue and binding are made where they are missing: the exchange as DLM declares it, the queue durable.
    At most ``prefetch`` messages are in hand at a time, none is lost with them. A connection that says nothing for
    about two ``heartbeat`` seconds is taken for dead. Without ``stop``, call it from the main thread.

    Raises:
        Misconfigured: the URL is none, or exchange or queue are there and of another kind.
        Denied: the broker does not let us in.
    """
    parameters = _parameters(url, heartbeat)
    where = f"{parameters.host}:{parameters.port}"
    patience = Patience()
    with stopping(stop) as asked:
        while not asked.is_set():
            try:
                with _channel(parameters, exchange=exchange, queue=queue) as channel:
                    log.info("%s: consuming queue %s of exchange %s", where, queue, exchange)
                    patience.calm()
                    channel.basic_qos(prefetch_count=prefetch)
                    _consume(site, channel, queue=queue, exchange=exchange, stop=asked)
            except (AMQPError, OSError) as error:
                pause = patience.pause()
                log.warning("%s: %s; trying again in %.1f s", where, _cause(error), pause)
                rest(asked, pause)
        log.info("%s: stopped", where)


def _parameters(url: str, heartbeat: int) -> pika.URLParameters:
    try:
        if urlsplit(url).scheme not in {"amqp", "amqps"}:  # pika takes any
            raise ValueError
        parameters = pika.URLParameters(url)
        if parameters.heartbeat is None:
            parameters.heartbeat = heartbeat
    except (ValueError, TypeError, LookupError):  # its message may quote the password
        raise Misconfigured("the AMQP URL is none: amqp://user:password@host:5672/vhost, or amqps://…") from None
    parameters.connection_attempts = 1
    parameters.blocked_connection_timeout = 60
    parameters.client_properties = {"connection_name": "plateway"}
    return parameters


@contextmanager
def _channel(parameters: pika.URLParameters, *, exchange: str, queue: str) -> Iterator[BlockingChannel]:
    """Connect, and bring about what is to be consumed."""
    try:
        connection = pika.BlockingConnection(parameters)
    except (AuthenticationError, ProbableAuthenticationError):
        raise Denied("the broker refuses the user or its password") from None
    except ProbableAccessDeniedError:
        raise Denied(f"the broker refuses the virtual host {shown(parameters.virtual_host)!r}") from None
    except IncompatibleProtocolError:
        raise Misconfigured(f"{parameters.host}:{parameters.port} does not speak AMQP 0-9-1") from None
    try:
        _declare_exchange(connection, exchange)
        yield _declare_queue(connection, queue, exchange=exchange)
    finally:
        if connection.is_open:
            connection.close()


def _declare_exchange(connection: pika.BlockingConnection, exchange: str) -> None:
    """Make the exchange as the archiver does (fanout, not durable), else it could not declare it any more.

    One that is there with other properties is taken as it is, if only it is a fanout.
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
    """Take messages until a stop is asked for, or the queue goes away."""
    held: deque[Message] = deque()  # unacknowledged; as many as prefetch allows
    patience = Patience()
    again = 0.0
    for method, properties, body in channel.consume(queue, inactivity_timeout=NAP):
        if method is not None and method.delivery_tag and properties is not None:
            message = Message(method.delivery_tag, shown(properties.message_id or exchange)[:128], body or b"")
            if _settle(site, channel, message) is not None:
                again = again if held else time.monotonic() + patience.pause()
                held.append(message)
        if held and time.monotonic() >= again:
            if _settle_held(site, channel, held):
                patience.calm()
            again = time.monotonic() + patience.pause()
        if stop.is_set():
            return
    log.warning("queue %s went away", queue)


def _settle_held(site: Site, channel: BlockingChannel, held: deque[Message]) -> bool:
    """Try again what is held, until one has to wait; whether any could be acknowledged."""
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
    """Hand a manifest to the inbox, and acknowledge it if it is durable there; else say why not."""
    try:
        outcome = ingest.receive(site, message.content, door="amqp", name=message.name)
    except PlatewayError as error:
        log.warning("%s (%d bytes): kept for later: %s", message.name, len(message.content), error)
        return error
    channel.basic_ack(message.tag)
    log.info("%s (%d bytes): %s, acknowledged", message.name, len(message.content), outcome.result)
    return None


def _cause(error: Exception) -> str:
    """Say in words what pika tells in types."""
    return shown(str(error)) or type(error).__name__
