"""Pages of the keys in a bucket, with the prefixes that a delimiter folds. Pure.

Keys are sorted by their UTF-8 bytes, which is the order of Python's strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

LAST = "\U0010ffff"  # sorts after every other character


class Object(NamedTuple):
    """One object in a listing."""

    key: str
    size: int  # bytes
    etag: str  # without quotes
    modified: datetime


class Entries(Protocol):
    """What a bucket has below a prefix and beyond a key, in order.

    Where the delimiter is a slash, it may yield a folder, which ends with the slash, instead of the objects in it.
    """

    def __call__(self, prefix: str, *, after: str, delimiter: str) -> Iterable[Object | str]: ...


class Page(NamedTuple):
    """Objects, and prefixes that stand for all keys with them."""

    items: list[Object | str]
    more: bool  # the listing continues after the last item

    @property
    def last(self) -> str:
        """The last key or prefix, after which the next page begins."""
        return name_of(self.items[-1])


def list_page(entries: Entries, prefix: str, *, within: Sequence[str], delimiter: str, after: str, limit: int) -> Page:
    """List at most `limit` objects and folded prefixes beyond `after`, below any of the prefixes `within`.

    `within` are sorted, begin with `prefix`, and none is inside another. A folded prefix that equals `after` was on
    the page before.
    """
    found: list[Object | str] = []
    if limit == 0:
        return Page(found, False)
    for one in _fold(entries, prefix, within=within, delimiter=delimiter, after=after):
        if len(found) == limit:
            return Page(found, True)
        found.append(one)
    return Page(found, False)


def name_of(item: Object | str) -> str:
    """Return the key or the prefix."""
    return item if isinstance(item, str) else item.key


def _fold(
    entries: Entries, prefix: str, *, within: Sequence[str], delimiter: str, after: str
) -> Iterator[Object | str]:
    """Yield objects, and each prefix once in place of its keys."""
    last = after
    for part in within:
        going: Iterator[Object | str] = iter(entries(part, after=after, delimiter=delimiter))
        while (one := next(going, None)) is not None:
            name = name_of(one)
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                yield one
                continue
            folded = name[: end + len(delimiter)]
            if folded != last:
                yield folded
            last = folded
            if not isinstance(one, str):  # do not read all the other keys with this prefix
                after = folded + LAST
                going = iter(entries(part, after=after, delimiter=delimiter))
