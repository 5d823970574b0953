"""The wheel: what it installs, and that it runs without a checkout."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = ("PLATEWAY_", "PREFECT_", "AWS_", "PYTHON", "VIRTUAL_ENV")  # how variables begin that an empty shell lacks


def run(*command: str | Path, cwd: Path, env: Mapping[str, str], status: int = 0) -> str:
    """Run a command, and return what it printed.

    Raises:
        AssertionError: its exit code is another one.
    """
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout


@pytest.mark.timeout(900)  # minutes on a busy machine
def test_an_installed_wheel_runs_the_demo(tmp_path: Path) -> None:
    """The wheel has one top-level name, and from an empty directory its demo ends with 0."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    run("uv", "build", "--wheel", "--out-dir", tmp_path / "dist", cwd=ROOT, env=env)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"plateway"}
    assert "plateway/_project/prefect.yaml" in names
    assert "prefect." not in entry_points

    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    (tmp_path / "pins.txt").write_text("\n".join(pins))
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    run("uv", "venv", environment, cwd=tmp_path, env=env)
    python, plateway = environment / "bin" / "python", environment / "bin" / "plateway"
    run("uv", "pip", "install", "--python", python, "--constraints", "pins.txt", wheel, cwd=tmp_path, env=env)
    run(python, "-c", "import flows", cwd=empty, env=env, status=1)
    missing = run(plateway, "bucket", "ls", "--block", "raw", cwd=empty, env=env, status=2)
    assert "PREFECT_API_URL is not set" in missing  # asked by the block's own code

    run(plateway, "demo", "--once", "--events", "2", cwd=empty, env=env)
    assert [path.name for path in empty.iterdir()] == [".plateway"]
