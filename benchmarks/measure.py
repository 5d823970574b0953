"""What the benchmarks share: processes with what they cost, room in memory, the machine, tables.

CPU seconds are those the kernel counts for a process and its threads (`wait4`). Peak memory is the kernel's high-water
mark of the resident set; for a pipe it is the sum of its processes' peaks, code pages included.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

MIB = 1 << 20
POLL = 0.02  # seconds between two looks at a running process' peak memory


@dataclass(frozen=True)
class Cost:
    """What one command or pipe took."""

    seconds: float
    cpu: float  # seconds, user and system
    peak: int  # bytes
    output: bytes = b""


def run(
    *commands: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    codes: Sequence[int] = (0,),
    seconds: float | None = None,
) -> Cost:
    """Run a command, or several as a pipe, and say what they cost; a failure is raised with their error output.

    ``codes`` are those by which they end without one. After ``seconds`` they are killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        processes = list(_piped(commands, out=out, err=err, env=env, cwd=cwd))
        peaks = Peaks(process.pid for process in processes)
        timer = threading.Timer(seconds or 0, _kill, [processes])
        if seconds is not None:
            timer.start()
        usages = [_waited(process) for process in processes]
        timer.cancel()
        took = time.perf_counter() - started
        peak = sum(
            peaks.of(process.pid, usage.ru_maxrss * 1024) for process, usage in zip(processes, usages, strict=True)
        )
        out.seek(0)
        err.seek(0)
        if any(process.returncode not in codes for process in processes):
            ended = [process.returncode for process in processes]
            raise SystemExit(f"{[command[0] for command in commands]} ended with {ended}:\n{err.read().decode()}")
        return Cost(took, sum(usage.ru_utime + usage.ru_stime for usage in usages), peak, out.read())


def _piped(
    commands: Sequence[Sequence[str]], *, out: Any, err: Any, env: Mapping[str, str] | None, cwd: Path | None
) -> Iterator[subprocess.Popen[bytes]]:
    feed: Any = subprocess.DEVNULL
    for number, command in enumerate(commands, start=1):
        sink = out if number == len(commands) else subprocess.PIPE
        process = subprocess.Popen(command, stdin=feed, stdout=sink, stderr=err, env=env, cwd=cwd)
        if feed is not subprocess.DEVNULL:
            feed.close()
        feed = process.stdout
        yield process


def _kill(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()


def _waited(process: subprocess.Popen[bytes]) -> Any:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


class Peaks:
    """Watch the peak memory of running processes.

    The peak that `wait4` tells is exact where it is above that of this process, which a child inherits until it starts
    its program; below that, what was last seen in /proc counts.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self.seen = dict.fromkeys(pids, 0)
        threading.Thread(target=self._watch, daemon=True).start()

    def of(self, pid: int, told: int) -> int:
        """Return the peak of a process that has ended, in bytes."""
        return told if told > high_water(os.getpid()) else self.seen[pid]

    def _watch(self) -> None:
        running = set(self.seen)
        while running:
            for pid in tuple(running):
                try:
                    self.seen[pid] = max(self.seen[pid], high_water(pid))
                except OSError:
                    running.discard(pid)
            time.sleep(POLL)


def high_water(pid: int) -> int:
    """Read the peak of a process' resident set, in bytes; OSError once it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def module(name: str, *arguments: str, env: Mapping[str, str]) -> tuple[Cost, dict[str, Any]]:
    """Run a module of ours in a Python of its own; its last line of output is JSON."""
    cost = run([sys.executable, "-m", name, *arguments], env=env)
    return cost, json.loads(cost.output.splitlines()[-1])


@contextmanager
def worked() -> Iterator[dict[str, float]]:
    """Measure seconds and CPU seconds of a block in this process, all threads."""
    spent: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent |= {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds that a running process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def room(need: int) -> Iterator[Path]:
    """Lend a directory in memory when so many bytes fit there and leave 2 GiB, on disk otherwise."""
    shm = Path("/dev/shm")
    free = min(shutil.disk_usage(shm).free, psutil.virtual_memory().available) if shm.is_dir() else 0
    with tempfile.TemporaryDirectory(prefix="plateway-bench-", dir=shm if free > need + (2 << 30) else None) as path:
        yield Path(path)


def in_memory(path: Path) -> bool:
    """Return whether a directory lies in memory."""
    return Path("/dev/shm") in path.parents


def machine(*packages: str) -> dict[str, Any]:
    """Describe where this was measured."""
    return {
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


def told(where: Mapping[str, Any]) -> str:
    """Describe the machine in one sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    return (
        f"{where['cpus']} cores ({where['processor']}), {where['memory_gib']} GiB, {where['system']}, "
        f"Python {where['python']}; {versions}."
    )


def median(values: Iterable[float]) -> float:
    """Return the middle one."""
    return float(statistics.median(values))


def percentile(values: Sequence[float], percent: int) -> float:
    """Return below which of the values so many percent of them lie (nearest rank)."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Draw a Markdown table, first column to the left and the rest to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def write(out: Path, name: str, *, results: Mapping[str, Any], text: str) -> None:
    """Leave results as JSON and Markdown, and print the latter."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{name}.md").write_text(text + "\n")
    print(text)
