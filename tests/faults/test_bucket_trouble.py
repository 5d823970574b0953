"""Where OperationsGateway and its Echo lost data or told what was not so: a test for each of its weaknesses with S3.

All of it happens between Plateway and a real S3 server, through a proxy that keeps a book and does what a test says.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from plateway import pipeline
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Damaged, Denied, NotFound, PlatewayError, Unavailable
from plateway.gateway import Parts
from plateway.pipeline import addresses
from plateway.pipeline import read as copies
from plateway.store import (
    Objects,
    filesystem,
    open_store,
)
from plateway.store.admin import Address, Buckets
from tests.databases import furnish
from tests.faults.proxy import Forward, Message, Proxy, Reset, Script, between, error, honest, with_body
from tests.gateway.conftest import GENEROUS, running
from tests.lab import Clock, Lab

PART = 8 << 20


@dataclass(frozen=True)
class Echo:
    """A bucket, what is asked of it, and a line that exports into it."""

    bucket: str
    book: Proxy
    there: Endpoint  # by way of the proxy
    lab: Lab

    @property
    def store(self) -> Objects:
        return cast("Objects", self.lab.store)

    def put(self, key: str, content: bytes) -> None:
        """Store something behind Plateway's back."""
        other = open_store(f"s3://{self.bucket}", replace(self.there, region="eu-west-1"))
        other.put(key, [content], size=len(content), part_size=PART, metadata={})

    def keys(self) -> list[str]:
        return sorted(one.key for one in self.store.list())


@pytest.fixture
def echo(endpoint: Endpoint, bucket: str, tmp_path: Path) -> Iterator[Echo]:
    assert endpoint.url
    clock = Clock()
    with (
        between(endpoint.url) as book,
        closing(Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)) as catalog,
    ):
        furnish(catalog)
        (tmp_path / "bench").mkdir()
        there = replace(endpoint, url=book.url)
        yield Echo(bucket, book, there, Lab(tmp_path, open_store(f"s3://{bucket}", there), clock, catalog))


def when(test: Callable[[Message], bool], script: Script) -> Script:
    """Misbehave at some requests."""
    return lambda request, forward: (script if test(request) else honest)(request, forward)


def refusal(status: int, code: str) -> Script:
    """Answer each request with an error; that of a HEAD has no body."""
    told = error(status, code)
    return lambda request, _: replace(told, body=b"") if request.start.startswith("HEAD") else told


denied, down = refusal(403, "AccessDenied"), refusal(503, "SlowDown")


def away(request: Message, forward: Forward) -> Message:
    raise Reset


def test_a_deletion_that_did_not_happen_is_told(echo: Echo) -> None:
    """Its check was upside down: what was still there raised nothing."""
    echo.put("a", b"1")
    there, where = Buckets(echo.there), Address(echo.bucket, "a")
    nothing = replace(error(200, "OK"), start="HTTP/1.1 200 OK", body=b"<DeleteResult></DeleteResult>")
    lie = with_body(nothing, nothing.body)
    echo.book.script = when(lambda request: request.start.startswith("POST"), lambda *_: lie)
    done = list(there.delete(where, list(there.find(where))))
    assert [one.problem for one in done if one.problem] == ["was deleted and is still there"]
    echo.book.script = honest
    assert [one.problem for one in there.delete(where, list(there.find(where)))] == [""]
    assert echo.keys() == []


def test_asking_whether_something_is_there_reads_nothing(echo: Echo) -> None:
    """It downloaded the object to see whether it was there, and took every error for a no."""
    echo.put("large", bytes(1 << 20))
    there = Buckets(echo.there)
    asked: dict[str, Callable[[str], object]] = {
        "stat": echo.store.stat,
        "look": echo.store.look,
        "bucket": lambda _: there.there(echo.bucket),
    }
    before = len(echo.book.log)
    assert all(ask("large") for ask in asked.values())
    assert {message.start.split()[0] for message in echo.book.log[before:]} == {"HEAD"}
    for script, told in ((denied, Denied), (down, Unavailable), (away, Unavailable)):
        echo.book.script = script
        for how, ask in asked.items():
            with pytest.raises(told):
                pytest.fail(f"{how}: {ask('nothing')}")


@pytest.mark.parametrize("script", [denied, down, away], ids=["denied", "down", "away"])
def test_an_outage_does_not_make_an_export_lost_or_due_again(echo: Echo, script: Script) -> None:
    """There, what could not be looked at was ingested anew."""
    _, ref = echo.lab.exported()
    echo.book.script = script
    with pytest.raises(PlatewayError):
        pipeline.verify(echo.lab.site, ref)
    echo.lab.clock.turn(days=1)
    assert (echo.lab.state(ref), pipeline.due(echo.lab.site, "export")) == ("exported", [])
    echo.book.script = honest
    assert pipeline.verify(echo.lab.site, ref).result == "verified"


def test_one_client_asks_for_what_it_needs_and_no_more(echo: Echo) -> None:
    """Each operation made a new client and listed all buckets first."""
    before = len(echo.book.log)
    for number in range(10):
        echo.store.put(f"a/{number}", [b"1"], size=1, part_size=PART, metadata={})
        assert echo.store.stat(f"a/{number}")
        assert b"".join(echo.store.open(f"a/{number}"))
    assert len(list(echo.store.list())) == 10
    asked = Counter(message.name for message in echo.book.log[before:])
    assert asked == {"put object": 10, "head object": 10, "get object": 10, "list": 1}
    assert echo.book.connections <= 3  # who writes, who reads, who looks


def test_a_slow_bucket_holds_nobody_up(echo: Echo) -> None:
    """S3 was asked, and waited for, in the loop that serves everybody."""
    echo.put("slow", b"1")
    asked, go_on = threading.Event(), threading.Event()

    def wait(request: Message, forward: Forward) -> Message:
        asked.set()
        assert go_on.wait(60)
        return forward(request)

    home = echo.lab.home / "gateway"
    parts = Parts(
        home=home, tokens=home / "tokens.json", objects=f"s3://{echo.bucket}", endpoint=echo.there, limits=GENEROUS
    )
    with running(parts) as gateway, gateway.client() as http, ThreadPoolExecutor(1) as other:
        assert http.get("/objects/slow").content == b"1"
        echo.book.script = when(lambda request: request.key == "slow", wait)
        waiting = other.submit(http.get, "/objects/slow")
        assert asked.wait(60)
        assert http.get("/health").status_code == 200
        assert not waiting.done()
        go_on.set()
        assert waiting.result(60).content == b"1"


def test_what_merely_begins_alike_is_not_deleted(echo: Echo) -> None:
    """A record's directory was deleted by a prefix without its slash: with record 1 went the records 10 to 19."""
    for key in ("images/1/a", "images/1/b/c", "images/10/a", "images/1.png", "images/1-2/a"):
        echo.put(key, b"1")
    there, where = Buckets(echo.there), Address(echo.bucket, "images/1")
    assert sorted(one.address.key for one in there.delete(where, list(there.find(where)))) == [
        "images/1/a",
        "images/1/b/c",
    ]
    assert echo.keys() == ["images/1-2/a", "images/1.png", "images/10/a"]
    below = open_store(f"s3://{echo.bucket}/images/1", echo.there)
    assert list(below.list()) == []


def test_what_was_overwritten_or_deleted_is_not_remembered(echo: Echo) -> None:
    """Its cache of downloads had no way to learn of either."""
    home = echo.lab.home / "gateway"
    parts = Parts(
        home=home, tokens=home / "tokens.json", objects=f"s3://{echo.bucket}", endpoint=echo.there, limits=GENEROUS
    )
    fs, root = filesystem(f"s3://{echo.bucket}", echo.there)
    with running(parts) as gateway, gateway.client() as http:
        for content in (b"first", b"second, and longer", b"3"):
            echo.put("a", content)
            assert b"".join(echo.store.open("a")) == content
            assert (found := echo.store.stat("a")) and found.size == len(content)
            assert [one.size for one in echo.store.list()] == [len(content)]
            assert fs.cat_file(f"{root}/a") == content
            answer = http.get("/objects/a")
            assert (answer.content, int(answer.headers["content-length"])) == (content, len(content))
        Buckets(echo.there).store(echo.bucket).delete("a")
        assert http.get("/objects/a").status_code == 404
    assert (echo.store.stat("a"), echo.keys()) == (None, [])
    with pytest.raises(NotFound):
        echo.store.open("a")
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{root}/a")


def test_rules_that_do_not_ask_for_tape_are_warned_of(echo: Echo) -> None:
    """At each start it set a rule for the whole bucket, by age alone."""
    echo.lab.exported()
    assert pipeline.policy_warnings(echo.lab.site) == []
    rule: dict[str, Any] = {"ID": "expiry", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 30}}
    Buckets(echo.there).set_lifecycle(echo.bucket, [rule])
    (warning,) = pipeline.policy_warnings(echo.lab.site)
    assert (warning.rule, warning.prefix, warning.after, warning.exports) == ("expiry", "", "30d", 1)
    assert "not on tape" in warning.text


def vanish(request: Message, forward: Forward) -> Message:
    """Answer that it is done, and do nothing."""
    return with_body(replace(error(200, "OK"), start="HTTP/1.1 200 OK"), b"")


@pytest.mark.parametrize("script", [denied, down, away, vanish], ids=["denied", "down", "away", "vanish"])
def test_an_upload_that_failed_leaves_no_record(echo: Echo, script: Script) -> None:
    """The record came first, and pointed to nothing when the upload failed."""
    announced = echo.lab.acquire()
    echo.lab.settle()
    echo.book.script = when(lambda request: request.start.startswith("PUT"), script)
    echo.lab.export()
    (ledger,) = echo.lab.catalog.ledgers()
    assert ledger.state(echo.lab.clock()).name != "exported"
    assert ledger.export is None or ledger.export.evidence is None
    assert echo.keys() == []
    echo.book.script = honest
    echo.lab.clock.turn(days=1)
    assert "verified" in {one.result for one in echo.lab.export()}
    assert echo.lab.state(ledger.ref) == "exported"
    assert all((announced.images / name).is_file() for name in announced.files)


def test_every_image_and_every_bundle_has_a_checksum(echo: Echo) -> None:
    """It kept none; what the way there or back changed was never seen."""
    announced, ref = echo.lab.exported()
    export = echo.lab.ledger(ref).export
    assert export
    assert hashlib.sha256(b"".join(echo.store.open(export.key))).hexdigest() == export.sha256
    manifest = copies.contents(echo.lab.site, echo.lab.ledger(ref))
    assert {one.source or one.name: one.sha256 for one in manifest.members} == announced.files


def flip(message: Message) -> Message:
    """Turn one bit over in the middle."""
    at = len(message.body) // 2
    return replace(message, body=message.body[:at] + bytes([message.body[at] ^ 1]) + message.body[at + 1 :])


def test_what_changes_on_the_way_there_is_seen(echo: Echo) -> None:
    """No evidence comes of it, and the images stay where they are."""
    echo.lab.acquire()
    echo.lab.settle()
    put = when(lambda request: request.start.startswith("PUT"), lambda request, forward: forward(flip(request)))
    echo.book.script = put
    assert {one.result for one in echo.lab.export()} & {"exported", "verified"} <= {"exported"}
    (ledger,) = echo.lab.catalog.ledgers()
    assert ledger.state(echo.lab.clock()).name != "exported"


@pytest.mark.parametrize("change", [flip, lambda reply: with_body(reply, b"")], ids=["flipped", "empty"])
def test_what_changes_on_the_way_back_is_seen(echo: Echo, change: Callable[[Message], Message]) -> None:
    """Of an empty download it only warned."""
    announced, ref = echo.lab.exported()
    echo.put("a", b"plain")
    echo.book.script = when(
        lambda request: request.name == "get object", lambda request, forward: change(forward(request))
    )
    name, key = next(iter(announced.files)), echo.lab.ledger(ref).event.key
    reads: list[Callable[[], Iterator[bytes]]] = [
        lambda: pipeline.cat(echo.lab.site, ref, name),
        lambda: addresses.image(echo.store, key, name),
        lambda: addresses.cat(echo.store, "a"),
    ]
    for read in reads:
        with pytest.raises((Damaged, Unavailable)):
            b"".join(read())
