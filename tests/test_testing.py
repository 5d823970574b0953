"""The plugin for the tests of others, as they use it: in a pytest of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plateway.endpoint import Endpoint

ROOT = Path(__file__).resolve().parent.parent
FAILING = "\n\ndef test_that_fails(s3_bucket):\n    print('in', s3_bucket)\n    assert False\n"


def example() -> str:
    """The test that the documentation shows."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "buckets.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if "pytest_plugins" in block]
    return str(found)


def ran(directory: Path, test: str, **env: str) -> str:
    """Run a test by itself; say what pytest said."""
    (directory / "test_it.py").write_text(test)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PLATEWAY_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:schemathesis", "test_it.py"]
    done = subprocess.run(
        command, cwd=directory, env=kept | env, stdout=subprocess.PIPE, text=True, timeout=200, check=False
    )
    return done.stdout


@pytest.mark.soak("starts a server, as the other tests do")
def test_the_example_runs_on_a_server_of_its_own(tmp_path: Path) -> None:
    """Where no endpoint is named, there is one all the same."""
    assert "1 passed" in ran(tmp_path, example())


def test_a_bucket_goes_when_its_test_fails(tmp_path: Path, endpoint: Endpoint, client: Any) -> None:
    """On the endpoint that the environment names; and nothing is left there."""
    assert endpoint.url
    assert endpoint.access_key_id
    assert endpoint.secret_access_key
    told = ran(
        tmp_path,
        example() + FAILING,
        AWS_ENDPOINT_URL=endpoint.url,
        AWS_ACCESS_KEY_ID=endpoint.access_key_id,
        AWS_SECRET_ACCESS_KEY=endpoint.secret_access_key.get_secret_value(),
    )
    assert "1 failed, 1 passed" in told
    (made,) = re.findall(r"^in (pytest-[0-9]{14}-[0-9a-f]{6})$", told, re.MULTILINE)
    assert made not in {one["Name"] for one in client.list_buckets()["Buckets"]}
