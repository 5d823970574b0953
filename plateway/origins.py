"""Configuration files of other systems, read as settings of Plateway: OperationsGateway, s3cmd, AWS, DLM, object store.

Reads files and returns values; the command line writes them. What has no equivalent is listed with the reason.
"""

from __future__ import annotations

import configparser
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml  # type: ignore[import-untyped]  # PyYAML ships no types
from botocore.configloader import raw_config_parse  # type: ignore[import-untyped]  # botocore ships no types
from botocore.exceptions import ConfigParseError  # type: ignore[import-untyped]  # the same
from dotenv import dotenv_values
from pydantic import SecretStr, TypeAdapter, ValidationError

from plateway import settings
from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured
from plateway.instruments import format_duration

VARIABLE = re.compile(r"\$\{(\w+)(?::-(.*))?\}")
SECRET = re.compile(r"secret|password|passwd|token|dsn|access_key|_key\b|credential", re.IGNORECASE)
PLACEHOLDER = re.compile(r"<.*>|\s*")
DIRECTORIES = ("root_path", "base_path", "path", "directory")  # what versions of the object store call its directory
FILES = {"AsyncFilesystemStore", "FilesystemStore"}
BUCKETS = {"AsyncBucketStore", "BucketStore"}
MEMORY = {"AsyncDictStore", "DictStore", "InMemoryStore"}
ENDPOINT, KEY, SECRET_KEY = "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
TOKEN, REGION, BUCKET = "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "PLATEWAY_BUCKET_URL"
KINDS = "an OperationsGateway config.yml, an .s3cfg, an AWS profile file, a .env of DLM, or a storage.yaml"


@dataclass
class Imported:
    """What a file means: values by setting, where each came from, and what was left out."""

    kind: str
    values: dict[str, str] = field(default_factory=dict)  # by the setting's name in the environment; with secrets
    sources: dict[str, str] = field(default_factory=dict)  # setting: its name in the file
    left_out: dict[str, str] = field(default_factory=dict)  # name in the file: why it is no setting

    def take(self, setting: str, value: Any, source: str) -> None:
        """Accept a value; an empty one or a placeholder is left out."""
        text = "" if value is None else str(value).strip()
        if PLACEHOLDER.fullmatch(text):
            self.left_out[source] = "has no value" if not text else "is a placeholder"
        else:
            self.values[setting], self.sources[setting] = text, source


def read(path: Path, *, profile: str = "default") -> Imported:
    """Read a file of one of the known kinds, which is recognised by its content.

    ``profile`` is the section of an AWS file or an .s3cfg.

    Raises:
        Misconfigured: it cannot be read, is none of them, or a value is wrong; names file and field, no secret.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise Misconfigured(f"{path.name}: {reason}") from None
    found = _read_known(path, text, profile)
    if not found.values:
        raise Misconfigured(f"{path.name}: {found.kind} without a value that is a setting of Plateway")
    _validate(path.name, found)
    return found


def _read_known(path: Path, text: str, profile: str) -> Imported:
    if re.search(r"^\s*\[[^\]]+\]\s*$", text, re.MULTILINE):
        return _read_sections(path, text, profile)
    document = None if path.name.startswith(".env") else _parse_yaml(path.name, text)
    if isinstance(document, dict) and isinstance(document.get("echo"), dict):
        return read_operations_gateway(document)
    if isinstance(document, dict) and "stores" in document:
        return read_object_store(path)
    if isinstance(document, dict):
        raise Misconfigured(f"{path.name}: no section echo and no stores; known are {KINDS}")
    return read_variables(text)


def _parse_yaml(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        if name.endswith((".yml", ".yaml")):
            raise Misconfigured(f"{name} is not YAML ({type(error).__name__})") from None
        return None


def _validate(name: str, found: Imported) -> None:
    """Check the values as settings, so that nothing is written that no command would accept."""
    if unsafe := next((one for one, value in found.values.items() if "${" in value or "\n" in value), None):
        raise Misconfigured(f"{name}: {found.sources[unsafe]} has characters that a .env file cannot hold")
    fields = settings.field_names()
    try:
        settings.load(**{fields[setting]: value for setting, value in found.values.items()})
    except Misconfigured as error:
        raise Misconfigured(f"{name}: {error}") from None


# -------------------------------------------------------------------------------------------------- OperationsGateway


def read_operations_gateway(document: Mapping[str, Any]) -> Imported:
    """Read the section ``echo`` of an OperationsGateway configuration."""
    found = Imported("the echo section of an OperationsGateway configuration")
    echo = dict(document["echo"])
    for name, setting in (("url", ENDPOINT), ("access_key", KEY), ("secret_key", SECRET_KEY)):
        found.take(setting, echo.pop(name, None), f"echo.{name}")
    if bucket := echo.pop("bucket_name", None):
        found.take(BUCKET, f"s3://{bucket}", "echo.bucket_name")
    reasons = {
        "username": "the access key is enough",
        "expiry_days": "Plateway deletes only what tape has: PLATEWAY_BUCKET_LIFESPAN",
        "cache_maxsize": "images are not cached in memory",
    }
    found.left_out |= {f"echo.{name}": reasons.get(name, "not known") for name in echo}
    found.left_out |= {str(name): "not about S3" for name in document if name != "echo"}
    return found


# ------------------------------------------------------------------------------------------------------ s3cmd, AWS CLI


def _read_sections(path: Path, text: str, profile: str) -> Imported:
    if re.search(r"^\s*(host_base|access_key|host_bucket)\s*[=:]", text, re.MULTILINE):
        return read_s3cfg(path.name, text, section=profile)
    if re.search(r"^\s*(aws_\w+|region|endpoint_url|s3)\s*=", text, re.MULTILINE):
        return read_aws_profile(path, profile)
    raise Misconfigured(f"{path.name}: neither an .s3cfg nor an AWS file; known are {KINDS}")


def read_s3cfg(name: str, text: str, *, section: str = "default") -> Imported:
    """Read an ``.s3cfg`` of s3cmd and s4cmd. It names no bucket."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
        theirs = dict(parser[section])
    except (configparser.Error, KeyError) as error:
        raise Misconfigured(f"{name}: no section [{section}] ({type(error).__name__})") from None
    found = Imported("an .s3cfg of s3cmd or s4cmd")
    for source, setting in (("access_key", KEY), ("secret_key", SECRET_KEY), ("access_token", TOKEN)):
        if source in theirs:
            found.take(setting, theirs.pop(source), source)
    if host := theirs.pop("host_base", ""):
        secure = theirs.pop("use_https", "true").lower() not in {"false", "no", "0"}
        found.take(ENDPOINT, host if "://" in host else f"http{'s' if secure else ''}://{host}", "host_base")
    if region := theirs.pop("bucket_location", ""):
        found.take(REGION, {"us": "us-east-1", "eu": "eu-west-1"}.get(region.lower(), region), "bucket_location")
    reasons = {
        "host_bucket": "addresses are path style wherever an endpoint is set",
        "signature_v2": "requests are signed with version 4",
        "proxy_host": "HTTPS_PROXY names a proxy",
        "proxy_port": "HTTPS_PROXY names a proxy",
    }
    found.left_out |= {one: reasons.get(one, "not needed") for one, value in theirs.items() if value}
    return found


def read_aws_profile(path: Path, profile: str = "default") -> Imported:
    """Read one profile of ``~/.aws/credentials`` or ``~/.aws/config``, with its endpoint for S3. It names no bucket."""
    try:
        sections = raw_config_parse(str(path))
    except ConfigParseError:
        raise Misconfigured(f"{path.name}: not an AWS file") from None
    names = [profile, f"profile {profile}"]
    theirs = next((dict(sections[one]) for one in names if one in sections), None)
    if theirs is None:
        known = ", ".join(sorted(one.removeprefix("profile ") for one in sections))
        raise Misconfigured(f"{path.name}: no profile {profile!r}; there are {known}: --profile NAME")
    found = Imported(f"profile {profile} of an AWS file")
    services = sections.get(f"services {theirs.pop('services', '')}", {})
    for name, section in (("services", services.get("s3")), ("s3", theirs.pop("s3", None))):
        if isinstance(section, dict) and "endpoint_url" in section:
            theirs["endpoint_url"] = section["endpoint_url"]
        elif section:
            found.left_out[name] = "not about the endpoint"
    spelt = {
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET_KEY,
        "aws_session_token": TOKEN,
        "region": REGION,
        "endpoint_url": ENDPOINT,
    }
    for name, value in theirs.items():
        if name in spelt:
            found.take(spelt[name], value, name)
        else:
            found.left_out[name] = f"botocore reads it itself with AWS_PROFILE={profile}"
    return found


# ----------------------------------------------------------------------------------------------------------------- DLM


def _seconds(value: str) -> str:
    """Convert a duration as pydantic reads it: seconds, or ISO 8601."""
    return format_duration(TypeAdapter(timedelta).validate_python(float(value) if value.isdecimal() else value))


def _names(value: str) -> str:
    """Convert a JSON list of names to one with commas."""
    names = json.loads(value)
    if not isinstance(names, list):
        raise TypeError
    return ",".join(map(str, names))


def _bucket(value: str) -> str:
    return f"s3://{value}"


SAME: tuple[str, ...] = (ENDPOINT, KEY, SECRET_KEY, TOKEN, REGION, "AWS_REGION", "AWS_ENDPOINT_URL_S3")
VARIABLES: dict[str, tuple[str, Callable[[str], str]]] = {  # of DLM and of the object store
    "AWS_REGION_NAME": (REGION, str),
    "AWS_BUCKET_NAME": (BUCKET, _bucket),
    "SRC_DIR": ("PLATEWAY_SOURCE_ROOT", str),
    "SRC_LIFESPAN": ("PLATEWAY_RAW_LIFESPAN", _seconds),
    "STAGING_LIFESPAN": ("PLATEWAY_STAGING_LIFESPAN", _seconds),
    "SRC_SYSTEMS_DELETE": ("PLATEWAY_PURGE_SYSTEMS", _names),
    "REDIS_DSN": ("PLATEWAY_REDIS_URL", str),
    "RABBITMQ_DSN": ("PLATEWAY_AMQP_URL", str),
    "UPLOAD_MAX_CONCURRENCY": ("PLATEWAY_EXPORT_WORKERS", str),
    "AUTH_TOKENS_FILE": ("PLATEWAY_TOKENS_FILE", str),
    "TOKENS_FILE": ("PLATEWAY_TOKENS_FILE", str),
    "HOST_PORT": ("PLATEWAY_SERVE_PORT", str),
    "WORKERS": ("PLATEWAY_SERVE_WORKERS", str),
    "LOG_LEVEL": ("PLATEWAY_LOG_LEVEL", str.upper),
}
OTHERWISE = {
    "POSTGRES_DSN": "has DLM's tables: the catalogue needs a database of its own, PLATEWAY_DATABASE_URL",
    "COPY_TO_STAGING": "PLATEWAY_STAGING_ROOT names a directory outside of the bench",
    "STAGING_DIR": "PLATEWAY_STAGING_ROOT names a directory outside of the bench",
    "WEBHOOK_URL": "a notification block in Prefect: PLATEWAY_NOTIFY",
    "DATA_DIR": "plateway simulate --home",
    "INTERVAL": "plateway simulate --interval",
    "SURF_USERNAME": "the archiver is not started by Plateway: PLATEWAY_ARCHIVE_TARGET",
    "SURF_PASSWORD": "the archiver is not started by Plateway: PLATEWAY_ARCHIVE_TARGET",
    "DATA_ARCHIVE_HOST": "the archiver is not started by Plateway: PLATEWAY_ARCHIVE_TARGET",
    "ARCHIVE_TRANSITION_DAYS": "the archiver decides, or PLATEWAY_ARCHIVE_TARGET",
    "AMOLF_USERNAME": "mounts are the machine's",
    "AMOLF_PASSWORD": "mounts are the machine's",
    "STORAGE_CONFIG": "import that file, too",
}


def read_variables(text: str) -> Imported:
    """Read a ``.env`` of DLM (either version) or of the object store; Plateway's own variables stay as they are."""
    found = Imported("a .env file")
    known = settings.field_names()
    for name, value in dotenv_values(stream=io.StringIO(text), interpolate=False).items():
        if name in known and (name in SAME or name.startswith("PLATEWAY_")):
            found.take(name, value, name)
        elif name in VARIABLES:
            setting, convert = VARIABLES[name]
            try:
                found.take(setting, convert(value) if value else value, name)
            except (ValueError, TypeError, ValidationError):
                raise Misconfigured(f"{name} cannot be understood") from None
        else:
            found.left_out[name] = OTHERWISE.get(name, "not known")
    return found


# -------------------------------------------------------------------------------------------------------- object store


def read_object_store(path: Path, name: str | None = None) -> Imported:
    """Read the main store of a ``storage.yaml`` as the object store of the gateway."""
    location, endpoint = read_storage(path, name)
    found = Imported("a storage.yaml of amplify-object-store")
    found.take("PLATEWAY_OBJECTS_URL", location, "main")
    secret = endpoint.secret_access_key.get_secret_value() if endpoint.secret_access_key else None
    values = {ENDPOINT: endpoint.url, KEY: endpoint.access_key_id, SECRET_KEY: secret}
    sources = {ENDPOINT: "endpoint_url", KEY: "s3_access_key", SECRET_KEY: "s3_secret_key"}
    for setting, value in values.items():
        if value:
            found.take(setting, value, sources[setting])
    document = yaml.safe_load(path.read_text())
    others = set(document["stores"]) - {name or document["main"]}
    found.left_out |= {f"stores.{one}": "not the main store" for one in sorted(others)}
    return found


def read_storage(path: Path, name: str | None = None) -> tuple[str, Endpoint]:
    """Read the main store of a storage.yaml, or the one of this name: its location and endpoint.

    Raises:
        Misconfigured: names the file, the store and the field.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Misconfigured(f"{path.name}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise Misconfigured(f"{path.name} is not YAML ({type(error).__name__})") from None
    stores = document.get("stores") if isinstance(document, dict) else None
    wanted = name or (document.get("main") if isinstance(document, dict) else None)
    if not isinstance(stores, dict) or not isinstance(stores.get(wanted), dict):
        raise Misconfigured(f"{path.name}: no store {wanted!r} among {', '.join(stores or ()) or 'none'}")
    return _locate_store(f"{path.name}: {wanted}", stores[wanted])


def _locate_store(where: str, store: dict[str, Any]) -> tuple[str, Endpoint]:
    kind = str(store.get("type"))
    config = {one: _fill_in(f"{where}: {one}", value) for one, value in (store.get("config") or {}).items()}
    if kind in MEMORY:
        return "memory://objects", Endpoint()
    if kind in FILES:
        directory = next((config[one] for one in DIRECTORIES if config.get(one)), None)
        if directory is None:
            raise Misconfigured(f"{where}: root_path is missing")
        return Path(directory).absolute().as_uri(), Endpoint()
    if kind in BUCKETS:
        if missing := [one for one in ("bucket_name", "s3_access_key", "s3_secret_key") if not config.get(one)]:
            raise Misconfigured(f"{where}: {' and '.join(missing)} missing")
        secret = SecretStr(str(config["s3_secret_key"]))
        endpoint = Endpoint(
            url=config.get("endpoint_url"), access_key_id=config["s3_access_key"], secret_access_key=secret
        )
        return f"s3://{config['bucket_name']}", endpoint
    known = ", ".join(sorted(FILES | BUCKETS | MEMORY))
    raise Misconfigured(f"{where}: a store of type {kind} is not supported; there are {known}")


def _fill_in(where: str, value: Any) -> Any:
    """Replace ``${NAME}`` or ``${NAME:-default}``, where that is the whole value, by the environment's."""
    match = VARIABLE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    found = settings.environment({}).get(match[1], match[2])
    if found is None:
        raise Misconfigured(f"{where}: {match[1]} is not set")
    return found


def mask(setting: str, value: str) -> str:
    """Return a value as it may be shown: secrets and passwords in addresses as asterisks."""
    if setting in {SECRET_KEY, TOKEN} or (SECRET.search(setting) and setting not in {KEY, "PLATEWAY_TOKENS_FILE"}):
        return "**********"
    parts = urlsplit(value) if "://" in value else None
    return "**********" if parts is not None and (parts.password or parts.query) else value
