"""``plateway bucket run``: a command has a bucket of its own, which goes with it however it ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plateway.cli.attended import SIGNALS, attended
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured
from tests.soak import SOAK

TRAPPING = "trap 'exit 9' {kind}; touch there; while :; do sleep 0.05; done"
COMMAND = """
import os, sys, time
from botocore.session import get_session
client, name = get_session().create_client("s3"), os.environ["PLATEWAY_BUCKET_URL"][5:]
client.put_object(Bucket=name, Key="a", Body=b"1")
print("there", flush=True)
try:
    {last}
except KeyboardInterrupt:
    try:
        time.sleep(0.5)  # tidies up, and should be let
        print("once", flush=True)
    except KeyboardInterrupt:
        print("twice", flush=True)
    sys.exit(130)
"""


def strike(kind: signal.Signals, there: Path) -> threading.Thread:
    """Send this process a signal as soon as the command is there."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not there.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), kind)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_is_told_of_signals(kind: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may end as it likes, and its exit code is ours."""
    monkeypatch.chdir(tmp_path)
    with attended() as attendance:
        thread = strike(kind, tmp_path / "there")
        assert attendance.run(["sh", "-c", TRAPPING.format(kind=kind.name[3:])], dict(os.environ)) == 9
        thread.join()


def test_a_signal_before_the_command_ends_us_tidily_and_once() -> None:
    """What is being tidied up then is not interrupted; afterwards signals are as before."""
    before = [signal.getsignal(kind) for kind in SIGNALS]
    with pytest.raises(SystemExit) as left, attended():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
    assert left.value.code == 143
    assert [signal.getsignal(kind) for kind in SIGNALS] == before


def test_signals_after_the_command_change_nothing() -> None:
    """The bucket is being removed then; also if there is no such command."""
    with attended() as attendance:
        assert attendance.run(["false"], dict(os.environ)) == 1
        signal.raise_signal(signal.SIGTERM)
    with attended() as attendance:
        with pytest.raises(Misconfigured, match="no-such-command"):
            attendance.run(["no-such-command"], dict(os.environ))
        signal.raise_signal(signal.SIGINT)


def test_a_command_that_is_killed_has_the_code_of_a_shell() -> None:
    """128 and the signal."""
    with attended() as attendance:
        assert attendance.run(["sh", "-c", "kill -KILL $$"], dict(os.environ)) == 137


def environment(endpoint: Endpoint) -> dict[str, str]:
    """Where the commands find the run's server."""
    assert endpoint.url
    assert endpoint.access_key_id
    assert endpoint.secret_access_key
    return os.environ | {
        "AWS_ENDPOINT_URL": endpoint.url,
        "AWS_ACCESS_KEY_ID": endpoint.access_key_id,
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_access_key.get_secret_value(),
    }


@contextmanager
def running(endpoint: Endpoint, name: str, last: str, *, terminal: int | None = None) -> Iterator[Any]:
    """Start it as a process of its own, perhaps as the one in front of a terminal."""
    script = COMMAND.format(last=last)
    command = [sys.executable, "-m", "plateway", "bucket", "run", name, "--", sys.executable, "-c", script]
    front = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    if terminal is not None:
        command = [sys.executable, "-c", front, *command]
    with subprocess.Popen(
        command,
        env=environment(endpoint),
        stdin=terminal if terminal is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"there\n"
        yield process


def test_ctrl_c_reaches_the_command_once(client: Any, bucket: str, endpoint: Endpoint) -> None:
    """A terminal tells all in front of it, so it is not told again; it tidies up, and then the bucket goes."""
    keyboard, terminal = pty.openpty()
    try:
        with running(endpoint, bucket, "time.sleep(60)", terminal=terminal) as process:
            os.write(keyboard, b"\x03")
            assert process.stdout.read() == b"once\n"
            assert process.wait(60) == 130
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert left(client, bucket) == []


@pytest.mark.parametrize(
    ("end", "code"), [("failed", 7), ("done", 0), ("SIGTERM", 143), ("SIGINT", 130), ("group", 130)][: 5 if SOAK else 1]
)
def test_a_command_has_a_bucket_of_its_own(client: Any, bucket: str, endpoint: Endpoint, end: str, code: int) -> None:
    """It finds it in its environment; afterwards the bucket is gone, and the exit code is the command's."""
    last = {"done": "pass", "failed": "sys.exit(7)"}.get(end, "time.sleep(60)")
    with running(endpoint, bucket, last) as process:
        if end == "group":
            os.killpg(process.pid, signal.SIGINT)
        elif end.startswith("SIG"):
            process.send_signal(getattr(signal, end))
        assert process.wait(60) == code
    assert left(client, bucket) == []


@pytest.mark.skipif(not SOAK, reason="the same, at the cost of another process")
def test_a_selftest_that_is_ended_leaves_nothing(client: Any, bucket: str, endpoint: Endpoint) -> None:
    """What it tried in somebody's bucket goes; what was there stays."""
    client.put_object(Bucket=bucket, Key="kept", Body=b"1")
    command = [sys.executable, "-m", "plateway", "bucket", "selftest", f"s3://{bucket}"]
    with subprocess.Popen(command, env=environment(endpoint), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while client.list_objects_v2(Bucket=bucket)["KeyCount"] < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 143
    assert [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["kept"]


def left(client: Any, name: str) -> list[str]:
    """Name the short-lived buckets that are still there."""
    return [one["Name"] for one in client.list_buckets()["Buckets"] if one["Name"].startswith(f"{name}-")]
