"""``plateway config``: settings, and buckets that Prefect knows."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.table import Table

from plateway import origins, settings, settings_file
from plateway.cli.console import out, print_json, print_table, print_text
from plateway.cli.options import Home, Json
from plateway.endpoint import Bucket, Endpoint
from plateway.errors import Misconfigured, NotFound
from plateway.local.project import import_from_project
from plateway.local.supervisor import write_private

app = typer.Typer(
    no_args_is_help=True, help="Show settings and where their values come from, and import those of other systems."
)


@app.command("show")
def show_settings(home: Home = None, as_json: Json = False) -> None:
    """Show every setting, its value and where the value comes from; secrets are masked."""
    rows = settings.explain(home=home)
    if as_json:
        return print_json(rows)
    table = Table("setting", "value", "from", "meaning")
    for row in rows:
        table.add_row(row["setting"], str(row["value"]), row["source"], row["meaning"])
    return out.print(table)


@app.command("import")
def import_file(
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A config.yml, .s3cfg, AWS profile file, .env or storage.yaml.")
    ],
    bucket: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write a table of this name to buckets.toml, not settings.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="s3://BUCKET[/PREFIX]", help="The bucket, where the file names none.")
    ] = None,
    profile: Annotated[str, typer.Option(help="Profile of an AWS file, or section of an .s3cfg.")] = "default",
    to: Annotated[Path | None, typer.Option(help="File of settings to write; default: .env here.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace settings or a table that are there.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Import the settings of another system from one of its files.

    Prints what was understood, with secrets masked, and what was not, and why.
    """
    found = origins.read(file, profile=profile)
    if url is not None:
        found.take(origins.BUCKET, url, "--url")
    if bucket is None:
        path = to or settings.env_path()
        content = settings_file.merge(read_if_any(path), found.values, force=force)
    else:
        config = settings.load(home=home)
        path = config.buckets_file or config.home / "buckets.toml"
        table = settings.format_table(bucket, make_bucket(found))
        content = settings_file.put_table(read_if_any(path), bucket, table, force=force)
        check_buckets(content, config)
    print_import(found, path.name, dry_run=dry_run, as_json=as_json)
    if not dry_run:
        settings.make_private(path.absolute().parent)
        write_private(path, content)


def read_if_any(path: Path) -> str:
    """Return the text of a file; empty if there is none."""
    return path.read_text() if path.exists() else ""


def make_bucket(found: origins.Imported) -> Bucket:
    """Make a bucket of imported settings.

    Raises:
        Misconfigured: the file names no bucket.
    """
    location = found.values.get(origins.BUCKET) or found.values.get("PLATEWAY_OBJECTS_URL")
    if location is None:
        raise Misconfigured(f"{found.kind} names no bucket: --url s3://BUCKET")
    secrets = {name: found.values.get(name) for name in (origins.SECRET_KEY, origins.TOKEN)}
    secret, token = (SecretStr(value) if value else None for value in secrets.values())
    endpoint = Endpoint(
        url=found.values.get(origins.ENDPOINT),
        access_key_id=found.values.get(origins.KEY),
        secret_access_key=secret,
        session_token=token,
        region=found.values.get(origins.REGION, "us-east-1"),
    )
    return Bucket(url=location, endpoint=endpoint)


def check_buckets(content: str, config: settings.Settings) -> None:
    """Read a buckets.toml that is to be written.

    Raises:
        Misconfigured: a table is wrong.
    """
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory) / "buckets.toml"
        write_private(draft, content)
        settings.read_buckets(draft, config.endpoint)


def print_import(found: origins.Imported, target: str, *, dry_run: bool, as_json: bool) -> None:
    """Print what was understood, masked, and what was left out."""
    shown = {name: origins.mask(name, value) for name, value in found.values.items()}
    if as_json:
        rows = [{"setting": name, "value": value, "from": found.sources[name]} for name, value in shown.items()]
        written = None if dry_run else target
        print_json({"kind": found.kind, "settings": rows, "left_out": found.left_out, "written": written})
        return
    out.print(found.kind)
    print_table(("setting", "value", "from"), ((name, value, found.sources[name]) for name, value in shown.items()))
    if found.left_out:
        print_table(("left out", "why"), found.left_out.items())
    out.print(f"{'would be written' if dry_run else 'written'} to {target}")


@app.command("bucket")
def print_bucket(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a Bucket block.")]) -> None:
    """Print a Bucket block of Prefect as a table for buckets.toml, with its keys."""
    import_from_project("blocks.bucket").require_api(name)
    blocks = import_from_project("blocks.site")
    found = asyncio.run(blocks.load_buckets()).get(name)
    if found is None:
        raise NotFound(f"no Bucket block {name!r} in Prefect")
    instruments = asyncio.run(blocks.load_instruments())
    systems = tuple(sorted(one.system for one in instruments if one.bucket == name))
    print_text(settings.format_table(name, found.value(systems)).removesuffix("\n"))
