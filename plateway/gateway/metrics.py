"""Figures for Prometheus."""

from __future__ import annotations

from fastapi import FastAPI

from plateway.pipeline import Line


def install(app: FastAPI, line: Line) -> None:
    """Give an application these routes."""
