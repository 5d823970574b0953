"""Four worlds, changed at random: bench, bucket, catalogue and tape.

What is wrong is told by ``wrong``, which reads every byte and asks nothing of the code it checks. Reconciliation must
find all of it and nothing else, change nothing a second time, and leave nothing that it could have repaired.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.findings import Kind
from plateway.keys import is_marker
from plateway.ledger import Ledger
from plateway.pipeline import TRASH, Reconciled
from plateway.pipeline.recover import site_of
from plateway.store.memory import Memory
from tests.faults.invariants import digest
from tests.lab import Clock, Lab
from tests.soak import SOAK

WITHIN = timedelta(days=7)
MOST = 8  # events: fewer than any rule about fractions asks about
SYSTEMS = st.sampled_from(["prince", "aretha"])
PICK = st.integers(0, MOST - 1)
Wrong = set[tuple[Kind, str]]


@cache
def upgraded() -> bytes:
    """The file of an empty catalogue."""
    with tempfile.TemporaryDirectory() as home:
        with closing(Catalog(f"sqlite:///{home}/catalogue.db")) as catalog:
            catalog.upgrade()
        with closing(sqlite3.connect(f"{home}/catalogue.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return Path(home, "catalogue.db").read_bytes()


def laboratory(home: Path, store: Memory, clock: Clock) -> Lab:
    (home / "bench").mkdir(parents=True)
    (home / "catalogue.db").write_bytes(upgraded())
    return Lab(home, store, clock, Catalog(f"sqlite:///{home}/catalogue.db", clock=clock, dice=random.Random(1)))


class Worlds(RuleBasedStateMachine):
    """Everything that can happen to a site, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="worlds-"))
        self.clock, self.store = Clock(), Memory("raw")
        self.lab = laboratory(self.home / "here", self.store, self.clock)
        self.elsewhere = laboratory(self.home / "elsewhere", self.store, self.clock)
        self.elsewhere.number = 1000
        self.orphans: Wrong = set()
        self.count = 0
        self.sound = True  # nothing was found to be false so far

    def teardown(self) -> None:
        if self.sound:
            self.settle_down()
        self.lab.catalog.close()
        self.elsewhere.catalog.close()
        shutil.rmtree(self.home)

    @initialize()
    def begin(self) -> None:
        """One event that nobody harms, so that the listing is never empty."""
        _, self.anchor = self.lab.exported("anchor")

    # ---------------------------------------------------------------------------------------------------- the line

    @property
    def ledgers(self) -> list[Ledger]:
        return [one for one in self.lab.catalog.ledgers() if one.event.system != "anchor"]

    def name(self) -> str:
        """Make a name that nothing has."""
        self.count += 1
        return f"nobody-{self.count}"

    def pick(self, number: int, ledgers: list[Ledger]) -> Ledger | None:
        return ledgers[number % len(ledgers)] if ledgers else None

    @precondition(lambda self: len(self.ledgers) < MOST)
    @rule(system=SYSTEMS)
    def acquire(self, system: str) -> None:
        self.lab.acquire(system, images=1, size=16)
        self.lab.settle()

    @rule()
    def export(self) -> None:
        self.lab.export()

    @rule()
    def purge(self) -> None:
        pipeline.purge(self.lab.site)

    @rule(hours=st.sampled_from([1, 9, 25, 170]))
    def wait(self, hours: int) -> None:
        self.clock.turn(hours=hours)

    # ---------------------------------------------------------------------------------------------------- the tape

    def report(self, key: str) -> None:
        name = self.name()
        content = {
            "job_id": name,
            "date": "2026-05-04",
            "archives": [{"path": f"images/{name}.tar", "src_keys": [f"raw/{key}"]}],
        }
        pipeline.receive(self.lab.site, json.dumps(content).encode(), source="inbox", name=f"{name}.json")
        pipeline.settle(self.lab.site)

    @rule(number=PICK)
    def archive(self, number: int) -> None:
        """Tape names an event, exported or not."""
        if ledger := self.pick(number, self.ledgers):
            self.report(ledger.event.key)

    @rule()
    def archive_unknown(self) -> None:
        self.report(f"images/{self.name()}.tar")

    # -------------------------------------------------------------------------------------------------- the bucket

    @rule(number=PICK)
    def lose(self, number: int) -> None:
        if ledger := self.pick(number, [one for one in self.ledgers if one.export]):
            self.store.delete(ledger.event.key)

    @rule(number=PICK, same_size=st.booleans())
    def change(self, number: int, same_size: bool) -> None:
        if ledger := self.pick(number, [one for one in self.ledgers if one.export]):
            assert ledger.export is not None
            self.put(ledger.event.key, bytes(ledger.export.size) if same_size else b"changed")

    @rule()
    def plant_junk(self) -> None:
        self.put(f"images/{self.name()}.tar", b"junk")

    @precondition(lambda self: len(self.ledgers) < MOST)
    @rule(system=SYSTEMS)
    def plant_bundle(self, system: str) -> None:
        """Another site sends a sound bundle into our bucket."""
        self.elsewhere.exported(system, images=1)

    def put(self, key: str, content: bytes) -> None:
        self.store.put(key, [content], size=len(content), part_size=1 << 23, metadata={})

    # ----------------------------------------------------------------------------------------------- the catalogue

    @rule(number=PICK)
    def forget(self, number: int) -> None:
        """An export dies between the upload and its row."""
        fresh = [one for one in self.ledgers if one.export and not one.purges and not one.archives]
        if ledger := self.pick(number, fresh):
            with closing(sqlite3.connect(self.lab.home / "catalogue.db")) as connection, connection:
                connection.execute("DELETE FROM export WHERE event_id = ?", [ledger.ref.id.hex])

    # --------------------------------------------------------------------------------------------------- the bench

    def images(self, ledger: Ledger) -> Path:
        return self.lab.bench / ledger.event.system / ledger.event.path

    def present(self) -> list[Ledger]:
        return [one for one in self.ledgers if self.images(one).exists()]

    @rule(number=PICK)
    def drop(self, number: int) -> None:
        """Somebody removes raw images."""
        if ledger := self.pick(number, self.present()):
            shutil.rmtree(self.images(ledger))

    @rule(number=PICK)
    def stray(self, number: int) -> None:
        """Images are in the trash, and the catalogue does not know why."""
        if ledger := self.pick(number, [one for one in self.present() if not one.purges]):
            aside = self.lab.bench / ledger.event.system / TRASH / str(ledger.ref)
            if not aside.exists():
                aside.mkdir(parents=True)
                self.images(ledger).rename(aside / "images")

    @rule(system=SYSTEMS)
    def litter(self, system: str) -> None:
        """A directory of nobody's lies in the trash."""
        name = self.name()
        if (self.lab.bench / system / "events").exists():
            (self.lab.bench / system / TRASH / name).mkdir(parents=True)
            (self.lab.bench / system / TRASH / name / "note.txt").write_text("whose?")
            self.orphans.add((Kind.TRASH, name))

    # ---------------------------------------------------------------------------------------------------- checking

    @rule(repair=st.booleans())
    def check(self, repair: bool) -> None:
        """Reconcile, and again: all is found, nothing else, and the second time nothing changes."""
        self.sound = False
        before = self.wrong()
        found = self.reconcile(repair)
        after, state = self.wrong(), self.dump()
        strays = {(Kind.TRASH, str(one.ref)) for one in self.ledgers}  # told twice: of the event, and of the trash
        assert before <= found <= before | after | strays, (before, found, after)
        assert after <= self.reconcile(repair) <= after | strays
        assert self.dump() == state
        if repair:
            self.repaired(after)
        self.sound = True

    def reconcile(self, repair: bool) -> Wrong:
        done: Reconciled = pipeline.reconcile(self.lab.site, repair=repair, within=WITHIN)
        assert not done.stopped
        return {(one.kind, one.key) for one in done.findings}

    def repaired(self, after: Wrong) -> None:
        """Nothing is left wrong that could be put right."""
        for ledger in self.ledgers:
            key, here = ledger.event.key, self.images(ledger).exists()
            if here and ledger.purge("raw") is None and ledger.setback("export") is None:
                assert not {(Kind.LOST, key), (Kind.CHANGED, key), (Kind.NEVER_EXPORTED, key)} & after
                assert (Kind.DARK, key) not in after

    def settle_down(self) -> None:
        """With time and permission everything comes to rest."""
        for _ in range(3):
            self.check(repair=True)
            self.clock.turn(hours=25)

    def wrong(self) -> Wrong:
        """Return what is wrong, by looking at everything."""
        objects = {one.key: digest(b"".join(self.store.open(one.key))) for one in self.store.list()}
        ledgers = {one.event.key: one for one in self.lab.catalog.ledgers()}
        found = {one for one in self.orphans if self.lies(one[1])}
        for key, ledger in ledgers.items():
            found |= {(kind, key) for kind in self.wrong_with(ledger, objects.get(key))}
        found |= {(self.whose(key), key) for key in objects.keys() - ledgers.keys() if not is_marker(key)}
        for entry in self.lab.catalog.parked():
            known = ledgers.get(entry.key.removeprefix("raw/"))
            if known is None:
                found.add((Kind.UNKNOWN, entry.key))
            else:
                found.add((Kind.NEVER_EXPORTED if known.export is None else Kind.DISAGREES, known.event.key))
        return found

    def whose(self, key: str) -> Kind:
        """Return whether an object that nobody recorded is another site's."""
        return Kind.DARK if site_of(self.store.stat(key)) in {None, self.lab.site.places.site} else Kind.FOREIGN

    def lies(self, name: str) -> bool:
        return any(self.lab.bench.glob(f"*/{TRASH}/{name}/*"))

    def wrong_with(self, ledger: Ledger, content: str | None) -> Iterator[Kind]:
        """Return what is wrong with one event, whose object has these bytes."""
        export = ledger.export
        harmed = export is not None and (content != export.sha256 or export.damage is not None)
        if export is None and content is not None:
            yield Kind.DARK
        if export is not None and content is None:
            yield Kind.LOST
        if harmed and content is not None:
            yield Kind.CHANGED
        if export is not None and not harmed and not ledger.archives and self.clock() - export.uploaded_at > WITHIN:
            yield Kind.UNARCHIVED
        mounted = (self.lab.bench / ledger.event.system / "events").exists()
        if mounted and not self.images(ledger).exists() and ledger.purge("raw") is None:
            yield Kind.UNTOLD

    def dump(self) -> tuple[str, dict[str, str], set[str]]:
        """Everything there is."""
        with closing(sqlite3.connect(self.lab.home / "catalogue.db")) as connection:
            rows = "\n".join(connection.iterdump())
        objects = {one.key: digest(b"".join(self.store.open(one.key))) for one in self.store.list()}
        return rows, objects, {str(path) for path in self.lab.bench.rglob("*")}


TestWorlds = Worlds.TestCase
TestWorlds.settings = settings(
    max_examples=16 if SOAK else 8,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
