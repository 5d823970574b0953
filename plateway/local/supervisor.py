"""Processes that belong together: started in order, kept running, stopped in reverse order.

Owns the processes, the lock on a home, and the record by which a second start ends exactly what a killed first one
left. ``bringup`` describes the parts.

All processes are started from one thread that lives as long as they do: ``parent_death`` ends them with that thread.
Each has a session of its own, so that Ctrl-C on the terminal reaches only this process, which stops them in order.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

from plateway.errors import Busy, Unavailable
from plateway.local import parent_death
from plateway.local.logs import LogLimits, open_log, rotate

LOCK = "up.lock"
RECORD = "parts.json"
LOGS = "logs"
HOME = "PLATEWAY_HOME"  # in the environment of every part and its descendants
ATTEMPTS = 3  # first starts of a part; one that was ready once is restarted for ever
BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds before each start after the last good one
STEADY = 60.0  # seconds after which a start counts as good
LEFTOVERS = 15.0  # seconds until processes that a killed start left are killed

Report = Callable[[str], None]  # prints one line
Handler = Callable[[int, FrameType | None], Any] | int | None


@dataclass(frozen=True)
class Part:
    """A process to keep running or, with ``once``, to run to its end."""

    name: str
    title: str
    command: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    after: tuple[str, ...] = ()
    where: str = ""  # printed when it is ready
    ready: Callable[[float], bool] = lambda _: True  # called with the time of its start, seconds since the epoch
    ready_within: float = 120.0  # seconds; then it is restarted
    stop_within: float = 15.0  # seconds from SIGTERM to SIGKILL
    once: bool = False
    umask: int = -1  # inherited


@dataclass(frozen=True)
class Step:
    """A function to call between the starts of processes; its result is printed."""

    name: str
    title: str
    run: Callable[[], str]
    after: tuple[str, ...] = ()


@dataclass
class Child:
    """One part and the state of its process."""

    part: Part
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0  # monotonic seconds of the current start
    epoch: float = 0.0
    due: float = 0.0  # monotonic seconds of its next start
    starts: int = 0  # since the last start that lasted
    ready: bool = False
    proven: bool = False  # has been ready once

    @property
    def alive(self) -> bool:
        """Whether its process is running."""
        return self.process is not None and self.process.poll() is None


def members(pid: int, created: float, home: Path) -> list[psutil.Process]:
    """List the processes of a recorded session: its leader and their descendants.

    A process id may have been reused: then the time of its start differs, and nothing of the session is left. If the
    leader has ended, the session is ours if its processes have our home in their environment.
    """
    with suppress(psutil.NoSuchProcess):
        if abs(psutil.Process(pid).create_time() - created) > 1:
            return []
    return [each for each in psutil.process_iter() if _read_session_id(each.pid) == pid and _has_home(each, home)]


def _read_session_id(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:  # ended, or not visible
        return -1


def _has_home(process: psutil.Process, home: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(HOME) == str(home)
    except psutil.Error:  # ended, or owned by another account
        return False


def end(processes: Sequence[psutil.Process], patience: float) -> None:
    """Terminate processes that are no children of ours; kill those that still run after ``patience`` seconds."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, patience)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, patience)


def take_over(home: Path, *, patience: float = LEFTOVERS) -> int:
    """End the processes that a killed start on this home left, and return their number."""
    record = home / RECORD
    recorded = json.loads(record.read_text()) if record.exists() else []
    left = [process for each in recorded for process in members(each["pid"], each["created"], home)]
    end(left, patience)
    record.unlink(missing_ok=True)
    return len(left)


def replace(path: Path, value: object) -> None:
    """Write a JSON file that only its owner can read (mode 0600), whole or not at all."""
    write_private(path, json.dumps(value))


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read (mode 0600), whole or not at all."""
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@contextmanager
def claim(home: Path) -> Iterator[None]:
    """Lock the home for this process; the lock ends with the process, however that ends.

    Raises:
        Busy: another process holds the lock; the message has its id.
    """
    with os.fdopen(os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"already running on this home: process {file.read().strip() or 'unknown'}") from None
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class Supervisor:
    """Keeps parts running in a thread of its own, from ``with`` to its end; the caller holds the lock of the home.

    Raises, on entering:
        Unavailable: a part did not start.
    """

    def __init__(
        self,
        home: Path,
        parts: Sequence[Part | Step],
        report: Report,
        *,
        logs: LogLimits | None = None,
        progress: Report = lambda _: None,
    ) -> None:
        self._home = home
        self._logs, self._began = logs or LogLimits(), time.time()
        self._report, self._progress = report, progress
        self._children = {part.name: Child(part) for part in parts if isinstance(part, Part)}
        self._steps = [part for part in parts if isinstance(part, Step)]
        self._done: set[str] = set()
        self._started: list[str] = []
        self._sessions: list[dict[str, Any]] = []
        self._stop, self._hurry = threading.Event(), threading.Event()
        self._settled, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run_thread, name="supervisor")
        self._handlers: dict[int, Handler] = {}

    def __enter__(self) -> Supervisor:
        self._install_handler(signal.default_int_handler, signal.SIGTERM, signal.SIGHUP)
        try:
            self._thread.start()
            began = time.monotonic()
            while not self._settled.wait(0.2):
                self._progress(self._format_pending(time.monotonic() - began))
            self._raise_error()
        except BaseException:
            self._shut_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shut_down()

    def alive(self) -> dict[str, bool]:
        """Report for each part whether it is running and ready."""
        return {name: child.ready and child.alive for name, child in self._children.items() if not child.part.once}

    def pids(self) -> dict[str, int]:
        """Return the process id of each running part."""
        return {name: child.process.pid for name, child in self._children.items() if child.process and child.alive}

    def _format_pending(self, seconds: float) -> str:
        """Format which parts are not ready yet, and the seconds since the start."""
        waiting = [one.part.title for one in list(self._children.values()) if one.part.name not in self._done]
        waiting += [one.title for one in self._steps if one.name not in self._done]
        return f"starting {', '.join(waiting)} … {seconds:.0f} s"

    def watch(self) -> None:
        """Wait until interrupted; parts that end meanwhile are restarted."""
        while not self._over.wait(0.5):  # an interrupted join would count the thread as ended (Python before 3.13)
            pass
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _shut_down(self) -> None:
        """Stop everything; a second signal meanwhile kills what still runs."""
        self._install_handler(lambda *_: self._hurry.set(), signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._stop.set()
        if self._thread.ident is not None:
            self._over.wait()
            self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _install_handler(self, handler: Handler, *numbers: int) -> None:
        """Install signal handlers, but not for signals that were ignored at the start."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers.setdefault(number, signal.signal(number, handler))

    def _run_thread(self) -> None:
        try:
            self._keep_running()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        finally:
            self._settled.set()
            self._over.set()

    def _keep_running(self) -> None:
        try:
            while not self._stop.is_set():
                self._advance()
                if len(self._done) == len(self._children) + len(self._steps):
                    self._settled.set()
                self._stop.wait(0.1)
        finally:
            self._stop_parts()

    def _advance(self) -> None:
        """Check every part and step once; start, restart or run those that are due."""
        for child in self._children.values():
            rotate(self._log_path(child.part), self._logs, since=self._began, now=time.time())
            if child.process is None:
                if self._done.issuperset(child.part.after) and time.monotonic() >= child.due:
                    self._start_part(child)
            elif not (child.part.once and child.ready):
                self._check_part(child)
        for step in self._steps:
            if step.name not in self._done and self._done.issuperset(step.after):
                began = time.monotonic()
                result = step.run()
                self._record_done(step.name, step.title, result, time.monotonic() - began)

    def _start_part(self, child: Child) -> None:
        part = child.part
        child.began, child.epoch, child.ready = time.monotonic(), time.time(), False
        child.starts += 1
        with open_log(self._log_path(part)) as log:
            child.process = subprocess.Popen(
                parent_death.wrap(*part.command),
                cwd=part.directory,
                env={**part.environment, HOME: str(self._home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=part.umask,
            )
        if part.name not in self._started:
            self._started.append(part.name)
        self._record_session(child.process.pid)

    def _log_path(self, part: Part) -> Path:
        return self._home / LOGS / f"{part.name}.log"

    def _record_session(self, pid: int) -> None:
        """Record a session, and remove the sessions that have ended from the record."""
        running = [each for each in self._sessions if members(each["pid"], each["created"], self._home)]
        self._sessions = [*running, {"pid": pid, "created": psutil.Process(pid).create_time()}]
        replace(self._home / RECORD, self._sessions)

    def _check_part(self, child: Child) -> None:
        part, age = child.part, time.monotonic() - child.began
        code = child.process.poll() if child.process else None
        if code is not None and not (part.once and code == 0):
            self._schedule_restart(child, f"ended with {code}")
        elif not child.ready and (code == 0 if part.once else part.ready(child.epoch)):
            child.ready = child.proven = True
            self._record_done(part.name, part.title, part.where, age)
        elif not child.ready and age > part.ready_within:
            self._stop_part(child)
            self._schedule_restart(child, f"was not ready after {part.ready_within:.0f} s")
        elif child.ready and age > STEADY:
            child.starts = 0

    def _schedule_restart(self, child: Child, what: str) -> None:
        """Schedule the next start of a part that failed.

        Raises:
            Unavailable: it has never been ready, and this was its last attempt.
        """
        part, log = child.part, f"see {LOGS}/{child.part.name}.log"
        if not child.proven and child.starts >= ATTEMPTS:
            raise Unavailable(f"{part.title} {what} while starting, {child.starts} times: {log} in {self._home.name}")
        pause = BACKOFF[min(max(child.starts, 1), len(BACKOFF)) - 1]
        child.process, child.ready, child.due = None, False, time.monotonic() + pause
        self._report(f"[yellow]![/] {part.title:<14} {what}, restarting in {pause:g} s; {log}")

    def _record_done(self, name: str, title: str, result: str, seconds: float) -> None:
        self._done.add(name)
        self._report(f"[green]✓[/] {title:<14} {result:<28} [dim]{seconds:5.1f} s[/]")

    def _stop_parts(self) -> None:
        """Stop the parts, those at once that no running part depends on, each with its descendants."""
        began = time.monotonic()
        left = [self._children[name] for name in reversed(self._started)]
        took: list[str] = []
        while left:
            needed = {name for one in left for name in self._find_parts_before(one.part)}
            leaves = [one for one in left if one.part.name not in needed]
            with ThreadPoolExecutor(len(leaves)) as pool:
                for one, seconds in zip(leaves, pool.map(self._stop_part, leaves), strict=True):
                    took.append(f"{one.part.name} {seconds:.1f} s")
            left = [one for one in left if one not in leaves]
        for each in self._sessions:
            end(members(each["pid"], each["created"], self._home), 3)
        (self._home / RECORD).unlink(missing_ok=True)
        self._report(f"[dim]stopped in {time.monotonic() - began:.1f} s: {', '.join(took)}[/]")

    def _find_parts_before(self, part: Part | Step) -> set[str]:
        """Return the names of the parts and steps that a part depends on, directly or not."""
        every: dict[str, Part | Step] = {one.name: one for one in self._steps}
        every |= {name: child.part for name, child in self._children.items()}
        direct = {name for name in part.after if name in every}
        return direct.union(*(self._find_parts_before(every[name]) for name in direct))

    def _stop_part(self, child: Child) -> float:
        """Terminate one process, and kill it if it does not end in time; return the seconds that it took."""
        began = time.monotonic()
        if child.process is None:
            return 0.0
        child.process.terminate()
        deadline = time.monotonic() + child.part.stop_within
        while child.process.poll() is None:
            if self._hurry.is_set() or time.monotonic() > deadline:
                child.process.kill()
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(0.1)
        return time.monotonic() - began
