"""Workers that all want the same: ``python -m tests.faults.crowd`` reads a job as JSON and forks that many exporters.

Each opens the catalogue and the bucket by itself, waits for the others, takes all that is due, in the same order,
and writes down what came of it. The process ids are told first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.store import open_store
from plateway.store.wrappers import Prefixed
from tests.lab import Clock, Lab


def work(job: dict[str, Any], number: int, start: int) -> None:
    """Export all that is due, once everybody is ready."""
    told = job["endpoint"]
    endpoint = Endpoint(told["url"], told["access_key_id"], SecretStr(told["secret_access_key"]))
    store = Prefixed(open_store(job["bucket"], endpoint), job["prefix"])
    url = f"{job['catalog']}?timeout=60" if job["catalog"].startswith("sqlite") else job["catalog"]
    lab = Lab(Path(job["home"]), store, Clock(), Catalog(url))  # so many wait long for their turn on a slow disk
    due = pipeline.due(lab.site, "export")
    os.read(start, 1)
    outcomes = [pipeline.as_dict(one) for one in pipeline.each(pipeline.export, lab.site, due)]
    Path(job["home"], f"told-{number}").write_text(json.dumps(outcomes))
    lab.catalog.close()


def main() -> None:
    """Fork the workers, let them begin together, wait for all."""
    job = json.loads(sys.stdin.readline())
    start, ready = os.pipe()
    workers = []
    for number in range(job["workers"]):
        pid = os.fork()
        if pid == 0:
            try:
                work(job, number, start)
            finally:
                os._exit(0)
        workers.append(pid)
    print(json.dumps(workers), flush=True)
    os.write(ready, b"!" * len(workers))
    for pid in workers:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
