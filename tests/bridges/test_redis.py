"""Imaging events from Redis streams, with a real Redis server."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis as client
from typer.testing import CliRunner

from plateway import cli, pipeline
from plateway.bridges import redis as bridge
from plateway.errors import Denied, Misconfigured
from plateway.events import Ref
from tests.bridges.servers import RedisServer, wait_until
from tests.databases import processes
from tests.lab import Lab

STREAM, README_STREAM = bridge.STREAMS
SOON = timedelta(milliseconds=100)


def said(ref_id: UUID, /, **changes: str) -> dict[Any, Any]:
    """An imaging event as DLM v2's mock-prince writes it: flat strings."""
    return {
        "ref_id": str(ref_id),
        "experiment_id": "test-id",
        "timestamp": "2026-05-04T05:59:00Z",
        "type": "stitch",
        "system": "aretha",
        "local_path": ref_id.hex[:6],
        "img_count": "1",
        "metadata": '{"application": {"application": "mock-prince"}}',
    } | changes


def image(lab: Lab, ref_id: UUID, *, system: str = "aretha") -> None:
    place = lab.bench / system / ref_id.hex[:6]
    place.mkdir()
    (place / "Img_r10_c15.tif").write_bytes(b"image")


def event_files(lab: Lab) -> list[str]:
    return sorted(str(path.relative_to(lab.bench)) for path in lab.bench.glob("*/events/*"))


@pytest.fixture
def streams(redis_server: RedisServer) -> Iterator[client.Redis]:
    """The server as an instrument sees it."""
    with client.Redis.from_url(redis_server.url, protocol=2) as connection:
        yield connection


def waiting(streams: client.Redis, stream: str = STREAM) -> int | None:
    """How many entries are not acknowledged, None as long as nobody reads."""
    try:
        groups: Any = streams.xinfo_groups(stream)
    except client.RedisError:
        return None
    newest: Any = streams.xrevrange(stream, count=1)
    read = groups and (not newest or groups[0]["last-delivered-id"] == newest[0][0])
    return groups[0]["pending"] if read else None


@contextmanager
def bridged(lab: Lab, server: RedisServer, **options: Any) -> Iterator[None]:
    """Run the bridge meanwhile; it must end when it is told to."""
    stop = threading.Event()
    told = {"consumer": "test", "stop": stop, **options}
    thread = threading.Thread(target=bridge.run, args=(lab.bench, server.url), kwargs=told, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def settled(streams: client.Redis) -> None:
    wait_until(lambda: waiting(streams, STREAM) == 0 and waiting(streams, README_STREAM) == 0)


@pytest.mark.parametrize("stream", bridge.STREAMS)
@pytest.mark.parametrize("shape", ["flat", "data"])
def test_an_entry_becomes_an_event(
    lab: Lab, redis_server: RedisServer, streams: client.Redis, stream: str, shape: str
) -> None:
    """What an instrument wrote to either stream, in either shape, is registered and sealed like any other event."""
    ref_id = uuid4()
    image(lab, ref_id)
    fields = said(ref_id)
    if shape == "data":
        nested = {"staging_path": None, "local_path": ref_id.hex[:6], "img_count": 1, "raw_metadata": {"plate": 7}}
        plain = {name: fields[name] for name in ("ref_id", "experiment_id", "timestamp", "type", "system")}
        fields = {"data": json.dumps({**plain, "src_dir_info": nested})}
    streams.xadd(stream, fields)
    with bridged(lab, redis_server):
        settled(streams)
    assert event_files(lab) == [f"aretha/events/{ref_id}.json"]
    assert lab.settle().sealed == (Ref(ref_id, 1),)
    event = lab.catalog.get(Ref(ref_id, 1))
    assert (event.system, event.experiment, event.image_count) == ("aretha", "test-id", 1)
    assert event.plate == (7 if shape == "data" else None)


def test_simulated_instruments_announce_in_the_stream(
    lab: Lab, redis_server: RedisServer, streams: client.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`simulate --redis` writes images and flat entries, as mock-prince, and no event file; the bridge takes them."""
    monkeypatch.setenv("PLATEWAY_REDIS_URL", redis_server.url)
    monkeypatch.setenv("PLATEWAY_SOURCE_ROOT", str(lab.bench))
    words = ["simulate", "--redis", "--system", "prince", "--events", "2", "--rate", "99", "--size", "32", "--json"]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    told = json.loads(done.stdout)["events"]
    assert [one["file"] for one in told] == [None, None]
    assert not list((lab.bench / "prince").glob("events/*"))
    found: Any = streams.xrange(STREAM)
    assert [entry[b"ref_id"].decode() for _, entry in found] == [one["id"] for one in told]
    assert found[0][1][b"img_count"] == b"6"
    assert json.loads(found[0][1][b"metadata"])
    with bridged(lab, redis_server):
        settled(streams)
    assert {str(ref.id) for ref in lab.settle().sealed} == {one["id"] for one in told}


def test_defaults_are_those_of_dlm(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """An event without system, type and metadata, its id without dashes, is a stitch of prince."""
    ref_id = uuid4()
    fields = said(ref_id, ref_id=ref_id.hex.upper())
    streams.xadd(STREAM, {name: fields[name] for name in fields.keys() - {"system", "type", "metadata"}})
    with bridged(lab, redis_server):
        settled(streams)
    assert event_files(lab) == [f"prince/events/{ref_id}.json"]
    assert pipeline.register(lab.site).new == (Ref(ref_id, 1),)


def test_the_same_entry_again_changes_nothing(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """Redelivery finds its event file there already, and leaves it alone."""
    ref_id = uuid4()
    for _ in range(3):
        streams.xadd(STREAM, said(ref_id))
    streams.xadd(README_STREAM, said(ref_id))
    with bridged(lab, redis_server):
        settled(streams)
    assert event_files(lab) == [f"aretha/events/{ref_id}.json"]


def test_other_content_under_the_same_id_overwrites_nothing(
    lab: Lab, redis_server: RedisServer, streams: client.Redis
) -> None:
    """A second announcement gets a file of its own, however often it comes, and the catalogue shows the conflict."""
    ref_id = uuid4()
    for fields in (said(ref_id), said(ref_id, img_count="2"), said(ref_id), said(ref_id, img_count="2")):
        streams.xadd(STREAM, fields)
    with bridged(lab, redis_server):
        settled(streams)
    assert len(event_files(lab)) == 2
    assert sorted(pipeline.register(lab.site).new) == [Ref(ref_id, 1), Ref(ref_id, 2)]
    assert lab.catalog.ledger(Ref(ref_id, 2)).event.revision == 2


def test_a_file_already_there_is_never_overwritten(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """An event file that somebody else wrote keeps its bytes; ours lies beside it."""
    ref_id = uuid4()
    theirs = lab.bench / "aretha" / "events" / f"{ref_id}.json"
    theirs.write_text("theirs")
    streams.xadd(STREAM, said(ref_id))
    with bridged(lab, redis_server):
        settled(streams)
    assert theirs.read_text() == "theirs"
    assert len(event_files(lab)) == 2


MALFORMED: dict[str, tuple[dict[bytes, bytes], str]] = {
    "no UTF-8": ({b"ref_id": b"2f1c\x80"}, "not UTF-8: byte 0x80"),
    "no id": ({b"system": b"aretha", b"img_count": b"1"}, "neither timestep_id nor ref_id"),
    "no UUID": ({b"ref_id": b"../../etc/passwd"}, 'ref_id: "../../etc/passwd" is not a UUID'),
    "no number": ({b"img_count": b"one"}, 'img_count: "one" is not a whole number'),
    "a path that climbs": ({b"local_path": b"../x"}, "climbs out with '..'"),
    "no JSON": ({b"data": b"{"}, "not JSON"),
    "no object": ({b"data": b"[1]"}, "an event: [1] is not an object"),
    "a name twice": ({b"data": b'{"ref_id": "a", "ref_id": "b"}'}, '"ref_id": there twice'),
    "nothing but depth": ({b"data": b"[" * 20_000}, "nested deeper"),
    "too large": ({b"metadata": b" " * (1 << 20)}, "an event file has at most 1048576"),
    "a time without zone": ({b"timestamp": b"2026-05-04T05:59:00"}, "has no time zone"),
    "a system that climbs": ({b"system": b"../aretha"}, "in the directory of 'redis-bridge'"),
    "a hidden system": ({b"system": b".trash"}, "in the directory of 'redis-bridge'"),
    "a system with slashes": ({b"system": b"/etc"}, "in the directory of 'redis-bridge'"),
}


def test_what_is_malformed_is_quarantined_for_what_is_wrong(lab: Lab) -> None:
    """An entry that is no event is kept as a file below the bench; the discovery says exactly what is wrong with it."""
    reasons = {}
    for number, (name, (wrong, reason)) in enumerate(MALFORMED.items()):
        fields = {field.encode(): value.encode() for field, value in said(uuid4()).items()}
        fields = wrong if name == "no id" or b"data" in wrong else fields | wrong
        entry = bridge.StreamEntry(STREAM, f"1736427802000-{number}", tuple(fields.items()))
        reasons[bridge.keep(lab.bench, bridge.event_file(entry))] = reason
    found = {f"{one.system}/events/{one.key}": one.reasons[0] for one in pipeline.register(lab.site).quarantined}
    assert found.keys() == reasons.keys()
    assert [path for path, reason in reasons.items() if reason not in found[path]] == []
    assert {path.parent.parent.name for path in lab.home.rglob("*.json")} == {"prince", "aretha", "redis-bridge"}


def test_a_field_twice_is_not_halved(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """Stream entries may have a name twice; both values reach the quarantine."""
    ref_id = uuid4()
    pairs = [part for pair in said(ref_id).items() for part in pair]
    streams.execute_command("XADD", STREAM, "*", *pairs, "img_count", "2")  # type: ignore[no-untyped-call]
    with bridged(lab, redis_server):
        settled(streams)
    (outcome,) = pipeline.register(lab.site).quarantined
    assert outcome.reasons == ('"img_count": there twice',)


def test_a_malformed_entry_stops_nobody(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """D16: after a poison entry the next one comes through, and the poison is in quarantine."""
    ref_id = uuid4()
    streams.xadd(STREAM, {b"\xff": b"\xfe"})
    streams.xadd(STREAM, said(ref_id))
    with bridged(lab, redis_server):
        settled(streams)
    found = pipeline.register(lab.site)
    assert found.new == (Ref(ref_id, 1),)
    assert len(found.quarantined) == 1


def test_a_system_that_is_not_there_is_waited_for(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """While a system has no directory for event files (not mounted?) its entries wait, and others go on."""
    late, other = uuid4(), uuid4()
    streams.xadd(STREAM, said(late, system="tsu-exp001"))
    streams.xadd(STREAM, said(other))
    with bridged(lab, redis_server, idle=SOON):
        wait_until(lambda: waiting(streams) == 1)
        assert event_files(lab) == [f"aretha/events/{other}.json"]
        (lab.bench / "tsu-exp001" / "events").mkdir(parents=True)
        settled(streams)
    assert f"tsu-exp001/events/{late}.json" in event_files(lab)


def test_pending_entries_of_dead_consumers_are_claimed(
    lab: Lab, redis_server: RedisServer, streams: client.Redis
) -> None:
    """D13: what somebody took and never acknowledged becomes an event file all the same."""
    ids = [uuid4() for _ in range(40)]
    for ref_id in ids:
        streams.xadd(STREAM, said(ref_id))
    streams.xgroup_create(STREAM, bridge.GROUP, id="0")
    streams.xreadgroup(bridge.GROUP, "dead", {STREAM: ">"}, count=100)
    with bridged(lab, redis_server, idle=SOON):
        settled(streams)
    assert event_files(lab) == sorted(f"aretha/events/{ref_id}.json" for ref_id in ids)


def test_our_own_pending_entries_come_first(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """D13: under the name of before, a bridge begins with what it had not acknowledged; it need not wait for it."""
    ids = [uuid4() for _ in range(40)]
    for ref_id in ids:
        streams.xadd(STREAM, said(ref_id))
    streams.xgroup_create(STREAM, bridge.GROUP, id="0")
    streams.xreadgroup(bridge.GROUP, "test", {STREAM: ">"}, count=100)
    with bridged(lab, redis_server, idle=timedelta(hours=1)):
        settled(streams)
    assert event_files(lab) == sorted(f"aretha/events/{ref_id}.json" for ref_id in ids)


def test_what_was_trimmed_is_noted(
    lab: Lab, redis_server: RedisServer, streams: client.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Entries that went before they were read, undelivered or pending, ours or a dead one's, leave a line each."""
    caplog.set_level(logging.WARNING, bridge.log.name)
    names: list[Any] = [streams.xadd(STREAM, said(uuid4())) for _ in range(6)]
    streams.xgroup_create(STREAM, bridge.GROUP, id="0")
    for consumer in ("test", "dead"):
        streams.xreadgroup(bridge.GROUP, consumer, {STREAM: ">"}, count=1)
    streams.xdel(STREAM, *names[:2])
    streams.xtrim(STREAM, maxlen=1, approximate=False)
    with bridged(lab, redis_server, idle=SOON):
        settled(streams)
        wait_until(lambda: len(caplog.messages) >= 3)
    assert sorted(caplog.messages) == [
        f"- {STREAM}: 3 entries were trimmed or deleted before they were read",
        *sorted(f"- {STREAM}: entry {name.decode()} was trimmed or deleted before it was read" for name in names[:2]),
    ]
    assert len(event_files(lab)) == 1


def test_a_restart_of_the_server_is_survived(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """The bridge waits for a server that died, goes on where it was, and makes its group anew if it is gone."""
    ids = [uuid4() for _ in range(3)]
    streams.xadd(STREAM, said(ids[0]))
    with bridged(lab, redis_server):
        settled(streams)
        redis_server.kill()
        redis_server.start()
        streams.xadd(STREAM, said(ids[1]))
        settled(streams)
        streams.flushall()
        streams.xadd(STREAM, said(ids[2]))
        settled(streams)
    assert event_files(lab) == sorted(f"aretha/events/{ref_id}.json" for ref_id in ids)


def test_a_server_that_is_not_there_yet_is_waited_for(lab: Lab, redis_server: RedisServer) -> None:
    """A bridge may start before its server."""
    redis_server.stop()
    ref_id = uuid4()
    with bridged(lab, redis_server):
        redis_server.start()
        with client.Redis.from_url(redis_server.url, protocol=2) as streams:
            streams.xadd(STREAM, said(ref_id))
            settled(streams)
    assert event_files(lab) == [f"aretha/events/{ref_id}.json"]


class Mortal(bridge.Bridge):
    """Dies after it has written an event file, before it acknowledges the entry."""

    def write_entry(self, entry: bridge.StreamEntry) -> bool:
        super().write_entry(entry)
        os.kill(os.getpid(), signal.SIGKILL)
        return False


def die(root: Path, url: str) -> None:
    one = Mortal(bridge.connect(url), root, bridge.STREAMS, bridge.GROUP, "test", "0", SOON)
    one.join()
    one.serve(threading.Event())


def test_killed_before_the_acknowledgement(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """Kill -9 between the durable file and its acknowledgement: the entry comes again and changes nothing."""
    ids = [uuid4() for _ in range(3)]
    for ref_id in ids:
        streams.xadd(STREAM, said(ref_id))
    child = processes().Process(target=die, args=(lab.bench, redis_server.url))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert waiting(streams) == 3
    before = {path: path.stat().st_mtime_ns for path in lab.bench.glob("aretha/events/*.json")}
    assert len(before) == 1
    with bridged(lab, redis_server):
        settled(streams)
    assert event_files(lab) == sorted(f"aretha/events/{ref_id}.json" for ref_id in ids)
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())


def cramp(root: Path, url: str) -> None:
    """Read once with a disk that takes no more than 100 bytes in a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    one = bridge.Bridge(bridge.connect(url), root, bridge.STREAMS, bridge.GROUP, "test", "0", SOON)
    one.join()
    one.write_all(one.read({STREAM: ">"}), threading.Event())


def test_a_full_disk_keeps_entries_pending(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """What cannot be written is not acknowledged, leaves nothing behind, and is written when there is room."""
    ref_id = uuid4()
    streams.xadd(STREAM, said(ref_id))
    child = processes().Process(target=cramp, args=(lab.bench, redis_server.url))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert waiting(streams) == 1
    assert event_files(lab) == []
    with bridged(lab, redis_server):
        settled(streams)
    assert event_files(lab) == [f"aretha/events/{ref_id}.json"]


def test_a_signal_ends_it_cleanly(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """SIGTERM ends the bridge with exit code 0 after what it has in hand."""
    streams.xadd(STREAM, said(uuid4()))
    script = (
        "import pathlib, sys; from plateway.bridges import redis; redis.run(pathlib.Path(sys.argv[1]), sys.argv[2])"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(lab.bench), redis_server.url]) as process:
        settled(streams)
        process.terminate()
        assert process.wait(60) == 0
    assert len(event_files(lab)) == 1


def test_what_waiting_does_not_help_is_told(lab: Lab, redis_server: RedisServer, streams: client.Redis) -> None:
    """A wrong password, a stream that is none and a URL that is none end the bridge, and tell no secret."""
    streams.set(STREAM, "text")
    with pytest.raises(Misconfigured, match="WRONGTYPE"):
        bridge.run(lab.bench, redis_server.url)
    streams.config_set("requirepass", "right")
    with pytest.raises(Denied) as denied:
        bridge.run(lab.bench, redis_server.url.replace("redis://", "redis://:canary@"))
    with pytest.raises(Misconfigured) as misconfigured:
        bridge.run(lab.bench, "redis://:canary@host:port")
    with pytest.raises(Misconfigured, match="consumer"):
        bridge.run(lab.bench, redis_server.url, consumer="a b")
    assert "canary" not in f"{denied.value} {misconfigured.value}"


def test_a_missing_extra_is_named() -> None:
    """Without redis-py the bridge says what to install."""
    script = "import sys; sys.modules['redis'] = None; import plateway.bridges.redis"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pip install 'plateway[redis]'" in told.stderr
