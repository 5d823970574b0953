"""The Prefect project of this installation: ``prefect.yaml``, ``flows``, ``blocks`` and ``deployments``.

Their names are common, so they are importable only in processes that run in the project's directory, and through
``import_from_project``. Imports nothing of Prefect itself.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from threading import Event
from types import ModuleType

PACKAGE = Path(__file__).resolve().parents[1]
BUNDLED = PACKAGE / "_project"  # only in a wheel; a checkout has the project beside the package
PROJECT = BUNDLED if BUNDLED.is_dir() else PACKAGE.parent

ENTERED = Event()  # this process runs flows from here, not from a clone that is removed after the run


def import_from_project(name: str) -> ModuleType:
    """Import a module of the project, like ``blocks.bucket``, and Prefect with it, which takes seconds."""
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    return import_module(name)


def change_directory() -> dict[str, str]:
    """Change into the project's directory: the pull step of each deployment, on any machine with Plateway."""
    os.chdir(PROJECT)
    ENTERED.set()
    return {"directory": str(PROJECT)}
