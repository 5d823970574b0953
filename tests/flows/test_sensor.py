"""The file sensor: hints at what comes, in few words, wherever and whenever it comes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.events import Event

from deployments import sensor
from tests.flows.conftest import Site, free_port, until

SOON = 60.0  # seconds by which a hint must have come; machines may be busy


class Heard:
    """The hints that were given."""

    def __init__(self) -> None:
        self.hints: list[Event] = []

    async def tell(self, event: Event) -> None:
        """Take a hint."""
        self.hints.append(event)

    def names(self, resource: str) -> set[str]:
        """The files that were named about a resource."""
        return {name for hint in self.hints if hint.resource.id == resource for name in hint.payload["files"]}

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait until something was heard."""
        async with asyncio.timeout(SOON):
            while not happened():
                await asyncio.sleep(0.02)


def sensing(
    root: Path, act: Callable[[Heard], Awaitable[None]], *, poll: bool = False, inbox: Path | None = None
) -> Heard:
    """Do something while the sensor watches, and return what it said."""
    heard = Heard()
    letters = sensor.find_inbox(str(inbox)) if inbox else None

    async def both() -> None:
        watching = asyncio.create_task(
            sensor.sense(root, heard.tell, poll=poll, interval=timedelta(milliseconds=50), inbox=letters)
        )
        await act(heard)
        watching.cancel()
        await asyncio.wait([watching])

    asyncio.run(both())
    return heard


def bench(root: Path, system: str = "prince") -> Path:
    """Make a system's events/ directory."""
    path = root / system / "events"
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("poll", [False, True])
def test_a_burst_becomes_a_few_hints(tmp_path: Path, poll: bool) -> None:
    """Every file is counted once in all, in far fewer hints than files; the first one names none."""
    events = bench(tmp_path)

    async def act(heard: Heard) -> None:
        await heard.until(lambda: heard.hints)
        for number in range(60):
            (events / f"{number}.json").touch()
            await asyncio.sleep(0.005)
        await heard.until(lambda: sum(hint.payload["count"] for hint in heard.hints) >= 60)

    heard = sensing(tmp_path, act, poll=poll)
    assert heard.hints[0].payload == {"count": 0, "files": []}
    assert heard.hints[0].event == "plateway.event-file.announced"
    assert {hint.resource.id for hint in heard.hints} == {"plateway.system.prince"}
    assert len(heard.hints) <= 5


def test_only_announcements_count(tmp_path: Path) -> None:
    """Temporary names are passed over; renaming one into place announces."""
    events = bench(tmp_path)

    async def act(heard: Heard) -> None:
        await heard.until(lambda: heard.hints)
        (events / ".half.json").touch()
        (events / "half.part").touch()
        await asyncio.sleep(0.3)
        (events / "half.part").rename(events / "whole.json")
        await heard.until(lambda: len(heard.hints) > 1)

    assert sensing(tmp_path, act).names("plateway.system.prince") == {"whole.json"}


def test_new_systems_and_roots_are_picked_up(tmp_path: Path) -> None:
    """A root that is not there yet, a system that appears later and one that is mounted anew are all watched."""
    root = tmp_path / "late"

    async def act(heard: Heard) -> None:
        await asyncio.sleep(0.2)
        events = bench(root)
        await heard.until(lambda: heard.hints)
        bench(root, "aretha")
        await heard.until(lambda: any(hint.resource.id == "plateway.system.aretha" for hint in heard.hints))
        shutil.rmtree(root / "prince")
        bench(root)
        before = len(heard.hints)
        await heard.until(lambda: len(heard.hints) > before)
        (events / "again.json").touch()
        await heard.until(lambda: "again.json" in heard.names("plateway.system.prince"))

    sensing(root, act)


@pytest.mark.parametrize("poll", [False, True])
def test_manifests_in_the_inbox_are_sensed(tmp_path: Path, poll: bool) -> None:
    """An inbox that appears late gives its own hint for each manifest; what is moved aside below it gives none."""
    inbox = tmp_path / "inbox"

    async def act(heard: Heard) -> None:
        await asyncio.sleep(0.2)
        (inbox / "accepted").mkdir(parents=True)
        await heard.until(lambda: heard.hints)
        (inbox / "accepted" / "old.json").touch()
        (inbox / "job-7.json").touch()
        await heard.until(lambda: len(heard.hints) > 1)

    heard = sensing(tmp_path / "bench", act, poll=poll, inbox=inbox)
    assert heard.names("plateway.archive.inbox") == {"job-7.json"}
    assert {hint.event for hint in heard.hints} == {"plateway.archive-manifest.announced"}


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/srv/inbox", "/srv/inbox"),
        ("file:///srv/inbox", "/srv/inbox"),
        ("inbox", "inbox"),
        ("s3://tape/inbox", None),
        ("sftp://tape.example.org/inbox", None),
        (None, None),
    ],
)
def test_only_a_directory_is_sensed(url: str | None, path: str | None) -> None:
    """An inbox in a bucket or on another machine is looked into by schedule."""
    place = sensor.find_inbox(url)
    assert (place and str(place.path)) == path


def test_a_hint_waits_for_the_server(site: Site) -> None:
    """While the API does not answer the hint is tried again, and it arrives when it does."""
    system = f"system-{uuid4().hex}"
    hint = sensor.Watched(Path("events"), sensor.ANNOUNCED, f"plateway.system.{system}").hint(["one.json"])

    async def play() -> None:
        async with get_client() as client:
            there = client._client.base_url
            client._client.base_url = f"http://127.0.0.1:{free_port()}/api"  # nobody listens
            telling = asyncio.create_task(sensor.post(client, hint, patience=(0.05, 0.1)))
            await asyncio.sleep(0.5)
            assert not telling.done()
            client._client.base_url = there
            await asyncio.wait_for(telling, SOON)

    asyncio.run(play())
    until(lambda: told(site, system))


def told(site: Site, system: str) -> bool:
    """Return whether the server knows of a hint about a system."""
    wanted = {"resource": {"id": [f"plateway.system.{system}"]}}
    return bool(site.post("events/filter", filter=wanted)["events"])


@pytest.mark.parametrize(("kind", "expected"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False)])
def test_network_mounts_are_known_by_their_type(kind: str, expected: bool) -> None:
    """What other machines change is polled."""
    assert kind.startswith(sensor.NETWORK) is expected
