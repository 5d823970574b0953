"""Bundles whose files are objects of their own: the same catalogue, evidence, proof and reading as of one tar."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plateway import bundle, instruments, pipeline
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Damaged, Refused, Rejected
from plateway.events import Ref
from plateway.findings import Finding
from plateway.folder import File
from plateway.instruments import IMAGES
from plateway.keys import file_keys, file_name, files_folder, is_marker, layout_of
from plateway.pipeline import Outcome
from plateway.store import Store, open_store
from plateway.store.memory import Memory
from plateway.store.per_file import PerFile
from plateway.store.wrappers import Prefixed
from tests.databases import furnish
from tests.lab import Clock, Lab, with_policy

MIB = 1 << 20
IDS = UUID("8a4b4c3d-9e2f-4a2b-8c4d-5e6f2f1c5d0e")
UNDECODABLE = os.fsdecode(b"\xff\x80.tif")
ODD = {
    "plain.tif": b"plain",
    "well A1 #3.tif": b"blank and hash",
    "blue é ü 板.tif": b"unicode",
    "100%.tif": b"per cent",
    "%41.tif": b"looks escaped",
    "A.tif": b"what it is not",
    "a\\b.tif": b"backslash",
    "new\nline.tif": b"newline",
    UNDECODABLE: b"no UTF-8",
    "sub/plain.tif": b"below",
    "sub/deeper/metadata.json": b'{"sub": 1}',
    "metadata.json": b'{"own": "of the images"}',
    "trace.json": b'{"x": [1, 2], "y": [3, 4]}',
    "trace.csv": b"1,2",
    "n" * 120 + ".tif": b"a long name",
    "empty.tif": b"",
    "bundle.tar": b"no bundle",
}


@dataclass
class Site:
    """A laboratory whose exports are files, and what lies in its bucket as it is."""

    lab: Lab
    inner: Store

    def announce(self, files: Mapping[str, bytes], *, number: int = 0, experiment: str = "exp-1") -> Ref:
        """Make an instrument announce files of any name."""
        id_ = uuid5(IDS, str(number))
        bench = self.lab.bench / "aretha"
        for name, content in files.items():
            path = bench / str(id_) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        said = {
            "ref_id": str(id_),
            "experiment_id": experiment,
            "timestamp": self.lab.clock().isoformat(),
            "type": "stitch",
            "system": "aretha",
            "local_path": str(id_),
            "img_count": sum(map(instruments.image_matcher(IMAGES), files)),
            "metadata": {"laser": 1},
        }
        (bench / "events").mkdir(exist_ok=True)
        (bench / "events" / f"{id_}.json").write_text(json.dumps(said))
        return Ref(id_, 1)

    def exported(self, *events: Mapping[str, bytes]) -> list[Ref]:
        """Export and verify the files of some events."""
        refs = [self.announce(files, number=number) for number, files in enumerate(events)]
        self.lab.settle()
        assert results(self.lab.export()) == ["exported"] * len(refs) + ["verified"] * len(refs)
        return refs

    def key(self, ref: Ref) -> str:
        return self.lab.ledger(ref).event.key

    def objects(self) -> dict[str, bytes]:
        """Read all that lies in the bucket."""
        return {one.key: b"".join(self.inner.open(one.key)) for one in self.inner.list() if not is_marker(one.key)}

    def place(self, key: str, content: bytes) -> None:
        """Put an object behind everybody's back."""
        self.inner.put(key, [content], size=len(content), part_size=8 * MIB, metadata={})


def results(outcomes: Sequence[Outcome]) -> list[str]:
    return [one.result for one in outcomes]


def site_in(tmp_path: Path, store: Store) -> Iterator[Site]:
    for name in ("bench", "tape", "staging"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    archive = open_archive((tmp_path / "tape").as_uri())
    lab = Lab(tmp_path, PerFile(store), clock, catalog, options={"layout": "files"}, archive=archive)
    yield Site(lab, store)
    lab.catalog.close()


class Lasting(Memory):
    """A bucket in this process that stands for one that lasts."""

    durable = True


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A laboratory over memory, below a prefix."""
    yield from site_in(tmp_path, Prefixed(Lasting(), "raw/"))


@pytest.fixture(params=["directory", "s3"])
def anywhere(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A laboratory over a directory, and over S3."""
    if request.param == "directory":
        (tmp_path / "bucket").mkdir()
        yield from site_in(tmp_path, open_store((tmp_path / "bucket").as_uri()))
        return
    endpoint: Endpoint = request.getfixturevalue("endpoint")
    yield from site_in(tmp_path, open_store(f"s3://{request.getfixturevalue('bucket')}", endpoint))


# ------------------------------------------------------------------------------------------------------------ the way


def test_files_become_objects_of_their_own(anywhere: Site) -> None:
    """Each file is an object of its bytes below the event's id, whatever its name; the manifest tells of all."""
    (ref,) = anywhere.exported(ODD)
    objects = anywhere.objects()
    told = json.loads(objects[f"images/{ref.id}/metadata.json"])
    home = {one.get("source") or one["name"]: one for one in told["files"]}
    assert {name: objects[one["key"]] for name, one in home.items()} == ODD
    assert len(objects) == len(ODD) + 1
    assert home["plain.tif"]["key"] == f"images/{ref.id}/plain.tif"
    assert home["sub/plain.tif"]["key"] == f"images/{ref.id}/sub/plain.tif"
    assert home["trace.json"]["key"] == f"waveforms/{ref.id}/trace.json"
    assert home["metadata.json"]["key"] == f"waveforms/{ref.id}/source-metadata.json"
    assert home["%41.tif"]["key"] == f"images/{ref.id}/%2541.tif"
    assert home["100%.tif"]["key"] == f"images/{ref.id}/100%.tif"
    assert home[UNDECODABLE]["key"] == f"images/{ref.id}/%FF%80.tif"
    assert told["ref_id"] == str(ref.id)


def test_the_tar_that_they_make_is_read_as_if_it_lay_there(anywhere: Site) -> None:
    """Whole it is a tar of all files that proves itself; any range of it is that range; its end tells the manifest."""
    (ref,) = anywhere.exported(ODD)
    key, store, export = anywhere.key(ref), anywhere.lab.store, anywhere.lab.ledger(ref).export
    assert export is not None
    whole = b"".join(store.open(key))
    assert (len(whole), hashlib.sha256(whole).hexdigest()) == (export.size, export.sha256)
    assert bundle.walk([whole]).sha256 == export.sha256
    with tarfile.open(fileobj=io.BytesIO(whole), encoding="utf-8", errors="surrogateescape") as tar:
        names = {member.name.removeprefix("./") for member in tar}
    assert names == {"source-metadata.json" if name == "metadata.json" else name for name in ODD} | {"metadata.json"}
    for start, length in [(0, 1), (511, 3), (700, 4000), (len(whole) - 3, None), (-700, None), (-9, 4), (10**9, 5)]:
        expected = whole[start:] if length is None else whole[start:][:length]
        assert b"".join(store.open(key, start=start, length=length)) == expected
    assert bundle.tail(lambda size: b"".join(store.open(key, start=-size))).size == export.manifest_size


def test_what_is_listed_is_what_one_sees_when_one_looks(anywhere: Site) -> None:
    """A listing has one object for each export, of the size that was sent; with the ETag, where listings tell any."""
    refs = anywhere.exported(ODD, {"a.tif": b"a"}, {"a.json": b"{}"})
    anywhere.place("images/exp-1/20260504/060000-12345678.tar", b"bundle")
    anywhere.place("notes.txt", b"other")
    listed = {one.key: one for one in anywhere.lab.store.list() if not is_marker(one.key)}
    assert listed.keys() == {*map(anywhere.key, refs), "images/exp-1/20260504/060000-12345678.tar", "notes.txt"}
    for ref in refs:
        one, export = anywhere.lab.store.stat(anywhere.key(ref)), anywhere.lab.ledger(ref).export
        assert one is not None and export is not None
        assert (one.size, one.etag) == (export.size, export.etag)
        assert (listed[one.key].size, listed[one.key].etag or one.etag) == (one.size, one.etag)
        assert [found.key for found in anywhere.lab.store.list(one.key[:20])] == [one.key]
        assert [found.key for found in anywhere.lab.store.list(one.key)] == [one.key]
    assert [one.key for one in anywhere.lab.store.list("waveforms/")] == []
    assert {one.key for one in anywhere.lab.store.list("i")} == listed.keys() - {"notes.txt"}


def test_evidence_purge_and_reading(anywhere: Site) -> None:
    """Verified by looking, read back, read one by one, purged with proof and restored; nothing is found wrong."""
    lab, (ref,) = anywhere.lab, anywhere.exported({**ODD, "big.tif": os.urandom(9 * MIB)})
    export = lab.ledger(ref).export
    assert export is not None and export.evidence == "etag"
    assert pipeline.verify(lab.site, ref, read_back=True).reasons == ("read-back",)
    for name in ("blue é ü 板.tif", "metadata.json", UNDECODABLE, "empty.tif", "sub/plain.tif"):
        assert b"".join(pipeline.cat(lab.site, ref, name)) == ODD[name]
    assert sum(map(len, pipeline.cat(lab.site, ref, "big.tif"))) == 9 * MIB
    assert [one.kind for one in reconciled(lab)] == []
    lab.clock.turn(hours=9)
    with_policy(lab, fraction=1.0)
    assert results(pipeline.purge(lab.site)) == ["trashed"]
    lab.clock.turn(hours=2)
    assert results(pipeline.purge(lab.site)) == ["gone"]
    pipeline.restore(lab.site, ref, to=lab.home / "back")
    assert {name: (lab.home / "back" / str(ref) / name).read_bytes() for name in ODD} == ODD
    assert list(anywhere.inner.uploads()) == []


def reconciled(lab: Lab, *, repair: bool = False) -> tuple[Finding, ...]:
    return pipeline.reconcile(lab.site, repair=repair).findings


# ------------------------------------------------------------------------------------------------------------- damage

FILES = {"a.tif": b"aaaa", "b.tif": b"bbbb", "w.json": b"[1]"}


def harm(site: Site, ref: Ref, what: str) -> str:
    """Do a bundle some harm; return the key that whoever finds it must name."""
    images = f"images/{ref.id}"
    match what:
        case "changed":
            site.place(f"{images}/b.tif", b"BBBB")
            return f"{images}/b.tif"
        case "cut":
            site.place(f"{images}/b.tif", b"bb")
            return f"{images}/b.tif"
        case "lost":
            site.inner.delete(f"{images}/b.tif")
            return f"{images}/b.tif"
        case "waveform lost":
            site.inner.delete(f"waveforms/{ref.id}/w.json")
            return f"waveforms/{ref.id}/w.json"
        case "swapped":  # the same bytes are there, at another key
            site.inner.delete(f"{images}/b.tif")
            site.place(f"{images}/c.tif", b"bbbb")
            return f"{images}/b.tif"
        case "extra":
            site.place(f"{images}/c.tif", b"cccc")
            return f"{images}/c.tif"
        case "manifest lost":
            site.inner.delete(f"{images}/metadata.json")
        case "manifest changed":
            content = site.objects()[f"{images}/metadata.json"]
            site.place(f"{images}/metadata.json", content.replace(b"laser", b"LASER"))
    return f"{images}/metadata.json"


HARM = ["changed", "cut", "lost", "waveform lost", "swapped", "extra", "manifest lost", "manifest changed"]
UNSEEN = {"changed", "cut", "swapped", "manifest changed"}  # where a listing tells no ETags


def harmed(site: Site) -> dict[str, tuple[Ref, str]]:
    """Do each harm to a bundle of its own; say to which, and what whoever finds it must name."""
    refs = site.exported(*[FILES] * (len(HARM) + 1))
    keys = {what: (ref, harm(site, ref, what)) for what, ref in zip(HARM, refs, strict=False)}
    return {what: (ref, key.rpartition("/")[2]) for what, (ref, key) in keys.items()}


def test_harm_is_found_and_named_by_reconcile(anywhere: Site) -> None:
    """So does reconcile, as far as a listing tells: one without ETags only shows what takes other room."""
    bad = harmed(anywhere)
    unseen = set() if all(one.etag for one in anywhere.inner.list()) else UNSEEN
    found = pipeline.reconcile(anywhere.lab.site)
    assert found.counts == {"changed object": len(HARM) - len(unseen)}
    reasons = " ".join(reason for one in found.outcomes for reason in one.reasons)
    assert {what for what, (ref, name) in bad.items() if f"{ref.id}" not in reasons} == unseen
    assert {what for what, (_, name) in bad.items() if name not in reasons} <= unseen


def test_harm_stops_the_purge(site: Site) -> None:
    """No image leaves the bench while anything about its bundle is other than it was; the refusal says what."""
    bad = harmed(site)
    site.lab.clock.turn(hours=9)
    with_policy(site.lab, fraction=1.0)
    outcomes = {one.ref: one for one in pipeline.purge(site.lab.site) if one.ref}
    for what, (ref, name) in bad.items():
        assert outcomes[ref].result == "damaged", what
        assert name in " ".join(outcomes[ref].reasons), what
        assert site.lab.ledger(ref).purge("raw") is None
    assert sum(one.result == "trashed" for one in outcomes.values()) == 1


def test_harm_is_named_by_verify_and_mended_by_sending_again(site: Site) -> None:
    """Damaged files are sent again in place where the manifest says what they must be; else all goes to another key."""
    bad = harmed(site)
    for what, (ref, name) in bad.items():
        outcome = pipeline.verify(site.lab.site, ref)
        assert outcome.result == "damaged", what
        assert outcome.reasons[0].startswith("changed: "), what
        assert name in outcome.reasons[0], what
    before = site.objects()
    for _ in range(3):
        site.lab.export()
    for what, (ref, _) in bad.items():
        assert pipeline.verify(site.lab.site, ref, read_back=True).result == "verified"
        in_place = site.key(ref) == f"images/{ref.id}/metadata.json"
        assert in_place == (what not in {"extra", "swapped"}), what
        if not in_place:
            kept = {key: content for key, content in before.items() if f"/{ref.id}/" in key}
            assert kept.items() <= site.objects().items()


@pytest.mark.parametrize("layout", ["files", "bundle"])
def test_uploads_in_parts_are_mended(endpoint: Endpoint, bucket: str, tmp_path: Path, layout: str) -> None:
    """What changed is sent again, what is right is given up at its end, and no upload stays open."""
    store = open_store(f"s3://{bucket}", endpoint)
    for site in site_in(tmp_path, store):
        site.lab.options = {"layout": layout}
        (ref,) = site.exported({name: os.urandom(9 * MIB) for name in ("a.tif", "b.tif")})
        right = site.objects()
        key = site.key(ref) if layout == "bundle" else f"images/{ref.id}/b.tif"
        site.place(key, bytes(len(right[key])))
        assert pipeline.verify(site.lab.site, ref).result == "damaged"
        assert results(site.lab.export()) == ["exported", "verified"]
        assert site.objects() == right
        store.delete(site.key(ref))
        assert pipeline.verify(site.lab.site, ref).result == "damaged"
        assert results(site.lab.export()) == ["exported", "verified"]
        assert site.objects() == right
        assert list(store.uploads()) == []


def test_what_clients_leave_to_remember_a_folder_is_no_harm(
    endpoint: Endpoint, bucket: str, client: Any, tmp_path: Path
) -> None:
    """An empty object whose key ends in a slash is not one of the event's files, and does not count as one too many."""
    for site in site_in(tmp_path, open_store(f"s3://{bucket}", endpoint)):
        (ref,) = site.exported(FILES)
        client.put_object(Bucket=bucket, Key=f"images/{ref.id}/", Body=b"")
        assert pipeline.verify(site.lab.site, ref).result == "verified"
        assert {one.kind.value for one in reconciled(site.lab)} <= {"dark object"}


# ------------------------------------------------------------------------------------------------------------ cut off


class Killed(BaseException):
    """Nobody catches this."""


class Mortal:
    """A store whose user is killed before the n-th change."""

    def __init__(self, store: Store, *, at: int) -> None:
        self.name, self.durable = store.name, store.durable
        self.open, self.stat, self.list, self.sign = store.open, store.stat, store.list, store.sign
        self.uploads, self.abort = store.uploads, store.abort
        self.tags, self.lifecycle, self.lock = store.tags, store.lifecycle, store.lock
        self._store, self._left = store, itertools.count(at, -1)

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        if not key.startswith("plateway-site/"):  # the marker of the site is no part of an event
            self._change()
        return self._store.put(key, chunks, size=size, part_size=part_size, metadata=metadata)

    def delete_all(self, keys: Sequence[str]) -> dict[str, str]:
        for key in keys:
            self.delete(key)
        return {}

    def delete(self, key: str) -> None:
        self._change()
        self._store.delete(key)

    def _change(self) -> None:
        if next(self._left) <= 0:
            raise Killed


@pytest.mark.parametrize("at", range(len(FILES) + 1))
def test_an_export_that_is_killed_heals(site: Site, at: int) -> None:
    """Whenever it dies nothing is recorded and no manifest is there; the next one completes what arrived."""
    ref = site.announce(FILES)
    site.lab.settle()
    site.lab.store = PerFile(Mortal(site.inner, at=at))
    with pytest.raises(Killed):
        site.lab.export()
    assert site.lab.ledger(ref).export is None
    assert site.lab.state(ref) == "ready"
    there = site.objects()
    assert f"images/{ref.id}/metadata.json" not in there
    site.lab.store = PerFile(Once(site.inner))
    assert results(site.lab.export()) == ["exported", "verified"]
    assert there.items() <= site.objects().items()
    assert len(site.objects()) == len(FILES) + 1


class Once(Mortal):
    """A store in which no key is written twice."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, at=1 << 30)

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        assert self._store.stat(key) is None, key
        return super().put(key, chunks, size=size, part_size=part_size, metadata=metadata)


def test_what_a_dead_export_left_is_dark_and_not_adopted(anywhere: Site) -> None:
    """Files without a manifest are one dark object at its key: sent again where the images are here, else left."""
    ref, stranger = anywhere.announce(FILES), "0b0e6d2c-8a4b-4c3d-9e2f-1a2b3c4d5e6f"
    lab = anywhere.lab
    lab.settle()
    anywhere.place(f"images/{ref.id}/a.tif", FILES["a.tif"])
    anywhere.place(f"images/{stranger}/x.tif", b"x")
    anywhere.place(f"waveforms/{stranger}/x.json", b"{}")
    keys = {f"images/{one}/metadata.json" for one in (str(ref.id), stranger)}
    assert {(one.kind.value, one.key) for one in reconciled(lab)} == {("dark object", key) for key in keys}
    lab.clock.turn(days=2)
    found = reconciled(lab, repair=True)
    assert {one.key: one.done for one in found}[f"images/{ref.id}/metadata.json"] == "exported, verified"
    assert [one.key for one in reconciled(lab, repair=True)] == [f"images/{stranger}/metadata.json"]
    assert anywhere.objects()[f"images/{stranger}/x.tif"] == b"x"


def test_nothing_is_dark_while_it_is_being_exported(site: Site) -> None:
    """What lies there of an event that somebody holds is no finding."""
    ref = site.announce(FILES)
    site.lab.settle()
    site.place(f"images/{ref.id}/a.tif", FILES["a.tif"])
    site.lab.catalog.lease(ref, owner="other", ttl=timedelta(hours=1), now=site.lab.clock())
    assert reconciled(site.lab) == ()


def test_a_complete_upload_that_nobody_noted_is_noted(site: Site) -> None:
    """Killed between the manifest and the catalogue: the next run sees that all is there, and sends nothing."""
    (ref,) = site.exported(FILES)
    other = Catalog(f"sqlite:///{site.lab.home / 'other.db'}", clock=site.lab.clock)
    furnish(other)
    site.lab.catalog.close()
    site.lab.catalog = other
    site.lab.settle()
    site.lab.store = PerFile(Mortal(site.inner, at=0))
    assert results(site.lab.export()) == ["exported", "verified"]
    assert site.key(ref) == f"images/{ref.id}/metadata.json"


def test_a_complete_bundle_that_nobody_recorded_is_adopted(site: Site) -> None:
    """Where its images are gone, reconcile reads it whole and takes it in, a day after it was first seen."""
    (ref,) = site.exported(FILES)
    old = site.lab.ledger(ref).export
    own = site.lab.site.places.site
    site.lab.catalog.close()
    site.lab.catalog = Catalog(f"sqlite:///{site.lab.home / 'other.db'}", clock=site.lab.clock)
    furnish(site.lab.catalog)
    site.lab.catalog.take_site(own, now=site.lab.clock())
    shutil.rmtree(site.lab.bench / "aretha" / str(ref.id))
    (site.lab.bench / "aretha" / "events" / f"{ref.id}.json").unlink()
    assert [one.done for one in reconciled(site.lab, repair=True)] == ["waits"]
    site.lab.clock.turn(days=1, hours=1)
    assert [one.done for one in reconciled(site.lab, repair=True) if one.kind == "dark object"] == ["adopted"]
    new = site.lab.ledger(ref).export
    assert old is not None and new is not None
    assert (new.sha256, new.etag, new.evidence) == (old.sha256, old.etag, "read-back")


# ------------------------------------------------------------------------------------------------------- other bytes


def test_other_bytes_are_never_overwritten(anywhere: Site) -> None:
    """Where something else lies at a file's key, or beside the files, the event goes to a key that is free."""
    lab, files = anywhere.lab, {**FILES, "big.tif": os.urandom(9 * MIB)}
    refs = [anywhere.announce(files, number=number) for number in range(3)]
    lab.settle()
    strange = {
        f"images/{refs[0].id}/b.tif": b"other",
        f"images/{refs[1].id}/big.tif": bytes(9 * MIB),
        f"images/{refs[2].id}/z.tif": b"beside",
    }
    for key, content in strange.items():
        anywhere.place(key, content)
    assert results(lab.export()) == ["conflict"] * 3
    assert results(lab.export()) == ["exported"] * 3 + ["verified"] * 3
    assert [anywhere.key(ref) for ref in refs] == [f"images/{ref.id}-r2/metadata.json" for ref in refs]
    assert strange.items() <= anywhere.objects().items()
    assert {one.kind.value for one in reconciled(lab)} == {"dark object"}


def test_the_bundle_of_another_catalogue_is_not_added_to(site: Site) -> None:
    """A complete bundle of other content at an event's key stays exactly as it is; ours goes elsewhere."""
    (ref,) = site.exported(FILES)
    before = site.objects()
    other = Catalog(f"sqlite:///{site.lab.home / 'other.db'}", clock=site.lab.clock)
    furnish(other)
    site.lab.catalog.close()
    site.lab.catalog = other
    (site.lab.bench / "aretha" / str(ref.id) / "w.json").unlink()
    (site.lab.bench / "aretha" / str(ref.id) / "v.json").write_bytes(b"[2]")
    site.lab.settle()
    assert results(site.lab.export()) == ["conflict"]
    assert site.objects() == before
    assert results(site.lab.export()) == ["exported", "verified"]
    assert before.items() <= site.objects().items()
    assert site.key(ref) == f"images/{ref.id}-r2/metadata.json"


def test_changed_images_become_a_revision(site: Site) -> None:
    """Other images under the same announcement, sent by force, get a key of their own and change nothing else."""
    (ref,) = site.exported(FILES)
    before = site.objects()
    (site.lab.bench / "aretha" / str(ref.id) / "b.tif").write_bytes(b"new!")
    assert pipeline.export(site.lab.site, ref, force=True).result == "conflict"
    assert site.objects() == before
    site.lab.settle()
    assert results(site.lab.export()) == ["exported", "verified"]
    assert site.key(Ref(ref.id, 2)) == f"images/{ref.id}-r2/metadata.json"
    assert before.items() <= site.objects().items()
    assert reconciled(site.lab) == ()


def test_a_revision_finds_a_key_although_a_stranger_took_the_next(site: Site) -> None:
    """An event whose first key was taken is at -r2; its second revision goes to -r3."""
    ref = site.announce(FILES)
    site.lab.settle()
    site.place(f"images/{ref.id}/a.tif", b"strange")
    assert results(site.lab.export() + site.lab.export()) == ["conflict", "exported", "verified"]
    (site.lab.bench / "aretha" / str(ref.id) / "b.tif").write_bytes(b"new!")
    assert pipeline.export(site.lab.site, ref, force=True).result == "conflict"
    assert site.key(Ref(ref.id, 2)) == f"images/{ref.id}-r3/metadata.json"


# -------------------------------------------------------------------------------------------------- tape, and leaving


def taped(site: Site) -> None:
    """Make the archive take what was exported."""
    site.lab.clock.turn(days=1)
    assert "archived" in results(pipeline.archive(site.lab.site))


def keeping(site: Site, days: int) -> None:
    with_policy(site.lab, purge=False, bucket_lifespan=timedelta(days=days), fraction=1.0)


def expired(site: Site) -> list[str]:
    return results(pipeline.expire(site.lab.site, fraction=1.0))


def test_tape_gets_a_tar_and_gives_back_what_the_bucket_lost(site: Site) -> None:
    """In the archive an export is a tar of its event's name; images that the bucket lost are read there."""
    refs = site.exported(FILES, FILES)
    taped(site)
    (path,) = (one.path for one in site.lab.ledger(refs[0]).archives)
    assert site.lab.archive is not None
    names = {one.name for one in site.lab.archive.members(path)}
    assert names == {f"./{ref.id}.tar" for ref in refs}
    harm(site, refs[0], "lost")
    assert b"".join(pipeline.cat(site.lab.site, refs[0], "b.tif")) == FILES["b.tif"]
    pipeline.restore(site.lab.site, refs[0], to=site.lab.home / "back")
    assert (site.lab.home / "back" / str(refs[0]) / "b.tif").read_bytes() == FILES["b.tif"]


def test_a_bucket_copy_expires_with_all_its_files(anywhere: Site) -> None:
    """What tape has with proof goes, file by file and the manifest last; what merely looks alike stays."""
    (ref,) = anywhere.exported(FILES)
    (anywhere.lab.bench / "aretha" / str(ref.id) / "b.tif").write_bytes(b"new!")
    pipeline.export(anywhere.lab.site, ref, force=True)
    anywhere.lab.settle()
    assert results(anywhere.lab.export()) == ["exported", "verified"]
    taped(anywhere)
    neighbours = {f"images/{ref.id}-r22/a.tif": b"1", f"images/{ref.id}0/a.tif": b"2", f"waveforms/{ref.id}-": b"3"}
    for key, content in neighbours.items():
        anywhere.place(key, content)
    second = {key: content for key, content in anywhere.objects().items() if f"{ref.id}-r2/" in key}
    assert len(second) == len(FILES) + 1
    site = anywhere.lab.site
    site.store.delete(anywhere.key(ref))
    assert anywhere.objects() == second | neighbours
    keeping(anywhere, 7)
    anywhere.lab.clock.turn(days=8)
    pipeline.verify(site, ref)
    assert expired(anywhere).count("marked") == 1, pipeline.expire(site)
    anywhere.lab.clock.turn(hours=2)
    assert "expired" in expired(anywhere)
    assert anywhere.objects() == neighbours


@pytest.mark.parametrize("at", range(len(FILES) + 1))
def test_an_expiry_that_is_killed_goes_on(site: Site, at: int) -> None:
    """Whatever was deleted already, the next run proves tape again and deletes the rest; nothing is called damaged."""
    (ref,) = site.exported(FILES)
    taped(site)
    keeping(site, 7)
    site.lab.clock.turn(days=8)
    assert expired(site) == ["marked"]
    site.lab.clock.turn(hours=2)
    site.lab.store = PerFile(Mortal(site.inner, at=at))
    with pytest.raises(Killed):
        expired(site)
    assert f"images/{ref.id}/metadata.json" in site.objects()
    site.lab.store = PerFile(site.inner)
    assert expired(site) == ["expired"]
    assert site.objects() == {}
    assert site.lab.ledger(ref).expired
    assert b"".join(pipeline.cat(site.lab.site, ref, "b.tif")) == FILES["b.tif"]


def test_an_expiry_that_was_cut_off_stops_where_tape_lost_its_copy(site: Site) -> None:
    """What is left in the bucket stays, as far as it goes, when tape is other than it was."""
    (ref,) = site.exported(FILES)
    taped(site)
    keeping(site, 7)
    site.lab.clock.turn(days=8)
    expired(site)
    site.lab.clock.turn(hours=2)
    site.lab.store = PerFile(Mortal(site.inner, at=1))
    with pytest.raises(Killed):
        expired(site)
    site.lab.store = PerFile(site.inner)
    left = site.objects()
    (path,) = (one.path for one in site.lab.ledger(ref).archives)
    (site.lab.home / "tape" / path).write_bytes(b"")
    assert "expired" not in expired(site)
    assert site.objects() == left


def test_the_catalogue_is_filled_again_from_the_bucket_alone(anywhere: Site) -> None:
    """Events, keys, exports with their ETags and manifests are as before; then nothing is found wrong."""
    lab = anywhere.lab
    refs = anywhere.exported(ODD, FILES)
    before = [lab.ledger(ref) for ref in refs]
    anywhere.place("images/0b0e6d2c-8a4b-4c3d-9e2f-1a2b3c4d5e6f/x.tif", b"left by somebody")
    lab.catalog.close()
    lab.catalog = Catalog(f"sqlite:///{lab.home / 'new.db'}", clock=lab.clock)
    furnish(lab.catalog)
    rebuilt = pipeline.rebuild(lab.site)
    assert (rebuilt.events, len(rebuilt.refused)) == (2, 1)
    for ref, old in zip(refs, before, strict=True):
        new = lab.ledger(ref)
        assert old.export is not None and new.export is not None
        facts = {"key", "size", "sha256", "etag", "part_size", "manifest_sha256", "manifest_offset", "member_count"}
        assert new.export.model_dump(include=facts) == old.export.model_dump(include=facts)
        assert (new.event.digest, new.event.path) == (old.event.digest, old.event.path)
    lab.settle()
    assert lab.export() == []
    assert {one.kind.value for one in reconciled(lab)} == {"dark object"}


def test_the_catalogue_is_filled_again_from_tape(site: Site) -> None:
    """A bundle that only tape has becomes an export again, expired in the bucket."""
    (ref,) = site.exported(FILES)
    taped(site)
    site.lab.store.delete(site.key(ref))
    site.place("notes.txt", b"the bucket is there")
    site.lab.catalog.close()
    site.lab.catalog = Catalog(f"sqlite:///{site.lab.home / 'new.db'}", clock=site.lab.clock)
    furnish(site.lab.catalog)
    assert pipeline.rebuild(site.lab.site).from_archive == 1
    assert b"".join(pipeline.cat(site.lab.site, ref, "a.tif")) == FILES["a.tif"]


# ----------------------------------------------------------------------------------------------------------- the store


def test_only_what_was_packed_for_a_place_goes_there(site: Site) -> None:
    """Bytes from elsewhere, and a bundle for another key, are refused before anything is written."""
    files = [File("a.tif", 1, 0, 1, 1)]
    for key in ("images/exp/1.tar", f"images/{IDS}/metadata.json", None):
        keys = file_keys(key, instruments.image_matcher(IMAGES)) if key and files_folder(key) else None
        packing = bundle.Packing(bundle.plan(files, {}, keys=keys), lambda file: iter([b"a"]))
        size = packing.layout.size
        with pytest.raises(Rejected):
            site.lab.store.put(f"images/{IDS}-r2/metadata.json", packing, size=size, part_size=8 * MIB, metadata={})
    assert site.objects() == {}


def test_names_too_long_for_a_key_are_refused_before_anything_is_sent(site: Site) -> None:
    """A key has 1,024 bytes at most, and what it cannot hold takes three for one."""
    ref = site.announce({"a.tif": b"a", f"{'/'.join(['d' * 250] * 4)}/b.tif": b"b"})
    site.lab.settle()
    with pytest.raises(Rejected, match="not a plain key"):
        pipeline.export(site.lab.site, ref)
    assert site.objects() == {}


def test_there_is_no_link_to_a_tar_that_is_none(site: Site) -> None:
    """Whoever asks for a link would get the manifest where a tar is expected; there is none, and one to each file."""
    (ref,) = site.exported(FILES)
    with pytest.raises(Refused, match="objects of their own"):
        site.lab.store.sign(site.key(ref), expires=timedelta(minutes=1))


def test_a_manifest_that_names_what_is_not_its_own_is_damage(site: Site) -> None:
    """A key of another event's files, whatever wrote it, is neither read nor deleted."""
    one, other = site.exported(FILES, FILES)
    key = site.key(one)
    content = site.objects()[key].replace(f"images/{one.id}/a.tif".encode(), f"images/{other.id}/a.tif".encode())
    site.place(key, content)
    before = site.objects()
    for act in (site.lab.store.open, site.lab.store.delete):
        with pytest.raises(Damaged, match="beside it"):
            act(key)
    assert site.objects() == before


def test_uploads_of_files_are_those_of_their_bundle(
    endpoint: Endpoint, bucket: str, client: Any, tmp_path: Path
) -> None:
    """What a killed upload of a large file left is shown at its bundle's key, and a sweep ends it there."""
    for site in site_in(tmp_path, open_store(f"s3://{bucket}", endpoint)):
        ref = site.announce(FILES)
        site.lab.settle()
        client.create_multipart_upload(Bucket=bucket, Key=f"images/{ref.id}/a.tif")
        client.create_multipart_upload(Bucket=bucket, Key=f"images/{ref.id}/20260504/060000-12345678.tar")
        keys = {site.key(ref), f"images/{ref.id}/20260504/060000-12345678.tar"}
        assert {one.key for one in site.lab.store.uploads()} == keys
        later = datetime.now(UTC) + timedelta(days=1)
        assert [one.ref for one in pipeline.sweep(site.lab.site, now=later)] == [ref]
        (left,) = site.lab.store.uploads()
        site.lab.store.abort(left)
        assert list(site.inner.uploads()) == []


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
) | st.binary(min_size=1, max_size=20).map(lambda name: os.fsdecode(name.replace(b"/", b"%").replace(b"\0", b"%")))


@given(st.lists(names, unique=True, max_size=6))
def test_keys_tell_names_apart(given_names: list[str]) -> None:
    """No two names share a key, and each key says its name again."""
    place = file_keys(f"images/{IDS}/metadata.json", instruments.image_matcher(IMAGES))
    keys = {name: place(name) for name in given_names if name != "metadata.json"}
    assert len(set(keys.values())) == len(keys)
    assert [file_name(key) for key in keys.values()] == list(keys)
    assert f"images/{IDS}/metadata.json" not in keys.values()


# ------------------------------------------------------------------------------------------------------------- the key


def test_the_key_tells_the_layout_from_registration_on(site: Site) -> None:
    """An instrument that is set otherwise changes what is announced from then on, not what is known already."""
    refs = [site.announce(FILES)]
    site.lab.settle()
    site.lab.options = {"layout": "bundle"}
    refs.append(site.announce(FILES, number=1))
    site.lab.settle()
    assert results(site.lab.export()) == ["exported", "exported", "verified", "verified"]
    assert [layout_of(site.key(ref)) for ref in refs] == ["files", "bundle"]
    assert len(site.objects()) == len(FILES) + 1 + 1
    assert reconciled(site.lab) == ()


def test_an_experiment_that_is_called_like_an_event(site: Site) -> None:
    """Its bundles lie in the same folder as the event's files, and neither is taken for the other's."""
    ref = site.announce(FILES)
    site.lab.settle()
    site.lab.options = {"layout": "bundle"}
    other = site.announce(FILES, number=1, experiment=str(ref.id))
    site.lab.settle()
    assert results(site.lab.export()) == ["exported", "exported", "verified", "verified"]
    assert site.key(other).startswith(f"images/{ref.id}/")
    assert reconciled(site.lab) == ()
    site.lab.store.delete(site.key(ref))
    assert list(site.objects()) == [site.key(other)]


def test_memory_does_not_grow_with_a_bundle(site: Site) -> None:
    """Of many files a few are held at a time, however slowly the store takes them."""
    files = {f"{number:03}.tif": bytes([number]) * MIB for number in range(96)}
    ref = site.announce(files)
    site.lab.settle()
    site.lab.store = PerFile(Sink())
    tracemalloc.start()
    assert pipeline.export(site.lab.site, ref).result == "exported"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * MIB


class Sink(Memory):
    """A store that keeps sizes and forgets the bytes."""

    def put(
        self, key: str, chunks: Iterable[bytes], *, size: int, part_size: int, metadata: Mapping[str, str]
    ) -> str | None:
        time.sleep(0.005)
        assert sum(map(len, chunks)) == size
        return None
