"""Instruments that are not there write what real ones would, and misbehave on request."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import tifffile

from plateway import simulator
from plateway.simulator import FAULTS, Announced, Dialect, Simulated, View, acquire, draw, pauses, run

NOW = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
DIALECTS: tuple[Dialect, ...] = ("timestep", "imaging event")


def instrument(tmp_path: Path, dialect: Dialect = "imaging event") -> Simulated:
    return Simulated("prince", dialect, tmp_path / "prince", images=3, size=64)


def images(announced: Announced) -> list[str]:
    return sorted(path.name for path in announced.images.rglob("*.tif"))


def event(announced: Announced) -> dict[str, object]:
    said: dict[str, object] = json.loads(announced.path.read_bytes())
    return said


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_announced_is_there(tmp_path: Path, dialect: Dialect) -> None:
    """Every file has the SHA-256 that acquire tells, and the count in the event file is that of the images."""
    announced = acquire(instrument(tmp_path, dialect), now=NOW)
    said = event(announced)
    assert said["img_count"] == len(images(announced)) == 3
    assert UUID(str(said["timestep_id" if dialect == "timestep" else "ref_id"])) == announced.id
    assert announced.images == tmp_path / "prince" / str(said["img_dir" if dialect == "timestep" else "local_path"])
    on_disk = {str(p.relative_to(announced.images)): p for p in announced.images.rglob("*") if p.is_file()}
    assert {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in on_disk.items()} == announced.files
    assert all(p.stat().st_mtime == NOW.timestamp() for p in (announced.path, *on_disk.values()))


def test_the_older_dialect_keeps_images_below_img_and_leaves_metadata(tmp_path: Path) -> None:
    """A timestep's images lie in Img/, with metadata.json beside that."""
    announced = acquire(instrument(tmp_path, "timestep"), now=NOW)
    assert sorted(announced.files) == [f"Img/Img_r01_c0{n}.tif" for n in (1, 2, 3)] + ["metadata.json"]
    assert json.loads((announced.images / "metadata.json").read_bytes())["camera"]["bits_per_pixel"] == 16


def test_the_event_file_comes_last_and_in_one_piece(tmp_path: Path) -> None:
    """Nothing but the event file is left in events/, named after the second of the acquisition."""
    announced = acquire(instrument(tmp_path), now=NOW)
    assert list((tmp_path / "prince" / "events").iterdir()) == [announced.path]
    assert announced.path.name.startswith(f"{int(NOW.timestamp())}-")


def test_the_same_arguments_give_the_same_event(tmp_path: Path) -> None:
    """Id, names and bytes are a function of instrument, number and time."""
    first = acquire(instrument(tmp_path / "a"), now=NOW, number=4)
    again = acquire(instrument(tmp_path / "b"), now=NOW, number=4)
    assert (first.id, first.files, first.path.read_bytes()) == (again.id, again.files, again.path.read_bytes())
    others = [acquire(instrument(tmp_path / "c"), now=NOW, number=5)]
    others += [acquire(instrument(tmp_path / "d"), now=NOW + timedelta(seconds=1), number=4)]
    others += [acquire(replace(instrument(tmp_path / "e"), seed=1), now=NOW, number=4)]
    assert len({first.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize(
    ("kind", "names"), [("video", ["Frame_0001.tif", "Frame_0002.tif"]), ("overview", ["Overview.tif"])]
)
def test_kinds_are_taken_in_turn(tmp_path: Path, kind: str, names: list[str]) -> None:
    """An instrument with several kinds takes one after the other; an overview is a single image."""
    mixed = replace(instrument(tmp_path), kinds=("stitch", kind), images=2)
    stitch, other = acquire(mixed, now=NOW, number=0), acquire(mixed, now=NOW, number=1)
    assert (event(stitch)["type"], event(other)["type"]) == ("stitch", kind)
    assert images(other) == names
    assert event(other)["img_count"] == len(names)


def test_tiles_of_a_grid_continue_each_other() -> None:
    """The left half and the right half of a view make the whole, up to sensor noise and vignetting."""
    whole = draw(3, age=0.8, view=View(-0.4, -0.4, 320), size=256).astype(float)
    right = draw(3, age=0.8, view=View(-0.4 + 128 / 320, -0.4, 320), size=256).astype(float)
    seam = whole[:, 128] - right[:, 0]
    assert np.corrcoef(whole[:, 128], right[:, 0])[0, 1] > 0.98
    assert np.abs(seam).mean() < 0.1 * whole.mean()


def test_a_plate_grows() -> None:
    """There is more hypha on an older plate, and nothing beyond the rim."""
    young, old = (draw(5, age=age, view=View(-1.05, -1.05, 200 / 2.1), size=200) for age in (0.2, 0.9))
    assert (old > 15000).sum() > 3 * (young > 15000).sum()
    assert old[:8, :8].max() < 3000


def test_images_have_structure_and_noise() -> None:
    """A picture is 16-bit with a wide range, differs from frame to frame in a video, and is no noise."""
    frames = [draw(5, age=0.9, view=View(0.5, -0.1, 600), size=128, phase=phase) for phase in (0, 0.25)]
    assert frames[0].dtype == np.uint16
    assert np.ptp(frames[0]) > 10000
    assert np.abs(frames[0].astype(float) - frames[1]).mean() > 200  # beads moved
    pixels = frames[0].astype(float)
    assert np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1] > 0.8


def test_images_are_tiff() -> None:
    """What is written opens as 16-bit grayscale."""
    picture = draw(1, age=0.5, view=View(-1, -1, 32), size=64)
    with tifffile.TiffFile(io.BytesIO(simulator.tiff(picture))) as file:
        assert np.array_equal(file.asarray(), picture)
        assert file.pages.first.photometric == tifffile.PHOTOMETRIC.MINISBLACK


@pytest.mark.parametrize(("images", "shape"), [(1, (1, 1)), (6, (2, 3)), (7, (1, 7)), (100, (10, 10)), (150, (10, 15))])
def test_grids_are_as_square_as_they_can(images: int, shape: tuple[int, int]) -> None:
    """150 images are the 10 rows of 15 that Prince takes."""
    assert simulator.grid(images) == shape


# Faults: what others see at each pause, and in the end


def looks(instrument: Simulated, fault: str) -> tuple[list[tuple[list[str], list[str]]], Announced]:
    """Go through a faulty acquisition; list event files and images at each pause and at the end."""
    steps = pauses(instrument, clock=lambda: NOW, fault=fault)
    seen: list[tuple[list[str], list[str]]] = []
    while True:
        try:
            next(steps)
        except StopIteration as end:
            announced: Announced = end.value
            return [*seen, look(instrument)], announced
        seen.append(look(instrument))


def look(instrument: Simulated) -> tuple[list[str], list[str]]:
    events = sorted(path.name for path in instrument.root.glob("events/*.json"))
    return events, sorted(path.name for path in instrument.root.rglob("*.tif"))


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_fault_ends_with_an_event_file(tmp_path: Path, dialect: Dialect, fault: str) -> None:
    """Whatever went wrong, something was announced, and the files told of are there with their bytes."""
    announced = acquire(instrument(tmp_path, dialect), now=NOW, fault=fault)
    assert announced.path.is_file()
    for name, digest in announced.files.items():
        assert hashlib.sha256((announced.images / name).read_bytes()).hexdigest() == digest


def test_a_slow_writer_is_still_writing_when_it_announces(tmp_path: Path) -> None:
    """At the first pause after the announcement the last image is shorter than in the end."""
    slow = replace(instrument(tmp_path), size=300)
    steps = pauses(slow, clock=lambda: NOW, fault="slow-writer")
    next(steps)
    assert len(look(slow)[0]) == 1
    (last,) = slow.root.rglob("*_c03.tif")
    assert last.stat().st_size == 1 << 16
    announced = simulator.exhaust(steps, lambda: None)
    assert last.stat().st_size > 300 * 300 * 2
    assert announced.files[last.name] == hashlib.sha256(last.read_bytes()).hexdigest()


def test_event_before_images(tmp_path: Path) -> None:
    """The images come one by one after the event file."""
    seen, _ = looks(instrument(tmp_path), "event-before-images")
    assert [(len(events), len(tiffs)) for events, tiffs in seen] == [(1, 0), (1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize(("fault", "there"), [("missing-image", 2), ("extra-image", 4)])
def test_wrong_number_of_images(tmp_path: Path, fault: str, there: int) -> None:
    """Three images are announced, two or four are there."""
    announced = acquire(instrument(tmp_path), now=NOW, fault=fault)
    assert (event(announced)["img_count"], len(images(announced))) == (3, there)


def test_half_written_json(tmp_path: Path) -> None:
    """The event file is cut at first and whole in the end."""
    steps = pauses(instrument(tmp_path), clock=lambda: NOW, fault="half-written-json")
    next(steps)
    (path,) = (tmp_path / "prince" / "events").iterdir()
    with pytest.raises(json.JSONDecodeError):
        json.loads(path.read_bytes())
    assert event(simulator.exhaust(steps, lambda: None))["img_count"] == 3


def test_garbage_json(tmp_path: Path) -> None:
    """The event file is no text at all."""
    announced = acquire(instrument(tmp_path), now=NOW, fault="garbage-json")
    with pytest.raises(UnicodeDecodeError):
        announced.path.read_text(encoding="utf-8")


def test_duplicate(tmp_path: Path) -> None:
    """Two event files with the same bytes."""
    acquire(instrument(tmp_path), now=NOW, fault="duplicate")
    first, second = (tmp_path / "prince" / "events").iterdir()
    assert first.read_bytes() == second.read_bytes()


def test_other_content(tmp_path: Path) -> None:
    """Two event files with one id, and different images in two places."""
    last = acquire(instrument(tmp_path), now=NOW, fault="other-content")
    said = [json.loads(path.read_bytes()) for path in (tmp_path / "prince" / "events").iterdir()]
    assert len(said) == len({one["local_path"] for one in said}) == 2
    assert {one["ref_id"] for one in said} == {str(last.id)}
    first = acquire(instrument(tmp_path / "again"), now=NOW)
    assert first.id == last.id
    assert set(first.files.values()).isdisjoint(last.files.values())


@pytest.mark.parametrize(("dialect", "word"), [("timestep", "img_dir"), ("imaging event", "local_path")])
def test_bad_path(tmp_path: Path, dialect: Dialect, word: str) -> None:
    """The announced directory is above the instrument's."""
    announced = acquire(instrument(tmp_path, dialect), now=NOW, fault="bad-path")
    assert str(event(announced)[word]).startswith("../../")


def test_symlink(tmp_path: Path) -> None:
    """One of the images is a link to a file outside of the image directory."""
    announced = acquire(instrument(tmp_path), now=NOW, fault="symlink")
    (link,) = (path for path in announced.images.iterdir() if path.is_symlink())
    assert link.resolve().is_file()
    assert not link.resolve().is_relative_to(announced.images)


def test_late_mount(tmp_path: Path) -> None:
    """The system's directory is away, also when it was there before, and comes back with everything."""
    prince = instrument(tmp_path)
    seen, announced = looks(prince, "late-mount")
    assert [len(events) for events, _ in seen] == [0, 1]
    assert announced.path.is_file()
    steps = pauses(prince, clock=lambda: NOW, number=1, fault="late-mount")
    next(steps)
    assert not prince.root.exists()
    simulator.exhaust(steps, lambda: None)
    assert len(look(prince)[0]) == 2


# Running


def test_run_takes_instruments_in_turn_at_a_rate(tmp_path: Path) -> None:
    """Four events of two instruments, two a second: each waits for its turn, faults come first."""
    prince = instrument(tmp_path)
    aretha = Simulated("aretha", "timestep", tmp_path / "aretha", images=1, size=32)
    slept: list[float] = []

    def clock() -> datetime:
        return NOW + timedelta(seconds=sum(slept))

    done = list(run([prince, aretha], rate=2, count=4, faults=["missing-image"], clock=clock, sleep=slept.append))
    assert [one.system for one in done] == ["prince", "aretha"] * 2
    assert [(one.at - NOW).total_seconds() for one in done] == [0, 0.5, 1, 1.5]
    assert len({one.id for one in done}) == 4
    assert len(done[0].files) == 2


def test_run_pauses_where_a_faulty_instrument_does(tmp_path: Path) -> None:
    """A late mount is away for the pause."""
    slept: list[float] = []
    list(
        run(
            [instrument(tmp_path)],
            rate=1,
            count=1,
            faults=["late-mount"],
            pause=7,
            clock=lambda: NOW,
            sleep=slept.append,
        )
    )
    assert slept == [0, 7]
