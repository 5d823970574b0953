"""Bytes that change at rest: every flip, cut, swap and deletion is found by reading, and nothing sound is accused."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from plateway import pipeline
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.events import Ref
from plateway.instruments import Policy
from plateway.keys import MARKER_FILE, MARKER_PREFIX
from plateway.store import open_store
from plateway.store.per_file import PerFile
from tests.databases import furnish
from tests.lab import Clock, Lab
from tests.soak import SOAK

COUNT = 1000 if SOAK else 60  # harmed copies in three places; twice as many sound ones lie beside them
SEED = 20261130
KINDS = ("flip", "cut", "swap", "delete")
EXPIRING = Policy(purge=False, grace=timedelta(0), bucket_lifespan=timedelta(0))
State = Mapping[Path, bytes]  # what lies in files


class Span(NamedTuple):
    """Bytes in a file that belong to one event."""

    ref: Ref
    path: Path
    start: int
    end: int


class Shelf:
    """Three events at rest in one place: bundles, files that are objects of their own, or members of a tar on tape."""

    def __init__(self, home: Path, place: str) -> None:
        for name in ("bench", "bucket", "tape"):
            (home / name).mkdir()
        clock = Clock()
        catalog = Catalog(f"sqlite:///{home}/catalogue.db", clock=clock)
        furnish(catalog)
        self.lab = Lab(home, PerFile(open_store((home / "bucket").as_uri())), clock, catalog)
        self.lab.options = {"layout": "bundle" if place == "bundle" else "files"}
        self.lab.archive = open_archive((home / "tape").as_uri())
        self.tape = place == "tape"
        for _ in range(3):
            self.lab.exported("aretha")
            clock.turn(minutes=1)
        if self.tape:
            self.expire()
        root = home / ("tape" if self.tape else "bucket")
        self.state: State = {path: path.read_bytes() for path in sorted(root.rglob("*")) if self.counts(path)}
        self.spans = [span for ledger in catalog.ledgers() for span in self.find_spans(ledger.ref)]

    def expire(self) -> None:
        """Leave the copies on tape as the only ones."""
        self.lab.policy = EXPIRING
        self.lab.clock.turn(days=1)
        pipeline.archive(self.lab.site)
        outcomes = pipeline.expire(self.lab.site)
        assert [one.result for one in outcomes] == ["marked"] * 3 + ["expired"] * 3

    def counts(self, path: Path) -> bool:
        """Return whether a file has bytes of events: no marker, manifest of a job, or record of the store's own."""
        parts = path.relative_to(self.lab.home).parts
        internal = path.name == MARKER_FILE or parts[1] in {MARKER_PREFIX.rstrip("/"), ".plateway", "manifests"}
        return path.is_file() and not internal

    def find_spans(self, ref: Ref) -> Iterator[Span]:
        """Find which bytes of which files are an event's."""
        ledger = self.lab.ledger(ref)
        assert ledger.export is not None
        if self.tape:
            (where,) = ledger.archives
            assert where.offset is not None
            path = self.lab.home / "tape" / where.path
            yield Span(ref, path, where.offset, where.offset + ledger.export.size)
            return
        key = Path(ledger.export.key)
        for path, content in self.state.items():
            relative = path.relative_to(self.lab.home / "bucket")
            if relative == key or str(ref.id) in relative.parts:
                yield Span(ref, path, 0, len(content))

    def damaged(self) -> set[Ref]:
        """Read every copy whole, as verification and the reading of tape do; return those that are accused."""
        self.lab.clock.turn(days=2)
        if self.tape:
            outcomes = pipeline.read_archive(self.lab.site, budget=1 << 40)
        else:
            refs = [ledger.ref for ledger in self.lab.catalog.ledgers()]
            outcomes = [pipeline.verify(self.lab.site, ref, read_back=True) for ref in refs]
        told = {one.ref: one.result for one in outcomes if one.ref is not None}
        assert len(told) == 3 and set(told.values()) <= {"damaged", "verified"}, outcomes
        for ref, result in told.items():
            state = self.lab.state(ref)
            assert (state in {"lost", "changed"}) == (result == "damaged"), (state, result)
        return {ref for ref, result in told.items() if result == "damaged"}

    def restore(self) -> None:
        """Put everything back as it was."""
        for path, content in self.state.items():
            if not path.exists() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def harm(shelf: Shelf, kind: str, dice: random.Random) -> set[Ref]:
    """Harm one copy, half of the times with its modification time put back; return whose bytes changed."""
    span = dice.choice(shelf.spans)
    content = bytearray(shelf.state[span.path])
    changed: dict[Path, bytes | None]
    match kind:
        case "flip":
            content[dice.randrange(span.start, span.end)] ^= 1 << dice.randrange(8)
            changed = {span.path: bytes(content)}
        case "cut":
            changed = {span.path: bytes(content[: dice.randrange(span.start, span.end)])}
        case "swap":
            changed = swapped(shelf, span, dice)
        case _:
            changed = {span.path: None}
    for path, data in changed.items():
        write(path, data, hide=dice.random() < 0.5)
    return {
        one.ref
        for one in shelf.spans
        if one.path in changed and shelf.state[one.path][one.start : one.end] != slice_of(changed[one.path], one)
    }


def slice_of(content: bytes | None, span: Span) -> bytes | None:
    return None if content is None else content[span.start : span.end]


def swapped(shelf: Shelf, span: Span, dice: random.Random) -> dict[Path, bytes | None]:
    """Exchange two objects, or two members of one tar, of the same size or not."""
    other = dice.choice([one for one in shelf.spans if one != span and differs(shelf, one, span)])
    if span.path != other.path:
        return {span.path: shelf.state[other.path], other.path: shelf.state[span.path]}
    first, second = sorted([span, other], key=lambda one: one.start)
    content = shelf.state[span.path]
    data = [content[one.start : one.end] for one in (first, second)]
    between = content[first.end : second.start]
    return {span.path: content[: first.start] + data[1] + between + data[0] + content[second.end :]}


def differs(shelf: Shelf, one: Span, other: Span) -> bool:
    return shelf.state[one.path][one.start : one.end] != shelf.state[other.path][other.start : other.end]


def write(path: Path, content: bytes | None, *, hide: bool) -> None:
    status = path.stat()
    if content is None:
        path.unlink()
        return
    path.write_bytes(content)
    if hide:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Shelf]]:
    shelves: dict[str, Shelf] = {}

    def shelf(place: str) -> Shelf:
        if place not in shelves:
            shelves[place] = Shelf(tmp_path_factory.mktemp(place), place)
        return shelves[place]

    yield shelf
    for one in shelves.values():
        one.lab.catalog.close()


@pytest.mark.timeout(0 if SOAK else 300)
@pytest.mark.parametrize("place", ["bundle", "files", "tape"])
def test_all_corruption_at_rest_is_found(make: Callable[[str], Shelf], place: str) -> None:
    """Each harmed copy is accused, by name, and no other; nor is one that was put back as it was."""
    shelf, dice = make(place), random.Random(SEED)
    assert shelf.damaged() == set()
    for number in range(-(-COUNT // 3)):
        kind = KINDS[number % len(KINDS)]
        harmed = harm(shelf, kind, dice)
        assert harmed
        assert shelf.damaged() == harmed, (number, kind)
        shelf.restore()
    assert shelf.damaged() == set()
