"""An instrument over HTTP, as DLM's mock-prince is one: what is posted to it, it acquires.

``POST /timestep`` takes an imaging event in the words of DLM v2 (or v1). As a real instrument does, it writes as many
images as are announced first and the event file last: what was posted, byte for byte. Pictures are ``simulator``'s,
what an announcement may say is ``events``'.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import uvicorn
from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from plateway import events, folder
from plateway.errors import PlatewayError, Rejected
from plateway.events import ImagingEvent
from plateway.gateway.server import listen
from plateway.instruments import Instrument
from plateway.simulator import Announced, Shot, Simulated

SYSTEM = "prince"  # whoever does not say which instrument it is
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
ONLY = "Img_r10_c15.tif"  # the image of an event that has one
MOST = 1000  # images of an event

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Posted(Shot):
    """An acquisition that somebody asked for."""

    said: ImagingEvent = field(kw_only=True)

    @property
    def id(self) -> UUID:
        return self.said.id

    @property
    def kind(self) -> str:
        return self.said.kind

    @property
    def place(self) -> str:
        return self.said.path

    @property
    def names(self) -> list[str]:
        """Name as many images as are announced."""
        if self.said.image_count == 1 and self.kind == "stitch":
            return [ONLY]
        names = super().names if self.said.image_count else []
        if len(names) == self.said.image_count:
            return names
        return [f"Img_{number:04d}.tif" for number in range(1, self.said.image_count + 1)]

    def image(self, index: int) -> str:
        """Write one image, or leave the one that is there."""
        path = self.folder / self.names[index]
        if not path.exists():
            return super().image(index)
        self.written[self.names[index]] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.names[index]


def acquire(content: bytes, *, bench: Path, size: int = 512) -> Announced:
    """Acquire what is announced: write its images, where they are not there yet, and then the event file.

    Raises:
        Rejected: it is no announcement, or of no instrument that could be.
        Unsettled, Unavailable: the disk does not take it.
    """
    said = events.read_json(content)
    system = said.get("system", SYSTEM) if isinstance(said, dict) else SYSTEM
    if not isinstance(system, str) or not PLAIN.fullmatch(system):
        raise Rejected(f"system: {events.quoted(system)} is not the name of an instrument")
    event = events.parse(content, Instrument(system, bench / system))
    if event.image_count > MOST:
        raise Rejected(f"img_count: {event.image_count} are too many, at most {MOST} are drawn")
    images = max(event.image_count, 1)
    instrument = Simulated(system, "imaging event", bench / system, kinds=(event.kind,), images=images, size=size)
    now, number = datetime.now(UTC), event.id.int % 64  # which chooses the plate and how far it has grown
    shot = Posted(instrument, number, lambda: now, started=event.timestamp, said=event)
    with folder.translate_errors(system):
        shot.expose(event.image_count)
        return shot.announce(content)


def create_app(bench: Path, *, size: int = 512, interval: timedelta | None = None) -> FastAPI:
    """Make the application; with an interval it acquires by itself as well, one event after each."""
    app = FastAPI(title="An instrument that is not there", lifespan=partial(_lifespan, interval=interval))
    app.state.acquire = partial(acquire, bench=bench, size=size)
    app.add_api_route("/timestep", timestep, methods=["POST"], response_class=Response)
    return app


async def timestep(request: Request) -> Response:
    """Acquire an imaging event: the body is what the instrument shall announce."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > events.CAP:
            break
    try:
        announced = await to_thread.run_sync(partial(request.app.state.acquire, content))
    except Rejected as error:
        return JSONResponse({"detail": [{"type": "value_error", "loc": ["body"], "msg": str(error)}]}, 422)
    except PlatewayError as error:
        return JSONResponse({"detail": str(error)}, 503)
    log.info("%s announced %s", announced.system, announced.id)
    return Response()


def serve(app: FastAPI, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer until a signal ends it; `ready` hears the address, also where the port was 0.

    Raises:
        Misconfigured: the port is taken.
    """
    taken = listen(host, port)
    taken.listen()
    name = f"[{host}]" if ":" in host else host
    ready(f"http://{name}:{taken.getsockname()[1]}/timestep")
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[taken])


@asynccontextmanager
async def _lifespan(app: FastAPI, *, interval: timedelta | None) -> AsyncIterator[None]:
    loop = asyncio.ensure_future(_loop(app.state.acquire, interval)) if interval else None
    yield
    if loop is not None:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def _loop(acquire: Callable[[bytes], Announced], interval: timedelta) -> None:
    """Acquire by itself, in the words that mock-prince uses, as long as the server runs."""
    while True:
        try:
            await to_thread.run_sync(acquire, _own(datetime.now(UTC)))
        except PlatewayError as error:
            log.warning("nothing acquired: %s", error)
        await asyncio.sleep(interval.total_seconds())


def _own(now: datetime) -> bytes:
    said = {
        "ref_id": str(uuid4()),
        "experiment_id": "test-id",
        "timestamp": now.isoformat(),
        "type": "stitch",
        "system": SYSTEM,
        "local_path": uuid4().hex[:6],
        "img_count": 1,
        "metadata": {"application": {"application": "mock-prince"}},
    }
    return json.dumps(said).encode()
