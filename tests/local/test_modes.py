"""Who may read what is in a home: its owner, whatever the umask of the commands that wrote it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plateway.catalog import Catalog
from plateway.local import bringup
from plateway.settings import make_private
from tests.local.test_bringup import until

PLATEWAY = [sys.executable, "-m", "plateway"]


@pytest.fixture(params=[0o022, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask with which others may read, or write, what is made."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def open_to_others(home: Path) -> dict[str, str]:
    """Name what anybody but the owner may use in a home, the home included."""
    found = {}
    for path in (home, *home.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & 0o077 and not path.is_symlink():
            found[str(path.relative_to(home.parent))] = oct(mode)
    return found


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PLATEWAY_", "AWS_", "PREFECT_"))}
    return {**kept, "PLATEWAY_HOME": str(home), "PLATEWAY_BUCKET_URL": "memory://", "PLATEWAY_SETTLE_SECONDS": "0"}


def call(home: Path, *words: str) -> None:
    done = subprocess.run(
        [*PLATEWAY, *words], env=environment(home), cwd=home.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_homes_of_commands_are_private(tmp_path: Path, umask: int) -> None:
    """What simulator, discovery, catalogue, report and tokens write in a home is for its owner only."""
    home = tmp_path / "below" / "home"
    home.parent.mkdir()
    call(home, "db", "upgrade")
    call(home, "simulate", "--events", "2", "--rate", "100", "--images", "1", "--size", "16")
    call(home, "discover")
    call(home, "status")
    call(home, "token", "add", "one", "--ttl", "1", "--scope", "read")
    assert (home / "catalogue.db").exists() and (home / "tokens.json").exists() and (home / "bench").exists()
    assert open_to_others(home) == {}
    assert (stat.S_IMODE(home.parent.stat().st_mode) & 0o077) == (0o077 & ~umask)  # not Plateway's


def test_the_home_of_serve_is_private(tmp_path: Path, umask: int) -> None:
    """Catalogue with its logs, access log, limits and thumbnails of `serve` are for its owner only."""
    home = tmp_path / "home"
    env = {**environment(home), "PLATEWAY_SERVE_PORT": "0"}
    with subprocess.Popen([*PLATEWAY, "serve"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        until((home / "catalogue.db").exists)
        assert open_to_others(home) == {}
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
    assert any("Gateway" in line for line in lines)
    assert (home / "gateway").is_dir()
    assert open_to_others(home) == {}


def test_the_logs_of_an_open_catalogue_are_private(tmp_path: Path, umask: int) -> None:
    """SQLite's write-ahead log and index have the mode of the file, also while they are in use."""
    home = tmp_path / "home"
    catalog = Catalog(f"sqlite:///{home}/catalogue.db")
    catalog.upgrade()
    assert {path.name for path in home.iterdir()} == {"catalogue.db", "catalogue.db-wal", "catalogue.db-shm"}
    assert open_to_others(home) == {}
    catalog.close()


def test_an_older_catalogue_is_closed_to_others(tmp_path: Path) -> None:
    """A file that an earlier version left readable is closed when it is next opened, and stays usable meanwhile."""
    home = tmp_path / "home"
    first, second = Catalog(f"sqlite:///{home}/catalogue.db"), Catalog(f"sqlite:///{home}/catalogue.db")
    first.upgrade()
    for path in home.iterdir():
        path.chmod(0o644)
    second.upgrade()
    assert first.current() == second.current() == first.head()
    assert open_to_others(home) == {}
    first.close()
    second.close()


def test_a_directory_of_the_site_stays_as_it_is(tmp_path: Path) -> None:
    """A catalogue in a directory that others share changes nothing about that directory."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    make_private(shared)
    with_home = Catalog(f"sqlite:///{shared}/catalogue.db")
    with_home.upgrade()
    with_home.close()
    assert stat.S_IMODE(shared.stat().st_mode) == 0o775


def test_what_earlier_versions_left_open_is_closed(tmp_path: Path) -> None:
    """`up` closes the home and what its parts wrote; bench and archive keep their modes, links are not followed."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    outside.write_text("")
    for name in ("s3/m1", "logs", "gateway", "bench/prince"):
        (home / name).mkdir(parents=True)
        (home / name / "file").write_text("")
    (home / "catalogue.db").write_text("")
    for path in (*home.rglob("*"), home, outside):
        path.chmod(0o755)
    (home / "s3" / "link").symlink_to(outside)
    bringup.close_home(home)
    left = {"home/bench", "home/bench/prince", "home/bench/prince/file"}
    assert open_to_others(home).keys() == left
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
