"""A catalogue with as many events as a site has after some months, in every state, made in seconds."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import sqlalchemy as sa

from plateway.catalog import Catalog
from plateway.catalog.rows import EPOCH
from plateway.records import Record

NAMESPACE = UUID("3f0e5a30-0000-4000-8000-0000706c6174")
SYSTEMS = ("aretha", "prince", "tina")
KINDS = ("stitch", "stitch", "stitch", "video", "overview")
PERIOD = timedelta(days=180)
END = datetime(2026, 11, 21, 12, tzinfo=UTC)
SETTLING = timedelta(minutes=5)
BATCH = 10_000

Rows = dict[str, list[dict[str, Any]]]


def fill(catalog: Catalog, *, events: int, end: datetime = END, bucket: str = "images") -> None:
    """Fill an empty catalogue: the newest 1 % are on their way, 90 % of the others are on tape, and some went wrong."""
    with catalog._engine.connect().execution_options(writes=True) as connection:
        for start in range(0, events, BATCH):
            rows: Rows = defaultdict(list)
            for number in range(start, min(start + BATCH, events)):
                for name, row in _event(number, events, end, bucket):
                    rows[name].append(row)
            for table in Record.metadata.sorted_tables:
                if rows[table.name]:
                    connection.execute(sa.insert(table), rows[table.name])
        connection.commit()
        if connection.dialect.name == "postgresql":  # does it by itself, some time; SQLite never does
            connection.exec_driver_sql("ANALYZE")
            connection.commit()


def _event(number: int, events: int, end: datetime, bucket: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make the rows of one event; they follow from its number."""
    taken = end - PERIOD * ((events - number) / events)
    id_, digest = uuid5(NAMESPACE, str(number)), hashlib.sha256(b"%d" % number).hexdigest()
    me: dict[str, Any] = {"event_id": id_, "revision": 1}
    plate, kind, system = number % 40, KINDS[number % 5], SYSTEMS[number % 3]
    experiment = f"{taken:%Y%m}01_{plate:03d}"
    key = f"{kind}/{experiment}/{taken:%Y%m%d}/{taken:%H%M%S}-{number}.tar"
    new, odd = number >= events * 0.99, number % 1000
    seen = taken + SETTLING
    yield (
        "event",
        {
            "id": id_,
            "revision": 1,
            "system": system,
            "kind": kind,
            "experiment": experiment,
            "plate": plate,
            "timestamp": taken,
            "path": f"{taken:%Y%m%d}/{number}",
            "image_count": 150,
            "present": 150 if odd else 3,
            "details": {"application": {"application": "filling"}},
            "digest": digest,
            "key": key,
            "file": f"{number}.json",
            "announced_at": seen,
            "first_seen": seen,
            "waiting_since": seen,
            "sealed_at": seen if odd else None,
        },
    )
    if odd == 1:
        quarantine = {"system": system, "name": f"{number}.json", "reason": "images are missing", "content": b"{}"}
        yield "quarantine", {**me, **quarantine, "first_seen": seen, "last_seen": seen}
    if odd <= 1 or (new and number % 3):
        failure = {"verb": "export", "attempt": 1, "reason": "no answer", "since": seen, "at": seen, "next_at": seen}
        if odd > 1 and number % 2:
            yield "setback", {**me, **failure}
        return
    sent, bad, fresh = seen + SETTLING, odd == 2, new or odd == 3
    yield "lease", {**me, "owner": "filling", "fence": 1, "expires_at": EPOCH}
    yield (
        "export",
        {
            **me,
            "bucket": bucket,
            "key": key,
            "size": 150 * (1 << 20) + number,
            "sha256": digest,
            "etag": digest[:32],
            "part_size": 8 << 20,
            "member_count": 152,
            "manifest_offset": 150 << 20,
            "manifest_size": 30_000,
            "manifest_sha256": digest,
            "uploaded_at": sent,
            "evidence": None if bad or fresh else "etag",
            "evidence_at": None if bad or fresh else sent + SETTLING,
            "damage": "lost: not in the bucket" if bad else None,
            "damage_kind": "lost" if bad else None,
            "damaged_at": sent + PERIOD if bad else None,
        },
    )
    if bad or fresh:
        return
    gone = {**me, "attempt": 1, "proof": {}, "trash": "", "intended_at": sent, "trashed_at": sent, "gone_at": sent}
    if number % 4:
        yield "purge", {**gone, "place": "raw"}
    if number % 10:
        tape = {"job_id": "filling", "size": 150 * (1 << 20) + number, "checksum": digest, "evidence": "checksum"}
        path = f"{kind}/{experiment}/{taken:%Y-%m-%d}.tar"
        reported = taken.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1, hours=3)
        member = f"./{key.rpartition('/')[2]}"
        yield "archive_location", {**me, **tape, "path": path, "member": member, "reported_at": reported}
        if number < events // 2:
            yield "purge", {**gone, "place": "bucket"}
