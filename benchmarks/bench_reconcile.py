"""Reconciliation, measured: a million exports in the catalogue against a listing of a million keys.

    uv run python -m benchmarks.bench_reconcile [--exports 1000000] [--planted 1000] [--here 10000] [--dir DIR]

The catalogue is SQLite as the embedded default has it, with a row of each kind for each event: event, export, archive
location, tombstone. The last ``here`` events have their images on the bench instead, each a real directory. The bucket
is simulated: it lists its keys page by page as fast as they can be made, and answers a look at one. A thousand things
are planted: objects dark, lost and changed in size or ETag, exports without evidence or tape copy, images gone, archive
entries for unknown keys. What is measured is the whole verb in a process of its own: listing, sorting, comparing,
looking again at each suspect, and noting what may be noted. What was found is then compared with what was planted.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from uuid import NAMESPACE_URL, uuid5

import sqlalchemy as sa

from benchmarks.measure import MIB, in_memory, machine, module, table, told, worked, write
from plateway import pipeline
from plateway.catalog import Catalog
from plateway.errors import Rejected
from plateway.findings import Kind
from plateway.instruments import Instrument
from plateway.records import ArchiveEntry, ArchiveLocation, ArchiveManifest, Event, Export, Purge
from plateway.store import Stat, Upload

SYSTEM, BUCKET, SEED = "prince", "bucket", 20261121
NOW = datetime(2026, 11, 21, tzinfo=UTC)
SENT = NOW - timedelta(days=300)
SIZE = 500_000_000
BATCH = 10_000
CACHE = 2 << 20  # KiB that SQLite may use while the catalogue is filled
Plant = Literal["dark", "lost", "size", "etag", "unproven", "unarchived", "raw", "unknown"]
PLANTS: Mapping[Plant, Kind] = {
    "dark": Kind.DARK,
    "lost": Kind.LOST,
    "size": Kind.CHANGED,
    "etag": Kind.CHANGED,
    "unproven": Kind.UNPROVEN,
    "unarchived": Kind.UNARCHIVED,
    "raw": Kind.UNTOLD,
    "unknown": Kind.UNKNOWN,
}


@dataclass(frozen=True)
class World:
    """How many there are, and what is wrong with which; the same for the same numbers."""

    exports: int
    planted: int
    here: int

    @property
    def plants(self) -> dict[int, Plant]:
        """Return by the number of the event what is wrong with it, or right after it."""
        dice = random.Random(SEED)
        kinds: list[Plant] = [kind for kind in PLANTS if kind != "raw"]
        last = self.exports - self.here
        plants = {
            number: kinds[at % len(kinds)] for at, number in enumerate(dice.sample(range(last), self.planted * 7 // 8))
        }
        gone = dice.sample(range(last, self.exports), self.planted - len(plants))
        return plants | dict.fromkeys(gone, "raw")


def key(number: int) -> str:
    """Name an object as exports do; in the order of the numbers."""
    return f"images/20240101_{number // 1000:06d}/20240517/{number % 1000:06d}-{number:08x}.tar"


def etag(number: int) -> str:
    """Return the ETag that an object has."""
    return f"{number:032x}-60"


def stranger(number: int) -> str:
    """Name a key right after that of an event, which the catalogue does not have."""
    return f"{key(number)}.dark"


class Simulated:
    """A bucket that is not there."""

    name = BUCKET
    durable = False

    def __init__(self, world: World) -> None:
        self._world, self._plants = world, world.plants

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """List everything, in order."""
        for number in range(self._world.exports):
            plant = self._plants.get(number)
            if plant != "lost":
                yield self._stat(number, plant)
            if plant == "dark":
                yield Stat(stranger(number), SIZE, etag(number), SENT)

    def _stat(self, number: int, plant: Plant | None) -> Stat:
        return Stat(key(number), SIZE + (plant == "size"), etag(number + (plant == "etag")), SENT)

    def stat(self, key: str) -> Stat | None:
        """Inspect one object."""
        number = int(key.removesuffix(".dark").removesuffix(".tar").rpartition("-")[2], 16)
        plant = self._plants.get(number)
        if key.endswith(".dark"):
            return Stat(key, SIZE, etag(number), SENT)
        return None if plant == "lost" else self._stat(number, plant)

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield bytes that are no bundle: what has another ETag proves to be changed."""
        yield bytes(512)

    def uploads(self) -> Iterator[Upload]:
        """Nobody uploads."""
        return iter(())

    def put(self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]) -> None:
        """Store nothing."""
        raise Rejected(key)

    def delete(self, key: str) -> None:
        """Remove nothing."""
        raise Rejected(key)

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        """Remove nothing."""
        raise Rejected(self.name)

    def lock(self, key: str, *, hold: bool, until: datetime | None) -> bool:
        """Lock nothing."""
        return False

    def tags(self, key: str) -> dict[str, str]:
        """Return no tags."""
        return {}

    def lifecycle(self) -> Sequence[dict[str, Any]]:
        """Return no rules."""
        return []

    def sign(self, key: str, *, expires: timedelta) -> str:
        """Sign nothing."""
        raise Rejected(key)

    def abort(self, upload: Upload) -> None:
        """Abort nothing."""
        raise Rejected(upload.key)


def rows(world: World, numbers: Iterable[int]) -> Iterator[tuple[Any, ...]]:
    """Make the rows of events: event, export, archive location, tombstone; the last two where there is one."""
    plants = world.plants
    for number in numbers:
        plant = plants.get(number)
        of = {"event_id": uuid5(NAMESPACE_URL, str(number)), "revision": 1}
        digest = sha256(b"%d" % number).hexdigest()
        event = {
            "id": of["event_id"],
            "revision": 1,
            "system": SYSTEM,
            "kind": "stitch",
            "experiment": f"20240101_{number // 1000:06d}",
            "plate": number % 40,
            "timestamp": SENT,
            "path": f"img/{number:07d}",
            "image_count": 100,
            "details": {},
            "digest": digest,
            "key": key(number),
            "file": f"{number}.json",
            "announced_at": SENT,
            "first_seen": SENT,
            "waiting_since": SENT,
            "sealed_at": SENT,
        }
        seen = plant != "unproven"
        export = of | {
            "bucket": BUCKET,
            "key": key(number),
            "size": SIZE,
            "sha256": digest,
            "etag": etag(number),
            "part_size": 8 * MIB,
            "member_count": 100,
            "manifest_offset": SIZE - 20_000,
            "manifest_size": 16_000,
            "manifest_sha256": digest,
            "uploaded_at": SENT,
            "evidence": "etag" if seen else None,
            "evidence_at": SENT if seen else None,
            "seen_etag": etag(number) if seen else None,
        }
        location = of | {
            "path": f"images/20240101_{number // 1000:06d}/2024-05-17.tar",
            "member": f"./{key(number).rpartition('/')[2]}",
            "job_id": "nightly",
            "size": SIZE,
            "checksum": digest,
            "evidence": "checksum",
            "reported_at": SENT,
        }
        gone = of | {
            "place": "raw",
            "attempt": 1,
            "proof": {"key": key(number), "size": SIZE, "sha256": digest, "evidence": "etag"},
            "intended_at": SENT,
            "trash": f".plateway-trash/{of['event_id']}",
            "trashed_at": SENT,
            "gone_at": SENT,
        }
        here = number >= world.exports - world.here
        yield event, export, None if plant == "unarchived" else location, None if here else gone


def fill(space: Path, world: World) -> None:
    """Fill the catalogue, a batch of events at a time and without a journal, and the bench."""
    with closing(Catalog(f"sqlite:///{space}/catalogue.db")) as catalog:
        catalog.upgrade()
    engine = sa.create_engine(f"sqlite:///{space}/catalogue.db")
    numbers = iter(range(world.exports))
    with engine.connect() as connection:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE}"):
            connection.exec_driver_sql(f"PRAGMA {pragma}")
        connection.commit()
        while batch := list(rows(world, islice(numbers, BATCH))):
            for records, some in zip((Event, Export, ArchiveLocation, Purge), zip(*batch, strict=True), strict=True):
                if given := [row for row in some if row is not None]:
                    connection.execute(sa.insert(records), given)
        connection.execute(sa.insert(ArchiveManifest), [manifest()])
        unknown = [number for number, plant in world.plants.items() if plant == "unknown"]
        connection.execute(sa.insert(ArchiveEntry), [entry(number) for number in unknown])
        connection.commit()
    engine.dispose()
    home = space / "bench" / SYSTEM
    (home / "events").mkdir(parents=True)
    for number in range(world.exports - world.here, world.exports):
        (home / "img" / f"{number:07d}").mkdir(parents=True)
    for number, plant in world.plants.items():
        if plant == "raw":
            shutil.rmtree(home / "img" / f"{number:07d}")


def manifest() -> dict[str, Any]:
    """Make the row of the one manifest that came in."""
    return {
        "digest": "0" * 64,
        "door": "inbox",
        "name": "nightly.json",
        "content": b"{}",
        "received_at": NOW,
        "last_at": NOW,
        "job_id": "nightly",
        "date": NOW,
        "accepted": True,
    }


def entry(number: int) -> dict[str, Any]:
    """Make the row of an archive entry that names what nobody knows."""
    return {
        "manifest": "0" * 64,
        "path": "images/unknown.tar",
        "key": f"{BUCKET}/{stranger(number)}",
        "job_id": "nightly",
        "reported_at": NOW,
        "reason": "unknown key",
    }


def measure(space: Path, world: World) -> dict[str, Any]:
    """Reconcile, twice; say what that took and whether it found just what was planted."""
    root = space / "bench"
    with closing(Catalog(f"sqlite:///{space}/catalogue.db", clock=lambda: NOW)) as catalog:
        site = pipeline.Site(
            catalog, Simulated(world), root, lambda system: Instrument(name=system, root=root / system), owner="bench"
        )
        spent = []
        for _ in range(2):
            with worked() as cost:
                done = pipeline.reconcile(site, within=timedelta(days=7), fraction=0.1, now=NOW)
            spent.append(cost)
            expected = Counter(expectation(world))
            found = Counter((one.kind.value, one.key) for one in done.findings)
            missed, false = expected - found, found - expected
            if spent[1:]:
                break
            first = {"planted": len(expected), "missed": missed.total(), "false": false.total(), "counts": done.counts}
    return {"first": spent[0], "second": spent[1], **first, "stopped": done.stopped}


def expectation(world: World) -> Iterator[tuple[str, str]]:
    """Return what must be found."""
    for number, plant in world.plants.items():
        where = {"dark": stranger(number), "unknown": f"{BUCKET}/{stranger(number)}"}
        yield PLANTS[plant].value, where.get(plant, key(number))


def report(said: dict[str, Any], world: World) -> str:
    """Draw the table."""
    runs = [("first run", said["first"]), ("second run right after", said["second"])]
    lines = [
        [what, f"{cost['seconds']:.1f}", f"{cost['cpu']:.1f}", f"{world.exports / cost['seconds']:,.0f}"]
        for what, cost in runs
    ]
    found = ", ".join(f"{count} {kind}" for kind, count in said["counts"].items())
    return (
        f"{table(['What', 's', 'CPU s', 'exports/s'], lines)}\n\n"
        f"{world.exports:,} exports, {world.here:,} of them with images on the bench; peak memory "
        f"{said['peak'] / MIB:.0f} MiB. Of {said['planted']:,} planted differences {said['missed']} were missed, "
        f"{said['false']} findings were false. Found: {found}."
    )


def main() -> None:
    """Measure and leave ``reconcile.json`` and ``reconcile.md``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--exports", type=int, default=1_000_000)
    parser.add_argument("--planted", type=int, default=1000)
    parser.add_argument("--here", type=int, default=10_000, help="events whose images are on the bench")
    parser.add_argument("--dir", type=Path, help="where to put bench and catalogue")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--measure", type=Path, help="measure what lies filled here, and say it as JSON")
    options = parser.parse_args()
    world = World(options.exports, options.planted, options.here)
    if options.measure:
        print(json.dumps(measure(options.measure, world)))
        return
    with TemporaryDirectory(prefix="plateway-bench-", dir=options.dir) as home:
        space = Path(home)
        fill(space, world)
        size = (space / "catalogue.db").stat().st_size
        numbers = [f"--{name}={getattr(world, name)}" for name in ("exports", "planted", "here")]
        cost, said = module("benchmarks.bench_reconcile", f"--measure={space}", *numbers, env={"PATH": "/usr/bin"})
        said |= {"peak": cost.peak, "catalogue": size}
        where = "in memory" if in_memory(space) else "on a disk"
    here = machine("plateway", "sqlalchemy", "sqlmodel")
    text = f"{told(here)} Catalogue ({size / MIB:,.0f} MiB) and bench {where}.\n\n{report(said, world)}"
    write(options.out, "reconcile", results={"machine": here, "in": where, **said}, text=text)
    if said["missed"] or said["false"] or said["stopped"]:
        sys.exit("not what was planted")


if __name__ == "__main__":
    main()
