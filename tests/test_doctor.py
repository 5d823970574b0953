"""`plateway doctor` on real servers: each thing that is wrong is named with a remedy, and nothing changes."""

from __future__ import annotations

import json
import shutil
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from plateway import doctor, settings
from plateway.catalog import Catalog
from plateway.doctor import Diagnosis, State
from plateway.endpoint import Bucket, Endpoint
from plateway.settings import Settings
from tests.cli.test_cli import call, home
from tests.faults.proxy import Forward, Message, between, error

__all__ = ["home"]


@pytest.fixture
def config(home: Path, endpoint: Endpoint, bucket: str) -> Settings:
    """A site whose catalogue, bench and bucket are there."""
    (home / "bench" / "prince" / "events").mkdir(parents=True)
    with closing(Catalog(settings.load().catalog_url)) as catalog:
        catalog.upgrade()
    return load(endpoint, bucket)


def load(endpoint: Endpoint, bucket: str) -> Settings:
    assert endpoint.secret_access_key is not None
    return settings.load(
        bucket_url=f"s3://{bucket}",
        endpoint_url=endpoint.url,
        access_key_id=endpoint.access_key_id,
        secret_access_key=endpoint.secret_access_key.get_secret_value(),
    )


def not_ok(found: list[Diagnosis]) -> dict[str, str]:
    """Return what is not as it should be, with its state."""
    return {one.check: f"{one.state}: {one.text}" for one in found if one.state != State.OK}


def files(root: Path) -> dict[str, int]:
    """Return every file and its size; SQLite's log is made by reading."""
    kept = [path for path in root.rglob("*") if path.is_file() and path.suffix not in {".db-wal", ".db-shm"}]
    return {str(path.relative_to(root)): path.stat().st_size for path in kept}


def test_a_site_that_works_is_ok(config: Settings, home: Path, bucket: str, client: Any) -> None:
    """Only Prefect is missing, which commands do not need; nothing was written anywhere."""
    before = files(home)
    found = doctor.examine(config)
    assert not_ok(found) == {"Prefect": "warning: no server is known"}
    assert all(one.remedy for one in found if one.state != State.OK)
    assert files(home) == before
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@pytest.mark.parametrize(
    ("what", "check"),
    [
        ({"secret_access_key": SecretStr("wrong")}, "credentials"),
        ({"access_key_id": "UNKNOWN"}, "credentials"),
        ({"url": "http://127.0.0.1:9"}, "endpoint"),
    ],
    ids=["secret", "key", "address"],
)
def test_a_wrong_endpoint_or_key_is_named(endpoint: Endpoint, bucket: str, what: dict[str, Any], check: str) -> None:
    """One request tells an unreachable endpoint from a wrong key; no secret is in the text."""
    found = doctor.check_bucket(
        "plateway", Bucket(url=f"s3://{bucket}", endpoint=replace(endpoint, **what)), now=datetime.now(UTC)
    )
    (bad,) = [one for one in found if one.state != State.OK]
    assert (bad.check, bad.state) == (check, State.WRONG)
    assert bad.remedy
    assert str(endpoint.access_key_id) not in str(found)


def test_a_missing_bucket_names_the_command_that_makes_it(endpoint: Endpoint) -> None:
    """Endpoint, clock and key are fine then."""
    found = doctor.check_bucket("dev", Bucket(url="s3://never-made", endpoint=endpoint), now=datetime.now(UTC))
    assert [(one.check, one.state) for one in found] == [
        ("endpoint dev", State.OK),
        ("clock dev", State.OK),
        ("credentials dev", State.OK),
        ("bucket dev", State.WRONG),
    ]
    assert "plateway bucket mb s3://never-made" in found[-1].remedy


@pytest.mark.parametrize(("minutes", "state"), [(0, "ok"), (2, "warning"), (-2, "warning"), (16, "wrong")])
def test_the_clock_is_compared_with_the_endpoints(endpoint: Endpoint, bucket: str, minutes: int, state: str) -> None:
    """S3 refuses signatures beyond 15 minutes; a skew is reported before that."""
    now = datetime.now(UTC) + timedelta(minutes=minutes)
    found = doctor.check_bucket("plateway", Bucket(url=f"s3://{bucket}", endpoint=endpoint), now=now)
    assert {one.check: one.state for one in found}["clock"] == state


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        ((403, "RequestTimeTooSkewed"), "clock"),
        ((403, "AccessDenied"), "bucket"),
        ((301, "PermanentRedirect"), "bucket"),
        ((503, "SlowDown"), "endpoint"),
    ],
)
def test_answers_of_endpoints_are_interpreted(
    endpoint: Endpoint, bucket: str, answer: tuple[int, str], check: str
) -> None:
    """Each refusal is charged to what has to be corrected."""
    assert endpoint.url

    def refuse(request: Message, forward: Forward) -> Message:
        return forward(request) if request.start.startswith("HEAD") else error(*answer)  # botocore asks for the region

    with between(endpoint.url) as proxy:
        proxy.script = refuse
        there = replace(endpoint, url=proxy.url)
        found = doctor.check_bucket("plateway", Bucket(url=f"s3://{bucket}", endpoint=there), now=datetime.now(UTC))
    assert [one.check for one in found if one.state == State.WRONG] == [check]


def test_a_check_that_hangs_is_bounded_and_delays_no_other(config: Settings, endpoint: Endpoint) -> None:
    """An endpoint that never answers is wrong after the time limit; bench and catalogue are checked all the same."""
    assert endpoint.url

    released = threading.Event()

    def hang(request: Message, forward: Forward) -> Message:
        released.wait(60)
        return forward(request)

    with between(endpoint.url) as proxy:
        proxy.script = hang
        started = time.monotonic()
        found = doctor.examine(config.model_copy(update={"endpoint_url": proxy.url}), seconds=2)
        assert time.monotonic() - started < 10  # botocore alone would wait 12 s, twice
        released.set()
    assert not_ok(found)["bucket plateway"] == "wrong: bucket plateway does not answer"
    assert {"bench", "database", "places"} <= {one.check for one in found if one.state == State.OK}
    assert not_ok(found)["rules"] == "skipped: needs the buckets"


def test_a_bench_that_is_away_and_wrong_files_are_named(config: Settings, home: Path) -> None:
    """Several things are wrong at once, and each is reported."""
    shutil.rmtree(home / "bench")
    (home / "buckets.toml").write_text('[dev]\nurl = "s3://dev"\nregoin = "x"\n')
    found = not_ok(doctor.examine(settings.load(bucket_url=config.bucket_url, endpoint_url=config.endpoint_url)))
    assert found["bench"] == "wrong: the directory does not exist"
    assert "regoin" in found["settings"]


def test_old_tables_and_a_missing_catalogue_are_warnings(config: Settings, home: Path) -> None:
    """Nothing is migrated; what needs the catalogue is skipped."""
    with closing(Catalog(config.catalog_url)) as catalog:
        head = catalog.head()
        catalog.downgrade("0003")
        found = not_ok(doctor.examine(config))
        assert catalog.current() == "0003"
    assert found["database"] == f"warning: tables are at revision 0003, this version needs {head}"
    assert found["places"] == "skipped: needs the catalogue"
    (home / "catalogue.db").unlink()
    assert not_ok(doctor.examine(config))["database"] == "warning: there is no catalogue yet"
    assert not (home / "catalogue.db").exists()


def test_the_command_exits_with_1_if_something_is_wrong(home: Path) -> None:
    """As JSON, with one object for each check; warnings alone exit with 0."""
    result = call("doctor", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["good"]) == (1, False)
    assert {"check", "state", "text", "remedy"} == set(report["checks"][0])
    (home / "bench" / "prince" / "events").mkdir(parents=True)
    assert call("doctor").exit_code == 0
