"""Places that would empty each other: refused when the site is put together, whatever name leads there."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from plateway import pipeline, settings
from plateway.errors import Misconfigured
from plateway.keys import MARKER_FILE
from plateway.place import DirectoryPlace, Marker

PLACES = {
    "source_root": "{}",
    "staging_root": "{}",
    "bucket_url": "file://{}",
    "archive_target": "file://{}",
    "archive_inbox": "{}",
    "objects_url": "file://{}",
}
PAIRS = [(one, other) for one in PLACES for other in PLACES if one < other]


def same(first: Path) -> Path:
    return first


def below(first: Path) -> Path:
    return first / "deep" / "below"


def above(first: Path) -> Path:
    return first.parent


def by_a_link(first: Path) -> Path:
    link = first.parent.parent / "link"
    link.symlink_to(first)
    return link / "below"


def opened(home: Path, **places: Path) -> None:
    """Put a site together with these directories."""
    apart = {name: home.parent / "apart" / name for name in PLACES if name not in places}
    told = {name: PLACES[name].format(path) for name, path in (apart | places).items()}
    pipeline.open_site(settings.load(home=str(home), **told)).close()


@pytest.mark.parametrize("where", [same, below, above, by_a_link])
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_places_that_overlap_are_refused(tmp_path: Path, one: str, other: str, where: Callable[[Path], Path]) -> None:
    """Purging one would remove what the other keeps."""
    first = tmp_path / "places" / "first"
    first.mkdir(parents=True)
    with pytest.raises(Misconfigured, match=r"same directory|lie in each other"):
        opened(tmp_path / "home", **{one: first, other: where(first)})


@pytest.mark.parametrize("one", PLACES)
@pytest.mark.parametrize("where", [same, below])
def test_the_home_lies_in_no_place(tmp_path: Path, one: str, where: Callable[[Path], Path]) -> None:
    """The catalogue is in the home: a place that is emptied must not take it along."""
    first = tmp_path / "first"
    first.mkdir()
    with pytest.raises(Misconfigured, match=r"lie in each other|PLATEWAY_HOME lies in"):
        opened(where(first), **{one: first})


def test_places_apart_are_accepted(tmp_path: Path) -> None:
    """Names that only begin alike are apart, and the home may have all of them."""
    opened(tmp_path / "home", source_root=tmp_path / "home" / "raw", staging_root=tmp_path / "home" / "raw2")


@pytest.mark.parametrize("setting", ["archive_target", "objects_url"])
@pytest.mark.parametrize(
    ("bucket", "other"), [("raw", "raw"), ("raw", "raw/tape"), ("raw/sub", "raw"), ("raw/sub", "raw/sub/x")]
)
def test_nothing_else_lies_among_the_exports(tmp_path: Path, setting: str, bucket: str, other: str) -> None:
    """What expires below the bucket's prefix would take an archive or objects along."""
    told = {"bucket_url": f"s3://{bucket}", setting: f"s3://{other}"}
    with pytest.raises(Misconfigured, match=f"PLATEWAY_{setting.upper()} and the bucket lie in each other"):
        pipeline.open_site(settings.load(home=str(tmp_path / "home"), **told))


def test_a_prefix_beside_the_exports_is_accepted(tmp_path: Path) -> None:
    """Names that only begin alike are apart in a bucket, too."""
    told = {"bucket_url": "s3://raw/images", "archive_target": "s3://raw/images-tape"}
    told |= {"access_key_id": "key", "secret_access_key": "secret"}
    pipeline.open_site(settings.load(home=str(tmp_path / "home"), **told)).close()


def test_many_who_mark_a_place_at_once_agree(tmp_path: Path) -> None:
    """Whoever is first, everybody reads one whole marker, at any moment, and nothing else is left."""
    for number in range(30):
        path = tmp_path / str(number)
        path.mkdir()
        start = threading.Barrier(4)
        seen: list[Marker | None] = []

        def mark(path: Path = path, start: threading.Barrier = start, seen: list[Marker | None] = seen) -> None:
            place = DirectoryPlace(path, name="bench")
            start.wait()
            assert place.write_marker(Marker(uuid4(), uuid4()))
            seen.append(place.read_marker())

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(mark) for _ in range(4)]:
                done.result()
        assert len(set(seen)) == 1 and seen[0] is not None
        assert [one.name for one in path.iterdir()] == [MARKER_FILE]
