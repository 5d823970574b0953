"""Commands about the archive: what is on tape, what does not agree, and the ways back."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.table import Column, Table

from plateway import pipeline, settings
from plateway.archive import Inbox, Poll
from plateway.cli.bucket import BucketOptions, placed
from plateway.cli.shell import (
    Experiment,
    Home,
    Json,
    Since,
    System,
    Until,
    app,
    log_handler,
    measured,
    out,
    print_json,
    print_text,
    when,
)
from plateway.cli.verbs import chosen, finish, parsed, show_outcomes, verdict, working
from plateway.errors import Misconfigured, NotFound, PlatewayError
from plateway.events import Ref
from plateway.findings import GRAVE, Finding
from plateway.outcome import BAD, UNFINISHED, Outcome
from plateway.pipeline import Site
from plateway.pipeline import addresses as sources
from plateway.pipeline.read import Where
from plateway.records import ArchiveManifest
from plateway.store import Store, open_store
from plateway.store.admin import Address

EVERYTHING = 1 << 62  # bytes: no budget

manifest_app = typer.Typer(no_args_is_help=True, help="What the archive says it has.")
policy_app = typer.Typer(no_args_is_help=True, help="The bucket's own lifecycle rules.")
bridge_app = typer.Typer(no_args_is_help=True, help="Bridges to RabbitMQ and Redis; each runs until Ctrl-C.")
app.add_typer(manifest_app, name="manifest")
app.add_typer(policy_app, name="bucket-policy")
app.add_typer(bridge_app, name="bridge")

Source = Annotated[
    Where | None, typer.Option("--from", help="Read this copy only; default: the bucket's, else the archive's.")
]
Systems = Annotated[list[str] | None, typer.Option("--system", help="Only these instruments.")]
Fraction = Annotated[
    float | None, typer.Option(min=0, max=1, help="Allow a batch that removes up to this part of a system's copies.")
]


@app.command()
def reconcile(
    *,
    repair: Annotated[
        bool,
        typer.Option("--repair/--dry-run", help="Carry out repairs that delete, move or write."),
    ] = False,
    read_archive: Annotated[
        bool, typer.Option("--read-archive", help="Read members of the archive back and compare their SHA-256.")
    ] = False,
    budget: Annotated[str | None, typer.Option(help="Read back so many bytes at most, like 50GiB.")] = None,
    system: Systems = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take in what the archive told, and hold bench, bucket, catalogue and tape against each other."""
    most = bytes_of(budget)
    with working(home) as (site, config):
        outcomes = [*collected(site, config), *pipeline.settle(site)]
        told = pipeline.reconcile(
            site,
            repair=repair,
            systems=system,
            within=config.on_tape_within,
            fraction=config.reconcile_fraction,
        )
        outcomes += told.outcomes
        if read_archive:
            outcomes += pipeline.read_archive(site, budget=most)
    if as_json:
        findings = [told_finding(one) for one in told.findings]
        print_json(
            {"findings": findings, "counts": told.counts, "outcomes": [pipeline.as_dict(one) for one in outcomes]}
        )
    else:
        whole = not any(one.result in BAD | UNFINISHED for one in outcomes)
        show_findings(told.findings, told.counts, whole=whole)
        if outcomes:
            show_outcomes(outcomes)
    if (
        code := 4
        if any(one.kind in GRAVE and (not repair or not one.repair) for one in told.findings)
        else verdict(outcomes)
    ):
        raise typer.Exit(code)


def collected(site: Site, config: settings.Settings) -> list[Outcome]:
    """Look behind the doors that are configured."""
    inbox = Inbox(config.archive_inbox, config.endpoint) if config.archive_inbox else None
    poll = Poll(config.archive_url, config.archive_token) if config.archive_url else None
    return pipeline.collect(site, inbox=inbox, poll=poll)


def told_finding(finding: Finding) -> dict[str, Any]:
    """Say a finding in words that JSON takes."""
    return {
        "kind": finding.kind,
        "key": finding.key,
        "id": str(finding.ref) if finding.ref else None,
        "system": finding.system,
        "detail": finding.detail,
        "repair": finding.repair,
        "done": finding.done,
    }


def show_findings(findings: Sequence[Finding], counts: Any, *, whole: bool) -> None:
    """Show what differs; ``whole``: everything could be compared."""
    if not findings:
        agree = "Bench, bucket, catalogue and tape agree."
        return out.print(agree if whole else "No difference was found in what could be compared.")
    table = Table("finding", Column("key", overflow="fold"), Column("what", overflow="fold"), "repair", "done")
    for one in findings:
        table.add_row(one.kind, one.key, one.detail, one.repair or "look at it", one.done)
    out.print(table)
    return out.print(", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))


def bytes_of(text: str | None) -> int:
    """Read a number of bytes as settings do."""
    if text is None:
        return EVERYTHING
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is not a number of bytes like 50GiB", param_hint="--budget") from error


@app.command()
def archive(
    *,
    before: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only what was imaged before this day (UTC).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go into which tar.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write what is verified, and not on tape yet, to the archive: one tar for each kind, experiment and day."""
    with working(home) as (site, _):
        on_tape(site)
        day = before.date() if before else site.catalog.now().astimezone(UTC).date()
        outcomes = pipeline.archive(site, before=day, dry_run=dry_run)
    finish(outcomes, as_json=as_json)


@app.command()
def expire(
    *,
    system: Systems = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge and prove, delete nothing.")] = False,
    fraction: Fraction = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Delete bucket copies of what is on tape with proof, after PLATEWAY_BUCKET_LIFESPAN; refusals say why."""
    with working(home) as (site, _):
        outcomes = pipeline.expire(site, systems=system, dry_run=dry_run, fraction=fraction)
    finish(outcomes, as_json=as_json)


def on_tape(site: Site) -> None:
    if site.archive is None:
        raise Misconfigured("no archive is named: set PLATEWAY_ARCHIVE_TARGET")


# -------------------------------------------------------------------------------------------------------- bringing back


@app.command()
@placed
def restore(
    place: BucketOptions,
    *,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]…", help="Event ids, or addresses like s3://bucket/prefix.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(resolve_path=True, help="Into this directory, one below it for each event.")
    ] = None,
    to_bench: Annotated[bool, typer.Option("--to-bench", help="To their place on the instrument's disk.")] = False,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    system: System = None,
    experiment: Experiment = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Of an address: say what would be written.")] = False,
    as_json: Json = False,
) -> None:
    """Bring events back, each file compared with its SHA-256; what is there already is kept.

    What is at an address comes without a catalogue: bundles are unpacked and prove themselves, other objects are
    copied and compared.
    """
    fetching = addressed(ids, other=[to_bench, source, since, until, system, experiment])
    if (to is None) == (not to_bench):
        raise typer.BadParameter("say where to: --to DIR or --to-bench")
    if fetching and to:
        places = map(Address.parse, ids or ())
        return finish([one for where in places for one in fetch(place, where, to=to, dry_run=dry_run)], as_json=as_json)
    if dry_run or place.endpoint_url or place.block:
        raise typer.BadParameter("--dry-run, --endpoint-url and --block are for addresses like s3://bucket/prefix")
    with working(place.home) as (site, _):
        refs = chosen(site, ids, since=since, until=until, system=system, experiment=experiment)
        if refs is None:
            raise typer.BadParameter("name events, or select them with --since, --until, --system or --experiment")
        outcomes = [restored(site, ref, to=to, to_bench=to_bench, source=source) for ref in refs]
    return finish(outcomes, as_json=as_json)


def addressed(given: Sequence[str] | None, *, other: Sequence[object] = ()) -> bool:
    """Tell whether addresses were given, and not events."""
    addresses = [one for one in given or () if "://" in one]
    if addresses and (len(addresses) < len(given or ()) or any(other)):
        raise typer.BadParameter("what is at an address is no event: neither ids nor what selects events goes with it")
    return bool(addresses)


def reading(place: BucketOptions, where: Address) -> Store:
    return open_store(f"s3://{where.bucket}", replace(place.endpoint, read_only=True))


def fetch(place: BucketOptions, where: Address, *, to: Path, dry_run: bool) -> Iterator[Outcome]:
    """Bring what is at an address behind a bar of its bytes."""
    found = sources.find(reading(place, where), where)
    with measured(f"restore {where}", found.size) as beat:
        yield from sources.plan(found, to=to) if dry_run else sources.restore(found, to=to, beat=beat)


def restored(site: Site, ref: Ref, *, to: Path | None, to_bench: bool, source: Where | None) -> Outcome:
    """Restore one event behind a bar of its bytes; a failure becomes an outcome."""
    try:
        _, export = site.catalog.found(ref)
        with measured(f"restore {ref}", export.size if export else None) as beat:
            return pipeline.restore(site, ref, to=to, to_bench=to_bench, source=source, beat=beat)
    except PlatewayError as error:
        return pipeline.failed(site, ref, "restore", error)


@app.command()
@placed
def cat(
    place: BucketOptions,
    *,
    id: Annotated[str, typer.Argument(help="An event id, or the address of an object: s3://bucket/key.")],  # noqa: A002
    name: Annotated[
        str | None, typer.Argument(help="An image, as `plateway show` names it. None: the object as it is.")
    ] = None,
    span: Annotated[
        str | None,
        typer.Option("--range", metavar="FIRST-LAST", help="Bytes of an object: 0-99, 100-, or the last -9."),
    ] = None,
    source: Source = None,
) -> None:
    """Write one image to standard output, read out of the bundle with one ranged read; or any object."""
    if sys.stdout.isatty():
        raise typer.BadParameter("an image is not for a terminal: send it to a file or another program")
    if addressed([id], other=[source, name and span]):
        where = Address.parse(id)
        store = reading(place, where)
        return pour(sources.image(store, where.key, name) if name else content(store, where.key, span))
    if name is None or span or place.endpoint_url or place.block:
        raise typer.BadParameter("of an event, name the image; --range, --endpoint-url and --block are for addresses")
    with working(place.home) as (site, _):
        uuid, revision = parsed(id)
        ref = site.catalog.newest(uuid) if revision is None else Ref(uuid, revision)
        return pour(pipeline.cat(site, ref, name, source=source))


def pour(chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def content(store: Store, key: str, span: str | None) -> Iterator[bytes]:
    """Read an object, or the bytes of it that were asked for, as HTTP counts them."""
    if span is None:
        return sources.cat(store, key)
    match = re.fullmatch(r"(\d+)-(\d*)|-(\d+)", span)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise typer.BadParameter(f"{span!r} is not a range like 0-99, 100- or -9", param_hint="--range")
    if match[3]:
        return store.open(key, start=-int(match[3])) if int(match[3]) else iter(())
    return store.open(key, start=int(match[1]), length=int(match[2]) - int(match[1]) + 1 if match[2] else None)


@app.command()
def rebuild(
    *,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Objects read at a time.")] = 4,
    site_id: Annotated[
        UUID | None, typer.Option("--site", help="Go on as this site, where the buckets name several.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fill an empty catalogue from the bucket and the archive's manifests, and list what only the old one knew."""
    with working(home) as (site, config), measured("rebuild", None) as beat:
        kept = Inbox(config.archive_inbox, config.endpoint).accepted() if config.archive_inbox else ()
        told = pipeline.rebuild(site, workers=workers, manifests=kept, beat=beat, site_id=site_id)
    if as_json:
        facts = {field: getattr(told, field) for field in ("events", "known", "from_archive", "manifests")}
        refused, gaps = map(pipeline.as_dict, told.refused), (gap._asdict() for gap in told.gaps)
        print_json({**facts, "refused": list(refused), "gaps": list(gaps)})
    else:
        out.print(
            f"{told.events} events taken in, {told.from_archive} of them from the archive; {told.known} were known; "
            f"{told.manifests} archive manifests"
        )
        if told.refused:
            show_outcomes(told.refused)
        table = Table("what only the old catalogue knew", "rows", "instead", title="not as before")
        for gap in told.gaps:
            table.add_row(gap.what, "?" if gap.rows is None else str(gap.rows), gap.instead)
        out.print(table)
    if told.refused:
        raise typer.Exit(3)


# ------------------------------------------------------------------------------------------------------------ manifests


@manifest_app.command("list")
def manifest_list(
    *,
    refused: Annotated[bool, typer.Option("--refused", help="Only those that were refused, or partly.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 100,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the archive manifests that came in."""
    with working(home) as (site, _):
        rows = [told_manifest(one) for one in site.catalog.manifests(refused=refused, limit=limit)]
    if as_json:
        return print_json(rows)
    table = Table(
        "digest", "door", Column("name", overflow="fold"), "job", "received", Column("refused", overflow="fold")
    )
    for row in rows:
        cells = (row["digest"][:12], row["door"], row["name"], row["job_id"] or "", when(row["received_at"]))
        table.add_row(*cells, row["reason"] or "")
    return out.print(table if rows else "No manifests.")


@manifest_app.command("show")
def manifest_show(
    id: Annotated[str, typer.Argument(help="The beginning of its digest.")],  # noqa: A002
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one manifest with its bytes as they came."""
    with working(home) as (site, _):
        found = site.catalog.manifests(digest=id, limit=2)
    if len(found) != 1:
        raise NotFound(f"{'more than one manifest has' if found else 'no manifest has'} a digest that begins with {id}")
    if as_json:
        return print_json({**told_manifest(found[0]), "content": found[0].content.decode("utf-8", "backslashreplace")})
    out.print(f"{found[0].door} {found[0].name}: {found[0].reason or 'accepted'}")
    return print_text(found[0].content)


@manifest_app.command("parked")
def manifest_parked(home: Home = None, as_json: Json = False) -> None:
    """List what the archive says it has and nobody can place yet, with the reason."""
    fields = ("path", "key", "job_id", "reported_at", "reason")
    with working(home) as (site, _):
        rows = [{field: getattr(one, field) for field in fields} for one in site.catalog.parked()]
    if as_json:
        return print_json(rows)
    table = Table(Column("key", overflow="fold"), Column("archive", overflow="fold"), "job", "reported", "reason")
    for row in rows:
        table.add_row(row["key"], row["path"], row["job_id"], when(row["reported_at"]), row["reason"] or "")
    return out.print(table if rows else "Nothing is parked.")


@manifest_app.command("receive")
def manifest_receive(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Manifests, as JSON files.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take in manifests from files; those that were taken in before change nothing."""
    with working(home) as (site, _):
        outcomes = [pipeline.receive(site, one.read_bytes(), door="file", name=one.name) for one in files]
        outcomes += pipeline.settle(site)
    finish(outcomes, as_json=as_json)


def told_manifest(row: ArchiveManifest) -> dict[str, Any]:
    return row.model_dump(exclude={"content", "last_at"})


# --------------------------------------------------------------------------------------------------- policy and bridges


@policy_app.command("check")
def policy_check(home: Home = None, as_json: Json = False) -> None:
    """Warn of every lifecycle rule of the bucket that could delete what tape does not have."""
    with working(home) as (site, _):
        warnings = pipeline.policy_warnings(site)
    if as_json:
        print_json([vars(one) for one in warnings])
    elif warnings:
        table = Table("rule", "prefix", "after", "exports", "first", Column("what it could do", overflow="fold"))
        for one in warnings:
            first = when(one.first) if one.first else ""
            table.add_row(one.rule, one.prefix, one.after, f"{one.exports:,}", first, one.text)
        out.print(table)
    else:
        out.print("No rule of the bucket deletes what tape does not have.")
    if warnings:
        raise typer.Exit(1)


@bridge_app.command("amqp")
def bridge_amqp(
    *,
    exchange: Annotated[str, typer.Option(help="The fanout exchange of the archiver.")] = "surf-data-archive",
    queue: Annotated[str, typer.Option(help="Our durable queue.")] = "plateway",
    home: Home = None,
) -> None:
    """Take archive manifests from RabbitMQ until Ctrl-C; each is acknowledged when it is durable."""
    from plateway.bridges import amqp  # noqa: PLC0415  an extra

    with working(home) as (site, config):
        if config.amqp_url is None:
            raise Misconfigured("no RabbitMQ is named: set PLATEWAY_AMQP_URL")
        speak()
        amqp.run(site, config.amqp_url.get_secret_value(), exchange=exchange, queue=queue)


@bridge_app.command("redis")
def bridge_redis(
    *,
    group: Annotated[str, typer.Option(help="Our consumer group.")] = "plateway",
    consumer: Annotated[str | None, typer.Option(help="Our name in it; default: this machine's.")] = None,
    start: Annotated[
        str, typer.Option(help="Where a new group begins: 0 is the oldest entry, $ after the newest.")
    ] = "0",
    home: Home = None,
) -> None:
    """Turn events that DLM v2's instruments put into Redis into event files, until Ctrl-C."""
    from plateway.bridges import redis  # noqa: PLC0415  an extra

    config = settings.load(home=home)
    if config.redis_url is None:
        raise Misconfigured("no Redis is named: set PLATEWAY_REDIS_URL")
    speak()
    redis.run(config.root, config.redis_url.get_secret_value(), group=group, consumer=consumer, start=start)


def speak() -> None:
    """Show on standard error what a command does that runs until it is told to stop."""
    handler = log_handler("%(asctime)s %(name)s %(message)s", level=logging.INFO)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("pika").setLevel(logging.CRITICAL)
