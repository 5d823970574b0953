"""What lies at an address comes without a catalogue: whole, in part, one image, or everything below a prefix."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from plateway import bundle
from plateway.catalog import Catalog
from plateway.errors import Damaged, NotFound
from plateway.folder import File
from plateway.pipeline import addresses
from plateway.simulator import Announced
from plateway.store import Store, open_store
from plateway.store.admin import Address
from plateway.store.directory import Directory
from plateway.store.per_file import PerFile
from plateway.store.wrappers import ReadOnly
from tests.databases import furnish
from tests.lab import Clock, Lab

MIB = 1 << 20
PLAIN = {"notes/a.txt": b"a", "notes/b.tar": b"no bundle", "notes2": b"sibling", "notes.d/x": b"x"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Announced, str]:
    """A bucket with one bundle and some plain objects: its directory, the event, the bundle's key."""
    home = tmp_path_factory.mktemp("sources")
    for name in ("bench", "bucket"):
        (home / name).mkdir()
    clock = Clock()
    with closing(Catalog(f"sqlite:///{home}/catalogue.db", clock=clock)) as catalog:
        furnish(catalog)
        lab = Lab(home, open_store((home / "bucket").as_uri()), clock, catalog)
        announced, ref = lab.exported()
        key = lab.ledger(ref).event.key
    for name, content in PLAIN.items():
        lab.store.put(name, [content], size=len(content), part_size=8 * MIB, metadata={})
    return home / "bucket", announced, key


@pytest.fixture
def place(made: tuple[Path, Announced, str], tmp_path: Path) -> Path:
    """A copy of that bucket, to be damaged."""
    shutil.copytree(made[0], tmp_path / "bucket")
    return tmp_path / "bucket"


@pytest.fixture
def store(place: Path) -> Store:
    return ReadOnly(Directory(place))


def restored(store: Store, to: Path, where: str = "s3://bucket") -> dict[str, str]:
    """Restore what is at an address; say what became of each object."""
    done = addresses.restore(addresses.find(store, Address.parse(where)), to=to)
    return {one.key: one.result for one in done}


def files(directory: Path) -> dict[str, bytes]:
    return {str(one.relative_to(directory)): one.read_bytes() for one in directory.rglob("*") if one.is_file()}


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def event(made: tuple[Path, Announced, str]) -> Announced:
    return made[1]


@pytest.fixture
def key(made: tuple[Path, Announced, str]) -> str:
    return made[2]


def test_everything_comes_back(store: Store, event: Announced, key: str, tmp_path: Path) -> None:
    """Bundles as the files that they were made of, other objects as they are; again: nothing is left to do."""
    told = restored(store, tmp_path / "back")
    assert set(told.values()) == {"restored"}
    found = files(tmp_path / "back")
    folder = f"{key.removesuffix('.tar')}/"
    inside = {name.removeprefix(folder): found.pop(name) for name in [*found] if name.startswith(folder)}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in inside.items()} == event.files
    assert found == PLAIN
    assert restored(store, tmp_path / "back")[key] == "restored already"
    assert not (tmp_path / "back" / addresses.ASIDE).exists()


def test_times_come_back(store: Store, event: Announced, key: str, tmp_path: Path) -> None:
    """Files have the time that they had on the bench, to the second."""
    restored(store, tmp_path / "back", f"s3://bucket/{key}")
    for name in event.files:
        path = tmp_path / "back" / Path(key).stem / name
        assert int(path.stat().st_mtime) == int((event.images / name).stat().st_mtime)


def test_an_address_is_an_object_and_a_folder(store: Store, tmp_path: Path) -> None:
    """What merely begins alike stays where it is."""
    assert set(restored(store, tmp_path / "back", "s3://bucket/notes")) == {"notes/a.txt", "notes/b.tar"}
    assert files(tmp_path / "back") == {"a.txt": b"a", "b.tar": b"no bundle"}
    assert restored(store, tmp_path / "one", "s3://bucket/notes2") == {"notes2": "restored"}


def test_other_files_are_never_overwritten(store: Store, event: Announced, key: str, tmp_path: Path) -> None:
    """One that is there with other bytes fails its object alone; a file that is missing is brought again."""
    back = tmp_path / "back"
    (back / "notes").mkdir(parents=True)
    (back / "notes" / "a.txt").write_bytes(b"mine")
    told = restored(store, back)
    assert (told.pop("notes/a.txt"), set(told.values())) == ("failed", {"restored"})
    first, second, *_ = event.files
    here = back / key.removesuffix(".tar")
    (here / first).unlink()
    assert restored(store, back)[key] == "restored"
    (here / second).write_bytes(b"mine")
    assert restored(store, back)[key] == "failed"
    assert ((here / second).read_bytes(), (back / "notes" / "a.txt").read_bytes()) == (b"mine", b"mine")


def test_a_plan_writes_nothing(store: Store, event: Announced, key: str, tmp_path: Path) -> None:
    """It says how many files would come, and which are there already."""
    found = addresses.find(store, Address("bucket"))
    told = {one.key: one for one in addresses.plan(found, to=tmp_path / "back")}
    assert {one.result for one in told.values()} == {"would restore"}
    assert not (tmp_path / "back").exists()
    assert f"{len(event.files)} of {len(event.files)} files" in told[key].reasons[0]
    restored(store, tmp_path / "back")
    assert {one.result for one in addresses.plan(found, to=tmp_path / "back")} == {"there already"}


def test_one_wrong_image_is_told_and_the_others_come(
    store: Store, place: Path, event: Announced, key: str, tmp_path: Path
) -> None:
    """It gets no name, and cat hands none of it out."""
    first, *others = event.files
    content = (place / key).read_bytes()
    flip(place / key, content.index((event.images / first).read_bytes()) + 1000)
    assert restored(store, tmp_path / "back", f"s3://bucket/{key}") == {key: "damaged"}
    assert set(files(tmp_path / "back" / Path(key).stem)) == set(others)
    with pytest.raises(Damaged, match="sha256"):
        addresses.image(store, key, first)
    assert b"".join(addresses.image(store, key, others[0])) == (event.images / others[0]).read_bytes()


def test_headers_and_the_manifest_are_proven_too(store: Store, place: Path, key: str, tmp_path: Path) -> None:
    """A changed time, name, head or seal is damage, although every image is right."""
    content = (place / key).read_bytes()
    for number, at in enumerate(
        [136, 2, content.rindex(b'"timestamp"') + 15, content.rindex(b'"sealed"') + 13, content.rindex(b'"name"') + 11]
    ):
        (place / key).write_bytes(content)
        flip(place / key, at)
        assert restored(store, tmp_path / str(number), f"s3://bucket/{key}") == {key: "damaged"}, at


def test_a_bundle_that_was_cut_off_is_no_plain_file(store: Store, place: Path, key: str, tmp_path: Path) -> None:
    """Its label says what it was."""
    (place / key).write_bytes((place / key).read_bytes()[:-1024])
    assert restored(store, tmp_path / "back", f"s3://bucket/{key}") == {key: "damaged"}
    assert files(tmp_path / "back") == {}


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "a//b"])
def test_names_that_climb_out_are_refused(place: Path, name: str, tmp_path: Path) -> None:
    """A bundle that somebody made by hand writes nothing, and nothing beside the directory."""
    layout = bundle.plan([File(name, 3, 0, 0, 1)], {})
    (place / "made.tar").write_bytes(b"".join(bundle.Packing(layout, lambda _: [b"abc"])))
    assert restored(Directory(place), tmp_path / "back", "s3://bucket/made.tar") == {"made.tar": "failed"}
    assert files(tmp_path / "back") == {}
    assert not (tmp_path / "out").exists()


def test_cat(store: Store, event: Announced, key: str) -> None:
    """An object whole, an image by its name; what is not there is said."""
    assert b"".join(addresses.cat(store, "notes/b.tar")) == b"no bundle"
    for name, sha256 in event.files.items():
        assert hashlib.sha256(b"".join(addresses.image(store, key, name))).hexdigest() == sha256
    with pytest.raises(NotFound, match="similar"):
        addresses.image(store, key, f"{next(iter(event.files))[:-1]}")
    with pytest.raises(Damaged, match=r"notes/b\.tar"):
        addresses.image(store, "notes/b.tar", "a")
    with pytest.raises(NotFound):
        addresses.cat(store, "nothing")
    with pytest.raises(NotFound):
        addresses.image(store, "nothing", "a")


@pytest.fixture
def single(tmp_path: Path) -> tuple[Announced, str]:
    """A bucket with one bundle of single files: the event, and the key of its manifest."""
    for name in ("bench", "bucket"):
        (tmp_path / name).mkdir()
    clock, store = Clock(), PerFile(open_store((tmp_path / "bucket").as_uri()))
    with closing(Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)) as catalog:
        furnish(catalog)
        lab = Lab(tmp_path, store, clock, catalog, options={"layout": "files"})
        announced, ref = lab.exported()
        return announced, lab.ledger(ref).event.key


def test_bundles_of_single_files_come_back_as_well(single: tuple[Announced, str], tmp_path: Path) -> None:
    """All of one by its folder or its manifest, one image by its name; a part of it, or the manifest, is what it is."""
    event, key = single
    store, folder = ReadOnly(Directory(tmp_path / "bucket")), key.rpartition("/")[0]
    for number, where in enumerate([f"s3://bucket/{folder}", f"s3://bucket/{key}"]):
        assert restored(store, tmp_path / str(number), where) == {key: "restored"}
        found = files(tmp_path / str(number))
        assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == event.files
    assert restored(store, tmp_path / "all") == {key: "restored"}
    for name in event.files:
        assert b"".join(addresses.image(store, key, name)) == (event.images / name).read_bytes()
    assert json.loads(b"".join(addresses.cat(store, key)))["ref_id"] == str(event.id)
    image = next(one.key for one in store.list(f"{folder}/") if one.key != key)
    assert restored(store, tmp_path / "one", f"s3://bucket/{image}") == {image: "restored"}
    flip(tmp_path / "bucket" / image, 100)
    assert restored(store, tmp_path / "wrong", f"s3://bucket/{folder}") == {key: "damaged"}
