"""Messages to real Redis and RabbitMQ servers, to an HTTP receiver, and into a directory."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pika
import pytest

from plateway import bench
from plateway.bridges import redis as redis_bridge
from plateway.catalog import Catalog
from plateway.cli.commands import app
from plateway.errors import Misconfigured, Rejected, Unavailable
from plateway.outbox import relay
from plateway.outbox.amqp import open_exchange
from plateway.outbox.directory import open_directory
from plateway.outbox.message import encode
from plateway.outbox.opening import open_targets
from plateway.outbox.redis import open_streams
from plateway.outbox.relay import Relay, Send, Target
from plateway.outbox.webhook import open_webhook, sign
from plateway.settings import load
from tests.bridges import mortal_relay
from tests.bridges.servers import Rabbit, RedisServer, Server, wait_until
from tests.factories import NOW, add, export, prove
from tests.lab import Lab

SITE = UUID(int=7)


@pytest.fixture
def catalog(lab: Lab) -> Catalog:
    """A catalogue of which the clock stands still."""
    return lab.catalog


def tell(catalog: Catalog, *targets: str, events: Sequence[int] = (1, 2)) -> list[str]:
    """Record facts of events that targets are to be told, and return the ids of the messages."""
    catalog.register_targets(targets, now=NOW)
    for number in events:
        export(catalog, ref := add(catalog, number))
        prove(catalog, ref)
    return [str(one.id) for one in catalog.pending_messages(targets[0], limit=10_000)]


def target(name: str, opened: Any, *args: Any, **options: Any) -> Target:
    return Target(name, partial(opened, *args, **options))


@contextmanager
def relaying(catalog: Catalog, *targets: Target) -> Iterator[None]:
    """Relay meanwhile; it must end when it is told to."""
    stop = threading.Event()
    thread = threading.Thread(target=relay.run, args=(catalog, targets), kwargs={"stop": stop}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def pending(catalog: Catalog, name: str) -> int:
    return next(one.pending for one in catalog.backlogs() if one.target.name == name)


def entries(url: str, stream: str) -> list[dict[str, str]]:
    """What lies in a stream."""
    with redis_bridge.connect(url) as client:
        found: Any = client.xrange(stream)
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in found]


# ------------------------------------------------------------------------------------------------------------- Redis


def test_streams_have_the_shapes_of_dlm(catalog: Catalog, redis_server: RedisServer) -> None:
    """Fields of DLM v2, as text; what DLM has no message for is not written."""
    tell(catalog, "redis", events=[1])
    assert Relay(catalog, target("redis", open_streams, redis_server.url), "test").relay() == 3
    (imaging,) = entries(redis_server.url, "dlm:new-imaging-event")
    (exported,) = entries(redis_server.url, "dlm:new-export")
    event = catalog.ledgers()[0].event
    ours = {"publisher": "plateway"}
    assert imaging.pop("message_id") != exported.pop("message_id")
    assert imaging == ours | {
        "ref_id": str(event.id),
        "experiment_id": "20261121_012",
        "timestamp": event.timestamp.isoformat(),
        "type": "stitch",
        "system": "prince",
        "local_path": "images/1",
        "img_count": "12",
        "metadata": '{"position": 1}',
    }
    assert exported == ours | {
        "ref_id": str(event.id),
        "checksum": json.dumps({"hex": "s" * 64, "algorithm": "sha256"}),
        "size": "100",
        "key": f"raw/{event.key}",
        "timestamp": NOW.isoformat(),
    }


def test_our_own_entries_do_not_come_back(lab: Lab, redis_server: RedisServer) -> None:
    """The bridge that reads imaging events acknowledges what the outbox wrote, and writes no event file of it."""
    tell(lab.catalog, "redis", events=[1])
    Relay(lab.catalog, target("redis", open_streams, redis_server.url), "test").relay()
    with redis_bridge.connect(redis_server.url) as client:
        one = redis_bridge.Bridge(client, lab.bench, redis_bridge.STREAMS, "plateway", "test", "0", relay.HOLD)
        one.join()
        one.write_all(one.read(dict.fromkeys(one.streams, ">")), threading.Event())
        waiting: Any = client.xpending("dlm:new-imaging-event", "plateway")
    assert waiting["pending"] == 0
    assert [bench.list_systems(lab.bench), list((lab.bench / "prince" / "events").iterdir())] == [
        ["aretha", "prince"],
        [],
    ]


def kill_relay(lab: Lab, kind: str, address: str, point: str) -> None:
    """Run a relay that dies at this point, until its hold has expired."""
    database = f"sqlite:///{lab.home / 'catalogue.db'}"
    command = [sys.executable, "-m", "tests.bridges.mortal_relay", database, kind, address, point]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    lab.clock.turn(minutes=3)


@pytest.mark.parametrize("point", mortal_relay.POINTS)
def test_a_killed_relay_loses_nothing(point: str, lab: Lab, redis_server: RedisServer) -> None:
    """Killed before and after a message is sent, and after that is recorded: the next relay sends what is missing.

    What was sent and not recorded is sent again with the same id; first deliveries are in order.
    """
    told = tell(lab.catalog, "redis", events=[1, 2, 3])
    kill_relay(lab, "redis", redis_server.url, point)
    successor = Relay(lab.catalog, target("redis", open_streams, redis_server.url), "successor")
    assert successor.hold()
    assert successor.relay() == (0 if point == "recorded" else len(told))
    assert pending(lab.catalog, "redis") == 0
    for stream, place in (("dlm:new-imaging-event", 0), ("dlm:new-export", 1)):
        found = [one["message_id"] for one in entries(redis_server.url, stream)]
        assert list(dict.fromkeys(found)) == told[place::3]
        again = {"before": 1 - place, "after": 1, "recorded": 0}[point]
        assert len(found) == 3 + again


def test_redis_stopped_and_started(lab: Lab, redis_server: RedisServer) -> None:
    """While the server is down, facts are recorded and the error is known; then all arrive, in order."""
    first = tell(lab.catalog, "redis", events=[1])
    with relaying(lab.catalog, target("redis", open_streams, redis_server.url)):
        wait_until(lambda: pending(lab.catalog, "redis") == 0)
        redis_server.kill()
        tell(lab.catalog, "redis", events=[2, 3])
        wait_until(lambda: lab.catalog.backlogs()[0].target.error is not None)
        assert pending(lab.catalog, "redis") == 6
        redis_server.start()
        wait_until(lambda: pending(lab.catalog, "redis") == 0)
    assert lab.catalog.backlogs()[0].target.error is None
    told = [str(one.id) for one in reversed(lab.catalog.outbox_messages(target="redis"))]
    assert told[:3] == first
    found = [one["message_id"] for one in entries(redis_server.url, "dlm:new-export")]
    assert list(dict.fromkeys(found)) == told[1::3]


# ---------------------------------------------------------------------------------------------------------- RabbitMQ


@contextmanager
def channel(rabbit: Rabbit) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def received(rabbit: Rabbit, queue: str) -> list[tuple[Any, dict[str, Any]]]:
    """Get all messages from a queue: properties and CloudEvent."""
    found = []
    with channel(rabbit) as one:
        while (got := one.basic_get(queue, auto_ack=True))[0] is not None:
            found.append((got[1], json.loads(got[2])))
    return found


def test_rabbitmq_stopped_and_started(catalog: Catalog, rabbit: Rabbit) -> None:
    """Messages wait until a queue is bound, and while the broker is down; they are persistent, and keep their order."""
    name = f"plateway-{uuid4().hex[:8]}"
    told = tell(catalog, "amqp", events=[1])
    one = Relay(catalog, target("amqp", open_exchange, rabbit.url, name, site=SITE), "test")
    with pytest.raises(Unavailable, match=f"no queue is bound to exchange {name}"):
        one.relay()
    with channel(rabbit) as there:
        there.queue_declare(name, durable=True)
        there.queue_bind(name, name)
    assert one.relay() == 3
    Server.stop(rabbit)  # its epmd goes on
    told += tell(catalog, "amqp", events=[2])
    with pytest.raises(Unavailable, match=r"127.0.0.1"):
        one.relay()
    rabbit.start()
    assert one.relay() == 3
    found = received(rabbit, name)
    assert [properties.message_id for properties, _ in found] == told
    assert {(p.delivery_mode, p.content_type) for p, _ in found} == {(2, "application/cloudevents+json")}
    assert [event["type"].rpartition(".")[2] for _, event in found] == ["registered", "exported", "verified"] * 2
    with channel(rabbit) as there:
        there.exchange_delete(name)
        there.exchange_declare(name, "direct")
    tell(catalog, "amqp", events=[3])
    with pytest.raises(Misconfigured, match=f"exchange {name}"):
        one.relay()
    with channel(rabbit) as there:
        there.exchange_delete(name)
        there.queue_delete(name)


def test_rabbitmq_killed_keeps_queue_binding_and_messages(catalog: Catalog, rabbit: Rabbit) -> None:
    """A broker that is killed as by a power cut has the durable exchange, binding and every confirmed message."""
    name = f"plateway-{uuid4().hex[:8]}"
    with channel(rabbit) as there:
        there.exchange_declare(name, "fanout", durable=True)
        there.queue_declare(name, durable=True)
        there.queue_bind(name, name)
    told = tell(catalog, "amqp", events=[1])
    one = Relay(catalog, target("amqp", open_exchange, rabbit.url, name, site=SITE), "test")
    assert one.relay() == 3
    rabbit.kill()
    told += tell(catalog, "amqp", events=[2])
    with pytest.raises(Unavailable, match=r"127.0.0.1"):
        one.relay()
    rabbit.start()
    assert one.relay() == 3  # a queue is still bound: an unroutable message would be refused
    assert [properties.message_id for properties, _ in received(rabbit, name)] == told


# ----------------------------------------------------------------------------------------------------------- webhook


class Receiver(ThreadingHTTPServer):
    """Answers requests as it was told to, 204 by default, and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.script: list[int] = []  # statuses of the next answers
        self.refuse = b""  # answers 422 to what contains this
        self.requests: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?token=hidden"


class Answering(BaseHTTPRequestHandler):
    """One request at a `Receiver`."""

    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
        refused = bool(self.server.refuse) and self.server.refuse in body
        self.send_response(422 if refused else self.server.script.pop(0) if self.server.script else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Keep standard error for tests."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_webhook_gets_signed_cloud_events(catalog: Catalog, receiver: Receiver) -> None:
    """The body is a CloudEvent 1.0, and its signature that of Standard Webhooks."""
    told = tell(catalog, "webhook", events=[1])
    key = b"a key of at least 24 bytes"
    secret = "whsec_" + base64.b64encode(key).decode()
    one = Relay(catalog, target("webhook", open_webhook, receiver.url, secret, site=SITE, clock=lambda: NOW), "test")
    assert one.relay() == 3
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == told
    headers, body = receiver.requests[1]
    signed = f"{told[1]}.{int(NOW.timestamp())}.".encode() + body
    wanted = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"
    assert headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert headers["content-type"] == "application/cloudevents+json"
    event = catalog.ledgers()[0].event
    assert json.loads(body) == {
        "specversion": "1.0",
        "id": told[1],
        "source": f"urn:uuid:{SITE}",
        "type": "plateway.imaging-event.exported",
        "subject": str(event.id),
        "time": NOW.isoformat(),
        "datacontenttype": "application/json",
        "data": {
            "ref_id": str(event.id),
            "revision": 1,
            "system": "prince",
            "type": "stitch",
            "experiment_id": "20261121_012",
            "timestamp": event.timestamp.isoformat(),
            "img_count": 12,
            "key": f"raw/{event.key}",
            "size": 100,
            "sha256": "s" * 64,
            "uploaded_at": NOW.isoformat(),
        },
    }
    assert "webhook-signature" not in sign("id", b"", key=None, now=NOW)


@pytest.mark.parametrize("status", [301, 401, 404, 429, 500, 503])
def test_a_receiver_in_trouble_gets_all_later(status: int, catalog: Catalog, receiver: Receiver) -> None:
    """Any answer but 2xx leaves the message and those after it pending; the error shows no secret of the address."""
    told = tell(catalog, "webhook")
    receiver.script = [204, status]
    one = Relay(catalog, target("webhook", open_webhook, receiver.url, None, site=SITE), "test")
    with pytest.raises(Unavailable, match=f"answered {status} to exported") as error:
        one.relay()
    assert "hidden" not in str(error.value)
    assert (pending(catalog, "webhook"), catalog.backlogs()[0].target.error) == (5, str(error.value))
    assert one.relay() == 5
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == [told[0], told[1], *told[1:]]


def test_a_refused_message_holds_back_its_event_alone(catalog: Catalog, receiver: Receiver) -> None:
    """A receiver that refuses one message gets no later one of that event, and all of the others."""
    told = tell(catalog, "webhook", events=[1, 2])
    receiver.refuse = told[1].encode()
    one = Relay(catalog, target("webhook", open_webhook, receiver.url, None, site=SITE), "test")
    with pytest.raises(Rejected, match="answered 422 to exported"):
        one.relay()
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == [told[0], told[1], *told[3:]]
    receiver.refuse = b""
    assert one.relay() == 2
    assert [headers["webhook-id"] for headers, _ in receiver.requests[-2:]] == told[1:3]


def test_wrong_addresses_and_secrets_are_misconfigured() -> None:
    """What no retry mends names the setting."""
    with pytest.raises(Misconfigured, match="WEBHOOK_URL"), open_webhook("ftp://x", None, site=SITE):
        pass
    with pytest.raises(Misconfigured, match="WEBHOOK_SECRET"), open_webhook("http://x", "whsec_?", site=SITE):
        pass


# --------------------------------------------------------------------------------------------------------- directory


def test_a_directory_gets_files_in_order(catalog: Catalog, tmp_path: Path) -> None:
    """Names sort in the order of the messages; a message sent again is the same file; a missing directory waits."""
    told = tell(catalog, "directory")
    path = tmp_path / "out"
    one = Relay(catalog, target("directory", open_directory, path, site=SITE), "test")
    with pytest.raises(Misconfigured, match="no such directory"):
        one.relay()
    path.mkdir()
    messages = catalog.pending_messages("directory")
    assert one.relay() == 6
    files = sorted(path.iterdir())
    assert [json.loads(file.read_bytes())["id"] for file in files] == told
    assert [file.read_bytes() for file in files] == [encode(message, site=SITE) for message in messages]
    assert catalog.replay_messages("directory") == 6
    assert one.relay() == 6
    assert sorted(path.iterdir()) == files


def test_a_target_in_trouble_stops_no_other(catalog: Catalog, tmp_path: Path) -> None:
    """Each target has its own backlog: one that fails waits, and the other gets everything."""

    def unreachable() -> AbstractContextManager[Send]:
        raise Unavailable("down")

    tell(catalog, "telex", "directory")
    (tmp_path / "out").mkdir()
    with relaying(
        catalog, Target("telex", unreachable), target("directory", open_directory, tmp_path / "out", site=SITE)
    ):
        wait_until(lambda: pending(catalog, "directory") == 0 and catalog.backlogs()[1].target.error == "down")
    assert pending(catalog, "telex") == 6


# ------------------------------------------------------------------------------------------------ killed, to any target


@pytest.mark.parametrize("point", ["before", "after"])
@pytest.mark.parametrize("kind", ["amqp", "webhook", "directory"])
def test_a_relay_killed_at_any_target_loses_nothing(
    kind: str, point: str, lab: Lab, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Killed before or after the second message is sent: all arrive, in order; again only those with the same ids."""
    told = tell(lab.catalog, kind)
    address, ids = place_of(kind, tmp_path, request)
    kill_relay(lab, kind, address, point)
    successor = Relay(lab.catalog, Target(kind, partial(mortal_relay.OPEN[kind], address)), "successor")
    assert successor.hold()
    assert successor.relay() == len(told)
    assert pending(lab.catalog, kind) == 0
    found = ids()
    assert list(dict.fromkeys(found)) == told
    again = {"before": told[:1], "after": told[:2]}[point]
    assert found == [*again, *told] if kind != "directory" else found == told  # the same file is written again


def place_of(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Callable[[], list[str]]]:
    """Return the address of a target, and what reads the ids of the messages that it has, in order of arrival."""
    if kind == "directory":
        (out := tmp_path / "out").mkdir()
        return str(out), lambda: [json.loads(one.read_bytes())["id"] for one in sorted(out.glob("*.json"))]
    if kind == "webhook":
        hook: Receiver = request.getfixturevalue("receiver")
        return hook.url, lambda: [headers["webhook-id"] for headers, _ in hook.requests]
    rabbit: Rabbit = request.getfixturevalue("rabbit")
    name = f"plateway-{uuid4().hex[:8]}"
    with channel(rabbit) as one:
        one.exchange_declare(name, "fanout", durable=True)
        one.queue_declare(name, durable=True)
        one.queue_bind(name, name)
    return f"{rabbit.url}#{name}", lambda: [properties.message_id for properties, _ in received(rabbit, name)]


# ------------------------------------------------------------------------------------------------------ command line


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``status`` and ``outbox`` show the backlog; ``replay`` and ``forget`` do what they say."""
    home = tmp_path / "home"
    monkeypatch.setenv("PLATEWAY_HOME", str(home))
    monkeypatch.setenv("PLATEWAY_BUCKET_URL", (tmp_path / "bucket").as_uri())
    monkeypatch.setenv("PLATEWAY_OUTBOX_DIRECTORY", str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "bucket").mkdir()

    def run(*words: str) -> str:
        app(list(words), standalone_mode=False)
        return capsys.readouterr().out

    run("db", "upgrade")
    config = load()
    catalog = Catalog(config.catalog_url)
    (one,) = open_targets(config, site=SITE)
    tell(catalog, one.name, events=[1])
    assert "messages to directory: 3 pending" in run("status")
    found = json.loads(run("outbox", "list", "--pending", "--json"))
    assert [each["fact"] for each in found["messages"]] == ["verified", "exported", "registered"]
    assert (found["targets"][0]["target"], found["targets"][0]["pending"]) == ("directory", 3)
    Relay(catalog, one, "test").relay()
    assert json.loads(run("status", "--json"))["outbox"][0]["pending"] == 0
    assert "delivered" in run("outbox", "list")
    assert json.loads(run("outbox", "replay", "directory", "--json")) == {"replayed": 3}
    assert "forgotten" in run("outbox", "forget", "directory")
    assert "No targets" in run("outbox", "list")
    catalog.close()
