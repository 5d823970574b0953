"""Several buckets at once, on two real endpoints, where both have a bucket of the same name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from plateway import cli, pipeline, settings, simulator, store
from plateway.archive import open_archive
from plateway.catalog import Catalog
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured, NotFound, Unavailable
from plateway.events import Ref
from plateway.findings import Kind
from plateway.gateway.opening import parts
from plateway.instruments import Instrument
from plateway.keys import is_marker
from plateway.local import seaweed
from plateway.pipeline import Site as Line
from plateway.pipeline.context import BucketRef
from plateway.records import Export
from plateway.store import Objects, Store, open_store, wrappers
from plateway.store.admin import Buckets
from plateway.store.memory import Memory
from tests.databases import furnish
from tests.faults import proxy
from tests.gateway.conftest import GENEROUS, running
from tests.lab import Clock, Lab, with_policy

HERE, THERE = "http://here:1", "http://there:2"  # what the catalogue calls the two endpoints


@dataclass
class Site(Lab):
    """A lab with a bucket of its own for `aretha`, at another endpoint."""

    places: dict[str, BucketRef] = field(default_factory=dict)
    goes: dict[str, str] = field(default_factory=dict)  # which bucket a system's exports go to
    endpoint: str | None = HERE

    def instrument(self, system: str) -> Instrument:
        return replace(super().instrument(system), bucket=self.goes.get(system))

    @property
    def site(self) -> Line:
        return replace(super().site, endpoint=self.endpoint, others=self.places)

    @property
    def second(self) -> Objects:
        return cast("Objects", self.places["second"].store)

    def export_of(self, ref: Ref) -> Export:
        export = self.ledger(ref).export
        assert export is not None
        return export


def site(tmp_path: Path, own: Store, second: Store) -> Site:
    """Make a site with these two buckets."""
    for name in ("bench", "tape"):
        (tmp_path / name).mkdir()
    clock = Clock()
    catalog = Catalog(f"sqlite:///{tmp_path}/catalogue.db", clock=clock)
    furnish(catalog)
    places = {"second": BucketRef(second, THERE)}
    return Site(tmp_path, own, clock, catalog, places=places, goes={"aretha": "second"})


class Lasting(Memory):
    """A bucket in this process that stands for one that lasts."""

    durable = True


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Site]:
    """Two buckets in memory, both called raw."""
    made = site(tmp_path, Lasting("raw"), Lasting("raw"))
    yield made
    made.catalog.close()


def export(lab: Site, system: str, *, images: int = 2) -> Ref:
    """Export and verify one event."""
    return lab.exported(system, images=images)[1]


def put(there: Store, key: str, content: bytes) -> None:
    there.put(key, [content], size=len(content), part_size=1 << 23, metadata={})


def keys(there: Store) -> set[str]:
    return {one.key for one in there.list() if not is_marker(one.key)}


def whole(there: Store, key: str) -> bytes:
    return b"".join(there.open(key))


class Away(Memory):
    """An endpoint that does not answer."""

    def _gone(self, *_: Any, **__: Any) -> Any:
        raise Unavailable(f"{self.name} does not answer")

    put = open = stat = list = delete = uploads = _gone


# ------------------------------------------------------------------------------------------------------------ settings


# --------------------------------------------------------------------------------------------------------- where it is


def test_exports_go_where_their_instrument_says(lab: Site) -> None:
    """Each lies in its own bucket only, and the catalogue says which."""
    mine, theirs = export(lab, "prince"), export(lab, "aretha")
    assert (keys(lab.store), keys(lab.second)) == ({lab.export_of(mine).key}, {lab.export_of(theirs).key})
    assert [lab.export_of(ref).endpoint for ref in (mine, theirs)] == [HERE, THERE]
    told = pipeline.detail(lab.site, lab.ledger(theirs))
    assert (told.bucket, told.endpoint, told.manifest_error) == ("raw", THERE, None)


def test_an_export_stays_where_it_is(lab: Site) -> None:
    """When its instrument moves on: looked at, read and sent again there; what is new goes to the new bucket."""
    ref = export(lab, "aretha")
    key = lab.export_of(ref).key
    lab.goes.clear()
    assert pipeline.verify(lab.site, ref, read_back=True).result == "verified"
    lab.second.delete(key)
    assert pipeline.verify(lab.site, ref).result == "damaged"
    assert pipeline.export(lab.site, ref).result == "exported"
    assert (keys(lab.store), keys(lab.second)) == (set(), {key})
    new = export(lab, "aretha")
    assert keys(lab.store) == {lab.export_of(new).key}


def test_the_same_object_in_the_wrong_bucket_proves_nothing(lab: Site) -> None:
    """At the same key of a bucket of the same name it is no export, no proof for a purge, and nothing that expires."""
    ref = export(lab, "aretha")
    key = lab.export_of(ref).key
    put(lab.store, key, whole(lab.second, key))
    lab.second.delete(key)
    lab.clock.turn(days=1)
    (outcome,) = pipeline.purge(lab.site)
    assert (outcome.result, outcome.reasons) == ("damaged", (f"bucket copy lost: nothing at {key}",))
    assert (lab.export_of(ref).damage or "").startswith("lost")
    with pytest.raises(NotFound, match="lost"):
        b"".join(pipeline.cat(lab.site, ref, "0.tif"))
    assert pipeline.expire(lab.site) == []
    assert keys(lab.store) == {key}


@pytest.mark.parametrize("known", ["none", "by another name", "at another endpoint"])
def test_what_lies_in_a_bucket_that_is_not_configured_is_not_lost(lab: Site, known: str) -> None:
    """No verb notes damage, purges or deletes; each says in which bucket, at which endpoint it is."""
    ref = export(lab, "aretha")
    before, key = lab.export_of(ref).model_dump(), lab.export_of(ref).key
    places = {
        "by another name": BucketRef(Memory("other"), THERE),
        "at another endpoint": BucketRef(Memory("raw"), "http://x"),
    }
    lab.places = {"second": places[known]} if known in places else {}
    lab.clock.turn(days=1)
    where = f"{key} is in bucket raw at {THERE}, and the settings name bucket raw at {HERE}"
    for verb in (pipeline.verify, lambda site, ref: pipeline.export(site, ref, force=True)):
        with pytest.raises(Misconfigured, match=where):
            verb(lab.site, ref)
    with pytest.raises(NotFound, match=where):
        b"".join(pipeline.cat(lab.site, ref, "0.tif"))
    (outcome,) = pipeline.purge(lab.site)
    assert outcome.result == "refused"
    assert where in outcome.reasons[0]
    done = pipeline.reconcile(lab.site, repair=True)
    assert (done.findings, done.stopped) == ((), False)
    (told,) = done.outcomes
    reason = f"1 export is in bucket raw at {THERE}, which the settings do not name"
    assert (told.result, told.reasons) == ("later", (reason,))
    assert lab.export_of(ref).model_dump() == before


def test_a_bucket_of_no_name_stops_only_its_own_systems(lab: Site) -> None:
    """An instrument that names a bucket which is not there is told so, and nothing goes elsewhere instead."""
    lab.goes["aretha"] = "third"
    lab.acquire("aretha")
    lab.acquire("prince")
    lab.settle()
    results = {one.system: (one.result, one.reasons) for one in lab.export() if one.verb == "export"}
    assert results["prince"][0] == "exported"
    assert results["aretha"] == (
        "failed",
        ("exports of aretha: there is no bucket 'third': it is named in buckets.toml, or by a Bucket block",),
    )
    assert keys(lab.second) == set()


def unnoted(lab: Site, *refs: Ref) -> None:
    """Make exports such as they were before endpoints were noted."""
    with lab.catalog._writing() as session:
        for ref in refs:
            export = session.get(Export, tuple(ref))
            assert export is not None
            export.endpoint = None


def test_older_exports_are_in_the_sites_own_bucket(lab: Site) -> None:
    """They were never anywhere else; in another bucket of that name they are not looked for, and not lost."""
    ref = export(lab, "prince")
    unnoted(lab, ref)
    done = pipeline.reconcile(lab.site)
    assert (done.findings, done.outcomes) == ((), ())
    assert pipeline.verify(lab.site, ref).result == "verified"
    assert lab.export_of(ref).endpoint == HERE  # noted, now that it was seen there
    unnoted(lab, ref)
    lab.places, lab.store = {}, Memory("elsewhere")
    with pytest.raises(Misconfigured, match="it was not noted at which endpoint"):
        pipeline.verify(lab.site, ref)
    lab.places = {"a": BucketRef(Memory("raw"), THERE), "b": BucketRef(Memory("raw"), "http://c")}
    with pytest.raises(Misconfigured, match="it was not noted at which endpoint"):
        pipeline.verify(lab.site, ref)


# ----------------------------------------------------------------------------------------------------------- reconcile


def found(lab: Site, **options: Any) -> set[tuple[Kind, str, str]]:
    """Reconcile; return the findings, and what was done."""
    return {(one.kind, one.key, one.done) for one in pipeline.reconcile(lab.site, **options).findings}


def test_each_bucket_is_compared_with_its_own(lab: Site) -> None:
    """In order there is nothing to find; what is lost or strange is so in its own bucket, and told with it."""
    refs = [export(lab, system) for system in ("prince", "aretha", "prince", "aretha")]
    assert found(lab) == set()
    mine, theirs = (lab.export_of(ref).key for ref in refs[:2])
    put(lab.second, "images/strange.tar", b"strange")
    put(lab.second, mine, whole(lab.store, mine))
    lab.store.delete(mine)
    done = pipeline.reconcile(lab.site)
    told = {one.key: (one.kind, one.detail) for one in done.findings if one.kind is not Kind.LOST}
    assert told[mine][1].endswith(f"the catalogue has this export in bucket raw at {HERE} (bucket raw at {THERE})")
    assert told["images/strange.tar"] == (Kind.DARK, f"7 bytes that nobody recorded (bucket raw at {THERE})")
    lost = [one for one in done.findings if one.kind is Kind.LOST]
    assert [(one.key, one.done) for one in lost] == [(mine, "marked lost, would re-export")]
    assert lost[0].detail.endswith(f"(bucket raw at {HERE})")
    assert lab.export_of(refs[1]).damage is None
    (healed,) = [one for one in pipeline.reconcile(lab.site, repair=True).findings if one.kind is Kind.LOST]
    assert healed.done == "exported, verified"
    assert mine in keys(lab.store)
    assert theirs in keys(lab.second)


@pytest.mark.parametrize("trouble", ["empty", "away"])
def test_a_bucket_that_cannot_be_believed_stops_no_other(lab: Site, trouble: str) -> None:
    """It refuses for itself, and says so; in the others what is wrong is found and put right."""
    refs = [export(lab, system) for system in ("prince", "aretha", "aretha")]
    key = lab.export_of(refs[0]).key
    lab.store.delete(key)
    put(lab.store, "images/keep.tar", b"else the bucket is empty")
    lab.places = {"second": BucketRef(Memory("raw") if trouble == "empty" else Away("raw"), THERE)}
    done = pipeline.reconcile(lab.site, repair=True)
    why = {
        "empty": f"bucket raw at {THERE}: the bucket lists nothing at all, and 2 exports should be there",
        "away": f"bucket raw at {THERE}: raw does not answer",
    }
    assert done.stopped
    assert why[trouble] in [reason for one in done.outcomes for reason in one.reasons]
    assert ("marked lost, exported, verified") in {one.done for one in done.findings}
    assert key in keys(lab.store)
    assert [lab.export_of(ref).damage for ref in refs] == [None] * 3


def test_the_sites_own_bucket_may_be_away_too(lab: Site) -> None:
    """The others are compared all the same."""
    refs = [export(lab, system) for system in ("prince", "aretha", "aretha")]
    key = lab.export_of(refs[1]).key
    lab.second.delete(key)
    lab.store = Away("raw")
    done = pipeline.reconcile(lab.site)
    assert done.stopped
    assert [(one.kind, one.key) for one in done.findings] == [(Kind.LOST, key)]
    assert lab.export_of(refs[0]).damage is None


def test_an_interrupted_export_is_finished_in_its_own_bucket(lab: Site) -> None:
    """Sent and not noted: found where its system's exports go, and sent again there."""
    lab.acquire("aretha")
    lab.settle()
    (ref,) = pipeline.due(lab.site, "export")
    pipeline.export(lab.site, ref)
    key = lab.export_of(ref).key
    with lab.catalog._writing() as session:
        session.delete(session.get(Export, tuple(ref)))
    assert found(lab) == {(Kind.DARK, key, "would re-export")}
    assert found(lab, repair=True) == {(Kind.DARK, key, "exported, verified")}
    assert (lab.export_of(ref).endpoint, keys(lab.store)) == (THERE, set())


def test_what_is_dark_at_two_endpoints_is_two_things(lab: Site) -> None:
    """Each waits its own day before it is adopted."""
    put(lab.store, "images/a.tar", b"same")
    pipeline.reconcile(lab.site)
    lab.clock.turn(days=2)
    put(lab.second, "images/a.tar", b"same")
    results = [one.result for one in pipeline.reconcile(lab.site, repair=True).outcomes]
    assert sorted(results) == ["failed", "waits"]  # one is old enough, and no bundle; the other was seen just now


def test_tape_names_no_endpoint(lab: Site) -> None:
    """Of two buckets of one name either may be meant; what is in neither is told once."""
    ref = export(lab, "aretha")
    lab.archive = open_archive((lab.home / "tape").as_uri())
    lab.clock.turn(days=1)
    named = [f"raw/{lab.export_of(ref).key}", "raw/none.tar"]
    said = {"job_id": "j", "date": "2026-05-04", "archives": [{"path": "images/t.tar", "src_keys": named}]}
    pipeline.receive(lab.site, json.dumps(said).encode(), source="inbox", name="t.json")
    pipeline.settle(lab.site)
    assert len(lab.ledger(ref).archives) == 1
    assert [(one.kind, one.key) for one in pipeline.reconcile(lab.site).findings] == [(Kind.UNKNOWN, "raw/none.tar")]


# ---------------------------------------------------------------------------------------------------------- other verbs


def test_tape_gets_what_each_bucket_has(lab: Site) -> None:
    """A bucket that does not answer holds up its own exports only; what none of ours has is told, not lost."""
    lab.archive = open_archive((lab.home / "tape").as_uri())
    mine, theirs = export(lab, "prince"), export(lab, "aretha")
    lab.clock.turn(days=1)
    there, lab.places["second"] = lab.places["second"], BucketRef(Away("raw"), THERE)
    results = {one.result for one in pipeline.archive(lab.site)}
    assert (results, len(lab.ledger(mine).archives), len(lab.ledger(theirs).archives)) == (
        {"written", "archived", "later"},
        1,
        0,
    )
    lab.places = {}
    assert [one.result for one in pipeline.archive(lab.site)] == ["refused"]
    lab.places = {"second": there}
    pipeline.archive(lab.site)
    assert len(lab.ledger(theirs).archives) == 1


def test_the_right_copy_expires(lab: Site) -> None:
    """Deleted is what lies in the export's own bucket; a stranger at its key elsewhere stays."""
    lab.archive = open_archive((lab.home / "tape").as_uri())
    ref = export(lab, "aretha")
    key = lab.export_of(ref).key
    put(lab.store, key, b"a stranger")
    lab.clock.turn(days=1)
    pipeline.archive(lab.site)
    with_policy(lab, bucket_lifespan=timedelta(0), lifespan=timedelta(0), grace=timedelta(0), fraction=1)
    assert [one.result for _ in range(2) for one in pipeline.purge(lab.site)] == ["trashed", "gone"]
    assert [one.result for _ in range(2) for one in pipeline.expire(lab.site)] == ["marked", "expired"]
    assert (keys(lab.second), whole(lab.store, key)) == (set(), b"a stranger")


class Ruled(Memory):
    """A bucket with a rule of its own, and an upload that somebody left open; without a date it is not there at all."""

    since: datetime | None = None

    def lifecycle(self) -> list[dict[str, Any]]:
        if self.since is None:
            raise NotFound("no such bucket")
        return [{"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 7}}]

    def uploads(self) -> Iterator[store.Upload]:
        if self.since is None:
            raise NotFound("no such bucket")
        yield from [store.Upload(one.key, "1", self.since) for one in self.list()]

    def abort(self, upload: store.Upload) -> None:
        self.delete(upload.key)  # so that a test sees it


def test_each_bucket_has_its_own_rules_and_uploads(lab: Site) -> None:
    """Warned of is what each would delete, swept what each has left; a bucket that is not there hides no other."""
    second = Ruled("raw")
    lab.places = {"third": BucketRef(Ruled("raw"), "http://c"), "second": BucketRef(second, THERE)}
    refs = [export(lab, system) for system in ("prince", "aretha", "aretha")]
    second.since = lab.clock.turn(days=1)
    missing, rule = pipeline.policy_warnings(lab.site)
    assert missing.text == "bucket raw at http://c: the bucket's lifecycle rules cannot be read: no such bucket"
    assert (rule.exports, rule.text.startswith(f"bucket raw at {THERE}: rule 'all' deletes everything")) == (2, True)
    lab.clock.turn(days=1)
    swept = pipeline.sweep(lab.site)
    assert [one.result for one in swept] == ["failed", "aborted", "aborted"]
    assert swept[0].reasons == ("bucket raw at http://c: no such bucket",)
    assert keys(lab.store) == {lab.export_of(refs[0]).key}


def test_all_buckets_are_rebuilt(lab: Site) -> None:
    """Every export comes back with the endpoint that it was read at; an empty bucket that tape names is no sign."""
    refs = [export(lab, system) for system in ("prince", "aretha")]
    empty = Catalog(f"sqlite:///{lab.home}/again.db", clock=lab.clock)
    furnish(empty)
    site = replace(lab.site, catalog=empty)
    assert pipeline.rebuild(site).events == 2
    assert [empty.ledger(ref).export.endpoint for ref in refs] == [HERE, THERE]  # type: ignore[union-attr]  # there are
    assert pipeline.rebuild(site).known == 2
    empty.close()


def test_buckets_take_part_while_exports_are_in_them(lab: Site) -> None:
    """One that no system's exports go to is not compared, nor, if it is read-only, rebuilt from; unless it has some."""
    second = lab.second
    put(second, "images/theirs.tar", b"a collection")
    read_only = BucketRef(wrappers.ReadOnly(second), THERE, read_only=True, receives=False)
    for places, refused in (({"second": read_only}, 0), ({"second": BucketRef(second, THERE, receives=False)}, 1)):
        lab.places = places
        assert found(lab) == set()
        assert len(pipeline.rebuild(lab.site).refused) == refused
    ref = export(lab, "aretha")
    second.delete(lab.export_of(ref).key)
    for place in (read_only, BucketRef(second, THERE, receives=False)):
        lab.places = {"second": place}
        assert {kind for kind, *_ in found(lab)} == {Kind.DARK, Kind.LOST}
    unnoted(lab, ref)
    lab.store = Memory("another")
    assert {kind for kind, *_ in found(lab)} == {Kind.DARK, Kind.LOST}
    lab.store = Memory("raw")  # which is then the one that was meant, and empty
    assert found(lab) == set()
    assert pipeline.reconcile(lab.site).stopped


# -------------------------------------------------------------------------------------------- an endpoint that moved


# ------------------------------------------------------------------------------------------------------- two real ones


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A second S3 server, with a key of its own."""
    with seaweed.serve(tmp_path_factory.mktemp("s3")) as server:
        secret = SecretStr(server.secret_access_key)
        yield Endpoint(url=server.url, access_key_id=server.access_key_id, secret_access_key=secret)


@pytest.fixture
def home(
    tmp_path: Path, endpoint: Endpoint, other: Endpoint, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The home of a site whose settings name two buckets of one name, behind two servers."""
    assert endpoint.secret_access_key is not None
    ours = {
        "PLATEWAY_HOME": tmp_path,
        "PLATEWAY_BUCKET_URL": f"s3://{bucket}",
        "PLATEWAY_SETTLE_SECONDS": "0",
        "PLATEWAY_PURGE_SYSTEMS": "prince,aretha",
        "PLATEWAY_RAW_LIFESPAN": "0s",
        "PLATEWAY_PURGE_FRACTION": "1",
        "AWS_ENDPOINT_URL": endpoint.url,
        "AWS_ACCESS_KEY_ID": endpoint.access_key_id,
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_access_key.get_secret_value(),
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    table(tmp_path, bucket, other)
    there = Buckets(other)
    there.make(bucket)
    yield tmp_path
    for _ in there.clear(bucket):
        pass
    there.remove(bucket)


def table(home: Path, bucket: str, there: Endpoint) -> None:
    """Write buckets.toml."""
    assert there.secret_access_key is not None
    secret = there.secret_access_key.get_secret_value()
    (home / "buckets.toml").write_text(
        f'[second]\nurl = "s3://{bucket}"\nendpoint_url = "{there.url}"\nsystems = ["aretha"]\n'
        f'access_key_id = "{there.access_key_id}"\nsecret_access_key = "{secret}"\n'
    )


def told(*words: str, code: int = 0) -> Any:
    """Run a command; return what it printed as JSON."""
    result = CliRunner().invoke(cli.app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def acquire(home: Path) -> None:
    """Make each of two instruments acquire an event."""
    dialects: dict[str, simulator.Dialect] = {"prince": "timestep", "aretha": "imaging event"}
    for system, dialect in dialects.items():
        made = simulator.Simulated(system, dialect, home / "bench" / system, images=2, size=32)
        simulator.acquire(made, now=datetime.now(UTC))


def test_two_real_buckets_of_one_name(home: Path, bucket: str, endpoint: Endpoint, other: Endpoint) -> None:
    """The whole way of two events, by commands and over HTTP, each in its own bucket only."""
    acquire(home)
    assert {one["result"] for one in told("discover")["outcomes"]} >= {"exported", "verified"}
    events = {one["system"]: one for one in told("status")["events"]}
    where = {"prince": endpoint, "aretha": other}
    for system, there in where.items():
        shown = told("show", events[system]["id"])
        assert (shown["bucket"], shown["endpoint"]) == (bucket, there.url)
        assert shown["manifest"]
        assert keys(open_store(f"s3://{bucket}", there)) == {shown["key"]}
    assert {one["result"] for one in told("verify", "--read-back")["outcomes"]} == {"verified"}
    with running(replace(parts(settings.load()), limits=GENEROUS)) as gateway, gateway.client() as http:
        links = {one["ref_id"]: one["url"] for one in http.get("/api/1/exports").json()["data"]}
        for system, there in where.items():
            event = events[system]
            link = http.get(f"/api/1/events/{event['id']}/bundle").headers["location"]
            for one in (link, links[event["id"]]):
                assert one.startswith(f"{there.url}/{bucket}/")
                assert httpx.get(one, trust_env=False).content == whole(
                    open_store(f"s3://{bucket}", there), event["key"]
                )
    assert {one["result"] for one in told("purge")["outcomes"]} == {"trashed"}
    assert told("reconcile") == {"findings": [], "counts": {}, "outcomes": []}
    with closing(pipeline.open_site(settings.load(database_url=f"sqlite:///{home}/again.db"))) as site:
        site.catalog.upgrade()
        assert pipeline.rebuild(site).events == 2
        again = {one.event.system: one.export and one.export.endpoint for one in site.catalog.ledgers()}
    assert again == {system: there.url for system, there in where.items()}


def test_a_real_endpoint_moves(home: Path, bucket: str, other: Endpoint) -> None:
    """At another address of the same server nothing is lost, and after `relocate` all is as before."""
    acquire(home)
    told("discover")
    with proxy.between(str(other.url)) as moved:
        table(home, bucket, replace(other, url=moved.url))
        (reconciled,) = told("reconcile", code=5)["outcomes"]
        assert f"1 export is in bucket {bucket} at {other.url}" in reconciled["reasons"][0]
        assert [one["result"] for one in told("relocate", "second", "--dry-run")["outcomes"]] == ["would be moved"]
        assert [one["result"] for one in told("relocate", "second")["outcomes"]] == ["moved"]
        assert told("relocate", "second") == {"outcomes": []}
        assert told("reconcile")["findings"] == []


def test_an_edited_block_blinds_nobody(tmp_path: Path) -> None:
    """What went to another bucket of a known endpoint is read there, read-only; it proves nothing for deleting."""
    lab = site(tmp_path, Memory("raw"), Memory("raw"))
    acquired = lab.acquire("prince")
    lab.settle()
    lab.export()
    edited, opened = lab.store, Memory("raw")
    assert isinstance(edited, Memory)

    def open_other(name: str) -> Store:
        assert name == "raw"
        return edited

    ref = Ref(acquired.id, 1)
    export = lab.export_of(ref)
    settings_only = replace(
        lab.site, store=Memory("other"), own=None, others={}, openers={HERE: open_other}, places=lab.site.places
    )
    assert settings_only.reading(export).store is edited
    reader = pipeline.read.BundleReader(settings_only, lab.ledger(ref))
    assert {one.sha256 for one in reader.read_manifest().members} >= {
        digest for name, digest in acquired.files.items() if name.endswith(".tif")
    }
    with pytest.raises(Misconfigured, match=f"bucket raw at {HERE}"):
        settings_only.holding(export)
    elsewhere = replace(settings_only, openers={THERE: lambda _: opened})
    with pytest.raises(Misconfigured, match=f"bucket raw at {HERE}"):
        elsewhere.reading(export)
