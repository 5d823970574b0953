"""Instruments that are not there: they draw plates, write images and announce them, in both dialects, and misbehave.

A picture is a pure function of seed, plate, age and view: a petri dish in dark field with a hyphal network that grows
outwards and branches; neighbouring tiles of a stitched grid continue each other. Writing follows a real instrument:
images first, event file last, written aside and renamed. A fault is another order of the same few writes.
What becomes of the files is none of this module's business.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import count as counting
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
import tifffile

NAMESPACE = UUID("5b2d7f0a-6d0c-4c0e-9d55-3f1f0f6f8a11")  # of the ids that simulated instruments give
STEPS = 240  # of growth, from the plug in the middle to the rim
LENGTH = 0.96 / STEPS  # of one segment of a hypha, in radii of the dish
AGED = 40  # acquisitions of one plate until its network reaches the rim; the first one is the eighth

Dialect = Literal["timestep", "imaging event"]
Picture = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Simulated:
    """One instrument that is not there, and what it looks at."""

    system: str
    dialect: Dialect
    root: Path  # holds events/ and the images, as for a real instrument
    kinds: tuple[str, ...] = ("stitch",)  # taken in turn: stitch, video, overview
    images: int = 6  # tiles of a stitch, frames of a video; an overview is one image
    size: int = 512  # pixels along either side of an image
    plates: int = 2  # looked at in turn
    crossed: date = date(2025, 1, 6)  # when the plates were inoculated
    seed: int = 0
    publish: Callable[[bytes], object] | None = None  # announces instead of an event file


@dataclass(frozen=True)
class Announced:
    """What an instrument wrote and said about it."""

    id: UUID
    system: str
    path: Path  # of the event file
    images: Path  # of the directory with the images
    files: Mapping[str, str]  # SHA-256 by name below that directory
    at: datetime  # when the event file was complete


class View(NamedTuple):
    """A window onto the plate: its upper left corner and pixels per unit; the dish has its centre at 0 and radius 1."""

    x: float
    y: float
    scale: float


class Network(NamedTuple):
    """Hyphae as short segments of one length, in the order in which they grew."""

    x: Floats
    y: Floats
    heading: Floats
    vigour: Floats  # how bright: runners are brighter than their branches
    born: Floats  # 0 to 1, the age of the plate at which the segment appears


# Drawing


@lru_cache(maxsize=16)
def network(seed: int) -> Network:
    """Grow hyphae from a plug in the middle to the rim: tips wander, branch, and stop where it is crowded."""
    rng = np.random.default_rng(seed)
    heading = rng.uniform(-np.pi, np.pi, 24)
    tips = np.array([0.05 * np.cos(heading), 0.05 * np.sin(heading), heading, rng.uniform(0.7, 1.3, 24)])
    crowd = np.zeros((72, 72), dtype=np.int32)
    grown = []
    for step in range(STEPS):
        x, y, heading, _ = tips
        heading += rng.normal(0, 0.1, heading.size) + 0.02 * np.sin(np.arctan2(y, x) - heading)
        grown.append(np.vstack([tips, np.full(x.size, step / STEPS)]))
        x += LENGTH * np.cos(heading)
        y += LENGTH * np.sin(heading)
        cell = ((y + 1.1) * 32).astype(int), ((x + 1.1) * 32).astype(int)
        np.add.at(crowd, cell, 1)
        tips = tips[:, (np.hypot(x, y) < 0.95) & (rng.random(x.size) > np.clip((crowd[cell] - 18) / 200, 0, 0.4))]
        forks = tips[:, rng.random(tips.shape[1]) < 0.042]
        forks[2] += rng.choice([-1, 1], forks.shape[1]) * rng.uniform(0.4, 1.1, forks.shape[1])
        forks[3] *= 0.72
        tips = np.hstack([tips, forks])
    return Network(*np.hstack(grown).astype(np.float32))


def draw(seed: int, *, age: float, view: View, size: int = 512, phase: float | None = None) -> Picture:
    """Draw what a camera sees of a plate of this age (0 to 1) in a square window.

    A phase makes the cytoplasm visible as beads that travel along the hyphae, as in a video.
    Takes about 8 ms for 512 by 512 pixels. The same arguments give the same pixels.
    """
    x = np.float32(view.x) + np.arange(size, dtype=np.float32) / np.float32(view.scale)
    y = np.float32(view.y) + np.arange(size, dtype=np.float32) / np.float32(view.scale)
    radius = np.sqrt((x * x)[None, :] + (y * y)[:, None])
    light = agar(radius, x, y)
    light += 26000 * (1 - np.exp(-hyphae(network(seed), age=age, view=view, size=size, phase=phase)))
    light += 15000 * np.clip((0.05 - radius) * 60, 0, 1)  # the plug it grew from
    edge = (np.arange(size, dtype=np.float32) / max(size - 1, 1) - 0.5) ** 2
    light *= 1 - 0.16 * (edge[None, :] + edge[:, None])  # vignetting, the same along both sides of a seam
    rng = np.random.default_rng([abs(int(1e6 * number)) for number in (seed, age, *view, phase or 0)])
    light += rng.standard_normal(light.shape, dtype=np.float32) * 140
    return np.clip(light, 0, 65535).astype(np.uint16)


def agar(radius: Floats, x: Floats, y: Floats) -> Floats:
    """Shade the empty dish: a dim disk, slightly uneven, a bright rim, darkness around."""
    inside = np.clip((0.985 - radius) * 120, 0, 1)
    uneven = np.sin(2.1 * x + 0.4)[None, :] * np.cos(1.7 * y - 0.9)[:, None]
    light: Floats = 1400 + inside * (6900 - 1500 * radius * radius + 700 * uneven)
    rim = 1 - np.abs(radius - 1) * 70
    light += 14000 * np.clip(rim, 0, 1) ** 2
    return light


def hyphae(net: Network, *, age: float, view: View, size: int, phase: float | None) -> Floats:
    """Lay the segments that are old enough onto the window and blur them to the width of a hypha."""
    sigma = min(max(view.scale * 0.0012, 0.75), 2.5)
    pad = int(3 * sigma) + 1
    stride = np.linspace(0, 1, max(2, int(LENGTH * view.scale * 1.5)), endpoint=False, dtype=np.float32)
    reach = LENGTH * view.scale
    left, top = (net.x - view.x) * view.scale + pad, (net.y - view.y) * view.scale + pad
    wide = size + 2 * pad
    seen = net.born <= age
    seen &= (left > -reach) & (left < wide + reach) & (top > -reach) & (top < wide + reach)
    left = (left[seen, None] + reach * np.cos(net.heading[seen, None]) * stride).ravel()
    top = (top[seen, None] + reach * np.sin(net.heading[seen, None]) * stride).ravel()
    kept = (left >= 0) & (left < wide) & (top >= 0) & (top < wide)
    where = top[kept].astype(np.int32) * wide + left[kept].astype(np.int32)
    ink = np.repeat(net.vigour[seen] * beads(net.born[seen], phase), stride.size)[kept]
    laid = (
        np.bincount(where, weights=ink * (0.55 * reach / stride.size), minlength=wide * wide)
        .astype(np.float32)
        .reshape(wide, wide)
    )
    return blur(laid, sigma=sigma, pad=pad)


def beads(born: Floats, phase: float | None) -> Floats:
    """Return how bright each segment is: evenly, or in waves that run outwards as the phase (in turns) goes on."""
    if phase is None:
        return np.ones_like(born)
    waves: Floats = (
        0.45 + 1.1 * np.maximum(np.sin(born * np.float32(STEPS * 0.9) - np.float32(2 * np.pi * phase)), 0) ** 4
    )
    return waves


def blur(image: Floats, *, sigma: float, pad: int) -> Floats:
    """Convolve with a Gaussian, scaled so that a line keeps its height at any width, and cut the padding off."""
    taps = np.exp(-0.5 * (np.arange(-pad, pad + 1, dtype=np.float32) / np.float32(sigma)) ** 2)
    wide = image.shape[0] - 2 * pad
    rows = sum(tap * image[i : i + wide] for i, tap in enumerate(taps))
    return np.asarray(sum(tap * rows[:, i : i + wide] for i, tap in enumerate(taps)), dtype=np.float32)


def grid(images: int) -> tuple[int, int]:
    """Arrange tiles in rows and columns, as square as their number allows, wider than high."""
    rows = max(n for n in range(1, int(images**0.5) + 1) if images % n == 0)
    return rows, images // rows


def tiff(picture: Picture) -> bytes:
    """Encode one image, 16-bit grayscale."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, picture, photometric="minisblack", metadata=None)
    return buffer.getvalue()


# Acquiring


@dataclass(frozen=True)
class Shot:
    """One acquisition, and the few writes that it and its faults are made of."""

    instrument: Simulated
    number: int
    clock: Clock
    started: datetime
    take: int = 0  # another take under the same id looks elsewhere and lies elsewhere
    written: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> UUID:
        instrument = self.instrument
        return uuid5(NAMESPACE, f"{instrument.system} {instrument.seed} {self.number} {self.started.isoformat()}")

    @property
    def kind(self) -> str:
        return self.instrument.kinds[self.number % len(self.instrument.kinds)]

    @property
    def plate(self) -> int:
        return self.number % self.instrument.plates + 1

    @property
    def place(self) -> str:
        """Name the directory of the images, below the instrument's root."""
        again = f"-{self.take + 1}" if self.take else ""
        return f"{self.started:%Y%m%dT%H%M%S}-{self.id.hex[:6]}{again}"

    @property
    def folder(self) -> Path:
        return self.instrument.root / self.place

    @property
    def age(self) -> float:
        return min(1.0, (8 + self.number // self.instrument.plates) / AGED)

    @property
    def names(self) -> list[str]:
        """Name the images; the older dialect keeps them one level down, in Img/."""
        if self.kind == "overview":
            names = ["Overview.tif"]
        elif self.kind == "video":
            names = [f"Frame_{n:04d}.tif" for n in range(1, self.instrument.images + 1)]
        else:
            rows, columns = grid(self.instrument.images)
            names = [f"Img_r{r:02d}_c{c:02d}.tif" for r in range(1, rows + 1) for c in range(1, columns + 1)]
        return [f"Img/{name}" for name in names] if self.instrument.dialect == "timestep" else names

    def picture(self, index: int) -> Picture:
        """Draw the image of that index."""
        size, seed = self.instrument.size, self.instrument.seed * 1009 + self.plate + 500 * self.take
        if self.kind == "overview":
            return draw(seed, age=self.age, view=View(-1.05, -1.05, size / 2.1), size=size)
        if self.kind == "video":
            corner = 0.6 * self.age
            phase = index / 12
            return draw(seed, age=self.age, view=View(corner, -0.1, size / 0.2), size=size, phase=phase)
        rows, columns = grid(self.instrument.images)
        scale = size * rows / 2.1
        row, column = divmod(index, columns)
        view = View((column - columns / 2) * size / scale, (row - rows / 2) * size / scale, scale)
        return draw(seed, age=self.age, view=view, size=size)

    def expose(self, count: int | None = None) -> None:
        """Write the first images, all by default, and what lies among them."""
        for index in range(len(self.names) if count is None else count):
            self.image(index)
        self.sidecar()

    def image(self, index: int) -> str:
        """Write one image and return its name."""
        return self.write(self.names[index], tiff(self.picture(index)))

    def write(self, name: str, content: bytes) -> str:
        """Write one file below the image directory."""
        save(self.folder / name, content, at=self.clock())
        self.written[name] = hashlib.sha256(content).hexdigest()
        return name

    def sidecar(self) -> None:
        """Write what older instruments leave among their images."""
        if self.instrument.dialect == "timestep":
            self.write("metadata.json", json.dumps(details(self), indent=2).encode())

    def event(self, **changes: Any) -> bytes:
        """Format it in the instrument's dialect."""
        words = timestep(self) if self.instrument.dialect == "timestep" else imaging_event(self)
        return json.dumps(words | changes, indent=2).encode()

    @property
    def file(self) -> Path:
        again = f"-{self.take + 1}" if self.take else ""
        name = f"{int(self.started.timestamp())}-{self.id.hex[:6]}{again}.json"
        return self.instrument.root / "events" / name

    def announce(self, content: bytes | None = None) -> Announced:
        """Put the event file in its place, in one step; an instrument that publishes writes none."""
        at = self.clock()
        if self.instrument.publish is not None:
            self.instrument.publish(self.event() if content is None else content)
            return self.announced(at)
        aside = self.file.with_name(f".{self.file.name}.part")
        save(aside, self.event() if content is None else content, at=at)
        aside.rename(self.file)
        return self.announced(at)

    def announced(self, at: datetime) -> Announced:
        return Announced(self.id, self.instrument.system, self.file, self.folder, dict(self.written), at)


def save(path: Path, content: bytes, *, at: datetime) -> None:
    """Write a file whose time is the simulated one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (at.timestamp(), at.timestamp()))


def timestep(shot: Shot) -> dict[str, Any]:
    """Announce in the words of DLM v1."""
    return {
        "timestep_id": str(shot.id),
        "plate": shot.plate,
        "cross_date": shot.instrument.crossed.isoformat(),
        "position": shot.number % 40 + 1,
        "timestamp": shot.started.isoformat(),
        "img_count": len(shot.names),
        "img_dir": shot.place,
        "event_type": shot.kind,
        "system": shot.instrument.system,
    }


def imaging_event(shot: Shot) -> dict[str, Any]:
    """Announce in the words of DLM v2."""
    return {
        "ref_id": str(shot.id),
        "experiment_id": f"{shot.instrument.crossed:%Y%m%d}_{shot.plate:03d}",
        "timestamp": shot.started.isoformat(),
        "type": shot.kind,
        "system": shot.instrument.system,
        "local_path": shot.place,
        "img_count": len(shot.names),
        "metadata": details(shot),
    }


def details(shot: Shot) -> dict[str, Any]:
    """Describe application and camera with the fields of DLM v2."""
    size = shot.instrument.size
    words: dict[str, Any] = {
        "application": {"application": "plateway-simulator", "version": "1", "user": "nobody"},
        "camera": {
            "model": "simulated",
            "station_name": shot.instrument.system,
            "exposure_time": 0.02,
            "frame_rate": 12.0,
            "frame_size": [size, size],
            "binning": "1x1",
            "gain": 1.0,
            "gamma": 1.0,
            "intensity": [80],
            "bits_per_pixel": 16,
        },
    }
    if shot.kind == "stitch":
        words["stitching"] = {"last_focused_at": shot.started.isoformat(), "grid_size": list(grid(len(shot.names)))}
    if shot.kind == "video":
        words["video"] = {"duration": len(shot.names) / 12, "location": [0.6 * shot.age, -0.1, 0.0]}
    return words


# Misbehaving. A fault is a generator that yields wherever the instrument pauses and others may look.

Pauses = Generator[str, None, Announced]


def well(shot: Shot) -> Pauses:
    """Do everything right: images first, event file last, no pause."""
    yield from ()
    shot.expose()
    return shot.announce()


def slow_writer(shot: Shot) -> Pauses:
    """Announce while the last image still grows, 64 KiB at a time."""
    shot.expose(len(shot.names) - 1)
    name, content = shot.names[-1], tiff(shot.picture(len(shot.names) - 1))
    announced = shot.announce()
    for end in range(1 << 16, len(content) + (1 << 16), 1 << 16):
        shot.write(name, content[:end])
        yield f"wrote {min(end, len(content))} of {len(content)} bytes of {name}"
    return replace(announced, files=dict(shot.written))


def event_before_images(shot: Shot) -> Pauses:
    """Announce first, then write the images."""
    announced = shot.announce()
    yield f"announced {shot.file.name}"
    for index in range(len(shot.names) - 1):
        yield f"wrote {shot.image(index)}"
    shot.image(len(shot.names) - 1)
    shot.sidecar()
    return replace(announced, files=dict(shot.written))


def missing_image(shot: Shot) -> Pauses:
    """Announce one image more than there is."""
    yield from ()
    shot.expose(len(shot.names) - 1)
    return shot.announce()


def extra_image(shot: Shot) -> Pauses:
    """Write one image more than is announced."""
    shot.write(shot.names[0].replace(".tif", "_copy.tif"), tiff(shot.picture(0)))
    return (yield from well(shot))


def half_written_json(shot: Shot) -> Pauses:
    """Write the event file in place, in two halves."""
    shot.expose()
    content = shot.event()
    save(shot.file, content[: len(content) // 2], at=shot.clock())
    yield f"wrote half of {shot.file.name}"
    at = shot.clock()
    save(shot.file, content, at=at)
    return shot.announced(at)


def garbage_json(shot: Shot) -> Pauses:
    """Announce with bytes that are no JSON."""
    yield from ()
    shot.expose()
    return shot.announce(b'{"ref_id": ' + bytes(range(256)))


def duplicate(shot: Shot) -> Pauses:
    """Announce the same twice, in two event files."""
    first = yield from well(shot)
    yield f"announced {first.path.name}"
    save(shot.file.with_stem(f"{shot.file.stem}-again"), first.path.read_bytes(), at=shot.clock())
    return first


def other_content(shot: Shot) -> Pauses:
    """Announce other images under the same id."""
    first = yield from well(shot)
    yield f"announced {first.path.name}"
    return (yield from well(replace(shot, take=1, written={})))


def bad_path(shot: Shot) -> Pauses:
    """Announce images that lie outside of the instrument's directory."""
    yield from ()
    shot.expose()
    where = "img_dir" if shot.instrument.dialect == "timestep" else "local_path"
    return shot.announce(shot.event(**{where: f"../../{shot.place}"}))


def symlink(shot: Shot) -> Pauses:
    """Put a link to a file elsewhere in the place of an image."""
    yield from ()
    shot.expose()
    elsewhere = shot.instrument.root / f"private-{shot.id.hex[:6]}.tif"
    image = shot.folder / shot.names[-1]
    image.rename(elsewhere)
    image.symlink_to(os.path.relpath(elsewhere, image.parent))
    del shot.written[shot.names[-1]]
    return shot.announce()


def late_mount(shot: Shot) -> Pauses:
    """Make the system's whole directory be away for a while, and come back with one event more."""
    root = shot.instrument.root
    away = root.with_name(f".{root.name}.unmounted")
    if root.exists():
        root.rename(away)
    announced = yield from well(replace(shot, instrument=replace(shot.instrument, root=away)))
    yield f"{root.name} is not mounted"
    away.rename(root)
    return replace(announced, path=shot.file, images=shot.folder)


FAULTS: Mapping[str, Callable[[Shot], Pauses]] = {
    "none": well,
    "slow-writer": slow_writer,
    "event-before-images": event_before_images,
    "missing-image": missing_image,
    "extra-image": extra_image,
    "half-written-json": half_written_json,
    "garbage-json": garbage_json,
    "duplicate": duplicate,
    "other-content": other_content,
    "bad-path": bad_path,
    "symlink": symlink,
    "late-mount": late_mount,
}


# Running


def pauses(instrument: Simulated, *, clock: Clock, number: int = 0, fault: str = "none") -> Pauses:
    """Acquire one event, yielding what was done last wherever a faulty instrument pauses; returns the announcement."""
    return FAULTS[fault](Shot(instrument, number, clock, started=clock()))


def acquire(instrument: Simulated, *, now: datetime, number: int = 0, fault: str = "none") -> Announced:
    """Acquire one event at once: write the images, then the event file.

    The number counts the instrument's acquisitions: it chooses the plate, how far that has grown, and with ``now`` and
    the seed the id. All files get ``now`` as their time. Of the faults that announce twice, the last one is returned.
    """
    return exhaust(pauses(instrument, clock=lambda: now, number=number, fault=fault), lambda: None)


def run(
    instruments: Sequence[Simulated],
    *,
    rate: float,
    count: int | None = None,
    faults: Sequence[str] = (),
    pause: float = 1.0,
    clock: Clock = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Announced]:
    """Make instruments acquire in turn, ``rate`` events a second in all, until ``count`` (for ever without it).

    The first acquisitions carry the given faults, one each; where a faulty one pauses, it takes ``pause`` seconds.
    """
    begun = clock()
    for done in counting() if count is None else range(count):
        sleep(max(0.0, done / rate - (clock() - begun).total_seconds()))
        number, turn = divmod(done, len(instruments))
        fault = faults[done] if done < len(faults) else "none"
        steps = pauses(instruments[turn], clock=clock, number=number, fault=fault)
        yield exhaust(steps, lambda: sleep(pause))


def exhaust(steps: Pauses, pause: Callable[[], None]) -> Announced:
    """Go through all pauses, doing that at each, and return what was announced."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            announced: Announced = end.value
            return announced
        pause()
