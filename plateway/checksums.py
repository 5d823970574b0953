"""SHA-256, MD5 of upload parts, and the ETags that S3 computes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from plateway.errors import Damaged
from plateway.names import shown

MIB = 1 << 20
LEAST_PART = 8 * MIB
MOST_PARTS = 10_000


def part_size(total: int) -> int:
    """Return the size in bytes of an upload's parts: 8 MiB, or more whole MiB if it would have over 10,000 parts."""
    return max(LEAST_PART, -(-total // (MOST_PARTS * MIB)) * MIB)


def parts_etag(part_md5s: Sequence[bytes]) -> str:
    """Compute the ETag that S3 gives: the MD5 of a single PUT, or MD5 of the parts' MD5s and their number."""
    if len(part_md5s) == 1:
        return part_md5s[0].hex()
    return f"{hashlib.md5(b''.join(part_md5s), usedforsecurity=False).hexdigest()}-{len(part_md5s)}"


def combined_etag(objects: Iterable[tuple[str, int, str]]) -> str:
    """Compute one ETag for many objects (key, size, ETag), in any order; only such end in ``-files``."""
    known = sorted(objects)
    listing = "".join(f"{key}\n{size}\n{etag}\n" for key, size, etag in known)
    return f"{hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()}-{len(known)}-files"


class PartHasher:
    """The MD5 of each part of an upload."""

    def __init__(self, size: int) -> None:
        self._size, self._room = size, size
        self._hashes = [hashlib.md5(usedforsecurity=False)]

    def update(self, data: bytes | memoryview) -> None:
        """Hash more bytes."""
        rest = memoryview(data)
        while rest:
            if not self._room:
                self._hashes.append(hashlib.md5(usedforsecurity=False))
                self._room = self._size
            self._hashes[-1].update(rest[: self._room])
            used = min(len(rest), self._room)
            self._room -= used
            rest = rest[used:]

    def etag(self) -> str:
        """Return the ETag that the upload must get."""
        return parts_etag([part.digest() for part in self._hashes])


class FileETags:
    """The ETag of each file of a bundle, were it an object of its own."""

    def __init__(self) -> None:
        self._counted: dict[str, tuple[int, PartHasher]] = {}

    def begin(self, name: str, size: int) -> PartHasher:
        """Count the bytes of one more file."""
        parts = PartHasher(part_size(size))
        self._counted[name] = size, parts
        return parts

    def etag(self, keys: Mapping[str, str]) -> str:
        """Return the `combined_etag` of the files at these keys.

        Raises:
            Damaged: a file has no key.
        """
        if strange := sorted(self._counted.keys() - keys.keys()):
            raise Damaged(f"{shown(strange[0])}: the manifest tells no key of it")
        return combined_etag((keys[name], size, parts.etag()) for name, (size, parts) in self._counted.items())


def sha256_of(chunks: Iterable[bytes]) -> str:
    """Compute the SHA-256 of bytes that come in chunks, in hex."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
