"""``plateway reconcile``: compare bench, bucket, catalogue and tape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.table import Column, Table

from plateway import pipeline
from plateway.archive import Inbox, Poll
from plateway.cli.common import use_site
from plateway.cli.console import out, print_json
from plateway.cli.exit_codes import ExitCode, code_of_outcomes
from plateway.cli.options import Home, Json, Systems
from plateway.cli.outcomes import print_outcomes
from plateway.findings import GRAVE, Finding
from plateway.outcome import BAD, UNFINISHED

UNLIMITED = 1 << 62  # bytes


def reconcile(
    *,
    repair: Annotated[
        bool, typer.Option("--repair/--dry-run", help="Also make repairs that delete, move or write.")
    ] = False,
    read_archive: Annotated[
        bool, typer.Option("--read-archive", help="Read copies on tape back and compare their SHA-256.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="With --read-archive: at most this many bytes, like 50GiB.")
    ] = None,
    system: Systems = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Import archive manifests and compare bench, bucket, catalogue and tape.

    Repairs that only read and record are made at once; the others with --repair.
    """
    most = parse_bytes(budget)
    with use_site(home) as (site, config):
        inbox = Inbox(config.archive_inbox, config.endpoint) if config.archive_inbox else None
        poll = Poll(config.archive_url, config.archive_token) if config.archive_url else None
        outcomes = [*pipeline.collect(site, inbox=inbox, poll=poll), *pipeline.settle(site)]
        result = pipeline.reconcile(
            site,
            repair=repair,
            systems=system,
            within=config.on_tape_within,
            fraction=config.reconcile_fraction,
        )
        outcomes += result.outcomes
        if read_archive:
            outcomes += pipeline.read_archive(site, budget=most)
    if as_json:
        print_json(
            {
                "findings": [finding_as_dict(one) for one in result.findings],
                "counts": result.counts,
                "outcomes": [pipeline.as_dict(one) for one in outcomes],
            }
        )
    else:
        complete = not any(one.result in BAD | UNFINISHED for one in outcomes)
        print_findings(result.findings, result.counts, complete=complete)
        if outcomes:
            print_outcomes(outcomes)
    grave = any(one.kind in GRAVE and (not repair or not one.repair) for one in result.findings)
    if code := ExitCode.DAMAGED if grave else code_of_outcomes(outcomes):
        raise typer.Exit(code)


def parse_bytes(text: str | None) -> int:
    """Parse a number of bytes as the settings do; None is no limit."""
    if text is None:
        return UNLIMITED
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is not a number of bytes like 50GiB", param_hint="--budget") from error


def finding_as_dict(finding: Finding) -> dict[str, Any]:
    """Convert a finding to plain values for JSON."""
    return {
        "kind": finding.kind,
        "key": finding.key,
        "id": str(finding.ref) if finding.ref else None,
        "system": finding.system,
        "detail": finding.detail,
        "repair": finding.repair,
        "done": finding.done,
    }


def print_findings(findings: Sequence[Finding], counts: Mapping[str, int], *, complete: bool) -> None:
    """Print what differs; ``complete``: everything could be compared."""
    if not findings:
        agree = "Bench, bucket, catalogue and tape agree."
        return out.print(agree if complete else "No differences found in what could be compared.")
    table = Table("finding", Column("key", overflow="fold"), Column("detail", overflow="fold"), "repair", "done")
    for one in findings:
        table.add_row(one.kind, one.key, one.detail, one.repair or "check by hand", one.done)
    out.print(table)
    return out.print(", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))
