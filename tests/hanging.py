"""A disk that hangs, as a network mount does whose server is gone: a FUSE file system that nobody serves."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
DETACH = 2  # MNT_DETACH of umount2(2)


@contextmanager
def hung(place: Path) -> Iterator[None]:
    """Mount it at a directory; when the block is left, whoever hangs there gets an error, and it is unmounted."""
    try:
        served = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        pytest.skip("no FUSE on this machine")
    try:
        options = f"fd={served},rootmode=40000,user_id=0,group_id=0".encode()
        if LIBC.mount(b"plateway-test", os.fsencode(place), b"fuse", 0, options) != 0:
            pytest.skip(f"no mounts by this user: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            os.close(served)  # which ends the connection
            served = -1
            LIBC.umount2(os.fsencode(place), DETACH)
    finally:
        if served >= 0:
            os.close(served)
