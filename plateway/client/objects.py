"""Objects, compatible with amplify-object-store's clients: the same methods, arguments and exceptions.

Differences: ``exists`` returns False only for missing objects, and without retries; both clients encode keys in the
same way; uploads are compared with what the server stored. Streams, ranges and prefixes are new.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import httpx

from plateway.client.body import AsyncContent, Body, Content
from plateway.client.protocol import Answer, Steps, Stream
from plateway.client.retries import Server, Tries, path
from plateway.client.transports import AsyncDriver, Driver
from plateway.errors import Damaged, NotFound, PlatewayError, Unavailable

PAGE = 100


class RestStoreError(PlatewayError):
    """A request failed; ``__cause__`` has the reason, and whether a retry may help."""


class ObjectFailed(RestStoreError, KeyError):
    """An object was not stored, read or deleted, for another reason than that it is missing."""

    __str__ = Exception.__str__  # KeyError would quote the message


class ListingFailed(RestStoreError, NotImplementedError):
    """The keys could not be listed."""


AsyncRestStoreError = RestStoreError


class RestStore:
    """An object store over HTTP; thread-safe."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        timeout: float = 30.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        *,
        session: httpx.Client | None = None,
    ) -> None:
        """Prepare a client; no request is sent yet.

        `timeout` is the longest silence of the server in seconds, `max_retries` the number of attempts, `retry_delay`
        the first pause in seconds. A `session` of the caller stays open.

        Raises:
            Misconfigured: the address or the key is not valid.
        """
        self._objects = Objects(Server(base_url, api_key, tries=Tries(max_retries, retry_delay)))
        self._driver = Driver(session, timeout=timeout)

    @classmethod
    def create(
        cls,
        base_url: str,
        api_key: str,
        timeout: float = 30.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        *,
        session: httpx.Client | None = None,
    ) -> Self:
        """Create a store, as in the original."""
        return cls(base_url, api_key, timeout, max_retries, retry_delay, session=session)

    def put(self, key: str, data: Content) -> None:
        """Store bytes, a file from its current position, or pieces; an existing object is replaced atomically.

        Raises:
            KeyError: it was not stored.
        """
        self._driver.run(self._objects.put(key, data))

    def get(self, key: str) -> bytes:
        """Read an object.

        Raises:
            KeyError: it was not read; `plateway.errors.NotFound` if there is none.
        """
        return self._driver.run(self._objects.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `length` bytes of an object, or those up to its end.

        Raises:
            KeyError: as `get`; also if it ends before `start`.
        """
        return self._driver.run(self._objects.get_range(key, start, length))

    def open(self, key: str) -> Iterator[bytes]:
        """Read an object piece by piece; a broken download resumes.

        Raises:
            KeyError: as `get`.
        """
        return self._driver.each(self._objects.open(key))

    def exists(self, key: str) -> bool:
        """Return whether an object exists.

        Raises:
            RestStoreError: the request failed.
        """
        return self._driver.run(self._objects.exists(key))

    def delete(self, key: str) -> None:
        """Delete an object.

        Raises:
            KeyError: it was not deleted; `plateway.errors.NotFound` if there is none.
        """
        self._driver.run(self._objects.delete(key, failed=ObjectFailed))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """List the keys, a page of 100 at a time.

        Raises:
            NotImplementedError: they cannot be listed.
        """
        return self._driver.each(self._objects.keys(prefix))

    def close(self) -> None:
        """Close the connections."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncRestStore:
    """An object store over HTTP, for one event loop."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        timeout: float = 30.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        *,
        session: httpx.AsyncClient | None = None,
    ) -> None:
        """Prepare a client, as `RestStore` does.

        Raises:
            Misconfigured: the address or the key is not valid.
        """
        self._objects = Objects(Server(base_url, api_key, tries=Tries(max_retries, retry_delay)))
        self._driver = AsyncDriver(session, timeout=timeout)

    @classmethod
    def create(
        cls,
        base_url: str,
        api_key: str,
        timeout: float = 30.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        *,
        session: httpx.AsyncClient | None = None,
    ) -> Self:
        """Create a store, as in the original."""
        return cls(base_url, api_key, timeout, max_retries, retry_delay, session=session)

    async def put(self, key: str, data: AsyncContent) -> None:
        """Store bytes, a file from its current position, or pieces; as `RestStore.put`.

        Raises:
            KeyError: it was not stored.
        """
        await self._driver.run(self._objects.put(key, data))

    async def get(self, key: str) -> bytes:
        """Read an object.

        Raises:
            KeyError: it was not read; `plateway.errors.NotFound` if there is none.
        """
        return await self._driver.run(self._objects.get(key))

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `length` bytes of an object, or those up to its end.

        Raises:
            KeyError: as `get`; also if it ends before `start`.
        """
        return await self._driver.run(self._objects.get_range(key, start, length))

    def open(self, key: str) -> AsyncIterator[bytes]:
        """Read an object piece by piece; a broken download resumes.

        Raises:
            KeyError: as `get`.
        """
        return self._driver.each(self._objects.open(key))

    async def exists(self, key: str) -> bool:
        """Return whether an object exists.

        Raises:
            AsyncRestStoreError: the request failed.
        """
        return await self._driver.run(self._objects.exists(key))

    async def delete(self, key: str) -> None:
        """Delete an object.

        Raises:
            KeyError: there is none.
            AsyncRestStoreError: it was not deleted.
        """
        await self._driver.run(self._objects.delete(key, failed=AsyncRestStoreError))

    def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """List the keys, a page of 100 at a time.

        Raises:
            NotImplementedError: they cannot be listed.
        """
        return self._driver.each(self._objects.keys(prefix))

    async def close(self) -> None:
        """Close the connections."""
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class Objects:
    """The logic of both stores, as steps."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def put(self, key: str, content: AsyncContent) -> Steps[None]:
        body = Body(content)
        headers = {} if body.known is None else {"Repr-Digest": f"sha-256=:{_base64(body.known)}:"}
        try:
            ask = self._server.ask("PUT", path("/objects", key=key), headers=headers)
            answer = yield from self._server.answer(replace(ask, body=body))
            _compare_stored(answer, key, body)
        except PlatewayError as error:
            raise _wrap_error(error, f"Failed to store object {key}") from error

    def get(self, key: str) -> Steps[bytes]:
        return (yield from self._read(key, {})).content

    def get_range(self, key: str, start: int, length: int) -> Steps[bytes]:
        if start < 0 or length < 1:
            raise ValueError(f"{length} bytes from {start} on are not a range")
        answer = yield from self._read(key, {"Range": f"bytes={start}-{start + length - 1}"})
        return answer.content if answer.status == 206 else answer.content[start : start + length]

    def open(self, key: str) -> Stream[bytes]:
        try:
            yield from self._server.stream(self._server.ask("GET", path("/objects", key=key)))
        except PlatewayError as error:
            raise _wrap_error(error, f"Failed to retrieve object {key}") from error

    def exists(self, key: str) -> Steps[bool]:
        try:
            yield from self._server.answer(self._server.ask("HEAD", path("/objects", key=key)))
        except NotFound:
            return False
        except PlatewayError as error:
            raise RestStoreError(f"Failed to check object {key}: {error}") from error
        return True

    def delete(self, key: str, *, failed: type[RestStoreError]) -> Steps[None]:
        try:
            yield from self._server.answer(self._server.ask("DELETE", path("/objects", key=key)))
        except PlatewayError as error:
            raise _wrap_error(error, f"Failed to delete object {key}", kind=failed) from error

    def keys(self, prefix: str) -> Stream[str]:
        try:
            yield from self._server.pages("/objects", {"limit": PAGE, "prefix": prefix or None}, read=_page)
        except PlatewayError as error:
            raise ListingFailed(f"Failed to list keys: {error}") from error

    def _read(self, key: str, headers: Mapping[str, str]) -> Steps[Answer]:
        try:
            return (yield from self._server.answer(self._server.ask("GET", path("/objects", key=key), headers=headers)))
        except PlatewayError as error:
            raise _wrap_error(error, f"Failed to retrieve object {key}") from error


def _wrap_error(error: PlatewayError, what: str, *, kind: type[PlatewayError] = ObjectFailed) -> PlatewayError:
    """Return the error of an operation; `NotFound` stays `NotFound`."""
    return (NotFound if isinstance(error, NotFound) else kind)(f"{what}: {error}")


def _compare_stored(answer: Answer, key: str, body: Body) -> None:
    """Compare the server's report of the stored object with what was sent.

    Raises:
        Damaged: it differs.
    """
    told = answer.document()
    if (told.get("key"), told.get("size")) != (key, body.size):
        raise Damaged(f"{body.size} bytes were sent, and the server reports another object")
    digest = answer.headers.get("repr-digest")
    if digest is not None and digest != f"sha-256=:{_base64(body.sha256)}:":
        raise Damaged(f"the {body.size} stored bytes have another SHA-256 than those that were sent")


def _page(told: dict[str, Any]) -> tuple[list[str], str | None]:
    keys, more, cursor = told.get("keys"), told.get("has_more"), told.get("next_cursor")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Unavailable("the response is not a page of keys")
    if more and not isinstance(cursor, str):
        raise Unavailable("the response has more keys and no cursor")
    return keys, cursor if more else None


def _base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest)).decode()
