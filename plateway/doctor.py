"""Check that a site can work, and what to do where it cannot: settings, S3, bench, places, catalogue, Prefect.

Reads only. Nothing is created, marked, migrated or repaired; `selftest` tries an endpoint by writing to it. Each check
has a time limit, runs beside the others, and those that need the catalogue are skipped where it does not answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # botocore ships no types
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # the same

from plateway import bench, pipeline, settings
from plateway.catalog import Catalog
from plateway.endpoint import Bucket, endpoint_identity
from plateway.errors import Misconfigured, NotFound, PlatewayError, Unavailable
from plateway.gateway.probes import Probes
from plateway.instruments import Instrument
from plateway.pipeline import Site
from plateway.prefect_api import open_client
from plateway.settings import MAIN, OTHERS, Settings
from plateway.store import open_store
from plateway.store.admin import Address
from plateway.store.s3 import make_client

SECONDS = 10.0  # time limit of a check
SKEW = timedelta(minutes=15)  # beyond which S3 refuses signatures
NOTICED = timedelta(minutes=1)  # that is reported before that
FULL = 0.05  # free share of a disk below which it is reported
KEYS = {  # what an endpoint answers to a wrong key
    "InvalidAccessKeyId": "the endpoint does not know the access key",
    "SignatureDoesNotMatch": "the secret does not belong to the access key",
    "ExpiredToken": "the temporary key has expired",
    "InvalidToken": "the session token is wrong",
}
S3 = ("endpoint", "credentials", "clock", "bucket")  # how the names of its checks begin
ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"}


class State(StrEnum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"  # works, but should be looked at
    WRONG = "wrong"
    SKIPPED = "skipped"  # needs something that is wrong


@dataclass(frozen=True)
class Diagnosis:
    """What one check found, and what to do about it."""

    check: str
    state: State
    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Diagnosis:
    """Return a finding without a remedy."""
    return Diagnosis(check, State.OK, text)


def warning(check: str, text: str, remedy: str) -> Diagnosis:
    """Return a finding that does not stop the work."""
    return Diagnosis(check, State.WARNING, text, remedy)


def wrong(check: str, text: str, remedy: str) -> Diagnosis:
    """Return a finding that stops the work."""
    return Diagnosis(check, State.WRONG, text, remedy)


def examine(config: Settings, *, seconds: float = SECONDS) -> list[Diagnosis]:
    """Run every check, each for at most ``seconds``, and return what they found, in the order of the command's help."""
    probes = Probes(seconds=seconds)
    first: dict[str, Callable[[], Sequence[Diagnosis]]] = {
        "settings": lambda: check_settings(config),
        **{f"bucket {name}": _bucket_check(name, one) for name, one in _buckets(config).items()},
        "bench": lambda: check_bench(config),
        "database": lambda: check_database(config),
        "Prefect": lambda: check_prefect(config),
    }
    found = _run(probes, first)
    second: dict[str, Callable[[], Sequence[Diagnosis]]] = {
        "places": lambda: _with_site(config, check_places),
        "rules": lambda: _with_site(config, check_rules),
        "events": lambda: _with_site(config, lambda site: check_events(site, config)),
    }
    skipped: dict[str, str] = {}
    if any(one.state != State.OK for one in found if one.check == "database"):
        skipped = dict.fromkeys(second, "needs the catalogue")
    elif any(one.state == State.WRONG for one in found if one.check.startswith(S3)):
        skipped = {"rules": "needs the buckets"}
    found += _run(probes, {name: check for name, check in second.items() if name not in skipped})
    return found + [Diagnosis(name, State.SKIPPED, reason) for name, reason in skipped.items()]


def _run(probes: Probes, checks: dict[str, Callable[[], Sequence[Diagnosis]]]) -> list[Diagnosis]:
    """Run checks side by side; one that fails or takes too long is a finding itself."""
    started = {name: probes.start(name, check) for name, check in checks.items()}
    found: list[Diagnosis] = []
    for name, probe in started.items():
        try:
            found += probe.result()
        except Unavailable as error:
            found.append(wrong(name, str(error), "check the server or mount, or allow more time with --timeout"))
        except PlatewayError as error:
            found.append(wrong(name, str(error), "correct the setting or permission that is named"))
    return found


def _with_site(config: Settings, check: Callable[[Site], list[Diagnosis]]) -> list[Diagnosis]:
    site = pipeline.open_site(config, lenient=True)
    try:
        return check(site)
    finally:
        site.close()


# ------------------------------------------------------------------------------------------------------------ settings


def check_settings(config: Settings) -> list[Diagnosis]:
    """Check variables that are no settings, and the permissions of files with secrets."""
    found = [warning("settings", message, "correct the name, or unset it") for message in settings.unknown_variables()]
    secret = [config.buckets_file or config.home / "buckets.toml", config.tokens, config.s3_secrets]
    found += [
        warning("settings", f"{one.name} can be read by others, and holds secrets", f"chmod 600 {one.name}")
        for one in secret
        if one.is_file() and one.stat().st_mode & OTHERS
    ]
    try:
        _ = config.buckets
    except Misconfigured as error:
        found.append(wrong("settings", str(error), "correct the file"))
    given = sum(row["source"] != "default" for row in settings.explain(home=config.home))
    return found or [ok("settings", f"{given} set, the others are defaults (plateway config show)")]


# ------------------------------------------------------------------------------------------------------------------ S3


def _buckets(config: Settings) -> dict[str, Bucket]:
    """Return the buckets of the site by name; its own alone where buckets.toml is wrong."""
    try:
        return {MAIN: config.bucket, **config.buckets}
    except Misconfigured:
        return {MAIN: config.bucket}


def _bucket_check(name: str, bucket: Bucket) -> Callable[[], list[Diagnosis]]:
    return lambda: check_bucket(name, bucket, now=datetime.now(UTC))


def check_bucket(name: str, bucket: Bucket, *, now: datetime) -> list[Diagnosis]:
    """Check endpoint, credentials, clock and bucket with one request that lists at most one key."""
    suffix = "" if name == MAIN else f" {name}"
    if not bucket.url.startswith("s3://"):
        return [_check_local_bucket(f"bucket{suffix}", bucket)]
    place = endpoint_identity(bucket.url, bucket.endpoint)
    try:
        client = make_client(bucket.endpoint)
    except Misconfigured as error:
        return [
            wrong(f"credentials{suffix}", str(error), "set the key, or AWS_PROFILE; for a safe start: plateway init")
        ]
    where = Address.parse(bucket.url)
    try:
        answer, code = client.list_objects_v2(Bucket=where.bucket, Prefix=where.folder, MaxKeys=1), ""
    except ClientError as error:
        answer, code = error.response, str(error.response["Error"].get("Code", ""))
    except ResponseParserError:
        return [
            wrong(f"endpoint{suffix}", f"{place} answers, but not as S3 does", "set AWS_ENDPOINT_URL to S3's address")
        ]
    except BotoCoreError as error:
        return [_unreachable(f"endpoint{suffix}", place, error)]
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    if status >= 500:
        return [wrong(f"endpoint{suffix}", f"{place} answers {status} {code}", "wait, or ask its operator")]
    return [
        ok(f"endpoint{suffix}", f"{place} answers"),
        *_judge_clock(f"clock{suffix}", answer, code, now),
        *_judge_answer(suffix, where, code, key_given=bucket.endpoint.access_key_id is not None),
    ]


def _unreachable(check: str, place: str, error: Exception) -> Diagnosis:
    """Describe why an endpoint did not answer; the errors' own texts have addresses with keys."""
    remedies = {
        "SSLError": ("its certificate is not trusted", "set AWS_CA_BUNDLE to the certificate of its authority"),
        "ProxyConnectionError": ("the proxy does not answer", "correct HTTPS_PROXY, or set PLATEWAY_BYPASS_PROXY=true"),
        "NoCredentialsError": ("there are no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    }
    name = type(error).__name__
    text, remedy = remedies.get(name, (name, "correct AWS_ENDPOINT_URL, start the server, or open the firewall"))
    return wrong(check, f"cannot reach S3 at {place}: {text}", remedy)


def _judge_clock(check: str, answer: Any, code: str, now: datetime) -> Iterator[Diagnosis]:
    """Compare this machine's clock with the endpoint's, which every answer has in its header."""
    if told := answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date"):
        skew = now - parsedate_to_datetime(told).astimezone(UTC)
        text = f"{abs(skew.total_seconds()):.0f} s {'after' if skew > timedelta(0) else 'before'} the endpoint's"
        if abs(skew) > SKEW or code == "RequestTimeTooSkewed":
            yield wrong(check, f"{text}: S3 refuses signatures beyond 15 min", "set the clock, for example with NTP")
        elif abs(skew) > NOTICED:
            yield warning(check, text, "set the clock, for example with NTP")
        else:
            yield ok(check, f"within {NOTICED.total_seconds():.0f} s of the endpoint's")
    elif code == "RequestTimeTooSkewed":
        yield wrong(check, "S3 refuses signatures beyond 15 min", "set the clock, for example with NTP")


def _judge_answer(suffix: str, where: Address, code: str, *, key_given: bool) -> Iterator[Diagnosis]:
    """Interpret what the endpoint answered to a signed listing of the bucket."""
    credentials, bucket = f"credentials{suffix}", f"bucket{suffix}"
    name = f"s3://{where.bucket}"
    if code in KEYS:
        yield wrong(credentials, KEYS[code], "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return
    if code != "RequestTimeTooSkewed":
        yield ok(credentials, "the key of the settings" if key_given else "found by botocore: profile or role")
    if not code:
        yield ok(bucket, f"{name} can be listed; plateway bucket selftest {name} tries writing")
    elif code in {"NoSuchBucket", "404"}:
        yield wrong(bucket, f"{name} does not exist", f"plateway bucket mb {name}, or correct PLATEWAY_BUCKET_URL")
    elif code in ELSEWHERE:
        yield wrong(bucket, f"{name} is in another region ({code})", "set AWS_DEFAULT_REGION")
    elif code != "RequestTimeTooSkewed":
        remedy = "permit the key to list, read, write and abort uploads"
        yield wrong(bucket, f"{name} cannot be listed ({code})", remedy)


def _check_local_bucket(check: str, bucket: Bucket) -> Diagnosis:
    """Check a bucket that is a directory or in memory."""
    if bucket.url.startswith("memory:"):
        return warning(check, "is in memory, and no proof for a purge", "set PLATEWAY_BUCKET_URL")
    try:
        next(iter(open_store(bucket.url, bucket.endpoint).list()), None)
    except NotFound:
        return wrong(check, "the directory does not exist", "create it, or correct PLATEWAY_BUCKET_URL")
    return ok(check, "the directory can be listed")


# --------------------------------------------------------------------------------------------------------------- bench


def check_bench(config: Settings) -> list[Diagnosis]:
    """Check that the bench exists, which instruments are on it, and that this process may do what its policy says."""
    if not config.root.is_dir():
        return [wrong("bench", "the directory does not exist", "mount it, or correct PLATEWAY_SOURCE_ROOT")]
    systems = bench.list_systems(config.root)
    found = [
        warning("bench", f"{name} is a link, and not followed", "make it a directory, or mount the disk there")
        for name in bench.list_links(config.root)
    ]
    if not systems:
        found.append(warning("bench", "no instrument has events/ on it", "mkdir -p <bench>/<system>/events"))
    for one in map(config.instrument, systems):
        found += _check_permissions(one)
    if config.staging_root is not None and not config.staging_root.is_dir():
        found.append(wrong("staging", "the directory does not exist", "create it, or correct PLATEWAY_STAGING_ROOT"))
    usage = os.statvfs(config.root)
    if usage.f_blocks and usage.f_bavail / usage.f_blocks < FULL:
        remedy = "purge what is proven: plateway purge --dry-run"
        found.append(warning("bench", f"{usage.f_bavail / usage.f_blocks:.0%} of its disk is free", remedy))
    return found or [ok("bench", ", ".join(systems))]


def _check_permissions(instrument: Instrument) -> Iterator[Diagnosis]:
    """Check permissions of an instrument's directory; removing raw images needs to write."""
    needed = os.R_OK | os.X_OK | (os.W_OK if instrument.policy.purge else 0)
    if not os.access(instrument.root, needed):
        what = (
            "cannot be read" if not os.access(instrument.root, os.R_OK | os.X_OK) else "may be purged but not written"
        )
        yield wrong("bench", f"{instrument.name} {what}", "permit it to the account that runs Plateway")


# ----------------------------------------------------------------------------------------------------------- catalogue


def check_database(config: Settings) -> list[Diagnosis]:
    """Check that the catalogue answers, the revision of its tables, and its clock."""
    url = config.catalog_url
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not path.exists():
        return [warning("database", "there is no catalogue yet", "plateway db upgrade, or plateway up, creates it")]
    catalog = Catalog(url)
    try:
        current, head, now = catalog.current(), catalog.head(), catalog.now()
    finally:
        catalog.close()
    if current != head:
        text = f"tables are at revision {current or 'none'}, this version needs {head}"
        newer = current > head
        remedy = "install the newer version" if newer else "plateway db upgrade; most commands do it themselves"
        return [(wrong if newer else warning)("database", text, remedy)]
    skew = abs(now - datetime.now(UTC))
    if skew > NOTICED:
        return [warning("database", f"its clock differs by {skew.total_seconds():.0f} s", "set both clocks with NTP")]
    return [ok("database", f"{urlsplit(url).scheme.partition('+')[0]}, revision {current}")]


def check_places(site: Site) -> list[Diagnosis]:
    """Compare disks, buckets and archive with what was recorded of them: mounts and markers."""
    found = pipeline.inspect_places(site)
    bad = [
        wrong("places", f"{one.name}: {one.trouble}", f"mount it; if it was replaced: plateway site adopt {one.name}")
        for one in found
        if one.trouble
    ]
    used = sum(one.identity is not None for one in found)
    return bad or [ok("places", f"{used} of {len(found)} were used, and are as recorded")]


def check_rules(site: Site) -> list[Diagnosis]:
    """Warn of lifecycle rules that delete what is not on tape."""
    found = [
        warning("rules", one.text, "see plateway bucket-policy check, and remove or narrow the rule")
        for one in pipeline.policy_warnings(site)
    ]
    return found or [ok("rules", "no lifecycle rule deletes exports that are not on tape")]


def check_events(site: Site, config: Settings) -> list[Diagnosis]:
    """Repeat the alerts of the report: lost, stuck and overdue."""
    alerts = pipeline.report(site, stuck_after=config.stuck_after).alerts
    return [warning("events", one.text, "plateway report") for one in alerts] or [ok("events", "no alerts")]


# ------------------------------------------------------------------------------------------------------------- Prefect


def check_prefect(config: Settings) -> list[Diagnosis]:
    """Check Prefect's server, the work pool, its workers, and the deployments."""
    api = config.prefect_api
    if api is None:
        remedy = "run plateway up, or set PREFECT_API_URL; commands work without it"
        return [warning("Prefect", "no server is known", remedy)]
    with open_client(api, timeout=5) as client:
        try:
            return list(_check_server(client, config.work_pool))
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            remedy = (
                "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY" if status in {401, 403} else "read the server's log"
            )
            return [wrong("Prefect", f"the server answers {status}", remedy)]
        except httpx.TransportError as error:
            text = f"the server does not answer ({type(error).__name__})"
            return [wrong("Prefect", text, "start it (plateway up), or correct PREFECT_API_URL")]


def _check_server(client: httpx.Client, pool: str) -> Iterator[Diagnosis]:
    version = client.get("/admin/version").raise_for_status().json()
    yield ok("Prefect server", f"version {version}")
    found = client.get(f"/work_pools/{pool}")
    if found.status_code == 404:
        yield wrong("Prefect pool", f"no work pool {pool}", "python -m deployments.provision")
        return
    if found.raise_for_status().json().get("is_paused"):
        yield warning("Prefect pool", f"{pool} is paused", f"prefect work-pool resume {pool}")
    else:
        yield ok("Prefect pool", pool)
    workers = client.post(f"/work_pools/{pool}/workers/filter", json={}).raise_for_status().json()
    online = sum(one.get("status") == "ONLINE" for one in workers)
    if online:
        yield ok("Prefect workers", f"{online} online")
    else:
        remedy = f"python -m deployments.worker --pool {pool}"
        yield wrong("Prefect workers", f"none of {len(workers)} is online: runs wait", remedy)
    ours = {"deployments": {"name": {"any_": ["plateway"]}}}
    deployments = client.post("/deployments/filter", json=ours).raise_for_status().json()
    paused = sum(bool(one.get("paused")) for one in deployments)
    if not deployments:
        yield wrong("Prefect deployments", "there are none", "python -m deployments.provision")
    elif paused:
        yield warning(
            "Prefect deployments", f"{paused} of {len(deployments)} are paused", "resume them in Prefect's UI"
        )
    else:
        yield ok("Prefect deployments", f"{len(deployments)}")
