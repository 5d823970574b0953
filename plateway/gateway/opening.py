"""The parts of a gateway from the settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from plateway.errors import Misconfigured
from plateway.gateway.app import Parts, overlap
from plateway.gateway.auth import loopback
from plateway.gateway.rate_limits import Limits, Rate
from plateway.pipeline import Site, open_site
from plateway.settings import MAIN, Settings
from plateway.store import Objects, open_store


def parts(settings: Settings, *, objects_only: bool = False) -> Parts:
    """Return the parts of the gateway; with ``objects_only`` it needs neither catalogue, bench nor bucket of events.

    Raises:
        Misconfigured: the location of the objects overlaps with another location of the site, or there is none.
    """
    if objects_only and not settings.objects_url:
        raise Misconfigured("PLATEWAY_OBJECTS_URL is not set: s3://bucket[/prefix], file://… or memory://name")
    for what, place in _occupied_locations(settings):
        if settings.objects_url and overlap(settings.objects_url, place):
            raise Misconfigured(f"PLATEWAY_OBJECTS_URL: objects need their own location, apart from {what}")
    whole = Parts(
        home=settings.home.absolute(),
        tokens=settings.tokens,
        objects=settings.objects_url,
        bucket=settings.bucket_url,
        endpoint=replace(settings.endpoint, read_only=settings.read_only),
        access=settings.access_file,
        limits=Limits(
            token=Rate(settings.token_rate),
            address=Rate(settings.address_rate),
            failed=Rate(settings.failed_rate),
            object_size=settings.max_object,
        ),
        trusted=settings.trusted_proxies,
        read_only=settings.read_only,
        site=partial(reader, settings),
        open=settings.open_access,
        straight=_is_local(settings),
        links=settings.link_lifetime,
        prefect_ui=settings.prefect_ui if _is_local(settings) else settings.prefect_ui_url,
        prefect_api=settings.prefect_api,
        dlm_v1=settings.dlm_v1,
        s3_port=settings.s3_port,
        s3_secrets=settings.s3_secrets,
        share=partial(open_share, settings),
    )
    return replace(whole, site=None, bucket=None, s3_port=None) if objects_only else whole


def reader(settings: Settings) -> Site:
    """Open the site for reading: every bucket of events is opened read-only."""
    known = {MAIN: settings.bucket, **settings.buckets}
    read_only = {
        name: one.model_copy(update={"endpoint": replace(one.endpoint, read_only=True)}) for name, one in known.items()
    }
    return open_site(settings, buckets=read_only)


def open_share(settings: Settings, location: str) -> Objects:
    """Open what an operator shares, read-only: with the key of the bucket it lies in, else with the site's own."""
    holding = [one for one in (settings.bucket, *settings.buckets.values()) if overlap(one.url, location)]
    endpoint = max(holding, key=lambda one: len(one.url)).endpoint if holding else settings.endpoint
    return open_store(location, replace(endpoint, read_only=True))


def check_share(settings: Settings, location: str) -> None:
    """Open what is to be shared, and list its beginning.

    Raises:
        Misconfigured: it is not a location, or is or contains a place of the site where secrets and state lie.
        Unavailable, Denied, NotFound: it cannot be read.
    """
    if urlsplit(location).scheme not in {"s3", "file"}:
        raise Misconfigured(f"{location!r}: what is shared is s3://bucket[/prefix] or file:///directory")
    home = settings.home.absolute()
    private = {"the home": home, "the tokens": settings.tokens, "the file of secrets": settings.s3_secrets}
    private |= {"the access log": settings.access_file}
    for what, place in private.items():
        if overlap(location, str(place)):
            raise Misconfigured(f"{location} is, contains or is inside {what}: share another location")
    open_share(settings, location).page(limit=1)


def _is_local(settings: Settings) -> bool:
    """Return whether only this machine can send requests; a trusted proxy forwards others, also on loopback."""
    return loopback(settings.serve_host) and not settings.trusted_proxies


def _occupied_locations(settings: Settings) -> Iterator[tuple[str, str]]:
    """List the locations that objects must not overlap with; objects may lie in the home, beside these."""
    home = settings.home.absolute()
    yield "the bucket of the events", settings.bucket_url
    yield from ((f"the bucket {name}", one.url) for name, one in settings.buckets.items())
    archives = {"the archive": settings.archive_target, "the archive's inbox": settings.archive_inbox}
    yield from ((what, url) for what, url in archives.items() if url)
    places = {"the bench": settings.root, "staging": settings.staging_root, "the tokens": settings.tokens}
    places |= {"the access log": settings.access_file, "the catalogue": _file(settings.catalog_url)}
    places |= {f"{one} in the home": home / one for one in ("s3", "gateway", "prefect", "logs", "runtime.json")}
    yield from ((what, str(place.absolute())) for what, place in places.items() if place)


def _file(database: str) -> Path | None:
    return Path(database.removeprefix("sqlite:///")) if database.startswith("sqlite:///") else None
