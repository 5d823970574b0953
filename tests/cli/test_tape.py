"""The commands of the archive on a bench of their own, one after the other, as somebody would type them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plateway import simulator
from plateway.errors import Misconfigured
from plateway.simulator import Announced, Simulated
from tests.cli.test_cli import call, home, told

__all__ = ["home"]


@pytest.fixture
def site(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with an archive in reach, and an inbox for its manifests."""
    for name in ("tape", "inbox"):
        (home / name).mkdir()
        monkeypatch.setenv(f"PLATEWAY_ARCHIVE_{'TARGET' if name == 'tape' else 'INBOX'}", (home / name).as_uri())
    monkeypatch.setenv("PLATEWAY_TRASH_GRACE", "0")
    monkeypatch.setenv("PLATEWAY_RAW_LIFESPAN", "0")
    yield home


def yesterday(site: Path, count: int = 2) -> list[Announced]:
    """Make aretha have imaged yesterday, and bring it all into the bucket."""
    instrument = Simulated("aretha", "imaging event", site / "bench" / "aretha", images=2, size=32)
    then = datetime.now(UTC) - timedelta(days=1)
    announced = [
        simulator.acquire(instrument, now=then + timedelta(seconds=number), number=number) for number in range(count)
    ]
    told("discover")
    return announced


def archived(site: Path, count: int = 2) -> list[Announced]:
    announced = yesterday(site, count)
    assert "archived" in {one["result"] for one in told("archive")["outcomes"]}
    return announced


def state(event: Announced) -> str:
    return str(told("show", str(event.id))["state"])


def test_archive_and_what_is_told_of_it(site: Path) -> None:
    """A dry run writes nothing; then every event has its place on tape, with evidence, for people and programs."""
    announced = yesterday(site)
    told("archive", "--dry-run")
    assert list((site / "tape").rglob("*.tar")) == []
    told("archive")
    for one in announced:
        shown = told("show", str(one.id))
        (location,) = shown["ledger"]["archives"]
        assert (shown["state"], location["evidence"]) == ("archived", "checksum")
        assert (site / "tape" / location["path"]).is_file()
        assert location["path"] in call("show", str(one.id)).output
    assert told("status")["counts"] == {"archived": 2}


def test_without_an_archive_it_is_said_what_to_set(home: Path) -> None:
    """Not a traceback, and exit code 2."""
    result = subprocess.run(
        [sys.executable, "-m", "plateway", "archive"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 2
    assert "PLATEWAY_ARCHIVE_TARGET" in result.stderr


def test_manifests_come_in_by_hand_and_by_the_inbox(site: Path) -> None:
    """What is named is archived, what nobody knows is parked, and what is no manifest is kept and listed."""
    one, two = yesterday(site)
    keys = [told("show", str(event.id)) for event in (one, two)]
    said = [
        {"job_id": str(number), "date": "2026-05-04", "archives": [{"path": f"images/{number}.tar", "src_keys": [key]}]}
        for number, key in enumerate([*(f"{key['bucket']}/{key['key']}" for key in keys), "bucket/images/nobody.tar"])
    ]
    (site / "by-hand.json").write_text(json.dumps(said[0]))
    (site / "inbox" / "dropped.json").write_text(json.dumps(said[1]))
    (site / "inbox" / "unknown.json").write_text(json.dumps(said[2]))
    (site / "bad.json").write_text("{}")
    assert [came["result"] for came in told("manifest", "receive", str(site / "by-hand.json"))["outcomes"]] == [
        "received",
        "archived",
    ]
    assert [came["result"] for came in told("manifest", "receive", str(site / "bad.json"), code=1)["outcomes"]] == [
        "quarantined"
    ]
    told("reconcile")
    assert [state(event) for event in (one, two)] == ["archived", "archived"]
    assert len(told("manifest", "list")) == 4
    (refused,) = told("manifest", "list", "--refused")
    assert refused["reason"]
    assert told("manifest", "show", refused["digest"][:12])["content"] == "{}"
    (parked,) = told("manifest", "parked")
    assert parked["key"] == "bucket/images/nobody.tar"
    for words in (["list"], ["parked"], ["show", refused["digest"]]):
        assert call("manifest", *words).exit_code == 0


def test_reconcile_tells_findings_and_repairs_when_it_is_asked_to(site: Path) -> None:
    """An object vanishes: found and noted at once, sent again only with --repair; then everything agrees."""
    (event, *_) = yesterday(site)
    key = told("show", str(event.id))["key"]
    (site / "bucket" / key).unlink()
    found = told("reconcile", code=4)
    assert [(one["kind"], one["id"]) for one in found["findings"]] == [("lost object", str(event.id))]
    assert not (site / "bucket" / key).exists()
    told("reconcile", "--repair")
    assert (site / "bucket" / key).exists()
    assert told("reconcile")["findings"] == []
    assert "agree" in call("reconcile").output


def test_reconcile_reads_the_archive_back(site: Path) -> None:
    """Names alone become checksums by reading; a budget that makes no sense is refused."""
    (event,) = archived(site, 1)
    before = told("show", str(event.id))["ledger"]["archives"][0]
    assert before["read_at"] is None or before["evidence"] == "checksum"
    told("reconcile", "--read-archive", "--budget", "1GiB")
    assert told("show", str(event.id))["ledger"]["archives"][0]["evidence"] == "checksum"
    assert call("reconcile", "--read-archive", "--budget", "lots").exit_code == 2


def test_expired_copies_come_back_from_tape(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket lets go of what tape has; cat, restore and show still find every byte."""
    (event,) = archived(site, 1)
    assert told("expire")["outcomes"][0]["result"] == "refused"
    monkeypatch.setenv("PLATEWAY_BUCKET_LIFESPAN", "0")
    assert told("expire", "--dry-run")["outcomes"][0]["result"] == "would go"
    for _ in range(3):
        told("expire", "--fraction", "1")
    key = told("show", str(event.id))["key"]
    assert not (site / "bucket" / key).exists()
    name, sha256 = next(iter(event.files.items()))
    assert hashlib.sha256(printed("cat", str(event.id), name)).hexdigest() == sha256
    told("restore", str(event.id), "--to", str(site / "back"))
    for name, sha256 in event.files.items():
        assert hashlib.sha256((site / "back" / str(event.id) / name).read_bytes()).hexdigest() == sha256
    assert told("restore", str(event.id), "--from", "bucket", "--to", str(site / "back2"), code=1)
    assert told("show", str(event.id))["manifest"]


def printed(*words: str) -> bytes:
    """Run a command that writes bytes."""
    result = subprocess.run([sys.executable, "-m", "plateway", *words], capture_output=True, check=True, timeout=60)
    return result.stdout


def test_a_purged_event_comes_back_to_the_bench(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and event file are where they were, and discovery finds nothing new in them."""
    monkeypatch.setenv("PLATEWAY_PURGE_SYSTEMS", "aretha")
    (event,) = yesterday(site, 1)
    for _ in range(2):
        told("purge", "--fraction", "1")
    assert not event.images.exists()
    assert call("restore", str(event.id)).exit_code == 2
    told("restore", str(event.id), "--to-bench")
    for name, sha256 in event.files.items():
        assert hashlib.sha256((event.images / name).read_bytes()).hexdigest() == sha256
    told("discover")
    assert told("status")["counts"] == {"exported": 1}


def test_a_lost_catalogue_is_rebuilt(site: Path) -> None:
    """The file is gone; bucket and archive tell it all again, but for what is listed."""
    announced = archived(site)
    before = [told("show", str(one.id)) for one in announced]
    for path in site.glob("catalogue.db*"):
        path.unlink()
    facts = told("rebuild")
    assert (facts["events"], facts["refused"]) == (2, [])
    after = [told("show", str(one.id)) for one in announced]
    fields = ("id", "state", "key", "size", "sha256", "experiment", "timestamp", "manifest")
    assert [{field: one[field] for field in fields} for one in after] == [
        {field: one[field] for field in fields} for one in before
    ]
    assert call("rebuild").exit_code == 0


def test_report_and_bucket_policy(site: Path) -> None:
    """Both speak to people and to programs."""
    yesterday(site)
    facts = told("report")
    assert [(one["system"], one["events"], one["exported"]) for one in facts["systems"]] == [("aretha", 2, 2)]
    assert "aretha" in call("report").output
    assert told("bucket-policy", "check") == []
    assert call("bucket-policy", "check").exit_code == 0


def test_bridges_say_what_to_set(home: Path) -> None:
    """Neither starts without an address."""
    for name in ("amqp", "redis"):
        with pytest.raises(Misconfigured, match=f"PLATEWAY_{name.upper()}_URL"):
            call("bridge", name)


def test_an_event_lost_everywhere_but_on_tape_is_restored(site: Path) -> None:
    """Bench and bucket are gone; the archive has it."""
    (event,) = archived(site, 1)
    shutil.rmtree(event.images)
    shutil.rmtree(site / "bucket")
    (site / "bucket").mkdir()
    told("restore", "--system", "aretha", "--to", str(site / "back"))
    for name, sha256 in event.files.items():
        assert hashlib.sha256((site / "back" / str(event.id) / name).read_bytes()).hexdigest() == sha256


def test_a_password_in_an_address_is_refused_and_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and tokens have places of their own; the message names the setting only."""
    for setting, scheme in (("TARGET", "sftp"), ("INBOX", "sftp"), ("URL", "https")):
        monkeypatch.setenv(f"PLATEWAY_ARCHIVE_{setting}", f"{scheme}://me:canary-91x@tape.example.org/data")
        with pytest.raises(Misconfigured, match=f"ARCHIVE_{setting}") as found:
            call("status")
        assert "canary" not in str(found.value)
        monkeypatch.delenv(f"PLATEWAY_ARCHIVE_{setting}")
