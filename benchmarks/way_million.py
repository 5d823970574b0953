"""Questions to a catalogue with a million events, in a process of their own: seconds and CPU of each repetition.

    python -m benchmarks.way_million QUESTION ROUNDS

The site is that of the settings. Prints a JSON line: the seconds of the first repetition, and the median of the others.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import median, worked
from plateway import pipeline, settings
from plateway.gateway import Parts
from plateway.ledger import STATES
from plateway.pipeline import Site
from plateway.pipeline.context import open_site
from tests.filling import END, PERIOD
from tests.gateway.conftest import GENEROUS, Gateway, running

MIDDLE = END - PERIOD / 2
EXPORTS = f"/api/1/exports?start={END - PERIOD:%Y-%m-%dT00:00:00Z}&end={END:%Y-%m-%dT%H:00:00Z}&limit=500"
PAGES = {
    "metrics": "/metrics",
    "dashboard": "/dashboard",
    "find": "/",
    "find by experiment": f"/?text={MIDDLE:%Y%m}01_007",
    "exports of six months": EXPORTS,
    "exports, offset 300,000": f"{EXPORTS}&offset=300000",
    "archives": "/api/1/archives?limit=100&offset=10000",
    "daily-stats": "/api/1/daily-stats",
    **{f"events that are {state}": f"/api/1/events?state={state}" for state in STATES},
}


@contextmanager
def gateway(site: Site) -> Iterator[Gateway]:
    """Run a gateway before the site, without its cache of figures: each answer is computed."""
    with tempfile.TemporaryDirectory() as home:
        parts = Parts(home=Path(home), tokens=Path(home, "tokens.json"), limits=GENEROUS, site=lambda: site)
        with running(parts) as one:
            yield one


@contextmanager
def asking(name: str, site: Site) -> Iterator[Callable[[], Any]]:
    """Provide what is repeated."""
    if name == "overview":  # what /metrics computes, at most every 15 s
        yield lambda: site.catalog.overview(days=1, now=site.catalog.now())
    elif name == "report":
        yield lambda: pipeline.report(site)
    elif name == "accounts":  # the catalogue's side of reconcile
        yield lambda: sum(1 for _ in site.catalog.accounts())
    elif name == "register":
        yield lambda: pipeline.register(site)
    else:
        with gateway(site) as one, httpx.Client(base_url=one.url, timeout=600, trust_env=False) as http:
            http.headers["authorization"] = f"Bearer {one.token('bench')}"
            path = PAGES.get(name) or f"/events/{site.catalog.search(limit=1, until=MIDDLE)[0].ref.id}"
            yield lambda: http.get(path).raise_for_status()


def main() -> None:
    """Send a request and print what it took."""
    name, rounds = sys.argv[1], int(sys.argv[2])
    config = settings.load()
    with closing(open_site(config)) as site, asking(name, site) as ask:
        costs = []
        for _ in range(rounds):
            with worked() as spent:
                ask()
            costs.append(spent)
    later = costs[1:] or costs
    told = {part: median(one[part] for one in later) for part in ("seconds", "cpu")}
    print(json.dumps({"first": costs[0]["seconds"], **told}))


if __name__ == "__main__":
    main()
