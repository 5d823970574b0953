"""The servers of this run, started when the first test asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plateway.catalog import Catalog
from plateway.store import open_store
from tests.bridges.servers import Rabbit, RedisServer, Server, missing
from tests.databases import furnish
from tests.lab import Clock, Lab


def running(server: type[Server], program: str, home: Path) -> Iterator[Server]:
    if reason := missing(program):
        pytest.skip(reason)
    one = server(home)
    try:
        one.start()
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="package")
def rabbit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A RabbitMQ for all these tests: Erlang takes seconds to start."""
    yield from running(Rabbit, "rabbitmq-server", tmp_path_factory.mktemp("rabbitmq"))


@pytest.fixture
def rabbit(rabbit_server: Rabbit) -> Rabbit:
    """A RabbitMQ that runs."""
    if rabbit_server.process is None or rabbit_server.process.poll() is not None:
        rabbit_server.start()
    return rabbit_server


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Server]:
    """A Redis with nothing in it: it starts in a tenth of a second."""
    home = tmp_path / "redis"
    home.mkdir()
    yield from running(RedisServer, "redis-server", home)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A bench with the systems prince and aretha, a bucket and a catalogue."""
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalogue.db'}", clock=clock)
    furnish(catalog)
    for system in ("prince", "aretha"):
        (tmp_path / "bench" / system / "events").mkdir(parents=True)
    (tmp_path / "bucket").mkdir()
    yield Lab(tmp_path, open_store((tmp_path / "bucket").as_uri()), clock, catalog)
    catalog.close()
