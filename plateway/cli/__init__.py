"""The command line: parse arguments, call a verb, print the result.

``commands`` lists the commands; each is in the file of its name or of its group. Lists take ``--json``: one document on
standard output, while progress and messages go to standard error. Exit codes are in ``exit_codes``.
"""

from plateway.cli.commands import app as app
from plateway.cli.commands import main as main
