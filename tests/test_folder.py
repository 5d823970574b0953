"""Folders on a disk: what is never followed, read half or deleted, and what survives a crash at any step."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from plateway import folder
from plateway.errors import PlatewayError, Refused, Rejected, Unavailable, Unsettled
from plateway.folder import File, Folder
from plateway.names import shown

SECRET = b"nothing of this may ever leave"
ODD = [
    "plaat é 12.tif",
    "e\u0301.tif",  # NFD, beside
    "\u00e9.tif",  # NFC: two files, both kept
    "x" * 251 + ".tif",
    "é" * 127,
    "new\nline.tif",
    "tab\t.tif",
    "-rf",
    "--",
    " ",
    "back\\slash",
    "...",
    "~",
    "*?[a]",
    "'\"`$(x)",
    "\u202etif.exe",
    "🦠.tif",
    os.fsdecode(b"\xff\xfe.tif"),
    os.fsdecode(b"\xc3("),
    os.fsdecode(b"\xed\xa0\x80"),
    os.fsdecode(b"\xff" * 255),
    "UPPER",
    "upper",
]


def write(place: Path, content: bytes = b"image", *, mtime_ns: int = 1_700_000_000_123_456_789) -> Path:
    """Write a file, its parents and its time."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    os.utime(place, ns=(mtime_ns, mtime_ns))
    return place


def tree(place: Path) -> dict[str, tuple[bytes, int]]:
    """Record what a directory holds: names, bytes, times."""
    return {
        str(one.relative_to(place)): (one.read_bytes(), one.stat().st_mtime_ns)
        for one in place.rglob("*")
        if one.is_file()
    }


def listing(place: Path) -> list[str]:
    return sorted(one.name for one in place.iterdir())


def read(opened: Folder, name: str, *, size: int = 1 << 20) -> bytes:
    (file,) = (file for file in opened.files() if file.name == name)
    return b"".join(opened.read(file, size=size))


def files(root: Path, path: str) -> list[File]:
    with folder.enter(root, path) as opened:
        return opened.files()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system's directory with one event of three images, one of them in ``Img/``."""
    place = tmp_path / "prince"
    write(place / "a" / "1.tif", b"one")
    write(place / "a" / "2.tif", b"")
    write(place / "a" / "Img" / "3.tif", b"three" * 100_000)
    write(tmp_path / "outside" / "secret", SECRET)
    write(tmp_path / "outside" / "1.tif", SECRET)
    write(tmp_path / "outside" / "Img" / "3.tif", SECRET)
    return place


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Nothing leaves a descriptor open, however it ends."""
    before = descriptors()
    yield
    assert descriptors() <= before  # the garbage of other tests may go meanwhile


@contextmanager
def just_before(call: str, act: Callable[[], object], *, times: int = 1) -> Iterator[list[str]]:
    """Do something right before the given system call is made for the n-th time; yields the calls that were made."""
    made: list[str] = []
    watched = {
        "open",
        "mkdir",
        "rename",
        "unlink",
        "rmdir",
        "fsync",
        "read",
        "write",
        "utime",
        "scandir",
        "stat",
        "link",
    }

    def watch(frame: Any, event: str, called: Any) -> None:
        if event == "c_call" and called.__module__ == "posix" and called.__name__ in watched:
            made.append(called.__name__)
            if called.__name__ == call and made.count(call) == times:
                sys.setprofile(None)
                act()
                sys.setprofile(watch)

    sys.setprofile(watch)
    try:
        yield made
    finally:
        sys.setprofile(None)


# Looking


def test_files_are_listed_recursively_and_sorted(root: Path) -> None:
    """Every regular file below is listed with its size, time, inode and links."""
    found = files(root, "a")
    assert [(file.name, file.size, file.links) for file in found] == [
        ("1.tif", 3, 1),
        ("2.tif", 0, 1),
        ("Img/3.tif", 500_000, 1),
    ]
    status = (root / "a" / "1.tif").stat()
    assert (found[0].mtime_ns, found[0].inode) == (1_700_000_000_123_456_789, status.st_ino)


def test_odd_names_are_kept_as_bytes_and_sorted_by_them(root: Path) -> None:
    """Whatever a file is called, it is listed, read back under its name, and none is folded into another."""
    for name in ODD:
        write(root / "odd" / name, os.fsencode(name))
    with folder.enter(root, "odd") as opened:
        found = opened.files()
        assert [os.fsencode(file.name) for file in found] == sorted(os.fsencode(name) for name in ODD)
        assert all(b"".join(opened.read(file)) == os.fsencode(file.name) for file in found)
        assert all(shown(file.name).isprintable() for file in found)


def test_a_path_may_name_one_file(root: Path) -> None:
    """Then the folder holds this file and nothing that lies beside it."""
    with folder.enter(root, "a/1.tif") as opened:
        assert opened.only == "1.tif"
        assert [file.name for file in opened.files()] == ["1.tif"]
        assert read(opened, "1.tif") == b"one"


def test_an_empty_directory_has_no_files(root: Path) -> None:
    """No files is a listing too."""
    (root / "empty" / "below").mkdir(parents=True)
    assert files(root, "empty") == []


def test_hard_links_are_read_in_full_and_flagged(root: Path) -> None:
    """Two names of the same bytes are two files."""
    (root / "a" / "4.tif").hardlink_to(root / "a" / "1.tif")
    with folder.enter(root, "a") as opened:
        links = {file.name: file.links for file in opened.files()}
        assert links == {"1.tif": 2, "2.tif": 1, "4.tif": 2, "Img/3.tif": 1}
        assert read(opened, "1.tif") == read(opened, "4.tif") == b"one"


def test_a_sparse_file_is_listed_with_its_full_size(root: Path) -> None:
    """Nine gibibytes of holes are nine gibibytes."""
    os.truncate(write(root / "sparse" / "1.tif"), 9 << 30)
    with folder.enter(root, "sparse") as opened:
        (file,) = opened.files()
        assert file.size == 9 << 30
        chunks = opened.read(file)
        assert next(chunks)[:5] == b"image"
        chunks.close()  # type: ignore[attr-defined]


def test_what_is_above_the_root_may_be_a_link(tmp_path: Path, root: Path) -> None:
    """Where the bench is, is the operator's decision."""
    (tmp_path / "bench").symlink_to(root.parent)
    assert len(files(tmp_path / "bench" / root.name, "a")) == 3
    folder.copy(tmp_path / "bench" / root.name, "a", target=tmp_path / "bench" / "staging" / "1")
    folder.move(tmp_path / "bench" / root.name, "a", to="b")
    assert tree(root / "b") == tree(tmp_path / "staging" / "1")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 1 << 20])
def test_reading_yields_exactly_the_bytes(root: Path, size: int) -> None:
    """Chunks are at most as large as asked for, and together they are the file."""
    with folder.enter(root, "a") as opened:
        chunks = list(opened.read(opened.files()[0], size=size))
        assert b"".join(chunks) == b"one"
        assert max(map(len, chunks)) <= size


def test_a_fingerprint_tells_listings_apart(root: Path) -> None:
    """Name, size, time and inode each change it; looking again does not."""
    first = files(root, "a")
    assert folder.fingerprint(first) == folder.fingerprint(files(root, "a"))
    one = first[0]
    others = [
        File("9.tif", one.size, one.mtime_ns, one.inode, 1),
        File(one.name, 4, one.mtime_ns, one.inode, 1),
        File(one.name, one.size, one.mtime_ns + 1, one.inode, 1),
        File(one.name, one.size, one.mtime_ns, one.inode + 1, 1),
    ]
    prints = {folder.fingerprint([other, *first[1:]]) for other in others} | {folder.fingerprint(first[1:])}
    assert len(prints - {folder.fingerprint(first)}) == 5


def test_free_space_is_told(root: Path) -> None:
    """There is some, and a disk that is not there has no number."""
    assert 0 < folder.free(root) <= os.statvfs(root).f_blocks * os.statvfs(root).f_frsize
    with pytest.raises(Unsettled, match=r"^gone: no such file or directory$"):
        folder.free(root / "gone")


def test_exists_knows_directories_and_files(root: Path) -> None:
    """Nothing is a no, a link is refused, a root that is gone is an error."""
    assert [folder.exists(root, path) for path in ("a", "a/1.tif", "b", "a/b/c")] == [True, True, False, False]
    (root / "link").symlink_to("a")
    with pytest.raises(Rejected, match=r"^link: a link is in the way$"):
        folder.exists(root, "link")
    with pytest.raises(Unsettled):
        folder.exists(root / "gone", "a")


# Paths that leave


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", 'path "" names nothing'),
        (".", 'path "." names nothing'),
        ("./", 'path "./" names nothing'),
        ("/", 'path "/" is absolute'),
        ("/etc", 'path "/etc" is absolute'),
        ("//etc", 'path "//etc" is absolute'),
        ("..", "path \"..\" climbs out with '..'"),
        ("a/..", "path \"a/..\" climbs out with '..'"),
        ("a/../../outside", "path \"a/../../outside\" climbs out with '..'"),
        ("a/./../a", "path \"a/./../a\" climbs out with '..'"),
        ("a\0", 'path "a\\x00" contains NUL'),
        ("x" * 256, f'path "{"x" * 80}" has a component of more than 255 bytes'),
        ("a/" * 33, f'path "{("a/" * 33)}" has more than 32 components'),
        ("a\ud800", 'path "a\\ud800" cannot be encoded'),
        ("a/1.tif/b", "a/1.tif: a file where a directory should be"),
        ("a/1.tif/", None),
    ],
)
def test_paths_that_leave_or_lead_nowhere(root: Path, path: str, why: str | None) -> None:
    """Each is refused with its reason, before anything is opened; a slash at the end means nothing."""
    if why is None:
        assert len(files(root, path)) == 1
        return
    with pytest.raises(Rejected) as refusal:
        files(root, path)
    assert str(refusal.value) == why


def test_another_file_system_is_not_entered() -> None:
    """A mount inside a root is not part of it: neither to read, nor to move or remove."""
    with pytest.raises(Rejected, match=r"^proc: on another file system$"):
        files(Path("/"), "proc")
    with pytest.raises(Rejected, match=r"^proc: on another file system$"):
        files(Path("/"), "proc/self/status")
    with pytest.raises(Refused, match=r"^proc: on another file system$"):
        folder.remove(Path("/"), "proc/self", names=[])


def test_devices_are_refused() -> None:
    """A device is not opened, for opening alone may have an effect."""
    with pytest.raises(Rejected, match=r"^null: a device where a directory should be$"):
        files(Path("/dev"), "null")


def test_what_is_missing_may_come(root: Path) -> None:
    """A directory that is not there yet, or a root that went, is unsettled and named without its place."""
    for where, path, why in [(root, "b", "b"), (root, "b/c", "b"), (root / "gone", "a", "gone")]:
        with pytest.raises(Unsettled) as missing:
            files(where, path)
        assert str(missing.value) == f"{why}: no such file or directory"


# What a tree must not hold


def _socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(place.name)
    finally:
        os.chdir(here)


TRAPS: dict[str, Callable[[Path, Path], object]] = {
    "link to a file": lambda place, outside: place.symlink_to(outside / "secret"),
    "link to a directory": lambda place, outside: place.symlink_to(outside),
    "link upwards": lambda place, outside: place.symlink_to(".."),
    "link to a sibling": lambda place, outside: place.symlink_to("1.tif"),
    "link to itself": lambda place, outside: place.symlink_to(place.name),
    "link to nothing": lambda place, outside: place.symlink_to("nothing"),
    "link to the root": lambda place, outside: place.symlink_to("/"),
    "link to a device": lambda place, outside: place.symlink_to("/dev/zero"),
    "FIFO": lambda place, outside: os.mkfifo(place),
    "socket": lambda place, outside: _socket(place),
}
LEVELS = ["a/4.tif", "a/Img/4.tif", "a/new/below/4.tif", "a/.hidden", "a/metadata.json"]


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("level", LEVELS)
def test_links_fifos_and_sockets_are_refused_at_every_level(root: Path, trap: str, level: str) -> None:
    """One of them spoils the folder, is named, and is neither followed nor waited for."""
    place = root / level
    place.parent.mkdir(parents=True, exist_ok=True)
    TRAPS[trap](place, root.parent / "outside")
    kind = trap.split(maxsplit=1)[0]
    with pytest.raises(Rejected) as refusal:
        files(root, "a")
    name = level.removeprefix("a/")
    assert str(refusal.value) == f"{name}: a {kind}, only regular files are accepted"


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("path", ["trap", "trap/1.tif", "a/trap", "a/trap/Img/3.tif"])
def test_a_path_through_a_trap_is_refused(root: Path, trap: str, path: str) -> None:
    """No component of an announced path may be a link or anything else but a directory."""
    place = root / path[: path.index("trap") + 4]
    TRAPS[trap](place, root.parent / "outside")
    with pytest.raises(
        Rejected, match=rf"^{place.relative_to(root)}: a {trap.split(maxsplit=1)[0]} where a directory should be$"
    ):
        files(root, path)


def test_a_bottomless_tree_is_refused(root: Path) -> None:
    """Directories below each other end somewhere, before descriptors do."""
    place = root / "deep"
    for _ in range(40):
        place /= "d"
    write(place / "1.tif")
    with pytest.raises(Rejected, match=r": more than 32 directories below each other$"):
        files(root, "deep")


# What happens between looking and reading


def grow(place: Path) -> None:
    with place.open("ab") as growing:
        growing.write(b"more")


def swap_for(trap: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        place.rename(place.with_name("moved"))
        TRAPS[trap](place, place.parents[2] / "outside")

    return act


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "grown": (grow, "changed since it was listed (3 bytes then, 7 now)"),
    "shrunk": (lambda place: os.truncate(place, 1), "changed since it was listed (3 bytes then, 1 now)"),
    "rewritten": (lambda place: place.write_bytes(b"ONE"), "changed since it was listed (3 bytes then, 3 now)"),
    "touched": (os.utime, "changed since it was listed (3 bytes then, 3 now)"),
    "set back": (lambda place: os.utime(place, ns=(0, 0)), "changed since it was listed (3 bytes then, 3 now)"),
    "replaced": (
        lambda place: write(place.with_name("new"), b"ONE").replace(place),
        "changed since it was listed (3 bytes then, 3 now)",
    ),
    "gone": (lambda place: place.unlink(), "no such file or directory"),
    "swapped for a FIFO": (swap_for("FIFO"), "changed since it was listed (3 bytes then, 0 now)"),
    "swapped for a socket": (swap_for("socket"), "no such device or address"),
    "swapped for a link": (swap_for("link to a file"), "a link"),
    "swapped for a link to its like": (
        lambda place: place.symlink_to(place.rename(place.with_name("moved")).name),
        "a link",
    ),
    "swapped for a device": (swap_for("link to a device"), "a link"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_the_one_listed_is_not_read(root: Path, change: str) -> None:
    """Whatever happened to it since, not one byte is yielded."""
    act, why = CHANGES[change]
    with folder.enter(root, "a") as opened:
        one = opened.files()[0]
        act(root / "a" / "1.tif")
        with pytest.raises((Unsettled, Rejected)) as refusal:
            next(opened.read(one))
    assert str(refusal.value) == f"1.tif: {why}"


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if "link" in trap])
def test_a_directory_swapped_for_a_link_is_not_entered(root: Path, trap: str) -> None:
    """The link is met on the way to the file, also where it leads to a file of the same name."""
    with folder.enter(root, "a") as opened:
        three = opened.files()[2]
        (root / "a" / "Img").rename(root / "a" / "moved")
        TRAPS[trap](root / "a" / "Img", root.parent / "outside")
        with pytest.raises(Rejected, match=r"^Img: a link where a directory should be$"):
            next(opened.read(three))


def test_the_folder_itself_swapped_for_a_link_stays_the_one_entered(root: Path) -> None:
    """Once entered, the folder is held by its descriptor; what takes its name is not looked at."""
    with folder.enter(root, "a") as opened:
        (root / "a").rename(root / "moved")
        (root / "a").symlink_to(root.parent / "outside")
        assert read(opened, "1.tif") == b"one"


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (grow, "changed since it was listed (500000 bytes then, 500004 now)"),
        (lambda place: os.truncate(place, 50_000), "ended 450000 bytes early"),
        (lambda place: os.truncate(place, 0), "ended 450000 bytes early"),
        (os.utime, "changed since it was listed (500000 bytes then, 500000 now)"),
    ],
)
def test_a_file_that_changes_while_it_is_read(root: Path, act: Callable[[Path], object], why: str) -> None:
    """It ends in an error, with no more bytes than were announced."""
    got = b""
    with folder.enter(root, "a") as opened, pytest.raises(Unsettled) as refusal:
        for chunk in opened.read(opened.files()[2], size=50_000):
            if not got:
                act(root / "a" / "Img" / "3.tif")
            got += chunk
    assert str(refusal.value) == f"Img/3.tif: {why}"
    assert len(got) <= 500_000


def test_a_rewrite_that_sets_the_time_back_is_seen(root: Path) -> None:
    """The file's own time can be forged, the time of its last change cannot."""
    place = root / "a" / "Img" / "3.tif"
    before = place.stat()
    with folder.enter(root, "a") as opened:
        chunks = opened.read(opened.files()[2], size=250_000)
        next(chunks)
        while place.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of the file system ticks in milliseconds
            write(place, b"THREE" * 100_000)
        with pytest.raises(Unsettled, match=r"^Img/3.tif: changed while it was read$"):
            list(chunks)


def test_a_file_that_vanishes_while_it_is_read_is_read_to_its_end(root: Path) -> None:
    """Its bytes are held by the descriptor; that its name went is noticed at most afterwards."""
    got = b""
    with folder.enter(root, "a") as opened, suppress(Unsettled):
        for chunk in opened.read(opened.files()[2], size=50_000):
            (root / "a" / "Img" / "3.tif").unlink(missing_ok=True)
            got += chunk
    assert got == b"three" * 100_000


@pytest.mark.parametrize(
    ("call", "times", "act"),
    [
        ("stat", 3, lambda a: (a / "1.tif").unlink()),
        ("open", 5, lambda a: swap_for("link to a directory")(a / "Img")),
        ("scandir", 2, lambda a: swap_for("link to a directory")(a / "Img")),
    ],
)
def test_a_tree_that_changes_while_it_is_listed(
    root: Path, call: str, times: int, act: Callable[[Path], object]
) -> None:
    """A listing is refused or is of what was really inside; the outside is never part of it."""
    found: list[File] = []
    with just_before(call, lambda: act(root / "a"), times=times), suppress(Unsettled, Rejected):
        found = files(root, "a")
    assert len(SECRET) not in {file.size for file in found}


def test_a_restless_link_never_leads_outside(root: Path) -> None:
    """While a directory and a link to the outside take turns, what is read is always from inside."""
    inside, image, stop = root / "a" / "Img", b"three" * 100_000, threading.Event()
    (root / "link").symlink_to(root.parent / "outside" / "Img")

    def swap() -> None:
        while not stop.is_set():
            for one, other in ((inside, root / "kept"), (root / "link", inside)):
                one.rename(other)
            for one, other in ((inside, root / "link"), (root / "kept", inside)):
                one.rename(other)

    swapping = threading.Thread(target=swap)
    swapping.start()
    ends: dict[str, int] = {"read": 0, "refused": 0}
    try:
        for turn in range(20_000):  # until both ends were met, which takes as long as the threads like
            if turn >= 400 and all(ends.values()):
                break
            try:
                with folder.enter(root, "a") as opened:
                    for file in opened.files():
                        content = b"".join(opened.read(file))
                        assert content in {b"one", b"", image}
                ends["read"] += 1
            except (Rejected, Unsettled):
                ends["refused"] += 1
    finally:
        stop.set()
        swapping.join()
    assert all(ends.values()), ends


# Copy


def test_a_copy_has_the_same_names_bytes_and_times(root: Path, tmp_path: Path) -> None:
    """Odd names, empty files and directories below included."""
    for name in ODD:
        write(root / "a" / "odd" / name, os.fsencode(name))
    folder.copy(root, "a", target=tmp_path / "staging" / "prince" / "1")
    assert tree(tmp_path / "staging" / "prince" / "1") == tree(root / "a")
    assert listing(tmp_path / "staging" / "prince") == ["1"]


def test_a_copy_of_one_file_is_a_directory_with_it(root: Path, tmp_path: Path) -> None:
    """So the copy is listed the same way as its source."""
    folder.copy(root, "a/1.tif", target=tmp_path / "staging" / "1")
    assert [file.name for file in files(tmp_path, "staging/1")] == [file.name for file in files(root, "a/1.tif")]


def test_an_empty_folder_is_copied(root: Path, tmp_path: Path) -> None:
    """No images is a folder too."""
    (root / "empty").mkdir()
    folder.copy(root, "empty", target=tmp_path / "staging")
    assert files(tmp_path, "staging") == []


def test_an_equal_copy_is_left_alone(root: Path, tmp_path: Path) -> None:
    """Copying again reads both and writes nothing."""
    target = tmp_path / "staging"
    folder.copy(root, "a", target=target)
    before = files(tmp_path, "staging")
    folder.copy(root, "a", target=target)
    assert files(tmp_path, "staging") == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda target: (target / "1.tif").write_bytes(b"ONE"),
        lambda target: (target / "1.tif").unlink(),
        lambda target: write(target / "9.tif"),
        lambda target: (target / "link").symlink_to("/etc/passwd"),
        lambda target: os.mkfifo(target / "fifo"),
    ],
)
def test_another_copy_is_replaced(root: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """What lies in staging is worth nothing unless it equals the source."""
    target = tmp_path / "staging" / "1"
    folder.copy(root, "a", target=target)
    spoil(target)
    folder.copy(root, "a", target=target)
    assert tree(target) == tree(root / "a")
    assert listing(target.parent) == ["1"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_in_the_place_of_the_copy_stays(root: Path, tmp_path: Path, kind: str) -> None:
    """A file or link where the copy belongs is none of ours."""
    target = tmp_path / "staging"
    target.touch() if kind == "file" else target.symlink_to(tmp_path / "outside")
    with pytest.raises(Refused, match=rf"^staging: a {kind} is in the way$"):
        folder.copy(root, "a", target=target)
    assert target.is_symlink() or target.is_file()
    assert tree(tmp_path / "outside")["secret"][0] == SECRET


def test_a_link_in_the_place_of_the_unfinished_copy_is_not_followed(root: Path, tmp_path: Path) -> None:
    """Clearing away what was left never reaches beyond it."""
    (tmp_path / "staging.part").symlink_to(tmp_path / "outside")
    with pytest.raises(PlatewayError):
        folder.copy(root, "a", target=tmp_path / "staging")
    assert tree(tmp_path / "outside")["secret"][0] == SECRET


def test_an_earlier_turn_of_copying_leaves_what_a_later_one_writes(root: Path, tmp_path: Path) -> None:
    """A worker that lost its lease and wakes up again must not clear away the copy of the one that has it now."""
    target = tmp_path / "staging" / "1"
    write(target.with_name("1.3.part") / "1.tif", b"newer")
    folder.copy(root, "a", target=target, turn=2)
    assert tree(target) == tree(root / "a")
    assert listing(target.parent) == ["1", "1.3.part"]


@pytest.mark.parametrize("left", ["1.part", "1.1.part", "1.3.part"])
def test_a_later_turn_of_copying_clears_away_what_earlier_ones_left(root: Path, tmp_path: Path, left: str) -> None:
    """Nothing that a dead worker wrote stays in staging."""
    target = tmp_path / "staging" / "1"
    write(target.with_name(left) / "1.tif", b"older")
    folder.copy(root, "a", target=target, turn=3)
    assert listing(target.parent) == ["1"]


@pytest.mark.parametrize("beats", [0, 1, 2])
def test_a_copy_whose_turn_is_over_gets_no_name(root: Path, tmp_path: Path, beats: int) -> None:
    """At whatever beat the lease is found lost, up to the last one right before the rename."""
    target, left = tmp_path / "staging" / "1", iter(range(beats))

    def beat() -> None:
        if next(left, None) is None:
            raise Unavailable("another worker holds the lease")

    with pytest.raises(Unavailable, match="another worker holds the lease"):
        folder.copy(root, "a", target=target, turn=2, beat=beat)
    assert listing(target.parent) == []


def test_what_may_not_be_read_is_not_copied(root: Path, tmp_path: Path) -> None:
    """A link among the images stops the copy before anything is made."""
    (root / "a" / "link").symlink_to("/etc/passwd")
    with pytest.raises(Rejected):
        folder.copy(root, "a", target=tmp_path / "staging" / "1")
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: write(a / "0.tif"),
        lambda a: write(a / "1.tif", b"ONE", mtime_ns=1),
        lambda a: (a / "2.tif").unlink(),
        lambda a: grow(a / "Img" / "3.tif"),
        lambda a: (a / "Img").rename(a / "img"),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_source_that_changes_meanwhile_is_unsettled(
    root: Path, tmp_path: Path, change: Callable[[Path], object], times: int
) -> None:
    """No copy is left, neither whole nor in part."""
    target = tmp_path / "staging" / "1"
    with just_before("write", lambda: change(root / "a"), times=times), pytest.raises(Unsettled):
        folder.copy(root, "a", target=target)
    assert listing(target.parent) == []


def test_a_copy_that_reads_back_differently_is_not_kept(root: Path, tmp_path: Path) -> None:
    """The disk is asked for what it really holds before the copy gets its name."""
    target = tmp_path / "staging" / "1"

    def corrupt() -> None:
        write(target.with_name("1.part") / "1.tif", b"0ne")

    with just_before("scandir", corrupt, times=4), pytest.raises(Unavailable) as failure:
        folder.copy(root, "a", target=target)
    assert str(failure.value) == "a: the copy in staging reads back differently"
    assert listing(target.parent) == []


def test_a_copy_is_synced_before_it_gets_its_name(root: Path, tmp_path: Path) -> None:
    """Every file, every directory, then the rename, then the directory that holds the name."""
    (tmp_path / "staging").mkdir()
    with just_before("", lambda: None) as made:
        folder.copy(root, "a", target=tmp_path / "staging" / "1")
    steps = [call for call in made if call in {"write", "utime", "fsync", "rename"}]
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    assert before == ["write", "utime", "fsync", "utime", "fsync", "write", "utime", "fsync", "fsync", "fsync"]
    assert after == ["fsync"]


# The root itself


def seen(place: Path) -> dict[str, tuple[bytes, int]]:
    return tree(place) | {str(one): (b"", 0) for one in place.rglob("*") if one.is_dir()}


ACTS: dict[str, Callable[[Path], object]] = {
    "list": lambda root: files(root, "a"),
    "exists": lambda root: folder.exists(root, "a"),
    "move": lambda root: folder.move(root, "a", to=".trash/1"),
    "move back": lambda root: folder.move(root, ".trash/2", to="b"),
    "remove": lambda root: folder.remove(root, "a", names=["1.tif", "2.tif", "Img/3.tif"]),
    "remove nothing": lambda root: folder.remove(root, "none", names=[]),
    "copy from": lambda root: folder.copy(root, "a", target=root.parent / "staging" / "1"),
    "copy to": lambda root: folder.copy(root.parent / "other", "a", target=root / "1"),
    "copy to again": lambda root: folder.copy(root.parent / "other", "a", target=root / "a"),
    "write": lambda root: land(root, "b"),
    "write at the top": lambda root: land(root, ""),
}


def land(root: Path, path: str) -> None:
    with folder.land(root, path, aside=".part") as landing:
        landing.write("1.tif", [b"new"], sha256=None, mtime_ns=0)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """What the swapped root leads to: it has all that the root had."""
    for place in (tmp_path / "elsewhere", tmp_path / "other"):
        for name in ("a/1.tif", "a/2.tif", "a/Img/3.tif", ".trash/2/1.tif", "a.part/1.tif", "a.old/1.tif"):
            write(place / name, SECRET)
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("act", ACTS)
def test_a_root_that_is_a_link_is_not_followed(root: Path, elsewhere: Path, act: str) -> None:
    """The directory of a system that was swapped for a link: nothing behind it is read, written, moved or removed."""
    before, size = seen(elsewhere), len(list(elsewhere.rglob("*")))
    root.rename(root.with_name("prince.real"))
    root.symlink_to(elsewhere)
    with pytest.raises((Rejected, Refused)):
        ACTS[act](root)
    assert (seen(elsewhere), len(list(elsewhere.rglob("*")))) == (before, size)
    assert root.is_symlink()


@pytest.mark.parametrize("times", range(1, 12))
@pytest.mark.parametrize("call", ["open", "stat", "mkdir", "rename", "unlink", "rmdir", "scandir", "link"])
@pytest.mark.parametrize("act", ["move", "remove", "copy to", "copy to again", "write", "list"])
def test_a_root_that_becomes_a_link_meanwhile_is_not_followed(
    root: Path, elsewhere: Path, act: str, call: str, times: int
) -> None:
    """Swapped between any two calls of the kernel: whatever is done is done to the directory that was opened."""
    before, size = seen(elsewhere), len(list(elsewhere.rglob("*")))

    def swap() -> None:
        root.rename(root.with_name("prince.real"))
        root.symlink_to(elsewhere)

    with just_before(call, swap, times=times), suppress(PlatewayError):
        ACTS[act](root)
    assert (seen(elsewhere), len(list(elsewhere.rglob("*")))) == (before, size)


# Move


def test_a_directory_is_moved_with_its_parents_made(root: Path) -> None:
    """Moving aside is one rename; the files stay the very same."""
    before = files(root, "a")
    folder.move(root, "a", to=".trash/1/images")
    assert files(root, ".trash/1/images") == before
    assert not (root / "a").exists()


def test_a_file_is_moved(root: Path) -> None:
    """An event of one file moves alone."""
    folder.move(root, "a/1.tif", to=".trash/1/1.tif")
    assert (root / ".trash" / "1" / "1.tif").read_bytes() == b"one"
    assert listing(root / "a") == ["2.tif", "Img"]


def test_moving_again_changes_nothing(root: Path) -> None:
    """What has been moved is where it should be, also when its old parent has gone since."""
    folder.move(root, "a/Img", to="b/1")
    folder.move(root, "a/Img", to="b/1")
    assert tree(root / "b" / "1") == {"3.tif": (b"three" * 100_000, 1_700_000_000_123_456_789)}
    folder.move(root, "a", to="c")
    folder.move(root, "a/Img", to="b/1")


def test_moving_there_and_back_restores(root: Path) -> None:
    """A purge can be taken back."""
    before = tree(root / "a")
    folder.move(root, "a", to=".trash/1/images")
    folder.move(root, ".trash/1/images", to="a")
    assert tree(root / "a") == before


@pytest.mark.parametrize("occupant", ["file", "directory", "empty directory"])
@pytest.mark.parametrize("what", ["a", "a/1.tif"])
def test_nothing_is_moved_onto_something(root: Path, what: str, occupant: str) -> None:
    """What is at the target stays, and so does what was to be moved."""
    place = root / "b"
    place.write_bytes(b"mine") if occupant == "file" else place.mkdir()
    if occupant == "directory":
        write(place / "mine")
    before = tree(root)
    with pytest.raises(Refused, match=rf"^b: is taken, {what} stays where it is$"):
        folder.move(root, what, to="b")
    assert tree(root) == before


@pytest.mark.parametrize("what", ["a", "a/1.tif"])
def test_nothing_is_moved_onto_something_that_comes_just_now(root: Path, what: str) -> None:
    """Not even when it appears between the check and the rename."""
    with (
        just_before("fsync", lambda: write(root / ".trash" / "b", b"mine"), times=1),
        pytest.raises(Refused, match=r"^.trash/b: file exists$"),
    ):
        folder.move(root, what, to=".trash/b")
    assert (root / ".trash" / "b").read_bytes() == b"mine"
    assert len(tree(root / "a")) == 3


def without(code: int) -> folder.Rename:
    """A rename as kernels, file systems and containers answer that cannot do it exclusively."""

    def rename(name: str, new: str, giving: int, taking: int) -> None:
        raise OSError(code, os.strerror(code))

    return rename


UNAVAILABLE = [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM]


@pytest.mark.parametrize("code", UNAVAILABLE)
@pytest.mark.parametrize("what", ["a", "a/1.tif"])
def test_without_an_exclusive_rename_things_are_moved(root: Path, what: str, code: int) -> None:
    """NFS, FUSE and old kernels: there and back, the very same files, under one name each."""
    before = files(root, what)
    folder.move(root, what, to=".trash/1/images", rename=without(code))
    assert not (root / what).exists()
    folder.move(root, ".trash/1/images", to=what, rename=without(code))
    assert listing(root / ".trash" / "1") == []
    assert [(one.size, one.inode, one.links) for one in files(root, what)] == [
        (one.size, one.inode, one.links) for one in before
    ]


def arrive(place: Path, kind: str) -> None:
    """Put something at a name, as an instrument does that writes there again."""
    if kind == "a file":
        write(place, b"mine")
    elif kind == "a directory":
        write(place / "mine", b"mine")
    elif kind == "a link":
        place.symlink_to(place.parent.parent.parent / "outside")
    else:
        os.mkfifo(place)


@pytest.mark.parametrize("kind", ["a file", "a directory", "a link", "a FIFO"])
@pytest.mark.parametrize("what", ["a", "a/1.tif"])
def test_without_an_exclusive_rename_nothing_is_overwritten(root: Path, what: str, kind: str) -> None:
    """What comes to the name between the check and the rename stays, and so does what was to be moved."""

    def rename(*_: object) -> None:
        arrive(root / ".trash" / "b", kind)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    before = tree(root / "a"), tree(root.parent / "outside")
    with pytest.raises(Refused):
        folder.move(root, what, to=".trash/b", rename=rename)
    assert (tree(root / "a"), tree(root.parent / "outside")) == before
    taken = root / ".trash" / "b"
    assert kind == "a file" or not stat.S_ISREG(taken.lstat().st_mode)
    assert kind not in {"a file", "a directory"} or (taken / "mine" if kind == "a directory" else taken).read_bytes()


@pytest.mark.parametrize("what", ["a", "a/1.tif"])
def test_without_an_exclusive_rename_a_late_arrival_stays(root: Path, what: str) -> None:
    """The kernel is asked for a link, or for a rename onto a directory that holds something: neither overwrites."""
    call, taken = ("link", b"mine") if what != "a" else ("rename", b"mine")
    with (
        just_before(call, lambda: arrive(root / ".trash" / "b", "a file" if call == "link" else "a directory")),
        pytest.raises(Refused),
    ):
        folder.move(root, what, to=".trash/b", rename=without(errno.ENOSYS))
    place = root / ".trash" / "b"
    assert (place if call == "link" else place / "mine").read_bytes() == taken
    assert len(tree(root / "a")) == 3


def test_a_file_written_again_while_it_is_moved_stays(root: Path) -> None:
    """The old content has its new name, the new content keeps the old one."""

    def again() -> None:
        write(root / "new", b"new").replace(root / "a" / "1.tif")

    with just_before("fsync", again, times=2):  # after the link, before the old name would go
        folder.move(root, "a/1.tif", to=".trash/1.tif", rename=without(errno.ENOSYS))
    assert (root / ".trash" / "1.tif").read_bytes() == b"one"
    assert (root / "a" / "1.tif").read_bytes() == b"new"


FILTERED = """
import ctypes, errno, os, platform, struct, sys
from pathlib import Path
from plateway import errors, folder

def refuse(calls):  # seccomp(2): this process's kernel answers these system calls with an error
    rules = [(0x20, 0, 0, 0)]
    for number, code in calls.items():
        rules += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | code)]
    program = b"".join(struct.pack("HBBI", *rule) for rule in [*rules, (0x06, 0, 0, 0x7FFF0000)])
    kept = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules) + 1, ctypes.addressof(kept)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header, 0, 0) == 0, os.strerror(ctypes.get_errno())

root, what, to, links = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "links"
renameat2, linkat = {"x86_64": (316, 265), "aarch64": (276, 37)}[platform.machine()]
refuse({renameat2: errno.EINVAL} | ({} if links else {linkat: errno.EPERM}))
try:
    folder.move(root, what, to=to)
except errors.Refused:
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("what", "links", "code"), [("a", "links", 0), ("a/1.tif", "links", 0), ("a", "none", 0), ("a/1.tif", "none", 3)]
)
def test_a_kernel_that_cannot_rename_exclusively(root: Path, what: str, links: str, code: int) -> None:
    """As on NFS and FUSE; where there are no links either, a file stays where it is."""
    before = tree(root)
    arguments = [sys.executable, "-c", FILTERED, str(root), what, ".trash/b", links]
    assert subprocess.run(arguments, check=False, timeout=60).returncode == code
    assert sorted(content for content, _ in tree(root).values()) == sorted(content for content, _ in before.values())
    assert (root / what).exists() == bool(code)
    assert (root / ".trash" / "b").exists() != bool(code)


def test_what_is_nowhere_is_not_moved(root: Path) -> None:
    """Neither here nor there is no success: perhaps the disk is not mounted."""
    with pytest.raises(Unsettled, match=r"^b: is gone, and not at c either$"):
        folder.move(root, "b", to="c")
    with pytest.raises(Unsettled):
        folder.move(root / "gone", "a", to="b")


@pytest.mark.parametrize(
    ("path", "to", "why"),
    [
        ("a", "a", "a: cannot move into itself"),
        ("a", "a/b", "a: cannot move into itself"),
        ("a", "../outside/b", "path \"../outside/b\" climbs out with '..'"),
        ("a", "/tmp/b", 'path "/tmp/b" is absolute'),
        ("../outside", "b", "path \"../outside\" climbs out with '..'"),
        ("a", "link/b", "link: a link where a directory should be"),
        ("a", "link", "link: a link is in the way"),
        ("link", "b", "link: a link is in the way"),
        ("link/Img", "b", "link: a link where a directory should be"),
        ("fifo", "b", "fifo: a FIFO is in the way"),
        ("a", "a2/1.tif/b", "a2/1.tif: a file where a directory should be"),
    ],
)
def test_nothing_moves_out_in_or_through_links(root: Path, path: str, to: str, why: str) -> None:
    """Refused with the reason, and everything is where it was."""
    (root / "link").symlink_to(root.parent / "outside")
    os.mkfifo(root / "fifo")
    write(root / "a2" / "1.tif")
    inside, outside = tree(root), tree(root.parent / "outside")
    with pytest.raises(Refused) as refusal:
        folder.move(root, path, to=to)
    assert str(refusal.value) == why
    assert (tree(root), tree(root.parent / "outside")) == (inside, outside)


def test_nothing_moves_to_another_file_system(root: Path) -> None:
    """A move is one rename or nothing; bytes are never copied on the way to the trash."""
    with pytest.raises(Refused, match=r": on another file system$"):
        folder.move(Path("/"), str(root / "a").removeprefix("/"), to="proc/a")
    assert len(tree(root / "a")) == 3


def test_a_move_is_synced_on_both_sides(root: Path) -> None:
    """Parents as they are made, and both directories after the rename; again when it is repeated."""
    with just_before("", lambda: None) as made:
        folder.move(root, "a/Img", to="t/1/images")
    assert [call for call in made if call in {"mkdir", "fsync"}] == [
        "mkdir",
        "fsync",
        "mkdir",
        "fsync",
        "fsync",
        "fsync",
    ]
    with just_before("", lambda: None) as made:
        folder.move(root, "a/Img", to="t/1/images")
    assert [call for call in made if call in {"mkdir", "fsync", "rename"}] == ["fsync", "fsync"]


# Remove


def names(root: Path, path: str) -> list[str]:
    return [file.name for file in files(root, path)]


def test_exactly_the_named_files_are_removed(root: Path) -> None:
    """A folder that holds nothing else goes with its directories; its neighbours stay."""
    write(root / "b" / "1.tif")
    (root / "a" / "empty" / "below").mkdir(parents=True)
    folder.remove(root, "a", names=names(root, "a"))
    assert listing(root) == ["b"]


def test_one_file_is_removed_alone(root: Path) -> None:
    """An event of one file leaves its directory as it is."""
    folder.remove(root, "a/1.tif", names=["1.tif"])
    assert listing(root / "a") == ["2.tif", "Img"]


def test_odd_names_are_removed(root: Path) -> None:
    """Whatever a file is called, it can go."""
    for name in ODD:
        write(root / "odd" / name)
    folder.remove(root, "odd", names=ODD)
    assert not (root / "odd").exists()


def test_hard_linked_images_are_removed(root: Path) -> None:
    """That one name of a file went does not make its other name strange."""
    (root / "a" / "4.tif").hardlink_to(root / "a" / "1.tif")
    (root / "kept").hardlink_to(root / "a" / "1.tif")
    folder.remove(root, "a", names=names(root, "a"))
    assert (root / "kept").read_bytes() == b"one"


def test_removing_goes_on_where_it_ended(root: Path) -> None:
    """Files that are gone already are no reason to stop, and neither is the whole folder."""
    everything = names(root, "a")
    (root / "a" / "1.tif").unlink()
    folder.remove(root, "a", names=everything)
    folder.remove(root, "a", names=everything)
    folder.remove(root, "a/Img", names=everything)
    assert listing(root) == []


def test_a_root_that_is_gone_is_no_removed_folder(root: Path) -> None:
    """An unmounted disk does not count as purged."""
    with pytest.raises(Unsettled, match=r"^gone: no such file or directory$"):
        folder.remove(root / "gone", "a", names=[])


def turn(place: Path, kind: str) -> None:
    """Put a link, or a directory with a file, in the place of something."""
    place.rename(place.parent.with_name("turned"))
    if kind == "link":
        place.symlink_to(place.parent.with_name("turned"))
    else:
        write(place / "x")


STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a new image": (lambda a: write(a / "9.tif"), "a: also holds 9.tif"),
    "a new image below": (lambda a: write(a / "Img" / "9.tif"), "a: also holds Img/9.tif"),
    "a hidden file": (lambda a: write(a / ".nfs0001"), "a: also holds .nfs0001"),
    "many": (
        lambda a: [write(a / f"n{number}") for number in range(7)],
        "a: also holds n0, n1, n2, n3, n4 …",
    ),
    "the same name in another case": (lambda a: write(a / "1.TIF"), "a: also holds 1.TIF"),
    "a link": (lambda a: (a / "link").symlink_to("1.tif"), "link: a link, only regular files are accepted"),
    "a link outside": (
        lambda a: (a / "Img" / "link").symlink_to("/etc"),
        "Img/link: a link, only regular files are accepted",
    ),
    "a FIFO": (lambda a: os.mkfifo(a / "fifo"), "fifo: a FIFO, only regular files are accepted"),
    "an image become a directory": (lambda a: turn(a / "1.tif", "directory"), "a: also holds 1.tif/x"),
    "an image become a link": (
        lambda a: turn(a / "1.tif", "link"),
        "1.tif: a link, only regular files are accepted",
    ),
    "the folder become a link": (lambda a: turn(a, "link"), "a: a link is in the way"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_nothing_is_removed_beside_something_unexpected(root: Path, stranger: str) -> None:
    """One file that was not proven, and every file stays."""
    expected = names(root, "a")
    act, why = STRANGERS[stranger]
    act(root / "a")
    before = tree(root)
    with pytest.raises(Refused) as refusal:
        folder.remove(root, "a", names=expected)
    assert str(refusal.value) == why
    assert tree(root) == before


def test_no_names_remove_no_files(root: Path) -> None:
    """A list that came out empty by mistake deletes nothing."""
    with pytest.raises(Refused):
        folder.remove(root, "a", names=[])
    assert len(tree(root / "a")) == 3


ARRIVALS: dict[str, Callable[[Path], object]] = {
    "image": lambda a: write(a / "9.tif", b"new"),
    "image below": lambda a: write(a / "Img" / "9.tif", b"new"),
    "image in a new directory": lambda a: write(a / "new" / "9.tif", b"new"),
}


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_arrives_while_a_folder_is_removed_stays(root: Path, arrival: str, times: int) -> None:
    """A new file is not one of those that were proven, so it is kept with its directories."""
    expected = names(root, "a")
    with just_before("unlink", lambda: ARRIVALS[arrival](root / "a"), times=times), pytest.raises(Refused):
        folder.remove(root, "a", names=expected)
    assert b"new" in {content for content, _ in tree(root).values()}


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda image: write(image, b"new", mtime_ns=1),
    "replaced": lambda image: write(image.with_name("new"), b"new").replace(image),
    "swapped for a link": lambda image: turn(image, "link"),
    "swapped for a directory": lambda image: turn(image, "directory"),
}


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_what_changes_before_its_turn_to_go_stays(root: Path, replacement: str) -> None:
    """Each file is looked at once more right before it goes."""
    expected, outside = names(root, "a"), tree(root.parent / "outside")
    with (
        just_before("unlink", lambda: REPLACEMENTS[replacement](root / "a" / "2.tif"), times=1),
        pytest.raises(Refused),
    ):
        folder.remove(root, "a", names=expected)
    assert (root / "a" / "2.tif").exists()
    assert tree(root.parent / "outside") == outside


def test_a_removal_is_synced(root: Path) -> None:
    """Each directory after its files went, and the one that held the folder at the end."""
    with just_before("", lambda: None) as made:
        folder.remove(root, "a", names=names(root, "a"))
    steps = [call for call in made if call in {"unlink", "rmdir", "fsync"}]
    assert steps == ["unlink", "fsync", "unlink", "unlink", "rmdir", "fsync", "rmdir", "fsync"]


# Crashes


CHILD = """
import errno, os, signal, sys
from pathlib import Path
from plateway import folder

verb, root, other, deadly = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
effects = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.utime", "shutil.rmtree"}
count = 0

def die(event, args):
    global count
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
    if event in effects or writes:
        count += 1
        if count == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
if verb == "copy":
    folder.copy(root, "a", target=Path(other))
elif verb == "move":
    folder.move(root, "a", to=other)
elif verb == "link":
    def rename(*_):
        raise OSError(errno.EINVAL, "not here")
    folder.move(root, "a/1.tif", to=other, rename=rename)
else:
    folder.remove(root, "a", names=other.split("|"))
"""


def crash(verb: str, root: Path, other: str, *, deadly: int) -> bool:
    """Run a verb in a process that is killed right before its n-th effect; tell whether it came that far."""
    done = subprocess.run([sys.executable, "-c", CHILD, verb, str(root), other, str(deadly)], check=False, timeout=60)
    assert done.returncode in {0, -9}
    return done.returncode == -9


def points(verb: str, fresh: Callable[[int], tuple[Path, str]], check: Callable[[Path, str], None]) -> int:
    """Kill a verb before each of its effects, look, do it again, look again; return how many effects there were."""
    for deadly in range(1, 100):
        root, other = fresh(deadly)
        if not crash(verb, root, other, deadly=deadly):
            return deadly - 1
        check(root, other)
    raise AssertionError("no end of effects")


def _images(place: Path) -> dict[str, tuple[bytes, int]]:
    for name in ("1.tif", "2.tif", "Img/3.tif"):
        write(place / name, name.encode() * 10)
    return tree(place)


@pytest.mark.parametrize("existing", [False, True])
def test_a_copy_survives_a_kill_before_each_effect(tmp_path: Path, existing: bool) -> None:
    """The source is whole, a target is complete or not there, and doing it again ends with nothing but the copy."""
    expected = _images(tmp_path / "like")

    def fresh(number: int) -> tuple[Path, str]:
        root, target = tmp_path / str(number), tmp_path / f"staging{number}" / "1"
        _images(root / "a")
        if existing:
            write(target / "old.tif", b"old")
        return root, str(target)

    def check(root: Path, other: str) -> None:
        target = Path(other)
        assert tree(root / "a") == expected
        assert not target.exists() or tree(target) == expected or tree(target).keys() == {"old.tif"}
        folder.copy(root, "a", target=target)
        assert (tree(target), tree(root / "a")) == (expected, expected)
        assert listing(target.parent) == ["1"]

    assert points("copy", fresh, check) >= 10


def test_a_move_survives_a_kill_before_each_effect(tmp_path: Path) -> None:
    """The folder is whole at one of its two names, and doing it again brings it to the second."""
    expected = _images(tmp_path / "like")

    def fresh(number: int) -> tuple[Path, str]:
        _images(tmp_path / str(number) / "a")
        return tmp_path / str(number), "trash/1/images"

    def check(root: Path, other: str) -> None:
        assert tree(root / "a" if (root / "a").exists() else root / other) == expected
        folder.move(root, "a", to=other)
        assert tree(root) == {f"{other}/{name}": content for name, content in expected.items()}

    assert points("move", fresh, check) >= 2


def test_a_move_by_link_survives_a_kill_before_each_effect(tmp_path: Path) -> None:
    """The file is whole at one of its names or at both, and doing it again leaves it the second."""
    expected = _images(tmp_path / "like")["1.tif"]

    def fresh(number: int) -> tuple[Path, str]:
        _images(tmp_path / str(number) / "a")
        return tmp_path / str(number), "trash/1.tif"

    def check(root: Path, other: str) -> None:
        there = tree(root)
        assert {there[name] for name in ("a/1.tif", other) if name in there} == {expected}
        folder.move(root, "a/1.tif", to=other)
        assert "a/1.tif" not in tree(root)
        assert tree(root)[other] == expected

    assert points("link", fresh, check) == 3


def test_a_removal_survives_a_kill_before_each_effect(tmp_path: Path) -> None:
    """What is left is of what was named, its neighbour is whole, and doing it again ends it."""
    expected = _images(tmp_path / "like")

    def fresh(number: int) -> tuple[Path, str]:
        _images(tmp_path / str(number) / "a")
        _images(tmp_path / str(number) / "b")
        return tmp_path / str(number), "|".join(expected)

    def check(root: Path, other: str) -> None:
        left = tree(root / "a") if (root / "a").exists() else {}
        assert left.items() <= expected.items()
        folder.remove(root, "a", names=other.split("|"))
        assert listing(root) == ["b"]
        assert tree(root / "b") == expected

    assert points("remove", fresh, check) == 5


def test_a_full_disk_leaves_no_copy_and_the_source_whole(tmp_path: Path) -> None:
    """What was written so far is given back."""
    expected = _images(tmp_path / "root" / "a")
    limited = (
        "import resource, signal, sys; from pathlib import Path; from plateway import errors, folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (70, 70))\n"
        "try: folder.copy(Path(sys.argv[1]), 'a', target=Path(sys.argv[2]))\n"
        "except errors.Unavailable as error: print(error)\n"
    )
    target = tmp_path / "staging" / "1"
    arguments = [sys.executable, "-c", limited, str(tmp_path / "root"), str(target)]
    done = subprocess.run(arguments, check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "Img/3.tif: file too large\n"
    assert listing(target.parent) == []
    assert tree(tmp_path / "root" / "a") == expected


# Errors


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (errno.ENOENT, Unsettled),
        (errno.EIO, Unsettled),
        (errno.ESTALE, Unsettled),
        (errno.EACCES, Unsettled),
        (errno.EPERM, Unsettled),
        (errno.ETIMEDOUT, Unsettled),
        (errno.EHOSTDOWN, Unsettled),
        (errno.ENOTCONN, Unsettled),
        (errno.ELOOP, Rejected),
        (errno.ENAMETOOLONG, Rejected),
        (errno.EXDEV, Refused),
        (errno.ENOTEMPTY, Refused),
        (errno.EEXIST, Refused),
        (errno.ENOSPC, Unavailable),
        (errno.EDQUOT, Unavailable),
        (errno.EROFS, Unavailable),
        (errno.EMFILE, Unavailable),
        (None, Unsettled),
    ],
)
def test_errors_of_the_disk_become_ours(code: int | None, meaning: type[PlatewayError]) -> None:
    """Each has a meaning, a printable name and no path."""
    with pytest.raises(meaning) as translated, folder.translate_errors("Img/\udcff\n.tif"):
        raise OSError(code, "x", "/secret/place") if code else OSError("/secret/place")
    reason = "a link" if code == errno.ELOOP else os.strerror(code or errno.EIO).lower()
    assert str(translated.value) == f"Img/\\udcff\\n.tif: {reason}"
