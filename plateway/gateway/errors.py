"""Error responses: one table from our errors to HTTP statuses.

The body of an error of the gateway is ``{"error": {"code": "<status>", "message": …}}``. For unknown routes and
parameters that are not valid, FastAPI responds with ``{"detail": …}``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from plateway.errors import (
    Busy,
    Conflict,
    Damaged,
    Denied,
    Misconfigured,
    NotFound,
    PlatewayError,
    Refused,
    Rejected,
    Unavailable,
    Unsettled,
)
from plateway.gateway.image_links import redact

AGAIN = 5  # seconds in Retry-After of a 503 response
CLIENT_CLOSED = 499  # for the access log: the client disconnected (nginx's code)
STATUS: dict[type[PlatewayError], tuple[int, str | None]] = {  # None: the message of the error itself
    Rejected: (400, None),
    NotFound: (404, None),
    Conflict: (409, "the key of another object conflicts with this one"),
    Refused: (403, "this server is read-only"),
    Unavailable: (503, "the store does not answer"),
    Busy: (503, "another request holds the lock"),
    Unsettled: (503, "the upload is incomplete"),
    Denied: (503, "the store refuses the gateway's credentials"),
    Misconfigured: (503, "the store is not configured"),
    Damaged: (503, "the stored bytes differ from the recorded checksum"),
}

log = logging.getLogger(__name__)


class Problem(Exception):
    """An error response, or 304."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def response(self) -> Response:
        """Return it as an HTTP response."""
        if self.status == 304:
            return Response(None, 304, self.headers)
        body = {"error": {"code": str(self.status), "message": self.message}}
        return Response(json.dumps(body), self.status, self.headers, "application/json")


def problem(error: PlatewayError) -> Problem:
    """Translate one of our errors; names of buckets and messages of servers go to the log only."""
    status, message = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), (500, "failed"))
    headers = {"Retry-After": str(AGAIN)} if status == 503 else None
    return Problem(status, message or str(error), headers=headers)


def install(app: FastAPI) -> None:
    """Install the error handlers in an application."""
    app.add_exception_handler(Problem, _handle_problem)
    app.add_exception_handler(PlatewayError, _handle_our_error)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    app.add_exception_handler(Exception, _handle_crash)


async def _handle_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _handle_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PlatewayError)
    answer = problem(error)
    if answer.status >= 500:
        log.error("%s %s: %s", request.method, redact(request.scope["path"][:200]), error)
    return answer.response()


async def _handle_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _handle_crash(_request: Request, _error: Exception) -> Response:
    return Response("Internal Server Error", 500, {"X-Content-Type-Options": "nosniff"}, "text/plain")
