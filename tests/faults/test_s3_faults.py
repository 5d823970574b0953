"""S3 misbehaves at every request of export and verify, through a proxy that leaves the signatures valid.

A run without faults says which requests there are. Then each of them fails, from then on whenever it is asked, in each
of the ways in which an endpoint can. While it lasts the invariants hold and the failure can be seen; when it is over a
rerun brings the event to one verified object, and a sweep leaves no upload open.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import PlatewayError
from plateway.events import Ref
from plateway.keys import is_marker
from plateway.simulator import Announced
from plateway.store import Objects, Store, open_store
from plateway.store.per_file import PerFile
from plateway.store.wrappers import Prefixed
from tests.databases import furnish
from tests.faults.invariants import Thing, Version, World, check
from tests.faults.proxy import Forward, Message, Reset, between, error, with_body, with_header
from tests.lab import Clock, Lab
from tests.soak import SOAK

NUMBERS = count(1)
SIZES = {"one part": 24, "two parts": 1536, "as files": 24}  # pixels along either side of two images


def slow_down(request: Message, forward: Forward) -> Message:
    """Refuse for now."""
    return error(503, "SlowDown")


def internal(request: Message, forward: Forward) -> Message:
    """Fail."""
    return error(500, "InternalError")


def deny(request: Message, forward: Forward) -> Message:
    """Answer that we may not."""
    return error(403, "AccessDenied")


def reset(request: Message, forward: Forward) -> Message:
    """Hang up before anything is done."""
    raise Reset


def lose(request: Message, forward: Forward) -> Message:
    """Do what is asked and hang up."""
    forward(request)
    raise Reset


def mistag(request: Message, forward: Forward) -> Message:
    """Do what is asked and tell another ETag."""
    reply = forward(request)
    told = (reply.header("etag") or "").strip('"')
    other = told.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    if told:
        reply = with_header(reply, "ETag", f'"{other}"')
    if b"<ETag>" in reply.body:
        start, end = reply.body.index(b"<ETag>") + 6, reply.body.index(b"</ETag>")
        reply = with_body(reply, reply.body[:start] + b"0" * (end - start) + reply.body[end:])
    return reply


def deny_inside(request: Message, forward: Forward) -> Message:
    """Answer 200, and in the body that it failed; nothing was done."""
    return replace(error(200, "InternalError"), start="HTTP/1.1 200 OK")


def fail_inside(request: Message, forward: Forward) -> Message:
    """Do what is asked, say 200, and in the body that it failed."""
    forward(request)
    return replace(error(200, "InternalError"), start="HTTP/1.1 200 OK")


def truncate(request: Message, forward: Forward) -> Message:
    """Hang up in the middle of the answer."""
    reply = forward(request)
    return replace(reply, cut=len(reply.body) // 2) if reply.body else reply


FAULTS = (slow_down, internal, deny, reset, lose, mistag, deny_inside, fail_inside, truncate)
ONLY = {  # the other requests have no such answer
    deny_inside: {"complete"},
    fail_inside: {"complete"},
    mistag: {"put object", "part 1", "part 2", "complete", "head object", "get object"},
    truncate: {"create upload", "complete", "get object"},
}
Fault = Callable[[Message, Forward], Message]


class Call(NamedTuple):
    """One request of a verb."""

    verb: str
    name: str
    nth: int


@dataclass
class Faulty:
    """Make one request fail, and every later one of its name."""

    call: Call
    fault: Fault
    met: Counter[str] = field(default_factory=Counter)
    struck: int = 0

    def __call__(self, request: Message, forward: Forward) -> Message:
        self.met[request.name] += 1
        if request.name != self.call.name or self.met[request.name] <= self.call.nth:
            return forward(request)
        self.struck += 1
        return self.fault(request, forward)


@dataclass
class Bench:
    """Two announced events, one of each size, sealed in a catalogue; to be copied for each trial."""

    home: Path
    endpoint: Endpoint
    bucket: Objects
    announced: dict[str, Announced]
    now: datetime
    calls: dict[str, list[Call]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def bench(endpoint: Endpoint, client: Any) -> Iterator[Bench]:
    """What every trial begins with."""
    client.create_bucket(Bucket="s3-faults")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as home:
        made = Bench(Path(home), endpoint, open_store("s3://s3-faults", endpoint), {}, datetime.now(UTC))
        for name, size in SIZES.items():
            (made.home / name / "bench").mkdir(parents=True)
            lab = laboratory(made, made.home / name, made.bucket, size=name)
            furnish(lab.catalog)
            made.announced[name] = lab.acquire(images=2, size=size)
            lab.catalog.close()
        yield made


def laboratory(bench: Bench, home: Path, store: Store, *, size: str) -> Lab:
    clock = Clock()
    clock.now = bench.now
    options = {"layout": "files" if size == "as files" else "bundle"}
    return Lab(home, store, clock, Catalog(f"sqlite:///{home}/catalogue.db", clock=clock), options=options)


@dataclass
class Trial:
    """One event on its way into a bucket behind a proxy."""

    lab: Lab
    ref: Ref
    announced: Announced
    honest: Store  # the same objects, asked directly
    read: dict[Version, Thing] = field(default_factory=dict)

    def world(self) -> World:
        return World(replace(self.lab, store=self.honest), [self.announced], read=self.read)

    def go(self, verb: str) -> str:
        """Run one verb; return its result, or the error's name."""
        try:
            if verb == "export":
                return pipeline.export(self.lab.site, self.ref).result
            return pipeline.verify(self.lab.site, self.ref, read_back=verb == "read-back").result
        except PlatewayError as error:
            return type(error).__name__


VERBS = ("export", "verify", "read-back")


def try_out(bench: Bench, size: str, call: Call | None, fault: Fault) -> tuple[list[Call], list[str]]:
    """Send one event with a fault at one request; return the requests of a run without one, and all that is wrong."""
    number = next(NUMBERS)
    home = bench.home / f"trial-{number}"
    shutil.copytree(bench.home / size, home)
    assert bench.endpoint.url
    with between(bench.endpoint.url) as proxy:
        behind = open_store("s3://s3-faults", replace(bench.endpoint, url=proxy.url))
        store, honest = (PerFile(Prefixed(one, f"{number}/")) for one in (behind, bench.bucket))
        template, wrote = bench.home / size, bench.announced[size]
        wrote = replace(
            wrote, path=home / wrote.path.relative_to(template), images=home / wrote.images.relative_to(template)
        )
        trial = Trial(laboratory(bench, home, store, size=size), Ref(wrote.id, 1), wrote, honest)
        trial.lab.settle()
        calls: list[Call] = []
        flaws: list[str] = []
        for verb in VERBS:
            proxy.log.clear()
            faulty = Faulty(call, fault) if call is not None and call.verb == verb else None
            if faulty is not None:
                proxy.script = faulty
            result = trial.go(verb)
            met: Counter[str] = Counter()
            for request in proxy.log:
                calls.append(Call(verb, request.name, met[request.name]))
                met[request.name] += 1
            if faulty is not None:
                flaws += judge(trial, faulty, result)
                proxy.script = lambda request, forward: forward(request)
                flaws += end(trial)
                break
        trial.lab.catalog.close()
    shutil.rmtree(home)
    return calls, [f"{size}, {fault.__name__} at {call}: {flaw}" for flaw in flaws]


def judge(trial: Trial, faulty: Faulty, result: str) -> Iterator[str]:
    """Return what is wrong while the fault lasts: invariants, and whether the failure can be seen."""
    if not faulty.struck:
        yield "it was not met"
    for violation in check(trial.world()):
        if not (faulty.fault is mistag and "another ETag than was seen" in violation.what):  # what we were told
            yield str(violation)
    ledger = trial.lab.ledger(trial.ref)
    good = result in {"exported", "verified"}
    verb = "export" if faulty.call.verb == "export" else "verify"
    if not good and not ledger.setback(verb) and not (ledger.export and ledger.export.damage):
        yield f"{result}, and nothing of it is noted"
    if verb == "export" and good and trial.go("verify") != "verified":
        yield "said to be exported, and is not"


def end(trial: Trial) -> Iterator[str]:
    """Return what is wrong after the fault: the rerun, what it left behind."""
    trial.lab.clock.turn(hours=8)
    trial.lab.export()
    result = trial.go("read-back")
    if result != "verified":
        yield f"the rerun ends with {result}: {trial.lab.ledger(trial.ref).state(trial.lab.clock())}"
    pipeline.sweep(trial.lab.site, now=datetime.now(UTC) + timedelta(days=1))
    yield from map(str, check(trial.world()))
    objects = [one for one in trial.honest.list() if not is_marker(one.key)]
    uploads = list(trial.honest.uploads())
    if len(objects) != 1 or uploads:
        yield f"objects {objects}, open uploads {uploads}"
    if trial.lab.ledger(trial.ref).setbacks:
        yield "a setback is left"


def worth(bench: Bench, size: str, call: Call) -> bool:
    """Choose for the gate those requests that an upload in one part has not; of many alike the first and the last."""
    alike = [one.nth for one in bench.calls[size] if (one.verb, one.name) == (call.verb, call.name)]
    known = {(one.verb, one.name) for one in bench.calls["one part"]}
    if size == "as files":
        return call.nth in {0, alike[-1]} and (call.name in {"list", "put object"}) and call.verb != "read-back"
    return size == "one part" or (call.verb, call.name) not in known


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("size", SIZES)
def test_every_request_may_fail(bench: Bench, size: str, fault: Fault) -> None:
    """Whatever request fails, and however: nothing untrue, nothing hidden, and afterwards one sound object."""
    for one in {"one part", size} - set(bench.calls):
        bench.calls[one], flaws = try_out(bench, one, None, fault)
        assert flaws == []
    calls = [call for call in bench.calls[size] if fault not in ONLY or call.name in ONLY[fault]]
    if not SOAK:
        calls = [call for call in calls if worth(bench, size, call)]
    with ThreadPoolExecutor(8) as pool:
        flaws = [flaw for _, found in pool.map(lambda call: try_out(bench, size, call, fault), calls) for flaw in found]
    assert flaws == []


def test_the_requests_are_those_we_know(bench: Bench) -> None:
    """A new request of export or verify would be tried by itself; these are the ones there are."""
    names = {size: {(call.verb, call.name) for call in try_out(bench, size, None, reset)[0]} for size in SIZES}
    looks = {("export", "head object"), ("export", "head bucket"), ("verify", "head object")}
    looks |= {("read-back", "head object"), ("read-back", "get object")}
    looks |= {
        ("export", "get object"),
        ("export", "list"),
        ("export", "put object"),
        ("verify", "get object"),
    }  # marker
    parts = {("export", name) for name in ("create upload", "part 1", "part 2", "complete")}
    files = {("export", "put object"), ("export", "list"), ("verify", "list"), ("read-back", "list")}
    files |= looks
    assert names == {
        "one part": looks | {("export", "put object")},
        "two parts": looks | parts,
        "as files": files,
    }
