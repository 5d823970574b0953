"""The buckets of the S3 endpoint: the events, and what an operator shares.

`Events` has every file of every event as ``<experiment>/<event>/<file>``, whether it lies in a bundle or is an object
of its own; ``gateway.images`` finds and reads it. `Shared` has the objects of a location. Both only read.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import NamedTuple, Protocol
from uuid import UUID

from starlette.datastructures import Headers

from plateway.bundle import Member
from plateway.errors import Busy, Damaged, NotFound, Rejected
from plateway.events import Ref
from plateway.gateway import pictures
from plateway.gateway.http_conditions import CONDITIONS, Described, Span, check_conditions, parse_range
from plateway.gateway.images import CachedEvent, Gallery, Representation, RequestedImage
from plateway.gateway.s3.listing import Object
from plateway.gateway.streaming import MEDIA, SMALL, Rest
from plateway.keys import escape_name, unescape_name
from plateway.ledger import Ledger
from plateway.pipeline.read import original_name
from plateway.records import Event
from plateway.store import Objects, Stat

FEW = 50  # events whose files are listed after one query
MANY = 1000  # events, or objects of a share, that are listed after one query
CHANGED = 3  # times that an object may be replaced while it is opened
DASHES = (8, 13, 18, 23)  # in a UUID


class Opened(NamedTuple):
    """An object, or a range of it, whose first piece was read; of HEAD nothing was."""

    facts: Described
    media: str
    span: Span | None
    first: bytes
    rest: Rest
    checksum: str | None = None  # base64 of the SHA-256 of the whole object, where that is known


class View(Protocol):
    """A bucket."""

    @property
    def created(self) -> datetime | None:
        """Since when there is the bucket; None: unknown."""

    def entries(self, prefix: str, *, after: str, delimiter: str) -> Iterable[Object | str]:
        """List as `listing.Entries` does."""

    def open(self, key: str, headers: Headers, *, method: str) -> Opened:
        """Find an object, check the conditions of a request, and read the beginning of what it asks for.

        Raises:
            NotFound: there is no such object.
            Problem: 304, 412 or 416.
        """


@dataclass(frozen=True)
class Events:
    """The files of all events that have a copy in a bucket."""

    gallery: Gallery

    @property
    def created(self) -> datetime | None:
        return self.gallery.site.catalog.site_created()

    def entries(self, prefix: str, *, after: str, delimiter: str) -> Iterator[Object | str]:
        experiment, slash, _ = prefix.partition("/")
        catalog = self.gallery.site.catalog
        named = [experiment] if slash else catalog.experiments(prefix=experiment)
        for folder in sorted(f"{one}/" for one in named):
            if _is_over(folder, after):
                continue
            if delimiter == "/" and not slash:
                yield folder
                continue
            for event in self._events(folder, prefix, after=after, fold=delimiter == "/"):
                if isinstance(event, str):
                    yield event
                    continue
                for one in self._files(folder, event, prefix, after=after):
                    end = one.key.find("/", len(prefix)) if delimiter == "/" else -1
                    yield one if end < 0 else one.key[: end + 1]

    def open(self, key: str, headers: Headers, *, method: str) -> Opened:
        image, event = self._find(key)
        facts = Representation(image.member.size, image.member.sha256, _time(image.member, event))
        media = pictures.media(image.name) or MEDIA
        check_conditions(headers, facts, method=method)
        span = parse_range(headers, facts)
        first, rest = (b"", Rest(iter(()))) if method == "HEAD" else self.gallery.begin(image, span)
        checksum = base64.b64encode(bytes.fromhex(image.member.sha256)).decode()
        return Opened(facts, media, span, first, rest, checksum)

    def _find(self, key: str) -> tuple[RequestedImage, Event]:
        experiment, _, rest = key.partition("/")
        ref_text, _, name = rest.partition("/")
        id_, revision = Ref.parse(ref_text)
        ref = Ref(id_, revision or 1)
        event = self.gallery.event(f"{id_}-r{ref.revision}", "")
        member = self.gallery.contents(event.reader).names.get(unescape_name(name))
        spelt = member is not None and (experiment, ref_text, name) == (
            event.ledger.event.experiment,
            str(ref),
            escape_name(original_name(member)),
        )
        if member is None or not spelt:
            raise NotFound(f"{key}: there is no such image")
        return RequestedImage(original_name(member), event.reader, member), event.ledger.event

    def _events(self, folder: str, prefix: str, *, after: str, fold: bool) -> Iterator[Ledger | str]:
        """Yield the events of an experiment that the prefix may be about, or their folders."""
        wanted, slash, _ = prefix.removeprefix(folder).partition("/") if prefix.startswith(folder) else ("", "", "")
        passed = after.removeprefix(folder) if after.startswith(folder) else ""
        catalog, folded = self.gallery.site.catalog, fold and not slash
        first: UUID | None = _lowest_id(max(wanted, passed))
        while first is not None:
            limit = MANY if folded else FEW
            refs = catalog.readable(folder[:-1], first=first, limit=limit)
            ids = [one for one, _ in groupby(ref.id for ref in refs)]
            chosen = {
                f"{ref}/": ref
                for ref in refs
                if f"{ref}/".startswith(f"{wanted}{slash}") and not _is_over(f"{ref}/", passed)
            }
            ledgers = {} if folded else catalog.ledgers_of([*chosen.values()])
            for name, ref in sorted(chosen.items()):
                if folded:
                    yield folder + name
                elif ref in ledgers:
                    yield ledgers[ref]
            over = len(ids) < limit or (wanted and not str(ids[-1]).startswith(wanted[:36]))
            first = None if over or ids[-1].int + 1 == 1 << 128 else UUID(int=ids[-1].int + 1)

    def _files(self, folder: str, ledger: Ledger, prefix: str, *, after: str) -> Iterator[Object]:
        """List the files of an event; an event is left out where no copy is one that the settings name."""
        event = CachedEvent(self.gallery.site, ledger)
        with suppress(NotFound):
            members, start = self.gallery.contents(event.reader).members, f"{folder}{ledger.ref}/"
            for key, member in sorted((f"{start}{escape_name(original_name(one))}", one) for one in members):
                if key > after and key.startswith(prefix):
                    yield Object(key, member.size, member.sha256, _time(member, ledger.event))


@dataclass(frozen=True)
class Shared:
    """The objects of a location."""

    store: Objects
    created: datetime | None

    def entries(self, prefix: str, *, after: str, delimiter: str) -> Iterator[Object | str]:
        with suppress(Rejected):  # no key begins so
            while found := self.store.page(prefix, after=after, limit=MANY):
                yield from (Object(one.key, one.size, one.etag, one.modified) for one in found)
                after = found[-1].key

    def open(self, key: str, headers: Headers, *, method: str) -> Opened:
        media = pictures.media(key) or MEDIA
        try:
            if method == "GET" and not CONDITIONS & set(headers.keys()):
                return Opened(*self._read(key, media, None))
            for _ in range(CHANGED):
                facts = self.store.look(key)
                if facts is None:
                    break
                check_conditions(headers, facts, method=method)
                span = parse_range(headers, facts)
                if method == "HEAD":
                    return Opened(facts, media, span, b"", Rest(iter(())))
                with suppress(Damaged):  # replaced by a smaller one
                    found = self._read(key, media, span)
                    if found[0].etag == facts.etag:
                        return Opened(*found)
                    found[-1].close()
            else:
                raise Busy(f"{key} is being replaced")
        except Rejected:  # a key that stores do not keep
            pass
        raise NotFound(f"{key}: there is no such object")

    def _read(self, key: str, media: str, span: Span | None) -> tuple[Stat, str, Span | None, bytes, Rest]:
        start, length = span or (0, None)
        facts, chunks = self.store.fetch(key, start=start, length=length)
        size, first = span.length if span else facts.size, next(chunks, b"")
        while len(first) < size <= SMALL and (more := next(chunks, b"")):
            first += more
        return facts, media, span, first, Rest(chunks)


def _time(member: Member, event: Event) -> datetime:
    """Return the time of an image: that of its file where the manifest has it, else that of its event."""
    return datetime.fromtimestamp(member.mtime, event.timestamp.tzinfo) if member.mtime else event.timestamp


def _is_over(folder: str, after: str) -> bool:
    """Return whether all keys in a folder come before `after`."""
    return folder < after and not after.startswith(folder)


def _lowest_id(text: str) -> UUID:
    """Return an id before which no event's name is beyond `text`, which may be anything."""
    digits = ""
    for at, letter in enumerate(text[:36]):
        if letter == "-" and at in DASHES:
            continue
        if letter not in "0123456789abcdef" or at in DASHES:
            break
        digits += letter
    return UUID(digits.ljust(32, "0"))
