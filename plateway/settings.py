"""What a site can set, and the values the rest of the library takes.

``Settings`` reads ``PLATEWAY_*`` and ``AWS_*`` (flag > environment > ``.env`` > default); the embedded S3 server and
its key come from what `plateway up` left in the home. Below the edge nobody reads settings: everything is an argument,
``Instrument`` and ``Policy`` among them.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AliasChoices,
    BeforeValidator,
    ByteSize,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from plateway.endpoint import Bucket, Endpoint
from plateway.errors import Misconfigured
from plateway.instruments import IGNORED, IMAGES, Instrument, Policy, format_duration

log = logging.getLogger(__name__)

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
ENV_FILE = "PLATEWAY_ENV_FILE"  # names another file than .env; empty: none
OTHER_VARIABLES = (ENV_FILE, "PLATEWAY_PROJECT", "PLATEWAY_SOAK", "PLATEWAY_TOKEN")  # that are ours and no settings
PREFECT_LOGIN = "prefect.auth"  # in the home: user:password of Prefect's API and UI
RUNTIME = "runtime.json"  # in the home: where the parts that `plateway up` started can be reached


def duration(value: object) -> object:
    """Read seconds, or ``90s``, ``10m``, ``8h``, ``2d``."""
    if isinstance(value, int | float):
        return timedelta(seconds=value)
    if not isinstance(value, str):
        return value
    match = DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a duration such as 90s, 10m, 8h or 2d")
    return timedelta(seconds=float(match[1]) * UNITS[match[2]])


def listed(value: object) -> object:
    """Read a list separated by commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Duration = Annotated[timedelta, BeforeValidator(duration), PlainSerializer(format_duration)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(lambda x: x.upper() if isinstance(x, str) else x)
]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(listed)]
EMBEDDED = "embedded"  # the S3 server of the home, whatever its port
EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses that listen everywhere, and where we ask
OTHERS = 0o077  # of a file's mode: permissions of group and others
MAIN = "plateway"  # what the site's own bucket is called among its buckets
BLOCK = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # what may name a bucket, and a block
WHO = ("access_key_id", "secret_access_key", "session_token")
CALLED = {"url": "endpoint_url", "name": "endpoint_name"}  # what an endpoint's fields are called beside a bucket's url
ENDPOINT = {CALLED.get(one.name, one.name): one.name for one in fields(Endpoint)}  # its fields as settings spell them
OWN = ENDPOINT.keys() - {"read_only"}  # of the site's own bucket; other buckets inherit them


class Runtime(PydanticBaseSettingsSource):
    """What the running `plateway up` wrote into the home: the embedded endpoint, and the key that belongs to it.

    It goes before keys from elsewhere, and says nothing where somebody named another endpoint.
    """

    def __init__(self, settings_cls: type[BaseSettings], *above: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self.above = above

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for source in reversed(self.above):
            given |= source()
        found = runtime(Path(given.get("home") or ".plateway"))
        named = [given[name] for name in ("endpoint_url", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if name in given]
        if named:  # the address may have been copied from there
            return {"endpoint_name": EMBEDDED} if named[0] == found.get("endpoint_url") else {}
        # by alias, as in the environment, so that a value from both is one value
        return {alias: value for name, value in found.items() for alias in _names(name)[-1:]}


def runtime(home: Path) -> dict[str, Any]:
    """Read the settings that the running `plateway up` left in its home; none when there is none."""
    return dict(_left(home).get("settings", {}))


def _left(home: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((home / RUNTIME).read_text()))
    except (OSError, ValueError):
        return {}


def env_file(settings_cls: type[BaseSettings]) -> DotEnvSettingsSource:
    """Open the file that adds to the environment: ``.env``, unless PLATEWAY_ENV_FILE names another one, or none."""
    return DotEnvSettingsSource(settings_cls, env_file=os.environ.get(ENV_FILE, ".env") or None)


class PrefectApi(NamedTuple):
    """Prefect's API, and what opens it."""

    url: str
    login: SecretStr | None = None  # user:password
    key: SecretStr | None = None  # of Prefect Cloud


class LogSettings(BaseSettings):
    """How processes write their log records; read before, and without, everything else."""

    model_config = SettingsConfigDict(
        env_prefix="PLATEWAY_", extra="ignore", populate_by_name=True, validate_default=True
    )

    log_level: LogLevel | None = Field(
        None, description="log records from this level on; default: WARNING for commands, INFO for services"
    )
    log_format: Literal["text", "json"] = Field("text", description="log records as text, or as a JSON object a line")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, env_file(settings_cls)


class Settings(LogSettings):
    """Every setting, with a default that works on a laptop."""

    home: Path = Field(Path(".plateway"), description="where the embedded default keeps everything")
    database_url: SecretStr | None = Field(None, description="the catalogue; default: SQLite in the home")
    source_root: Path | None = Field(None, description="holds <system>/events/*.json; default: bench in the home")
    staging_root: Path | None = Field(None, description="copy images here first; default: no staging")
    bucket_url: str = Field("s3://plateway-raw", description="s3://bucket[/prefix], file://… or memory://")
    buckets_file: Path | None = Field(
        None, description="further buckets, and whose exports go there; default: buckets.toml in the home"
    )
    files_systems: Names = Field((), description="systems whose files become objects of their own, without a tar")
    settle_seconds: Duration = Field(timedelta(seconds=2), description="nothing may have changed for this long")
    images_deadline: Duration = Field(timedelta(minutes=10), description="then an incomplete event is quarantined")
    image_patterns: Names = Field(IMAGES, description="what counts as an image for the announced count")
    ignore: Names = Field(IGNORED, description="what is no image and no event file, whatever else its name matches")
    timezone: str | None = Field(None, description="zone of naive timestamps; default: they are refused")
    poll: bool = Field(False, description="the file sensor polls although the file system seems local")
    poll_interval: Duration = Field(timedelta(seconds=1), description="pause between two polls of the file sensor")
    purge_systems: Names = Field((), description="systems whose raw images may be purged at all")
    purge_requires: str = Field("bucket", description="bucket, or bucket+archive")
    purge_proof: Literal["read", "head"] = Field(
        "read", description="read: a copy is read whole before raw images go; head: weaker, size and ETag only"
    )
    proof_age: Duration = Field(timedelta(days=1), description="a reading older than this is no proof")
    proof_budget: ByteSize | None = Field(
        None, description="so many bytes a day are read as proof, what is left waits; default: no limit"
    )
    trust_archive: bool = Field(
        False, description="expire and purge on the archive's word where its tape cannot be read from here"
    )
    purge_fraction: float = Field(0.5, gt=0, le=1, description="a purge of more of a system's events stops and asks")
    raw_lifespan: Duration = Field(timedelta(hours=8), description="age of the evidence before raw images may go")
    staging_lifespan: Duration = Field(timedelta(days=1), description="the same for staging copies")
    trash_grace: Duration = Field(timedelta(hours=1), description="between moving aside and removing")
    export_workers: int = Field(4, ge=1, le=64, description="events exported at a time by one process")
    export_runs: int = Field(
        4, ge=0, le=64, description="further export runs that discover starts when much is due, one for each worker"
    )
    read_back_budget: ByteSize = Field(ByteSize(50 * 2**30), description="the verify flow reads back so much a day")
    lease: Duration = Field(timedelta(minutes=10), description="how long a silent worker keeps an event")
    archive_inbox: str | None = Field(
        None, description="where archive manifests are dropped: a directory or fsspec URL"
    )
    archive_url: str | None = Field(None, description="where archive manifests are polled over HTTP")
    archive_token: SecretStr | None = Field(None, description="bearer token for that")
    archive_target: str | None = Field(None, description="the archive itself, where it can be read: any fsspec URL")
    archive_within: Duration = Field(timedelta(days=7), description="an export should be on tape after so long")
    read_archive_budget: ByteSize = Field(
        ByteSize(10 * 2**30), description="the reconcile flow reads so much of the archive a day, only copies first"
    )
    bucket_lifespan: Duration | None = Field(
        None, description="age of the archive's evidence before a bucket copy may go; default: never"
    )
    reconcile_fraction: float = Field(
        0.1, gt=0, le=1, description="more lost or changed than this part of the exports stops the run"
    )
    amqp_url: SecretStr | None = Field(None, description="RabbitMQ that tells what went to tape, as surf-archiver does")
    redis_url: SecretStr | None = Field(None, description="Redis where instruments of DLM v2 announce their events")
    outbox_redis_url: SecretStr | None = Field(
        None, description="Redis that gets dlm:new-imaging-event and dlm:new-export, for subsystems of DLM v2"
    )
    outbox_amqp_url: SecretStr | None = Field(None, description="RabbitMQ that gets messages about recorded facts")
    outbox_amqp_exchange: str = Field("plateway", min_length=1, max_length=255, description="its fanout exchange")
    outbox_webhook_url: SecretStr | None = Field(None, description="where messages are posted as CloudEvents")
    outbox_webhook_secret: SecretStr | None = Field(None, description="signs them (HMAC-SHA256)")
    outbox_directory: Path | None = Field(None, description="an existing directory that gets messages as JSON files")
    stuck_after: Duration = Field(timedelta(hours=1), description="an event that waits longer is an alert")
    notify: str | None = Field(None, description="a Prefect notification block for alerts: <type>/<name>")
    objects_url: str | None = Field(
        None, description="where the object API keeps objects: s3://bucket[/prefix], file://… or memory://"
    )
    tokens_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("PLATEWAY_TOKENS_FILE", "AUTH_TOKENS_FILE"),
        description="the gateway's tokens; default: tokens.json in the home",
    )
    access_log: Path | None = Field(None, description="who asked the gateway for what; default: in the home")
    trusted_proxies: Names = Field((), description="addresses and networks of proxies that the gateway believes")
    read_only: bool = Field(False, description="the gateway changes nothing")
    open_access: bool = Field(
        False, description="the gateway shows events to anybody who can reach it, without a token"
    )
    link_lifetime: Duration = Field(timedelta(minutes=15), description="how long a presigned link is good")
    max_object: ByteSize = Field(ByteSize(5 * 2**30), description="size of an object that the object API accepts")
    token_rate: int = Field(6000, ge=1, description="requests a minute that one token may make")
    address_rate: int = Field(12000, ge=1, description="requests a minute that one address may make")
    failed_rate: int = Field(20, ge=1, description="bad tokens a minute that one address may show")
    serve_host: str = Field("127.0.0.1", description="where the gateway listens")
    serve_port: int = Field(8000, ge=0, le=65535, description="its port; 0: any that is free")
    dlm_v1: bool = Field(False, description="/api/1/exports is the list of DLM v1, not the page of DLM v2")
    s3_port: int | None = Field(
        None, ge=0, le=65535, description="port of the S3 endpoint for reading; 0: any that is free; default: off"
    )
    s3_key_file: Path | None = Field(
        None, description="what the secrets of access keys follow from; default: gateway/s3.key in the home"
    )
    serve_workers: int = Field(1, ge=1, le=64, description="processes that answer")
    prefect_ui_url: str | None = Field(
        None, description="Prefect's UI as browsers reach it; default: the one of `plateway up`"
    )
    gateway_url: str | None = Field(
        None, description="the gateway as browsers reach it, for links from Prefect; default: the one of `plateway up`"
    )
    work_pool: str = Field(
        "resident",
        description="the work pool that runs the flows; one called like its type is made: resident or process",
    )
    prefect_database_url: SecretStr | None = Field(None, description="PostgreSQL for Prefect; default: SQLite")
    endpoint_url: str | None = Field(
        None, validation_alias=AliasChoices("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), description="where S3 is"
    )
    endpoint_name: str | None = Field(
        None, description="what the catalogue calls the endpoint, however it is reached; default: by its address"
    )
    access_key_id: str | None = Field(None, validation_alias="AWS_ACCESS_KEY_ID", description="key for S3")
    secret_access_key: SecretStr | None = Field(
        None, validation_alias="AWS_SECRET_ACCESS_KEY", description="its secret"
    )
    session_token: SecretStr | None = Field(None, validation_alias="AWS_SESSION_TOKEN", description="for STS")
    bypass_proxy: bool = Field(False, description="S3 is asked directly, whatever proxies the environment names")
    region: str = Field(
        "us-east-1", validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION"), description="of the bucket"
    )

    @field_validator("timezone")
    @classmethod
    def known_zone(cls, value: str | None) -> str | None:
        """Refuse a zone that the machine does not know."""
        try:
            return value and ZoneInfo(value).key
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"{value!r} is not a time zone like Europe/Amsterdam") from error

    @field_validator("purge_requires")
    @classmethod
    def known_requirement(cls, value: str) -> str:
        """Refuse a misspelt requirement: it would weaken the proof."""
        if value not in {"bucket", "bucket+archive"}:
            raise ValueError(f"{value!r} is neither 'bucket' nor 'bucket+archive'")
        return value

    @field_validator("archive_inbox", "archive_url", "archive_target")
    @classmethod
    def without_password(cls, value: str | None) -> str | None:
        """Refuse a password where it would be shown and logged."""
        if value and urlsplit(value).password:
            raise ValueError("a password does not belong into an address: use a key or a token")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = env_file(settings_cls)
        return init_settings, Runtime(settings_cls, init_settings, env_settings, file), env_settings, file

    @property
    def root(self) -> Path:
        """The bench: holds one directory per system."""
        return (self.source_root or self.home / "bench").absolute()

    @property
    def catalog_url(self) -> str:
        """The catalogue's database, secrets included."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home.absolute() / 'catalogue.db'}"

    @property
    def tokens(self) -> Path:
        """The gateway's tokens file."""
        return (self.tokens_file or self.home / "tokens.json").absolute()

    @property
    def endpoint(self) -> Endpoint:
        """The S3 endpoint of the site, with its credentials."""
        return Endpoint(**{ENDPOINT[name]: getattr(self, name) for name in OWN})

    @property
    def bucket(self) -> Bucket:
        """The site's own bucket, where exports go unless their system has another."""
        return Bucket(url=self.bucket_url, endpoint=self.endpoint)

    @cached_property
    def buckets(self) -> Mapping[str, Bucket]:
        """The site's further buckets by name, read once.

        Raises:
            Misconfigured: names the table and the field that is wrong, never its value.
        """
        path = self.buckets_file or self.home / "buckets.toml"
        return read_buckets(path, self.endpoint, wanted=self.buckets_file is not None)

    @property
    def access_file(self) -> Path:
        """Who asked the gateway for what."""
        return (self.access_log or self.home / "gateway" / "access.log").absolute()

    @property
    def s3_secrets(self) -> Path:
        """The file that the secrets of access keys follow from."""
        return (self.s3_key_file or self.home / "gateway" / "s3.key").absolute()

    @property
    def s3_gateway(self) -> str | None:
        """Where S3 clients on this machine reach the endpoint for reading; None where it is off."""
        host = EVERYWHERE.get(self.serve_host, self.serve_host)
        host = f"[{host}]" if ":" in host else host
        return _left(self.home).get("s3_gateway") or (f"http://{host}:{self.s3_port}" if self.s3_port else None)

    @property
    def gateway(self) -> str:
        """Where people reach the gateway from this machine: that of `plateway up`, else as it is set."""
        host = EVERYWHERE.get(self.serve_host, self.serve_host)
        host = f"[{host}]" if ":" in host else host
        return str(_left(self.home).get("gateway") or f"http://{host}:{self.serve_port}")

    @property
    def gateway_link(self) -> str | None:
        """The gateway as browsers reach it, without a slash at its end; None where that is not known."""
        known = self.gateway_url or _left(self.home).get("gateway")
        return str(known).rstrip("/") if known else None

    @property
    def has_outbox(self) -> bool:
        """Whether anybody is to get messages."""
        return any((self.outbox_redis_url, self.outbox_amqp_url, self.outbox_webhook_url, self.outbox_directory))

    @property
    def prefect_ui(self) -> str | None:
        """Where people see the runs."""
        return self.prefect_ui_url or _left(self.home).get("prefect_ui")

    @property
    def prefect_api(self) -> PrefectApi | None:
        """Where Prefect is reached: as its own variables say, else the server of `plateway up` in the home."""
        if url := os.environ.get("PREFECT_API_URL"):
            login, key = (os.environ.get(f"PREFECT_API_{name}") for name in ("AUTH_STRING", "KEY"))
            return PrefectApi(url.rstrip("/"), SecretStr(login) if login else None, SecretStr(key) if key else None)
        if (url := _left(self.home).get("prefect_api_url")) is None:
            return None
        file = self.home / PREFECT_LOGIN
        return PrefectApi(url.rstrip("/"), SecretStr(file.read_text().strip()) if file.is_file() else None)

    @property
    def on_tape_within(self) -> timedelta | None:
        """How long an export may be without a copy on tape; None where no archive is named at all."""
        named = (self.archive_inbox, self.archive_url, self.archive_target, self.amqp_url)
        return self.archive_within if any(named) else None

    def policy(self, system: str) -> Policy:
        """The rules by which this system's images may go."""
        return Policy(
            purge=system in self.purge_systems,
            requires=self.purge_requires,
            lifespan=self.raw_lifespan,
            bucket_lifespan=self.bucket_lifespan,
            grace=self.trash_grace,
            staging_lifespan=self.staging_lifespan,
            fraction=self.purge_fraction,
            proof=self.purge_proof,
            proof_age=self.proof_age,
            proof_budget=self.proof_budget,
            trust_archive=self.trust_archive,
        )

    def instrument(self, system: str) -> Instrument:
        """One system as these settings describe it."""
        return Instrument(
            name=system,
            root=self.root / system,
            settle=self.settle_seconds,
            deadline=self.images_deadline,
            timezone=ZoneInfo(self.timezone) if self.timezone else None,
            patterns=self.image_patterns,
            ignored=self.ignore,
            staging=self.staging_root.absolute() / system if self.staging_root else None,
            policy=self.policy(system),
            stuck_after=self.stuck_after,
            bucket=next((name for name, one in self.buckets.items() if system in one.systems), None),
            layout="files" if system in self.files_systems else "bundle",
        )


def read_buckets(path: Path, own: Endpoint, *, wanted: bool = True) -> dict[str, Bucket]:
    """Read buckets.toml: a table for each further bucket; what it leaves out of the endpoint is as in ``own``.

    Raises:
        Misconfigured: names the table and the field that is wrong, never its value; or there is no file but ``wanted``.
    """
    try:
        tables = tomllib.loads(path.read_text())
        if tables and path.stat().st_mode & OTHERS:
            log.warning("%s can be read by others, and holds keys: chmod 600", path.name)
    except FileNotFoundError:
        if wanted:
            raise Misconfigured(f"{path.name}: no such file") from None
        return {}
    except (OSError, ValueError) as error:  # tomllib names line and column, and quotes single characters
        raise Misconfigured(f"{path.name}: {getattr(error, 'strerror', None) or error}") from None
    found = {name: _parse_table(path.name, name, table, own=own) for name, table in tables.items()}
    claimed: dict[str, str] = {}
    for name, bucket in found.items():
        for system in bucket.systems:
            if (other := claimed.setdefault(system, name)) != name:
                raise Misconfigured(f"{path.name}: exports of {system} go to [{other}] or to [{name}], not to both")
    return found


def format_table(name: str, bucket: Bucket) -> str:
    """Write a bucket as a table of buckets.toml, secrets included; AWS by its address, or another would be meant."""
    told = {"url": bucket.url} | ({"systems": bucket.systems} if bucket.systems else {})
    usual = Endpoint()
    for field, spelt in ENDPOINT.items():
        if (value := getattr(bucket.endpoint, spelt)) != getattr(usual, spelt):
            told[field] = value.get_secret_value() if isinstance(value, SecretStr) else value
    region = told["region"] = bucket.endpoint.region
    told.setdefault("endpoint_url", f"https://s3.{region}.amazonaws.com")
    return "\n".join([f"[{name}]", *(f"{field} = {json.dumps(one)}" for field, one in told.items()), ""])


def _parse_table(file: str, name: str, table: object, *, own: Endpoint) -> Bucket:
    if not BLOCK.fullmatch(name):
        raise Misconfigured(f"{file}: a bucket's name has lower case letters, digits and dashes, and {name!r} has not")
    if name == MAIN or not isinstance(table, dict):
        what = "the site's own bucket: PLATEWAY_BUCKET_URL says where it is" if name == MAIN else "no table"
        raise Misconfigured(f"{file}: {name} is {what}")
    said = {ENDPOINT[field]: value for field, value in table.items() if field in ENDPOINT}
    rest = {field: value for field, value in table.items() if field not in ENDPOINT}
    try:
        return Bucket.model_validate({"endpoint": _inherit(said, own) | said, **rest})
    except ValidationError as error:
        wrong = "; ".join(f"{_spell(e['loc'])}: {e['msg']}" for e in error.errors(include_input=False))
        raise Misconfigured(f"{file}: [{name}] {wrong}") from None


def _spell(location: tuple[int | str, ...]) -> str:
    """Write where a table is wrong as the table spells it."""
    parts = [str(part) for part in location]
    return ".".join(CALLED.get(part, part) for part in parts[1:]) if parts[0] == "endpoint" else ".".join(parts)


def _inherit(said: Mapping[str, Any], own: Endpoint) -> dict[str, Any]:
    """Return the fields of the site's own endpoint that a table inherits; credentials whole or not at all."""
    elsewhere, other = said.get("url", own.url) != own.url, bool(said.keys() & set(WHO))
    left = {"read_only", *said} | ({"name"} if elsewhere else set()) | (set(WHO) if other else set())
    return {one.name: getattr(own, one.name) for one in fields(Endpoint) if one.name not in left}


def env_path() -> Path:
    """Return the file that adds to the environment: ``.env`` here, or the one that PLATEWAY_ENV_FILE names."""
    return Path(os.environ.get(ENV_FILE) or ".env")


def environment(given: Mapping[str, str | None]) -> dict[str, str]:
    """Make the environment of a command to start: this process's own, with what is given, without what is None."""
    return {name: value for name, value in {**os.environ, **given}.items() if value is not None}


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for their owner only; what is there stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    for one in (*reversed(directory.absolute().parents), directory):
        if not one.is_dir():
            one.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def private_files() -> Iterator[None]:
    """Write every file for its owner only, whatever the umask is, until the end of ``with`` or of a function."""
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def load(**flags: Any) -> Settings:
    """Read the settings; flags that are None count as not given.

    Raises:
        Misconfigured: names each setting that is wrong, never its secret value.
    """
    _warn_of_unknown()
    with _complaining():
        return Settings(**{name: value for name, value in flags.items() if value is not None})


def load_logs() -> LogSettings:
    """Read only the settings of logs.

    Raises:
        Misconfigured: one of them is wrong.
    """
    with _complaining():
        return LogSettings()


@contextmanager
def _complaining() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise Misconfigured("; ".join(map(_complaint, error.errors()))) from None


def _complaint(error: ErrorDetails) -> str:
    """Describe what is wrong as the setting was typed; secrets are left out."""
    name = str(error["loc"][0]) if error["loc"] else ""
    field = next((field for field in Settings.model_fields if name in {field, *_names(field)}), None)
    message = error["msg"].removeprefix("Value error, ")
    if field is None:
        return f"{name}: {message}" if name else message
    spelt, value = _spelt(field), error["input"]
    secret = "Secret" in str(Settings.model_fields[field].annotation) or "://" in str(value)  # an address may hold one
    if secret or not isinstance(value, str | int | float):
        return f"{spelt}: {message}"
    return f"{spelt}={message}" if message.startswith(repr(value)) else f"{spelt}={value!r}: {message}"


def field_names() -> dict[str, str]:
    """Return the field of each variable that is a setting."""
    names = {name: field for field in Settings.model_fields for name in _names(field) if name != field}
    return names | {_spelt(field): field for field in Settings.model_fields}


def unknown_variables() -> list[str]:
    """Report each variable of the environment or of .env that begins like ours and is none, with the nearest name."""
    known = {*map(_spelt, Settings.model_fields), *OTHER_VARIABLES}
    known |= {name for field in Settings.model_fields for name in _names(field)}
    there = {*os.environ, *(name.upper() for name in env_file(Settings).env_vars)}
    unknown = sorted(name for name in there if name.startswith("PLATEWAY_") and name not in known)
    near = {name: difflib.get_close_matches(name, sorted(known), n=1) for name in unknown}
    return [f"{name} is no setting" + (f"; did you mean {near[name][0]}?" if near[name] else "") for name in unknown]


@cache
def _warn_of_unknown() -> None:
    for message in unknown_variables():
        log.warning(message)


def explain(**flags: Any) -> list[dict[str, Any]]:
    """List each setting: name, value (secrets masked), source and meaning."""
    given = {name: value for name, value in flags.items() if value is not None}
    found = load(**flags)
    origins = {
        "flag": given,
        "plateway up": runtime(found.home) if found.endpoint_url == runtime(found.home).get("endpoint_url") else {},
        "environment": EnvSettingsSource(Settings)(),
        ".env": env_file(Settings)(),
    }
    return [_explained(name, field, found, origins) for name, field in Settings.model_fields.items()]


def describe() -> list[dict[str, str]]:
    """List each setting with its default, as it is written in the environment, and its meaning."""
    defaults = Settings.model_construct().model_dump(mode="json")
    return [
        {
            "setting": _spelt(name),
            "default": _format_default(defaults[name]),
            "meaning": field.description or "",
        }
        for name, field in Settings.model_fields.items()
    ]


def _format_default(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _explained(name: str, field: FieldInfo, found: Settings, origins: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = _names(name)
    value = getattr(found, name)
    return {
        "setting": _spelt(name),
        "value": found.model_dump(mode="json")[name] if value is not None else None,
        "source": next((origin for origin, values in origins.items() if {name, *names} & set(values)), "default"),
        "meaning": field.description,
    }


def _spelt(field: str) -> str:
    """Return the name of a setting in the environment that the documentation uses."""
    return next((each for each in _names(field) if each != field), f"PLATEWAY_{field.upper()}")


def _names(field: str) -> list[str]:
    """List what a setting is called in the environment, the plainest name first; without an alias, its own name."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in reversed(alias.choices)]
    return [alias if isinstance(alias, str) else field]
