"""Imaging events from Redis streams, in the format of DLM v2.

Manages the consumer group and acknowledgements: an entry is acknowledged after its event file is durable on the bench.
From there it is an event like any other: registration validates it, and quarantines it with the reason if it is not
valid. An entry that cannot be written yet stays pending and is retried.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from plateway.errors import Denied, Misconfigured, PlatewayError, Unavailable, Unsettled

try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import (
        AuthenticationError,
        AuthorizationError,
        NoPermissionError,
        RedisError,
        ResponseError,
    )
    from redis.retry import Retry
except ImportError as error:
    raise Misconfigured("the Redis bridge needs redis-py: pip install 'plateway[redis]'") from error

from plateway import bench, events, folder
from plateway.bridges.running import Backoff, rest, stopping
from plateway.names import shown

STREAMS = ("dlm:imaging-events", "dlm:new-imaging-event")  # the names in DLM v2's code and in its README
GROUP = "plateway"
PUBLISHER = b"plateway"  # in the field `publisher` of entries that an outbox wrote: these events are registered
SYSTEM = "prince"  # DLM v2's default for an event without a system
FALLBACK = "redis-bridge"  # system of events whose system name is not valid; registration quarantines them
ASIDE = ".bridge"  # directory for temporary files, within that of event files
BATCH = 16
BLOCK = 250  # milliseconds that a read waits for new entries; a stop waits as long
PATIENT = 5.0  # seconds after which a connection without data is closed

NUMBER = re.compile(r"-?\d{1,10}", re.ASCII)
HEX = re.compile(r"[0-9a-f]{32}", re.ASCII | re.IGNORECASE)
CONSUMER = re.compile(r"[A-Za-z0-9._:@-]{1,128}", re.ASCII)

log = logging.getLogger(__name__)


class StreamEntry(NamedTuple):
    """One entry of a stream."""

    stream: str
    id: str
    fields: tuple[tuple[bytes, bytes], ...] | None  # None: trimmed or deleted meanwhile


class StreamEventFile(NamedTuple):
    """The event file of an entry."""

    system: str
    name: str  # without .json
    content: bytes


def run(
    root: Path,
    url: str,
    *,
    streams: Sequence[str] = STREAMS,
    group: str = GROUP,
    consumer: str | None = None,
    start: str = "0",
    idle: timedelta = timedelta(minutes=1),
    stop: threading.Event | None = None,
) -> None:
    """Write stream entries to event files on the bench until ``stop`` is set, or SIGTERM or SIGINT arrives.

    Missing streams and groups are created; a new group begins after the entry ``start`` (``$``: with new entries).
    ``consumer`` must stay the same over restarts; default: the host's name. Entries that are pending for longer than
    ``idle`` are retried, including those of other consumers. Without ``stop``, call it from the main thread.

    Raises:
        Misconfigured: the URL is not valid, or the server or a stream has another type.
        Denied: the server refuses the credentials.
    """
    client = connect(url)
    bridge = Bridge(client, root, tuple(streams), group, _consumer(consumer), start, idle)
    where = _where(client)
    patience = Backoff()
    with stopping(stop) as asked, closing(client):
        while not asked.is_set():
            try:
                bridge.join()
                log.info("%s: reading %s as %s of group %s", where, ", ".join(streams), bridge.consumer, group)
                patience.reset()
                bridge.serve(asked)
            except RedisError as error:
                pause = patience.pause()
                log.warning("%s: %s; retrying in %.1f s", where, translate_error(error), pause)
                rest(asked, pause)
        log.info("%s: stopped", where)


@dataclass
class Bridge:
    """Reads entries from streams and writes event files to the bench."""

    client: Redis
    root: Path
    streams: tuple[str, ...]
    group: str
    consumer: str
    start: str
    idle: timedelta
    missed: dict[str, int] = field(default_factory=dict)  # entries by stream that were trimmed unread

    def join(self) -> None:
        """Create missing streams and groups."""
        for stream in self.streams:
            try:
                self.client.xgroup_create(stream, self.group, id=self.start, mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    def serve(self, stop: threading.Event) -> None:
        """Process our pending entries, then new ones, and from time to time those that no consumer finished."""
        for stream in self.streams:
            self.report_missed(stream)
            self.write_all(self.pending(stream), stop)
        look = 0.0
        while not stop.is_set():
            if time.monotonic() >= look:
                for stream in self.streams:
                    self.report_missed(stream)
                    self.write_all(self.abandoned(stream), stop)
                look = time.monotonic() + self.idle.total_seconds() / 2
            self.write_all(self.read(dict.fromkeys(self.streams, ">"), block=BLOCK), stop)

    def pending(self, stream: str) -> Iterator[StreamEntry]:
        """Yield entries that were delivered to us and not acknowledged, each once."""
        last = "0"
        while batch := self.read({stream: last}):
            yield from batch
            last = batch[-1].id

    def abandoned(self, stream: str) -> Iterator[StreamEntry]:
        """Claim entries of any consumer that are pending for too long, each once: a claim resets the age."""
        cursor = "0-0"
        idle = int(self.idle.total_seconds() * 1000)
        while True:
            found = self.send_command("XAUTOCLAIM", stream, self.group, self.consumer, idle, cursor, "COUNT", BATCH)
            yield from _entries(stream, found[1])
            yield from (StreamEntry(stream, gone.decode(), None) for gone in (found[2] if len(found) > 2 else ()))
            cursor = found[0].decode()
            if cursor == "0-0":
                return

    def read(self, after: Mapping[str, str], *, block: int | None = None) -> list[StreamEntry]:
        wait = () if block is None else ("BLOCK", block)
        batch = ("COUNT", BATCH, *wait, "STREAMS", *after, *after.values())
        found = self.send_command("XREADGROUP", "GROUP", self.group, self.consumer, *batch)
        return [entry for stream, entries in found or () for entry in _entries(stream.decode(), entries)]

    def send_command(self, *command: str | int) -> Any:
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def write_all(self, entries: Iterator[StreamEntry] | Sequence[StreamEntry], stop: threading.Event) -> None:
        for entry in entries:
            if stop.is_set():
                return
            if self.write_entry(entry):
                self.client.xack(entry.stream, self.group, entry.id)

    def write_entry(self, entry: StreamEntry) -> bool:
        """Write an entry's event file. Returns whether the entry can be acknowledged: durable, or deleted."""
        if entry.fields is None:
            log.warning("- %s: entry %s was trimmed or deleted before it was read", entry.stream, entry.id)
            return True
        if (b"publisher", PUBLISHER) in entry.fields:
            return True  # our own outbox writes to this server, too
        said = event_file(entry)
        system = shown(said.system)
        try:
            file = keep(self.root, said)
        except PlatewayError as error:
            log.warning("%s %s: pending in %s, entry %s: %s", said.name, system, entry.stream, entry.id, error)
            return False
        log.info("%s %s: %s from %s, entry %s", said.name, system, file, entry.stream, entry.id)
        return True

    def report_missed(self, stream: str) -> None:
        """Log how many entries were trimmed before they were read; servers older than Redis 7 do not count them."""
        info: Any = self.client.xinfo_stream(stream)
        group: Any = next(each for each in self.client.xinfo_groups(stream) if each["name"].decode() == self.group)
        first, last = info["first-entry"], group["last-delivered-id"]
        added, read = info.get("entries-added"), 0 if last == b"0-0" else group.get("entries-read")
        if added is None or read is None:
            return
        unread = first is None or _order(first[0]) > _order(last)
        missed = added - info["length"] - read if unread else 0
        if missed > 0 and missed != self.missed.get(stream):
            log.warning("- %s: %d entries were trimmed or deleted before they were read", stream, missed)
        self.missed[stream] = missed


def event_file(entry: StreamEntry) -> StreamEventFile:
    """Convert an entry to an event file.

    Entries have flat fields, or one field ``data`` with a JSON object. An entry that is not an event is written
    unchanged, including bytes that are not UTF-8, so that registration refuses it with the actual reason.
    """
    fields = entry.fields or ()
    if [name for name, _ in fields] == [b"data"]:
        content, said = _parse_data_field(fields[0][1])
    else:
        pairs = [(_text(name), _text(value)) for name, value in fields]
        content, said = _bytes("{" + ", ".join(map(_member, pairs)) + "}"), dict(pairs)
    system = said.get("system", SYSTEM)
    return StreamEventFile(
        system=system if isinstance(system, str) else "", name=_identity(said) or entry.id, content=content
    )


def keep(root: Path, said: StreamEventFile) -> str:
    """Write an event file durably below its system, and return its path below the bench.

    May be repeated: an equal file is kept. If a different file has the name, ours gets a longer name.

    Raises:
        Unsettled: the system has no directory for event files now, or no system on the bench has one.
        Unavailable: no space.
    """
    system = _choose_directory(root, said.system)
    digest = hashlib.sha256(said.content).hexdigest()
    directory = f"{system}/events"
    # the temporary directory is in the directory itself: opening it syncs names that a crash left unsynced
    with folder.land(root.resolve(), directory, aside=f"{directory}/{ASIDE}") as landing:
        name = f"{said.name}.json"
        if landing.digest(name) not in {None, digest}:
            name = f"{said.name}-{digest}.json"
        landing.write(name, [said.content], sha256=digest, mtime_ns=time.time_ns())
    return f"{directory}/{name}"


def _choose_directory(root: Path, system: str) -> str:
    """Choose the directory of an event: that of its system, or `FALLBACK` if the system name is not valid.

    A system without a directory for event files raises `Unsettled`: its disk may not be mounted.
    """
    known = set(bench.list_systems(root)) - {FALLBACK}
    if system in known:
        return system
    if not known:
        raise Unsettled("no system on the bench has a directory called events: is it mounted?")
    if system != FALLBACK and _is_system_name(system):
        raise Unsettled(f"{system}: has no directory called events on the bench")
    return FALLBACK


def _is_system_name(system: str) -> bool:
    if not system or system[0] == "." or "/" in system or not system.isprintable():
        return False
    return len(system.encode()) <= 255


def _parse_data_field(data: bytes) -> tuple[bytes, Mapping[str, Any]]:
    """Parse a JSON object in one field; move fields that DLM v1 nests in ``src_dir_info`` to their place in DLM v2."""
    try:
        said = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return data, {}
    if not isinstance(said, dict):
        return data, {}
    nested = said.get("src_dir_info")
    if not isinstance(nested, dict) or nested.keys() & said.keys():
        return data, said
    said = {name: value for name, value in (said | nested).items() if name != "src_dir_info"}
    if "raw_metadata" in said and "metadata" not in said:
        said["metadata"] = said.pop("raw_metadata")
    return _bytes(json.dumps(said, ensure_ascii=False)), said


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _identity(said: Mapping[str, Any]) -> str | None:
    """Return the event's id as a file name, or None if it is missing or not valid as one."""
    text = said.get("ref_id")
    if isinstance(text, str) and (events.IDENTITY.fullmatch(text) or HEX.fullmatch(text)):
        return str(UUID(text))
    return None


def _member(pair: tuple[str, str]) -> str:
    """Serialize a field as JSON: numbers as numbers, and an id with its dashes, which Redis clients may omit."""
    name, value = pair
    if name == "img_count" and NUMBER.fullmatch(value):
        return f'"img_count": {int(value)}'
    if name == "ref_id":
        value = _identity({name: value}) or value
    return f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    """Encode text; a lone surrogate that stands for no byte keeps its JSON escape."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace")


def _entries(stream: str, raw: Any) -> Iterator[StreamEntry]:
    for item in raw:
        if item is None:  # Redis 6.2 returns None for a claimed entry that was deleted
            continue
        name, flat = item
        pairs = None if flat is None else tuple(zip(flat[::2], flat[1::2], strict=True))
        yield StreamEntry(stream, name.decode(), pairs)


def _order(entry: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)


def connect(url: str) -> Redis:
    """Prepare a connection that returns fields of entries as pairs, so that duplicate names are kept."""
    try:
        client = Redis.from_url(
            url,
            protocol=2,
            socket_timeout=BLOCK / 1000 + PATIENT,
            socket_connect_timeout=PATIENT,
            socket_keepalive=True,
            health_check_interval=30,
            retry=Retry(NoBackoff(), 0),  # the bridge retries
        )
    except (ValueError, TypeError):  # its message may quote the password
        raise Misconfigured("the Redis URL is not valid: redis://:password@host:6379/0, or rediss://…") from None
    for command in ("XREADGROUP", "XAUTOCLAIM"):
        client.set_response_callback(command, lambda raw, **_: raw)
    return client


def _where(client: Redis) -> str:
    at = client.get_connection_kwargs()
    return shown(str(at.get("path") or f"{at.get('host')}:{at.get('port')}"))


def _consumer(name: str | None) -> str:
    name = name or socket.gethostname()
    if not CONSUMER.fullmatch(name):
        raise Misconfigured(f"consumer {shown(name)[:80]!r}: letters, digits and . _ : @ - only, at most 128")
    return name


def translate_error(error: RedisError) -> Unavailable:
    """Return why a server is unavailable.

    Raises:
        Denied, Misconfigured: a retry would not help.
    """
    said = shown(str(error)) or type(error).__name__
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        raise Denied(f"the Redis server refuses: {said}") from error
    if isinstance(error, ResponseError) and said.lower().startswith(("wrongtype", "unknown command", "invalid stream")):
        raise Misconfigured(f"the Redis server says: {said}") from error
    return Unavailable(said)
