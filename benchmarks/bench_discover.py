"""Discovery, measured: 100,000 known event files passed over, 10,000 new ones registered.

    uv run python -m benchmarks.bench_discover [--known 100000] [--new 10000] [--rounds 5] [--dir DIR] [--out DIR]

The bench is one directory of event files, each with a directory of one small image, below DIR (a disk, because the
catalogue's commits wait for it); the catalogue is SQLite as the embedded default has it, settle time 0. Everything is
done by the verb ``register``, as the flow ``discover`` calls it: once over the known ones to get to know them, several
times over nothing new, and once over new ones among the known.
"""

from __future__ import annotations

import argparse
import json
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from benchmarks.measure import MIB, in_memory, machine, median, table, told, worked, write
from plateway import bench, pipeline
from plateway.settings import load

SYSTEM = "prince"
START = datetime(2024, 1, 1, tzinfo=UTC)


def announce(root: Path, numbers: range) -> None:
    """Write image directories and event files, in DLM v2's words."""
    home = root / SYSTEM
    (home / "events").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        place = f"{number:07d}"
        (home / place).mkdir()
        (home / place / "Img_r01_c01.tif").write_bytes(b"II*\0")
        event = {
            "ref_id": str(uuid5(NAMESPACE_URL, place)),
            "experiment_id": f"20240101_{number % 40:03d}",
            "timestamp": (START + timedelta(minutes=number)).isoformat(),
            "type": "stitch",
            "system": SYSTEM,
            "local_path": place,
            "img_count": 1,
            "metadata": {"application": {"application": "bench"}},
        }
        (home / "events" / f"{1_700_000_000 + number}.json").write_text(json.dumps(event))


def register(site: pipeline.Site, *, expected: int) -> dict[str, float]:
    """Pass over the bench once and say what it took; something is wrong unless that many were new and are complete."""
    with worked() as spent:
        found = pipeline.register(site)
    if (len(found.new), len(found.sealed), found.quarantined) != (expected, expected, ()):
        raise SystemExit(f"{len(found.new)} new and {len(found.sealed)} complete events instead of {expected}")
    return spent


def measure(space: Path, *, known: int, new: int, rounds: int) -> dict[str, Any]:
    """Go through the whole of it."""
    settings = load(home=space, source_root=space / "bench", settle_seconds=0, bucket_url=f"file://{space}/bucket")
    site = pipeline.open_site(settings)
    site.catalog.upgrade()
    announce(settings.root, range(known))
    first = register(site, expected=known)
    with worked() as scan:
        bench.scan(site.instrument(SYSTEM))
    idle = [register(site, expected=0) for _ in range(rounds)]
    announce(settings.root, range(known, known + new))
    fresh = register(site, expected=new)
    with worked() as due:
        pipeline.due(site, "export", limit=1000)
    site.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"first": first, "scan": scan, "idle": idle, "fresh": fresh, "due": due, "peak": peak}


def report(said: dict[str, Any], *, known: int, new: int) -> str:
    """Draw the table."""
    idle = {key: median(one[key] for one in said["idle"]) for key in ("seconds", "cpu")}
    rows = [
        (f"{known:,} known event files passed over", idle, ""),
        ("… of which listing the directory", said["scan"], ""),
        (f"{new:,} new ones among them registered and found complete", said["fresh"], new),
        (f"first pass over {known:,} new ones", said["first"], known),
        ("the next 1,000 to export named", said["due"], ""),
    ]
    lines = [
        [what, f"{cost['seconds']:.2f}", f"{cost['cpu']:.2f}", f"{count / cost['seconds']:,.0f}" if count else ""]
        for what, cost, count in rows
    ]
    return f"{table(['What', 's', 'CPU s', 'events/s'], lines)}\n\nPeak memory {said['peak'] / MIB:.0f} MiB."


def main() -> None:
    """Measure and leave ``discover.json`` and ``discover.md``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--known", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to put bench and catalogue")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with TemporaryDirectory(prefix="plateway-bench-", dir=options.dir) as space:
        said = measure(Path(space), known=options.known, new=options.new, rounds=options.rounds)
        where = "in memory" if in_memory(Path(space)) else "on a disk"
    here = machine("plateway", "sqlalchemy", "sqlmodel", "pydantic")
    text = f"{told(here)} Bench and catalogue {where}.\n\n{report(said, known=options.known, new=options.new)}"
    write(options.out, "discover", results={"machine": here, "in": where, **said}, text=text)


if __name__ == "__main__":
    main()
