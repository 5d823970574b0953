"""Warn of lifecycle rules: a bucket deletes by them without regard to tape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from plateway import keys
from plateway.errors import Damage, Denied, NotFound, Unavailable
from plateway.keys import PREFIXES
from plateway.ledger import Account
from plateway.pipeline.context import Site
from plateway.records import Export

FILTERS = {"Prefix", "Tag", "Tags", "And", "ObjectSizeGreaterThan", "ObjectSizeLessThan"}
UNKNOWN = {"NotImplemented", "MethodNotAllowed", "501", "405"}  # what endpoints without such rules answer
ARCHIVED = ("archived", "true")  # the tag that archivers set; every writer may


@dataclass(frozen=True)
class Caution:
    """A rule of the bucket's own that could delete what tape does not have."""

    rule: str  # its id; empty where there is none, or no rule could be read
    prefix: str  # of the keys it is about, in the whole bucket; empty: all
    after: str  # ``14d``, ``from 2026-05-04``, or empty: unknown
    exports: int  # that are not on tape, and that it covers now
    first: datetime | None  # when the first of these would go
    text: str  # all of that in a sentence


def policy_warnings(site: Site, *, now: datetime | None = None) -> list[Caution]:
    """Warn of each lifecycle rule of a bucket that could delete what tape does not have.

    Rules that cannot be read, or not be understood, are warned of as well. Exports in the bucket that no archive
    names are counted, verified or not.

    Raises:
        NotFound: there is no such bucket.
    """
    now = now or site.catalog.now()
    return [caution for bound in site.each_bucket() for caution in _cautions(bound, now)]


def announced_expiry(site: Site, export: Export) -> str:
    """Return which rule of the bucket's own may delete an export, whenever that is; empty: none.

    Rules are read at most every five minutes. A rule about tags, or one that cannot be parsed whole, counts.

    Raises:
        Transient: the rules cannot be read now. Denied: the credentials may not read them.
    """
    within = site.store.name.partition("/")[2]
    key = f"{within}/{export.key}" if within else export.key
    scattered = keys.layout_of(export.key) == "files"  # its files have other keys and sizes: any rule may be about one
    for rule in site.places.rules(f"{site.endpoint}/{site.store.name}", lambda: _rules(site)):
        if scattered or (key.startswith(rule.prefix) and rule.larger < export.size < rule.smaller):
            return rule.spoken()
    return ""


def _rules(site: Site) -> list[_Rule]:
    """Read the rules of a bucket that delete objects in use; an endpoint that knows no rules has none."""
    try:
        told = site.store.lifecycle()
    except Unavailable as error:
        if error.code not in UNKNOWN:
            raise
        return []
    return [rule for one in told if (rule := _rule(one)) is not None]


def _cautions(site: Site, now: datetime) -> list[Caution]:
    """Warn of the rules of one bucket."""
    of = f"{site.place}: " if site.others else ""
    try:
        told = site.store.lifecycle()
    except (Denied, NotFound, Unavailable) as error:
        if isinstance(error, NotFound) and not site.others:
            raise
        return [Caution("", "", "", 0, None, f"{of}the bucket's lifecycle rules cannot be read: {error}")]
    within = site.store.name.partition("/")[2]
    base = f"{within}/" if within else ""
    rules = [rule for one in told if (rule := _rule(one)) is not None and rule.concerns(base)]
    for account in site.catalog.accounts(bucket=site.store.name) if rules else ():
        if account.archives or account.expired or account.size is None or account.uploaded_at is None:
            continue
        if _here(site, account) and account.damage_kind != Damage.LOST:
            for rule in rules:
                rule.count(f"{base}{account.key}", account.size, account.uploaded_at)
    for copy in site.catalog.held_copies(now) if rules else ():
        if copy.bucket == site.store.name:
            for rule in rules:
                rule.held += rule.covers(f"{base}{copy.key}", copy.size)
    return [replace(caution, text=f"{of}{caution.text}") for caution in (rule.caution(now) for rule in rules)]


def _here(site: Site, account: Account) -> bool:
    """Return whether an export is in the bucket that the site is bound to."""
    found = site.at(account.export_endpoint, account.export_bucket or "")
    return found is not None and found.store is site.store


def _rule(told: Mapping[str, Any]) -> _Rule | None:
    """Parse a rule of S3; None if it deletes no current object."""
    expiration = told.get("Expiration")
    if told.get("Status") == "Disabled" or expiration is None or expiration == {"ExpiredObjectDeleteMarker": True}:
        return None
    filters = {**told.get("Filter", {})}
    filters |= filters.pop("And", {})
    days, date = expiration.get("Days"), expiration.get("Date")
    understood = type(days) is int if date is None else days is None and isinstance(date, datetime)
    tags = [*filters.get("Tags", ()), *([filters["Tag"]] if "Tag" in filters else [])]
    return _Rule(
        id=str(told.get("ID", "")),
        prefix=str(filters.get("Prefix", told.get("Prefix", ""))),
        days=days if understood else None,
        date=date if understood else None,
        tags=tuple((str(tag.get("Key")), str(tag.get("Value"))) for tag in tags),
        larger=filters.get("ObjectSizeGreaterThan", -1),
        smaller=filters.get("ObjectSizeLessThan", math.inf),
        understood=understood and filters.keys() <= FILTERS,
    )


@dataclass
class _Rule:
    """A rule that expires objects, and which of ours it would."""

    id: str
    prefix: str
    days: int | None
    date: datetime | None
    tags: tuple[tuple[str, str], ...]
    larger: float
    smaller: float
    understood: bool
    exports: int = 0
    held: int = 0  # copies that a hold forbids to delete
    first: datetime | None = None

    def concerns(self, base: str) -> bool:
        """Could it ever be about a key of ours?"""
        ours = [f"{base}{kind}/" for kind in PREFIXES.values()]
        return any(one.startswith(self.prefix) or self.prefix.startswith(one) for one in ours)

    def covers(self, key: str, size: int) -> bool:
        """Is it about this object?"""
        return key.startswith(self.prefix) and self.larger < size < self.smaller

    def count(self, key: str, size: int, uploaded_at: datetime) -> None:
        """Count an export that is not on tape, if the rule is about it."""
        if not self.covers(key, size):
            return
        self.exports += 1
        goes = self.date
        if self.days is not None:
            late = uploaded_at.astimezone(UTC) + timedelta(days=self.days + 1)
            goes = late.replace(hour=0, minute=0, second=0, microsecond=0)  # S3 waits for the midnight after
        self.first = min(filter(None, (self.first, goes)), default=None)

    def spoken(self) -> str:
        """Describe what it deletes, and when."""
        name = f"rule {self.id!r}" if self.id else "a rule without a name"
        what = f"what begins with {self.prefix!r}" if self.prefix else "everything"
        when = (
            f"{self.days} days after it was uploaded" if self.days is not None
            else f"from {self.date:%Y-%m-%d} on" if self.date
            else "at a time that cannot be understood"
        )  # fmt: skip
        where = "".join(f", where it is tagged {key}={value}" for key, value in self.tags)
        return f"{name} deletes {what} {when}{where}"

    def caution(self, now: datetime) -> Caution:
        """Return this rule as a warning, with the exports that it covers now."""
        after = f"{self.days}d" if self.days is not None else f"from {self.date:%Y-%m-%d}" if self.date else ""
        return Caution(self.id, self.prefix, after, self.exports, self.first, self._text(now))

    def _text(self, now: datetime) -> str:
        parts = [self.spoken()]
        if ARCHIVED in self.tags:
            parts.append("that tag is a hint, which anybody may set, and no protection")
        if not self.understood:
            parts.append("it says more than could be understood")
        if self.held:
            parts.append(f"{self.held} {'copies' if self.held > 1 else 'copy'} there may not go: a hold forbids it")
        if not self.exports:
            parts.append("now everything there is on tape, what comes next is not")
        else:
            at_most = "at most " if self.tags or not self.understood else ""
            count = f"{self.exports} export{'s' if self.exports > 1 else ''} there"
            parts.append(f"{at_most}{count} {'are' if self.exports > 1 else 'is'} not on tape")
            if self.first is not None:
                parts.append(
                    "the first may go now" if self.first <= now else f"the first goes on {self.first:%Y-%m-%d}"
                )
        return "; ".join(parts)
