"""Render and send pages: templates, static files, security policy, and error pages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException

from plateway import __version__
from plateway.errors import NotFound, PlatewayError
from plateway.gateway import auth, errors
from plateway.gateway.errors import Problem
from plateway.gateway.headers import POLICY
from plateway.names import shown
from plateway.pipeline.report import spoken_size

HERE = Path(__file__).parent
ASSETS = {
    name: (kind, (HERE / "static" / name).read_bytes())
    for name, kind in {
        "plateway.css": "text/css; charset=utf-8",
        "plateway.js": "text/javascript; charset=utf-8",
        "viewer.js": "text/javascript; charset=utf-8",
        "plateway.svg": "image/svg+xml",
    }.items()
}
VERSION = hashlib.sha256(b"".join(content for _, content in ASSETS.values())).hexdigest()[:12]
PUBLIC = frozenset(
    {"login.html", "again.html", "help.html", "problem.html"}
)  # shown without a token: they name no other server
PROGRAMS = ("/api/", "/openapi.json", "/metrics", "/health", "/ready")  # errors there are JSON for everybody
KEPT = "public, max-age=31536000, immutable"
HEADERS = {
    POLICY: "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "private, no-cache",
    "Referrer-Policy": "same-origin",  # without a referrer, browsers send no Origin with a form
    "Vary": "Cookie, Authorization",
}

log = logging.getLogger(__name__)


class PageRoute(APIRoute):
    """A route of a page: errors become pages, and a request without a token is sent to the login."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            if asked := _redirect_to_login(request):
                return asked
            try:
                return await handle(request)
            except Problem as asked_for:
                return render_problem(request, asked_for)
            except RequestValidationError:
                return render_problem(request, Problem(422, "The address is not valid"))
            except PlatewayError as error:
                problem = errors.problem(error)
                if problem.status >= 500:
                    log.error("%s %s: %s", request.method, request.scope["path"][:200], error)
                return render_problem(request, problem)

        return handled


def add(app: FastAPI, path: str, page: Callable[..., Any]) -> None:
    """Add a page to an application."""
    app.router.add_api_route(
        path, page, methods=["GET", "HEAD"], include_in_schema=False, route_class_override=PageRoute
    )


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Render a template."""
    parts, guard = request.app.state.parts, request.app.state.guard
    content = TEMPLATES.get_template(template).render(
        path=request.scope["path"],
        prefect="" if template in PUBLIC else (parts.prefect_ui or "").rstrip("/"),
        guarded=not guard.opens(request),
        inside=not guard.opens(request) and auth.COOKIE in request.cookies,
        **values,
    )
    return HTMLResponse(content, status, HEADERS)


def render_problem(request: Request, problem: Problem) -> Response:
    """Render an error: JSON for programs, a page for browsers, the login without a valid token."""
    if problem.status == 304 or "authorization" in request.headers:
        return problem.response()
    if problem.status == 401:
        asked = Response(None, 303, {"Location": to_login(request), "Cache-Control": "no-store"})
        if auth.COOKIE in request.cookies:
            asked.delete_cookie(auth.COOKIE, httponly=True, samesite="strict")
        return asked
    response = render(request, "problem.html", status=problem.status, problem=problem)
    response.headers.update(problem.headers)
    return response


async def _handle_http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown address, or a method that it does not have: a page for browsers, JSON for programs."""
    assert isinstance(error, HTTPException)
    if request.scope["path"].startswith(PROGRAMS) or "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    message = "There is no page at this address" if error.status_code == 404 else error.detail
    return render_problem(request, Problem(error.status_code, message, headers=error.headers))


def to_login(request: Request, **more: Any) -> str:
    """Return the address of the login, which leads back to this request."""
    query = f"?{request.url.query}" if request.url.query else ""
    return address("/login", next=quote(request.scope["path"]) + query, **more)


def address(path: str, **query: Any) -> str:
    """Format an address; values that are None or empty are omitted."""
    told_ = {name: str(value) for name, value in query.items() if value not in {None, ""}}
    return path + (f"?{urlencode(told_)}" if told_ else "")


def quoted(name: str) -> str:
    """Quote the name of a file for an address."""
    return quote(name.encode("utf-8", "surrogateescape"), safe="/")


def install(app: FastAPI) -> None:
    """Add the static files of pages, and pages for errors, to an application."""
    app.add_exception_handler(HTTPException, _handle_http_error)
    options: dict[str, Any] = {"methods": ["GET", "HEAD"], "include_in_schema": False, "dependencies": [auth.OPEN]}
    app.add_api_route("/static/{name}", static, response_model=None, **options)
    app.add_api_route("/help", explain_blocks, response_model=None, **options)


async def explain_blocks(request: Request) -> Response:
    """Describe the blocks in Prefect, whose documentation links lead here."""
    return render(request, "help.html")


async def static(name: str) -> Response:
    """Send a static file."""
    if name not in ASSETS:
        raise NotFound("no such file")
    kind, content = ASSETS[name]
    return Response(content, headers={"Cache-Control": KEPT}, media_type=kind)


def _redirect_to_login(request: Request) -> Response | None:
    """Redirect to the login before a failed login is counted.

    Browsers send no cookie after a link on another site: then the page is loaded once more from this site.
    """
    if request.app.state.guard.opens(request) or auth.COOKIE in request.cookies or "authorization" in request.headers:
        return None
    if request.headers.get("sec-fetch-site") == "cross-site":
        return render(request, "again.html", to=to_login(request, again=1))
    return render_problem(request, Problem(401, "Not authenticated"))


def _plain(value: Any) -> Any:
    """Escape characters that are not printable, so that no value reverses or hides the text around it."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "\n".join(map(shown, value.split("\n")))


def _when(moment: datetime, form: str = "%-d %b %Y, %H:%M") -> Markup:
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        moment.isoformat(), f"{moment:%Y-%m-%d %H:%M:%S}", moment.strftime(form)
    )


TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_plain,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals.update(release=__version__, version=VERSION, address=address)
TEMPLATES.filters.update(
    value=lambda value: f"{value:.5g}", when=_when, size=spoken_size, quoted=quoted, number=lambda value: f"{value:,}"
)
