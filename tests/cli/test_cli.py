"""The command line on a bench of its own: what it prints, what it exits with, and that it keeps secrets."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from plateway import cli, settings, simulator
from plateway.cli.commands import PANELS
from plateway.cli.exit_codes import code_of_error, code_of_outcomes
from plateway.errors import Damaged, Misconfigured, NotFound, PlatewayError, Unavailable
from plateway.outcome import Result as Became
from plateway.pipeline import Outcome
from plateway.store import open_store

SECRET = "canary-7f3a9c"
COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]  # it is a group


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("PLATEWAY_", "AWS_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "bucket").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLATEWAY_HOME", str(tmp_path))
    monkeypatch.setenv("PLATEWAY_BUCKET_URL", (tmp_path / "bucket").as_uri())
    monkeypatch.setenv("PLATEWAY_SETTLE_SECONDS", "0")
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words), catch_exceptions=False)


def told(*words: str, code: int = 0) -> Any:
    result = call(*words, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def acquire(*words: str, events: int = 2) -> list[str]:
    """Simulate; return the ids."""
    found = told("simulate", "--events", str(events), "--rate", "1000", "--images", "2", "--size", "32", *words)
    return [one["id"] for one in found["events"]]


def test_help_lists_the_commands_by_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command is listed below its panel, in the order of the table, within 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    text = call("--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    expected = ["Options", *(name for panel, commands in PANELS.items() for name in (panel, *commands))]
    assert re.findall(r"^[│╭]─? (\w[\w -]*?)(?: ─| {2})", text, re.MULTILINE) == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_has_the_help_of_each_command(name: str) -> None:
    """The line in ``plateway --help`` is the first paragraph of the command's docstring, or the help of its group."""
    command = COMMANDS[name]
    assert command.loaded.name == name
    assert command.help == command.loaded.help.split("\n\n")[0]


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_version_and_help_import_no_command(words: list[str]) -> None:
    """They start in a fraction of the time that the pipeline takes to import."""
    code = "import sys\nfrom plateway.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60)
    imported = set(done.stdout.splitlines()[-1].split())
    assert {one for one in imported if one.startswith("plateway")} == {
        "plateway",
        "plateway.cli",
        "plateway.cli.commands",
        "plateway.errors",
        "plateway.names",
    }
    assert {"pydantic", "sqlalchemy", "prefect", "fastapi"} & imported == set()


def test_discover_brings_events_into_the_bucket(home: Path) -> None:
    """simulate, discover, status: both dialects end as verified exports."""
    ids = acquire()
    outcomes = told("discover")["outcomes"]
    assert sorted(one["result"] for one in outcomes) == ["exported", "exported", "verified", "verified"]
    listing = told("status")
    assert listing["counts"] == {"exported": 2}
    assert listing["quarantine"] == 0
    assert {one["id"] for one in listing["events"]} == set(ids)
    for one in listing["events"]:
        assert one["raw_present"] is True
        assert one["evidence"] == "etag"
        assert len(one["sha256"]) == 64
        assert (home / "bucket" / one["key"]).stat().st_size == one["size"]


def test_show_tells_the_whole_ledger(home: Path) -> None:
    """Manifest, rows, and where every image is."""
    (event, *_) = acquire()
    told("discover")
    shown = told("show", event)
    assert shown["id"] == event
    assert shown["ledger"]["export"]["key"] == shown["key"]
    assert {"name", "size", "sha256", "offset", "key"} == set(shown["manifest"][0])
    assert "Img" in call("show", event).output


def test_an_unknown_event_is_told_and_exits_1(home: Path) -> None:
    """Not a traceback."""
    command = [sys.executable, "-m", "plateway", "show", "00000000-0000-4000-8000-000000000000"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "no such event" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_setting_is_named_and_exits_2(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the setting."""
    monkeypatch.setenv("PLATEWAY_TRASH_GRACE", "soon")
    command = [sys.executable, "-m", "plateway", "status"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert "PLATEWAY_TRASH_GRACE" in result.stderr


def test_events_are_found_by_words_and_passed_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """find understands words; --ids prints what other commands read from standard input; open prints the address."""
    ids = acquire()
    told("discover")
    found = told("find", "prince", "today")
    assert [one["system"] for one in found["events"]] == ["prince"]
    assert found["total"] == 1
    assert told("find", "yesterday", code=1) == {"events": [], "total": 0}
    assert call("status", "--state", "exported", "--ids").stdout.split() == ids[::-1]
    piped = call("find", "exported", "--ids", "--oldest").stdout
    assert piped.split() == ids
    done = CliRunner().invoke(cli.app, ["verify", "-", "--json"], input=piped, catch_exceptions=False)
    assert sorted(one["id"] for one in json.loads(done.stdout)["outcomes"]) == sorted(ids)
    monkeypatch.setenv("PLATEWAY_GATEWAY_URL", "https://plateway.example.org/")
    assert call("open", ids[0][:8], "--print").stdout == f"https://plateway.example.org/events/{ids[0]}\n"


def test_tables_fit_a_narrow_terminal(home: Path) -> None:
    """In 80 columns ids are short and the middle of keys is cut; --wide prints all of it."""
    ids = acquire()
    told("discover")
    command = [sys.executable, "-m", "plateway", "status"]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "80"}
    narrow = run_in_terminal(command, environment)
    assert max(map(len, narrow.splitlines())) <= 80
    assert ids[0][:8] in narrow
    assert ids[0] not in narrow
    assert "…" in narrow
    wide = run_in_terminal([*command, "--wide"], environment)
    assert all(one in wide for one in ids)
    assert "…" not in wide


def run_in_terminal(command: list[str], environment: dict[str, str]) -> str:
    """Run a command whose output is a terminal, and return what it prints."""
    here, there = pty.openpty()
    done = subprocess.Popen(command, env=environment, stdout=there, stderr=subprocess.DEVNULL)
    os.close(there)
    text = b""
    with suppress(OSError):  # its end
        while some := os.read(here, 65536):
            text += some
    os.close(here)
    assert done.wait(60) == 0
    return text.decode()


def test_export_by_hand_with_force(home: Path) -> None:
    """Verified exports are left alone unless somebody insists."""
    (event,) = acquire(events=1)
    told("discover")
    assert [one["result"] for one in told("export", event)["outcomes"]] == ["exported already"]
    assert [one["result"] for one in told("export", event, "--force")["outcomes"]] == ["exported", "verified"]
    assert [one["result"] for one in told("export", "--system", "prince", "--force")["outcomes"]] == [
        "exported",
        "verified",
    ]


def test_damage_ends_with_exit_code_4(home: Path) -> None:
    """verify --read-back finds a flipped bit; the next export mends it."""
    (event,) = acquire(events=1)
    told("discover")
    key = told("show", event)["key"]
    store = open_store((home / "bucket").as_uri())
    content = bytearray(b"".join(store.open(key)))
    content[1000] ^= 1
    store.put(key, [bytes(content)], size=len(content), part_size=1 << 24, metadata={})
    (outcome,) = told("verify", "--read-back", code=4)["outcomes"]
    assert outcome["result"] == "damaged"
    assert told("status")["events"][0]["state"] == "changed"
    assert [one["result"] for one in told("export")["outcomes"]] == ["exported", "verified"]


def test_purge_says_why_it_refuses(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without permission nothing goes; with it, a dry run still moves nothing, and then it does."""
    acquire()
    told("discover")
    reasons = {reason for one in told("purge")["outcomes"] for reason in one["reasons"]}
    assert reasons == {"prince is not among the systems to purge", "aretha is not among the systems to purge"}
    monkeypatch.setenv("PLATEWAY_PURGE_SYSTEMS", "prince,aretha")
    assert "kept for 8h" in told("purge")["outcomes"][0]["reasons"][0]
    monkeypatch.setenv("PLATEWAY_RAW_LIFESPAN", "0")
    assert [one["result"] for one in told("purge", "--dry-run")["outcomes"]] == ["would go", "would go"]
    assert all(one["raw_present"] for one in told("status")["events"])
    monkeypatch.setenv("PLATEWAY_TRASH_GRACE", "0")
    told("purge")
    assert told("status")["counts"] == {"purged": 2}
    assert not any(one["raw_present"] for one in told("status")["events"])


def test_quarantine_is_listed_shown_and_replayed(home: Path) -> None:
    """Bytes and reason are kept; after the file was mended the event goes its way."""
    acquire("--fault", "garbage-json", events=1)
    told("discover", code=1)
    (entry,) = told("quarantine", "list")
    assert entry["reason"]
    kept = told("quarantine", "show", str(entry["id"]))
    assert kept["content"].startswith('{"ref_id": ')
    assert call("quarantine", "replay", str(entry["id"])).exit_code == 0
    assert told("quarantine", "list") == []
    told("discover", code=1)
    assert len(told("quarantine", "list")) == 1


@pytest.mark.parametrize("fault", ["duplicate", "other-content", "slow-writer", "event-before-images"])
def test_faulty_instruments_lose_nothing(home: Path, fault: str) -> None:
    """Whatever order an instrument does things in, the event arrives."""
    acquire("--fault", fault, events=1)
    told("discover")
    counts = told("status")["counts"]
    assert counts == {"exported": 2 if fault == "other-content" else 1}


def test_config_show_masks_secrets_and_names_the_source(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value, where it came from, and no secret."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("PLATEWAY_DATABASE_URL", f"postgresql://me:{SECRET}@127.0.0.1/x")
    (home / ".env").write_text("PLATEWAY_TRASH_GRACE=90s\n")
    (home / settings.RUNTIME).write_text(json.dumps({"settings": {"endpoint_url": "http://127.0.0.1:9"}}))
    result = call("config", "show", "--json")
    assert SECRET not in result.output
    rows = {row["setting"]: row for row in json.loads(result.stdout)}
    assert rows["PLATEWAY_HOME"]["source"] == "environment"
    assert (rows["PLATEWAY_TRASH_GRACE"]["value"], rows["PLATEWAY_TRASH_GRACE"]["source"]) == ("90s", ".env")
    assert rows["AWS_ENDPOINT_URL"]["source"] == "plateway up"
    assert rows["PLATEWAY_RAW_LIFESPAN"] == {
        "setting": "PLATEWAY_RAW_LIFESPAN",
        "value": "8h",
        "source": "default",
        "meaning": "age of the evidence before raw images may go",
    }
    assert SECRET not in call("config", "show").output


def test_the_embedded_endpoint_goes_with_its_own_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for somewhere else in the environment does not reach the embedded server; a named endpoint does."""
    own = {"endpoint_url": "http://127.0.0.1:9", "access_key_id": "embedded", "secret_access_key": "s"}
    (home / settings.RUNTIME).write_text(json.dumps({"settings": own}))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "elsewhere")
    assert settings.load().access_key_id == "embedded"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    found = settings.load()
    assert (found.endpoint_url, found.access_key_id) == ("https://s3.example.org", "elsewhere")


def test_the_tables_can_be_asked_and_upgraded(home: Path) -> None:
    """db current before and after db upgrade."""
    assert told("db", "current")["current"] == ""
    assert call("db", "upgrade").exit_code == 0
    state = told("db", "current")
    assert state["current"] == state["head"]


def outcome(result: str) -> Outcome:
    return Outcome(None, "prince", "export", Became(result))


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([], 0),
        (["exported", "verified", "refused", "busy"], 0),
        (["exported", "failed"], 3),
        (["failed"], 1),
        (["later", "later"], 5),
        (["later", "exported"], 3),
        (["damaged", "failed"], 4),
        (["stopped"], 1),
    ],
)
def test_exit_codes_sum_up_many_outcomes(results: list[str], code: int) -> None:
    """0 done, 1 failed, 3 partly, 4 damage, 5 later."""
    assert code_of_outcomes([outcome(one) for one in results]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable("x"), 5), (NotFound("x"), 1), (Damaged("x"), 4), (Misconfigured("x"), 2)],
)
def test_exit_codes_of_errors(error: PlatewayError, code: int) -> None:
    """Each kind of error has its own."""
    assert code_of_error(error) == code


def test_listing_needs_the_catalogue_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials for S3 `status`, `show` and `quarantine list` work; what moves bytes refuses at once."""
    simulator.acquire(
        simulator.Simulated("prince", "timestep", home / "bench" / "prince", images=1, size=16),
        now=datetime(2026, 5, 4, 12, tzinfo=UTC),
    )
    assert call("discover").exit_code == 0
    monkeypatch.setenv("PLATEWAY_BUCKET_URL", "s3://plateway-raw")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (event,) = told("status")["events"]
    assert told("status", "--since", "yesterday", "--until", "2200-01-01T00:00+01:00")["events"] == []
    shown = told("show", event["id"][:8])
    assert (shown["id"], shown["manifest"]) == (event["id"], None)
    assert call("quarantine", "list").exit_code == 0
    with pytest.raises(Misconfigured, match="no S3 credentials"):
        call("export")


@pytest.mark.parametrize("text", ["soon", "7", "7y", "2026-13-01", ""])
def test_a_wrong_time_is_told(home: Path, text: str) -> None:
    """With what it may look like."""
    assert "is not a time such as 7d" in " ".join(call("status", "--since", text).output.replace("│", " ").split())
