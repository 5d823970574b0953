"""Both kinds of client as one, and servers to try them on: a real gateway, and one that misbehaves as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, TypeVar, cast
from uuid import uuid4

import pytest

from plateway.client import AsyncPlateway, AsyncRestStore, Plateway, RestStore
from plateway.gateway import Parts
from tests.client.scripted import Scripted
from tests.gateway.conftest import GENEROUS, Gateway, running

T = TypeVar("T")
DELAY = 0.02  # seconds of the first pause

Open = Callable[..., RestStore]
Enter = Callable[..., Plateway]


class Blocking:
    """An asynchronous client, used as a synchronous one."""

    def __init__(self, client: Any) -> None:
        self._client, self._runner = client, asyncio.Runner()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def called(*args: Any, **options: Any) -> Any:
            found = method(*args, **options)
            return self._items(found) if isinstance(found, AsyncGenerator) else self.wait(found)

        return called

    def wait(self, found: Awaitable[T]) -> T:
        """Let the loop run until there is a result."""

        async def awaited() -> T:
            return await found

        return self._runner.run(awaited())

    def leave(self) -> None:
        """Close the client and the loop."""
        self.wait(self._client.close())
        self._runner.close()

    def _items(self, stream: AsyncGenerator[Any, None]) -> Iterator[Any]:
        try:
            while True:
                yield self.wait(anext(stream))
        except StopAsyncIteration:
            return
        finally:
            self.wait(stream.aclose())


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which client it is."""
    found: str = request.param
    return found


@pytest.fixture
def store(kind: str) -> Iterator[Open]:
    """Open stores of either kind; pauses are short unless told otherwise."""
    opened: list[Any] = []

    def made(url: str, secret: str = "secret", *, retry_delay: float = DELAY, **options: Any) -> RestStore:
        if kind == "sync":
            opened.append(RestStore.create(url, secret, retry_delay=retry_delay, **options))
        else:
            opened.append(Blocking(AsyncRestStore.create(url, secret, retry_delay=retry_delay, **options)))
        return cast("RestStore", opened[-1])

    yield made
    for one in opened:
        one.leave() if isinstance(one, Blocking) else one.close()


@pytest.fixture
def plateway(kind: str) -> Iterator[Enter]:
    """Open clients for events of either kind."""
    opened: list[Any] = []

    def made(url: str, secret: str | None = "secret", **options: Any) -> Plateway:
        client = (Plateway if kind == "sync" else AsyncPlateway)(url, secret, retry_delay=DELAY, **options)
        opened.append(client if kind == "sync" else Blocking(client))
        return cast("Plateway", opened[-1])

    yield made
    for one in opened:
        one.leave() if isinstance(one, Blocking) else one.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for objects, for all tests of a module: tests have keys of their own."""
    home = tmp_path_factory.mktemp("gateway")
    place = f"memory://{uuid4().hex}"
    with running(Parts(home=home, tokens=home / "tokens.json", objects=place, limits=GENEROUS)) as one:
        one.token("all")
        yield one


@pytest.fixture
def objects(gateway: Gateway, store: Open) -> RestStore:
    """A store of either kind on the gateway, that may do everything."""
    return store(gateway.url, gateway.secrets["all"])


@pytest.fixture
def own() -> str:
    """A prefix of this test's own."""
    return f"{uuid4().hex[:8]}/"


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that answers as it is told."""
    with Scripted() as server:
        yield server
