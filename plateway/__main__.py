"""``python -m plateway`` is ``plateway``."""

from plateway.cli import main

main()
