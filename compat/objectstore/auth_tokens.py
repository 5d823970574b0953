"""Create, list, replace and delete tokens: ``python -m objectstore.auth_tokens add NAME --ttl DAYS --scope read``."""

import sys

from objectstore.config import tokens_file
from plateway.cli.token import app


def main() -> None:
    """Run a command on the tokens file of ``--file``, else of the environment, else on ./tokens.json."""
    given = any(word in {"-f", "--file"} or word.startswith("--file=") for word in sys.argv[1:])
    app([*([] if given else ["--file", str(tokens_file())]), *sys.argv[1:]], prog_name="authtoken")


if __name__ == "__main__":
    main()
