"""The command line: parse, call a verb, show what came of it.

Listings take ``--json`` (one document on standard output; progress and messages go to standard error).
Exit codes: 0 done, 1 failed, 2 usage, 3 partly failed, 4 verification found damage, 5 try again later.
"""

from plateway.cli import bucket, gateway, line, tape, views  # each adds its commands
from plateway.cli.app import app as app
from plateway.cli.app import exit_code as exit_code
from plateway.cli.app import main as main
from plateway.cli.app import verdict as verdict
from plateway.cli.line import FAULTS as FAULTS

__all__ = ["FAULTS", "app", "bucket", "exit_code", "gateway", "line", "main", "tape", "verdict", "views"]
