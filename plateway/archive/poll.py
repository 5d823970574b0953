"""The HTTP door: ask a server for manifests, and trust nothing that it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import SecretStr

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """How much of a server's answer is taken."""

    pages: int = 1000
    page_size: int = 64 * MIB
    total_size: int = 1024 * MIB
    seconds: float = 300.0  # for everything
    patience: float = 30.0  # seconds without a byte
    attempts: int = 4  # for each page


@dataclass(frozen=True)
class Page:
    """Manifests of one answer, with names for people. The last page says what to ask with next time."""

    manifests: tuple[tuple[str, bytes], ...]
    last: bool = False
    etag: str | None = None
    modified: str | None = None


class Poll:
    """A server that lists manifests."""

    def __init__(
        self,
        url: str,
        token: SecretStr | None = None,
        *,
        limits: Limits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The address without secrets, for people and rows."""
        raise NotImplementedError

    def pages(self, *, etag: str | None = None, modified: str | None = None) -> Iterator[Page]:
        """Ask for everything, page by page; nothing comes when nothing changed since ``etag`` or ``modified``.

        Raises:
            Unavailable: it does not answer, or fails, also when asked again. Denied: token. NotFound: the address.
            Misconfigured: it answers with something other than manifests, or from elsewhere.
            Rejected: what it answers cannot be read, is too much, or never ends.
        """
        raise NotImplementedError
