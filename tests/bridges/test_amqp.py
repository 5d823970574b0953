"""Archive manifests from RabbitMQ, with a real node."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from sqlalchemy import make_url, text

from plateway import settings
from plateway.bridges import amqp
from plateway.catalog import Catalog
from plateway.errors import Denied, Misconfigured
from plateway.pipeline import Site
from plateway.store import open_store
from tests.bridges.servers import Rabbit, wait_until
from tests.databases import administration, processes
from tests.lab import Lab


def manifest(*archives: dict[str, Any]) -> bytes:
    """A message as the archiver of DLM publishes it."""
    job = str(uuid4())
    return json.dumps({"job_id": job, "date": "2026-05-04T00:00:00", "archives": archives}, indent=4).encode()


TAPE = {"path": "images/test-id/2026-05-04.tar", "src_keys": ["bucket/images/test-id/20260504/055900-2f1c5d0e.tar"]}


@dataclass
class Archiver:
    """The other side: declares the exchange, and publishes as the archiver does; one exchange and queue a test."""

    url: str
    exchange: str
    queue: str

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def publish(self, *contents: bytes) -> None:
        with self.channel() as channel:
            channel.exchange_declare(self.exchange, "fanout")
            channel.confirm_delivery()
            for content in contents:
                wait_until(partial(self._sent, channel, content))

    def _sent(self, channel: BlockingChannel, content: bytes) -> bool:
        """Publish; no as long as no queue is bound, when the archiver's message would be lost."""
        try:
            persistent = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish(self.exchange, "archiving-cron", content, persistent, mandatory=True)
        except pika.exceptions.UnroutableError:
            return False
        return True

    def bound(self) -> bool:
        """Whether a message would reach the queue."""
        with suppress(pika.exceptions.AMQPError, OSError), self.channel() as channel:
            channel.queue_declare(self.queue, passive=True)
            return True
        return False

    def waiting(self) -> int:
        """How many messages the queue has once nobody consumes it, unacknowledged ones included."""
        with self.channel() as channel:
            found = channel.queue_declare(self.queue, passive=True).method
            assert found.consumer_count == 0
            return int(found.message_count)


@pytest.fixture
def archiver(rabbit: Rabbit) -> Iterator[Archiver]:
    """An archiver with an exchange of its own."""
    one = Archiver(rabbit.url, f"archive-{uuid4().hex[:8]}", f"plateway-{uuid4().hex[:8]}")
    yield one
    with one.channel() as channel:
        channel.queue_delete(one.queue)
    with one.channel() as channel:
        channel.exchange_delete(one.exchange)


@contextmanager
def bridged(site: Site, archiver: Archiver, *, url: str | None = None, **options: Any) -> Iterator[None]:
    """Run the bridge meanwhile; it must end when it is told to."""
    stop = threading.Event()
    told = {"exchange": archiver.exchange, "queue": archiver.queue, "stop": stop, **options}
    thread = threading.Thread(target=amqp.run, args=(site, url or archiver.url), kwargs=told, daemon=True)
    thread.start()
    try:
        wait_until(lambda: archiver.bound() or not thread.is_alive())
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def kept(site: Site, *contents: bytes) -> bool:
    """Whether the catalogue has these manifests, byte for byte."""
    return {row.content for row in site.catalog.manifests()} >= set(contents)


def test_a_manifest_is_durable_and_acknowledged(lab: Lab, archiver: Archiver) -> None:
    """What the archiver publishes is in the catalogue, with the door it came through, and the queue is empty."""
    site, one, empty = lab.site, manifest(TAPE), manifest()
    with bridged(site, archiver):
        archiver.publish(one, empty)
        wait_until(lambda: kept(site, one, empty))
    assert archiver.waiting() == 0
    assert {row.door for row in site.catalog.manifests()} == {"amqp"}


def test_the_same_message_again_is_known(lab: Lab, archiver: Archiver) -> None:
    """Redelivery adds nothing, and is acknowledged."""
    site, one = lab.site, manifest(TAPE)
    with bridged(site, archiver):
        archiver.publish(one, one, one)
        wait_until(lambda: kept(site, one))
    with bridged(site, archiver):
        archiver.publish(one, last := manifest())
        wait_until(lambda: kept(site, last))
    assert archiver.waiting() == 0
    assert len(site.catalog.manifests()) == 2


def test_a_poison_message_stops_nobody(lab: Lab, archiver: Archiver) -> None:
    """D12: what is no manifest is quarantined with its reason, and the messages after it come through."""
    site, good = lab.site, manifest(TAPE)
    poison = [b"", b"\xff\xfe", b"{", b"[]", b"null", b'{"job_id": "x"}', b"[" * 10_000]
    with bridged(site, archiver, prefetch=2):
        archiver.publish(*poison, good)
        wait_until(lambda: kept(site, good, *poison))
    assert archiver.waiting() == 0
    refused = {row.content: row.reason for row in site.catalog.manifests(refused=True)}
    assert refused.keys() == set(poison)
    assert all(refused.values())


def test_messages_wait_while_the_bridge_is_down(lab: Lab, archiver: Archiver) -> None:
    """The queue is durable and bound as long as the exchange lives: what came meanwhile is taken at the next start."""
    site, late = lab.site, [manifest(TAPE) for _ in range(20)]
    with bridged(site, archiver):
        pass
    archiver.publish(*late)
    assert archiver.waiting() == 20
    with bridged(site, archiver, prefetch=3):
        wait_until(lambda: kept(site, *late))
    assert archiver.waiting() == 0


@pytest.mark.parametrize("durable", [False, True])
def test_what_dlm_declared_is_taken_as_it_is(lab: Lab, archiver: Archiver, *, durable: bool) -> None:
    """An exchange that is there already, durable or not, is consumed; and DLM can still declare its own after us."""
    site, one = lab.site, manifest(TAPE)
    with archiver.channel() as channel:
        channel.exchange_declare(archiver.exchange, "fanout", durable=durable)
        channel.queue_declare(archiver.queue, durable=True)
        channel.queue_bind(archiver.queue, archiver.exchange)
        channel.basic_publish(archiver.exchange, "", one)
    with bridged(site, archiver):
        wait_until(lambda: kept(site, one))
    assert archiver.waiting() == 0


def test_what_is_of_another_kind_is_told(lab: Lab, archiver: Archiver) -> None:
    """An exchange that is no fanout, or a queue that a restart would lose, is an error with the broker's words."""
    with archiver.channel() as channel:
        channel.exchange_declare(archiver.exchange, "topic")
    with pytest.raises(Misconfigured, match=rf"exchange {archiver.exchange}: .*'type'"):
        amqp.run(lab.site, archiver.url, exchange=archiver.exchange, queue=archiver.queue)
    with archiver.channel() as channel:
        channel.exchange_delete(archiver.exchange)
        channel.queue_declare(archiver.queue, durable=False)
    with pytest.raises(Misconfigured, match=rf"queue {archiver.queue}: .*'durable'"):
        amqp.run(lab.site, archiver.url, exchange=archiver.exchange, queue=archiver.queue)


def test_what_waiting_does_not_help_is_told(lab: Lab, rabbit: Rabbit) -> None:
    """A wrong password, an unknown virtual host and a URL that is none end the bridge, and tell no secret."""
    told = []
    for url, error in (
        (rabbit.url.replace(":guest@", ":canary@"), Denied),
        (rabbit.url.replace("%2F", "elsewhere"), Denied),
        ("http://guest:canary@127.0.0.1:5672/", Misconfigured),
        ("amqp://guest:canary@127.0.0.1:port/", Misconfigured),
        ("canary", Misconfigured),
    ):
        with pytest.raises(error) as raised:
            amqp.run(lab.site, url)
        told.append(str(raised.value))
    assert "canary" not in " ".join(told)


def test_a_missing_extra_is_named() -> None:
    """Without pika the bridge says what to install."""
    script = "import sys; sys.modules['pika'] = None; import plateway.bridges.amqp"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pip install 'plateway[amqp]'" in told.stderr


def test_a_queue_that_is_deleted_is_made_anew(lab: Lab, archiver: Archiver) -> None:
    """Somebody's delete of our queue ends no bridge."""
    site, one = lab.site, manifest(TAPE)
    with bridged(site, archiver):
        with archiver.channel() as channel:
            channel.queue_delete(archiver.queue)
        wait_until(archiver.bound)
        archiver.publish(one)
        wait_until(lambda: kept(site, one))


def die(database: str, bucket: Path, archiver: Archiver) -> None:
    """Consume, and be killed where the first acknowledgement would be sent."""

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    BlockingChannel.basic_ack = killed  # type: ignore[method-assign,assignment]
    site = Site(Catalog(database), open_store(bucket.as_uri()), bucket, settings.load().instrument, owner="test")
    amqp.run(site, archiver.url, exchange=archiver.exchange, queue=archiver.queue)


def test_killed_before_the_acknowledgement(lab: Lab, archiver: Archiver) -> None:
    """Kill -9 between the durable manifest and its acknowledgement: it comes again, and is known."""
    site, one, two = lab.site, manifest(TAPE), manifest()
    with bridged(site, archiver):
        pass
    archiver.publish(one, two)
    database = f"sqlite:///{lab.home / 'catalogue.db'}"
    child = processes().Process(target=die, args=(database, lab.home / "bucket", archiver))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert kept(site, one)
    wait_until(lambda: archiver.waiting() == 2)
    with bridged(site, archiver):
        wait_until(lambda: kept(site, one, two))
    assert archiver.waiting() == 0
    assert len(site.catalog.manifests()) == 2


def test_a_signal_ends_it_cleanly(lab: Lab, archiver: Archiver) -> None:
    """SIGTERM ends the bridge with exit code 0 after what it has in hand."""
    script = (
        "import sys; from plateway import pipeline, settings; from plateway.bridges import amqp\n"
        "amqp.run(pipeline.open_site(settings.load()), sys.argv[1], exchange=sys.argv[2], queue=sys.argv[3])"
    )
    told = {"PLATEWAY_HOME": str(lab.home), "PLATEWAY_BUCKET_URL": "memory://test", "PATH": os.defpath}
    command = [sys.executable, "-c", script, archiver.url, archiver.exchange, archiver.queue]
    with subprocess.Popen(command, env=told) as process:
        wait_until(archiver.bound)
        archiver.publish(one := manifest(TAPE))
        wait_until(lambda: kept(lab.site, one))
        process.terminate()
        assert process.wait(60) == 0
    assert archiver.waiting() == 0


@contextmanager
def down(postgres_url: str) -> Iterator[None]:
    """Make the database refuse connections, and drop those it has."""
    name, engine = (
        make_url(postgres_url).database,
        administration(make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)),
    )
    with engine.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        try:
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    engine.dispose()


def test_a_catalogue_that_is_down_is_waited_for(
    tmp_path: Path, postgres_url: str, archiver: Archiver, caplog: pytest.LogCaptureFixture
) -> None:
    """While the catalogue does not answer nothing is acknowledged; afterwards all is there, once."""
    caplog.set_level(logging.WARNING, amqp.log.name)
    catalog = Catalog(postgres_url)
    catalog.upgrade()
    (tmp_path / "bucket").mkdir()
    site = Site(catalog, open_store((tmp_path / "bucket").as_uri()), tmp_path, settings.load().instrument, owner="test")
    sent = [manifest(TAPE) for _ in range(6)]
    with bridged(site, archiver, prefetch=4):
        with down(str(make_url(postgres_url).render_as_string(hide_password=False))):
            archiver.publish(*sent)
            wait_until(lambda: len([one for one in caplog.messages if "will be retried" in one]) >= 5)
        wait_until(lambda: kept(site, *sent))
    assert archiver.waiting() == 0
    assert len(catalog.manifests()) == len(sent)
    catalog.close()


class Proxy:
    """A wire to a server that can be cut so that neither side hears of it."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.cut: set[socket.socket] = set()
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Pass nothing on any more over the connections there are; new ones work."""
        self.cut |= self.open

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        for one in (self.listener, *self.open):
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.open |= {near, far}
                for giving, taking in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(giving, taking), daemon=True).start()

    def _pass(self, giving: socket.socket, taking: socket.socket) -> None:
        with suppress(OSError):
            while data := giving.recv(1 << 16):
                if giving not in self.cut:
                    taking.sendall(data)


def test_a_connection_that_fell_silent_is_made_anew(lab: Lab, rabbit: Rabbit, archiver: Archiver) -> None:
    """A half-open connection is found by its missing heartbeats; what was sent into it comes again."""
    site, one, two = lab.site, manifest(TAPE), manifest()
    proxy = Proxy(rabbit.port)
    url = rabbit.url.replace(f":{rabbit.port}", f":{proxy.port}")
    with bridged(site, archiver, url=url, heartbeat=1):
        archiver.publish(one)
        wait_until(lambda: kept(site, one))
        proxy.freeze()
        archiver.publish(two)
        wait_until(lambda: kept(site, two))
    proxy.close()


def test_a_restart_of_the_broker_is_survived(lab: Lab, rabbit: Rabbit, archiver: Archiver) -> None:
    """The bridge waits for a broker that was killed, and makes exchange and binding anew, which the broker forgot."""
    site, before, after = lab.site, manifest(TAPE), manifest()
    with bridged(site, archiver):
        archiver.publish(before)
        wait_until(lambda: kept(site, before))
        rabbit.kill()
        rabbit.start()
        archiver.publish(after)
        wait_until(lambda: kept(site, after))
    assert archiver.waiting() == 0
