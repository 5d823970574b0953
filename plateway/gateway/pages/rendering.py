"""What all pages share: how they are made and sent, what they may load, and what people see who may not see them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

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
        "plateway.svg": "image/svg+xml",
    }.items()
}
VERSION = hashlib.sha256(b"".join(content for _, content in ASSETS.values())).hexdigest()[:12]
PUBLIC = frozenset({"login.html", "again.html", "problem.html"})  # shown to anybody: they name no other server
KEPT = "public, max-age=31536000, immutable"
HEADERS = {
    POLICY: "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "private, no-cache",
    "Referrer-Policy": "same-origin",  # without a referrer, browsers do not say where a form comes from
    "Vary": "Cookie, Authorization",
}

log = logging.getLogger(__name__)


class Page(APIRoute):
    """A route that people look at: what goes wrong is told as a page, and who has no token is asked for it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            if asked := _asked(request):
                return asked
            try:
                return await handle(request)
            except Problem as asked_for:
                return told(request, asked_for)
            except RequestValidationError:
                return told(request, Problem(422, "The address says something that cannot be understood"))
            except PlatewayError as error:
                problem = errors.problem(error)
                if problem.status >= 500:
                    log.error("%s %s: %s", request.method, request.scope["path"][:200], error)
                return told(request, problem)

        return handled


def add(app: FastAPI, path: str, page: Callable[..., Any]) -> None:
    """Give an application a page."""
    app.router.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False, route_class_override=Page)


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Make a page of a template."""
    parts, guard = request.app.state.parts, request.app.state.guard
    content = TEMPLATES.get_template(template).render(
        path=request.scope["path"],
        prefect="" if template in PUBLIC else (parts.prefect_ui or "").rstrip("/"),
        guarded=not guard.opens(request),
        inside=not guard.opens(request) and auth.COOKIE in request.cookies,
        **values,
    )
    return HTMLResponse(content, status, HEADERS)


def told(request: Request, problem: Problem) -> Response:
    """Tell what went wrong; a program hears it as everywhere, a person without a good token is asked for one."""
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


def to_login(request: Request, **more: Any) -> str:
    """Say where to show a token, and where that leads back to."""
    query = f"?{request.url.query}" if request.url.query else ""
    return address("/login", next=quote(request.scope["path"]) + query, **more)


def address(path: str, **query: Any) -> str:
    """Write an address; what is None or empty is left out."""
    told_ = {name: str(value) for name, value in query.items() if value not in {None, ""}}
    return path + (f"?{urlencode(told_)}" if told_ else "")


def quoted(name: str) -> str:
    """Write the name of a file as a part of an address."""
    return quote(name.encode("utf-8", "surrogateescape"), safe="/")


def install(app: FastAPI) -> None:
    """Give an application what pages load."""
    app.add_api_route(
        "/static/{name}",
        static,
        methods=["GET", "HEAD"],
        include_in_schema=False,
        dependencies=[auth.OPEN],
        response_model=None,
    )


async def static(name: str) -> Response:
    """Send a file that pages load."""
    if name not in ASSETS:
        raise NotFound("no such file")
    kind, content = ASSETS[name]
    return Response(content, headers={"Cache-Control": KEPT}, media_type=kind)


def _asked(request: Request) -> Response | None:
    """Ask for a token before anything is counted as a failed login.

    Browsers keep the cookie to themselves when a link on another site was followed: then we follow it once more.
    """
    if request.app.state.guard.opens(request) or auth.COOKIE in request.cookies or "authorization" in request.headers:
        return None
    if request.headers.get("sec-fetch-site") == "cross-site":
        return render(request, "again.html", to=to_login(request, again=1))
    return told(request, Problem(401, "Not authenticated"))


def _plain(value: Any) -> Any:
    """Write out what is not printable: nothing that came from elsewhere turns or hides the text around it."""
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
TEMPLATES.filters.update(when=_when, size=spoken_size, quoted=quoted, number=lambda value: f"{value:,}")
