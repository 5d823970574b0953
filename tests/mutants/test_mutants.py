"""The tests notice nearly every change of what decides or carries out deletion."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FIGURES = re.compile(r"^(\S+): (\d+) of (\d+) killed$", re.MULTILINE)
LEAST = 0.95


@pytest.mark.soak("eight hundred runs of the tests that bear on deletion")
@pytest.mark.timeout(0)
def test_nearly_every_mutant_is_killed() -> None:
    """What survives is printed; ``survivors.md`` explains it."""
    command = [sys.executable, "-m", "tests.mutants.run"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    print(done.stdout)
    figures = [(int(killed), int(tried)) for _, killed, tried in FIGURES.findall(done.stdout)]
    assert sum(killed for killed, _ in figures) >= LEAST * sum(tried for _, tried in figures)
