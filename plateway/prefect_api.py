"""A client of Prefect's API for processes that do without Prefect, whose import takes seconds."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

from plateway.settings import PrefectApi

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def open_client(api: PrefectApi, *, timeout: float) -> httpx.Client:
    """Open a client with the credentials of an API; ``timeout`` in seconds. To this machine it uses no proxy."""
    user, _, password = api.login.get_secret_value().partition(":") if api.login else ("", "", "")
    return httpx.Client(
        base_url=api.url,
        headers={"Authorization": f"Bearer {api.key.get_secret_value()}"} if api.key else {},
        auth=(user, password) if api.login else None,
        timeout=timeout,
        trust_env=urlsplit(api.url).hostname not in LOOPBACK,
    )
