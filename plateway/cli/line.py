"""Commands that carry: the demo, the whole line, the simulator, and the verbs in their order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from plateway import pipeline, settings
from plateway.cli.shell import (
    Experiment,
    Home,
    Ids,
    Json,
    Since,
    System,
    Until,
    Writer,
    app,
    err,
    out,
    pause,
    print_json,
)
from plateway.cli.verbs import chosen, finish, run, working
from plateway.events import Ref
from plateway.local import bringup
from plateway.local import demo as theatre
from plateway.pipeline import Outcome, Site
from plateway.settings import MAIN
from plateway.simulator import http

ROUNDS = 1000  # of one `discover`: more than any bench needs, and an end
FAULTS = (  # of the simulator, which loads only when it is used
    "bad-path",
    "duplicate",
    "event-before-images",
    "extra-image",
    "garbage-json",
    "half-written-json",
    "late-mount",
    "missing-image",
    "none",
    "other-content",
    "slow-writer",
    "symlink",
)


@app.command()
def demo(
    *,
    home: Home = None,
    events: Annotated[int, typer.Option(min=2, help="How many events the two instruments acquire.")] = 6,
    once: Annotated[bool, typer.Option("--once", help="End by itself; exit 0 only if all went as it should.")] = False,
    as_json: Json = False,
) -> None:
    """Show the whole line at work: servers, two simulated instruments, export, verification and a purge with proof."""

    console = Writer(markup=True, stderr=as_json)
    config = settings.load(home=home)
    raise typer.Exit(theatre.run(config, events=events, once=once, as_json=as_json, console=console))


@app.command()
def up(home: Home = None) -> None:
    """Bring up Prefect, S3 (unless an endpoint is configured), catalogue, worker and file sensor for a real bench."""

    raise typer.Exit(bringup.up(settings.load(home=home), Writer(markup=True)))


@app.command()
def simulate(
    *,
    home: Home = None,
    system: Annotated[
        list[str] | None, typer.Option(help="Instruments that acquire; default: prince and aretha.")
    ] = None,
    events: Annotated[int | None, typer.Option(min=1, help="Stop after so many events; default: go on.")] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Events per second, of all instruments together.")] = 0.5,
    images: Annotated[int, typer.Option(min=1, help="Images per event.")] = 6,
    size: Annotated[int, typer.Option(min=16, help="Pixels along either side of an image.")] = 512,
    fault: Annotated[list[str] | None, typer.Option(help=f"The first events misbehave: {', '.join(FAULTS)}.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Acquire what is posted to /timestep, until Ctrl-C.")] = False,
    host: Annotated[str, typer.Option(help="With --serve: where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --serve: 0 is any that is free.")] = 8001,
    interval: Annotated[
        float | None, typer.Option(min=0.1, help="With --serve: acquire by itself as well, after so many seconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let instruments that are not there acquire plates on the bench; every other one speaks the older dialect."""
    from plateway import simulator  # noqa: PLC0415  the same: it draws with numpy

    known = settings.load(home=home)
    bench = known.root
    shared = not bench.is_relative_to(known.home.absolute())
    mode = nullcontext() if shared else settings.private_files()
    if serve:
        with mode:
            return serve_instrument(bench, host=host, port=port, size=size, interval=interval)
    unknown = sorted(set(fault or ()) - set(simulator.FAULTS))
    if unknown:
        raise typer.BadParameter(f"no such fault: {', '.join(unknown)}", param_hint="--fault")
    instruments = [
        simulator.Simulated(
            system=name,
            dialect="imaging event" if number % 2 else "timestep",
            root=bench / name,
            images=images,
            size=size,
            seed=int(datetime.now(UTC).timestamp()),
        )
        for number, name in enumerate(system or ["prince", "aretha"])
    ]
    announced = []
    with mode:
        for one in simulator.run(instruments, rate=rate, count=events, faults=fault or ()):
            announced.append({"id": str(one.id), "system": one.system, "file": one.path.name})
            err.print(f"{one.system} announced {one.id}")
    if as_json:
        print_json({"events": announced})
    return None


def serve_instrument(bench: Path, *, host: str, port: int, size: int, interval: float | None) -> None:
    """Acquire what is posted, on any system of the bench."""

    every = timedelta(seconds=interval) if interval else None
    application = http.create_app(bench, size=size, interval=every)
    http.serve(application, host=host, port=port, ready=lambda url: out.print(f"POST {url}"))


@app.command()
def discover(home: Home = None, as_json: Json = False) -> None:
    """Find what was announced, wait until it has settled, export and verify it; end when nothing more is due."""
    with working(home) as (site, config):
        outcomes: list[Outcome] = []
        troubled: tuple[Outcome, ...] = ()
        for _ in range(ROUNDS):
            found = pipeline.register(site)
            outcomes += found.quarantined
            troubled = found.troubled
            done = export_due(site, config)
            outcomes += done
            if done or found.new:
                continue
            if found.settles_in is None:
                break
            pause(found.settles_in)
    finish([*outcomes, *troubled], as_json=as_json)


@app.command()
def export(
    *,
    ids: Ids = None,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    force: Annotated[bool, typer.Option("--force", help="Send again, even what is verified.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Export events and verify what arrived: the ones named or selected, or without either all that are due."""
    with working(home) as (site, config):
        refs = chosen(site, ids, since=since, until=until, system=system, experiment=experiment)
        outcomes = export_due(site, config) if refs is None else export_all(site, config, refs, force=force)
    finish(outcomes, as_json=as_json)


@app.command()
def verify(
    *,
    ids: Ids = None,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    read_back: Annotated[bool, typer.Option("--read-back", help="Read every byte and compare every SHA-256.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Look at what is in the bucket; damage ends with exit code 4. Without ids: what was not looked at yet."""
    with working(home) as (site, config):
        refs = chosen(site, ids, since=since, until=until, system=system, experiment=experiment)
        if refs is None:
            refs = (
                [one.ref for one in site.catalog.ledgers() if one.export] if read_back else pipeline.due(site, "verify")
            )
        outcomes = run(partial(pipeline.verify, read_back=read_back), site, refs, config=config)
    finish(outcomes, as_json=as_json)


@app.command()
def purge(
    *,
    system: Annotated[list[str] | None, typer.Option(help="Only these instruments.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge and prove, move nothing.")] = False,
    fraction: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Allow a batch that removes up to this part of a system's events."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Free the bench of what is proven to be safe in the bucket; everything refused says why.

    Only systems in PLATEWAY_PURGE_SYSTEMS are touched at all. Every file is compared with the copy; then the images are
    moved into a trash folder, and removed after PLATEWAY_TRASH_GRACE if the copy and they are still the same. Uploads
    that dead exports left open are aborted.
    """
    with working(home) as (site, _):
        outcomes = pipeline.purge(site, systems=system, dry_run=dry_run, fraction=fraction)
        outcomes += [] if dry_run else pipeline.sweep(site)
    finish(outcomes, as_json=as_json)


@app.command()
def relocate(
    *,
    bucket: Annotated[str, typer.Argument(metavar="NAME", help="A bucket by its name in buckets.toml.")] = MAIN,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and note nothing.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Follow an endpoint that has another address now: note of each export that proves to be there where it is.

    Looked for are exports of a bucket of that name at an address that the settings do not name any more.
    """
    with working(home) as (site, config):
        outcomes = pipeline.relocate(site.named(bucket), dry_run=dry_run, workers=config.export_workers)
    finish(outcomes, as_json=as_json)


def export_due(site: Site, config: settings.Settings) -> list[Outcome]:
    """Export what is due, then verify whatever lacks evidence."""
    exported = run(pipeline.export, site, pipeline.due(site, "export"), config=config)
    return exported + run(pipeline.verify, site, pipeline.due(site, "verify"), config=config)


def export_all(site: Site, config: settings.Settings, refs: Sequence[Ref], *, force: bool) -> list[Outcome]:
    exported = run(partial(pipeline.export, force=force), site, refs, config=config)
    sent = [one.ref for one in exported if one.ref is not None and one.result == "exported"]
    return exported + run(pipeline.verify, site, sent, config=config)
