"""A backlog of small events through Prefect: events a second, and CPU of worker and server for each.

    uv run python -m benchmarks.bench_backlog [--events 300] [--images 2] [--size 4096] [--out FILE]

Everything runs as `plateway up` starts it, in a home of its own: Prefect's server on SQLite, one resident worker,
SeaweedFS, sensor, gateway. The events lie on the bench before anything starts. Counted is from the first event that is
registered to the last that is verified; CPU is that of the processes during this time, their children included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from rich.console import Console

from plateway import simulator
from plateway.catalog import Catalog
from plateway.local import bringup
from plateway.settings import load
from plateway.simulator import Simulated

PARTS = ("worker", "prefect", "s3")
SYSTEMS = ("prince", "aretha", "bjork")


def cpu(pids: dict[str, int]) -> dict[str, float]:
    """Return the CPU seconds that each part has used."""
    found = {}
    for name in PARTS:
        process = psutil.Process(pids[name])
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        found[name] = sum(one.user + one.system for one in times)
    return found


def lay(root: Path, *, events: int, images: int, size: int) -> None:
    """Announce events of three systems."""
    now = datetime.now(UTC)
    for number in range(events):
        name = SYSTEMS[number % len(SYSTEMS)]
        one = Simulated(name, "timestep", root / name, images=images, size=size)
        simulator.acquire(one, now=now + timedelta(seconds=number), number=number)


def measure(home: Path, *, events: int, images: int, size: int) -> dict[str, float]:
    """Start all servers and wait until each event is verified."""
    settings = load(home=home, settle_seconds="0")
    with bringup.bring_up(settings, Console(quiet=True)) as parts, closing(Catalog(settings.catalog_url)) as catalog:
        time.sleep(20)  # until what starts has started
        lay(settings.root, events=events, images=images, size=size)
        began, before = time.monotonic(), cpu(parts.pids())
        while (done := count_verified(catalog)) < events:
            assert time.monotonic() - began < 900, f"{done} of {events} events are verified"
            time.sleep(0.25)
        seconds = time.monotonic() - began
        time.sleep(5)  # until the run has reported
        after = cpu(parts.pids())
    return {
        "events": events,
        "seconds": round(seconds, 2),
        "events/s": round(events / seconds, 2),
        **{f"{name} CPU s/event": round((after[name] - before[name]) / events, 4) for name in PARTS},
    }


def count_verified(catalog: Catalog) -> int:
    """Count the exports that have evidence."""
    states = catalog.counts(catalog.now())
    return sum(states.get(name, 0) for name in ("exported", "archived", "purged")) - len(
        catalog.due("verify", now=catalog.now(), limit=10_000)
    )


def main() -> None:
    """Measure, print, and perhaps write the figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", type=int, default=300)
    options.add_argument("--images", type=int, default=2)
    options.add_argument("--size", type=int, default=16, help="pixels along either side of an image")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="backlog-") as home:
        found = measure(Path(home), events=chosen.events, images=chosen.images, size=chosen.size)
    print(json.dumps(found, indent=1))
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
