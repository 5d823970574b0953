"""``plateway hold`` as somebody types it, and what it forbids ``plateway bucket``, against the real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plateway.catalog import Catalog
from plateway.errors import NotFound, Refused, Rejected
from tests import factories
from tests.cli.test_bucket import done, filled, keys, site
from tests.cli.test_cli import call, home, told

__all__ = ["filled", "home", "site"]


@pytest.fixture
def exported(filled: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket in which the site keeps an export; return its key."""
    monkeypatch.setenv("PLATEWAY_BUCKET_URL", f"s3://{filled}")
    catalog = Catalog(f"sqlite:///{site}/catalogue.db")
    catalog.upgrade()
    export = factories.export(catalog, factories.add(catalog), bucket=filled)
    catalog.close()
    (site / "bundle.tar").write_bytes(b"bundle")
    done("put", str(site / "bundle.tar"), f"s3://{filled}/{export.key}", "--name", filled)
    return export.key


def rule(site: Path, prefix: str) -> str:
    path = site / "rules.json"
    path.write_text(
        json.dumps([{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": prefix}, "Expiration": {"Days": 1}}])
    )
    return str(path)


def test_a_hold_from_setting_to_releasing(exported: str) -> None:
    """Its id may be cut short; who released it and why stays in the list."""
    event = told("status")["events"][0]["id"]
    held = told("hold", "add", "--event", event[:8], "--reason", "audit 7", "--by", "ana")
    assert (held["scope"], held["stands"], held["events"]) == (f"event {event}", True, 1)
    assert [one["id"] for one in told("hold", "list")] == [held["id"]]
    assert "audit 7" in call("hold", "list").output
    assert call("hold", "release", held["id"][:6], "--reason", "over", "--by", "ben").exit_code == 0
    assert told("hold", "list") == []
    (kept,) = told("hold", "list", "--all")
    assert (kept["by"], kept["released_by"], kept["release_reason"]) == ("ana", "ben", "over")
    assert "over" in call("hold", "list", "--all").output


@pytest.mark.parametrize("scope", ["--event", "--experiment", "--system"])
def test_a_bucket_command_deletes_nothing_that_is_held(exported: str, filled: str, site: Path, scope: str) -> None:
    """Whatever name is typed; what is beside it may go, and after the release all of it."""
    facts = told("status")["events"][0]
    value = {"--event": facts["id"], "--experiment": facts["experiment"], "--system": facts["system"]}[scope]
    held = told("hold", "add", scope, value, "--reason", "audit 7")
    folder = exported.rpartition("/")[0]
    for words in (
        ["del", f"s3://{filled}/{exported}"],
        ["del", "--recursive", f"s3://{filled}/{folder}"],
        ["put", str(site / "bundle.tar"), f"s3://{filled}/{exported}"],
        ["cp", f"s3://{filled}/run2", f"s3://{filled}/{exported}"],
        ["rb", "--force", f"s3://{filled}"],
        ["lifecycle", "set", f"s3://{filled}", rule(site, "images/")],
        ["lifecycle", "set", f"s3://{filled}", rule(site, "")],
    ):
        with pytest.raises(Refused, match="audit 7"):
            call("bucket", *words, "--name", filled)
    assert exported in keys(filled)
    done("del", f"s3://{filled}/run2", "--name", filled)
    done("lifecycle", "set", f"s3://{filled}", rule(site, "run/"), "--name", filled)
    assert call("hold", "release", held["id"], "--reason", "over").exit_code == 0
    done("del", f"s3://{filled}/{exported}", "--name", filled)
    assert exported not in keys(filled)


def test_wrong_holds_are_refused(exported: str) -> None:
    with pytest.raises(Rejected, match="one event, one experiment or one system"):
        call("hold", "add", "--reason", "x")
    with pytest.raises(NotFound):
        call("hold", "add", "--event", "00000000", "--reason", "x")
    with pytest.raises(Rejected, match="over already"):
        call("hold", "add", "--system", "prince", "--until", "2001-01-01", "--reason", "x")
    assert call("hold", "add", "--system", "prince", "--until", "soon", "--reason", "x").exit_code == 2
    assert call("hold", "add", "--system", "prince").exit_code == 2
    assert told("hold", "list") == []
