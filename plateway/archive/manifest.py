"""A manifest: the report of one archiving job, in the format of surf-archiver with some fields more.

``{"job_id", "date", "archives": [{"path", "src_keys": ["<bucket>/<key>"], "members": [{"key", …}]}]}``, where
``members`` is added by Plateway: name, size, SHA-256 and offset in the tar of keys among ``src_keys``, all optional.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from plateway.errors import Rejected
from plateway.events import DAY, TIME, quoted, read_json

CAP = 64 << 20  # bytes of a manifest
LARGEST = 2**63 - 1  # largest integer of every database
MOST_NAME = 1024  # bytes of a path, of a key without its bucket, of a member's name
MOST_JOB = 128
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII | re.IGNORECASE)
DETAILS = ("name", "size", "sha256", "offset")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key in one archive. None: not reported."""

    path: str  # of the archive, relative to its root
    key: str  # "<bucket>/<key>"
    member: str | None = None  # its name in the tar
    size: int | None = None  # bytes
    sha256: str | None = None  # of those
    offset: int | None = None  # of its first byte in the tar


@dataclass(frozen=True)
class Notice:
    """A parsed manifest."""

    job_id: str
    date: datetime  # UTC
    entries: tuple[Entry, ...]  # by path and key
    refused: tuple[str, ...]  # the reason for each refused entry
    digest: str  # SHA-256 of the content, independent of spelling and order


def parse(content: bytes) -> Notice:
    """Parse a manifest strictly; an entry that is not valid is refused on its own.

    A date becomes its midnight, and a time without a zone is UTC.

    Raises:
        Rejected: the manifest as a whole is not valid; the message has the reason.
    """
    if len(content) > CAP:
        raise Rejected(f"more than {CAP:,} bytes")
    said = read_json(content, cap=CAP)
    if not isinstance(said, dict):
        raise Rejected(f"a manifest: {quoted(said)} is not an object")
    job_id, moment = _job(_field(said, "job_id")), _moment(_field(said, "date"))
    archives = _field(said, "archives")
    if not isinstance(archives, list):
        raise Rejected(f"archives: {quoted(archives)} is not a list")
    reading = _ManifestReader()
    for number, archive in enumerate(archives):
        reading.archive(archive, f"archives[{number}]")
    entries = tuple(sorted(reading.agreed(), key=lambda one: (one.path, one.key)))
    refused = tuple(reading.refused)
    return Notice(
        job_id, moment, entries, refused, _digest(job_id, moment, entries, refused=refused, paths=reading.paths)
    )


def dump(job_id: str, day: date, *, entries: Iterable[Entry]) -> bytes:
    """Serialize a manifest in the format of surf-archiver, which `parse` reads."""
    archives: dict[str, dict[str, Any]] = {}
    for entry in entries:
        archive = archives.setdefault(entry.path, {"path": entry.path, "src_keys": []})
        archive["src_keys"].append(entry.key)
        told = {name: value for name, value in _details(entry).items() if value is not None}
        if told:
            archive.setdefault("members", []).append({"key": entry.key, **told})
    said = {"job_id": job_id, "date": f"{day:%Y-%m-%d}T00:00:00", "archives": list(archives.values())}
    return json.dumps(said, indent=4, ensure_ascii=False).encode()


class _ManifestReader:
    """The entries of a manifest that are parsed so far."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.paths: set[str] = set()
        self._entries: dict[tuple[str, str], Entry | None] = {}  # None: refused, it contradicts another entry

    def agreed(self) -> Iterator[Entry]:
        """Return the entries without contradictions."""
        return (entry for entry in self._entries.values() if entry is not None)

    def archive(self, said: Any, where: str) -> None:
        """Parse one archive; record errors of it and of its keys."""
        try:
            if not isinstance(said, dict):
                raise Rejected(f"{quoted(said)} is not an object")
            path = _path(_field(said, "path"))
            keys = _listed(_field(said, "src_keys"), "src_keys")
            members = _listed(said.get("members") or [], "members")
        except Rejected as error:
            self.refused.append(f"{where}: {error}")
            return
        self.paths.add(path)
        told = self._members(members, path, where)
        named = set()
        for number, key in enumerate(keys):
            try:
                named.add(_key(key))
            except Rejected as error:
                self.refused.append(f"{where}.src_keys[{number}]: {error}")
        for key in sorted(told.keys() - named):
            self.refused.append(f"{where}.members: {quoted(key)} is not among src_keys")
        for key in sorted(named):
            entry = told.get(key, Entry(path, key))
            if entry is not None:
                self._add_entry(entry, where)

    def _members(self, said: list[Any], path: str, where: str) -> dict[str, Entry | None]:
        """Parse the details of the keys of an archive; None for those that are not valid."""
        told: dict[str, Entry | None] = {}
        for number, member in enumerate(said):
            place, key = f"{where}.members[{number}]", None
            try:
                if not isinstance(member, dict):
                    raise Rejected(f"{quoted(member)} is not an object")
                key = _key(_field(member, "key"))
                entry = Entry(
                    path,
                    key,
                    member=_optional(member, "name", _member),
                    size=_optional(member, "size", _count),
                    sha256=_optional(member, "sha256", _sha256),
                    offset=_optional(member, "offset", _count),
                )
                told[key] = _merge_entries(told.get(key, entry), entry)
            except Rejected as error:
                self.refused.append(f"{place}: {error}")
                if key is not None:
                    told[key] = None
        return told

    def _add_entry(self, entry: Entry, where: str) -> None:
        """Merge an entry with earlier ones of the same key; both are refused if they contradict each other."""
        at = entry.path, entry.key
        if at not in self._entries:
            self._entries[at] = entry
            return
        try:
            self._entries[at] = _merge_entries(self._entries[at], entry)
        except Rejected as error:
            self._entries[at] = None
            self.refused.append(f"{where}: {error}")


def _merge_entries(one: Entry | None, other: Entry) -> Entry | None:
    """Merge two entries of one key in one archive; a refused one stays refused."""
    if one is None:
        return None
    ours, theirs = _details(one), _details(other)
    for name in DETAILS:
        if ours[name] is not None and theirs[name] is not None and ours[name] != theirs[name]:
            both = sorted((ours[name], theirs[name]))
            raise Rejected(f"{quoted(one.key)}: {name} {quoted(both[0])} and {name} {quoted(both[1])}")
    joined = {name: theirs[name] if ours[name] is None else ours[name] for name in DETAILS}
    return replace(one, member=joined.pop("name"), **joined)


def _details(entry: Entry) -> dict[str, Any]:
    return {"name": entry.member, "size": entry.size, "sha256": entry.sha256, "offset": entry.offset}


def _digest(
    job_id: str, moment: datetime, entries: Iterable[Entry], *, refused: Iterable[str], paths: Iterable[str]
) -> str:
    digest = hashlib.sha256()
    whole = [job_id, moment.isoformat(), sorted(paths), sorted(refused)]
    digest.update(json.dumps(whole).encode())
    for one in entries:
        digest.update(json.dumps((one.path, one.key, one.member, one.size, one.sha256, one.offset)).encode())
    return digest.hexdigest()


def _field(said: dict[str, Any], name: str) -> Any:
    if name not in said:
        raise Rejected(f"{name}: missing")
    return said[name]


def _listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise Rejected(f"{name}: {quoted(value)} is not a list")
    return value


def _optional(said: dict[str, Any], name: str, read: Any) -> Any:
    value = said.get(name)
    return None if value is None else read(value, name)


def _job(value: Any) -> str:
    """Check the job's id: a UUID, or any other short text."""
    if not isinstance(value, str) or not value:
        raise Rejected(f"job_id: {quoted(value)} is not a text")
    try:
        return str(UUID(value))
    except ValueError:
        pass
    wrong = (
        "contains characters that cannot be printed" if not value.isprintable()
        else "contains a slash" if "/" in value or "\\" in value
        else "begins with a dot" if value[0] == "."
        else f"has more than {MOST_JOB} bytes" if len(value.encode()) > MOST_JOB
        else None
    )  # fmt: skip
    if wrong is not None:
        raise Rejected(f"job_id: {quoted(value)} {wrong}")
    return value


def _moment(value: Any) -> datetime:
    try:
        if isinstance(value, str) and (DAY.fullmatch(value) or TIME.fullmatch(value)):
            moment = datetime.fromisoformat(value.upper())
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Rejected(f"date: {quoted(value)} is neither a day like 2024-05-17 nor a time like 2024-05-17T00:00:00")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Rejected(f"{name}: {quoted(value)} is not a text")
    return value


def _path(value: Any) -> str:
    """Check a relative path."""
    wrong = _unfit(_text(value, "path"))
    if wrong is not None:
        raise Rejected(f"path: {quoted(value)} {wrong}")
    return str(value)


def _key(value: Any) -> str:
    """Check ``<bucket>/<key>``; what lies below the bucket may have any layout."""
    bucket, slash, key = _text(value, "key").partition("/")
    wrong = "is not <bucket>/<key>" if not slash or not bucket else _unfit(bucket) or _unfit(key)
    if wrong is not None:
        raise Rejected(f"key: {quoted(value)} {wrong}")
    return str(value)


def _member(value: Any, name: str) -> str:
    """Check a member's name, which may begin with ``./``."""
    wrong = _unfit(_text(value, name).removeprefix("./"))
    if wrong is not None:
        raise Rejected(f"{name}: {quoted(value)} {wrong}")
    return str(value)


def _unfit(path: str) -> str | None:
    """Return the reason why a relative path is not valid in every store, or None."""
    parts = path.split("/")
    return (
        "is empty" if not path
        else "contains a control character" if CONTROL.search(path)
        else "contains a backslash" if "\\" in path
        else "is absolute" if not parts[0]
        else "climbs out with '..'" if ".." in parts
        else "has an empty or '.' segment" if {"", "."} & set(parts)
        else f"has more than {MOST_NAME} bytes" if len(path.encode()) > MOST_NAME
        else None
    )  # fmt: skip


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise Rejected(f"{name}: {quoted(value)} is not a whole number from 0 to {LARGEST}")
    return value


def _sha256(value: Any, name: str) -> str:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise Rejected(f"{name}: {quoted(value)} is not 64 hexadecimal digits")
    return value.lower()
