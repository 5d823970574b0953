"""A site of several machines comes up as deployments/compose.yaml has it, works, and survives a killed worker."""

from __future__ import annotations

import pytest

from tests.fleet.conftest import OWNER, Fleet
from tests.fleet.engine import read_status

pytestmark = [pytest.mark.timeout(900), pytest.mark.soak("to bring a site up takes some minutes on a busy machine")]
BURST = 30


def test_every_part_runs_as_it_declares(fleet: Fleet) -> None:
    """Each container has the user of its service, no capability, and a root that it cannot write to."""
    for name in ("worker-1", "worker-2", "gateway", "sensor", "prefect"):
        one = fleet.engine.containers[name]
        status = read_status(one.main_process())
        assert set(status["Uid"]) == {str(OWNER)}, name
        assert int(status["CapBnd"][0], 16) == 0, name
        assert one.fails("touch", "/app/written"), name
        assert one.fails("touch", "/var/written"), name
        assert not one.fails("touch", "/var/lib/plateway/written"), name


def test_a_burst_is_exported_once(fleet: Fleet) -> None:
    """Events that three instruments announce at once are exported and verified, each by one worker."""
    fleet.acquire(BURST)
    fleet.until_all_verified(seconds=100)
    fleet.check()
    assert fleet.held() == []


def test_a_killed_worker_loses_nothing(fleet: Fleet) -> None:
    """Its run is reported as crashed, its leases are released, and its events are exported within 100 s."""
    fleet.acquire(BURST)
    fleet.engine.until(fleet.held, seconds=60)
    victim = fleet.carrier()
    victim.kill()
    fleet.until_all_verified(seconds=100)
    fleet.engine.until(lambda: not fleet.held(), seconds=100)
    fleet.engine.until(lambda: victim.healthy, seconds=60)
    fleet.check()
