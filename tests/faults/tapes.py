"""Lives of the archive: written to, heard of, relied on, read from, and held against everything else.

Each has a prelude, in which nobody dies, and a way to heal: the same verbs again, by somebody who knows of nothing.
"""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from plateway import folder, pipeline
from plateway.archive import Inbox, Poll
from plateway.keys import is_marker
from plateway.ledger import Ledger
from plateway.pipeline import Outcome
from plateway.simulator import Announced
from tests.lab import Lab

LATE = "late"  # a directory with event files that are not where they should be yet
BUDGET = 1 << 24  # bytes that may be read back


@dataclass
class Site(Lab):
    """A laboratory, perhaps with an archive of its own. ``apart`` lets others act, and nobody dies of that."""

    poll: str = ""  # where a server lists manifests
    apart: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)

    @property
    def inbox(self) -> Inbox:
        return Inbox((self.home / "inbox").as_uri())


class Life(NamedTuple):
    """What came before, what may be the last, and how it is healed."""

    before: Callable[[Site], list[Announced]]
    live: Callable[[Site], Iterator[Sequence[Outcome]]]
    heal: Callable[[Site], Sequence[Outcome]]


def acquired(lab: Site, count: int) -> list[Announced]:
    """Acquire events of two plates in turn, all at the same time: each plate is an experiment."""
    return [lab.acquire(images=2, size=24) for _ in range(count)]


def exported(lab: Site) -> list[Outcome]:
    """Send and verify what the bench has."""
    lab.settle()
    return lab.export()


def archived(lab: Site, count: int) -> list[Announced]:
    """Archive events, as on the day after."""
    announced = acquired(lab, count)
    exported(lab)
    lab.clock.turn(hours=26)
    pipeline.archive(lab.site)
    return announced


def purged(lab: Site, count: int) -> list[Announced]:
    """Archive events, and free the bench of them."""
    announced = archived(lab, count)
    for _ in range(2):
        pipeline.purge(lab.site)
        lab.clock.turn(hours=2)
    return announced


def look_again(home: Path) -> None:
    """Make the catalogue of a bench that was copied know the files as they are now: their inodes are others."""
    with closing(sqlite3.connect(home / "catalogue.db")) as rows, rows:
        for row, system, path in rows.execute("SELECT rowid, system, path FROM event").fetchall():
            root = home / "bench" / system
            if (root / path).exists():
                with folder.enter(root, path) as images:
                    seen = folder.fingerprint(images.files())
                rows.execute("UPDATE event SET fingerprint = ? WHERE rowid = ?", (seen, row))


def forgetting(lab: Site, act: Callable[[], object]) -> None:
    """Do something of which the catalogue will know nothing."""
    lab.catalog.close()
    here, aside = lab.home / "catalogue.db", lab.home / "catalogue.before"
    shutil.copy(here, aside)
    act()
    lab.catalog.close()
    for path in lab.home.glob("catalogue.db*"):
        path.unlink()
    aside.rename(here)


# --------------------------------------------------------------------------------------------------------- written to


def before_written(lab: Site) -> list[Announced]:
    """Export one event of each of two plates; a third, of the first plate, is announced too late."""
    announced = acquired(lab, 3)
    (lab.home / LATE).mkdir()
    announced[2].path.rename(lab.home / LATE / announced[2].path.name)
    exported(lab)
    lab.clock.turn(hours=26)
    return announced


def arrive(home: Path) -> None:
    """Make the late event file come to where it belongs."""
    for path in (home / LATE).glob("*.json"):
        path.rename(home / "bench" / "prince" / "events" / path.name)


def written(lab: Site) -> Iterator[Sequence[Outcome]]:
    """Write two tars; then what arrived late into a third."""
    yield pipeline.archive(lab.site)
    with lab.apart():
        arrive(lab.home)
        exported(lab)
    yield pipeline.archive(lab.site)


def heal_written(lab: Site) -> list[Outcome]:
    return exported(lab) + pipeline.archive(lab.site)


# ----------------------------------------------------------------------------------------------------------- heard of


def before_received(lab: Site) -> list[Announced]:
    """Have one event exported, another only sealed, and an archiver that has both; its manifests lie in the inbox.

    One of them is no manifest, one tells of a key that nobody knows, one lies, one comes twice.
    """
    announced = acquired(lab, 2)
    lab.settle()
    first, second = lab.catalog.ledgers()
    pipeline.export(lab.site, first.ref)
    pipeline.verify(lab.site, first.ref)
    forgetting(lab, lab.export)
    bundles = {one.key: b"".join(lab.store.open(one.key)) for one in lab.store.list() if not is_marker(one.key)}
    key, other = first.event.key, second.event.key
    tar(lab.home / "tape" / "images" / "theirs.tar", bundles)
    tar(lab.home / "tape" / "images" / "lies.tar", {key: bytes(len(bundles[key]))})
    full: dict[str, object] = {"path": "images/theirs.tar", "src_keys": [f"{lab.store.name}/{key}"]}
    sized: Mapping[str, object] = full | {"members": [{"key": f"{lab.store.name}/{key}", "size": len(bundles[key])}]}
    rest: Mapping[str, object] = {
        "path": "images/theirs.tar",
        "src_keys": [f"{lab.store.name}/{other}", f"{lab.store.name}/who/knows.tar"],
    }
    lies: Mapping[str, object] = full | {"path": "images/lies.tar"}
    told = [("1.json", sized), ("2.json", rest), ("3.json", lies), ("again.json", sized)]
    for name, said in told:
        drop(lab, name, manifest(name.replace("again", "1"), said))
    drop(lab, "bad.json", b'{"job_id": ')
    lab.clock.turn(hours=1)
    return announced


def manifest(job: str, said: Mapping[str, object]) -> bytes:
    return json.dumps({"job_id": job, "date": "2026-05-04", "archives": [said]}).encode()


def drop(lab: Site, name: str, content: bytes) -> None:
    (lab.home / "inbox" / name).write_bytes(content)


def tar(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a tar as somebody else's archiver does."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as file:
        for key, content in sorted(members.items()):
            info = tarfile.TarInfo(f"./{key.rpartition('/')[2]}")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def received(lab: Site) -> Iterator[Sequence[Outcome]]:
    """Import all manifests, settle what fits; later what has been exported meanwhile; then read it all back."""
    yield pipeline.collect(lab.site, inbox=lab.inbox)
    yield pipeline.settle(lab.site)
    with lab.apart():
        lab.export()
    yield pipeline.settle(lab.site)
    yield pipeline.read_archive(lab.site, budget=BUDGET)


def heal_received(lab: Site) -> list[Outcome]:
    done = pipeline.collect(lab.site, inbox=lab.inbox) + lab.export() + pipeline.settle(lab.site)
    return done + pipeline.read_archive(lab.site, budget=BUDGET)


def before_polled(lab: Site) -> list[Announced]:
    """Have an event exported, and a server that lists a manifest about it."""
    announced = acquired(lab, 1)
    exported(lab)
    bundles = {one.key: b"".join(lab.store.open(one.key)) for one in lab.store.list() if not is_marker(one.key)}
    tar(lab.home / "tape" / "images" / "theirs.tar", bundles)
    said = {"path": "images/theirs.tar", "src_keys": [f"{lab.store.name}/{key}" for key in bundles]}
    (lab.home / "http.json").write_bytes(manifest("1", said))
    return announced


def polled(lab: Site) -> Iterator[Sequence[Outcome]]:
    """Query the server, settle what it told; ask once more."""
    for _ in range(2):
        yield pipeline.collect(lab.site, poll=Poll(lab.poll)) if lab.poll else []
        yield pipeline.settle(lab.site)


def heal_polled(lab: Site) -> list[Outcome]:
    return pipeline.collect(lab.site, poll=Poll(lab.poll)) + pipeline.settle(lab.site)


# ----------------------------------------------------------------------------------------------------------- relied on


def before_expired(lab: Site) -> list[Announced]:
    """Have two events on tape, purged from the bench, and old enough."""
    announced = purged(lab, 2)
    lab.clock.turn(hours=26)
    return announced


def expired(lab: Site) -> Iterator[Sequence[Outcome]]:
    """Mark the bucket copies; take that back, because the policy says something else; mark again and delete."""
    policy = lab.policy
    yield pipeline.expire(lab.site)
    lab.clock.turn(hours=2)
    lab.policy = replace(policy, bucket_lifespan=None)
    yield pipeline.expire(lab.site)
    lab.policy = policy
    yield pipeline.expire(lab.site)
    lab.clock.turn(hours=2)
    yield pipeline.expire(lab.site)


def heal_expired(lab: Site) -> list[Outcome]:
    done = pipeline.expire(lab.site)
    lab.clock.turn(hours=2)
    return done + pipeline.expire(lab.site)


# ----------------------------------------------------------------------------------------------------------- read from


def before_fetched(lab: Site) -> list[Announced]:
    return purged(lab, 1)


def fetched(lab: Site) -> Iterator[Sequence[Outcome]]:
    """Restore an event from tape into a directory, then to the bench."""
    (ledger,) = lab.catalog.ledgers()
    yield [pipeline.restore(lab.site, ledger.ref, to=lab.home / "out", source="archive")]
    yield [pipeline.restore(lab.site, ledger.ref, to_bench=True)]


def heal_fetched(lab: Site) -> list[Outcome]:
    return [outcome for outcomes in fetched(lab) for outcome in outcomes]


# --------------------------------------------------------------------------------------------------------- reconciled


def before_reconciled(lab: Site) -> list[Announced]:
    """Lose an object, let the catalogue forget another and its event, and move a third event's images to the trash."""
    lost, strayed = acquired(lab, 2)
    exported(lab)
    dark: list[Announced] = []

    def forgotten() -> None:
        dark.extend(acquired(lab, 1))
        exported(lab)

    forgetting(lab, forgotten)
    ledgers = {one.event.id: one for one in lab.catalog.ledgers()}
    lab.store.delete(ledgers[lost.id].event.key)
    to_trash(strayed, ledgers[strayed.id])
    lab.clock.turn(hours=2)
    return [lost, strayed, *dark]


def to_trash(announced: Announced, ledger: Ledger) -> None:
    """Move images and event file aside as a purge does, and note nothing."""
    system = announced.path.parents[1]
    trash = system / pipeline.TRASH / str(ledger.ref)
    trash.mkdir(parents=True)
    (system / ledger.event.path).rename(trash / "images")
    announced.path.rename(trash / "event.json")


def reconciled(lab: Site) -> Iterator[Sequence[Outcome]]:
    """Find everything, repair it; a day later what must be seen twice."""
    yield pipeline.reconcile(lab.site, repair=True).outcomes
    lab.clock.turn(hours=25)
    yield pipeline.reconcile(lab.site, repair=True).outcomes


def heal_reconciled(lab: Site) -> list[Outcome]:
    return [outcome for outcomes in reconciled(lab) for outcome in outcomes]


LIVES = {
    "written": Life(before_written, written, heal_written),
    "received": Life(before_received, received, heal_received),
    "polled": Life(before_polled, polled, heal_polled),
    "expired": Life(before_expired, expired, heal_expired),
    "fetched": Life(before_fetched, fetched, heal_fetched),
    "reconciled": Life(before_reconciled, reconciled, heal_reconciled),
}
PASSING = {  # a restore that finds everything there makes room for what it might have had to write
    *(f"{what} folder.land in _bring" for what in ("mkdir", "fsync", "rmdir")),
    "fsync folder._sync_at in _to_bench",
}
PLACES = ("bench", "staging", "tape", "inbox")
