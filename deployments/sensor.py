"""The file sensor: tells Prefect of new event files and archive manifests, so that a flow looks within a second.

It remembers nothing and decides nothing: the file system is the truth, and what is said here only a hint. A hint that
is lost costs a minute, for a manifest a quarter of an hour, until the schedule comes round. Run it beside the disk:
``python -m deployments.sensor``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
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

from plateway import bench, settings
from plateway.errors import Misconfigured

ANNOUNCED = "plateway.event-file.announced"
DELIVERED = "plateway.archive-manifest.announced"
NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "gluster", "lustre", "beegfs", "gpfs", "virtiofs", "vbox")
STEP, BATCH = 50, 200  # ms without a change end a batch, and so do ms in all
GAP = 1.0  # seconds at least between two hints about one place; what comes meanwhile goes into the next
LOOK = 1.0  # seconds between two looks for new places
PATIENCE = (1.0, 30.0)  # seconds between two tries to reach the API: at first, at most
NAMED = 5  # files that a hint names
SHARE = 20  # polling takes at most one part in so many of the time

logger = get_logger("plateway.sensor")
Tell = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True)
class Watched:
    """A directory where files announce something, and what to call that."""

    path: Path
    event: str
    resource: str
    suffix: str = ".json"

    def hint(self, names: Iterable[str]) -> Event:
        """Say that these files came; none: that somebody should look."""
        came = sorted(names)
        name = self.resource.rpartition(".")[2]
        about = Resource({"prefect.resource.id": self.resource, "prefect.resource.name": name})
        return Event(event=self.event, resource=about, payload={"count": len(came), "files": came[:NAMED]})

    def identity(self) -> tuple[int, int]:
        """Tell this directory from another one that is mounted or made in its place.

        Raises:
            OSError: it is not there right now.
        """
        look = self.path.stat()
        return look.st_dev, look.st_ino


def places(root: Path) -> list[Watched]:
    """Name what there is to watch on the bench now; the root may be missing."""
    if not root.is_dir():
        return []
    return [
        Watched(root / system / "events", event=ANNOUNCED, resource=f"plateway.system.{system}")
        for system in bench.list_systems(root)
    ]


def letterbox(url: str | None) -> Watched | None:
    """Name the inbox for archive manifests, where it is a directory; others are looked into by schedule."""
    scheme, _, rest = url.partition("://") if url and "://" in url else ("file", "", url)
    if not rest or scheme not in {"file", "local"}:
        return None
    return Watched(Path(rest), event=DELIVERED, resource="plateway.archive.inbox")


async def sense(root: Path, tell: Tell, *, poll: bool, interval: timedelta, inbox: Watched | None = None) -> None:
    """Watch every place, also those that appear, vanish or are mounted anew, until cancelled."""
    watching: dict[tuple[Watched, tuple[int, int]], asyncio.Task[None]] = {}
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1000  # each watch keeps one
    async with asyncio.TaskGroup() as group:
        while True:
            there = await asyncio.to_thread(identified, root, inbox)
            for key in [key for key, task in watching.items() if key not in there or task.done()]:
                logger.info("%s: not watched any more", key[0].resource)
                watching.pop(key).cancel()
            for key in sorted(there - watching.keys(), key=str):
                watching[key] = group.create_task(watch(key[0], tell, poll=poll, interval=interval))
            await asyncio.sleep(LOOK)


def identified(root: Path, inbox: Watched | None = None) -> set[tuple[Watched, tuple[int, int]]]:
    """Name what there is to watch, so that something else in the same place counts as new."""
    found = set()
    looks: dict[str, Callable[[], list[Watched]]] = {
        "the bench": lambda: places(root),
        "the archive inbox": lambda: [inbox] if inbox else [],
    }
    for name, look in looks.items():
        try:
            for place in look():
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    found.add((place, place.identity()))
        except OSError as error:
            logger.warning("%s cannot be listed: %s", name, error.strerror)
    return found


async def watch(place: Watched, tell: Tell, *, poll: bool, interval: timedelta) -> None:
    """Give a hint at once, and one for every batch of files that comes."""
    slow = poll or await asyncio.to_thread(remote, place.path)
    logger.info("%s: %s", place.resource, "polled" if slow else "watched")
    try:
        async for names in batches(place, poll=slow, interval=interval):
            await tell(place.hint(names))
            await asyncio.sleep(GAP)
    except OSError as error:  # no inotify watches left, say
        logger.warning("%s: polled from now on: %s", place.resource, error.strerror or type(error).__name__)
        async for names in batches(place, poll=True, interval=interval):
            await tell(place.hint(names))
            await asyncio.sleep(GAP)


async def batches(place: Watched, *, poll: bool, interval: timedelta) -> AsyncIterator[set[str]]:
    """Yield nothing first, when the place is being watched, then the names of the files that came, until it goes."""
    pause = max(interval.total_seconds(), SHARE * await asyncio.to_thread(effort, place.path)) if poll else 0
    gone = str(place.path)  # a directory made anew may look like the one that was deleted
    changes = awatch(
        place.path,
        watch_filter=lambda change, path: announces(place, path) if change is not Change.deleted else path == gone,
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
            came = await coming
            if (Change.deleted, gone) in came:
                return
            yield {Path(path).name for _, path in came}
            coming = asyncio.ensure_future(anext(changes))
    finally:
        coming.cancel()


def announces(place: Watched, path: str) -> bool:
    """Say whether a file of this name announces something."""
    name = os.path.basename(path)  # noqa: PTH119  a Path for each of many changes would be slow
    return name.endswith(place.suffix) and not name.startswith(".")


def effort(path: Path) -> float:
    """Measure the seconds that one look at every file takes."""
    started = time.monotonic()
    for entry in os.scandir(path):
        with contextlib.suppress(OSError):
            entry.stat()
    return time.monotonic() - started


def remote(path: Path) -> bool:
    """Say whether a directory is on a network mount, where changes made elsewhere are not reported."""
    resolved = path.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if resolved.is_relative_to(mount.mountpoint)]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype.startswith(NETWORK)


async def post(client: PrefectClient, event: Event, *, patience: tuple[float, float] = PATIENCE) -> None:
    """Give one event to Prefect and know that it arrived; until it does, try again.

    A request and its answer take a few milliseconds; `emit_event` would queue it and not say when it is lost.
    """
    pause, longest = patience
    while True:
        try:
            await client.request("POST", "/events", json=[event.model_dump(mode="json")])
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            logger.warning("the Prefect API does not take hints, next try in %g s: %s", pause, type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        else:
            logger.info("%s: %s", event.resource.id, event.payload)
            return


async def run(known: settings.Settings) -> None:
    """Sense until SIGTERM or SIGINT.

    Raises:
        Misconfigured: no server is named, and Prefect would start one of its own.
    """
    if not PREFECT_API_URL.value():
        raise Misconfigured("PREFECT_API_URL is not set")
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with get_client() as client:
        await sense(
            known.root,
            lambda event: post(client, event),
            poll=known.poll,
            interval=known.poll_interval,
            inbox=letterbox(known.archive_inbox),
        )


def main() -> None:
    """Start the sensor with the site's settings."""
    setup_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run(settings.load()))


if __name__ == "__main__":
    main()
