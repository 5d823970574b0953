"""Where a bucket is and with which credentials: one declaration for settings, blocks and stores."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic.dataclasses import dataclass

AWS = "https://s3.amazonaws.com"  # whatever the region: there, no two buckets have one name
AMAZON = re.compile(r"s3([.-][a-z0-9-]+)*\.amazonaws\.com")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Endpoint:
    """An S3 endpoint and its credentials. Without keys, botocore's chain finds them (profile, instance role)."""

    url: str | None = None  # AWS itself
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    region: str = "us-east-1"
    read_only: bool = False
    bypass_proxy: bool = False
    name: str | None = None  # what it is called, where it is reached at several addresses or at changing ones


class Bucket(BaseModel):
    """A bucket of the site: its URL, its endpoint, and the systems whose exports go there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    endpoint: Endpoint = Field(default_factory=Endpoint)
    systems: tuple[str, ...] = ()


def endpoint_identity(url: str, endpoint: Endpoint) -> str:
    """Return what identifies the endpoint of a bucket: its name, else its address without user and default port."""
    scheme = urlsplit(url).scheme
    if scheme != "s3":
        return f"{scheme}:"
    if endpoint.name or endpoint.url is None:
        return endpoint.name or AWS
    parts = urlsplit(endpoint.url)
    host = parts.netloc.rpartition("@")[2].lower()
    host = host.removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ""))
    return AWS if AMAZON.fullmatch(host) else f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
