"""Search, measured: what pages, pipelines and Prometheus ask of a catalogue with 100,000 events.

    uv run python -m benchmarks.bench_search [--events 100000] [--rounds 5] [--url URL] [--dir DIR] [--out DIR]

The catalogue is SQLite below DIR, or an empty database at URL. It is filled with events of six months in every state,
as a site has them (``tests/filling.py``), and each question is asked several times.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from benchmarks.measure import machine, median, table, told, worked, write
from plateway.catalog import Catalog
from plateway.ledger import DAY, STATES, Cursor
from tests.filling import END, PERIOD, fill

MIDDLE = END - PERIOD / 2


def questions(catalog: Catalog) -> dict[str, Callable[[], object]]:
    """List what is asked."""
    one = catalog.search(limit=1, after=Cursor(MIDDLE, uuid4(), 1))[0].event
    _, archives = catalog.archives_page(limit=1, offset=0)
    spans = {"a day": END - DAY, "six months": END - PERIOD}
    return {
        "the newest 100 events": lambda: catalog.search(limit=100),
        "100 from the middle": lambda: catalog.search(limit=100, after=Cursor(one.timestamp, one.id, 1)),
        "of a plate": lambda: catalog.search(limit=100, plate=7),
        "of an experiment": lambda: catalog.search(limit=100, experiment=one.experiment),
        "an id by its first 8 digits": lambda: catalog.search(limit=100, text=str(one.id)[:8]),
        "of a day": lambda: catalog.search(limit=100, since=MIDDLE, until=MIDDLE + DAY),
        **{f"that are {state}": lambda state=state: catalog.search(limit=100, state=state) for state in STATES},  # type: ignore[misc]
        **{
            f"exports of {name}": lambda since=since: catalog.exports_page(  # type: ignore[misc]
                since=since, until=END, kind="stitch", limit=500, offset=0
            )
            for name, since in spans.items()
        },
        "100 archives": lambda: catalog.archives_page(limit=100, offset=0),
        "the members of an archive": lambda: catalog.archive_members(archives[0].id),
        "daily figures": catalog.daily,
        "everything at a glance": lambda: catalog.overview(now=END),
    }


def measure(url: str, *, events: int, rounds: int) -> dict[str, dict[str, float]]:
    """Fill a catalogue and ask; the medians of seconds and CPU seconds (of this process) by question."""
    with closing(Catalog(url, clock=lambda: END)) as catalog:
        catalog.upgrade()
        fill(catalog, events=events)
        found = {}
        for what, ask in questions(catalog).items():
            costs = []
            for _ in range(rounds):
                with worked() as spent:
                    ask()
                costs.append(spent)
            found[what] = {name: median(one[name] for one in costs) for name in ("seconds", "cpu")}
    return found


def main() -> None:
    """Measure and leave ``search.json`` and ``search.md``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help="of an empty database")
    parser.add_argument("--dir", type=Path, help="where to put an SQLite catalogue")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with TemporaryDirectory(prefix="plateway-bench-", dir=options.dir) as space:
        url = options.url or f"sqlite:///{space}/catalogue.db"
        found = measure(url, events=options.events, rounds=options.rounds)
    here = machine("plateway", "sqlalchemy")
    rows = [[what, f"{1000 * cost['seconds']:.0f}", f"{1000 * cost['cpu']:.0f}"] for what, cost in found.items()]
    where = f"{told(here)} {options.events:,} events in {url.partition(':')[0]}."
    text = f"{where}\n\n{table(['What', 'ms', 'CPU ms'], rows)}"
    write(options.out, "search", results={"machine": here, "events": options.events, **found}, text=text)


if __name__ == "__main__":
    main()
