"""Plateway's own way, and its two bounds, each in a process of its own.

``export`` registers what is announced on a bench, then measures the verb ``export`` over all of it, catalogue
included, and after that ``verify``. ``pack`` makes the same bundles and throws the bytes away: how fast this machine
reads, lays out and hashes. ``put`` sends the bare image bytes with nothing computed: how fast this server takes them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import worked
from plateway import bundle, checksums, folder, pipeline
from plateway.events import Ref
from plateway.settings import Settings, load
from plateway.store import open_store


def export(settings: Settings) -> dict[str, Any]:
    """Export everything announced; returns the cost and which directory went to which key."""
    site = pipeline.open_site(settings)
    site.catalog.upgrade()
    pipeline.register(site)
    refs = pipeline.due(site, "export", limit=1_000_000)
    with worked() as spent:
        outcomes = list(pipeline.each(pipeline.export, site, refs, workers=settings.export_workers))
    with worked() as verifying:
        checks = list(pipeline.each(pipeline.verify, site, refs, workers=settings.export_workers))
    for outcome in (*outcomes, *checks):
        if outcome.result not in {"exported", "verified"}:
            raise SystemExit(f"{outcome.verb} of {outcome.ref}: {outcome.result} {outcome.reasons}")
    objects = {outcome.key: _directory(site, ref) for outcome, ref in zip(outcomes, refs, strict=True)}
    site.close()
    return {**spent, "verify": verifying, "objects": objects}


def _directory(site: pipeline.Site, ref: Ref) -> str:
    event = site.catalog.get(ref)
    return str(site.root / event.system / event.path)


def pack(settings: Settings, sources: Sequence[Path]) -> dict[str, Any]:
    """Make the bundles of these directories and throw them away."""

    def one(source: Path) -> None:
        with folder.enter(source.parent, source.name) as images:
            for _ in bundle.Packing(bundle.plan(images.files(), {}), images.read):
                pass

    return _all(one, sources, workers=settings.export_workers)


def put(settings: Settings, sources: Sequence[Path]) -> dict[str, Any]:
    """Send the bytes of these directories as they are, nothing computed on the way."""
    store = open_store(settings.bucket_url, settings.endpoint)

    def one(source: Path) -> None:
        files = sorted(path for path in source.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
        part = checksums.part_size(size)
        store.put(f"bare/{source.name}", _chunks(files), size=size, part_size=part, metadata={})

    return _all(one, sources, workers=settings.export_workers)


def _chunks(files: Sequence[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk


def _all(one: Callable[[Path], None], sources: Sequence[Path], *, workers: int) -> dict[str, Any]:
    with worked() as spent, ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, sources))
    return dict(spent)


def main(mode: str, arguments: Sequence[str]) -> None:
    """Do one of the three with the settings of the environment and print what it took."""
    settings = load()
    if mode == "export":
        print(json.dumps(export(settings)))
        return
    sources = [Path(source) for source in json.loads(Path(arguments[0]).read_text()).values()]
    print(json.dumps((pack if mode == "pack" else put)(settings, sources)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
