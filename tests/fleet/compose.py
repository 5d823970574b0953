"""deployments/compose.yaml and Dockerfile, read as an engine reads them: variables filled in, one service each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

VARIABLE = re.compile(r"\$\{([A-Z_]+)(?:(:-|:\?)([^{}]*))?\}")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Health:
    """A health check: healthy when its command ends with 0, unhealthy after ``retries`` failures in a row."""

    command: list[str]
    interval: float  # seconds, as the others
    timeout: float
    retries: int
    start_period: float


@dataclass(frozen=True)
class Service:
    """What a container of a service is started with."""

    name: str
    image: str
    command: list[str]  # empty: the image's own
    environment: Mapping[str, str] = field(repr=False)
    user: str  # empty: the image's own
    volumes: list[str]
    secrets: Mapping[str, Path]  # file by name
    depends_on: Mapping[str, str]  # condition by name of the service
    health: Health | None
    restart: str
    stop_grace: float
    init: bool
    read_only: bool
    no_capabilities: bool
    no_new_privileges: bool
    tmpfs: list[str]


def read_environment(file: Path) -> dict[str, str]:
    """Read NAME=value lines."""
    lines = (line.split("  #")[0].strip() for line in file.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@dataclass(frozen=True)
class Image:
    """What every container of an image has."""

    environment: Mapping[str, str]
    volumes: list[str]


def read_image(dockerfile: Path) -> Image:
    """Read the variables that the image sets, with its PATH in front of the usual one, and its volumes."""
    text = dockerfile.read_text()
    (block,) = re.findall(r"^ENV (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    values = dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())
    path = values["PATH"].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
    return Image(values | {"PATH": path}, re.findall(r"^VOLUME (\S+)$", text, re.MULTILINE))


def read_services(file: Path, variables: Mapping[str, str]) -> dict[str, Service]:
    """Read every service that belongs to no profile.

    Raises:
        KeyError: a variable that the file requires is not set.
    """
    whole = substitute(yaml.safe_load(file.read_text()), variables)
    secrets = {name: Path(one["file"]) for name, one in whole["secrets"].items()}
    services = whole["services"].items()
    return {name: _service(name, one, file.parent, secrets) for name, one in services if "profiles" not in one}


def substitute(value: Any, variables: Mapping[str, str]) -> Any:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?}`` in every string; ``$$`` is a dollar sign."""
    if isinstance(value, dict):
        return {key: substitute(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [substitute(one, variables) for one in value]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if kind == ":?" and not variables.get(name):
            raise KeyError(f"{name}: {rest}")
        return variables.get(name) or (rest if kind == ":-" else "")

    text = value.replace("$$", "\0")
    while (filled := VARIABLE.sub(fill, text)) != text:  # the innermost first
        text = filled
    return text.replace("\0", "$")


def _service(name: str, one: Mapping[str, Any], folder: Path, secrets: Mapping[str, Path]) -> Service:
    files = one.get("env_file", [])
    environment: dict[str, str] = {}
    for file in [files] if isinstance(files, str) else files:
        environment |= read_environment(folder / file)
    return Service(
        name=name,
        image=one["image"],
        command=list(one.get("command", [])),
        environment=environment | one.get("environment", {}),
        user=one.get("user", ""),
        volumes=one.get("volumes", []),
        secrets={secret: secrets[secret] for secret in one.get("secrets", [])},
        depends_on={other: how["condition"] for other, how in one.get("depends_on", {}).items()},
        health=_health(one["healthcheck"]) if "healthcheck" in one else None,
        restart=one.get("restart", "no"),
        stop_grace=seconds(one.get("stop_grace_period", "10s")),
        init=one.get("init", False),
        read_only=one.get("read_only", False),
        no_capabilities=one.get("cap_drop") == ["ALL"],
        no_new_privileges="no-new-privileges:true" in one.get("security_opt", []),
        tmpfs=one.get("tmpfs", []),
    )


def _health(check: Mapping[str, Any]) -> Health:
    kind, *command = check["test"]
    return Health(
        command=["sh", "-c", *command] if kind == "CMD-SHELL" else command,
        interval=seconds(check["interval"]),
        timeout=seconds(check["timeout"]),
        retries=check["retries"],
        start_period=seconds(check.get("start_period", "0s")),
    )


def seconds(text: str) -> float:
    """Convert a duration of one unit."""
    return float(text[:-1]) * SECONDS[text[-1]]
