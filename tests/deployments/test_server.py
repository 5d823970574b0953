"""The server that wraps Prefect's: what it does so that nothing waits for long."""

from __future__ import annotations

import subprocess
import sys

GARBAGE = """
import gc, threading, time
from deployments import server

class Slow:
    def __init__(self):
        self.me = self
    def __del__(self):
        freed.append(threading.current_thread().name)
        time.sleep(2)

freed = []
server.PAUSE = 0.1
server.collect_aside()
Slow()
started = longest = last = time.monotonic()
longest = 0.0
while not freed or time.monotonic() - started < 1:
    made = [[] for _ in range(10_000)]  # what makes the collector run, where it runs by itself
    now = time.monotonic()
    longest, last = max(longest, now - last), now
    assert now - started < 20, "nothing was collected"
print(freed, longest < 1.5)
"""


def test_garbage_that_waits_holds_nobody_up() -> None:
    """What takes its time to be let go of is let go of in a thread that nobody waits for."""
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "['garbage'] True\n", done.stderr
