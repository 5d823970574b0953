"""``plateway discover``, ``export`` and ``verify``: copy events from the bench to the bucket."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import typer

from plateway import pipeline, settings
from plateway.cli.common import select_refs, use_site
from plateway.cli.options import Experiment, Home, Ids, Json, Since, System, Until
from plateway.cli.outcomes import report_outcomes, run_verb
from plateway.outcome import Result
from plateway.pipeline import Outcome, Site

ROUNDS = 1000  # of one `discover`, at most; a bench needs fewer
POLL_SECONDS = 0.05, 10.0  # the shortest and the longest time between two rounds


def discover(home: Home = None, as_json: Json = False) -> None:
    """Find new events, export them and verify the copies.

    Waits until new images have settled, and ends when nothing more is due. Does not wait for missing images.
    """
    outcomes: list[Outcome] = []
    with use_site(home) as (site, config):
        for _ in range(ROUNDS):
            found = pipeline.register(site)
            done = export_due(site, config)
            outcomes += [*found.quarantined, *done]
            if done or found.new:
                continue
            if found.settles_in is None:
                break
            shortest, longest = POLL_SECONDS
            time.sleep(min(max(found.settles_in.total_seconds(), shortest), longest))
    report_outcomes([*outcomes, *found.troubled], as_json=as_json)


def export(
    *,
    ids: Ids = None,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    force: Annotated[bool, typer.Option("--force", help="Upload again, even what is verified.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Export events to the bucket and verify the copies.

    Exports the events that are named or selected; without ids and options, all that are due.
    """
    with use_site(home) as (site, config):
        refs = select_refs(site, ids, since=since, until=until, system=system, experiment=experiment)
        if refs is None:
            outcomes = export_due(site, config)
        else:
            outcomes = run_verb(partial(pipeline.export, force=force), site, refs, config=config)
            exported = [one.ref for one in outcomes if one.ref is not None and one.result == Result.EXPORTED]
            outcomes += run_verb(pipeline.verify, site, exported, config=config)
    report_outcomes(outcomes, as_json=as_json)


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
    """Verify exported objects in the bucket.

    Compares size and ETag of each object; exits with 4 if one is damaged or missing. Without ids and options, verifies
    the exports that were not verified yet; with --read-back alone, all exports.
    """
    with use_site(home) as (site, config):
        refs = select_refs(site, ids, since=since, until=until, system=system, experiment=experiment)
        if refs is None and read_back:
            refs = [one.ref for one in site.catalog.ledgers() if one.export]
        elif refs is None:
            refs = pipeline.due(site, "verify")
        outcomes = run_verb(partial(pipeline.verify, read_back=read_back), site, refs, config=config)
    report_outcomes(outcomes, as_json=as_json)


def export_due(site: Site, config: settings.Settings) -> list[Outcome]:
    """Export what is due, then verify every export without evidence."""
    exported = run_verb(pipeline.export, site, pipeline.due(site, "export"), config=config)
    return exported + run_verb(pipeline.verify, site, pipeline.due(site, "verify"), config=config)
