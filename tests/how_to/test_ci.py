"""The files for CI are valid by the published schemas, and their commands work on a real S3 server."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from plateway.endpoint import Endpoint
from tests.how_to.test_pages import credentials
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "ci.md"
GITHUB, GITLAB = (text for _, text in blocks(PAGE, "yaml"))
RESULT = """
import os, pathlib
from urllib.parse import urlsplit
from plateway.store import open_store
from plateway.endpoint import Endpoint

def test_a_bucket_of_this_run():
    url = os.environ["PLATEWAY_BUCKET_URL"]
    there = Endpoint(
        url=os.environ["AWS_ENDPOINT_URL"],
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    )
    open_store(url, there).put("a", [b"1"], size=1, part_size=8 << 20, metadata={})
    pathlib.Path("bucket").write_text(urlsplit(url).netloc)
"""


@pytest.mark.parametrize(("text", "schema"), [(GITHUB, "github-workflows"), (GITLAB, "gitlab-ci")])
def test_a_file_is_valid_by_its_schema(tmp_path: Path, text: str, schema: str) -> None:
    """The schemas are those of SchemaStore, as check-jsonschema has them; unknown fields are errors."""
    file = tmp_path / "ci.yml"
    file.write_text(text)
    tool = Path(sysconfig.get_path("scripts")) / "check-jsonschema"
    if not tool.exists():
        pytest.skip("no check-jsonschema here; scripts/install brings it")
    check = [str(tool), "--builtin-schema", f"vendor.{schema}", str(file)]
    assert subprocess.run(check, capture_output=True, text=True, check=False, timeout=60).returncode == 0
    file.write_text(text.replace("timeout", "timeuot"))
    assert subprocess.run(check, capture_output=True, text=True, check=False, timeout=60).returncode == 1


def test_secrets_are_not_in_the_files() -> None:
    """And a pull request from elsewhere does not reach them."""
    job = yaml.safe_load(GITHUB)["jobs"]["integration"]
    assert [value for name, value in job["env"].items() if name.startswith("AWS_") and "KEY" in name] == [
        "${{ secrets.S3_ACCESS_KEY }}",
        "${{ secrets.S3_SECRET_KEY }}",
    ]
    assert "head.repo.full_name == github.repository" in job["if"]
    assert yaml.safe_load(GITHUB)["permissions"] == {"contents": "read"}
    assert not any("KEY" in name for name in yaml.safe_load(GITLAB)["integration"]["variables"])


def commands(document: Any) -> list[str]:
    """List the commands of the job that are Plateway's."""
    (job,) = document["jobs"].values() if "jobs" in document else document.values()
    lines = [step.get("run", "") for step in job["steps"]] if "steps" in job else job["script"]
    return [line for line in lines if "plateway" in line]


@pytest.mark.parametrize("passes", [True, False], ids=["passing", "failing"])
def test_the_command_of_both_runs_and_leaves_no_bucket(
    tmp_path: Path, endpoint: Endpoint, client: Any, passes: bool
) -> None:
    """Whether the tests pass or fail; the exit code is that of the tests."""
    (command,) = {*commands(yaml.safe_load(GITHUB)), *commands(yaml.safe_load(GITLAB))}
    (tmp_path / "tests" / "integration").mkdir(parents=True)
    (tmp_path / "tests" / "integration" / "test_run.py").write_text(RESULT + ("" if passes else "    assert False\n"))
    env = {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}", "HOME": str(tmp_path), "NO_PROXY": "*"}
    done = subprocess.run(
        command.removeprefix("uv run ").split(),
        env={**env, **credentials(endpoint)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == (0 if passes else 1), done.stdout + done.stderr
    used = (tmp_path / "bucket").read_text()
    assert used.startswith("ci-")
    assert used not in [one["Name"] for one in client.list_buckets()["Buckets"]]
