"""An instrument over HTTP: what is posted becomes an export, as with DLM's mock-prince."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import tifffile
import uvicorn
from fastapi import FastAPI

from plateway.catalog import Catalog
from plateway.events import Ref
from plateway.gateway.server import listen
from plateway.local.seaweed import PLAIN
from plateway.simulator import http
from plateway.store.memory import Memory
from tests.lab import DAWN, Clock, Lab


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    (tmp_path / "bench").mkdir()
    return tmp_path / "bench"


@pytest.fixture
def lab(tmp_path: Path, bench: Path) -> Iterator[Lab]:
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    catalog.upgrade()
    assert bench.exists()
    yield Lab(tmp_path, Memory(), clock, catalog)
    catalog.close()


@contextmanager
def running(app: FastAPI) -> Iterator[httpx.Client]:
    """Run it in a thread on a free port."""
    taken = listen("127.0.0.1", 0)
    serving = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [taken]}, daemon=True)
    taken.listen()
    thread.start()
    with httpx.Client(
        base_url=f"http://127.0.0.1:{taken.getsockname()[1]}", timeout=60, trust_env=False, verify=PLAIN
    ) as client:
        yield client
    serving.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def client(bench: Path) -> Iterator[httpx.Client]:
    with running(http.create_app(bench, size=32)) as one:
        yield one


def event(**changes: Any) -> dict[str, Any]:
    said = {
        "ref_id": str(uuid4()),
        "experiment_id": "test-id",
        "timestamp": DAWN.isoformat(),
        "type": "stitch",
        "system": "prince",
        "local_path": "a1b2c3",
        "img_count": 1,
        "metadata": {"application": {"application": "mock-prince"}},
    }
    return {name: value for name, value in {**said, **changes}.items() if value is not None}


def files(bench: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bench)): path.read_bytes() for path in bench.rglob("*") if path.is_file()}


def test_what_is_posted_becomes_an_export(lab: Lab, client: httpx.Client) -> None:
    """The line finds it as it finds any other event; metadata may be an object or a string that holds one."""
    posted = [
        event(metadata={"a": {"b": 1}}, local_path="one"),
        event(metadata='{"a": {"b": 1}}', local_path="two"),
    ]
    for said in posted:
        answer = client.post("/timestep", json=said)
        assert (answer.status_code, answer.content) == (200, b"")
    assert len(lab.settle().sealed) == 2
    assert {one.result for one in lab.export()} == {"exported", "verified"}
    for said in posted:
        found = lab.ledger(Ref(UUID(said["ref_id"]), 1)).event
        assert found.details == {"a": {"b": 1}}
        assert found.key.startswith("images/test-id/20260504/060000-")
        with tarfile.open(fileobj=io.BytesIO(b"".join(lab.store.open(found.key)))) as tar:
            assert tar.getnames() == ["./Img_r10_c15.tif", "./metadata.json"]


KINDS = [
    ("stitch", 6, "Img_r02_c03.tif"),
    ("video", 3, "Frame_0003.tif"),
    ("overview", 1, "Overview.tif"),
    ("overview", 2, "Img_0002.tif"),
]


def test_there_are_as_many_images_as_announced(lab: Lab, client: httpx.Client) -> None:
    """Each is a picture, and the names are those of the kind; what is not said is as DLM has it."""
    for number, (kind, count, last) in enumerate(KINDS):
        said = event(type=kind, img_count=count, local_path=f"run/{number}", system=None, metadata=None)
        assert client.post("/timestep", json=said).status_code == 200
        images = sorted((lab.bench / "prince" / "run" / str(number)).iterdir())
        assert (len(images), images[-1].name) == (count, last)
        assert all(tifffile.imread(path).dtype == "uint16" for path in images)
    assert len(lab.settle().sealed) == len(KINDS)
    assert {one.result for one in lab.export()} == {"exported", "verified"}


def test_posted_twice_it_is_one_event(lab: Lab, client: httpx.Client) -> None:
    """Images that are there stay as they are; the announcement is the same file again."""
    said = event(system="tsu-exp001")
    client.post("/timestep", json=said)
    before = files(lab.bench)
    assert client.post("/timestep", json=said).status_code == 200
    assert files(lab.bench) == before
    assert len(lab.settle().sealed) == 1


def test_the_older_dialect_is_understood(lab: Lab, client: httpx.Client) -> None:
    """The mock of DLM v1 was posted to in its own words."""
    said = {
        "timestep_id": str(uuid4()),
        "plate": 7,
        "cross_date": "2000-01-01",
        "position": 3,
        "timestamp": DAWN.isoformat(),
        "img_count": 2,
        "img_dir": "x",
    }
    assert client.post("/timestep", json=said).status_code == 200
    lab.settle()
    assert [one.event.experiment for one in lab.catalog.ledgers()] == ["20000101_007"]


WRONG: list[tuple[Any, str]] = [
    (b"", "not JSON"),
    (b"[]", "not an object"),
    (b"\xff", "not UTF-8"),
    (event(ref_id="1"), "ref_id"),
    (event(timestamp="2026-05-04T06:00:00"), "timestamp"),
    (event(type="film"), "type"),
    (event(local_path="../x"), "climbs out"),
    (event(local_path="/x"), "absolute"),
    (event(local_path="events"), "no place for images"),
    (event(img_count=-1), "img_count"),
    (event(img_count=1001), "img_count"),
    (event(metadata="[]"), "metadata"),
    (event(system="../prince"), "system"),
    (event(system=["prince"]), "system"),
    (event(experiment_id=None), "experiment_id"),
    (b" " * (2 << 20), "bytes"),
]


def test_what_is_no_event_is_told_so(bench: Path, client: httpx.Client) -> None:
    """422 in the words of FastAPI, and nothing is written."""
    for body, word in WRONG:
        answer = client.post("/timestep", content=body if isinstance(body, bytes) else json.dumps(body))
        assert answer.status_code == 422, word
        assert word in answer.json()["detail"][0]["msg"]
    assert files(bench) == {}


def test_a_disk_that_does_not_take_it_is_told(bench: Path, client: httpx.Client) -> None:
    """503 without a path of the server; nothing is announced."""
    (bench / "prince").mkdir()
    (bench / "prince" / "a1b2c3").write_bytes(b"a file")
    answer = client.post("/timestep", json=event())
    assert answer.status_code == 503
    assert str(bench) not in answer.text
    assert not (bench / "prince" / "events").exists()


def test_it_acquires_by_itself(bench: Path) -> None:
    """With an interval there is an event at once, and then one after each."""
    app = http.create_app(bench, size=32, interval=timedelta(seconds=0.01))
    with running(app):
        until = time.monotonic() + 60
        while len(list((bench / "prince" / "events").glob("*.json"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    said = [json.loads(path.read_bytes()) for path in (bench / "prince" / "events").glob("*.json")]
    assert len(said) >= 2
    assert {one["experiment_id"] for one in said} == {"test-id"}


def test_it_is_a_command(tmp_path: Path) -> None:
    """`plateway simulate --serve` says where it listens, takes events, and ends with a signal."""
    command = [sys.executable, "-m", "plateway", "simulate", "--serve", "--port", "0", "--size", "32"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("PLATEWAY_", "AWS_"))}
    with subprocess.Popen(
        [*command, "--home", str(tmp_path)], stdout=subprocess.PIPE, env=quiet, text=True, cwd=tmp_path
    ) as running:
        assert running.stdout is not None
        verb, url = running.stdout.readline().split()
        try:
            assert httpx.request(verb, url, json=event(), timeout=60, trust_env=False, verify=PLAIN).status_code == 200
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(60)
    image = tmp_path / "bench" / "prince" / "a1b2c3" / "Img_r10_c15.tif"
    assert tifffile.imread(image).shape == (32, 32)
