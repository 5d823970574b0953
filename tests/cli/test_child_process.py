"""``plateway bucket run``: a command has a temporary bucket, which is removed however the command ends."""

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

from plateway.cli.child_process import SIGNALS, handle_signals
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured
from tests.soak import SOAK

TRAPPING = "trap 'exit 9' {kind}; touch there; while :; do sleep 0.05; done"
COMMAND = """
import os, sys, time
from botocore.session import get_session
client, name = get_session().create_client("s3"), os.environ["PLATEWAY_BUCKET_URL"][5:]
client.put_object(Bucket=name, Key="a", Body=b"1")
try:
    print("there", flush=True)  # from here on it may be interrupted
    {last}
except KeyboardInterrupt:
    try:
        time.sleep(0.5)  # cleans up, and should not be interrupted
        print("once", flush=True)
    except KeyboardInterrupt:
        print("twice", flush=True)
    sys.exit(130)
"""


def send_signal_when_ready(kind: signal.Signals, there: Path) -> threading.Thread:
    """Send this process a signal as soon as the command has created its file."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not there.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), kind)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_signals_are_forwarded_to_the_command(
    kind: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command decides how it ends, and its exit code is ours."""
    monkeypatch.chdir(tmp_path)
    with handle_signals() as child:
        thread = send_signal_when_ready(kind, tmp_path / "there")
        assert child.run(["sh", "-c", TRAPPING.format(kind=kind.name[3:])], dict(os.environ)) == 9
        thread.join()


def test_a_signal_before_the_command_ends_this_process_once() -> None:
    """The cleanup is not interrupted by a second signal; afterwards the previous handlers are back."""
    before = [signal.getsignal(kind) for kind in SIGNALS]
    with pytest.raises(SystemExit) as left, handle_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
    assert left.value.code == 143
    assert [signal.getsignal(kind) for kind in SIGNALS] == before


def test_signals_after_the_command_are_ignored() -> None:
    """The bucket is being removed then; also if the command does not exist."""
    with handle_signals() as child:
        assert child.run(["false"], dict(os.environ)) == 1
        signal.raise_signal(signal.SIGTERM)
    with handle_signals() as child:
        with pytest.raises(Misconfigured, match="no-such-command"):
            child.run(["no-such-command"], dict(os.environ))
        signal.raise_signal(signal.SIGINT)


def test_a_command_that_is_killed_has_the_code_of_a_shell() -> None:
    """128 and the signal."""
    with handle_signals() as child:
        assert child.run(["sh", "-c", "kill -KILL $$"], dict(os.environ)) == 137


def environment(endpoint: Endpoint) -> dict[str, str]:
    """Return the environment in which commands find the run's S3 server."""
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
    """Start the command as its own process, optionally in the foreground of a terminal."""
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
    """A terminal signals all processes in its foreground, so Ctrl-C is not forwarded; then the bucket is removed."""
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
def test_a_command_has_a_temporary_bucket(client: Any, bucket: str, endpoint: Endpoint, end: str, code: int) -> None:
    """The bucket is in its environment and removed afterwards; the exit code is the command's."""
    last = {"done": "pass", "failed": "sys.exit(7)"}.get(end, "time.sleep(60)")
    with running(endpoint, bucket, last) as process:
        if end == "group":
            os.killpg(process.pid, signal.SIGINT)
        elif end.startswith("SIG"):
            process.send_signal(getattr(signal, end))
        assert process.wait(60) == code
    assert left(client, bucket) == []


@pytest.mark.soak("the same, at the cost of another process")
def test_an_interrupted_selftest_leaves_nothing(client: Any, bucket: str, endpoint: Endpoint) -> None:
    """Its own objects are removed; the others stay."""
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
    """List the temporary buckets that were not removed."""
    return [one["Name"] for one in client.list_buckets()["Buckets"] if one["Name"].startswith(f"{name}-")]
