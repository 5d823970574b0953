"""Events over HTTP: search, and the whole ledger of one."""

from __future__ import annotations

from fastapi import FastAPI

from plateway.pipeline import Line


def install(app: FastAPI, line: Line) -> None:
    """Give an application these routes."""
