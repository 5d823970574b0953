"""The members of a tar that somebody else wrote, by its headers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class TarMember(NamedTuple):
    """A regular file in a tar."""

    name: str
    size: int
    offset: int  # of its first byte


def members(read: Callable[[int, int], bytes], size: int) -> Iterator[TarMember]:
    """List the regular files of a tar of `size` bytes (plain, GNU or PAX); ``read(start, length)`` reads a slice.

    Raises:
        Damaged: after those that are whole, if the tar is cut or no tar.
    """
    raise NotImplementedError
