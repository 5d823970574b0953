"""Clients of the gateway: objects as amplify-object-store's clients had them, and events for researchers.

Owns how a program talks to a gateway; imports httpx and the standard library. One logic, written as steps that neither
send nor wait, serves the synchronous and the asynchronous clients.
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
