"""Processes that live an event's life and die where they are told to.

``python -m tests.faults.mortal`` is the mother: one thread, everything imported, no connection open. The first line of
JSON on standard input says where the bucket is; for each further one, a job, it forks a child, tells its process id,
and when it has ended tells how. The child runs the verbs on a laboratory with a hook at every effect on files and at
every commit; requests to S3 are met by the proxy in front of it. It notes each effect in a file before it happens, and
at one of them it is killed: before it, after it, or in its middle.
"""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any
from uuid import UUID

from fsspec.implementations import local  # type: ignore[import-untyped]  # ships no types
from pydantic import SecretStr

import plateway
from plateway import folder, pipeline
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.instruments import Policy
from plateway.keys import is_marker
from plateway.store import Objects, Store, open_store
from plateway.store.per_file import PerFile
from plateway.store.wrappers import Prefixed
from tests.faults import tapes
from tests.faults.tapes import Site
from tests.lab import Clock

PACKAGE = str(Path(plateway.__file__).parent)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NAMED = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "fsync", "utime", "link", "symlink", "truncate")
FAR = {"rm_file", "cp_file", "mv", "makedirs", "pipe_file"}  # what fsspec does to files elsewhere
AUDITED = {f"os.{name}" for name in ("rename", "mkdir", "remove", "rmdir", "link", "symlink", "truncate", "chmod")}
THROUGH = {"_writing", "_sync", "_below", "_step", "rename_exclusively"}  # what others do their effects through
LEASES = {f"commit catalog.{what} in {where}" for what in ("lease", "release") for where in ("leased", "_carry")}
PASSING = LEASES | tapes.PASSING  # what is done and undone, and leaves nothing
PASSES = 9  # of a recovery, at most
POLICY = Policy(
    purge=True, lifespan=timedelta(hours=8), staging_lifespan=timedelta(hours=8), bucket_lifespan=timedelta(days=1)
)
OTHER = UUID("00000000-0000-4000-8000-000000000001")  # announces the same images once more
PASS = "pass"  # among the effects: a pass of a recovery begins, at this time
Where = tuple[str, int, str]  # site, how many times it was met before, "before" | "after" | "middle"


@dataclass
class Reaper:
    """Counts effects by their site, notes them, and kills this process at the appointed one."""

    ledger: int  # descriptor of the file of effects
    clock: Clock
    die: Where | None
    write: Callable[[int, bytes], int] = os.write  # the system's own
    inside: bool = False
    asleep: bool = False  # others are acting
    count: int = 0  # of effects that leave something

    def __post_init__(self) -> None:
        self.met: dict[str, int] = {}

    def around(self, kind: str, act: Callable[[], Any], middle: Callable[[], Any] | None = None) -> Any:
        """Carry out one effect, dying before, in the middle of or after it if it is the one."""
        where = "" if self.asleep else place()
        if not where.strip("."):
            return act()  # somebody else's: the laboratory, a library
        site = f"{kind} {where}"
        nth = self.met[site] = self.met.get(site, -1) + 1
        self.count += site not in PASSING
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
        """Record an effect that no hook has met: it fails the comparison with the known ones."""
        writes = event in AUDITED or (event == "open" and bool((args[2] or 0) & WRITES))
        if not writes or self.inside or self.asleep:
            return
        if (where := place()).startswith(("folder", "pipeline", "events", "store", "bundle", "archive")):
            self.note(f"unhooked {event} {where}")

    def note(self, site: str) -> None:
        self.write(self.ledger, f"{self.clock().isoformat()} {site}\n".encode())


def place() -> str:
    """Return where in Plateway we are: module and function that did it, and the function of the verb that led to it."""
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


@functools.cache
def unit(file: str) -> str:
    """Name the module or the package of Plateway that a file belongs to."""
    return Path(file).relative_to(PACKAGE).parts[0].removesuffix(".py")


def hook(reaper: Reaper, catalog: Catalog) -> None:
    """Put a hook at every effect."""
    for name in NAMED:
        setattr(os, name, hooked(reaper, name, getattr(os, name)))
    os.open = hooked_open(reaper, os.open)
    os.write = hooked_write(reaper, os.write)
    vars(local)["open"] = opened
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


class Raw(io.RawIOBase):
    """A file that is written through the hooks; Python's own goes past them."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        return os.write(self._descriptor, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)


def opened(path: str, mode: str) -> Any:
    """Open a file as fsspec does."""
    return io.BufferedWriter(Raw(path)) if mode == "wb" else Path(path).open(mode)


# ------------------------------------------------------------------------------------------------------------ the life


class Corner(Prefixed):
    """A part of a bucket that takes itself for the whole: what is recorded in one fits another."""

    def __init__(self, bucket: Objects, prefix: str) -> None:
        super().__init__(bucket, prefix)
        self.name = bucket.name


class Desk:
    """A catalogue that is at another home each time, and keeps what it has learned to compile: the longest part."""

    def __init__(self, place: Path) -> None:
        self._place, self._clock = place, Clock()
        self._catalog = Catalog(f"sqlite:///{place}/catalogue.db", clock=self.now)

    def turn(self, home: str) -> None:
        """Go to another home; nothing is open then."""
        self._catalog.close()
        self._place.unlink(missing_ok=True)
        self._place.symlink_to(home)

    def now(self) -> datetime:
        return self._clock()

    def at(self, clock: Clock) -> Catalog:
        """Use it, by this clock."""
        self._clock = clock
        return self._catalog


def laboratory(job: dict[str, Any], bucket: Objects, desk: Desk) -> Site:
    """Open the laboratory that a job is about; its objects have a prefix of their own."""
    home, clock = Path(job["home"]), Clock()
    clock.now = datetime.fromisoformat(job["now"])
    options: dict[str, Any] = {"staging": home / "staging" / "prince"} if job["staging"] else {}
    options |= {"layout": "files"} if job["files"] else {}
    archive = open_archive((home / "tape").as_uri()) if (home / "tape").is_dir() else None
    store = PerFile(Corner(bucket, job["prefix"]))
    poll = job.get("poll", "")
    return Site(home, store, clock, desk.at(clock), policy=POLICY, options=options, archive=archive, poll=poll)


@contextmanager
def apart(lab: Site, reaper: Reaper, hands: Store) -> Iterator[None]:
    """Act as others would, past the hooks and the proxy."""
    own, reaper.asleep = lab.store, True
    lab.store = hands
    try:
        yield
    finally:
        lab.store, reaper.asleep = own, False


def once(lab: Site) -> list[pipeline.Outcome]:
    """Do everything that is to be done, once: discover, export, verify, purge, remove, sweep."""
    lab.settle()
    outcomes = lab.export()
    for hours in (9, 2):
        lab.clock.turn(hours=hours)
        outcomes += pipeline.purge(lab.site)
    return outcomes + pipeline.sweep(lab.site)


def straight(lab: Site) -> Iterator[list[pipeline.Outcome]]:
    """Live one event's life from announcement to tombstone, as if nothing could happen."""
    yield once(lab)


def shared(lab: Site) -> Iterator[list[pipeline.Outcome]]:
    """Live the life of two events with the same images: the second goes when the first is gone."""
    yield once(lab)
    yield once(lab)


def lose(lab: Site) -> None:
    """Make somebody delete all objects."""
    with lab.apart():
        for found in list(lab.store.list()):
            if not is_marker(found.key):
                lab.store.delete(found.key)


def restored(lab: Site) -> Iterator[list[pipeline.Outcome]]:
    """Lose the object while the images are in the trash: they come back, and are sent again."""
    lab.settle()
    yield lab.export()
    lab.clock.turn(hours=9)
    yield pipeline.purge(lab.site)
    lose(lab)
    lab.clock.turn(hours=2)
    yield pipeline.purge(lab.site)
    yield lab.export()


def forced(lab: Site) -> Iterator[list[pipeline.Outcome]]:
    """Change an image after its export and export by force: a second revision; then the same bytes once more."""
    lab.settle()
    yield lab.export()
    (ledger,) = lab.catalog.ledgers()
    image = min((lab.bench / "prince" / ledger.event.path).rglob("*.tif"))
    image.write_bytes(image.read_bytes()[::-1])
    yield [pipeline.export(lab.site, ledger.ref, force=True)]
    lab.clock.turn(seconds=9)
    lab.settle()
    yield lab.export()
    again = lab.catalog.newest(ledger.ref.id)
    yield [pipeline.export(lab.site, again, force=True), pipeline.verify(lab.site, again, read_back=True)]


def slow(lab: Site) -> Iterator[list[pipeline.Outcome]]:
    """Last so long that the lease is renewed with every chunk."""
    lab.settle()
    hurried = replace(lab.site, lease=timedelta(0))
    yield list(pipeline.each(pipeline.export, hurried, pipeline.due(hurried, "export")))
    yield lab.export()


def batch(lab: Site) -> Iterator[list[pipeline.Outcome]]:
    """Claim what is due together, and carry it in one go."""
    lab.settle()
    yield pipeline.carry(lab.site, pipeline.claim_small(lab.site, lab.catalog.systems()))
    yield once(lab)


def stranger(lab: Site) -> Iterator[list[pipeline.Outcome]]:
    """Find somebody else's bytes at the event's key."""
    lab.settle()
    (ledger,) = lab.catalog.ledgers()
    with lab.apart():
        if lab.store.stat(ledger.event.key) is None and ledger.event.revision == 1:
            lab.store.put(ledger.event.key, [b"strange"], size=7, part_size=1 << 23, metadata={})
    yield lab.export()
    yield lab.export()


def troubled(lab: Site) -> Iterator[list[pipeline.Outcome]]:
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
    lose(lab)
    yield [pipeline.verify(lab.site, ref) for ref in [ledger.ref]]


LIVES: dict[str, Callable[[Site], Iterator[Sequence[pipeline.Outcome]]]] = {
    "straight": straight,
    "shared": shared,
    "restored": restored,
    "forced": forced,
    "slow": slow,
    "batch": batch,
    "stranger": stranger,
    "troubled": troubled,
    **{name: life.live for name, life in tapes.LIVES.items()},
}


def healing(life: str) -> Callable[[Site], Sequence[pipeline.Outcome]]:
    """Return what is done again and again after a life was cut off."""
    return tapes.LIVES[life].heal if life in tapes.LIVES else once


def recover(lab: Site, reaper: Reaper, heal: Callable[[Site], Sequence[pipeline.Outcome]]) -> dict[str, Any]:
    """Do everything again and again until nothing is written any more; tell how often, and what was left open."""
    opened = left = 0
    for number in range(PASSES):
        before, opened = reaper.count, left
        reaper.note(f"{PASS} {time.monotonic()}")
        outcomes = heal(lab)
        left = sum(1 for _ in Path("/proc/self/fd").iterdir())
        if reaper.count == before and all(one.verb != "sweep" for one in outcomes):
            return {"passes": number, "descriptors": left - opened if number else 0, "now": lab.clock().isoformat()}
    return {"passes": PASSES, "left": [pipeline.as_dict(one) for one in outcomes]}


def live(job: dict[str, Any], bucket: Objects, hands: Objects, desk: Desk) -> None:
    """Do one job, in a process of one's own: ``doing`` is to live a life or to recover."""
    lab = laboratory(job, bucket, desk)
    ledger = os.open(job["effects"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    reaper = Reaper(ledger, lab.clock, tuple(job["die"]) if job["die"] else None)
    lab.apart = functools.partial(apart, lab, reaper, Corner(hands, job["prefix"]))
    hook(reaper, lab.catalog)
    if job["doing"] == "recover":
        told: Any = recover(lab, reaper, healing(job["life"]))
    else:
        told = [pipeline.as_dict(one) for outcomes in LIVES[job["life"]](lab) for one in outcomes]
    Path(job["told"]).write_text(json.dumps(told, default=str))


def warm(desk: Desk) -> None:
    """Live once, so that no child has to load or compile what is needed at first use."""
    for number, life in enumerate(["straight", *tapes.LIVES]):
        with TemporaryDirectory() as home:
            job: dict[str, Any] = {"home": home, "now": datetime.now(UTC).isoformat(), "prefix": "warm/"}
            job |= {"staging": number == 0, "files": number == 0}
            for name in tapes.PLACES if number else ("bench", "staging"):
                (Path(home) / name).mkdir()
            desk.turn(home)
            lab = laboratory(job, open_store(f"memory://{life}"), desk)
            lab.catalog.upgrade()
            if number:
                tapes.LIVES[life].before(lab)
            else:
                lab.acquire(images=1, size=8)
            for _ in LIVES[life](lab):
                pass
            lab.catalog.close()


def mother() -> None:
    """Fork a child for each job; no thread may be left when it does, and no child looks for garbage of its mother."""
    where = json.loads(next(sys.stdin))
    desk = Desk(Path(where["desk"]))
    warm(desk)
    secret = SecretStr(where["secret_access_key"])
    bucket, hands, away = (
        open_store(where["bucket"], Endpoint(where[url], where["access_key_id"], secret))
        for url in ("url", "direct", "direct")
    )
    list(away.uploads())  # botocore reads of paging at first use
    del away
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        desk.turn(job["home"])
        child = os.fork()
        if child == 0:
            try:
                live(job, bucket, hands, desk)
            except BaseException:  # noqa: BLE001 - told to whoever gave the job
                Path(job["told"]).write_text(json.dumps({"error": traceback.format_exc()}))
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    mother()
