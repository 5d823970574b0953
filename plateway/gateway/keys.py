"""Keys of objects as people send them, and the names under which stores keep them.

A key is any text of 1,024 bytes at most without control characters, backslashes, ``.`` and ``..`` segments. Stores keep
plain names only (see `store.plain`), so empty segments get a name; the few segments that look like such a name are
written differently. Both ways are exact, keys and names have the same order, and the beginning of a key is the
beginning of its name: so pages of keys are pages of names.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from plateway.errors import Rejected
from plateway.store.contract import UNPLAIN
from plateway.store.directory import KEPT

LONGEST = 1024  # bytes of a key, and of the name that is made of it
SEGMENT = 250  # bytes between two slashes: what file systems and some S3 servers have room for
LAST = " !"  # the empty segment at the end: before all others
INNER = ".~"  # one with something behind it: where the slash is, after all that begins with a dot


def key(raw: bytes) -> str:
    """Read a key out of the path of a request, percent-decoding it exactly once.

    Raises:
        Rejected: it is not one.
    """
    try:
        return checked(unquote_to_bytes(raw).decode())
    except UnicodeDecodeError:
        raise Rejected("a key is UTF-8") from None


def checked(text: str) -> str:
    """Return a key if it is one.

    Raises:
        Rejected: says why not.
    """
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise Rejected("a key is UTF-8") from None
    segments = text.split("/")
    if length > LONGEST:
        raise Rejected(f"the key has {length} bytes, at most {LONGEST} will do")
    if UNPLAIN.search(text):
        raise Rejected("a key has no control characters and no backslashes")
    if {".", ".."} & set(segments):
        raise Rejected("a key has no segments . or ..")
    if segments[0] == KEPT:
        raise Rejected(f"keys below {KEPT} are the store's own")
    if (longest := max(len(segment.encode()) for segment in segments)) > SEGMENT:
        raise Rejected(f"between two slashes the key has {longest} bytes, at most {SEGMENT} will do")
    return text


def name(text: str) -> str:
    """Say under which name a store keeps a key."""
    *folders, last = text.split("/")
    return "/".join([*map(_folder, folders), _part(last) or LAST])


def shown(kept: str) -> str:
    """Say which key has this name."""
    *folders, last = kept.split("/")
    return "/".join(["" if folder == INNER else _whole(folder) for folder in folders] + [_whole(last)])


def beginning(prefix: str) -> str | None:
    """Say how the names of all keys with this prefix begin; None: there are no such keys."""
    *folders, last = prefix.split("/")
    if {".", ".."} & set(folders) or UNPLAIN.search(prefix) or (folders and folders[0] == KEPT):
        return None
    return "/".join([*map(_folder, folders), _part(last)])


def _folder(segment: str) -> str:
    return _part(segment) or INNER


def _part(segment: str) -> str:
    """Write a segment, or the beginning of one, so that it is none of the two names."""
    if segment.startswith(" "):
        return f" ~{segment[1:]}"
    if segment.startswith(".}"):
        return f".}}!{segment[2:]}"
    if segment[:1] == "." and segment[1:2] > "}":
        return f".}}~{segment[1:]}"
    return segment


def _whole(part: str) -> str:
    if part == LAST:
        return ""
    if part.startswith(" ~"):
        return f" {part[2:]}"
    if part.startswith(".}!"):
        return f".}}{part[3:]}"
    if part.startswith(".}~"):
        return f".{part[3:]}"
    return part
