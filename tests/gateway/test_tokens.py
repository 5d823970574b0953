"""Tokens: the file is amplify-object-store's, changes are whole and none is lost."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plateway.errors import Busy, Conflict, Misconfigured, NotFound, Rejected
from plateway.gateway import tokens
from plateway.gateway.tokens import Token, Tokens

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a tokens file may be."""
    return tmp_path / "tokens.json"


def test_a_token_is_made_once(path: Path) -> None:
    """The file gets the hash, its owner alone may read it, and nothing that is shown has the secret."""
    made = tokens.add(path, "ci", ttl=30 * DAY, scopes=["write", "read", "read"], now=NOW)
    assert len(made.secret) == 43
    assert json.loads(path.read_text()) == [
        {
            "name": "ci",
            "hash": hashlib.sha256(made.secret.encode()).hexdigest(),
            "expires": "2026-06-03T03:02:01+00:00",
            "created_at": "2026-05-04T03:02:01+00:00",
            "scopes": ["read", "write"],
        }
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.secret not in f"{made} {made!r} {path.read_text()}"
    assert sorted(one.name for one in path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


def test_the_original_can_read_it(path: Path) -> None:
    """Fields, indentation and order are the original's; a prefix, which it does not know, only where there is one."""
    tokens.add(path, "a", ttl=DAY, now=NOW)
    tokens.add(path, "b", ttl=DAY, prefix="b/", now=NOW)
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert [sorted(one) for one in json.loads(text)] == [
        ["created_at", "expires", "hash", "name", "scopes"],
        ["created_at", "expires", "hash", "name", "prefix", "scopes"],
    ]


def test_files_of_the_original_are_read(path: Path) -> None:
    """Times without a zone are UTC, no creation time and no scopes are fine, and other scopes are kept."""
    entries = [
        {"name": "a", "hash": "A" * 64, "expires": "2026-01-02T00:00:00", "created_at": None, "scopes": None},
        {"name": "b", "hash": "b" * 64, "expires": "2026-01-02T01:00:00+01:00", "scopes": ["admin"], "other": 1},
    ]
    path.write_text(json.dumps(entries))
    midnight = datetime(2026, 1, 2, tzinfo=UTC)
    assert tokens.listed(path) == [
        Token("a", "a" * 64, midnight),
        Token("b", "b" * 64, midnight, scopes=("admin",)),
    ]


def test_written_and_read_back(path: Path) -> None:
    """What is dumped is parsed as it was."""
    some = [Token("a", "a" * 64, NOW, NOW, ("read",), "x/"), Token("é", "b" * 64, NOW)]
    assert tokens.parse(tokens.dump(some)) == some
    assert tokens.listed(path) == []


GOOD = {"name": "a", "hash": "a" * 64, "expires": "2026-01-02T00:00:00"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"[{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "not a list"),
        (b"[1]", "entry 1.*not an object"),
        (json.dumps([GOOD, GOOD | {"name": 1}]).encode(), "entry 2.*no name"),
        (json.dumps([GOOD | {"hash": "secret"}]).encode(), "hash"),
        (json.dumps([GOOD | {"scopes": "read"}]).encode(), "scopes"),
        (json.dumps([GOOD | {"prefix": 1}]).encode(), "prefix"),
        (json.dumps([GOOD | {"expires": "soon"}]).encode(), "not a time"),
        (json.dumps([GOOD | {"created_at": 5}]).encode(), "not a time"),
    ],
)
def test_damaged_files_are_refused_and_left_alone(path: Path, content: bytes, reason: str) -> None:
    """The reason names the entry, never what is in it; no change touches a file that is damaged."""
    path.write_bytes(content)
    with pytest.raises(Rejected, match=reason) as caught:
        tokens.listed(path)
    assert "secret" not in str(caught.value)
    with pytest.raises(Rejected):
        tokens.add(path, "x", ttl=DAY, now=NOW)
    assert path.read_bytes() == content


def test_names_are_taken_once(path: Path) -> None:
    """A second token of a name is a conflict, one that is not there cannot be refreshed or deleted."""
    tokens.add(path, "a", ttl=DAY, now=NOW)
    before = path.read_bytes()
    with pytest.raises(Conflict, match="'a'"):
        tokens.add(path, "a", ttl=DAY, now=NOW)
    with pytest.raises(NotFound, match="'b'"):
        tokens.refresh(path, "b", ttl=DAY, now=NOW)
    with pytest.raises(NotFound, match="'b'"):
        tokens.delete(path, "b")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("ttl", "scopes", "name"), [(0, [], "a"), (-1, [], "a"), (1, ["root"], "a"), (1, [], "a\nb"), (1, [], "")]
)
def test_tokens_that_make_no_sense(path: Path, ttl: int, scopes: list[str], name: str) -> None:
    """A time that is over, a scope that is none and a name that forges lines are refused."""
    with pytest.raises(Rejected):
        tokens.add(path, name, ttl=timedelta(days=ttl), scopes=scopes, now=NOW)
    assert not path.exists()


def test_refreshed(path: Path) -> None:
    """A refreshed token has a new secret and time; scopes, prefix and creation stay unless they are given."""
    first = tokens.add(path, "a", ttl=DAY, scopes=["read"], prefix="x/", now=NOW)
    second = tokens.refresh(path, "a", ttl=2 * DAY, now=NOW + DAY)
    assert second.secret != first.secret
    assert (second.token.scopes, second.token.prefix, second.token.created_at) == (("read",), "x/", NOW)
    assert second.token.expires == NOW + 3 * DAY
    third = tokens.refresh(path, "a", ttl=DAY, scopes=["delete"], now=NOW)
    assert (third.token.scopes, len(tokens.listed(path))) == (("delete",), 1)


def test_found_as_long_as_it_is_there(path: Path) -> None:
    """Changes of the file count at once: made, refreshed, deleted, gone."""
    known = Tokens(path)
    made = tokens.add(path, "a", ttl=DAY, now=NOW)
    assert known.find(made.secret) == made.token
    assert known.find("x") is known.find("") is known.find("\udcff") is known.find(made.token.hash) is None
    again = tokens.refresh(path, "a", ttl=DAY, now=NOW)
    assert (known.find(made.secret), known.find(again.secret)) == (None, again.token)
    tokens.delete(path, "a")
    assert known.find(again.secret) is None
    tokens.add(path, "b", ttl=DAY, now=NOW)
    path.unlink()
    assert known.problem is None


def test_a_file_that_looks_the_same_is_noticed(path: Path) -> None:
    """Another content of the same length, written in place in the same moment, is read as well."""
    secrets = ["one", "two"]
    contents = [json.dumps([GOOD | {"hash": tokens.digest(secret)}]) for secret in secrets]
    path.write_text(contents[0])
    known = Tokens(path)
    assert known.find("one")
    told = path.stat()
    path.write_text(contents[1])
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert (known.find("one"), known.find("two") is not None) == (None, True)


def test_expiry_and_prefix() -> None:
    """A token is good up to its time, and for keys that begin with its prefix."""
    token = Token("a", "", NOW, prefix="x/")
    assert [token.expired(NOW + timedelta(seconds=late)) for late in (-1, 0, 1)] == [False, False, True]
    assert [token.covers(key) for key in ("x/", "x/a", "x", "y/x/")] == [True, True, False, False]
    assert Token("a", "", NOW).covers("")


def test_a_damaged_file_keeps_the_last_good_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """O13: who was let in stays in; the log says it once, and so does `problem` until it is mended."""
    made = tokens.add(path, "a", ttl=DAY, now=NOW)
    known = Tokens(path)
    good = path.read_bytes()
    path.write_bytes(good[:50])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert known.find(made.secret) == made.token
    assert known.problem == "the tokens file is not JSON: JSONDecodeError"
    assert caplog.text.count("the 1 tokens read before stay valid") == 1
    path.write_bytes(good)
    assert known.find(made.secret) == made.token
    assert not known.problem


def test_a_file_that_was_never_good_lets_nobody_in(path: Path) -> None:
    """A gateway that starts with a damaged file has no tokens, and says why."""
    path.write_bytes(b"{")
    known = Tokens(path)
    assert (known.find("x"), known.problem is None) == (None, False)


ADD = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from plateway.gateway import tokens
for number in range(25):
    tokens.add(Path(sys.argv[1]), f"{sys.argv[2]}-{number}", ttl=timedelta(days=1), now=datetime.now(UTC))
"""


def test_two_processes_lose_nothing(path: Path) -> None:
    """Two processes that add at once both find their tokens in the file."""
    both = [subprocess.Popen([sys.executable, "-c", ADD, str(path), who]) for who in ("a", "b")]
    assert [process.wait(60) for process in both] == [0, 0]
    assert {token.name for token in tokens.listed(path)} == {f"{who}-{number}" for who in "ab" for number in range(25)}


def test_a_change_that_takes_too_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits too long for somebody else's change is told so."""
    monkeypatch.setattr(tokens, "LOCKED", 0.05)
    with tokens._locked(path), pytest.raises(Busy):
        tokens.add(path, "a", ttl=DAY, now=NOW)


def test_a_link_is_followed(tmp_path: Path, path: Path) -> None:
    """Where the file is a link, what it leads to is changed, and the link stays."""
    (tmp_path / "real").mkdir()
    path.symlink_to(tmp_path / "real" / "t.json")
    tokens.add(path, "a", ttl=DAY, now=NOW)
    assert path.is_symlink() and (tmp_path / "real" / "t.json").is_file()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A directory in its place is told, without its path."""
    with pytest.raises(Misconfigured) as caught:
        tokens.listed(tmp_path)
    assert str(tmp_path) not in str(caught.value)
    assert Tokens(tmp_path).problem
