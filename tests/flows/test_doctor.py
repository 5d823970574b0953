"""`plateway doctor` on a real Prefect server: server, pool, workers and deployments."""

from __future__ import annotations

import pytest

from plateway import doctor
from plateway.doctor import State
from tests.flows.conftest import Site, until


@pytest.fixture
def known(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The server is in the environment, as on a site of several machines."""
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, site.env[name])
    return site


def states(site: Site, **otherwise: str) -> dict[str, State]:
    return {one.check: one.state for one in doctor.check_prefect(site.told(**otherwise))}


@pytest.mark.usefixtures("worker")
def test_a_provisioned_server_with_a_worker_is_ok(known: Site) -> None:
    """Each of the four is reported."""
    names = {"Prefect server", "Prefect pool", "Prefect workers", "Prefect deployments"}
    until(lambda: states(known) == dict.fromkeys(names, State.OK))


def test_a_missing_pool_and_a_wrong_password_are_named(known: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do."""
    assert states(known, work_pool="fast") == {"Prefect server": State.OK, "Prefect pool": State.WRONG}
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "plateway:wrong")
    (found,) = doctor.check_prefect(known.settings)
    assert (found.state, found.text) == (State.WRONG, "the server answers 401")
    assert "PREFECT_API_AUTH_STRING" in found.remedy
