"""``plateway bucket``: look after the buckets of an endpoint."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from plateway import settings
from plateway.buckets import Address, Buckets, Done, landing, temporary
from plateway.catalog import Catalog
from plateway.cli.app import Home, Json, app, err, out, print_json, size, when
from plateway.errors import Misconfigured, NotFound, Refused, Rejected
from plateway.pipeline.line import endpoint
from plateway.store import Endpoint, Stat

bucket = typer.Typer(no_args_is_help=True, help="Make, fill, list, copy, empty and remove buckets.")
lifecycle = typer.Typer(no_args_is_help=True, help="The rules by which a bucket deletes objects by itself.")
app.add_typer(bucket, name="bucket")
bucket.add_typer(lifecycle, name="lifecycle")

Url = Annotated[str, typer.Argument(metavar="s3://BUCKET[/KEY]")]
Urls = Annotated[list[str], typer.Argument(metavar="s3://BUCKET/KEY…")]
At = Annotated[str | None, typer.Option("--endpoint-url", help="Where S3 is, if not where the settings say.")]
Block = Annotated[str | None, typer.Option("--block", help="A Bucket block in Prefect: its endpoint and credentials.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="A whole folder, too.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted.")]
Typed = Annotated[str | None, typer.Option("--name", help="The bucket's name once more, where exports are kept in it.")]


@bucket.command()
def mb(*, buckets: Urls, home: Home = None, endpoint_url: At = None, block: Block = None) -> None:
    """Make buckets."""
    there = reached(home, endpoint_url, block)
    for name in buckets:
        there.make(whole(name))
        out.print(f"s3://{whole(name)}")


@bucket.command()
def ls(
    *,
    url: Annotated[str | None, typer.Argument(metavar="[s3://BUCKET[/KEY]]")] = None,
    recursive: Recursive = False,
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
    as_json: Json = False,
) -> None:
    """List buckets, or what is in one."""
    there = reached(home, endpoint_url, block)
    if url is None:
        found = there.names()
        if as_json:
            return print_json([{"name": one.name, "created": one.created} for one in found])
        return show(("bucket", "made"), ((one.name, when(one.created)) for one in found))
    where = Address.parse(url)
    listed: Iterator[Stat | str] = there.find(where) if recursive else there.level(where)
    if as_json:
        return print_json([told(one) for one in listed])
    return show(("key", "size", "changed"), (row(one) for one in listed))


@bucket.command()
def du(*, url: Url, home: Home = None, endpoint_url: At = None, block: Block = None, as_json: Json = False) -> None:
    """Add up what lies in a bucket or a folder."""
    found = reached(home, endpoint_url, block).usage(Address.parse(url))
    if as_json:
        return print_json(asdict(found))
    newest = f", newest {when(found.newest)}" if found.newest else ""
    return out.print(f"{found.objects:,} objects, {size(found.size)}, largest {size(found.largest)}{newest}")


@bucket.command()
def put(
    *,
    files: Annotated[list[Path], typer.Argument(help="Files, or with --recursive directories.")],
    url: Url,
    recursive: Recursive = False,
    name: Typed = None,
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
    as_json: Json = False,
) -> None:
    """Store files. An address that ends in a slash, or a bucket, is a folder; anything else is the object's key."""
    there, where = reached(home, endpoint_url, block), Address.parse(url)
    guard(home, where.bucket, name)  # what is there under a key is replaced
    chosen = list(sources(files, where, recursive=recursive))
    finish("put", there.put(chosen), [path.stat().st_size for path, _ in chosen], as_json=as_json)


@bucket.command()
def get(
    *,
    url: Url,
    to: Annotated[Path, typer.Argument(help="A directory; or a file, for one object.")] = Path(),
    recursive: Recursive = False,
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
    as_json: Json = False,
) -> None:
    """Fetch objects into files."""
    there, where = reached(home, endpoint_url, block), Address.parse(url)
    found = objects(there, where, recursive=recursive)
    single = not recursive and not to.is_dir()
    placed = [(stat, Address(where.bucket, stat.key), to if single else landing(stat.key, where, to)) for stat in found]
    finish("get", there.get(placed), [stat.size for stat in found], as_json=as_json)


@bucket.command()
def cp(
    *,
    source: Url,
    target: Url,
    recursive: Recursive = False,
    name: Typed = None,
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
    as_json: Json = False,
) -> None:
    """Copy objects within the endpoint."""
    there, here, to = reached(home, endpoint_url, block), Address.parse(source), Address.parse(target)
    guard(home, to.bucket, name)  # the same
    found = objects(there, here, recursive=recursive)
    folder = recursive or not to.key or to.key.endswith("/")
    pairs = [
        (stat, Address(here.bucket, stat.key), to.below(below(stat.key, here)) if folder else to) for stat in found
    ]
    finish("cp", there.copy(pairs), [stat.size for stat in found], as_json=as_json)


@bucket.command("del")
def delete(
    *,
    urls: Urls,
    recursive: Recursive = False,
    dry_run: DryRun = False,
    name: Typed = None,
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
    as_json: Json = False,
) -> None:
    """Delete objects, and look that they are gone. A folder only with --recursive, never what just begins alike."""
    there, places = reached(home, endpoint_url, block), [Address.parse(url) for url in urls]
    found = {where: objects(there, where, recursive=recursive) for where in places}
    if not dry_run:
        for one in {where.bucket for where in places}:
            guard(home, one, name)
    done = rehearsed(found) if dry_run else chain.from_iterable(there.delete(*one) for one in found.items())
    finish("would delete" if dry_run else "del", done, [stat.size for some in found.values() for stat in some],
           as_json=as_json)  # fmt: skip


@bucket.command()
def rb(
    *,
    url: Url,
    force: Annotated[bool, typer.Option("--force", help="With all that is in it.")] = False,
    dry_run: DryRun = False,
    name: Typed = None,
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
    as_json: Json = False,
) -> None:
    """Remove a bucket; one that is not empty only with --force."""
    there, one = reached(home, endpoint_url, block), whole(url)
    where = Address(one)
    if dry_run:
        return finish("would delete", rehearsed({where: list(there.find(where))}), [], as_json=as_json)
    guard(home, one, name)
    if force:
        finish("del", there.clear(one), [], as_json=as_json)
    there.remove(one)
    return None if as_json else out.print(f"s3://{one} is gone")


@bucket.command()
def tag(
    *,
    url: Url,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]…", help="None: show them.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all tags away.")] = False,
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
    as_json: Json = False,
) -> None:
    """Show an object's tags, or replace them."""
    there, where = reached(home, endpoint_url, block), Address.parse(url)
    if tags or clear:
        pairs = [one.partition("=") for one in tags or ()]
        if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
            raise typer.BadParameter(f"{wrong[0]!r} is not NAME=VALUE")
        there.set_tags(where, {} if clear else {name: value for name, _, value in pairs})
    found = there.tags(where)
    return print_json(found) if as_json else show(("tag", "value"), found.items())


@lifecycle.command("show")
def show_lifecycle(*, url: Url, home: Home = None, endpoint_url: At = None, block: Block = None) -> None:
    """Show a bucket's rules as JSON."""
    print_json({"Rules": list(reached(home, endpoint_url, block).lifecycle(whole(url)))})


@lifecycle.command("set")
def set_lifecycle(
    *,
    url: Url,
    rules: Annotated[Path, typer.Argument(help='A JSON file as `aws s3api` takes it: {"Rules": […]}; - reads stdin.')],
    name: Typed = None,
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
) -> None:
    """Replace a bucket's rules; an empty list takes them away. See `plateway bucket-policy check`."""
    there = reached(home, endpoint_url, block)
    try:
        told = json.loads(sys.stdin.read() if str(rules) == "-" else rules.read_text())
        wanted = told["Rules"] if isinstance(told, dict) else told
    except (OSError, ValueError, KeyError) as error:
        raise Rejected(f"{rules.name}: no JSON document with Rules ({type(error).__name__})") from None
    if wanted:
        guard(home, whole(url), name)  # rules delete
    there.set_lifecycle(whole(url), wanted)
    print_json({"Rules": list(there.lifecycle(whole(url)))})


@bucket.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    *,
    name: Annotated[str, typer.Argument(help="What the bucket's name begins with.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…")],
    home: Home = None,
    endpoint_url: At = None,
    block: Block = None,
) -> None:
    """Run a command with a bucket of its own, which is removed afterwards, whatever happens."""
    there, where = reached(home, endpoint_url, block), reach(home, endpoint_url, block)
    with temporary(there, name) as made:
        err.print(f"s3://{made}")
        code = attended(command, settings.environment(environment(where, made)))
    raise typer.Exit(code)


# ------------------------------------------------------------------------------------------------------------- helpers


def reach(home: Path | None, endpoint_url: str | None, block: str | None) -> Endpoint:
    """Say which endpoint is meant, and who asks."""
    if block is not None:
        from blocks import bucket as blocks  # noqa: PLC0415  Prefect, which other commands need not wait for

        try:
            found = blocks.endpoint(blocks.Bucket.load(block))  # type: ignore[arg-type]  # no async client here
        except ValueError as error:
            raise NotFound(f"there is no Bucket block {block!r} in Prefect") from error
    else:
        found = endpoint(settings.load(home=home))
    return replace(found, url=endpoint_url) if endpoint_url else found


def reached(home: Path | None, endpoint_url: str | None, block: str | None) -> Buckets:
    return Buckets(reach(home, endpoint_url, block))


def whole(url: str) -> str:
    where = Address.parse(url)
    if where.key:
        raise Rejected(f"{url} is in a bucket; a bucket is s3://{where.bucket}")
    return where.bucket


def guard(home: Path | None, name: str, typed: str | None) -> None:
    """Let nothing be deleted or replaced where the catalogue knows of exports, unless the bucket's name was typed out.

    Raises:
        Refused: it was not, or was mistyped.
    """
    config = settings.load(home=home)
    if config.database_url is None and not (config.home / "catalogue.db").exists():
        return
    with closing(Catalog(config.catalog_url)) as catalog:
        kept = catalog.export_count(name) if catalog.current() else 0
    if not kept:
        return
    if typed is None and sys.stdin.isatty():
        typed = typer.prompt(f"The catalogue knows of {kept:,} exports in {name}. Type its name to go on", err=True)
    if typed != name:
        raise Refused(f"the catalogue knows of {kept:,} exports in {name}: say --name {name} to go on")


def objects(there: Buckets, where: Address, *, recursive: bool) -> list[Stat]:
    """Find what an address means.

    Raises:
        NotFound: nothing is there. Refused: it is a folder, and folders were not asked for.
    """
    if recursive:
        found = list(there.find(where))
    else:
        stat = there.store(where.bucket).stat(where.key) if where.key and not where.key.endswith("/") else None
        found = [stat] if stat else []
        if not found and next(there.find(where), None):
            raise Refused(f"{where} is a folder: say --recursive")
    if not found:
        raise NotFound(f"{where}: nothing is there")
    return found


def sources(files: Iterable[Path], where: Address, *, recursive: bool) -> Iterator[tuple[Path, Address]]:
    several = where.key == "" or where.key.endswith("/")
    for path in files:
        if path.is_dir():
            if not recursive:
                raise Refused(f"{path.name} is a directory: say --recursive")
            inner = (one for one in sorted(path.rglob("*")) if one.is_file() and not one.is_symlink())
            yield from ((one, where.below(f"{path.name}/{one.relative_to(path)}")) for one in inner)
        elif not path.is_file():
            raise NotFound(f"{path.name}: no such file")
        else:
            yield path, where.below(path.name) if several or recursive else where


def below(key: str, where: Address) -> str:
    return key.rpartition("/")[2] if key == where.key else key.removeprefix(where.folder)


def rehearsed(found: dict[Address, list[Stat]]) -> Iterator[Done]:
    for where, stats in found.items():
        yield from (Done(Address(where.bucket, stat.key), stat.size) for stat in stats)


def finish(what: str, done: Iterable[Done], sizes: list[int], *, as_json: bool) -> None:
    """Show progress, then what came of it; exit 3 where some failed, 1 where all did."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), DownloadColumn(),
               TimeElapsedColumn())  # fmt: skip
    outcomes, moved = [], 0
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task(what, total=len(sizes) or None)
        for one in done:
            outcomes.append(one)
            moved += one.size
            progress.advance(bar)
    failed = [one for one in outcomes if one.problem]
    if as_json:
        print_json([{"url": str(one.address), "size": one.size, "problem": one.problem or None} for one in outcomes])
    else:
        for one in failed:
            err.print(one.problem, style="red", soft_wrap=True)
        good = len(outcomes) - len(failed)
        out.print(f"{what}: {good:,} objects, {size(moved)}" + (f"; {len(failed):,} failed" if failed else ""))
    if failed:
        raise typer.Exit(1 if len(failed) == len(outcomes) else 3)


def show(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(*(Column(title, overflow="fold") for title in titles))
    for one in rows:
        table.add_row(*one)
    out.print(table)


def row(one: Stat | str) -> tuple[str, str, str]:
    return (one, "", "") if isinstance(one, str) else (one.key, size(one.size), when(one.modified))


def told(one: Stat | str) -> dict[str, Any]:
    if isinstance(one, str):
        return {"folder": one}
    return {"key": one.key, "size": one.size, "etag": one.etag, "modified": one.modified}


def environment(where: Endpoint, made: str) -> dict[str, str]:
    """What a command finds in its environment."""
    secret, token = where.secret_access_key, where.session_token
    given = {
        "PLATEWAY_BUCKET_URL": f"s3://{made}",
        "AWS_ENDPOINT_URL": where.url,
        "AWS_ACCESS_KEY_ID": where.access_key_id,
        "AWS_SECRET_ACCESS_KEY": secret and secret.get_secret_value(),
        "AWS_SESSION_TOKEN": token and token.get_secret_value(),
        "AWS_REGION": where.region,
        "AWS_DEFAULT_REGION": where.region,
    }
    return {name: value for name, value in given.items() if value}


def attended(command: list[str], env: dict[str, str]) -> int:
    """Run a command to its end, passing on what would end us; its exit code is ours."""
    try:
        child = subprocess.Popen(command, env=env)
    except OSError as error:
        raise Misconfigured(f"{command[0]}: {error.strerror}") from None
    with passing(child.send_signal):
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def passing(tell: Callable[[int], None]) -> Iterator[None]:
    """Hand signals on; from then on nothing ends us but the end of our work."""
    kinds = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    for kind in kinds:
        signal.signal(kind, lambda number, _frame: tell(number))
    yield
    for kind in kinds:
        signal.signal(kind, signal.SIG_IGN)
