"""``plateway bucket`` as somebody types it, against the real S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from plateway import settings
from plateway.catalog import Catalog
from plateway.cli.bucket import bucket_environment
from plateway.endpoint import Endpoint
from plateway.errors import NotFound, Refused, Rejected
from tests import factories
from tests.cli.test_cli import call, home, told
from tests.faults.proxy import between, error

__all__ = ["home"]


@pytest.fixture(autouse=True)
def site(home: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose settings name the run's server."""
    assert endpoint.url
    assert endpoint.access_key_id
    assert endpoint.secret_access_key
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", endpoint.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", endpoint.secret_access_key.get_secret_value())
    return home


@pytest.fixture
def filled(site: Path, bucket: str) -> str:
    """A bucket with a folder, and a sibling whose name begins alike."""
    plates = site / "plates"
    (plates / "deep").mkdir(parents=True)
    for name in ("1.tif", "2.tif", "deep/3.tif"):
        (plates / name).write_bytes(name.encode())
    done("put", "--recursive", str(plates), f"s3://{bucket}/run/")
    done("put", str(plates / "1.tif"), f"s3://{bucket}/run2")
    return bucket


def done(*words: str) -> str:
    """Type it; it has to succeed."""
    result = call("bucket", *words)
    assert result.exit_code == 0, result.output
    return result.output


def keys(bucket: str) -> list[str]:
    return sorted(one["key"] for one in told("bucket", "ls", "--recursive", f"s3://{bucket}"))


def test_a_bucket_from_making_to_removing(filled: str, site: Path) -> None:
    """Made, filled, listed, added up, fetched, copied, emptied and removed."""
    assert keys(filled) == ["run/plates/1.tif", "run/plates/2.tif", "run/plates/deep/3.tif", "run2"]
    assert {one.get("folder", one.get("key")) for one in told("bucket", "ls", f"s3://{filled}")} == {"run/", "run2"}
    assert filled in {one["name"] for one in told("bucket", "ls")}
    assert told("bucket", "du", f"s3://{filled}/run")["size"] == 20
    done("get", "--recursive", f"s3://{filled}/run/plates", str(site / "back"))
    assert (site / "back" / "deep" / "3.tif").read_bytes() == b"deep/3.tif"
    done("get", f"s3://{filled}/run2", str(site / "one.tif"))
    assert (site / "one.tif").read_bytes() == b"1.tif"
    other = f"other-{uuid4().hex[:12]}"
    done("mb", f"s3://{other}")
    done("cp", "--recursive", f"s3://{filled}/run/plates", f"s3://{other}/copy/")
    assert keys(other) == ["copy/1.tif", "copy/2.tif", "copy/deep/3.tif"]
    with pytest.raises(Refused, match="not empty"):
        call("bucket", "rb", f"s3://{other}")
    done("rb", "--force", f"s3://{other}", "--name", other)
    assert other not in {one["name"] for one in told("bucket", "ls")}


def test_a_folder_goes_only_when_it_is_asked_for_and_alone(filled: str) -> None:
    """Without --recursive it is refused, a dry run deletes nothing, and the sibling stays."""
    with pytest.raises(Refused, match="is a folder"):
        call("bucket", "del", f"s3://{filled}/run")
    assert len(told("bucket", "del", "--recursive", "--dry-run", f"s3://{filled}/run")) == 3
    assert len(keys(filled)) == 4
    gone = told("bucket", "del", "--recursive", f"s3://{filled}/run")
    assert {one["problem"] for one in gone} == {None}
    assert keys(filled) == ["run2"]
    with pytest.raises(NotFound):
        call("bucket", "del", f"s3://{filled}/run")


def test_a_bucket_that_is_not_empty_is_removed_by_force_only(filled: str) -> None:
    """Rehearsed, too; and what JSON says is one document."""
    for words in (["rb", f"s3://{filled}"], ["rb", "--dry-run", f"s3://{filled}"]):
        with pytest.raises(Refused, match="not empty"):
            call("bucket", *words)
    assert len(told("bucket", "rb", "--force", "--dry-run", f"s3://{filled}")) == 4
    other = f"s3://{filled}-other"
    done("mb", other)
    assert told("bucket", "rb", other) == []
    assert len(keys(filled)) == 4


def test_a_bucket_of_exports_wants_its_name_typed(filled: str, site: Path) -> None:
    """Else it is not changed, removed or given rules; here exports have a part of it to themselves."""
    catalog = Catalog(f"sqlite:///{site}/catalogue.db")
    catalog.upgrade()
    factories.export(catalog, factories.add(catalog), bucket=f"{filled}/part")
    catalog.close()
    rules = site / "rules.json"
    rules.write_text(json.dumps({"Rules": [{"ID": "a", "Status": "Enabled", "Filter": {"Prefix": ""},
                                            "Expiration": {"Days": 1}}]}))  # fmt: skip
    for words in (
        ["del", f"s3://{filled}/run2"],
        ["put", str(rules), f"s3://{filled}/run2"],
        ["cp", f"s3://{filled}/run/plates/2.tif", f"s3://{filled}/run2"],
        ["rb", "--force", f"s3://{filled}"],
        ["lifecycle", "set", f"s3://{filled}", str(rules)],
    ):
        for name in ([], ["--name", "other"]):
            with pytest.raises(Refused, match=f"1 exports in {filled}"):
                call("bucket", *words, *name)
    assert len(keys(filled)) == 4
    done("get", f"s3://{filled}/run2", str(site / "same"))
    assert (site / "same").read_bytes() == b"1.tif"
    done("del", f"s3://{filled}/run2", "--name", filled)
    assert "run2" not in keys(filled)


def test_tags_and_rules(filled: str, site: Path) -> None:
    """Set, shown, taken away."""
    assert told("bucket", "tag", f"s3://{filled}/run2", "archived=true") == {"archived": "true"}
    assert told("bucket", "tag", f"s3://{filled}/run2", "--clear") == {}
    rules = site / "rules.json"
    rules.write_text('[{"ID": "tmp", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 2}}]')
    done("lifecycle", "set", f"s3://{filled}", str(rules))
    assert json.loads(done("lifecycle", "show", f"s3://{filled}"))["Rules"][0]["ID"] == "tmp"
    rules.write_text("[]")
    done("lifecycle", "set", f"s3://{filled}", str(rules))
    assert json.loads(done("lifecycle", "show", f"s3://{filled}")) == {"Rules": []}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["put", "missing.tif", "s3://b-b-b/"], NotFound),
        (["ls", "http://b/a"], Rejected),
        (["rb", "s3://b-b-b/key"], Rejected),
        (["get", "s3://no-such-bucket-at-all/x"], NotFound),
        (["lifecycle", "set", "s3://b-b-b", "missing.json"], Rejected),
    ],
)
def test_what_cannot_be_is_told(words: list[str], error: type[Exception]) -> None:
    """By an error that names it."""
    with pytest.raises(error):
        call("bucket", *words)


def test_what_failed_is_told_and_counted(filled: str, endpoint: Endpoint) -> None:
    """Exit code 3 where some failed, 1 where all did; each is named with its problem."""
    assert endpoint.url
    with between(endpoint.url) as proxy:
        proxy.script = lambda asked, forward: (
            error(403, "AccessDenied")
            if asked.start.startswith("PUT") and asked.key.endswith(proxy_denies)
            else forward(asked)
        )
        copy = ["cp", "--recursive", f"s3://{filled}/run", f"s3://{filled}/copy/", "--endpoint-url", proxy.url]
        proxy_denies = "2.tif"
        outcomes = told("bucket", *copy, code=3)
        assert [one["url"] for one in outcomes if one["problem"]] == [f"s3://{filled}/copy/plates/2.tif"]
        proxy_denies = ".tif"
        assert all(one["problem"] for one in told("bucket", *copy, code=1))


def test_a_command_is_led_nowhere_else(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says of another endpoint, or of other credentials, is not there for it."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-another-key")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    env = settings.environment(bucket_environment(endpoint, "made"))
    assert (env["PLATEWAY_BUCKET_URL"], env["AWS_ENDPOINT_URL"]) == ("s3://made", endpoint.url)
    assert {"AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "PLATEWAY_BYPASS_PROXY"} & env.keys() == set()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-a-role")
    assert settings.environment(bucket_environment(Endpoint(), "made"))["AWS_ACCESS_KEY_ID"] == "of-a-role"


def test_tables_are_for_people(filled: str) -> None:
    """Keys, sizes, times."""
    assert "run/" in done("ls", f"s3://{filled}")
    assert "4 objects" in done("du", f"s3://{filled}")
    assert "would delete: 3 objects" in done("del", "--recursive", "--dry-run", f"s3://{filled}/run/")


def test_it_starts_without_what_it_does_not_need() -> None:
    """Catalogue and verbs take longer to import than a small command takes to work."""
    command = [sys.executable, "-X", "importtime", "-m", "plateway", "bucket", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "plateway.store.admin" in imported
    assert {"plateway.catalog", "plateway.pipeline", "sqlalchemy", "s3fs"} & imported == set()


def test_a_bucket_that_keeps_versions_goes_by_force(filled: str, client: Any) -> None:
    """Not without, and not half: `rb --force` ends with no bucket; what `del` leaves is said."""
    client.put_bucket_versioning(Bucket=filled, VersioningConfiguration={"Status": "Enabled"})
    result = call("bucket", "del", "--recursive", f"s3://{filled}/run")
    assert result.exit_code == 0
    assert "versions" in result.stderr
    client.delete_object(Bucket=filled, Key="run2")
    assert keys(filled) == []
    with pytest.raises(Refused):
        call("bucket", "rb", f"s3://{filled}")
    rehearsed = told("bucket", "rb", "--force", "--dry-run", f"s3://{filled}")
    assert {one["url"].rpartition("/")[2] for one in rehearsed} == {"1.tif", "2.tif", "3.tif", "run2"}
    done("rb", "--force", f"s3://{filled}", "--name", filled)
    assert filled not in {one["name"] for one in told("bucket", "ls")}
    done("mb", f"s3://{filled}")
