"""The servers that are compared, each in a process of its own: ours, and the original's design, rebuilt.

``python -m benchmarks.way_gateway WAY JOB`` reads a job as JSON from a file, prints the port on which it listens, and
answers until it is ended. The original holds a whole body in memory, answers without Content-Length, and sorts all keys
for each page; its ``design`` way does so over our stores, so that only the gateways differ, its ``stores`` way over
stores as it had: plain files under base32 names, nothing flushed, and one S3 request through aiobotocore.
It looks tokens up as ours does, and writes no access log.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from aiobotocore.session import get_session  # type: ignore[import-untyped]  # ships no types
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from plateway import gateway, pipeline, store
from plateway.gateway import Limits, Rate, server
from plateway.gateway.tokens import Tokens
from plateway.settings import Settings, load

LAX = Rate(1_000_000_000)
LIMITS = Limits(token=LAX, address=LAX, failed=LAX, object_size=1 << 40)


class Kept(Protocol):
    """What the original asks of a store: whole objects."""

    async def put(self, key: str, data: bytes) -> None:
        """Keep an object."""

    async def get(self, key: str) -> bytes:
        """Read an object; KeyError: there is none."""

    async def keys(self) -> Iterable[str]:
        """Name all objects."""


class Ours:
    """One of our stores, whole objects at a time."""

    def __init__(self, inner: store.Store) -> None:
        self._inner = inner

    async def put(self, key: str, data: bytes) -> None:
        put = partial(self._inner.put, key, [data], size=len(data), part_size=16 << 20, metadata={})
        await asyncio.to_thread(put)

    async def get(self, key: str) -> bytes:
        return await asyncio.to_thread(lambda: b"".join(self._inner.open(key)))

    async def keys(self) -> Iterable[str]:
        return await asyncio.to_thread(lambda: [one.key for one in self._inner.list()])


class Files:
    """Plain files, written in place."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, key: str, data: bytes) -> None:
        await asyncio.to_thread(self._path(key).write_bytes, data)

    async def get(self, key: str) -> bytes:
        try:
            return await asyncio.to_thread(self._path(key).read_bytes)
        except FileNotFoundError:
            raise KeyError(key) from None

    async def keys(self) -> Iterable[str]:
        names = await asyncio.to_thread(os.listdir, self._root)
        return [base64.b32decode(name.replace("_", "=")).decode() for name in names]

    def _path(self, key: str) -> Path:
        return self._root / base64.b32encode(key.encode()).decode().replace("=", "_")


class Bucket:
    """A bucket through aiobotocore, one request for an object."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name, self._settings, self._stack = name, settings, AsyncExitStack()
        self._client: Any = None

    async def put(self, key: str, data: bytes) -> None:
        client = await self._open()
        await client.put_object(Bucket=self._name, Key=key, Body=data)

    async def get(self, key: str) -> bytes:
        client = await self._open()
        found = await client.get_object(Bucket=self._name, Key=key)
        content: bytes = await found["Body"].read()
        return content

    async def keys(self) -> Iterable[str]:
        client = await self._open()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._name)
        return [found["Key"] async for page in pages for found in page.get("Contents", ())]

    async def _open(self) -> Any:
        if self._client is None:
            secret = self._settings.secret_access_key
            self._client = await self._stack.enter_async_context(
                get_session().create_client(
                    "s3",
                    endpoint_url=self._settings.endpoint_url,
                    aws_access_key_id=self._settings.access_key_id,
                    aws_secret_access_key=secret.get_secret_value() if secret else None,
                    region_name="us-east-1",
                )
            )
        return self._client


class Metadata(BaseModel):
    """What the original says of a PUT."""

    key: str
    size: int
    created_at: datetime


class Page(BaseModel):
    """What the original says of a listing."""

    keys: list[str]
    next_cursor: str | None = None
    has_more: bool


def original(kept: Kept, tokens: Tokens) -> FastAPI:
    """Rebuild the original's routes."""
    app = FastAPI()

    async def allowed(request: Request) -> None:
        found = tokens.find(request.headers.get("authorization", "").removeprefix("Bearer "))
        if found is None or found.expired(datetime.now(UTC)):
            raise HTTPException(401, "Invalid or missing token")

    @app.put("/objects/{key:path}", dependencies=[Depends(allowed)])
    async def put(key: str, request: Request) -> Metadata:
        data = await request.body()
        await kept.put(key, data)
        return Metadata(key=key, size=len(data), created_at=datetime.now(UTC))

    @app.get("/objects/{key:path}", dependencies=[Depends(allowed)])
    async def get(key: str) -> Response:
        try:
            data = await kept.get(key)
        except KeyError:
            raise HTTPException(404, f"Object {key} not found") from None
        return StreamingResponse(iter([data]), media_type="application/octet-stream")

    @app.get("/objects", dependencies=[Depends(allowed)])
    async def page(prefix: str | None = None, limit: int = 100, cursor: str | None = None) -> Page:
        keys = sorted(await kept.keys())
        if prefix:
            keys = [key for key in keys if key.startswith(prefix)]
        start = keys.index(json.loads(base64.b64decode(cursor))["last_key"]) + 1 if cursor else 0
        found, more = keys[start : start + limit], start + limit < len(keys)
        last = base64.b64encode(json.dumps({"last_key": found[-1]}).encode()).decode() if more and found else None
        return Page(keys=found, next_cursor=last, has_more=more)

    return app


def ours(job: Mapping[str, Any], settings: Settings, ports: Sequence[int]) -> uvicorn.Config:
    """Configure our gateway; with events, and the S3 endpoint at a port of its own, where the job says so."""
    home = Path(job["home"])
    parts = gateway.Parts(
        home=home,
        tokens=home / "tokens.json",
        objects=job["objects"],
        endpoint=settings.endpoint,
        limits=LIMITS,
        site=partial(pipeline.open_site, settings) if job.get("events") else None,
        s3_port=ports[1] if job.get("events") else None,
        s3_secrets=settings.s3_secrets,
    )
    return server.config(parts)


def theirs(way: str, job: Mapping[str, Any], settings: Settings) -> uvicorn.Config:
    """Configure the original."""
    url: str = job["objects"]
    kept: Kept
    if way == "design":
        kept = Ours(store.open_store(url, settings.endpoint))
    elif url.startswith("file:"):
        kept = Files(Path(url.removeprefix("file://")))
    else:
        kept = Bucket(url.removeprefix("s3://"), settings)
    app = original(kept, Tokens(Path(job["home"]) / "tokens.json"))
    return uvicorn.Config(app, access_log=False, log_level="error")


def fill(url: str, count: int) -> None:
    """Put so many empty objects into memory."""
    place = store.open_store(url)
    for number in range(count):
        place.put(f"exp-{number // 1000:04d}/{number % 1000:03d}", [], size=0, part_size=1, metadata={})


def main(way: str, path: str) -> None:
    """Serve until ended."""
    job, settings = json.loads(Path(path).read_text()), load()
    if count := job.get("keys"):
        fill(job["objects"], count)
    taken = server.listen("127.0.0.1", 0)
    sockets = [taken, *([server.listen("127.0.0.1", 0)] if job.get("events") else [])]
    ports = [one.getsockname()[1] for one in sockets]
    config = ours(job, settings, ports) if way == "plateway" else theirs(way, job, settings)
    print(*ports, flush=True)
    uvicorn.Server(config).run(sockets=sockets)


if __name__ == "__main__":
    main(*sys.argv[1:])
