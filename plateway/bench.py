"""The bench: event files, images and trash on an instrument's disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from plateway import events, folder
from plateway.errors import Rejected, Unsettled
from plateway.events import CAP
from plateway.folder import KINDS, File, enter, translate_errors
from plateway.instruments import IGNORED, Instrument, image_matcher, name_matcher
from plateway.isolation import Beat, run_apart
from plateway.names import shown
from plateway.records import Event

EVENTS = "events"  # where a system keeps its event files
TRASH = ".plateway-trash"  # where images wait until they are removed
EVENT_FILE = "event.json"  # name of the event file beside images in the trash
UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")  # ends of such names
RESERVE = 1 << 30  # bytes that staging, and a restore, leave free on a disk

BEATS = 10  # files between two calls that show progress
PATIENCE = timedelta(seconds=5)  # with a disk that does not answer whether it is a system's


@dataclass(frozen=True, slots=True)
class Sighting:
    """An event file that a scan found; ``fault``: why it is not readable."""

    name: str
    size: int
    mtime_ns: int
    fault: str | None = None


def list_systems(root: Path, *, patience: timedelta = PATIENCE) -> list[str]:
    """List the systems below a bench: directories that hold an ``events`` directory, links left out.

    One whose disk fails right now, or does not answer within ``patience``, is listed all the same: ``scan`` then
    reports why.
    """
    looks = {entry.name: partial(_has_events, root / entry.name) for entry in _entries(root) if not entry.is_symlink()}
    return [name for name, found in run_apart(f"list {root}", looks, patience=patience).items() if found]


def list_links(root: Path) -> list[str]:
    """List the links below a bench: where a system was, its directory was swapped."""
    return [entry.name for entry in _entries(root) if entry.is_symlink()]


def _entries(root: Path) -> list[os.DirEntry[str]]:
    """List what may be a system, by name. Only the bench itself is asked: each may be a disk that hangs."""
    with translate_errors(root.name), os.scandir(root) as entries:
        found = [entry for entry in entries if entry.name[0] != "." and entry.name.isprintable()]
    return sorted(found, key=attrgetter("name"))


def scan(
    instrument: Instrument, *, known: Mapping[str, tuple[int, int]] | None = None, beat: Beat | None = None
) -> list[Sighting]:
    """List the event files of one system, by name, without reading them; ``beat`` is called every 10 files.

    Names end in ``.json``, in whatever case. Links, directories and FIFOs of such a name are among them with their
    fault, and so are files whose name merely has ``json`` in it: nothing announced is passed over. What the instrument
    ignores is left out, and what is the same as in ``known``: size and mtime_ns by name.
    """
    found, ignored = [], name_matcher(instrument.ignored)
    with enter(instrument.root, "events") as events, translate_errors("events"):
        for number, entry in enumerate(events.entries()):
            if beat is not None and number % BEATS == 0:
                beat()
            name = entry.name.lower()
            if "json" not in name or ignored(name) or (name[0] == "." and not name.endswith(".json")):
                continue
            if (sighting := _sight(entry, known or {})) is not None:
                found.append(sighting)
    return sorted(found, key=attrgetter("name"))


def count_ignored(files: Iterable[File], ignored: Iterable[str]) -> int:
    """Count the files that are passed over by their name."""
    passed_over = name_matcher(ignored)
    return sum(passed_over(file.name) for file in files)


def in_progress(name: str) -> bool:
    """Return whether a file is called as programs call what they have not finished writing."""
    return name.lower().endswith(UNFINISHED)


def read_event_file(instrument: Instrument, sighting: Sighting) -> bytes:
    """Read one event file as it was sighted.

    Raises:
        Rejected: it is no regular file, or larger than 1 MiB.
        Unsettled: it changed or vanished since it was sighted.
    """
    if sighting.fault is not None:
        raise Rejected(sighting.fault)
    if sighting.size > CAP:
        raise Rejected(f"{sighting.size} bytes: an event file has at most {CAP}")
    with enter(instrument.root, f"events/{sighting.name}") as folder:
        files = folder.files()
        if [(file.size, file.mtime_ns) for file in files] != [(sighting.size, sighting.mtime_ns)]:
            raise Unsettled(f"{shown(sighting.name)}: changed since it was sighted")
        return b"".join(folder.read(files[0]))


def count_images(files: Iterable[File], patterns: Iterable[str], ignored: Iterable[str] = IGNORED) -> int:
    """Count the files that are images by their name, in whatever case."""
    image = image_matcher(patterns, ignored)
    return sum(image(file.name) for file in files)


def _has_events(system: Path, _beat: Beat) -> bool:
    try:
        descriptor = os.open(system, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return stat.S_ISDIR(os.stat("events", dir_fd=descriptor, follow_symlinks=False).st_mode)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    except OSError:  # its disk fails; scan reports how
        return True


def _sight(entry: os.DirEntry[str], known: Mapping[str, tuple[int, int]]) -> Sighting | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # gone since the directory was read
        return None
    if known.get(entry.name) == (status.st_size, status.st_mtime_ns):
        return None
    fault = None
    if not stat.S_ISREG(status.st_mode):
        fault = f"{KINDS[stat.S_IFMT(status.st_mode)]}, only regular files are accepted"
    name = entry.name
    if fault is None and not name.lower().endswith(".json"):
        fault = "the name of an event file ends in .json"
    try:
        name.encode()
    except UnicodeEncodeError:
        name, fault = shown(name), "its name is not UTF-8"
    return Sighting(name, status.st_size, status.st_mtime_ns, fault)


def read_announcement(instrument: Instrument, event: Event) -> bytes:
    """Read the event file of an event; empty if it is missing."""
    try:
        with folder.enter(instrument.root, f"{EVENTS}/{event.file}") as place:
            return b"".join(chunk for file in place.files() for chunk in place.read(file))
    except (Rejected, Unsettled):
        return b""


def read_sidecar(images: folder.Folder, files: Sequence[folder.File]) -> dict[str, Any]:
    """Read the metadata.json among the images, if there is one."""
    for file in files:
        if file.name in {"metadata.json", "Img/metadata.json"}:
            try:
                return events.sidecar(b"".join(images.read(file)))
            except Rejected as error:
                raise Rejected(f"{file.name}: {error}") from error
    return {}
