"""Compare what catalogue, bucket and tape have. Pure: accounts in, findings out.

`compare` joins three streams in the order of their keys, each read once, and keeps nothing but the key it is at.
`judge` decides about one key, and so also serves for a second look at it. Looking and acting are left to
``pipeline.reconcile``, which never believes a finding before it has looked at that one thing again.

Keys are compared as text: in Python that is the order of their UTF-8 bytes, in which S3 lists and the catalogue sorts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeVar

from plateway.errors import Damage, Refused
from plateway.events import Ref
from plateway.instruments import bounded_fraction, format_duration
from plateway.ledger import Account, Ledger

PATIENCE = timedelta(hours=1)  # for which an upload may lack evidence
PLACES = {"here": "on the bench", "aside": "in the trash", "strayed": "in the trash", "unknown": "perhaps on the bench"}
BACK = ".back"  # ends the name of what a restore to the bench works on in the trash
SMALL = 10  # so few exports found lost or changed never stop a run


class Kind(StrEnum):
    """What can be wrong."""

    DARK = "dark object"  # in no record
    LOST = "lost object"
    CHANGED = "changed object"
    UNPROVEN = "export without evidence"
    UNKNOWN = "archive entry for an unknown key"
    DISAGREES = "archive entry that disagrees"
    NEVER_EXPORTED = "archived but never exported"
    UNARCHIVED = "exported and not archived"
    UNTOLD = "raw gone without a tombstone"
    STAGING = "orphan in staging"
    TRASH = "orphan in trash"
    UPLOAD = "open upload"
    FOREIGN = "object of another site"
    ONLY_COPY = "only copy lost or damaged"


class Repair(StrEnum):
    """What would put it right."""

    NONE = ""  # a person has to look
    ADOPT = "adopt"
    EXPORT = "re-export"
    VERIFY = "re-verify"
    ABORT = "abort upload"
    RESTORE = "restore from trash"
    CLEAR = "remove what a restore left"
    PARK = "park"
    MARK = "mark lost"


GRAVE = frozenset({Kind.LOST, Kind.CHANGED, Kind.ONLY_COPY})  # a run that finds one fails
HARMLESS = {Repair.VERIFY, Repair.PARK, Repair.MARK}  # they only look and note; all others move, delete or write


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the sides."""

    kind: Kind
    key: str  # of the object, or the name in staging or trash
    detail: str
    repair: Repair = Repair.NONE
    ref: Ref | None = None
    system: str = ""
    done: str = ""  # what was done about it, or ``would …``


class Listed(Protocol):
    """An object in a listing, like ``Stat``."""

    @property
    def key(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def etag(self) -> str:
        """Some listings leave it empty."""


class Parked(Protocol):
    """An archive entry that waits in the catalogue: ``ArchiveEntry`` is one."""

    @property
    def key(self) -> str:
        """``<bucket>/<key>``."""

    @property
    def path(self) -> str: ...
    @property
    def reason(self) -> str | None: ...


class Keyed(Protocol):
    """Anything with a key."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


def compare(
    accounts: Iterable[Account],
    objects: Iterable[Listed],
    parked: Iterable[Parked],
    *,
    bucket: str,
    endpoint: str | None = None,
    now: datetime,
    within: timedelta | None,
) -> Iterator[Finding]:
    """Compare what the catalogue has, the bucket lists and tape names; all three by key.

    ``accounts`` say in ``raw`` what the bench shows: as the catalogue has it (``here``, ``aside``, ``gone``), or of
    images that should be here ``missing``, ``strayed`` (in the trash without a tombstone), ``unknown`` (who can look?).
    Exports are in this ``bucket`` if they say its name and its ``endpoint``. ``within`` is how long one may be without
    a tape copy; None: for ever. Memory does not grow with the streams.

    Raises:
        Refused: a stream is not in the order of its keys, so that every difference would be a false one.
    """
    decide = partial(judge, bucket=bucket, endpoint=endpoint, now=now, within=within)
    known = _ordered(accounts, "the catalogue")
    listed = _ordered(objects, "the listing")
    entries = _ordered(parked, "the archive's entries", twice=True)
    joined = False
    for ours, some in itertools.groupby(entries, lambda entry: entry.key.startswith(f"{bucket}/")):
        if ours:  # those of one bucket follow each other
            joined = True
            for key, account, found, told in _joined(known, listed, some, skip=len(bucket) + 1):
                yield from decide(key, account, found, told)
        else:
            yield from (_unknown(entry) for entry in some)
    if not joined:
        for key, account, found, told in _joined(known, listed, (), skip=0):
            yield from decide(key, account, found, told)


def judge(
    key: str,
    account: Account | None,
    found: Listed | None,
    entries: Sequence[Parked] = (),
    *,
    bucket: str,
    endpoint: str | None = None,
    now: datetime,
    within: timedelta | None,
) -> Iterator[Finding]:
    """List everything that is wrong at one key."""
    if account is None:
        if found is not None:
            yield Finding(Kind.DARK, key, f"{found.size:,} bytes that nobody recorded", Repair.ADOPT)
        yield from map(_unknown, entries)
        return
    if account.held_until is None or account.held_until <= now:  # else another worker holds the lease
        if (account.export_bucket, account.export_endpoint) != (bucket, endpoint):
            yield from _unrecorded(account, found)
        elif not account.expired:
            yield from _recorded(account, found, now=now, within=within)
    yield from _bench(account)
    yield from (_parked(account, found, entry) for entry in entries)


def account_of(ledger: Ledger) -> Account:
    """Return the account of one event, as ``Catalog.accounts`` does of all."""
    event, export, purge = ledger.event, ledger.export, ledger.purge("raw")
    aside = purge is not None and purge.trashed_at is not None
    return Account(
        key=event.key,
        ref=ledger.ref,
        system=event.system,
        path=event.path,
        sealed=event.sealed_at is not None,
        export_bucket=export.bucket if export else None,
        size=export.size if export else None,
        etag=(export.seen_etag or export.etag) if export else None,
        sha256=export.sha256 if export else None,
        uploaded_at=export.uploaded_at if export else None,
        evidence=export.evidence if export else None,
        evidence_at=export.evidence_at if export else None,
        damage=export.damage if export else None,
        damage_kind=export.damage_kind if export else None,
        archives=len(ledger.archives),
        raw="gone" if purge is not None and purge.gone_at is not None else "aside" if aside else "here",
        expired=ledger.expired,
        held_until=ledger.lease.expires_at if ledger.lease else None,
        export_endpoint=export.endpoint if export else None,
    )


def limit(exports: int, fraction: float) -> int:
    """Return how many exports may be newly lost or changed before the listing itself is in doubt."""
    return max(SMALL, int(exports * bounded_fraction(fraction)))


def _unrecorded(account: Account, found: Listed | None) -> Iterator[Finding]:
    """Judge an object at the key of an event that has no export in this bucket."""
    if found is None:
        return
    size = f"{found.size:,} bytes"
    if account.export_bucket is not None:
        place = account.export_bucket + (f" at {account.export_endpoint}" if account.export_endpoint else "")
        yield _about(account, Kind.DARK, f"{size}; the catalogue has this export in bucket {place}")
    elif account.raw == "here" and not account.sealed:
        yield _about(account, Kind.DARK, f"{size} that nobody recorded; the images are not complete yet")
    elif account.raw == "here":
        yield _about(account, Kind.DARK, f"{size} that nobody recorded; the images are on the bench", Repair.EXPORT)
    elif account.raw in {"strayed", "unknown"}:
        yield _about(account, Kind.DARK, f"{size} that nobody recorded")
    else:
        yield _about(account, Kind.DARK, f"{size} that nobody recorded; the images are not here", Repair.ADOPT)


def _recorded(account: Account, found: Listed | None, *, now: datetime, within: timedelta | None) -> Iterator[Finding]:
    """Judge an export by the object at its key."""
    assert account.uploaded_at is not None
    damage, lost = account.damage or "", account.damage_kind == Damage.LOST
    difference = _difference(account, found) if found is not None else ""
    age = now - account.uploaded_at
    if found is None and not lost:
        yield _about(account, Kind.LOST, f"nothing is there; {_copies(account)}", Repair.MARK)
    elif found is None:
        yield _about(account, Kind.LOST, f"known since; {_copies(account)}", _remedy(account))
    elif difference and damage and not lost:
        yield _about(account, Kind.CHANGED, f"{difference}; {_copies(account)}", _remedy(account))
    elif difference or damage:
        yield _about(account, Kind.CHANGED, difference or f"noted as {damage}, and looks as it was sent", Repair.VERIFY)
    elif account.evidence is None and age > PATIENCE:
        yield _about(account, Kind.UNPROVEN, f"sent {_ago(age)} ago", Repair.VERIFY)
    if found is not None and not damage and not account.archives and within is not None and age > within:
        yield _about(
            account, Kind.UNARCHIVED, f"sent {_ago(age)} ago, tape should have it after {format_duration(within)}"
        )


def _difference(account: Account, found: Listed) -> str:
    """Describe how an object differs from its record. The ETag counts only where both sides have it."""
    if found.size != account.size:
        return f"{found.size:,} bytes, {account.size:,} were sent"
    known = account.evidence is not None or account.damage is not None
    return "another ETag than was seen" if known and found.etag and found.etag != account.etag else ""


def _remedy(account: Account) -> Repair:
    """Choose how a damaged export can be repaired."""
    if account.raw == "here" and account.sealed:
        return Repair.EXPORT
    return Repair.RESTORE if account.raw == "aside" else Repair.NONE


def _copies(account: Account) -> str:
    """List the other copies of a lost or changed export."""
    copies = [PLACES[account.raw]] if account.raw in PLACES else []
    copies += ["on tape"] * bool(account.archives)
    return f"the images are {' and '.join(copies)}" if copies else "no other copy is known"


def _bench(account: Account) -> Iterator[Finding]:
    """Judge what the bench shows of an event whose images were complete once."""
    if account.raw not in {"missing", "strayed"} or not (account.sealed or account.export_bucket):
        return
    safe = account.export_bucket is not None and account.evidence is not None
    copies = ["verified in the bucket"] * safe + ["on tape"] * bool(account.archives)
    rest = f"the images are {' and '.join(copies)}" if copies else "no copy is verified"
    if account.raw == "strayed":
        yield _about(account, Kind.UNTOLD, f"{account.path} is in the trash; {rest}", Repair.RESTORE)
    else:
        yield _about(account, Kind.UNTOLD, f"{account.path} is not there; {rest}")


def _parked(account: Account, found: Listed | None, entry: Parked) -> Finding:
    """Judge an entry that could not be settled for an event that is known."""
    why = f"in {entry.path}: {entry.reason or 'parked'}"
    if account.export_bucket is not None:
        return _about(account, Kind.DISAGREES, why)
    here = found is None and account.raw == "here" and account.sealed
    return _about(account, Kind.NEVER_EXPORTED, why, Repair.EXPORT if here else Repair.NONE)


def _unknown(entry: Parked) -> Finding:
    return Finding(Kind.UNKNOWN, entry.key, f"in {entry.path}: {entry.reason or 'parked'}", Repair.PARK)


def _about(account: Account, kind: Kind, detail: str, repair: Repair = Repair.NONE) -> Finding:
    return Finding(kind, account.key, detail, repair, account.ref, account.system)


def _ago(age: timedelta) -> str:
    days, hours, minutes = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
    unit = days if age >= 2 * days else hours if age >= 2 * hours else minutes
    return format_duration(age // unit * unit)


# ------------------------------------------------------------------------------------------------------------ streams


def _ordered(items: Iterable[K], what: str, *, twice: bool = False) -> Iterator[K]:
    """Pass on what comes in order; equal keys only where they may come ``twice``."""
    last: str | None = None
    for item in items:
        if last is not None and (item.key < last or (item.key == last and not twice)):
            raise Refused(f"{what} is out of order: {item.key!r} comes after {last!r}")
        last = item.key
        yield item


def _joined(
    accounts: Iterator[Account], objects: Iterator[Listed], parked: Iterable[Parked], *, skip: int
) -> Iterator[tuple[str, Account | None, Listed | None, list[Parked]]]:
    """Join three streams by key; ``skip`` is the length of the bucket prefix in parked entries."""
    entries = iter(parked)
    account, found, entry = next(accounts, None), next(objects, None), next(entries, None)
    while account is not None or found is not None or entry is not None:
        waits = [one.key for one in (account, found) if one is not None]
        key = min([*waits, entry.key[skip:]] if entry is not None else waits)
        known = listed = None
        told: list[Parked] = []
        if account is not None and account.key == key:
            known, account = account, next(accounts, None)
        if found is not None and found.key == key:
            listed, found = found, next(objects, None)
        while entry is not None and entry.key[skip:] == key:
            told.append(entry)
            entry = next(entries, None)
        yield key, known, listed, told


# ------------------------------------------------------------------------------------------------------------- strays


class OpenUpload(Protocol):
    """An upload that was begun and not completed."""

    @property
    def key(self) -> str: ...

    @property
    def initiated(self) -> datetime: ...


U = TypeVar("U", bound=OpenUpload)


def open_uploads(
    uploads: Iterable[U], ledgers: Mapping[str, Ledger], *, now: datetime, age: timedelta
) -> Iterator[tuple[U, Finding]]:
    """Find abandoned uploads of our own: known key, older than ``age``, and no worker holds the event's lease."""
    for upload in uploads:
        ledger = ledgers.get(upload.key)
        since = now - upload.initiated
        if ledger is not None and since > age and not ledger.held(now):
            detail = f"begun {_ago(since)} ago, nobody is at it"
            yield upload, Finding(Kind.UPLOAD, upload.key, detail, Repair.ABORT, ledger.ref, ledger.event.system)


def in_staging(system: str, name: str, ledger: Ledger | None, *, now: datetime) -> Finding | None:
    """Judge a directory in staging; a copy that an export needs, or that a purge will remove, is no finding."""
    if ledger is None or ledger.event.system != system:
        return Finding(Kind.STAGING, name, f"{system} has no such event", system=system)
    done = ledger.export is not None and ledger.export.damage is None
    going = ledger.purge("staging")
    if ledger.held(now) or not done or (going is not None and going.gone_at is None):
        return None
    if ledger.event.staged_at is not None and name == str(ledger.ref):
        return None
    detail = "exported already, and nobody noted this copy"
    return Finding(Kind.STAGING, name, detail, ref=ledger.ref, system=system)


def in_trash(system: str, name: str, ledger: Ledger | None, *, place: str, home: bool, now: datetime) -> Finding | None:
    """Judge a directory in the trash of a place (``raw`` or ``staging``); ``home``: something is at its former path."""
    if ledger is None or ledger.event.system != system:
        return Finding(Kind.TRASH, name, f"{system} has no such event ({place})", system=system)
    purge = ledger.purge(place)
    if name == f"{ledger.ref}{BACK}" and not ledger.held(now):
        detail = f"a restore was cut off, and left copies ({place})"
        return Finding(Kind.TRASH, name, detail, Repair.CLEAR, ledger.ref, system)
    if ledger.held(now) or (purge is not None and purge.gone_at is None):
        return None
    if purge is not None:
        detail, repair = f"its tombstone says that it went at {purge.gone_at:%Y-%m-%d %H:%M}", Repair.NONE
    elif home or place != "raw":
        detail, repair = "no purge of ours moved it here, and its place is taken", Repair.NONE
    else:
        detail, repair = "no purge of ours moved it here", Repair.RESTORE
    return Finding(Kind.TRASH, name, f"{detail} ({place})", repair, ledger.ref, system)
