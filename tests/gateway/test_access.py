"""The access log: a line for each request, in files that are turned over and can be searched."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plateway.gateway import Access
from plateway.gateway.access import AccessLog, read
from tests.gateway.conftest import Start

LINE = Access(
    "2026-01-01T00:00:00.000000Z", "t", "127.0.0.1", "GET", "/objects/a", "/objects/{key}", "a", 0, 1, 200, 1.5
)


def lines(path: Path, number: int) -> bytes:
    """Read so many lines, the last of which may still be about to be written: the answer went first."""
    until = time.monotonic() + 10
    while (content := path.read_bytes()).count(b"\n") < number and time.monotonic() < until:
        time.sleep(0.01)
    return content


def test_each_request_has_a_line(start: Start) -> None:
    """Who, from where, what, how many bytes and what came of it; never a token, and no query."""
    gateway = start()
    secret = gateway.token("reader", "read")
    with gateway.client() as http, gateway.client(secret) as reader:
        http.put("/objects/a%20b", content=b"12345", headers={"User-Agent": "x"})
        reader.get("/objects/a%20b")
        reader.put("/objects/a%20b", content=b"123")
        reader.get("/objects?prefix=a&cursor=nonsense")
        reader.get("/nothing?token=" + secret)
        http.get("/objects/..%2Fx", headers={"Authorization": "Bearer wrong"})
    text = lines(gateway.parts.log, 6).decode()
    assert not [secret for secret in gateway.secrets.values() if secret in text] and "wrong" not in text
    found = list(read(gateway.parts.log))
    assert [(one.who, one.method, one.route, one.key, one.received, one.status) for one in found] == [
        ("all", "PUT", "/objects/{key}", "a b", 5, 200),
        ("reader", "GET", "/objects/{key}", "a b", 0, 200),
        ("reader", "PUT", "/objects/{key}", None, 3, 403),
        ("reader", "GET", "/objects", "a", 0, 400),
        (None, "GET", None, None, 0, 404),
        (None, "GET", "/objects/{key}", None, 0, 401),
    ]
    assert (found[1].sent, found[1].address, found[2].path) == (5, "127.0.0.1", "/objects/a%20b")
    assert all(0 <= one.milliseconds < 60_000 for one in found)
    assert [one.status for one in read(gateway.parts.log, token="reader")] == [200, 403, 400]
    assert [one.who for one in read(gateway.parts.log, key="a ")] == ["all", "reader"]
    moment = datetime.now(UTC)
    assert list(read(gateway.parts.log, since=moment)) == list(
        read(gateway.parts.log, until=moment - timedelta(days=1))
    )
    assert len(list(read(gateway.parts.log, since=moment - timedelta(hours=1), until=moment))) == 6


def test_keys_cannot_forge_lines(start: Start) -> None:
    """Whatever is asked for, a request is one line."""
    gateway = start()
    with gateway.client() as http:
        http.get("/objects/a%0a%7b%22who%22:%22forged%22%7d")
        http.put("/objects/%E2%80%A8%22%7d", content=b"")
    assert [json.loads(line)["status"] for line in lines(gateway.parts.log, 2).splitlines()] == [400, 200]


def test_full_files_are_moved_aside(tmp_path: Path) -> None:
    """Two workers share the file; nothing is lost when it is turned over, and the oldest files go in the end."""
    path = tmp_path / "access.log"
    logs = [AccessLog(path, full=2000, kept=100) for _ in range(2)]

    def write(log: AccessLog, who: str) -> None:
        for number in range(100):
            log.write(replace(LINE, who=who, received=number))

    threads = [threading.Thread(target=write, args=(log, f"w{at}")) for at, log in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.glob("access.log.0*"))) > 10
    for who in ("w0", "w1"):
        assert [one.received for one in read(path, token=who)] == list(range(100))
    few = AccessLog(path, full=2000, kept=2)
    write(few, "w2")
    assert len(list(tmp_path.glob("access.log.0*"))) == 2
    for log in (*logs, few):
        log.close()


def test_lines_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    """What a full disk or another program left in the file does not hide the rest."""
    path = tmp_path / "access.log"
    log = AccessLog(path)
    log.write(LINE)
    with path.open("ab") as file:
        file.write(b'{"time": "2026\n[]\n\xff\xfe\n{"who": 1}\n')
    log.write(LINE)
    log.close()
    assert list(read(path)) == [LINE, LINE]


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The request goes on, the log and readiness say it once, and it heals."""
    path = tmp_path / "access.log"
    log = AccessLog(path)
    path.mkdir()
    for _ in range(3):
        log.write(LINE)
    assert log.problem and caplog.text.count("cannot be written") == 1
    path.rmdir()
    log.write(LINE)
    assert list(read(path)) == [LINE]
    assert not log.problem
    log.close()
