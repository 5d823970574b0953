"""The archive's flows on a real Prefect server: manifests come in, tars go out, bytes come back, people are told."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock

from plateway import simulator
from plateway.catalog import Catalog
from plateway.simulator import Announced, Simulated
from tests.flows.conftest import Site, ask, until
from tests.flows.test_line import found, ledger, message, ran, told, verified
from tests.flows.test_provision import awaited, instrument

numbers = count(1000)
YESTERDAY = timedelta(days=1)


@pytest.fixture
def catalog(site: Site) -> Iterator[Catalog]:
    """The site's catalogue."""
    with closing(Catalog(site.settings.catalog_url)) as catalog:
        yield catalog


def exported(site: Site, catalog: Catalog, *, ago: timedelta = timedelta(0)) -> Announced:
    """Export an event to the bucket."""
    prince = Simulated("prince", "timestep", site.settings.root / "prince", images=2, size=32)
    event = simulator.acquire(prince, now=datetime.now(UTC) - ago, number=next(numbers))
    until(lambda: verified(catalog, event) or ran("discover"))
    return event


def drop(site: Site, catalog: Catalog, event: Announced) -> str:
    """Drop a manifest that names an event, as an archiver does; return the archive's path."""
    known = ledger(catalog, event)
    assert known is not None
    assert known.export is not None
    job = uuid4().hex
    path = f"images/{known.event.experiment}/{job}.tar"
    keys = [f"{known.export.bucket}/{known.export.key}"]
    manifest = {"job_id": job, "date": "2026-05-04", "archives": [{"path": path, "src_keys": keys}]}
    half = site.home / "inbox" / f".{job}"
    half.write_text(json.dumps(manifest))
    half.rename(site.home / "inbox" / f"{job}.json")
    return path


def paths(catalog: Catalog, event: Announced) -> set[str]:
    """Where on tape an event is."""
    known = ledger(catalog, event)
    return {location.path for location in known.archives} if known else set()


def artifact(site: Site, key: str) -> dict[str, Any]:
    """The newest artifact of a key."""
    wanted = {"artifacts": {"key": {"any_": [key]}}, "limit": 1, "sort": "CREATED_DESC"}
    newest: dict[str, Any] = found(site, "artifacts", **wanted)[0]
    return newest


def test_a_dropped_manifest_is_taken_in_without_a_hand(
    site: Site, worker: subprocess.Popen[bytes], catalog: Catalog
) -> None:
    """The sensor's hint triggers reconcile; the event is archived and others are told; the file is kept."""
    event = exported(site, catalog)
    with site.running("deployments.sensor"):
        path = drop(site, catalog, event)
        until(lambda: paths(catalog, event) == {path})
    until(lambda: told(site, "plateway.imaging-event.archived", event.id))
    until(lambda: any((site.home / "inbox" / "accepted").glob(f"{Path(path).stem}*")))


def test_reconcile_tells_what_is_lost(site: Site, worker: subprocess.Popen[bytes], catalog: Catalog) -> None:
    """A lost object fails the run; the table names event and repair, with a picture of the last days above it."""
    event = exported(site, catalog)
    known = ledger(catalog, event)
    assert known is not None
    assert known.export is not None
    (site.home / "bucket" / known.export.key).unlink()
    run = ran("reconcile")
    assert run.state_name == "Failed"
    assert "lost object" in message(run)
    table = artifact(site, "plateway-reconcile")
    assert str(event.id) in table["data"]
    assert "](data:image/svg+xml;base64," in table["description"]
    until(lambda: verified(catalog, event) or ran("discover"))


def test_a_quick_reconcile_compares_only_for_a_reason(site: Site, worker: subprocess.Popen[bytes]) -> None:
    """When no manifest came in there is nothing to compare."""
    until(lambda: message(ran("reconcile", quick=True)) == "no new manifest")


def test_what_is_archived_comes_back(
    site: Site, worker: subprocess.Popen[bytes], catalog: Catalog, tmp_path: Path
) -> None:
    """The archive flow writes yesterday's exports to tape with proof; restore brings the same files from there."""
    event = exported(site, catalog, ago=YESTERDAY)
    assert message(ran("archive", unattended=True)) == "left to the archiver whose manifests come in"
    assert paths(catalog, event) == set()
    run = ran("archive")
    assert run.state_name == "Completed", message(run)
    (location,) = [one for known in [ledger(catalog, event)] if known for one in known.archives]
    assert (site.home / "tape" / location.path).exists()
    until(lambda: told(site, "plateway.imaging-event.archived", event.id))
    back = ran("restore", event_ids=[str(event.id)], to=str(tmp_path), source="archive")
    assert message(back) == "1 restored"
    for name, digest in event.files.items():
        assert hashlib.sha256((tmp_path / str(event.id) / name).read_bytes()).hexdigest() == digest
    until(lambda: told(site, "plateway.imaging-event.restored", event.id))
    assert ran("expire", dry_run=True).state_name == "Completed"


class Board:
    """A webhook that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Receive messages on loopback."""
        board = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                board.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as its parent has it
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/"
            finally:
                server.shutdown()
                thread.join()


def webhook(url: str) -> None:
    """Make the notification block that the site names, as an operator does in the UI."""
    block = CustomWebhookNotificationBlock(
        name="alerts", url=url, json_data={"subject": "{{subject}}", "text": "{{body}}"}
    )
    ask(lambda client: awaited(block.asave("alerts", overwrite=True, client=client)))


def incomplete(site: Site) -> Announced:
    """Announce an event whose last image never comes."""
    prince = Simulated("prince", "timestep", site.settings.root / "prince", images=2, size=32)
    return simulator.acquire(prince, now=datetime.now(UTC), number=next(numbers), fault="missing-image")


def test_the_report_and_alerts_reach_people(site: Site, worker: subprocess.Popen[bytes], catalog: Catalog) -> None:
    """The page shows figures and picture, the webhook gets it in words, and hears of each stuck event once."""
    prince, board = instrument("prince"), Board()
    first = incomplete(site)
    until(lambda: ledger(catalog, first) is not None or ran("discover"))
    untouched = prince.stuck_after
    try:
        prince.stuck_after = timedelta(0)
        ask(lambda client: awaited(prince.asave("prince", overwrite=True, client=client)))
        with board.listening() as url:
            webhook(url)
            assert message(ran("report")).endswith("to look at")
            (letter,) = board.told
            ran("report", alerts_only=True)
            assert len(board.told) == 1
            second = incomplete(site)
            until(lambda: ledger(catalog, second) is not None or ran("discover"))
            ran("report", alerts_only=True)
            assert str(second.id) in board.told[1]["text"]
        page = artifact(site, "plateway-report")["data"]
        assert "](data:image/svg+xml;base64," in page
        assert str(first.id) in page
        assert letter["subject"].startswith("Plateway: ")
        assert str(first.id) in letter["text"]
        assert "prince: " in letter["text"]
        deaf = ran("report")
        assert deaf.state_name == "Failed"
        assert message(deaf).endswith("Unavailable: custom-webhook/alerts did not accept the message: ConnectError")
    finally:
        prince.stuck_after = untouched
        ask(lambda client: awaited(prince.asave("prince", overwrite=True, client=client)))
