"""A small laboratory: a bench with simulated instruments, a bucket and a catalogue, and a clock that we turn."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from plateway import pipeline, simulator
from plateway.archive import Archive, Entry, dump
from plateway.catalog import Catalog
from plateway.events import Ref
from plateway.instruments import Instrument, Policy
from plateway.ledger import Ledger
from plateway.pipeline import Outcome, Site
from plateway.simulator import Announced, Simulated
from plateway.store import Store
from plateway.store.directory import Directory

DAWN = datetime(2026, 5, 4, 6, tzinfo=UTC)
POLICY = Policy(purge=True, lifespan=timedelta(hours=8), grace=timedelta(hours=1))


class Clock:
    """Time stands still until somebody turns it."""

    def __init__(self) -> None:
        self.now = DAWN

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **by: float) -> datetime:
        self.now += timedelta(**by)
        return self.now


@dataclass
class Lab:
    """Everything a test of the verbs needs; ``line`` is what they take."""

    home: Path
    store: Store
    clock: Clock
    catalog: Catalog
    policy: Policy = POLICY
    options: Mapping[str, Any] = field(default_factory=dict)  # of the instruments
    number: int = 0
    archive: Archive | None = None

    @property
    def bench(self) -> Path:
        return self.home / "bench"

    def instrument(self, system: str) -> Instrument:
        values: dict[str, Any] = {"policy": self.policy, **self.options}
        return Instrument(name=system, root=self.bench / system, **values)

    @property
    def site(self) -> Site:
        return Site(self.catalog, self.store, self.bench, self.instrument, owner="test", archive=self.archive)

    def acquire(self, system: str = "prince", fault: str = "none", *, images: int = 3, size: int = 32) -> Announced:
        """Make an instrument acquire one event, at the time the clock shows."""
        dialect: simulator.Dialect = "timestep" if system == "prince" else "imaging event"
        instrument = Simulated(system=system, dialect=dialect, root=self.bench / system, images=images, size=size)
        self.number += 1
        return simulator.acquire(instrument, now=self.clock(), number=self.number, fault=fault)

    def settle(self) -> pipeline.Registered:
        """Register twice, as long apart as images need to settle."""
        pipeline.register(self.site)
        self.clock.turn(seconds=5)
        return pipeline.register(self.site)

    def export(self) -> list[Outcome]:
        """Export and verify all that is due."""
        done = list(pipeline.each(pipeline.export, self.site, pipeline.due(self.site, "export")))
        return done + list(pipeline.each(pipeline.verify, self.site, pipeline.due(self.site, "verify")))

    def exported(self, system: str = "prince", *, images: int = 3) -> tuple[Announced, Ref]:
        """Process one event all the way to a verified export."""
        announced = self.acquire(system, images=images)
        self.settle()
        assert {one.result for one in self.export()} == {"exported", "verified"}
        return announced, Ref(announced.id, 1)

    def acquired(self, count: int, **options: Any) -> list[Announced]:
        """Acquire events of one instrument, a second apart, and register until they are complete."""
        announced = []
        for _ in range(count):
            announced.append(self.acquire(**options))
            self.clock.turn(seconds=1)
        self.settle()
        return announced

    def several(self, count: int) -> list[Ref]:
        """Acquire, export and verify events, a second apart."""
        refs = []
        for _ in range(count):
            refs.append(self.exported(images=2)[1])
            self.clock.turn(seconds=1)
        return refs

    def manifest(self, refs: Iterable[Ref], *, job: str = "job", path: str = "images/e/2026-05-04.tar") -> bytes:
        """Write a manifest that names the objects of events, and nothing else of them."""
        exports = [self.ledger(ref).export for ref in refs]
        keys = [f"{one.bucket}/{one.key}" for one in exports if one]
        return dump(job, self.clock().date(), entries=[Entry(path, key) for key in keys])

    def receive(self, content: bytes) -> list[str]:
        """Import a manifest, and return the results."""
        came = pipeline.receive(self.site, content, source="test", name="manifest.json")
        return [came.result, *(one.result for one in pipeline.settle(self.site))]

    def ledger(self, ref: Ref) -> Ledger:
        return self.catalog.ledger(ref)

    def state(self, ref: Ref) -> str:
        return self.ledger(ref).state(self.clock()).name

    def unmount(self, system: str) -> None:
        """Show an empty directory where the disk was, as a dropped network mount does."""
        (self.bench / system).rename(self.home / f"away-{system}")
        (self.bench / system).mkdir()

    def mount(self, system: str) -> None:
        shutil.rmtree(self.bench / system)
        (self.home / f"away-{system}").rename(self.bench / system)


def with_policy(lab: Lab, **changes: Any) -> None:
    lab.policy = replace(lab.policy, **changes)


def intact(announced: Iterable[Announced]) -> bool:
    """Return whether all images are on the bench as the instrument wrote them."""
    return all(
        (one.images / name).is_file() and hashlib.sha256((one.images / name).read_bytes()).hexdigest() == sha256
        for one in announced
        for name, sha256 in one.files.items()
    )


class Broken(Directory):
    """A bucket that fails as it is told."""

    def __init__(self, root: Path, error: BaseException) -> None:
        super().__init__(root)
        self.error = error

    def put(self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]) -> None:
        raise self.error
