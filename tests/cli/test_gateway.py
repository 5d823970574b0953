"""The gateway's commands: tokens as scripts make them, the access log, and a server that starts and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.config import Config  # type: ignore[import-untyped]  # ships no types
from botocore.session import get_session  # type: ignore[import-untyped]  # ships no types
from typer.testing import CliRunner, Result

from plateway import cli, settings
from plateway.errors import Conflict, Misconfigured, NotFound, Rejected
from plateway.gateway import tokens
from plateway.gateway.tokens import Tokens
from plateway.local.seaweed import PLAIN

ORIGINAL = [  # as amplify-object-store writes its file
    {
        "created_at": None,
        "expires": "2999-01-01T00:00:00",
        "hash": tokens.digest("theirs"),
        "name": "old",
        "scopes": ["read"],
    }
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and nothing else set."""
    for name in [name for name in os.environ if name.startswith(("PLATEWAY_", "AWS_", "AUTH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLATEWAY_HOME", str(tmp_path))
    monkeypatch.setenv("PLATEWAY_BUCKET_URL", "memory://cli")
    return tmp_path


def call(*words: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(cli.app, list(words), catch_exceptions=False)


def told(*words: str) -> Any:
    """Run a command that ends well, and read its document."""
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_add_prints_the_token_on_the_last_line(home: Path) -> None:
    """Five lines, an empty one, a notice, and the token, which scripts take with `tail -1`; the file has its hash."""
    result = call("token", "add", "bob", "--ttl", "30", "--scope", "write", "--scope", "read", "--scope", "read")
    *facts, empty, notice, secret = result.stdout.splitlines()
    assert [line.split(":")[0].strip() for line in facts] == ["Token created.", "name", "ttl_days", "expires", "scopes"]
    assert (facts[-1].split(maxsplit=1)[1], empty) == ("['read', 'write']", "")
    assert notice
    assert re.fullmatch(r"[\w-]{43}", secret)
    found = Tokens(home / "tokens.json").find(secret)
    assert found is not None and found.name == "bob"
    assert found.expires - datetime.now(UTC) > timedelta(days=29)
    assert secret not in (home / "tokens.json").read_text()


def test_the_file_goes_before_the_command(home: Path) -> None:
    """`-f` names another file, as in amplify-object-store; one that it wrote goes on to be used."""
    file = home / "theirs.json"
    file.write_text(json.dumps(ORIGINAL))
    for option in ("-f", "--file"):
        assert [one["name"] for one in told("token", option, str(file), "list")] == ["old"]
    result = call("token", "-f", str(file), "add", "new", "--ttl", "1", "--prefix", "plates/")
    assert result.exit_code == 0
    known = Tokens(file)
    assert known.find("theirs") is not None
    made = known.find(result.stdout.splitlines()[-1])
    assert made is not None and made.prefix == "plates/"
    assert not (home / "tokens.json").exists()


@pytest.mark.parametrize("name", ["PLATEWAY_TOKENS_FILE", "AUTH_TOKENS_FILE"])
def test_the_file_may_be_set(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Either name of the setting holds."""
    monkeypatch.setenv(name, str(home / "set.json"))
    call("token", "add", "bob", "--ttl", "1")
    assert (home / "set.json").exists()


def test_a_name_is_taken_once(home: Path) -> None:
    """Adding a name again exits with 1, says so on standard error only, and changes nothing."""
    secret = call("token", "add", "bob", "--ttl", "1").stdout.splitlines()[-1]
    again = call("token", "add", "bob", "--ttl", "1")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == "ERROR: A token with name 'bob' already exists.\n"
    assert Tokens(home / "tokens.json").find(secret)


@pytest.mark.parametrize("words", [["delete", "nobody"], ["refresh", "nobody", "--ttl", "1"]])
def test_a_name_that_nobody_has(home: Path, words: list[str]) -> None:
    """Deleting or refreshing an unknown name exits with 1 and says so on standard error."""
    result = call("token", *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "ERROR: No token with name 'nobody' found.\n"


@pytest.mark.parametrize(
    "words", [["--ttl", "0"], ["--ttl", "-1"], ["--ttl", "999999999"], ["--ttl", "1", "--scope", "admin"]]
)
def test_tokens_that_make_no_sense(home: Path, words: list[str]) -> None:
    """A time that is over, one beyond all times and a scope that is none are refused, and no file is made."""
    result = call("token", "add", "bob", *words)
    assert result.exit_code == 1
    assert result.stderr.startswith("ERROR: ")
    assert not (home / "tokens.json").exists()


def test_a_damaged_file_stays_as_it_is(home: Path) -> None:
    """Nothing is added to what cannot be read."""
    (home / "tokens.json").write_text("[{")
    result = call("token", "add", "bob", "--ttl", "1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not JSON" in result.stderr
    assert (home / "tokens.json").read_text() == "[{"


def test_refresh_gives_another_token(home: Path) -> None:
    """The old token ends, scopes and prefix stay unless they are given; four lines, and the token on the last one."""
    old = call("token", "add", "bob", "--ttl", "1", "--scope", "read", "--prefix", "a/").stdout.splitlines()[-1]
    lines = call("token", "refresh", "bob", "--ttl", "9").stdout.splitlines()
    assert lines[0] == "Token 'bob' refreshed."
    known = Tokens(home / "tokens.json")
    renewed = known.find(lines[-1])
    assert renewed is not None and (renewed.scopes, renewed.prefix) == (("read",), "a/")
    assert known.find(old) is None
    newest = call("token", "refresh", "bob", "--ttl", "9", "--scope", "write").stdout.splitlines()[-1]
    found = Tokens(home / "tokens.json").find(newest)
    assert found is not None and found.scopes == ("write",)


def test_list_tells_all_but_hashes(home: Path) -> None:
    """Each token with what it may do and until when; those whose time is over say so."""
    assert "No tokens." in call("token", "list").stdout
    call("token", "add", "bob", "--ttl", "1", "--scope", "read", "--prefix", "a/")
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    tokens.add(home / "tokens.json", "past", ttl=timedelta(days=1), now=long_ago)
    bob, past = told("token", "list")
    assert (bob["name"], bob["scopes"], bob["prefix"], bob["expired"]) == ("bob", ["read"], "a/", False)
    assert (past["expires"], past["expired"]) == ("2001-01-02T00:00:00+00:00", True)
    text = call("token", "list").stdout
    assert "(expired)" in text
    for one in tokens.listed(home / "tokens.json"):
        assert one.hash not in text + json.dumps([bob, past])


def test_a_link_is_printed_for_the_gateway_of_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the last line, once for each time it is asked for: where it is set to listen, or where `up` runs it."""
    first, second = (call("token", "link").stdout.splitlines()[-1] for _ in range(2))
    assert first.startswith("http://127.0.0.1:8000/login?code=") and first != second
    monkeypatch.setenv("PLATEWAY_SERVE_HOST", "::")
    assert call("token", "link").stdout.startswith("http://[::1]:8000/login?code=")
    (home / settings.RUNTIME).write_text(json.dumps({"gateway": "http://127.0.0.1:8123"}))
    assert call("token", "link").stdout.startswith("http://127.0.0.1:8123/login?code=")
    codes, now = home / tokens.SESSIONS, datetime.now(UTC)
    assert [one.scopes for one in tokens.listed(codes)] == [(tokens.SIGN_IN,)] * 4
    assert tokens.sign_in(codes, first.rpartition("=")[2], now=now)
    assert not tokens.sign_in(codes, first.rpartition("=")[2], now=now)
    assert not (home / "tokens.json").exists()


def test_delete_revokes(home: Path) -> None:
    """The token is good for nothing, and the name free again."""
    secret = call("token", "add", "bob", "--ttl", "1").stdout.splitlines()[-1]
    assert call("token", "delete", "bob").stdout == "Token 'bob' deleted.\n"
    assert Tokens(home / "tokens.json").find(secret) is None
    assert call("token", "add", "bob", "--ttl", "1").exit_code == 0


@contextmanager
def serving(home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run `plateway serve` on a port that is free: the process, its address, and what it said."""
    command = [sys.executable, "-m", "plateway", "serve", "--port", "0", *words]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        (home / "serve.err").open("w") as messages,
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=messages, text=True) as process,
    ):
        watch = threading.Timer(240, process.kill)
        watch.start()
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(5)]
            yield process, lines[0].split()[-1], lines
        finally:
            watch.cancel()
            process.kill()


def test_serve_answers_until_ctrl_c(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says where it listens and where the API is told, knows a token at once, and ends with 0 and no traceback."""
    (home / "objects").mkdir()
    monkeypatch.setenv("PLATEWAY_OBJECTS_URL", (home / "objects").as_uri())
    with serving(home) as (process, url, lines):
        assert lines[1].split()[-1] == f"{url}/docs"
        assert lines[2] == "Events   token required"
        assert httpx.get(f"{url}/ready", timeout=60, trust_env=False, verify=PLAIN).json()["checks"] == {
            "tokens": "ok",
            "access": "ok",
            "objects": "ok",
            "catalogue": "ok",
            "bucket": "ok",
        }
        secret = call("token", "add", "bob", "--ttl", "1", "--scope", "write").stdout.splitlines()[-1]
        headers = {"Authorization": f"Bearer {secret}"}
        put = httpx.put(
            f"{url}/objects/plates/a", content=b"1", headers=headers, timeout=60, trust_env=False, verify=PLAIN
        )
        assert put.status_code == 200
        assert httpx.get(f"{url}/docs", timeout=60, trust_env=False, verify=PLAIN).text.count("/objects/{key}") > 3
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert (home / "serve.err").read_text() == ""
    (one,) = told("access", "--token", "bob", "--key", "plates/")
    assert (one["method"], one["status"], one["received"], one["key"]) == ("PUT", 200, 1, "plates/a")
    assert "/ready" in call("access").stdout
    assert told("access", "--until", "2026-01-01") == told("access", "--since", "2999-01-01") == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"PLATEWAY_OBJECTS_URL": "memory://cli"}, "the bucket of the events"),
        ({"PLATEWAY_OBJECTS_URL": "s3://tape/objects", "PLATEWAY_ARCHIVE_TARGET": "s3://tape"}, "the archive"),
        ({"PLATEWAY_OBJECTS_URL": "file://{home}/inbox/x", "PLATEWAY_ARCHIVE_INBOX": "inbox"}, "the archive's inbox"),
        ({"PLATEWAY_OBJECTS_URL": "file://{home}/bench"}, "the bench"),
        ({"PLATEWAY_OBJECTS_URL": "file://{home}/x/../bench"}, "the bench"),
        ({"PLATEWAY_OBJECTS_URL": "file://{home}/%62ench"}, "the bench"),
        ({"PLATEWAY_OBJECTS_URL": "file://{home}"}, "the bench"),
        ({"PLATEWAY_OBJECTS_URL": "file:///"}, "the bench"),
        ({"PLATEWAY_OBJECTS_URL": "file://{home}/t", "PLATEWAY_TOKENS_FILE": "{home}/t/tokens.json"}, "the tokens"),
        ({"PLATEWAY_OBJECTS_URL": "file://{home}/gateway"}, "the access log"),
        ({"PLATEWAY_OBJECTS_URL": "file://{home}/s3"}, "s3 in the home"),
        ({"PLATEWAY_TRUSTED_PROXIES": "gate.example"}, "trusted proxies"),
        ({"PLATEWAY_SERVE_PORT": "99999"}, "PLATEWAY_SERVE_PORT"),
        ({"PLATEWAY_SERVE_WORKERS": "2", "PLATEWAY_OBJECTS_URL": "memory://others"}, "one worker"),
    ],
)
def test_what_cannot_be_served(
    home: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, str], message: str
) -> None:
    """Objects that would lie where events, archive or secrets are, and settings that make no sense, end it at once."""
    for name, value in names.items():
        monkeypatch.setenv(name, value.format(home=home))
    with pytest.raises(Misconfigured, match=message):
        call("serve")


def test_keys_and_shares(home: Path) -> None:
    """A key is shown once, listed without its secret, disabled and deleted; a share is listed and withdrawn."""
    made = told("key", "add", "alice", "--ttl", "30", "--bucket", "events", "--prefix", "exp/", "--json")
    assert set(made) == {"access_key_id", "secret_access_key", "expires"}
    assert datetime.fromisoformat(made["expires"]) > datetime.now(UTC) + timedelta(days=29)
    shown = call("key", "add", "bob", "--ttl", "1").stdout
    assert "AWS_ACCESS_KEY_ID=PW" in shown
    assert "AWS_SECRET_ACCESS_KEY=" in shown
    with pytest.raises(Conflict, match="already exists"):
        call("key", "add", "bob", "--ttl", "1")
    with pytest.raises(Rejected):
        call("key", "add", "carol", "--ttl", "1", "--bucket", "a/b")
    assert [call("key", "add", "carol", "--ttl", days).exit_code for days in ("0", "99999999999")] == [2, 2]
    alice, bob = told("key", "list")
    assert (alice["access_key_id"], alice["buckets"], alice["prefixes"]) == (
        made["access_key_id"],
        ["events"],
        ["exp/"],
    )
    assert (bob["buckets"], bob["state"]) == ([], "valid")
    assert made["secret_access_key"] not in json.dumps([alice, bob]) + call("key", "list").stdout
    assert (home / "gateway" / "s3.key").stat().st_mode & 0o777 == 0o600
    call("key", "disable", "bob")
    call("key", "delete", "alice")
    assert [(one["name"], one["state"]) for one in told("key", "list")] == [("bob", "disabled")]
    with pytest.raises(NotFound):
        call("key", "delete", "alice")
    (home.parent / "scans").mkdir()
    location = (home.parent / "scans").as_uri()
    call("share", "Request4_CT", location)
    assert [(one["name"], one["location"]) for one in told("share")] == [("Request4_CT", location)]
    elsewhere = [("Request4_CT", home.parent.as_uri()), ("fine", home.as_uri()), ("fine", (home / "gateway").as_uri())]
    for name, where in [*elsewhere, ("events", location), ("a", location), ("fine", "memory://x"), ("fine", "/x")]:
        with pytest.raises((Misconfigured, Rejected, Conflict)):
            call("share", name, where)
    with pytest.raises(NotFound):
        call("share", "fine", "file:///elsewhere-that-is-not-there")
    assert call("share", "fine").exit_code == 2
    call("share", "Request4_CT", "--delete")
    assert told("share") == []


def test_serve_has_an_s3_endpoint(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes answer S3 clients at a port of its own, with a key that was issued meanwhile."""
    monkeypatch.setenv("PLATEWAY_S3_PORT", "0")
    monkeypatch.setenv("PLATEWAY_SERVE_WORKERS", "2")
    with serving(home) as (process, url, lines):
        s3_url = lines[4].split()[1]
        assert s3_url != url
        httpx.get(f"{url}/ready", timeout=60, trust_env=False, verify=PLAIN)
        made = told("key", "add", "bob", "--ttl", "1")
        client = get_session().create_client(
            "s3",
            endpoint_url=s3_url,
            region_name="us-east-1",
            aws_access_key_id=made["access_key_id"],
            aws_secret_access_key=made["secret_access_key"],
            config=Config(proxies={}),
        )
        assert [one["Name"] for one in client.list_buckets()["Buckets"]] == ["events"]
        assert "KeyCount" in client.list_objects_v2(Bucket="events")
        assert httpx.get(f"{s3_url}/health", trust_env=False, verify=PLAIN).status_code == 403
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    found = told("access", "--key", "bob")
    assert [(one["who"], one["service"], one["route"]) for one in found] == [
        ("bob", "s3", "s3 ListBuckets"),
        ("bob", "s3", "s3 ListObjectsV2"),
    ]
