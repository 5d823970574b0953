"""Filesystems of fsspec that cannot write: what a notebook gets of a bucket that is read-only.

That of S3 is s3fs, stopped right before a request would be signed, whichever way led there. Of any other, only what
reads is passed on.
"""

from __future__ import annotations

import errno
from typing import Any, NoReturn

from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]  # ships no types
from s3fs import S3FileSystem  # type: ignore[import-untyped]  # the same

READS = {"GET", "HEAD"}


class ReadOnlyS3(S3FileSystem):  # type: ignore[misc]  # untyped
    """A bucket of S3, to be read.

    Raises:
        PermissionError: something would write.
    """

    async def set_session(self, refresh: bool = False, kwargs: Any = None) -> Any:
        client = await super().set_session(refresh=refresh, kwargs=kwargs or {})
        client.meta.events.register("before-call.s3", _pass, unique_id=__name__)
        return client

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return super()._open(path, _reading(mode), **options)


class ReadOnlyFilesystem(AbstractFileSystem):  # type: ignore[misc]  # untyped
    """Another filesystem, to be read.

    Raises:
        PermissionError: something would write.
    """

    cachable = False

    def __init__(self, inner: AbstractFileSystem) -> None:
        super().__init__()
        self.protocol, self._strip_protocol, self.sep = inner.protocol, inner._strip_protocol, inner.sep
        self.ls, self.info, self.created, self.modified = inner.ls, inner.info, inner.created, inner.modified
        self._inner = inner

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return self._inner._open(path, _reading(mode), **options)

    def mkdir(self, *_: Any, **__: Any) -> NoReturn:
        _refuse()

    makedirs = rmdir = rm = rm_file = cp_file = touch = mkdir


def _pass(*, params: dict[str, Any], **_: Any) -> None:
    if params["method"] not in READS:
        _refuse()


def _reading(mode: str) -> str:
    if mode != "rb":
        _refuse()
    return mode


def _refuse() -> NoReturn:
    raise PermissionError(errno.EACCES, "the bucket is read-only")
