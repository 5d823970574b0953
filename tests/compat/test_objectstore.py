"""amplify-object-store's own commands and imports, on the modules of `compat/`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from plateway.endpoint import Endpoint
from tests.flows.conftest import free_port

COMPAT = Path(__file__).resolve().parents[2] / "compat"
CLIENT = """
import asyncio, sys
from client import AsyncRestStore, RestStore

url, key = sys.argv[1:]
store = RestStore.create(url, key)
store.put("plates/12/a b.png", b"pixels")
assert store.exists("plates/12/a b.png") and not store.exists("none")
assert store.get("plates/12/a b.png") == b"pixels"
assert list(store.keys()) == ["plates/12/a b.png"]
store.delete("plates/12/a b.png")
try:
    store.get("plates/12/a b.png")
except KeyError:
    pass
else:
    raise SystemExit("a deleted object was read")


async def visit():
    async with AsyncRestStore.create(url, key) as there:
        await there.put("b", b"2")
        assert await there.get("b") == b"2"


asyncio.run(visit())
print("good")
"""


def environment(**given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PLATEWAY_", "AWS_", "PREFECT_"))}
    return {**kept, "PYTHONPATH": str(COMPAT), "NO_PROXY": "127.0.0.1", **given}


def run(*words: str, cwd: Path, status: int = 0, **given: str) -> str:
    """Run Python in a directory; return what it printed."""
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment(**given), capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def server(cwd: Path, given: Mapping[str, str]) -> Iterator[str]:
    """Start the server as its README does."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "objectstore.app:app", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, cwd=cwd, env=environment(**given)) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process)
            yield url
        finally:
            process.terminate()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(f"{url}/health", trust_env=False).json()["service"] == "amplify-object-store"
            return
        except httpx.TransportError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("where", ["memory", "files", "bucket"])
def test_their_commands_and_clients(where: str, tmp_path: Path, endpoint: Endpoint, bucket: str) -> None:
    """Tokens by their command, the server by theirs, objects by their client: in memory, a directory, a bucket."""
    given: dict[str, str] = {}
    if where != "memory":
        (tmp_path / "storage.yaml").write_text((COMPAT / "storage.yaml.template").read_text())
        given = {"STORAGE_CONFIG": "storage.yaml", "STORAGE_NAME": where, "STORAGE_PATH": str(tmp_path / "data")}
        assert endpoint.secret_access_key is not None
        given |= {"S3_ENDPOINT": str(endpoint.url), "S3_BUCKET": bucket}
        given |= {"S3_ACCESS_KEY": str(endpoint.access_key_id)}
        given |= {"S3_SECRET_KEY": endpoint.secret_access_key.get_secret_value()}
    scopes = [word for scope in ("read", "write", "delete") for word in ("--scope", scope)]
    told = run("-m", "objectstore.auth_tokens", "add", "notebook", "--ttl", "30", *scopes, cwd=tmp_path)
    secret = told.splitlines()[-1]
    assert (tmp_path / "tokens.json").is_file()
    with server(tmp_path, given) as url:
        assert run("-c", CLIENT, url, secret, cwd=tmp_path) == "good\n"
    assert "notebook" in run("-m", "objectstore.auth.tokens", "list", cwd=tmp_path)
    run("-m", "objectstore.auth_tokens", "-f", "tokens.json", "delete", "notebook", cwd=tmp_path)
    assert "ERROR: " in run("-m", "objectstore.auth_tokens", "delete", "notebook", cwd=tmp_path, status=1)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("stores: {a: {type: AsyncSqliteStore}}\nmain: a", "storage.yaml: a: a store of type AsyncSqliteStore is not"),
        ("stores: {a: {type: DictStore}}\nmain: b", "storage.yaml: no store 'b' among a"),
        ("stores: {a: {type: FilesystemStore}}\nmain: a", "storage.yaml: a: root_path is missing"),
        (
            "stores: {a: {type: BucketStore, config: {bucket_name: b, s3_access_key: '${NOWHERE}'}}}\nmain: a",
            "s3_access_key: NOWHERE is not set",
        ),
        ("[", "storage.yaml is not YAML"),
        (None, "storage.yaml: No such file"),
    ],
)
def test_a_wrong_storage_is_named(document: str | None, told: str, tmp_path: Path) -> None:
    """File, store and field; an unknown type names those that there are."""
    if document is not None:
        (tmp_path / "storage.yaml").write_text(document)
    output = run("-c", "import objectstore.app", cwd=tmp_path, status=1, STORAGE_CONFIG="storage.yaml")
    assert told in output


def test_the_compose_file_has_the_three_options() -> None:
    """Each starts the server by the command of the original."""
    services = yaml.safe_load((COMPAT / "docker-compose.yml").read_text())["services"]
    assert {name: one["profiles"] for name, one in services.items()} == {
        "memory": ["a"],
        "files": ["b"],
        "bucket": ["c"],
    }
    assert all(one["command"].startswith("uvicorn objectstore.app:app ") for one in services.values())


def test_objects_alone_need_nothing_else(tmp_path: Path) -> None:
    """No catalogue, bench, credentials or bucket of events: `plateway serve --objects-only`."""
    port = free_port()
    given = {"PLATEWAY_OBJECTS_URL": "memory://objects", "PLATEWAY_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "plateway", "serve", "--objects-only", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(**given), stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            assert httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200
            assert httpx.get(f"http://127.0.0.1:{port}/api/1/events", trust_env=False).status_code == 404
            assert not (tmp_path / "home" / "catalogue.db").exists()
        finally:
            process.terminate()
    told = run("-m", "plateway", "serve", "--objects-only", cwd=tmp_path, status=2, PLATEWAY_HOME="home")
    assert "PLATEWAY_OBJECTS_URL is not set" in told
