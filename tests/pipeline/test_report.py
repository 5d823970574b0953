"""The daily report: what it counts, whom it names as stuck, and when it says that a disk will be full."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.pipeline.report import (
    alerts,
    forecast,
    spoken_size,
    spoken_time,
)
from plateway.store import open_store
from plateway.wire import StuckEvent
from tests.databases import furnish
from tests.lab import DAWN, Clock, Lab

GB, TB, HOURS = 10**9, 10**12, 3600.0


def test_a_disk_that_fills_is_told_in_hours() -> None:
    """Free bytes and the rate of the last day give the time left; within a day it is an alert."""
    disk = forecast(["aretha"], free=700 * GB, rate=1200 * GB, safe=310 * GB)
    assert disk.text == "aretha: 14 h left, 310 GB safe to purge"
    assert disk.seconds_left == pytest.approx(14 * HOURS)
    assert disk.alert


@pytest.mark.parametrize(
    ("free", "rate", "says", "alert"),
    [
        (5 * TB, 1 * TB, "prince: 5 days left, 2.5 GB safe to purge", False),
        (1 * TB, 1 * TB, "prince: 24 h left, 2.5 GB safe to purge", False),
        (1 * TB - 1, 1 * TB, "prince: 23 h left, 2.5 GB safe to purge", True),
        (0, 1 * TB, "prince: the disk is full, 2.5 GB safe to purge", True),
        (0, 0, "prince: the disk is full, 2.5 GB safe to purge", True),
        (5 * TB, 0, "prince: 5.0 TB free, nothing written in a day, 2.5 GB safe to purge", False),
        (None, 1 * TB, "prince: the disk is not there, 2.5 GB safe to purge", True),
        (None, 0, "prince: the disk is not there, 2.5 GB safe to purge", True),
    ],
)
def test_what_is_said_of_a_disk(free: int | None, rate: int, says: str, alert: bool) -> None:
    """Without a rate there is no forecast, and a disk that is gone is said to be gone."""
    disk = forecast(["prince"], free=free, rate=rate, safe=25 * GB // 10)
    assert (disk.text, disk.alert) == (says, alert)
    assert (disk.seconds_left is None) == (free is None or rate == 0)


def test_systems_on_one_disk_are_told_together() -> None:
    """They fill it together."""
    assert forecast(["aretha", "prince"], free=GB, rate=GB * 3, safe=0).text.startswith("aretha, prince: 8 h left")


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (9_960, "10 kB"), (310 * GB, "310 GB"), (10**18, "1000 PB")],
)
def test_sizes_are_told_as_disks_are_sold(size: int, said: str) -> None:
    """In powers of ten, with two digits that mean something."""
    assert spoken_size(size) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(14 * HOURS, "14 h"), (47 * HOURS, "47 h"), (49 * HOURS, "2 days"), (90, "90 s"), (0, "0 s")]
)
def test_times_are_told_in_one_unit(seconds: float, said: str) -> None:
    """The largest of which there are two."""
    assert spoken_time(seconds) == said


def stuck(number: int, system: str = "prince") -> StuckEvent:
    """Make up an event that waits, the higher its number the longer."""
    return StuckEvent(
        id=UUID(int=number),
        revision=1,
        system=system,
        state="waiting",
        since=DAWN - timedelta(hours=number),
        reasons=["11 of 12 images present"],
    )


def test_alerts_name_a_few_and_count_the_rest() -> None:
    """One alert for each system, with the events that wait longest; it is about all of them."""
    many = [stuck(number) for number in range(1, 9)]
    (prince, aretha) = sorted(alerts([*many, stuck(3, "aretha")], [], now=DAWN), key=lambda one: -len(one.about))
    assert prince.text.startswith("prince: 8 stuck, the oldest for 8 h: 00000000-0000-0000-0000-000000000008 11 of 12")
    assert prince.text.endswith("3 more")
    assert set(prince.about) == {str(one.id) for one in many}
    assert aretha.text.startswith("aretha: 1 stuck, the oldest for 3 h")


def test_a_disk_with_room_is_no_alert() -> None:
    """Only a disk that is gone, full, or will be within a day."""
    room = forecast(["prince"], free=5 * TB, rate=1, safe=0)
    gone = forecast(["aretha"], free=None, rate=1, safe=0)
    assert [one.about for one in alerts([], [room, gone], now=DAWN)] == [["disk aretha"]]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A laboratory whose instrument waits for images."""
    for name in ("bench", "bucket"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog, options={"deadline": timedelta(9)})
    catalog.close()


def test_the_report_counts_and_forecasts(lab: Lab) -> None:
    """What was sent today, what waits, and what is safe to purge; systems that share the disk share its forecast."""
    _, ref = lab.exported()
    lab.exported("aretha")
    told = pipeline.report(lab.site)
    size = sum(one.export.size for one in lab.catalog.ledgers() if one.export)
    assert {one.system: (one.events, one.exported, one.waiting) for one in told.systems} == {
        "aretha": (1, 1, 0),
        "prince": (1, 1, 0),
    }
    assert (told.days[-1].events, told.days[-1].exports, told.days[-1].archived) == (2, 2, 0)
    (disk,) = told.disks
    assert (disk.systems, disk.rate, disk.safe_to_purge) == (["aretha", "prince"], size, size)
    assert told.alerts == []
    assert lab.state(ref) == "exported"


def test_an_event_is_stuck_after_its_systems_limit(lab: Lab) -> None:
    """Each system has its own; what the caller says goes before it."""
    announced = lab.acquire(fault="missing-image")
    lab.settle()
    lab.clock.turn(minutes=59)
    assert pipeline.report(lab.site).stuck == []
    lab.clock.turn(minutes=2)
    told = pipeline.report(lab.site)
    assert [one.id for one in told.stuck] == [announced.id]
    assert told.stuck[0].reasons == ["2 of 3 images present"]
    assert told.alerts[0].about == [str(announced.id)]
    lab.options = {**lab.options, "stuck_after": timedelta(hours=3)}
    assert pipeline.report(lab.site).stuck == []
    assert pipeline.report(lab.site, stuck_after=timedelta(minutes=5)).stuck == told.stuck


def test_a_disk_that_is_gone_is_an_alert(lab: Lab) -> None:
    """An empty directory where the disk was, or none; but nobody misses a disk with nothing of ours left on it."""
    lab.exported()
    lab.unmount("prince")
    (alert,) = pipeline.report(lab.site).alerts
    assert alert.text.startswith("prince: the disk is not there")
    shutil.rmtree(lab.bench / "prince")
    assert [one.about for one in pipeline.report(lab.site).alerts] == [["disk prince"]]
    (lab.home / "away-prince").rename(lab.bench / "prince")
    lab.clock.turn(hours=9)
    assert {one.result for one in pipeline.purge(lab.site)} == {"trashed"}
    shutil.rmtree(lab.bench / "prince")
    assert pipeline.report(lab.site).alerts == []
