"""Run every benchmark within a time limit, and collect their tables.

    scripts/bench all [--minutes 30] [--only export,proof] [--out DIR]

The limit is shared in fixed parts; a benchmark that would take longer than its part is ended and listed as such, and
what it leaves unused goes to those that follow. Each is a process of its own, one after the other: figures are worth
something only if nothing else runs on the machine. ``all.md`` in the output directory has the tables one below the
other, and how each benchmark ended.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import machine, table, told

ROOT = Path(__file__).parents[1]
STOPPING = 30  # seconds that a benchmark has to clean up


class Part(NamedTuple):
    """A benchmark, the options with which it fits into its part, and that part of the time."""

    name: str
    options: tuple[str, ...]
    weight: int


PARTS = (
    Part("export", ("--rounds", "5", "--scale", "0.5"), 6),
    Part("proof", ("--rounds", "5", "--mib", "256"), 1),
    Part("backlog", ("--events", "300"), 2),
    Part("latency", ("--events", "20"), 3),
    Part("bucket", ("--rounds", "5", "--scale", "0.25"), 3),
    Part("gateway", ("--rounds", "5", "--scale", "0.1"), 4),
    Part("member", ("--rounds", "5", "--scale", "0.25"), 1),
    Part("read", ("--rounds", "5", "--scale", "0.25"), 2),
    Part(
        "discover",
        (
            "--rounds",
            "3",
        ),
        2,
    ),
    Part(
        "search",
        (
            "--rounds",
            "3",
        ),
        2,
    ),
    Part("reconcile", ("--exports", "200000", "--planted", "200", "--here", "2000"), 2),
    Part("million", ("--events", "200000", "--rounds", "3", "--seconds", "60"), 4),
)


def run(part: Part, out: Path, *, seconds: float) -> tuple[str, float]:
    """Run one benchmark; return how it ended (``done``, ``failed (CODE)`` or ``stopped``), and the seconds it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.bench_{part.name}", *part.options, "--out", str(out)]
    with (out / f"{part.name}.log").open("w") as log:
        running = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)  # so that it stops its servers and removes its files
            try:
                running.wait(STOPPING)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
            return "stopped", time.monotonic() - began
    return "done" if code == 0 else f"failed ({code})", time.monotonic() - began


def main() -> None:
    """Run what was asked for, and write ``all.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", default="", help="names, separated by commas; default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    names = set(filter(None, given.only.split(",")))
    if unknown := names - {part.name for part in PARTS}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    parts = [part for part in PARTS if not names or part.name in names]
    given.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + given.minutes * 60
    rows, tables = [], []
    for at, part in enumerate(parts):
        share = (ends - time.monotonic()) * part.weight / sum(one.weight for one in parts[at:])
        found = given.out / f"{part.name}.md"
        found.unlink(missing_ok=True)
        ended, seconds = run(part, given.out, seconds=max(share, 1))
        rows.append((part.name, " ".join(part.options), ended, f"{seconds:.0f}", f"{share:.0f}"))
        print(f"{part.name}: {ended}, {seconds:.0f} of {share:.0f} s", flush=True)
        if found.exists():
            tables.append(f"## {part.name}\n\n{found.read_text().strip()}")
    head = table(("benchmark", "options", "ended", "seconds", "limit"), rows)
    text = "\n\n".join([f"# All benchmarks\n\n{told(machine('plateway'))}", head, *tables])
    (given.out / "all.md").write_text(text + "\n")
    if any(ended.startswith("failed") for _, _, ended, _, _ in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
