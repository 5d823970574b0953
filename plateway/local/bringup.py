"""One machine: everything that ``plateway up`` starts, on loopback, below one home.

Describes the parts, the environment of each, and when it is ready; ``supervisor`` keeps them running. The home then
holds ``catalogue.db``, ``bench/``, ``s3/`` (data and keys), ``prefect/``, ``gateway/``, ``logs/``, ``ports.json``
(reused by the next start), ``prefect.auth`` (the password of Prefect's API and UI), and ``runtime.json``, from which
commands in other terminals read the addresses of the S3 server, Prefect and the gateway.
Does not import Prefect: that takes seconds.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from rich.text import Text

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
    PREFECT_LOGIN,
    RUNTIME,
    Settings,
    make_private,
)

PORTS = "ports.json"
DEMO = "demo.txt"  # in homes that `plateway demo` made
PRIVATE = ("gateway", "logs", "prefect", "s3")  # directories of the home that only its parts use
AUTH = PREFECT_LOGIN
WORKER = "plateway"
TYPES = ("resident", "process")  # of work pools that are created here; each is named like its type
OBJECTS = "s3://plateway-objects"  # bucket of the object API on the embedded S3 server
LOOPBACK = "127.0.0.1,localhost,::1"
QUIET_START = 10.0  # seconds between two lines about what is pending, where no terminal is
FIRST_START = 300.0  # seconds for the first start of Prefect: 10 on two idle cores, 66 measured on busy ones

# Defaults; the environment overrides them. The heartbeat is the shortest that Prefect accepts.
TUNING = {
    "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "plateway",  # into the logs of runs
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
}
# Variables that would point the parts at another server.
FOREIGN = (
    "PREFECT_API_KEY",
    "PREFECT_PROFILE",
    "PREFECT_PROFILES_PATH",
    "AWS_SESSION_TOKEN",
)


@dataclass(frozen=True)
class Embedded:
    """The S3 server of the home: its data, ports and administrator."""

    data: Path
    listen: Mapping[str, int]
    admin: Identity

    @property
    def url(self) -> str:
        """Its S3 endpoint."""
        return f"http://127.0.0.1:{self.listen['s3']}"


@dataclass(frozen=True)
class RunningParts:
    """The running parts, and how to reach them."""

    settings: Settings  # with the embedded endpoint filled in
    env: Mapping[str, str] = field(repr=False)  # for commands that work on the same site
    prefect_api_url: str
    prefect_ui: str
    gateway: str  # its address on this machine
    s3_gateway: str  # of its S3 endpoint for reading, on this machine
    endpoint: str | None  # of S3, embedded or configured; None for other kinds of bucket
    supervisor: Supervisor = field(repr=False)

    def prefect_client(self) -> httpx.Client:
        """Return a client of Prefect's API, with its credentials."""
        return httpx.Client(base_url=self.prefect_api_url, auth=basic(self.env), timeout=60, trust_env=False)

    def alive(self) -> dict[str, bool]:
        """Report for each part whether it is running and ready."""
        return self.supervisor.alive()

    def pids(self) -> dict[str, int]:
        """Return the process id of each running part."""
        return self.supervisor.pids()

    def sign_in_link(self) -> str:
        """Create a link that signs one browser in at the gateway, once, within 15 minutes."""
        return sign_in_link(self.settings.home, self.gateway, now=datetime.now(UTC))

    def watch(self) -> None:
        """Wait until interrupted; parts that end meanwhile are restarted."""
        self.supervisor.watch()


def up(settings: Settings, console: Console) -> int:
    """Run everything until Ctrl-C or SIGTERM, and return the exit code."""
    try:
        _refuse_ambiguous_endpoint(settings)
        unmark_demo(settings.home.absolute())
        with bring_up(settings, console) as parts:
            console.print(f"Gateway     {parts.gateway}", soft_wrap=True)
            console.print(f"Sign in     {parts.sign_in_link()} (once, within 15 minutes)", soft_wrap=True)
            console.print(f"S3          {parts.s3_gateway} (for reading: plateway key add)", soft_wrap=True)
            console.print(f"Prefect UI  {parts.prefect_ui}", soft_wrap=True)
            console.print(f"Clients     export PREFECT_API_URL={parts.prefect_api_url}", soft_wrap=True)
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


def unmark_demo(home: Path) -> None:
    """Remove the mark of a demo from a home, so that later demos refuse to purge it.

    Raises:
        Busy: another process runs on this home.
    """
    if (home / DEMO).exists():
        with claim(home):
            (home / DEMO).unlink(missing_ok=True)


def _refuse_ambiguous_endpoint(settings: Settings) -> None:
    """Refuse to choose between AWS and the embedded server for a key without an endpoint.

    Raises:
        Misconfigured: an S3 key is configured, and no endpoint.
    """
    key = next((name for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE") if os.environ.get(name)), None)
    if (
        key
        and settings.bucket_url.startswith("s3://")
        and settings.endpoint_url in {None, _read_last_endpoint(settings.home)}
    ):
        raise Misconfigured(
            f"{key} is set and AWS_ENDPOINT_URL is not: set the endpoint (https://s3.<region>.amazonaws.com for AWS), "
            f"or unset {key} to use the S3 server of the home"
        )


@contextmanager
def bring_up(settings: Settings, console: Console) -> Iterator[RunningParts]:
    """Start everything, print a line for each part, and stop it at the end of ``with``. For the main thread.

    SIGTERM and SIGHUP raise KeyboardInterrupt meanwhile.

    Raises:
        Busy: another process runs on this home.
        Unavailable: a part did not start.
    """
    home = settings.home.absolute()
    make_private(home)
    report = partial(_print_line, console)
    with claim(home):
        close_home(home)
        if left := take_over(home):
            report(f"[yellow]![/] ended {left} processes of an earlier start")
        listen = _choose_ports(home, settings)
        s3 = _prepare_storage(settings, home, listen["s3"])
        ports = {"serve_port": listen["gateway"]["http"], "s3_port": listen["gateway-s3"]["http"]}
        resolved = resolve(settings, s3).model_copy(update=ports)
        if not (home / AUTH).exists():
            read_auth(home)
            report(f"Prefect's UI and API require a password: it is in {AUTH} in the home")
        parts = partial(RunningParts, **write_runtime(resolved, s3, listen["prefect"]["http"]))
        env = environment(resolved, parts.keywords["prefect_api_url"])
        if resolved.root.is_relative_to(home):
            make_private(resolved.root)
        else:
            resolved.root.mkdir(parents=True, exist_ok=True)
        try:
            with (
                show_progress(console) as progress,
                Supervisor(home, plan(resolved, s3, env), report, progress=progress) as supervisor,
            ):
                progress("")
                close_home(home)
                yield parts(settings=resolved, env=env, supervisor=supervisor)
        finally:
            close_home(home)


@contextmanager
def show_progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Show what is pending: in place on a terminal, else as a line now and then. An empty text ends it."""
    status = console.status("", spinner="line") if console.is_terminal else None
    due = time.monotonic() + QUIET_START

    def show(text: str) -> None:
        nonlocal due
        if status is not None:
            status.update(Text(text, style="dim", no_wrap=True, overflow="ellipsis"))
            (status.start if text else status.stop)()
        elif text and time.monotonic() > due:
            due = time.monotonic() + QUIET_START
            _print_line(console, text)

    try:
        yield show
    finally:
        show("")


def close_home(home: Path) -> None:
    """Remove the permissions of other accounts in the home, but for bench and archive, which a site may share.

    Earlier versions relied on the umask; Prefect copies its UI with modes, SeaweedFS writes ``*.vif`` with its own.
    """
    paths = [home, *(path for path in home.iterdir() if path.is_file())]
    paths += [path for name in PRIVATE for path in ((home / name), *(home / name).rglob("*"))]
    for path in paths:
        with suppress(OSError):  # removed meanwhile, or owned by another account
            if not path.is_symlink() and (mode := stat.S_IMODE(path.stat().st_mode)) & OTHERS:
                path.chmod(mode & ~OTHERS)


def _print_line(console: Console, line: str) -> None:
    with suppress(OSError):  # a closed terminal must not prevent an orderly stop
        console.print(Text.from_markup(line), soft_wrap=True)


def _choose_ports(home: Path, settings: Settings) -> dict[str, dict[str, int]]:
    """Choose the ports of the home, those of the last start where they are free, and record them."""
    file = home / PORTS
    last: dict[str, dict[str, int]] = json.loads(file.read_text()) if file.exists() else {}
    chosen = {"s3": seaweed.ports(last.get("s3"))}
    for name in ("prefect", "gateway", "gateway-s3"):
        http = last.get(name, {}).get("http", 0)
        taken = {port for others in chosen.values() for port in others.values()}
        drawn = (port for port in seaweed.ports().values() if port not in taken)
        chosen[name] = {"http": http if http and http not in taken and seaweed.free(http) else next(drawn)}
    if "serve_port" in settings.model_fields_set and settings.serve_port:
        chosen["gateway"] = {"http": settings.serve_port}  # explicitly configured
    if settings.s3_port:
        chosen["gateway-s3"] = {"http": settings.s3_port}
    replace(file, chosen)
    return chosen


def _prepare_storage(settings: Settings, home: Path, listen: Mapping[str, int]) -> Embedded | None:
    """Prepare the S3 server of the home; return None if the bucket is elsewhere."""
    if not settings.bucket_url.startswith("s3://") or settings.endpoint_url not in {None, _read_last_endpoint(home)}:
        return None
    data = home / "s3"
    data.mkdir(mode=0o700, exist_ok=True)
    seaweed.lock_ports(data)
    return Embedded(data, listen, seaweed.enroll(data / seaweed.CONFIG))


def _read_last_endpoint(home: Path) -> str | None:
    """Read the endpoint in the runtime file of an earlier start: settings with this value were not configured."""
    try:
        last: dict[str, Any] = json.loads((home / RUNTIME).read_text())["settings"]
    except FileNotFoundError:
        return None
    return last.get("endpoint_url")


def resolve(settings: Settings, s3: Embedded | None) -> Settings:
    """Fill in the embedded endpoint and its key, and make paths absolute."""
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
    return settings.model_copy(update=paths | _resolve_archives(settings) | ours)


def _resolve_archives(settings: Settings) -> dict[str, str]:
    """Make archive locations that are paths absolute."""
    named = {name: getattr(settings, name) for name in ("archive_inbox", "archive_target")}
    return {name: str(Path(url).absolute()) for name, url in named.items() if url and "://" not in url}


def write_runtime(settings: Settings, s3: Embedded | None, port: int) -> dict[str, Any]:
    """Write the runtime file (mode 0600), and return the addresses in it."""
    secret = settings.secret_access_key.get_secret_value() if settings.secret_access_key else None
    addresses = {
        "prefect_api_url": f"http://127.0.0.1:{port}/api",
        "prefect_ui": f"http://127.0.0.1:{port}",
        "gateway": _format_gateway_url(settings, settings.serve_port),
        "s3_gateway": _format_gateway_url(settings, settings.s3_port or 0),
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
        "prefect_api_url": addresses["prefect_api_url"],
        "prefect_ui": addresses["prefect_ui"],
        "gateway": addresses["gateway"],
        "s3_gateway": addresses["s3_gateway"],
        "s3_endpoint": addresses["endpoint"],
    }
    replace(settings.home / RUNTIME, {"settings": ours, **shown})
    return addresses


def read_auth(home: Path) -> str:
    """Read the credentials of Prefect's API and UI, ``user:password``; the first call creates them (mode 0600)."""
    file = home / AUTH
    if not file.exists():
        make_private(home)
        write_private(file, f"plateway:{secrets.token_urlsafe(24)}")
    return file.read_text().strip()


def basic(env: Mapping[str, str]) -> httpx.BasicAuth:
    """Return the credentials of Prefect's API from the environment of the parts."""
    user, _, password = env["PREFECT_API_AUTH_STRING"].partition(":")
    return httpx.BasicAuth(user, password)


def _format_gateway_url(settings: Settings, port: int) -> str:
    """Return the address of the gateway on this machine, at one of its ports."""
    host = EVERYWHERE.get(settings.serve_host, settings.serve_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def environment(settings: Settings, api: str) -> dict[str, str]:
    """Return the environment of the parts: this process's, the resolved settings, and the address of Prefect."""
    ours = {name for names in _list_variables(settings).values() for name in names}
    inherited = {name: value for name, value in os.environ.items() if name not in {*ours, *FOREIGN}}
    proxies = {name: ",".join(filter(None, [os.environ.get(name), LOOPBACK])) for name in ("NO_PROXY", "no_proxy")}
    prefect = {
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": read_auth(settings.home),
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(settings.home / "prefect" / "ui"),  # by default inside its package
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        ENV_FILE: "",  # no .env file: all settings are here
        "PYTHONUNBUFFERED": "1",
    }
    return TUNING | inherited | proxies | prefect | format_settings(settings)


def format_settings(settings: Settings) -> dict[str, str]:
    """Format every setting that has a value as environment variables, under each of its names."""
    return {
        name: format_value(value)
        for field, names in _list_variables(settings).items()
        if (value := getattr(settings, field)) is not None
        for name in names
    }


def _list_variables(settings: Settings) -> dict[str, list[str]]:
    """List each setting's environment variables."""
    aliases = {name: about.validation_alias for name, about in type(settings).model_fields.items()}
    return {
        name: [str(each) for each in alias.choices]
        if isinstance(alias, AliasChoices)
        else [str(alias or f"PLATEWAY_{name.upper()}")]
        for name, alias in aliases.items()
    }


def format_value(value: object) -> str:
    """Format a setting's value as an environment variable is parsed."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, timedelta):
        return format_duration(value)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def plan(settings: Settings, s3: Embedded | None, env: Mapping[str, str]) -> list[Part | Step]:
    """List the parts and steps; those without predecessors start at once."""
    first: list[Part | Step] = [prefect(settings, env)]
    before = ["prefect", "catalogue"]
    if s3 is not None:
        urls = (settings.bucket_url, settings.objects_url or "")
        buckets = {url.removeprefix("s3://").partition("/")[0]: None for url in urls if url.startswith("s3://")}
        first += [storage(s3), Step("bucket", "Buckets", partial(_create_buckets, s3, list(buckets)), after=("s3",))]
        before.append("bucket")
    first.append(Step("catalogue", "Catalogue", partial(_upgrade_catalog, settings)))
    parts = [provision(env), worker(settings, env, before), sensor(settings, env, before)]
    parts.append(gateway(settings, env, [part for part in before if part != "prefect"]))
    servers = {"amqp": settings.amqp_url, "redis": settings.redis_url, "out": settings.has_outbox}
    return [*first, *parts, *(bridge(kind, env, before) for kind, url in servers.items() if url)]


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
        ready_within=seaweed.START,
        stop_within=seaweed.STOP,
        umask=OTHERS,
    )


def prefect(settings: Settings, env: Mapping[str, str]) -> Part:
    """Describe the Prefect server: as ``prefect server start`` runs it, but a second faster, and with a password."""
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
            "PREFECT_CLIENT_MAX_RETRIES": "20",  # with short pauses, see deployments.server
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": port,
            "PREFECT_SERVER_API_AUTH_STRING": env["PREFECT_API_AUTH_STRING"],
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
            **({"PREFECT_SERVER_DATABASE_CONNECTION_URL": database} if database else {}),
        },
        directory=PROJECT,
        where=ui,
        ready=lambda _: _probe_url(f"{ui}/api/health"),
        ready_within=FIRST_START,
        umask=OTHERS,
    )


def provision(env: Mapping[str, str]) -> Part:
    """Describe the provisioning of pool, blocks, deployments and automations; it waits for the server by itself."""
    return Part(
        name="provision",
        title="Provisioning",
        command=[sys.executable, "-m", "deployments.provision"],
        environment=env,
        directory=PROJECT,
        where="pool, blocks, deployments",
        ready_within=2 * FIRST_START,
        umask=OTHERS,
        once=True,
    )


def worker(settings: Settings, env: Mapping[str, str], before: Sequence[str]) -> Part:
    """Describe the worker; if the type of the pool is known, it starts before provisioning has ended."""
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
        ready=lambda since: _probe_worker(workers, since, auth=basic(env)),
    )


def sensor(settings: Settings, env: Mapping[str, str], before: Sequence[str]) -> Part:
    """Describe the file sensor; it starts after provisioning, because its first hint needs the automation."""
    return Part(
        name="sensor",
        title="File sensor",
        command=[sys.executable, "-m", "deployments.sensor"],
        environment=env,
        directory=PROJECT,
        after=(*before, "provision"),
        where=settings.root.name,
        stop_within=5,
    )


def gateway(settings: Settings, env: Mapping[str, str], before: Sequence[str]) -> Part:
    """Describe the gateway; it does not depend on Prefect."""
    url = _format_gateway_url(settings, settings.serve_port)
    return Part(
        name="gateway",
        title="Gateway",
        command=[sys.executable, "-m", "plateway", "serve"],
        environment=env,
        directory=PROJECT,
        after=tuple(before),
        where=url,
        ready=lambda _: _probe_url(f"{url}/health"),  # other problems, like a damaged tokens file, delay no other part
        stop_within=20,  # half of it for running requests
        umask=OTHERS,
    )


def bridge(kind: str, env: Mapping[str, str], before: Sequence[str]) -> Part:
    """Describe a bridge to a message server of the site; it starts even if that server does not answer."""
    return Part(
        name=kind,
        title=f"Bridge {kind}",
        command=[sys.executable, "-m", "plateway", "bridge", kind],
        environment=env,
        directory=PROJECT,
        after=tuple(before),
        where={"amqp": "archive manifests from RabbitMQ", "redis": "imaging events from Redis", "out": "messages"}[
            kind
        ],
    )


def _create_buckets(s3: Embedded, buckets: Sequence[str]) -> str:
    for bucket in buckets:
        seaweed.create(s3.url, bucket, s3.admin)
    return ", ".join(buckets)


def _upgrade_catalog(settings: Settings) -> str:
    with closing(Catalog(settings.catalog_url)) as catalog:
        catalog.upgrade()
        return f"revision {catalog.current()}"


def _probe_url(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False, verify=PLAIN).is_success
    except httpx.TransportError:
        return False


def _probe_worker(workers: str, since: float, *, auth: httpx.Auth | None = None) -> bool:
    """Return whether our worker has sent a heartbeat to the pool since then (seconds since the epoch)."""
    try:
        answer = httpx.post(workers, json={}, timeout=2, trust_env=False, verify=PLAIN, auth=auth)
    except httpx.TransportError:
        return False
    if not answer.is_success:
        return False
    seen = [datetime.fromisoformat(each["last_heartbeat_time"]) for each in answer.json() if each["name"] == WORKER]
    return any(time >= datetime.fromtimestamp(since, UTC) for time in seen)
