"""Write settings to files that are read again, ``.env`` and ``buckets.toml``; lines of others and comments stay."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

from plateway import settings
from plateway.errors import Conflict, Misconfigured

PLAIN = re.compile(r"[\w./:@%+,=~-]*")  # needs no quotes, neither here nor in a shell
LINE = re.compile(r"\s*(?:export\s+)?(\w+)\s*=")
WIDTH = 110
HEAD = """\
# Settings of Plateway. An environment variable overrides a line here; docs/settings.md describes every setting,
# and `plateway config show` prints all with their sources. This file may have secrets: keep it out of git, chmod 600.
"""


def format_line(name: str, value: str) -> str:
    """Format a setting as a line of ``.env``.

    Raises:
        Misconfigured: the value has a line break, or what would be replaced by another variable.
    """
    if "\n" in value or "\r" in value or "${" in value:
        raise Misconfigured(f"{name}: a .env file cannot hold line breaks or ${{")
    if PLAIN.fullmatch(value):
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name}='{escaped}'"


def merge(text: str, values: Mapping[str, str], *, force: bool = False) -> str:
    """Add settings to the text of a ``.env``; all other lines stay as they are.

    Raises:
        Conflict: a setting has another line there, and not ``force``; names the settings, never their values.
    """
    lines, rest = text.splitlines(), dict(values)
    there = {match[1]: number for number, line in enumerate(lines) if (match := LINE.match(line))}
    formatted = {name: format_line(name, value) for name, value in values.items()}
    other = [name for name in formatted if name in there and lines[there[name]].strip() != formatted[name]]
    if other and not force:
        raise Conflict(f"{', '.join(other)} is set already: --force replaces what is there")
    for name in formatted.keys() & there.keys():
        lines[there[name]] = formatted[name]
        del rest[name]
    return "\n".join([*lines, *(formatted[name] for name in rest), ""])


def format_template(values: Mapping[str, str]) -> str:
    """Format a ``.env`` with these settings, and every other one as a comment, each with its meaning."""
    lines = [HEAD]
    for row in settings.describe():
        lines += textwrap.wrap(row["meaning"], WIDTH, initial_indent="# ", subsequent_indent="# ")
        name = row["setting"]
        lines += [format_line(name, values[name]) if name in values else f"#{name}={row['default']}", ""]
    return "\n".join(lines)


def put_table(text: str, name: str, table: str, *, force: bool = False) -> str:
    """Add a table to the text of a ``buckets.toml``, or with ``force`` replace the one of this name.

    Raises:
        Conflict: there is a table of this name, and not ``force``.
    """
    header = re.compile(r"^\[", re.MULTILINE)
    found = re.search(rf"^\[{re.escape(name)}\]\s*$", text, re.MULTILINE)
    if found is None:
        return f"{text.rstrip()}\n\n{table}".lstrip()
    if not force:
        raise Conflict(f"[{name}] is there already: --force replaces it, --bucket OTHER adds another")
    end = header.search(text, found.end())
    return "\n".join(filter(None, [text[: found.start()].rstrip(), "", table, text[end.start() :] if end else ""]))
