"""The logs of parts: bounded in size and age while the parts run."""

from __future__ import annotations

import os
import stat
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from plateway.local.logs import LogLimits, open_log, rotate, rotated_path
from plateway.local.supervisor import Part, Supervisor
from tests.local.test_bringup import until

CHATTY = """
import sys
for number in range(int(sys.argv[1])):
    print(f"{number:08} " + "x" * 90, file=sys.stdout if number % 2 else sys.stderr, flush=True)
open(sys.argv[2], "w").close()
import time
while True: time.sleep(1)
"""
SMALL = LogLimits(size=100_000, files=3)
NOW = 1_800_000_000.0
DAY = 86_400.0


def files(log: Path) -> list[Path]:
    """List a log and its rotated files, the newest first."""
    return [path for path in (log, *(rotated_path(log, number) for number in range(1, 20))) if path.exists()]


def test_a_chatty_part_fills_no_disk(tmp_path: Path) -> None:
    """A part that never stops writing goes on, its log stays small, and what it wrote last is kept."""
    lines, done = 60_000, tmp_path / "done"
    part = Part(
        name="chatty",
        title="Chatty",
        command=[sys.executable, "-IS", "-c", CHATTY, str(lines), str(done)],
        environment=dict(os.environ),
        directory=tmp_path,
    )
    log = tmp_path / "logs" / "chatty.log"
    with Supervisor(tmp_path, [part], lambda line: None, logs=SMALL) as supervisor:
        first = supervisor.pids()["chatty"]
        until(done.exists, seconds=60)
        until(lambda: log.stat().st_size <= SMALL.size)
        assert supervisor.pids()["chatty"] == first
        kept = files(log)
        assert len(kept) == SMALL.files + 1
        assert all(path.stat().st_size <= SMALL.size for path in kept)
        text = "".join(path.read_text() for path in reversed(kept))
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)
    assert f"{lines - 1:08} " in text
    numbers = [int(line[:8]) for line in text.splitlines() if len(line) == 99]
    assert numbers == sorted(numbers)
    assert len(numbers) > 100


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_short_young_log_stays(tmp_path: Path, size: int) -> None:
    """Up to the limits nothing is rotated; an empty log never is."""
    log = tmp_path / "one.log"
    log.write_bytes(b"x" * size)
    assert not rotate(log, SMALL, since=NOW, now=NOW + DAY - 1)
    assert log.stat().st_size == size
    assert not rotate(tmp_path / "missing.log", SMALL, since=0, now=NOW)
    log.write_bytes(b"")
    assert not rotate(log, SMALL, since=NOW, now=NOW + 9 * DAY)
    assert files(log) == [log]


def test_an_old_log_is_rotated(tmp_path: Path) -> None:
    """A log is rotated a day after the last rotation, else a day after the start."""
    log = tmp_path / "one.log"
    log.write_text("first")
    assert rotate(log, SMALL, since=NOW, now=NOW + DAY)
    os.utime(rotated_path(log, 1), (NOW + DAY, NOW + DAY))
    log.write_text("second")
    assert not rotate(log, SMALL, since=NOW, now=NOW + 2 * DAY - 1)  # whatever an earlier start says
    assert rotate(log, SMALL, since=NOW + 2 * DAY, now=NOW + 2 * DAY)
    assert [path.read_text() for path in files(log)] == ["", "second", "first"]


def test_the_oldest_go(tmp_path: Path) -> None:
    """So many files are kept, the newest under the lowest number."""
    log = tmp_path / "one.log"
    for number in range(6):
        log.write_text(str(number))
        assert rotate(log, LogLimits(files=3, age=timedelta(0)), since=0, now=time.time() + 1)
    assert [path.read_text() for path in files(log)] == ["", "5", "4", "3"]


def test_of_a_burst_the_end_is_kept(tmp_path: Path) -> None:
    """A log that grew far beyond its limit between two checks leaves one file of that size."""
    log = tmp_path / "one.log"
    log.write_bytes(b"a" * 5 * SMALL.size + b"the end")
    assert rotate(log, SMALL, since=NOW, now=NOW)
    assert rotated_path(log, 1).stat().st_size == SMALL.size
    assert rotated_path(log, 1).read_bytes().endswith(b"the end")


def test_a_writer_goes_on_at_the_beginning(tmp_path: Path) -> None:
    """What holds the log open appends to the file that was cut off, without a hole."""
    log = tmp_path / "logs" / "one.log"
    with open_log(log) as descriptor:
        os.write(descriptor, b"x" * (SMALL.size + 1))
        assert rotate(log, SMALL, since=NOW, now=NOW)
        os.write(descriptor, b"next")
    assert log.read_bytes() == b"next"
    paths = (log.parent, log, rotated_path(log, 1))
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o700, 0o600, 0o600]


def test_what_cannot_be_copied_is_dropped(tmp_path: Path) -> None:
    """Where no copy can be made the log is cut off all the same: it must not fill the disk."""
    log = tmp_path / "one.log"
    log.write_bytes(b"x" * (SMALL.size + 1))
    rotated_path(log, 1).mkdir()
    assert rotate(log, LogLimits(size=SMALL.size, files=1), since=NOW, now=NOW)
    assert log.stat().st_size == 0
