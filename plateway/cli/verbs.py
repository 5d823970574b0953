"""What the commands share that run verbs: the line and its catalogue, the events that are meant, what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import UUID

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Column, Table

from plateway import pipeline, settings
from plateway.catalog import Catalog
from plateway.cli.shell import err, label, out, print_json, size, utc
from plateway.events import Ref
from plateway.outcome import Outcome, Result
from plateway.pipeline import Site


def verdict(outcomes: Sequence[Outcome]) -> int:
    """Sum up many outcomes in one exit code."""
    results = Counter(one.result for one in outcomes)
    bad = sum(results[one] for one in (Result.FAILED, Result.LATER, Result.STOPPED, Result.QUARANTINED))
    if results[Result.DAMAGED]:
        return 4
    if not bad:
        return 0
    if bad < len(outcomes):
        return 3
    return 5 if results[Result.LATER] == bad else 1


@contextmanager
def opened(home: Path | None) -> Iterator[Catalog]:
    catalog = Catalog(settings.load(home=home).catalog_url)
    try:
        yield catalog
    finally:
        catalog.close()


@contextmanager
def working(home: Path | None) -> Iterator[tuple[Site, settings.Settings]]:
    """Open the line on an up-to-date catalogue."""
    config = settings.load(home=home)
    site = pipeline.open_site(config)
    try:
        site.catalog.upgrade()
        yield site, config
    finally:
        site.close()


def run(
    verb: Callable[[Site, Ref], Outcome], site: Site, refs: Sequence[Ref], *, config: settings.Settings
) -> list[Outcome]:
    """Run a verb over events behind a progress bar."""
    if not refs:
        return []
    what = getattr(verb, "func", verb).__name__
    columns = (label(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        outcomes = pipeline.each(verb, site, refs, workers=config.export_workers)
        return list(progress.track(outcomes, total=len(refs), description=what))


def chosen(
    site: Site,
    ids: Sequence[str] | None,
    *,
    since: datetime | None,
    until: datetime | None,
    system: str | None,
    experiment: str | None,
) -> list[Ref] | None:
    """Name the events that were asked for; None when nothing was."""
    if ids:
        return [
            site.catalog.newest(uuid) if revision is None else Ref(uuid, revision)
            for uuid, revision in map(parsed, ids)
        ]
    if since or until or system or experiment:
        found = site.catalog.ledgers(system=system, experiment=experiment, since=utc(since), until=utc(until))
        return [one.ref for one in found if one.event.sealed_at is not None]
    return None


def parsed(text: str) -> tuple[UUID, int | None]:
    try:
        return Ref.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not an event id") from error


def finish(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Show what came of it and end with the exit code that sums it up."""
    if as_json:
        print_json({"outcomes": [pipeline.as_dict(one) for one in outcomes]})
    else:
        show_outcomes(outcomes)
    if code := verdict(outcomes):
        raise typer.Exit(code)


def show_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Draw what was done, and to what."""
    if not outcomes:
        return out.print("Nothing to do.")
    table = Table(Column("event", no_wrap=True), "system", "verb", "result", "size", "key / reason")
    for one in outcomes:
        event = str(one.ref) if one.ref else "-"
        table.add_row(event, one.system, one.verb, one.result, size(one.size), "; ".join(one.reasons) or one.key)
    return out.print(table)
