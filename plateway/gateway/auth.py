"""Authentication with bearer tokens, and the scopes that each route declares.

A route declares its scopes with ``dependencies=[needs("read")]`` or `OPEN`, or has the token as a parameter.
An application with a route that declares nothing does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from plateway.errors import Misconfigured
from plateway.gateway.access import request_info
from plateway.gateway.address_limits import limit_name
from plateway.gateway.errors import Problem
from plateway.gateway.rate_limits import Limits, Rates, too_many_requests
from plateway.gateway.tokens import Token, Tokens

COOKIE = "plateway_token"  # of browsers
READING = frozenset({"GET", "HEAD"})
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
FORMS = frozenset({"/login", "/logout"})  # change only the browser's cookies
FRAMEWORK = frozenset({"openapi"})  # FastAPI's own


class Guard:
    """Checks tokens and charges their rate limits."""

    def __init__(
        self,
        tokens: Tokens,
        rates: Rates,
        limits: Limits,
        *,
        sessions: Tokens,
        open_: bool = False,
        straight: bool = False,
    ) -> None:
        self.tokens, self.sessions, self.rates, self.limits = tokens, sessions, rates, limits
        self._open, self._straight = open_, straight

    def opens(self, request: Request) -> bool:
        """Return whether this request may read events without a token, by the settings."""
        return self._open and (not self._straight or straight(request))

    def permits(self, request: Request, scope: str) -> bool:
        """Return whether the cookie of a request is a valid token with this scope. Charges nothing."""
        found = self.tokens.find(request.cookies.get(COOKIE, ""))
        return found is not None and scope in found.scopes and not found.expired(datetime.now(UTC))

    def admit(self, request: Request, *, cookie: bool = False, form: bool = False) -> Token:
        """Return the valid token of a request. A cookie is accepted only with `cookie`, and only for reading.

        With `form` it is also accepted for a form, of which the caller has checked that a page of this site sent it.

        Raises:
            Problem: 401 without a valid token, 429 after too many requests or too many failed logins.
        """
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        among = [self.tokens]
        if cookie and not kind and (form or request.method in READING):
            kind, secret = "bearer", request.cookies.get(COOKIE, "")
            among.append(self.sessions)
        if kind.lower() != "bearer" or not secret.strip():
            raise self.refused(request, "Not authenticated")
        return self.known(request, secret.strip(), among=among)

    def known(self, request: Request, secret: str, *, among: Sequence[Tokens] | None = None) -> Token:
        """Find the valid token of a secret in these files, and charge its rate limit.

        Raises:
            Problem: 401 if it is unknown or expired, 429 after too many requests or too many failed logins.
        """
        found = next(filter(None, (one.find(secret) for one in among or [self.tokens])), None)
        if found is None:
            raise self.refused(request, "Invalid or missing token")
        if found.expired(datetime.now(UTC)):
            raise self.refused(request, "Token expired")
        request_info(request.scope).who = found.name
        if wait := self.rates.charge(f"token {found.hash}", self.limits.token):
            raise too_many_requests(wait)
        return found

    def token_name(self, headers: Headers) -> str | None:
        """Return the name of the valid token in these headers, for the access log. Charges nothing."""
        kind, _, secret = headers.get("authorization", "").partition(" ")
        found = self.tokens.find(secret.strip()) if kind.lower() == "bearer" else None
        return None if found is None or found.expired(datetime.now(UTC)) else found.name

    def refused(self, request: Request, why: str) -> Problem:
        """Charge a failed login to the address; return 401, or 429 after too many."""
        wait = self.rates.charge(f"failed {limit_name(request_info(request.scope).address)}", self.limits.failed)
        return too_many_requests(wait) if wait else Problem(401, why)


class Allowed:
    """Requires a token with these scopes."""

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes

    async def __call__(self, request: Request) -> Token:
        guard: Guard = request.app.state.guard
        token = guard.admit(request)
        self.check(token)
        return token

    def check(self, token: Token) -> None:
        """Check the scopes of a token.

        Raises:
            Problem: 403.
        """
        if missing := sorted(set(self.scopes) - set(token.scopes)):
            raise Problem(403, f"Missing required scopes: {missing}")


class Reader(Allowed):
    """Requires a token that may read, unless events are open to all.

    Returns the prefix of the keys that the request may see; empty: all.
    """

    async def __call__(self, request: Request) -> str:  # type: ignore[override]  # routes about events need only the prefix
        guard: Guard = request.app.state.guard
        if guard.opens(request):
            return ""
        token = guard.admit(request, cookie=True)
        self.check(token)
        return token.prefix or ""


class FormSender(Allowed):
    """Requires a form that a page of this site sent, and a cookie or header with a token that has these scopes."""

    async def __call__(self, request: Request) -> Token:
        if not is_own_form(request):
            raise Problem(403, "The form was sent by another site")
        guard: Guard = request.app.state.guard
        token = guard.admit(request, cookie=True, form=True)
        self.check(token)
        return token


def is_own_form(request: Request) -> bool:
    """Return whether a form was sent by a page of this site, or not by a browser.

    Browsers omit ``Sec-Fetch-Site`` over plain HTTP to another machine, but never ``Origin``.
    """
    headers = request.headers
    if (site_ := headers.get("sec-fetch-site")) is not None:
        return site_ in {"same-origin", "none"}
    source = headers.get("origin", headers.get("referer"))
    try:
        return source is None or urlsplit(source).netloc.lower() == headers.get("host", "").lower() != ""
    except ValueError:
        return False


def loopback(host: str) -> bool:
    """Return whether a host is a loopback address, ``localhost`` or a name below it (RFC 6761)."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return f".{host.lower().removesuffix('.')}".endswith(".localhost")


def straight(request: Request) -> bool:
    """Return whether a request was sent to this machine's own address, and not forwarded by a proxy.

    The Host header excludes pages of other sites whose host name resolves to this machine (DNS rebinding).
    """
    host_header = request.headers.get("host", "")
    try:
        host = urlsplit(f"//{host_header}").hostname
    except ValueError:
        return False
    return loopback(host or "") and "@" not in host_header and not any(name in request.headers for name in FORWARDED)


class ReadOnlyMiddleware:
    """Middleware: refuse every method that could change something, and record the token's name."""

    def __init__(self, app: ASGIApp, *, token_name: Callable[[Headers], str | None]) -> None:
        self.app, self._token_name = app, token_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in HARMLESS and scope["path"] not in FORMS:
            request_info(scope).who = self._token_name(Headers(scope=scope))
            await Problem(403, "This server is read-only").response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


async def _anybody() -> None:
    """Require nothing."""


def needs(*scopes: str) -> Any:
    """Declare that a route requires a token with all of these scopes; returns the `Token`."""
    return Depends(Allowed(*scopes))


OPERATOR = Depends(FormSender("operate"))  # returns the `Token` of a form that asks for something
READER = Depends(Reader("read"))  # returns the prefix of the keys that the request may see
OPEN = Depends(_anybody)  # declares that a route requires no token


def declared(app: FastAPI) -> Iterator[tuple[str, str, tuple[str, ...] | None]]:
    """List the method and path of each route with the scopes that it declares; None: no token is required.

    Raises:
        Misconfigured: a route declares nothing.
    """
    for route in app.routes:
        path = getattr(route, "path", repr(route))
        if getattr(route, "name", "") in FRAMEWORK and not isinstance(route, APIRoute):
            continue
        if not isinstance(route, APIRoute):
            raise Misconfigured(f"route {path}: its scopes cannot be known")
        calls = list(_calls(route.dependant))
        scopes = [scope for call in calls if isinstance(call, Allowed) for scope in call.scopes]
        guarded = any(isinstance(call, Allowed) for call in calls)
        if guarded == (_anybody in calls):
            raise Misconfigured(f"route {path}: declares no scopes, or is open as well")
        for method in sorted(route.methods or ()):
            yield method, path, tuple(scopes) if guarded else None


def within(token: Token, key: str) -> None:
    """Check that a token covers a key.

    Raises:
        Problem: 403, it does not.
    """
    if not token.covers(key):
        raise Problem(403, f"The token is valid for keys that begin with {token.prefix}")


def _calls(dependant: Dependant) -> Iterator[Callable[..., Any]]:
    for inner in dependant.dependencies:
        if inner.call is not None:
            yield inner.call
        yield from _calls(inner)
