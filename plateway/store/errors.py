"""Error translation: what botocore, obstore, fsspec and the system raise becomes an error of ours."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # ships no types
from obstore.exceptions import BaseError

from plateway.errors import Conflict, Damaged, Denied, NotFound, PlatewayError, Rejected, Unavailable

CREDENTIALS = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "InvalidAccessKeyId"}
MISSING = {"NoSuchBucket", "NoSuchKey", "404"}
STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>(\w{1,64})</Code>")
KIND = re.compile(r"kind: (Connect|Timeout|Interrupted|Decode)")
MEANING: dict[int | None, type[PlatewayError]] = {  # everything else is Unavailable
    errno.ENOENT: NotFound,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
    errno.EEXIST: Conflict,
    errno.EISDIR: Conflict,
    errno.ENOTDIR: Conflict,
    errno.ENAMETOOLONG: Rejected,
}
CLASSES: dict[type[OSError], tuple[type[PlatewayError], str]] = {  # fsspec's errors without a number
    FileNotFoundError: (NotFound, "not found"),
    PermissionError: (Denied, "denied"),
    FileExistsError: (Conflict, "is there already"),
}


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Translate foreign errors. Their text may quote addresses and paths, so it is not chained."""
    try:
        yield
    except ClientError as error:
        code = str(error.response["Error"].get("Code", ""))
        raise _translate_answer(what, error.response["ResponseMetadata"].get("HTTPStatusCode", 0), code) from None
    except BotoCoreError as error:
        raise Unavailable(f"{what}: the endpoint cannot be asked ({type(error).__name__})") from None
    except (BaseError, OSError) as error:
        raise _translate_failure(what, error) from None


def _translate_answer(what: str, status: int, code: str) -> PlatewayError:
    """Translate an endpoint's answer; the error keeps its code."""
    error = _classify_answer(what, status, code)
    error.code = code or str(status)
    return error


def _classify_answer(what: str, status: int, code: str) -> PlatewayError:
    if code in MISSING or (status == 404 and code != "NoSuchUpload"):
        return NotFound(f"{what}: not found ({code})")
    if status == 416:
        return Damaged(f"{what}: ends before the range that was asked for")
    if status in {401, 403} or code in CREDENTIALS:
        return Denied(f"{what}: denied ({code})")
    return Unavailable(f"{what}: the endpoint answered {status} {code}".rstrip())


def _translate_failure(what: str, error: Exception) -> PlatewayError:
    """Classify an error of obstore, by its text, or of the system, by its number."""
    text = str(error)
    status, code, kind = STATUS.search(text), CODE.search(text), KIND.search(text)
    if status:
        return _translate_answer(what, int(status[1]), code[1] if code else "")
    if isinstance(error, OSError) and error.errno:
        return MEANING.get(error.errno, Unavailable)(f"{what}: {error.strerror}")
    for theirs, (ours, told) in CLASSES.items():
        if isinstance(error, theirs):
            return ours(f"{what}: {told}")
    if "non-partial response" in text:
        return Unavailable(f"{what}: the endpoint answers with 200 where a range was asked for")
    return Unavailable(f"{what}: the endpoint does not answer ({kind[1] if kind else type(error).__name__})")
