"""Exports, archives and daily figures over HTTP: the API of DLM v2, with links to fetch each export."""

from __future__ import annotations

from fastapi import FastAPI

from plateway.pipeline import Line


def install(app: FastAPI, line: Line) -> None:
    """Give an application these routes."""
