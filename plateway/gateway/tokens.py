"""Who may use the gateway: a file of hashed tokens, the same as amplify-object-store's.

Owns the file (a list of ``name``, ``hash``, ``expires``, ``created_at``, ``scopes``, and ``prefix``, which is ours),
its changes, and the look-up of a token that somebody shows. What a route asks for is left to ``gateway.auth``.

A token is 256 random bits, so a fast hash is the right one; it is shown once and kept nowhere. Changes take a lock,
are written aside, flushed and renamed: readers see the old file or the new one. A file that cannot be read changes
nothing: the tokens that were read last stay in force, and `Tokens.problem` says why.

Sessions of browsers are tokens in a file of their own, in the home. Each is created by a code that is good once: codes
are tokens of that file with the scope `SIGN_IN`, which no route asks for.
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

SCOPES = ("read", "write", "delete")
SIGN_IN = "sign-in"  # scope of a code that creates one session
SESSIONS = Path("gateway", "sessions.json")  # in the home
LINK_LASTS = timedelta(minutes=15)
SESSION_LASTS = timedelta(days=1)
LOCKED = 10.0  # seconds to wait for somebody else's change
SETTLED = 2_000_000_000  # nanoseconds after which a file that looks the same is the same
NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
HASH = re.compile(r"[0-9a-f]{64}")
NOBODY = "0" * 64

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """What the file says of one token; the token itself is not in it."""

    name: str
    hash: str  # SHA-256, hex
    expires: datetime
    created_at: datetime | None = None
    scopes: tuple[str, ...] = ()
    prefix: str | None = None  # of the object keys that it is good for; None: all

    def expired(self, now: datetime) -> bool:
        """Tell whether its time is over."""
        return self.expires < now

    def covers(self, key: str) -> bool:
        """Tell whether it is good for this object key."""
        return self.prefix is None or key.startswith(self.prefix)


@dataclass(frozen=True, slots=True)
class Minted:
    """A token that was just made: what the file keeps, and the secret, which nothing keeps."""

    token: Token
    secret: str = field(repr=False)


def digest(secret: str) -> str:
    """Hash a token as the file has it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def parse(content: bytes) -> list[Token]:
    """Read the text of a tokens file; times without a zone are UTC.

    Raises:
        Rejected: says which entry and which field is wrong, never its value.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"the tokens file is not JSON: {type(error).__name__}") from None
    if not isinstance(entries, list):
        raise Rejected("the tokens file is not a list")
    return [_entry(number, entry) for number, entry in enumerate(entries, start=1)]


def dump(tokens: Iterable[Token]) -> bytes:
    """Write the text of a tokens file."""
    return (json.dumps([_told(token) for token in tokens], indent=2, sort_keys=True) + "\n").encode()


def listed(path: Path) -> list[Token]:
    """List the tokens of a file; none when there is no file.

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
    """Make a token of a new name, and the file if there is none.

    Raises:
        Conflict: the name is taken.
        Rejected: a scope, the name or the time to live makes no sense, or the file is damaged: it stays as it is.
        Busy: others keep changing the file.
    """
    if not NAME.fullmatch(name):
        raise Rejected("a token's name has 1 to 200 characters, none of them a control character")

    def added(tokens: list[Token]) -> tuple[list[Token], Minted]:
        if any(token.name == name for token in tokens):
            raise Conflict(f"a token with name {name!r} already exists")
        made = _mint(Token(name, "", now, now, _scopes(scopes), prefix or None), ttl=ttl, now=now)
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
    """Give a name a new secret and a new time; scopes and prefix stay as they are unless they are given.

    Raises:
        NotFound: no token has this name.
        Rejected, Busy: as `add`.
    """

    def refreshed(tokens: list[Token]) -> tuple[list[Token], Minted]:
        old = _named(tokens, name)
        kept = replace(old, scopes=_scopes(scopes) if scopes else old.scopes, prefix=prefix or old.prefix)
        made = _mint(kept, ttl=ttl, now=now)
        return [made.token if token is old else token for token in tokens], made

    return _change(path, refreshed)


def delete(path: Path, name: str) -> Token:
    """Revoke the tokens of this name.

    Raises:
        NotFound: no token has this name.
        Rejected, Busy: as `add`.
    """

    def deleted(tokens: list[Token]) -> tuple[list[Token], Token]:
        old = _named(tokens, name)
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
    """The tokens of a file as it is now: it is read again whenever it changed."""

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None  # why the file cannot be read; the tokens that were read last are in force
        self._path = path
        self._by_hash: dict[str, Token] = {}
        self._content: bytes | None = None
        self._seen: tuple[int, ...] | None = None  # None: look into it again
        self.look()

    def find(self, secret: str) -> Token | None:
        """Find the token that somebody shows, expired ones too; None if it is not known, or not any more."""
        self.look()
        shown = digest(secret)
        found = self._by_hash.get(shown)
        same = hmac.compare_digest(found.hash if found else NOBODY, shown)
        return found if found and same else None

    def look(self) -> None:
        """Read the file again if it changed."""
        try:
            told = self._path.stat()
        except FileNotFoundError:
            self._take(None, ())
            return
        except OSError as error:
            self._fail(f"the tokens file cannot be read: {error.strerror}")
            return
        state = told.st_mtime_ns, told.st_size, told.st_ino, told.st_ctime_ns
        if state != self._seen:
            self._read(state)

    def _read(self, state: tuple[int, ...]) -> None:
        """Read it; a file this young may change again and look the same, so it is looked into once more."""
        try:
            content = self._path.read_bytes()
            if content != self._content or self.problem:
                self._take(content, parse(content))
        except OSError as error:
            self._fail(f"the tokens file cannot be read: {error.strerror}")
            return
        except Rejected as error:
            self._fail(str(error))
        self._seen = state if abs(time.time_ns() - max(state[0], state[3])) > SETTLED else None

    def _take(self, content: bytes | None, tokens: Sequence[Token]) -> None:
        if self.problem:
            log.warning("the tokens file can be read again")
        self._content, self._seen, self.problem = content, None, None
        self._by_hash = {token.hash: token for token in reversed(tokens)}  # of twins the first one counts

    def _fail(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s; the %d tokens read before stay in force", problem, len(self._by_hash))
        self.problem = problem


def _entry(number: int, entry: Any) -> Token:
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
        expires = _time(entry["expires"])
        created = None if entry.get("created_at") is None else _time(entry["created_at"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise wrong("expires or created_at is not a time") from None
    return Token(name, hashed.lower(), expires, created, tuple(scopes or ()), prefix or None)


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _told(token: Token) -> dict[str, Any]:
    """Say a token as the file does; a prefix only where there is one, so that the original's files stay its own."""
    told: dict[str, Any] = {
        "name": token.name,
        "hash": token.hash,
        "expires": token.expires.astimezone(UTC).isoformat(),
        "created_at": token.created_at and token.created_at.astimezone(UTC).isoformat(),
        "scopes": list(token.scopes),
    }
    return told | ({"prefix": token.prefix} if token.prefix else {})


def _scopes(scopes: Iterable[str]) -> tuple[str, ...]:
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


def _named(tokens: Iterable[Token], name: str) -> Token:
    for token in tokens:
        if token.name == name:
            return token
    raise NotFound(f"no token with name {name!r} found")


def _change(path: Path, change: Callable[[list[Token]], tuple[list[Token], T]]) -> T:
    """Change the file while nobody else does."""
    path = path.resolve()  # where the file is a link, what it leads to is replaced
    try:
        make_private(path.parent)
        with _alone(path):
            tokens, result = change(listed(path))
            _replace(path, dump(tokens))
    except OSError as error:
        raise Misconfigured(f"the tokens file {path.name} cannot be written: {error.strerror}") from None
    return result


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock beside the file; it goes with the process that holds it."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + LOCKED
        while not _taken(lock):
            if time.monotonic() > until:
                raise Busy(f"the tokens file {path.name} is being changed by somebody else")
            time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(path: Path, content: bytes) -> None:
    """Put other content in the place of the file, at once, for its owner only."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            with suppress(FileNotFoundError, PermissionError):  # an administrator's change leaves it to the gateway
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
