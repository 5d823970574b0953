"""Processes that live an event's life and die where they are told to.

``python -m tests.faults.mortal`` is the mother: one thread, everything imported, no connection open. The first line of
JSON on standard input says where the bucket is; for each further one, a job, it forks a child, tells its process id,
and when it has ended tells how. The child runs the verbs on a laboratory with a hook at every effect on files and at
every commit; requests to S3 are met by the proxy in front of it. It notes each effect in a file before it happens, and
at one of them it is killed: before it, after it, or in its middle.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any
from uuid import UUID

from pydantic import SecretStr

import plateway
from plateway import folder, pipeline
from plateway.catalog import Catalog
from plateway.settings import Policy
from plateway.store import Endpoint, Prefixed, Store, open_store
from tests.lab import Clock, Lab

PACKAGE = str(Path(plateway.__file__).parent)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NAMED = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "fsync", "utime", "link", "symlink", "truncate")
AUDITED = {f"os.{name}" for name in ("rename", "mkdir", "remove", "rmdir", "link", "symlink", "truncate", "chmod")}
THROUGH = {"_writing", "_sync", "_below", "_step"}  # what others do their effects through
LEASES = {f"commit catalog.{what} in {where}" for what in ("lease", "release") for where in ("leased", "_carry")}
PASSES = 9  # of a recovery, at most
POLICY = Policy(purge=True, lifespan=timedelta(hours=8), staging_lifespan=timedelta(hours=8))
OTHER = UUID("00000000-0000-4000-8000-000000000001")  # announces the same images once more
Where = tuple[str, int, str]  # site, how many times it was met before, "before" | "after" | "middle"


@dataclass
class Reaper:
    """Counts effects by their site, notes them, and kills this process at the appointed one."""

    ledger: int  # descriptor of the file of effects
    clock: Clock
    die: Where | None
    write: Callable[[int, bytes], int] = os.write  # the system's own
    inside: bool = False
    count: int = 0  # of effects that change more than who holds an event

    def __post_init__(self) -> None:
        self.met: dict[str, int] = {}

    def around(self, kind: str, act: Callable[[], Any], middle: Callable[[], Any] | None = None) -> Any:
        """Carry out one effect, dying before, in the middle of or after it if it is the one."""
        where = place()
        if not where.strip("."):
            return act()  # somebody else's: the laboratory, a library
        site = f"{kind} {where}"
        nth = self.met[site] = self.met.get(site, -1) + 1
        self.count += site not in LEASES
        self.note(site)
        self.reap(site, nth, "before")
        if middle is not None and self.die == (site, nth, "middle"):
            middle()
            self.reap(site, nth, "middle")
        outer, self.inside = self.inside, True
        try:
            return act()
        finally:
            self.inside = outer
            self.reap(site, nth, "after")

    def reap(self, site: str, nth: int, side: str) -> None:
        """Die if it is the moment."""
        if self.die == (site, nth, side):
            os.kill(os.getpid(), signal.SIGKILL)

    def notice(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an effect that no hook has met: it fails the comparison with the known ones."""
        writes = event in AUDITED or (event == "open" and bool((args[2] or 0) & WRITES))
        if not writes or self.inside:
            return
        if (where := place()).startswith(("folder", "pipeline", "events", "store", "bundle")):
            self.note(f"unhooked {event} {where}")

    def note(self, site: str) -> None:
        self.write(self.ledger, f"{self.clock().isoformat()} {site}\n".encode())


def place() -> str:
    """Say where in Plateway we are: the module and its function that did it, and the verb's function that led to it."""
    module = inner = verb = ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not verb:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            file, name = unit(code.co_filename), code.co_qualname.rpartition(".")[2]
            module = module or file
            inner = inner if inner or file != module or name in THROUGH else name
            verb = code.co_qualname.replace(".<locals>", "") if file == "pipeline" else ""
        frame = frame.f_back
    return f"{module}.{inner}" if module == "pipeline" or not verb else f"{module}.{inner} in {verb}"


def unit(file: str) -> str:
    """Name the module or the package of Plateway that a file belongs to."""
    return Path(file).relative_to(PACKAGE).parts[0].removesuffix(".py")


def hook(reaper: Reaper, catalog: Catalog) -> None:
    """Put a hook at every effect."""
    for name in NAMED:
        setattr(os, name, hooked(reaper, name, getattr(os, name)))
    os.open = hooked_open(reaper, os.open)
    os.write = hooked_write(reaper, os.write)
    if rename := getattr(folder.LIBC, "renameat2", None):
        vars(folder.LIBC)["renameat2"] = hooked(reaper, "rename", rename)
    dialect: Any = catalog._engine.dialect
    dialect.do_commit = hooked(reaper, "commit", dialect.do_commit)
    sys.addaudithook(reaper.notice)


def hooked(reaper: Reaper, kind: str, act: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(act)
    def hooked(*args: Any, **options: Any) -> Any:
        return reaper.around(kind, lambda: act(*args, **options))

    return hooked


def hooked_open(reaper: Reaper, act: Callable[..., int]) -> Callable[..., int]:
    def hooked(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if not flags & WRITES:
            return act(path, flags, *args, **options)
        found: int = reaper.around("create", lambda: act(path, flags, *args, **options))
        return found

    return hooked


def hooked_write(reaper: Reaper, act: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
    def hooked(descriptor: int, data: Any) -> int:
        half = len(data) // 2
        found: int = reaper.around("write", lambda: act(descriptor, data), lambda: act(descriptor, data[:half]))
        return found

    return hooked


# ------------------------------------------------------------------------------------------------------------ the life


def laboratory(job: dict[str, Any], bucket: Store) -> Lab:
    """Open the laboratory that a job is about; its objects have a prefix of their own."""
    home, clock = Path(job["home"]), Clock()
    clock.now = datetime.fromisoformat(job["now"])
    catalog = Catalog(job.get("catalog") or f"sqlite:///{home}/catalogue.db", clock=clock)
    options = {"staging": home / "staging" / "prince"} if job["staging"] else {}
    return Lab(home, Prefixed(bucket, job["prefix"]), clock, catalog, policy=POLICY, options=options)


def once(lab: Lab) -> list[pipeline.Outcome]:
    """Do everything that is to be done, once: discover, export, verify, purge, remove, sweep."""
    lab.settle()
    outcomes = lab.export()
    for hours in (9, 2):
        lab.clock.turn(hours=hours)
        outcomes += pipeline.purge(lab.line)
    return outcomes + pipeline.sweep(lab.line)


def straight(lab: Lab) -> Iterator[list[pipeline.Outcome]]:
    """Live one event's life from announcement to tombstone, as if nothing could happen."""
    yield once(lab)


def shared(lab: Lab) -> Iterator[list[pipeline.Outcome]]:
    """Live the life of two events with the same images: the second goes when the first is gone."""
    yield once(lab)
    yield once(lab)


def restored(lab: Lab) -> Iterator[list[pipeline.Outcome]]:
    """Lose the object while the images are in the trash: they come back, and are sent again."""
    lab.settle()
    yield lab.export()
    lab.clock.turn(hours=9)
    yield pipeline.purge(lab.line)
    for found in list(lab.store.list()):
        lab.store.delete(found.key)
    lab.clock.turn(hours=2)
    yield pipeline.purge(lab.line)
    yield lab.export()


def forced(lab: Lab) -> Iterator[list[pipeline.Outcome]]:
    """Change an image after its export and export by force: a second revision; then the same bytes once more."""
    lab.settle()
    yield lab.export()
    (ledger,) = lab.catalog.ledgers()
    image = min((lab.bench / "prince" / ledger.event.path).rglob("*.tif"))
    image.write_bytes(image.read_bytes()[::-1])
    yield [pipeline.export(lab.line, ledger.ref, force=True)]
    lab.clock.turn(seconds=9)
    lab.settle()
    yield lab.export()
    again = lab.catalog.newest(ledger.ref.id)
    yield [pipeline.export(lab.line, again, force=True), pipeline.verify(lab.line, again, read_back=True)]


def slow(lab: Lab) -> Iterator[list[pipeline.Outcome]]:
    """Take so long that the lease is renewed with every chunk."""
    lab.settle()
    hurried = replace(lab.line, lease=timedelta(0))
    yield list(pipeline.each(pipeline.export, hurried, pipeline.due(hurried, "export")))
    yield lab.export()


def stranger(lab: Lab) -> Iterator[list[pipeline.Outcome]]:
    """Find somebody else's bytes at the event's key."""
    lab.settle()
    (ledger,) = lab.catalog.ledgers()
    if lab.store.stat(ledger.event.key) is None and ledger.event.revision == 1:
        lab.store.put(ledger.event.key, [b"strange"], size=7, part_size=1 << 23, metadata={})
    yield lab.export()
    yield lab.export()


def troubled(lab: Lab) -> Iterator[list[pipeline.Outcome]]:
    """Meet what cannot be accepted, what is incomplete, an image that is away for a while, an object that is lost."""
    lab.settle()
    (ledger, *_) = lab.catalog.ledgers()
    image = min((lab.bench / "prince" / ledger.event.path).rglob("*.tif"))
    away = lab.home / "away.tif"
    image.rename(away)
    yield lab.export()
    away.rename(image)
    lab.clock.turn(minutes=12)
    lab.settle()
    yield lab.export()
    for found in list(lab.store.list()):
        lab.store.delete(found.key)
    yield [pipeline.verify(lab.line, ref) for ref in [ledger.ref]]


LIVES: dict[str, Callable[[Lab], Iterator[list[pipeline.Outcome]]]] = {
    "straight": straight,
    "shared": shared,
    "restored": restored,
    "forced": forced,
    "slow": slow,
    "stranger": stranger,
    "troubled": troubled,
}


def recover(lab: Lab, reaper: Reaper) -> dict[str, Any]:
    """Do everything again and again until nothing is written any more; tell how often, and what was left open."""
    opened = left = 0
    for number in range(PASSES):
        before, opened = reaper.count, left
        outcomes = once(lab)
        left = sum(1 for _ in Path("/proc/self/fd").iterdir())
        if reaper.count == before and all(one.verb != "sweep" for one in outcomes):
            return {"passes": number, "descriptors": left - opened if number else 0, "now": lab.clock().isoformat()}
    return {"passes": PASSES, "left": [pipeline.told(one) for one in outcomes]}


def live(job: dict[str, Any], bucket: Store) -> None:
    """Do one job, in a process of one's own."""
    lab = laboratory(job, bucket)
    ledger = os.open(job["effects"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    reaper = Reaper(ledger, lab.clock, tuple(job["die"]) if job["die"] else None)
    hook(reaper, lab.catalog)
    if job["life"] == "recover":
        told: Any = recover(lab, reaper)
    else:
        told = [pipeline.told(one) for outcomes in LIVES[job["life"]](lab) for one in outcomes]
    Path(job["told"]).write_text(json.dumps(told, default=str))


def warm() -> None:
    """Live once, so that no child has to load or compile what is needed at first use."""
    with TemporaryDirectory() as home:
        job = {"home": home, "now": datetime.now(UTC).isoformat(), "prefix": "warm/", "staging": True}
        lab = laboratory(job, open_store("memory://warm"))
        for name in ("bench", "staging"):
            (lab.home / name).mkdir()
        lab.catalog.upgrade()
        lab.acquire(images=1, size=8)
        once(lab)
        lab.catalog.close()


def mother() -> None:
    """Fork a child for each job; no thread may be left when it does."""
    warm()
    where = json.loads(next(sys.stdin))
    bucket = open_store(
        where["bucket"], Endpoint(where["url"], where["access_key_id"], SecretStr(where["secret_access_key"]))
    )
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            job = json.loads(line)
            try:
                live(job, bucket)
            except BaseException:  # noqa: BLE001 - told to whoever gave the job
                Path(job["told"]).write_text(json.dumps({"error": traceback.format_exc()}))
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    mother()
