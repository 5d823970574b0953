"""The show: everything that `plateway up` starts, two instruments that are not there, damage done on purpose, a purge.

Plays on the real parts: the events reach the bucket through sensor, automation, worker and flows, the purge is a run
of its deployment. Ends well only if every event got where it should and the damaged one was refused and kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from deployments.bringup import Parts, bring_up
from plateway import pipeline, simulator
from plateway.catalog import Ledger
from plateway.errors import PlatewayError, Unavailable
from plateway.pipeline import Line
from plateway.settings import Settings
from plateway.simulator import Simulated

SYSTEMS = ("prince", "aretha")
PATIENCE = 300.0  # seconds for everything to be exported; machines may be busy
LOOK = 0.25  # seconds between two looks at the catalogue
COLOURS = {"exported": "green", "purged": "blue", "lost": "red", "changed": "red", "quarantined": "red"}


def run(settings: Settings, *, events: int, once: bool, as_json: bool, console: Console | None = None) -> int:
    """Play, and return the exit code: 0 when all went as it should."""
    console = console or Console(stderr=as_json)
    try:
        with bring_up(staged(settings), console) as parts:
            show = Show(parts, console, events)
            try:
                show.play()
                if as_json:
                    sys.stdout.write(json.dumps(show.told(), indent=2) + "\n")
                    sys.stdout.flush()
                if not once:
                    console.print("Everything stays up: look around, `plateway simulate` brings more. Ctrl-C stops it.")
                    parts.watch()
            finally:
                show.line.close()
            return 0 if show.well() else 1
    except KeyboardInterrupt:
        return 0 if not once else 130
    except PlatewayError as error:
        console.print(f"[red]✗[/] {escape(str(error))}", soft_wrap=True)
        return 1


def staged(settings: Settings) -> Settings:
    """Set the scene: both instruments may be purged, at once and all of it, so that a purge can be seen in a minute."""
    quick = {
        "purge_systems": SYSTEMS,
        "purge_fraction": 1.0,
        "raw_lifespan": timedelta(0),
        "trash_grace": timedelta(0),
        "settle_seconds": min(settings.settle_seconds, timedelta(seconds=1)),
    }
    return settings.model_copy(update=quick)


@dataclass
class Show:
    """One performance."""

    parts: Parts
    console: Console
    events: int
    line: Line = field(init=False)
    ids: list[str] = field(default_factory=list)
    damaged: str = ""
    refusals: list[dict[str, Any]] = field(default_factory=list)
    final: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.line = pipeline.open_line(self.parts.settings)

    def play(self) -> None:
        """Acquire, watch, damage, purge, show."""
        self.console.print(f"Prefect UI   {self.parts.prefect_ui}", soft_wrap=True)
        self.console.print(f"S3 endpoint  {self.parts.endpoint or self.parts.settings.bucket_url}", soft_wrap=True)
        with Live(console=self.console, refresh_per_second=4) as live:
            for announced in simulator.run(self.instruments(), rate=2.0, count=self.events):
                self.ids.append(str(announced.id))
                live.update(self.table())
            self.until(lambda: all(one["verified_at"] for one in self.told_events()), live, "be verified")
        before = self.told_events()
        self.damage()
        self.purge()
        # The damaged copy has lost its evidence; when it was first verified is still worth telling.
        self.final = [
            was | {name: value for name, value in one.items() if value is not None}
            for was, one in zip(before, self.told_events(), strict=True)
        ]
        self.console.print(Group(self.table(), *map(self.refusal, self.refusals)))

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
        found = {str(one.event.id): one for one in self.line.catalog.ledgers() if str(one.event.id) in self.ids}
        return [found[id_] for id_ in self.ids if id_ in found]

    def told_events(self) -> list[dict[str, Any]]:
        """Tell of each event where it stands; one that nobody has discovered yet is only announced."""
        fields = {"system", "state", "key", "size", "sha256", "announced_at", "verified_at", "seconds", "raw_present"}
        known = {
            str(one.event.id): pipeline.status(self.line, one).model_dump(mode="json", include=fields)
            for one in self.ledgers()
        }
        return [{"id": id_, **known.get(id_, dict.fromkeys(fields) | {"state": "announced"})} for id_ in self.ids]

    def damage(self) -> None:
        """Flip one byte of one object in the bucket, behind everybody's back."""
        victim = self.ledgers()[0]
        content = bytearray(b"".join(self.line.store.open(victim.event.key)))
        content[len(content) // 2] ^= 0xFF
        self.damaged = str(victim.event.id)
        export = victim.export
        assert export is not None
        self.line.store.put(
            victim.event.key, [bytes(content)], size=len(content), part_size=export.part_size, metadata={}
        )
        self.console.print(f"Damaged one byte of {victim.event.key} in the bucket, to see what the purge says.")

    def purge(self) -> None:
        """Run the purge as an operator would, and read the table it left."""
        self.console.print("prefect deployment run purge/plateway --watch", style="dim")
        command = [sys.executable, "-m", "prefect", "deployment", "run", "purge/plateway", "--watch"]
        done = subprocess.run(
            command, env=dict(self.parts.env), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if done.returncode:
            raise Unavailable(f"the purge did not end well: {(done.stdout + done.stderr).strip()[-500:]}")
        answer = httpx.get(f"{self.parts.prefect_api_url}/artifacts/plateway-purge/latest", timeout=30, trust_env=False)
        table = json.loads(answer.raise_for_status().json()["data"])
        self.refusals = [
            {"id": row["event"], "reasons": row["reasons"].split("; ")}
            for row in table
            if row["event"] in self.ids and row["result"] == "refused"
        ]

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

    def told(self) -> dict[str, Any]:
        """Tell the whole performance as JSON."""
        return {
            "prefect_ui": self.parts.prefect_ui,
            "s3_endpoint": self.parts.endpoint,
            "events": self.final,
            "refused": self.refusals,
        }

    def well(self) -> bool:
        """Say whether every event got where it should, and the damaged one was refused and kept."""
        states = {one["id"]: one for one in self.final}
        freed = [one for one in self.final if one["id"] != self.damaged]
        return (
            [one["id"] for one in self.refusals] == [self.damaged]
            and bool(states[self.damaged]["raw_present"])
            and all(one["state"] == "purged" and not one["raw_present"] for one in freed)
        )
