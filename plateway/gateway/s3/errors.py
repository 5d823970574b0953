"""Errors of the S3 endpoint, by their codes in S3's API reference."""

from __future__ import annotations

from collections.abc import Mapping

from plateway.errors import NotFound, PlatewayError, Rejected
from plateway.gateway import errors
from plateway.gateway.errors import Problem

STATUS = {
    "AccessDenied": 403,
    "AuthorizationHeaderMalformed": 400,
    "AuthorizationQueryParametersError": 400,
    "ExpiredToken": 403,  # 400 at AWS, which a client that sends HEAD cannot tell from other faults
    "InvalidAccessKeyId": 403,
    "InvalidArgument": 400,
    "InvalidPartNumber": 416,
    "InvalidRange": 416,
    "InvalidRequest": 400,
    "InvalidURI": 400,
    "MethodNotAllowed": 405,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchVersion": 404,
    "NotModified": 304,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "ServiceUnavailable": 503,
    "SignatureDoesNotMatch": 403,
    "SlowDown": 503,
    "XAmzContentSHA256Mismatch": 400,
}
CODES = {304: "NotModified", 400: "InvalidArgument", 404: "NoSuchKey", 412: "PreconditionFailed", 416: "InvalidRange"}


class S3Error(Exception):
    """An error response, or 304."""

    def __init__(self, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, STATUS[code]
        self.headers = dict(headers or {})


def of_problem(problem: Problem) -> S3Error:
    """Translate an error response of the gateway."""
    code = CODES.get(problem.status, "SlowDown")
    return S3Error(code, problem.message, headers=problem.headers)


def of_error(error: PlatewayError) -> S3Error:
    """Translate one of our errors; names of buckets and messages of servers go to the log only."""
    if isinstance(error, NotFound):
        return S3Error("NoSuchKey", "The specified key does not exist.")
    if isinstance(error, Rejected):
        return S3Error("InvalidArgument", str(error))
    known = errors.problem(error)
    return S3Error("ServiceUnavailable", known.message, headers=known.headers)
