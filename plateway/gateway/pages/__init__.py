"""Pages for researchers: search, events and their images, the dashboard.

Every page is rendered on the server; scripts only add keyboard shortcuts. Times are UTC.
"""

from __future__ import annotations

from fastapi import FastAPI

from plateway.gateway.pages import (
    actions,
    dashboard,
    event,
    experiment,
    film,
    find,
    login,
    rendering,
)
from plateway.pipeline import Site


def install(app: FastAPI, site: Site) -> None:
    """Add these routes to an application."""
    rendering.install(app)
    login.install(app)
    find.install(app, site)
    event.install(app, site)
    actions.install(app, site)
    film.install(app, site)
    experiment.install(app, site)
    dashboard.install(app, site)
