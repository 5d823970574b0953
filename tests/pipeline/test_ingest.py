"""Manifests from every door, in any order, with faults at every step; and members that are read on the archive."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from plateway import pipeline
from plateway.archive import Delivery, Entry, Inbox, ManifestPage, Poll, PollLimits, dump, open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import NotFound, Rejected, Unavailable
from plateway.events import Ref
from plateway.pipeline import Outcome, Site
from plateway.records import ArchiveEntry, ArchiveManifest
from plateway.store import open_store
from tests.databases import furnish
from tests.lab import Clock, Lab
from tests.soak import SOAK


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue that was made once, to be copied."""
    path = tmp_path_factory.mktemp("empty") / "catalogue.db"
    catalog = Catalog(f"sqlite:///{path}")
    catalog.upgrade()
    catalog.close()
    return path


@pytest.fixture
def lab(tmp_path: Path, empty: Path) -> Iterator[Lab]:
    """A laboratory with an inbox and an archive."""
    clock = Clock()
    shutil.copy(empty, tmp_path)
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    for name in ("bench", "bucket", "inbox", "tape"):
        (tmp_path / name).mkdir()
    archive = open_archive((tmp_path / "tape").as_uri())
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog, archive=archive)
    catalog.close()


def inbox_of(lab: Lab) -> Inbox:
    return Inbox((lab.home / "inbox").as_uri())


def full(lab: Lab, ref: Ref) -> str:
    """Name the object of an event as manifests do."""
    return f"{lab.store.name}/{lab.catalog.get(ref).key}"


def manifest(job: str, *archives: tuple[str, Sequence[str]], members: Sequence[dict[str, Any]] = ()) -> bytes:
    said = [
        {"path": path, "src_keys": list(keys), "members": [one for one in members if one["key"] in keys]}
        for path, keys in archives
    ]
    return json.dumps({"job_id": job, "date": "2026-05-04", "archives": said}).encode()


def drop(lab: Lab, name: str, content: bytes) -> Path:
    path = lab.home / "inbox" / name
    path.write_bytes(content)
    return path


def told(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    return [(one.key, one.result) for one in outcomes]


def below(lab: Lab) -> set[str]:
    inbox = lab.home / "inbox"
    return {path.relative_to(inbox).as_posix() for path in inbox.rglob("*") if not path.is_dir()}


# ------------------------------------------------------------------------------------------------------ one manifest


def test_an_event_that_tape_names_is_archived(lab: Lab) -> None:
    """The manifest is kept, its entry finds the export, and the event says where it is."""
    _, ref = lab.exported()
    content = manifest("job-1", ("images/e/2026-05-04.tar", [full(lab, ref)]))
    assert pipeline.receive(lab.site, content, source="amqp", name="message 1").result == "received"
    assert [(one.ref, one.result) for one in pipeline.settle(lab.site)] == [(ref, "archived")]
    (location,) = lab.ledger(ref).archives
    assert (location.path, location.job_id, location.evidence) == ("images/e/2026-05-04.tar", "job-1", "name")
    assert location.member == f"./{lab.catalog.get(ref).key.rpartition('/')[2]}"
    assert lab.state(ref) == "archived"
    (kept,) = lab.catalog.manifests()
    assert (kept.content, kept.door, kept.name, kept.date) == (
        content, "amqp", "message 1", datetime(2026, 5, 4, tzinfo=UTC)
    )  # fmt: skip


def test_lesson_d12_redelivery_changes_nothing(lab: Lab) -> None:
    """The same manifest again, spelt otherwise or through another door, is known."""
    _, ref = lab.exported()
    content = manifest("job-1", ("a.tar", [full(lab, ref)]))
    pipeline.receive(lab.site, content, source="amqp", name="1")
    pipeline.settle(lab.site)
    before = lab.ledger(ref)
    for again in (content, json.dumps(json.loads(content), indent=4, sort_keys=True).encode()):
        lab.clock.turn(hours=1)
        assert pipeline.receive(lab.site, again, source="inbox", name="2").result == "known"
        assert pipeline.settle(lab.site) == []
    assert lab.ledger(ref) == before
    assert len(lab.catalog.manifests()) == 1


def test_lesson_d12_a_path_that_tape_already_has_is_no_error(lab: Lab) -> None:
    """A second manifest about the same archive adds what is new in it."""
    refs = [lab.exported()[1] for _ in range(2)]
    for number, named in enumerate(([0], [0, 1])):
        content = manifest(f"job-{number}", ("a.tar", [full(lab, refs[one]) for one in named]))
        assert pipeline.receive(lab.site, content, source="amqp", name=str(number)).result == "received"
        pipeline.settle(lab.site)
    assert [[one.path for one in lab.ledger(ref).archives] for ref in refs] == [["a.tar"], ["a.tar"]]


def test_lesson_d12_an_unknown_key_is_parked_and_settles_when_its_export_appears(lab: Lab) -> None:
    """Tape may tell of an export before the catalogue knows of it; the other entries do not wait for it."""
    _, known = lab.exported()
    announced = lab.acquire()
    later = Ref(announced.id, 1)
    lab.settle()
    keys = [full(lab, known), full(lab, later), f"{lab.store.name}/images/e/nobody-knows.tar"]
    pipeline.receive(lab.site, manifest("job", ("a.tar", keys)), source="amqp", name="1")
    outcomes = pipeline.settle(lab.site)
    assert [(one.ref, one.result) for one in outcomes] == [(known, "archived"), (None, "parked")]
    assert outcomes[1].reasons == ("2 entries that fit no export yet",)
    assert {one.key: one.reason for one in lab.catalog.parked()} == {
        keys[1]: "not exported yet",
        keys[2]: "unknown key",
    }
    lab.export()
    assert [(one.ref, one.result) for one in pipeline.settle(lab.site)] == [(later, "archived"), (None, "parked")]
    assert [one.key for one in lab.catalog.parked()] == keys[2:]


def test_lesson_d5_keys_of_old_layouts_are_parked_and_harm_nobody(lab: Lab) -> None:
    """What earlier systems wrote is in manifests too: it is kept, and named, and no other entry waits."""
    _, ref = lab.exported()
    old = ["raw/test-id/20010101_0000.tar", "raw/images/e/20010101_0930.tar", "raw/images/e/20010101/093000.tar"]
    pipeline.receive(lab.site, manifest("job", ("a.tar", [*old, full(lab, ref)])), source="http", name="1")
    assert [one.result for one in pipeline.settle(lab.site)] == ["archived", "parked"]
    assert [one.key for one in lab.catalog.parked()] == sorted(old)


def test_lesson_d6_an_empty_list_is_received_and_told(lab: Lab) -> None:
    """An archiver that found nothing is on record; nothing is archived by it."""
    outcome = pipeline.receive(lab.site, manifest("job"), source="amqp", name="1")
    assert (outcome.result, pipeline.settle(lab.site)) == ("received", [])
    assert [one.job_id for one in lab.catalog.manifests()] == ["job"]


def test_lesson_d16_a_manifest_that_cannot_be_used_is_quarantined(lab: Lab) -> None:
    """Its bytes and the reason are kept, and the next one is received all the same."""
    outcome = pipeline.receive(lab.site, b"\xff{}", source="amqp", name="message 7")
    assert (outcome.result, outcome.reasons) == ("quarantined", ("not UTF-8: byte 0xff at 0",))
    assert pipeline.receive(lab.site, b"\xff{}", source="amqp", name="message 8").result == "quarantined"
    assert pipeline.receive(lab.site, manifest("job"), source="amqp", name="message 9").result == "received"
    (kept,) = lab.catalog.manifests(refused=True)
    assert (kept.content, kept.reason, kept.accepted) == (b"\xff{}", "not UTF-8: byte 0xff at 0", False)


def test_lesson_d12_refused_entries_are_told_and_kept_with_the_manifest(lab: Lab) -> None:
    """One wrong entry is told with its reason, and so are a thousand, in few words."""
    _, ref = lab.exported()
    content = manifest("job", ("a.tar", ["no slash", full(lab, ref)]), ("../b.tar", []))
    outcome = pipeline.receive(lab.site, content, source="amqp", name="1")
    assert outcome.reasons == (
        'archives[0].src_keys[0]: key: "no slash" is not <bucket>/<key>',
        "archives[1]: path: \"../b.tar\" climbs out with '..'",
    )
    assert lab.catalog.manifests(refused=True)[0].reason == "; ".join(outcome.reasons)
    assert [one.result for one in pipeline.settle(lab.site)] == ["archived"]
    many = pipeline.receive(
        lab.site, manifest("job", ("a.tar", [f"k{n}" for n in range(1000)])), source="amqp", name="2"
    )
    assert len(many.reasons) == 21
    assert many.reasons[-1] == "and 980 more"


def test_a_manifest_that_is_far_too_large_is_quarantined_without_its_bulk(lab: Lab) -> None:
    """The catalogue does not keep tens of megabytes of nonsense."""
    outcome = pipeline.receive(lab.site, b" " * ((64 << 20) + 1), source="http", name="1")
    assert outcome.reasons == ("more than 67,108,864 bytes",)
    assert len(lab.catalog.manifests()[0].content) == 1 << 20


# --------------------------------------------------------------------------------------------------------- any order


def six(lab: Lab, refs: Sequence[Ref]) -> list[bytes]:
    """Manifests that overlap, repeat and contradict."""
    one, two, three, four = (full(lab, ref) for ref in refs)
    size, sha = {}, {}
    for ref in refs[:3]:
        export = lab.ledger(ref).export
        assert export is not None
        size[full(lab, ref)], sha[full(lab, ref)] = export.size, export.sha256
    good: list[dict[str, Any]] = [
        {"key": key, "name": "./m", "size": size[key], "sha256": sha[key], "offset": 512} for key in (one, two)
    ]
    wrong: list[dict[str, Any]] = [{"key": two, "size": size[two] + 1}, {"key": three, "sha256": "0" * 64}]
    return [
        manifest("a", ("a.tar", [one, two])),
        manifest("b", ("a.tar", [two, one]), members=[good[0], wrong[0]]),
        manifest("c", ("a.tar", [one, three, "raw/old-layout.tar"]), ("b.tar", [one]), ("empty.tar", [])),
        manifest("d", ("b.tar", [two, three]), members=[good[1], wrong[1]]),
        manifest("a", ("a.tar", [two, one, one])),  # the first again, in other words
        manifest("f", ("b.tar", [three, four, "no slash"]), ("../c.tar", [one]), members=[{"key": three, "size": 5}]),
    ]


WORLD = (  # what tape's tables say, without times
    "SELECT digest, job_id, accepted, reason FROM archive_manifest ORDER BY 1",
    "SELECT path, key, manifest, reason, settled_at IS NULL FROM archive_entry ORDER BY 1, 2, 3",
    'SELECT event_id, path, member, job_id, size, checksum, "offset", evidence FROM archive_location ORDER BY 1, 2',
)


def worlds(lab: Lab, refs: Sequence[Ref], orders: Sequence[Sequence[int]]) -> set[tuple[Any, ...]]:
    """Deliver six manifests in each of these orders; settle at the end, or now and then after each."""
    manifests, found = six(lab, refs), set()
    for turn, order in enumerate(orders):
        with lab.catalog._engine.begin() as connection:
            for table in ("archive_location", "archive_entry", "archive_manifest"):
                connection.execute(sa.text(f"DELETE FROM {table}"))
        for number in order:
            pipeline.receive(lab.site, manifests[number], source="amqp", name="m")
            if turn % 12 == 0:
                pipeline.settle(lab.site)
        pipeline.settle(lab.site)
        with lab.catalog._engine.connect() as connection:
            found.add(tuple(tuple(map(tuple, connection.execute(sa.text(query)).all())) for query in WORLD))
    return found


def four(lab: Lab) -> list[Ref]:
    """Make four events, of which the last is not exported."""
    refs = [lab.exported()[1] for _ in range(3)]
    refs.append(Ref(lab.acquire().id, 1))
    lab.settle()
    return refs


def test_lesson_d12_all_orders_of_six_manifests_come_to_the_same(tmp_path: Path) -> None:
    """Overlapping, repeated, contradictory: one end; what agrees is archived, what does not is parked.

    The gate takes every twelfth of the 720 orders.
    """
    (tmp_path / "bench").mkdir()
    (tmp_path / "bucket").mkdir()
    clock = Clock()
    catalog = Catalog("sqlite://", clock=clock)
    furnish(catalog)
    lab = Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    refs = four(lab)
    ((manifests, entries, _),) = worlds(lab, refs, list(itertools.permutations(range(6)))[:: 1 if SOAK else 12])
    assert len(manifests) == 5
    assert [[(one.path, one.evidence) for one in lab.ledger(ref).archives] for ref in refs] == [
        [("a.tar", "checksum"), ("b.tar", "name")],
        [("a.tar", "name"), ("b.tar", "checksum")],
        [("a.tar", "name")],
        [],
    ]
    assert [lab.state(ref) for ref in refs] == ["archived", "archived", "archived", "ready"]
    assert sorted(reason.split()[0] for *_, reason, parked in entries if parked) == [
        "SHA-256", "not", "size", "size", "unknown"
    ]  # fmt: skip
    catalog.close()


def test_lesson_d12_orders_of_six_manifests_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """The same on PostgreSQL, for some orders."""
    clock = Clock()
    catalog = Catalog(postgres_url, clock=clock)
    catalog.upgrade()
    for name in ("bench", "bucket"):
        (tmp_path / name).mkdir()
    lab = Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    chosen = random.Random(3).sample(list(itertools.permutations(range(6))), 12)
    assert len(worlds(lab, four(lab), chosen)) == 1
    catalog.close()


# -------------------------------------------------------------------------------------------------------- files door


def test_files_are_received_and_move(lab: Lab) -> None:
    """Good ones to accepted/, bad ones to quarantine/, with the bytes that came."""
    _, ref = lab.exported()
    drop(lab, "1.json", manifest("job", ("a.tar", [full(lab, ref)])))
    old(drop(lab, "2.json", b"[]"))
    drop(lab, "3.json", manifest("other"))
    outcomes = pipeline.collect(lab.site, inbox=inbox_of(lab))
    assert told(outcomes) == [("1.json", "received"), ("2.json", "quarantined"), ("3.json", "received")]
    assert below(lab) == {"accepted/1.json", "quarantine/2.json", "accepted/3.json"}
    assert pipeline.collect(lab.site, inbox=inbox_of(lab)) == []
    assert [one.result for one in pipeline.settle(lab.site)] == ["archived"]


def old(path: Path) -> Path:
    """Set the age of a file so that nobody writes it any more."""
    os.utime(path, (0, 0))
    return path


def test_a_file_that_is_being_written_is_left_alone(lab: Lab) -> None:
    """Half a manifest stays where it is as long as it is young; when it is whole it is received, else refused."""
    content = manifest("job", ("a.tar", ["b/k"]))
    half = drop(lab, "1.json", content[:40])
    now = datetime.now(UTC)
    for seconds in (0, 30, 59):
        assert pipeline.collect(lab.site, inbox=inbox_of(lab), now=now + timedelta(seconds=seconds - 2)) == []
    half.write_bytes(content)
    assert told(pipeline.collect(lab.site, inbox=inbox_of(lab), now=now)) == [("1.json", "received")]
    drop(lab, "2.json", content[:40])
    later = pipeline.collect(lab.site, inbox=inbox_of(lab), now=now + timedelta(minutes=5))
    assert told(later) == [("2.json", "quarantined")]


def test_what_is_no_file_goes_to_quarantine(lab: Lab) -> None:
    """A link in the inbox is not followed."""
    (lab.home / "secret").write_bytes(manifest("job"))
    (lab.home / "inbox" / "1.json").symlink_to(lab.home / "secret")
    (outcome,) = pipeline.collect(lab.site, inbox=inbox_of(lab))
    assert (outcome.result, outcome.reasons) == ("quarantined", ("a link, not a regular file",))
    assert lab.catalog.manifests() == []


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_an_inbox_may_be_anywhere(lab: Lab, kind: str, request: pytest.FixtureRequest) -> None:
    """Memory and a bucket serve as well as a directory."""
    from plateway import store

    endpoint: Endpoint | None = request.getfixturevalue("endpoint") if kind == "s3" else None
    url = f"s3://{request.getfixturevalue('bucket')}/in" if kind == "s3" else f"memory://{lab.home.name}"
    fs, root = store.filesystem(url, endpoint)
    for name, content in {"1.json": manifest("job"), "2.json": b"?"}.items():
        with fs.open(f"{root}/{name}", "wb") as file:
            file.write(content)
    now = datetime.now(UTC) + timedelta(hours=1)
    outcomes = pipeline.collect(lab.site, inbox=Inbox(url, endpoint), now=now)
    assert told(outcomes) == [("1.json", "received"), ("2.json", "quarantined")]
    assert Inbox(url, endpoint).deliveries() == []
    assert [name for name, _ in Inbox(url, endpoint).accepted()] == ["accepted/1.json"]


class Killed(BaseException):
    """What no code of ours catches, as a SIGKILL."""


class Breaking(Inbox):
    """An inbox that breaks at one step, at the nth time that it is taken."""

    def __init__(self, url: str, step: str, *, turn: int, error: BaseException) -> None:
        super().__init__(url)
        self.step, self.turn, self.error = step, turn, error

    def _at(self, step: str) -> None:
        if step == self.step:
            self.turn -= 1
            if self.turn == 0:
                raise self.error

    def deliveries(self) -> list[Delivery]:
        self._at("list")
        return super().deliveries()

    def read(self, delivery: Delivery) -> bytes:
        self._at("read")
        return super().read(delivery)

    def done(self, name: str) -> None:
        self._at("before move")
        super().done(name)
        self._at("after move")


class Forgetting(Catalog):
    """A catalogue that cannot be written at the nth manifest: before, or with the answer lost."""

    turn = 0
    after = False
    error: BaseException = Unavailable("the catalogue does not answer")

    def receive(self, manifest: ArchiveManifest, entries: Sequence[ArchiveEntry], *, now: datetime) -> bool:
        self.turn -= 1
        if self.turn == 0 and not self.after:
            raise self.error
        new = super().receive(manifest, entries, now=now)
        if self.turn == 0:
            raise self.error
        return new


STEPS = ["list", "read", "before move", "after move", "receive", "receive, answer lost"]


@pytest.mark.parametrize(
    "error", [Unavailable("gone"), NotFound("gone"), Killed()], ids=["transient", "permanent", "kill"]
)
@pytest.mark.parametrize("turn", [1, 3])
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_at_any_step_of_the_files_door_loses_nothing(
    lab: Lab, step: str, turn: int, error: BaseException
) -> None:
    """Whatever breaks at listing, reading, receiving or moving: the next run takes in the rest, nothing twice."""
    for number in range(3):
        drop(lab, f"{number}.json", manifest(f"job-{number}", ("a.tar", [f"b/{number}"])))
    breaking = Breaking((lab.home / "inbox").as_uri(), step, turn=turn, error=error)
    catalog = Forgetting(f"sqlite:///{lab.home}/catalogue.db", clock=lab.clock)
    if step.startswith("receive"):
        catalog.turn, catalog.after, catalog.error = turn, step != "receive", error
    site = replace(lab.site, catalog=catalog)
    try:
        outcomes = pipeline.collect(site, inbox=breaking)
    except Killed:
        assert isinstance(error, Killed)
    else:
        failed = [one for one in outcomes if one.result in {"later", "failed"}]
        assert len(failed) == (0 if step == "list" and turn > 1 else 1)
        if step != "list":
            assert len(outcomes) == 3  # the others were received all the same
    catalog.close()
    again = pipeline.collect(lab.site, inbox=inbox_of(lab))
    assert {one.result for one in again} <= {"received", "known"}
    assert sorted(one.job_id or "" for one in lab.catalog.manifests()) == ["job-0", "job-1", "job-2"]
    assert below(lab) == {f"accepted/{number}.json" for number in range(3)}
    assert len(list(lab.catalog.parked())) == 0 or pipeline.settle(lab.site)[0].result == "parked"


def test_an_inbox_that_is_not_there_stops_no_other_door(lab: Lab) -> None:
    """A directory that vanished is told, and the server is asked all the same."""
    (lab.home / "inbox").rmdir()
    outcomes = pipeline.collect(lab.site, inbox=inbox_of(lab), poll=Listing([[manifest("job")]]))
    assert [one.result for one in outcomes] == ["failed", "received"]
    assert outcomes[0].reasons == ("inbox: no such directory",)
    assert str(lab.home) not in outcomes[0].key or outcomes[0].key == inbox_of(lab).name


# --------------------------------------------------------------------------------------------------------- HTTP door


class Listing(Poll):
    """A server that lists these pages of manifests, and may break before one of them."""

    def __init__(self, pages: list[list[bytes]], *, broken: int | None = None) -> None:
        super().__init__("http://tape.example/manifests", limits=PollLimits())
        self.listed, self.broken, self.known = pages, broken, dict[str, str | None]()

    def pages(self, *, etag: str | None = None, modified: str | None = None) -> Iterator[ManifestPage]:
        self.known = {"etag": etag, "modified": modified}
        if etag == "v1":
            return
        for number, page in enumerate(self.listed):
            if number == self.broken:
                raise Rejected("page 2 cannot be read")
            named = tuple((f"{self.name}#{place}", content) for place, content in enumerate(page))
            last = number == len(self.listed) - 1
            yield ManifestPage(named, last=last, etag="v1" if last else None)


def test_what_a_server_lists_is_received_and_remembered(lab: Lab) -> None:
    """The next time it is asked for what is new only."""
    poll = Listing([[manifest("1"), b"?"], [manifest("2")]])
    assert [one.result for one in pipeline.collect(lab.site, poll=poll)] == ["received", "quarantined", "received"]
    assert pipeline.collect(lab.site, poll=poll) == []
    assert poll.known == {"etag": "v1", "modified": None}


def test_a_server_that_breaks_off_is_asked_for_everything_again(lab: Lab) -> None:
    """What came is received; nothing is remembered that would hide the rest."""
    poll = Listing([[manifest("1")], [manifest("2")]], broken=1)
    assert [one.result for one in pipeline.collect(lab.site, poll=poll)] == ["received", "failed"]
    poll.broken = None
    assert [one.result for one in pipeline.collect(lab.site, poll=poll)] == ["known", "received"]
    assert poll.known == {"etag": None, "modified": None}


@pytest.mark.parametrize("after", [False, True], ids=["before", "answer lost"])
@pytest.mark.parametrize("error", [Unavailable("gone"), Killed()], ids=["transient", "kill"])
def test_a_catalogue_that_fails_makes_the_server_be_asked_again(lab: Lab, error: BaseException, after: bool) -> None:
    """The server's mark is noted only when every manifest is durable."""
    catalog = Forgetting(f"sqlite:///{lab.home}/catalogue.db", clock=lab.clock)
    catalog.turn, catalog.after, catalog.error = 2, after, error
    poll = Listing([[manifest("1"), manifest("2"), manifest("3")]])
    try:
        outcomes = pipeline.collect(replace(lab.site, catalog=catalog), poll=poll)
    except Killed:
        outcomes = []
    assert [one.result for one in outcomes] in ([], ["received", "later"])
    catalog.close()
    pipeline.collect(lab.site, poll=poll)
    assert poll.known == {"etag": None, "modified": None}
    assert sorted(one.job_id or "" for one in lab.catalog.manifests()) == ["1", "2", "3"]


# ------------------------------------------------------------------------------------------------------ reading back


def tape(lab: Lab, path: str, refs: Sequence[Ref], *, change: Callable[[bytes], bytes] = bytes) -> None:
    """Write an archive as the archiver does, and let its manifest be settled."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for ref in refs:
            export = lab.ledger(ref).export
            assert export is not None
            info = tarfile.TarInfo(f"./{export.key.rpartition('/')[2]}")
            info.size = export.size
            tar.addfile(info, io.BytesIO(change(b"".join(lab.store.open(export.key)))))
    target = lab.home / "tape" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(buffer.getvalue())
    tell(lab, path, refs)


def tell(lab: Lab, path: str, refs: Sequence[Ref], **details: Any) -> None:
    keys = [full(lab, ref) for ref in refs]
    members = [{"key": key, **details} for key in keys]
    pipeline.receive(
        lab.site, manifest(f"job {path}".replace("/", "-"), (path, keys), members=members), source="amqp", name="m"
    )
    pipeline.settle(lab.site)
    lab.clock.turn(minutes=1)


def flipped(content: bytes) -> bytes:
    return content[:-600] + bytes([content[-600] ^ 1]) + content[-599:]


def test_reading_raises_evidence_to_checksum(lab: Lab) -> None:
    """A name becomes proof when the member's bytes are those that were sent; a second run reads nothing."""
    refs = [lab.exported()[1] for _ in range(3)]
    tape(lab, "images/e/d.tar", refs)
    outcomes = pipeline.read_archive(lab.site, budget=1 << 30)
    assert [(one.verb, one.result, one.ref) for one in outcomes] == [
        ("archive", "verified", ref) for ref in sorted(refs)
    ]
    for ref in refs:
        (location,) = lab.ledger(ref).archives
        export = lab.ledger(ref).export
        assert export is not None
        assert (location.evidence, location.checksum, location.size) == ("checksum", export.sha256, export.size)
        assert location.read_at is not None
        assert location.offset is not None
        there = lab.archive.open(location.path, start=location.offset, length=export.size) if lab.archive else iter(())
        assert b"".join(there) == b"".join(lab.store.open(export.key))
    assert pipeline.read_archive(lab.site, budget=1 << 30) == []


def test_reading_stays_within_its_budget(lab: Lab) -> None:
    """The longest known go first; what does not fit waits for the next run, and nothing waits for ever."""
    refs = []
    for number in range(3):
        refs.append(lab.exported()[1])
        tape(lab, f"{number}.tar", refs[-1:])
    sizes = [export.size for ref in refs if (export := lab.ledger(ref).export)]
    assert pipeline.read_archive(lab.site, budget=0) == []
    assert [one.ref for one in pipeline.read_archive(lab.site, budget=sizes[0] + 10)] == refs[:1]
    assert [one.ref for one in pipeline.read_archive(lab.site, budget=10)] == refs[1:2]  # larger than any budget
    assert [one.ref for one in pipeline.read_archive(lab.site, budget=sizes[2])] == refs[2:]


def test_a_member_that_differs_is_taken_back_with_the_reason(lab: Lab) -> None:
    """Tape's word is withdrawn where its bytes are other than were sent; it is not archived there, and stays so."""
    _, ref = lab.exported()
    tape(lab, "a.tar", [ref], change=flipped)
    (outcome,) = pipeline.read_archive(lab.site, budget=1 << 30)
    assert outcome.result == "damaged"
    assert outcome.reasons[0].startswith("a.tar: sha256 ")
    assert lab.ledger(ref).archives == ()
    assert lab.state(ref) == "exported"
    (parked,) = lab.catalog.parked()
    assert parked.reason == outcome.reasons[0]
    assert [one.result for one in pipeline.settle(lab.site)] == ["parked"]
    assert pipeline.read_archive(lab.site, budget=1 << 30) == []


def test_a_sparse_tar_is_unsupported_and_not_damaged(lab: Lab) -> None:
    """What GNU tar -S wrote is told as what it is, and no evidence of the event is withdrawn."""
    announced = lab.acquire(images=1)
    with (announced.images / min(announced.files)).open("r+b") as image:
        image.truncate(1 << 20)  # mostly a hole
    lab.settle()
    lab.export()
    ref = Ref(announced.id, 1)
    name = lab.catalog.get(ref).key.rpartition("/")[2]
    with (lab.home / "tape" / name).open("wb") as file:
        for chunk in lab.store.open(lab.catalog.get(ref).key):
            file.write(chunk)
    subprocess.run(["fallocate", "--dig-holes", name], cwd=lab.home / "tape", check=True)
    subprocess.run(["tar", "-Scf", "a.tar", f"./{name}"], cwd=lab.home / "tape", check=True)
    (lab.home / "tape" / name).unlink()
    pipeline.receive(lab.site, manifest("job", ("a.tar", [full(lab, ref)])), source="test", name="m")
    pipeline.settle(lab.site)
    (outcome,) = pipeline.read_archive(lab.site, budget=1 << 30)
    assert (outcome.result, lab.state(ref)) == ("failed", "archived")
    assert "stored as a sparse file (tar -S); not supported" in outcome.reasons[0]


def test_lesson_d10_a_cut_archive_is_taken_back_only_for_what_it_lacks(lab: Lab) -> None:
    """The members before the cut are good evidence, those behind it are withdrawn."""
    refs = sorted(lab.exported()[1] for _ in range(3))
    tape(lab, "a.tar", refs)
    path = lab.home / "tape" / "a.tar"
    os.truncate(path, path.stat().st_size // 3 + 4096)
    outcomes = {one.ref: one for one in pipeline.read_archive(lab.site, budget=1 << 30)}
    assert [outcomes[ref].result for ref in refs] == ["verified", "damaged", "damaged"]
    assert "the tar ends at" in outcomes[refs[1]].reasons[0]
    assert [len(lab.ledger(ref).archives) for ref in refs] == [1, 0, 0]


def test_a_member_that_is_not_there_is_taken_back(lab: Lab) -> None:
    """An archive that lacks the member that its manifest names."""
    refs = [lab.exported()[1] for _ in range(2)]
    tape(lab, "a.tar", refs[:1])
    tell(lab, "a.tar", refs[1:])
    outcomes = {one.ref: one for one in pipeline.read_archive(lab.site, budget=1 << 30)}
    assert (outcomes[refs[0]].result, outcomes[refs[1]].result) == ("verified", "damaged")
    assert "a.tar: no member ./" in outcomes[refs[1]].reasons[0]


def test_a_wrong_offset_is_put_right(lab: Lab) -> None:
    """Where a manifest tells a wrong place, the member is found by its header."""
    _, ref = lab.exported()
    tape(lab, "a.tar", [ref])
    export = lab.ledger(ref).export
    assert export is not None
    _, other = lab.exported()
    tape(lab, "b.tar", [other])
    tell(lab, "b.tar", [other], offset=1024)
    assert {one.result for one in pipeline.read_archive(lab.site, budget=1 << 30)} == {"verified"}
    assert [one.offset for one in lab.ledger(other).archives] == [512]


def test_an_archive_that_shows_nothing_proves_nothing(lab: Lab) -> None:
    """A mount that dropped is an empty directory: no evidence is taken back for it, and a person is told."""
    _, ref = lab.exported()
    tape(lab, "a.tar", [ref])
    (lab.home / "tape" / "a.tar").rename(lab.home / "elsewhere.tar")
    (outcome,) = pipeline.read_archive(lab.site, budget=1 << 30)
    assert outcome.result == "later"
    assert "mounted?" in outcome.reasons[0]
    assert len(lab.ledger(ref).archives) == 1
    (lab.home / "tape").rmdir()
    (outcome,) = pipeline.read_archive(lab.site, budget=1 << 30)
    assert outcome.result == "later"
    assert len(lab.ledger(ref).archives) == 1


def test_an_archive_that_is_missing_among_others_is_taken_back(lab: Lab) -> None:
    """Where others are there, the absence of one is a fact."""
    refs = [lab.exported()[1] for _ in range(2)]
    for ref, path in zip(refs, ("a.tar", "b.tar"), strict=True):
        tape(lab, path, [ref])
    (lab.home / "tape" / "a.tar").unlink()
    outcomes = pipeline.read_archive(lab.site, budget=1 << 30)
    assert {one.ref: (one.result, one.reasons[0]) for one in outcomes} == {
        refs[1]: ("verified", "read in b.tar"),
        refs[0]: ("damaged", "a.tar: no such archive"),
    }


def test_without_an_archive_nothing_is_read(lab: Lab) -> None:
    """Where tape can only be asked by its operators, its word stays a word."""
    _, ref = lab.exported()
    tape(lab, "a.tar", [ref])
    site: Site = replace(lab.site, archive=None)
    assert pipeline.read_archive(site, budget=1 << 30) == []
    assert [one.evidence for one in lab.ledger(ref).archives] == ["name"]


def test_a_manifest_of_ours_carries_checksums(lab: Lab) -> None:
    """What an archiver that hashed tells is evidence of another kind than a name."""
    _, ref = lab.exported()
    export = lab.ledger(ref).export
    assert export is not None
    entry = Entry("a.tar", full(lab, ref), "./x.tar", export.size, export.sha256, 512)
    pipeline.receive(lab.site, dump("job", lab.clock().date(), entries=[entry]), source="archive", name="job")
    pipeline.settle(lab.site)
    (location,) = lab.ledger(ref).archives
    assert (location.evidence, location.offset, location.member, location.read_at) == ("checksum", 512, "./x.tar", None)


# -------------------------------------------------------------------------------------------- what older systems lost


def test_d5_keys_of_older_layouts_are_kept_and_do_no_harm(lab: Lab) -> None:
    """An archiver names objects of both earlier generations beside one of ours: ours is archived, theirs wait."""
    (ref,) = lab.several(1)
    ours = json.loads(lab.manifest([ref]))
    ours["archives"][0]["src_keys"] += [
        "bucket/images/20250106_001/20250109_1423.tar",
        "bucket/images/20250106_001.tar",
    ]
    assert lab.receive(json.dumps(ours).encode()) == ["received", "archived", "parked"]
    assert len(list(lab.catalog.parked())) == 2
    assert lab.state(ref) == "archived"


def test_d12_one_bad_entry_leaves_the_others(lab: Lab) -> None:
    """A known path, an unknown key and a repeated message, in any order: what can be placed is placed."""
    refs = lab.several(3)
    messages = [
        lab.manifest(refs[:2], job="one"),
        lab.manifest(refs[1:], job="two"),
        dump(
            "three", lab.clock().date(), entries=[Entry("images/e/x.tar", f"{lab.store.name}/images/nobody/knows.tar")]
        ),
    ]
    for content in [*messages, *messages]:
        lab.receive(content)
    assert [lab.state(ref) for ref in refs] == ["archived"] * 3
    assert [one.key.rpartition("/")[2] for one in lab.catalog.parked()] == ["knows.tar"]


def test_d14_tape_may_tell_before_the_export_is_noted(lab: Lab) -> None:
    """The message of the archive overtakes the export: it waits, and counts as soon as the key appears."""
    announced = lab.acquire(images=2)
    lab.settle()
    ref = Ref(announced.id, 1)
    key = lab.ledger(ref).event.key
    early = dump("job", lab.clock().date(), entries=[Entry("images/e/2026-05-04.tar", f"{lab.store.name}/{key}")])
    assert lab.receive(early) == ["received", "parked"]
    lab.export()
    assert [one.result for one in pipeline.settle(lab.site)] == ["archived"]
    assert lab.state(ref) == "archived"


def test_d15_nothing_is_forgotten_while_nobody_looks(lab: Lab) -> None:
    """Four hundred manifests lie in the inbox before anybody looks: each is taken in."""
    inbox = Inbox((lab.home / "inbox").as_uri())
    for number in range(400):
        entry = Entry(f"images/e/{number}.tar", f"{lab.store.name}/images/e/{number}.tar")
        (lab.home / "inbox" / f"{number}.json").write_bytes(dump(f"job {number}", lab.clock().date(), entries=[entry]))
    lab.clock.turn(minutes=5)
    pipeline.collect(lab.site, inbox=inbox)
    assert len(list(lab.catalog.parked())) == len(lab.catalog.manifests()) == 400
    assert list((lab.home / "inbox").glob("*.json")) == []


def test_d16_an_invalid_message_stops_nobody(lab: Lab) -> None:
    """Garbage between two good manifests is kept with its reason; the good ones count."""
    refs = lab.several(2)
    came = [lab.receive(content) for content in (lab.manifest(refs[:1]), b"{", lab.manifest(refs[1:], job="next"))]
    assert came == [["received", "archived"], ["quarantined"], ["received", "archived"]]
    (refused,) = lab.catalog.manifests(refused=True)
    assert refused.content == b"{"
    assert refused.reason
