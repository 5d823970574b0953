"""Clients of the gateway: objects, compatible with amplify-object-store's clients, and events for researchers.

Imports httpx and the standard library. One implementation, as generators of steps that neither send nor wait, serves
the synchronous and the asynchronous clients.
"""

from plateway.client.events import AsyncPlateway, Images, Picture, Plateway
from plateway.client.models import (
    Archive,
    Event,
    Export,
    Image,
)
from plateway.client.objects import AsyncRestStore, AsyncRestStoreError, RestStore, RestStoreError

__all__ = [
    "Archive",
    "AsyncPlateway",
    "AsyncRestStore",
    "AsyncRestStoreError",
    "Event",
    "Export",
    "Image",
    "Images",
    "Picture",
    "Plateway",
    "RestStore",
    "RestStoreError",
]
