"""Disks that fail, fill up and change under our hands: one event waits, is shown, and nothing untrue is exported.

Faults are real where root can have them: an instrument whose directory is gone, a limit on the size of files, a name
too long. Where only hardware would do, the system call itself answers with the error, in this process, once.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from plateway import folder, pipeline
from plateway.bench import RESERVE
from plateway.catalog import Catalog
from plateway.errors import PlatewayError
from plateway.events import Ref
from plateway.pipeline.verify import manifest_of
from plateway.simulator import Announced
from plateway.store import open_store
from tests.databases import furnish
from tests.faults.invariants import World, check
from tests.lab import Clock, Lab

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name in ("bench", "bucket", "staging"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)
    furnish(catalog)
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    catalog.close()


def staged(lab: Lab) -> None:
    lab.options = {"staging": lab.home / "staging" / "prince"}


def two(lab: Lab) -> tuple[Announced, Announced]:
    """Make an instrument acquire two events, complete and settled."""
    first = lab.acquire()
    lab.clock.turn(seconds=1)
    second = lab.acquire()
    lab.settle()
    return first, second


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, call: str, code: int, *, name: str, flags: int = 0) -> Iterator[None]:
    """Make one system call answer with an error wherever a file of that name is opened, or is open."""
    real: Callable[..., Any] = getattr(os, call)
    opening = os.open
    bad: set[int] = set()

    def opened(path: Any, how: int, *args: Any, **options: Any) -> int:
        descriptor = opening(path, how, *args, **options)
        bad.discard(descriptor)
        if name in str(path) and how & flags == flags:
            bad.add(descriptor)
        return descriptor

    def faulty(what: Any, *args: Any, **options: Any) -> Any:
        if what in bad or (call == "open" and name in str(what) and args[0] & flags == flags):
            raise OSError(code, os.strerror(code))
        return real(what, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        patch.setattr(os, call, faulty)
        yield


def only_that_one_waits(lab: Lab, bad: Announced, good: Announced) -> None:
    """See that one event is set back with a reason, the other exported, and all is well when the fault is over."""
    ledger = lab.ledger(Ref(bad.id, 1))
    setback = ledger.setback("export")
    assert ledger.export is None
    assert setback is not None
    assert setback.reason
    assert str(lab.home) not in setback.reason
    assert ledger.state(lab.clock()).name == "waiting"
    assert lab.state(Ref(good.id, 1)) == "exported"
    assert check(World(lab, [bad, good])) == []


READING = [("open", errno.EIO), ("open", errno.EACCES), ("open", errno.ESTALE), ("open", errno.EMFILE)]
READING += [("read", errno.EIO), ("read", errno.ESTALE), ("fstat", errno.ESTALE), ("fstat", errno.EIO)]


@pytest.mark.parametrize(("call", "code"), READING, ids=lambda value: errno.errorcode.get(value, value))
@pytest.mark.parametrize("staging", [False, True], ids=["bench", "staging"])
def test_an_image_that_cannot_be_read_stops_one_event(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, call: str, code: int, staging: bool
) -> None:
    """EIO, EACCES, ESTALE from any call on an image: that event waits with the reason, and is exported later."""
    if staging:
        staged(lab)
    bad = lab.acquire(images=4)
    lab.clock.turn(seconds=1)
    good = lab.acquire(images=1)
    lab.settle()
    with failing(monkeypatch, call, code, name="Img_r02_c02"):
        lab.export()
    only_that_one_waits(lab, bad, good)
    lab.clock.turn(minutes=15)
    assert {one.result for one in lab.export()} == {"exported", "verified"}


WRITING = [("open", errno.ENOSPC), ("open", errno.EACCES), ("write", errno.ENOSPC), ("write", errno.EIO)]
WRITING += [("write", errno.EDQUOT), ("fsync", errno.EIO), ("fsync", errno.ENOSPC)]


@pytest.mark.parametrize(("call", "code"), WRITING, ids=lambda value: errno.errorcode.get(value, value))
def test_a_staging_disk_that_fails_stops_one_event(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Full or failing while the copy is written or synced: no half copy stays, and the event waits."""
    staged(lab)
    bad = lab.acquire(images=4)
    lab.clock.turn(seconds=1)
    good = lab.acquire(images=1)
    lab.settle()
    with failing(monkeypatch, call, code, name="Img_r02_c02", flags=os.O_WRONLY):
        lab.export()
    only_that_one_waits(lab, bad, good)
    assert [path.name for path in (lab.home / "staging" / "prince").iterdir() if path.is_dir()] == [str(good.id)]
    lab.clock.turn(minutes=15)
    assert {one.result for one in lab.export()} == {"exported", "verified"}


def test_a_limit_on_files_is_met_by_the_real_system(lab: Lab) -> None:
    """RLIMIT_FSIZE in a process of its own, EFBIG from the system: nothing half is left, the reason is said."""
    big = lab.acquire(images=1, size=512)
    lab.settle()
    target = lab.home / "staging" / "prince" / "copy"
    program = (
        "import pathlib, resource, signal, sys; from plateway import folder; from plateway.errors import Transient\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "root, path, target = sys.argv[1:]\n"
        "try: folder.copy(pathlib.Path(root), path, target=pathlib.Path(target))\n"
        "except Transient as error: print(error)\n"
    )
    root, path = big.images.parent, big.images.name
    told = subprocess.run(
        [sys.executable, "-c", program, str(root), path, str(target)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert "file too large" in told.stdout
    assert list(target.parent.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    assert check(World(lab, [big])) == []


def test_a_staging_disk_without_room_is_not_begun_with(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reserve is kept: the event waits with the numbers, and the bench is not purged to make room."""
    staged(lab)
    first, _ = two(lab)
    monkeypatch.setattr(folder, "free", lambda root: RESERVE)
    assert {one.result for one in lab.export()} == {"later"}
    setback = lab.ledger(Ref(first.id, 1)).setback("export")
    assert setback
    assert "reserve" in setback.reason
    lab.clock.turn(hours=9)
    assert all(one.result == "refused" for one in pipeline.purge(lab.site))
    assert all((first.images / name).exists() for name in first.files)


def test_a_staging_disk_that_is_not_mounted_waits(lab: Lab) -> None:
    """Its directory is gone: nothing is written in its place."""
    staged(lab)
    first, second = two(lab)
    shutil.rmtree(lab.home / "staging")
    assert {one.result for one in lab.export()} == {"later"}
    assert not (lab.home / "staging").exists()
    (lab.home / "staging").mkdir()
    lab.clock.turn(minutes=15)
    assert {one.result for one in lab.export()} == {"exported", "verified"}
    assert check(World(lab, [first, second])) == []


def grow(path: Path, dice: random.Random) -> None:
    with path.open("ab") as file:
        file.write(dice.randbytes(1000))


def cut(path: Path, dice: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path: Path, dice: random.Random) -> None:
    """Other bytes, the same size and modification time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(dice.randrange(status.st_size - 8))
        file.write(dice.randbytes(8))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_file(path: Path, dice: random.Random) -> None:
    aside = path.with_suffix(".new")
    aside.write_bytes(dice.randbytes(path.stat().st_size))
    aside.rename(path)


def vanish(path: Path, dice: random.Random) -> None:
    path.unlink()


def link(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("change", [grow, cut, rewrite, replace_file, vanish, link], ids=lambda change: change.__name__)
@pytest.mark.parametrize("staging", [False, True], ids=["bench", "staging"])
def test_a_change_at_any_moment_never_gives_a_wrong_export(
    lab: Lab, change: Callable[[Path, random.Random], None], staging: bool
) -> None:
    """A thread changes an image while it is exported: what is in the bucket is before or after, never a mixture."""
    if staging:
        staged(lab)
    dice = random.Random(change.__name__)
    for _ in range(6):
        announced = lab.acquire(images=4, size=256)
        lab.settle()
        ref = Ref(announced.id, 1)
        image = announced.images / dice.choice([name for name in announced.files if name.endswith(".tif")])
        before = image.read_bytes()
        thread = threading.Timer(dice.random() * 0.02, change, (image, dice))
        thread.start()
        with suppress(PlatewayError):
            pipeline.export(lab.site, ref)
        thread.join()
        export = lab.ledger(ref).export
        if export is None:
            assert lab.ledger(ref).setback("export")
            continue
        assert pipeline.verify(lab.site, ref, read_back=True).result == "verified"
        member = next(m for m in manifest_of(lab.site, lab.ledger(ref)).members if m.name in str(image))
        kept = b"".join(lab.store.open(export.key, start=member.offset, length=member.size))
        assert kept == before or kept == image.read_bytes()
        lab.clock.turn(seconds=1)
    assert [one for one in check(World(lab, [])) if one.invariant != "I2"] == []
