"""``plateway bucket``: manage the buckets of an endpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
from rich.text import Text

from plateway import settings
from plateway.cli.bucket_options import BucketOptions, with_bucket_options
from plateway.cli.child_process import handle_signals
from plateway.cli.console import description_column, err, format_size, format_time, out, print_json, print_table
from plateway.cli.exit_codes import ExitCode
from plateway.cli.options import Json
from plateway.endpoint import Endpoint
from plateway.errors import NotFound, Refused, Rejected
from plateway.store import Stat
from plateway.store.admin import (
    Address,
    Buckets,
    TransferResult,
    Version,
    landing,
    temporary,
)

app = typer.Typer(no_args_is_help=True, help="Create, list, fill, copy, empty and remove buckets.")
lifecycle = typer.Typer(no_args_is_help=True, help="Show and replace the rules by which a bucket deletes objects.")

Url = Annotated[str, typer.Argument(metavar="s3://BUCKET[/KEY]")]
Bucket = Annotated[str, typer.Argument(metavar="s3://BUCKET")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Include everything in a folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would be deleted.")]
TypedName = Annotated[
    str | None, typer.Option("--name", help="The bucket's name again; required if a site keeps something in it.")
]


@app.command("mb")
@with_bucket_options
def make_buckets(
    options: BucketOptions, *, buckets: Annotated[list[str], typer.Argument(metavar="s3://BUCKET")]
) -> None:
    """Create buckets."""
    for url in buckets:
        name = parse_bucket(url)
        options.buckets.make(name)
        out.print(f"s3://{name}")


@app.command("ls")
@with_bucket_options
def list_objects(
    options: BucketOptions,
    *,
    url: Annotated[str | None, typer.Argument(metavar="s3://BUCKET[/KEY]")] = None,
    recursive: Recursive = False,
    as_json: Json = False,
) -> None:
    """List buckets, or the objects and folders in one."""
    if url is None:
        found = options.buckets.names()
        if as_json:
            return print_json([{"name": one.name, "created": one.created} for one in found])
        return print_table(("bucket", "created"), ((one.name, format_time(one.created)) for one in found))
    where = Address.parse(url)
    listed: Iterator[Stat | str] = options.buckets.find(where) if recursive else options.buckets.level(where)
    if as_json:
        return print_json(
            [
                {"folder": one}
                if isinstance(one, str)
                else {"key": one.key, "size": one.size, "etag": one.etag, "modified": one.modified}
                for one in listed
            ]
        )
    rows = (
        (one, "", "") if isinstance(one, str) else (one.key, format_size(one.size), format_time(one.modified))
        for one in listed
    )
    return print_table(("key", "size", "modified"), rows)


@app.command("du")
@with_bucket_options
def print_usage(options: BucketOptions, *, url: Url, as_json: Json = False) -> None:
    """Count objects and bytes in a bucket or folder."""
    usage = options.buckets.usage(Address.parse(url))
    if as_json:
        return print_json(asdict(usage))
    newest = f", newest {format_time(usage.newest)}" if usage.newest else ""
    total, largest = format_size(usage.size), format_size(usage.largest)
    return out.print(f"{usage.objects:,} objects, {total}, largest {largest}{newest}")


@app.command("put")
@with_bucket_options
def upload_files(
    options: BucketOptions,
    *,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files; with --recursive also directories.")],
    url: Url,
    recursive: Recursive = False,
    name: TypedName = None,
    as_json: Json = False,
) -> None:
    """Upload files.

    An address that ends with a slash, or is a bucket, is a folder; any other address is the key of the object.
    """
    where = Address.parse(url)
    options.confirm(where, name)  # uploads replace objects
    pairs = list(list_files(files, where, recursive=recursive))
    report_objects(options.buckets, "put", options.buckets.put(pairs), total=len(pairs), as_json=as_json)


@app.command("get")
@with_bucket_options
def download_objects(
    options: BucketOptions,
    *,
    url: Url,
    to: Annotated[Path, typer.Argument(metavar="PATH", help="Directory; for one object also a file.")] = Path(),
    recursive: Recursive = False,
    as_json: Json = False,
) -> None:
    """Download objects to files."""
    where = Address.parse(url)
    found = find_objects(options.buckets, where, recursive=recursive)
    single = not recursive and not to.is_dir()
    folders = [stat for stat in found if recursive and stat.key.endswith("/") and stat.size == 0]  # made by consoles
    targets = [
        (stat, Address(where.bucket, stat.key), (lambda: to) if single else partial(landing, stat.key, where, to))
        for stat in found
        if stat not in folders
    ]
    if folders and not as_json:
        err.print(f"{len(folders):,} empty objects whose keys end in a slash stand for folders; left out")
    report_objects(options.buckets, "get", options.buckets.get(targets), total=len(targets), as_json=as_json)


@app.command("cp")
@with_bucket_options
def copy_objects(
    options: BucketOptions,
    *,
    source: Annotated[str, typer.Argument(metavar="s3://BUCKET[/KEY]", help="Object or folder to copy.")],
    target: Annotated[str, typer.Argument(metavar="s3://BUCKET[/KEY]", help="Key of the copy, or a folder.")],
    recursive: Recursive = False,
    name: TypedName = None,
    as_json: Json = False,
) -> None:
    """Copy objects within the endpoint."""
    here, to = Address.parse(source), Address.parse(target)
    options.confirm(to, name)  # copies replace objects
    found = find_objects(options.buckets, here, recursive=recursive)
    folder = recursive or not to.key or to.key.endswith("/")
    pairs = [
        (stat, Address(here.bucket, stat.key), to.below(relative_key(stat.key, here)) if folder else to)
        for stat in found
    ]
    report_objects(options.buckets, "cp", options.buckets.copy(pairs), total=len(found), as_json=as_json)


@app.command("del")
@with_bucket_options
def delete_objects(
    options: BucketOptions,
    *,
    urls: Annotated[list[str], typer.Argument(metavar="s3://BUCKET/KEY")],
    recursive: Recursive = False,
    dry_run: DryRun = False,
    name: TypedName = None,
    as_json: Json = False,
) -> None:
    """Delete objects and verify that they are gone.

    Deletes a folder only with --recursive, and never keys that only share a prefix.
    """
    places = [Address.parse(url) for url in urls]
    found = {where: find_objects(options.buckets, where, recursive=recursive) for where in places}
    if dry_run:
        return report_dry_run(options.buckets, found, as_json=as_json)
    for where in places:
        options.confirm(where, name, whole=not where.folder)
    for bucket in {where.bucket for where in places}:
        if options.buckets.versioned(bucket):
            err.print(f"{bucket} keeps versions: deleted objects use space until `rb --force` or a rule removes them")
    done = chain.from_iterable(options.buckets.delete(*one) for one in found.items())
    return report_objects(options.buckets, "del", done, total=sum(map(len, found.values())), as_json=as_json)


@app.command("rb")
@with_bucket_options
def remove_bucket(
    options: BucketOptions,
    *,
    url: Bucket,
    force: Annotated[
        bool, typer.Option("--force", help="Also delete everything in it, all versions included.")
    ] = False,
    dry_run: DryRun = False,
    name: TypedName = None,
    as_json: Json = False,
) -> None:
    """Remove a bucket and verify that it is gone.

    Refuses to remove a bucket that is not empty, unless with --force.
    """
    where = Address(parse_bucket(url))
    if not force:
        options.buckets.vacant(where.bucket)
    if dry_run:
        find = options.buckets.versions if options.buckets.versioned(where.bucket) else options.buckets.find
        return report_dry_run(options.buckets, {where: list(find(where))}, as_json=as_json)
    options.confirm(where, name, whole=force)
    if force or as_json:
        done = options.buckets.clear(where.bucket) if force else ()
        report_objects(options.buckets, "del", done, as_json=as_json)
    options.buckets.remove(where.bucket)
    return None if as_json else out.print(f"s3://{where.bucket} removed")


@app.command("tag")
@with_bucket_options
def tag_object(
    options: BucketOptions,
    *,
    url: Url,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="New tags; without them: show the tags.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all tags.")] = False,
    as_json: Json = False,
) -> None:
    """Show or replace the tags of an object."""
    where = Address.parse(url)
    if tags or clear:
        pairs = [one.partition("=") for one in tags or ()]
        if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
            raise typer.BadParameter(f"{wrong[0]!r} is not NAME=VALUE")
        options.buckets.set_tags(where, {} if clear else {name: value for name, _, value in pairs})
    found = options.buckets.tags(where)
    return print_json(found) if as_json else print_table(("tag", "value"), found.items())


@lifecycle.command("show")
@with_bucket_options
def show_lifecycle(options: BucketOptions, *, url: Bucket) -> None:
    """Show the lifecycle rules of a bucket as JSON."""
    print_json({"Rules": list(options.buckets.lifecycle(parse_bucket(url)))})


@lifecycle.command("set")
@with_bucket_options
def set_lifecycle(
    options: BucketOptions,
    *,
    url: Bucket,
    rules: Annotated[
        Path,
        typer.Argument(metavar="RULES", help='JSON file as `aws s3api` reads it: {"Rules": …}; - is standard input.'),
    ],
    name: TypedName = None,
) -> None:
    """Replace the lifecycle rules of a bucket; an empty list removes them.

    `plateway bucket-policy check` lists rules that could delete exports.
    """
    try:
        document = json.loads(sys.stdin.read() if str(rules) == "-" else rules.read_text())
        wanted = document["Rules"] if isinstance(document, dict) else document
    except (OSError, ValueError, KeyError) as error:
        raise Rejected(f"{rules.name}: not a JSON document with Rules ({type(error).__name__})") from None
    bucket = parse_bucket(url)
    for rule in wanted:
        if "Expiration" in rule and rule.get("Status") != "Disabled":
            filters = rule.get("Filter", {})
            begins = str({**rule, **filters, **filters.get("And", {})}.get("Prefix", ""))
            options.refuse_held(bucket, partial(_would_expire, begins))
    if wanted:
        options.confirm(Address(bucket), name, held=False)  # rules delete objects
    options.buckets.set_lifecycle(bucket, wanted)
    print_json({"Rules": list(options.buckets.lifecycle(bucket))})


def _would_expire(prefix: str, path: str) -> bool:
    """Return whether a rule about a prefix is about a key, or about something in a folder."""
    return path.startswith(prefix) or (path.endswith("/") and prefix.startswith(path))


app.add_typer(lifecycle, name="lifecycle")


@app.command("run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@with_bucket_options
def run_command(
    options: BucketOptions,
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Start of the bucket's name.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="Command and its arguments, after --.")],
) -> None:
    """Run a command with a temporary bucket.

    The bucket is removed with its contents afterwards, also if the command fails or is interrupted.
    """
    with handle_signals() as child, temporary(options.buckets, name) as bucket:
        err.print(f"s3://{bucket}")
        code = child.run(command, settings.environment(bucket_environment(options.endpoint, bucket)))
    raise typer.Exit(code)


@app.command("selftest")
@with_bucket_options
def run_selftest(
    options: BucketOptions,
    *,
    url: Annotated[
        str | None, typer.Argument(metavar="s3://BUCKET[/KEY]", help="Test in here instead of in a new bucket.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test an endpoint: its features, and an export and restore.

    Uses simulated events, and removes everything that it wrote.
    """
    from plateway import selftest  # noqa: PLC0415  pipeline and numpy, which other commands do not need

    with handle_signals(), err.status("creating a place for the test") as status:
        within = Address.parse(url) if url else None
        report = selftest.run(options.endpoint, within=within, tell=lambda text: status.update(Text(text)))
    if as_json:
        print_json({**asdict(report), "good": report.good})
    else:
        print_table(
            ("capability", "supported", "detail", "so Plateway"),
            ((one.name, one.verdict, one.detail, one.use) for one in report.capabilities),
        )
        print_table(
            ("step", "result", "detail", "seconds"),
            ((one.name, one.result, one.detail, f"{one.seconds:.1f}") for one in report.steps),
        )
        out.print(report.summary)
    results = {step.result for step in report.steps}
    codes = {"damaged": ExitCode.DAMAGED, "failed": ExitCode.FAILED, "later": ExitCode.RETRY_LATER}
    for result, code in codes.items():
        if result in results:
            raise typer.Exit(code)


def bucket_environment(endpoint: Endpoint, bucket: str) -> dict[str, str | None]:
    """Return the environment variables of a command that uses a bucket; None: a variable to remove."""
    variables = {
        "PLATEWAY_BUCKET_URL": f"s3://{bucket}",
        "PLATEWAY_BYPASS_PROXY": "true" if endpoint.bypass_proxy else None,
        "AWS_ENDPOINT_URL": endpoint.url,
        "AWS_ENDPOINT_URL_S3": None,
        "AWS_REGION": endpoint.region,
        "AWS_DEFAULT_REGION": endpoint.region,
    }
    if endpoint.access_key_id and endpoint.secret_access_key:
        token = endpoint.session_token
        variables["AWS_ACCESS_KEY_ID"] = endpoint.access_key_id
        variables["AWS_SECRET_ACCESS_KEY"] = endpoint.secret_access_key.get_secret_value()
        variables["AWS_SESSION_TOKEN"] = token.get_secret_value() if token else None
    return variables


# ------------------------------------------------------------------------------------------------ what addresses name


def parse_bucket(url: str) -> str:
    """Parse the address of a bucket, and return its name.

    Raises:
        Rejected: it is no address, or has a key.
    """
    where = Address.parse(url)
    if where.key:
        raise Rejected(f"{url} is inside a bucket; the bucket is s3://{where.bucket}")
    return where.bucket


def find_objects(buckets: Buckets, where: Address, *, recursive: bool) -> list[Stat]:
    """List the object at an address; if recursive, also everything in the folder.

    Raises:
        NotFound: nothing is there.
        Refused: it is a folder, and not recursive.
    """
    if recursive:
        found = list(buckets.find(where))
    else:
        stat = buckets.store(where.bucket).stat(where.key) if where.key and not where.key.endswith("/") else None
        found = [stat] if stat else []
        if not found and next(buckets.find(where), None):
            raise Refused(f"{where} is a folder: add --recursive")
    if not found:
        raise NotFound(f"{where}: no such object or folder")
    return found


def list_files(files: Iterable[Path], where: Address, *, recursive: bool) -> Iterator[tuple[Path, Address]]:
    """List files, and those in directories if recursive, each with the address that it is uploaded to.

    Raises:
        NotFound: no such file.
        Refused: it is a directory, and not recursive.
    """
    into_folder = recursive or where.key == "" or where.key.endswith("/")
    for path in files:
        if path.is_dir():
            if not recursive:
                raise Refused(f"{path.name} is a directory: add --recursive")
            inner = (one for one in sorted(path.rglob("*")) if one.is_file() and not one.is_symlink())
            yield from ((one, where.below(f"{path.name}/{one.relative_to(path)}")) for one in inner)
        elif not path.is_file():
            raise NotFound(f"{path.name}: no such file")
        else:
            yield path, where.below(path.name) if into_folder else where


def relative_key(key: str, where: Address) -> str:
    """Return a key relative to the folder at an address; of the object at the address, its name."""
    return key.rpartition("/")[2] if key == where.key else key.removeprefix(where.folder)


# -------------------------------------------------------------------------------------------------------------- results


class MovedColumn(ProgressColumn):
    """The number of bytes uploaded or downloaded, those of unfinished objects included."""

    def __init__(self, buckets: Buckets) -> None:
        super().__init__()
        self._buckets = buckets

    def render(self, task: Task) -> Text:
        """Format the number of bytes."""
        return Text(format_size(self._buckets.moved or None))


def report_objects(
    buckets: Buckets, verb: str, done: Iterable[TransferResult], *, as_json: bool, total: int | None = None
) -> None:
    """Process objects behind a progress bar, and print the results; exit with 3 if some failed, with 1 if all did."""
    columns = (description_column(), BarColumn(), MofNCompleteColumn(), MovedColumn(buckets), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        results = list(progress.track(done, total=total, description=verb))
    failed = [one for one in results if one.problem]
    if as_json:
        print_json([{"url": str(one.address), "size": one.size, "problem": one.problem or None} for one in results])
    else:
        for one in failed:
            err.print(one.problem, style="red", soft_wrap=True)
        count, moved = len(results) - len(failed), format_size(sum(one.size for one in results))
        out.print(f"{verb}: {count:,} objects, {moved}" + (f"; {len(failed):,} failed" if failed else ""))
    if failed:
        raise typer.Exit(ExitCode.FAILED if len(failed) == len(results) else ExitCode.PARTLY_FAILED)


def report_dry_run(buckets: Buckets, found: Mapping[Address, Sequence[Stat | Version]], *, as_json: bool) -> None:
    """Print what would be deleted."""
    done = [
        TransferResult(Address(where.bucket, stat.key), stat.size) for where, stats in found.items() for stat in stats
    ]
    report_objects(buckets, "would delete", done, as_json=as_json)
