"""`plateway config import` and `plateway init`: what is written is what commands read, and secrets are not shown."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from plateway import cli, settings, settings_file
from plateway.errors import Conflict, Misconfigured
from plateway.store import open_store
from tests.cli.test_cli import call, home, told

__all__ = ["home"]

HUSH = "h'u\\sh+/="
FILES = {  # by name: content, and what is read from it, without the secret
    "config.yml": (
        f"""
app: {{host: 127.0.0.1}}
echo:
  url: https://s3.echo.example
  username: someone
  access_key: AK
  secret_key: "{HUSH.replace(chr(92), chr(92) * 2)}"
  bucket_name: test-bucket
  expiry_days: 7
""",
        {"AWS_ENDPOINT_URL": "https://s3.echo.example", "PLATEWAY_BUCKET_URL": "s3://test-bucket"},
        {"echo.username", "echo.expiry_days", "app"},
    ),
    ".s3cfg": (
        f"""
[default]
access_key = AK
secret_key = {HUSH}
host_base = s3.echo.example
host_bucket = s3.echo.example/%(bucket)
signature_v2 = True
use_https = False
""",
        {"AWS_ENDPOINT_URL": "http://s3.echo.example"},
        {"host_bucket", "signature_v2"},
    ),
    "credentials": (
        f"""
[default]
aws_access_key_id = OTHER
aws_secret_access_key = other
[echo]
aws_access_key_id = AK
aws_secret_access_key = {HUSH}
region = eu-west-2
s3 =
    endpoint_url = https://s3.echo.example
output = json
""",
        {"AWS_ENDPOINT_URL": "https://s3.echo.example", "AWS_DEFAULT_REGION": "eu-west-2"},
        {"output"},
    ),
    ".env.dlm": (
        f"""
# DLM v2
AWS_ACCESS_KEY_ID="AK"
AWS_SECRET_ACCESS_KEY='{HUSH.replace(chr(92), chr(92) * 2).replace("'", chr(92) + "'")}'
AWS_REGION_NAME=nl
AWS_BUCKET_NAME=prince
SRC_DIR=/data/in
SRC_LIFESPAN=PT10H
SRC_SYSTEMS_DELETE=["prince", "tsu-exp001"]
REDIS_DSN=redis://:pass@redis:6379/0
RABBITMQ_DSN="<< RABBITMQ DSN >>"
POSTGRES_DSN=postgresql+asyncpg://dlm:dlmpass@db/dlm
SURF_PASSWORD=tapes
FOO=bar
""",
        {
            "AWS_DEFAULT_REGION": "nl",
            "PLATEWAY_BUCKET_URL": "s3://prince",
            "PLATEWAY_SOURCE_ROOT": "/data/in",
            "PLATEWAY_RAW_LIFESPAN": "10h",
            "PLATEWAY_PURGE_SYSTEMS": "prince,tsu-exp001",
            "PLATEWAY_REDIS_URL": "redis://:pass@redis:6379/0",
        },
        {"RABBITMQ_DSN", "POSTGRES_DSN", "SURF_PASSWORD", "FOO"},
    ),
    "storage.yaml": (
        """
stores:
  scratch: {type: DictStore}
  bucket:
    type: AsyncBucketStore
    config: {bucket_name: objects, endpoint_url: "https://s3.echo.example", s3_access_key: AK, s3_secret_key: "${KEY}"}
main: bucket
""",
        {"AWS_ENDPOINT_URL": "https://s3.echo.example", "PLATEWAY_OBJECTS_URL": "s3://objects"},
        {"stores.scratch"},
    ),
}
SECRETS = (HUSH, "pass@", "dlmpass", "tapes")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory without settings, whose files are those of other systems."""
    for name in settings.environment({}):
        if name.startswith(("PLATEWAY_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KEY", HUSH)
    monkeypatch.chdir(tmp_path)
    for name, (content, _, _) in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_what_is_imported_is_what_commands_read(bare: Path, name: str) -> None:
    """The file that is written is the one that settings read, with the exact secret, for its owner only."""
    _, expected, left_out = FILES[name]
    options = ["--profile", "echo"] if name == "credentials" else []
    result = call("config", "import", name, "--json", *options)
    report = json.loads(result.stdout)
    assert not any(secret in result.output for secret in SECRETS)
    assert set(report["left_out"]) == left_out
    assert all(report["left_out"].values())
    known = settings.load()
    shown = {row["setting"]: row["value"] for row in settings.explain()}
    assert known.access_key_id == "AK"
    assert known.secret_access_key is not None
    assert known.secret_access_key.get_secret_value() == HUSH
    written = (bare / ".env").read_text()
    assert {one: value for one, value in expected.items() if f"{one}={value}" not in written.replace("'", "")} == {}
    assert {one["setting"] for one in report["settings"]} == {*expected, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert shown["AWS_ACCESS_KEY_ID"] == "AK"
    assert stat.S_IMODE((bare / ".env").stat().st_mode) == 0o600


def test_nothing_is_written_with_dry_run_or_over_other_settings(bare: Path) -> None:
    """A setting with another value stops the import; --force replaces its line and keeps all others."""
    assert told("config", "import", "config.yml", "--dry-run")["written"] is None
    assert not (bare / ".env").exists()
    before = "# ours\nAWS_ACCESS_KEY_ID=OURS # keep\nPLATEWAY_STUCK_AFTER=2h\n"
    (bare / ".env").write_text(before)
    with pytest.raises(Conflict, match="AWS_ACCESS_KEY_ID is set already"):
        call("config", "import", "config.yml")
    assert (bare / ".env").read_text() == before
    call("config", "import", "config.yml", "--force")
    lines = (bare / ".env").read_text().splitlines()
    assert lines[:3] == ["# ours", "AWS_ACCESS_KEY_ID=AK", "PLATEWAY_STUCK_AFTER=2h"]
    call("config", "import", "config.yml")  # again: everything is as it is
    assert (bare / ".env").read_text().splitlines() == lines


def test_a_bucket_of_another_system_is_a_table(bare: Path) -> None:
    """With --bucket, a table of buckets.toml; one of that name is only replaced with --force, the others stay."""
    call("config", "import", "config.yml", "--bucket", "echo")
    with pytest.raises(Misconfigured, match="names no bucket"):
        call("config", "import", ".s3cfg", "--bucket", "dev")
    call("config", "import", ".s3cfg", "--bucket", "dev", "--url", "s3://dev")
    with pytest.raises(Conflict, match=r"\[echo\] is there already"):
        call("config", "import", ".env.dlm", "--bucket", "echo")
    call("config", "import", "storage.yaml", "--bucket", "echo", "--force")
    found = settings.load().buckets
    assert {name: one.url for name, one in found.items()} == {"dev": "s3://dev", "echo": "s3://objects"}
    assert found["echo"].endpoint.secret_access_key is not None
    assert found["echo"].endpoint.secret_access_key.get_secret_value() == HUSH
    assert stat.S_IMODE((bare / ".plateway" / "buckets.toml").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("echo: [", "other is not YAML|other: a .env file without"),
        ("stores: {a: {type: RedisStore}}\nmain: a", "a store of type RedisStore is not supported; there are"),
        ("mongodb: {}", "no section echo and no stores; known are"),
        ("[default]\naws_access_key_id = x\n[b]\nregion = y", "no profile 'echo'; there are b, default"),
        ("WORKERS=many", "PLATEWAY_SERVE_WORKERS"),
        ("SRC_SYSTEMS_DELETE=prince", "SRC_SYSTEMS_DELETE cannot be understood"),
        ("FOO=bar", "without a value that is a setting"),
    ],
)
def test_what_cannot_be_read_is_named(bare: Path, content: str, message: str) -> None:
    """The file, the field and what is known."""
    (bare / "other").write_text(content)
    with pytest.raises(Misconfigured, match=message):
        call("config", "import", "other", "--profile", "echo")
    assert not (bare / ".env").exists()


@pytest.mark.parametrize(
    "value", ["plain", "with space", "#no comment", 'a"b', "a'b", "a\\nb", "$HOME", "é", "a=b", ""]
)
def test_a_line_is_read_as_it_was_written(bare: Path, value: str) -> None:
    """Whatever characters a secret has."""
    (bare / ".env").write_text(settings_file.merge("", {"AWS_SECRET_ACCESS_KEY": value}))
    found = settings.load().secret_access_key
    assert found is not None
    assert found.get_secret_value() == value


@pytest.mark.parametrize("value", ["a${HOME}b", "a\nb"])
def test_a_value_that_no_line_holds_is_refused(value: str) -> None:
    """Instead of being read as something else; the value is not in the message."""
    with pytest.raises(Misconfigured, match="AWS_SECRET_ACCESS_KEY") as raised:
        settings_file.format_line("AWS_SECRET_ACCESS_KEY", value)
    assert value not in str(raised.value)


def test_init_by_options_asks_nothing(bare: Path, endpoint: Any, bucket: str) -> None:
    """The file has the given settings, every other one as a comment with its default, and commands work with it."""
    (bare / "secret").write_text(endpoint.secret_access_key.get_secret_value() + "\n")
    words = ["--bench", "/srv/bench", "--bucket", f"s3://{bucket}", "--endpoint", endpoint.url]
    result = call("init", *words, "--access-key", endpoint.access_key_id, "--secret-file", "secret", "--json")
    assert endpoint.secret_access_key.get_secret_value() not in result.output
    known = settings.load()
    assert known.root == Path("/srv/bench")
    assert next(iter(open_store(known.bucket_url, known.endpoint).list()), None) is None
    text = (bare / ".env").read_text()
    assert [one["setting"] for one in settings.describe() if f"{one['setting']}=" not in text] == []
    given = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(given) == 5
    assert stat.S_IMODE((bare / ".env").stat().st_mode) == 0o600
    with pytest.raises(Conflict, match=r"\.env exists"):
        call("init", "--bench", "/srv/other")


def test_the_defaults_in_the_file_are_the_defaults(bare: Path) -> None:
    """Every commented line with a value can be activated, and changes nothing."""
    call("init", "--bench", "bench")
    lines = [line.removeprefix("#") for line in (bare / ".env").read_text().splitlines() if line.startswith("#PLATE")]
    (bare / ".env").write_text("\n".join(line for line in lines if not line.endswith("=")))
    kept = settings.load().model_dump()
    (bare / ".env").unlink()
    assert kept == settings.load().model_dump()


def test_init_asks(bare: Path) -> None:
    """The questions about a key are asked only where there is an endpoint; an empty answer is the default."""
    answers = ["/srv/bench", "", "https://s3.example", "", "AK", HUSH, "prince"]
    result = CliRunner().invoke(cli.app, ["init"], input="\n".join(answers) + "\n", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert HUSH not in result.output
    known = settings.load()
    assert (known.access_key_id, known.purge_systems, known.bucket_url) == ("AK", ("prince",), "s3://plateway-raw")
    result = CliRunner().invoke(cli.app, ["init", "--to", "other"], input="\n" * 4, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Access key" not in result.output
    assert [line for line in (bare / "other").read_text().splitlines() if line and not line.startswith("#")] == []


@pytest.mark.usefixtures("home")
def test_a_dry_run_of_init_masks_the_secret(tmp_path: Path) -> None:
    """And writes nothing."""
    (tmp_path / "secret").write_text(HUSH)
    result = call("init", "--access-key", "AK", "--secret-file", "secret", "--dry-run", "--to", "new")
    assert "AWS_ACCESS_KEY_ID=AK" in result.stdout
    assert HUSH not in result.output
    assert not (tmp_path / "new").exists()
