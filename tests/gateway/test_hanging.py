"""S3 and disks that hang: pages and the events API answer out of the catalogue, and say what could not be read."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Unavailable
from plateway.gateway import Parts
from plateway.gateway.pages import dashboard
from plateway.gateway.probes import MOST, STUCK, Probes
from plateway.instruments import Instrument
from plateway.local.seaweed import PLAIN
from plateway.pipeline import Site as Line
from plateway.store import Store, open_store
from tests.gateway.conftest import GENEROUS, Gateway, running
from tests.gateway.sites import Site, site

BOUND = 2.0  # seconds for each look
SLACK = 1.5  # of a machine that is busy with other tests


@contextmanager
def silent_server() -> Iterator[str]:
    """Listen, accept every connection and never answer; gives the address."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening, ExitStack() as held:

        def accept() -> None:
            with suppress(OSError):  # it is closed
                while True:
                    held.enter_context(listening.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@dataclass(frozen=True)
class Hung:
    """A gateway before what hangs, and the site that it shows."""

    gateway: Gateway
    site: Site
    released: threading.Event

    @property
    def event(self) -> str:
        """The event's id."""
        return str(self.site.ref.id)

    def client(self) -> httpx.Client:
        """Send a request as anybody."""
        return httpx.Client(base_url=self.gateway.url, trust_env=False, verify=PLAIN, timeout=60)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with one event that is exported and verified."""
    with site(tmp_path_factory.mktemp("hanging"), objects="memory://hanging") as one:
        yield one


Hang = Callable[..., Hung]


@pytest.fixture
def hang(known: Site, tmp_path: Path) -> Iterator[Hang]:
    """Start gateways over the site's catalogue whose S3, or whose bench, hangs."""
    with ExitStack() as stack:

        def started(*, s3: bool = False, bench: bool = False) -> Hung:
            released = threading.Event()
            stack.callback(released.set)
            secret = SecretStr("s")
            url = stack.enter_context(silent_server()) if s3 else None
            endpoint = Endpoint(url=url, access_key_id="k", secret_access_key=secret)
            place = f"s3://{known.lab.store.name}" if s3 else (known.lab.home / "bucket").as_uri()

            def instrument(system: str) -> Instrument:
                if bench:
                    released.wait()
                return known.lab.instrument(system)

            def site() -> Line:
                store: Store = open_store(place, endpoint)
                catalog = Catalog(f"sqlite:///{known.lab.home}/catalogue.db")
                return Line(catalog, store, known.lab.bench, instrument, owner="hung")

            parts = Parts(
                home=tmp_path,
                tokens=tmp_path / "tokens.json",
                objects="s3://objects" if s3 else None,
                endpoint=endpoint,
                site=site,
                open=True,
                limits=GENEROUS,
            )
            return Hung(stack.enter_context(running(parts)), known, released)

        yield started


def timed(http: httpx.Client, path: str, *, within: float = BOUND + SLACK) -> httpx.Response:
    """Send a request, and compare how long the answer took."""
    began = time.monotonic()
    answer = http.get(path)
    assert time.monotonic() - began < within, path
    return answer


def test_pages_and_events_while_s3_hangs(hang: Hang) -> None:
    """Facts of the catalogue are there, what is in the bundle is not, and that is said."""
    hung = hang(s3=True)
    with hung.client() as http:
        for path in ("/", "/dashboard", "/api/1/events", "/api/1/exports", "/api/1/daily-stats", "/metrics"):
            assert timed(http, path).status_code == 200
        page = timed(http, f"/events/{hung.event}")
        export = hung.site.lab.ledger(hung.site.ref).export
        assert export is not None
        assert page.status_code == 200 and export.sha256 in page.text and 'class="notice"' in page.text
        told = timed(http, f"/api/1/events/{hung.event}").json()
        assert (told["state"], told["sha256"], told["raw_present"]) == ("exported", export.sha256, True)
        assert told["manifest"] is None and told["manifest_error"]
        assert [one["what"] for one in told["history"]][:1] == ["announced"]
        image = hung.site.images[0]
        for path in (
            f"/api/1/events/{hung.event}/images",
            f"/api/1/events/{hung.event}/images/{image}",
            f"/api/1/events/{hung.event}/images/{image}/thumbnail",
            f"/events/{hung.event}/images/{image}",
            f"/events/{hung.event}/cover",
        ):
            assert timed(http, path).status_code == 503


def test_a_crowd_waits_no_longer(hang: Hang) -> None:
    """Fifty people at a time, and again: each has the page in bounded time, and the last ones at once."""
    hung = hang(s3=True)

    def visit(_: int) -> float:
        began = time.monotonic()
        with hung.client() as http:
            assert http.get(f"/events/{hung.event}").status_code == 200
        return time.monotonic() - began

    with ThreadPoolExecutor(25) as pool:
        assert max(pool.map(visit, range(50))) < 2 * (BOUND + SLACK)
    with hung.client() as http:
        assert timed(http, f"/events/{hung.event}", within=1.0).status_code == 200
        assert timed(http, "/health", within=0.5).status_code == 200


def test_readiness_while_s3_hangs(hang: Hang) -> None:
    """All checks run at a time: the answer says which parts do not answer, within the bound, however often it asked."""
    hung = hang(s3=True)
    with hung.client() as http:
        for _ in range(3):
            answer = timed(http, "/ready")
            checks = answer.json()["checks"]
            assert answer.status_code == 503
            assert {name for name, told in checks.items() if told != "ok"} == {"objects", "bucket"}
        assert timed(http, "/health", within=0.5).status_code == 200


def test_a_disk_that_hangs(hang: Hang) -> None:
    """Whether raw images are there is not known then; everything else is, and so are they once the disk answers."""
    hung = hang(bench=True)
    with hung.client() as http:
        (listed,) = timed(http, "/api/1/events").json()["events"]
        assert (listed["id"], listed["state"], listed["raw_present"]) == (hung.event, "exported", None)
        told = timed(http, f"/api/1/events/{hung.event}").json()
        assert told["raw_present"] is None and len(told["manifest"]) >= len(hung.site.images)
        page = timed(http, f"/events/{hung.event}")
        assert page.status_code == 200 and "does not answer" in page.text and hung.site.images[0] in page.text
        assert timed(http, f"/api/1/events/{hung.event}/images").status_code == 200
        for path in ("/", "/dashboard", "/ready"):
            assert timed(http, path).status_code == 200
        threads = threading.active_count()
        for _ in range(20):
            assert timed(http, "/api/1/events").status_code == 200
        assert threading.active_count() <= threads + STUCK
        hung.released.set()
        until = time.monotonic() + 10
        while http.get(f"/api/1/events/{hung.event}").json()["raw_present"] is not True:
            assert time.monotonic() < until


# ------------------------------------------------------------------------------------------------------ bounded reads


def test_a_read_that_hangs_is_given_up() -> None:
    """In time, also where several hang together; one of another place goes on."""
    probes, released = Probes(seconds=0.2), threading.Event()
    began = time.monotonic()
    hung = [probes.start(f"place {number}", released.wait) for number in range(5)]
    for one in hung:
        with pytest.raises(Unavailable):
            one.result()
    assert time.monotonic() - began < 1
    assert probes.read("place", lambda: 7) == 7
    released.set()


def test_threads_that_hang_do_not_pile_up() -> None:
    """A hundred reads of a place that hangs leave a handful of threads; it is read again when they end."""
    probes, released = Probes(seconds=0.05), threading.Event()
    before = threading.active_count()
    for _ in range(100):
        with pytest.raises(Unavailable):
            probes.read("mount", released.wait)
    assert threading.active_count() - before <= STUCK
    probes.read("other", lambda: None)
    released.set()
    until = time.monotonic() + 10
    while True:
        with suppress(Unavailable):
            assert probes.read("mount", lambda: "again") == "again"
            break
        assert time.monotonic() < until


def test_many_reads_at_once_are_bounded() -> None:
    """Those that come before any is seen to hang are limited, too."""
    probes, released = Probes(seconds=5), threading.Event()
    before = threading.active_count()
    started = [probes.start("mount", released.wait) for _ in range(10 * MOST)]
    assert threading.active_count() - before <= MOST
    released.set()
    for one in started[:MOST]:
        assert one.result() is True
    with pytest.raises(Unavailable):
        started[-1].result()


@pytest.mark.parametrize("error", [Unavailable("x"), ValueError("x"), TimeoutError("x"), SystemExit(3)])
def test_errors_of_a_read_rise(error: BaseException) -> None:
    """Whatever kind they are; one of time is `Unavailable`."""

    def fail() -> None:
        raise error

    with pytest.raises(Unavailable if isinstance(error, TimeoutError) else type(error)):
        Probes().read("place", fail)


def test_figures_that_hang_end_no_process_late() -> None:
    """The dashboard's figures are made in a thread that nobody waits for."""
    released = threading.Event()
    kept = dashboard.BackgroundCache(lambda _: released.wait(), seconds=60)
    assert kept.get("a", patience=0.05) is None
    assert [one.daemon for one in threading.enumerate() if one.name == "figures"] == [True]
    released.set()
