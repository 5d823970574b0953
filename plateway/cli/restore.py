"""``plateway restore`` and ``cat``: read events and objects back, from a site or from an address."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from plateway import pipeline
from plateway.cli.bucket_options import BucketOptions, with_bucket_options
from plateway.cli.common import find_ref, select_refs, use_site
from plateway.cli.console import byte_progress
from plateway.cli.options import Experiment, Json, Since, System, Until
from plateway.cli.outcomes import report_outcomes
from plateway.errors import PlatewayError
from plateway.events import Ref
from plateway.outcome import Outcome
from plateway.pipeline import Site, addresses
from plateway.pipeline.read import Where
from plateway.store import Store, open_store
from plateway.store.admin import Address

Source = Annotated[
    Where | None, typer.Option("--from", help="Read only this copy; default: the bucket's, else the archive's.")
]


@with_bucket_options
def restore(
    options: BucketOptions,
    *,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Event ids, or addresses like s3://bucket/prefix.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(resolve_path=True, help="Write to this directory, one subdirectory for each event.")
    ] = None,
    to_bench: Annotated[
        bool, typer.Option("--to-bench", help="Write to the original location on the instrument's disk.")
    ] = False,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="For an address: report what would be written.")] = False,
    as_json: Json = False,
) -> None:
    """Restore events from the bucket or the archive.

    Compares the SHA-256 of every file, and keeps files that are there already.

    An address is restored without a catalogue: bundles are unpacked and verified with their own manifests, other
    objects are copied and compared.
    """
    from_addresses = has_addresses(ids, excluded=[to_bench, source, since, until, system, experiment])
    if (to is None) == (not to_bench):
        raise typer.BadParameter("give either --to DIR or --to-bench")
    if from_addresses and to:
        outcomes = [
            one
            for where in map(Address.parse, ids or ())
            for one in restore_address(options, where, to=to, dry_run=dry_run)
        ]
        return report_outcomes(outcomes, as_json=as_json)
    if dry_run or options.endpoint_url or options.block:
        raise typer.BadParameter("--dry-run, --endpoint-url and --block need an address like s3://bucket/prefix")
    with use_site(options.home) as (site, _):
        refs = select_refs(site, ids, since=since, until=until, system=system, experiment=experiment)
        if refs is None:
            raise typer.BadParameter("give event ids, or select events: --since, --until, --system, --experiment")
        outcomes = [restore_event(site, ref, to=to, to_bench=to_bench, source=source) for ref in refs]
    return report_outcomes(outcomes, as_json=as_json)


@with_bucket_options
def cat(
    options: BucketOptions,
    *,
    id: Annotated[str, typer.Argument(metavar="ID", help="Event id, or address of an object: s3://bucket/key.")],  # noqa: A002
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Image, as `plateway show` names it; default: the object at the address as it is."
        ),
    ] = None,
    span: Annotated[
        str | None,
        typer.Option("--range", metavar="FIRST-LAST", help="Bytes of an object: 0-99, 100-, or the last -9."),
    ] = None,
    source: Source = None,
) -> None:
    """Write one image or object to standard output.

    An image is read out of its bundle with one ranged read.
    """
    if sys.stdout.isatty():
        raise typer.BadParameter("cannot write an image to a terminal: redirect it to a file or another program")
    if has_addresses([id], excluded=[source, name and span]):
        where = Address.parse(id)
        store = open_address(options, where)
        return write_chunks(addresses.image(store, where.key, name) if name else read_range(store, where.key, span))
    if name is None or span or options.endpoint_url or options.block:
        raise typer.BadParameter("an event id needs the name of an image, and none of --range, --endpoint-url, --block")
    with use_site(options.home) as (site, _):
        return write_chunks(pipeline.cat(site, find_ref(site, id), name, source=source))


def has_addresses(ids: Sequence[str] | None, *, excluded: Sequence[object]) -> bool:
    """Return whether addresses were given instead of event ids; both, or an option for events, are an error."""
    found = [one for one in ids or () if "://" in one]
    if found and (len(found) < len(ids or ()) or any(excluded)):
        raise typer.BadParameter("an address cannot be combined with event ids or with options that are for events")
    return bool(found)


def open_address(options: BucketOptions, where: Address) -> Store:
    """Open the bucket of an address, read-only."""
    return open_store(f"s3://{where.bucket}", replace(options.endpoint, read_only=True))


def restore_address(options: BucketOptions, where: Address, *, to: Path, dry_run: bool) -> Iterator[Outcome]:
    """Restore everything at an address behind a progress bar, or plan to."""
    found = addresses.find(open_address(options, where), where)
    with byte_progress(f"restore {where}", total=found.size) as beat:
        yield from addresses.plan(found, to=to) if dry_run else addresses.restore(found, to=to, beat=beat)


def restore_event(site: Site, ref: Ref, *, to: Path | None, to_bench: bool, source: Where | None) -> Outcome:
    """Restore one event behind a progress bar; an error becomes an outcome."""
    try:
        _, export = site.catalog.found(ref)
        with byte_progress(f"restore {ref}", total=export.size if export else None) as beat:
            return pipeline.restore(site, ref, to=to, to_bench=to_bench, source=source, beat=beat)
    except PlatewayError as error:
        return pipeline.failed(site, ref, "restore", error)


def read_range(store: Store, key: str, span: str | None) -> Iterator[bytes]:
    """Read an object, or a range of its bytes in the syntax of HTTP."""
    if span is None:
        return addresses.cat(store, key)
    match = re.fullmatch(r"(\d+)-(\d*)|-(\d+)", span)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise typer.BadParameter(f"{span!r} is not a range like 0-99, 100- or -9", param_hint="--range")
    if match[3]:
        return store.open(key, start=-int(match[3])) if int(match[3]) else iter(())
    return store.open(key, start=int(match[1]), length=int(match[2]) - int(match[1]) + 1 if match[2] else None)


def write_chunks(chunks: Iterator[bytes]) -> None:
    """Write bytes to standard output."""
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
