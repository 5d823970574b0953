"""Pages for researchers: find events, look at them, see what waits and why.

Every page is made here, whole, of templates and one style sheet; scripts only make the keyboard quicker. Times are UTC.
"""

from __future__ import annotations

from fastapi import FastAPI

from plateway.gateway.pages import (
    dashboard,
    event,
    find,
    login,
    rendering,
)
from plateway.pipeline import Site


def install(app: FastAPI, site: Site) -> None:
    """Give an application these routes."""
    rendering.install(app)
    login.install(app)
    find.install(app, site)
    event.install(app, site)
    dashboard.install(app, site)
