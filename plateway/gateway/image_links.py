"""Expiring links to one image, signed: whoever has one may load that image, and nothing else, until it expires.

A link is ``/shared/<expiry>.<signature>/<event>/<name>``. The signature is an HMAC-SHA-256 of expiry, event and name
with a key of the gateway (``gateway/links.key`` in the home, mode 0600), cut to 132 bits. The access log has the path
without it. Deleting the key ends all links at once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from plateway.errors import NotFound
from plateway.events import Ref

KEY = "links.key"  # in the gateway's directory
PREFIX = "/shared/"
DIGITS = 22  # of a signature


class LinkSigner:
    """Signs and checks links; all workers of a gateway share its key."""

    def __init__(self, place: Path) -> None:
        self._file = place / KEY

    def sign(self, ref: Ref, name: str, *, expires: datetime) -> str:
        """Return the path of a link to one image."""
        until = int(expires.timestamp())
        encoded = quote(name.encode("utf-8", "surrogateescape"))
        return f"{PREFIX}{until}.{self._sign(ref, name, until)}/{ref}/{encoded}"

    def check(self, shown: str, ref: Ref, name: str, *, now: datetime) -> datetime:
        """Return the expiry of a link.

        Raises:
            NotFound: its signature is not of this image, or it has expired.
        """
        until, _, signature = shown.partition(".")
        known = until.isascii() and until.isdecimal() and len(until) <= 11
        if not known or not hmac.compare_digest(signature.encode(), self._sign(ref, name, int(until)).encode()):
            raise NotFound("this link is not valid")
        expires = datetime.fromtimestamp(int(until), UTC)
        if expires <= now:
            raise NotFound("this link has expired")
        return expires

    def _sign(self, ref: Ref, name: str, until: int) -> str:
        message = b"\0".join([str(until).encode(), str(ref).encode(), name.encode("utf-8", "surrogateescape")])
        signature = hmac.digest(self._read_key(), message, hashlib.sha256)
        return base64.urlsafe_b64encode(signature).decode()[:DIGITS]

    def _read_key(self) -> bytes:
        """Read the key; the first worker creates it."""
        with suppress(FileNotFoundError):
            return self._file.read_bytes()
        draft = self._file.with_name(f".{KEY}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another worker was first: its key counts
            os.link(draft, self._file)
        draft.unlink()
        return self._file.read_bytes()


def redact(path: str) -> str:
    """Return a path without the signature of a link, for logs."""
    if not path.startswith(PREFIX):
        return path
    first, _, rest = path.removeprefix(PREFIX).partition("/")
    return f"{PREFIX}{first.partition('.')[0]}.…/{rest}"
