"""How much anybody may ask: budgets, sizes and slowness."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from plateway.errors import Misconfigured
from plateway.gateway import Limits, Parts, Rate, create_app, serve, server, tokens
from plateway.gateway.access import read
from plateway.gateway.address_limits import address, limit_name, networks
from plateway.gateway.rate_limits import Rates
from plateway.store import open_store
from tests.gateway.conftest import Gateway, Start

MIB = 1 << 20
LAX = Rate(1_000_000)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def rates(tmp_path: Path) -> Iterator[Rates]:
    """Budgets under a clock of the test's own."""
    found = Rates(tmp_path / "rates", clock=Clock())
    yield found
    found.close()


def clock(rates: Rates) -> Clock:
    found = rates._clock
    assert isinstance(found, Clock)
    return found


def test_budgets(rates: Rates) -> None:
    """As many as the rate says come at once, then one after the other; each name has its own."""
    rate = Rate(10, 60)
    assert [rates.charge("a", rate) for _ in range(10)] == [0.0] * 10
    assert rates.charge("a", rate) == pytest.approx(6)
    assert rates.charge("b", rate) == 0
    clock(rates).now += 5.9
    assert rates.charge("a", rate) == pytest.approx(0.1)
    clock(rates).now += 0.2
    assert [rates.charge("a", rate) > 0 for _ in range(2)] == [False, True]
    clock(rates).now += 1000
    assert [rates.charge("a", rate) > 0 for _ in range(11)] == [False] * 10 + [True]


def test_budgets_survive_a_restart_of_the_machine(rates: Rates) -> None:
    """A clock that begins again does not lock anybody out."""
    for _ in range(10):
        rates.charge("a", Rate(10, 60))
    clock(rates).now = 3.0
    assert rates.charge("a", Rate(10, 60)) == 0


def test_budgets_of_a_crowd(rates: Rates) -> None:
    """A hundred thousand names fit; who asks much is not forgotten for them."""
    rate = Rate(10, 60)
    for _ in range(10):
        rates.charge("busy", rate)
    for number in range(20_000):
        rates.charge(f"address {number}", rate)
    assert rates.charge("busy", rate) > 0


def test_budgets_are_shared_and_exact(tmp_path: Path) -> None:
    """Threads with files of their own together get exactly what the rate says."""
    both = [Rates(tmp_path / "rates") for _ in range(4)]

    def ask(rates: Rates) -> int:
        return sum(rates.charge("a", Rate(100, 1e6)) == 0 for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, both)) == 100
    for rates in both:
        rates.close()


@pytest.mark.parametrize(
    ("peer", "forwarded", "told"),
    [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # nobody believes it
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),  # what the client said itself counts for nothing
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.1", "2001:db8::1", "2001:db8::1"),
        (None, "198.51.100.1", None),
    ],
)
def test_addresses_behind_proxies(peer: str | None, forwarded: str, told: str | None) -> None:
    """Who asks is the last one before the proxies that are believed."""
    assert address(peer, forwarded, networks(["10.0.0.0/8"])) == told
    assert address(peer, forwarded, ()) == peer


def test_a_customer_pays_once() -> None:
    """Addresses of one IPv6 network share a budget; an IPv4 address written as IPv6 is the same."""
    assert limit_name("2001:db8::1") == limit_name("2001:db8::ffff:1") != limit_name("2001:db8:0:1::1")
    assert limit_name("::ffff:192.0.2.1") == limit_name("192.0.2.1") != limit_name("192.0.2.2")


def limited(answer: httpx.Response) -> bool:
    """Return whether this is 429, and as clients need it."""
    if answer.status_code != 429:
        return False
    assert answer.headers["retry-after"].isdecimal() and int(answer.headers["retry-after"]) >= 1
    assert answer.json() == {"error": {"code": "429", "message": "Too many requests"}}
    return True


def test_a_token_asks_only_so_often(start: Start) -> None:
    """Each token has a budget; another one from the same address has its own."""
    gateway = start(limits=Limits(token=Rate(5, 600), address=LAX))
    with gateway.client() as http, gateway.client(gateway.token("other")) as other:
        assert [limited(http.get("/objects")) for _ in range(7)] == [False] * 5 + [True] * 2
        assert not limited(other.get("/objects"))


def test_failed_logins_are_limited_harder(start: Start) -> None:
    """After some bad tokens of an address there is no more answer to them; good ones go on, health too."""
    gateway = start(limits=Limits(failed=Rate(5, 600)))
    with gateway.client("bad") as http, gateway.client() as good:
        assert [limited(http.get("/objects")) for _ in range(7)] == [False] * 5 + [True] * 2
        assert good.get("/objects").status_code == 200
        assert http.get("/health").status_code == 200


def test_an_address_asks_only_so_often(start: Start) -> None:
    """Whoever asks, and for whatever: an address has a budget. A header that nobody asked for does not change it."""
    gateway = start(limits=Limits(address=Rate(5, 600)))
    with gateway.client() as http:
        spoofed = [{"X-Forwarded-For": f"198.51.100.{number}"} for number in range(7)]
        assert [limited(http.get("/nothing", headers=headers)) for headers in spoofed] == [False] * 5 + [True] * 2


def test_clients_of_a_trusted_proxy_are_told_apart(start: Start) -> None:
    """Behind a proxy that is believed each client has its own budget, by the address that the proxy adds."""
    gateway = start(limits=Limits(address=Rate(2, 600)), trusted=("127.0.0.1",))
    with gateway.client() as http:
        for client in ("198.51.100.1", "6.6.6.6, 198.51.100.2"):
            asked = [http.get("/nothing", headers={"X-Forwarded-For": client}) for _ in range(3)]
            assert [limited(answer) for answer in asked] == [False, False, True]


def test_proxies_that_are_none(tmp_path: Path) -> None:
    """A list of proxies that cannot be read keeps the gateway from starting."""
    with pytest.raises(Misconfigured, match="proxies"):
        create_app(Parts(home=tmp_path, tokens=tmp_path / "tokens.json", trusted=("gate.example",)))


SERVE = """
import sys
from pathlib import Path
from plateway.gateway import Limits, Parts, Rate, serve
if __name__ == "__main__":
    home, port = Path(sys.argv[1]), int(sys.argv[2])
    (home / "objects").mkdir(exist_ok=True)
    limits = Limits(token=Rate(40, 6000), address=Rate(1000000))
    parts = Parts(home=home, tokens=home / "tokens.json", objects=(home / "objects").as_uri(), limits=limits)
    serve(parts, host="127.0.0.1", port=port, workers=2)
"""


def test_two_workers_share_budgets(tmp_path: Path) -> None:
    """Two processes count together: of 100 requests at once exactly as many are answered as the rate says.

    After kill -9 of the process that started them they end by themselves, so that the port is free for the next.
    """
    script = tmp_path / "serving.py"
    script.write_text(SERVE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    made = tokens.add(tmp_path / "tokens.json", "t", ttl=timedelta(days=1), scopes=["read"], now=datetime.now(UTC))
    with subprocess.Popen([sys.executable, str(script), str(tmp_path), str(port)], cwd=Path.cwd()) as process:
        try:
            gateway = Gateway(Parts(home=tmp_path, tokens=tmp_path / "tokens.json"), port)
            waited(gateway)
            headers = {"Authorization": f"Bearer {made.secret}", "Connection": "close"}

            def ask(_: int) -> int:
                return httpx.get(f"{gateway.url}/objects", headers=headers, timeout=30).status_code

            with ThreadPoolExecutor(8) as pool:
                statuses = list(pool.map(ask, range(100)))
            assert sorted(set(statuses)) == [200, 429]
            assert statuses.count(200) == 40
            until = time.monotonic() + 10
            while len(list(read(gateway.parts.log, token="t"))) != 100:
                assert time.monotonic() < until
            workers = psutil.Process(process.pid).children(recursive=True)
            assert len(workers) >= 2
            process.kill()
            _, alive = psutil.wait_procs(workers, 60)
            assert alive == []
        finally:
            process.kill()
            process.wait(20)


def test_a_low_limit_of_files_shuts_nobody_out(tmp_path: Path) -> None:
    """Started by a shell that allows 256 open files, a gateway takes more connections than that."""
    (tmp_path / "serving.py").write_text(SERVE.replace("workers=2", "workers=1"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = f'ulimit -Sn 256; exec "{sys.executable}" "{tmp_path}/serving.py" "{tmp_path}" {port}'
    with subprocess.Popen(["bash", "-c", command], cwd=Path.cwd()) as process, ExitStack() as stack:
        stack.callback(process.terminate)
        gateway = Gateway(Parts(home=tmp_path, tokens=tmp_path / "tokens.json"), port, {"all": "x"})
        waited(gateway)
        for number in range(3, 7):
            silent(stack, gateway, 150, source=f"127.0.0.{number}")
        with visitor(gateway, "127.0.0.2") as http:
            assert seconds(http, "/health")[10] < 0.1


def waited(gateway: Gateway) -> None:
    """Wait until it answers."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            httpx.get(f"{gateway.url}/health")
            return
        time.sleep(0.05)
    raise AssertionError("it does not answer")


KILLED = SERVE.replace("workers=2", "workers=1")


def test_o12_a_killed_gateway_leaves_nothing_visible(tmp_path: Path) -> None:
    """O12: a server that dies in the middle of a PUT leaves what was there; the next one serves it at once."""
    (tmp_path / "serving.py").write_text(KILLED)
    made = tokens.add(tmp_path / "tokens.json", "t", ttl=timedelta(days=1), scopes=tokens.SCOPES, now=datetime.now(UTC))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    gateway = Gateway(Parts(home=tmp_path, tokens=tmp_path / "tokens.json"), port)
    command = [sys.executable, str(tmp_path / "serving.py"), str(tmp_path), str(port)]
    with subprocess.Popen(command, cwd=Path.cwd()) as process:
        waited(gateway)
        with gateway.client(made.secret) as http:
            http.put("/objects/a", content=b"before")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            head = f"PUT /objects/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {made.secret}\r\n"
            line.sendall(f"{head}Content-Length: {20 * MIB}\r\n\r\n".encode() + bytes(10 * MIB))
            time.sleep(0.1)
            process.kill()
    place = open_store((tmp_path / "objects").as_uri())
    assert [one.key for one in place.list()] == ["a"]
    assert b"".join(place.open("a")) == b"before"
    with subprocess.Popen(command, cwd=Path.cwd()) as process:
        waited(gateway)
        with gateway.client(made.secret) as http:
            assert http.get("/objects/a").content == b"before"
            assert http.put("/objects/a", content=b"after").status_code == 200
        process.terminate()
        process.wait(20)


def test_o14_memory_is_for_one_worker(tmp_path: Path) -> None:
    """O14: objects in memory, which workers cannot share, refuse a second worker."""
    with pytest.raises(Misconfigured, match="worker"):
        serve(Parts(home=tmp_path, tokens=tmp_path / "t", objects="memory://x"), host="127.0.0.1", port=0, workers=2)


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(0, size, 65536):
        yield bytes(65536)


@pytest.mark.parametrize("size", [4 * MIB, 40 * MIB])
def test_bodies_that_are_too_large(start: Start, size: int) -> None:
    """More than the limit is 413, told early where the length is told, and at the limit where it is not."""
    gateway = start(limits=Limits(object_size=MIB))
    with gateway.client() as http:
        for content in (bytes(size), pieces(size)):
            answer = http.put("/objects/a", content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["message"] == f"The body has more than {MIB} bytes"
        assert http.get("/objects").json()["keys"] == []
        assert http.put("/objects/a", content=bytes(MIB)).status_code == 200
        assert http.put("/objects/b", content=pieces(MIB)).status_code == 200
        assert http.request("GET", "/objects", content=bytes(2 * MIB)).status_code == 413
        assert http.put("/objects/..", content=bytes(10)).status_code in {400, 404, 405}


def test_refused_before_it_is_sent(start: Start) -> None:
    """Whoever asks first, with Expect, is refused before a byte of the body is sent."""
    gateway = start(limits=Limits(object_size=MIB))
    for headers in (f"Content-Length: {10 * MIB}", "Content-Length: 5"):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as line:
            line.sendall(f"PUT /objects/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{headers}\r\n\r\n".encode())
            assert line.makefile("rb").readline().split()[1] in {b"413", b"401"}


def test_slow_connections_are_given_up(start: Start) -> None:
    """200 clients that drip keep nobody waiting: health answers within 100 ms, and they are ended soon."""
    gateway = start(limits=Limits(body_grace=1.0, body_rate=1000, address=LAX, failed=LAX))
    gateway.client().close()
    head = f"PUT /objects/slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.secrets['all']}\r\n"
    with ExitStack() as stack:
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port))) for _ in range(200)]
        for number, line in enumerate(lines):
            line.sendall(f"{head}Content-Length: 100000\r\n\r\nx".encode() if number % 2 else head[:40].encode())
        times = []
        with gateway.client() as http:
            for number in range(100):
                for line in lines[1:200:2] if number % 5 == 0 else ():
                    with suppress(OSError):
                        line.send(b"x")
                began = time.perf_counter()
                assert http.get("/health").status_code == 200
                times.append(time.perf_counter() - began)
                time.sleep(0.01)
            assert sorted(times)[50] < 0.1 and sorted(times)[98] < 1  # 0.1 on a quiet machine
            for line in lines[1:200:40]:
                line.settimeout(20)
                assert b"408" in line.recv(100)
            assert http.get("/objects").json()["keys"] == []


def test_heads_without_an_end_are_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose head does not end is cut off; so is a client that does not take its answer."""
    for name, value in {"HEAD": 0.5, "STALLED": 0.5, "SLOWEST": 10**9, "TICK": 0.1}.items():
        monkeypatch.setattr(server, name, value)
    gateway = start()
    with gateway.client() as http:
        http.put("/objects/large", content=bytes(32 * MIB))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: ")
        began = time.monotonic()
        with suppress(ConnectionError):
            assert line.recv(100) == b""
        assert time.monotonic() - began < 10
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as line:
        line.sendall(
            f"GET /objects/large HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.secrets['all']}\r\n\r\n".encode()
        )
        until = time.monotonic() + 20
        while not (ended := [one for one in read(gateway.parts.log, key="large") if one.method == "GET"]):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert ended[0].sent < 32 * MIB


# --------------------------------------------------------------------------------------------------------- connections


def silent(stack: ExitStack, gateway: Gateway, number: int, *, source: str, said: bytes = b"") -> list[socket.socket]:
    """Open connections from an address that send nothing, or the beginning of a request."""
    lines = []
    for _ in range(number):
        line = socket.create_connection(("127.0.0.1", gateway.port), timeout=30, source_address=(source, 0))
        lines.append(stack.enter_context(line))
        with suppress(OSError):  # it may be closed again already
            line.sendall(said)
    return lines


def visitor(gateway: Gateway, source: str) -> httpx.Client:
    """Send requests from another address, with a connection for each request."""
    headers = {"Authorization": f"Bearer {gateway.secrets['all']}", "Connection": "close"}
    transport = httpx.HTTPTransport(local_address=source, trust_env=False)
    return httpx.Client(base_url=gateway.url, headers=headers, timeout=30, transport=transport, trust_env=False)


def seconds(http: httpx.Client, path: str, *, times: int = 20) -> list[float]:
    """Send so many requests, and return how long each answer took, in order."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        assert http.get(path).status_code == 200, path
        taken.append(time.perf_counter() - began)
    return sorted(taken)


@pytest.mark.parametrize(
    "said", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "a byte", "half a head"]
)
def test_silent_connections_of_one_address(start: Start, said: bytes) -> None:
    """1,005 of them: others are served as ever, health within 100 ms, and so is the same address."""
    gateway = start(limits=Limits(address=LAX, token=LAX))
    gateway.client().close()
    with ExitStack() as stack:
        silent(stack, gateway, 1005, source="127.0.0.1", said=said)
        for source in ("127.0.0.2", "127.0.0.1"):
            with visitor(gateway, source) as http:
                assert seconds(http, "/health")[10] < 0.1
                assert seconds(http, "/objects", times=5)
                assert http.get("/ready").status_code == 200


def test_silent_connections_of_many_addresses(start: Start) -> None:
    """However many addresses they come from: the largest crowd gives way to whoever asks."""
    gateway = start(limits=Limits(address=LAX, token=LAX, connections=60, per_address=20, health_connections=4))
    gateway.client().close()
    with ExitStack() as stack:
        for number in range(10, 20):
            silent(stack, gateway, 20, source=f"127.0.0.{number}")
        with visitor(gateway, "127.0.0.2") as http:
            assert seconds(http, "/health")[10] < 0.1
            assert seconds(http, "/objects", times=5)


def uploading(stack: ExitStack, gateway: Gateway, number: int, *, source: str) -> list[socket.socket]:
    """Begin uploads that go on for as long as their connections live."""
    head = f"PUT /objects/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.secrets['all']}\r\n"
    said = f"{head}Content-Length: 100000\r\n\r\nx".encode()
    return silent(stack, gateway, number, source=source, said=said)


def is_full(http: httpx.Client) -> bool:
    """Return whether requests are refused, within 5 s."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if http.get("/objects").status_code == 503:
            return True
    return False


def test_health_has_a_reserve(start: Start) -> None:
    """Where an address, or all together, have as many requests as may be, health and readiness are answered."""
    limits = Limits(address=LAX, token=LAX, body_grace=60.0, connections=30, per_address=10, health_connections=4)
    gateway = start(limits=limits)
    gateway.client().close()
    with ExitStack() as stack:
        uploading(stack, gateway, 10, source="127.0.0.1")
        with visitor(gateway, "127.0.0.1") as same, visitor(gateway, "127.0.0.9") as other:
            until = time.monotonic() + 60
            while same.get("/objects").status_code != 503:
                assert time.monotonic() < until
            assert seconds(same, "/health")[10] < 0.1
            assert same.get("/ready").status_code == 200
            assert other.get("/objects").status_code == 200
            for number in range(3, 15):  # on a busy machine some are closed before they have begun
                uploading(stack, gateway, 10, source=f"127.0.0.{number}")
                if number > 3 and is_full(other):
                    break
            else:
                pytest.fail("the gateway serves more requests at a time than its limit")
            for http in (same, other):
                assert seconds(http, "/health")[10] < 0.1
                assert http.get("/ready").status_code == 200


def test_a_trusted_proxy_may_have_more_connections(start: Start) -> None:
    """Its clients are told apart by what it says, and not by the connection."""
    gateway = start(limits=Limits(address=LAX, connections=100, per_address=10), trusted=("127.0.0.1",))
    gateway.client().close()
    with ExitStack() as stack:
        lines = silent(stack, gateway, 50, source="127.0.0.1")
        with visitor(gateway, "127.0.0.1") as http:
            assert http.get("/objects").status_code == 200
        for line in lines:
            line.setblocking(False)
            with pytest.raises(BlockingIOError):
                line.recv(1)  # none was closed


# -------------------------------------------------------------------------------------------------------- slow uploads


def drip(gateway: Gateway, secret: str, lines: list[socket.socket], *, first: int) -> None:
    """Begin a large upload on each connection."""
    for number, line in enumerate(lines):
        head = f"PUT /objects/slow{number} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        line.sendall(f"{head}Content-Length: {first + 10 * MIB}\r\n\r\n".encode() + bytes(first))


def test_slow_uploads_of_one_token_block_no_other(start: Start) -> None:
    """Eight uploads at 1.1 KB/s with one token: another token's goes on, and they are ended within seconds."""
    gateway = start(limits=Limits(address=LAX, token=LAX, body_grace=3.0, body_credit=3.0))
    gateway.client().close()
    slow = gateway.token("slow", "write")
    with ExitStack() as stack:
        lines = silent(stack, gateway, 8, source="127.0.0.1")
        drip(gateway, slow, lines, first=2 * MIB)
        with visitor(gateway, "127.0.0.2") as http:
            began = time.monotonic()
            assert http.put("/objects/mine", content=bytes(8 * MIB)).status_code == 200
            assert time.monotonic() - began < 10
        ended, until = set[socket.socket](), time.monotonic() + 30
        while len(ended) < len(lines):
            assert time.monotonic() < until
            ready, _, _ = select.select([line for line in lines if line not in ended], [], [], 0.25)
            ended |= set(ready)
            for line in set(lines) - ended:
                with suppress(OSError):
                    line.send(bytes(275))  # 1.1 KB/s
        with gateway.client() as http:
            assert http.get("/objects").json()["keys"] == ["mine"]


def test_a_burst_buys_no_hours(start: Start) -> None:
    """Who sends much at once may not pause for as long as that would last at the lowest rate."""
    gateway = start(limits=Limits(address=LAX, token=LAX, body_grace=1.0, body_credit=2.0, body_rate=1024))
    gateway.client().close()
    with ExitStack() as stack:
        (line,) = silent(stack, gateway, 1, source="127.0.0.1")
        began = time.monotonic()
        drip(gateway, gateway.secrets["all"], [line], first=20 * MIB)  # five hours at 1 KiB/s
        assert b"408" in line.recv(100)
        assert time.monotonic() - began < 20


def test_slow_enough_is_not_too_slow(start: Start) -> None:
    """An upload that keeps to the rate arrives, however long it takes."""
    gateway = start(limits=Limits(address=LAX, token=LAX, body_grace=0.5, body_credit=0.5, body_rate=100 << 10))

    def paced() -> Iterator[bytes]:
        beat = threading.Event()
        for _ in range(24):
            yield bytes(50 << 10)
            beat.wait(0.1)  # 500 KiB/s

    with gateway.client() as http:
        assert http.put("/objects/paced", content=paced()).status_code == 200


def test_large_uploads_take_turns(start: Start) -> None:
    """More large uploads than a worker stores at a time wait for each other and all succeed."""
    gateway = start(limits=Limits(uploads=2, token=LAX, address=LAX))
    gateway.client().close()
    content = os.urandom(3 * MIB)

    def put(number: int) -> int:
        with gateway.client() as http:
            return http.put(f"/objects/{number}", content=content).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put, range(8))) == {200}
    assert threading.active_count() < 100
