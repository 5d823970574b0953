"""Reading ahead changes nothing of what is read."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plateway.ahead import CHUNKS, read_ahead
from plateway.errors import Unavailable


@given(st.lists(st.binary(max_size=9), max_size=20))
def test_chunks_come_in_their_order(chunks: list[bytes]) -> None:
    assert [*read_ahead(chunks)] == chunks


@pytest.mark.parametrize("good", [0, 1, CHUNKS, CHUNKS + 3])
def test_what_reading_raises_rises_after_what_came_before(good: int) -> None:
    def source() -> Iterator[bytes]:
        yield from [b"good"] * good
        raise Unavailable("the link is down")

    came: list[bytes] = []
    with pytest.raises(Unavailable, match="link is down"):
        for chunk in read_ahead(source()):
            came += [chunk]
    assert came == [b"good"] * good


def test_few_chunks_are_held_and_the_source_is_closed_early() -> None:
    """Stopped after one chunk: no more were read than are held, no thread is left, and the source knows."""
    read, closed = [0], threading.Event()

    def source() -> Iterator[bytes]:
        try:
            while True:
                read[0] += 1
                yield b"more"
        finally:
            closed.set()

    chunks = read_ahead(source())
    assert next(chunks) == b"more"
    chunks.close()  # type: ignore[attr-defined]  # a generator
    assert read[0] <= CHUNKS + 1
    assert closed.is_set()
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


HANGING = """
import threading, time
from plateway.ahead import read_ahead

def source():
    yield b"there"
    print("hangs", flush=True)
    time.sleep(3600)

threading.Thread(target=lambda: list(read_ahead(source())), daemon=True).start()
time.sleep(0.5)
"""


def test_a_disk_that_hangs_does_not_keep_the_process() -> None:
    """Whoever waited for it was abandoned, in a daemon thread; the process ends all the same."""
    done = subprocess.run([sys.executable, "-c", HANGING], timeout=60, check=True, capture_output=True)
    assert done.stdout == b"hangs\n"
