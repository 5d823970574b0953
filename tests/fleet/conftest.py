"""A site as deployments/compose.yaml has it, run without an engine: in namespaces, with an S3 server beside it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from plateway import simulator
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.local import seaweed
from plateway.simulator import Announced, Simulated
from plateway.store import open_store
from tests.faults.invariants import World, check
from tests.fleet import compose, network
from tests.fleet.compose import Service
from tests.fleet.engine import PROJECT, Container, Engine, find_postgres
from tests.lab import Clock, Lab

DEPLOYMENTS = PROJECT / "deployments"
OWNER = 1000  # of the images on the bench
SYSTEMS = ("prince", "aretha", "bjork")
BUCKET = "plateway-raw"
REQUIRED = "PLATEWAY_FLEET"
BRING_UP = 600.0  # seconds; under a minute on two idle cores
S3_PORT = 8333


class Now(Clock):
    """The time that it is."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Fleet:
    """The running site, seen from its network: what its users and instruments do, and what is true of it."""

    home: Path
    engine: Engine
    api: str
    auth: httpx.BasicAuth = field(repr=False)
    lab: Lab
    announced: list[Announced] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)

    def acquire(self, count: int, *, images: int = 2) -> list[Announced]:
        """Have the instruments acquire events, a second apart by their clocks."""
        now = datetime.now(UTC)
        events = []
        for _ in range(count):
            number = len(self.announced)
            name = SYSTEMS[number % len(SYSTEMS)]
            instrument = Simulated(name, "timestep", self.lab.bench / name, images=images, size=16)
            at = now + timedelta(milliseconds=number)
            events.append(simulator.acquire(instrument, now=at, number=number))
            self.announced.append(events[-1])
        return events

    def verified(self) -> int:
        """Count the exports that have evidence."""
        return sum(bool(one.export and one.export.evidence) for one in self.lab.catalog.ledgers())

    def until_all_verified(self, *, seconds: float) -> float:
        """Wait until every event that was acquired is exported and verified; return the seconds it took."""
        return self.engine.until(lambda: self._verified_now() == len(self.announced), seconds=seconds)

    def _verified_now(self) -> int:
        time.sleep(0.4)  # beside the engine's own pause: a look reads every ledger
        return self.verified()

    def check(self) -> None:
        """Check the invariants, that every event is whole in the bucket, and that no upload is left open."""
        world = World(self.lab, self.announced, seen=self.seen)
        assert check(world) == []
        exported = [one.export.key for one in self.lab.catalog.ledgers() if one.export]
        objects = [one.key for one in self.lab.store.list() if one.key in exported]
        assert len(exported) == len(set(exported)) == len(objects) == len(self.announced)
        assert list(self.lab.store.uploads()) == []

    def held(self) -> list[str]:
        """List the owners of leases that have not expired."""
        return self.lab.catalog.lease_owners(now=self.lab.catalog.now())

    def post(self, path: str, **body: Any) -> Any:
        """Send a request to Prefect's API."""
        with httpx.Client(auth=self.auth, timeout=60, trust_env=False) as client:
            return client.post(f"{self.api}/{path}", json=body).raise_for_status().json()

    def events(self, name: str) -> list[dict[str, Any]]:
        """List the events of this name that Prefect has."""
        found: list[dict[str, Any]] = self.post("events/filter", filter={"event": {"name": [name]}})["events"]
        return found

    def runs(self, flow: str, **state: Any) -> list[dict[str, Any]]:
        """List the runs of a flow, the newest first."""
        found: list[dict[str, Any]] = self.post(
            "flow_runs/filter",
            flows={"name": {"any_": [flow]}},
            flow_runs={"state": state} if state else {},
            sort="EXPECTED_START_TIME_DESC",
        )
        return found

    def run(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment, and return its id."""
        with httpx.Client(auth=self.auth, timeout=60, trust_env=False) as client:
            found = client.get(f"{self.api}/deployments/name/{deployment}").raise_for_status().json()
        return str(self.post(f"deployments/{found['id']}/create_flow_run", parameters=parameters)["id"])

    def state_of(self, run: str) -> dict[str, Any]:
        """Read the state of a flow run."""
        with httpx.Client(auth=self.auth, timeout=60, trust_env=False) as client:
            found = client.get(f"{self.api}/flow_runs/{run}").raise_for_status().json()
        state: dict[str, Any] = found["state"]
        return state

    @property
    def workers(self) -> list[Container]:
        """The containers of workers."""
        return self.engine.of("worker")

    def setbacks(self) -> int:
        """Count the events that had a setback."""
        return sum(one.setback("export") is not None for one in self.lab.catalog.ledgers())

    def states(self) -> set[str]:
        """List the names of the states of all runs that moved images."""
        return {str(run["state_name"]) for flow in ("discover", "export") for run in self.runs(flow)}

    def carrier(self) -> Container:
        """Return the worker whose run holds leases."""
        owners = self.held()
        for one in self.workers:
            if any(one.name in owner for owner in owners):
                return one
        raise AssertionError(f"nobody holds a lease: {owners}")


def write_settings(home: Path, values: dict[str, str]) -> dict[str, str]:
    """Write site.env and secrets.env: the examples, with these values filled in; return what they have."""
    rest = dict(values)
    variables: dict[str, str] = {}
    for name in ("site", "secrets"):
        lines = (DEPLOYMENTS / f"{name}.example.env").read_text().splitlines()
        for at, line in enumerate(lines):
            variable = line.removeprefix("#").partition("=")[0]
            if variable in rest:
                lines[at] = f"{variable}={rest.pop(variable)}"
        (home / f"{name}.env").write_text("\n".join(lines))
        (home / f"{name}.env").chmod(0o600)
        variables |= compose.read_environment(home / f"{name}.env")
    assert not rest, f"in no example: {[*rest]}"
    return variables


def s3_service(home: Path) -> tuple[Service, seaweed.Identity]:
    """Describe an S3 server that is not of the site, with a key for it."""
    data = home / "s3"
    data.mkdir()
    admin = seaweed.enroll(data / seaweed.CONFIG)
    seaweed.lock_ports(data)
    ports = {name: S3_PORT + at for at, name in enumerate(seaweed.SERVICES)}
    command = [
        word.replace("-ip.bind=127.0.0.1", "-ip.bind=0.0.0.0")
        for word in seaweed.command(data, data / seaweed.CONFIG, ports)
    ]
    script = f"cd {data} && exec {' '.join(command)}"
    service = Service(
        name="s3",
        image="seaweedfs",
        command=["sh", "-c", script],
        environment=seaweed.environment(data),
        user="0:0",
        volumes=[f"{data}:{data}"],
        secrets={},
        depends_on={},
        health=None,
        restart="unless-stopped",
        stop_grace=15,
        init=False,
        read_only=False,
        no_capabilities=False,
        no_new_privileges=False,
        tmpfs=[],
    )
    return service, admin


@contextmanager
def running(home: Path, *, workers: int) -> Iterator[Fleet]:
    """Start a site, and stop it."""
    for name in SYSTEMS:
        (home / "bench" / name / "events").mkdir(parents=True)
    for path in (home / "bench", *(home / "bench").rglob("*")):
        os.chown(path, OWNER, OWNER)
    with ExitStack() as stack:
        stack.enter_context(network.entered())
        engine = Engine(home, compose.read_image(DEPLOYMENTS / "Dockerfile"))
        stack.callback(engine.down)
        service, admin = s3_service(home)
        (s3,) = engine.create(service)
        url = f"http://{s3.address}:{S3_PORT}"
        password, auth = secrets.token_hex(12), f"fleet:{secrets.token_hex(12)}"
        variables = write_settings(
            home,
            {
                "BENCH": str(home / "bench"),
                "BENCH_OWNER": f"{OWNER}:{OWNER}",
                "PLATEWAY_BUCKET_URL": f"s3://{BUCKET}",
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": admin.access_key_id,
                "AWS_SECRET_ACCESS_KEY": admin.secret_access_key,
                "CATALOGUE_PASSWORD": password,
                "SERVER_PASSWORD": secrets.token_hex(12),
                "API_AUTH": auth,
                "PLATEWAY_SETTLE_SECONDS": "0s",
                "PLATEWAY_WORK_POOL": "resident",
            },
        )
        (home / "compose.yaml").write_bytes((DEPLOYMENTS / "compose.yaml").read_bytes())
        s3.start()
        engine.until(lambda: seaweed.ready(url), seconds=30)
        seaweed.create(url, BUCKET, admin)
        for name, one in compose.read_services(home / "compose.yaml", variables).items():
            engine.create(one, scale=workers if name == "worker" else 1)
        engine.up(seconds=BRING_UP)
        (catalogue,), (prefect,) = engine.of("catalogue"), engine.of("prefect")
        endpoint = Endpoint(
            url=url, access_key_id=admin.access_key_id, secret_access_key=SecretStr(admin.secret_access_key)
        )
        catalog = stack.enter_context(
            closing(Catalog(f"postgresql://plateway:{password}@{catalogue.address}/plateway"))
        )
        lab = Lab(home, open_store(f"s3://{BUCKET}", endpoint), Now(), catalog)
        fleet = Fleet(home, engine, f"http://{prefect.address}:4200/api", httpx.BasicAuth(*auth.split(":")), lab)
        yield fleet


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A site with two workers; the tests are skipped where this machine permits no namespaces.

    With ``PLATEWAY_FLEET=require`` they fail there instead: for machines that are known to permit them.
    """
    obstacle = network.find_obstacle() or ("" if find_postgres() else "there is no PostgreSQL server of Debian's")
    if obstacle and os.environ.get(REQUIRED) == "require":
        pytest.fail(f"a fleet is required, and cannot be made: {obstacle}")
    if obstacle:
        pytest.skip(f"a fleet cannot be made: {obstacle}")
    home = tmp_path_factory.mktemp("fleet")
    for parent in (
        home,
        home.parent,
        home.parent.parent,
    ):  # pytest's are its owner's alone; secrets have modes of their own
        parent.chmod(0o755)
    with running(home, workers=2) as fleet:
        yield fleet
