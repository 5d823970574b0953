"""Open a store by its URL. Each backend is imported when the first store of its kind is opened."""
# ruff: noqa: PLC0415

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from plateway.endpoint import Endpoint
from plateway.errors import Misconfigured
from plateway.store.contract import Objects
from plateway.store.wrappers import Prefixed, ReadOnly

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]  # ships no types


def open_store(url: str, endpoint: Endpoint | None = None) -> Objects:
    """Open ``s3://bucket[/prefix]``, ``file:///directory`` or ``memory://name`` (kept by this process)."""
    parts = urlsplit(url)
    endpoint = endpoint or Endpoint()
    store: Objects
    match parts.scheme, parts.netloc, unquote(parts.path):
        case "s3", bucket, prefix if bucket:
            from plateway.store.s3 import S3

            store = S3(bucket, endpoint)
            if prefix.strip("/"):
                store = Prefixed(store, prefix.strip("/") + "/")
        case "file", "", path if path.startswith("/"):
            from plateway.store.directory import Directory

            store = Directory(Path(path))
        case "memory", name, path if not path.strip("/"):
            from plateway.store.memory import open_memory

            store = open_memory(name)
        case _:
            raise Misconfigured("a bucket is s3://bucket[/prefix], file:///directory or memory://name")
    return ReadOnly(store) if endpoint.read_only else store


def filesystem(url: str, endpoint: Endpoint | None = None, **more: Any) -> tuple[AbstractFileSystem, str]:
    """Open a bucket for notebooks and pandas: an fsspec filesystem, and the path of the bucket in it.

    It caches listings unless ``more`` options of the filesystem forbid it. That of a read-only
    endpoint raises `PermissionError` instead of writing.
    """
    import fsspec  # type: ignore[import-untyped]  # ships no types

    endpoint = endpoint or Endpoint()
    secret, token = endpoint.secret_access_key, endpoint.session_token
    options = {
        "key": endpoint.access_key_id,
        "secret": secret.get_secret_value() if secret else None,
        "token": token.get_secret_value() if token else None,
        "endpoint_url": endpoint.url,
        "client_kwargs": {"region_name": endpoint.region},
        "config_kwargs": {
            "proxies": {} if endpoint.bypass_proxy else None,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
            "s3": {"addressing_style": "path" if endpoint.url else "auto"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    }
    options = (options if url.startswith("s3://") else {}) | more
    fs, root = fsspec.core.url_to_fs(url, **options)
    if endpoint.read_only:
        from plateway.store import read_only_fsspec

        fs = (
            read_only_fsspec.ReadOnlyS3(**options)
            if url.startswith("s3://")
            else read_only_fsspec.ReadOnlyFilesystem(fs)
        )
    return fs, root
