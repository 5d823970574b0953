"""Access keys: issue them, and derive their secrets.

A secret is the HMAC-SHA-256 of the key's id, under 32 random bytes in a file (mode 0600) that is not in the catalogue.
So a gateway can check signatures, nothing secret is in the catalogue or in its backups, and whoever has the file and
the ids has all secrets.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from plateway.errors import Misconfigured, Rejected
from plateway.records import AccessKey
from plateway.settings import OTHERS, make_private

SIZE = 32  # bytes of the file
NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)


@dataclass(frozen=True)
class SecretFile:
    """The content of the file that secrets follow from."""

    content: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """A name for this content, from which it cannot be found."""
        return hmac.digest(self.content, b"plateway s3 file", "sha256").hex()[:16]

    def secret(self, access_key_id: str) -> str:
        """Return the secret of a key: 40 characters."""
        digest = hmac.digest(self.content, b"plateway s3 secret " + access_key_id.encode(), "sha256")
        return base64.urlsafe_b64encode(digest[:30]).decode()


@dataclass(frozen=True)
class Issued:
    """A new key, and its secret, which is not stored."""

    key: AccessKey
    secret: str = field(repr=False)


def read_secret_file(path: Path) -> SecretFile:
    """Read the file that secrets follow from.

    Raises:
        Misconfigured: it is missing, damaged, or readable by other accounts.
    """
    try:
        with path.open("rb") as file:
            content, mode = file.read(SIZE + 1), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise Misconfigured(f"PLATEWAY_S3_KEY_FILE: {path.name} cannot be read: {error.strerror}") from None
    if mode & OTHERS:
        raise Misconfigured(f"PLATEWAY_S3_KEY_FILE: {path.name} can be read by other accounts: chmod 600")
    if len(content) != SIZE:
        raise Misconfigured(f"PLATEWAY_S3_KEY_FILE: {path.name} does not have {SIZE} bytes: restore it from a backup")
    return SecretFile(content)


def make_secret_file(path: Path) -> SecretFile:
    """Read the file that secrets follow from; the first call creates it. Of several processes, one does.

    Raises:
        Misconfigured: it cannot be created, is damaged, or readable by other accounts.
    """
    if not path.exists():
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            make_private(path.parent)
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(SIZE))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was faster
                path.hardlink_to(aside)
            _flush_directory(path.parent)
        except OSError as error:
            raise Misconfigured(f"PLATEWAY_S3_KEY_FILE: {path.name} cannot be written: {error.strerror}") from None
        finally:
            aside.unlink(missing_ok=True)
    return read_secret_file(path)


def issue(
    name: str, *, ttl: timedelta, buckets: Sequence[str], prefixes: Sequence[str], file: SecretFile, now: datetime
) -> Issued:
    """Make a key with a new id.

    Raises:
        Rejected: the name, a bucket, a prefix or the time to live is not valid.
    """
    if not NAME.fullmatch(name):
        raise Rejected("a key's name has 1 to 200 characters, none of them a control character")
    if wrong := next((one for one in buckets if not BUCKET.fullmatch(one)), None):
        raise Rejected(f"{wrong!r} is not the name of a bucket")
    if not all(map(NAME.fullmatch, prefixes)):
        raise Rejected("a prefix has 1 to 200 characters, none of them a control character")
    if ttl <= timedelta(0):
        raise Rejected("the time to live is not positive")
    try:
        expires = now + ttl
    except OverflowError:
        raise Rejected(f"a time to live of {ttl.days} days is too long") from None
    id_ = "PW" + base64.b32encode(secrets.token_bytes(12)).decode()[:18]
    key = AccessKey(
        access_key_id=id_,
        name=name,
        secret_file=file.id,
        buckets=sorted(set(buckets)),
        prefixes=sorted(set(prefixes)),
        created_at=now,
        expires_at=expires,
    )
    return Issued(key, file.secret(id_))


def covers_bucket(key: AccessKey, bucket: str) -> bool:
    """Return whether a key may read in a bucket."""
    return not key.buckets or bucket in key.buckets


def covers_object(key: AccessKey, object_key: str) -> bool:
    """Return whether a key may read an object of a bucket that it may read in."""
    return not key.prefixes or object_key.startswith(tuple(key.prefixes))


def narrow_prefix(key: AccessKey, prefix: str) -> list[str]:
    """Return the prefixes below this one that a key may list, in order, none of them inside another; empty: none."""
    if covers_object(key, prefix):
        return [prefix]
    below: list[str] = []
    for one in sorted(key.prefixes):
        if one.startswith(prefix) and not (below and one.startswith(below[-1])):
            below.append(one)
    return below


def _flush_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
