"""The address of a client, and the limits that hold for each address."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from plateway.gateway.access import request_info
from plateway.gateway.errors import Problem
from plateway.gateway.rate_limits import Limits, Rates, too_many_requests

HEALTH_ONLY = "health_only"  # key in the state of a connection that serves /health and /ready only
UNLIMITED = frozenset({"/health", "/ready"})

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(trusted: Sequence[str]) -> tuple[Network, ...]:
    """Parse the addresses and networks of trusted proxies.

    Raises:
        ValueError: one is neither.
    """
    return tuple(ipaddress.ip_network(one, strict=False) for one in trusted)


def address(peer: str | None, forwarded: str, trusted: Sequence[Network]) -> str | None:
    """Return the client's address: the peer, or the last hop of ``X-Forwarded-For`` before the trusted proxies."""
    for hop in [*reversed([one.strip() for one in forwarded.split(",")]), None]:
        if peer is None or not within(peer, trusted) or not hop or _parse_address(hop) is None:
            return peer
        peer = hop
    return peer


@lru_cache(1024)
def limit_name(client: str | None) -> str:
    """Return the name under which an address is counted: an IPv6 customer has a /64."""
    parsed = _parse_address(client or "")
    if isinstance(parsed, ipaddress.IPv6Address):
        return f"address {ipaddress.ip_network((parsed, 64), strict=False).network_address}"
    return f"address {parsed}"


@lru_cache(1024)
def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return parsed.ipv4_mapped or parsed if isinstance(parsed, ipaddress.IPv6Address) else parsed


def within(client: str, trusted: Sequence[Network]) -> bool:
    """Return whether an address is that of a trusted proxy."""
    parsed = _parse_address(client)
    return parsed is not None and any(parsed in network for network in trusted if network.version == parsed.version)


class AddressLimit:
    """Middleware: record the client's address, and limit its requests per time and its concurrent requests.

    ``/health`` and ``/ready`` have no limit. A connection that the server marked `HEALTH_ONLY` serves only these.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        rates: Rates,
        limits: Limits,
        trusted: Sequence[Network],
        unlimited: frozenset[str] = UNLIMITED,
        respond: Callable[[Problem], Response] = Problem.response,
    ) -> None:
        self.app, self._rates, self._limits, self._trusted = app, rates, limits, trusted
        self._unlimited, self._respond = unlimited, respond
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")) if self._trusted else ""
        info = request_info(scope)
        info.address = address((scope.get("client") or (None,))[0], forwarded, self._trusted)
        if scope["path"] in self._unlimited:
            await self.app(scope, receive, send)
            return
        name = limit_name(info.address)
        if problem := self._check_limits(scope, name):
            await self._respond(problem)(scope, receive, send)
            return
        self._running[name] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._running -= Counter([name])  # this subtraction removes entries that reach zero

    def _check_limits(self, scope: Scope, name: str) -> Problem | None:
        full = self._running.total() >= self._limits.connections or self._running[name] >= self._limits.per_address
        if full or HEALTH_ONLY in scope.get("state", {}):
            return Problem(503, "Too many requests at a time", headers={"Retry-After": "1", "Connection": "close"})
        wait = self._rates.charge(name, self._limits.address)
        return too_many_requests(wait) if wait else None
