"""Where the systems before this one lost data on the way to tape: a test for each of their failures there.

The numbers are those of the project's list of lessons; each test sets up the situation in which the failure happened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from plateway import pipeline
from plateway.archive import Entry, Inbox, dump, open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import PlatewayError
from plateway.events import Ref
from plateway.findings import Kind
from plateway.keys import MARKER_FILE
from plateway.pipeline import Site
from plateway.store import open_store
from tests.databases import furnish
from tests.lab import Clock, Lab, with_policy


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name in ("bench", "bucket", "tape", "inbox"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)
    furnish(catalog)
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    catalog.close()


@pytest.fixture
def site(lab: Lab) -> Site:
    """The line with a tape in reach."""
    return replace(lab.site, archive=open_archive((lab.home / "tape").as_uri()))


def exported(lab: Lab, count: int, system: str = "prince") -> list[Ref]:
    """Bring events all the way into the bucket, a second apart."""
    refs = []
    for _ in range(count):
        refs.append(lab.exported(system, images=2)[1])
        lab.clock.turn(seconds=1)
    return refs


def manifest(lab: Lab, refs: Iterable[Ref], *, job: str = "job", path: str = "images/e/2026-05-04.tar") -> bytes:
    """Write what the archiver says of some events: names, and nothing else."""
    ledgers = [lab.ledger(ref) for ref in refs]
    keys = [f"{one.export.bucket}/{one.export.key}" for one in ledgers if one.export]
    return dump(job, lab.clock().date(), entries=[Entry(path, key) for key in keys])


def told(lab: Lab, content: bytes, name: str = "manifest.json") -> list[str]:
    """Hand in a manifest, and say what came of it."""
    came = pipeline.receive(lab.site, content, source="test", name=name)
    return [came.result, *(one.result for one in pipeline.settle(lab.site))]


def test_d4_rules_that_delete_what_tape_does_not_have_are_warned_of(
    lab: Lab, bucket: str, endpoint: Endpoint, client: Any
) -> None:
    """The bucket deletes after two weeks by itself, taped or not: it is told before, with how many that is about."""
    lab.store = open_store(f"s3://{bucket}", endpoint)
    exported(lab, 2)
    assert pipeline.policy_warnings(lab.site) == []
    rule = {"ID": "two weeks", "Status": "Enabled", "Filter": {"Prefix": "images/"}, "Expiration": {"Days": 14}}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    (caution,) = pipeline.policy_warnings(lab.site)
    assert (caution.prefix, caution.after, caution.exports) == ("images/", "14d", 2)


def test_d4_a_bucket_copy_goes_only_with_proof_that_tape_has_it(lab: Lab) -> None:
    """Old, exported, named by tape but not proven: it stays, for however long."""
    with_policy(lab, purge=False, bucket_lifespan=timedelta(days=4))
    (named, other) = exported(lab, 2)
    assert told(lab, manifest(lab, [named])) == ["received", "archived"]
    lab.clock.turn(days=99)
    assert {one.result for one in pipeline.expire(lab.site, fraction=1.0)} == {"refused"}
    assert all(lab.store.stat(lab.ledger(ref).event.key) for ref in (named, other))


def test_d5_the_archive_takes_what_the_catalogue_names(lab: Lab, site: Site) -> None:
    """No glob has to guess a layout: every export of the day is on tape, wherever its key puts it."""
    refs = exported(lab, 3)
    lab.clock.turn(days=1)
    pipeline.archive(site)
    assert [lab.state(ref) for ref in refs] == ["archived"] * 3


def test_d5_keys_of_older_layouts_are_kept_and_do_no_harm(lab: Lab) -> None:
    """An archiver names objects of both earlier generations beside one of ours: ours is archived, theirs wait."""
    (ref,) = exported(lab, 1)
    ours = json.loads(manifest(lab, [ref]))
    ours["archives"][0]["src_keys"] += [
        "bucket/images/20250106_001/20250109_1423.tar",
        "bucket/images/20250106_001.tar",
    ]
    assert told(lab, json.dumps(ours).encode()) == ["received", "archived", "parked"]
    assert len(list(lab.catalog.parked())) == 2
    assert lab.state(ref) == "archived"


def test_d6_nothing_archived_is_no_success(lab: Lab) -> None:
    """An archiver that found nothing and says so: no event counts as archived, and the exports are found missing."""
    (ref,) = exported(lab, 1)
    empty = {"job_id": "job", "date": "2026-05-05T00:00:00", "archives": []}
    assert told(lab, json.dumps(empty).encode()) == ["received"]
    lab.clock.turn(days=8)
    found = pipeline.reconcile(lab.site, within=timedelta(days=7))
    assert [(one.ref, one.kind) for one in found.findings] == [(ref, Kind.UNARCHIVED)]
    assert lab.state(ref) == "exported"


def test_d7_every_kind_is_archived(lab: Lab, site: Site) -> None:
    """Videos and overviews go to tape as images do, each below a folder of its own."""
    for number, kind in enumerate(("stitch", "video", "overview")):
        announce(lab, kind, number)
    lab.settle()
    assert {one.result for one in lab.export()} == {"exported", "verified"}
    lab.clock.turn(days=1)
    pipeline.archive(site)
    folders = (
        {one.path.split("/")[0] for one in site.archive.list() if one.path.endswith(".tar")} if site.archive else {}
    )
    assert folders == {"images", "videos", "overview"}
    assert {one.state(lab.clock()).name for one in lab.catalog.ledgers()} == {"archived"}


def announce(lab: Lab, kind: str, number: int) -> None:
    """Announce one event of a kind, as an instrument of the newer dialect does."""
    root = lab.bench / "aretha"
    images = root / f"event-{number}"
    images.mkdir(parents=True)
    (root / "events").mkdir(exist_ok=True)
    (images / "image.tif").write_bytes(bytes([number]) * 999)
    said = {
        "ref_id": str(UUID(int=number + 1)),
        "experiment_id": "e",
        "timestamp": lab.clock().isoformat(),
        "type": kind,
        "system": "aretha",
        "local_path": images.name,
        "img_count": 1,
        "metadata": {},
    }
    (root / "events" / f"{number}.json").write_text(json.dumps(said))


def test_d8_an_archive_that_does_not_work_is_told(lab: Lab, site: Site) -> None:
    """The tape is not mounted: the run says so and nothing counts as archived; mounted again, it does."""
    (ref,) = exported(lab, 1)
    lab.clock.turn(days=1)
    (lab.home / "tape").rename(lab.home / "away")
    outcomes: list[pipeline.Outcome] = []
    with suppress(PlatewayError):
        outcomes = pipeline.archive(site)
    assert {one.result for one in outcomes} <= {"failed", "later"}
    assert lab.state(ref) == "exported"
    (lab.home / "away").rename(lab.home / "tape")
    pipeline.archive(site)
    assert lab.state(ref) == "archived"


def test_d9_late_exports_are_archived_too(lab: Lab, site: Site) -> None:
    """An event of a day whose tar is written already goes into a second one; the first is not touched."""
    announce(lab, "stitch", 0)
    lab.settle()
    lab.export()
    announce(lab, "stitch", 1)
    lab.clock.turn(hours=18)
    pipeline.archive(site)
    (only,) = lab.catalog.ledgers()
    (first,) = only.archives
    before = (lab.home / "tape" / first.path).read_bytes()
    lab.settle()
    lab.export()
    pipeline.archive(site)
    assert [one.archives[0].path for one in lab.catalog.ledgers()] == [first.path, first.path.replace(".tar", ".2.tar")]
    assert (lab.home / "tape" / first.path).read_bytes() == before


def test_d10_half_an_archive_is_none(lab: Lab, site: Site) -> None:
    """A tar that broke off never gets its name, and one that lies there cut is not taken for an archive."""
    (ref,) = exported(lab, 1)
    lab.clock.turn(days=1)
    pipeline.archive(site)
    (location,) = lab.ledger(ref).archives
    whole = lab.home / "tape" / location.path
    (lab.home / "second").mkdir()
    cut = lab.home / "second" / location.path
    cut.parent.mkdir(parents=True)
    cut.write_bytes(whole.read_bytes()[:-3000])
    other = replace(site, archive=open_archive((lab.home / "second").as_uri()))
    (lab.home / "second" / MARKER_FILE).write_bytes(
        (lab.home / "tape" / MARKER_FILE).read_bytes()
    )  # it even says it is the same
    with_policy(lab, purge=False, bucket_lifespan=timedelta(0), grace=timedelta(0))
    assert {one.result for one in pipeline.expire(replace(other, instrument=lab.instrument))} == {"refused"}
    assert lab.store.stat(lab.ledger(ref).event.key) is not None


def test_d11_what_was_written_and_never_told_is_told_by_the_next_run(lab: Lab, site: Site) -> None:
    """The archiver dies between writing its tar and telling of it: the next run finds the tar, and tells."""
    (ref,) = exported(lab, 1)
    lab.clock.turn(days=1)
    pipeline.archive(site)
    written = {one.path: one.size for one in site.archive.list()} if site.archive else {}
    fresh = Catalog(f"sqlite:///{lab.home}/second.db", clock=lab.clock)  # one that never heard of it
    fresh.upgrade()
    forgetful = replace(lab, catalog=fresh)
    forgetful.settle()
    forgetful.export()
    for path in lab.home.glob("tape/manifests/*"):
        path.unlink()
    pipeline.archive(replace(forgetful.site, archive=site.archive))
    assert forgetful.state(ref) == "archived"
    assert ({one.path: one.size for one in site.archive.list()} if site.archive else {}) == written
    fresh.close()


def test_d12_one_bad_entry_leaves_the_others(lab: Lab) -> None:
    """A known path, an unknown key and a repeated message, in any order: what can be placed is placed."""
    refs = exported(lab, 3)
    messages = [
        manifest(lab, refs[:2], job="one"),
        manifest(lab, refs[1:], job="two"),
        dump(
            "three", lab.clock().date(), entries=[Entry("images/e/x.tar", f"{lab.store.name}/images/nobody/knows.tar")]
        ),
    ]
    for content in [*messages, *messages]:
        told(lab, content)
    assert [lab.state(ref) for ref in refs] == ["archived"] * 3
    assert [one.key.rpartition("/")[2] for one in lab.catalog.parked()] == ["knows.tar"]


def test_d14_tape_may_tell_before_the_export_is_noted(lab: Lab) -> None:
    """The message of the archive overtakes the export: it waits, and counts as soon as the key appears."""
    announced = lab.acquire(images=2)
    lab.settle()
    ref = Ref(announced.id, 1)
    key = lab.ledger(ref).event.key
    early = dump("job", lab.clock().date(), entries=[Entry("images/e/2026-05-04.tar", f"{lab.store.name}/{key}")])
    assert told(lab, early) == ["received", "parked"]
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
    refs = exported(lab, 2)
    came = [told(lab, content) for content in (manifest(lab, refs[:1]), b"{", manifest(lab, refs[1:], job="next"))]
    assert came == [["received", "archived"], ["quarantined"], ["received", "archived"]]
    (refused,) = lab.catalog.manifests(refused=True)
    assert refused.content == b"{"
    assert refused.reason


def test_d25_an_archiver_that_falls_silent_is_noticed(lab: Lab) -> None:
    """No message comes any more, by whatever door: what is not on tape in time is found, by name."""
    refs = exported(lab, 3)
    told(lab, manifest(lab, refs[:1]))
    lab.clock.turn(days=6)
    assert pipeline.reconcile(lab.site, within=timedelta(days=7)).findings == ()
    lab.clock.turn(days=2)
    found = pipeline.reconcile(lab.site, within=timedelta(days=7)).findings
    assert {(one.ref, one.kind) for one in found} == {(ref, Kind.UNARCHIVED) for ref in refs[1:]}
