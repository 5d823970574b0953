"""Messages to a durable fanout exchange of a RabbitMQ server, persistent and confirmed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

from plateway.bridges.amqp import connect, describe_error, parse_url
from plateway.catalog.outbox import Message
from plateway.errors import Misconfigured, Unavailable
from plateway.outbox.message import encode
from plateway.outbox.relay import Send

HEARTBEAT = 30  # seconds


@contextmanager
def open_exchange(url: str, exchange: str, *, site: UUID) -> Iterator[Send]:
    """Connect to a broker, and declare the exchange. A message that no queue would get is not delivered: it waits.

    Raises:
        Misconfigured: the URL is not valid, or the exchange has another type.
        Denied, Unavailable: the broker refuses, or cannot be reached.
    """
    parameters = parse_url(url, HEARTBEAT)
    where = f"{parameters.host}:{parameters.port}"
    try:
        connection = connect(parameters)
    except (AMQPError, OSError) as error:
        raise Unavailable(f"{where}: {describe_error(error)}") from error
    try:
        channel = _declare(connection, exchange, where=where)

        def send(message: Message) -> None:
            properties = pika.BasicProperties(
                content_type="application/cloudevents+json",
                delivery_mode=pika.DeliveryMode.Persistent.value,
                message_id=str(message.id),
                type=f"plateway.imaging-event.{message.fact}",
            )
            try:
                channel.basic_publish(exchange, message.fact.value, encode(message, site=site), properties, True)
            except UnroutableError as error:
                raise Unavailable(f"no queue is bound to exchange {exchange}") from error
            except NackError as error:
                raise Unavailable(f"{where}: the broker did not store the message") from error
            except (AMQPError, OSError) as error:
                raise Unavailable(f"{where}: {describe_error(error)}") from error

        yield send
    finally:
        with suppress(AMQPError, OSError):
            if connection.is_open:
                connection.close()


def _declare(connection: pika.BlockingConnection, exchange: str, *, where: str) -> BlockingChannel:
    try:
        channel = connection.channel()
        channel.exchange_declare(exchange, "fanout", durable=True)
        channel.confirm_delivery()
    except ChannelClosedByBroker as error:
        raise Misconfigured(f"exchange {exchange}: {error.reply_text}") from error
    except (AMQPError, OSError) as error:
        raise Unavailable(f"{where}: {describe_error(error)}") from error
    return channel
