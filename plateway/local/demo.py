"""The show: everything that `plateway up` starts, two instruments that are not there, and an event's whole way.

Plays on the real parts: the events reach the bucket through sensor, automation, worker and flows, and so comes in what
the archiver, which is played as well, tells of its tar; purge, reconcile and restore are runs of their deployments. One
bucket copy is damaged on purpose. Ends well only if every event got where it should, the damaged one was refused and
kept, and the last one came back from tape as it was acquired.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from plateway import checksums, pipeline, simulator
from plateway.errors import Misconfigured, PlatewayError, Unavailable
from plateway.events import Ref
from plateway.keys import tar_name
from plateway.ledger import Ledger
from plateway.local.bringup import DEMO, Parts, bring_up
from plateway.local.supervisor import write_private
from plateway.pipeline import Site, read
from plateway.settings import ENV_FILE, Settings, load, make_private, private_files
from plateway.simulator import Announced, Simulated

SYSTEMS = ("prince", "aretha")
PATIENCE = 300.0  # seconds for everything to be exported; machines may be busy
TRIES = 40  # of one request
LOOK = 0.25  # seconds between two looks at the catalogue
SITE = ("PLATEWAY_", "AWS_", "PREFECT_", "AUTH_TOKENS_")  # how variables begin that describe a site
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}  # types of states in which a run has ended
COLOURS = {
    "exported": "green",
    "archived": "magenta",
    "purged": "blue",
    "lost": "red",
    "changed": "red",
    "quarantined": "red",
}


def run(settings: Settings, *, events: int, once: bool, as_json: bool, console: Console | None = None) -> int:
    """Play, and return the exit code: 0 when all went as it should."""
    console = console or Console(stderr=as_json)
    try:
        prepare_home(settings.home.absolute())
        with isolate(settings.home.absolute()), bring_up(staged(settings), console) as parts:
            show = Show(parts, console, events)
            try:
                show.play()
                if as_json:
                    sys.stdout.write(json.dumps(show.told(), indent=2) + "\n")
                    sys.stdout.flush()
                if not once:
                    console.print("Everything stays up: look around. Ctrl-C stops it. More events come with", end=" ")
                    console.print(f"PLATEWAY_SOURCE_ROOT={parts.settings.root} plateway simulate", soft_wrap=True)
                    parts.watch()
            finally:
                show.site.close()
            return 0 if show.well() else 1
    except KeyboardInterrupt:
        return 0 if not once else 130
    except PlatewayError as error:
        console.print(f"[red]✗[/] {escape(str(error))}", soft_wrap=True)
        return 1


def prepare_home(home: Path) -> None:
    """Make the home, or use one that a demo made: whatever its bench and bucket hold may be purged.

    Raises:
        Misconfigured: the directory holds something that no demo put there.
    """
    try:
        make_private(home)
        if (home / DEMO).is_file():
            return
        if any(home.iterdir()):
            raise Misconfigured(f"{home.name} is the home of no demo: name another directory with --home, or empty it")
        write_private(home / DEMO, "Made by `plateway demo`, which purges what is in here. It may be deleted.\n")
    except OSError as error:
        raise Misconfigured(f"{home.name} cannot be the home of a demo: {error.strerror}") from error


@contextmanager
def isolate(home: Path) -> Iterator[None]:
    """Hide the site that environment and ``.env`` describe, from this process and its parts, until the end of ``with``.

    All files are for their owner only meanwhile.
    """
    before = dict(os.environ)
    kept = {name: value for name, value in before.items() if not name.startswith(SITE)}
    database = f"sqlite+aiosqlite:///{home / 'prefect' / 'prefect.db'}"
    try:
        os.environ.clear()
        os.environ.update(kept, **{ENV_FILE: "", "PREFECT_SERVER_DATABASE_CONNECTION_URL": database})
        with private_files():
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def staged(settings: Settings) -> Settings:
    """Describe the site of the demo: everything in its home, and instruments that may be purged at once and all of it.

    Of what was set only the home and the layout of exports count.
    """
    home = settings.home.absolute()
    return load(
        home=home,
        files_systems=settings.files_systems,
        buckets_file=Path(os.devnull),
        archive_inbox=str(home / "inbox"),
        archive_target=str(home / "tape"),
        read_archive_budget=2**30,
        purge_systems=SYSTEMS,
        purge_fraction=1.0,
        raw_lifespan=timedelta(0),
        trash_grace=timedelta(0),
        settle_seconds=timedelta(seconds=1),
    )


@dataclass
class Show:
    """One performance."""

    parts: Parts
    console: Console
    events: int
    site: Site = field(init=False)
    acquired: list[Announced] = field(default_factory=list)
    damaged: str = ""
    archived: dict[str, Any] = field(default_factory=dict)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    final: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for place in (self.inbox, self.home / "tape"):
            place.mkdir(exist_ok=True)
        self.site = pipeline.open_site(self.parts.settings)

    @property
    def home(self) -> Path:
        """Where all of it is."""
        return self.parts.settings.home

    @property
    def inbox(self) -> Path:
        """Where the archive's manifests are dropped."""
        return self.home / "inbox"

    @property
    def ids(self) -> list[str]:
        """The events of this performance."""
        return [str(one.id) for one in self.acquired]

    def play(self) -> None:
        """Acquire, watch, archive, damage, purge, bring back, show."""
        self.console.print(f"Gateway      {self.parts.gateway}", soft_wrap=True)
        self.console.print(f"Sign in      {self.parts.sign_in_link()} (once, within 15 minutes)", soft_wrap=True)
        self.console.print(f"Prefect UI   {self.parts.prefect_ui}", soft_wrap=True)
        self.console.print(f"S3 endpoint  {self.parts.endpoint or self.parts.settings.bucket_url}", soft_wrap=True)
        with Live(console=self.console, refresh_per_second=4) as live:
            for announced in simulator.run(self.instruments(), rate=2.0, count=self.events):
                self.acquired.append(announced)
                live.update(self.table())
            self.until(lambda: all(one["verified_at"] for one in self.told_events()), live, "be verified")
            self.write_to_tape(self.ledgers()[-1])
            self.until(lambda: self.told_events()[-1]["state"] == "archived", live, "be archived")
        self.run("reconcile")
        before = self.told_events()
        self.damage()
        self.purge()
        self.bring_back(self.acquired[-1])
        # The damaged copy has lost its evidence; when it was first verified is still worth telling.
        self.final = [
            was | {name: value for name, value in one.items() if value is not None}
            for was, one in zip(before, self.told_events(), strict=True)
        ]
        self.console.print(Group(self.table(), *map(self.refusal, self.refusals), self.return_()))

    def instruments(self) -> list[Simulated]:
        """Set up one instrument for each dialect; their plates differ from one performance to the next."""
        seed = int(time.time())
        root = self.parts.settings.root
        dialects: list[simulator.Dialect] = ["timestep", "imaging event"]
        return [
            Simulated(system=name, dialect=dialect, root=root / name, seed=seed + number)
            for number, (name, dialect) in enumerate(zip(SYSTEMS, dialects, strict=True))
        ]

    def until(self, reached: Callable[[], bool], live: Live, what: str) -> None:
        """Look on until it is so; give up when it takes too long, or a run of the show is interrupted."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if time.monotonic() > deadline:
                raise Unavailable(f"not every event came to {what} within {PATIENCE:.0f} s; see the runs in the UI")
            live.update(self.table())
            time.sleep(LOOK)
        live.update(self.table())

    def ledgers(self) -> list[Ledger]:
        """Look up the events of this performance, in the order of their announcement."""
        found = {str(one.event.id): one for one in self.site.catalog.ledgers() if str(one.event.id) in self.ids}
        return [found[id_] for id_ in self.ids if id_ in found]

    def told_events(self) -> list[dict[str, Any]]:
        """Tell of each event where it stands; one that nobody has discovered yet is only announced."""
        fields = {"system", "state", "key", "size", "sha256", "announced_at", "verified_at", "seconds", "raw_present"}
        known = {
            str(one.event.id): pipeline.status(self.site, one).model_dump(mode="json", include=fields)
            for one in self.ledgers()
        }
        return [{"id": id_, **known.get(id_, dict.fromkeys(fields) | {"state": "announced"})} for id_ in self.ids]

    def write_to_tape(self, ledger: Ledger) -> None:
        """Play the site's archiver: bundle an export into a tar of its own making, and drop the manifest."""
        export, day = ledger.export, f"{ledger.event.timestamp:%Y-%m-%d}"
        assert export is not None
        folder = export.key.rpartition("/")[0]
        path = free(self.home / "tape", f"{folder.rpartition('/')[0]}/{day}")
        with tarfile.open(self.home / "tape" / path, "w") as tar:
            member = tarfile.TarInfo(f"./{tar_name(export.key)}")
            member.size = export.size
            tar.addfile(member, io.BytesIO(b"".join(self.site.store.open(export.key))))
        job = f"demo-{ledger.event.id}"
        told = {"job_id": job, "date": day, "archives": [{"path": path, "src_keys": [f"{export.bucket}/{export.key}"]}]}
        half = self.inbox / f".{job}"
        half.write_text(json.dumps(told, indent=4))
        half.rename(self.inbox / f"{job}.json")
        self.console.print(f"Wrote {path} to tape, and dropped its manifest in the inbox.")

    def damage(self) -> None:
        """Flip one byte of one object in the bucket, behind everybody's back."""
        victim = self.ledgers()[0]
        files = [one.key for one in read.contents(self.site, victim).members if one.key]  # objects of their own
        key = files[0] if files else victim.event.key
        content = bytearray(b"".join(self.site.store.open(key)))
        content[len(content) // 2] ^= 0xFF
        self.damaged = str(victim.event.id)
        part = checksums.part_size(len(content))
        self.site.store.put(key, [bytes(content)], size=len(content), part_size=part, metadata={})
        self.console.print(f"Damaged one byte of {key} in the bucket, to see what the purge says.")

    def purge(self) -> None:
        """Purge as an operator would, and read the table that it left."""
        self.run("purge", ends="FAILED")  # because it finds the damage
        with self.parts.prefect_client() as api:
            table = json.loads(asked(api, "GET", "/artifacts/plateway-purge/latest")["data"])
        self.refusals = [
            {"id": row["event"], "reasons": row["reasons"].split("; ")}
            for row in table
            if row["event"] in self.ids and row["result"] == "damaged"
        ]

    def run(self, flow: str, *, ends: str = "COMPLETED", **parameters: object) -> None:
        """Run a deployment to its end, as ``prefect deployment run`` does.

        Raises:
            Unavailable: it did not end so.
        """
        given = " ".join(f"--param {name}={json.dumps(value)}" for name, value in parameters.items())
        self.console.print(f"prefect deployment run {flow}/plateway {given}", style="dim", markup=False, soft_wrap=True)
        deadline = time.monotonic() + PATIENCE
        with self.parts.prefect_client() as api:
            deployment = asked(api, "GET", f"/deployments/name/{flow}/plateway")["id"]
            wanted = {"parameters": parameters, "idempotency_key": str(uuid4())}
            run = asked(api, "POST", f"/deployments/{deployment}/create_flow_run", json=wanted)["id"]
            while (state := asked(api, "GET", f"/flow_runs/{run}")["state"])["type"] not in FINAL:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{flow} took longer than {PATIENCE:.0f} s; see the runs in the UI")
                time.sleep(LOOK)
        if state["type"] != ends:
            raise Unavailable(f"{flow} did not end as it should: {state['name']}: {state['message']}")

    def bring_back(self, acquired: Announced) -> None:
        """Restore an event from tape, to a directory and to the bench, and compare both with what was acquired."""
        freed = not acquired.images.exists()
        target = self.home / "restored"
        self.run("restore", event_ids=[str(acquired.id)], to=str(target), source="archive")
        self.run("restore", event_ids=[str(acquired.id)], to_bench=True, source="archive")
        ledger = self.site.catalog.ledger(Ref(acquired.id, 1))
        places = (target / str(acquired.id), acquired.images)
        self.archived = {
            "id": str(acquired.id),
            **{name: getattr(ledger.archives[0], name) for name in ("path", "member", "evidence")},
            "files": len(acquired.files),
            "restored": freed and all(same(place, acquired.files) for place in places),
        }

    def table(self) -> Table:
        """Draw the events as they stand now."""
        table = Table("event", "system", "state", Column("key", overflow="fold"), "size", "seconds", "on bench")
        for one in self.final or self.told_events():
            colour = COLOURS.get(one["state"], "yellow")
            seconds = "" if one["seconds"] is None else f"{one['seconds']:.1f}"
            size = "" if one["size"] is None else decimal(one["size"])
            there = {True: "yes", False: "freed", None: ""}[one["raw_present"]]
            state = f"[{colour}]{one['state']}[/]"
            table.add_row(one["id"][:8], one["system"], state, one["key"], size, seconds, there)
        return table

    def refusal(self, refused: dict[str, Any]) -> str:
        """Say why an event was kept."""
        return f"[red]kept[/] {refused['id'][:8]}: {escape('; '.join(refused['reasons']))}"

    def return_(self) -> str:
        """Say how the event fared that was restored."""
        told = self.archived
        how = "[green]as it was acquired[/]" if told["restored"] else "[red]not as it was acquired[/]"
        return f"[magenta]back[/] {told['id'][:8]}: {told['files']} images from {escape(told['path'])}, {how}"

    def told(self) -> dict[str, Any]:
        """Tell the whole performance as JSON."""
        return {
            "prefect_ui": self.parts.prefect_ui,
            "gateway": self.parts.gateway,
            "s3_endpoint": self.parts.endpoint,
            "events": self.final,
            "refused": self.refusals,
            "archived": self.archived,
        }

    def well(self) -> bool:
        """Say whether each event got where it should, the damaged one was kept, and the last one came back."""
        states = {one["id"]: one for one in self.final}
        last = states[self.ids[-1]]
        freed = [one for id_, one in states.items() if id_ not in {self.damaged, last["id"]}]
        return (
            [one["id"] for one in self.refusals] == [self.damaged]
            and bool(states[self.damaged]["raw_present"])
            and all(one["state"] == "purged" and not one["raw_present"] for one in freed)
            and last["state"] == "archived"
            and bool(self.archived["restored"])
        )


def asked(api: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    """Ask Prefect, again where it says 503: on SQLite that only means that two transactions met.

    Raises:
        Unavailable: it does not answer as it should.
    """
    for _ in range(TRIES):
        answer = api.request(method, path, **options)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(LOOK)
    if not answer.is_success:
        raise Unavailable(f"Prefect answers {answer.status_code} to {method} {path}")
    found: dict[str, Any] = answer.json()
    return found


def free(tape: Path, stem: str) -> str:
    """Choose the name of a new tar: ``<day>.tar``, or ``<day>.2.tar`` where there is one."""
    (tape / stem).parent.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([f"{stem}.tar"], (f"{stem}.{number}.tar" for number in itertools.count(2)))
    return next(name for name in names if not (tape / name).exists())


def same(place: Path, files: Mapping[str, str]) -> bool:
    """Say whether a directory holds these files, by their SHA-256; what else is in it does not matter."""
    return all(
        (place / name).is_file() and hashlib.sha256((place / name).read_bytes()).hexdigest() == digest
        for name, digest in files.items()
    )
