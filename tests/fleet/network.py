"""A network of a site's own: a bridge in a namespace that this thread enters, and a cable for each container."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000  # linux/sched.h
PREFIX = "10.77.0."  # seen in this namespace only
HOST = 1  # of this thread
NUMBERS = itertools.count(1)
NEEDED = ("unshare", "nsenter", "setpriv", "chroot", "ip", "mount", "umount")


def find_obstacle() -> str:
    """Return why namespaces cannot be made here; empty if they can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"there is no {', '.join(missing)}"
    if os.geteuid() != 0:
        return "only root may give containers users of their own"
    tried = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--uts",
            "--fork",
            "ip",
            "link",
            "add",
            "name",
            "probe",
            "type",
            "bridge",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip()


@contextmanager
def entered() -> Iterator[None]:
    """Put this thread, and what it starts, into a new network with a bridge; go back afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    try:
        for line in (
            "link set lo up",
            "link add bridge type bridge",
            "link set bridge up",
            f"address add {PREFIX}{HOST}/24 dev bridge",
        ):
            ip(*line.split())
        yield
    finally:
        if libc.setns(before, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(before)


def ip(*words: str) -> None:
    """Configure the network.

    Raises:
        subprocess.CalledProcessError: it was refused.
    """
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


def connect(pid: int, number: int) -> str:
    """Set the address of a process's namespace, which ends in this number; return the name of the cable's end here."""
    end, inner = f"v{next(NUMBERS)}", f"w{next(NUMBERS)}"
    address = f"02:42:0a:4d:00:{number:02x}"  # the same after a restart, which others remember
    ip("link", "add", end, "master", "bridge", "type", "veth", "peer", "name", inner, "netns", str(pid))
    ip("link", "set", end, "up")
    commands = (
        "link set lo up",
        f"link set {inner} name eth0 address {address}",
        "link set eth0 up",
        f"address add {PREFIX}{number}/24 dev eth0",
    )
    script = "\n".join(commands)
    subprocess.run(
        ["nsenter", "--target", str(pid), "--net", "ip", "-batch", "-"],
        input=script.encode(),
        check=True,
        capture_output=True,
        timeout=30,
    )
    return end
