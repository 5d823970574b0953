"""Where people show their token once, and the browser keeps it for them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Annotated
from urllib.parse import parse_qs, quote, unquote, urlsplit

from anyio import to_thread
from fastapi import FastAPI, Query, Request, Response

from plateway.errors import NotFound
from plateway.gateway import auth, tokens
from plateway.gateway.access import request_info
from plateway.gateway.errors import Problem
from plateway.gateway.pages import rendering
from plateway.gateway.tokens import Token

LONGEST = 4096  # bytes of the form
LONG = 2048  # characters of where to go then


def install(app: FastAPI) -> None:
    """Give an application these routes."""
    options = {"include_in_schema": False, "dependencies": [auth.OPEN], "response_model": None}
    app.add_api_route("/login", form, methods=["GET", "HEAD"], **options)  # type: ignore[arg-type]
    app.add_api_route("/login", login, methods=["POST"], **options)  # type: ignore[arg-type]
    app.add_api_route("/logout", logout, methods=["POST"], **options)  # type: ignore[arg-type]


async def form(
    request: Request, to: Annotated[str, Query(alias="next")] = "/", again: str = "", code: str = ""
) -> Response:
    """Ask for a token, or sign in with a code; who comes here ``again``, from a link elsewhere, may have shown one."""
    guard: auth.Guard = request.app.state.guard
    if code and request.method == "GET" and "prefetch" not in request.headers.get("sec-purpose", ""):
        return await _sign_in(request, code, local(to))
    if guard.opens(request) or (again and auth.COOKIE in request.cookies):
        return _go(local(to))
    return rendering.render(request, "login.html", to=local(to), problem=None)


async def login(request: Request) -> Response:
    """Look at the token; the browser keeps a good one until its time is over."""
    said = await _said(request)
    to, guard = local(said.get("next", "/")), request.app.state.guard
    try:
        token = guard.known(request, said.get("token", "").strip())
        auth.Allowed("read").check(token)
    except Problem as problem:
        why = {401: "This token is not known, or its time is over.", 403: "This token may not read."}
        text = why.get(problem.status, f"{problem.message}. Try again in a minute.")
        response = rendering.render(request, "login.html", status=problem.status, to=to, problem=text)
        response.headers.update(problem.headers)
        return response
    return _inside(request, token, said["token"].strip(), to)


async def _sign_in(request: Request, code: str, to: str) -> Response:
    """Exchange the code of a link, once, for a session."""
    guard: auth.Guard = request.app.state.guard
    exchange = partial(tokens.sign_in, request.app.state.parts.sessions, code, now=datetime.now(UTC))
    made = await to_thread.run_sync(exchange) if guard.sessions.find(code) else None
    if made is None:
        problem = guard.refused(request, "This link was used before, or has expired")
        text = f"{problem.message}. `plateway token link` prints a new one."
        response = rendering.render(request, "login.html", status=problem.status, to=to, problem=text)
        response.headers.update(problem.headers)
        return response
    request_info(request.scope).who = made.token.name
    return _inside(request, made.token, made.secret, to)


async def logout(request: Request) -> Response:
    """Remove the token from the browser; a session ends for everybody."""
    await _said(request)
    guard: auth.Guard = request.app.state.guard
    if session := guard.sessions.find(request.cookies.get(auth.COOKIE, "")):
        with suppress(NotFound):
            await to_thread.run_sync(tokens.delete, request.app.state.parts.sessions, session.name)
    response = _go("/login")
    response.delete_cookie(auth.COOKIE, httponly=True, samesite="strict", secure=_private(request))
    return response


def local(to: str) -> str:
    """Return an address if it is a path of ours, however often it is decoded on the way; else that of the first page.

    Browsers read ``//``, ``/\\`` and what has tabs between them as the beginning of another host.
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


def _own_form(request: Request) -> bool:
    """Return whether a form was sent by a page of ours, or by no browser at all.

    Browsers leave ``Sec-Fetch-Site`` out where they speak plain HTTP with another machine, but never ``Origin``.
    """
    headers = request.headers
    if (site_ := headers.get("sec-fetch-site")) is not None:
        return site_ in {"same-origin", "none"}
    source = headers.get("origin", headers.get("referer"))
    try:
        return source is None or urlsplit(source).netloc.lower() == headers.get("host", "").lower() != ""
    except ValueError:
        return False


async def _said(request: Request) -> dict[str, str]:
    """Read the form; one that another site sends is not ours.

    Raises:
        Problem: 403, or 413 when it is no such form.
    """
    if not _own_form(request):
        raise Problem(403, "The form was sent from elsewhere")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST:
            raise Problem(413, f"The form has more than {LONGEST} bytes")
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10) if body.count(b"&") < 10 else {}
    return {name: values[0] for name, values in fields.items()}


def _private(request: Request) -> bool:
    """Does the browser speak https? Whoever lies about it in a header harms only the own cookie."""
    return "https" in {request.url.scheme, request.headers.get("x-forwarded-proto", "").rpartition(",")[2].strip()}


def _inside(request: Request, token: Token, secret: str, to: str) -> Response:
    """Send the browser on with a cookie that scripts and other sites do not see."""
    response = _go(to)
    response.set_cookie(
        auth.COOKIE,
        secret,
        max_age=max(0, int((token.expires - datetime.now(UTC)).total_seconds())),
        httponly=True,
        samesite="strict",
        secure=_private(request),
    )
    return response


def _go(to: str) -> Response:
    return Response(None, 303, {"Location": to, "Cache-Control": "no-store"})
