"""List the members of a foreign tar from its headers."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from plateway import bundle
from plateway.bundle import BLOCK, padded
from plateway.errors import Damaged, Rejected
from plateway.names import shown

MOST_EXTENSION = 1 << 20  # bytes of a long name or a PAX header
SPARSE = 482  # offset of the flag in a GNU header that another one follows; in the following ones it is
SPARSE_FURTHER = 504
WHOLE = slice(483, 495)  # of a GNU header: the size of a sparse file with its holes


class TarMember(NamedTuple):
    """A regular file in a tar."""

    name: str
    size: int
    offset: int  # of its first byte
    unsupported: str = ""  # why its bytes cannot be read as they lie

    def readable(self) -> TarMember:
        """Return it if its bytes lie in the tar as they are.

        Raises:
            Rejected: they do not; it may be whole all the same.
        """
        if self.unsupported:
            raise Rejected(f"{shown(self.name)} is {self.unsupported}; not supported")
        return self


def members(read: Callable[[int, int], bytes], size: int) -> Iterator[TarMember]:
    """List the regular files of a tar of `size` bytes (plain, GNU or PAX); ``read(start, length)`` reads a slice.

    A hard link has the bytes of the earlier member that it names. Sparse files, whose bytes are not contiguous, and
    links to what is not there are listed as unsupported.

    Raises:
        Damaged: after the complete members, if the tar is truncated or not a tar.
    """
    headers, files = _Headers(read, size), dict[str, TarMember]()
    while (info := headers.next()) is not None:
        if info.type == tarfile.LNKTYPE:
            target = files.get(info.linkname)
            there = target and target._replace(name=info.name)
            member = there or TarMember(info.name, 0, 0, f"a hard link to {shown(info.linkname)}, which is not there")
        elif headers.sparse:
            member = TarMember(info.name, headers.whole, 0, "stored as a sparse file (tar -S)")
        elif info.type in tarfile.REGULAR_TYPES:
            member = TarMember(info.name, info.size, headers.offset - padded(info.size))
        else:
            continue
        files[info.name] = member
        yield member


class _Headers:
    """The headers of a tar, in order."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self.offset = 0  # of the next header in the tar
        self.sparse = False
        self.whole = 0  # bytes of a sparse file with its holes

    def next(self) -> tarfile.TarInfo | None:
        """Read the next member's header with its extensions. Returns None at the end blocks."""
        said: dict[str, str] = {}
        while True:
            start = self.offset
            block = self._take(BLOCK)
            if not any(block):
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if info.type in {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}:
                    said |= _said(self._extension(info.size))
                elif info.type == tarfile.XGLTYPE:
                    self._extension(info.size)
                elif info.type == tarfile.GNUTYPE_LONGNAME:
                    said["path"] = _text(self._extension(info.size).rstrip(b"\0"))
                elif info.type == tarfile.GNUTYPE_LONGLINK:
                    said["linkpath"] = _text(self._extension(info.size).rstrip(b"\0"))
                else:
                    return self._member(info, block, said)
            except (tarfile.HeaderError, ValueError) as error:
                raise Damaged(f"header at {start}: {error}") from error

    def _member(self, info: tarfile.TarInfo, block: bytes, said: dict[str, str]) -> tarfile.TarInfo:
        """Skip a member's bytes, and check that the tar has all of them."""
        info.name = said.get("GNU.sparse.name", said.get("path", info.name))
        info.linkname = said.get("linkpath", info.linkname)
        info.size = int(said.get("size", info.size))
        self.sparse = info.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in said)
        self.whole = int(said.get("GNU.sparse.realsize", said.get("GNU.sparse.size", info.size)))
        if info.type == tarfile.GNUTYPE_SPARSE:
            self.whole = tarfile.nti(block[WHOLE])  # type: ignore[attr-defined]
        further = info.type == tarfile.GNUTYPE_SPARSE and block[SPARSE]
        while further:
            further = self._take(BLOCK)[SPARSE_FURTHER]
        if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:
            if not 0 <= info.size <= self._size - self.offset:
                raise Damaged(
                    f"{shown(info.name)}: {info.size:,} bytes at {self.offset:,}, the tar ends at {self._size:,}"
                )
            self.offset += padded(info.size)
        return info

    def _extension(self, size: int) -> bytes:
        if not 0 <= size <= MOST_EXTENSION:
            raise Damaged(f"header at {self.offset - BLOCK}: an extension of {size:,} bytes")
        return self._take(padded(size))[:size]

    def _take(self, size: int) -> bytes:
        data = self._read(self.offset, size) if self.offset + size <= self._size else b""
        if len(data) < size:
            raise Damaged(f"ends after {self._size:,} bytes, in or before the header at {self.offset:,}")
        self.offset += size
        return data


def _said(data: bytes) -> dict[str, str]:
    return {_text(keyword): _text(value) for keyword, value in bundle.pax_records(data)}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
