"""Pages for researchers: find events, look at them, see what waits and why.

Every page is made here, whole, of templates and one style sheet; scripts only make the keyboard quicker. Times are UTC.
"""

from __future__ import annotations

from fastapi import FastAPI

from plateway.gateway.pages import dashboard, event, find, login, site
from plateway.pipeline import Site


def install(app: FastAPI, line: Site) -> None:
    """Give an application these routes."""
    site.install(app)
    login.install(app)
    find.install(app, line)
    event.install(app, line)
    dashboard.install(app, line)
