"""The endpoint of a Bucket block: tried by its deployment, and reached by every verb of ``plateway bucket``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_aws import AwsCredentials

from blocks.bucket import Bucket, load
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured, NotFound, Refused, Unavailable
from tests.cli.test_cli import call
from tests.flows.conftest import Site, ask
from tests.flows.test_line import found, message, ran
from tests.flows.test_provision import awaited
from tests.soak import SOAK

BLOCK = "for-tests"


@pytest.fixture
def block(site: Site, endpoint: Endpoint) -> str:
    """A Bucket block for the run's S3 server, as an operator makes one in the UI."""
    save(BLOCK, endpoint)
    return BLOCK


def save(name: str, endpoint: Endpoint, *, read_only: bool = False) -> None:
    credentials = AwsCredentials(
        aws_access_key_id=endpoint.access_key_id, aws_secret_access_key=endpoint.secret_access_key
    )
    made = Bucket(url="s3://any", endpoint=endpoint.url, credentials=credentials, read_only=read_only)
    ask(lambda client: awaited(made.asave(name, overwrite=True, client=client)))


def test_the_deployment_leaves_a_table(site: Site, worker: subprocess.Popen[bytes], block: str) -> None:
    """Of what the endpoint supports and what is therefore used, and of the round; no secret is in it."""
    run = ran("selftest", bucket=block)
    assert message(run).startswith("events came through and back; ")
    assert run.state_name == "Completed"
    (artifact,) = found(site, "artifacts", artifacts={"flow_run_id": {"any_": [str(run.id)]}})
    assert artifact["key"] == "plateway-selftest"
    rows = {row["what"]: row for row in json.loads(artifact["data"])}
    assert rows["ETag of an upload in parts is their MD5s'"]["outcome"] == "yes"
    assert rows["ETag of an upload in parts is their MD5s'"]["Plateway"].startswith("evidence of a larger export")
    assert {row["outcome"] for what, row in rows.items() if what.startswith("round: ")} == {"done"}


def test_a_block_without_an_endpoint_is_not_tried(site: Site, worker: subprocess.Popen[bytes]) -> None:
    """The site's own bucket is a directory: there is nothing to try, and the run says so."""
    run = ran("selftest")
    assert run.state_name == "Failed"
    assert "not in S3" in message(run)


def test_verbs_take_a_block(block: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint and credentials come from Prefect; the settings know neither."""
    monkeypatch.setenv("PLATEWAY_HOME", str(tmp_path))
    file, rules, other = tmp_path / "a.tif", tmp_path / "rules.json", f"{bucket}-other"
    file.write_bytes(b"tiff")
    rules.write_text("[]")
    here, there = f"s3://{bucket}", f"s3://{other}"
    told: dict[str, Any] = {}
    few = [["mb", there], ["put", str(file), f"{here}/x/"], ["ls"]]
    more = [
        ["ls", here],
        ["du", here],
        ["get", f"{here}/x/a.tif", str(tmp_path / "back.tif")],
        ["cp", "--recursive", f"{here}/x", there],
        ["tag", f"{here}/x/a.tif", "kept=yes"],
        ["lifecycle", "set", here, str(rules)],
        ["lifecycle", "show", here],
        ["del", f"{here}/x/a.tif"],
        ["run", bucket, "--", "true"],
    ]
    for words in [*few, *(more if SOAK else ()), ["rb", there, "--force", "--name", there.removeprefix("s3://")]]:
        result = call("bucket", words[0], *words[1:2], "--block", block, *words[2:])
        assert result.exit_code == 0, (words, result.output)
        told[" ".join(words[:2])] = result.stdout
    assert bucket in told["ls"]
    assert not SOAK or (tmp_path / "back.tif").read_bytes() == b"tiff"
    assert told[f"rb {there}"].endswith(f"{there} removed\n")


def test_a_block_that_may_only_read(site: Site, endpoint: Endpoint, bucket: str, tmp_path: Path) -> None:
    """Refused before anything is asked; a block that is not there is named."""
    save("read-only", endpoint, read_only=True)
    assert call("bucket", "ls", f"s3://{bucket}", "--block", "read-only").exit_code == 0
    with pytest.raises(Refused, match="read-only"):
        call("bucket", "mb", "s3://some-other", "--block", "read-only")


def test_a_block_that_cannot_be_read_is_told(site: Site) -> None:
    """By its name: there is none, Prefect does not answer, or nobody says where it is; no server is started for it."""
    with pytest.raises(NotFound, match="'no-such'"):
        load("no-such")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(Unavailable, match="'some'"):
        load("some")
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(Misconfigured, match="'some'"):
        load("some")
