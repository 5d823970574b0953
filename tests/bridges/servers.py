"""Real servers for the bridges, from Debian's packages: each on a free loopback port, with data of its own."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pika
import redis
from pika.exceptions import AMQPError

from plateway.local import parent_death, seaweed

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one in /usr/sbin changes user and directory
SEARCH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
START = 60.0  # seconds; Erlang takes 4 to 6 on two cores


def port() -> int:
    """Choose a port below those that systems hand out for outgoing connections, so that a restart finds it free."""
    return next(iter(seaweed.ports().values()))


def missing(server: str) -> str | None:
    """Return why a server cannot be had here, if so."""
    found = RABBITMQ.exists() if server == "rabbitmq-server" else shutil.which(server, path=SEARCH)
    return None if found else f"{server} is not installed: scripts/peers"


class Server:
    """A server process that can be stopped, killed and started again on the same port and data."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {"PATH": SEARCH, "HOME": str(self.home), "LC_ALL": "C.UTF-8"}

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        self.process = self.run(*self.command())
        wait_until(lambda: self.process is None or self.process.poll() is not None or self.answers(), within=START)
        assert self.process.poll() is None, (self.home / "log").read_text()[-2000:]

    def run(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                parent_death.wrap(*command),
                cwd=self.home,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            seaweed.stop(self.process)


class RedisServer(Server):
    """A Redis that writes every command to its disk before it answers."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.home), "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        return ["redis-server", *(part for name, value in options.items() for part in (f"--{name}", value))]

    def answers(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class Rabbit(Server):
    """One RabbitMQ node with an epmd of its own, as no other on the machine would find it."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.epmd_port, self.dist_port = (port() for _ in range(2))
        self.name = f"test-{secrets.token_hex(4)}@localhost"
        (home / "enabled_plugins").write_text("[].\n")
        (home / "rabbitmq.conf").write_text(
            "vm_memory_high_watermark.absolute = 512MiB\ndisk_free_limit.absolute = 1MB\n"
        )
        self.epmd = self.run("epmd", "-port", str(self.epmd_port), "-address", "127.0.0.1")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def command(self) -> list[str]:
        return [str(RABBITMQ)]

    def environment(self) -> Mapping[str, str]:
        return {
            **super().environment(),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(self.home / "logs"),
            "RABBITMQ_MNESIA_BASE": str(self.home / "mnesia"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "1",  # without a shell in between that would survive
        }

    def answers(self) -> bool:
        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (AMQPError, OSError):
            return False
        return True

    def stop(self) -> None:
        super().stop()
        seaweed.stop(self.epmd)


def wait_until(true: Callable[[], object], *, within: float = 60.0) -> None:
    """Wait for what other processes bring about."""
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, f"not within {within} seconds"
        time.sleep(0.02)
