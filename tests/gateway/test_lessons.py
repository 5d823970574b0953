"""Where amplify-object-store was wrong: each of its failures has a test named after it, the rest of them here.

The numbers are those of the project's list of lessons. Those about the server are beside what they are about in this
folder, those about its client in ``tests/client``.
"""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from plateway import __version__, settings
from plateway.endpoint import Endpoint
from plateway.gateway import opening
from tests.gateway.conftest import Start, running
from tests.gateway.test_threats_keys import Line


def test_each_lesson_has_a_test() -> None:
    """O1 to O16 are tested, here or elsewhere, by tests that say so."""
    files = Path(__file__).parents[1].rglob("test_*.py")
    named = {int(number) for path in files for number in re.findall(r"def test_o(\d+)_", path.read_text())}
    assert named == set(range(1, 17))


def test_o5_dots_are_refused_and_never_followed(start: Start) -> None:
    """O5: ``a/../b`` is not stored as ``b``, nor ``a/./b`` as ``a/b``, however it is written; it is refused aloud."""
    gateway = start()
    gateway.client().close()
    site = Line(gateway)
    for target in (b"a/../b", b"a/%2e%2e/b", b"a%2f..%2fb", b"a/./b", b"a/%2e/b", b"..", b".", b"a/..", b"%2e%2e"):
        status, told = site.ask(b"PUT", b"/objects/" + target, b"1")
        assert status == 400 and b"no segments . or .." in told, target
    assert b'"keys":[]' in site.ask(b"GET", b"/objects")[1]
    assert site.ask(b"PUT", b"/objects/a/..b/.c/d..", b"1")[0] == 200
    site.close()


def test_o14_health_readiness_and_version(start: Start, tmp_path: Path) -> None:
    """O14: readiness looks at the parts, and the version that is told is the one that runs."""
    (tmp_path / "objects").mkdir()
    gateway = start(objects=(tmp_path / "objects").as_uri())
    assert httpx.get(f"{gateway.url}/openapi.json").json()["info"]["version"] == __version__
    (tmp_path / "objects").rmdir()
    ready = httpx.get(f"{gateway.url}/ready")
    assert (ready.status_code, ready.json()["checks"]["objects"]) == (503, "is not there")


def test_o15_credentials_are_settings(
    tmp_path: Path, endpoint: Endpoint, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O15: URL, key and secret of S3 are plain settings of ours, and no version of another library takes them away."""
    monkeypatch.chdir(tmp_path)  # no .env
    assert endpoint.secret_access_key is not None
    for name, value in {
        "PLATEWAY_HOME": str(tmp_path),
        "PLATEWAY_BUCKET_URL": "memory://events",
        "PLATEWAY_OBJECTS_URL": f"s3://{bucket}",
        "AWS_ENDPOINT_URL": str(endpoint.url),
        "AWS_ACCESS_KEY_ID": str(endpoint.access_key_id),
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_access_key.get_secret_value(),
    }.items():
        monkeypatch.setenv(name, value)
    parts = opening.parts(settings.load())
    with running(parts) as gateway, gateway.client() as http:
        assert http.put("/objects/a", content=b"1").status_code == 200
        assert http.get("/objects/a").content == b"1"
