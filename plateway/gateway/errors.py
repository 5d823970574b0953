"""What the gateway answers when it does not do what was asked: one table from our errors to HTTP.

The body is ``{"error": {"code": "<status>", "message": …}}`` for everything that the gateway itself says; routes that
are not there and parameters of a wrong kind are answered by FastAPI as ``{"detail": …}``.
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

AGAIN = 5  # seconds after which something that does not answer may be asked again
CLIENT_CLOSED = 499  # for the access log: nobody is there any more to be answered
STATUS: dict[type[PlatewayError], tuple[int, str | None]] = {  # None: our own words are fit to be told
    Rejected: (400, None),
    NotFound: (404, None),
    Conflict: (409, "another object is in the way of this key"),
    Refused: (403, "this server does not change anything"),
    Unavailable: (503, "the store does not answer"),
    Busy: (503, "somebody else is at it"),
    Unsettled: (503, "what was sent did not arrive whole"),
    Denied: (503, "the store does not let the gateway in"),
    Misconfigured: (503, "the store is not set up"),
    Damaged: (503, "the store does not hold what was sent"),
}

log = logging.getLogger(__name__)


class Problem(Exception):
    """An answer other than what was asked for."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def response(self) -> Response:
        """Say it as HTTP does."""
        if self.status == 304:
            return Response(None, 304, self.headers)
        body = {"error": {"code": str(self.status), "message": self.message}}
        return Response(json.dumps(body), self.status, self.headers, "application/json")


def problem(error: PlatewayError) -> Problem:
    """Say one of our errors as an answer; names of buckets and what servers said stay in the log."""
    status, message = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), (500, "failed"))
    headers = {"Retry-After": str(AGAIN)} if status == 503 else None
    return Problem(status, message or str(error), headers=headers)


def install(app: FastAPI) -> None:
    """Let an application answer this way."""
    app.add_exception_handler(Problem, _told)
    app.add_exception_handler(PlatewayError, _failed)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _crashed)


async def _told(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, PlatewayError)
    answer = problem(error)
    if answer.status >= 500:
        log.error("%s %s: %s", request.method, request.scope["path"][:200], error)
    return answer.response()


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _crashed(_request: Request, _error: Exception) -> Response:
    return Response("Internal Server Error", 500, {"X-Content-Type-Options": "nosniff"}, "text/plain")
