"""The demo: everything that `plateway up` starts, two simulated instruments, and all steps of an event.

It uses the real parts: events reach the bucket through sensor, automation, worker and flows, and so does the manifest
of the simulated archiver; purge, reconcile and restore are runs of their deployments. One bucket copy is damaged on
purpose. It succeeds only if every event reaches its state, the damaged one is refused and kept, and the last one is
restored from tape with the checksums that were acquired.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shlex
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
from plateway.local.bringup import AUTH, DEMO, RunningParts, bring_up
from plateway.local.project import BUNDLED
from plateway.local.supervisor import write_private
from plateway.pipeline import Site, read
from plateway.settings import ENV_FILE, Settings, load, make_private, private_files
from plateway.simulator import Announced, Simulated

SYSTEMS = ("prince", "aretha")
PATIENCE = 300.0  # seconds for all exports, and for each run; machines may be busy
ATTEMPTS = 40  # of one request
INTERVAL = 0.25  # seconds between two queries
SITE = ("PLATEWAY_", "AWS_", "PREFECT_", "AUTH_TOKENS_")  # prefixes of variables that describe a site
RUN = "" if BUNDLED.is_dir() else "uv run "  # before commands: in a checkout they are in its environment
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
    """Run the demo, and return the exit code: 0 if it succeeded."""
    console = console or Console(stderr=as_json)
    try:
        prepare_home(settings.home.absolute())
        create_benches(settings.home.absolute() / "bench")
        with isolate(settings.home.absolute()), bring_up(make_settings(settings), console) as parts:
            demo = Demo(parts, console, events)
            try:
                demo.play()
                if as_json:
                    sys.stdout.write(json.dumps(demo.report(), indent=2) + "\n")
                    sys.stdout.flush()
                if not once:
                    console.print("Everything keeps running until Ctrl-C. For more events, in another terminal:")
                    console.print(f"{format_exports(parts)}\n{RUN}plateway simulate", markup=False, soft_wrap=True)
                    parts.watch()
            finally:
                demo.site.close()
            return 0 if demo.succeeded() else 1
    except KeyboardInterrupt:
        return 0 if not once else 130
    except PlatewayError as error:
        console.print(f"[red]✗[/] {escape(str(error))}", soft_wrap=True)
        return 1


def prepare_home(home: Path) -> None:
    """Create the home, or reuse one of an earlier demo: everything in its bench and bucket may be purged.

    Raises:
        Misconfigured: the directory is not empty and not the home of a demo.
    """
    try:
        make_private(home)
        if (home / DEMO).is_file():
            return
        if any(home.iterdir()):
            raise Misconfigured(f"{home.name} is no home of a demo: choose another directory with --home, or empty it")
        write_private(home / DEMO, "Created by `plateway demo`, which purges the contents. May be deleted.\n")
    except OSError as error:
        raise Misconfigured(f"cannot use {home.name} as the home of a demo: {error.strerror}") from error


def create_benches(root: Path) -> None:
    """Create the directories of the instruments, so that provisioning writes an Instrument block for each.

    Raises:
        Misconfigured: a directory cannot be created.
    """
    try:
        with private_files():
            for system in SYSTEMS:
                (root / system / "events").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"cannot create the bench of the demo: {error.strerror}") from error


@contextmanager
def isolate(home: Path) -> Iterator[None]:
    """Hide the site that environment and ``.env`` describe from this process and its parts, until the end of ``with``.

    Files created meanwhile are readable by their owner only.
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


def make_settings(settings: Settings) -> Settings:
    """Return the settings of the demo: everything in its home, all of it to be purged at once.

    Only the home and the layout of exports are taken from the given settings.
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
class Demo:
    """One run of the demo."""

    parts: RunningParts
    console: Console
    events: int
    site: Site = field(init=False)
    acquired: list[Announced] = field(default_factory=list)
    damaged: str = ""
    archived: dict[str, Any] = field(default_factory=dict)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    repaired: dict[str, Any] = field(default_factory=dict)
    final: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for directory in (self.inbox, self.home / "tape"):
            directory.mkdir(exist_ok=True)
        self.site = pipeline.open_site(self.parts.settings)

    @property
    def home(self) -> Path:
        """The home, which holds everything."""
        return self.parts.settings.home

    @property
    def inbox(self) -> Path:
        """The directory for archive manifests."""
        return self.home / "inbox"

    @property
    def ids(self) -> list[str]:
        """The ids of the events of this run."""
        return [str(one.id) for one in self.acquired]

    def play(self) -> None:
        """Acquire, wait for the exports, archive, damage, purge, restore, and print the results."""
        self.console.print(f"Gateway      {self.parts.gateway}", soft_wrap=True)
        self.console.print(f"Sign in      {self.parts.sign_in_link()} (once, within 15 minutes)", soft_wrap=True)
        self.console.print(f"Prefect UI   {self.parts.prefect_ui}", soft_wrap=True)
        self.console.print(f"S3 endpoint  {self.parts.endpoint or self.parts.settings.bucket_url}", soft_wrap=True)
        self.console.print("The commands below can be typed in another terminal, after", soft_wrap=True)
        self.console.print(format_exports(self.parts), style="dim", markup=False, soft_wrap=True)
        with Live(console=self.console, refresh_per_second=4) as live:
            for announced in simulator.run(self.make_instruments(), rate=2.0, count=self.events):
                self.acquired.append(announced)
                live.update(self.draw_table())
            self.wait_until(lambda: all(one["verified_at"] for one in self.read_events()), live, "verified")
            self.write_to_tape(self.read_ledgers()[-1])
            self.wait_until(lambda: self.read_events()[-1]["state"] == "archived", live, "archived")
        if not self.console.is_terminal:
            self.console.print()  # rich ends no line there
        self.run_deployment("reconcile")
        before = self.read_events()
        self.damage_object()
        self.purge()
        self.restore(self.acquired[-1])
        self.repair()
        # The damaged copy has lost its evidence: its first verification is taken from before.
        self.final = [
            was | {name: value for name, value in one.items() if value is not None}
            for was, one in zip(before, self.read_events(), strict=True)
        ]
        self.console.print(Group(self.draw_table(), *map(self.format_refusal, self.refusals), *self.format_results()))

    def make_instruments(self) -> list[Simulated]:
        """Return one simulated instrument for each event format; their plates differ from run to run."""
        seed = int(time.time())
        root = self.parts.settings.root
        formats: list[simulator.Dialect] = ["timestep", "imaging event"]
        return [
            Simulated(system=name, dialect=dialect, root=root / name, seed=seed + number)
            for number, (name, dialect) in enumerate(zip(SYSTEMS, formats, strict=True))
        ]

    def wait_until(self, reached: Callable[[], bool], live: Live, state: str) -> None:
        """Redraw the table until ``reached``.

        Raises:
            Unavailable: it takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if time.monotonic() > deadline:
                raise Unavailable(f"not every event was {state} within {PATIENCE:.0f} s; see the runs in the UI")
            live.update(self.draw_table())
            time.sleep(INTERVAL)
        live.update(self.draw_table())

    def read_ledgers(self) -> list[Ledger]:
        """Read the ledgers of this run's events, in the order of their announcement."""
        found = {str(one.event.id): one for one in self.site.catalog.ledgers() if str(one.event.id) in self.ids}
        return [found[id_] for id_ in self.ids if id_ in found]

    def read_events(self) -> list[dict[str, Any]]:
        """Read the status of each event; one that was not discovered yet is ``announced``."""
        fields = {"system", "state", "key", "size", "sha256", "announced_at", "verified_at", "seconds", "raw_present"}
        known = {
            str(one.event.id): pipeline.status(self.site, one).model_dump(mode="json", include=fields)
            for one in self.read_ledgers()
        }
        return [{"id": id_, **known.get(id_, dict.fromkeys(fields) | {"state": "announced"})} for id_ in self.ids]

    def write_to_tape(self, ledger: Ledger) -> None:
        """Act as the site's archiver: write a tar with one export, and its manifest into the inbox."""
        export, day = ledger.export, f"{ledger.event.timestamp:%Y-%m-%d}"
        assert export is not None
        folder = export.key.rpartition("/")[0]
        path = choose_tar_path(self.home / "tape", f"{folder.rpartition('/')[0]}/{day}")
        with tarfile.open(self.home / "tape" / path, "w") as tar:
            member = tarfile.TarInfo(f"./{tar_name(export.key)}")
            member.size = export.size
            tar.addfile(member, io.BytesIO(b"".join(self.site.store.open(export.key))))
        job = f"demo-{ledger.event.id}"
        archives = [{"path": path, "src_keys": [f"{export.bucket}/{export.key}"]}]
        draft = self.inbox / f".{job}"
        draft.write_text(json.dumps({"job_id": job, "date": day, "archives": archives}, indent=4))
        draft.rename(self.inbox / f"{job}.json")
        self.console.print(f"Wrote {path} to tape, and its manifest to the inbox.")

    def damage_object(self) -> None:
        """Flip one byte of one object in the bucket, past the catalogue."""
        victim = self.read_ledgers()[0]
        files = [one.key for one in read.contents(self.site, victim).members if one.key]  # objects of their own
        key = files[0] if files else victim.event.key
        content = bytearray(b"".join(self.site.store.open(key)))
        content[len(content) // 2] ^= 0xFF
        self.damaged = str(victim.event.id)
        part = checksums.part_size(len(content))
        self.site.store.put(key, [bytes(content)], size=len(content), part_size=part, metadata={})
        self.console.print(f"Damaged one byte of {key} in the bucket: the purge must refuse this event.")

    def purge(self) -> None:
        """Run the purge as an operator does, and read its table artifact."""
        self.run_deployment("purge", ends="FAILED")  # because it finds the damage
        with self.parts.prefect_client() as api:
            table = json.loads(request(api, "GET", "/artifacts/plateway-purge/latest")["data"])
        self.refusals = [
            {"id": id_, "reasons": row["reasons"].split("; ")}
            for row in table
            for id_ in self.ids
            if id_ in row["event"] and row["result"] == "damaged"
        ]

    def run_deployment(self, flow: str, *, ends: str | None = "COMPLETED", **parameters: object) -> None:
        """Run a deployment to its end, as ``prefect deployment run`` does.

        Raises:
            Unavailable: it takes too long, or ends in another state than ``ends`` (None: any).
        """
        given = [f"--param {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in parameters.items()]
        typed = " ".join([f"{RUN}prefect deployment run {flow}/plateway", *given])
        self.console.print(typed, style="dim", markup=False, soft_wrap=True)
        deadline = time.monotonic() + PATIENCE
        with self.parts.prefect_client() as api:
            deployment = request(api, "GET", f"/deployments/name/{flow}/plateway")["id"]
            wanted = {"parameters": parameters, "idempotency_key": str(uuid4())}
            run = request(api, "POST", f"/deployments/{deployment}/create_flow_run", json=wanted)["id"]
            while (state := request(api, "GET", f"/flow_runs/{run}")["state"])["type"] not in FINAL:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{flow} took longer than {PATIENCE:.0f} s; see the runs in the UI")
                time.sleep(INTERVAL)
        if ends and state["type"] != ends:
            raise Unavailable(f"{flow} did not end as {ends.lower()}: {state['name']}: {state['message']}")

    def restore(self, acquired: Announced) -> None:
        """Restore an event from tape, to a directory and to the bench, and compare both with the acquired images."""
        freed = not acquired.images.exists()
        target = self.home / "restored"
        self.run_deployment("restore", event_ids=[str(acquired.id)], to=str(target), source="archive")
        self.run_deployment("restore", event_ids=[str(acquired.id)], to_bench=True, source="archive")
        ledger = self.site.catalog.ledger(Ref(acquired.id, 1))
        directories = (target / str(acquired.id), acquired.images)
        self.archived = {
            "id": str(acquired.id),
            **{name: getattr(ledger.archives[0], name) for name in ("path", "member", "evidence")},
            "files": len(acquired.files),
            "restored": freed and all(compare_checksums(directory, acquired.files) for directory in directories),
        }

    def repair(self) -> None:
        """Export the damaged event again, from the instrument's disk, and wait until the new copy is verified.

        Raises:
            Unavailable: it takes too long.
        """
        self.run_deployment("export", ends=None, event_ids=[self.damaged])  # a discover may be doing it already
        deadline = time.monotonic() + PATIENCE
        while True:
            export = self.read_ledgers()[0].export
            if export is not None and export.damage is None and export.evidence_at is not None:
                verified_at = export.evidence_at.isoformat()
                self.repaired = {"id": self.damaged, "verified_at": verified_at, "evidence": export.evidence}
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"the damaged copy was not replaced within {PATIENCE:.0f} s; see the runs in the UI")
            time.sleep(INTERVAL)

    def draw_table(self) -> Table:
        """Draw the current status of the events."""
        table = Table("event", "system", "state", Column("key", overflow="fold"), "size", "seconds", "on bench")
        for one in self.final or self.read_events():
            colour = COLOURS.get(one["state"], "yellow")
            seconds = "" if one["seconds"] is None else f"{one['seconds']:.1f}"
            size = "" if one["size"] is None else decimal(one["size"])
            there = {True: "yes", False: "freed", None: ""}[one["raw_present"]]
            state = f"[{colour}]{one['state']}[/]"
            table.add_row(one["id"][:8], one["system"], state, one["key"], size, seconds, there)
        return table

    def format_refusal(self, refused: dict[str, Any]) -> str:
        """Format why an event was kept."""
        return f"[red]kept[/] {refused['id'][:8]}: {escape('; '.join(refused['reasons']))}"

    def format_results(self) -> Iterator[str]:
        """Format the results of the repair and of the restore."""
        yield (
            f"[green]repaired[/] {self.damaged[:8]}: exported again from the instrument's disk, in place of the "
            "damaged copy, and verified"
        )
        one = self.archived
        how = "[green]identical to the acquired ones[/]" if one["restored"] else "[red]not as acquired[/]"
        yield f"[magenta]restored[/] {one['id'][:8]}: {one['files']} images from {escape(one['path'])}, {how}"

    def report(self) -> dict[str, Any]:
        """Return the results for JSON."""
        return {
            "prefect_ui": self.parts.prefect_ui,
            "gateway": self.parts.gateway,
            "s3_endpoint": self.parts.endpoint,
            "events": self.final,
            "refused": self.refusals,
            "repaired": self.repaired,
            "archived": self.archived,
        }

    def succeeded(self) -> bool:
        """Return whether each event reached its state, the damaged one was kept, and the last one was restored."""
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


def format_exports(parts: RunningParts) -> str:
    """Format the line of a shell after which commands in it work on this site."""
    home = parts.settings.home
    return (
        f"export PLATEWAY_HOME={shlex.quote(str(home))} PREFECT_API_URL={parts.prefect_api_url} "
        f'PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(home / AUTH))})"'
    )


def request(api: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    """Send a request to Prefect, and retry after 503: on SQLite that is a conflict of two transactions.

    Raises:
        Unavailable: the answer is an error.
    """
    for _ in range(ATTEMPTS):
        answer = api.request(method, path, **options)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(INTERVAL)
    if not answer.is_success:
        raise Unavailable(f"Prefect answered {answer.status_code} to {method} {path}")
    content: dict[str, Any] = answer.json()
    return content


def choose_tar_path(tape: Path, stem: str) -> str:
    """Choose the path of a new tar: ``<day>.tar``, or ``<day>.2.tar`` if that exists."""
    (tape / stem).parent.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([f"{stem}.tar"], (f"{stem}.{number}.tar" for number in itertools.count(2)))
    return next(name for name in names if not (tape / name).exists())


def compare_checksums(directory: Path, files: Mapping[str, str]) -> bool:
    """Return whether a directory holds these files with these SHA-256; it may hold others."""
    return all(
        (directory / name).is_file() and hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest
        for name, digest in files.items()
    )
