"""The archive itself, where it can be reached: a tape's disk cache, SFTP, another bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from plateway.archive.tar import TarMember
from plateway.store import Endpoint


class Written(NamedTuple):
    """What was written and read back."""

    size: int
    sha256: str


class Filed(NamedTuple):
    """A file on the archive."""

    path: str
    size: int


class Archive:
    """A directory of tars anywhere. Paths are relative to it, and plain.

    Raises, everywhere: `Unavailable` when it does not answer or cannot just now, `Denied`, `NotFound` when the
    directory itself is not there, `Rejected` for a path that is not plain.
    """

    def __init__(self, url: str, endpoint: Endpoint | None = None) -> None:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The place without secrets, for people."""
        raise NotImplementedError

    def size(self, path: str) -> int | None:
        """Say how long a file is; None if there is none."""
        raise NotImplementedError

    def open(self, path: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a slice: from `start`, at most `length` bytes. `NotFound` comes at once."""
        raise NotImplementedError

    def write(self, path: str, chunks: Iterable[bytes]) -> Written:
        """Write a file aside, read it back, and give it its name; nothing is overwritten, nothing is visible half.

        Raises:
            Conflict: there is one of that name. Damaged: what was read back is other than what was written.
        """
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[Filed]:
        """List the files whose path begins so, by path; what is being written is not among them."""
        raise NotImplementedError

    def members(self, path: str) -> Iterator[TarMember]:
        """List the regular files in a tar, by its headers alone.

        Raises:
            NotFound: no such tar. Damaged: after those that are whole, if it is cut or no tar.
        """
        raise NotImplementedError

    def put_manifest(self, job_id: str, content: bytes) -> None:
        """Keep a manifest beside the tars, at ``manifests/<job_id>.json``; the same again is fine.

        Raises:
            Conflict: another is there.
        """
        raise NotImplementedError

    def manifests(self) -> Iterator[tuple[str, bytes]]:
        """Read the manifests that are kept there: name and content."""
        raise NotImplementedError


def open_archive(url: str, endpoint: Endpoint | None = None) -> Archive:
    """Open an archive at any fsspec URL: ``file:///directory``, ``memory://name``, ``s3://bucket/prefix``, ``sftp://…``.

    Nothing is asked of it yet.

    Raises:
        Misconfigured: fsspec does not know such a URL.
    """
    raise NotImplementedError
