"""Text from elsewhere, for terminals and logs: what is not printable is written as an escape.

Not printable are control characters, directions of writing (U+202E), invisible characters, and bytes that are not
UTF-8, which file names have as surrogates.
"""

from __future__ import annotations

import logging

from plateway.folder import shown


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
