"""An adversary between the verbs: bytes rot, disks are unmounted, swapped and cloned, clocks and catalogues go back.

After every step all bytes are read. What one of the verbs did may never cost the last copy of a file; what the
adversary itself destroyed must be reported once everything is mounted again. What the adversary does not do: choose
the weaker proof by HEAD, trust the archive's word, or lie from within a server after it was read.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from plateway import pipeline
from plateway.archive import Entry, dump, open_archive
from plateway.bench import EVENTS, TRASH
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import PlatewayError
from plateway.events import Ref
from plateway.instruments import Instrument, Policy
from plateway.keys import MARKER_FILE, is_marker
from plateway.ledger import Ledger
from plateway.pipeline import Outcome
from plateway.pipeline import Site as Line
from plateway.pipeline.identity import KnownPlaces
from plateway.pipeline.places import adopt_place, named
from plateway.place import Marker
from plateway.store import Store, open_store
from plateway.store.per_file import PerFile
from tests.databases import furnish
from tests.faults.invariants import digest
from tests.lab import Clock, Lab
from tests.soak import SOAK

MOST = 8  # events: fewer than any rule about fractions asks about
STAGED, SYSTEMS = "prince", ("prince", "aretha")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
STRANGER = UUID(int=1)
PLACES = ("bench", *(f"bench/{one}" for one in SYSTEMS), f"bench/{STAGED}/{TRASH}", "bucket", "tape", "staging")
HARM = ("flip", "flip", "cut", "delete")
KEEPING = Policy(purge=True, lifespan=HOUR, grace=HOUR)
POLICIES = (
    KEEPING,
    Policy(purge=True, lifespan=HOUR, grace=timedelta(0)),
    Policy(purge=True, lifespan=timedelta(0), grace=timedelta(0), bucket_lifespan=timedelta(0)),
    Policy(purge=True, lifespan=HOUR, grace=HOUR, bucket_lifespan=HOUR, staging_lifespan=HOUR),
    Policy(purge=True, requires="bucket+archive", lifespan=HOUR, grace=timedelta(0), bucket_lifespan=DAY),
    Policy(purge=False, grace=timedelta(0), bucket_lifespan=HOUR),
    Policy(),
)
PICK = st.integers(0, 999)
MET: Counter[str] = Counter()  # what the verbs did, over all runs


@dataclass
class Site(Lab):
    """A site: a catalogue of its own, on disks and a bucket that others may use as well."""

    disks: Path = field(default_factory=Path)
    staged: bool = True
    reachable: bool = True  # can the archive be read from here?
    places: KnownPlaces | None = None  # of a worker that runs for long

    @property
    def bench(self) -> Path:
        return self.disks / "bench"

    def instrument(self, system: str) -> Instrument:
        staging = self.disks / "staging" / system if self.staged and system == STAGED else None
        layout: Any = "bundle" if system == STAGED else "files"
        return Instrument(name=system, root=self.bench / system, policy=self.policy, staging=staging, layout=layout)

    @property
    def site(self) -> Line:
        facts: dict[str, Any] = {"owner": "test", "places": self.places}
        archive = self.archive if self.reachable else None
        site = Line(self.catalog, self.store, self.bench, self.instrument, archive=archive, **facts)
        self.places = site.places
        return site


def found_site(home: Path, disks: Path, store: Store, clock: Clock, **changes: Any) -> Site:
    """Make a site with an empty catalogue."""
    home.mkdir()
    catalog = Catalog(f"sqlite:///{home}/catalogue.db", clock=clock, dice=random.Random(1))
    furnish(catalog)
    archive = open_archive((disks / "tape").as_uri())
    return Site(home, store, clock, catalog, policy=KEEPING, archive=archive, disks=disks, **changes)


class Adversary(RuleBasedStateMachine):
    """Everything that verbs, operators, disks and neighbours do, in any order."""

    def __init__(self, open_far: Callable[[], Store] | None = None) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="adversary-"))
        self.disks = self.home / "disks"
        for name in ("bench", "bucket", "tape", "staging", "aside"):
            (self.disks / name).mkdir(parents=True)
        self.local, self.clock = open_far is None, Clock()
        self.store = PerFile(open_store((self.disks / "bucket").as_uri()) if open_far is None else open_far())
        self.site = found_site(self.home / "site", self.disks, self.store, self.clock)
        self.other = found_site(self.home / "other", self.disks, self.store, self.clock, staged=False)
        self.files: dict[str, tuple[Ref, bytes]] = {}  # what instruments wrote, by SHA-256
        self.kept: set[str] = set()  # files of which there was a copy after the last step
        self.destroyed: set[str] = set()  # files of which the adversary took the last copy
        self.sound: set[tuple[Ref, str]] = set()  # exports that had every file as the instrument wrote it
        self.latest = self.clock.now
        self.attacked = False  # was the last step the adversary's?
        self.away: dict[str, list[Path]] = {name: [] for name in PLACES}  # disks that are not mounted
        self.count = 0
        self.snapshots: list[bytes] = []

    def teardown(self) -> None:
        try:
            self.audit()
        finally:
            for one in (self.site, self.other):
                one.catalog.close()
            shutil.rmtree(self.home)

    # ------------------------------------------------------------------------------------------------ what must hold

    @invariant()
    def every_file_has_a_copy(self) -> None:
        """No verb takes the last copy of a file."""
        whole = self.read_everything()
        now = {sha256 for sha256, (_, content) in self.files.items() if content in whole}
        lost = self.kept - now
        if self.attacked:
            self.destroyed |= lost
        else:
            assert not lost, [str(self.files[sha256][0]) for sha256 in lost]
        self.kept, self.attacked = now, False
        self.latest = max(self.latest, self.clock.now)
        self.destroyed -= now

    def read_everything(self) -> bytes:
        """Read all disks, mounted or not, and the bucket."""
        paths = (path for path in sorted(self.disks.rglob("*")) if path.is_file())
        blobs = [path.read_bytes() for path in paths]
        if not self.local:
            blobs += [b"".join(self.store.open(one.key)) for one in self.store.list()]
        return b"\n".join(blobs)

    def audit(self) -> None:
        """Mount everything again: what the adversary destroyed is reported."""
        for place in PLACES:
            if self.away[place]:
                self.mount(place, 0)
        self.every_file_has_a_copy_after_an_attack()
        self.site.places, self.site.reachable = None, True
        for name in named(self.site.site):
            with suppress(PlatewayError):  # a disk that never was used
                adopt_place(self.site.site, name)
        self.clock.now = max(self.clock.now, self.latest) + timedelta(days=2)
        site = self.site.site
        told = [one for ref in self.exported() for one in self.attempt(lambda ref=ref: self.verify(self.site, ref))]  # type: ignore[misc]
        told += self.attempt(lambda: pipeline.read_archive(site, budget=1 << 40))
        found = pipeline.reconcile(site)
        damaged = {one.ref for one in told if one.result == "damaged"} | {one.ref for one in found.findings}
        for ref, ledger in self.exported().items():
            assert ledger.export is not None
            if (ref, ledger.export.sha256) not in self.sound:
                continue
            if any(self.files[sha256][0] == ref for sha256 in self.destroyed):
                state = ledger.state(self.clock()).name
                assert ref in damaged or state in {"lost", "changed"}, f"{ref}: destroyed, and {state}"
                MET["reported"] += 1

    def every_file_has_a_copy_after_an_attack(self) -> None:
        self.attacked = True
        self.every_file_has_a_copy()

    def exported(self) -> dict[Ref, Ledger]:
        return {one.ref: one for one in self.site.catalog.ledgers() if one.export is not None}

    # ------------------------------------------------------------------------------------------------------ the verbs

    def attempt(self, act: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
        """Run a verb; what it raises on purpose is an answer."""
        try:
            outcomes = act()
        except PlatewayError as error:
            MET[type(error).__name__] += 1
            return []
        MET.update(f"{one.verb} {one.result}" for one in outcomes)
        return outcomes

    def verify(self, site: Site, ref: Ref, *, read_back: bool = True) -> list[Outcome]:
        return [pipeline.verify(site.site, ref, read_back=read_back)]

    def pick(self, number: int, site: Site | None = None) -> Ledger | None:
        ledgers = (site or self.site).catalog.ledgers()
        return ledgers[number % len(ledgers)] if ledgers else None

    def note_sound(self) -> None:
        """Record which exports hold every file as the instrument wrote it."""
        for ref, ledger in self.exported().items():
            export = ledger.export
            if export is None or (ref, export.sha256) in self.sound:
                continue
            with suppress(PlatewayError):
                whole = b"".join(self.store.open(export.key))
                own = [content for of, content in self.files.values() if of == ref]
                if digest(whole) == export.sha256 and all(content in whole for content in own):
                    self.sound.add((ref, export.sha256))

    @precondition(lambda self: len(self.site.catalog.ledgers()) < MOST)
    @rule(system=st.sampled_from(SYSTEMS))
    def announce(self, system: str) -> None:
        try:
            announced = self.site.acquire(system, images=2, size=16)
        except OSError:  # the mount point is away
            return
        self.attempt(lambda: [*self.site.settle().quarantined])
        ref = Ref(announced.id, 1)
        for name in announced.files:
            content = (announced.images / name).read_bytes()
            self.files[digest(content)] = ref, content

    @rule()
    def export(self) -> None:
        self.attempt(self.site.export)
        self.note_sound()

    @rule(number=PICK, read_back=st.booleans())
    def verify_one(self, number: int, read_back: bool) -> None:
        if ledger := self.pick(number):
            self.attempt(lambda: self.verify(self.site, ledger.ref, read_back=read_back))

    @rule()
    def archive(self) -> None:
        self.attempt(lambda: pipeline.archive(self.site.site))

    @rule()
    def read_archive(self) -> None:
        self.attempt(lambda: pipeline.read_archive(self.site.site, budget=1 << 20))

    @rule(hours=st.sampled_from([0, 2]))
    def purge(self, hours: int) -> None:
        self.attempt(lambda: pipeline.purge(self.site.site))
        self.clock.turn(hours=hours)
        self.attempt(lambda: pipeline.purge(self.site.site))

    @rule(hours=st.sampled_from([0, 2]))
    def expire(self, hours: int) -> None:
        self.attempt(lambda: pipeline.expire(self.site.site))
        self.clock.turn(hours=hours)
        self.attempt(lambda: pipeline.expire(self.site.site))

    @rule(repair=st.booleans())
    def reconcile(self, repair: bool) -> None:
        self.attempt(lambda: pipeline.reconcile(self.site.site, repair=repair).outcomes)
        self.note_sound()

    @rule(number=PICK, to_bench=st.booleans())
    def restore(self, number: int, to_bench: bool) -> None:
        if ledger := self.pick(number):
            where: dict[str, Any] = {"to_bench": True} if to_bench else {"to": self.home / "out"}
            self.attempt(lambda: [pipeline.restore(self.site.site, ledger.ref, **where)])
            shutil.rmtree(self.home / "out", ignore_errors=True)

    @rule()
    def live_for_a_day(self) -> None:
        """Everything that a site does, in its order."""
        self.attempt(lambda: [*self.site.settle().quarantined])
        self.export()
        self.clock.turn(hours=25)
        for act in (pipeline.archive, pipeline.purge, pipeline.purge, pipeline.expire, pipeline.expire):
            self.attempt(lambda act=act: act(self.site.site))  # type: ignore[misc]
            self.clock.turn(hours=2)

    @rule(system=st.sampled_from(SYSTEMS), policy=st.sampled_from(POLICIES))
    def live_another_day(self, system: str, policy: Policy) -> None:
        """The same by another policy, with something new."""
        self.configure(policy, True)
        if len(self.site.catalog.ledgers()) < MOST:
            self.announce(system)
        self.live_for_a_day()

    # ------------------------------------------------------------------------------------------------- the neighbours

    @rule()
    def neighbour_lives(self) -> None:
        """A second site, on the same bench and bucket."""
        self.attempt(lambda: [*self.other.settle().quarantined])
        self.attempt(self.other.export)
        self.clock.turn(hours=25)
        for act in (pipeline.archive, pipeline.purge, pipeline.expire):
            self.attempt(lambda act=act: act(self.other.site))  # type: ignore[misc]

    @rule(hours=st.sampled_from([0, 2]))
    def neighbour_deletes(self, hours: int) -> None:
        self.clock.turn(hours=hours)
        self.attempt(lambda: pipeline.purge(self.other.site))
        self.attempt(lambda: pipeline.expire(self.other.site))
        self.attempt(lambda: pipeline.reconcile(self.other.site, repair=True).outcomes)

    @rule(number=PICK, neighbour=st.booleans())
    def adopt(self, number: int, neighbour: bool) -> None:
        """An operator takes a place over."""
        site = self.other if neighbour else self.site
        with suppress(PlatewayError):
            names = sorted(named(site.site))
            adopt_place(site.site, names[number % len(names)])

    # ------------------------------------------------------------------------------------------------------- settings

    @rule(policy=st.sampled_from(POLICIES), reachable=st.sampled_from([True, True, True, False]))
    def configure(self, policy: Policy, reachable: bool) -> None:
        """An operator makes the policy stricter or looser, or the archive is out of reach."""
        self.site.policy, self.site.reachable = policy, reachable
        self.other.policy = policy

    @rule(hours=st.sampled_from([1, 9, 25, 170, -2, -30]))
    def turn_clock(self, hours: int) -> None:
        self.clock.turn(hours=hours)

    @rule()
    def back_up(self) -> None:
        """Keep a copy of the catalogue; and restart the worker."""
        with closing(sqlite3.connect(self.site.home / "catalogue.db")) as connection:
            self.snapshots.append(connection.serialize())
        self.site.places = None

    @precondition(lambda self: self.snapshots)
    @rule(number=PICK)
    def restore_catalogue(self, number: int) -> None:
        """An operator goes back to an old catalogue."""
        self.site.catalog.close()
        path = self.site.home / "catalogue.db"
        for name in ("-wal", "-shm"):
            path.with_name(path.name + name).unlink(missing_ok=True)
        content = bytearray(self.snapshots[number % len(self.snapshots)])
        content[18:20] = b"\x01\x01"  # without a log of its own
        path.write_bytes(content)
        self.site.catalog = Catalog(f"sqlite:///{path}", clock=self.clock, dice=random.Random(1))
        self.site.places = None

    @rule(number=PICK, exact=st.booleans())
    def forge_manifest(self, number: int, exact: bool) -> None:
        """A manifest comes in with the right checksum, of a tar that nobody has."""
        ledger = self.pick(number)
        if ledger is None or ledger.export is None:
            return
        self.count += 1
        export = ledger.export
        facts = (export.size, export.sha256, 0) if exact else ()
        path = f"images/nowhere-{self.count}.tar"
        entry = Entry(path, f"{export.bucket}/{export.key}", f"./{Path(export.key).name}", *facts)
        content = dump(f"forged-{self.count}", self.clock().date(), entries=[entry])
        self.attempt(lambda: [pipeline.receive(self.site.site, content, source="inbox", name=f"{self.count}.json")])
        self.attempt(lambda: pipeline.settle(self.site.site))

    # ------------------------------------------------------------------------------------------------------ the bytes

    def target(self, where: str, number: int) -> Path | None:
        """Choose a file of a disk, large ones more often."""
        files = sorted(path for path in (self.disks / where).rglob("*") if path.is_file() and not path.is_symlink())
        weights = [path.stat().st_size + 1 for path in files]
        at = number * sum(weights) // 1000
        return next((path for path, end in zip(files, accumulate(weights), strict=True) if at < end), None)

    def rewrite(self, where: str, number: int, change: Callable[[bytes], bytes | None], *, hide: bool) -> None:
        """Change the bytes of a file, or remove it; ``hide``: and put the modification time back."""
        self.attacked = True
        if where == "bucket" and not self.local:
            self.rewrite_object(number, change)
            return
        path = self.target(where, number)
        if path is None:
            return
        status, content = path.stat(), change(path.read_bytes())
        if content is None:
            path.unlink()
            return
        path.write_bytes(content)
        if hide:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def rewrite_object(self, number: int, change: Callable[[bytes], bytes | None]) -> None:
        keys = sorted(one.key for one in self.store.list() if not is_marker(one.key))
        if not keys:
            return
        key = keys[number % len(keys)]
        content = change(b"".join(self.store.open(key)))
        found = self.store.stat(key)
        if content is None:
            self.store.delete(key)
        else:
            told = found.metadata if found else {}
            self.store.put(key, [content], size=len(content), part_size=1 << 24, metadata=told)

    @rule(how=st.sampled_from(HARM), number=PICK, at=PICK, hide=st.booleans())
    def harm_bucket(self, how: str, number: int, at: int, hide: bool) -> None:
        """A bit flips, an object is cut, or it is gone."""
        self.harm("bucket", how, number=number, at=at, hide=hide)

    @rule(where=st.sampled_from(SYSTEMS), how=st.sampled_from(HARM), number=PICK, at=PICK, hide=st.booleans())
    def harm_bench(self, where: str, how: str, number: int, at: int, hide: bool) -> None:
        """The same on a disk of the bench, with what lies in its trash."""
        self.harm(f"bench/{where}", how, number=number, at=at, hide=hide)

    @rule(where=st.sampled_from(["tape", "tape", "staging"]), how=st.sampled_from(HARM), number=PICK, at=PICK)
    def harm_other(self, where: str, how: str, number: int, at: int) -> None:
        """The same on tape or in staging."""
        self.harm(where, how, number=number, at=at, hide=True)

    def harm(self, where: str, how: str, *, number: int, at: int, hide: bool) -> None:
        def change(content: bytes) -> bytes | None:
            place = at * len(content) // 1000
            flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] if content else content
            return {"flip": flipped, "cut": content[:place], "delete": None}[how]

        self.rewrite(where, number, change, hide=hide)

    @precondition(lambda self: self.local)
    @rule(number=PICK)
    def destroy(self, number: int) -> None:
        """Somebody overwrites every copy of a file, wherever it lies."""
        self.attacked = True
        if not self.kept:
            return
        _, content = self.files[sorted(self.kept)[number % len(self.kept)]]
        for path in self.disks.rglob("*"):
            if path.is_file() and content in (whole := path.read_bytes()):
                path.write_bytes(whole.replace(content, content[:-1] + bytes([content[-1] ^ 1])))

    # ------------------------------------------------------------------------------------------------------ the disks

    def mount(self, place: str, number: int) -> None:
        """Put one of the disks that were taken away back, instead of what is there."""
        path = self.disks / place
        disk = self.away[place].pop(number % len(self.away[place]))
        if not path.parent.is_dir():
            self.away[place].insert(0, disk)
            return
        if path.exists():
            self.away[place].append(self.put_aside(path))
        disk.rename(path)

    def put_aside(self, path: Path) -> Path:
        self.count += 1
        return path.rename(self.disks / "aside" / str(self.count))

    @rule(place=st.sampled_from(PLACES), how=st.sampled_from(["gone", "empty", "bare", "stranger", "clone"]))
    def change_disk(self, place: str, how: str) -> None:
        """Unmount a disk, or mount another instead: empty, another site's, a clone with the same marker."""
        self.attacked = True
        path = self.disks / place
        if (place == "bucket" and not self.local) or not path.is_dir():
            return
        original = self.put_aside(path)
        self.away[place].append(original)
        if how == "clone":
            shutil.copytree(original, path, symlinks=True)
        elif how != "gone":
            home = path / EVENTS if place.startswith("bench/") and not place.endswith(TRASH) else path
            (path if how == "empty" else home).mkdir(parents=True)
        if how == "stranger":
            self.count += 1
            (home / MARKER_FILE).write_bytes(Marker(uuid5(STRANGER, str(self.count)), STRANGER).dump())

    @rule(place=st.sampled_from(PLACES), number=PICK)
    def remount(self, place: str, number: int) -> None:
        """Put back a disk that was taken away, the first or another."""
        self.attacked = True
        if self.away[place]:
            self.mount(place, number)

    @precondition(lambda self: any(self.away.values()))
    @rule()
    def remount_all(self) -> None:
        """An operator puts everything back."""
        self.attacked = True
        for place in PLACES:
            if self.away[place]:
                self.mount(place, 0)

    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: Policy) -> None:
        """One event on its way, on each system."""
        self.configure(policy, True)
        for system in SYSTEMS:
            self.announce(system)
        self.live_for_a_day()


def steps(runs: int, each: int) -> settings:
    return settings(
        max_examples=runs,
        stateful_step_count=each,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, *[Phase.shrink] * SOAK],
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def met() -> Iterator[Counter[str]]:
    MET.clear()
    yield MET
    print(dict(sorted(MET.items())))


@pytest.mark.timeout(0 if SOAK else 300)
def test_no_file_loses_its_last_copy(met: Counter[str]) -> None:
    """Over directories, 300 steps, in the soak 20,000; and things did go: raw images, bucket copies."""
    run_state_machine_as_test(Adversary, settings=steps(400, 50) if SOAK else steps(10, 30))
    assert met["purge gone"] and met["expire expired"]
    assert met["reported"] or not SOAK  # that all copies of a file are destroyed by hand is rare


@pytest.mark.soak("the same rules as over directories, and slower")
@pytest.mark.timeout(0)
def test_no_file_loses_its_last_copy_on_s3(met: Counter[str], endpoint: Endpoint, bucket: str) -> None:
    """The same with a bucket on a real server."""
    numbers = iter(range(10**6))
    make: Any = lambda: Adversary(lambda: open_store(f"s3://{bucket}/{next(numbers)}", endpoint))  # noqa: E731
    run_state_machine_as_test(make, settings=steps(40, 50))
    assert met["purge gone"] and met["expire expired"]
