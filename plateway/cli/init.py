"""``plateway init``: write a file of settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from plateway import settings, settings_file
from plateway.cli.console import out, print_json
from plateway.cli.options import Json
from plateway.errors import Conflict
from plateway.local.supervisor import write_private
from plateway.origins import BUCKET, ENDPOINT, KEY, REGION, SECRET_KEY, mask

BENCH, HOME, PURGE = "PLATEWAY_SOURCE_ROOT", "PLATEWAY_HOME", "PLATEWAY_PURGE_SYSTEMS"


def init(
    *,
    bench: Annotated[str | None, typer.Option(metavar="DIR", help="Where the instruments write.")] = None,
    bucket: Annotated[
        str | None, typer.Option(metavar="URL", help="s3://bucket[/prefix] or file:///directory.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Address of S3; without it `plateway up` starts a server.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Region of the bucket.")] = None,
    access_key: Annotated[str | None, typer.Option("--access-key", metavar="ID", help="Key for S3.")] = None,
    secret_file: Annotated[
        typer.FileText | None, typer.Option("--secret-file", help="File with the key's secret; - is standard input.")
    ] = None,
    purge: Annotated[
        str | None, typer.Option(metavar="SYSTEMS", help="Systems whose raw images may be purged, with commas.")
    ] = None,
    home: Annotated[str | None, typer.Option(metavar="DIR", help="Directory of local state.")] = None,
    to: Annotated[Path | None, typer.Option(help="File to write; default: .env here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file, secrets masked, and write none.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented file of settings.

    Asks for the settings that a site needs; with any option for a setting it asks nothing. The file has every other
    setting as a comment with its default.
    """
    path = to or settings.env_path()
    if path.exists() and not force and not dry_run:
        raise Conflict(
            f"{path.name} exists: --force replaces it, --to FILE writes another, plateway config import adds"
        )
    given = {
        HOME: home,
        BENCH: bench,
        BUCKET: bucket,
        ENDPOINT: endpoint,
        REGION: region,
        KEY: access_key,
        PURGE: purge,
    }
    given[SECRET_KEY] = secret_file.read().strip() if secret_file else None
    values = {name: value for name, value in given.items() if value}
    values = values or ask()
    fields = settings.field_names()
    settings.load(**{fields[name]: value for name, value in values.items()})
    content = settings_file.format_template({name: mask(name, one) if dry_run else one for name, one in values.items()})
    if dry_run:
        sys.stdout.write(content)
        return
    write_private(path, content)
    if as_json:
        print_json({"written": path.name, "settings": {name: mask(name, value) for name, value in values.items()}})
    else:
        out.print(f"written to {path.name}; next: plateway doctor")


def ask() -> dict[str, str]:
    """Ask for the settings that a site needs; an empty answer keeps the default."""
    questions = (
        (BENCH, "Where do the instruments write? (directory with <system>/events)", False),
        (BUCKET, "Bucket (s3://bucket[/prefix] or file:///directory)", False),
        (ENDPOINT, "Address of S3 (empty: an S3 server on this machine, by plateway up)", False),
        (REGION, "Region of the bucket", False),
        (KEY, "Access key for S3 (empty: AWS_PROFILE or an instance role)", False),
        (SECRET_KEY, "Its secret", True),
        (PURGE, "Systems whose raw images may be removed after proof (empty: none)", False),
    )
    values: dict[str, str] = {}
    for name, text, hidden in questions:
        if (name in {REGION, KEY} and ENDPOINT not in values) or (name == SECRET_KEY and KEY not in values):
            continue
        if answer := typer.prompt(text, default="", show_default=False, hide_input=hidden, err=True).strip():
            values[name] = answer
    return values
