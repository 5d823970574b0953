"""A backlog that is more than one run should take: discover starts others, and together they export each event once."""

from __future__ import annotations

import itertools
import subprocess
from contextlib import closing
from datetime import UTC, datetime

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

from flows import sharing
from plateway import pipeline, simulator
from plateway.events import Ref
from plateway.pipeline import open_site
from plateway.simulator import Simulated
from tests.flows.conftest import Site, ask, ended, until

SYSTEM = "crowded"
NUMBERS = itertools.count()


def acquire_five(site: pipeline.Site) -> list[Ref]:
    """Acquire five events, and register until each is complete."""
    one = Simulated(SYSTEM, "timestep", site.root / SYSTEM, images=2, size=32)
    refs = [Ref(simulator.acquire(one, now=datetime.now(UTC), number=next(NUMBERS)).id, 1) for _ in range(5)]

    def complete() -> bool:
        pipeline.register(site)
        found = site.catalog.ledgers(refs=refs)
        return len(found) == 5 and all(ledger.event.sealed_at for ledger in found)

    until(complete)
    return refs


def waiting(site: pipeline.Site) -> int:
    """Count what waits for an export; a run that an earlier test caused may have taken it."""
    return site.catalog.backlog(now=site.catalog.now(), limit=9)


def test_others_take_part_of_a_backlog(
    site: Site, worker: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run for each share beyond the first, as long as there are workers; each event is exported once."""

    async def deployment(client: PrefectClient) -> str:
        return str((await client.read_deployment_by_name("discover/plateway")).id)

    monkeypatch.setattr(sharing, "SHARE", 2)
    with closing(open_site(site.settings)) as opened:
        refs = next(refs for refs in map(acquire_five, [opened] * 4) if waiting(opened) >= 5)
        assert ask(lambda _: sharing.start_runs(opened, site.settings)) == 0  # in no deployment
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", ask(deployment))
        assert ask(lambda _: sharing.start_runs(opened, site.settings)) == 0  # the one worker is this one's
        monkeypatch.setattr(sharing, "OURS", set())
        assert ask(lambda _: sharing.start_runs(opened, site.settings)) == 2
        mine = FlowRunFilter(tags=FlowRunFilterTags(all_=["share"]))
        runs = ask(lambda client: client.read_flow_runs(flow_run_filter=mine))
        assert [ended(run.id).state_name for run in runs] == ["Completed", "Completed"]
        for ref in refs:
            ledger = opened.catalog.ledger(ref)
            assert ledger.lease is not None
            assert ledger.lease.fence == 1
            assert ledger.export is not None
            assert ledger.export.evidence
