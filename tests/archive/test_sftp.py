"""An archive behind SFTP, on a real OpenSSH server."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plateway.archive import Archive, Inbox, open_archive
from plateway.errors import Conflict, NotFound, Unavailable

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(SSHD is None, reason="there is no OpenSSH server: scripts/peers installs one")

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host
AuthorizedKeysFile {home}/.ssh/id_ed25519.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A directory behind a server of this test's own, for whoever has the key in the home."""
    assert SSHD is not None
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / "tape").mkdir()
    for key in ("host", ".ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True, timeout=30)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(CONFIG.format(port=port, home=tmp_path))
    Path("/run/sshd").mkdir(exist_ok=True)  # where it wants to lock itself in
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    try:
        listening(port, server)
        yield f"sftp://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/tape"
    finally:
        server.terminate()
        server.wait(timeout=10)


def listening(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server takes connections."""
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip("the OpenSSH server does not start here: it wants to be root")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the OpenSSH server does not answer")


def test_an_archive_behind_sftp(url: str, tmp_path: Path) -> None:
    """Written aside, read back and named; read in slices; never overwritten."""
    archive: Archive = open_archive(url)
    content = os.urandom(9_000_000)
    written = archive.write("images/e/2026-05-04.tar", [content[:1_000_000], content[1_000_000:]])
    assert written.size == len(content)
    assert (tmp_path / "tape/images/e/2026-05-04.tar").read_bytes() == content
    assert b"".join(archive.open("images/e/2026-05-04.tar", start=999_999, length=9)) == content[999_999:1_000_008]
    with pytest.raises(Conflict):
        archive.write("images/e/2026-05-04.tar", [b"other"])
    assert [(one.path, one.size) for one in archive.list()] == [("images/e/2026-05-04.tar", len(content))]
    assert archive.size("images/e/nothing.tar") is None
    archive.put_manifest("job", b"{}")
    assert [content for _, content in archive.manifests()] == [b"{}"]


def test_a_source_that_fails_leaves_nothing_behind_sftp(url: str, tmp_path: Path) -> None:
    """Neither a tar nor a part of one."""

    def failing() -> Iterator[bytes]:
        yield b"some"
        raise Unavailable("the bucket does not answer")

    with pytest.raises(Unavailable, match="the bucket"):
        open_archive(url).write("images/e/2026-05-04.tar", failing())
    assert [path for path in (tmp_path / "tape").rglob("*") if path.is_file()] == []


def test_an_inbox_behind_sftp(url: str, tmp_path: Path) -> None:
    """Files are listed, read and moved."""
    (tmp_path / "tape" / "one.json").write_bytes(b"{}")
    inbox = Inbox(url)
    (delivery,) = inbox.deliveries()
    assert inbox.read(delivery) == b"{}"
    inbox.done(delivery.name)
    assert inbox.deliveries() == []
    assert (tmp_path / "tape" / "accepted" / "one.json").read_bytes() == b"{}"


def test_what_is_wrong_with_sftp_is_told(url: str) -> None:
    """A directory that is not there, and a server that does not answer; nothing of it is shown."""
    with pytest.raises(NotFound):
        list(open_archive(f"{url}/nothing").list())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unavailable) as found:
        list(open_archive(f"sftp://somebody@127.0.0.1:{port}/tape").list())
    assert str(port) not in str(found.value)
