"""Names that instruments, people and archives chose, through every command that prints names: they are text.

One set of hostile names is used as names of images, event files, systems, experiments, objects, tokens and archives.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress
from rich.table import Table

from plateway import simulator
from plateway.cli import commands, console
from plateway.endpoint import Endpoint
from plateway.gateway import tokens
from plateway.gateway.access import Access, AccessLog
from plateway.names import PlainFormatter, plain
from plateway.simulator import Shot, Simulated
from tests.cli.test_cli import call, home

__all__ = ["home"]

HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "\x9b31mred",  # CSI as one character
    "a\rb",
    "a\nforged",
    "a\tb",
    "a\x08b\x7f",
    "\u202efit.gpj",  # right to left
    "\u2066a\u2069",
    "\u200b\u200f\ufeff",
    "a\u2028b",
    "\U000e0041tag",
    "caf\udce9",  # not UTF-8 on disk
    ":smile:",
    ":warning: [red]x[/red] [link=http://evil.test]y[/]",
    "[/red]",
    "[bold",
    "\\[red]",
)
VERBATIM = (":smile:.tif", "[red]x[|red]", "[|red].tif", "[bold.tif")  # as names of files


@dataclass(frozen=True)
class Clock:
    """A clock that stands still."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def spoken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run commands as a shell does, where errors are written out, too; gives what is printed, which is clean."""

    def spoken(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["plateway", *words])
        with pytest.raises(SystemExit):
            commands.main()
        text = "".join(capsys.readouterr())
        assert clean(text), (words, text)
        assert "Traceback" not in text, (words, text)
        return text

    return spoken


def clean(text: str) -> bool:
    """Return whether there is nothing in a text that could steer a terminal or turn what is around it."""
    return all(site.isprintable() for site in text.replace("\t", " ").split("\n"))


def run(*words: str, codes: tuple[int, ...] = (0, 1, 3, 4, 5)) -> str:
    """Run a command, as text; it ends without a traceback, and what it prints is clean."""
    result = call(*words)
    assert result.exit_code in codes, (words, result.output)
    assert clean(result.output), (words, result.output)
    return result.output


def read(*words: str, codes: tuple[int, ...] = (0, 1, 3, 4, 5)) -> Any:
    """Run a command with ``--json``: one document, in ASCII, that has the names as they are."""
    result = call(*words, "--json")
    assert result.exit_code in codes, (words, result.output)
    assert result.stdout.isascii() and clean(result.stdout), words
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def names() -> tuple[str, ...]:
    """File names: what a directory can hold."""
    return tuple(f"{name.replace('/', '|')}.tif" for name in HOSTILE)


@pytest.fixture
def site(home: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A bench with hostile names of every kind, an archive and an inbox; gives the ids of the events."""
    for name in ("tape", "inbox"):
        (home / name).mkdir()
        monkeypatch.setenv(f"PLATEWAY_ARCHIVE_{'TARGET' if name == 'tape' else 'INBOX'}", str(home / name))
    monkeypatch.setenv("PLATEWAY_PURGE_SYSTEMS", "aretha,prince")
    monkeypatch.setenv("PLATEWAY_IMAGE_PATTERNS", "*")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    found: dict[str, str] = {}
    for number, experiment in enumerate(["plain", *HOSTILE]):
        then = yesterday + timedelta(seconds=number)
        instrument = Simulated("aretha", "imaging event", home / "bench" / "aretha", kinds=("overview",), size=16)
        shot = Shot(instrument, number, Clock(then), started=then)
        shot.expose()
        if experiment == "plain":
            for name in names:
                shot.write(name, simulator.tiff(shot.picture(0)))
        count = len(names) + 1 if experiment == "plain" else 1
        with suppress(UnicodeEncodeError):  # no instrument can say half a character
            shot.announce(shot.event(experiment_id=experiment, img_count=count))
            found[experiment] = str(shot.id)
    events = home / "bench" / "aretha" / "events"
    for name in names:
        (events / name.replace(".tif", ".json")).write_text(f'{{"ref_id": "{name}'.encode("utf-8", "replace").decode())
    for name in HOSTILE:
        (home / "bench" / name.replace("/", "|") / "events").mkdir(parents=True)
        (home / "bench" / name.replace("/", "|") / "events" / "x.json").write_text("{")
    yield found


def test_events_with_hostile_names(
    site: dict[str, str], home: Path, names: tuple[str, ...], spoken: Callable[..., str]
) -> None:
    """From discovery to rebuilding: every verb and every listing, as text and as JSON."""
    run("discover")
    good, ids = site["plain"], [one["id"] for one in read("status")["events"]]
    assert good in ids
    shown = run("show", good)
    assert [one for one in VERBATIM if one not in shown] == []
    manifest = read("show", good)["manifest"]
    told = {one["name"] for one in manifest}
    assert set(names) <= told | {one["name"].removeprefix("./") for one in manifest}
    quarantined = read("quarantine", "list")
    assert len(quarantined) >= len(names)
    for words in (
        ["status"], ["report"], ["quarantine", "list"], ["quarantine", "list", "--all"], ["verify", *ids],
        ["export", "--force", good], ["purge", "--dry-run"], ["archive"], ["reconcile", "--read-archive"],
        ["expire", "--dry-run"], ["restore", good, "--to", str(home / "restored")], ["rebuild"], ["relocate"],
        ["manifest", "list"], ["manifest", "parked"], ["bucket-policy", "check"], ["config", "show"],
        ["db", "current"], ["discover"], ["purge"],
    ):  # fmt: skip
        run(*words)
        read(*words)
    for one in ids:
        run("show", one)
        read("show", one)
    for row in quarantined:
        run("quarantine", "show", str(row["id"]))
        read("quarantine", "show", str(row["id"]))
        run("quarantine", "replay", str(row["id"]))
    for name in names:
        spoken("cat", good, f"no such {name}")


def test_manifests_with_hostile_names(site: dict[str, str], home: Path, names: tuple[str, ...]) -> None:
    """What an archive calls its tars, jobs and files."""
    run("discover")
    files = []
    for number, name in enumerate(names):
        file = home / name.replace(".tif", ".json")
        told = {"job_id": name, "date": "2026-05-04", "archives": [{"path": name, "src_keys": [f"bucket/{name}"]}]}
        file.write_text(json.dumps(told) if number % 2 else f"{{{name}".encode("utf-8", "replace").decode())
        files.append(str(file))
    run("manifest", "receive", *files)
    read("manifest", "receive", *files)
    for words in (["manifest", "list"], ["manifest", "list", "--refused"], ["manifest", "parked"], ["reconcile"]):
        run(*words)
        read(*words)
    for row in read("manifest", "list"):
        run("manifest", "show", row["digest"][:20])
        read("manifest", "show", row["digest"][:20])


def test_tokens_and_requests_with_hostile_names(home: Path) -> None:
    """Whose token it is, what it is good for, and what was asked with it."""
    file = home / "tokens.json"
    kept = [name for name in HOSTILE if name.isprintable()]
    for number, name in enumerate([*kept, "\u202eevil", "\x9b31m"]):
        run("token", "add", f"{name}{number}", "--ttl", "1", "--prefix", name)
        run("token", "refresh", f"{name}{number}", "--ttl", "1")
    now = datetime.now(UTC)
    entries = [
        tokens.Token(name, tokens.digest(name), now, now, (name,), name) for name in HOSTILE if "\udce9" not in name
    ]
    file.write_bytes(tokens.dump([*tokens.listed(file), *entries]))
    run("token", "list")
    assert {name for name in HOSTILE if "\udce9" not in name} <= {one["name"] for one in read("token", "list")}
    for name in HOSTILE:
        run("token", "delete", name)
        run("token", "refresh", name, "--ttl", "1")
    log = AccessLog(home / "gateway" / "access.log")
    for name in HOSTILE:
        log.write(Access("2026-05-04T06:00:00.000000Z", name, name, name[:5], name, name, name, 0, 0, 200, 1.0))
    log.close()
    assert len(run("access").splitlines()) == len(HOSTILE)
    assert [one["who"] for one in read("access")] == list(HOSTILE)


@pytest.fixture
def s3(home: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose settings name the run's server."""
    assert endpoint.url and endpoint.access_key_id and endpoint.secret_access_key
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", endpoint.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", endpoint.secret_access_key.get_secret_value())
    return home


def test_objects_with_hostile_names(
    s3: Path, names: tuple[str, ...], bucket: str, client: Any, spoken: Callable[..., str]
) -> None:
    """Files that go into a bucket, keys that are there, and what is said of those that are not."""
    home = s3
    (home / "plates").mkdir()
    for name in names:
        (home / "plates" / name).write_bytes(b"1")
    for name in names:
        if min(name) >= " " and "\udce9" not in name:  # XML has no room for the others
            client.put_object(Bucket=bucket, Key=f"theirs/{name}", Body=b"1")
    url = f"s3://{bucket}"
    for words in (
        ["put", *(str(home / "plates" / name) for name in names), f"{url}/mine/"],
        ["put", "--recursive", str(home / "plates"), f"{url}/whole/"],
        ["ls", url], ["ls", f"{url}/theirs/"], ["ls", "--recursive", url], ["du", url],
        ["get", "--recursive", f"{url}/theirs/", str(home / "back")],
        ["cp", "--recursive", f"{url}/theirs/", f"{url}/copy/"],
        ["del", "--recursive", "--dry-run", f"{url}/copy/"], ["del", "--recursive", f"{url}/copy/"],
    ):  # fmt: skip
        spoken("bucket", *words)
        spoken("bucket", *words, "--json")
    for name in HOSTILE:
        for words in (
            ["ls", f"{url}/{name}"], ["get", f"{url}/{name}", str(home / "none")], ["del", f"{url}/{name}"],
            ["put", str(home / name), url], ["mb", f"s3://{name}"], ["tag", f"{url}/{name}"],
            ["tag", f"{url}/x", name], ["rb", f"s3://{name}"], ["no such command", name], ["ls", name, name, name],
        ):  # fmt: skip
            spoken("bucket", *words)
    assert ":smile:.tif" in spoken("bucket", "ls", f"{url}/theirs/")


def test_a_terminal_gets_no_names_raw(site: dict[str, str], home: Path) -> None:
    """On a terminal, with colours and bars: nothing of a hostile name reaches it as it is."""
    run("discover")
    for words in (["show", site["plain"]], ["status"], ["quarantine", "list"], ["export", "--force", site["plain"]]):
        text = on_terminal(*words)
        assert text and not [name for name in HOSTILE if not name.isprintable() and name in text]
        assert not set("\u202e\u2066\u200b\u2028\x9b\x07\x08\x7f\ufeff") & set(text)
        assert "\x1b]" not in text and "\U0001f604" not in text


def on_terminal(*words: str) -> str:
    """Run a command on a pseudo-terminal; give all that it wrote."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "plateway", *words]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        found = b""
        with suppress(OSError):  # EIO: the other side is closed
            while chunk := os.read(ours, 1 << 16):
                found += chunk
        process.wait(60)
    os.close(ours)
    return found.decode("utf-8", "surrogateescape")


# ---------------------------------------------------------------------------------------------------------- the writers


@pytest.mark.parametrize("name", HOSTILE)
def test_the_console_prints_any_name_as_text(name: str) -> None:
    """As a line, in a table, its title and head, in a bar and a status: it is text, on one line of its own."""
    stream = io.StringIO()
    writer = console.PlainConsole(file=stream, width=300, force_terminal=True, color_system=None)
    writer.print(name, soft_wrap=True)
    assert stream.getvalue() == f"{plain(name).replace(chr(10), chr(92) + 'n').replace(chr(9), chr(92) + 't')}\n"
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    writer.print(table)
    assert clean(stream.getvalue())
    with Progress(console.description_column(), console=writer, disable=False) as progress:
        progress.add_task(name, total=1)
    assert not [one for one in (name,) if not one.isprintable() and one in stream.getvalue()]
    assert "\x1b]" not in stream.getvalue() and "\u202e" not in stream.getvalue()
    assert "\U0001f604" not in stream.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_log_lines_take_any_name(name: str) -> None:
    """A record is one line, its traceback lines of their own, and nothing in them steers the terminal."""
    formatter = PlainFormatter("%(levelname)s %(message)s")
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "seen %s", (name,), None)
    assert clean(formatter.format(record)) and "\n" not in formatter.format(record)
    try:
        raise ValueError(name)
    except ValueError:
        record = logging.LogRecord("x", logging.WARNING, "x", 1, "seen", (), sys.exc_info())
    assert clean(formatter.format(record))


def test_a_terminal_without_utf_8(home: Path) -> None:
    """Where only ASCII can be written, names are escaped, and nothing fails."""
    tokens.add(home / "tokens.json", "Ünï 真菌", ttl=timedelta(days=1), now=datetime.now(UTC))
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "plateway", "token", "list"]
    done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.isascii()) == (0, True)
