"""``plateway bucket``: look after the buckets of an endpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, wraps
from inspect import Signature, signature
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from plateway import settings
from plateway.cli.attended import attended
from plateway.cli.shell import Home, Json, app, err, label, out, print_json, size, when
from plateway.endpoint import Endpoint
from plateway.errors import NotFound, Refused, Rejected
from plateway.keys import MARKER_FILE
from plateway.local.project import import_from_project
from plateway.names import shown
from plateway.store import Stat
from plateway.store.admin import (
    Address,
    Buckets,
    Done,
    Version,
    landing,
    temporary,
)

bucket = typer.Typer(no_args_is_help=True, help="Make, fill, list, copy, empty and remove buckets.")
lifecycle = typer.Typer(no_args_is_help=True, help="The rules by which a bucket deletes objects by itself.")
app.add_typer(bucket, name="bucket")
bucket.add_typer(lifecycle, name="lifecycle")

At = Annotated[str | None, typer.Option("--endpoint-url", help="Where S3 is, if not where the settings say.")]
Block = Annotated[
    str | None, typer.Option("--block", help="A bucket of buckets.toml, or a Bucket block in Prefect: its endpoint.")
]
Url = Annotated[str, typer.Argument(metavar="s3://BUCKET[/KEY]")]
Urls = Annotated[list[str], typer.Argument(metavar="s3://BUCKET/KEY…")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="A whole folder, too.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted.")]
Typed = Annotated[str | None, typer.Option("--name", help="The bucket's name once more, where exports are kept in it.")]


@dataclass(frozen=True)
class BucketOptions:
    """Where the buckets of a command are."""

    home: Home = None
    endpoint_url: At = None
    block: Block = None

    @cached_property
    def buckets(self) -> Buckets:
        return Buckets(self.endpoint)

    @cached_property
    def endpoint(self) -> Endpoint:
        found = self._named if self.block is not None else settings.load(home=self.home).endpoint
        return replace(found, url=self.endpoint_url) if self.endpoint_url else found

    @property
    def _named(self) -> Endpoint:
        known = settings.load(home=self.home).buckets.get(str(self.block))
        if known is not None:
            return known.endpoint
        read: Endpoint = import_from_project("blocks.bucket").load(str(self.block))
        return read

    def guard(self, where: Address, typed: str | None, *, whole: bool = False) -> None:
        """Refuse to delete or replace what a site keeps, unless the bucket's name was typed out.

        A site's marker in the bucket says so, whatever catalogue is at hand; ``whole`` buckets are asked for as well
        where there is no catalogue at all.

        Raises:
            Refused: it was not, or was mistyped.
        """
        why = self._claims(where, whole=whole)
        if not why:
            return
        if typed is None and sys.stdin.isatty():
            typed = typer.prompt(f"{shown(why)}. Type the bucket's name to go on", err=True)
        if typed != where.bucket:
            raise Refused(f"{why}: say --name {where.bucket} to go on")

    def _claims(self, where: Address, *, whole: bool) -> str:
        """Return why somebody may miss what is in a bucket; empty: nothing speaks for that."""
        config = settings.load(home=self.home)
        if (config.archive_target or "").startswith((f"s3://{where.bucket}/", f"s3://{where.bucket}?")) or (
            config.archive_target == f"s3://{where.bucket}"
        ):
            return f"the archive is in {where.bucket}"
        known = config.database_url is not None or (config.home / "catalogue.db").exists()
        kept = self._count_exports(config, where.bucket) if known else 0
        if kept:
            return f"the catalogue knows of {kept:,} exports in {where.bucket}"
        if (marker := next(self.buckets.markers(where, deep=whole), None)) is not None:
            what = "an archive" if marker.endswith(MARKER_FILE) else "exports"
            return f"a site keeps {what} in {where.bucket}, which carries its marker {marker}"
        if whole and not known and next(self.buckets.find(Address(where.bucket)), None) is not None:
            return f"there is no catalogue here that could tell whether a site keeps anything in {where.bucket}"
        return ""

    def _count_exports(self, config: settings.Settings, name: str) -> int:
        from plateway.catalog import Catalog  # noqa: PLC0415  SQLAlchemy, which takes longer than most of these commands

        with closing(Catalog(config.catalog_url)) as catalog:
            return catalog.export_count(name) if catalog.current() else 0


def placed(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where its buckets are; its first argument is made of them."""
    _, *own = signature(verb, eval_str=True).parameters.values()
    shared = signature(BucketOptions, eval_str=True).parameters

    @wraps(verb)
    def command(**told: Any) -> None:
        verb(BucketOptions(**{name: told.pop(name) for name in shared}), **told)

    options = [one.replace(kind=one.KEYWORD_ONLY) for one in shared.values()]
    vars(command)["__signature__"] = Signature([*own, *options])
    return command


@bucket.command()
@placed
def mb(place: BucketOptions, *, buckets: Urls) -> None:
    """Make buckets."""
    for name in buckets:
        place.buckets.make(whole(name))
        out.print(f"s3://{whole(name)}")


@bucket.command()
@placed
def ls(
    place: BucketOptions,
    *,
    url: Annotated[str | None, typer.Argument(metavar="[s3://BUCKET[/KEY]]")] = None,
    recursive: Recursive = False,
    as_json: Json = False,
) -> None:
    """List buckets, or what is in one."""
    if url is None:
        found = place.buckets.names()
        if as_json:
            return print_json([{"name": one.name, "created": one.created} for one in found])
        return show(("bucket", "made"), ((one.name, when(one.created)) for one in found))
    where = Address.parse(url)
    listed: Iterator[Stat | str] = place.buckets.find(where) if recursive else place.buckets.level(where)
    if as_json:
        return print_json([told(one) for one in listed])
    return show(("key", "size", "changed"), (row(one) for one in listed))


@bucket.command()
@placed
def du(place: BucketOptions, *, url: Url, as_json: Json = False) -> None:
    """Add up what lies in a bucket or a folder."""
    found = place.buckets.usage(Address.parse(url))
    if as_json:
        return print_json(asdict(found))
    newest = f", newest {when(found.newest)}" if found.newest else ""
    return out.print(f"{found.objects:,} objects, {size(found.size)}, largest {size(found.largest)}{newest}")


@bucket.command()
@placed
def put(
    place: BucketOptions,
    *,
    files: Annotated[list[Path], typer.Argument(help="Files, or with --recursive directories.")],
    url: Url,
    recursive: Recursive = False,
    name: Typed = None,
    as_json: Json = False,
) -> None:
    """Store files. An address that ends in a slash, or a bucket, is a folder; anything else is the object's key."""
    where = Address.parse(url)
    place.guard(where, name)  # what is there under a key is replaced
    chosen = list(sources(files, where, recursive=recursive))
    finish(place.buckets, "put", place.buckets.put(chosen), total=len(chosen), as_json=as_json)


@bucket.command()
@placed
def get(
    place: BucketOptions,
    *,
    url: Url,
    to: Annotated[Path, typer.Argument(help="A directory; or a file, for one object.")] = Path(),
    recursive: Recursive = False,
    as_json: Json = False,
) -> None:
    """Fetch objects into files."""
    where = Address.parse(url)
    found = objects(place.buckets, where, recursive=recursive)
    single = not recursive and not to.is_dir()
    placed = [(stat, Address(where.bucket, stat.key), to if single else landing(stat.key, where, to)) for stat in found]
    finish(place.buckets, "get", place.buckets.get(placed), total=len(found), as_json=as_json)


@bucket.command()
@placed
def cp(
    place: BucketOptions,
    *,
    source: Url,
    target: Url,
    recursive: Recursive = False,
    name: Typed = None,
    as_json: Json = False,
) -> None:
    """Copy objects within the endpoint."""
    here, to = Address.parse(source), Address.parse(target)
    place.guard(to, name)  # the same
    found = objects(place.buckets, here, recursive=recursive)
    folder = recursive or not to.key or to.key.endswith("/")
    pairs = [
        (stat, Address(here.bucket, stat.key), to.below(below(stat.key, here)) if folder else to) for stat in found
    ]
    finish(place.buckets, "cp", place.buckets.copy(pairs), total=len(found), as_json=as_json)


@bucket.command("del")
@placed
def delete(
    place: BucketOptions,
    *,
    urls: Urls,
    recursive: Recursive = False,
    dry_run: DryRun = False,
    name: Typed = None,
    as_json: Json = False,
) -> None:
    """Delete objects, and look that they are gone. A folder only with --recursive, never what just begins alike."""
    places = [Address.parse(url) for url in urls]
    found = {where: objects(place.buckets, where, recursive=recursive) for where in places}
    if dry_run:
        return rehearse(place.buckets, found, as_json=as_json)
    for where in places:
        place.guard(where, name, whole=not where.folder)
    for one in {where.bucket for where in places}:
        if place.buckets.versioned(one):
            err.print(f"{one} keeps versions: what is deleted takes room until `rb --force` or a rule removes them")
    done = chain.from_iterable(place.buckets.delete(*one) for one in found.items())
    return finish(place.buckets, "del", done, total=sum(map(len, found.values())), as_json=as_json)


@bucket.command()
@placed
def rb(
    place: BucketOptions,
    *,
    url: Url,
    force: Annotated[bool, typer.Option("--force", help="With all that is in it.")] = False,
    dry_run: DryRun = False,
    name: Typed = None,
    as_json: Json = False,
) -> None:
    """Remove a bucket; one that is not empty only with --force, with all versions where it keeps them."""
    where = Address(whole(url))
    if not force:
        place.buckets.vacant(where.bucket)
    if dry_run:
        kept = place.buckets.versions if place.buckets.versioned(where.bucket) else place.buckets.find
        return rehearse(place.buckets, {where: list(kept(where))}, as_json=as_json)
    place.guard(where, name, whole=force)
    if force or as_json:
        finish(place.buckets, "del", place.buckets.clear(where.bucket) if force else (), as_json=as_json)
    place.buckets.remove(where.bucket)
    return None if as_json else out.print(f"s3://{where.bucket} is gone")


@bucket.command()
@placed
def tag(
    place: BucketOptions,
    *,
    url: Url,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]…", help="None: show them.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all tags away.")] = False,
    as_json: Json = False,
) -> None:
    """Show an object's tags, or replace them."""
    where = Address.parse(url)
    if tags or clear:
        pairs = [one.partition("=") for one in tags or ()]
        if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
            raise typer.BadParameter(f"{wrong[0]!r} is not NAME=VALUE")
        place.buckets.set_tags(where, {} if clear else {name: value for name, _, value in pairs})
    found = place.buckets.tags(where)
    return print_json(found) if as_json else show(("tag", "value"), found.items())


@lifecycle.command("show")
@placed
def show_lifecycle(place: BucketOptions, *, url: Url) -> None:
    """Show a bucket's rules as JSON."""
    print_json({"Rules": list(place.buckets.lifecycle(whole(url)))})


@lifecycle.command("set")
@placed
def set_lifecycle(
    place: BucketOptions,
    *,
    url: Url,
    rules: Annotated[Path, typer.Argument(help='A JSON file as `aws s3api` takes it: {"Rules": […]}; - reads stdin.')],
    name: Typed = None,
) -> None:
    """Replace a bucket's rules; an empty list takes them away. See `plateway bucket-policy check`."""
    try:
        told = json.loads(sys.stdin.read() if str(rules) == "-" else rules.read_text())
        wanted = told["Rules"] if isinstance(told, dict) else told
    except (OSError, ValueError, KeyError) as error:
        raise Rejected(f"{rules.name}: no JSON document with Rules ({type(error).__name__})") from None
    if wanted:
        place.guard(Address(whole(url)), name)  # rules delete
    place.buckets.set_lifecycle(whole(url), wanted)
    print_json({"Rules": list(place.buckets.lifecycle(whole(url)))})


@bucket.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@placed
def run(
    place: BucketOptions,
    *,
    name: Annotated[str, typer.Argument(help="What the bucket's name begins with.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…")],
) -> None:
    """Run a command with a bucket of its own, which is removed afterwards, whatever happens."""
    with attended() as attendance, temporary(place.buckets, name) as made:
        err.print(f"s3://{made}")
        code = attendance.run(command, settings.environment(environment(place.endpoint, made)))
    raise typer.Exit(code)


@bucket.command()
@placed
def selftest(
    place: BucketOptions,
    *,
    url: Annotated[
        str | None, typer.Argument(metavar="[s3://BUCKET[/KEY]]", help="Try it in here, not in a new bucket.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try what the endpoint supports, and take simulated events into a bucket and back; nothing is left of it."""
    from plateway import selftest as trial  # noqa: PLC0415  it draws with numpy, which others need not wait for

    with attended(), err.status("a place to try it") as status:
        within = Address.parse(url) if url else None
        report = trial.run(place.endpoint, within=within, tell=lambda text: status.update(Text(text)))
    if as_json:
        print_json({**asdict(report), "good": report.good})
    else:
        show(
            ("what", "", "tried", "so Plateway"),
            ((one.name, one.verdict, one.detail, one.use) for one in report.capabilities),
        )
        show(("round", "", "", "s"), ((one.name, one.result, one.detail, f"{one.seconds:.1f}") for one in report.steps))
        out.print(report.summary)
    for result, code in (("damaged", 4), ("failed", 1), ("later", 5)):
        if any(step.result == result for step in report.steps):
            raise typer.Exit(code)


# ------------------------------------------------------------------------------------------------------------- helpers


def whole(url: str) -> str:
    where = Address.parse(url)
    if where.key:
        raise Rejected(f"{url} is in a bucket; a bucket is s3://{where.bucket}")
    return where.bucket


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


def rehearse(buckets: Buckets, found: Mapping[Address, Sequence[Stat | Version]], *, as_json: bool) -> None:
    done = [Done(Address(where.bucket, stat.key), stat.size) for where, stats in found.items() for stat in stats]
    finish(buckets, "would delete", done, as_json=as_json)


class Moved(ProgressColumn):
    """Bytes that went from or to files, also of those that are still on their way."""

    def __init__(self, buckets: Buckets) -> None:
        super().__init__()
        self._buckets = buckets

    def render(self, task: Task) -> Text:
        return Text(size(self._buckets.moved or None))


def finish(buckets: Buckets, what: str, done: Iterable[Done], *, as_json: bool, total: int | None = None) -> None:
    """Show progress, then what came of it; exit 3 where some failed, 1 where all did."""
    columns = (label(), BarColumn(), MofNCompleteColumn(), Moved(buckets), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        outcomes = list(progress.track(done, total=total, description=what))
    failed = [one for one in outcomes if one.problem]
    if as_json:
        print_json([{"url": str(one.address), "size": one.size, "problem": one.problem or None} for one in outcomes])
    else:
        for one in failed:
            err.print(one.problem, style="red", soft_wrap=True)
        good = len(outcomes) - len(failed)
        moved = size(sum(one.size for one in outcomes))
        out.print(f"{what}: {good:,} objects, {moved}" + (f"; {len(failed):,} failed" if failed else ""))
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


def environment(where: Endpoint, made: str) -> dict[str, str | None]:
    """Say what a command finds in its environment; None is what would lead it elsewhere."""
    given = {
        "PLATEWAY_BUCKET_URL": f"s3://{made}",
        "PLATEWAY_BYPASS_PROXY": "true" if where.bypass_proxy else None,
        "AWS_ENDPOINT_URL": where.url,
        "AWS_ENDPOINT_URL_S3": None,
        "AWS_REGION": where.region,
        "AWS_DEFAULT_REGION": where.region,
    }
    if where.access_key_id and where.secret_access_key:
        given["AWS_ACCESS_KEY_ID"] = where.access_key_id
        given["AWS_SECRET_ACCESS_KEY"] = where.secret_access_key.get_secret_value()
        given["AWS_SESSION_TOKEN"] = where.session_token.get_secret_value() if where.session_token else None
    return given
