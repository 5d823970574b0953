"""The HTTP gateway: objects, events, images and pages. `create_app` builds the application, `serve` runs it.

The application is imported when it is first used: commands about tokens and the access log need none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plateway.gateway.access import Access as Access
    from plateway.gateway.app import Parts as Parts
    from plateway.gateway.app import create_app as create_app
    from plateway.gateway.rate_limits import Limits as Limits
    from plateway.gateway.rate_limits import Rate as Rate
    from plateway.gateway.server import serve as serve

MODULES = {
    "Access": "access",
    "Parts": "app",
    "create_app": "app",
    "Limits": "rate_limits",
    "Rate": "rate_limits",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"plateway.gateway.{MODULES[name]}"), name)
