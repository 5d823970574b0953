"""The tokens file of the gateway: hashed tokens, in the format of amplify-object-store.

Reads and changes the file (a list of ``name``, ``hash``, ``expires``, ``created_at``, ``scopes``, and ``prefix``, which
Plateway adds), and finds the token of a secret. ``gateway.auth`` checks the scopes of routes.

A token is 256 random bits, so a fast hash is sufficient; it is shown once and not stored. A change takes a lock, writes
a temporary file, flushes and renames it: readers see the old file or the new one. When the file cannot be read, the
tokens read last stay valid, and `Tokens.problem` has the reason.

Browser sessions are tokens in a separate file in the home. Each is created by a code that can be used once: codes are
tokens of that file with the scope `SIGN_IN`, which no route requires.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from plateway.errors import Busy, Conflict, Misconfigured, NotFound, Rejected
from plateway.settings import make_private

SCOPES = ("read", "write", "delete", "operate")
SIGN_IN = "sign-in"  # scope of a code that creates one session
SESSIONS = Path("gateway", "sessions.json")  # in the home
LINK_LASTS = timedelta(minutes=15)
SESSION_LASTS = timedelta(days=1)
LOCKED = 10.0  # seconds to wait for the lock
SETTLED = 2_000_000_000  # nanoseconds after which an unchanged stat means an unchanged file
NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
HASH = re.compile(r"[0-9a-f]{64}")
NOBODY = "0" * 64

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of the file; it has no secret."""

    name: str
    hash: str  # SHA-256, hex
    expires: datetime
    created_at: datetime | None = None
    scopes: tuple[str, ...] = ()
    prefix: str | None = None  # of the object keys that it covers; None: all

    def expired(self, now: datetime) -> bool:
        """Return whether it is expired."""
        return self.expires < now

    def covers(self, key: str) -> bool:
        """Return whether it covers an object key."""
        return self.prefix is None or key.startswith(self.prefix)


@dataclass(frozen=True, slots=True)
class Minted:
    """A new token: its entry, and its secret, which is not stored."""

    token: Token
    secret: str = field(repr=False)


def digest(secret: str) -> str:
    """Return the hash of a secret, as stored in the file."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def parse(content: bytes) -> list[Token]:
    """Parse a tokens file; times without a zone are UTC.

    Raises:
        Rejected: it is not valid; the message names the entry and the field, never a value.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"the tokens file is not JSON: {type(error).__name__}") from None
    if not isinstance(entries, list):
        raise Rejected("the tokens file is not a list")
    return [_parse_entry(number, entry) for number, entry in enumerate(entries, start=1)]


def dump(tokens: Iterable[Token]) -> bytes:
    """Serialize a tokens file."""
    return (json.dumps([_serialize_token(token) for token in tokens], indent=2, sort_keys=True) + "\n").encode()


def listed(path: Path) -> list[Token]:
    """List the tokens of a file; empty if there is no file.

    Raises:
        Rejected: the file is damaged.
        Misconfigured: it cannot be read.
    """
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Misconfigured(f"the tokens file {path.name} cannot be read: {error.strerror}") from None


def add(
    path: Path,
    name: str,
    *,
    ttl: timedelta,
    scopes: Iterable[str] = (),
    prefix: str | None = None,
    now: datetime,
) -> Minted:
    """Create a token with a new name, and the file if there is none.

    Raises:
        Conflict: the name exists.
        Rejected: a scope, the name or the time to live is not valid, or the file is damaged; the file is not changed.
        Busy: another process holds the lock.
    """
    if not NAME.fullmatch(name):
        raise Rejected("a token's name has 1 to 200 characters, none of them a control character")

    def added(tokens: list[Token]) -> tuple[list[Token], Minted]:
        if any(token.name == name for token in tokens):
            raise Conflict(f"a token with name {name!r} already exists")
        made = _mint(Token(name, "", now, now, _check_scopes(scopes), prefix or None), ttl=ttl, now=now)
        return [*tokens, made.token], made

    return _change(path, added)


def refresh(
    path: Path,
    name: str,
    *,
    ttl: timedelta,
    scopes: Iterable[str] | None = None,
    prefix: str | None = None,
    now: datetime,
) -> Minted:
    """Create a new secret and expiry time for a name; scopes and prefix stay unless given.

    Raises:
        NotFound: no token has this name.
        Rejected, Busy: as `add`.
    """

    def refreshed(tokens: list[Token]) -> tuple[list[Token], Minted]:
        old = _find_by_name(tokens, name)
        kept = replace(old, scopes=_check_scopes(scopes) if scopes else old.scopes, prefix=prefix or old.prefix)
        made = _mint(kept, ttl=ttl, now=now)
        return [made.token if token is old else token for token in tokens], made

    return _change(path, refreshed)


def delete(path: Path, name: str) -> Token:
    """Delete the tokens of this name.

    Raises:
        NotFound: no token has this name.
        Rejected, Busy: as `add`.
    """

    def deleted(tokens: list[Token]) -> tuple[list[Token], Token]:
        old = _find_by_name(tokens, name)
        return [token for token in tokens if token.name != name], old

    return _change(path, deleted)


def sign_in_link(home: Path, gateway: str, *, now: datetime) -> str:
    """Create a link that signs one browser in at the gateway of a home, once, within `LINK_LASTS`.

    Raises:
        Misconfigured, Rejected, Busy: as `add`.
    """
    code = _named_by_hash("sign-in", SIGN_IN, ttl=LINK_LASTS, now=now)
    _change(home / SESSIONS, lambda found: ([*_valid(found, now), code.token], None))
    return f"{gateway}/login?code={code.secret}"


def sign_in(path: Path, code: str, *, now: datetime) -> Minted | None:
    """Exchange a code for a session that may read, for `SESSION_LASTS`; None if it is unknown, used or expired.

    Of several processes that try the same code, one succeeds.

    Raises:
        Misconfigured, Rejected, Busy: as `add`.
    """

    def exchanged(found: list[Token]) -> tuple[list[Token], Minted | None]:
        valid, shown = _valid(found, now), digest(code)
        left = [one for one in valid if one.hash != shown or SIGN_IN not in one.scopes]
        if len(left) == len(valid):
            return valid, None
        made = _named_by_hash("session", "read", ttl=SESSION_LASTS, now=now)
        return [*left, made.token], made

    return _change(path, exchanged)


class Tokens:
    """The current tokens of a file, which is read again whenever it changed."""

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None  # why the file cannot be read; the tokens read last stay valid
        self._path = path
        self._by_hash: dict[str, Token] = {}
        self._content: bytes | None = None
        self._seen: tuple[int, ...] | None = None  # None: read it again
        self.reload()

    def find(self, secret: str) -> Token | None:
        """Return the token of a secret, also an expired one, or None if it is unknown."""
        self.reload()
        shown = digest(secret)
        found = self._by_hash.get(shown)
        same = hmac.compare_digest(found.hash if found else NOBODY, shown)
        return found if found and same else None

    def reload(self) -> None:
        """Read the file again if it changed."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._replace_tokens(None, ())
            return
        except OSError as error:
            self._fail(f"the tokens file cannot be read: {error.strerror}")
            return
        state = stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_ctime_ns
        if state != self._seen:
            self._read_file(state)

    def _read_file(self, state: tuple[int, ...]) -> None:
        """Read the file; one that changed just now may change again with the same stat, so it is read once more."""
        try:
            content = self._path.read_bytes()
            if content != self._content or self.problem:
                self._replace_tokens(content, parse(content))
        except OSError as error:
            self._fail(f"the tokens file cannot be read: {error.strerror}")
            return
        except Rejected as error:
            self._fail(str(error))
        self._seen = state if abs(time.time_ns() - max(state[0], state[3])) > SETTLED else None

    def _replace_tokens(self, content: bytes | None, tokens: Sequence[Token]) -> None:
        if self.problem:
            log.warning("the tokens file can be read again")
        self._content, self._seen, self.problem = content, None, None
        self._by_hash = {token.hash: token for token in reversed(tokens)}  # of equal hashes the first one counts

    def _fail(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s; the %d tokens read before stay valid", problem, len(self._by_hash))
        self.problem = problem


def _parse_entry(number: int, entry: Any) -> Token:
    def wrong(what: str) -> Rejected:
        return Rejected(f"entry {number} of the tokens file: {what}")

    if not isinstance(entry, dict):
        raise wrong("not an object")
    name, hashed, scopes, prefix = (entry.get(field) for field in ("name", "hash", "scopes", "prefix"))
    if not isinstance(name, str):
        raise wrong("no name")
    if not isinstance(hashed, str) or not HASH.fullmatch(hashed.lower()):
        raise wrong("the hash is not 64 hexadecimal digits")
    if not (scopes is None or (isinstance(scopes, list) and all(isinstance(scope, str) for scope in scopes))):
        raise wrong("the scopes are not a list of words")
    if not (prefix is None or isinstance(prefix, str)):
        raise wrong("the prefix is not text")
    try:
        expires = _parse_time(entry["expires"])
        created = None if entry.get("created_at") is None else _parse_time(entry["created_at"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise wrong("expires or created_at is not a time") from None
    return Token(name, hashed.lower(), expires, created, tuple(scopes or ()), prefix or None)


def _parse_time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _serialize_token(token: Token) -> dict[str, Any]:
    """Serialize a token; a prefix only if there is one, so that amplify-object-store can read the file."""
    entry: dict[str, Any] = {
        "name": token.name,
        "hash": token.hash,
        "expires": token.expires.astimezone(UTC).isoformat(),
        "created_at": token.created_at and token.created_at.astimezone(UTC).isoformat(),
        "scopes": list(token.scopes),
    }
    return entry | ({"prefix": token.prefix} if token.prefix else {})


def _check_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    wanted = tuple(sorted(set(scopes)))
    if unknown := [scope for scope in wanted if scope not in SCOPES]:
        raise Rejected(f"no such scope: {', '.join(unknown)}; there are {', '.join(SCOPES)}")
    return wanted


def _valid(tokens: Iterable[Token], now: datetime) -> list[Token]:
    return [token for token in tokens if not token.expired(now)]


def _named_by_hash(kind: str, scope: str, *, ttl: timedelta, now: datetime) -> Minted:
    made = _mint(Token("", "", now, now, (scope,)), ttl=ttl, now=now)
    return replace(made, token=replace(made.token, name=f"{kind} {made.token.hash[:12]}"))


def _mint(token: Token, *, ttl: timedelta, now: datetime) -> Minted:
    secret = secrets.token_urlsafe(32)
    try:
        expires = now + ttl
    except OverflowError:
        raise Rejected(f"a time to live of {ttl.days} days is too long") from None
    if ttl <= timedelta(0):
        raise Rejected("the time to live is not positive")
    return Minted(replace(token, hash=digest(secret), expires=expires), secret)


def _find_by_name(tokens: Iterable[Token], name: str) -> Token:
    for token in tokens:
        if token.name == name:
            return token
    raise NotFound(f"no token with name {name!r} found")


def _change(path: Path, change: Callable[[list[Token]], tuple[list[Token], T]]) -> T:
    """Change the file under its lock."""
    path = path.resolve()  # where the file is a link, what it leads to is replaced
    try:
        make_private(path.parent)
        with _locked(path):
            tokens, result = change(listed(path))
            _replace_file(path, dump(tokens))
    except OSError as error:
        raise Misconfigured(f"the tokens file {path.name} cannot be written: {error.strerror}") from None
    return result


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside the file; the kernel releases it when its process ends."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + LOCKED
        while not _try_lock(lock):
            if time.monotonic() > until:
                raise Busy(f"the tokens file {path.name} is locked by another process")
            time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace_file(path: Path, content: bytes) -> None:
    """Replace the content of the file atomically, readable by its owner only."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            with suppress(FileNotFoundError, PermissionError):  # a change by root keeps the owner
                before = path.stat()
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
