"""Kill -9 at every effect of every verb, and again during recovery.

A life without faults is recorded first: every effect on files, every commit, every request to S3. Then it is lived
again for each of them, up to a SIGKILL right before it, right after it, and in the middle of a write; a request is
lost before it is carried out, or carried out and never answered. After each death, and again after recovery by a
process that knows nothing of it, the invariants hold, and the recovery comes to rest.

A SIGKILL does not prove durability: what was written and not synced survives it. `tests/test_folder.py` looks at the
order of syncs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from plateway import archive, catalog, folder
from plateway.endpoint import Endpoint
from plateway.ledger import Ledger
from plateway.pipeline.places import check_aside, check_bench, check_bucket
from plateway.simulator import Announced
from plateway.store import Objects, open_store
from tests.faults import mortal, tapes
from tests.faults.invariants import Rest, Scene, World, check, judge
from tests.faults.proxy import Forward, Message, Proxy, Reset, between, honest
from tests.soak import SOAK

ROOT = Path(__file__).parents[2]
KNOWN = Path(__file__).with_name("effects.txt")
FIRST = "single"  # the case in which every place is used for the first time
FLOOR = 200  # points, at least
MEMORY = Path("/dev/shm")  # a SIGKILL does not care whether a disk is below, and syncs cost nothing here
LATER = timedelta(days=2)  # when recovery begins: every lease of the dead has expired
MOST_PASSES = 4
READS = {"s3 get bucket", "s3 head object", "s3 head bucket", "s3 get object", "s3 list", "s3 list uploads"}
EXCUSED = {
    "catalog.release_claims": "leases that nobody used, which expire by themselves; `test_batch` does",
    "catalog.release_owner": "the same of a run that has ended; `test_claims` does",
    "catalog.replay": "is called by a person, once; `test_verbs` does",
    "catalog.record_request": "a person asks on a page, and sees whether that succeeded; `test_pages` does",
    "catalog._resume": "a row only after an endpoint failed; `test_catalog` does",
    "folder._rename_directory": "only where the kernel cannot rename exclusively; `test_folder` does",
    "folder._unlink_twin": "the same",
    "archive._move": "renames where an archive is on no disk of this machine; `test_archive` does",
    "archive.sweep": "removes by `archive.remove`",
    "archive._remove_leftovers": "does so, too, and what is a day old by this machine's clock; `test_archive` does",
    "archive.put_manifest": "writes by `archive.write`",
    "catalog.take_site": "once, when a catalogue is rebuilt; `test_rebuild` does",
    "catalog.record_tape_damage": "a row of `read_archive` and `reconcile`, which find it again; `test_tape` does",
    "catalog.record_relocation": "a row of `relocate`, which goes on with the others; `test_several_buckets` does",
    "catalog.add_hold": "an operator sets it, and sees whether that succeeded; `test_hold` does",
    "catalog.release_hold": "the same",
    "catalog.add_access_key": "an operator issues it, and sees whether that succeeded; `test_s3` does",
    "catalog.disable_access_key": "the same",
    "catalog.delete_access_key": "the same",
    "catalog.add_share": "an operator shares it, and sees whether that succeeded; `test_gateway` does",
    "catalog.delete_share": "the same",
    "catalog.register_targets": "rows of messages to others, found pending again; `test_outbox` kills a relay",
    "catalog.forget_target": "an operator does, and sees whether that succeeded; `test_outbox` does",
    "catalog.hold_target": "as `register_targets`; a hold expires by itself",
    "catalog.release_target": "the same",
    "catalog.record_delivered": "the same: the message is sent again with its id",
    "catalog.record_outbox_error": "the same",
    "catalog.trim_outbox": "the same, an hour later",
    "catalog.replay_messages": "an operator does; `test_outbox` does",
    "archive.write": "writes by `archive._put`, names by `archive._link`",
}
NUMBERS = count(1)
SEED = 2  # of the second deaths that are chosen at random


class Case(NamedTuple):
    """One life, and what it meets."""

    name: str
    life: str = "straight"
    size: int = 24  # pixels along either side of an image
    system: str = "prince"
    staging: bool = False
    files: bool = False  # each file becomes an object of its own
    faults: Sequence[str] = ("none",)  # of the events on the bench
    shared: bool = False  # a second announcement of the same images
    lone: bool = False  # one file is announced, not a directory
    ends: frozenset[str] = frozenset({"purged"})  # the states in which its events may come to rest
    foreign: str = ""  # "while": objects are taken away during the life; "key": a stranger's lies at the event's key
    upload: bool = False  # of each event one is open, that nobody goes on with

    @property
    def tape(self) -> bool:
        """Is it about the archive?"""
        return self.life in tapes.LIVES


CASES = [
    Case("single"),
    Case("parts", size=1536, system="aretha"),
    Case("lone", system="aretha", lone=True),
    Case("files", files=True),
    Case("staged", staging=True),
    Case("shared", life="shared", shared=True),
    Case("restored", life="restored", foreign="while"),
    Case("forced", life="forced", ends=frozenset({"purged", "exported"})),
    Case("slow", life="slow"),
    Case("batch", life="batch"),
    Case("stranger", life="stranger", foreign="key"),
    Case(
        "troubled",
        life="troubled",
        faults=("none", "garbage-json", "missing-image"),
        ends=frozenset({"purged", "quarantined"}),
        foreign="while",
    ),
    Case("written", life="written", ends=frozenset({"archived"})),
    Case("received", life="received", ends=frozenset({"archived"})),
    Case("polled", life="polled", ends=frozenset({"archived"})),
    Case("expired", life="expired", ends=frozenset({"purged, expired"})),
    Case("emptied", life="expired", files=True, ends=frozenset({"purged, expired"})),
    Case("fetched", life="fetched", ends=frozenset({"archived"})),
    Case("reconciled", life="reconciled", ends=frozenset({"exported"}), foreign="while", upload=True),
]
PART = {  # of these cases, the effects that are died of; of the others, those that none of these has
    "single": lambda site: True,
    "parts": lambda site: "folder." not in site,  # no file knows in how many parts it was sent
    "lone": lambda site: "folder.move" in site or "folder._rename" in site or "intend" in site or "trashed" in site,
    "files": lambda site: site.startswith("s3 ") and site not in READS,
}


@dataclass(frozen=True)
class Point:
    """Where somebody dies."""

    case: Case
    site: str
    nth: int
    side: str  # before | after | middle

    def __str__(self) -> str:
        return f"{self.case.name}: killed {self.side} {self.site} #{self.nth + 1}"


@dataclass(frozen=True)
class Run:
    """How a child ended, and what it did: its effects on files and rows, and what it asked of S3."""

    ended: int
    sites: list[str]
    requests: list[Message]

    @property
    def effects(self) -> list[str]:
        """Every effect, those on S3 after the others."""
        passes = f"{mortal.PASS} "
        return [
            *(site for site in self.sites if not site.startswith(passes)),
            *(f"s3 {request.name}" for request in self.requests),
        ]

    @property
    def last(self) -> Run:
        """What the last pass of a recovery did."""
        number, site = max(one for one in enumerate(self.sites) if one[1].startswith(f"{mortal.PASS} "))
        begun = float(site.removeprefix(f"{mortal.PASS} "))
        return Run(self.ended, self.sites[number + 1 :], [one for one in self.requests if one.at >= begun])


@dataclass
class Slot:
    """A mother and a proxy: one life at a time is lived here."""

    mother: subprocess.Popen[str]
    proxy: Proxy
    desk: mortal.Desk

    def run(self, job: dict[str, Any], die: Point | None = None) -> Run:
        """Make a child do a job, and die at a point; the job is told the time of the last effect."""
        told = dict(job, die=(die.site, die.nth, die.side) if die and not die.site.startswith("s3 ") else None)
        self.proxy.log.clear()
        assert self.mother.stdin
        assert self.mother.stdout
        effects = Path(job["effects"])
        effects.unlink(missing_ok=True)
        pid: queue.Queue[int] = queue.Queue()
        self.proxy.script = Killer(die, pid) if die and die.site.startswith("s3 ") else honest
        self.mother.stdin.write(json.dumps(told) + "\n")
        self.mother.stdin.flush()
        pid.put(int(self.mother.stdout.readline()))
        ended = int(self.mother.stdout.readline())
        self.proxy.script = honest
        noted = [line.split(" ", 1) for line in effects.read_text().splitlines()]
        job["now"] = noted[-1][0] if noted else job["now"]
        return Run(ended, [site for _, site in noted], list(self.proxy.log))


@dataclass
class Killer:
    """A script of the proxy that kills who asks: before the request is carried out, or after, without an answer."""

    point: Point
    pid: queue.Queue[int]
    met: Counter[str] = field(default_factory=Counter)

    def __call__(self, request: Message, forward: Forward) -> Message:
        site = f"s3 {request.name}"
        self.met[site] += 1
        if (site, self.met[site] - 1) != (self.point.site, self.point.nth):
            return forward(request)
        if self.point.side == "after":
            forward(request)
        os.kill(self.pid.get(timeout=10), signal.SIGKILL)
        raise Reset


class Bench(NamedTuple):
    """How a case begins."""

    home: Path
    now: datetime
    announced: list[Announced]
    objects: Sequence[tuple[str, bytes, Mapping[str, str]]] = ()  # in the bucket: key, content and metadata
    uploads: Sequence[str] = ()  # keys of those that are open


@dataclass
class Theatre:
    """Where lives are lived: some slots, a bucket, and for each case a bench as it is before."""

    home: Path
    bucket: Objects
    slots: queue.Queue[Slot]
    secret: str
    client: Any  # of the bucket, that is not ours
    listing: str  # where a server shows files of `home`
    benches: dict[str, Bench] = field(default_factory=dict)
    records: dict[str, list[str]] = field(default_factory=dict)
    deaths: dict[str, list[str]] = field(default_factory=dict)  # what went wrong after them
    recoveries: dict[Point, list[str]] = field(default_factory=dict)
    chosen: dict[str, list[Point]] = field(default_factory=dict)  # the points of cases, in the order of the tests

    def stage(self, case: Case) -> tuple[dict[str, Any], list[Announced]]:
        """Set up a fresh copy of a case's bench; return the job and what the instruments wrote there."""
        if case.name not in self.benches:
            self.benches[case.name] = self.build(case)
        bench = self.benches[case.name]
        home = self.home / f"{case.name}-{next(NUMBERS)}"
        shutil.copytree(bench.home, home)
        if case.tape:
            tapes.look_again(home)
        for key, content, metadata in bench.objects:
            self.bucket.put(f"{home.name}/{key}", [content], size=len(content), part_size=1 << 23, metadata=metadata)
        for key in bench.uploads:
            self.client.create_multipart_upload(Bucket=self.bucket.name, Key=f"{home.name}/{key}")
        job = self.job(case, home, bench.now) | {"life": case.life}
        job |= {"effects": f"{home}/effects", "told": f"{home}/told", "die": None, "doing": "live"}
        job |= {"poll": f"{self.listing}/{home.name}/http.json"}
        return job, [
            replace(
                one,
                path=home / one.path.relative_to(bench.home),
                images=home / one.images.relative_to(bench.home),
            )
            for one in bench.announced
        ]

    def job(self, case: Case, home: Path, now: datetime) -> dict[str, Any]:
        """Return what the laboratory of a case is like."""
        place = {"home": str(home), "now": now.isoformat(), "prefix": f"{home.name}/"}
        return place | {"staging": case.staging, "files": case.files}

    def build(self, case: Case) -> Bench:
        """Make instruments acquire what a case is about, and bring it to where the case begins."""
        home, now = self.home / f"bench-{case.name}", datetime.now(UTC)
        for name in tapes.PLACES if case.tape else ("bench", "staging"):
            (home / name).mkdir(parents=True)
        (home / "private").write_bytes(b"private")
        job = self.job(case, home, now)
        desk = mortal.Desk(home.with_name(f"desk-{case.name}"))
        desk.turn(str(home))
        lab = mortal.laboratory(job, self.bucket, desk)
        lab.catalog.upgrade()
        if case.tape:
            return self.before(case, lab)
        announced = []
        for fault in case.faults:
            announced.append(lab.acquire(case.system, fault, images=1 if case.lone else 2, size=case.size))
            lab.clock.turn(seconds=1)
        if case.lone:
            said = json.loads(announced[0].path.read_text())
            said |= {"local_path": f"{said['local_path']}/{min(announced[0].files)}", "img_count": 1}
            announced[0].path.write_text(json.dumps(said))
        if case.shared:
            said = json.loads(announced[0].path.read_text())
            other = replace(announced[0], id=mortal.OTHER, path=announced[0].path.with_name("2.json"))
            other.path.write_text(json.dumps(said | {"timestep_id": str(other.id)}))
            announced.append(other)
        objects = self.mark(case, lab) if case.name != FIRST else []
        lab.catalog.close()
        return Bench(home, now, announced, objects)

    def mark(self, case: Case, lab: tapes.Site) -> list[tuple[str, bytes, Mapping[str, str]]]:
        """Use every place once, so that only the first case dies of that; return the marker in the bucket."""
        instrument = lab.site.instrument(case.system)
        check_bench(lab.site, instrument, owned=True)
        for kind in ("trash", "staging") if case.staging else ("trash",):
            check_aside(lab.site, instrument, kind)
        check_bucket(lab.site)
        return [(one.key, b"".join(lab.store.open(one.key)), {}) for one in lab.store.list()]

    def before(self, case: Case, lab: tapes.Site) -> Bench:
        """Live what is before a life, and keep what is in the bucket then."""
        announced = tapes.LIVES[case.life].before(lab)
        corner = mortal.Corner(self.bucket, f"{lab.home.name}/")
        stats = [corner.stat(found.key) for found in corner.list()]
        objects = [(one.key, b"".join(corner.open(one.key)), one.metadata) for one in stats if one]
        keys = [ledger.event.key for ledger in lab.catalog.ledgers()] if case.upload else []
        lab.catalog.close()
        return Bench(lab.home, lab.clock(), announced, objects, keys)

    def live(self, point: Point, *, again: Point | None = None) -> list[str]:
        """Live, die at the point, recover (and die of that too); return everything that is wrong."""
        slot = self.slots.get()
        job, announced = self.stage(point.case)
        slot.desk.turn(job["home"])
        try:
            return [f"{point}: {flaw}" for flaw in self.judge(slot, job, announced, point=point, again=again)]
        finally:
            self.slots.put(slot)
            shutil.rmtree(job["home"])

    def judge(
        self, slot: Slot, job: dict[str, Any], announced: list[Announced], *, point: Point, again: Point | None
    ) -> Iterator[str]:
        ended = slot.run(job, point).ended
        if ended != -signal.SIGKILL:
            yield f"it was not met, the process ended with {ended}: {Path(job['told']).read_text()}"
            return
        world = self.world(slot, job, announced, point.case)
        yield from map(str, check(world))
        job = recovery(job)
        if again is not None:
            ended = slot.run(job, again).ended
            if ended != -signal.SIGKILL:
                yield f"{again} was not met in the recovery: {Path(job['told']).read_text()}"
                return
            world = self.world(slot, job, announced, point.case, before=world)
            yield from map(str, check(world))
            job = recovery(job)
        run = slot.run(job)
        self.recoveries[point] = run.effects
        told = json.loads(Path(job["told"]).read_text())
        if run.ended or "now" not in told or told["passes"] > MOST_PASSES:
            yield f"the recovery does not come to rest: {told}"
            return
        job |= {"now": told["now"]}
        rest = slot.run(job) if again else run.last  # somebody else, or whoever healed it, finds nothing to do
        last = self.world(slot, job, announced, point.case, before=world)
        looks = "exported" in point.case.ends or point.case.tape  # a purge looks, and refuses
        idle = READS | mortal.PASSING if looks else READS
        last.rest = Rest([one for one in rest.effects if one not in idle], told["descriptors"])
        if point.case.foreign == "while":
            last.foreign = frozenset()
        scene = Scene(last)
        yield from map(str, judge(scene))
        states = Counter(stands(ledger, last.lab.clock()) for ledger in scene.ledgers)
        if not states or not set(states) <= point.case.ends or (point.case.tape and states.total() < len(announced)):
            yield f"came to rest as {dict(states)}"
        last.lab.catalog.close()

    def world(
        self,
        slot: Slot,
        job: dict[str, Any],
        announced: list[Announced],
        case: Case,
        *,
        before: World | None = None,
    ) -> World:
        """See what is there now; a hand that was in the world when its process died is withdrawn."""
        home = Path(job["home"])
        lab = mortal.laboratory(job, self.bucket, slot.desk)
        image = announced[0].images / min(announced[0].files)
        if (home / "away.tif").exists():
            (home / "away.tif").rename(image)
        tapes.arrive(home)
        if case.life == "forced" and image.exists() and len(announced) == 1:
            now = hashlib.sha256(image.read_bytes()).hexdigest()
            if now not in announced[0].files.values():
                announced.append(replace(announced[0], files={**announced[0].files, min(announced[0].files): now}))
        keys = [ledger.event.key for ledger in lab.catalog.ledgers()] if case.foreign else []
        foreign = {"while": keys, "key": [key.replace("-r2", "") for key in keys], "": []}[case.foreign]
        private = {home / "private": b"private"}
        delivered = {path.name: path.read_bytes() for path in (self.benches[case.name].home / "inbox").glob("*")}
        world = World(lab, announced, private, frozenset(foreign), secrets=[self.secret])
        world = replace(world, delivered=delivered, strayed=case.life == "reconciled")
        return replace(world, seen=before.seen, read=before.read) if before else world

    def record(self, case: Case) -> list[str]:
        """Live without a fault; return the effects in order."""
        if case.name not in self.records:
            slot = self.slots.get()
            job, _ = self.stage(case)
            run = slot.run(job)
            self.records[case.name] = run.effects
            told = json.loads(Path(job["told"]).read_text())
            self.slots.put(slot)
            assert run.ended == 0, told
            assert isinstance(told, list), told
        return self.records[case.name]

    def points(self, case: Case) -> list[Point]:
        """Name every point of a case; in the gate without what was died of on the same side in a case before."""
        if case.name not in self.chosen:
            met = {(point.site, point.side) for chosen in self.chosen.values() for point in chosen}
            found = self.all_points(case)
            new = (one for one in found if SOAK or case.files or (one.site, one.side) not in met)
            self.chosen[case.name] = [*new]
        return self.chosen[case.name]

    def all_points(self, case: Case) -> list[Point]:
        record = self.record(case)
        wanted = (lambda site: site not in READS) if case.tape else PART.get(case.name) or self.own
        if case.name == "single" and SOAK:
            return [*points(case, record)]
        return [*fewer([*points(case, record)], {site for site in record if wanted(site)})]

    def own(self, site: str) -> bool:
        """Return whether an effect is in none of the cases that are died of in parts."""
        return all(site not in self.record(CASE[name]) for name in PART)

    def die(self, case: Case) -> list[str]:
        """Die once at every point of a case; return all that went wrong."""
        if case.name not in self.deaths:
            self.deaths[case.name] = self.every([(point, None) for point in self.points(case)])
        return self.deaths[case.name]

    def recovered(self, case: Case) -> dict[Point, list[str]]:
        """Return what the recoveries did after the deaths of a case, in the order of the points."""
        self.die(case)
        return {point: self.recoveries[point] for point in self.points(case) if point in self.recoveries}

    def effects(self) -> set[str]:
        """Name every effect of all lives and recoveries."""
        recoveries = [record for case in CASES for record in self.recovered(case).values()]
        return {site for record in (*map(self.record, CASES), *recoveries) for site in record}

    def every(self, lives: Sequence[tuple[Point, Point | None]]) -> list[str]:
        """Live many lives, as many at a time as there are slots; return all that went wrong."""
        with ThreadPoolExecutor(self.slots.qsize()) as pool:
            flaws = pool.map(lambda life: self.live(life[0], again=life[1]), lives)
            return [flaw for found in flaws for flaw in found]


def recovery(job: dict[str, Any]) -> dict[str, Any]:
    """Make the job of healing what another job has left."""
    return job | {"doing": "recover", "now": (datetime.fromisoformat(job["now"]) + LATER).isoformat()}


def points(case: Case, record: Sequence[str]) -> Iterator[Point]:
    """Name every moment at which a process can be killed in a recorded life."""
    met: Counter[str] = Counter()
    for site in record:
        sides = ["before", "after", "middle"] if site.startswith("write ") else ["before", "after"]
        yield from (Point(case, site, met[site], side) for side in sides)
        met[site] += 1


def fewer(found: Sequence[Point], wanted: set[str]) -> Iterator[Point]:
    """Leave out what is met often: of each wanted effect the first is died of on all sides, the second and last after.

    Right before an effect on files or rows everything is as it was right after the one before, so one of both will do.
    """
    last = {point.site: point.nth for point in found}
    covered = False
    for point in found:
        again = point.side == "before" and covered and not point.site.startswith("s3 ")
        chosen = point.site in wanted
        chosen &= point.nth == 0 or (not alike(point) and point.nth in {1, last[point.site]})
        if chosen and not again:
            yield point
        if point.side == "after":
            covered = chosen


def stands(ledger: Ledger, now: datetime) -> str:
    """Return in what state an event is, and whether its bucket copy has expired."""
    return f"{ledger.state(now).name}{', expired' if ledger.expired else ''}"


pytestmark = pytest.mark.timeout(900)  # minutes on a machine that does other things as well
CASE = {case.name: case for case in CASES}


class Lister(SimpleHTTPRequestHandler):
    """Shows files, with their ETag; says so when a file is the one that was seen."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        content = path.read_bytes() if path.is_file() else b""
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        same = self.headers["If-None-Match"] == etag
        self.send_response(304 if same else 200 if content else 404)
        self.send_header("ETag", etag)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "0" if same else str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if same else content)

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def showing(home: Path) -> Iterator[str]:
    """Serve the files of a directory."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Lister, directory=str(home))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def theatre(endpoint: Endpoint, client: Any) -> Iterator[Theatre]:
    """A bucket, a mother and a proxy for each core."""
    assert endpoint.url
    assert endpoint.secret_access_key
    client.create_bucket(Bucket="crashes")
    secret = endpoint.secret_access_key.get_secret_value()
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None))
        listing = stack.enter_context(showing(Path(home)))
        stage = Theatre(Path(home), open_store("s3://crashes", endpoint), queue.Queue(), secret, client, listing)
        for number in range(min(os.cpu_count() or 1, 4)):
            proxy = stack.enter_context(between(endpoint.url))
            mother = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.mortal"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            assert mother.stdin
            where = {"bucket": "s3://crashes", "url": proxy.url, "access_key_id": endpoint.access_key_id}
            where |= {"direct": endpoint.url, "desk": f"{home}/desk-{number}"}
            mother.stdin.write(json.dumps(where | {"secret_access_key": secret}) + "\n")
            mother.stdin.flush()
            stage.slots.put(Slot(mother, proxy, mortal.Desk(Path(home) / f"look-{number}")))
        yield stage


def test_every_effect_in_the_code_is_met() -> None:
    """Each function that changes files or rows occurs in effects.txt, or is excused here with a reason."""
    known = {line.split()[1] for line in KNOWN.read_text().splitlines() if not line.startswith("s3 ")}
    files = set(mortal.NAMED) | {"write", "rmtree", *mortal.FAR}
    written = {f"catalog.{name}" for module in modules(catalog) for name in functions(module, {"_writing"})}
    written |= {f"folder.{name}" for name in functions(Path(folder.__file__), files)}
    written |= {f"archive.{name}" for module in modules(archive) for name in functions(module, files - {"replace"})}
    written -= {f"{module}.{name}" for module in ("folder", "archive") for name in mortal.THROUGH}
    assert written - known - set(EXCUSED) == set(), "no life meets these: add one, or an excuse"
    assert set(EXCUSED) - written == set()


def modules(package: ModuleType) -> Iterator[Path]:
    """List the files of a package."""
    assert package.__file__
    return Path(package.__file__).parent.glob("*.py")


def functions(path: Path, calls: set[str]) -> Iterator[str]:
    """Name the functions of a module that call one of these."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            called = {call.func for call in ast.walk(node) if isinstance(call, ast.Call)}
            if calls & {one.attr for one in called if isinstance(one, ast.Attribute)}:
                yield node.name


@pytest.mark.parametrize("name", CASE)
def test_a_death_anywhere_is_healed(theatre: Theatre, name: str) -> None:
    """Killed before or after any effect: nothing lost, nothing untrue, and recovery finishes the work."""
    assert theatre.die(CASE[name]) == []


def test_a_second_death_during_recovery_is_healed(theatre: Theatre, capsys: pytest.CaptureFixture[str]) -> None:
    """Every effect that a recovery has is died of as well, on either side, and a seeded choice of others."""
    first = sum(len(theatre.points(case)) for case in CASES)
    lives = list(twice({point: record for case in CASES for point, record in theatre.recovered(case).items()}))
    with capsys.disabled():
        print(
            f"\n{first} points of one death and {len(lives)} of two (seed {SEED}), at {len(theatre.effects())} effects"
        )
    assert theatre.every(lives) == []
    assert first >= FLOOR


def twice(recoveries: dict[Point, list[str]]) -> Iterator[tuple[Point, Point]]:
    """Choose second deaths at random; on request, one for each effect of a recovery that others can see as well."""
    dice, met = random.Random(SEED), set()
    for first, record in recoveries.items() if SOAK else ():
        for second in points(first.case, record):
            if (second.site, second.side) not in met and not (first.case.tape and alike(second)):
                met.add((second.site, second.side))
                yield first, second
    for first in dice.sample([first for first, record in recoveries.items() if record], 60 if SOAK else 12):
        yield first, dice.choice(list(points(first.case, recoveries[first])))


def alike(point: Point) -> bool:
    """Return whether a kill leaves there what it leaves at the effect before."""
    return point.side == "before" or point.site in READS or point.site.startswith(("fsync", "utime"))


def test_every_effect_is_known(theatre: Theatre) -> None:
    """What happens to files, rows and objects in these lives and their recoveries is what effects.txt lists."""
    found, known = theatre.effects(), set(KNOWN.read_text().splitlines())
    new, old = sorted(found - known), sorted(known - found)
    assert not new + old, (
        f"effects that nobody has thought about: {new}; effects that are gone: {old}.\n"
        "Each effect of a recorded life gets its points by itself. Ask what a crash right before and right after it "
        f"leaves, see that recovery heals it, and bring {KNOWN.relative_to(ROOT)} up to date: one a line, sorted.\n"
        "An `unhooked` one is met by no hook: give `mortal.hook` one."
    )
