"""Containers in namespaces, as a compose engine runs them: dependencies, health checks, users, restarts.

Not done: limits of memory and processes, which need cgroups; images, since every container sees this machine's programs
and, at /app, this project, as deployments/Dockerfile has it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.fleet import network
from tests.fleet.compose import Image, Service

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
POSTGRES = 999  # user of the image postgres
USERS = (
    f"root:x:0:0:root:/root:/bin/sh\npostgres:x:{POSTGRES}:{POSTGRES}::/:/bin/sh\n"  # the owner of images has no name
)
STARTING = 1.0  # seconds between two health checks until the first one that succeeds
LOOK = 0.1  # seconds between two looks at the containers
MOST_RESTARTS = 5  # of a container while the site comes up
BACKOFF = (0.1, 5.0)  # seconds before a restart: at first, at most


@dataclass
class Container:
    """One container of a service, and what is known of its health."""

    service: Service
    name: str
    number: int  # of its address
    folder: Path  # its root, its log
    spec: dict[str, object] = field(repr=False)
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0  # of its first process
    cable: str = ""
    started: float = 0.0
    healthy: bool = False
    failures: int = 0  # of the health check, in a row
    checking: subprocess.Popen[bytes] | None = None
    checked: float = 0.0
    ended: float = 0.0
    wanted: bool = False  # false: it was stopped on purpose, or has completed
    restarts: int = 0

    @property
    def address(self) -> str:
        """Its address in the network of the site."""
        return f"{network.PREFIX}{self.number}"

    @property
    def log(self) -> Path:
        """What it printed, also before restarts."""
        return self.folder / "log"

    @property
    def running(self) -> bool:
        """Whether its first process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the first process in namespaces of its own, and connect it."""
        root = self.folder / "root"
        root.mkdir(parents=True, exist_ok=True)
        spec = self.folder / "spec.json"
        spec.write_text(json.dumps(self.spec | {"root": str(root), "hostname": self.name}))
        spec.chmod(0o600)
        alone = ["setpriv", "--pdeathsig", "KILL"]  # SIGTERM, as parent_death has it, unshare would ignore
        isolate = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child=SIGKILL"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*alone, *isolate, sys.executable, "-IS", str(HERE / "contain.py"), str(spec)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._find_first()
        self.cable = network.connect(self.pid, self.number)
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.close()
        self.started, self.healthy, self.failures, self.ended, self.wanted = time.monotonic(), False, 0, 0.0, True

    def _find_first(self) -> int:
        assert self.process is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.Error):
                    if child.cmdline()[2:3] == [str(HERE / "contain.py")]:
                        return child.pid
            time.sleep(0.01)
        raise AssertionError(f"{self.name} did not start: {self.log.read_text()}")

    def processes(self) -> list[psutil.Process]:
        """List what runs in it, the first process first."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def main_process(self) -> psutil.Process:
        """Return the process of its command."""
        return self.processes()[1 if self.service.init else 0]

    def kill(self) -> None:
        """Kill everything in it; its restart policy decides what follows."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait(30)

    def stop(self) -> None:
        """Stop it as the engine does: SIGTERM, which is SIGINT for PostgreSQL, after its grace SIGKILL."""
        self.wanted = False
        if not self.running:
            return
        self._end_check()
        assert self.process is not None
        os.kill(self.pid, signal.SIGINT if self.service.image.startswith("postgres") else signal.SIGTERM)
        try:
            self.process.wait(self.service.stop_grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def pause(self) -> None:
        """Stop every process of it from running, parents first."""
        for one in self.processes():
            one.suspend()

    def resume(self) -> None:
        """Resume them, children first."""
        for one in reversed(self.processes()):
            one.resume()

    def cut(self) -> None:
        """Take its cable out."""
        network.ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        """Put its cable in again."""
        network.ip("link", "set", self.cable, "up")

    @contextmanager
    def unmounted(self, target: str, source: Path) -> Iterator[None]:
        """Show an empty directory where something was mounted, as a mount that dropped does."""
        path = f"{self.folder}/root{target}"
        enter = ["nsenter", "--target", str(self.pid), "--mount"]
        subprocess.run([*enter, "umount", "--lazy", path], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run([*enter, "mount", "--rbind", str(source), path], check=True, capture_output=True)

    def execute(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in it, as its user and with its environment."""
        environment = self.spec["environment"]
        assert isinstance(environment, dict)
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", "--pid"]
        become = ["chroot", f"--userspec={self.spec['uid']}:{self.spec['gid']}", "--groups=", f"{self.folder}/root"]
        return subprocess.Popen(
            [*enter, *become, "env", "--chdir", str(self.spec["directory"]), *command],
            env=environment | {"PATH": f"{environment['PATH']}:/usr/sbin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def fails(self, *command: str) -> bool:
        """Run a command in it, and return whether it fails."""
        process = self.execute(*command)
        process.communicate(timeout=60)
        return process.returncode != 0

    def check(self) -> None:
        """Start a health check if it is time for one, or read how the last one ended."""
        health = self.service.health
        if health is None or not self.running:
            self._end_check()
            return
        now = time.monotonic()
        if self.checking is None:
            if now - self.checked >= (health.interval if self.healthy else STARTING):
                self.checking, self.checked = self.execute(*health.command), now
            return
        if self.checking.poll() is None and now - self.checked < health.timeout:
            return
        if self._end_check():
            self.healthy, self.failures = True, 0
        elif self.healthy or now - self.started > health.start_period:
            self.failures += 1
            self.healthy = self.healthy and self.failures < health.retries

    def _end_check(self) -> bool:
        """End a health check, and return whether it succeeded."""
        check, self.checking = self.checking, None
        if check is None:
            return False
        succeeded = check.poll() == 0
        check.kill()
        check.communicate()
        return succeeded


class Engine:
    """The containers of a site."""

    def __init__(self, home: Path, image: Image) -> None:
        self.home, self._image = home, image
        self.containers: dict[str, Container] = {}
        self._hosts, self._users = home / "hosts", home / "passwd"
        self._users.write_text(USERS)

    def create(self, service: Service, *, scale: int = 1) -> list[Container]:
        """Create the containers of a service without starting them; other containers find them by its name."""
        created = []
        for replica in range(scale):
            name = service.name if scale == 1 else f"{service.name}-{replica + 1}"
            folder = self.home / "containers" / name
            folder.mkdir(parents=True)
            number = network.HOST + 1 + len(self.containers)
            made = Container(service, name, number, folder, self._specify(service, folder))
            created.append(self.containers.setdefault(name, made))
        lines = [f"{one.address} {one.name}" for one in self.containers.values()]
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        return created

    def _specify(self, service: Service, folder: Path) -> dict[str, object]:
        """Return what contain.py has to know."""
        postgres = service.image.startswith("postgres")
        user, _, group = (service.user or (f"{POSTGRES}:{POSTGRES}" if postgres else "1000:1000")).partition(":")
        programs = f"{find_postgres()}:/usr/bin:/bin"
        image = {"PGDATA": "/var/lib/postgresql/data", "PATH": programs} if postgres else dict(self._image.environment)
        own = [[str(HERE / "postgres.sh"), "/entrypoint", True]] if postgres else [[str(PROJECT), "/app", True]]
        etc = [[str(self._hosts), "/etc/hosts", True], [str(self._users), "/etc/passwd", True]]
        # The interpreter, and the project where its environment was made: scripts and installed packages refer to it.
        ours = [*etc, *([str(one), str(one), True] for one in (sys.base_prefix, PROJECT))]
        secrets = [[str(file), f"/run/secrets/{name}", True] for name, file in service.secrets.items()]
        volumes = list(service.volumes)
        if not postgres:  # what the image declares, and the service does not mount, is a volume without a name
            mounted = {volume.split(":")[1] for volume in volumes}
            volumes += [f"of-{folder.name}:{path}" for path in self._image.volumes if path not in mounted]
        mounts = [self._mount(volume, owner=int(user)) for volume in volumes]
        return {
            "binds": [*ours, *own, *secrets, *mounts],
            "tmpfs": ["/tmp", *service.tmpfs] if "/tmp" not in service.tmpfs else service.tmpfs,
            "read_only": service.read_only,
            "init": service.init,
            "uid": int(user),
            "gid": int(group or user),
            "no_capabilities": service.no_capabilities,
            "no_new_privileges": service.no_new_privileges,
            "directory": "/" if postgres else "/app",
            "environment": {"HOME": "/"} | image | dict(service.environment),  # as engines do for a user without a name
            "command": service.command or ["sh", "/entrypoint"],
        }

    def _mount(self, volume: str, *, owner: int) -> list[object]:
        """Resolve a bind mount, or a named volume, which is a directory here."""
        source, target, *mode = volume.split(":")
        if not source.startswith("/"):
            folder = self.home / "volumes" / source
            if not folder.exists():
                folder.mkdir(parents=True)
                os.chown(folder, owner, owner)
                folder.chmod(0o700 if owner == POSTGRES else 0o1777)
            source = str(folder)
        return [source, target, mode == ["ro"]]

    def of(self, service: str) -> list[Container]:
        """List the containers of a service."""
        return [one for one in self.containers.values() if one.service.name == service]

    def up(self, *, seconds: float) -> None:
        """Start every container once what it depends on is as it declares; wait until all are ready."""

        def risen() -> bool:
            for one in self.containers.values():
                if not one.started and all(self._fulfilled(*needed) for needed in one.service.depends_on.items()):
                    one.start()
            failing = [one.name for one in self.containers.values() if one.restarts > MOST_RESTARTS]
            assert not failing, f"{failing} do not start\n{self.describe()}"
            return all(one.started and self._ready(one) for one in self.containers.values())

        self.until(risen, seconds=seconds)

    def _fulfilled(self, name: str, condition: str) -> bool:
        """Return whether a condition of ``depends_on`` is met."""
        if condition == "service_completed_successfully":
            return all(_completed(one) for one in self.of(name))
        return all(one.running and (one.healthy or condition == "service_started") for one in self.of(name))

    def _ready(self, one: Container) -> bool:
        return _completed(one) or (one.running and (one.healthy or one.service.health is None))

    def until(self, happened: Callable[[], object], *, seconds: float) -> float:
        """Supervise the containers until something has happened; return how many seconds it took.

        Raises:
            AssertionError: it did not happen in time.
        """
        began = time.monotonic()
        while not happened():
            self.supervise()
            if time.monotonic() - began > seconds:
                raise AssertionError(f"it did not happen within {seconds:.0f} s\n{self.describe()}")
            time.sleep(LOOK)
        return time.monotonic() - began

    def pass_time(self, seconds: float) -> None:
        """Supervise the containers for some seconds."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds=seconds + 60)

    def supervise(self) -> None:
        """Run health checks that are due, and restart what ended, as the services declare."""
        for one in self.containers.values():
            one.check()
            if one.process is None or one.running or not one.wanted:
                continue
            now = time.monotonic()
            one.ended = one.ended or now
            if _completed(one) or one.service.restart == "no":
                one.wanted = False
            elif now - one.ended >= min(BACKOFF[0] * 2**one.restarts, BACKOFF[1]):
                one.restarts += 1
                one.start()

    def describe(self) -> str:
        """Return the state of each container, and the end of its log."""
        lines = []
        for one in self.containers.values():
            state = "healthy" if one.healthy else "running" if one.running else "not running"
            tail = one.log.read_text(errors="replace").splitlines()[-12:] if one.log.exists() else []
            lines += [f"{one.name}: {state}, {one.restarts} restarts", *(f"    {line}" for line in tail)]
        return "\n".join(lines)

    def down(self) -> None:
        """Stop everything, in the opposite order."""
        for one in reversed(self.containers.values()):
            one.stop()


def _completed(one: Container) -> bool:
    return one.process is not None and one.process.poll() == 0 and one.service.restart.startswith("on-failure")


def find_postgres() -> Path | None:
    """Find the newest PostgreSQL server of Debian: Prefect needs its extension pg_trgm, which the wheel lacks."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: int(one.parent.name))
    return found[-1] if found else None


def read_status(process: psutil.Process) -> Mapping[str, Sequence[str]]:
    """Read what the kernel has of a process: its users, its capabilities."""
    lines = (line.split() for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return {name.rstrip(":"): values for name, *values in lines}
