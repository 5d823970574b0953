"""Translate keys of objects to names in a store, and back.

A key is any text of 1,024 bytes at most without control characters, backslashes, ``.`` and ``..`` segments. Stores keep
plain names only (see `store.plain`), so empty segments get a name; the few segments that look like such a name are
escaped. The translation is exact in both directions, keeps the order, and a prefix of a key becomes a prefix of its
name: so pages of keys are pages of names.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from plateway.errors import Rejected
from plateway.store.contract import UNPLAIN
from plateway.store.directory import KEPT

LONGEST = 1024  # bytes of a key, and of the name that is made of it
SEGMENT = 250  # bytes between two slashes: what file systems and some S3 servers have room for
LAST = " !"  # the empty segment at the end: sorts before all others
INNER = ".~"  # an empty segment before others: sorts where the slash does


def key(raw: bytes) -> str:
    """Parse the key in the path of a request, percent-decoded exactly once.

    Raises:
        Rejected: it is not valid.
    """
    try:
        return checked(unquote_to_bytes(raw).decode())
    except UnicodeDecodeError:
        raise Rejected("a key is UTF-8") from None


def checked(text: str) -> str:
    """Return a key if it is valid.

    Raises:
        Rejected: it is not; the message has the reason.
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
    """Return the name of a key in the store."""
    *folders, last = text.split("/")
    return "/".join([*map(_name_folder, folders), _escape_segment(last) or LAST])


def shown(kept: str) -> str:
    """Return the key of a name."""
    *folders, last = kept.split("/")
    return "/".join(
        ["" if folder == INNER else _unescape_segment(folder) for folder in folders] + [_unescape_segment(last)]
    )


def beginning(prefix: str) -> str | None:
    """Return the prefix of the names of all keys with this prefix, or None if no key can have it."""
    *folders, last = prefix.split("/")
    if {".", ".."} & set(folders) or UNPLAIN.search(prefix) or (folders and folders[0] == KEPT):
        return None
    return "/".join([*map(_name_folder, folders), _escape_segment(last)])


def _name_folder(segment: str) -> str:
    return _escape_segment(segment) or INNER


def _escape_segment(segment: str) -> str:
    """Escape a segment, or the beginning of one, that would equal one of the two names."""
    if segment.startswith(" "):
        return f" ~{segment[1:]}"
    if segment.startswith(".}"):
        return f".}}!{segment[2:]}"
    if segment[:1] == "." and segment[1:2] > "}":
        return f".}}~{segment[1:]}"
    return segment


def _unescape_segment(part: str) -> str:
    if part == LAST:
        return ""
    if part.startswith(" ~"):
        return f" {part[2:]}"
    if part.startswith(".}!"):
        return f".}}{part[3:]}"
    if part.startswith(".}~"):
        return f".{part[3:]}"
    return part
