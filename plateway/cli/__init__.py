"""The command line: parse, call a verb, show what came of it.

Listings take ``--json`` (one document on standard output; progress and messages go to standard error).
Exit codes: 0 done, 1 failed, 2 usage, 3 partly failed, 4 verification found damage, 5 try again later.

Catalogue and verbs take longer to import than ``plateway bucket`` takes to work, which needs neither: so commands are
imported when it is known which are meant. Whoever asks for ``app`` means all.
"""

import sys
from importlib import import_module
from typing import Any


def main() -> None:
    """Run the command line."""
    import_module("plateway.cli.bucket" if sys.argv[1:2] == ["bucket"] else "plateway.cli.commands")
    import_module("plateway.cli.shell").run_app()


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(import_module("plateway.cli.commands"), name)
