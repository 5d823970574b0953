"""Read amplify-object-store's environment and storage.yaml into the parts of a gateway."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from plateway import origins, settings
from plateway.endpoint import Endpoint
from plateway.gateway import Parts


def read_parts() -> Parts:
    """Return a gateway with objects only, as the environment describes it; a directory of objects is created.

    Raises:
        Misconfigured: storage.yaml is missing or wrong; names the file, the store and the field.
    """
    location, endpoint = "memory://objects", Endpoint()
    if file := os.environ.get("STORAGE_CONFIG"):
        location, endpoint = origins.read_storage(Path(file), os.environ.get("STORAGE_NAME"))
    if location.startswith("file:"):
        Path(unquote(urlsplit(location).path)).mkdir(parents=True, exist_ok=True)
    home = settings.load().home.absolute()
    return Parts(home=home, tokens=tokens_file().absolute(), objects=location, endpoint=endpoint)


def tokens_file() -> Path:
    """Return where tokens are: AUTH_TOKENS_FILE, TOKENS_FILE, or tokens.json here."""
    return Path(os.environ.get("AUTH_TOKENS_FILE") or os.environ.get("TOKENS_FILE") or "tokens.json")
