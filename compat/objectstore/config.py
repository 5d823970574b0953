"""Read amplify-object-store's environment and storage.yaml into the parts of a gateway."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from plateway import settings
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured
from plateway.gateway import Parts

VARIABLE = re.compile(r"\$\{(\w+)(?::-(.*))?\}")
DIRECTORIES = ("root_path", "base_path", "path", "directory")  # what versions of the store call its directory
FILES = {"AsyncFilesystemStore", "FilesystemStore"}
BUCKETS = {"AsyncBucketStore", "BucketStore"}
MEMORY = {"AsyncDictStore", "DictStore", "InMemoryStore"}


def read_parts() -> Parts:
    """Return a gateway with objects only, as the environment describes it.

    Raises:
        Misconfigured: storage.yaml is missing or wrong; names the file, the store and the field.
    """
    location, endpoint = read_storage(os.environ.get("STORAGE_CONFIG"), os.environ.get("STORAGE_NAME"))
    home = settings.load().home.absolute()
    return Parts(home=home, tokens=tokens_file().absolute(), objects=location, endpoint=endpoint)


def tokens_file() -> Path:
    """Return where tokens are: AUTH_TOKENS_FILE, TOKENS_FILE, or tokens.json here."""
    return Path(os.environ.get("AUTH_TOKENS_FILE") or os.environ.get("TOKENS_FILE") or "tokens.json")


def read_storage(file: str | None, name: str | None) -> tuple[str, Endpoint]:
    """Read the main store of a storage.yaml, or the one of this name; without a file objects are kept in memory.

    Raises:
        Misconfigured: names the file, the store and the field.
    """
    if not file:
        return "memory://objects", Endpoint()
    shown = Path(file).name
    try:
        document = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise Misconfigured(f"STORAGE_CONFIG: {shown}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise Misconfigured(f"STORAGE_CONFIG: {shown} is not YAML ({type(error).__name__})") from None
    stores = document.get("stores") if isinstance(document, dict) else None
    wanted = name or (document.get("main") if isinstance(document, dict) else None)
    if not isinstance(stores, dict) or not isinstance(stores.get(wanted), dict):
        raise Misconfigured(f"{shown}: no store {wanted!r} among {', '.join(stores or ()) or 'none'}")
    return _open(f"{shown}: {wanted}", stores[wanted])


def _open(where: str, store: dict[str, Any]) -> tuple[str, Endpoint]:
    kind = str(store.get("type"))
    config = {field: _filled(f"{where}: {field}", value) for field, value in (store.get("config") or {}).items()}
    if kind in MEMORY:
        return "memory://objects", Endpoint()
    if kind in FILES:
        directory = next((config[field] for field in DIRECTORIES if config.get(field)), None)
        if directory is None:
            raise Misconfigured(f"{where}: root_path is missing")
        Path(directory).mkdir(parents=True, exist_ok=True)
        return Path(directory).absolute().as_uri(), Endpoint()
    if kind in BUCKETS:
        if missing := [field for field in ("bucket_name", "s3_access_key", "s3_secret_key") if not config.get(field)]:
            raise Misconfigured(f"{where}: {' and '.join(missing)} missing")
        secret = SecretStr(str(config["s3_secret_key"]))
        endpoint = Endpoint(
            url=config.get("endpoint_url"), access_key_id=config["s3_access_key"], secret_access_key=secret
        )
        return f"s3://{config['bucket_name']}", endpoint
    known = ", ".join(sorted(FILES | BUCKETS | MEMORY))
    raise Misconfigured(f"{where}: a store of type {kind} is not supported; there are {known}")


def _filled(where: str, value: Any) -> Any:
    """Replace ``${NAME}`` or ``${NAME:-default}``, where that is the whole value, by the environment's."""
    match = VARIABLE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    found = os.environ.get(match[1], match[2])
    if found is None:
        raise Misconfigured(f"{where}: {match[1]} is not set")
    return found
