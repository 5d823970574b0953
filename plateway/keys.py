"""Object keys of an event: where its bundle, or each of its files, is in the bucket."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC

from plateway.events import ImagingEvent
from plateway.instruments import Shape

MANIFEST = "metadata.json"

PREFIXES = {"stitch": "images", "video": "videos", "overview": "overview"}
FOLDERS = ("images", "waveforms")  # of files that are objects of their own
NO_IMAGES = (".json", ".tar")  # so that none is taken for a manifest or a bundle
HOME = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?:-r[1-9][0-9]{0,8})?", re.ASCII)
UNFIT = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]|%(?=[0-9A-F]{2})")
ESCAPED = re.compile(r"(?:%[0-9A-F]{2})+")


def event_key(event: ImagingEvent, *, revision: int = 1, whole: bool = False, layout: Shape = "bundle") -> str:
    """Return the key of an event's bundle: ``images/<experiment>/<YYYYMMDD>/<HHMMSS>-<id>.tar``, in UTC.

    The id is cut to 8 hex digits unless ``whole``; later revisions end in ``-r2``, ``-r3`` … Where files are objects of
    their own it is that of their manifest: ``images/<id>[-rN]/metadata.json``, with the whole id.
    """
    if layout == "files":
        return f"images/{event.id}{_revision_suffix(revision)}/{MANIFEST}"
    moment = event.timestamp.astimezone(UTC)
    name = event.id.hex if whole else event.id.hex[:8]
    day = f"{moment.year:04d}{moment:%m%d}"  # %Y alone does not fill up to four digits everywhere
    folder = f"{PREFIXES[event.kind]}/{event.experiment}/{day}"
    return f"{folder}/{moment:%H%M%S}-{name}{_revision_suffix(revision)}.tar"


def layout_of(key: str) -> Shape:
    """Return how the export with this key is stored: as one bundle, or as files."""
    return "bundle" if files_folder(key) is None else "files"


def files_folder(key: str) -> str | None:
    """Return the folder, ``<id>[-rN]``, of the files whose manifest has this key; None if it is no manifest's."""
    first, _, rest = key.partition("/")
    name, _, last = rest.partition("/")
    return name if first == FOLDERS[0] and last == MANIFEST and HOME.fullmatch(name) else None


def file_keys(key: str, image: Callable[[str], bool]) -> Callable[[str], str]:
    """Return a function from the name of a file to its key: ``<images|waveforms>/<id>[-rN]/<name>``.

    ``key`` is that of the manifest. Files that are no images by their name, and all JSON, are waveforms. What a key
    cannot have is written byte by byte, as ``%5C``.
    """

    def place(name: str) -> str:
        if name == MANIFEST:
            return key
        pictured = image(name) and not name.lower().endswith(NO_IMAGES)
        return f"{FOLDERS[not pictured]}/{files_folder(key)}/{escape_name(name)}"

    return place


def file_name(key: str) -> str:
    """Return the name in its bundle of the file with this key; the inverse of `file_keys`."""
    return unescape_name(key.split("/", 2)[2])


def escape_name(name: str) -> str:
    """Write byte by byte, as ``%5C``, what a key cannot have of a file's name."""
    return UNFIT.sub(_escape, name)


def unescape_name(text: str) -> str:
    """Return the name that `escape_name` wrote."""
    return ESCAPED.sub(_unescape, text)


def tar_name(key: str) -> str:
    """Return the file name of an export's tar, in an archive or as a download."""
    name = files_folder(key)
    return key.rpartition("/")[2] if name is None else f"{name}.tar"


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _unescape(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogateescape")


def _revision_suffix(revision: int) -> str:
    return f"-r{revision}" if revision > 1 else ""


MARKER_FILE = ".plateway-place"  # in a directory
MARKER_PREFIX = "plateway-site/"  # in a bucket: one marker for each site that uses it


def is_marker(key: str) -> bool:
    """Return whether an object is a site's marker."""
    return key.startswith(MARKER_PREFIX)
