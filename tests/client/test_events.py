"""Both clients for events on a real gateway: search, ledgers, images, bundles, arrays, exports, archives."""

from __future__ import annotations

import asyncio
import hashlib
import io
import struct
import tarfile
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pydicom
import pytest
import tifffile

from plateway import wire
from plateway.client import Archive, AsyncPlateway, Event, Export, Image, Images, Plateway
from plateway.errors import Damaged, Denied, NotFound, Rejected, Unavailable
from plateway.gateway import images
from tests.client.conftest import Enter, Laboratory
from tests.client.scripted import HTML, RESET, Scripted, said

PICTURE = b"not really a picture"
SHA256 = hashlib.sha256(PICTURE).hexdigest()
IMAGE = {
    "name": "a.tif",
    "size": len(PICTURE),
    "sha256": SHA256,
    "url": "/api/1/events/x/images/a.tif",
    "thumbnail": None,
}


@pytest.fixture
def reader(laboratory: Laboratory, plateway: Enter) -> Plateway:
    """A client of either kind that may read."""
    return plateway(laboratory.url, laboratory.secret)


def test_search_finds_events(laboratory: Laboratory, reader: Plateway) -> None:
    """All events come newest first; every filter narrows them."""
    found = list(reader.search())
    assert [one.timestamp for one in found] == sorted((one.timestamp for one in found), reverse=True)
    assert list(reader.search(order="oldest")) == found[::-1]
    assert {laboratory.scan.id, laboratory.waiting.id, *(one.id for one in laboratory.stitches)} < {
        one.id for one in found
    }
    experiment = laboratory.experiment(laboratory.stitches[0])
    stitches = [one for one in found if one.experiment == experiment]
    assert {one.id for one in laboratory.stitches} <= {one.id for one in stitches}
    assert list(reader.search(experiment=experiment)) == stitches
    assert [one.id for one in reader.search(system="scanner")] == [laboratory.scan.id]
    assert [one.id for one in reader.search(text=str(laboratory.scan.id))] == [laboratory.scan.id]
    assert {one.state for one in reader.search(state="exported")} == {"exported"}
    assert {one.kind for one in reader.search(kind="stitch")} == {"stitch"}
    assert {one.plate for one in reader.search(plate=stitches[-1].plate or 0)} == {stitches[-1].plate}
    moment = stitches[0].timestamp
    assert all(one.timestamp >= moment for one in reader.search(since=moment))
    assert list(reader.search(since=moment + timedelta(days=99))) == []
    assert all(one.timestamp < moment for one in reader.search(until=moment))
    assert list(reader.search(experiment="nothing")) == []


def test_search_says_what_is_wrong(reader: Plateway) -> None:
    """A time without a zone is nobody's, and a state that there is not is refused by the gateway."""
    with pytest.raises(ValueError, match="zone"):
        list(reader.search(since=datetime(2026, 1, 1)))
    with pytest.raises(Rejected, match="HTTP 4"):
        list(reader.search(state="lost in space"))
    with pytest.raises(TypeError, match="experment"):
        list(reader.search(experment="x"))  # type: ignore[call-arg]  # whoever mistypes must not get everything


def test_an_event_and_its_ledger(laboratory: Laboratory, reader: Plateway) -> None:
    """An event is found by id, text and revision; its ledger is all that the gateway tells."""
    id_ = laboratory.scan.id
    event = reader.event(id_)
    assert (event.id, event.system, event.experiment, event.revision) == (id_, "scanner", "phantom", 1)
    assert event.timestamp == laboratory.scan.at and event.verified_at is not None
    assert reader.event(str(id_)) == reader.event(event) == reader.event(f"{id_}-r1") == event
    ledger = reader.ledger(id_)
    assert ledger["id"] == str(id_) and ledger["sha256"] == event.sha256
    for missing in (uuid4(), "nonsense", f"{id_}-r7", "../../objects", "a/b?c#d"):
        with pytest.raises(NotFound):
            reader.event(missing)


def test_images_are_a_mapping(laboratory: Laboratory, reader: Plateway) -> None:
    """Names lead to exactly the bytes that the instrument wrote, whatever the names are made of."""
    for announced in (laboratory.scan, laboratory.stitches[0]):
        images = reader.images(announced.id)
        assert set(images) == set(announced.files) and len(images) == len(announced.files)
        for name, sha256 in announced.files.items():
            assert name in images
            assert images[name] == (announced.images / name).read_bytes()
            assert (images.infos[name].sha256, images.infos[name].size) == (sha256, len(images[name]))
    assert "nothing" not in images and "images" in repr(images)
    with pytest.raises(KeyError):
        images["nothing"]
    with pytest.raises(NotFound):
        reader.images(uuid4())


def test_mappings_fetch_nothing_unasked(plateway: Enter, scripted: Scripted) -> None:
    """Looking at names, sizes and equality costs the one listing."""
    scripted.play(said(200, {"images": [IMAGE]}))
    images = plateway(scripted.url).images("x")
    again = Images(images.infos, lambda image: images[image.name])
    assert ("a.tif" in images, list(images), len(images), images == again) == (True, ["a.tif"], 1, False)
    assert images.infos["a.tif"].size == len(PICTURE) and repr(images) and hash(images)
    assert len(scripted.asked) == 1


def test_dicom_bytes_are_read_in_memory(laboratory: Laboratory, reader: Plateway) -> None:
    """A DICOM image goes straight into pydicom."""
    content = reader.images(laboratory.scan.id)["série 1/slice #1.dcm"]
    found = pydicom.dcmread(io.BytesIO(content))
    assert (found.PatientID, found.pixel_array.tolist()[0]) == ("phantom", [0, 1, 2, 3])


def test_a_bundle_is_the_tar(laboratory: Laboratory, reader: Plateway) -> None:
    """A bundle comes piece by piece, compared with its SHA-256, and has the images."""
    event = reader.event(laboratory.scan.id)
    content = b"".join(reader.bundle(event))
    assert (len(content), hashlib.sha256(content).hexdigest()) == (event.size, event.sha256)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert any(name.endswith("slice #1.dcm") for name in tar.getnames())


def test_what_is_not_exported_has_no_bundle(laboratory: Laboratory, reader: Plateway) -> None:
    """An event whose images are still on the bench alone says so."""
    with pytest.raises(NotFound):
        list(reader.bundle(laboratory.waiting.id))
    with pytest.raises(NotFound):
        reader.images(laboratory.waiting.id)


def test_an_experiment_as_arrays(laboratory: Laboratory, reader: Plateway) -> None:
    """The images of an experiment come in the order of time, with the pixels that were written; only TIFF."""
    experiment = laboratory.experiment(laboratory.stitches[0])
    pictures = list(reader.arrays(experiment))
    assert [one.event.timestamp for one in pictures] == sorted(one.event.timestamp for one in pictures)
    written = [
        (one.id, name, one.images / name) for one in laboratory.stitches for name in sorted(one.files) if ".tif" in name
    ]
    assert {(one.event.id, one.name) for one in pictures} >= {(id_, name) for id_, name, _ in written}
    by_name = {(one.event.id, one.name): one.array for one in pictures}
    for id_, name, path in written:
        assert by_name[id_, name].dtype == np.uint16
        assert np.array_equal(by_name[id_, name], tifffile.imread(path))
    assert list(reader.arrays("phantom")) == []
    assert list(reader.arrays(experiment, until=laboratory.scan.at - timedelta(days=1))) == []


def test_exports_and_archives(laboratory: Laboratory, reader: Plateway) -> None:
    """The lists of the lifecycle API are told as values; without a time it is the last day."""
    since, until = laboratory.scan.at - timedelta(days=1), laboratory.scan.at + timedelta(days=1)
    found = list(reader.exports(since=since, until=until))
    assert {one.id for one in laboratory.stitches} <= {one.ref_id for one in found}
    assert [one.uploaded_at for one in found] == sorted(one.uploaded_at for one in found)
    assert {one.type for one in found} == {"stitch"}
    assert list(reader.exports(since=since, until=until, kind="video")) == []
    assert {one.ref_id for one in reader.exports()} == {one.ref_id for one in found}
    assert list(reader.archives()) == list(reader.archives(experiment="nothing")) == []


def test_tokens_that_see_less(laboratory: Laboratory, plateway: Enter, kind: str) -> None:
    """A token for a prefix sees the events below it; none, and a bad one, see nothing."""
    event = plateway(laboratory.url, laboratory.secret).event(laboratory.scan.id)
    prefix = event.key.removesuffix(event.key.rpartition("/")[2])
    narrow = plateway(laboratory.url, laboratory.site.gateway.token(f"narrow {kind}", "read", prefix=prefix))
    assert [one.id for one in narrow.search()] == [laboratory.scan.id]
    with pytest.raises(NotFound):
        narrow.images(laboratory.stitches[0].id)
    for secret in (None, "wrong"):
        with pytest.raises(Denied, match="HTTP 401"):
            list(plateway(laboratory.url, secret).search())


def test_values_are_those_of_the_wire() -> None:
    """What the client knows is what the gateway tells."""
    assert [one.name for one in fields(Event)] == list(wire.EventStatus.model_fields)
    assert [one.name for one in fields(Image)] == list(images.Image.model_fields)
    assert [one.name for one in fields(Export)] == list(wire.Exported.model_fields)
    assert {one.name for one in fields(Archive)} == set(wire.Archived.model_fields)


def test_many_images_at_a_time(laboratory: Laboratory) -> None:
    """The asynchronous mapping gives what can be awaited, all at a time."""

    async def visit() -> list[bytes]:
        async with AsyncPlateway(laboratory.url, laboratory.secret) as client:
            images = await client.images(laboratory.stitches[0].id)
            return await asyncio.gather(*images.values())

    files = laboratory.stitches[0].files
    assert {hashlib.sha256(content).hexdigest() for content in asyncio.run(visit())} == set(files.values())


def test_context_managers(laboratory: Laboratory) -> None:
    """Leaving closes the connections."""
    with Plateway(laboratory.url, laboratory.secret) as client:
        assert client.event(laboratory.scan.id).system == "scanner"
    with pytest.raises(RuntimeError, match="closed"):
        client.event(laboratory.scan.id)


def test_images_are_compared(plateway: Enter, scripted: Scripted) -> None:
    """Other bytes than were recorded are never returned, and neither is half of them, or a web page."""
    client = plateway(scripted.url)
    scripted.play(said(200, {"images": [IMAGE]}), said(200, PICTURE))
    images = client.images("x")
    assert images["a.tif"] == PICTURE
    scripted.play(said(200, b"Not" + PICTURE[3:]))
    with pytest.raises(Damaged, match=r"a\.tif"):
        images["a.tif"]
    scripted.play(said(200, PICTURE[:5], length=len(PICTURE)), RESET, said(200, PICTURE))
    assert images["a.tif"] == PICTURE
    scripted.play(said(200, HTML, Content_Type="text/html"))
    with pytest.raises(Unavailable, match="web page"):
        images["a.tif"]
    scripted.play(said(404, {"error": {"message": "There is no such image"}}))
    with pytest.raises(KeyError):
        images["a.tif"]


def test_addresses_of_images_stay_with_the_gateway(plateway: Enter, scripted: Scripted) -> None:
    """A listing cannot send the client, and its token, to another server."""
    with Scripted() as other:
        other.play(said(200, PICTURE))
        for url in (f"{other.url}/a", "@127.0.0.1:1/a", ".evil/a", ""):
            scripted.play(said(200, {"images": [{**IMAGE, "url": url}]}), said(200, PICTURE))
            with pytest.raises(Unavailable):
                plateway(scripted.url).images("x")["a.tif"]
        assert other.asked == []


def test_bundles_are_compared(plateway: Enter, scripted: Scripted, laboratory: Laboratory) -> None:
    """A bundle that broke off goes on; one that is another is said to be so at its end."""
    event = told(laboratory).model_dump(mode="json") | {"size": len(PICTURE), "sha256": SHA256}
    half = said(200, PICTURE[:7], length=len(PICTURE), ETag='"1"')
    span = f"bytes 7-{len(PICTURE) - 1}/{len(PICTURE)}"
    client = plateway(scripted.url)
    scripted.play(said(200, event), half, said(206, PICTURE[7:], ETag='"1"', Content_Range=span))
    assert b"".join(client.bundle("x")) == PICTURE
    scripted.play(said(200, event), half, said(206, PICTURE[7:].upper(), ETag='"1"', Content_Range=span))
    pieces = client.bundle("x")
    assert next(pieces) == PICTURE[:7]
    with pytest.raises(Damaged, match="SHA-256"):
        list(pieces)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[]", b'{"events": 1}', b'{"events": [1], "next_cursor": null}', b'{"events": [{}]}'),
        b'{"events": [], "next_cursor": []}',
        b'{"events": [{"id": "x"}], "next_cursor": null}',
    ],
)
def test_answers_that_are_not_understood(plateway: Enter, scripted: Scripted, content: bytes) -> None:
    """Whatever a server says, it is one of our errors."""
    scripted.play(said(200, content))
    with pytest.raises(Unavailable):
        list(plateway(scripted.url).search())


def test_pages_are_walked(plateway: Enter, scripted: Scripted, laboratory: Laboratory) -> None:
    """Cursors are followed to the last page, filters with them; circles end."""
    event = told(laboratory).model_dump(mode="json")
    pages = [said(200, {"events": [event], "next_cursor": cursor}) for cursor in ("x&y", "z", None)]
    scripted.play(*pages)
    assert len(list(plateway(scripted.url).search(plate=3))) == 3
    assert [asked.target.partition("?")[2] for asked in scripted.asked] == [
        "plate=3&limit=100",
        "plate=3&limit=100&cursor=x%26y",
        "plate=3&limit=100&cursor=z",
    ]
    scripted.play(pages[0])
    with pytest.raises(Unavailable, match="never end"):
        list(plateway(scripted.url).search())
    assert len(scripted.asked) == 2


def told(laboratory: Laboratory) -> wire.EventStatus:
    """Return one event as the gateway would."""
    with Plateway(laboratory.url, laboratory.secret) as client:
        return wire.EventStatus.model_validate(client.ledger(laboratory.scan.id))


def test_rows_are_walked(plateway: Enter, scripted: Scripted) -> None:
    """Pages that are counted are walked to their end, the window the same in all of them; a short count ends it."""
    row = {"id": str(uuid4()), "path": "p", "type": "stitch", "experiment_id": "e"}
    row |= {"created_at": "2026-01-01T00:00:00Z", "url": "/api/1/archives/x"}
    page = said(200, {"count": 5, "data": [{**row, "member_count": 1}] * 2})
    scripted.play(page, page, page)
    assert len(list(plateway(scripted.url).archives(experiment="e"))) == 6
    assert [asked.target.rpartition("=")[2] for asked in scripted.asked] == ["0", "2", "4"]
    scripted.play(said(200, {"count": 9, "data": []}))
    assert list(plateway(scripted.url).exports()) == []
    assert len(scripted.asked) == 1
    scripted.play(said(200, {"data": []}))
    with pytest.raises(Unavailable):
        list(plateway(scripted.url).exports())


def test_the_newest_revision_counts(plateway: Enter, scripted: Scripted, laboratory: Laboratory) -> None:
    """Arrays are of the newest revision of each event that was exported, in the order of time."""
    event = told(laboratory).model_dump(mode="json")
    later = {**event, "id": str(UUID(int=0)), "timestamp": "2999-01-01T00:00:00Z"}
    listed = [later, {**event, "revision": 2}, event, {**event, "revision": 3, "sha256": None}]
    scripted.play(said(200, {"events": listed, "next_cursor": None}), said(200, {"images": []}))
    assert list(plateway(scripted.url).arrays("phantom")) == []
    assert [asked.target for asked in scripted.asked][1:] == [
        f"/api/1/events/{event['id']}-r2/images",
        f"/api/1/events/{UUID(int=0)}-r1/images",
    ]


def test_bytes_that_are_no_picture(plateway: Enter, scripted: Scripted, laboratory: Laboratory) -> None:
    """What is called .tif and is none says which it is."""
    event = told(laboratory).model_dump(mode="json")
    scripted.play(
        said(200, {"events": [event], "next_cursor": None}), said(200, {"images": [IMAGE]}), said(200, PICTURE)
    )
    with pytest.raises(Damaged, match=r"a\.tif"):
        list(plateway(scripted.url).arrays("e"))


@pytest.mark.parametrize("errors", ["skip", "return"])
def test_a_bad_image_does_not_end_the_iteration(
    plateway: Enter, scripted: Scripted, laboratory: Laboratory, errors: Any
) -> None:
    """It is left out, or comes with its error; what asks for terabytes is not unpacked."""
    event = told(laboratory).model_dump(mode="json")
    huge = io.BytesIO()
    tifffile.imwrite(huge, np.zeros((4, 4), np.uint16), metadata=None)
    content = huge.getvalue()
    for tag in (256, 257):  # columns and rows
        content = content.replace(struct.pack("<HHII", tag, 4, 1, 4), struct.pack("<HHII", tag, 4, 1, 60000))
    big = {**IMAGE, "name": "b.tif", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    scripted.play(
        said(200, {"events": [event], "next_cursor": None}),
        said(200, {"images": [IMAGE, big]}),
        said(200, PICTURE),
        said(200, content),
    )
    found = list(plateway(scripted.url).arrays("e", errors=errors, largest=1 << 30))
    assert [one.name for one in found] == ([] if errors == "skip" else ["a.tif", "b.tif"])
    assert [type(one.error) for one in found] == ([] if errors == "skip" else [Damaged, Rejected])
    if found:
        assert "7,200,000,000 bytes of pixels" in str(found[1].error)
