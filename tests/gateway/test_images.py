"""Images over HTTP: the right bytes or none, from whichever copy has them, to whoever may see them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image
from sqlalchemy import event
from sqlalchemy.engine import Engine

from plateway import keys, pipeline
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Rejected, Unavailable
from plateway.events import Ref
from plateway.gateway import Parts, access, images
from plateway.gateway.image_links import LinkSigner
from plateway.gateway.thumbnail_cache import Thumbs
from plateway.instruments import Shape
from plateway.ledger import Ledger
from plateway.local.seaweed import PLAIN
from plateway.pipeline import Site, read
from plateway.store import open_store
from plateway.store.memory import Memory
from plateway.store.per_file import PerFile
from tests.gateway.conftest import GENEROUS, Gateway, running
from tests.lab import DAWN, Clock, Lab
from tests.pipeline.test_read import (
    HOSTILE,
    Broken,
    Counting,
    damage,
    plant,
    tape,
)

PAST = "Mon, 01 Jan 2001 00:00:00 GMT"


def tiff(seed: int, *, size: int = 40) -> bytes:
    return written(np.random.default_rng(seed).integers(100, 4000, (size, size // 2)).astype(np.uint16))


def written(pixels: npt.NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None)
    return buffer.getvalue()


FILES: dict[str, bytes] = {
    "Img_r01_c01.tif": tiff(1),
    "Img_r01_c02.tif": tiff(2),
    "sub/Überblick 100% #1?&+;=.tif": tiff(3),
    "写真 ☃.tif": tiff(4),
    "%2e%2e%2fetc.tif": tiff(5),
    os.fsdecode(b"latin \xff.tif"): tiff(6),
    'line\nbreak "quoted".tif': tiff(7),
    "junk.tif": b"II*\0 is no picture",
    "notes.txt": b"nothing to see",
    "metadata.json": b'{"lens": "50 mm"}',
    "odd/thumbnail": b"a file that is called so",
    "empty.txt": b"",
    "large.bin": np.random.default_rng(8).bytes((3 << 20) + 17),
}


@dataclass
class Place:
    """A laboratory, and the gateway in front of it."""

    lab: Lab
    gateway: Gateway
    client: httpx.Client

    def get(self, ref: Ref, rest: str = "images", **how: Any) -> httpx.Response:
        return self.client.get(f"/api/1/events/{ref}/{rest}", **how)


def announce(lab: Lab, files: dict[str, bytes], *, experiment: str = "x") -> Ref:
    """Make an instrument announce these files, and bring them to a verified export."""
    id_, root = str(uuid4()), lab.bench / "aretha"
    for name, content in files.items():
        path = root / id_ / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    said = {
        "ref_id": id_,
        "experiment_id": experiment,
        "timestamp": DAWN.isoformat(),
        "local_path": id_,
        "img_count": sum(name.endswith(".tif") for name in files),
        "metadata": {},
    }
    (root / "events").mkdir(exist_ok=True)
    (root / "events" / f"{id_}.json").write_text(json.dumps(said))
    (ref,) = lab.settle().sealed
    assert [verb(lab.site, ref).result for verb in (pipeline.export, pipeline.verify)] == ["exported", "verified"]
    return ref


@contextmanager
def placed(
    home: Path, url: str, endpoint: Endpoint | None = None, *, layout: Shape = "bundle", **parts: Any
) -> Iterator[Place]:
    """Run a gateway in front of a laboratory of its own, with a tape."""
    for name in ("bench", "bucket", "tape"):
        (home / name).mkdir(parents=True)
    clock = Clock()
    catalog = Catalog(f"sqlite:///{home / 'catalogue.db'}", clock=clock)
    catalog.upgrade()
    store = PerFile(Memory() if url == "memory" else open_store(url, endpoint))
    archive = open_archive((home / "tape").as_uri())
    lab = Lab(home, store, clock, catalog, archive=archive, options={"layout": layout})
    whole = {"home": home, "tokens": home / "tokens.json", "limits": GENEROUS, **parts}
    with running(Parts(site=lambda: replace(lab.site, store=Turned(lab)), **whole)) as one, one.client() as client:
        yield Place(lab, one, client)


class Turned:
    """The bucket that the laboratory has now: tests put another one in its place."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lab.store, name)


@pytest.fixture(scope="module", params=["memory", "s3", "files"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A gateway over each kind of bucket, and over one in which files are objects of their own."""
    home, url, endpoint = tmp_path_factory.mktemp("place"), "memory", None
    if request.param != "memory":
        endpoint, name = request.getfixturevalue("endpoint"), f"images-{uuid4().hex[:12]}"
        request.getfixturevalue("client").create_bucket(Bucket=name)
        url = f"s3://{name}"
    with placed(home, url, endpoint, layout="files" if request.param == "files" else "bundle") as one:
        yield one


@pytest.fixture(scope="module")
def ref(place: Place) -> Ref:
    """An event with files of all kinds of names."""
    return announce(place.lab, FILES)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place to break things in."""
    with placed(tmp_path_factory.mktemp("workshop"), "memory") as one:
        yield one


@pytest.fixture
def own(workshop: Place) -> Iterator[Place]:
    """The workshop, with its bucket back in place afterwards; each test announces events of its own."""
    store = workshop.lab.store
    yield workshop
    workshop.lab.store = store


def url(name: str) -> str:
    return f"images/{quote(os.fsencode(name))}"


# ----------------------------------------------------------------------------------------------------------- the bytes


class Away(Counting):
    """A store that does not answer."""

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        raise Unavailable("the store is away")


def test_a_shared_link_is_for_its_revision_and_in_no_log(own: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Announced again with another image, it still opens the first; no log has its signature, also while S3 is away."""
    ref = announce(own.lab, {"a.tif": tiff(1)})
    root = own.lab.bench / "aretha"
    (root / str(ref.id) / "a.tif").write_bytes(tiff(2))
    told = json.loads((root / "events" / f"{ref.id}.json").read_text())
    (root / "events" / f"{ref.id}.json").write_text(json.dumps(told | {"metadata": {"again": True}}))
    own.lab.clock.turn(seconds=60)
    (again,) = own.lab.settle().sealed
    assert again == Ref(ref.id, 2)
    assert [verb(own.lab.site, again).result for verb in (pipeline.export, pipeline.verify)] == ["exported", "verified"]
    signer = LinkSigner(own.gateway.parts.place)
    expires = datetime.now(UTC) + timedelta(days=1)
    links = {one: signer.sign(one, "a.tif", expires=expires) for one in (ref, again)}
    assert {one: own.client.get(link).content for one, link in links.items()} == {ref: tiff(1), again: tiff(2)}
    own.lab.store = Away(own.lab.store)
    assert own.client.get(links[ref]).status_code == 503
    assert "GET /shared/" in caplog.text
    assert links[ref].split("/")[2].partition(".")[2] not in caplog.text


def test_every_file_is_listed_and_comes_as_it_was(place: Place, ref: Ref) -> None:
    """Whatever its name: by the address in the list, with its SHA-256 as ETag, and nothing that a browser would run."""
    answer = place.get(ref)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["id"], told["revision"]) == (str(ref.id), 1)
    assert {one["name"] for one in told["images"]} == set(FILES)
    for one in told["images"]:
        content = FILES[one["name"]]
        digest = hashlib.sha256(content).hexdigest()
        assert (one["size"], one["sha256"]) == (len(content), digest)
        got, head = place.client.get(one["url"]), place.client.head(one["url"])
        assert (got.status_code, got.content) == (200, content), one["name"]
        assert (head.status_code, head.content) == (200, b"")
        for field in ("etag", "content-length", "content-type", "last-modified", "content-disposition"):
            assert got.headers[field] == head.headers[field], field
        assert got.headers["etag"] == f'"{digest}"'
        assert got.headers["content-length"] == str(len(content))
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-disposition"].startswith("attachment; filename=")
        assert got.headers["content-type"] == ("image/tiff" if one["name"].endswith(".tif") else MEDIA)
        assert (one["thumbnail"] is not None) == one["name"].endswith(".tif")


MEDIA = "application/octet-stream"


def test_the_name_in_the_bundle_does_as_well(place: Place, ref: Ref) -> None:
    """The images' own metadata.json gave way to the manifest, and is found by both names."""
    assert place.get(ref, "images/source-metadata.json").content == FILES["metadata.json"]


@pytest.mark.parametrize("name", ["Img_r01_c01.tif", "large.bin"])
def test_a_range_is_a_part_of_the_bytes(place: Place, ref: Ref, name: str) -> None:
    """From, to, the end, beyond: as HTTP has it; what is not understood is left out."""
    content = FILES[name]
    size = len(content)
    for told, start, end in [
        ("0-0", 0, 1),
        ("10-99", 10, 100),
        ("100-", 100, size),
        ("-7", size - 7, size),
        (f"5-{size * 9}", 5, size),
        (f"0-{size - 1}", 0, size),
    ]:
        answer = place.get(ref, url(name), headers={"Range": f"bytes={told}"})
        assert (answer.status_code, answer.content) == (206, content[start:end]), told
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    for told in (f"{size}-", "-0"):
        answer = place.get(ref, url(name), headers={"Range": f"bytes={told}"})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")
    for told in ("1-0", "0-1,5-6", "a-b"):
        assert place.get(ref, url(name), headers={"Range": f"bytes={told}"}).content == content
    fresh = {"Range": "bytes=0-3", "If-Range": f'"{hashlib.sha256(content).hexdigest()}"'}
    assert place.get(ref, url(name), headers=fresh).content == content[:4]
    assert place.get(ref, url(name), headers={**fresh, "If-Range": '"old"'}).content == content


def test_conditions_are_weighed(place: Place, ref: Ref) -> None:
    """What the client has already is not sent again, nor what it does not want."""
    name = "Img_r01_c01.tif"
    tag = f'"{hashlib.sha256(FILES[name]).hexdigest()}"'
    since = place.get(ref, url(name)).headers["last-modified"]
    for headers, status in [
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": f'"x", W/{tag}'}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-Modified-Since": since}, 304),
        ({"If-Modified-Since": PAST}, 200),
        ({"If-Match": tag}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Unmodified-Since": PAST}, 412),
    ]:
        for method in ("GET", "HEAD"):
            answer = place.client.request(method, f"/api/1/events/{ref}/{url(name)}", headers=headers)
            assert (answer.status_code, bool(answer.content)) == (status, method == "GET" and status != 304)
            assert status != 304 or answer.headers["etag"] == tag


def test_many_at_a_time_do_not_mix(place: Place, ref: Ref) -> None:
    """Sixteen readers at once: each gets its own."""
    names = [name for name in FILES for _ in range(6)]
    with ThreadPoolExecutor(16) as pool:
        for name, answer in zip(names, pool.map(lambda name: place.get(ref, url(name)), names), strict=True):
            assert answer.content == FILES[name]


# ---------------------------------------------------------------------------------------------------- what is not there


NOWHERE = [
    "images/nothing.tif",
    "images/",
    "images/../../../../etc/passwd",
    "images/%2e%2e/%2e%2e/etc/passwd",
    "images/..%2f..%2fetc%2fpasswd",
    "images//etc/passwd",
    "images/%2fetc%2fpasswd",
    "images/./Img_r01_c01.tif",
    "images/Img_r01_c01.tif%00",
    "images/Img_r01_c01.tif/",
    "images/img_r01_c01.tif",
    "images/%252e%252e%252fetc.tif%",
    "images/%c0%ae%c0%ae/passwd",
    f"images/{'a' * 2000}",
    "images/thumbnail",
    "images/nothing.tif/thumbnail",
    "images/../catalogue.db/thumbnail",
]


def raw(place: Place, path: str) -> int:
    """Request a path as it is written; clients would tidy it up."""
    with socket.create_connection(("127.0.0.1", place.gateway.port), timeout=60) as wire:
        secret = place.gateway.secrets["all"]
        wire.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nConnection: close\r\n\r\n".encode()
        )
        return int(wire.makefile("rb").readline().split()[1])


def test_what_is_not_in_the_manifest_is_not_there(place: Place, ref: Ref) -> None:
    """Names are looked up and never followed."""
    for rest in NOWHERE:
        assert raw(place, f"/api/1/events/{ref}/{rest}") == 404, rest
    assert raw(place, f"/api/1/events/{ref}/images/%252e%252e%252fetc.tif") == 200
    for odd in ("x", str(uuid4()), f"{ref.id}-r2", f"{ref.id}-r0", "%2e%2e", f"{ref}%2f.."):
        for rest in ("images", "images/x", "images/x/thumbnail", "bundle"):
            assert raw(place, f"/api/1/events/{odd}/{rest}") == 404, odd
    answer = place.get(ref, "images/nothing.tif")
    assert answer.json() == {"error": {"code": "404", "message": f"{ref}: there is no such image"}}


def test_an_event_outside_of_the_prefix_is_not_there(place: Place, ref: Ref) -> None:
    """A token sees what its prefix covers; of anything else it does not even learn that it is there."""
    theirs = announce(place.lab, {"a.tif": tiff(9)}, experiment="theirs")
    prefix = "/".join(place.lab.ledger(theirs).event.key.split("/")[:2])
    secret = place.gateway.token(uuid4().hex, "read", prefix=f"{prefix}/")
    unknown = str(uuid4())
    with place.gateway.client(secret) as client:
        for rest in ("images", "images/a.tif", "images/a.tif/thumbnail", "bundle"):
            path = "/api/1/events/{}/" + rest
            assert client.get(path.format(theirs)).status_code in {200, 307}
            hidden = client.get(path.format(ref))
            assert hidden.status_code == 404
            assert hidden.text.replace(str(ref), unknown) == client.get(path.format(unknown)).text


def test_an_event_that_is_not_exported_has_no_images(own: Place) -> None:
    """404 and why; as soon as it is exported, they are there."""
    announced = own.lab.acquire("aretha")
    own.lab.settle()
    for rest in ("images", "images/x", "bundle"):
        answer = own.get(Ref(announced.id, 1), rest)
        assert (answer.status_code, "not exported yet" in answer.text) == (404, True)


def test_an_open_gateway_asks_nobody(own: Place, tmp_path: Path) -> None:
    """Where events are open to all, so are their images; elsewhere nothing comes without a token."""
    ref = announce(own.lab, {"a.tif": tiff(1)})
    parts = replace(own.gateway.parts, home=tmp_path, site=lambda: own.lab.site, open=True)
    paths = [f"/api/1/events/{ref}/{rest}" for rest in ("images", "images/a.tif", "images/a.tif/thumbnail", "bundle")]
    with running(parts) as free:
        for path in paths:
            assert httpx.get(free.url + path, trust_env=False, verify=PLAIN).status_code == 200
            assert httpx.get(own.gateway.url + path, trust_env=False, verify=PLAIN).status_code == 401


# --------------------------------------------------------------------------------------------------------------- damage


def taped(place: Place, ref: Ref) -> None:
    """Make an archive have it as well."""
    tape(place.lab, ref, path=f"images/x/{ref}.tar")


def offset(place: Place, ref: Ref, name: str) -> int:
    manifest = read.contents(place.lab.site, place.lab.ledger(ref))
    return read.find_member(manifest, name).offset


def test_wrong_bytes_are_never_handed_out(own: Place) -> None:
    """A damaged copy is no copy: another one answers, whole and in parts; where there is none, nobody does."""
    files = {"a.tif": tiff(1), "b.tif": tiff(2)}
    ref = announce(own.lab, files)
    key = own.lab.ledger(ref).event.key
    damage(own.lab, key, offset(own, ref, "a.tif") + 300)
    for rest in ("images/a.tif", "images/a.tif/thumbnail"):
        answer = own.get(ref, rest)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["message"] == "the stored bytes differ from the recorded checksum"
    assert own.get(ref, "images/a.tif", headers={"Range": "bytes=0-9"}).status_code == 503
    assert own.get(ref, "images/b.tif").content == files["b.tif"]
    damage(own.lab, key, offset(own, ref, "a.tif") + 300)  # right again
    other = announce(own.lab, {"a.tif": tiff(3)})
    taped(own, other)
    damage(own.lab, own.lab.ledger(other).event.key, offset(own, other, "a.tif") + 300)
    assert own.get(other, "images/a.tif").content == tiff(3)
    assert own.get(other, "images/a.tif", headers={"Range": "bytes=4-99"}).content == tiff(3)[4:100]
    assert own.get(other, "images/a.tif/thumbnail").status_code == 200


def test_what_is_large_and_wrong_breaks_the_connection(own: Place) -> None:
    """It is compared while it is sent: the last piece never comes, so that nobody takes it for whole."""
    image = np.random.default_rng(1).bytes(read.HELD + 12345)
    ref = announce(own.lab, {"a.tif": image})
    assert own.get(ref, "images/a.tif").content == image
    part = {"Range": f"bytes=9-{3 << 20}"}
    assert own.get(ref, "images/a.tif", headers=part).content == image[9 : (3 << 20) + 1]
    damage(own.lab, own.lab.ledger(ref).event.key, offset(own, ref, "a.tif") + (5 << 20))
    for rest in ("images/a.tif", "bundle"):
        came = 0
        with (
            pytest.raises(httpx.RemoteProtocolError),
            own.client.stream("GET", f"/api/1/events/{ref}/{rest}") as answer,
        ):
            assert answer.headers["content-length"] >= str(len(image))
            for piece in answer.iter_raw():
                came += len(piece)
        assert 0 < came < len(image)
    assert own.get(ref, "images/a.tif").status_code == 503


def test_a_large_image_comes_right_the_second_time(own: Place) -> None:
    """The wrong copy broke the connection; now the copies are looked at before anything is sent."""
    image = np.random.default_rng(3).bytes(read.HELD + 777)
    ref = announce(own.lab, {"a.tif": image})
    taped(own, ref)
    damage(own.lab, own.lab.ledger(ref).event.key, offset(own, ref, "a.tif") + (5 << 20))
    with pytest.raises(httpx.RemoteProtocolError):
        own.get(ref, "images/a.tif")
    assert own.get(ref, "images/a.tif").content == image


def test_a_bucket_that_breaks_off_is_no_end(own: Place) -> None:
    """Where one copy stops, another goes on; without one the connection breaks, or there is an error at once."""
    image = np.random.default_rng(2).bytes(read.HELD + 999)
    ref, alone = announce(own.lab, {"a.tif": image}), announce(own.lab, {"a.tif": image[: 2 << 20]})
    taped(own, ref)
    assert own.get(alone, "images").status_code == 200
    own.lab.store = Broken(own.lab.store, after=3 << 20)
    assert own.get(ref, "images/a.tif").content == image
    assert own.get(ref, "bundle").status_code == 200
    own.lab.store = Broken(own.lab.store, after=5)
    assert own.get(alone, "images/a.tif").status_code == 503


def test_what_expired_comes_from_tape(own: Place) -> None:
    """The bucket removed it; the archive has it, and when that is not to be reached either, the answer says so."""
    ref = announce(own.lab, {"a.tif": tiff(1)})
    gone = announce(own.lab, {"a.tif": tiff(2)})
    taped(own, ref)
    bundle = b"".join(own.lab.store.open(own.lab.ledger(ref).event.key))
    for one in (ref, gone):
        own.lab.store.delete(own.lab.ledger(one).event.key)
        pipeline.verify(own.lab.site, one)
    assert own.get(ref, "images/a.tif").content == tiff(1)
    assert own.get(ref, "bundle").content == bundle
    answer = own.get(gone, "images/a.tif")
    assert answer.status_code == 404
    assert "the bucket copy is lost" in answer.text
    assert "no tape has it" in answer.text


def test_a_hostile_manifest_leads_nowhere(own: Place) -> None:
    """Names that climb are names like others; places outside of the bundle are no places."""
    ref = announce(own.lab, {"a.tif": tiff(1)})
    names = sorted({name for some in HOSTILE for name in some})
    plant(own.lab, ref, names)
    told = own.get(ref).json()["images"]
    assert sorted(one["name"] for one in told) == names
    assert [raw(own, one["url"]) for one in told] == [200] * len(names)
    for wrong in ({"size": -1}, {"offset": 99999}, {"size": 9999}):
        ref = announce(own.lab, {"a.tif": tiff(1)})
        plant(own.lab, ref, ["image-with-a-long-name.tif", "b.tif"], **wrong)
        assert [own.get(ref, rest).status_code for rest in ("images", "images/b.tif")] == [503, 503]


# ------------------------------------------------------------------------------------------------------- small pictures


def picture(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


def test_an_image_has_a_small_picture(place: Place, ref: Ref) -> None:
    """A PNG of the size that is asked for, and the same again without being made again."""
    name = "sub/Überblick 100% #1?&+;=.tif"
    (listed,) = [one["thumbnail"] for one in place.get(ref).json()["images"] if one["name"] == name]
    answer = place.client.get(listed)
    assert picture(answer).size == (20, 40)
    assert place.client.get(f"{listed}?size=16").content != answer.content
    assert picture(place.client.get(listed, params={"size": 16})).size == (8, 16)
    tag = answer.headers["etag"]
    assert "max-age" in answer.headers["cache-control"]
    assert place.client.get(listed, headers={"If-None-Match": tag}).status_code == 304
    head = place.client.head(listed)
    assert (head.headers["content-length"], head.headers["etag"]) == (str(len(answer.content)), tag)
    assert place.client.get(listed).content == answer.content
    for size in ("0", "15", "1025", "-1", "x"):
        assert place.client.get(listed, params={"size": size}).status_code == 422


def test_tiles_are_stretched_alike(own: Place) -> None:
    """With the levels of the event a dim tile stays dim beside a bright one; a damaged tile hides no other."""
    dim, bright = (np.linspace(0, most, 1600).reshape(40, 40).astype(np.uint16) for most in (400, 4000))
    files = {f"Img_r01_c{n:02d}.tif": written(dim if n == 1 else bright) for n in range(1, 5)}
    ref = announce(own.lab, files)
    for levels, least, most in (("own", 240, 256), ("event", 0, 40)):
        answer = own.get(ref, "images/Img_r01_c01.tif/thumbnail", params={"levels": levels})
        assert least <= np.asarray(picture(answer)).max() < most
    brightest = own.get(ref, "images/Img_r01_c02.tif/thumbnail", params={"levels": "event"})
    assert np.asarray(picture(brightest)).max() > 240
    assert own.get(ref, "images/Img_r01_c01.tif/thumbnail", params={"levels": "x"}).status_code == 422
    assert own.get(ref, "images/Img_r01_c01.tif/thumbnail?levels=event").headers["etag"] != brightest.headers["etag"]
    other = announce(own.lab, files | {"Img_r01_c01.tif": written(bright // 2)})
    damage(own.lab, own.lab.ledger(other).event.key, offset(own, other, "Img_r01_c03.tif") + 300)
    assert own.get(other, "images/Img_r01_c01.tif/thumbnail?levels=event").status_code == 200
    assert own.get(other, "images/Img_r01_c03.tif/thumbnail?levels=event").status_code == 503


def test_what_is_no_picture_has_none(place: Place, ref: Ref) -> None:
    """415, each time; a file that is called thumbnail is that file."""
    for _ in range(2):
        for name in ("junk.tif", "notes.txt", "empty.txt", "large.bin"):
            answer = place.get(ref, f"{url(name)}/thumbnail")
            assert answer.status_code == 415
            assert re.search("no preview of this kind of file|not a picture|cut off", answer.text)
    assert place.get(ref, "images/odd/thumbnail").content == FILES["odd/thumbnail"]
    assert place.get(ref, "images/odd").status_code == 404


def test_small_pictures_are_read_for_once(own: Place) -> None:
    """What was made lies on disk for all workers; what is no picture, too; a broken file is made again."""
    ref = announce(own.lab, {"a.tif": tiff(1), "b.tif": b"nothing"})
    first = own.get(ref, "images/a.tif/thumbnail").content
    assert own.get(ref, "images/b.tif/thumbnail").status_code == 415
    own.lab.store = counting = Counting(own.lab.store)
    assert own.get(ref, "images/a.tif/thumbnail").content == first
    assert own.get(ref, "images/b.tif/thumbnail").status_code == 415
    assert counting.reads == []
    (kept,) = [path for path in (own.lab.home / "gateway" / "thumbs").iterdir() if path.read_bytes() == first]
    for broken in (first[:-9], b"", bytes(len(first))):
        kept.write_bytes(broken)
        assert own.get(ref, "images/a.tif/thumbnail").content == first
    assert len(counting.reads) == 3


def test_small_pictures_have_a_bounded_room(tmp_path: Path) -> None:
    """The oldest go, also those that another worker made; what a dead worker left goes as well."""
    png = b"\x89PNG\r\n\x1a\n" + bytes(1000) + b"IEND\xaeB`\x82"
    one, other = (Thumbs(tmp_path / "thumbs", room=100_000) for _ in range(2))
    left = tmp_path / "thumbs" / ".left"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    for number in range(500):
        (one, other)[number % 2].keep(f"{number}", png)
        os.utime(tmp_path / "thumbs" / f"{number}", (number, number)) if number < 499 else None
    sizes = [path.stat().st_size for path in (tmp_path / "thumbs").iterdir()]
    assert 50_000 < sum(sizes) < 115_000
    assert (one.find("499"), one.find("0"), left.exists()) == (png, None, False)
    one.keep("no", Rejected("no picture, said\nin two lines"))
    with pytest.raises(Rejected, match="in two lines"):
        other.find("no")


@dataclass
class Counts:
    """What requests cost: queries of the catalogue, reads of the bucket, and searches for copies."""

    place: Place
    statements: list[str]
    searches: list[Ref]
    store: Counting

    def of(self, rest: str, ref: Ref, **how: Any) -> tuple[int, int, int]:
        """Count what one request costs."""
        for counted in (self.statements, self.searches, self.store.reads):
            counted.clear()
        answer = self.place.client.request(how.pop("method", "GET"), f"/api/1/events/{ref}/{rest}", **how)
        assert answer.status_code in {200, 206}
        return len(self.statements), len(self.store.reads), len(self.searches)


@pytest.fixture
def counts(own: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    """The workshop with a counting catalogue and a counting store."""
    statements: list[str] = []
    searches: list[Ref] = []
    find = read.find_copies

    def find_copies(site: Site, ledger: Ledger) -> list[read.Copy]:
        searches.append(ledger.ref)
        return find(site, ledger)

    def execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    monkeypatch.setattr(read, "find_copies", find_copies)
    event.listen(Engine, "before_cursor_execute", execute)
    own.lab.store = Counting(own.lab.store)
    yield Counts(own, statements, searches, own.lab.store)
    event.remove(Engine, "before_cursor_execute", execute)


def test_one_request_looks_nothing_up_twice(counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image costs one ledger, one search for copies, the manifest and the image; the next ones one read."""
    monkeypatch.setattr(images, "HOLDS", 60.0)
    ref = announce(counts.place.lab, {f"Img_r01_c{number:02d}.tif": tiff(number) for number in range(1, 6)})
    lab, secret = counts.place.lab, counts.place.gateway.secrets["all"]
    parts = replace(counts.place.gateway.parts, home=lab.home / uuid4().hex)
    with ExitStack() as stack:
        fresh = stack.enter_context(running(parts))
        fresh.secrets["all"] = secret
        client = stack.enter_context(fresh.client())
        counts.place = Place(lab, fresh, client)
        counts.place.get(Ref(uuid4(), 1))  # opens a connection of the catalogue
        statements, reads, searches = counts.of("images/Img_r01_c01.tif", ref)
        assert (reads, searches) == (2, 1)
        counts.statements.clear()
        counts.place.lab.catalog.ledger(ref)
        assert statements == 1 + len(counts.statements)  # the newest revision, and its ledger
        assert counts.of("images/Img_r01_c02.tif", ref) == (0, 1, 0)
        assert counts.of("images/Img_r01_c02.tif", ref, headers={"Range": "bytes=0-9"}) == (0, 1, 0)
        assert counts.of("images/Img_r01_c02.tif", ref, method="HEAD") == (0, 0, 0)
        assert counts.of("images/Img_r01_c02.tif/thumbnail", ref) == (0, 1, 0)
        assert counts.of("images/Img_r01_c03.tif/thumbnail?levels=event", ref) == (0, 1 + 5, 0)
        assert counts.of("bundle", ref) == (0, 1, 0)
        assert counts.of("images", ref) == (0, 0, 0)


def test_a_manifest_of_any_size_is_cached() -> None:
    """A manifest with more files than fit is cached alone."""
    large = images.Contents((None,) * (images.MEMBERS + 1), {})  # type: ignore[arg-type]
    assert images._count_members(large) == images.MEMBERS


# --------------------------------------------------------------------------------------------------------------- bundle


def test_a_bundle_is_a_link_or_comes_from_here(place: Place, ref: Ref) -> None:
    """Into S3 there are links, good for this key and for reading; a directory and memory have none."""
    key, path = place.lab.ledger(ref).event.key, f"/api/1/events/{ref}/bundle"
    whole = b"".join(place.lab.store.open(key))
    head = place.client.head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole)))
    assert head.headers["etag"] == f'"{hashlib.sha256(whole).hexdigest()}"'
    answer = place.client.get(path)
    if "location" in answer.headers:
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
        link = answer.headers["location"]
        assert httpx.get(link, trust_env=False, verify=PLAIN).content == whole
        assert httpx.delete(link, trust_env=False, verify=PLAIN).status_code == 403
        assert httpx.get(link.replace(quote(key), "images/x"), trust_env=False).status_code == 403
        secret = link.rpartition("Signature=")[2]
        assert secret not in place.gateway.parts.log.read_text()
    else:
        assert (answer.status_code, answer.content) == (200, whole)
        assert answer.headers["content-type"] == "application/x-tar"
        assert f'filename="{keys.tar_name(key)}"' in answer.headers["content-disposition"]
        part = place.client.get(path, headers={"Range": "bytes=512-1023"})
        assert (part.status_code, part.content) == (206, whole[512:1024])
        assert place.client.get(path, headers={"If-None-Match": head.headers["etag"]}).status_code == 304
    assert hasattr(place.lab.store, "sign")


def test_the_access_log_says_what_was_read(place: Place, ref: Ref) -> None:
    """Who, which event's key and image, and how many bytes."""
    place.get(ref, "images/Img_r01_c02.tif")
    lines = list(access.read(place.gateway.parts.log, key=f"{place.lab.ledger(ref).event.key}/Img_r01_c02.tif"))
    assert (lines[-1].who, lines[-1].status, lines[-1].sent) == ("all", 200, len(FILES["Img_r01_c02.tif"]))
