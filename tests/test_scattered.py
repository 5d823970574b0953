"""Bundles whose files are objects of their own: the same catalogue, evidence, proof and reading as of one tar."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plateway import bundle, events, pipeline
from plateway.archive import open_archive
from plateway.bundle import Packing, plan
from plateway.catalog import Catalog, Ref
from plateway.errors import Damaged, NotFound, PlatewayError, Refused, Rejected, Taken, Unavailable, Unsettled
from plateway.folder import File
from plateway.pipeline import Outcome
from plateway.reconcile import Finding
from plateway.scattered import Scattered
from plateway.settings import IMAGES
from plateway.store import Endpoint, Memory, Prefixed, ReadOnly, Stat, Store, open_store
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
        """Let an instrument announce files of any name."""
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
            "img_count": sum(map(events.imaged(IMAGES), files)),
            "metadata": {"laser": 1},
        }
        (bench / "events").mkdir(exist_ok=True)
        (bench / "events" / f"{id_}.json").write_text(json.dumps(said))
        return Ref(id_, 1)

    def exported(self, files: Mapping[str, bytes], *, number: int = 0) -> Ref:
        """Bring files to a verified export."""
        ref = self.announce(files, number=number)
        self.lab.settle()
        assert results(self.lab.export()) == ["exported", "verified"]
        return ref

    def key(self, ref: Ref) -> str:
        return self.lab.ledger(ref).event.key

    def objects(self) -> dict[str, bytes]:
        """Read all that lies in the bucket."""
        return {one.key: b"".join(self.inner.open(one.key)) for one in self.inner.list()}

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
    lab = Lab(tmp_path, Scattered(store), clock, catalog, options={"layout": "files"}, archive=archive)
    yield Site(lab, store)
    lab.catalog.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A laboratory over memory."""
    yield from site_in(tmp_path, Memory())


@pytest.fixture(params=["memory", "directory", "s3", "prefixed"])
def anywhere(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A laboratory over each kind of bucket."""
    store: Store = Memory()
    if request.param == "directory":
        (tmp_path / "bucket").mkdir()
        store = open_store((tmp_path / "bucket").as_uri())
    elif request.param != "memory":
        endpoint: Endpoint = request.getfixturevalue("endpoint")
        part = "/raw" if request.param == "prefixed" else ""
        store = open_store(f"s3://{request.getfixturevalue('bucket')}{part}", endpoint)
    yield from site_in(tmp_path, store)


# ------------------------------------------------------------------------------------------------------------ the way


def test_files_become_objects_of_their_own(anywhere: Site) -> None:
    """Each file is an object of its bytes below the event's id, whatever its name; the manifest tells of all."""
    ref = anywhere.exported(ODD)
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
    ref = anywhere.exported(ODD)
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
    refs = [anywhere.exported(files, number=n) for n, files in enumerate([ODD, {"a.tif": b"a"}, {"a.json": b"{}"}])]
    anywhere.place("images/exp-1/20260504/060000-12345678.tar", b"bundle")
    anywhere.place("notes.txt", b"other")
    listed = {one.key: one for one in anywhere.lab.store.list()}
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
    lab, ref = anywhere.lab, anywhere.exported({**ODD, "big.tif": os.urandom(9 * MIB)})
    export = lab.ledger(ref).export
    assert export is not None and export.evidence == "etag"
    assert pipeline.verify(lab.line, ref, read_back=True).reasons == ("read-back",)
    for name in ("blue é ü 板.tif", "metadata.json", UNDECODABLE, "empty.tif", "sub/plain.tif"):
        assert b"".join(pipeline.cat(lab.line, ref, name)) == ODD[name]
    assert sum(map(len, pipeline.cat(lab.line, ref, "big.tif"))) == 9 * MIB
    assert [one.kind for one in reconciled(lab)] == []
    lab.clock.turn(hours=9)
    with_policy(lab, fraction=1.0)
    assert results(pipeline.purge(lab.line)) == ["trashed", "trashed"]
    lab.clock.turn(hours=2)
    assert results(pipeline.purge(lab.line)) == ["gone"]
    pipeline.restore(lab.line, ref, to=lab.home / "back")
    assert {name: (lab.home / "back" / str(ref) / name).read_bytes() for name in ODD} == ODD
    assert list(anywhere.inner.uploads()) == []


def reconciled(lab: Lab, *, repair: bool = False) -> tuple[Finding, ...]:
    return pipeline.reconcile(lab.line, repair=repair).findings


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


def test_harm_is_found_and_named_by_verify(anywhere: Site) -> None:
    """One file changed, lost or too many, or the manifest: verify says which."""
    refs = [anywhere.exported(FILES, number=number) for number in range(len(HARM))]
    for what, ref in zip(HARM, refs, strict=True):
        named = harm(anywhere, ref, what)
        outcome = pipeline.verify(anywhere.lab.line, ref)
        assert outcome.result == "damaged", what
        assert named.rpartition("/")[2] in outcome.reasons[0], what
        assert str(anywhere.lab.ledger(ref).export.damage).startswith("changed: ")  # type: ignore[union-attr]


def test_harm_is_found_and_named_by_reconcile(anywhere: Site) -> None:
    """So does reconcile, as far as a listing tells: one without ETags only shows what takes other room."""
    refs = [anywhere.exported(FILES, number=number) for number in range(len(HARM) + 1)]
    named = {what: harm(anywhere, ref, what) for what, ref in zip(HARM, refs, strict=False)}
    unseen = set() if all(one.etag for one in anywhere.inner.list()) else UNSEEN
    found = pipeline.reconcile(anywhere.lab.line)
    assert found.counts == {"changed object": len(HARM) - len(unseen)}
    reasons = " ".join(reason for one in found.outcomes for reason in one.reasons)
    assert {what for what, key in named.items() if key.rpartition("/")[2] not in reasons} <= unseen


@pytest.mark.parametrize("what", HARM)
def test_harm_stops_the_purge(site: Site, what: str) -> None:
    """No image leaves the bench while anything about its bundle is other than it was; the refusal says what."""
    ref = site.exported(FILES)
    named = harm(site, ref, what)
    site.lab.clock.turn(hours=9)
    (outcome,) = pipeline.purge(site.lab.line)
    assert outcome.result == "refused"
    assert named in " ".join(outcome.reasons)
    assert site.lab.ledger(ref).purge("raw") is None


@pytest.mark.parametrize("what", HARM)
def test_harm_is_mended_by_sending_the_same_again(site: Site, what: str) -> None:
    """Damaged files are sent again in place where the manifest says what they must be; else all goes to another key."""
    ref = site.exported(FILES)
    harm(site, ref, what)
    pipeline.verify(site.lab.line, ref)
    before = site.objects()
    for _ in range(3):
        site.lab.export()
    assert site.lab.ledger(ref).export.evidence == "etag"  # type: ignore[union-attr]
    assert pipeline.verify(site.lab.line, ref, read_back=True).result == "verified"
    strange = {"extra", "swapped"}
    assert (site.key(ref) == f"images/{ref.id}/metadata.json") == (what not in strange), what
    if what in strange:
        assert before.items() <= site.objects().items()
