"""What fleets suffer, one after the other on one site, while instruments go on; the invariants hold after each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet.conftest import Fleet

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.soak("faults of a fleet take ten minutes"),
]
BURST = 30
AWAY = 30.0  # seconds
PROMPT = 150.0  # seconds from the end of a fault until all is exported: a busy machine has other work, too


@pytest.fixture(autouse=True)
def checked(fleet: Fleet) -> Iterator[None]:
    """After each fault all that was acquired is in the bucket once, and nobody holds a lease."""
    yield
    fleet.until_all_verified(seconds=PROMPT)
    fleet.engine.until(lambda: not fleet.held(), seconds=100)
    fleet.check()


def test_three_hundred_events(fleet: Fleet) -> None:
    """They are exported by two workers, none of them twice."""
    fleet.acquire(300)
    fleet.until_all_verified(seconds=300)


def test_a_worker_without_its_bench(fleet: Fleet) -> None:
    """It takes no runs and says why; the other worker exports, and no event is set back."""
    blind = fleet.workers[0]
    with blind.unmounted("/bench", fleet.lab.bench):
        fleet.engine.until(lambda: "takes no runs: bench" in blind.log.read_text(), seconds=60)
        fleet.engine.until(lambda: fleet.events("plateway.worker.declined"), seconds=60)
        fleet.acquire(BURST)
        fleet.until_all_verified(seconds=PROMPT)
        assert fleet.setbacks() == 0
    assert blind.restarts == 0


def test_the_database_of_prefect_is_away(fleet: Fleet) -> None:
    """Workers go on asking instead of ending, and export what came meanwhile."""
    restarts = [one.restarts for one in fleet.workers]
    (database,) = fleet.engine.of("prefect-database")
    database.stop()
    fleet.acquire(BURST)
    fleet.engine.pass_time(AWAY)
    database.start()
    fleet.until_all_verified(seconds=PROMPT)
    assert [one.restarts for one in fleet.workers] == restarts


def test_the_catalogue_is_away(fleet: Fleet) -> None:
    """Runs wait for it, and go on."""
    (catalogue,) = fleet.engine.of("catalogue")
    fleet.acquire(BURST)
    catalogue.stop()
    fleet.engine.pass_time(AWAY)
    catalogue.start()
    fleet.engine.until(lambda: catalogue.healthy, seconds=60)


def test_s3_is_away(fleet: Fleet) -> None:
    """What waits is due as soon as it answers."""
    (s3,) = fleet.engine.of("s3")
    fleet.acquire(BURST)
    s3.pause()
    fleet.engine.pass_time(AWAY)
    s3.resume()
