"""A bench of several systems: one that hangs or was swapped for a link holds up and reaches nobody else."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from plateway import bench, pipeline
from plateway.catalog import Catalog
from plateway.errors import Misconfigured, PlatewayError
from plateway.events import Ref
from plateway.instruments import Instrument
from plateway.isolation import Beat
from plateway.store import open_store
from tests.databases import furnish
from tests.hanging import hung
from tests.lab import Clock, Lab, with_policy

SHORT = timedelta(seconds=2)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A bench, a staging disk, a bucket and a catalogue."""
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    for name in ("bench", "bucket", "staging"):
        (tmp_path / name).mkdir()
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    catalog.close()


def state_of(place: Path) -> dict[str, bytes]:
    return {str(one.relative_to(place)): one.read_bytes() if one.is_file() else b"" for one in place.rglob("*")}


# A system that hangs


class Stuck:
    """A disk whose directory of event files does not answer, until somebody lets it."""

    def __init__(self, system: str) -> None:
        self.system, self.gate, self.met = system, threading.Event(), 0

    def __call__(
        self, instrument: Instrument, *, known: object = None, beat: Beat | None = None
    ) -> list[bench.Sighting]:
        if instrument.name == self.system:
            self.met += 1
            assert self.gate.wait(60)
        return bench.scan(instrument, beat=beat)


def threads(lab: Lab) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith(f"register {lab.bench}")]


def test_a_hung_system_is_later_and_the_others_are_registered(lab: Lab) -> None:
    """However often: the others' events come, one thread hangs at most, and nobody waits for it a second time."""
    lab.acquire("prince")
    stuck = Stuck("prince")
    try:
        for number in range(5):
            event = lab.acquire("aretha")
            patience = SHORT if number == 0 else timedelta(seconds=60)
            found = pipeline.register(lab.site, patience=patience, scan=stuck)
            assert found.new == (Ref(event.id, 1),)
            assert [(one.system, one.result) for one in found.troubled] == [("prince", "later")]
            assert (stuck.met, len(threads(lab))) == (1, 1)
    finally:
        left = threads(lab)
        stuck.gate.set()
        for one in left:
            one.join(60)


def test_a_system_that_answers_again_is_registered(lab: Lab) -> None:
    """What was read too late is not recorded by the look that was given up, but by the next one."""
    event = lab.acquire("prince")
    stuck = Stuck("prince")
    assert pipeline.register(lab.site, patience=SHORT, scan=stuck).new == ()
    (thread,) = threads(lab)
    stuck.gate.set()
    thread.join(60)
    assert lab.catalog.revisions(event.id) == []
    assert pipeline.register(lab.site, scan=stuck).new == (Ref(event.id, 1),)


def test_all_systems_may_hang(lab: Lab) -> None:
    """They are waited for together, not one after the other."""
    gate = threading.Event()

    def scan(_: Instrument, *, known: object = None, beat: Beat | None = None) -> list[bench.Sighting]:
        assert gate.wait(60)
        return []

    for name in ("aretha", "otis", "prince"):
        (lab.bench / name / "events").mkdir(parents=True)
    try:
        found = pipeline.register(lab.site, patience=SHORT, scan=scan)
        assert sorted(one.system for one in found.troubled) == ["aretha", "otis", "prince"]
        assert len(threads(lab)) == 3
    finally:
        left = threads(lab)
        gate.set()
        for one in left:
            one.join(60)


@pytest.mark.parametrize("hangs", ["the disk", "its images"])
def test_a_hung_mount_holds_up_only_its_own_system(lab: Lab, hangs: str) -> None:
    """The kernel does not answer, as when the server of a network mount is gone."""
    lab.acquire("aretha")
    images = lab.acquire("prince").images
    pipeline.register(lab.site)
    place = lab.bench / "otis" if hangs == "the disk" else images
    place.mkdir(exist_ok=True)
    lab.clock.turn(seconds=5)
    with hung(place):
        event = lab.acquire("aretha")
        if hangs == "the disk":
            names = bench.list_systems(lab.bench, patience=SHORT)
            assert names == ["aretha", "otis", "prince"]
        found = pipeline.register(lab.site, patience=SHORT)
        assert Ref(event.id, 1) in found.new
        assert [one.system for one in found.troubled] == ["otis" if hangs == "the disk" else "prince"]
    for thread in threads(lab):
        thread.join(60)


# A system that is a link


def swap(lab: Lab, system: str = "prince") -> Path:
    """Put a link where a system's directory was: to a copy of it, so that everything would be found."""
    real, elsewhere = lab.bench / system, lab.home / f"{system}-elsewhere"
    real.rename(elsewhere)
    real.symlink_to(elsewhere)
    return elsewhere


def swap_back(lab: Lab, system: str = "prince") -> None:
    (lab.bench / system).unlink()
    (lab.home / f"{system}-elsewhere").rename(lab.bench / system)


def test_the_bench_itself_may_be_a_link(lab: Lab) -> None:
    """Operators put it on another disk: from announcement to tombstone nothing is different."""
    lab.bench.rename(lab.home / "disk")
    lab.bench.symlink_to(lab.home / "disk")
    with_policy(lab, purge=True, lifespan=timedelta(0), grace=timedelta(0), fraction=1.0)
    announced, ref = lab.exported()
    lab.clock.turn(hours=9)
    assert {one.result for one in pipeline.purge(lab.site)} >= {"trashed"}
    assert lab.state(ref) == "purged"
    assert not announced.images.exists()
    assert pipeline.restore(lab.site, ref, to_bench=True).result == "restored"
    assert announced.images.exists()


def test_announcements_behind_a_link_are_not_read(lab: Lab) -> None:
    """The system is told as one whose disk is not as it should be, and what waits of it goes on waiting."""
    event = lab.acquire("prince")
    pipeline.register(lab.site)
    elsewhere = swap(lab)
    later = lab.acquire("aretha")
    lab.clock.turn(hours=1)
    before = state_of(elsewhere)
    found = pipeline.register(lab.site)
    assert [(one.system, one.result) for one in found.troubled] == [("prince", "later")]
    assert (found.new, found.sealed, found.quarantined) == ((Ref(later.id, 1),), (), ())
    assert state_of(elsewhere) == before
    swap_back(lab)
    assert pipeline.register(lab.site).troubled == ()
    assert lab.catalog.quarantined() == []
    assert lab.ledger(Ref(event.id, 1)).event.fingerprint is not None


def test_a_link_that_was_never_a_system_is_left_out(lab: Lab) -> None:
    """Operators may keep links on the bench; none of them is a system, and none is complained about."""
    lab.acquire("prince")
    (lab.bench / "old").symlink_to(lab.bench / "prince")
    (lab.bench / "nowhere").symlink_to(lab.home / "nothing")
    found = pipeline.register(lab.site)
    assert (len(found.new), found.troubled) == (1, ())


def test_a_system_swapped_while_it_is_looked_at_keeps_its_events(lab: Lab) -> None:
    """Between event files and images: the link is no fault of the event, which is not quarantined."""
    event = lab.acquire("prince")
    pipeline.register(lab.site)
    lab.clock.turn(hours=1)

    def scan(instrument: Instrument, *, known: object = None, beat: Beat | None = None) -> list[bench.Sighting]:
        found = bench.scan(instrument, beat=beat)
        swap(lab)
        return found

    found = pipeline.register(lab.site, scan=scan)
    assert [(one.system, one.result) for one in found.troubled] == [("prince", "later")]
    assert lab.catalog.quarantined() == []
    assert lab.state(Ref(event.id, 1)) == "waiting"


VERBS: dict[str, Callable[[Lab, Ref], Any]] = {
    "register": lambda lab, ref: pipeline.register(lab.site),
    "export": lambda lab, ref: pipeline.export(lab.site, ref, force=True),
    "purge": lambda lab, ref: pipeline.purge(lab.site, fraction=1.0),
    "restore": lambda lab, ref: pipeline.restore(lab.site, ref, to_bench=True),
    "reconcile": lambda lab, ref: pipeline.reconcile(lab.site, repair=True),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("life", ["exported", "trashed", "gone"])
def test_no_verb_follows_a_swapped_system(lab: Lab, verb: str, life: str) -> None:
    """Nothing behind the link is written, moved or removed, wherever its event is in its life."""
    with_policy(lab, purge=True, lifespan=timedelta(0), grace=timedelta(hours=1), fraction=1.0)
    _, ref = lab.exported()
    lab.clock.turn(hours=9)
    if life != "exported":
        pipeline.purge(lab.site)
    if life == "gone":
        lab.clock.turn(hours=2)
        pipeline.purge(lab.site)
    lab.clock.turn(hours=2)
    elsewhere = swap(lab)
    before, known = state_of(elsewhere), [purge.gone_at for purge in lab.ledger(ref).purges]
    with suppress(PlatewayError):
        VERBS[verb](lab, ref)
    assert state_of(elsewhere) == before
    assert [purge.gone_at for purge in lab.ledger(ref).purges] == known
    assert (lab.bench / "prince").is_symlink()


def test_a_swapped_staging_directory_is_not_followed(lab: Lab) -> None:
    """No copy is written, cleared away or removed behind it."""
    lab.options = {"staging": lab.home / "staging" / "prince"}
    elsewhere = lab.home / "elsewhere"
    event = lab.acquire("prince")
    lab.settle()
    for name in ("", ".part", ".old"):
        (elsewhere / f"{event.id}{name}").mkdir(parents=True)
        (elsewhere / f"{event.id}{name}" / "kept").touch()
    before = state_of(elsewhere)
    (lab.home / "staging" / "prince").symlink_to(elsewhere)
    assert {one.result for one in lab.export()} <= {"failed", "later"}
    assert state_of(elsewhere) == before


@pytest.mark.parametrize("fraction", [10, 0, -1, float("nan")])
@pytest.mark.parametrize("verb", ["purge", "expire"])
def test_no_verb_takes_a_fraction_that_is_no_share(lab: Lab, verb: str, fraction: float) -> None:
    """Nothing is judged, moved or removed."""
    with_policy(lab, purge=True, lifespan=timedelta(0), bucket_lifespan=timedelta(0))
    announced, ref = lab.exported()
    lab.clock.turn(hours=9)
    with pytest.raises(Misconfigured):
        getattr(pipeline, verb)(lab.site, fraction=fraction)
    assert announced.images.exists()
    assert lab.ledger(ref).purges == ()
