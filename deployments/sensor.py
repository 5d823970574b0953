"""The file sensor: reports new event files and archive manifests to Prefect, so that a flow runs within a second.

It has no state and decides nothing: the file system is the truth, and its events are only hints. A lost hint delays
the export until the next scheduled run: a minute, for a manifest a quarter of an hour. Run it on the machine that has
the disk: ``python -m deployments.sensor``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import anyio.to_thread
import httpx
import psutil
from prefect.client.orchestration import PrefectClient, get_client
from prefect.events import Event, Resource
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from prefect.settings import PREFECT_API_URL
from watchfiles import Change, awatch

from plateway import bench, log_records, settings
from plateway.errors import Misconfigured

ANNOUNCED = "plateway.event-file.announced"
DELIVERED = "plateway.archive-manifest.announced"
HEARTBEAT = "plateway.sensor.heartbeat"
PULSE = 60.0  # seconds between two heartbeats
ALIVE = "sensor.alive"  # a file in the home, touched after each heartbeat that Prefect accepted
NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "gluster", "lustre", "beegfs", "gpfs", "virtiofs", "vbox")
STEP, BATCH = 50, 200  # a batch ends after so many ms without a change, or so many ms in all
GAP = 1.0  # seconds, at least, between two hints about one directory; files seen meanwhile are in the next one
INTERVAL = 1.0  # seconds between two searches for new directories
RETRY_AFTER = (1.0, 30.0)  # seconds between two requests to an API that fails: at first, at most
NAMED = 5  # files named in a hint
SHARE = 20  # polling uses at most one part in so many of the time

logger = get_logger("plateway.sensor")
Report = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True)
class Watched:
    """A directory to watch, and the event that reports new files in it."""

    path: Path
    event: str
    resource: str
    suffix: str = ".json"

    def hint(self, names: Iterable[str]) -> Event:
        """Return the event that reports these files; without files it only starts a run."""
        files = sorted(names)
        name = self.resource.rpartition(".")[2]
        about = Resource({"prefect.resource.id": self.resource, "prefect.resource.name": name})
        return Event(event=self.event, resource=about, payload={"count": len(files), "files": files[:NAMED]})

    def identity(self) -> tuple[int, int]:
        """Return device and inode, which differ if another directory is mounted or created at the path.

        Raises:
            OSError: it is missing.
        """
        stat = self.path.stat()
        return stat.st_dev, stat.st_ino


def places(root: Path) -> list[Watched]:
    """List the directories to watch on the bench; none if the root is missing."""
    if not root.is_dir():
        return []
    return [
        Watched(root / system / "events", event=ANNOUNCED, resource=f"plateway.system.{system}")
        for system in bench.list_systems(root)
    ]


def find_inbox(url: str | None) -> Watched | None:
    """Return the inbox for archive manifests if it is a directory; others are read by schedule."""
    scheme, _, rest = url.partition("://") if url and "://" in url else ("file", "", url)
    if not rest or scheme not in {"file", "local"}:
        return None
    return Watched(Path(rest), event=DELIVERED, resource="plateway.archive.inbox")


async def sense(root: Path, report: Report, *, poll: bool, interval: timedelta, inbox: Watched | None = None) -> None:
    """Watch every directory until cancelled, also those that appear, disappear or are mounted again."""
    watching: dict[tuple[Watched, tuple[int, int]], asyncio.Task[None]] = {}
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1000  # each watch occupies one
    async with asyncio.TaskGroup() as group:
        while True:
            present = await asyncio.to_thread(find_directories, root, inbox)
            for key in [key for key, task in watching.items() if key not in present or task.done()]:
                logger.info("%s: not watched any more", key[0].resource)
                watching.pop(key).cancel()
            for key in sorted(present - watching.keys(), key=str):
                watching[key] = group.create_task(watch(key[0], report, poll=poll, interval=interval))
            await asyncio.sleep(INTERVAL)


def find_directories(root: Path, inbox: Watched | None = None) -> set[tuple[Watched, tuple[int, int]]]:
    """List the directories to watch with their identities: another directory at the same path counts as new."""
    found = set()
    searches: dict[str, Callable[[], list[Watched]]] = {
        "the bench": lambda: places(root),
        "the archive inbox": lambda: [inbox] if inbox else [],
    }
    for name, search in searches.items():
        try:
            for place in search():
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    found.add((place, place.identity()))
        except OSError as error:
            logger.warning("%s cannot be listed: %s", name, error.strerror)
    return found


async def watch(place: Watched, report: Report, *, poll: bool, interval: timedelta) -> None:
    """Send a hint at once, and one for every batch of new files."""
    slow = poll or await asyncio.to_thread(is_remote, place.path)
    logger.info("%s: %s", place.resource, "polled" if slow else "watched")
    try:
        async for names in batches(place, poll=slow, interval=interval):
            await report(place.hint(names))
            await asyncio.sleep(GAP)
    except OSError as error:  # for example no inotify watches left
        logger.warning("%s: polled from now on: %s", place.resource, error.strerror or type(error).__name__)
        async for names in batches(place, poll=True, interval=interval):
            await report(place.hint(names))
            await asyncio.sleep(GAP)


async def batches(place: Watched, *, poll: bool, interval: timedelta) -> AsyncIterator[set[str]]:
    """Yield an empty set once the directory is watched, then the names of new files, until it is removed."""
    pause = max(interval.total_seconds(), SHARE * await asyncio.to_thread(measure_scan, place.path)) if poll else 0
    removed = str(place.path)  # a new directory may have the identity of the one that was deleted
    changes = awatch(
        place.path,
        watch_filter=lambda change, path: path == removed if change is Change.deleted else is_announcement(place, path),
        debounce=BATCH,
        step=STEP,
        recursive=False,
        force_polling=poll,
        poll_delay_ms=max(1, int(pause * 1000)),
        ignore_permission_denied=True,
    )
    coming = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)  # the watch is set before anext waits for the first time
    yield set()
    try:
        while True:
            changed = await coming
            if (Change.deleted, removed) in changed:
                return
            yield {Path(path).name for _, path in changed}
            coming = asyncio.ensure_future(anext(changes))
    finally:
        coming.cancel()


def is_announcement(place: Watched, path: str) -> bool:
    """Return whether a file of this name is an announcement."""
    name = os.path.basename(path)  # noqa: PTH119  a Path for each change is slow
    return name.lower().endswith(place.suffix) and not name.startswith(".")


def measure_scan(path: Path) -> float:
    """Measure the seconds that a stat of every file takes."""
    started = time.monotonic()
    for entry in os.scandir(path):
        with contextlib.suppress(OSError):
            entry.stat()
    return time.monotonic() - started


def is_remote(path: Path) -> bool:
    """Return whether a directory is on a network mount, where the kernel does not report changes of other machines."""
    resolved = path.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if resolved.is_relative_to(mount.mountpoint)]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype.startswith(NETWORK)


async def post(client: PrefectClient, event: Event, *, patience: tuple[float, float] = RETRY_AFTER) -> None:
    """Send one event to Prefect, and retry until it is accepted.

    The request takes a few milliseconds; `emit_event` would queue the event, and not report a loss.
    """
    pause, longest = patience
    while True:
        try:
            await client.request("POST", "/events", json=[event.model_dump(mode="json")])
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            logger.warning("the Prefect API does not accept hints, retry in %g s: %s", pause, type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        else:
            logger.info("%s: %s", event.resource.id, event.payload)
            return


async def run(known: settings.Settings) -> None:
    """Run the sensor until SIGTERM or SIGINT.

    Raises:
        Misconfigured: PREFECT_API_URL is not set; Prefect would start a server of its own.
    """
    if not PREFECT_API_URL.value():
        raise Misconfigured("PREFECT_API_URL is not set")
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with get_client() as client:
        report = partial(post, client)
        pulse = asyncio.create_task(beat(report, known.home / ALIVE))
        try:
            inbox = find_inbox(known.archive_inbox)
            await sense(known.root, report, poll=known.poll, interval=known.poll_interval, inbox=inbox)
        finally:
            pulse.cancel()


async def beat(report: Report, alive: Path) -> None:
    """Send a heartbeat now and then, so that an automation and health checks notice a sensor that ended."""
    name = socket.gethostname()
    about = Resource({"prefect.resource.id": f"plateway.sensor.{name}", "prefect.resource.name": name})
    while True:
        await report(Event(event=HEARTBEAT, resource=about))
        with contextlib.suppress(OSError):  # without a home that can be written to, there is no health check
            alive.touch()
        await asyncio.sleep(PULSE)


def check(alive: Path, *, now: float) -> None:
    """Exit with 1 unless Prefect accepted one of the last three heartbeats; for health checks of containers."""
    if not alive.exists() or now - alive.stat().st_mtime > 3 * PULSE:
        sys.exit("no heartbeat was accepted within the last three minutes")


def main() -> None:
    """Start the sensor with the site's settings; with ``--check``, check that it runs."""
    if sys.argv[1:] == ["--check"]:
        check(settings.load().home / ALIVE, now=time.time())
        return
    setup_logging()
    log_records.adjust_handlers(settings.load_logs())
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run(settings.load()))


if __name__ == "__main__":
    main()
