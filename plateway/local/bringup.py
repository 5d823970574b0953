"""One machine: everything that ``plateway up`` starts, on loopback, below one home.

Says which parts there are, what each is told, and when it is ready; ``supervisor`` keeps them running. What the home
holds afterwards: ``catalogue.db``, ``bench/``, ``s3/`` (data and keys), ``prefect/``, ``gateway/``, ``logs/``,
``ports.json`` (the next start takes the same), ``prefect.auth``, which Prefect asks for, and ``runtime.json`` by which
commands in other terminals find the S3 server, Prefect and the gateway.
Does not import Prefect: that takes seconds.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import AliasChoices, SecretStr
from rich.console import Console
from rich.markup import escape

from plateway.catalog import Catalog
from plateway.errors import Misconfigured, PlatewayError
from plateway.gateway.tokens import sign_in_link
from plateway.instruments import format_duration
from plateway.local import seaweed
from plateway.local.project import PROJECT
from plateway.local.seaweed import PLAIN, Identity
from plateway.local.supervisor import (
    Part,
    Step,
    Supervisor,
    claim,
    replace,
    take_over,
    write_private,
)
from plateway.settings import (
    EMBEDDED,
    ENV_FILE,
    EVERYWHERE,
    OTHERS,
    RUNTIME,
    Settings,
    make_private,
)

PORTS = "ports.json"
DEMO = "demo.txt"  # in homes that `plateway demo` made
OURS = ("gateway", "logs", "prefect", "s3")  # directories of the home that only its parts use
AUTH = "prefect.auth"  # user:password of Prefect's API and UI
WORKER = "plateway"
TYPES = ("resident", "process")  # of work pools that can be made from here; they are named like their type
OBJECTS = "s3://plateway-objects"  # where the gateway keeps objects, beside our own S3 server
LOOPBACK = "127.0.0.1,localhost,::1"
FIRST = 300.0  # seconds for the first start of Prefect: 10 on two idle cores, 66 seen on busy ones

# What a site may have set otherwise. Heartbeats: the least that Prefect takes, so that dead runs are found soon.
TUNING = {
    "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "plateway",  # into the logs of runs
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
}
# What would lead the parts to another server than ours.
FOREIGN = (
    "PREFECT_API_KEY",
    "PREFECT_PROFILE",
    "PREFECT_PROFILES_PATH",
    "AWS_SESSION_TOKEN",
)


@dataclass(frozen=True)
class Embedded:
    """The S3 server of the home: where it listens and its administrator."""

    data: Path
    listen: Mapping[str, int]
    admin: Identity

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self.listen['s3']}"


@dataclass(frozen=True)
class Parts:
    """What is running, and what others need to work with it."""

    settings: Settings  # with the embedded endpoint filled in
    env: Mapping[str, str] = field(repr=False)  # for commands that should see the same
    prefect_api_url: str
    prefect_ui: str
    gateway: str  # where it is reached from here
    endpoint: str | None  # the S3 server, ours or the configured one; None for other kinds of bucket
    supervisor: Supervisor = field(repr=False)

    def prefect_client(self) -> httpx.Client:
        """Make a client of Prefect's API, with its credentials."""
        return httpx.Client(base_url=self.prefect_api_url, auth=basic(self.env), timeout=60, trust_env=False)

    def alive(self) -> dict[str, bool]:
        """Tell which parts are up and ready."""
        return self.supervisor.alive()

    def pids(self) -> dict[str, int]:
        """Tell the processes of the parts that are up."""
        return self.supervisor.pids()

    def sign_in_link(self) -> str:
        """Create a link that signs one browser in at the gateway."""
        return sign_in_link(self.settings.home, self.gateway, now=datetime.now(UTC))

    def watch(self) -> None:
        """Wait until interrupted; parts that die meanwhile are started again."""
        self.supervisor.watch()


def up(settings: Settings, console: Console) -> int:
    """Run everything until Ctrl-C or SIGTERM, and return the exit code."""
    try:
        _unambiguous(settings)
        adopt(settings.home.absolute())
        with bring_up(settings, console) as parts:
            console.print(f"Gateway     {parts.gateway}", soft_wrap=True)
            console.print(f"Sign in     {parts.sign_in_link()} (once, within 15 minutes)", soft_wrap=True)
            console.print(f"Prefect UI  {parts.prefect_ui}", soft_wrap=True)
            console.print(f"for others  export PREFECT_API_URL={parts.prefect_api_url}", soft_wrap=True)
            auth = shlex.quote(str(parts.settings.home / AUTH))
            console.print(f'            export PREFECT_API_AUTH_STRING="$(cat {auth})"', soft_wrap=True)
            console.print("Ctrl-C stops everything.")
            parts.watch()
    except KeyboardInterrupt:
        return 0
    except PlatewayError as error:
        console.print(f"[red]✗[/] {escape(str(error))}", soft_wrap=True)
        return 1
    return 0


def adopt(home: Path) -> None:
    """Make a demo's home a site's: what it holds from now on is not for a demo to purge.

    Raises:
        Busy: another process runs on this home.
    """
    if (home / DEMO).exists():
        with claim(home):
            (home / DEMO).unlink(missing_ok=True)


def _unambiguous(settings: Settings) -> None:
    """Refuse to guess where a site's images should go.

    Raises:
        Misconfigured: there is a key for S3, but nobody said where that is.
    """
    key = next((name for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE") if os.environ.get(name)), None)
    if (
        key
        and settings.bucket_url.startswith("s3://")
        and settings.endpoint_url in {None, _last_endpoint(settings.home)}
    ):
        raise Misconfigured(
            f"{key} is set and AWS_ENDPOINT_URL is not: name the endpoint (https://s3.<region>.amazonaws.com for AWS), "
            f"or unset {key} to use the S3 server of the home"
        )


@contextmanager
def bring_up(settings: Settings, console: Console) -> Iterator[Parts]:
    """Start everything, saying a line for each part; stop it at the end of ``with``. For the main thread.

    SIGTERM and SIGHUP arrive as KeyboardInterrupt meanwhile.

    Raises:
        Busy: another process runs on this home.
        Unavailable: a part did not start.
    """
    home = settings.home.absolute()
    make_private(home)
    say = partial(_say, console)
    with claim(home):
        close_home(home)
        if left := take_over(home):
            say(f"[yellow]![/] ended {left} processes that an earlier start had left")
        listen = _ports(home, settings)
        s3 = _embedded(settings, home, listen["s3"])
        told = resolve(settings, s3).model_copy(update={"serve_port": listen["gateway"]["http"]})
        if not (home / AUTH).exists():
            read_auth(home)
            say(f"Prefect's UI and API ask for a password: it is in {AUTH} in the home")
        parts = partial(Parts, **announce(told, s3, listen["prefect"]["http"]))
        env = environment(told, parts.keywords["prefect_api_url"])
        make_private(told.root) if told.root.is_relative_to(home) else told.root.mkdir(parents=True, exist_ok=True)
        try:
            with Supervisor(home, plan(told, s3, env), say) as supervisor:
                close_home(home)
                yield parts(settings=told, env=env, supervisor=supervisor)
        finally:
            close_home(home)


def close_home(home: Path) -> None:
    """Take from others what they may read in the home; bench and archive are the site's to share.

    Earlier versions left it to the umask; Prefect copies its UI with modes, SeaweedFS writes ``*.vif`` with its own.
    """
    ours = [home, *(path for path in home.iterdir() if path.is_file())]
    ours += [path for name in OURS for path in ((home / name), *(home / name).rglob("*"))]
    for path in ours:
        with suppress(OSError):  # gone meanwhile, or another account's
            if not path.is_symlink() and (mode := stat.S_IMODE(path.stat().st_mode)) & OTHERS:
                path.chmod(mode & ~OTHERS)


def _say(console: Console, site: str) -> None:
    with suppress(OSError):  # a terminal that has gone must not keep us from stopping in order
        console.print(site, soft_wrap=True, highlight=False)


def _ports(home: Path, settings: Settings) -> dict[str, dict[str, int]]:
    """Choose the ports of the home, those of last time where they are free, and keep them."""
    file = home / PORTS
    last: dict[str, dict[str, int]] = json.loads(file.read_text()) if file.exists() else {}
    chosen = {"s3": seaweed.ports(last.get("s3"))}
    for name in ("prefect", "gateway"):
        http = last.get(name, {}).get("http", 0)
        taken = {port for others in chosen.values() for port in others.values()}
        drawn = (port for port in seaweed.ports().values() if port not in taken)
        chosen[name] = {"http": http if http and http not in taken and seaweed.free(http) else next(drawn)}
    if "serve_port" in settings.model_fields_set and settings.serve_port:
        chosen["gateway"] = {"http": settings.serve_port}  # it is said where it is to be
    replace(file, chosen)
    return chosen


def _embedded(settings: Settings, home: Path, listen: Mapping[str, int]) -> Embedded | None:
    """Prepare the S3 server of the home, unless the bucket is somewhere else."""
    if not settings.bucket_url.startswith("s3://") or settings.endpoint_url not in {None, _last_endpoint(home)}:
        return None
    data = home / "s3"
    data.mkdir(mode=0o700, exist_ok=True)
    seaweed.lock_ports(data)
    return Embedded(data, listen, seaweed.enroll(data / seaweed.CONFIG))


def _last_endpoint(home: Path) -> str | None:
    """Tell what the settings may have read from the runtime file of an earlier start: nobody configured that."""
    try:
        last: dict[str, Any] = json.loads((home / RUNTIME).read_text())["settings"]
    except FileNotFoundError:
        return None
    return last.get("endpoint_url")


def resolve(settings: Settings, s3: Embedded | None) -> Settings:
    """Fill in the embedded endpoint and its key, and make paths hold from any directory."""
    paths = {
        name: value.absolute()
        for name in type(settings).model_fields
        if isinstance(value := getattr(settings, name), Path)
    }
    ours = (
        {
            "endpoint_url": s3.url,
            "endpoint_name": EMBEDDED,
            "access_key_id": s3.admin.access_key_id,
            "secret_access_key": SecretStr(s3.admin.secret_access_key),
            "session_token": None,
            "region": "us-east-1",
            "objects_url": settings.objects_url or OBJECTS,
        }
        if s3
        else {}
    )
    return settings.model_copy(update=paths | _archives(settings) | ours)


def _archives(settings: Settings) -> dict[str, str]:
    """Make archive places that are paths hold from any directory."""
    named = {name: getattr(settings, name) for name in ("archive_inbox", "archive_target")}
    return {name: str(Path(url).absolute()) for name, url in named.items() if url and "://" not in url}


def announce(settings: Settings, s3: Embedded | None, port: int) -> dict[str, Any]:
    """Write the runtime file (mode 0600), and return the addresses in it."""
    secret = settings.secret_access_key.get_secret_value() if settings.secret_access_key else None
    found = {
        "prefect_api_url": f"http://127.0.0.1:{port}/api",
        "prefect_ui": f"http://127.0.0.1:{port}",
        "gateway": _url(settings),
        "endpoint": settings.endpoint_url if settings.bucket_url.startswith("s3://") else None,
    }
    ours = (
        {
            "endpoint_url": settings.endpoint_url,
            "endpoint_name": EMBEDDED,
            "access_key_id": settings.access_key_id,
            "secret_access_key": secret,
            "region": settings.region,
        }
        if s3
        else {}
    )
    shown = {
        "prefect_api_url": found["prefect_api_url"],
        "prefect_ui": found["prefect_ui"],
        "gateway": found["gateway"],
        "s3_endpoint": found["endpoint"],
    }
    replace(settings.home / RUNTIME, {"settings": ours, **shown})
    return found


def read_auth(home: Path) -> str:
    """Read what Prefect's API and UI ask for, ``user:password``; made when it is first read (mode 0600)."""
    file = home / AUTH
    if not file.exists():
        make_private(home)
        write_private(file, f"plateway:{secrets.token_urlsafe(24)}")
    return file.read_text().strip()


def basic(env: Mapping[str, str]) -> httpx.BasicAuth:
    """Read from the environment of the parts what Prefect's API asks for."""
    user, _, password = env["PREFECT_API_AUTH_STRING"].partition(":")
    return httpx.BasicAuth(user, password)


def _url(settings: Settings) -> str:
    """Say where the gateway is reached from this machine."""
    host = EVERYWHERE.get(settings.serve_host, settings.serve_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.serve_port}"


def environment(settings: Settings, api: str) -> dict[str, str]:
    """Say what the parts are told: our environment, the settings as resolved here, and where Prefect is."""
    ours = {name for names in _names(settings).values() for name in names}
    inherited = {name: value for name, value in os.environ.items() if name not in {*ours, *FOREIGN}}
    proxies = {name: ",".join(filter(None, [os.environ.get(name), LOOPBACK])) for name in ("NO_PROXY", "no_proxy")}
    prefect = {
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": read_auth(settings.home),
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(settings.home / "prefect" / "ui"),  # else it writes to its package
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "PLATEWAY_PROJECT": str(PROJECT),
        ENV_FILE: "",  # what is not set here is not set
        "PYTHONUNBUFFERED": "1",
    }
    return TUNING | inherited | proxies | prefect | exported(settings)


def exported(settings: Settings) -> dict[str, str]:
    """Spell every setting that has a value as environment variables, under each of its names."""
    known = {field: getattr(settings, field) for field in _names(settings)}
    return {
        name: spell(known[field])
        for field, names in _names(settings).items()
        for name in names
        if known[field] is not None
    }


def _names(settings: Settings) -> dict[str, list[str]]:
    """List each setting's environment variables."""
    aliases = {name: about.validation_alias for name, about in type(settings).model_fields.items()}
    return {
        name: [str(each) for each in alias.choices]
        if isinstance(alias, AliasChoices)
        else [str(alias or f"PLATEWAY_{name.upper()}")]
        for name, alias in aliases.items()
    }


def spell(value: object) -> str:
    """Write a setting's value the way it is read."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, timedelta):
        return format_duration(value)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def plan(settings: Settings, s3: Embedded | None, env: Mapping[str, str]) -> list[Part | Step]:
    """List the parts; those that wait for nothing start at once."""
    found: list[Part | Step] = [prefect(settings, env)]
    before = ["prefect", "catalogue"]
    if s3 is not None:
        urls = (settings.bucket_url, settings.objects_url or "")
        buckets = {url.removeprefix("s3://").partition("/")[0]: None for url in urls if url.startswith("s3://")}
        found += [storage(s3), Step("bucket", "Buckets", partial(_create, s3, list(buckets)), after=("s3",))]
        before.append("bucket")
    found.append(Step("catalogue", "Catalogue", partial(_migrate, settings)))
    parts = [provision(env), worker(settings, env, before), sensor(settings, env, before)]
    parts.append(gateway(settings, env, [part for part in before if part != "prefect"]))
    servers = {"amqp": settings.amqp_url, "redis": settings.redis_url}
    return [*found, *parts, *(bridge(kind, env, before) for kind, url in servers.items() if url)]


def storage(s3: Embedded) -> Part:
    """Describe the S3 server."""
    return Part(
        name="s3",
        title="S3 server",
        command=seaweed.command(s3.data, s3.data / seaweed.CONFIG, s3.listen),
        environment=seaweed.environment(s3.data),
        directory=s3.data,
        where=s3.url,
        ready=lambda _: seaweed.ready(s3.url),
        patience=seaweed.START,
        farewell=seaweed.STOP,
        umask=OTHERS,
    )


def prefect(settings: Settings, env: Mapping[str, str]) -> Part:
    """Describe the Prefect server: as ``prefect server start`` runs it, a second sooner, and closed to strangers."""
    ui = env["PREFECT_API_URL"].removesuffix("/api")
    port = ui.rpartition(":")[2]
    named = urlsplit(settings.prefect_ui_url or ui)
    origins = (ui, f"http://localhost:{port}", f"{named.scheme}://{named.netloc}")
    url = settings.prefect_database_url
    database = url.get_secret_value().replace("postgresql://", "postgresql+asyncpg://") if url else None
    return Part(
        name="prefect",
        title="Prefect server",
        command=[
            *(sys.executable, "-m", "uvicorn", "--factory", "deployments.server:create_app"),
            *("--host", "127.0.0.1", "--port", port, "--log-level", "warning", "--timeout-graceful-shutdown", "5"),
        ],
        environment={
            **env,
            "PREFECT_CLIENT_MAX_RETRIES": "20",  # soon after each other, see deployments.server
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": port,
            "PREFECT_SERVER_API_AUTH_STRING": env["PREFECT_API_AUTH_STRING"],
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
            **({"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {}),
        },
        directory=PROJECT,
        where=ui,
        ready=lambda _: _answers(f"{ui}/api/health"),
        patience=FIRST,
        umask=OTHERS,
    )


def provision(env: Mapping[str, str]) -> Part:
    """Describe what puts pool, blocks, deployments and automations onto the server; it waits for that by itself."""
    return Part(
        name="provision",
        title="Provisioning",
        command=[sys.executable, "-m", "deployments.provision"],
        environment=env,
        directory=PROJECT,
        where="pool, blocks, deployments",
        patience=2 * FIRST,
        umask=OTHERS,
        once=True,
    )


def worker(settings: Settings, env: Mapping[str, str], before: Sequence[str]) -> Part:
    """Describe the worker; where it can know the pool's type, it comes up while provisioning still goes on."""
    pool = settings.work_pool
    known = pool in TYPES
    workers = f"{env['PREFECT_API_URL']}/work_pools/{pool}/workers/filter"
    return Part(
        name="worker",
        title="Worker",
        command=[
            *(sys.executable, "-m", "deployments.worker", "--name", WORKER),
            *("--pool", pool, *(["--type", pool] if known else [])),
        ],
        environment=env,
        directory=PROJECT,
        after=tuple(before) if known else (*before, "provision"),
        where=f"work pool {pool}",
        ready=lambda since: _polls(workers, since, auth=basic(env)),
    )


def sensor(settings: Settings, env: Mapping[str, str], before: Sequence[str]) -> Part:
    """Describe the file sensor; its first hint needs the automation."""
    return Part(
        name="sensor",
        title="File sensor",
        command=[sys.executable, "-m", "deployments.sensor"],
        environment=env,
        directory=PROJECT,
        after=(*before, "provision"),
        where=settings.root.name,
        farewell=5,
    )


def gateway(settings: Settings, env: Mapping[str, str], before: Sequence[str]) -> Part:
    """Describe the gateway: it goes on whatever Prefect does."""
    url = _url(settings)
    return Part(
        name="gateway",
        title="Gateway",
        command=[sys.executable, "-m", "plateway", "serve"],
        environment=env,
        directory=PROJECT,
        after=tuple(before),
        where=url,
        ready=lambda _: _answers(f"{url}/health"),  # what it lacks, like a good tokens file, holds nobody else up
        farewell=20,  # half of it for requests that are under way
        umask=OTHERS,
    )


def bridge(kind: str, env: Mapping[str, str], before: Sequence[str]) -> Part:
    """Describe a bridge to a message server of the site; whether that server is there is the bridge's business."""
    return Part(
        name=kind,
        title=f"Bridge {kind}",
        command=[sys.executable, "-m", "plateway", "bridge", kind],
        environment=env,
        directory=PROJECT,
        after=tuple(before),
        where={"amqp": "archive manifests from RabbitMQ", "redis": "imaging events from Redis"}[kind],
    )


def _create(s3: Embedded, buckets: Sequence[str]) -> str:
    for bucket in buckets:
        seaweed.create(s3.url, bucket, s3.admin)
    return ", ".join(buckets)


def _migrate(settings: Settings) -> str:
    with closing(Catalog(settings.catalog_url)) as catalog:
        catalog.upgrade()
        return f"revision {catalog.current()}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False, verify=PLAIN).is_success
    except httpx.TransportError:
        return False


def _polls(workers: str, since: float, *, auth: httpx.Auth | None = None) -> bool:
    """Tell whether our worker has reported to the pool since then (seconds since the epoch)."""
    try:
        answer = httpx.post(workers, json={}, timeout=2, trust_env=False, verify=PLAIN, auth=auth)
    except httpx.TransportError:
        return False
    if not answer.is_success:
        return False
    seen = [datetime.fromisoformat(each["last_heartbeat_time"]) for each in answer.json() if each["name"] == WORKER]
    return any(time >= datetime.fromtimestamp(since, UTC) for time in seen)
