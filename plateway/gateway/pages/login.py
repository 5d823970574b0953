"""Sign in: exchange a token, or the code of a link, for a cookie."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Annotated
from urllib.parse import parse_qs, quote, unquote

from anyio import to_thread
from fastapi import FastAPI, Query, Request, Response

from plateway.errors import NotFound
from plateway.gateway import auth, tokens
from plateway.gateway.access import request_info
from plateway.gateway.errors import Problem
from plateway.gateway.pages import rendering
from plateway.gateway.tokens import Token

LONGEST = 4096  # bytes of the form
LONG = 2048  # characters of the address to go to afterwards


def install(app: FastAPI) -> None:
    """Add these routes to an application."""
    options = {"include_in_schema": False, "dependencies": [auth.OPEN], "response_model": None}
    app.add_api_route("/login", form, methods=["GET", "HEAD"], **options)  # type: ignore[arg-type]
    app.add_api_route("/login", login, methods=["POST"], **options)  # type: ignore[arg-type]
    app.add_api_route("/logout", logout, methods=["POST"], **options)  # type: ignore[arg-type]


async def form(
    request: Request, to: Annotated[str, Query(alias="next")] = "/", again: str = "", code: str = ""
) -> Response:
    """Show the form, or sign in with a code. ``again``: a link of another site led here."""
    guard: auth.Guard = request.app.state.guard
    if code and request.method == "GET" and "prefetch" not in request.headers.get("sec-purpose", ""):
        return await _sign_in(request, code, local(to))
    if guard.opens(request) or (again and auth.COOKIE in request.cookies):
        return _redirect(local(to))
    return rendering.render(request, "login.html", to=local(to), problem=None)


async def login(request: Request) -> Response:
    """Check the token and set it as a cookie until it expires."""
    said = await parse_form(request)
    to, guard = local(said.get("next", "/")), request.app.state.guard
    try:
        token = guard.known(request, said.get("token", "").strip())
        auth.Allowed("read").check(token)
    except Problem as problem:
        why = {401: "Unknown or expired token.", 403: "This token has no permission to read."}
        text = why.get(problem.status, f"{problem.message}. Try again in a minute.")
        response = rendering.render(request, "login.html", status=problem.status, to=to, problem=text)
        response.headers.update(problem.headers)
        return response
    return _redirect_with_cookie(request, token, said["token"].strip(), to)


async def _sign_in(request: Request, code: str, to: str) -> Response:
    """Exchange the code of a link, once, for a session."""
    guard: auth.Guard = request.app.state.guard
    exchange = partial(tokens.sign_in, request.app.state.parts.sessions, code, now=datetime.now(UTC))
    made = await to_thread.run_sync(exchange) if guard.sessions.find(code) else None
    if made is None:
        problem = guard.refused(request, "This link was used before or is expired")
        text = f"{problem.message}. `plateway token link` prints a new one."
        response = rendering.render(request, "login.html", status=problem.status, to=to, problem=text)
        response.headers.update(problem.headers)
        return response
    request_info(request.scope).who = made.token.name
    return _redirect_with_cookie(request, made.token, made.secret, to)


async def logout(request: Request) -> Response:
    """Delete the cookie; a session is deleted on the server as well."""
    await parse_form(request)
    guard: auth.Guard = request.app.state.guard
    if session := guard.sessions.find(request.cookies.get(auth.COOKIE, "")):
        with suppress(NotFound):
            await to_thread.run_sync(tokens.delete, request.app.state.parts.sessions, session.name)
    response = _redirect("/login")
    response.delete_cookie(auth.COOKIE, httponly=True, samesite="strict", secure=_uses_https(request))
    return response


def local(to: str) -> str:
    """Return an address if it is a path of this site, however often it is decoded; otherwise that of the first page.

    Browsers parse ``//``, ``/\\`` and what has tabs between them as the beginning of another host.
    """
    if len(to) > LONG:
        return "/"
    path = to.partition("?")[0]
    while (plain := unquote(path)) != path:
        path = plain
    ours = to.startswith("/") and (to + path).isprintable() and "//" not in path and "\\" not in to + path
    if not ours or path.startswith(("/login", "/logout")):
        return "/"
    return quote(to, safe="/%?&=+:@,;~!$'()*")


async def parse_form(request: Request) -> dict[str, str]:
    """Parse the form.

    Raises:
        Problem: 403, another site sent it; 413, it is too large.
    """
    if not auth.is_own_form(request):
        raise Problem(403, "The form was sent by another site")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST:
            raise Problem(413, f"The form has more than {LONGEST} bytes")
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10) if body.count(b"&") < 10 else {}
    return {name: values[0] for name, values in fields.items()}


def _uses_https(request: Request) -> bool:
    """Return whether the browser uses https. A false header harms only the cookie of its sender."""
    return "https" in {request.url.scheme, request.headers.get("x-forwarded-proto", "").rpartition(",")[2].strip()}


def _redirect_with_cookie(request: Request, token: Token, secret: str, to: str) -> Response:
    """Redirect with a cookie that scripts and other sites cannot read."""
    response = _redirect(to)
    response.set_cookie(
        auth.COOKIE,
        secret,
        max_age=max(0, int((token.expires - datetime.now(UTC)).total_seconds())),
        httponly=True,
        samesite="strict",
        secure=_uses_https(request),
    )
    return response


def _redirect(to: str) -> Response:
    return Response(None, 303, {"Location": to, "Cache-Control": "no-store"})
