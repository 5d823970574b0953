"""All commands there are: importing this adds each to the application."""

from plateway.cli import bucket, gateway, line, site, tape, views
from plateway.cli.line import FAULTS
from plateway.cli.shell import app, exit_code
from plateway.cli.verbs import verdict

__all__ = ["FAULTS", "app", "bucket", "exit_code", "gateway", "line", "site", "tape", "verdict", "views"]
