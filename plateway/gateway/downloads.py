"""Download many events at once: a ZIP stream of their files, a script that fetches their bundles, or checksums.

The ZIP is written while it is sent, without compression, by the standard library; at most one piece of an image is in
memory. Every image is compared with its SHA-256 as `pipeline.read` does; the connection is closed if one differs.
"""

from __future__ import annotations

import io
import re
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse

from plateway.errors import Rejected
from plateway.gateway import auth, images
from plateway.gateway.images import CachedEvent, Contents, Gallery
from plateway.gateway.streaming import Rest, read_ahead
from plateway.pipeline import Site
from plateway.pipeline.read import original_name
from plateway.records import Event

MOST = 200  # events of one download
EARLIEST = (1980, 1, 1, 0, 0, 0)  # that ZIP can express
ODD = re.compile(r"[^A-Za-z0-9._-]+")  # characters of names that some system or shell reads otherwise
Form = Literal["zip", "script", "checksums"]


@dataclass(frozen=True)
class Chosen:
    """One event of a download."""

    name: str  # of its folder, and of its tar without the suffix
    event: CachedEvent
    contents: Contents | None = None  # for a ZIP


def event_name(event: Event) -> str:
    """Return a readable name for an event's files: ``20250106_001_plate1_2026-11-21T1255Z``."""
    plate = f"_plate{event.plate}" if event.plate is not None else ""
    moment = event.timestamp.astimezone(UTC)
    experiment = ODD.sub("_", event.experiment).strip("._-")[:80] or "event"
    return f"{experiment}{plate}_{moment:%Y-%m-%dT%H%MZ}"


def choose(gallery: Gallery, ids: Sequence[str], seen: str, *, form: Form) -> list[Chosen]:
    """Find the events of a download; those of one name get the beginning of their id as well.

    Raises:
        NotFound: an event does not exist, or has no copy to read.
        Rejected: none is chosen, or more than `MOST`.
    """
    wanted = list(dict.fromkeys(ids))
    if not 1 <= len(wanted) <= MOST:
        raise Rejected(f"{len(wanted)} events are chosen; a download has 1 to {MOST}")
    found = [gallery.event(one, seen) for one in wanted]
    names = [event_name(one.ledger.event) for one in found]
    chosen = []
    for name, event in zip(names, found, strict=True):
        reader, event_ = event.reader, event.ledger.event
        told = name if names.count(name) == 1 else f"{name}_{str(event_.id)[:8]}-r{event.ledger.ref.revision}"
        chosen.append(Chosen(told, event, gallery.contents(reader) if form == "zip" else None))
    return chosen


def zipped(chosen: Sequence[Chosen]) -> Iterator[bytes]:
    """Write the files of events as a ZIP archive, piece by piece."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for one in chosen:
            moment = one.event.ledger.event.timestamp.astimezone(UTC)
            for member in one.contents.members if one.contents else ():
                name = f"{one.name}/{_plain_path(original_name(member))}"
                info = zipfile.ZipInfo(name, max(moment.timetuple()[:6], EARLIEST))
                info.external_attr = 0o644 << 16
                with archive.open(info, "w", force_zip64=True) as file:
                    for piece in one.event.reader.image(member):
                        file.write(piece)
                        yield sink.take()  # never empty: what the archive writes before each piece is in it
    yield sink.take()


def checksums(chosen: Sequence[Chosen]) -> str:
    """List the bundles as ``sha256sum --check`` reads them."""
    return "".join(f"{one.event.reader.export.sha256}  {one.name}.tar\n" for one in chosen)


def script(chosen: Sequence[Chosen], base: str) -> str:
    """Write a shell script that downloads the bundles by curl, passes over those that are there, and verifies them."""
    lines = [
        "#!/bin/sh",
        "# Downloads events from Plateway. Put a token into PLATEWAY_TOKEN if the gateway asks for one.",
        "set -eu",
        "fetch() {",
        '  [ -f "$1" ] && return',
        # by standard input: the arguments of a process can be read by everybody on its machine
        '  printf "%s" "${PLATEWAY_TOKEN:+header = \\"Authorization: Bearer $PLATEWAY_TOKEN\\"}" |',
        '    curl --config - --fail --location --retry 5 --output "$1.part" "$2"',
        '  mv "$1.part" "$1"',
        "}",
    ]
    for one in chosen:
        url = f"{base.rstrip('/')}{images.bundle_url(one.event.ledger.ref)}"
        lines.append(f"fetch {shlex.quote(f'{one.name}.tar')} {shlex.quote(url)}")
    lines += ["sha256sum --check <<'END'", checksums(chosen).rstrip("\n"), "END"]
    return "\n".join(lines) + "\n"


async def download(
    request: Request,
    seen: Annotated[str, auth.READER],
    *,
    id: Annotated[list[str], Query(description=f"events, up to {MOST}")] = [],  # noqa: A002, B006  FastAPI copies it
    form: Annotated[Form, Query(description="zip: all files; script: curl of the bundles; checksums: their list")] = (
        "zip"
    ),
) -> Response:
    """Download the files of many events as one ZIP, or a script or checksum list for their bundles."""
    gallery: Gallery = request.app.state.gallery
    chosen = await gallery.run(partial(choose, gallery, id, seen, form=form))
    name = {"zip": "plateway.zip", "script": "plateway.sh", "checksums": "SHA256SUMS"}[form]
    if len(chosen) == 1 and form == "zip":
        name = f"{chosen[0].name}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "private, no-store"}
    if form != "zip":
        told = script(chosen, str(request.base_url)) if form == "script" else checksums(chosen)
        return Response(told, 200, headers, "text/plain; charset=utf-8")
    rest = Rest(zipped(chosen))
    first = await gallery.run(rest.next)
    return StreamingResponse(read_ahead(first, rest, run=gallery.run), 200, headers, "application/zip")


def install(app: FastAPI, _site: Site) -> None:
    """Add this route to an application."""
    app.add_api_route("/api/1/download", download, methods=["GET"], response_class=Response, tags=["images"])


class _Sink(io.RawIOBase):
    """A file that cannot be sought; what was written is taken out of it."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: bytes) -> int:  # type: ignore[override]
        self._pieces.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def _plain_path(name: str) -> str:
    """Make a path in an archive that stays in its folder, whatever a manifest says."""
    told = name.encode("utf-8", "backslashreplace").decode().replace("\\", "_")
    return "/".join("_" if part in {"", ".", ".."} else part for part in told.split("/"))
