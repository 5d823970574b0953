"""Where people show their token once, and the browser keeps it for them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import FastAPI, Query, Request, Response

from plateway.gateway import auth
from plateway.gateway.answers import Problem
from plateway.gateway.pages import site

LONGEST = 4096  # bytes of the form
LONG = 2048  # characters of where to go then


def install(app: FastAPI) -> None:
    """Give an application these routes."""
    options = {"include_in_schema": False, "dependencies": [auth.OPEN], "response_model": None}
    app.add_api_route("/login", form, methods=["GET", "HEAD"], **options)  # type: ignore[arg-type]
    app.add_api_route("/login", login, methods=["POST"], **options)  # type: ignore[arg-type]
    app.add_api_route("/logout", logout, methods=["POST"], **options)  # type: ignore[arg-type]


async def form(request: Request, to: Annotated[str, Query(alias="next")] = "/", again: str = "") -> Response:
    """Ask for a token; who comes here ``again``, from a link elsewhere, may have shown it before."""
    guard: auth.Guard = request.app.state.guard
    if guard.opens(request) or (again and auth.COOKIE in request.cookies):
        return _go(local(to))
    return site.render(request, "login.html", to=local(to), problem=None)


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
        response = site.render(request, "login.html", status=problem.status, to=to, problem=text)
        response.headers.update(problem.headers)
        return response
    response = _go(to)
    response.set_cookie(
        auth.COOKIE,
        said["token"].strip(),
        max_age=max(0, int((token.expires - datetime.now(UTC)).total_seconds())),
        httponly=True,
        samesite="strict",
        secure=_private(request),
    )
    return response


async def logout(request: Request) -> Response:
    """Let the browser forget the token."""
    await _said(request)
    response = _go("/login")
    response.delete_cookie(auth.COOKIE, httponly=True, samesite="strict", secure=_private(request))
    return response


def local(to: str) -> str:
    """Take an address only if it is one of ours, else the first page."""
    try:
        parts = urlsplit(to)
    except ValueError:
        return "/"
    ours = to.startswith("/") and not parts.scheme and not parts.netloc and len(to) <= LONG
    if not ours or "\\" in to or not to.isprintable() or parts.path.startswith(("//", "/login", "/logout")):
        return "/"
    return quote(to, safe="/%?&=+:@,;~!$'()*")


async def _said(request: Request) -> dict[str, str]:
    """Read the form; one that another site sends is not ours.

    Raises:
        Problem: 403, or 413 when it is no such form.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
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


def _go(to: str) -> Response:
    return Response(None, 303, {"Location": to, "Cache-Control": "no-store"})
