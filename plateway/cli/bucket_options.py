"""Options that name an endpoint, and the check before something in its buckets is deleted or replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from inspect import Signature, signature
from typing import Annotated, Any

import typer

from plateway import settings
from plateway.cli.options import Home
from plateway.endpoint import Endpoint
from plateway.errors import Refused
from plateway.keys import MARKER_FILE
from plateway.local.project import import_from_project
from plateway.names import shown
from plateway.store.admin import Address, Buckets

EndpointUrl = Annotated[
    str | None, typer.Option("--endpoint-url", help="URL of the S3 endpoint; default: that of the settings.")
]
Block = Annotated[
    str | None, typer.Option("--block", help="Endpoint of this bucket in buckets.toml, or of this Bucket block.")
]


@dataclass(frozen=True)
class BucketOptions:
    """Which endpoint a command works on."""

    home: Home = None
    endpoint_url: EndpointUrl = None
    block: Block = None

    @cached_property
    def buckets(self) -> Buckets:
        """The buckets of the endpoint."""
        return Buckets(self.endpoint)

    @cached_property
    def endpoint(self) -> Endpoint:
        """The endpoint of the block or else of the settings, with another URL if one was given.

        Raises:
            NotFound: no such block.
        """
        config = settings.load(home=self.home)
        if self.block is None:
            found = config.endpoint
        elif self.block in config.buckets:
            found = config.buckets[self.block].endpoint
        else:
            found = import_from_project("blocks.bucket").load(self.block)
        return replace(found, url=self.endpoint_url) if self.endpoint_url else found

    def confirm(self, where: Address, typed: str | None, *, whole: bool = False) -> None:
        """Refuse to delete or replace what a site keeps, unless the bucket's name was typed.

        A site's marker in the bucket proves that, even without a catalogue. For a ``whole`` bucket, the name is also
        required if there is no catalogue at all.

        Raises:
            Refused: the name was not typed, or is another one.
        """
        if not (reason := self._find_claim(where, whole=whole)):
            return
        if typed is None and sys.stdin.isatty():
            typed = typer.prompt(f"{shown(reason)}. Type the bucket's name to continue", err=True)
        if typed != where.bucket:
            raise Refused(f"{reason}: add --name {where.bucket} to continue")

    def _find_claim(self, where: Address, *, whole: bool) -> str:
        """Return why the contents of a bucket may be needed; empty if nothing suggests so."""
        config = settings.load(home=self.home)
        target, url = config.archive_target or "", f"s3://{where.bucket}"
        if target == url or target.startswith((f"{url}/", f"{url}?")):
            return f"the archive is in {where.bucket}"
        has_catalog = config.database_url is not None or (config.home / "catalogue.db").exists()
        if has_catalog and (count := count_exports(config, where.bucket)):
            return f"the catalogue records {count:,} exports in {where.bucket}"
        if (marker := next(self.buckets.markers(where, deep=whole), None)) is not None:
            kept = "an archive" if marker.endswith(MARKER_FILE) else "exports"
            return f"a site keeps {kept} in {where.bucket}: its marker is {marker}"
        if whole and not has_catalog and next(self.buckets.find(Address(where.bucket)), None) is not None:
            return f"without a catalogue it is unknown whether a site keeps anything in {where.bucket}"
        return ""


def count_exports(config: settings.Settings, bucket: str) -> int:
    """Return how many exports the catalogue records in a bucket."""
    from plateway.catalog import Catalog  # noqa: PLC0415  SQLAlchemy, which only these commands need

    with closing(Catalog(config.catalog_url)) as catalog:
        return catalog.export_count(bucket) if catalog.current() else 0


def with_bucket_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of ``BucketOptions`` to a command, which gets them as its first argument."""
    _, *own = signature(command, eval_str=True).parameters.values()
    shared = signature(BucketOptions, eval_str=True).parameters

    @wraps(command)
    def extended(**values: Any) -> None:
        command(BucketOptions(**{name: values.pop(name) for name in shared}), **values)

    options = [one.replace(kind=one.KEYWORD_ONLY) for one in shared.values()]
    vars(extended)["__signature__"] = Signature([*own, *options])
    return extended
