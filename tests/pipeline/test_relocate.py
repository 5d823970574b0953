"""Exports follow an endpoint that moved: each is proven at its new address, and nothing is believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plateway import pipeline
from plateway.errors import Conflict, Misconfigured
from plateway.pipeline.context import BucketRef
from plateway.records import Export
from plateway.store.memory import Memory
from tests.pipeline.test_several_buckets import HERE, THERE, Away, Lasting, Site, export, found, put, site, whole


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Site]:
    """Two buckets in memory, both called raw."""
    made = site(tmp_path, Lasting("raw"), Lasting("raw"))
    yield made
    made.catalog.close()


def moved(lab: Site) -> Site:
    """Move the second endpoint to another address."""
    lab.places = {"second": BucketRef(lab.second, "http://moved:3")}
    return lab


def test_an_endpoint_that_moved_is_followed(lab: Site) -> None:
    """Exports that prove to be there are noted there; nothing was lost meanwhile, and nothing is proven twice."""
    refs = [export(lab, system) for system in ("aretha", "aretha", "prince")]
    pipeline.verify(lab.site, refs[0], read_back=True)
    read = lab.export_of(refs[0]).read_back_at
    moved(lab)
    assert {one.result for one in pipeline.reconcile(lab.site).outcomes} == {"later"}
    second = lab.site.named("second")
    assert [one.result for one in pipeline.relocate(second, dry_run=True)] == ["would be moved"] * 2
    assert [lab.export_of(ref).endpoint for ref in refs] == [THERE, THERE, HERE]
    later = lab.clock.turn(hours=1)
    assert [one.result for one in pipeline.relocate(second)] == ["moved"] * 2
    assert pipeline.relocate(second) == []
    assert [lab.export_of(ref).endpoint for ref in refs] == ["http://moved:3", "http://moved:3", HERE]
    assert [lab.export_of(ref).evidence_at == later for ref in refs] == [True, True, False]
    assert [lab.export_of(ref).read_back_at for ref in refs] == [read, None, None]  # it was not read again
    assert found(lab) == set()
    assert {one.result for one in pipeline.each(pipeline.verify, lab.site, refs)} == {"verified"}


def test_only_what_proves_to_be_there_is_noted_there(lab: Site) -> None:
    """What is not there, or is another, stays where it was noted, unharmed; an ETag of another kind is read back."""
    refs = [export(lab, "aretha") for _ in range(3)]
    gone, other, cut = (lab.export_of(ref).key for ref in refs)
    lab.second.delete(gone)
    content = bytearray(whole(lab.second, other))
    content[600] ^= 1
    put(lab.second, other, bytes(content))
    copied, size = whole(lab.second, cut), lab.export_of(refs[2]).size
    lab.second.put(cut, [copied], size=size, part_size=size // 2 + 1, metadata={})
    outcomes = {one.key: one for one in pipeline.relocate(moved(lab).site.named("second"))}
    assert [outcomes[key].result for key in (gone, other, cut)] == ["refused", "refused", "moved"]
    assert [lab.export_of(ref).endpoint for ref in refs] == [THERE, THERE, "http://moved:3"]
    assert [lab.export_of(ref).damage for ref in refs] == [None] * 3
    assert lab.export_of(refs[2]).evidence == "read-back"


def test_another_bucket_is_not_believed(lab: Site) -> None:
    """Where none of the first exports is, nothing is noted; where nobody answers, neither."""
    ref = export(lab, "aretha")
    for strange, result in ((Memory("raw"), "refused"), (Away("raw"), "later")):
        lab.places = {"second": BucketRef(strange, "http://strange")}
        outcomes = pipeline.relocate(lab.site.named("second"))
        assert [one.result for one in outcomes] == [result, "stopped"]
    assert lab.export_of(ref).endpoint == THERE
    with pytest.raises(Misconfigured, match="no bucket 'third'"):
        lab.site.named("third")


def test_what_is_known_to_be_bad_elsewhere_is_sent_anew(lab: Site) -> None:
    """A lost export of a bucket that is gone for good goes to the bucket of today."""
    ref = export(lab, "aretha")
    lab.second.delete(lab.export_of(ref).key)
    assert pipeline.verify(lab.site, ref).result == "damaged"
    lab.places, lab.goes = {}, {}
    assert pipeline.export(lab.site, ref).result == "exported"
    assert lab.export_of(ref).endpoint == HERE


def test_an_adopted_object_is_not_moved(lab: Site) -> None:
    """The catalogue takes no second export of an event from another endpoint."""
    ref = export(lab, "aretha")
    export_, event = lab.export_of(ref), lab.ledger(ref).event
    twin = Export(**{**export_.model_dump(), "endpoint": HERE})
    with pytest.raises(Conflict, match=THERE):
        lab.catalog.adopt(event, twin, now=lab.clock())
