"""A million events: what status, pages, API, purge and reconcile take, each in a process of its own.

    scripts/bench million [--events 1000000] [--rounds 5] [--dir DIR] [--url URL] [--only WORD…] [--seconds 300]

The catalogue is SQLite in DIR, or an empty PostgreSQL database at URL; it is filled with events of six months in every
state (``tests/filling.py``) unless it has some, which takes minutes. A row that takes longer than ``--seconds`` is
stopped and says so. "First" includes the start of the command, or is the first answer of a new process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

from benchmarks.measure import MIB, machine, run, table, told, worked, write
from benchmarks.way_million import MIDDLE, PAGES
from plateway.bench import EVENTS
from plateway.catalog import Catalog
from plateway.records import EventFile
from tests.filling import SYSTEMS, fill

FILES = 100_000  # event files that are known
QUESTIONS = ("overview", *PAGES, "event page", "report", "accounts", "register")


def prepare(url: str, bench: Path, events: int) -> str:
    """Fill a catalogue that is empty, and a bench with known event files; return the id of an event."""
    with closing(Catalog(url)) as catalog:
        with worked() as spent:
            catalog.upgrade()
            if catalog.empty():
                fill(catalog, events=events)
        print(f"filled in {spent['seconds']:.0f} s", file=sys.stderr)
        with worked() as spent:
            catalog.refresh()
        print(f"counted in {spent['seconds']:.0f} s", file=sys.stderr)
        know(catalog, bench)
        return str(catalog.search(limit=1, until=MIDDLE)[0].ref)


def know(catalog: Catalog, bench: Path) -> None:
    """Put event files on the bench that the catalogue knows."""
    for system in SYSTEMS:
        folder = bench / system / EVENTS
        folder.mkdir(parents=True, exist_ok=True)
    if catalog.known(SYSTEMS[0]) and any(folder.iterdir()):
        return
    folder, rows = bench / SYSTEMS[0] / EVENTS, []
    for number in range(FILES):
        file = folder / f"known-{number}.json"
        file.write_text("{}")
        status = file.stat()
        rows.append({"system": SYSTEMS[0], "name": file.name, "size": 2, "mtime_ns": status.st_mtime_ns})
    with catalog._engine.connect().execution_options(writes=True) as connection:
        connection.execute(sa.delete(EventFile.__table__))  # type: ignore[attr-defined]  # SQLModel's
        connection.execute(sa.insert(EventFile), rows)
        connection.commit()


def commands(event: str) -> dict[str, list[str]]:
    """List the commands that are measured as such."""
    return {
        "status": ["status"],
        "status --limit 0 --json": ["status", "--limit", "0", "--json"],
        "status --json --limit 10000": ["status", "--json", "--limit", "10000"],
        "status --state waiting": ["status", "--state", "waiting"],
        "show": ["show", event],
        "purge --dry-run --json": ["purge", "--dry-run", "--json"],
    }


def measure(event: str, *, rounds: int, seconds: int, only: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure each row in processes of its own."""
    begin = [sys.executable, "-m", "plateway"]
    for name, words in commands(event).items():
        if not only or any(one in name for one in only):
            yield name, _bounded([*begin, *words], seconds, command=True)
    for name in QUESTIONS:
        if not only or any(one in name for one in only):
            yield name, _bounded([sys.executable, "-m", "benchmarks.way_million", name, str(rounds)], seconds)


def _bounded(words: list[str], seconds: int, *, command: bool = False) -> dict[str, Any]:
    """Run a command that ends by itself or is stopped; return its seconds, CPU seconds and peak memory."""
    started = time.perf_counter()
    try:
        cost = run(words, env=dict(os.environ), codes=(0, 3), seconds=seconds)
    except SystemExit as error:
        stopped = time.perf_counter() - started >= seconds
        return {"failed": f"stopped after {seconds} s" if stopped else str(error).strip().splitlines()[-1]}
    found = {"first": cost.seconds, "seconds": cost.seconds, "cpu": cost.cpu}
    found = found if command else json.loads(cost.output.splitlines()[-1])
    return {**found, "peak": cost.peak / MIB}


def main() -> None:
    """Measure and leave ``million.json`` and ``million.md``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=300, help="after which a row is stopped")
    parser.add_argument("--url", help="of an empty database, or of one that this filled")
    parser.add_argument("--dir", type=Path, help="where the SQLite catalogue and the bench are, and stay")
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names contain one of these words")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with TemporaryDirectory(prefix="plateway-bench-") as space:
        home = options.dir or Path(space)
        url = options.url or f"sqlite:///{home}/catalogue.db"
        event = prepare(url, home / "bench", options.events)
        os.environ |= {
            "PLATEWAY_HOME": str(home),
            "PLATEWAY_DATABASE_URL": url,
            "PLATEWAY_SOURCE_ROOT": str(home / "bench"),
            "PLATEWAY_BUCKET_URL": "memory://images",
            "PLATEWAY_PURGE_SYSTEMS": ",".join(SYSTEMS),
            "PLATEWAY_PURGE_REQUIRES": "bucket+archive",
        }
        found = dict(measure(event, rounds=options.rounds, seconds=options.seconds, only=options.only))
    here = machine("plateway", "sqlalchemy")
    head = ["What", "first s", "then s", "CPU s", "peak MiB"]
    rows = [
        [what, one["failed"], "", "", ""]
        if "failed" in one
        else [what, *(f"{one[part]:.3f}" for part in ("first", "seconds", "cpu")), f"{one['peak']:.0f}"]
        for what, one in found.items()
    ]
    text = f"{told(here)} {options.events:,} events in {url.partition(':')[0]}.\n\n{table(head, rows)}"
    write(options.out, "million", results={"machine": here, "events": options.events, **found}, text=text)


if __name__ == "__main__":
    main()
