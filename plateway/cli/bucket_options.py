"""Options that name an endpoint, and the check before something in its buckets is deleted or replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from inspect import Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plateway import settings
from plateway.cli.options import Home
from plateway.endpoint import Endpoint
from plateway.errors import Refused
from plateway.keys import FOLDERS, MARKER_FILE, files_folder
from plateway.local.project import import_from_project
from plateway.names import shown
from plateway.store.admin import Address, Buckets

if TYPE_CHECKING:
    from plateway.catalog.holds import HeldCopy

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

    def confirm(self, where: Address, typed: str | None, *, whole: bool = False, held: bool = True) -> None:
        """Refuse to delete or replace what a site keeps, unless the bucket's name was typed.

        A site's marker in the bucket proves that, even without a catalogue. For a ``whole`` bucket, the name is also
        required if there is no catalogue at all. ``held``: refuse what a hold keeps, too.

        Raises:
            Refused: the name was not typed, or is another one; or a hold forbids it, whatever was typed.
        """
        if held:
            self.refuse_held(where.bucket, partial(_overlap, where))
        if not (reason := self._find_claim(where, whole=whole)):
            return
        if typed is None and sys.stdin.isatty():
            typed = typer.prompt(f"{shown(reason)}. Type the bucket's name to continue", err=True)
        if typed != where.bucket:
            raise Refused(f"{reason}: add --name {where.bucket} to continue")

    def refuse_held(self, bucket: str, covers: Callable[[str], bool]) -> None:
        """Refuse to delete or replace what a hold keeps; ``covers`` says of a key, or of a folder, whether it would be.

        Raises:
            Refused: a copy of an event that is held would be.
        """
        config = settings.load(home=self.home)
        if not has_catalog(config):
            return
        for key, copy in held_paths(config, bucket):
            if covers(key):
                hold = copy.hold
                raise Refused(
                    f"{key} in {bucket} is a copy of {copy.ref}, held by {hold.by} ({hold.scope}): {hold.reason}; "
                    f"it may go after plateway hold release {hold.id.hex[:8]}"
                )

    def _find_claim(self, where: Address, *, whole: bool) -> str:
        """Return why the contents of a bucket may be needed; empty if nothing suggests so."""
        config = settings.load(home=self.home)
        target, url = config.archive_target or "", f"s3://{where.bucket}"
        if target == url or target.startswith((f"{url}/", f"{url}?")):
            return f"the archive is in {where.bucket}"
        if has_catalog(config) and (count := count_exports(config, where.bucket)):
            return f"the catalogue records {count:,} exports in {where.bucket}"
        if (marker := next(self.buckets.markers(where, deep=whole), None)) is not None:
            kept = "an archive" if marker.endswith(MARKER_FILE) else "exports"
            return f"a site keeps {kept} in {where.bucket}: its marker is {marker}"
        if whole and not has_catalog(config) and next(self.buckets.find(Address(where.bucket)), None) is not None:
            return f"without a catalogue it is unknown whether a site keeps anything in {where.bucket}"
        return ""


def has_catalog(config: settings.Settings) -> bool:
    """Return whether there is a catalogue at hand."""
    return config.database_url is not None or (config.home / "catalogue.db").exists()


def held_paths(config: settings.Settings, bucket: str) -> Iterator[tuple[str, HeldCopy]]:
    """Yield the keys in a bucket, and the folders (ending in a slash), that hold copies of events that are held."""
    from plateway.catalog import Catalog  # noqa: PLC0415  SQLAlchemy, which only these commands need

    archive = (config.archive_target or "").partition("?")[0].removeprefix("s3://").rstrip("/")
    with closing(Catalog(config.catalog_url)) as catalog:
        catalog.upgrade()
        for copy in catalog.held_copies(catalog.now()):
            place = copy.bucket if copy.bucket is not None else archive
            if place == bucket or place.startswith(f"{bucket}/"):
                above = place.removeprefix(bucket).lstrip("/")
                above = f"{above}/" if above else ""
                yield f"{above}{copy.key}", copy
                name = files_folder(copy.key) if copy.bucket is not None else None
                yield from ((f"{above}{folder}/{name}/", copy) for folder in FOLDERS if name)


def _overlap(where: Address, path: str) -> bool:
    """Return whether a key, or a folder, is at, below or around an address."""
    return path == where.key or path.startswith(where.folder) or (path.endswith("/") and where.key.startswith(path))


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
