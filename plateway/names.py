"""Text from elsewhere, for terminals and logs: what is not printable is written as an escape.

Not printable are control characters, directions of writing (U+202E), invisible characters, and bytes that are not
UTF-8, which file names have as surrogates.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from plateway.errors import Rejected


def plain(text: str) -> str:
    """Escape what is not printable, line by line; tabs stay."""
    return (
        text if text.isprintable() else "\n".join("\t".join(map(shown, line.split("\t"))) for line in text.split("\n"))
    )


class PlainFormatter(logging.Formatter):
    """Write log records so that no name forges a line or steers the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's own
        return shown(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))  # with the traceback


DEPTH = 32  # directories below each other; an image directory has one or two


def shown(name: str) -> str:
    """Write a name so that every terminal, log and database takes it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def segments(path: str) -> tuple[str, ...]:
    """Split a relative path into its components; ``.`` and doubled slashes fall away.

    Raises:
        Rejected: it is absolute, climbs with ``..``, names nothing, or cannot be a path at all.
    """
    parts = tuple(part for part in path.split("/") if part not in {"", "."})
    wrong = (
        "contains NUL" if "\0" in path
        else "is absolute" if path.startswith("/")
        else "climbs out with '..'" if ".." in parts
        else "names nothing" if not parts
        else f"has more than {DEPTH} components" if len(parts) > DEPTH
        else _unfit(parts)
    )  # fmt: skip
    if wrong is not None:
        raise Rejected(f'path "{shown(path)[:80]}" {wrong}')
    return parts


def _unfit(parts: Sequence[str]) -> str | None:
    try:
        return "has a component of more than 255 bytes" if max(len(os.fsencode(part)) for part in parts) > 255 else None
    except UnicodeEncodeError:  # half a surrogate pair that stands for no byte
        return "cannot be encoded"


def confined(name: str) -> tuple[str, ...]:
    """Split the name of a file that is to be written; it must be spelt as the file system will have it.

    Raises:
        Rejected: it would leave the directory, or two such names could mean one file.
    """
    parts = segments(name)
    if "/".join(parts) != name:
        raise Rejected(f'path "{shown(name)[:80]}" is not spelt plainly')
    return parts
