"""Where the demo plays: in a home of its own, whatever a site's environment says."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from plateway import settings
from plateway.errors import Busy, Misconfigured
from plateway.local import bringup, demo, seaweed
from plateway.local.bringup import DEMO
from plateway.local.supervisor import claim

HOSTILE = {
    "PLATEWAY_SOURCE_ROOT": "/srv/bench",
    "PLATEWAY_STAGING_ROOT": "/srv/staging",
    "PLATEWAY_BUCKET_URL": "s3://the-site/prefix",
    "PLATEWAY_OBJECTS_URL": "s3://the-site/objects",
    "PLATEWAY_BUCKETS_FILE": "/srv/buckets.toml",
    "PLATEWAY_DATABASE_URL": "postgresql://the-site@db/plateway",
    "PLATEWAY_PREFECT_DATABASE_URL": "postgresql://the-site@db/prefect",
    "PLATEWAY_ARCHIVE_INBOX": "/srv/inbox",
    "PLATEWAY_ARCHIVE_TARGET": "sftp://the-site/tape",
    "PLATEWAY_ARCHIVE_URL": "https://the-site/manifests",
    "PLATEWAY_ARCHIVE_TOKEN": "the-site",
    "PLATEWAY_AMQP_URL": "amqp://the-site",
    "PLATEWAY_REDIS_URL": "redis://the-site",
    "PLATEWAY_NOTIFY": "slack-webhook/the-site",
    "PLATEWAY_PURGE_SYSTEMS": "the-site",
    "PLATEWAY_BUCKET_LIFESPAN": "1d",
    "PLATEWAY_TOKENS_FILE": "/srv/tokens.json",
    "AUTH_TOKENS_FILE": "/srv/tokens.json",
    "PLATEWAY_ACCESS_LOG": "/srv/access.log",
    "PLATEWAY_SERVE_HOST": "0.0.0.0",
    "AWS_ENDPOINT_URL": "https://the-site",
    "AWS_ENDPOINT_URL_S3": "https://the-site",
    "AWS_ACCESS_KEY_ID": "the-site",
    "AWS_SECRET_ACCESS_KEY": "the-site",
    "AWS_SESSION_TOKEN": "the-site",
    "AWS_PROFILE": "the-site",
    "AWS_REGION": "the-site",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://the-site@db/prefect",
    "PREFECT_API_URL": "https://the-site/api",
    "PREFECT_LOCAL_STORAGE_PATH": "/srv/storage",
}


@pytest.fixture(params=["environment", ".env", "both"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory from which everything that a site can set points at the site."""
    monkeypatch.chdir(tmp_path)
    if request.param != ".env":
        for name, value in HOSTILE.items():
            monkeypatch.setenv(name, value)
    if request.param != "environment":
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in HOSTILE.items()))
    return tmp_path


def test_nothing_of_a_site_reaches_a_demo(hostile: Path) -> None:
    """Each part of a demo, started in that directory, sees the demo's own places and nothing of the site."""
    home = hostile / "home"
    before = dict(os.environ)
    with demo.isolate(home):
        told = bringup.resolve(demo.make_settings(settings.load(home=home)), None)
        env = bringup.environment(told, "http://127.0.0.1:4200/api")
        assert not told.buckets
    script = "from plateway import settings; print(settings.load().model_dump_json())"
    seen = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=hostile, capture_output=True, text=True, check=True
    )
    read = json.loads(seen.stdout)
    assert read == json.loads(told.model_dump_json())
    for text in (seen.stdout, " ".join(env.values())):
        assert "the-site" not in text
        assert "/srv" not in text
    assert told.root == home / "bench"
    assert told.catalog_url == f"sqlite:///{home}/catalogue.db"
    assert (told.archive_inbox, told.archive_target) == (str(home / "inbox"), str(home / "tape"))
    assert (told.endpoint_url, told.serve_host) == (None, "127.0.0.1")
    assert env["PREFECT_SERVER_DATABASE_CONNECTION_URL"].endswith(f"{home}/prefect/prefect.db")
    assert dict(os.environ) == before


def test_a_demo_has_an_s3_server_of_its_own(hostile: Path) -> None:
    """Whatever endpoint and bucket the site has, the demo's is the embedded one."""
    home = hostile / "home"
    demo.prepare_home(home)
    with demo.isolate(home):
        known = demo.make_settings(settings.load(home=home))
        s3 = bringup._prepare_storage(known, home, seaweed.ports())
        assert s3 is not None
        told = bringup.resolve(known, s3)
    assert told.endpoint_url == s3.url
    assert told.access_key_id == s3.admin.access_key_id
    assert told.session_token is None


def test_what_a_demo_writes_is_private(tmp_path: Path) -> None:
    """Files are for the owner only while it plays, and the umask is the caller's again afterwards."""
    before = os.umask(0o022)
    try:
        demo.prepare_home(tmp_path / "home")
        with demo.isolate(tmp_path / "home"):
            (tmp_path / "home" / "file").write_text("")
        (tmp_path / "after").write_text("")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("home", "home/file", "after")}
    assert modes == {"home": 0o700, "home/file": 0o600, "after": 0o644}


def test_a_home_of_a_demo_is_used_again(tmp_path: Path) -> None:
    """A directory that is not there or empty becomes a demo's, and stays one."""
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/below"):
        for _ in range(2):
            demo.prepare_home(tmp_path / name)
            assert (tmp_path / name / DEMO).is_file()
            (tmp_path / name / "catalogue.db").write_text("")


@pytest.mark.parametrize("holds", ["catalogue.db", "bench/prince/events/one.json", ".hidden", "up.lock", f"{DEMO}/x"])
def test_another_home_is_refused(tmp_path: Path, holds: str) -> None:
    """A directory that holds anything else is not touched, and the command fails."""
    home = tmp_path / "home"
    (home / holds).parent.mkdir(parents=True)
    (home / holds).write_text("a site's own")
    before = sorted(home.rglob("*"))
    said = io.StringIO()
    known = settings.load(home=home)
    assert demo.run(known, events=2, once=True, as_json=False, console=Console(file=said)) == 1
    assert "--home" in said.getvalue()
    assert sorted(home.rglob("*")) == before
    assert (home / holds).read_text() == "a site's own"


def test_a_file_is_no_home(tmp_path: Path) -> None:
    """Where the home is a file the demo says so."""
    (tmp_path / "home").write_text("")
    with pytest.raises(Misconfigured):
        demo.prepare_home(tmp_path / "home")


def test_up_makes_a_demos_home_a_sites(tmp_path: Path) -> None:
    """After `up` has run there, a demo refuses the home; an `up` that is refused changes nothing."""
    home = tmp_path / "home"
    demo.prepare_home(home)
    with claim(home), pytest.raises(Busy):
        bringup.unmark_demo(home)
    demo.prepare_home(home)
    bringup.unmark_demo(home)
    with pytest.raises(Misconfigured):
        demo.prepare_home(home)
