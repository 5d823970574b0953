"""Both kinds of client as one, and servers to try them on: a real gateway, and one that misbehaves as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import uuid4

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from plateway.client import AsyncPlateway, AsyncRestStore, Images, Plateway, RestStore
from plateway.endpoint import Endpoint
from plateway.events import Ref
from plateway.gateway import Parts
from plateway.simulator import Announced
from tests.client.scripted import Scripted
from tests.gateway.conftest import GENEROUS, Gateway, running
from tests.gateway.sites import Site, site
from tests.lab import Lab

T = TypeVar("T")
DELAY = 0.02  # seconds of the first pause

Open = Callable[..., RestStore]
Enter = Callable[..., Plateway]


class Blocking:
    """An asynchronous client, used as a synchronous one."""

    def __init__(self, client: Any) -> None:
        self._client, self._runner = client, asyncio.Runner()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def called(*args: Any, **options: Any) -> Any:
            found = method(*args, **options)
            return self._items(found) if isinstance(found, AsyncGenerator) else self._shown(self.wait(found))

        return called

    def wait(self, found: Awaitable[T]) -> T:
        """Run the loop until there is a result."""

        async def awaited() -> T:
            return await found

        return self._runner.run(awaited())

    def leave(self) -> None:
        """Close the client and the loop."""
        self.wait(self._client.close())
        self._runner.close()

    def _shown(self, found: Any) -> Any:
        if isinstance(found, Images):
            return Images(found.infos, lambda image: self.wait(found[image.name]))
        return found

    def _items(self, stream: AsyncGenerator[Any, None]) -> Iterator[Any]:
        try:
            while True:
                yield self.wait(anext(stream))
        except StopAsyncIteration:
            return
        finally:
            self.wait(stream.aclose())


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which client it is."""
    found: str = request.param
    return found


@pytest.fixture
def store(kind: str) -> Iterator[Open]:
    """Open stores of either kind; pauses are short unless told otherwise."""
    opened: list[Any] = []

    def made(url: str, secret: str = "secret", *, retry_delay: float = DELAY, **options: Any) -> RestStore:
        if kind == "sync":
            opened.append(RestStore.create(url, secret, retry_delay=retry_delay, **options))
        else:
            opened.append(Blocking(AsyncRestStore.create(url, secret, retry_delay=retry_delay, **options)))
        return cast("RestStore", opened[-1])

    yield made
    for one in opened:
        one.leave() if isinstance(one, Blocking) else one.close()


@pytest.fixture
def plateway(kind: str) -> Iterator[Enter]:
    """Open clients for events of either kind."""
    opened: list[Any] = []

    def made(url: str, secret: str | None = "secret", **options: Any) -> Plateway:
        client = (Plateway if kind == "sync" else AsyncPlateway)(url, secret, retry_delay=DELAY, **options)
        opened.append(client if kind == "sync" else Blocking(client))
        return cast("Plateway", opened[-1])

    yield made
    for one in opened:
        one.leave() if isinstance(one, Blocking) else one.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for objects, for all tests of a module: tests have keys of their own."""
    home = tmp_path_factory.mktemp("gateway")
    place = f"memory://{uuid4().hex}"
    with running(Parts(home=home, tokens=home / "tokens.json", objects=place, limits=GENEROUS)) as one:
        one.token("all")
        yield one


@pytest.fixture
def objects(gateway: Gateway, store: Open) -> RestStore:
    """A store of either kind on the gateway, that may do everything."""
    return store(gateway.url, gateway.secrets["all"])


@pytest.fixture
def own() -> str:
    """A prefix of this test's own."""
    return f"{uuid4().hex[:8]}/"


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that answers as it is told."""
    with Scripted() as server:
        yield server


@dataclass(frozen=True)
class Laboratory:
    """A gateway with events, and what the instruments wrote."""

    site: Site
    stitches: list[Announced]  # of one experiment, the oldest first
    scan: Announced  # with a DICOM file and a text
    waiting: Announced  # seen, and not exported

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return self.site.gateway.url

    @property
    def secret(self) -> str:
        """A token that may read all events."""
        return self.site.gateway.secrets["reader"]

    def experiment(self, announced: Announced) -> str:
        """Return to which experiment an event belongs."""
        return self.site.lab.catalog.get(Ref(announced.id, 1)).experiment


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory, endpoint: Endpoint, client: Any) -> Iterator[Laboratory]:
    """A gateway with some events in S3, for all tests: they only read."""
    bucket = f"laboratory-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    home, objects = tmp_path_factory.mktemp("laboratory"), f"memory://{uuid4().hex}"
    with site(home, objects=objects, bucket=f"s3://{bucket}", endpoint=endpoint) as one:
        lab = one.lab
        stitches = []
        for _ in range(4):  # two plates in turn
            stitches.append(lab.exported(images=2)[0])
            lab.clock.turn(minutes=1)
        scan = scanned(lab)
        lab.settle()
        lab.export()
        waiting = lab.acquire("aretha")
        lab.settle()
        one.gateway.token("reader", "read")
        yield Laboratory(one, stitches[::2], scan, waiting)


def scanned(lab: Lab) -> Announced:
    """Make a scanner write a DICOM file and a text, and announce them."""
    id_, at = uuid4(), lab.clock()
    images, events = lab.bench / "scanner" / "s1" / "série 1", lab.bench / "scanner" / "events"
    images.mkdir(parents=True)
    events.mkdir()
    (images / "slice #1.dcm").write_bytes(slice_())
    (images / "notes.txt").write_bytes(b"<b>dose</b>: 1.2 mGy?")
    told = {
        "ref_id": str(id_),
        "experiment_id": "phantom",
        "timestamp": at.isoformat(),
        "local_path": "s1",
        "img_count": 1,  # texts do not count
        "metadata": {},
    }
    for path in images.rglob("*"):
        os.utime(path, (at.timestamp(), at.timestamp()))
    (events / "1.json").write_text(json.dumps(told))
    files = {f"série 1/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in images.iterdir()}
    return Announced(id_, "scanner", events / "1.json", lab.bench / "scanner" / "s1", files, at)


def slice_() -> bytes:
    """Write a small DICOM file."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.826.0.1.3680043.8.498.1"
    data.PatientID, data.Modality = "phantom", "OT"
    data.Rows, data.Columns, data.SamplesPerPixel = 4, 4, 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = np.arange(16, dtype="<u2").tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()
